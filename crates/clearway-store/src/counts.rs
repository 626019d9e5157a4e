//! How many runs of each pool stand where, kept in memory.
//!
//! Admission and fairness ask for these numbers on every run; counting rows each time would cost
//! more than the run. They follow the rows: whoever changes a status says so here, and a
//! transaction that does not happen takes its changes back.
//!
//! **Invariant:** at rest the numbers equal the rows. They are rebuilt from rows when a store opens,
//! so nothing can drift across a restart.

use std::collections::BTreeMap;

use clearway_core::Status;

use crate::PoolCount;

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    pools: BTreeMap<String, Pool>,
}

#[derive(Clone, Debug, Default)]
struct Pool {
    blocked: u32,
    ready: u32,
    running: u32,
    /// Slots held by each tenant, zeros left out.
    held: BTreeMap<String, u32>,
}

/// One run that changed its status; `None` before it existed.
#[derive(Clone, Debug)]
pub(crate) struct Move {
    pub(crate) pool: String,
    pub(crate) tenant: String,
    pub(crate) from: Option<Status>,
    pub(crate) to: Status,
}

impl Counts {
    pub(crate) fn apply(&mut self, change: &Move) {
        if let Some(from) = change.from {
            self.add(&change.pool, &change.tenant, from, -1);
        }
        self.add(&change.pool, &change.tenant, change.to, 1);
    }

    pub(crate) fn revert(&mut self, change: &Move) {
        self.add(&change.pool, &change.tenant, change.to, -1);
        if let Some(from) = change.from {
            self.add(&change.pool, &change.tenant, from, 1);
        }
    }

    /// Adds `by` runs of one status, as when rows are counted at opening.
    pub(crate) fn add(&mut self, pool: &str, tenant: &str, status: Status, by: i32) {
        if status.is_terminal() {
            return;
        }
        if !self.pools.contains_key(pool) {
            self.pools.insert(pool.to_owned(), Pool::default());
        }
        let Some(pool) = self.pools.get_mut(pool) else { return };
        let number = match status {
            Status::Blocked => &mut pool.blocked,
            Status::Ready => &mut pool.ready,
            Status::Running => {
                let held = pool.held.get(tenant).copied().unwrap_or(0).saturating_add_signed(by);
                if held == 0 {
                    pool.held.remove(tenant);
                } else if let Some(entry) = pool.held.get_mut(tenant) {
                    *entry = held;
                } else {
                    pool.held.insert(tenant.to_owned(), held);
                }
                &mut pool.running
            }
            Status::Waiting
            | Status::Success
            | Status::Error
            | Status::Timeout
            | Status::Cancelled => return,
        };
        debug_assert!(by >= 0 || *number >= by.unsigned_abs(), "a count fell below zero");
        *number = number.saturating_add_signed(by);
    }

    /// Blocked and ready runs of a pool: its queue.
    pub(crate) fn waiting(&self, pool: &str) -> u32 {
        self.pools.get(pool).map_or(0, |pool| pool.blocked + pool.ready)
    }

    pub(crate) fn ready(&self, pool: &str) -> u32 {
        self.pools.get(pool).map_or(0, |pool| pool.ready)
    }

    /// Slots that a tenant holds in a pool.
    pub(crate) fn held(&self, pool: &str, tenant: &str) -> u32 {
        self.pools.get(pool).and_then(|pool| pool.held.get(tenant)).copied().unwrap_or(0)
    }

    /// Waiting runs of all pools.
    pub(crate) fn waiting_total(&self) -> u32 {
        self.pools.values().map(|pool| pool.blocked + pool.ready).sum()
    }

    pub(crate) fn ready_total(&self) -> u32 {
        self.pools.values().map(|pool| pool.ready).sum()
    }

    /// Pools that have runs now.
    pub(crate) fn list(&self) -> Vec<PoolCount> {
        self.pools
            .iter()
            .filter(|(_, pool)| pool.blocked + pool.ready + pool.running > 0)
            .map(|(name, pool)| PoolCount {
                pool: name.clone(),
                blocked: pool.blocked,
                ready: pool.ready,
                running: pool.running,
            })
            .collect()
    }
}
