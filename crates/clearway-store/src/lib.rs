//! What Clearway remembers: one [`Store`] trait of whole transactions.
//!
//! Correctness lives here and only here: a run is accepted, claimed, committed and ended by exactly
//! one method each, and each method is one transaction with an intent, never table access. Two
//! implementations stand behind it: `SqliteStore` (one file, one process) and `MemStore` (tests,
//! with the crash semantics of a disk). The trait is shaped so that a cluster database fits: leases
//! per instance, a fence per run, batched commits.
//!
//! **Invariant:** only this crate knows SQL. Nothing outside decides who owns a run.
//!
//! Not here: waking anybody up (that may be lost, so it is the engine's), and provider or HTTP
//! formats.

pub mod assistants;
mod clock;
#[cfg(test)]
mod conformance;
mod counts;
pub mod error;
pub mod items;
pub mod knowledge;
mod mem;
mod policy;
mod rules;
mod sqlite;
pub mod threads;
pub mod types;

pub use clock::{ManualClock, SystemClock};
pub use error::{Error, ErrorKind, Result};
pub use knowledge::*;
pub use mem::{Call, Fate, Fault, LoseTail, MemStore, Sharing, When};
pub use policy::Policy;
pub use sqlite::{Database, Holder, Inspection, SqliteOptions, SqliteStore, Structure, inspect};
pub use threads::*;
pub use types::*;

use clearway_core::journal::Entry;
use clearway_core::run::Budget;
use clearway_core::{
    AttemptRecord, AttemptsOf, CheckpointId, InstanceId, Priority, RunId, RunRecord, ThreadId,
    Timestamp,
};

