//! Which texts leave together, and when.
//!
//! Texts of one [`Lane`] (same model, length and purpose) may share a request. With nothing under
//! way a text leaves at once; otherwise texts gather for a moment, or until an earlier batch is
//! done. Each lane has a few workers, which exist only while there is something to do: a worker
//! takes a batch, asks, tells everybody, and takes the next one.
//!
//! A batch that the provider refuses is cut into halves until the text that is to blame stands
//! alone; the others get their vectors.
//!
//! **Invariant:** a queue that is not empty has a worker. Everything queued is bounded in size and
//! number; the workers of a lane never exceed its share of the provider's slots.

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use clearway_core::wait::{Spent, WaitCell, WaitKind};
use clearway_core::{Code, Deadline};
use futures_util::FutureExt;
use tokio::time::sleep;

use super::cache::Cache;
use super::flight::{Embedded, Flights, Item};
use super::wire::{self, Decoded};
use super::{Purpose, Sender};
use crate::call::{CallCx, Class};
use crate::failure::Error;
use crate::route::Route;
use crate::usage::Observer;
use crate::watch::now;

/// Texts that may share a request.
pub(super) struct Lane {
    pub(super) id: LaneId,
    pub(super) route: Arc<Route>,
    /// Batches under way at once.
    pub(super) workers: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct LaneId {
    /// The configured name.
    pub(super) model: Arc<str>,
    pub(super) dimensions: Option<u32>,
    pub(super) purpose: Purpose,
}

impl Lane {
    /// The length that its vectors must have, if anybody knows.
    fn expected(&self) -> Option<usize> {
        let known = || self.route.embedding?.dimensions;
        usize::try_from(self.id.dimensions.or_else(known)?).ok()
    }
}

/// Everything that is queued or under way. Pure: it says what to do, and does nothing.
#[derive(Default)]
pub(super) struct Board {
    pub(super) flights: Flights,
    queues: HashMap<LaneId, Queue>,
    /// Of all queued texts.
    queued_bytes: usize,
}

/// What waits in one lane.
#[derive(Default)]
struct Queue {
    items: VecDeque<Arc<Item>>,
    tokens: u64,
    /// Workers with a batch, or about to take one.
    busy: usize,
    /// Those of them that were started and have not taken one yet.
    starting: usize,
    /// A worker waits for more texts to come.
    gathering: bool,
}

/// Workers to start.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Start {
    /// With something to do at once.
    pub(super) now: usize,
    /// One that waits for [`GATHER`] first.
    pub(super) gathering: bool,
}

impl Board {
    /// Whether more text may be queued.
    pub(super) const fn has_room(&self, bytes: usize) -> bool {
        // One call alone is always let in: its size is bounded where it comes from.
        self.queued_bytes == 0 || self.queued_bytes + bytes <= MAX_QUEUED_BYTES
    }

    /// Queues items, and says which workers that takes.
    pub(super) fn enqueue(&mut self, lane: &Lane, items: Vec<Arc<Item>>) -> Start {
        let queue = self.queues.entry(lane.id.clone()).or_default();
        for item in items {
            self.queued_bytes += item.text.len();
            queue.tokens += item.tokens;
            queue.items.push_back(item);
        }
        let mut start = Start::default();
        if queue.items.is_empty() {
            return start;
        }
        // What fills a batch has nothing to wait for.
        let by_tokens = usize::try_from(queue.tokens / MAX_TOKENS).unwrap_or(usize::MAX);
        let full = (queue.items.len() / MAX_ITEMS).max(by_tokens);
        let wanted = if queue.busy == 0 { full.max(1) } else { full };
        let places = lane.workers.saturating_sub(queue.busy);
        start.now = wanted.saturating_sub(queue.starting).min(places);
        queue.starting += start.now;
        queue.busy += start.now;
        // Not all that is queued fits into what leaves now.
        let is_left = queue.starting == 0 || full >= queue.starting;
        if is_left && queue.busy < lane.workers && !queue.gathering {
            start.gathering = true;
            queue.gathering = true;
        }
        start
    }

    /// Turns a worker that has gathered into one with a batch, if there is a place for it.
    fn gathered(&mut self, lane: &Lane) -> bool {
        let Some(queue) = self.queues.get_mut(&lane.id) else { return false };
        queue.gathering = false;
        let has_place = queue.busy < lane.workers;
        queue.busy += usize::from(has_place);
        queue.starting += usize::from(has_place);
        has_place
    }

