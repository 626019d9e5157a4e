//! Waiting is a value: each kind can be told from the others, by address and by command.

use anyhow::Result;
use clearway_testkit::{Agent, Pool, World};
use serde_json::json;

use crate::binary;

async fn why(world: &World, run: &str) -> Result<String> {
    Ok(world.cli(&["runs", "why", run]).await?.expect(0)?.stdout)
}

#[tokio::test]
async fn thread_slot_provider_slot_and_first_byte_are_told_apart() -> Result<()> {
    let world = World::new(binary())
        .agent(Agent::new("agent").fault("no_answer").line("pool = \"narrow\""))
        .config(|config| {
            config.concurrent = 1;
            config.pools.push(Pool { name: "narrow", slots: 2, queue: 10 });
        })
        .start()
        .await?;
    let task = |conversation: &str| {
        world.task(json!({"message": "x", "user_id": "ann", "conversation_id": conversation}))
    };
    let first_byte = task("one").await?;
    world.waits_for(&first_byte, "first_byte").await?;
    let provider_slot = task("two").await?;
    world.waits_for(&provider_slot, "provider_slot").await?;
    let thread = task("one").await?;
    world.waits_for(&thread, "thread").await?;
    let slot = task("three").await?;
    world.waits_for(&slot, "slot").await?;

    let cases = [
        (&first_byte, "running", "nobody", "nothing has come back"),
        (&provider_slot, "running", "operator", "concurrent"),
        (&thread, "blocked", "client", "same thread"),
        (&slot, "ready", "operator", "slot in pool narrow"),
    ];
    for (run, status, who, words) in cases {
        let view = world.run(run).await?;
        let waiting = &view["waiting_on"];
        assert_eq!(view["status"], status, "{view}");
        assert_eq!(waiting["who"], who, "{view}");
        for name in ["since", "for_ms", "how", "sentence"] {
            assert!(!waiting[name].is_null(), "no {name}: {view}");
        }
        let said = why(&world, run).await?;
        assert!(said.contains(words), "`{words}` is missing: {said}");
        assert_eq!(said.trim().lines().count(), 1, "one sentence: {said}");
    }
    assert!(why(&world, &thread).await?.contains(&first_byte), "the run in front is not named");
    assert_eq!(world.run(&thread).await?["queue_position"], 1);
    assert_eq!(world.sim().count("requests").await?, 1, "the provider's limit was passed over");

    // When the first ends, everybody moves up.
    world.cancel(&first_byte, "?wait=1").await?.expect(200)?;
    world.waits_for(&provider_slot, "first_byte").await?;
    for run in [&provider_slot, &slot, &thread] {
        world.cancel(run, "?wait=1").await?.expect(200)?;
    }
    world.finish().await
}

#[tokio::test]
async fn a_stream_that_pauses_says_since_when() -> Result<()> {
    let world = World::new(binary()).agent(Agent::new("agent").fault("stall:2")).start().await?;
    let run = world.task(json!({"message": "x"})).await?;
    let view = world
        .run_until(&run, |run| {
            let waiting = &run["waiting_on"];
            waiting["kind"] == "next_token"
                && waiting["for_ms"].as_u64().is_some_and(|ms| ms >= 300)
        })
        .await?;
    assert!(
        view["waiting_on"]["detail"].as_str().is_some_and(|detail| detail.contains("lab/")),
        "{view}"
    );
    let said = why(&world, &run).await?;
    assert!(said.contains("next token"), "{said}");
    world.cancel(&run, "?wait=1").await?.expect(200)?;

    // After the end there is nothing to wait for, and the time spent stays.
    let ended = world.run(&run).await?;
    assert_eq!(ended["waiting_on"], json!(null));
    assert!(ended["spent_ms"]["next_token"].as_u64().is_some_and(|ms| ms >= 300), "{ended}");
    assert!(why(&world, &run).await?.contains("cancelled"));
    world.finish().await
}
