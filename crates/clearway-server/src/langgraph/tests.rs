//! The door over the in-memory store.

use std::time::Duration;

use clearway_core::RunId;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::testing::{Answer, TestServer, post, read_until};

mod beginnings;

async fn send(server: &mut TestServer, method: &str, path: &str, body: &str) -> Answer {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    server.send(&request).await
}

async fn json_of(server: &mut TestServer, method: &str, path: &str, body: &Value) -> Value {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let answer = send(server, method, path, &body).await;
    assert!(answer.status < 300, "{method} {path}: {answer:?}");
    answer.json()
}

async fn thread(server: &mut TestServer) -> String {
    let made = json_of(server, "POST", "/threads", &json!({})).await;
    made["thread_id"].as_str().expect("an id").to_owned()
}

fn hello(text: &str) -> Value {
    json!({"assistant_id": "agent", "input": {"messages": [{"role": "user", "content": text}]}})
}

/// Names and data of a stream's frames.
fn frames(answer: &Answer) -> Vec<(String, Value)> {
    answer
        .body
        .split("\r\n\r\n")
        .filter_map(|frame| {
            let line = |name: &str| frame.lines().find_map(|line| line.strip_prefix(name));
            let data = serde_json::from_str(line("data: ")?).expect("data is JSON");
            Some((line("event: ")?.to_owned(), data))
        })
        .collect()
}

fn contents(values: &Value) -> Vec<&str> {
    let messages = values["messages"].as_array().expect("messages");
    messages.iter().filter_map(|message| message["content"].as_str()).collect()
}

#[tokio::test]
async fn a_stream_begins_with_metadata_and_shows_what_was_asked_for() {
    let mut server = TestServer::start().await;
    let thread = thread(&mut server).await;
    let mut body = hello("big world");
    body["stream_mode"] = json!(["values", "messages-tuple", "updates"]);
    let path = format!("/threads/{thread}/runs/stream");
    let answer = server.post(&path, &body).await;
    assert_eq!(answer.status, 200);
    let run = answer.header("content-location").rsplit('/').next().unwrap().to_owned();
    assert_eq!(answer.header("location"), format!("/threads/{thread}/runs/{run}/stream"));
    assert_eq!(answer.header("content-type"), "text/event-stream; charset=utf-8");
    let frames = frames(&answer);
    assert_eq!(frames[0], ("metadata".to_owned(), json!({"run_id": run, "attempt": 1})));
    let names: Vec<&str> = frames.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        ["metadata", "values", "messages", "messages", "messages", "messages", "updates", "values"]
    );
    assert_eq!(contents(&frames[1].1), ["big world"]);
    let chunk = &frames[2].1[0];
    assert_eq!((&chunk["type"], &chunk["content"]), (&json!("AIMessageChunk"), &json!("you ")));
    assert_eq!(frames[2].1[1]["langgraph_node"], "answer");
    let last = &frames.last().unwrap().1;
    assert_eq!(contents(last), ["big world", "you said: big world"]);
    assert_eq!(last["messages"][1]["id"], chunk["id"], "one id from the first token on");
    assert_eq!(frames[6].1["answer"]["messages"][0]["id"], chunk["id"]);
    let known = json_of(&mut server, "GET", &format!("/threads/{thread}"), &Value::Null).await;
    assert_eq!((&known["status"], &known["values"]), (&json!("idle"), last));
    assert_eq!(known["metadata"]["graph_id"], "agent");
}

