//! A thread between runs: its checkpoints, changes by hand, what it occupies, dropping what is old.

use std::collections::{BTreeMap, BTreeSet};

use clearway_core::{CheckpointId, RunId, ThreadId, Timestamp};
use rusqlite::{Connection, OptionalExtension, Row};

use super::commit::versions_at;
use super::fail::Fail;
use super::rows::{self, Id, frontier, frontier_text, int, number, thread_record, versions};
use super::writer::{Operation, Tx};
use super::{channels, journal};
use crate::rules::{self, Versions};
use crate::{CheckpointRecord, Keep, Pruned, StateUpdate, ThreadQuery, ThreadStorage, Updated};

pub(super) fn history(
    conn: &Connection,
    thread: ThreadId,
    before: Option<CheckpointId>,
    limit: u32,
) -> Result<Vec<CheckpointRecord>, Fail> {
    let found = conn
        .prepare_cached(
            "SELECT c.id, (SELECT id FROM checkpoints WHERE n = c.parent),
                 (SELECT id FROM runs WHERE n = c.run), c.step, c.source, c.next, c.at
             FROM checkpoints c INDEXED BY checkpoints_thread
             WHERE c.thread = (SELECT n FROM threads WHERE id = ?1) AND (?2 IS NULL OR c.id < ?2)
             ORDER BY c.id DESC LIMIT ?3",
        )?
        .query_map(
            (Id(thread.0), before.map(|id| Id(id.0)), rules::page_size(limit) as i64),
            checkpoint,
        )?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(found)
}

pub(super) fn checkpoint(row: &Row<'_>) -> rusqlite::Result<CheckpointRecord> {
    let run = row.get::<_, Option<Id>>(2)?.map(|id| RunId(id.0));
    let step = row.get(3)?;
    Ok(CheckpointRecord {
        id: CheckpointId(row.get::<_, Id>(0)?.0),
        parent: row.get::<_, Option<Id>>(1)?.map(|id| CheckpointId(id.0)),
        run,
        step,
        source: rows::source(row, 4)?,
        frontier: frontier(row, 5, run, step)?,
        created_at: Timestamp(row.get(6)?),
    })
}

pub(super) fn threads(
    conn: &Connection,
    query: &ThreadQuery,
) -> Result<Vec<clearway_core::thread::ThreadRecord>, Fail> {
    let sql = [
        rows::SELECT_THREADS,
        " WHERE (?1 IS NULL OR t.tenant = ?1) AND (?2 IS NULL OR t.owner = ?2)
             AND (?3 IS NULL OR t.dialect = ?3) AND (?4 IS NULL OR t.updated_at <= ?4)
             AND (?5 IS NULL OR (t.updated_at, t.n) <
                 (SELECT updated_at, n FROM threads WHERE id = ?5))
         ORDER BY t.updated_at DESC, t.n DESC LIMIT ?6",
    ]
    .concat();
    let found = conn
        .prepare_cached(&sql)?
        .query_map(
            (
                &query.tenant,
                &query.owner,
                &query.dialect,
                query.idle_since.map(|at| at.0),
                query.after.map(|id| Id(id.0)),
                rules::page_size(query.limit) as i64,
            ),
            thread_record,
        )?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(found)
}

