//! Runs to be started later, and webhooks to be sent.

use clearway_core::{CheckpointId, RunId, ThreadId, Timestamp};
use rusqlite::types::FromSqlError;
use rusqlite::{Connection, Row};
use uuid::Uuid;

use super::ends::ago;
use super::fail::Fail;
use super::rows::{Id, json, ms};
use super::writer::{Operation, Tx};
use crate::{Delivery, DeliveryOutcome, Fired, Schedule, ScheduleQuery, rules};

/// Writes a schedule in the place of the one with its id, or its name.
pub(super) fn insert(tx: &Tx<'_>, schedule: &Schedule) -> rusqlite::Result<()> {
    if let Some(name) = &schedule.name {
        let sql = "DELETE FROM schedules WHERE tenant = ?1 AND name = ?2 AND id <> ?3";
        tx.run(sql, (&schedule.tenant, name, Id(schedule.id)))?;
    }
    tx.run(
        "INSERT OR REPLACE INTO schedules (id, tenant, owner, name, thread, cron, timezone, next_at,
             submit, only_at, created_at, last_at, last_run, last_error)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
        (
            Id(schedule.id),
            &schedule.tenant,
            &schedule.owner,
            &schedule.name,
            schedule.thread.map(|thread| Id(thread.0)),
            &schedule.cron,
            &schedule.timezone,
            schedule.next_at.map(|at| at.0),
            schedule.submit.to_string(),
            schedule.only_at.map(|at| Id(at.0)),
            schedule.created_at.0,
            schedule.last_at.map(|at| at.0),
            schedule.last_run.map(|run| Id(run.0)),
            &schedule.last_error,
        ),
    )?;
    Ok(())
}

/// The end of a run is to be told.
pub(super) fn deliver(tx: &Tx<'_>, run: RunId, url: &str) -> rusqlite::Result<()> {
    tx.run(
        "INSERT INTO deliveries (run, url, next_at, created_at) VALUES (?1, ?2, ?3, ?3)",
        (Id(run.0), url, tx.now.0),
    )?;
    Ok(())
}

const COLUMNS: &str = "SELECT id, tenant, owner, name, thread, cron, timezone, next_at, submit, only_at, \
     created_at, last_at, last_run, last_error FROM schedules ";

fn schedule(row: &Row<'_>) -> rusqlite::Result<Schedule> {
    let id = |column| row.get::<_, Option<Id>>(column).map(|id| id.map(|id| id.0));
    let at = |column| row.get::<_, Option<i64>>(column).map(|at| at.map(Timestamp));
    Ok(Schedule {
        id: id(0)?.ok_or(FromSqlError::InvalidType)?,
        tenant: row.get(1)?,
        owner: row.get(2)?,
        name: row.get(3)?,
        thread: id(4)?.map(ThreadId),
        cron: row.get(5)?,
        timezone: row.get(6)?,
        next_at: at(7)?,
        submit: json(row, 8)?,
        only_at: id(9)?.map(CheckpointId),
        created_at: at(10)?.ok_or(FromSqlError::InvalidType)?,
        last_at: at(11)?,
        last_run: id(12)?.map(RunId),
        last_error: row.get(13)?,
    })
}

pub(super) struct Put(pub(super) Schedule);

impl Operation for Put {
    type Answer = ();
    const DURABLE: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<(), Fail> {
        Ok(insert(tx, &self.0)?)
    }
}

pub(super) struct Delete(pub(super) Uuid);

impl Operation for Delete {
    type Answer = bool;
    const DURABLE: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<bool, Fail> {
        Ok(tx.run("DELETE FROM schedules WHERE id = ?1", [Id(self.0)])? > 0)
    }
}

pub(super) struct Fire(pub(super) Fired);

impl Operation for Fire {
    type Answer = ();
    const DURABLE: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<(), Fail> {
        let Fired { id, at, next_at, run, error, over } = &self.0;
        if *over {
            tx.run("DELETE FROM schedules WHERE id = ?1 AND next_at = ?2", (Id(*id), at.0))?;
            return Ok(());
        }
        tx.run(
            "UPDATE schedules SET next_at = ?3, last_at = ?2, last_run = coalesce(?4, last_run),
                 last_error = ?5
             WHERE id = ?1 AND next_at = ?2",
            (Id(*id), at.0, next_at.map(|at| at.0), run.map(|run| Id(run.0)), error),
        )?;
        Ok(())
    }
}

