//! Whoever submits: one run at a time, again and again until it is acknowledged.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::Shared;
use super::operator::Snapshot;
use crate::http::{Conn, Request, exchange};

/// What is submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Job {
    Campaign,
    Workflow,
}

impl Job {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Campaign => "campaigns",
            Self::Workflow => "workflows",
        }
    }
}

/// An acknowledged run.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) job: Job,
    pub(super) run: String,
}

#[derive(Debug)]
pub(super) struct Client {
    shared: Arc<Shared>,
    snapshots: watch::Receiver<Snapshot>,
    job: Job,
    conn: Option<Conn>,
}

/// Between attempts to reach a server that is gone.
const PAUSE: Duration = Duration::from_millis(20);
const ATTEMPT: Duration = Duration::from_secs(20);
/// A run that is not acknowledged, or over, by then never will be.
const PATIENCE: Duration = Duration::from_secs(600);

impl Client {
    pub(super) fn new(shared: Arc<Shared>, snapshots: watch::Receiver<Snapshot>, job: Job) -> Self {
        Self { shared, snapshots, job, conn: None }
    }

    /// Submits until told to stop. Also what went wrong.
    pub(super) async fn work(mut self) -> (Vec<Known>, Vec<String>) {
        let (mut runs, mut problems) = (Vec::new(), Vec::new());
        while !self.shared.stop.load(Ordering::Relaxed) {
            match self.one().await {
                Ok(run) => runs.push(run),
                Err(error) => {
                    problems.push(format!("a client of {}: {error:#}", self.job.name()));
                    // Whatever is wrong will be wrong again: no storm of complaints.
                    sleep(Duration::from_secs(1)).await;
                }
            }
        }
        (runs, problems)
    }

    async fn one(&mut self) -> Result<Known> {
        let n = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let key = format!("key-{n}");
        let headers = [("idempotency-key", key.as_str())];
        let request = match self.job {
            Job::Workflow => Request::post_with("/workflows/small/runs", &headers, &json!({})),
            Job::Campaign => {
                let brief = json!({
                    "product": format!("Lamp {n}"), "client": "Lumen", "target_audience": "campers",
                    "goals": ["sell"], "key_features": ["bright"], "username": format!("user{}", n % 7),
                });
                Request::post_with("/api/v1/campaigns/generate", &headers, &brief)
            }
        };
        let acknowledged = self.insist(&request).await?;
        let run = acknowledged["run_id"].as_str().context("an answer without run_id")?.to_owned();
        let known = Known { job: self.job, run };
        self.ended(&known.run).await?;
        Ok(known)
    }

    /// Repeats a request until it is answered with success.
    async fn insist(&mut self, request: &Request) -> Result<Value> {
        let begin = Instant::now();
        loop {
            match timeout(ATTEMPT, self.attempt(request)).await {
                Ok(Ok((status, body))) if (200..300).contains(&status) => return Ok(body),
                Ok(Ok((status, body))) if !matches!(status, 429 | 503) => {
                    bail!("refused with {status}: {body}")
                }
                // Gone, or on its way.
                Ok(Ok(_) | Err(_)) | Err(_) => self.conn = None,
            }
            ensure!(begin.elapsed() < PATIENCE, "never acknowledged");
            sleep(PAUSE).await;
        }
    }

    async fn attempt(&mut self, request: &Request) -> Result<(u16, Value)> {
        let mut conn = match self.conn.take().filter(Conn::is_reusable) {
            Some(conn) => conn,
            None => Conn::open(self.shared.address).await?,
        };
        let answer = exchange(&mut conn, request).await?;
        self.conn = Some(conn);
        Ok((answer.status, answer.json().unwrap_or_default()))
    }

    /// Waits until the run is no longer among those that go on.
    async fn ended(&mut self, run: &str) -> Result<()> {
        let since = Instant::now();
        let over = self.snapshots.wait_for(|snapshot| {
            snapshot.asked.is_some_and(|asked| asked > since) && !snapshot.open.contains(run)
        });
        timeout(PATIENCE, over).await.context("it never ended")?.context("the operator left")?;
        Ok(())
    }
}