pub(super) fn storage(conn: &Connection, thread: ThreadId) -> Result<Option<ThreadStorage>, Fail> {
    let found = conn
        .prepare_cached(
            "SELECT t.n, (SELECT count(*) FROM checkpoints WHERE thread = t.n),
                 (SELECT coalesce(sum(length(next) + length(versions) + 64), 0) FROM checkpoints
                  WHERE thread = t.n),
                 (SELECT coalesce(sum(length(data) + 40), 0) FROM deltas WHERE thread = t.n),
                 (SELECT coalesce(sum(length(data)), 0) FROM snapshots WHERE thread = t.n),
                 (SELECT coalesce(sum(length(data)), 0) FROM blobs WHERE id IN
                     (SELECT blob FROM deltas WHERE thread = t.n)),
                 (SELECT coalesce(sum(length(l.bytes) + 32), 0) FROM run_log l
                  JOIN runs r ON r.n = l.run WHERE r.thread = t.n),
                 (SELECT coalesce(sum(size), 0) FROM artifacts WHERE thread = t.n),
                 (SELECT count(*) FROM runs WHERE thread = t.n)
             FROM threads t WHERE t.id = ?1",
        )?
        .query_row([Id(thread.0)], |row| {
            let size = |column| row.get(column).map(number);
            Ok(ThreadStorage {
                checkpoints: size(1)?,
                checkpoint_bytes: size(2)?,
                delta_bytes: size(3)?,
                snapshot_bytes: size(4)?,
                blob_bytes: size(5)?,
                log_bytes: size(6)?,
                artifact_bytes: size(7)?,
                runs: size(8)?,
            })
        })
        .optional()?;
    Ok(found)
}

pub(super) struct Update(pub(super) StateUpdate);

impl Operation for Update {
    type Answer = Updated;
    const DURABLE: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<Updated, Fail> {
        let update = &self.0;
        let found = tx
            .conn
            .prepare_cached(
                "SELECT t.n, (SELECT id FROM runs WHERE n = t.active),
                     (SELECT id FROM checkpoints WHERE n = t.head), t.version, t.tenant
                 FROM threads t WHERE t.id = ?1",
            )?
            .query_row([Id(update.thread.0)], |row| {
                let id = |column| row.get::<_, Option<Id>>(column).map(|id| id.map(|id| id.0));
                let tenant: String = row.get(4)?;
                Ok((row.get::<_, i64>(0)?, id(1)?, id(2)?, number(row.get(3)?), tenant))
            })
            .optional()?;
        let Some((thread, active, head, mut top, tenant)) = found else {
            return Ok(Updated::ThreadNotFound);
        };
        if head == Some(update.id.0) {
            return Ok(Updated::Done);
        }
        if let Some(active) = active {
            return Ok(Updated::Busy { active: RunId(active) });
        }
        let head = head.map(CheckpointId);
        if head != update.expected_head {
            return Ok(Updated::Conflict { head });
        }
        let parent: Option<i64> = match update.parent {
            None => None,
            Some(parent) => {
                let row = tx
                    .conn
                    .prepare_cached("SELECT n FROM checkpoints WHERE id = ?1 AND thread = ?2")?
                    .query_row((Id(parent.0), thread), |row| row.get(0))
                    .optional()?;
                if row.is_none() {
                    return Ok(Updated::CheckpointNotFound);
                }
                row
            }
        };
        let mut known = match parent {
            Some(parent) => versions_at(tx, parent)?,
            None => Versions::new(),
        };
        rules::advance(&mut known, &mut top, &update.checkpoint)?;
        for delta in &update.checkpoint.deltas {
            channels::store_delta(tx, thread, &tenant, delta)?;
        }
        tx.run(
            "INSERT INTO checkpoints (id, thread, parent, run, step, source, next, versions, at)
             VALUES (?1, ?2, ?3, 0, ?4, ?5, ?6, ?7, ?8)",
            (
                Id(update.id.0),
                thread,
                parent,
                update.checkpoint.step,
                update.checkpoint.source.as_str(),
                frontier_text(&update.checkpoint.next),
                rows::text(&known),
                tx.now.0,
            ),
        )?;
        let n = tx.conn.last_insert_rowid();
        tx.run(
            "UPDATE threads SET head = ?2, version = ?3, updated_at = ?4 WHERE n = ?1",
            (thread, n, int(top), tx.now.0),
        )?;
        for task in &update.settled {
            journal::delete(tx, thread, *task)?;
        }
        journal::add(tx, thread, 0, &update.notes)?;
        Ok(Updated::Done)
    }
}

