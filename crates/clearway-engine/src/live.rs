//! A run's live end: its log in memory, its readers' wakers, what it waits for, and its end.
//!
//! One [`Live`] exists per run that this instance executes, queues or serves to readers. The run's
//! task appends, the flusher hands output to the store, readers hold cursors. Nobody waits for a
//! reader.
//!
//! **Invariant:** of several executors of one run only the one whose lease was claimed last touches the
//! log. A run that parks may be claimed again before the executor that parked it has heard of its own
//! commit, and what that one does then must not reach the other.
//!
//! Not here: numbering and visibility rules (`clearway_core::log`), driving the run (`executor`).

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;

use clearway_core::event::{Body, Event, EventKind, Segment};
use clearway_core::journal::Entry;
use clearway_core::log::Log;
use clearway_core::wait::{Spent, WaitCell, WaitKind, Waiting};
use clearway_core::{Clock, Code, Failure, Message, RunId, RunRecord};
use clearway_store::Appended;
use tokio::sync::{Notify, watch};

use crate::agent::Agent;
use crate::clock::instant;

/// A call beside others: its number, its node, what it waits for.
type Beside = (u32, Arc<str>, Arc<WaitCell>);

/// See the module.
#[derive(Debug)]
pub(crate) struct Live {
    pub run: RunId,
    pub wait: Arc<WaitCell>,
    state: Mutex<LiveState>,
    /// How it ended, for whoever waits: the final record, or why there will be none.
    end: watch::Sender<Option<End>>,
    /// Somebody wants it to end.
    pub cancel: CancelSignal,
    /// Entries of the journal that came from outside.
    pub notes: Mailbox,
    /// The definition it began with here. A run that waits goes on with it, whatever the
    /// configuration says meanwhile; another process takes its own.
    pub agent: OnceLock<Arc<Agent>>,
    /// What calls that run side by side wait for.
    calls: Mutex<Vec<Beside>>,
    clock: Arc<dyn Clock>,
    dirty: Arc<Dirty>,
    output_limit: usize,
}

/// How a run ended, as far as this instance knows.
#[derive(Clone, Debug)]
pub(crate) enum End {
    Ended {
        record: Arc<RunRecord>,
        reply: Option<Message>,
    },
    /// This instance has to let go; the store knows more.
    Lost(Failure),
}

#[derive(Debug)]
struct LiveState {
    log: Log,
    /// Of readers that wait, by reader.
    wakers: Vec<(u64, Waker)>,
    readers: usize,
    next_reader: u64,
    output_bytes: usize,
    /// Listed with the flusher.
    dirty: bool,
    /// A task drives it here.
    executing: bool,
    /// Messages that were begun under this lease and not completed.
    unfinished: i64,
    /// It parked here, and all that was shown is stored and stands.
    parked: bool,
    /// The claim that it executes under goes on behind that, with nothing lost in between.
    seamless: bool,
    /// Raised when the log starts anew below what readers may have seen.
    epoch: u32,
    /// No event will follow.
    over: bool,
    first_output: Option<std::time::Instant>,
}

/// A request to end, kept until somebody takes it.
#[derive(Debug, Default)]
pub(crate) struct CancelSignal {
    by: Mutex<Option<String>>,
    notify: Notify,
}

impl CancelSignal {
    pub(crate) fn request(&self, by: &str) {
        lock(&self.by).get_or_insert_with(|| by.to_owned());
        self.notify.notify_one();
    }

    /// Resolves with who asked. Cancel-safe: the request stays until taken.
    pub(crate) async fn requested(&self) -> String {
        loop {
            if let Some(by) = lock(&self.by).take() {
                return by;
            }
            self.notify.notified().await;
        }
    }
}

/// Notes for a run that executes here. The journal has them, too.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    entries: Mutex<Vec<Entry>>,
    notify: Notify,
}

impl Mailbox {
    pub(crate) fn put(&self, entries: Vec<Entry>) {
        lock(&self.entries).extend(entries);
        self.notify.notify_one();
    }

