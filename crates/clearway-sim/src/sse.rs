//! The frames of a streamed reply, byte for byte.
//!
//! What a token's frame consists of, apart from its text, is written once per reply. A token then costs two copies
//! and the escaping of its text; there is no JSON library and no allocation on that path.

use crate::chat::Chat;
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

/// Who answers: what every frame of a reply repeats.
#[derive(Debug)]
pub(crate) struct Signature {
    pub(crate) id: String,
    pub(crate) created: u64,
}

pub(crate) const FINGERPRINT: &str = "fp_clearway_sim";

/// Writes the frames of one reply.
#[derive(Debug)]
pub(crate) struct Frames {
    wire: Wire,
    events: usize,
    /// The members before `choices`, each followed by a comma.
    preamble: String,
    /// What follows `choices` in each event.
    postamble: &'static str,
    token_head: Vec<u8>,
    token_tail: Vec<u8>,
    raw: String,
    scratch: Vec<u8>,
}

impl Frames {
    pub(crate) fn new(wire: Wire, signature: &Signature, chat: &Chat) -> Self {
        // Between two members, where a multi-line event may break its line.
        let gap = if wire.multi_line { GAP } else { "" };
        let Signature { id, created } = signature;
        let model = serde_json::Value::from(chat.model.name.as_str());
        let preamble = format!(
            "\"id\":\"{id}\",{gap}\"object\":\"chat.completion.chunk\",{gap}\"created\":{created},\
             {gap}\"model\":{model},{gap}\"system_fingerprint\":\"{FINGERPRINT}\",{gap}"
        );
        // Providers that were asked for usage say `null` in every event but the one that has it.
        let postamble = if chat.include_usage { ",\"usage\":null}" } else { "}" };
        let mut frames = Self {
            wire,
            events: 0,
            preamble,
            postamble,
            token_head: Vec::new(),
            token_tail: Vec::new(),
            raw: String::new(),
            scratch: Vec::new(),
        };
        let mark = "\u{0}";
        let template = frames.choice_json(&format!("{{\"content\":\"{mark}\"}}"), None);
        let (head, tail) = template.split_once(mark).expect("the mark was just put there");
        frames.token_head = frames.data_line(head);
        frames.token_tail = continue_lines(tail).into_bytes();
        frames
    }

    /// What comes before the first event.
    pub(crate) fn begin(&mut self, out: &mut Vec<u8>) {
        if self.wire.bom {
            self.emit(out, b"\xEF\xBB\xBF");
        }
    }

    pub(crate) fn role(&mut self, out: &mut Vec<u8>) {
        self.delta(out, r#"{"role":"assistant","content":"","refusal":null}"#);
    }

    /// A delta given as JSON.
    pub(crate) fn delta(&mut self, out: &mut Vec<u8>, delta: &str) {
        let json = self.choice_json(delta, None);
        self.event(out, &json);
    }

    /// The event of one piece of the reply.
    pub(crate) fn token(&mut self, out: &mut Vec<u8>, pieces: &Pieces, index: u32) {
        self.raw.clear();
        pieces.append(index, &mut self.raw);
        let eol = self.next_eol();
        if self.wire == Wire::default() {
            // The ordinary case, without an intermediate copy.
            self.scratch.clear();
            escape(&self.raw, &mut self.scratch);
            push_chunk_size(
                out,
                self.token_head.len() + self.scratch.len() + self.token_tail.len() + 2,
            );
            out.extend_from_slice(&self.token_head);
            out.extend_from_slice(&self.scratch);
            out.extend_from_slice(&self.token_tail);
            out.extend_from_slice(b"\n\n\r\n");
            return;
        }
        let mut event = self.token_head.clone();
        escape(&self.raw, &mut event);
        event.extend_from_slice(&self.token_tail);
        event.extend_from_slice(b"\n\n");
        self.emit_event(out, &event, eol);
    }

    /// What stands before and after the text in the event of a token.
    pub(crate) fn around_text(&self) -> (Vec<u8>, Vec<u8>) {
        (self.token_head.clone(), [&self.token_tail, &b"\n\n"[..]].concat())
    }

    pub(crate) fn finish(&mut self, out: &mut Vec<u8>, reason: &str) {
        let json = self.choice_json("{}", Some(reason));
        self.event(out, &json);
    }

    /// The event that has no choices but the usage.
    pub(crate) fn usage(&mut self, out: &mut Vec<u8>, usage: &str) {
        let json = format!("{{{}\"choices\":[],\"usage\":{usage}}}", self.preamble);
        self.event(out, &json);
    }

    /// An event as a provider sends that has nothing to say.
    pub(crate) fn no_choices(&mut self, out: &mut Vec<u8>) {
        let json = format!("{{{}\"choices\":[]{}", self.preamble, self.postamble);
        self.event(out, &json);
    }

    pub(crate) fn done(&mut self, out: &mut Vec<u8>) {
        self.event(out, "[DONE]");
    }

    pub(crate) fn comment(&mut self, out: &mut Vec<u8>, text: &str) {
        let eol = self.next_eol();
        self.emit_event(out, format!(": {text}\n\n").as_bytes(), eol);
    }

    /// An event with any payload of one line.
    pub(crate) fn event(&mut self, out: &mut Vec<u8>, payload: &str) {
        let mut event = self.data_line(payload);
        event.extend_from_slice(b"\n\n");
        let eol = self.next_eol();
        self.emit_event(out, &event, eol);
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

    fn emit_event(&self, out: &mut Vec<u8>, event: &[u8], eol: &str) {
        if eol == "\n" {
            return self.emit(out, event);
        }
        // Events hold LF only as line ends: inside JSON strings it is escaped.
        let mut bytes = Vec::with_capacity(event.len() + 8);
        for &byte in event {
            if byte == b'\n' {
                bytes.extend_from_slice(eol.as_bytes());
            } else {
                bytes.push(byte);
            }
        }
        self.emit(out, &bytes);
    }

    fn next_eol(&mut self) -> &'static str {
        self.events += 1;
        match self.wire.eol {
            Eol::Lf => "\n",
            Eol::CrLf => "\r\n",
            Eol::Cr => "\r",
            Eol::Mixed => ["\n", "\r\n", "\r"][self.events % 3],
        }
    }

    fn choice_json(&self, delta: &str, reason: Option<&str>) -> String {
        let reason = reason.map_or("null".to_owned(), |reason| format!("\"{reason}\""));
        let Self { preamble, postamble, .. } = self;
        format!(
            "{{{preamble}\"choices\":[{{\"index\":0,\"delta\":{delta},\"logprobs\":null,\"finish_reason\":{reason}}}]{postamble}"
        )
    }

    fn data_line(&self, payload: &str) -> Vec<u8> {
        format!("data: {}", continue_lines(payload)).into_bytes()
    }
}

/// Stands in JSON texts for a line break between two members. No JSON holds this byte unescaped.
const GAP: &str = "\u{1}";

fn continue_lines(json: &str) -> String {
    json.replace(GAP, "\ndata: ")
}

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
