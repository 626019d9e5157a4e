//! Every dialect over the wire: texts, thoughts, tool calls, and the faults in its own words.

use super::*;
use crate::ToolRule;
use crate::dialect::{Dialect, Syntax};
use crate::fault::Group;

const ANTHROPIC: &str = "anthropic-version: 2023-06-01\r\n";

/// A request that every dialect can read, because each ignores the members of the others.
fn body(model: &str, text: &str, stream: bool) -> Value {
    let schema =
        json!({"type": "object", "required": ["id"], "properties": {"id": {"type": "integer"}}});
    json!({
        "model": model,
        "max_tokens": 1000,
        "messages": [{"role": "user", "content": text}],
        "input": text,
        "stream": stream,
        "tools": [{
            "type": "function", "name": "look", "parameters": schema, "input_schema": schema,
            "function": {"name": "look", "parameters": schema},
        }],
    })
}

async fn ask(rig: &mut Rig, dialect: Dialect, body: &Value) -> Answer {
    let request = request(dialect.path(), ANTHROPIC, body);
    rig.connect().talk(&request, 1000 * SECOND).await
}

/// The JSON of each event or line.
fn data(dialect: Dialect, answer: &Answer) -> Vec<Value> {
    let prefix = if dialect.syntax() == Syntax::Events { "data: " } else { "" };
    let lines = answer.body_text().lines();
    let json = lines.filter_map(|line| serde_json::from_str(line.strip_prefix(prefix)?).ok());
    json.collect()
}

/// What stands at one of these places, in all events joined.
fn joined(events: &[Value], places: &[&str]) -> String {
    let find = |event: &Value| {
        let value = places.iter().find_map(|place| event.pointer(place))?;
        value.as_str().map(str::to_owned)
    };
    events.iter().filter_map(find).collect()
}

/// Text, thoughts and arguments of a stream.
fn heard(dialect: Dialect, answer: &Answer) -> (String, String, String) {
    let events = data(dialect, answer);
    let of_type = |kind: &str| -> Vec<Value> {
        events.iter().filter(|event| event["type"] == kind).cloned().collect()
    };
    match dialect {
        Dialect::OpenAi => (
            joined(&events, &["/choices/0/delta/content"]),
            joined(&events, &["/choices/0/delta/reasoning_content"]),
            joined(&events, &["/choices/0/delta/tool_calls/0/function/arguments"]),
        ),
        Dialect::Responses => (
            joined(&of_type("response.output_text.delta"), &["/delta"]),
            joined(&of_type("response.reasoning_summary_text.delta"), &["/delta"]),
            joined(&of_type("response.function_call_arguments.delta"), &["/delta"]),
        ),
        Dialect::Anthropic => (
            joined(&events, &["/delta/text"]),
            joined(&events, &["/delta/thinking"]),
            joined(&events, &["/delta/partial_json"]),
        ),
        Dialect::Ollama => {
            let calls = events
                .iter()
                .filter_map(|event| event.pointer("/message/tool_calls/0/function/arguments"));
            (
                joined(&events, &["/message/content"]),
                joined(&events, &["/message/thinking"]),
                calls.map(Value::to_string).collect(),
            )
        }
    }
}

/// Whether the stream says that it is complete.
fn is_complete(dialect: Dialect, answer: &Answer) -> bool {
    let last = data(dialect, answer).pop().unwrap_or_default();
    match dialect {
        Dialect::OpenAi => answer.body_text().trim_end().ends_with("data: [DONE]"),
        Dialect::Responses => last["type"] == "response.completed",
        Dialect::Anthropic => last["type"] == "message_stop",
        Dialect::Ollama => last["done"] == true,
    }
}

/// Text and arguments of a reply in one piece.
fn read(dialect: Dialect, answer: &Answer) -> (String, String) {
    let body = [answer.json()];
    match dialect {
        Dialect::OpenAi => (
            joined(&body, &["/choices/0/message/content"]),
            joined(&body, &["/choices/0/message/tool_calls/0/function/arguments"]),
        ),
        Dialect::Responses => {
            (joined(&body, &["/output/0/content/0/text"]), joined(&body, &["/output/0/arguments"]))
        }
        Dialect::Anthropic => {
            let input = body[0].pointer("/content/0/input");
            (joined(&body, &["/content/0/text"]), input.map(Value::to_string).unwrap_or_default())
        }
        Dialect::Ollama => {
            let arguments = body[0].pointer("/message/tool_calls/0/function/arguments");
            (
                joined(&body, &["/message/content"]),
                arguments.map(Value::to_string).unwrap_or_default(),
            )
        }
    }
}

