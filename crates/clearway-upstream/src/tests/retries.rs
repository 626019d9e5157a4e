//! Which faults are asked again, how often and when; one provider, whose faults change or stay.

use std::fmt::Write as _;

use clearway_sim::{Fault, Group, KeyRule, KeyState};
use expect_test::expect;

use super::lab::*;
use super::*;

/// All faults that a chat can meet.
fn chat_faults() -> impl Iterator<Item = String> {
    let chat = Fault::ALL.into_iter().filter(|fault| fault.about().group != Group::Embedding);
    chat.map(|fault| fault.to_string())
}

/// Plays every fault in a laboratory of its own and writes down what came of it.
async fn table(play: impl AsyncFn(&str) -> (Lab, Call)) -> String {
    let mut table = String::new();
    for fault in chat_faults() {
        let (lab, call) = play(&fault).await;
        assert!(call.took <= Duration::from_millis(120_250), "{fault} took {:?}", call.took);
        assert!(call.rows.len() <= 3, "{fault}: {}", call.trail());
        if call.error.is_none() && call.tools == 0 {
            assert_eq!(call.text.split_whitespace().count(), TOKENS as usize, "{fault}");
        }
        let errors = call.error.iter().flat_map(|error| error.detail["attempts"].as_array());
        for attempts in errors {
            assert_eq!(attempts.len(), call.rows.len(), "{fault}: all attempts are told");
        }
        let numbers: Vec<u32> = call.rows.iter().map(|row| row.number).collect();
        assert_eq!(numbers, (1..=call.rows.len() as u32).collect::<Vec<_>>(), "{fault}");
        lab.assert_at_rest().await;
        writeln!(table, "{fault}: {}", call.line()).unwrap();
    }
    table
}

