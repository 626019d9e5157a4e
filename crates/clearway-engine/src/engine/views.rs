//! Runs as they are right now: the row, what it waits for, and its place in the queue.

use clearway_core::wait::{Spent, WaitKind, Waiting};
use clearway_core::{RunId, RunRecord, Status};
use clearway_store::QueuePosition;

use super::Inner;
use crate::RunView;
use crate::clock::instant;

impl Inner {
    pub(crate) async fn view(&self, record: RunRecord) -> RunView {
        let position = match queues(&record) {
            true => self.store.queue_position(record.id).await.ok().flatten(),
            false => None,
        };
        self.view_at(record, position)
    }

    pub(super) async fn views(&self, records: Vec<RunRecord>) -> Vec<RunView> {
        let queued: Vec<RunId> =
            records.iter().filter(|record| queues(record)).map(|record| record.id).collect();
        let positions = match queued.is_empty() {
            true => Vec::new(),
            // A list without places is better than none.
            false => self.store.queue_positions(queued).await.unwrap_or_default(),
        };
        let mut positions = positions.into_iter();
        let view = |record: RunRecord| {
            let position = queues(&record).then(|| positions.next().flatten()).flatten();
            self.view_at(record, position)
        };
        records.into_iter().map(view).collect()
    }

    fn view_at(&self, record: RunRecord, position: Option<QueuePosition>) -> RunView {
        if record.status.is_terminal() {
            return RunView { record, waiting: None, position: None, calls: Vec::new() };
        }
        let live = self.hub.get(record.id);
        let mut waiting = match &live {
            Some(live) => live.wait.read(instant()),
            None => self.waiting_in_store(&record),
        };
        if let Some(position) = &position
            && record.status == Status::Ready
        {
            waiting.eta = Some(self.queue_eta(&record.pool, position.pool_ahead));
        }
        if waiting.deadline.is_none() {
            let at = record.deadline_at.map(|at| self.clocks.instant_at(at));
            waiting.deadline = at.map(clearway_core::Deadline);
        }
        if let Some(at) = record.parked.as_ref().and_then(|parked| parked.park.wake_at) {
            waiting.eta = Some(at.since(self.clocks.now()));
        }
        let calls = live.map(|live| live.calls()).unwrap_or_default();
        RunView { record, waiting: Some(waiting), position, calls }
    }

    /// What a run waits for when only its row is known.
    fn waiting_in_store(&self, record: &RunRecord) -> Waiting {
        let (kind, detail) = waits_for(record);
        let since = match (&record.parked, record.status) {
            (Some(parked), _) => parked.since,
            (None, Status::Ready) => record.ready_at,
            (None, _) => record.created_at,
        };
        let for_ = self.clocks.now().since(since);
        let mut spent: Spent = record.spent.clone();
        spent.add(kind, for_);
        Waiting { kind, detail: detail.into(), for_, deadline: None, eta: None, spent }
    }
}

/// Whether a run has others ahead of it.
fn queues(record: &RunRecord) -> bool {
    matches!(record.status, Status::Blocked | Status::Ready)
}

/// What a waiting run's row says about its wait.
pub(super) fn waits_for(record: &RunRecord) -> (WaitKind, String) {
    match record.status {
        Status::Blocked => (WaitKind::Thread, "an earlier run of the thread".to_owned()),
        Status::Ready => (WaitKind::Slot, format!("pool {}", record.pool)),
        _ => match &record.parked {
            Some(parked) => (parked.park.kind, parked.park.detail.clone()),
            None => (WaitKind::Work, String::new()),
        },
    }
}