    /// Everything that came. Cancel-safe: what was not returned stays.
    pub(crate) async fn arrived(&self) -> Vec<Entry> {
        loop {
            let entries = std::mem::take(&mut *lock(&self.entries));
            if !entries.is_empty() {
                return entries;
            }
            self.notify.notified().await;
        }
    }
}

/// Runs with output that the store does not have yet.
#[derive(Debug, Default)]
pub(crate) struct Dirty(Mutex<Vec<Arc<Live>>>);

impl Dirty {
    pub(crate) fn take(&self) -> Vec<Arc<Live>> {
        std::mem::take(&mut lock(&self.0))
    }

    fn add(&self, live: Arc<Live>) {
        lock(&self.0).push(live);
    }
}

/// A reader's place in a log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor {
    /// Number of the next event to read.
    pub seq: u64,
    /// Which incarnation of the live log the number belongs to.
    pub epoch: u32,
    /// Whose place it is.
    pub reader: u64,
}

/// What a reader's poll found.
pub(crate) enum Read {
    Events,
    /// Nothing yet; the waker is registered.
    Pending,
    /// The cursor is older than memory.
    Behind,
    /// The cursor is at the end of a finished log.
    Over,
}

impl Live {
    pub(crate) fn run_log(&self) -> (u64, u64) {
        let state = lock(&self.state);
        (state.log.first_seq(), state.log.visible_seq())
    }

    pub(crate) fn call_waits(&self, call: u32, node: &Arc<str>, wait: Arc<WaitCell>) {
        lock(&self.calls).push((call, node.clone(), wait));
    }

    pub(crate) fn call_over(&self, call: u32) {
        lock(&self.calls).retain(|(known, ..)| *known != call);
    }

    /// What each of several calls side by side waits for.
    pub(crate) fn calls(&self) -> Vec<(Arc<str>, Waiting)> {
        let now = instant();
        let calls = lock(&self.calls);
        calls.iter().map(|(_, node, wait)| (node.clone(), wait.read(now))).collect()
    }

    /// Appends output under `lease`: readers see it at once, the store gets it with the next flush.
    pub(crate) fn output(self: &Arc<Self>, lease: u32, body: Body) -> Result<(), Failure> {
        let now = self.clock.now();
        let is_delta = matches!(body, Body::Delta(_));
        let mut state = lock(&self.state);
        // A call's context may outlive its call; what it says then belongs to nobody.
        let hidden = state.log.visible_seq() != state.log.next_seq();
        if state.over || !state.executing || state.log.fence() != lease || hidden {
            return Err(Failure::new(Code::Internal, "output after the call has ended"));
        }
        let before = state.log.bytes();
        if let Body::Fact(fact) = &body {
            state.unfinished += match fact.kind {
                EventKind::MessageStarted => 1,
                EventKind::MessageCompleted => -1,
                _ => 0,
            };
        }
        state.log.append(now, body);
        state.output_bytes += state.log.bytes() - before;
        let too_large = state.output_bytes > self.output_limit;
        if is_delta {
            let at = instant();
            self.wait.token(at);
            state.first_output.get_or_insert(at);
        }
        let flush = !std::mem::replace(&mut state.dirty, true);
        let wakers = state.take_wakers();
        drop(state);
        wakers.wake();
        if flush {
            self.dirty.add(self.clone());
        }
        if too_large {
            let limit = self.output_limit;
            return Err(Failure::new(
                Code::OutputTooLarge,
                format!("the run's output is over {limit} bytes"),
            ));
        }
        Ok(())
    }

    /// Appends a fact that readers see when the commit it belongs to is durable.
    pub(crate) fn record(&self, lease: u32, body: Body) {
        let mut state = lock(&self.state);
        if state.log.fence() == lease {
            state.log.append_hidden(self.clock.now(), body);
        }
    }

