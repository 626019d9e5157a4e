//! An engine without a server: runs graphs in this process.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clearway_core::machine::{Command, Resume};
use clearway_core::run::RunOptions;
use clearway_core::thread::ThreadKey;
use clearway_core::{Clock, Failure, RunId, RunRecord, Status, ThreadId};
use clearway_engine::upstream::{Config as UpstreamConfig, Upstream};
use clearway_engine::{Agent, Agents, Engine, Lanes, PoolOptions, Store, Submit};
use clearway_store::{MemStore, SqliteOptions, SqliteStore, SystemClock};
use serde::Serialize;
use serde_json::Value;

pub use clearway_engine::Question;

use super::{Error, Graph, State, Values, Writes};
use crate::services::Services;
use crate::simulator::Simulator;
use crate::{Config, StartError, upstream};

/// Graphs and the engine that runs them; for programs that need no server, and for tests.
///
/// Runs outlive the process when [`LocalBuilder::data`] says where to keep them: the next start
/// takes them up.
#[derive(Clone, Debug)]
pub struct Local {
    engine: Engine,
    /// What is simulated lives as long as the engine.
    simulated: Arc<clearway_engine::Tasks>,
}

/// See [`Local::builder`].
#[derive(Debug, Default)]
#[must_use]
pub struct LocalBuilder {
    agents: Vec<Arc<Agent>>,
    data: Option<PathBuf>,
    slots: Option<u32>,
    config: Option<Config>,
    simulator: Option<Simulator>,
}

impl LocalBuilder {
    /// A graph that is to run here.
    pub fn graph<S>(mut self, graph: &Graph<S>) -> Self {
        self.agents.push(graph.agent());
        self
    }

    /// Where runs and threads are kept; without it they are gone when the process ends.
    pub fn data(mut self, directory: impl Into<PathBuf>) -> Self {
        self.data = Some(directory.into());
        self
    }

    /// Runs of one pool at the same time (64).
    pub const fn slots(mut self, slots: u32) -> Self {
        self.slots = Some(slots);
        self
    }

    /// Providers, models, agents and workflows of a configuration, beside the graphs.
    pub fn config(mut self, config: Config) -> Self {
        self.config = Some(config);
        self
    }

    /// For providers of `kind = "sim"`.
    pub fn simulator(mut self, simulator: Simulator) -> Self {
        self.simulator = Some(simulator);
        self
    }

    /// Starts; runs that an earlier process left go on.
    ///
    /// # Errors
    /// The data cannot be opened, or the configuration cannot be used.
    pub async fn start(self) -> Result<Local, StartError> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let simulated = clearway_engine::Tasks::new();
        let mut agents = Vec::new();
        let upstream = match &self.config {
            Some(config) => {
                let services = Services::new(config, &simulated, None, Lanes::default());
                agents.extend(crate::agents::compile(config, &services, &clock));
                upstream::build(config, self.simulator.as_ref(), &clock, &simulated)?
            }
            None => Upstream::new(
                UpstreamConfig { providers: Vec::new(), models: Vec::new(), clock: None },
                std::collections::HashMap::default(),
            )?,
        };
        agents.extend(self.agents.into_iter().map(|agent| (agent.name.clone(), agent)));
        let slots = self.slots.unwrap_or(SLOTS);
        let mut pools: Vec<&str> = agents.iter().map(|(_, agent)| agent.pool.as_str()).collect();
        pools.sort_unstable();
        pools.dedup();
        let options = clearway_engine::Options {
            pools: pools.into_iter().map(|pool| PoolOptions::new(pool, slots, QUEUE)).collect(),
            ..clearway_engine::Options::default()
        };
        let store: Arc<dyn Store> = match &self.data {
            Some(directory) => Arc::new(
                SqliteStore::open(directory, SqliteOptions::default(), clock.clone()).await?,
            ),
            None => Arc::new(MemStore::new(clock.clone())),
        };
        let engine = Engine::start(options, store, upstream, Agents::new(agents), clock).await?;
        Ok(Local { engine, simulated: Arc::new(simulated) })
    }
}

/// How a run of a graph ended.
#[derive(Clone, Debug)]
pub struct End<S> {
    pub run: RunId,
    pub status: Status,
    /// Why, when it did not end well.
    pub failure: Option<Failure>,
    /// The thread's state afterwards.
    pub state: S,
    /// What it asked; [`Local::resume`] brings the answer.
    pub questions: Vec<Question>,
}

