//! Providers and models as the running client keeps them.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clearway_core::Clock;
use http::header::{AUTHORIZATION, USER_AGENT};
use http::{HeaderMap, HeaderValue, Uri};
use serde_json::{Map, Value};

use crate::admit::Admission;
use crate::config::{
    ConfigError, Endpoint, ModelConfig, ProviderConfig, Secret, StreamLimits, Timeouts,
};
use crate::dial::Dial;
use crate::openai::failure::Secrets;
use crate::pool::Pool;
use crate::transport::Exchange;
use crate::watch::now;

/// A provider with its connections and slots.
pub(crate) struct Provider {
    pub(crate) name: String,
    pub(crate) endpoint: Endpoint,
    pub(crate) target: Uri,
    pub(crate) host: HeaderValue,
    /// Sent with every request; the credentials among them.
    pub(crate) headers: HeaderMap,
    pub(crate) dial: Arc<dyn Dial>,
    pub(crate) admission: Admission,
    pub(crate) pool: Pool,
    api_key: Option<Secret>,
    clock: Option<Arc<dyn Clock>>,
}

impl Provider {
    pub(crate) fn new(
        config: &ProviderConfig,
        dial: Arc<dyn Dial>,
        clock: Option<Arc<dyn Clock>>,
    ) -> Result<Self, ConfigError> {
        let invalid = |problem: String| ConfigError::Invalid {
            owner: format!("provider {:?}", config.name),
            problem,
        };
        let mut headers = HeaderMap::new();
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        if let Some(key) = &config.api_key {
            let mut value = HeaderValue::try_from(format!("Bearer {}", key.reveal()))
                .map_err(|_| invalid("api_key has characters that a header cannot carry".into()))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        headers.extend(config.headers.iter().cloned());
        let endpoint = config.endpoint.clone();
        let target = endpoint.target("/chat/completions");
        Ok(Self {
            name: config.name.clone(),
            target: target.parse().map_err(|error| invalid(format!("{target:?}: {error}")))?,
            host: HeaderValue::try_from(endpoint.host_header())
                .map_err(|error| invalid(format!("{:?}: {error}", endpoint.host)))?,
            headers,
            dial,
            admission: Admission::new(&config.limits),
            pool: Pool::new(
                config.limits.idle_connections.max(config.limits.concurrent),
                endpoint.tls,
            ),
            endpoint,
            api_key: config.api_key.clone(),
            clock,
        })
    }

    pub(crate) fn secrets(&self) -> Secrets<'_> {
        Secrets::new(self.api_key.as_ref())
    }

    pub(crate) fn wall_clock(&self) -> Option<SystemTime> {
        let now = u64::try_from(self.clock.as_ref()?.now().0).ok()?;
        Some(SystemTime::UNIX_EPOCH + Duration::from_millis(now))
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
    pub(crate) model: String,
    pub(crate) params: Map<String, Value>,
    pub(crate) timeouts: Timeouts,
    pub(crate) limits: StreamLimits,
    pub(crate) context_tokens: Option<u32>,
    pub(crate) reasoning: bool,
}

impl Route {
    pub(crate) fn new(config: &ModelConfig, provider: Arc<Provider>, timeouts: Timeouts) -> Self {
        Self {
            label: format!("{}/{}", provider.name, config.model),
            provider,
            model: config.model.clone(),
            params: config.params.clone(),
            timeouts,
            limits: timeouts.stream(config.reasoning),
            context_tokens: config.context_tokens,
            reasoning: config.reasoning,
        }
    }
}

const AGENT: &str = concat!("clearway/", env!("CARGO_PKG_VERSION"));