    /// Everything the store may not have, hidden facts included.
    pub(crate) fn take_for_commit(&self, lease: u32) -> Option<Segment> {
        let mut state = lock(&self.state);
        if state.log.fence() != lease {
            return None;
        }
        // A flush may be under way: the commit repeats what it carries, and the store keeps what
        // is new. So the two need no order between them.
        state.log.resend();
        state.log.take_for_commit()
    }

    /// The commit under `lease` is durable. `false` when the run is another executor's by now.
    pub(crate) fn committed(&self, lease: u32, log_limit: usize) -> bool {
        let mut state = lock(&self.state);
        if state.log.fence() != lease {
            return false;
        }
        state.log.committed();
        state.log.trim(log_limit);
        let wakers = state.take_wakers();
        drop(state);
        wakers.wake();
        true
    }

    /// Output for the store, unless a commit has taken it meanwhile.
    pub(crate) fn take_output(&self) -> Option<Segment> {
        let mut state = lock(&self.state);
        state.dirty = false;
        if state.over { None } else { state.log.take_output() }
    }

    /// The store's answer to a segment; `true` when there is still something to flush.
    pub(crate) fn appended(self: &Arc<Self>, answer: Option<Appended>, log_limit: usize) {
        let mut state = lock(&self.state);
        match answer {
            Some(Appended::Stored { end_seq }) => {
                state.log.stored(end_seq);
                state.log.trim(log_limit);
            }
            // Either a commit was faster, or the lease is gone; the next commit tells.
            Some(Appended::Refused) | None => state.log.resend(),
        }
        let again = answer.is_none() && !state.over && !std::mem::replace(&mut state.dirty, true);
        drop(state);
        if again {
            self.dirty.add(self.clone());
        }
    }

    /// A claim begins under `fence`; the next event is `next_seq`.
    pub(crate) fn claimed(&self, fence: u32, next_seq: u64) {
        let mut state = lock(&self.state);
        state.executing = true;
        state.over = false;
        state.output_bytes = 0;
        state.seamless = std::mem::take(&mut state.parked) && state.log.next_seq() == next_seq;
        state.unfinished = 0;
        if state.log.next_seq() == next_seq {
            state.log.adopt_fence(fence);
        } else {
            // What readers have seen beyond the store is void; they go on where the store ends.
            state.log = Log::new(fence, next_seq);
            state.epoch += 1;
        }
        let wakers = state.take_wakers();
        drop(state);
        wakers.wake();
    }

    /// Whether this process parked the run and goes on with it: readers have nothing that is void.
    pub(crate) fn is_seamless(&self) -> bool {
        lock(&self.state).seamless
    }

    /// As [`Live::let_go`], at the end of a lease whose last commit has everything. A message that was broken off will
    /// begin anew, so what was shown of it does not stand.
    pub(crate) fn park(&self, lease: u32) -> bool {
        let is_mine = self.let_go(lease);
        let mut state = lock(&self.state);
        if state.log.fence() == lease {
            state.parked = state.unfinished == 0;
        }
        is_mine
    }

    /// The lease is gone: hidden facts did not happen. Readers stay and wait for the next owner.
    /// `false` when that is there already.
    pub(crate) fn let_go(&self, lease: u32) -> bool {
        let mut state = lock(&self.state);
        if state.log.fence() != lease {
            return false;
        }
        state.log.discard_hidden();
        state.executing = false;
        drop(state);
        lock(&self.calls).clear();
        true
    }

    /// Whether no later claim than this has been executed here.
    pub(crate) fn is_under(&self, lease: u32) -> bool {
        lock(&self.state).log.fence() == lease
    }

    /// Events that the store wrote itself: event 0, or the end of a run that waited.
    pub(crate) fn adopt(&self, events: Vec<Event>) {
        let mut state = lock(&self.state);
        state.log.adopt_stored(events);
        let wakers = state.take_wakers();
        drop(state);
        wakers.wake();
    }

    /// No event will follow; whoever waits is told how it ended.
    pub(crate) fn finish(&self, end: End) {
        let mut state = lock(&self.state);
        state.over = true;
        state.executing = false;
        // Late readers of an ended run may go to the store; many of these are kept.
        state.log.trim(ENDED_LOG);
        let wakers = state.take_wakers();
        drop(state);
        self.end.send_replace(Some(end));
        wakers.wake();
    }