    /// The next batch for a worker; without one the worker has ended.
    fn take(&mut self, lane: &Lane, is_first: bool) -> Option<Vec<Arc<Item>>> {
        let queue = self.queues.get_mut(&lane.id)?;
        queue.starting -= usize::from(is_first);
        let mut batch = Vec::new();
        let mut tokens = 0;
        while let Some(item) = queue.items.front() {
            let is_full = batch.len() == MAX_ITEMS || tokens + item.tokens > MAX_TOKENS;
            if is_full && !batch.is_empty() {
                break;
            }
            let Some(item) = queue.items.pop_front() else { break };
            queue.tokens -= item.tokens;
            self.queued_bytes -= item.text.len();
            // Everybody who wanted it may have left meanwhile.
            if !self.flights.give_up(std::slice::from_ref(&item)) {
                tokens += item.tokens;
                batch.push(item);
            }
        }
        if batch.is_empty() {
            queue.busy -= 1;
            if queue.busy == 0 && !queue.gathering {
                self.queues.remove(&lane.id);
            }
            return None;
        }
        Some(batch)
    }
}

/// What all workers share.
pub(super) struct Works {
    pub(super) cache: Cache,
    sender: Arc<dyn Sender>,
    board: Mutex<Board>,
    /// Numbers the calls.
    calls: AtomicU64,
    /// Texts of many callers share a call, so its attempts are nobody's in particular.
    pub(super) observer: OnceLock<Arc<dyn Observer>>,
}

impl Works {
    pub(super) fn new(sender: Arc<dyn Sender>, cache: Cache) -> Self {
        Self {
            cache,
            sender,
            board: Mutex::default(),
            calls: AtomicU64::new(1),
            observer: OnceLock::new(),
        }
    }

    pub(super) fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker's life.
    pub(super) async fn work(self: Arc<Self>, lane: Arc<Lane>, gathers: bool) {
        if gathers {
            sleep(GATHER).await;
            if !self.board().gathered(&lane) {
                return;
            }
        }
        let mut is_first = true;
        loop {
            let batch = self.board().take(&lane, is_first);
            let Some(batch) = batch else { return };
            self.settle(&lane, batch).await;
            is_first = false;
        }
    }

    /// Gets an outcome for each item of a batch that anybody waits for.
    async fn settle(&self, lane: &Lane, batch: Vec<Arc<Item>>) {
        let latest = self.board().flights.latest(&batch);
        let deadline = latest.map_or(Deadline(now()), |latest| latest.clip(now(), BATCH_LIMIT));
        let mut hunt = Hunt::new(batch);
        while let Some(part) = hunt.next() {
            // Without an answer, nobody waits for it.
            let Some(answer) = self.ask(lane, &part.items, deadline).await else { continue };
            match answer {
                Ok(decoded) => {
                    hunt.found();
                    self.deliver(&part.items, decoded);
                }
                Err(error) => {
                    if let Some(items) = hunt.split(part, error.code()) {
                        let mut board = self.board();
                        for item in &items {
                            board.flights.land(item, Err(error.clone()));
                        }
                    }
                }
            }
        }
    }

    /// Sends one request; `None` when everybody who waited for it left.
    async fn ask(
        &self,
        lane: &Lane,
        items: &[Arc<Item>],
        deadline: Deadline,
    ) -> Option<Result<Decoded, Error>> {
        let first = items.first()?;
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        let label = format!("{}, {} texts", lane.route.label, items.len());
        let cell = Arc::new(WaitCell::new(WaitKind::Work, label, Spent::default(), now()));
        items.iter().for_each(|item| item.asked(&cell));
        let cx = CallCx {
            wait: cell,
            observer: self.observer.get().cloned(),
            class: match lane.id.purpose {
                Purpose::Query => Class::Interactive,
                Purpose::Document => Class::Bulk,
            },
            ..CallCx::new(deadline, format!("{}.{number}", first.call_id))
        };
        let texts = items.iter().map(|item| &*item.text);
        let body = wire::request(&lane.route.model, &lane.route.params, texts, lane.id.dimensions);
        let tokens = items.iter().map(|item| item.tokens).sum();
        let decode = |answer: &[u8]| {
            wire::read(answer, items.len(), lane.expected(), lane.route.provider.secrets())
        };
        let model = &lane.id.model;
        let sent = self.sender.send(&cx, model, body, items.len(), tokens, &decode);
        // A panic below must not take the waiting texts with it.
        let sent = AssertUnwindSafe(sent).catch_unwind();
        tokio::select! {
            biased;
            answer = sent => Some(answer.unwrap_or_else(|_| Err(panicked()))),
            // Drops the request, which closes its connection.
            () = self.given_up(items) => None,
        }
    }

