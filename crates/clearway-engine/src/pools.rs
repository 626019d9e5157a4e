//! Named pools: how many runs execute at once.
//!
//! A slot is a permit that lives in the run's task, so it comes back however the task ends. How many
//! runs may wait in front of a pool is checked by the store, in the transaction that accepts a run.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::PoolOptions;

#[derive(Debug)]
pub(crate) struct Pools(BTreeMap<String, Pool>);

#[derive(Debug)]
pub(crate) struct Pool {
    pub slots: u32,
    pub queue: u32,
    free: Arc<Semaphore>,
}

/// A place in a pool; dropping it frees the place.
#[derive(Debug)]
pub(crate) struct Slot {
    _permit: OwnedSemaphorePermit,
}

impl Pools {
    pub(crate) fn new(options: &[PoolOptions]) -> Self {
        let pool = |options: &PoolOptions| {
            let free = Arc::new(Semaphore::new(options.slots as usize));
            (options.name.clone(), Pool { slots: options.slots, queue: options.queue, free })
        };
        Self(options.iter().map(pool).collect())
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Pool> {
        self.0.get(name)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Pool)> {
        self.0.iter().map(|(name, pool)| (name.as_str(), pool))
    }
}

impl Pool {
    /// A free slot, if there is one now.
    pub(crate) fn take(&self) -> Option<Slot> {
        self.free.clone().try_acquire_owned().ok().map(|permit| Slot { _permit: permit })
    }

    pub(crate) fn running(&self) -> u32 {
        self.slots.saturating_sub(u32::try_from(self.free.available_permits()).unwrap_or(u32::MAX))
    }
}
