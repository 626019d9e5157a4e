//! Chats in the background.

use std::time::Duration;

use anyhow::Result;
use clearway_testkit::{Agent, PATIENCE, SimOptions, World, until_some};
use serde_json::{Value, json};

use crate::binary;

async fn task(world: &World, id: &str) -> Result<Value> {
    Ok(world.client().get(format!("/chat/task/{id}")).send().await?.expect(200)?.json())
}

async fn task_with(world: &World, id: &str, status: &str) -> Result<Value> {
    until_some(format!("task {id} is {status}"), PATIENCE, async || {
        let task = task(world, id).await?;
        Ok((task["status"] == status).then_some(task))
    })
    .await
}

#[tokio::test]
async fn a_task_runs_while_nobody_waits() -> Result<()> {
    let sim = SimOptions { interval: Duration::from_millis(5), ..SimOptions::default() };
    let world = World::new(binary()).sim(sim).start().await?;
    let answer =
        world.client().post("/chat/async").json(&json!({"message": "the red kite"})).send().await?;
    let answer = answer.expect(202)?;
    assert_eq!(answer.json()["status"], "pending", "{}", answer.text());
    let id = answer.json()["task_id"].as_str().unwrap_or_default().to_owned();
    let done = task_with(&world, &id, "completed").await?;
    let response = done["result"]["response"].as_str().unwrap_or_default();
    assert!(response.contains("the red kite"), "{done}");
    assert_eq!(done["error"], json!(null));
    assert!(done["created_at"].is_string() && done["completed_at"].is_string(), "{done}");

    // The task is a run like any other.
    let run = world.run(&id).await?;
    assert_eq!((&run["status"], &run["door"]), (&json!("success"), &json!("tasks")), "{run}");
    world.check_log(&id).await?;
    world.finish().await
}

#[tokio::test]
async fn tasks_of_one_conversation_share_its_thread_and_others_share_none() -> Result<()> {
    let world = World::new(binary()).start().await?;
    let body = json!({"message": "hello", "user_id": "ann", "conversation_id": "plans"});
    let (one, two) = (world.task(body.clone()).await?, world.task(body).await?);
    let (three, four) =
        (world.task(json!({"message": "x"})).await?, world.task(json!({"message": "x"})).await?);
    let mut threads = Vec::new();
    for id in [&one, &two, &three, &four] {
        threads.push(world.ended(id).await?["thread_id"].clone());
    }
    assert_eq!(threads[0], threads[1]);
    assert!(threads[1] != threads[2] && threads[2] != threads[3], "{threads:?}");
    let second = task(&world, &two).await?;
    assert!(
        second["result"]["response"].as_str().unwrap_or_default().contains("turn 2"),
        "{second}"
    );
    world.finish().await
}

#[tokio::test]
async fn a_task_shows_what_it_has_and_can_be_cancelled() -> Result<()> {
    let world = World::new(binary()).agent(Agent::new("agent").fault("stall:3")).start().await?;
    let id = world.task(json!({"message": "hello"})).await?;
    let running = until_some("partial text", PATIENCE, async || {
        let task = task(&world, &id).await?;
        let words = task["partial"].as_str().unwrap_or_default().split_whitespace().count();
        Ok((words >= 3).then_some(task))
    })
    .await?;
    assert_eq!(running["status"], "running");
    assert_eq!(world.sim().count("in_flight").await?, 1);

    let listed = world.client().get("/tasks?status=running").send().await?.expect(200)?.json();
    assert_eq!(listed["tasks"][0]["task_id"], id.as_str(), "{listed}");

    let cancelled = world.client().delete(format!("/tasks/{id}")).send().await?.expect(200)?.json();
    assert_eq!(cancelled["status"], "cancelled", "{cancelled}");
    assert_eq!(task(&world, &id).await?["status"], "cancelled");
    world.sim().until("in_flight", 0, Duration::from_secs(1)).await?;
    assert_eq!(world.sim().count("aborted_by_client").await?, 1);

    let unknown = "00000000-0000-7000-8000-000000000000";
    for request in [
        world.client().get(format!("/chat/task/{unknown}")),
        world.client().delete(format!("/tasks/{unknown}")),
        world.client().get("/chat/task/not-an-id"),
    ] {
        let answer = request.send().await?.expect(404)?;
        assert_eq!(answer.code(), "run_not_found", "{}", answer.text());
    }
    world.finish().await
}
