//! How many runs of each pool stand where, kept in memory.
//!
//! Admission and fairness ask for these numbers on every run; counting rows each time would cost
//! more than the run. They follow the rows: whoever changes a status says so here, and a
//! transaction that does not happen takes its changes back.
//!
//! When tenants were last served is kept here, too, for as long as they wait.
//!
//! **Invariant:** at rest the numbers equal the rows. They are rebuilt from rows when a store opens,
//! so nothing can drift across a restart.

use std::collections::BTreeMap;

use clearway_core::{Priority, Status, Timestamp};

use crate::PoolCount;

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    pools: BTreeMap<String, Pool>,
}

#[derive(Clone, Debug, Default)]
struct Pool {
    blocked: u32,
    /// By priority, the best first.
    ready: [u32; 5],
    running: u32,
    /// Slots held by each tenant, zeros left out.
    held: BTreeMap<String, u32>,
    /// When tenants that wait last got a slot. Not of the rows: after a restart nobody has.
    served: BTreeMap<String, Timestamp>,
}

/// One run that changed its status; `None` before it existed.
#[derive(Clone, Debug)]
pub(crate) struct Move {
    pub(crate) pool: String,
    pub(crate) tenant: String,
    pub(crate) priority: Priority,
    pub(crate) from: Option<Status>,
    pub(crate) to: Status,
}

impl Counts {
    pub(crate) fn apply(&mut self, change: &Move) {
        if let Some(from) = change.from {
            self.add(change, from, -1);
        }
        self.add(change, change.to, 1);
    }

    pub(crate) fn revert(&mut self, change: &Move) {
        self.add(change, change.to, -1);
        if let Some(from) = change.from {
            self.add(change, from, 1);
        }
    }

    fn add(&mut self, run: &Move, status: Status, by: i32) {
        if status.is_terminal() {
            return;
        }
        if !self.pools.contains_key(&run.pool) {
            self.pools.insert(run.pool.clone(), Pool::default());
        }
        let Some(pool) = self.pools.get_mut(&run.pool) else { return };
        let number = match status {
            Status::Blocked => &mut pool.blocked,
            Status::Ready => &mut pool.ready[run.priority.level() as usize - 1],
            Status::Running => {
                let held =
                    pool.held.get(&run.tenant).copied().unwrap_or(0).saturating_add_signed(by);
                if held == 0 {
                    pool.held.remove(&run.tenant);
                } else if let Some(entry) = pool.held.get_mut(&run.tenant) {
                    *entry = held;
                } else {
                    pool.held.insert(run.tenant.clone(), held);
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
        self.pools.get(pool).map_or(0, Pool::waiting)
    }

    pub(crate) fn ready(&self, pool: &str) -> u32 {
        self.pools.get(pool).map_or(0, Pool::ready)
    }

    /// Ready runs of a pool that a newcomer of this priority finds in front of it.
    pub(crate) fn ahead(&self, pool: &str, priority: Priority) -> u32 {
        let Some(pool) = self.pools.get(pool) else { return 0 };
        pool.ready.iter().take(priority.level() as usize).sum()
    }

    /// Slots that a tenant holds in a pool.
    pub(crate) fn held(&self, pool: &str, tenant: &str) -> u32 {
        self.pools.get(pool).and_then(|pool| pool.held.get(tenant)).copied().unwrap_or(0)
    }

    /// When a tenant last got a slot of a pool, if it has waited ever since.
    pub(crate) fn served(&self, pool: &str, tenant: &str) -> Option<Timestamp> {
        self.pools.get(pool)?.served.get(tenant).copied()
    }

    /// Notes who has got slots. Of tenants that do not wait nothing is kept: their next run is
    /// younger than whatever they got before.
    pub(crate) fn serve(
        &mut self,
        pool: &str,
        waiting: &[String],
        tenants: impl IntoIterator<Item = String>,
        now: Timestamp,
    ) {
        let Some(pool) = self.pools.get_mut(pool) else { return };
        pool.served.retain(|tenant, _| waiting.contains(tenant));
        pool.served.extend(tenants.into_iter().map(|tenant| (tenant, now)));
    }

    /// Waiting runs of all pools.
    pub(crate) fn waiting_total(&self) -> u32 {
        self.pools.values().map(Pool::waiting).sum()
    }

    pub(crate) fn ready_total(&self) -> u32 {
        self.pools.values().map(Pool::ready).sum()
    }

    /// Pools that have runs now.
    pub(crate) fn list(&self) -> Vec<PoolCount> {
        self.pools
            .iter()
            .filter(|(_, pool)| pool.waiting() + pool.running > 0)
            .map(|(name, pool)| PoolCount {
                pool: name.clone(),
                blocked: pool.blocked,
                ready: pool.ready(),
                running: pool.running,
            })
            .collect()
    }
}

impl Pool {
    fn ready(&self) -> u32 {
        self.ready.iter().sum()
    }

    fn waiting(&self) -> u32 {
        self.blocked + self.ready()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(tenant: &str, from: Option<Status>, to: Status) -> Move {
        let (pool, tenant) = ("chat".to_owned(), tenant.to_owned());
        Move { pool, tenant, priority: Priority::NORMAL, from, to }
    }

    #[test]
    fn numbers_follow_and_are_taken_back() {
        let mut counts = Counts::default();
        counts.apply(&change("a", None, Status::Ready));
        counts.apply(&change("b", None, Status::Blocked));
        let claim = change("a", Some(Status::Ready), Status::Running);
        counts.apply(&claim);
        assert_eq!(
            (counts.waiting("chat"), counts.ready("chat"), counts.held("chat", "a")),
            (1, 0, 1)
        );
        counts.revert(&claim);
        assert_eq!(
            (counts.waiting("chat"), counts.ready("chat"), counts.held("chat", "a")),
            (2, 1, 0)
        );
        counts.apply(&claim);
        counts.apply(&change("a", Some(Status::Running), Status::Success));
        counts.apply(&change("b", Some(Status::Blocked), Status::Cancelled));
        assert!(counts.list().is_empty(), "a pool without runs is not listed");
    }

    #[test]
    fn newcomers_stand_behind_their_own_priority() {
        let mut counts = Counts::default();
        for priority in [Priority::HIGH, Priority::NORMAL, Priority::NORMAL, Priority::LOW] {
            counts.apply(&Move { priority, ..change("a", None, Status::Ready) });
        }
        let ahead = |priority| counts.ahead("chat", priority);
        assert_eq!([Priority::HIGH, Priority::NORMAL, Priority::LOW].map(ahead), [1, 3, 4]);
        assert_eq!(counts.ahead("other", Priority::LOW), 0);
    }
}
