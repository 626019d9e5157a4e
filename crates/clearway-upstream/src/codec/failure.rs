//! What an error answer means.
//!
//! Statuses alone do not tell: a 429 may be a full minute or an empty account, a 400 a prompt that
//! is too long or one that is not allowed. [`Rejection`] looks at the body's codes and words too,
//! so that the code says what an operator would do about it.

use std::time::{Duration, SystemTime};

use clearway_core::Code;
use http::{HeaderMap, HeaderName};
use serde_json::Value;

use crate::failure::is_retryable;

/// A provider's refusal, understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Rejection {
    pub code: Code,
    /// The same request may succeed later.
    pub retryable: bool,
    /// The provider's own word, from `x-should-retry`.
    pub should_retry: Option<bool>,
    /// When, if the provider says so; at most an hour.
    pub retry_after: Option<Duration>,
    /// The provider's words, scrubbed and cut.
    pub message: String,
    /// The provider's own code or type.
    pub provider_code: Option<String>,
    pub status: Option<u16>,
}

impl Rejection {
    /// An answer with a status that is not 2xx. `now` serves `Retry-After` dates of providers that
    /// do not say what time they think it is.
    pub fn http(
        status: u16,
        headers: &HeaderMap,
        body: &[u8],
        secrets: Secrets<'_>,
        now: Option<SystemTime>,
    ) -> Self {
        let told = Told::read(body);
        let code = judge(Some(status), &told);
        let should_retry = match headers.get("x-should-retry").map(http::HeaderValue::as_bytes) {
            Some(b"true") => Some(true),
            Some(b"false") => Some(false),
            Some(_) | None => None,
        };
        let retryable = should_retry.unwrap_or(is_retryable(code));
        let hint = retry_hint(headers, &told.message, now).filter(|_| retryable);
        let message = if told.message.is_empty() {
            format!("HTTP {status} without an explanation")
        } else {
            told.message.clone()
        };
        Self {
            code,
            retryable,
            should_retry,
            retry_after: hint,
            message: secrets.scrub(&message),
            provider_code: told.provider_code(secrets),
            status: Some(status),
        }
    }

    /// An error inside an answer with a good status.
    pub fn in_band(data: &[u8], secrets: Secrets<'_>) -> Self {
        let told = Told::read(data);
        let code = judge(None, &told);
        let retryable = is_retryable(code);
        let message =
            if told.message.is_empty() { "an error without an explanation" } else { &told.message };
        Self {
            code,
            retryable,
            should_retry: None,
            retry_after: hint_in_text(&told.message).and_then(sane).filter(|_| retryable),
            message: secrets.scrub(message),
            provider_code: told.provider_code(secrets),
            status: told.status,
        }
    }
}

/// What the body of an error says.
#[derive(Debug, Default)]
struct Told {
    message: String,
    code: Option<String>,
    kind: Option<String>,
    status: Option<u16>,
    /// Codes, types and status words, lower case, each between spaces.
    words: String,
    /// Everything readable, lower case.
    text: String,
}