#[tokio::test(start_paused = true)]
async fn faults_that_happen_once() {
    let table = table(async |fault| {
        let lab = Lab::faulty(&[fault], |_| {});
        let call = lab.call_with(cx(Duration::from_secs(120)), ask(), &[""]).await;
        (lab, call)
    });
    expect![[r#"
        rate_limit_once: 60 tokens; 2.0 s: a upstream.rate_limited, a ok
        rate_limit: 60 tokens; 1.0 s: a upstream.rate_limited, a ok
        retry_after: upstream.rate_limited (after 3600s); 0.0 s: a upstream.rate_limited
        retry_after_date: 60 tokens; 2.0 s: a upstream.rate_limited, a ok
        retry_after_ms: 60 tokens; 1.5 s: a upstream.rate_limited, a ok
        retry_after_text: 60 tokens; 1.7 s: a upstream.rate_limited, a ok
        retry_after_negative: 60 tokens; 1.0 s: a upstream.rate_limited, a ok
        retry_after_nan: 60 tokens; 1.0 s: a upstream.rate_limited, a ok
        retry_after_huge: upstream.rate_limited (after 3600s); 0.0 s: a upstream.rate_limited
        no_retry: upstream.server_error; 0.0 s: a upstream.server_error
        status: 60 tokens; 0.4 s: a upstream.server_error, a ok
        insufficient_quota: upstream.quota_exhausted; 0.0 s: a upstream.quota_exhausted
        credit_balance: upstream.quota_exhausted; 0.0 s: a upstream.quota_exhausted
        unauthorized: upstream.credentials_exhausted; 0.0 s: a upstream.credentials_exhausted
        forbidden: upstream.forbidden; 0.0 s: a upstream.forbidden
        model_not_found: upstream.model_unavailable; 0.0 s: a upstream.model_unavailable
        request_timeout: 60 tokens; 0.4 s: a upstream.timeout, a ok
        conflict: 60 tokens; 0.4 s: a upstream.conflict, a ok
        context_length: upstream.context_length; 0.0 s: a upstream.context_length
        content_filter: upstream.content_policy; 0.0 s: a upstream.content_policy
        reject_prefill: 60 tokens; 0.0 s: a ok
        server_error_once: 60 tokens; 0.4 s: a upstream.server_error, a ok
        server_error: 60 tokens; 0.4 s: a upstream.server_error, a ok
        unavailable: 60 tokens; 0.4 s: a upstream.overloaded, a ok
        overloaded: 60 tokens; 0.4 s: a upstream.overloaded, a ok
        flap: 60 tokens; 0.0 s: a ok
        stalled_error: 60 tokens; 2.4 s: a upstream.server_error, a ok
        endless_error: 60 tokens; 0.4 s: a upstream.server_error, a ok
        reset: 60 tokens; 0.2 s: a upstream.connect_failed, a ok
        reset_once: 60 tokens; 0.2 s: a upstream.connect_failed, a ok
        reset_reused: 60 tokens; 0.0 s: a ok
        idle_close: 60 tokens; 0.0 s: a ok
        close_after_reply: 60 tokens; 0.0 s: a ok
        no_answer: 60 tokens; 30.4 s: a upstream.headers_timeout, a ok
        no_read: 60 tokens; 30.4 s: a upstream.headers_timeout, a ok
        slow_headers: 60 tokens; 20.0 s: a ok
        slow_headers_once: 60 tokens; 20.0 s: a ok
        drip_headers: 60 tokens; 30.4 s: a upstream.headers_timeout, a ok
        ttft: 60 tokens; 20.0 s: a ok
        stall: upstream.stream_idle; 20.0 s: a upstream.stream_idle
        stall_keepalive: upstream.stream_stalled; 45.0 s: a upstream.stream_stalled
        reasoning: 60 tokens; 30.4 s: a upstream.first_token_timeout, a ok
        reasoning_deltas: 60 tokens; 60.0 s: a ok
        drip: deadline_exceeded; 120.0 s: a deadline_exceeded
        error_after_role: 60 tokens; 0.9 s: a upstream.server_error, a ok
        error_event: upstream.server_error; 0.0 s: a upstream.server_error
        overloaded_event: 60 tokens; 0.4 s: a upstream.overloaded, a ok
        cut_rst: upstream.stream_truncated; 0.0 s: a upstream.stream_truncated
        cut_fin: upstream.stream_truncated; 0.0 s: a upstream.stream_truncated
        cut_chunk: upstream.stream_truncated; 0.0 s: a upstream.stream_truncated
        cut_end: upstream.stream_truncated; 0.0 s: a upstream.stream_truncated
        tool_call_cut: upstream.stream_truncated; 0.0 s: a upstream.stream_truncated
        no_done: 60 tokens; 0.0 s: a ok
        done_linger: 60 tokens; 0.0 s: a ok
        finish_linger: 60 tokens; 2.0 s: a ok
        no_usage: 60 tokens; 0.0 s: a ok
        bad_json: upstream.stream_malformed; 0.0 s: a upstream.stream_malformed
        split_utf8: 60 tokens; 0.0 s: a ok
        crlf: 60 tokens; 0.0 s: a ok
        cr: 60 tokens; 0.0 s: a ok
        lf: 60 tokens; 0.0 s: a ok
        mixed_eol: 60 tokens; 0.0 s: a ok
        one_byte: 60 tokens; 0.0 s: a ok
        multi_line: 60 tokens; 0.0 s: a ok
        bom: 60 tokens; 0.0 s: a ok
        error_200: 60 tokens; 0.4 s: a upstream.server_error, a ok
        html_200: 60 tokens; 0.4 s: a upstream.bad_response, a ok
        empty_200: 60 tokens; 0.4 s: a upstream.empty_response, a ok
        empty_choices: 60 tokens; 0.4 s: a upstream.empty_response, a ok
        wrong_type: 60 tokens; 0.4 s: a upstream.bad_response, a ok
        giant_event: 60 tokens; 0.4 s: a upstream.stream_too_large, a ok
        endless_line: 60 tokens; 0.4 s: a upstream.stream_too_large, a ok
    "#]]
    .assert_eq(&table.await);
}

#[tokio::test(start_paused = true)]
async fn faults_that_stay() {
    let table = table(async |fault| {
        let lab = Lab::faulty(&[fault], |_| {});
        let call = lab.call().await;
        (lab, call)
    });
    expect![[r#"
        rate_limit_once: 60 tokens; 2.0 s: a upstream.rate_limited, a ok
        rate_limit: upstream.rate_limited; 2.0 s: a upstream.rate_limited, a upstream.rate_limited, a upstream.rate_limited
        retry_after: upstream.rate_limited (after 3600s); 0.0 s: a upstream.rate_limited
        retry_after_date: upstream.rate_limited (after 2s); 4.0 s: a upstream.rate_limited, a upstream.rate_limited, a upstream.rate_limited
        retry_after_ms: upstream.rate_limited (after 1.5s); 3.0 s: a upstream.rate_limited, a upstream.rate_limited, a upstream.rate_limited
        retry_after_text: upstream.rate_limited (after 1.7s); 3.4 s: a upstream.rate_limited, a upstream.rate_limited, a upstream.rate_limited
        retry_after_negative: upstream.rate_limited; 2.0 s: a upstream.rate_limited, a upstream.rate_limited, a upstream.rate_limited
        retry_after_nan: upstream.rate_limited; 2.0 s: a upstream.rate_limited, a upstream.rate_limited, a upstream.rate_limited
        retry_after_huge: upstream.rate_limited (after 3600s); 0.0 s: a upstream.rate_limited
        no_retry: upstream.server_error; 0.0 s: a upstream.server_error
        status: upstream.server_error; 0.4 s: a upstream.server_error, a upstream.server_error
        insufficient_quota: upstream.quota_exhausted; 0.0 s: a upstream.quota_exhausted
        credit_balance: upstream.quota_exhausted; 0.0 s: a upstream.quota_exhausted
        unauthorized: upstream.credentials_exhausted; 0.0 s: a upstream.credentials_exhausted
        forbidden: upstream.forbidden; 0.0 s: a upstream.forbidden
        model_not_found: upstream.model_unavailable; 0.0 s: a upstream.model_unavailable
        request_timeout: upstream.timeout; 1.2 s: a upstream.timeout, a upstream.timeout, a upstream.timeout
        conflict: upstream.conflict; 0.4 s: a upstream.conflict, a upstream.conflict
        context_length: upstream.context_length; 0.0 s: a upstream.context_length
        content_filter: upstream.content_policy; 0.0 s: a upstream.content_policy
        reject_prefill: 60 tokens; 0.0 s: a ok
        server_error_once: 60 tokens; 0.4 s: a upstream.server_error, a ok
        server_error: upstream.server_error; 0.4 s: a upstream.server_error, a upstream.server_error
        unavailable: upstream.overloaded; 1.2 s: a upstream.overloaded, a upstream.overloaded, a upstream.overloaded
        overloaded: upstream.overloaded; 1.2 s: a upstream.overloaded, a upstream.overloaded, a upstream.overloaded
        flap: 60 tokens; 0.0 s: a ok
        stalled_error: upstream.server_error; 4.4 s: a upstream.server_error, a upstream.server_error
        endless_error: upstream.server_error; 0.4 s: a upstream.server_error, a upstream.server_error
        reset: upstream.connect_failed; 0.2 s: a upstream.connect_failed, a upstream.connect_failed
        reset_once: 60 tokens; 0.2 s: a upstream.connect_failed, a ok
        reset_reused: 60 tokens; 0.0 s: a ok
        idle_close: 60 tokens; 0.0 s: a ok
        close_after_reply: 60 tokens; 0.0 s: a ok
        no_answer: upstream.headers_timeout; 91.2 s: a upstream.headers_timeout, a upstream.headers_timeout, a upstream.headers_timeout
        no_read: upstream.headers_timeout; 91.2 s: a upstream.headers_timeout, a upstream.headers_timeout, a upstream.headers_timeout
        slow_headers: 60 tokens; 20.0 s: a ok
        slow_headers_once: 60 tokens; 20.0 s: a ok
        drip_headers: upstream.headers_timeout; 91.2 s: a upstream.headers_timeout, a upstream.headers_timeout, a upstream.headers_timeout
        ttft: 60 tokens; 20.0 s: a ok
        stall: upstream.stream_idle; 20.0 s: a upstream.stream_idle
        stall_keepalive: upstream.stream_stalled; 45.0 s: a upstream.stream_stalled
        reasoning: upstream.first_token_timeout; 91.2 s: a upstream.first_token_timeout, a upstream.first_token_timeout, a upstream.first_token_timeout
        reasoning_deltas: 60 tokens; 60.0 s: a ok
        drip: deadline_exceeded; 120.0 s: a deadline_exceeded
        error_after_role: upstream.server_error; 1.4 s: a upstream.server_error, a upstream.server_error
        error_event: upstream.server_error; 0.0 s: a upstream.server_error
        overloaded_event: upstream.overloaded; 1.2 s: a upstream.overloaded, a upstream.overloaded, a upstream.overloaded
        cut_rst: upstream.stream_truncated; 0.0 s: a upstream.stream_truncated
        cut_fin: upstream.stream_truncated; 0.0 s: a upstream.stream_truncated
        cut_chunk: upstream.stream_truncated; 0.0 s: a upstream.stream_truncated
        cut_end: upstream.stream_truncated; 0.0 s: a upstream.stream_truncated
        tool_call_cut: upstream.stream_truncated; 0.0 s: a upstream.stream_truncated
        no_done: 60 tokens; 0.0 s: a ok
        done_linger: 60 tokens; 0.0 s: a ok
        finish_linger: 60 tokens; 2.0 s: a ok
        no_usage: 60 tokens; 0.0 s: a ok
        bad_json: upstream.stream_malformed; 0.0 s: a upstream.stream_malformed
        split_utf8: 60 tokens; 0.0 s: a ok
        crlf: 60 tokens; 0.0 s: a ok
        cr: 60 tokens; 0.0 s: a ok
        lf: 60 tokens; 0.0 s: a ok
        mixed_eol: 60 tokens; 0.0 s: a ok
        one_byte: 60 tokens; 0.0 s: a ok
        multi_line: 60 tokens; 0.0 s: a ok
        bom: 60 tokens; 0.0 s: a ok
        error_200: upstream.server_error; 0.4 s: a upstream.server_error, a upstream.server_error
        html_200: upstream.bad_response; 0.4 s: a upstream.bad_response, a upstream.bad_response
        empty_200: upstream.empty_response; 0.4 s: a upstream.empty_response, a upstream.empty_response
        empty_choices: upstream.empty_response; 0.4 s: a upstream.empty_response, a upstream.empty_response
        wrong_type: upstream.bad_response; 0.4 s: a upstream.bad_response, a upstream.bad_response
        giant_event: upstream.stream_too_large; 0.4 s: a upstream.stream_too_large, a upstream.stream_too_large
        endless_line: upstream.stream_too_large; 0.4 s: a upstream.stream_too_large, a upstream.stream_too_large
    "#]].assert_eq(&table.await);
}

#[tokio::test(start_paused = true)]
async fn faults_with_a_fallback() {
    let table = table(async |fault| {
        let lab = Lab::faulty(&[fault, ""], |_| {});
        let call = lab.call().await;
        (lab, call)
    });
    expect![[r#"
        rate_limit_once: 60 tokens; 2.0 s: a upstream.rate_limited, a ok
        rate_limit: 60 tokens; 0.4 s: a upstream.rate_limited, b ok
        retry_after: 60 tokens; 0.0 s: a upstream.rate_limited, b ok
        retry_after_date: 60 tokens; 2.0 s: a upstream.rate_limited, a upstream.rate_limited, b ok
        retry_after_ms: 60 tokens; 1.5 s: a upstream.rate_limited, a upstream.rate_limited, b ok
        retry_after_text: 60 tokens; 1.7 s: a upstream.rate_limited, a upstream.rate_limited, b ok
        retry_after_negative: 60 tokens; 0.4 s: a upstream.rate_limited, b ok
        retry_after_nan: 60 tokens; 0.4 s: a upstream.rate_limited, b ok
        retry_after_huge: 60 tokens; 0.0 s: a upstream.rate_limited, b ok
        no_retry: 60 tokens; 0.0 s: a upstream.server_error, b ok
        status: 60 tokens; 0.4 s: a upstream.server_error, a upstream.server_error, b ok
        insufficient_quota: 60 tokens; 0.0 s: a upstream.quota_exhausted, b ok
        credit_balance: 60 tokens; 0.0 s: a upstream.quota_exhausted, b ok
        unauthorized: 60 tokens; 0.0 s: a upstream.credentials_exhausted, b ok
        forbidden: 60 tokens; 0.0 s: a upstream.forbidden, b ok
        model_not_found: 60 tokens; 0.0 s: a upstream.model_unavailable, b ok
        request_timeout: 60 tokens; 0.4 s: a upstream.timeout, a upstream.timeout, b ok
        conflict: upstream.conflict; 0.4 s: a upstream.conflict, a upstream.conflict
        context_length: upstream.context_length; 0.0 s: a upstream.context_length
        content_filter: upstream.content_policy; 0.0 s: a upstream.content_policy
        reject_prefill: 60 tokens; 0.0 s: a ok
        server_error_once: 60 tokens; 0.4 s: a upstream.server_error, a ok
        server_error: 60 tokens; 0.4 s: a upstream.server_error, a upstream.server_error, b ok
        unavailable: 60 tokens; 0.0 s: a upstream.overloaded, b ok
        overloaded: 60 tokens; 0.0 s: a upstream.overloaded, b ok
        flap: 60 tokens; 0.0 s: a ok
        stalled_error: 60 tokens; 4.4 s: a upstream.server_error, a upstream.server_error, b ok
        endless_error: 60 tokens; 0.4 s: a upstream.server_error, a upstream.server_error, b ok
        reset: 60 tokens; 0.2 s: a upstream.connect_failed, a upstream.connect_failed, b ok
        reset_once: 60 tokens; 0.2 s: a upstream.connect_failed, a ok
        reset_reused: 60 tokens; 0.0 s: a ok
        idle_close: 60 tokens; 0.0 s: a ok
        close_after_reply: 60 tokens; 0.0 s: a ok
        no_answer: 60 tokens; 30.0 s: a upstream.headers_timeout, b ok
        no_read: 60 tokens; 30.0 s: a upstream.headers_timeout, b ok
        slow_headers: 60 tokens; 20.0 s: a ok
        slow_headers_once: 60 tokens; 20.0 s: a ok
        drip_headers: 60 tokens; 30.0 s: a upstream.headers_timeout, b ok
        ttft: 60 tokens; 20.0 s: a ok
        stall: upstream.stream_idle; 20.0 s: a upstream.stream_idle
        stall_keepalive: upstream.stream_stalled; 45.0 s: a upstream.stream_stalled
        reasoning: 60 tokens; 30.0 s: a upstream.first_token_timeout, b ok
        reasoning_deltas: 60 tokens; 60.0 s: a ok
        drip: deadline_exceeded; 120.0 s: a deadline_exceeded
        error_after_role: 60 tokens; 1.4 s: a upstream.server_error, a upstream.server_error, b ok
        error_event: upstream.server_error; 0.0 s: a upstream.server_error
        overloaded_event: 60 tokens; 0.0 s: a upstream.overloaded, b ok
        cut_rst: upstream.stream_truncated; 0.0 s: a upstream.stream_truncated
        cut_fin: upstream.stream_truncated; 0.0 s: a upstream.stream_truncated
        cut_chunk: upstream.stream_truncated; 0.0 s: a upstream.stream_truncated
        cut_end: upstream.stream_truncated; 0.0 s: a upstream.stream_truncated
        tool_call_cut: upstream.stream_truncated; 0.0 s: a upstream.stream_truncated
        no_done: 60 tokens; 0.0 s: a ok
        done_linger: 60 tokens; 0.0 s: a ok
        finish_linger: 60 tokens; 2.0 s: a ok
        no_usage: 60 tokens; 0.0 s: a ok
        bad_json: upstream.stream_malformed; 0.0 s: a upstream.stream_malformed
        split_utf8: 60 tokens; 0.0 s: a ok
        crlf: 60 tokens; 0.0 s: a ok
        cr: 60 tokens; 0.0 s: a ok
        lf: 60 tokens; 0.0 s: a ok
        mixed_eol: 60 tokens; 0.0 s: a ok
        one_byte: 60 tokens; 0.0 s: a ok
        multi_line: 60 tokens; 0.0 s: a ok
        bom: 60 tokens; 0.0 s: a ok
        error_200: 60 tokens; 0.4 s: a upstream.server_error, a upstream.server_error, b ok
        html_200: 60 tokens; 0.4 s: a upstream.bad_response, a upstream.bad_response, b ok
        empty_200: 60 tokens; 0.4 s: a upstream.empty_response, a upstream.empty_response, b ok
        empty_choices: 60 tokens; 0.4 s: a upstream.empty_response, a upstream.empty_response, b ok
        wrong_type: 60 tokens; 0.4 s: a upstream.bad_response, a upstream.bad_response, b ok
        giant_event: 60 tokens; 0.4 s: a upstream.stream_too_large, a upstream.stream_too_large, b ok
        endless_line: 60 tokens; 0.4 s: a upstream.stream_too_large, a upstream.stream_too_large, b ok
    "#]].assert_eq(&table.await);
}

#[tokio::test(start_paused = true)]
async fn a_hint_is_waited_for_and_shown_but_never_beyond_the_deadline() {
    // Long enough for two seconds of waiting and a useful answer.
    let lab = Lab::faulty(&["rate_limit_once"], |_| {});
    let call = lab.call_with(cx(Duration::from_secs(5)), ask(), &[]).await;
    call.assert_whole();
    assert!(call.took >= Duration::from_secs(2), "{:?}", call.took);
    assert_eq!(lab.requests(0), 2);

    // Too short for that: told at once, with the time.
    let lab = Lab::faulty(&["rate_limit_once"], |_| {});
    let call = lab.call_with(cx(Duration::from_millis(3500)), ask(), &[]).await;
    let error = call.error.unwrap();
    assert_eq!(error.code, Code::UpstreamRateLimited);
    assert_eq!(error.retry_after, Some(Duration::from_secs(2)));
    assert_eq!((call.took, lab.requests(0)), (Duration::ZERO, 1));

    // An hour is never slept; the key rests for that long and nobody asks it.
    let lab = Lab::faulty(&["retry_after:3600"], |_| {});
    for _ in 0..3 {
        let call = lab.call().await;
        assert_eq!(call.code(), Some(Code::UpstreamRateLimited));
        assert!(call.error.unwrap().retry_after > Some(Duration::from_secs(3590)));
        assert!(call.took < Duration::from_millis(1), "{:?}", call.took);
    }
    assert_eq!(lab.requests(0), 1);
    let key = &lab.upstream.provider_views()[0].keys[0];
    assert_eq!((key.state, key.cooling[0].0.as_str()), ("cooling", "m-a"));
    lab.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn the_wait_for_a_retry_is_visible_and_holds_nothing() {
    let lab = Lab::faulty(&["retry_after:5"], |_| {});
    let watched = cx(Duration::from_secs(60));
    {
        let mut call = std::pin::pin!(lab.call_with(watched.clone(), ask(), &[]));
        tokio::select! {
            _ = call.as_mut() => panic!("it should wait"),
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
        assert_eq!(waits_for(&watched, now()), WaitKind::Retry);
        assert!(!watched.probe.is_connected());
        assert_eq!(lab.upstream.provider_views()[0].limiter.in_flight, 0);
    }
    // Left in the middle of it: nothing follows.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(lab.requests(0), 1);
    lab.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn keys_take_over_from_each_other() {
    let rules = [("dead", KeyState::Dead), ("limited", KeyState::Limited), ("fine", KeyState::Ok)];
    let keys = rules.map(|(key, state)| KeyRule { key: key.to_owned(), state });
    let options = clearway_sim::Options { keys: keys.to_vec(), ..options("") };
    let change = |config: &mut Config| {
        let keys = rules.map(|(key, _)| (Some(key.to_owned()), Secret::new(key)));
        config.providers[0].keys = keys.to_vec();
    };
    let lab = Lab::new([options], change);
    let call = lab.call().await;
    call.assert_whole();
    assert!(call.took < Duration::from_secs(1), "{:?}", call.took);
    let used: Vec<_> = call.rows.iter().map(|row| &*row.key).collect();
    assert_eq!(used, ["dead", "limited", "fine"]);
    let states: Vec<_> =
        lab.upstream.provider_views()[0].keys.iter().map(|key| (key.state, key.reason)).collect();
    assert_eq!(states, [("disabled", Some("auth")), ("cooling", None), ("ok", None)]);
    // From now on only the good one is asked.
    for _ in 0..5 {
        assert_eq!(lab.call().await.trail(), "a ok");
    }
    assert_eq!(lab.requests(0), 8);
    lab.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn an_account_without_credit_is_left_alone_for_ten_minutes() {
    for fault in ["insufficient_quota", "credit_balance"] {
        let lab = Lab::faulty(&[fault], |_| {});
        assert_eq!(lab.call().await.code(), Some(Code::UpstreamQuotaExhausted));
        lab.sims[0].change(|control| control.fault = None);
        let key = &lab.upstream.provider_views()[0].keys[0];
        assert_eq!((key.state, key.reason), ("disabled", Some("quota")));
        assert!(lab.call().await.error.is_some());
        assert_eq!(lab.requests(0), 1, "{fault}");
        tokio::time::sleep(Duration::from_secs(600)).await;
        lab.call().await.assert_whole();
    }
}

#[tokio::test(start_paused = true)]
async fn backoffs_of_calls_that_failed_together_are_spread() {
    let patient = |config: &mut Config| config.providers[0].breaker.failures = 100;
    let lab = Arc::new(Lab::faulty(&["server_error"], patient));
    let (mut waits, mut pauses) = (Vec::new(), JoinSet::new());
    for _ in 0..4 {
        let lab = lab.clone();
        pauses.spawn(async move { lab.call().await.took });
    }
    while let Some(took) = pauses.join_next().await {
        waits.push(took.unwrap());
    }
    waits.sort_unstable();
    waits.dedup();
    assert_eq!(waits.len(), 4, "{waits:?}");
    assert!(waits.iter().all(|wait| *wait <= Duration::from_millis(500)), "{waits:?}");
    lab.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn lines_that_lead_nowhere_end_in_five_seconds_and_open_the_breaker_of_the_endpoint() {
    for (down, code, seconds) in [
        (Down::Refused, Code::UpstreamConnectFailed, 0),
        (Down::NoSuchName, Code::UpstreamDnsFailed, 0),
        (Down::Silent(DialPhase::Dns), Code::UpstreamDnsFailed, 5),
        (Down::Silent(DialPhase::Connect), Code::UpstreamConnectTimeout, 5),
        (Down::Silent(DialPhase::Tls), Code::UpstreamConnectTimeout, 5),
    ] {
        let lab = Lab::faulty(&[""], |config| config.providers[0].retry.attempts = 1);
        lab.lines[0].set(Some(down));
        for _ in 0..5 {
            let call = lab.call().await;
            assert_eq!(call.code(), Some(code), "{down:?}");
            assert_eq!(call.took.as_secs(), seconds, "{down:?}");
        }
        let view = lab.upstream.provider_views().remove(0);
        assert_eq!((view.breaker.state, view.models[0].breaker.state), ("open", "closed"));
        let refused = lab.call_with(cx(Duration::from_secs(5)), ask(), &[]).await;
        assert_eq!(refused.code(), Some(Code::UpstreamRouteOpen));
        assert!(refused.error.unwrap().retry_after.is_some());
        assert_eq!(lab.lines[0].dialled.load(Ordering::Relaxed), 5);

        // With time enough the call waits for the probe, and says so.
        lab.lines[0].set(None);
        let watched = cx(Duration::from_secs(60));
        let mut call = std::pin::pin!(lab.call_with(watched.clone(), ask(), &[]));
        tokio::select! {
            _ = call.as_mut() => panic!("the breaker is open"),
            () = settle() => assert_eq!(waits_for(&watched, now()), WaitKind::Breaker),
        }
        call.await.assert_whole();
        lab.assert_at_rest().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_provider_is_asked_three_times_at_most_and_the_deadline_holds() {
    let lab = Lab::faulty(&["no_answer"], |_| {});
    let call = lab.call_with(cx(Duration::from_millis(300)), ask(), &[]).await;
    assert_eq!(call.code(), Some(Code::DeadlineExceeded));
    assert_eq!((call.took, call.rows.len()), (Duration::from_millis(300), 1));
    lab.assert_at_rest().await;
    assert_eq!(lab.sims[0].stats().connections_open, 0, "the provider's socket is closed");
}

#[tokio::test(start_paused = true)]
async fn connections_that_close_at_random_are_never_noticed() {
    let lab = Arc::new(Lab::faulty(&["idle_close"], |_| {}));
    let mut callers = JoinSet::new();
    for caller in 0..20_u64 {
        let lab = lab.clone();
        callers.spawn(async move {
            for number in 0..50 {
                // Now before the provider closes, now after it, now at the same time.
                tokio::time::sleep(Duration::from_millis(caller * number % 7 * 200)).await;
                lab.call().await.assert_whole();
            }
        });
    }
    while let Some(done) = callers.join_next().await {
        done.unwrap();
    }
    lab.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn a_cause_that_is_not_named_is_not_asked_again() {
    use crate::config::RetryOn;
    let none = RetryOn { timeout: false, connect: false, server: false, rate: false };
    for (fault, only) in [
        ("server_error_once", RetryOn { server: true, ..none }),
        ("rate_limit_once", RetryOn { rate: true, ..none }),
        ("request_timeout", RetryOn { timeout: true, ..none }),
        ("reset_once", RetryOn { connect: true, ..none }),
    ] {
        for (on, attempts) in [(none, 1), (only, 2)] {
            let lab = Lab::faulty(&[fault], |config| config.providers[0].retry.on = on);
            let call = lab.call_with(cx(Duration::from_secs(120)), ask(), &[""]).await;
            assert_eq!(call.rows.len(), attempts, "{fault}, {on:?}: {}", call.trail());
            lab.assert_at_rest().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_rests_is_waited_for_when_the_other_is_no_good() {
    let rules = [("limited", KeyState::Limited), ("dead", KeyState::Dead)];
    let keys = rules.map(|(key, state)| KeyRule { key: key.to_owned(), state });
    let options = clearway_sim::Options { keys: keys.to_vec(), ..options("") };
    let lab = Lab::new([options], |config| {
        let keys = rules.map(|(key, _)| (Some(key.to_owned()), Secret::new(key)));
        config.providers[0].keys = keys.to_vec();
    });
    let repaired = async {
        while lab.requests(0) < 2 {
            settle().await;
        }
        lab.sims[0].change(|control| {
            control.keys.remove("limited");
        });
    };
    let (call, ()) = tokio::join!(lab.call(), repaired);
    call.assert_whole();
    let (limited, dead) = ("a upstream.rate_limited", "a upstream.credentials_exhausted");
    assert_eq!(call.trail(), format!("{limited}, {dead}, a ok"));
    // Nor is a later call told that there is no key, while one only rests.
    lab.sims[0].change(|control| {
        control.keys.insert("limited".into(), KeyState::Limited);
    });
    let call = lab.call_with(cx(Duration::from_millis(2500)), ask(), &[]).await;
    assert_eq!(call.code(), Some(Code::UpstreamRateLimited), "{}", call.line());
    let call = lab.call_with(cx(Duration::from_millis(2100)), ask(), &[]).await;
    assert_eq!(call.code(), Some(Code::UpstreamRateLimited), "{}", call.line());
    lab.assert_at_rest().await;
}
