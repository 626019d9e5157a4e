use std::fmt::Write as _;

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

/// Reads a stream the way a live answer does and writes down what comes of it.
fn render(stream: &str) -> String {
    let mut text = String::new();
    let mut decoder = sse::Decoder::default();
    let mut reader = Reader::default();
    let mut events = VecDeque::new();
    decoder.feed(stream.as_bytes());
    while let Some(event) = decoder.next().unwrap() {
        let step = reader.take(event, Secrets::default(), &mut events);
        for event in events.drain(..) {
            writeln!(text, "{event:?}").unwrap();
        }
        match step {
            Ok(Step::Nothing | Step::Output) => {}
            Ok(step) => writeln!(text, "-- {step:?}").unwrap(),
            Err(Fault::Malformed(problem)) => {
                writeln!(text, "malformed: {problem}").unwrap();
                return text;
            }
            Err(Fault::Rejected(it)) => {
                writeln!(text, "rejected: {} {:?}", it.code, it.message).unwrap();
                return text;
            }
        }
    }
    match reader.progress.finish() {
        Ok(event) => writeln!(text, "{event:?}").unwrap(),
        Err(unfinished) => writeln!(text, "unfinished: {unfinished:?}").unwrap(),
    }
    text
}

#[track_caller]
fn check(stream: &str, expected: Expect) {
    expected.assert_eq(&render(stream));
}

#[test]
fn openai() {
    check(
        r#"data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1794000000,"model":"gpt-5-mini","service_tier":"default","system_fingerprint":null,"choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}],"usage":null,"obfuscation":"x"}

data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"Hel"},"logprobs":null,"finish_reason":null}],"usage":null}

data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"lo \"you\"\n\ud83e\udd80"},"finish_reason":null}],"usage":null}

data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}

data: {"id":"chatcmpl-1","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":12,"total_tokens":21,"prompt_tokens_details":{"cached_tokens":4,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":2}}}

data: [DONE]

"#,
        expect![[r#"
            Text("Hel")
            Text("lo \"you\"\n🦀")
            -- Stopped
            -- Complete
            Finish { reason: Stop, usage: Some(Usage { input_tokens: 9, output_tokens: 12, cached_tokens: 4, reasoning_tokens: 2 }) }
        "#]],
    );
}

#[test]
fn tool_calls() {
    check(
        r#"data: {"choices":[{"index":0,"delta":{"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"call_1","type":"function","function":{"name":"weather","arguments":""}}]}}]}

data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"city\":"}}]}}]}

data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"\"Kiel\"}"}},{"index":1,"id":"call_2","function":{"name":"time","arguments":"{}"}}]}}]}

