//! Named pools: how many runs execute at once.
//!
//! A slot is a permit that lives in the run's task, so it comes back however the task ends. How many
//! runs may wait in front of a pool is checked by the store, in the transaction that accepts a run.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::PoolOptions;

#[derive(Debug)]
pub(crate) struct Pools(BTreeMap<String, Pool>);

#[derive(Debug)]
pub(crate) struct Pool {
    pub slots: u32,
    pub queue: u32,
    free: Arc<Semaphore>,
    freed: Arc<Notify>,
}

/// A place in a pool; dropping it frees the place and tells whoever hands places out.
#[derive(Debug)]
pub(crate) struct Slot {
    permit: Option<OwnedSemaphorePermit>,
    freed: Arc<Notify>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        // The permit first: who is told must find it.
        self.permit.take();
        self.freed.notify_one();
    }
}

impl Pools {
    /// `freed` is notified whenever a slot comes back.
    pub(crate) fn new(options: &[PoolOptions], freed: &Arc<Notify>) -> Self {
        let pool = |options: &PoolOptions| {
            let free = Arc::new(Semaphore::new(options.slots as usize));
            (
                options.name.clone(),
                Pool { slots: options.slots, queue: options.queue, free, freed: freed.clone() },
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
        Some(Slot { permit: Some(permit), freed: self.freed.clone() })
    }

    pub(crate) fn running(&self) -> u32 {
        self.slots.saturating_sub(u32::try_from(self.free.available_permits()).unwrap_or(u32::MAX))
    }
}
