//! An engine over the in-memory store and the simulator, on paused time and without a socket.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use clearway_core::event::{Body, Event, EventKind, Part};
use clearway_core::plan::MESSAGES;
use clearway_core::thread::ThreadKey;
use clearway_core::{RunId, RunRecord, Status, ThreadId};
use clearway_engine::chat::{ChatNode, ChatOptions, human_input};
use clearway_engine::upstream::{
    Config, Dial, DialError, DialPhase, Endpoint, Io, ModelConfig, ProviderConfig, Upstream,
};
use clearway_engine::{
    Agent, Agents, Engine, From, Kind, Limits, Node, Options, PoolOptions, Store, Submit,
};
use clearway_sim::Sim;
pub(crate) use clearway_testkit::sweep::PausedClock as TestClock;
use futures_util::future::BoxFuture;
use tokio_util::task::TaskTracker;

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

pub(crate) fn ended(record: &RunRecord, status: Status) {
    assert_eq!(record.status, status, "{:?}", record.failure);
}
