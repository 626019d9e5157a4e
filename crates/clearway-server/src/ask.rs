//! A question with what was said before, as the chats of tasks and notes are asked.

use clearway_core::message::{Message, Role};
use serde_json::{Map, Value};

use crate::app::App;
use crate::extract::{Fields, Invalid, shown};

/// `{message, conversation_history?, user_id?, conversation_id?, metadata?, deadline_ms?}`
#[derive(Debug)]
pub(crate) struct Ask {
    pub message: String,
    pub history: Vec<(Role, String)>,
    pub user: Option<String>,
    pub conversation: Option<String>,
    pub metadata: Map<String, Value>,
    pub deadline: Option<Value>,
}

impl Ask {
    /// # Errors
    /// Everything that is wrong with it.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, Vec<Invalid>> {
        let mut fields = Fields::parse(body)?;
        let message = fields.text("message");
        fields.not_blank("message", &message);
        let user = fields.nullable_text("user_id");
        let conversation = fields.nullable_text("conversation_id");
        for (name, text) in [("user_id", &user), ("conversation_id", &conversation)] {
            if let Some(text) = text {
                fields.check_name(name, text);
            }
        }
        let metadata = fields.object("metadata");
        let deadline = fields.value("deadline_ms");
        let mut history = Vec::new();
        for (at, item) in fields.list("conversation_history").into_iter().enumerate() {
            match said(item, at) {
                Ok(said) => history.push(said),
                Err(invalid) => fields.absorb(invalid),
            }
        }
        fields.finish()?;
        Ok(Self { message, history, user, conversation, metadata, deadline })
    }

    /// What was said before, and the question.
    pub(crate) fn messages(&self, app: &App) -> Vec<Value> {
        let question = (Role::Human, self.message.clone());
        let all = self.history.iter().chain([&question]);
        let of = |(role, text): &(Role, String)| {
            Message::new(*role, text.as_str(), app.engine.new_id().to_string()).to_value()
        };
        all.map(of).collect()
    }
}

/// One turn of a history that the client brings along.
fn said(item: Value, at: usize) -> Result<(Role, String), Vec<Invalid>> {
    let at = at.to_string();
    let place = ["body", "conversation_history", &at];
    let mut fields = Fields::of(item, &place).map_err(|invalid| vec![invalid])?;
    let role = fields.text("role");
    let content = fields.text("content");
    let role = match role.as_str() {
        "user" | "human" => Role::Human,
        "assistant" | "ai" => Role::Ai,
        "system" => Role::System,
        "" => Role::Human, // refused below as missing or of a wrong type
        other => {
            let text =
                format!("a role is `user`, `assistant` or `system`, this is `{}`", shown(other));
            fields.wrong("enum", "role", text);
            Role::Human
        }
    };
    fields.finish()?;
    Ok((role, content))
}
