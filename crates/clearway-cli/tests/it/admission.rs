//! What happens to a run at the door: again, behind another, or not at all.

use anyhow::Result;
use clearway_testkit::{Agent, Pool, SimOptions, World};
use serde_json::json;

use crate::{binary, joined, last, run_id};

#[tokio::test]
async fn the_same_request_twice_is_one_run() -> Result<()> {
    let world = World::new(binary()).start().await?;
    let chat = || world.chat("ann", "hello").header("idempotency-key", "k1");
    let first = chat().send().await?.expect(200)?;
    let second = chat().send().await?.expect(200)?;
    assert_eq!(first.json(), second.json());
    assert_eq!(run_id(&first.headers)?, run_id(&second.headers)?);

    // The key belongs to its address: the same one elsewhere is another request.
    let stream = || world.stream("ann", "hello").header("idempotency-key", "k1").open();
    let first = stream().await?.ok().await?.rest().await?;
    let second = stream().await?.ok().await?.rest().await?;
    assert_eq!(first, second, "a stream replays event by event");
    assert_eq!(last(&first)["text"], joined(&first));

    let task = |message: &str| {
        let body = json!({"message": message});
        world.client().post("/chat/async").json(&body).header("idempotency-key", "k1").send()
    };
    let (first, second) = (task("x").await?.expect(202)?, task("x").await?.expect(202)?);
    assert_eq!(first.json()["task_id"], second.json()["task_id"]);
    world.ended(first.json()["task_id"].as_str().unwrap_or_default()).await?;

    assert_eq!(world.sim().count("requests").await?, 3);
    assert_eq!(world.runs("").await?.len(), 3);
    assert_eq!(world.state("ann").await?["message_count"], 4);

    let other = world.chat("ann", "something else").header("idempotency-key", "k1");
    for answer in [other.send().await?, task("y").await?] {
        let answer = answer.expect(409)?;
        assert_eq!(answer.code(), "idempotency_conflict", "{}", answer.text());
    }
    for bad in ["", &"k".repeat(256)] {
        let answer =
            world.chat("ann", "x").header("idempotency-key", bad).send().await?.expect(400)?;
        assert_eq!(answer.code(), "invalid_request", "{}", answer.text());
    }
    assert_eq!(world.runs("").await?.len(), 3, "a refusal started something");
    world.finish().await
}

#[tokio::test]
async fn the_same_request_at_the_same_time_is_one_run() -> Result<()> {
    let sim = SimOptions { ttft: std::time::Duration::from_millis(200), ..SimOptions::default() };
    let world = World::new(binary()).sim(sim).start().await?;
    let mut turns = tokio::task::JoinSet::new();
    for _ in 0..10 {
        turns.spawn(world.chat("ann", "hello").header("idempotency-key", "k").send());
    }
    let mut replies = Vec::new();
    while let Some(answer) = turns.join_next().await {
        replies.push(answer??.expect(200)?.json());
    }
    replies.dedup();
    assert_eq!(replies.len(), 1, "{replies:?}");
    assert_eq!(world.sim().count("requests").await?, 1);
    assert_eq!(world.state("ann").await?["message_count"], 2);
    world.finish().await
}

#[tokio::test]
async fn turns_of_a_thread_queue_in_order() -> Result<()> {
    let world =
        World::new(binary()).agent(Agent::new("cofounder").fault("no_answer")).start().await?;
    let mut runs = Vec::new();
    for turn in 0..3 {
        let stream = world.stream("ann", &format!("turn {turn}")).open().await?.ok().await?;
        runs.push(run_id(&stream.headers)?);
    }
    for run in &runs {
        world.waits_for(run, "first_byte").await?;
        let running = world.runs("status=running,ready").await?;
        assert_eq!(running.len(), 1, "one active run a thread: {running:?}");
        for (position, later) in (1..).zip(runs.iter().skip_while(|later| *later != run).skip(1)) {
            let later = world.run(later).await?;
            assert_eq!(
                (&later["status"], &later["queue_position"]),
                (&json!("blocked"), &json!(position))
            );
        }
        world.cancel(run, "?wait=1").await?.expect(200)?;
    }
    for run in &runs {
        world.check_log(run).await?;
    }
    assert_eq!(world.state("ann").await?["message_count"], 3, "what was said stays said");
    world.finish().await
}

