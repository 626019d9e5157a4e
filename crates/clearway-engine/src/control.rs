//! Looking at and steering what stands still: parked and waiting runs, threads between runs, their
//! history and files.
//!
//! Not here: accepting runs (`admission`), driving them (`executor`).

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use clearway_core::channel::{self, Write};
use clearway_core::journal::{Entry, Journal};
use clearway_core::machine::{Checkpoint, Delta, Source};
use clearway_core::plan::{END, Finished, Frontier, START};
use clearway_core::run::Budget;
use clearway_core::thread::ThreadRecord;
use clearway_core::wait::WaitKind;
use clearway_core::{
    AttemptRecord, AttemptsOf, CheckpointId, Code, Failure, Priority, RunId, RunRecord, Status,
    TaskId, ThreadId,
};
use clearway_store::{
    ArtifactRecord, ArtifactScope, CheckpointRecord, Keep, Pruned, RunQuery, Stand, StateUpdate,
    ThreadQuery, ThreadSearch, ThreadState, ThreadStorage, Updated, Woken,
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::engine::{Engine, Inner, bounded};
use crate::{Error, RunView};

/// A question that a thread waits for the answer to.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// Pass it to answer this one in particular.
    pub id: Uuid,
    pub task: TaskId,
    pub node: Arc<str>,
    pub value: Value,
}

/// An outward write of which nobody knows whether it happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Undecided {
    pub task: TaskId,
    pub node: String,
    pub name: String,
    /// Announced at.
    pub at: String,
    key: String,
    /// It is being made right now, as far as is known.
    under_way: bool,
}

impl Undecided {
    /// What the other side knows the write by.
    pub fn idempotency_key(&self) -> String {
        format!("{}-{}", self.task, self.name)
    }
}

/// What somebody found out about such a write.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// It happened, with this result.
    Done(Value),
    /// It did not: make it again.
    Retry,
}

/// Which of a run's undecided writes are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which<'a> {
    All,
    /// Those of one node; a fan-out has several.
    Node(&'a str),
    /// The one that the other side knows by this idempotency key.
    Key(&'a str),
}

impl Which<'_> {
    fn means(self, write: &Undecided) -> bool {
        match self {
            Self::All => true,
            Self::Node(node) => write.node == node,
            Self::Key(key) => write.idempotency_key() == key,
        }
    }
}

/// A change of a thread's state by hand.
#[derive(Clone, Debug)]
pub struct StateChange {
    pub writes: Vec<Write>,
    /// The checkpoint to start from; the head when `None`. An earlier one begins a branch.
    pub from: Option<CheckpointId>,
    /// The node that the change counts as coming from: what follows it is due then, which is nothing
    /// for [`END`]. Without one, what was due stays due.
    pub as_node: Option<String>,
}

/// Something that needs somebody.
#[derive(Clone, Debug)]
pub struct Attention {
    pub run: RunRecord,
    /// Why it does not go on.
    pub kind: WaitKind,
    pub detail: String,
    /// The command that ends it.
    pub command: String,
}

/// What needs somebody.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    pub items: Vec<Attention>,
    /// There was more to look at than was looked at.
    pub more: bool,
}

impl Engine {
    /// Sends a signal to a run. `id` makes repetitions one signal.
    ///
    /// # Errors
    /// `run_not_found`, `run_ended`, `store_unavailable`.
    pub async fn signal(
        &self,
        run: RunId,
        name: &str,
        value: Value,
        id: Option<&str>,
    ) -> Result<(), Error> {
        let inner = self.inner();
        // Signals are taken in the order of their keys.
        let id = id.map_or_else(|| inner.ids.run().to_string(), ToOwned::to_owned);
        let entry = Entry { task: TaskId(run.0), key: format!("signal:{name}:{id}"), data: value };
        inner.wake(run, vec![entry]).await
    }

    /// Takes a waiting run up again before its time: an outage is over, say.
    ///
    /// # Errors
    /// As [`Engine::signal`].
    pub async fn wake(&self, run: RunId) -> Result<(), Error> {
        self.inner().wake(run, Vec::new()).await
    }

