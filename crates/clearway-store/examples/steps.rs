//! Measures the embedded store: `cargo run --release -p clearway-store --example steps [RUNS [AT_ONCE]]`.
//!
//! Not a benchmark suite: it prints what one machine does with trivial runs of five supersteps, with
//! volatile output of many streams, and with claims out of a deep queue. `STORE_DIR` says on which
//! disk; what is in that directory is deleted.

#![expect(clippy::print_stdout, reason = "it is a program that prints")]
#![expect(clippy::unwrap_used, reason = "a failure here has nobody to be told to but the console")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use clearway_core::channel::{Op, State};
use clearway_core::event::{Body, Delta as Token, Event, EventKind, Fact, Part, Segment};
use clearway_core::machine::{Checkpoint, Delta, Source};
use clearway_core::plan::{Due, Frontier};
use clearway_core::run::{Multitask, RunOptions, Usage};
use clearway_core::wait::Spent;
use clearway_core::{
    CheckpointId, InstanceId, Priority, RunId, Status, TaskId, ThreadId, Timestamp,
};
use clearway_store::{
    Admission, Claim, ClaimRequest, CommitAck, NewRun, OutputSegment, SqliteOptions, SqliteStore,
    StepCommit, StepOutcome, Store, SystemClock,
};
use serde_json::{Map, json};
use tokio::task::JoinSet;
use uuid::Uuid;

const ME: InstanceId = InstanceId(Uuid::from_u128(1));
const STEPS: u64 = 5;

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u64>().unwrap());
    let runs = arguments.next().unwrap_or(20_000);
    let at_once = arguments.next().unwrap_or(256);
    let directory = std::env::var_os("STORE_DIR")
        .map_or_else(|| std::env::temp_dir().join("clearway-steps"), Into::into);
    let _ = std::fs::remove_dir_all(&directory);
    let options = SqliteOptions::default();
    let store = SqliteStore::open(&directory, options, Arc::new(SystemClock)).await.unwrap();
    let store: Arc<dyn Store> = Arc::new(store);
    store.join(ME).await.unwrap();

    steps(&store, runs, at_once).await;
    output(&store, 1000, 200).await;
    claims(&store, 50_000).await;

    let info = store.info().await.unwrap();
    println!("file: {:.1} MB", info.size_bytes as f64 / 1e6);
    store.close(ME).await.unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
}

/// Durable supersteps of trivial runs.
async fn steps(store: &Arc<dyn Store>, runs: u64, at_once: u64) {
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for task in 0..at_once {
        let store = store.clone();
        tasks.spawn(async move {
            let mut slowest = Duration::ZERO;
            for number in (task..runs).step_by(at_once as usize) {
                slowest = slowest.max(one_run(&*store, u128::from(number) + 1).await);
            }
            slowest
        });
    }
    let slowest = tasks.join_all().await.into_iter().max().unwrap();
    let took = start.elapsed().as_secs_f64();
    println!(
        "{runs} runs of {STEPS} supersteps, {at_once} at once: {:.0} supersteps/s, {:.0} transactions/s, \
         slowest {:.1} ms",
        (runs * STEPS) as f64 / took,
        (runs * (STEPS + 1)) as f64 / took,
        slowest.as_secs_f64() * 1e3
    );
}

/// Creates, steps and ends one run; says what its slowest transaction took.
async fn one_run(store: &dyn Store, number: u128) -> Duration {
    let mut slowest = Duration::ZERO;
    let begun = Instant::now();
    let mut claim = create(store, number, Some(ME)).await.unwrap();
    slowest = slowest.max(begun.elapsed());
    let mut state = State::new();
    for step in 0..STEPS {
        let commit = superstep(&mut claim, &mut state, step);
        let begun = Instant::now();
        let ack = store.commit(commit).await.unwrap();
        slowest = slowest.max(begun.elapsed());
        assert!(matches!(ack, CommitAck::Applied { .. }));
    }
    slowest
}

