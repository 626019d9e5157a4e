//! What a fault does: a request and a fault in, a plan for the answer out. Pure; the plan is carried out elsewhere.
//!
//! A fault that means nothing for a request (line ends of a reply that is not streamed, a first time that is over)
//! gives no action: the answer is good, and the fault is not counted.

use std::time::Duration;

use crate::dates::http_date;
use crate::dialect::{Dialect, Syntax};
use crate::fault::{Fault, FaultSpec};
use crate::frames::{Eol, Fragments, Wire};
use crate::problem::Problem;

/// What to do instead of a good answer.
#[derive(Debug)]
pub(crate) enum Action {
    /// A reply of the model, but not quite as it should be.
    Reply(Plan),
    /// Something else with a status and a body.
    Answer(Canned),
    /// Nothing, with the connection open.
    Hang,
    /// A reset instead of an answer.
    Reset,
}

/// How a reply is given. The default is a good one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) start: Start,
    pub(crate) opening: Opening,
    /// Replaces the time to the first token.
    pub(crate) ttft: Option<Duration>,
    /// Replaces the time between tokens.
    pub(crate) interval: Option<Duration>,
    pub(crate) wire: Wire,
    pub(crate) payload: Payload,
    pub(crate) content_type: Option<&'static str>,
    /// Happens after so many tokens, or at the last one if the reply is shorter.
    pub(crate) stop: Option<(u32, Stop)>,
    pub(crate) no_usage: bool,
    pub(crate) tail: Tail,
    pub(crate) ending: Ending,
    /// How embeddings are got wrong.
    pub(crate) embedding: Option<Fault>,
}

/// When the head leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Start {
    /// In one write with the first token.
    #[default]
    WithFirstToken,
    /// At once, alone.
    AtOnce,
    /// The whole reply begins so much later.
    After(Duration),
    /// One byte at a time, so far apart.
    ByteByByte(Duration),
}

/// What comes between the head and the first token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Opening {
    #[default]
    Nothing,
    /// The role, pings, and an error; the reply is over.
    ErrorAfterPings,
    /// The role, then a comment each second.
    Comments(Duration),
    /// The role, then a piece of reasoning each second.
    Reasoning(Duration),
}

/// What the reply consists of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Payload {
    #[default]
    Text,
    /// Nothing to choose from.
    NoChoices,
    /// A tool call that breaks off.
    CutToolCall,
    /// One event of so many bytes.
    Giant(u64),
    /// A line without an end.
    Endless,
}

/// What happens in the middle of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    Stall,
    StallWithComments,
    Reset,
    /// The connection is closed; whether the client can tell depends on the framing.
    Close,
    /// The body is ended as if it were complete.
    EndBody,
    ErrorEvent,
    /// The same, but the error says that there is too much to do.
    OverloadedEvent,
    /// An event that is not JSON; the reply goes on.
    BadJson,
}

/// What follows the last token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tail {
    #[default]
    Full,
    NoDone,
    HoldAfterDone(Duration),
    HoldAfterFinish(Duration),
}

/// What becomes of the connection after a reply that was good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Ending {
    #[default]
    KeepAlive,
    /// Closed although it was to be kept.
    Close,
    /// Closed after being idle for so long.
    IdleFor(Duration),
}

/// An answer that does not come from the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Canned {
    pub(crate) status: u16,
    pub(crate) content_type: &'static str,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: String,
    pub(crate) rest: Rest,
}

/// What follows the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    Nothing,
    /// Half of the body never comes.
    Stalled,
    /// Bytes without end.
    Endless,
}

impl Canned {
    /// An error in the words of a dialect.
    pub(crate) fn error(dialect: Dialect, problem: &Problem) -> Self {
        Self {
            status: problem.status,
            content_type: "application/json",
            headers: Vec::new(),
            body: dialect.error_body(problem),
            rest: Rest::Nothing,
        }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }
}

/// What kind of answer is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Stream,
    Whole,
    Embeddings,
}

/// What a fault may depend on.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) kind: Kind,
    pub(crate) dialect: Dialect,
    /// The model without the fault.
    pub(crate) model: &'a str,
    /// Whether the last message is the assistant's.
    pub(crate) prefilled: bool,
    /// Whether a text holds the word that embeddings may choke on.
    pub(crate) poisoned: bool,
    /// Whether the connection has served a request before.
    pub(crate) reused: bool,
    /// Since the simulator was made.
    pub(crate) uptime: Duration,
    /// The wall clock, in seconds since 1970.
    pub(crate) now_s: u64,
    /// A random number.
    pub(crate) chance: u64,
}

