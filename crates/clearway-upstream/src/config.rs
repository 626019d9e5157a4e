//! What the client is told at start-up: providers, their models, and every limit.
//!
//! [`Config`] is plain data; [`crate::Upstream::new`] checks it once and refuses what could hang or
//! contradict itself later. Reading it from a file is somebody else's work.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clearway_core::Clock;
use http::uri::Scheme;
use http::{HeaderName, HeaderValue, Uri};
use serde_json::{Map, Value};

/// Everything [`crate::Upstream`] needs to know.
#[derive(Clone, Debug, Default)]
pub struct Config {
    pub providers: Vec<ProviderConfig>,
    pub models: Vec<ModelConfig>,
    /// For `Retry-After` dates of providers that send no `Date`; without it those are ignored.
    pub clock: Option<Arc<dyn Clock>>,
}

/// One account at one provider.
#[derive(Clone, Debug)]
pub struct ProviderConfig {
    /// As operators know it: `openai`, `sim`, `house-vllm`.
    pub name: String,
    pub endpoint: Endpoint,
    /// Sent as `Authorization: Bearer …`; without it no such header is sent.
    pub api_key: Option<Secret>,
    /// Sent with every request, for instance `OpenAI-Organization` or Azure's `api-key`.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Which [`crate::Dial`] opens the connections; `None` is TCP, with TLS for `https`.
    pub dial: Option<String>,
    pub limits: Limits,
    pub timeouts: Timeouts,
}

impl ProviderConfig {
    /// A provider with the default limits and timeouts.
    pub fn new(name: impl Into<String>, endpoint: Endpoint) -> Self {
        Self {
            name: name.into(),
            endpoint,
            api_key: None,
            headers: Vec::new(),
            dial: None,
            limits: Limits::default(),
            timeouts: Timeouts::default(),
        }
    }
}

/// A model under the name that agents use for it.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    pub name: String,
    /// Name of a [`ProviderConfig`].
    pub provider: String,
    /// What the provider calls it.
    pub model: String,
    /// Merged into every request; a call's own parameters win.
    pub params: Map<String, Value>,
    /// Prompt and answer together; `None` when nobody knows.
    pub context_tokens: Option<u32>,
    /// It may think silently for a while before its first token.
    pub reasoning: bool,
    /// Instead of the provider's.
    pub timeouts: Option<Timeouts>,
}

impl ModelConfig {
    /// `name` at `provider`, where it is called `model`.
    pub fn new(
        name: impl Into<String>,
        provider: impl Into<String>,
        model: impl Into<String>,
    ) -> Self {
        Self {
            name: name.into(),
            provider: provider.into(),
            model: model.into(),
            params: Map::new(),
            context_tokens: None,
            reasoning: false,
            timeouts: None,
        }
    }
}

/// How much of a provider may be in use at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Calls in flight, each with a connection of its own; a call counts until its stream ends.
    pub concurrent: usize,
    /// Calls that may wait for one of those; `None` is four times `concurrent`, at least 40.
    pub queue: Option<usize>,
    /// Idle connections kept; never fewer than `concurrent` are useful, and never more are kept
    /// than the larger of both.
    pub idle_connections: usize,
}

impl Limits {
    /// The queue's bound with the default filled in.
    pub fn queue_bound(&self) -> usize {
        self.queue.unwrap_or_else(|| self.concurrent.saturating_mul(4).max(40))
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { concurrent: 10, queue: None, idle_connections: 10 }
    }
}

/// How long each stage of a call may take. The caller's deadline cuts all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// The whole call; `None` leaves it to the caller's deadline.
    pub total: Option<Duration>,
    /// Waiting for one of the provider's slots.
    pub queue: Duration,
    /// DNS, TCP and TLS together.
    pub connect: Duration,
    /// From the first byte of the request out to its last.
    pub send: Duration,
    /// From the request's last byte to the status line.
    pub headers: Duration,
    /// From the request's last byte to the first output.
    pub ttft: Duration,
    /// The same for models marked `reasoning`.
    pub ttft_reasoning: Duration,
    /// Without any byte, comments included, before the first output and for reasoning models.
    pub idle: Duration,
    /// Without any byte once a model that does not reason has begun to answer.
    pub idle_output: Duration,
    /// Without output, whatever else arrives.
    pub progress: Duration,
    /// The same for models marked `reasoning`.
    pub progress_reasoning: Duration,
    /// For usage and the end of the stream, once the finish reason is known.
    pub tail: Duration,
    /// For the body of an error answer.
    pub error_body: Duration,
}

