//! Providers and models of the configuration as the client that calls them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use clearway_core::Clock;
use clearway_engine::Tasks;
use clearway_upstream::{
    Dial, Endpoint, Limits, ModelConfig, ProviderConfig, Secret, Timeouts, Upstream,
};
use http::{HeaderName, HeaderValue};

use crate::config::{self, Config, Deadlines, Key, Model, Provider, ProviderKind, Remote};
use crate::server::StartError;
use crate::simulator::Simulator;

/// The address that the simulator is never asked for; it shows in lists of providers.
const IN_MEMORY: &str = "http://simulator/v1";

pub(crate) fn build(
    config: &Config,
    simulator: Option<&Simulator>,
    clock: &Arc<dyn Clock>,
    tasks: &Tasks,
) -> Result<Upstream, StartError> {
    let (config, dialers) = parts(config, None, simulator, clock, tasks)?;
    Ok(Upstream::new(config, dialers)?)
}

/// Puts the providers and models of a changed configuration in force; `known` is what was.
pub(crate) fn replace(
    upstream: &Upstream,
    config: &Config,
    known: &Config,
    simulator: Option<&Simulator>,
    clock: &Arc<dyn Clock>,
    tasks: &Tasks,
) -> Result<(), StartError> {
    let (config, dialers) = parts(config, Some(known), simulator, clock, tasks)?;
    Ok(upstream.replace(config, &dialers)?)
}

type Dialers = HashMap<String, Arc<dyn Dial>>;

/// The client's own configuration. A simulated provider that is `known` as it is goes on.
fn parts(
    config: &Config,
    known: Option<&Config>,
    simulator: Option<&Simulator>,
    clock: &Arc<dyn Clock>,
    tasks: &Tasks,
) -> Result<(clearway_upstream::Config, Dialers), StartError> {
    let slots = config.pools.values().fold(0_u32, |sum, pool| sum.saturating_add(pool.slots));
    let is_used = |config: &Config, name: &str| {
        config.models.values().any(|model| model.provider.as_str() == name)
    };
    let mut providers = Vec::new();
    let mut dialers = Dialers::new();
    for (name, provider) in config.providers.iter().filter(|(name, _)| is_used(config, name)) {
        let mut built = build_provider(name, provider, slots)?;
        let goes_on = known.is_some_and(|known| {
            let before = known.providers.get(name).filter(|_| is_used(known, name));
            before.is_some_and(|before| before.kind == provider.kind)
        });
        if let ProviderKind::Sim(_) = &provider.kind {
            built.dial = Some(name.clone());
        }
        if let ProviderKind::Sim(settings) = &provider.kind
            && !goes_on
        {
            let simulator =
                simulator.ok_or_else(|| StartError::NoSimulator { provider: name.clone() })?;
            let dial = simulator
                .dial(settings, tasks.clone())
                .map_err(|problem| StartError::Provider { provider: name.clone(), problem })?;
            dialers.insert(name.clone(), dial);
        }
        providers.push(built);
    }
    let models =
        config.models.iter().map(|(name, model)| build_model(name, model, config)).collect();
    let config = clearway_upstream::Config { providers, models, clock: Some(clock.clone()) };
    Ok((config, dialers))
}

fn build_provider(
    name: &str,
    provider: &Provider,
    slots: u32,
) -> Result<ProviderConfig, StartError> {
    let invalid = |problem| StartError::Provider { provider: name.to_owned(), problem };
    let usual = Limits::default();
    let (mut built, concurrent) = match &provider.kind {
        ProviderKind::Remote(remote) => {
            (build_remote(name, remote).map_err(invalid)?, usual.concurrent)
        }
        ProviderKind::Sim(_) => {
            let endpoint = Endpoint::parse(IN_MEMORY).map_err(invalid)?;
            // Nobody pays for it, so it is never what holds the pools' runs up.
            (ProviderConfig::new(name, endpoint), usual.concurrent.max(slots as usize))
        }
    };
    // Each call has a connection of its own.
    let most = provider.connections.map_or(usize::MAX, |most| most as usize);
    let limits = &provider.limits;
    let concurrent = limits.concurrent.map_or(concurrent.min(most), |calls| calls as usize);
    let idle =
        provider.keep_alive.or(provider.connections).map_or(concurrent, |idle| idle as usize);
    built.limits = Limits {
        concurrent,
        queue: limits.queue.map(|queue| queue as usize),
        per_minute: limits.per_minute,
        burst: limits.burst,
        tokens_per_minute: limits.tokens_per_minute,
        idle_connections: idle,
    };
    built.timeouts = timeouts(&provider.deadline);
    built.retry = provider.retry;
    built.breaker = provider.breaker;
    Ok(built)
}

