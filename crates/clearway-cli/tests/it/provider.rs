//! A provider that misbehaves: never a short success, never a leak, always a precise reason.

use std::time::Duration;

use anyhow::Result;
use clearway_testkit::{Agent, World};

use crate::{binary, last, run_id};

/// A turn against `fault` fails with `code`, whole and streamed, and nothing stays open.
async fn fails_with(fault: &str, code: &str) -> Result<()> {
    let world = World::new(binary()).agent(Agent::new("cofounder").fault(fault)).start().await?;
    let answer = world.chat("ann", "hello").send().await?.expect(502)?;
    let run = world.run(&run_id(&answer.headers)?).await?;
    assert_eq!(answer.code(), code, "{fault}: {}", answer.text());
    assert_eq!(run["status"], "error", "{fault}: {run}");
    assert_eq!(run["error"]["code"], code, "{fault}: {run}");
    let stream = world.stream("bob", "hello").open().await?.ok().await?;
    let run = run_id(&stream.headers)?;
    let events = stream.rest().await?;
    assert_eq!(last(&events)["type"], "error", "{fault}");
    assert_eq!(last(&events)["detail"]["error_type"], code, "{fault}");
    assert!(!events.iter().any(|event| event.kind() == "final"), "{fault}: a part was taken for the whole");
    world.check_log(&run).await?;
    world.sim().until("in_flight", 0, Duration::from_secs(1)).await?;
    world.finish().await
}

#[tokio::test]
async fn a_body_that_ends_in_good_order_too_early() -> Result<()> {
    fails_with("cut_end:3", "upstream.stream_truncated").await
}

#[tokio::test]
async fn a_connection_that_closes_in_the_middle() -> Result<()> {
    fails_with("cut_fin:3", "upstream.stream_truncated").await
}

#[tokio::test]
async fn a_chunk_that_is_missing() -> Result<()> {
    fails_with("cut_chunk:3", "upstream.stream_truncated").await
}

#[tokio::test]
async fn a_connection_that_is_reset() -> Result<()> {
    fails_with("cut_rst:3", "upstream.stream_truncated").await
}

#[tokio::test]
async fn an_error_in_the_middle() -> Result<()> {
    fails_with("error_event:3", "upstream.server_error").await
}

#[tokio::test]
async fn a_web_page_instead_of_an_answer() -> Result<()> {
    fails_with("html_200", "upstream.bad_response").await
}

/// Odd bytes that are no fault: the answer is the same.
#[tokio::test]
async fn odd_bytes_are_understood() -> Result<()> {
    for fault in ["one_byte", "mixed_eol", "multi_line", "split_utf8", "bom", "no_usage"] {
        let world = World::new(binary()).agent(Agent::new("cofounder").fault(fault)).start().await?;
        let answer = world.chat("ann", "the blue bicycle").send().await?.expect(200)?;
        assert!(answer.text().contains("the blue bicycle"), "{fault}: {}", answer.text());
        world.check_log(&run_id(&answer.headers)?).await?;
        world.finish().await?;
    }
    Ok(())
}