/// Durable memory of all runs and threads.
///
/// All methods are whole transactions: they either happened or did not. When an [`Error`] says
/// `certainly_aborted == false` the transaction may have happened; the caller repeats it, and
/// every method here recognises the repetition (by run id, commit number or idempotency key) and
/// answers as the first time.
///
/// Implementations judge all times by their own clock.
#[async_trait::async_trait]
pub trait Store: Send + Sync + std::fmt::Debug + 'static {
    /// Registers a booted instance and, where the store belongs to one process at a time, takes
    /// over at once everything that earlier processes left running.
    async fn join(&self, me: InstanceId) -> Result<Joined>;

    /// Extends the instance's lease; says which of its runs somebody wants cancelled.
    async fn renew(&self, me: InstanceId) -> Result<Renewal>;

    /// Takes runs away from instances whose lease is over, ends queued runs whose deadline passed,
    /// drops what retention allows. Any instance may call it at any time.
    async fn sweep(&self, me: InstanceId) -> Result<Swept>;

    /// Accepts a run: thread row, run row, event 0 and idempotency key in one durable transaction.
    ///
    /// Claims it in the same transaction when `claim` is set, its thread is free, it has no delay
    /// and nobody who could start waits in its pool. A run that interrupts another is never claimed
    /// at once, so that [`Queued::interrupted`] reaches the caller.
    async fn create_run(&self, new: NewRun) -> Result<Admission>;

    /// Takes up to `slots` ready runs per pool: by effective priority (ageing), then so that the
    /// slots held are shared between tenants by weight, then by age. The cost does not depend on
    /// how many runs wait.
    ///
    /// A claim raises `fence` and `attempt`, and `fruitless` when no superstep was committed under
    /// the claim before it and that one was not given back by [`StepOutcome::Release`]. It books
    /// the waiting time on the run's `spent`.
    async fn claim(&self, request: ClaimRequest) -> Result<Vec<Claim>>;

    /// One fenced commit of a running run. Group commit is the implementation's business.
    ///
    /// An end frees the thread and makes its next blocked run ready: interrupting ones first, then
    /// in the order of admission. A run from before a reset of its thread keeps its events and its
    /// end; its checkpoints are void.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`], and nothing written, when the commit contradicts itself or the
    /// rows: events beyond the tail, deltas that do not continue the thread's head.
    async fn commit(&self, commit: StepCommit) -> Result<CommitAck>;

    /// Stores volatile output, without waiting for the disk. One answer per segment, in order.
    async fn append(&self, output: Vec<OutputSegment>) -> Result<Vec<Appended>>;

    /// Attempts at provider calls of a run that have been committed, or those that belong to none;
    /// those beyond `after` in their order, at most `limit` (0 means 100, 1000 at most).
    async fn attempts(
        &self,
        of: AttemptsOf,
        after: Option<i64>,
        limit: u32,
    ) -> Result<Vec<AttemptRecord>>;

    /// Keeps attempts that belong to no run, for a month. Not waited for: what the disk loses with
    /// the power is lost.
    async fn book(&self, attempts: Vec<AttemptRecord>) -> Result<()>;

    /// Asks a run to end. A run that is not running ends at once, and the next of its thread is
    /// promoted; a running one is flagged for its owner.
    /// The flagged run's end takes its committed supersteps back when the mode says so. Children
    /// of a run that ends here are told to end, too.
    async fn cancel_run(&self, run: RunId, by: &str, mode: CancelMode) -> Result<Cancelled>;

    /// Keeps notes of a running run's calls: durable, fenced, and outside the count of commits. An
    /// entry that is there already stands.
    async fn journal(&self, run: RunId, fence: u32, entries: Vec<Entry>) -> Result<Journaled>;

    /// Adds notes to a run from outside (an answer, a signal, a decision) and makes it ready if it
    /// waits. The same notes twice are one.
    async fn wake(&self, run: RunId, entries: Vec<Entry>) -> Result<Woken>;

    /// Changes the priority of a run that waits; the record as it is then. `None` when there is no
    /// such run; an ended or running one is left as it is.
    async fn set_priority(&self, run: RunId, priority: Priority) -> Result<Option<RunRecord>>;

    /// Changes what a run may use up, and makes it ready if it waits for that.
    async fn set_budget(&self, run: RunId, budget: Budget) -> Result<Woken>;

    /// Returns a claimed run whose owner cannot execute it (its task is gone, its claim answer was
    /// lost): ready again, fence raised, nothing else changed.
    async fn release(&self, run: RunId, fence: u32) -> Result<bool>;

    /// Starts an empty generation of a thread and asks its unfinished runs to end.
    async fn reset_thread(&self, thread: ThreadId) -> Result<Option<Reset>>;

    async fn run(&self, run: RunId) -> Result<Option<clearway_core::RunRecord>>;

    /// Runs, newest first.
    async fn runs(&self, query: RunQuery) -> Result<RunPage>;

    async fn thread(&self, thread: ThreadId)
    -> Result<Option<clearway_core::thread::ThreadRecord>>;

    /// A thread's state at its head or at one checkpoint, rebuilt from snapshots and deltas.
    async fn state(
        &self,
        thread: ThreadId,
        at: Option<CheckpointId>,
    ) -> Result<Option<ThreadState>>;

    /// What one checkpoint wrote to one channel; empty when it did not write there. Cost does not
    /// depend on the length of the thread.
    async fn writes_of(
        &self,
        checkpoint: CheckpointId,
        channel: &str,
    ) -> Result<Vec<clearway_core::channel::Op>>;

    /// Stored events of a run from number `from` on, at most about `max_bytes` of them and at least
    /// one when there is one. A run that does not exist is an [`ErrorKind::Conflict`].
    async fn read_log(&self, run: RunId, from: u64, max_bytes: usize) -> Result<LogPage>;

    /// A thread's checkpoints, all branches, newest first (by id), older than `before`.
    async fn history(
        &self,
        thread: ThreadId,
        before: Option<CheckpointId>,
        limit: u32,
    ) -> Result<Vec<CheckpointRecord>>;

    /// Changes a thread's state from outside, as a checkpoint of its own.
    async fn update_state(&self, update: StateUpdate) -> Result<Updated>;

    /// Threads, the most recently changed first.
    async fn threads(&self, query: ThreadQuery)
    -> Result<Vec<clearway_core::thread::ThreadRecord>>;

    /// Makes a thread that has no run yet. The same one again changes nothing.
    async fn make_thread(&self, new: NewThread) -> Result<ThreadMade>;

    /// Merges into a thread's metadata, key by key.
    async fn describe_thread(
        &self,
        thread: ThreadId,
        metadata: serde_json::Map<String, serde_json::Value>,
    ) -> Result<Option<clearway_core::thread::ThreadRecord>>;

    /// Copies a thread with all its checkpoints, and without its runs. `salt` tells the copies'
    /// checkpoint ids from the originals'. The same copy again changes nothing.
    async fn copy_thread(
        &self,
        from: ThreadId,
        to: ThreadId,
        salt: [u8; 6],
    ) -> Result<Option<clearway_core::thread::ThreadRecord>>;

    /// A thread, and how it stands.
    async fn thread_overview(&self, thread: ThreadId) -> Result<Option<ThreadOverview>>;

    async fn search_threads(&self, search: ThreadSearch) -> Result<ThreadPage>;

    async fn count_threads(&self, search: ThreadSearch) -> Result<u64>;

    /// Threads of a dialect without an active run that were not changed since, in no order.
    async fn stale_threads(
        &self,
        dialect: &str,
        since: Timestamp,
        limit: u32,
    ) -> Result<Vec<ThreadId>>;

    /// A run's checkpoints with what each changed, oldest first, behind `after`.
    async fn steps(
        &self,
        run: RunId,
        after: Option<CheckpointId>,
        limit: u32,
    ) -> Result<Vec<StepRecord>>;

    /// Takes an ended run out of its thread's history. Its row and log stay, as those of a run that
    /// was rolled back; its checkpoints go unless later runs were built on them.
    async fn delete_run(&self, run: RunId) -> Result<RunDeleted>;

    /// Drops checkpoints, and the values that only they needed. The head, what an active run began
    /// from and what a later checkpoint's values are made of stay.
    async fn prune_thread(&self, thread: ThreadId, keep: Keep) -> Result<Option<Pruned>>;

    /// Deletes a thread with its runs, logs and artifacts. `Some(Err(run))` when a run is active.
    async fn delete_thread(
        &self,
        thread: ThreadId,
    ) -> Result<Option<std::result::Result<(), RunId>>>;

    async fn thread_storage(&self, thread: ThreadId) -> Result<Option<ThreadStorage>>;

    /// Keeps a file of a running run: durable and fenced.
    async fn put_artifact(&self, artifact: NewArtifact) -> Result<ArtifactStored>;

    /// Artifacts without their bytes, oldest first: the newest version of each name.
    async fn artifacts(&self, scope: ArtifactScope) -> Result<Vec<ArtifactRecord>>;

    /// The newest version of a name, or the one asked for.
    async fn artifact(
        &self,
        scope: ArtifactScope,
        name: &str,
        version: Option<u32>,
    ) -> Result<Option<(ArtifactRecord, bytes::Bytes)>>;

    /// Creates or replaces a schedule, by id; one with a name also replaces its namesake.
    async fn put_schedule(&self, schedule: Schedule) -> Result<()>;

    async fn delete_schedule(&self, id: uuid::Uuid) -> Result<bool>;

    async fn schedules(&self, query: ScheduleQuery) -> Result<Vec<Schedule>>;

    /// Schedules whose time has come, earliest first, and when the next one's time comes.
    async fn due_schedules(&self, limit: u32) -> Result<(Vec<Schedule>, Option<Timestamp>)>;

    /// Moves a schedule on after its run was created (under an idempotency key made of id and time,
    /// so that a crash in between starts nothing twice).
    async fn schedule_fired(&self, fired: Fired) -> Result<()>;

    /// Webhooks to be sent now, oldest first, and when the next one is due.
    async fn due_deliveries(&self, limit: u32) -> Result<(Vec<Delivery>, Option<Timestamp>)>;

    async fn delivered(&self, id: i64, outcome: DeliveryOutcome) -> Result<()>;

    /// A cached node output that is not older than its lifetime.
    async fn cached(&self, tenant: &str, key: &[u8; 32]) -> Result<Option<serde_json::Value>>;

    /// Keeps a node output for so long. The oldest give way when there are too many.
    async fn cache(
        &self,
        tenant: &str,
        key: [u8; 32],
        value: serde_json::Value,
        lifetime: std::time::Duration,
    ) -> Result<()>;

    /// Adds a version to an assistant, or makes its first.
    async fn put_assistant(&self, new: NewAssistant) -> Result<AssistantPut>;

    async fn assistant(&self, tenant: &str, id: uuid::Uuid) -> Result<Option<LatestAssistant>>;

    /// Assistants at the versions that runs take, by id.
    async fn assistants(
        &self,
        tenant: &str,
        after: Option<uuid::Uuid>,
        limit: u32,
    ) -> Result<Vec<Assistant>>;

    /// All versions of an assistant, newest first.
    async fn assistant_versions(&self, tenant: &str, id: uuid::Uuid) -> Result<Vec<Assistant>>;

    /// Makes a version the one that runs take. `None` when there is no such version.
    async fn select_assistant(
        &self,
        tenant: &str,
        id: uuid::Uuid,
        version: u32,
    ) -> Result<Option<Assistant>>;

    async fn delete_assistant(&self, tenant: &str, id: uuid::Uuid) -> Result<bool>;

    /// Keeps an item, in the place of the one with its namespace and key.
    async fn put_item(&self, item: NewItem) -> Result<ItemPut>;

    /// An item that has not expired.
    async fn item(
        &self,
        scope: &ItemScope,
        namespace: &[String],
        key: &str,
    ) -> Result<Option<Item>>;

    async fn delete_item(&self, scope: &ItemScope, namespace: &[String], key: &str)
    -> Result<bool>;

    /// Items were used: those that live from their last use live on.
    async fn touch_items(&self, scope: &ItemScope, items: Vec<(Vec<String>, String)>)
    -> Result<()>;

    async fn search_items(&self, scope: &ItemScope, search: ItemSearch) -> Result<Vec<FoundItem>>;

    /// Namespaces that have items, sorted.
    async fn item_namespaces(
        &self,
        scope: &ItemScope,
        query: NamespaceQuery,
    ) -> Result<Vec<Vec<String>>>;

    /// Documents, collections and files.
    fn knowledge(&self) -> &dyn KnowledgeStore;

    /// How many runs are ahead of a blocked or ready run, in its pool and on its thread.
    async fn queue_position(&self, run: RunId) -> Result<Option<QueuePosition>> {
        Ok(self.queue_positions(vec![run]).await?.pop().flatten())
    }

    /// The same of many, in one read and in their order.
    async fn queue_positions(&self, runs: Vec<RunId>) -> Result<Vec<Option<QueuePosition>>>;

    /// Waiting and running runs by pool, from memory: cheap enough for a health check.
    fn pool_counts(&self) -> Vec<PoolCount>;

    /// Where data is, how large it is, how far its disk is from full.
    async fn info(&self) -> Result<StoreInfo>;

    /// Ends an instance: its lease is given up, the write-ahead log is folded in.
    async fn close(&self, me: InstanceId) -> Result<()>;
}