    pub(crate) fn end(&self) -> watch::Receiver<Option<End>> {
        self.end.subscribe()
    }

    /// What went wrong, once it is over.
    pub(crate) fn failure(&self) -> Option<Failure> {
        match &*self.end.borrow() {
            Some(End::Ended { record, .. }) => record.failure.clone(),
            Some(End::Lost(failure)) => Some(failure.clone()),
            None => None,
        }
    }

    /// Output that was refused before the run was accepted is offered again.
    pub(crate) fn flush_again(self: &Arc<Self>) {
        let mut state = lock(&self.state);
        let flush = state.log.has_unsent() && !std::mem::replace(&mut state.dirty, true);
        drop(state);
        if flush {
            self.dirty.add(self.clone());
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        lock(&self.state).over
    }

    pub(crate) fn is_executing(&self) -> bool {
        lock(&self.state).executing
    }

    pub(crate) fn first_output(&self) -> Option<std::time::Instant> {
        lock(&self.state).first_output
    }

    /// Text of the message under way: deltas after the last reset that are still in memory.
    pub(crate) fn partial_text(&self) -> String {
        let state = lock(&self.state);
        let mut text = String::new();
        let mut message = None;
        for event in state.log.read(state.log.first_seq()) {
            match &event.body {
                Body::Delta(delta) if delta.part == clearway_core::event::Part::Text => {
                    if message != Some(delta.message) {
                        message = Some(delta.message);
                        text.clear();
                    }
                    text.push_str(delta.text());
                }
                Body::Delta(_) => {}
                Body::Fact(fact) => {
                    if fact.kind == EventKind::OutputReset {
                        text.clear();
                    }
                }
            }
        }
        text
    }

    // ## Readers

    /// A new reader that goes on with number `seq`.
    pub(crate) fn join_reader(&self, seq: u64) -> Cursor {
        let mut state = lock(&self.state);
        state.readers += 1;
        state.next_reader += 1;
        Cursor { seq, epoch: state.epoch, reader: state.next_reader }
    }

    pub(crate) fn leave_reader(&self, cursor: Cursor) {
        let mut state = lock(&self.state);
        state.readers -= 1;
        state.wakers.retain(|(reader, _)| *reader != cursor.reader);
    }

    /// Copies visible events from `cursor` on into `out`, at most `max`.
    pub(crate) fn read(
        &self,
        cursor: &mut Cursor,
        max: usize,
        out: &mut Vec<Event>,
        waker: &Waker,
    ) -> Read {
        let mut state = lock(&self.state);
        if cursor.epoch != state.epoch {
            cursor.epoch = state.epoch;
            cursor.seq = cursor.seq.min(state.log.first_seq());
        }
        if cursor.seq < state.log.first_seq() {
            return Read::Behind;
        }
        let share = state.readers > 1;
        let before = out.len();
        for event in state.log.read(cursor.seq).take(max) {
            if share {
                event.frames.share();
            }
            out.push(event.clone());
        }
        if out.len() > before {
            cursor.seq += (out.len() - before) as u64;
            return Read::Events;
        }
        if state.over {
            return Read::Over;
        }
        match state.wakers.iter_mut().find(|(reader, _)| *reader == cursor.reader) {
            Some((_, known)) => known.clone_from(waker),
            None => state.wakers.push((cursor.reader, waker.clone())),
        }
        Read::Pending
    }

    /// The fence of a visible event that is still in memory.
    pub(crate) fn fence_of(&self, seq: u64) -> Option<u32> {
        let state = lock(&self.state);
        state.log.read(seq).next().filter(|event| event.seq == seq).map(|event| event.fence)
    }
}

/// Wakers taken out from under the lock.
struct Wakers {
    first: Option<Waker>,
    others: Vec<(u64, Waker)>,
}

impl Wakers {
    fn wake(self) {
        self.first.into_iter().for_each(Waker::wake);
        self.others.into_iter().for_each(|(_, waker)| waker.wake());
    }
}

impl LiveState {
    fn take_wakers(&mut self) -> Wakers {
        // One reader is the usual case, once a token: the list keeps its memory.
        let first = self.wakers.pop().map(|(_, waker)| waker);
        let others = match self.wakers.is_empty() {
            true => Vec::new(),
            false => std::mem::take(&mut self.wakers),
        };
        Wakers { first, others }
    }
}

/// Bytes of log that an ended run keeps in memory.
const ENDED_LOG: usize = 32 << 10;

/// All live runs of this instance.
#[derive(Debug)]
pub(crate) struct Hub {
    inner: Mutex<HubInner>,
    pub dirty: Arc<Dirty>,
    clock: Arc<dyn Clock>,
    output_limit: usize,
    ended_limit: usize,
}

#[derive(Debug, Default)]
struct HubInner {
    runs: HashMap<RunId, Arc<Live>>,
    /// Ended runs, oldest first: kept a while for readers that come late.
    ended: VecDeque<RunId>,
}

impl Hub {
    pub(crate) fn new(clock: Arc<dyn Clock>, output_limit: usize, ended_limit: usize) -> Self {
        Self { inner: Mutex::default(), dirty: Arc::default(), clock, output_limit, ended_limit }
    }

