use expect_test::{Expect, expect};
use serde_json::json;

use super::*;
use crate::chat::{Format, ToolChoice};
use crate::frames::GAP;

const USAGE: Usage = Usage { prompt: 3, completion: 5, thoughts: 2 };

fn words(dialect: Dialect) -> Box<dyn Words> {
    let body = json!({
        "model": "m",
        "messages": [{"role": "user", "content": "x"}],
        "input": "x",
        "max_tokens": 9,
        "stream_options": {"include_usage": true},
    });
    let chat = dialect.read(&body).unwrap();
    dialect.words(Signature { number: 10, created: 86_400, model: "m".to_owned() }, &chat)
}

/// Everything that is said for thoughts and a main part, with the numbers in their places.
fn told(dialect: Dialect, kind: PartKind<'_>, text: &str, finish: Finish) -> (String, Value) {
    let words = words(dialect);
    let (thoughts, pieces) = (Pieces::words("Hm.".into(), 64), Pieces::words(text.to_owned(), 64));
    let parts =
        [Part { kind: PartKind::Thoughts, pieces: &thoughts }, Part { kind, pieces: &pieces }];
    let told = Told { parts: &parts, finish, usage: Some(USAGE) };
    let mut events = words.open();
    for (place, part) in parts.iter().enumerate() {
        events.extend(words.begin(part, place));
        events.extend(words.piece(part, place, part.json().trim_matches('"')));
        events.extend(words.end(part, place));
    }
    events.extend(words.finish(&told));
    events.extend(words.usage(&told));
    events.extend(words.done(&told));
    let line = |(number, event): (usize, &Event)| {
        let data = event.data.replace(GAP, "").replace(NUMBER, &number.to_string());
        event.name.map_or(format!("{data}\n"), |name| format!("{name}: {data}\n"))
    };
    (events.iter().enumerate().map(line).collect(), words.whole(&told))
}

#[track_caller]
fn check_text(dialect: Dialect, expected: &Expect) {
    let (stream, whole) = told(dialect, PartKind::Text, "Hi.", Finish::Stop);
    expected.assert_eq(&format!("{stream}\n{whole}\n"));
}