/// What `spec` does to a request, if anything. Only faults that happen once ask
/// `first_time`.
pub(crate) fn act(
    spec: FaultSpec,
    facts: &Facts<'_>,
    first_time: impl Fn() -> bool,
) -> Option<Action> {
    let (fault, amount, duration) = (spec.fault, spec.amount(), spec.duration());
    let canned = |problem: Problem| Canned::error(facts.dialect, &problem);
    let refuse = |problem: Problem| Some(Action::Answer(canned(problem)));
    let limited = |name, value: String| {
        Some(Action::Answer(canned(rate_limit(facts.model)).with(name, value)))
    };
    match fault {
        Fault::RateLimitOnce
        | Fault::ServerErrorOnce
        | Fault::ResetOnce
        | Fault::SlowHeadersOnce
            if !first_time() =>
        {
            None
        }
        Fault::RateLimitOnce | Fault::RetryAfter => limited("retry-after", amount.to_string()),
        Fault::ServerErrorOnce => refuse(server_error()),
        Fault::ResetOnce => Some(Action::Reset),
        Fault::RateLimit => refuse(rate_limit(facts.model)),
        Fault::RetryAfterDate => {
            let canned = canned(rate_limit(facts.model)).with("date", http_date(facts.now_s));
            let then = http_date(facts.now_s.saturating_add(amount));
            Some(Action::Answer(canned.with("retry-after", then)))
        }
        Fault::RetryAfterMs => limited("retry-after-ms", amount.to_string()),
        Fault::RetryAfterText => {
            let seconds = Duration::from_millis(amount).as_secs_f64();
            let mut problem = rate_limit(facts.model);
            problem.message = problem.message.replace("later", &format!("in {seconds}s"));
            refuse(problem)
        }
        Fault::RetryAfterNegative => limited("retry-after", "-5".to_owned()),
        Fault::RetryAfterNan => limited("retry-after", "NaN".to_owned()),
        Fault::RetryAfterHuge => limited("retry-after", "1000000000000".to_owned()),
        Fault::NoRetry => {
            Some(Action::Answer(canned(server_error()).with("x-should-retry", "false")))
        }
        Fault::Status => refuse(status(u16::try_from(amount).unwrap_or(LAST_STATUS))),
        Fault::Reset => Some(Action::Reset),
        Fault::ResetReused => facts.reused.then_some(Action::Reset),
        // Without a body to leave unread (it is known only by model name, or empty), silence is what remains.
        Fault::NoAnswer | Fault::NoRead => Some(Action::Hang),
        Fault::RejectPrefill if !facts.prefilled => None,
        Fault::EmbedPoison if !(facts.kind == Kind::Embeddings && facts.poisoned) => None,
        Fault::Flap => {
            let down = facts.uptime.as_millis() / u128::from(amount.max(1)) % 2 == 1;
            if down { refuse(unavailable()) } else { None }
        }
        Fault::StalledError | Fault::EndlessError => {
            let rest = if fault == Fault::StalledError { Rest::Stalled } else { Rest::Endless };
            Some(Action::Answer(Canned { rest, ..canned(server_error()) }))
        }
        Fault::Error200 => Some(Action::Answer(Canned { status: 200, ..canned(server_error()) })),
        Fault::Html200 => odd_200("text/html; charset=utf-8", HTML),
        Fault::Empty200 if facts.kind == Kind::Stream => odd_200(facts.dialect.stream_type(), ""),
        Fault::Empty200 => odd_200("application/json", ""),
        _ => match refusal(fault, facts.model) {
            Some(problem) => refuse(problem),
            None => altered(fault, amount, duration, facts).map(Action::Reply),
        },
    }
}

const HTML: &str = "<!doctype html>\n<html><head><title>Sign in</title></head><body>Please sign in.</body></html>\n";

fn odd_200(content_type: &'static str, body: &str) -> Option<Action> {
    let (headers, rest) = (Vec::new(), Rest::Nothing);
    Some(Action::Answer(Canned { status: 200, content_type, headers, body: body.to_owned(), rest }))
}

pub(crate) fn rate_limit(model: &str) -> Problem {
    let message = format!(
        "Rate limit reached for {model} on requests per min (RPM). Please try again later."
    );
    Problem::new(429, "requests", message).code("rate_limit_exceeded")
}

pub(crate) fn server_error() -> Problem {
    Problem::new(500, "server_error", "The server had an error while processing your request.")
        .code("server_error")
}

pub(crate) fn overloaded() -> Problem {
    Problem::new(529, "overloaded_error", "Overloaded")
}

/// Any error status. What is below 400 is no error, and above 599 no status.
fn status(status: u16) -> Problem {
    let status = status.clamp(400, LAST_STATUS);
    let kind = if status < 500 { "invalid_request_error" } else { "server_error" };
    Problem::new(status, kind, format!("The status is {status} because this was asked for."))
}

