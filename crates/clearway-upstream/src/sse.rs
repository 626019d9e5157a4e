//! Server-sent events, as they come off a socket.
//!
//! [`Decoder::feed`] takes the bytes of one read, [`Decoder::next`] gives the events in them, and an
//! event borrows from those bytes wherever it can. Lines may end in LF, CR or CRLF, events may be
//! cut anywhere, even inside a character.
//!
//! **Invariants:** the events do not depend on how the bytes were cut; memory is bounded by
//! [`Limits`] whatever the peer sends.
//!
//! Not here: what the data means (`codec`), and `id`/`retry`, since a provider's stream cannot be
//! taken up again.

use memchr::{memchr, memchr2};

/// One dispatched event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// The `event` field; empty when there was none.
    pub kind: &'a [u8],
    /// The `data` lines, joined by LF.
    pub data: &'a [u8],
}

/// How much of one event is held.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub line: usize,
    pub event: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { line: 1 << 20, event: 2 << 20 }
    }
}

/// A line or an event is longer than the limit. The decoder stays in this state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event is larger than {limit} bytes")]
pub struct TooLarge {
    pub limit: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Decoder {
    /// What was fed and is not all consumed.
    chunk: Vec<u8>,
    /// Everything before this is consumed.
    at: usize,
    /// The beginning of a line whose end has not arrived.
    cut_line: Vec<u8>,
    /// The last line ended in CR; an LF right behind belongs to it.
    skip_lf: bool,
    event: Assembly,
    broken: Option<TooLarge>,
}

/// The event in progress.
#[derive(Debug, Default)]
struct Assembly {
    limits: Limits,
    kind: Vec<u8>,
    data: Data,
    /// Data that is not in the chunk any more.
    spilled: Vec<u8>,
    /// It was given out; the next line starts another.
    dispatched: bool,
    /// The first line was seen, and with it the byte order mark, if any.
    begun: bool,
    events: u64,
    comments: u64,
    stray: Vec<u8>,
}

/// Where the data of the event in progress is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Data {
    #[default]
    None,
    /// One line, still in the chunk.
    Chunk {
        start: usize,
        end: usize,
    },
    Spilled,
}

/// What a line is, and where its value begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    Blank,
    Comment,
    Data(usize),
    Kind(usize),
    /// `id` or `retry`.
    Unused,
    Stray,
}

impl Decoder {
    pub fn new(limits: Limits) -> Self {
        Self { event: Assembly { limits, ..Assembly::default() }, ..Self::default() }
    }

    /// Takes the next bytes. Usually all events of the bytes before have been taken out by then.
    pub fn feed(&mut self, chunk: &[u8]) {
        if self.at == self.chunk.len() {
            self.event.forget_dispatched();
            self.release();
        }
        // What is there stays, so that positions in it stay right.
        self.chunk.extend_from_slice(chunk);
    }