impl Told {
    fn read(body: &[u8]) -> Self {
        let Ok(document) = serde_json::from_slice::<Value>(body) else {
            let text = String::from_utf8_lossy(body).into_owned();
            let message = if looks_like_html(body) {
                match html_title(&text) {
                    Some(title) => format!("an HTML page: {title}"),
                    None => "an HTML page".to_owned(),
                }
            } else {
                text
            };
            return Self { text: message.to_lowercase(), message, ..Self::default() };
        };
        // Gemini wraps the document in a list, a stream of responses in an event.
        let document = document.get(0).unwrap_or(&document);
        let document = match &document["response"] {
            response if response.is_object() && document["error"].is_null() => response,
            _ => document,
        };
        let error = match &document["error"] {
            Value::Null => document,
            error => error,
        };
        let message = [&error["message"], error, &error["detail"], &document["message"]]
            .into_iter()
            .chain([&error["msg"], &error["error_description"], &document["detail"]])
            .find_map(|value| value.as_str().filter(|text| !text.is_empty()))
            .map_or_else(
                // FastAPI lists what it did not like.
                || error.get("detail").map(Value::to_string).unwrap_or_default(),
                str::to_owned,
            );
        let word = |value: &Value| match value {
            Value::String(word) if !word.is_empty() => Some(word.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        let code = word(&error["code"]).or_else(|| word(&document["code"]));
        let kind = word(&error["type"]).or_else(|| word(&document["type"]));
        let status = [&error["code"], &error["status"], &document["code"], &document["status"]]
            .into_iter()
            .find_map(|value| value.as_u64().or_else(|| value.as_str()?.parse().ok()))
            .and_then(|status| u16::try_from(status).ok())
            .filter(|status| (400..600).contains(status));
        let inner = word(&error["innererror"]["code"]);
        let words = [code.as_deref(), kind.as_deref(), inner.as_deref(), error["status"].as_str()]
            .into_iter()
            .flatten()
            .map(|word| format!(" {} ", word.to_lowercase()))
            .collect();
        let mut text = message.to_lowercase();
        if let Some(details) = error.get("details") {
            text.push_str(&details.to_string().to_lowercase());
        }
        Self { message, code, kind, status, words, text }
    }

    fn has(&self, words: &[&str]) -> bool {
        words.iter().any(|word| self.words.contains(word))
    }

    fn says(&self, phrases: &[&str]) -> bool {
        phrases.iter().any(|phrase| self.text.contains(phrase))
    }

    fn provider_code(&self, secrets: Secrets<'_>) -> Option<String> {
        let word = self.code.as_ref().or(self.kind.as_ref())?;
        Some(secrets.scrub(word))
    }

    fn is_quota(&self) -> bool {
        if self.has(&["insufficient_quota", "billing_", "insufficient_balance", "credit"])
            || self.says(&[
                "credit balance",
                "insufficient balance",
                "insufficient credit",
                "payment required",
                "api usage limits",
            ])
        {
            return true;
        }
        // Gemini says the same of a full minute, but gives the window or a delay with it.
        self.says(&["exceeded your current quota"])
            && !self.says(&["perminute", "per minute", "retrydelay"])
    }

    fn is_key(&self) -> bool {
        self.has(&["invalid_api_key", "authentication", "api_key_invalid", "unauthenticated"])
            || self.says(&["incorrect api key", "invalid api key", "api key not valid"])
    }

    fn is_content(&self) -> bool {
        self.has(&["content_filter", "content_policy", "responsibleaipolicy", "moderation"])
            || self.says(&[
                "content management policy",
                "safety system",
                "was flagged",
                "content filtering policy",
            ])
    }

    fn is_context(&self) -> bool {
        self.has(&["context_length", "string_above_max_length", "prompt_too_long"])
            || self.says(&[
                "context length",
                "context window",
                "context size",
                "context limit",
                "prompt is too long",
                "input is too long",
                "too many tokens",
                "maximum number of tokens",
                "reduce the length",
            ])
    }

    fn is_model(&self) -> bool {
        self.has(&["model_not_found", "deploymentnotfound", "model_not_available"])
    }

    fn is_overload(&self) -> bool {
        self.has(&["overloaded", "slow_down", " unavailable "])
    }

    fn is_rate(&self) -> bool {
        self.has(&["rate_limit", "too_many_requests", "resource_exhausted", "throttl"])
    }
}

/// One code per thing somebody would do about it.
fn judge(http: Option<u16>, told: &Told) -> Code {
    let status = http.or(told.status);
    let among = |list: &[u16]| status.is_none_or(|status| list.contains(&status));
    if status == Some(402) || (among(&[400, 403, 429]) && told.is_quota()) {
        return Code::UpstreamQuotaExhausted;
    }
    if status == Some(401) || (among(&[400, 403]) && told.is_key()) {
        return Code::UpstreamCredentialsExhausted;
    }
    if among(&[400, 403, 422, 451]) && told.is_content() {
        return Code::UpstreamContentPolicy;
    }
    if status == Some(413) || (among(&[400, 422]) && told.is_context()) {
        return Code::UpstreamContextLength;
    }
    if matches!(status, Some(404 | 410)) || (among(&[400, 403]) && told.is_model()) {
        return Code::UpstreamModelUnavailable;
    }
    if status == Some(429) || (status.is_none() && told.is_rate()) {
        return Code::UpstreamRateLimited;
    }
    if among(&[500, 502, 503, 504, 529]) && told.is_overload() {
        return Code::UpstreamOverloaded;
    }
    match status {
        Some(403) => Code::UpstreamForbidden,
        Some(408) => Code::UpstreamTimeout,
        Some(409 | 425) => Code::UpstreamConflict,
        Some(503 | 529) => Code::UpstreamOverloaded,
        Some(500..) => Code::UpstreamServerError,
        Some(400..) => Code::UpstreamInvalidRequest,
        // A redirect or a status that ends nothing.
        Some(_) => Code::UpstreamBadResponse,
        None if told.has(&[" invalid_"]) => Code::UpstreamInvalidRequest,
        None if told.has(&["permission"]) => Code::UpstreamForbidden,
        None if told.has(&["timeout"]) => Code::UpstreamTimeout,
        None => Code::UpstreamServerError,
    }
}

/// When to come back, most precise source first.
fn retry_hint(headers: &HeaderMap, message: &str, now: Option<SystemTime>) -> Option<Duration> {
    let text = |name: &HeaderName| headers.get(name)?.to_str().ok().map(str::trim);
    let number = |name: &'static str| text(&HeaderName::from_static(name))?.parse::<f64>().ok();
    let ms = number("retry-after-ms").or_else(|| number("x-ms-retry-after-ms"));
    ms.and_then(|ms| sane(ms / 1000.0))
        .or_else(|| number("retry-after").and_then(sane))
        .or_else(|| {
            let at = httpdate::parse_http_date(text(&http::header::RETRY_AFTER)?).ok()?;
            // The provider's own clock, where it tells it, so that ours may be wrong.
            let sent = text(&http::header::DATE).and_then(|at| httpdate::parse_http_date(at).ok());
            Some(at.duration_since(sent.or(now)?).unwrap_or_default().min(MAX_HINT))
        })
        .or_else(|| hint_in_text(message).and_then(sane))
        .or_else(|| exhausted_window(headers))
}

/// The longest reset among the windows that are used up; the others say nothing about this refusal.
fn exhausted_window(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: String| headers.get(name)?.to_str().ok().map(str::trim);
    ["requests", "tokens"]
        .into_iter()
        .filter(|window| text(format!("x-ratelimit-remaining-{window}")) == Some("0"))
        .filter_map(|window| parse_span(text(format!("x-ratelimit-reset-{window}"))?))
        .filter_map(sane)
        .max()
}

/// "Please try again in 1.7s" and its like.
fn hint_in_text(message: &str) -> Option<f64> {
    let (_, rest) = message.split_once("try again in ")?;
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '.').unwrap_or(rest.len());
    parse_span(rest[..end].trim_end_matches('.'))
}

/// `1.7s`, `20ms`, `6m0s`, `1h`, or seconds without a unit.
fn parse_span(text: &str) -> Option<f64> {
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..digits].parse().ok()?;
        let unit = &rest[digits..];
        let letters = unit.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(unit.len());
        seconds += number
            * match &unit[..letters] {
                "ms" => 0.001,
                "" | "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = &unit[letters..];
    }
    (!text.is_empty()).then_some(seconds)
}

