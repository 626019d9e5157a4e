use expect_test::expect;
use serde_json::json;

use super::{Kind, answer, check};

fn request(messages: &serde_json::Value, params: &serde_json::Value) -> String {
    super::request(Kind::Responses, "gpt-5-mini", messages, params)
}

fn stream(bytes: &str) -> String {
    super::stream(Kind::Responses, bytes)
}

pub(super) const TEXT: &str = r#"event: response.created
data: {"type":"response.created","sequence_number":0,"response":{"id":"resp_1","object":"response","created_at":1794000000,"status":"in_progress","error":null,"incomplete_details":null,"model":"gpt-5-mini","output":[],"usage":null}}

event: response.in_progress
data: {"type":"response.in_progress","sequence_number":1,"response":{"id":"resp_1","status":"in_progress","output":[]}}

event: response.output_item.added
data: {"type":"response.output_item.added","sequence_number":2,"output_index":0,"item":{"id":"rs_1","type":"reasoning","summary":[]}}

event: response.reasoning_summary_part.added
data: {"type":"response.reasoning_summary_part.added","sequence_number":3,"item_id":"rs_1","output_index":0,"summary_index":0,"part":{"type":"summary_text","text":""}}

event: response.reasoning_summary_text.delta
data: {"type":"response.reasoning_summary_text.delta","sequence_number":4,"item_id":"rs_1","output_index":0,"summary_index":0,"delta":"**Greeting**"}

event: response.reasoning_summary_part.added
data: {"type":"response.reasoning_summary_part.added","sequence_number":5,"item_id":"rs_1","output_index":0,"summary_index":1,"part":{"type":"summary_text","text":""}}

event: response.reasoning_summary_text.delta
data: {"type":"response.reasoning_summary_text.delta","sequence_number":6,"item_id":"rs_1","output_index":0,"summary_index":1,"delta":"Short."}

event: response.output_item.done
data: {"type":"response.output_item.done","sequence_number":7,"output_index":0,"item":{"id":"rs_1","type":"reasoning","summary":[{"type":"summary_text","text":"**Greeting**"}]}}

event: response.output_item.added
data: {"type":"response.output_item.added","sequence_number":8,"output_index":1,"item":{"id":"msg_1","type":"message","status":"in_progress","role":"assistant","content":[]}}

event: response.content_part.added
data: {"type":"response.content_part.added","sequence_number":9,"item_id":"msg_1","output_index":1,"content_index":0,"part":{"type":"output_text","text":"","annotations":[]}}

event: response.output_text.delta
data: {"type":"response.output_text.delta","sequence_number":10,"item_id":"msg_1","output_index":1,"content_index":0,"delta":"größer","logprobs":[]}

event: response.output_text.delta
data: {"type":"response.output_text.delta","sequence_number":11,"item_id":"msg_1","output_index":1,"content_index":0,"delta":" \ud83e\udd80","logprobs":[]}

event: keepalive
data: {"type":"keepalive","sequence_number":12}

event: response.output_text.done
data: {"type":"response.output_text.done","sequence_number":13,"item_id":"msg_1","output_index":1,"content_index":0,"text":"größer 🦀"}

event: response.output_item.done
data: {"type":"response.output_item.done","sequence_number":14,"output_index":1,"item":{"id":"msg_1","type":"message","status":"completed","role":"assistant","content":[{"type":"output_text","text":"größer 🦀","annotations":[]}]}}

event: response.completed
data: {"type":"response.completed","sequence_number":15,"response":{"id":"resp_1","object":"response","status":"completed","output":[{"id":"msg_1","type":"message","role":"assistant","content":[{"type":"output_text","text":"größer 🦀"}]}],"usage":{"input_tokens":36,"input_tokens_details":{"cached_tokens":4},"output_tokens":87,"output_tokens_details":{"reasoning_tokens":64},"total_tokens":123},"store":false}}

"#;

pub(super) const TEXT_END: &str = r#""total_tokens":123},"store":false}}"#;

pub(super) const TOOLS: &str = r#"data: {"type":"response.output_item.added","output_index":1,"item":{"id":"fc_1","type":"function_call","status":"in_progress","call_id":"call_1","name":"weather","arguments":""}}

data: {"type":"response.function_call_arguments.delta","item_id":"fc_1","output_index":1,"delta":"{\"city\":"}

