//! Agents: a plan, and the code behind its nodes.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use clearway_core::channel::State;
use clearway_core::event::{Body, Delta, EventKind, Fact, Part};
use clearway_core::machine::Output;
use clearway_core::plan::Plan;
use clearway_core::run::Multitask;
use clearway_core::wait::WaitCell;
use clearway_core::{Deadline, Failure, RunId, ThreadId, id};
use clearway_upstream::{CallCx, CallProbe, Class, Upstream};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::live::Live;

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
}

/// The code behind a node.
#[async_trait::async_trait]
pub trait Node: Send + Sync + fmt::Debug {
    /// Runs once per superstep in which the node is due. The future is dropped when the run is
    /// cancelled, times out or drains: everything it holds must let go on drop.
    async fn call(&self, cx: Ctx) -> Result<Output, NodeError>;
}

/// Why a node call failed.
pub type NodeError = Failure;

/// What a node call may know and do.
#[derive(Clone, Debug)]
pub struct Ctx {
    pub run: RunId,
    pub thread: ThreadId,
    pub agent: Arc<str>,
    pub node: Arc<str>,
    pub step: i64,
    pub attempt: u32,
    /// The thread's state before this superstep.
    pub state: State,
    pub deadline: Deadline,
    /// What the run waits for; a call says so before it waits.
    pub wait: Arc<WaitCell>,
    /// Whether a provider's socket is open for this call.
    pub probe: Arc<CallProbe>,
    pub upstream: Upstream,
    pub(crate) live: Arc<Live>,
    pub(crate) tenant: Arc<str>,
    pub(crate) class: Class,
    pub(crate) ledger: Arc<Ledger>,
}

/// A place in a run's log.
#[derive(Clone, Copy, Debug)]
pub struct Mark(Option<u64>);

impl Ctx {
    /// The context of a provider call of this node; `name` tells its calls apart.
    pub fn call(&self, name: &str) -> CallCx {
        CallCx {
            wait: self.wait.clone(),
            probe: self.probe.clone(),
            class: self.class,
            tenant: self.tenant.clone(),
            observer: Some(self.ledger.clone()),
            ..CallCx::new(
                self.deadline,
                format!("{}-{}-{}{name}-{}", self.run, self.step, self.node, self.attempt),
            )
        }
    }

    /// Where the log ends now, for [`Ctx::take_back`].
    pub fn mark(&self) -> Mark {
        Mark(self.live.run_log().1.checked_sub(1))
    }

    /// Voids what was shown since `mark`: readers are told.
    ///
    /// # Errors
    /// As [`Ctx::delta`].
    pub fn take_back(&self, mark: Mark, reason: &str) -> Result<(), Failure> {
        self.fact(EventKind::OutputReset, &json!({"after": mark.0, "reason": reason}))
    }

    /// The stable id of the `index`-th message that this call makes.
    pub fn message_id(&self, index: u32) -> Uuid {
        id::message_id(self.run, self.step, &self.node, index)
    }

    /// A piece of output: readers see it at once.
    ///
    /// # Errors
    /// `output_too_large` when the run's output is over its limit.
    pub fn delta(&self, message: Uuid, part: Part, text: &str) -> Result<(), Failure> {
        self.live.output(Body::Delta(Delta::new(message, part, text)))
    }

    /// A fact that readers see at once.
    ///
    /// # Errors
    /// As [`Ctx::delta`].
    pub fn fact(&self, kind: EventKind, data: &Value) -> Result<(), Failure> {
        self.live.output(Body::Fact(Fact::new(kind, data)))
    }

    /// A line of progress for people.
    ///
    /// # Errors
    /// As [`Ctx::delta`].
    pub fn progress(&self, message: &str) -> Result<(), Failure> {
        self.fact(EventKind::Progress, &json!({"message": message, "node": &*self.node}))
    }
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
