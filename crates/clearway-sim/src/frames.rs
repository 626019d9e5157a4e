//! The frames of a streamed reply, byte for byte: events or lines, cut into chunks as the wire wants.
//!
//! What a token's frame consists of, apart from its text, is written once per part of a reply. A token then costs two
//! copies and the escaping of its text; there is no JSON library and no allocation on that path. What the frames say
//! is not here but in `dialect`.

use crate::dialect::{Event, NUMBER, Syntax, TEXT};
use crate::http::{LAST_CHUNK, push_chunk, push_chunk_size};
use crate::reply::Pieces;

/// How events look on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wire {
    pub(crate) eol: Eol,
    pub(crate) bom: bool,
    /// Each event's JSON is spread over several `data` lines.
    pub(crate) multi_line: bool,
    pub(crate) fragments: Fragments,
    /// Without chunks: the body ends with the connection.
    pub(crate) close_delimited: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Eol {
    #[default]
    Lf,
    CrLf,
    Cr,
    /// Another one for each event.
    Mixed,
}

/// Where events are cut into chunks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fragments {
    /// One chunk per event.
    #[default]
    Whole,
    /// One chunk per byte.
    Bytes,
    /// Within each character of several bytes.
    HalfCharacters,
}

/// Writes the frames of one reply.
#[derive(Debug)]
pub(crate) struct Frames {
    wire: Wire,
    syntax: Syntax,
    /// Events written, comments not counted.
    events: usize,
    token: Option<Template>,
    raw: String,
    scratch: Vec<u8>,
}

/// The frame of a token without its text.
#[derive(Debug)]
struct Template {
    head: Vec<u8>,
    tail: Vec<u8>,
    /// What follows the event's number, in dialects that number their events.
    after_number: Option<Vec<u8>>,
}

impl Frames {
    pub(crate) fn new(wire: Wire, syntax: Syntax) -> Self {
        Self { wire, syntax, events: 0, token: None, raw: String::new(), scratch: Vec::new() }
    }

    /// What comes before the first event.
    pub(crate) fn begin(&mut self, out: &mut Vec<u8>) {
        if self.wire.bom {
            self.emit(out, b"\xEF\xBB\xBF");
        }
    }

    /// From now on tokens look like this event, which holds the mark of a text. Without one they are not told.
    pub(crate) fn tokens_look_like(&mut self, event: Option<&Event>) {
        self.token = event.map(|event| {
            let frame = self.layout(event);
            let (head, tail) = frame.split_once(TEXT).unwrap_or((&frame, ""));
            let (tail, after) = match tail.split_once(NUMBER) {
                Some((tail, after)) => (tail, Some(after.as_bytes().to_vec())),
                None => (tail, None),
            };
            Template { head: head.into(), tail: tail.into(), after_number: after }
        });
    }

    /// The event of one piece of the reply.
    pub(crate) fn token(&mut self, out: &mut Vec<u8>, pieces: &Pieces, index: u32) {
        let Some(template) = &self.token else { return };
        self.raw.clear();
        pieces.append(index, &mut self.raw);
        self.scratch.clear();
        escape(&self.raw, &mut self.scratch);
        self.scratch.extend_from_slice(&template.tail);
        if let Some(after) = &template.after_number {
            self.scratch.extend_from_slice(self.events.to_string().as_bytes());
            self.scratch.extend_from_slice(after);
        }
        self.events += 1;
        if self.wire == Wire::default() {
            // The ordinary case, without an intermediate copy.
            push_chunk_size(out, template.head.len() + self.scratch.len());
            out.extend_from_slice(&template.head);
            out.extend_from_slice(&self.scratch);
            out.extend_from_slice(b"\r\n");
            return;
        }
        let frame = [&template.head[..], &self.scratch].concat();
        self.emit_frame(out, &frame);
    }

    /// What stands before and after the text in the event of a token.
    pub(crate) fn around_text(&mut self) -> (Vec<u8>, Vec<u8>) {
        let number = self.events.to_string();
        self.events += 1;
        self.token.as_ref().map_or_else(Default::default, |template| {
            let after = template.after_number.as_ref();
            let after = after.map(|after| [number.as_bytes(), after].concat());
            (template.head.clone(), [&template.tail[..], &after.unwrap_or_default()].concat())
        })
    }

