//! Campaigns as they go on: one campaign's objects, or those of all campaigns that a caller sees.
//!
//! A reader always gets a campaign from its first event on, less what it says it has: so every
//! figure in a later object is right, wherever the reader came in.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::Request;
use axum::response::Response;
use clearway_core::event::Event;
use clearway_core::thread::ThreadKey;
use clearway_core::{Code, EventId, Failure, RunId, RunRecord, ThreadId, Timestamp};
use clearway_engine::{Error, From as Begin, RunQuery, Subscription};
use http::{HeaderMap, Uri};
use serde_json::{Value, json};
use tokio::time::{Instant, Sleep, sleep_until};

use super::fold::{Fold, StepInfo, steps_of};
use super::{DIALECT, created_by, key_of, message, one, word};
use crate::Problem;
use crate::app::App;
use crate::caller::{Caller, caller};
use crate::extract::{Query, shown};
use crate::feed::{self, Feed, Item, More};
use crate::server::Door;
use crate::ws::Handshake;

/// `GET …/campaigns/{id}/stream`
pub(crate) async fn stream(
    app: App,
    door: &Door,
    id: &str,
    request: Request,
) -> Result<Response, Problem> {
    let watch = watch(&app, door, id, request.uri(), request.headers()).await?;
    Ok(feed::stream(app, watch))
}

/// `GET …/campaigns/{id}/ws`
pub(crate) async fn socket(
    app: App,
    door: &Door,
    id: &str,
    mut request: Request,
) -> Result<Response, Problem> {
    let handshake = Handshake::read(&mut request)?;
    let watch = watch(&app, door, id, request.uri(), request.headers()).await?;
    Ok(handshake.accept(app, watch))
}

/// `GET …/campaigns/stream`
pub(crate) async fn stream_all(
    app: App,
    door: &Door,
    request: Request,
) -> Result<Response, Problem> {
    let all = watch_all(&app, door, &request)?;
    Ok(feed::stream(app, all))
}

/// `GET …/campaigns/ws` and `GET …/campaigns/progress/ws`
pub(crate) async fn socket_all(
    app: App,
    door: &Door,
    mut request: Request,
) -> Result<Response, Problem> {
    let handshake = Handshake::read(&mut request)?;
    let all = watch_all(&app, door, &request)?;
    Ok(handshake.accept(app, all))
}

async fn watch(
    app: &App,
    door: &Door,
    id: &str,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<Watch, Problem> {
    let campaign = one(app, &caller(headers, None)?, id).await?;
    let query = Query::parse(uri)?;
    let seen = match asked(&query, headers) {
        Some(text) => Some(text.parse().map_err(|()| not_an_id(&text))?),
        None => None,
    };
    Ok(Watch::new(app, steps_of(app, door), campaign.record.thread, seen))
}

fn watch_all(app: &App, door: &Door, request: &Request) -> Result<WatchAll, Problem> {
    let query = Query::parse(request.uri())?;
    let mut after = HashMap::new();
    let asked = asked(&query, request.headers());
    for text in asked.as_deref().unwrap_or_default().split(',').filter(|text| !text.is_empty()) {
        let read = || {
            let (id, seen) = text.trim().split_once('/')?;
            Some((id.to_owned(), seen.parse::<Seen>().ok()?))
        };
        let (id, seen) = read().ok_or_else(|| not_an_id(text))?;
        after.insert(id, seen);
    }
    let caller = caller(request.headers(), None)?;
    Ok(WatchAll {
        app: app.clone(),
        caller,
        steps: steps_of(app, door),
        watches: HashMap::new(),
        after,
        known: None,
        listing: None,
        pause: Box::pin(sleep_until(Instant::now())),
    })
}

/// What the client says it has: a socket's client in the query, one of events in the header.
fn asked(query: &Query, headers: &HeaderMap) -> Option<String> {
    let header = headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let text = query.get("after").or(header)?.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

fn not_an_id(text: &str) -> Problem {
    let text = format!("`{}` is not the id of an event of this stream", shown(text));
    Problem::new(Code::InvalidRequest, text)
}

// ## Where a reader is

/// The last object that a reader has. On the wire `<seq>-<fence and part>`, with the number of the
/// campaign's run in front when it is not the first: `1.12-256`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    run: usize,
    id: EventId,
}

impl Seen {
    /// Whether it covers another object. A later lease tells numbers anew.
    fn covers(&self, other: &Self) -> bool {
        let (mine, its) = (self.id, other.id);
        other.run < self.run
            || (other.run == self.run
                && its.fence <= mine.fence
                && (its.seq, its.part) <= (mine.seq, mine.part))
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.run > 0 {
            write!(f, "{}.", self.run)?;
        }
        write!(f, "{}", self.id)
    }
}

impl std::str::FromStr for Seen {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (run, id) = match text.split_once('.') {
            Some((run, id)) => (run.parse().map_err(|_| ())?, id),
            None => (0, text),
        };
        let id = match id.parse() {
            Ok(id) => id,
            // A bare number says nothing about the lease; the newest one is meant.
            Err(_) => EventId { seq: id.parse().map_err(|_| ())?, fence: u32::MAX, part: u8::MAX },
        };
        Ok(Self { run, id })
    }
}

