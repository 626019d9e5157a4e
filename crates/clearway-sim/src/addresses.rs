//! The addresses that are not the model: health, counters, settings, and lists.

use serde_json::{Value, json};

use crate::Inner;
use crate::dates::rfc3339;
use crate::dialect::Dialect;
use crate::fault::Fault;
use crate::http::{Head, Method};
use crate::plan::{Canned, Rest};
use crate::problem::Problem;
use crate::rerank;
use crate::session::EMBEDDINGS;

const RERANK: &str = "/rerank";

/// Answers a request that is not for the model.
pub(crate) fn answer(sim: &Inner, head: &Head, body: &[u8]) -> Canned {
    let path = head.path.as_str();
    match (head.method, path) {
        (Method::Get, "/health") => ok(&json!({"status": "ok"})),
        (Method::Get, "/stats") => ok(&sim.counters.snapshot().to_json()),
        (Method::Post, "/stats/reset") => {
            sim.counters.reset();
            sim.prompts.reset();
            ok(&sim.counters.snapshot().to_json())
        }
        (Method::Post, RERANK) => match rerank::answer(body) {
            Ok(scores) => ok(&scores),
            Err(wrong) => problem(&wrong),
        },
        (Method::Get, "/prompts") => ok(&sim.prompts.to_json()),
        (Method::Get, "/control") => ok(&control(sim)),
        (Method::Post, "/control") => match sim.try_change(|control| control.changed(body)) {
            Ok(()) => ok(&control(sim)),
            Err(message) => problem(&Problem::invalid(message)),
        },
        (Method::Get, "/faults") => ok(&faults()),
        (Method::Get, "/models") => {
            let models: Vec<_> = sim.options.models.iter().map(|id| model(sim, id)).collect();
            ok(&json!({"object": "list", "data": models}))
        }
        (Method::Get, "/api/tags") => {
            let models: Vec<_> = sim.options.models.iter().map(|id| tag(sim, id)).collect();
            ok(&json!({ "models": models }))
        }
        (Method::Get, path) if path.starts_with("/models/") => {
            ok(&model(sim, &path["/models/".len()..]))
        }
        (_, "/control") => wrong_method("GET, POST"),
        (_, EMBEDDINGS | RERANK | "/stats/reset") => wrong_method("POST"),
        (_, path) if Dialect::ALL.iter().any(|dialect| dialect.path() == path) => {
            wrong_method("POST")
        }
        (_, "/health" | "/stats" | "/prompts" | "/faults" | "/models" | "/api/tags") => {
            wrong_method("GET")
        }
        (_, path) => {
            let message = format!("no such address: {path}");
            problem(&Problem::new(404, "invalid_request_error", message))
        }
    }
}

fn ok(body: &Value) -> Canned {
    Canned {
        status: 200,
        content_type: "application/json",
        headers: Vec::new(),
        body: body.to_string(),
        rest: Rest::Nothing,
    }
}

fn problem(problem: &Problem) -> Canned {
    Canned::error(Dialect::OpenAi, problem)
}

fn wrong_method(allowed: &str) -> Canned {
    let message = format!("this address takes {allowed}");
    problem(&Problem::new(405, "invalid_request_error", message)).with("allow", allowed)
}

fn model(sim: &Inner, id: &str) -> Value {
    let created = sim.options.epoch_s;
    json!({"id": id, "object": "model", "created": created, "owned_by": "clearway-sim"})
}

/// A model as Ollama lists it.
fn tag(sim: &Inner, name: &str) -> Value {
    json!({
        "name": name,
        "model": name,
        "modified_at": rfc3339(sim.options.epoch_s),
        "size": 0,
        "digest": "",
        "details": {"format": "sim", "family": "sim", "parameter_size": "0B"},
    })
}

/// The settings, and whether they amount to an outage at present.
fn control(sim: &Inner) -> Value {
    let control = sim.control();
    let mut shown = control.to_json();
    shown["down"] = sim.is_down(&control).into();
    shown
}

/// The table of faults, for those who have no command line at hand.
fn faults() -> Value {
    let row = |fault: &Fault| {
        let about = fault.about();
        json!({
            "name": about.name,
            "group": about.group.title(),
            "does": about.line,
            "unit": about.parameter.map(|parameter| parameter.unit.symbol()),
            "default": about.parameter.map(|parameter| parameter.default),
        })
    };
    json!({"faults": Fault::ALL.iter().map(row).collect::<Vec<_>>()})
}
