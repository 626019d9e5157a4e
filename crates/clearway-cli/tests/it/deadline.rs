//! Every run ends by its deadline, and says where the time went.

use std::time::Duration;

use anyhow::Result;
use clearway_testkit::{Agent, Pool, World};
use serde_json::json;
use tokio::time::Instant;

use crate::{binary, last, run_id};

/// How late an end may be: the product's bound is 250 ms, the rest is for a debug build.
const LATE: Duration = Duration::from_millis(1500);

/// A turn against a provider with `fault` ends by its deadline, and the time is booked on `phase`.
async fn ends_in_time(fault: &str, phase: &str) -> Result<()> {
    let world = World::new(binary()).agent(Agent::new("cofounder").fault(fault)).start().await?;
    let limit = Duration::from_millis(1200);
    let began = Instant::now();
    let request = world.chat("ann", "hello").header("x-deadline-ms", limit.as_millis());
    let answer = request.send().await?.expect(502)?;
    let took = began.elapsed();
    assert!(took >= limit, "{fault}: early, after {took:?}");
    assert!(took < limit + LATE, "{fault}: late, after {took:?}");
    let detail = &answer.json()["detail"];
    assert_eq!(detail["error_type"], "deadline_exceeded", "{detail}");
    assert_eq!(detail["thread_id"], "bc::ann::default", "{detail}");
    let text = detail["error_message"].as_str().unwrap_or_default();
    assert!(text.contains(" s spent: ") && text.contains(phase), "{fault}: {text}");

    let run = world.run(&run_id(&answer.headers)?).await?;
    assert_eq!(run["status"], "timeout", "{run}");
    assert_eq!(run["error"]["detail"]["phase"], phase, "{run}");
    let spent = run["error"]["detail"]["spent_ms"][phase].as_u64().unwrap_or_default();
    assert!(spent >= 500, "{fault}: most of the time is {phase}: {run}");
    world.sim().until("in_flight", 0, Duration::from_secs(1)).await?;
    world.check_log(&run_id(&answer.headers)?).await?;

    // The thread is free again, and its next turn is not in the way of the last one.
    let request =
        world.stream("ann", "again").header("x-deadline-ms", 400).open().await?.ok().await?;
    assert_eq!(last(&request.rest().await?)["detail"]["error_type"], "deadline_exceeded");
    world.finish().await
}

#[tokio::test]
async fn of_a_provider_that_never_answers() -> Result<()> {
    ends_in_time("no_answer", "first_byte").await
}

#[tokio::test]
async fn of_a_provider_that_stalls() -> Result<()> {
    ends_in_time("stall:3", "next_token").await
}

#[tokio::test]
async fn of_a_provider_that_keeps_the_connection_alive_and_says_nothing() -> Result<()> {
    ends_in_time("stall_keepalive:3", "next_token").await
}

#[tokio::test]
async fn of_a_provider_that_drips() -> Result<()> {
    ends_in_time("drip:200", "next_token").await
}

#[tokio::test]
async fn the_smallest_one_wins() -> Result<()> {
    let agent = Agent::new("cofounder").fault("no_answer").line("deadline = \"900ms\"");
    let world = World::new(binary()).agent(agent).start().await?;
    let turn = |deadline: serde_json::Value| json!({"user_id": "ann", "message": "hello", "deadline_ms": deadline});
    // Above the agent's own: clamped. In the body and in the header: the smaller one.
    for (body, header, expected) in
        [(json!(60_000), None, 900), (json!(300), None, 300), (json!(800), Some("300"), 300)]
    {
        let mut request = world.client().post("/chat").json(&turn(body));
        if let Some(header) = header {
            request = request.header("x-deadline-ms", header);
        }
        let began = Instant::now();
        let answer = request.send().await?.expect(502)?;
        let (took, expected) = (began.elapsed(), Duration::from_millis(expected));
        assert_eq!(answer.code(), "deadline_exceeded");
        assert!(took >= expected && took < expected + LATE, "{took:?} for {expected:?}");
    }
    for (name, request) in [
        ("header", world.chat("ann", "hello").header("x-deadline-ms", "soon")),
        ("negative", world.chat("ann", "hello").header("x-deadline-ms", "-5")),
        ("body", world.client().post("/chat").json(&turn(json!("soon")))),
    ] {
        let answer = request.send().await?;
        assert!(matches!(answer.status, 400 | 422), "{name}: {} {}", answer.status, answer.text());
        assert!(!answer.code().is_empty(), "{name}: {}", answer.text());
    }
    world.finish().await
}

#[tokio::test]
async fn counts_in_the_queue_for_those_who_wait() -> Result<()> {
    let world = World::new(binary())
        .agent(Agent::new("cofounder").fault("no_answer").line("pool = \"narrow\""))
        .config(|config| config.pools.push(Pool { name: "narrow", slots: 1, queue: 10 }))
        .start()
        .await?;
    let holder = world.task(json!({"message": "x"})).await?;
    world.waits_for(&holder, "first_byte").await?;
    let began = Instant::now();
    let answer =
        world.chat("ann", "hello").header("x-deadline-ms", 700).send().await?.expect(502)?;
    let took = began.elapsed();
    assert!(
        took >= Duration::from_millis(700) && took < Duration::from_millis(700) + LATE,
        "{took:?}"
    );
    let run = world.run(&run_id(&answer.headers)?).await?;
    assert_eq!(run["status"], "timeout", "{run}");
    assert!(run["spent_ms"]["slot"].as_u64().is_some_and(|ms| ms >= 500), "{run}");
    assert_eq!(world.sim().count("requests").await?, 1, "it reached the provider");
    world.check_log(&run_id(&answer.headers)?).await?;
    world.cancel(&holder, "?wait=1").await?.expect(200)?;
    world.finish().await
}

/// The limit of a background run is of working time.
#[tokio::test]
async fn does_not_count_in_the_queue_for_those_who_do_not() -> Result<()> {
    let world = World::new(binary())
        .agent(Agent::new("agent").fault("no_answer").line("pool = \"narrow\""))
        .config(|config| config.pools.push(Pool { name: "narrow", slots: 1, queue: 10 }))
        .start()
        .await?;
    let short = || world.task(json!({"message": "x", "deadline_ms": 700}));
    let (first, second) = (short().await?, short().await?);
    for (id, waited) in [(&first, 0), (&second, 500)] {
        let run = world.ended(id).await?;
        assert_eq!(run["status"], "timeout", "{run}");
        let spent = |kind: &str| run["spent_ms"][kind].as_u64().unwrap_or_default();
        assert!(spent("slot") >= waited, "{run}");
        assert!(spent("first_byte") >= 500, "it had its whole working time: {run}");
    }
    world.finish().await
}
