//! Accepting runs: one durable transaction, and the provider's call beside it.
//!
//! A turn waits for two syncs at most: its acceptance and its end. The first need not be waited for
//! before the provider is called, so when everything that the run needs is known here (a free slot,
//! an idle thread with its state at hand) the run starts at once, *ahead* of its acceptance. Nothing
//! it does is shown or committed before the store has accepted it exactly as foreseen; otherwise it
//! is dropped, and its provider call with it.

use std::collections::hash_map::Entry;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use clearway_core::channel::State;
use clearway_core::plan::Frontier;
use clearway_core::run::{RunOptions, Usage};
use clearway_core::wait::{Spent, WaitKind};
use clearway_core::{
    CheckpointId, Code, Failure, Priority, RunId, RunRecord, Status, ThreadId, Timestamp,
};
use clearway_store::{Admission, Claim, NewRun};
use tokio::sync::{oneshot, watch};

use crate::agent::Agent;
use crate::engine::{Inner, bounded};
use crate::executor::{Admitted, execute};
use crate::live::{End, Live, lock};
use crate::metadata;
use crate::metrics;
use crate::pools::Slot;
use crate::watchdog::Watched;
use crate::{Error, Kind, Submit, Submitted};

/// A thread that a run here executes on, or is about to.
#[derive(Debug)]
pub(crate) struct Busy {
    pub run: RunId,
    /// Closed when a start ahead has its answer from the store; `None` for other starts.
    pub admitting: Option<watch::Receiver<()>>,
}

/// What is foreseen about a thread before the store is asked.
struct Foreseen {
    head: Option<CheckpointId>,
    depth: u64,
    state: State,
}

/// A run that was started ahead of its acceptance.
struct Ahead {
    live: Arc<Live>,
    head: Option<CheckpointId>,
    version: u64,
    admitted: oneshot::Sender<Admitted>,
}

impl Inner {
    /// As [`Inner::submit`], for callers that are themselves part of a run: the type of a future
    /// must not contain itself.
    pub(crate) fn submit_boxed(
        self: Arc<Self>,
        submit: Submit,
    ) -> Pin<Box<dyn Future<Output = Result<Submitted, Error>> + Send>> {
        Box::pin(async move { self.submit(submit).await })
    }

    pub(crate) async fn submit(self: &Arc<Self>, submit: Submit) -> Result<Submitted, Error> {
        let submitted = self.accept(submit).await?;
        self.watched.changed(submitted.thread);
        Ok(submitted)
    }

    async fn accept(self: &Arc<Self>, submit: Submit) -> Result<Submitted, Error> {
        if self.tasks.soft.is_cancelled() {
            let mut failure =
                Failure::new(Code::ShuttingDown, "the server is stopping").retryable();
            failure.retry_after = Some(Duration::from_secs(2));
            return Err(Error(failure));
        }
        metadata::check(&submit.metadata)?;
        metadata::check(&submit.thread_metadata)?;
        let agent = self.agents.get(&submit.agent).ok_or_else(|| {
            let known: Vec<String> = self.agents.all().keys().cloned().collect();
            let text = format!("no agent `{}`; there are: {}", submit.agent, known.join(", "));
            Error::new(Code::AgentNotFound, text)
        })?;
        let pool = self.pools.get(&agent.pool).ok_or_else(|| {
            let text = format!("agent `{}` names the unknown pool `{}`", agent.name, agent.pool);
            Error::new(Code::InvalidConfig, text)
        })?;
        if let Some(url) = &submit.options.webhook {
            self.webhooks.check(url)?;
        }
        let door = submit.door;
        let id = submit.id.unwrap_or_else(|| self.ids.run());
        self.earlier_start(submit.thread).await;
        let mut slot = pool.take();
        let claim = slot.as_ref().map(|_| self.me);
        let new = NewRun { claim, ..new_run(submit, &agent, id, pool.queue) };
        let foreseen = match agent.starts_ahead {
            true => self.foresee(&new).await,
            false => None,
        };
        let (mut ahead, _admitting) = match foreseen {
            Some((foreseen, admitting)) => {
                let ahead = slot.take().map(|slot| self.start_ahead(&new, foreseen, slot));
                (ahead, Some(admitting))
            }
            None => {
                // One may have begun between the look above and this.
                self.earlier_start(new.thread).await;
                (None, None)
            }
        };
        let (id, thread, delay) = (new.id, new.thread, new.delay);
        let admission = match bounded(self.store.create_run(new.clone())).await {
            // The answer was lost: the second try finds the run by its id and says so.
            Err(error) if !error.certainly_aborted => bounded(self.store.create_run(new)).await,
            other => other,
        };
        if !delay.is_zero() {
            self.delayed(delay);
        }
        if let (Ok(Admission::Claimed(claim)), Some(run)) =
            (&admission, ahead.take_if(|run| run.fits(&admission)))
        {
            let submitted = claimed(&claim.record);
            run.live.adopt(claim.created.clone().into_iter().collect());
            self.count_accepted(door);
            drop(run.admitted.send(Admitted(Box::new(claim.record.clone()))));
            return Ok(submitted);
        }
        if let Some(run) = ahead.take() {
            // Not as foreseen. Dropping the sender ends the task, and with it the provider's call;
            // what it has said so far must not reach the store under the fence of the real run.
            run.live.finish(End::Lost(Failure::new(Code::Internal, "not accepted as foreseen")));
            self.hub.forget(id);
            self.idle(thread, id);
        }
        let admission = admission?;
        self.admitted(admission, slot, id, &agent.pool, door).await
    }

