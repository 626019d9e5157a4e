//! The dialects: how a request is worded and how a reply is told, for each kind of provider.
//!
//! A dialect reads a request into a [`Chat`] and gives the [`Words`] for its reply: a stream's events, or one body.
//! The same parts of a reply (thoughts, text, a tool call) are told in the same order in all of them, so pace, faults
//! and bytes need to know nothing of the differences. Everything here is pure.

use serde_json::Value;

use crate::chat::Chat;
use crate::problem::Problem;
use crate::reply::{Finish, Pieces};
use crate::usage::Usage;

mod anthropic;
mod ollama;
mod openai;
mod responses;

#[cfg(test)]
mod tests;

/// A way to ask for a chat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// OpenAI's chat completions, which most others speak too.
    OpenAi,
    /// OpenAI's responses.
    Responses,
    /// Anthropic's messages.
    Anthropic,
    /// Ollama's own.
    Ollama,
}

/// How the events of a stream are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Syntax {
    /// Server-sent events.
    Events,
    /// One JSON per line.
    Lines,
}

/// One event of a stream. Its data may hold the marks [`TEXT`], [`NUMBER`] and [`GAP`](crate::frames::GAP).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) name: Option<&'static str>,
    pub(crate) data: String,
}

/// Stands for the text of a token.
pub(crate) const TEXT: &str = "\u{0}";
/// Stands for the number of the event within its stream.
pub(crate) const NUMBER: &str = "\u{2}";

impl Event {
    /// An event without a name.
    pub(crate) fn plain(data: impl Into<String>) -> Self {
        Self { name: None, data: data.into() }
    }

    fn named(name: &'static str, data: impl Into<String>) -> Self {
        Self { name: Some(name), data: data.into() }
    }
}

/// A stretch of a reply.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part<'a> {
    pub(crate) kind: PartKind<'a>,
    pub(crate) pieces: &'a Pieces,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PartKind<'a> {
    Thoughts,
    Text,
    /// A call of the tool with this name. The pieces are its arguments.
    Call(&'a str),
}

impl Part<'_> {
    fn text(&self) -> String {
        self.pieces.join(u32::MAX)
    }

    /// The text as JSON.
    fn json(&self) -> String {
        Value::from(self.text()).to_string()
    }
}

/// Who answers: what every event of a reply repeats.
#[derive(Clone, Debug)]
pub(crate) struct Signature {
    /// The number of the request.
    pub(crate) number: u64,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) model: String,
}

/// A reply that has come to its end.
#[derive(Debug)]
pub(crate) struct Told<'a> {
    pub(crate) parts: &'a [Part<'a>],
    pub(crate) finish: Finish,
    /// Missing where it is withheld.
    pub(crate) usage: Option<Usage>,
}

/// The words of a dialect for one reply.
pub(crate) trait Words: Send + Sync {
    /// Before anything is said.
    fn open(&self) -> Vec<Event>;

    /// Before the first piece of the part that stands at `place` in the reply.
    fn begin(&self, _part: &Part<'_>, _place: usize) -> Vec<Event> {
        Vec::new()
    }

    /// One piece, given as the inside of a JSON string. Nothing, if the dialect tells such a part whole at its end.
    fn piece(&self, part: &Part<'_>, place: usize, escaped: &str) -> Option<Event>;

    /// After the last piece of a part.
    fn end(&self, _part: &Part<'_>, _place: usize) -> Vec<Event> {
        Vec::new()
    }

    /// Why the model stopped.
    fn finish(&self, told: &Told<'_>) -> Vec<Event>;

    /// What it cost, where that is an event of its own.
    fn usage(&self, _told: &Told<'_>) -> Vec<Event> {
        Vec::new()
    }

    /// That nothing follows.
    fn done(&self, told: &Told<'_>) -> Vec<Event>;

    /// An event that offers nothing to choose from, where there are choices.
    fn no_choices(&self) -> Option<Event> {
        None
    }

    /// A sign of life, where the dialect has an event for it.
    fn ping(&self) -> Option<Event> {
        None
    }

    /// An error within the stream; `begun` tells whether output came before.
    fn error(&self, problem: &Problem, begun: bool) -> Event;

    /// The reply in one piece.
    fn whole(&self, told: &Told<'_>) -> Value;
}

impl Dialect {
    pub(crate) const ALL: [Self; 4] =
        [Self::OpenAi, Self::Responses, Self::Anthropic, Self::Ollama];

    /// Where it is asked, without the prefix `/v1`.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::OpenAi => "/chat/completions",
            Self::Responses => "/responses",
            Self::Anthropic => "/messages",
            Self::Ollama => "/api/chat",
        }
    }

    pub(crate) fn read(self, body: &Value) -> Result<Chat, Problem> {
        match self {
            Self::OpenAi => openai::read(body),
            Self::Responses => responses::read(body),
            Self::Anthropic => anthropic::read(body),
            Self::Ollama => ollama::read(body),
        }
    }

    pub(crate) fn words(self, signature: Signature, chat: &Chat) -> Box<dyn Words> {
        match self {
            Self::OpenAi => Box::new(openai::OpenAi::new(&signature, chat.include_usage)),
            Self::Responses => Box::new(responses::Responses::new(signature)),
            Self::Anthropic => Box::new(anthropic::Anthropic::new(signature, chat.prompt_tokens())),
            Self::Ollama => Box::new(ollama::Ollama::new(&signature)),
        }
    }

    pub(crate) fn syntax(self) -> Syntax {
        match self {
            Self::OpenAi | Self::Responses | Self::Anthropic => Syntax::Events,
            Self::Ollama => Syntax::Lines,
        }
    }

    /// The content type of a stream.
    pub(crate) fn stream_type(self) -> &'static str {
        match self.syntax() {
            Syntax::Events => "text/event-stream; charset=utf-8",
            Syntax::Lines => "application/x-ndjson",
        }
    }

    /// The header that names a request.
    pub(crate) fn request_id_header(self) -> &'static str {
        match self {
            Self::Anthropic => "request-id",
            Self::OpenAi | Self::Responses | Self::Ollama => "x-request-id",
        }
    }

    /// The body of an error.
    pub(crate) fn error_body(self, problem: &Problem) -> String {
        let body = match self {
            Self::OpenAi | Self::Responses => openai::error(problem),
            Self::Anthropic => anthropic::error(problem),
            Self::Ollama => ollama::error(problem),
        };
        body.to_string()
    }
}
