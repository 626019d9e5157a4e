//! Named pools: how many runs execute at once.
//!
//! A slot is a permit that lives in the run's task, so it comes back however the task ends. How many
//! runs may wait in front of a pool is checked by the store, in the transaction that accepts a run.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::PoolOptions;
use crate::live::lock;

#[derive(Debug)]
pub(crate) struct Pools(BTreeMap<String, Pool>);

#[derive(Debug)]
pub(crate) struct Pool {
    pub queue: u32,
    size: Arc<Size>,
    free: Arc<Semaphore>,
    freed: Arc<Notify>,
    /// How long a run holds a slot, in milliseconds; 0 while none has ended.
    held_ms: AtomicU64,
}

/// How many slots there are to be, and how many too many are still in use.
#[derive(Debug, Default)]
struct Size(Mutex<(u32, u32)>);

/// A place in a pool; dropping it frees the place and tells whoever hands places out.
#[derive(Debug)]
pub(crate) struct Slot {
    permit: Option<OwnedSemaphorePermit>,
    size: Arc<Size>,
    freed: Arc<Notify>,
}

impl Slot {
    /// Gives the place back without telling anybody: whoever hands places out had no use for it.
    pub(crate) fn put_back(mut self) {
        self.free();
    }

    /// Frees the place, if that has not been done.
    fn free(&mut self) -> bool {
        let Some(permit) = self.permit.take() else { return false };
        let mut size = lock(&self.size.0);
        if size.1 > 0 {
            size.1 -= 1;
            permit.forget();
        }
        true
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // The permit first: who is told must find it.
        if self.free() {
            self.freed.notify_one();
        }
    }
}

impl Pools {
    /// `freed` is notified whenever a slot comes back.
    pub(crate) fn new(options: &[PoolOptions], freed: &Arc<Notify>) -> Self {
        let pool = |options: &PoolOptions| {
            let free = Arc::new(Semaphore::new(options.slots as usize));
            (
                options.name.clone(),
                Pool {
                    queue: options.queue,
                    size: Arc::new(Size(Mutex::new((options.slots, 0)))),
                    free,
                    freed: freed.clone(),
                    held_ms: AtomicU64::new(0),
                },
            )
        };
        Self(options.iter().map(pool).collect())
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Pool> {
        self.0.get(name)
    }

    /// The pool of runs whose own pool is no longer configured.
    pub(crate) fn any(&self) -> Option<&Pool> {
        self.0.values().next()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Pool)> {
        self.0.iter().map(|(name, pool)| (name.as_str(), pool))
    }
}

impl Pool {
    /// A free slot, if there is one now.
    pub(crate) fn take(&self) -> Option<Slot> {
        let permit = self.free.clone().try_acquire_owned().ok()?;
        Some(Slot { permit: Some(permit), size: self.size.clone(), freed: self.freed.clone() })
    }

    /// A run has ended that held a slot for so long in all.
    pub(crate) fn was_held(&self, time: Duration) {
        let held = u64::try_from(time.as_millis()).unwrap_or(u64::MAX >> 8);
        let mean = self.held_ms.load(Ordering::Relaxed);
        // A moving mean over about the last 16 runs.
        let next = if mean == 0 { held } else { (mean * 15).saturating_add(held) / 16 };
        self.held_ms.store(next.max(1), Ordering::Relaxed);
    }

    /// How long a run holds a slot on the average, if one has ended.
    pub(crate) fn held(&self) -> Option<Duration> {
        let held = self.held_ms.load(Ordering::Relaxed);
        (held > 0).then(|| Duration::from_millis(held))
    }

    pub(crate) fn slots(&self) -> u32 {
        lock(&self.size.0).0
    }

    /// Changes the number of slots. Runs beyond a smaller number go on; their slots do not come
    /// back.
    pub(crate) fn set_slots(&self, slots: u32) {
        let mut size = lock(&self.size.0);
        let (before, surplus) = *size;
        let (mut more, mut less) = (slots.saturating_sub(before), before.saturating_sub(slots));
        let forgiven = more.min(surplus);
        more -= forgiven;
        self.free.add_permits(more as usize);
        less -= u32::try_from(self.free.forget_permits(less as usize)).unwrap_or(less);
        *size = (slots, surplus - forgiven + less);
    }

    pub(crate) fn running(&self) -> u32 {
        let (slots, surplus) = *lock(&self.size.0);
        let free = u32::try_from(self.free.available_permits()).unwrap_or(u32::MAX);
        (slots + surplus).saturating_sub(free)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slot_that_was_of_no_use_wakes_nobody() {
        let freed = Arc::new(Notify::new());
        let pools = Pools::new(&[PoolOptions::new("p", 1, 1)], &freed);
        let pool = pools.get("p").unwrap();
        pool.take().unwrap().put_back();
        let told = async || tokio::time::timeout(Duration::ZERO, freed.notified()).await.is_ok();
        assert!(!told().await);
        drop(pool.take().unwrap());
        assert!(told().await);
    }

    #[test]
    fn slots_come_and_go_while_in_use() {
        let options = [PoolOptions::new("p", 2, 1)];
        let pools = Pools::new(&options, &Arc::new(Notify::new()));
        let pool = pools.get("p").unwrap();
        let (one, two) = (pool.take().unwrap(), pool.take().unwrap());
        pool.set_slots(1);
        assert_eq!((pool.slots(), pool.running()), (1, 2));
        drop(one);
        assert!(pool.take().is_none(), "one is in use, and there is one");
        pool.set_slots(3);
        let (_three, _four) = (pool.take().unwrap(), pool.take().unwrap());
        assert!(pool.take().is_none());
        assert_eq!(pool.running(), 3);
        drop(two);
        assert!(pool.take().is_some());
    }
}
