//! A small HTTP/1.1 client that can also be rude: cut off, drip, send nonsense.
//!
//! One connection per request, so that what a test does to it concerns nobody else.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::sse::{Event, Parser};
use crate::wait::PATIENCE;

mod body;

use body::Body;

/// Where requests go.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    address: SocketAddr,
}

impl Client {
    pub const fn new(address: SocketAddr) -> Self {
        Self { address }
    }

    pub fn get(self, path: impl Into<String>) -> Request {
        self.request("GET", path)
    }

    pub fn post(self, path: impl Into<String>) -> Request {
        self.request("POST", path)
    }

    pub fn delete(self, path: impl Into<String>) -> Request {
        self.request("DELETE", path)
    }

    pub fn request(self, method: &str, path: impl Into<String>) -> Request {
        Request {
            address: self.address,
            method: method.to_owned(),
            path: path.into(),
            headers: Vec::new(),
            body: Vec::new(),
            limit: PATIENCE,
        }
    }

    /// A connection to write anything to.
    ///
    /// # Errors
    /// Nobody listens.
    pub async fn raw(self) -> Result<Raw> {
        connect(self.address).await.map(|stream| Raw { stream })
    }
}

async fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream =
        timeout(PATIENCE, TcpStream::connect(address)).await.context("connecting took too long")?;
    let stream = stream.with_context(|| format!("connecting to {address}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A request under construction.
#[derive(Clone, Debug)]
pub struct Request {
    address: SocketAddr,
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    limit: Duration,
}

impl Request {
    #[must_use]
    pub fn header(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    #[must_use]
    pub fn json(self, value: &Value) -> Self {
        self.header("content-type", "application/json").body(value.to_string())
    }

    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// How long the whole answer may take; for a stream, the time between two events.
    #[must_use]
    pub const fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Sends it and reads the whole answer.
    ///
    /// # Errors
    /// No answer, or a broken one; whatever the status, an answer is no error.
    pub async fn send(self) -> Result<Response> {
        let name = format!("{} {}", self.method, self.path);
        let limit = self.limit;
        let whole = async {
            let (status, headers, mut body) = self.exchange().await?;
            let body = body.read_to_end().await?;
            Ok::<_, anyhow::Error>(Response { status, headers, body })
        };
        let answer = timeout(limit, whole).await;
        answer.with_context(|| format!("{name}: no answer within {limit:?}"))?.context(name)
    }

    /// Sends it and hands over the answer as it comes.
    ///
    /// # Errors
    /// As [`Request::send`].
    pub async fn open(self) -> Result<Stream> {
        let name = format!("{} {}", self.method, self.path);
        let limit = self.limit;
        let answer = timeout(limit, self.exchange()).await;
        let answer = answer.with_context(|| format!("{name}: no answer within {limit:?}"))?;
        let (status, headers, body) = answer.with_context(|| name.clone())?;
        Ok(Stream { name, status, headers, body, parser: Parser::default(), limit })
    }

    async fn exchange(self) -> Result<(u16, Headers, Body)> {
        let bytes = self.to_bytes();
        let mut stream = connect(self.address).await?;
        let (mut reader, mut writer) = stream.split();
        let mut received = Vec::new();
        let head_end = {
            let write = async {
                // A server may refuse and close before it has read everything; its answer counts.
                let _ = writer.write_all(&bytes).await;
                std::future::pending::<()>().await
            };
            tokio::select! {
                () = write => unreachable!("it never ends"),
                read = read_head(&mut reader, &mut received) => read?,
            }
        };
        let (status, headers) = parse_head(&received[..head_end])?;
        received.drain(..head_end);
        let body = Body::new(stream, received, status, &headers, &self.method)?;
        Ok((status, headers, body))
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.path);
        let mut put = |name: &str, value: &str| {
            head.push_str(name);
            head.push_str(": ");
            head.push_str(value);
            head.push_str("\r\n");
        };
        put("host", &self.address.to_string());
        put("connection", "close");
        for (name, value) in &self.headers {
            put(name, value);
        }
        if !self.body.is_empty() || self.method == "POST" {
            put("content-length", &self.body.len().to_string());
        }
        head.push_str("\r\n");
        [head.into_bytes(), self.body.clone()].concat()
    }
}

async fn read_head(
    reader: &mut (impl AsyncReadExt + Unpin),
    received: &mut Vec<u8>,
) -> Result<usize> {
    loop {
        if let Some(at) = received.windows(4).position(|four| four == b"\r\n\r\n") {
            return Ok(at + 4);
        }
        ensure!(received.len() < 64 * 1024, "an answer's head without an end");
        let read = reader.read_buf(received).await.context("reading the answer's head")?;
        ensure!(
            read > 0,
            "the connection closed before an answer: {:?}",
            String::from_utf8_lossy(received)
        );
    }
}

fn parse_head(head: &[u8]) -> Result<(u16, Headers)> {
    let head = std::str::from_utf8(head)?;
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    let rest = status.strip_prefix("HTTP/1.1 ").or_else(|| status.strip_prefix("HTTP/1.0 "));
    let code = rest.and_then(|rest| rest.get(..3)?.parse().ok());
    let Some(code) = code else { bail!("no status line: {status:?}") };
    let pairs = lines.filter(|line| !line.is_empty()).map(|line| {
        let (name, value) = line.split_once(':').with_context(|| format!("no header: {line:?}"))?;
        Ok((name.to_ascii_lowercase(), value.trim().to_owned()))
    });
    Ok((code, Headers(pairs.collect::<Result<_>>()?)))
}

/// The headers of an answer.
#[derive(Clone, Debug, Default)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Headers,
    pub body: Vec<u8>,
}

impl Response {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; null when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// Insists on a status.
    ///
    /// # Errors
    /// It is another one; the error shows the body.
    pub fn expect(self, status: u16) -> Result<Self> {
        ensure!(
            self.status == status,
            "status {} instead of {status}: {}",
            self.status,
            self.text()
        );
        Ok(self)
    }

    /// The stable code of a refusal, in whichever shape the dialect tells it.
    pub fn code(&self) -> String {
        let json = self.json();
        let places = ["/code", "/detail/error_type", "/detail/0/type", "/error/code"];
        let found = places.iter().find_map(|place| json.pointer(place)?.as_str());
        found.unwrap_or_default().to_owned()
    }
}

/// An answer that is still coming. Dropping it hangs up.
#[derive(Debug)]
pub struct Stream {
    name: String,
    pub status: u16,
    pub headers: Headers,
    body: Body,
    parser: Parser,
    limit: Duration,
}

impl Stream {
    /// Insists on status 200.
    ///
    /// # Errors
    /// It is another one; the error shows the body.
    pub async fn ok(mut self) -> Result<Self> {
        if self.status != 200 {
            let body = timeout(self.limit, self.body.read_to_end()).await??;
            bail!("{}: status {}: {}", self.name, self.status, String::from_utf8_lossy(&body));
        }
        Ok(self)
    }

    /// The next event; `None` after the last one.
    ///
    /// # Errors
    /// Nothing came within the limit, the body broke off, or it is no stream of events.
    pub async fn next(&mut self) -> Result<Option<Event>> {
        let limit = self.limit;
        let next = timeout(limit, self.read_event()).await;
        next.with_context(|| format!("{}: no event within {limit:?}", self.name))?
            .with_context(|| self.name.clone())
    }

    async fn read_event(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(event) = self.parser.take()? {
                return Ok(Some(event));
            }
            match self.body.read_some().await? {
                Some(bytes) => self.parser.push(&bytes),
                None => {
                    ensure!(!self.parser.is_torn(), "the stream ends in the middle of an event");
                    return Ok(None);
                }
            }
        }
    }

    /// The next event for which `wanted` holds.
    ///
    /// # Errors
    /// As [`Stream::next`]; the stream ended without one.
    pub async fn next_where(&mut self, wanted: impl Fn(&Event) -> bool) -> Result<Event> {
        while let Some(event) = self.next().await? {
            if wanted(&event) {
                return Ok(event);
            }
        }
        bail!("{}: the stream ended before the event that was waited for", self.name)
    }

    /// All events until the end.
    ///
    /// # Errors
    /// As [`Stream::next`].
    pub async fn rest(mut self) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await? {
            events.push(event);
        }
        Ok(events)
    }
}

