//! How soon a cancel, or a client that leaves, reaches the provider's socket.
//!
//! First one at a time against the rig's [`Tap`], whose clock is the rig's: queued, before the first token, after it;
//! by `POST /runs/{id}/cancel` and by hanging up with `?on_disconnect=cancel`. Then many at once against the simulator,
//! whose requests in flight must come back to zero.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::bed::config::Config;
use crate::bed::{Bed, Pace, Process, Tools};
use crate::http::{self, Conn, Request, exchange};
use crate::load::chat_body;
use crate::report::{Kind, Report, Section, number, say};
use crate::rng::Rng;
use crate::stats::Hist;
use crate::tap::{Hold, Script, Tap};

/// Parameters of `cancel`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Cancels of each kind.
    #[arg(long, default_value_t = 40)]
    trials: u32,
    /// Streams of the part with many at once.
    #[arg(long, default_value_t = 200)]
    streams: u32,
    /// Seed of the moments at which those are cancelled.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Where the run is when it is cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Queued,
    BeforeFirst,
    AfterFirst,
}

impl Phase {
    const ALL: [Self; 3] = [Self::Queued, Self::BeforeFirst, Self::AfterFirst];

    fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::BeforeFirst => "before the first token",
            Self::AfterFirst => "after the first token",
        }
    }
}

/// Who cancels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Call,
    HangUp,
}

impl Way {
    const ALL: [Self; 2] = [Self::Call, Self::HangUp];

    fn name(self) -> &'static str {
        match self {
            Self::Call => "POST /runs/{id}/cancel",
            Self::HangUp => "client gone (on_disconnect=cancel)",
        }
    }
}

/// So many runs at once in the first part: few, so that a queue is easily made.
const SLOTS: u32 = 8;
const LIMIT: Duration = Duration::from_secs(10);

pub(crate) async fn run(tools: &Tools, options: &Options, report: &mut Report) -> Result<()> {
    say("cancelling");
    one_by_one(tools, options, report).await?;
    many(tools, options, report).await
}

async fn one_by_one(tools: &Tools, options: &Options, report: &mut Report) -> Result<()> {
    let bed = Bed::new(tools)?;
    let tap = Tap::start().await?;
    let config = Config { slots: SLOTS, ..Config::roomy(tap.address) };
    let server = bed.serve(&config).await?;
    let mut rig = Rig { tap, control: Conn::open(server.address).await?, server, next: 0 };
    let mut section = Section::new(
        "From cancel to the provider's socket closed (queued: to the run's end), ms",
        &["the run is", "cancelled by", "trials", "p50", "p99", "max"],
    );
    for phase in Phase::ALL {
        let occupants = if phase == Phase::Queued { rig.occupy(SLOTS).await? } else { Vec::new() };
        for way in Way::ALL {
            let mut times = Hist::default();
            for n in 0..options.trials {
                let what = || format!("{} by {}, trial {n}", phase.name(), way.name());
                times.add(rig.trial(phase, way).await.with_context(what)?);
            }
            let [p50, p99] = [0.5, 0.99].map(|share| times.ms(share));
            let cells =
                [options.trials.to_string(), number(p50), number(p99), number(times.max_ms())];
            section.row([phase.name(), way.name()].map(ToOwned::to_owned).into_iter().chain(cells));
            let name = format!("cancel {} by {}, slowest, ms", phase.name(), way.name());
            report.bar(Kind::Hard, name, times.max_ms(), 50.0);
            report.figure(
                format!("cancel_{phase:?}_{way:?}").to_lowercase(),
                json!({"p50_ms": p50, "p99_ms": p99, "max_ms": times.max_ms(), "trials": options.trials}),
            );
        }
        for (conn, id) in occupants {
            drop(conn);
            rig.closed(id).await.context("an occupant that left")?;
        }
    }
    report.section(section);
    Ok(())
}

struct Rig {
    tap: Tap,
    server: Process,
    control: Conn,
    next: u64,
}

/// A stream that was started.
struct Started {
    conn: Conn,
    id: u64,
    run: String,
}

