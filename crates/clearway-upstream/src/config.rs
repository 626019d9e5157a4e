//! What the client is told at start-up: providers, their models, and every limit.
//!
//! [`Config`] is plain data; [`crate::Upstream::new`] checks it once and refuses what could hang or
//! contradict itself later. Reading it from a file is somebody else's work.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clearway_core::{Clock, Code};
use http::uri::Scheme;
use http::{HeaderName, HeaderValue, Uri};
use serde_json::{Map, Value};

use crate::guard::breaker::BreakerSettings;
use crate::guard::limiter::LimiterSettings;
use crate::usage::Price;

/// Everything [`crate::Upstream`] needs to know.
#[derive(Clone, Debug, Default)]
pub struct Config {
    pub providers: Vec<ProviderConfig>,
    pub models: Vec<ModelConfig>,
    /// For `Retry-After` dates of providers that send no `Date`; without it those are ignored.
    pub clock: Option<Arc<dyn Clock>>,
}

/// One account at one provider.
#[derive(Clone, Debug, PartialEq)]
pub struct ProviderConfig {
    /// As operators know it: `openai`, `sim`, `house-vllm`.
    pub name: String,
    pub endpoint: Endpoint,
    /// What it speaks.
    pub kind: Kind,
    /// Credentials that share the calls, with labels for people; without any, none is sent.
    pub keys: Vec<(Option<String>, Secret)>,
    /// Sent with every request, for instance `OpenAI-Organization` or Azure's `api-key`.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Which [`crate::Dial`] opens the connections; `None` is TCP, with TLS for `https`.
    pub dial: Option<String>,
    pub limits: Limits,
    pub timeouts: Timeouts,
    pub retry: Retry,
    pub breaker: BreakerLimits,
}

impl ProviderConfig {
    /// A provider with the default limits and timeouts.
    pub fn new(name: impl Into<String>, endpoint: Endpoint) -> Self {
        Self {
            name: name.into(),
            endpoint,
            kind: Kind::default(),
            keys: Vec::new(),
            headers: Vec::new(),
            dial: None,
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            retry: Retry::default(),
            breaker: BreakerLimits::default(),
        }
    }
}

/// What a provider speaks, whoever it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Chat completions, which most imitate.
    #[default]
    OpenAi,
    /// OpenAI's Responses.
    Responses,
    /// Anthropic's Messages.
    Anthropic,
    /// Ollama's own chat, not its imitation of OpenAI's.
    Ollama,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::OpenAi, Self::Responses, Self::Anthropic, Self::Ollama];

    /// Its name in configuration files.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Responses => "openai-responses",
            Self::Anthropic => "anthropic",
            Self::Ollama => "ollama",
        }
    }

    /// The chat operation behind an endpoint's path.
    pub(crate) const fn chat_path(self) -> &'static str {
        match self {
            Self::OpenAi => "/chat/completions",
            Self::Responses => "/responses",
            Self::Anthropic => "/messages",
            Self::Ollama => "/api/chat",
        }
    }
}

/// A model under the name that agents use for it.
#[derive(Clone, Debug, PartialEq)]
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
    /// It embeds texts; `None` lets its name tell.
    pub embedding: Option<EmbeddingModel>,
    /// Names of models to ask when this one's provider cannot answer, in this order. Embedding
    /// models have none: vectors of different models do not compare.
    pub fallback: Vec<String>,
    /// Names of models that are as good as this one: each call goes to whichever of them all is
    /// least busy, and to the others when that one cannot answer.
    pub spread: Vec<String>,
    /// How much of the calls this one is to get among equals, relative to their weights.
    pub weight: u32,
    /// Calls of one conversation go to the same one of the equals, as long as it is not much dearer
    /// than the others: a provider may remember the prompt.
    pub affinity: bool,
    /// What happens when an answer breaks off after output was shown.
    pub commit: Commit,
    /// It goes on with an answer that has begun already.
    pub prefill: bool,
    pub price: Option<Price>,
}

/// What happens when an answer breaks off after some of it was shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Commit {
    /// The call fails, and what was shown stands as it is.
    #[default]
    Fail,
    /// What was shown is taken back, and the answer begins anew.
    Restart,
    /// A model that can goes on where the answer broke off; otherwise as `Restart`.
    Continue,
}

