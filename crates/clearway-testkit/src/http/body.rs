//! Bodies by their framing. A body that ends before its framing says so is an error, never a short
//! success: that is what half of the tests look for.

use anyhow::{Context, Result, bail, ensure};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::Headers;

#[derive(Debug)]
pub(super) struct Body {
    stream: TcpStream,
    /// Read, not yet handed out.
    received: Vec<u8>,
    framing: Framing,
}

#[derive(Clone, Copy, Debug)]
enum Framing {
    Length(u64),
    Chunked(Chunk),
    UntilClose,
    Over,
}

/// Where in a chunk the reader is.
#[derive(Clone, Copy, Debug)]
enum Chunk {
    Size,
    Data(u64),
    /// The line end after the data.
    End,
    /// After the last chunk: trailers, until an empty line.
    Trailer,
}

impl Body {
    pub(super) fn new(
        stream: TcpStream,
        received: Vec<u8>,
        status: u16,
        headers: &Headers,
        method: &str,
    ) -> Result<Self> {
        let framing = if method == "HEAD" || matches!(status, 204 | 304) {
            Framing::Over
        } else if headers
            .get("transfer-encoding")
            .is_some_and(|value| value.eq_ignore_ascii_case("chunked"))
        {
            Framing::Chunked(Chunk::Size)
        } else if let Some(length) = headers.get("content-length") {
            Framing::Length(length.parse().with_context(|| format!("content-length: {length}"))?)
        } else {
            Framing::UntilClose
        };
        Ok(Self { stream, received, framing })
    }

    pub(super) async fn read_to_end(&mut self) -> Result<Vec<u8>> {
        let mut whole = Vec::new();
        while let Some(bytes) = self.read_some().await? {
            whole.extend_from_slice(&bytes);
        }
        Ok(whole)
    }

    /// What is there, or what comes next; `None` at the end.
    pub(super) async fn read_some(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            match self.framing {
                Framing::Over => return Ok(None),
                Framing::Length(0) => self.framing = Framing::Over,
                Framing::Length(left) => {
                    let bytes = self.take(left).await?;
                    self.framing = Framing::Length(left - bytes.len() as u64);
                    return Ok(Some(bytes));
                }
                Framing::UntilClose => {
                    if self.received.is_empty() && self.fill().await? == 0 {
                        self.framing = Framing::Over;
                        continue;
                    }
                    return Ok(Some(std::mem::take(&mut self.received)));
                }
                Framing::Chunked(chunk) => {
                    if let Some(bytes) = self.read_chunk(chunk).await? {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }

    async fn read_chunk(&mut self, chunk: Chunk) -> Result<Option<Vec<u8>>> {
        let mut data = None;
        self.framing = match chunk {
            Chunk::Size => {
                let line = self.line().await?;
                let digits = line.split(';').next().unwrap_or_default().trim();
                let size = u64::from_str_radix(digits, 16)
                    .with_context(|| format!("no chunk size: {line:?}"))?;
                Framing::Chunked(if size == 0 { Chunk::Trailer } else { Chunk::Data(size) })
            }
            Chunk::Data(0) => Framing::Chunked(Chunk::End),
            Chunk::Data(left) => {
                let bytes = self.take(left).await?;
                let left = left - bytes.len() as u64;
                data = Some(bytes);
                Framing::Chunked(Chunk::Data(left))
            }
            Chunk::End => {
                let line = self.line().await?;
                ensure!(line.is_empty(), "a chunk is longer than its size: {line:?}");
                Framing::Chunked(Chunk::Size)
            }
            Chunk::Trailer => match self.line().await?.is_empty() {
                true => Framing::Over,
                false => Framing::Chunked(Chunk::Trailer),
            },
        };
        Ok(data)
    }

    async fn take(&mut self, most: u64) -> Result<Vec<u8>> {
        if self.received.is_empty() && self.fill().await? == 0 {
            bail!("the connection closed in the middle of the body");
        }
        let count = self.received.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        Ok(self.received.drain(..count).collect())
    }

    async fn line(&mut self) -> Result<String> {
        loop {
            if let Some(at) = self.received.windows(2).position(|two| two == b"\r\n") {
                let line: Vec<u8> = self.received.drain(..at + 2).collect();
                return Ok(String::from_utf8_lossy(&line[..at]).into_owned());
            }
            if self.fill().await? == 0 {
                bail!("the connection closed between two chunks");
            }
        }
    }

    async fn fill(&mut self) -> Result<usize> {
        self.stream.read_buf(&mut self.received).await.context("reading the body")
    }
}
