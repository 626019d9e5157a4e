//! Graphs in code: durable workflows whose nodes are async functions over a typed state.
//!
//! ```
//! use std::sync::Arc;
//! use clearway::graph::{Ctx, END, Graph, IntoNode, Local, NodeResult, State};
//!
//! #[derive(State)]
//! struct Count {
//!     #[channel(append)]
//!     seen: Vec<u32>,
//! }
//!
//! async fn step(_: Ctx, state: Arc<Count>) -> NodeResult<Count> {
//!     Ok(Count::update().seen([state.seen.len() as u32]).into())
//! }
//!
//! # fn main() -> Result<(), clearway::graph::Error> {
//! let graph = Graph::<Count>::builder("count")
//!     .node("step", step.retry(3))
//!     .start("step")
//!     .branch("step", ["step", END], |state: &Count| if state.seen.len() < 3 { "step" } else { END })
//!     .build()?;
//! # clearway::runtime(Some(1))?.block_on(async {
//! let local = Local::builder().graph(&graph).start().await?;
//! let end = local.run(&graph, "a thread", Count::update()).await?;
//! assert_eq!(end.state.seen, [0, 1, 2]);
//! # local.stop().await;
//! # Ok(()) })
//! # }
//! ```
//!
//! A run goes in *supersteps*: all nodes that are due run at the same time, each seeing the state as
//! it was before; what they write is combined by the channels' reducers and committed in one
//! transaction, together with what is due next. After a crash a run goes on behind its last commit.
//! So **a superstep commits exactly once, and a node's body runs at least once**: for what it does
//! outside, a node uses [`Ctx::write`], [`Ctx::step`] or [`Ctx::idempotency_key`].
//!
//! A typed graph compiles to the same untyped plan as a workflow of the configuration, and is run by
//! the same engine: [`Graph::agent`] is what a server takes, and [`Local`] is an engine without one.
//!
//! Not here: how a plan is executed (`clearway-engine`), and when which node is due
//! (`clearway_core::plan`).

mod build;
mod ctx;
mod error;
mod local;
mod node;
mod state;

pub use build::{Builder, Graph, Invalid, Problem, START};
pub use clearway_core::channel::Reducer;
pub use clearway_core::message::{Message, Role};
pub use clearway_core::plan::END;
pub use clearway_core::run::Budget;
pub use clearway_core::{Code, Failure, Priority, RunId, Status};
pub use clearway_engine::{ActionError, ArtifactRecord, Decision, Effect, Engine, Keep};
/// Makes a struct the state of a graph; see [`State`](trait@State).
pub use clearway_macros::State;
pub use ctx::Ctx;
pub use error::{Error, NodeResult};
pub use local::{End, Local, LocalBuilder, Question};
pub use node::{IntoNode, NodeSpec};
pub use state::{Fault, FaultError, Next, Route, State, To, Values, Writes, end, goto};

#[cfg(test)]
mod tests;
