//! What must not grow with the load: OS threads at all, open files afterwards.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use clearway_testkit::{
    Agent, Binary, PATIENCE, Scratch, SimOptions, World, is_root, make_readable, until,
};
use tokio::task::JoinSet;

use crate::{binary, joined, last};

const STREAMS: usize = 200;

/// The store opens its three connections for reading when they are first needed: three files each.
const STORE: usize = 9;

#[tokio::test]
async fn the_number_of_threads_is_the_same_under_load() -> Result<()> {
    let sim = SimOptions {
        tokens: Some(40),
        interval: Duration::from_millis(100),
        ..SimOptions::default()
    };
    let mut world = World::new(binary()).sim(sim).start().await?;
    let rest = world.server()?.census()?;
    let mut streams = JoinSet::new();
    for number in 0..STREAMS {
        let request = world.stream(&format!("user {number}"), "hello").limit(3 * PATIENCE);
        streams.spawn(async move { request.open().await?.ok().await?.rest().await });
    }
    until("all streams run at once", 2 * PATIENCE, async || {
        Ok(world.sim().count("in_flight").await? == STREAMS as u64)
    })
    .await?;
    let busy = world.server()?.census()?;
    assert_eq!(busy.threads, rest.threads, "threads grew with the load");
    // A few that were open at the start may be closed by now.
    assert!(busy.files + 10 >= rest.files + 2 * STREAMS, "the load was not there");
    let ready = world.client().get("/health/ready").send().await?.expect(200)?.json();
    assert_eq!(ready["threads"], ready["threads_at_start"], "{ready}");
    while let Some(events) = streams.join_next().await {
        let events = events??;
        assert_eq!(last(&events)["text"], joined(&events));
    }
    // Idle connections to the provider may stay; nothing else may.
    until("files are closed again", PATIENCE, async || {
        let providers = world.client().get("/providers").send().await?.expect(200)?.json();
        let idle = providers["providers"].as_array().into_iter().flatten();
        let idle: u64 = idle.filter_map(|provider| provider["connections_idle"].as_u64()).sum();
        let now = world.server()?.census()?;
        Ok(now.threads == rest.threads && now.files <= rest.files + STORE + usize::try_from(idle)?)
    })
    .await?;
    world.finish().await
}

/// A call that ran into its deadline leaves nothing behind.
#[tokio::test]
async fn calls_that_time_out_leak_nothing() -> Result<()> {
    let mut world =
        World::new(binary()).agent(Agent::new("cofounder").fault("no_answer")).start().await?;
    let before = world.server()?.census()?;
    let mut chats = JoinSet::new();
    for number in 0..100 {
        chats.spawn(
            world.chat(&format!("user {number}"), "hello").header("x-deadline-ms", 1500).send(),
        );
    }
    while let Some(answer) = chats.join_next().await {
        assert_eq!(answer??.expect(502)?.code(), "deadline_exceeded");
    }
    assert_eq!(world.sim().count("requests").await?, 100);
    world.sim().until("in_flight", 0, Duration::from_secs(2)).await?;
    let mut now = before;
    let closed = until("files are closed again", PATIENCE, async || {
        now = world.server()?.census()?;
        Ok(now.files <= before.files + STORE && now.threads == before.threads)
    });
    closed.await.with_context(|| format!("{before:?} before, {now:?} now"))?;
    world.finish().await
}

/// Where no further thread can be started, nothing needs one. The limit is of a user's threads, so
/// the server gets a user of its own; without root the test of constant threads has to do.
#[tokio::test]
async fn a_server_at_the_limit_of_threads_works_on() -> Result<()> {
    let mut world = World::new(binary()).start().await?;
    let needed = world.server()?.census()?.threads;
    world.finish().await?;
    if !is_root() {
        return Ok(());
    }
    let scratch = Scratch::new()?;
    let copy = scratch.path().join("clearway");
    fs::copy(binary().path(), &copy)?;
    make_readable(scratch.path())?;
    make_readable(&copy)?;
    let limit = format!("--nproc={}", needed + 1);
    // Nobody's, and not that of another run of this test.
    let user = 100_000 + std::process::id();
    let (user, group) = (format!("--reuid={user}"), format!("--regid={user}"));
    let wrapper = ["prlimit", &limit, "setpriv", &user, &group, "--clear-groups", "--"];
    let mut world = World::new(Binary::new(copy)).for_anybody().through(&wrapper).start().await?;
    let mut chats = JoinSet::new();
    for number in 0..100 {
        chats.spawn(world.chat(&format!("user {number}"), "hello").send());
    }
    while let Some(answer) = chats.join_next().await {
        answer??.expect(200)?;
    }
    assert_eq!(world.server()?.census()?.threads, needed);
    world.finish().await
}