fn build_remote(name: &str, remote: &Remote) -> Result<ProviderConfig, String> {
    let mut endpoint = Endpoint::parse(&remote.base_url)?;
    endpoint.ca_file.clone_from(&remote.ca_file);
    let key = |key: &Key| (key.name.clone(), Secret::new(key.secret.expose()));
    let header = |(name, value): &(String, config::Secret)| {
        let unfit = || format!("`{name}` cannot be sent as a header");
        let parsed = HeaderName::try_from(name).map_err(|_| unfit())?;
        let mut value = HeaderValue::try_from(value.expose()).map_err(|_| unfit())?;
        value.set_sensitive(true);
        Ok((parsed, value))
    };
    Ok(ProviderConfig {
        kind: remote.speaks,
        keys: remote.keys.iter().map(key).collect(),
        headers: remote.headers.iter().map(header).collect::<Result<_, String>>()?,
        ..ProviderConfig::new(name, endpoint)
    })
}

fn build_model(name: &str, model: &Model, config: &Config) -> ModelConfig {
    // One call's limit replaces the provider's.
    let timeouts = model.deadline.map(|deadline| {
        let of_provider = config.providers.get(&model.provider);
        let inherited = of_provider.map(|provider| provider.deadline).unwrap_or_default();
        timeouts(&Deadlines { total: Some(deadline), ..clip(inherited, deadline) })
    });
    ModelConfig {
        params: model.params.clone(),
        context_tokens: model.context_tokens,
        reasoning: model.reasoning,
        timeouts,
        embedding: model.embedding,
        fallback: model.fallback.clone(),
        spread: model.spread.clone(),
        weight: model.weight,
        affinity: model.affinity,
        commit: model.commit,
        prefill: model.prefill,
        price: model.price,
        ..ModelConfig::new(name, &model.provider, &model.model)
    }
}

/// No stage longer than the whole.
fn clip(deadlines: Deadlines, whole: Duration) -> Deadlines {
    let clip = |stage: Option<Duration>| stage.map(|stage| stage.min(whole));
    Deadlines {
        connect: clip(deadlines.connect),
        first_byte: clip(deadlines.first_byte),
        first_token: clip(deadlines.first_token),
        ..deadlines
    }
}

