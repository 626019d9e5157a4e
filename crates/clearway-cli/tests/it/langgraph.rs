//! LangGraph's door of the real binary: streams over hang-ups and crashes, storms on one thread.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clearway_testkit::{Event, PATIENCE, SimOptions, Stream, World, until};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::binary;

fn paced(tokens: u32, interval_ms: u64) -> SimOptions {
    let interval = Duration::from_millis(interval_ms);
    SimOptions { tokens: Some(tokens), interval, ..SimOptions::default() }
}

async fn post(world: &World, path: &str, body: &Value) -> Result<Value> {
    Ok(world.client().post(path).json(body).send().await?.expect(200)?.json())
}

async fn get(world: &World, path: &str) -> Result<Value> {
    Ok(world.client().get(path).send().await?.expect(200)?.json())
}

async fn thread(world: &World) -> Result<String> {
    let made = post(world, "/threads", &json!({})).await?;
    Ok(made["thread_id"].as_str().context("no thread id")?.to_owned())
}

fn hello(text: &str) -> Value {
    json!({"assistant_id": "agent", "input": {"messages": [{"role": "user", "content": text}]}})
}

/// The text of each message as LangGraph's SDKs put it together: pieces are appended, a whole message
/// takes the place of what there was.
fn said(events: &[Event]) -> Result<HashMap<String, String>> {
    let mut said: HashMap<String, String> = HashMap::new();
    for event in events.iter().filter(|event| event.name.as_deref() == Some("messages")) {
        let message = &event.json()[0];
        let id = message["id"].as_str().context("a message without an id")?;
        let known = said.entry(id.to_owned()).or_default();
        if message["type"] != "AIMessageChunk" {
            known.clear();
        }
        known.push_str(message["content"].as_str().unwrap_or_default());
    }
    Ok(said)
}

async fn resumable(world: &World, thread: &str) -> Result<(Stream, String)> {
    let mut body = hello("Tell me.");
    body["stream_mode"] = json!([
        "values",
        "updates",
        "messages-tuple",
        "messages",
        "custom",
        "tasks",
        "checkpoints",
        "debug",
        "events"
    ]);
    body["stream_resumable"] = json!(true);
    let path = format!("/threads/{thread}/runs/stream");
    let stream = world.client().post(path).json(&body).open().await?.ok().await?;
    let at = stream.headers.get("location").context("no location")?.to_owned();
    Ok((stream, at))
}

async fn join(world: &World, at: &str, last: &str) -> Result<Stream> {
    world.client().get(at).header("last-event-id", last).open().await?.ok().await
}

#[tokio::test]
async fn hanging_up_again_and_again_loses_and_doubles_nothing() -> Result<()> {
    let world = World::new(binary()).sim(paced(40, 5)).start().await?;
    for n in 1..=3usize {
        let thread = thread(&world).await?;
        let (mut stream, at) = resumable(&world, &thread).await?;
        let mut events: Vec<Event> = Vec::new();
        let mut hang_ups = 0;
        'run: loop {
            for _ in 0..n * 3 {
                match stream.next().await? {
                    Some(event) => events.push(event),
                    None => break 'run,
                }
            }
            hang_ups += 1;
            let last = events.last().and_then(|event| event.id.clone()).context("no id")?;
            stream = join(&world, &at, &last).await?;
        }
        ensure!(hang_ups > 5, "{hang_ups} hang-ups say little");
        let whole = join(&world, &at, "-1").await?.rest().await?;
        assert_eq!(events, whole);
        let state = get(&world, &format!("/threads/{thread}/state")).await?;
        let reply = &state["values"]["messages"][1];
        let id = reply["id"].as_str().context("no reply")?;
        assert_eq!(said(&events)?.get(id).map(String::as_str), reply["content"].as_str());
    }
    world.finish().await
}

#[tokio::test]
async fn a_stream_goes_on_after_a_crash_with_what_stands() -> Result<()> {
    let mut world = World::new(binary()).sim(paced(30, 30)).start().await?;
    let thread = thread(&world).await?;
    let (mut stream, at) = resumable(&world, &thread).await?;
    let mut events: Vec<Event> = Vec::new();
    while said(&events)?.values().all(|text| text.len() < 30) {
        events.push(stream.next().await?.context("it ended early")?);
    }
    drop(stream);
    world.kill().await?;
    world.restart().await?;
    let last = events.last().and_then(|event| event.id.clone()).context("no id")?;
    events.extend(join(&world, &at, &last).await?.rest().await?);
    let state = get(&world, &format!("/threads/{thread}/state")).await?;
    let reply = &state["values"]["messages"][1];
    let id = reply["id"].as_str().context("no reply")?;
    assert_eq!(said(&events)?.get(id).map(String::as_str), reply["content"].as_str());
    let values = events.iter().rev().find(|event| event.name.as_deref() == Some("values"));
    assert_eq!(values.context("no values")?.json(), state["values"]);
    world.finish().await
}

