//! Spans at a collector, and a server that does not care whether one is there.

use std::time::Duration;

use anyhow::Result;
use clearway_testkit::otlp::{Collector, Span};
use clearway_testkit::{Agent, Builder, World};

use crate::{binary, run_id};

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn exporting_to(url: &str) -> Builder {
    let extra = format!("[telemetry]\notlp = \"{url}\"\n");
    World::new(binary()).config(|config| config.extra = extra)
}

fn of_run(id: &str) -> impl Fn(&Span) -> bool {
    move |span| span.attributes.get("clearway.run.id").is_some_and(|found| found == id)
}

#[tokio::test]
async fn a_chat_is_a_trace_that_continues_its_callers() -> Result<()> {
    let collector = Collector::start().await?;
    let world = exporting_to(&collector.url()).env("OTEL_SERVICE_NAME", "front").start().await?;
    let turn = world.chat("ann", "the blue bicycle").header("traceparent", PARENT);
    let id = run_id(&turn.send().await?.expect(200)?.headers)?;

    let run = collector.span(of_run(&id)).await?;
    assert_eq!(run.name, "invoke_agent cofounder");
    assert_eq!(run.trace, "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(run.parent, "b7ad6b7169203331");
    assert!(!run.failed);
    assert_eq!(run.resource["service.name"], "front");
    assert_eq!(run.attributes["gen_ai.operation.name"], "invoke_agent");
    assert_eq!(run.attributes["gen_ai.agent.name"], "cofounder");
    assert_eq!(run.attributes["clearway.run.attempt"], 1);
    assert_eq!(run.attributes["clearway.run.outcome"], "success");
    let record = world.run(&id).await?;
    assert_eq!(run.attributes["gen_ai.conversation.id"], record["thread_id"], "{record}");
    let step = collector.span(|span| span.parent == run.id).await?;
    assert_eq!((step.name.as_str(), &step.trace), ("step model", &run.trace));
    assert!(!collector.has_seen("bicycle"), "a prompt was exported");

    let metrics = world.client().get("/metrics").send().await?.expect(200)?.text();
    assert!(metrics.contains("clearway_telemetry_spans_lost_total 0"), "{metrics}");
    world.finish().await
}

#[tokio::test]
async fn a_failed_run_says_how_it_failed() -> Result<()> {
    let collector = Collector::start().await?;
    let agent = Agent::new("cofounder").fault("no_answer").line("deadline = \"300ms\"");
    let world = exporting_to(&collector.url()).agent(agent).start().await?;
    world.chat("ann", "hello").send().await?.expect(502)?;
    let run = collector.span(|span| span.name.starts_with("invoke_agent")).await?;
    assert!(run.failed && run.parent.is_empty(), "{run:?}");
    assert_eq!(run.attributes["error.type"], "deadline_exceeded");
    assert_eq!(run.attributes["clearway.run.outcome"], "timeout");
    world.finish().await
}

#[tokio::test]
async fn the_last_spans_leave_before_the_end() -> Result<()> {
    let collector = Collector::start().await?;
    let mut world = exporting_to(&collector.url()).start().await?;
    let id = run_id(&world.chat("ann", "hello").send().await?.expect(200)?.headers)?;
    world.stop(Duration::from_secs(10)).await?;
    let spans = collector.spans();
    assert!(spans.iter().any(|span| of_run(&id)(span)), "{spans:?}");
    world.finish().await
}

#[tokio::test]
async fn a_collector_that_is_away_is_told_about_and_changes_nothing() -> Result<()> {
    let url = Collector::start().await?.url();
    let world = exporting_to(&url).start().await?;
    for turn in 0..3 {
        world.chat("ann", &format!("turn {turn}")).send().await?.expect(200)?;
    }
    let lost = async || {
        let metrics = world.client().get("/metrics").send().await?.expect(200)?.text();
        Ok(!metrics.contains("clearway_telemetry_spans_lost_total 0"))
    };
    clearway_testkit::until("spans are counted as lost", Duration::from_secs(20), lost).await?;
    world.finish().await
}

/// The exporter has one OS thread, from the start; without one there is none.
#[tokio::test]
async fn exporting_takes_one_thread() -> Result<()> {
    let collector = Collector::start().await?;
    let mut without = World::new(binary()).start().await?;
    let mut with = exporting_to(&collector.url()).start().await?;
    for world in [&with, &without] {
        world.chat("ann", "hello").send().await?.expect(200)?;
    }
    let [with_threads, without_threads] =
        [with.server()?.census()?.threads, without.server()?.census()?.threads];
    assert_eq!(with_threads, without_threads + 1);
    without.finish().await?;
    with.finish().await
}
