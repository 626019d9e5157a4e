//! Ending a run: before its first token, after it, in the queue, and by leaving.
//!
//! The proof is at the provider: its request is gone and its socket is closed.

use std::time::Duration;

use anyhow::Result;
use clearway_testkit::{Agent, PATIENCE, Pool, SimOptions, World, until_some};
use serde_json::json;

use crate::{binary, last, run_id};

/// The product's bound is 50 ms; the rest is for a debug build on a busy machine.
const SOON: Duration = Duration::from_millis(500);

async fn is_gone_at_the_provider(world: &World) -> Result<()> {
    world.sim().until("in_flight", 0, SOON).await?;
    world.sim().until("aborted_by_client", 1, SOON).await?;
    // Ours is the only one left: the connection that asks.
    world.sim().until("connections_open", 1, SOON).await
}

#[tokio::test]
async fn before_the_first_token() -> Result<()> {
    let world =
        World::new(binary()).agent(Agent::new("cofounder").fault("no_answer")).start().await?;
    let stream = world.stream("ann", "hello").open().await?.ok().await?;
    let run = run_id(&stream.headers)?;
    world.waits_for(&run, "first_byte").await?;
    assert_eq!(world.sim().count("in_flight").await?, 1);

    let answer = world.cancel(&run, "?wait=1").await?.expect(200)?.json();
    is_gone_at_the_provider(&world).await?;
    assert_eq!(answer["status"], "cancelled", "{answer}");
    assert_eq!(answer["receipt"]["socket_closed"], true, "{answer}");
    assert!(answer["receipt"]["ms"].as_u64().is_some_and(|ms| ms < 2000), "{answer}");
    let events = stream.rest().await?;
    assert_eq!(last(&events)["type"], "error");
    assert_eq!(last(&events)["detail"]["error_type"], "cancelled");
    world.check_log(&run).await?;
    world.finish().await
}

#[tokio::test]
async fn after_the_first_token() -> Result<()> {
    let world =
        World::new(binary()).agent(Agent::new("cofounder").fault("stall:3")).start().await?;
    let mut stream = world.stream("ann", "hello").open().await?.ok().await?;
    let run = run_id(&stream.headers)?;
    for _ in 0..3 {
        stream.next_where(|event| event.kind() == "delta").await?;
    }
    // Without wait=1 the answer is the request's, and the end follows.
    let answer = world.cancel(&run, "").await?;
    assert!(matches!(answer.status, 200 | 202), "{}", answer.text());
    is_gone_at_the_provider(&world).await?;
    assert_eq!(world.ended(&run).await?["status"], "cancelled");
    let events = stream.rest().await?;
    assert_eq!(last(&events)["detail"]["error_type"], "cancelled");
    let log = world.check_log(&run).await?;
    assert!(
        log.iter().any(|event| event["kind"] == "cancel.requested"),
        "no trace of who ended it"
    );
    world.finish().await
}

#[tokio::test]
async fn while_it_waits_for_a_slot() -> Result<()> {
    let world = World::new(binary())
        .agent(Agent::new("cofounder").fault("no_answer").line("pool = \"narrow\""))
        .config(|config| config.pools.push(Pool { name: "narrow", slots: 1, queue: 10 }))
        .start()
        .await?;
    let first = world.task(json!({"message": "x"})).await?;
    world.waits_for(&first, "first_byte").await?;
    let second = world.task(json!({"message": "x"})).await?;
    assert_eq!(world.waits_for(&second, "slot").await?["status"], "ready");

    let answer = world.cancel(&second, "?wait=1").await?.expect(200)?.json();
    assert_eq!(answer["status"], "cancelled", "{answer}");
    let log = world.check_log(&second).await?;
    assert!(!log.iter().any(|event| event["kind"] == "run.started"), "it was started");
    assert_eq!(world.run(&first).await?["status"], "running", "the wrong one was stopped");
    assert_eq!(world.sim().count("requests").await?, 1);
    world.cancel(&first, "?wait=1").await?.expect(200)?;
    world.finish().await
}

#[tokio::test]
async fn twice_or_too_late() -> Result<()> {
    let world = World::new(binary()).agent(Agent::new("agent").fault("no_answer")).start().await?;
    let run = world.task(json!({"message": "x"})).await?;
    world.cancel(&run, "?wait=1").await?.expect(200)?;
    let again = world.cancel(&run, "?wait=1").await?.expect(200)?.json();
    assert_eq!(again["status"], "cancelled", "{again}");
    world.check_log(&run).await?;
    world.finish().await?;

    let world = World::new(binary()).start().await?;
    let run = world.task(json!({"message": "x"})).await?;
    world.ended(&run).await?;
    let answer = world.cancel(&run, "").await?.expect(409)?;
    assert_eq!(answer.code(), "run_ended");
    assert_eq!(world.run(&run).await?["status"], "success");
    let unknown = world.cancel("00000000-0000-7000-8000-000000000000", "").await?.expect(404)?;
    assert_eq!(unknown.code(), "run_not_found");
    world.finish().await
}

#[tokio::test]
async fn a_client_that_leaves_leaves_the_run() -> Result<()> {
    let sim = SimOptions {
        tokens: Some(20),
        interval: Duration::from_millis(40),
        ..SimOptions::default()
    };
    let world = World::new(binary()).sim(sim).start().await?;
    let mut stream = world.stream("ann", "hello").open().await?.ok().await?;
    let run = run_id(&stream.headers)?;
    stream.next_where(|event| event.kind() == "delta").await?;
    drop(stream);
    assert_eq!(world.ended(&run).await?["status"], "success");
    assert_eq!(world.sim().count("completed").await?, 1);
    world.check_log(&run).await?;
    world.finish().await
}

#[tokio::test]
async fn a_client_that_leaves_takes_the_run_along_when_it_said_so() -> Result<()> {
    let world =
        World::new(binary()).agent(Agent::new("cofounder").fault("stall:3")).start().await?;
    let body = json!({"user_id": "ann", "message": "hello"});
    let request = world.client().post("/chat/stream?on_disconnect=cancel").json(&body);
    let mut stream = request.open().await?.ok().await?;
    let run = run_id(&stream.headers)?;
    stream.next_where(|event| event.kind() == "delta").await?;
    drop(stream);
    assert_eq!(world.ended(&run).await?["status"], "cancelled");
    is_gone_at_the_provider(&world).await?;
    world.check_log(&run).await?;

    // The same for a client that waits for a whole answer.
    let request = world.client().post("/chat?on_disconnect=cancel").json(&body);
    let mut waiting = Box::pin(request.send());
    let run = tokio::select! {
        answer = &mut waiting => panic!("an answer: {answer:?}"),
        run = async {
            let running = until_some("the run is there", PATIENCE, async || {
                Ok(world.runs("status=ready,running").await?.pop())
            });
            let run = running.await?["run_id"].as_str().unwrap_or_default().to_owned();
            world.waits_for(&run, "next_token").await?;
            anyhow::Ok(run)
        } => run?,
    };
    drop(waiting);
    assert_eq!(world.ended(&run).await?["status"], "cancelled");
    world.sim().until("in_flight", 0, SOON).await?;

    let odd =
        world.client().post("/chat?on_disconnect=maybe").json(&body).send().await?.expect(400)?;
    assert_eq!(odd.code(), "invalid_request", "{}", odd.text());
    world.finish().await
}
