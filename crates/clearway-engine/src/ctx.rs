//! What a node call may know and do.
//!
//! What survives a crash goes through the journal: memoised steps, outward writes, timers, signals,
//! child runs (`durable.rs`). Everything here is about the call that runs now.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clearway_core::channel::State;
use clearway_core::event::{Body, Delta, EventKind, Fact, Part};
use clearway_core::journal::Notes;
use clearway_core::machine::Park;
use clearway_core::run::{Budget, Usage};
use clearway_core::wait::{WaitCell, WaitKind};
use clearway_core::{Deadline, Failure, RunId, RunRecord, TaskId, ThreadId};
use clearway_upstream::{CallCx, CallProbe, Class, Upstream};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::agent::{Expiry, NodeError};
use crate::clock::instant;
use crate::engine::Inner;
use crate::ledger::Ledger;
use crate::live::Live;

/// What a node call may know and do. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Ctx {
    pub run: RunId,
    pub thread: ThreadId,
    pub agent: Arc<str>,
    pub node: Arc<str>,
    /// The call's id: the same whenever the superstep is planned, so it serves as an idempotency
    /// key for what the call does outside.
    pub task: TaskId,
    pub step: i64,
    /// Claims of the run so far.
    pub attempt: u32,
    /// The thread's state before this superstep.
    pub state: State,
    /// What this call was sent with, in a fan-out.
    pub payload: Option<Arc<Value>>,
    pub deadline: Deadline,
    /// What the call waits for; it says so before it waits.
    pub wait: Arc<WaitCell>,
    /// Whether a provider's socket is open for this call.
    pub probe: Arc<CallProbe>,
    pub upstream: Upstream,
    pub(crate) record: Arc<RunRecord>,
    pub(crate) inner: Arc<Inner>,
    pub(crate) live: Arc<Live>,
    pub(crate) class: Class,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) session: Arc<Session>,
}

/// What all clones of a call's context share.
#[derive(Debug)]
pub(crate) struct Session {
    pub answers: Vec<Value>,
    /// Questions asked by this try, to match them with answers.
    pub asked: AtomicU32,
    pub notes: Mutex<Notes>,
    /// Notes under the run's own id: signals.
    pub signals: Mutex<Notes>,
    /// Signals taken by this try, by name.
    pub taken: Mutex<BTreeMap<String, u32>>,
    /// The call has written into the journal.
    pub noted: AtomicBool,
    /// It runs beside others of its superstep.
    pub parallel: bool,
    pub begun: Instant,
    /// Milliseconds from `begun` to its last sign of life.
    pub alive: AtomicU64,
    pub cancelled: CancellationToken,
    pub spending: Arc<Spending>,
    /// The present try has shown something.
    pub shown: AtomicBool,
}

impl Session {
    pub(crate) fn touch(&self) {
        let ms = instant().saturating_duration_since(self.begun).as_millis();
        self.alive.store(u64::try_from(ms).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn last_alive(&self) -> Instant {
        self.begun + Duration::from_millis(self.alive.load(Ordering::Relaxed))
    }
}

/// What a run has used up and may use up, while it executes.
#[derive(Debug)]
pub(crate) struct Spending {
    budget: Budget,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    tokens: u64,
    cost_micros: u64,
    calls: u64,
    reserved: u64,
}

impl Spending {
    pub(crate) fn new(budget: Budget, before: &Usage) -> Self {
        let used = Used {
            tokens: before.input_tokens + before.output_tokens,
            cost_micros: before.cost_micros,
            calls: u64::from(before.calls),
            reserved: 0,
        };
        Self { budget, used: Mutex::new(used) }
    }

    pub(crate) fn book(&self, usage: &Usage) {
        let mut used = crate::live::lock(&self.used);
        used.tokens += usage.input_tokens + usage.output_tokens;
        used.cost_micros += usage.cost_micros;
        used.calls += u64::from(usage.calls);
    }

    /// Sets tokens aside for a call. What is used up, when they are not there.
    fn reserve(&self, tokens: u64) -> Result<(), String> {
        let Budget { tokens: most_tokens, cost_micros, calls } = self.budget;
        let mut used = crate::live::lock(&self.used);
        if let Some(most) = most_tokens
            && used.tokens + used.reserved + tokens > most
        {
            return Err(format!(
                "tokens: {} used, {} reserved, {tokens} asked for, budget {most}",
                used.tokens, used.reserved
            ));
        }
        if let Some(most) = cost_micros
            && used.cost_micros >= most
        {
            let money = |micros: u64| micros as f64 / 1e6;
            return Err(format!("cost: {:.4} of {:.4}", money(used.cost_micros), money(most)));
        }
        if let Some(most) = calls
            && used.calls >= u64::from(most)
        {
            return Err(format!("calls: {} of {most}", used.calls));
        }
        used.reserved += tokens;
        Ok(())
    }

    fn release(&self, tokens: u64) {
        let mut used = crate::live::lock(&self.used);
        used.reserved = used.reserved.saturating_sub(tokens);
    }
}

/// Tokens set aside for a provider call; given back when dropped, as what the call really used is
/// booked by then.
#[derive(Debug)]
pub struct Reserved {
    spending: Arc<Spending>,
    tokens: u64,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.spending.release(self.tokens);
    }
}

/// A place in a run's log.
#[derive(Clone, Copy, Debug)]
pub struct Mark(Option<u64>);

impl Ctx {
    /// The context of a provider call of this node; `name` tells its calls apart.
    pub fn call(&self, name: &str) -> CallCx {
        let index = if self.session.parallel { format!("-{}", self.task) } else { String::new() };
        CallCx {
            wait: self.wait.clone(),
            probe: self.probe.clone(),
            run: Some(self.run),
            class: self.class,
            tenant: self.record.tenant.as_str().into(),
            conversation: Some(self.record.thread.to_string().into()),
            observer: Some(self.ledger.clone()),
            ..CallCx::new(
                self.deadline,
                format!("{}-{}-{}{index}{name}-{}", self.run, self.step, self.node, self.attempt),
            )
        }
    }

