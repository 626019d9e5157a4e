use std::sync::Arc;

use serde_json::{Value, json};

use super::agent::answered;
use super::call::Asked;
use super::confirm::{self, Decision};
use super::*;

fn asked(id: &str, name: &str) -> Asked {
    Asked { id: id.to_owned(), name: name.to_owned(), args: json!({"a": 1}) }
}

#[test]
fn names_are_such_that_providers_take_them() {
    assert_eq!(model_name("mcp:crm/find customer"), "mcp_crm_find_customer");
    assert_eq!(model_name("::"), "tool");
    assert_eq!(model_name(&"x".repeat(99)).len(), 64);
}

#[test]
fn patterns() {
    for (pattern, text, fits) in [
        ("mcp:crm/*_write", "mcp:crm/note_write", true),
        ("mcp:crm/*_write", "mcp:crm/write", false),
        ("mcp:crm/*_write", "mcp:other/note_write", false),
        ("*", "", true),
        ("a*b*c", "abbc", true),
        ("a*b*c", "acb", false),
        ("run:x", "run:x", true),
        ("run:x", "run:xy", false),
        ("a*a", "a", false),
    ] {
        assert_eq!(glob(pattern, text), fits, "{pattern} {text}");
    }
}

#[test]
fn every_call_of_a_conversation_has_an_answer() {
    let ai = json!({"type": "ai", "id": "m", "content": "", "tool_calls": [
        asked("c1", "f").to_json(), asked("c2", "f").to_json(),
    ]});
    let tool = json!({"type": "tool", "tool_call_id": "c1", "content": "x", "id": "t"});
    let human = json!({"type": "human", "content": "never mind", "id": "h"});
    let shape = |messages: &[Value]| {
        let messages = messages.iter().cloned().map(Arc::new).collect();
        let told = |message: Arc<Value>| match message["tool_call_id"].as_str() {
            Some(call) => format!("{} {call}", message["status"].as_str().unwrap_or("-")),
            None => message["type"].as_str().unwrap_or_default().to_owned(),
        };
        answered(messages).into_iter().map(told).collect::<Vec<_>>().join(", ")
    };
    assert_eq!(shape(&[ai.clone(), tool.clone(), human.clone()]), "ai, - c1, error c2, human");
    assert_eq!(shape(&[ai.clone(), human.clone()]), "ai, error c1, error c2, human");
    assert_eq!(shape(&[ai]), "ai, error c1, error c2");
    assert_eq!(shape(std::slice::from_ref(&human)), "human");
}

#[test]
fn decisions_are_read_as_chat_uis_send_them() {
    let (one, two) = (asked("c1", "note"), asked("c2", "mail"));
    let calls = [(&one, "mcp:crm/note".to_owned()), (&two, "mcp:crm/mail".to_owned())];
    let read = |answer: Value| confirm::read(&answer, &calls);
    let reject = |text: &str| Decision::Reject { message: text.to_owned() };
    assert_eq!(
        read(json!({"decisions": [{"type": "approve"}, {"type": "reject", "message": "no"}]})),
        Ok(vec![Decision::Approve, reject("no")])
    );
    assert_eq!(read(json!("approve")), Ok(vec![Decision::Approve; 2]));
    assert_eq!(read(json!({"choice": "reject"})), Ok(vec![reject(""); 2]));
    let edit = json!({"type": "edit", "edited_action": {"name": "mail", "args": {"to": "x"}}});
    let edited = read(json!({"decisions": [edit, {"type": "approve"}]})).unwrap();
    let Decision::Edit { name, args } = &edited[0] else { panic!("{edited:?}") };
    assert_eq!((name.as_str(), &args["to"]), ("mail", &json!("x")));
    for wrong in [json!("maybe"), json!({"decisions": []}), json!(1), json!({"type": "edit"})] {
        assert!(read(wrong.clone()).is_err(), "{wrong}");
    }
    let question = confirm::question(&calls, None);
    assert_eq!(question["action_requests"][1]["name"], "mail");
    assert_eq!(
        question["review_configs"][0]["allowed_decisions"],
        json!(["approve", "edit", "reject"])
    );
}

#[test]
fn what_a_write_answered_survives_a_crash() {
    let reply = ToolReply {
        content: json!({"id": 7}),
        writes: vec![Write { assign: true, ..Write::new("notes", json!([1])) }],
    };
    assert_eq!(ToolReply::from_json(reply.to_json()), reply);
    assert_eq!(ToolReply::from_json(json!("done by hand")), ToolReply::new("done by hand"));
}
