//! One run's task: it feeds the machine what happens and does what the machine says.
//!
//! Calls are polled in this very task, so a provider's bytes reach the log without a hop. A call is
//! stopped by dropping its future, which closes its sockets on the spot.
//!
//! Not here: the rules (`clearway_core::machine`), who gets a slot (`dispatcher`).

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clearway_core::channel::State;
use clearway_core::event::Body;
use clearway_core::journal::{self, Entry};
use clearway_core::machine::{
    Commit, Effect, Input, Machine, Outcome, Park, Receipt, Start, StartCall, Stopped,
};
use clearway_core::plan::Plan;
use clearway_core::run::Usage;
use clearway_core::wait::{Spent, WaitCell, WaitKind};
use clearway_core::{CheckpointId, Code, Deadline, Failure, RunRecord, Status, TaskId, Timestamp};
use clearway_store::{Claim, CommitAck, Journaled, Keep, Schedule, StepCommit, StepOutcome};
use clearway_upstream::{CallProbe, Class};
use futures_util::future::{AbortHandle, Abortable};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use uuid::Uuid;

use self::claim::{deadline_of, earlier_reply, load_state, named, send_commit, start};
use self::ends::{find_message, give_up, lose, run_ended};
use self::underway::Calls;
use crate::agent::{Agent, Expiry};
use crate::calls::{self, CallEnd, panicked};
use crate::clock::instant;
use crate::ctx::{Ctx, Session, Spending};
use crate::engine::{Inner, bounded_by};
use crate::gate::Gate;
use crate::ledger::{Booked, Ledger};
use crate::live::Live;
use crate::pools::Slot;
use crate::schedules;
use crate::started::{Context, Started};
use crate::trace;

mod claim;
mod ends;
mod underway;

/// The store has accepted a run that was started ahead: its row as written.
pub(crate) struct Admitted(pub Box<RunRecord>);

/// What a run that is started ahead of its acceptance brings along, and how it learns of that.
pub(crate) type Ahead = (State, oneshot::Receiver<Admitted>);

/// Drives a claimed run to its end, or until it has to be let go.
///
/// With `ahead`, the claim is foreseen, not yet true: nothing is committed before it is, and if it
/// never is, everything the run began is dropped.
pub(crate) async fn execute(
    inner: Arc<Inner>,
    claim: Claim,
    live: Arc<Live>,
    slot: Slot,
    ahead: Option<Ahead>,
) {
    let (thread, lease) = (claim.record.thread, claim.record.fence);
    let context = Context {
        run: claim.record.id.to_string(),
        thread: claim.record.thread.to_string(),
        agent: claim.record.agent.clone(),
    };
    let log = Started::run(context.clone(), claim.record.attempt);
    if claim.record.attempt > 1 {
        inner.metrics.resumed.inc();
    }
    let span = trace::run(&claim.record);
    let drive = Executor::drive(inner.clone(), claim, live.clone(), context, ahead);
    let drive = AssertUnwindSafe(drive).catch_unwind().map(|outcome| {
        outcome.unwrap_or_else(|panic| {
            // Not in a node, whose panics are the run's failure: in what surrounds it, or in a drop.
            give_up(&inner, &live, lease, panicked("executor", panic.as_ref()))
        })
    });
    let outcome = drive.instrument(span.clone()).await;
    span.record("clearway.run.outcome", outcome);
    log.end_with(outcome, live.failure().as_ref());
    // A start that was not accepted is followed by the real one, under the same id.
    if outcome != NOT_ACCEPTED {
        inner.left(thread, &live, lease);
    }
    drop(slot);
}