    /// Writes of a waiting run whose outcome is not known.
    ///
    /// # Errors
    /// `run_not_found`, `store_unavailable`.
    pub async fn undecided(&self, run: RunId) -> Result<Vec<Undecided>, Error> {
        let record = self.inner().record(run).await?;
        let Some(state) = self.inner().store.state(record.thread, None).await? else {
            return Ok(Vec::new());
        };
        let journal: Journal = state.journal.iter().cloned().collect();
        let mut found = Vec::new();
        for entry in &state.journal {
            let Some(rest) = entry.key.strip_prefix("intent:") else { continue };
            let notes = journal.notes(entry.task);
            let settled = |kind: &str| {
                notes.is_some_and(|notes| notes.contains_key(&format!("{kind}:{rest}")))
            };
            if settled("result") || settled("decision") {
                continue;
            }
            let text = |key: &str| entry.data[key].as_str().unwrap_or_default().to_owned();
            // Announced under the lease that the run has now, and nothing was heard of it.
            let under_way = record.status == Status::Running
                && entry.data["fence"].as_u64() == Some(u64::from(record.fence))
                && !settled("unknown");
            found.push(Undecided {
                task: entry.task,
                node: text("node"),
                name: text("name"),
                at: text("at"),
                key: format!("decision:{rest}"),
                under_way,
            });
        }
        Ok(found)
    }

    /// Decides about undecided writes of a run, and lets it go on. What happened to one write says
    /// nothing about the next, so a result is taken for exactly one. One that is being made again has no
    /// outcome either, and is not decided about: a decision that comes twice would make it a third time.
    ///
    /// # Errors
    /// `nothing_waits` when there are none, or the run goes on, or the write is being made; `invalid_request` when a result is given and several are
    /// meant; `run_not_found`, `store_unavailable`.
    pub async fn resolve(
        &self,
        run: RunId,
        which: Which<'_>,
        decision: &Decision,
        by: &str,
    ) -> Result<Vec<Undecided>, Error> {
        let status = self.inner().record(run).await?.status;
        if status != Status::Waiting && !matches!(which, Which::Key(_)) {
            // What it writes right now has no outcome either, and must not be decided about.
            let text = format!(
                "run {run} is {}: only writes of a run that waits can be decided about at once",
                status.as_str()
            );
            return Err(Error::new(Code::NothingWaits, text));
        }
        let all = self.undecided(run).await?;
        if let Some(write) = all.iter().find(|write| write.under_way && which.means(write)) {
            let text = format!(
                "write `{}` of node `{}` is being made right now: there is nothing to decide before it is known how \
                 that ends",
                write.name, write.node
            );
            return Err(Error::new(Code::NothingWaits, text));
        }
        let all: Vec<Undecided> = all.into_iter().filter(|write| !write.under_way).collect();
        let known: Vec<String> = all
            .iter()
            .map(|write| format!("node `{}`, key {}", write.node, write.idempotency_key()))
            .collect();
        let known = known.join("; ");
        let chosen: Vec<Undecided> = all.into_iter().filter(|write| which.means(write)).collect();
        if chosen.is_empty() {
            let text = match known.is_empty() {
                true => format!("run {run} has no write that needs a decision"),
                false => format!("no such write needs a decision; there are: {known}"),
            };
            return Err(Error::new(Code::NothingWaits, text));
        }
        if chosen.len() > 1 && matches!(decision, Decision::Done(_)) {
            let text = format!("several writes need a decision, say which by its key: {known}");
            return Err(Error::new(Code::InvalidRequest, text));
        }
        let data = match decision {
            Decision::Done(value) => json!({"done": value, "by": by}),
            Decision::Retry => json!({"retry": true, "by": by}),
        };
        let entries = chosen.iter().map(|write| Entry {
            task: write.task,
            key: write.key.clone(),
            data: data.clone(),
        });
        self.inner().wake(run, entries.collect()).await?;
        Ok(chosen)
    }

