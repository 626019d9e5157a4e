//! HTTP/1.1, as much of it as a provider speaks: request heads and bodies in, response heads and chunks out.

use std::fmt::Write as _;
use std::str;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::conn::{Conn, ReadError};
use crate::options::{Limits, MAX_TOKENS};
use crate::problem::{Problem, reason};

const MAX_HEADERS: usize = 96;

/// The head of a request, with those headers that matter here.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) method: Method,
    /// Without query and without the optional prefix `/v1`.
    pub(crate) path: String,
    /// Whether the client can read chunks and keeps connections by default.
    pub(crate) version_11: bool,
    pub(crate) keep_alive: bool,
    pub(crate) overrides: Result<Overrides, Problem>,
    /// What `authorization` or `x-api-key` holds.
    pub(crate) key: Option<String>,
    pub(crate) client_request_id: Option<String>,
    pub(crate) anthropic_version: bool,
    expects_continue: bool,
    body: BodyKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Post,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BodyKind {
    Length(usize),
    Chunked,
}

/// What a request asks of the simulator by header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Overrides {
    pub(crate) fault: Option<String>,
    pub(crate) ttft: Option<Duration>,
    pub(crate) tokens: Option<u32>,
    pub(crate) token_interval: Option<Duration>,
}

/// Why there is no request.
#[derive(Debug)]
pub(crate) enum NoRequest {
    /// The connection ended or was idle for too long; nothing to say.
    Over,
    /// The client is told, and the connection closed.
    Bad(Problem),
}

fn bad(status: u16, message: impl Into<String>) -> NoRequest {
    NoRequest::Bad(Problem::new(status, "invalid_request_error", message))
}

