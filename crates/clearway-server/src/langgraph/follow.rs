//! A thread's runs, one after the other: those that were, the one that is, and those to come.
//!
//! A thread has one active run at a time, so what happens on it is the logs of its runs in the order in
//! which they began. A task of the server's reads them for one client, into a queue of a few pieces:
//! a client that does not read holds up nothing but its own task, and ends it by leaving.

use std::collections::HashSet;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use clearway_core::run::RunRecord;
use clearway_core::{CheckpointId, RunId, ThreadId};
use clearway_engine::{From as Begin, RunQuery, ThreadWatch};
use http_body::Frame;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::Interval;

use super::facts::Facts;
use super::frames::HEARTBEAT;
use super::modes::{Item, Modes, Projector};
use super::state;
use super::stream::{Found, Reader, beat};
use crate::app::App;
use crate::stop::Stage;

/// What a client of a thread is shown, in its own form.
pub(super) trait Show: Send + Sync + 'static {
    /// Whether a run has anything that the client lacks.
    fn wants(&self, run: &RunRecord) -> bool;

    /// The modes to read runs in.
    fn modes(&self) -> Modes;

    /// Appends an item of a run.
    fn show(&mut self, run: &RunRecord, item: &Item, projector: &Projector, out: &mut BytesMut);

    /// A run is over.
    fn over(&mut self, _run: &RunRecord, _out: &mut BytesMut) {}

    /// Whether it is told of changes that no run made.
    fn wants_changes(&self) -> bool {
        false
    }

    /// The thread was changed by hand; its state is this now.
    fn changed(&mut self, _state: Value, _out: &mut BytesMut) {}
}

/// Pieces that wait for a client.
const QUEUE: usize = 16;
/// How large a piece gets before it leaves.
const PIECE: usize = 32 << 10;
/// Runs of a thread that are looked at for what a client lacks.
const RUNS: u32 = 1000;

/// Starts to follow a thread for one client.
pub(super) fn follow(app: &App, thread: ThreadId, show: impl Show) -> mpsc::Receiver<Bytes> {
    let (pieces, receiver) = mpsc::channel(QUEUE);
    let watch = app.engine.watch_thread(thread);
    let done = HashSet::new();
    let task = Follower { app: app.clone(), thread, watch, pieces, done, head: None };
    app.tasks.spawn(task.run(show));
    receiver
}

struct Follower {
    app: App,
    thread: ThreadId,
    watch: ThreadWatch,
    pieces: mpsc::Sender<Bytes>,
    done: HashSet<RunId>,
    /// The checkpoint up to which changes by hand are told.
    head: Option<CheckpointId>,
}

/// Changes by hand that are told of at once; of more, the newest.
const CHANGES: u32 = 100;

impl Follower {
    async fn run(mut self, mut show: impl Show) {
        if show.wants_changes() {
            let head = self.app.engine.history(self.thread, None, 1).await;
            self.head = head.ok().and_then(|found| found.first().map(|one| one.id));
        }
        loop {
            if show.wants_changes() && self.tell_changes(&mut show).await.is_err() {
                return;
            }
            let next = match self.next(&show).await {
                Ok(next) => next,
                Err(error) => {
                    tracing::warn!(thread.id = %self.thread, %error, "a thread cannot be followed");
                    return;
                }
            };
            let gone = match next {
                Some(run) => {
                    let gone = self.read(&run, &mut show).await.is_err();
                    self.done.insert(run.id);
                    gone
                }
                None => tokio::select! {
                    () = self.watch.changed() => false,
                    () = self.pieces.closed() => true,
                    () = self.app.stop.hard.cancelled() => true,
                },
            };
            if gone || self.app.stop.stage() == Stage::Hard {
                return;
            }
        }
    }

