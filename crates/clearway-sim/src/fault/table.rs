//! The rows, in the order of [`Fault`].

use super::Fault as F;
use super::{About, Group, Parameter, Unit};

use Group::{Connection, Content, Embedding, Ending, Refusal, Slowness};

const fn row(fault: F, name: &'static str, group: Group, line: &'static str) -> About {
    About { fault, name, group, parameter: None, line }
}

const fn with(about: About, default: u64, unit: Unit) -> About {
    About { parameter: Some(Parameter { unit, default }), ..about }
}

const fn ms(about: About, default: u64) -> About {
    with(about, default, Unit::Milliseconds)
}

const fn seconds(about: About, default: u64) -> About {
    with(about, default, Unit::Seconds)
}

const fn tokens(about: About, default: u64) -> About {
    with(about, default, Unit::Tokens)
}

const fn megabytes(about: About, default: u64) -> About {
    with(about, default, Unit::Megabytes)
}

pub(super) const TABLE: [About; 81] = [
    seconds(
        row(
            F::RateLimitOnce,
            "rate_limit_once",
            Refusal,
            "429 with Retry-After, the first time only",
        ),
        2,
    ),
    row(F::RateLimit, "rate_limit", Refusal, "429 always, without a hint when to come back"),
    seconds(row(F::RetryAfter, "retry_after", Refusal, "429 always, Retry-After in seconds"), 3600),
    seconds(
        row(
            F::RetryAfterDate,
            "retry_after_date",
            Refusal,
            "429 always, Retry-After as an HTTP date",
        ),
        2,
    ),
    ms(row(F::RetryAfterMs, "retry_after_ms", Refusal, "429 always, retry-after-ms"), 1500),
    ms(
        row(
            F::RetryAfterText,
            "retry_after_text",
            Refusal,
            "429 always, only the message says when to come back",
        ),
        1700,
    ),
    row(F::RetryAfterNegative, "retry_after_negative", Refusal, "429 always, Retry-After: -5"),
    row(F::RetryAfterNan, "retry_after_nan", Refusal, "429 always, Retry-After: NaN"),
    row(F::RetryAfterHuge, "retry_after_huge", Refusal, "429 always, Retry-After: 1000000000000"),
    row(F::NoRetry, "no_retry", Refusal, "500 always, with x-should-retry: false"),
    with(row(F::Status, "status", Refusal, "any error status, without a code"), 502, Unit::Status),
    row(
        F::InsufficientQuota,
        "insufficient_quota",
        Refusal,
        "429 insufficient_quota: the account is empty",
    ),
    row(F::CreditBalance, "credit_balance", Refusal, "400 credit balance is too low"),
    row(F::Unauthorized, "unauthorized", Refusal, "401 invalid_api_key"),
    row(F::Forbidden, "forbidden", Refusal, "403 region not supported"),
    row(F::ModelNotFound, "model_not_found", Refusal, "404 model_not_found"),
    row(F::RequestTimeout, "request_timeout", Refusal, "408"),
    row(F::Conflict, "conflict", Refusal, "409"),
    row(F::ContextLength, "context_length", Refusal, "400 context_length_exceeded"),
    row(F::ContentFilter, "content_filter", Refusal, "400 content_filter"),
    row(
        F::RejectPrefill,
        "reject_prefill",
        Refusal,
        "400 when the last message is the assistant's, else a good reply",
    ),
    row(F::ServerErrorOnce, "server_error_once", Refusal, "500, the first time only"),
    row(F::ServerError, "server_error", Refusal, "500 always"),
    row(F::Unavailable, "unavailable", Refusal, "503 always"),
    row(F::Overloaded, "overloaded", Refusal, "529 overloaded_error always"),
    ms(row(F::Flap, "flap", Refusal, "good for so long, then 503 for as long, and again"), 2000),
    row(
        F::StalledError,
        "stalled_error",
        Refusal,
        "500 whose body stops in the middle, socket open",
    ),
    row(F::EndlessError, "endless_error", Refusal, "500 whose body never ends"),
    row(F::Reset, "reset", Connection, "resets the connection before any answer"),
    row(F::ResetOnce, "reset_once", Connection, "the same, the first time only"),
    row(
        F::ResetReused,
        "reset_reused",
        Connection,
        "the same, on a connection that was used before",
    ),
    ms(
        row(
            F::IdleClose,
            "idle_close",
            Connection,
            "good reply, then closes the idle connection within so long",
        ),
        100,
    ),
    row(
        F::CloseAfterReply,
        "close_after_reply",
        Connection,
        "good reply, then closes without having said so",
    ),
    row(F::NoAnswer, "no_answer", Connection, "reads the request and never answers"),
    row(F::NoRead, "no_read", Connection, "never reads the request body (by header or flag)"),
    ms(
        row(F::SlowHeaders, "slow_headers", Slowness, "nothing for so long, then a good reply"),
        20_000,
    ),
    ms(
        row(F::SlowHeadersOnce, "slow_headers_once", Slowness, "the same, the first time only"),
        20_000,
    ),
    ms(
        row(F::DripHeaders, "drip_headers", Slowness, "headers one byte at a time, so long apart"),
        500,
    ),
    ms(row(F::Ttft, "ttft", Slowness, "headers at once, the first token after so long"), 20_000),
    tokens(row(F::Stall, "stall", Slowness, "silent after so many tokens, socket open"), 20),
    tokens(
        row(F::StallKeepalive, "stall_keepalive", Slowness, "the same, but a comment every second"),
        20,
    ),
    seconds(
        row(F::Reasoning, "reasoning", Slowness, "only comments for so long, then a good reply"),
        60,
    ),
    seconds(
        row(
            F::ReasoningDeltas,
            "reasoning_deltas",
            Slowness,
            "a piece of reasoning each second for so long, then a good reply",
        ),
        60,
    ),
    ms(row(F::Drip, "drip", Slowness, "one token every so long"), 19_000),
    row(
        F::ErrorAfterRole,
        "error_after_role",
        Ending,
        "role chunk, two pings, then an error event before any output",
    ),
    tokens(row(F::ErrorEvent, "error_event", Ending, "error event after so many tokens"), 20),
    tokens(
        row(
            F::OverloadedEvent,
            "overloaded_event",
            Ending,
            "overloaded error event after so many tokens",
        ),
        0,
    ),
    tokens(row(F::CutRst, "cut_rst", Ending, "connection reset after so many tokens"), 20),
    tokens(
        row(F::CutFin, "cut_fin", Ending, "body without a length, closed after so many tokens"),
        20,
    ),
    tokens(
        row(
            F::CutChunk,
            "cut_chunk",
            Ending,
            "closed after so many tokens, the last chunk missing",
        ),
        20,
    ),
    tokens(row(F::CutEnd, "cut_end", Ending, "body ends in good order after so many tokens"), 20),
    row(
        F::ToolCallCut,
        "tool_call_cut",
        Ending,
        "a tool call whose arguments end in the middle of their JSON",
    ),
    row(
        F::NoDone,
        "no_done",
        Ending,
        "finish_reason but no [DONE], or what ends a stream in its place",
    ),
    ms(
        row(
            F::DoneLinger,
            "done_linger",
            Ending,
            "all of the stream, then the body stays open for so long",
        ),
        600_000,
    ),
    ms(
        row(F::FinishLinger, "finish_linger", Ending, "finish_reason, then silence for so long"),
        600_000,
    ),
    row(F::NoUsage, "no_usage", Ending, "no usage although asked for"),
    tokens(
        row(
            F::BadJson,
            "bad_json",
            Content,
            "an event that is not JSON after so many tokens, then on",
        ),
        5,
    ),
    row(F::SplitUtf8, "split_utf8", Content, "characters split across chunks"),
    row(F::Crlf, "crlf", Content, "lines end with CR LF"),
    row(F::Cr, "cr", Content, "lines end with CR"),
    row(F::Lf, "lf", Content, "lines end with LF, as in a good reply"),
    row(F::MixedEol, "mixed_eol", Content, "line endings change from event to event"),
    row(F::OneByte, "one_byte", Content, "every byte is a chunk of its own"),
    row(F::MultiLine, "multi_line", Content, "each event's JSON spread over several data lines"),
    row(F::Bom, "bom", Content, "a byte order mark first"),
    row(F::Error200, "error_200", Content, "200 with an error object"),
    row(F::Html200, "html_200", Content, "200 with a web page"),
    row(F::Empty200, "empty_200", Content, "200 with an empty body"),
    row(F::EmptyChoices, "empty_choices", Content, "no choices, no blocks, no output, ever"),
    row(F::WrongType, "wrong_type", Content, "a good reply as application/octet-stream"),
    megabytes(row(F::GiantEvent, "giant_event", Content, "one event of so many megabytes"), 100),
    row(F::EndlessLine, "endless_line", Content, "a line that never ends"),
    row(F::EmbedShort, "embed_short", Embedding, "one vector too few"),
    row(F::EmbedReorder, "embed_reorder", Embedding, "vectors in reverse order, index right"),
    row(F::EmbedDuplicate, "embed_duplicate", Embedding, "every vector says index 0"),
    row(F::EmbedNan, "embed_nan", Embedding, "a NaN in the first vector"),
    row(F::EmbedNull, "embed_null", Embedding, "a null in the first vector"),
    row(F::EmbedZeros, "embed_zeros", Embedding, "nothing but zeros in the first vector"),
    row(F::EmbedEmpty, "embed_empty", Embedding, "no numbers in the first vector"),
    row(F::EmbedDims, "embed_dims", Embedding, "the last vector is one number short"),
    row(F::EmbedPoison, "embed_poison", Embedding, "400 when a text contains \"poison\""),
];
