//! What a client finds on the wire when it asks for too much, in a wrong way, or while the server
//! stops.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clearway_testkit::{PATIENCE, World, until};
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::binary;

/// More than any buffer between a client and the server holds.
const MUCH: usize = 8 << 20;

#[tokio::test]
async fn refusals_reach_a_client_that_goes_on_sending() -> Result<()> {
    let world = World::new(binary()).start().await?;
    let head = "POST /chat/async HTTP/1.1\r\nhost: localhost\r\n";
    let endless = format!("{head}x: {}", "y".repeat(MUCH));
    let large = format!("{head}content-length: {MUCH}\r\n\r\n{}", "y".repeat(MUCH));
    for (bytes, status, code) in [(endless, 431, "invalid_request"), (large, 413, "body_too_large")]
    {
        let mut raw = world.client().raw().await?;
        raw.send(bytes.as_bytes()).await?;
        let answer = raw.response(PATIENCE).await?.expect(status)?;
        assert_eq!(answer.code(), code, "{}", answer.text());
        assert_eq!(answer.headers.get("connection"), Some("close"));
        ensure!(answer.json()["request_id"].is_string(), "{}", answer.text());
    }
    world.finish().await
}

#[tokio::test]
async fn a_server_that_drains_is_looked_at_and_steered() -> Result<()> {
    let agent = clearway_testkit::Agent::new("agent").fault("no_answer");
    let drain = Duration::from_secs(60);
    let mut world =
        World::new(binary()).agent(agent).config(|config| config.drain = drain).start().await?;
    let run = world.task(json!({"message": "x"})).await?;
    world.waits_for(&run, "first_byte").await?;
    world.server()?.terminate()?;
    until("the server drains", PATIENCE, async || {
        Ok(world.client().get("/health/ready").send().await?.status == 503)
    })
    .await?;
    let ready = world.client().get("/health/ready").send().await?.expect(503)?;
    assert_eq!(ready.json()["draining"], true, "{}", ready.text());
    assert_eq!(ready.headers.get("connection"), Some("close"));
    world.client().get("/health/live").send().await?.expect(200)?;
    assert_eq!(world.run(&run).await?["status"], "running");
    let why = world.cli(&["runs", "why", &run]).await?;
    assert_eq!(why.code, Some(0), "{why:?}");

    let message = json!({"message": "x", "user_id": "ann"});
    let lang = json!({"assistant_id": "agent", "input": {"messages": []}});
    for (path, body) in [
        ("/chat", &message),
        ("/chat/stream", &message),
        ("/chat/async", &message),
        ("/runs", &lang),
        ("/runs/wait", &lang),
        ("/runs/stream", &lang),
        ("/workflows/agent/runs", &json!({})),
    ] {
        let refused = world.client().post(path).json(body).send().await?;
        assert_eq!(refused.status, 503, "{path}: {}", refused.text());
        assert_eq!(refused.code(), "shutting_down", "{path}: {}", refused.text());
        ensure!(refused.headers.get("retry-after").is_some(), "{path}");
    }

    // Whoever only holds a connection is not waited for.
    let mut idle = TcpStream::connect(world.address()).await?;
    let began = Instant::now();
    world.cancel(&run, "?wait=1").await?.expect(200)?;
    let exit = world.stop_waiting(PATIENCE).await?;
    assert_eq!(exit.code, Some(0), "{exit:?}");
    ensure!(began.elapsed() < drain / 4, "{:?}", began.elapsed());
    ensure!(idle.read(&mut [0; 1]).await.unwrap_or(0) == 0);
    ensure!(TcpStream::connect(world.address()).await.is_err(), "somebody still listens");
    world.restart().await?;
    assert_eq!(world.ended(&run).await?["status"], "cancelled");
    world.finish().await
}

#[tokio::test]
async fn nobody_keeps_a_server_by_coming_again_and_again() -> Result<()> {
    let agent = clearway_testkit::Agent::new("agent").fault("no_answer");
    let drain = Duration::from_secs(1);
    let mut world =
        World::new(binary()).agent(agent).config(|config| config.drain = drain).start().await?;
    let run = world.task(json!({"message": "x"})).await?;
    world.waits_for(&run, "first_byte").await?;
    let client = world.client();
    let mut crowd = tokio::task::JoinSet::new();
    for _ in 0..4 {
        crowd.spawn(async move { while client.get("/health/live").send().await.is_ok() {} });
    }
    let began = Instant::now();
    let exit = world.stop(drain + PATIENCE).await?;
    assert_eq!(exit.code, Some(0), "{exit:?}");
    ensure!(began.elapsed() < drain + Duration::from_secs(8), "{:?}", began.elapsed());
    while let Some(one) = crowd.join_next().await {
        one.context("the crowd")?;
    }
    world.restart().await?;
    world.waits_for(&run, "first_byte").await?;
    world.cancel(&run, "?wait=1").await?.expect(200)?;
    world.finish().await
}
