//! `GET /state`: what a co-founder thread has come to.

use axum::Json;
use axum::extract::Request;
use clearway_core::Code;
use clearway_core::channel::State;
use clearway_core::plan::MESSAGES;
use serde_json::{Map, Value, json};

use super::{Conversation, DEFAULT, in_dialect};
use crate::Problem;
use crate::app::App;
use crate::caller::caller;
use crate::extract::{Invalid, Query, check_name};
use crate::server::Door;

/// The co-founder's milestones in the order in which they are reached, with their to-dos.
const MILESTONES: [(&str, &str); 5] = [
    ("business_idea_complete", "Complete the business idea"),
    ("persona_clarified", "Clarify the persona"),
    ("painpoint_enhanced", "Sharpen the pain point"),
    ("pitch_created", "Create the pitch"),
    ("pricing_optimized", "Optimize the pricing"),
];

/// `GET /state?user_id=&conversation_id=`
pub(crate) async fn state(app: App, door: &Door, request: Request) -> Result<Json<Value>, Problem> {
    if !door.expose_state {
        let text = "/state is switched off; the door's expose_state switches it on";
        return Err(in_dialect(Problem::new(Code::NotFound, text), None));
    }
    let conversation = conversation(&request).map_err(Problem::unprocessable)?;
    let caller = caller(request.headers(), Some(&conversation.user))?;
    let found = app.engine.thread_state(conversation.thread(&caller.tenant)).await;
    let found = found.map_err(|error| in_dialect(error.into(), Some(&conversation)))?;
    let state = found.map(|found| found.state).unwrap_or_default();
    Ok(Json(shown(&state, &conversation.shown(), &app.options.data_path)))
}

fn conversation(request: &Request) -> Result<Conversation, Vec<Invalid>> {
    let query = Query::parse(request.uri()).map_err(|invalid| vec![invalid])?;
    let missing = || vec![Invalid::new("missing", &["query", "user_id"], "this field is required")];
    let user = query.get("user_id").filter(|user| !user.trim().is_empty()).ok_or_else(missing)?;
    let id = query.get("conversation_id").unwrap_or(DEFAULT);
    for (name, text) in [("user_id", user), ("conversation_id", id)] {
        check_name(text)
            .map_err(|(kind, message)| vec![Invalid::new(kind, &["query", name], message)])?;
    }
    Ok(Conversation { user: user.to_owned(), id: id.to_owned() })
}

fn shown(state: &State, thread_id: &str, data_path: &str) -> Value {
    let reached = state.get("milestones").unwrap_or_default();
    let is_reached = |name: &str| reached[name].as_bool().unwrap_or(false);
    let milestones: Map<String, Value> =
        MILESTONES.iter().map(|&(name, _)| (name.to_owned(), is_reached(name).into())).collect();
    let list = |name: &str| -> Vec<Value> {
        state.list(name).iter().map(|item| (**item).clone()).collect()
    };
    json!({
        "thread_id": thread_id,
        "checkpoints_path": data_path,
        "milestones": milestones,
        "todos": todos(is_reached),
        "message_count": state.list(MESSAGES).len(),
        "written_files": list("written_files"),
        "todos_canonical": list("todos_canonical"),
    })
}

/// One to-do per milestone: done, the next one under way, the others open.
fn todos(is_reached: impl Fn(&str) -> bool) -> Vec<Value> {
    let mut next_is_open = true;
    let todo = |&(name, text): &(&str, &str)| {
        let status = match is_reached(name) {
            true => "completed",
            false if std::mem::take(&mut next_is_open) => "in_progress",
            false => "pending",
        };
        json!({"id": name, "content": text, "status": status})
    };
    MILESTONES.iter().map(todo).collect()
}

#[cfg(test)]
mod tests {
    use clearway_core::channel::Op;

    use super::*;

    #[test]
    fn a_new_thread_has_everything_before_it() {
        let shown = shown(&State::new(), "bc::u::default", "/data");
        expect_test::expect![[r#"{"thread_id":"bc::u::default","checkpoints_path":"/data","milestones":{"business_idea_complete":false,"persona_clarified":false,"painpoint_enhanced":false,"pitch_created":false,"pricing_optimized":false},"todos":[{"id":"business_idea_complete","content":"Complete the business idea","status":"in_progress"},{"id":"persona_clarified","content":"Clarify the persona","status":"pending"},{"id":"painpoint_enhanced","content":"Sharpen the pain point","status":"pending"},{"id":"pitch_created","content":"Create the pitch","status":"pending"},{"id":"pricing_optimized","content":"Optimize the pricing","status":"pending"}],"message_count":0,"written_files":[],"todos_canonical":[]}"#]]
            .assert_eq(&shown.to_string());
    }

    #[test]
    fn milestones_come_from_the_state() {
        let mut state = State::new();
        state.apply(
            "milestones",
            Op::Assign(json!({"business_idea_complete": true, "pitch_created": "yes"})),
        );
        state.apply("messages", Op::Append(vec![json!({"id": "1"}), json!({"id": "2"})]));
        state.apply("written_files", Op::Append(vec![json!("plan.md")]));
        let shown = shown(&state, "bc::u::c", "");
        assert_eq!(shown["milestones"]["business_idea_complete"], true);
        assert_eq!(shown["milestones"]["pitch_created"], false, "only a boolean counts");
        assert_eq!(shown["todos"][0]["status"], "completed");
        assert_eq!(shown["todos"][1]["status"], "in_progress");
        assert_eq!(shown["message_count"], 2);
        assert_eq!(shown["written_files"], json!(["plan.md"]));
    }
}
