//! `clearway.toml` as a typed [`Config`], checked as a whole before anything starts.
//!
//! ```
//! use clearway::config::{Config, Env};
//!
//! let config = Config::parse(
//!     "clearway.toml",
//!     r#"
//!     [agents.helper]
//!     prompt = "You are {{ agent.title }}."
//!     deadline = "60s"
//!     "#,
//!     &Env::default(),
//! )?;
//! assert_eq!(config.agents["helper"].deadline.as_secs(), 60);
//! # Ok::<(), clearway::config::Report>(())
//! ```
//!
//! What must stay true: every error knows its place, all errors are told at once, an unknown key is
//! an error, nothing waits without an end, and a secret is never printed.
//!
//! Not here: making engine agents and upstream clients of it ([`crate::Clearway`]).

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clearway_core::run::Multitask;
use clearway_server::{KeyLimits, Scope};
use clearway_upstream::{Allowed, BreakerLimits, Commit, EmbeddingModel, Kind, Price, Retry};
use serde_json::{Map, Value};

pub use self::duration::{read as parse_duration, show as show_duration};
pub use self::env::Env;
pub use self::http::Http;
pub use self::knowledge::{Chunk, Content, Knowledge, Search, Uploads};
pub use self::prompt::Prompt;
use self::read::Judged;
pub use self::report::{Colour, Place, Problem, Report, Source};
pub use self::secret::Secret;
pub use self::tools::{Mcp, McpTransport, StatePart, ToolKind, ToolRef};

mod alerts;
mod auth;
mod doors;
mod duration;
mod env;
mod http;
mod knowledge;
mod models;
pub(crate) mod prompt;
mod providers;
mod read;
mod report;
mod resolve;
mod secret;
mod telemetry;
mod tools;
mod walk;
mod webhooks;
pub mod workflow;

#[cfg(test)]
mod tests;

/// The name of the configuration file.
pub const FILE: &str = "clearway.toml";

/// The name under which one agent can always be reached.
pub const DEFAULT_AGENT: &str = "agent";

/// The model of agents that name none.
pub const DEFAULT_MODEL: &str = "default";

/// The provider made of `OPENAI_API_KEY` and `OPENAI_BASE_URL`.
pub const OPENAI: &str = "openai";

/// The provider made of `ANTHROPIC_API_KEY`.
pub const ANTHROPIC: &str = "anthropic";

/// The provider made of `OLLAMA_HOST`.
pub const OLLAMA: &str = "ollama";

/// The simulator that is built in.
pub const SIM: &str = "sim";

/// A whole configuration: every name in it resolves.
#[derive(Clone, Debug)]
pub struct Config {
    pub origin: Origin,
    pub server: Server,
    pub providers: BTreeMap<String, Provider>,
    pub models: BTreeMap<String, Model>,
    pub pools: BTreeMap<String, Pool>,
    pub agents: BTreeMap<String, Agent>,
    pub workflows: BTreeMap<String, workflow::Workflow>,
    pub mcp: BTreeMap<String, Mcp>,
    pub http: Http,
    /// Sources of knowledge.
    pub knowledge: BTreeMap<String, Knowledge>,
    pub uploads: Uploads,
    pub doors: BTreeMap<String, Door>,
    /// `None` when spans are exported nowhere.
    pub telemetry: Option<Telemetry>,
    /// Keys that callers need; without any, only this machine may ask.
    pub auth: Vec<AuthKey>,
    pub webhooks: Webhooks,
    /// `[alerts]`.
    pub alerts: clearway_engine::Alerts,
    pub crons: BTreeMap<String, Cron>,
    /// The agent behind the name [`DEFAULT_AGENT`] and behind doors that name none.
    pub default_agent: String,
    /// Every file that was read, to look for changes in.
    pub files: Vec<PathBuf>,
    /// What is no error and should be known, one sentence each.
    pub warnings: Vec<String>,
    /// Variables that are set and have no effect any more.
    pub ignored_variables: Vec<&'static str>,
}

/// Where a configuration comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This file.
    File(PathBuf),
    /// The examples in the binary.
    BuiltIn,
    /// Text that was handed in.
    Text,
}

/// `[server]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    /// `None` when nobody said: the command decides.
    pub listen: Option<Listen>,
    pub data: Option<PathBuf>,
    pub log: Option<LogFormat>,
    /// How long runs may go on after a request to stop.
    pub drain: Duration,
    /// Listening beyond this machine without keys is allowed.
    pub insecure: bool,
    /// Runtime threads; `None` is one per core, at most four.
    pub worker_threads: Option<u32>,
    /// Hosts besides this machine whose web pages may ask a server that listens on loopback.
    pub allowed_hosts: Vec<String>,
    pub limits: ServerLimits,
}

