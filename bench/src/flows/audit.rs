//! What must hold for every acknowledged run when everything is over.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tokio::task::JoinSet;

use super::Shared;
use super::clients::{Job, Known};
use crate::audit::{Log, Takeover};
use crate::http::{Conn, Request, exchange};
use crate::sink::Sink;
use crate::stats::Hist;

/// What a small workflow does outside.
const WRITES: [&str; 10] = [
    "fan-a-1", "fan-b-1", "fan-c-1", "keyed-1", "fan-a-2", "fan-b-2", "fan-c-2", "keyed-2",
    "child", "last",
];

#[derive(Debug, Default)]
pub(super) struct Audit {
    pub(super) runs: usize,
    pub(super) by_kind: BTreeMap<&'static str, usize>,
    pub(super) events: usize,
    pub(super) supersteps: usize,
    pub(super) writes: usize,
    /// Requests beyond one for a write, under the same key.
    pub(super) repeated: u32,
    /// Runs that a kill interrupted.
    pub(super) interrupted: usize,
    takeovers: Vec<Takeover>,
}

/// Runs that are audited side by side.
const AT_ONCE: usize = 4;

impl Audit {
    pub(super) async fn of(
        shared: &Arc<Shared>,
        runs: &[Known],
        problems: &mut Vec<String>,
    ) -> Result<Self> {
        let mut parts = JoinSet::new();
        for part in runs.chunks(runs.len().div_ceil(AT_ONCE).max(1)) {
            let (shared, part) = (Arc::clone(shared), part.to_vec());
            parts.spawn(async move { audit(&shared, &part).await });
        }
        let mut whole = Self::default();
        while let Some(part) = parts.join_next().await {
            let (part, complaints) = part.context("an auditor broke")??;
            whole.add(part);
            problems.extend(complaints);
        }
        for (agent, job) in [("small", Job::Workflow), ("campaign", Job::Campaign)] {
            let submitted = runs.iter().filter(|run| run.job == job).count();
            let stored = stored(shared, agent).await?;
            if submitted != stored {
                problems.push(format!(
                    "{stored} runs of `{agent}` are stored, {submitted} were acknowledged"
                ));
            }
        }
        let expected = whole.writes;
        if shared.sink.len() != expected {
            problems.push(format!(
                "{} different writes were made, {expected} belong to runs",
                shared.sink.len()
            ));
        }
        Ok(whole)
    }

    fn add(&mut self, other: Self) {
        self.runs += other.runs;
        for (kind, n) in other.by_kind {
            *self.by_kind.entry(kind).or_default() += n;
        }
        self.events += other.events;
        self.supersteps += other.supersteps;
        self.writes += other.writes;
        self.repeated += other.repeated;
        self.interrupted += other.interrupted;
        self.takeovers.extend(other.takeovers);
    }

    /// How long interrupted runs stood still, each, and the last of each kill.
    pub(super) fn resumed(&self, kills: &[i64]) -> (Hist, Hist) {
        let mut slowest: BTreeMap<usize, i64> = BTreeMap::new();
        let mut each = Hist::default();
        for takeover in &self.takeovers {
            // The first kill after its last event is the one that hit it.
            let hit = kills.partition_point(|at| *at < takeover.left_ms);
            // Two kills on end may leave a run alone in between; then the second counts.
            let last = kills.partition_point(|at| *at < takeover.taken_ms);
            let Some(last) = last.checked_sub(1).filter(|last| *last >= hit) else { continue };
            let ms = takeover.taken_ms - kills[last];
            each.add_us(ms.unsigned_abs() * 1000);
            let slowest = slowest.entry(last).or_default();
            *slowest = (*slowest).max(ms);
        }
        let mut last = Hist::default();
        slowest.values().for_each(|ms| last.add_us(ms.unsigned_abs() * 1000));
        (each, last)
    }
}

