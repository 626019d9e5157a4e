//! The client as its users hold it.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use clearway_core::Code;

use crate::call::CallCx;
use crate::chat::{ChatRequest, ChatStream};
use crate::config::{Commit, Config, ConfigError, Kind};
use crate::dial::{Dial, TcpDial};
use crate::embed::{EmbedRequest, Embedder, EmbeddingInfo, Embeddings};
use crate::failure::Error;
use crate::guard::breaker::{Breaker, BreakerView};
use crate::guard::keys::KeyView;
use crate::guard::limiter::LimiterView;
use crate::guard::load::{Load, LoadView};
use crate::guard::retry_budget::RetryBudgetView;
use crate::rerank::{RerankRequest, rerank};
use crate::route::{Chain, Provider, Route};
use crate::tally::TallyView;
use crate::usage::Observer;
use crate::waiting::{CallView, Calls};
use crate::watch::now;

/// All configured providers and models. Clones share everything.
#[derive(Clone)]
pub struct Upstream {
    inner: Arc<Inner>,
}

struct Inner {
    providers: Vec<Arc<Provider>>,
    /// By configured name: the model's own route first.
    models: HashMap<String, Chain>,
    embedder: Embedder,
    /// By configured name: each model's own route.
    routes: HashMap<String, Arc<Route>>,
    calls: Calls,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.inner.providers.iter().map(|provider| &provider.name)).finish()
    }
}

/// What is known about a model beforehand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    pub name: String,
    pub provider: String,
    /// What the provider calls it.
    pub model: String,
    pub context_tokens: Option<u32>,
    pub reasoning: bool,
}

/// A provider at one moment.
#[derive(Clone, Debug)]
pub struct ProviderView {
    pub name: String,
    pub endpoint: String,
    pub kind: Kind,
    /// Slots, rates and the queue in front of them.
    pub limiter: LimiterView,
    pub connections: ConnectionsView,
    /// For what all its models share.
    pub breaker: BreakerView,
    pub models: Vec<ModelView>,
    pub keys: Vec<KeyView>,
    pub retry_budget: RetryBudgetView,
    pub tally: TallyView,
}

/// A configured model at one moment.
#[derive(Clone, Debug)]
pub struct ModelView {
    /// The configured name.
    pub name: String,
    /// What the provider calls it.
    pub model: String,
    pub breaker: BreakerView,
    /// What calls go by where it is one of several equals.
    pub load: LoadView,
}

/// Connections of a provider: `opened - closed` are open now, and `idle` of those wait for a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionsView {
    pub opened: u64,
    pub reused: u64,
    pub closed: u64,
    pub idle: usize,
}

impl Upstream {
    /// Checks the configuration and prepares everything that does not need a connection. `dialers`
    /// are what providers may name as their `dial`.
    ///
    /// # Errors
    ///
    /// When the configuration contradicts itself or names what does not exist.
    pub fn new(
        config: Config,
        dialers: HashMap<String, Arc<dyn Dial>>,
    ) -> Result<Self, ConfigError> {
        config.check()?;
        let tcp: Arc<dyn Dial> = Arc::new(tcp_dial(&config)?);
        let mut providers = Vec::with_capacity(config.providers.len());
        for (seed, provider) in (1..).zip(&config.providers) {
            let dial = match &provider.dial {
                None => tcp.clone(),
                Some(name) => dialers.get(name).cloned().ok_or_else(|| {
                    ConfigError::UnknownDial { provider: provider.name.clone(), dial: name.clone() }
                })?,
            };
            let provider = Provider::new(provider, dial, config.clock.clone(), seed)?;
            providers.push(Arc::new(provider));
        }
        let routes = routes(&config, &providers);
        let models = config.models.iter().filter_map(|model| {
            // One that is as good is no fallback, too.
            let fallback = model.fallback.iter().filter(|name| !model.spread.contains(name));
            let names = std::iter::once(&model.name).chain(&model.spread).chain(fallback);
            let found: Arc<[_]> = names.filter_map(|name| routes.get(name).cloned()).collect();
            let chain = Chain { routes: found, equals: 1 + model.spread.len() };
            (!chain.routes.is_empty()).then(|| (model.name.clone(), chain))
        });
        let models = models.collect();
        let embedder = Embedder::new(&routes);
        let calls = Calls::default();
        Ok(Self { inner: Arc::new(Inner { providers, models, embedder, routes, calls }) })
    }