struct Executor {
    inner: Arc<Inner>,
    live: Arc<Live>,
    record: RunRecord,
    agent: Option<Arc<Agent>>,
    context: Context,
    machine: Machine,
    calls: Calls,
    open: HashMap<u32, OpenCall>,
    commit: Option<CommitFuture>,
    /// A commit that waits for the run to be accepted.
    held: Option<StepCommit>,
    admission: Option<oneshot::Receiver<Admitted>>,
    /// The end that the commit under way will make, once it is durable.
    ending: Option<(Status, Option<Failure>, Option<Uuid>)>,
    /// The newest checkpoint of this run under this lease, as of the commit under way.
    head: Option<CheckpointId>,
    /// What it begins with, unless an earlier attempt has committed that.
    first: CheckpointId,
    deadline: Deadline,
    claimed_at: Instant,
    cancel_at: Option<Instant>,
    usage: Usage,
    /// Commits before the superstep whose calls are made once more, as an earlier lease was lost in it.
    repeats: Option<u64>,
    /// Of calls since the last commit.
    unbooked: Booked,
    spending: Arc<Spending>,
    /// Outputs of finished calls on their way to the journal.
    keeping: FuturesUnordered<KeepFuture>,
    /// A commit that must not overtake them.
    behind_keeps: Option<StepCommit>,
    /// When parked calls are to be made again while others run.
    wake_at: Option<Timestamp>,
    /// Calls that wrote into the journal, in this superstep.
    noted: Vec<TaskId>,
    /// Time limits of the questions that were asked.
    expiries: Vec<(uuid::Uuid, Expiry)>,
    /// The call whose wait is shown as the run's.
    shown: Option<u32>,
    for_calls: Option<Arc<RunRecord>>,
    /// What the commit under way makes the run wait for.
    parking: Option<Park>,
    /// It was woken before it could wait.
    woken: bool,
}

struct OpenCall {
    task: TaskId,
    answers: u32,
    session: Arc<Session>,
    wait: Arc<WaitCell>,
    ledger: Arc<Ledger>,
    abort: AbortHandle,
    probe: Arc<CallProbe>,
    /// Whether a provider's socket was open when the call was told to stop.
    was_connected: bool,
}

type CommitFuture = Pin<Box<dyn Future<Output = CommitEnd> + Send>>;
type KeepFuture = Pin<Box<dyn Future<Output = (u32, Result<Journaled, Failure>)> + Send>>;

enum CommitEnd {
    Ack(CommitAck),
    /// The store would not take it, and there is no time left to try.
    GaveUp(Failure),
}

