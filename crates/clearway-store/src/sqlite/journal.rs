//! Notes of calls and signals to runs, on disk.
//!
//! A note belongs to a thread and a task. What a run has no more use for is deleted when the run
//! wrote it; what it found is only marked, because a rollback of the run needs it again. Marked notes
//! are in no answer, and go when the run ends.
//!
//! **Invariant:** a thread without an active run has notes only of the calls of its head.

use std::collections::BTreeSet;

use clearway_core::journal::Entry;
use clearway_core::{RunId, Status, TaskId};
use rusqlite::{Connection, OptionalExtension, Row};

use super::fail::Fail;
use super::rows::{self, Id, blob, pack, unpack};
use super::writer::{Operation, Tx};
use crate::{Journaled, rules};

/// All notes of a thread that are of use.
pub(super) fn read(conn: &Connection, thread: i64) -> rusqlite::Result<Vec<Entry>> {
    conn.prepare_cached(READ)?.query_map([thread], entry)?.collect()
}

pub(super) const READ: &str = "SELECT task, key, data FROM journal
     WHERE thread = ?1 AND settled IS NULL ORDER BY task, key";

fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    let data = unpack(blob(row, 2)?)?;
    Ok(Entry {
        task: TaskId(row.get::<_, Id>(0)?.0),
        key: row.get(1)?,
        data: rows::from_json(&data)?,
    })
}

/// Adds notes that a run makes or gets (0 is none); one that is there already stands.
pub(super) fn add(tx: &Tx<'_>, thread: i64, run: i64, entries: &[Entry]) -> Result<(), Fail> {
    let mut added = 0;
    for entry in entries {
        added += tx.run(
            "INSERT INTO journal (thread, task, key, data, run) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT DO NOTHING",
            (thread, Id(entry.task.0), &entry.key, pack(&rules::note_data(entry)?), run),
        )?;
    }
    if added > 0 {
        let count: i64 = tx.conn.prepare_cached(COUNT)?.query_row([thread], |row| row.get(0))?;
        rules::check_notes(usize::try_from(count).unwrap_or(usize::MAX))?;
    }
    Ok(())
}

pub(super) const COUNT: &str = "SELECT count(*) FROM journal WHERE thread = ?1";

/// A run has no more use for a call's notes.
pub(super) fn settle(tx: &Tx<'_>, thread: i64, run: i64, task: TaskId) -> rusqlite::Result<()> {
    let key = (thread, Id(task.0), run);
    tx.run("DELETE FROM journal WHERE thread = ?1 AND task = ?2 AND run = ?3", key)?;
    tx.run(
        "UPDATE journal SET settled = ?3 WHERE thread = ?1 AND task = ?2 AND settled IS NULL",
        key,
    )?;
    Ok(())
}

/// A change from outside any run leaves no use for a call's notes.
pub(super) fn delete(tx: &Tx<'_>, thread: i64, task: TaskId) -> rusqlite::Result<()> {
    tx.run("DELETE FROM journal WHERE thread = ?1 AND task = ?2", (thread, Id(task.0)))?;
    Ok(())
}

/// A run that has not held its thread yet ended.
pub(super) fn forget_queued(tx: &Tx<'_>, thread: i64, run: i64) -> rusqlite::Result<()> {
    tx.run("DELETE FROM journal WHERE thread = ?1 AND run = ?2", (thread, run))?;
    Ok(())
}

/// The run that held the thread ended; the thread's head is where it stays.
pub(super) fn forget(
    tx: &Tx<'_>,
    thread: i64,
    run: i64,
    rolled_back: bool,
) -> rusqlite::Result<()> {
    let tasks = tx
        .conn
        .prepare_cached(TASKS)?
        .query_map([thread], |row| row.get::<_, Id>(0))?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    if tasks.is_empty() {
        return Ok(());
    }
    if rolled_back {
        forget_queued(tx, thread, run)?;
        let sql = "UPDATE journal SET settled = NULL WHERE thread = ?1 AND settled = ?2";
        tx.run(sql, (thread, run))?;
    } else {
        tx.run("DELETE FROM journal WHERE thread = ?1 AND settled = ?2", (thread, run))?;
    }
    let due: BTreeSet<TaskId> = tx
        .conn
        .prepare_cached(
            "SELECT c.next, c.step FROM threads t JOIN checkpoints c ON c.n = t.head
             WHERE t.n = ?1",
        )?
        .query_row([thread], |row| rows::frontier(row, 0, None, row.get(1)?))
        .optional()?
        .map(|frontier| frontier.due.iter().map(|due| due.task).collect())
        .unwrap_or_default();
    let mut unfinished =
        tx.conn.prepare_cached("SELECT 1 FROM runs WHERE id = ?1 AND status < 4")?;
    for task in tasks {
        // Signals to runs that wait behind this one stay.
        if !due.contains(&TaskId(task.0)) && !unfinished.exists([task])? {
            delete(tx, thread, TaskId(task.0))?;
        }
    }
    Ok(())
}

pub(super) const TASKS: &str = "SELECT DISTINCT task FROM journal WHERE thread = ?1";

/// Notes of a running run, by its owner.
pub(super) struct Keep {
    pub(super) run: RunId,
    pub(super) fence: u32,
    pub(super) entries: Vec<Entry>,
}

impl Operation for Keep {
    type Answer = Journaled;
    const DURABLE: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<Journaled, Fail> {
        let found = tx
            .conn
            .prepare_cached(
                "SELECT n, thread FROM runs WHERE id = ?1 AND status = ?2 AND fence = ?3",
            )?
            .query_row((Id(self.run.0), rows::status_number(Status::Running), self.fence), |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()?;
        let Some((run, thread)) = found else { return Ok(Journaled::Fenced) };
        add(tx, thread, run, &self.entries)?;
        Ok(Journaled::Stored)
    }
}