    /// Sends a chat request and returns when its answer has begun.
    ///
    /// Dropping the future gives up: whatever was open is closed then.
    ///
    /// # Errors
    ///
    /// Everything that can go wrong up to the first output; `error.failure().code` says what.
    pub async fn chat(&self, cx: CallCx, request: ChatRequest) -> Result<ChatStream, Error> {
        let Some(chain) = self.inner.models.get(&request.model) else {
            let problem = format!("there is no model {:?}", request.model);
            return Err(Error::refused(Code::InvalidConfig, problem));
        };
        // Boxed: it is alive during the start only, and its state is large.
        let routes = chain.for_call(cx.class, now());
        let commit = chain.routes.first().map_or(Commit::Fail, |own| own.commit);
        Box::pin(ChatStream::open(routes, commit, cx, request)).await
    }

    /// Embeds texts. Dropping the future gives up this caller's share in the work.
    ///
    /// # Errors
    ///
    /// When the request as a whole is refused, before anything is sent. What goes wrong with single
    /// texts is in the answer.
    pub async fn embed(&self, cx: CallCx, request: EmbedRequest) -> Result<Embeddings, Error> {
        let _listing = self.inner.calls.list(&cx, &request.model, request.texts.len());
        self.inner.embedder.embed(cx, request).await
    }

    /// Says how well each text answers the query; `None` for those that the model left out.
    ///
    /// # Errors
    ///
    /// Everything that can go wrong; whoever asks has an order without it.
    pub async fn rerank(
        &self,
        cx: CallCx,
        request: RerankRequest,
    ) -> Result<Vec<Option<f32>>, Error> {
        let Some(route) = self.inner.routes.get(&request.model) else {
            let problem = format!("there is no model {:?}", request.model);
            return Err(Error::refused(Code::NotFound, problem));
        };
        let _listing = self.inner.calls.list(&cx, &request.model, request.texts.len());
        rerank(route, &cx, &request).await
    }

    /// Tells `observer` of every attempt to embed from now on: such calls are shared, so that no
    /// caller's own observer hears of them. Once; the first observer stays.
    pub fn observe_embeddings(&self, observer: Arc<dyn Observer>) {
        self.inner.embedder.observe(observer);
    }

    /// Calls for embeddings that are under way, oldest first: what each waits for, and since when.
    pub fn calls(&self) -> Vec<CallView> {
        self.inner.calls.views()
    }

    /// The embedding model with this name; the provider's name for it will do.
    pub fn embedding_model(&self, name: &str) -> Option<EmbeddingInfo> {
        self.inner.embedder.model(name)
    }

    /// All embedding models, sorted by name.
    pub fn embedding_models(&self) -> Vec<EmbeddingInfo> {
        self.inner.embedder.models()
    }

    pub fn model(&self, name: &str) -> Option<ModelInfo> {
        let route = self.inner.models.get(name)?.routes.first()?;
        Some(ModelInfo {
            name: name.to_owned(),
            provider: route.provider.name.to_string(),
            model: route.model.to_string(),
            context_tokens: route.context_tokens,
            reasoning: route.reasoning,
        })
    }

    /// Names of all models, sorted.
    pub fn models(&self) -> Vec<String> {
        let mut names: Vec<_> = self.inner.models.keys().cloned().collect();
        names.sort_unstable();
        names
    }

    /// What every provider is doing, in the order of configuration.
    pub fn provider_views(&self) -> Vec<ProviderView> {
        let at = now();
        self.inner.providers.iter().map(|provider| self.view(provider, at)).collect()
    }

