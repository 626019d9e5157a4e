//! Limits, keys, outages, and settings that change: what a client's own limits and fail-over are tried on.

use super::*;
use crate::{KeyRule, KeyState, Tally};

fn bearer(key: &str) -> String {
    format!("authorization: Bearer {key}\r\n")
}

fn key(key: &str, state: KeyState) -> KeyRule {
    KeyRule { key: key.to_owned(), state }
}

async fn control(rig: &mut Rig, body: &Value) -> Answer {
    rig.connect().talk(&request("/control", "", body), SECOND).await
}

async fn embed(rig: &mut Rig, headers: &str, input: Value) -> Answer {
    let body = json!({"model": "e", "input": input, "dimensions": 4});
    rig.connect().talk(&request("/embeddings", headers, &body), SECOND).await
}

#[tokio::test(start_paused = true)]
async fn requests_per_minute_are_limited_per_key_and_told_in_headers() {
    let mut rig = Rig::new(Options { rpm: Some(2), ..Options::default() });
    let first = rig.ask(&bearer("a"), &streamed("m")).await;
    assert_eq!(first.header("x-ratelimit-limit-requests"), "2");
    assert_eq!(first.header("x-ratelimit-remaining-requests"), "1");
    assert_eq!(first.header("x-ratelimit-reset-requests"), "30s");
    assert_eq!(rig.ask(&bearer("a"), &whole("m")).await.status, 200);
    let refused = rig.ask(&bearer("a"), &whole("m")).await;
    assert_eq!((refused.status, refused.header("retry-after")), (429, "30"));
    assert_eq!(refused.header("retry-after-ms"), "30000");
    assert!(refused.body_text().contains("try again in 30s"), "{}", refused.body_text());
    assert_eq!(rig.ask(&bearer("b"), &whole("m")).await.status, 200, "an account of its own");
    tokio::time::sleep(30 * SECOND).await;
    assert_eq!(rig.ask(&bearer("a"), &whole("m")).await.status, 200);
    let stats = rig.sim.stats();
    assert_eq!((stats.requests, stats.refused, stats.completed), (5, 1, 4));
    assert_eq!(stats.refused_by["rpm"], 1);
    assert_eq!(stats.keys["…a"], Tally { requests: 4, refused: 1 });
    let seconds: Vec<_> = stats.seconds.iter().map(|at| (at.second, at.requests)).collect();
    assert_eq!(seconds, [(0, 4), (30, 1)]);
}

#[tokio::test(start_paused = true)]
async fn tokens_are_reserved_on_arrival_and_settled_with_the_reply() {
    let mut rig = Rig::new(Options { tpm: Some(100), ..paced(10) });
    let mut body = whole("m");
    body["max_tokens"] = 90.into();
    // Four tokens of prompt: 94 are reserved, 14 paid.
    let answer = rig.ask("", &body).await;
    assert_eq!(answer.header("x-ratelimit-remaining-tokens"), "6");
    let answer = rig.ask("", &whole("m")).await;
    assert!(answer.header("x-ratelimit-remaining-tokens").parse::<u32>().unwrap() > 80);
    body["max_tokens"] = 5000.into();
    let refused = rig.ask("", &body).await;
    assert_eq!((refused.status, refused.json()["error"]["type"].as_str()), (429, Some("tokens")));
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(rig.ask("", &body).await.status, 200, "the bucket is full");
    assert_eq!((rig.sim.stats().tokens_counted, rig.sim.stats().refused_by["tpm"]), (42, 1));
}

#[tokio::test(start_paused = true)]
async fn a_provider_may_keep_its_limits_to_itself() {
    let mut rig = Rig::new(Options { rpm: Some(1), rate_headers: false, ..Options::default() });
    for status in [200, 429] {
        let answer = rig.ask("", &whole("m")).await;
        assert_eq!(answer.status, status);
        assert!(!answer.head.contains("ratelimit") && !answer.head.contains("retry-after"));
    }
}

