//! The canonical chat message.
//!
//! One shape inside Clearway, convertible to and from LangChain's serialised messages without loss:
//! a message lives in a `messages` channel as JSON, and fields that we do not know survive.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    #[serde(rename = "type")]
    pub role: Role,
    pub content: Content,
    /// Stable id; a message that arrives with a known id replaces the stored one.
    pub id: String,
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// Who speaks, in LangChain's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    System,
    Human,
    Ai,
    Tool,
}

/// Text, or a list of typed parts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Content {
    Text(String),
    Parts(Vec<Value>),
}

impl Content {
    /// The text of all text parts joined, which is what a reply in a text-only dialect shows.
    pub fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Parts(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        }
    }
}

impl Message {
    pub fn new(role: Role, text: impl Into<String>, id: impl Into<String>) -> Self {
        Self { role, content: Content::Text(text.into()), id: id.into(), rest: Map::new() }
    }

    /// Reads a channel item; `None` when it is not a message.
    pub fn from_value(value: &Value) -> Option<Self> {
        Self::deserialize(value).ok()
    }

    pub fn to_value(&self) -> Value {
        serde_json::to_value(self).expect("a message has string keys and finite numbers")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unknown_fields_survive() {
        let value =
            json!({"type": "ai", "content": "hi", "id": "m1", "tool_calls": [], "x": {"y": 1}});
        let message = Message::from_value(&value).unwrap();
        assert_eq!(message.to_value(), value);
        assert_eq!(Message::from_value(&json!({"type": "robot", "content": "", "id": ""})), None);
    }

    #[test]
    fn parts_read_as_text() {
        let content = Content::Parts(vec![
            json!({"type": "text", "text": "a"}),
            json!({"type": "image"}),
            json!({"type": "text", "text": "b"}),
        ]);
        assert_eq!(content.text(), "ab");
    }
}