    /// Waits until a start ahead on the same thread has its answer from the store: two turns of a
    /// thread must reach the provider one after the other, and the store in the order they came.
    async fn earlier_start(&self, thread: ThreadId) {
        let admitting = lock(&self.busy).get(&thread).and_then(|busy| busy.admitting.clone());
        if let Some(mut admitting) = admitting {
            // Nothing is ever sent: the sender goes when the answer is there, or with its task.
            drop(admitting.changed().await);
        }
    }

    /// What the store will say about the thread, if that is known without waiting for a disk. Until
    /// the returned sender is dropped, other turns of the thread wait.
    async fn foresee(&self, new: &NewRun) -> Option<(Foreseen, watch::Sender<()>)> {
        // A key may name an earlier run, and a foreign thread may be refused: those ask first.
        // What is not a plain turn depends on more of the thread than its state.
        let plain = new.options.is_plain() && new.delay.is_zero() && new.parent.is_none();
        if new.claim.is_none() || new.idempotency.is_some() || new.thread_must_exist || !plain {
            return None;
        }
        // Whoever waits in front of it goes first, and the store will say so.
        let waits = |count: &clearway_store::PoolCount| count.pool == new.pool && count.ready > 0;
        if self.store.pool_counts().iter().any(waits) {
            return None;
        }
        let (admitting, told) = watch::channel(());
        match lock(&self.busy).entry(new.thread) {
            Entry::Occupied(_) => return None,
            Entry::Vacant(free) => free.insert(Busy { run: new.id, admitting: Some(told) }),
        };
        let cached = self.cache.take_for(new.thread, &new.tenant, new.owner.as_deref());
        if let Some((head, depth, state)) = cached {
            return Some((Foreseen { head: Some(head), depth, state }, admitting));
        }
        if matches!(bounded(self.store.thread(new.thread)).await, Ok(None)) {
            return Some((Foreseen { head: None, depth: 0, state: State::new() }, admitting));
        }
        self.idle(new.thread, new.id);
        None
    }

    fn start_ahead(self: &Arc<Self>, new: &NewRun, foreseen: Foreseen, slot: Slot) -> Ahead {
        let Foreseen { head, depth, state } = foreseen;
        let version = state.version();
        let claim = Claim {
            record: self.foreseen_record(new),
            thread_version: version,
            head,
            created: None,
            frontier: Frontier { depth, ..Frontier::default() },
            journal: Vec::new(),
            taken_in: false,
        };
        let live =
            self.hub.attach(new.id, WaitKind::Work, "", Spent::default(), claim.record.next_seq);
        live.claimed(claim.record.fence, claim.record.next_seq);
        let (admitted, answer) = oneshot::channel();
        let task = execute(self.clone(), claim, live.clone(), slot, Some((state, answer)));
        self.tasks.spawn(Watched::new(new.id, task));
        Ahead { live, head, version, admitted }
    }

