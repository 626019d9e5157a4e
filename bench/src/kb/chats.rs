//! Whether reading and indexing a folder anew is noticed by those who chat with the knowledge agent meanwhile, and by
//! everybody else.
//!
//! Askers keep asking the agent, which searches and cites, over a simulated model. Health is asked all the time: first
//! beside the chats alone, then beside the chats while every document is read and indexed again, again and again.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::scale::word;
use crate::bed::config::Config;
use crate::bed::{Bed, Pace, Process, Tools};
use crate::health::{Probe, Probed};
use crate::http::{Conn, Request, exchange};
use crate::proc::{ThreadWatch, threads};
use crate::report::{Kind, Report, Section, number, say};
use crate::rng::Rng;
use crate::stats::Hist;

/// Parameters of `kb-chats`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Chats at once.
    #[arg(long, default_value_t = 200)]
    chats: u32,
    /// Documents, each of about ten chunks.
    #[arg(long, default_value_t = 1000)]
    documents: usize,
    /// How long each phase is watched, in seconds.
    #[arg(long, default_value_t = 15)]
    seconds: u64,
}

/// The bar: a small request's p99 while everything is indexed anew.
const MOST_MS: f64 = 20.0;
const SECTIONS: usize = 10;
const INDEXED: Duration = Duration::from_secs(300);

pub(crate) async fn run(tools: &Tools, options: &Options, report: &mut Report) -> Result<()> {
    say(&format!("{} chats beside indexing {} documents", options.chats, options.documents));
    let bed = Bed::new(tools)?;
    let questions = write_documents(&bed, options.documents)?;
    let sim = bed.sim(Pace { ttft_ms: 300, tokens: 40, interval_ms: 20 }).await?;
    let server = bed.serve_text(&config(&bed, &sim)).await?;
    indexed(&server).await?;
    let before = threads(server.pid);
    let watch = ThreadWatch::start(server.pid)?;
    let time = Duration::from_secs(options.seconds);
    let alone = phase(&server, options, &questions, time, false).await?;
    let beside = phase(&server, options, &questions, time, true).await?;
    let most = watch.finish();
    let columns = [
        "phase",
        "chats",
        "failed",
        "chat p50 ms",
        "chat p99 ms",
        "health p50 ms",
        "health p99 ms",
        "health max ms",
        "indexed anew",
    ];
    let mut section = Section::new("Knowledge chats beside indexing", &columns);
    for (name, phase) in [("alone", &alone), ("beside indexing", &beside)] {
        section.row([
            name.to_owned(),
            phase.chats.count().to_string(),
            phase.errors.len().to_string(),
            number(phase.chats.ms(0.5)),
            number(phase.chats.ms(0.99)),
            number(phase.health.times.ms(0.5)),
            number(phase.health.times.ms(0.99)),
            number(phase.health.times.max_ms()),
            phase.rounds.to_string(),
        ]);
    }
    section.note(format!("{before} OS threads before, {most} at most"));
    for error in alone.errors.iter().chain(&beside.errors).take(3) {
        section.note(error.clone());
    }
    report.section(section);
    report.none_of("knowledge chats that failed", alone.errors.len() + beside.errors.len());
    report.none_of(
        "health probes that failed beside indexing",
        alone.health.failures + beside.health.failures,
    );
    report.none_of("OS threads that came while indexing", most.saturating_sub(before) as usize);
    let p99 = beside.health.times.ms(0.99);
    report.figure("kb.chats.health_p99_ms", p99);
    report.bar(Kind::Timing, "health p99 beside knowledge chats and indexing, ms", p99, MOST_MS);
    ensure!(beside.rounds > 0, "nothing was indexed anew while it was watched");
    Ok(())
}

fn config(bed: &Bed, sim: &Process) -> String {
    let mut text = Config::roomy(sim.address).to_toml();
    let folder = bed.folder().join("docs");
    let _ = write!(
        text,
        r#"
[knowledge.bench]
folder = "{}"
watch = false

[agents.knowledge]
model = "bench"
prompt = "You answer from the notes."
tools = ["search:bench"]
cite = "optional"
pool = "chat"
deadline = "120s"

[doors.knowledge]
agent = "knowledge"
"#,
        folder.display()
    );
    text
}

