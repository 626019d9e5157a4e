//! A running server: store, provider client, engine and listener, put together and taken apart.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clearway_core::Clock;
use clearway_core::thread::ThreadKey;
use clearway_engine::knowledge::ReaderCommand;
use clearway_engine::upstream::OutwardPolicy;
use clearway_engine::{
    Agent, Agents, CronSpec, Engine, Knowledge, KnowledgeOptions, Lanes, Limits, PoolOptions,
    Store, Tasks, Webhooks,
};
use clearway_server::{
    ApiKey, BindError, Bound, Door, DoorKind, HttpLimits, Server, ServerOptions,
};
use clearway_store::{SqliteOptions, SqliteStore, SystemClock};
use clearway_upstream::ConfigError;
use serde_json::Map;
use tokio::net::TcpSocket;
use tokio::time::timeout;

use crate::config::workflow::StepKind;
use crate::config::{self, AuthKey, Config, Dialect, Listen, ServerLimits};
use crate::services::Services;
use crate::simulator::Simulator;
use crate::telemetry;
use crate::{agents, knowledge, upstream};

/// What whoever starts a server decides, beside the configuration.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// For providers of `kind = "sim"`; without one they are an error.
    pub simulator: Option<Simulator>,
    pub ports: Ports,
    /// Shown among the server's metrics.
    pub telemetry: Option<telemetry::Counts>,
    /// Agents written in code, by [`Graph::agent`](crate::graph::Graph::agent), beside those of the
    /// configuration.
    pub graphs: Vec<Arc<Agent>>,
    /// What reads documents; without it none can be read.
    pub reader: Option<ReaderCommand>,
}

/// What to do when the port is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ports {
    /// Fail.
    #[default]
    Exact,
    /// Take one of the next.
    NextFree,
}

impl Ports {
    /// The last port to try.
    const fn last(self, wanted: u16) -> u16 {
        match self {
            Self::Exact => wanted,
            Self::NextFree => wanted.saturating_add(NEXT_PORTS),
        }
    }
}

/// How many ports behind the wanted one are tried.
const NEXT_PORTS: u16 = 20;

