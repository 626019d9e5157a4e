//! A person's approval of tool calls, in the shape that chat UIs draw: `action_requests` with
//! `review_configs`, answered by one decision per action.

use serde_json::{Map, Value, json};

use super::call::Asked;

/// What somebody decided about a call.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Decision {
    Approve,
    /// Make this call instead.
    Edit {
        name: String,
        args: Map<String, Value>,
    },
    Reject {
        message: String,
    },
}

pub(super) const DECISIONS: [&str; 3] = ["approve", "edit", "reject"];

/// The question about these calls; `problem` says what was wrong with the last answer.
pub(super) fn question(calls: &[(&Asked, String)], problem: Option<&str>) -> Value {
    let describe = |(asked, id): &(&Asked, String)| {
        let args = serde_json::to_string_pretty(&asked.args).unwrap_or_default();
        let again = problem.map(|why| format!("The last answer cannot be used: {why}\n\n"));
        let again = again.unwrap_or_default();
        format!("{again}The agent wants to use `{id}`.\n\n```json\n{args}\n```")
    };
    let actions: Vec<Value> = calls
        .iter()
        .map(
            |call| json!({"name": call.0.name, "args": call.0.args, "description": describe(call)}),
        )
        .collect();
    let mut names: Vec<&str> = calls.iter().map(|(asked, _)| asked.name.as_str()).collect();
    names.dedup();
    let reviews: Vec<Value> = names
        .iter()
        .map(|name| json!({"action_name": name, "allowed_decisions": DECISIONS}))
        .collect();
    let ids: Vec<&str> = calls.iter().map(|(_, id)| id.as_str()).collect();
    json!({
        "action_requests": actions,
        "review_configs": reviews,
        "question": format!("May the agent use {}?", ids.join(", ")),
        "choices": DECISIONS,
    })
}

/// Reads the decisions about `calls`: a list as chat UIs send it, or one word for all of them.
///
/// # Errors
/// What is wrong with the answer, for whoever gave it.
pub(super) fn read(answer: &Value, calls: &[(&Asked, String)]) -> Result<Vec<Decision>, String> {
    let listed = answer["decisions"].as_array().or_else(|| answer.as_array());
    let Some(list) = listed else {
        let all = |(asked, _): &(&Asked, String)| one(answer, asked);
        return calls.iter().map(all).collect();
    };
    if list.len() != calls.len() {
        let (given, wanted) = (list.len(), calls.len());
        return Err(format!("{given} decisions for {wanted} actions"));
    }
    list.iter().zip(calls).map(|(decision, (asked, _))| one(decision, asked)).collect()
}

fn one(decision: &Value, asked: &Asked) -> Result<Decision, String> {
    let word =
        [decision, &decision["type"], &decision["choice"]].into_iter().find_map(Value::as_str);
    match word {
        Some("approve" | "accept") => Ok(Decision::Approve),
        Some("reject" | "ignore") => {
            let message = decision["message"].as_str().or_else(|| decision["value"].as_str());
            Ok(Decision::Reject { message: message.unwrap_or_default().to_owned() })
        }
        Some("edit") => {
            let edited = ["edited_action", "value", "args"]
                .into_iter()
                .map(|key| &decision[key])
                .find(|value| value.is_object())
                .ok_or("an edit needs `edited_action`: {name, args}")?;
            let name = edited["name"].as_str().filter(|_| edited["args"].is_object());
            let args = if edited["args"].is_object() { &edited["args"] } else { edited };
            Ok(Decision::Edit {
                name: name.unwrap_or(&asked.name).to_owned(),
                args: args.as_object().cloned().unwrap_or_default(),
            })
        }
        Some(other) => Err(format!("`{other}` is none of: {}", DECISIONS.join(", "))),
        None => Err(format!("a decision is one of: {}", DECISIONS.join(", "))),
    }
}
