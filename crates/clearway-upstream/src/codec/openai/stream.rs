//! Streamed chunks.
//!
//! A chunk is compared with the one before it (`template`) or read into borrowed structures: no
//! tree, and one small string per piece of output. Anything unusual (usage, errors) is kept raw and
//! read when it is there.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::codec::failure::{Rejection, Secrets};
use crate::codec::{ChatEvent, Fault, FinishReason, Progress, Step, Usage};
use crate::sse;

use template::Template;

mod template;

/// Reads the events of one streamed answer and knows whether it is whole.
#[derive(Debug, Default)]
pub struct Reader {
    pub(in crate::codec) progress: Progress,
    template: Template,
}

impl Reader {
    /// Takes one event; what it adds to the answer goes to `out`.
    ///
    /// # Errors
    ///
    /// See [`Fault`].
    pub fn take(
        &mut self,
        event: sse::Event<'_>,
        secrets: Secrets<'_>,
        out: &mut VecDeque<ChatEvent>,
    ) -> Result<Step, Fault> {
        let data = event.data.trim_ascii();
        if self.progress.complete || data.is_empty() {
            return Ok(Step::Nothing);
        }
        if data == b"[DONE]" {
            // Without any sign of an answer it is only the end of a stream.
            self.progress.complete = self.progress.output || self.progress.reason.is_some();
            return Ok(if self.progress.complete { Step::Complete } else { Step::Nothing });
        }
        match event.kind {
            b"error" => return Err(Fault::Rejected(Rejection::in_band(data, secrets))),
            b"ping" | b"keepalive" | b"heartbeat" => return Ok(Step::Nothing),
            _ => {}
        }
        if let Some((text, thinking)) = self.template.text(data) {
            let event = if thinking { ChatEvent::Reasoning } else { ChatEvent::Text };
            out.push_back(event(text.to_owned()));
            self.template.praise();
            self.progress.output = true;
            return Ok(Step::Output);
        }
        self.parse(data, secrets, out)
    }

    fn parse(
        &mut self,
        data: &[u8],
        secrets: Secrets<'_>,
        out: &mut VecDeque<ChatEvent>,
    ) -> Result<Step, Fault> {
        // Parsers quote what they did not expect.
        let malformed = |error: &dyn fmt::Display| {
            Fault::Malformed(secrets.scrub(&format!("an event is no JSON chunk: {error}")))
        };
        // Once for the whole chunk is much cheaper than for each string in it.
        let text = std::str::from_utf8(data).map_err(|error| malformed(&error))?;
        let chunk: Chunk<'_> = serde_json::from_str(text).map_err(|error| malformed(&error))?;
        if chunk.error.is_some() || (chunk.choices.is_none() && is_error(data)) {
            return Err(Fault::Rejected(Rejection::in_band(data, secrets)));
        }
        let usage = chunk.usage.and_then(|raw| Usage::read(raw.get()));
        if usage.is_some() {
            self.progress.usage = usage;
        }
        let mut step = Step::Nothing;
        if let Some(Choices(Some(choice))) = chunk.choices {
            let plain = choice.delta.as_ref().and_then(Delta::sole_text);
            if choice.delta.is_some_and(|delta| emit(delta, out)) {
                self.progress.output = true;
                step = Step::Output;
            }
            if let Some(word) = choice.finish_reason.filter(|word| !word.0.is_empty()) {
                self.progress.reason = Some(FinishReason::read(&word.0));
                step = Step::Stopped;
            } else if let (Some((plain, thinking)), None) = (plain, usage) {
                let start = plain.as_ptr().addr() - text.as_ptr().addr();
                self.template.learn(data, start..start + plain.len(), thinking);
            }
        }
        // Some count along with every chunk; only a count that comes with the end or after it is
        // the last one.
        if self.progress.reason.is_some() && usage.is_some() {
            self.progress.complete = true;
            step = Step::Complete;
        }
        Ok(step)
    }
}

/// Turns a delta into events; whether it contained any output.
fn emit(delta: Delta<'_>, out: &mut VecDeque<ChatEvent>) -> bool {
    let before = out.len();
    if let Some(text) = full(delta.reasoning_content).or(full(delta.reasoning)) {
        out.push_back(ChatEvent::Reasoning(text.into_owned()));
    }
    if let Some(text) = full(delta.content) {
        out.push_back(ChatEvent::Text(text.into_owned()));
    }
    // A refusal is what the model says instead.
    if let Some(text) = full(delta.refusal) {
        out.push_back(ChatEvent::Text(text.into_owned()));
    }
    for (at, call) in delta.tool_calls.into_iter().flatten().enumerate() {
        let function = call.function.unwrap_or_default();
        out.push_back(ChatEvent::ToolCall {
            index: call.index.unwrap_or(u32::try_from(at).unwrap_or(u32::MAX)),
            id: full(call.id).map(Cow::into_owned),
            name: full(function.name).map(Cow::into_owned),
            arguments: full(function.arguments).map(Cow::into_owned).unwrap_or_default(),
        });
    }
    out.len() > before
}

