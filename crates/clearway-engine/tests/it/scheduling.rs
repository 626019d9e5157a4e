//! Who starts when: fairness between tenants, priorities, and the clock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use clearway_core::machine::Output;
use clearway_core::plan::Plan;
use clearway_core::{Code, Priority, RunId, Status, ThreadId};
use clearway_engine::{
    Agent, Agents, CronSpec, Ctx, Engine, Node, NodeError, Options, PoolOptions, RunQuery, Store,
    Submit,
};
use clearway_store::{MemStore, ScheduleQuery};
use serde_json::{Map, json};

use uuid::Uuid;

use crate::support::{TestClock, options, sim, upstream};

fn thread(n: u128) -> ThreadId {
    ThreadId(Uuid::from_u128(n))
}

/// Works for about a second: not all the same, so that slots come free one by one.
#[derive(Debug)]
struct Work;

#[async_trait::async_trait]
impl Node for Work {
    async fn call(&self, cx: Ctx) -> Result<Output, NodeError> {
        let spread = cx.run.0.as_u128() % 600;
        tokio::time::sleep(Duration::from_millis(700 + spread as u64)).await;
        Ok(Output::default())
    }
}

async fn engine(store: &Arc<MemStore>, clock: &Arc<TestClock>, slots: u32) -> Engine {
    let node: Arc<dyn Node> = Arc::new(Work);
    let plan = Arc::new(Plan::chat("work"));
    let nodes = BTreeMap::from([("work".into(), node.clone())]);
    let agent =
        Agent { plan, nodes, starts_ahead: false, ..Agent::single("work", "agent", "work", node) };
    let agents = Agents::new([("work".to_owned(), Arc::new(agent))]);
    let options =
        Options { pools: vec![PoolOptions::new("chat", slots, 10_000)], ..options(slots, 10_000) };
    let store: Arc<dyn Store> = store.clone();
    Engine::start(options, store, upstream(&sim(), 64), agents, clock.clone()).await.unwrap()
}

async fn submit(engine: &Engine, tenant: &str, n: u128, priority: Option<Priority>) -> RunId {
    let submit = Submit {
        tenant: tenant.to_owned(),
        priority,
        ..Submit::new(thread(n), "work", "test", json!({}))
    };
    engine.submit(submit).await.unwrap().run
}

async fn waited(engine: &Engine, run: RunId) -> Duration {
    let record = engine.wait(run).await.unwrap();
    assert_eq!(record.status, Status::Success, "{:?}", record.failure);
    record.started_at.unwrap().since(record.created_at)
}

#[tokio::test(start_paused = true)]
async fn a_tenant_that_floods_does_not_delay_a_small_one() {
    const SLOTS: u32 = 4;
    let clock = TestClock::new();
    let store = Arc::new(MemStore::new(clock.clone()));
    let engine = engine(&store, &clock, SLOTS).await;
    for n in 0..1000 {
        submit(&engine, "flood", n, None).await;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let mut total = Duration::ZERO;
    const SMALL: u32 = 20;
    for n in 0..SMALL {
        let run = submit(&engine, "small", 10_000 + u128::from(n), None).await;
        total += waited(&engine, run).await;
    }
    let mean = total / SMALL;
    // Runs take a second on average, so a slot comes free every quarter of one.
    let bound = Duration::from_secs(1) * 2 / SLOTS;
    assert!(mean <= bound, "waited {mean:?} on average, allowed are {bound:?}");
    engine.shutdown(Duration::ZERO).await;
}

#[tokio::test(start_paused = true)]
async fn the_lowest_priority_starts_within_its_ageing_bound() {
    let clock = TestClock::new();
    let store = Arc::new(MemStore::new(clock.clone()));
    let engine = engine(&store, &clock, 1).await;
    let first = Priority::new(1);
    for n in 0..400 {
        submit(&engine, "default", n, first).await;
    }
    let last = submit(&engine, "default", 9999, Priority::new(5)).await;
    // Those that come later go in front at first, and behind when it has aged.
    let mut n = 500;
    let (mut running, begun) = (false, tokio::time::Instant::now());
    while !running {
        tokio::time::sleep(Duration::from_secs(1)).await;
        submit(&engine, "default", n, first).await;
        n += 1;
        running = engine.run(last).await.unwrap().record.started_at.is_some();
        // Four levels of thirty seconds, and then those that waited as long before it.
        assert!(begun.elapsed() < Duration::from_secs(120 + 405 + 30), "it starves");
    }
    engine.shutdown(Duration::ZERO).await;
}

#[tokio::test(start_paused = true)]
async fn a_waiting_run_overtakes_when_its_priority_is_raised() {
    let clock = TestClock::new();
    let store = Arc::new(MemStore::new(clock.clone()));
    let engine = engine(&store, &clock, 1).await;
    let mut runs = Vec::new();
    for n in 0..20 {
        runs.push(submit(&engine, "default", n, None).await);
    }
    let last = runs[19];
    let view = engine.run(last).await.unwrap();
    assert!(view.position.unwrap().pool_ahead >= 18, "{:?}", view.position);
    assert!(view.waiting.unwrap().eta.is_some(), "it is told when");
    let raised = engine.set_priority(last, Priority::new(1).unwrap()).await.unwrap();
    assert_eq!(raised.position.unwrap().pool_ahead, 0);
    assert!(waited(&engine, last).await < Duration::from_secs(3));
    // More slots take effect while runs wait.
    engine.set_slots("chat", 20).unwrap();
    for run in runs {
        assert!(waited(&engine, run).await < Duration::from_secs(6));
    }
    engine.shutdown(Duration::ZERO).await;
}

fn cron(name: &str, cron: &str) -> CronSpec {
    CronSpec {
        name: name.to_owned(),
        tenant: "default".to_owned(),
        owner: None,
        cron: cron.to_owned(),
        timezone: None,
        agent: "work".to_owned(),
        input: json!({}),
        metadata: Map::new(),
        thread: None,
    }
}

#[tokio::test(start_paused = true)]
async fn configured_crons_fire_and_a_restart_neither_doubles_nor_loses_them() {
    let clock = TestClock::new();
    let store = Arc::new(MemStore::new(clock.clone()));
    let first = engine(&store, &clock, 4).await;
    let specs = vec![cron("minutely", "* * * * *"), cron("yearly", "0 0 1 1 *")];
    first.configure_crons("default", specs.clone()).await.unwrap();
    let count = async |engine: &Engine| {
        let query = RunQuery { door: Some("schedule".to_owned()), ..RunQuery::default() };
        engine.records(query).await.unwrap().0.len()
    };
    tokio::time::sleep(Duration::from_secs(180)).await;
    assert_eq!(count(&first).await, 3);
    first.shutdown(Duration::from_secs(5)).await;
    drop(first);
    // Down for ten minutes: made up for once.
    tokio::time::sleep(Duration::from_secs(600)).await;
    let second = engine(&store, &clock, 4).await;
    second.configure_crons("default", specs.clone()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(count(&second).await, 4);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(count(&second).await, 6);
    // One that the configuration loses is gone; others stay as they are.
    second.configure_crons("default", vec![cron("yearly", "0 0 1 1 *")]).await.unwrap();
    let left = store.schedules(ScheduleQuery::default()).await.unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].name.as_deref(), Some("yearly"));
    let unknown = CronSpec { agent: "nobody".to_owned(), ..cron("x", "* * * * *") };
    let refused = second.configure_crons("default", vec![unknown]).await.unwrap_err();
    assert_eq!(refused.code(), Code::AgentNotFound);
    second.shutdown(Duration::ZERO).await;
}