#[tokio::test]
async fn history_is_counted_as_langgraph_counts() {
    let mut server = TestServer::start().await;
    let thread = thread(&mut server).await;
    let state = format!("/threads/{thread}/state");
    let fresh = json_of(&mut server, "GET", &state, &Value::Null).await;
    assert_eq!((&fresh["values"], &fresh["checkpoint"]), (&json!({}), &Value::Null));
    json_of(&mut server, "POST", &format!("/threads/{thread}/runs/wait"), &hello("hi")).await;
    let path = format!("/threads/{thread}/history");
    let states = json_of(&mut server, "POST", &path, &json!({"limit": 10})).await;
    let states = states.as_array().unwrap().clone();
    let shape =
        |state: &Value| (state["metadata"]["step"].as_i64().unwrap(), state["next"].clone());
    let shapes: Vec<_> = states.iter().map(shape).collect();
    assert_eq!(shapes, [(1, json!([])), (0, json!(["answer"])), (-1, json!(["__start__"]))]);
    assert_eq!(states[2]["metadata"]["source"], "input");
    assert_eq!(states[2]["values"], json!({"messages": []}));
    for pair in states.windows(2) {
        assert_eq!(pair[0]["parent_checkpoint_id"], pair[1]["checkpoint_id"]);
        assert!(pair[0]["checkpoint_id"].as_str() > pair[1]["checkpoint_id"].as_str());
    }
    assert_eq!(states[2]["parent_checkpoint"], Value::Null);
    assert_eq!(states[1]["tasks"][0]["result"]["messages"][0]["content"], "you said: hi");
    // Each can be asked for, and is where a list may begin.
    for at in 0..3 {
        let id = states[at]["checkpoint_id"].as_str().unwrap();
        let one = json_of(&mut server, "GET", &format!("{state}/{id}"), &Value::Null).await;
        assert_eq!((&one["values"], &one["next"]), (&states[at]["values"], &states[at]["next"]));
        for before in [
            json!(id),
            json!({"configurable": {"checkpoint_id": id}}),
            json!({"checkpoint_id": id, "checkpoint_ns": ""}),
        ] {
            let body = json!({"limit": 10, "before": before});
            let older = json_of(&mut server, "POST", &path, &body).await;
            assert_eq!(older.as_array().unwrap()[..], states[at + 1..], "before {before}");
        }
    }
    let body = json!({"limit": 10, "metadata": {"source": "input"}});
    assert_eq!(json_of(&mut server, "POST", &path, &body).await[0], states[2]);
    let unknown = "1f0cb6f4-9f3c-6000-8001-0123456789ab";
    let none = json_of(&mut server, "GET", &format!("{state}/{unknown}"), &Value::Null).await;
    assert_eq!(none["values"], json!({}));
    // Steps count on over the thread's runs.
    json_of(&mut server, "POST", &format!("/threads/{thread}/runs/wait"), &hello("again")).await;
    let newest = json_of(&mut server, "POST", &path, &json!({"limit": 3})).await;
    let shapes: Vec<_> = newest.as_array().unwrap().iter().map(shape).collect();
    assert_eq!(shapes, [(4, json!([])), (3, json!(["answer"])), (2, json!(["__start__"]))]);
    // Also where nobody asks the store where the thread stands.
    let mut body = hello("more");
    body["if_not_exists"] = "create".into();
    json_of(&mut server, "POST", &format!("/threads/{thread}/runs/wait"), &body).await;
    let newest = json_of(&mut server, "POST", &path, &json!({"limit": 1})).await;
    assert_eq!(shape(&newest[0]), (7, json!([])));
}

#[tokio::test]
async fn a_message_can_be_edited_and_an_answer_made_again() {
    let mut server = TestServer::start().await;
    let thread = thread(&mut server).await;
    let wait = format!("/threads/{thread}/runs/wait");
    for text in ["one", "two"] {
        json_of(&mut server, "POST", &wait, &hello(text)).await;
    }
    let path = format!("/threads/{thread}/history");
    let states = json_of(&mut server, "POST", &path, &json!({"limit": 50})).await;
    let first_with = |count: usize| {
        let all = states.as_array().unwrap();
        let found = all.iter().rev().find(|state| {
            state["values"]["messages"].as_array().is_some_and(|all| all.len() == count)
        });
        found.unwrap()["parent_checkpoint"].clone()
    };
    // The answer again: from the checkpoint before the one that first had it.
    let again = json!({"assistant_id": "agent", "input": null, "checkpoint": first_with(4)});
    let values = json_of(&mut server, "POST", &wait, &again).await;
    assert_eq!(contents(&values), ["one", "you said: one", "two", "you said: two"]);
    // The second question in other words; clients leave the thread out of the checkpoint.
    let mut edited = hello("deux");
    edited["checkpoint"] = json!({"checkpoint_id": first_with(3)["checkpoint_id"]});
    let values = json_of(&mut server, "POST", &wait, &edited).await;
    assert_eq!(contents(&values), ["one", "you said: one", "deux", "you said: deux"]);
    // And the very first one, before which there was nothing.
    let mut edited = hello("un");
    edited["checkpoint_id"] = first_with(1)["checkpoint_id"].clone();
    let values = json_of(&mut server, "POST", &wait, &edited).await;
    assert_eq!(contents(&values), ["un", "you said: un"]);
    // A message with a known id takes the other's place.
    let id = values["messages"][0]["id"].clone();
    let body = json!({"values": {"messages": [{"role": "user", "content": "eins", "id": id}]}});
    json_of(&mut server, "POST", &format!("/threads/{thread}/state"), &body).await;
    let now = json_of(&mut server, "GET", &format!("/threads/{thread}/state"), &Value::Null).await;
    assert_eq!(contents(&now["values"]), ["eins", "you said: un"]);
}

