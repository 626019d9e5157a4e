//! A run's durable facts.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::wait::Spent;
use crate::{CheckpointId, Failure, InstanceId, RunId, ThreadId, Timestamp};

/// Where a run stands. Exactly one terminal status is reached, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// Behind another run of its thread.
    Blocked,
    /// Waits for a slot of its pool.
    Ready,
    Running,
    /// Parked on a timer or signal; holds no slot.
    Waiting,
    Success,
    Error,
    Timeout,
    Cancelled,
}

impl Status {
    pub const ALL: &'static [Self] = &[
        Self::Blocked,
        Self::Ready,
        Self::Running,
        Self::Waiting,
        Self::Success,
        Self::Error,
        Self::Timeout,
        Self::Cancelled,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Blocked => "blocked",
            Self::Ready => "ready",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Success => "success",
            Self::Error => "error",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|status| status.as_str() == text)
    }

    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Success | Self::Error | Self::Timeout | Self::Cancelled)
    }

    /// Whether it keeps its thread: at most one run of a thread does (invariant I1).
    pub const fn is_active(self) -> bool {
        matches!(self, Self::Ready | Self::Running | Self::Waiting)
    }
}

/// 1 goes first, 5 last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(u8);

impl Priority {
    pub const HIGH: Self = Self(2);
    pub const NORMAL: Self = Self(3);
    pub const LOW: Self = Self(4);

    /// `None` outside 1 to 5.
    pub const fn new(level: u8) -> Option<Self> {
        if level >= 1 && level <= 5 { Some(Self(level)) } else { None }
    }

    pub const fn level(self) -> u8 {
        self.0
    }
}

impl Default for Priority {
    fn default() -> Self {
        Self::NORMAL
    }
}

/// What to do with a new run while another is active on its thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Multitask {
    /// Wait in order.
    #[default]
    Enqueue,
    /// Refuse the new run.
    Reject,
    /// Cancel the active run; the new one is next.
    Interrupt,
}

impl Multitask {
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "enqueue" => Some(Self::Enqueue),
            "reject" => Some(Self::Reject),
            "interrupt" => Some(Self::Interrupt),
            _ => None,
        }
    }
}

/// Tokens that a run's provider calls used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub input_tokens: u64,
    pub output_tokens: u64,
    /// Output paid for more than once because a crash lost it.
    pub rebilled_tokens: u64,
    /// Provider calls made, failed ones included.
    pub calls: u32,
    /// By the configured prices, in millionths of the currency unit.
    pub cost_micros: u64,
}

impl Usage {
    pub const fn add(&mut self, other: Self) {
        self.input_tokens += other.input_tokens;
        self.output_tokens += other.output_tokens;
        self.rebilled_tokens += other.rebilled_tokens;
        self.calls += other.calls;
        self.cost_micros += other.cost_micros;
    }
}

/// One run as the store keeps it.
#[derive(Clone, Debug, PartialEq)]
pub struct RunRecord {
    pub id: RunId,
    pub tenant: String,
    /// The user it belongs to, where users are known.
    pub owner: Option<String>,
    pub thread: ThreadId,
    /// Order of admission on the thread, from 1.
    pub thread_ord: i64,
    pub parent: Option<RunId>,
    pub agent: String,
    pub pool: String,
    /// The door it came through: `cofounder`, `knowledge`, `runs`, …
    pub door: String,
    pub priority: Priority,
    pub status: Status,
    pub metadata: Map<String, Value>,
    /// Writes to the thread's channels before the first superstep: `{channel: value}`.
    pub input: Value,

    pub created_at: Timestamp,
    /// Since when it waits for a slot; also the earliest start.
    pub ready_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    /// Fixed end, for runs whose client waits.
    pub deadline_at: Option<Timestamp>,
    /// Limit of working time, for background runs: queueing does not count.
    pub working_limit: Option<Duration>,
    /// Working time used in earlier attempts, as of the last durable commit.
    pub worked: Duration,

    /// Claims so far.
    pub attempt: u32,
    /// Takeovers and restarts since the last committed superstep.
    pub fruitless: u32,
    pub fence: u32,
    pub instance: Option<InstanceId>,
    pub cancel_requested: bool,

    /// Last committed superstep; -1 before the first.
    pub step: i64,
    /// Nodes of the next superstep; empty before the first and after the last.
    pub next: Vec<String>,
    /// Durable commits so far: the number the next commit must carry.
    pub commits: u64,
    /// Number of the next event, as far as the store knows.
    pub next_seq: u64,
    /// `next_seq` at the last durable commit: output after it is void on a takeover.
    pub committed_seq: u64,
    pub checkpoint: Option<CheckpointId>,

    pub failure: Option<Failure>,
    pub spent: Spent,
    pub usage: Usage,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_round_trip() {
        for &status in Status::ALL {
            assert_eq!(Status::parse(status.as_str()), Some(status));
            assert!(!(status.is_active() && status.is_terminal()));
        }
        assert_eq!(Priority::new(0), None);
        assert_eq!(Priority::new(6), None);
        assert_eq!(Priority::new(5).map(Priority::level), Some(5));
    }
}
