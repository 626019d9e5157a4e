//! Reading requests: bodies, fields, queries, headers. Every door uses these and nothing else.
//!
//! **Invariant:** whatever bytes come in, the answer is a value or a precise refusal, within bounded
//! memory and time. Which status a refusal gets is the dialect's business.

use std::fmt;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequestParts, RawPathParams};
use bytes::{Bytes, BytesMut};
use clearway_core::Code;
use http::header::{CONNECTION, CONTENT_LENGTH};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Uri};
use http_body_util::BodyExt;
use serde_json::{Map, Value};
use tokio::time::{Instant, timeout_at};

use crate::Problem;
use crate::server::HttpLimits;

/// One thing that is wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Invalid {
    /// A short word for programs: `missing`, `string_type`, `json_invalid`, …
    pub kind: &'static str,
    /// `body` or `query`, then the path of the field.
    pub at: Vec<String>,
    pub message: String,
}

impl Invalid {
    pub(crate) fn new(kind: &'static str, at: &[&str], message: impl Into<String>) -> Self {
        let at = at.iter().map(|part| (*part).to_owned()).collect();
        Self { kind, at, message: message.into() }
    }

    pub(crate) fn to_json(&self) -> Value {
        // Positions in lists are numbers, as clients of the old services expect them.
        let part =
            |part: &String| part.parse::<u64>().map_or_else(|_| part.clone().into(), Value::from);
        let at: Vec<Value> = self.at.iter().map(part).collect();
        serde_json::json!({"type": self.kind, "loc": at, "msg": self.message})
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self.at.as_slice() {
            [root] => root.clone(),
            [_, field @ ..] => format!("`{}`", field.join(".")),
            [] => "request".to_owned(),
        };
        write!(f, "{place}: {}", self.message)
    }
}

/// The whole body, within the limits of size and time, and within the time that the client gives.
///
/// One that is too large is refused at once: whoever waits to be told to continue never sends it, and
/// what another client still sends is thrown away when the connection closes (`conn`).
///
/// # Errors
/// `body_too_large`, `body_timeout`, or `invalid_request` when the connection breaks it off.
pub(crate) async fn read_body(
    headers: &HeaderMap,
    mut body: Body,
    limits: &HttpLimits,
) -> Result<Bytes, Problem> {
    let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: usize| length > limits.body_bytes) {
        return Err(too_large(limits.body_bytes));
    }
    // Whether the header makes sense is for whoever uses it as the run's deadline.
    let asked = deadline(headers, None).ok().flatten();
    let limit = asked.map_or(limits.body_timeout, |asked| asked.min(limits.body_timeout));
    let deadline = Instant::now() + limit;
    let mut first: Option<Bytes> = None;
    let mut whole = BytesMut::new();
    loop {
        let frame = match timeout_at(deadline, body.frame()).await {
            Err(_) => return Err(too_slow(limit)),
            Ok(None) => break,
            Ok(Some(Err(_))) => {
                let text = "the connection broke off in the middle of the body";
                return Err(Problem::new(Code::InvalidRequest, text));
            }
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(data) = frame.into_data() else { continue };
        let length = first.as_ref().map_or(0, Bytes::len) + whole.len() + data.len();
        if length > limits.body_bytes {
            return Err(too_large(limits.body_bytes));
        }
        // Most bodies are one frame, which then needs no copy.
        if first.is_none() && whole.is_empty() {
            first = Some(data);
        } else {
            if let Some(first) = first.take() {
                whole.extend_from_slice(&first);
            }
            whole.extend_from_slice(&data);
        }
    }
    Ok(first.unwrap_or_else(|| whole.freeze()))
}

fn too_large(limit: usize) -> Problem {
    Problem::new(Code::BodyTooLarge, format!("the body is larger than {limit} bytes"))
        .header(CONNECTION, HeaderValue::from_static("close"))
}

fn too_slow(limit: Duration) -> Problem {
    let text = format!("the body did not arrive within {} s", limit.as_secs_f64());
    Problem::new(Code::BodyTimeout, text).header(CONNECTION, HeaderValue::from_static("close"))
}

