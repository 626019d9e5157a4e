//! Runs that change hands or end without anybody executing them (cancel, reset, promotion), and what
//! follows from any end.

use std::collections::VecDeque;

use clearway_core::event::{Event, Segment};
use clearway_core::{InstanceId, RunId, RunRecord, Status, ThreadId};
use rusqlite::{Connection, OptionalExtension};

use super::commit::Stand;
use super::fail::Fail;
use super::rows::{
    self, CANCEL, Id, ROLLBACK, Stored, int, ms, select_run, spent_text, status_number, stored,
    versions,
};
use super::writer::{Operation, Tx};
use super::{channels, journal, schedules, waiting};
use crate::counts::Move;
use crate::rules::{self, Ending};
use crate::{CancelMode, Cancelled, Reset, Swept};

pub(super) fn find(conn: &Connection, run: RunId) -> rusqlite::Result<Option<Stored>> {
    let mut statement = conn.prepare_cached(select_run!("WHERE r.id = ?1"))?;
    statement.query_row([Id(run.0)], stored).optional()
}

/// A run that is known to exist.
pub(super) fn find_by_n(conn: &Connection, n: i64) -> rusqlite::Result<Stored> {
    conn.prepare_cached(select_run!("WHERE r.n = ?1"))?.query_row([n], stored)
}

/// Writes what the rules changed in a run that is not parked (any more), and counts it. `before` is
/// the status it had.
pub(super) fn save(tx: &mut Tx<'_>, run: &Stored, before: Status) -> rusqlite::Result<()> {
    let record = &run.record;
    tx.run(
        "UPDATE runs SET status = ?2, fence = ?3, attempt = ?4, fruitless = ?5, instance = ?6,
             ready_at = ?7, started_at = ?8, ended_at = ?9, idle = ?10, spent = ?11, failure = ?12,
             next_seq = ?13, committed_seq = ?14, woken = 0, park = NULL, parked_at = NULL,
             wake_at = NULL
         WHERE n = ?1",
        (
            run.n,
            status_number(record.status),
            record.fence,
            record.attempt,
            record.fruitless,
            record.instance.map(|instance| Id(instance.0)),
            record.ready_at.0,
            record.started_at.map(|at| at.0),
            record.ended_at.map(|at| at.0),
            run.idle,
            spent_text(&record.spent),
            record.failure.as_ref().map(|failure| rows::text(&failure.to_json())),
            int(record.next_seq),
            int(record.committed_seq),
        ),
    )?;
    tx.moved(Move {
        pool: record.pool.clone(),
        tenant: record.tenant.clone(),
        priority: record.priority,
        from: Some(before),
        to: record.status,
    });
    Ok(())
}

pub(super) fn insert_segment(tx: &Tx<'_>, run: i64, segment: &Segment) -> rusqlite::Result<()> {
    tx.run(
        "INSERT INTO run_log (run, first_seq, end_seq, fence, at, bytes)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        (
            run,
            int(segment.first_seq),
            int(segment.end_seq),
            segment.fence,
            segment.at.0,
            &segment.bytes[..],
        ),
    )?;
    Ok(())
}

/// The active run of a thread ended, and left it where `stand` says, if it moved it: the next one gets
/// ready.
pub(super) fn free_thread(
    tx: &mut Tx<'_>,
    thread: i64,
    stand: Option<Stand>,
) -> rusqlite::Result<Option<RunId>> {
    let next: Option<i64> = tx
        .conn
        .prepare_cached(
            "SELECT n FROM runs INDEXED BY runs_blocked WHERE thread = ?1 AND status = 0
             ORDER BY front DESC, thread_ord LIMIT 1",
        )?
        .query_row([thread], |row| row.get(0))
        .optional()?;
    tx.run(
        "UPDATE threads SET active = ?2, updated_at = ?3, head = coalesce(?4, head),
             version = coalesce(?5, version)
         WHERE n = ?1",
        (
            thread,
            next,
            tx.now.0,
            stand.map(|stand| stand.head),
            stand.map(|stand| int(stand.version)),
        ),
    )?;
    let Some(next) = next else { return Ok(None) };
    let mut run = find_by_n(tx.conn, next)?;
    rules::promote(&mut run.record, tx.now);
    save(tx, &run, Status::Blocked)?;
    Ok(Some(run.record.id))
}

