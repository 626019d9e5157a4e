//! An engine over the in-memory store and the simulator, on paused time and without a socket.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use clearway_core::channel::Op;
use clearway_core::event::{Body, Event, EventKind, Part};
use clearway_core::journal::Entry;
use clearway_core::plan::MESSAGES;
use clearway_core::run::Budget;
use clearway_core::thread::{ThreadKey, ThreadRecord};
use clearway_core::{
    CheckpointId, Clock, InstanceId, Priority, RunId, RunRecord, Status, ThreadId, Timestamp,
};
use clearway_engine::chat::{ChatNode, ChatOptions, human_input};
use clearway_engine::upstream::{
    Config, Dial, DialError, DialPhase, Endpoint, Io, ModelConfig, ProviderConfig, Upstream,
};
use clearway_engine::{
    Agent, Agents, Engine, From, Kind, Limits, Node, Options, PoolOptions, Store, Submit,
};
use clearway_sim::Sim;
use clearway_store::Result as StoreResult;
use clearway_store::*;
use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

/// The wall clock of paused time.
#[derive(Debug)]
pub(crate) struct TestClock {
    start: tokio::time::Instant,
}

impl TestClock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { start: tokio::time::Instant::now() })
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(1_795_000_000_000).plus(self.start.elapsed())
    }
}

/// Reaches the simulator through memory.
#[derive(Debug)]
struct SimDial {
    sim: Sim,
    connections: TaskTracker,
}

impl Dial for SimDial {
    fn dial<'a>(
        &'a self,
        _endpoint: &'a Endpoint,
        _report: &'a (dyn Fn(DialPhase) + Sync),
    ) -> BoxFuture<'a, Result<Box<dyn Io>, DialError>> {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        drop(self.connections.spawn(self.sim.serve_connection(theirs)));
        Box::pin(async move { Ok(Box::new(ours) as Box<dyn Io>) })
    }
}

/// Models by name; the part behind `+` of the provider's name chooses a fault of the simulator.
pub(crate) const MODELS: &[(&str, &str)] =
    &[("good", "m"), ("silent", "m+no_answer"), ("stalls", "m+stall:5"), ("drips", "m+drip:10000")];

pub(crate) fn upstream(sim: &Sim, concurrent: usize) -> Upstream {
    let mut provider = ProviderConfig::new("sim", Endpoint::parse("http://sim/v1").unwrap());
    provider.dial = Some("sim".to_owned());
    provider.limits.concurrent = concurrent;
    let models =
        MODELS.iter().map(|(name, model)| ModelConfig::new(*name, "sim", *model)).collect();
    let config = Config { providers: vec![provider], models, clock: None };
    let dial: Arc<dyn Dial> =
        Arc::new(SimDial { sim: sim.clone(), connections: TaskTracker::new() });
    Upstream::new(config, HashMap::from([("sim".to_owned(), dial)])).unwrap()
}

pub(crate) fn sim() -> Sim {
    Sim::new(clearway_sim::Options {
        ttft: Duration::from_millis(200),
        tokens: Some(30),
        token_interval: Duration::from_millis(20),
        ..clearway_sim::Options::default()
    })
}

pub(crate) fn chat_agent(name: &str, model: &str, pool: &str) -> (String, Arc<Agent>) {
    let options = ChatOptions {
        model: model.to_owned(),
        system: Arc::new(|_| Ok("You answer.".to_owned())),
        history_tokens: 4000,
        params: serde_json::Map::new(),
    };
    let node: Arc<dyn Node> = Arc::new(ChatNode::new(options));
    let agent = Agent { pool: pool.to_owned(), ..Agent::single(name, "agent", "model", node) };
    (name.to_owned(), Arc::new(agent))
}

pub(crate) fn options(slots: u32, queue: u32) -> Options {
    Options {
        pools: vec![PoolOptions::new("chat", slots, queue)],
        limits: Limits::default(),
        ..Options::default()
    }
}

pub(crate) async fn engine(
    store: Arc<dyn Store>,
    sim: &Sim,
    options: Options,
    clock: Arc<TestClock>,
) -> Engine {
    let agents = MODELS.iter().map(|(model, _)| chat_agent(model, model, "chat"));
    Engine::start(options, store, upstream(sim, 64), Agents::new(agents), clock).await.unwrap()
}

pub(crate) fn turn(agent: &str, conversation: &str, text: &str) -> Submit {
    let key = ThreadKey::new("test", &["user", conversation]);
    Submit {
        tenant: "default".to_owned(),
        owner: None,
        thread: key.thread_id("default"),
        thread_key: Some(key),
        thread_metadata: serde_json::Map::new(),
        thread_note: serde_json::Map::new(),
        thread_must_exist: false,
        agent: agent.to_owned(),
        door: "test",
        input: human_input(text, &format!("human-{text}")),
        metadata: serde_json::Map::new(),
        multitask: None,
        clears_queue: false,
        priority: None,
        kind: Kind::Turn { deadline: None },
        idempotency: None,
        cancel_if_left: false,
        id: None,
        parent: None,
        delay: Duration::ZERO,
        options: clearway_core::run::RunOptions::default(),
    }
}