// ## One campaign

/// A campaign's events as the old service's objects, over all its runs.
#[derive(Debug)]
struct Watch {
    app: App,
    thread: ThreadId,
    steps: Arc<[StepInfo]>,
    fold: Fold,
    began: Option<Timestamp>,
    seen: Option<Seen>,
    /// The run being read, and how many came before it.
    run: Option<RunId>,
    number: usize,
    last: Option<EventId>,
    phase: Phase,
    events: Vec<Event>,
}

enum Phase {
    Reading(Subscription),
    Looking(Look),
    Pausing(Pin<Box<Sleep>>),
    Over,
}

type Look = Pin<Box<dyn Future<Output = Result<Found, Error>> + Send>>;

/// What follows a run.
enum Found {
    Run(RunId, Timestamp, Subscription),
    /// The campaign is over.
    End(Box<RunRecord>),
    /// A person is asked; the answer begins the next run.
    Nothing,
}

impl fmt::Debug for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reading(_) => "Reading",
            Self::Looking(_) => "Looking",
            Self::Pausing(_) => "Pausing",
            Self::Over => "Over",
        })
    }
}

/// How often an unanswered campaign is looked after, and new campaigns are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

fn look(app: &App, thread: ThreadId, current: Option<RunId>) -> Phase {
    let app = app.clone();
    Phase::Looking(Box::pin(async move {
        let query = RunQuery { thread: Some(thread), limit: 100, ..RunQuery::default() };
        let (mut runs, _) = app.engine.records(query).await?;
        runs.reverse();
        let at = runs.iter().position(|run| Some(run.id) == current).map_or(0, |at| at + 1);
        if let Some(next) = runs.get(at) {
            let log = app.engine.subscribe(next.id, Begin::Start).await?;
            return Ok(Found::Run(next.id, next.created_at, log));
        }
        let last = runs.pop().filter(|last| word(last) != "running");
        Ok(last.map_or(Found::Nothing, |last| Found::End(Box::new(last))))
    }))
}

impl Watch {
    fn new(app: &App, steps: Arc<[StepInfo]>, thread: ThreadId, seen: Option<Seen>) -> Self {
        Self {
            app: app.clone(),
            thread,
            steps,
            fold: Fold::default(),
            began: None,
            seen,
            run: None,
            number: 0,
            last: None,
            phase: look(app, thread, None),
            events: Vec::new(),
        }
    }

    fn tell(&mut self, id: EventId, data: Value, due: &mut Vec<Item>) {
        let at = Seen { run: self.number, id };
        if self.seen.is_some_and(|seen| seen.covers(&at)) {
            return;
        }
        due.push(Item { id: Some(at.to_string()), data });
    }

    fn event(&mut self, event: &Event, due: &mut Vec<Item>) {
        self.last = Some(event.id());
        let Some(interaction) = self.fold.event(event) else { return };
        let id = event.id();
        let waits = interaction["status"] == "waiting";
        self.tell(EventId { part: 0, ..id }, interaction, due);
        let elapsed = event.at.since(self.began.unwrap_or(event.at)).as_secs_f64();
        let progress = json!({
            "type": "progress",
            "timestamp": event.at.to_string(),
            "progress": self.fold.figures(&self.steps, "running", elapsed),
            "status": if waits { "waiting" } else { "running" },
        });
        self.tell(EventId { part: 1, ..id }, progress, due);
    }

    fn end(&mut self, record: &RunRecord, due: &mut Vec<Item>) {
        let at = record.ended_at.unwrap_or_else(|| self.app.engine.now());
        let end = json!({
            "type": "completion",
            "timestamp": at.to_string(),
            "status": word(record),
            "message": message(record),
        });
        let id = self.last.unwrap_or(EventId { seq: 0, fence: record.fence, part: 0 });
        let elapsed = at.since(self.began.unwrap_or(at)).as_secs_f64();
        let progress = json!({
            "type": "progress",
            "timestamp": at.to_string(),
            "progress": self.fold.figures(&self.steps, word(record), elapsed),
            "status": word(record),
        });
        self.tell(EventId { part: 2, ..id }, progress, due);
        self.tell(EventId { part: 3, ..id }, end, due);
        self.phase = Phase::Over;
    }

