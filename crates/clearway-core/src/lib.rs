//! What happens in Clearway, without doing any of it.
//!
//! This crate holds the words every other crate uses (ids, threads, runs, events, messages,
//! deadlines), the rules for state (channels and reducers), the graph planner, and the run state
//! [`machine`]: inputs in, effects out.
//!
//! **Invariant:** no IO, no clock, no randomness, no async runtime. `now` and new ids are arguments.
//! That is what lets tests drive a run through a hundred thousand histories in seconds.
//!
//! Not here: SQL (`clearway-store`), provider JSON (`clearway-upstream`), HTTP (`clearway-server`),
//! and anything that waits (`clearway-engine`).
//!
//! Start reading at [`machine`], then [`log`] and [`channel`].

pub mod attempt;
pub mod channel;
pub mod code;
pub mod event;
pub mod id;
pub mod journal;
pub mod log;
pub mod machine;
pub mod message;
pub mod plan;
pub mod run;
pub mod thread;
pub mod time;
pub mod wait;

pub use attempt::{AttemptRecord, AttemptsOf};
pub use code::{Code, Failure};
pub use event::{Event, EventKind};
pub use id::{CheckpointId, EventId, InstanceId, RunId, TaskId, ThreadId};
pub use message::Message;
pub use run::{Priority, RunRecord, Status};
pub use time::{Clock, Deadline, Timestamp};
