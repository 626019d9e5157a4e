//! HTTP/1.1 as a client needs it: bytes in, bytes out, without a socket.
//!
//! One request at a time on a connection, always with a body of known length; answers with a length,
//! in chunks, or up to the end of the connection (RFC 9112, sections 4 to 7).
//!
//! **Invariants:** what is read does not depend on how the bytes were cut; nothing of a peer's makes
//! this hold more than [`MAX_HEAD`].
//!
//! Not here: the socket (`transport`).

use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version, response};

/// Bound of an answer's head, and of what a body in chunks may have besides data.
pub(crate) const MAX_HEAD: usize = 64 * 1024;

/// Headers of an answer at most.
const MAX_HEADERS: usize = 100;

/// Why bytes are no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Invalid(pub(crate) String);

fn invalid<T>(problem: impl Into<String>) -> Result<T, Invalid> {
    Err(Invalid(problem.into()))
}

/// The head of a request, for a body of `length` bytes.
pub(crate) fn encode<B>(request: &Request<B>, length: usize) -> Vec<u8> {
    let mut head = Vec::with_capacity(512);
    head.extend_from_slice(request.method().as_str().as_bytes());
    head.push(b' ');
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    head.extend_from_slice(target.as_bytes());
    head.extend_from_slice(b" HTTP/1.1\r\n");
    for (name, value) in request.headers() {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(format!("content-length: {length}\r\n\r\n").as_bytes());
    head
}

/// A whole head, `used` bytes long.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) used: usize,
    /// `None` for an interim answer (1xx): the real one follows.
    pub(crate) answer: Option<Answer>,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) parts: response::Parts,
    pub(crate) body: Body,
    /// The connection may carry another request afterwards.
    pub(crate) keep_alive: bool,
}

/// Reads the head at the beginning of `input`; `None` when it is not complete.
///
/// # Errors
/// It is no head of HTTP/1, or says two things about where its body ends.
pub(crate) fn read_head(input: &[u8]) -> Result<Option<Head>, Invalid> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Response::new(&mut headers);
    let used = match head.parse(input) {
        Ok(httparse::Status::Complete(used)) if used <= MAX_HEAD => used,
        Ok(httparse::Status::Partial) if input.len() < MAX_HEAD => return Ok(None),
        Ok(_) => {
            return invalid(format!("its head is larger than {MAX_HEAD} bytes"));
        }
        Err(error) => return invalid(error.to_string()),
    };
    let status = head.code.and_then(|code| StatusCode::from_u16(code).ok());
    let Some(status) = status else { return invalid("its status is no number from 100 on") };
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return invalid("it switches protocols, which nobody asked for");
    }
    if status.is_informational() {
        return Ok(Some(Head { used, answer: None }));
    }
    let version = if head.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    let mut map = HeaderMap::with_capacity(head.headers.len());
    for header in head.headers.iter() {
        let name = HeaderName::from_bytes(header.name.as_bytes());
        let value = HeaderValue::from_bytes(header.value);
        match (name, value) {
            (Ok(name), Ok(value)) => map.append(name, value),
            _ => return invalid(format!("its header {:?} is not valid", header.name)),
        };
    }
    let body = Body::of(status, &map)?;
    let keep_alive = body != Body::UntilClose && keeps_alive(version, &map);
    let (mut parts, ()) = Response::new(()).into_parts();
    (parts.status, parts.version, parts.headers) = (status, version, map);
    Ok(Some(Head { used, answer: Some(Answer { parts, body, keep_alive }) }))
}

fn keeps_alive(version: Version, headers: &HeaderMap) -> bool {
    // A length beside chunks is how requests are smuggled past proxies; such a peer is left.
    if headers.contains_key(TRANSFER_ENCODING) && headers.contains_key(CONTENT_LENGTH) {
        return false;
    }
    match version {
        Version::HTTP_10 => has_token(headers, &CONNECTION, "keep-alive"),
        _ => !has_token(headers, &CONNECTION, "close"),
    }
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|one| one.trim().eq_ignore_ascii_case(token))
}

/// What of a body is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// So many bytes.
    Length(u64),
    Chunked(Chunked),
    /// Whatever comes until the peer closes.
    UntilClose,
}

