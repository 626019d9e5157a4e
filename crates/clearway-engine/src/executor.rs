//! One run's task: it feeds the machine what happens and does what the machine says.
//!
//! Calls are polled in this very task, so a provider's bytes reach the log without a hop. A call is
//! stopped by dropping its future, which closes its sockets on the spot.
//!
//! Not here: the rules (`clearway_core::machine`), who gets a slot (`dispatcher`).

use std::collections::HashMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clearway_core::channel::{State, Write};
use clearway_core::event::{Body, EventKind, Fact};
use clearway_core::machine::{
    Commit, Effect, Input, Machine, Outcome, Output, Receipt, Start, Stopped,
};
use clearway_core::plan::{MESSAGES, Plan};
use clearway_core::run::Usage;
use clearway_core::wait::WaitKind;
use clearway_core::{CheckpointId, Code, Deadline, Failure, Message, RunRecord, Status};
use clearway_store::{Claim, CommitAck, StepCommit, StepOutcome};
use clearway_upstream::{CallProbe, Class};
use futures_util::future::{AbortHandle, Abortable};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tracing::Instrument;
use uuid::Uuid;

use crate::agent::{Agent, Ctx};
use crate::clock::instant;
use crate::engine::{Inner, bounded_by};
use crate::ledger::Ledger;
use crate::live::{End, Live};
use crate::pools::Slot;
use crate::started::{Context, Started};
use crate::trace;

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
    let (run, thread) = (claim.record.id, claim.record.thread);
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
            give_up(&inner, &live, panicked("executor", panic.as_ref()))
        })
    });
    let outcome = drive.instrument(span.clone()).await;
    span.record("clearway.run.outcome", outcome);
    log.end(outcome);
    // A start that was not accepted is followed by the real one, under the same id.
    if outcome != NOT_ACCEPTED {
        inner.idle(thread, run);
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
    calls: FuturesUnordered<CallFuture>,
    open: HashMap<u32, OpenCall>,
    commit: Option<CommitFuture>,
    /// A commit that waits for the run to be accepted.
    held: Option<StepCommit>,
    admission: Option<oneshot::Receiver<Admitted>>,
    /// The end that the commit under way will make, once it is durable.
    ending: Option<(Status, Option<Failure>, Option<Uuid>)>,
    /// The newest checkpoint of this run under this lease, as of the commit under way.
    head: Option<CheckpointId>,
    deadline: Deadline,
    claimed_at: Instant,
    cancel_at: Option<Instant>,
    usage: Usage,
    /// Of calls since the last commit.
    unbooked: Usage,
}

struct OpenCall {
    ledger: Arc<Ledger>,
    abort: AbortHandle,
    probe: Arc<CallProbe>,
    /// Whether a provider's socket was open when the call was told to stop.
    was_connected: bool,
}

type CallFuture = Pin<Box<dyn Future<Output = (u32, CallEnd)> + Send>>;
type CommitFuture = Pin<Box<dyn Future<Output = CommitEnd> + Send>>;