pub(super) struct Prune {
    pub(super) thread: ThreadId,
    pub(super) keep: Keep,
}

impl Operation for Prune {
    type Answer = Option<Pruned>;
    const DURABLE: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<Option<Pruned>, Fail> {
        let found = tx
            .conn
            .prepare_cached("SELECT n, head FROM threads WHERE id = ?1")?
            .query_row([Id(self.thread.0)], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, Option<i64>>(1)?))
            })
            .optional()?;
        let Some((thread, head)) = found else { return Ok(None) };
        let rows = tx
            .conn
            .prepare_cached(
                "SELECT n, parent, run, versions FROM checkpoints INDEXED BY checkpoints_thread
                 WHERE thread = ?1 ORDER BY id DESC",
            )?
            .query_map([thread], |row| {
                Ok((
                    row.get::<_, i64>(0)?,
                    rules::Line { parent: row.get(1)?, run: row.get::<_, i64>(2)? },
                    versions(row, 3)?,
                ))
            })?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let lines: Vec<_> = rows.iter().map(|(n, line, _)| (*n, *line)).collect();
        // What a run that has not ended began from, or will begin from, stays.
        let held = held(tx, thread)?;
        let kept = rules::kept(&lines, head, &held, self.keep);
        let mut pruned = Pruned::default();
        for (n, ..) in rows.iter().filter(|(n, ..)| !kept.contains(n)) {
            tx.run("DELETE FROM checkpoints WHERE n = ?1", [n])?;
            pruned.checkpoints += 1;
        }
        if pruned.checkpoints > 0 {
            // Numbers of deleted rows are used again.
            tx.run(
                "UPDATE runs SET checkpoint = NULL WHERE thread = ?1 AND checkpoint IS NOT NULL
                     AND checkpoint NOT IN (SELECT n FROM checkpoints WHERE thread = ?1)",
                [thread],
            )?;
            // A kept one whose parent is gone hangs on the next kept one above it, if any.
            let parents: BTreeMap<i64, Option<i64>> =
                lines.iter().map(|(n, line)| (*n, line.parent)).collect();
            for n in &kept {
                let parent = rules::nearest(&parents, &kept, *n);
                tx.run("UPDATE checkpoints SET parent = ?2 WHERE n = ?1", (n, parent))?;
            }
            let tops =
                rows.iter().filter(|(n, ..)| kept.contains(n)).map(|(.., versions)| versions);
            pruned.bytes = drop_deltas(tx, thread, tops)?;
        }
        Ok(Some(pruned))
    }
}

/// Where unfinished runs of a thread lead back to, or are to start from.
fn held(tx: &Tx<'_>, thread: i64) -> rusqlite::Result<BTreeSet<i64>> {
    let mut held = BTreeSet::new();
    let mut checkpoint = tx.conn.prepare_cached("SELECT n FROM checkpoints WHERE id = ?1")?;
    let mut unfinished = tx.conn.prepare_cached(
        "SELECT r.base, i.options FROM runs r JOIN run_inputs i ON i.run = r.n
         WHERE r.thread = ?1 AND r.status < 4",
    )?;
    let mut rows = unfinished.query([thread])?;
    while let Some(row) = rows.next()? {
        held.extend(row.get::<_, Option<i64>>(0)?);
        if let Some(base) = rows::options(row, 1)?.base {
            held.extend(checkpoint.query_row([Id(base.0)], |row| row.get::<_, i64>(0)).optional()?);
        }
    }
    Ok(held)
}