#[track_caller]
fn check_call(dialect: Dialect, expected: &Expect) {
    let (stream, whole) = told(dialect, PartKind::Call("look"), r#"{"a":1}"#, Finish::Call);
    expected.assert_eq(&format!("{stream}\n{whole}\n"));
}

#[test]
fn openai_text() {
    check_text(
        Dialect::OpenAi,
        &expect![[r#"
        {"id":"chatcmpl-sim-00000000000a","object":"chat.completion.chunk","created":86400,"model":"m","system_fingerprint":"fp_clearway_sim","choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}],"usage":null}
        {"id":"chatcmpl-sim-00000000000a","object":"chat.completion.chunk","created":86400,"model":"m","system_fingerprint":"fp_clearway_sim","choices":[{"index":0,"delta":{"reasoning_content":"Hm."},"logprobs":null,"finish_reason":null}],"usage":null}
        {"id":"chatcmpl-sim-00000000000a","object":"chat.completion.chunk","created":86400,"model":"m","system_fingerprint":"fp_clearway_sim","choices":[{"index":0,"delta":{"content":"Hi."},"logprobs":null,"finish_reason":null}],"usage":null}
        {"id":"chatcmpl-sim-00000000000a","object":"chat.completion.chunk","created":86400,"model":"m","system_fingerprint":"fp_clearway_sim","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"usage":null}
        {"id":"chatcmpl-sim-00000000000a","object":"chat.completion.chunk","created":86400,"model":"m","system_fingerprint":"fp_clearway_sim","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5,"total_tokens":8,"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":2}}}
        [DONE]

        {"id":"chatcmpl-sim-00000000000a","object":"chat.completion","created":86400,"model":"m","system_fingerprint":"fp_clearway_sim","choices":[{"index":0,"message":{"role":"assistant","content":"Hi.","refusal":null,"reasoning_content":"Hm."},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":5,"total_tokens":8,"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":2}}}
    "#]],
    );
}

#[test]
fn openai_call() {
    check_call(
        Dialect::OpenAi,
        &expect![[r#"
        {"id":"chatcmpl-sim-00000000000a","object":"chat.completion.chunk","created":86400,"model":"m","system_fingerprint":"fp_clearway_sim","choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}],"usage":null}
        {"id":"chatcmpl-sim-00000000000a","object":"chat.completion.chunk","created":86400,"model":"m","system_fingerprint":"fp_clearway_sim","choices":[{"index":0,"delta":{"reasoning_content":"Hm."},"logprobs":null,"finish_reason":null}],"usage":null}
        {"id":"chatcmpl-sim-00000000000a","object":"chat.completion.chunk","created":86400,"model":"m","system_fingerprint":"fp_clearway_sim","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"call_sim_00000000000a","type":"function","function":{"name":"look","arguments":""}}]},"logprobs":null,"finish_reason":null}],"usage":null}
        {"id":"chatcmpl-sim-00000000000a","object":"chat.completion.chunk","created":86400,"model":"m","system_fingerprint":"fp_clearway_sim","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"a\":1}"}}]},"logprobs":null,"finish_reason":null}],"usage":null}
        {"id":"chatcmpl-sim-00000000000a","object":"chat.completion.chunk","created":86400,"model":"m","system_fingerprint":"fp_clearway_sim","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"tool_calls"}],"usage":null}
        {"id":"chatcmpl-sim-00000000000a","object":"chat.completion.chunk","created":86400,"model":"m","system_fingerprint":"fp_clearway_sim","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5,"total_tokens":8,"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":2}}}
        [DONE]

        {"id":"chatcmpl-sim-00000000000a","object":"chat.completion","created":86400,"model":"m","system_fingerprint":"fp_clearway_sim","choices":[{"index":0,"message":{"role":"assistant","content":null,"refusal":null,"reasoning_content":"Hm.","tool_calls":[{"id":"call_sim_00000000000a","type":"function","function":{"name":"look","arguments":"{\"a\":1}"}}]},"logprobs":null,"finish_reason":"tool_calls"}],"usage":{"prompt_tokens":3,"completion_tokens":5,"total_tokens":8,"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":2}}}
    "#]],
    );
}

#[test]
fn responses_text() {
    check_text(
        Dialect::Responses,
        &expect![[r#"
        response.created: {"type":"response.created","response":{"id":"resp_sim_00000000000a","object":"response","created_at":86400,"status":"in_progress","error":null,"incomplete_details":null,"model":"m","output":[],"parallel_tool_calls":true,"store":false,"usage":null},"sequence_number":0}
        response.in_progress: {"type":"response.in_progress","response":{"id":"resp_sim_00000000000a","object":"response","created_at":86400,"status":"in_progress","error":null,"incomplete_details":null,"model":"m","output":[],"parallel_tool_calls":true,"store":false,"usage":null},"sequence_number":1}
        response.output_item.added: {"type":"response.output_item.added","output_index":0,"item":{"id":"rs_sim_00000000000a","type":"reasoning","summary":[]},"sequence_number":2}
        response.reasoning_summary_part.added: {"type":"response.reasoning_summary_part.added","item_id":"rs_sim_00000000000a","output_index":0,"summary_index":0,"part":{"type":"summary_text","text":""},"sequence_number":3}
        response.reasoning_summary_text.delta: {"type":"response.reasoning_summary_text.delta","item_id":"rs_sim_00000000000a","output_index":0,"summary_index":0,"delta":"Hm.","sequence_number":4}
        response.reasoning_summary_text.done: {"type":"response.reasoning_summary_text.done","item_id":"rs_sim_00000000000a","output_index":0,"summary_index":0,"text":"Hm.","sequence_number":5}
        response.reasoning_summary_part.done: {"type":"response.reasoning_summary_part.done","item_id":"rs_sim_00000000000a","output_index":0,"summary_index":0,"part":{"type":"summary_text","text":"Hm."},"sequence_number":6}
        response.output_item.done: {"type":"response.output_item.done","output_index":0,"item":{"id":"rs_sim_00000000000a","type":"reasoning","summary":[{"type":"summary_text","text":"Hm."}]},"sequence_number":7}
        response.output_item.added: {"type":"response.output_item.added","output_index":1,"item":{"id":"msg_sim_00000000000a","type":"message","status":"in_progress","role":"assistant","content":[]},"sequence_number":8}
        response.content_part.added: {"type":"response.content_part.added","item_id":"msg_sim_00000000000a","output_index":1,"content_index":0,"part":{"type":"output_text","text":"","annotations":[],"logprobs":[]},"sequence_number":9}
        response.output_text.delta: {"type":"response.output_text.delta","item_id":"msg_sim_00000000000a","output_index":1,"content_index":0,"delta":"Hi.","sequence_number":10}
        response.output_text.done: {"type":"response.output_text.done","item_id":"msg_sim_00000000000a","output_index":1,"content_index":0,"text":"Hi.","sequence_number":11}
        response.content_part.done: {"type":"response.content_part.done","item_id":"msg_sim_00000000000a","output_index":1,"content_index":0,"part":{"type":"output_text","text":"Hi.","annotations":[],"logprobs":[]},"sequence_number":12}
        response.output_item.done: {"type":"response.output_item.done","output_index":1,"item":{"id":"msg_sim_00000000000a","type":"message","status":"completed","role":"assistant","content":[{"type":"output_text","text":"Hi.","annotations":[],"logprobs":[]}]},"sequence_number":13}
        response.completed: {"type":"response.completed","response":{"id":"resp_sim_00000000000a","object":"response","created_at":86400,"status":"completed","error":null,"incomplete_details":null,"model":"m","output":[{"id":"rs_sim_00000000000a","type":"reasoning","summary":[{"type":"summary_text","text":"Hm."}]},{"id":"msg_sim_00000000000a","type":"message","status":"completed","role":"assistant","content":[{"type":"output_text","text":"Hi.","annotations":[],"logprobs":[]}]}],"parallel_tool_calls":true,"store":false,"usage":{"input_tokens":3,"input_tokens_details":{"cached_tokens":0},"output_tokens":5,"output_tokens_details":{"reasoning_tokens":2},"total_tokens":8}},"sequence_number":14}

        {"id":"resp_sim_00000000000a","object":"response","created_at":86400,"status":"completed","error":null,"incomplete_details":null,"model":"m","output":[{"id":"rs_sim_00000000000a","type":"reasoning","summary":[{"type":"summary_text","text":"Hm."}]},{"id":"msg_sim_00000000000a","type":"message","status":"completed","role":"assistant","content":[{"type":"output_text","text":"Hi.","annotations":[],"logprobs":[]}]}],"parallel_tool_calls":true,"store":false,"usage":{"input_tokens":3,"input_tokens_details":{"cached_tokens":0},"output_tokens":5,"output_tokens_details":{"reasoning_tokens":2},"total_tokens":8}}
    "#]],
    );
}

#[test]
fn responses_call() {
    check_call(
        Dialect::Responses,
        &expect![[r#"
        response.created: {"type":"response.created","response":{"id":"resp_sim_00000000000a","object":"response","created_at":86400,"status":"in_progress","error":null,"incomplete_details":null,"model":"m","output":[],"parallel_tool_calls":true,"store":false,"usage":null},"sequence_number":0}
        response.in_progress: {"type":"response.in_progress","response":{"id":"resp_sim_00000000000a","object":"response","created_at":86400,"status":"in_progress","error":null,"incomplete_details":null,"model":"m","output":[],"parallel_tool_calls":true,"store":false,"usage":null},"sequence_number":1}
        response.output_item.added: {"type":"response.output_item.added","output_index":0,"item":{"id":"rs_sim_00000000000a","type":"reasoning","summary":[]},"sequence_number":2}
        response.reasoning_summary_part.added: {"type":"response.reasoning_summary_part.added","item_id":"rs_sim_00000000000a","output_index":0,"summary_index":0,"part":{"type":"summary_text","text":""},"sequence_number":3}
        response.reasoning_summary_text.delta: {"type":"response.reasoning_summary_text.delta","item_id":"rs_sim_00000000000a","output_index":0,"summary_index":0,"delta":"Hm.","sequence_number":4}
        response.reasoning_summary_text.done: {"type":"response.reasoning_summary_text.done","item_id":"rs_sim_00000000000a","output_index":0,"summary_index":0,"text":"Hm.","sequence_number":5}
        response.reasoning_summary_part.done: {"type":"response.reasoning_summary_part.done","item_id":"rs_sim_00000000000a","output_index":0,"summary_index":0,"part":{"type":"summary_text","text":"Hm."},"sequence_number":6}
        response.output_item.done: {"type":"response.output_item.done","output_index":0,"item":{"id":"rs_sim_00000000000a","type":"reasoning","summary":[{"type":"summary_text","text":"Hm."}]},"sequence_number":7}
        response.output_item.added: {"type":"response.output_item.added","output_index":1,"item":{"id":"fc_sim_00000000000a","type":"function_call","status":"in_progress","call_id":"call_sim_00000000000a","name":"look","arguments":""},"sequence_number":8}
        response.function_call_arguments.delta: {"type":"response.function_call_arguments.delta","item_id":"fc_sim_00000000000a","output_index":1,"delta":"{\"a\":1}","sequence_number":9}
        response.function_call_arguments.done: {"type":"response.function_call_arguments.done","item_id":"fc_sim_00000000000a","output_index":1,"arguments":"{\"a\":1}","sequence_number":10}
        response.output_item.done: {"type":"response.output_item.done","output_index":1,"item":{"id":"fc_sim_00000000000a","type":"function_call","status":"completed","call_id":"call_sim_00000000000a","name":"look","arguments":"{\"a\":1}"},"sequence_number":11}
        response.completed: {"type":"response.completed","response":{"id":"resp_sim_00000000000a","object":"response","created_at":86400,"status":"completed","error":null,"incomplete_details":null,"model":"m","output":[{"id":"rs_sim_00000000000a","type":"reasoning","summary":[{"type":"summary_text","text":"Hm."}]},{"id":"fc_sim_00000000000a","type":"function_call","status":"completed","call_id":"call_sim_00000000000a","name":"look","arguments":"{\"a\":1}"}],"parallel_tool_calls":true,"store":false,"usage":{"input_tokens":3,"input_tokens_details":{"cached_tokens":0},"output_tokens":5,"output_tokens_details":{"reasoning_tokens":2},"total_tokens":8}},"sequence_number":12}

        {"id":"resp_sim_00000000000a","object":"response","created_at":86400,"status":"completed","error":null,"incomplete_details":null,"model":"m","output":[{"id":"rs_sim_00000000000a","type":"reasoning","summary":[{"type":"summary_text","text":"Hm."}]},{"id":"fc_sim_00000000000a","type":"function_call","status":"completed","call_id":"call_sim_00000000000a","name":"look","arguments":"{\"a\":1}"}],"parallel_tool_calls":true,"store":false,"usage":{"input_tokens":3,"input_tokens_details":{"cached_tokens":0},"output_tokens":5,"output_tokens_details":{"reasoning_tokens":2},"total_tokens":8}}
    "#]],
    );
}

#[test]
fn anthropic_text() {
    check_text(
        Dialect::Anthropic,
        &expect![[r#"
        message_start: {"type":"message_start","message":{"id":"msg_sim_00000000000a","type":"message","role":"assistant","model":"m","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":4,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":1}}}
        content_block_start: {"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}
        ping: {"type":"ping"}
        content_block_delta: {"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"Hm."}}
        content_block_delta: {"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"c2ltdWxhdGVk"}}
        content_block_stop: {"type":"content_block_stop","index":0}
        content_block_start: {"type":"content_block_start","index":1,"content_block":{"type":"text","text":""}}
        content_block_delta: {"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"Hi."}}
        content_block_stop: {"type":"content_block_stop","index":1}
        message_delta: {"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":5}}
        message_stop: {"type":"message_stop"}

        {"id":"msg_sim_00000000000a","type":"message","role":"assistant","model":"m","content":[{"type":"thinking","thinking":"Hm.","signature":"c2ltdWxhdGVk"},{"type":"text","text":"Hi."}],"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":3,"output_tokens":5}}
    "#]],
    );
}

#[test]
fn anthropic_call() {
    check_call(
        Dialect::Anthropic,
        &expect![[r#"
        message_start: {"type":"message_start","message":{"id":"msg_sim_00000000000a","type":"message","role":"assistant","model":"m","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":4,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":1}}}
        content_block_start: {"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}
        ping: {"type":"ping"}
        content_block_delta: {"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"Hm."}}
        content_block_delta: {"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"c2ltdWxhdGVk"}}
        content_block_stop: {"type":"content_block_stop","index":0}
        content_block_start: {"type":"content_block_start","index":1,"content_block":{"type":"tool_use","id":"toolu_sim_00000000000a","name":"look","input":{}}}
        content_block_delta: {"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":"{\"a\":1}"}}
        content_block_stop: {"type":"content_block_stop","index":1}
        message_delta: {"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null},"usage":{"output_tokens":5}}
        message_stop: {"type":"message_stop"}

        {"id":"msg_sim_00000000000a","type":"message","role":"assistant","model":"m","content":[{"type":"thinking","thinking":"Hm.","signature":"c2ltdWxhdGVk"},{"type":"tool_use","id":"toolu_sim_00000000000a","name":"look","input":{"a":1}}],"stop_reason":"tool_use","stop_sequence":null,"usage":{"input_tokens":3,"output_tokens":5}}
    "#]],
    );
}

#[test]
fn ollama_text() {
    check_text(
        Dialect::Ollama,
        &expect![[r#"
        {"model":"m","created_at":"1970-01-02T00:00:00Z","message":{"role":"assistant","content":"","thinking":"Hm."},"done":false}
        {"model":"m","created_at":"1970-01-02T00:00:00Z","message":{"role":"assistant","content":"Hi."},"done":false}
        {"model":"m","created_at":"1970-01-02T00:00:00Z","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop","total_duration":0,"prompt_eval_count":3,"eval_count":5}

        {"model":"m","created_at":"1970-01-02T00:00:00Z","message":{"role":"assistant","content":"Hi.","thinking":"Hm."},"done":true,"done_reason":"stop","total_duration":0,"prompt_eval_count":3,"eval_count":5}
    "#]],
    );
}

#[test]
fn ollama_call() {
    check_call(
        Dialect::Ollama,
        &expect![[r#"
        {"model":"m","created_at":"1970-01-02T00:00:00Z","message":{"role":"assistant","content":"","thinking":"Hm."},"done":false}
        {"model":"m","created_at":"1970-01-02T00:00:00Z","message":{"role":"assistant","content":"","tool_calls":[{"function":{"name":"look","arguments":{"a":1}}}]},"done":false}
        {"model":"m","created_at":"1970-01-02T00:00:00Z","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop","total_duration":0,"prompt_eval_count":3,"eval_count":5}

        {"model":"m","created_at":"1970-01-02T00:00:00Z","message":{"role":"assistant","content":"","thinking":"Hm.","tool_calls":[{"function":{"name":"look","arguments":{"a":1}}}]},"done":true,"done_reason":"stop","total_duration":0,"prompt_eval_count":3,"eval_count":5}
    "#]],
    );
}

#[test]
fn errors_have_the_shape_of_the_dialect() {
    let problem = Problem::new(529, "overloaded_error", "Too \"much\".").param("model");
    let mut all = String::new();
    for dialect in Dialect::ALL {
        all += &format!("{dialect:?}: {}\n", dialect.error_body(&problem));
        for begun in [false, true] {
            let event = words(dialect).error(&problem, begun);
            let data = event.data.replace(GAP, "").replace(NUMBER, "7");
            all += &format!("  {}: {data}\n", event.name.unwrap_or("-"));
        }
    }
    expect![[r#"
        OpenAi: {"error":{"message":"Too \"much\".","type":"overloaded_error","param":"model","code":null}}
          -: {"error":{"message":"Too \"much\".","type":"overloaded_error","param":"model","code":null}}
          -: {"error":{"message":"Too \"much\".","type":"overloaded_error","param":"model","code":null}}
        Responses: {"error":{"message":"Too \"much\".","type":"overloaded_error","param":"model","code":null}}
          error: {"type":"error","code":"overloaded_error","message":"Too \"much\".","param":"model","sequence_number":7}
          response.failed: {"type":"response.failed","response":{"id":"resp_sim_00000000000a","object":"response","created_at":86400,"status":"failed","error":{"code":"overloaded_error","message":"Too \"much\"."},"incomplete_details":null,"model":"m","output":[],"parallel_tool_calls":true,"store":false,"usage":null},"sequence_number":7}
        Anthropic: {"type":"error","error":{"type":"overloaded_error","message":"Too \"much\"."}}
          error: {"type":"error","error":{"type":"overloaded_error","message":"Too \"much\"."}}
          error: {"type":"error","error":{"type":"overloaded_error","message":"Too \"much\"."}}
        Ollama: {"error":"Too \"much\"."}
          -: {"error":"Too \"much\"."}
          -: {"error":"Too \"much\"."}
    "#]].assert_eq(&all);
}

#[test]
fn anthropic_names_errors_by_their_status() {
    let kind = |problem: &Problem| anthropic::error(problem)["error"]["type"].clone();
    for (status, name) in [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (404, "not_found_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "overloaded_error"),
    ] {
        assert_eq!(kind(&Problem::new(status, "x", "y")), name);
    }
    let quota = Problem::new(429, "x", "y").code("insufficient_quota");
    assert_eq!(kind(&quota), "billing_error");
}

#[test]
fn the_same_chat_is_read_from_every_dialect() {
    let schema = json!({"type": "object", "required": ["a"]});
    let function = json!({"name": "look", "parameters": schema});
    let bodies = [
        json!({
            "model": "m+bom", "stream": true, "max_tokens": 7,
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": [{"type": "text", "text": "hello"}]},
                {"role": "assistant", "content": null, "tool_calls": []},
                {"role": "tool", "tool_call_id": "1", "content": "sunny"},
            ],
            "tools": [{"type": "function", "function": function}],
            "tool_choice": {"type": "function", "function": {"name": "look"}},
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        }),
        json!({
            "model": "m+bom", "stream": true, "max_output_tokens": 7, "instructions": "be brief",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "hello"}]},
                {"type": "reasoning", "summary": []},
                {"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "1", "output": "sunny"},
            ],
            "tools": [{"type": "web_search"}, {"type": "function", "name": "look", "parameters": schema}],
            "tool_choice": {"type": "function", "name": "look"},
            "text": {"format": {"type": "json_schema", "name": "x", "schema": schema}},
        }),
        json!({
            "model": "m+bom", "stream": true, "max_tokens": 7, "system": [{"type": "text", "text": "be brief"}],
            "messages": [
                {"role": "user", "content": "hello"},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "look", "input": {}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "sunny"}]},
            ],
            "tools": [{"name": "look", "input_schema": schema}],
            "tool_choice": {"type": "tool", "name": "look"},
            "output_config": {"format": {"type": "json_schema", "schema": schema}},
        }),
        json!({
            "model": "m+bom", "options": {"num_predict": 7}, "format": schema,
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "hello"},
                {"role": "assistant", "content": ""},
                {"role": "tool", "content": "sunny"},
            ],
            "tools": [{"type": "function", "function": function}],
        }),
    ];
    for (dialect, body) in Dialect::ALL.into_iter().zip(bodies) {
        let chat = dialect.read(&body).unwrap_or_else(|problem| panic!("{dialect:?}: {problem:?}"));
        let told: Vec<_> = chat.messages.iter().map(|m| (&*m.role, &*m.content)).collect();
        let expected =
            [("system", "be brief"), ("user", "hello"), ("assistant", ""), ("tool", "sunny")];
        assert_eq!(told, expected, "{dialect:?}");
        assert_eq!((chat.stream, chat.max_tokens, chat.turn()), (true, Some(7), 1), "{dialect:?}");
        assert_eq!((chat.base_model(), chat.tool_answer()), ("m", Some("sunny")), "{dialect:?}");
        assert_eq!((&*chat.tools[0].name, &chat.tools[0].parameters), ("look", &schema));
        assert!(matches!(&chat.format, Format::Schema(read) if *read == schema), "{dialect:?}");
        let named = ToolChoice::Named("look".to_owned());
        let choice = if dialect == Dialect::Ollama { ToolChoice::Auto } else { named };
        assert_eq!(chat.tool_choice, choice, "{dialect:?}");
    }
}

#[test]
fn wrong_requests_are_named() {
    let messages = json!([{"role": "user", "content": "x"}]);
    let cases = [
        (Dialect::OpenAi, json!({"messages": messages}), "provide a model"),
        (Dialect::OpenAi, json!({"model": 1, "messages": messages}), "model must be a string"),
        (Dialect::OpenAi, json!({"model": "m"}), "messages must be an array"),
        (Dialect::OpenAi, json!({"model": "m", "messages": []}), "must not be empty"),
        (Dialect::OpenAi, json!({"model": "m", "messages": [{}]}), "messages[0].role"),
        (
            Dialect::OpenAi,
            json!({"model": "m", "messages": [{"role": "user", "content": 1}]}),
            "messages[0].content",
        ),
        (Dialect::OpenAi, json!({"model": "m", "messages": messages, "n": 2}), "n must be 1"),
        (
            Dialect::OpenAi,
            json!({"model": "m", "messages": messages, "stream": "yes"}),
            "stream must be true or false",
        ),
        (
            Dialect::OpenAi,
            json!({"model": "m", "messages": messages, "response_format": {"type": "xml"}}),
            "response_format.type",
        ),
        (
            Dialect::OpenAi,
            json!({"model": "m", "messages": messages, "response_format": {"type": "json_schema"}}),
            "schema must be",
        ),
        (Dialect::Responses, json!({"model": "m"}), "input must be"),
        (Dialect::Responses, json!({"model": "m", "input": [{}]}), "input[0].role"),
        (
            Dialect::Responses,
            json!({"model": "m", "input": [{"type": "function_call_output", "output": 1}]}),
            "input[0].output",
        ),
        (
            Dialect::Responses,
            json!({"model": "m", "input": "x", "text": {"format": {"type": "json_schema"}}}),
            "text.format",
        ),
        (Dialect::Anthropic, json!({"model": "m", "messages": messages}), "max_tokens"),
        (
            Dialect::Anthropic,
            json!({"model": "m", "max_tokens": 1, "messages": [{"role": "system"}]}),
            "messages.0.role",
        ),
        (
            Dialect::Anthropic,
            json!({"model": "m", "max_tokens": 1, "system": 1, "messages": messages}),
            "system must be",
        ),
        (Dialect::Ollama, json!({"model": "m", "messages": messages, "format": 1}), "format must"),
    ];
    for (dialect, body, expected) in cases {
        let error = dialect.read(&body).unwrap_err().message;
        assert!(error.contains(expected), "{dialect:?}: {error}");
    }
}
