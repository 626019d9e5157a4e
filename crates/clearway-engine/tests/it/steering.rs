//! Stopping a graph on purpose, sending it elsewhere, and what its surroundings do for a node.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use clearway_core::channel::Write;
use clearway_core::machine::{Breaks, Command};
use clearway_core::plan::Goto;
use clearway_core::run::RunOptions;
use clearway_core::wait::WaitKind;
use clearway_core::{Code, Failure, Status};
use clearway_engine::{Ctx, Engine, NodePolicy, OnOutage, Submit};
use serde_json::{Value, json};

use crate::attack::{agent, script};
use crate::graphs::{Bed, plan, run, says, state, until_waiting, work, wrote};
use crate::support::*;

fn names(names: &[&str]) -> BTreeSet<Arc<str>> {
    names.iter().map(|&name| name.into()).collect()
}

fn with(options: RunOptions, n: u128) -> Submit {
    Submit { options, ..work("g", n) }
}

fn going_on(command: Command, breaks: Breaks) -> RunOptions {
    RunOptions { command: Some(command), breaks, ..RunOptions::default() }
}

async fn abc() -> Engine {
    let plan = plan(&["a", "b", "c"]).entry("a").edge("a", "b").edge("b", "c").build().unwrap();
    let nodes = [("a", says("a")), ("b", says("b")), ("c", says("c"))];
    Bed::new(vec![agent("g", "chat", plan, &nodes)]).engine().await
}

#[tokio::test(start_paused = true)]
async fn a_run_stops_before_and_after_the_nodes_that_it_is_told() {
    let engine = abc().await;
    let before = Breaks { before: names(&["b"]), ..Breaks::default() };
    let options = RunOptions { breaks: before.clone(), ..RunOptions::default() };
    let stopped = run(&engine, with(options, 1)).await;
    ended(&stopped, Status::Success);
    assert_eq!(
        (stopped.next.as_slice(), state(&engine, 1).await["log"].clone()),
        (&["b".to_owned()][..], json!(["a"]))
    );
    // Going on under the same breaks passes the one that it stands before.
    ended(&run(&engine, with(going_on(Command::default(), before), 1)).await, Status::Success);
    assert_eq!(state(&engine, 1).await["log"], json!(["a", "b", "c"]));

    let after = Breaks { after: names(&["a", "b"]), ..Breaks::default() };
    let options = RunOptions { breaks: after.clone(), ..RunOptions::default() };
    assert_eq!(run(&engine, with(options, 2)).await.next, ["b"]);
    assert_eq!(run(&engine, with(going_on(Command::default(), after), 2)).await.next, ["c"]);
    assert_eq!(state(&engine, 2).await["log"], json!(["a", "b"]));
}

#[tokio::test(start_paused = true)]
async fn a_command_writes_and_sends_elsewhere() {
    let engine = abc().await;
    let breaks = Breaks { before: names(&["b"]), ..Breaks::default() };
    let options = RunOptions { breaks, ..RunOptions::default() };
    ended(&run(&engine, with(options, 1)).await, Status::Success);
    let command = Command {
        update: vec![Write::new("log", json!("by hand"))],
        goto: Some(vec![Goto::Node("c".into())]),
        ..Command::default()
    };
    ended(&run(&engine, with(going_on(command, Breaks::default()), 1)).await, Status::Success);
    assert_eq!(state(&engine, 1).await["log"], json!(["a", "by hand", "c"]));
    let command = Command { goto: Some(vec![Goto::Node("x".into())]), ..Command::default() };
    let lost = run(&engine, with(going_on(command, Breaks::default()), 1)).await;
    assert!(lost.failure.unwrap().message.contains("no node `x`"));
}

