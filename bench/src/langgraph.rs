//! LangGraph's door under load: a crowd of streams, the first event of a run, cancels that reach the provider.
//!
//! A crowd is content when each of its streams told the same text three times: in pieces, in its last values, and in
//! the thread's state. The first event is timed on a thread that exists, from the request's last byte. Cancels are timed
//! by the rig's [`Tap`]; `wait=1` has to answer with a thread on which the next run begins at once.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::bed::config::Config;
use crate::bed::{Bed, Pace, Tools};
use crate::http::{Conn, Request, call, exchange};
use crate::rejoin::{Client, read, said};
use crate::report::{Kind, Report, Section, number, say};
use crate::stats::Hist;
use crate::tap::{Hold, Script, Tap};

/// Parameters of `langgraph`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Streams at once.
    #[arg(long, default_value_t = 1000)]
    streams: u32,
    /// Runs, one after the other, whose first event is timed.
    #[arg(long, default_value_t = 300)]
    firsts: u32,
    /// Cancels.
    #[arg(long, default_value_t = 40)]
    cancels: u32,
}

const LIMIT: Duration = Duration::from_secs(60);
const CROWD: Pace = Pace { ttft_ms: 200, tokens: 60, interval_ms: 25 };

pub(crate) async fn run(tools: &Tools, options: &Options, report: &mut Report) -> Result<()> {
    say("LangGraph's door: a crowd");
    crowd(tools, options, report).await.context("a crowd")?;
    say("LangGraph's door: first events");
    firsts(tools, options, report).await.context("first events")?;
    say("LangGraph's door: cancels");
    cancels(tools, options, report).await.context("cancels")
}

async fn thread(address: SocketAddr) -> Result<String> {
    let made = call(address, &Request::post("/threads", &json!({})), LIMIT).await?.ok()?;
    Ok(made["thread_id"].as_str().context("no thread")?.to_owned())
}

fn body(text: &str) -> Value {
    json!({
        "assistant_id": "cofounder", "stream_mode": ["values", "messages-tuple"],
        "input": {"messages": [{"role": "user", "content": text}]},
    })
}

fn stream(thread: &str, text: &str) -> Request {
    Request::post(&format!("/threads/{thread}/runs/stream"), &body(text))
}

// ## A crowd

async fn crowd(tools: &Tools, options: &Options, report: &mut Report) -> Result<()> {
    let bed = Bed::new(tools)?;
    let sim = bed.sim(CROWD).await?;
    let mut server = bed.serve(&Config::roomy(sim.address)).await?;
    let address = server.address;
    let begun = Instant::now();
    let mut readers = JoinSet::new();
    for _ in 0..options.streams {
        readers.spawn(async move { timeout(LIMIT, reader(address)).await });
    }
    let mut wrong = Vec::new();
    while let Some(done) = readers.join_next().await {
        match done? {
            Ok(Ok(())) => {}
            Ok(Err(error)) => wrong.push(format!("{error:#}")),
            Err(_) => wrong.push(format!("not over after {LIMIT:?}")),
        }
    }
    let took = begun.elapsed().as_secs_f64();
    let mut section = Section::new("A crowd of runs/stream", &["streams", "wrong", "s"]);
    section.row([options.streams.to_string(), wrong.len().to_string(), number(took)]);
    wrong.iter().take(5).for_each(|one| section.note(one));
    report.section(section);
    report.none_of("runs/stream: wrong ones of a crowd", wrong.len());
    report.figure(
        "langgraph_crowd",
        json!({"streams": options.streams, "wrong": wrong.len(), "s": took}),
    );
    server.kill().await
}

async fn reader(address: SocketAddr) -> Result<()> {
    let thread = thread(address).await?;
    let mut conn = Conn::open(address).await?;
    conn.send(&stream(&thread, "Tell me.")).await?;
    let head = conn.head().await?;
    ensure!(head.status == 200, "status {}", head.status);
    let mut client = Client::default();
    let whole = read(&mut conn, &mut Vec::new(), &mut client, usize::MAX).await?;
    ensure!(whole, "the stream broke off, or told an error");
    let last = client.frames.iter().rev().find(|frame| frame.name == "values");
    let last: Value = serde_json::from_str(&last.context("no values")?.data)?;
    let message = &last["messages"][1];
    let pieces = said(&client.frames)?;
    let id = message["id"].as_str().context("no answer in the values")?;
    let text = message["content"].as_str().context("an answer without text")?;
    ensure!(!text.is_empty() && pieces.get(id).is_some_and(|said| said == text), "pieces differ");
    let path = format!("/threads/{thread}/state");
    let state = call(address, &Request::get(&path), LIMIT).await?.ok()?;
    ensure!(state["values"]["messages"][1] == *message, "the state differs");
    Ok(())
}

// ## First events

