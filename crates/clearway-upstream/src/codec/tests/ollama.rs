use expect_test::expect;
use serde_json::json;

use super::{Kind, answer, check};

fn request(messages: &serde_json::Value, params: &serde_json::Value) -> String {
    super::request(Kind::Ollama, "qwen3", messages, params)
}

fn stream(bytes: &str) -> String {
    super::stream(Kind::Ollama, bytes)
}

pub(super) const TEXT: &str = r#"{"model":"qwen3","created_at":"2026-11-20T10:00:00.1Z","message":{"role":"assistant","content":"","thinking":"hm"},"done":false}
{"model":"qwen3","created_at":"2026-11-20T10:00:00.2Z","message":{"role":"assistant","content":"größer"},"done":false}
{"model":"qwen3","created_at":"2026-11-20T10:00:00.3Z","message":{"role":"assistant","content":" \ud83e\udd80"},"done":false}
{"model":"qwen3","created_at":"2026-11-20T10:00:00.4Z","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop","total_duration":4883583458,"load_duration":1334875,"prompt_eval_count":26,"prompt_eval_duration":342546000,"eval_count":282,"eval_duration":4535599000}
"#;

pub(super) const TEXT_END: &str = r#""eval_duration":4535599000}"#;

pub(super) const TOOLS: &str = r#"{"model":"qwen3","created_at":"2026-11-20T10:00:00.1Z","message":{"role":"assistant","content":"","tool_calls":[{"function":{"name":"weather","arguments":{"city":"Kiel"}}}]},"done":false}
{"model":"qwen3","created_at":"2026-11-20T10:00:00.2Z","message":{"role":"assistant","content":"","tool_calls":[{"id":"call_x","function":{"index":1,"name":"time","arguments":{}}},{"function":{"name":"date"}}]},"done":false}
{"model":"qwen3","created_at":"2026-11-20T10:00:00.3Z","message":{"role":"assistant","content":""},"done_reason":"stop","done":true,"eval_count":5}
"#;

pub(super) const TOOLS_END: &str = r#""done":true,"eval_count":5}"#;

