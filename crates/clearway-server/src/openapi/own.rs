//! Our own addresses: operations, runs, threads as they are stored, background tasks, embeddings.

use serde_json::{Map, Value, json};

use super::schemas::text;
use super::{
    ACT, Answer, BYTES, JSON, LIST, METRICS, Operation, READ, Refusals, SSE, Sends, Style, TEXT,
    WRITE, deadline, flag, idempotency_key, last_event_id, limit, put, query,
};

pub(super) fn paths(paths: &mut Map<String, Value>) {
    operations(paths);
    runs(paths);
    control(paths);
    storage(paths);
    background(paths);
    embeddings(paths);
}

fn uuid() -> Value {
    json!({"type": "string", "format": "uuid"})
}

const fn own(reasons: &'static [&'static str]) -> Refusals {
    Refusals(Style::Own, reasons)
}

/// An address without parameters of its own.
fn get(
    paths: &mut Map<String, Value>,
    path: &str,
    id: &str,
    summary: &str,
    answers: &[Answer<'_>],
) {
    let reasons: &[&str] = if path.contains('{') { READ } else { LIST };
    let refusals = own(reasons);
    put(paths, Operation { path, id, summary, answers, refusals, ..Operation::default() });
}

fn operations(paths: &mut Map<String, Value>) {
    const OBJECT: &[Answer<'_>] = &[("200", "as asked", JSON, "")];
    const HEALTH: &[Answer<'_>] = &[("200", "yes", JSON, ""), ("503", "no", JSON, "")];
    const PAGE: &[Answer<'_>] = &[("200", "the page", TEXT, "")];
    get(paths, "/", "home", "What lives here", PAGE);
    get(paths, "/openapi.json", "openapi", "This document", OBJECT);
    get(paths, "/health/live", "live", "Whether the runtime moves", HEALTH);
    let ready = "Whether new work would be done, and if not, why";
    get(paths, "/health/ready", "ready", ready, HEALTH);
    let metrics = &[("200", "as asked", METRICS, "")];
    get(paths, "/metrics", "metrics", "Measurements for Prometheus", metrics);
    get(paths, "/providers", "providers", "Model providers and how busy they are", OBJECT);
    put(
        paths,
        Operation {
            path: "/providers/attempts",
            id: "attempts_of_no_run",
            summary: "Attempts at provider calls that belong to no run, newest first",
            parameters: vec![
                limit(),
                query("after", json!({"type": "integer"}), "the `next` of the page before"),
            ],
            answers: &[("200", "a page", JSON, "Attempts")],
            refusals: own(LIST),
            ..Operation::default()
        },
    );
    get(paths, "/pools", "pools", "Pools of runs and how busy they are", OBJECT);
    let pages = "What an error code means and what to do about it";
    get(paths, "/errors/{code}", "error_page", pages, PAGE);
    put(
        paths,
        Operation {
            method: "post",
            path: "/providers/{name}/reset",
            id: "reset_provider",
            summary: "Closes a provider's breakers and takes its keys up again",
            answers: &[("200", "the provider as it is now", JSON, "")],
            refusals: own(READ),
            ..Operation::default()
        },
    );
    put(
        paths,
        Operation {
            method: "patch",
            path: "/pools/{name}",
            id: "change_pool",
            summary: "How many runs of a pool execute at once",
            sends: Some(Sends::Body("ChangePool")),
            answers: &[("200", "the pool as it is now", JSON, "")],
            refusals: own(WRITE),
            ..Operation::default()
        },
    );
    let attention = &[("200", "what and who, with the command that ends it", JSON, "Attention")];
    get(paths, "/attention", "attention", "What needs somebody", attention);
}

fn runs(paths: &mut Map<String, Value>) {
    put(
        paths,
        Operation {
            path: "/runs",
            id: "runs",
            summary: "Runs of all doors, newest first",
            parameters: vec![
                query("status", text(), "one or more statuses, separated by commas"),
                query("agent", text(), "runs of one agent"),
                query("door", text(), "runs that came through one door"),
                query("thread_id", uuid(), "runs of one thread"),
                query("parent", uuid(), "runs that a run started"),
                limit(),
                query("after", uuid(), "the `next` of the page before"),
            ],
            answers: &[("200", "a page", JSON, "Runs")],
            refusals: own(LIST),
            ..Operation::default()
        },
    );
    get(
        paths,
        "/runs/{run_id}",
        "run",
        "One run: what it does, and what it waits for",
        &[("200", "the run", JSON, "Run")],
    );
    put(
        paths,
        Operation {
            method: "patch",
            path: "/runs/{run_id}",
            id: "change_run",
            summary: "Priority and budget of a run",
            sends: Some(Sends::Maybe("ChangeRun")),
            answers: &[("200", "the run", JSON, "Run")],
            refusals: own(WRITE),
            ..Operation::default()
        },
    );
    put(
        paths,
        Operation {
            path: "/runs/{run_id}/events",
            id: "run_events",
            summary: "A run's events, as a stream or, with Accept: application/json, as a page",
            parameters: vec![
                query("after", text(), "an event's id or number; reading goes on behind it"),
                limit(),
                last_event_id(),
            ],
            answers: &[
                ("200", "the events", SSE, ""),
                ("200", "the events", JSON, "Events"),
                ("204", "the run is over, and the client has all of it", "", ""),
            ],
            refusals: own(READ),
            ..Operation::default()
        },
    );
    put(
        paths,
        Operation {
            method: "post",
            path: "/runs/{run_id}/cancel",
            id: "run_cancel",
            summary: "End a run",
            parameters: vec![flag("wait", "answer after the end, with a receipt")],
            answers: &[
                ("200", "it has ended", JSON, "Run"),
                ("202", "its calls are being dropped", JSON, "Run"),
            ],
            refusals: own(ACT),
            ..Operation::default()
        },
    );
    put(
        paths,
        Operation {
            path: "/runs/{run_id}/attempts",
            id: "run_attempts",
            summary: "A run's attempts at provider calls, oldest first",
            parameters: vec![
                limit(),
                query("after", json!({"type": "integer"}), "the `next` of the page before"),
            ],
            answers: &[("200", "a page", JSON, "Attempts")],
            refusals: own(READ),
            ..Operation::default()
        },
    );
    let files = &[("200", "the files", JSON, "Artifacts")];
    get(paths, "/runs/{run_id}/artifacts", "run_artifacts", "Files that a run made", files);
    put(
        paths,
        Operation {
            path: "/runs/{run_id}/artifacts/{name}",
            id: "run_artifact",
            summary: "One file",
            parameters: vec![version()],
            answers: &[("200", "the file", BYTES, "")],
            refusals: own(READ),
            ..Operation::default()
        },
    );
}

pub(super) fn version() -> Value {
    let number = json!({"type": "integer", "minimum": 0, "maximum": u32::MAX});
    query("version", number, "an earlier one")
}

fn control(paths: &mut Map<String, Value>) {
    const ACCEPTED: &[Answer<'_>] = &[("202", "accepted", JSON, "Run")];
    let mut post = |path, id, summary, sends, parameters| {
        let (answers, refusals) = (ACCEPTED, own(WRITE));
        let method = "post";
        let one = Operation { method, path, id, summary, parameters, sends, answers, refusals };
        put(paths, one);
    };
    post(
        "/workflows/{name}/runs",
        "start_workflow",
        "Start a workflow",
        Some(Sends::Maybe("StartWorkflow")),
        vec![idempotency_key()],
    );
    post(
        "/runs/{run_id}/answer",
        "answer",
        "Answer what a run asked; a new run goes on",
        Some(Sends::Body("AnswerRun")),
        vec![],
    );
    post(
        "/runs/{run_id}/signals/{name}",
        "signal",
        "Send a signal to a run",
        Some(Sends::Maybe("Anything")),
        vec![idempotency_key()],
    );
    post("/runs/{run_id}/wake", "wake", "Take a waiting run up before its time", None, vec![]);
    post(
        "/runs/{run_id}/resolve",
        "resolve",
        "Decide about a write whose outcome is not known",
        Some(Sends::Body("ResolveRun")),
        vec![],
    );
}

fn storage(paths: &mut Map<String, Value>) {
    const ONE: &str = "/storage/threads/{thread_id}";
    put(
        paths,
        Operation {
            path: "/storage/threads",
            id: "stored_threads",
            summary: "Threads, most recently changed first",
            parameters: vec![
                limit(),
                query("after", uuid(), "the `next` of the page before"),
                query("dialect", text(), "threads of one door"),
            ],
            answers: &[("200", "a page", JSON, "StoredThreads")],
            refusals: own(READ),
            ..Operation::default()
        },
    );
    put(
        paths,
        Operation {
            path: ONE,
            id: "stored_thread",
            summary: "A thread's values and what it occupies",
            parameters: vec![query("checkpoint", uuid(), "its values then")],
            answers: &[("200", "the thread", JSON, "StoredThread")],
            refusals: own(READ),
            ..Operation::default()
        },
    );
    put(
        paths,
        Operation {
            path: "/storage/threads/{thread_id}/history",
            id: "thread_history",
            summary: "A thread's checkpoints",
            parameters: vec![limit(), query("before", uuid(), "those older than it")],
            answers: &[("200", "a page", JSON, "Checkpoints")],
            refusals: own(READ),
            ..Operation::default()
        },
    );
    put(
        paths,
        Operation {
            method: "post",
            path: "/storage/threads/{thread_id}/prune",
            id: "prune_thread",
            summary: "Drop a thread's old checkpoints",
            sends: Some(Sends::Body("PruneThread")),
            answers: &[("200", "what was dropped", JSON, "")],
            refusals: own(WRITE),
            ..Operation::default()
        },
    );
    put(
        paths,
        Operation {
            method: "post",
            path: "/storage/threads/{thread_id}/fork",
            id: "fork_thread",
            summary: "Go on from an earlier checkpoint",
            sends: Some(Sends::Body("ForkThread")),
            answers: &[("202", "the run that goes on", JSON, "Run")],
            refusals: own(WRITE),
            ..Operation::default()
        },
    );
}

fn background(paths: &mut Map<String, Value>) {
    let refusals = Refusals(Style::Old, WRITE);
    put(
        paths,
        Operation {
            method: "post",
            path: "/chat/async",
            id: "task_create",
            summary: "A chat in the background: answers at once with a task",
            parameters: vec![idempotency_key(), deadline()],
            sends: Some(Sends::Body("Ask")),
            answers: &[("202", "accepted", JSON, "")],
            refusals,
        },
    );
    put(
        paths,
        Operation {
            path: "/chat/task/{task_id}",
            id: "task",
            summary: "A task: its status, what there is of its text, its result",
            answers: &[("200", "the task", JSON, "Task")],
            refusals: own(TASK),
            ..Operation::default()
        },
    );
    let after = query("after", uuid(), "the `next` of the page before");
    let status = query("status", text(), "pending, running, completed, failed, cancelled");
    put(
        paths,
        Operation {
            path: "/tasks",
            id: "tasks",
            summary: "Tasks, newest first",
            parameters: vec![status, limit(), after],
            answers: &[("200", "a page", JSON, "")],
            refusals: own(LIST),
            ..Operation::default()
        },
    );
    put(
        paths,
        Operation {
            method: "delete",
            path: "/tasks/{task_id}",
            id: "task_cancel",
            summary: "End a task; answers when its work has stopped",
            answers: &[("200", "how it ended", JSON, "")],
            refusals: own(TASK),
            ..Operation::default()
        },
    );
}

fn embeddings(paths: &mut Map<String, Value>) {
    put(
        paths,
        Operation {
            method: "post",
            path: "/v1/embeddings",
            id: "embeddings",
            summary: "Vectors of texts, as OpenAI's clients ask for them",
            parameters: vec![deadline()],
            sends: Some(Sends::Body("Embed")),
            answers: &[("200", "a vector for each text", JSON, "Embeddings")],
            refusals: Refusals(Style::OpenAi, EMBED),
        },
    );
    let purpose = json!({"type": "string", "enum": ["query", "document"], "default": "query"});
    put(
        paths,
        Operation {
            path: "/embeddings/{text}",
            id: "embedding",
            summary: "The vector of one text, to look at",
            parameters: vec![
                query("model", text(), "which one; `text-embedding-3-small`, or the only one"),
                query("purpose", purpose, "what the vector is for"),
                deadline(),
            ],
            answers: &[("200", "the vector", JSON, "Embedding")],
            refusals: own(EMBED),
            ..Operation::default()
        },
    );
}

const TASK: &[&str] = &["Invalid", "NotFound", "Gone", "TooMany", "Unavailable"];
const EMBED: &[&str] =
    &["Invalid", "NotFound", "TooSlow", "TooLarge", "TooMany", "Failed", "Unavailable", "Late"];
