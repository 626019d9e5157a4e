//! Longer stories: outages, storms, limits and crowds, seen from the provider's side.

use clearway_sim::{Flap, Options, Window};

use super::lab::*;
use super::*;

const FEW: u32 = 4;

/// A good provider of few words.
fn short() -> Options {
    Options { tokens: Some(FEW), ..Options::default() }
}

/// Calls at a steady pace for a while; all of them have ended afterwards, in the order of their
/// start.
async fn traffic(lab: &Arc<Lab>, per_second: u64, seconds: u64, budget: Duration) -> Vec<Call> {
    let mut calls = JoinSet::new();
    let mut tick = tokio::time::interval(Duration::from_micros(1_000_000 / per_second));
    for number in 0..per_second * seconds {
        tick.tick().await;
        let lab = lab.clone();
        calls.spawn(async move { (number, lab.call_with(cx(budget), ask(), &[]).await) });
    }
    let mut ended = calls.join_all().await;
    ended.sort_unstable_by_key(|(number, _)| *number);
    ended.into_iter().map(|(_, call)| call).collect()
}

fn outage(start: u64, end: u64, fault: &str) -> Options {
    let seconds = Duration::from_secs;
    Options {
        outages: vec![Window { start: seconds(start), end: seconds(end) }],
        outage_fault: fault.parse().unwrap(),
        ..short()
    }
}

