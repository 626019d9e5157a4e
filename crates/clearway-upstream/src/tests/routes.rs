//! Fallbacks, and answers that are begun anew after some of them was shown.

use expect_test::expect;

use super::lab::*;
use super::*;

fn commit(mode: Commit) -> impl Fn(&mut Config) {
    move |config| {
        for model in &mut config.models {
            model.commit = mode;
            model.prefill = mode == Commit::Continue;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_breaks_after_output_by_commit_mode() {
    let mut table = String::new();
    for fault in [
        "stall",
        "stall_keepalive",
        "cut_rst",
        "cut_fin",
        "cut_chunk",
        "cut_end",
        "bad_json",
        "error_event",
        "overloaded_event",
        "drip",
    ] {
        for mode in [Commit::Fail, Commit::Restart, Commit::Continue] {
            let lab = Lab::faulty(&[fault, ""], commit(mode));
            let call = lab.call().await;
            if mode == Commit::Restart && call.error.is_none() {
                call.assert_whole();
                assert_eq!(call.route, "b/m-b");
            }
            lab.assert_at_rest().await;
            table.push_str(&format!("{fault} {mode:?}: {}\n", call.line()));
        }
    }
    expect![[r#"
        stall Fail: upstream.stream_idle; 20.0 s: a upstream.stream_idle
        stall Restart: 60 tokens after reset for upstream.stream_idle; 20.0 s: a upstream.stream_idle, b ok
        stall Continue: 79 tokens; 20.0 s: a upstream.stream_idle, b ok
        stall_keepalive Fail: upstream.stream_stalled; 45.0 s: a upstream.stream_stalled
        stall_keepalive Restart: 60 tokens after reset for upstream.stream_stalled; 45.0 s: a upstream.stream_stalled, b ok
        stall_keepalive Continue: 79 tokens; 45.0 s: a upstream.stream_stalled, b ok
        cut_rst Fail: upstream.stream_truncated; 0.0 s: a upstream.stream_truncated
        cut_rst Restart: 60 tokens after reset for upstream.stream_truncated, upstream.stream_truncated; 0.4 s: a upstream.stream_truncated, a upstream.stream_truncated, b ok
        cut_rst Continue: 98 tokens; 0.4 s: a upstream.stream_truncated, a upstream.stream_truncated, b ok
        cut_fin Fail: upstream.stream_truncated; 0.0 s: a upstream.stream_truncated
        cut_fin Restart: 60 tokens after reset for upstream.stream_truncated, upstream.stream_truncated; 0.4 s: a upstream.stream_truncated, a upstream.stream_truncated, b ok
        cut_fin Continue: 98 tokens; 0.4 s: a upstream.stream_truncated, a upstream.stream_truncated, b ok
        cut_chunk Fail: upstream.stream_truncated; 0.0 s: a upstream.stream_truncated
        cut_chunk Restart: 60 tokens after reset for upstream.stream_truncated, upstream.stream_truncated; 0.4 s: a upstream.stream_truncated, a upstream.stream_truncated, b ok
        cut_chunk Continue: 98 tokens; 0.4 s: a upstream.stream_truncated, a upstream.stream_truncated, b ok
        cut_end Fail: upstream.stream_truncated; 0.0 s: a upstream.stream_truncated
        cut_end Restart: 60 tokens after reset for upstream.stream_truncated, upstream.stream_truncated; 0.4 s: a upstream.stream_truncated, a upstream.stream_truncated, b ok
        cut_end Continue: 98 tokens; 0.4 s: a upstream.stream_truncated, a upstream.stream_truncated, b ok
        bad_json Fail: upstream.stream_malformed; 0.0 s: a upstream.stream_malformed
        bad_json Restart: 60 tokens after reset for upstream.stream_malformed, upstream.stream_malformed; 0.4 s: a upstream.stream_malformed, a upstream.stream_malformed, b ok
        bad_json Continue: 68 tokens; 0.4 s: a upstream.stream_malformed, a upstream.stream_malformed, b ok
        error_event Fail: upstream.server_error; 0.0 s: a upstream.server_error
        error_event Restart: 60 tokens after reset for upstream.server_error, upstream.server_error; 0.4 s: a upstream.server_error, a upstream.server_error, b ok
        error_event Continue: 98 tokens; 0.4 s: a upstream.server_error, a upstream.server_error, b ok
        overloaded_event Fail: 60 tokens; 0.0 s: a upstream.overloaded, b ok
        overloaded_event Restart: 60 tokens; 0.0 s: a upstream.overloaded, b ok
        overloaded_event Continue: 60 tokens; 0.0 s: a upstream.overloaded, b ok
        drip Fail: deadline_exceeded; 120.0 s: a deadline_exceeded
        drip Restart: deadline_exceeded; 120.0 s: a deadline_exceeded
        drip Continue: deadline_exceeded; 120.0 s: a deadline_exceeded
    "#]].assert_eq(&table);
}

#[tokio::test(start_paused = true)]
async fn an_answer_goes_on_where_it_broke_off() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let requests = seen.clone();
    let change = |config: &mut Config| {
        config.providers[0].retry.attempts = 3;
        commit(Commit::Continue)(config);
    };
    let rig = Rig::with(change, move |number, mut peer| {
        let requests = requests.clone();
        async move {
            let request = peer.request().await.unwrap();
            requests.lock().unwrap().push(request["messages"].clone());
            peer.head().await;
            if number == 0 {
                peer.token("one").await;
                peer.token(" two").await;
            } else {
                peer.token(" three").await;
                peer.close_answer().await;
            }
        }
    });
    rig.run().await.assert_whole();
    let seen = seen.lock().unwrap();
    let asked = json!({"role": "user", "content": "hi"});
    assert_eq!(seen[0], json!([asked]));
    assert_eq!(seen[1], json!([asked, {"role": "assistant", "content": "one two"}]));
    rig.assert_at_rest();
}

#[tokio::test(start_paused = true)]
async fn who_refuses_a_begun_answer_is_asked_from_the_start() {
    // The first breaks off, and so it is asked again with what it said; it refuses that. Nobody
    // sees the refusal.
    for faults in [["reject_prefill", ""], ["reject_prefill", "reject_prefill"]] {
        let lab = Lab::faulty(&faults, commit(Commit::Continue));
        lab.sims[0].change(|control| control.fault = Some("cut_fin".parse().unwrap()));
        let call = lab.call_with(cx(Duration::from_secs(60)), ask(), &["reject_prefill"]).await;
        call.assert_whole();
        assert_eq!(call.resets, ["upstream.stream_truncated"]);
        assert_eq!(call.trail(), "a upstream.stream_truncated, a upstream.invalid_request, a ok");
        lab.assert_at_rest().await;
    }
}

#[tokio::test(start_paused = true)]
async fn half_a_tool_call_never_reaches_its_end() {
    for (mode, ok) in [(Commit::Fail, false), (Commit::Restart, true), (Commit::Continue, true)] {
        let lab = Lab::faulty(&["tool_call_cut", ""], commit(mode));
        let mut ask = ask();
        ask.messages = vec![Arc::new(json!({
            "type": "human", "id": "1", "content": "call the tool search with {\"q\": \"x\"}"
        }))];
        let parameters = json!({"type": "object", "properties": {"q": {"type": "string"}}});
        let function = json!({"name": "search", "parameters": parameters});
        ask.params.insert("tools".into(), json!([{"type": "function", "function": function}]));
        let call = lab.call_with(cx(Duration::from_secs(60)), ask, &[]).await;
        assert_eq!(call.finish.is_some(), ok, "{}", call.line());
        assert_eq!(call.code(), (!ok).then_some(Code::UpstreamStreamTruncated), "{}", call.line());
        // What was told of the broken ones is taken back.
        assert_eq!(call.resets.is_empty(), !ok);
        lab.assert_at_rest().await;
    }
}

#[tokio::test(start_paused = true)]
async fn failed_attempts_are_visible_and_paid_for_once() {
    let price = Some(Price { input: 1_000_000, cached_input: 0, output: 1_000_000 });
    let lab = Lab::faulty(&["unavailable", ""], |config| {
        for model in &mut config.models {
            model.price = price;
        }
    });
    let call = lab.call().await;
    call.assert_whole();
    assert_eq!(
        (call.route.as_str(), call.trail().as_str()),
        ("b/m-b", "a upstream.overloaded, b ok")
    );
    let [failed, answered] = &call.rows[..] else { panic!("{}", call.trail()) };
    assert_eq!((failed.status, failed.cost_micros), (Some(503), Some(0)));
    assert_eq!((failed.usage, failed.source), (Usage::default(), UsageSource::None));
    assert_eq!((answered.number, answered.source), (2, UsageSource::Provider));
    assert_eq!(call.finish, Some(Some(answered.usage)));
    assert_eq!(u64::from(TOKENS), answered.usage.output_tokens);
    let tally = lab.upstream.provider_views()[0].tally.clone();
    assert_eq!(tally.attempts[Code::UpstreamOverloaded.as_str()], 1);
    assert_eq!((tally.output_tokens, tally.cost_micros), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_long_prompt_goes_only_to_a_model_with_more_room() {
    for (rooms, trail) in [
        ([None, None, None], "a upstream.context_length"),
        ([Some(100), Some(100), Some(50)], "a upstream.context_length"),
        ([Some(100), Some(50), Some(200)], "a upstream.context_length, c ok"),
    ] {
        let lab = Lab::faulty(&["context_length", "", ""], |config| {
            for (model, room) in config.models.iter_mut().zip(rooms) {
                model.context_tokens = room;
            }
        });
        let call = lab.call().await;
        assert_eq!(call.trail(), trail);
        assert_eq!(call.error.is_none(), trail.ends_with("ok"));
    }
}

#[tokio::test(start_paused = true)]
async fn three_providers_share_one_budget_of_attempts() {
    let lab = Lab::faulty(&["server_error", "unavailable", "server_error"], |_| {});
    let call = lab.call().await;
    let error = call.error.as_ref().unwrap();
    assert_eq!(
        call.trail(),
        "a upstream.server_error, a upstream.server_error, b upstream.overloaded"
    );
    assert_eq!((error.code, error.retryable), (Code::UpstreamOverloaded, true));
    assert_eq!(error.detail["route"], "b/m-b");
    assert_eq!(error.detail["attempts"][0]["route"], "a/m-a");
    assert_eq!(error.detail["attempts"][2]["status"], 503);
    let seen: u64 = (0..3).map(|index| lab.requests(index)).sum();
    assert_eq!(seen, 3);
}

#[tokio::test(start_paused = true)]
async fn where_all_breakers_are_open_the_call_waits_for_a_probe_or_ends_at_once() {
    let lab = Lab::faulty(&["unavailable", "unavailable"], |_| {});
    for _ in 0..6 {
        lab.call_with(cx(Duration::from_secs(4)), ask(), &[]).await;
    }
    let before = [lab.requests(0), lab.requests(1)];
    let call = lab.call_with(cx(Duration::from_secs(4)), ask(), &[]).await;
    assert_eq!(call.code(), Some(Code::UpstreamRouteOpen));
    assert!(call.error.unwrap().retry_after.is_some());
    assert_eq!((call.took, call.rows.len()), (Duration::ZERO, 0));
    assert_eq!([lab.requests(0), lab.requests(1)], before);

    for sim in &lab.sims {
        sim.change(|control| control.fault = None);
    }
    let call = lab.call().await;
    call.assert_whole();
    assert!((5..13).contains(&call.took.as_secs()), "{:?}", call.took);
    lab.assert_at_rest().await;
}

/// `a`, `b` and `c` are equals.
fn spread(config: &mut Config) {
    config.models[0].fallback.clear();
    config.models[0].spread = vec!["b".into(), "c".into()];
}

#[tokio::test(start_paused = true)]
async fn equals_share_the_calls_and_the_slow_one_gets_few() {
    let quick = || clearway_sim::Options { ttft: Duration::from_millis(100), ..options("") };
    let slow = clearway_sim::Options { ttft: Duration::from_secs(2), ..options("") };
    let lab = Arc::new(Lab::new([slow, quick(), quick()], spread));
    let mut calls = JoinSet::new();
    for number in 0..300_u64 {
        let lab = lab.clone();
        calls.spawn(async move {
            tokio::time::sleep(Duration::from_millis(number * 50)).await;
            lab.call().await
        });
    }
    for call in calls.join_all().await {
        call.assert_whole();
        assert_eq!(call.rows.len(), 1, "{}", call.trail());
    }
    let seen = [0, 1, 2].map(|index| lab.requests(index));
    assert!(seen[0] <= 15 && seen[1] >= 100 && seen[2] >= 100, "{seen:?}");
    let loads: Vec<_> =
        lab.upstream.provider_views().iter().map(|view| view.models[0].load).collect();
    assert!(loads[0].cost_ms > 4 * loads[1].cost_ms, "{loads:?}");
    assert!(loads.iter().all(|load| load.under_way == 0));
    lab.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn a_conversation_stays_where_it_was_until_that_is_too_busy() {
    let quick = || clearway_sim::Options { ttft: Duration::from_millis(100), ..options("") };
    let lab = Lab::new([quick(), quick(), quick()], |config| {
        spread(config);
        config.models[0].affinity = true;
        config.models[1].weight = 2;
    });
    let of = |number: u32| CallCx {
        conversation: Some(format!("thread {number}").into()),
        ..cx(Duration::from_secs(60))
    };
    let mut homes = Vec::new();
    for number in 0..40 {
        let mut seen: Vec<String> = Vec::new();
        for _ in 0..3 {
            seen.push(lab.call_with(of(number), ask(), &[]).await.route);
        }
        assert!(seen.iter().all(|route| *route == seen[0]), "{seen:?}");
        homes.push(seen.swap_remove(0));
    }
    let at = |route: &str| homes.iter().filter(|home| *home == route).count();
    assert!(at("b/m-b") > at("c/m-c") && at("a/m-a") > 0 && at("c/m-c") > 0, "{homes:?}");
    // Many at once of one conversation go elsewhere, too.
    let calls = (0..30).map(|_| lab.call_with(of(0), ask(), &[]));
    let routes: std::collections::BTreeSet<String> =
        futures_util::future::join_all(calls).await.into_iter().map(|call| call.route).collect();
    assert!(routes.len() > 1, "{routes:?}");
    lab.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn an_equal_that_fails_is_left_out_and_comes_back() {
    let quick =
        |fault| clearway_sim::Options { ttft: Duration::from_millis(100), ..options(fault) };
    let lab = Lab::new(["unavailable", "", ""].map(quick), spread);
    for _ in 0..60 {
        lab.call().await.assert_whole();
    }
    // Each failure makes it dearer than the others, so few calls find it out.
    assert!(lab.requests(0) <= 6, "{}", lab.requests(0));
    lab.sims[0].change(|control| control.fault = None);
    tokio::time::sleep(Duration::from_secs(90)).await;
    let before = lab.requests(0);
    for _ in 0..60 {
        lab.call().await.assert_whole();
    }
    assert!(lab.requests(0) - before >= 5, "{}", lab.requests(0) - before);
    lab.assert_at_rest().await;
}
