//! Where time and ids come from. Everything else takes them from here, so tests can hold both.

use std::sync::Arc;
use std::time::Instant;

use clearway_core::{CheckpointId, Clock, InstanceId, RunId, ThreadId, Timestamp};
use uuid::Uuid;

/// The monotonic clock of the runtime: it stands still under paused test time.
pub(crate) fn instant() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// The wall clock, for what is stored or shown.
#[derive(Clone, Debug)]
pub struct Clocks(pub Arc<dyn Clock>);

impl Clocks {
    pub fn now(&self) -> Timestamp {
        self.0.now()
    }

    /// The instant at which the wall clock will show `at`.
    pub(crate) fn instant_at(&self, at: Timestamp) -> Instant {
        instant() + at.since(self.now())
    }
}

/// Makes ids.
#[derive(Clone, Copy, Debug)]
pub struct Ids {
    /// UUIDv6 wants a node; a random one says nothing about the machine.
    node: [u8; 6],
}

impl Default for Ids {
    fn default() -> Self {
        Self::new()
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the one place that makes random ids")]
impl Ids {
    pub fn new() -> Self {
        let mut node = [0; 6];
        node.copy_from_slice(&Uuid::new_v4().as_bytes()[10..]);
        node[0] |= 1; // the multicast bit marks a node id that is no network address (RFC 9562, 6.10)
        Self { node }
    }

    pub fn run(self) -> RunId {
        RunId(Uuid::now_v7())
    }

    pub fn thread(self) -> ThreadId {
        ThreadId(Uuid::now_v7())
    }

    pub fn checkpoint(self) -> CheckpointId {
        CheckpointId(Uuid::now_v6(&self.node))
    }

    pub fn instance(self) -> InstanceId {
        InstanceId(Uuid::new_v4())
    }

    pub fn random(self) -> Uuid {
        Uuid::new_v4()
    }
}