/// Reads a body as JSON, whatever its content type says.
///
/// # Errors
/// Says what is wrong, and where: line and column for syntax.
pub(crate) fn parse_json(bytes: &[u8]) -> Result<Value, Invalid> {
    let invalid = |message: String| Invalid::new("json_invalid", &["body"], message);
    // Clients on Windows begin with the mark of UTF-8, and their old services did not mind.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = std::str::from_utf8(bytes)
        .map_err(|error| invalid(format!("not valid UTF-8 at byte {}", error.valid_up_to())))?;
    if text.trim().is_empty() {
        return Err(Invalid::new(
            "missing",
            &["body"],
            "the body is empty; a JSON object is expected",
        ));
    }
    check_nesting(text).map_err(invalid)?;
    serde_json::from_str(text).map_err(|error| invalid(format!("not valid JSON: {error}")))
}

/// How deep a body may nest.
const NESTING: usize = 64;

/// Refuses deep nesting before anything is built from it.
fn check_nesting(text: &str) -> Result<(), String> {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => {
                depth += 1;
                if depth > NESTING {
                    let before = &text.as_bytes()[..at];
                    let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
                    let column = at
                        - before.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1)
                        + 1;
                    return Err(format!(
                        "nested deeper than {NESTING} levels at line {line} column {column}"
                    ));
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

/// A JSON object whose fields are taken one by one. All mistakes are collected, so that a caller
/// learns about them at once.
#[derive(Clone, Debug)]
pub(crate) struct Fields {
    map: Map<String, Value>,
    at: Vec<String>,
    invalid: Vec<Invalid>,
}

impl Fields {
    /// The fields of a body.
    ///
    /// # Errors
    /// The bytes are not a JSON object.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Vec<Invalid>> {
        let value = parse_json(bytes).map_err(|invalid| vec![invalid])?;
        Self::of(value, &["body"]).map_err(|invalid| vec![invalid])
    }

    /// The fields of an object somewhere inside a body.
    pub(crate) fn of(value: Value, at: &[&str]) -> Result<Self, Invalid> {
        match value {
            Value::Object(map) => {
                let at = at.iter().map(|part| (*part).to_owned()).collect();
                Ok(Self { map, at, invalid: Vec::new() })
            }
            other => {
                let text = format!("an object is expected, this is {}", kind_of(&other));
                Err(Invalid::new("object_type", at, text))
            }
        }
    }

    /// Text that must be there.
    pub(crate) fn text(&mut self, name: &str) -> String {
        match self.map.remove(name) {
            None => {
                self.wrong("missing", name, "this field is required");
                String::new()
            }
            Some(value) => self.as_text(name, value).unwrap_or_default(),
        }
    }

    /// Text that may be absent or null.
    pub(crate) fn nullable_text(&mut self, name: &str) -> Option<String> {
        self.map
            .remove(name)
            .filter(|value| !value.is_null())
            .and_then(|value| self.as_text(name, value))
    }

    fn as_text(&mut self, name: &str, value: Value) -> Option<String> {
        match value {
            Value::String(text) => Some(text),
            other => {
                let text = format!("a string is expected, this is {}", kind_of(&other));
                self.wrong("string_type", name, text);
                None
            }
        }
    }

    /// An object that may be absent or null.
    pub(crate) fn object(&mut self, name: &str) -> Map<String, Value> {
        match self.map.remove(name) {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(map)) => map,
            Some(other) => {
                let text = format!("an object is expected, this is {}", kind_of(&other));
                self.wrong("dict_type", name, text);
                Map::new()
            }
        }
    }

    /// A list that may be absent or null.
    pub(crate) fn list(&mut self, name: &str) -> Vec<Value> {
        match self.map.remove(name) {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(items)) => items,
            Some(other) => {
                let text = format!("a list is expected, this is {}", kind_of(&other));
                self.wrong("list_type", name, text);
                Vec::new()
            }
        }
    }

    /// What nobody has taken yet.
    pub(crate) fn into_map(self) -> Map<String, Value> {
        self.map
    }

    /// Any value, as it came.
    pub(crate) fn value(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name)
    }

    pub(crate) fn wrong(&mut self, kind: &'static str, name: &str, message: impl Into<String>) {
        let mut at = self.at.clone();
        at.push(name.to_owned());
        self.invalid.push(Invalid { kind, at, message: message.into() });
    }

    /// Takes over the mistakes of an object inside this one.
    pub(crate) fn absorb(&mut self, invalid: Vec<Invalid>) {
        self.invalid.extend(invalid);
    }

    /// Refuses text that is empty or blank, unless the field is already refused.
    pub(crate) fn not_blank(&mut self, name: &str, text: &str) {
        if text.trim().is_empty() && !self.is_refused(name) {
            self.wrong("string_too_short", name, "must not be empty or blank");
        }
    }

    /// Checks text that names something: a user, a conversation.
    pub(crate) fn check_name(&mut self, name: &str, text: &str) {
        self.not_blank(name, text);
        if let Err((kind, message)) = check_name(text) {
            self.wrong(kind, name, message);
        }
    }

    fn is_refused(&self, name: &str) -> bool {
        self.invalid.iter().any(|invalid| invalid.at.last().is_some_and(|last| last == name))
    }

    /// The end: fields that nobody took are ignored, as the dialects do.
    ///
    /// # Errors
    /// Everything that was wrong.
    pub(crate) fn finish(self) -> Result<(), Vec<Invalid>> {
        if self.invalid.is_empty() { Ok(()) } else { Err(self.invalid) }
    }
}

