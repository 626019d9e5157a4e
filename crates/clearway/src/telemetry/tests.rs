//! Spans in, spans at a collector out.

use clearway_testkit::otlp::{Collector, Span};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::json;
use tracing::field::Empty;
use tracing::{info, info_span};
use tracing_subscriber::layer::SubscriberExt;

use super::*;
use crate::config::{Config, Env};

fn config(url: &str) -> config::Telemetry {
    let text = format!("[telemetry]\notlp = \"{url}\"\n");
    Config::parse("clearway.toml", &text, &Env::default()).unwrap().telemetry.unwrap()
}

/// Exports what `work` makes, and answers what became of it.
async fn export(telemetry: Telemetry, work: impl FnOnce()) -> (u64, u64) {
    let subscriber = tracing_subscriber::registry().with(telemetry.layer());
    tracing::subscriber::with_default(subscriber, work);
    let counts = telemetry.counts();
    // The collector runs here, so the wait for the last spans must not.
    let ended = std::thread::Builder::new().spawn(move || drop(telemetry)).unwrap();
    while !ended.is_finished() {
        tokio::task::yield_now().await;
    }
    (counts.exported.get(), counts.lost.get())
}

/// As the provider client makes them: a call of two attempts, the first of which failed.
fn chat() {
    let call = info_span!(
        target: TARGET, "chat", otel.name = "chat small", otel.kind = "client",
        gen_ai.request.model = "small", gen_ai.response.model = Empty,
    )
    .entered();
    for (resend, status) in [(0_i64, 503_i64), (1, 200)] {
        let attempt = info_span!(
            target: TARGET, "attempt", otel.name = "POST", otel.kind = "client",
            server.address = "api.example", server.port = 443_i64,
            http.request.resend_count = resend, http.response.status_code = Empty,
            error.type = Empty, otel.status_code = Empty,
        )
        .entered();
        attempt.record("http.response.status_code", status);
        if status != 200 {
            attempt.record("error.type", "server_error");
            attempt.record("otel.status_code", "ERROR");
        }
        info!("a log line with a secret in it");
    }
    call.record("gen_ai.response.model", "small-2");
}

fn named<'s>(spans: &'s [Span], name: &str) -> Vec<&'s Span> {
    spans.iter().filter(|span| span.name == name).collect()
}

#[tokio::test]
async fn a_call_and_its_attempts_arrive_as_a_tree() {
    let collector = Collector::start().await.unwrap();
    let telemetry = Telemetry::start(&config(&collector.url())).unwrap();
    assert_eq!(export(telemetry, chat).await, (3, 0));
    let spans = collector.spans();
    let [call] = named(&spans, "chat small")[..] else { panic!("{spans:?}") };
    let [first, second] = named(&spans, "POST")[..] else { panic!("{spans:?}") };
    assert_eq!((call.parent.as_str(), call.kind, call.failed), ("", SpanKind::Client, false));
    assert_eq!(call.attributes["gen_ai.response.model"], "small-2");
    assert_eq!(call.resource["service.name"], "clearway");
    for attempt in [first, second] {
        assert_eq!((&attempt.parent, &attempt.trace), (&call.id, &call.trace));
        assert!(call.start_ns <= attempt.start_ns && attempt.end_ns <= call.end_ns);
    }
    assert!(first.failed && !second.failed);
    let expected = json!({
        "error.type": "server_error", "http.request.resend_count": 0,
        "http.response.status_code": 503, "server.address": "api.example", "server.port": 443,
    });
    assert_eq!(serde_json::to_value(&first.attributes).unwrap(), expected);
    assert!(!second.attributes.contains_key("error.type"));
    assert!(!collector.has_seen("secret"), "a log line was exported");
}

#[tokio::test]
async fn a_span_continues_the_trace_it_names() {
    let collector = Collector::start().await.unwrap();
    let telemetry = Telemetry::start(&config(&collector.url())).unwrap();
    let sampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let unsampled = "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    let counts = export(telemetry, || {
        for parent in [Some(sampled), Some(unsampled), Some("nonsense"), None] {
            let _run = info_span!(target: TARGET, "run", traceparent = parent).entered();
            drop(info_span!(target: TARGET, "inside"));
        }
    });
    assert_eq!(counts.await, (6, 0), "the caller decides which of its traces are exported");
    let spans = collector.spans();
    let runs = named(&spans, "run");
    assert_eq!(runs[0].trace, "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(runs[0].parent, "b7ad6b7169203331");
    assert_eq!(named(&spans, "inside")[0].parent, runs[0].id);
    assert!(runs[1].parent.is_empty() && runs[2].parent.is_empty());
    assert!(!collector.has_seen("traceparent"));
}

#[tokio::test]
async fn other_targets_and_sampled_out_traces_stay_here() {
    let collector = Collector::start().await.unwrap();
    let nothing = Sampling { ratio: 0.0, follow_parent: true };
    let sampled_out = config::Telemetry { sampling: nothing, ..config(&collector.url()) };
    assert_eq!(export(Telemetry::start(&sampled_out).unwrap(), chat).await, (0, 0));
    let telemetry = Telemetry::start(&config(&collector.url())).unwrap();
    let counts = export(telemetry, || {
        drop(info_span!("of another target").entered());
        drop(tracing::debug_span!(target: TARGET, "too fine").entered());
    });
    assert_eq!(counts.await, (0, 0));
    assert_eq!(collector.spans(), []);
}

#[tokio::test]
async fn a_collector_that_is_busy_is_asked_again() {
    let collector = Collector::start().await.unwrap();
    collector.refuse(&[503]);
    let telemetry = Telemetry::start(&config(&collector.url())).unwrap();
    let subscriber = tracing_subscriber::registry().with(telemetry.layer());
    tracing::subscriber::with_default(subscriber, chat);
    collector.span(|span| span.name == "chat small").await.unwrap();
    assert_eq!(export(telemetry, || {}).await, (3, 0));
}

#[tokio::test]
async fn spans_that_nobody_takes_are_counted() {
    let collector = Collector::start().await.unwrap();
    collector.refuse(&[400]);
    let telemetry = Telemetry::start(&config(&collector.url())).unwrap();
    assert_eq!(export(telemetry, chat).await, (0, 3));

    let url = collector.url();
    drop(collector);
    let telemetry = Telemetry::start(&config(&url)).unwrap();
    assert_eq!(export(telemetry, chat).await, (0, 3));
}

/// A collector that takes connections and says nothing holds up neither who makes spans nor the end.
#[tokio::test]
async fn a_silent_collector_delays_nobody() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let telemetry = Telemetry::start(&config(&url)).unwrap();
    let started = std::time::Instant::now();
    let many = 10_000;
    let counts = export(telemetry, || {
        for _ in 0..many {
            drop(info_span!(target: TARGET, "run"));
        }
        let made = started.elapsed();
        assert!(made < Duration::from_secs(2), "{made:?} for {many} spans");
    });
    assert_eq!(counts.await, (0, many));
    let took = started.elapsed();
    assert!(took < FLUSH + Duration::from_secs(2), "{took:?}");
}
