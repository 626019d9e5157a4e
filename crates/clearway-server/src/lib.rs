//! How the world asks: the HTTP listener, the doors, streams, problems, health and metrics.
//!
//! A door is a dialect, and a dialect is an adapter: it reads a request, makes one engine call and
//! renders what comes back. Doors hold no state and no logic of their own.
//!
//! **Invariants:** a client that leaves drops only its view, because runs live in the engine. No
//! exchange waits without a bound: connections, heads, bodies, idle time and readers have limits
//! ([`HttpLimits`]). No request makes the server panic or grow without bound.
//!
//! Not here: who does the work (`clearway-engine`), configuration files (the façade).
//!
//! Start reading at `routes.rs`, then `cofounder.rs` and `sse.rs`.

mod app;
mod ask;
mod attempts;
mod auth;
mod caller;
mod campaigns;
mod codes;
mod cofounder;
mod conn;
mod control;
mod cors;
mod embeddings;
mod events;
mod extract;
mod feed;
mod files;
mod guard;
mod idempotency;
mod json;
mod knowledge;
mod langgraph;
mod notes;
mod openapi;
mod ops;
mod problem;
mod routes;
mod runs;
mod server;
mod service;
mod sse;
mod stop;
mod storage;
mod tasks;
mod view;
mod ws;

pub use auth::{ApiKey, KeyLimits, Scope};
pub use problem::Problem;
pub use server::{
    BindError, Bound, Door, DoorKind, HttpLimits, Server, ServerOptions, open_files_for,
};

/// Runs every parser of request bodies over bytes that may be anything. For fuzzing: whatever the
/// bytes are, this returns.
pub fn fuzz_request_bodies(data: &[u8]) {
    let _ = extract::parse_json(data);
    cofounder::fuzz(data);
    tasks::fuzz(data);
    embeddings::fuzz(data);
    files::fuzz(data);
    knowledge::fuzz(data);
    notes::fuzz(data);
}

#[cfg(test)]
mod testing;
