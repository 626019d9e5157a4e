//! kill -9, again and again, among campaigns and small workflows that write outward.
//!
//! So many campaigns and so many small workflows are under way at any time; whenever one ends the next is submitted,
//! with an Idempotency-Key that is repeated until it is acknowledged. Meanwhile the server is killed at random moments
//! and started again at once. Where a write's outcome is not known the run says so and waits; the rig then does what an
//! operator would: it asks the other side, the [`Sink`], and answers `done` or `retry`.
//!
//! Afterwards every acknowledged run is audited: it ended well, its log has no gap and one end, its supersteps are there
//! once each, and each of its writes was made exactly once.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use self::audit::Audit;
use self::clients::{Client, Job, Known};
use self::operator::{Operator, Snapshot};
use crate::bed::{Bed, Process, Tools};
use crate::kill::now_ms;
use crate::report::{Kind, Report, Section, number, say};
use crate::rng::Rng;
use crate::sink::Sink;
use crate::stats::Hist;

mod audit;
mod clients;
mod operator;

/// Parameters of `kill-workflows`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Kills.
    #[arg(long, default_value_t = 500)]
    kills: u32,
    /// Campaigns at the same time.
    #[arg(long, default_value_t = 50)]
    campaigns: u32,
    /// Small workflows at the same time.
    #[arg(long, default_value_t = 200)]
    workflows: u32,
    /// The shortest and the longest life of a server, in milliseconds.
    #[arg(long, value_delimiter = ',', default_value = "200,2500")]
    life_ms: Vec<u64>,
    /// Seed of the moments of the kills and of the writes' pace.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What all parts of the rig know.
#[derive(Debug)]
struct Shared {
    address: SocketAddr,
    sink: Sink,
    /// Set when the killing is over: what is under way is finished, no more is begun.
    stop: AtomicBool,
    next: AtomicU64,
}

/// One kill and what followed.
#[derive(Clone, Copy, Debug)]
struct Killed {
    at_ms: i64,
    /// From the start of the new process until it answered.
    ready: Duration,
}

/// How long what is under way may take once the killing is over.
const AFTERMATH: Duration = Duration::from_secs(180);

pub(crate) async fn run(tools: &Tools, options: &Options, report: &mut Report) -> Result<()> {
    let Options { kills, campaigns, workflows, seed, .. } = options;
    say(&format!(
        "{kills} kills among {campaigns} campaigns and {workflows} workflows, seed {seed}"
    ));
    let bed = Bed::new(tools)?;
    let sink = Sink::start(*seed).await?;
    let config = project(tools, &bed, options, sink.address).await?;
    let server = bed.serve_text(&config).await?;
    let shared = Arc::new(Shared {
        address: server.address,
        sink,
        stop: AtomicBool::new(false),
        next: AtomicU64::new(1),
    });
    let (tell, snapshots) = watch::channel(Snapshot::default());
    let mut operators = JoinSet::new();
    operators.spawn(Operator::new(Arc::clone(&shared), tell).work());
    let mut clients = JoinSet::new();
    for n in 0..campaigns + workflows {
        let job = if n < *campaigns { Job::Campaign } else { Job::Workflow };
        clients.spawn(Client::new(Arc::clone(&shared), snapshots.clone(), job).work());
    }
    let (server, kills) = kill(&bed, server, options).await?;
    shared.stop.store(true, Ordering::Relaxed);
    let (runs, mut problems) = gather(&mut clients).await?;
    let undecided = snapshots.borrow().decided;
    operators.abort_all();
    say(&format!("{} runs to audit", runs.len()));
    let audit = Audit::of(&shared, &runs, &mut problems).await?;
    drop(server);
    Outcome { options, kills, audit, problems, undecided }.report(report);
    Ok(())
}