#[tokio::test]
async fn a_resumed_stream_goes_on_behind_the_last_frame() {
    let mut server = TestServer::start().await;
    let thread = thread(&mut server).await;
    let mut body = hello("a b c");
    body["stream_mode"] = json!(["values", "updates", "messages-tuple", "debug"]);
    body["stream_resumable"] = json!(true);
    let whole = server.post(&format!("/threads/{thread}/runs/stream"), &body).await;
    let at = whole.header("location").to_owned();
    let parts: Vec<&str> = whole.body.split_inclusive("\r\n\r\n").collect();
    let ids: Vec<&str> = parts
        .iter()
        .filter_map(|frame| frame.lines().find_map(|line| line.strip_prefix("id: ")))
        .collect();
    assert_eq!(ids.len(), parts.len(), "every frame has an id: {}", whole.body);
    let number = |id: &str| {
        let (seq, rest) = id.split_once('-').unwrap();
        (seq.parse::<u64>().unwrap(), rest.parse::<u64>().unwrap())
    };
    assert!(ids.windows(2).all(|pair| number(pair[0]) < number(pair[1])), "{ids:?}");
    let join = async |server: &mut TestServer, id: &str, query: &str| {
        let head = format!("last-event-id: {id}\r\n");
        let head = if id.is_empty() { String::new() } else { head };
        let request = format!(
            "GET {at}{query} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{head}\r\n"
        );
        server.send(&request).await
    };
    assert_eq!(join(&mut server, "-1", "").await.body, whole.body);
    for (n, id) in ids.iter().enumerate() {
        assert_eq!(join(&mut server, id, "").await.body, parts[n + 1..].concat(), "after {id}");
    }
    assert_eq!(join(&mut server, "", "").await.body, "", "nothing is replayed unasked");
    // Three ways to ask for two modes.
    let mut seen = Vec::new();
    for query in [
        "?stream_mode=values&stream_mode=updates",
        "?stream_mode=values,updates",
        "?stream_mode=%5B%22values%22%2C%22updates%22%5D",
    ] {
        let some = join(&mut server, "-1", query).await;
        let names: Vec<String> = frames(&some).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["values", "updates", "values"], "{query}");
        seen.push(some.body);
    }
    assert!(seen.iter().all(|body| *body == seen[0]), "the same frames with the same ids");
    assert!(whole.body.contains(seen[0].split_inclusive("\r\n\r\n").last().unwrap()));
}

#[tokio::test]
async fn a_stream_that_its_client_leaves_stops_its_run_when_asked_to() {
    let mut server = TestServer::start().await;
    let thread = thread(&mut server).await;
    let mut body = hello("hang");
    body["on_disconnect"] = json!("cancel");
    body["stream_mode"] = json!("messages-tuple");
    let mut client = server.connect();
    let request = post(&format!("/threads/{thread}/runs/stream"), "", &body.to_string());
    client.write_all(request.as_bytes()).await.unwrap();
    read_until(&mut client, "Well").await;
    let busy = json_of(&mut server, "GET", &format!("/threads/{thread}"), &Value::Null).await;
    assert_eq!(busy["status"], "busy");
    drop(client);
    let run = server.newest().await.unwrap();
    server.until(run, |view| view.record.status.is_terminal()).await;
    let shown =
        json_of(&mut server, "GET", &format!("/threads/{thread}/runs/{run}"), &Value::Null).await;
    assert_eq!(shown["status"], "interrupted");
    let after = json_of(&mut server, "GET", &format!("/threads/{thread}"), &Value::Null).await;
    assert_eq!(after["status"], "interrupted", "the input was taken in and not answered");
}

/// Starts a run that hangs; its id.
async fn hang(server: &mut TestServer, thread: &str) -> RunId {
    let run = json_of(server, "POST", &format!("/threads/{thread}/runs"), &hello("hang")).await;
    let run = run["run_id"].as_str().unwrap().parse().unwrap();
    server.until(run, |view| view.record.status == clearway_core::Status::Running).await;
    run
}

