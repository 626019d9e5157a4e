//! Providers and models as the running client keeps them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use clearway_core::Clock;
use http::header::{AUTHORIZATION, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use serde_json::{Map, Value};

use crate::call::CallCx;
use crate::codec::failure::Secrets;
use crate::config::{
    Commit, ConfigError, EmbeddingModel, Endpoint, Kind, ModelConfig, ProviderConfig, Retry,
    Secret, StreamLimits, Timeouts,
};
use crate::dial::Dial;
use crate::guard::breaker::{Breaker, BreakerSettings, Gate};
use crate::guard::jitter::Jitter;
use crate::guard::keys::Keys;
use crate::guard::limiter::{Class, Limiter};
use crate::guard::load::{self, Load};
use crate::guard::retry_budget::{RetryBudget, RetryBudgetSettings};
use crate::latency::Latencies;
use crate::pool::Pool;
use crate::tally::Tally;
use crate::transport::Exchange;
use crate::usage::Price;
use crate::watch::now;

/// A provider's account: its connections, and everything that is shared by its models.
pub(crate) struct Provider {
    pub(crate) name: Arc<str>,
    pub(crate) kind: Kind,
    pub(crate) endpoint: Endpoint,
    /// The same as text.
    pub(crate) address: Arc<str>,
    /// Path and query of each operation.
    pub(crate) chat: Uri,
    pub(crate) embeddings: Uri,
    pub(crate) rerank: Uri,
    pub(crate) host: HeaderValue,
    /// Sent with every request.
    pub(crate) headers: HeaderMap,
    /// By the index of the key.
    credentials: Vec<Option<(HeaderName, HeaderValue)>>,
    secrets: Vec<Secret>,
    pub(crate) dial: Arc<dyn Dial>,
    /// Calls at once, at most.
    pub(crate) concurrent: usize,
    pub(crate) limiter: Arc<Limiter>,
    pub(crate) keys: Arc<Keys>,
    /// For what all models share: names, connections, TLS.
    pub(crate) breaker: Breaker,
    pub(crate) breaker_settings: BreakerSettings,
    pub(crate) retry: Retry,
    pub(crate) budget: Arc<RetryBudget>,
    jitter: Mutex<Jitter>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) tally: Arc<Tally>,
    clock: Option<Arc<dyn Clock>>,
}

impl Provider {
    pub(crate) fn new(
        config: &ProviderConfig,
        dial: Arc<dyn Dial>,
        clock: Option<Arc<dyn Clock>>,
        seed: u64,
    ) -> Result<Self, ConfigError> {
        let invalid = |problem: String| ConfigError::Invalid {
            owner: format!("provider {:?}", config.name),
            problem,
        };
        let mut headers = HeaderMap::new();
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        if config.kind == Kind::Anthropic {
            headers.insert(ANTHROPIC_VERSION, HeaderValue::from_static("2023-06-01"));
        }
        headers.extend(config.headers.iter().cloned());
        let mut credentials = Vec::with_capacity(config.keys.len());
        for (_, key) in &config.keys {
            let (name, value) = key_header(config.kind, key);
            let mut value = HeaderValue::try_from(value)
                .map_err(|_| invalid("api_key has characters that a header cannot carry".into()))?;
            value.set_sensitive(true);
            credentials.push(Some((name, value)));
        }
        let endpoint = config.endpoint.clone();
        let operation = |name: &str| {
            let target = endpoint.target(name);
            target.parse().map_err(|error| invalid(format!("{target:?}: {error}")))
        };
        let at = now();
        let breaker_settings = config.breaker.settings();
        Ok(Self {
            name: config.name.as_str().into(),
            kind: config.kind,
            chat: operation(config.kind.chat_path())?,
            embeddings: operation("/embeddings")?,
            rerank: operation("/rerank")?,
            host: HeaderValue::try_from(endpoint.host_header())
                .map_err(|error| invalid(format!("{:?}: {error}", endpoint.host)))?,
            headers,
            credentials,
            secrets: secrets(config),
            dial,
            concurrent: config.limits.concurrent,
            limiter: Arc::new(Limiter::new(config.limits.settings(), at)),
            keys: Arc::new(Keys::new(config.keys.clone())),
            breaker: Breaker::new(breaker_settings, seed, at),
            breaker_settings,
            retry: config.retry,
            budget: Arc::new(RetryBudget::new(RetryBudgetSettings::default(), at)),
            jitter: Mutex::new(Jitter::new(seed.wrapping_mul(31))),
            address: endpoint.to_string().into(),
            pool: Arc::new(Pool::new(
                config.limits.idle_connections.max(config.limits.concurrent),
                endpoint.tls,
            )),
            tally: Arc::default(),
            endpoint,
            clock,
        })
    }