    /// Asks for leave to make a provider call that may use up to `tokens`. Every call to a provider
    /// is preceded by this.
    ///
    /// # Errors
    /// The run parks when its budget does not cover that.
    pub fn reserve(&self, tokens: u64) -> Result<Reserved, NodeError> {
        let spending = self.session.spending.clone();
        match spending.reserve(tokens) {
            Ok(()) => Ok(Reserved { spending, tokens }),
            Err(detail) => Err(NodeError::Park(Park {
                kind: WaitKind::Budget,
                detail,
                wake_at: None,
                on_child: false,
            })),
        }
    }

    /// The run as it was claimed: input, metadata, owner, creation.
    pub const fn record(&self) -> &Arc<RunRecord> {
        &self.record
    }

    /// Where the log ends now, for [`Ctx::take_back`].
    pub fn mark(&self) -> Mark {
        Mark(self.live.run_log().1.checked_sub(1))
    }

    /// Voids what this call showed since `mark`: readers are told.
    ///
    /// # Errors
    /// As [`Ctx::delta`].
    pub fn take_back(&self, mark: Mark, reason: &str) -> Result<(), Failure> {
        if !self.session.shown.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        let mut data = json!({"after": mark.0, "reason": reason});
        if self.session.parallel {
            // What other calls showed meanwhile stands.
            data["task"] = self.task.to_string().into();
        }
        self.fact(EventKind::OutputReset, &data)
    }

    /// For what this call does outside: the same whenever the call is made again, after a crash too,
    /// and no other call's.
    pub fn idempotency_key(&self) -> String {
        self.task.to_string()
    }

    /// The stable id of the `index`-th message that this call makes.
    pub fn message_id(&self, index: u32) -> Uuid {
        self.task.message(index)
    }

    /// A piece of output: readers see it at once.
    ///
    /// # Errors
    /// `output_too_large` when the run's output is over its limit.
    pub fn delta(&self, message: Uuid, part: Part, text: &str) -> Result<(), Failure> {
        self.session.touch();
        self.session.shown.store(true, Ordering::Relaxed);
        self.live.output(self.record.fence, Body::Delta(Delta::new(message, part, text)))
    }

    /// A fact that readers see at once.
    ///
    /// # Errors
    /// As [`Ctx::delta`].
    pub fn fact(&self, kind: EventKind, data: &Value) -> Result<(), Failure> {
        self.session.touch();
        // What a child does is not taken back with the try that started it.
        if !matches!(kind, EventKind::OutputReset | EventKind::ChildStarted) {
            self.session.shown.store(true, Ordering::Relaxed);
        }
        self.live.output(self.record.fence, Body::Fact(Fact::new(kind, data)))
    }

    /// Says that deltas of this message follow.
    ///
    /// # Errors
    /// As [`Ctx::delta`].
    pub fn message_started(&self, message: Uuid) -> Result<(), Failure> {
        let mut data = json!({"message_id": message.to_string(), "node": &*self.node});
        if self.session.parallel {
            data["task"] = self.task.to_string().into();
        }
        self.fact(EventKind::MessageStarted, &data)
    }

    /// A line of progress for people.
    ///
    /// # Errors
    /// As [`Ctx::delta`].
    pub fn progress(&self, message: &str) -> Result<(), Failure> {
        self.fact(EventKind::Progress, &json!({"message": message, "node": &*self.node}))
    }

    /// Progress as a share of known work.
    ///
    /// # Errors
    /// As [`Ctx::delta`].
    pub fn progress_of(&self, message: &str, done: u64, total: u64) -> Result<(), Failure> {
        let data = json!({"message": message, "node": &*self.node, "done": done, "total": total});
        self.fact(EventKind::Progress, &data)
    }

    /// Something for the agent's own clients.
    ///
    /// # Errors
    /// As [`Ctx::delta`].
    pub fn emit(&self, name: &str, data: &Value) -> Result<(), Failure> {
        self.fact(EventKind::Custom, &json!({"name": name, "data": data, "node": &*self.node}))
    }

    /// A sign of life of a call that shows nothing for long.
    pub fn heartbeat(&self) {
        self.session.touch();
    }

    /// Fires when the call is given up: for work that dropping this call's future does not stop,
    /// such as a blocking loop in another OS thread.
    pub fn cancelled(&self) -> CancellationToken {
        self.session.cancelled.clone()
    }

    /// Asks a person. The run ends here; a later run on the thread brings the answer, and then this
    /// call is made again and finds it.
    ///
    /// # Errors
    /// Always, unless the answer is there: return the error as it is.
    pub fn interrupt(&self, value: Value) -> Result<Value, NodeError> {
        self.interrupt_for(value, None)
    }

    /// As [`Ctx::interrupt`]; without an answer in time, `expiry` answers.
    ///
    /// # Errors
    /// As [`Ctx::interrupt`].
    pub fn interrupt_for(&self, value: Value, expiry: Option<Expiry>) -> Result<Value, NodeError> {
        let n = self.session.asked.fetch_add(1, Ordering::Relaxed) as usize;
        match self.session.answers.get(n) {
            Some(answer) => Ok(answer.clone()),
            None => Err(NodeError::Interrupt { value, expiry: expiry.map(Box::new) }),
        }
    }
}