#[tokio::test]
async fn strategies_decide_who_goes_first() {
    let mut server = TestServer::start().await;
    let create = |thread: &str| format!("/threads/{thread}/runs");
    let with = |text: &str, strategy: &str| {
        let mut body = hello(text);
        body["multitask_strategy"] = strategy.into();
        body
    };
    // reject
    let thread = thread(&mut server).await;
    let first = hang(&mut server, &thread).await;
    for path in ["", "/stream", "/wait"] {
        let path = format!("{}{path}", create(&thread));
        let refused = server.post(&path, &with("x", "reject")).await;
        assert_eq!(refused.status, 409, "{refused:?}");
        assert!(refused.json()["detail"].is_string());
    }
    // enqueue, and then a cancel of the one in front
    let second = json_of(&mut server, "POST", &create(&thread), &with("two", "enqueue")).await;
    assert_eq!((&second["status"], &second["queue_position"]), (&json!("pending"), &json!(1)));
    assert_eq!(second["waiting_on"]["kind"], "thread");
    let cancel = format!("/threads/{thread}/runs/{first}/cancel?wait=1");
    let cancelled = send(&mut server, "POST", &cancel, "").await;
    assert_eq!((cancelled.status, cancelled.json()), (200, json!({})));
    let again = send(&mut server, "POST", &cancel, "").await;
    assert_eq!(again.status, 404, "it has ended");
    let second: RunId = second["run_id"].as_str().unwrap().parse().unwrap();
    let join = format!("/threads/{thread}/runs/{second}/join");
    let values = json_of(&mut server, "GET", &join, &Value::Null).await;
    assert_eq!(contents(&values), ["hang", "two", "you said: two"]);
    // interrupt keeps what was committed, rollback takes it back
    for (strategy, status, left) in [
        ("interrupt", 200, vec!["hang", "two", "you said: two", "hang", "x", "you said: x"]),
        ("rollback", 404, vec!["hang", "two", "you said: two", "y", "you said: y"]),
    ] {
        let copy = format!("/threads/{thread}/copy");
        let copy = json_of(&mut server, "POST", &copy, &Value::Null).await;
        let copy = copy["thread_id"].as_str().unwrap();
        let first = hang(&mut server, copy).await;
        let text = left[left.len() - 2];
        let path = format!("{}/wait", create(copy));
        let values = json_of(&mut server, "POST", &path, &with(text, strategy)).await;
        assert_eq!(contents(&values), left, "{strategy}");
        let gone = send(&mut server, "GET", &format!("{}/{first}", create(copy)), "").await;
        assert_eq!(gone.status, status, "{strategy}");
    }
}

#[tokio::test]
async fn failures_are_told_and_do_not_pass_for_answers() {
    let mut server = TestServer::start().await;
    let thread = thread(&mut server).await;
    let wait = format!("/threads/{thread}/runs/wait");
    let failed = json_of(&mut server, "POST", &wait, &hello("fail")).await;
    assert_eq!(failed["__error__"]["error"], "upstream.server_error");
    let known = json_of(&mut server, "GET", &format!("/threads/{thread}"), &Value::Null).await;
    assert_eq!(known["status"], "error");
    assert_eq!(known["error"]["message"], "the provider said 500");
    let path = format!("/threads/{thread}/runs/stream");
    let streamed = frames(&server.post(&path, &hello("fail")).await);
    let (name, data) = streamed.last().unwrap();
    assert_eq!((name.as_str(), &data["error"]), ("error", &json!("upstream.server_error")));
    let state = format!("/threads/{thread}/state");
    let state = json_of(&mut server, "GET", &state, &Value::Null).await;
    assert_eq!(state["next"], json!(["answer"]));
    assert!(state["tasks"][0]["error"].is_string());
}

#[tokio::test]
async fn stateless_runs_leave_no_thread_behind() {
    let mut server = TestServer::start().await;
    let answer = server.post("/runs/wait", &hello("hi")).await;
    assert_eq!(contents(&answer.json()), ["hi", "you said: hi"]);
    let thread = answer.header("content-location").split('/').nth(2).unwrap().to_owned();
    let gone = send(&mut server, "GET", &format!("/threads/{thread}"), "").await;
    assert_eq!(gone.status, 404);
    let mut body = hello("hi");
    body["on_completion"] = json!("keep");
    let kept = server.post("/runs/wait", &body).await;
    let thread = kept.header("content-location").split('/').nth(2).unwrap().to_owned();
    let there = send(&mut server, "GET", &format!("/threads/{thread}"), "").await;
    assert_eq!(there.status, 200);
    let streamed = server.post("/runs/stream", &hello("hi")).await;
    assert!(streamed.header("location").starts_with("/runs/"));
    let batch = json_of(&mut server, "POST", "/runs/batch", &json!([hello("a"), hello("b")])).await;
    assert_eq!(batch.as_array().unwrap().len(), 2);
    let resume = json!({"assistant_id": "agent", "command": {"resume": 1}});
    assert_eq!(server.post("/runs/wait", &resume).await.status, 400);
    let listed = json_of(&mut server, "POST", "/threads/search", &json!({})).await;
    assert_eq!(listed.as_array().unwrap().len(), 1, "only the one that was kept");
}

#[tokio::test]
async fn a_run_that_changes_nothing_ends_with_what_its_thread_stands_at() {
    let mut server = TestServer::start().await;
    let thread = thread(&mut server).await;
    let wait = format!("/threads/{thread}/runs/wait");
    json_of(&mut server, "POST", &wait, &hello("hi")).await;
    let again = json_of(&mut server, "POST", &wait, &json!({"assistant_id": "agent"})).await;
    assert_eq!(contents(&again), ["hi", "you said: hi"]);
}

