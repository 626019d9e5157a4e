//! HTTP/1.1 by hand: as little work per token as possible, and nothing hidden.
//!
//! A general client would cost more per token than the server under test, and the two share the machine. A connection
//! here is a socket, a buffer and a [`Decoder`]; a token costs one read and one copy.
//!
//! Not here: TLS, redirects, retries, HTTP/2. What the bytes of a body mean is [`crate::sse`]'s.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

pub(crate) use self::body::{Decoder, Framing};

mod body;

#[cfg(test)]
mod tests;

/// No head of the servers under test comes near it.
const MAX_HEAD: usize = 16 * 1024;
const READ: usize = 8 * 1024;
const CONNECT: Duration = Duration::from_secs(10);

/// A request, ready to be written.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    bytes: Vec<u8>,
}

impl Request {
    pub(crate) fn get(path: &str) -> Self {
        Self { bytes: format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").into_bytes() }
    }

    pub(crate) fn get_with(path: &str, headers: &[(&str, &str)]) -> Self {
        let mut head = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n");
        push_headers(&mut head, headers);
        Self { bytes: head.into_bytes() }
    }

    pub(crate) fn post(path: &str, body: &Value) -> Self {
        Self::post_with(path, &[], body)
    }

    pub(crate) fn post_with(path: &str, headers: &[(&str, &str)], body: &Value) -> Self {
        let body = body.to_string();
        let mut head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n",
            body.len()
        );
        push_headers(&mut head, headers);
        head.push_str(&body);
        Self { bytes: head.into_bytes() }
    }
}

fn push_headers(head: &mut String, headers: &[(&str, &str)]) {
    for (name, value) in headers {
        head.push_str(name);
        head.push_str(": ");
        head.push_str(value);
        head.push_str("\r\n");
    }
    head.push_str("\r\n");
}

/// The head of an answer.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
}

impl Head {
    /// `name` in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// A connection, one request at a time.
#[derive(Debug)]
pub(crate) struct Conn {
    stream: TcpStream,
    buffer: Vec<u8>,
    decoder: Decoder,
    keep_alive: bool,
}

impl Conn {
    pub(crate) async fn open(address: SocketAddr) -> Result<Self> {
        let stream = timeout(CONNECT, TcpStream::connect(address))
            .await
            .context("connecting took too long")?
            .with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: Vec::with_capacity(READ),
            decoder: Decoder::new(Framing::Length(0)),
            keep_alive: true,
        })
    }

    /// Whether another request may follow.
    pub(crate) fn is_reusable(&self) -> bool {
        self.keep_alive && self.decoder.is_done()
    }

    pub(crate) async fn send(&mut self, request: &Request) -> Result<()> {
        self.stream.write_all(&request.bytes).await.context("sending the request")
    }

    pub(crate) async fn head(&mut self) -> Result<Head> {
        loop {
            if let Some(head) = self.take_head()? {
                return Ok(head);
            }
            ensure!(self.buffer.len() < MAX_HEAD, "the answer's head is too long");
            ensure!(self.fill().await? > 0, "the connection closed before an answer");
        }
    }

    /// Appends what there is of the body to `out`, waiting if there is nothing. `false`: the body has ended.
    pub(crate) async fn more(&mut self, out: &mut Vec<u8>) -> Result<bool> {
        loop {
            let before = out.len();
            let used = self.decoder.decode(&self.buffer, out)?;
            self.buffer.drain(..used);
            if out.len() > before {
                return Ok(true);
            }
            if self.decoder.is_done() {
                return Ok(false);
            }
            if self.fill().await? == 0 {
                self.keep_alive = false;
                self.decoder.close().context("the connection closed inside the answer")?;
            }
        }
    }

    /// The rest of the body.
    pub(crate) async fn rest(&mut self) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        while self.more(&mut body).await? {}
        Ok(body)
    }

    async fn fill(&mut self) -> Result<usize> {
        self.buffer.reserve(READ);
        self.stream.read_buf(&mut self.buffer).await.context("reading the answer")
    }

    fn take_head(&mut self) -> Result<Option<Head>> {
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut fields);
        let httparse::Status::Complete(length) = response.parse(&self.buffer)? else {
            return Ok(None);
        };
        let status = response.code.unwrap_or_default();
        let headers: Vec<_> = response
            .headers
            .iter()
            .map(|field| {
                (field.name.to_ascii_lowercase(), String::from_utf8_lossy(field.value).into_owned())
            })
            .collect();
        let head = Head { status, headers };
        let framing = framing(&head)?;
        self.keep_alive = framing != Framing::Close
            && !head.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        self.decoder = Decoder::new(framing);
        self.buffer.drain(..length);
        Ok(Some(head))
    }
}

fn framing(head: &Head) -> Result<Framing> {
    if matches!(head.status, 100..=199 | 204 | 304) {
        return Ok(Framing::Length(0));
    }
    if let Some(encoding) = head.header("transfer-encoding") {
        ensure!(encoding.eq_ignore_ascii_case("chunked"), "unknown transfer-encoding: {encoding}");
        return Ok(Framing::Chunked);
    }
    match head.header("content-length") {
        Some(length) => Ok(Framing::Length(length.parse().context("content-length")?)),
        None => Ok(Framing::Close),
    }
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The body, for messages.
    pub(crate) fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.body)
    }

    pub(crate) fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("not JSON: {}", self.text()))
    }

    /// The JSON of a 2xx answer.
    pub(crate) fn ok(&self) -> Result<Value> {
        if !(200..300).contains(&self.status) {
            bail!("status {}: {}", self.status, self.text());
        }
        self.json()
    }
}

/// One request over a connection that is open already.
pub(crate) async fn exchange(conn: &mut Conn, request: &Request) -> Result<Answer> {
    conn.send(request).await?;
    let head = conn.head().await?;
    let body = conn.rest().await?;
    Ok(Answer { status: head.status, head, body })
}

/// One request over a connection of its own, within `limit`.
pub(crate) async fn call(
    address: SocketAddr,
    request: &Request,
    limit: Duration,
) -> Result<Answer> {
    let whole = async {
        let mut conn = Conn::open(address).await?;
        exchange(&mut conn, request).await
    };
    timeout(limit, whole).await.with_context(|| format!("no answer within {limit:?}"))?
}