fn full(text: Option<Text<'_>>) -> Option<Cow<'_, str>> {
    text.map(|text| text.0).filter(|text| !text.is_empty())
}

/// Error objects without an `error` around them.
fn is_error(data: &[u8]) -> bool {
    let Ok(value) = serde_json::from_slice::<Value>(data) else { return false };
    value["type"] == "error" || value["object"] == "error"
}

/// For the fuzzer: reads `data` as a stream, with and without the shortcut.
///
/// # Panics
///
/// When something is whole that is not, output appears out of nothing, or the shortcut changes what
/// is read.
pub fn fuzz(data: &[u8]) {
    let mut decoder = sse::Decoder::default();
    let mut reader = Reader::default();
    let mut parser = Reader { template: Template::disabled(), ..Reader::default() };
    let (mut out, mut parsed) = (VecDeque::new(), VecDeque::new());
    decoder.feed(data);
    while let Ok(Some(event)) = decoder.next() {
        let before = out.len();
        let step = reader.take(event, Secrets::default(), &mut out);
        assert_eq!(step, parser.take(event, Secrets::default(), &mut parsed));
        assert_eq!(out, parsed);
        match step {
            Ok(Step::Output) => assert!(out.len() > before, "output without an event"),
            Ok(Step::Complete) => {
                assert!(reader.progress.finish().is_ok(), "complete, but not whole")
            }
            Ok(Step::Nothing | Step::Stopped) => {}
            Err(_) => break,
        }
    }
    assert_eq!(reader.progress.finish(), parser.progress.finish());
}

#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow)]
    choices: Option<Choices<'a>>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    index: Option<u32>,
    #[serde(borrow)]
    delta: Option<Delta<'a>>,
    #[serde(borrow)]
    finish_reason: Option<Text<'a>>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow)]
    content: Option<Text<'a>>,
    #[serde(borrow)]
    reasoning_content: Option<Text<'a>>,
    #[serde(borrow)]
    reasoning: Option<Text<'a>>,
    #[serde(borrow)]
    refusal: Option<Text<'a>>,
    #[serde(borrow)]
    tool_calls: Option<Vec<ToolCall<'a>>>,
}

impl<'a> Delta<'a> {
    /// Its text (and whether it is thinking) if that is all there is in it and lies in the chunk as
    /// it is read.
    fn sole_text(&self) -> Option<(&'a str, bool)> {
        if self.tool_calls.as_ref().is_some_and(|calls| !calls.is_empty()) {
            return None;
        }
        let texts = [
            (&self.content, false),
            (&self.refusal, false),
            (&self.reasoning_content, true),
            (&self.reasoning, true),
        ];
        let mut found = texts.into_iter().filter_map(|(text, thinking)| {
            text.as_ref().filter(|text| !text.0.is_empty()).map(|text| (text, thinking))
        });
        match (found.next(), found.next()) {
            (Some((Text(Cow::Borrowed(text)), thinking)), None) => Some((*text, thinking)),
            _ => None,
        }
    }
}

#[derive(Deserialize)]
struct ToolCall<'a> {
    index: Option<u32>,
    #[serde(borrow)]
    id: Option<Text<'a>>,
    #[serde(borrow)]
    function: Option<Function<'a>>,
}

#[derive(Default, Deserialize)]
struct Function<'a> {
    #[serde(borrow)]
    name: Option<Text<'a>>,
    #[serde(borrow)]
    arguments: Option<Text<'a>>,
}

/// The one choice we ask for, out of a list that is otherwise skipped without being kept.
struct Choices<'a>(Option<Choice<'a>>);

impl<'de: 'a, 'a> Deserialize<'de> for Choices<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct First;
        impl<'de> Visitor<'de> for First {
            type Value = Choices<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of choices")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut first = None;
                while let Some(choice) = list.next_element::<Choice<'de>>()? {
                    if first.is_none() && choice.index.is_none_or(|index| index == 0) {
                        first = Some(choice);
                    }
                }
                Ok(Choices(first))
            }
        }
        deserializer.deserialize_seq(First)
    }
}

/// A text as providers send it: a string, borrowed when nothing in it is escaped; or a list of
/// typed parts, whose texts are joined; anything else counts as no text.
#[derive(Debug, Default)]
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Text(Cow::Borrowed(text)))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        #[derive(Deserialize)]
        struct Part<'a> {
            #[serde(borrow)]
            text: Option<Text<'a>>,
        }
        let mut joined = String::new();
        while let Some(part) = list.next_element::<Part<'de>>()? {
            if let Some(Text(text)) = part.text {
                joined.push_str(&text);
            }
        }
        Ok(Text(Cow::Owned(joined)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Text::default())
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Text::default())
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<Self::Value, E> {
        Ok(Text::default())
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Text::default())
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Text::default())
    }
}

#[cfg(test)]
mod tests;