/// How often the breaker of `a` went from one state to another.
fn transitions(lab: &Lab) -> Vec<(&'static str, &'static str)> {
    let view = lab.upstream.provider_views().remove(0);
    let model = view.models.into_iter().next().unwrap().breaker.history;
    let both = view.breaker.history.into_iter().chain(model);
    both.map(|it| (it.from, it.to)).collect()
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_a_minute() {
    for fault in ["unavailable", "server_error", "reset", "html_200"] {
        let lab = Arc::new(Lab::new([outage(10, 70, fault), short()], |_| {}));
        let began = now();
        let calls = traffic(&lab, 20, 120, Duration::from_secs(30)).await;
        // Nobody noticed anything.
        for call in &calls {
            call.assert_says(FEW);
            assert!(call.took < Duration::from_secs(3), "{fault}: {}", call.line());
        }
        // Five opened the breaker, then one at a time asked whether it is over.
        let windows = transitions(&lab).iter().filter(|(_, to)| *to == "half_open").count();
        let failed = calls.iter().flat_map(|call| &call.rows).filter(|row| !row.is_ok()).count();
        assert!(failed <= 5 + windows, "{fault}: {failed} with {windows} probes");
        // A connection from before the outage may turn out to be dead.
        assert!(lab.sims[0].stats().outages <= failed as u64 + 1, "{fault}");
        // And back within half a minute.
        let paced = Duration::from_millis(50);
        let back = calls
            .iter()
            .enumerate()
            .map(|(number, call)| (paced * number as u32, call))
            .find(|(at, call)| *at >= Duration::from_secs(70) && call.route == "a/m-a")
            .map(|(at, _)| at);
        let back = back.expect("the first provider is in use again");
        assert!(back <= Duration::from_secs(100), "{fault}: back after {back:?}");
        assert!(calls.last().is_some_and(|call| call.trail() == "a ok"), "{fault}");
        assert!(now() - began < Duration::from_secs(125));
        lab.assert_at_rest().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_without_a_fallback_is_no_storm() {
    for fault in ["unavailable", "server_error", "reset", "no_answer"] {
        let lab = Arc::new(Lab::new([outage(10, 70, fault)], |_| {}));
        let calls = traffic(&lab, 20, 120, Duration::from_secs(5)).await;
        let seen = lab.requests(0);
        let most = calls.len() as u64 * 12 / 10 + 120;
        assert!(seen <= most, "{fault}: {seen} requests for {} calls", calls.len());
        let failed = calls.iter().filter(|call| call.error.is_some());
        for call in failed {
            assert!(call.took <= Duration::from_millis(5250), "{fault}: {}", call.line());
            assert!(call.error.as_ref().unwrap().retryable, "{fault}: {}", call.line());
        }
        assert!(calls[..190].iter().all(|call| call.error.is_none()), "{fault}: before");
        let late = &calls[calls.len() - 400..];
        assert!(late.iter().all(|call| call.error.is_none()), "{fault}: after");
        lab.assert_at_rest().await;
    }
}

#[tokio::test(start_paused = true)]
async fn retries_are_a_share_of_the_traffic() {
    let failing =
        Options { fault_rate: 0.4, fault: Some("server_error".parse().unwrap()), ..short() };
    let lab = Arc::new(Lab::new([failing], |_| {}));
    let calls = traffic(&lab, 20, 60, Duration::from_secs(30)).await;
    let seen = lab.requests(0);
    assert!(seen <= calls.len() as u64 * 12 / 10 + 60, "{seen} requests");
    lab.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_comes_and_goes() {
    let seconds = Duration::from_secs;
    let flapping = Options { flap: Some(Flap { up: seconds(2), down: seconds(2) }), ..short() };
    let lab = Arc::new(Lab::new([flapping, short()], |_| {}));
    let calls = traffic(&lab, 20, 300, seconds(30)).await;
    for call in &calls {
        call.assert_says(FEW);
        // Away from it once is away for good.
        assert!(
            ["a ok", "b ok", "a upstream.overloaded, b ok"].contains(&call.trail().as_str()),
            "{}",
            call.trail()
        );
    }
    let stats = lab.sims[0].stats();
    let attempts: usize = calls.iter().map(|call| call.rows.len()).sum();
    assert!(attempts <= calls.len() * 12 / 10, "{attempts}");
    // It opens rarely, and few calls meet it down.
    assert!(stats.outages <= 150, "{}", stats.outages);
    lab.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_leaves_or_is_refused_says_nothing() {
    let lab =
        Lab::new([Options { fault: Some("unavailable".parse().unwrap()), ..short() }], |config| {
            config.providers[0].retry.attempts = 1
        });
    for _ in 0..5 {
        lab.call().await;
    }
    let state = || lab.upstream.provider_views()[0].models[0].breaker.clone();
    assert_eq!(state().state, "open");
    tokio::time::sleep(Duration::from_secs(13)).await;
    // The probe leaves.
    lab.sims[0].change(|control| control.fault = Some("no_answer".parse().unwrap()));
    {
        let mut probe = std::pin::pin!(lab.call());
        tokio::select! {
            _ = probe.as_mut() => panic!("nobody answers"),
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
        assert_eq!((state().state, state().next_probe_ms), ("half_open", None));
    }
    assert_eq!((state().state, state().next_probe_ms), ("half_open", Some(0)), "the next may");
    // The next is refused by a rate limit: not before that is over, but not open again either.
    lab.sims[0].change(|control| control.fault = Some("retry_after:7".parse().unwrap()));
    assert_eq!(lab.call().await.code(), Some(Code::UpstreamRateLimited));
    assert_eq!((state().state, state().next_probe_ms), ("half_open", Some(7000)));
    assert_eq!(lab.requests(0), 7);
    // And two that succeed close it.
    lab.sims[0].change(|control| control.fault = None);
    lab.call().await.assert_says(FEW);
    assert_eq!(state().state, "half_open");
    lab.call().await.assert_says(FEW);
    assert_eq!(state().state, "closed");
    lab.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_is_waited_for_half_as_long() {
    let lab =
        Lab::new([Options { fault: Some("unavailable".parse().unwrap()), ..short() }], |config| {
            config.providers[0].retry.attempts = 1
        });
    for _ in 0..5 {
        lab.call().await;
    }
    for silence in ["no_answer", "ttft:100000"] {
        tokio::time::sleep(Duration::from_secs(30)).await;
        lab.sims[0].change(|control| control.fault = Some(silence.parse().unwrap()));
        let probe = lab.call().await;
        assert_eq!(probe.took, Duration::from_secs(15), "{silence}: {}", probe.trail());
    }
    lab.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_success_of_before_does_not_close_the_breaker() {
    let slow = Options { token_interval: Duration::from_millis(100), ..short() };
    let lab = Lab::new([slow], |config| config.providers[0].retry.attempts = 1);
    let mut early = std::pin::pin!(lab.call());
    tokio::select! {
        _ = early.as_mut() => panic!("it takes six seconds"),
        () = settle() => {}
    }
    lab.sims[0].change(|control| control.fault = Some("unavailable".parse().unwrap()));
    for _ in 0..5 {
        assert_eq!(lab.call().await.code(), Some(Code::UpstreamOverloaded));
    }
    early.await.assert_says(FEW);
    let breaker = lab.upstream.provider_views()[0].models[0].breaker.clone();
    assert_eq!((breaker.state, breaker.late_results), ("open", 1));
}

#[tokio::test(start_paused = true)]
async fn a_hidden_cap_is_found() {
    let capped = Options {
        max_concurrent: Some(7),
        ttft: Duration::from_millis(200),
        token_interval: Duration::from_millis(5),
        ..short()
    };
    let lab = Arc::new(Lab::new([capped], |config| config.providers[0].limits.concurrent = 10));
    let mut workers = JoinSet::new();
    let began = now();
    for _ in 0..20 {
        let lab = lab.clone();
        workers.spawn(async move {
            let (mut limits, mut good, mut all) = (Vec::new(), 0, 0);
            while now() - began < Duration::from_secs(300) {
                let call = lab.call().await;
                if now() - began > Duration::from_secs(60) {
                    all += call.rows.len();
                    good += call.rows.iter().filter(|row| row.is_ok()).count();
                    limits.push(lab.upstream.provider_views()[0].limiter.models[0].limit);
                    assert_eq!(call.error, None);
                }
            }
            (limits, good, all)
        });
    }
    let (mut limits, mut good, mut all) = (Vec::new(), 0, 0);
    for (some, ok, of) in workers.join_all().await {
        limits.extend(some);
        good += ok;
        all += of;
    }
    assert!(good * 1000 >= all * 990, "{good} of {all}");
    let settled = limits.iter().filter(|limit| (6..=7).contains(*limit)).count();
    assert!(settled * 100 >= limits.len() * 95, "{settled} of {}", limits.len());
    lab.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_served_in_time_or_refused_at_once() {
    let half_second = Options { ttft: Duration::from_millis(500), ..short() };
    let limits = |config: &mut Config| {
        config.providers[0].limits.concurrent = 10;
        config.providers[0].limits.queue = Some(1000);
    };
    let lab = Arc::new(Lab::new([half_second], limits));
    // So that it is known how long one takes.
    for _ in 0..20 {
        lab.call().await.assert_says(FEW);
    }
    let warm = lab.requests(0);
    let began = now();
    let mut calls = JoinSet::new();
    for _ in 0..1000 {
        let lab = lab.clone();
        calls.spawn(async move { lab.call_with(cx(Duration::from_secs(5)), ask(), &[]).await });
    }
    let (mut served, mut shed) = (0, 0);
    for call in calls.join_all().await {
        match call.code() {
            None => served += 1,
            Some(Code::UpstreamShedDeadline | Code::UpstreamShedQueueFull) => {
                assert!(call.took <= Duration::from_millis(50), "{}", call.line());
                assert!(call.error.unwrap().retry_after.is_some());
                shed += 1;
            }
            Some(_) => panic!("{}", call.line()),
        }
    }
    assert!(now() - began <= Duration::from_secs(5));
    assert_eq!(lab.requests(0) - warm, served, "nothing was sent in vain");
    assert!((55..=100).contains(&served), "{served} served, {shed} shed");
    lab.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn requests_per_minute_are_never_exceeded() {
    let strict = Options { rpm: Some(70), ..short() };
    let limits = |config: &mut Config| {
        config.providers[0].limits.per_minute = Some(60);
        config.providers[0].limits.queue = Some(300);
        config.providers[0].timeouts.queue = Duration::from_secs(600);
    };
    let lab = Arc::new(Lab::new([strict], limits));
    let began = now();
    let mut calls = JoinSet::new();
    for number in 0..300_u64 {
        let lab = lab.clone();
        calls.spawn(async move {
            tokio::time::sleep(Duration::from_millis(number * 33)).await;
            let call = lab.call_with(cx(Duration::from_secs(600)), ask(), &[]).await;
            (number, now() - began, call)
        });
    }
    let mut ended = calls.join_all().await;
    assert!(ended.iter().all(|(_, _, call)| call.error.is_none()));
    ended.sort_by_key(|(_, at, _)| *at);
    let numbers: Vec<_> = ended.iter().map(|(number, ..)| *number).collect();
    assert!(numbers.is_sorted(), "first come, first served");
    let times: Vec<_> = ended.iter().map(|(_, at, _)| at.as_secs_f64()).collect();
    for (from, start) in times.iter().enumerate() {
        for (to, end) in times.iter().enumerate().skip(from) {
            let most = 10.0 + (end - start) + 0.1;
            assert!(
                ((to - from + 1) as f64) <= most.ceil(),
                "{} in {} s",
                to - from + 1,
                end - start
            );
        }
    }
    assert!(lab.sims[0].stats().refused_by.values().all(|count| *count == 0));
    lab.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn tokens_per_minute_are_never_exceeded_and_a_huge_one_gets_its_turn() {
    let strict = Options { tpm: Some(60_000), ..short() };
    let limits = |config: &mut Config| {
        config.providers[0].limits.tokens_per_minute = Some(50_000);
        config.providers[0].limits.queue = Some(300);
        config.providers[0].timeouts.queue = Duration::from_secs(3000);
    };
    let lab = Arc::new(Lab::new([strict], limits));
    let mut calls = JoinSet::new();
    for number in 0..50_usize {
        let lab = lab.clone();
        calls.spawn(async move {
            let mut ask = ask();
            // The eleventh is larger than a minute's worth.
            let words = if number == 10 { 55_000 } else { 5_000 };
            let content = "word ".repeat(words);
            ask.messages = vec![Arc::new(json!({"type": "human", "id": "1", "content": content}))];
            let call = lab.call_with(cx(Duration::from_secs(3000)), ask, &[]).await;
            (number, call)
        });
        settle().await;
    }
    for (number, call) in calls.join_all().await {
        assert_eq!(call.error, None, "{number}: {}", call.line());
        assert_eq!(call.trail(), "a ok", "{number}");
    }
    assert!(lab.sims[0].stats().refused_by.values().all(|count| *count == 0));
    lab.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn a_crowd_is_served_together_where_the_limit_allows() {
    for callers in [5, 50, 500] {
        let second = Options { ttft: Duration::from_secs(1), ..short() };
        let lab = Arc::new(Lab::new([second], |config| {
            config.providers[0].limits.concurrent = 500;
        }));
        let mut calls = JoinSet::new();
        for _ in 0..callers {
            let lab = lab.clone();
            calls.spawn(async move { lab.call().await });
        }
        for call in calls.join_all().await {
            call.assert_says(FEW);
            assert!(call.took <= Duration::from_millis(1500), "{callers}: {:?}", call.took);
        }
        assert_eq!(lab.sims[0].stats().peak_in_flight, callers);
        lab.assert_at_rest().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_calls_that_time_out_leave_nothing() {
    for fault in ["no_answer", "stall", "drip_headers", "stalled_error", "ttft", "rate_limit"] {
        let lab = Arc::new(Lab::faulty(&[fault], |_| {}));
        let mut calls = JoinSet::new();
        for number in 0..1000_u64 {
            let lab = lab.clone();
            calls.spawn(async move {
                let budget = Duration::from_millis(2000 + number % 500);
                (budget, lab.call_with(cx(budget), ask(), &[]).await)
            });
        }
        for (budget, call) in calls.join_all().await {
            assert!(call.error.is_some(), "{fault}");
            assert!(call.took <= budget + Duration::from_millis(250), "{fault}: {}", call.line());
        }
        lab.assert_at_rest().await;
        lab.upstream.expire_idle(now() + Duration::from_secs(60));
        settle().await;
        assert_eq!(lab.sims[0].stats().connections_open, 0, "{fault}");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_begins_after_a_call_was_left() {
    let slow = Options {
        ttft: Duration::from_millis(700),
        token_interval: Duration::from_millis(20),
        fault_rate: 0.5,
        fault: Some("server_error".parse().unwrap()),
        ..short()
    };
    let limits = |config: &mut Config| {
        config.providers[0].limits.concurrent = 1;
        config.models[0].commit = Commit::Restart;
    };
    let stalling = Options { fault: Some("stall".parse().unwrap()), ..short() };
    let lab = Arc::new(Lab::new([slow, stalling], limits));
    // Something to wait for, now and then.
    let mut phases = std::collections::BTreeSet::new();
    for number in 0..200_u64 {
        let holder = (number % 4 == 0)
            .then(|| lab.upstream.chat(cx(Duration::from_secs(60)), ask_model("m")));
        let mut holder = std::pin::pin!(async {
            if let Some(holder) = holder {
                let _held = holder.await;
                std::future::pending::<()>().await;
            }
            std::future::pending::<()>().await;
        });
        let watched = cx(Duration::from_secs(60));
        tokio::select! {
            biased;
            () = holder.as_mut() => {}
            _ = lab.call_with(watched.clone(), ask(), &[]) => {}
            () = tokio::time::sleep(Duration::from_millis(number * 37 % 3000)) => {
                phases.insert(format!("{:?}", waits_for(&watched, now())));
            }
        }
        assert!(!watched.probe.is_connected());
    }
    settle().await;
    let count = || -> Vec<_> {
        let dialled = lab.lines.iter().map(|line| line.dialled.load(Ordering::Relaxed) as u64);
        dialled.chain((0..2).map(|index| lab.requests(index))).collect()
    };
    let after = count();
    lab.assert_at_rest().await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(count(), after, "nobody works for those who left");
    assert!(phases.len() >= 4, "{phases:?}");
}

#[tokio::test(start_paused = true)]
async fn the_probe_is_made_by_the_least_urgent_call_that_waits() {
    let down = Options { fault: Some("unavailable".parse().unwrap()), ..short() };
    let lab = Lab::new([down], |config| config.providers[0].retry.attempts = 1);
    for _ in 0..5 {
        lab.call().await;
    }
    lab.sims[0].change(|control| {
        control.fault = None;
        control.ttft = Duration::from_secs(1);
    });
    let call = |class| lab.call_with(CallCx { class, ..cx(Duration::from_secs(60)) }, ask(), &[]);
    let first = async {
        // It has waited for longer.
        let call = call(Class::Interactive).await;
        (call, now())
    };
    let second = async {
        settle().await;
        let call = call(Class::Bulk).await;
        (call, now())
    };
    let ((urgent, urgent_at), (bulk, bulk_at)) = tokio::join!(first, second);
    urgent.assert_says(FEW);
    bulk.assert_says(FEW);
    assert!(bulk_at < urgent_at, "the person waits for what the probe says");
    lab.assert_at_rest().await;
}
