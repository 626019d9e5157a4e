//! What a provider may do to its callers, played for as long as it takes: an outage of a minute, a limit that nobody
//! was told of, a crowd with one question, a thousand calls that run out of time.
//!
//! Everything is counted at the simulated provider, a process of its own, and at the server's own addresses.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::bed::config::KEY_VARIABLE;
use crate::bed::{Bed, Pace, Process, Tools};
use crate::http::{self, Answer, Conn, Request, exchange};
use crate::load::chat_body;
use crate::proc::{ThreadWatch, threads};
use crate::report::{Kind, Report, Section, number, say};

/// Parameters of `drills`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// How long the provider is out.
    #[arg(long, default_value_t = 60)]
    outage_s: u64,
    /// Chats that begin in a second, meanwhile.
    #[arg(long, default_value_t = 10)]
    per_second: u64,
    /// How long the hidden limit is felt for.
    #[arg(long, default_value_t = 60)]
    cap_s: u64,
    /// Callers with the same question.
    #[arg(long, default_value_t = 1000)]
    same: u32,
    /// Chats that run out of time.
    #[arg(long, default_value_t = 1000)]
    timeouts: u32,
    /// Chats that show how often a connection is used again.
    #[arg(long, default_value_t = 2000)]
    chats: u32,
}

/// What differs between the drills' servers.
struct Setup {
    primary: SocketAddr,
    fallback: Option<SocketAddr>,
    concurrent: u32,
    deadline: &'static str,
}

impl Setup {
    fn to_toml(&self) -> String {
        let Self { primary, fallback, concurrent, deadline } = self;
        let provider = |name: &str, address: &SocketAddr| {
            format!(
                "[providers.{name}]\nkind = \"openai\"\nbase_url = \"http://{address}/v1\"\n\
                 api_key = \"${{{KEY_VARIABLE}}}\"\n\
                 limits = {{ concurrent = {concurrent}, queue = 6000 }}\n\
                 pool = {{ connections = 6000, keep_alive = 6000 }}\n"
            )
        };
        let others = fallback.as_ref().map(|address| provider("spare", address));
        let (chain, spare) = match fallback {
            Some(_) => (
                ", fallback = [\"spare\"]",
                "spare = { provider = \"spare\", model = \"spare\" }\n",
            ),
            None => ("", ""),
        };
        format!(
            "[server]\nlog = \"json\"\n[server.limits]\nmax_connections = 8192\n{}{}\
             [models]\nbench = {{ provider = \"bench\", model = \"bench\"{chain} }}\n{spare}\
             embed = {{ provider = \"bench\", model = \"text-embedding-3-small\" }}\n\
             [pools]\nchat = {{ slots = 4000, queue = 8000 }}\n\
             [agents.cofounder]\nmodel = \"bench\"\nprompt = \"You are drilled.\"\npool = \"chat\"\n\
             deadline = \"{deadline}\"\n[doors.cofounder]\nagent = \"cofounder\"\n",
            provider("bench", primary),
            others.unwrap_or_default(),
        )
    }
}

pub(crate) async fn run(tools: &Tools, options: &Options, report: &mut Report) -> Result<()> {
    say("an outage with a fallback");
    outage(tools, options, true, report).await?;
    say("an outage without one");
    outage(tools, options, false, report).await?;
    say("a limit that nobody was told of");
    hidden_cap(tools, options, report).await?;
    say("one question, time that runs out, connections");
    crowd(tools, options, report).await
}

const WORDS: Pace = Pace { ttft_ms: 20, tokens: 4, interval_ms: 1 };
const BEFORE: u64 = 5;
const AFTER: u64 = 35;

/// One chat; when it began, and the answer.
async fn chat(server: SocketAddr, who: String) -> (Instant, Result<Answer>) {
    let begin = Instant::now();
    let request = Request::post("/chat", &chat_body(&who, "hello"));
    (begin, http::call(server, &request, Duration::from_secs(60)).await)
}

fn count(stats: &Value, what: &str) -> f64 {
    stats[what].as_f64().unwrap_or(f64::NAN)
}

/// `GET /providers`, of the one named `bench`.
async fn provider(server: &Process) -> Result<Value> {
    let all = server.get("/providers").await?;
    let found = all["providers"].as_array().into_iter().flatten().find(|it| it["name"] == "bench");
    found.cloned().context("the provider is not shown")
}

