//! `set:NAME`: the model writes down a part of its agent's state.

use std::time::Duration;

use clearway_core::channel::Write;
use clearway_engine::tool::{Tool, ToolCall, ToolError, ToolReply, ToolSpec, model_name};
use clearway_engine::{Ctx, Effect};
use serde_json::{Value, json};

use crate::config::{StatePart, ToolRef};

/// See the module.
#[derive(Debug)]
pub(super) struct Set {
    spec: ToolSpec,
    channel: String,
    part: StatePart,
}

impl Set {
    pub(super) fn new(tool: &ToolRef, part: &StatePart) -> Self {
        let id = tool.to_string();
        let about = part.schema["description"].as_str().unwrap_or_default();
        let how = match part.is_list() {
            true => "Give the whole list; it replaces the one before.",
            false => "Give only the fields that change; the others stay.",
        };
        let name = &tool.name;
        let description =
            format!("Writes down `{name}`, which stays with the conversation. {about}");
        let description = format!("{} {how}", description.trim_end());
        Self {
            spec: ToolSpec {
                name: model_name(&id),
                id,
                description,
                arguments: arguments(part),
                // It changes nothing but the run's own state, which commits once.
                effect: Effect::Read,
                deadline: Duration::from_secs(10),
            },
            channel: tool.name.clone(),
            part: part.clone(),
        }
    }
}

/// Of an object any fields, none of them needed; of a list the whole of it.
fn arguments(part: &StatePart) -> Value {
    if part.is_list() {
        let mut properties = serde_json::Map::new();
        properties.insert(ITEMS.to_owned(), part.schema.clone());
        return json!({"type": "object", "properties": properties, "required": [ITEMS]});
    }
    let mut schema = part.schema.clone();
    if let Some(object) = schema.as_object_mut() {
        object.remove("required");
        object.entry("additionalProperties").or_insert(false.into());
        object.insert("minProperties".to_owned(), 1.into());
    }
    schema
}

const ITEMS: &str = "items";

#[async_trait::async_trait]
impl Tool for Set {
    fn spec(&self) -> &ToolSpec {
        &self.spec
    }

    async fn call(&self, cx: &Ctx, call: ToolCall) -> Result<ToolReply, ToolError> {
        let mut arguments = call.arguments;
        if self.part.is_list() {
            let items = arguments.remove(ITEMS).unwrap_or_default();
            let writes = vec![Write::new(&self.channel, items.clone())];
            return Ok(ToolReply { content: json!({&self.channel: items}), writes });
        }
        let mut whole = cx.state.get(&self.channel).unwrap_or_else(|| self.part.initial());
        if let Value::Object(fields) = &mut whole {
            fields.extend(arguments.clone());
        }
        // Where nothing was written yet, what the fields are at first comes along.
        let fields = match cx.state.get(&self.channel) {
            Some(_) => Value::Object(arguments),
            None => whole.clone(),
        };
        let writes = vec![Write::new(&self.channel, fields)];
        Ok(ToolReply { content: json!({&self.channel: whole}), writes })
    }
}