/// Drops deltas that no kept checkpoint's values are made of.
fn drop_deltas<'a>(
    tx: &Tx<'_>,
    thread: i64,
    tops: impl Iterator<Item = &'a Versions>,
) -> Result<u64, Fail> {
    let mut needed: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
    for (channel, &version) in tops.flatten() {
        needed.entry(channel).or_default().insert(version);
    }
    let all = tx
        .conn
        .prepare_cached(
            // The bit above 15 only says that the data is packed.
            "SELECT id, channel, version, previous, op & 15, coalesce(length(data), 0), blob
             FROM deltas WHERE thread = ?1",
        )?
        .query_map([thread], |row| {
            let channel: String = row.get(1)?;
            let step = (number(row.get(3)?), row.get::<_, u8>(4)?);
            let rest = (row.get::<_, i64>(5)?, row.get::<_, Option<i64>>(6)?);
            Ok((row.get::<_, i64>(0)?, channel, number(row.get(2)?), step, rest))
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let chain: BTreeMap<(&str, u64), (u64, u8)> = all
        .iter()
        .map(|(_, channel, version, step, _)| ((channel.as_str(), *version), *step))
        .collect();
    let mut used: BTreeSet<(&str, u64)> = BTreeSet::new();
    for (channel, versions) in &needed {
        for &version in versions {
            let mut at = version;
            // Down to the last assignment: what came before is not replayed.
            while at > 0 && used.insert((channel, at)) {
                match chain.get(&(*channel, at)) {
                    Some((previous, op)) if *op != 0 => at = *previous,
                    Some(_) | None => break,
                }
            }
        }
    }
    let mut bytes = 0;
    for (id, channel, version, _, (size, blob)) in &all {
        if used.contains(&(channel.as_str(), *version)) {
            continue;
        }
        tx.run("DELETE FROM deltas WHERE id = ?1", [id])?;
        bytes += number(*size);
        let sql = "DELETE FROM snapshots WHERE thread = ?1 AND channel = ?2 AND version = ?3";
        tx.run(sql, (thread, channel, int(*version)))?;
        if let Some(blob) = blob {
            bytes += channels::drop_blob(tx, *blob)?;
        }
    }
    Ok(bytes)
}

pub(super) struct DeleteThread(pub(super) ThreadId);

impl Operation for DeleteThread {
    type Answer = Option<Result<(), RunId>>;
    const DURABLE: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<Self::Answer, Fail> {
        let found = tx
            .conn
            .prepare_cached(
                "SELECT t.n, (SELECT id FROM runs WHERE n = t.active) FROM threads t WHERE t.id = ?1",
            )?
            .query_row([Id(self.0.0)], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, Option<Id>>(1)?))
            })
            .optional()?;
        let Some((thread, active)) = found else { return Ok(None) };
        if let Some(active) = active {
            return Ok(Some(Err(RunId(active.0))));
        }
        let blobs = tx
            .conn
            .prepare_cached(
                "SELECT blob FROM deltas WHERE thread = ?1 AND blob IS NOT NULL
                 UNION SELECT blob FROM artifacts WHERE thread = ?1",
            )?
            .query_map([thread], |row| row.get(0))?
            .collect::<rusqlite::Result<Vec<i64>>>()?;
        for sql in [
            "DELETE FROM run_log WHERE run IN (SELECT n FROM runs WHERE thread = ?1)",
            "DELETE FROM attempts WHERE run IN (SELECT n FROM runs WHERE thread = ?1)",
            "DELETE FROM run_inputs WHERE run IN (SELECT n FROM runs WHERE thread = ?1)",
            "DELETE FROM idempotency WHERE run IN (SELECT n FROM runs WHERE thread = ?1)",
            "DELETE FROM artifacts WHERE thread = ?1",
            "DELETE FROM journal WHERE thread = ?1",
            "DELETE FROM snapshots WHERE thread = ?1",
            "DELETE FROM deltas WHERE thread = ?1",
            "DELETE FROM checkpoints WHERE thread = ?1",
            "DELETE FROM runs WHERE thread = ?1",
            "DELETE FROM schedules WHERE thread = (SELECT id FROM threads WHERE n = ?1)",
            "DELETE FROM threads WHERE n = ?1",
        ] {
            tx.run(sql, [thread])?;
        }
        for blob in blobs {
            channels::drop_blob(tx, blob)?;
        }
        Ok(Some(Ok(())))
    }
}
