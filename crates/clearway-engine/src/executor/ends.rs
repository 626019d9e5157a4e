//! How a run leaves its executor: told as ended, or let go.

use std::sync::Arc;

use clearway_core::channel::State;
use clearway_core::event::{EventKind, Fact};
use clearway_core::plan::MESSAGES;
use clearway_core::{Failure, Message, Status};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::engine::Inner;
use crate::live::{End, Live};
use crate::trace;

/// Lets go of a run that this instance cannot take further: the row stays as it is, and the sweep
/// or the next start picks it up.
pub(super) fn give_up(
    inner: &Inner,
    live: &Arc<Live>,
    lease: u32,
    failure: Failure,
) -> &'static str {
    tracing::error!(run.id = %live.run, code = %failure.code, "letting go of the run: {failure}");
    trace::failed(failure.code);
    let code = failure.code.as_str();
    lose(inner, live, lease, failure);
    code
}

/// Tells whoever waits for the run that it ends here, unless it goes on here under a later lease.
pub(super) fn lose(inner: &Inner, live: &Arc<Live>, lease: u32, failure: Failure) {
    if live.let_go(lease) {
        live.finish(End::Lost(failure));
        inner.hub.forget(live.run);
    }
}

pub(super) fn run_ended(
    status: Status,
    failure: Option<&Failure>,
    reply: Option<Uuid>,
    spent: &Value,
) -> Fact {
    let mut data = json!({"status": status.as_str(), "spent": spent});
    if let Some(failure) = failure {
        data["error"] = failure.to_json();
    }
    if let Some(reply) = reply {
        data["reply_message_id"] = reply.to_string().into();
    }
    Fact::new(EventKind::RunEnded, &data)
}

pub(super) fn find_message(state: &State, id: Uuid) -> Option<Message> {
    let id = id.to_string();
    // The reply is among the newest messages, so this does not grow with the conversation.
    let found = state.list(MESSAGES).iter().rev().find(|message| message["id"] == *id)?;
    Message::from_value(found)
}
