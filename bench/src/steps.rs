//! Trivial workflows through the whole server: how many, and what a superstep's commit takes.
//!
//! A pool with so many slots is filled with more runs than it can hold and watched until it is empty; so the number of
//! runs at the same time is that of its slots, and nothing waits for the rig. Commit times are the server's own, from
//! its `clearway_commit_duration` histogram before and after.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::bed::config::Config;
use crate::bed::{Bed, Process, Tools};
use crate::http::{self, Conn, Request, exchange};
use crate::overhead::fsync_times;
use crate::report::{Kind, Report, Section, number, say};

/// Parameters of `steps`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Runs at the same time, one measurement for each.
    #[arg(long, value_delimiter = ',', default_value = "1,64,512")]
    at_once: Vec<u32>,
    /// Seconds that each is meant to take.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
}

/// Five steps that do nothing worth mentioning.
const WORKFLOW: &str = r#"
[pools.steps]
slots = SLOTS
queue = 1000000

[workflows.trivial]
pool = "steps"

[workflows.trivial.steps.one]
do = "set"
value = "1"

[workflows.trivial.steps.two]
needs = ["one"]
do = "set"
value = "2"

[workflows.trivial.steps.three]
needs = ["two"]
do = "set"
value = "3"

[workflows.trivial.steps.four]
needs = ["three"]
do = "set"
value = "4"

[workflows.trivial.steps.five]
needs = ["four"]
do = "set"
value = "5"
"#;

const STEPS: f64 = 5.0;
/// Connections that submit.
const SUBMITTERS: u64 = 8;
const LIMIT: Duration = Duration::from_secs(120);

/// What one measurement found.
#[derive(Debug)]
struct Found {
    at_once: u32,
    runs: u64,
    seconds: f64,
    supersteps: f64,
    commits: Buckets,
    fsync_ms: f64,
}

pub(crate) async fn run(tools: &Tools, options: &Options, report: &mut Report) -> Result<()> {
    let mut found = Vec::new();
    for &at_once in &options.at_once {
        say(&format!("{at_once} runs at the same time"));
        found.push(measure(tools, at_once, options).await?);
    }
    present(&found, report);
    Ok(())
}

async fn measure(tools: &Tools, at_once: u32, options: &Options) -> Result<Found> {
    let bed = Bed::new(tools)?;
    let config = Config::roomy(([127, 0, 0, 1], 9).into());
    let more = WORKFLOW.replace("SLOTS", &at_once.to_string());
    let server = bed.serve_text(&(config.to_toml() + &more)).await?;
    let fsync_ms = fsync_times(bed.folder())?.ms(0.5);
    // How many fit is found out with a few.
    let few = u64::from(at_once).clamp(20, 500);
    let seconds = drain(&server, few).await?;
    let fit = few as f64 / seconds * options.seconds as f64;
    let runs = (fit as u64).clamp(few, 200_000);
    let before = Buckets::of(&server).await?;
    let seconds = drain(&server, runs).await?;
    let commits = Buckets::of(&server).await?.since(&before);
    Ok(Found {
        at_once,
        runs,
        seconds,
        supersteps: runs as f64 * STEPS / seconds,
        commits,
        fsync_ms,
    })
}