/// Where a body in chunks is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunked {
    at: ChunkedAt,
    /// Bytes of extensions and trailers so far, which say nothing that we need.
    besides: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChunkedAt {
    /// In the number of bytes of the next chunk, of which there are so many digits.
    Size {
        size: u64,
        digits: u8,
    },
    /// Behind it, up to the end of the line.
    Extension {
        size: u64,
    },
    /// The CR of a size's line was seen.
    SizeEnd {
        size: u64,
    },
    Data {
        left: u64,
    },
    /// Behind a chunk.
    DataEnd,
    /// Behind a chunk and its CR.
    DataLf,
    /// In a line after the last chunk, which is empty so far or not.
    Trailer {
        empty: bool,
    },
    /// The CR of such a line was seen.
    TrailerEnd {
        empty: bool,
    },
}

/// What a piece of input holds of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// `length` bytes of data, behind `skip` others.
    Data { skip: usize, length: usize },
    /// Nothing more; `used` bytes are done with, which are all there are.
    More { used: usize },
    /// The body is over; what follows `used` bytes does not belong to it.
    End { used: usize },
}

impl Body {
    /// How the body of an answer is delimited (RFC 9112, section 6.3).
    fn of(status: StatusCode, headers: &HeaderMap) -> Result<Self, Invalid> {
        if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            return Ok(Self::Length(0));
        }
        if headers.contains_key(TRANSFER_ENCODING) {
            let mut codings = headers.get_all(TRANSFER_ENCODING).into_iter();
            let last = codings.next_back().and_then(|value| value.to_str().ok());
            let last = last.and_then(|value| value.rsplit(',').next()).unwrap_or_default();
            let chunked = last.trim().eq_ignore_ascii_case("chunked");
            return Ok(if chunked { Self::Chunked(Chunked::START) } else { Self::UntilClose });
        }
        let mut length = None;
        for value in headers.get_all(CONTENT_LENGTH) {
            for one in value.to_str().unwrap_or_default().split(',') {
                let one = one.trim();
                let digits = !one.is_empty() && one.bytes().all(|byte| byte.is_ascii_digit());
                match one.parse::<u64>() {
                    Ok(one) if digits && length.is_none_or(|known| known == one) => {
                        length = Some(one);
                    }
                    _ => return invalid(format!("its content-length is {value:?}")),
                }
            }
        }
        Ok(length.map_or(Self::UntilClose, Self::Length))
    }

    /// Looks for the next data. Input that is not used must be given again, with more behind it.
    ///
    /// # Errors
    /// These are no chunks.
    pub(crate) fn step(&mut self, input: &[u8]) -> Result<Step, Invalid> {
        match self {
            Self::Length(0) => Ok(Step::End { used: 0 }),
            Self::UntilClose | Self::Length(_) if input.is_empty() => Ok(Step::More { used: 0 }),
            Self::UntilClose => Ok(Step::Data { skip: 0, length: input.len() }),
            Self::Length(left) => {
                let length = at_most(*left, input.len());
                *left -= length as u64;
                Ok(Step::Data { skip: 0, length })
            }
            Self::Chunked(chunked) => chunked.step(input),
        }
    }

    /// Whether the body may end where the connection does.
    pub(crate) const fn may_end(&self) -> bool {
        matches!(self, Self::UntilClose | Self::Length(0))
    }
}

/// The smaller of what a peer announced and what is there.
fn at_most(announced: u64, there: usize) -> usize {
    usize::try_from(announced).map_or(there, |announced| announced.min(there))
}

impl Chunked {
    const START: Self = Self { at: ChunkedAt::NEXT, besides: 0 };

    fn step(&mut self, input: &[u8]) -> Result<Step, Invalid> {
        for (at, &byte) in input.iter().enumerate() {
            if let ChunkedAt::Data { left } = self.at {
                let length = at_most(left, input.len() - at);
                let left = left - length as u64;
                self.at = if left == 0 { ChunkedAt::DataEnd } else { ChunkedAt::Data { left } };
                return Ok(Step::Data { skip: at, length });
            }
            if self.at == (ChunkedAt::TrailerEnd { empty: true }) && byte == b'\n' {
                return Ok(Step::End { used: at + 1 });
            }
            self.take(byte)?;
        }
        Ok(Step::More { used: input.len() })
    }

