//! Whatever comes in: a precise refusal in time, and a server that is none the worse.

use std::time::Duration;

use anyhow::{Context, Result};
use clearway_testkit::{Client, Request, World, until};
use serde_json::json;

use crate::binary;

/// A request, the statuses that are right, and the stable code that must be in the answer.
type Case = (&'static str, Request, &'static [u16], &'static str);

fn bodies(client: Client) -> Vec<Case> {
    let chat =
        |body: &[u8]| client.post("/chat").header("content-type", "application/json").body(body);
    let task = |body: &[u8]| client.post("/chat/async").body(body);
    let deep = |open: &str, close: &str| open.repeat(100) + &close.repeat(100);
    let large = json!({"user_id": "u", "message": "x".repeat(10 << 20)}).to_string();
    let nested = |inner: &str| {
        format!("{{\"user_id\":\"u\",\"message\":\"m\",\"metadata\":{{\"a\":{inner}}}}}")
    };
    let with = |user: &str| chat(json!({"user_id": user, "message": "m"}).to_string().as_bytes());
    vec![
        ("no body", chat(b""), &[422], "missing"),
        ("broken JSON", chat(b"{\"user_id\": "), &[422], "json_invalid"),
        ("no JSON", chat(b"user_id=u&message=m"), &[422], "json_invalid"),
        ("two values", chat(b"{} {}"), &[422], "json_invalid"),
        ("not UTF-8", chat(b"{\"user_id\":\"\xff\xfe\",\"message\":\"m\"}"), &[422], "json_invalid"),
        ("half a surrogate", chat(b"{\"user_id\":\"u\",\"message\":\"\\ud800\"}"), &[422], "json_invalid"),
        ("a list", chat(b"[1,2]"), &[422], "object_type"),
        ("a number", chat(b"17"), &[422], "object_type"),
        ("nothing in it", chat(b"{}"), &[422], "missing"),
        ("a number as message", chat(b"{\"user_id\":\"u\",\"message\":5}"), &[422], "string_type"),
        ("null as message", chat(b"{\"user_id\":\"u\",\"message\":null}"), &[422], "string_type"),
        ("an object as user", chat(b"{\"user_id\":{},\"message\":\"m\"}"), &[422], "string_type"),
        ("text as metadata", chat(b"{\"user_id\":\"u\",\"message\":\"m\",\"metadata\":\"x\"}"), &[422], "dict_type"),
        ("1 MB of metadata", chat(nested(&format!("{:?}", "x".repeat(1_000_000))).as_bytes()), &[400], "invalid_request"),
        ("an empty message", chat(b"{\"user_id\":\"u\",\"message\":\"\"}"), &[422], "string_too_short"),
        ("a blank message", chat(b"{\"user_id\":\"u\",\"message\":\" \\n\\t \"}"), &[422], "string_too_short"),
        ("an empty user", with(""), &[422], "string_too_short"),
        ("a long user", with(&"u".repeat(5000)), &[422], "string_too_long"),
        ("a control character", with("a\u{7}b"), &[422], "string_pattern_mismatch"),
        ("a nul", with("a\0b"), &[422], "string_pattern_mismatch"),
        ("10 MB", chat(large.as_bytes()), &[413], "body_too_large"),
        ("10 MB, in the background", task(large.as_bytes()), &[413], "body_too_large"),
        ("100 lists deep", chat(deep("[", "]").as_bytes()), &[422], "json_invalid"),
        ("100 objects deep", chat(deep("{\"a\":", "}").as_bytes()), &[422], "json_invalid"),
        ("deep inside", chat(nested(&deep("[", "]")).as_bytes()), &[422], "json_invalid"),
        ("a role that is none", task(b"{\"message\":\"m\",\"conversation_history\":[{\"role\":\"king\",\"content\":\"x\"}]}"), &[422], "enum"),
        ("a history of numbers", task(b"{\"message\":\"m\",\"conversation_history\":[1]}"), &[422], "object_type"),
        ("an empty task", task(b"{\"message\":\"\"}"), &[422], "string_too_short"),
    ]
}

fn addresses(client: Client) -> Vec<Case> {
    let unknown = "00000000-0000-7000-8000-000000000000";
    vec![
        ("nowhere", client.get("/nowhere"), &[404], "not_found"),
        ("another method", client.delete("/chat"), &[405], "method_not_allowed"),
        ("an unknown run", client.get(format!("/runs/{unknown}")), &[404], "run_not_found"),
        (
            "an unknown run's log",
            client.get(format!("/runs/{unknown}/events")),
            &[404],
            "run_not_found",
        ),
        ("an unknown task", client.get(format!("/chat/task/{unknown}")), &[404], "run_not_found"),
        ("an id that is none", client.get("/runs/17"), &[404], "run_not_found"),
        (
            "another spelling",
            client.get(format!("/runs/{}", unknown.replace('-', ""))),
            &[404],
            "run_not_found",
        ),
        ("a way out", client.get("/runs/../../etc/passwd"), &[404], "not_found"),
        (
            "a coded way out",
            client.get("/runs/..%2f..%2f..%2fetc%2fpasswd"),
            &[404],
            "run_not_found",
        ),
        ("a coded nul", client.get("/runs/%00"), &[404], "run_not_found"),
        ("a broken code", client.get("/runs/%zz"), &[400, 404], ""),
        ("bytes that are no text", client.get("/runs/%ff%fe"), &[400, 404], ""),
        ("a quote", client.get("/runs/'%20or%201=1--"), &[404], "run_not_found"),
        ("a quote as filter", client.get("/runs?agent='%20or%201=1--"), &[200], ""),
        ("a long path", client.get(format!("/runs/{}", "a".repeat(8000))), &[404, 414], ""),
        (
            "an odd event id",
            client.get(format!("/runs/{unknown}/events?after=x")),
            &[400],
            "invalid_request",
        ),
        (
            "an odd Last-Event-ID",
            client.get(format!("/runs/{unknown}/events")).header("last-event-id", "1-2-3"),
            &[400],
            "invalid_request",
        ),
        ("nobody's state", client.get("/state"), &[422], "missing"),
        (
            "a foreign page",
            client.get("/runs").header("origin", "https://evil.example"),
            &[403],
            "forbidden",
        ),
        ("an error's page", client.get("/errors/../secret"), &[404], "not_found"),
    ]
}

#[tokio::test]
async fn bad_input_is_refused_precisely() -> Result<()> {
    let mut world = World::new(binary()).start().await?;
    world.chat("ann", "before").send().await?.expect(200)?;
    let before = world.server()?.census()?;
    let client = world.client();
    for (name, request, statuses, code) in bodies(client).into_iter().chain(addresses(client)) {
        let answer = request.send().await.with_context(|| name.to_owned())?;
        let shown = answer.text().chars().take(500).collect::<String>();
        assert!(statuses.contains(&answer.status), "{name}: status {}: {shown}", answer.status);
        if answer.status != 200 {
            assert!(answer.json().is_object(), "{name}: no JSON: {shown}");
            assert!(answer.headers.get("x-request-id").is_some(), "{name}: no request id");
        }
        let codes = [answer.code(), answer.json()["code"].as_str().unwrap_or_default().to_owned()];
        let place = answer
            .json()
            .pointer("/detail/0/type")
            .and_then(|kind| kind.as_str().map(ToOwned::to_owned));
        let found = codes.iter().any(|found| found == code) || place.as_deref() == Some(code);
        assert!(code.is_empty() || found, "{name}: code {codes:?} instead of {code}: {shown}");
    }
    // The server is as it was: nothing started, nothing leaked, and a good request is answered.
    world.chat("ann", "after").send().await?.expect(200)?;
    assert_eq!(world.runs("").await?.len(), 2);
    assert_eq!(world.state("ann").await?["message_count"], 4);
    // About fifty connections came and went; the store may have opened its nine files for reading.
    until("all sockets are closed", clearway_testkit::PATIENCE, async || {
        Ok(world.server()?.census()?.files <= before.files + 9)
    })
    .await?;
    assert_eq!(world.server()?.census()?.threads, before.threads);
    world.finish().await
}

#[tokio::test]
async fn bytes_that_are_no_http_end_the_connection() -> Result<()> {
    let world = World::new(binary()).start().await?;
    let long_header =
        format!("GET /health HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n", "a".repeat(70_000));
    let many = (0..300).map(|number| format!("x-{number}: 1\r\n")).collect::<String>();
    let many_headers = format!("GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n{many}\r\n");
    let cases: [(&str, &[u8]); 8] = [
        ("noise", b"\x00\x01\x02\xff\xfe\r\n\r\n"),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
        ("no version", b"GET /\r\n\r\n"),
        ("a wrong version", b"GET / HTTP/9.9\r\n\r\n"),
        ("a wrong length", b"POST /chat HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: -1\r\n\r\n"),
        (
            "a wrong chunk",
            b"POST /chat HTTP/1.1\r\nhost: 127.0.0.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        ),
        ("a huge header", long_header.as_bytes()),
        ("300 headers", many_headers.as_bytes()),
    ];
    for (name, bytes) in cases {
        let mut raw = world.client().raw().await?;
        // It may be refused while it is being sent.
        let _ = raw.send(bytes).await;
        match raw.response(Duration::from_secs(5)).await {
            Ok(answer) => {
                let refused = matches!(answer.status, 400 | 408 | 414 | 422 | 431 | 505);
                assert!(refused, "{name}: status {}: {}", answer.status, answer.text());
            }
            // Closed without a word is an answer to what is no HTTP; silence is not.
            Err(error) => {
                let text = format!("{error:#}");
                assert!(!text.contains("no answer within"), "{name}: {text}");
            }
        }
        world.client().get("/health").send().await?.expect(200)?;
    }
    // Pieces of one request, and one that is cut off.
    let mut raw = world.client().raw().await?;
    let body = json!({"user_id": "u", "message": "in pieces"}).to_string();
    let head = format!(
        "POST /chat HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    for piece in (head + &body).as_bytes().chunks(7) {
        raw.send(piece).await?;
    }
    raw.response(clearway_testkit::PATIENCE).await?.expect(200)?;
    let mut raw = world.client().raw().await?;
    raw.send(b"POST /chat HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 500\r\n\r\n{\"user_id\"")
        .await?;
    drop(raw);
    world.client().get("/health").send().await?.expect(200)?;
    assert_eq!(world.runs("").await?.len(), 1);
    world.finish().await
}

/// Well after the two seconds that these tests allow a head or a body.
const SLOW_LIMIT: Duration = Duration::from_secs(10);

fn impatient() -> clearway_testkit::Builder {
    let limits = "limits = { body_timeout = \"2s\", header_timeout = \"2s\" }\n";
    World::new(binary()).config(|config| config.server = limits.to_owned())
}

#[tokio::test]
async fn a_body_that_drips_is_cut_off() -> Result<()> {
    let world = impatient().start().await?;
    let mut raw = world.client().raw().await?;
    raw.send(b"POST /chat HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 500\r\n\r\n").await?;
    let answer = raw.drip(&[b' '; 500], Duration::from_secs(1), SLOW_LIMIT).await?.expect(408)?;
    assert_eq!(answer.json()["detail"]["error_type"], "body_timeout", "{}", answer.text());
    world.chat("ann", "hello").send().await?.expect(200)?;
    world.finish().await
}

#[tokio::test]
async fn a_head_that_drips_is_cut_off() -> Result<()> {
    let world = impatient().start().await?;
    let raw = world.client().raw().await?;
    let idle = world.client().raw().await?;
    let head = format!("GET /health HTTP/1.1\r\nx-slow: {}", "a".repeat(500));
    let dripped = raw.drip(head.as_bytes(), Duration::from_secs(1), SLOW_LIMIT);
    let (dripped, silent) = tokio::join!(dripped, idle.closed(SLOW_LIMIT));
    silent.context("a connection that says nothing")?;
    match dripped {
        Ok(answer) => assert_eq!(answer.status, 408, "{}", answer.text()),
        Err(error) => {
            let text = format!("{error:#}");
            assert!(!text.contains("no answer within"), "{text}");
        }
    }
    world.chat("ann", "hello").send().await?.expect(200)?;
    world.finish().await
}
