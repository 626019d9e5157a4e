//! Writes that leave the server, and a server that is killed while they do: each happens once, or
//! the run says that nobody knows and waits for somebody who does.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clearway_testkit::{PATIENCE, Pool, Sink, World, until};
use serde_json::{Value, json};

use crate::binary;

/// Every kind of write: side by side, in a loop, with a key, in a child run, and at the end.
const WORKFLOWS: &str = r#"
[http]
hosts = ["127.0.0.1"]
allow = ["127.0.0.1"]

[workflows.once]
pool = "small"
input = { key = "string?" }

[workflows.once.steps.which]
do = "branch"
when = [{ if = "input.key", go = "keyed" }, { else = true, go = "plain" }]

[workflows.once.steps.plain]
do = "http"
request = { method = "POST", url = "SINK/plain", json = { run = "{{ run.id }}" } }

[workflows.once.steps.keyed]
do = "http"
key = "{{ input.key }}"
request = { method = "POST", url = "SINK/keyed" }

[workflows.many]
pool = "small"

[workflows.many.steps.begin]
do = "set"
value = "['a', 'b', 'c']"

[workflows.many.steps.fan]
needs = ["begin"]
for_each = "begin"
do = "http"
request = { method = "POST", url = "SINK/{{ run.id }}/fan-{{ item }}-{{ step.visits }}" }

[workflows.many.steps.look]
needs = ["begin"]
do = "http"
request = { method = "GET", url = "SINK/look" }

[workflows.many.steps.keyed]
needs = ["fan", "look"]
do = "http"
key = "{{ run.id }}-keyed-{{ step.visits }}"
request = { method = "POST", url = "SINK/{{ run.id }}/keyed-{{ step.visits }}" }

[workflows.many.steps.again]
needs = ["keyed"]
do = "branch"
when = [{ if = "step.visits < 2", go = "fan" }, { else = true, go = "child" }]

[workflows.many.steps.child]
do = "workflow"
workflow = "tiny"
input = { parent = "run.id" }

[workflows.many.steps.last]
needs = ["child"]
do = "http"
request = { method = "POST", url = "SINK/{{ run.id }}/last" }

[workflows.tiny]
pool = "small"
input = { parent = "string" }

[workflows.tiny.steps.only]
do = "http"
request = { method = "POST", url = "SINK/{{ input.parent }}/child" }
"#;

/// What a run of `many` does outside.
const WRITES: [&str; 10] = [
    "fan-a-1", "fan-b-1", "fan-c-1", "keyed-1", "fan-a-2", "fan-b-2", "fan-c-2", "keyed-2",
    "child", "last",
];

async fn world(sink: &Sink) -> Result<World> {
    let workflows = WORKFLOWS.replace("SINK", &sink.url());
    let change = |config: &mut clearway_testkit::Config| {
        config.pools.push(Pool { name: "small", slots: 6, queue: 200 });
        config.extra.push_str(&workflows);
    };
    World::new(binary()).config(change).start().await
}

async fn start(world: &World, workflow: &str, input: Value, key: &str) -> Result<String> {
    let request = world.client().post(format!("/workflows/{workflow}/runs"));
    let request = request.json(&json!({"input": input})).header("idempotency-key", key);
    let run = request.send().await?.expect(202)?.json();
    Ok(run["run_id"].as_str().context("no run")?.to_owned())
}

/// Runs that wait for a decision, with the keys of what is undecided.
async fn undecided(world: &World) -> Result<Vec<(String, Vec<String>)>> {
    let mut found = Vec::new();
    for run in world.runs("status=waiting&limit=1000").await? {
        if run["waiting_on"]["kind"] == "decision" {
            let id = run["run_id"].as_str().context("no id")?;
            let writes = world.run(id).await?["undecided"].clone();
            let key = |write: &Value| write["idempotency_key"].as_str().map(ToOwned::to_owned);
            let writes = writes.as_array().into_iter().flatten();
            found.push((id.to_owned(), writes.filter_map(key).collect()));
        }
    }
    Ok(found)
}

