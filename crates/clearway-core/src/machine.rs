//! The run state machine, sans-IO.
//!
//! One machine drives one run under one lease: from the claim through supersteps to its end, or to
//! the moment it must let go. It is told what happened ([`Input`]) and says what to do
//! ([`Effect`]); it does not wait, and it never asks what time it is.
//!
//! ```text
//!            start                    all calls done
//! (claimed) ───────► Executing ───────────────────────► Committing ──ack──► Executing …
//!                        │  failure, cancel, deadline,      │  end acked
//!                        │  drain                           ▼
//!                        └────────► Stopping ─────────► Committing ──ack──► Ended
//!                                   (calls abort)
//! ```
//!
//! Invariants, checked by the property tests:
//! - a superstep is committed once, and no call starts while a commit is under way;
//! - exactly one end is committed; nothing happens after it;
//! - after a cancel was taken in, no call starts.
//!
//! Not here: the log's numbering ([`crate::log`]), timers, retries of the store (`clearway-engine`).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;
use uuid::Uuid;

use crate::channel::{self, Op, State, Write};
use crate::event::{EventKind, Fact};
use crate::plan::{Finished, Plan};
use crate::run::Usage;
use crate::{Code, Failure, RunId, Status};

/// Everything a claim knows about a run.
#[derive(Clone, Debug)]
pub struct Start {
    pub run: RunId,
    pub plan: Arc<Plan>,
    /// The thread's state at its head.
    pub state: State,
    /// From 1; above 1, earlier output may be lost.
    pub attempt: u32,
    /// Takeovers and restarts since the last committed superstep.
    pub fruitless: u32,
    /// Last committed superstep, -1 before the first.
    pub step: i64,
    /// Nodes due, when a superstep was committed before.
    pub next: Vec<Arc<str>>,
    /// Number that the next commit must carry.
    pub commits: u64,
    /// `next_seq` at the last durable commit.
    pub committed_seq: u64,
    /// Whether the log holds output since then.
    pub has_void_output: bool,
    /// Writes before the first superstep.
    pub input: Vec<Write>,
    /// A cancel was asked for before the claim.
    pub cancel_requested: bool,
    /// The reply that an earlier superstep committed.
    pub reply: Option<Uuid>,
    /// The run cannot be taken up at all (its state is damaged, say): it ends with this.
    pub failed: Option<Failure>,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A call ended well.
    CallDone { call: u32, output: Output },
    /// A call failed for good.
    CallFailed { call: u32, failure: Failure },
    /// A call that was told to abort is gone.
    CallAborted { call: u32, receipt: Receipt },
    /// Somebody wants it to end.
    Cancel { by: String },
    /// The deadline passed; the failure says where the time went.
    DeadlineReached { failure: Failure },
    /// The run cannot go on for a reason outside its calls (limits of the log, say).
    Abandon { failure: Failure },
    /// The server stops: hand the run back.
    Drain,
    /// The commit is durable. `cancel_requested` is what the store found on the row.
    Committed { cancel_requested: bool },
    /// Another instance owns the run.
    Fenced,
}

/// What a finished call leaves.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Output {
    pub writes: Vec<Write>,
    /// Where to go on; `None` follows the plan's edges.
    pub goto: Option<Vec<Arc<str>>>,
    /// The message that is this call's reply, if it made one.
    pub reply: Option<Uuid>,
    pub usage: Usage,
}

/// Proof of how a call was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// A provider connection was open and is closed now.
    pub socket_closed: bool,
}

/// What to do.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Append to the log, visible at once.
    Show(Fact),
    /// Append to the log, visible when the next commit is durable.
    Record(Fact),
    /// Begin a node call; its index is unique within the lease.
    StartCall { call: u32, node: Arc<str>, step: i64 },
    /// Drop the call's future, then answer with [`Input::CallAborted`].
    AbortCall { call: u32 },
    /// Make everything recorded so far durable, then answer [`Input::Committed`] or
    /// [`Input::Fenced`].
    Commit(Box<Commit>),
    /// The machine is done; nothing more is to be fed to it.
    Stop(Stopped),
}

