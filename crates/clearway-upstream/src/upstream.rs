//! The client as its users hold it.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use arc_swap::ArcSwap;
use clearway_core::Code;

use crate::call::CallCx;
use crate::chat::{ChatRequest, ChatStream};
use crate::config::{Commit, Config, ConfigError, Kind, ProviderConfig};
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
    shared: Arc<Shared>,
}

struct Shared {
    /// What is in force. Calls under way keep what they began with.
    inner: ArcSwap<Inner>,
    calls: Calls,
}

/// Providers and models of one configuration.
struct Inner {
    config: Config,
    providers: Vec<Arc<Provider>>,
    /// By configured name: the model's own route first.
    models: HashMap<String, Chain>,
    embedder: Arc<Embedder>,
    /// By configured name: each model's own route.
    routes: HashMap<String, Arc<Route>>,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.inner();
        f.debug_list().entries(inner.providers.iter().map(|provider| &provider.name)).finish()
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
        let inner = ArcSwap::from_pointee(Inner::new(config, &dialers, None)?);
        Ok(Self { shared: Arc::new(Shared { inner, calls: Calls::default() }) })
    }

    /// Puts another configuration in force for the calls from now on. Calls under way go on as they
    /// began, also at a provider that is not there any more. What is the same in both configurations
    /// goes on as it is; of a provider that changed, what is known of it (breakers, keys, limits,
    /// connections) stays where it is still about the same thing.
    ///
    /// `dialers` are those that are new; a dialer that is not named here stays.
    ///
    /// # Errors
    ///
    /// As for [`Upstream::new`]; then everything stays as it was.
    pub fn replace(
        &self,
        config: Config,
        dialers: &HashMap<String, Arc<dyn Dial>>,
    ) -> Result<(), ConfigError> {
        let new = Inner::new(config, dialers, Some(&self.inner()))?;
        self.shared.inner.store(Arc::new(new));
        Ok(())
    }

    fn inner(&self) -> Arc<Inner> {
        self.shared.inner.load_full()
    }

    /// Sends a chat request and returns when its answer has begun.
    ///
    /// Dropping the future gives up: whatever was open is closed then.
    ///
    /// # Errors
    ///
    /// Everything that can go wrong up to the first output; `error.failure().code` says what.
    pub async fn chat(&self, cx: CallCx, request: ChatRequest) -> Result<ChatStream, Error> {
        let inner = self.inner();
        let Some(chain) = inner.models.get(&request.model) else {
            let problem = format!("there is no model {:?}", request.model);
            return Err(Error::refused(Code::InvalidConfig, problem));
        };
        // Boxed: it is alive during the start only, and its state is large.
        let routes = chain.for_call(&cx, now());
        let commit = chain.routes.first().map_or(Commit::Fail, |own| own.commit);
        drop(inner);
        Box::pin(ChatStream::open(routes, commit, cx, request)).await
    }

    /// Embeds texts. Dropping the future gives up this caller's share in the work.
    ///
    /// # Errors
    ///
    /// When the request as a whole is refused, before anything is sent. What goes wrong with single
    /// texts is in the answer.
    pub async fn embed(&self, cx: CallCx, request: EmbedRequest) -> Result<Embeddings, Error> {
        let _listing = self.shared.calls.list(&cx, &request.model, request.texts.len());
        let embedder = self.inner().embedder.clone();
        embedder.embed(cx, request).await
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
        let Some(route) = self.inner().routes.get(&request.model).cloned() else {
            let problem = format!("there is no model {:?}", request.model);
            return Err(Error::refused(Code::NotFound, problem));
        };
        let _listing = self.shared.calls.list(&cx, &request.model, request.texts.len());
        rerank(&route, &cx, &request).await
    }

    /// Tells `observer` of every attempt to embed from now on: such calls are shared, so that no
    /// caller's own observer hears of them. Once; the first observer stays.
    pub fn observe_embeddings(&self, observer: Arc<dyn Observer>) {
        self.inner().embedder.observe(observer);
    }

    /// Calls for embeddings that are under way, oldest first: what each waits for, and since when.
    pub fn calls(&self) -> Vec<CallView> {
        self.shared.calls.views()
    }

    /// The embedding model with this name; the provider's name for it will do.
    pub fn embedding_model(&self, name: &str) -> Option<EmbeddingInfo> {
        self.inner().embedder.model(name)
    }

    /// All embedding models, sorted by name.
    pub fn embedding_models(&self) -> Vec<EmbeddingInfo> {
        self.inner().embedder.models()
    }

    pub fn model(&self, name: &str) -> Option<ModelInfo> {
        let inner = self.inner();
        let route = inner.models.get(name)?.routes.first()?;
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
        let mut names: Vec<_> = self.inner().models.keys().cloned().collect();
        names.sort_unstable();
        names
    }

    /// What every provider is doing, in the order of configuration.
    pub fn provider_views(&self) -> Vec<ProviderView> {
        let (inner, at) = (self.inner(), now());
        inner.providers.iter().map(|provider| inner.view(provider, at)).collect()
    }

    /// An operator knows better: closes the provider's breakers and takes all its keys up again.
    /// `false` when there is no such provider.
    pub fn reset(&self, provider: &str) -> bool {
        let (inner, at) = (self.inner(), now());
        let Some(found) = inner.providers.iter().find(|it| *it.name == *provider) else {
            return false;
        };
        found.breaker.reset(at);
        found.keys.reset();
        for route in inner.own_routes(found) {
            route.1.breaker.reset(at);
        }
        true
    }

    /// Closes connections that were idle for too long or that the provider has closed. To be called
    /// now and then, say every second; correctness does not depend on it.
    pub fn expire_idle(&self, now: Instant) {
        for provider in &self.inner().providers {
            provider.pool.expire(now);
        }
    }
}