async fn firsts(tools: &Tools, options: &Options, report: &mut Report) -> Result<()> {
    let bed = Bed::new(tools)?;
    let sim = bed.sim(Pace { ttft_ms: 1, tokens: 4, interval_ms: 1 }).await?;
    let mut server = bed.serve(&Config::roomy(sim.address)).await?;
    let mut conn = Conn::open(server.address).await?;
    let mut times = Hist::default();
    for n in 0..options.firsts {
        let thread = thread(server.address).await?;
        let begun = Instant::now();
        conn.send(&stream(&thread, "Tell me.")).await?;
        let head = conn.head().await?;
        ensure!(head.status == 200, "status {}", head.status);
        let mut bytes = Vec::new();
        ensure!(conn.more(&mut bytes).await?, "an empty stream");
        let took = begun.elapsed();
        ensure!(bytes.starts_with(b"event: metadata"), "the first event is no metadata");
        conn.rest().await?;
        // The first ones warm up.
        if n >= options.firsts / 10 {
            times.add(took);
        }
    }
    let [p50, p99] = [0.5, 0.99].map(|share| times.ms(share));
    let mut section = Section::new(
        "From the request for a run to its first event, ms",
        &["runs", "p50", "p99", "max"],
    );
    section.row([times.count().to_string(), number(p50), number(p99), number(times.max_ms())]);
    report.section(section);
    report.bar(Kind::Timing, "runs/stream: first event, p50, ms", p50, 5.0);
    report.figure("langgraph_first", json!({"p50_ms": p50, "p99_ms": p99}));
    server.kill().await
}

// ## Cancels

async fn cancels(tools: &Tools, options: &Options, report: &mut Report) -> Result<()> {
    let bed = Bed::new(tools)?;
    let tap = Tap::start().await?;
    let mut server = bed.serve(&Config::roomy(tap.address)).await?;
    let address = server.address;
    let mut control = Conn::open(address).await?;
    let (mut closed, mut settled, mut next) = (Hist::default(), Hist::default(), Hist::default());
    for id in 0..u64::from(options.cancels) {
        let thread = thread(address).await?;
        let script = |id, hold| Script { id, tokens: 8, interval_ms: 1, hold }.to_string();
        let mut conn = Conn::open(address).await?;
        conn.send(&stream(&thread, &script(2 * id + 1, Hold::Halfway))).await?;
        let head = conn.head().await?;
        let at = head.header("content-location").context("no content-location")?.to_owned();
        let mut bytes = Vec::new();
        while memchr::memmem::find(&bytes, b"tok0").is_none() {
            ensure!(conn.more(&mut bytes).await?, "the stream ended");
        }
        let begun = Instant::now();
        let cancel = Request::post(&format!("{at}/cancel?wait=1"), &json!({}));
        exchange(&mut control, &cancel).await?.ok()?;
        settled.add(begun.elapsed());
        let found =
            exchange(&mut control, &Request::get(&format!("/threads/{thread}"))).await?.ok()?;
        ensure!(
            found["status"] == "interrupted",
            "after a cancel the thread is {}",
            found["status"]
        );
        let gone = loop {
            if let Some(at) = tap.call(2 * id + 1).and_then(|call| call.closed) {
                break at;
            }
            ensure!(begun.elapsed() < LIMIT, "the provider's socket stays open");
            sleep(Duration::from_micros(200)).await;
        };
        closed.add(gone.saturating_duration_since(begun));
        // The rest of the cancelled run's stream, which just ends.
        while conn.more(&mut bytes).await? {}
        let again = Instant::now();
        conn.send(&stream(&thread, &script(2 * id + 2, Hold::Never))).await?;
        conn.head().await?;
        ensure!(conn.more(&mut Vec::new()).await?, "the next run says nothing");
        next.add(again.elapsed());
        let rest = conn.rest().await?;
        ensure!(memchr::memmem::find(&rest, b"event: error").is_none(), "the next run failed");
    }
    let mut section = Section::new(
        "A cancel with wait=1 of a run that streams, ms",
        &["until", "trials", "p50", "p99", "max"],
    );
    for (what, times) in [
        ("the provider's socket is closed", &closed),
        ("it is answered", &settled),
        ("the first event of the thread's next run", &next),
    ] {
        let [p50, p99] = [0.5, 0.99].map(|share| number(times.ms(share)));
        section.row([what.to_owned(), times.count().to_string(), p50, p99, number(times.max_ms())]);
    }
    report.section(section);
    let worst = closed.max_ms();
    report.bar(Kind::Hard, "cancel?wait=1: provider's socket closed, slowest, ms", worst, 50.0);
    report.bar(Kind::Timing, "after a cancel: next run's first event, p50, ms", next.ms(0.5), 20.0);
    report.figure(
        "langgraph_cancel",
        json!({"closed_max_ms": worst, "answered_p50_ms": settled.ms(0.5), "next_p50_ms": next.ms(0.5)}),
    );
    server.kill().await
}
