//! A log line as one JSON object: time, level, the event's own fields, target.
//!
//! A run logs a few lines, at every rate of runs, so a line is written as it will leave: no map is
//! built, and no value is formatted twice.

use std::error::Error;
use std::fmt::{self, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

use clearway::Timestamp;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// Gives each event to `write` as a line with its end.
pub(super) struct JsonLines<W>(pub(super) W);

impl<S: Subscriber, W: Fn(Vec<u8>) + 'static> Layer<S> for JsonLines<W> {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        (self.0)(line(event));
    }
}

/// Room for a line of the usual length.
const USUAL: usize = 320;

#[expect(clippy::disallowed_methods, reason = "a line says when it was written, by whatever clock")]
fn line(event: &Event<'_>) -> Vec<u8> {
    let mut text = String::with_capacity(USUAL);
    text.push_str("{\"timestamp\":\"");
    put_time(&mut text, SystemTime::now());
    text.push_str("\",\"level\":\"");
    text.push_str(event.metadata().level().as_str());
    text.push('"');
    let mut fields = Fields { text, scratch: String::new() };
    event.record(&mut fields);
    fields.string("target", event.metadata().target());
    let mut line = fields.text.into_bytes();
    line.extend_from_slice(b"}\n");
    line
}

/// RFC 3339 with microseconds.
fn put_time(text: &mut String, now: SystemTime) {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let ms = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
    // Writing to a string cannot fail.
    let _ = write!(text, "{}", Timestamp(ms));
    text.truncate(text.len() - "+00:00".len());
    let _ = write!(text, "{:03}Z", now.subsec_micros() % 1000);
}

struct Fields {
    text: String,
    /// For values that are formatted before they are escaped.
    scratch: String,
}

impl Fields {
    /// Names are written in code, and need no escapes.
    fn name(&mut self, name: &str) {
        self.text.push_str(",\"");
        self.text.push_str(name);
        self.text.push_str("\":");
    }

    fn string(&mut self, name: &str, value: &str) {
        self.name(name);
        escape(&mut self.text, value);
    }

    /// What is no text, and needs no quotes.
    fn plain(&mut self, name: &str, value: impl fmt::Display) {
        self.name(name);
        let _ = write!(self.text, "{value}");
    }

    fn formatted(&mut self, name: &str, value: fmt::Arguments<'_>) {
        if let Some(text) = value.as_str() {
            return self.string(name, text);
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        let _ = scratch.write_fmt(value);
        self.string(name, &scratch);
        self.scratch = scratch;
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no other numbers.
        match value.is_finite() {
            true => self.plain(field.name(), value),
            false => self.formatted(field.name(), format_args!("{value}")),
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.plain(field.name(), value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.plain(field.name(), value);
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.formatted(field.name(), format_args!("{value}"));
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.formatted(field.name(), format_args!("{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.plain(field.name(), value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.string(field.name(), value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.formatted(field.name(), format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.formatted(field.name(), format_args!("{value:?}"));
    }
}

/// Appends `value` as a JSON string (RFC 8259, section 7).
fn escape(text: &mut String, value: &str) {
    text.push('"');
    let needs = |byte: u8| byte < 0x20 || byte == b'"' || byte == b'\\';
    // Hardly any does, and looking at all of it, without a way out, takes a few instructions.
    if !value.bytes().fold(false, |found, byte| found | needs(byte)) {
        text.push_str(value);
        text.push('"');
        return;
    }
    let mut from = 0;
    for (at, byte) in value.bytes().enumerate() {
        let short = match byte {
            b'"' => "\\\"",
            b'\\' => "\\\\",
            b'\n' => "\\n",
            b'\r' => "\\r",
            b'\t' => "\\t",
            0..0x20 => "",
            _ => continue,
        };
        // A byte below 0x80 is never inside a character.
        text.push_str(&value[from..at]);
        from = at + 1;
        match short {
            "" => {
                let _ = write!(text, "\\u{byte:04x}");
            }
            short => text.push_str(short),
        }
    }
    text.push_str(&value[from..]);
    text.push('"');
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use serde_json::{Value, json};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn a_line_is_one_object_whatever_the_fields_hold() {
        let (lines, written) = sync_channel(8);
        let subscriber = tracing_subscriber::registry()
            .with(JsonLines(move |line| lines.try_send(line).unwrap()));
        let nasty = "a \"quote\", a \\, a\nline, a tab\t, \u{1}, ü and \u{1f980}";
        tracing::subscriber::with_default(subscriber, || {
            let error = std::io::Error::other(nasty);
            let error: &dyn Error = &error;
            let (number, share, infinite, yes) = (-3, 0.5, f64::INFINITY, true);
            let none: Option<u8> = None;
            tracing::warn!(
                run.id = %nasty, number, share, infinite, yes, error, list = ?["a"], none,
                "ready: {nasty}"
            );
            tracing::info!("plain");
        });
        let line = String::from_utf8(written.try_recv().unwrap()).unwrap();
        let mut value: Value = serde_json::from_str(line.strip_suffix('\n').unwrap()).unwrap();
        let time = value["timestamp"].take();
        let time = time.as_str().unwrap();
        assert!(time.len() == 27 && time.ends_with('Z') && time.starts_with("20"), "{time}");
        let wanted = json!({
            "timestamp": null, "level": "WARN", "message": format!("ready: {nasty}"),
            "run.id": nasty, "number": -3, "share": 0.5, "infinite": "inf", "yes": true,
            "error": nasty, "list": "[\"a\"]", "target": module_path!(),
        });
        assert_eq!(value, wanted);
        let line = String::from_utf8(written.try_recv().unwrap()).unwrap();
        assert!(line.contains("\"level\":\"INFO\",\"message\":\"plain\",\"target\""), "{line}");
    }
}
