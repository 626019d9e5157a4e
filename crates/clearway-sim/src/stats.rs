//! What the simulator saw: the counters behind `GET /stats`.
//!
//! Counters of requests and connections change together under one mutex, so that a snapshot is consistent: whoever
//! sees an abort counted also sees the request gone from `in_flight`. Tokens are counted apart, without a lock.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::fault::Fault;

mod tally;

pub use tally::{Calls, Second, Tally};

/// A snapshot of the counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests being answered now.
    pub in_flight: u64,
    /// The most there were at once.
    pub peak_in_flight: u64,
    /// Connections that were opened.
    pub connections_accepted: u64,
    /// Connections that are open.
    pub connections_open: u64,
    /// Connections turned away because there were too many.
    pub connections_refused: u64,
    /// Requests that came on a connection which had served one before.
    pub requests_on_reused: u64,
    /// Model requests read, whatever became of them.
    pub requests: u64,
    /// Replies whose regular end was sent.
    pub completed: u64,
    /// Requests refused by a limit or because of their key.
    pub refused: u64,
    /// The same by reason: `concurrency`, `rpm`, `tpm` and `key`.
    pub refused_by: BTreeMap<&'static str, u64>,
    /// Requests that met an outage.
    pub outages: u64,
    /// Requests that could not be understood.
    pub bad_requests: u64,
    /// Requests whose client was gone before the reply ended.
    pub aborted_by_client: u64,
    /// Tokens written.
    pub tokens_sent: u64,
    /// Tokens counted against limits: those of prompts and replies.
    pub tokens_counted: u64,
    /// Texts sent to be embedded.
    pub texts_embedded: u64,
    /// How many requests for embeddings had so many texts.
    pub texts_per_request: BTreeMap<u64, u64>,
    /// Requests by path.
    pub paths: BTreeMap<String, Tally>,
    /// Requests by key. Keys that the options do not name are shown by their end.
    pub keys: BTreeMap<String, Tally>,
    /// Requests by model, without faults and thoughts.
    pub models: BTreeMap<String, Tally>,
    /// Arrivals by second, for the last two minutes.
    pub seconds: VecDeque<Second>,
    /// Requests by the client's call.
    pub calls: Calls,
    /// When the last abort was noticed, in milliseconds of `uptime_ms`.
    pub last_abort_ms: Option<u64>,
    /// Milliseconds since the simulator was made.
    pub uptime_ms: u64,
    /// How often each fault was committed.
    pub faults: BTreeMap<&'static str, u64>,
}

impl Stats {
    /// The shape of `GET /stats`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let tallies = |tallies: &BTreeMap<String, Tally>| -> Value {
            tallies.iter().map(|(name, tally)| (name.clone(), tally.to_json())).collect()
        };
        let seconds: Vec<_> = self.seconds.iter().map(|second| second.to_json()).collect();
        json!({
            "in_flight": self.in_flight,
            "peak_in_flight": self.peak_in_flight,
            "connections_accepted": self.connections_accepted,
            "connections_open": self.connections_open,
            "connections_refused": self.connections_refused,
            "requests_on_reused": self.requests_on_reused,
            "requests": self.requests,
            "completed": self.completed,
            "refused": self.refused,
            "refused_by": self.refused_by,
            "outages": self.outages,
            "bad_requests": self.bad_requests,
            "aborted_by_client": self.aborted_by_client,
            "tokens_sent": self.tokens_sent,
            "tokens_counted": self.tokens_counted,
            "texts_embedded": self.texts_embedded,
            "texts_per_request": self.texts_per_request,
            "paths": tallies(&self.paths),
            "keys": tallies(&self.keys),
            "models": tallies(&self.models),
            "seconds": seconds,
            "calls": self.calls.to_json(),
            "last_abort_ms": self.last_abort_ms,
            "uptime_ms": self.uptime_ms,
            "faults": self.faults,
        })
    }

    fn tally(&mut self, arrival: &Arrival<'_>, count: impl Fn(&mut Tally)) {
        count(tally::tally(&mut self.paths, arrival.path));
        count(tally::tally(&mut self.keys, arrival.key));
        if let Some(model) = arrival.model {
            count(tally::tally(&mut self.models, model));
        }
    }

    fn refuse(&mut self, arrival: &Arrival<'_>, why: Refusal, now_ms: u64) {
        self.refused += 1;
        *self.refused_by.entry(why.name()).or_default() += 1;
        self.tally(arrival, |tally| tally.refused += 1);
        tally::second(&mut self.seconds, now_ms / 1000).refused += 1;
    }
}

