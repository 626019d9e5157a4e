//! Spans of runs and of their steps, for whoever exports them.
//!
//! They have a target of their own, [`TARGET`], to which nobody listens unless telemetry is on; then
//! making one costs a load and a branch. The field names are those of OpenTelemetry's conventions for
//! generative AI. Numbers are `i64`, because OpenTelemetry knows no other integers.
//!
//! What must stay true: no field ever holds a prompt, a reply or an error's text, because fields leave
//! the machine. Not here: log lines (`started`), spans of provider calls (`clearway-upstream`), the
//! export (the façade).

use clearway_core::run::Usage;
use clearway_core::{Code, Failure, RunRecord};
use tracing::Span;
use tracing::field::Empty;

/// The target of spans that are exported, and of nothing else.
const TARGET: &str = "clearway::trace";

/// The key of a run's metadata that says whose trace it continues.
const TRACEPARENT: &str = "traceparent";

/// The span of one execution of a run here.
pub(crate) fn run(record: &RunRecord) -> Span {
    tracing::info_span!(
        target: TARGET,
        "invoke_agent",
        otel.name = %format_args!("invoke_agent {}", record.agent),
        otel.status_code = Empty,
        gen_ai.operation.name = "invoke_agent",
        gen_ai.agent.name = record.agent,
        gen_ai.conversation.id = %record.thread,
        gen_ai.usage.input_tokens = Empty,
        gen_ai.usage.output_tokens = Empty,
        clearway.run.id = %record.id,
        clearway.run.attempt = i64::from(record.attempt),
        clearway.run.outcome = Empty,
        error.type = Empty,
        traceparent = record.metadata.get(TRACEPARENT).and_then(|parent| parent.as_str()),
    )
}

/// The span of one node's call, within the run's.
pub(crate) fn step(node: &str, step: i64) -> Span {
    tracing::info_span!(
        target: TARGET,
        "step",
        otel.name = %format_args!("step {node}"),
        otel.status_code = Empty,
        clearway.node.name = node,
        clearway.step = step,
        error.type = Empty,
    )
}

/// Notes in the current span that it failed, and how.
pub(crate) fn failed(code: Code) {
    let span = Span::current();
    span.record("error.type", code.as_str());
    span.record("otel.status_code", "ERROR");
}

/// Notes in the current span, a run's, what its execution used and how it failed, if it did.
pub(crate) fn ended(usage: Usage, failure: Option<&Failure>) {
    let span = Span::current();
    let tokens = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    span.record("gen_ai.usage.input_tokens", tokens(usage.input_tokens));
    span.record("gen_ai.usage.output_tokens", tokens(usage.output_tokens));
    if let Some(failure) = failure {
        failed(failure.code);
    }
}
