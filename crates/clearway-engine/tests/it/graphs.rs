//! Graphs of several nodes: what survives, what waits, what is done once.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use clearway_core::channel::{Reducer, Write};
use clearway_core::machine::{Command, Output, Resume};
use clearway_core::message::{Message, Role};
use clearway_core::plan::{Builder, Goto, Plan};
use clearway_core::run::{Budget, RunOptions};
use clearway_core::wait::WaitKind;
use clearway_core::{Code, EventKind, Failure, RunId, Status, ThreadId};
use clearway_engine::upstream::ChatRequest;
use clearway_engine::{
    ActionError, Agent, ArtifactScope, CancelMode, Child, Decision, Effect, Engine, Expiry, Node,
    NodePolicy, OnError, Options, PoolOptions, Retry, StateChange, Submit, Which,
};
use clearway_store::MemStore;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::attack::{agent, script, start, until};
use crate::support::*;

/// Counts what happened outside, by name.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<BTreeMap<String, u32>>>);

impl Sink {
    fn add(&self, name: &str) -> u32 {
        let mut counts = self.0.lock().unwrap();
        let count = counts.entry(name.to_owned()).or_default();
        *count += 1;
        *count
    }

    fn count(&self, name: &str) -> u32 {
        self.0.lock().unwrap().get(name).copied().unwrap_or(0)
    }
}

pub(crate) fn wrote(channel: &str, value: Value) -> Output {
    Output { writes: vec![Write::new(channel, value)], ..Output::default() }
}

pub(crate) fn plan(nodes: &[&str]) -> Builder {
    let builder = Builder::new().channel("log", Reducer::Append).channel("last", Reducer::Last);
    nodes.iter().fold(builder, |builder, node| builder.node(node))
}

/// A node that writes its own name.
pub(crate) fn says(name: &'static str) -> Arc<dyn Node> {
    script(move |_| async move { Ok(wrote("log", json!(name))) })
}

fn thread(n: u128) -> ThreadId {
    ThreadId(Uuid::from_u128(n))
}

pub(crate) fn work(name: &str, n: u128) -> Submit {
    Submit::new(thread(n), name, "test", json!({}))
}

fn resume(name: &str, n: u128, value: Value) -> Submit {
    let command = Command { resume: Some(Resume::All(value)), ..Command::default() };
    let options = RunOptions { command: Some(command), ..RunOptions::default() };
    Submit { options, ..work(name, n) }
}

pub(crate) struct Bed {
    store: Arc<MemStore>,
    clock: Arc<TestClock>,
    agents: Vec<(String, Arc<Agent>)>,
    queue: u32,
}

impl Bed {
    pub(crate) fn new(agents: Vec<(String, Arc<Agent>)>) -> Self {
        Self::with_queue(agents, 100)
    }

    pub(crate) fn with_queue(agents: Vec<(String, Arc<Agent>)>, queue: u32) -> Self {
        let clock = TestClock::new();
        Self { store: Arc::new(MemStore::new(clock.clone())), clock, agents, queue }
    }

    pub(crate) async fn engine(&self) -> Engine {
        let pools = vec![PoolOptions::new("chat", 8, self.queue)];
        let options = Options { pools, ..options(8, 100) };
        start(self.store.clone(), options, &self.clock, self.agents.clone()).await
    }
}

pub(crate) async fn run(engine: &Engine, submit: Submit) -> clearway_core::RunRecord {
    let submitted = engine.submit(submit).await.unwrap();
    engine.wait(submitted.run).await.unwrap()
}

pub(crate) async fn state(engine: &Engine, n: u128) -> Value {
    engine.thread_state(thread(n)).await.unwrap().unwrap().state.to_json()
}