impl From<ReadError> for NoRequest {
    fn from(_: ReadError) -> Self {
        Self::Over
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> Conn<I> {
    /// Waits for the next request's head, at most `idle` for its first byte.
    pub(crate) async fn read_head(
        &mut self,
        limits: &Limits,
        idle: Duration,
    ) -> Result<Head, NoRequest> {
        let mut deadline =
            Instant::now() + if self.inbox.is_empty() { idle } else { limits.head_timeout };
        loop {
            // Blank lines before a request are allowed, and some clients send one after a body.
            while self.inbox.starts_with(b"\r\n") {
                self.inbox.advance(2);
            }
            if let Some((head, length)) = parse_head(&self.inbox)? {
                self.inbox.advance(length);
                return Ok(head);
            }
            if self.inbox.len() >= limits.max_head_bytes {
                return Err(bad(431, "the request's head is too large"));
            }
            let first = self.inbox.is_empty();
            match self.read_more(deadline).await {
                Ok(0) => return Err(NoRequest::Over),
                Ok(_) => {}
                Err(ReadError::Deadline) if !first => {
                    return Err(bad(408, "the request's head took too long"));
                }
                Err(error) => return Err(error.into()),
            }
            if first {
                deadline = Instant::now() + limits.head_timeout;
            }
        }
    }

    /// Reads the body that belongs to `head`.
    pub(crate) async fn read_body(
        &mut self,
        head: &Head,
        limits: &Limits,
    ) -> Result<Bytes, NoRequest> {
        let deadline = Instant::now() + limits.body_timeout;
        if head.expects_continue && head.body != BodyKind::Length(0) {
            let mut go_on = b"HTTP/1.1 100 Continue\r\n\r\n".to_vec();
            self.send(&mut go_on).await.map_err(|_| NoRequest::Over)?;
        }
        let body = match head.body {
            BodyKind::Length(length) => self.read_sized(length, limits, deadline).await?,
            BodyKind::Chunked => self.read_chunks(limits, deadline).await?,
        };
        if self.inbox.is_empty() {
            // A connection keeps no memory while its reply is sent.
            self.inbox = BytesMut::new();
        }
        Ok(body)
    }

    async fn read_sized(
        &mut self,
        length: usize,
        limits: &Limits,
        deadline: Instant,
    ) -> Result<Bytes, NoRequest> {
        if length > limits.max_body_bytes {
            return Err(too_large(limits));
        }
        self.inbox.reserve(length.saturating_sub(self.inbox.len()));
        self.fill(length, deadline).await?;
        Ok(self.inbox.split_to(length).freeze())
    }

    async fn read_chunks(
        &mut self,
        limits: &Limits,
        deadline: Instant,
    ) -> Result<Bytes, NoRequest> {
        let mut body = BytesMut::new();
        loop {
            let (line, size) = loop {
                match httparse::parse_chunk_size(&self.inbox) {
                    Ok(httparse::Status::Complete(parsed)) => break parsed,
                    Ok(httparse::Status::Partial) if self.inbox.len() < limits.max_head_bytes => {
                        self.fill(self.inbox.len() + 1, deadline).await?;
                    }
                    Ok(httparse::Status::Partial) | Err(_) => {
                        return Err(bad(400, "the body has a malformed chunk"));
                    }
                }
            };
            self.inbox.advance(line);
            let size = usize::try_from(size).unwrap_or(usize::MAX);
            if size > limits.max_body_bytes.saturating_sub(body.len()) {
                return Err(too_large(limits));
            }
            if size == 0 {
                self.skip_trailers(limits, deadline).await?;
                return Ok(body.freeze());
            }
            self.fill(size + 2, deadline).await?;
            body.extend_from_slice(&self.inbox[..size]);
            if &self.inbox[size..size + 2] != b"\r\n" {
                return Err(bad(400, "the body has a malformed chunk"));
            }
            self.inbox.advance(size + 2);
        }
    }

    async fn skip_trailers(&mut self, limits: &Limits, deadline: Instant) -> Result<(), NoRequest> {
        let mut skipped = 0;
        loop {
            let line = loop {
                if let Some(end) = self.inbox.windows(2).position(|pair| pair == b"\r\n") {
                    break end;
                }
                if self.inbox.len() + skipped >= limits.max_head_bytes {
                    return Err(bad(431, "the trailers are too large"));
                }
                self.fill(self.inbox.len() + 1, deadline).await?;
            };
            self.inbox.advance(line + 2);
            skipped += line + 2;
            if line == 0 {
                return Ok(());
            }
        }
    }

    /// Reads until the inbox holds `length` bytes.
    async fn fill(&mut self, length: usize, deadline: Instant) -> Result<(), NoRequest> {
        while self.inbox.len() < length {
            if self.read_more(deadline).await? == 0 {
                return Err(NoRequest::Over);
            }
        }
        Ok(())
    }
}

fn too_large(limits: &Limits) -> NoRequest {
    bad(413, format!("the body has more than {} bytes", limits.max_body_bytes))
}

fn parse_head(bytes: &[u8]) -> Result<Option<(Head, usize)>, NoRequest> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(bad(431, "the request has too many headers"));
        }
        Err(error) => return Err(bad(400, format!("this is not HTTP/1.1: {error}"))),
    };
    let method = match request.method {
        Some("GET") => Method::Get,
        Some("POST") => Method::Post,
        Some(_) | None => Method::Other,
    };
    let path = request.path.unwrap_or_default().split(['?', '#']).next().unwrap_or_default();
    let path =
        path.strip_prefix("/v1").filter(|rest| rest.starts_with('/')).unwrap_or(path).to_owned();
    let version_11 = request.version == Some(1);
    let mut head = Head {
        method,
        path,
        version_11,
        keep_alive: version_11,
        overrides: Ok(Overrides::default()),
        key: None,
        client_request_id: None,
        anthropic_version: false,
        expects_continue: false,
        body: BodyKind::Length(0),
    };
    for header in request.headers.iter() {
        head.take(header.name, header.value)?;
    }
    Ok(Some((head, length)))
}

