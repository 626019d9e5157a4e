//! All runs of a thread as run streams, one after the other, and what is changed between them.
//!
//! Not here: reading a thread's runs (`follow`), frames of a run (`frames`).

use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::get;
use bytes::BytesMut;
use clearway_core::EventId;
use clearway_core::run::RunRecord;
use clearway_engine::RunQuery;
use http::Method;
use serde_json::{Value, json};

use super::errors::{self, unprocessable};
use super::follow::{Show, ThreadBody, follow};
use super::frames::{Frames, Ids, THREAD_BITS, put_json, thread_seq};
use super::modes::{Item, Modes, Projector, What};
use super::runs::own_of;
use super::{Params, threads};
use crate::Problem;
use crate::app::{Address, App, Routes};
use crate::extract::{Query, shown};

pub(super) fn routes(routes: Routes) -> Result<Routes, Address> {
    routes.add(Method::GET, "/threads/{thread_id}/stream", get(stream))
}

/// `GET /threads/{thread_id}/stream`: each run as its own stream shows it, one after the other.
async fn stream(
    State(app): State<App>,
    Params(params): Params,
    request: Request,
) -> Result<Response, Problem> {
    let thread = threads::id(&params[0])?;
    let query = Query::parse(request.uri()).map_err(|why| errors::invalid(vec![why]))?;
    let wants = ThreadWants::read(&query)?;
    let header = request.headers().get("last-event-id");
    let seen = match header.map(|value| value.to_str().map(str::trim)) {
        None | Some(Ok("")) => None,
        Some(Ok("-" | "-1")) => Some(0),
        Some(Ok(text)) => Some(last_seen(text)?),
        Some(Err(_)) => return Err(unprocessable("Last-Event-ID is not text")),
    };
    threads::overview(&app, thread).await?;
    let query = RunQuery { thread: Some(thread), limit: 1, ..RunQuery::default() };
    let (runs, _) = app.engine.runs(query).await?;
    let newest = runs.first().map(|view| &view.record);
    let last = newest.map_or(0, |one| one.thread_ord);
    let begun = match seen {
        // One that is under way is still to come, too.
        Some(seen) => {
            let under_way = newest.is_some_and(|one| !one.status.is_terminal());
            Begun::After { seen, last: last - i64::from(under_way) }
        }
        None => Begun::Now {
            last,
            events: newest.filter(|one| !one.status.is_terminal()).map_or(0, |one| one.next_seq),
        },
    };
    let pieces = follow(&app, thread, ThreadFrames { begun, wants, last: 0 });
    Ok(super::stream::answer(ThreadBody::new(pieces)))
}

fn last_seen(text: &str) -> Result<u64, Problem> {
    let number = text.split_once('-').and_then(|(ms, number)| {
        ms.parse::<u64>().ok()?;
        number.parse::<u64>().ok()
    });
    number.ok_or_else(|| {
        let text = shown(text);
        unprocessable(format!("Last-Event-ID must be an event's id or `-`, this is `{text}`"))
    })
}

/// What a client of a thread's stream is shown.
#[derive(Clone, Copy, Debug)]
struct ThreadWants {
    /// Runs, as their own streams show them.
    runs: bool,
    /// That runs begin and end.
    lifecycle: bool,
    /// Changes by hand.
    changes: bool,
}

impl ThreadWants {
    /// The SDKs send `stream_mode`, one, several, or a list; LangGraph's server reads `stream_modes`.
    fn read(query: &Query) -> Result<Self, Problem> {
        let mut wants = Self { runs: false, lifecycle: false, changes: false };
        let named = ["stream_mode", "stream_modes"].into_iter().flat_map(|name| query.all(name));
        for text in named {
            match text.trim_matches(['[', ']', '"', ' ']) {
                "run_modes" => wants.runs = true,
                "lifecycle" => wants.lifecycle = true,
                "state_update" => wants.changes = true,
                unknown => {
                    let text = shown(unknown);
                    let known = "run_modes, lifecycle, state_update";
                    let text = format!("no stream mode is called `{text}`; there are: {known}");
                    return Err(unprocessable(text));
                }
            }
        }
        wants.runs |= !wants.lifecycle && !wants.changes;
        Ok(wants)
    }
}

