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
//! A superstep with several calls waits for all of them. One that ended while others still run is
//! kept in the [`crate::journal`] and not made again after a crash. A call may also end by asking a
//! person (an *interrupt*: the run ends, and a later run on the thread brings the answer) or by
//! *parking*: when nothing else is left to do the run waits without a slot.
//!
//! Invariants, checked by the property tests:
//! - a superstep is committed once, and no call starts while a commit is under way;
//! - exactly one end is committed; nothing happens after it;
//! - after a cancel was taken in, no call starts.
//!
//! Not here: the log's numbering ([`crate::log`]), timers, retries of the store (`clearway-engine`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use serde_json::{Value, json};
use uuid::Uuid;

pub use self::types::*;
use crate::channel::{self, Op, State, Write};
use crate::event::{EventKind, Fact};
use crate::journal::{self, Entry, Journal};
use crate::plan::{Due, Finished, Frontier, Plan};
use crate::run::Usage;
use crate::{Code, Failure, RunId, Status, TaskId};

mod types;

/// See the module.
#[derive(Debug)]
pub struct Machine {
    run: RunId,
    plan: Arc<Plan>,
    state: State,
    step: i64,
    commits: u64,
    next_call: u32,
    /// The superstep that is under way, or that would be.
    due: Frontier,
    journal: Journal,
    breaks: Breaks,
    detailed: bool,
    max_steps: u32,
    phase: Phase,
    /// Checkpoints made since the last commit (the input's waits for the first superstep's).
    unsaved: Vec<Checkpoint>,
    /// Journal entries to go with the next commit.
    notes: Vec<Entry>,
    /// Calls whose notes are of no use after the next commit.
    settled: Vec<TaskId>,
    /// Nodes of the newest supersteps, to name a loop by.
    visited: VecDeque<String>,
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
    due: Due,
    state: CallState,
    /// Its end is in the log.
    told: bool,
}