/// A run that has just ended, whatever ended it.
pub(super) struct End<'a> {
    pub(super) n: i64,
    pub(super) run: RunId,
    pub(super) thread: i64,
    pub(super) parent: Option<i64>,
    pub(super) webhook: Option<&'a str>,
    /// Whether the thread was its own.
    pub(super) held: bool,
    /// Whether what it committed is taken back.
    pub(super) rollback: bool,
    /// Where it leaves its thread, if that is still to be written.
    pub(super) stand: Option<Stand>,
}

/// What an end makes ready.
pub(super) struct Follows {
    /// The next run of the thread.
    pub(super) promoted: Option<RunId>,
    /// The parent.
    pub(super) woken: Option<RunId>,
}

/// Does what follows from an end, except for the run's children.
pub(super) fn follow(tx: &mut Tx<'_>, end: &End<'_>) -> Result<Follows, Fail> {
    if end.rollback {
        roll_back(tx, end)?;
    }
    if end.held {
        journal::forget(tx, end.thread, end.n, end.rollback)?;
    } else {
        journal::forget_queued(tx, end.thread, end.n)?;
    }
    if let Some(url) = end.webhook {
        schedules::deliver(tx, end.run, url)?;
    }
    let promoted = if end.held { free_thread(tx, end.thread, end.stand)? } else { None };
    let woken = match end.parent {
        Some(parent) => tell_parent(tx, parent)?,
        None => None,
    };
    Ok(Follows { promoted, woken })
}

/// Takes back what a run committed: its checkpoints go, and the thread's head is again where it was.
///
/// Their deltas stay until somebody prunes the thread. Snapshots of them would be in the way of new
/// ones.
fn roll_back(tx: &Tx<'_>, end: &End<'_>) -> rusqlite::Result<()> {
    let found = tx
        .conn
        .prepare_cached(
            "SELECT r.base, coalesce(c.versions, '{}'), r.generation = t.generation
             FROM runs r JOIN threads t ON t.n = r.thread LEFT JOIN checkpoints c ON c.n = r.base
             WHERE r.n = ?1 AND r.checkpoint IS NOT NULL",
        )?
        .query_row([end.n], |row| {
            Ok((row.get::<_, Option<i64>>(0)?, versions(row, 1)?, row.get::<_, bool>(2)?))
        })
        .optional()?;
    if let Some((base, versions, current)) = found {
        // A reset came in between: the head is not its any more.
        if current {
            let sql = "UPDATE threads SET head = ?2, updated_at = ?3 WHERE n = ?1";
            tx.run(sql, (end.thread, base, tx.now.0))?;
        }
        channels::forget_snapshots(tx, end.thread, &versions)?;
        tx.run("DELETE FROM checkpoints WHERE run = ?1", [end.n])?;
    }
    tx.run(
        "UPDATE runs SET checkpoint = NULL, base = NULL, rolled_back = 1 WHERE n = ?1",
        [end.n],
    )?;
    Ok(())
}

/// A child ended: a parent that waits for that is ready, one that runs will look before it waits.
fn tell_parent(tx: &mut Tx<'_>, parent: i64) -> rusqlite::Result<Option<RunId>> {
    // Its thread may have been deleted.
    let Some(mut parent) = find_by_n(tx.conn, parent).optional()? else { return Ok(None) };
    match (parent.record.status, &parent.record.parked) {
        (Status::Waiting, Some(parked)) if parked.park.on_child => {
            waiting::wake(tx, &mut parent)?;
            Ok(Some(parent.record.id))
        }
        (Status::Running, _) => {
            tx.run("UPDATE runs SET woken = 1 WHERE n = ?1", [parent.n])?;
            Ok(None)
        }
        _ => Ok(None),
    }
}