impl Default for Timeouts {
    /// The limits for chat.
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            total: None,
            queue: seconds(30),
            connect: seconds(5),
            send: seconds(15),
            headers: seconds(30),
            ttft: seconds(30),
            ttft_reasoning: seconds(90),
            // Azure sends its keep-alive after 30 s of silence.
            idle: seconds(35),
            idle_output: seconds(20),
            progress: seconds(45),
            progress_reasoning: seconds(100),
            tail: seconds(2),
            error_body: seconds(2),
        }
    }
}

impl Timeouts {
    /// Nothing may be zero, and a stage may not outlast the one that contains it.
    fn check(&self) -> Result<(), String> {
        let stages = [
            ("queue", self.queue),
            ("connect", self.connect),
            ("send", self.send),
            ("headers", self.headers),
            ("ttft", self.ttft),
            ("ttft_reasoning", self.ttft_reasoning),
            ("idle", self.idle),
            ("idle_output", self.idle_output),
            ("progress", self.progress),
            ("progress_reasoning", self.progress_reasoning),
            ("tail", self.tail),
            ("error_body", self.error_body),
        ];
        if let Some((name, _)) = stages.iter().find(|(_, limit)| limit.is_zero()) {
            return Err(format!("{name} is zero: nothing could ever succeed"));
        }
        let mut order = vec![
            ("connect", self.connect),
            ("headers", self.headers),
            ("ttft", self.ttft),
            ("ttft_reasoning", self.ttft_reasoning),
        ];
        order.extend(self.total.map(|total| ("total", total)));
        for pair in order.windows(2) {
            let [(inner, short), (outer, long)] = pair else { continue };
            if short > long {
                return Err(format!(
                    "{inner} ({short:?}) is longer than {outer} ({long:?}), which contains it"
                ));
            }
        }
        Ok(())
    }

    /// The limits of the streaming stages for a model.
    pub(crate) fn stream(&self, reasoning: bool) -> StreamLimits {
        let (ttft, progress, idle_output) = if reasoning {
            (self.ttft_reasoning, self.progress_reasoning, self.idle)
        } else {
            (self.ttft, self.progress, self.idle_output)
        };
        StreamLimits { ttft, idle: self.idle, idle_output, progress, tail: self.tail }
    }
}

/// [`Timeouts`] of a stream, chosen for one model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StreamLimits {
    pub(crate) ttft: Duration,
    pub(crate) idle: Duration,
    pub(crate) idle_output: Duration,
    pub(crate) progress: Duration,
    pub(crate) tail: Duration,
}

/// Where a provider is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub tls: bool,
    /// A name or an IP address, IPv6 without brackets.
    pub host: String,
    pub port: u16,
    /// In front of `/chat/completions`, without a slash at its end: `/v1`.
    pub path: String,
    /// Behind the path, without the question mark: `api-version=2026-01-01`.
    pub query: Option<String>,
    /// PEM certificates to trust besides the built-in roots.
    pub ca_file: Option<PathBuf>,
}

impl Endpoint {
    /// Reads a base URL such as `https://api.openai.com/v1`.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the text, for people.
    pub fn parse(url: &str) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|error| format!("{url:?} is not a URL: {error}"))?;
        let tls = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) => return Err(format!("{scheme}:// is not supported, use http or https")),
            None => return Err(format!("{url:?} lacks http:// or https://")),
        };
        let Some(authority) = uri.authority() else {
            return Err(format!("{url:?} names no host"));
        };
        if authority.as_str().contains('@') {
            return Err("credentials do not belong into a URL: use api_key or headers".to_owned());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(format!("{url:?} names no host"));
        }
        Ok(Self {
            tls,
            host,
            port: authority.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            path: uri.path().trim_end_matches('/').to_owned(),
            query: uri.query().map(str::to_owned),
            ca_file: None,
        })
    }

    /// Path and query of one operation, such as `/chat/completions`.
    pub(crate) fn target(&self, operation: &str) -> String {
        match &self.query {
            Some(query) => format!("{}{operation}?{query}", self.path),
            None => format!("{}{operation}", self.path),
        }
    }

    /// The `Host` header: the port only where it is not the scheme's own.
    pub(crate) fn host_header(&self) -> String {
        let host =
            if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let usual = if self.tls { 443 } else { 80 };
        if self.port == usual { host } else { format!("{host}:{}", self.port) }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.host_header(), self.path)
    }
}

/// A text that must never be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("provider {0:?} is configured twice")]
    DuplicateProvider(String),
    #[error("model {0:?} is configured twice")]
    DuplicateModel(String),
    #[error("model {model:?} is at provider {provider:?}, which is not configured")]
    UnknownProvider { model: String, provider: String },
    #[error("provider {provider:?} is dialled by {dial:?}, which does not exist")]
    UnknownDial { provider: String, dial: String },
    #[error("{owner}: {problem}")]
    Invalid { owner: String, problem: String },
    #[error("provider {provider:?}: cannot use the certificates in {}", path.display())]
    Certificates { provider: String, path: PathBuf, source: std::io::Error },
}