fn superstep(claim: &mut Claim, state: &mut State, step: u64) -> StepCommit {
    let record = &mut claim.record;
    let op = Op::Append(vec![json!({"step": step, "text": "a little something"})]);
    let previous = state.channel_version("log");
    let version = state.apply("log", op.clone());
    let delta = Delta { channel: "log".into(), version, previous, op };
    let mut next = Frontier::default();
    if step + 1 < STEPS {
        let task = TaskId::of(record.id, step as i64 + 1, "again", 0);
        next.due.push(Due { task, node: "again".into(), payload: None });
    }
    let checkpoint = Checkpoint {
        step: step as i64,
        source: Source::Loop,
        next: next.clone(),
        deltas: vec![delta],
    };
    let id = record.id.0.as_u128() << 32 | u128::from(step);
    let seq = record.next_seq;
    let fact = |seq, kind| {
        Event::new(
            seq,
            1,
            Timestamp(0),
            Body::Fact(Fact::new(kind, &json!({"node": "n", "step": step}))),
        )
    };
    let events = [fact(seq, EventKind::NodeStarted), fact(seq + 1, EventKind::NodeCompleted)];
    record.next_seq += 2;
    let outcome = if step + 1 == STEPS {
        StepOutcome::End { status: Status::Success, failure: None }
    } else {
        StepOutcome::Continue
    };
    StepCommit {
        run: record.id,
        fence: record.fence,
        number: step,
        events: Segment::encode(&events),
        step: step as i64,
        next,
        checkpoints: vec![(CheckpointId(Uuid::from_u128(id)), checkpoint)],
        notes: Vec::new(),
        settled: Vec::new(),
        schedules: Vec::new(),
        outcome,
        spent: Spent::default(),
        worked: Duration::from_millis(1),
        usage: Usage::default(),
    }
}

/// Volatile output of `streams` runs, all in one call per round.
async fn output(store: &Arc<dyn Store>, streams: u128, rounds: u64) {
    for number in 0..streams {
        create(&**store, 1_000_000 + number, Some(ME)).await.unwrap();
    }
    let message = Uuid::from_u128(7);
    let start = Instant::now();
    for round in 0..rounds {
        let output = (0..streams)
            .map(|number| {
                let tokens = [0, 1, 2].map(|token| {
                    let body = Body::Delta(Token::new(message, Part::Text, "token "));
                    Event::new(1 + round * 3 + token, 1, Timestamp(0), body)
                });
                let segment = Segment::encode(&tokens).unwrap();
                OutputSegment { run: RunId(Uuid::from_u128(1_000_000 + number)), segment }
            })
            .collect();
        store.append(output).await.unwrap();
    }
    let segments = streams as f64 * rounds as f64;
    println!(
        "output of {streams} streams: {:.1} us per segment",
        start.elapsed().as_secs_f64() * 1e6 / segments
    );
}

/// Claims out of a deep queue of many tenants.
async fn claims(store: &Arc<dyn Store>, depth: u128) {
    let mut tasks = JoinSet::new();
    for task in 0..256 {
        let store = store.clone();
        tasks.spawn(async move {
            for number in (task..depth).step_by(256) {
                create(&*store, 2_000_000 + number, None).await;
            }
        });
    }
    tasks.join_all().await;
    let mut slowest = Duration::ZERO;
    let start = Instant::now();
    const ROUNDS: u32 = 50;
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        let slots = vec![("queue".to_owned(), 32)];
        let request = ClaimRequest { me: ME, slots, ageing: Duration::from_secs(30) };
        assert_eq!(store.claim(request).await.unwrap().len(), 32);
        slowest = slowest.max(begun.elapsed());
    }
    println!(
        "claims of 32 out of {depth} waiting runs of 200 tenants: {:.1} ms, slowest {:.1} ms",
        start.elapsed().as_secs_f64() * 1e3 / f64::from(ROUNDS),
        slowest.as_secs_f64() * 1e3
    );
}

/// A run on a thread of its own; claimed, or else left waiting in the pool `queue`.
async fn create(store: &dyn Store, number: u128, claim: Option<InstanceId>) -> Option<Claim> {
    let new = NewRun {
        id: RunId(Uuid::from_u128(number)),
        tenant: if claim.is_some() { "t".to_owned() } else { format!("t{}", number % 200) },
        owner: None,
        thread: ThreadId(Uuid::from_u128(number)),
        thread_key: None,
        thread_metadata: Map::new(),
        thread_note: Map::new(),
        thread_must_exist: false,
        parent: None,
        agent: "agent".to_owned(),
        pool: if claim.is_some() { "chat".to_owned() } else { "queue".to_owned() },
        door: "runs".to_owned(),
        priority: Priority::NORMAL,
        multitask: Multitask::Enqueue,
        clears_queue: false,
        metadata: Map::new(),
        input: json!({"messages": [{"type": "human", "content": "hello"}]}),
        deadline: Some(Duration::from_secs(120)),
        working_limit: None,
        delay: Duration::ZERO,
        idempotency: None,
        queue_limit: u32::MAX,
        created_event: json!({"agent": "agent"}),
        claim,
        options: RunOptions::default(),
    };
    match store.create_run(new).await.unwrap() {
        Admission::Claimed(claim) => Some(*claim),
        Admission::Queued(_) => None,
        other => panic!("not accepted: {other:?}"),
    }
}
