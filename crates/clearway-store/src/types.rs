//! What goes into the store's transactions and what comes out.

pub use crate::assistants::{
    ASSISTANTS, Assistant, AssistantPut, LatestAssistant, NewAssistant, VERSIONS,
};
pub use crate::items::{
    Condition, FoundItem, ITEMS, Item, ItemPut, ItemScope, ItemSearch, NamespaceQuery, NewItem,
    Test,
};

use std::time::Duration;

use bytes::Bytes;
use clearway_core::channel::State;
use clearway_core::event::{Event, Segment};
use clearway_core::journal::Entry;
use clearway_core::machine::{Checkpoint, Park, Source};
use clearway_core::plan::Frontier;
use clearway_core::run::{Multitask, RunOptions, Usage};
use clearway_core::thread::ThreadKey;
use clearway_core::wait::Spent;
use clearway_core::{
    AttemptRecord, CheckpointId, Failure, InstanceId, Priority, RunId, RunRecord, Status, TaskId,
    ThreadId, Timestamp,
};
use serde_json::{Map, Value};
use uuid::Uuid;

/// A run to be accepted.
#[derive(Clone, Debug)]
pub struct NewRun {
    /// Chosen by the caller, so that a lost answer can be recognised on the second try.
    pub id: RunId,
    pub tenant: String,
    pub owner: Option<String>,
    pub thread: ThreadId,
    /// The dialect's name of the thread, written when the thread is new.
    pub thread_key: Option<ThreadKey>,
    /// Merged into the thread's metadata when the thread is new.
    pub thread_metadata: Map<String, Value>,
    /// Merged into the thread's metadata whether it is new or not.
    pub thread_note: Map<String, Value>,
    /// Refuse (rather than create) when the thread does not exist.
    pub thread_must_exist: bool,
    pub parent: Option<RunId>,
    pub agent: String,
    pub pool: String,
    pub door: String,
    pub priority: Priority,
    pub multitask: Multitask,
    /// With a strategy that ends the active run: what waits on the thread ends likewise.
    pub clears_queue: bool,
    pub metadata: Map<String, Value>,
    pub input: Value,
    /// Latest end, as a duration from acceptance: the store's clock makes it an instant.
    pub deadline: Option<Duration>,
    /// Limit of working time, for background runs.
    pub working_limit: Option<Duration>,
    /// Earliest start, as a delay from acceptance.
    pub delay: Duration,
    pub idempotency: Option<Idempotency>,
    /// The most runs that may wait (blocked or ready) in this pool.
    pub queue_limit: u32,
    /// Data of event 0 (`run.created`), a JSON object.
    pub created_event: Value,
    /// Claim it right away for this instance if nothing is in front of it.
    pub claim: Option<InstanceId>,
    pub options: RunOptions,
}

/// Scope and fingerprint of an `Idempotency-Key`. Kept for 24 hours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idempotency {
    /// Which address it was sent to.
    pub route: String,
    pub key: String,
    /// Hash of the body.
    pub body: [u8; 32],
}

/// Answer to [`crate::Store::create_run`].
#[derive(Debug)]
pub enum Admission {
    /// Accepted and already claimed.
    Claimed(Box<Claim>),
    /// Accepted; it waits.
    Queued(Box<Queued>),
    /// The run id was seen before, or the idempotency key with the same body.
    Existing(Box<RunRecord>),
    /// The pool's queue is full; `queued` runs wait in it.
    QueueFull {
        queued: u32,
    },
    /// Strategy `reject`, and this run is active on the thread.
    ThreadBusy {
        active: RunId,
    },
    ThreadNotFound,
    /// The checkpoint to start from is none of the thread's.
    CheckpointNotFound,
    /// The thread belongs to another tenant or owner.
    ThreadForbidden,
}

#[derive(Debug)]
pub struct Queued {
    pub record: RunRecord,
    /// Event 0.
    pub created: Event,
    pub position: QueuePosition,
    /// The active run that was asked to end (strategy `interrupt`); it may be owned by anybody.
    pub interrupted: Option<Cancelled>,
    /// Runs that waited on the thread and were ended, too ([`NewRun::clears_queue`]).
    pub cleared: Vec<Cancelled>,
}

/// Who is in front of a waiting run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueuePosition {
    /// Ready runs in the pool that would be claimed first, as of now (ageing and fairness may
    /// change it); counted up to 1000. At admission runs that are not due yet count as well.
    pub pool_ahead: u32,
    /// The run that holds the thread, for a blocked run.
    pub thread_active: Option<RunId>,
    /// Blocked runs of the same thread in front of it.
    pub thread_ahead: u32,
}

