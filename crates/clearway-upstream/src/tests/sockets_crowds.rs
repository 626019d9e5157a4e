//! Over real sockets and in real time: outages, limits and crowds, as in `drills` but a tenth as long.
//!
//! Times here are those of a machine with other things to do, so that only what must hold on any of them
//! is asserted: counts at the provider, order, bounds, and that nothing is left.

use clearway_sim::{Flap, Options};
use futures_util::future::join_all;

use super::lab::*;
use super::*;

const FEW: u32 = 4;

fn short() -> Options {
    Options { tokens: Some(FEW), ..Options::default() }
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A breaker that asks again soon.
fn eager(config: &mut Config) {
    for provider in &mut config.providers {
        provider.breaker.recovery = millis(150);
        provider.breaker.recovery_max = millis(300);
    }
}

/// Calls at a steady pace, and `meanwhile` so often in between.
async fn traffic(lab: &Lab, pace: Duration, calls: u32, meanwhile: impl Fn(u32)) -> Vec<Call> {
    let mut tick = tokio::time::interval(pace);
    let mut started = Vec::new();
    for number in 0..calls {
        tick.tick().await;
        meanwhile(number);
        started.push(lab.call_with(cx(Duration::from_secs(10)), ask(), &[]).await);
    }
    started
}

fn failed(calls: &[Call]) -> usize {
    calls.iter().flat_map(|call| &call.rows).filter(|row| !row.is_ok()).count()
}

fn windows(lab: &Lab) -> usize {
    let view = lab.upstream.provider_views().remove(0);
    let model = view.models.into_iter().next().unwrap().breaker.history;
    view.breaker.history.iter().chain(&model).filter(|it| it.to == "half_open").count()
}

#[tokio::test]
async fn an_outage_is_noticed_by_five_attempts_and_over_soon() {
    for fault in ["unavailable", "server_error", "reset"] {
        let lab = Lab::on_sockets([short(), short()], eager).await;
        let calls = traffic(&lab, millis(10), 200, |number| match number {
            20 => lab.sims[0].change(|control| {
                control.outage_fault = fault.parse().unwrap();
                control.outage = Some(true);
            }),
            100 => lab.sims[0].change(|control| control.outage = Some(false)),
            _ => {}
        })
        .await;
        calls.iter().for_each(|call| call.assert_says(FEW));
        let (failed, windows) = (failed(&calls), windows(&lab));
        assert!(failed <= 5 + windows, "{fault}: {failed} failed with {windows} probes");
        // A connection from before may turn out to be dead.
        assert!(lab.sims[0].stats().outages <= failed as u64 + 1, "{fault}");
        assert_eq!(calls.last().unwrap().trail(), "a ok", "{fault}: it is in use again");
        lab.assert_closed(fault).await;
    }
}

#[tokio::test]
async fn a_flapping_provider_is_left_alone_ever_longer() {
    let flapping = Options { flap: Some(Flap { up: millis(200), down: millis(200) }), ..short() };
    let lab = Lab::on_sockets([flapping, short()], eager).await;
    let calls = traffic(&lab, millis(10), 250, |_| {}).await;
    for call in &calls {
        call.assert_says(FEW);
        let trail = call.trail();
        // Away from it once is away for good.
        let fine = ["a ok", "b ok", "a upstream.overloaded, b ok"].contains(&trail.as_str());
        assert!(fine, "{trail}");
    }
    let attempts: usize = calls.iter().map(|call| call.rows.len()).sum();
    assert!(attempts <= calls.len() * 12 / 10, "{attempts} for {} calls", calls.len());
    lab.assert_closed("flap").await;
}

#[tokio::test]
async fn probes_that_say_nothing_and_successes_that_come_late() {
    let slow = Options { token_interval: millis(15), tokens: Some(TOKENS), ..short() };
    let lab = Lab::on_sockets([slow], |config| {
        eager(config);
        config.providers[0].retry.attempts = 1;
        config.providers[0].timeouts.headers = Duration::from_secs(4);
        config.providers[0].timeouts.ttft = Duration::from_secs(4);
    })
    .await;
    let state = || lab.upstream.provider_views()[0].models[0].breaker.clone();
    let early = lab.call();
    let later = async {
        while lab.requests(0) == 0 {
            settle().await;
        }
        lab.sims[0].change(|control| control.fault = Some("unavailable".parse().unwrap()));
        for _ in 0..5 {
            assert_eq!(lab.call().await.code(), Some(Code::UpstreamOverloaded));
        }
        assert_eq!(state().state, "open");
        // No answer for the probe, which leaves.
        lab.sims[0].change(|control| control.fault = Some("no_answer".parse().unwrap()));
        let probe = tokio::time::timeout(millis(600), lab.call()).await;
        assert!(probe.is_err(), "{:?}", probe.map(|call| call.line()));
        assert_eq!((state().state, state().next_probe_ms), ("half_open", Some(0)));
    };
    let (early, ()) = tokio::join!(early, later);
    early.assert_whole();
    assert!(state().late_results >= 1, "the slow success of before closes nothing");
    assert_eq!(state().state, "half_open");
    // Refused by a rate limit: resting, but not open again.
    lab.sims[0].change(|control| control.fault = Some("retry_after:7".parse().unwrap()));
    assert_eq!(lab.call().await.code(), Some(Code::UpstreamRateLimited));
    let rests = state().next_probe_ms.unwrap();
    assert_eq!(state().state, "half_open");
    assert!((6000..=7000).contains(&rests), "{rests}");
    lab.assert_closed("probes").await;
}

#[tokio::test]
async fn crowds_are_served_in_order_and_the_rest_refused_with_a_time() {
    for callers in [5_usize, 50, 500] {
        let quick = Options { ttft: millis(20), ..short() };
        let lab =
            Lab::on_sockets([quick], |config| config.providers[0].limits.concurrent = 10).await;
        let order = Mutex::new(Vec::new());
        let calls = (0..callers).map(|number| {
            let (lab, order) = (&lab, &order);
            async move {
                let call = lab.call().await;
                if call.error.is_none() {
                    order.lock().unwrap().push(number);
                }
                call
            }
        });
        let calls = join_all(calls).await;
        let refused: Vec<_> = calls.iter().filter(|call| call.error.is_some()).collect();
        for call in &refused {
            assert_eq!(call.code(), Some(Code::UpstreamShedQueueFull), "{}", call.line());
            assert!(call.took < millis(250) && call.error.as_ref().unwrap().retry_after.is_some());
        }
        // Ten at once and forty that wait.
        assert_eq!(calls.len() - refused.len(), callers.min(50), "{callers}");
        assert_eq!(lab.requests(0), callers.min(50) as u64, "{callers}");
        assert!(lab.sims[0].stats().peak_in_flight <= 10);
        // In the order in which they came, as far as ten at once have one.
        let order = order.into_inner().unwrap();
        for (at, number) in order.iter().enumerate() {
            assert!(number.abs_diff(at) < 10, "{callers}: {order:?}");
        }
        lab.assert_closed("crowd").await;
    }
}

#[tokio::test]
async fn a_burst_is_served_in_time_or_refused_at_once() {
    let quick = Options { ttft: millis(100), ..short() };
    let lab = Lab::on_sockets([quick], |config| {
        config.providers[0].limits.concurrent = 10;
        config.providers[0].limits.queue = Some(1000);
        config.providers[0].timeouts.queue = Duration::from_secs(10);
    })
    .await;
    // So that it is known how long one takes.
    for _ in 0..10 {
        lab.call().await.assert_says(FEW);
    }
    let warm = lab.requests(0);
    let deadline = Duration::from_secs(3);
    let calls = (0..500).map(|_| lab.call_with(cx(deadline), ask(), &[]));
    let (mut served, mut shed) = (0, 0);
    for call in join_all(calls).await {
        assert!(call.took <= deadline + millis(250), "{}", call.line());
        match call.code() {
            None => served += 1,
            Some(Code::UpstreamShedDeadline | Code::UpstreamShedQueueFull) => {
                assert!(call.error.unwrap().retry_after.is_some());
                shed += 1;
            }
            Some(_) => panic!("{}", call.line()),
        }
    }
    assert_eq!(lab.requests(0) - warm, served, "nothing was sent in vain");
    assert!(served >= 40 && shed >= 250, "{served} served, {shed} shed");
    lab.assert_closed("burst").await;
}

#[tokio::test]
async fn rates_per_minute_are_kept() {
    // Ten a second.
    let lab = Lab::on_sockets([Options { rpm: Some(700), ..short() }], |config| {
        config.providers[0].limits.per_minute = Some(600);
        config.providers[0].limits.burst = Some(10);
        config.providers[0].timeouts.queue = Duration::from_secs(10);
    })
    .await;
    let began = now();
    let order = Mutex::new(Vec::new());
    let calls = (0..30_usize).map(|number| {
        let (lab, order) = (&lab, &order);
        async move {
            let call = lab.call().await;
            order.lock().unwrap().push((number, now() - began));
            call
        }
    });
    for call in join_all(calls).await {
        call.assert_says(FEW);
        assert_eq!(call.trail(), "a ok", "nothing is refused there");
    }
    let order = order.into_inner().unwrap();
    for (at, (number, when)) in order.iter().enumerate() {
        let earliest = millis(100) * at.saturating_sub(10) as u32;
        assert!(*when + millis(5) >= earliest, "call {at} after {when:?}");
        assert!(at < 10 || *number == at, "first come, first served: {order:?}");
    }
    lab.assert_closed("rpm").await;

    // A thousand tokens a second; each takes about 760, one more than a minute's worth.
    let tokens = Options { tpm: Some(70_000), ..short() };
    let lab = Lab::on_sockets([tokens], |config| {
        config.providers[0].limits.tokens_per_minute = Some(60_000);
        config.providers[0].timeouts.queue = Duration::from_secs(10);
    })
    .await;
    let calls = (0..40_usize).map(|number| {
        let mut ask = ask();
        let words = if number == 3 { 52_000 } else { 200 };
        let content = "word ".repeat(words);
        ask.messages = vec![Arc::new(json!({"type": "human", "id": "1", "content": content}))];
        lab.call_with(cx(Duration::from_secs(30)), ask, &[])
    });
    for call in join_all(calls).await {
        assert!(call.rows.iter().all(UsageRow::is_ok), "nothing is refused there: {}", call.line());
    }
    assert!(lab.sims[0].stats().refused_by.values().all(|count| *count == 0));
    lab.assert_closed("tpm").await;
}

#[tokio::test]
async fn a_hidden_cap_costs_nobody_an_answer() {
    let capped =
        Options { max_concurrent: Some(7), ttft: millis(15), token_interval: millis(2), ..short() };
    let lab = Lab::on_sockets([capped], |config| config.providers[0].limits.concurrent = 10).await;
    let began = now();
    let workers = (0..14).map(|_| async {
        let mut limits = Vec::new();
        while now() - began < Duration::from_secs(3) {
            let call = lab.call_with(cx(Duration::from_secs(20)), ask(), &[]).await;
            assert_eq!(call.error, None, "{}", call.trail());
            if now() - began > Duration::from_secs(1) {
                limits.push(lab.upstream.provider_views()[0].limiter.models[0].limit);
            }
        }
        limits
    });
    let limits: Vec<usize> = join_all(workers).await.into_iter().flatten().collect();
    // It halves at a refusal and goes up by one at a time.
    assert!(limits.iter().all(|limit| (3..=8).contains(limit)), "{limits:?}");
    lab.assert_closed("cap").await;
}

#[tokio::test]
async fn queries_do_not_wait_behind_bulk_work() {
    let slow = Options { ttft: millis(300), ..short() };
    let lab = Lab::on_sockets([slow], |config| {
        let mut model = ModelConfig::new("embed", "a", "text-embedding-3-small");
        model.embedding = Some(EmbeddingModel { dimensions: Some(8) });
        config.models.push(model);
        config.providers[0].limits.concurrent = 10;
        config.providers[0].timeouts = Timeouts::default();
    })
    .await;
    let request = |texts: Vec<String>, purpose| EmbedRequest {
        model: "embed".into(),
        texts: texts.into_iter().map(Arc::from).collect(),
        purpose,
        dimensions: Some(8),
    };
    let embed = async |texts, purpose| {
        let began = now();
        let call = lab.upstream.embed(cx(Duration::from_secs(20)), request(texts, purpose));
        assert!(call.await.unwrap().vectors.iter().all(Result::is_ok));
        now() - began
    };
    let over = std::sync::atomic::AtomicBool::new(false);
    let ingest = async {
        let bulk = (0..40).map(|batch| {
            let texts = (0..250).map(|number| format!("chunk {batch}.{number}")).collect();
            embed(texts, Purpose::Document)
        });
        join_all(bulk).await;
        over.store(true, Ordering::Relaxed);
    };
    let queries = async {
        let mut times = Vec::new();
        while !over.load(Ordering::Relaxed) {
            times.push(embed(vec![format!("query {}", times.len())], Purpose::Query).await);
        }
        times
    };
    let ((), mut times) = tokio::join!(ingest, queries);
    assert_eq!(lab.sims[0].stats().texts_embedded, 10_000 + times.len() as u64);
    // Slots are kept for them: never a second round behind bulk work. How near they come to an idle
    // provider's time is measured by the load rig, on a machine that has nothing else to do.
    times.sort_unstable();
    let median = times[times.len() / 2];
    assert!(median < millis(600), "{times:?}");
    lab.assert_closed("bulk").await;
}

#[tokio::test]
async fn equals_share_a_crowd() {
    let quick = |ttft| Options { ttft: millis(ttft), ..short() };
    let lab = Lab::on_sockets([quick(10), quick(10), quick(150)], |config| {
        config.models[0].fallback.clear();
        config.models[0].spread = vec!["b".into(), "c".into()];
    })
    .await;
    let workers = (0..8).map(|_| async {
        for _ in 0..25 {
            lab.call().await.assert_says(FEW);
        }
    });
    join_all(workers).await;
    let seen = [0, 1, 2].map(|index| lab.requests(index));
    assert_eq!(seen.iter().sum::<u64>(), 200);
    assert!(seen[0] >= 50 && seen[1] >= 50 && seen[2] <= 50, "{seen:?}");
    lab.assert_closed("equals").await;
}
