//! Another configuration takes over while calls are under way.

use super::lab::Lab;
use super::*;

fn at(model: &str) -> ChatRequest {
    ChatRequest { model: model.to_owned(), ..ask() }
}

/// Three providers, and the configuration that they have.
fn three(slow: Duration) -> (Lab, Config) {
    let options = |interval| clearway_sim::Options {
        ttft: Duration::ZERO,
        tokens: Some(40),
        token_interval: interval,
        ..clearway_sim::Options::default()
    };
    let mut kept = None;
    let options = [options(slow), options(Duration::ZERO), options(Duration::ZERO)];
    let lab = Lab::new(options, |config| {
        config.models[0].fallback.clear();
        config.providers[1].retry.attempts = 1;
        kept = Some(config.clone());
    });
    (lab, kept.unwrap())
}

fn breaker_of<'a>(views: &'a [ProviderView], name: &str) -> &'a str {
    views.iter().find(|view| view.name == name).unwrap().models[0].breaker.state
}

#[tokio::test(start_paused = true)]
async fn streams_finish_and_new_calls_take_what_is_in_force() {
    let (lab, mut config) = three(Duration::from_millis(100));
    let mut early = std::pin::pin!(lab.call());
    let begun = async {
        while lab.sims[0].stats().in_flight == 0 {
            settle().await;
        }
    };
    tokio::select! {
        _ = early.as_mut() => panic!("it takes four seconds"),
        () = begun => {}
    }
    lab.sims[1].change(|control| control.fault = Some("unavailable".parse().unwrap()));
    for _ in 0..5 {
        let call = lab.call_with(cx(Duration::from_secs(9)), at("b"), &[]).await;
        assert_eq!(call.code(), Some(Code::UpstreamOverloaded));
    }
    assert_eq!(breaker_of(&lab.upstream.provider_views(), "b"), "open");
    lab.call_with(cx(Duration::from_secs(9)), at("c"), &[]).await.assert_says(40);
    let before = lab.upstream.provider_views();

    // `a` is gone, its model is `c`'s now; `b` has other limits of time, and `c` stays as it is.
    config.providers.remove(0);
    config.providers[0].timeouts.connect = Duration::from_secs(4);
    config.models[0].provider = "c".to_owned();
    lab.upstream.replace(config.clone(), &HashMap::new()).unwrap();

    let late = lab.call().await;
    late.assert_says(40);
    assert_eq!(late.route, "c/m-a");
    let after = lab.upstream.provider_views();
    let names: Vec<&str> = after.iter().map(|view| view.name.as_str()).collect();
    assert_eq!(names, ["b", "c"]);
    assert_eq!(breaker_of(&after, "b"), "open", "what is known stays known");
    let (b, c) = (&after[0], &after[1]);
    assert_eq!(b.tally.attempts, before[1].tally.attempts);
    assert_eq!(c.connections.opened, before[2].connections.opened, "connections are kept");

    // What began before ends as if nothing had happened, and its provider is left alone then.
    let early = early.await;
    early.assert_says(40);
    assert_eq!(early.route, "a/m-a");
    settle().await;
    assert_eq!((lab.sims[0].stats().in_flight, lab.sims[0].stats().connections_open), (0, 0));

    // What cannot be put in force changes nothing.
    let mut broken = config.clone();
    broken.providers[0].dial = Some("nobody".to_owned());
    let error = lab.upstream.replace(broken, &HashMap::new()).unwrap_err();
    assert!(matches!(error, ConfigError::UnknownDial { .. }), "{error}");
    config.models.retain(|model| model.name != "m");
    lab.upstream.replace(config, &HashMap::new()).unwrap();
    assert_eq!(lab.call().await.code(), Some(Code::InvalidConfig));
    assert_eq!(breaker_of(&lab.upstream.provider_views(), "b"), "open");
}

#[tokio::test(start_paused = true)]
async fn what_is_known_goes_with_the_place_that_it_is_about() {
    let (lab, mut config) = three(Duration::ZERO);
    lab.sims[1].change(|control| control.fault = Some("unavailable".parse().unwrap()));
    for _ in 0..5 {
        lab.call_with(cx(Duration::from_secs(9)), at("b"), &[]).await;
    }
    // The same name at another address is somebody else.
    config.providers[1].endpoint = Endpoint::parse("http://elsewhere/v1").unwrap();
    let dialers = HashMap::from([("b".to_owned(), lab.lines[2].clone() as Arc<dyn Dial>)]);
    lab.upstream.replace(config, &dialers).unwrap();
    assert_eq!(breaker_of(&lab.upstream.provider_views(), "b"), "closed");
    lab.call_with(cx(Duration::from_secs(9)), at("b"), &[]).await.assert_says(40);
    assert_eq!(lab.requests(1), 5);
}