    /// Changes when a waiting run gets its turn.
    ///
    /// # Errors
    /// `run_not_found`, `run_ended` (it runs or has ended), `store_unavailable`.
    pub async fn set_priority(&self, run: RunId, priority: Priority) -> Result<RunView, Error> {
        let record = bounded(self.inner().store.set_priority(run, priority)).await?;
        let Some(record) = record else { return Err(crate::engine::no_run(run)) };
        if record.priority != priority {
            let text =
                format!("run {run} is {}: only a waiting one has a turn", record.status.as_str());
            return Err(Error::new(Code::RunEnded, text));
        }
        self.inner().wake_dispatcher();
        Ok(self.inner().view(record).await)
    }

    /// Changes what a run may use up; one that waits for that goes on.
    ///
    /// # Errors
    /// As [`Engine::signal`].
    pub async fn set_budget(&self, run: RunId, budget: Budget) -> Result<(), Error> {
        let woken = bounded(self.inner().store.set_budget(run, budget)).await?;
        self.inner().woken(run, woken, Vec::new())
    }

    /// Changes how many runs of a pool execute at once, until the configuration is read again.
    /// Runs that execute beyond a smaller number go on.
    ///
    /// # Errors
    /// `not_found` for a pool that does not exist; `invalid_request` for no slot at all.
    pub fn set_slots(&self, pool: &str, slots: u32) -> Result<(), Error> {
        if slots == 0 {
            return Err(Error::new(Code::InvalidRequest, "a pool has at least one slot"));
        }
        let inner = self.inner();
        let found = inner.pools.get(pool).ok_or_else(|| {
            let known: Vec<&str> = inner.pools.iter().map(|(name, _)| name).collect();
            let text = format!("no pool `{pool}`; there are: {}", known.join(", "));
            Error::new(Code::NotFound, text)
        })?;
        found.set_slots(slots);
        inner.wake_dispatcher();
        Ok(())
    }

    // ## Threads

    /// A thread's state at its head or at a checkpoint.
    ///
    /// # Errors
    /// `store_unavailable`.
    pub async fn state_at(
        &self,
        thread: ThreadId,
        at: Option<CheckpointId>,
    ) -> Result<Option<ThreadState>, Error> {
        Ok(self.inner().store.state(thread, at).await?)
    }

    /// Questions that a thread waits for answers to.
    pub fn questions(state: &ThreadState) -> Vec<Question> {
        let journal: Journal = state.journal.iter().cloned().collect();
        let questions = state.frontier.due.iter().filter_map(|due| {
            let (n, note) = journal.question(due.task)?;
            Some(Question {
                id: due.task.interrupt(n),
                task: due.task,
                node: due.node.clone(),
                value: note["value"].clone(),
            })
        });
        questions.collect()
    }

    /// Checkpoints, newest first.
    ///
    /// # Errors
    /// `store_unavailable`.
    pub async fn history(
        &self,
        thread: ThreadId,
        before: Option<CheckpointId>,
        limit: u32,
    ) -> Result<Vec<CheckpointRecord>, Error> {
        Ok(self.inner().store.history(thread, before, limit).await?)
    }

