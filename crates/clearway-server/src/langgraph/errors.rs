//! Refusals of this door: a text in `detail`, and the statuses that its clients know.

use std::ops::RangeInclusive;

use clearway_core::Code;
use http::StatusCode;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::Problem;
use crate::extract::{Fields, Invalid, shown};

/// The request is not what the address expects.
pub(super) fn unprocessable(text: impl Into<String>) -> Problem {
    Problem::new(Code::InvalidRequest, text).status(StatusCode::UNPROCESSABLE_ENTITY)
}

/// A body with mistakes.
pub(super) fn invalid(invalid: Vec<Invalid>) -> Problem {
    Problem::from(invalid).status(StatusCode::UNPROCESSABLE_ENTITY)
}

/// The request contradicts itself or the thread.
pub(super) fn bad_request(text: impl Into<String>) -> Problem {
    Problem::new(Code::InvalidRequest, text)
}

/// A UUID, in any of its spellings.
///
/// # Errors
/// 422, naming what was meant to be one.
pub(super) fn uuid(what: &str, text: &str) -> Result<Uuid, Problem> {
    Uuid::try_parse(text)
        .map_err(|_| unprocessable(format!("{what} must be a UUID, this is `{}`", shown(text))))
}

/// A whole number in a range; `default` when it is absent or null.
pub(super) fn count(
    fields: &mut Fields,
    name: &str,
    range: RangeInclusive<i64>,
    default: i64,
) -> i64 {
    match fields.value(name) {
        None | Some(Value::Null) => default,
        Some(value) => {
            value.as_i64().filter(|number| range.contains(number)).unwrap_or_else(|| {
                let text = match range.end() {
                    &i64::MAX => format!("must be a whole number from {} on", range.start()),
                    end => format!("must be a whole number from {} to {end}", range.start()),
                };
                fields.wrong("out_of_range", name, text);
                default
            })
        }
    }
}

/// An object; empty when it is absent or null.
pub(super) fn object(fields: &mut Fields, name: &str) -> Map<String, Value> {
    match fields.value(name) {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(map)) => map,
        Some(_) => {
            fields.wrong("dict_type", name, "must be an object");
            Map::new()
        }
    }
}

/// One of several words; `default` when it is absent or null.
pub(super) fn choice(fields: &mut Fields, name: &str, known: &[&str], default: &str) -> String {
    match fields.value(name) {
        None | Some(Value::Null) => default.to_owned(),
        Some(Value::String(word)) if known.contains(&word.as_str()) => word,
        Some(_) => {
            fields.wrong("enum", name, format!("must be one of: {}", known.join(", ")));
            default.to_owned()
        }
    }
}

/// A switch; `default` when it is absent or null.
pub(super) fn switch(fields: &mut Fields, name: &str, default: bool) -> bool {
    match fields.value(name) {
        None | Some(Value::Null) => default,
        Some(Value::Bool(on)) => on,
        Some(_) => {
            fields.wrong("bool_type", name, "must be true or false");
            default
        }
    }
}
