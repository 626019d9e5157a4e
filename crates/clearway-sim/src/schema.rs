//! A small value for a JSON schema: what the simulator answers when structured output is asked for.
//!
//! Covers what providers accept in strict mode: types, `enum`, `const`, `required`, references and unions. A schema
//! that can only be met without end (a type that requires itself) is cut off with `null` at a fixed depth and size.

use serde_json::{Map, Value};

use crate::words::{self, Words};

const MAX_DEPTH: usize = 24;
/// Values made in all, so that nested arrays with large `minItems` cannot grow without end.
const MAX_VALUES: usize = 10_000;
const MAX_STRING: u64 = 4_096;

/// The smallest useful value that fits `schema`: required properties only, one item per array.
pub(crate) fn example(schema: &Value) -> Value {
    answer(schema, "")
}

/// A value that fits `schema` and speaks of the facts that the prompt lists; without facts, the same
/// as [`example`].
pub(crate) fn answer(schema: &Value, prompt: &str) -> Value {
    let words = Words::of(prompt);
    let mut maker = Maker { root: schema, left: MAX_VALUES, words, index: 0 };
    maker.make(schema, "value", 0)
}

struct Maker<'a> {
    root: &'a Value,
    left: usize,
    words: Option<Words>,
    /// Position in the innermost array, so that elements differ.
    index: u64,
}

impl<'a> Maker<'a> {
    fn make(&mut self, schema: &'a Value, name: &str, depth: usize) -> Value {
        if depth > MAX_DEPTH || self.left == 0 {
            return Value::Null;
        }
        self.left -= 1;
        if let Some(value) = schema.get("const") {
            return value.clone();
        }
        if let Some(first) =
            schema.get("enum").and_then(Value::as_array).and_then(|values| values.first())
        {
            return first.clone();
        }
        if let Some(target) =
            schema.get("$ref").and_then(Value::as_str).and_then(|reference| self.resolve(reference))
        {
            return self.make(target, name, depth + 1);
        }
        for union in ["anyOf", "oneOf"] {
            let options = schema.get(union).and_then(Value::as_array);
            if let Some(option) =
                options.and_then(|all| all.iter().find(|option| !is_null(option)).or(all.first()))
            {
                return self.make(option, name, depth + 1);
            }
        }
        if let Some(parts) = schema.get("allOf").and_then(Value::as_array) {
            return self.all_of(parts, name, depth);
        }
        match kind(schema) {
            "object" => self.object(schema, depth),
            "array" => self.array(schema, name, depth),
            "integer" => match self.share(schema, name) {
                Some((low, _, number)) => (low.ceil() as i64).max(number.round() as i64).into(),
                None => integer(schema).into(),
            },
            "number" => match self.share(schema, name) {
                Some((.., number)) => ((number * 100.0).round() / 100.0).into(),
                None => number(schema),
            },
            "boolean" => Value::Bool(true),
            "null" => Value::Null,
            _ => Value::String(self.text(schema, name)),
        }
    }

    /// A number between the bounds, where there are words; with the bounds.
    fn share(&self, schema: &Value, name: &str) -> Option<(f64, f64, f64)> {
        let words = self.words.as_ref()?;
        let bound = |key| schema.get(key).and_then(Value::as_f64);
        let (low, high) = (bound("minimum")?, bound("maximum")?);
        if schema.get("multipleOf").is_some() || low > high {
            return None;
        }
        // The top of a wide range is rarely what is meant.
        let top = if high > 1000.0 { low + 2500.0_f64.min(high - low) } else { high };
        Some((low, high, low + words.share(name, self.index) * (top - low)))
    }

    fn text(&self, schema: &Value, name: &str) -> String {
        let Some(words) = self.words.as_ref().filter(|_| schema.get("format").is_none()) else {
            return string(schema, name);
        };
        if schema
            .get("pattern")
            .and_then(Value::as_str)
            .is_some_and(|pattern| pattern.starts_with("^#"))
        {
            return words::colour(words.pick("colour", 0, 8) + self.index);
        }
        let about = schema.get("description").and_then(Value::as_str).unwrap_or_default();
        let at_most =
            schema.get("maxLength").and_then(Value::as_u64).unwrap_or(MAX_STRING).min(MAX_STRING);
        let at_least = schema.get("minLength").and_then(Value::as_u64).unwrap_or(0);
        let text = words::shortened(&words.text(name, about, self.index), at_most as usize);
        if (text.chars().count() as u64) < at_least { string(schema, name) } else { text }
    }

