//! A store whose process dies at one call.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use clearway_core::channel::Op;
use clearway_core::journal::Entry;
use clearway_core::run::Budget;
use clearway_core::thread::ThreadRecord;
use clearway_core::{CheckpointId, InstanceId, Priority, RunId, RunRecord, ThreadId, Timestamp};
use clearway_store::Result as StoreResult;
use clearway_store::*;
use serde_json::Value;
use uuid::Uuid;

/// A store whose process dies at one call: that call happens (or does not), and neither it nor any
/// later one is ever answered.
#[derive(Debug)]
pub struct Dying {
    inner: Arc<MemStore>,
    at: u64,
    /// Whether the last call still happens.
    last_happens: bool,
    /// The call whose answer is lost.
    unanswered: Option<u64>,
    calls: AtomicU64,
    dead: Arc<tokio::sync::Notify>,
}

impl Dying {
    /// Over `inner`, until its `at`-th call; `u64::MAX` never dies.
    pub fn new(inner: Arc<MemStore>, at: u64, last_happens: bool) -> Self {
        Self {
            inner,
            at,
            last_happens,
            unanswered: None,
            calls: AtomicU64::new(0),
            dead: Arc::default(),
        }
    }

    /// Over `inner`, never dying: one call happens, and its caller is told that nobody knows.
    pub fn without_answer(inner: Arc<MemStore>, call: u64) -> Self {
        Self { unanswered: Some(call), ..Self::new(inner, u64::MAX, true) }
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    /// Told when the process dies.
    pub fn death(&self) -> Arc<tokio::sync::Notify> {
        self.dead.clone()
    }

    async fn pass<T>(&self, call: impl Future<Output = StoreResult<T>>) -> StoreResult<T> {
        let number = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        if number > self.at || (number == self.at && !self.last_happens) {
            self.dead.notify_one();
            return std::future::pending().await;
        }
        let answer = call.await;
        if number == self.at {
            self.dead.notify_one();
            return std::future::pending().await;
        }
        if self.unanswered == Some(number) {
            let lost = Error::new(ErrorKind::Other, "the answer was lost on purpose");
            return answer.and(Err(lost.outcome_unknown()));
        }
        answer
    }
}

macro_rules! pass {
    ($($name:ident($($arg:ident: $type:ty),*) -> $out:ty;)*) => {
        #[async_trait::async_trait]
        impl Store for Dying {
            $(async fn $name(&self, $($arg: $type),*) -> StoreResult<$out> {
                self.pass(self.inner.$name($($arg),*)).await
            })*

            fn knowledge(&self) -> &dyn clearway_store::KnowledgeStore {
                self.inner.knowledge()
            }

            fn pool_counts(&self) -> Vec<PoolCount> {
                self.inner.pool_counts()
            }
        }
    };
}

pass! {
    join(me: InstanceId) -> Joined;
    renew(me: InstanceId) -> Renewal;
    sweep(me: InstanceId) -> Swept;
    create_run(new: NewRun) -> Admission;
    claim(request: ClaimRequest) -> Vec<Claim>;
    commit(commit: StepCommit) -> CommitAck;
    append(output: Vec<OutputSegment>) -> Vec<Appended>;
    attempts(of: clearway_core::AttemptsOf, after: Option<i64>, limit: u32) -> Vec<clearway_core::AttemptRecord>;
    book(attempts: Vec<clearway_core::AttemptRecord>) -> ();
    cancel_run(run: RunId, by: &str, mode: CancelMode) -> Cancelled;
    journal(run: RunId, fence: u32, entries: Vec<Entry>) -> Journaled;
    wake(run: RunId, entries: Vec<Entry>) -> Woken;
    set_priority(run: RunId, priority: Priority) -> Option<RunRecord>;
    set_budget(run: RunId, budget: Budget) -> Woken;
    history(thread: ThreadId, before: Option<CheckpointId>, limit: u32) -> Vec<CheckpointRecord>;
    update_state(update: StateUpdate) -> Updated;
    threads(query: ThreadQuery) -> Vec<ThreadRecord>;
    make_thread(new: NewThread) -> ThreadMade;
    describe_thread(thread: ThreadId, metadata: serde_json::Map<String, Value>) -> Option<ThreadRecord>;
    copy_thread(from: ThreadId, to: ThreadId, salt: [u8; 6]) -> Option<ThreadRecord>;
    thread_overview(thread: ThreadId) -> Option<ThreadOverview>;
    search_threads(search: ThreadSearch) -> ThreadPage;
    count_threads(search: ThreadSearch) -> u64;
    stale_threads(dialect: &str, since: Timestamp, limit: u32) -> Vec<ThreadId>;
    steps(run: RunId, after: Option<CheckpointId>, limit: u32) -> Vec<StepRecord>;
    delete_run(run: RunId) -> RunDeleted;
    prune_thread(thread: ThreadId, keep: Keep) -> Option<Pruned>;
    delete_thread(thread: ThreadId) -> Option<Result<(), RunId>>;
    thread_storage(thread: ThreadId) -> Option<ThreadStorage>;
    put_artifact(artifact: NewArtifact) -> ArtifactStored;
    artifacts(scope: ArtifactScope) -> Vec<ArtifactRecord>;
    artifact(scope: ArtifactScope, name: &str, version: Option<u32>) -> Option<(ArtifactRecord, Bytes)>;
    put_schedule(schedule: Schedule) -> ();
    delete_schedule(id: Uuid) -> bool;
    schedules(query: ScheduleQuery) -> Vec<Schedule>;
    due_schedules(limit: u32) -> (Vec<Schedule>, Option<Timestamp>);
    schedule_fired(fired: Fired) -> ();
    due_deliveries(limit: u32) -> (Vec<Delivery>, Option<Timestamp>);
    delivered(id: i64, outcome: DeliveryOutcome) -> ();
    cached(tenant: &str, key: &[u8; 32]) -> Option<Value>;
    cache(tenant: &str, key: [u8; 32], value: Value, lifetime: Duration) -> ();
    put_assistant(new: NewAssistant) -> AssistantPut;
    assistant(tenant: &str, id: Uuid) -> Option<LatestAssistant>;
    assistants(tenant: &str, after: Option<Uuid>, limit: u32) -> Vec<Assistant>;
    assistant_versions(tenant: &str, id: Uuid) -> Vec<Assistant>;
    select_assistant(tenant: &str, id: Uuid, version: u32) -> Option<Assistant>;
    delete_assistant(tenant: &str, id: Uuid) -> bool;
    put_item(item: NewItem) -> ItemPut;
    item(scope: &ItemScope, namespace: &[String], key: &str) -> Option<Item>;
    delete_item(scope: &ItemScope, namespace: &[String], key: &str) -> bool;
    touch_items(scope: &ItemScope, items: Vec<(Vec<String>, String)>) -> ();
    search_items(scope: &ItemScope, search: ItemSearch) -> Vec<FoundItem>;
    item_namespaces(scope: &ItemScope, query: NamespaceQuery) -> Vec<Vec<String>>;
    release(run: RunId, fence: u32) -> bool;
    reset_thread(thread: ThreadId) -> Option<Reset>;
    run(run: RunId) -> Option<RunRecord>;
    runs(query: RunQuery) -> RunPage;
    thread(thread: ThreadId) -> Option<ThreadRecord>;
    state(thread: ThreadId, at: Option<CheckpointId>) -> Option<ThreadState>;
    writes_of(checkpoint: CheckpointId, channel: &str) -> Vec<Op>;
    read_log(run: RunId, from: u64, max_bytes: usize) -> LogPage;
    queue_positions(runs: Vec<RunId>) -> Vec<Option<QueuePosition>>;
    info() -> StoreInfo;
    close(me: InstanceId) -> ();
}
