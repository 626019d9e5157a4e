//! Power cuts and orderly stops in the middle of everything.
//!
//! Clients do what good clients do: they repeat a request under the same Idempotency-Key until it is
//! acknowledged, and resume a stream from its last event id. What they may then rely on is checked
//! from outside: nothing acknowledged is lost, nothing happens twice, every log is without a gap.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clearway_testkit::{Client, Event, PATIENCE, Request, SimOptions, World, until};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::{binary, joined, last, run_id};

const KILLS: usize = 10;

/// What the clients share.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    acknowledged: AtomicUsize,
}

/// One client's acknowledged runs by key.
type Ledger = BTreeMap<String, String>;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Chat,
    Stream,
    Task,
}

/// Repeats `request` until it is answered with a success. A server that is down, or goes down, is
/// no answer.
async fn insist(request: Request) -> Result<clearway_testkit::Response> {
    let end = Instant::now() + 2 * PATIENCE;
    loop {
        match request.clone().send().await {
            Ok(answer) if answer.status < 300 => return Ok(answer),
            // The run itself must not fail; everything else is the server's going or coming.
            Ok(answer) if !matches!(answer.code().as_str(), "shutting_down" | "fenced") => {
                bail!("status {}: {}", answer.status, answer.text())
            }
            Ok(_) | Err(_) => {}
        }
        ensure!(Instant::now() < end, "never acknowledged");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Reads a stream to its final event, however often it is cut, and checks what came.
async fn follow(request: Request) -> Result<String> {
    let end = Instant::now() + 2 * PATIENCE;
    let mut seen: Vec<Event> = Vec::new();
    let mut run = String::new();
    loop {
        let again = match seen.iter().rev().find_map(|event| event.id.clone()) {
            Some(id) => request.clone().header("last-event-id", id),
            None => request.clone(),
        };
        if let Ok(mut stream) = again.open().await
            && stream.status == 200
        {
            let this = run_id(&stream.headers)?;
            ensure!(run.is_empty() || run == this, "the key led to another run");
            run = this;
            while let Ok(Some(event)) = stream.next().await {
                let is_reset = event.json()["message"]
                    .as_str()
                    .is_some_and(|text| text.starts_with("output.reset"));
                if is_reset {
                    seen.retain(|event| event.kind() != "delta");
                }
                // Without an id it is the server's farewell, and no event of the run.
                if event.id.is_some() {
                    seen.push(event);
                }
            }
        }
        if last(&seen)["type"] == "error" {
            bail!("run {run} failed: {}", last(&seen));
        }
        if last(&seen)["type"] == "final" {
            let text = last(&seen)["text"].as_str().unwrap_or_default().to_owned();
            ensure!(text == joined(&seen), "run {run}: {text:?} is not {:?}", joined(&seen));
            return Ok(run);
        }
        ensure!(Instant::now() < end, "the stream of run {run} never came to an end");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn client(server: Client, kind: Kind, user: String, shared: Arc<Shared>) -> Result<Ledger> {
    let mut ledger = Ledger::new();
    for number in 0.. {
        if shared.stop.load(Ordering::Acquire) {
            break;
        }
        let key = format!("{user}-{number}");
        let chat = json!({"user_id": user, "message": format!("message {number}")});
        let task = json!({"user_id": user, "conversation_id": "c", "message": format!("message {number}")});
        let run = match kind {
            Kind::Chat => {
                let answer =
                    insist(server.post("/chat").json(&chat).header("idempotency-key", &key))
                        .await?;
                run_id(&answer.headers)?
            }
            Kind::Stream => {
                follow(server.post("/chat/stream").json(&chat).header("idempotency-key", &key))
                    .await?
            }
            Kind::Task => {
                let request =
                    server.post("/chat/async").json(&task).header("idempotency-key", &key);
                let answer = insist(request).await?;
                // Not waited for: several of them pile up on their thread.
                answer.json()["task_id"].as_str().context("no task id")?.to_owned()
            }
        };
        shared.acknowledged.fetch_add(1, Ordering::AcqRel);
        ledger.insert(key, run);
        if matches!(kind, Kind::Task) {
            // A few in the queue are the point; a queue that outgrows the test is not.
            sleep(Duration::from_millis(150)).await;
        }
    }
    Ok(ledger)
}

#[tokio::test]
async fn kill_under_load_loses_and_doubles_nothing() -> Result<()> {
    let sim = SimOptions {
        tokens: Some(25),
        interval: Duration::from_millis(10),
        ..SimOptions::default()
    };
    let mut world = World::new(binary()).sim(sim).start().await?;
    let shared = Arc::new(Shared::default());
    let mut clients = JoinSet::new();
    for (kind, name) in [(Kind::Chat, "chat"), (Kind::Stream, "stream"), (Kind::Task, "task")] {
        for number in 0..3 {
            clients.spawn(client(world.client(), kind, format!("{name}{number}"), shared.clone()));
        }
    }
    for kill in 0..KILLS {
        // In the middle of it: some runs done since the start, some under way.
        let before = shared.acknowledged.load(Ordering::Acquire);
        until(format!("work is under way before kill {kill}"), PATIENCE, async || {
            let done = shared.acknowledged.load(Ordering::Acquire) - before;
            ensure!(clients.try_join_next().is_none(), "a client gave up");
            Ok(done >= 3 && world.sim().count("in_flight").await? >= 3)
        })
        .await?;
        world.kill().await?;
        world.restart().await?;
    }
    shared.stop.store(true, Ordering::Release);
    let mut ledgers = Ledger::new();
    while let Some(ledger) = clients.join_next().await {
        ledgers.extend(ledger??);
    }
    until("every run has ended", PATIENCE, async || {
        Ok(world.runs("status=blocked,ready,running,waiting&limit=1000").await?.is_empty())
    })
    .await?;

    let runs = world.runs("limit=1000").await?;
    let by_id: BTreeMap<&str, &Value> =
        runs.iter().filter_map(|run| Some((run["run_id"].as_str()?, run))).collect();
    let acknowledged: BTreeSet<&str> = ledgers.values().map(String::as_str).collect();
    assert_eq!(acknowledged.len(), ledgers.len(), "two keys share a run");
    assert_eq!(
        by_id.keys().copied().collect::<BTreeSet<_>>(),
        acknowledged,
        "lost, or started twice"
    );
    for run in &runs {
        assert_eq!(run["status"], "success", "{run}");
        world.check_log(run["run_id"].as_str().unwrap_or_default()).await?;
    }
    let resumed = runs.iter().filter(|run| run["attempt"].as_u64() > Some(1)).count();
    assert!(resumed > 0, "no kill hit a run: the test proves nothing");

    // Each turn left its question and its answer in the conversation, once.
    for name in ["chat", "stream"] {
        for number in 0..3 {
            let user = format!("{name}{number}");
            let turns = ledgers.keys().filter(|key| key.starts_with(&format!("{user}-"))).count();
            assert_eq!(world.state(&user).await?["message_count"], 2 * turns, "{user}");
        }
    }
    world.finish().await
}

#[tokio::test]
async fn a_reader_learns_what_a_crash_made_void() -> Result<()> {
    let sim = SimOptions {
        tokens: Some(40),
        interval: Duration::from_millis(30),
        ..SimOptions::default()
    };
    let mut world = World::new(binary()).sim(sim).start().await?;
    let mut stream = world.stream("ann", "hello").open().await?.ok().await?;
    let run = run_id(&stream.headers)?;
    let mut seen = Vec::new();
    while seen.iter().filter(|event: &&Event| event.kind() == "delta").count() < 15 {
        seen.push(stream.next().await?.context("the stream ended early")?);
    }
    let id = seen.last().and_then(|event| event.id.clone()).context("no id")?;
    world.kill().await?;
    drop(stream);
    world.restart().await?;

    let again =
        world.client().get(format!("/chat/stream?run_id={run}")).header("last-event-id", &id);
    let rest = again.open().await?.ok().await?.rest().await?;
    let reset = rest.iter().position(|event| {
        event.json()["message"].as_str().is_some_and(|text| text.starts_with("output.reset"))
    });
    let reset = reset.context("the loss was not announced")?;
    assert!(
        rest[..reset].iter().all(|event| event.kind() != "delta"),
        "void text before the announcement"
    );
    assert_eq!(last(&rest)["type"], "final");
    assert_eq!(last(&rest)["text"], joined(&rest[reset..]));

    let ended = world.ended(&run).await?;
    assert_eq!((&ended["status"], &ended["attempt"]), (&json!("success"), &json!(2)), "{ended}");
    assert_eq!(world.sim().count("requests").await?, 2, "the call was made again, once");
    let usage = &ended["usage"];
    let tokens = usage["input_tokens"].as_u64().zip(usage["output_tokens"].as_u64());
    assert_eq!(usage["rebilled_tokens"].as_u64(), tokens.map(|(input, output)| input + output));
    assert!(usage["rebilled_tokens"].as_u64() >= Some(40), "{usage}");
    let log = world.check_log(&run).await?;
    assert_eq!(log.iter().filter(|event| event["kind"] == "output.reset").count(), 1);
    assert_eq!(world.state("ann").await?["message_count"], 2);
    world.finish().await
}

#[tokio::test]
async fn a_cancel_that_was_acknowledged_survives_a_crash() -> Result<()> {
    let agent = clearway_testkit::Agent::new("agent").fault("no_answer");
    let mut world = World::new(binary()).agent(agent).start().await?;
    let run = world.task(json!({"message": "x"})).await?;
    world.waits_for(&run, "first_byte").await?;
    let answer = world.cancel(&run, "").await?;
    assert!(matches!(answer.status, 200 | 202), "{}", answer.text());
    world.kill().await?;
    world.restart().await?;
    assert_eq!(world.ended(&run).await?["status"], "cancelled");
    assert_eq!(world.sim().count("requests").await?, 1, "a provider was called after the cancel");
    world.check_log(&run).await?;
    world.finish().await
}

#[tokio::test]
async fn an_orderly_stop_hands_back_what_is_not_done() -> Result<()> {
    let sim = SimOptions {
        tokens: Some(60),
        interval: Duration::from_millis(50),
        ..SimOptions::default()
    };
    let drain = Duration::from_millis(400);
    let mut world =
        World::new(binary()).sim(sim).config(|config| config.drain = drain).start().await?;
    let mut stream = world.stream("ann", "hello").open().await?.ok().await?;
    let mut runs = vec![run_id(&stream.headers)?];
    for _ in 0..5 {
        runs.push(world.task(json!({"message": "x"})).await?);
    }
    let behind = json!({"message": "x", "user_id": "bob", "conversation_id": "c"});
    runs.extend([world.task(behind.clone()).await?, world.task(behind).await?]);
    let mut chat = JoinSet::new();
    chat.spawn(world.chat("cid", "hello").send());
    world.sim().until("in_flight", 8, PATIENCE).await?;
    let mut seen = vec![stream.next_where(|event| event.kind() == "delta").await?];
    runs.push(world.newest_run().await?);

    // The bound: the grace, and a few seconds for handing back.
    let began = Instant::now();
    let exit = world.stop(drain + Duration::from_secs(8)).await?;
    let took = began.elapsed();
    assert_eq!(exit.code, Some(0), "{exit:?}");
    assert!(took < drain + Duration::from_secs(5), "{took:?}");
    let rest = stream.rest().await.context("the stream was cut without a word")?;
    assert_eq!(last(&rest)["type"], "error", "{:?}", rest.last());
    assert_eq!(last(&rest)["detail"]["error_type"], "shutting_down");
    seen.extend(rest.into_iter().filter(|event| event.id.is_some()));
    let answer = chat.join_next().await.context("no chat")???;
    assert_eq!(answer.code(), "shutting_down", "{} {}", answer.status, answer.text());
    assert!(answer.text().contains("the run goes on when it is back"), "{}", answer.text());
    assert!(answer.headers.get("retry-after").is_none(), "asking again would be a second turn");
    world.sim().until("in_flight", 0, Duration::from_secs(1)).await?;

    world.restart().await?;
    for run in &runs {
        let ended = world.ended(run).await?;
        assert_eq!(ended["status"], "success", "{ended}");
        world.check_log(run).await?;
    }
    let id = seen.last().and_then(|event| event.id.clone()).context("no id")?;
    let again =
        world.client().get(format!("/chat/stream?run_id={}", runs[0])).header("last-event-id", &id);
    let rest = again.open().await?.ok().await?.rest().await?;
    assert_eq!(last(&rest)["type"], "final");
    assert_eq!(world.state("ann").await?["message_count"], 2);
    world.finish().await
}

/// What is nearly done is not thrown away.
#[tokio::test]
async fn an_orderly_stop_lets_short_runs_finish() -> Result<()> {
    let sim = SimOptions {
        tokens: Some(10),
        interval: Duration::from_millis(60),
        ..SimOptions::default()
    };
    let drain = Duration::from_secs(10);
    let mut world =
        World::new(binary()).sim(sim).config(|config| config.drain = drain).start().await?;
    let mut stream = world.stream("ann", "hello").open().await?.ok().await?;
    let mut events = vec![stream.next_where(|event| event.kind() == "delta").await?];
    world.server()?.terminate()?;
    events.extend(stream.rest().await?);
    assert_eq!(last(&events)["type"], "final", "{:?}", events.last());
    let exit = world.stop_waiting(drain).await?;
    assert_eq!(exit.code, Some(0), "{exit:?}");
    world.finish().await
}

#[tokio::test]
async fn a_second_signal_does_not_wait() -> Result<()> {
    let agent = clearway_testkit::Agent::new("agent").fault("no_answer");
    let drain = Duration::from_secs(60);
    let mut world =
        World::new(binary()).agent(agent).config(|config| config.drain = drain).start().await?;
    let run = world.task(json!({"message": "x"})).await?;
    world.waits_for(&run, "first_byte").await?;
    world.server()?.terminate()?;
    until("the server drains", PATIENCE, async || {
        let answer = world.client().get("/health/ready").send().await;
        Ok(answer.is_err() || answer.is_ok_and(|answer| answer.status == 503))
    })
    .await?;
    let began = Instant::now();
    let exit = world.stop(PATIENCE).await?;
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert_eq!(exit.signal, None, "{exit:?}");
    world.restart().await?;
    world.waits_for(&run, "first_byte").await?;
    world.cancel(&run, "?wait=1").await?.expect(200)?;
    world.check_log(&run).await?;
    world.finish().await
}
