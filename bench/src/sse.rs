//! Server-sent events, and the two ways in which a token looks in one.
//!
//! Both servers under test end events with `\n\n`; anything else is no event here and so fails the check of the
//! stream's content. A token's text is cut out of its JSON by searching for the member, because parsing it would cost
//! the rig more than the server spends on it; text with an escape in it takes the slow way.

use std::borrow::Cow;

use anyhow::{Context as _, Result};
use memchr::memmem;
use serde_json::Value;

/// A body that is cut into events as it comes.
#[derive(Debug, Default)]
pub(crate) struct Events {
    /// Bytes of the body; filled by the connection.
    pub(crate) bytes: Vec<u8>,
    start: usize,
}

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event<'a> {
    pub(crate) id: Option<&'a str>,
    pub(crate) name: Option<&'a str>,
    pub(crate) data: &'a str,
}

impl Events {
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.start = 0;
    }

    /// The next whole event that has data; comments are passed over.
    pub(crate) fn next(&mut self) -> Result<Option<Event<'_>>> {
        let (from, to) = loop {
            let rest = &self.bytes[self.start..];
            let Some(length) = memmem::find(rest, b"\n\n") else {
                self.bytes.drain(..self.start);
                self.start = 0;
                return Ok(None);
            };
            let from = self.start;
            self.start += length + 2;
            if memmem::find(&rest[..length], b"data:").is_some() {
                break (from, from + length);
            }
        };
        let text =
            std::str::from_utf8(&self.bytes[from..to]).context("an event that is not UTF-8")?;
        let mut event = Event { id: None, name: None, data: "" };
        for line in text.lines() {
            let Some((field, value)) = line.split_once(':') else { continue };
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "data" => event.data = value,
                "id" => event.id = Some(value),
                "event" => event.name = Some(value),
                _ => {}
            }
        }
        Ok(Some(event))
    }

    /// Whether the body ended inside an event.
    pub(crate) fn has_remainder(&self) -> bool {
        self.bytes.len() > self.start
    }
}

/// Whose events they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// Chat completions of a provider.
    OpenAi,
    /// The co-founder's `/chat/stream`.
    Chat,
}

/// What an event means to a reader.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Meaning<'a> {
    Token(Cow<'a, str>),
    /// The whole reply.
    Final(String),
    /// The stream says that it is over.
    Done,
    Error(String),
    /// Progress, roles, usage.
    Other,
}

impl Dialect {
    pub(crate) fn meaning(self, data: &str) -> Result<Meaning<'_>> {
        match self {
            Self::OpenAi => openai(data),
            Self::Chat => chat(data),
        }
    }
}

fn openai(data: &str) -> Result<Meaning<'_>> {
    if data == "[DONE]" {
        return Ok(Meaning::Done);
    }
    if let Some(text) = member(data, "\"delta\":{\"content\":\"") {
        return Ok(Meaning::Token(text?));
    }
    let json: Value = serde_json::from_str(data).context("an event that is not JSON")?;
    match json.get("error") {
        Some(error) => Ok(Meaning::Error(error.to_string())),
        None => Ok(Meaning::Other),
    }
}

fn chat(data: &str) -> Result<Meaning<'_>> {
    if memmem::find(data.as_bytes(), b"\"type\":\"delta\"").is_some()
        && let Some(text) = member(data, "\"text\":\"")
    {
        return Ok(Meaning::Token(text?));
    }
    let json: Value = serde_json::from_str(data).context("an event that is not JSON")?;
    let text = || json["text"].as_str().map(ToOwned::to_owned).context("`text` is missing");
    Ok(match json["type"].as_str() {
        Some("delta") => Meaning::Token(Cow::Owned(text()?)),
        Some("final") => Meaning::Final(text()?),
        Some("error") => Meaning::Error(json["detail"].to_string()),
        _ => Meaning::Other,
    })
}

/// The text that follows `opening`, up to its closing quote.
fn member<'a>(data: &'a str, opening: &str) -> Option<Result<Cow<'a, str>>> {
    let start = memmem::find(data.as_bytes(), opening.as_bytes())? + opening.len();
    let rest = &data[start..];
    let end = memchr::memchr2(b'"', b'\\', rest.as_bytes())?;
    if rest.as_bytes()[end] == b'"' {
        return Some(Ok(Cow::Borrowed(&rest[..end])));
    }
    // Serde reads one value and would complain about what follows; the stream deserializer does not.
    let mut values = serde_json::Deserializer::from_str(&data[start - 1..]).into_iter::<String>();
    Some(values.next()?.map(Cow::Owned).context("a broken JSON string"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_whole_whatever_the_pieces() {
        let wire = b": hello\n\nid: 1-256\ndata: {\"a\":1}\n\nevent: x\ndata:2\n\n";
        for step in 1..=wire.len() {
            let mut events = Events::default();
            let mut seen = Vec::new();
            for piece in wire.chunks(step) {
                events.bytes.extend_from_slice(piece);
                while let Some(event) = events.next().unwrap() {
                    seen.push(format!("{:?} {:?} {}", event.id, event.name, event.data));
                }
            }
            assert_eq!(seen, ["Some(\"1-256\") None {\"a\":1}", "None Some(\"x\") 2"], "{step}");
            assert!(!events.has_remainder());
        }
    }

    #[test]
    fn tokens_of_a_provider() {
        let token = |data| Dialect::OpenAi.meaning(data).unwrap();
        let plain =
            r#"{"id":"x","choices":[{"index":0,"delta":{"content":" tok7"},"logprobs":null}]}"#;
        assert_eq!(token(plain), Meaning::Token(" tok7".into()));
        let escaped = r#"{"choices":[{"delta":{"content":"a\"b\n"},"finish_reason":null}]}"#;
        assert_eq!(token(escaped), Meaning::Token("a\"b\n".into()));
        assert_eq!(token("[DONE]"), Meaning::Done);
        let role = r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#;
        assert_eq!(token(role), Meaning::Other);
        assert!(matches!(token(r#"{"error":{"message":"no"}}"#), Meaning::Error(_)));
    }

    #[test]
    fn tokens_of_a_chat() {
        let meaning = |data| Dialect::Chat.meaning(data).unwrap();
        assert_eq!(meaning(r#"{"type":"delta","text":" a"}"#), Meaning::Token(" a".into()));
        assert_eq!(meaning(r#"{"text":"\u00e9","type":"delta"}"#), Meaning::Token("é".into()));
        assert_eq!(meaning(r#"{"type": "delta", "text": "b"}"#), Meaning::Token("b".into()));
        assert_eq!(meaning(r#"{"type":"final","text":"a b"}"#), Meaning::Final("a b".into()));
        assert_eq!(meaning(r#"{"type":"progress","message":"x"}"#), Meaning::Other);
        assert_eq!(
            meaning(r#"{"type":"error","detail":{"a":1}}"#),
            Meaning::Error("{\"a\":1}".into())
        );
    }
}
