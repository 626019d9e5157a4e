//! A reader's cursor over one run's log.
//!
//! Memory first, the store when the cursor is older than memory. A reader holds nothing but its
//! cursor: a slow one falls behind and reads from the store, and the run never knows.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use clearway_core::event::Event;
use clearway_core::{Code, EventId, Failure, RunId};
use clearway_store::{LogPage, Store};

use crate::Error;
use crate::live::{Cursor, End, Live, Read};

/// Where a reader starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// With event 0.
    Start,
    /// After this number.
    AfterSeq(u64),
    /// After this wire id. If that event was lost in a crash, reading goes on with the first event
    /// of the next lease, which announces what is void.
    AfterId(EventId),
    /// With what comes next.
    Now,
}

/// Events that are due, in order; never empty.
pub type Batch = Vec<Event>;

/// See the module. Dropping it costs the run nothing.
pub struct Subscription {
    run: RunId,
    store: Arc<dyn Store>,
    live: Option<Arc<Live>>,
    cursor: Cursor,
    page: Option<PageFuture>,
    over: bool,
}

type PageFuture = Pin<Box<dyn Future<Output = clearway_store::Result<LogPage>> + Send>>;

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("run", &self.run)
            .field("cursor", &self.cursor)
            .finish_non_exhaustive()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(live) = &self.live {
            live.leave_reader(self.cursor);
        }
    }
}

impl Subscription {
    /// A cursor at number `cursor`; without a live end everything comes from the store.
    pub(crate) fn new(
        run: RunId,
        store: Arc<dyn Store>,
        live: Option<Arc<Live>>,
        cursor: u64,
    ) -> Self {
        let cursor = match &live {
            Some(live) => live.join_reader(cursor),
            None => Cursor { seq: cursor, epoch: 0, reader: 0 },
        };
        Self { run, store, live, cursor, page: None, over: false }
    }

    pub const fn run(&self) -> RunId {
        self.run
    }

    /// Why the log is over although the run has not ended: this instance had to let go of it. A
    /// reader resumes elsewhere, or here after the next start.
    fn lost(&self) -> Option<Failure> {
        match &*self.live.as_ref()?.end().borrow() {
            Some(End::Lost(failure)) => Some(failure.clone()),
            Some(End::Ended { .. }) | None => None,
        }
    }

    /// Number of the next event to read.
    pub const fn position(&self) -> u64 {
        self.cursor.seq
    }

    /// Whether it waits for the store rather than for the run.
    pub(crate) const fn is_reading(&self) -> bool {
        self.page.is_some()
    }

    /// The next events, or `None` after the run's last one.
    ///
    /// # Errors
    /// The store cannot be read, or this instance had to let go of the run before its end.
    pub async fn next(&mut self) -> Result<Option<Batch>, Error> {
        let mut out = Vec::new();
        let more = std::future::poll_fn(|cx| self.poll_next(cx, &mut out)).await?;
        Ok(more.then_some(out))
    }

    /// Appends due events to `out`; `Ready(Ok(false))` means the log is over.
    ///
    /// # Errors
    /// As [`Subscription::next`].
    pub fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Vec<Event>,
    ) -> Poll<Result<bool, Error>> {
        loop {
            if self.over {
                return Poll::Ready(Ok(false));
            }
            if let Some(page) = &mut self.page {
                let Poll::Ready(page) = page.as_mut().poll(cx) else { return Poll::Pending };
                self.page = None;
                let page = page.map_err(Error::from)?;
                let before = self.cursor.seq;
                if self.take_page(page, out) {
                    return Poll::Ready(Ok(true));
                }
                if !self.over && self.cursor.seq == before {
                    let text = format!("the log of run {} has a gap at {before}", self.run);
                    return Poll::Ready(Err(Error::new(Code::Internal, text)));
                }
                continue;
            }
            let Some(live) = &self.live else {
                self.read_store();
                continue;
            };
            match live.read(&mut self.cursor, MAX_EVENTS, out, cx.waker()) {
                Read::Events => return Poll::Ready(Ok(true)),
                Read::Pending => return Poll::Pending,
                Read::Over => {
                    self.over = true;
                    if let Some(failure) = self.lost() {
                        return Poll::Ready(Err(Error(failure)));
                    }
                }
                Read::Behind => self.read_store(),
            }
        }
    }

    /// Takes over a page; `true` when it held something new.
    fn take_page(&mut self, page: LogPage, out: &mut Vec<Event>) -> bool {
        let before = out.len();
        out.extend(page.events.into_iter().filter(|event| event.seq >= self.cursor.seq));
        // Numbers may be missing where retention dropped deltas, so the page says where it ends.
        self.cursor.seq = self.cursor.seq.max(page.next);
        let at_end = self.cursor.seq >= page.end;
        if at_end && page.status.is_terminal() {
            self.over = true;
        }
        if at_end && self.live.is_none() {
            // Ended runs have no live end; any other is attached when the subscription is made.
            self.over = true;
        }
        out.len() > before
    }

    fn read_store(&mut self) {
        let (store, run, cursor) = (self.store.clone(), self.run, self.cursor.seq);
        self.page = Some(Box::pin(async move { store.read_log(run, cursor, PAGE_BYTES).await }));
    }
}

/// The cursor for a client that resumes after `id`.
///
/// If event `id` exists as the client saw it, reading goes on behind it. Otherwise it was lost in a
/// crash: reading goes on with the first event of a newer lease, and if there is none yet, at the
/// end of what is stored, where that event will appear.
pub(crate) async fn resume_cursor(
    store: &dyn Store,
    live: Option<&Live>,
    run: RunId,
    id: EventId,
) -> Result<u64, Error> {
    if live.and_then(|live| live.fence_of(id.seq)) == Some(id.fence) {
        return Ok(id.seq + 1);
    }
    let page = store.read_log(run, id.seq, 1).await?;
    if let Some(found) = page.events.first() {
        // Retention may have dropped this very event; its neighbours keep their numbers.
        if found.fence == id.fence {
            return Ok(if found.seq == id.seq { id.seq + 1 } else { found.seq });
        }
    }
    let mut from = 0;
    loop {
        let page = store.read_log(run, from, PAGE_BYTES).await?;
        if let Some(newer) = page.events.iter().find(|event| event.fence > id.fence) {
            return Ok(newer.seq);
        }
        if page.next >= page.end {
            return Ok(page.end);
        }
        from = page.next;
    }
}

/// Events handed to a reader at once.
const MAX_EVENTS: usize = 512;
/// What is read from the store at once.
const PAGE_BYTES: usize = 64 << 10;
