//! A store in memory, for tests: the rules of the real one, and the faults of a disk.
//!
//! It keeps what a disk would keep. [`MemStore::crash`] drops output that no durable operation
//! followed, as a host that loses its power does; [`MemStore::fork`] copies everything, so that a
//! test can let the "dead" process go on writing into the old copy while a new one starts from the
//! other; [`MemStore::inject`] makes calls fail before they happen, or happen without an answer.
//!
//! **Invariant:** whatever conformance can observe here, it observes the same in `SqliteStore`.
//!
//! Not here: persistence. Nothing survives the value.

mod data;
mod ends;
mod knowledge;
mod library;
mod memories;
mod threads;
mod waiting;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use clearway_core::channel::Op;
use clearway_core::journal::Entry;
use clearway_core::run::Budget;
use clearway_core::thread::ThreadRecord;
use clearway_core::{
    AttemptRecord, AttemptsOf, CheckpointId, Clock, InstanceId, Priority, RunId, RunRecord,
    ThreadId, Timestamp,
};
use serde_json::{Map, Value};
use uuid::Uuid;

use self::data::Data;
use crate::error::{Error, ErrorKind, Result};
use crate::policy::Policy;
use crate::threads::*;
use crate::types::*;
use crate::{KnowledgeStore, Store};

/// See the module.
#[derive(Debug)]
pub struct MemStore {
    clock: Arc<dyn Clock>,
    policy: Policy,
    sharing: Sharing,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    data: Data,
    closed: bool,
    calls: u64,
    faults: Vec<Fault>,
}

/// Whether one process at a time owns the store, as with a file, or several share it, as with a
/// database server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// Joining takes over everything that earlier instances left running.
    #[default]
    Exclusive,
    /// Runs change hands only when their instance's lease is over.
    Shared,
}

/// One call of a [`Store`] method.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// From 1, over all methods.
    pub number: u64,
    pub method: &'static str,
}

/// A call that is to go wrong, once.
#[derive(Debug)]
pub struct Fault {
    pub when: When,
    pub fate: Fate,
}

/// Which call is meant.
pub enum When {
    /// The call with this number; [`MemStore::calls`] says how many there were.
    Call(u64),
    /// The first one this is true for.
    Matching(Box<dyn FnMut(Call) -> bool + Send>),
}

impl std::fmt::Debug for When {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Call(number) => f.debug_tuple("Call").field(number).finish(),
            Self::Matching(_) => f.write_str("Matching(..)"),
        }
    }
}

/// How it goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nothing is done, and the caller is told so.
    Fail(ErrorKind),
    /// It is done, and the caller is told that nobody knows.
    LoseAnswer,
}

impl MemStore {
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self::with(clock, Policy::default(), Sharing::default())
    }

    pub fn with(clock: Arc<dyn Clock>, policy: Policy, sharing: Sharing) -> Self {
        Self { clock, policy, sharing, inner: Mutex::default() }
    }

    /// A copy as a restarted process would find it; the two know nothing of each other.
    ///
    /// With `lose_tail` as after a power failure, without as after a killed process.
    #[must_use]
    pub fn fork(&self, lose_tail: LoseTail) -> Self {
        let mut data = self.lock().data.clone();
        if lose_tail == LoseTail::Yes {
            data.lose_tail();
        }
        let inner = Inner { data, ..Inner::default() };
        Self {
            clock: self.clock.clone(),
            policy: self.policy.clone(),
            sharing: self.sharing,
            inner: Mutex::new(inner),
        }
    }

    /// The same in place: what the old process does after this is done to the new one's data.
    pub fn crash(&self, lose_tail: LoseTail) {
        let mut inner = self.lock();
        if lose_tail == LoseTail::Yes {
            inner.data.lose_tail();
        }
        inner.closed = false;
    }

    /// Makes one call go wrong. Several faults may wait at a time.
    pub fn inject(&self, fault: Fault) {
        self.lock().faults.push(fault);
    }

    /// Calls so far, failed ones included.
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One transaction: faults, then `apply`.
    fn call<T>(
        &self,
        method: &'static str,
        apply: impl FnOnce(&mut Data, Timestamp) -> Result<T>,
    ) -> Result<T> {
        let now = self.clock.now();
        let mut inner = self.lock();
        inner.calls += 1;
        let call = Call { number: inner.calls, method };
        if inner.closed {
            return Err(closed());
        }
        let hit = inner.faults.iter_mut().position(|fault| match &mut fault.when {
            When::Call(number) => *number == call.number,
            When::Matching(matches) => matches(call),
        });
        match hit.map(|at| inner.faults.remove(at).fate) {
            Some(Fate::Fail(kind)) => {
                Err(Error::new(kind, format!("injected into call {}: {method}", call.number)))
            }
            Some(Fate::LoseAnswer) => {
                apply(&mut inner.data, now)?;
                let message = format!("answer of call {} lost: {method}", call.number);
                Err(Error::new(ErrorKind::Other, message).outcome_unknown())
            }
            None => apply(&mut inner.data, now),
        }
    }
}

