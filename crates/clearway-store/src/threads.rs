//! Threads as people look at them: made before their first run, searched, copied, and how they stand.

use std::sync::Arc;

use clearway_core::channel::Op;
use clearway_core::thread::{ThreadKey, ThreadRecord};
use clearway_core::{Failure, RunId, Status, ThreadId, Timestamp};
use serde_json::{Map, Value};

use crate::CheckpointRecord;

/// A thread to be made without a run.
#[derive(Clone, Debug)]
pub struct NewThread {
    pub id: ThreadId,
    pub tenant: String,
    pub owner: Option<String>,
    pub key: Option<ThreadKey>,
    pub metadata: Map<String, Value>,
}

/// What became of a [`NewThread`]. Made twice, it exists: metadata tells whose it is.
#[derive(Clone, Debug, PartialEq)]
pub enum ThreadMade {
    Made(ThreadRecord),
    Exists(ThreadRecord),
}

/// How a thread stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stand {
    /// A run is active, or waits for one that is.
    Busy,
    /// Its last run failed.
    Error,
    Idle,
    /// It stopped half-way: something is due.
    Interrupted,
}

impl Stand {
    pub const ALL: [Self; 4] = [Self::Busy, Self::Error, Self::Idle, Self::Interrupted];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Error => "error",
            Self::Idle => "idle",
            Self::Interrupted => "interrupted",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stand| stand.as_str() == text)
    }

    /// By whether a run is active, how the last one ended, and whether something is due.
    pub(crate) const fn of(active: bool, last: Option<Status>, due: bool) -> Self {
        match (active, last, due) {
            (true, _, _) => Self::Busy,
            (false, Some(Status::Error | Status::Timeout), _) => Self::Error,
            (false, _, true) => Self::Interrupted,
            (false, _, false) => Self::Idle,
        }
    }
}

/// A thread, and how it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct ThreadOverview {
    pub record: ThreadRecord,
    pub stand: Stand,
    /// When its state last changed; `None` while it has none.
    pub state_at: Option<Timestamp>,
    /// The newest run that ended and was not rolled back.
    pub last: Option<LastRun>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct LastRun {
    pub id: RunId,
    pub status: Status,
    pub failure: Option<Failure>,
}

/// Which threads to find. All given conditions must hold.
#[derive(Clone, Debug, Default)]
pub struct ThreadSearch {
    pub tenant: Option<String>,
    pub owner: Option<String>,
    /// Empty for all.
    pub ids: Vec<ThreadId>,
    /// What a thread's metadata must contain.
    pub metadata: Map<String, Value>,
    pub stand: Option<Stand>,
    /// Threads whose keys are of this dialect are left out.
    pub except_dialect: Option<String>,
    pub sort: ThreadSort,
    pub ascending: bool,
    pub offset: u32,
    /// At most 1000; 0 means 100.
    pub limit: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ThreadSort {
    #[default]
    UpdatedAt,
    CreatedAt,
    Id,
    Stand,
    StateAt,
}

#[derive(Clone, Debug)]
pub struct ThreadPage {
    pub threads: Vec<ThreadOverview>,
    /// There are more behind these.
    pub more: bool,
}

/// A checkpoint of a run, and what it changed.
#[derive(Clone, Debug, PartialEq)]
pub struct StepRecord {
    pub checkpoint: CheckpointRecord,
    pub ops: Vec<(Arc<str>, Op)>,
}

/// What became of a request to delete a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunDeleted {
    /// It is gone from the thread's history; the thread's head was moved back if it was the run's.
    Done,
    /// It has not ended.
    Unfinished,
    NotFound,
}

/// Whether `whole` has everything that `part` has, objects inside it included.
pub(crate) fn contains(whole: &Map<String, Value>, part: &Map<String, Value>) -> bool {
    part.iter().all(|(key, wanted)| match (whole.get(key), wanted) {
        (Some(Value::Object(whole)), Value::Object(wanted)) => contains(whole, wanted),
        (Some(found), wanted) => found == wanted,
        (None, _) => false,
    })
}

/// The id that a checkpoint has in a copy of its thread: made at the same time, by somebody else.
pub(crate) fn copied_id(id: uuid::Uuid, salt: [u8; 6]) -> uuid::Uuid {
    let mut bytes = *id.as_bytes();
    for (byte, salt) in bytes[10..].iter_mut().zip(salt) {
        *byte ^= salt;
    }
    uuid::Uuid::from_bytes(bytes)
}
