//! kill -9, again and again, under a mixed load.
//!
//! Clients of four kinds (streams, chats, tasks on threads of their own, tasks on shared threads) keep asking with an
//! Idempotency-Key each, and repeat a request until it is answered. Meanwhile the server is killed at random moments
//! and started again at once. Afterwards every acknowledged run is audited: one end, a log without gaps, the right
//! reply; every thread has each message once; and no stream's reader was left with text that the server took back
//! silently.
//!
//! The provider is the rig's [`Tap`], because it sees what a thread looks like to a model: a message that is there
//! twice, or missing, shows in the next prompt.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use self::client::{Client, Job, Shared, Turn};
use crate::audit::Log;
use crate::bed::config::Config;
use crate::bed::{Bed, Tools};
use crate::expect::Expected;
use crate::http::{Conn, Request, exchange};
use crate::report::{Kind, Report, Section, number, say};
use crate::rng::Rng;
use crate::stats::Hist;
use crate::tap::Tap;

mod client;

/// Parameters of `kill`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Kills.
    #[arg(long, default_value_t = 50)]
    kills: u32,
    /// Clients, a quarter of each kind.
    #[arg(long, default_value_t = 200)]
    clients: u32,
    /// Tokens of a reply.
    #[arg(long, default_value_t = 40)]
    tokens: u32,
    /// Time between tokens.
    #[arg(long, default_value_t = 20)]
    interval_ms: u64,
    /// Seed of the moments of the kills.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// One kill and what followed.
#[derive(Debug)]
struct Killed {
    at_ms: i64,
    /// From the start of the new process until it answered.
    ready: Duration,
    /// From the kill until then.
    gone: Duration,
}

/// How long the last requests may take once the killing is over.
const AFTERMATH: Duration = Duration::from_secs(90);

pub(crate) async fn run(tools: &Tools, options: &Options, report: &mut Report) -> Result<()> {
    say(&format!(
        "{} kills under {} clients, seed {}",
        options.kills, options.clients, options.seed
    ));
    let bed = Bed::new(tools)?;
    let tap = Tap::start().await?;
    let mut server = bed.serve(&Config::roomy(tap.address)).await?;
    let shared = Arc::new(Shared {
        address: server.address,
        expected: Expected::counted(options.tokens),
        interval_ms: options.interval_ms,
        stop: AtomicBool::new(false),
        next: AtomicU64::new(1),
    });
    let mut clients = JoinSet::new();
    for n in 0..options.clients {
        clients.spawn(Client::new(Arc::clone(&shared), n, Job::of(n)).work());
    }

    let mut rng = Rng::new(options.seed);
    let mut kills = Vec::new();
    for n in 0..options.kills {
        sleep(Duration::from_millis(rng.within(200..2000))).await;
        let (begin, at_ms) = (Instant::now(), now_ms());
        server.kill().await?;
        server = bed.restart(server.address)?;
        let ready =
            server.ready("/health").await.with_context(|| format!("after kill {}", n + 1))?;
        kills.push(Killed { at_ms, ready, gone: begin.elapsed() });
        if (n + 1) % 10 == 0 {
            say(&format!("{} kills", n + 1));
        }
    }
    shared.stop.store(true, Ordering::Relaxed);
    let (turns, mut problems) = gather(&mut clients).await?;
    say(&format!("{} turns to audit", turns.len()));
    let audit = Audit::of(&shared, turns, &mut problems).await?;
    let odd_prompts = tap.odd_prompts();
    Outcome { options, kills, audit, problems, odd_prompts }.report(report);
    Ok(())
}

/// What all clients did, and what they complain about.
async fn gather(
    clients: &mut JoinSet<(Vec<Turn>, Vec<String>)>,
) -> Result<(Vec<Turn>, Vec<String>)> {
    let (mut turns, mut problems) = (Vec::new(), Vec::new());
    let all = async {
        while let Some(done) = clients.join_next().await {
            let (more, complaints) = done.context("a client broke")?;
            turns.extend(more);
            problems.extend(complaints);
        }
        anyhow::Ok(())
    };
    match timeout(AFTERMATH, all).await {
        Ok(done) => done?,
        Err(_) => {
            problems.push(format!(
                "{} clients still wait for an answer after {AFTERMATH:?}",
                clients.len()
            ));
            clients.abort_all();
        }
    }
    Ok((turns, problems))
}

/// What the server itself says about everything that it had acknowledged.
#[derive(Debug, Default)]
struct Audit {
    runs: usize,
    by_kind: HashMap<&'static str, usize>,
    events: usize,
    taken_up: usize,
    resets_in_logs: usize,
    resets_seen: u64,
    rejoined: u64,
    threads: usize,
    logs: Vec<Log>,
}