impl Rig {
    async fn start(&mut self, hold: Hold) -> Result<Started> {
        self.next += 1;
        let id = self.next;
        let script = Script { id, tokens: 8, interval_ms: 1, hold };
        let body = chat_body(&format!("u{id}"), &script.to_string());
        let mut conn = Conn::open(self.server.address).await?;
        conn.send(&Request::post("/chat/stream?on_disconnect=cancel", &body)).await?;
        let head = timeout(LIMIT, conn.head()).await.context("no head")??;
        ensure!(head.status == 200, "status {}", head.status);
        let run = head.header("x-run-id").context("no x-run-id")?.to_owned();
        Ok(Started { conn, id, run })
    }

    /// Takes all slots.
    async fn occupy(&mut self, slots: u32) -> Result<Vec<(Conn, u64)>> {
        let mut occupants = Vec::new();
        for _ in 0..slots {
            let started = self.start(Hold::Before).await?;
            until("an occupant to reach the provider", || self.tap.call(started.id)).await?;
            occupants.push((started.conn, started.id));
        }
        Ok(occupants)
    }

    async fn trial(&mut self, phase: Phase, way: Way) -> Result<Duration> {
        let hold = if phase == Phase::AfterFirst { Hold::Halfway } else { Hold::Before };
        let mut started = self.start(hold).await?;
        match phase {
            Phase::Queued => {
                let status = self.status(&started.run).await?;
                ensure!(status == "ready", "it should be queued and is {status}");
            }
            Phase::BeforeFirst => {
                until("the call", || self.tap.call(started.id)).await?;
            }
            Phase::AfterFirst => first_token(&mut started.conn).await?,
        }
        let begin = Instant::now();
        let (id, run) = (started.id, started.run.clone());
        match way {
            Way::Call => self.cancel(&run).await?,
            Way::HangUp => drop(started.conn),
        }
        if phase == Phase::Queued {
            self.ended_as_cancelled(&run).await?;
            let took = begin.elapsed();
            ensure!(
                self.tap.call(id).is_none(),
                "the provider was called for a run that was cancelled while queued"
            );
            return Ok(took);
        }
        let closed = self.closed(id).await?;
        self.ended_as_cancelled(&run).await?;
        Ok(closed.saturating_duration_since(begin))
    }

    /// When the provider saw the socket close.
    async fn closed(&self, id: u64) -> Result<Instant> {
        until("the provider's socket to close", || self.tap.call(id).and_then(|call| call.closed))
            .await
    }

    async fn cancel(&mut self, run: &str) -> Result<()> {
        let answer =
            exchange(&mut self.control, &Request::post(&format!("/runs/{run}/cancel"), &json!({})))
                .await?;
        answer.ok().map(drop)
    }

    async fn status(&mut self, run: &str) -> Result<String> {
        let answer =
            exchange(&mut self.control, &Request::get(&format!("/runs/{run}"))).await?.ok()?;
        Ok(answer["status"].as_str().unwrap_or_default().to_owned())
    }