#[tokio::test(start_paused = true)]
async fn a_run_that_waits_behind_its_break_does_not_stop_there_again() {
    let plan = plan(&["a", "nap"]).entry("a").edge("a", "nap").build().unwrap();
    let nap = script(|cx: Ctx| async move {
        cx.sleep("nap", Duration::from_secs(60)).await?;
        Ok(wrote("log", json!("slept")))
    });
    let bed = Bed::new(vec![agent("g", "chat", plan, &[("a", says("a")), ("nap", nap)])]);
    let engine = bed.engine().await;
    let breaks = Breaks { before: names(&["nap"]), ..Breaks::default() };
    let options = RunOptions { breaks: breaks.clone(), ..RunOptions::default() };
    ended(&run(&engine, with(options, 1)).await, Status::Success);
    // The update is committed when the node begins to wait, so the run is taken up behind it.
    let update = vec![Write::new("log", json!("noted"))];
    let command = Command { update, ..Command::default() };
    let record = run(&engine, with(going_on(command, breaks), 1)).await;
    assert_eq!((record.status, record.next.len()), (Status::Success, 0));
    assert_eq!(state(&engine, 1).await["log"], json!(["a", "noted", "slept"]));
}

#[tokio::test(start_paused = true)]
async fn a_cached_output_is_not_made_again_for_the_same_input() {
    let calls = Arc::new(AtomicU32::new(0));
    let counter = calls.clone();
    let node = script(move |_| {
        let n = counter.fetch_add(1, Ordering::Relaxed);
        async move { Ok(wrote("last", json!(n))) }
    });
    let plan = plan(&["n"]).entry("n").build().unwrap();
    let (name, agent) = agent("g", "chat", plan, &[("n", node)]);
    let mut agent = Arc::unwrap_or_clone(agent);
    let cache = Some(Duration::from_secs(60));
    agent.policies.insert("n".into(), NodePolicy { cache, ..NodePolicy::default() });
    let engine = Bed::new(vec![(name, Arc::new(agent))]).engine().await;
    for (thread, input, expected) in [(1, "x", 0), (2, "x", 0), (3, "y", 1), (4, "x", 0)] {
        let submit = Submit { input: json!({"log": input}), ..work("g", thread) };
        ended(&run(&engine, submit).await, Status::Success);
        assert_eq!(state(&engine, thread).await["last"], json!(expected), "thread {thread}");
    }
    tokio::time::sleep(Duration::from_secs(61)).await;
    let submit = Submit { input: json!({"log": "x"}), ..work("g", 5) };
    ended(&run(&engine, submit).await, Status::Success);
    assert_eq!(calls.load(Ordering::Relaxed), 3, "it has grown too old");
}

#[tokio::test(start_paused = true)]
async fn an_outage_parks_what_may_wait_and_fails_the_rest() {
    let up = Arc::new(AtomicU32::new(0));
    let make = |name: &str, on_outage: OnOutage| {
        let up = up.clone();
        let node = script(move |_| {
            let up = up.load(Ordering::Relaxed) > 0;
            async move {
                if up {
                    return Ok(wrote("log", json!("answered")));
                }
                Err(Failure::new(Code::UpstreamRouteOpen, "every route is open").into())
            }
        });
        let plan = plan(&["n"]).entry("n").build().unwrap();
        let (name, agent) = agent(name, "chat", plan, &[("n", node)]);
        let mut agent = Arc::unwrap_or_clone(agent);
        agent.on_outage = on_outage;
        agent.starts_ahead = false;
        (name, Arc::new(agent))
    };
    let agents = vec![make("g", OnOutage::Park), make("hasty", OnOutage::Fail)];
    let engine = Bed::new(agents).engine().await;
    let hasty = run(&engine, work("hasty", 9)).await;
    assert_eq!(hasty.failure.unwrap().code, Code::UpstreamRouteOpen);
    let submitted = engine.submit(work("g", 1)).await.unwrap();
    assert_eq!(until_waiting(&engine, submitted.run).await, WaitKind::Outage);
    let attention = engine.attention(None, 10).await.unwrap().items;
    assert!(attention[0].command.contains("runs wake"), "{}", attention[0].command);
    let worked = engine.run(submitted.run).await.unwrap().record.worked;
    assert!(worked < Duration::from_secs(1), "an outage is no working time");
    up.store(1, Ordering::Relaxed);
    engine.wake(submitted.run).await.unwrap();
    ended(&engine.wait(submitted.run).await.unwrap(), Status::Success);
    assert_eq!(state(&engine, 1).await["log"], Value::from(vec!["answered"]));
}