/// Characters that a user or conversation id may have.
const NAME_CHARS: usize = 256;

/// Ids are kept as data and hashed, so any spelling is safe; control characters would still garble
/// logs and terminals.
pub(crate) fn check_name(text: &str) -> Result<(), (&'static str, String)> {
    let length = text.chars().count();
    if length > NAME_CHARS {
        return Err((
            "string_too_long",
            format!("at most {NAME_CHARS} characters, this has {length}"),
        ));
    }
    if let Some(bad) = text.chars().find(|char| char.is_control()) {
        let text = format!("control characters are not allowed, this has U+{:04X}", u32::from(bad));
        return Err(("string_pattern_mismatch", text));
    }
    Ok(())
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The query of an address.
#[derive(Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// # Errors
    /// A percent escape is broken or does not make UTF-8.
    pub(crate) fn parse(uri: &Uri) -> Result<Self, Invalid> {
        let pairs = uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let decode = |pair: &str| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((percent_decode(name)?, percent_decode(value)?))
        };
        pairs.map(decode).collect::<Result<_, Invalid>>().map(Self)
    }

    /// The query of one of our own addresses, which refuse names that they do not know.
    ///
    /// # Errors
    /// As [`Query::parse`]; an unknown name.
    pub(crate) fn own(uri: &Uri, known: &[&str]) -> Result<Self, Problem> {
        let query = Self::parse(uri)?;
        match query.0.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            None => Ok(query),
            Some((name, _)) => {
                let text = format!("no query parameter is called `{name}` here");
                let hint = match known {
                    [] => "This address takes none.".to_owned(),
                    known => format!("It takes: {}.", known.join(", ")),
                };
                Err(Problem::new(Code::InvalidRequest, text).hint(hint))
            }
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// All values of a name that may be repeated, as they are.
    pub(crate) fn every<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let of_name = self.0.iter().filter(move |(known, _)| known == name);
        of_name.map(|(_, value)| value.as_str())
    }

    /// All values of a name that may be repeated, as they came.
    pub(crate) fn each<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// All values of a name that may be repeated or carry a list with commas.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let of_name = self.0.iter().filter(move |(known, _)| known == name);
        of_name
            .flat_map(|(_, value)| value.split(','))
            .map(str::trim)
            .filter(|value| !value.is_empty())
    }

    /// A value of another type; `None` when the name is absent.
    ///
    /// # Errors
    /// `invalid_request`, with what is expected.
    pub(crate) fn read<T: std::str::FromStr>(
        &self,
        name: &str,
        expected: &str,
    ) -> Result<Option<T>, Problem> {
        let Some(text) = self.get(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| {
            let text = format!("`{name}` must be {expected}, this is `{}`", shown(text));
            Problem::new(Code::InvalidRequest, text)
        })
    }

    /// A switch: `1`, `true` and the other words of the old services' clients (Python writes `True`),
    /// or the bare name.
    ///
    /// # Errors
    /// As [`Query::read`].
    pub(crate) fn flag(&self, name: &str) -> Result<bool, Problem> {
        let Some(word) = self.get(name) else { return Ok(false) };
        match word.to_ascii_lowercase().as_str() {
            "0" | "false" | "f" | "no" | "n" | "off" => Ok(false),
            "1" | "true" | "t" | "yes" | "y" | "on" | "" => Ok(true),
            _ => {
                let text = format!("`{name}` must be 1 or 0, this is `{}`", shown(word));
                Err(Problem::new(Code::InvalidRequest, text))
            }
        }
    }
}

