use crate::chat::Chat;
use crate::dialect::Dialect;
use crate::dialect::{Part, PartKind, Signature, Told, Words};
use crate::reply::Finish;
use crate::usage::Usage;
use expect_test::{Expect, expect};
use serde_json::json;

use super::*;

fn chat() -> Chat {
    let body = json!({
        "model": "m\"q",
        "messages": [{"role": "user", "content": "x"}],
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    Dialect::OpenAi.read(&body).unwrap()
}

fn words() -> Box<dyn Words> {
    let chat = chat();
    let signature = Signature { number: 1, created: 5, model: chat.model.name.clone() };
    Dialect::OpenAi.words(signature, &chat)
}

/// Frames whose tokens are a text's.
fn frames(wire: Wire) -> Frames {
    let mut frames = Frames::new(wire, Syntax::Events);
    let part = Part { kind: PartKind::Text, pieces: &Pieces::words(String::new(), 64) };
    frames.tokens_look_like(words().piece(&part, 0, TEXT).as_ref());
    frames
}

fn token(wire: Wire, text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    frames(wire).token(&mut out, &Pieces::words(text.to_owned(), 64), 0);
    out
}

fn done() -> Event {
    Event::plain("[DONE]")
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace('\r', "␍").replace('\n', "␊\n")
}

#[track_caller]
fn check(bytes: &[u8], expected: &Expect) {
    expected.assert_eq(&shown(bytes));
}

/// What is left after removing the chunk lines.
fn dechunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(httparse::Status::Complete((line, size))) = httparse::parse_chunk_size(bytes) {
        let size = usize::try_from(size).unwrap();
        body.extend_from_slice(&bytes[line..line + size]);
        bytes = &bytes[line + size + 2..];
    }
    assert!(bytes.is_empty());
    body
}

#[test]
fn a_whole_stream() {
    let mut out = Vec::new();
    let (words, mut frames) = (words(), frames(Wire::default()));
    let usage = Usage { prompt: 1, completion: 2, thoughts: 0 };
    let told = Told { parts: &[], finish: Finish::Stop, usage: Some(usage) };
    frames.begin(&mut out);
    frames.events(&mut out, &words.open());
    frames.token(&mut out, &Pieces::words("hi \"there\"".to_owned(), 64), 1);
    frames.events(&mut out, &words.finish(&told));
    frames.events(&mut out, &words.usage(&told));
    frames.comment(&mut out, "ping");
    frames.events(&mut out, &words.done(&told));
    frames.last_chunk(&mut out);
    check(
        &out,
        &expect![[r#"
            110␍␊
            data: {"id":"chatcmpl-sim-000000000001","object":"chat.completion.chunk","created":5,"model":"m\"q","system_fingerprint":"fp_clearway_sim","choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}],"usage":null}␊
            ␊
            ␍␊
            f8␍␊
            data: {"id":"chatcmpl-sim-000000000001","object":"chat.completion.chunk","created":5,"model":"m\"q","system_fingerprint":"fp_clearway_sim","choices":[{"index":0,"delta":{"content":" \"there\""},"logprobs":null,"finish_reason":null}],"usage":null}␊
            ␊
            ␍␊
            e4␍␊
            data: {"id":"chatcmpl-sim-000000000001","object":"chat.completion.chunk","created":5,"model":"m\"q","system_fingerprint":"fp_clearway_sim","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"usage":null}␊
            ␊
            ␍␊
            13c␍␊
            data: {"id":"chatcmpl-sim-000000000001","object":"chat.completion.chunk","created":5,"model":"m\"q","system_fingerprint":"fp_clearway_sim","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3,"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}}}␊
            ␊
            ␍␊
            8␍␊
            : ping␊
            ␊
            ␍␊
            e␍␊
            data: [DONE]␊
            ␊
            ␍␊
            0␍␊
            ␍␊
        "#]],
    );
}

#[test]
fn the_fast_path_and_the_general_path_agree() {
    let text = "\n\ta\"b\\c\u{1}é漢🙂";
    let plain = token(Wire::default(), text);
    let general = token(Wire { bom: true, ..Wire::default() }, text);
    assert_eq!(plain, general);
    let body = String::from_utf8(dechunk(&plain)).unwrap();
    let json: serde_json::Value =
        serde_json::from_str(body.strip_prefix("data: ").unwrap().trim_end()).unwrap();
    assert_eq!(json.pointer("/choices/0/delta/content").unwrap(), text);
    assert_eq!(json["model"], "m\"q");
}

#[test]
fn line_ends() {
    let end = |eol| {
        let body = dechunk(&token(Wire { eol, ..Wire::default() }, "x"));
        body[body.len() - 4..].to_vec()
    };
    assert_eq!(end(Eol::Lf), b"l}\n\n");
    assert_eq!(end(Eol::CrLf), b"\r\n\r\n");
    assert_eq!(end(Eol::Cr), b"l}\r\r");
    let mut frames = frames(Wire { eol: Eol::Mixed, close_delimited: true, ..Wire::default() });
    let mut out = Vec::new();
    (0..4).for_each(|_| frames.event(&mut out, &done()));
    assert_eq!(out, b"data: [DONE]\r\n\r\ndata: [DONE]\r\rdata: [DONE]\n\ndata: [DONE]\r\n\r\n");
}

#[test]
fn several_data_lines_join_to_the_same_json() {
    let body =
        String::from_utf8(dechunk(&token(Wire { multi_line: true, ..Wire::default() }, "x")))
            .unwrap();
    let lines: Vec<_> =
        body.trim_end().lines().map(|line| line.strip_prefix("data: ").unwrap()).collect();
    assert_eq!(lines.len(), 6, "{body}");
    let json: serde_json::Value = serde_json::from_str(&lines.join("\n")).unwrap();
    assert_eq!(json.pointer("/choices/0/delta/content").unwrap(), "x");
}

#[test]
fn fragments_cut_where_they_say() {
    let bytes = "aé🙂b".as_bytes();
    let mut out = Vec::new();
    push_body(&mut out, bytes, Fragments::HalfCharacters, false);
    assert_eq!(out, b"2\r\na\xC3\r\n2\r\n\xA9\xF0\r\n4\r\n\x9F\x99\x82b\r\n");
    out.clear();
    push_body(&mut out, b"ab", Fragments::Bytes, false);
    assert_eq!(out, b"1\r\na\r\n1\r\nb\r\n");
    out.clear();
    push_body(&mut out, bytes, Fragments::Bytes, true);
    assert_eq!(out, bytes);
}

#[test]
fn escaping_agrees_with_the_json_library() {
    let text: String = (0..0x3000).filter_map(char::from_u32).collect();
    let mut out = vec![b'"'];
    escape(&text, &mut out);
    out.push(b'"');
    assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
}

#[test]
fn events_that_are_numbered_are_numbered_in_both_ways() {
    let event = Event::plain(format!("{{{GAP}\"text\":\"{TEXT}\",\"number\":{NUMBER}}}"));
    let pieces = Pieces::words("a b c".to_owned(), 64);
    for (wire, syntax, expected) in [
        (Wire::default(), Syntax::Lines, "{\"text\":\" b\",\"number\":1}\n"),
        (
            Wire { bom: true, ..Wire::default() },
            Syntax::Events,
            "data: {\"text\":\" b\",\"number\":1}\n\n",
        ),
    ] {
        let mut frames = Frames::new(wire, syntax);
        let mut out = Vec::new();
        frames.tokens_look_like(Some(&event));
        frames.token(&mut out, &pieces, 0);
        out.clear();
        frames.token(&mut out, &pieces, 1);
        assert_eq!(String::from_utf8(dechunk(&out)).unwrap(), expected);
        out.clear();
        frames.event(&mut out, &event);
        assert!(String::from_utf8(dechunk(&out)).unwrap().contains("\"number\":2}"));
    }
}