    /// An operator knows better: closes the provider's breakers and takes all its keys up again.
    /// `false` when there is no such provider.
    pub fn reset(&self, provider: &str) -> bool {
        let at = now();
        let Some(found) = self.inner.providers.iter().find(|it| *it.name == *provider) else {
            return false;
        };
        found.breaker.reset(at);
        found.keys.reset();
        for route in self.own_routes(found) {
            route.1.breaker.reset(at);
        }
        true
    }

    /// Closes connections that were idle for too long or that the provider has closed. To be called
    /// now and then, say every second; correctness does not depend on it.
    pub fn expire_idle(&self, now: Instant) {
        for provider in &self.inner.providers {
            provider.pool.expire(now);
        }
    }

    /// The provider's configured models with their own routes, in the order of their names.
    fn own_routes<'a>(
        &'a self,
        provider: &'a Arc<Provider>,
    ) -> impl Iterator<Item = (&'a str, &'a Arc<Route>)> {
        let models = self.inner.models.iter();
        let mut own: Vec<_> = models
            .filter_map(|(name, chain)| Some((name.as_str(), chain.routes.first()?)))
            .filter(|(_, route)| Arc::ptr_eq(&route.provider, provider))
            .collect();
        own.sort_unstable_by_key(|(name, _)| *name);
        own.into_iter()
    }

    fn view(&self, provider: &Arc<Provider>, at: Instant) -> ProviderView {
        let counters = &provider.pool.counters;
        // Closed first: the difference may then only show a connection too many, never less than
        // none.
        let closed = counters.closed.load(Ordering::Relaxed);
        let models = self.own_routes(provider).map(|(name, route)| ModelView {
            name: name.to_owned(),
            model: route.model.to_string(),
            breaker: route.breaker.view(at),
            load: route.load.view(at),
        });
        ProviderView {
            name: provider.name.to_string(),
            endpoint: provider.endpoint.to_string(),
            kind: provider.kind,
            limiter: provider.limiter.view(at),
            connections: ConnectionsView {
                opened: counters.opened.load(Ordering::Relaxed),
                reused: counters.reused.load(Ordering::Relaxed),
                closed,
                idle: provider.pool.idle_count(),
            },
            breaker: provider.breaker.view(at),
            models: models.collect(),
            keys: provider.keys.view(at),
            retry_budget: provider.budget.view(at),
            tally: provider.tally.view(),
        }
    }
}

/// Every configured model at its provider. Models that are the same one there share a breaker and a
/// load.
fn routes(config: &Config, providers: &[Arc<Provider>]) -> HashMap<String, Arc<Route>> {
    let mut shared: HashMap<(String, String), (Breaker, Load)> = HashMap::new();
    let mut routes = HashMap::with_capacity(config.models.len());
    for (seed, model) in (1000..).zip(&config.models) {
        // `check` has seen to it that every model's provider exists.
        let found = config.providers.iter().zip(providers);
        for (settings, provider) in found.filter(|(it, _)| it.name == model.provider) {
            let mut timeouts = model.timeouts.unwrap_or(settings.timeouts);
            if model.embedding().is_some() {
                timeouts = timeouts.for_embedding();
            }
            let state = shared
                .entry((model.provider.clone(), model.model.clone()))
                .or_insert_with(|| {
                    (Breaker::new(provider.breaker_settings, seed, now()), Load::new(now()))
                })
                .clone();
            let route = Route::new(model, provider.clone(), timeouts, state);
            routes.insert(model.name.clone(), Arc::new(route));
        }
    }
    routes
}

fn tcp_dial(config: &Config) -> Result<TcpDial, ConfigError> {
    let mut tcp = TcpDial::new();
    for provider in &config.providers {
        if let Some(path) = &provider.endpoint.ca_file {
            tcp.trust(path).map_err(|source| ConfigError::Certificates {
                provider: provider.name.clone(),
                path: path.clone(),
                source,
            })?;
        }
    }
    Ok(tcp)
}