/// Submits so many runs and waits until all are over; the seconds that took.
async fn drain(server: &Process, runs: u64) -> Result<f64> {
    let before = ended(server).await?;
    let begin = Instant::now();
    let mut submitters = JoinSet::new();
    for n in 0..SUBMITTERS {
        let (address, share) =
            (server.address, runs / SUBMITTERS + u64::from(n < runs % SUBMITTERS));
        submitters.spawn(async move {
            let mut conn = Conn::open(address).await?;
            let request = Request::post("/workflows/trivial/runs", &json!({}));
            for _ in 0..share {
                exchange(&mut conn, &request).await?.ok()?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = submitters.join_next().await {
        done.context("a submitter broke")??;
    }
    loop {
        let over = ended(server).await? - before;
        if over >= runs as f64 {
            break;
        }
        ensure!(begin.elapsed() < LIMIT, "only {over} of {runs} runs have ended");
        sleep(Duration::from_millis(5)).await;
    }
    Ok(begin.elapsed().as_secs_f64())
}

async fn metrics(server: &Process) -> Result<String> {
    let limit = Duration::from_secs(10);
    let answer = http::call(server.address, &Request::get("/metrics"), limit).await?;
    ensure!(answer.status == 200, "GET /metrics: status {}", answer.status);
    Ok(answer.text().into_owned())
}

/// Runs of the workflow that ended well.
async fn ended(server: &Process) -> Result<f64> {
    let text = metrics(server).await?;
    let lines = text.lines().filter(|line| {
        line.starts_with("clearway_runs_ended_total{")
            && line.contains("agent=\"trivial\"")
            && line.contains("status=\"success\"")
    });
    Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
}

/// A histogram of the server's: upper limits in seconds, and how many are at or below.
#[derive(Clone, Debug, Default)]
struct Buckets(Vec<(f64, f64)>);

impl Buckets {
    async fn of(server: &Process) -> Result<Self> {
        let text = metrics(server).await?;
        let buckets = Self::read(&text);
        ensure!(!buckets.0.is_empty(), "the server has no commit histogram");
        Ok(buckets)
    }

    fn read(text: &str) -> Self {
        let lines = text.lines().filter(|line| {
            line.starts_with("clearway_commit_duration") && line.contains("_bucket{")
        });
        let read = |line: &str| {
            let limit = line.split("le=\"").nth(1)?.split('"').next()?;
            let limit = if limit == "+Inf" { f64::INFINITY } else { limit.parse().ok()? };
            Some((limit, line.rsplit(' ').next()?.parse().ok()?))
        };
        Self(lines.filter_map(read).collect())
    }

    fn since(&self, before: &Self) -> Self {
        let pairs = self.0.iter().zip(&before.0);
        Self(pairs.map(|(now, then)| (now.0, now.1 - then.1)).collect())
    }

    /// In milliseconds, within the bucket by the share of it that is below.
    fn ms(&self, share: f64) -> f64 {
        let Some(total) = self.0.last().map(|(_, count)| *count) else { return 0.0 };
        let rank = total * share;
        let mut lower = (0.0, 0.0);
        for &(limit, count) in &self.0 {
            if count >= rank {
                let within = (rank - lower.1) / (count - lower.1).max(1.0);
                let upper = if limit.is_finite() { limit } else { lower.0 };
                return (lower.0 + (upper - lower.0) * within) * 1e3;
            }
            lower = (limit, count);
        }
        lower.0 * 1e3
    }
}

fn present(found: &[Found], report: &mut Report) {
    let mut section = Section::new(
        "Trivial workflows of five steps, through the server",
        &["at once", "runs/s", "steps/s", "commit p50 ms", "commit p99 ms", "fdatasync p50 ms"],
    );
    let mut figures: Vec<Value> = Vec::new();
    for one in found {
        let (p50, p99) = (one.commits.ms(0.5), one.commits.ms(0.99));
        let cells = [one.runs as f64 / one.seconds, one.supersteps, p50, p99, one.fsync_ms];
        section.row(std::iter::once(one.at_once.to_string()).chain(cells.map(number)));
        figures.push(json!({
            "at_once": one.at_once, "runs": one.runs, "seconds": one.seconds,
            "steps_per_s": one.supersteps, "commit_ms": {"p50": p50, "p99": p99}, "fsync_ms": one.fsync_ms,
        }));
    }
    section.note(
        "a run is submitted over HTTP; its supersteps are the five steps' and one for the result",
    );
    report.section(section);
    if let Some(one) = found.iter().find(|one| one.at_once == 64) {
        let bar = one.fsync_ms + 1.0;
        report.bar(
            Kind::Timing,
            "commit p50 at 64 at once, ms (fsync + 1)",
            one.commits.ms(0.5),
            bar,
        );
    }
    let best = found.iter().map(|one| one.supersteps).fold(0.0, f64::max);
    report.bar(Kind::Timing, "steps missing to 12 000 per second", 12_000.0 - best, 0.0);
    report.figure("steps", figures);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_are_read_and_subtracted() {
        let text = "# TYPE clearway_commit_duration_seconds histogram\n\
            clearway_commit_duration_seconds_bucket{le=\"0.001\"} 10\n\
            clearway_commit_duration_seconds_bucket{le=\"0.002\"} 30\n\
            clearway_commit_duration_seconds_bucket{le=\"+Inf\"} 30\n";
        let buckets = Buckets::read(text);
        assert_eq!(buckets.0.len(), 3);
        assert!((buckets.ms(0.5) - 1.25).abs() < 1e-9, "{}", buckets.ms(0.5));
        let zero = buckets.since(&buckets);
        assert_eq!(zero.0[1].1, 0.0);
    }
}