/// A steady stream of chats, in the middle of which the provider is out.
async fn outage(tools: &Tools, options: &Options, spare: bool, report: &mut Report) -> Result<()> {
    let bed = Bed::new(tools)?;
    let primary = bed.sim(WORDS).await?;
    let other = if spare { Some(bed.sim(WORDS).await?) } else { None };
    let setup = Setup {
        primary: primary.address,
        fallback: other.as_ref().map(|sim| sim.address),
        concurrent: 64,
        deadline: if spare { "30s" } else { "5s" },
    };
    let server = bed.serve_text(&setup.to_toml()).await?;
    let watch = ThreadWatch::start(server.pid)?;
    let resting = threads(server.pid);
    let begin = Instant::now();
    let (mut chats, mut number_of) = (JoinSet::new(), 0);
    let mut tick = tokio::time::interval(Duration::from_millis(1000 / options.per_second.max(1)));
    let (mut is_out, mut back_at) = (false, None);
    let mut before_outage = json!(null);
    let whole = BEFORE + options.outage_s + AFTER;
    while begin.elapsed() < Duration::from_secs(whole) {
        tick.tick().await;
        let at = begin.elapsed().as_secs();
        let should = (BEFORE..BEFORE + options.outage_s).contains(&at);
        if should != is_out {
            if should {
                before_outage = primary.get("/stats").await?;
            } else {
                back_at = Some(Instant::now());
            }
            primary.post("/control", &json!({"outage": should})).await?;
            is_out = should;
        }
        number_of += 1;
        chats.spawn(chat(server.address, format!("o{number_of}")));
    }
    let back_at = back_at.context("the outage did not end")?;
    let (mut failed, mut last_failure, mut slowest) = (0_u32, None::<Instant>, Duration::ZERO);
    while let Some(joined) = chats.join_next().await {
        let (began, answer) = joined.context("a chat")?;
        slowest = slowest.max(began.elapsed());
        if answer?.status != 200 {
            failed += 1;
            last_failure = last_failure.max(Some(began));
        }
    }
    let stats = primary.get("/stats").await?;
    let view = provider(&server).await?;
    let breaker = &view["models"][0]["breaker"];
    let transitions = breaker["history"].as_array().into_iter().flatten();
    let windows = transitions.clone().filter(|it| it["to"] == "half_open").count() as f64;
    let met = count(&stats, "outages");
    let (calls, seen) = (f64::from(number_of), count(&stats, "requests"));
    // The breaker closed again so long after the provider was back.
    let closed = transitions
        .filter(|it| it["to"] == "closed")
        .filter_map(|it| it["ago_ms"].as_f64())
        .fold(f64::NAN, f64::min);
    let back = (back_at.elapsed().as_secs_f64() - closed / 1e3).max(0.0);
    let name = if spare { "with a fallback" } else { "without a fallback" };
    let mut section = Section::new(
        format!(
            "An outage of {} s {name}, {} chats a second",
            options.outage_s, options.per_second
        ),
        &[
            "chats",
            "failed",
            "requests at the provider",
            "of those in the outage",
            "half-open windows",
            "back after s",
        ],
    );
    let cells = [calls, f64::from(failed), seen, met, windows, back].map(number);
    section.row(cells);
    section.note(format!(
        "{} requests had been made when it began",
        number(count(&before_outage, "requests"))
    ));
    report.section(section);
    report.bar(Kind::Hard, format!("outage {name}: attempts that met it"), met, 5.0 + windows);
    report.bar(
        Kind::Hard,
        format!("outage {name}: requests at the provider"),
        seen,
        calls * 1.2 + whole as f64,
    );
    report.bar(
        Kind::Hard,
        format!("outage {name}: s until the provider is in use again"),
        back,
        30.0,
    );
    report.bar(
        Kind::Hard,
        format!("outage {name}: OS threads more"),
        watch.finish() as f64 - resting as f64,
        0.0,
    );
    if spare {
        report.none_of("outage with a fallback: chats that failed", failed as usize);
    } else {
        let late =
            last_failure.map_or(0.0, |at| at.saturating_duration_since(back_at).as_secs_f64());
        report.bar(
            Kind::Hard,
            "outage without a fallback: s until the last failure after it",
            late,
            30.0,
        );
    }
    report.figure(
        format!("outage_{}", if spare { "fallback" } else { "alone" }),
        json!({"chats": calls, "failed": failed, "seen": seen, "met": met, "windows": windows, "back_s": back}),
    );
    Ok(())
}

