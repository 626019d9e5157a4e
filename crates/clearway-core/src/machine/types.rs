//! What goes into the machine and what comes out of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Map, Value};
use uuid::Uuid;

use crate::channel::{Op, State, Write};
use crate::event::Fact;
use crate::journal::{self, Entry, Journal, Notes};
use crate::plan::{Due, Frontier, Goto, Plan};
use crate::run::Usage;
use crate::wait::WaitKind;
use crate::{CheckpointId, Failure, RunId, Status, TaskId, Timestamp};

/// Everything a claim knows about a run.
#[derive(Clone, Debug)]
pub struct Start {
    pub run: RunId,
    pub plan: Arc<Plan>,
    /// The thread's state at its head.
    pub state: State,
    /// From 1; above 1, earlier output may be lost.
    pub attempt: u32,
    /// Takeovers and restarts since the last committed superstep.
    pub fruitless: u32,
    /// Last committed superstep, -1 before the first.
    pub step: i64,
    /// What the thread's head goes on with: after a committed superstep of this run, or for a run
    /// that continues where another one stopped.
    pub frontier: Frontier,
    /// What the calls of that frontier, or of this run's first superstep, left behind.
    pub journal: Journal,
    /// The run's input is part of the thread's state already.
    pub taken_in: bool,
    /// Number that the next commit must carry.
    pub commits: u64,
    /// `next_seq` at the last durable commit.
    pub committed_seq: u64,
    /// Whether the log holds output since then.
    pub has_void_output: bool,
    /// Writes before the first superstep.
    pub input: Vec<Write>,
    /// Go on with the frontier instead of starting from the plan's entry.
    pub command: Option<Command>,
    pub breaks: Breaks,
    /// Say in the log what each of several calls of a superstep wrote.
    pub detailed: bool,
    /// The checkpoint that the run begins with, for readers who are to know of it before it commits.
    pub first: Option<CheckpointId>,
    /// Supersteps that the run may take; `None` leaves it to the plan.
    pub max_steps: Option<u32>,
    /// A cancel was asked for before the claim.
    pub cancel_requested: bool,
    /// The reply that an earlier superstep committed.
    pub reply: Option<Uuid>,
    /// The run cannot be taken up at all (its state is damaged, say): it ends with this.
    pub failed: Option<Failure>,
}

/// How a run goes on with what a thread stopped at.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Command {
    /// Answers to questions that calls asked.
    pub resume: Option<Resume>,
    /// Writes before the next superstep.
    pub update: Vec<Write>,
    /// Where to go on instead of what is due.
    pub goto: Option<Vec<Goto>>,
    /// The state is an earlier one: what was done from there is done anew, under new ids.
    pub fork: bool,
    /// An answer that nobody waits for is passed over, and the run goes on with what is due.
    pub lenient: bool,
}

/// Answers to questions.
#[derive(Clone, Debug, PartialEq)]
pub enum Resume {
    /// To every open question.
    All(Value),
    /// By interrupt id.
    ById(BTreeMap<Uuid, Value>),
}

impl Command {
    /// Whether it changes the thread before the next superstep, which makes a checkpoint.
    pub fn takes_in(&self) -> bool {
        self.fork || self.goto.is_some() || !self.update.is_empty()
    }

    /// `{resume?, resume_by_id?, update?, goto?, fork?, lenient?}`, as stored with the run.
    pub fn to_json(&self) -> Value {
        let mut object = Map::new();
        match &self.resume {
            None => {}
            Some(Resume::All(value)) => {
                object.insert("resume".to_owned(), value.clone());
            }
            Some(Resume::ById(values)) => {
                let values = values.iter().map(|(id, value)| (id.to_string(), value.clone()));
                object.insert("resume_by_id".to_owned(), Value::Object(values.collect()));
            }
        }
        if !self.update.is_empty() || self.goto.is_some() {
            let steps = Output {
                writes: self.update.clone(),
                goto: self.goto.clone(),
                ..Output::default()
            };
            object.insert("update".to_owned(), journal::output_to_json(&steps));
        }
        for (name, on) in [("fork", self.fork), ("lenient", self.lenient)] {
            if on {
                object.insert(name.to_owned(), true.into());
            }
        }
        Value::Object(object)
    }

    /// Reads what [`Command::to_json`] wrote. `None` when it is damaged.
    pub fn from_json(value: &Value) -> Option<Self> {
        let object = value.as_object()?;
        let resume = match (object.get("resume"), object.get("resume_by_id")) {
            (Some(value), _) => Some(Resume::All(value.clone())),
            (None, Some(values)) => {
                let values = values.as_object()?.iter();
                let values = values.map(|(id, value)| Some((id.parse().ok()?, value.clone())));
                Some(Resume::ById(values.collect::<Option<_>>()?))
            }
            (None, None) => None,
        };
        let update = match object.get("update") {
            None => Output::default(),
            Some(update) => journal::output_from_json(update)?,
        };
        let on = |name: &str| object.get(name).is_some_and(|on| *on == true);
        let (fork, lenient) = (on("fork"), on("lenient"));
        Some(Self { resume, update: update.writes, goto: update.goto, fork, lenient })
    }
}

/// Nodes before or after which a run stops, for somebody to look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Breaks {
    pub before: BTreeSet<Arc<str>>,
    pub after: BTreeSet<Arc<str>>,
}

