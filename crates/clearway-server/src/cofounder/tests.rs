use clearway_core::Status;
use expect_test::expect;
use http::Uri;
use serde_json::json;
use tokio::io::AsyncWriteExt;

use super::*;
use crate::stop::Stage;
use crate::testing::{Answer, TestServer, options, post, read_until};

fn turn(message: &str) -> Value {
    json!({"user_id": "ann", "message": message})
}

#[test]
fn bodies_are_read_or_refused_by_field() {
    let turn = Turn::parse(br#"{"user_id":"a::b","message":"hi","metadata":{"k":1},"extra":true}"#)
        .unwrap();
    assert_eq!(turn.conversation.shown(), "bc::a::b::default");
    assert_eq!(turn.metadata["k"], 1);
    let other = Conversation { user: "a".to_owned(), id: "b::default".to_owned() };
    assert_eq!(other.shown(), turn.conversation.shown());
    assert_ne!(
        other.thread("default"),
        turn.conversation.thread("default"),
        "the parts stay apart"
    );
    let wrong = json!({"user_id": "a\u{0}", "conversation_id": "x".repeat(300), "message": "\n "});
    let invalid = Turn::parse(wrong.to_string().as_bytes()).unwrap_err();
    let fields: Vec<&str> = invalid.iter().map(|invalid| invalid.at[1].as_str()).collect();
    assert_eq!(fields, ["user_id", "conversation_id", "message"]);
}

#[test]
fn on_disconnect_has_two_words() {
    let read = |uri: &'static str| on_disconnect(&Query::parse(&Uri::from_static(uri)).unwrap());
    assert!(!read("/chat").unwrap());
    assert!(!read("/chat?on_disconnect=continue").unwrap());
    assert!(read("/chat?on_disconnect=cancel").unwrap());
    assert!(read("/chat?on_disconnect=explode").is_err());
}

#[tokio::test(start_paused = true)]
async fn a_chat_answers_in_the_old_shape() {
    let mut server = TestServer::start().await;
    let answer = server.post("/chat", &turn("hello")).await;
    assert_eq!(answer.status, 200);
    expect![[r#"{"user_id":"ann","conversation_id":"default","thread_id":"bc::ann::default","reply":"you said: hello"}"#]]
        .assert_eq(&answer.body);
    assert_eq!(answer.header("location"), format!("/runs/{}/events", answer.run()));
    let run = server.get(&format!("/runs/{}", answer.run())).await.json();
    assert_eq!((&run["door"], &run["status"]), (&json!("cofounder"), &json!("success")));
}

#[tokio::test(start_paused = true)]
async fn a_failed_chat_is_502_with_the_code() {
    let mut server = TestServer::start().await;
    let answer = server.post("/chat", &turn("fail")).await;
    assert_eq!(answer.status, 502);
    expect![[r#"{"error_type":"upstream.server_error","error_message":"the provider said 500","thread_id":"bc::ann::default"}"#]]
        .assert_eq(&answer.json()["detail"].to_string());
}

#[tokio::test(start_paused = true)]
async fn a_bad_body_is_422_and_says_where() {
    let mut server = TestServer::start().await;
    let answer = server.post("/chat", &json!({"message": ""})).await;
    assert_eq!(answer.status, 422);
    let detail = answer.json()["detail"].clone();
    assert_eq!(detail[0]["loc"], json!(["body", "user_id"]));
    assert_eq!(detail[1]["loc"], json!(["body", "message"]));
    let bad_deadline =
        server.send(&post("/chat", "x-deadline-ms: soon\r\n", &turn("x").to_string())).await;
    assert_eq!(bad_deadline.status, 400);
    assert!(server.newest().await.is_none(), "nothing was accepted");
}

fn joined(answer: &Answer) -> String {
    let data = answer.data();
    data.iter()
        .filter(|data| data["type"] == "delta")
        .filter_map(|data| data["text"].as_str())
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_deltas_and_one_final() {
    let mut server = TestServer::start().await;
    let answer = server.post("/chat/stream", &turn("one two")).await;
    assert_eq!(answer.header("content-type"), "text/event-stream");
    assert_eq!(answer.header("cache-control"), "no-cache");
    assert_eq!(answer.header("x-accel-buffering"), "no");
    let data = answer.data();
    assert_eq!(data.last().unwrap(), &json!({"type": "final", "text": "you said: one two"}));
    assert_eq!(joined(&answer), "you said: one two");
    assert!(!answer.body.contains("event:"), "events have no name in this dialect");

    // The run can be followed again, from the beginning or behind an event.
    let again = server.get(&format!("/chat/stream?run_id={}", answer.run())).await;
    assert_eq!(joined(&again), "you said: one two");
    let second = answer.body.lines().filter(|line| line.starts_with("id: ")).nth(2).unwrap();
    let resume = format!(
        "GET /chat/stream?run_id={} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nlast-event-{second}\r\n\r\n",
        answer.run()
    );
    let rest = server.send(&resume).await;
    assert!(
        answer.body.ends_with(&rest.body) && rest.body.len() < answer.body.len(),
        "{}",
        rest.body
    );
}

#[tokio::test(start_paused = true)]
async fn a_key_makes_streams_and_chats_repeatable() {
    let mut server = TestServer::start().await;
    for address in ["/chat", "/chat/stream"] {
        let request =
            |message: &str| post(address, "idempotency-key: k\r\n", &turn(message).to_string());
        let first = server.send(&request("hello")).await;
        let again = server.send(&request("hello")).await;
        assert_eq!((first.run(), &first.body), (again.run(), &again.body));
        let other = server.send(&request("bye")).await;
        assert_eq!(
            (other.status, other.json()["code"].as_str().unwrap()),
            (409, "idempotency_conflict")
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_cancels_only_when_it_said_so() {
    for (query, expected) in [("?on_disconnect=cancel", Status::Cancelled), ("", Status::Running)] {
        for address in ["/chat", "/chat/stream"] {
            let mut server = TestServer::start().await;
            let mut client = server.connect();
            let request = post(&format!("{address}{query}"), "", &turn("hang").to_string());
            client.write_all(request.as_bytes()).await.unwrap();
            let run = loop {
                if let Some(run) = server.newest().await {
                    break run;
                }
                tokio::task::yield_now().await;
            };
            server.until(run, |view| view.record.status == Status::Running).await;
            if address == "/chat/stream" {
                read_until(&mut client, "Well").await;
            }
            drop(client);
            server.closed().await;
            server.until(run, |view| view.record.status == expected).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_has_a_heartbeat() {
    let mut server = TestServer::start().await;
    let mut client = server.connect();
    client.write_all(post("/chat/stream", "", &turn("hang").to_string()).as_bytes()).await.unwrap();
    read_until(&mut client, "Well").await;
    let said = tokio::time::Instant::now();
    read_until(&mut client, ": alive\n\n").await;
    assert_eq!(said.elapsed().as_secs(), 15);
    read_until(&mut client, ": alive\n\n").await;
    assert_eq!(said.elapsed().as_secs(), 30);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_reads_is_let_go_and_its_run_ends_all_the_same() {
    let mut server = TestServer::start().await;
    let mut client = server.connect();
    let long = "word ".repeat(100_000);
    let request = post("/chat/stream", "", &turn(&long).to_string());
    client.write_all(request.as_bytes()).await.unwrap();
    let run = loop {
        if let Some(run) = server.newest().await {
            break run;
        }
        tokio::task::yield_now().await;
    };
    server.until(run, |view| view.record.status == Status::Success).await;
    let ended = tokio::time::Instant::now();
    server.closed().await;
    assert!((25..=40).contains(&ended.elapsed().as_secs()), "{:?}", ended.elapsed());
    drop(client);
}

#[tokio::test(start_paused = true)]
async fn a_stopping_server_says_goodbye() {
    let mut server = TestServer::start().await;
    let mut client = server.connect();
    client.write_all(post("/chat/stream", "", &turn("hang").to_string()).as_bytes()).await.unwrap();
    read_until(&mut client, "Well").await;
    server.stop(Stage::Soft);
    // Open exchanges go on: the heartbeat still comes.
    read_until(&mut client, ": alive\n\n").await;
    server.stop(Stage::Hard);
    let rest = read_until(&mut client, "0\r\n\r\n").await;
    assert!(rest.contains(r#""error_type":"shutting_down""#), "{rest}");
    server.closed().await;
}

#[tokio::test(start_paused = true)]
async fn turns_of_a_conversation_wait_for_each_other() {
    let mut server = TestServer::start().await;
    let mut first = server.connect();
    first.write_all(post("/chat/stream", "", &turn("hang").to_string()).as_bytes()).await.unwrap();
    read_until(&mut first, "Well").await;
    let mut second = server.connect();
    second
        .write_all(post("/chat/stream", "", &turn("hello").to_string()).as_bytes())
        .await
        .unwrap();
    read_until(&mut second, "queued: 1 ahead in this conversation").await;
    // A reset ends both, and the next turn begins with nothing before it.
    let reset = server.post("/reset", &json!({"user_id": "ann"})).await;
    expect![[
        r#"{"user_id":"ann","conversation_id":"default","thread_id":"bc::ann::default","ok":true}"#
    ]]
    .assert_eq(&reset.body);
    read_until(&mut first, r#""error_type":"cancelled""#).await;
    read_until(&mut second, r#""error_type":"cancelled""#).await;
    assert_eq!(server.post("/chat", &turn("again")).await.json()["reply"], "you said: again");
}

#[tokio::test(start_paused = true)]
async fn the_state_is_shown_only_where_it_is_switched_on() {
    let mut server = TestServer::start().await;
    assert_eq!(server.get("/state?user_id=ann").await.status, 404);
    let mut options = options();
    options.doors[0].expose_state = true;
    let mut server = TestServer::with(options).await;
    server.post("/chat", &turn("hello")).await;
    let state = server.get("/state?user_id=ann").await.json();
    assert_eq!((&state["message_count"], &state["checkpoints_path"]), (&json!(2), &json!("/data")));
    assert_eq!(server.get("/state").await.status, 422);
    assert_eq!(server.get("/state?user_id=%00").await.status, 422);
}

#[tokio::test(start_paused = true)]
async fn health_is_the_old_shape_and_more() {
    let mut server = TestServer::start().await;
    expect![[r#"{"status":"ok","checkpoints_path":"/data","ready":true,"draining":false,"version":"1.2.3"}"#]]
        .assert_eq(&server.get("/health").await.body);
}