    /// The next complete event; `None` when more bytes are needed.
    ///
    /// # Errors
    ///
    /// When a line or an event outgrows the limits.
    #[expect(clippy::should_implement_trait, reason = "it lends, so it cannot be an iterator")]
    pub fn next(&mut self) -> Result<Option<Event<'_>>, TooLarge> {
        if let Some(broken) = self.broken {
            return Err(broken);
        }
        self.event.forget_dispatched();
        match self.advance() {
            Ok(true) => Ok(Some(self.event.dispatch(&self.chunk))),
            Ok(false) => {
                self.release();
                Ok(None)
            }
            Err(broken) => {
                self.broken = Some(broken);
                Err(broken)
            }
        }
    }

    /// Forgets a consumed chunk, and most of the room of a large one.
    fn release(&mut self) {
        self.event.spill(&self.chunk);
        self.chunk.clear();
        self.chunk.shrink_to(ROOM);
        self.at = 0;
    }

    /// The event that the end of the bytes left unfinished, as if a blank line had followed.
    /// Servers that forget the last blank line are understood that way; whether what is there is
    /// whole is for the reader of the data to judge.
    ///
    /// # Errors
    ///
    /// Like [`Decoder::next`].
    pub fn finish(&mut self) -> Result<Option<Event<'_>>, TooLarge> {
        self.feed(b"\n\n");
        self.next()
    }

    /// How many comments there were; they prove that the peer lives and nothing else.
    pub const fn comments(&self) -> u64 {
        self.event.comments
    }

    /// The first lines that are no event stream at all, when no event came before them: a provider
    /// that answers with something else, such as a JSON error, is recognised by them.
    pub fn stray(&self) -> &[u8] {
        &self.event.stray
    }

    /// Consumes lines up to the one that completes an event, or all there are.
    fn advance(&mut self) -> Result<bool, TooLarge> {
        while let Some(&first) = self.chunk.get(self.at) {
            if std::mem::take(&mut self.skip_lf) && first == b'\n' {
                self.at += 1;
                continue;
            }
            let start = self.at;
            let rest = &self.chunk[start..];
            let found = memchr2(b'\n', b'\r', rest);
            let length = found.unwrap_or(rest.len());
            if self.cut_line.len() + length > self.event.limits.line {
                return Err(TooLarge { limit: self.event.limits.line });
            }
            if found.is_none() {
                self.cut_line.extend_from_slice(rest);
                self.at = self.chunk.len();
                break;
            }
            self.skip_lf = rest[length] == b'\r';
            self.at += length + 1;
            let complete = if self.cut_line.is_empty() {
                let line = &self.chunk[start..start + length];
                self.event.take_line(line, Some(start), &self.chunk)?
            } else {
                self.cut_line.extend_from_slice(&self.chunk[start..start + length]);
                let complete = self.event.take_line(&self.cut_line, None, &self.chunk)?;
                self.cut_line.clear();
                complete
            };
            if complete {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Assembly {
    /// Takes a whole line, which begins at `start` of the chunk unless it was cut. Whether it
    /// completes the event.
    fn take_line(
        &mut self,
        line: &[u8],
        start: Option<usize>,
        chunk: &[u8],
    ) -> Result<bool, TooLarge> {
        let mark = if !self.begun && line.starts_with(BYTE_ORDER_MARK) {
            BYTE_ORDER_MARK.len()
        } else {
            0
        };
        self.begun = true;
        let line = &line[mark..];
        match read_line(line) {
            Line::Blank if self.data == Data::None => self.kind.clear(),
            Line::Blank => return Ok(true),
            Line::Comment => self.comments += 1,
            Line::Data(value) => {
                let value_start = start.map(|start| start + mark + value);
                self.take_data(&line[value..], value_start, chunk)?;
            }
            Line::Kind(value) => {
                self.kind.clear();
                self.kind.extend_from_slice(&line[value..]);
            }
            Line::Unused => {}
            Line::Stray => {
                let room = MAX_STRAY - self.stray.len();
                if self.events == 0 && room > 0 {
                    self.stray.extend_from_slice(&line[..line.len().min(room - 1)]);
                    self.stray.push(b'\n');
                }
            }
        }
        Ok(false)
    }

    fn take_data(
        &mut self,
        value: &[u8],
        start: Option<usize>,
        chunk: &[u8],
    ) -> Result<(), TooLarge> {
        let before = match self.data {
            Data::None => 0,
            Data::Chunk { start, end } => end - start + 1,
            Data::Spilled => self.spilled.len() + 1,
        };
        if before + value.len() > self.limits.event {
            return Err(TooLarge { limit: self.limits.event });
        }
        if let (Data::None, Some(start)) = (self.data, start) {
            self.data = Data::Chunk { start, end: start + value.len() };
            return Ok(());
        }
        self.spill(chunk);
        if self.data == Data::Spilled {
            self.spilled.push(b'\n');
        }
        self.data = Data::Spilled;
        self.spilled.extend_from_slice(value);
        Ok(())
    }

    /// Copies data out of the chunk, which goes away or gets company.
    fn spill(&mut self, chunk: &[u8]) {
        if let Data::Chunk { start, end } = self.data {
            self.spilled.extend_from_slice(&chunk[start..end]);
            self.data = Data::Spilled;
        }
    }

    fn dispatch<'a>(&'a mut self, chunk: &'a [u8]) -> Event<'a> {
        self.dispatched = true;
        self.events += 1;
        let data = match self.data {
            Data::None => &[],
            Data::Chunk { start, end } => &chunk[start..end],
            Data::Spilled => &self.spilled[..],
        };
        Event { kind: &self.kind, data }
    }

    fn forget_dispatched(&mut self) {
        if std::mem::take(&mut self.dispatched) {
            self.kind.clear();
            self.spilled.clear();
            self.data = Data::None;
        }
    }
}

fn read_line(line: &[u8]) -> Line {
    // Nearly every line of a provider's stream is one of these two.
    if let Some(value) = line.strip_prefix(b"data:") {
        return Line::Data(5 + usize::from(value.first() == Some(&b' ')));
    }
    if line.is_empty() {
        return Line::Blank;
    }
    let (name, value) = match memchr(b':', line) {
        Some(0) => return Line::Comment,
        Some(colon) => {
            let space = usize::from(line.get(colon + 1) == Some(&b' '));
            (&line[..colon], colon + 1 + space)
        }
        None => (line, line.len()),
    };
    match name {
        b"data" => Line::Data(value),
        b"event" => Line::Kind(value),
        b"id" | b"retry" => Line::Unused,
        _ => Line::Stray,
    }
}

/// For the fuzzer: cuts `data` in two ways and insists on the same events.
///
/// # Panics
///
/// When the decoder breaks its promise.
pub fn fuzz(data: &[u8]) {
    let Some((&seed, stream)) = data.split_first() else { return };
    let limits = Limits { line: 64, event: 96 };
    let whole = decode_all(limits, [stream]);
    let size = usize::from(seed % 17) + 1;
    assert_eq!(decode_all(limits, stream.chunks(size)), whole, "cut into pieces of {size}");
}

/// All events of a stream, owned, for tests and the fuzzer.
fn decode_all<'a>(limits: Limits, chunks: impl IntoIterator<Item = &'a [u8]>) -> Decoded {
    let mut decoder = Decoder::new(limits);
    let mut events = Vec::new();
    let mut failed = false;
    for chunk in chunks {
        decoder.feed(chunk);
        failed |= take_all(&mut decoder, &mut events).is_err();
    }
    if !failed {
        failed = match decoder.finish() {
            Ok(Some(event)) => {
                events.push((event.kind.to_vec(), event.data.to_vec()));
                false
            }
            Ok(None) => false,
            Err(TooLarge { .. }) => true,
        };
    }
    Decoded { events, comments: decoder.comments(), stray: decoder.stray().to_vec(), failed }
}

fn take_all(decoder: &mut Decoder, events: &mut Vec<(Vec<u8>, Vec<u8>)>) -> Result<(), TooLarge> {
    while let Some(event) = decoder.next()? {
        events.push((event.kind.to_vec(), event.data.to_vec()));
    }
    Ok(())
}

/// Everything a stream decodes to.
#[derive(Debug, PartialEq, Eq)]
struct Decoded {
    events: Vec<(Vec<u8>, Vec<u8>)>,
    comments: u64,
    stray: Vec<u8>,
    failed: bool,
}

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Bytes of chunks for which room is kept.
const ROOM: usize = 4096;

/// Enough for an error message in JSON or the head of an HTML page.
const MAX_STRAY: usize = 4096;

#[cfg(test)]
mod tests;
