//! From `tracing` spans to OpenTelemetry's.
//!
//! What `tracing-opentelemetry` does, for one target only, and with one thing more: a span with a
//! field [`TRACEPARENT`] continues the trace that the field names. So whoever makes spans needs to
//! know nothing of OpenTelemetry.

use std::collections::HashMap;
use std::fmt;

use opentelemetry::Context as Parent;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::TraceContextExt;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracer;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_opentelemetry::OpenTelemetryLayer;
use tracing_subscriber::Registry;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer as _};
use tracing_subscriber::registry::LookupSpan;

use super::TARGET;

/// A part of a subscriber, with its own filter.
pub type Layer = Box<dyn tracing_subscriber::Layer<Registry> + Send + Sync>;

/// The field with the caller's W3C trace context, as in the header of that name. Not exported.
pub(super) const TRACEPARENT: &str = "traceparent";

pub(super) fn new(tracer: SdkTracer) -> Layer {
    let spans = tracing_opentelemetry::layer()
        .with_tracer(tracer)
        // Where in our code a span was made, by which worker and how long it was polled is of no use
        // to who runs agents.
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        // Tasks enter their spans with every poll; `tracing` knows the current one already.
        .with_context_activation(false);
    // A target also covers what is below it, so a level is all there is to add.
    Box::new(Continued(spans).with_filter(Targets::new().with_target(TARGET, LevelFilter::INFO)))
}

/// Spans that may continue a caller's trace.
struct Continued<S>(OpenTelemetryLayer<S, SdkTracer>);

impl<S> tracing_subscriber::Layer<S> for Continued<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, ctx: Context<'_, S>) {
        let mut found = Traceparent(None);
        attributes.record(&mut found);
        // A span within another one of ours belongs to that one's trace.
        let _parent = found.0.map(Parent::attach);
        self.0.on_new_span(attributes, id, ctx);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, ctx: Context<'_, S>) {
        self.0.on_record(id, values, ctx);
    }

    fn on_follows_from(&self, id: &Id, follows: &Id, ctx: Context<'_, S>) {
        self.0.on_follows_from(id, follows, ctx);
    }

    fn on_event(&self, event: &Event<'_>, ctx: Context<'_, S>) {
        self.0.on_event(event, ctx);
    }

    fn on_close(&self, id: Id, ctx: Context<'_, S>) {
        self.0.on_close(id, ctx);
    }
}

/// Finds the caller's trace among a span's fields.
struct Traceparent(Option<Parent>);

impl Visit for Traceparent {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == TRACEPARENT {
            self.0 = parent(value);
        }
    }

    fn record_debug(&mut self, _field: &Field, _value: &dyn fmt::Debug) {}
}

/// `None` for a text that is no trace context.
fn parent(text: &str) -> Option<Parent> {
    let carrier = HashMap::from([(TRACEPARENT.to_owned(), text.to_owned())]);
    let parent = TraceContextPropagator::new().extract_with_context(&Parent::new(), &carrier);
    parent.span().span_context().is_valid().then_some(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_trace_context_is_one() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let found = parent(good).unwrap();
        let span = found.span().span_context().clone();
        assert_eq!(span.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert!(span.is_remote() && span.is_sampled());
        for bad in [
            "",
            "nonsense",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert!(parent(bad).is_none(), "{bad}");
        }
    }
}