impl Inner {
    /// `known` is what was in force before.
    fn new(
        config: Config,
        dialers: &HashMap<String, Arc<dyn Dial>>,
        known: Option<&Self>,
    ) -> Result<Self, ConfigError> {
        config.check()?;
        let tcp: Arc<dyn Dial> = Arc::new(tcp_dial(&config)?);
        let mut providers = Vec::with_capacity(config.providers.len());
        for (seed, settings) in (1..).zip(&config.providers) {
            let named = settings.dial.as_ref();
            let new_dial = named.and_then(|name| dialers.get(name)).cloned();
            let known = known.and_then(|known| known.provider(&settings.name));
            if let Some((before, provider)) = known
                && before == settings
                && new_dial.is_none()
            {
                providers.push(provider.clone());
                continue;
            }
            // TCP also knows whom to trust, which belongs to the endpoint.
            let same_dial = known.filter(|(before, _)| {
                before.dial == settings.dial
                    && (named.is_some() || before.endpoint == settings.endpoint)
            });
            let dial = match new_dial.or_else(|| same_dial.map(|(_, it)| it.dial.clone())) {
                Some(dial) => dial,
                None => match named {
                    None => tcp.clone(),
                    Some(dial) => {
                        let (provider, dial) = (settings.name.clone(), dial.clone());
                        return Err(ConfigError::UnknownDial { provider, dial });
                    }
                },
            };
            let mut provider = Provider::new(settings, dial, config.clock.clone(), seed)?;
            if let Some((before, known)) = known {
                provider.take_over(known, (before, settings));
            }
            providers.push(Arc::new(provider));
        }
        let routes = routes(&config, &providers, known);
        let models = config.models.iter().filter_map(|model| {
            // One that is as good is no fallback, too.
            let fallback = model.fallback.iter().filter(|name| !model.spread.contains(name));
            let names = std::iter::once(&model.name).chain(&model.spread).chain(fallback);
            let found: Arc<[_]> = names.filter_map(|name| routes.get(name).cloned()).collect();
            let (equals, affinity) = (1 + model.spread.len(), model.affinity);
            let chain = Chain { routes: found, equals, affinity };
            (!chain.routes.is_empty()).then(|| (model.name.clone(), chain))
        });
        let models = models.collect();
        let embedder = match known {
            Some(known) if known.embedder.serves(&routes) => known.embedder.clone(),
            known => {
                let embedder = Embedder::new(&routes);
                if let Some(observer) = known.and_then(|known| known.embedder.observer()) {
                    embedder.observe(observer);
                }
                Arc::new(embedder)
            }
        };
        Ok(Self { config, providers, models, embedder, routes })
    }

    fn provider(&self, name: &str) -> Option<(&ProviderConfig, &Arc<Provider>)> {
        let mut all = self.config.providers.iter().zip(&self.providers);
        all.find(|(settings, _)| settings.name == name)
    }

    /// What is known of a provider's model by now, if it is still found at the same place.
    fn state_of(&self, provider: &ProviderConfig, model: &str) -> Option<(Breaker, Load)> {
        let (before, known) = self.provider(&provider.name)?;
        if before.endpoint != provider.endpoint || before.breaker != provider.breaker {
            return None;
        }
        let mut routes = self.routes.values();
        let route =
            routes.find(|route| Arc::ptr_eq(&route.provider, known) && *route.model == *model)?;
        Some((route.breaker.clone(), route.load.clone()))
    }

    /// The provider's configured models with their own routes, in the order of their names.
    fn own_routes<'a>(
        &'a self,
        provider: &'a Arc<Provider>,
    ) -> impl Iterator<Item = (&'a str, &'a Arc<Route>)> {
        let models = self.models.iter();
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
fn routes(
    config: &Config,
    providers: &[Arc<Provider>],
    known: Option<&Inner>,
) -> HashMap<String, Arc<Route>> {
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
                    known.and_then(|known| known.state_of(settings, &model.model)).unwrap_or_else(
                        || (Breaker::new(provider.breaker_settings, seed, now()), Load::new(now())),
                    )
                })
                .clone();
            let same = |known: &Inner| {
                let route = known.routes.get(&model.name)?;
                let settings = known.config.models.iter().find(|it| it.name == model.name)?;
                let is_same = settings == model && Arc::ptr_eq(&route.provider, provider);
                is_same.then(|| route.clone())
            };
            let route = known
                .and_then(same)
                .unwrap_or_else(|| Arc::new(Route::new(model, provider.clone(), timeouts, state)));
            routes.insert(model.name.clone(), route);
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