async fn audit(shared: &Shared, runs: &[Known]) -> Result<(Audit, Vec<String>)> {
    let (mut audit, mut problems, mut conn) = (Audit::default(), Vec::new(), None);
    for known in runs {
        let run = &known.run;
        let mut wrong = |what: String| problems.push(format!("{} {run}: {what}", known.job.name()));
        let log = Log::fetch(&mut conn, shared.address, run).await;
        let log = log.with_context(|| format!("the log of {run}"))?;
        log.shape_problems().into_iter().for_each(&mut wrong);
        let shown = get(&mut conn, shared, &format!("/runs/{run}")).await?;
        let thread = shown["thread_id"].as_str().context("a run without a thread")?;
        match supersteps(&mut conn, shared, thread).await {
            Ok(count) => audit.supersteps += count,
            Err(error) => wrong(format!("{error:#}")),
        }
        let all: &[&str] = match known.job {
            Job::Workflow => &WRITES,
            Job::Campaign => &["publish"],
        };
        for what in all {
            match written(&shared.sink, run, what) {
                Ok(repeated) => {
                    audit.writes += 1;
                    audit.repeated += repeated;
                }
                Err(error) => wrong(format!("{error:#}")),
            }
        }
        audit.runs += 1;
        *audit.by_kind.entry(known.job.name()).or_default() += 1;
        audit.events += log.len();
        let takeovers = log.takeovers();
        audit.interrupted += usize::from(!takeovers.is_empty());
        audit.takeovers.extend(takeovers);
    }
    Ok((audit, problems))
}

/// A write was made once; how many requests there were beyond that.
fn written(sink: &Sink, run: &str, what: &str) -> Result<u32> {
    let (times, requests) = sink.times(&format!("/{run}/{what}"));
    ensure!(times == 1, "write `{what}` was made {times} times");
    // Only a write with a key of its own may come again: the other side does it once.
    ensure!(
        requests == 1 || what.starts_with("keyed"),
        "write `{what}` was sent {requests} times without anybody having said so"
    );
    Ok(requests - 1)
}

/// The thread's checkpoints are its supersteps, each once and in order; how many.
async fn supersteps(conn: &mut Option<Conn>, shared: &Shared, thread: &str) -> Result<usize> {
    let path = format!("/storage/threads/{thread}/history?limit=1000");
    let history = get(conn, shared, &path).await?;
    let checkpoints = history["checkpoints"].as_array().context("no checkpoints")?;
    for (step, checkpoint) in (-1_i64..).zip(checkpoints.iter().rev()) {
        ensure!(
            checkpoint["step"] == step,
            "superstep {} where {step} should be",
            checkpoint["step"]
        );
    }
    for pair in checkpoints.windows(2) {
        ensure!(pair[0]["parent"] == pair[1]["checkpoint"], "its history has a branch");
    }
    Ok(checkpoints.len())
}

/// Runs of an agent that the server knows.
async fn stored(shared: &Shared, agent: &str) -> Result<usize> {
    let (mut conn, mut count, mut after) = (None, 0, String::new());
    loop {
        let path = format!("/runs?agent={agent}&limit=1000{after}");
        let page = get(&mut conn, shared, &path).await?;
        count += page["runs"].as_array().context("no list of runs")?.len();
        let Some(next) = page["next"].as_str() else { return Ok(count) };
        after = format!("&after={next}");
    }
}

async fn get(conn: &mut Option<Conn>, shared: &Shared, path: &str) -> Result<Value> {
    let mut open = match conn.take().filter(Conn::is_reusable) {
        Some(open) => open,
        None => Conn::open(shared.address).await?,
    };
    let answer = exchange(&mut open, &Request::get(path)).await?;
    *conn = Some(open);
    answer.ok().with_context(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standing_still_counts_from_the_kill_that_hit() {
        let audit = Audit {
            takeovers: vec![
                Takeover { left_ms: 90, taken_ms: 130 },
                // Left alone between two kills.
                Takeover { left_ms: 95, taken_ms: 260 },
                Takeover { left_ms: 195, taken_ms: 230 },
            ],
            ..Audit::default()
        };
        let (each, last) = audit.resumed(&[100, 200]);
        assert_eq!((each.count(), last.count()), (3, 2));
        assert_eq!((each.max_ms(), last.max_ms()), (60.0, 60.0));
        assert!((last.ms(0.5) - 30.0).abs() < 0.1);
    }
}