/// One fenced transaction.
#[derive(Clone, Debug, PartialEq)]
pub struct Commit {
    /// The row's commit count must equal this; a second delivery is recognised by it.
    pub number: u64,
    /// Last superstep that is committed with this.
    pub step: i64,
    /// Nodes that are due after it; for a run that was stopped, the ones it did not finish.
    pub next: Vec<Arc<str>>,
    /// New checkpoints, oldest first; each one's parent is the one before.
    pub checkpoints: Vec<Checkpoint>,
    pub outcome: Outcome,
    pub usage: Usage,
}

/// State as committed at the end of a superstep, as a difference to its parent.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    pub step: i64,
    pub source: Source,
    pub next: Vec<Arc<str>>,
    pub deltas: Vec<Delta>,
}

/// One stored op with its version.
#[derive(Clone, Debug, PartialEq)]
pub struct Delta {
    pub channel: Arc<str>,
    pub version: u64,
    /// Version of the op before it on this channel; 0 for the first.
    pub previous: u64,
    pub op: Op,
}

/// What made a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Input,
    Loop,
}

impl Source {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Loop => "loop",
        }
    }
}

/// What a commit makes of the run.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The next superstep follows under the same lease.
    Continue,
    /// Give the lease back; the run is ready again.
    Release,
    End {
        status: Status,
        failure: Option<Failure>,
        reply: Option<Uuid>,
    },
}

/// Why a machine is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    Ended,
    Released,
    Fenced,
}

/// See the module.
#[derive(Debug)]
pub struct Machine {
    run: RunId,
    plan: Arc<Plan>,
    state: State,
    step: i64,
    commits: u64,
    next_call: u32,
    /// Nodes of the superstep that is under way, or that would be.
    due: Vec<Arc<str>>,
    phase: Phase,
    /// Checkpoints made since the last commit (the input's waits for the first superstep's).
    unsaved: Vec<Checkpoint>,
    cancel: Option<String>,
    drain: bool,
    reply: Option<Uuid>,
    usage: Usage,
}

#[derive(Debug)]
enum Phase {
    Executing { calls: BTreeMap<u32, Call> },
    Stopping { open: BTreeMap<u32, Arc<str>>, why: Why, socket_closed: bool },
    Committing { then: Then },
    Ended,
}

#[derive(Debug)]
struct Call {
    node: Arc<str>,
    output: Option<Output>,
}

#[derive(Debug)]
enum Why {
    Cancel { by: String },
    Deadline(Failure),
    Failed(Failure),
    Drain,
}

#[derive(Debug)]
enum Then {
    Execute,
    Stop(Stopped),
}

/// A run that was restarted this often without committing a superstep is ended as `poisoned`.
pub const POISON_LIMIT: u32 = 20;