/// Where a client of a thread's stream begins.
#[derive(Debug)]
enum Begun {
    /// Behind a frame, with runs that can be resumed and with all behind the newest one.
    After { seen: u64, last: i64 },
    /// With what comes after so many events of the newest run.
    Now { last: i64, events: u64 },
}

#[derive(Debug)]
struct ThreadFrames {
    begun: Begun,
    wants: ThreadWants,
    /// The last frame of a run that was shown.
    last: u64,
}

impl ThreadFrames {
    fn frames(&self, run: &RunRecord) -> Frames {
        let ord = run.thread_ord.unsigned_abs();
        let made_ms = run.created_at.0.unsigned_abs();
        let own = own_of(run);
        let named = own["modes"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let modes = named.filter_map(|name| Modes::parse(name).ok());
        let modes = modes.reduce(Modes::with).unwrap_or(Modes::VALUES.with(Modes::TUPLES));
        let seen = match self.begun {
            Begun::After { .. } => None,
            Begun::Now { last, events } if run.thread_ord == last && events > 0 => {
                Some(EventId { seq: events - 1, fence: u32::MAX, part: u8::MAX })
            }
            Begun::Now { .. } => None,
        };
        Frames { modes, ids: Ids::Thread { ord, made_ms }, seen, tells_start: true }
    }
}

impl Show for ThreadFrames {
    fn wants(&self, run: &RunRecord) -> bool {
        match self.begun {
            Begun::After { seen, last } => {
                let end = (run.thread_ord.unsigned_abs() + 1) << THREAD_BITS;
                let is_kept = own_of(run)["resumable"] != false;
                // A later one may have ended before it was looked at.
                run.thread_ord > last || !run.status.is_terminal() || (is_kept && seen < end)
            }
            Begun::Now { last, events } => {
                run.thread_ord > last || (run.thread_ord == last && events > 0)
            }
        }
    }

    fn modes(&self) -> Modes {
        Modes::ALL
    }

    fn show(&mut self, run: &RunRecord, item: &Item, of: &Projector, out: &mut BytesMut) {
        let seq = thread_seq(run.thread_ord.unsigned_abs(), item.id);
        if matches!(self.begun, Begun::After { seen, .. } if seq <= seen) {
            return;
        }
        self.last = self.last.max(seq);
        let begins = matches!(item.what, What::Started { .. });
        if self.wants.runs {
            self.frames(run).put(item, of, out);
        } else if self.wants.lifecycle && begins {
            Frames { modes: Modes::NONE, ..self.frames(run) }.put(item, of, out);
        }
    }

    fn over(&mut self, run: &RunRecord, out: &mut BytesMut) {
        let (ord, made) = (run.thread_ord.unsigned_abs(), run.created_at.0);
        let seq = ((ord + 1) << THREAD_BITS) - 1;
        if matches!(self.begun, Begun::After { seen, .. } if seq <= seen) {
            return;
        }
        self.last = self.last.max(seq);
        if !self.wants.runs && !self.wants.lifecycle {
            return;
        }
        out.extend_from_slice(b"event: metadata\r\ndata: ");
        put_json(&json!({"status": "run_done", "run_id": run.id.to_string()}), out);
        out.extend_from_slice(format!("\r\nid: {made}-{seq}\r\n\r\n").as_bytes());
    }

    fn wants_changes(&self) -> bool {
        self.wants.changes
    }

    /// A change has the number of what was shown before it: who resumes goes on with later runs.
    fn changed(&mut self, state: Value, out: &mut BytesMut) {
        let at = state["created_at"].as_str().and_then(clearway_engine::parse_time);
        let (at, seq) = (at.map_or(0, |at| at.0), self.last);
        let thread = state["checkpoint"]["thread_id"].clone();
        out.extend_from_slice(b"event: state_update\r\ndata: ");
        put_json(&json!({"state": state, "thread_id": thread}), out);
        out.extend_from_slice(format!("\r\nid: {at}-{seq}\r\n\r\n").as_bytes());
    }
}