/// Which runs an instance can take.
#[derive(Clone, Debug)]
pub struct ClaimRequest {
    pub me: InstanceId,
    /// Free slots by pool; pools that are not named are not touched.
    pub slots: Vec<(String, u32)>,
    /// A waiting run gains one priority level per this much waiting.
    pub ageing: Duration,
}

/// A run under a new lease.
#[derive(Clone, Debug)]
pub struct Claim {
    pub record: RunRecord,
    /// The newest delta version on the thread, all branches: new ops number above it.
    pub thread_version: u64,
    /// The checkpoint from which this run goes on: the thread's head, or the run's base while it has
    /// none of its own. A base that was rolled back meanwhile is named, too; it has no state.
    pub head: Option<CheckpointId>,
    /// Event 0, when the claim came with the creation.
    pub created: Option<Event>,
    /// What that checkpoint goes on with.
    pub frontier: Frontier,
    /// Notes of the calls of that frontier, of this run's calls, and signals to the run.
    pub journal: Vec<Entry>,
    /// The head was made by this run: its input is part of the state.
    pub taken_in: bool,
}

/// One fenced commit. Everything in it happens together or not at all.
#[derive(Clone, Debug)]
pub struct StepCommit {
    pub run: RunId,
    pub fence: u32,
    /// The row's `commits` must equal this. One less with the same fence means that this very
    /// commit was applied before and its answer lost: it is acknowledged again.
    pub number: u64,
    /// Events since the last segment sent, output included. Its `first_seq` must be at or below
    /// the row's tail: what is already stored is not stored again.
    pub events: Option<Segment>,
    pub step: i64,
    /// The run's row keeps the names; the checkpoint keeps all of it.
    pub next: Frontier,
    /// New checkpoints with their ids, oldest first. The first one's parent is the thread's head,
    /// or the run's base while it has none of its own; the last becomes the head.
    pub checkpoints: Vec<(CheckpointId, Checkpoint)>,
    /// Journal entries; one that is there already stands.
    pub notes: Vec<Entry>,
    /// Calls whose entries are deleted.
    pub settled: Vec<TaskId>,
    /// Timers that this commit sets.
    pub schedules: Vec<Schedule>,
    pub outcome: StepOutcome,
    /// Totals of the run so far.
    pub spent: Spent,
    /// Working time so far, earlier attempts included.
    pub worked: Duration,
    /// Added to the run's totals.
    pub usage: Usage,
    /// What those are made of.
    pub attempts: Vec<AttemptRecord>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum StepOutcome {
    Continue,
    /// Give the lease back: `ready`, fence raised. Only events and totals are taken from the
    /// commit: step, next nodes and `committed_seq` stay, because the next owner begins after the
    /// last superstep and what was shown since then is void. The next claim is not fruitless.
    Release,
    /// The run is `waiting`: lease and slot are given up, the fence rises. Step, frontier and
    /// `committed_seq` are taken as with `Continue`, without a superstep. If somebody woke the run
    /// since its claim ([`crate::Store::wake`], a child's end), it is `ready` at once. The next
    /// claim is not fruitless.
    Park(Park),
    End {
        status: Status,
        failure: Option<Failure>,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub enum CommitAck {
    Applied {
        /// Somebody wants this run to end.
        cancel_requested: bool,
        /// The run of the same thread that this end made ready.
        promoted: Option<RunId>,
        /// Other runs that are ready because of it: the parent, or this run itself when it parked
        /// and had been woken.
        woken: Vec<RunId>,
        /// Child runs that were told to end, because this one ended without success. Empty when the
        /// commit had been applied before.
        orphans: Vec<Cancelled>,
    },
    /// The lease is gone; nothing was written.
    Fenced,
}

/// Volatile output of one run.
#[derive(Clone, Debug)]
pub struct OutputSegment {
    pub run: RunId,
    pub segment: Segment,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// Everything below `end_seq` is stored.
    Stored { end_seq: u64 },
    /// The lease is gone, or the segment does not touch the tail.
    Refused,
}

/// What became of a request to end a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Cancelled {
    /// It was not running and is cancelled now; `events` end its log.
    Ended {
        record: Box<RunRecord>,
        events: Vec<Event>,
        promoted: Option<RunId>,
    },
    /// It is running; its owner has been told by a flag on the row.
    Requested {
        run: RunId,
        instance: Option<InstanceId>,
    },
    /// It had ended before.
    AlreadyEnded {
        record: Box<RunRecord>,
    },
    NotFound,
}

#[derive(Clone, Debug)]
pub struct Reset {
    pub generation: u32,
    /// Runs that were told to end.
    pub cancelled: Vec<Cancelled>,
}

#[derive(Clone, Debug, Default)]
pub struct Joined {
    /// Runs of dead processes that are ready again.
    pub resumed: u32,
    /// Runs that wait, after that.
    pub waiting: u32,
}

#[derive(Clone, Debug, Default)]
pub struct Renewal {
    /// Runs of this instance that somebody wants to end.
    pub cancel: Vec<RunId>,
    /// All runs that the store thinks this instance executes, with their fences.
    pub owned: Vec<(RunId, u32)>,
}

#[derive(Clone, Debug, Default)]
pub struct Swept {
    /// Runs taken from dead instances, ready again.
    pub taken_over: Vec<RunId>,
    /// Runs that ended without running, with their logs' last events: their deadline passed, or
    /// their parent ended without success.
    pub expired: Vec<(RunRecord, Vec<Event>)>,
    /// Runs that may be claimed now.
    pub ready: bool,
    /// The earliest deadline of a run that is not running, or time at which a parked one goes on.
    pub next_deadline: Option<Timestamp>,
}

/// Which runs to list. All given conditions must hold.
#[derive(Clone, Debug, Default)]
pub struct RunQuery {
    pub tenant: Option<String>,
    pub owner: Option<String>,
    pub statuses: Vec<Status>,
    pub agent: Option<String>,
    pub door: Option<String>,
    pub thread: Option<ThreadId>,
    /// Children of this run.
    pub parent: Option<RunId>,
    /// Runs older than this one.
    pub after: Option<RunId>,
    /// At most this many, at most 1000; 0 means 100.
    pub limit: u32,
}

impl RunQuery {
    /// How many runs one page of the answer holds at most.
    pub fn page_size(&self) -> usize {
        match self.limit {
            0 => 100,
            limit => limit.min(1000) as usize,
        }
    }
}

#[derive(Clone, Debug)]
pub struct RunPage {
    pub runs: Vec<RunRecord>,
    /// Pass as `after` for the next page.
    pub next: Option<RunId>,
}

#[derive(Clone, Debug)]
pub struct ThreadState {
    pub state: State,
    pub checkpoint: CheckpointId,
    pub parent: Option<CheckpointId>,
    /// `None` for a change from outside.
    pub run: Option<RunId>,
    pub step: i64,
    pub source: Source,
    pub frontier: Frontier,
    /// What the calls of the frontier left behind: outputs of finished ones, open questions.
    pub journal: Vec<Entry>,
    pub created_at: Timestamp,
}

/// A checkpoint without its values.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckpointRecord {
    pub id: CheckpointId,
    pub parent: Option<CheckpointId>,
    pub run: Option<RunId>,
    pub step: i64,
    pub source: Source,
    pub frontier: Frontier,
    pub created_at: Timestamp,
}

/// A change of a thread's state from outside any run.
#[derive(Clone, Debug)]
pub struct StateUpdate {
    pub thread: ThreadId,
    /// What the change was made from. When it is the head, nobody else may have moved the head
    /// meanwhile; an earlier checkpoint begins a branch. `None`: the thread has no state yet.
    pub parent: Option<CheckpointId>,
    pub id: CheckpointId,
    pub checkpoint: Checkpoint,
    /// Calls of the old frontier that are not gone on with.
    pub settled: Vec<TaskId>,
    /// Entries copied to the calls of the new frontier.
    pub notes: Vec<Entry>,
    /// What the writer believes to be the head.
    pub expected_head: Option<CheckpointId>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Updated {
    /// It is the head now.
    Done,
    /// A run is active on the thread.
    Busy {
        active: RunId,
    },
    /// The head is another one by now.
    Conflict {
        head: Option<CheckpointId>,
    },
    ThreadNotFound,
    CheckpointNotFound,
}

/// What became of a note for a run that may wait for it.
#[derive(Clone, Debug)]
pub enum Woken {
    /// It was waiting and is ready.
    Ready(Box<RunRecord>),
    /// It runs; its owner is to be told of the entries.
    Running {
        instance: Option<InstanceId>,
    },
    /// It has not begun: it will find the entries.
    Queued,
    Ended(Box<RunRecord>),
    NotFound,
}

/// Whether journal entries were stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Journaled {
    Stored,
    /// The lease is gone.
    Fenced,
}

/// How a run is to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CancelMode {
    /// What it committed stays.
    #[default]
    Keep,
    /// The thread's head goes back to where the run began, and its checkpoints are deleted.
    Rollback,
}