/// A connection that takes any bytes.
#[derive(Debug)]
pub struct Raw {
    stream: TcpStream,
}

impl Raw {
    /// # Errors
    /// The other side is gone.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(timeout(PATIENCE, self.stream.write_all(bytes))
            .await
            .context("the server does not read")??)
    }

    /// Sends `bytes` one at a time, `pause` apart, until all are sent or an answer begins; then
    /// reads the answer.
    ///
    /// # Errors
    /// No answer within `limit`.
    pub async fn drip(
        mut self,
        bytes: &[u8],
        pause: Duration,
        limit: Duration,
    ) -> Result<Response> {
        let (mut reader, mut writer) = self.stream.split();
        let mut received = Vec::new();
        let write = async {
            for byte in bytes {
                if writer.write_all(std::slice::from_ref(byte)).await.is_err() {
                    break;
                }
                tokio::time::sleep(pause).await;
            }
            std::future::pending::<()>().await
        };
        let read = async {
            tokio::select! {
                () = write => unreachable!("it never ends"),
                head = read_head(&mut reader, &mut received) => head,
            }
        };
        let head_end =
            timeout(limit, read).await.with_context(|| format!("no answer within {limit:?}"))??;
        Self::finish(self.stream, received, head_end, limit).await
    }

    /// Reads one answer.
    ///
    /// # Errors
    /// None came within `limit`, or it is broken.
    pub async fn response(mut self, limit: Duration) -> Result<Response> {
        let mut received = Vec::new();
        let head = timeout(limit, read_head(&mut self.stream, &mut received)).await;
        let head_end = head.with_context(|| format!("no answer within {limit:?}"))??;
        Self::finish(self.stream, received, head_end, limit).await
    }

    async fn finish(
        stream: TcpStream,
        mut received: Vec<u8>,
        head_end: usize,
        limit: Duration,
    ) -> Result<Response> {
        let (status, headers) = parse_head(&received[..head_end])?;
        received.drain(..head_end);
        let mut body = Body::new(stream, received, status, &headers, "POST")?;
        let body =
            timeout(limit, body.read_to_end()).await.context("the answer does not end")??;
        Ok(Response { status, headers, body })
    }

    /// Waits until the other side closes, throwing away what it still says.
    ///
    /// # Errors
    /// It stays open longer than `limit`.
    pub async fn closed(mut self, limit: Duration) -> Result<()> {
        let mut buffer = [0; 1024];
        let closed = async {
            // A reset is a close too.
            while let Ok(1..) = self.stream.read(&mut buffer).await {}
        };
        timeout(limit, closed).await.with_context(|| format!("still open after {limit:?}"))
    }
}

#[cfg(test)]
mod tests;