    /// Tells of changes since the last time. `Err` when the client is gone.
    async fn tell_changes(&mut self, show: &mut impl Show) -> Result<(), ()> {
        let Ok(newest) = self.app.engine.history(self.thread, None, CHANGES).await else {
            return Ok(());
        };
        let known = std::mem::replace(&mut self.head, newest.first().map(|one| one.id));
        let new = newest.iter().take_while(|one| Some(one.id) != known);
        let by_hand: Vec<_> = new.filter(|one| one.run.is_none()).map(|one| one.id).collect();
        let mut out = BytesMut::new();
        for id in by_hand.into_iter().rev() {
            if let Ok(state) = state::shown_at(&self.app, self.thread, id).await {
                show.changed(state, &mut out);
            }
        }
        self.send(&mut out).await
    }

    /// The next run to read: of those that began or ended, the one that did so first.
    async fn next(&self, show: &impl Show) -> Result<Option<RunRecord>, clearway_engine::Error> {
        // The active one first: should it end before the list is read, it is there as ended.
        let active = self.app.engine.thread(self.thread).await?.and_then(|one| one.active_run);
        let query = RunQuery { thread: Some(self.thread), limit: RUNS, ..RunQuery::default() };
        let (runs, _) = self.app.engine.runs(query).await?;
        let ready = runs.into_iter().map(|view| view.record).filter(|run| {
            !self.done.contains(&run.id)
                && !run.rolled_back
                && (run.status.is_terminal() || Some(run.id) == active)
                && show.wants(run)
        });
        // One that never began ended at once.
        Ok(ready.min_by_key(|run| {
            let began = run.started_at.or(run.ended_at);
            (began.is_none(), began, run.thread_ord)
        }))
    }

    /// Reads a run to its end. `Err` when the client is gone.
    async fn read(&self, run: &RunRecord, show: &mut impl Show) -> Result<(), ()> {
        let Ok(log) = self.app.engine.subscribe(run.id, Begin::Start).await else { return Ok(()) };
        let projector = Projector::new(Arc::new(Facts::of(&self.app, run)), show.modes());
        let mut reader = Reader::new(self.app.clone(), log, projector);
        let (mut items, mut out) = (Vec::new(), BytesMut::new());
        loop {
            // Whatever is due leaves together.
            let mut is_over = false;
            let first = poll_fn(|cx| reader.poll(cx, &mut items));
            let found = tokio::select! {
                found = first => found,
                () = self.pieces.closed() => return Err(()),
                () = self.app.stop.hard.cancelled() => return Err(()),
            };
            is_over |= !matches!(found, Found::Items);
            while !is_over && items.len() < 512 {
                match poll_fn(|cx| Poll::Ready(reader.poll(cx, &mut items))).await {
                    Poll::Ready(Found::Items) => {}
                    Poll::Ready(_) => is_over = true,
                    Poll::Pending => break,
                }
            }
            for item in items.drain(..) {
                show.show(run, &item, &reader.run, &mut out);
                if out.len() >= PIECE {
                    self.send(&mut out).await?;
                }
            }
            if is_over {
                show.over(run, &mut out);
            }
            self.send(&mut out).await?;
            if is_over {
                return Ok(());
            }
        }
    }

    async fn send(&self, out: &mut BytesMut) -> Result<(), ()> {
        if out.is_empty() {
            return Ok(());
        }
        tokio::select! {
            sent = self.pieces.send(out.split().freeze()) => sent.map_err(|_| ()),
            () = self.app.stop.hard.cancelled() => Err(()),
        }
    }
}

/// The body of an answer that follows a thread. It ends when the client leaves, or the server does.
#[derive(Debug)]
pub(super) struct ThreadBody {
    pub(super) pieces: mpsc::Receiver<Bytes>,
    pub(super) beat: Interval,
}

impl ThreadBody {
    pub(super) fn new(pieces: mpsc::Receiver<Bytes>) -> Self {
        Self { pieces, beat: beat() }
    }
}

impl http_body::Body for ThreadBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        match this.pieces.poll_recv(cx) {
            Poll::Ready(Some(piece)) => return Poll::Ready(Some(Ok(Frame::data(piece)))),
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => {}
        }
        if this.beat.poll_tick(cx).is_ready() {
            let _ = this.beat.poll_tick(cx);
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(HEARTBEAT)))));
        }
        Poll::Pending
    }
}