/// Lets the run get to where it waits.
pub(crate) async fn until_waiting(engine: &Engine, run: RunId) -> WaitKind {
    loop {
        let view = engine.run(run).await.unwrap();
        assert!(!view.record.status.is_terminal(), "{:?}", view.record.failure);
        if view.record.status == Status::Waiting {
            return view.waiting.unwrap().kind;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

type Nodes = Vec<(&'static str, Arc<dyn Node>)>;

fn fan_out() -> (Plan, Nodes) {
    let plan = plan(&["scatter", "gather"])
        .node_at_once("item", 2)
        .entry("scatter")
        .may_go("scatter", "item")
        .edge("item", "gather")
        .build()
        .unwrap();
    let scatter = script(|_| async move {
        let send = |n: u32| Goto::Send { node: "item".into(), payload: json!(n) };
        Ok(Output { goto: Some((0..5).map(send).collect()), ..Output::default() })
    });
    let item = script(|cx: clearway_engine::Ctx| async move {
        let n = cx.payload.as_deref().cloned().unwrap_or_default();
        // The first ones take longest: the order of writes is that of sending.
        tokio::time::sleep(Duration::from_millis(50 - 10 * n.as_u64().unwrap())).await;
        Ok(wrote("log", json!({"item": n})))
    });
    (plan, vec![("scatter", scatter), ("item", item), ("gather", says("gathered"))])
}

#[tokio::test(start_paused = true)]
async fn a_fan_out_writes_in_the_order_of_sending() {
    let (plan, nodes) = fan_out();
    let bed = Bed::new(vec![agent("g", "chat", plan, &nodes)]);
    let engine = bed.engine().await;
    let record = run(&engine, work("g", 1)).await;
    ended(&record, Status::Success);
    assert_eq!(record.step, 2, "three supersteps");
    let items: Vec<Value> = (0..5).map(|n| json!({"item": n})).collect();
    assert_eq!(state(&engine, 1).await["log"], json!([items, vec![json!("gathered")]].concat()));
}

#[tokio::test(start_paused = true)]
async fn what_finished_beside_a_crash_is_not_made_again() {
    let sink = Sink::default();
    let release = Arc::new(tokio::sync::Notify::new());
    let provider = Arc::new(upstream(&sim(), 64));
    let build = |crash: bool| {
        let provider = provider.clone();
        let plan = plan(&["quick", "slow", "after"])
            .entry("quick")
            .entry("slow")
            .join(&["quick", "slow"], "after")
            .build()
            .unwrap();
        let (one, two, wait) = (sink.clone(), sink.clone(), release.clone());
        let quick = script(move |cx: clearway_engine::Ctx| {
            one.add("quick");
            let provider = provider.clone();
            async move {
                let request = ChatRequest {
                    model: "good".to_owned(),
                    messages: vec![Arc::new(Message::new(Role::Human, "hi", "hi").to_value())],
                    params: serde_json::Map::new(),
                };
                let mut answer = provider.chat(cx.call("quick"), request).await.unwrap();
                while answer.next().await.unwrap().is_some() {}
                Ok(wrote("log", json!("quick")))
            }
        });
        let slow = script(move |_| {
            let (two, wait) = (two.clone(), wait.clone());
            async move {
                two.add("slow");
                if crash {
                    wait.notified().await;
                }
                Ok(wrote("log", json!("slow")))
            }
        });
        let nodes = [("quick", quick), ("slow", slow), ("after", says("after"))];
        agent("g", "chat", plan, &nodes)
    };
    let mut bed = Bed::new(vec![build(true)]);
    let engine = bed.engine().await;
    let submitted = engine.submit(work("g", 1)).await.unwrap();
    // The quick one's end is told when it is durable.
    loop {
        let (events, _) =
            engine.events(submitted.run, clearway_engine::From::Start, 100).await.unwrap();
        if events.iter().any(|event| event.kind() == EventKind::NodeCompleted) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // The process dies here: what it does from now on, it does to a copy.
    bed.store = Arc::new(bed.store.fork(clearway_store::LoseTail::No));
    bed.agents = vec![build(false)];
    let engine = bed.engine().await;
    let record = engine.wait(submitted.run).await.unwrap();
    ended(&record, Status::Success);
    assert_eq!((sink.count("quick"), sink.count("slow")), (1, 2));
    assert_eq!(record.usage.calls, 1, "what it cost is counted, and once");
    assert_eq!(state(&engine, 1).await["log"], json!(["quick", "slow", "after"]));
    let log = whole_log(&engine, submitted.run).await;
    let completed = log.iter().filter(|event| event.kind() == EventKind::NodeCompleted).count();
    assert!(completed >= 3, "the first one is told again if the crash took it back");
}

#[tokio::test(start_paused = true)]
async fn a_question_ends_the_run_and_the_answer_goes_on() {
    let sink = Sink::default();
    let plan = plan(&["draft", "beside", "review", "publish"])
        .entry("draft")
        .edge("draft", "review")
        .edge("draft", "beside")
        .edge("review", "publish")
        .build()
        .unwrap();
    let counter = sink.clone();
    let beside = script(move |_| {
        counter.add("beside");
        async { Ok(wrote("log", json!("beside"))) }
    });
    let review = script(|cx: clearway_engine::Ctx| async move {
        let first = cx.interrupt(json!({"question": "good?"}))?;
        let second = cx.interrupt(json!({"question": "sure?"}))?;
        Ok(wrote("log", json!([first, second])))
    });
    let nodes = [
        ("draft", says("draft")),
        ("beside", beside),
        ("review", review),
        ("publish", says("publish")),
    ];
    let bed = Bed::new(vec![agent("g", "chat", plan, &nodes)]);
    let engine = bed.engine().await;
    let asked = run(&engine, work("g", 1)).await;
    ended(&asked, Status::Success);
    assert_eq!(asked.next, ["beside", "review"]);
    let open = engine.state_at(thread(1), None).await.unwrap().unwrap();
    let questions = Engine::questions(&open);
    assert_eq!(questions.len(), 1);
    assert_eq!(questions[0].value, json!({"question": "good?"}));
    assert_eq!(engine.attention(None, 10).await.unwrap().items.len(), 1);
    // A server that starts anew in between changes nothing.
    let engine = {
        drop(engine);
        bed.engine().await
    };
    let again = run(&engine, resume("g", 1, json!("yes"))).await;
    ended(&again, Status::Success);
    let open = engine.state_at(thread(1), None).await.unwrap().unwrap();
    assert_eq!(Engine::questions(&open)[0].value, json!({"question": "sure?"}));
    ended(&run(&engine, resume("g", 1, json!("very"))).await, Status::Success);
    assert_eq!(
        state(&engine, 1).await["log"],
        json!(["draft", "beside", "yes", "very", "publish"])
    );
    assert_eq!(sink.count("beside"), 1, "it had ended before the question");
    let late = run(&engine, resume("g", 1, json!("again"))).await;
    assert_eq!(late.failure.unwrap().code, Code::NothingWaits);
}

#[tokio::test(start_paused = true)]
async fn a_write_happens_once_or_waits_for_a_decision() {
    let sink = Sink::default();
    let outcome = Arc::new(AtomicU32::new(0));
    let plan = plan(&["pay"]).entry("pay").build().unwrap();
    let (out, counter) = (outcome.clone(), sink.clone());
    let pay = script(move |cx: clearway_engine::Ctx| {
        let (out, counter) = (out.clone(), counter.clone());
        async move {
            let paid = cx
                .act("payment", Effect::Write, |_key| async move {
                    let count = counter.add("payment");
                    match out.load(Ordering::Relaxed) {
                        0 => Err(ActionError::Unknown(Failure::new(Code::UpstreamTimeout, "lost"))),
                        _ => Ok(json!(count)),
                    }
                })
                .await?;
            Ok(wrote("log", paid))
        }
    });
    let bed = Bed::new(vec![agent("g", "chat", plan, &[("pay", pay)])]);
    let engine = bed.engine().await;
    let submitted = engine.submit(work("g", 1)).await.unwrap();
    assert_eq!(until_waiting(&engine, submitted.run).await, WaitKind::Decision);
    drop(engine);
    let engine = bed.engine().await;
    assert_eq!(engine.undecided(submitted.run).await.unwrap().len(), 1);
    let needs = engine.attention(None, 10).await.unwrap().items;
    assert!(needs[0].command.contains("runs resolve"), "{}", needs[0].command);
    outcome.store(1, Ordering::Relaxed);
    engine.resolve(submitted.run, Which::All, &Decision::Retry, "ann").await.unwrap();
    let record = engine.wait(submitted.run).await.unwrap();
    ended(&record, Status::Success);
    assert_eq!((sink.count("payment"), state(&engine, 1).await["log"].clone()), (2, json!([2])));
    // And one that somebody found to have happened.
    outcome.store(0, Ordering::Relaxed);
    let submitted = engine.submit(work("g", 2)).await.unwrap();
    until_waiting(&engine, submitted.run).await;
    let done = Decision::Done(json!("receipt 7"));
    engine.resolve(submitted.run, Which::Node("pay"), &done, "ann").await.unwrap();
    ended(&engine.wait(submitted.run).await.unwrap(), Status::Success);
    assert_eq!(
        (sink.count("payment"), state(&engine, 2).await["log"].clone()),
        (3, json!(["receipt 7"]))
    );
}

#[tokio::test(start_paused = true)]
async fn a_decision_that_comes_twice_makes_no_write_twice() {
    let sink = Sink::default();
    let plan = plan(&["pay"]).entry("pay").build().unwrap();
    let counter = sink.clone();
    let pay = script(move |cx: clearway_engine::Ctx| {
        let counter = counter.clone();
        async move {
            let paid = cx
                .act("payment", Effect::Write, |_key| async move {
                    let count = counter.add("payment");
                    if count > 1 {
                        // The second time it never answers.
                        std::future::pending::<()>().await;
                    }
                    Err(ActionError::Unknown(Failure::new(Code::UpstreamTimeout, "lost")))
                })
                .await?;
            Ok(wrote("log", paid))
        }
    });
    let bed = Bed::new(vec![agent("g", "chat", plan, &[("pay", pay)])]);
    let engine = bed.engine().await;
    let run = engine.submit(work("g", 1)).await.unwrap().run;
    assert_eq!(until_waiting(&engine, run).await, WaitKind::Decision);
    let key = engine.undecided(run).await.unwrap()[0].idempotency_key();
    let which = Which::Key(&key);
    engine.resolve(run, which, &Decision::Retry, "ann").await.unwrap();
    until("it is made again", async || sink.count("payment") == 2).await;
    // It is being made again: whoever says so once more says it about a write whose end nobody knows.
    for decision in [Decision::Retry, Decision::Done(json!("receipt"))] {
        let refused = engine.resolve(run, which, &decision, "bob").await.unwrap_err();
        assert_eq!(refused.code(), Code::NothingWaits, "{refused}");
        assert!(refused.to_string().contains("right now"), "{refused}");
    }
    drop(engine);
    let engine = bed.engine().await;
    assert_eq!(until_waiting(&engine, run).await, WaitKind::Decision);
    assert_eq!(sink.count("payment"), 2, "after a crash nobody decided about the second one");
    engine.resolve(run, which, &Decision::Done(json!("receipt")), "ann").await.unwrap();
    ended(&engine.wait(run).await.unwrap(), Status::Success);
    assert_eq!(state(&engine, 1).await["log"], json!(["receipt"]));
}

#[tokio::test(start_paused = true)]
async fn timers_and_signals_hold_no_slot_and_survive() {
    let plan = plan(&["wait"]).entry("wait").build().unwrap();
    let wait = script(|cx: clearway_engine::Ctx| async move {
        cx.sleep("nap", Duration::from_secs(60)).await?;
        let value = cx.signal("go", None).await?;
        let second = cx.signal("go", None).await?;
        Ok(wrote("log", json!([value, second])))
    });
    let bed = Bed::new(vec![agent("g", "chat", plan, &[("wait", wait)])]);
    let engine = bed.engine().await;
    let submitted = engine.submit(work("g", 1)).await.unwrap();
    assert_eq!(until_waiting(&engine, submitted.run).await, WaitKind::Timer);
    assert_eq!(engine.pools()[0].running, 0);
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(until_waiting(&engine, submitted.run).await, WaitKind::Signal);
    engine.signal(submitted.run, "go", json!(1), Some("a")).await.unwrap();
    engine.signal(submitted.run, "go", json!(1), Some("a")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(until_waiting(&engine, submitted.run).await, WaitKind::Signal);
    engine.signal(submitted.run, "go", json!(2), Some("b")).await.unwrap();
    ended(&engine.wait(submitted.run).await.unwrap(), Status::Success);
    assert_eq!(state(&engine, 1).await["log"], json!([1, 2]));
    let over = engine.signal(submitted.run, "go", json!(3), None).await.unwrap_err();
    assert_eq!(over.code(), Code::RunEnded);
}

fn family(child: Arc<dyn Node>) -> Vec<(String, Arc<Agent>)> {
    let parent = script(|cx: clearway_engine::Ctx| async move {
        let child = |n: u32| {
            let input = json!({"last": n});
            (
                format!("c{n}"),
                Child { agent: "child".into(), input, metadata: serde_json::Map::new() },
            )
        };
        let ends = cx.children((0..3).map(child).collect(), 2).await?;
        let logs: Vec<Value> =
            ends.into_iter().map(|end| end.state.unwrap_or_default()["log"].clone()).collect();
        Ok(wrote("log", json!(logs)))
    });
    let outer = plan(&["parent"]).entry("parent").build().unwrap();
    let inner = plan(&["work"]).entry("work").build().unwrap();
    vec![
        agent("g", "chat", outer, &[("parent", parent)]),
        agent("child", "chat", inner, &[("work", child)]),
    ]
}

#[tokio::test(start_paused = true)]
async fn children_run_beside_and_are_waited_for_without_a_slot() {
    let child = script(|cx: clearway_engine::Ctx| async move {
        tokio::time::sleep(Duration::from_secs(5)).await;
        Ok(wrote("log", json!([cx.state.get("last")])))
    });
    let bed = Bed::new(family(child));
    let engine = bed.engine().await;
    let record = run(&engine, work("g", 1)).await;
    ended(&record, Status::Success);
    assert_eq!(state(&engine, 1).await["log"], json!([[0], [1], [2]]));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_parent_takes_its_children_along() {
    let child = script(|_| async move { std::future::pending().await });
    let bed = Bed::new(family(child));
    let engine = bed.engine().await;
    let submitted = engine.submit(work("g", 1)).await.unwrap();
    assert_eq!(until_waiting(&engine, submitted.run).await, WaitKind::Child);
    engine.cancel(submitted.run, "ann").await.unwrap();
    let query = clearway_engine::RunQuery { parent: Some(submitted.run), ..Default::default() };
    let (children, _) = engine.runs(query).await.unwrap();
    assert_eq!(children.len(), 2);
    for child in children {
        let record = engine.wait(child.record.id).await.unwrap();
        assert_eq!(record.status, Status::Cancelled);
    }
}

#[tokio::test(start_paused = true)]
async fn policies_try_again_give_up_and_hand_over() {
    let tries = Arc::new(AtomicU32::new(0));
    let counter = tries.clone();
    let flaky = script(move |_| {
        let n = counter.fetch_add(1, Ordering::Relaxed);
        async move {
            match n {
                0 => std::future::pending().await,
                1 => Err(Failure::new(Code::UpstreamServerError, "500").retryable().into()),
                _ => Ok(wrote("log", json!("flaky"))),
            }
        }
    });
    let broken =
        script(|_| async move { Err(Failure::new(Code::TemplateFailed, "line 3").into()) });
    let plan = plan(&["flaky", "broken", "rescue", "end"])
        .entry("flaky")
        .edge("flaky", "broken")
        .edge("broken", "end")
        .may_go("broken", "rescue")
        .build()
        .unwrap();
    let nodes =
        [("flaky", flaky), ("broken", broken), ("rescue", says("rescue")), ("end", says("end"))];
    let (name, made) = agent("g", "chat", plan, &nodes);
    let mut made = Arc::unwrap_or_clone(made);
    let retry = Retry { attempts: 3, ..Retry::default() };
    let idle = Some(Duration::from_secs(20));
    made.policies.insert("flaky".into(), NodePolicy { retry, idle, ..NodePolicy::default() });
    let on_error = OnError::Goto { node: "rescue".into(), channel: "last".into() };
    made.policies.insert("broken".into(), NodePolicy { on_error, ..NodePolicy::default() });
    let bed = Bed::new(vec![(name, Arc::new(made))]);
    let engine = bed.engine().await;
    let record = run(&engine, work("g", 1)).await;
    ended(&record, Status::Success);
    let state = state(&engine, 1).await;
    assert_eq!(state["log"], json!(["flaky", "rescue"]));
    assert_eq!(state["last"]["error"]["code"], "template_failed");
    assert_eq!(tries.load(Ordering::Relaxed), 3);
}

#[tokio::test(start_paused = true)]
async fn a_budget_stops_before_the_call_and_goes_on_when_raised() {
    let plan = plan(&["spend"]).entry("spend").build().unwrap();
    let spend = script(|cx: clearway_engine::Ctx| async move {
        let _reserved = cx.reserve(1000)?;
        Ok(wrote("log", json!("spent")))
    });
    let bed = Bed::new(vec![agent("g", "chat", plan, &[("spend", spend)])]);
    let engine = bed.engine().await;
    let budget = Budget { tokens: Some(999), ..Budget::default() };
    let options = RunOptions { budget, ..RunOptions::default() };
    let submitted = engine.submit(Submit { options, ..work("g", 1) }).await.unwrap();
    assert_eq!(until_waiting(&engine, submitted.run).await, WaitKind::Budget);
    let more = Budget { tokens: Some(2000), ..Budget::default() };
    engine.set_budget(submitted.run, more).await.unwrap();
    ended(&engine.wait(submitted.run).await.unwrap(), Status::Success);
}

#[tokio::test(start_paused = true)]
async fn a_rollback_leaves_nothing_and_history_can_be_gone_back_to() {
    let plan = plan(&["a", "b"]).entry("a").edge("a", "b").build().unwrap();
    let slow = script(|cx: clearway_engine::Ctx| async move {
        if cx.state.get("last").is_some() {
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        Ok(wrote("log", json!("b")))
    });
    let bed = Bed::new(vec![agent("g", "chat", plan, &[("a", says("a")), ("b", slow)])]);
    let engine = bed.engine().await;
    ended(&run(&engine, work("g", 1)).await, Status::Success);
    let slow = Submit { input: json!({"last": 1}), ..work("g", 1) };
    let submitted = engine.submit(slow).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(state(&engine, 1).await["log"], json!(["a", "b", "a"]));
    engine.cancel_with(submitted.run, "ann", CancelMode::Rollback).await.unwrap();
    let record = engine.wait(submitted.run).await.unwrap();
    assert_eq!(record.status, Status::Cancelled);
    assert_eq!(state(&engine, 1).await, json!({"log": ["a", "b"]}), "I9");

    // Run on from after `a` of the first run, with another input.
    let history = engine.history(thread(1), None, 10).await.unwrap();
    let after_a = history.iter().find(|at| at.step == 0).unwrap();
    let command = Command { fork: true, ..Command::default() };
    let options =
        RunOptions { command: Some(command), base: Some(after_a.id), ..RunOptions::default() };
    ended(&run(&engine, Submit { options, ..work("g", 1) }).await, Status::Success);
    assert_eq!(state(&engine, 1).await["log"], json!(["a", "b"]));
    // A change by hand, as if `a` had made it: `b` is due.
    let change = StateChange {
        writes: vec![Write::new("log", json!("by hand"))],
        from: None,
        as_node: Some("a".to_owned()),
    };
    engine.update_state(thread(1), "g", change).await.unwrap();
    let options = RunOptions { command: Some(Command::default()), ..RunOptions::default() };
    ended(&run(&engine, Submit { options, ..work("g", 1) }).await, Status::Success);
    assert_eq!(state(&engine, 1).await["log"], json!(["a", "b", "by hand", "b"]));
}

#[tokio::test(start_paused = true)]
async fn an_endless_loop_is_named_and_a_wide_fan_out_refused() {
    let looping = plan(&["a", "b"]).entry("a").edge("a", "b").edge("b", "a").max_steps(9);
    let wide = plan(&["scatter", "item"]).entry("scatter").may_go("scatter", "item");
    let scatter = script(|_| async move {
        let send = |n: u32| Goto::Send { node: "item".into(), payload: json!(n) };
        Ok(Output { goto: Some((0..100_000).map(send).collect()), ..Output::default() })
    });
    let bed = Bed::new(vec![
        agent("loop", "chat", looping.build().unwrap(), &[("a", says("a")), ("b", says("b"))]),
        agent("wide", "chat", wide.build().unwrap(), &[("scatter", scatter), ("item", says("i"))]),
    ]);
    let engine = bed.engine().await;
    let failure = run(&engine, work("loop", 1)).await.failure.unwrap();
    assert_eq!(failure.code, Code::RecursionLimit);
    assert!(
        failure.message.contains("a → b → a") || failure.message.contains("b → a → b"),
        "{failure}"
    );
    let failure = run(&engine, work("wide", 2)).await.failure.unwrap();
    assert_eq!(
        (failure.code, &failure.detail["limit"]),
        (Code::LimitExceeded, &json!("superstep_calls"))
    );
}

#[tokio::test(start_paused = true)]
async fn artifacts_are_kept_once_per_call_and_have_limits() {
    let plan = plan(&["make", "again"]).entry("make").edge("make", "again").build().unwrap();
    let make = script(|cx: clearway_engine::Ctx| async move {
        cx.artifact("page.html", "text/html", Bytes::from_static(b"<p>one</p>")).await?;
        cx.artifact("page.html", "text/html", Bytes::from_static(b"<p>two</p>")).await?;
        Ok(Output::default())
    });
    let again = script(|cx: clearway_engine::Ctx| async move {
        cx.artifact("page.html", "text/html", Bytes::from_static(b"<p>new</p>")).await?;
        let huge = cx.artifact("huge", "text/plain", Bytes::from(vec![b'x'; 50 << 20])).await;
        assert!(matches!(huge, Err(clearway_engine::NodeError::Failed(failure))
            if failure.code == Code::LimitExceeded && failure.detail["limit"] == "artifact_bytes"));
        assert!(cx.artifact("../up", "text/plain", Bytes::new()).await.is_err());
        Ok(Output::default())
    });
    let bed = Bed::new(vec![agent("g", "chat", plan, &[("make", make), ("again", again)])]);
    let engine = bed.engine().await;
    let record = run(&engine, work("g", 1)).await;
    ended(&record, Status::Success);
    let all = engine.artifacts(ArtifactScope::Thread(thread(1))).await.unwrap();
    assert_eq!((all.len(), all[0].version, all[0].size_bytes), (1, 2, 10));
    let (_, bytes) =
        engine.artifact(ArtifactScope::Run(record.id), "page.html", Some(1)).await.unwrap();
    assert_eq!(&bytes[..], b"<p>two</p>");
}

#[tokio::test(start_paused = true)]
async fn a_panic_or_a_hang_ends_its_own_run_only() {
    let single = |name: &str, node: Arc<dyn Node>| {
        agent(name, "chat", plan(&["n"]).entry("n").build().unwrap(), &[("n", node)])
    };
    let (name, hang) = single("hang", script(|_| async { std::future::pending().await }));
    let mut hang = Arc::unwrap_or_clone(hang);
    let timeout = Some(Duration::from_secs(30));
    hang.policies.insert("n".into(), NodePolicy { timeout, ..NodePolicy::default() });
    let bed = Bed::new(vec![
        single("panic", script(|_| async { panic!("on purpose") })),
        (name, Arc::new(hang)),
        single("well", says("well")),
    ]);
    let engine = bed.engine().await;
    let (one, two, three) = tokio::join!(
        run(&engine, work("panic", 1)),
        run(&engine, work("hang", 2)),
        run(&engine, work("well", 3))
    );
    assert_eq!(one.failure.unwrap().code, Code::Internal);
    assert_eq!(
        (two.status, two.failure.unwrap().detail["limit"].clone()),
        (Status::Timeout, json!("deadline"))
    );
    ended(&three, Status::Success);
}

#[tokio::test(start_paused = true)]
async fn a_question_without_an_answer_is_answered_by_its_time_limit() {
    let plan = plan(&["ask"]).entry("ask").build().unwrap();
    let ask = script(|cx: clearway_engine::Ctx| async move {
        let expiry = Expiry { after: Duration::from_secs(3600), answer: json!("reject") };
        let answer = cx.interrupt_for(json!("publish?"), Some(expiry))?;
        Ok(wrote("log", answer))
    });
    let bed = Bed::new(vec![agent("g", "chat", plan, &[("ask", ask)])]);
    let engine = bed.engine().await;
    ended(&run(&engine, work("g", 1)).await, Status::Success);
    tokio::time::sleep(Duration::from_secs(3700)).await;
    assert_eq!(state(&engine, 1).await["log"], json!(["reject"]));
}
