//! What goes into the engine and what comes out.

use std::sync::Arc;
use std::time::Duration;

use clearway_core::run::{Multitask, RunOptions};
use clearway_core::thread::ThreadKey;
use clearway_core::wait::Waiting;
use clearway_core::{Code, Failure, Priority, RunId, RunRecord, Status, ThreadId};
use clearway_store::QueuePosition;
use serde_json::{Map, Value};

use crate::{Alerts, Webhooks};

/// How the engine is set up.
#[derive(Clone, Debug)]
pub struct Options {
    pub pools: Vec<PoolOptions>,
    pub limits: Limits,
    /// A waiting run gains one priority level per this much waiting.
    pub ageing: Duration,
    pub webhooks: Webhooks,
    pub alerts: Alerts,
    /// Where everything that blocks runs.
    pub lanes: crate::Lanes,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            pools: vec![PoolOptions::new("chat", 1024, 4096)],
            limits: Limits::default(),
            ageing: Duration::from_secs(30),
            webhooks: Webhooks::default(),
            alerts: Alerts::default(),
            lanes: crate::Lanes::default(),
        }
    }
}

/// A named pool: so many runs at once, so many waiting in front of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolOptions {
    pub name: String,
    pub slots: u32,
    pub queue: u32,
}

impl PoolOptions {
    pub fn new(name: &str, slots: u32, queue: u32) -> Self {
        Self { name: name.to_owned(), slots, queue }
    }
}

/// Every bound of the engine in one place.
#[derive(Clone, Debug)]
pub struct Limits {
    /// A live run's log keeps at most this much in memory once it is stored.
    pub log_bytes: usize,
    /// A run's output over this ends it with `output_too_large`.
    pub output_bytes: usize,
    /// Thread states kept in memory between turns, in bytes.
    pub cache_bytes: usize,
    /// Runs whose live log is kept for a while after the end, for readers that come late.
    pub ended_runs: usize,
    /// Output is handed to the store at least this often.
    pub flush_every: Duration,
    /// Size of one artifact.
    pub artifact_bytes: usize,
    pub artifacts_per_run: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            log_bytes: 8 << 10,
            output_bytes: 16 << 20,
            cache_bytes: 32 << 20,
            ended_runs: 128,
            flush_every: Duration::from_millis(200),
            artifact_bytes: 16 << 20,
            artifacts_per_run: 1000,
        }
    }
}

/// A run to be started.
#[derive(Clone, Debug)]
pub struct Submit {
    pub tenant: String,
    pub owner: Option<String>,
    pub thread: ThreadId,
    pub thread_key: Option<ThreadKey>,
    pub thread_metadata: Map<String, Value>,
    /// Merged into the thread's metadata whether it is new or not.
    pub thread_note: Map<String, Value>,
    pub thread_must_exist: bool,
    pub agent: String,
    /// The dialect it came through.
    pub door: &'static str,
    /// Writes to the thread's channels: `{"messages": [...]}`.
    pub input: Value,
    pub metadata: Map<String, Value>,
    /// `None` takes the agent's.
    pub multitask: Option<Multitask>,
    /// With a strategy that ends the active run: what waits on the thread ends likewise.
    pub clears_queue: bool,
    /// `None` takes the agent's.
    pub priority: Option<Priority>,
    pub kind: Kind,
    pub idempotency: Option<clearway_store::Idempotency>,
    /// End the run if the caller has left before it learns that the run was accepted.
    pub cancel_if_left: bool,
    /// Chosen by the caller, where it must be known before; `None` makes one.
    pub id: Option<RunId>,
    /// The run that started it and waits for it.
    pub parent: Option<RunId>,
    /// Earliest start, from acceptance.
    pub delay: Duration,
    pub options: RunOptions,
}

impl Submit {
    /// A run in the background, with nothing special about it.
    pub fn new(thread: ThreadId, agent: &str, door: &'static str, input: Value) -> Self {
        Self {
            tenant: "default".to_owned(),
            owner: None,
            thread,
            thread_key: None,
            thread_metadata: Map::new(),
            thread_note: Map::new(),
            thread_must_exist: false,
            agent: agent.to_owned(),
            door,
            input,
            metadata: Map::new(),
            multitask: None,
            clears_queue: false,
            priority: None,
            kind: Kind::Background { working_limit: None },
            idempotency: None,
            cancel_if_left: false,
            id: None,
            parent: None,
            delay: Duration::ZERO,
            options: RunOptions::default(),
        }
    }
}

/// Whether somebody waits for the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A client waits. The deadline counts from acceptance; `None` takes the agent's.
    Turn { deadline: Option<Duration> },
    /// In the background. The limit is of working time; queueing does not count.
    Background { working_limit: Option<Duration> },
}

/// An accepted run.
#[derive(Clone, Debug)]
pub struct Submitted {
    pub run: RunId,
    pub thread: ThreadId,
    pub status: Status,
    /// The same Idempotency-Key was seen before: this is that run.
    pub existing: bool,
    /// For a run that waits.
    pub position: Option<QueuePosition>,
}

/// A run as people look at it: the stored record, and what it does right now.
#[derive(Clone, Debug)]
pub struct RunView {
    pub record: RunRecord,
    /// `None` for an ended run.
    pub waiting: Option<Waiting>,
    /// For a blocked or ready run.
    pub position: Option<QueuePosition>,
    /// What each of its calls waits for, when several run side by side.
    pub calls: Vec<(Arc<str>, Waiting)>,
}

/// What became of a request to end a run.
#[derive(Clone, Debug)]
pub enum CancelOutcome {
    /// Its calls are being dropped; the end follows at once.
    Requested,
    /// It was waiting and is cancelled now.
    Ended(Box<RunRecord>),
    /// It had ended before.
    AlreadyEnded(Box<RunRecord>),
}

/// A pool at one moment.
#[derive(Clone, Debug)]
pub struct PoolView {
    pub name: String,
    pub slots: u32,
    pub running: u32,
    pub ready: u32,
    pub blocked: u32,
    pub queue_limit: u32,
}

/// Why the engine refused or failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(pub Failure);

impl Error {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self(Failure::new(code, message))
    }

    pub const fn code(&self) -> Code {
        self.0.code
    }
}

impl From<clearway_store::Error> for Error {
    fn from(error: clearway_store::Error) -> Self {
        let mut failure = Failure::new(error.code(), error.message.clone());
        if error.is_transient() {
            failure = failure.retryable();
            failure.retry_after = Some(Duration::from_secs(1));
        }
        Self(failure)
    }
}

/// A reset thread.
#[derive(Clone, Debug)]
pub struct ResetThread {
    pub generation: u32,
    /// Runs that were told to end.
    pub cancelled: usize,
}
