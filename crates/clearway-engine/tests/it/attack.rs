//! Adversarial histories: late answers, stale caches, lost wake-ups, readers without an end.
//!
//! Each test states a promise of the engine and builds the history that would break it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use clearway_core::channel::{Op, Reducer, Write};
use clearway_core::event::{Body, Event, EventKind, Part};
use clearway_core::journal::Entry;
use clearway_core::machine::Output;
use clearway_core::message::{Message, Role};
use clearway_core::plan::{Builder, END, MESSAGES, Plan};
use clearway_core::run::Budget;
use clearway_core::thread::ThreadRecord;
use clearway_core::{
    CheckpointId, InstanceId, Priority, RunId, RunRecord, Status, ThreadId, Timestamp,
};
use clearway_engine::{Agent, Agents, Ctx, Engine, Node, NodeError, Options, Store};
use clearway_store::Result as StoreResult;
use clearway_store::*;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::Value;
use uuid::Uuid;

use crate::support::*;

#[path = "attack_admission.rs"]
mod admission;
#[path = "attack_ends.rs"]
mod ends;
#[path = "attack_readers.rs"]
mod readers;

/// On which side of the transaction a call waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Before,
    After,
}

/// A store whose calls may take their time.
#[derive(Debug)]
pub(crate) struct Late {
    pub(crate) mem: Arc<MemStore>,
    delays: Mutex<VecDeque<(&'static str, Side, Duration)>>,
}

impl Late {
    pub(crate) fn new(clock: &Arc<TestClock>) -> Arc<Self> {
        Self::over(MemStore::new(clock.clone()))
    }

    pub(crate) fn over(mem: MemStore) -> Arc<Self> {
        Arc::new(Self { mem: Arc::new(mem), delays: Mutex::default() })
    }

    /// The next call of `method` waits for `delay`, once.
    pub(crate) fn delay(&self, method: &'static str, side: Side, delay: Duration) {
        self.delays.lock().unwrap().push_back((method, side, delay));
    }

