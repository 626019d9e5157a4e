//! What providers speak: one conversation in four dialects.
//!
//! [`chat_request`] writes the body of a request, [`Decoder`] cuts the bytes of a streamed answer
//! into events, [`Reader`] makes pieces of the answer of them, [`read_answer`] reads the answer of a
//! provider that does not stream although it was asked to, and [`failure`] says what an error means.
//! Which dialect a provider speaks is its [`Kind`]. Pure functions: bytes in, values out.
//!
//! Parameters are OpenAI's, whatever the dialect: each module translates those that have a
//! counterpart and sends the others as they are. So a field that we do not know reaches those who
//! do, and a provider that does not refuses it by its name instead of ignoring it in silence.
//!
//! **Invariants:** nothing a provider sends makes these functions panic or allocate beyond its size;
//! an answer is whole only after its dialect's own end; no text from a provider leaves them
//! unscrubbed in an error; events and fields that we do not know change nothing.
//!
//! Not here: sockets and clocks (`live`), and what to do about a failure (`attempt`).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::config::Kind;
use crate::{ndjson, sse};

use failure::{Rejection, Secrets};

pub mod anthropic;
pub mod failure;
mod message;
pub mod ollama;
pub mod openai;
mod params;
pub mod responses;

/// What a chat request is made of.
#[derive(Clone, Copy, Debug)]
pub struct ChatParts<'a> {
    /// What the provider calls the model.
    pub model: &'a str,
    /// Canonical messages (LangChain's shape), oldest first.
    pub messages: &'a [Arc<Value>],
    /// The model's parameters.
    pub model_params: &'a Map<String, Value>,
    /// The call's own; they win.
    pub call_params: &'a Map<String, Value>,
    /// The longest answer when no parameter says it, for dialects that insist on a limit.
    pub max_output_tokens: u32,
}

/// For [`ChatParts::max_output_tokens`], where nobody knows better.
pub const MAX_OUTPUT_TOKENS: u32 = 4096;

/// Why no request can be made of the messages.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    #[error("there is no message to answer")]
    None,
    #[error("message {at}: type {found} is none of system, human, ai, tool")]
    Type { at: usize, found: String },
    #[error("message {at}: content is neither a text nor a list of parts")]
    Content { at: usize },
    #[error("message {at}: a tool message needs the tool_call_id it answers")]
    ToolCallId { at: usize },
    #[error("message {at}: {dialect} cannot be sent {what}")]
    Part { at: usize, dialect: &'static str, what: String },
}

/// Writes the body of a request for a streamed answer. The parameters must be free of the fields
/// that are written here ([`crate::config`] checks that).
///
/// # Errors
///
/// When a message cannot be understood, or not said in this dialect.
pub fn chat_request(kind: Kind, parts: &ChatParts<'_>) -> Result<Vec<u8>, BuildError> {
    match kind {
        Kind::OpenAi => openai::request::chat(parts),
        Kind::Responses => responses::request::chat(parts),
        Kind::Anthropic => anthropic::request::chat(parts),
        Kind::Ollama => ollama::request::chat(parts),
    }
}

/// A piece of a model's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChatEvent {
    /// More of the answer's text.
    Text(String),
    /// More of what the model thinks before it answers, where it shows that.
    Reasoning(String),
    /// More of the tool call number `index`. The first piece has `id` and `name`, the `arguments`
    /// of all pieces joined are JSON. Nothing may be executed before [`ChatEvent::Finish`].
    ToolCall { index: u32, id: Option<String>, name: Option<String>, arguments: String },
    /// Everything before this is void: the answer broke off, and begins anew.
    Reset { reason: &'static str },
    /// The answer is whole. Always last, and only ever sent for a whole answer.
    Finish { reason: FinishReason, usage: Option<Usage> },
}

/// Why the model stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    Stop,
    /// The limit of tokens was reached.
    Length,
    ToolCalls,
    ContentFilter,
    /// A word of the provider's own.
    Other(String),
}

impl FinishReason {
    pub fn as_str(&self) -> &str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
            Self::ContentFilter => "content_filter",
            Self::Other(word) => word,
        }
    }

    /// The words of all dialects: providers imitate each other, and none means something else by
    /// another's word.
    fn read(word: &str) -> Self {
        match word {
            "stop" | "eos" | "end_turn" | "stop_sequence" => Self::Stop,
            "length" | "max_tokens" | "max_output_tokens" | "model_context_window_exceeded" => {
                Self::Length
            }
            "tool_calls" | "function_call" | "tool_use" => Self::ToolCalls,
            "content_filter" | "refusal" => Self::ContentFilter,
            other => Self::Other(other.to_owned()),
        }
    }
}

/// What the provider counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Cached ones included.
    pub input_tokens: u64,
    /// Those that nobody sees included.
    pub output_tokens: u64,
    /// Of the input, those that were cheap because the provider had them.
    pub cached_tokens: u64,
    /// Of the output, those that nobody sees.
    pub reasoning_tokens: u64,
}

/// The decoder of what a provider of some kind streams.
#[derive(Debug)]
pub enum Decoder {
    Events(sse::Decoder),
    Lines(ndjson::Decoder),
}