/// What is counted of a request when it comes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival<'a> {
    pub(crate) path: &'static str,
    /// As it may be shown.
    pub(crate) key: &'a str,
    /// Unknown while the body is not read.
    pub(crate) model: Option<&'a str>,
    /// On a connection that was used before.
    pub(crate) reused: bool,
    pub(crate) client_request_id: Option<&'a str>,
    /// To be embedded.
    pub(crate) texts: usize,
}

/// Why a request is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Concurrency,
    Requests,
    Tokens,
    Key,
}

impl Refusal {
    fn name(self) -> &'static str {
        match self {
            Self::Concurrency => "concurrency",
            Self::Requests => "rpm",
            Self::Tokens => "tpm",
            Self::Key => "key",
        }
    }
}

/// The most (model, fault) pairs remembered as already failed once; beyond, a pair counts as failed.
const MAX_ONCE: usize = 4_096;

#[derive(Debug)]
pub(crate) struct Counters {
    started: Instant,
    tokens: AtomicU64,
    /// Numbers requests for the random draws; not reset with the rest, so that a seed is not replayed by accident.
    numbers: AtomicU64,
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    stats: Stats,
    /// Apart from the stats, because a snapshot shows but a summary.
    calls: Calls,
    once: HashSet<(String, Fault)>,
}

impl Counters {
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            tokens: AtomicU64::new(0),
            numbers: AtomicU64::new(0),
            book: Mutex::new(Book::default()),
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Counters stay meaningful whatever a panicking holder did to them.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn uptime_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(crate) fn snapshot(&self) -> Stats {
        let book = self.book();
        let mut stats = book.stats.clone();
        stats.calls = book.calls.summary();
        drop(book);
        stats.tokens_sent = self.tokens.load(Ordering::Relaxed);
        stats.uptime_ms = self.uptime_ms();
        stats
    }

    /// Starts counting anew. What is open stays counted, and "once" faults fail once more.
    pub(crate) fn reset(&self) {
        let mut book = self.book();
        let Stats { in_flight, connections_open, .. } = book.stats;
        book.stats =
            Stats { in_flight, connections_open, peak_in_flight: in_flight, ..Stats::default() };
        book.once.clear();
        book.calls = Calls::default();
        self.tokens.store(0, Ordering::Relaxed);
    }

    pub(crate) fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn tokens(&self, count: u64) {
        self.tokens.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn bad_request(&self) {
        self.book().stats.bad_requests += 1;
    }

    pub(crate) fn fault(&self, fault: Fault) {
        *self.book().stats.faults.entry(fault.name()).or_default() += 1;
    }

    /// Whether this is the first time that `fault` is asked of `model`.
    pub(crate) fn first_time(&self, model: &str, fault: Fault) -> bool {
        let mut book = self.book();
        book.once.len() < MAX_ONCE && book.once.insert((model.to_owned(), fault))
    }

    /// Registers a connection, unless there are too many.
    pub(crate) fn connect(&self, max: usize) -> Option<Connected<'_>> {
        let stats = &mut self.book().stats;
        if stats.connections_open >= max as u64 {
            stats.connections_refused += 1;
            return None;
        }
        stats.connections_accepted += 1;
        stats.connections_open += 1;
        Some(Connected { counters: self })
    }

    /// Tokens that count against limits.
    pub(crate) fn count_tokens(&self, count: u64) {
        let now = self.uptime_ms();
        let stats = &mut self.book().stats;
        stats.tokens_counted += count;
        tally::second(&mut stats.seconds, now / 1000).tokens += count;
    }

    /// A request that meets an outage.
    pub(crate) fn outage(&self) {
        self.book().stats.outages += 1;
    }

    /// Registers a request, unless there are too many.
    pub(crate) fn enter(&self, arrival: &Arrival<'_>, max: Option<u32>) -> Option<Flight<'_>> {
        let now = self.uptime_ms();
        let mut book = self.book();
        if let Some(id) = arrival.client_request_id {
            book.calls.count(id);
        }
        let stats = &mut book.stats;
        stats.requests += 1;
        stats.requests_on_reused += u64::from(arrival.reused);
        stats.tally(arrival, |tally| tally.requests += 1);
        tally::second(&mut stats.seconds, now / 1000).requests += 1;
        if arrival.texts > 0 {
            stats.texts_embedded += arrival.texts as u64;
            *stats.texts_per_request.entry(arrival.texts as u64).or_default() += 1;
        }
        if max.is_some_and(|max| stats.in_flight >= u64::from(max)) {
            stats.refuse(arrival, Refusal::Concurrency, now);
            return None;
        }
        stats.in_flight += 1;
        stats.peak_in_flight = stats.peak_in_flight.max(stats.in_flight);
        Some(Flight { counters: self, over: false })
    }
}

/// An open connection; counted until dropped.
#[derive(Debug)]
pub(crate) struct Connected<'a> {
    counters: &'a Counters,
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.counters.book().stats.connections_open -= 1;
    }
}

