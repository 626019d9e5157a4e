//! The binary as a stranger meets it: real processes, real sockets, real files.
//!
//! One test binary for all of it; the harness is in `clearway-testkit`. What a test waits for is
//! always a state of the server, the simulator or a process, never the passing of time.

use clearway_testkit::{Binary, Event};

mod admission;
mod alerts;
mod attempts;
mod boot;
mod campaigns;
mod cancel;
mod chat;
mod crash;
mod deadline;
mod dev;
mod doctor;
mod durable;
mod input;
mod knowledge;
mod lab;
mod langgraph;
mod limits;
mod load;
mod outward;
mod provider;
mod runs;
mod stream;
mod tasks;
mod telemetry;
mod threads;
mod tools;
mod why;
mod wire;
mod workflows;

/// The binary that this suite was built with.
fn binary() -> Binary {
    Binary::new(env!("CARGO_BIN_EXE_clearway"))
}

/// The text of all deltas.
fn joined(events: &[Event]) -> String {
    let deltas = events.iter().filter(|event| event.kind() == "delta");
    deltas.map(|event| event.json()["text"].as_str().unwrap_or_default().to_owned()).collect()
}

/// The last event of a stream.
fn last(events: &[Event]) -> serde_json::Value {
    events.last().map(Event::json).unwrap_or_default()
}

/// The run behind an answer.
fn run_id(headers: &clearway_testkit::Headers) -> anyhow::Result<String> {
    use anyhow::Context as _;
    Ok(headers.get("x-run-id").context("an answer without X-Run-Id")?.to_owned())
}