const LAST_STATUS: u16 = 599;

fn unavailable() -> Problem {
    Problem::new(503, "server_error", "The service is temporarily unavailable.")
        .code("server_is_overloaded")
}

/// Faults that are an error status and nothing else.
fn refusal(fault: Fault, model: &str) -> Option<Problem> {
    Some(match fault {
        Fault::InsufficientQuota => Problem::new(
            429,
            "insufficient_quota",
            "You exceeded your current quota, please check your plan.",
        )
        .code("insufficient_quota"),
        Fault::CreditBalance => {
            Problem::invalid("Your credit balance is too low to access the API.")
        }
        Fault::Unauthorized => {
            Problem::new(401, "invalid_request_error", "Incorrect API key provided: sim-****.")
                .code("invalid_api_key")
        }
        Fault::Forbidden => {
            Problem::new(403, "request_forbidden", "Country, region, or territory not supported.")
                .code("unsupported_country_region_territory")
        }
        Fault::ModelNotFound => {
            let message =
                format!("The model `{model}` does not exist or you do not have access to it.");
            Problem::new(404, "invalid_request_error", message)
                .param("model")
                .code("model_not_found")
        }
        Fault::RequestTimeout => Problem::new(408, "timeout", "The request timed out."),
        Fault::Conflict => {
            Problem::new(409, "conflict", "The resource is locked by another request.")
        }
        Fault::ContextLength => {
            let message = "This model's maximum context length is 8192 tokens. Please reduce the length of the messages.";
            Problem::invalid(message).param("messages").code("context_length_exceeded")
        }
        Fault::ContentFilter => {
            let message = "The response was filtered due to the prompt triggering the content management policy.";
            Problem::invalid(message).param("prompt").code("content_filter")
        }
        Fault::RejectPrefill => {
            let message = "This model does not support assistant message prefill: \
                           the conversation must end with a user message.";
            Problem::invalid(message).param("messages")
        }
        Fault::ServerError => server_error(),
        Fault::Unavailable => unavailable(),
        Fault::Overloaded => overloaded(),
        Fault::EmbedPoison => poison(),
        _ => return None,
    })
}

/// One bad text spoils the batch, and which one it was is not said.
pub(crate) fn poison() -> Problem {
    Problem::invalid("The input contains a text that cannot be embedded.").param("input")
}

