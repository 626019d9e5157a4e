//! Streams: order, ids, leaving and coming back.

use std::time::Duration;

use anyhow::{Context, Result};
use clearway_testkit::{Event, SimOptions, World};

use crate::{binary, joined, last, run_id};

fn paced(tokens: u32, interval_ms: u64) -> SimOptions {
    let interval = Duration::from_millis(interval_ms);
    SimOptions { tokens: Some(tokens), interval, ..SimOptions::default() }
}

/// Ids as numbers that must rise.
fn positions(events: &[Event]) -> Result<Vec<(u64, u64)>> {
    let position = |event: &Event| {
        let id = event.id.clone().with_context(|| format!("no id: {event:?}"))?;
        let (seq, rest) = id.split_once('-').with_context(|| id.clone())?;
        Ok((seq.parse()?, rest.parse()?))
    };
    events.iter().map(position).collect()
}

#[tokio::test]
async fn tokens_arrive_as_they_come() -> Result<()> {
    let world = World::new(binary()).sim(paced(20, 50)).start().await?;
    let mut stream = world.stream("ann", "hello").open().await?.ok().await?;
    for (name, value) in [
        ("content-type", "text/event-stream"),
        ("cache-control", "no-cache"),
        ("x-accel-buffering", "no"),
    ] {
        assert_eq!(stream.headers.get(name), Some(value), "{name}");
    }
    let first = stream.next_where(|event| event.kind() == "delta").await?;
    assert_eq!(world.sim().count("completed").await?, 0, "the first token waited for the last");
    let mut events = vec![first];
    events.extend(stream.rest().await?);

    let text: Vec<String> = (0..20).map(|number| format!("tok{number}")).collect();
    assert_eq!(joined(&events), text.join(" "));
    assert_eq!(last(&events)["type"], "final");
    assert_eq!(last(&events)["text"], text.join(" "), "the final text is the joined deltas");
    let finals = events.iter().filter(|event| event.kind() == "final").count();
    assert_eq!(finals, 1);
    let positions = positions(&events)?;
    assert!(positions.is_sorted_by(|a, b| a < b), "{positions:?}");
    world.finish().await
}

#[tokio::test]
async fn a_client_that_comes_back_gets_the_rest_once() -> Result<()> {
    let world = World::new(binary()).sim(paced(30, 40)).start().await?;
    let mut stream = world.stream("ann", "hello").open().await?.ok().await?;
    let run = run_id(&stream.headers)?;
    let mut seen = Vec::new();
    while seen.iter().filter(|event: &&Event| event.kind() == "delta").count() < 3 {
        seen.push(stream.next().await?.context("the stream ended early")?);
    }
    drop(stream);
    let id = seen.last().and_then(|event| event.id.clone()).context("no id")?;

    // While it runs, and after its end: the same rest.
    for _ in 0..2 {
        let again =
            world.client().get(format!("/chat/stream?run_id={run}")).header("last-event-id", &id);
        let rest = again.open().await?.ok().await?.rest().await?;
        let mut all = seen.clone();
        all.extend(rest);
        assert!(positions(&all)?.is_sorted_by(|a, b| a < b), "an event came twice or out of order");
        assert_eq!(last(&all)["type"], "final");
        assert_eq!(last(&all)["text"], joined(&all), "something is missing or doubled");
        world.ended(&run).await?;
    }
    world.finish().await
}

/// Clients that send a request again by themselves send what they saw last, too: of another run.
#[tokio::test]
async fn an_id_of_an_earlier_stream_does_not_shorten_a_new_one() -> Result<()> {
    let world = World::new(binary()).sim(paced(10, 0)).start().await?;
    for id in ["4-256", "9000-256"] {
        let request = world.stream("ann", "hello").header("last-event-id", id);
        let events = request.open().await?.ok().await?.rest().await?;
        assert_eq!(last(&events)["type"], "final", "{events:?}");
        assert_eq!(last(&events)["text"], joined(&events));
    }
    // Of a run that is found again by its key it is this very run's.
    let keyed = || world.stream("bob", "hello").header("idempotency-key", "k");
    let first = keyed().open().await?.ok().await?.rest().await?;
    let seen = first.iter().position(|event| event.kind() == "delta").context("no delta")?;
    let id = first[seen].id.clone().context("no id")?;
    let rest = keyed().header("last-event-id", id).open().await?.ok().await?.rest().await?;
    assert_eq!(rest, first[seen + 1..]);
    world.finish().await
}

#[tokio::test]
async fn the_log_of_a_run_can_be_followed_from_any_event() -> Result<()> {
    let world = World::new(binary()).sim(paced(30, 30)).start().await?;
    let mut stream = world.stream("ann", "hello").open().await?.ok().await?;
    let run = run_id(&stream.headers)?;
    stream.next_where(|event| event.kind() == "delta").await?;
    drop(stream);

    let path = format!("/runs/{run}/events");
    let mut log = world.client().get(&path).open().await?.ok().await?;
    let mut whole = Vec::new();
    for _ in 0..5 {
        whole.push(log.next().await?.context("the log ended early")?);
    }
    let id = whole[4].id.clone().context("no id")?;
    whole.extend(log.rest().await?);
    let seqs = whole.iter().map(Event::seq).collect::<Result<Vec<_>>>()?;
    assert_eq!(seqs, (0..seqs.len() as u64).collect::<Vec<_>>(), "a gap or a double");
    assert_eq!(whole[0].name.as_deref(), Some("run.created"));
    assert_eq!(whole.last().and_then(|event| event.name.as_deref()), Some("run.ended"));

    for request in [
        world.client().get(&path).header("last-event-id", &id),
        world.client().get(format!("{path}?after={id}")),
        world.client().get(format!("{path}?after={}", seqs[4])),
    ] {
        let rest = request.open().await?.ok().await?.rest().await?;
        assert_eq!(rest, whole[5..]);
    }
    // Whoever has it all is told not to ask again, as browsers do by themselves otherwise.
    let end = whole.last().and_then(|event| event.id.clone()).context("no id")?;
    let answer = world.client().get(&path).header("last-event-id", &end).send().await?;
    assert_eq!(answer.status, 204, "{answer:?}");
    world.check_log(&run).await?;
    world.finish().await
}

/// A reader that does not read must not slow the run down, nor the other reader.
#[tokio::test]
async fn a_slow_reader_slows_nobody() -> Result<()> {
    let world = World::new(binary()).sim(paced(20_000, 0)).start().await?;
    let idle = world.stream("ann", "hello").open().await?.ok().await?;
    let run = run_id(&idle.headers)?;
    let ended = world.ended(&run).await?;
    assert_eq!(ended["status"], "success", "{ended}");
    // It reads only now, and still gets everything.
    let events = idle.rest().await?;
    assert_eq!(last(&events)["type"], "final");
    assert_eq!(last(&events)["text"], joined(&events));
    assert_eq!(events.iter().filter(|event| event.kind() == "delta").count(), 20_000);
    world.check_log(&run).await?;
    world.finish().await
}