/// Ends a run that is not running; its children are the caller's business.
fn end_queued(
    tx: &mut Tx<'_>,
    mut run: Stored,
    why: Ending<'_>,
) -> Result<(RunRecord, Vec<Event>, Option<RunId>), Fail> {
    let before = run.record.status;
    let events = rules::end_queued(&mut run.record, why, tx.now);
    insert_segment(tx, run.n, &rules::segment(&events))?;
    save(tx, &run, before)?;
    let Stored { n, thread, parent, rollback, mut record, .. } = run;
    let end = End {
        n,
        run: record.id,
        thread,
        parent,
        webhook: record.options.webhook.as_deref(),
        held: before != Status::Blocked,
        rollback,
        stand: None,
    };
    let Follows { promoted, .. } = follow(tx, &end)?;
    if rollback {
        (record.checkpoint, record.rolled_back) = (None, true);
    }
    Ok((record, events, promoted))
}

/// A queued run's time is up, unless the end of one before it was its end, too.
pub(super) fn expire(tx: &mut Tx<'_>, n: i64, swept: &mut Swept) -> Result<(), Fail> {
    let run = find_by_n(tx.conn, n)?;
    if !run.record.status.is_terminal() {
        let (record, events, _) = end_queued(tx, run, Ending::Expired)?;
        swept.expired.push((record, events));
        rules::add_ended(&mut swept.expired, cancel_children(tx, n)?);
    }
    Ok(())
}

/// Asks a run to end; see [`crate::Store::cancel_run`].
pub(super) fn cancel(
    tx: &mut Tx<'_>,
    run: RunId,
    by: &str,
    mode: CancelMode,
) -> Result<Cancelled, Fail> {
    let Some(found) = find(tx.conn, run)? else { return Ok(Cancelled::NotFound) };
    if found.record.status.is_terminal() {
        return Ok(Cancelled::AlreadyEnded { record: Box::new(found.record) });
    }
    let n = found.n;
    let outcome = cancel_unfinished(tx, found, by, mode)?;
    if matches!(outcome, Cancelled::Ended { .. }) {
        cancel_children(tx, n)?;
    }
    Ok(outcome)
}

fn cancel_unfinished(
    tx: &mut Tx<'_>,
    mut run: Stored,
    by: &str,
    mode: CancelMode,
) -> Result<Cancelled, Fail> {
    run.rollback |= mode == CancelMode::Rollback;
    if run.record.status == Status::Running {
        let cancel = if run.rollback { ROLLBACK } else { CANCEL };
        tx.run("UPDATE runs SET cancel = ?2 WHERE n = ?1", (run.n, cancel))?;
        return Ok(Cancelled::Requested { run: run.record.id, instance: run.record.instance });
    }
    let (record, events, promoted) = end_queued(tx, run, Ending::Cancelled { by })?;
    Ok(Cancelled::Ended { record: Box::new(record), events, promoted })
}

/// A run ended without success: its children are told to end, and theirs; up to a bound, beyond
/// which sweeps go on.
pub(super) fn cancel_children(tx: &mut Tx<'_>, parent: i64) -> Result<Vec<Cancelled>, Fail> {
    let mut told = Vec::new();
    let mut parents = VecDeque::from([parent]);
    while let Some(parent) = parents.pop_front() {
        let room = rules::ORPHANS_AT_ONCE - told.len();
        let mut children = tx
            .conn
            .prepare_cached(CHILDREN)?
            .query_map((parent, room as i64 + 1), |row| row.get(0))?
            .collect::<rusqlite::Result<Vec<i64>>>()?;
        if children.len() > room {
            children.truncate(room);
            tx.run("UPDATE runs SET orphans = 1 WHERE n = ?1", [parent])?;
        }
        for child in children {
            let run = find_by_n(tx.conn, child)?;
            let began = run.record.attempt > 0;
            let outcome = cancel_unfinished(tx, run, "parent", CancelMode::Keep)?;
            if began && matches!(outcome, Cancelled::Ended { .. }) {
                parents.push_back(child);
            }
            told.push(outcome);
        }
    }
    Ok(told)
}

/// Unfinished children of run `?1` that nobody has told to end.
pub(super) const CHILDREN: &str = "SELECT n FROM runs INDEXED BY runs_children
     WHERE parent = ?1 AND status < 4 AND NOT (status = 2 AND cancel > 0) ORDER BY n LIMIT ?2";

