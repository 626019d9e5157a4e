//! Whoever looks after the server: sees what goes on, and decides about writes whose outcome nobody knows.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::Shared;
use crate::http::{Conn, Request, exchange};
use crate::sink::SLOWEST;

/// All runs that had not ended at some moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    /// When the list was asked for: what was acknowledged before and is not in it has ended.
    pub(super) asked: Option<Instant>,
    pub(super) open: HashSet<String>,
    /// Writes decided about so far.
    pub(super) decided: u64,
}

#[derive(Debug)]
pub(super) struct Operator {
    shared: Arc<Shared>,
    tell: watch::Sender<Snapshot>,
    decided: HashSet<(String, u32)>,
}

const EVERY: Duration = Duration::from_millis(250);
const LIMIT: Duration = Duration::from_secs(10);
const MOST: usize = 1000;

impl Operator {
    pub(super) fn new(shared: Arc<Shared>, tell: watch::Sender<Snapshot>) -> Self {
        Self { shared, tell, decided: HashSet::new() }
    }

    pub(super) async fn work(mut self) {
        let mut conn = None;
        loop {
            // A server that is gone is asked again.
            if !matches!(timeout(LIMIT, self.look(&mut conn)).await, Ok(Ok(()))) {
                conn = None;
            }
            sleep(EVERY).await;
        }
    }

    async fn look(&mut self, conn: &mut Option<Conn>) -> Result<()> {
        let asked = Instant::now();
        let path = format!("/runs?status=blocked,ready,running,waiting&limit={MOST}");
        let list = self.ask(conn, &Request::get(&path)).await?;
        let runs = list["runs"].as_array().context("no list of runs")?;
        ensure!(runs.len() < MOST, "more runs than a list holds");
        let id = |run: &Value| run["run_id"].as_str().map(ToOwned::to_owned);
        let open: HashSet<String> = runs.iter().filter_map(id).collect();
        let waiting: Vec<String> = runs
            .iter()
            .filter(|run| run["waiting_on"]["kind"] == "decision")
            .filter_map(id)
            .collect();
        let decided = self.decided.len() as u64;
        self.tell.send_replace(Snapshot { asked: Some(asked), open, decided });
        if !waiting.is_empty() {
            // What left the server before it died has happened by then, or never will.
            sleep(SLOWEST).await;
        }
        for run in waiting {
            self.decide(conn, &run).await?;
        }
        Ok(())
    }

    async fn decide(&mut self, conn: &mut Option<Conn>, run: &str) -> Result<()> {
        let shown = self.ask(conn, &Request::get(&format!("/runs/{run}"))).await?;
        for write in shown["undecided"].as_array().into_iter().flatten() {
            let key = write["idempotency_key"].as_str().context("a write without a key")?;
            let count = self.shared.sink.count(key);
            let decision = match count {
                0 => json!({"key": key, "retry": true}),
                _ => {
                    json!({"key": key, "done": {"status": 200, "headers": {}, "json": {"ok": true}}})
                }
            };
            let path = format!("/runs/{run}/resolve");
            self.ask(conn, &Request::post(&path, &decision)).await?;
            self.decided.insert((key.to_owned(), count));
        }
        Ok(())
    }

    async fn ask(&self, conn: &mut Option<Conn>, request: &Request) -> Result<Value> {
        let mut open = match conn.take().filter(Conn::is_reusable) {
            Some(open) => open,
            None => Conn::open(self.shared.address).await?,
        };
        let answer = exchange(&mut open, request).await?;
        *conn = Some(open);
        answer.ok()
    }
}