#[tokio::test]
async fn storms_on_one_thread_end_as_the_strategies_say() -> Result<()> {
    // What waits its turn is quick; what is cut off must be there long enough to be cut off.
    for (strategy, interval_ms, accepted, succeeded) in [
        ("reject", 100, 1, 1),
        ("enqueue", 1, 50, 50),
        ("interrupt", 100, 50, 1),
        ("rollback", 100, 50, 1),
    ] {
        let world = World::new(binary()).sim(paced(10, interval_ms)).start().await?;
        let thread = thread(&world).await?;
        let path = format!("/threads/{thread}/runs");
        let mut body = hello("first");
        body["multitask_strategy"] = strategy.into();
        let mut requests = JoinSet::new();
        for _ in 0..50 {
            let request = world.client().post(&path).json(&body);
            requests.spawn(request.send());
        }
        let mut answers = Vec::new();
        while let Some(answer) = requests.join_next().await {
            answers.push(answer??);
        }
        let count = |status: u16| answers.iter().filter(|answer| answer.status == status).count();
        assert_eq!((count(200), count(409)), (accepted, 50 - accepted), "{strategy}");
        until("the thread is free", PATIENCE, async || {
            Ok(get(&world, &format!("/threads/{thread}")).await?["status"] == "idle")
        })
        .await?;
        let runs = get(&world, &format!("{path}?limit=100")).await?;
        let runs = runs.as_array().context("no list")?;
        let with = |status: &str| runs.iter().filter(|run| run["status"] == status).count();
        assert_eq!(with("success"), succeeded, "{strategy}: {runs:?}");
        let cut = if strategy == "interrupt" { accepted - succeeded } else { 0 };
        assert_eq!(with("interrupted"), cut, "{strategy}");
        assert_eq!(runs.len(), succeeded + cut, "{strategy}");
        // Every turn that stands has its answer.
        let state = get(&world, &format!("/threads/{thread}/state")).await?;
        let messages = state["values"]["messages"].as_array().context("no messages")?;
        let replies = messages.iter().filter(|message| message["type"] == "ai").count();
        assert_eq!(replies, succeeded, "{strategy}");
        if strategy != "interrupt" {
            assert_eq!(messages.len(), 2 * succeeded, "{strategy}");
        }
        world.finish().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_cancel_that_is_waited_for_leaves_the_thread_free() -> Result<()> {
    let world = World::new(binary()).sim(paced(2000, 20)).start().await?;
    let thread = thread(&world).await?;
    let path = format!("/threads/{thread}/runs");
    let run = post(&world, &path, &hello("go on and on")).await?;
    let run = run["run_id"].as_str().context("no run")?.to_owned();
    until(
        "the provider streams",
        PATIENCE,
        async || Ok(world.sim().count("in_flight").await? == 1),
    )
    .await?;
    let begun = Instant::now();
    post(&world, &format!("{path}/{run}/cancel?wait=true"), &json!({})).await?;
    let took = begun.elapsed();
    assert_eq!(get(&world, &format!("/threads/{thread}")).await?["status"], "interrupted");
    assert_eq!(get(&world, &format!("{path}/{run}")).await?["status"], "interrupted");
    until("the provider's socket is closed", PATIENCE, async || {
        Ok(world.sim().count("in_flight").await? == 0)
    })
    .await?;
    ensure!(took < Duration::from_secs(2), "the cancel took {took:?}");
    world.finish().await
}

const FLOW: &str = r#"
[workflows.flow.channels]
topic = { reducer = "last", input = true }
steps = { reducer = "append" }

[workflows.flow.steps.begin]
do     = "set"
value  = "'begin'"
writes = { steps = "['begin']" }

[workflows.flow.steps.pause]
needs  = ["begin"]
do     = "wait"
for    = "20ms"
writes = { steps = "['pause']" }

[workflows.flow.steps.beside]
needs  = ["begin"]
do     = "set"
value  = "'beside'"
writes = { steps = "['beside']" }

[workflows.flow.steps.ask]
needs   = ["pause", "beside"]
do      = "ask"
payload = { question = "Go on?" }
writes  = { steps = "[ask]" }

[workflows.flow.steps.finish]
needs  = ["ask"]
do     = "set"
value  = "'finish'"
writes = { steps = "['finish']" }
"#;

/// Where a frame stands among those of its run.
fn place(event: &Event) -> Option<(u64, u64)> {
    let (seq, part) = event.id.as_deref()?.split_once('-')?;
    Some((seq.parse().ok()?, part.parse().ok()?))
}

fn flow(more: Value) -> Value {
    let mut body = json!({"assistant_id": "flow"});
    if let (Value::Object(body), Value::Object(more)) = (&mut body, more) {
        body.extend(more);
    }
    body
}

#[tokio::test]
async fn a_workflow_looks_the_same_to_whoever_comes_late() -> Result<()> {
    let world = World::new(binary()).config(|config| config.extra.push_str(FLOW)).start().await?;
    let modes = json!(["values", "updates", "custom", "tasks", "checkpoints", "debug", "events"]);
    let id = thread(&world).await?;
    let (path, wait) = (format!("/threads/{id}"), format!("/threads/{id}/runs/wait"));
    let asked = flow(json!({
        "input": {"topic": "tea"}, "stream_mode": modes, "stream_resumable": true,
    }));
    let answer = flow(json!({
        "command": {"resume": "yes"}, "stream_mode": modes, "stream_resumable": true,
        "metadata": {"who": "ann"},
    }));
    for body in [asked, answer] {
        let request = world.client().post(format!("{path}/runs/stream")).json(&body);
        let mut stream = request.open().await?.ok().await?;
        let at = stream.headers.get("location").context("no location")?.to_owned();
        let mut live = Vec::new();
        while let Some(event) = stream.next().await? {
            live.push(event);
        }
        // It waited on its way, and what it did behind that is read as what was before.
        assert_eq!(join(&world, &at, "-1").await?.rest().await?, live);
        // Wherever a client breaks off, what it lacks has higher ids than what it has.
        let ids: Vec<(u64, u64)> = live.iter().filter_map(place).collect();
        assert!(ids.len() == live.len() && ids.is_sorted_by(|one, next| one < next), "{ids:?}");
        let ends = live.iter().filter(|event| event.name.as_deref() == Some("tasks"));
        let asks = ends.filter(|end| end.json()["interrupts"][0]["value"]["question"] == "Go on?");
        assert_eq!(asks.count(), usize::from(body["command"].is_null()), "its end says so");
    }
    let state = get(&world, &format!("{path}/state")).await?;
    assert_eq!(state["values"]["steps"], json!(["begin", "pause", "beside", "yes", "finish"]));
    assert_eq!(state["metadata"]["who"], "ann", "what its run was given");
    let history = post(&world, &format!("{path}/history"), &json!({"limit": 2})).await?;
    assert_eq!(state["parent_checkpoint"], history[1]["checkpoint"], "what is not shown");
    let named = json!({"checkpoint": {"thread_id": id}});
    let now = post(&world, &format!("{path}/state/checkpoint"), &named).await?;
    assert_eq!(now, state, "no checkpoint's id means where it stands");
    // Another window answers, too.
    post(&world, &wait, &flow(json!({"command": {"resume": "no"}}))).await?;
    let standing = get(&world, &path).await?;
    assert_eq!((&standing["status"], &standing["values"]), (&json!("idle"), &state["values"]));
    let list = get(&world, &format!("{path}/runs?select=status&select=run_id")).await?;
    assert_eq!(list[0].as_object().map(serde_json::Map::len), Some(2));

    // As if input had come; from a stop before a node an answer leads on as well.
    let change = json!({"values": {"topic": "more"}, "as_node": "__start__"});
    post(&world, &format!("{path}/state"), &change).await?;
    assert_eq!(get(&world, &format!("{path}/state")).await?["next"], json!(["begin"]));
    post(&world, &wait, &flow(json!({"input": null, "interrupt_before": ["pause"]}))).await?;
    let on = post(&world, &wait, &flow(json!({"command": {"resume": true}}))).await?;
    assert_eq!(on["__interrupt__"][0]["value"], json!({"question": "Go on?"}));
    let change = json!({"values": null, "as_node": "finish"});
    post(&world, &format!("{path}/state"), &change).await?;
    assert_eq!(get(&world, &path).await?["status"], "idle", "nothing is left to do");
    // A run that changed nothing began from what stood there then.
    let late = list[0]["run_id"].as_str().context("no id")?;
    let told = join(&world, &format!("{path}/runs/{late}/stream"), "-1").await?.rest().await?;
    assert_eq!(told[1].json(), state["values"]);
    world.finish().await
}
