//! The simulator as a client sees it: in memory and in paused time, where a stall of minutes takes no time at all.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::{Fault, Limits, Options, ScriptRule, Sim};

mod accounts;
mod dialects;
mod faults;
mod replies;
mod tcp;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// A simulator and the connections to it.
struct Rig {
    sim: Sim,
    connections: JoinSet<()>,
}

impl Rig {
    fn new(options: Options) -> Self {
        Self { sim: Sim::new(options), connections: JoinSet::new() }
    }

    fn connect(&mut self) -> Client {
        let (ours, theirs) = duplex(256 * 1024);
        self.connections.spawn(self.sim.serve_connection(theirs));
        Client { io: ours, received: Vec::new() }
    }

    /// One request on a connection of its own, with enough patience for anything that ends.
    async fn ask(&mut self, headers: &str, body: &Value) -> Answer {
        self.connect().ask(headers, body, 1000 * SECOND).await
    }

    async fn get(&mut self, path: &str) -> Answer {
        self.connect().talk(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes(), SECOND).await
    }
}

struct Client {
    io: DuplexStream,
    received: Vec<u8>,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// By its length or its last chunk; the connection is open.
    Whole,
    /// With the connection.
    Closed,
    /// Not at all.
    Silent,
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    /// Without the chunk lines.
    body: Vec<u8>,
    /// The sizes of the chunks.
    chunks: Vec<usize>,
    end: End,
    took: Duration,
    /// From the request to the first byte.
    head_after: Duration,
}

impl Client {
    async fn ask(&mut self, headers: &str, body: &Value, patience: Duration) -> Answer {
        self.talk(&chat_request(headers, body), patience).await
    }

    /// Sends a request and reads its answer, waiting at most `patience` in all.
    async fn talk(&mut self, request: &[u8], patience: Duration) -> Answer {
        let started = Instant::now();
        self.io.write_all(request).await.unwrap();
        let mut head_after = None;
        let end = loop {
            if let Some(length) = whole_length(&self.received) {
                let rest = self.received.split_off(length);
                let answer = Answer::new(
                    &self.received,
                    End::Whole,
                    started,
                    head_after.unwrap_or_default(),
                );
                self.received = rest;
                return answer;
            }
            let left = patience.saturating_sub(started.elapsed());
            match timeout(left, self.io.read_buf(&mut self.received)).await {
                Ok(Ok(0) | Err(_)) => break End::Closed,
                Ok(Ok(_)) => _ = head_after.get_or_insert(started.elapsed()),
                Err(_) => break End::Silent,
            }
        };
        Answer::new(
            &std::mem::take(&mut self.received),
            end,
            started,
            head_after.unwrap_or_default(),
        )
    }
}

fn chat_request(headers: &str, body: &Value) -> Vec<u8> {
    request("/v1/chat/completions", headers, body)
}

fn request(path: &str, headers: &str, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    format!(
        "POST {path} HTTP/1.1\r\nhost: sim\r\n{headers}content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn split_head(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    Some((std::str::from_utf8(&bytes[..end]).unwrap(), &bytes[end + 4..]))
}

/// The bytes of the first answer, once they are all there.
fn whole_length(bytes: &[u8]) -> Option<usize> {
    let (head, body) = split_head(bytes)?;
    let before = bytes.len() - body.len();
    if let Some(length) = header(head, "content-length") {
        let length: usize = length.parse().unwrap();
        return (body.len() >= length).then_some(before + length);
    }
    if header(head, "transfer-encoding") != Some("chunked") {
        return None;
    }
    let (chunks, ended) = dechunk(body);
    ended
        .map(|rest| before + body.len() - rest)
        .filter(|_| chunks.iter().all(|chunk| !chunk.is_empty()))
}

/// The chunks, and what follows the last one if it is there.
fn dechunk(mut body: &[u8]) -> (Vec<&[u8]>, Option<usize>) {
    let mut chunks = Vec::new();
    while let Ok(httparse::Status::Complete((line, size))) = httparse::parse_chunk_size(body) {
        let end = line + usize::try_from(size).unwrap();
        if body.len() < end + 2 {
            break;
        }
        if size == 0 {
            return (chunks, Some(body.len() - end - 2));
        }
        chunks.push(&body[line..end]);
        body = &body[end + 2..];
    }
    (chunks, None)
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .skip(1)
        .filter_map(|line| line.split_once(": "))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value)
}

impl Answer {
    fn new(bytes: &[u8], end: End, started: Instant, head_after: Duration) -> Self {
        let (head, body) = split_head(bytes).unwrap_or(("", b""));
        let (body, chunks) = if header(head, "transfer-encoding").is_some() {
            let chunks = dechunk(body).0;
            (chunks.concat(), chunks.iter().map(|chunk| chunk.len()).collect())
        } else {
            (body.to_vec(), Vec::new())
        };
        let status = head.split(' ').nth(1).map_or(0, |status| status.parse().unwrap());
        Self {
            status,
            head: head.to_owned(),
            body,
            chunks,
            end,
            took: started.elapsed(),
            head_after,
        }
    }

    fn header(&self, name: &str) -> &str {
        header(&self.head, name).unwrap_or_else(|| panic!("no {name} in {}", self.head))
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.body_text()))
    }

    fn body_text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The data of each event, as a decoder of event streams has to see it, and the comments as `: …`.
    fn lines(&self) -> Vec<String> {
        let text = self
            .body_text()
            .trim_start_matches('\u{FEFF}')
            .replace("\r\n", "\n")
            .replace('\r', "\n");
        let mut events = Vec::new();
        for event in text.split_terminator("\n\n") {
            let data: Vec<_> =
                event.lines().map(|line| line.strip_prefix("data: ").unwrap_or(line)).collect();
            events.push(data.join("\n"));
        }
        events
    }

    /// The events that are JSON.
    fn events(&self) -> Vec<Value> {
        self.lines().iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The text of a stream.
    fn text(&self) -> String {
        self.events()
            .iter()
            .filter_map(|event| {
                event.pointer("/choices/0/delta/content")?.as_str().map(str::to_owned)
            })
            .collect()
    }

    fn finish_reason(&self) -> Option<String> {
        let events = self.events();
        events.iter().find_map(|event| {
            event.pointer("/choices/0/finish_reason")?.as_str().map(str::to_owned)
        })
    }

    fn is_done(&self) -> bool {
        self.lines().last().is_some_and(|line| line == "[DONE]")
    }

    /// The content of a reply in one piece.
    fn content(&self) -> String {
        let body = self.json();
        body.pointer("/choices/0/message/content")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    }
}

/// A request to `model`, streamed.
fn streamed(model: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "hello"}], "stream": true})
}

/// A request to `model`, answered in one piece.
fn whole(model: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "hello"}]})
}

/// Replies of so many tokens, a tenth of a second apart.
fn paced(tokens: u32) -> Options {
    Options { tokens: Some(tokens), ttft: 500 * MS, token_interval: 100 * MS, ..Options::default() }
}

/// Lets everything run that can run.
async fn settle() {
    tokio::time::sleep(MS).await;
}