#[tokio::test]
async fn runs_of_other_doors_can_be_joined() {
    let mut server = TestServer::start().await;
    let turn = json!({"user_id": "u", "conversation_id": "c", "message": "hi"});
    assert_eq!(server.post("/chat", &turn).await.status, 200);
    let run = server.newest().await.unwrap();
    let values = json_of(&mut server, "GET", &format!("/runs/{run}/join"), &Value::Null).await;
    assert_eq!(contents(&values).last(), Some(&"you said: hi"));
    let stream = send(&mut server, "GET", &format!("/runs/{run}/stream"), "").await;
    assert_eq!(stream.status, 200);
}

#[tokio::test]
async fn deleting_takes_history_and_threads_away() {
    let mut server = TestServer::start().await;
    let thread = thread(&mut server).await;
    let wait = format!("/threads/{thread}/runs/wait");
    json_of(&mut server, "POST", &wait, &hello("one")).await;
    json_of(&mut server, "POST", &wait, &hello("two")).await;
    let run = server.newest().await.unwrap();
    let path = format!("/threads/{thread}/runs/{run}");
    assert_eq!(send(&mut server, "DELETE", &path, "").await.status, 204);
    assert_eq!(send(&mut server, "GET", &path, "").await.status, 404);
    assert_eq!(send(&mut server, "DELETE", &path, "").await.status, 404);
    let state = format!("/threads/{thread}/state");
    let state = json_of(&mut server, "GET", &state, &Value::Null).await;
    assert_eq!(contents(&state["values"]), ["one", "you said: one"]);
    // One that runs is stopped first, and leaves the thread free.
    let run = hang(&mut server, &thread).await;
    let path = format!("/threads/{thread}/runs/{run}");
    assert_eq!(send(&mut server, "DELETE", &path, "").await.status, 204);
    let known = json_of(&mut server, "GET", &format!("/threads/{thread}"), &Value::Null).await;
    assert_eq!(known["status"], "idle");
    hang(&mut server, &thread).await;
    let path = format!("/threads/{thread}");
    assert_eq!(send(&mut server, "DELETE", &path, "").await.status, 204);
    assert_eq!(send(&mut server, "GET", &path, "").await.status, 404);
}

#[tokio::test]
async fn threads_are_searched() {
    let mut server = TestServer::start().await;
    for n in 0..3 {
        let body = json!({"metadata": {"n": n, "team": "x"}});
        json_of(&mut server, "POST", "/threads", &body).await;
    }
    let body = json!({"metadata": {"team": "x"}, "limit": 2, "select": ["metadata"]});
    let answer = server.post("/threads/search", &body).await;
    assert_eq!(answer.header("x-pagination-next"), "2");
    let found = answer.json();
    assert_eq!(
        found,
        json!([{"metadata": {"n": 2, "team": "x"}}, {"metadata": {"n": 1, "team": "x"}}])
    );
    let count =
        json_of(&mut server, "POST", "/threads/count", &json!({"metadata": {"n": 1}})).await;
    assert_eq!(count, 1);
    let thread = thread(&mut server).await;
    json_of(&mut server, "POST", &format!("/threads/{thread}/runs/wait"), &hello("hi")).await;
    let body = json!({"metadata": {"graph_id": "agent"},
        "extract": {"last": "values.messages[-1].content"}});
    let found = json_of(&mut server, "POST", "/threads/search", &body).await;
    assert_eq!(found[0]["extracted"], json!({"last": "you said: hi"}));
    let body = json!({"values": {"messages": []}});
    assert_eq!(json_of(&mut server, "POST", "/threads/count", &body).await, 0);
}