/// A request being answered; in flight until it is completed, aborted or dropped.
#[derive(Debug)]
pub(crate) struct Flight<'a> {
    counters: &'a Counters,
    over: bool,
}

impl Flight<'_> {
    /// Called just *before* the last bytes leave, so that a client which has read them finds the books settled and
    /// its slot free.
    pub(crate) fn complete(&mut self) {
        self.leave(|stats, _| stats.completed += 1);
    }

    pub(crate) fn abort(&mut self) {
        self.leave(|stats, now| {
            stats.aborted_by_client += 1;
            stats.last_abort_ms = Some(now);
        });
    }

    /// Over because it is turned away.
    pub(crate) fn refuse(&mut self, arrival: &Arrival<'_>, why: Refusal) {
        self.leave(|stats, now| stats.refuse(arrival, why, now));
    }

    /// Over without a regular end: refused, cut or left hanging by a fault.
    pub(crate) fn release(&mut self) {
        self.leave(|_, _| {});
    }

    fn leave(&mut self, count: impl FnOnce(&mut Stats, u64)) {
        if !std::mem::replace(&mut self.over, true) {
            let now = self.counters.uptime_ms();
            let stats = &mut self.counters.book().stats;
            stats.in_flight -= 1;
            count(stats, now);
        }
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARRIVAL: Arrival<'_> = Arrival {
        path: "/p",
        key: "k",
        model: Some("m"),
        reused: true,
        client_request_id: Some("c-1"),
        texts: 3,
    };

    #[test]
    fn a_request_leaves_exactly_once() {
        let counters = Counters::new();
        let mut flight = counters.enter(&ARRIVAL, None).unwrap();
        flight.complete();
        flight.abort();
        drop(flight);
        let stats = counters.snapshot();
        assert_eq!((stats.in_flight, stats.completed, stats.aborted_by_client), (0, 1, 0));
    }

    #[test]
    fn limits_refuse_and_slots_return() {
        let counters = Counters::new();
        let first = counters.enter(&ARRIVAL, Some(1));
        assert!(first.is_some() && counters.enter(&ARRIVAL, Some(1)).is_none());
        drop(first);
        assert!(counters.enter(&ARRIVAL, Some(1)).is_some());
        let connected = counters.connect(1);
        assert!(connected.is_some() && counters.connect(1).is_none());
        drop(connected);
        let stats = counters.snapshot();
        assert_eq!((stats.requests, stats.refused, stats.peak_in_flight), (3, 1, 1));
        assert_eq!(stats.refused_by, BTreeMap::from([("concurrency", 1)]));
        let tally = Tally { requests: 3, refused: 1 };
        assert_eq!((stats.paths["/p"], stats.keys["k"], stats.models["m"]), (tally, tally, tally));
        assert_eq!((stats.requests_on_reused, stats.texts_embedded), (3, 9));
        assert_eq!(stats.calls.repeated["c"], 3);
        assert_eq!(
            (stats.connections_open, stats.connections_accepted, stats.connections_refused),
            (0, 1, 1)
        );
    }

    #[test]
    fn reset_keeps_what_is_open_and_forgets_the_rest() {
        let counters = Counters::new();
        let _connected = counters.connect(9);
        let flight = counters.enter(&ARRIVAL, None);
        counters.tokens(5);
        counters.fault(Fault::Stall);
        assert!(counters.first_time("m", Fault::ResetOnce));
        assert!(!counters.first_time("m", Fault::ResetOnce));
        counters.reset();
        assert!(counters.first_time("m", Fault::ResetOnce));
        let stats = counters.snapshot();
        assert_eq!((stats.in_flight, stats.peak_in_flight, stats.connections_open), (1, 1, 1));
        assert_eq!((stats.requests, stats.tokens_sent, stats.faults.len()), (0, 0, 0));
        drop(flight);
        assert_eq!(counters.snapshot().in_flight, 0);
    }
}
