//! Whole calls in each dialect: where the request goes, what opens the door, what comes back.

use super::*;

/// Calls a provider of some kind that answers with a body in one piece. The head and the body of
/// the request come back with the outcome.
async fn call(
    kind: Kind,
    content_type: &'static str,
    body: &'static str,
) -> (String, Value, Outcome) {
    let seen = Arc::new(Mutex::new(None));
    let sink = seen.clone();
    let rig = Rig::with(
        |config| config.providers[0].kind = kind,
        move |_, mut peer: Peer| {
            let sink = sink.clone();
            async move {
                let request = read_request(&mut peer).await;
                *sink.lock().unwrap() = Some(request);
                peer.respond("200 OK", &format!("content-type: {content_type}\r\n"), body).await;
                peer.closed().await;
            }
        },
    );
    let outcome = rig.run().await;
    rig.assert_at_rest();
    let (head, body) = seen.lock().unwrap().take().expect("a request arrived");
    (head, body, outcome)
}

async fn read_request(peer: &mut Peer) -> (String, Value) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(peer.io.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let length = head.split("content-length: ").nth(1).unwrap();
    let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
    let mut body = vec![0; length];
    peer.io.read_exact(&mut body).await.unwrap();
    (head, serde_json::from_slice(&body).unwrap())
}

const EVENTS: &str = "text/event-stream";
const LINES: &str = "application/x-ndjson";
const JSON: &str = "application/json";

#[tokio::test(start_paused = true)]
async fn responses() {
    let (head, body, outcome) = call(
        Kind::Responses,
        EVENTS,
        "data: {\"type\":\"response.output_text.delta\",\"delta\":\"one two\"}\n\n\
         data: {\"type\":\"response.output_text.delta\",\"delta\":\" three\"}\n\n\
         data: {\"type\":\"response.completed\",\"response\":{\"status\":\"completed\"}}\n\n",
    )
    .await;
    assert!(head.starts_with("post /v1/responses http/1.1\r\n"), "{head}");
    assert!(head.contains("\r\nauthorization: bearer key-of-the-house\r\n"), "{head}");
    assert_eq!(body["input"], json!([{"role": "user", "content": "hi"}]));
    outcome.assert_whole();
}

#[tokio::test(start_paused = true)]
async fn anthropic() {
    let (head, body, outcome) = call(
        Kind::Anthropic,
        EVENTS,
        "event: content_block_delta\n\
         data: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"one two three\"}}\n\n\
         event: message_delta\n\
         data: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"}}\n\n\
         event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
    )
    .await;
    assert!(head.starts_with("post /v1/messages http/1.1\r\n"), "{head}");
    assert!(head.contains("\r\nx-api-key: key-of-the-house\r\n"), "{head}");
    assert!(head.contains("\r\nanthropic-version: 2023-06-01\r\n"), "{head}");
    assert!(!head.contains("authorization"), "{head}");
    assert_eq!(body["max_tokens"], 4096);
    outcome.assert_whole();
}

#[tokio::test(start_paused = true)]
async fn ollama() {
    let (head, body, outcome) = call(
        Kind::Ollama,
        LINES,
        "{\"message\":{\"content\":\"one two\"},\"done\":false}\n\
         {\"message\":{\"content\":\" three\"},\"done\":false}\n\
         {\"message\":{\"content\":\"\"},\"done\":true,\"done_reason\":\"stop\"}\n",
    )
    .await;
    assert!(head.starts_with("post /v1/api/chat http/1.1\r\n"), "{head}");
    assert_eq!(body["messages"], json!([{"role": "user", "content": "hi"}]));
    outcome.assert_whole();
}

#[tokio::test(start_paused = true)]
async fn answers_in_one_piece() {
    for (kind, body) in [
        (
            Kind::Responses,
            r#"{"status":"completed","output":[{"type":"message","content":[{"type":"output_text","text":"one two three"}]}]}"#,
        ),
        (Kind::Anthropic, r#"{"content":[{"type":"text","text":"one two three"}]}"#),
        (Kind::Ollama, r#"{"message":{"content":"one two three"},"done":true}"#),
    ] {
        call(kind, JSON, body).await.2.assert_whole();
    }
}

#[tokio::test(start_paused = true)]
async fn what_goes_wrong_has_its_name() {
    for (kind, content_type, body, code, phase) in [
        (
            Kind::Anthropic,
            EVENTS,
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"no\"}}\n\n",
            Code::UpstreamOverloaded,
            "first_token",
        ),
        (
            Kind::Responses,
            EVENTS,
            "data: {\"type\":\"response.output_text.delta\",\"delta\":\"one\"}\n\n",
            Code::UpstreamStreamTruncated,
            "stream",
        ),
        (
            Kind::Ollama,
            LINES,
            "{\"message\":{\"content\":\"one\"},\"done\":false}\n{\"error\":\"out of memory\"}\n",
            Code::UpstreamServerError,
            "stream",
        ),
        (Kind::Ollama, LINES, "nonsense\n", Code::UpstreamStreamMalformed, "first_token"),
        // The wrong kind of stream is no answer, whatever it says.
        (Kind::Ollama, EVENTS, "data: {}\n\n", Code::UpstreamBadResponse, "first_token"),
        (Kind::Anthropic, LINES, "{}\n", Code::UpstreamBadResponse, "first_token"),
    ] {
        call(kind, content_type, body).await.2.assert_failed(code, phase);
    }
}

#[tokio::test(start_paused = true)]
async fn an_endless_line_is_refused() {
    let rig = Rig::with(
        |config| config.providers[0].kind = Kind::Ollama,
        |_, mut peer: Peer| async move {
            read_request(&mut peer).await;
            peer.raw(
                "HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\n\
                 transfer-encoding: chunked\r\n\r\n",
            )
            .await;
            loop {
                peer.chunk(&"x".repeat(32 * 1024)).await;
            }
        },
    );
    rig.run().await.assert_failed(Code::UpstreamStreamTooLarge, "first_token");
    rig.assert_at_rest();
}
