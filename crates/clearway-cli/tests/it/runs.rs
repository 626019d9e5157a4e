//! The addresses of all runs, whichever door they came through, and the commands on top of them.

use anyhow::Result;
use clearway_testkit::{Agent, World};
use serde_json::{Value, json};

use crate::binary;

fn ids(runs: &[Value]) -> Vec<String> {
    runs.iter().map(|run| run["run_id"].as_str().unwrap_or_default().to_owned()).collect()
}

#[tokio::test]
async fn runs_are_listed_filtered_and_paged() -> Result<()> {
    let world = World::new(binary()).start().await?;
    world.chat("ann", "one").send().await?.expect(200)?;
    let mut started = Vec::new();
    for _ in 0..4 {
        let id = world.task(json!({"message": "x"})).await?;
        world.ended(&id).await?;
        started.push(id);
    }
    let all = world.runs("").await?;
    assert_eq!(all.len(), 5);
    assert!(all.iter().all(|run| run["status"] == "success" && run["waiting_on"].is_null()));
    started.reverse();
    assert_eq!(ids(&all)[..4], started, "newest first");

    assert_eq!(world.runs("status=running").await?.len(), 0);
    assert_eq!(world.runs("status=success,running&limit=1000").await?.len(), 5);
    assert_eq!(world.runs("agent=nobody").await?.len(), 0);
    let thread = all[0]["thread_id"].as_str().unwrap_or_default();
    assert_eq!(ids(&world.runs(&format!("thread_id={thread}")).await?), ids(&all[..1]));

    let mut paged = Vec::new();
    let mut after = String::new();
    loop {
        let page =
            world.client().get(format!("/runs?limit=2{after}")).send().await?.expect(200)?.json();
        paged.extend(page["runs"].as_array().cloned().unwrap_or_default());
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    assert_eq!(ids(&paged), ids(&all), "pages leave out or repeat runs");

    for (query, code) in [
        ("status=odd", "invalid_request"),
        ("limit=0", "invalid_request"),
        ("limit=1001", "invalid_request"),
        ("limit=-1", "invalid_request"),
        ("thread_id=x", "invalid_request"),
        ("colour=red", "invalid_request"),
    ] {
        let answer = world.client().get(format!("/runs?{query}")).send().await?.expect(400)?;
        assert_eq!(answer.code(), code, "{query}: {}", answer.text());
        assert_eq!(answer.headers.get("content-type"), Some("application/problem+json"), "{query}");
        assert!(answer.json()["request_id"].is_string(), "{query}: {}", answer.text());
    }
    world.finish().await
}

/// However much clients keep beside their runs, an answer stays of a size.
#[tokio::test]
async fn a_page_of_large_runs_ends_early() -> Result<()> {
    let world = World::new(binary()).start().await?;
    let metadata = json!({"a": "x".repeat(60 << 10)});
    let mut started = Vec::new();
    for _ in 0..90 {
        started.push(world.task(json!({"message": "x", "metadata": metadata})).await?);
    }
    started.reverse();
    let page = world.client().get("/runs?limit=90").send().await?.expect(200)?;
    assert!(page.body.len() < 5 << 20, "{} bytes", page.body.len());
    let page = page.json();
    let mut seen = ids(page["runs"].as_array().map_or(&[], Vec::as_slice));
    assert!((10..90).contains(&seen.len()), "{}", seen.len());
    let next = page["next"].as_str().unwrap_or_default();
    seen.extend(ids(&world.runs(&format!("limit=90&after={next}")).await?));
    assert_eq!(seen, started);
    world.finish().await
}

#[tokio::test]
async fn a_list_of_large_runs_is_listed_whole() -> Result<()> {
    let world = World::new(binary()).start().await?;
    let large = json!({"note": "x".repeat(60 << 10)});
    let mut started = Vec::new();
    for _ in 0..80 {
        started.push(world.task(json!({"message": "x", "metadata": large})).await?);
    }
    started.reverse();
    let shown = world.cli(&["runs", "ls", "--limit", "80"]).await?.expect(0)?.stdout;
    let first = |line: &str| line.split_whitespace().next().unwrap_or_default().to_owned();
    assert_eq!(shown.lines().skip(1).map(first).collect::<Vec<_>>(), started);
    let listed = world.cli(&["--json", "runs", "ls", "--limit", "80"]).await?.expect(0)?.json()?;
    assert_eq!(ids(listed["runs"].as_array().map(Vec::as_slice).unwrap_or_default()), started);
    assert_eq!(listed["next"], Value::Null);
    for id in &started {
        world.ended(id).await?;
    }
    world.finish().await
}

#[tokio::test]
async fn events_come_in_pages_of_json() -> Result<()> {
    let world = World::new(binary()).start().await?;
    let id = world.task(json!({"message": "x"})).await?;
    world.ended(&id).await?;
    let all = world.check_log(&id).await?;
    assert!(all.len() > 10, "{}", all.len());
    for event in &all {
        for name in ["seq", "id", "kind", "at", "data"] {
            assert!(!event[name].is_null(), "no {name}: {event}");
        }
    }
    let mut paged: Vec<Value> = Vec::new();
    let mut after = String::new();
    loop {
        let path = format!("/runs/{id}/events?limit=3{after}");
        let page = world.client().get(path).header("accept", "application/json").send().await?;
        let page = page.expect(200)?.json();
        let events = page["events"].as_array().cloned().unwrap_or_default();
        assert!(events.len() <= 3);
        paged.extend(events);
        match page["next"].as_u64() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    assert_eq!(paged, all);
    world.finish().await
}

#[tokio::test]
async fn commands_show_what_the_addresses_show() -> Result<()> {
    let world =
        World::new(binary()).agent(Agent::new("cofounder").fault("no_answer")).start().await?;
    let id = world.task(json!({"message": "x"})).await?;
    world.waits_for(&id, "first_byte").await?;
    let listed = world.cli(&["runs", "ls", "--json"]).await?.expect(0)?;
    assert!(listed.stdout.contains(&id), "{}", listed.stdout);
    let shown = world.cli(&["runs", "show", &id, "--json"]).await?.expect(0)?.json()?;
    assert_eq!(shown["run_id"], id.as_str());
    assert_eq!(shown["status"], "running");
    world.cli(&["runs", "cancel", &id]).await?.expect(0)?;
    assert_eq!(world.ended(&id).await?["status"], "cancelled");

    let unknown = "00000000-0000-7000-8000-000000000000";
    for command in ["show", "why", "cancel"] {
        let output = world.cli(&["runs", command, unknown]).await?.expect(3)?;
        assert!(output.stderr.contains(unknown), "{command}: {}", output.stderr);
    }
    world.cli(&["runs", "frobnicate"]).await?.expect(2)?;
    world.finish().await
}

#[tokio::test]
async fn watching_a_run_ends_as_the_run_does() -> Result<()> {
    let world = World::new(binary())
        .config(|config| {
            config.agents = vec![
                Agent::new("agent").fault("stall:3"),
                Agent::new("good"),
                Agent::new("cut").fault("cut_end:3"),
            ];
        })
        .start()
        .await?;
    let chat = async |mount: &str| {
        let body = json!({"user_id": mount, "message": "hello", "deadline_ms": 800});
        let answer = world.client().post(format!("/{mount}/chat")).json(&body).send().await?;
        crate::run_id(&answer.headers)
    };
    let cancelled = world.task(json!({"message": "x"})).await?;
    world.waits_for(&cancelled, "next_token").await?;
    let args = ["runs", "watch", &cancelled];
    let (watched, ()) = tokio::try_join!(world.cli(&args), async {
        world.cancel(&cancelled, "?wait=1").await?.expect(200)?;
        anyhow::Ok(())
    })?;
    watched.expect(5)?;
    let timed_out = world.task(json!({"message": "x", "deadline_ms": 300})).await?;
    for (run, code) in [(chat("good").await?, 0), (chat("cut").await?, 1), (timed_out, 4)] {
        world.cli(&["runs", "watch", &run]).await?.expect(code)?;
    }
    world.finish().await
}

#[tokio::test]
async fn a_chat_from_the_command_line() -> Result<()> {
    let world = World::new(binary()).start().await?;
    let output = world.cli(&["chat", "--message", "the green door"]).await?.expect(0)?;
    assert!(output.stdout.contains("the green door"), "{}", output.stdout);
    world.finish().await
}
