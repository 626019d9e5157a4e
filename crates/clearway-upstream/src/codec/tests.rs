//! Request and answer pairs of each dialect as providers send and get them, and what holds for all.

use std::fmt::Write as _;

use expect_test::Expect;
use proptest::prelude::*;
use serde_json::json;

use super::*;

mod anthropic;
mod ollama;
mod openai;
mod responses;

/// The body that is written for a conversation, one field a line.
fn request(kind: Kind, model: &str, messages: &Value, params: &Value) -> String {
    let messages: Vec<_> = messages.as_array().unwrap().iter().cloned().map(Arc::new).collect();
    let body = chat_request(
        kind,
        &ChatParts {
            model,
            messages: &messages,
            model_params: &Map::new(),
            call_params: params.as_object().unwrap(),
            max_output_tokens: MAX_OUTPUT_TOKENS,
        },
    );
    let body = match body {
        Ok(body) => body,
        Err(error) => return format!("refused: {error}\n"),
    };
    let body: Map<String, Value> = serde_json::from_slice(&body).expect("the body is JSON");
    let mut text = String::new();
    for (name, value) in body {
        match value.as_array().filter(|list| !list.is_empty()) {
            Some(list) => {
                writeln!(text, "{name}:").unwrap();
                list.iter().for_each(|item| writeln!(text, "  {item}").unwrap());
            }
            None => writeln!(text, "{name}: {value}").unwrap(),
        }
    }
    text
}

/// What is read of a stream, one event a line.
fn stream(kind: Kind, bytes: &str) -> String {
    let (events, end) = read_stream(kind, [bytes.as_bytes()]);
    render(events, end)
}

/// What is read of a document.
fn answer(kind: Kind, body: &str) -> String {
    match read_answer(kind, body.as_bytes(), Secrets::default()) {
        Ok(mut events) => {
            let finish = events.pop_back().unwrap();
            render(events, Ok(finish))
        }
        Err(error) => render(VecDeque::new(), Err(error)),
    }
}

fn render(events: VecDeque<ChatEvent>, end: Result<ChatEvent, NoAnswer>) -> String {
    let mut text = String::new();
    for event in events {
        writeln!(text, "{event:?}").unwrap();
    }
    match end {
        Ok(finish) => writeln!(text, "{finish:?}"),
        Err(NoAnswer::Fault(Fault::Malformed(problem))) => writeln!(text, "malformed: {problem}"),
        Err(NoAnswer::Fault(Fault::Rejected(it))) => {
            writeln!(text, "rejected: {} {:?}", it.code, it.message)
        }
        Err(NoAnswer::Unfinished(unfinished)) => writeln!(text, "unfinished: {unfinished:?}"),
    }
    .unwrap();
    text
}

#[track_caller]
fn check(found: &str, expected: Expect) {
    expected.assert_eq(found);
}