    fn resolve(&self, reference: &str) -> Option<&'a Value> {
        self.root.pointer(reference.strip_prefix('#')?)
    }

    /// Objects are merged; of other values the first one counts.
    fn all_of(&mut self, parts: &'a [Value], name: &str, depth: usize) -> Value {
        let mut merged = Map::new();
        for part in parts {
            match self.make(part, name, depth + 1) {
                Value::Object(fields) => merged.extend(fields),
                other => return other,
            }
        }
        Value::Object(merged)
    }

    fn object(&mut self, schema: &'a Value, depth: usize) -> Value {
        let mut fields = Map::new();
        let required =
            schema.get("required").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        for name in required.iter().filter_map(Value::as_str) {
            let property = schema.get("properties").and_then(|properties| properties.get(name));
            let value =
                property.map_or(Value::Null, |property| self.make(property, name, depth + 1));
            fields.insert(name.to_owned(), value);
        }
        Value::Object(fields)
    }

    fn array(&mut self, schema: &'a Value, name: &str, depth: usize) -> Value {
        let bound = |key| schema.get(key).and_then(Value::as_u64);
        let fixed = schema
            .get("prefixItems")
            .and_then(Value::as_array)
            .map(Vec::as_slice)
            .unwrap_or_default();
        let wanted = bound("minItems").unwrap_or(1).max(fixed.len() as u64).max(1);
        // One more than asked for, so that lists in made-up documents are not all of one length.
        let more = self.words.as_ref().map_or(0, |words| words.pick(name, 7, 2));
        let count = (wanted + more).min(bound("maxItems").unwrap_or(u64::MAX));
        let mut items = Vec::new();
        for index in 0..usize::try_from(count).unwrap_or(usize::MAX).min(MAX_VALUES) {
            let Some(item) =
                fixed.get(index).or_else(|| schema.get("items")).filter(|_| self.left > 0)
            else {
                break;
            };
            let outer = std::mem::replace(&mut self.index, index as u64);
            items.push(self.make(item, name, depth + 1));
            self.index = outer;
        }
        Value::Array(items)
    }
}

fn is_null(schema: &Value) -> bool {
    schema.get("type").and_then(Value::as_str) == Some("null")
}

/// The type to make: the first that is not null, or what the keywords imply.
fn kind(schema: &Value) -> &str {
    match schema.get("type") {
        Some(Value::String(kind)) => kind,
        Some(Value::Array(kinds)) => {
            let mut names = kinds.iter().filter_map(Value::as_str);
            names.find(|name| *name != "null").unwrap_or("null")
        }
        Some(_) | None if schema.get("properties").is_some() => "object",
        Some(_) | None if schema.get("items").is_some() => "array",
        Some(_) | None => "string",
    }
}

fn integer(schema: &Value) -> i64 {
    let bound = |key| {
        schema
            .get(key)
            .and_then(|value| value.as_i64().or_else(|| value.as_f64().map(|f| f.ceil() as i64)))
    };
    let low =
        bound("minimum").or_else(|| bound("exclusiveMinimum").map(|low| low.saturating_add(1)));
    let high =
        bound("maximum").or_else(|| bound("exclusiveMaximum").map(|high| high.saturating_sub(1)));
    let step = bound("multipleOf").filter(|step| *step > 0).unwrap_or(1);
    let wanted = low.unwrap_or(1).min(high.unwrap_or(i64::MAX));
    // Round up to the step, unless that leaves the range.
    let stepped = wanted.saturating_add(step - 1).div_euclid(step).saturating_mul(step);
    if high.is_some_and(|high| stepped > high) { wanted.div_euclid(step) * step } else { stepped }
}

fn number(schema: &Value) -> Value {
    let bound = |key| schema.get(key).and_then(Value::as_f64);
    let (low, high) = (bound("minimum"), bound("maximum"));
    let (above, below) = (bound("exclusiveMinimum"), bound("exclusiveMaximum"));
    let value = match (above, below) {
        (Some(above), Some(below)) => f64::midpoint(above, below),
        (Some(above), None) => (above + 1.0).min(high.unwrap_or(f64::MAX)),
        (None, Some(below)) => (below - 1.0).max(low.unwrap_or(f64::MIN)),
        (None, None) => 1.0_f64.max(low.unwrap_or(f64::MIN)).min(high.unwrap_or(f64::MAX)),
    };
    value.into()
}

