//! One suite for every store: whatever a caller can rely on is a case here.
//!
//! A case is a function of a [`Bed`]; [`on_every_store`] makes one test per store of it. What only
//! a file can do (full disks, locks, damage) is tested beside `SqliteStore`.

mod admission;
mod children;
mod claims;
mod commits;
mod differential;
mod ends;
mod journal;
mod knowledge;
mod memories;
mod parking;
mod reading;
mod rollback;
mod state;
mod threads;
mod upkeep;
mod webhooks;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clearway_core::channel::{Op, State};
use clearway_core::event::{Body, Delta as Token, Event, EventKind, Fact, Part, Segment};
use clearway_core::journal::Entry;
use clearway_core::machine::{Checkpoint, Delta, Park, Source};
use clearway_core::plan::{Due, Frontier};
use clearway_core::run::{Multitask, RunOptions, Usage};
use clearway_core::wait::{Spent, WaitKind};
use clearway_core::{
    CheckpointId, Failure, InstanceId, Priority, RunId, RunRecord, Status, TaskId, ThreadId,
    Timestamp,
};
use serde_json::{Map, json};
use uuid::Uuid;

use crate::{
    Admission, CancelMode, Cancelled, Claim, ClaimRequest, CommitAck, LoseTail, ManualClock,
    MemStore, NewRun, OutputSegment, Policy, Queued, Sharing, SqliteOptions, SqliteStore,
    StepCommit, StepOutcome, Store, Woken,
};

/// Makes `memory::case` and `sqlite::case` of each named function.
macro_rules! on_every_store {
    ($($case:ident)*) => {
        mod memory {
            $(
                #[tokio::test]
                async fn $case() {
                    super::$case(crate::conformance::Bed::memory()).await;
                }
            )*
        }
        mod sqlite {
            $(
                #[tokio::test]
                async fn $case() {
                    super::$case(crate::conformance::Bed::sqlite().await).await;
                }
            )*
        }
    };
}
use on_every_store;

/// When tests begin.
pub(crate) const START: Timestamp = Timestamp(1_795_000_000_000);

pub(crate) const AGEING: Duration = Duration::from_secs(30);

pub(crate) const ME: InstanceId = InstanceId(Uuid::from_u128(0xA1));
pub(crate) const OTHER: InstanceId = InstanceId(Uuid::from_u128(0xA2));

/// A store with its clock, and short words for common things.
#[derive(Debug)]
pub(crate) struct Bed {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Arc<ManualClock>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Memory(Arc<MemStore>),
    File(tempfile::TempDir),
}

impl Bed {
    pub(crate) fn memory() -> Self {
        let clock = Arc::new(ManualClock::new(START));
        let store = MemStore::with(clock.clone(), policy(), Sharing::Exclusive);
        let store = Arc::new(store);
        Self { store: store.clone(), clock, kind: Kind::Memory(store) }
    }

    pub(crate) async fn sqlite() -> Self {
        let clock = Arc::new(ManualClock::new(START));
        let directory = scratch();
        let store = Arc::new(open(directory.path(), &clock).await);
        Self { store, clock, kind: Kind::File(directory) }
    }

    /// The process is killed and another one starts: only what was acknowledged is there.
    pub(crate) async fn restart(&mut self) {
        match &mut self.kind {
            Kind::Memory(store) => {
                *store = Arc::new(store.fork(LoseTail::No));
                self.store = store.clone();
            }
            Kind::File(directory) => {
                // The old store never hears of its death; its files as they are now are what a
                // killed process would leave.
                let copy = scratch();
                for name in ["clearway.db", "clearway.db-wal"] {
                    std::fs::copy(directory.path().join(name), copy.path().join(name)).unwrap();
                }
                self.store = Arc::new(open(copy.path(), &self.clock).await);
                *directory = copy;
            }
        }
    }

