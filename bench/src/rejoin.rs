//! Clients of LangGraph's door that lose their connection at random moments and come back.
//!
//! Each follows one resumable run in every mode, hangs up after a random number of frames and goes on behind the last
//! whole frame it has. In the end what it collected must be what the run's stream is from its beginning: no gap, no
//! duplicate. In the second part the server is killed in between; then the text that stands must be the stored one.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::bed::config::Config;
use crate::bed::{Bed, Pace, Process, Tools};
use crate::http::{Conn, Request, call};
use crate::report::{Report, Section, say};
use crate::rng::Rng;

/// Parameters of `rejoin`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Hang-ups in each part, over all clients.
    #[arg(long, default_value_t = 1000)]
    disconnects: u64,
    /// Clients at once.
    #[arg(long, default_value_t = 25)]
    clients: u64,
    /// Seed of the moments.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

const LIMIT: Duration = Duration::from_secs(60);
const PACE: Pace = Pace { ttft_ms: 30, tokens: 120, interval_ms: 10 };
const MODES: [&str; 9] = [
    "values",
    "updates",
    "messages-tuple",
    "messages",
    "custom",
    "tasks",
    "checkpoints",
    "debug",
    "events",
];
/// A conversation of three nodes, of which two say something of their own.
const AGENT: &str = "told";

pub(crate) async fn run(tools: &Tools, options: &Options, report: &mut Report) -> Result<()> {
    let mut section = Section::new(
        "Hang-ups and returns on live runs, LangGraph's door",
        &["server", "runs", "hang-ups", "frames", "gaps, duplicates, differences"],
    );
    for restarts in [false, true] {
        let what = if restarts { "killed in between" } else { "stays" };
        say(&format!("rejoining, the server {what}"));
        let part = part(tools, options, restarts).await.with_context(|| what.to_owned())?;
        section.row([
            what.to_owned(),
            part.runs.to_string(),
            part.hang_ups.to_string(),
            part.frames.to_string(),
            part.wrong.len().to_string(),
        ]);
        for wrong in part.wrong.iter().take(5) {
            section.note(wrong.clone());
        }
        report.none_of(format!("wrong streams, the server {what}"), part.wrong.len());
        report.figure(
            format!("rejoin_{}", u8::from(restarts)),
            json!({
                "runs": part.runs, "hang_ups": part.hang_ups, "frames": part.frames,
                "wrong": part.wrong.len(),
            }),
        );
    }
    report.section(section);
    Ok(())
}

#[derive(Debug, Default)]
struct Part {
    runs: u64,
    hang_ups: u64,
    frames: u64,
    wrong: Vec<String>,
}

async fn part(tools: &Tools, options: &Options, restarts: bool) -> Result<Part> {
    let bed = Bed::new(tools)?;
    let sim = bed.sim(PACE).await?;
    let mut server = bed.serve(&Config::roomy(sim.address)).await?;
    let address = server.address;
    let mut part = Part::default();
    let mut seed = options.seed;
    while part.hang_ups < options.disconnects {
        let mut clients = JoinSet::new();
        for _ in 0..options.clients {
            seed += 1;
            let seed = seed;
            clients.spawn(async move { timeout(LIMIT, client(address, seed, restarts)).await });
        }
        if restarts {
            sleep(PACE.duration() / 2).await;
            server = restart(&bed, server).await?;
        }
        while let Some(done) = clients.join_next().await {
            part.runs += 1;
            match done? {
                Ok(Ok(client)) => {
                    part.hang_ups += client.hang_ups;
                    part.frames += client.frames.len() as u64;
                }
                Ok(Err(error)) => part.wrong.push(format!("{error:#}")),
                Err(_) => part.wrong.push(format!("not over after {LIMIT:?}")),
            }
        }
        ensure!(part.wrong.len() < 50, "too much is wrong: {:?}", part.wrong.first());
    }
    server.kill().await?;
    Ok(part)
}

async fn restart(bed: &Bed, mut server: Process) -> Result<Process> {
    server.kill().await?;
    let mut again = bed.restart(server.address)?;
    again.ready("/health/ready").await?;
    Ok(again)
}

#[derive(Debug, Default)]
pub(crate) struct Client {
    pub(crate) frames: Vec<Frame>,
    hang_ups: u64,
}

impl Client {
    fn custom(&self) -> impl Iterator<Item = &Frame> {
        self.frames.iter().filter(|frame| frame.name == "custom")
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) name: String,
    pub(crate) data: String,
    id: String,
}