#[tokio::test]
async fn bad_requests_get_the_statuses_that_clients_know() {
    let mut server = TestServer::start().await;
    let thread = thread(&mut server).await;
    let other = uuid::Uuid::from_u128(77);
    let t = format!("/threads/{thread}");
    let cases: Vec<(&str, String, &str, u16)> = vec![
        ("GET", "/threads/nonsense".to_owned(), "", 422),
        ("GET", format!("/threads/{other}"), "", 404),
        ("GET", format!("/threads/{other}/state"), "", 404),
        ("GET", format!("{t}/state/nonsense"), "", 422),
        ("POST", format!("{t}/state"), r#"{"values": {"messages": []}}"#, 400),
        ("POST", format!("{t}/history"), r#"{"limit": 0}"#, 422),
        ("POST", "/threads/search".to_owned(), r#"{"limit": 1001}"#, 422),
        ("POST", "/threads/search".to_owned(), r#"{"status": "odd"}"#, 422),
        ("POST", "/threads/search".to_owned(), r#"{"sort_by": "odd"}"#, 422),
        ("POST", "/threads/search".to_owned(), r#"{"select": ["odd"]}"#, 422),
        ("POST", "/threads/search".to_owned(), "", 422),
        ("POST", "/threads/search".to_owned(), "{", 422),
        ("POST", "/threads".to_owned(), r#"{"thread_id": "x"}"#, 422),
        ("POST", format!("/threads/{other}/copy"), "", 409),
        ("POST", format!("{t}/runs"), r#"{"assistant_id": "nobody"}"#, 422),
        ("POST", format!("/threads/{other}/runs"), r#"{"assistant_id": "agent"}"#, 404),
        ("POST", format!("{t}/runs/wait"), r#"{"assistant_id": "agent", "input": 5}"#, 422),
        (
            "POST",
            format!("{t}/runs/stream"),
            r#"{"assistant_id": "agent", "stream_mode": "tools"}"#,
            422,
        ),
        ("GET", format!("{t}/runs/{other}"), "", 404),
        ("GET", format!("{t}/runs/odd"), "", 422),
        ("GET", format!("{t}/runs?limit=0"), "", 422),
        ("POST", format!("{t}/runs/{other}/cancel"), "", 404),
        ("DELETE", format!("{t}/runs/{other}"), "", 404),
        ("POST", "/runs/cancel".to_owned(), r#"{"status": "all"}"#, 404),
        ("POST", "/runs/cancel".to_owned(), r#"{"status": "all", "thread_id": "x"}"#, 422),
        ("POST", "/runs/cancel".to_owned(), "{}", 422),
        ("PUT", t.clone(), "", 405),
        ("GET", format!("/assistants/{other}"), "", 404),
        ("GET", "/assistants/agent".to_owned(), "", 422),
        ("POST", "/assistants/search".to_owned(), r#"{"graph_id": "nobody"}"#, 404),
        ("POST", format!("{t}/commands"), "{}", 400),
        ("POST", format!("{t}/stream/events"), r#"{"channels": []}"#, 400),
        ("POST", format!("{t}/stream/events"), r#"{"channels": ["odd"]}"#, 400),
    ];
    for (method, path, body, status) in cases {
        let answer = send(&mut server, method, &path, body).await;
        assert_eq!(answer.status, status, "{method} {path} {body}: {answer:?}");
        assert!(answer.json()["detail"].is_string(), "{method} {path}: {answer:?}");
    }
    // The content type is no matter, nor is a slash at the end.
    let head = "content-type: text/plain\r\n";
    assert_eq!(server.send(&post("/threads/search/", head, "{}")).await.status, 200);
    // A thread that exists.
    let same = json!({"thread_id": thread});
    assert_eq!(server.post("/threads", &same).await.status, 409);
    let same = json!({"thread_id": thread, "if_exists": "do_nothing"});
    assert_eq!(server.post("/threads", &same).await.status, 200);
    let unknown = send(&mut server, "GET", &format!("{t}/runs/{other}/join"), "").await;
    assert_eq!(unknown.json()["__error__"]["message"], "404: Run not found");
    let unknown = send(&mut server, "GET", &format!("{t}/runs/{other}/stream"), "").await;
    assert!(unknown.body.starts_with("event: error\r\n"));
}

#[tokio::test]
async fn browsers_of_other_origins_may_read() {
    let mut server = TestServer::start().await;
    let ask = "OPTIONS /threads HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
               origin: http://localhost:3000\r\naccess-control-request-method: POST\r\n\
               access-control-request-headers: x-api-key\r\n\r\n";
    let allowed = server.send(ask).await;
    assert_eq!(allowed.status, 200);
    assert_eq!(allowed.header("access-control-allow-headers"), "x-api-key");
    assert!(allowed.header("access-control-allow-methods").contains("PATCH"));
    let head = "GET /threads/nonsense HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n";
    let answer = server.send(&format!("{head}origin: http://localhost:3000\r\n\r\n")).await;
    assert_eq!(answer.header("access-control-allow-origin"), "*");
    assert!(answer.header("access-control-expose-headers").contains("location"));
    let answer = server.send(&format!("{head}\r\n")).await;
    assert_eq!(answer.header("access-control-allow-origin"), "", "no page asks");
}

#[tokio::test]
async fn a_thread_is_followed_over_its_runs() {
    let mut server = TestServer::start().await;
    let thread = uuid::Uuid::from_u128(5);
    let body = json!({"channels": ["lifecycle", "messages", "values", "updates", "checkpoints"]});
    let mut client = server.connect();
    let request = post(&format!("/threads/{thread}/stream/events"), "", &body.to_string());
    client.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    for n in 1..=2 {
        let params = json!({"assistant_id": "agent", "input": {"messages": [
            {"type": "human", "content": format!("turn {n}")}]}});
        let command = json!({"id": n, "method": "run.start", "params": params});
        let path = format!("/threads/{thread}/commands");
        let done = json_of(&mut server, "POST", &path, &command).await;
        assert_eq!((&done["type"], &done["id"]), (&json!("success"), &json!(n)));
        text += &read_until(&mut client, "\"event\":\"completed\"").await;
    }
    let events: Vec<Value> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let seqs: Vec<u64> = events.iter().map(|event| event["seq"].as_u64().unwrap()).collect();
    assert!(seqs.windows(2).all(|pair| pair[0] < pair[1]), "{seqs:?}");
    let methods: Vec<&str> = events.iter().map(|event| event["method"].as_str().unwrap()).collect();
    for wanted in ["lifecycle", "messages", "values", "updates", "checkpoints"] {
        assert!(methods.contains(&wanted), "{methods:?}");
    }
    let deltas =
        events.iter().filter(|event| event["params"]["data"]["event"] == "content-block-delta");
    let said: String =
        deltas.filter_map(|event| event["params"]["data"]["delta"]["text"].as_str()).collect();
    assert_eq!(said, "you said: turn 1you said: turn 2");
    // Who comes back with a number gets what follows it.
    let middle = seqs[seqs.len() / 2];
    let mut body = body;
    body["since"] = json!(middle);
    let mut client = server.connect();
    let request = post(&format!("/threads/{thread}/stream/events"), "", &body.to_string());
    client.write_all(request.as_bytes()).await.unwrap();
    let rest = read_until(&mut client, "\"event\":\"completed\"").await;
    let rest: Vec<u64> = rest
        .lines()
        .filter_map(|line| line.strip_prefix("id: "))
        .map(|id| id.parse().unwrap())
        .collect();
    assert_eq!(rest, seqs.iter().copied().filter(|seq| *seq > middle).collect::<Vec<_>>());
    let nonsense = json!({"id": 3, "method": "state.get"});
    let path = format!("/threads/{thread}/commands");
    let refused = json_of(&mut server, "POST", &path, &nonsense).await;
    assert_eq!((&refused["type"], &refused["error"]), (&json!("error"), &json!("unknown_command")));
    let nobody = json!({"id": 4, "method": "run.start", "params": {"assistant_id": "nobody"}});
    let refused = json_of(&mut server, "POST", &path, &nobody).await;
    assert!(refused["message"].as_str().unwrap().starts_with("422: "), "{refused}");
}

#[tokio::test]
async fn all_runs_of_a_thread_are_streamed() {
    let mut server = TestServer::start().await;
    let thread = thread(&mut server).await;
    let mut body = hello("one");
    body["stream_resumable"] = json!(true);
    body["stream_mode"] = json!(["values"]);
    let wait = format!("/threads/{thread}/runs/wait");
    json_of(&mut server, "POST", &wait, &body).await;
    let mut client = server.connect();
    let request = format!(
        "GET /threads/{thread}/stream HTTP/1.1\r\nhost: localhost\r\nlast-event-id: -\r\n\r\n"
    );
    client.write_all(request.as_bytes()).await.unwrap();
    let first = read_until(&mut client, "run_done").await;
    assert!(first.contains("you said: one"), "{first}");
    json_of(&mut server, "POST", &wait, &hello("two")).await;
    let second = read_until(&mut client, "run_done").await;
    assert!(second.contains("you said: two"), "{second}");
    let bad = format!(
        "GET /threads/{thread}/stream HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         last-event-id: odd\r\n\r\n"
    );
    assert_eq!(server.send(&bad).await.status, 422);
}

#[tokio::test(start_paused = true)]
async fn waiting_answers_show_that_they_are_alive() {
    let mut server = TestServer::start().await;
    let thread = thread(&mut server).await;
    let mut client = server.connect();
    let request = post(&format!("/threads/{thread}/runs/wait"), "", &hello("hang").to_string());
    client.write_all(request.as_bytes()).await.unwrap();
    let head = read_until(&mut client, "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200"));
    let before = tokio::time::Instant::now();
    read_until(&mut client, "\n\r\n").await;
    assert!(before.elapsed() <= Duration::from_secs(6));
    let mut client = server.connect();
    let run = server.newest().await.unwrap();
    let request =
        format!("GET /threads/{thread}/runs/{run}/stream HTTP/1.1\r\nhost: localhost\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    let before = tokio::time::Instant::now();
    for _ in 0..3 {
        read_until(&mut client, ": heartbeat\r\n\r\n").await;
    }
    let took = before.elapsed().as_secs();
    assert!((14..=16).contains(&took), "{took} s for three");
}

#[tokio::test]
async fn no_body_makes_the_server_fail() {
    let mut server = TestServer::start().await;
    let thread = thread(&mut server).await;
    json_of(&mut server, "POST", &format!("/threads/{thread}/runs/wait"), &hello("hi")).await;
    let run = server.newest().await.unwrap();
    let t = format!("/threads/{thread}");
    let create = json!({
        "assistant_id": "agent", "input": {"messages": [{"role": "user", "content": "x"}]},
        "command": {"resume": 1, "update": {"messages": []}, "goto": "answer"},
        "config": {"configurable": {}, "recursion_limit": 3}, "context": {}, "metadata": {},
        "stream_mode": "values", "stream_subgraphs": true, "stream_resumable": true,
        "interrupt_before": "*", "interrupt_after": ["x"], "checkpoint": {"checkpoint_id": ""},
        "checkpoint_id": "", "multitask_strategy": "reject", "if_not_exists": "create",
        "on_disconnect": "cancel", "on_completion": "keep", "after_seconds": 0,
        "durability": "sync", "webhook": "http://x.example/", "priority": 3, "deadline_ms": 1000,
    });
    let search = json!({
        "metadata": {}, "values": {}, "ids": [thread], "status": "idle", "limit": 1, "offset": 0,
        "sort_by": "created_at", "sort_order": "asc", "select": ["values"],
        "extract": {"a": "values.messages[0]"},
    });
    let cases = [
        (
            "POST",
            "/threads".to_owned(),
            json!({"thread_id": thread, "metadata": {},
            "if_exists": "do_nothing", "ttl": {"ttl": 5}, "supersteps": [{"updates": []}]}),
        ),
        ("POST", "/threads/search".to_owned(), search.clone()),
        ("POST", "/threads/count".to_owned(), search),
        ("POST", "/threads/prune".to_owned(), json!({"thread_ids": [], "strategy": "delete"})),
        ("PATCH", t.clone(), json!({"metadata": {"a": 1}})),
        (
            "POST",
            format!("{t}/state"),
            json!({"values": {"messages": []}, "as_node": "answer",
            "checkpoint": {"checkpoint_id": ""}, "checkpoint_id": ""}),
        ),
        ("POST", format!("{t}/state/checkpoint"), json!({"checkpoint": {"checkpoint_id": thread}})),
        (
            "POST",
            format!("{t}/history"),
            json!({"limit": 3, "before": thread, "metadata": {},
            "checkpoint": {"checkpoint_ns": ""}}),
        ),
        ("POST", format!("{t}/runs"), create.clone()),
        ("POST", format!("{t}/runs/stream"), create.clone()),
        ("POST", "/runs/wait".to_owned(), create),
        (
            "POST",
            "/runs/cancel".to_owned(),
            json!({"thread_id": thread, "run_ids": [run.to_string()],
            "status": null}),
        ),
        (
            "POST",
            "/assistants/search".to_owned(),
            json!({"graph_id": "agent", "name": "a",
            "metadata": {}, "limit": 1, "offset": 0}),
        ),
        (
            "POST",
            format!("{t}/commands"),
            json!({"id": 1, "method": "run.start",
            "params": {"assistant_id": "agent", "input": {}, "config": {}, "metadata": {}}}),
        ),
        (
            "POST",
            format!("{t}/commands"),
            json!({"id": 1, "method": "input.respond",
            "params": {"interrupt_id": thread, "response": 1, "responses": []}}),
        ),
    ];
    let odd = [
        json!(null),
        json!(0),
        json!(-1),
        json!(1e300),
        json!(""),
        json!("\u{0}é"),
        json!([]),
        json!({}),
        json!([[{"a": [null]}]]),
        json!(true),
        json!("x".repeat(3000)),
        json!({"messages": {"role": 1}}),
        json!([{"role": "user"}]),
        json!(u64::MAX),
    ];
    let mut tried = 0;
    for (method, path, body) in &cases {
        let mut bodies: Vec<Value> = odd.to_vec();
        for name in body.as_object().unwrap().keys() {
            for value in &odd {
                let mut changed = body.clone();
                changed[name] = value.clone();
                bodies.push(changed);
            }
        }
        for body in bodies {
            let answer = send(&mut server, method, path, &body.to_string()).await;
            assert!((200..500).contains(&answer.status), "{method} {path} {body}: {answer:?}");
            if answer.status >= 400 {
                assert!(answer.json()["detail"].is_string(), "{method} {path} {body}: {answer:?}");
            }
            tried += 1;
        }
    }
    assert!(tried > 1000, "{tried}");
    for query in [
        "limit=x",
        "offset=-1",
        "status=odd",
        "before=x",
        "stream_mode=x",
        "wait=x",
        "action=x",
        "cancel_on_disconnect=x",
        "limit=99999999999",
        "%ff",
        "=",
        "&&",
    ] {
        for path in ["runs", "history", "state", "runs/x/stream", "stream"] {
            let answer = server.get(&format!("/threads/nonsense/{path}?{query}")).await;
            assert!((400..500).contains(&answer.status), "{path} {query}: {answer:?}");
        }
        for path in ["/runs", "/history", "/state", ""] {
            let answer = server.get(&format!("{t}{path}?{query}")).await;
            assert!(answer.status < 500, "{path} {query}: {answer:?}");
        }
    }
}