#[tokio::test]
async fn a_killed_write_waits_for_somebody_who_knows() -> Result<()> {
    let sink = Sink::start(Duration::from_millis(250)).await?;
    let mut world = world(&sink).await?;
    let plain = start(&world, "once", json!({}), "plain").await?;
    let keyed = start(&world, "once", json!({"key": "order-7"}), "keyed").await?;
    until("both writes have happened and are not answered", PATIENCE, async || {
        Ok(sink.writes().len() == 2)
    })
    .await?;
    world.kill().await?;
    world.restart().await?;

    // Whoever has a key recognises a repetition, so that one goes on by itself.
    assert_eq!(world.ended(&keyed).await?["status"], "success");
    assert_eq!((sink.count("order-7"), sink.times()["/keyed"]), (2, 1));

    let waits = world.waits_for(&plain, "decision").await?;
    let key = waits["undecided"][0]["idempotency_key"].as_str().context("no key")?.to_owned();
    assert_eq!(sink.count(&key), 1, "it is the key that was sent");
    let attention = world.client().get("/attention").send().await?.expect(200)?.json();
    let item = &attention["attention"][0];
    let command = format!("clearway runs resolve {plain} --key {key} --done JSON | --retry");
    assert_eq!((&item["kind"], &item["command"]), (&json!("decision"), &json!(command)));
    let shown = world.cli(&["runs", "show", &plain]).await?;
    assert!(shown.stdout.contains(&key), "{}", shown.stdout);

    let wrong = ["runs", "resolve", &plain, "--key", "another", "--retry"];
    assert_ne!(world.cli(&wrong).await?.code, Some(0));
    let done = r#"{"status": 200, "json": {"done": "by hand"}}"#;
    let output = world.cli(&["runs", "resolve", &plain, "--key", &key, "--done", done]).await?;
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert_eq!(world.ended(&plain).await?["status"], "success");
    assert_eq!(sink.times(), BTreeMap::from([("/keyed".to_owned(), 1), ("/plain".to_owned(), 1)]));
    world.check_log(&plain).await?;
    world.finish().await
}

/// Checkpoints of a thread are its supersteps, each once and in order.
async fn check_supersteps(world: &World, thread: &str) -> Result<()> {
    let path = format!("/storage/threads/{thread}/history?limit=100");
    let history = world.client().get(path).send().await?.expect(200)?.json();
    let checkpoints = history["checkpoints"].as_array().context("no checkpoints")?;
    let steps: Vec<i64> =
        checkpoints.iter().rev().filter_map(|checkpoint| checkpoint["step"].as_i64()).collect();
    let expected: Vec<i64> = (-1..).take(checkpoints.len()).collect();
    ensure!(steps == expected, "supersteps of thread {thread}: {steps:?}");
    for pair in checkpoints.windows(2) {
        ensure!(pair[0]["parent"] == pair[1]["checkpoint"], "a branch in thread {thread}");
    }
    Ok(())
}

/// Says of each undecided write what the other side knows; how many there were.
async fn decide(world: &World, sink: &Sink) -> Result<usize> {
    let mut decided = 0;
    for (run, keys) in undecided(world).await? {
        for key in keys {
            let decision = match sink.count(&key) {
                0 => json!({"key": key, "retry": true}),
                _ => json!({"key": key, "done": {"status": 200, "json": {"done": "decided"}}}),
            };
            let request = world.client().post(format!("/runs/{run}/resolve")).json(&decision);
            request.send().await?.expect(202)?;
            decided += 1;
        }
    }
    Ok(decided)
}

const KILLS: usize = 5;

#[tokio::test]
async fn kills_among_workflows_repeat_no_write_and_no_superstep() -> Result<()> {
    let sink = Sink::start(Duration::from_millis(10)).await?;
    let mut world = world(&sink).await?;
    let (mut runs, mut decided) = (Vec::new(), 0);
    for kill in 0..KILLS {
        for n in 0..4 {
            runs.push(start(&world, "many", json!({}), &format!("{kill}-{n}")).await?);
        }
        // At another place of a run each time.
        let wanted = sink.writes().len() + 5 + 3 * kill;
        until(format!("writes are under way before kill {kill}"), PATIENCE, async || {
            decided += decide(&world, &sink).await?;
            Ok(sink.writes().len() >= wanted)
        })
        .await?;
        world.kill().await?;
        world.restart().await?;
    }
    until("every run has ended", 2 * PATIENCE, async || {
        decided += decide(&world, &sink).await?;
        Ok(world.runs("status=blocked,ready,running,waiting").await?.is_empty())
    })
    .await?;

    let all = world.runs("limit=1000").await?;
    let known: BTreeSet<&str> = all
        .iter()
        .filter(|run| run["agent"] == "many")
        .filter_map(|run| run["run_id"].as_str())
        .collect();
    assert_eq!(
        known,
        runs.iter().map(String::as_str).collect::<BTreeSet<_>>(),
        "lost, or started twice"
    );
    assert_eq!(all.len(), 2 * runs.len(), "each has one child");
    for run in &all {
        assert_eq!(run["status"], "success", "{run}");
        world.check_log(run["run_id"].as_str().context("no id")?).await?;
        check_supersteps(&world, run["thread_id"].as_str().context("no thread")?).await?;
    }
    let expected = runs.iter().flat_map(|run| WRITES.map(|what| (format!("/{run}/{what}"), 1)));
    assert_eq!(sink.times(), expected.collect::<BTreeMap<_, _>>());
    assert!(all.iter().any(|run| run["attempt"].as_u64() > Some(2)), "no kill hit a run");
    assert!(decided > 0, "no kill hit a write: the test proves nothing");
    world.finish().await
}
