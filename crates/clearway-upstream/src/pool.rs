//! Idle connections of one endpoint.
//!
//! The last one given back is the first one taken, so that a quiet provider keeps few. Nothing runs
//! in the background: whoever takes a connection looks at it first, and [`Pool::expire`] closes what
//! nobody took.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::transport::Link;

/// Connections that wait for their next request, oldest in front.
pub(crate) struct Pool {
    idle: Mutex<VecDeque<Idle>>,
    bound: usize,
    expiry: Duration,
    pub(crate) counters: Arc<Counters>,
}

struct Idle {
    link: Link,
    since: Instant,
}

/// What became of an endpoint's connections since start.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) opened: AtomicU64,
    pub(crate) reused: AtomicU64,
    pub(crate) closed: AtomicU64,
}

impl Pool {
    pub(crate) fn new(bound: usize, tls: bool) -> Self {
        // Self-hosted servers close after 5 s (uvicorn, Node), load balancers after 60 s or more.
        let expiry = Duration::from_secs(if tls { 30 } else { 4 });
        Self { idle: Mutex::default(), bound, expiry, counters: Arc::default() }
    }

    /// A connection that was alive a moment ago.
    pub(crate) fn take(&self, now: Instant) -> Option<Link> {
        let mut settling = Vec::new();
        let found = loop {
            let Some(mut idle) = self.idle().pop_back() else { break None };
            if self.has_expired(&idle, now) {
                continue;
            }
            if idle.link.refresh() {
                break Some(idle.link);
            }
            if idle.link.is_settling() {
                settling.push(idle);
            }
        };
        if !settling.is_empty() {
            let mut idle = self.idle();
            settling.into_iter().rev().for_each(|link| idle.push_back(link));
        }
        if found.is_some() {
            self.counters.reused.fetch_add(1, Ordering::Relaxed);
        }
        found
    }

    /// Keeps a connection; the one that waited longest goes when there are too many.
    pub(crate) fn put(&self, link: Link, now: Instant) {
        let surplus = {
            let mut idle = self.idle();
            idle.push_back(Idle { link, since: now });
            if idle.len() > self.bound { idle.pop_front() } else { None }
        };
        // Closed outside the lock.
        drop(surplus);
    }

    /// Closes what waited too long, and what the peer has closed meanwhile.
    pub(crate) fn expire(&self, now: Instant) {
        let all = std::mem::take(&mut *self.idle());
        let alive: Vec<_> = all
            .into_iter()
            .filter_map(|mut idle| {
                let keep = !self.has_expired(&idle, now)
                    && (idle.link.refresh() || idle.link.is_settling());
                keep.then_some(idle)
            })
            .collect();
        let mut idle = self.idle();
        // Whatever was given back meanwhile is younger.
        alive.into_iter().rev().for_each(|link| idle.push_front(link));
        while idle.len() > self.bound {
            idle.pop_front();
        }
    }

    pub(crate) fn idle_count(&self) -> usize {
        self.idle().len()
    }

    fn has_expired(&self, idle: &Idle, now: Instant) -> bool {
        let limit = if idle.link.is_settling() { SETTLE } else { self.expiry };
        now.saturating_duration_since(idle.since) >= limit
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long an answer that is complete for us may take to end.
const SETTLE: Duration = Duration::from_secs(2);
