//! Notes of calls, and what is done from outside to runs that wait.

use std::collections::BTreeSet;

use clearway_core::journal::Entry;
use clearway_core::plan::Frontier;
use clearway_core::run::Budget;
use clearway_core::wait::WaitKind;
use clearway_core::{Priority, RunId, RunRecord, Status, TaskId, ThreadId, Timestamp};
use uuid::Uuid;

use super::data::{Data, NoteRow};
use super::ends::Held;
use crate::error::Result;
use crate::{Journaled, Woken, rules};

/// A note that is not there yet.
type NewNote = (TaskId, String, Vec<u8>);

impl Data {
    // ## Notes

    /// All notes of a thread that are of use.
    pub(super) fn notes(&self, thread: ThreadId) -> Vec<Entry> {
        let first = (thread, TaskId(Uuid::nil()), String::new());
        let rows = self.journal.range(first..).take_while(|((of, _, _), _)| *of == thread);
        rows.filter(|(_, row)| row.settled.is_none())
            .map(|((_, task, key), row)| Entry {
                task: *task,
                key: key.clone(),
                data: serde_json::from_slice(&row.data).unwrap_or_default(),
            })
            .collect()
    }

    /// Those of a checkpoint's calls.
    pub(super) fn notes_of(&self, thread: ThreadId, frontier: &Frontier) -> Vec<Entry> {
        let due: BTreeSet<TaskId> = frontier.due.iter().map(|due| due.task).collect();
        let mut notes = self.notes(thread);
        notes.retain(|entry| due.contains(&entry.task));
        notes
    }

    pub(super) fn keep(&mut self, run: RunId, fence: u32, entries: &[Entry]) -> Result<Journaled> {
        let Some(row) = self.runs.get(&run) else { return Ok(Journaled::Fenced) };
        if row.record.status != Status::Running || row.record.fence != fence {
            return Ok(Journaled::Fenced);
        }
        let thread = row.record.thread;
        let notes = self.new_notes(thread, entries)?;
        self.add_notes(Some(run), thread, notes);
        self.synced();
        Ok(Journaled::Stored)
    }

    /// Those of `entries` that are not there yet.
    pub(super) fn new_notes(&self, thread: ThreadId, entries: &[Entry]) -> Result<Vec<NewNote>> {
        let mut notes: Vec<NewNote> = Vec::new();
        let mut keys = BTreeSet::new();
        for entry in entries {
            let data = rules::note_data(entry)?;
            let known = self.journal.contains_key(&(thread, entry.task, entry.key.clone()));
            if !known && keys.insert((entry.task, entry.key.as_str())) {
                notes.push((entry.task, entry.key.clone(), data));
            }
        }
        if !notes.is_empty() {
            let there = self.journal.keys().filter(|(of, _, _)| *of == thread).count();
            rules::check_notes(there + notes.len())?;
        }
        Ok(notes)
    }

    pub(super) fn add_notes(&mut self, run: Option<RunId>, thread: ThreadId, notes: Vec<NewNote>) {
        for (task, key, data) in notes {
            let row = NoteRow { data, run, settled: None };
            self.journal.insert((thread, task, key), row);
        }
    }

    /// A run has no more use for a call's notes.
    pub(super) fn settle(&mut self, run: RunId, thread: ThreadId, task: TaskId) {
        self.journal.retain(|(of, call, _), row| {
            let settled = (*of, *call) == (thread, task);
            if settled && row.run != Some(run) {
                row.settled.get_or_insert(run);
            }
            !settled || row.run != Some(run)
        });
    }