impl Decoder {
    pub fn new(kind: Kind) -> Self {
        match kind {
            Kind::OpenAi | Kind::Responses | Kind::Anthropic => {
                Self::Events(sse::Decoder::default())
            }
            Kind::Ollama => Self::Lines(ndjson::Decoder::default()),
        }
    }

    /// Takes the next bytes.
    pub fn feed(&mut self, chunk: &[u8]) {
        match self {
            Self::Events(decoder) => decoder.feed(chunk),
            Self::Lines(decoder) => decoder.feed(chunk),
        }
    }

    /// The next complete event, a line being one without a kind; `None` when more bytes are needed.
    ///
    /// # Errors
    ///
    /// When an event outgrows the limits.
    #[expect(clippy::should_implement_trait, reason = "it lends, so it cannot be an iterator")]
    pub fn next(&mut self) -> Result<Option<sse::Event<'_>>, sse::TooLarge> {
        match self {
            Self::Events(decoder) => decoder.next(),
            Self::Lines(decoder) => Ok(decoder.next()?.map(line)),
        }
    }

    /// What the end of the bytes left without its own end.
    ///
    /// # Errors
    ///
    /// Like [`Decoder::next`].
    pub fn finish(&mut self) -> Result<Option<sse::Event<'_>>, sse::TooLarge> {
        match self {
            Self::Events(decoder) => decoder.finish(),
            Self::Lines(decoder) => Ok(decoder.finish()?.map(line)),
        }
    }

    /// The first bytes that belong to no event, when no event came before them.
    pub fn stray(&self) -> &[u8] {
        match self {
            Self::Events(decoder) => decoder.stray(),
            // Every line is an event; what it is good for is the reader's to say.
            Self::Lines(_) => &[],
        }
    }
}

const fn line(data: &[u8]) -> sse::Event<'_> {
    sse::Event { kind: b"", data }
}

/// Reads the events of one streamed answer and knows whether it is whole.
#[derive(Debug)]
pub enum Reader {
    OpenAi(openai::stream::Reader),
    Responses(responses::stream::Reader),
    Anthropic(anthropic::stream::Reader),
    Ollama(ollama::stream::Reader),
}

/// What an event was good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing a reader of the answer would notice.
    Nothing,
    /// Output.
    Output,
    /// The model has stopped; usage may follow.
    Stopped,
    /// The answer is whole; nothing after it matters.
    Complete,
}

/// Why a stream cannot be gone on with.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// An event that is none of the dialect's.
    Malformed(String),
    /// The provider reports an error inside a stream that began well.
    Rejected(Rejection),
}

/// Why the end of a stream is not the end of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfinished {
    /// There was no output at all.
    Empty,
    /// There was some, but not the dialect's end.
    Truncated,
}

impl Reader {
    pub fn new(kind: Kind) -> Self {
        match kind {
            Kind::OpenAi => Self::OpenAi(openai::stream::Reader::default()),
            Kind::Responses => Self::Responses(responses::stream::Reader::default()),
            Kind::Anthropic => Self::Anthropic(anthropic::stream::Reader::default()),
            Kind::Ollama => Self::Ollama(ollama::stream::Reader::default()),
        }
    }

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
        match self {
            Self::OpenAi(reader) => reader.take(event, secrets, out),
            Self::Responses(reader) => reader.take(event, secrets, out),
            Self::Anthropic(reader) => reader.take(event, secrets, out),
            Self::Ollama(reader) => reader.take(event, secrets, out),
        }
    }

    /// The closing event, when the stream ends here (or when nobody waits for the rest of it).
    ///
    /// # Errors
    ///
    /// When the answer is not whole.
    pub fn finish(&self) -> Result<ChatEvent, Unfinished> {
        let progress = match self {
            Self::OpenAi(reader) => &reader.progress,
            Self::Responses(reader) => &reader.progress,
            Self::Anthropic(reader) => &reader.progress,
            Self::Ollama(reader) => &reader.progress,
        };
        progress.finish()
    }
}

/// Why a document is no answer.
#[derive(Clone, Debug, PartialEq)]
pub enum NoAnswer {
    Fault(Fault),
    Unfinished(Unfinished),
}

impl From<Fault> for NoAnswer {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<Unfinished> for NoAnswer {
    fn from(unfinished: Unfinished) -> Self {
        Self::Unfinished(unfinished)
    }
}

/// Reads a whole answer as if it had been streamed in one piece; the last event is the finish.
///
/// # Errors
///
/// When it is an error, not JSON, or contains no answer.
pub fn read_answer(
    kind: Kind,
    body: &[u8],
    secrets: Secrets<'_>,
) -> Result<VecDeque<ChatEvent>, NoAnswer> {
    match kind {
        Kind::OpenAi => openai::answer::read(body, secrets),
        Kind::Responses => responses::answer::read(body, secrets),
        Kind::Anthropic => anthropic::answer::read(body, secrets),
        Kind::Ollama => ollama::stream::read(body, secrets),
    }
}

/// How far an answer has come, in any dialect.
#[derive(Debug, Default)]
struct Progress {
    output: bool,
    reason: Option<FinishReason>,
    usage: Option<Usage>,
    complete: bool,
}

impl Progress {
    fn finish(&self) -> Result<ChatEvent, Unfinished> {
        let reason = match &self.reason {
            Some(reason) => reason.clone(),
            None if self.complete => FinishReason::Stop,
            None if self.output => return Err(Unfinished::Truncated),
            None => return Err(Unfinished::Empty),
        };
        Ok(ChatEvent::Finish { reason, usage: self.usage })
    }