    pub(crate) fn advance(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    pub(crate) fn now(&self) -> Timestamp {
        clearway_core::Clock::now(&*self.clock)
    }

    pub(crate) async fn create(&self, new: NewRun) -> Admission {
        self.store.create_run(new).await.unwrap()
    }

    /// Accepts a run that has to wait.
    pub(crate) async fn queued(&self, new: NewRun) -> Queued {
        match self.create(new).await {
            Admission::Queued(queued) => *queued,
            other => panic!("not queued: {other:?}"),
        }
    }

    /// Accepts a run that starts at once.
    pub(crate) async fn started(&self, new: NewRun) -> Owner {
        match self.create(NewRun { claim: Some(ME), ..new }).await {
            Admission::Claimed(claim) => Owner::new(*claim),
            other => panic!("not claimed: {other:?}"),
        }
    }

    pub(crate) async fn claim(&self, slots: u32) -> Vec<Claim> {
        self.claim_in("chat", slots).await
    }

    pub(crate) async fn claim_in(&self, pool: &str, slots: u32) -> Vec<Claim> {
        let request =
            ClaimRequest { me: ME, slots: vec![(pool.to_owned(), slots)], ageing: AGEING };
        self.store.claim(request).await.unwrap()
    }

    /// The owner of a run that goes on with what its thread has.
    pub(crate) async fn owner(&self, claim: Claim) -> Owner {
        let found = match claim.head {
            Some(_) => self.store.state(claim.record.thread, claim.head).await.unwrap(),
            None => None,
        };
        let state = found.map_or_else(State::new, |found| found.state);
        Owner::with_state(claim, state)
    }

    /// As [`Bed::started`], on a thread that may have state.
    pub(crate) async fn goes_on(&self, new: NewRun) -> Owner {
        let Owner { claim, .. } = self.started(new).await;
        self.owner(claim).await
    }

    pub(crate) async fn wake(&self, run: RunId, entries: &[Entry]) -> Woken {
        self.store.wake(run, entries.to_vec()).await.unwrap()
    }

    /// Claims the one run that is expected next.
    pub(crate) async fn claim_one(&self) -> Owner {
        let mut claims = self.claim(1).await;
        assert_eq!(claims.len(), 1, "one run should have been ready");
        Owner::new(claims.remove(0))
    }

    pub(crate) async fn run(&self, run: RunId) -> RunRecord {
        self.store.run(run).await.unwrap().expect("the run exists")
    }

    pub(crate) async fn status(&self, run: RunId) -> Status {
        self.run(run).await.status
    }

    /// A run's whole log.
    pub(crate) async fn log(&self, run: RunId) -> Vec<Event> {
        self.store.read_log(run, 0, usize::MAX).await.unwrap().events
    }

    pub(crate) async fn kinds(&self, run: RunId) -> Vec<&'static str> {
        self.log(run).await.iter().map(|event| event.kind().as_str()).collect()
    }

    pub(crate) async fn commit(&self, commit: StepCommit) -> CommitAck {
        self.store.commit(commit).await.unwrap()
    }

    pub(crate) async fn cancel(&self, run: RunId) -> Cancelled {
        self.store.cancel_run(run, "ann", CancelMode::Keep).await.unwrap()
    }

    pub(crate) async fn head(&self, thread: ThreadId) -> Option<crate::ThreadState> {
        self.store.state(thread, None).await.unwrap()
    }

    pub(crate) async fn sweep(&self) -> crate::Swept {
        self.store.sweep(ME).await.unwrap()
    }

    /// `(blocked, ready, running)` of the usual pool.
    pub(crate) fn counts(&self) -> (u32, u32, u32) {
        let counts = self.store.pool_counts();
        let chat = counts.iter().find(|count| count.pool == "chat");
        chat.map_or((0, 0, 0), |count| (count.blocked, count.ready, count.running))
    }
}

/// A directory for one test; in memory where the system has such a place, because these tests are
/// about what is written and not about how long a disk takes.
pub(crate) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Tenant `heavy` has the weight of two.
fn policy() -> Policy {
    Policy { weights: [("heavy".to_owned(), 2)].into(), ..Policy::default() }
}

pub(crate) async fn open(directory: &Path, clock: &Arc<ManualClock>) -> SqliteStore {
    let options = SqliteOptions { policy: policy(), ..SqliteOptions::default() };
    SqliteStore::open(directory, options, clock.clone()).await.unwrap()
}

pub(crate) const fn run_id(number: u128) -> RunId {
    RunId(Uuid::from_u128(number))
}

pub(crate) const fn thread_id(number: u128) -> ThreadId {
    ThreadId(Uuid::from_u128(0x7000 + number))
}

/// Run `number` on thread `thread`, with nothing special.
pub(crate) fn new_run(number: u128, thread: u128) -> NewRun {
    NewRun {
        id: run_id(number),
        tenant: "acme".to_owned(),
        owner: None,
        thread: thread_id(thread),
        thread_key: None,
        thread_metadata: Map::new(),
        thread_note: Map::new(),
        thread_must_exist: false,
        parent: None,
        agent: "agent".to_owned(),
        pool: "chat".to_owned(),
        door: "runs".to_owned(),
        priority: Priority::NORMAL,
        multitask: Multitask::Enqueue,
        clears_queue: false,
        metadata: Map::new(),
        input: json!({"messages": []}),
        deadline: None,
        working_limit: None,
        delay: Duration::ZERO,
        idempotency: None,
        queue_limit: 1000,
        created_event: json!({"agent": "agent"}),
        claim: None,
        options: RunOptions::default(),
    }
}

/// What an engine keeps of a run it executes.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    pub(crate) claim: Claim,
    pub(crate) run: RunId,
    pub(crate) fence: u32,
    /// Number of the next event.
    pub(crate) seq: u64,
    /// Number of the next commit.
    pub(crate) number: u64,
    pub(crate) step: i64,
    pub(crate) state: State,
    checkpoints: u128,
}

impl Owner {
    /// On a thread without state.
    pub(crate) fn new(claim: Claim) -> Self {
        let mut state = State::new();
        state.raise_version(claim.thread_version);
        Self::with_state(claim, state)
    }