    /// Returns when nobody waits for any of the items, which are forgotten by then.
    async fn given_up(&self, items: &[Arc<Item>]) {
        loop {
            for item in items {
                item.unwatched().await;
            }
            if self.board().flights.give_up(items) {
                return;
            }
        }
    }

    fn deliver(&self, items: &[Arc<Item>], decoded: Decoded) {
        let estimated: u64 = items.iter().map(|item| item.tokens).sum();
        let mut left = decoded.input_tokens.unwrap_or(estimated);
        let mut left_estimated = estimated;
        for (item, vector) in items.iter().zip(decoded.vectors) {
            // Each has its share by length, and the shares add up.
            let tokens = left.saturating_mul(item.tokens) / left_estimated.max(1);
            left = left.saturating_sub(tokens);
            left_estimated -= item.tokens;
            let vector: Arc<[f32]> = vector.into();
            // First the cache: whoever finds no flight any more must find the vector there.
            self.cache.put(item.key, vector.clone());
            self.board().flights.land(item, Ok(Embedded { vector, tokens }));
        }
    }
}

fn panicked() -> Error {
    Error::refused(Code::Internal, "the call for a batch of texts panicked")
}

/// The search for the texts that make a batch fail.
struct Hunt {
    parts: VecDeque<Part>,
    calls: usize,
    found: bool,
}

struct Part {
    items: Vec<Arc<Item>>,
    /// It was cut off because the vectors of the whole were bad.
    is_half: bool,
}

impl Hunt {
    fn new(batch: Vec<Arc<Item>>) -> Self {
        let whole = Part { items: batch, is_half: false };
        Self { parts: VecDeque::from([whole]), calls: 0, found: false }
    }

    /// The next part to ask for: the largest that is left.
    fn next(&mut self) -> Option<Part> {
        let part = self.parts.pop_front()?;
        self.calls += 1;
        Some(part)
    }

    fn found(&mut self) {
        self.found = true;
    }

    /// What to do about a part that failed: either its halves are asked for, or its items come back
    /// and have failed.
    fn split(&mut self, part: Part, code: Code) -> Option<Vec<Arc<Item>>> {
        let Part { mut items, is_half } = part;
        let is_bad = code == Code::UpstreamBadVectors;
        // A request that is wrong in itself fails however it is cut.
        let most = if self.found { MAX_PARTS } else { MAX_FRUITLESS };
        let is_worth_it = if is_bad { !is_half } else { blames_input(code) };
        if items.len() < 2 || !is_worth_it || self.calls + self.parts.len() + 2 > most {
            return Some(items);
        }
        let second = items.split_off(items.len() / 2);
        for items in [items, second] {
            self.parts.push_back(Part { items, is_half: is_half || is_bad });
        }
        None
    }
}

/// Whether the provider refused what the texts say, so that fewer of them may pass.
const fn blames_input(code: Code) -> bool {
    matches!(
        code,
        Code::UpstreamInvalidRequest | Code::UpstreamContextLength | Code::UpstreamContentPolicy
    )
}

const MAX_ITEMS: usize = 256;
/// Estimated; providers take 300 000.
const MAX_TOKENS: u64 = 200_000;
/// Texts that wait, over all lanes.
const MAX_QUEUED_BYTES: usize = 128 << 20;
/// How long texts gather while others are under way.
const GATHER: Duration = Duration::from_millis(10);
/// The longest that a batch may take, whatever its members allow.
const BATCH_LIMIT: Duration = Duration::from_secs(25);
/// Requests for one batch: enough to find four or five texts among the most.
const MAX_PARTS: usize = 64;
/// The same while none has succeeded: a half, a quarter and an eighth were all refused.
const MAX_FRUITLESS: usize = 15;

#[cfg(test)]
mod tests;