/// Request fields that the codec writes itself.
pub(crate) const RESERVED_PARAMS: [&str; 4] = ["model", "messages", "stream", "stream_options"];

impl Config {
    /// Everything that can be judged without opening a connection.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        for (at, provider) in self.providers.iter().enumerate() {
            if self.providers[..at].iter().any(|earlier| earlier.name == provider.name) {
                return Err(ConfigError::DuplicateProvider(provider.name.clone()));
            }
            let invalid = |problem: String| ConfigError::Invalid {
                owner: format!("provider {:?}", provider.name),
                problem,
            };
            if provider.limits.concurrent == 0 {
                return Err(invalid("limits.concurrent is zero: no call could ever start".into()));
            }
            provider.timeouts.check().map_err(invalid)?;
        }
        for (at, model) in self.models.iter().enumerate() {
            if self.models[..at].iter().any(|earlier| earlier.name == model.name) {
                return Err(ConfigError::DuplicateModel(model.name.clone()));
            }
            if !self.providers.iter().any(|provider| provider.name == model.provider) {
                return Err(ConfigError::UnknownProvider {
                    model: model.name.clone(),
                    provider: model.provider.clone(),
                });
            }
            let invalid = |problem: String| ConfigError::Invalid {
                owner: format!("model {:?}", model.name),
                problem,
            };
            check_params(&model.params).map_err(invalid)?;
            if let Some(timeouts) = &model.timeouts {
                timeouts.check().map_err(invalid)?;
            }
        }
        Ok(())
    }
}

/// Refuses parameters that would fight with what the codec relies on.
pub(crate) fn check_params(params: &Map<String, Value>) -> Result<(), String> {
    for name in RESERVED_PARAMS {
        if params.contains_key(name) {
            return Err(format!("parameter {name:?} is set by Clearway itself"));
        }
    }
    match params.get("n") {
        None | Some(Value::Null) => Ok(()),
        Some(n) if n.as_u64() == Some(1) => Ok(()),
        Some(_) => Err("parameter \"n\" must be 1: a run has one answer".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config() -> Config {
        Config {
            providers: vec![ProviderConfig::new("p", Endpoint::parse("http://localhost").unwrap())],
            models: vec![ModelConfig::new("m", "p", "m-1")],
            clock: None,
        }
    }

    #[test]
    fn endpoints_are_read_from_urls() {
        let endpoint = Endpoint::parse("https://api.openai.com/v1/").unwrap();
        assert_eq!((endpoint.tls, endpoint.port), (true, 443));
        assert_eq!(endpoint.target("/chat/completions"), "/v1/chat/completions");
        assert_eq!(endpoint.host_header(), "api.openai.com");
        let local = Endpoint::parse("http://[::1]:8000?api-version=1").unwrap();
        assert_eq!((local.host.as_str(), local.port), ("::1", 8000));
        assert_eq!(local.host_header(), "[::1]:8000");
        assert_eq!(local.target("/chat/completions"), "/chat/completions?api-version=1");
        for bad in ["", "api.openai.com/v1", "ftp://x", "https://user:pw@x/v1", "/v1", "http://"] {
            assert!(Endpoint::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn contradictions_are_refused() {
        config().check().unwrap();

        let mut twice = config();
        twice.providers.push(twice.providers[0].clone());
        assert_eq!(twice.check().unwrap_err().to_string(), "provider \"p\" is configured twice");

        let mut order = config();
        order.providers[0].timeouts.connect = Duration::from_secs(31);
        assert_eq!(
            order.check().unwrap_err().to_string(),
            "provider \"p\": connect (31s) is longer than headers (30s), which contains it"
        );

        let mut total = config();
        total.providers[0].timeouts.total = Some(Duration::from_secs(60));
        assert!(total.check().is_err(), "shorter than ttft_reasoning");

        let mut zero = config();
        zero.providers[0].limits.concurrent = 0;
        assert!(zero.check().is_err());

        let mut params = config();
        params.models[0].params = json!({"stream": false}).as_object().cloned().unwrap();
        assert!(params.check().is_err());
        params.models[0].params = json!({"n": 1, "temperature": 0}).as_object().cloned().unwrap();
        params.check().unwrap();
    }

    #[test]
    fn secrets_stay_out_of_logs() {
        let mut provider = config().providers.remove(0);
        provider.api_key = Some(Secret::new("sk-verysecret"));
        assert!(!format!("{provider:?}").contains("verysecret"));
    }
}