impl<S> End<S> {
    /// The end, if it was a good one.
    ///
    /// # Errors
    /// The run's failure.
    pub fn well(self) -> Result<Self, Error> {
        match (self.status, self.failure.clone()) {
            (Status::Success, _) => Ok(self),
            (_, Some(failure)) => Err(failure.into()),
            (status, None) => Err(Error::new(format!("the run ended as {}", status.as_str()))),
        }
    }
}

impl Local {
    pub fn builder() -> LocalBuilder {
        LocalBuilder::default()
    }

    /// The engine itself: events, history, cancelling, signals, decisions.
    pub const fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The id of the thread that this process calls `key`.
    pub fn thread(key: &str) -> ThreadId {
        ThreadKey::new(DIALECT, &[key]).thread_id(TENANT)
    }

    /// Runs a graph on a thread, to the run's end. On a thread that has a state already the run
    /// begins with it.
    ///
    /// # Errors
    /// The run was not accepted; how it ended is in the answer.
    pub async fn run<S: State>(
        &self,
        graph: &Graph<S>,
        thread: &str,
        input: S::Update,
    ) -> Result<End<S>, Error> {
        let run = self.start(graph, thread, input).await?;
        self.wait::<S>(run).await
    }

    /// Starts a run and returns when it is accepted, which is durable.
    ///
    /// # Errors
    /// It was not accepted.
    pub async fn start<S: State>(
        &self,
        graph: &Graph<S>,
        thread: &str,
        input: S::Update,
    ) -> Result<RunId, Error> {
        let input: Writes = input.into();
        let input = input.into_input()?;
        self.submit(graph.name(), thread, input, RunOptions::default()).await
    }

    /// Answers what a thread asked, and runs on to the end.
    ///
    /// # Errors
    /// The run was not accepted; how it ended is in the answer.
    pub async fn resume<S: State>(
        &self,
        graph: &Graph<S>,
        thread: &str,
        answer: impl Serialize,
    ) -> Result<End<S>, Error> {
        let answer = serde_json::to_value(answer)?;
        let command = Command { resume: Some(Resume::All(answer)), ..Command::default() };
        let options = RunOptions { command: Some(command), ..RunOptions::default() };
        let input = Value::Object(serde_json::Map::new());
        let run = self.submit(graph.name(), thread, input, options).await?;
        self.wait::<S>(run).await
    }

    async fn submit(
        &self,
        agent: &str,
        thread: &str,
        input: Value,
        options: RunOptions,
    ) -> Result<RunId, Error> {
        let key = ThreadKey::new(DIALECT, &[thread]);
        let id = key.thread_id(TENANT);
        let submit =
            Submit { thread_key: Some(key), options, ..Submit::new(id, agent, DIALECT, input) };
        Ok(self.engine.submit(submit).await?.run)
    }

    /// Waits for a run's end.
    ///
    /// # Errors
    /// There is no such run, or the engine stops.
    pub async fn wait<S: State>(&self, run: RunId) -> Result<End<S>, Error> {
        let record = self.engine.wait(run).await?;
        self.ended(record).await
    }

    async fn ended<S: State>(&self, record: RunRecord) -> Result<End<S>, Error> {
        let at = self.engine.state_at(record.thread, None).await?;
        let questions = at.as_ref().map(Engine::questions).unwrap_or_default();
        let state = at.map(|at| at.state).unwrap_or_default();
        Ok(End {
            run: record.id,
            status: record.status,
            failure: record.failure,
            state: S::read(&Values::new(&state, ""))?,
            questions,
        })
    }

    /// A thread's state; `None` when nothing has run on it.
    ///
    /// # Errors
    /// It does not fit the type.
    pub async fn state<S: State>(&self, thread: &str) -> Result<Option<S>, Error> {
        let at = self.engine.state_at(Self::thread(thread), None).await?;
        at.map(|at| S::read(&Values::new(&at.state, ""))).transpose()
    }

    /// Stops: runs under way are handed back and go on at the next start, if their data is kept.
    pub async fn stop(self) {
        self.engine.shutdown(Duration::ZERO).await;
        self.simulated.hard.cancel();
    }
}

const DIALECT: &str = "graph";
const TENANT: &str = "default";
const SLOTS: u32 = 64;
const QUEUE: u32 = 10_000;