/// Writes the folder; answers questions that its documents have something about.
fn write_documents(bed: &Bed, count: usize) -> Result<Vec<String>> {
    let mut rng = Rng::new(11);
    let folder = bed.folder().join("docs");
    std::fs::create_dir_all(&folder)?;
    let mut questions = Vec::new();
    for at in 0..count {
        let theme = rng.within(0..200);
        let mut text = format!("# {}\n", words(&mut rng, theme, 4));
        for _ in 0..SECTIONS {
            let heading = words(&mut rng, theme, 3);
            let body = words(&mut rng, theme, 200);
            let _ = write!(text, "\n## {heading}\n\n{body}.\n");
        }
        if questions.len() < 400 {
            questions.push(format!("What is known about {}?", words(&mut rng, theme, 6)));
        }
        std::fs::write(folder.join(format!("note-{at}.md")), text).context("writing a note")?;
    }
    Ok(questions)
}

fn words(rng: &mut Rng, theme: u64, count: usize) -> String {
    (0..count).map(|_| word(rng, theme)).collect::<Vec<_>>().join(" ")
}

/// Waits until everything is indexed.
async fn indexed(server: &Process) -> Result<()> {
    let begun = Instant::now();
    loop {
        let status = server.get("/knowledge/bench").await?;
        if status["settled"] == true {
            return Ok(());
        }
        ensure!(begun.elapsed() < INDEXED, "not indexed after {INDEXED:?}: {status}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What was seen in one phase.
struct Phase {
    chats: Hist,
    errors: Vec<String>,
    health: Probed,
    rounds: u32,
}

async fn phase(
    server: &Process,
    options: &Options,
    questions: &[String],
    time: Duration,
    index: bool,
) -> Result<Phase> {
    let end = Instant::now() + time;
    let probe = Probe::start(server.address, "/health")?;
    let mut askers = JoinSet::new();
    for at in 0..options.chats as usize {
        let (address, questions) = (server.address, questions.to_vec());
        askers.spawn(async move { ask(address, &questions, at, end).await });
    }
    let mut rounds = 0;
    while index && Instant::now() < end {
        server.post("/knowledge/bench/refresh?all=1", &Value::Null).await?;
        indexed(server).await?;
        rounds += 1;
    }
    let (mut chats, mut errors) = (Hist::default(), Vec::new());
    while let Some(asked) = askers.join_next().await {
        let (hist, failed) = asked.context("an asker panicked")?;
        chats.merge(&hist);
        errors.extend(failed);
    }
    Ok(Phase { chats, errors, health: probe.finish()?, rounds })
}

async fn ask(
    address: std::net::SocketAddr,
    questions: &[String],
    from: usize,
    end: Instant,
) -> (Hist, Vec<String>) {
    let (mut chats, mut errors) = (Hist::default(), Vec::new());
    let mut conn = None;
    for question in questions.iter().cycle().skip(from) {
        if Instant::now() >= end {
            break;
        }
        let begun = Instant::now();
        match once(&mut conn, address, question).await {
            Ok(()) => chats.add(begun.elapsed()),
            Err(error) => {
                conn = None;
                errors.push(format!("{error:#}"));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    (chats, errors)
}

async fn once(
    conn: &mut Option<Conn>,
    address: std::net::SocketAddr,
    question: &str,
) -> Result<()> {
    let mut open = match conn.take().filter(Conn::is_reusable) {
        Some(open) => open,
        None => Conn::open(address).await?,
    };
    let request = Request::post("/knowledge-agent/chat", &json!({"message": question}));
    let answer = exchange(&mut open, &request).await?.ok()?;
    ensure!(answer["response"].is_string(), "no answer: {answer}");
    *conn = Some(open);
    Ok(())
}