impl Head {
    fn take(&mut self, name: &str, value: &[u8]) -> Result<(), NoRequest> {
        let text = || str::from_utf8(value).map(str::trim);
        if name.eq_ignore_ascii_case("content-length") {
            let length = text().ok().and_then(|text| text.parse().ok());
            let length = length.ok_or_else(|| bad(400, "content-length is no number"))?;
            // A chunked body has no other length, whatever the header says.
            if self.body != BodyKind::Chunked {
                self.body = BodyKind::Length(length);
            }
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            self.body = BodyKind::Chunked;
        } else if name.eq_ignore_ascii_case("connection") {
            let value = text().unwrap_or_default().to_ascii_lowercase();
            self.keep_alive =
                !value.contains("close") && (self.version_11 || value.contains("keep-alive"));
        } else if name.eq_ignore_ascii_case("expect") {
            self.expects_continue =
                text().is_ok_and(|text| text.eq_ignore_ascii_case("100-continue"));
        } else if name.eq_ignore_ascii_case("authorization") {
            let value = text().unwrap_or_default();
            let bearer = value.get(..7).filter(|word| word.eq_ignore_ascii_case("bearer "));
            let key = bearer.map_or(value, |word| value[word.len()..].trim_start());
            self.key = Some(key.to_owned());
        } else if name.eq_ignore_ascii_case("x-api-key") {
            self.key = text().ok().map(ToOwned::to_owned);
        } else if name.eq_ignore_ascii_case("x-client-request-id") {
            self.client_request_id = text().ok().map(ToOwned::to_owned);
        } else if name.eq_ignore_ascii_case("anthropic-version") {
            self.anthropic_version = true;
        } else if name.get(..6).is_some_and(|prefix| prefix.eq_ignore_ascii_case("x-sim-")) {
            let name = name[6..].to_ascii_lowercase();
            // Reported once the body is read, so that the connection stays usable.
            if let Ok(overrides) = &mut self.overrides
                && let Err(problem) = overrides.take(&name, text().unwrap_or_default())
            {
                self.overrides = Err(problem);
            }
        }
        Ok(())
    }
}

impl Overrides {
    fn take(&mut self, name: &str, value: &str) -> Result<(), Problem> {
        let number = |max: u64| {
            let number = value.parse().ok().filter(|number| *number <= max);
            number.ok_or_else(|| {
                Problem::invalid(format!(
                    "header x-sim-{name} is a whole number up to {max}: {value}"
                ))
            })
        };
        const DAY_MS: u64 = 86_400_000;
        match name {
            "fault" => self.fault = Some(value.to_owned()),
            "ttft-ms" => self.ttft = Some(Duration::from_millis(number(DAY_MS)?)),
            "token-interval-ms" => {
                self.token_interval = Some(Duration::from_millis(number(DAY_MS)?))
            }
            "tokens" => self.tokens = u32::try_from(number(u64::from(MAX_TOKENS))?).ok(),
            _ => return Err(Problem::invalid(format!("unknown header: x-sim-{name}"))),
        }
        Ok(())
    }
}

/// How the end of a response's body is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Length(usize),
    Chunked,
    /// By the end of the connection.
    Close,
}

/// Writes a response head.
pub(crate) fn push_head(
    out: &mut Vec<u8>,
    status: u16,
    framing: Framing,
    keep_alive: bool,
    headers: &[(&str, &str)],
) {
    let mut text = String::with_capacity(256);
    // Writing to a string cannot fail.
    let _ = write!(text, "HTTP/1.1 {status} {}\r\n", reason(status));
    for (name, value) in headers {
        let _ = write!(text, "{name}: {value}\r\n");
    }
    let _ = match framing {
        Framing::Length(length) => write!(text, "content-length: {length}\r\n"),
        Framing::Chunked => write!(text, "transfer-encoding: chunked\r\n"),
        Framing::Close => Ok(()),
    };
    text.push_str(if keep_alive && framing != Framing::Close {
        "\r\n"
    } else {
        "connection: close\r\n\r\n"
    });
    out.extend_from_slice(text.as_bytes());
}

/// Writes one chunk with its length. An empty one would end the body, so it is left out.
pub(crate) fn push_chunk(out: &mut Vec<u8>, data: &[u8]) {
    if !data.is_empty() {
        push_chunk_size(out, data.len());
        out.extend_from_slice(data);
        out.extend_from_slice(b"\r\n");
    }
}

/// Writes the line before a chunk's bytes.
pub(crate) fn push_chunk_size(out: &mut Vec<u8>, size: usize) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = (usize::BITS - size.leading_zeros()).div_ceil(4).max(1);
    for place in (0..digits).rev() {
        out.push(DIGITS[(size >> (place * 4)) & 0xf]);
    }
    out.extend_from_slice(b"\r\n");
}

/// The end of a chunked body.
pub(crate) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

#[cfg(test)]
mod tests;
