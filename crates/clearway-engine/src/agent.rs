//! Agents: a plan, and the code behind its nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use clearway_core::machine::{Output, Park};
use clearway_core::plan::Plan;
use clearway_core::run::{Budget, Multitask};
use clearway_core::{Code, Failure, Priority};
use clearway_store::Keep;
use serde_json::{Map, Value};

use crate::ctx::Ctx;

/// A deployed definition that can be run.
#[derive(Clone, Debug)]
pub struct Agent {
    pub name: String,
    /// For people.
    pub title: String,
    /// `agent`, `workflow`, …: how it was defined.
    pub kind: &'static str,
    pub pool: String,
    pub plan: Arc<Plan>,
    /// The code behind each node of the plan.
    pub nodes: BTreeMap<Arc<str>, Arc<dyn Node>>,
    /// Limit of a turn that a client waits for, queueing included.
    pub deadline: Duration,
    /// Limit of working time in the background.
    pub working_limit: Duration,
    /// What to do when its thread is busy.
    pub when_busy: Multitask,
    /// By node; a node without an entry has the default.
    pub policies: BTreeMap<Arc<str>, NodePolicy>,
    pub on_outage: OnOutage,
    /// Of a run that brings none.
    pub priority: Priority,
    /// Of a run that brings none.
    pub budget: Budget,
    /// Which checkpoints stay when a run has ended.
    pub keep: Keep,
    /// Turns a caller's input into writes, or says what is wrong with it; `None` takes writes as
    /// they are.
    pub input: Option<InputCheck>,
    /// What such an input looks like, as a JSON Schema.
    pub input_schema: Option<Value>,
    /// Its first call may begin before its acceptance is durable: it writes nothing outward.
    pub starts_ahead: bool,
    /// The channels that are its author's, for those who show a thread's values; `None` is all.
    pub shown_channels: Option<BTreeSet<Arc<str>>>,
}

impl Agent {
    /// An agent with one node and nothing special about it.
    pub fn single(name: &str, kind: &'static str, node: &str, code: Arc<dyn Node>) -> Self {
        Self {
            name: name.to_owned(),
            title: name.to_owned(),
            kind,
            pool: "chat".to_owned(),
            plan: Arc::new(Plan::chat(node)),
            nodes: BTreeMap::from([(node.into(), code)]),
            deadline: Duration::from_secs(120),
            working_limit: Duration::from_secs(30 * 60),
            when_busy: Multitask::Enqueue,
            policies: BTreeMap::new(),
            on_outage: OnOutage::Fail,
            priority: Priority::NORMAL,
            budget: Budget::default(),
            keep: Keep::All,
            input: None,
            input_schema: None,
            starts_ahead: true,
            shown_channels: None,
        }
    }

    pub fn policy(&self, node: &str) -> NodePolicy {
        self.policies.get(node).cloned().unwrap_or_default()
    }
}

type Check = dyn Fn(&Map<String, Value>) -> Result<Value, Failure> + Send + Sync;

/// How an agent reads its callers' input.
#[derive(Clone)]
pub struct InputCheck(Arc<Check>);

impl InputCheck {
    pub fn new(
        check: impl Fn(&Map<String, Value>) -> Result<Value, Failure> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(check))
    }

    /// The writes that an input means.
    ///
    /// # Errors
    /// `invalid_request` with what is wrong by field.
    pub fn read(&self, input: &Map<String, Value>) -> Result<Value, Failure> {
        (self.0)(input)
    }
}

impl fmt::Debug for InputCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InputCheck")
    }
}

/// The code behind a node.
#[async_trait::async_trait]
pub trait Node: Send + Sync + fmt::Debug {
    /// Runs once per superstep in which the node is due, or several times when it parks, asks a
    /// person, or is retried: bodies run at least once, their outputs commit exactly once. The
    /// future is dropped when the run is cancelled, times out or drains: everything it holds must
    /// let go on drop.
    async fn call(&self, cx: Ctx) -> Result<Output, NodeError>;
}

/// Why a node call ended without an output.
#[derive(Clone, Debug)]
pub enum NodeError {
    Failed(Failure),
    /// It asks a person; made by [`Ctx::interrupt`].
    Interrupt {
        value: Value,
        expiry: Option<Box<Expiry>>,
    },
    /// It cannot go on yet and will be called again; made by [`Ctx::sleep`] and others.
    Park(Park),
}

impl From<Failure> for NodeError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// When a question is answered by itself, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Expiry {
    pub after: Duration,
    pub answer: Value,
}

/// What surrounds the calls of a node.
#[derive(Clone, Debug, Default)]
pub struct NodePolicy {
    pub retry: Retry,
    /// The longest that one try may take.
    pub timeout: Option<Duration>,
    /// The longest that a try may show no sign of life: no token, fact or heartbeat.
    pub idle: Option<Duration>,
    /// What follows a failure that is not tried again.
    pub on_error: OnError,
    /// How long an output stands for the same input.
    pub cache: Option<Duration>,
    /// Shown for people beside the node's name.
    pub title: Option<Arc<str>>,
    pub category: Option<Arc<str>>,
    pub description: Option<Arc<str>>,
}

/// How often a failed call is made again.
#[derive(Clone, Debug)]
pub struct Retry {
    /// Tries in all; at least 1.
    pub attempts: u32,
    /// Before the second try; doubles with each.
    pub backoff: Duration,
    /// Codes worth a retry; empty means failures that say so themselves.
    pub on: Vec<Code>,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 1, backoff: Duration::from_millis(500), on: Vec::new() }
    }
}

/// What follows a failed call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// The run fails.
    #[default]
    Fail,
    /// The node counts as ended; the failure is its output, written to this channel.
    Continue { channel: Arc<str> },
    /// Another node goes on; the failure is written to this channel.
    Goto { node: Arc<str>, channel: Arc<str> },
}

/// What a run in the background does when no provider can be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnOutage {
    #[default]
    Fail,
    /// Wait without a slot until one can.
    Park,
}

/// All agents by name; replaced as a whole when the configuration changes. Running runs keep the
/// agent they started with.
#[derive(Debug, Default)]
pub struct Agents {
    inner: RwLock<Arc<BTreeMap<String, Arc<Agent>>>>,
}

impl Agents {
    pub fn new(agents: impl IntoIterator<Item = (String, Arc<Agent>)>) -> Self {
        Self { inner: RwLock::new(Arc::new(agents.into_iter().collect())) }
    }

    /// The agent called `name`; aliases are further entries of the same agent.
    pub fn get(&self, name: &str) -> Option<Arc<Agent>> {
        self.all().get(name).cloned()
    }

    pub fn all(&self) -> Arc<BTreeMap<String, Arc<Agent>>> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn replace(&self, agents: impl IntoIterator<Item = (String, Arc<Agent>)>) {
        let new = Arc::new(agents.into_iter().collect());
        *self.inner.write().unwrap_or_else(PoisonError::into_inner) = new;
    }
}