    /// Writes to a thread's state from outside any run; the new checkpoint.
    ///
    /// # Errors
    /// `thread_not_found`, `checkpoint_not_found`, `thread_busy`, `checkpoint_conflict`,
    /// `invalid_update`, `agent_not_found`, `store_unavailable`.
    pub async fn update_state(
        &self,
        thread: ThreadId,
        agent: &str,
        change: StateChange,
    ) -> Result<CheckpointId, Error> {
        let inner = self.inner();
        let agent = inner
            .agents
            .get(agent)
            .ok_or_else(|| Error::new(Code::AgentNotFound, format!("no agent `{agent}`")))?;
        let record = inner.store.thread(thread).await?;
        let record = record.ok_or_else(|| Error::new(Code::ThreadNotFound, "no such thread"))?;
        let from = inner.store.state(thread, change.from).await?;
        if from.is_none() && change.from.is_some() {
            return Err(Error::new(Code::CheckpointNotFound, "no such checkpoint on this thread"));
        }
        let parent = from.as_ref().map(|at| at.checkpoint);
        let id = inner.ids.checkpoint();
        let before = from.as_ref().map(|at| at.frontier.clone()).unwrap_or_default();
        let step = from.as_ref().map_or(-1, |at| at.step) + 1;
        // Calls that are due because of this change belong to no run; their ids come of it.
        let planner = RunId(id.0);
        let mut next = match &change.as_node {
            // Nothing is left to do.
            Some(node) if node == END => Frontier { depth: before.depth, ..Frontier::default() },
            // As if the change were input: the graph is to begin.
            Some(node) if node == START => {
                Frontier { depth: before.depth, ..agent.plan.first(planner, 0) }
            }
            Some(node) => {
                if !agent.plan.has_node(node) {
                    let text = format!("agent `{}` has no node `{node}`", agent.name);
                    return Err(Error::new(Code::InvalidUpdate, text));
                }
                let ended = Finished { node: node.as_str().into(), goto: None };
                agent.plan.next(&before, &[ended], planner, step + 1).map_err(Error)?
            }
            None if parent.is_none() => agent.plan.first(planner, 0),
            None => before.clone(),
        };
        // A result is made by the run that comes to it: for nobody else it is left to do.
        if let Some(fold) = agent.plan.fold()
            && next.due.iter().all(|due| due.node == *fold)
        {
            next.due.clear();
        }
        // As the first of a thread it also stands for the input that there was none of.
        next.depth += if parent.is_none() { 2 } else { 1 };
        let mut state = from.map(|at| at.state).unwrap_or_default();
        // New ops are numbered above those of all branches.
        state.raise_version(record.version);
        let ops = channel::reduce(agent.plan.channels(), change.writes).map_err(Error)?;
        let deltas = ops
            .into_iter()
            .map(|(channel, op)| {
                let previous = state.channel_version(&channel);
                let version = state.apply(&channel, op.clone());
                Delta { channel, version, previous, op }
            })
            .collect();
        let kept: BTreeSet<TaskId> = next.due.iter().map(|due| due.task).collect();
        let left = before.due.iter().map(|due| due.task).filter(|task| !kept.contains(task));
        let source = if change.from.is_some_and(|from| record.head != Some(from)) {
            Source::Fork
        } else {
            Source::Update
        };
        let update = StateUpdate {
            thread,
            parent,
            id,
            checkpoint: Checkpoint { step, source, next, deltas },
            settled: left.collect(),
            notes: Vec::new(),
            expected_head: record.head,
        };
        let updated = bounded(inner.store.update_state(update)).await?;
        inner.cache.forget(thread);
        match updated {
            Updated::Done => {
                inner.watched.changed(thread);
                Ok(id)
            }
            Updated::Busy { active } => {
                let text = format!("run {active} is active on this thread");
                let failure = Failure::new(Code::ThreadBusy, text).retryable();
                Err(Error(failure.with("active_run", active.to_string())))
            }
            Updated::Conflict { .. } => Err(Error(
                Failure::new(Code::CheckpointConflict, "the thread was changed meanwhile")
                    .retryable(),
            )),
            Updated::ThreadNotFound => Err(Error::new(Code::ThreadNotFound, "no such thread")),
            Updated::CheckpointNotFound => {
                Err(Error::new(Code::CheckpointNotFound, "no such checkpoint on this thread"))
            }
        }
    }

    /// # Errors
    /// `store_unavailable`.
    pub async fn threads(&self, query: ThreadQuery) -> Result<Vec<ThreadRecord>, Error> {
        Ok(self.inner().store.threads(query).await?)
    }

    /// # Errors
    /// `thread_not_found`, `store_unavailable`.
    pub async fn prune_thread(&self, thread: ThreadId, keep: Keep) -> Result<Pruned, Error> {
        let pruned = bounded(self.inner().store.prune_thread(thread, keep)).await?;
        pruned.ok_or_else(|| Error::new(Code::ThreadNotFound, "no such thread"))
    }