    /// The row that `create_run` will write if it claims the run.
    fn foreseen_record(&self, new: &NewRun) -> RunRecord {
        let now = self.clocks.now();
        RunRecord {
            tenant: new.tenant.clone(),
            owner: new.owner.clone(),
            thread: new.thread,
            parent: new.parent,
            agent: new.agent.clone(),
            pool: new.pool.clone(),
            door: new.door.clone(),
            priority: new.priority,
            metadata: new.metadata.clone(),
            input: new.input.clone(),
            options: new.options.clone(),
            deadline_at: new.deadline.map(|deadline| now.plus(deadline)),
            working_limit: new.working_limit,
            instance: Some(self.me),
            ..blank_record(new.id, now)
        }
    }

    async fn admitted(
        self: &Arc<Self>,
        admission: Admission,
        slot: Option<Slot>,
        id: RunId,
        pool: &str,
        door: &'static str,
    ) -> Result<Submitted, Error> {
        match admission {
            Admission::Claimed(claim) => {
                self.count_accepted(door);
                let submitted = claimed(&claim.record);
                match slot.or_else(|| self.pools.get(pool)?.take()) {
                    Some(slot) => self.launch(*claim, slot),
                    // Its slot went with a start that was not as foreseen: it queues for one.
                    None => self.hand_back(&claim.record).await,
                }
                Ok(submitted)
            }
            Admission::Queued(queued) => {
                self.count_accepted(door);
                drop(slot);
                let record = queued.record;
                let live = self.attach_queued(&record, &queued.position);
                live.adopt(vec![queued.created]);
                self.tell_if_stopping(&live);
                for cleared in queued.cleared {
                    self.cancel_told(cleared, "interrupt");
                }
                if let Some(interrupted) = queued.interrupted {
                    self.cancel_told(interrupted, "interrupt");
                }
                self.arm_next(record.deadline_at);
                self.wake_dispatcher();
                Ok(Submitted {
                    run: record.id,
                    thread: record.thread,
                    status: record.status,
                    existing: false,
                    position: Some(queued.position),
                })
            }
            Admission::Existing(record) => {
                if record.id == id {
                    self.found_again(&record).await;
                }
                Ok(Submitted {
                    run: record.id,
                    thread: record.thread,
                    status: record.status,
                    existing: record.id != id,
                    position: None,
                })
            }
            Admission::QueueFull { queued } => {
                let text = format!("pool `{pool}` is full: {queued} runs wait in front");
                let mut failure = Failure::new(Code::Overloaded, text)
                    .retryable()
                    .with("pool", pool)
                    .with("queue_position", queued);
                failure.retry_after = Some(self.queue_eta(pool, queued));
                Err(Error(failure))
            }
            Admission::ThreadBusy { active } => {
                let text = format!("run {active} is active on this thread");
                let failure = Failure::new(Code::ThreadBusy, text).retryable();
                Err(Error(failure.with("active_run", active.to_string())))
            }
            Admission::ThreadNotFound => Err(Error::new(Code::ThreadNotFound, "no such thread")),
            Admission::CheckpointNotFound => {
                let text = "no such checkpoint on this thread";
                Err(Error::new(Code::CheckpointNotFound, text))
            }
            Admission::ThreadForbidden => {
                Err(Error::new(Code::Forbidden, "the thread belongs to somebody else"))
            }
        }
    }

    /// Our own run was accepted by a try whose answer was lost.
    async fn found_again(self: &Arc<Self>, record: &RunRecord) {
        match record.status {
            // Claimed by that try, so nobody executes it, unless the dispatcher was faster.
            Status::Running if !self.hub.get(record.id).is_some_and(|live| live.is_executing()) => {
                self.hand_back(record).await;
            }
            Status::Ready | Status::Blocked => {
                let live = self.attach_waiting(record);
                self.tell_if_stopping(&live);
                self.arm_next(record.deadline_at);
                self.wake_dispatcher();
            }
            Status::Running
            | Status::Waiting
            | Status::Success
            | Status::Error
            | Status::Timeout
            | Status::Cancelled => {}
        }
    }

    /// Returns a claimed run that has no task. It is accepted, so a store that will not do it now
    /// is no reason to refuse: the renewals hand it back later.
    async fn hand_back(&self, record: &RunRecord) {
        if let Err(error) = bounded(self.store.release(record.id, record.fence)).await {
            tracing::warn!(run.id = %record.id, "handing back failed, trying again later: {error}");
        }
        self.wake_dispatcher();
    }