/// Why a server cannot start: what, where, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Its text names the directory.
    #[error(transparent)]
    Store(#[from] clearway_store::Error),
    #[error("provider `{provider}` is a simulated one, and there is no simulator here")]
    NoSimulator { provider: String },
    #[error("provider `{provider}`: {problem}")]
    Provider { provider: String, problem: String },
    #[error("the providers of the configuration cannot be used")]
    Upstream(#[from] ConfigError),
    #[error(transparent)]
    Engine(#[from] clearway_engine::Error),
    #[error("graph `{graph}`: {problem}")]
    Graph { graph: String, problem: String },
    #[error("cannot listen on {listen}: {problem}")]
    Address { listen: Listen, problem: String },
    #[error(transparent)]
    Bind(#[from] BindError),
}

impl StartError {
    /// Whether another process has the data directory.
    pub fn is_locked(&self) -> bool {
        matches!(self, Self::Store(error) if error.kind == clearway_store::ErrorKind::Locked)
    }
}

/// A running server.
///
/// Dropping it without [`Clearway::shutdown`] leaves its tasks to the runtime's end; what runs then
/// continues at the next start, as after a crash.
#[derive(Debug)]
pub struct Clearway {
    engine: Engine,
    /// Own the listener and what is simulated.
    http: Tasks,
    simulated: Tasks,
    services: Services,
    address: SocketAddr,
    wanted: Listen,
    data: PathBuf,
    clock: Arc<dyn Clock>,
    config: Config,
    graphs: Vec<Arc<Agent>>,
    simulator: Option<Simulator>,
}

impl Clearway {
    /// Starts a server and returns when it accepts connections.
    ///
    /// # Errors
    /// Says what is in the way; nothing is left running then.
    pub async fn start(config: Config, options: Options) -> Result<Self, StartError> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let simulated = Tasks::new();
        let upstream = upstream::build(&config, options.simulator.as_ref(), &clock, &simulated)?;
        let wanted = config.server.listen.clone().unwrap_or_default();
        let mut listen = resolve(&wanted).await?;
        let open = config.server.insecure || !config.auth.is_empty();
        check_address(&mut listen, open, options.ports)?;
        let data = config.server.data.clone().unwrap_or_else(|| PathBuf::from("data"));
        let store = open_store(&data, clock.clone()).await?;
        check_graphs(&options.graphs, &config)?;
        let lanes = Lanes::default();
        let knowledge = Knowledge::new(
            KnowledgeOptions {
                changes: true,
                ..knowledge::options(&config, options.reader.clone())
            },
            store.clone(),
            upstream.clone(),
            lanes.clone(),
            clock.clone(),
        );
        let services = Services::new(&config, &simulated, Some(knowledge.clone()), lanes.clone());
        let agents = Agents::new(all_agents(&config, &services, &clock, &options.graphs));
        let engine =
            Engine::start(engine_options(&config, lanes), store, upstream, agents, clock.clone())
                .await?;
        if let Err(error) = engine.attach(knowledge) {
            engine.shutdown(Duration::ZERO).await;
            return Err(error.into());
        }
        if let Err(error) = engine.configure_crons(TENANT, crons(&config)).await {
            engine.shutdown(Duration::ZERO).await;
            return Err(error.into());
        }
        if let Some(counts) = &options.telemetry {
            counts.register(&mut engine.metrics().registry());
        }
        let bound = match bind(&engine, server_options(&config, listen, &data), options.ports).await
        {
            Ok(bound) => bound,
            Err(error) => {
                engine.shutdown(Duration::ZERO).await;
                return Err(error.into());
            }
        };
        let address = bound.local_addr().unwrap_or(listen);
        let http = Tasks::new();
        http.spawn(bound.serve(http.soft.clone(), http.hard.clone()));
        let Options { graphs, simulator, .. } = options;
        Ok(Self {
            engine,
            http,
            simulated,
            services,
            address,
            wanted,
            data,
            clock,
            config,
            graphs,
            simulator,
        })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The port that was asked for, when another one was taken instead.
    pub fn port_taken(&self) -> Option<u16> {
        let wanted = self.wanted.port;
        (wanted != 0 && wanted != self.address.port()).then_some(wanted)
    }

    /// Where data is kept.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The configuration that is in force.
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Puts a changed configuration in force, as far as that is possible while the server runs: agents,
    /// workflows, tools, sources, providers and models. Runs under way, and their calls, go on as they
    /// began. Answers which other tables differ: they need a restart.
    pub fn reload(&mut self, new: Config) -> Vec<&'static str> {
        let mut waiting = self.replace_providers(&new);
        let old = &self.config;
        let differ = [
            ("server", old.server != new.server),
            ("pools", old.pools != new.pools),
            ("doors", old.doors != new.doors || old.default_agent != new.default_agent),
            // Sources that need a model which is not there yet wait for the restart.
            ("knowledge", new.knowledge.values().any(|source| !source.has_models(&old.models))),
            ("uploads", old.uploads != new.uploads),
            ("telemetry", old.telemetry != new.telemetry),
            ("auth", old.auth != new.auth),
            ("webhooks", old.webhooks != new.webhooks),
            ("alerts", old.alerts != new.alerts),
            ("crons", old.crons != new.crons),
        ];
        waiting.extend(differ.iter().filter(|(_, differs)| *differs).map(|(name, _)| *name));
        // Agents that need what is not there yet wait for the restart.
        let usable = |agent: &crate::config::Agent| {
            old.models.contains_key(&agent.model) && old.pools.contains_key(&agent.pool)
        };
        let agents = new.agents.iter().filter(|(_, agent)| usable(agent));
        let fits = |workflow: &crate::config::workflow::Workflow| {
            old.pools.contains_key(&workflow.pool)
                && workflow.steps.iter().all(|step| match &step.kind {
                    StepKind::Llm { model, .. } => old.models.contains_key(model),
                    _ => true,
                })
        };
        let workflows = new.workflows.iter().filter(|(_, workflow)| fits(workflow));
        self.services.configure(&new);
        let in_force = Config {
            mcp: new.mcp.clone(),
            http: new.http.clone(),
            workflows: workflows.map(|(name, workflow)| (name.clone(), workflow.clone())).collect(),
            agents: agents.map(|(name, agent)| (name.clone(), agent.clone())).collect(),
            default_agent: new.default_agent.clone(),
            files: new.files.clone(),
            knowledge: new
                .knowledge
                .iter()
                .filter(|(_, source)| source.has_models(&old.models))
                .map(|(name, source)| (name.clone(), source.clone()))
                .collect(),
            ..old.clone()
        };
        if let Some(known) = self.services.knowledge() {
            known.configure(&knowledge::options(&in_force, None).sources);
        }
        let agents = all_agents(&in_force, &self.services, &self.clock, &self.graphs);
        self.engine.agents().replace(agents);
        // What waits for a restart differs until then, however often the file changes.
        self.config = Config { default_agent: self.config.default_agent.clone(), ..in_force };
        waiting
    }

    /// Puts changed providers and models in force. What cannot be used as it is waits for a restart.
    fn replace_providers(&mut self, new: &Config) -> Vec<&'static str> {
        let old = &self.config;
        let differ =
            [("providers", old.providers != new.providers), ("models", old.models != new.models)];
        let differ: Vec<&'static str> =
            differ.iter().filter(|(_, differs)| *differs).map(|(name, _)| *name).collect();
        if differ.is_empty() {
            return differ;
        }
        let wanted =
            Config { providers: new.providers.clone(), models: new.models.clone(), ..old.clone() };
        let upstream = self.engine.upstream();
        let simulator = self.simulator.as_ref();
        match upstream::replace(upstream, &wanted, old, simulator, &self.clock, &self.simulated) {
            Ok(()) => {
                self.config = wanted;
                Vec::new()
            }
            Err(error) => {
                tracing::warn!("changed providers cannot be put in force: {error}");
                differ
            }
        }
    }

    /// Stops: nothing new is taken, runs may finish until `grace` is over or `hurry` is ready, and can
    /// be watched and cancelled meanwhile; the rest is handed back and goes on after the next start.
    /// Bounded by `grace` and a few seconds.
    pub async fn shutdown(self, grace: Duration, hurry: impl Future<Output = ()>) {
        let Self { engine, http, simulated, .. } = self;
        // In this order: while the engine drains, the listener stays open.
        engine.tasks().soft.cancel();
        http.soft.cancel();
        let hurry = async {
            let _ = timeout(grace, hurry).await;
            // Streams say why they end while the engine still hands back.
            engine.tasks().hard.cancel();
            http.hard.cancel();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = engine.shutdown(grace) => {}
            () = hurry => {}
        }
        // The last answers are on their way; what is left after that waits for nothing.
        if timeout(LAST_ANSWERS, http.close()).await.is_err() {
            http.hard.cancel();
            if timeout(CLOSING, http.close()).await.is_err() {
                tracing::warn!("some connections did not close in time");
            }
        }
        simulated.hard.cancel();
        let _ = timeout(CLOSING, simulated.close()).await;
    }
}

/// For answers that are complete and not sent yet.
const LAST_ANSWERS: Duration = Duration::from_millis(500);
/// For connections to close.
const CLOSING: Duration = Duration::from_secs(2);
/// For a name to be looked up.
const LOOKUP: Duration = Duration::from_secs(5);

/// The address to listen on. Names need a look-up, except the one that everybody writes.
async fn resolve(listen: &Listen) -> Result<SocketAddr, StartError> {
    if let Ok(address) = listen.host.parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, listen.port));
    }
    if listen.host.eq_ignore_ascii_case("localhost") {
        return Ok(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), listen.port));
    }
    let failed = |problem: String| StartError::Address { listen: listen.clone(), problem };
    let lookup = tokio::net::lookup_host((listen.host.as_str(), listen.port));
    match timeout(LOOKUP, lookup).await {
        Ok(Ok(mut found)) => {
            found.next().ok_or_else(|| failed("the name has no address".to_owned()))
        }
        Ok(Err(error)) => Err(failed(format!("the name cannot be looked up: {error}"))),
        Err(_) => Err(failed("looking up the name took too long".to_owned())),
    }
}