    pub(crate) fn events(&mut self, out: &mut Vec<u8>, events: &[Event]) {
        for event in events {
            self.event(out, event);
        }
    }

    pub(crate) fn event(&mut self, out: &mut Vec<u8>, event: &Event) {
        let frame = self.layout(event).replace(NUMBER, &self.events.to_string());
        self.events += 1;
        self.emit_frame(out, frame.as_bytes());
    }

    /// A sign of life that says nothing: a comment, or where there are none, an empty line.
    pub(crate) fn comment(&self, out: &mut Vec<u8>, text: &str) {
        match self.syntax {
            Syntax::Events => self.emit_frame(out, format!(": {text}\n\n").as_bytes()),
            Syntax::Lines => self.emit_frame(out, b"\n"),
        }
    }

    /// The regular end of the body.
    pub(crate) fn last_chunk(&self, out: &mut Vec<u8>) {
        if !self.wire.close_delimited {
            out.extend_from_slice(LAST_CHUNK);
        }
    }

    /// Bytes of the body, cut into chunks as the wire wants.
    pub(crate) fn emit(&self, out: &mut Vec<u8>, bytes: &[u8]) {
        push_body(out, bytes, self.wire.fragments, self.wire.close_delimited);
    }

    fn emit_frame(&self, out: &mut Vec<u8>, frame: &[u8]) {
        let eol = match self.wire.eol {
            Eol::Lf => return self.emit(out, frame),
            Eol::CrLf => "\r\n",
            Eol::Cr => "\r",
            Eol::Mixed => ["\n", "\r\n", "\r"][self.events % 3],
        };
        // Frames hold LF only as line ends: inside JSON strings it is escaped.
        let mut bytes = Vec::with_capacity(frame.len() + 8);
        for &byte in frame {
            if byte == b'\n' {
                bytes.extend_from_slice(eol.as_bytes());
            } else {
                bytes.push(byte);
            }
        }
        self.emit(out, &bytes);
    }

    /// The event's lines, with the marks for text and number still in them.
    fn layout(&self, event: &Event) -> String {
        match self.syntax {
            Syntax::Lines => event.data.replace(GAP, "") + "\n",
            Syntax::Events => {
                let gap = if self.wire.multi_line { "\ndata: " } else { "" };
                let name = event.name.map(|name| format!("event: {name}\n")).unwrap_or_default();
                format!("{name}data: {}\n\n", event.data.replace(GAP, gap))
            }
        }
    }
}

/// Stands in an event's JSON where a line may break: between two members. No JSON holds this byte unescaped.
pub(crate) const GAP: &str = "\u{1}";

/// Writes bytes of a body, in chunks unless it is delimited by the end of the connection.
pub(crate) fn push_body(
    out: &mut Vec<u8>,
    bytes: &[u8],
    fragments: Fragments,
    close_delimited: bool,
) {
    if close_delimited {
        return out.extend_from_slice(bytes);
    }
    match fragments {
        Fragments::Whole => push_chunk(out, bytes),
        Fragments::Bytes => {
            bytes.iter().for_each(|byte| push_chunk(out, std::slice::from_ref(byte)))
        }
        Fragments::HalfCharacters => {
            let mut start = 0;
            for (at, byte) in bytes.iter().enumerate() {
                // After the first byte of a character that has more.
                if *byte >= 0xC0 {
                    push_chunk(out, &bytes[start..=at]);
                    start = at + 1;
                }
            }
            push_chunk(out, &bytes[start..]);
        }
    }
}

/// Writes `text` as the inside of a JSON string.
pub(crate) fn escape(text: &str, out: &mut Vec<u8>) {
    let bytes = text.as_bytes();
    let mut start = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&bytes[start..at]);
        start = at + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
        }
    }
    out.extend_from_slice(&bytes[start..]);
}

#[cfg(test)]
mod tests;
