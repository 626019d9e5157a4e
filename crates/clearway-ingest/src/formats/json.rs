//! JSON: one line for each value, with the way that leads to it.

use std::fmt::Write;

use serde_json::Value;

use super::Builder;
use crate::protocol::{Parsed, Trouble, TroubleKind};

pub(super) fn json(text: &str) -> Result<Parsed, Trouble> {
    let value: Value = serde_json::from_str(text).map_err(|error| broken(&error, None))?;
    let mut builder = Builder::new("json");
    match &value {
        // A list of records reads like one record after the other.
        Value::Array(items) if items.iter().all(Value::is_object) => {
            items.iter().for_each(|item| record(&mut builder, item));
        }
        other => record(&mut builder, other),
    }
    let mut parsed = builder.finish();
    parsed.title = name_of(&value);
    Ok(parsed)
}

pub(super) fn lines(text: &str) -> Result<Parsed, Trouble> {
    let mut builder = Builder::new("jsonl");
    let (mut good, mut bad) = (0_usize, Vec::new());
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        match serde_json::from_str::<Value>(line) {
            Ok(value) => {
                good += 1;
                record(&mut builder, &value);
            }
            Err(error) => bad.push(broken(&error, Some(number + 1))),
        }
    }
    if good == 0
        && let Some(first) = bad.first()
    {
        return Err(first.clone());
    }
    let mut parsed = builder.finish();
    // A log that was cut off in the middle says what it says all the same.
    parsed.notes.extend(bad.iter().take(TOLD).map(|trouble| format!("left out: {trouble}")));
    if bad.len() > TOLD {
        parsed
            .notes
            .push(format!("left out: {} more lines that are no valid JSON", bad.len() - TOLD));
    }
    Ok(parsed)
}

/// Bad lines that are told one by one.
const TOLD: usize = 3;

fn broken(error: &serde_json::Error, line: Option<usize>) -> Trouble {
    let place = line.map(|line| format!("line {line}: ")).unwrap_or_default();
    Trouble::new(TroubleKind::Broken, format!("{place}it is no valid JSON: {error}"))
}

fn record(builder: &mut Builder, value: &Value) {
    let mut text = String::new();
    flatten(&mut text, &mut String::new(), value);
    builder.paragraph(&text);
}

fn name_of(value: &Value) -> Option<String> {
    ["title", "name"].iter().find_map(|key| value.get(*key)?.as_str().map(ToOwned::to_owned))
}

fn flatten(out: &mut String, path: &mut String, value: &Value) {
    let length = path.len();
    let mut inside = |name: &dyn std::fmt::Display, value: &Value| {
        let separator = if length == 0 { "" } else { "." };
        let _ = write!(path, "{separator}{name}");
        flatten(out, path, value);
        path.truncate(length);
    };
    match value {
        Value::Object(map) => map.iter().for_each(|(name, value)| inside(name, value)),
        Value::Array(items) if items.iter().any(|item| item.is_object() || item.is_array()) => {
            items.iter().enumerate().for_each(|(at, value)| inside(&at, value));
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(plain).collect();
            let _ = writeln!(out, "{path}: {}", items.join(", "));
        }
        Value::Null => {}
        other if path.is_empty() => {
            let _ = writeln!(out, "{}", plain(other));
        }
        other => {
            let _ = writeln!(out, "{path}: {}", plain(other));
        }
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned)
}