data: {"type":"response.output_item.added","output_index":2,"item":{"id":"fc_2","type":"function_call","call_id":"call_2","name":"time","arguments":""}}

data: {"type":"response.function_call_arguments.delta","item_id":"fc_1","output_index":1,"delta":"\"Kiel\"}"}

data: {"type":"response.function_call_arguments.done","item_id":"fc_1","output_index":1,"arguments":"{\"city\":\"Kiel\"}"}

data: {"type":"response.output_item.done","output_index":1,"item":{"id":"fc_1","type":"function_call","call_id":"call_1","name":"weather","arguments":"{\"city\":\"Kiel\"}"}}

data: {"type":"response.function_call_arguments.done","item_id":"fc_2","output_index":2,"arguments":"{\"zone\":1}"}

data: {"type":"response.output_item.done","output_index":3,"item":{"id":"fc_3","type":"function_call","call_id":"call_3","name":"date","arguments":""}}

data: {"type":"response.completed","response":{"status":"completed","output":[],"usage":{"input_tokens":5,"output_tokens":7}}}

"#;

pub(super) const TOOLS_END: &str = r#""output_tokens":7}}}"#;

#[test]
fn conversation() {
    check(
        &request(
            &json!([
                {"type": "system", "content": "be kind"},
                {"type": "system", "content": [{"type": "text", "text": "be brief"}]},
                {"type": "human", "content": "hi"},
                {"type": "ai", "content": "hello", "tool_calls": []},
                {"type": "human", "content": [
                    "look",
                    {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
                    {"type": "image", "base64": "AAAA", "mime_type": "image/jpeg"},
                    {"type": "file", "file": {"file_id": "f1"}},
                    {"type": "input_audio", "input_audio": {"data": "BBBB", "format": "wav"}},
                ]},
                {"type": "system", "content": "now in German"},
            ]),
            &json!({"temperature": 0.5, "max_tokens": 300, "n": 1, "seed": null, "safety_identifier": "u1"}),
        ),
        expect![[r#"
            model: "gpt-5-mini"
            instructions: "be kind\n\nbe brief"
            input:
              {"role":"user","content":"hi"}
              {"role":"assistant","content":"hello"}
              {"role":"user","content":[{"type":"input_text","text":"look"},{"type":"input_image","image_url":"https://x/y.png","detail":"low"},{"type":"input_image","image_url":"data:image/jpeg;base64,AAAA"},{"file_id":"f1","type":"input_file"},{"type":"input_audio","input_audio":{"data":"BBBB","format":"wav"}}]}
              {"role":"system","content":"now in German"}
            stream: true
            store: false
            max_output_tokens: 300
            temperature: 0.5
            safety_identifier: "u1"
        "#]],
    );
}

#[test]
fn tools() {
    check(
        &request(
            &json!([
                {"type": "human", "content": "weather?"},
                {"type": "ai", "content": "", "tool_calls": [
                    {"name": "weather", "args": {"city": "Kiel"}, "id": "call_1"}],
                    "invalid_tool_calls": [{"name": "time", "args": "{\"zone\":", "id": "call_2"}]},
                {"type": "tool", "content": "rain", "tool_call_id": "call_1"},
                {"type": "tool", "content": [{"type": "text", "text": "bad"}], "tool_call_id": "call_2"},
            ]),
            &json!({
                "tools": [
                    {"type": "function", "function": {"name": "weather", "description": "d",
                        "parameters": {"type": "object"}}},
                    {"type": "function", "function": {"name": "time", "strict": true}},
                    {"type": "web_search"},
                ],
                "tool_choice": {"type": "function", "function": {"name": "weather"}},
                "parallel_tool_calls": false,
            }),
        ),
        expect![[r#"
            model: "gpt-5-mini"
            input:
              {"role":"user","content":"weather?"}
              {"type":"function_call","call_id":"call_1","name":"weather","arguments":"{\"city\":\"Kiel\"}"}
              {"type":"function_call","call_id":"call_2","name":"time","arguments":"{\"zone\":"}
              {"type":"function_call_output","call_id":"call_1","output":"rain"}
              {"type":"function_call_output","call_id":"call_2","output":"bad"}
            stream: true
            store: false
            tools:
              {"type":"function","name":"weather","description":"d","parameters":{"type":"object"},"strict":false}
              {"type":"function","name":"time","strict":true}
              {"type":"web_search"}
            tool_choice: {"type":"function","name":"weather"}
            parallel_tool_calls: false
        "#]],
    );
    check(
        &stream(TOOLS),
        expect![[r#"
        ToolCall { index: 0, id: Some("call_1"), name: Some("weather"), arguments: "" }
        ToolCall { index: 0, id: None, name: None, arguments: "{\"city\":" }
        ToolCall { index: 1, id: Some("call_2"), name: Some("time"), arguments: "" }
        ToolCall { index: 0, id: None, name: None, arguments: "\"Kiel\"}" }
        ToolCall { index: 1, id: None, name: None, arguments: "{\"zone\":1}" }
        ToolCall { index: 2, id: Some("call_3"), name: Some("date"), arguments: "" }
        ToolCall { index: 2, id: None, name: None, arguments: "{}" }
        Finish { reason: ToolCalls, usage: Some(Usage { input_tokens: 5, output_tokens: 7, cached_tokens: 0, reasoning_tokens: 0 }) }
    "#]],
    );
}

#[test]
fn text_and_reasoning() {
    check(
        &request(
            &json!([{"type": "human", "content": "hi"}]),
            &json!({"reasoning_effort": "high", "reasoning": {"summary": "auto"}, "store": true}),
        ),
        expect![[r#"
            model: "gpt-5-mini"
            input:
              {"role":"user","content":"hi"}
            stream: true
            store: true
            reasoning: {"summary":"auto","effort":"high"}
        "#]],
    );
    check(
        &stream(TEXT),
        expect![[r#"
        Reasoning("**Greeting**")
        Reasoning("\n\n")
        Reasoning("Short.")
        Text("größer")
        Text(" 🦀")
        Finish { reason: Stop, usage: Some(Usage { input_tokens: 36, output_tokens: 87, cached_tokens: 4, reasoning_tokens: 64 }) }
    "#]],
    );
    check(
        &stream(
            "data: {\"type\":\"response.reasoning_text.delta\",\"output_index\":0,\"delta\":\"hm\"}\n\n",
        ),
        expect![[r#"
            Reasoning("hm")
            unfinished: Truncated
        "#]],
    );
}

#[test]
fn structured_output() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "string"}}});
    check(
        &request(
            &json!([{"type": "human", "content": "hi"}]),
            &json!({"verbosity": "low", "response_format":
                {"type": "json_schema", "json_schema": {"name": "it", "strict": true, "schema": schema}}}),
        ),
        expect![[r#"
            model: "gpt-5-mini"
            input:
              {"role":"user","content":"hi"}
            stream: true
            store: false
            text: {"verbosity":"low","format":{"type":"json_schema","name":"it","strict":true,"schema":{"type":"object","properties":{"a":{"type":"string"}}}}}
        "#]],
    );
    check(
        &request(
            &json!([{"type": "system", "content": "only me"}]),
            &json!({"response_format": {"type": "json_object"}}),
        ),
        expect![[r#"
            model: "gpt-5-mini"
            input:
              {"role":"system","content":"only me"}
            stream: true
            store: false
            text: {"format":{"type":"json_object"}}
        "#]],
    );
}

#[test]
fn endings() {
    let token = "data: {\"type\":\"response.output_text.delta\",\"delta\":\"a\"}\n\n";
    let end = |kind: &str, response: &str| {
        stream(&format!(
            "{token}data: {{\"type\":\"response.{kind}\",\"response\":{response}}}\n\n"
        ))
    };
    check(
        &end(
            "incomplete",
            r#"{"status":"incomplete","incomplete_details":{"reason":"max_output_tokens"}}"#,
        ),
        expect![[r#"
            Text("a")
            Finish { reason: Length, usage: None }
        "#]],
    );
    check(
        &end(
            "incomplete",
            r#"{"status":"incomplete","incomplete_details":{"reason":"content_filter"}}"#,
        ),
        expect![[r#"
            Text("a")
            Finish { reason: ContentFilter, usage: None }
        "#]],
    );
    check(
        &end("something_new", "{}"),
        expect![[r#"
        Text("a")
        unfinished: Truncated
    "#]],
    );
    check(
        &stream(
            "data: {\"type\":\"response.refusal.delta\",\"delta\":\"I cannot\"}\n\n\
             data: {\"type\":\"response.completed\",\"response\":{\"status\":\"completed\"}}\n\n",
        ),
        expect![[r#"
            Text("I cannot")
            Finish { reason: Stop, usage: None }
        "#]],
    );
    // Chat completions' last word is none here.
    check(
        &stream(&format!("{token}data: [DONE]\n\n")),
        expect![[r#"
        Text("a")
        unfinished: Truncated
    "#]],
    );
    check(
        &stream("data: [DONE]\n\n"),
        expect![[r#"
        unfinished: Empty
    "#]],
    );
    // A provider that sends nothing but the end has sent everything with it.
    check(
        &stream(
            "data: {\"type\":\"response.completed\",\"response\":{\"status\":\"completed\",\"output\":\
             [{\"type\":\"message\",\"content\":[{\"type\":\"output_text\",\"text\":\"all\"}]}]}}\n\n",
        ),
        expect![[r#"
            Text("all")
            Finish { reason: Stop, usage: None }
        "#]],
    );
}

#[test]
fn errors_inside_the_stream() {
    for (event, expected) in [
        (
            r#"data: {"type":"response.failed","response":{"id":"resp_1","status":"failed","error":{"code":"server_error","message":"sorry"}}}"#,
            "rejected: upstream.server_error \"sorry\"\n",
        ),
        (
            r#"data: {"type":"response.failed","response":{"error":{"code":"rate_limit_exceeded","message":"slow down"}}}"#,
            "rejected: upstream.rate_limited \"slow down\"\n",
        ),
        (
            r#"data: {"type":"response.failed","response":{"error":{"code":"invalid_prompt","message":"no"}}}"#,
            "rejected: upstream.invalid_request \"no\"\n",
        ),
        (
            "event: error\ndata: {\"type\":\"error\",\"code\":\"context_length_exceeded\",\"message\":\"long\",\"param\":null}",
            "rejected: upstream.context_length \"long\"\n",
        ),
        (
            r#"data: {"type":"error","error":{"type":"server_error","code":"server_is_overloaded","message":"busy"}}"#,
            "rejected: upstream.overloaded \"busy\"\n",
        ),
        (r#"data: {"error":{"message":"boom"}}"#, "rejected: upstream.server_error \"boom\"\n"),
        (r#"data: {"choices":[]}"#, "malformed: an event has no type\n"),
        ("data: 7", "malformed: expected a JSON object: it is something else\n"),
    ] {
        // A last event that is malformed counts as cut; these are not the last.
        assert_eq!(stream(&format!("{event}\n\n\n")), expected, "{event}");
    }
}

#[test]
fn whole() {
    let read = |body: &str| answer(Kind::Responses, body);
    check(
        &read(
            r#"{"id":"resp_1","object":"response","status":"completed","error":null,"output":[
            {"type":"reasoning","summary":[{"type":"summary_text","text":"hm"}]},
            {"type":"message","content":[{"type":"output_text","text":"Hello"},{"type":"refusal","refusal":"no"}]},
            {"type":"web_search_call","id":"ws_1","status":"completed"},
            {"type":"function_call","call_id":"c1","name":"f","arguments":"{\"a\":1}"},
            {"type":"function_call","call_id":"c2","name":"g","arguments":""}],
            "usage":{"input_tokens":3,"output_tokens":0}}"#,
        ),
        expect![[r#"
            Reasoning("hm")
            Text("Hello")
            Text("no")
            ToolCall { index: 0, id: Some("c1"), name: Some("f"), arguments: "{\"a\":1}" }
            ToolCall { index: 1, id: Some("c2"), name: Some("g"), arguments: "" }
            ToolCall { index: 1, id: None, name: None, arguments: "{}" }
            Finish { reason: ToolCalls, usage: Some(Usage { input_tokens: 3, output_tokens: 0, cached_tokens: 0, reasoning_tokens: 0 }) }
        "#]],
    );
    for (body, expected) in [
        (r#"{"error":{"message":"x"}}"#, "rejected: upstream.server_error \"x\"\n"),
        (
            r#"{"status":"failed","error":{"code":"server_error","message":"x"},"output":[]}"#,
            "rejected: upstream.server_error \"x\"\n",
        ),
        (r#"{"status":"in_progress","error":null,"output":[]}"#, "unfinished: Truncated\n"),
        (r#"{"status":"completed","output":[]}"#, "unfinished: Empty\n"),
        (r#"{"choices":[]}"#, "malformed: the answer is JSON, but no response\n"),
    ] {
        assert_eq!(read(body), expected, "{body}");
    }
}