    async fn ended_as_cancelled(&mut self, run: &str) -> Result<()> {
        let begin = Instant::now();
        loop {
            let status = self.status(run).await?;
            match status.as_str() {
                "cancelled" => return Ok(()),
                "success" | "error" | "timeout" => bail!("it ended as {status}"),
                _ => ensure!(begin.elapsed() < LIMIT, "it is still {status}"),
            }
            sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Asks again and again, because what is awaited happens in another process.
async fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> Result<T> {
    let begin = Instant::now();
    loop {
        if let Some(found) = ask() {
            return Ok(found);
        }
        ensure!(begin.elapsed() < LIMIT, "waited {LIMIT:?} for {what}");
        sleep(Duration::from_micros(500)).await;
    }
}

async fn first_token(conn: &mut Conn) -> Result<()> {
    let mut bytes = Vec::new();
    let read = async {
        while memchr::memmem::find(&bytes, b"tok0").is_none() {
            ensure!(
                conn.more(&mut bytes).await?,
                "the stream ended: {}",
                String::from_utf8_lossy(&bytes)
            );
        }
        Ok(())
    };
    timeout(LIMIT, read).await.context("no first token")?
}

async fn many(tools: &Tools, options: &Options, report: &mut Report) -> Result<()> {
    let bed = Bed::new(tools)?;
    let sim = bed.sim(Pace { ttft_ms: 300, tokens: 500, interval_ms: 10 }).await?;
    // A quarter has to queue.
    let slots = (options.streams * 3 / 4).max(1);
    let server = bed.serve(&Config { slots, ..Config::roomy(sim.address) }).await?;
    let mut rng = Rng::new(options.seed);
    let mut tasks = JoinSet::new();
    for n in 0..options.streams {
        let (address, wait) = (server.address, Duration::from_millis(rng.within(50..1500)));
        let way = Way::ALL[n as usize % 2];
        tasks.spawn(async move { leave(address, n, wait, way).await });
    }
    let mut errors = Vec::new();
    while let Some(done) = tasks.join_next().await {
        if let Err(error) = done? {
            errors.push(format!("{error:#}"));
        }
    }
    let begin = Instant::now();
    let mut in_flight = u64::MAX;
    while in_flight > 0 && begin.elapsed() < Duration::from_secs(3) {
        in_flight = sim.get("/stats").await?["in_flight"].as_u64().context("in_flight")?;
    }
    let took = begin.elapsed();
    let stats = sim.get("/stats").await?;
    let left = runs_left(&server).await?;

    let mut section = Section::new(
        "Many cancels at random moments",
        &[
            "streams",
            "slots",
            "failed",
            "reached the provider",
            "aborted there",
            "completed there",
            "in flight after",
            "zero after ms",
        ],
    );
    let count = |name: &str| stats[name].to_string();
    section.row([
        options.streams.to_string(),
        slots.to_string(),
        errors.len().to_string(),
        count("requests"),
        count("aborted_by_client"),
        count("completed"),
        in_flight.to_string(),
        number(took.as_secs_f64() * 1000.0),
    ]);
    errors.iter().take(3).for_each(|error| section.note(error));
    report.section(section);
    report.none_of("many cancels: failed", errors.len());
    report.none_of(
        "many cancels: requests in flight at the simulator afterwards",
        in_flight as usize,
    );
    report.none_of("many cancels: runs left over", left);
    let calls = stats["requests"].as_f64().context("requests")?;
    let beyond = (calls - f64::from(options.streams)).max(0.0);
    report.bar(Kind::Timing, "many cancels: provider calls beyond one per run", beyond, 0.0);
    report.bar(
        Kind::Timing,
        "many cancels: in flight back to zero, ms",
        took.as_secs_f64() * 1000.0,
        50.0,
    );
    report.figure(
        "cancel_many",
        json!({"streams": options.streams, "in_flight_after": in_flight, "errors": errors.len()}),
    );
    Ok(())
}

/// Runs that have not ended. A client that hung up does not wait for its run's end, so that is given a moment.
async fn runs_left(server: &Process) -> Result<usize> {
    let begin = Instant::now();
    loop {
        let left = server.get("/runs?status=running&status=ready&status=blocked").await?;
        let left = left["runs"].as_array().context("runs")?.len();
        if left == 0 || begin.elapsed() > Duration::from_secs(2) {
            return Ok(left);
        }
    }
}

/// Starts a stream, reads it for a while, and cancels it in one way or the other.
async fn leave(address: SocketAddr, n: u32, wait: Duration, way: Way) -> Result<()> {
    let body = chat_body(&format!("leaver{n}"), "Talk for long.");
    let mut conn = Conn::open(address).await?;
    conn.send(&Request::post("/chat/stream?on_disconnect=cancel", &body)).await?;
    let head = timeout(LIMIT, conn.head()).await.context("no head")??;
    ensure!(head.status == 200, "status {}", head.status);
    let run = head.header("x-run-id").context("no x-run-id")?.to_owned();
    let read = async {
        let mut bytes = Vec::new();
        while conn.more(&mut bytes).await? {}
        anyhow::Ok(())
    };
    // Being read is the normal state of a stream; that the time is over is what is waited for.
    if let Ok(early) = timeout(wait, read).await {
        early?;
        bail!("the stream ended before it was cancelled");
    }
    if way == Way::Call {
        let request = Request::post(&format!("/runs/{run}/cancel?wait=1"), &json!({}));
        let answer = http::call(address, &request, LIMIT).await?.ok()?;
        ensure!(answer["status"] == "cancelled", "after a cancel that waited: {answer}");
    }
    Ok(())
}