data: {"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}

data: [DONE]

"#,
        expect![[r#"
            ToolCall { index: 0, id: Some("call_1"), name: Some("weather"), arguments: "" }
            ToolCall { index: 0, id: None, name: None, arguments: "{\"city\":" }
            ToolCall { index: 0, id: None, name: None, arguments: "\"Kiel\"}" }
            ToolCall { index: 1, id: Some("call_2"), name: Some("time"), arguments: "{}" }
            -- Stopped
            -- Complete
            Finish { reason: ToolCalls, usage: None }
        "#]],
    );
}

#[test]
fn others_spell_thinking_differently() {
    check(
        r#"data: {"choices":[{"delta":{"reasoning_content":"hm","content":null}}]}

data: {"choices":[{"delta":{"reasoning":" so","content":""}}]}

data: {"choices":[{"delta":{"content":[{"type":"thinking","thinking":[]},{"type":"text","text":"a"},{"type":"text","text":"b"}]}}]}

data: {"choices":[{"delta":{"refusal":"I cannot"},"finish_reason":"end_turn"}]}

"#,
        expect![[r#"
            Reasoning("hm")
            Reasoning(" so")
            Text("ab")
            Text("I cannot")
            -- Stopped
            Finish { reason: Stop, usage: None }
        "#]],
    );
}

#[test]
fn usage_with_every_chunk_does_not_end_the_answer() {
    check(
        r#"data: {"choices":[{"delta":{"content":"a"}}],"usage":{"prompt_tokens":1,"completion_tokens":1}}

data: {"choices":[{"delta":{"content":"b"}}],"usage":{"prompt_tokens":1,"completion_tokens":2}}

data: {"choices":[{"delta":{},"finish_reason":"length"}],"usage":{"prompt_tokens":1,"completion_tokens":2}}

"#,
        expect![[r#"
            Text("a")
            Text("b")
            -- Complete
            Finish { reason: Length, usage: Some(Usage { input_tokens: 1, output_tokens: 2, cached_tokens: 0, reasoning_tokens: 0 }) }
        "#]],
    );
}

#[test]
fn zero_is_a_count_and_nonsense_is_none() {
    let usage = |json| Usage::read(json);
    assert_eq!(usage(r#"{"prompt_tokens":0,"completion_tokens":0}"#), Some(Usage::default()));
    for none in ["null", "{}", "[]", "\"many\"", r#"{"prompt_tokens":null}"#, r#"{"a":1}"#] {
        assert_eq!(usage(none), None, "{none}");
    }
}

#[test]
fn the_end_tells_whole_from_cut() {
    let token = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    check(
        token,
        expect![[r#"
        Text("a")
        unfinished: Truncated
    "#]],
    );
    check(
        &format!("{token}data: [DONE]\n\n"),
        expect![[r#"
        Text("a")
        -- Complete
        Finish { reason: Stop, usage: None }
    "#]],
    );
    check(
        "data: [DONE]\n\n",
        expect![[r#"
        unfinished: Empty
    "#]],
    );
    // Role chunks, keep-alives and filter results are no output.
    check(
        "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
         event: keepalive\ndata: nothing\n\n\
         data: {\"choices\":[],\"prompt_filter_results\":[{\"prompt_index\":0}]}\n\n\
         data: {\"choices\":null}\n\ndata:\n\n",
        expect![[r#"
            unfinished: Empty
        "#]],
    );
    check(
        "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"content_filter\"}]}\n\n",
        expect![[r#"
            -- Stopped
            Finish { reason: ContentFilter, usage: None }
        "#]],
    );
}

#[test]
fn nothing_after_the_end_matters() {
    check(
        "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: [DONE]\n\n\
         data: nonsense\n\ndata: {\"error\":\"late\"}\n\n",
        expect![[r#"
            Text("a")
            -- Complete
            Finish { reason: Stop, usage: None }
        "#]],
    );
}

#[test]
fn other_choices_are_skipped() {
    check(
        "data: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\"no\"}},\
         {\"index\":0,\"delta\":{\"content\":\"yes\"}}]}\n\n",
        expect![[r#"
            Text("yes")
            unfinished: Truncated
        "#]],
    );
}

#[test]
fn errors_inside_the_stream() {
    for (event, expected) in [
        (
            r#"data: {"error":{"message":"overloaded","type":"overloaded_error"}}"#,
            "rejected: upstream.overloaded \"overloaded\"\n",
        ),
        (
            r#"data: {"error":{"code":429,"message":"slow down"},"choices":[{"delta":{},"finish_reason":"error"}]}"#,
            "rejected: upstream.rate_limited \"slow down\"\n",
        ),
        (r#"data: {"error":"boom"}"#, "rejected: upstream.server_error \"boom\"\n"),
        (
            r#"data: {"object":"error","message":"too long: maximum context length","code":400}"#,
            "rejected: upstream.context_length \"too long: maximum context length\"\n",
        ),
        ("event: error\ndata: gone wrong", "rejected: upstream.server_error \"gone wrong\"\n"),
        (
            "event: error\ndata: {\"message\":\"no credit balance\"}",
            "rejected: upstream.quota_exhausted \"no credit balance\"\n",
        ),
    ] {
        assert_eq!(render(&format!("{event}\n\n")), expected, "{event}");
    }
}

#[test]
fn malformed_chunks() {
    for data in ["{", "nonsense", "[]", "7", "{\"choices\":{}}", "{\"choices\":[{\"delta\":7}]}"] {
        let rendered = render(&format!("data: {data}\n\n"));
        assert!(rendered.starts_with("malformed: "), "{data}: {rendered}");
    }
    let mut reader = Reader::default();
    let half =
        sse::Event { kind: b"", data: b"{\"choices\":[{\"delta\":{\"content\":\"\xf0\x9f\"}}]}" };
    let fault = reader.take(half, Secrets::default(), &mut VecDeque::new()).unwrap_err();
    assert!(matches!(fault, Fault::Malformed(_)), "half a character: {fault:?}");
}

#[test]
fn plain_text_is_borrowed() {
    let chunk: Chunk<'_> =
        serde_json::from_str(r#"{"choices":[{"delta":{"content":"hello"}}]}"#).unwrap();
    let content = chunk.choices.unwrap().0.unwrap().delta.unwrap().content.unwrap();
    assert!(matches!(content.0, Cow::Borrowed("hello")));
}

#[test]
fn repeated_chunks_are_compared_instead_of_parsed() {
    let chunk =
        |text: &str| format!("{{\"id\":1,\"choices\":[{{\"delta\":{{\"content\":\"{text}\"}}}}]}}");
    let mut reader = Reader::default();
    let mut take = |data: &str| {
        let mut out = VecDeque::new();
        let event = sse::Event { kind: b"", data: data.as_bytes() };
        let fits = reader.template.text(data.as_bytes()).is_some();
        let step = reader.take(event, Secrets::default(), &mut out);
        (fits, step.is_ok(), out.pop_front())
    };
    let text = |text: &str| Some(ChatEvent::Text(text.into()));
    assert_eq!(take(&chunk("a")), (false, true, text("a")));
    assert_eq!(take(&chunk("größer 🦀")), (true, true, text("größer 🦀")));
    // Escapes, nothing, and whatever else is not plain is parsed.
    assert_eq!(take(&chunk("\\n")), (false, true, text("\n")));
    assert_eq!(take(&chunk("")), (false, true, None));
    assert_eq!(take(&chunk("\u{1}")), (false, false, None));
    assert_eq!(
        take(&chunk("b\"},\"finish_reason\":\"stop\",\"x\":{\"y\":\"")),
        (false, true, text("b"))
    );
    // Another layout is learnt.
    let thought = r#"{"choices":[{"delta":{"reasoning_content":"hm"}}]}"#;
    assert_eq!(take(thought), (false, true, Some(ChatEvent::Reasoning("hm".into()))));
}

proptest! {
    #[test]
    fn comparing_reads_what_parsing_reads(texts in proptest::collection::vec("[a-cäß🦀\"\\\\\n]{0,3}", 1..8)) {
        let mut stream = String::new();
        for text in texts {
            // Half of them escaped as they should be, half of them raw.
            let quoted = serde_json::to_string(&text).unwrap();
            stream.push_str(&format!("data: {{\"choices\":[{{\"delta\":{{\"content\":{quoted}}}}}]}}\n\n"));
            stream.push_str(&format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n"));
        }
        fuzz(stream.as_bytes());
    }

    #[test]
    fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        fuzz(&bytes);
    }

    #[test]
    fn any_json_is_taken(events in proptest::collection::vec(json(), 1..6)) {
        let stream: String = events.iter().map(|event| format!("data: {event}\n\n")).collect();
        fuzz(stream.as_bytes());
    }
}

/// JSON that resembles chunks.
fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[a-z ]{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 4, |inner| {
        let name = prop_oneof![
            Just("choices"),
            Just("delta"),
            Just("content"),
            Just("tool_calls"),
            Just("function"),
            Just("arguments"),
            Just("finish_reason"),
            Just("usage"),
            Just("error"),
            Just("message"),
        ];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((name, inner), 0..4).prop_map(|fields| {
                fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
            }),
        ]
    })
}