/// A file that a run made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArtifactRecord {
    pub run: RunId,
    pub name: String,
    /// From 1; the same call writing the same name again replaces its version.
    pub version: u32,
    pub task: TaskId,
    pub node: String,
    pub media_type: String,
    pub size_bytes: u64,
    pub sha256: [u8; 32],
    pub created_at: Timestamp,
}

/// A file to be kept.
#[derive(Clone, Debug)]
pub struct NewArtifact {
    pub run: RunId,
    pub fence: u32,
    pub task: TaskId,
    pub node: String,
    pub name: String,
    pub media_type: String,
    pub sha256: [u8; 32],
    pub bytes: Bytes,
    /// The most artifacts that the run may have.
    pub limit: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArtifactStored {
    Stored(ArtifactRecord),
    /// The run has as many as it may.
    TooMany,
    Fenced,
}

/// Whose artifacts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArtifactScope {
    Run(RunId),
    /// Of all runs of a thread that were not rolled back, newest version of each name.
    Thread(ThreadId),
}

/// A run to be started later: once, or again and again.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    pub id: Uuid,
    pub tenant: String,
    pub owner: Option<String>,
    /// Unique per tenant where given: configured crons.
    pub name: Option<String>,
    pub thread: Option<ThreadId>,
    /// Five cron fields; `None` for once.
    pub cron: Option<String>,
    /// IANA name; UTC when `None`.
    pub timezone: Option<String>,
    /// `None` when it is over or switched off.
    pub next_at: Option<Timestamp>,
    /// What to start: the engine's own JSON.
    pub submit: Value,
    /// Only while this is still the thread's head.
    pub only_at: Option<CheckpointId>,
    pub created_at: Timestamp,
    pub last_at: Option<Timestamp>,
    pub last_run: Option<RunId>,
    pub last_error: Option<String>,
}