#[tokio::test]
async fn a_busy_thread_can_refuse() -> Result<()> {
    let agent = Agent::new("cofounder").fault("no_answer").line("when_busy = \"reject\"");
    let world = World::new(binary()).agent(agent).start().await?;
    let stream = world.stream("ann", "one").open().await?.ok().await?;
    let run = run_id(&stream.headers)?;
    let refused = world.chat("ann", "two").send().await?.expect(409)?;
    assert_eq!(refused.code(), "thread_busy", "{}", refused.text());
    assert!(refused.headers.get("retry-after").is_some(), "a later try may do");
    assert_eq!(world.runs("").await?.len(), 1);

    // Another thread is not concerned.
    let other = world.stream("bob", "one").open().await?.ok().await?;
    for run in [run, run_id(&other.headers)?] {
        world.cancel(&run, "?wait=1").await?.expect(200)?;
    }
    let again = world.stream("ann", "two").open().await?.ok().await?;
    world.cancel(&run_id(&again.headers)?, "?wait=1").await?.expect(200)?;
    world.finish().await
}

#[tokio::test]
async fn a_new_turn_can_take_the_place_of_the_running_one() -> Result<()> {
    // What the first one was told stays said, or is taken back with it.
    take_the_place("interrupt", 2).await?;
    take_the_place("rollback", 1).await
}

async fn take_the_place(when_busy: &str, said: u64) -> Result<()> {
    let line = format!("when_busy = \"{when_busy}\"");
    let agent = Agent::new("cofounder").fault("no_answer").line(&line);
    let world = World::new(binary()).agent(agent).start().await?;
    let first = world.stream("ann", "one").open().await?.ok().await?;
    let one = run_id(&first.headers)?;
    world.waits_for(&one, "first_byte").await?;
    let second = world.stream("ann", "two").open().await?.ok().await?;
    let two = run_id(&second.headers)?;
    assert_eq!(world.ended(&one).await?["status"], "cancelled");
    assert_eq!(last(&first.rest().await?)["detail"]["error_type"], "cancelled");
    world.waits_for(&two, "first_byte").await?;
    world.sim().until("in_flight", 1, clearway_testkit::PATIENCE).await?;
    world.cancel(&two, "?wait=1").await?.expect(200)?;
    assert_eq!(world.state("ann").await?["message_count"], said, "{when_busy}");
    world.check_log(&one).await?;
    world.check_log(&two).await?;
    world.finish().await
}

#[tokio::test]
async fn a_full_pool_says_so_at_once() -> Result<()> {
    let world = World::new(binary())
        .agent(Agent::new("cofounder").fault("no_answer").line("pool = \"narrow\""))
        .config(|config| config.pools.push(Pool { name: "narrow", slots: 1, queue: 1 }))
        .start()
        .await?;
    let running = world.task(json!({"message": "x"})).await?;
    world.waits_for(&running, "first_byte").await?;
    let waiting = world.task(json!({"message": "x"})).await?;
    assert_eq!(world.waits_for(&waiting, "slot").await?["queue_position"], 0);

    let refused = [
        world.client().post("/chat/async").json(&json!({"message": "x"})).send().await?,
        world.chat("ann", "hello").send().await?,
        world.stream("ann", "hello").send().await?,
    ];
    for answer in refused {
        let answer = answer.expect(429)?;
        assert_eq!(answer.code(), "overloaded", "{}", answer.text());
        let after = answer.headers.get("retry-after").and_then(|after| after.parse::<u64>().ok());
        assert!(after.is_some_and(|after| (1..=600).contains(&after)), "{after:?}");
        assert!(answer.json()["retry_after_ms"].is_u64(), "{}", answer.text());
        assert!(answer.text().contains("queue_position"), "{}", answer.text());
    }
    assert_eq!(world.runs("").await?.len(), 2, "a refusal left something behind");
    let pools = world.client().get("/pools").send().await?.expect(200)?.json();
    let pools = pools["pools"].as_array().cloned().unwrap_or_default();
    let narrow = pools.iter().find(|pool| pool["name"] == "narrow").cloned().unwrap_or_default();
    assert_eq!((&narrow["running"], &narrow["ready"]), (&json!(1), &json!(1)), "{narrow}");

    // Room again, accepted again.
    world.cancel(&waiting, "?wait=1").await?.expect(200)?;
    let next = world.task(json!({"message": "x"})).await?;
    for run in [next, running] {
        world.cancel(&run, "?wait=1").await?.expect(200)?;
    }
    world.finish().await
}
