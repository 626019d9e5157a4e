//! Addresses of the doors that a configuration opens: co-founder chats and campaigns.

use serde_json::{Map, Value, json};

use super::own::version;
use super::schemas::text;
use super::{
    ACT, Answer, BYTES, JSON, Operation, PROBLEM, READ, Refusals, SSE, Sends, Style, WRITE,
    deadline, idempotency_key, last_event_id, limit, needed, on_disconnect, put, query,
};
use crate::server::Door;

/// A socket, or why there is none.
pub(super) const SOCKET: &[Answer<'_>] = &[
    ("101", "the socket is open", "", ""),
    ("426", "the request does not ask for a WebSocket", PROBLEM, "Problem"),
];

/// Adds an address of a door below its mount.
fn at(paths: &mut Map<String, Value>, mount: &str, operation: Operation<'_>) {
    let path = format!("{mount}{}", operation.path);
    put(paths, Operation { path: &path, ..operation });
}

// ## Campaigns

const CAMPAIGN: &[Answer<'_>] = &[("200", "the campaign", JSON, "Campaign")];
const OBJECT: &[Answer<'_>] = &[("200", "as asked", JSON, "")];
const STREAM: &[Answer<'_>] = &[("200", "its events", SSE, "")];
const FILE: &[Answer<'_>] = &[("200", "the file", BYTES, "")];

pub(super) fn campaign(paths: &mut Map<String, Value>, door: &Door) {
    let mount = door.mount.trim_end_matches('/');
    all_campaigns(paths, mount);
    one_campaign(paths, mount);
    let view = Operation {
        path: "/campaigns/view/{campaign_id}",
        id: "campaign_view",
        summary: "The website, sandboxed",
        answers: FILE,
        refusals: Refusals(Style::Own, READ),
        ..Operation::default()
    };
    put(paths, view);
}

fn all_campaigns(paths: &mut Map<String, Value>, mount: &str) {
    for (path, id, summary, answers) in [
        (
            "/campaigns/generate",
            "campaign_generate",
            "Start a campaign from a brief",
            &[("200", "it was started", JSON, "Campaign")],
        ),
        (
            "/campaigns",
            "campaign_create",
            "The same, answered with 202",
            &[("202", "it was started", JSON, "Campaign")],
        ),
    ] {
        let (sends, parameters) = (Some(Sends::Body("Brief")), vec![idempotency_key()]);
        let refusals = Refusals(Style::Old, WRITE);
        let method = "post";
        let one = Operation { method, path, id, summary, parameters, sends, answers, refusals };
        at(paths, mount, one);
    }
    let chosen = || {
        vec![
            query("campaign_id", text(), "one of them"),
            query("status", text(), "those with this status"),
            query("username", text(), "those of one user"),
            limit(),
        ]
    };
    let after = || vec![query("after", text(), "events that the client has"), last_event_id()];
    type Row = (&'static str, &'static str, &'static str, &'static [Answer<'static>]);
    const LISTED: &[Answer<'_>] = &[("200", "the campaigns", JSON, "Campaigns")];
    const PROGRESS: &[Answer<'_>] = &[("200", "the campaigns", JSON, "CampaignsProgress")];
    let rows: [(Row, Vec<Value>); 8] = [
        (("/campaigns", "campaign_list", "All campaigns", LISTED), chosen()),
        (
            (
                "/campaigns/progress",
                "campaign_all_progress",
                "All campaigns with progress",
                PROGRESS,
            ),
            chosen(),
        ),
        (
            ("/campaigns/stream", "campaign_all_stream", "All campaigns as they go on", STREAM),
            after(),
        ),
        (("/campaigns/ws", "campaign_all_socket", "The same over a WebSocket", SOCKET), after()),
        (
            (
                "/campaigns/progress/ws",
                "campaign_progress_socket",
                "The same over a WebSocket",
                SOCKET,
            ),
            after(),
        ),
        (("/health", "campaign_health", "Health in the old shape", OBJECT), vec![]),
        (("/test/thread-pool", "campaign_pool", "Two seconds of blocking work", OBJECT), vec![]),
        (
            (
                "/analytics/campaigns",
                "campaign_analytics",
                "Counts, durations, failures, cost",
                OBJECT,
            ),
            chosen(),
        ),
    ];
    for ((path, id, summary, answers), parameters) in rows {
        let refusals = Refusals(Style::Own, ACT);
        let one =
            Operation { path, id, summary, parameters, answers, refusals, ..Operation::default() };
        at(paths, mount, one);
    }
}

fn one_campaign(paths: &mut Map<String, Value>, mount: &str) {
    let mount = format!("{mount}/campaigns/{{campaign_id}}");
    let refusals = Refusals(Style::Own, READ);
    for (path, id, summary, answers) in [
        ("", "campaign_show", "One campaign", CAMPAIGN),
        ("/status", "campaign_status", "Its status", OBJECT),
        ("/progress", "campaign_progress", "Its progress, from its events", OBJECT),
        ("/workflow-steps", "campaign_steps", "Its steps", OBJECT),
        ("/website", "campaign_website", "The website as a download", FILE),
        ("/pdf", "campaign_pdf", "The report as a download", FILE),
        ("/artifacts", "campaign_artifacts", "Its files", OBJECT),
        ("/zip", "campaign_zip", "All its files as one archive", FILE),
    ] {
        let one = Operation { path, id, summary, answers, refusals, ..Operation::default() };
        at(paths, &mount, one);
    }
    for (path, id, summary, parameter, answers) in [
        ("/artifacts/{name}", "campaign_artifact", "One of its files", version(), FILE),
        ("/stream", "campaign_stream", "Its events as a stream", last_event_id(), STREAM),
        ("/ws", "campaign_socket", "The same over a WebSocket", last_event_id(), SOCKET),
    ] {
        let mut parameters = vec![parameter];
        if answers != FILE {
            parameters.push(query("after", text(), "the last event that the client has"));
        }
        let one =
            Operation { path, id, summary, parameters, answers, refusals, ..Operation::default() };
        at(paths, &mount, one);
    }
    let refusals = Refusals(Style::Own, WRITE);
    let change = Operation {
        method: "patch",
        path: "",
        id: "campaign_change",
        summary: "Change the priority of one that waits",
        sends: Some(Sends::Maybe("ChangeCampaign")),
        answers: CAMPAIGN,
        refusals,
        ..Operation::default()
    };
    at(paths, &mount, change);
    let cancel = Operation {
        method: "post",
        path: "/cancel",
        id: "campaign_cancel",
        summary: "End it",
        answers: &[
            ("200", "it has ended", JSON, "Campaign"),
            ("202", "it is being stopped", JSON, "Campaign"),
        ],
        refusals,
        ..Operation::default()
    };
    at(paths, &mount, cancel);
    let answer = Operation {
        method: "post",
        path: "/answer",
        id: "campaign_answer",
        summary: "Answer its question",
        sends: Some(Sends::Body("AnswerRun")),
        answers: &[("202", "it goes on", JSON, "Campaign")],
        refusals,
        ..Operation::default()
    };
    at(paths, &mount, answer);
}

// ## Chats

pub(super) fn cofounder(paths: &mut Map<String, Value>, door: &Door) {
    let mount = door.mount.trim_end_matches('/');
    let name = mount.replace('/', "_");
    let mut add = |operation: Operation<'_>| {
        let id = format!("{}{name}", operation.id);
        at(paths, mount, Operation { id: &id, ..operation });
    };
    let turn = || vec![on_disconnect(), idempotency_key(), deadline()];
    const TURN: &[&str] = &[
        "Invalid",
        "NotFound",
        "TooSlow",
        "Conflict",
        "TooLarge",
        "Unprocessable",
        "TooMany",
        "Failed",
        "Unavailable",
    ];
    const FRAMES: &[Answer<'_>] = &[("200", "delta, progress, final or error", SSE, "")];
    add(Operation {
        method: "post",
        path: "/chat",
        id: "chat",
        summary: "One turn, answered as a whole",
        parameters: turn(),
        sends: Some(Sends::Body("Turn")),
        answers: &[("200", "the reply", JSON, "Reply")],
        refusals: Refusals(Style::Old, TURN),
    });
    add(Operation {
        method: "post",
        path: "/chat/stream",
        id: "chat_stream",
        summary: "One turn, answered as a stream",
        parameters: [turn(), vec![last_event_id()]].concat(),
        sends: Some(Sends::Body("Turn")),
        answers: FRAMES,
        refusals: Refusals(Style::Old, TURN),
    });
    let uuid = json!({"type": "string", "format": "uuid"});
    let run = query("run_id", uuid, "the X-Run-Id of the answer that began the stream");
    add(Operation {
        path: "/chat/stream",
        id: "chat_rejoin",
        summary: "Go on with a stream that broke off",
        parameters: vec![needed(run), last_event_id(), on_disconnect()],
        answers: FRAMES,
        refusals: Refusals(Style::Old, READ),
        ..Operation::default()
    });
    add(Operation {
        method: "post",
        path: "/reset",
        id: "reset",
        summary: "End the running turn and start over",
        sends: Some(Sends::Body("Reset")),
        answers: &[("200", "the conversation is empty", JSON, "")],
        refusals: Refusals(Style::Old, WRITE),
        ..Operation::default()
    });
    let conversation = json!({"type": "string", "default": "default"});
    add(Operation {
        path: "/state",
        id: "state",
        summary: "What the conversation has come to, where the door shows it",
        parameters: vec![
            needed(query("user_id", text(), "whose conversation")),
            query("conversation_id", conversation, "which conversation"),
        ],
        answers: &[("200", "the state", JSON, "")],
        refusals: Refusals(Style::Old, &["NotFound", "Unprocessable", "Unavailable"]),
        ..Operation::default()
    });
    add(Operation {
        path: "/health",
        id: "health",
        summary: "Whether the door is there",
        answers: &[("200", "it is there", JSON, "")],
        ..Operation::default()
    });
}