#[test]
fn conversation() {
    check(
        &request(
            &json!([
                {"type": "system", "content": "be kind"},
                {"type": "human", "content": [
                    "look ",
                    {"type": "text", "text": "here"},
                    {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,AAAA"}},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "BBBB"}},
                ]},
                {"type": "ai", "content": "hello"},
                {"type": "human", "content": "go on"},
            ]),
            &json!({
                "temperature": 0.5, "max_tokens": 300, "stop": "END", "seed": 7, "n": 1,
                "options": {"num_ctx": 8192, "seed": 1}, "keep_alive": "5m", "reasoning_effort": "none",
            }),
        ),
        expect![[r#"
            model: "qwen3"
            messages:
              {"role":"system","content":"be kind"}
              {"role":"user","content":"look here","images":["AAAA","BBBB"]}
              {"role":"assistant","content":"hello"}
              {"role":"user","content":"go on"}
            stream: true
            think: false
            options: {"num_ctx":8192,"seed":1,"temperature":0.5,"stop":["END"],"num_predict":300}
            keep_alive: "5m"
        "#]],
    );
    for (part, expected) in [
        (
            json!({"type": "image_url", "image_url": "https://x/y.png"}),
            "refused: message 0: Ollama cannot be sent an image without its data\n",
        ),
        (
            json!({"type": "input_audio", "input_audio": {}}),
            "refused: message 0: Ollama cannot be sent a part of type \"input_audio\"\n",
        ),
    ] {
        assert_eq!(request(&json!([{"type": "human", "content": [part]}]), &json!({})), expected);
    }
}

#[test]
fn tools() {
    let messages = json!([
        {"type": "human", "content": "weather?"},
        {"type": "ai", "content": "", "tool_calls": [
            {"name": "weather", "args": {"city": "Kiel"}, "id": "c1"}],
            "invalid_tool_calls": [{"name": "time", "args": "{\"zone\":", "id": "c2"}]},
        {"type": "tool", "content": "rain", "tool_call_id": "c1"},
        {"type": "tool", "content": "bad", "tool_call_id": "c2", "name": "clock"},
    ]);
    let tool = json!({"type": "function", "function": {"name": "weather", "parameters": {}}});
    check(
        &request(&messages, &json!({"tools": [tool], "tool_choice": "auto"})),
        expect![[r#"
        model: "qwen3"
        messages:
          {"role":"user","content":"weather?"}
          {"role":"assistant","content":"","tool_calls":[{"id":"c1","function":{"name":"weather","arguments":{"city":"Kiel"}}},{"id":"c2","function":{"name":"time","arguments":{"arguments":"{\"zone\":"}}}]}
          {"role":"tool","content":"rain","tool_name":"weather","tool_call_id":"c1"}
          {"role":"tool","content":"bad","tool_name":"clock","tool_call_id":"c2"}
        stream: true
        tools:
          {"type":"function","function":{"name":"weather","parameters":{}}}
    "#]],
    );
    let none = request(&messages, &json!({"tools": [tool], "tool_choice": "none"}));
    assert!(!none.contains("\ntools:"), "{none}");
    check(
        &stream(TOOLS),
        expect![[r#"
        ToolCall { index: 0, id: Some("call_20261120T1000001Z_0"), name: Some("weather"), arguments: "{\"city\":\"Kiel\"}" }
        ToolCall { index: 1, id: Some("call_x"), name: Some("time"), arguments: "{}" }
        ToolCall { index: 2, id: Some("call_20261120T1000002Z_2"), name: Some("date"), arguments: "{}" }
        Finish { reason: ToolCalls, usage: Some(Usage { input_tokens: 0, output_tokens: 5, cached_tokens: 0, reasoning_tokens: 0 }) }
    "#]],
    );
}

#[test]
fn text_and_thinking() {
    check(
        &stream(TEXT),
        expect![[r#"
        Reasoning("hm")
        Text("größer")
        Text(" 🦀")
        Finish { reason: Stop, usage: Some(Usage { input_tokens: 26, output_tokens: 282, cached_tokens: 0, reasoning_tokens: 0 }) }
    "#]],
    );
}

#[test]
fn formats_and_efforts() {
    let line = |params: &serde_json::Value, name: &str| {
        let text = request(&json!([{"type": "human", "content": "hi"}]), params);
        text.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned)
    };
    let schema =
        json!({"type": "json_schema", "json_schema": {"name": "it", "schema": {"type": "object"}}});
    let format = |format| line(&json!({"response_format": format}), "format: ");
    assert_eq!(format(schema).as_deref(), Some(r#"{"type":"object"}"#));
    assert_eq!(format(json!({"type": "json_object"})).as_deref(), Some("\"json\""));
    assert_eq!(format(json!({"type": "text"})), None);
    for (effort, think) in
        [("none", "false"), ("minimal", "\"low\""), ("medium", "\"medium\""), ("xhigh", "\"high\"")]
    {
        let found = line(&json!({"reasoning_effort": effort}), "think: ");
        assert_eq!(found.as_deref(), Some(think));
    }
}

#[test]
fn endings() {
    let token = r#"{"message":{"content":"a"},"done":false}"#;
    for (reason, expected) in
        [("length", "Length"), ("stop", "Stop"), ("load", "Other(\"load\")"), ("", "Stop")]
    {
        let found = stream(&format!("{token}\n\n{{\"done\":true,\"done_reason\":\"{reason}\"}}"));
        let expected = format!("Text(\"a\")\nFinish {{ reason: {expected}, usage: None }}\n");
        assert_eq!(found, expected);
    }
    check(
        &stream(&format!("{token}\n{token}\n")),
        expect![[r#"
        Text("a")
        Text("a")
        unfinished: Truncated
    "#]],
    );
    check(
        &stream("{\"status\":\"pulling\"}\n"),
        expect![[r#"
        unfinished: Empty
    "#]],
    );
    check(
        &stream(&format!("{{\"done\":true}}\n{token}\nnonsense\n")),
        expect![[r#"
        Finish { reason: Stop, usage: None }
    "#]],
    );
}

#[test]
fn errors_inside_the_stream() {
    let token = "{\"message\":{\"content\":\"a\"},\"done\":false}\n";
    for (line, expected) in [
        (
            r#"{"error":"an error was encountered while running the model: unexpected EOF"}"#,
            "rejected: upstream.server_error \"an error was encountered while running the model: unexpected EOF\"\n",
        ),
        (
            r#"{"error":"the input is too long: reduce the length of the prompt"}"#,
            "rejected: upstream.context_length \"the input is too long: reduce the length of the prompt\"\n",
        ),
        ("[]", "malformed: expected a JSON object: it is something else\n"),
    ] {
        assert_eq!(stream(&format!("{token}{line}\n")), format!("Text(\"a\")\n{expected}"));
    }
}

#[test]
fn whole() {
    let read = |body: &str| answer(Kind::Ollama, body);
    check(
        &read(
            r#"{"model":"qwen3","message":{"role":"assistant","content":"Hello","thinking":"hm"},
            "done_reason":"stop","done":true,"prompt_eval_count":3,"eval_count":0}"#,
        ),
        expect![[r#"
            Reasoning("hm")
            Text("Hello")
            Finish { reason: Stop, usage: Some(Usage { input_tokens: 3, output_tokens: 0, cached_tokens: 0, reasoning_tokens: 0 }) }
        "#]],
    );
    for (body, expected) in [
        (
            r#"{"error":"model 'x' not found"}"#,
            "rejected: upstream.server_error \"model 'x' not found\"\n",
        ),
        (r#"{"message":{"content":"a"},"done":false}"#, "unfinished: Truncated\n"),
        ("{}", "unfinished: Empty\n"),
    ] {
        assert_eq!(read(body), expected, "{body}");
    }
}