/// Faults that change a reply.
fn altered(fault: Fault, amount: u64, duration: Duration, facts: &Facts<'_>) -> Option<Plan> {
    let plan = Plan::default();
    let wire = |wire: Wire| Plan { wire, ..Plan::default() };
    let tokens = u32::try_from(amount).unwrap_or(u32::MAX);
    let stop = |stop: Stop| Plan { stop: Some((tokens, stop)), ..Plan::default() };
    let streamed = facts.kind == Kind::Stream;
    // Lines of JSON have no other ends than LF, alone or after CR, and no continuation.
    let events = streamed && facts.dialect.syntax() == Syntax::Events;
    Some(match fault {
        Fault::IdleClose => {
            let wait = Duration::from_millis(facts.chance % amount.max(1));
            Plan { ending: Ending::IdleFor(wait), ..plan }
        }
        Fault::CloseAfterReply => Plan { ending: Ending::Close, ..plan },
        Fault::SlowHeaders | Fault::SlowHeadersOnce => {
            Plan { start: Start::After(duration), ..plan }
        }
        Fault::DripHeaders => Plan { start: Start::ByteByByte(duration), ..plan },
        Fault::Ttft => Plan { start: Start::AtOnce, ttft: Some(duration), ..plan },
        Fault::Drip => Plan { interval: Some(duration), ..plan },
        Fault::Stall => stop(Stop::Stall),
        Fault::StallKeepalive => stop(Stop::StallWithComments),
        Fault::Reasoning => Plan { opening: Opening::Comments(duration), ..plan },
        Fault::ReasoningDeltas => Plan { opening: Opening::Reasoning(duration), ..plan },
        Fault::ErrorAfterRole => Plan { opening: Opening::ErrorAfterPings, ..plan },
        Fault::ErrorEvent => stop(Stop::ErrorEvent),
        Fault::OverloadedEvent => stop(Stop::OverloadedEvent),
        Fault::CutRst => stop(Stop::Reset),
        Fault::CutChunk => stop(Stop::Close),
        Fault::CutFin => {
            Plan { wire: Wire { close_delimited: true, ..Wire::default() }, ..stop(Stop::Close) }
        }
        Fault::CutEnd => stop(Stop::EndBody),
        Fault::BadJson => stop(Stop::BadJson),
        Fault::NoUsage => Plan { no_usage: true, ..plan },
        Fault::SplitUtf8 => wire(Wire { fragments: Fragments::HalfCharacters, ..Wire::default() }),
        Fault::OneByte => wire(Wire { fragments: Fragments::Bytes, ..Wire::default() }),
        Fault::Bom => wire(Wire { bom: true, ..Wire::default() }),
        Fault::WrongType => Plan { content_type: Some("application/octet-stream"), ..plan },
        Fault::EmptyChoices => Plan { payload: Payload::NoChoices, ..plan },
        Fault::GiantEvent => Plan { payload: Payload::Giant(amount * 1_000_000), ..plan },
        Fault::EndlessLine => Plan { payload: Payload::Endless, ..plan },
        Fault::ToolCallCut if facts.kind != Kind::Embeddings => {
            Plan { payload: Payload::CutToolCall, ..plan }
        }
        Fault::NoDone if streamed => Plan { tail: Tail::NoDone, ..plan },
        Fault::DoneLinger if streamed => Plan { tail: Tail::HoldAfterDone(duration), ..plan },
        Fault::FinishLinger if streamed => Plan { tail: Tail::HoldAfterFinish(duration), ..plan },
        Fault::Crlf if streamed => wire(Wire { eol: Eol::CrLf, ..Wire::default() }),
        Fault::Cr if events => wire(Wire { eol: Eol::Cr, ..Wire::default() }),
        Fault::Lf if streamed => plan,
        Fault::MixedEol if events => wire(Wire { eol: Eol::Mixed, ..Wire::default() }),
        Fault::MultiLine if events => wire(Wire { multi_line: true, ..Wire::default() }),
        Fault::EmbedShort
        | Fault::EmbedReorder
        | Fault::EmbedDuplicate
        | Fault::EmbedNan
        | Fault::EmbedNull
        | Fault::EmbedZeros
        | Fault::EmbedEmpty
        | Fault::EmbedDims
            if facts.kind == Kind::Embeddings =>
        {
            Plan { embedding: Some(fault), ..plan }
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(kind: Kind) -> Facts<'static> {
        let uptime = Duration::ZERO;
        Facts {
            kind,
            dialect: Dialect::OpenAi,
            model: "m",
            prefilled: true,
            poisoned: true,
            reused: true,
            uptime,
            now_s: 0,
            chance: 7,
        }
    }

    #[test]
    fn every_fault_does_something_to_the_requests_it_is_for() {
        for fault in Fault::ALL {
            let kinds = [Kind::Stream, Kind::Whole, Kind::Embeddings];
            let mut facts = kinds.map(facts);
            facts.iter_mut().for_each(|facts| facts.uptime = Duration::from_secs(3));
            let acts = facts.each_ref().map(|facts| act(fault.into(), facts, || true).is_some());
            let embedding = fault.about().group == crate::fault::Group::Embedding;
            assert_eq!(acts[0], !embedding, "{fault} on a stream");
            assert!(acts[2] || !embedding, "{fault} on embeddings");
        }
    }

    #[test]
    fn once_means_once() {
        for fault in Fault::ALL.into_iter().filter(|fault| fault.name().ends_with("_once")) {
            assert!(act(fault.into(), &facts(Kind::Stream), || false).is_none());
        }
    }

    #[test]
    fn what_depends_on_the_request_looks_at_it() {
        let mut facts = facts(Kind::Embeddings);
        (facts.prefilled, facts.poisoned, facts.reused) = (false, false, false);
        for fault in [Fault::RejectPrefill, Fault::EmbedPoison, Fault::ResetReused] {
            assert!(act(fault.into(), &facts, || true).is_none(), "{fault}");
        }
    }

    #[test]
    fn flapping_follows_the_clock() {
        let flap: FaultSpec = "flap:500".parse().unwrap();
        let down = |ms| {
            let facts = Facts { uptime: Duration::from_millis(ms), ..facts(Kind::Stream) };
            act(flap, &facts, || true).is_some()
        };
        assert_eq!(
            [0, 499, 500, 999, 1000, 1500].map(down),
            [false, false, true, true, false, true]
        );
    }

    #[test]
    fn lines_of_json_know_only_what_lines_can_be() {
        let facts = Facts { dialect: Dialect::Ollama, ..facts(Kind::Stream) };
        for fault in [Fault::Cr, Fault::MixedEol, Fault::MultiLine] {
            assert!(act(fault.into(), &facts, || true).is_none(), "{fault}");
        }
        assert!(act(Fault::Crlf.into(), &facts, || true).is_some());
    }
}