impl Machine {
    /// Takes up a claimed run.
    pub fn start(start: Start) -> (Self, Vec<Effect>) {
        let mut machine = Self {
            run: start.run,
            plan: start.plan,
            state: start.state,
            step: start.step,
            commits: start.commits,
            next_call: 0,
            due: Vec::new(),
            phase: Phase::Executing { calls: BTreeMap::new() },
            unsaved: Vec::new(),
            cancel: None,
            drain: false,
            reply: start.reply,
            usage: Usage::default(),
        };
        let mut effects = Vec::new();
        if start.attempt > 1 && start.has_void_output {
            let after = start.committed_seq.checked_sub(1);
            let data = json!({"after": after, "reason": "restarted"});
            effects.push(Effect::Show(Fact::new(EventKind::OutputReset, &data)));
        }
        let data = json!({"attempt": start.attempt});
        effects.push(Effect::Show(Fact::new(EventKind::RunStarted, &data)));

        machine.due = if start.step < 0 { machine.plan.first() } else { start.next };
        // What stops it before it starts must not touch the state: it may be what is wrong.
        let poisoned = (start.fruitless >= POISON_LIMIT).then(|| {
            let text = format!("started {} times without finishing a superstep", start.fruitless);
            Failure::new(Code::Poisoned, text)
        });
        if let Some(failure) = start.failed.or(poisoned) {
            machine.stop(Why::Failed(failure), &mut effects);
            return (machine, effects);
        }
        if start.step < 0
            && let Err(failure) = machine.take_in(start.input)
        {
            machine.stop(Why::Failed(failure), &mut effects);
            return (machine, effects);
        }
        if start.cancel_requested {
            machine.stop(Why::Cancel { by: "request".to_owned() }, &mut effects);
        } else {
            machine.execute(&mut effects);
        }
        (machine, effects)
    }

    /// The thread's state as this run sees it now; calls get a clone.
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// Takes the state after the end, for the cache of hot threads.
    pub fn take_state(&mut self) -> State {
        std::mem::take(&mut self.state)
    }