/// Finds out what is in the way of listening before runs of an earlier process are taken up, and
/// moves on to a free port where that is wanted.
fn check_address(listen: &mut SocketAddr, open: bool, ports: Ports) -> Result<(), StartError> {
    if !listen.ip().is_loopback() && !open {
        return Err(BindError::Unguarded(*listen).into());
    }
    let wanted = *listen;
    let last = ports.last(wanted.port());
    loop {
        match try_bind(*listen) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if listen.port() >= last {
                    return Err(BindError::AddressInUse(wanted).into());
                }
                listen.set_port(listen.port() + 1);
            }
            // Anything else is told by the one who really listens.
            Ok(()) | Err(_) => return Ok(()),
        }
    }
}

/// As the server will do it: lingering connections of an earlier server are no obstacle.
fn try_bind(address: SocketAddr) -> io::Result<()> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(1).map(drop)
}

/// Those of the configuration, and those in code.
fn all_agents(
    config: &Config,
    services: &Services,
    clock: &Arc<dyn Clock>,
    graphs: &[Arc<Agent>],
) -> Vec<(String, Arc<Agent>)> {
    let mut agents = agents::compile(config, services, clock);
    agents.extend(graphs.iter().map(|graph| (graph.name.clone(), graph.clone())));
    agents
}

