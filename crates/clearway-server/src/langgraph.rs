//! LangGraph's dialect: assistants, threads, runs and their streams, as its SDKs, hooks and chat
//! pages know them.
//!
//! Agents and workflows are its graphs; every graph has an assistant of its own. A thread here is a
//! thread, a run is a run: one that came through another door can be read, joined and cancelled, too.
//!
//! **Invariant:** no body, query or id makes this door answer with a 5xx. What is wrong with a
//! request is 422 with a text, what does not exist 404, what is at odds with the present state 409.
//!
//! Not here: what a graph is ([`graph`]), how a run's events look in its streams (`modes`).

mod assistants;
mod crons;
mod drawing;
mod errors;
mod facts;
mod follow;
mod frames;
mod graph;
mod joins;
mod mcp;
mod messages;
mod modes;
mod pending;
mod protocol;
mod request;
mod runs;
mod socket;
mod state;
mod storage;
mod store;
mod stream;
mod thread_stream;
mod threads;
mod ttl;

use axum::Json;
use axum::extract::{FromRequestParts, RawPathParams, State};
use axum::routing::get;
use http::Method;
use http::request::Parts;
use serde_json::{Value, json};

use crate::Problem;
use crate::app::{Address, App, Routes};

/// The dialect's name in run records.
pub(crate) const DIALECT: &str = "langgraph";

/// Adds the door's addresses.
///
/// # Errors
/// Another door has one of them.
pub(crate) fn table(routes: Routes) -> Result<Routes, Address> {
    let mut routes =
        routes.add(Method::GET, "/ok", get(ok))?.add(Method::GET, "/info", get(info))?;
    let parts = [
        assistants::routes,
        threads::routes,
        state::routes,
        runs::routes,
        joins::routes,
        crons::routes,
        storage::routes,
        protocol::routes,
        thread_stream::routes,
        socket::routes,
        store::routes,
        mcp::routes,
    ];
    for part in parts {
        routes = part(routes)?;
    }
    Ok(routes)
}

/// `GET /ok`
async fn ok() -> Json<Value> {
    Json(json!({"ok": true, "services": {}}))
}

/// `GET /info`: what chat pages ask first.
async fn info(State(app): State<App>) -> Json<Value> {
    Json(json!({
        "version": app.options.version,
        "server": "clearway",
        "flags": {"assistants": true, "crons": true, "langsmith": false, "store": true},
        "host": {"kind": "self-hosted", "project_id": null, "revision_id": null, "tenant_id": null},
    }))
}

/// The parameters of a path, in order.
#[derive(Debug)]
struct Params(Vec<String>);

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let params = RawPathParams::from_request_parts(parts, state).await;
        let params = params.map_err(|_| errors::unprocessable("the path is not valid UTF-8"))?;
        Ok(Self(params.iter().map(|(_, value)| value.to_owned()).collect()))
    }
}

#[cfg(test)]
mod tests;
