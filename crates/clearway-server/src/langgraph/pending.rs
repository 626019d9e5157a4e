//! What a run has taken in and not committed yet.
//!
//! A run's input commits with its first superstep. Until then readers are shown what that commit will
//! say: the run's row is durable, and everything here follows from it and from where its thread stands.

use clearway_core::channel::State as Channels;
use clearway_core::machine::Source;
use clearway_core::plan::Frontier;
use clearway_core::{CheckpointId, Status};
use clearway_engine::{ThreadOverview, ThreadState};

use super::facts::Facts;
use crate::Problem;
use crate::app::App;

/// A checkpoint to come.
#[derive(Debug)]
pub(super) struct Pending {
    /// The state that the run began from.
    pub(super) before: Channels,
    /// The checkpoint as it will be.
    pub(super) found: ThreadState,
}

/// What the active run of a thread has taken in, as long as that is not committed.
///
/// # Errors
/// `store_unavailable`.
pub(super) async fn pending(
    app: &App,
    overview: &ThreadOverview,
) -> Result<Option<Pending>, Problem> {
    let Some(active) = overview.record.active_run else { return Ok(None) };
    let Ok(view) = app.engine.run(active).await else { return Ok(None) };
    let record = view.record;
    let facts = Facts::of(app, &record);
    let (Some(source), Status::Running, None) = (facts.source(), record.status, record.checkpoint)
    else {
        return Ok(None);
    };
    let base = record.options.base.or(overview.record.head);
    let (before, frontier) = match base {
        None => (Channels::new(), Frontier::default()),
        Some(base) => match app.engine.state_at(record.thread, Some(base)).await? {
            Some(found) => (found.state, found.frontier),
            None => return Ok(None),
        },
    };
    // Input that does not fit ends the run at once.
    let Some(state) = facts.taken_in(&before) else { return Ok(None) };
    let mut next = Frontier { due: facts.first_due(&frontier), ..Frontier::default() };
    next.depth = frontier.depth + facts.begins();
    let found = ThreadState {
        state,
        checkpoint: record.first_checkpoint(base),
        parent: base,
        run: Some(record.id),
        step: -1,
        source,
        frontier: next,
        journal: Vec::new(),
        created_at: record.started_at.unwrap_or(record.created_at),
    };
    Ok(Some(Pending { before, found }))
}

impl Pending {
    pub(super) const fn id(&self) -> CheckpointId {
        self.found.checkpoint
    }

    pub(super) fn is_input(&self) -> bool {
        self.found.source == Source::Input
    }
}