impl Audit {
    async fn of(shared: &Shared, turns: Vec<Turn>, problems: &mut Vec<String>) -> Result<Self> {
        let mut audit = Self::default();
        let mut conn = None;
        let mut threads: HashMap<String, u64> = HashMap::new();
        for turn in turns {
            let log = Log::fetch(&mut conn, shared.address, &turn.run).await;
            let log = log.with_context(|| format!("the log of {}", turn.run))?;
            problems.extend(
                log.problems(&shared.expected)
                    .into_iter()
                    .map(|what| format!("{} {}: {what}", turn.job.name(), turn.run)),
            );
            audit.runs += 1;
            audit.events += log.len();
            audit.taken_up += usize::from(log.count("run.started") > 1);
            audit.resets_in_logs += log.count("output.reset");
            audit.resets_seen += turn.resets;
            audit.rejoined += turn.rejoined;
            *audit.by_kind.entry(turn.job.name()).or_default() += 1;
            if let Some(conversation) = turn.conversation {
                *threads.entry(conversation).or_default() += 1;
            }
            audit.logs.push(log);
        }
        audit.threads = threads.len();
        let mut conn = Conn::open(shared.address).await?;
        for (conversation, turns) in threads {
            let path = format!("/state?user_id={conversation}&conversation_id={conversation}");
            let state = exchange(&mut conn, &Request::get(&path)).await?.ok()?;
            // What was said and what was replied.
            if state["message_count"] != json!(turns * 2) {
                problems.push(format!(
                    "thread {conversation} has {} messages after {turns} turns",
                    state["message_count"]
                ));
            }
        }
        Ok(audit)
    }

    /// For each kill, how long until the last of the runs under way went on, in milliseconds.
    fn resumed(&self, kills: &[Killed]) -> Hist {
        let mut hist = Hist::default();
        for (n, kill) in kills.iter().enumerate() {
            // What was still not taken up at the next kill counts there.
            let next = kills.get(n + 1).map_or(i64::MAX, |next| next.at_ms);
            let slowest = self
                .logs
                .iter()
                .filter_map(|log| log.resumed_after(kill.at_ms))
                .filter(|at| *at <= next)
                .map(|at| at - kill.at_ms)
                .max();
            if let Some(ms) = slowest {
                hist.add_us(ms.unsigned_abs() * 1000);
            }
        }
        hist
    }
}

struct Outcome<'a> {
    options: &'a Options,
    kills: Vec<Killed>,
    audit: Audit,
    problems: Vec<String>,
    odd_prompts: Vec<String>,
}

impl Outcome<'_> {
    fn report(self, report: &mut Report) {
        let Self { options, kills, audit, problems, odd_prompts } = self;
        let (mut ready, mut gone) = (Hist::default(), Hist::default());
        for kill in &kills {
            ready.add(kill.ready);
            gone.add(kill.gone);
        }
        let resumed = audit.resumed(&kills);
        let mut section = Section::new(
            format!("{} times kill -9 under {} clients", kills.len(), options.clients),
            &["", "p50", "max"],
        );
        let mut row = |what: &str, hist: &Hist| {
            section.row([what.to_owned(), number(hist.ms(0.5)), number(hist.max_ms())]);
        };
        row("new process to its first answer, ms", &ready);
        row("kill to the first answer, ms", &gone);
        row("kill to the last interrupted run resumed, ms", &resumed);
        let kinds: Vec<String> =
            audit.by_kind.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
        section.note(format!(
            "{} acknowledged runs ({}), {} of them taken up again after a kill; {} events audited",
            audit.runs,
            kinds.join(", "),
            audit.taken_up,
            audit.events
        ));
        section.note(format!(
            "output.reset: {} in logs, {} seen by readers of streams, which rejoined {} times",
            audit.resets_in_logs, audit.resets_seen, audit.rejoined
        ));
        section.note(format!("{} threads with exactly their messages", audit.threads));
        problems.iter().chain(&odd_prompts).take(10).for_each(|what| section.note(what));
        report.section(section);
        report
            .none_of("kill: problems with acknowledged runs, threads and readers", problems.len());
        report.none_of("kill: prompts with a message twice or missing", odd_prompts.len());
        report.bar(
            Kind::Hard,
            "kill: kills that interrupted no run",
            f64::from(options.kills) - resumed.count() as f64,
            f64::from(options.kills) / 4.0,
        );
        report.bar(Kind::Timing, "kill to runs resumed, slowest, ms", resumed.max_ms(), 1000.0);
        report.figure(
            "kill",
            json!({
                "kills": kills.len(), "runs": audit.runs, "taken_up": audit.taken_up, "events": audit.events,
                "resets_in_logs": audit.resets_in_logs, "resets_seen": audit.resets_seen, "problems": problems,
                "odd_prompts": odd_prompts,
                "resumed_ms": {"p50": resumed.ms(0.5), "max": resumed.max_ms()},
                "ready_ms": {"p50": ready.ms(0.5), "max": ready.max_ms()},
            }),
        );
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "compared with the times in the server's log, on the same machine"
)]
pub(crate) fn now_ms() -> i64 {
    let since =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Whether the server can be reached at all just now.
async fn connect(address: SocketAddr) -> Result<Conn> {
    let conn =
        timeout(Duration::from_secs(2), Conn::open(address)).await.context("connecting")??;
    ensure!(conn.is_reusable(), "a new connection");
    Ok(conn)
}