    pub const fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Ended)
    }

    /// Tells the machine what happened; does what follows.
    pub fn handle(&mut self, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        match input {
            Input::CallDone { call, output } => self.call_done(call, output, &mut effects),
            Input::CallFailed { call, failure } => {
                if let Phase::Executing { calls } = &mut self.phase {
                    if calls.remove(&call).is_some() {
                        self.stop(Why::Failed(failure), &mut effects);
                    }
                } else {
                    self.call_gone(call, false, &mut effects);
                }
            }
            Input::CallAborted { call, receipt } => {
                self.call_gone(call, receipt.socket_closed, &mut effects);
            }
            Input::Cancel { by } => match &self.phase {
                Phase::Executing { .. } => self.stop(Why::Cancel { by }, &mut effects),
                // Taken up when the commit is acknowledged; an end that is under way stands.
                Phase::Committing { .. } => self.cancel = Some(by),
                Phase::Stopping { .. } | Phase::Ended => {}
            },
            Input::DeadlineReached { failure } => match &self.phase {
                Phase::Executing { .. } => self.stop(Why::Deadline(failure), &mut effects),
                Phase::Committing { .. } | Phase::Stopping { .. } | Phase::Ended => {}
            },
            Input::Abandon { failure } => match &self.phase {
                Phase::Executing { .. } => self.stop(Why::Failed(failure), &mut effects),
                Phase::Committing { .. } | Phase::Stopping { .. } | Phase::Ended => {}
            },
            Input::Drain => match &self.phase {
                Phase::Executing { .. } => self.stop(Why::Drain, &mut effects),
                Phase::Committing { .. } => self.drain = true,
                Phase::Stopping { .. } | Phase::Ended => {}
            },
            Input::Committed { cancel_requested } => self.committed(cancel_requested, &mut effects),
            Input::Fenced => self.fenced(&mut effects),
        }
        effects
    }

    /// Applies the run's input as the checkpoint before its first superstep.
    fn take_in(&mut self, input: Vec<Write>) -> Result<(), Failure> {
        let ops = channel::reduce(self.plan.channels(), input)?;
        let deltas = self.apply(ops);
        let next = self.plan.first();
        self.unsaved.push(Checkpoint { step: -1, source: Source::Input, next, deltas });
        Ok(())
    }

    // ## Executing => Executing | Committing | Stopping
    fn call_done(&mut self, call: u32, output: Output, effects: &mut Vec<Effect>) {
        let Phase::Executing { calls } = &mut self.phase else {
            self.call_gone(call, false, effects);
            return;
        };
        let Some(entry) = calls.get_mut(&call) else { return };
        entry.output.get_or_insert(output);
        if calls.values().any(|call| call.output.is_none()) {
            return;
        }
        // All calls of the superstep are done: apply their writes in call order, together.
        let finished: Vec<(Arc<str>, Output)> = std::mem::take(calls)
            .into_values()
            .filter_map(|call| Some((call.node, call.output?)))
            .collect();
        if let Err(failure) = self.close_superstep(finished, effects) {
            self.stop(Why::Failed(failure), effects);
        }
    }

    fn close_superstep(
        &mut self,
        finished: Vec<(Arc<str>, Output)>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Failure> {
        let calls: Vec<Finished> = finished
            .iter()
            .map(|(node, output)| Finished { node: node.clone(), goto: output.goto.clone() })
            .collect();
        for (_, output) in &finished {
            self.usage.add(output.usage);
        }
        let next = self.plan.next(&calls)?;
        let writes = finished.iter().flat_map(|(_, output)| output.writes.iter().cloned());
        let ops = channel::reduce(self.plan.channels(), writes)?;
        let deltas = self.apply(ops);
        self.step += 1;
        let step = self.step;
        if let Some(reply) = finished.iter().rev().find_map(|(_, output)| output.reply) {
            self.reply = Some(reply);
        }
        for (node, _) in &finished {
            let data = json!({"node": &**node, "step": step});
            effects.push(Effect::Record(Fact::new(EventKind::NodeCompleted, &data)));
        }
        self.unsaved.push(Checkpoint { step, source: Source::Loop, next: next.clone(), deltas });
        self.due = next;
        if self.due.is_empty() {
            self.commit_end(Status::Success, None, effects);
        } else {
            self.commit(Outcome::Continue, Then::Execute, effects);
        }
        Ok(())
    }

    fn execute(&mut self, effects: &mut Vec<Effect>) {
        let step = self.step + 1;
        if step >= i64::from(self.plan.max_steps()) {
            let nodes: Vec<&str> = self.due.iter().map(|node| &**node).collect();
            let failure = Failure::new(
                Code::RecursionLimit,
                format!(
                    "{} supersteps done and still going: next would be {}",
                    self.plan.max_steps(),
                    nodes.join(", ")
                ),
            );
            self.stop(Why::Failed(failure), effects);
            return;
        }
        let mut calls = BTreeMap::new();
        for node in self.due.clone() {
            let call = self.next_call;
            self.next_call += 1;
            let data = json!({"node": &*node, "step": step});
            effects.push(Effect::Show(Fact::new(EventKind::NodeStarted, &data)));
            effects.push(Effect::StartCall { call, node: node.clone(), step });
            calls.insert(call, Call { node, output: None });
        }
        self.phase = Phase::Executing { calls };
    }

    // ## Executing => Stopping
    fn stop(&mut self, why: Why, effects: &mut Vec<Effect>) {
        let open: BTreeMap<u32, Arc<str>> = match std::mem::replace(&mut self.phase, Phase::Ended) {
            Phase::Executing { calls } => {
                // What finished calls used is paid for, though their writes are lost.
                for output in calls.values().filter_map(|call| call.output.as_ref()) {
                    self.usage.add(output.usage);
                }
                let open = calls.into_iter().filter(|(_, call)| call.output.is_none());
                open.map(|(id, call)| (id, call.node)).collect()
            }
            Phase::Stopping { .. } | Phase::Committing { .. } | Phase::Ended => BTreeMap::new(),
        };
        effects.extend(open.keys().map(|&call| Effect::AbortCall { call }));
        self.phase = Phase::Stopping { open, why, socket_closed: false };
        self.settle(effects);
    }

    fn call_gone(&mut self, call: u32, closed: bool, effects: &mut Vec<Effect>) {
        if let Phase::Stopping { open, socket_closed, .. } = &mut self.phase {
            open.remove(&call);
            *socket_closed |= closed;
            self.settle(effects);
        }
    }

    // ## Stopping => Committing, when the last call is gone
    fn settle(&mut self, effects: &mut Vec<Effect>) {
        match &self.phase {
            Phase::Stopping { open, .. } if open.is_empty() => {}
            _ => return,
        }
        let Phase::Stopping { why, socket_closed, .. } =
            std::mem::replace(&mut self.phase, Phase::Ended)
        else {
            unreachable!("matched above")
        };
        match why {
            Why::Cancel { by } => {
                let data = json!({"by": by, "receipt": {"socket_closed": socket_closed}});
                effects.push(Effect::Record(Fact::new(EventKind::CancelRequested, &data)));
                let failure = Failure::new(Code::Cancelled, format!("cancelled by {by}"));
                self.commit_end(Status::Cancelled, Some(failure), effects);
            }
            Why::Deadline(failure) => self.commit_end(Status::Timeout, Some(failure), effects),
            Why::Failed(failure) => {
                let status = match failure.code {
                    Code::DeadlineExceeded => Status::Timeout,
                    _ => Status::Error,
                };
                self.commit_end(status, Some(failure), effects);
            }
            Why::Drain => {
                let data = json!({"reason": "shutting_down"});
                effects.push(Effect::Record(Fact::new(EventKind::RunReleased, &data)));
                // Input that was applied in memory only is applied again by the next owner.
                self.unsaved.clear();
                let then = Then::Stop(Stopped::Released);
                self.commit(Outcome::Release, then, effects);
            }
        }
    }

    fn commit_end(&mut self, status: Status, failure: Option<Failure>, effects: &mut Vec<Effect>) {
        let outcome = Outcome::End { status, failure, reply: self.reply };
        self.commit(outcome, Then::Stop(Stopped::Ended), effects);
    }

    fn commit(&mut self, outcome: Outcome, then: Then, effects: &mut Vec<Effect>) {
        let commit = Commit {
            number: self.commits,
            step: self.step,
            next: self.due.clone(),
            checkpoints: std::mem::take(&mut self.unsaved),
            outcome,
            usage: std::mem::take(&mut self.usage),
        };
        self.phase = Phase::Committing { then };
        effects.push(Effect::Commit(Box::new(commit)));
    }

    // ## Committing => Executing | Stopping | Ended
    fn committed(&mut self, cancel_requested: bool, effects: &mut Vec<Effect>) {
        let Phase::Committing { then } = std::mem::replace(&mut self.phase, Phase::Ended) else {
            return;
        };
        self.commits += 1;
        match then {
            Then::Stop(stopped) => effects.push(Effect::Stop(stopped)),
            Then::Execute => {
                let cancel = self.cancel.take().or(cancel_requested.then(|| "request".to_owned()));
                if let Some(by) = cancel {
                    self.stop(Why::Cancel { by }, effects);
                } else if self.drain {
                    self.stop(Why::Drain, effects);
                } else {
                    self.execute(effects);
                }
            }
        }
    }

    // ## any => Ended
    fn fenced(&mut self, effects: &mut Vec<Effect>) {
        let phase = std::mem::replace(&mut self.phase, Phase::Ended);
        if let Phase::Executing { calls } = &phase {
            let open = calls.iter().filter(|(_, call)| call.output.is_none());
            effects.extend(open.map(|(&call, _)| Effect::AbortCall { call }));
        }
        if !matches!(phase, Phase::Ended) {
            effects.push(Effect::Stop(Stopped::Fenced));
        }
    }

    fn apply(&mut self, ops: Vec<(Arc<str>, Op)>) -> Vec<Delta> {
        ops.into_iter()
            .map(|(channel, op)| {
                let previous = self.state.channel_version(&channel);
                let version = self.state.apply(&channel, op.clone());
                Delta { channel, version, previous, op }
            })
            .collect()
    }

    /// The run this machine drives.
    pub const fn run(&self) -> RunId {
        self.run
    }
}

#[cfg(test)]
mod tests;