    pub(crate) fn get(&self, run: RunId) -> Option<Arc<Live>> {
        lock(&self.inner).runs.get(&run).cloned()
    }

    /// The live end of a run, made if there is none yet: it waits for `kind`, and its next event
    /// is `next_seq`.
    pub(crate) fn attach(
        &self,
        run: RunId,
        kind: WaitKind,
        detail: &str,
        spent: Spent,
        next_seq: u64,
    ) -> Arc<Live> {
        let mut inner = lock(&self.inner);
        let live = inner.runs.entry(run).or_insert_with(|| {
            Arc::new(Live {
                run,
                wait: Arc::new(WaitCell::new(kind, detail, spent, instant())),
                agent: OnceLock::new(),
                state: Mutex::new(LiveState {
                    log: Log::new(0, next_seq),
                    wakers: Vec::new(),
                    readers: 0,
                    next_reader: 0,
                    output_bytes: 0,
                    dirty: false,
                    executing: false,
                    unfinished: 0,
                    parked: false,
                    seamless: false,
                    epoch: 0,
                    over: false,
                    first_output: None,
                }),
                end: watch::Sender::new(None),
                cancel: CancelSignal::default(),
                notes: Mailbox::default(),
                calls: Mutex::default(),
                clock: self.clock.clone(),
                dirty: self.dirty.clone(),
                output_limit: self.output_limit,
            })
        });
        live.clone()
    }

    /// A run has ended here: it stays for late readers until newer ends push it out.
    pub(crate) fn retire(&self, run: RunId) {
        let mut inner = lock(&self.inner);
        inner.ended.push_back(run);
        while inner.ended.len() > self.ended_limit {
            if let Some(oldest) = inner.ended.pop_front() {
                inner.runs.remove(&oldest);
            }
        }
    }

    pub(crate) fn forget(&self, run: RunId) {
        lock(&self.inner).runs.remove(&run);
    }

    /// Runs that nobody drives here and that have not ended.
    pub(crate) fn waiting(&self) -> Vec<Arc<Live>> {
        let waits = |live: &&Arc<Live>| !live.is_executing() && !live.is_over();
        lock(&self.inner).runs.values().filter(waits).cloned().collect()
    }

    /// Runs that tasks drive here.
    pub(crate) fn executing(&self) -> Vec<Arc<Live>> {
        lock(&self.inner).runs.values().filter(|live| live.is_executing()).cloned().collect()
    }

    pub(crate) fn len(&self) -> usize {
        lock(&self.inner).runs.len()
    }
}

/// Nothing under these locks panics half-way; if it did, the values would still be whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
