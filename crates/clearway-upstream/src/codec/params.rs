//! The parameters of a call, which are OpenAI's, on their way into another dialect.

use serde_json::{Map, Value};

use super::ChatParts;

/// What is left to be translated. A module takes out what it has a counterpart for; the rest goes
/// to the provider as it is.
pub(super) struct Params(Map<String, Value>);

impl Params {
    /// The model's parameters under the call's own.
    pub(super) fn merge(parts: &ChatParts<'_>) -> Self {
        let mut merged = parts.model_params.clone();
        for (name, value) in parts.call_params {
            merged.insert(name.clone(), value.clone());
        }
        // Null is what OpenAI's clients send for a parameter that is not set.
        merged.retain(|_, value| !value.is_null());
        Self(merged)
    }

    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.shift_remove(name)
    }

    /// An object, to be added to; anything else is none.
    pub(super) fn take_object(&mut self, name: &str) -> Map<String, Value> {
        match self.take(name) {
            Some(Value::Object(object)) => object,
            Some(_) | None => Map::new(),
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The limit of the answer's tokens, under any of its names.
    pub(super) fn take_limit(&mut self) -> Option<Value> {
        let names = ["max_output_tokens", "max_completion_tokens", "max_tokens"];
        names.into_iter().fold(None, |limit, name| {
            let found = self.take(name);
            limit.or(found)
        })
    }

    /// The words to stop at, as a list.
    pub(super) fn take_stop(&mut self) -> Option<Value> {
        self.take("stop").map(|stop| if stop.is_string() { Value::Array(vec![stop]) } else { stop })
    }

    pub(super) fn take_tools(&mut self) -> Option<Vec<Value>> {
        match self.take("tools")? {
            Value::Array(tools) if !tools.is_empty() => Some(tools),
            _ => None,
        }
    }

    /// What no module has translated.
    pub(super) fn rest(self) -> Map<String, Value> {
        self.0
    }
}

/// The inside of `{type: function, function: {…}}`: a tool, or the choice of one.
pub(super) fn function(value: &Value) -> Option<&Map<String, Value>> {
    value["function"].as_object().filter(|_| value["type"] == "function")
}

/// The inside of a `response_format` with a schema.
pub(super) fn json_schema(format: &Value) -> Option<&Map<String, Value>> {
    format["json_schema"].as_object().filter(|_| format["type"] == "json_schema")
}

/// Copies those of the named fields that are there.
pub(super) fn copy(from: &Map<String, Value>, names: &[&str], to: &mut Map<String, Value>) {
    for name in names {
        if let Some(value) = from.get(*name).filter(|value| !value.is_null()) {
            to.insert((*name).to_owned(), value.clone());
        }
    }
}
