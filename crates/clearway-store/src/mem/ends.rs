//! Ends, and what follows from them.

use std::collections::VecDeque;

use clearway_core::event::Event;
use clearway_core::{RunId, RunRecord, Status, ThreadId, Timestamp};

use super::data::{Data, RunRow};
use crate::rules::{self, Ending};
use crate::{CancelMode, Cancelled, Reset, Swept};

/// What an end makes ready.
pub(super) struct Follows {
    /// The next run of the thread.
    pub(super) promoted: Option<RunId>,
    /// The parent.
    pub(super) woken: Option<RunId>,
}

/// Whether the thread was the run's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    Yes,
    No,
}

impl Data {
    pub(super) fn cancel_run(
        &mut self,
        run: RunId,
        by: &str,
        mode: CancelMode,
        now: Timestamp,
    ) -> Cancelled {
        let Some(row) = self.runs.get(&run) else { return Cancelled::NotFound };
        if row.record.status.is_terminal() {
            return Cancelled::AlreadyEnded { record: Box::new(row.record.clone()) };
        }
        let outcome = self.cancel_unfinished(run, by, mode, now);
        if matches!(outcome, Cancelled::Ended { .. }) {
            self.cancel_children(run, now);
        }
        self.synced();
        outcome
    }

    fn cancel_unfinished(
        &mut self,
        run: RunId,
        by: &str,
        mode: CancelMode,
        now: Timestamp,
    ) -> Cancelled {
        let row = self.row(run);
        row.rollback |= mode == CancelMode::Rollback;
        if row.record.status == Status::Running {
            row.record.cancel_requested = true;
            return Cancelled::Requested { run, instance: row.record.instance };
        }
        let (record, events, promoted) = self.end_queued(run, Ending::Cancelled { by }, now);
        Cancelled::Ended { record: Box::new(record), events, promoted }
    }

    pub(super) fn cancel_children(&mut self, parent: RunId, now: Timestamp) -> Vec<Cancelled> {
        let mut told = Vec::new();
        let mut parents = VecDeque::from([parent]);
        while let Some(parent) = parents.pop_front() {
            let room = rules::ORPHANS_AT_ONCE - told.len();
            let unfinished = |child: &RunId| {
                // Its thread may have been deleted.
                self.runs.get(child).is_some_and(|RunRow { record, .. }| {
                    let told = record.status == Status::Running && record.cancel_requested;
                    !record.status.is_terminal() && !told
                })
            };
            let children = self.runs[&parent].children.iter().copied();
            let mut children: Vec<RunId> = children.filter(unfinished).take(room + 1).collect();
            if children.len() > room {
                children.truncate(room);
                self.row(parent).orphans = true;
            }
            for child in children {
                let began = self.runs[&child].record.attempt > 0;
                let outcome = self.cancel_unfinished(child, "parent", CancelMode::Keep, now);
                if began && matches!(outcome, Cancelled::Ended { .. }) {
                    parents.push_back(child);
                }
                told.push(outcome);
            }
        }
        told
    }

    pub(super) fn tell_orphans(&mut self, swept: &mut Swept, now: Timestamp) {
        let bereft: Vec<RunId> =
            self.runs.iter().filter(|(_, row)| row.orphans).map(|(run, _)| *run).collect();
        for parent in bereft {
            self.row(parent).orphans = false;
            rules::add_ended(&mut swept.expired, self.cancel_children(parent, now));
        }
    }

    pub(super) fn expire(&mut self, run: RunId, swept: &mut Swept, now: Timestamp) {
        if !self.runs[&run].record.status.is_terminal() {
            let (record, events, _) = self.end_queued(run, Ending::Expired, now);
            swept.expired.push((record, events));
            rules::add_ended(&mut swept.expired, self.cancel_children(run, now));
        }
    }

    pub(super) fn reset_thread(&mut self, thread: ThreadId, now: Timestamp) -> Option<Reset> {
        let row = self.threads.get_mut(&thread)?;
        row.record.generation += 1;
        row.record.head = None;
        row.record.updated_at = now;
        let generation = row.record.generation;
        // Blocked ones first, so that the active one's end promotes none of them.
        let mut runs: Vec<RunId> =
            row.runs.iter().copied().filter(|run| self.blocked.contains(run)).collect();
        runs.extend(row.record.active_run);
        self.journal.retain(|(of, _, _), _| *of != thread);
        let cancel = |run| self.cancel_run(run, "reset", CancelMode::Keep, now);
        let cancelled = runs.into_iter().map(cancel).collect();
        self.synced();
        Some(Reset { generation, cancelled })
    }

    /// Ends a run that is not running; its children are the caller's business.
    fn end_queued(
        &mut self,
        run: RunId,
        why: Ending<'_>,
        now: Timestamp,
    ) -> (RunRecord, Vec<Event>, Option<RunId>) {
        let row = self.row(run);
        let before = row.record.status;
        let events = rules::end_queued(&mut row.record, why, now);
        row.log.push(rules::segment(&events));
        let after = row.record.status;
        self.moved(run, Some(before), after);
        let held = if before == Status::Blocked { Held::No } else { Held::Yes };
        let Follows { promoted, .. } = self.follow(run, held, now);
        (self.runs[&run].record.clone(), events, promoted)
    }

    /// Does what follows from an end, except for the run's children.
    pub(super) fn follow(&mut self, run: RunId, held: Held, now: Timestamp) -> Follows {
        let row = &self.runs[&run];
        let RunRecord { thread, parent, .. } = row.record;
        let (rollback, webhook) = (row.rollback, row.record.options.webhook.clone());
        if rollback {
            self.roll_back(run, now);
        }
        self.forget_notes(run, held, rollback);
        if let Some(url) = webhook {
            self.library.deliver(run, url, now);
        }
        let promoted = if held == Held::Yes { self.free_thread(thread, now) } else { None };
        let woken = parent.and_then(|parent| self.tell_parent(parent, now));
        Follows { promoted, woken }
    }

    fn roll_back(&mut self, run: RunId, now: Timestamp) {
        let row = self.row(run);
        row.record.rolled_back = true;
        let (base, generation, thread) = (row.base.take(), row.generation, row.record.thread);
        if row.record.checkpoint.take().is_none() {
            return;
        }
        self.checkpoints.retain(|_, row| row.run != Some(run));
        let thread = self.threads.get_mut(&thread).expect("every run has its thread");
        if generation == thread.record.generation {
            thread.record.head = base;
            thread.record.updated_at = now;
        }
    }

    fn tell_parent(&mut self, parent: RunId, now: Timestamp) -> Option<RunId> {
        let row = self.runs.get_mut(&parent)?;
        match (row.record.status, &row.record.parked) {
            (Status::Waiting, Some(parked)) if parked.park.on_child => {
                self.wake_up(parent, now);
                Some(parent)
            }
            (Status::Running, _) => {
                row.woken = true;
                None
            }
            _ => None,
        }
    }

    /// The active run ended: the next one of the thread gets ready.
    fn free_thread(&mut self, thread: ThreadId, now: Timestamp) -> Option<RunId> {
        let row = self.threads.get_mut(&thread).expect("every run has its thread");
        let next = row
            .runs
            .iter()
            .filter(|run| self.blocked.contains(run))
            .min_by_key(|run| {
                let row = &self.runs[run];
                rules::blocked_order(row.front, row.record.thread_ord)
            })
            .copied();
        row.record.active_run = next;
        row.record.updated_at = now;
        if let Some(next) = next {
            rules::promote(&mut self.row(next).record, now);
            self.moved(next, Some(Status::Blocked), Status::Ready);
        }
        next
    }
}