/// `[server.limits]`; `None` is the server's own default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerLimits {
    pub max_connections: Option<usize>,
    pub max_body_bytes: Option<usize>,
    /// A run that says more than this fails.
    pub max_output_bytes: Option<usize>,
    pub body_timeout: Option<Duration>,
    pub header_timeout: Option<Duration>,
    pub keep_alive: Option<Duration>,
    pub stalled_reader: Option<Duration>,
    /// A waiting run rises one priority for each time it has waited this long.
    pub ageing: Option<Duration>,
    pub heartbeat: Option<Duration>,
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    pub host: String,
    pub port: u16,
}

impl Listen {
    /// Whether only this machine can connect.
    pub fn is_loopback(&self) -> bool {
        match self.host.parse::<IpAddr>() {
            Ok(address) => address.is_loopback(),
            Err(_) => self.host.eq_ignore_ascii_case("localhost"),
        }
    }
}

impl Default for Listen {
    fn default() -> Self {
        Self { host: "127.0.0.1".to_owned(), port: 8123 }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape = || format!("`{text}` is not HOST:PORT, such as 127.0.0.1:8123");
        let (host, port) = text.trim().rsplit_once(':').ok_or_else(shape)?;
        let port = port.parse().map_err(|_| shape())?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if bracketed.is_none() && host.contains(':') {
            return Err(format!("`{text}`: write an IPv6 address in brackets, such as [::1]:8123"));
        }
        match bracketed.unwrap_or(host) {
            "" => Err(shape()),
            host => Ok(Self { host: host.to_owned(), port }),
        }
    }
}

/// `path` as seen from `folder`, without the dots that add nothing.
pub(crate) fn join(folder: &Path, path: impl AsRef<Path>) -> PathBuf {
    let joined = folder.join(path);
    let parts = joined.components().filter(|part| *part != std::path::Component::CurDir);
    let short: PathBuf = parts.collect();
    if short.as_os_str().is_empty() { PathBuf::from(".") } else { short }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// One JSON object per line.
    Json,
}

/// `[providers.NAME]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Provider {
    pub kind: ProviderKind,
    pub limits: ProviderLimits,
    /// Connections that may be open at once; `None` is as many as calls.
    pub connections: Option<u32>,
    /// Idle connections that are kept.
    pub keep_alive: Option<u32>,
    pub deadline: Deadlines,
    pub retry: Retry,
    pub breaker: BreakerLimits,
}

impl Provider {
    /// One about which nothing but its kind was said.
    pub(crate) fn new(kind: ProviderKind) -> Self {
        Self {
            kind,
            limits: ProviderLimits::default(),
            connections: None,
            keep_alive: None,
            deadline: Deadlines::default(),
            retry: Retry::default(),
            breaker: BreakerLimits::default(),
        }
    }
}

/// How much of a provider may be in use; `None` is the client's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProviderLimits {
    /// Calls at once.
    pub concurrent: Option<u32>,
    /// Calls that may wait for one of those.
    pub queue: Option<u32>,
    /// Requests per minute.
    pub per_minute: Option<u32>,
    /// How many of those may go at once.
    pub burst: Option<u32>,
    /// Tokens per minute, prompts and answers together.
    pub tokens_per_minute: Option<u64>,
}

/// What kind of provider.
#[derive(Clone, Debug, PartialEq)]
pub enum ProviderKind {
    /// A server at an address.
    Remote(Remote),
    /// The simulator in this process.
    Sim(Sim),
}

/// A provider that is reached over HTTP.
#[derive(Clone, Debug, PartialEq)]
pub struct Remote {
    /// What it speaks.
    pub speaks: Kind,
    pub base_url: String,
    /// Credentials that share the calls.
    pub keys: Vec<Key>,
    /// Sent with every request.
    pub headers: Vec<(String, Secret)>,
    /// PEM certificates to trust besides the usual ones.
    pub ca_file: Option<PathBuf>,
}

/// A credential at a provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// For people; the key itself is never shown.
    pub name: Option<String>,
    pub secret: Secret,
}

/// Limits of a call's stages; `None` is the client's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deadlines {
    pub connect: Option<Duration>,
    pub first_byte: Option<Duration>,
    pub first_token: Option<Duration>,
    pub between_bytes: Option<Duration>,
    pub between_tokens: Option<Duration>,
    /// Fewest tokens in a second, in millionths.
    pub rate_floor: Option<u64>,
    /// `None` is the caller's deadline.
    pub total: Option<Duration>,
}

