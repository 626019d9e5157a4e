use std::sync::Arc;

use serde_json::json;

use super::*;

fn body(messages: Value, defaults: Value, params: Value) -> Result<Value, BuildError> {
    let messages: Vec<_> = messages.as_array().unwrap().iter().cloned().map(Arc::new).collect();
    let map = |value: Value| value.as_object().cloned().unwrap();
    let bytes = chat(&ChatParts {
        model: "gpt-5-mini",
        messages: &messages,
        model_params: &map(defaults),
        call_params: &map(params),
        max_output_tokens: 4096,
    })?;
    Ok(serde_json::from_slice(&bytes).expect("the body is JSON"))
}

fn message(message: Value) -> Value {
    body(json!([message]), json!({}), json!({})).unwrap()["messages"][0].take()
}

#[test]
fn the_frame() {
    assert_eq!(
        body(
            json!([{"type": "human", "content": "hi", "id": "m1"}]),
            json!({"temperature": 0.5, "top_p": 1}),
            json!({"temperature": 0, "tools": [{"type": "function"}]}),
        )
        .unwrap(),
        json!({
            "model": "gpt-5-mini",
            "messages": [{"role": "user", "content": "hi"}],
            "stream": true,
            "stream_options": {"include_usage": true},
            "temperature": 0,
            "top_p": 1,
            "tools": [{"type": "function"}],
        })
    );
}

#[test]
fn roles_and_text() {
    assert_eq!(
        message(json!({"type": "system", "content": "be \"kind\"\n", "id": "1", "extra": 1})),
        json!({"role": "system", "content": "be \"kind\"\n"})
    );
    assert_eq!(
        message(json!({"type": "human", "content": "hi", "name": "ada"})),
        json!({"role": "user", "content": "hi", "name": "ada"})
    );
    assert_eq!(
        message(json!({"type": "ai", "content": "yes", "response_metadata": {"x": 1}, "name": ""})),
        json!({"role": "assistant", "content": "yes"})
    );
    assert_eq!(
        message(json!({"type": "tool", "content": [{"type": "text", "text": "1"}, "2"],
            "tool_call_id": "c1", "name": "f", "status": "success"})),
        json!({"role": "tool", "content": "12", "tool_call_id": "c1"})
    );
}

#[test]
fn tool_calls() {
    assert_eq!(
        message(json!({"type": "ai", "content": "", "id": "1",
            "tool_calls": [{"name": "f", "args": {"a": [1]}, "id": "c1", "type": "tool_call"},
                {"name": "g", "id": "c2"}],
            "invalid_tool_calls": [{"name": "h", "args": "{\"a\":", "id": "c3"}]})),
        json!({"role": "assistant", "content": null, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\":[1]}"}},
            {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
            {"id": "c3", "type": "function", "function": {"name": "h", "arguments": "{\"a\":"}},
        ]})
    );
    let raw =
        json!([{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]);
    assert_eq!(
        message(json!({"type": "ai", "content": "so", "tool_calls": [],
            "additional_kwargs": {"tool_calls": raw}})),
        json!({"role": "assistant", "content": "so", "tool_calls": raw})
    );
}

#[test]
fn parts() {
    assert_eq!(
        message(json!({"type": "human", "content": [
            "look",
            {"type": "text", "text": "here"},
            {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
            {"type": "image", "url": "https://x/z.png"},
            {"type": "image", "base64": "AAAA", "mime_type": "image/jpeg"},
            {"type": "input_audio", "input_audio": {"data": "BBBB", "format": "wav"}},
        ]})),
        json!({"role": "user", "content": [
            {"type": "text", "text": "look"},
            {"type": "text", "text": "here"},
            {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
            {"type": "image_url", "image_url": {"url": "https://x/z.png"}},
            {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,AAAA"}},
            {"type": "input_audio", "input_audio": {"data": "BBBB", "format": "wav"}},
        ]})
    );
    // What a model thought does not go back to it.
    assert_eq!(
        message(json!({"type": "ai", "content": [
            {"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "yes"}]})),
        json!({"role": "assistant", "content": "yes"})
    );
}

#[test]
fn what_is_no_message_is_named() {
    let refused = |messages| body(messages, json!({}), json!({})).unwrap_err().to_string();
    assert_eq!(refused(json!([])), "there is no message to answer");
    assert_eq!(
        refused(json!([{"type": "human", "content": "a"}, {"type": "robot", "content": "b"}])),
        "message 1: type \"robot\" is none of system, human, ai, tool"
    );
    assert_eq!(
        refused(json!([{"type": "human", "content": 7}])),
        "message 0: content is neither a text nor a list of parts"
    );
    assert_eq!(
        refused(json!([{"type": "tool", "content": "x"}])),
        "message 0: a tool message needs the tool_call_id it answers"
    );
    assert_eq!(refused(json!(["hi"])), "message 0: type null is none of system, human, ai, tool");
}
