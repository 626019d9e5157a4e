//! Who does it, and when.
//!
//! The [`Engine`] accepts runs, claims them into pools with slots, drives each one's
//! [`Machine`](clearway_core::machine::Machine) in a task of its own, and fans out the events. Every
//! door, the console and the command line are views of what stands here.
//!
//! Start reading at [`Engine::submit`], then `executor.rs` (one run's task) and `live.rs` (its log
//! and its readers).
//!
//! **Invariant:** a run's work and side effects live in a task the engine owns, never in a request
//! handler: a client that leaves drops only its view.
//!
//! Not here: SQL, HTTP, provider formats, configuration files.

mod admission;
pub mod agent;
mod alerts;
mod api;
mod assistants;
mod cache;
mod calls;
pub mod chat;
mod clock;
mod control;
mod crons;
mod ctx;
mod dispatcher;
mod durable;
mod engine;
mod executor;
mod gate;
mod health;
mod items;
pub mod knowledge;
mod lanes;
mod ledger;
mod lifetime;
mod live;
mod metadata;
pub mod metrics;
mod pools;
mod schedules;
mod started;
mod subscription;
mod tasks;
mod threads;
pub mod tool;
mod trace;
mod watchdog;
mod webhooks;

pub use agent::{
    Agent, Agents, Expiry, InputCheck, Node, NodeError, NodePolicy, OnError, OnOutage, Retry,
};
pub use alerts::{Alert, Alerts, Measure};
pub use api::*;
pub use assistants::{AssistantChange, AssistantSettings};
pub use clock::{Clocks, Ids};
pub use control::{
    Attention, Decision, Needs, Question, StateChange, Undecided, Which, next_nodes,
};
pub use crons::{Cron, CronStart, NewCron, parse_time};
pub use ctx::{Ctx, Mark, Reserved};
pub use durable::{ActionError, Child, ChildEnd, Effect, Look, hex};
pub use engine::Engine;
pub use health::{Health, Pulse};
pub use items::{ItemIndex, ItemSpec, Use};
pub use knowledge::{Knowledge, KnowledgeOptions};
pub use lanes::Lanes;
pub use lifetime::{AfterLife, ThreadTtl};
pub use schedules::{CronSpec, next_time};
pub use subscription::{Batch, From, Subscription};
pub use tasks::Tasks;
pub use threads::{EPHEMERAL, ThreadWatch};
pub use watchdog::{Lag, Watchdog};
pub use webhooks::Webhooks;

// What the doors and the façade need from below, so that they depend on the engine alone.
pub use clearway_store::{
    ArtifactRecord, ArtifactScope, Assistant, CancelMode, CheckpointRecord, Collection, Condition,
    DocumentRecord, DocumentState, FileRecord, FoundItem, Idempotency, Item, ItemScope, ItemSearch,
    Keep, LastRun, NamespaceQuery, NewThread, PoolCount, Pruned, QueuePosition, RunDeleted,
    RunPage, RunQuery, Schedule, ScheduleQuery, Stand, StepRecord, Store, StoreInfo, Test,
    ThreadMade, ThreadOverview, ThreadPage, ThreadQuery, ThreadSearch, ThreadSort, ThreadState,
    ThreadStorage,
};
pub use clearway_upstream as upstream;
