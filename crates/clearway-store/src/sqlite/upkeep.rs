//! What instances do from time to time: join, renew, sweep, leave.

use clearway_core::event::Segment;
use clearway_core::{InstanceId, RunId, Timestamp};
use rusqlite::OptionalExtension;

use super::ends::{self, ago};
use super::fail::Fail;
use super::items;
use super::rows::{self, Id};
use super::waiting;
use super::writer::{Operation, Tx};
use crate::rules;
use crate::{Joined, Renewal, Swept};

/// Queued runs that one operation ends at most, and parked ones that it wakes; the sweep asks again
/// for more.
const CHUNK: usize = 128;

/// Operations of one sweep.
pub(super) const ROUNDS: usize = rules::EXPIRE_LIMIT / CHUNK;

/// Ended runs whose logs one operation rewrites at most.
pub(super) const TRIM_CHUNK: usize = 32;

/// Free pages in the file above which some are given back to the disk.
const SPARE_PAGES: i64 = 1024;

pub(super) struct Join(pub(super) InstanceId);

impl Operation for Join {
    type Answer = Joined;
    const DURABLE: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<Joined, Fail> {
        // This process holds the file: whoever else is named in it is dead.
        let mut resumed = 0;
        for owner in ends::owners(tx.conn)? {
            if owner != self.0 {
                resumed += ends::take_from(tx, owner)?.len() as u32;
            }
        }
        tx.run("DELETE FROM instances", [])?;
        extend_lease(tx, self.0)?;
        Ok(Joined { resumed, waiting: tx.counts.waiting_total() })
    }
}

fn extend_lease(tx: &Tx<'_>, me: InstanceId) -> rusqlite::Result<usize> {
    tx.run(
        "INSERT OR REPLACE INTO instances (id, lease_until) VALUES (?1, ?2)",
        (Id(me.0), tx.now.plus(tx.policy.lease).0),
    )
}

pub(super) struct Renew(pub(super) InstanceId);

impl Operation for Renew {
    type Answer = Renewal;
    const DURABLE: bool = false;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<Renewal, Fail> {
        extend_lease(tx, self.0)?;
        let mut renewal = Renewal::default();
        let mut statement = tx.conn.prepare_cached(
            "SELECT id, fence, cancel FROM runs INDEXED BY runs_running
             WHERE status = 2 AND instance = ?1",
        )?;
        let mut found = statement.query([Id(self.0.0)])?;
        while let Some(row) = found.next()? {
            let run = RunId(row.get::<_, Id>(0)?.0);
            renewal.owned.push((run, row.get(1)?));
            if row.get(2)? {
                renewal.cancel.push(run);
            }
        }
        renewal.owned.sort_unstable();
        renewal.cancel.sort_unstable();
        Ok(renewal)
    }
}

pub(super) struct Leave(pub(super) InstanceId);

impl Operation for Leave {
    type Answer = ();
    const DURABLE: bool = true;
    const CLOSES: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<(), Fail> {
        tx.run("DELETE FROM instances WHERE id = ?1", [Id(self.0.0)])?;
        Ok(())
    }
}

/// One round of a sweep.
pub(super) struct Sweep(pub(super) InstanceId);

#[derive(Debug)]
pub(super) struct Round {
    pub(super) swept: Swept,
    /// Another round may find more.
    pub(super) more: bool,
}

impl Operation for Sweep {
    type Answer = Round;
    const DURABLE: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<Round, Fail> {
        let me = self.0;
        let mut swept = Swept::default();
        tx.run("DELETE FROM instances WHERE lease_until < ?1 AND id <> ?2", (tx.now.0, Id(me.0)))?;
        for owner in ends::owners(tx.conn)? {
            let mut alive = tx.conn.prepare_cached("SELECT 1 FROM instances WHERE id = ?1")?;
            if owner != me && !alive.exists([Id(owner.0)])? {
                drop(alive);
                swept.taken_over.extend(ends::take_from(tx, owner)?);
            }
        }
        swept.taken_over.sort_unstable();
        let mut more = expire(tx, &mut swept)?;
        more |= tell_orphans(tx, &mut swept)?;
        more |= wake(tx)?;
        let earliest = |sql| -> rusqlite::Result<Option<Timestamp>> {
            let found = tx.conn.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
            Ok(Option::<i64>::map(found, Timestamp))
        };
        let (deadline, wake) = (earliest(NEXT_DEADLINE)?, earliest(NEXT_WAKE)?);
        swept.next_deadline = deadline.into_iter().chain(wake).min();
        swept.ready = tx.counts.ready_total() > 0
            && tx
                .conn
                .prepare_cached(
                    "SELECT 1 FROM runs INDEXED BY runs_ready
                     WHERE status = 1 AND ready_at <= ?1 LIMIT 1",
                )?
                .exists([tx.now.0])?;
        tx.run(
            "DELETE FROM idempotency WHERE (tenant, route, key) IN
                 (SELECT tenant, route, key FROM idempotency WHERE at <= ?1 LIMIT 1000)",
            [ago(tx, tx.policy.idempotency)],
        )?;
        items::expire(tx)?;
        Ok(Round { swept, more })
    }
}

const NEXT_DEADLINE: &str = "SELECT min(deadline_at) FROM runs INDEXED BY runs_deadline
     WHERE deadline_at IS NOT NULL AND status <> 2 AND status < 4";

pub(super) const NEXT_WAKE: &str = "SELECT min(wake_at) FROM runs INDEXED BY runs_wake
     WHERE status = 3 AND wake_at IS NOT NULL";

