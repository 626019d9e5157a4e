//! SIGTERM under load: what can finish finishes, the rest goes on after the restart, and the process does not linger.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::audit::Log;
use crate::bed::config::Config;
use crate::bed::{Bed, Pace, Tools};
use crate::expect::Expected;
use crate::http::{Conn, Request};
use crate::load::chat_body;
use crate::report::{Kind, Report, Section, number, say};
use crate::sse::{Dialect, Events, Meaning};

/// Parameters of `drain`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Streams at once.
    #[arg(long, default_value_t = 200)]
    streams: u32,
    /// The server's drain time.
    #[arg(long, default_value_t = 2)]
    drain_s: u32,
}

/// How a stream ended for its reader.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    Final,
    /// An error event came before the end.
    Told(String),
    /// The connection was simply gone. How, and after which event.
    Cut(String),
}

pub(crate) async fn run(tools: &Tools, options: &Options, report: &mut Report) -> Result<()> {
    say("SIGTERM under load");
    // Streams of four seconds that begin over three: at the signal some are nearly done and some have just begun.
    let pace = Pace { ttft_ms: 100, tokens: 80, interval_ms: 50 };
    let bed = Bed::new(tools)?;
    let sim = bed.sim(pace).await?;
    let config = Config { drain_s: options.drain_s, ..Config::roomy(sim.address) };
    let mut server = bed.serve(&config).await?;
    let mut readers = JoinSet::new();
    for n in 0..options.streams {
        let (address, start) = (server.address, Duration::from_millis(3000) * n / options.streams);
        readers.spawn(async move {
            sleep(start).await;
            follow(address, n).await
        });
    }
    sleep(Duration::from_millis(3200)).await;
    let begin = Instant::now();
    server.signal(Signal::TERM)?;
    let status = server.wait(Duration::from_secs(u64::from(options.drain_s) + 20)).await?;
    let took = begin.elapsed();

    let (mut runs, mut errors) = (Vec::new(), Vec::new());
    while let Some(done) = readers.join_next().await {
        match done? {
            Ok(read) => runs.push(read),
            Err(error) => errors.push(format!("{error:#}")),
        }
    }
    let ended = |is: fn(&End) -> bool| runs.iter().filter(|(_, end)| is(end)).count();
    let finished = ended(|end| *end == End::Final);
    let told = ended(|end| matches!(end, End::Told(_)));
    let cut = ended(|end| matches!(end, End::Cut(_)));

    let begin = Instant::now();
    let mut server = bed.restart(server.address)?;
    server.ready("/health").await?;
    let ready = begin.elapsed();
    let problems = after_restart(server.address, &runs, pace).await;

    let mut section = Section::new(
        "SIGTERM under load",
        &[
            "streams",
            "drain s",
            "exit code",
            "exit after s",
            "finished",
            "told that it goes on later",
            "cut without a word",
            "wrong after the restart",
        ],
    );
    section.row([
        options.streams.to_string(),
        options.drain_s.to_string(),
        status.code().map_or_else(|| status.to_string(), |code| code.to_string()),
        number(took.as_secs_f64()),
        finished.to_string(),
        told.to_string(),
        cut.to_string(),
        problems.len().to_string(),
    ]);
    section
        .note(format!("ready again {} ms after the restart", number(ready.as_secs_f64() * 1000.0)));
    errors.iter().chain(&problems).take(5).for_each(|what| section.note(what));
    for (run, end) in &runs {
        if let End::Cut(how) = end {
            section.note(format!("{run} was cut: {how}"));
        }
    }
    if let Some((_, End::Told(what))) = runs.iter().find(|(_, end)| matches!(end, End::Told(_))) {
        section.note(format!("what the readers of unfinished runs are told: {what}"));
    }
    report.section(section);
    report.bar(Kind::Hard, "SIGTERM: exit code", status.code().map_or(f64::NAN, f64::from), 0.0);
    report.bar(
        Kind::Hard,
        "SIGTERM: exit after, s",
        took.as_secs_f64(),
        f64::from(options.drain_s) + 1.0,
    );
    report.none_of("SIGTERM: streams that failed otherwise", errors.len());
    report.none_of("SIGTERM: streams cut without a word", cut);
    report
        .none_of("SIGTERM: acknowledged runs that are not sound after the restart", problems.len());
    report.figure(
        "drain",
        json!({"exit_code": status.code(), "exit_s": took.as_secs_f64(), "finished": finished, "told": told, "cut": cut,
               "problems": problems.len()}),
    );
    ensure!(told + cut > 0, "every stream had finished: nothing was drained");
    Ok(())
}

/// Reads a stream to its end, whatever that is.
async fn follow(address: SocketAddr, n: u32) -> Result<(String, End)> {
    let mut conn = Conn::open(address).await?;
    conn.send(&Request::post("/chat/stream", &chat_body(&format!("drained{n}"), "Talk."))).await?;
    let head = conn.head().await?;
    ensure!(head.status == 200, "status {}", head.status);
    let run = head.header("x-run-id").context("no x-run-id")?.to_owned();
    let mut events = Events::default();
    let (mut end, mut last) = (None, String::new());
    loop {
        let how = match conn.more(&mut events.bytes).await {
            Ok(true) => None,
            Ok(false) => Some("the body ended in good order".to_owned()),
            Err(error) => Some(format!("{error:#}")),
        };
        while let Some(event) = events.next()? {
            event.data.clone_into(&mut last);
            match Dialect::Chat.meaning(event.data)? {
                Meaning::Final(_) => end = Some(End::Final),
                Meaning::Error(what) => end = Some(End::Told(what)),
                Meaning::Token(_) | Meaning::Done | Meaning::Other => {}
            }
        }
        if let Some(how) = how {
            return Ok((run, end.unwrap_or_else(|| End::Cut(format!("{how}, after {last}")))));
        }
    }
}

/// What is wrong with the runs once they have had time to go on.
async fn after_restart(address: SocketAddr, runs: &[(String, End)], pace: Pace) -> Vec<String> {
    let expected = Expected::counted(pace.tokens);
    let limit = pace.duration() + Duration::from_secs(20);
    let mut problems = Vec::new();
    let mut conn = None;
    for (run, _) in runs {
        let ended = timeout(limit, wait_for_end(address, run)).await;
        if let Ok(Err(error)) = ended {
            problems.push(format!("{run}: {error:#}"));
            continue;
        }
        match Log::fetch(&mut conn, address, run).await {
            Ok(log) => problems
                .extend(log.problems(&expected).into_iter().map(|what| format!("{run}: {what}"))),
            Err(error) => problems.push(format!("{run}: {error:#}")),
        }
    }
    problems
}

async fn wait_for_end(address: SocketAddr, run: &str) -> Result<()> {
    let request = Request::get(&format!("/runs/{run}"));
    loop {
        let view = crate::http::call(address, &request, Duration::from_secs(10)).await?.ok()?;
        match view["status"].as_str() {
            Some("success") => return Ok(()),
            Some("error" | "timeout" | "cancelled") => {
                bail!("it ended as {}: {}", view["status"], view["error"])
            }
            _ => sleep(Duration::from_millis(50)).await,
        }
    }
}