/// Negative, infinite and absurd waits are no hints; long ones are cut.
fn sane(seconds: f64) -> Option<Duration> {
    if !seconds.is_finite() || seconds < 0.0 {
        return None;
    }
    Some(Duration::from_secs_f64(seconds.min(MAX_HINT.as_secs_f64())))
}

/// What must not appear in any message.
#[derive(Clone, Copy, Debug, Default)]
pub struct Secrets<'a> {
    keys: &'a [crate::config::Secret],
}

impl<'a> Secrets<'a> {
    pub const fn new(keys: &'a [crate::config::Secret]) -> Self {
        Self { keys }
    }

    /// A provider's text as it may be shown: without keys and control characters, and short.
    pub fn scrub(self, text: &str) -> String {
        // In this order: taking something out may join the parts of a key, and cutting may leave
        // one half of it.
        let mut text: String = text
            .chars()
            .map(|c| if c.is_whitespace() { ' ' } else { c })
            .filter(|c| !c.is_control())
            .collect();
        for key in self.keys.iter().map(crate::config::Secret::reveal) {
            if !key.is_empty() && text.contains(key) {
                text = text.replace(key, HIDDEN);
            }
        }
        let mut clean = String::with_capacity(text.len().min(MAX_READ));
        for (at, word) in cut(&text, MAX_READ).split_whitespace().enumerate() {
            if at > 0 {
                clean.push(' ');
            }
            hide_keys(word, &mut clean);
        }
        if clean.chars().count() <= MAX_MESSAGE {
            return clean;
        }
        clean.chars().take(MAX_MESSAGE - 1).chain(['…']).collect()
    }
}