/// Graphs in code need names and pools of their own.
fn check_graphs(graphs: &[Arc<Agent>], config: &Config) -> Result<(), StartError> {
    for (at, graph) in graphs.iter().enumerate() {
        let name = &graph.name;
        let problem = if config.agents.contains_key(name) || config.workflows.contains_key(name) {
            "the configuration has an agent or workflow of this name".to_owned()
        } else if graphs[..at].iter().any(|other| other.name == *name) {
            "two graphs have this name".to_owned()
        } else if !config.pools.contains_key(&graph.pool) {
            let known: Vec<&str> = config.pools.keys().map(String::as_str).collect();
            format!("there is no pool `{}`; there are: {}", graph.pool, known.join(", "))
        } else {
            continue;
        };
        return Err(StartError::Graph { graph: name.clone(), problem });
    }
    Ok(())
}

async fn open_store(directory: &Path, clock: Arc<dyn Clock>) -> Result<Arc<dyn Store>, StartError> {
    Ok(Arc::new(SqliteStore::open(directory, SqliteOptions::default(), clock).await?))
}

fn engine_options(config: &Config, lanes: Lanes) -> clearway_engine::Options {
    let pool = |(name, pool): (&String, &crate::config::Pool)| {
        PoolOptions::new(name, pool.slots, pool.queue)
    };
    let mut limits = Limits::default();
    if let Some(bytes) = config.server.limits.max_output_bytes {
        limits.output_bytes = bytes;
    }
    let usual = clearway_engine::Options::default();
    clearway_engine::Options {
        ageing: config.server.limits.ageing.unwrap_or(usual.ageing),
        pools: config.pools.iter().map(pool).collect(),
        limits,
        webhooks: webhooks(&config.webhooks),
        alerts: config.alerts.clone(),
        lanes,
    }
}

fn webhooks(configured: &config::Webhooks) -> Webhooks {
    let default = Webhooks::default();
    Webhooks {
        secret: configured.secret.as_ref().map(|secret| secret.expose().to_owned()),
        policy: OutwardPolicy { allow: configured.allow.clone() },
        deadline: configured.deadline.unwrap_or(default.deadline),
        attempts: configured.attempts.unwrap_or(default.attempts),
        backoff: configured.backoff.unwrap_or(default.backoff),
    }
}