/// What is configured goes over the defaults; a default that no longer fits inside what is
/// configured gives way.
fn timeouts(deadline: &Deadlines) -> Timeouts {
    let mut timeouts = Timeouts { total: deadline.total, ..Timeouts::default() };
    if let Some(tokens) = deadline.between_tokens {
        (timeouts.progress, timeouts.progress_reasoning) = (tokens, tokens);
    }
    if let Some(bytes) = deadline.between_bytes {
        (timeouts.idle, timeouts.idle_output) = (bytes, bytes);
    }
    timeouts.rate_floor = deadline.rate_floor.map(|floor| floor as f64 / 1e6);
    let whole = deadline.total.unwrap_or(Duration::MAX);
    timeouts.ttft_reasoning = deadline.first_token.unwrap_or(timeouts.ttft_reasoning.min(whole));
    let least = deadline.first_byte.or(deadline.connect).unwrap_or_default();
    timeouts.ttft_reasoning = timeouts.ttft_reasoning.max(least);
    timeouts.ttft =
        deadline.first_token.unwrap_or(timeouts.ttft.max(least).min(timeouts.ttft_reasoning));
    let least = deadline.connect.unwrap_or_default();
    timeouts.headers =
        deadline.first_byte.unwrap_or(timeouts.headers.max(least).min(timeouts.ttft));
    timeouts.connect = deadline.connect.unwrap_or(timeouts.connect.min(timeouts.headers));
    timeouts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Env;

    fn built(text: &str) -> Result<Upstream, StartError> {
        let config = Config::parse("clearway.toml", text, &Env::default()).unwrap();
        let simulator = Simulator::new(|_| {
            Ok(Arc::new(|connection| Box::pin(async move { drop(connection) })))
        });
        let clock: Arc<dyn Clock> = Arc::new(clearway_store::SystemClock);
        build(&config, Some(&simulator), &clock, &Tasks::new())
    }

    #[test]
    fn whatever_stages_are_configured_the_client_takes_them() {
        let limits = ["100ms", "4s", "25s", "70s", "10m"];
        let stages = ["connect", "first_byte", "first_token", "total"];
        // Every way to set some of the stages to rising limits.
        for mask in 0..16_u32 {
            for shift in 0..2 {
                let set: Vec<_> = (0..4)
                    .filter(|stage| mask & (1 << stage) != 0)
                    .map(|stage| format!("{} = \"{}\"", stages[stage], limits[stage + shift]))
                    .collect();
                let text = format!(
                    "[providers.sim]\nkind = \"sim\"\n[providers.sim.deadline]\n{}\n",
                    set.join("\n")
                );
                if let Err(error) = built(&text) {
                    panic!("{text}\n{error}");
                }
                let model =
                    "[models]\nx = { provider = \"sim\", model = \"m\", deadline = \"3s\" }\n";
                assert!(built(&format!("{text}{model}")).is_ok(), "{text}");
            }
        }
    }

    #[test]
    fn only_providers_in_use_are_set_up() {
        let upstream = built("").unwrap();
        let views = upstream.provider_views();
        assert_eq!(views.len(), 1);
        assert_eq!((views[0].name.as_str(), views[0].limiter.cap), ("sim", 1024));
        let text = "[providers.house]\nkind = \"openai\"\nbase_url = \"http://127.0.0.1:9/v1\"\nlimits = { concurrent = 7 }\n";
        let views = built(text).unwrap().provider_views();
        assert_eq!((views.len(), views[0].name.as_str(), views[0].limiter.cap), (1, "house", 7));
    }

    #[test]
    fn limits_go_over_the_defaults() {
        let cap = |lines: &str| {
            let head =
                "[providers.house]\nbase_url = \"http://127.0.0.1:9/v1\"\nkind = \"openai\"\n";
            built(&format!("{head}{lines}")).unwrap().provider_views()[0].limiter.cap
        };
        assert_eq!(cap(""), 64);
        assert_eq!(cap("pool = { connections = 20 }"), 20, "there is no call without a connection");
        assert_eq!(cap("pool = { connections = 100 }"), 64);
        assert_eq!(cap("limits = { concurrent = 90 }\npool = { connections = 100 }"), 90);
        let few = built("[pools.chat]\nslots = 5\n").unwrap().provider_views();
        assert_eq!((few[0].name.as_str(), few[0].limiter.cap), ("sim", 64));
    }

    #[test]
    fn everything_that_is_accepted_can_be_built() {
        let text = r#"
[providers.a]
kind = "openai-responses"
headers = { x-tag = "é" }
limits = { concurrent = 1, queue = 0, per_minute = 1, burst = 1, tokens_per_minute = 1 }
retry = { attempts = 10, backoff = "60s" }
breaker = { failures = 1000, window = "1h", recovery = "1h" }
[providers.b]
kind = "anthropic"
breaker = { window = "100ms", recovery = "100ms" }
[providers.c]
kind = "ollama"
limits = { concurrent = 100_000, queue = 1_000_000, per_minute = 100_000_000, tokens_per_minute = 1_000_000_000_000 }
[models]
default = { provider = "c", model = "m" }
a = { provider = "a", model = "m", fallback = ["b", "c"], commit = "continue" }
b = { provider = "b", model = "m", fallback = ["a"], prefill = true, price = { input = 1_000_000_000, output = 0 } }
c = { provider = "c", model = "m", fallback = ["c2", "a"], deadline = "1ms" }
c2 = { provider = "c", model = "m" }
vectors = { provider = "a", model = "m", dimensions = 65_536 }
"#;
        if let Err(error) = built(text) {
            panic!("{error}");
        }
    }

    #[test]
    fn a_simulator_must_be_there() {
        let config = Config::built_in(&Env::default()).unwrap();
        let clock: Arc<dyn Clock> = Arc::new(clearway_store::SystemClock);
        let error = build(&config, None, &clock, &Tasks::new()).unwrap_err();
        assert!(error.to_string().contains("no simulator"), "{error}");
    }
}