    fn fail(&mut self, failure: &Failure, due: &mut Vec<Item>) {
        due.push(Item { id: None, data: self.failure(failure) });
        self.phase = Phase::Over;
    }
}

impl Feed for Watch {
    fn poll_due(&mut self, cx: &mut Context<'_>, due: &mut Vec<Item>) -> Poll<More> {
        loop {
            if due.len() >= PIECE {
                return Poll::Ready(More::Yes);
            }
            let polled = match &mut self.phase {
                Phase::Over => return Poll::Ready(More::No),
                Phase::Reading(log) => match log.poll_next(cx, &mut self.events) {
                    Poll::Ready(Ok(true)) => {
                        for event in std::mem::take(&mut self.events) {
                            self.event(&event, due);
                        }
                        continue;
                    }
                    Poll::Ready(Ok(false)) => {
                        self.phase = look(&self.app, self.thread, self.run);
                        continue;
                    }
                    Poll::Ready(Err(error)) => {
                        self.fail(&error.0, due);
                        continue;
                    }
                    Poll::Pending => Poll::Pending,
                },
                Phase::Pausing(pause) => pause.as_mut().poll(cx).map(|()| None),
                Phase::Looking(found) => found.as_mut().poll(cx).map(Some),
            };
            match polled {
                Poll::Pending if due.is_empty() => return Poll::Pending,
                Poll::Pending => return Poll::Ready(More::Yes),
                Poll::Ready(None) => self.phase = look(&self.app, self.thread, self.run),
                Poll::Ready(Some(Ok(Found::Run(run, created, log)))) => {
                    self.number += usize::from(self.run.is_some());
                    self.run = Some(run);
                    self.began.get_or_insert(created);
                    self.phase = Phase::Reading(log);
                }
                Poll::Ready(Some(Ok(Found::End(record)))) => self.end(&record, due),
                Poll::Ready(Some(Ok(Found::Nothing))) => {
                    let at = Instant::now() + LOOK_EVERY;
                    self.phase = Phase::Pausing(Box::pin(sleep_until(at)));
                }
                Poll::Ready(Some(Err(error))) => self.fail(&error.0, due),
            }
        }
    }

    fn heartbeat(&mut self) -> Value {
        heartbeat(&self.app)
    }

    fn failure(&mut self, failure: &Failure) -> Value {
        told(&self.app, failure)
    }
}

/// Objects that leave at once.
const PIECE: usize = 256;

fn heartbeat(app: &App) -> Value {
    json!({"type": "heartbeat", "timestamp": app.engine.now().to_string()})
}

fn told(app: &App, failure: &Failure) -> Value {
    json!({
        "type": "error",
        "timestamp": app.engine.now().to_string(),
        "status": "error",
        "code": failure.code.as_str(),
        "message": failure.to_string(),
    })
}

// ## All campaigns

/// What all campaigns of a caller say, each object with its `campaign_id`. Begins with a snapshot.
struct WatchAll {
    app: App,
    caller: Caller,
    steps: Arc<[StepInfo]>,
    watches: HashMap<String, Watch>,
    /// What the reader says it has.
    after: HashMap<String, Seen>,
    /// The newest run of the last look; runs have ids in the order of their creation.
    known: Option<RunId>,
    listing: Option<Listing>,
    pause: Pin<Box<Sleep>>,
}

type Listing = Pin<Box<dyn Future<Output = Result<Vec<RunRecord>, Error>> + Send>>;

impl fmt::Debug for WatchAll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchAll").field("watches", &self.watches.len()).finish_non_exhaustive()
    }
}

/// Campaigns that one reader follows at once; more are taken up as others end.
const FOLLOWED: usize = 256;

impl WatchAll {
    fn list(&self) -> Listing {
        let (app, caller) = (self.app.clone(), self.caller.clone());
        Box::pin(async move {
            let query = caller.narrow(RunQuery {
                door: Some(DIALECT.to_owned()),
                limit: 1000,
                ..RunQuery::default()
            });
            Ok(app.engine.records(query).await?.0)
        })
    }

