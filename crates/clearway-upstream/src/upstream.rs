//! The client as its users hold it.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use clearway_core::Code;

use crate::call::CallCx;
use crate::chat::{ChatRequest, ChatStream};
use crate::config::{Config, ConfigError};
use crate::dial::{Dial, TcpDial};
use crate::failure::Error;
use crate::route::{Provider, Route};

/// All configured providers and models. Clones share everything.
#[derive(Clone)]
pub struct Upstream {
    inner: Arc<Inner>,
}

struct Inner {
    providers: Vec<Arc<Provider>>,
    models: HashMap<String, Arc<Route>>,
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderView {
    pub name: String,
    pub endpoint: String,
    /// Calls that hold a slot.
    pub in_flight: usize,
    /// Calls that wait for one.
    pub queued: usize,
    pub limit: usize,
    pub connections: ConnectionsView,
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
        for provider in &config.providers {
            let dial = match &provider.dial {
                None => tcp.clone(),
                Some(name) => dialers.get(name).cloned().ok_or_else(|| {
                    ConfigError::UnknownDial { provider: provider.name.clone(), dial: name.clone() }
                })?,
            };
            providers.push(Arc::new(Provider::new(provider, dial, config.clock.clone())?));
        }
        let mut models = HashMap::with_capacity(config.models.len());
        for model in &config.models {
            // `check` has seen to it that every model's provider exists.
            let found = config.providers.iter().zip(&providers);
            for (settings, provider) in found.filter(|(it, _)| it.name == model.provider) {
                let timeouts = model.timeouts.unwrap_or(settings.timeouts);
                let route = Route::new(model, provider.clone(), timeouts);
                models.insert(model.name.clone(), Arc::new(route));
            }
        }
        Ok(Self { inner: Arc::new(Inner { providers, models }) })
    }

    /// Sends a chat request and returns when its answer has begun.
    ///
    /// Dropping the future gives up: whatever was open is closed then.
    ///
    /// # Errors
    ///
    /// Everything that can go wrong up to the first output; `error.failure().code` says what.
    pub async fn chat(&self, cx: CallCx, request: ChatRequest) -> Result<ChatStream, Error> {
        let Some(route) = self.inner.models.get(&request.model) else {
            let problem = format!("there is no model {:?}", request.model);
            return Err(Error::refused(Code::InvalidConfig, problem));
        };
        // Boxed: it is alive during the start only, and its state is large.
        Box::pin(ChatStream::open(route.clone(), cx, request)).await
    }

    pub fn model(&self, name: &str) -> Option<ModelInfo> {
        let route = self.inner.models.get(name)?;
        Some(ModelInfo {
            name: name.to_owned(),
            provider: route.provider.name.clone(),
            model: route.model.clone(),
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
        self.inner.providers.iter().map(|provider| view(provider)).collect()
    }

    /// Closes connections that were idle for too long or that the provider has closed. To be called
    /// now and then, say every second; correctness does not depend on it.
    pub fn expire_idle(&self, now: Instant) {
        for provider in &self.inner.providers {
            provider.pool.expire(now);
        }
    }
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

fn view(provider: &Provider) -> ProviderView {
    let counters = &provider.pool.counters;
    // Closed first: the difference may then only show a connection too many, never less than none.
    let closed = counters.closed.load(Ordering::Relaxed);
    ProviderView {
        name: provider.name.clone(),
        endpoint: provider.endpoint.to_string(),
        in_flight: provider.admission.in_flight(),
        queued: provider.admission.queued(),
        limit: provider.admission.limit(),
        connections: ConnectionsView {
            opened: counters.opened.load(Ordering::Relaxed),
            reused: counters.reused.load(Ordering::Relaxed),
            closed,
            idle: provider.pool.idle_count(),
        },
    }
}
