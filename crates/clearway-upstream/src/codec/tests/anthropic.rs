use expect_test::expect;
use serde_json::json;

use super::{Kind, answer, check};

fn request(messages: &serde_json::Value, params: &serde_json::Value) -> String {
    super::request(Kind::Anthropic, "claude-opus-5-5", messages, params)
}

fn stream(bytes: &str) -> String {
    super::stream(Kind::Anthropic, bytes)
}

pub(super) const TEXT: &str = r#"event: message_start
data: {"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"claude-opus-5-5","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":25,"cache_creation_input_tokens":10,"cache_read_input_tokens":100,"output_tokens":1}}}

event: content_block_start
data: {"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}

event: ping
data: {"type": "ping"}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"Let me see."}}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"EqQBCgIYAhIM"}}

event: content_block_stop
data: {"type":"content_block_stop","index":0}

event: content_block_start
data: {"type":"content_block_start","index":1,"content_block":{"type":"text","text":""}}

event: content_block_delta
data: {"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"größer"}}

event: content_block_delta
data: {"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":" \ud83e\udd80"}}

event: content_block_stop
data: {"type":"content_block_stop","index":1}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":15,"output_tokens_details":{"thinking_tokens":6}}}

event: message_stop
data: {"type":"message_stop"}

"#;

pub(super) const TEXT_END: &str = r#""thinking_tokens":6}}}"#;

pub(super) const TOOLS: &str = r#"event: message_start
data: {"type":"message_start","message":{"usage":{"input_tokens":472,"output_tokens":2}}}

event: content_block_start
data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":"Well"}}

event: content_block_stop
data: {"type":"content_block_stop","index":0}

event: content_block_start
data: {"type":"content_block_start","index":1,"content_block":{"type":"tool_use","id":"toolu_1","name":"weather","input":{}}}

event: content_block_delta
data: {"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":""}}

event: content_block_delta
data: {"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":"{\"city\":"}}

event: content_block_delta
data: {"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":" \"Kiel\"}"}}

event: content_block_stop
data: {"type":"content_block_stop","index":1}

event: content_block_start
data: {"type":"content_block_start","index":2,"content_block":{"type":"tool_use","id":"toolu_2","name":"time","input":{}}}

event: content_block_stop
data: {"type":"content_block_stop","index":2}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"tool_use"},"usage":{"output_tokens":89}}

event: message_stop
data: {"type":"message_stop"}

"#;

pub(super) const TOOLS_END: &str = r#""output_tokens":89}}"#;

