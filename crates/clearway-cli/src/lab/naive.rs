//! The client that people write: a socket, a loop, and hope.
//!
//! It takes the end of the connection for the end of the answer, has no limit for the whole call,
//! and tries again at once. All of it is on purpose.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

/// What it got, with its socket if that is still open.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) tokens: u32,
    pub(crate) end: End,
    _held: Option<BufReader<TcpStream>>,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// `[DONE]`, or the connection ended: both count as success.
    Success,
    Refused(u16),
    Broke(String),
    ReadTimeout,
    /// It did not; the lab has seen enough.
    StillWaiting,
}

/// Asks once. `read` limits each read, as most clients' timeouts do; `until` is the lab's patience
/// and no part of the client.
pub(crate) async fn ask(address: SocketAddr, read: Option<Duration>, until: Instant) -> Reply {
    let mut tokens = 0;
    let mut held = None;
    let asked = timeout_at(until, call(address, read, &mut tokens, &mut held)).await;
    let end = match asked {
        Ok(Ok(end)) => end,
        Ok(Err(error)) => End::Broke(error.to_string()),
        Err(_) => End::StillWaiting,
    };
    Reply { tokens, _held: held.filter(|_| end == End::StillWaiting), end }
}

async fn call(
    address: SocketAddr,
    read: Option<Duration>,
    tokens: &mut u32,
    held: &mut Option<BufReader<TcpStream>>,
) -> std::io::Result<End> {
    let body = json!({
        "model": "lab",
        "stream": true,
        "messages": [{"role": "user", "content": "hello"}],
    })
    .to_string();
    let mut stream = TcpStream::connect(address).await?;
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).await?;
    let reader = held.insert(BufReader::new(stream));
    let mut line = String::new();
    let mut is_first = true;
    loop {
        line.clear();
        let reading = reader.read_line(&mut line);
        let got = match read {
            Some(limit) => match timeout(limit, reading).await {
                Ok(got) => got?,
                Err(_) => return Ok(End::ReadTimeout),
            },
            None => reading.await?,
        };
        if got == 0 {
            return Ok(End::Success);
        }
        if std::mem::take(&mut is_first) {
            let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
            if let Some(status) = status.filter(|status| *status != 200) {
                return Ok(End::Refused(status));
            }
        }
        match line.trim_end().strip_prefix("data: ") {
            Some("[DONE]") => return Ok(End::Success),
            Some(data) if says_something(data) => *tokens += 1,
            Some(_) | None => {}
        }
    }
}

fn says_something(data: &str) -> bool {
    let event: Value = serde_json::from_str(data).unwrap_or_default();
    event["choices"][0]["delta"]["content"].as_str().is_some_and(|text| !text.is_empty())
}
