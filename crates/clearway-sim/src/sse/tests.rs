use expect_test::{Expect, expect};
use serde_json::json;

use super::*;

fn frames(wire: Wire, usage: bool) -> Frames {
    let body = json!({
        "model": "m\"q",
        "messages": [{"role": "user", "content": "x"}],
        "stream": true,
        "stream_options": {"include_usage": usage},
    });
    let signature = Signature { id: "chatcmpl-1".to_owned(), created: 5 };
    Frames::new(
        wire,
        &signature,
        &Chat::read(&body).unwrap_or_else(|problem| panic!("{problem:?}")),
    )
}

fn token(wire: Wire, text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    frames(wire, false).token(&mut out, &Pieces::words(text.to_owned(), 64), 0);
    out
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
    let mut frames = frames(Wire::default(), true);
    frames.begin(&mut out);
    frames.role(&mut out);
    frames.token(&mut out, &Pieces::words("hi \"there\"".to_owned(), 64), 1);
    frames.finish(&mut out, "stop");
    frames.usage(&mut out, "{}");
    frames.comment(&mut out, "ping");
    frames.done(&mut out);
    frames.last_chunk(&mut out);
    check(
        &out,
        &expect![[r#"
        101␍␊
        data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":5,"model":"m\"q","system_fingerprint":"fp_clearway_sim","choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}],"usage":null}␊
        ␊
        ␍␊
        e9␍␊
        data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":5,"model":"m\"q","system_fingerprint":"fp_clearway_sim","choices":[{"index":0,"delta":{"content":" \"there\""},"logprobs":null,"finish_reason":null}],"usage":null}␊
        ␊
        ␍␊
        d5␍␊
        data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":5,"model":"m\"q","system_fingerprint":"fp_clearway_sim","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"usage":null}␊
        ␊
        ␍␊
        96␍␊
        data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":5,"model":"m\"q","system_fingerprint":"fp_clearway_sim","choices":[],"usage":{}}␊
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
    assert_eq!(end(Eol::Lf), b"]}\n\n");
    assert_eq!(end(Eol::CrLf), b"\r\n\r\n");
    assert_eq!(end(Eol::Cr), b"]}\r\r");
    let mut frames =
        frames(Wire { eol: Eol::Mixed, close_delimited: true, ..Wire::default() }, false);
    let mut out = Vec::new();
    (0..4).for_each(|_| frames.done(&mut out));
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