#[test]
fn conversation() {
    check(
        &request(
            &json!([
                {"type": "system", "content": "be kind"},
                {"type": "human", "content": "hi"},
                {"type": "human", "content": [
                    {"type": "text", "text": "look"},
                    {"type": "text", "text": ""},
                    {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
                    {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,AAAA"}},
                    {"type": "document", "source": {"type": "text", "data": "d"}},
                ]},
                {"type": "ai", "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "sig"},
                    {"type": "reasoning", "reasoning": "unsigned"},
                    {"type": "text", "text": "hello"},
                    {"type": "tool_use", "id": "c1", "name": "f", "input": {}},
                ]},
                {"type": "system", "content": "now in German"},
                {"type": "ai", "content": ""},
                {"type": "human", "content": "go on"},
            ]),
            &json!({"temperature": 0.5, "stop": "END", "user": "u1", "n": 1, "top_k": 5, "seed": null}),
        ),
        expect![[r#"
            model: "claude-opus-5-5"
            max_tokens: 4096
            system: "be kind\n\nnow in German"
            messages:
              {"role":"user","content":[{"type":"text","text":"hi"},{"type":"text","text":"look"},{"type":"image","source":{"type":"url","url":"https://x/y.png"}},{"type":"image","source":{"type":"base64","media_type":"image/jpeg","data":"AAAA"}},{"type":"document","source":{"type":"text","data":"d"}}]}
              {"role":"assistant","content":[{"type":"thinking","thinking":"hm","signature":"sig"},{"type":"text","text":"hello"}]}
              {"role":"user","content":[{"type":"text","text":"go on"}]}
            stream: true
            stop_sequences:
              "END"
            metadata: {"user_id":"u1"}
            temperature: 0.5
            top_k: 5
        "#]],
    );
    assert_eq!(
        request(&json!([{"type": "system", "content": "only me"}]), &json!({})),
        "refused: there is no message to answer\n"
    );
}

#[test]
fn tools() {
    check(
        &request(
            &json!([
                {"type": "human", "content": "weather?"},
                {"type": "ai", "content": "", "tool_calls": [
                    {"name": "weather", "args": {"city": "Kiel"}, "id": "functions.weather:0"},
                    {"name": "date", "args": "", "id": "c2"}],
                    "invalid_tool_calls": [{"name": "time", "args": "{\"zone\":", "id": "c3"}]},
                {"type": "tool", "content": "rain", "tool_call_id": "functions.weather:0"},
                {"type": "tool", "content": [{"type": "image", "base64": "AAAA", "mime_type": "image/png"}],
                    "tool_call_id": "c2"},
                {"type": "tool", "content": "bad", "tool_call_id": "c3", "status": "error"},
                {"type": "human", "content": "and?"},
            ]),
            &json!({
                "max_completion_tokens": 300,
                "tools": [
                    {"type": "function", "function": {"name": "weather", "description": "d", "strict": true,
                        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}},
                    {"type": "function", "function": {"name": "date"}},
                    {"type": "web_search_20250305", "name": "web_search"},
                ],
                "tool_choice": "required",
                "parallel_tool_calls": false,
            }),
        ),
        expect![[r#"
            model: "claude-opus-5-5"
            max_tokens: 300
            messages:
              {"role":"user","content":[{"type":"text","text":"weather?"}]}
              {"role":"assistant","content":[{"type":"tool_use","id":"functions_weather_0","name":"weather","input":{"city":"Kiel"}},{"type":"tool_use","id":"c2","name":"date","input":{}},{"type":"tool_use","id":"c3","name":"time","input":{"arguments":"{\"zone\":"}}]}
              {"role":"user","content":[{"type":"tool_result","tool_use_id":"functions_weather_0","content":"rain"},{"type":"tool_result","tool_use_id":"c2","content":[{"type":"image","source":{"type":"base64","media_type":"image/png","data":"AAAA"}}]},{"type":"tool_result","tool_use_id":"c3","content":"bad","is_error":true},{"type":"text","text":"and?"}]}
            stream: true
            tools:
              {"name":"weather","description":"d","strict":true,"input_schema":{"type":"object","properties":{"city":{"type":"string"}}}}
              {"name":"date","input_schema":{"type":"object","properties":{}}}
              {"type":"web_search_20250305","name":"web_search"}
            tool_choice: {"type":"any","disable_parallel_tool_use":true}
        "#]],
    );
    let choice = |params: &serde_json::Value| {
        let mut params = params.clone();
        params["tools"] = json!([{"type": "function", "function": {"name": "f"}}]);
        let text = request(&json!([{"type": "human", "content": "hi"}]), &params);
        text.lines().find_map(|line| line.strip_prefix("tool_choice: ")).map(str::to_owned)
    };
    assert_eq!(choice(&json!({})), None);
    for (params, expected) in [
        (json!({"tool_choice": "auto"}), r#"{"type":"auto"}"#),
        (json!({"tool_choice": "none", "parallel_tool_calls": false}), r#"{"type":"none"}"#),
        (
            json!({"tool_choice": {"type": "function", "function": {"name": "f"}}}),
            r#"{"type":"tool","name":"f"}"#,
        ),
        (
            json!({"parallel_tool_calls": false}),
            r#"{"type":"auto","disable_parallel_tool_use":true}"#,
        ),
    ] {
        assert_eq!(choice(&params).as_deref(), Some(expected));
    }
    check(
        &stream(TOOLS),
        expect![[r#"
        Text("Well")
        ToolCall { index: 0, id: Some("toolu_1"), name: Some("weather"), arguments: "" }
        ToolCall { index: 0, id: None, name: None, arguments: "{\"city\":" }
        ToolCall { index: 0, id: None, name: None, arguments: " \"Kiel\"}" }
        ToolCall { index: 1, id: Some("toolu_2"), name: Some("time"), arguments: "" }
        ToolCall { index: 1, id: None, name: None, arguments: "{}" }
        Finish { reason: ToolCalls, usage: Some(Usage { input_tokens: 472, output_tokens: 89, cached_tokens: 0, reasoning_tokens: 0 }) }
    "#]],
    );
}

#[test]
fn text_and_thoughts() {
    check(
        &stream(TEXT),
        expect![[r#"
        Reasoning("Let me see.")
        Text("größer")
        Text(" 🦀")
        Finish { reason: Stop, usage: Some(Usage { input_tokens: 135, output_tokens: 15, cached_tokens: 100, reasoning_tokens: 6 }) }
    "#]],
    );
}

/// `max_tokens`, `thinking` and `output_config` for an effort.
fn thinking(model: &str, messages: &serde_json::Value, params: &serde_json::Value) -> String {
    let text = super::request(Kind::Anthropic, model, messages, params);
    let names = ["max_tokens: ", "thinking: ", "output_config: "];
    text.lines()
        .filter_map(|line| names.iter().find_map(|name| line.strip_prefix(name)))
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn efforts() {
    let hi = json!([{"type": "human", "content": "hi"}]);
    let new = |params| thinking("claude-opus-5-5", &hi, &params);
    assert_eq!(
        new(json!({"reasoning_effort": "high"})),
        r#"20480 {"type":"adaptive"} {"effort":"high"}"#
    );
    assert_eq!(
        new(json!({"reasoning_effort": "minimal"})),
        r#"20480 {"type":"adaptive"} {"effort":"low"}"#
    );
    assert_eq!(new(json!({"reasoning_effort": "none"})), r#"4096 {"type":"disabled"}"#);
    assert_eq!(
        new(
            json!({"reasoning_effort": "low", "thinking": {"type": "enabled", "budget_tokens": 1}})
        ),
        r#"4096 {"type":"enabled","budget_tokens":1}"#
    );

    let old = |params| thinking("claude-sonnet-4-5-20250929", &hi, &params);
    assert_eq!(
        old(json!({"reasoning_effort": "medium"})),
        r#"12288 {"type":"enabled","budget_tokens":8192}"#
    );
    assert_eq!(
        old(json!({"reasoning_effort": "high", "max_tokens": 6000})),
        r#"6000 {"type":"enabled","budget_tokens":3000}"#
    );
    assert_eq!(old(json!({"reasoning_effort": "high", "max_tokens": 2000})), "2000");

    // With a budget, a turn that lost its thoughts goes on without.
    let mut turn = json!([
        {"type": "human", "content": "weather?"},
        {"type": "ai", "content": [], "tool_calls": [{"name": "f", "args": {}, "id": "c1"}]},
        {"type": "tool", "content": "rain", "tool_call_id": "c1"},
    ]);
    let effort = json!({"reasoning_effort": "low"});
    assert_eq!(thinking("claude-3-7-sonnet-latest", &turn, &effort), "4096");
    turn[1]["content"] = json!([{"type": "thinking", "thinking": "hm", "signature": "sig"}]);
    assert_eq!(
        thinking("claude-3-7-sonnet-latest", &turn, &effort),
        r#"6144 {"type":"enabled","budget_tokens":2048}"#
    );
}

#[test]
fn structured_output() {
    let hi = json!([{"type": "human", "content": "hi"}]);
    let schema = json!({"type": "object", "properties": {}, "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "it", "schema": schema}});
    assert_eq!(
        thinking(
            "claude-opus-5-5",
            &hi,
            &json!({"response_format": format, "output_config": {"effort": "max"}})
        ),
        format!(r#"4096 {{"effort":"max","format":{{"type":"json_schema","schema":{schema}}}}}"#)
    );
    let free = json!({"response_format": {"type": "json_object"}});
    assert_eq!(thinking("claude-opus-5-5", &hi, &free), "4096");
}

#[test]
fn endings() {
    let token = r#"data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}"#;
    let end = |reason: &str| {
        stream(&format!(
            "{token}\n\ndata: {{\"type\":\"message_delta\",\"delta\":{{\"stop_reason\":\"{reason}\"}}}}\n\n"
        ))
    };
    for (word, expected) in [
        ("max_tokens", "Length"),
        ("model_context_window_exceeded", "Length"),
        ("stop_sequence", "Stop"),
        ("refusal", "ContentFilter"),
        ("pause_turn", "Other(\"pause_turn\")"),
    ] {
        let expected = format!("Text(\"a\")\nFinish {{ reason: {expected}, usage: None }}\n");
        assert_eq!(end(word), expected);
    }
    let stop = "data: {\"type\":\"message_stop\"}\n\n";
    check(
        &stream(stop),
        expect![[r#"
        unfinished: Empty
    "#]],
    );
    check(
        &stream(&format!("{token}\n\n{stop}")),
        expect![[r#"
        Text("a")
        Finish { reason: Stop, usage: None }
    "#]],
    );
    check(
        &stream(&format!("{token}\n\n")),
        expect![[r#"
        Text("a")
        unfinished: Truncated
    "#]],
    );
}

#[test]
fn the_unknown_changes_nothing() {
    check(
        &stream(
            r#"data: {"type":"something_new","delta":7}

data: {"type":"content_block_start","index":0,"content_block":{"type":"server_tool_use","id":"s","name":"web_search","input":{}}}

data: {"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":"{}"}}

data: {"type":"content_block_delta","index":0,"delta":{"type":"citations_delta","citation":{}}}

data: {"type":"content_block_stop","index":0}

data: {"type":"content_block_start","index":1,"content_block":{"type":"redacted_thinking","data":"xyz"}}

data: {"type":"content_block_start"}

"#,
        ),
        expect![[r#"
            unfinished: Empty
        "#]],
    );
}

#[test]
fn errors_inside_the_stream() {
    for (event, expected) in [
        (
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"Overloaded\"}}",
            "rejected: upstream.overloaded \"Overloaded\"\n",
        ),
        (
            r#"data: {"type":"error","error":{"type":"rate_limit_error","message":"slow down"}}"#,
            "rejected: upstream.rate_limited \"slow down\"\n",
        ),
        (
            r#"data: {"type":"error","error":{"type":"authentication_error","message":"no"}}"#,
            "rejected: upstream.credentials_exhausted \"no\"\n",
        ),
        (
            r#"data: {"type":"error","error":{"type":"api_error","message":"sorry"}}"#,
            "rejected: upstream.server_error \"sorry\"\n",
        ),
        (r#"data: {"error":{"message":"boom"}}"#, "rejected: upstream.server_error \"boom\"\n"),
        (r#"data: {"choices":[]}"#, "malformed: an event has no type\n"),
        ("data: <html>", "malformed: expected a JSON object: expected value at line 1 column 1\n"),
    ] {
        assert_eq!(stream(&format!("{event}\n\n\n")), expected, "{event}");
    }
}

#[test]
fn whole() {
    let read = |body: &str| answer(Kind::Anthropic, body);
    check(
        &read(
            r#"{"id":"msg_1","type":"message","role":"assistant","content":[
            {"type":"thinking","thinking":"hm","signature":"sig"},
            {"type":"text","text":"Hello"},
            {"type":"tool_use","id":"c1","name":"f","input":{"a":1}},
            {"type":"tool_use","id":"c2","name":"g","input":{}}],
            "stop_reason":"tool_use","usage":{"input_tokens":3,"output_tokens":0}}"#,
        ),
        expect![[r#"
            Reasoning("hm")
            Text("Hello")
            ToolCall { index: 0, id: Some("c1"), name: Some("f"), arguments: "{\"a\":1}" }
            ToolCall { index: 1, id: Some("c2"), name: Some("g"), arguments: "" }
            ToolCall { index: 1, id: None, name: None, arguments: "{}" }
            Finish { reason: ToolCalls, usage: Some(Usage { input_tokens: 3, output_tokens: 0, cached_tokens: 0, reasoning_tokens: 0 }) }
        "#]],
    );
    for (body, expected) in [
        (
            r#"{"type":"error","error":{"type":"overloaded_error","message":"x"}}"#,
            "rejected: upstream.overloaded \"x\"\n",
        ),
        (r#"{"type":"message","content":[]}"#, "unfinished: Empty\n"),
        (r#"{"choices":[]}"#, "malformed: the answer is JSON, but no message\n"),
    ] {
        assert_eq!(read(body), expected, "{body}");
    }
}