/// Somebody's text, short enough to be quoted in an error.
pub(crate) fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(64).flat_map(char::escape_debug).collect();
    if text.chars().count() > 64 {
        shown.push('…');
    }
    shown
}

fn percent_decode(text: &str) -> Result<String, Invalid> {
    let broken = || {
        let text = format!("`{}` has a broken percent escape", shown(text));
        Invalid::new("value_error", &["query"], text)
    };
    let hex = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let (Some(high), Some(low)) = (hex(bytes.next()), hex(bytes.next())) else {
                    return Err(broken());
                };
                (high * 16 + low) as u8
            }
            other => other,
        });
    }
    String::from_utf8(decoded).map_err(|_| broken())
}

/// The first parameter of a path, as text.
#[derive(Debug)]
pub(crate) struct PathText(pub String);

impl<S: Send + Sync> FromRequestParts<S> for PathText {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let bad = || Problem::new(Code::InvalidRequest, "the path is not valid UTF-8");
        let params = RawPathParams::from_request_parts(parts, state).await.map_err(|_| bad())?;
        params.iter().next().map(|(_, value)| Self(value.to_owned())).ok_or_else(bad)
    }
}

/// The deadline that a client asks for: the smaller of the header and the body's field.
///
/// # Errors
/// `invalid_request` when one of them is not a positive whole number of milliseconds.
pub(crate) fn deadline(
    headers: &HeaderMap,
    field: Option<Value>,
) -> Result<Option<Duration>, Problem> {
    let wrong = |name: &str, text: &str| {
        let text = format!(
            "{name} must be a whole number of milliseconds above 0, this is `{}`",
            shown(text)
        );
        Problem::new(Code::InvalidRequest, text)
    };
    let header = match headers.get("x-deadline-ms") {
        None => None,
        Some(value) => {
            let text = String::from_utf8_lossy(value.as_bytes());
            let ms = text.trim().parse::<u64>().ok().filter(|ms| *ms > 0);
            Some(ms.ok_or_else(|| wrong("X-Deadline-Ms", &text))?)
        }
    };
    let body = match field {
        None | Some(Value::Null) => None,
        Some(value) => {
            let ms = value.as_u64().filter(|ms| *ms > 0);
            Some(ms.ok_or_else(|| wrong("`deadline_ms`", &value.to_string()))?)
        }
    };
    Ok(header.into_iter().chain(body).min().map(Duration::from_millis))
}

/// A run's metadata with the trace that its request belongs to, so that the run's span continues it
/// whenever and wherever the run is executed. A header that is no W3C trace context is ignored.
pub(crate) fn traced(mut metadata: Map<String, Value>, headers: &HeaderMap) -> Map<String, Value> {
    let header = headers.get(TRACEPARENT).and_then(|value| value.to_str().ok()).map(str::trim);
    if let Some(parent) = header.filter(|text| is_traceparent(text)) {
        metadata.insert(TRACEPARENT.to_owned(), parent.into());
    }
    metadata
}

const TRACEPARENT: &str = "traceparent";

/// Version, trace, span and flags; versions to come may say more.
fn is_traceparent(text: &str) -> bool {
    let parts: Vec<&str> = text.splitn(5, '-').collect();
    let is_hex = |part: &str| part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let is_id = |part: &str| is_hex(part) && part.bytes().any(|b| b != b'0');
    let [version, trace, span, flags, rest @ ..] = parts.as_slice() else { return false };
    let lengths = (version.len(), trace.len(), span.len(), flags.len()) == (2, 32, 16, 2);
    let known = *version != "ff" && (*version != "00" || rest.is_empty()) && text.len() <= 256;
    lengths && known && is_hex(version) && is_id(trace) && is_id(span) && is_hex(flags)
}

#[cfg(test)]
mod tests;