/// Ends queued runs whose deadline passed; says whether there may be more of them.
fn expire(tx: &mut Tx<'_>, swept: &mut Swept) -> Result<bool, Fail> {
    let late = tx
        .conn
        .prepare_cached(
            "SELECT n FROM runs INDEXED BY runs_deadline
             WHERE deadline_at IS NOT NULL AND status <> 2 AND status < 4 AND deadline_at <= ?1
             ORDER BY deadline_at, id LIMIT ?2",
        )?
        .query_map((tx.now.0, CHUNK as i64), |row| row.get(0))?
        .collect::<rusqlite::Result<Vec<i64>>>()?;
    for &n in &late {
        ends::expire(tx, n, swept)?;
    }
    Ok(late.len() == CHUNK)
}

/// Goes on with ends that had too many children to tell them all at once.
fn tell_orphans(tx: &mut Tx<'_>, swept: &mut Swept) -> Result<bool, Fail> {
    let parent: Option<i64> =
        tx.conn.prepare_cached(BEREFT)?.query_row([], |row| row.get(0)).optional()?;
    let Some(parent) = parent else { return Ok(false) };
    tx.run("UPDATE runs SET orphans = 0 WHERE n = ?1", [parent])?;
    rules::add_ended(&mut swept.expired, ends::cancel_children(tx, parent)?);
    Ok(true)
}

pub(super) const BEREFT: &str =
    "SELECT n FROM runs INDEXED BY runs_orphans WHERE orphans = 1 ORDER BY n LIMIT 1";

/// Takes up parked runs whose time has come; says whether there may be more of them.
fn wake(tx: &mut Tx<'_>) -> Result<bool, Fail> {
    let due = tx
        .conn
        .prepare_cached(DUE)?
        .query_map((tx.now.0, CHUNK as i64), |row| row.get(0))?
        .collect::<rusqlite::Result<Vec<i64>>>()?;
    for &n in &due {
        let mut run = ends::find_by_n(tx.conn, n)?;
        waiting::wake(tx, &mut run)?;
    }
    Ok(due.len() == CHUNK)
}

pub(super) const DUE: &str = "SELECT n FROM runs INDEXED BY runs_wake
     WHERE status = 3 AND wake_at IS NOT NULL AND wake_at <= ?1 ORDER BY wake_at, n LIMIT ?2";

/// Drops the deltas of runs that ended long ago; says how many runs it looked at.
pub(super) struct Trim;

impl Operation for Trim {
    type Answer = usize;
    const DURABLE: bool = false;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<usize, Fail> {
        let old = tx
            .conn
            .prepare_cached(
                "SELECT n FROM runs INDEXED BY runs_untrimmed
                 WHERE ended_at IS NOT NULL AND trimmed = 0 AND ended_at < ?1
                 ORDER BY ended_at LIMIT ?2",
            )?
            .query_map((ago(tx, tx.policy.log_retention), TRIM_CHUNK as i64), |row| row.get(0))?
            .collect::<rusqlite::Result<Vec<i64>>>()?;
        for &run in &old {
            trim(tx, run)?;
        }
        if !old.is_empty() {
            give_back_pages(tx)?;
        }
        Ok(old.len())
    }
}

fn trim(tx: &Tx<'_>, run: i64) -> Result<(), Fail> {
    let log = tx
        .conn
        .prepare_cached(SEGMENTS)?
        .query_map((run, 0), rows::segment)?
        .collect::<rusqlite::Result<Vec<Segment>>>()?;
    // A log that cannot be read is left as it is for whoever wants to repair it.
    if let Ok(kept) = rules::without_deltas(&log)
        && kept != log
    {
        tx.run("DELETE FROM run_log WHERE run = ?1", [run])?;
        for segment in &kept {
            ends::insert_segment(tx, run, segment)?;
        }
    }
    tx.run("UPDATE runs SET trimmed = 1 WHERE n = ?1", [run])?;
    Ok(())
}

/// Segments of run `?1` that hold events from number `?2` on.
pub(super) const SEGMENTS: &str = "SELECT first_seq, end_seq, fence, at, bytes FROM run_log
     WHERE run = ?1 AND end_seq > ?2 ORDER BY end_seq";

/// Shrinks the file a little when much of it is unused.
fn give_back_pages(tx: &Tx<'_>) -> rusqlite::Result<()> {
    let spare: i64 = tx
        .conn
        .prepare_cached("SELECT freelist_count FROM pragma_freelist_count")?
        .query_row([], |row| row.get(0))?;
    if spare > SPARE_PAGES {
        let mut vacuum = tx.conn.prepare_cached("PRAGMA incremental_vacuum(128)")?;
        let mut rows = vacuum.query([])?;
        while rows.next()?.is_some() {}
    }
    Ok(())
}

/// Sets how large the file may grow.
pub(super) struct LimitSize(pub(super) Option<u64>);

impl Operation for LimitSize {
    type Answer = ();
    const DURABLE: bool = false;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<(), Fail> {
        limit_size(tx.conn, self.0)?;
        Ok(())
    }
}

pub(super) fn limit_size(conn: &rusqlite::Connection, bytes: Option<u64>) -> rusqlite::Result<()> {
    /// SQLite's own limit.
    const MOST: u64 = 4_294_967_294;
    let page: u64 = conn.query_row("SELECT page_size FROM pragma_page_size", [], |row| {
        row.get::<_, i64>(0).map(rows::number)
    })?;
    let pages = bytes.map_or(MOST, |bytes| (bytes / page).clamp(1, MOST));
    conn.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))
}