    pub(crate) fn with_state(claim: Claim, mut state: State) -> Self {
        state.raise_version(claim.thread_version);
        let record = &claim.record;
        Self {
            run: record.id,
            fence: record.fence,
            seq: record.next_seq,
            number: record.commits,
            step: record.step,
            state,
            checkpoints: 0,
            claim,
        }
    }

    /// The next facts of its log as one segment.
    pub(crate) fn facts(&mut self, count: u64) -> Segment {
        let segment = facts(self.seq, count, self.fence);
        self.seq += count;
        segment
    }

    /// The next tokens of its log as output.
    pub(crate) fn tokens(&mut self, count: u64) -> OutputSegment {
        let segment = tokens(self.seq, count, self.fence);
        self.seq += count;
        OutputSegment { run: self.run, segment }
    }

    /// A commit with one fact and nothing else.
    pub(crate) fn commit(&mut self, outcome: StepOutcome) -> StepCommit {
        let events = Some(self.facts(1));
        let number = self.number;
        self.number += 1;
        StepCommit {
            run: self.run,
            fence: self.fence,
            number,
            events,
            step: self.step,
            next: Frontier::default(),
            checkpoints: Vec::new(),
            notes: Vec::new(),
            settled: Vec::new(),
            schedules: Vec::new(),
            outcome,
            spent: Spent::default(),
            worked: Duration::ZERO,
            usage: Usage::default(),
            attempts: Vec::new(),
        }
    }

    /// A superstep that makes these writes.
    pub(crate) fn step(&mut self, writes: &[(&str, Op)]) -> StepCommit {
        let checkpoint = self.checkpoint(writes);
        let mut commit = self.commit(StepOutcome::Continue);
        commit.next = checkpoint.1.next.clone();
        commit.checkpoints = vec![checkpoint];
        commit
    }

    pub(crate) fn checkpoint(&mut self, writes: &[(&str, Op)]) -> (CheckpointId, Checkpoint) {
        self.step += 1;
        self.checkpoints += 1;
        let id = self.run.0.as_u128() << 64 | u128::from(self.fence) << 32 | self.checkpoints;
        let deltas = writes
            .iter()
            .map(|(channel, op)| {
                let previous = self.state.channel_version(channel);
                let version = self.state.apply(channel, op.clone());
                Delta { channel: (*channel).into(), version, previous, op: op.clone() }
            })
            .collect();
        let next = frontier(self.run, self.step + 1, &["more"]);
        let checkpoint = Checkpoint { step: self.step, source: Source::Loop, next, deltas };
        (CheckpointId(Uuid::from_u128(id)), checkpoint)
    }

    /// It waits for `kind`.
    pub(crate) fn park(&mut self, kind: WaitKind) -> StepCommit {
        self.park_as(Park { kind, detail: "it".to_owned(), wake_at: None, on_child: false })
    }

    pub(crate) fn park_as(&mut self, park: Park) -> StepCommit {
        let next = frontier(self.run, self.step + 1, &["more"]);
        StepCommit { next, ..self.commit(StepOutcome::Park(park)) }
    }

    /// The call that is due after its last superstep.
    pub(crate) fn task(&self) -> TaskId {
        TaskId::of(self.run, self.step + 1, "more", 0)
    }

    pub(crate) fn end(&mut self, status: Status) -> StepCommit {
        let failure = (status != Status::Success)
            .then(|| Failure::new(clearway_core::Code::Internal, "it broke"));
        self.commit(StepOutcome::End { status, failure })
    }
}

/// These nodes are due in superstep `step` of a run.
pub(crate) fn frontier(run: RunId, step: i64, nodes: &[&str]) -> Frontier {
    let due = nodes.iter().map(|&node| Due {
        task: TaskId::of(run, step, node, 0),
        node: node.into(),
        payload: None,
    });
    Frontier { due: due.collect(), ..Frontier::default() }
}

pub(crate) fn note(task: TaskId, key: &str, data: serde_json::Value) -> Entry {
    Entry { task, key: key.to_owned(), data }
}

pub(crate) fn facts(first: u64, count: u64, fence: u32) -> Segment {
    let body = |seq: u64| Body::Fact(Fact::new(EventKind::Custom, &json!({"seq": seq})));
    events(first, count, fence, body)
}

pub(crate) fn tokens(first: u64, count: u64, fence: u32) -> Segment {
    let message = Uuid::from_u128(9);
    let body = |seq: u64| Body::Delta(Token::new(message, Part::Text, &format!("t{seq} ")));
    events(first, count, fence, body)
}

fn events(first: u64, count: u64, fence: u32, body: impl Fn(u64) -> Body) -> Segment {
    let events: Vec<Event> =
        (first..first + count).map(|seq| Event::new(seq, fence, START, body(seq))).collect();
    Segment::encode(&events).expect("at least one event")
}

pub(crate) fn append(text: &str) -> Op {
    Op::Append(vec![json!(text)])
}

pub(crate) const APPLIED: CommitAck = acknowledged(false, None);

pub(crate) const fn acknowledged(cancel_requested: bool, promoted: Option<RunId>) -> CommitAck {
    CommitAck::Applied { cancel_requested, promoted, woken: Vec::new(), orphans: Vec::new() }
}