/// What is known of a model that embeds texts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EmbeddingModel {
    /// Length of its vectors unless a call asks for another; `None` takes it from the list of known
    /// models, and is not checked for others.
    pub dimensions: Option<u32>,
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
            embedding: None,
            fallback: Vec::new(),
            spread: Vec::new(),
            weight: 1,
            affinity: false,
            commit: Commit::Fail,
            prefill: false,
            price: None,
        }
    }

    /// What the model is as an embedding model, if it is one: because the configuration says so, or
    /// because one of its names does.
    pub fn embedding(&self) -> Option<EmbeddingModel> {
        let name = self.model.to_ascii_lowercase();
        let named = name.contains("embed") || self.name.to_ascii_lowercase().contains("embed");
        let named = named.then(EmbeddingModel::default);
        let known = || {
            let known = KNOWN_DIMENSIONS.iter().find(|(known, _)| name.ends_with(known));
            known.map(|(_, dimensions)| *dimensions)
        };
        self.embedding
            .or(named)
            .map(|model| EmbeddingModel { dimensions: model.dimensions.or_else(known) })
    }
}

/// Vector lengths that everybody knows.
const KNOWN_DIMENSIONS: [(&str, u32); 3] = [
    ("text-embedding-3-small", 1536),
    ("text-embedding-3-large", 3072),
    ("text-embedding-ada-002", 1536),
];

/// How much of a provider may be in use at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Calls in flight, each with a connection of its own; a call counts until its stream ends.
    pub concurrent: usize,
    /// Calls that may wait for one of those, in each class; `None` is four times `concurrent`, at
    /// least 40.
    pub queue: Option<usize>,
    /// Requests per minute; `None` is whatever the provider's headers tell.
    pub per_minute: Option<u32>,
    /// How many of those may go at once; `None` is 10, at most `per_minute`.
    pub burst: Option<u32>,
    /// Tokens per minute, prompts and answers together; `None` as above.
    pub tokens_per_minute: Option<u64>,
    /// Idle connections kept; never fewer than `concurrent` are useful, and never more are kept
    /// than the larger of both.
    pub idle_connections: usize,
}

impl Limits {
    pub(crate) fn settings(&self) -> LimiterSettings {
        let defaults = LimiterSettings::new(self.concurrent);
        LimiterSettings {
            per_minute: self.per_minute,
            burst: self.burst,
            tokens_per_minute: self.tokens_per_minute,
            queue: self.queue.unwrap_or(defaults.queue),
            ..defaults
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            concurrent: 64,
            queue: None,
            per_minute: None,
            burst: None,
            tokens_per_minute: None,
            idle_connections: 10,
        }
    }
}

/// How often a call is tried, and how long it rests in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Over all routes of a call, the first included.
    pub attempts: u32,
    /// The longest rest before the first retry; doubled for each further one.
    pub backoff: Duration,
    pub on: RetryOn,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 3, backoff: Duration::from_millis(500), on: RetryOn::default() }
    }
}

/// After which faults the same provider is asked again. Other keys and fallbacks take over whatever
/// stands here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryOn {
    /// It was silent, or said that it had waited too long.
    pub timeout: bool,
    /// No connection came about.
    pub connect: bool,
    /// It failed, or its answer was no good.
    pub server: bool,
    /// It wants fewer requests.
    pub rate: bool,
}

impl Default for RetryOn {
    fn default() -> Self {
        Self { timeout: true, connect: true, server: true, rate: true }
    }
}

impl RetryOn {
    pub(crate) const fn allows(self, code: Code) -> bool {
        match code {
            Code::UpstreamDnsFailed
            | Code::UpstreamConnectFailed
            | Code::UpstreamConnectTimeout
            | Code::UpstreamTlsFailed => self.connect,
            Code::UpstreamSendTimeout
            | Code::UpstreamHeadersTimeout
            | Code::UpstreamFirstTokenTimeout
            | Code::UpstreamBodyTimeout
            | Code::UpstreamStreamIdle
            | Code::UpstreamStreamStalled
            | Code::UpstreamStreamTooSlow
            | Code::UpstreamTimeout => self.timeout,
            Code::UpstreamRateLimited => self.rate,
            Code::UpstreamOverloaded
            | Code::UpstreamServerError
            | Code::UpstreamBadResponse
            | Code::UpstreamEmptyResponse
            | Code::UpstreamStreamTruncated
            | Code::UpstreamStreamMalformed
            | Code::UpstreamStreamTooLarge
            | Code::UpstreamBadVectors => self.server,
            _ => true,
        }
    }
}

/// When a provider is left alone, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerLimits {
    /// Failures in a row, within `window`; half of all calls within it will do, too.
    pub failures: usize,
    pub window: Duration,
    /// Until the first probe; doubled by each that fails, up to `recovery_max`.
    pub recovery: Duration,
    pub recovery_max: Duration,
}