/// How the simulator answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sim {
    /// The first rule that fits.
    pub script: Vec<ScriptRule>,
    /// Time to the first token.
    pub ttft: Duration,
    /// Time between tokens.
    pub token_interval: Duration,
    /// Replies of exactly this many tokens instead of the script's.
    pub tokens: Option<u32>,
    pub jitter: f64,
    /// Above this many calls at once it answers 429.
    pub max_concurrent: Option<u32>,
    /// Above this many requests per minute, too.
    pub rpm: Option<u32>,
    /// Above this many tokens per minute, too.
    pub tpm: Option<u32>,
    /// Up and down in turns.
    pub flap: Option<Flap>,
}

/// How long a simulated provider is up and how long down, beginning with up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flap {
    pub up: Duration,
    pub down: Duration,
}

/// A scripted reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptRule {
    /// Part of the user's text, in any case; empty fits always.
    pub matches: String,
    /// A template over `message`, `messages`, `model` and `turn`; the arguments of a call.
    pub reply: String,
    /// Calls this tool instead of answering.
    pub tool: Option<String>,
}

/// An entry of `[models]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    pub provider: String,
    /// What the provider calls it.
    pub model: String,
    /// Sent with every request.
    pub params: Map<String, Value>,
    pub context_tokens: Option<u32>,
    /// It may think for a while before it says something.
    pub reasoning: bool,
    /// The limit of one call.
    pub deadline: Option<Duration>,
    /// `None` for models that answer.
    pub embedding: Option<EmbeddingModel>,
    /// Names of models to ask when this one's provider cannot answer, in this order.
    pub fallback: Vec<String>,
    /// Names of models that are as good as this one; calls go to the least busy of them all.
    pub spread: Vec<String>,
    /// Its share among equals.
    pub weight: u32,
    /// Conversations stay with one of the equals.
    pub affinity: bool,
    /// What happens when an answer breaks off after some of it was shown.
    pub commit: Commit,
    /// It goes on with an answer that has begun already.
    pub prefill: bool,
    pub price: Option<Price>,
}

/// `[pools.NAME]`: so many runs at once, so many waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    pub slots: u32,
    pub queue: u32,
}

/// `[agents.NAME]`.
#[derive(Clone, Debug)]
pub struct Agent {
    pub title: String,
    pub model: String,
    pub prompt: Prompt,
    pub pool: String,
    /// Limit of a turn that somebody waits for.
    pub deadline: Duration,
    /// Limit of working time in the background.
    pub working_limit: Duration,
    pub when_busy: Multitask,
    /// How much of the conversation the model sees.
    pub history_tokens: u32,
    /// Which checkpoints of its threads stay.
    pub keep: clearway_engine::Keep,
    /// Added to the model's.
    pub params: Map<String, Value>,
    /// What it can do besides talking.
    pub tools: Vec<ToolRef>,
    /// Patterns of tools that need a person's approval.
    pub confirm: Vec<String>,
    /// How often in one turn the model may call tools.
    pub tool_rounds: u32,
    /// What of its state the model keeps, and how that looks.
    pub state: BTreeMap<String, StatePart>,
    /// Whether it answers from its sources only, and how strictly; `None` searches when it likes.
    pub cite: Option<Cite>,
}

/// Whether an answer must carry citations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cite {
    /// One without a valid citation is written again once, then flagged.
    Required,
    /// Citations are checked, and only flagged.
    Optional,
}

/// `[doors.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Door {
    pub dialect: Dialect,
    /// In front of all its addresses: `/`, or a path without a slash at its end.
    pub mount: String,
    /// `None` is the default agent.
    pub agent: Option<String>,
    /// Whether it shows a thread's state to anybody who knows its key.
    pub expose_state: bool,
    /// Of a door to notes: which source of knowledge they are.
    pub source: Option<String>,
}

/// `[telemetry]` and the `OTEL_…` variables: where spans go, and which.
#[derive(Clone, Debug, PartialEq)]
pub struct Telemetry {
    /// The whole address that batches are posted to.
    pub endpoint: String,
    /// Sent with every batch.
    pub headers: Vec<(String, Secret)>,
    /// Who we are; always has `service.name`.
    pub resource: BTreeMap<String, String>,
    pub sampling: Sampling,
}

/// `[webhooks]`: how the ends of runs are told to others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Webhooks {
    pub secret: Option<Secret>,
    /// Hosts and networks that are not public and may be told all the same.
    pub allow: Vec<Allowed>,
    pub deadline: Option<Duration>,
    pub attempts: Option<u32>,
    pub backoff: Option<Duration>,
}