    /// # Errors
    /// `thread_not_found`, `thread_busy`, `store_unavailable`.
    pub async fn delete_thread(&self, thread: ThreadId) -> Result<(), Error> {
        let deleted = bounded(self.inner().store.delete_thread(thread)).await?;
        self.inner().cache.forget(thread);
        match deleted {
            None => Err(Error::new(Code::ThreadNotFound, "no such thread")),
            Some(Ok(())) => Ok(()),
            Some(Err(active)) => {
                let text = format!("run {active} is active on this thread: cancel it first");
                Err(Error::new(Code::ThreadBusy, text))
            }
        }
    }

    /// # Errors
    /// `thread_not_found`, `store_unavailable`.
    pub async fn thread_storage(&self, thread: ThreadId) -> Result<ThreadStorage, Error> {
        let storage = self.inner().store.thread_storage(thread).await?;
        storage.ok_or_else(|| Error::new(Code::ThreadNotFound, "no such thread"))
    }

    // ## Attempts

    /// Attempts at provider calls that are booked, behind `after`.
    ///
    /// # Errors
    /// `store_unavailable`.
    pub async fn attempts(
        &self,
        of: AttemptsOf,
        after: Option<i64>,
        limit: u32,
    ) -> Result<Vec<AttemptRecord>, Error> {
        Ok(self.inner().store.attempts(of, after, limit).await?)
    }

    // ## Artifacts

    /// # Errors
    /// `store_unavailable`.
    pub async fn artifacts(&self, scope: ArtifactScope) -> Result<Vec<ArtifactRecord>, Error> {
        Ok(self.inner().store.artifacts(scope).await?)
    }

    /// # Errors
    /// `artifact_not_found`, `store_unavailable`.
    pub async fn artifact(
        &self,
        scope: ArtifactScope,
        name: &str,
        version: Option<u32>,
    ) -> Result<(ArtifactRecord, Bytes), Error> {
        let found = self.inner().store.artifact(scope, name, version).await?;
        found.ok_or_else(|| {
            let name: String = name.chars().take(200).collect();
            Error::new(Code::ArtifactNotFound, format!("no artifact `{}`", name.escape_debug()))
        })
    }

    // ## What needs somebody

    /// Runs that wait for a decision, a signal, a budget or a provider's recovery, and open questions of threads: at most
    /// `limit` of each.
    ///
    /// # Errors
    /// `store_unavailable`.
    pub async fn attention(&self, tenant: Option<&str>, limit: u32) -> Result<Needs, Error> {
        let mut needs = Needs::default();
        self.waiting_for_somebody(tenant, limit as usize, &mut needs).await?;
        let search = ThreadSearch {
            tenant: tenant.map(ToOwned::to_owned),
            stand: Some(Stand::Interrupted),
            limit,
            ..ThreadSearch::default()
        };
        let store = &self.inner().store;
        let page = store.search_threads(search).await?;
        needs.more |= page.more;
        for thread in page.threads {
            let Some(last) = thread.last.filter(|last| last.status == Status::Success) else {
                continue;
            };
            let state = store.state(thread.record.id, None).await?;
            let questions = state.as_ref().map(Self::questions).unwrap_or_default();
            let Some(run) = store.run(last.id).await?.filter(|_| !questions.is_empty()) else {
                continue;
            };
            needs.items.extend(questions.iter().map(|question| Attention {
                kind: WaitKind::Person,
                detail: format!("node `{}` asks", question.node),
                command: format!("clearway runs answer {} JSON", run.id),
                run: run.clone(),
            }));
        }
        Ok(needs)
    }