/// Why a run waits without a slot, and until when.
#[derive(Clone, Debug, PartialEq)]
pub struct Park {
    pub kind: WaitKind,
    /// For what exactly.
    pub detail: String,
    /// When it is taken up by itself; `None` waits for a signal, an operator or a child's end.
    pub wake_at: Option<Timestamp>,
    /// Whether the end of a child run takes it up.
    pub on_child: bool,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A call ended well.
    CallDone { call: u32, output: Output },
    /// A call asks a person.
    CallInterrupted { call: u32, value: Value },
    /// A call cannot go on yet and will be made again later.
    CallParked { call: u32, park: Park },
    /// The output of a finished call is durable.
    Kept { call: u32 },
    /// Make parked calls again: what they wait for may have come.
    Wake,
    /// Somebody wrote into the journal: answers, signals, decisions.
    Noted { entries: Vec<Entry> },
    /// A call failed for good.
    CallFailed { call: u32, failure: Failure },
    /// A call that was told to abort is gone.
    CallAborted { call: u32, receipt: Receipt },
    /// Somebody wants it to end.
    Cancel { by: String },
    /// The deadline passed; the failure says where the time went.
    DeadlineReached { failure: Failure },
    /// The run cannot go on for a reason outside its calls (limits of the log, say).
    Abandon { failure: Failure },
    /// The server stops: hand the run back.
    Drain,
    /// The commit is durable. `cancel_requested` is what the store found on the row.
    Committed { cancel_requested: bool },
    /// Another instance owns the run.
    Fenced,
}

/// What a finished call leaves.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Output {
    pub writes: Vec<Write>,
    /// Where to go on; `None` follows the plan's edges.
    pub goto: Option<Vec<Goto>>,
    /// The message that is this call's reply, if it made one.
    pub reply: Option<Uuid>,
    pub usage: Usage,
}

/// Proof of how a call was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// A provider connection was open and is closed now.
    pub socket_closed: bool,
}

/// What to do.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Append to the log, visible at once.
    Show(Fact),
    /// Append to the log, visible when the next commit is durable.
    Record(Fact),
    /// Begin a node call. Its index is unique within the lease, except that a parked call is made
    /// again under the same one.
    StartCall(Box<StartCall>),
    /// Write a finished call's output to the journal, then answer [`Input::Kept`]. The next commit
    /// must not overtake it.
    Keep { call: u32, entry: Entry },
    /// Some call is parked while others run: feed [`Input::Wake`] at this time.
    WakeAt(Timestamp),
    /// Drop the call's future, then answer with [`Input::CallAborted`].
    AbortCall { call: u32 },
    /// Make everything recorded so far durable, then answer [`Input::Committed`] or
    /// [`Input::Fenced`].
    Commit(Box<Commit>),
    /// The machine is done; nothing more is to be fed to it.
    Stop(Stopped),
}

/// A call to be made.
#[derive(Clone, Debug)]
pub struct StartCall {
    pub call: u32,
    pub due: Due,
    pub step: i64,
    /// Answers of people so far.
    pub answers: Vec<Value>,
    /// What the call noted before.
    pub notes: Notes,
    /// What was noted for the run as a whole: signals, under its own id.
    pub signals: Notes,
    /// Its superstep has other calls.
    pub parallel: bool,
}

/// One fenced transaction.
#[derive(Clone, Debug, PartialEq)]
pub struct Commit {
    /// The row's commit count must equal this; a second delivery is recognised by it.
    pub number: u64,
    /// Last superstep that is committed with this.
    pub step: i64,
    /// What is due after it; for a run that was stopped, what it did not finish.
    pub next: Frontier,
    /// Journal entries to keep, and calls whose entries are of no use any more.
    pub notes: Vec<Entry>,
    pub settled: Vec<TaskId>,
    /// New checkpoints, oldest first; each one's parent is the one before.
    pub checkpoints: Vec<Checkpoint>,
    pub outcome: Outcome,
    pub usage: Usage,
}

/// State as committed at the end of a superstep, as a difference to its parent.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    pub step: i64,
    pub source: Source,
    pub next: Frontier,
    pub deltas: Vec<Delta>,
}

/// One stored op with its version.
#[derive(Clone, Debug, PartialEq)]
pub struct Delta {
    pub channel: Arc<str>,
    pub version: u64,
    /// Version of the op before it on this channel; 0 for the first.
    pub previous: u64,
    pub op: Op,
}

/// What made a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A run's input.
    Input,
    /// A superstep.
    Loop,
    /// Somebody's change from outside, or with a command.
    Update,
    /// The beginning of a branch from an earlier checkpoint.
    Fork,
}

impl Source {
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Input, Self::Loop, Self::Update, Self::Fork]
            .into_iter()
            .find(|source| source.as_str() == text)
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Loop => "loop",
            Self::Update => "update",
            Self::Fork => "fork",
        }
    }
}

/// What a commit makes of the run.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The next superstep follows under the same lease.
    Continue,
    /// Give the lease back; the run is ready again.
    Release,
    /// Wait without a slot, then be ready again.
    Park(Park),
    End {
        status: Status,
        failure: Option<Failure>,
        reply: Option<Uuid>,
    },
}

/// Why the machine is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    Ended,
    Released,
    Parked,
    Fenced,
}