    /// The run ended; the thread's head is where it stays.
    pub(super) fn forget_notes(&mut self, run: RunId, held: Held, rolled_back: bool) {
        let thread = self.runs[&run].record.thread;
        let head = self.threads[&thread].record.head;
        let due: BTreeSet<TaskId> = head
            .map(|head| self.checkpoints[&head].next.due.iter().map(|due| due.task).collect())
            .unwrap_or_default();
        let runs = &self.runs;
        self.journal.retain(|(of, task, _), row| {
            if *of != thread {
                return true;
            }
            if held == Held::No {
                return row.run != Some(run);
            }
            if row.settled == Some(run) {
                row.settled = None;
                if !rolled_back {
                    return false;
                }
            }
            if rolled_back && row.run == Some(run) {
                return false;
            }
            // Signals to runs that wait behind this one stay.
            let unfinished =
                runs.get(&RunId(task.0)).is_some_and(|row| !row.record.status.is_terminal());
            due.contains(task) || unfinished
        });
    }

    // ## Runs that wait

    /// When parked runs go on by themselves.
    pub(super) fn parked(&self) -> impl Iterator<Item = (Timestamp, RunId)> {
        self.waiting.iter().filter_map(|run| {
            let parked = self.runs[run].record.parked.as_ref()?;
            Some((parked.park.wake_at?, *run))
        })
    }

    /// Takes up parked runs whose time has come; says whether there were any.
    pub(super) fn wake_due(&mut self, now: Timestamp) -> bool {
        let mut due: Vec<(Timestamp, RunId)> =
            self.parked().filter(|&(wake_at, _)| wake_at <= now).collect();
        due.sort_unstable();
        due.truncate(rules::EXPIRE_LIMIT);
        for &(_, run) in &due {
            self.wake_up(run, now);
        }
        !due.is_empty()
    }

    /// A parked run becomes ready.
    pub(super) fn wake_up(&mut self, run: RunId, now: Timestamp) {
        rules::wake(&mut self.row(run).record, now);
        self.moved(run, Some(Status::Waiting), Status::Ready);
    }

    pub(super) fn wake(&mut self, run: RunId, entries: &[Entry], now: Timestamp) -> Result<Woken> {
        let Some(row) = self.runs.get(&run) else { return Ok(Woken::NotFound) };
        if row.record.status.is_terminal() {
            return Ok(Woken::Ended(Box::new(row.record.clone())));
        }
        let thread = row.record.thread;
        let notes = self.new_notes(thread, entries)?;
        self.add_notes(Some(run), thread, notes);
        self.synced();
        Ok(self.tell(run, now))
    }

    /// An unfinished run is to look again at what it waits for.
    fn tell(&mut self, run: RunId, now: Timestamp) -> Woken {
        let row = self.row(run);
        match row.record.status {
            Status::Waiting => {
                self.wake_up(run, now);
                Woken::Ready(Box::new(self.runs[&run].record.clone()))
            }
            Status::Running => {
                row.woken = true;
                Woken::Running { instance: row.record.instance }
            }
            Status::Blocked
            | Status::Ready
            | Status::Success
            | Status::Error
            | Status::Timeout
            | Status::Cancelled => Woken::Queued,
        }
    }

    pub(super) fn set_budget(&mut self, run: RunId, budget: Budget, now: Timestamp) -> Woken {
        let Some(row) = self.runs.get_mut(&run) else { return Woken::NotFound };
        if row.record.status.is_terminal() {
            return Woken::Ended(Box::new(row.record.clone()));
        }
        row.record.options.budget = budget;
        let parked = row.record.parked.as_ref();
        let otherwise = parked.is_some_and(|parked| parked.park.kind != WaitKind::Budget);
        self.synced();
        if otherwise { Woken::Queued } else { self.tell(run, now) }
    }

    pub(super) fn set_priority(&mut self, run: RunId, priority: Priority) -> Option<RunRecord> {
        let record = &mut self.runs.get_mut(&run)?.record;
        if record.status.is_terminal() || record.status == Status::Running {
            return Some(record.clone());
        }
        let ready = record.status == Status::Ready;
        if ready {
            // Blocked runs are counted without their priorities.
            self.moved(run, Some(Status::Ready), Status::Blocked);
        }
        self.row(run).record.priority = priority;
        if ready {
            self.moved(run, Some(Status::Blocked), Status::Ready);
        }
        self.synced();
        Some(self.runs[&run].record.clone())
    }
}
