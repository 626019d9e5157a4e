//! Runs that change hands or end without anybody executing them: cancel, reset, promotion.

use clearway_core::event::{Event, Segment};
use clearway_core::{InstanceId, RunId, RunRecord, Status, ThreadId};
use rusqlite::{Connection, OptionalExtension};

use super::fail::Fail;
use super::rows::{self, Id, Stored, int, ms, select_run, spent_text, status_number, stored};
use super::writer::{Operation, Tx};
use crate::counts::Move;
use crate::rules::{self, Ending};
use crate::{Cancelled, Reset};

pub(super) fn find(conn: &Connection, run: RunId) -> rusqlite::Result<Option<Stored>> {
    let mut statement = conn.prepare_cached(select_run!("WHERE r.id = ?1"))?;
    statement.query_row([Id(run.0)], stored).optional()
}

pub(super) fn find_by_n(conn: &Connection, n: i64) -> rusqlite::Result<Stored> {
    conn.prepare_cached(select_run!("WHERE r.n = ?1"))?.query_row([n], stored)
}

/// Writes what the rules changed in a run, and counts it. `before` is the status it had.
pub(super) fn save(tx: &mut Tx<'_>, run: &Stored, before: Status) -> rusqlite::Result<()> {
    let record = &run.record;
    tx.run(
        "UPDATE runs SET status = ?2, fence = ?3, attempt = ?4, fruitless = ?5, instance = ?6,
             ready_at = ?7, started_at = ?8, ended_at = ?9, idle = ?10, spent = ?11, failure = ?12,
             next_seq = ?13, committed_seq = ?14
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
            record.failure.as_ref().map(|failure| failure.to_json().to_string()),
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

/// The active run of a thread ended: the next one gets ready.
pub(super) fn free_thread(tx: &mut Tx<'_>, thread: i64) -> rusqlite::Result<Option<RunId>> {
    let next: Option<i64> = tx
        .conn
        .prepare_cached(
            "SELECT n FROM runs INDEXED BY runs_blocked WHERE thread = ?1 AND status = 0
             ORDER BY front DESC, thread_ord LIMIT 1",
        )?
        .query_row([thread], |row| row.get(0))
        .optional()?;
    tx.run(
        "UPDATE threads SET active = ?2, updated_at = ?3 WHERE n = ?1",
        (thread, next, tx.now.0),
    )?;
    let Some(next) = next else { return Ok(None) };
    let mut run = find_by_n(tx.conn, next)?;
    rules::promote(&mut run.record, tx.now);
    save(tx, &run, Status::Blocked)?;
    Ok(Some(run.record.id))
}

/// Ends a run that is not running.
pub(super) fn end_queued(
    tx: &mut Tx<'_>,
    mut run: Stored,
    why: Ending<'_>,
) -> rusqlite::Result<(RunRecord, Vec<Event>, Option<RunId>)> {
    let before = run.record.status;
    let events = rules::end_queued(&mut run.record, why, tx.now);
    insert_segment(tx, run.n, &rules::segment(&events))?;
    save(tx, &run, before)?;
    let promoted = if before == Status::Blocked { None } else { free_thread(tx, run.thread)? };
    Ok((run.record, events, promoted))
}

/// Asks a run to end; see [`crate::Store::cancel_run`].
pub(super) fn cancel(tx: &mut Tx<'_>, run: RunId, by: &str) -> rusqlite::Result<Cancelled> {
    let Some(found) = find(tx.conn, run)? else { return Ok(Cancelled::NotFound) };
    if found.record.status.is_terminal() {
        return Ok(Cancelled::AlreadyEnded { record: Box::new(found.record) });
    }
    if found.record.status == Status::Running {
        tx.run("UPDATE runs SET cancel = 1 WHERE n = ?1", [found.n])?;
        return Ok(Cancelled::Requested { run, instance: found.record.instance });
    }
    let (record, events, promoted) = end_queued(tx, found, Ending::Cancelled { by })?;
    Ok(Cancelled::Ended { record: Box::new(record), events, promoted })
}

#[derive(Debug)]
pub(super) struct Cancel {
    pub(super) run: RunId,
    pub(super) by: String,
}

impl Operation for Cancel {
    type Answer = Cancelled;
    const DURABLE: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<Cancelled, Fail> {
        Ok(cancel(tx, self.run, &self.by)?)
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
        // Blocked ones first, so that the active one's end promotes none of them.
        let runs = tx
            .conn
            .prepare_cached(
                "SELECT id FROM runs WHERE thread = ?1 AND status IN (0, 1, 2, 3)
                 ORDER BY status > 0, thread_ord",
            )?
            .query_map([thread], |row| Ok(RunId(row.get::<_, Id>(0)?.0)))?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let cancelled = runs
            .into_iter()
            .map(|run| cancel(tx, run, "reset"))
            .collect::<rusqlite::Result<Vec<_>>>()?;
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