/// The provider refuses the eighth call at once, and ten are allowed.
async fn hidden_cap(tools: &Tools, options: &Options, report: &mut Report) -> Result<()> {
    let bed = Bed::new(tools)?;
    let sim = bed.sim(Pace { ttft_ms: 200, tokens: 4, interval_ms: 5 }).await?;
    sim.post("/control", &json!({"concurrency": 7})).await?;
    let setup = Setup { primary: sim.address, fallback: None, concurrent: 10, deadline: "120s" };
    let server = bed.serve_text(&setup.to_toml()).await?;
    let end = Instant::now() + Duration::from_secs(options.cap_s);
    let warm = Duration::from_secs(options.cap_s / 3);
    let mut workers = JoinSet::new();
    for worker in 0..20 {
        let address = server.address;
        workers.spawn(async move {
            let (mut round, mut failed) = (0, 0_u32);
            while Instant::now() < end {
                round += 1;
                let (_, answer) = chat(address, format!("c{worker}-{round}")).await;
                failed += u32::from(answer?.status != 200);
            }
            anyhow::Ok((round, failed))
        });
    }
    tokio::time::sleep(warm).await;
    let attempts = |view: &Value| {
        let all = view["attempts"].as_object().into_iter().flatten();
        let sum: f64 = all.filter_map(|(_, count)| count.as_f64()).sum();
        (view["attempts"]["ok"].as_f64().unwrap_or(0.0), sum)
    };
    let warmed = attempts(&provider(&server).await?);
    let mut limits = Vec::new();
    while Instant::now() < end {
        let view = provider(&server).await?;
        limits.extend(view["models"][0]["limit"].as_u64());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (mut chats, mut failed) = (0_u32, 0);
    while let Some(joined) = workers.join_next().await {
        let (round, bad) = joined.context("a worker")??;
        chats += round;
        failed += bad;
    }
    let (good, all) = attempts(&provider(&server).await?);
    let rate = (good - warmed.0) / (all - warmed.1);
    let settled = limits.iter().filter(|limit| (6..=7).contains(*limit)).count();
    let share = settled as f64 / limits.len().max(1) as f64;
    let mut section = Section::new(
        format!("A hidden limit of 7 at once, 10 allowed, 20 callers for {} s", options.cap_s),
        &["chats", "failed", "attempts that succeeded, %", "limit at 6 or 7, % of the time"],
    );
    section.row([
        chats.to_string(),
        failed.to_string(),
        number(rate * 100.0),
        number(share * 100.0),
    ]);
    section.note(format!("after {} s to warm up", warm.as_secs()));
    report.section(section);
    report.none_of("hidden limit: chats that failed", failed as usize);
    report.bar(Kind::Hard, "hidden limit: attempts refused, %", (1.0 - rate) * 100.0, 1.0);
    report.bar(Kind::Timing, "hidden limit: time away from 6 or 7, %", (1.0 - share) * 100.0, 10.0);
    report.figure("hidden_cap", json!({"chats": chats, "success": rate, "settled": share}));
    Ok(())
}

/// What the server has open, by its own word.
async fn open_files(server: &Process) -> Result<f64> {
    let health = server.get("/health/ready").await?;
    health["open_files"].as_f64().context("open_files")
}

/// Whether a line of the log complains, or tells of a run that failed, and does not say why.
fn is_silent(line: &Value) -> bool {
    let message = line["message"].as_str().unwrap_or_default();
    let complains = matches!(line["level"].as_str(), Some("WARN" | "ERROR"));
    let failed = message.starts_with("run ended")
        && matches!(line["outcome"].as_str(), Some("error" | "timeout"));
    let explains = line["code"].is_string()
        || complains
            && (line["error"].is_string() || line["lag_ms"].is_u64() || message.contains(": "));
    (complains || failed) && !explains
}

async fn crowd(tools: &Tools, options: &Options, report: &mut Report) -> Result<()> {
    let bed = Bed::new(tools)?;
    let sim = bed.sim(Pace { ttft_ms: 100, tokens: 4, interval_ms: 1 }).await?;
    let setup = Setup { primary: sim.address, fallback: None, concurrent: 2000, deadline: "2s" };
    let server = bed.serve_text(&setup.to_toml()).await?;
    let watch = ThreadWatch::start(server.pid)?;
    let resting = threads(server.pid);

    // The same question from everybody.
    let body = json!({"model": "embed", "input": "the same question"});
    let mut callers = JoinSet::new();
    for _ in 0..options.same {
        let (address, request) = (server.address, Request::post("/v1/embeddings", &body));
        callers.spawn(async move {
            let mut conn = Conn::open(address).await?;
            exchange(&mut conn, &request).await?.ok()
        });
    }
    while let Some(joined) = callers.join_next().await {
        let answer = joined.context("a caller")??;
        ensure!(answer["data"].as_array().is_some_and(|data| data.len() == 1), "no vector");
    }
    let asked = count(&sim.get("/stats").await?, "requests");

    // Chats that are answered: how often a connection is used again.
    let mut chats = JoinSet::new();
    for lane in 0..50 {
        let (address, each) = (server.address, options.chats.div_ceil(50));
        chats.spawn(async move {
            for round in 0..each {
                chat(address, format!("r{lane}-{round}")).await.1?.ok()?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(joined) = chats.join_next().await {
        joined.context("a lane")??;
    }
    let view = provider(&server).await?;
    let (opened, reused) = (count(&view, "connections_opened"), count(&view, "connections_reused"));
    let share = reused / (opened + reused);

    // Chats that are not, and run out of time.
    let files = open_files(&server).await?;
    sim.post("/control", &json!({"fault": "no_answer"})).await?;
    let mut chats = JoinSet::new();
    for number in 0..options.timeouts {
        chats.spawn(chat(server.address, format!("t{number}")));
    }
    let (mut answered, mut slowest) = (0_usize, Duration::ZERO);
    while let Some(joined) = chats.join_next().await {
        let (began, answer) = joined.context("a chat")?;
        slowest = slowest.max(began.elapsed());
        answered += usize::from(answer?.status == 200);
    }
    // The idle ones go by themselves after a while; what was in use is gone at once.
    let patience = Instant::now() + Duration::from_secs(15);
    let (mut held, mut open, mut sockets) = (f64::NAN, f64::NAN, f64::NAN);
    while Instant::now() < patience && (held + open > 0.0 || sockets.is_nan() || sockets > 0.0) {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let (stats, view) = (sim.get("/stats").await?, provider(&server).await?);
        held = count(&view, "in_flight") + count(&view, "queued") + count(&stats, "in_flight");
        open = count(&view, "connections_opened") - count(&view, "connections_closed");
        sockets = open_files(&server).await? - files;
    }
    let told = server.log()?;
    let causes = told.iter().filter(|line| line["code"] == "deadline_exceeded");
    let causes =
        causes.filter(|line| line["error"].as_str().is_some_and(|why| why.contains("first_byte")));
    let causes = causes.count();
    let silent: Vec<&Value> = told.iter().filter(|line| is_silent(line)).collect();
    let health = server.get("/health/ready").await?;
    let pools = health["pools"].as_array().into_iter().flatten();
    let live: f64 = pools
        .map(|pool| count(pool, "running") + count(pool, "ready") + count(pool, "blocked"))
        .sum();
    let mut section = Section::new("Crowds", &["what", "measured"]);
    for (what, value) in [
        (format!("requests for {} with one question", options.same), asked),
        (format!("connections used again over {} chats, %", options.chats), share * 100.0),
        (format!("slowest of {} chats with 2 s, s", options.timeouts), slowest.as_secs_f64()),
        ("slots, places and requests held afterwards".to_owned(), held),
        ("connections to the provider afterwards".to_owned(), open),
        ("open files more than before".to_owned(), sockets),
    ] {
        section.row([what, number(value)]);
    }
    report.section(section);
    report.bar(Kind::Hard, "requests for one question", asked, 1.0);
    report.bar(Kind::Hard, "connections opened, % of uses", (1.0 - share) * 100.0, 5.0);
    report.none_of("chats that were answered by nobody", answered);
    report.bar(Kind::Timing, "slowest chat with 2 s, s", slowest.as_secs_f64(), 2.25);
    report.bar(Kind::Hard, "slots, places and requests held after timeouts", held, 0.0);
    report.bar(Kind::Hard, "connections left after timeouts", open, 0.0);
    report.bar(Kind::Hard, "open files more after timeouts", sockets, 0.0);
    report.bar(Kind::Hard, "runs left after timeouts", live, 0.0);
    ensure!(silent.len() < 50, "lines of the log that do not say why: {:?}", silent.first());
    report.none_of("lines of the log that do not say why", silent.len());
    let untold = (options.timeouts as usize).saturating_sub(causes);
    report.none_of("timeouts without their cause in the log", untold);
    let more = watch.finish() as f64 - resting as f64;
    report.bar(Kind::Hard, "crowds: OS threads more", more, 0.0);
    report.figure(
        "crowd",
        json!({"asked": asked, "reuse": share, "slowest_s": slowest.as_secs_f64(), "held": held, "open": open}),
    );
    Ok(())
}