/// Says what it stands for, so that a made-up document can be read: the property `target_group` becomes
/// "Example target group".
fn string(schema: &Value, name: &str) -> String {
    match schema.get("format").and_then(Value::as_str) {
        Some("date-time") => return "2026-01-01T00:00:00Z".to_owned(),
        Some("date") => return "2026-01-01".to_owned(),
        Some("time") => return "00:00:00Z".to_owned(),
        Some("email") => return "someone@example.com".to_owned(),
        Some("uri" | "url") => return "https://example.com/".to_owned(),
        Some("uuid") => return "00000000-0000-4000-8000-000000000000".to_owned(),
        Some(_) | None => {}
    }
    let bound = |key| schema.get(key).and_then(Value::as_u64);
    let at_most =
        usize::try_from(bound("maxLength").unwrap_or(MAX_STRING).min(MAX_STRING)).unwrap_or(0);
    let at_least = usize::try_from(bound("minLength").unwrap_or(0).min(MAX_STRING)).unwrap_or(0);
    let mut text: String =
        format!("Example {}", name.replace(['_', '-'], " ")).chars().take(at_most).collect();
    let length = text.chars().count();
    text.extend(std::iter::repeat_n('.', at_least.saturating_sub(length)));
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "reads better with json! literals")]
    fn check(schema: Value, expected: Value) {
        assert_eq!(example(&schema), expected, "{schema}");
    }

    #[test]
    fn plain_types_and_bounds() {
        check(json!({"type": "string"}), json!("Example value"));
        check(json!({"type": "string", "maxLength": 3}), json!("Exa"));
        check(json!({"type": "string", "minLength": 16}), json!("Example value..."));
        check(json!({"type": "string", "format": "date"}), json!("2026-01-01"));
        check(json!({"type": "integer"}), json!(1));
        check(json!({"type": "integer", "minimum": 5}), json!(5));
        check(json!({"type": "integer", "exclusiveMinimum": 5, "multipleOf": 4}), json!(8));
        check(json!({"type": "integer", "maximum": -3}), json!(-3));
        check(json!({"type": "number"}), json!(1.0));
        check(json!({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}), json!(0.5));
        check(json!({"type": "boolean"}), json!(true));
        check(json!({"type": "null"}), json!(null));
        check(json!({"enum": ["low", "high"]}), json!("low"));
        check(json!({"const": 7}), json!(7));
        check(json!({"type": ["null", "integer"]}), json!(1));
        check(json!({}), json!("Example value"));
    }

    #[test]
    fn objects_have_what_is_required_and_arrays_one_item() {
        check(
            json!({
                "type": "object",
                "required": ["target_group", "score", "tags"],
                "properties": {
                    "target_group": {"type": "string"},
                    "score": {"type": "number", "maximum": 0.5},
                    "tags": {"type": "array", "items": {"type": "string"}},
                    "extra": {"type": "string"},
                },
            }),
            json!({"target_group": "Example target group", "score": 0.5, "tags": ["Example tags"]}),
        );
        check(
            json!({"type": "array", "items": {"type": "integer"}, "minItems": 3}),
            json!([1, 1, 1]),
        );
        check(json!({"type": "array", "items": {"type": "integer"}, "maxItems": 0}), json!([]));
        check(json!({"type": "array"}), json!([]));
    }

    #[test]
    fn references_unions_and_intersections() {
        check(
            json!({"$ref": "#/$defs/point", "$defs": {"point": {"type": "object", "required": ["x"],
                "properties": {"x": {"anyOf": [{"type": "null"}, {"type": "integer"}]}}}}}),
            json!({"x": 1}),
        );
        check(
            json!({"allOf": [
                {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}},
                {"type": "object", "required": ["b"], "properties": {"b": {"type": "boolean"}}},
            ]}),
            json!({"a": 1, "b": true}),
        );
    }

    #[test]
    fn schemas_without_end_are_cut_off() {
        let endless =
            json!({"type": "object", "required": ["next"], "properties": {"next": {"$ref": "#"}}});
        let text = serde_json::to_string(&example(&endless)).unwrap();
        assert!(
            text.starts_with(r#"{"next":{"next":"#) && text.contains("null}") && text.len() < 200,
            "{text}"
        );
        let mut wide = json!({"type": "string"});
        for _ in 0..6 {
            wide = json!({"type": "array", "minItems": 1000, "items": wide});
        }
        assert!(serde_json::to_string(&example(&wide)).unwrap().len() < 200_000);
    }
}