    /// Tells whether `out` has grown since it held `before` events.
    fn step(&mut self, out: &VecDeque<ChatEvent>, before: usize) -> Step {
        if out.len() == before {
            return Step::Nothing;
        }
        self.output = true;
        Step::Output
    }
}

/// The tool calls of an answer, numbered from zero in the order in which they begin, whatever
/// places among its other parts a dialect gives them.
#[derive(Debug, Default)]
struct Calls(BTreeMap<u64, Call>);

#[derive(Clone, Copy, Debug)]
struct Call {
    index: u32,
    has_arguments: bool,
}

impl Calls {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn contains(&self, place: u64) -> bool {
        self.0.contains_key(&place)
    }

    /// The first piece of a call.
    fn begin(&mut self, place: u64, id: &str, name: &str, arguments: &str) -> ChatEvent {
        let index = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0.insert(place, Call { index, has_arguments: !arguments.is_empty() });
        ChatEvent::ToolCall {
            index,
            id: Some(id.to_owned()).filter(|id| !id.is_empty()),
            name: Some(name.to_owned()).filter(|name| !name.is_empty()),
            arguments: arguments.to_owned(),
        }
    }

    /// More of it; `None` when there is no such call or nothing more.
    fn add(&mut self, place: u64, arguments: &str) -> Option<ChatEvent> {
        let call = self.0.get_mut(&place).filter(|_| !arguments.is_empty())?;
        call.has_arguments = true;
        let (index, arguments) = (call.index, arguments.to_owned());
        Some(ChatEvent::ToolCall { index, id: None, name: None, arguments })
    }

    /// Its end: all of its arguments, unless they came in pieces. A call without any has an empty
    /// object of them.
    fn end(&mut self, place: u64, arguments: &str) -> Option<ChatEvent> {
        if self.0.get(&place)?.has_arguments {
            return None;
        }
        self.add(place, if arguments.is_empty() { "{}" } else { arguments })
    }
}

/// Reads an event or a whole answer of the dialects whose every document is an object.
fn document(data: &[u8], secrets: Secrets<'_>) -> Result<Value, Fault> {
    let malformed = |problem: &str| {
        Fault::Malformed(secrets.scrub(&format!("expected a JSON object: {problem}")))
    };
    match serde_json::from_slice(data) {
        Ok(document @ Value::Object(_)) => Ok(document),
        Ok(_) => Err(malformed("it is something else")),
        Err(error) => Err(malformed(&error.to_string())),
    }
}

/// A text that is there and not empty.
fn full(value: &Value) -> Option<&str> {
    value.as_str().filter(|text| !text.is_empty())
}

/// For the fuzzer: reads `data` in every dialect, in one piece and cut, and as a whole answer.
///
/// # Panics
///
/// When the cut changes what is read, something is whole that is not, or output appears out of
/// nothing.
pub fn fuzz(data: &[u8]) {
    let Some((&seed, data)) = data.split_first() else { return };
    for kind in Kind::ALL {
        let whole = read_stream(kind, [data]);
        let size = usize::from(seed % 17) + 1;
        assert_eq!(read_stream(kind, data.chunks(size)), whole, "cut into pieces of {size}");
        if let Ok(events) = read_answer(kind, data, Secrets::default()) {
            assert!(matches!(events.back(), Some(ChatEvent::Finish { .. })));
        }
    }
}

/// All of a stream, as a live answer reads it: the pieces, and how it ends.
fn read_stream<'a>(
    kind: Kind,
    chunks: impl IntoIterator<Item = &'a [u8]>,
) -> (VecDeque<ChatEvent>, Result<ChatEvent, NoAnswer>) {
    let mut decoder = Decoder::new(kind);
    let mut reader = Reader::new(kind);
    let mut out = VecDeque::new();
    for chunk in chunks {
        decoder.feed(chunk);
        while let Ok(Some(event)) = decoder.next() {
            let before = out.len();
            match reader.take(event, Secrets::default(), &mut out) {
                Ok(Step::Output) => assert!(out.len() > before, "output without an event"),
                Ok(Step::Complete) => assert!(reader.finish().is_ok(), "complete, but not whole"),
                Ok(Step::Nothing | Step::Stopped) => {}
                Err(fault) => return (out, Err(fault.into())),
            }
        }
    }
    if let Ok(Some(event)) = decoder.finish() {
        match reader.take(event, Secrets::default(), &mut out) {
            Ok(_) | Err(Fault::Malformed(_)) => {}
            Err(fault) => return (out, Err(fault.into())),
        }
    }
    (out, reader.finish().map_err(NoAnswer::from))
}

#[cfg(test)]
mod tests;