    fn count_accepted(&self, door: &str) {
        self.metrics.accepted.get_or_create(&metrics::Door { door: door.to_owned() }).inc();
    }

    /// An executor of the thread's run is over; what claimed the run after it keeps the thread.
    pub(crate) fn left(&self, thread: ThreadId, live: &Live, lease: u32) {
        if let Entry::Occupied(entry) = lock(&self.busy).entry(thread)
            && entry.get().run == live.run
            && live.is_under(lease)
        {
            entry.remove();
        }
    }

    /// The run of this thread did not get to the executor.
    fn idle(&self, thread: ThreadId, run: RunId) {
        if let Entry::Occupied(entry) = lock(&self.busy).entry(thread)
            && entry.get().run == run
        {
            entry.remove();
        }
    }
}

impl Ahead {
    /// Whether the store has accepted the run exactly as it was started.
    fn fits(&self, admission: &Result<Admission, clearway_store::Error>) -> bool {
        let Ok(Admission::Claimed(claim)) = admission else { return false };
        let record = &claim.record;
        claim.head == self.head
            && claim.thread_version <= self.version
            && claim.frontier.is_empty()
            && (record.fence, record.attempt, record.next_seq, record.commits) == (1, 1, 1, 0)
            && !self.admitted.is_closed()
    }
}

fn claimed(record: &RunRecord) -> Submitted {
    Submitted {
        run: record.id,
        thread: record.thread,
        status: Status::Running,
        existing: false,
        position: None,
    }
}

/// The row to be, not yet claimed by anybody.
fn new_run(submit: Submit, agent: &Agent, id: RunId, queue_limit: u32) -> NewRun {
    let (deadline, working_limit) = match submit.kind {
        Kind::Turn { deadline } => {
            (Some(deadline.map_or(agent.deadline, |asked| asked.min(agent.deadline))), None)
        }
        Kind::Background { working_limit } => {
            let most = agent.working_limit;
            (None, Some(working_limit.map_or(most, |asked| asked.min(most))))
        }
    };
    NewRun {
        id,
        tenant: submit.tenant,
        owner: submit.owner,
        thread: submit.thread,
        thread_key: submit.thread_key,
        thread_metadata: submit.thread_metadata,
        thread_note: submit.thread_note,
        thread_must_exist: submit.thread_must_exist,
        parent: submit.parent,
        agent: agent.name.clone(),
        pool: agent.pool.clone(),
        door: submit.door.to_owned(),
        priority: submit.priority.unwrap_or(agent.priority),
        multitask: submit.multitask.unwrap_or(agent.when_busy),
        clears_queue: submit.clears_queue,
        metadata: submit.metadata,
        input: submit.input,
        deadline,
        working_limit,
        delay: submit.delay,
        idempotency: submit.idempotency,
        queue_limit,
        created_event: serde_json::json!({
            "run_id": id.to_string(),
            "thread_id": submit.thread.to_string(),
            "agent": agent.name,
        }),
        claim: None,
        options: RunOptions {
            budget: match submit.options.budget.is_unlimited() {
                true => agent.budget,
                false => submit.options.budget,
            },
            ..submit.options
        },
    }
}

/// A run that was just claimed for the first time, with nothing in it.
pub(crate) fn blank_record(id: RunId, now: Timestamp) -> RunRecord {
    RunRecord {
        id,
        tenant: String::new(),
        owner: None,
        thread: ThreadId(id.0),
        thread_ord: 0,
        parent: None,
        agent: String::new(),
        pool: String::new(),
        door: String::new(),
        priority: Priority::default(),
        status: Status::Running,
        metadata: serde_json::Map::new(),
        input: serde_json::Value::Null,
        options: RunOptions::default(),
        created_at: now,
        ready_at: now,
        started_at: Some(now),
        ended_at: None,
        deadline_at: None,
        working_limit: None,
        worked: Duration::ZERO,
        attempt: 1,
        fruitless: 0,
        fence: 1,
        instance: None,
        cancel_requested: false,
        parked: None,
        rolled_back: false,
        step: -1,
        next: Vec::new(),
        commits: 0,
        next_seq: 1,
        committed_seq: 1,
        checkpoint: None,
        failure: None,
        spent: Spent::default(),
        usage: Usage::default(),
    }
}