/// The example project, with a step that writes outward, and the small workflows.
async fn project(tools: &Tools, bed: &Bed, options: &Options, sink: SocketAddr) -> Result<String> {
    let mut init = Command::new(&tools.clearway);
    let made = init.arg("init").arg(bed.folder()).output().await.context("clearway init")?;
    ensure!(made.status.success(), "clearway init: {}", String::from_utf8_lossy(&made.stderr));
    let text = std::fs::read_to_string(bed.folder().join("clearway.toml"))?;
    let changed = text
        .replace("ttft           = \"40ms\"", "ttft           = \"300ms\"")
        .replace(
            "token_interval = \"15ms\"",
            "token_interval = \"0ms\"\nlimits = { concurrent = 1000, queue = 5000 }",
        )
        .replace(
            "campaigns = { slots = 4, queue = 200 }",
            &format!("campaigns = {{ slots = {}, queue = 1000 }}", options.campaigns),
        );
    ensure!(
        changed.contains("300ms")
            && changed.contains("limits =")
            && changed.contains("queue = 1000"),
        "the example project looks different now"
    );
    let more = WORKFLOWS
        .replace("SLOTS", &options.workflows.to_string())
        .replace("SINK", &format!("http://{sink}"));
    Ok(changed + &more)
}

/// What is added to the example project. Every kind of write: after many model calls, side by side, in a loop, with a
/// key, in a child run, behind a timer, and at the end.
const WORKFLOWS: &str = r#"
[pools.small]
slots = SLOTS
queue = 5000

[http]
hosts = ["127.0.0.1"]
allow = ["127.0.0.1"]

[workflows.campaign.steps.publish]
category = "internal"
needs = ["report"]
do = "http"
request = { method = "POST", url = "SINK/{{ run.id }}/publish" }

[workflows.small]
pool = "small"

[workflows.small.steps.begin]
do = "set"
value = "['a', 'b', 'c']"

[workflows.small.steps.fan]
needs = ["begin"]
for_each = "begin"
do = "http"
request = { method = "POST", url = "SINK/{{ run.id }}/fan-{{ item }}-{{ step.visits }}" }

[workflows.small.steps.look]
needs = ["begin"]
do = "http"
request = { method = "GET", url = "SINK/look" }

[workflows.small.steps.keyed]
needs = ["fan", "look"]
do = "http"
key = "{{ run.id }}-keyed-{{ step.visits }}"
request = { method = "POST", url = "SINK/{{ run.id }}/keyed-{{ step.visits }}" }

[workflows.small.steps.again]
needs = ["keyed"]
do = "branch"
when = [{ if = "step.visits < 2", go = "fan" }, { else = true, go = "child" }]

[workflows.small.steps.child]
do = "workflow"
workflow = "tiny"
input = { parent = "run.id" }

[workflows.small.steps.pause]
needs = ["child"]
do = "wait"
for = "1s"

[workflows.small.steps.last]
needs = ["pause"]
do = "http"
request = { method = "POST", url = "SINK/{{ run.id }}/last" }

[workflows.tiny]
pool = "small"
input = { parent = "string" }

[workflows.tiny.steps.only]
do = "http"
request = { method = "POST", url = "SINK/{{ input.parent }}/child" }
"#;

/// Kills and starts again, as often as asked for.
async fn kill(bed: &Bed, mut server: Process, options: &Options) -> Result<(Process, Vec<Killed>)> {
    let mut rng = Rng::new(options.seed);
    let mut kills = Vec::new();
    let shortest = options.life_ms.first().copied().unwrap_or_default();
    let longest = options.life_ms.last().copied().unwrap_or_default().max(shortest + 1);
    for n in 0..options.kills {
        sleep(Duration::from_millis(rng.within(shortest..longest))).await;
        let at_ms = now_ms();
        server.kill().await?;
        let address = server.address;
        server = bed.restart(address)?;
        let ready =
            server.ready("/health").await.with_context(|| format!("after kill {}", n + 1))?;
        kills.push(Killed { at_ms, ready });
        if (n + 1) % 25 == 0 {
            say(&format!("{} kills", n + 1));
        }
    }
    Ok((server, kills))
}