    /// Follows what is under way, new, or named by the reader.
    fn listed(&mut self, records: &[RunRecord], due: &mut Vec<Item>) {
        let first = self.known.is_none();
        if first {
            due.push(Item { id: None, data: self.snapshot(records) });
        }
        let known = self.known.unwrap_or(RunId(uuid::Uuid::nil()));
        self.known = Some(records.first().map_or(known, |newest| newest.id.max(known)));
        // A campaign is what its newest run is, and runs come newest first.
        let mut seen = HashSet::new();
        let mut campaigns: Vec<(String, &RunRecord)> = Vec::new();
        for record in records {
            if let Some(campaign) = key_of(record).filter(|key| seen.insert(key.clone())) {
                campaigns.push((campaign, record));
            }
        }
        // Oldest first, so that nobody is overtaken for ever.
        for (campaign, record) in campaigns.into_iter().rev() {
            if self.watches.len() >= FOLLOWED || self.watches.contains_key(&campaign) {
                continue;
            }
            let seen = self.after.remove(&campaign);
            let active = matches!(word(record), "queued" | "running");
            // Before a reader's first look is what the snapshot says.
            let new = !first && record.id > known;
            if !active && !new && seen.is_none() {
                continue;
            }
            let thread = ThreadKey::new(DIALECT, &[&campaign]).thread_id(&record.tenant);
            let watch = Watch::new(&self.app, self.steps.clone(), thread, seen);
            self.watches.insert(campaign, watch);
        }
    }

    fn snapshot(&self, records: &[RunRecord]) -> Value {
        // Runs come newest first, and a campaign is what its newest run is.
        let mut known = HashSet::new();
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        let mut rows = Vec::new();
        for record in records {
            let Some(id) = key_of(record).filter(|id| known.insert(id.clone())) else { continue };
            *counts.entry(word(record)).or_default() += 1;
            if rows.len() < FOLLOWED {
                rows.push(json!({
                    "campaign_id": id,
                    "status": word(record),
                    "created_at": record.created_at.to_string(),
                    "completed_at": record.ended_at.map(|at| at.to_string()),
                    "created_by": created_by(record),
                }));
            }
        }
        let count = |word: &str| counts.get(word).copied().unwrap_or(0);
        json!({
            "type": "snapshot",
            "timestamp": self.app.engine.now().to_string(),
            "campaigns": rows,
            "total": known.len(),
            "completed": count("completed"),
            "running": count("running"),
            "failed": count("failed"),
            "queued": count("queued"),
            "cancelled": count("cancelled"),
        })
    }
}

impl Feed for WatchAll {
    const ENDLESS: bool = true;

    fn poll_due(&mut self, cx: &mut Context<'_>, due: &mut Vec<Item>) -> Poll<More> {
        if self.listing.is_none() && self.pause.as_mut().poll(cx).is_ready() {
            self.listing = Some(self.list());
        }
        if let Some(listing) = &mut self.listing
            && let Poll::Ready(listed) = listing.as_mut().poll(cx)
        {
            self.listing = None;
            self.pause.as_mut().reset(Instant::now() + LOOK_EVERY);
            // The timer must be polled once to wake this task.
            cx.waker().wake_by_ref();
            match listed {
                Ok(records) => self.listed(&records, due),
                // Looked for again in a moment; what is followed goes on.
                Err(error) => tracing::debug!(%error, "campaigns could not be listed"),
            }
        }
        let mut over = Vec::new();
        for (campaign, watch) in &mut self.watches {
            let from = due.len();
            if let Poll::Ready(More::No) = watch.poll_due(cx, due) {
                over.push(campaign.clone());
            }
            for item in &mut due[from..] {
                if let Some(id) = &mut item.id {
                    id.insert_str(0, &format!("{campaign}/"));
                }
                if let Value::Object(object) = &mut item.data {
                    object.insert("campaign_id".to_owned(), campaign.clone().into());
                }
            }
        }
        over.iter().for_each(|campaign| drop(self.watches.remove(campaign)));
        if due.is_empty() { Poll::Pending } else { Poll::Ready(More::Yes) }
    }

    fn heartbeat(&mut self) -> Value {
        heartbeat(&self.app)
    }

    fn failure(&mut self, failure: &Failure) -> Value {
        told(&self.app, failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_reader_has_is_not_told_again() {
        let seen = |text: &str| text.parse::<Seen>().unwrap();
        assert_eq!(seen("12-256").to_string(), "12-256");
        assert_eq!(seen("1.12-257").to_string(), "1.12-257");
        assert!(seen("12-257").covers(&seen("12-256")), "another part of the same event");
        assert!(seen("12-256").covers(&seen("12-256")));
        assert!(!seen("12-256").covers(&seen("12-257")));
        assert!(seen("1.3-256").covers(&seen("900-256")), "of an earlier run");
        assert!(!seen("900-256").covers(&seen("1.0-256")), "of a later run");
        assert!(!seen("12-256").covers(&seen("7-512")), "told anew by a later lease");
        assert!(seen("12").covers(&seen("12-700")), "a bare number means the newest lease");
        assert!("x".parse::<Seen>().is_err() && "".parse::<Seen>().is_err());
    }
}
