//! Providers and models of the configuration as the client that calls them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use clearway_core::Clock;
use clearway_engine::Tasks;
use clearway_upstream::{
    Dial, Endpoint, Limits, ModelConfig, ProviderConfig, Secret, Timeouts, Upstream,
};

use crate::config::{Config, Deadlines, Model, Provider, ProviderKind};
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
    let slots = config.pools.values().fold(0_u32, |sum, pool| sum.saturating_add(pool.slots));
    let used: Vec<&str> = config.models.values().map(|model| model.provider.as_str()).collect();
    let mut providers = Vec::new();
    let mut dialers: HashMap<String, Arc<dyn Dial>> = HashMap::new();
    for (name, provider) in
        config.providers.iter().filter(|(name, _)| used.contains(&name.as_str()))
    {
        let mut built = build_provider(name, provider, slots)?;
        if let ProviderKind::Sim(settings) = &provider.kind {
            let simulator =
                simulator.ok_or_else(|| StartError::NoSimulator { provider: name.clone() })?;
            let dial = simulator
                .dial(settings, tasks.clone())
                .map_err(|problem| StartError::Provider { provider: name.clone(), problem })?;
            dialers.insert(name.clone(), dial);
            built.dial = Some(name.clone());
        }
        providers.push(built);
    }
    let models =
        config.models.iter().map(|(name, model)| build_model(name, model, config)).collect();
    let config = clearway_upstream::Config { providers, models, clock: Some(clock.clone()) };
    Ok(Upstream::new(config, dialers)?)
}

fn build_provider(
    name: &str,
    provider: &Provider,
    slots: u32,
) -> Result<ProviderConfig, StartError> {
    let invalid = |problem| StartError::Provider { provider: name.to_owned(), problem };
    let (endpoint, api_key) = match &provider.kind {
        ProviderKind::OpenAi { base_url, api_key, ca_file } => {
            let mut endpoint = Endpoint::parse(base_url).map_err(invalid)?;
            endpoint.ca_file.clone_from(ca_file);
            (endpoint, api_key.as_ref())
        }
        ProviderKind::Sim(_) => (Endpoint::parse(IN_MEMORY).map_err(invalid)?, None),
    };
    // Unlimited means that the pools are the limit, and they can be seen and changed in one place.
    let concurrent = provider.concurrent.unwrap_or(slots).max(1) as usize;
    let idle =
        provider.keep_alive.or(provider.connections).map_or(concurrent, |idle| idle as usize);
    Ok(ProviderConfig {
        api_key: api_key.map(|key| Secret::new(key.expose())),
        limits: Limits {
            concurrent,
            queue: provider.queue.map(|queue| queue as usize),
            idle_connections: idle,
        },
        timeouts: timeouts(&provider.deadline),
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
        assert_eq!((views[0].name.as_str(), views[0].limit), ("sim", 1024));
        let text = "[providers.house]\nkind = \"openai\"\nbase_url = \"http://127.0.0.1:9/v1\"\nlimits = { concurrent = 7 }\n";
        let views = built(text).unwrap().provider_views();
        assert_eq!((views.len(), views[0].name.as_str(), views[0].limit), (1, "house", 7));
    }

    #[test]
    fn a_simulator_must_be_there() {
        let config = Config::built_in(&Env::default()).unwrap();
        let clock: Arc<dyn Clock> = Arc::new(clearway_store::SystemClock);
        let error = build(&config, None, &clock, &Tasks::new()).unwrap_err();
        assert!(error.to_string().contains("no simulator"), "{error}");
    }
}