    /// Takes a byte that is not data.
    fn take(&mut self, byte: u8) -> Result<(), Invalid> {
        use ChunkedAt::{Data, DataEnd, DataLf, Extension, Size, SizeEnd, Trailer, TrailerEnd};
        self.at = match (self.at, byte) {
            (Size { digits: 16.., .. }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                return invalid("the size of a chunk has too many digits");
            }
            (Size { size, digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                Size { size: size << 4 | u64::from(digit), digits: digits + 1 }
            }
            (Size { digits: 0, .. }, _) => return invalid("a chunk has no size"),
            (Size { size, .. } | Extension { size }, b'\r') => SizeEnd { size },
            (Size { size, .. }, b';' | b' ' | b'\t') => Extension { size },
            (Extension { .. }, b'\n') => return invalid("a chunk's size has a broken line"),
            (Extension { .. }, _) => self.besides()?,
            (SizeEnd { size: 0 }, b'\n') => Trailer { empty: true },
            (SizeEnd { size }, b'\n') => Data { left: size },
            (DataEnd, b'\r') => DataLf,
            (DataLf, b'\n') => ChunkedAt::NEXT,
            (Trailer { empty }, b'\r') => TrailerEnd { empty },
            (Trailer { .. }, b'\n') => return invalid("a trailer has a broken line"),
            (Trailer { .. }, _) => {
                self.besides()?;
                Trailer { empty: false }
            }
            (TrailerEnd { .. }, b'\n') => Trailer { empty: true },
            (Size { .. } | SizeEnd { .. }, _) => {
                return invalid("the size of a chunk is no number");
            }
            (DataEnd | DataLf, _) => return invalid("a chunk is longer than its size"),
            (TrailerEnd { .. }, _) => return invalid("a trailer has a broken line"),
            (Data { .. }, _) => unreachable!("data is not taken byte by byte"),
        };
        Ok(())
    }

    fn besides(&mut self) -> Result<ChunkedAt, Invalid> {
        self.besides += 1;
        if self.besides > MAX_HEAD {
            return invalid(format!("more than {MAX_HEAD} bytes are no data"));
        }
        Ok(self.at)
    }
}

impl ChunkedAt {
    const NEXT: Self = Self::Size { size: 0, digits: 0 };
}

/// For the fuzzer: reads `input` whole and in pieces, and insists on the same answer.
///
/// # Panics
///
/// When the reader breaks its promise.
pub fn fuzz(input: &[u8]) {
    let Some((&seed, input)) = input.split_first() else { return };
    let size = usize::from(seed % 17) + 1;
    assert_eq!(read_all(input, input.len().max(1)), read_all(input, size), "in pieces of {size}");
}

/// Status, data, and the bytes left behind the end, if there was one.
type Read = Result<(u16, Vec<u8>, Option<usize>), Invalid>;

/// Reads an answer that arrives in pieces of `size`, keeping no more than is unused.
fn read_all(input: &[u8], size: usize) -> Read {
    let mut pieces = input.chunks(size);
    let (mut kept, mut arrived) = (Vec::new(), 0);
    let mut answer = None;
    let mut data = Vec::new();
    loop {
        let more = match &mut answer {
            None => match read_head(&kept)? {
                Some(head) => {
                    kept.drain(..head.used);
                    answer = head.answer;
                    false
                }
                None => true,
            },
            Some(Answer { parts, body, .. }) => match body.step(&kept)? {
                Step::Data { skip, length } => {
                    data.extend_from_slice(&kept[skip..skip + length]);
                    kept.drain(..skip + length);
                    false
                }
                Step::End { used } => {
                    let behind = kept.len() - used + input.len() - arrived;
                    return Ok((parts.status.as_u16(), data, Some(behind)));
                }
                Step::More { used } => {
                    kept.drain(..used);
                    true
                }
            },
        };
        if more {
            let Some(piece) = pieces.next() else { break };
            arrived += piece.len();
            kept.extend_from_slice(piece);
        }
    }
    Ok(match answer {
        Some(Answer { parts, body, .. }) => {
            (parts.status.as_u16(), data, body.may_end().then_some(0))
        }
        None => (0, data, None),
    })
}

#[cfg(test)]
mod tests;