impl Default for BreakerLimits {
    fn default() -> Self {
        let defaults = BreakerSettings::default();
        Self {
            failures: defaults.failures,
            window: defaults.window,
            recovery: defaults.recovery,
            recovery_max: defaults.recovery_max,
        }
    }
}

impl BreakerLimits {
    pub(crate) fn settings(&self) -> BreakerSettings {
        BreakerSettings {
            failures: self.failures,
            window: self.window,
            recovery: self.recovery,
            recovery_max: self.recovery_max.max(self.recovery),
            ..BreakerSettings::default()
        }
    }
}

/// How long each stage of a call may take. The caller's deadline cuts all of them.
#[derive(Clone, Copy, Debug, PartialEq)]
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
    /// Fewer tokens in a second than this, over five seconds of output, and the answer is given up
    /// as too slow; `None` lets it take its time.
    pub rate_floor: Option<f64>,
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
            rate_floor: None,
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
        if self.rate_floor.is_some_and(|floor| !(floor > 0.0 && floor < 1e6)) {
            return Err("rate_floor is a number of tokens in a second, above 0".to_owned());
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

    /// The stages of a call that embeds: never longer than what somebody who searches would wait,
    /// so that three attempts fit into the usual 25 s.
    pub(crate) fn for_embedding(self) -> Self {
        let seconds = Duration::from_secs;
        Self {
            queue: self.queue.min(seconds(5)),
            connect: self.connect.min(seconds(3)),
            send: self.send.min(seconds(5)),
            headers: self.headers.min(seconds(8)),
            idle: self.idle.min(seconds(5)),
            ..self
        }
    }

    /// The limits of the streaming stages for a model.
    pub(crate) fn stream(&self, reasoning: bool) -> StreamLimits {
        let (ttft, progress, idle_output) = if reasoning {
            (self.ttft_reasoning, self.progress_reasoning, self.idle)
        } else {
            (self.ttft, self.progress, self.idle_output)
        };
        let (idle, rate_floor, tail) = (self.idle, self.rate_floor, self.tail);
        StreamLimits { ttft, idle, idle_output, rate_floor, progress, tail }
    }
}

/// [`Timeouts`] of a stream, chosen for one model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StreamLimits {
    pub(crate) ttft: Duration,
    pub(crate) idle: Duration,
    pub(crate) idle_output: Duration,
    pub(crate) rate_floor: Option<f64>,
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
    pub fn target(&self, operation: &str) -> String {
        match &self.query {
            Some(query) => format!("{}{operation}?{query}", self.path),
            None => format!("{}{operation}", self.path),
        }
    }

    /// The `Host` header: the port only where it is not the scheme's own.
    pub fn host_header(&self) -> String {
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
pub(crate) const RESERVED_PARAMS: [&str; 5] =
    ["model", "messages", "input", "stream", "stream_options"];

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
            if provider.retry.attempts == 0 {
                return Err(invalid("retry.attempts is zero: no call could ever start".into()));
            }
            if provider.breaker.failures == 0 || provider.breaker.recovery.is_zero() {
                return Err(invalid("breaker.failures and breaker.recovery cannot be zero".into()));
            }
            if provider.limits.per_minute == Some(0) || provider.limits.tokens_per_minute == Some(0)
            {
                return Err(invalid("a rate of zero per minute lets no call through".into()));
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
            if model.embedding.is_some_and(|model| model.dimensions == Some(0)) {
                return Err(invalid("embedding.dimensions is zero: no vector could fit".into()));
            }
            let named = |what: &'static str, names: &'_ [String]| {
                names.iter().map(move |name| (what, name.clone())).collect::<Vec<_>>()
            };
            let others = [named("fallback", &model.fallback), named("spread", &model.spread)];
            for (what, name) in others.into_iter().flatten() {
                let Some(other) = self.models.iter().find(|other| other.name == name) else {
                    return Err(invalid(format!("{what} {name:?} is not configured")));
                };
                if other.name == model.name {
                    return Err(invalid(format!("{what}: it cannot name itself")));
                }
                if model.embedding().is_some() || other.embedding().is_some() {
                    return Err(invalid(format!(
                        "{what} {name:?}: vectors of different models do not compare"
                    )));
                }
            }
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
        provider.keys = vec![(None, Secret::new("sk-verysecret"))];
        assert!(!format!("{provider:?}").contains("verysecret"));
    }
}