/// Streams that end well, each with the last bytes without which it is not whole.
const WHOLE: [(Kind, &str, &str); 8] = [
    (Kind::OpenAi, openai::TEXT, r#""finish_reason":"stop"}]}"#),
    (Kind::OpenAi, openai::TOOLS, r#""finish_reason":"tool_calls"}]}"#),
    (Kind::Responses, responses::TEXT, responses::TEXT_END),
    (Kind::Responses, responses::TOOLS, responses::TOOLS_END),
    (Kind::Anthropic, anthropic::TEXT, anthropic::TEXT_END),
    (Kind::Anthropic, anthropic::TOOLS, anthropic::TOOLS_END),
    (Kind::Ollama, ollama::TEXT, ollama::TEXT_END),
    (Kind::Ollama, ollama::TOOLS, ollama::TOOLS_END),
];

#[test]
fn no_beginning_of_a_stream_is_whole() {
    for (kind, bytes, last) in WHOLE {
        let end = bytes.find(last).expect("the fixture has its end") + last.len();
        for length in 0..=bytes.len() {
            let (_, finish) = read_stream(kind, [&bytes.as_bytes()[..length]]);
            assert_eq!(finish.is_ok(), length >= end, "{kind:?}, {length} of {end} bytes");
        }
    }
}

#[test]
fn cuts_change_nothing() {
    for (kind, bytes, _) in WHOLE {
        let whole = read_stream(kind, [bytes.as_bytes()]);
        for size in 1..40 {
            assert_eq!(read_stream(kind, bytes.as_bytes().chunks(size)), whole, "{kind:?}, {size}");
        }
    }
}

#[test]
fn keys_stay_out_of_problems() {
    let key = crate::config::Secret::new("house-key");
    for kind in Kind::ALL {
        for body in
            [r#"{"error":"house-key"}"#, "house-key", r#"{"choices":"house-key","output":1}"#]
        {
            let error =
                read_answer(kind, body.as_bytes(), Secrets::new(std::slice::from_ref(&key)))
                    .unwrap_err();
            assert!(!format!("{error:?}").contains("house-key"), "{kind:?}: {error:?}");
        }
    }
}

#[test]
fn every_dialect_refuses_what_is_no_message() {
    for kind in Kind::ALL {
        let refused = |messages| request(kind, "m", &messages, &json!({}));
        assert_eq!(refused(json!([])), "refused: there is no message to answer\n");
        assert_eq!(
            refused(json!([{"type": "robot", "content": "a"}])),
            "refused: message 0: type \"robot\" is none of system, human, ai, tool\n"
        );
    }
}

/// Conversations and parameters as odd as JSON allows.
fn odd() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[a-z :;,{}\"]{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let names = "type|text|content|tool_calls|function|arguments|delta|index|item|response|\
            output|message|error|done|image_url|source|usage|id|name|args|stop_reason|status";
        let names: Vec<_> = names.split('|').collect();
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((proptest::sample::select(names), inner), 0..4).prop_map(
                |fields| {
                    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
                }
            ),
        ]
    })
}

/// The names of events that mean something in one of the dialects.
fn event() -> impl Strategy<Value = Value> {
    let types = "message_start|content_block_start|content_block_delta|content_block_stop|\
        message_delta|message_stop|response.output_item.added|response.output_item.done|\
        response.function_call_arguments.delta|response.function_call_arguments.done|\
        response.output_text.delta|response.completed|response.incomplete|response.failed";
    let types: Vec<_> = types.split('|').collect();
    (proptest::sample::select(types), odd()).prop_map(|(kind, mut event)| {
        if let Value::Object(event) = &mut event {
            event.insert("type".into(), kind.into());
        }
        event
    })
}

proptest! {
    #[test]
    fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        fuzz(&bytes);
    }

    #[test]
    fn damaged_streams_are_read(
        seed in any::<u8>(),
        (_, stream, _) in proptest::sample::select(&WHOLE[..]),
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut sent = vec![seed];
        sent.extend_from_slice(stream.as_bytes());
        for (at, byte) in damage {
            let at = at.index(stream.len()) + 1;
            sent[at] = byte;
        }
        fuzz(&sent);
    }

    #[test]
    fn any_events_are_read(seed in any::<u8>(), events in proptest::collection::vec(event(), 1..6)) {
        let mut sent = vec![seed];
        for event in &events {
            sent.extend_from_slice(format!("data: {event}\n\n").as_bytes());
        }
        fuzz(&sent);
        sent.truncate(1);
        for event in &events {
            sent.extend_from_slice(format!("{event}\n").as_bytes());
        }
        fuzz(&sent);
    }

    #[test]
    fn any_conversation_is_written_or_refused(
        messages in proptest::collection::vec(odd(), 1..4),
        params in proptest::collection::vec(odd(), 9),
    ) {
        let names = ["tools", "tool_choice", "response_format", "stop", "max_tokens", "text",
            "reasoning_effort", "options", "user"];
        let params: Map<_, _> =
            names.iter().map(|name| (*name).to_owned()).zip(params).collect();
        let roles = ["human", "ai", "tool", "system"];
        let messages: Vec<_> = messages.into_iter().zip(roles).map(|(mut message, role)| {
            if let Value::Object(message) = &mut message {
                message.insert("type".into(), role.into());
                message.insert("tool_call_id".into(), "c".into());
            }
            Arc::new(message)
        }).collect();
        for kind in Kind::ALL {
            let body = chat_request(kind, &ChatParts {
                model: "claude-3",
                messages: &messages,
                model_params: &Map::new(),
                call_params: &params,
                max_output_tokens: MAX_OUTPUT_TOKENS,
            });
            if let Ok(body) = body {
                prop_assert!(serde_json::from_slice::<Value>(&body).is_ok());
            }
        }
    }
}