/// `[crons.NAME]`: a run that the clock starts.
#[derive(Clone, Debug, PartialEq)]
pub struct Cron {
    /// Five fields: minute, hour, day of month, month, day of week.
    pub schedule: String,
    /// An IANA name; `None` is UTC.
    pub timezone: Option<String>,
    /// The agent or workflow.
    pub runs: String,
    pub input: Value,
    /// All its runs on one thread of this name.
    pub thread: Option<String>,
}

/// An entry of `[auth] keys`: who may ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthKey {
    /// For people and logs.
    pub name: String,
    pub secret: Secret,
    /// In whose name it acts; `None` acts for all users of its tenant.
    pub user: Option<String>,
    pub tenant: String,
    pub admin: bool,
    pub scopes: Vec<Scope>,
    pub limits: KeyLimits,
}

/// Which traces are exported.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// The part of traces, from 0 to 1.
    pub ratio: f64,
    /// A caller that traces decides for its own.
    pub follow_parent: bool,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { ratio: 1.0, follow_parent: true }
    }
}

/// What a door speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    CoFounder,
    /// Campaigns, over a workflow.
    Campaign,
    /// Chat over notes.
    Knowledge,
}

impl Config {
    /// Reads and checks a configuration file. Paths in it are relative to its folder.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(file: &Path, env: &Env) -> Result<Self, Report> {
        Self::read(file, env, Judged::UnderFlags)
    }

    /// As [`Config::load`], and refuses what a server without flags would refuse at its start, too:
    /// listening beyond this machine without keys.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn check(file: &Path, env: &Env) -> Result<Self, Report> {
        Self::read(file, env, Judged::Alone)
    }

    fn read(file: &Path, env: &Env, judged: Judged) -> Result<Self, Report> {
        let unreadable = |why: String, help: &str| {
            Report::new(vec![
                Problem::new(format!("cannot read {}: {why}", file.display())).help(help),
            ])
        };
        let text = std::fs::read(file).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => unreadable(
                "there is no such file".to_owned(),
                "give the file with --config, or run in a folder that has a clearway.toml",
            ),
            _ => unreadable(error.to_string(), "look at its permissions"),
        })?;
        let text = String::from_utf8(text).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            unreadable(format!("it is not UTF-8 (byte {at})"), "save it as UTF-8")
        })?;
        let name = file.file_name().unwrap_or(file.as_os_str()).to_string_lossy();
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
        let files = read::Files::Folder(folder.unwrap_or(Path::new(".")).to_owned());
        let mut config = read::config(Source::new(name, text), &files, env, judged)?;
        config.origin = Origin::File(file.to_owned());
        config.files.insert(0, file.to_owned());
        Ok(config)
    }

    /// The file in `folder`, or the built-in examples when it has none.
    ///
    /// # Errors
    /// Everything that is wrong with the file, or that `folder` is none.
    pub fn load_folder(folder: &Path, env: &Env) -> Result<Self, Report> {
        let file = join(folder, FILE);
        if file.exists() {
            return Self::load(&file, env);
        }
        if !folder.is_dir() {
            let problem = Problem::new(format!("there is no folder {}", folder.display()));
            return Err(Report::new(vec![problem.help("create it, or leave the argument out")]));
        }
        Self::built_in(env)
    }

    /// The examples that are in the binary.
    ///
    /// # Errors
    /// What is wrong with settings in the environment.
    pub fn built_in(env: &Env) -> Result<Self, Report> {
        let source = Source::new("built-in clearway.toml", crate::builtin::CONFIG);
        let mut config = read::config(source, &read::Files::BuiltIn, env, Judged::UnderFlags)?;
        config.origin = Origin::BuiltIn;
        Ok(config)
    }

    /// Checks a text as if it were a file called `name` in the current folder.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(name: &str, text: &str, env: &Env) -> Result<Self, Report> {
        let files = read::Files::Folder(PathBuf::from("."));
        read::config(Source::new(name, text), &files, env, Judged::UnderFlags)
    }

    /// The folder that relative paths start from.
    pub fn folder(&self) -> &Path {
        match &self.origin {
            Origin::File(file) => file
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty())
                .unwrap_or(Path::new(".")),
            Origin::BuiltIn | Origin::Text => Path::new("."),
        }
    }

    /// What people want to know about the default model: `gpt-5-mini at openai`, or that it is the
    /// simulator.
    pub fn default_model(&self) -> (&Model, &Provider) {
        let model = &self.models[&self.agents[&self.default_agent].model];
        (model, &self.providers[&model.provider])
    }
}