impl Executor {
    /// Returns the outcome in one word, for the log.
    async fn drive(
        inner: Arc<Inner>,
        claim: Claim,
        live: Arc<Live>,
        context: Context,
        ahead: Option<Ahead>,
    ) -> &'static str {
        // Boxed: thousands of runs wait for tokens, and what they needed to start is gone by then.
        match Box::pin(Self::prepare(inner, claim, live, context, ahead)).await {
            Ok((executor, effects)) => executor.run(effects).await,
            Err(outcome) => outcome,
        }
    }

    async fn prepare(
        inner: Arc<Inner>,
        claim: Claim,
        live: Arc<Live>,
        context: Context,
        ahead: Option<Ahead>,
    ) -> Result<(Box<Self>, Vec<Effect>), &'static str> {
        let now = instant();
        let agent = live.agent.get().cloned().or_else(|| inner.agents.get(&claim.record.agent));
        if let Some(agent) = &agent {
            let _ = live.agent.set(agent.clone());
        }
        let deadline = deadline_of(&inner, &claim.record, agent.as_deref(), now);
        let mut failed = None;
        let (state, admission) = match ahead {
            Some((state, admission)) => (state, Some(admission)),
            None => {
                live.wait.enter(WaitKind::Store, "loading the thread", Some(deadline), now);
                match load_state(&inner, &claim, deadline).await {
                    Ok(state) => (state, None),
                    Err(failure) if failure.retryable => {
                        return Err(give_up(&inner, &live, claim.record.fence, failure));
                    }
                    // Trying again would find the same damage: the run ends and says so.
                    Err(failure) => {
                        failed = Some(failure);
                        (State::new(), None)
                    }
                }
            }
        };
        live.wait.enter(WaitKind::Work, "", Some(deadline), instant());
        let plan = agent
            .as_ref()
            .map_or_else(|| Arc::new(Plan::chat("agent")), |agent| agent.plan.clone());
        let reply = earlier_reply(&claim.record, &plan, &state);
        let start = Start { reply, failed, ..start(&claim, &live, plan, state) };
        let repeats = start.has_void_output.then_some(start.commits);
        let (machine, effects) = Machine::start(start);
        let mut used = claim.record.usage;
        // What a crash kept from being committed.
        let record = &claim.record;
        let usage = journal::unbooked(&claim.journal, record.id, record.commits);
        used.add(usage);
        let spending = Arc::new(Spending::new(claim.record.options.budget, &used));
        let first = claim.record.first_checkpoint(claim.head);
        let executor = Box::new(Self {
            inner,
            live,
            record: claim.record,
            agent,
            context,
            machine,
            calls: Calls::default(),
            open: HashMap::new(),
            commit: None,
            held: None,
            admission,
            ending: None,
            head: None,
            first,
            deadline,
            claimed_at: now,
            cancel_at: None,
            usage: Usage::default(),
            repeats,
            unbooked: Booked { usage, attempts: Vec::new() },
            spending,
            keeping: FuturesUnordered::new(),
            behind_keeps: None,
            wake_at: None,
            noted: Vec::new(),
            expiries: Vec::new(),
            shown: None,
            for_calls: None,
            parking: None,
            woken: false,
        });
        Ok((executor, effects))
    }

    async fn run(mut self: Box<Self>, mut effects: Vec<Effect>) -> &'static str {
        let inner = self.inner.clone();
        let live = self.live.clone();
        let expiry = tokio::time::sleep_until(self.deadline.0.into());
        tokio::pin!(expiry);
        // The deadline counts also when it passes during a commit: it is told again afterwards.
        let (mut expired, mut told) = (false, false);
        let mut draining = false;
        // All but the calls, which bring the tokens.
        let gate = Gate::default();
        loop {
            for effect in std::mem::take(&mut effects) {
                if let Some(more) = self.apply(effect) {
                    match more {
                        Applied::Input(input) => effects.extend(self.machine.handle(input)),
                        Applied::Stopped(outcome) => return outcome,
                    }
                }
            }
            if !effects.is_empty() {
                continue;
            }
            self.show_wait();
            if self.keeping.is_empty()
                && let Some(commit) = self.behind_keeps.take()
            {
                self.send(commit);
            }
            if expired
                && !told
                && self.commit.is_none()
                && self.held.is_none()
                && self.behind_keeps.is_none()
            {
                told = true;
                effects = self.machine.handle(Input::DeadlineReached { failure: self.expired() });
                continue;
            }
            let happened = {
                let Self { admission, commit, keeping, calls, wake_at, .. } = &mut *self;
                let aside = async {
                    tokio::select! {
                        biased;
                        admitted = poll_admission(admission), if admission.is_some() => {
                            Happened::Admitted(admitted.ok())
                        }
                        by = live.cancel.requested() => Happened::CancelAsked(by),
                        () = &mut expiry, if !expired => Happened::Expired,
                        () = inner.tasks.hard.cancelled(), if !draining => Happened::Stopping,
                        end = poll_commit(commit), if commit.is_some() => Happened::Committed(end),
                        Some((call, kept)) = keeping.next(), if !keeping.is_empty() => {
                            Happened::Kept(call, kept)
                        }
                        entries = live.notes.arrived() => Happened::Noted(entries),
                        () = until(&inner, *wake_at), if wake_at.is_some() => Happened::Woken,
                    }
                };
                tokio::pin!(aside);
                tokio::select! {
                    biased;
                    happened = gate.guard(aside) => happened,
                    Some((call, end)) = calls.next(), if !calls.is_empty() => {
                        Happened::CallEnded(call, end)
                    }
                }
            };
            let input = match happened {
                Happened::Admitted(admitted) => {
                    self.admission = None;
                    let Some(Admitted(record)) = admitted else { return NOT_ACCEPTED };
                    self.accepted(*record);
                    None
                }
                Happened::CancelAsked(by) => {
                    self.cancel_at.get_or_insert_with(instant);
                    Some(Input::Cancel { by })
                }
                Happened::Expired => {
                    expired = true;
                    None
                }
                Happened::Stopping => {
                    draining = true;
                    Some(Input::Drain)
                }
                Happened::Committed(end) => {
                    self.commit = None;
                    match self.committed(end) {
                        Ok(input) => Some(input),
                        Err(outcome) => return outcome,
                    }
                }
                Happened::Kept(call, Ok(Journaled::Stored)) => Some(Input::Kept { call }),
                Happened::Kept(_, Ok(Journaled::Fenced)) => Some(Input::Fenced),
                // It would be made again after a crash; the commit decides about everything else.
                Happened::Kept(_, Err(failure)) => {
                    tracing::warn!(run.id = %self.record.id, "a finished call could not be kept: {failure}");
                    None
                }
                Happened::Noted(entries) => Some(Input::Noted { entries }),
                Happened::Woken => {
                    self.wake_at = None;
                    Some(Input::Wake)
                }
                Happened::CallEnded(call, end) => Some(self.call_ended(call, end)),
            };
            if let Some(input) = input {
                effects = self.machine.handle(input);
            }
        }
    }

    fn apply(&mut self, effect: Effect) -> Option<Applied> {
        match effect {
            Effect::Show(fact) => {
                // Facts are few; a run over its output limit is ended by its deltas.
                drop(self.live.output(self.record.fence, Body::Fact(fact)));
                None
            }
            Effect::Record(fact) => {
                self.live.record(self.record.fence, Body::Fact(fact));
                None
            }
            Effect::StartCall(start) => {
                let call = start.call;
                let failed = self.start_call(*start).err();
                failed.map(|failure| Applied::Input(Input::CallFailed { call, failure }))
            }
            Effect::Keep { call, entry } => {
                self.keep(call, entry);
                None
            }
            Effect::WakeAt(at) => {
                self.wake_at = Some(self.wake_at.map_or(at, |known| known.min(at)));
                None
            }
            Effect::AbortCall { call } => {
                if let Some(open) = self.open.get_mut(&call) {
                    open.was_connected = open.probe.is_connected();
                    open.session.cancelled.cancel();
                    open.abort.abort();
                    return None;
                }
                let receipt = Receipt { socket_closed: false };
                Some(Applied::Input(Input::CallAborted { call, receipt }))
            }
            Effect::Commit(commit) => {
                self.start_commit(*commit);
                None
            }
            Effect::Stop(stopped) => Some(Applied::Stopped(self.stop(stopped))),
        }
    }

    fn start_call(&mut self, start: StartCall) -> Result<(), Failure> {
        let StartCall { call, due, step, answers, notes, signals, parallel } = start;
        let Some(agent) = self.agent.clone() else {
            return Err(Failure::new(
                Code::AgentNotFound,
                format!("no agent `{}` in the configuration any more", self.record.agent),
            ));
        };
        let Some(code) = agent.nodes.get(&due.node).cloned() else {
            return Err(Failure::new(
                Code::AgentNotFound,
                format!("agent `{}` has no node `{}` any more", agent.name, due.node),
            ));
        };
        let probe = Arc::new(CallProbe::default());
        let ledger = Arc::new(Ledger::new(
            due.node.clone(),
            self.live.clone(),
            self.record.fence,
            self.inner.metrics.clone(),
            self.spending.clone(),
            self.inner.clocks.clone(),
            self.repeats == Some(self.machine.commits()),
        ));
        let now = instant();
        let among = due.payload.is_some().then_some(due.task);
        let session = Arc::new(Session {
            asked: AtomicU32::new(0),
            notes: Mutex::new(notes),
            signals: Mutex::new(signals),
            taken: Mutex::default(),
            noted: AtomicBool::new(false),
            parallel,
            begun: now,
            alive: AtomicU64::new(0),
            cancelled: CancellationToken::new(),
            spending: self.spending.clone(),
            shown: AtomicBool::new(false),
            answers,
        });
        // Calls side by side wait for different things; the run shows one of them.
        let wait = match parallel {
            false => self.live.wait.clone(),
            true => Arc::new(WaitCell::new(WaitKind::Work, &*due.node, Spent::default(), now)),
        };
        if parallel {
            self.live.call_waits(call, &due.node, wait.clone());
        }
        let cx = Ctx {
            run: self.record.id,
            thread: self.record.thread,
            agent: agent.name.as_str().into(),
            node: due.node.clone(),
            task: due.task,
            step,
            attempt: self.record.attempt,
            state: self.machine.state().clone(),
            payload: due.payload,
            deadline: self.deadline,
            wait: wait.clone(),
            probe: probe.clone(),
            upstream: self.inner.upstream.clone(),
            record: self.shared_record(),
            inner: self.inner.clone(),
            live: self.live.clone(),
            // Nobody waits for a run without a deadline of its own.
            class: match self.record.deadline_at {
                Some(_) => Class::Interactive,
                None => Class::Run,
            },
            ledger: ledger.clone(),
            session: session.clone(),
        };
        let log = Started::step(self.context.clone(), &due.node, step, among);
        let span = trace::step(&due.node, step);
        let (abort, registration) = AbortHandle::new_pair();
        let answers = u32::try_from(session.answers.len()).unwrap_or(u32::MAX);
        let open = OpenCall {
            task: due.task,
            answers,
            session,
            wait,
            abort,
            probe,
            ledger,
            was_connected: false,
        };
        self.open.insert(call, open);
        let guarded = async move {
            let made = Abortable::new(calls::make(agent, code, cx), registration).await;
            // The node's future is gone when this returns, whatever the outcome.
            let end = made.unwrap_or(CallEnd::Aborted);
            log.end(end.outcome());
            (call, end)
        };
        self.calls.push(Box::pin(guarded.instrument(span)));
        Ok(())
    }

    /// The record for calls: made once per claim, and again when the row has been accepted.
    fn shared_record(&mut self) -> Arc<RunRecord> {
        self.for_calls.get_or_insert_with(|| Arc::new(self.record.clone())).clone()
    }

    fn keep(&mut self, call: u32, mut entry: Entry) {
        let (id, commits) = (self.record.id, self.machine.commits());
        journal::note_unbooked(&mut entry.data, id, commits, self.unbooked.usage);
        let (inner, run, fence) = (self.inner.clone(), self.record.id, self.record.fence);
        let limit = self.deadline.0.max(instant()) + STORE_GRACE;
        self.keeping.push(Box::pin(async move {
            let kept = bounded_by(limit, inner.store.journal(run, fence, vec![entry])).await;
            (call, kept.map_err(|error| crate::Error::from(error).0))
        }));
    }

    /// Of calls that run side by side, the one that waits longest for something outside is what the
    /// run waits for.
    fn show_wait(&mut self) {
        if !self.open.values().any(|open| open.session.parallel) {
            return;
        }
        let now = instant();
        let rank = |open: &OpenCall| {
            let waiting = open.wait.read(now);
            (waiting.kind != WaitKind::Work, waiting.for_)
        };
        let first =
            self.open.iter().max_by_key(|(call, open)| (rank(open), std::cmp::Reverse(**call)));
        let Some((&call, open)) = first else { return };
        if self.shown != Some(call) {
            self.shown = Some(call);
            self.live.wait.follow(open.wait.clone(), now);
        }
    }

    fn call_ended(&mut self, call: u32, end: CallEnd) -> Input {
        let open = self.open.remove(&call);
        if let Some(open) = &open {
            self.unbooked.add(open.ledger.take());
            if open.session.noted.load(Ordering::Acquire) {
                self.noted.push(open.task);
            }
            if open.session.parallel {
                self.live.call_over(call);
            }
            if self.shown == Some(call) {
                self.shown = None;
                self.live.wait.enter(WaitKind::Work, "", Some(self.deadline), instant());
            }
        }
        match end {
            CallEnd::Done(output) => Input::CallDone { call, output },
            CallEnd::Interrupted { value, expiry } => {
                if let (Some(expiry), Some(open)) = (expiry, &open) {
                    self.expiries.push((open.task.interrupt(open.answers), *expiry));
                }
                Input::CallInterrupted { call, value }
            }
            CallEnd::Parked(park) => Input::CallParked { call, park },
            CallEnd::Failed(failure)
                if failure.code == Code::DeadlineExceeded
                    && self.deadline.has_passed(instant()) =>
            {
                Input::CallFailed { call, failure: self.expired() }
            }
            CallEnd::Failed(failure) => Input::CallFailed { call, failure },
            CallEnd::Aborted => {
                let socket_closed =
                    open.is_some_and(|open| open.was_connected && !open.probe.is_connected());
                Input::CallAborted { call, receipt: Receipt { socket_closed } }
            }
        }
    }

    /// The failure of a passed deadline: it says where the time went.
    fn expired(&self) -> Failure {
        let waiting = self.live.wait.read(instant());
        let spent = &waiting.spent;
        let total: Duration = WaitKind::ALL.iter().map(|&kind| spent.get(kind)).sum();
        let at = if waiting.detail.is_empty() {
            String::new()
        } else {
            format!(" ({})", waiting.detail)
        };
        let text = format!("{:.1} s spent: {spent}{at}", total.as_secs_f64());
        Failure::new(Code::DeadlineExceeded, text)
            .with("phase", waiting.kind.as_str())
            .with("waiting_for", &*waiting.detail)
            .with("spent_ms", spent.to_json())
            .retryable()
    }

    fn start_commit(&mut self, mut commit: Commit) {
        // Failed and abandoned calls count as much as those that an output came of.
        let Booked { usage, attempts } = std::mem::take(&mut self.unbooked);
        commit.usage.add(usage);
        if let (Some(at), Outcome::End { .. }) = (self.cancel_at, &commit.outcome) {
            let latency = instant().saturating_duration_since(at);
            self.inner.metrics.cancel_latency.observe(latency.as_secs_f64());
        }
        self.usage.add(commit.usage);
        let waiting = self.live.wait.read(instant());
        let outcome = match commit.outcome {
            Outcome::Continue => StepOutcome::Continue,
            Outcome::Release => StepOutcome::Release,
            Outcome::Park(park) => {
                self.parking = Some(park.clone());
                StepOutcome::Park(park)
            }
            Outcome::End { status, failure, reply } => {
                let ended = run_ended(status, failure.as_ref(), reply, &waiting.spent.to_json());
                self.live.record(self.record.fence, Body::Fact(ended));
                self.ending = Some((status, failure.clone(), reply));
                StepOutcome::End { status, failure }
            }
        };
        let (ids, first) = (self.inner.ids, self.first);
        let checkpoints = named(commit.checkpoints, ids, first, &mut self.head);
        self.record.step = commit.step;
        self.record.next = commit.next.nodes().map(|node| (**node).to_owned()).collect();
        let schedules = self.question_timers();
        let mut settled = commit.settled;
        // Notes are of use until their superstep has committed.
        let noted = std::mem::take(&mut self.noted);
        let due: BTreeSet<TaskId> = commit.next.due.iter().map(|due| due.task).collect();
        settled.extend(noted.into_iter().filter(|task| !due.contains(task)));
        let commit = StepCommit {
            run: self.record.id,
            fence: self.record.fence,
            number: commit.number,
            events: self.live.take_for_commit(self.record.fence),
            step: commit.step,
            next: commit.next,
            notes: commit.notes,
            settled,
            schedules,
            checkpoints,
            outcome,
            spent: waiting.spent,
            worked: self.worked(),
            usage: commit.usage,
            attempts,
        };
        self.live.wait.enter(WaitKind::Store, "commit", Some(self.deadline), instant());
        if self.admission.is_some() {
            self.held = Some(commit);
        } else if self.keeping.is_empty() {
            self.send(commit);
        } else {
            self.behind_keeps = Some(commit);
        }
    }

    /// Questions with a time limit, as timers that bring the answer.
    fn question_timers(&mut self) -> Vec<Schedule> {
        let (inner, record, head) = (&self.inner, &self.record, self.head);
        let now = inner.clocks.now();
        std::mem::take(&mut self.expiries)
            .into_iter()
            .map(|(question, Expiry { after, answer })| Schedule {
                id: question,
                tenant: record.tenant.clone(),
                owner: record.owner.clone(),
                name: None,
                thread: Some(record.thread),
                cron: None,
                timezone: None,
                next_at: Some(now.plus(after)),
                submit: schedules::resume(record, question, answer),
                only_at: head.or(record.checkpoint),
                created_at: now,
                last_at: None,
                last_run: None,
                last_error: None,
            })
            .collect()
    }

    fn send(&mut self, commit: StepCommit) {
        // A run whose time is up still gets time to write down its end.
        let give_up = self.deadline.0.max(instant()) + STORE_GRACE;
        self.commit = Some(Box::pin(send_commit(self.inner.clone(), commit, give_up)));
    }

    /// The store has accepted the run as it was started: what was foreseen is replaced by the row.
    fn accepted(&mut self, record: RunRecord) {
        let step = self.record.step;
        let next = std::mem::take(&mut self.record.next);
        self.record = RunRecord { step, next, ..record };
        self.for_calls = None;
        self.live.flush_again();
        if let Some(commit) = self.held.take() {
            self.send(commit);
        }
    }

    fn worked(&self) -> Duration {
        self.record.worked + instant().saturating_duration_since(self.claimed_at)
    }

    fn committed(&mut self, end: CommitEnd) -> Result<Input, &'static str> {
        match end {
            CommitEnd::Ack(CommitAck::Applied { cancel_requested, promoted, woken, orphans }) => {
                let limit = self.inner.options.limits.log_bytes;
                if self.live.committed(self.record.fence, limit) {
                    self.live.wait.enter(WaitKind::Work, "", Some(self.deadline), instant());
                }
                if let Some(promoted) = promoted {
                    self.inner.promoted(promoted);
                }
                self.woken = woken.contains(&self.record.id);
                if !woken.is_empty() {
                    self.inner.wake_dispatcher();
                }
                for orphan in orphans {
                    self.inner.cancel_told(orphan, "parent");
                }
                Ok(Input::Committed { cancel_requested })
            }
            CommitEnd::Ack(CommitAck::Fenced) => Ok(Input::Fenced),
            CommitEnd::GaveUp(failure) => {
                Err(give_up(&self.inner, &self.live, self.record.fence, failure))
            }
        }
    }

    fn stop(&mut self, stopped: Stopped) -> &'static str {
        match stopped {
            Stopped::Ended => self.ended(),
            Stopped::Released => {
                let text = "the server is stopping; the run goes on when it is back";
                let failure = Failure::new(Code::ShuttingDown, text).retryable();
                lose(&self.inner, &self.live, self.record.fence, failure);
                "released"
            }
            Stopped::Parked => {
                let is_mine = self.live.park(self.record.fence);
                let show = |kind, detail: String| {
                    if is_mine {
                        self.live.wait.enter(kind, detail, None, instant());
                    }
                };
                match self.parking.take().filter(|_| !self.woken) {
                    Some(park) => {
                        show(park.kind, park.detail);
                        self.inner.arm_next(park.wake_at);
                    }
                    None => {
                        show(WaitKind::Slot, format!("pool {}", self.record.pool));
                        self.inner.wake_dispatcher();
                    }
                }
                if is_mine {
                    self.inner.tell_if_stopping(&self.live);
                }
                "parked"
            }
            Stopped::Fenced => {
                self.inner.metrics.fenced.inc();
                let failure = Failure::new(Code::Fenced, "another instance has taken the run over")
                    .retryable();
                give_up(&self.inner, &self.live, self.record.fence, failure)
            }
        }
    }

    fn ended(&mut self) -> &'static str {
        let Some((status, failure, reply)) = self.ending.take() else { return "ended" };
        let waiting = self.live.wait.read(instant());
        let state = self.machine.take_state();
        let reply = reply.and_then(|id| find_message(&state, id));
        let record = RunRecord {
            status,
            failure,
            ended_at: Some(self.inner.clocks.now()),
            instance: None,
            checkpoint: self.head.or(self.record.checkpoint),
            spent: waiting.spent,
            worked: self.worked(),
            usage: {
                let mut usage = self.record.usage;
                usage.add(self.usage);
                usage
            },
            next_seq: self.live.run_log().1,
            committed_seq: self.live.run_log().1,
            ..self.record.clone()
        };
        // A run that was stopped may have been stopped by a reset, which moved the head; and a
        // thread that stopped half-way is gone on with from the store, which has all of it.
        if let Some(head) = self.head
            && status == Status::Success
            && record.next.is_empty()
        {
            self.inner.cache.put(&record, head, self.machine.depth(), state);
        }
        if let Some(agent) = &self.agent
            && agent.keep != Keep::All
        {
            let inner = self.inner.clone();
            self.inner.tasks.spawn(inner.retain(record.thread, agent.keep));
        }
        trace::ended(self.usage, record.failure.as_ref());
        self.inner.observe_end(&record, self.live.first_output(), self.claimed_at);
        self.inner.finish_live(&self.live, record, reply);
        status.as_str()
    }
}