pub(super) fn list(conn: &Connection, query: &ScheduleQuery) -> Result<Vec<Schedule>, Fail> {
    let sql = format!(
        "{COLUMNS} WHERE (?1 IS NULL OR tenant = ?1) AND (?2 IS NULL OR thread = ?2)
             AND (?3 IS NULL OR id > ?3) ORDER BY id LIMIT ?4"
    );
    let found = conn
        .prepare_cached(&sql)?
        .query_map(
            (
                &query.tenant,
                query.thread.map(|thread| Id(thread.0)),
                query.after.map(Id),
                rules::page_size(query.limit) as i64,
            ),
            schedule,
        )?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(found)
}

pub(super) fn due(
    conn: &Connection,
    now: Timestamp,
    limit: u32,
) -> Result<(Vec<Schedule>, Option<Timestamp>), Fail> {
    let sql = format!(
        "{COLUMNS} INDEXED BY schedules_due WHERE next_at IS NOT NULL AND next_at <= ?1
         ORDER BY next_at LIMIT ?2"
    );
    let due = conn
        .prepare_cached(&sql)?
        .query_map((now.0, limit), schedule)?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let next = conn
        .prepare_cached(
            "SELECT min(next_at) FROM schedules INDEXED BY schedules_due
             WHERE next_at IS NOT NULL AND next_at > ?1",
        )?
        .query_row([now.0], |row| row.get::<_, Option<i64>>(0))?;
    Ok((due, next.map(Timestamp)))
}

// ## Webhooks

pub(super) fn due_deliveries(
    conn: &Connection,
    now: Timestamp,
    limit: u32,
) -> Result<(Vec<Delivery>, Option<Timestamp>), Fail> {
    let due = conn
        .prepare_cached(
            "SELECT id, run, url, attempt, created_at FROM deliveries INDEXED BY deliveries_due
             WHERE next_at IS NOT NULL AND next_at <= ?1 ORDER BY next_at, id LIMIT ?2",
        )?
        .query_map((now.0, limit), |row| {
            Ok(Delivery {
                id: row.get(0)?,
                run: RunId(row.get::<_, Id>(1)?.0),
                url: row.get(2)?,
                attempt: row.get(3)?,
                created_at: Timestamp(row.get(4)?),
            })
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let next = conn
        .prepare_cached(
            "SELECT min(next_at) FROM deliveries INDEXED BY deliveries_due
             WHERE next_at IS NOT NULL AND next_at > ?1",
        )?
        .query_row([now.0], |row| row.get::<_, Option<i64>>(0))?;
    Ok((due, next.map(Timestamp)))
}

pub(super) struct Delivered {
    pub(super) id: i64,
    pub(super) outcome: DeliveryOutcome,
}

impl Operation for Delivered {
    type Answer = ();
    const DURABLE: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<(), Fail> {
        match &self.outcome {
            DeliveryOutcome::Done => {
                tx.run("DELETE FROM deliveries WHERE id = ?1", [self.id])?;
            }
            DeliveryOutcome::Retry { after, error } => {
                let next = tx.now.0.saturating_add(ms(*after));
                let sql = "UPDATE deliveries SET attempt = attempt + 1, next_at = ?2, error = ?3
                     WHERE id = ?1";
                tx.run(sql, (self.id, next, error))?;
            }
            DeliveryOutcome::Dead { error } => {
                let sql = "UPDATE deliveries SET attempt = attempt + 1, next_at = NULL, error = ?2
                     WHERE id = ?1";
                tx.run(sql, (self.id, error))?;
            }
        }
        // Dead letters are kept for a while, for whoever looks.
        tx.run(
            "DELETE FROM deliveries WHERE next_at IS NULL AND created_at < ?1",
            [ago(tx, rules::DEAD_LETTERS)],
        )?;
        Ok(())
    }
}
