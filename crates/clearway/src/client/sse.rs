//! Server-sent events, as our own servers write them.

use std::collections::VecDeque;

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerEvent {
    /// Pass it on to go on behind this event.
    pub id: Option<String>,
    pub name: String,
    pub data: String,
}

/// The longest line or event.
const MOST_BYTES: usize = 16 << 20;

/// Puts events together from pieces of bytes.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    line: Vec<u8>,
    event: ServerEvent,
    has_data: bool,
    ready: VecDeque<ServerEvent>,
}

impl Decoder {
    /// Takes the next bytes; an error when an event grows beyond all bounds.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<(), ()> {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.line.extend_from_slice(&rest[..end]);
            rest = &rest[end + 1..];
            let line = std::mem::take(&mut self.line);
            self.take_line(String::from_utf8_lossy(&line).trim_end_matches('\r'));
        }
        self.line.extend_from_slice(rest);
        if self.line.len() + self.event.data.len() > MOST_BYTES { Err(()) } else { Ok(()) }
    }

    pub(super) fn next(&mut self) -> Option<ServerEvent> {
        self.ready.pop_front()
    }

    fn take_line(&mut self, line: &str) {
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            if std::mem::take(&mut self.has_data) {
                self.ready.push_back(event);
            }
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => self.event.id = Some(value.to_owned()),
            "event" => value.clone_into(&mut self.event.name),
            "data" => {
                if self.has_data {
                    self.event.data.push('\n');
                }
                self.has_data = true;
                self.event.data.push_str(value);
            }
            // Comments are heartbeats; other fields mean nothing to us.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(pieces: &[&str]) -> Vec<ServerEvent> {
        let mut decoder = Decoder::default();
        let mut events = Vec::new();
        for piece in pieces {
            decoder.feed(piece.as_bytes()).unwrap();
            events.extend(std::iter::from_fn(|| decoder.next()));
        }
        events
    }

    #[test]
    fn events_arrive_in_any_pieces() {
        let text = ": hello\n\nid: 3-256\nevent: delta\ndata: {\"a\"\ndata: :1}\n\r\n: beat\n\ndata:x\n\ndata: cut";
        let whole = decode(&[text]);
        let event = |id: Option<&str>, name: &str, data: &str| ServerEvent {
            id: id.map(ToOwned::to_owned),
            name: name.to_owned(),
            data: data.to_owned(),
        };
        assert_eq!(whole, [event(Some("3-256"), "delta", "{\"a\"\n:1}"), event(None, "", "x")]);
        let pieces: Vec<String> = text.chars().map(String::from).collect();
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        assert_eq!(decode(&pieces), whole);
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut decoder = Decoder::default();
        let piece = vec![b'x'; 1 << 20];
        assert!((0..17).any(|_| decoder.feed(&piece).is_err()));
    }
}