    async fn pass<T>(
        &self,
        method: &'static str,
        call: impl Future<Output = StoreResult<T>>,
    ) -> StoreResult<T> {
        let delay = {
            let mut delays = self.delays.lock().unwrap();
            let at = delays.iter().position(|(name, ..)| *name == method);
            at.and_then(|at| delays.remove(at))
        };
        if let Some((_, Side::Before, delay)) = delay {
            tokio::time::sleep(delay).await;
        }
        let answer = call.await;
        if let Some((_, Side::After, delay)) = delay {
            tokio::time::sleep(delay).await;
        }
        answer
    }
}

macro_rules! pass {
    ($($name:ident($($arg:ident: $type:ty),*) -> $out:ty;)*) => {
        #[async_trait::async_trait]
        impl Store for Late {
            $(async fn $name(&self, $($arg: $type),*) -> StoreResult<$out> {
                self.pass(stringify!($name), self.mem.$name($($arg),*)).await
            })*

            fn knowledge(&self) -> &dyn clearway_store::KnowledgeStore {
                self.mem.knowledge()
            }

            fn pool_counts(&self) -> Vec<PoolCount> {
                self.mem.pool_counts()
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
    release(run: RunId, fence: u32) -> bool;
    reset_thread(thread: ThreadId) -> Option<Reset>;
    run(run: RunId) -> Option<RunRecord>;
    runs(query: RunQuery) -> RunPage;
    thread(thread: ThreadId) -> Option<ThreadRecord>;
    state(thread: ThreadId, at: Option<CheckpointId>) -> Option<ThreadState>;
    writes_of(checkpoint: CheckpointId, channel: &str) -> Vec<Op>;
    read_log(run: RunId, from: u64, max_bytes: usize) -> LogPage;
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
    queue_positions(runs: Vec<RunId>) -> Vec<Option<QueuePosition>>;
    info() -> StoreInfo;
    close(me: InstanceId) -> ();
}

type Body_ = dyn Fn(Ctx) -> BoxFuture<'static, Result<Output, NodeError>> + Send + Sync;

/// A node made of a closure.
pub(crate) struct Script(Arc<Body_>);

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Script")
    }
}

#[async_trait::async_trait]
impl Node for Script {
    async fn call(&self, cx: Ctx) -> Result<Output, NodeError> {
        (self.0)(cx).await
    }
}

pub(crate) fn script<F>(body: impl Fn(Ctx) -> F + Send + Sync + 'static) -> Arc<dyn Node>
where
    F: Future<Output = Result<Output, NodeError>> + Send + 'static,
{
    Arc::new(Script(Arc::new(move |cx| body(cx).boxed())))
}

pub(crate) fn agent(
    name: &str,
    pool: &str,
    plan: Plan,
    nodes: &[(&str, Arc<dyn Node>)],
) -> (String, Arc<Agent>) {
    let agent = Agent {
        pool: pool.to_owned(),
        plan: Arc::new(plan),
        nodes: nodes.iter().map(|(name, node)| ((*name).into(), node.clone())).collect(),
        ..Agent::single(name, "agent", nodes[0].0, nodes[0].1.clone())
    };
    (name.to_owned(), Arc::new(agent))
}

/// One scripted node over a conversation.
pub(crate) fn chat(name: &str, node: Arc<dyn Node>) -> (String, Arc<Agent>) {
    agent(name, "chat", Plan::chat("model"), &[("model", node)])
}

pub(crate) async fn start(
    store: Arc<dyn Store>,
    options: Options,
    clock: &Arc<TestClock>,
    agents: Vec<(String, Arc<Agent>)>,
) -> Engine {
    let upstream = upstream(&sim(), 8);
    Engine::start(options, store, upstream, Agents::new(agents), clock.clone()).await.unwrap()
}

/// Says `text` one letter every `pause`, and writes it down as the reply.
pub(crate) async fn say(cx: Ctx, text: String, pause: Duration) -> Result<Output, NodeError> {
    let id = cx.message_id(0);
    for letter in text.chars() {
        tokio::time::sleep(pause).await;
        cx.delta(id, Part::Text, &letter.to_string())?;
    }
    Ok(reply(&cx, &text))
}

pub(crate) fn reply(cx: &Ctx, text: &str) -> Output {
    let id = cx.message_id(0);
    let value = Message::new(Role::Ai, text, id.to_string()).to_value();
    Output { writes: vec![Write::new(MESSAGES, value)], reply: Some(id), ..Output::default() }
}

/// Answers with the number of messages it was given, in a letter each.
pub(crate) fn counting(pause: Duration) -> Arc<dyn Node> {
    script(move |cx| {
        let text = "abcdefghijklmnopqrstuvwxyz"[..cx.state.list(MESSAGES).len()].repeat(4);
        say(cx, text, pause)
    })
}

/// The same at greater length.
pub(crate) fn chatty(pause: Duration) -> Arc<dyn Node> {
    script(move |cx| {
        let text = "abcdefghijklmnopqrstuvwxyz"[..cx.state.list(MESSAGES).len()].repeat(100);
        say(cx, text, pause)
    })
}

pub(crate) fn text_of(events: &[Event]) -> String {
    let mut reader = Reader::default();
    reader.take(events.to_vec());
    reader.text()
}

pub(crate) fn shows_end(events: &[Event]) -> bool {
    events.last().is_some_and(|event| event.kind() == EventKind::RunEnded)
}

/// Two nodes in a row over a conversation.
pub(crate) fn two_steps() -> Plan {
    Builder::new()
        .channel(MESSAGES, Reducer::MergeById)
        .node("first")
        .node("second")
        .entry("first")
        .edge("first", "second")
        .edge("second", END)
        .build()
        .unwrap()
}

pub(crate) fn fact(event: &Event) -> serde_json::Value {
    match &event.body {
        Body::Fact(fact) => fact.json(),
        Body::Delta(_) => serde_json::Value::Null,
    }
}

/// Waits until `done`, at most a minute.
pub(crate) async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    for _ in 0..12_000 {
        if done().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

pub(crate) type Seen<T> = Arc<Mutex<Vec<T>>>;

pub(crate) fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// So that a hang is a failure and not a hang.
pub(crate) async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(limit, future).await {
        Ok(done) => done,
        Err(_) => panic!("not within {limit:?}: {what}"),
    }
}
