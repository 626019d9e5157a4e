//! The thread protocol over a WebSocket: commands in, answers and events out.
//!
//! Not here: what commands and events are (`protocol`), the socket itself ([`crate::ws`]).

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::get;
use bytes::Bytes;
use clearway_core::{Failure, ThreadId};
use http::{HeaderMap, Method};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::follow::follow;
use super::protocol::{self, ThreadEvents, Wanted};
use super::{Params, threads};
use crate::Problem;
use crate::app::{Address, App, Routes};
use crate::feed::{Feed, Item, More};
use crate::ws::Handshake;

pub(super) fn routes(routes: Routes) -> Result<Routes, Address> {
    routes.add(Method::GET, "/threads/{thread_id}/stream/events", get(connect))
}

/// `GET /threads/{thread_id}/stream/events`, as a WebSocket.
async fn connect(
    State(app): State<App>,
    Params(params): Params,
    mut request: Request,
) -> Result<Response, Problem> {
    let thread = threads::id(&params[0])?;
    let handshake = Handshake::read(&mut request)?;
    let talk = Talk {
        app: app.clone(),
        headers: request.headers().clone(),
        thread,
        streams: Vec::new(),
        commands: VecDeque::new(),
        told: VecDeque::new(),
    };
    Ok(handshake.accept(app, talk))
}

/// Commands that may wait for the ones before them.
const COMMANDS: usize = 16;
/// Subscriptions of one socket.
const STREAMS: usize = 16;
/// Events that leave together.
const PIECE: usize = 256;

/// One socket's side of the talk.
struct Talk {
    app: App,
    /// Of the handshake: in whose name commands are done.
    headers: HeaderMap,
    thread: ThreadId,
    streams: Vec<(String, mpsc::Receiver<Bytes>)>,
    commands: VecDeque<Pin<Box<dyn Future<Output = Value> + Send>>>,
    told: VecDeque<Value>,
}

impl fmt::Debug for Talk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Talk").field("thread", &self.thread).finish_non_exhaustive()
    }
}

fn refusal(id: &Value, code: &str, message: &str) -> Value {
    json!({"type": "error", "id": id, "error": code, "message": message})
}

impl Talk {
    fn subscribe(&mut self, id: &Value, params: &Value) -> Value {
        if self.streams.len() >= STREAMS {
            return refusal(id, "invalid_argument", "too many subscriptions on one socket");
        }
        let wanted = match Wanted::parse(params) {
            Ok(wanted) => wanted,
            Err(why) => return refusal(id, "invalid_argument", &why),
        };
        let name = self.app.engine.new_id().to_string();
        let pieces = follow(&self.app, self.thread, ThreadEvents::new(wanted, false));
        self.streams.push((name.clone(), pieces));
        let result = json!({"subscription_id": name, "replayed_events": 0});
        json!({"type": "success", "id": id, "result": result, "meta": {"applied_through_seq": 0}})
    }

    fn unsubscribe(&mut self, id: &Value, params: &Value) -> Value {
        let before = self.streams.len();
        self.streams.retain(|(name, _)| params["subscription_id"] != name.as_str());
        if self.streams.len() == before {
            return refusal(id, "no_such_subscription", "this socket has no such subscription");
        }
        json!({"type": "success", "id": id, "result": {}, "meta": {"applied_through_seq": 0}})
    }
}

impl Feed for Talk {
    const ENDLESS: bool = true;

    fn poll_due(&mut self, cx: &mut Context<'_>, due: &mut Vec<Item>) -> Poll<More> {
        let item = |data| Item { id: None, data };
        due.extend(self.told.drain(..).map(item));
        while let Some(command) = self.commands.front_mut() {
            let Poll::Ready(answer) = command.as_mut().poll(cx) else { break };
            self.commands.pop_front();
            due.push(item(answer));
        }
        for (_, pieces) in &mut self.streams {
            while due.len() < PIECE {
                let Poll::Ready(Some(piece)) = pieces.poll_recv(cx) else { break };
                let lines = piece.split(|byte| *byte == b'\n');
                due.extend(lines.filter_map(|line| serde_json::from_slice(line).ok()).map(item));
            }
        }
        if due.is_empty() { Poll::Pending } else { Poll::Ready(More::Yes) }
    }

    fn heartbeat(&mut self) -> Value {
        json!({"type": "heartbeat"})
    }

    fn failure(&mut self, failure: &Failure) -> Value {
        refusal(&Value::Null, "unknown_error", &failure.message)
    }

    fn hear(&mut self, text: &str) {
        let value = crate::extract::parse_json(text.as_bytes()).unwrap_or_default();
        let (id, method) = match protocol::envelope(&value) {
            Ok(known) => known,
            Err(problem) => {
                let id = &value["id"];
                self.told.push_back(refusal(id, "invalid_argument", problem.detail()));
                return;
            }
        };
        let params = value["params"].clone();
        match method.as_str() {
            "subscription.subscribe" => {
                let answer = self.subscribe(&json!(id), &params);
                self.told.push_back(answer);
            }
            "subscription.unsubscribe" => {
                let answer = self.unsubscribe(&json!(id), &params);
                self.told.push_back(answer);
            }
            _ if self.commands.len() >= COMMANDS => {
                let text = "too many commands wait for the ones before them";
                self.told.push_back(refusal(&json!(id), "invalid_argument", text));
            }
            _ => {
                let (app, headers, thread) = (self.app.clone(), self.headers.clone(), self.thread);
                self.commands.push_back(Box::pin(async move {
                    protocol::answer(&app, &headers, thread, id, &method, &params).await
                }));
            }
        }
    }
}