enum CallEnd {
    Done(Output),
    Failed(Failure),
    Aborted,
}

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
        let now = instant();
        let agent = inner.agents.get(&claim.record.agent);
        let deadline = deadline_of(&inner, &claim.record, agent.as_deref(), now);
        let mut failed = None;
        let (state, admission) = match ahead {
            Some((state, admission)) => (state, Some(admission)),
            None => {
                live.wait.enter(WaitKind::Store, "loading the thread", Some(deadline), now);
                match load_state(&inner, &claim, deadline).await {
                    Ok(state) => (state, None),
                    Err(failure) if failure.retryable => return give_up(&inner, &live, failure),
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
        let start = Start { reply, failed, ..start(&claim, plan, state) };
        let (machine, effects) = Machine::start(start);
        let executor = Self {
            inner,
            live,
            record: claim.record,
            agent,
            context,
            machine,
            calls: FuturesUnordered::new(),
            open: HashMap::new(),
            commit: None,
            held: None,
            admission,
            ending: None,
            head: None,
            deadline,
            claimed_at: now,
            cancel_at: None,
            usage: Usage::default(),
            unbooked: Usage::default(),
        };
        executor.run(effects).await
    }

    async fn run(mut self, mut effects: Vec<Effect>) -> &'static str {
        let inner = self.inner.clone();
        let live = self.live.clone();
        let expiry = tokio::time::sleep_until(self.deadline.0.into());
        tokio::pin!(expiry);
        // The deadline counts also when it passes during a commit: it is told again afterwards.
        let (mut expired, mut told) = (false, false);
        let mut draining = false;
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
            if expired && !told && self.commit.is_none() && self.held.is_none() {
                told = true;
                effects = self.machine.handle(Input::DeadlineReached { failure: self.expired() });
                continue;
            }
            let input = tokio::select! {
                biased;
                admitted = poll_admission(&mut self.admission), if self.admission.is_some() => {
                    self.admission = None;
                    let Ok(Admitted(record)) = admitted else { return NOT_ACCEPTED };
                    self.accepted(*record);
                    None
                }
                by = live.cancel.requested() => {
                    self.cancel_at.get_or_insert_with(instant);
                    Some(Input::Cancel { by })
                }
                () = &mut expiry, if !expired => { expired = true; None }
                () = inner.tasks.hard.cancelled(), if !draining => { draining = true; Some(Input::Drain) }
                end = poll_commit(&mut self.commit), if self.commit.is_some() => {
                    self.commit = None;
                    match self.committed(end) {
                        Ok(input) => Some(input),
                        Err(outcome) => return outcome,
                    }
                }
                Some((call, end)) = self.calls.next(), if !self.calls.is_empty() => {
                    Some(self.call_ended(call, end))
                }
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
                drop(self.live.output(Body::Fact(fact)));
                None
            }
            Effect::Record(fact) => {
                self.live.record(Body::Fact(fact));
                None
            }
            Effect::StartCall { call, node, step } => self
                .start_call(call, node, step)
                .err()
                .map(|failure| Applied::Input(Input::CallFailed { call, failure })),
            Effect::AbortCall { call } => {
                if let Some(open) = self.open.get_mut(&call) {
                    open.was_connected = open.probe.is_connected();
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

    fn start_call(&mut self, call: u32, node: Arc<str>, step: i64) -> Result<(), Failure> {
        let Some(agent) = &self.agent else {
            return Err(Failure::new(
                Code::AgentNotFound,
                format!("no agent `{}` in the configuration any more", self.record.agent),
            ));
        };
        let Some(code) = agent.nodes.get(&node).cloned() else {
            return Err(Failure::new(
                Code::AgentNotFound,
                format!("agent `{}` has no node `{node}` any more", agent.name),
            ));
        };
        let probe = Arc::new(CallProbe::default());
        let ledger = Arc::new(Ledger::new(self.live.clone(), self.inner.metrics.clone()));
        let cx = Ctx {
            run: self.record.id,
            thread: self.record.thread,
            agent: agent.name.as_str().into(),
            node: node.clone(),
            step,
            attempt: self.record.attempt,
            state: self.machine.state().clone(),
            deadline: self.deadline,
            wait: self.live.wait.clone(),
            probe: probe.clone(),
            upstream: self.inner.upstream.clone(),
            live: self.live.clone(),
            tenant: self.record.tenant.as_str().into(),
            // Nobody waits for a run without a deadline of its own.
            class: match self.record.deadline_at {
                Some(_) => Class::Interactive,
                None => Class::Run,
            },
            ledger: ledger.clone(),
        };
        let log = Started::step(self.context.clone(), &node, step);
        let span = trace::step(&node, step);
        let (abort, registration) = AbortHandle::new_pair();
        self.open.insert(call, OpenCall { abort, probe, ledger, was_connected: false });
        let guarded = async move {
            let work = AssertUnwindSafe(async move { code.call(cx).await }).catch_unwind();
            // The node's future is gone when this returns, whatever the outcome.
            let end = match Abortable::new(work, registration).await {
                Ok(Ok(Ok(output))) => CallEnd::Done(output),
                Ok(Ok(Err(failure))) => CallEnd::Failed(failure),
                Ok(Err(panic)) => CallEnd::Failed(panicked(&node, panic.as_ref())),
                Err(_) => CallEnd::Aborted,
            };
            if let CallEnd::Failed(failure) = &end {
                trace::failed(failure.code);
            }
            log.end(match &end {
                CallEnd::Done(_) => "done",
                CallEnd::Failed(failure) => failure.code.as_str(),
                CallEnd::Aborted => "aborted",
            });
            (call, end)
        };
        self.calls.push(Box::pin(guarded.instrument(span)));
        Ok(())
    }

    fn call_ended(&mut self, call: u32, end: CallEnd) -> Input {
        let open = self.open.remove(&call);
        if let Some(open) = &open {
            self.unbooked.add(open.ledger.take());
        }
        if self.open.is_empty() {
            self.live.wait.enter(WaitKind::Work, "", Some(self.deadline), instant());
        }
        match end {
            CallEnd::Done(output) => Input::CallDone { call, output },
            CallEnd::Failed(failure) if failure.code == Code::DeadlineExceeded => {
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
        commit.usage.add(std::mem::take(&mut self.unbooked));
        if let (Some(at), Outcome::End { .. }) = (self.cancel_at, &commit.outcome) {
            let latency = instant().saturating_duration_since(at);
            self.inner.metrics.cancel_latency.observe(latency.as_secs_f64());
        }
        self.usage.add(commit.usage);
        let waiting = self.live.wait.read(instant());
        let outcome = match commit.outcome {
            Outcome::Continue => StepOutcome::Continue,
            Outcome::Release => StepOutcome::Release,
            Outcome::End { status, failure, reply } => {
                let ended = run_ended(status, failure.as_ref(), reply, &waiting.spent.to_json());
                self.live.record(Body::Fact(ended));
                self.ending = Some((status, failure.clone(), reply));
                StepOutcome::End { status, failure }
            }
        };
        let checkpoints: Vec<_> = commit
            .checkpoints
            .into_iter()
            .map(|checkpoint| (self.inner.ids.checkpoint(), checkpoint))
            .collect();
        if let Some((id, _)) = checkpoints.last() {
            self.head = Some(*id);
        }
        self.record.step = commit.step;
        self.record.next = commit.next.iter().map(|node| (**node).to_owned()).collect();
        let commit = StepCommit {
            run: self.record.id,
            fence: self.record.fence,
            number: commit.number,
            events: self.live.take_for_commit(),
            step: commit.step,
            next: self.record.next.clone(),
            checkpoints,
            outcome,
            spent: waiting.spent,
            worked: self.worked(),
            usage: commit.usage,
        };
        self.live.wait.enter(WaitKind::Store, "commit", Some(self.deadline), instant());
        if self.admission.is_some() {
            self.held = Some(commit);
        } else {
            self.send(commit);
        }
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
            CommitEnd::Ack(CommitAck::Applied { cancel_requested, promoted }) => {
                self.live.committed(self.inner.options.limits.log_bytes);
                self.live.wait.enter(WaitKind::Work, "", Some(self.deadline), instant());
                if let Some(promoted) = promoted {
                    self.inner.promoted(promoted);
                }
                Ok(Input::Committed { cancel_requested })
            }
            CommitEnd::Ack(CommitAck::Fenced) => Ok(Input::Fenced),
            CommitEnd::GaveUp(failure) => Err(give_up(&self.inner, &self.live, failure)),
        }
    }

    fn stop(&mut self, stopped: Stopped) -> &'static str {
        match stopped {
            Stopped::Ended => self.ended(),
            Stopped::Released => {
                let failure =
                    Failure::new(Code::ShuttingDown, "handed back: the server is stopping")
                        .retryable();
                self.live.let_go();
                self.live.finish(End::Lost(failure));
                self.inner.hub.forget(self.record.id);
                "released"
            }
            Stopped::Fenced => {
                self.inner.metrics.fenced.inc();
                let failure = Failure::new(Code::Fenced, "another instance has taken the run over")
                    .retryable();
                give_up(&self.inner, &self.live, failure)
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
        // A run that was stopped may have been stopped by a reset, which moved the head.
        if let Some(head) = self.head
            && status == Status::Success
        {
            self.inner.cache.put(&record, head, state);
        }
        trace::ended(self.usage, record.failure.as_ref());
        self.inner.observe_end(&record, self.live.first_output(), self.claimed_at);
        self.inner.finish_live(&self.live, record, reply);
        status.as_str()
    }
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

/// Lets go of a run that this instance cannot take further: the row stays as it is, and the sweep
/// or the next start picks it up.
fn give_up(inner: &Inner, live: &Arc<Live>, failure: Failure) -> &'static str {
    tracing::error!(run.id = %live.run, code = %failure.code, "letting go of the run: {failure}");
    trace::failed(failure.code);
    let code = failure.code.as_str();
    live.let_go();
    live.finish(End::Lost(failure));
    inner.hub.forget(live.run);
    code
}

/// Sends a commit until it is acknowledged, refused for good, or time is up.
async fn send_commit(inner: Arc<Inner>, commit: StepCommit, give_up: Instant) -> CommitEnd {
    let started = instant();
    let mut pause = Duration::from_millis(20);
    loop {
        match bounded_by(give_up, inner.store.commit(commit.clone())).await {
            Ok(ack) => {
                let took = instant().saturating_duration_since(started);
                inner.metrics.commit.observe(took.as_secs_f64());
                return CommitEnd::Ack(ack);
            }
            Err(error) => {
                // An unknown outcome is repeated: the store recognises its own commit.
                let again = error.is_transient() || !error.certainly_aborted;
                if !again || instant() + pause > give_up {
                    let text = format!("the run's progress could not be stored: {error}");
                    return CommitEnd::GaveUp(Failure::new(error.code(), text).retryable());
                }
                tracing::warn!(run.id = %commit.run, "commit failed, trying again: {error}");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = inner.tasks.hard.cancelled() => {
                let text = "the server stopped before the run's progress could be stored";
                return CommitEnd::GaveUp(Failure::new(Code::StoreUnavailable, text).retryable());
            }
        }
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

fn deadline_of(inner: &Inner, record: &RunRecord, agent: Option<&Agent>, now: Instant) -> Deadline {
    let fixed = record.deadline_at.map(|at| Deadline(inner.clocks.instant_at(at)));
    let working = record
        .working_limit
        .or_else(|| agent.map(|agent| agent.working_limit).filter(|_| fixed.is_none()))
        .map(|limit| Deadline::after(now, limit.saturating_sub(record.worked)));
    match (fixed, working) {
        (Some(fixed), Some(working)) => fixed.min(working),
        (Some(one), None) | (None, Some(one)) => one,
        // Every run has one of the two; a row without either is not trusted to run for ever.
        (None, None) => Deadline::after(now, Duration::from_secs(1800)),
    }
}

async fn load_state(inner: &Inner, claim: &Claim, deadline: Deadline) -> Result<State, Failure> {
    let Some(head) = claim.head else {
        let mut state = State::new();
        state.raise_version(claim.thread_version);
        return Ok(state);
    };
    let mut state = match inner.cache.take(claim.record.thread, head) {
        Some(state) => state,
        None => loop {
            match bounded_by(deadline.0, inner.store.state(claim.record.thread, Some(head))).await {
                Ok(Some(found)) => break found.state,
                Ok(None) => {
                    let text =
                        format!("checkpoint {head} of thread {} is missing", claim.record.thread);
                    return Err(Failure::new(Code::Internal, text));
                }
                Err(error) if error.is_transient() && !deadline.has_passed(instant()) => {
                    tracing::warn!(run.id = %claim.record.id, "the thread's state cannot be read yet: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(error) => {
                    let lasting = error.certainly_aborted && !error.is_transient();
                    let failure = Failure::new(error.code(), error.message);
                    return Err(if lasting { failure } else { failure.retryable() });
                }
            }
        },
    };
    state.raise_version(claim.thread_version);
    Ok(state)
}

fn start(claim: &Claim, plan: Arc<Plan>, state: State) -> Start {
    let record = &claim.record;
    let input = match &record.input {
        Value::Object(channels) => channels
            .iter()
            .map(|(channel, value)| Write {
                channel: channel.as_str().into(),
                value: value.clone(),
            })
            .collect(),
        _ => Vec::new(),
    };
    Start {
        run: record.id,
        plan,
        state,
        attempt: record.attempt,
        fruitless: record.fruitless,
        step: record.step,
        next: record.next.iter().map(|node| node.as_str().into()).collect(),
        commits: record.commits,
        committed_seq: record.committed_seq,
        // What an earlier attempt showed may be lost even if none of it was stored.
        has_void_output: record.attempt > 1,
        input,
        cancel_requested: record.cancel_requested,
        reply: None,
        failed: None,
    }
}

/// The reply that earlier supersteps of a run committed, before it was taken over.
///
/// Ids of a run's messages are derived, so they are found again in the state.
fn earlier_reply(record: &RunRecord, plan: &Plan, state: &State) -> Option<Uuid> {
    let messages = state.list(MESSAGES);
    (0..=record.step).rev().find_map(|step| {
        let ids =
            plan.node_names().map(|node| clearway_core::id::message_id(record.id, step, node, 0));
        ids.filter(|id| {
            let id = id.to_string();
            // This run's messages are the newest ones.
            messages.iter().rev().take(EARLIER_MESSAGES).any(|message| message["id"] == *id)
        })
        .last()
    })
}

/// How far back a taken-over run looks for its own messages.
const EARLIER_MESSAGES: usize = 512;

fn run_ended(
    status: Status,
    failure: Option<&Failure>,
    reply: Option<Uuid>,
    spent: &Value,
) -> Fact {
    let mut data = json!({"status": status.as_str(), "spent": spent});
    if let Some(failure) = failure {
        data["error"] = failure.to_json();
    }
    if let Some(reply) = reply {
        data["reply_message_id"] = reply.to_string().into();
    }
    Fact::new(EventKind::RunEnded, &data)
}

fn find_message(state: &State, id: Uuid) -> Option<Message> {
    let id = id.to_string();
    // The reply is among the newest messages, so this does not grow with the conversation.
    let found = state.list(MESSAGES).iter().rev().find(|message| message["id"] == *id)?;
    Message::from_value(found)
}

fn panicked(node: &str, panic: &(dyn std::any::Any + Send)) -> Failure {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    tracing::error!(node, "a node panicked: {text}");
    Failure::new(Code::Internal, format!("node `{node}` panicked; the log says where"))
}

/// Outcome of a start ahead that the store did not accept.
const NOT_ACCEPTED: &str = "not_accepted";

/// How long a run may try to write down its end after its deadline.
const STORE_GRACE: Duration = Duration::from_secs(10);