/// What all clients submitted, and what they complain about.
async fn gather(
    clients: &mut JoinSet<(Vec<Known>, Vec<String>)>,
) -> Result<(Vec<Known>, Vec<String>)> {
    let (mut runs, mut problems) = (Vec::new(), Vec::new());
    let begin = Instant::now();
    while let Some(left) = AFTERMATH.checked_sub(begin.elapsed()) {
        match timeout(left, clients.join_next()).await {
            Ok(Some(done)) => {
                let (more, complaints) = done.context("a client broke")?;
                runs.extend(more);
                problems.extend(complaints);
            }
            Ok(None) => return Ok((runs, problems)),
            Err(_) => break,
        }
    }
    problems.push(format!("{} clients still wait after {AFTERMATH:?}", clients.len()));
    clients.abort_all();
    Ok((runs, problems))
}

struct Outcome<'a> {
    options: &'a Options,
    kills: Vec<Killed>,
    audit: Audit,
    problems: Vec<String>,
    undecided: u64,
}

impl Outcome<'_> {
    fn report(self, report: &mut Report) {
        let Self { options, kills, audit, problems, undecided } = self;
        let mut ready = Hist::default();
        kills.iter().for_each(|kill| ready.add(kill.ready));
        let at: Vec<i64> = kills.iter().map(|kill| kill.at_ms).collect();
        let (resumed, slowest) = audit.resumed(&at);
        let mut section = Section::new(
            format!(
                "{} times kill -9 among {} campaigns and {} workflows",
                kills.len(),
                options.campaigns,
                options.workflows
            ),
            &["", "p50", "p99", "max"],
        );
        let rows = [
            ("new process to its first answer, ms", &ready),
            ("kill to an interrupted run resumed, ms", &resumed),
            ("kill to the last interrupted run resumed, ms", &slowest),
        ];
        for (what, hist) in rows {
            section.row([
                what.to_owned(),
                number(hist.ms(0.5)),
                number(hist.ms(0.99)),
                number(hist.max_ms()),
            ]);
        }
        let kinds: Vec<String> =
            audit.by_kind.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
        section.note(format!(
            "{} acknowledged runs ({}), {} of them interrupted; {} events and {} supersteps audited",
            audit.runs,
            kinds.join(", "),
            audit.interrupted,
            audit.events,
            audit.supersteps
        ));
        section.note(format!(
            "{} writes made once each; {} repeated under their key; {undecided} were undecided and decided by what the \
             other side knew",
            audit.writes, audit.repeated
        ));
        problems.iter().take(10).for_each(|what| section.note(what));
        report.section(section);
        report.none_of(
            "kill-workflows: problems with runs, logs, supersteps and writes",
            problems.len(),
        );
        report.bar(
            Kind::Hard,
            "kill-workflows: kills that interrupted no run",
            f64::from(options.kills) - slowest.count() as f64,
            f64::from(options.kills) / 4.0,
        );
        report.bar(Kind::Timing, "kill to the last workflow resumed, ms", slowest.max_ms(), 1000.0);
        report.figure(
            "kill_workflows",
            json!({
                "kills": kills.len(), "seed": options.seed, "runs": audit.runs, "interrupted": audit.interrupted,
                "events": audit.events, "supersteps": audit.supersteps, "writes": audit.writes,
                "repeated": audit.repeated, "undecided": undecided, "problems": problems,
                "ready_ms": {"p50": ready.ms(0.5), "max": ready.max_ms()},
                "resumed_ms": {"p50": resumed.ms(0.5), "p99": resumed.ms(0.99)},
                "last_resumed_ms": {"p50": slowest.ms(0.5), "p99": slowest.ms(0.99), "max": slowest.max_ms()},
                "by_kind": audit.by_kind.iter().map(|(kind, n)| ((*kind).to_owned(), *n)).collect::<HashMap<_, _>>(),
            }),
        );
    }
}