/// The crons of the configuration, as the engine keeps them.
fn crons(config: &Config) -> Vec<CronSpec> {
    let spec = |(name, cron): (&String, &config::Cron)| CronSpec {
        name: name.clone(),
        tenant: TENANT.to_owned(),
        owner: None,
        cron: cron.schedule.clone(),
        timezone: cron.timezone.clone(),
        agent: cron.runs.clone(),
        input: cron.input.clone(),
        metadata: Map::from_iter([("cron".to_owned(), name.clone().into())]),
        thread: cron
            .thread
            .as_ref()
            .map(|thread| ThreadKey::new("crons", &[thread]).thread_id(TENANT)),
    };
    config.crons.iter().map(spec).collect()
}

/// The tenant of what belongs to nobody in particular.
const TENANT: &str = "default";

fn server_options(config: &Config, listen: SocketAddr, data: &Path) -> ServerOptions {
    let mut doors: Vec<Door> = config
        .doors
        .values()
        .map(|door| {
            let agent = door.agent.as_ref().and_then(|name| config.agents.get(name));
            let model = agent.map(|agent| {
                let known = config.models.get(&agent.model);
                known.map_or_else(|| agent.model.clone(), |model| model.model.clone())
            });
            let tools = agent.map(|agent| agent.tools.iter().map(ToString::to_string).collect());
            Door {
                kind: match door.dialect {
                    Dialect::CoFounder => DoorKind::CoFounder,
                    Dialect::Campaign => DoorKind::Campaign,
                    Dialect::Knowledge => DoorKind::Knowledge,
                },
                source: door.source.clone().or_else(|| source_of(config, door.agent.as_deref())),
                model: model.unwrap_or_default(),
                tools: tools.unwrap_or_default(),
                mount: door.mount.clone(),
                agent: door.agent.clone().unwrap_or_else(|| config.default_agent.clone()),
                expose_state: door.expose_state,
            }
        })
        .collect();
    if doors.is_empty() {
        doors.push(Door::cofounder("/", &config.default_agent));
    }
    ServerOptions {
        doors,
        default_agent: config.default_agent.clone(),
        limits: http_limits(&config.server.limits),
        insecure: config.server.insecure,
        keys: config.auth.iter().map(api_key).collect(),
        allowed_hosts: config.server.allowed_hosts.clone(),
        data_path: data.display().to_string(),
        ..ServerOptions::new(listen)
    }
}

fn api_key(key: &AuthKey) -> ApiKey {
    let mut api_key = ApiKey::new(&key.name, key.secret.expose(), &key.tenant);
    api_key.user.clone_from(&key.user);
    api_key.admin = key.admin;
    api_key.scopes.clone_from(&key.scopes);
    api_key.limits = key.limits;
    api_key
}

/// The source that an agent searches first.
fn source_of(config: &Config, agent: Option<&str>) -> Option<String> {
    let tools = &config.agents.get(agent?)?.tools;
    let search = tools.iter().find(|tool| tool.kind == crate::config::ToolKind::Search);
    search.map(|tool| tool.name.clone())
}

fn http_limits(configured: &ServerLimits) -> HttpLimits {
    let default = HttpLimits::default();
    let heartbeat = configured.heartbeat.unwrap_or(default.heartbeat);
    let stalled = configured.stalled_reader.unwrap_or(default.stalled_reader);
    HttpLimits {
        connections: configured.max_connections.unwrap_or(default.connections),
        body_bytes: configured.max_body_bytes.unwrap_or(default.body_bytes),
        body_timeout: configured.body_timeout.unwrap_or(default.body_timeout),
        header_timeout: configured.header_timeout.unwrap_or(default.header_timeout),
        keep_alive: configured.keep_alive.unwrap_or(default.keep_alive),
        // Between two heartbeats nothing is written although everybody reads.
        stalled_reader: stalled.max(heartbeat * 2),
        heartbeat,
        ..default
    }
}

async fn bind(
    engine: &Engine,
    mut options: ServerOptions,
    ports: Ports,
) -> Result<Bound, BindError> {
    let last = ports.last(options.listen.port());
    loop {
        match Server::bind(engine.clone(), options.clone()).await {
            Err(BindError::AddressInUse(_)) if options.listen.port() < last => {
                let next = options.listen.port() + 1;
                options.listen.set_port(next);
            }
            bound => return bound,
        }
    }
}

#[cfg(test)]
mod tests;
