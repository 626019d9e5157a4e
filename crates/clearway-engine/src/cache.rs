//! States of hot threads, so that a turn neither reads nor parses the history before it.
//!
//! An entry is right only for the head it was made at: the taker compares. A run takes the entry out
//! and puts the new state back when its end is durable, so a state in the cache is never shared with
//! one being written, and a turn copies nothing.

use std::collections::HashMap;
use std::sync::Mutex;

use clearway_core::channel::State;
use clearway_core::{CheckpointId, RunRecord, ThreadId};

use crate::live::lock;

#[derive(Debug)]
pub(crate) struct StateCache {
    limit: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: HashMap<ThreadId, Entry>,
    weight: usize,
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    head: CheckpointId,
    /// How deep that is.
    depth: u64,
    tenant: String,
    owner: Option<String>,
    state: State,
    weight: usize,
    used: u64,
}

impl StateCache {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, inner: Mutex::default() }
    }

    /// Takes the state of a thread whose head is `head`.
    pub(crate) fn take(&self, thread: ThreadId, head: CheckpointId) -> Option<State> {
        let mut inner = lock(&self.inner);
        let entry = inner.entries.remove(&thread)?;
        inner.weight -= entry.weight;
        (entry.head == head).then_some(entry.state)
    }

    /// Takes what is there for a caller who may see it, with the head it belongs to and how deep that is.
    pub(crate) fn take_for(
        &self,
        thread: ThreadId,
        tenant: &str,
        owner: Option<&str>,
    ) -> Option<(CheckpointId, u64, State)> {
        let mut inner = lock(&self.inner);
        let entry = inner.entries.get(&thread)?;
        if entry.tenant != tenant || entry.owner.as_deref() != owner {
            return None;
        }
        let entry = inner.entries.remove(&thread)?;
        inner.weight -= entry.weight;
        Some((entry.head, entry.depth, entry.state))
    }

    /// Forgets a thread whose head was moved by somebody else.
    pub(crate) fn forget(&self, thread: ThreadId) {
        let mut inner = lock(&self.inner);
        if let Some(entry) = inner.entries.remove(&thread) {
            inner.weight -= entry.weight;
        }
    }

    /// Keeps the state that `run` has left at `head`.
    pub(crate) fn put(&self, run: &RunRecord, head: CheckpointId, depth: u64, state: State) {
        const ENTRY: usize = 256;
        let thread = run.thread;
        let weight = state.weight() + ENTRY;
        if weight > self.limit {
            return;
        }
        let mut inner = lock(&self.inner);
        inner.clock += 1;
        let used = inner.clock;
        let (tenant, owner) = (run.tenant.clone(), run.owner.clone());
        let entry = Entry { head, depth, tenant, owner, state, weight, used };
        if let Some(old) = inner.entries.insert(thread, entry) {
            inner.weight -= old.weight;
        }
        inner.weight += weight;
        if inner.weight > self.limit {
            inner.evict(self.limit / 4 * 3);
        }
    }
}

impl Inner {
    /// Drops the least recently used entries until `limit` holds. Runs once per quarter of the
    /// cache written, so sorting costs little per entry.
    fn evict(&mut self, limit: usize) {
        let mut by_age: Vec<(u64, ThreadId)> =
            self.entries.iter().map(|(thread, entry)| (entry.used, *thread)).collect();
        by_age.sort_unstable();
        for (_, thread) in by_age {
            if self.weight <= limit {
                break;
            }
            if let Some(entry) = self.entries.remove(&thread) {
                self.weight -= entry.weight;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clearway_core::channel::Op;
    use clearway_core::{RunId, Timestamp};
    use uuid::Uuid;

    use super::*;

    fn state(bytes: usize) -> State {
        let mut state = State::new();
        state.apply("c", Op::Assign("x".repeat(bytes).into()));
        state
    }

    fn run(n: u128, owner: &str) -> RunRecord {
        RunRecord {
            tenant: "default".to_owned(),
            owner: Some(owner.to_owned()),
            thread: ThreadId(Uuid::from_u128(n)),
            ..crate::admission::blank_record(RunId(Uuid::nil()), Timestamp(0))
        }
    }

    #[test]
    fn a_state_is_handed_out_to_its_owner_only() {
        let cache = StateCache::new(10_000);
        let (thread, head) = (ThreadId(Uuid::from_u128(1)), CheckpointId(Uuid::from_u128(9)));
        cache.put(&run(1, "ada"), head, 3, state(10));
        assert!(cache.take_for(thread, "default", Some("bob")).is_none());
        assert!(cache.take_for(thread, "other", Some("ada")).is_none());
        assert!(cache.take_for(thread, "default", None).is_none());
        let (found, depth, _) = cache.take_for(thread, "default", Some("ada")).unwrap();
        assert_eq!((found, depth), (head, 3));
    }

    #[test]
    fn the_oldest_give_way_and_heads_must_match() {
        let cache = StateCache::new(10_000);
        let id = |n: u128| Uuid::from_u128(n);
        for n in 0..20 {
            cache.put(&run(n, "ada"), CheckpointId(id(n)), 0, state(1000));
        }
        assert!(cache.take(ThreadId(id(0)), CheckpointId(id(0))).is_none(), "evicted");
        assert!(cache.take(ThreadId(id(19)), CheckpointId(id(7))).is_none(), "another head");
        assert!(
            cache.take(ThreadId(id(19)), CheckpointId(id(19))).is_none(),
            "and then it is gone"
        );
        assert!(cache.take(ThreadId(id(18)), CheckpointId(id(18))).is_some());
        cache.put(&run(1, "ada"), CheckpointId(id(1)), 0, state(20_000));
        assert!(
            cache.take(ThreadId(id(1)), CheckpointId(id(1))).is_none(),
            "larger than the cache"
        );
    }
}