#[derive(Debug)]
pub(super) struct Cancel {
    pub(super) run: RunId,
    pub(super) by: String,
    pub(super) mode: CancelMode,
}

impl Operation for Cancel {
    type Answer = Cancelled;
    const DURABLE: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<Cancelled, Fail> {
        cancel(tx, self.run, &self.by, self.mode)
    }
}

#[derive(Debug)]
pub(super) struct ResetThread(pub(super) ThreadId);

impl Operation for ResetThread {
    type Answer = Option<Reset>;
    const DURABLE: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<Option<Reset>, Fail> {
        let thread: Option<(i64, u32)> = tx
            .conn
            .prepare_cached(
                "UPDATE threads SET generation = generation + 1, head = NULL, updated_at = ?2
                 WHERE id = ?1 RETURNING n, generation",
            )?
            .query_row((Id(self.0.0), tx.now.0), |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let Some((thread, generation)) = thread else { return Ok(None) };
        tx.run("DELETE FROM journal WHERE thread = ?1", [thread])?;
        // Blocked ones first, so that the active one's end promotes none of them.
        let runs = tx
            .conn
            .prepare_cached(
                "SELECT id FROM runs WHERE thread = ?1 AND status < 4
                 ORDER BY status > 0, thread_ord",
            )?
            .query_map([thread], |row| Ok(RunId(row.get::<_, Id>(0)?.0)))?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let cancelled = runs
            .into_iter()
            .map(|run| cancel(tx, run, "reset", CancelMode::Keep))
            .collect::<Result<Vec<_>, Fail>>()?;
        Ok(Some(Reset { generation, cancelled }))
    }
}

#[derive(Debug)]
pub(super) struct Release {
    pub(super) run: RunId,
    pub(super) fence: u32,
}

impl Operation for Release {
    type Answer = bool;
    const DURABLE: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<bool, Fail> {
        let Some(mut run) = find(tx.conn, self.run)? else { return Ok(false) };
        if run.record.status != Status::Running || run.record.fence != self.fence {
            return Ok(false);
        }
        rules::give_back(&mut run.record, tx.now);
        save(tx, &run, Status::Running)?;
        tx.tails.remove(&self.run);
        Ok(true)
    }
}

/// Takes all runs of an instance away from it; says which.
pub(super) fn take_from(tx: &mut Tx<'_>, instance: InstanceId) -> rusqlite::Result<Vec<RunId>> {
    let taken = tx
        .conn
        .prepare_cached(
            "UPDATE runs INDEXED BY runs_running
             SET status = 1, fence = fence + 1, instance = NULL, ready_at = ?2
             WHERE status = 2 AND instance = ?1 RETURNING id, pool, tenant, priority",
        )?
        .query_map((Id(instance.0), tx.now.0), |row| {
            let change = Move {
                pool: row.get(1)?,
                tenant: row.get(2)?,
                priority: rows::priority(row, 3)?,
                from: Some(Status::Running),
                to: Status::Ready,
            };
            Ok((RunId(row.get::<_, Id>(0)?.0), change))
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let mut runs = Vec::with_capacity(taken.len());
    for (run, change) in taken {
        tx.moved(change);
        runs.push(run);
    }
    tx.tails.clear();
    runs.sort_unstable();
    Ok(runs)
}

/// Instances that hold runs.
pub(super) fn owners(conn: &Connection) -> rusqlite::Result<Vec<InstanceId>> {
    let mut statement = conn.prepare_cached(
        "SELECT min(instance) FROM runs INDEXED BY runs_running
         WHERE status = 2 AND instance > ?1",
    )?;
    let mut owners = Vec::new();
    let mut last: Vec<u8> = Vec::new();
    while let Some(owner) = statement.query_row([&last], |row| row.get::<_, Option<Id>>(0))? {
        last = owner.0.as_bytes().to_vec();
        owners.push(InstanceId(owner.0));
    }
    Ok(owners)
}

/// Milliseconds before now, for comparisons with stored times.
pub(super) fn ago(tx: &Tx<'_>, duration: std::time::Duration) -> i64 {
    tx.now.0.saturating_sub(ms(duration))
}