/// Copies a word, but hides what looks like a key: providers quote keys, masked in part or not,
/// and not only the one that we sent.
fn hide_keys(word: &str, out: &mut String) {
    let mut rest = word;
    while let Some(at) = KEY_MARKS.iter().filter_map(|mark| rest.find(mark)).min() {
        let end = rest[at..]
            .find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_' | '*' | '.'))
            .map_or(rest.len(), |length| at + length);
        let starts_word = !rest[..at].ends_with(|c: char| c.is_ascii_alphanumeric());
        if starts_word && end - at >= MIN_KEY {
            out.push_str(&rest[..at]);
            out.push_str(HIDDEN);
        } else {
            out.push_str(&rest[..end]);
        }
        rest = &rest[end..];
    }
    out.push_str(rest);
}

fn cut(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Whether a body is a page for people.
pub(crate) fn looks_like_html(body: &[u8]) -> bool {
    let start = body.trim_ascii_start();
    start.starts_with(b"<!") || start.starts_with(b"<html") || start.starts_with(b"<HTML")
}

fn html_title(page: &str) -> Option<&str> {
    let (_, rest) = page.split_once("<title>")?;
    let (title, _) = rest.split_once("</title>")?;
    Some(title.trim()).filter(|title| !title.is_empty())
}

/// For the fuzzer: reads `data` as a refusal, as an error in the band, and as a whole answer.
///
/// # Panics
///
/// When a key gets into a message, or a message or hint outgrows its bound.
pub fn fuzz(data: &[u8]) {
    let Some((&seed, body)) = data.split_first() else { return };
    let key = crate::config::Secret::new("0123456789");
    let secrets = Secrets::new(std::slice::from_ref(&key));
    let mut headers = HeaderMap::new();
    let hint = &body[..body.len().min(usize::from(seed))];
    if let Ok(value) = http::HeaderValue::from_bytes(hint) {
        headers.insert(http::header::RETRY_AFTER, value);
    }
    let statuses = [400, 401, 403, 413, 429, 500, 503, 302];
    let status = statuses[usize::from(seed) % statuses.len()];
    let told = Rejection::http(status, &headers, body, secrets, Some(SystemTime::UNIX_EPOCH));
    for rejection in [told, Rejection::in_band(body, secrets)] {
        assert!(!rejection.message.contains(key.reveal()), "{}", rejection.message);
        assert!(rejection.message.chars().count() <= MAX_MESSAGE);
        assert!(rejection.retry_after.is_none_or(|hint| hint <= MAX_HINT));
    }
    if let Ok(events) = super::openai::answer::read(body, secrets) {
        assert!(matches!(events.back(), Some(super::ChatEvent::Finish { .. })));
    }
}

const HIDDEN: &str = "[key]";
const KEY_MARKS: [&str; 4] = ["sk-", "sk_", "gsk_", "AIza"];
const MIN_KEY: usize = 8;
const MAX_MESSAGE: usize = 500;
/// How much of a scrubbed text can become part of a message.
const MAX_READ: usize = 4096;
const MAX_HINT: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests;
