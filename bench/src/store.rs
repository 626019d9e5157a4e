//! The store alone: what one machine does below the server, in this process and on this disk.
//!
//! `store` measures trivial supersteps and volatile output; `claims` a deep queue; `history` whether finished runs in
//! the file cost anything; `fairness` who gets the next slot. None of them involves HTTP, a provider or the engine.
//!
//! What must stay true: everything goes through the `Store` trait, as the engine's does.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clearway_core::channel::{Op, State};
use clearway_core::event::{Body, Event, EventKind, Fact, Segment};
use clearway_core::machine::{Checkpoint, Delta, Source};
use clearway_core::plan::{Due, Frontier};
use clearway_core::run::{Multitask, RunOptions, Usage};
use clearway_core::wait::Spent;
use clearway_core::{
    CheckpointId, InstanceId, Priority, RunId, Status, TaskId, ThreadId, Timestamp,
};
use clearway_store::{
    Admission, Claim, ClaimRequest, CommitAck, NewRun, SqliteOptions, SqliteStore, StepCommit,
    StepOutcome, Store, SystemClock,
};
use serde_json::{Map, json};
use tempfile::TempDir;
use tokio::task::JoinSet;
use uuid::Uuid;

pub(crate) mod claims;
pub(crate) mod fairness;
pub(crate) mod history;
pub(crate) mod raw;

const ME: InstanceId = InstanceId(Uuid::from_u128(1));
const AGEING: Duration = Duration::from_secs(30);

/// Where the file is to be.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Disk {
    /// A folder on the disk to measure; without it the system's folder for temporary files.
    #[arg(long, value_name = "DIR")]
    disk: Option<PathBuf>,
}

/// An open store in a folder of its own, which goes when this does.
#[derive(Debug)]
struct Opened {
    store: Arc<dyn Store>,
    folder: TempDir,
}

impl Opened {
    async fn new(disk: &Disk) -> Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("clearway-store-");
        let folder = match &disk.disk {
            Some(disk) => builder.tempdir_in(disk)?,
            None => builder.tempdir()?,
        };
        let store =
            SqliteStore::open(folder.path(), SqliteOptions::default(), Arc::new(SystemClock));
        let store: Arc<dyn Store> = Arc::new(store.await?);
        store.join(ME).await?;
        Ok(Self { store, folder })
    }

    async fn close(self) -> Result<u64> {
        let size = self.store.info().await?.size_bytes;
        self.store.close(ME).await?;
        drop(self.folder);
        Ok(size)
    }
}

/// A run on a thread of its own.
struct Wanted<'a> {
    number: u128,
    tenant: &'a str,
    pool: &'a str,
    priority: Priority,
    /// Take it up at once.
    claim: bool,
}

impl Wanted<'_> {
    async fn create(self, store: &dyn Store) -> Result<Option<Claim>> {
        let new = NewRun {
            id: RunId(Uuid::from_u128(self.number)),
            tenant: self.tenant.to_owned(),
            owner: None,
            thread: ThreadId(Uuid::from_u128(self.number)),
            thread_key: None,
            thread_metadata: Map::new(),
            thread_must_exist: false,
            parent: None,
            agent: "agent".to_owned(),
            pool: self.pool.to_owned(),
            door: "runs".to_owned(),
            priority: self.priority,
            multitask: Multitask::Enqueue,
            metadata: Map::new(),
            thread_note: Map::new(),
            clears_queue: false,
            input: json!({"messages": [{"type": "human", "content": "hello"}]}),
            deadline: Some(Duration::from_secs(3600)),
            working_limit: None,
            delay: Duration::ZERO,
            idempotency: None,
            queue_limit: u32::MAX,
            created_event: json!({"agent": "agent"}),
            claim: self.claim.then_some(ME),
            options: RunOptions::default(),
        };
        match store.create_run(new).await? {
            Admission::Claimed(claim) => Ok(Some(*claim)),
            Admission::Queued(_) => Ok(None),
            other => bail!("not accepted: {other:?}"),
        }
    }
}

async fn claim(store: &dyn Store, pool: &str, slots: u32) -> Result<Vec<Claim>> {
    let request = ClaimRequest { me: ME, slots: vec![(pool.to_owned(), slots)], ageing: AGEING };
    Ok(store.claim(request).await?)
}

/// Commits superstep `step` of `steps`; the last one ends the run.
async fn commit(
    store: &dyn Store,
    claim: &mut Claim,
    state: &mut State,
    step: u64,
    steps: u64,
) -> Result<()> {
    let acked = store.commit(superstep(claim, state, step, steps)).await?;
    match acked {
        CommitAck::Applied { .. } => Ok(()),
        CommitAck::Fenced => bail!("fenced, although nobody else is here"),
    }
}

fn superstep(claim: &mut Claim, state: &mut State, step: u64, steps: u64) -> StepCommit {
    let record = &mut claim.record;
    let op = Op::Append(vec![json!({"step": step, "text": "a little something"})]);
    let previous = state.channel_version("log");
    let version = state.apply("log", op.clone());
    let delta = Delta { channel: "log".into(), version, previous, op };
    let mut next = Frontier::default();
    let number = step as i64;
    if step + 1 < steps {
        let task = TaskId::of(record.id, number + 1, "again", 0);
        next.due.push(Due { task, node: "again".into(), payload: None });
    }
    let checkpoint =
        Checkpoint { step: number, source: Source::Loop, next: next.clone(), deltas: vec![delta] };
    let id = record.id.0.as_u128() << 32 | u128::from(step);
    let seq = record.next_seq;
    let fact = |seq, kind| {
        let data = json!({"node": "n", "step": step});
        Event::new(seq, record.fence, Timestamp(0), Body::Fact(Fact::new(kind, &data)))
    };
    let events = [fact(seq, EventKind::NodeStarted), fact(seq + 1, EventKind::NodeCompleted)];
    record.next_seq += 2;
    let outcome = if step + 1 == steps {
        StepOutcome::End { status: Status::Success, failure: None }
    } else {
        StepOutcome::Continue
    };
    StepCommit {
        run: record.id,
        fence: record.fence,
        number: step,
        events: Segment::encode(&events),
        step: number,
        next,
        checkpoints: vec![(CheckpointId(Uuid::from_u128(id)), checkpoint)],
        notes: Vec::new(),
        settled: Vec::new(),
        schedules: Vec::new(),
        outcome,
        spent: Spent::default(),
        worked: Duration::from_millis(1),
        usage: Usage::default(),
        attempts: Vec::new(),
    }
}

/// `count` numbers from `from` on, worked off by `at_once` tasks; what each task makes of its own.
async fn spread<T: Send + 'static, F>(
    from: u128,
    count: u64,
    at_once: u64,
    work: impl Fn(Vec<u128>) -> F,
) -> Result<Vec<T>>
where
    F: Future<Output = Result<T>> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    for task in 0..at_once.min(count) {
        let numbers = (task..count).step_by(at_once as usize);
        tasks.spawn(work(numbers.map(|n| from + u128::from(n)).collect()));
    }
    let mut all = Vec::new();
    while let Some(done) = tasks.join_next().await {
        all.push(done.context("a task broke")??);
    }
    Ok(all)
}