    /// Takes the place of a provider of the same name: what is known of it stays known, as far as it
    /// is still about the same thing.
    pub(crate) fn take_over(
        &mut self,
        known: &Self,
        (before, after): (&ProviderConfig, &ProviderConfig),
    ) {
        self.tally = known.tally.clone();
        self.budget = known.budget.clone();
        let same_place = before.endpoint == after.endpoint && Arc::ptr_eq(&self.dial, &known.dial);
        if before.limits == after.limits {
            self.limiter = known.limiter.clone();
            if same_place {
                self.pool = known.pool.clone();
            }
        }
        if before.keys == after.keys {
            self.keys = known.keys.clone();
        }
        if before.endpoint == after.endpoint && before.breaker == after.breaker {
            self.breaker = known.breaker.clone();
        }
    }

    /// The header that carries a key; the anonymous one has none.
    pub(crate) fn credentials(
        &self,
        key: usize,
    ) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.credentials.get(key).into_iter().flatten().map(|(name, value)| (name, value))
    }

    pub(crate) fn secrets(&self) -> Secrets<'_> {
        Secrets::new(&self.secrets)
    }

    pub(crate) fn wall_clock(&self) -> Option<SystemTime> {
        let now = u64::try_from(self.clock.as_ref()?.now().0).ok()?;
        Some(SystemTime::UNIX_EPOCH + Duration::from_millis(now))
    }

    /// The order in which routes with these costs are asked.
    pub(crate) fn order(&self, costs: &[f64]) -> Vec<usize> {
        load::order(costs, &mut self.jitter.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A random duration from nothing to `most`.
    pub(crate) fn random_below(&self, most: Duration) -> Duration {
        self.jitter.lock().unwrap_or_else(PoisonError::into_inner).below(most)
    }

    /// Keeps the connection of an answer that is complete, if it can be used again.
    pub(crate) fn give_back(&self, exchange: Exchange) {
        if let Some(link) = exchange.finish() {
            self.pool.put(link, now());
        }
    }
}

/// A model at its provider.
pub(crate) struct Route {
    /// `openai/gpt-5-mini`.
    pub(crate) label: String,
    pub(crate) provider: Arc<Provider>,
    pub(crate) model: Arc<str>,
    pub(crate) params: Map<String, Value>,
    pub(crate) timeouts: Timeouts,
    pub(crate) limits: StreamLimits,
    pub(crate) context_tokens: Option<u32>,
    pub(crate) reasoning: bool,
    /// For models that embed.
    pub(crate) embedding: Option<EmbeddingModel>,
    pub(crate) commit: Commit,
    pub(crate) prefill: bool,
    pub(crate) price: Option<Price>,
    /// For what goes wrong after a connection is there.
    pub(crate) breaker: Breaker,
    pub(crate) load: Load,
    /// Among equals, at least 1.
    pub(crate) weight: f64,
    /// Of whole answers.
    pub(crate) latencies: Latencies,
}

impl Route {
    pub(crate) fn new(
        config: &ModelConfig,
        provider: Arc<Provider>,
        timeouts: Timeouts,
        (breaker, load): (Breaker, Load),
    ) -> Self {
        Self {
            label: format!("{}/{}", provider.name, config.model),
            provider,
            model: config.model.as_str().into(),
            params: config.params.clone(),
            timeouts,
            limits: timeouts.stream(config.reasoning),
            context_tokens: config.context_tokens,
            reasoning: config.reasoning,
            embedding: config.embedding(),
            commit: config.commit,
            prefill: config.prefill,
            price: config.price,
            breaker,
            load,
            weight: f64::from(config.weight.max(1)),
            latencies: Latencies::default(),
        }
    }

    /// Until when a breaker keeps calls away, if one does. Asking takes no probe.
    pub(crate) fn closed_until(&self, class: Class, now: Instant) -> Option<Instant> {
        [&self.provider.breaker, &self.breaker]
            .into_iter()
            .filter_map(|breaker| match breaker.admit(class, now) {
                Gate::Open { until } => Some(until),
                // The ticket goes back unused.
                Gate::Pass(_) | Gate::Probe(_) => None,
            })
            .max()
    }
}

/// The routes of a model: some that are equals, then its fallbacks.
#[derive(Clone)]
pub(crate) struct Chain {
    pub(crate) routes: Arc<[Arc<Route>]>,
    /// How many of them are equals, from the front; at least one.
    pub(crate) equals: usize,
    /// A conversation stays with one of the equals.
    pub(crate) affinity: bool,
}

impl Chain {
    /// The routes in the order in which this call asks them: among equals its conversation's own
    /// first, or the least busy, and those that cannot be asked now behind the others.
    pub(crate) fn for_call(&self, cx: &CallCx, at: Instant) -> Arc<[Arc<Route>]> {
        let class = cx.class;
        let Some((equals, fallbacks)) = self.routes.split_at_checked(self.equals) else {
            return self.routes.clone();
        };
        if equals.len() < 2 {
            return self.routes.clone();
        }
        let can = |route: &&Arc<Route>| {
            let has_key =
                route.provider.keys.soonest(&route.model, at).is_some_and(|key| key <= at);
            has_key && route.closed_until(class, at).is_none()
        };
        let (open, closed): (Vec<_>, Vec<_>) = equals.iter().partition(can);
        let costs: Vec<f64> = open.iter().map(|route| route.load.cost(at) / route.weight).collect();
        let mut order = equals[0].provider.order(&costs);
        if let Some(conversation) = cx.conversation.as_deref().filter(|_| self.affinity)
            && let Some(home) = home(conversation, &open)
        {
            order.retain(|index| *index != home);
            order.insert(0, home);
        }
        let open = order.iter().map(|&index| open[index]);
        open.chain(closed).chain(fallbacks).cloned().collect()
    }
}

/// The route that a conversation belongs to, unless that is much busier or slower than another.
fn home(conversation: &str, open: &[&Arc<Route>]) -> Option<usize> {
    let weights = open.iter().map(|route| (route.label.as_str(), route.weight));
    let home = load::home(conversation, weights)?;
    let busy = |route: &Route| (route.load.under_way() + 1) as f64 / route.weight;
    let least = |of: &dyn Fn(&Route) -> Option<f64>| {
        open.iter().filter_map(|route| of(route)).fold(f64::INFINITY, f64::min)
    };
    let is_free = busy(open[home]) <= MOST_FOR_HOME * least(&|route| Some(busy(route)));
    let latest = |route: &Route| route.load.latest();
    let is_quick = latest(open[home]).is_none_or(|took| took <= MOST_FOR_HOME * least(&latest));
    (is_free && is_quick).then_some(home)
}

/// How much busier or slower than another a conversation's own route may be.
const MOST_FOR_HOME: f64 = 4.0;

/// What no text of this provider may show: its keys, and what configured headers carry that look like
/// credentials by their name.
fn secrets(config: &ProviderConfig) -> Vec<Secret> {
    let tells = |name: &str| {
        ["auth", "cookie", "key", "pass", "secret", "token"].iter().any(|part| name.contains(part))
    };
    let of_headers = config
        .headers
        .iter()
        .filter(|(name, _)| tells(name.as_str()))
        .filter_map(|(_, value)| value.to_str().ok())
        // Behind a scheme such as `Bearer` it is the last word that nobody may know.
        .filter_map(|value| value.split_whitespace().next_back())
        .filter(|word| word.len() >= SHORTEST_SECRET)
        .map(Secret::new);
    config.keys.iter().map(|(_, key)| key.clone()).chain(of_headers).collect()
}

/// What is shorter is found in ordinary words.
const SHORTEST_SECRET: usize = 6;

/// How a key is sent.
fn key_header(kind: Kind, key: &Secret) -> (HeaderName, String) {
    match kind {
        Kind::OpenAi | Kind::Responses | Kind::Ollama => {
            (AUTHORIZATION, format!("Bearer {}", key.reveal()))
        }
        Kind::Anthropic => (HeaderName::from_static("x-api-key"), key.reveal().to_owned()),
    }
}

const ANTHROPIC_VERSION: HeaderName = HeaderName::from_static("anthropic-version");
const AGENT: &str = concat!("clearway/", env!("CARGO_PKG_VERSION"));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Endpoint;

    #[test]
    fn headers_with_credentials_are_secrets_too() {
        let endpoint = Endpoint::parse("http://127.0.0.1:9/v1").unwrap();
        let header = |name: &'static str, value: &'static str| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let config = ProviderConfig {
            keys: vec![(None, Secret::new("sk-one"))],
            headers: vec![
                header("x-gateway-key", "gateway-pass-77"),
                header("proxy-authorization", "Basic dXNlcjpwYXNz"),
                header("x-region", "north-central"),
                header("x-token-kind", "v2"),
            ],
            ..ProviderConfig::new("p", endpoint)
        };
        let secrets = secrets(&config);
        let said = "gateway-pass-77 and dXNlcjpwYXNz are refused in north-central by v2";
        let shown = Secrets::new(&secrets).scrub(said);
        assert!(!shown.contains("gateway-pass") && !shown.contains("dXNlcjpwYXNz"), "{shown}");
        assert!(shown.contains("north-central by v2"), "{shown}");
    }
}
