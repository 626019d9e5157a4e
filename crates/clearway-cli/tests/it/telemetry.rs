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

/// A chat whose first route is down: both attempts and the route that answered are in the trace.
#[tokio::test]
async fn a_chat_that_was_retried_and_fell_back_shows_every_attempt() -> Result<()> {
    let collector = Collector::start().await?;
    let extra = format!(
        "[telemetry]\notlp = \"{}\"\n\
         [models.front]\nprovider = \"lab\"\nmodel = \"m+status:502\"\nfallback = [\"spare\"]\n\
         [models.spare]\nprovider = \"lab\"\nmodel = \"spare\"\nprice = {{ input = 1.0, output = 2.0 }}\n\
         [agents.front]\nmodel = \"front\"\nprompt = \"Be brief.\"\n\
         [doors.front]\ndialect = \"cofounder\"\nmount = \"/front\"\nagent = \"front\"\n",
        collector.url()
    );
    let world = World::new(binary()).config(|config| config.extra = extra).start().await?;
    let body = serde_json::json!({"user_id": "ann", "message": "hello"});
    let answer = world.client().post("/front/chat").json(&body).send().await?.expect(200)?;
    let id = run_id(&answer.headers)?;

    let run = collector.span(of_run(&id)).await?;
    let step = collector.span(|span| span.parent == run.id).await?;
    let call = collector.span(|span| span.parent == step.id).await?;
    assert_eq!(call.name, "chat m+status:502");
    assert_eq!(call.attributes["gen_ai.operation.name"], "chat");
    assert_eq!(call.attributes["gen_ai.response.model"], "spare");
    assert!(!call.failed, "{call:?}");
    let mut attempts: Vec<Span> =
        collector.spans().into_iter().filter(|span| span.parent == call.id).collect();
    attempts.sort_by_key(|span| span.attributes["http.request.resend_count"].as_i64());
    let told: Vec<_> = attempts
        .iter()
        .map(|span| (span.failed, span.attributes["http.response.status_code"].as_i64()))
        .collect();
    assert_eq!(told, [(true, Some(502)), (true, Some(502)), (false, Some(200))], "{attempts:?}");
    assert_eq!(attempts[0].attributes["error.type"], "upstream.server_error");

    let record = world.run(&id).await?;
    assert_eq!(record["usage"]["calls"], 3, "{record}");
    assert!(record["usage"]["cost"].as_f64().is_some_and(|cost| cost > 0.0), "{record}");
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