/// The conversation of a thread as `(type, text)`.
pub(crate) async fn conversation(engine: &Engine, thread: ThreadId) -> Vec<(String, String)> {
    let state = engine.thread_state(thread).await.unwrap().unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let messages = state.state.list(MESSAGES).iter();
    messages.map(|message| (text(&message["type"]), text(&message["content"]))).collect()
}

/// The whole stored log of an ended run; its numbers must be 0, 1, 2, …
pub(crate) async fn whole_log(engine: &Engine, run: RunId) -> Vec<Event> {
    let mut subscription = engine.subscribe(run, From::Start).await.unwrap();
    let mut events = Vec::new();
    while let Some(batch) = subscription.next().await.unwrap() {
        events.extend(batch);
    }
    for (at, event) in events.iter().enumerate() {
        assert_eq!(event.seq, at as u64, "I3: the log has no gap");
    }
    assert_eq!(events.last().unwrap().kind(), EventKind::RunEnded);
    assert_eq!(events.iter().filter(|event| event.kind() == EventKind::RunEnded).count(), 1);
    events
}

/// What a client that heeds resets shows in the end.
#[derive(Default, Debug)]
pub(crate) struct Reader {
    pub(crate) seen: Vec<Event>,
}

impl Reader {
    pub(crate) fn take(&mut self, events: Vec<Event>) {
        for event in events {
            if event.kind() == EventKind::OutputReset {
                let Body::Fact(fact) = &event.body else { unreachable!() };
                let after = fact.json()["after"].as_u64();
                self.seen.retain(|seen| after.is_some_and(|after| seen.seq <= after));
            }
            self.seen.push(event);
        }
    }

    pub(crate) fn last_id(&self) -> Option<clearway_core::EventId> {
        self.seen.last().map(Event::id)
    }

    pub(crate) fn text(&self) -> String {
        let deltas = self.seen.iter().filter_map(|event| match &event.body {
            Body::Delta(delta) if delta.part == Part::Text => Some(delta.text()),
            _ => None,
        });
        deltas.collect()
    }
}

/// A store whose process dies at one call: that call happens (or does not), and neither it nor any
/// later one is ever answered.
#[derive(Debug)]
pub(crate) struct Dying {
    inner: Arc<MemStore>,
    at: u64,
    /// Whether the last call still happens.
    last_happens: bool,
    calls: AtomicU64,
    dead: Arc<tokio::sync::Notify>,
    tail: Mutex<()>,
}

impl Dying {
    pub(crate) fn new(inner: Arc<MemStore>, at: u64, last_happens: bool) -> Self {
        Self {
            inner,
            at,
            last_happens,
            calls: AtomicU64::new(0),
            dead: Arc::default(),
            tail: Mutex::default(),
        }
    }

    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    pub(crate) fn death(&self) -> Arc<tokio::sync::Notify> {
        self.dead.clone()
    }

    async fn pass<T>(&self, call: impl Future<Output = StoreResult<T>>) -> StoreResult<T> {
        let number = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        drop(self.tail.lock().unwrap());
        if number > self.at || (number == self.at && !self.last_happens) {
            self.dead.notify_one();
            return std::future::pending().await;
        }
        let answer = call.await;
        if number == self.at {
            self.dead.notify_one();
            return std::future::pending().await;
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
    cancel_run(run: RunId, by: &str, mode: CancelMode) -> Cancelled;
    journal(run: RunId, fence: u32, entries: Vec<Entry>) -> Journaled;
    wake(run: RunId, entries: Vec<Entry>) -> Woken;
    set_priority(run: RunId, priority: Priority) -> Option<RunRecord>;
    set_budget(run: RunId, budget: Budget) -> Woken;
    history(thread: ThreadId, before: Option<CheckpointId>, limit: u32) -> Vec<CheckpointRecord>;
    update_state(update: StateUpdate) -> Updated;
    threads(query: ThreadQuery) -> Vec<ThreadRecord>;
    make_thread(new: clearway_store::NewThread) -> clearway_store::ThreadMade;
    describe_thread(thread: ThreadId, metadata: serde_json::Map<String, Value>) -> Option<ThreadRecord>;
    copy_thread(from: ThreadId, to: ThreadId, salt: [u8; 6]) -> Option<ThreadRecord>;
    thread_overview(thread: ThreadId) -> Option<clearway_store::ThreadOverview>;
    search_threads(search: clearway_store::ThreadSearch) -> clearway_store::ThreadPage;
    count_threads(search: clearway_store::ThreadSearch) -> u64;
    stale_threads(dialect: &str, since: Timestamp, limit: u32) -> Vec<ThreadId>;
    steps(run: RunId, after: Option<CheckpointId>, limit: u32) -> Vec<clearway_store::StepRecord>;
    delete_run(run: RunId) -> clearway_store::RunDeleted;
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
    queue_position(run: RunId) -> Option<QueuePosition>;
    info() -> StoreInfo;
    close(me: InstanceId) -> ();
}

pub(crate) fn ended(record: &RunRecord, status: Status) {
    assert_eq!(record.status, status, "{:?}", record.failure);
}