    /// Runs that are parked until somebody does something. Most of those that wait need nobody (timers, child runs), so
    /// pages are turned until there are enough.
    async fn waiting_for_somebody(
        &self,
        tenant: Option<&str>,
        limit: usize,
        needs: &mut Needs,
    ) -> Result<(), Error> {
        let mut query = RunQuery {
            tenant: tenant.map(ToOwned::to_owned),
            statuses: vec![Status::Waiting],
            limit: WAITING_PAGE,
            ..RunQuery::default()
        };
        for _ in 0..WAITING_PAGES {
            let page = self.inner().store.runs(query.clone()).await?;
            for run in page.runs {
                let Some(parked) = &run.parked else { continue };
                let id = run.id;
                let command = match parked.park.kind {
                    WaitKind::Decision => {
                        needs.items.extend(self.decisions(&run).await?);
                        continue;
                    }
                    WaitKind::Budget => {
                        format!("clearway runs budget {id} --tokens N --cost X --calls N")
                    }
                    WaitKind::Outage => format!("clearway runs wake {id}"),
                    WaitKind::Signal => format!("clearway runs signal {id} NAME [JSON]"),
                    _ => continue,
                };
                let (kind, detail) = (parked.park.kind, parked.park.detail.clone());
                needs.items.push(Attention { run, kind, detail, command });
            }
            match page.next {
                Some(next) if needs.items.len() < limit => query.after = Some(next),
                Some(_) => break,
                None => return Ok(()),
            }
        }
        needs.more = true;
        Ok(())
    }
}

/// Waiting runs that are looked at for what needs somebody: a page, and how many of them.
const WAITING_PAGE: u32 = 500;
const WAITING_PAGES: u32 = 20;

impl Engine {
    /// One for each undecided write of a run that waits for a decision.
    async fn decisions(&self, run: &RunRecord) -> Result<Vec<Attention>, Error> {
        let writes = self.undecided(run.id).await?;
        let item = |write: &Undecided| {
            let key = write.idempotency_key();
            Attention {
                run: run.clone(),
                kind: WaitKind::Decision,
                detail: format!(
                    "whether write `{}` of node `{}` happened, announced {}; the other side knows it by \
                     the idempotency key {key}",
                    write.name, write.node, write.at
                ),
                command: format!(
                    "clearway runs resolve {} --key {key} --done JSON | --retry",
                    run.id
                ),
            }
        };
        Ok(writes.iter().map(item).collect())
    }
}

impl Inner {
    async fn wake(self: &Arc<Self>, run: RunId, entries: Vec<Entry>) -> Result<(), Error> {
        let woken = bounded(self.store.wake(run, entries.clone())).await?;
        self.woken(run, woken, entries)
    }

    fn woken(self: &Arc<Self>, run: RunId, woken: Woken, entries: Vec<Entry>) -> Result<(), Error> {
        match woken {
            Woken::Ready(record) => {
                if let Some(live) = self.hub.get(run) {
                    let detail = format!("pool {}", record.pool);
                    live.wait.enter(WaitKind::Slot, detail, None, crate::clock::instant());
                }
                self.wake_dispatcher();
                Ok(())
            }
            Woken::Running { .. } => {
                if let Some(live) = self.hub.get(run) {
                    live.notes.put(entries);
                }
                Ok(())
            }
            Woken::Queued => Ok(()),
            Woken::Ended(record) => {
                let text = format!("run {run} has ended: {}", record.status.as_str());
                Err(Error::new(Code::RunEnded, text))
            }
            Woken::NotFound => Err(crate::engine::no_run(run)),
        }
    }

    /// Children of a run that was ended while it waited: those that execute here are told at once.
    pub(crate) async fn cancel_children(self: Arc<Self>, parent: RunId) {
        let query = RunQuery { parent: Some(parent), limit: 1000, ..RunQuery::default() };
        let Ok(page) = bounded(self.store.runs(query)).await else { return };
        for child in page.runs.iter().filter(|child| !child.status.is_terminal()) {
            if let Some(live) = self.hub.get(child.id) {
                live.cancel.request("parent");
            }
        }
    }

    /// Drops what an agent's retention does not keep, after a run.
    pub(crate) async fn retain(self: Arc<Self>, thread: ThreadId, keep: Keep) {
        if let Err(error) = bounded(self.store.prune_thread(thread, keep)).await {
            tracing::warn!(thread.id = %thread, "old checkpoints could not be dropped: {error}");
        }
    }
}

/// What the frontier of a state is, for readers that show it.
pub fn next_nodes(frontier: &Frontier, journal: &[Entry]) -> Vec<Arc<str>> {
    let journal: Journal = journal.iter().cloned().collect();
    let open = frontier.due.iter().filter(|due| journal.done(due.task).is_none());
    open.map(|due| due.node.clone()).collect()
}
