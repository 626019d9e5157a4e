//! A run's durable facts.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::machine::{Breaks, Command, Park};
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
    /// As [`Multitask::Interrupt`], and what the active run did to the thread is taken back.
    Rollback,
}

impl Multitask {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enqueue => "enqueue",
            Self::Reject => "reject",
            Self::Interrupt => "interrupt",
            Self::Rollback => "rollback",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "enqueue" => Some(Self::Enqueue),
            "reject" => Some(Self::Reject),
            "interrupt" => Some(Self::Interrupt),
            "rollback" => Some(Self::Rollback),
            _ => None,
        }
    }
}

/// Tokens that a run's provider calls used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub input_tokens: u64,
    pub output_tokens: u64,
    /// Of these, tokens of calls that were made once more because an earlier lease was lost while they
    /// were under way. What those had cost until then is not known after a crash.
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

/// What a run may use up. `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// Input and output together.
    pub tokens: Option<u64>,
    pub cost_micros: Option<u64>,
    /// Provider calls, failed ones included.
    pub calls: Option<u32>,
}

impl Budget {
    /// `{tokens?, cost_micros?, calls?}`
    pub fn to_json(self) -> Value {
        let mut object = Map::new();
        let mut put = |name: &str, value: Option<u64>| {
            if let Some(value) = value {
                object.insert(name.to_owned(), value.into());
            }
        };
        put("tokens", self.tokens);
        put("cost_micros", self.cost_micros);
        put("calls", self.calls.map(u64::from));
        Value::Object(object)
    }

    pub fn from_json(value: &Value) -> Self {
        Self {
            tokens: value["tokens"].as_u64(),
            cost_micros: value["cost_micros"].as_u64(),
            calls: value["calls"].as_u64().map(|calls| u32::try_from(calls).unwrap_or(u32::MAX)),
        }
    }

    pub const fn is_unlimited(self) -> bool {
        self.tokens.is_none() && self.cost_micros.is_none() && self.calls.is_none()
    }
}

/// What a run carries along that few runs have. Written with the run, kept out of its hot row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunOptions {
    /// Go on with what the thread stopped at, instead of starting from the plan's entry.
    pub command: Option<Command>,
    pub breaks: Breaks,
    pub budget: Budget,
    /// The checkpoint to start from, instead of the thread's head.
    pub base: Option<CheckpointId>,
    /// Told by HTTP when the run has ended.
    pub webhook: Option<String>,
    /// Say in the log what each of several calls of a superstep wrote, for readers that show it.
    pub detailed: bool,
    /// Supersteps that the run may take, instead of the plan's limit.
    pub max_steps: Option<u32>,
    /// What its caller set for this run alone: prompts, templates and nodes can read it.
    pub context: Map<String, Value>,
}

impl RunOptions {
    /// Whether the run is started and driven like one without options.
    pub fn is_plain(&self) -> bool {
        // Named one by one: whoever adds an option has to say here what it means.
        let Self { command, breaks, budget, base, webhook, detailed: _, max_steps: _, context: _ } =
            self;
        command.is_none()
            && *breaks == Breaks::default()
            && budget.is_unlimited()
            && base.is_none()
            && webhook.is_none()
    }

    /// Whether there is nothing to keep.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// As stored; `{}` when empty.
    pub fn to_json(&self) -> Value {
        let mut object = Map::new();
        if let Some(command) = &self.command {
            object.insert("command".to_owned(), command.to_json());
        }
        let names = |names: &BTreeSet<Arc<str>>| {
            names.iter().map(|name| Value::from(&**name)).collect::<Value>()
        };
        if !self.breaks.before.is_empty() {
            object.insert("break_before".to_owned(), names(&self.breaks.before));
        }
        if !self.breaks.after.is_empty() {
            object.insert("break_after".to_owned(), names(&self.breaks.after));
        }
        if !self.budget.is_unlimited() {
            object.insert("budget".to_owned(), self.budget.to_json());
        }
        if let Some(base) = self.base {
            object.insert("base".to_owned(), base.to_string().into());
        }
        if let Some(webhook) = &self.webhook {
            object.insert("webhook".to_owned(), webhook.as_str().into());
        }
        if self.detailed {
            object.insert("detailed".to_owned(), true.into());
        }
        if let Some(max_steps) = self.max_steps {
            object.insert("max_steps".to_owned(), max_steps.into());
        }
        if !self.context.is_empty() {
            object.insert("context".to_owned(), self.context.clone().into());
        }
        Value::Object(object)
    }

    /// Reads what [`RunOptions::to_json`] wrote. `None` when it is damaged.
    pub fn from_json(value: &Value) -> Option<Self> {
        let names = |key: &str| match value.get(key) {
            None => Some(BTreeSet::new()),
            Some(names) => {
                names.as_array()?.iter().map(|name| name.as_str().map(Arc::from)).collect()
            }
        };
        Some(Self {
            command: match value.get("command") {
                None => None,
                Some(command) => Some(Command::from_json(command)?),
            },
            breaks: Breaks { before: names("break_before")?, after: names("break_after")? },
            budget: Budget::from_json(&value["budget"]),
            base: match value.get("base") {
                None => None,
                Some(base) => Some(base.as_str()?.parse().ok()?),
            },
            webhook: value["webhook"].as_str().map(ToOwned::to_owned),
            detailed: value["detailed"] == true,
            max_steps: value["max_steps"].as_u64().and_then(|most| u32::try_from(most).ok()),
            context: value["context"].as_object().cloned().unwrap_or_default(),
        })
    }
}

/// How long and for what a run waits without a slot.
#[derive(Clone, Debug, PartialEq)]
pub struct Parked {
    pub park: Park,
    pub since: Timestamp,
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
    pub options: RunOptions,

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
    /// While it is `waiting`.
    pub parked: Option<Parked>,
    /// Its supersteps were taken back: it is not part of the thread's history any more.
    pub rolled_back: bool,

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

impl RunRecord {
    /// The checkpoint that it begins with, if it begins with one ([`Command::takes_in`]): known before
    /// it is committed, and the same whoever takes the run up. `base` is where the run goes on from:
    /// what its options say, else its thread's head.
    pub fn first_checkpoint(&self, base: Option<CheckpointId>) -> CheckpointId {
        let at = match self.options.base {
            None => self.id.made_at().unwrap_or(self.created_at),
            // Behind everything on the thread, not only behind its base. Ids are finer than the clock.
            Some(_) => self.started_at.unwrap_or(self.created_at).plus(Duration::from_millis(1)),
        };
        CheckpointId::first_of(self.id, at, base)
    }

    /// Whether the first thing that it does is to write.
    pub fn takes_in(&self) -> bool {
        self.options.command.as_ref().is_none_or(Command::takes_in)
    }
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