/// What a crash takes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoseTail {
    /// The host died: output since the last durable operation is gone.
    Yes,
    /// Only the process died: the host still writes what it was given.
    No,
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the store is closed")
}

#[async_trait::async_trait]
impl Store for MemStore {
    async fn join(&self, me: InstanceId) -> Result<Joined> {
        // A process that starts opens the store, whatever an earlier one did to it.
        self.lock().closed = false;
        self.call("join", |data, now| Ok(data.join(me, self.sharing, &self.policy, now)))
    }

    async fn renew(&self, me: InstanceId) -> Result<Renewal> {
        self.call("renew", |data, now| Ok(data.renew(me, &self.policy, now)))
    }

    async fn sweep(&self, me: InstanceId) -> Result<Swept> {
        self.call("sweep", |data, now| Ok(data.sweep(me, &self.policy, now)))
    }

    async fn create_run(&self, new: NewRun) -> Result<Admission> {
        self.call("create_run", |data, now| data.create_run(&new, &self.policy, now))
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Vec<Claim>> {
        self.call("claim", |data, now| Ok(data.claim(&request, &self.policy, now)))
    }

    async fn commit(&self, commit: StepCommit) -> Result<CommitAck> {
        self.call("commit", |data, now| data.commit(&commit, now))
    }

    async fn append(&self, output: Vec<OutputSegment>) -> Result<Vec<Appended>> {
        self.call("append", |data, _| Ok(data.append(&output)))
    }

    async fn cancel_run(&self, run: RunId, by: &str, mode: CancelMode) -> Result<Cancelled> {
        self.call("cancel_run", |data, now| Ok(data.cancel_run(run, by, mode, now)))
    }

    async fn journal(&self, run: RunId, fence: u32, entries: Vec<Entry>) -> Result<Journaled> {
        self.call("journal", |data, _| data.keep(run, fence, &entries))
    }

    async fn wake(&self, run: RunId, entries: Vec<Entry>) -> Result<Woken> {
        self.call("wake", |data, now| data.wake(run, &entries, now))
    }

    async fn set_priority(&self, run: RunId, priority: Priority) -> Result<Option<RunRecord>> {
        self.call("set_priority", |data, _| Ok(data.set_priority(run, priority)))
    }

    async fn set_budget(&self, run: RunId, budget: Budget) -> Result<Woken> {
        self.call("set_budget", |data, now| Ok(data.set_budget(run, budget, now)))
    }

    async fn release(&self, run: RunId, fence: u32) -> Result<bool> {
        self.call("release", |data, now| Ok(data.release(run, fence, now)))
    }

    async fn reset_thread(&self, thread: ThreadId) -> Result<Option<Reset>> {
        self.call("reset_thread", |data, now| Ok(data.reset_thread(thread, now)))
    }

    async fn run(&self, run: RunId) -> Result<Option<RunRecord>> {
        self.call("run", |data, _| Ok(data.run(run)))
    }

    async fn runs(&self, query: RunQuery) -> Result<RunPage> {
        self.call("runs", |data, _| Ok(data.runs(&query)))
    }

    async fn thread(&self, thread: ThreadId) -> Result<Option<ThreadRecord>> {
        self.call("thread", |data, _| Ok(data.thread(thread)))
    }

    async fn state(
        &self,
        thread: ThreadId,
        at: Option<CheckpointId>,
    ) -> Result<Option<ThreadState>> {
        self.call("state", |data, _| data.state(thread, at))
    }

    async fn writes_of(&self, checkpoint: CheckpointId, channel: &str) -> Result<Vec<Op>> {
        self.call("writes_of", |data, _| data.writes_of(checkpoint, channel))
    }

    async fn read_log(&self, run: RunId, from: u64, max_bytes: usize) -> Result<LogPage> {
        self.call("read_log", |data, _| {
            data.read_log(run, from, max_bytes)?.ok_or_else(|| crate::rules::no_such_run(run))
        })
    }

    async fn history(
        &self,
        thread: ThreadId,
        before: Option<CheckpointId>,
        limit: u32,
    ) -> Result<Vec<CheckpointRecord>> {
        self.call("history", |data, _| Ok(data.history(thread, before, limit)))
    }

    async fn update_state(&self, update: StateUpdate) -> Result<Updated> {
        self.call("update_state", |data, now| data.update_state(&update, now))
    }

    async fn threads(&self, query: ThreadQuery) -> Result<Vec<ThreadRecord>> {
        self.call("threads", |data, _| Ok(data.threads(&query)))
    }

    async fn make_thread(&self, new: NewThread) -> Result<ThreadMade> {
        self.call("make_thread", |data, now| Ok(data.make_thread(new, now)))
    }

    async fn describe_thread(
        &self,
        thread: ThreadId,
        metadata: Map<String, Value>,
    ) -> Result<Option<ThreadRecord>> {
        self.call("describe_thread", |data, now| Ok(data.describe_thread(thread, metadata, now)))
    }

    async fn copy_thread(
        &self,
        from: ThreadId,
        to: ThreadId,
        salt: [u8; 6],
    ) -> Result<Option<ThreadRecord>> {
        self.call("copy_thread", |data, now| Ok(data.copy_thread(from, to, salt, now)))
    }

    async fn thread_overview(&self, thread: ThreadId) -> Result<Option<ThreadOverview>> {
        self.call("thread_overview", |data, _| Ok(data.thread_overview(thread)))
    }

    async fn search_threads(&self, search: ThreadSearch) -> Result<ThreadPage> {
        self.call("search_threads", |data, _| Ok(data.search_threads(&search)))
    }

    async fn count_threads(&self, search: ThreadSearch) -> Result<u64> {
        self.call("count_threads", |data, _| Ok(data.fitting_threads(&search).len() as u64))
    }

    async fn stale_threads(
        &self,
        dialect: &str,
        since: Timestamp,
        limit: u32,
    ) -> Result<Vec<ThreadId>> {
        self.call("stale_threads", |data, _| Ok(data.stale_threads(dialect, since, limit)))
    }

    async fn steps(
        &self,
        run: RunId,
        after: Option<CheckpointId>,
        limit: u32,
    ) -> Result<Vec<StepRecord>> {
        self.call("steps", |data, _| data.steps(run, after, limit))
    }

    async fn delete_run(&self, run: RunId) -> Result<RunDeleted> {
        self.call("delete_run", |data, now| Ok(data.delete_run(run, now)))
    }

    async fn prune_thread(&self, thread: ThreadId, keep: Keep) -> Result<Option<Pruned>> {
        self.call("prune_thread", |data, _| Ok(data.prune_thread(thread, keep)))
    }

    async fn delete_thread(
        &self,
        thread: ThreadId,
    ) -> Result<Option<std::result::Result<(), RunId>>> {
        self.call("delete_thread", |data, _| Ok(data.delete_thread(thread)))
    }

    async fn thread_storage(&self, thread: ThreadId) -> Result<Option<ThreadStorage>> {
        self.call("thread_storage", |data, _| Ok(data.thread_storage(thread)))
    }

    async fn put_artifact(&self, artifact: NewArtifact) -> Result<ArtifactStored> {
        self.call("put_artifact", |data, now| Ok(data.put_artifact(&artifact, now)))
    }

    async fn artifacts(&self, scope: ArtifactScope) -> Result<Vec<ArtifactRecord>> {
        self.call("artifacts", |data, _| Ok(data.artifacts(scope)))
    }

    async fn artifact(
        &self,
        scope: ArtifactScope,
        name: &str,
        version: Option<u32>,
    ) -> Result<Option<(ArtifactRecord, Bytes)>> {
        self.call("artifact", |data, _| Ok(data.artifact(scope, name, version)))
    }

    async fn put_schedule(&self, schedule: Schedule) -> Result<()> {
        self.call("put_schedule", |data, _| {
            data.put_schedule(schedule);
            Ok(())
        })
    }

    async fn delete_schedule(&self, id: Uuid) -> Result<bool> {
        self.call("delete_schedule", |data, _| Ok(data.delete_schedule(id)))
    }

    async fn schedules(&self, query: ScheduleQuery) -> Result<Vec<Schedule>> {
        self.call("schedules", |data, _| Ok(data.schedules(&query)))
    }

    async fn due_schedules(&self, limit: u32) -> Result<(Vec<Schedule>, Option<Timestamp>)> {
        self.call("due_schedules", |data, now| Ok(data.due_schedules(limit, now)))
    }

    async fn schedule_fired(&self, fired: Fired) -> Result<()> {
        self.call("schedule_fired", |data, _| {
            data.schedule_fired(&fired);
            Ok(())
        })
    }

    async fn due_deliveries(&self, limit: u32) -> Result<(Vec<Delivery>, Option<Timestamp>)> {
        self.call("due_deliveries", |data, now| Ok(data.due_deliveries(limit, now)))
    }

    async fn delivered(&self, id: i64, outcome: DeliveryOutcome) -> Result<()> {
        self.call("delivered", |data, now| {
            data.delivered(id, &outcome, now);
            Ok(())
        })
    }

    async fn attempts(
        &self,
        of: AttemptsOf,
        after: Option<i64>,
        limit: u32,
    ) -> Result<Vec<AttemptRecord>> {
        self.call("attempts", |data, _| Ok(data.attempts(of, after, limit)))
    }

    async fn book(&self, attempts: Vec<AttemptRecord>) -> Result<()> {
        self.call("book", |data, now| {
            data.book(attempts, now);
            Ok(())
        })
    }

    async fn cached(&self, tenant: &str, key: &[u8; 32]) -> Result<Option<Value>> {
        self.call("cached", |data, now| Ok(data.cached(tenant, key, now)))
    }

    async fn cache(
        &self,
        tenant: &str,
        key: [u8; 32],
        value: Value,
        lifetime: Duration,
    ) -> Result<()> {
        self.call("cache", |data, now| {
            data.cache(tenant, key, value, now.plus(lifetime), now);
            Ok(())
        })
    }

    async fn put_assistant(&self, new: NewAssistant) -> Result<AssistantPut> {
        self.call("put_assistant", |data, _| Ok(data.put_assistant(&new)))
    }

    async fn assistant(&self, tenant: &str, id: Uuid) -> Result<Option<LatestAssistant>> {
        self.call("assistant", |data, _| Ok(data.assistant(tenant, id)))
    }

    async fn assistants(
        &self,
        tenant: &str,
        after: Option<Uuid>,
        limit: u32,
    ) -> Result<Vec<Assistant>> {
        self.call("assistants", |data, _| Ok(data.assistants(tenant, after, limit)))
    }

    async fn assistant_versions(&self, tenant: &str, id: Uuid) -> Result<Vec<Assistant>> {
        self.call("assistant_versions", |data, _| Ok(data.assistant_versions(tenant, id)))
    }

    async fn select_assistant(
        &self,
        tenant: &str,
        id: Uuid,
        version: u32,
    ) -> Result<Option<Assistant>> {
        self.call("select_assistant", |data, _| Ok(data.select_assistant(tenant, id, version)))
    }

    async fn delete_assistant(&self, tenant: &str, id: Uuid) -> Result<bool> {
        self.call("delete_assistant", |data, _| Ok(data.delete_assistant(tenant, id)))
    }

    async fn put_item(&self, item: NewItem) -> Result<ItemPut> {
        self.call("put_item", |data, now| Ok(data.put_item(&item, now)))
    }

    async fn item(
        &self,
        scope: &ItemScope,
        namespace: &[String],
        key: &str,
    ) -> Result<Option<Item>> {
        self.call("item", |data, now| Ok(data.item(scope, namespace, key, now)))
    }

    async fn delete_item(
        &self,
        scope: &ItemScope,
        namespace: &[String],
        key: &str,
    ) -> Result<bool> {
        self.call("delete_item", |data, _| Ok(data.delete_item(scope, namespace, key)))
    }

    async fn touch_items(
        &self,
        scope: &ItemScope,
        items: Vec<(Vec<String>, String)>,
    ) -> Result<()> {
        self.call("touch_items", |data, now| {
            data.touch_items(scope, &items, now);
            Ok(())
        })
    }

    async fn search_items(&self, scope: &ItemScope, search: ItemSearch) -> Result<Vec<FoundItem>> {
        self.call("search_items", |data, now| Ok(data.search_items(scope, &search, now)))
    }

    async fn item_namespaces(
        &self,
        scope: &ItemScope,
        query: NamespaceQuery,
    ) -> Result<Vec<Vec<String>>> {
        self.call("item_namespaces", |data, now| Ok(data.item_namespaces(scope, &query, now)))
    }

    async fn queue_positions(&self, runs: Vec<RunId>) -> Result<Vec<Option<QueuePosition>>> {
        self.call("queue_positions", |data, _| {
            Ok(runs.into_iter().map(|run| data.queue_position(run)).collect())
        })
    }

    fn knowledge(&self) -> &dyn KnowledgeStore {
        self
    }

    fn pool_counts(&self) -> Vec<PoolCount> {
        self.lock().data.counts.list()
    }

    async fn info(&self) -> Result<StoreInfo> {
        self.call("info", |data, _| {
            Ok(StoreInfo {
                kind: "memory",
                path: None,
                size_bytes: data.size_bytes(),
                disk_free_bytes: None,
                writable: Ok(()),
                schema_version: 7,
            })
        })
    }

    async fn close(&self, me: InstanceId) -> Result<()> {
        self.call("close", |data, _| {
            data.leave(me);
            Ok(())
        })?;
        // Others go on using a shared store.
        self.lock().closed = self.sharing == Sharing::Exclusive;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
