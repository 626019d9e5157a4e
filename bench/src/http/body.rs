//! Where a body ends, and its bytes without the chunk lines.

use anyhow::{Context as _, Result, bail, ensure};

/// How an answer says where its body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Length(u64),
    Chunked,
    /// With the connection.
    Close,
}

/// Takes bytes from the wire as they come.
#[derive(Debug)]
pub(crate) struct Decoder(State);

#[derive(Debug, PartialEq, Eq)]
enum State {
    Length(u64),
    Close,
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailer,
    Done,
}

impl Decoder {
    pub(crate) fn new(framing: Framing) -> Self {
        Self(match framing {
            Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::ChunkSize,
            Framing::Close => State::Close,
        })
    }

    pub(crate) fn is_done(&self) -> bool {
        self.0 == State::Done
    }

    /// The connection has ended.
    pub(crate) fn close(&mut self) -> Result<()> {
        ensure!(matches!(self.0, State::Close | State::Done), "the body is cut off");
        self.0 = State::Done;
        Ok(())
    }

    /// Appends the body's bytes in `input` to `out`; returns how many of `input` are used up.
    pub(crate) fn decode(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize> {
        let mut rest = input;
        loop {
            match &mut self.0 {
                State::Length(left) | State::Chunk(left) => {
                    let n = rest.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    out.extend_from_slice(&rest[..n]);
                    rest = &rest[n..];
                    *left -= n as u64;
                    if *left > 0 {
                        break;
                    }
                    let chunked = matches!(self.0, State::Chunk(_));
                    self.0 = if chunked { State::ChunkEnd } else { State::Done };
                }
                State::Close => {
                    out.extend_from_slice(rest);
                    rest = &[];
                    break;
                }
                State::ChunkSize => {
                    let Some(line) = take_line(&mut rest) else { break };
                    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
                    let digits = std::str::from_utf8(digits).context("chunk size")?.trim();
                    let size = u64::from_str_radix(digits, 16)
                        .with_context(|| format!("not a chunk size: {digits:?}"))?;
                    self.0 = if size == 0 { State::Trailer } else { State::Chunk(size) };
                }
                State::ChunkEnd => match rest {
                    [b'\r', b'\n', after @ ..] => {
                        rest = after;
                        self.0 = State::ChunkSize;
                    }
                    [] | [b'\r'] => break,
                    _ => bail!("a chunk is longer than its size"),
                },
                State::Trailer => {
                    let Some(line) = take_line(&mut rest) else { break };
                    if line.is_empty() {
                        self.0 = State::Done;
                    }
                }
                State::Done => break,
            }
        }
        Ok(input.len() - rest.len())
    }
}

/// The line without its end, if it is there as a whole.
fn take_line<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = memchr::memchr(b'\n', rest)?;
    let line = &rest[..end];
    *rest = &rest[end + 1..];
    Some(line.strip_suffix(b"\r").unwrap_or(line))
}