/// What the run's task was woken for.
enum Happened {
    /// The store's answer to a start ahead; `None` when it was not accepted.
    Admitted(Option<Admitted>),
    CancelAsked(String),
    Expired,
    Stopping,
    Committed(CommitEnd),
    Kept(u32, Result<Journaled, Failure>),
    Noted(Vec<Entry>),
    Woken,
    CallEnded(u32, CallEnd),
}

enum Applied {
    Input(Input),
    Stopped(&'static str),
}

async fn poll_admission(
    admission: &mut Option<oneshot::Receiver<Admitted>>,
) -> Result<Admitted, oneshot::error::RecvError> {
    match admission {
        Some(admission) => admission.await,
        None => std::future::pending().await,
    }
}

async fn poll_commit(commit: &mut Option<CommitFuture>) -> CommitEnd {
    match commit {
        Some(commit) => commit.await,
        None => std::future::pending().await,
    }
}

async fn until(inner: &Inner, at: Option<Timestamp>) {
    if let Some(at) = at {
        tokio::time::sleep_until(inner.clocks.instant_at(at).into()).await;
    }
}

/// Outcome of a start ahead that the store did not accept.
const NOT_ACCEPTED: &str = "not_accepted";

/// How long a run may try to write down its end after its deadline.
const STORE_GRACE: Duration = Duration::from_secs(10);