#[tokio::test(start_paused = true)]
async fn text_comes_at_its_pace_and_is_the_same_in_one_piece() {
    for dialect in Dialect::ALL {
        let mut rig = Rig::new(paced(3));
        let stream = ask(&mut rig, dialect, &body("m", "hello", true)).await;
        assert_eq!(heard(dialect, &stream).0, "tok0 tok1 tok2", "{dialect:?}");
        assert_eq!((stream.head_after, stream.took), (500 * MS, 700 * MS), "{dialect:?}");
        assert_eq!(stream.header("content-type"), dialect.stream_type());
        assert!(is_complete(dialect, &stream) && stream.end == End::Whole, "{dialect:?}");
        let whole = ask(&mut rig, dialect, &body("m", "hello", false)).await;
        assert_eq!(read(dialect, &whole).0, "tok0 tok1 tok2", "{dialect:?}");
        assert_eq!((whole.took, whole.header("content-type")), (700 * MS, "application/json"));
    }
}

#[tokio::test(start_paused = true)]
async fn thoughts_come_first_and_are_paid_for() {
    for dialect in Dialect::ALL {
        let mut rig = Rig::new(paced(3));
        let answer = ask(&mut rig, dialect, &body("m+think:2", "hello", true)).await;
        let (text, thoughts, _) = heard(dialect, &answer);
        assert_eq!((&*text, &*thoughts), ("tok0 tok1 tok2", "thought0 thought1"), "{dialect:?}");
        assert_eq!(answer.took, 900 * MS, "{dialect:?}");
        // Four words of prompt, two thoughts, three tokens.
        assert_eq!(rig.sim.stats().tokens_counted, 9, "{dialect:?}");
        let long = ask(&mut rig, dialect, &body("m+reasoning_deltas", "hello", true)).await;
        assert_eq!(heard(dialect, &long).1.split(' ').count(), 59, "{dialect:?}");
        let quiet = ask(&mut rig, dialect, &body("m+reasoning", "hello", true)).await;
        assert_eq!((heard(dialect, &quiet).1.len(), quiet.took.as_secs()), (0, 60), "{dialect:?}");
        assert!(is_complete(dialect, &long) && is_complete(dialect, &quiet), "{dialect:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn tools_are_called_when_someone_says_so() {
    let order = r#"Please call the tool look with {"id": 7, "why": "so"} now."#;
    for dialect in Dialect::ALL {
        let mut rig = Rig::new(paced(3));
        let arguments = json!({"id": 7, "why": "so"});
        let stream = ask(&mut rig, dialect, &body("m", order, true)).await;
        let (text, _, said) = heard(dialect, &stream);
        assert_eq!(text, "", "{dialect:?}");
        assert_eq!(serde_json::from_str::<Value>(&said).unwrap(), arguments, "{dialect:?}");
        assert!(is_complete(dialect, &stream), "{dialect:?}");
        let whole = ask(&mut rig, dialect, &body("m", order, false)).await;
        let read = serde_json::from_str::<Value>(&read(dialect, &whole).1);
        assert_eq!(read.unwrap(), arguments, "{dialect:?}");
        // A tool that is not offered is not called.
        let mut other = body("m", "call the tool drop with {}", true);
        let answer = ask(&mut rig, dialect, &other).await;
        assert_eq!(heard(dialect, &answer).2, "", "{dialect:?}");
        // Arguments that the user did not give fit the schema.
        other = body("m", "call the tool look", true);
        let answer = ask(&mut rig, dialect, &other).await;
        let arguments = heard(dialect, &answer).2;
        assert!(serde_json::from_str::<Value>(&arguments).unwrap()["id"].is_u64(), "{dialect:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn scripts_call_tools_and_talk_after_the_answer() {
    let tool = ToolRule { name: "look".into(), arguments: r#"{"id": {{ turn }}}"#.into() };
    let rule = ScriptRule { match_text: "weather".into(), reply: String::new(), tool: Some(tool) };
    let mut rig = Rig::new(Options { script: vec![rule], ..Options::default() });
    let mut body = body("m", "the weather?", true);
    let call = ask(&mut rig, Dialect::OpenAi, &body).await;
    assert_eq!(heard(Dialect::OpenAi, &call).2, r#"{"id": 1}"#);
    assert_eq!(call.finish_reason().as_deref(), Some("tool_calls"));
    body["messages"] = json!([
        {"role": "user", "content": "the weather?"},
        {"role": "assistant", "content": null},
        {"role": "tool", "content": "sunny", "tool_call_id": "1"},
    ]);
    assert_eq!(ask(&mut rig, Dialect::OpenAi, &body).await.text(), "The tool answered: “sunny”.");
    body["tool_choice"] = json!({"type": "function", "function": {"name": "look"}});
    let forced = ask(&mut rig, Dialect::OpenAi, &body).await;
    assert_eq!(heard(Dialect::OpenAi, &forced).2, r#"{"id": 1}"#);
    body["tool_choice"] = "none".into();
    body["messages"] = json!([{"role": "user", "content": "the weather?"}]);
    assert_eq!(
        ask(&mut rig, Dialect::OpenAi, &body).await.finish_reason().as_deref(),
        Some("stop")
    );
}

#[tokio::test(start_paused = true)]
async fn no_fault_passes_for_a_good_reply_in_any_dialect() {
    let breaking = [Group::Refusal, Group::Ending];
    let harmless = [Fault::RejectPrefill, Fault::Flap, Fault::DoneLinger, Fault::NoUsage];
    for dialect in Dialect::ALL {
        let faults = Fault::ALL.into_iter().filter(|fault| breaking.contains(&fault.about().group));
        for fault in faults.filter(|fault| !harmless.contains(fault)) {
            let limits = Limits { endless_bytes: 1 << 20, ..Limits::default() };
            let mut rig = Rig::new(Options { limits, ..paced(30) });
            let answer = ask(&mut rig, dialect, &body(&format!("m+{fault}"), "hello", true)).await;
            assert_eq!(rig.sim.stats().faults[fault.name()], 1, "{fault} {dialect:?}");
            assert!(answer.status != 200 || !is_complete(dialect, &answer), "{fault} {dialect:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn odd_bytes_are_read_as_the_same_text() {
    let same = [Fault::SplitUtf8, Fault::Crlf, Fault::OneByte, Fault::Lf, Fault::DoneLinger];
    for dialect in Dialect::ALL {
        let mut rig = Rig::new(paced(3));
        for fault in same {
            let answer = ask(&mut rig, dialect, &body(&format!("m+{fault}"), "hello", true)).await;
            let text = heard(dialect, &answer).0.replace('ö', "o");
            assert_eq!(text, "tok0 tok1 tok2", "{fault} {dialect:?}");
            assert!(is_complete(dialect, &answer), "{fault} {dialect:?}");
        }
        let giant = ask(&mut rig, dialect, &body("m+giant_event:1", "hello", true)).await;
        assert_eq!(heard(dialect, &giant).0.len(), 1_000_000, "{dialect:?}");
        assert!(is_complete(dialect, &giant), "{dialect:?}");
        if dialect.syntax() == Syntax::Lines {
            continue;
        }
        let spread = ask(&mut rig, dialect, &body("m+multi_line", "hello", true)).await;
        let events: Vec<Value> = spread
            .lines()
            .iter()
            .filter_map(|event| {
                // The event's name is a line of its own.
                serde_json::from_str(event.trim_start_matches(|c| c != '{')).ok()
            })
            .collect();
        assert_eq!(
            events.len(),
            spread.lines().len() - usize::from(dialect == Dialect::OpenAi),
            "{dialect:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn cut_arguments_are_no_json_in_any_dialect() {
    for dialect in Dialect::ALL {
        let mut rig = Rig::new(paced(3));
        let answer = ask(&mut rig, dialect, &body("m+tool_call_cut", "hello", true)).await;
        let arguments = heard(dialect, &answer).2;
        assert!(serde_json::from_str::<Value>(&arguments).is_err(), "{dialect:?}: {arguments}");
        assert!(!is_complete(dialect, &answer), "{dialect:?}");
        assert!(answer.body_text().contains("opening hours") || dialect != Dialect::Ollama);
    }
}

#[tokio::test(start_paused = true)]
async fn errors_are_in_the_words_of_the_dialect() {
    let mut rig = Rig::new(Options::default());
    let mut error = async |dialect, model: &str| {
        let answer = ask(&mut rig, dialect, &body(model, "hello", false)).await;
        (answer.status, answer.json())
    };
    let (status, told) = error(Dialect::Anthropic, "m+overloaded").await;
    assert_eq!((status, &told["type"]), (529, &json!("error")));
    assert_eq!(told["error"]["type"], "overloaded_error");
    let (status, told) = error(Dialect::Ollama, "m+stal").await;
    assert_eq!(status, 400);
    assert!(told["error"].as_str().unwrap().contains("did you mean stall?"));
    let (_, told) = error(Dialect::Responses, "m+unauthorized").await;
    assert_eq!(told["error"]["code"], "invalid_api_key");
    let plain = request("/v1/messages", "", &body("m", "hello", false));
    let answer = rig.connect().talk(&plain, SECOND).await;
    assert!(answer.status == 400 && answer.body_text().contains("anthropic-version"));
    assert_eq!(rig.get("/v1/messages").await.status, 405);
    let tags = rig.get("/api/tags").await.json();
    assert_eq!(tags["models"][0]["name"], "sim");
}
