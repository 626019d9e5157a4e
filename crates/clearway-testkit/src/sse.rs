//! Server-sent events, read strictly: what a browser would quietly repair is an error here.

use anyhow::{Result, bail, ensure};
use serde_json::Value;

/// One event as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    pub id: Option<String>,
    pub name: Option<String>,
    pub data: String,
}

impl Event {
    /// The data as JSON; null when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_default()
    }

    /// The member `type` of the data: how the chat dialects tell their events apart.
    pub fn kind(&self) -> String {
        self.json()["type"].as_str().unwrap_or_default().to_owned()
    }

    /// The number of the run's event that this one shows: its id is `<seq>-<number>`.
    ///
    /// # Errors
    /// There is no id, or it has another shape.
    pub fn seq(&self) -> Result<u64> {
        let Some(id) = &self.id else { bail!("an event without an id: {self:?}") };
        let Some((seq, rest)) = id.split_once('-') else {
            bail!("an event id without a dash: {id}")
        };
        ensure!(rest.parse::<u64>().is_ok(), "an event id that does not end in a number: {id}");
        Ok(seq.parse()?)
    }
}

/// Cuts a body into events.
#[derive(Debug, Default)]
pub struct Parser {
    rest: Vec<u8>,
    event: Event,
    has_data: bool,
    /// Comments seen: the heartbeat.
    pub comments: u64,
}

impl Parser {
    pub fn push(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
    }

    /// The next whole event, if one is there.
    ///
    /// # Errors
    /// A line is no field, or not UTF-8.
    pub fn take(&mut self) -> Result<Option<Event>> {
        while let Some(end) = self.rest.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = std::str::from_utf8(&line[..end])?.trim_end_matches('\r');
            if line.is_empty() {
                if std::mem::take(&mut self.has_data) {
                    return Ok(Some(std::mem::take(&mut self.event)));
                }
                continue;
            }
            if line.starts_with(':') {
                self.comments += 1;
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "id" => self.event.id = Some(value.to_owned()),
                "event" => self.event.name = Some(value.to_owned()),
                "data" => {
                    if std::mem::replace(&mut self.has_data, true) {
                        self.event.data.push('\n');
                    }
                    self.event.data.push_str(value);
                }
                "retry" => {}
                _ => bail!("not a field of a server-sent event: {line:?}"),
            }
        }
        Ok(None)
    }

    /// Whether the body ended in the middle of an event.
    pub fn is_torn(&self) -> bool {
        self.has_data || !self.rest.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_out_whole_however_they_arrive() {
        let body = b": beat\n\nid: 7-256\nevent: x\ndata: {\"type\":\"delta\"}\ndata: 2\n\ndata: last\r\n\r\ndata: torn";
        for size in [1, 3, 1000] {
            let mut parser = Parser::default();
            let mut events = Vec::new();
            for part in body.chunks(size) {
                parser.push(part);
                while let Some(event) = parser.take().unwrap() {
                    events.push(event);
                }
            }
            assert_eq!(events.len(), 2);
            assert_eq!(events[0].seq().unwrap(), 7);
            assert_eq!(events[0].name.as_deref(), Some("x"));
            assert_eq!(events[0].data, "{\"type\":\"delta\"}\n2");
            assert_eq!(events[1].data, "last");
            assert!(events[1].seq().is_err());
            assert_eq!(parser.comments, 1);
            assert!(parser.is_torn());
        }
        let mut parser = Parser::default();
        parser.push(b"<html>\n");
        assert!(parser.take().is_err());
    }
}
