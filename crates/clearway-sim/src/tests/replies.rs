//! Good answers, limits, and clients that leave.

use expect_test::expect;

use super::*;

#[tokio::test(start_paused = true)]
async fn a_stream_has_every_part_at_its_time() {
    let mut rig = Rig::new(paced(4));
    let mut body = streamed("gpt-5-mini");
    body["stream_options"] = json!({"include_usage": true});
    let answer = rig.ask("", &body).await;
    assert_eq!((answer.status, answer.end), (200, End::Whole));
    assert_eq!(answer.header("content-type"), "text/event-stream; charset=utf-8");
    assert_eq!((answer.head_after, answer.took), (500 * MS, 800 * MS));
    expect![[r#"
        data: {"id":"chatcmpl-sim-000000000000","object":"chat.completion.chunk","created":1767225600,"model":"gpt-5-mini","system_fingerprint":"fp_clearway_sim","choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}],"usage":null}

        data: {"id":"chatcmpl-sim-000000000000","object":"chat.completion.chunk","created":1767225600,"model":"gpt-5-mini","system_fingerprint":"fp_clearway_sim","choices":[{"index":0,"delta":{"content":"tok0"},"logprobs":null,"finish_reason":null}],"usage":null}

        data: {"id":"chatcmpl-sim-000000000000","object":"chat.completion.chunk","created":1767225600,"model":"gpt-5-mini","system_fingerprint":"fp_clearway_sim","choices":[{"index":0,"delta":{"content":" tok1"},"logprobs":null,"finish_reason":null}],"usage":null}

        data: {"id":"chatcmpl-sim-000000000000","object":"chat.completion.chunk","created":1767225600,"model":"gpt-5-mini","system_fingerprint":"fp_clearway_sim","choices":[{"index":0,"delta":{"content":" tok2"},"logprobs":null,"finish_reason":null}],"usage":null}

        data: {"id":"chatcmpl-sim-000000000000","object":"chat.completion.chunk","created":1767225600,"model":"gpt-5-mini","system_fingerprint":"fp_clearway_sim","choices":[{"index":0,"delta":{"content":" tok3"},"logprobs":null,"finish_reason":null}],"usage":null}

        data: {"id":"chatcmpl-sim-000000000000","object":"chat.completion.chunk","created":1767225600,"model":"gpt-5-mini","system_fingerprint":"fp_clearway_sim","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"usage":null}

        data: {"id":"chatcmpl-sim-000000000000","object":"chat.completion.chunk","created":1767225600,"model":"gpt-5-mini","system_fingerprint":"fp_clearway_sim","choices":[],"usage":{"prompt_tokens":4,"completion_tokens":4,"total_tokens":8,"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}}}

        data: [DONE]

    "#]].assert_eq(answer.body_text());
    let stats = rig.sim.stats();
    assert_eq!((stats.requests, stats.completed, stats.in_flight, stats.tokens_sent), (1, 1, 0, 4));
}

#[tokio::test(start_paused = true)]
async fn a_whole_reply_takes_as_long_as_its_stream() {
    let mut rig = Rig::new(paced(4));
    let answer = rig.ask("", &whole("gpt-5-mini")).await;
    assert_eq!((answer.status, answer.end, answer.took), (200, End::Whole, 800 * MS));
    expect![[r#"
        {
          "id": "chatcmpl-sim-000000000000",
          "object": "chat.completion",
          "created": 1767225600,
          "model": "gpt-5-mini",
          "system_fingerprint": "fp_clearway_sim",
          "choices": [
            {
              "index": 0,
              "message": {
                "role": "assistant",
                "content": "tok0 tok1 tok2 tok3",
                "refusal": null
              },
              "logprobs": null,
              "finish_reason": "stop"
            }
          ],
          "usage": {
            "prompt_tokens": 4,
            "completion_tokens": 4,
            "total_tokens": 8,
            "prompt_tokens_details": {
              "cached_tokens": 0
            },
            "completion_tokens_details": {
              "reasoning_tokens": 0
            }
          }
        }"#]]
    .assert_eq(&serde_json::to_string_pretty(&answer.json()).unwrap());
    assert_eq!(rig.sim.stats().tokens_sent, 4);
}

#[tokio::test(start_paused = true)]
async fn the_default_reply_repeats_the_user_and_streams_the_same_text() {
    let mut rig = Rig::new(Options::default());
    let stream = rig.ask("", &streamed("sim")).await;
    let whole = rig.ask("", &whole("sim")).await;
    assert_eq!(stream.text(), whole.content());
    assert!(stream.text().contains("“hello”"), "{}", stream.text());
    assert_eq!((stream.finish_reason().as_deref(), stream.is_done()), (Some("stop"), true));
    let mut later = streamed("sim");
    let turns = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]);
    later["messages"] = turns;
    assert!(rig.ask("", &later).await.text().contains("turn 2"));
}

#[tokio::test(start_paused = true)]
async fn scripts_answer_what_they_match() {
    let rule = |match_text: &str, reply: &str| ScriptRule {
        match_text: match_text.into(),
        reply: reply.into(),
        tool: None,
    };
    let script = vec![
        rule(
            "HELLO",
            "{{ model }}, turn {{ turn }}: {{ message | upper }} of {{ messages | length }} ({{ messages[0].role }})",
        ),
        rule("broken", "{{ nothing }}"),
        rule("", "anything"),
    ];
    let mut rig = Rig::new(Options { script, ..Options::default() });
    assert_eq!(rig.ask("", &streamed("m+lf")).await.text(), "m, turn 1: HELLO of 1 (user)");
    let say = |text: &str| json!({"model": "m", "messages": [{"role": "user", "content": text}]});
    assert_eq!(rig.ask("", &say("else")).await.content(), "anything");
    let broken = rig.ask("", &say("is it broken?")).await;
    assert_eq!(broken.status, 500);
    assert!(
        broken.body_text().contains("reply of script rule 2: undefined value"),
        "{}",
        broken.body_text()
    );
}

#[tokio::test(start_paused = true)]
async fn structured_output_fits_its_schema_and_max_tokens_cuts() {
    let mut rig = Rig::new(Options { tokens: Some(3), ..Options::default() });
    let mut body = streamed("m");
    let schema =
        json!({"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}});
    body["response_format"] =
        json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    assert_eq!(rig.ask("", &body).await.text(), r#"{"name":"Example name"}"#);
    body["response_format"] = json!({"type": "json_object"});
    assert_eq!(rig.ask("", &body).await.text(), r#"{"message":"hello"}"#);
    let mut rig = Rig::new(Options::default());
    let mut body = streamed("m");
    body["max_tokens"] = 2.into();
    let answer = rig.ask("", &body).await;
    assert_eq!(
        (answer.text().as_str(), answer.finish_reason().as_deref()),
        ("You wrote:", Some("length"))
    );
}

#[tokio::test(start_paused = true)]
async fn headers_set_the_pace_of_one_request() {
    let mut rig = Rig::new(paced(100));
    let headers = "x-sim-ttft-ms: 20\r\nx-sim-tokens: 3\r\nX-Sim-Token-Interval-Ms: 5\r\n";
    let answer = rig.ask(headers, &streamed("m")).await;
    assert_eq!((answer.text().as_str(), answer.took), ("tok0 tok1 tok2", 30 * MS));
    let wrong = rig.ask("x-sim-tokens: few\r\n", &streamed("m")).await;
    assert_eq!((wrong.status, wrong.end), (400, End::Whole));
}

#[tokio::test(start_paused = true)]
async fn connections_are_kept_and_requests_may_come_early() {
    let mut rig = Rig::new(paced(2));
    let mut client = rig.connect();
    let both = [chat_request("", &streamed("a")), chat_request("", &whole("b"))].concat();
    let first = client.talk(&both, 10 * SECOND).await;
    let second = client.talk(b"", 10 * SECOND).await;
    assert_eq!((first.text(), second.content()), ("tok0 tok1".to_owned(), "tok0 tok1".to_owned()));
    let last = client.ask("connection: close\r\n", &whole("c"), SECOND).await;
    assert_eq!(last.header("connection"), "close");
    assert_eq!(client.talk(b"", SECOND).await.end, End::Closed);
    let stats = rig.sim.stats();
    assert_eq!((stats.connections_accepted, stats.connections_open, stats.completed), (1, 0, 3));
}

#[tokio::test(start_paused = true)]
async fn old_clients_get_a_body_without_chunks() {
    let mut rig = Rig::new(paced(2));
    let request = String::from_utf8(chat_request("", &streamed("m")))
        .unwrap()
        .replace("HTTP/1.1", "HTTP/1.0");
    let answer = rig.connect().talk(request.as_bytes(), 10 * SECOND).await;
    assert_eq!(
        (answer.end, answer.header("connection"), answer.text().as_str()),
        (End::Closed, "close", "tok0 tok1")
    );
    assert!(!answer.head.contains("chunked") && answer.is_done());
}

#[tokio::test(start_paused = true)]
async fn too_many_at_once_are_refused_and_the_slot_returns() {
    let mut rig = Rig::new(Options { max_concurrent: Some(1), ..paced(2) });
    let (mut first, mut second) = (rig.connect(), rig.connect());
    let body = streamed("m");
    let (served, refused) = tokio::join!(first.ask("", &body, 10 * SECOND), async {
        settle().await;
        second.ask("", &body, 10 * SECOND).await
    });
    assert_eq!((served.status, refused.status, refused.header("retry-after")), (200, 429, "1"));
    assert_eq!(refused.json()["error"]["code"], "rate_limit_exceeded");
    assert_eq!(second.ask("", &body, 10 * SECOND).await.status, 200);
    let stats = rig.sim.stats();
    assert_eq!(
        (stats.requests, stats.completed, stats.refused, stats.peak_in_flight),
        (3, 2, 1, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_is_noticed_at_once() {
    let mut rig = Rig::new(paced(20));
    let cases = [
        // Before the first token, between tokens, while a whole reply is pending, in a stall, and in silence.
        (streamed("m"), 100 * MS),
        (streamed("m"), 1050 * MS),
        (whole("m"), 700 * MS),
        (streamed("m+stall:1"), 5 * SECOND),
        (streamed("m+stall_keepalive:1"), 5 * SECOND),
        (streamed("m+no_answer"), 5 * SECOND),
        (streamed("m+drip_headers"), 700 * MS),
        (streamed("m+reasoning"), 5 * SECOND),
        (whole("m+slow_headers"), 5 * SECOND),
    ];
    for (index, (body, leave_after)) in (1..).zip(cases) {
        let mut client = rig.connect();
        let answer = client.ask("", &body, leave_after).await;
        assert_eq!((answer.end, rig.sim.stats().in_flight), (End::Silent, 1), "{body}");
        drop(client);
        let left = rig.sim.stats().uptime_ms;
        settle().await;
        let stats = rig.sim.stats();
        assert_eq!(
            (stats.aborted_by_client, stats.in_flight, stats.connections_open),
            (index, 0, 0),
            "{body}"
        );
        assert_eq!(stats.last_abort_ms, Some(left), "{body}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_reads_is_given_up_but_is_no_abort() {
    let limits = Limits { write_timeout: 5 * SECOND, ..Limits::default() };
    let mut rig = Rig::new(Options { tokens: Some(100_000), limits, ..Options::default() });
    let mut client = rig.connect();
    client.io.write_all(&chat_request("", &streamed("m"))).await.unwrap();
    tokio::time::sleep(4 * SECOND).await;
    assert_eq!(rig.sim.stats().in_flight, 1);
    tokio::time::sleep(2 * SECOND).await;
    let stats = rig.sim.stats();
    assert_eq!((stats.in_flight, stats.aborted_by_client, stats.connections_open), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn wrong_requests_get_errors_in_the_shape_of_the_dialect() {
    let mut rig = Rig::new(Options::default());
    let mut client = rig.connect();
    let mut check = async |request: &[u8], status: u16, message: &str| {
        let answer = client.talk(request, SECOND).await;
        assert_eq!((answer.status, answer.end), (status, End::Whole));
        let error = &answer.json()["error"];
        assert!(error["message"].as_str().unwrap().contains(message), "{error}");
        assert!(
            ["type", "param", "code"].iter().all(|member| error.get(member).is_some()),
            "{error}"
        );
    };
    check(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 3\r\n\r\n{\"a", 400, "not JSON")
        .await;
    check(&chat_request("", &json!({"model": "m"})), 400, "messages").await;
    check(&chat_request("", &streamed("m+stal")), 400, "did you mean stall?").await;
    check(&chat_request("x-sim-fault: bogus\r\n", &streamed("m")), 400, "unknown fault: bogus")
        .await;
    check(b"GET /v1/chat/completions HTTP/1.1\r\n\r\n", 405, "takes POST").await;
    check(b"POST /health HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}", 405, "takes GET").await;
    check(b"GET /v2 HTTP/1.1\r\n\r\n", 404, "/v2").await;
    let malformed = client.talk(b"\x01\x02\r\n\r\n", SECOND).await;
    assert_eq!(malformed.status, 400);
    assert_eq!(rig.sim.stats().bad_requests, 5);
}

#[tokio::test(start_paused = true)]
async fn the_other_addresses_answer() {
    let mut rig = Rig::new(Options::default());
    assert_eq!(rig.get("/health").await.json(), json!({"status": "ok"}));
    let models = rig.get("/v1/models").await.json();
    assert_eq!((&models["object"], &models["data"][0]["id"]), (&json!("list"), &json!("sim")));
    assert_eq!(rig.get("/models/gpt-5-mini").await.json()["id"], "gpt-5-mini");
    let faults = rig.get("/faults").await.json();
    assert_eq!(faults["faults"].as_array().unwrap().len(), Fault::ALL.len());
    rig.ask("", &streamed("m+bom")).await;
    let stats = rig.get("/stats").await.json();
    assert_eq!(
        (&stats["requests"], &stats["faults"]["bom"], &stats["last_abort_ms"]),
        (&json!(1), &json!(1), &json!(null))
    );
    let reset = rig.connect().talk(b"POST /stats/reset HTTP/1.1\r\n\r\n", SECOND).await.json();
    assert_eq!((&reset["requests"], &reset["faults"]), (&json!(0), &json!({})));
}

#[tokio::test(start_paused = true)]
async fn connections_have_a_limit() {
    let limits = Limits { max_connections: 1, ..Limits::default() };
    let mut rig = Rig::new(Options { limits, ..Options::default() });
    let mut first = rig.connect();
    assert_eq!(first.talk(b"GET /health HTTP/1.1\r\n\r\n", SECOND).await.status, 200);
    let refused = rig.get("/health").await;
    assert_eq!(refused.status, 503);
    assert_eq!(rig.sim.stats().connections_refused, 1);
    // Idle for too long, the first one makes room.
    tokio::time::sleep(76 * SECOND).await;
    assert_eq!(rig.get("/health").await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn embeddings_answer_and_take_faults() {
    let mut rig = Rig::new(Options::default());
    let body = json!({"model": "text-embedding-3-small", "input": ["a b", "c"], "dimensions": 8});
    let answer = rig.connect().talk(&request("/v1/embeddings", "", &body), SECOND).await;
    let json = answer.json();
    assert_eq!((&json["data"][1]["index"], &json["usage"]["total_tokens"]), (&json!(1), &json!(3)));
    assert_eq!(json["data"][0]["embedding"].as_array().unwrap().len(), 8);
    let refused = rig
        .connect()
        .talk(&request("/embeddings", "x-sim-fault: overloaded\r\n", &body), SECOND)
        .await;
    assert_eq!(refused.status, 529);
    let cut = rig
        .connect()
        .talk(&request("/embeddings", "x-sim-fault: cut_rst\r\n", &body), SECOND)
        .await;
    assert_eq!(cut.end, End::Closed);
}

#[tokio::test(start_paused = true)]
async fn the_seed_decides_who_gets_the_fault() {
    let outcomes = async |seed| {
        let fault = Some(Fault::ServerError.into());
        let mut rig = Rig::new(Options { fault, fault_rate: 0.3, seed, ..Options::default() });
        let mut statuses = Vec::new();
        for _ in 0..200 {
            statuses.push(rig.ask("", &whole("m")).await.status);
        }
        let failed = statuses.iter().filter(|status| **status == 500).count() as u64;
        assert_eq!(rig.sim.stats().faults["server_error"], failed);
        assert!((40..80).contains(&failed), "{failed}");
        statuses
    };
    let first = outcomes(1).await;
    assert_eq!(first, outcomes(1).await);
    assert_ne!(first, outcomes(2).await);
}

#[tokio::test(start_paused = true)]
async fn header_beats_model_beats_flag() {
    let mut rig =
        Rig::new(Options { fault: Some(Fault::Unavailable.into()), ..Options::default() });
    assert_eq!(rig.ask("", &whole("m")).await.status, 503);
    assert_eq!(rig.ask("", &whole("m+unauthorized")).await.status, 401);
    assert_eq!(rig.ask("x-sim-fault: conflict\r\n", &whole("m+unauthorized")).await.status, 409);
    assert_eq!(rig.ask("x-sim-fault: none\r\n", &whole("m+unauthorized")).await.status, 200);
}