#[tokio::test(start_paused = true)]
async fn keys_are_dead_limited_or_empty() {
    let keys = vec![
        key("a", KeyState::Dead),
        key("b", KeyState::Limited),
        key("c", KeyState::Quota),
        key("d", KeyState::Ok),
    ];
    let mut rig = Rig::new(Options { keys, ..Options::default() });
    let mut codes = Vec::new();
    for key in ["a", "b", "c", "d", "else"] {
        let answer = rig.ask(&bearer(key), &whole("m")).await;
        codes.push((answer.status, answer.json()["error"]["code"].as_str().map(str::to_owned)));
    }
    let code = |code: &str| Some(code.to_owned());
    assert_eq!(
        codes,
        [
            (401, code("invalid_api_key")),
            (429, code("rate_limit_exceeded")),
            (429, code("insufficient_quota")),
            (200, None),
            (200, None),
        ]
    );
    let stats = rig.sim.stats();
    assert_eq!((stats.refused_by["key"], stats.faults.len()), (3, 0));
    assert_eq!(stats.keys["b"], Tally { requests: 1, refused: 1 });
    assert_eq!(stats.keys["…else"], Tally { requests: 1, refused: 0 });
    // A key can recover.
    control(&mut rig, &json!({"keys": {"a": "ok"}})).await;
    assert_eq!(rig.ask("x-api-key: a\r\n", &whole("m")).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn outages_come_by_the_clock_and_on_command() {
    let outages = vec!["10..20".parse().unwrap()];
    let mut rig = Rig::new(Options { outages, max_concurrent: Some(1), ..Options::default() });
    let mut statuses = Vec::new();
    for _ in 0..3 {
        // Whatever it asked for.
        statuses.push(rig.ask("x-sim-fault: none\r\n", &whole("m")).await.status);
        tokio::time::sleep(10 * SECOND).await;
    }
    assert_eq!(statuses, [200, 503, 200]);
    let shown = control(&mut rig, &json!({"outage": true, "outage_fault": "silent"})).await.json();
    assert_eq!((&shown["down"], &shown["outage_fault"]), (&json!(true), &json!("no_answer")));
    let (mut first, mut second) = (rig.connect(), rig.connect());
    let body = whole("m");
    let (a, b) = tokio::join!(first.ask("", &body, SECOND), second.ask("", &body, SECOND));
    assert_eq!((a.end, b.end), (End::Silent, End::Silent), "no limit of its own in an outage");
    control(&mut rig, &json!({"outage": true, "outage_fault": "reset"})).await;
    let reset = embed(&mut rig, "", json!("x")).await;
    assert_eq!((reset.end, reset.status), (End::Closed, 0));
    drop((first, second));
    settle().await;
    control(&mut rig, &json!({"outage": null})).await;
    assert_eq!(rig.ask("", &body).await.status, 200);
    assert_eq!(rig.sim.stats().outages, 4);
}

#[tokio::test(start_paused = true)]
async fn flapping_is_up_and_down_in_turns() {
    let flap = Some("2/1".parse().unwrap());
    let mut rig = Rig::new(Options { flap, ..Options::default() });
    let mut statuses = Vec::new();
    for _ in 0..6 {
        statuses.push(rig.ask("", &whole("m")).await.status);
        tokio::time::sleep(SECOND).await;
    }
    assert_eq!(statuses, [200, 200, 503, 200, 200, 503]);
}

#[tokio::test(start_paused = true)]
async fn settings_change_whole_or_not_at_all() {
    let mut rig = Rig::new(Options::default());
    let wrong = control(&mut rig, &json!({"ttft_ms": 5, "fault": "stal"})).await;
    assert_eq!(wrong.status, 400);
    assert!(wrong.body_text().contains("fault is a fault or null"));
    assert_eq!(rig.get("/control").await.json()["ttft_ms"], 0);
    let changes = json!({"fault": "conflict", "ttft_ms": 50, "tokens": 2, "concurrency": 1});
    assert_eq!(control(&mut rig, &changes).await.status, 200);
    assert_eq!(rig.ask("", &whole("m")).await.status, 409);
    let answer = rig.ask("x-sim-fault: none\r\n", &whole("m")).await;
    assert_eq!((answer.content(), answer.took), ("tok0 tok1".to_owned(), 50 * MS));
    rig.sim.change(|control| control.fault = None);
    assert_eq!(rig.ask("", &whole("m")).await.status, 200);
    assert_eq!(rig.sim.control().max_concurrent, Some(1));
    let delete = rig.connect().talk(b"PUT /control HTTP/1.1\r\n\r\n", SECOND).await;
    assert_eq!((delete.status, delete.header("allow")), (405, "GET, POST"));
}

#[tokio::test(start_paused = true)]
async fn requests_are_counted_by_path_model_connection_and_call() {
    let mut rig = Rig::new(Options::default());
    let mut client = rig.connect();
    for attempt in 1..=3 {
        let id = format!("x-client-request-id: 0af-77-{attempt}\r\n");
        client.ask(&id, &whole("m+lf"), SECOND).await;
    }
    client.ask("x-client-request-id: other-1\r\n", &whole("n"), SECOND).await;
    embed(&mut rig, "", json!(["a b", "c"])).await;
    let stats = rig.get("/stats").await.json();
    assert_eq!(stats["requests_on_reused"], 3);
    assert_eq!(stats["paths"]["/chat/completions"]["requests"], 4);
    assert_eq!(stats["models"]["m"], json!({"requests": 3, "admitted": 3, "refused": 0}));
    assert_eq!(stats["calls"], json!({"by_attempts": {"1": 1, "3": 1}, "repeated": {"0af-77": 3}}));
    assert_eq!(
        (&stats["texts_embedded"], &stats["texts_per_request"]),
        (&json!(2), &json!({"2": 1}))
    );
    assert_eq!(stats["keys"]["(none)"]["requests"], 5);
    assert_eq!(stats["seconds"][0]["requests"], 5);
}

#[tokio::test(start_paused = true)]
async fn one_deadly_text_spoils_its_batch() {
    let mut rig = Rig::new(Options::default());
    let refused = embed(&mut rig, "", json!(["fine", "a POISON text"])).await;
    assert_eq!(refused.status, 400);
    assert!(!refused.body_text().contains("POISON"), "{}", refused.body_text());
    assert_eq!(embed(&mut rig, "", json!(["fine", "poison in lower case"])).await.status, 200);
    assert_eq!(rig.sim.stats().texts_embedded, 4);
}