/// What came of a schedule's time.
#[derive(Clone, Debug)]
pub struct Fired {
    pub id: Uuid,
    /// The `next_at` that was acted on: if it is another one by now, nothing is changed.
    pub at: Timestamp,
    pub next_at: Option<Timestamp>,
    pub run: Option<RunId>,
    pub error: Option<String>,
    /// Delete it: it was for once.
    pub over: bool,
}

/// Which schedules to list.
#[derive(Clone, Debug, Default)]
pub struct ScheduleQuery {
    pub tenant: Option<String>,
    pub thread: Option<ThreadId>,
    /// After this one, in the order of ids.
    pub after: Option<Uuid>,
    /// At most 1000; 0 means 100.
    pub limit: u32,
}

/// A webhook to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    pub id: i64,
    pub run: RunId,
    pub url: String,
    /// Tries so far.
    pub attempt: u32,
    pub created_at: Timestamp,
}

/// What came of a try.
#[derive(Clone, Debug)]
pub enum DeliveryOutcome {
    Done,
    /// Try again after this long.
    Retry {
        after: Duration,
        error: String,
    },
    /// Given up; kept for a week for whoever looks.
    Dead {
        error: String,
    },
}

/// What of a thread's history to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    All,
    /// The newest checkpoints of the head's line.
    Last(u32),
    /// The last checkpoint of each run.
    RunEnds,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    pub checkpoints: u64,
    /// Of deltas, snapshots and blobs that nothing needs any more.
    pub bytes: u64,
}

/// What a thread occupies, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadStorage {
    pub checkpoints: u64,
    pub checkpoint_bytes: u64,
    pub delta_bytes: u64,
    pub snapshot_bytes: u64,
    pub blob_bytes: u64,
    pub log_bytes: u64,
    pub artifact_bytes: u64,
    pub runs: u64,
}

/// Which threads to list, newest change first.
#[derive(Clone, Debug, Default)]
pub struct ThreadQuery {
    pub tenant: Option<String>,
    pub owner: Option<String>,
    pub dialect: Option<String>,
    /// Not changed since.
    pub idle_since: Option<Timestamp>,
    /// The last one of the page before.
    pub after: Option<ThreadId>,
    /// At most 1000; 0 means 100.
    pub limit: u32,
}

/// A stretch of a run's log.
#[derive(Clone, Debug)]
pub struct LogPage {
    pub events: Vec<Event>,
    /// Where the next page starts.
    pub next: u64,
    /// Number after the last stored event, and the run's status at that moment.
    pub end: u64,
    pub status: Status,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolCount {
    pub pool: String,
    pub blocked: u32,
    pub ready: u32,
    pub running: u32,
}

#[derive(Clone, Debug)]
pub struct StoreInfo {
    /// `sqlite` or `memory`.
    pub kind: &'static str,
    pub path: Option<String>,
    pub size_bytes: u64,
    pub disk_free_bytes: Option<u64>,
    /// Whether the last write succeeded; the message says why not.
    pub writable: std::result::Result<(), String>,
    pub schema_version: u32,
}
