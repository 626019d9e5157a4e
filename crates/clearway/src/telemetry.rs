//! Spans of runs, exported to an OpenTelemetry collector.
//!
//! Spans are ordinary `tracing` spans with the target [`TARGET`], made where things happen. Without
//! an exporter nobody listens to that target and they cost nothing. [`Telemetry`] is an exporter:
//! its [`layer`](Telemetry::layer) turns those spans, and nothing else, into OpenTelemetry's, and one
//! OS thread of its own sends them in batches as OTLP over HTTP.
//!
//! What must stay true: nobody waits for a collector. A span that cannot be queued or delivered is
//! dropped and counted. Prompts, replies and log lines are never exported, because only the fields
//! of those spans are.
//!
//! Not here: log output and the process's subscriber (`clearway-cli`), metrics (`/metrics`).

use std::io;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::TelemetryResourceDetector;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, ShouldSample};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

use crate::config::{self, Sampling};

pub use self::layer::Layer;

mod collector;
mod export;
mod layer;

/// The target of spans that are exported, and of nothing else.
pub const TARGET: &str = "clearway::trace";

/// How long the end of the process waits for the last spans.
const FLUSH: Duration = Duration::from_secs(2);

/// A running exporter; dropping it sends what is queued, within two seconds.
#[derive(Debug)]
pub struct Telemetry {
    provider: SdkTracerProvider,
    counts: Counts,
}

/// What became of spans. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    exported: Counter,
    lost: Counter,
}

/// Why no exporter could be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("telemetry cannot be sent to {endpoint}: {problem}")]
    Endpoint { endpoint: String, problem: String },
    #[error("the thread that exports spans cannot be started")]
    Thread(#[source] io::Error),
}

impl Telemetry {
    /// Starts the exporter's OS thread. The collector need not be there.
    ///
    /// # Errors
    /// The address cannot be used, or the host refuses the thread.
    pub fn start(config: &config::Telemetry) -> Result<Self, Error> {
        let resource = resource(config);
        let counts = Counts::default();
        let queue = export::start(config, &resource, counts.clone())?;
        let provider = SdkTracerProvider::builder()
            .with_sampler(sampler(config.sampling))
            .with_resource(resource)
            .with_span_processor(queue)
            .build();
        Ok(Self { provider, counts })
    }

    /// The part of the process's subscriber that exports.
    pub fn layer(&self) -> Layer {
        layer::new(self.provider.tracer("clearway"))
    }

    /// For `/metrics`.
    pub fn counts(&self) -> Counts {
        self.counts.clone()
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        // What is lost by then was counted and told.
        let _ = self.provider.shutdown_with_timeout(FLUSH);
    }
}

impl Counts {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "telemetry_spans_exported",
            "Spans that the collector took",
            self.exported.clone(),
        );
        registry.register(
            "telemetry_spans_lost",
            "Spans dropped because the queue was full or the collector did not take them",
            self.lost.clone(),
        );
    }
}

fn resource(config: &config::Telemetry) -> Resource {
    let attributes = config.resource.iter();
    Resource::builder_empty()
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attributes(attributes.map(|(name, value)| KeyValue::new(name.clone(), value.clone())))
        .build()
}

fn sampler(sampling: Sampling) -> Box<dyn ShouldSample> {
    let root = Sampler::TraceIdRatioBased(sampling.ratio);
    if sampling.follow_parent {
        Box::new(Sampler::ParentBased(Box::new(root)))
    } else {
        Box::new(root)
    }
}

#[cfg(test)]
mod tests;
