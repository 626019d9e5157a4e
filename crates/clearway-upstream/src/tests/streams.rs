//! What becomes of good, bad and endless answers.

use super::*;

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

async fn pause(length: u64) {
    tokio::time::sleep(seconds(length)).await;
}

/// A rig whose provider reads the request and then runs the rest on the first connection.
fn after_request<F>(rest: impl Fn(Peer) -> F + Send + Sync + Clone + 'static) -> Rig
where
    F: Future<Output = ()> + Send + 'static,
{
    Rig::new(move |_, mut peer| {
        let rest = rest.clone();
        async move {
            if peer.request().await.is_some() {
                rest(peer).await;
            }
        }
    })
}

/// The same, with the head and one token already sent.
fn after_token<F>(rest: impl Fn(Peer) -> F + Send + Sync + Clone + 'static) -> Rig
where
    F: Future<Output = ()> + Send + 'static,
{
    after_request(move |mut peer| {
        let rest = rest.clone();
        async move {
            peer.head().await;
            peer.token("one").await;
            rest(peer).await;
        }
    })
}

#[tokio::test(start_paused = true)]
async fn a_good_answer() {
    let rig = after_request(|mut peer| async move {
        peer.answer().await;
        peer.closed().await;
    });
    let outcome = rig.run().await;
    outcome.assert_whole();
    assert_eq!(outcome.finish, Some(Some(USAGE)));
    rig.assert_at_rest();
    assert_eq!(rig.view().connections.idle, 1, "the connection is kept");
}

#[tokio::test(start_paused = true)]
async fn the_request_is_what_the_provider_expects() {
    let seen = Arc::new(Mutex::new(None));
    let kept = seen.clone();
    let rig = Rig::new(move |_, mut peer| {
        let kept = kept.clone();
        async move {
            *kept.lock().unwrap() = peer.request().await;
            peer.answer().await;
        }
    });
    rig.run().await.assert_whole();
    let request = seen.lock().unwrap().take().unwrap();
    assert_eq!(
        request,
        json!({"model": "m-1", "messages": [{"role": "user", "content": "hi"}],
            "stream": true, "stream_options": {"include_usage": true}})
    );
}

#[tokio::test(start_paused = true)]
async fn events_of_one_read_need_no_waiting() {
    let rig = after_request(|mut peer| async move {
        peer.head().await;
        let together = format!("data: {}\n\ndata: {}\n\n", delta("a"), delta("b"));
        peer.chunk(&together).await;
        peer.closed().await;
    });
    let mut stream = rig.chat().await.unwrap();
    assert_eq!(stream.next().await.unwrap(), Some(ChatEvent::Text("a".into())));
    assert_eq!(stream.next_ready(), Some(ChatEvent::Text("b".into())));
    assert_eq!(stream.next_ready(), None);
}

#[tokio::test(start_paused = true)]
async fn one_byte_at_a_time() {
    let rig = after_request(|mut peer| async move {
        peer.head().await;
        let mut text = String::new();
        for event in [delta("one"), delta(" two"), delta(" three"), stop(), usage()] {
            text.push_str(&format!("data: {event}\r\n\r\n"));
        }
        for byte in text.bytes() {
            peer.chunk(&char::from(byte).to_string()).await;
        }
        peer.closed().await;
    });
    rig.run().await.assert_whole();
}

#[tokio::test(start_paused = true)]
async fn a_silent_provider() {
    let rig = after_request(|mut peer| async move { peer.closed().await });
    let outcome = rig.run().await;
    outcome.assert_failed(Code::UpstreamHeadersTimeout, "headers");
    outcome.assert_took(30.0);
    rig.assert_at_rest();
}

#[tokio::test(start_paused = true)]
async fn headers_at_once_and_nothing_else() {
    let rig = after_request(|mut peer| async move {
        peer.head().await;
        peer.closed().await;
    });
    let outcome = rig.run().await;
    outcome.assert_failed(Code::UpstreamFirstTokenTimeout, "first_token");
    outcome.assert_took(30.0);
    assert!(outcome.error.unwrap().failure().retryable);
}

#[tokio::test(start_paused = true)]
async fn slow_headers_and_a_slow_first_token_are_waited_for() {
    let rig = after_request(|mut peer| async move {
        pause(12).await;
        peer.head().await;
        pause(17).await;
        peer.token("one").await;
        peer.token(" two three").await;
        peer.close_answer().await;
    });
    let outcome = rig.run().await;
    outcome.assert_whole();
    outcome.assert_took(29.0);
}

#[tokio::test(start_paused = true)]
async fn a_stall_after_output() {
    let rig = after_token(|mut peer| async move { peer.closed().await });
    let outcome = rig.run().await;
    outcome.assert_failed(Code::UpstreamStreamIdle, "stream");
    outcome.assert_took(20.0);
    assert_eq!(outcome.text, "one", "what came is not lost");
    rig.assert_at_rest();
}

#[tokio::test(start_paused = true)]
async fn a_stall_with_comments() {
    let rig = after_token(|mut peer| async move {
        for _ in 0..200 {
            pause(1).await;
            peer.chunk(": keepalive\n\n").await;
        }
    });
    let outcome = rig.run().await;
    outcome.assert_failed(Code::UpstreamStreamStalled, "stream");
    outcome.assert_took(45.0);
}

#[tokio::test(start_paused = true)]
async fn a_model_that_reasons_may_take_a_minute() {
    let rig = after_request(|mut peer| async move {
        peer.head().await;
        for _ in 0..60 {
            pause(1).await;
            peer.chunk(": thinking\n\n").await;
        }
        peer.token("one two three").await;
        peer.close_answer().await;
    });
    let mut stream = rig.upstream.chat(rig.cx(), ask_model("thinking")).await.unwrap();
    assert_eq!(stream.next().await.unwrap(), Some(ChatEvent::Text("one two three".into())));
    drop(stream);
    let outcome = rig.run().await;
    outcome.assert_failed(Code::UpstreamFirstTokenTimeout, "first_token");
    outcome.assert_took(30.0);
}

#[tokio::test(start_paused = true)]
async fn a_drip_ends_at_the_deadline() {
    let rig = after_token(|mut peer| async move {
        loop {
            pause(19).await;
            peer.token(".").await;
        }
    });
    let outcome = rig.run().await;
    outcome.assert_failed(Code::DeadlineExceeded, "stream");
    outcome.assert_took(120.0);
}

/// A provider that is given up below so many tokens a second.
fn with_floor<F>(floor: f64, script: impl Fn(Peer) -> F + Send + Sync + 'static) -> Rig
where
    F: Future<Output = ()> + Send + 'static,
{
    let change = move |config: &mut Config| {
        config.providers[0].timeouts.rate_floor = Some(floor);
    };
    let script = Arc::new(script);
    Rig::with(change, move |_, mut peer| {
        let script = script.clone();
        async move {
            peer.request().await;
            peer.head().await;
            script(peer).await;
        }
    })
}

#[tokio::test(start_paused = true)]
async fn an_answer_below_the_floor_is_given_up_after_five_seconds() {
    let slow = with_floor(1.0, |mut peer| async move {
        loop {
            peer.token("ab").await;
            pause(2).await;
        }
    });
    let outcome = slow.run().await;
    outcome.assert_failed(Code::UpstreamStreamTooSlow, "stream");
    outcome.assert_took(5.0);
    slow.assert_at_rest();
    // Fast enough in each window, though it pauses within one; and the end is not judged.
    let uneven = with_floor(1.0, |mut peer| async move {
        for _ in 0..6 {
            peer.token("one two three four five six").await;
            pause(4).await;
        }
        peer.close_answer().await;
    });
    let outcome = uneven.run().await;
    assert_eq!(outcome.error, None);
    outcome.assert_took(24.0);
    // A reader that is away does not make it slow.
    let mut stream = uneven.chat().await.unwrap();
    while stream.next().await.unwrap().is_some() {
        pause(8).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_is_away_does_not_count_against_the_provider() {
    let rig = after_token(|mut peer| async move {
        pause(70).await;
        peer.token(" two three").await;
        peer.close_answer().await;
    });
    let mut stream = rig.chat().await.unwrap();
    stream.next().await.unwrap();
    pause(60).await;
    assert_eq!(stream.next().await.unwrap(), Some(ChatEvent::Text(" two three".into())));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_never_pauses_ends_at_the_deadline_too() {
    let rig = after_token(|mut peer| async move {
        loop {
            peer.token(".").await;
        }
    });
    let call = cx(seconds(10));
    let mut stream = rig.upstream.chat(call.clone(), ask()).await.unwrap();
    let started = now();
    let error = loop {
        match stream.next().await {
            // The reader takes its time, so there is always something to read.
            Ok(_) => tokio::time::advance(Duration::from_millis(50)).await,
            Err(error) => break error.into_failure(),
        }
        while stream.next_ready().is_some() {}
    };
    assert_eq!(error.code, Code::DeadlineExceeded);
    assert!(now() - started <= seconds(10) + Duration::from_millis(50));
    rig.assert_at_rest();
}

#[tokio::test(start_paused = true)]
async fn comments_are_no_tokens() {
    let rig = after_token(|mut peer| async move {
        loop {
            pause(1).await;
            peer.chunk(": ping\n\n").await;
        }
    });
    let call = rig.cx();
    let mut stream = rig.upstream.chat(call.clone(), ask()).await.unwrap();
    stream.next().await.unwrap();
    let _ = tokio::time::timeout(seconds(10), stream.next()).await;
    let waiting = call.wait.read(now());
    assert_eq!((waiting.kind, waiting.for_), (WaitKind::NextToken, seconds(10)));
}

#[tokio::test(start_paused = true)]
async fn cut_answers_are_never_whole() {
    // A clean end of the body, of the connection, and of a body without a length.
    let clean = after_token(|mut peer| async move {
        peer.raw("0\r\n\r\n").await;
        peer.closed().await;
    });
    let broken = after_token(|_peer| async {});
    let lengthless = after_request(|mut peer| async move {
        peer.raw("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n").await;
        peer.raw(format!("data: {}\n\n", delta("one"))).await;
    });
    for rig in [clean, broken, lengthless] {
        let outcome = rig.run().await;
        outcome.assert_failed(Code::UpstreamStreamTruncated, "stream");
        assert_eq!(outcome.text, "one");
        rig.assert_at_rest();
    }
}

#[tokio::test(start_paused = true)]
async fn a_finish_reason_is_enough() {
    // Without usage and [DONE]: the body ends, the connection breaks, or nothing comes any more.
    let ended = after_token(|mut peer| async move {
        peer.token(" two three").await;
        peer.event(&stop()).await;
        peer.raw("0\r\n\r\n").await;
        peer.closed().await;
    });
    let outcome = ended.run().await;
    outcome.assert_whole();
    outcome.assert_took(0.0);
    assert_eq!(outcome.finish, Some(None));

    let broken = after_token(|mut peer| async move {
        peer.token(" two three").await;
        peer.event(&stop()).await;
    });
    broken.run().await.assert_whole();

    let lingering = after_token(|mut peer| async move {
        peer.token(" two three").await;
        peer.event(&stop()).await;
        for _ in 0..600 {
            pause(1).await;
            peer.chunk(": still here\n\n").await;
        }
    });
    let outcome = lingering.run().await;
    outcome.assert_whole();
    outcome.assert_took(2.0);
    lingering.assert_at_rest();
    assert_eq!(lingering.open(), 0, "it is not waited for");
}

#[tokio::test(start_paused = true)]
async fn done_after_output_is_enough() {
    let rig = after_token(|mut peer| async move {
        peer.token(" two three").await;
        peer.chunk("data: [DONE]\n\n").await;
        pause(600).await;
    });
    let outcome = rig.run().await;
    outcome.assert_whole();
    outcome.assert_took(0.0);
    assert_eq!(rig.view().limiter.in_flight, 0);
    // The body has not ended; it is given two seconds for that, in nobody's way.
    rig.upstream.expire_idle(now() + seconds(1));
    assert_eq!(rig.open(), 1);
    rig.upstream.expire_idle(now() + seconds(2));
    assert_eq!(rig.open(), 0);
}

#[tokio::test(start_paused = true)]
async fn answers_without_an_answer() {
    for body in ["", ": nothing\n\n", "data: [DONE]\n\n", "data: {\"choices\":[]}\n\n"] {
        let rig = after_request(move |mut peer| async move {
            peer.respond("200 OK", "content-type: text/event-stream\r\n", body).await;
            peer.closed().await;
        });
        let outcome = rig.run().await;
        outcome.assert_failed(Code::UpstreamEmptyResponse, "first_token");
    }
}

#[tokio::test(start_paused = true)]
async fn good_statuses_with_bad_answers() {
    let cases = [
        ("text/html", "<html><title>Login</title></html>", Code::UpstreamBadResponse),
        ("text/plain", "hello", Code::UpstreamBadResponse),
        ("text/plain", "", Code::UpstreamEmptyResponse),
        ("application/json", "{\"ok\":true}", Code::UpstreamBadResponse),
        ("application/json", "{\"choices\":[]}", Code::UpstreamEmptyResponse),
        ("application/json", "<html>", Code::UpstreamBadResponse),
        (
            "application/json",
            "{\"error\":{\"message\":\"slow down\",\"type\":\"rate_limit_error\"}}",
            Code::UpstreamRateLimited,
        ),
        (
            "text/event-stream",
            "{\"error\":{\"message\":\"x\",\"code\":\"insufficient_quota\"}}",
            Code::UpstreamQuotaExhausted,
        ),
        ("text/event-stream", "<!doctype html><p>no</p>", Code::UpstreamBadResponse),
        ("text/event-stream", "data: {\"choices\": nonsense}\n\n", Code::UpstreamStreamMalformed),
        (
            "text/event-stream",
            "event: error\ndata: {\"message\":\"busy\",\"type\":\"overloaded_error\"}\n\n",
            Code::UpstreamOverloaded,
        ),
    ];
    for (kind, body, code) in cases {
        let rig = after_request(move |mut peer| async move {
            peer.respond("200 OK", &format!("content-type: {kind}\r\n"), body).await;
            peer.closed().await;
        });
        let outcome = rig.run().await;
        outcome.assert_failed(code, "first_token");
        outcome.assert_took(0.0);
        rig.assert_at_rest();
    }
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_does_not_stream_is_understood() {
    let rig = after_request(|mut peer| async move {
        let body = json!({"choices": [{"index": 0, "finish_reason": "stop",
            "message": {"role": "assistant", "content": "one two three"}}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3}});
        peer.respond("200 OK", "content-type: application/json\r\n", &body.to_string()).await;
        peer.closed().await;
    });
    let outcome = rig.run().await;
    outcome.assert_whole();
    assert_eq!(outcome.finish, Some(Some(USAGE)));
    assert_eq!(rig.view().connections.idle, 1);
}

#[tokio::test(start_paused = true)]
async fn errors_in_the_middle_keep_what_came_before() {
    let rig = after_token(|mut peer| async move {
        let error = json!({"error": {"message": "upstream died", "code": 502}});
        // In one read, so that the token is decoded together with the error.
        peer.chunk(&format!("data: {}\n\ndata: {error}\n\n", delta(" two"))).await;
        peer.closed().await;
    });
    let outcome = rig.run().await;
    outcome.assert_failed(Code::UpstreamServerError, "stream");
    assert_eq!(outcome.text, "one two");
    let failure = outcome.error.unwrap().into_failure();
    assert_eq!(failure.message, "p/m-1: upstream died");
    assert_eq!(failure.detail["upstream"], json!({"status": 502, "code": "502"}));
    assert_eq!(
        failure.detail["attempts"],
        json!([{"route": "p/m-1", "code": "upstream.server_error", "status": 502, "ms": 0}])
    );
}

#[tokio::test(start_paused = true)]
async fn malformed_events_are_not_skipped() {
    let rig = after_token(|mut peer| async move {
        peer.chunk("data: {\"choices\":[{\"delta\":{\"content\":\"tw\n\n").await;
        peer.token("three").await;
        peer.close_answer().await;
        peer.closed().await;
    });
    let outcome = rig.run().await;
    outcome.assert_failed(Code::UpstreamStreamMalformed, "stream");
    assert_eq!(outcome.text, "one");
}

#[tokio::test(start_paused = true)]
async fn huge_events_and_endless_lines() {
    for line_end in ["", "\ndata: "] {
        let rig = after_token(move |mut peer| async move {
            peer.chunk("data: ").await;
            let piece = format!("{}{line_end}", "x".repeat(16_000));
            // 100 MB, if it were read.
            for _ in 0..6_250 {
                peer.chunk(&piece).await;
            }
        });
        let outcome = rig.run().await;
        outcome.assert_failed(Code::UpstreamStreamTooLarge, "stream");
        rig.assert_at_rest();
    }
}

#[tokio::test(start_paused = true)]
async fn refusals_are_understood_and_their_connections_kept() {
    let rig = after_request(|mut peer| async move {
        let body = r#"{"error":{"message":"Rate limit reached for key-of-the-house","type":"tokens","code":"rate_limit_exceeded"}}"#;
        let headers = "content-type: application/json\r\nretry-after: 2\r\nx-request-id: req-9\r\n";
        peer.respond("429 Too Many Requests", headers, body).await;
        peer.closed().await;
    });
    let outcome = rig.run().await;
    outcome.assert_failed(Code::UpstreamRateLimited, "headers");
    assert_eq!(rig.view().connections.idle, 1);
    let failure = outcome.error.unwrap().into_failure();
    assert_eq!(failure.retry_after, Some(seconds(2)));
    assert!(failure.retryable);
    assert_eq!(failure.message, "p/m-1: Rate limit reached for [key]");
    assert_eq!(
        failure.detail["upstream"],
        json!({"status": 429, "code": "rate_limit_exceeded", "request_id": "req-9"})
    );
}

#[tokio::test(start_paused = true)]
async fn endless_and_stalled_error_bodies() {
    let endless = after_request(|mut peer| async move {
        peer.raw("HTTP/1.1 503 Busy\r\ntransfer-encoding: chunked\r\n\r\n").await;
        loop {
            peer.chunk(&"x".repeat(1000)).await;
            tokio::task::yield_now().await;
        }
    });
    let outcome = endless.run().await;
    outcome.assert_failed(Code::UpstreamOverloaded, "headers");
    outcome.assert_took(0.0);
    assert!(outcome.error.unwrap().failure().message.chars().count() < 520);
    endless.assert_at_rest();

    let stalled = after_request(|mut peer| async move {
        peer.raw("HTTP/1.1 500 Oops\r\ncontent-length: 100\r\n\r\n{\"err").await;
        peer.closed().await;
    });
    let outcome = stalled.run().await;
    outcome.assert_failed(Code::UpstreamServerError, "headers");
    outcome.assert_took(2.0);
    stalled.assert_at_rest();
}

#[tokio::test(start_paused = true)]
async fn what_is_not_http() {
    let rig = after_request(|mut peer| async move {
        peer.raw("SSH-2.0-OpenSSH_9.9\r\n").await;
        peer.closed().await;
    });
    rig.run().await.assert_failed(Code::UpstreamBadResponse, "headers");

    let rig = after_request(|mut peer| async move {
        peer.respond("307 Temporary Redirect", "location: /elsewhere\r\n", "").await;
    });
    rig.run().await.assert_failed(Code::UpstreamBadResponse, "headers");

    let rig = after_request(|mut peer| async move {
        peer.raw("HTTP/1.1 200 OK\r\n").await;
        for _ in 0..10_000 {
            peer.raw("x-filler: 0123456789012345678901234567890123456789\r\n").await;
        }
        peer.closed().await;
    });
    rig.run().await.assert_failed(Code::UpstreamBadResponse, "headers");
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_does_not_read() {
    let rig = Rig::new(|_, peer| async move {
        pause(600).await;
        drop(peer);
    });
    let mut request = ask();
    request.messages =
        vec![Arc::new(json!({"type": "human", "content": "x".repeat(1 << 20), "id": "1"}))];
    let started = now();
    let error = rig.upstream.chat(rig.cx(), request).await.unwrap_err();
    assert_eq!(error.code(), Code::UpstreamSendTimeout);
    assert_eq!(now() - started, seconds(15));
}

#[tokio::test(start_paused = true)]
async fn refusals_before_the_body_is_read() {
    let rig = Rig::new(|_, mut peer| async move {
        let mut some = [0; 1000];
        peer.io.read_exact(&mut some).await.unwrap();
        peer.respond("413 Too Large", "connection: close\r\n", "").await;
        pause(600).await;
    });
    let mut request = ask();
    request.messages =
        vec![Arc::new(json!({"type": "human", "content": "x".repeat(1 << 20), "id": "1"}))];
    let error = rig.upstream.chat(rig.cx(), request).await.unwrap_err();
    assert_eq!(error.code(), Code::UpstreamContextLength);
    rig.assert_at_rest();
}

#[tokio::test(start_paused = true)]
async fn deadlines_are_exact_in_every_phase() {
    let silent = || after_request(|mut peer| async move { peer.closed().await });
    let no_token = || {
        after_request(|mut peer| async move {
            peer.head().await;
            peer.closed().await;
        })
    };
    let stalled = || after_token(|mut peer| async move { peer.closed().await });
    for (rig, phase) in [(silent(), "headers"), (no_token(), "first_token"), (stalled(), "stream")]
    {
        let outcome = rig.run_with(cx(Duration::from_millis(300))).await;
        outcome.assert_failed(Code::DeadlineExceeded, phase);
        outcome.assert_took(0.3);
        rig.assert_at_rest();
        assert_eq!(rig.open(), 0);
    }
    let outcome = silent().run_with(cx(Duration::ZERO)).await;
    outcome.assert_failed(Code::DeadlineExceeded, "queue");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_asked_is_refused_before_anything_is_sent() {
    let rig = Rig::new(|_, _| async {});
    let refusal = async |request: ChatRequest| {
        rig.upstream.chat(rig.cx(), request).await.unwrap_err().into_failure()
    };
    assert_eq!(refusal(ask_model("nobody")).await.code, Code::InvalidConfig);
    let mut request = ask();
    request.params.insert("stream".into(), false.into());
    assert_eq!(refusal(request).await.code, Code::InvalidRequest);
    let mut request = ask();
    request.messages.clear();
    let failure = refusal(request).await;
    assert_eq!(failure.code, Code::InvalidRequest);
    assert_eq!(failure.message, "there is no message to answer");
    assert_eq!(rig.dialled(), 0);
}