async fn client(address: SocketAddr, seed: u64, restarts: bool) -> Result<Client> {
    let mut rng = Rng::new(seed);
    let made = call(address, &Request::post("/threads", &json!({})), LIMIT).await?.ok()?;
    let thread = made["thread_id"].as_str().context("no thread")?.to_owned();
    let body = json!({
        "assistant_id": AGENT, "stream_mode": MODES, "stream_resumable": true,
        "input": {"messages": [{"role": "user", "content": "Tell me."}]},
    });
    let mut conn = Conn::open(address).await?;
    conn.send(&Request::post(&format!("/threads/{thread}/runs/stream"), &body)).await?;
    let head = conn.head().await?;
    ensure!(head.status == 200, "status {}", head.status);
    let at = head.header("location").context("no location")?.to_owned();
    let mut client = Client::default();
    let mut buffer = Vec::new();
    loop {
        let most = rng.within(0..40) as usize;
        if read(&mut conn, &mut buffer, &mut client, most).await? {
            break;
        }
        client.hang_ups += 1;
        buffer.clear();
        conn = rejoin(address, &at, client.frames.last()).await?;
    }
    check(address, &thread, &at, &client, restarts).await?;
    Ok(client)
}

/// Reads up to so many frames. `true` when the stream is over.
pub(crate) async fn read(
    conn: &mut Conn,
    buffer: &mut Vec<u8>,
    client: &mut Client,
    most: usize,
) -> Result<bool> {
    let mut left = most;
    loop {
        while let Some(end) = memchr::memmem::find(buffer, b"\r\n\r\n") {
            let text: String = String::from_utf8(buffer.drain(..end + 4).collect())?;
            if let Some(frame) = parse(&text) {
                if frame.name == "error" {
                    // The server says goodbye; the run goes on.
                    return Ok(false);
                }
                client.frames.push(frame);
                if left == 0 {
                    return Ok(false);
                }
                left -= 1;
            }
        }
        match conn.more(buffer).await {
            Ok(true) => {}
            Ok(false) => return Ok(true),
            // Cut off by the kill.
            Err(_) => return Ok(false),
        }
    }
}

fn parse(text: &str) -> Option<Frame> {
    let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let part = |name: &str| line(name).unwrap_or_default().to_owned();
    line("data: ").map(|data| Frame {
        name: part("event: "),
        data: data.to_owned(),
        id: part("id: "),
    })
}

async fn rejoin(address: SocketAddr, at: &str, last: Option<&Frame>) -> Result<Conn> {
    let last = last.map_or("-1", |frame| frame.id.as_str());
    let begun = Instant::now();
    loop {
        let joined = async {
            let mut conn = Conn::open(address).await?;
            conn.send(&Request::get_with(at, &[("last-event-id", last)])).await?;
            let head = conn.head().await?;
            ensure!(head.status == 200, "status {}", head.status);
            anyhow::Ok(conn)
        };
        match joined.await {
            Ok(conn) => return Ok(conn),
            // The server is being restarted.
            Err(error) if begun.elapsed() > LIMIT => return Err(error),
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    }
}

async fn check(
    address: SocketAddr,
    thread: &str,
    at: &str,
    client: &Client,
    restarts: bool,
) -> Result<()> {
    let mut whole = Client::default();
    let mut conn = rejoin(address, at, None).await?;
    ensure!(
        read(&mut conn, &mut Vec::new(), &mut whole, usize::MAX).await?,
        "a finished run's stream does not end"
    );
    let path = format!("/threads/{thread}/state");
    let state = call(address, &Request::get(&path), LIMIT).await?.ok()?;
    let stored = &state["values"]["messages"][1];
    for (who, frames) in [("collected", &client.frames), ("whole", &whole.frames)] {
        let said = said(frames)?;
        let id = stored["id"].as_str().context("no answer is stored")?;
        ensure!(
            said.get(id).map(String::as_str) == stored["content"].as_str(),
            "{who}: the text that stands is not the stored one"
        );
    }
    // What a node says of its own stands as often as it was said, and in that order.
    let wanted = [r#"{"part":"begin"}"#, r#"{"part":"end"}"#];
    let told: Vec<&str> = whole.custom().map(|frame| frame.data.as_str()).collect();
    ensure!(told == wanted, "the nodes' own words are {told:?}");
    ensure!(
        whole.custom().all(|frame| client.custom().filter(|one| *one == frame).count() == 1),
        "a node's own words were missed or came twice"
    );
    if restarts {
        return Ok(());
    }
    for (n, (one, two)) in client.frames.iter().zip(&whole.frames).enumerate() {
        if one != two {
            bail!("frame {n} is {} {}, and was {} {}", two.name, two.id, one.name, one.id);
        }
    }
    let (one, two) = (client.frames.len(), whole.frames.len());
    ensure!(one == two, "{one} frames were collected, {two} are there");
    Ok(())
}

/// The text of each message, as LangGraph's SDKs put it together: pieces are appended, whole messages take the place.
pub(crate) fn said(frames: &[Frame]) -> Result<HashMap<String, String>> {
    let mut said: HashMap<String, String> = HashMap::new();
    for frame in frames.iter().filter(|frame| frame.name == "messages") {
        let pair: Value = serde_json::from_str(&frame.data)?;
        let message = &pair[0];
        let id = message["id"].as_str().context("a message without an id")?.to_owned();
        let text = message["content"].as_str().unwrap_or_default();
        let known = said.entry(id).or_default();
        if message["type"] != "AIMessageChunk" {
            known.clear();
        }
        known.push_str(text);
    }
    Ok(said)
}
