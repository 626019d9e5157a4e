//! Who may call a provider now.
//!
//! First come, first served, over a fixed number of slots and a bounded queue. A [`Slot`] rides in
//! the call's stream until its end, so a slow answer keeps its slot and an abandoned one frees it.
//!
//! Rate windows and priorities will live here too: one grant over all of them, nothing held while
//! waiting.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use clearway_core::Deadline;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

use crate::config::Limits;
use crate::watch::{Expired, Watch};

/// A provider's slots and the queue in front of them.
pub(crate) struct Admission {
    slots: Arc<Semaphore>,
    limit: usize,
    queued: AtomicUsize,
    queue_bound: usize,
}

/// The right to have one call in flight; free again when dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    _permit: OwnedSemaphorePermit,
}

/// Why there is no slot.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    QueueFull { queued: usize },
    Expired(Expired),
}

impl Admission {
    pub(crate) fn new(limits: &Limits) -> Self {
        // The semaphore's own maximum is far beyond any number of sockets.
        let limit = limits.concurrent.min(Semaphore::MAX_PERMITS);
        Self {
            slots: Arc::new(Semaphore::new(limit)),
            limit,
            queued: AtomicUsize::new(0),
            queue_bound: limits.queue_bound(),
        }
    }

    /// A slot if one is free; it never overtakes those who wait.
    pub(crate) fn try_enter(&self) -> Option<Slot> {
        match self.slots.clone().try_acquire_owned() {
            Ok(permit) => Some(Slot { _permit: permit }),
            Err(TryAcquireError::NoPermits | TryAcquireError::Closed) => None,
        }
    }

    /// Waits in the queue until `limit`. Dropping the future leaves the queue.
    pub(crate) async fn enter(&self, watch: &mut Watch, limit: Deadline) -> Result<Slot, Refused> {
        let _place = Place::take(self)?;
        let mut permit = pin!(self.slots.clone().acquire_owned());
        match watch.within(limit, |cx| permit.as_mut().poll(cx)).await {
            Ok(permit) => Ok(Slot { _permit: permit.expect("this semaphore is never closed") }),
            Err(expired) => Err(Refused::Expired(expired)),
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.limit - self.slots.available_permits()
    }

    pub(crate) fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    pub(crate) const fn limit(&self) -> usize {
        self.limit
    }
}

/// A place in the queue.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(admission: &'a Admission) -> Result<Self, Refused> {
        admission
            .queued
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |queued| {
                (queued < admission.queue_bound).then_some(queued + 1)
            })
            .map(|_| Place(&admission.queued))
            .map_err(|queued| Refused::QueueFull { queued })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::watch::now;

    #[tokio::test(start_paused = true)]
    async fn slots_are_granted_in_order_and_the_queue_is_bounded() {
        let limits = Limits { concurrent: 1, queue: Some(1), idle_connections: 1 };
        let admission = Admission::new(&limits);
        let limit = Deadline::after(now(), Duration::from_secs(1));
        let mut watch = Watch::new(Deadline::after(now(), Duration::from_secs(9)));
        let first = admission.try_enter().unwrap();
        assert!(admission.try_enter().is_none());
        {
            let mut waiting = pin!(admission.enter(&mut watch, limit));
            assert!(futures_util::poll!(waiting.as_mut()).is_pending());
            assert_eq!((admission.in_flight(), admission.queued()), (1, 1));
            let mut other = Watch::new(limit);
            let refused = admission.enter(&mut other, limit).await.unwrap_err();
            assert_eq!(refused, Refused::QueueFull { queued: 1 });
            drop(first);
            assert!(admission.try_enter().is_none(), "the slot is promised to the waiting one");
            waiting.await.unwrap();
        }
        assert_eq!((admission.in_flight(), admission.queued()), (0, 0));

        let _held = admission.try_enter().unwrap();
        let refused = admission.enter(&mut watch, limit).await.unwrap_err();
        assert_eq!(refused, Refused::Expired(Expired::Stage));
        assert_eq!(admission.queued(), 0);
    }
}