#[derive(Debug)]
enum CallState {
    /// Waits for a place among the calls that run at the same time.
    Held,
    Open,
    Done(Output),
    Interrupted(Value),
    Parked(Park),
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

/// Calls of one run that are made at the same time; further ones of a superstep wait.
pub const CALLS_AT_ONCE: usize = 64;

/// Supersteps that are remembered to find the loop in.
const REMEMBERED: usize = 64;

impl Machine {
    /// Takes up a claimed run.
    pub fn start(start: Start) -> (Self, Vec<Effect>) {
        let mut machine = Self {
            run: start.run,
            max_steps: start.max_steps.unwrap_or_else(|| start.plan.max_steps()),
            plan: start.plan,
            state: start.state,
            step: start.step,
            commits: start.commits,
            next_call: 0,
            due: Frontier::default(),
            journal: start.journal,
            breaks: start.breaks,
            detailed: start.detailed,
            phase: Phase::Executing { calls: BTreeMap::new() },
            unsaved: Vec::new(),
            notes: Vec::new(),
            settled: Vec::new(),
            visited: VecDeque::new(),
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
        let begins = start.step < 0 && !start.taken_in;
        let mut data = json!({"attempt": start.attempt});
        if let Some(first) = start.first.filter(|_| begins)
            && start.command.as_ref().is_none_or(Command::takes_in)
        {
            data["checkpoint"] = first.to_string().into();
        }
        effects.push(Effect::Show(Fact::new(EventKind::RunStarted, &data)));

        machine.due = match (&start.command, begins) {
            (None, true) => machine.plan.first(machine.run, 0),
            (Some(_), _) | (None, false) => start.frontier.clone(),
        };
        machine.due.depth = start.frontier.depth;
        // What stops it before it starts must not touch the state: it may be what is wrong.
        let poisoned = (start.fruitless >= POISON_LIMIT).then(|| {
            let text = format!("started {} times without finishing a superstep", start.fruitless);
            Failure::new(Code::Poisoned, text)
        });
        if let Some(failure) = start.failed.or(poisoned) {
            machine.stop(Why::Failed(failure), &mut effects);
            return (machine, effects);
        }
        // Also when it waited, or crashed, on the way through its first superstep.
        let continues = start.command.is_some() && start.step < 0;
        if begins {
            let taken = match start.command {
                None => machine.take_in(start.input, &start.frontier),
                Some(command) => machine.take_up(command),
            };
            if let Err(failure) = taken {
                machine.stop(Why::Failed(failure), &mut effects);
                return (machine, effects);
            }
        }
        if start.cancel_requested {
            machine.stop(Why::Cancel { by: "request".to_owned() }, &mut effects);
        } else if machine.due.is_empty() {
            machine.commit_end(Status::Success, None, &mut effects);
        } else {
            machine.execute(continues, &mut effects);
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

    /// How deep the thread is, with this run's supersteps so far.
    pub const fn depth(&self) -> u64 {
        self.due.depth
    }

    /// Commits of the run so far, acknowledged ones.
    pub const fn commits(&self) -> u64 {
        self.commits
    }

    pub const fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Ended)
    }

    /// Tells the machine what happened; does what follows.
    pub fn handle(&mut self, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        match input {
            Input::CallDone { call, output } => {
                self.call_ended(call, CallState::Done(output), &mut effects);
            }
            Input::CallInterrupted { call, value } => {
                self.call_ended(call, CallState::Interrupted(value), &mut effects);
            }
            Input::CallParked { call, park } => {
                self.call_ended(call, CallState::Parked(park), &mut effects);
            }
            Input::Kept { call } => self.kept(call, &mut effects),
            Input::Wake => self.wake(&mut effects),
            Input::Noted { entries } => {
                entries.into_iter().for_each(|entry| self.journal.add(entry));
                self.wake(&mut effects);
            }
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
    fn take_in(&mut self, input: Vec<Write>, before: &Frontier) -> Result<(), Failure> {
        let ops = channel::reduce(self.plan.channels(), input)?;
        let deltas = self.apply(ops);
        self.due.depth += 2;
        let next = self.due.clone();
        // What the thread had stopped at is not gone on with any more.
        self.settled.extend(before.due.iter().map(|due| due.task));
        self.unsaved.push(Checkpoint { step: -1, source: Source::Input, next, deltas });
        Ok(())
    }

    /// Goes on with what the thread stopped at.
    fn take_up(&mut self, command: Command) -> Result<(), Failure> {
        if command.fork {
            self.rename_due();
        }
        if let Some(resume) = &command.resume {
            self.answer(resume, command.fork, command.lenient)?;
        }
        if !command.takes_in() {
            return Ok(());
        }
        let ops = channel::reduce(self.plan.channels(), command.update)?;
        let deltas = self.apply(ops);
        if let Some(targets) = &command.goto {
            self.settled.extend(self.due.due.iter().map(|due| due.task));
            self.due = self.plan.jump(&self.due, targets, self.run, 0)?;
        }
        let source = if command.fork { Source::Fork } else { Source::Update };
        self.due.depth += 1;
        let next = self.due.clone();
        self.unsaved.push(Checkpoint { step: -1, source, next, deltas });
        Ok(())
    }

    /// The calls of an earlier checkpoint are made anew: under ids of this run, with the answers
    /// that people had given.
    fn rename_due(&mut self) {
        let mut counts: BTreeMap<Arc<str>, u32> = BTreeMap::new();
        for due in &mut self.due.due {
            let index = counts.entry(due.node.clone()).or_default();
            let task = TaskId::of(self.run, 0, &due.node, *index);
            *index += 1;
            for (n, value) in (0..).zip(self.journal.answers(due.task)) {
                let data = json!({"value": value});
                self.notes.push(Entry { task, key: journal::answer_key(n), data });
            }
            due.task = task;
        }
        self.notes.iter().for_each(|entry| self.journal.add(entry.clone()));
    }

    fn answer(&mut self, resume: &Resume, fork: bool, lenient: bool) -> Result<(), Failure> {
        let (run, mut answered) = (self.run.to_string(), false);
        let mut known = Vec::new();
        for due in &self.due.due {
            let n = self.journal.answers(due.task).len() as u32;
            let asked = self.journal.question(due.task).is_some() || fork;
            let earlier = n.checked_sub(1).and_then(|last| {
                let notes = self.journal.notes(due.task)?;
                notes.get(&journal::answer_key(last))
            });
            // Taken up again after a crash or a wait: its answer is there already.
            answered |= earlier.is_some_and(|answer| answer["run"] == *run);
            let id = due.task.interrupt(n);
            if !asked {
                continue;
            }
            known.push(id.to_string());
            let value = match resume {
                Resume::All(value) => Some(value),
                Resume::ById(values) => values.get(&id),
            };
            if let Some(value) = value {
                answered = true;
                let data = json!({"value": value, "run": run});
                let entry = Entry { task: due.task, key: journal::answer_key(n), data };
                self.notes.push(entry);
            }
        }
        if !answered && !lenient {
            let waits = if known.is_empty() {
                "nothing on this thread waits for an answer".to_owned()
            } else {
                format!("no question has this id; open ones: {}", known.join(", "))
            };
            return Err(Failure::new(Code::NothingWaits, waits));
        }
        self.notes.iter().for_each(|entry| self.journal.add(entry.clone()));
        Ok(())
    }

    // ## Executing => Executing | Committing | Stopping
    fn call_ended(&mut self, call: u32, end: CallState, effects: &mut Vec<Effect>) {
        let Phase::Executing { calls } = &mut self.phase else {
            self.call_gone(call, false, effects);
            return;
        };
        let Some(entry) = calls.get_mut(&call).filter(|call| matches!(call.state, CallState::Open))
        else {
            return;
        };
        entry.state = end;
        self.start_held(effects);
        self.settle_superstep(Some(call), effects);
    }

    /// What becomes of the superstep now that some call stands differently.
    fn settle_superstep(&mut self, ended: Option<u32>, effects: &mut Vec<Effect>) {
        let Phase::Executing { calls } = &mut self.phase else { return };
        let mut open = false;
        let mut unfinished = false;
        let mut park: Option<Park> = None;
        for call in calls.values() {
            match &call.state {
                CallState::Held | CallState::Open => open = true,
                CallState::Done(_) => continue,
                CallState::Interrupted(_) => {}
                CallState::Parked(one) => park = Some(earlier(park.take(), one)),
            }
            unfinished = true;
        }
        if unfinished
            && let Some(number) = ended
            && let Some(call) = calls.get(&number)
            && let CallState::Done(output) = &call.state
        {
            let data = journal::output_to_json(output);
            let entry = Entry { task: call.due.task, key: journal::DONE.to_owned(), data };
            self.journal.add(entry.clone());
            effects.push(Effect::Keep { call: number, entry });
        }
        if open {
            if let Some(at) = park.and_then(|park| park.wake_at) {
                effects.push(Effect::WakeAt(at));
            }
            return;
        }
        if let Some(park) = park {
            let mut data = json!({"kind": park.kind.as_str(), "detail": park.detail});
            if let Some(at) = park.wake_at {
                data["wake_at"] = at.to_string().into();
            }
            effects.push(Effect::Record(Fact::new(EventKind::RunParked, &data)));
            // What was told of them is durable with this, and is not told again.
            let told = calls.values().filter(|call| call.told).map(|call| call.due.task);
            let told: Vec<Entry> = told
                .map(|task| Entry { task, key: journal::TOLD.to_owned(), data: true.into() })
                .collect();
            self.notes.extend(told);
            self.commit(Outcome::Park(park), Then::Stop(Stopped::Parked), effects);
            return;
        }
        let calls = std::mem::take(calls);
        if unfinished {
            self.interrupt(calls, effects);
        } else if let Err(failure) = self.close_superstep(calls, effects) {
            self.stop(Why::Failed(failure), effects);
        }
    }

    fn kept(&mut self, call: u32, effects: &mut Vec<Effect>) {
        let Phase::Executing { calls } = &mut self.phase else { return };
        let Some(call) = calls.get_mut(&call) else { return };
        if !std::mem::replace(&mut call.told, true) {
            let CallState::Done(output) = &call.state else { return };
            let shown = completed(&call.due, output, self.step + 1, true, self.detailed);
            effects.push(Effect::Show(shown));
        }
    }

    fn wake(&mut self, effects: &mut Vec<Effect>) {
        let Phase::Executing { calls } = &mut self.phase else { return };
        for call in calls.values_mut() {
            if matches!(call.state, CallState::Parked(_)) {
                call.state = CallState::Held;
            }
        }
        self.start_held(effects);
    }

    /// Some calls ask a person, and all others are done: the run ends here.
    fn interrupt(&mut self, calls: BTreeMap<u32, Call>, effects: &mut Vec<Effect>) {
        let parallel = calls.len() > 1;
        for call in calls.into_values() {
            let Due { task, node, .. } = call.due.clone();
            match call.state {
                CallState::Done(output) => {
                    if !call.told {
                        let step = self.step + 1;
                        let fact = completed(&call.due, &output, step, parallel, self.detailed);
                        effects.push(Effect::Record(fact));
                    }
                }
                CallState::Interrupted(value) => {
                    let n = self.journal.answers(task).len() as u32;
                    let id = task.interrupt(n).to_string();
                    let data =
                        json!({"id": id, "task": task.to_string(), "node": &*node, "value": value});
                    effects.push(Effect::Record(Fact::new(EventKind::Interrupt, &data)));
                    let data = json!({"id": id, "node": &*node, "value": value});
                    self.notes.push(Entry { task, key: journal::interrupt_key(n), data });
                }
                CallState::Held | CallState::Open | CallState::Parked(_) => {}
            }
        }
        self.commit_end(Status::Success, None, effects);
    }

    fn close_superstep(
        &mut self,
        calls: BTreeMap<u32, Call>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Failure> {
        let finished: Vec<(Due, Output, bool)> = calls
            .into_values()
            .filter_map(|call| match call.state {
                CallState::Done(output) => Some((call.due, output, call.told)),
                CallState::Held
                | CallState::Open
                | CallState::Interrupted(_)
                | CallState::Parked(_) => None,
            })
            .collect();
        for (_, output, _) in &finished {
            self.usage.add(output.usage);
        }
        let ended: Vec<Finished> = finished
            .iter()
            .map(|(due, output, _)| Finished { node: due.node.clone(), goto: output.goto.clone() })
            .collect();
        let step = self.step + 1;
        let mut next = self.plan.next(&self.due, &ended, self.run, step + 1)?;
        next.depth += self.plan.counts(&ended);
        let writes = finished.iter().flat_map(|(_, output, _)| output.writes.iter().cloned());
        let ops = channel::reduce(self.plan.channels(), writes)?;
        let deltas = self.apply(ops);
        self.step = step;
        if let Some(reply) = finished.iter().rev().find_map(|(_, output, _)| output.reply) {
            self.reply = Some(reply);
        }
        for (due, output, told) in &finished {
            if !told {
                let fact = completed(due, output, step, finished.len() > 1, self.detailed);
                effects.push(Effect::Record(fact));
            }
            if self.journal.notes(due.task).is_some() {
                self.settled.push(due.task);
            }
        }
        let stops = ended.iter().any(|call| self.breaks.after.contains(&call.node));
        self.remember(&ended);
        self.unsaved.push(Checkpoint { step, source: Source::Loop, next: next.clone(), deltas });
        self.due = next;
        if self.due.is_empty() || stops {
            self.commit_end(Status::Success, None, effects);
        } else {
            self.commit(Outcome::Continue, Then::Execute, effects);
        }
        Ok(())
    }

    /// `continues` says that a person has seen the stop before these nodes.
    fn execute(&mut self, continues: bool, effects: &mut Vec<Effect>) {
        let step = self.step + 1;
        if step >= i64::from(self.max_steps) {
            let failure = self.recursion_limit();
            self.stop(Why::Failed(failure), effects);
            return;
        }
        if !continues && self.due.nodes().any(|node| self.breaks.before.contains(node)) {
            self.commit_end(Status::Success, None, effects);
            return;
        }
        let mut calls = BTreeMap::new();
        for due in &self.due.due {
            let call = self.next_call;
            self.next_call += 1;
            let done = self.journal.done(due.task);
            let told = done.is_some();
            if let Some(output) = &done
                && !self.journal.told(due.task)
            {
                // Both were shown before the crash, and taken back with everything after the commit.
                let parallel = self.due.due.len() > 1;
                effects.push(Effect::Show(started(due, step, parallel)));
                let shown = completed(due, output, step, parallel, self.detailed);
                effects.push(Effect::Show(shown));
            }
            let state = done.map_or(CallState::Held, CallState::Done);
            calls.insert(call, Call { due: due.clone(), state, told });
        }
        self.phase = Phase::Executing { calls };
        self.start_held(effects);
        self.settle_superstep(None, effects);
    }

    /// Starts calls that wait for a place.
    fn start_held(&mut self, effects: &mut Vec<Effect>) {
        let step = self.step + 1;
        let Phase::Executing { calls } = &mut self.phase else { return };
        if !calls.values().any(|call| matches!(call.state, CallState::Held)) {
            return;
        }
        let parallel = calls.len() > 1;
        let signals = self.journal.notes(TaskId(self.run.0)).cloned().unwrap_or_default();
        let mut total = 0;
        let mut open: BTreeMap<Arc<str>, u32> = BTreeMap::new();
        for call in calls.values().filter(|call| matches!(call.state, CallState::Open)) {
            *open.entry(call.due.node.clone()).or_default() += 1;
            total += 1;
        }
        for (&number, call) in calls.iter_mut() {
            if total >= CALLS_AT_ONCE {
                return;
            }
            if !matches!(call.state, CallState::Held) {
                continue;
            }
            let Due { task, node, .. } = &call.due;
            let open = open.entry(node.clone()).or_default();
            if self.plan.at_once(node).is_some_and(|most| *open >= most) {
                continue;
            }
            *open += 1;
            total += 1;
            call.state = CallState::Open;
            effects.push(Effect::Show(started(&call.due, step, parallel)));
            effects.push(Effect::StartCall(Box::new(StartCall {
                call: number,
                due: call.due.clone(),
                step,
                answers: self.journal.answers(*task),
                notes: self.journal.notes(*task).cloned().unwrap_or_default(),
                signals: signals.clone(),
                parallel,
            })));
        }
    }

    fn remember(&mut self, ended: &[Finished]) {
        let nodes: BTreeSet<&str> = ended.iter().map(|call| &*call.node).collect();
        self.visited.push_back(nodes.into_iter().collect::<Vec<_>>().join(" + "));
        if self.visited.len() > REMEMBERED {
            self.visited.pop_front();
        }
    }

    fn recursion_limit(&self) -> Failure {
        let limit = self.max_steps;
        let visited: Vec<&str> = self.visited.iter().map(String::as_str).collect();
        let looping = match repeated(&visited) {
            Some(cycle) => format!("it loops through {} → {}", cycle.join(" → "), cycle[0]),
            None => {
                let next: BTreeSet<&str> = self.due.nodes().map(|node| &**node).collect();
                format!("next would be {}", next.into_iter().collect::<Vec<_>>().join(", "))
            }
        };
        Failure::new(
            Code::RecursionLimit,
            format!("{limit} supersteps done (max_steps) and still going: {looping}"),
        )
        .with("limit", "max_steps")
    }

    // ## Executing => Stopping
    fn stop(&mut self, why: Why, effects: &mut Vec<Effect>) {
        let mut open = BTreeMap::new();
        if let Phase::Executing { calls } = std::mem::replace(&mut self.phase, Phase::Ended) {
            for (id, call) in calls {
                match call.state {
                    CallState::Open => {
                        open.insert(id, call.due.node);
                    }
                    // What finished calls used is paid for; kept ones are counted when they count.
                    CallState::Done(output) if self.journal.done(call.due.task).is_none() => {
                        self.usage.add(output.usage);
                    }
                    CallState::Done(_)
                    | CallState::Held
                    | CallState::Interrupted(_)
                    | CallState::Parked(_) => {}
                }
            }
        }
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
                self.notes.clear();
                self.settled.clear();
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
            notes: std::mem::take(&mut self.notes),
            settled: std::mem::take(&mut self.settled),
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
                    self.execute(false, effects);
                }
            }
        }
    }

    // ## any => Ended
    fn fenced(&mut self, effects: &mut Vec<Effect>) {
        let phase = std::mem::replace(&mut self.phase, Phase::Ended);
        if let Phase::Executing { calls } = &phase {
            let open = calls.iter().filter(|(_, call)| matches!(call.state, CallState::Open));
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

fn started(due: &Due, step: i64, parallel: bool) -> Fact {
    let mut data = json!({"node": &*due.node, "step": step});
    if parallel {
        data["task"] = due.task.to_string().into();
    }
    Fact::new(EventKind::NodeStarted, &data)
}

/// A call alone in its superstep needs no more words: its checkpoint says what it wrote.
fn completed(due: &Due, output: &Output, step: i64, parallel: bool, detailed: bool) -> Fact {
    let mut data = json!({"node": &*due.node, "step": step});
    if parallel {
        data["task"] = due.task.to_string().into();
    }
    if parallel && detailed {
        let writes = output.writes.iter();
        data["writes"] =
            writes.map(|write| json!({"channel": &*write.channel, "value": write.value})).collect();
    }
    Fact::new(EventKind::NodeCompleted, &data)
}

/// The wait that ends first says what the run waits for; a child's end counts if any call wants it.
fn earlier(known: Option<Park>, other: &Park) -> Park {
    let Some(known) = known else { return other.clone() };
    let on_child = known.on_child || other.on_child;
    let first = match (known.wake_at, other.wake_at) {
        (Some(one), Some(two)) if two < one => other.clone(),
        (None, Some(_)) => other.clone(),
        (Some(_) | None, _) => known,
    };
    Park { on_child, ..first }
}

/// The shortest sequence that the newest supersteps are repetitions of.
fn repeated<'a>(visited: &[&'a str]) -> Option<Vec<&'a str>> {
    (1..=visited.len() / 2)
        .find(|&length| {
            let (rest, last) = visited.split_at(visited.len() - length);
            rest.ends_with(last)
        })
        .map(|length| visited[visited.len() - length..].to_vec())
}

#[cfg(test)]
mod tests;
