//! What is known: a search index over a user's documents, made of words, latent vectors learned from the documents
//! themselves, vectors from a provider where there are any, and a graph of the entities that the texts name.
//!
//! Everything is pure: texts come in, a [`Snapshot`] comes out. A snapshot never changes; [`Index`] holds the current
//! one and is swapped atomically, so readers never wait for whoever builds the next. Whatever takes long is asked to
//! stop through a [`GoOn`].
//!
//! What must stay true: no IO, no clock, no randomness, no OS threads; a chunk outside the caller's [`Scope`] takes
//! part in nothing that the caller can see; any text is answered in bounded time.
//!
//! Not here: reading files, calling providers, storing rows, deadlines (`clearway-engine` and above).

pub mod eval;

mod chunk;
mod closer;
mod document;
mod graph;
mod latent;
mod lexical;
mod meaning;
mod outline;
mod parts;
mod rank;
mod search;
mod snapshot;
mod terms;
mod text;
mod vectors;
mod vocabulary;

pub use chunk::{ChunkOptions, chunk};
pub use document::{Chunk, ChunkHash, Document, Scope, Viewer, count_tokens};
pub use graph::{Edge, Entity, Graph, Neighbour, Node, Picture, Relation, Triple};
pub use outline::{Block, BlockKind, Outline};
pub use search::{Answer, Candidates, Explanation, Hit, Limits, Query, Scanned, Scores, Why};
pub use snapshot::{Index, IndexBuilder, Learn, Snapshot, Stats};

/// Asked now and then by whatever takes long: whether to go on. It answers `false` past a deadline or after a cancel.
pub type GoOn<'a> = &'a (dyn Fn() -> bool + Sync);

/// Never stops.
pub fn go_on() -> bool {
    true
}

/// Whoever asked for it said to stop; nothing came of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("stopped before it was done")]
pub struct Stopped;
