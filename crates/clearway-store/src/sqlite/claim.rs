//! Giving ready runs to an instance.
//!
//! The index of ready runs is walked by jumps: for each priority from tenant to tenant, and at each
//! the oldest few. So the cost depends on how many tenants wait, not on how many runs.

use std::collections::BTreeMap;
use std::time::Duration;

use clearway_core::plan::Frontier;
use clearway_core::{CheckpointId, InstanceId, Priority, RunId, Status, Timestamp};
use rusqlite::{Connection, OptionalExtension, Row};

use super::fail::Fail;
use super::rows::{self, Id, number};
use super::writer::{Operation, Tx};
use super::{ends, journal};
use crate::Claim;
use crate::rules::{self, Candidate};

/// Runs that one operation claims at most; the store asks again for more, so that nobody else waits
/// for all of them.
pub(super) const CHUNK: u32 = 64;

pub(super) struct ClaimSome {
    pub(super) me: InstanceId,
    pub(super) pool: String,
    /// At most [`CHUNK`].
    pub(super) slots: u32,
    pub(super) ageing: Duration,
}

impl Operation for ClaimSome {
    type Answer = Vec<Claim>;
    const DURABLE: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<Vec<Claim>, Fail> {
        if self.slots == 0 || tx.counts.ready(&self.pool) == 0 {
            return Ok(Vec::new());
        }
        let (candidates, names) = candidates(tx.conn, &self.pool, self.slots, tx.now)?;
        let tenants = rules::tenants(&names, tx.counts, &self.pool, tx.policy);
        let chosen = rules::pick(candidates, &tenants, self.slots, self.ageing, tx.now);
        let claims = chosen.into_iter().map(|(_, n)| Ok(take(tx, n, self.me)?));
        let claims = claims.collect::<Result<Vec<Claim>, Fail>>()?;
        let served = claims.iter().map(|claim| claim.record.tenant.clone());
        tx.counts.serve(&self.pool, &names, served, tx.now);
        Ok(claims)
    }
}

type Found = (Vec<Candidate<(RunId, i64)>>, Vec<String>);

/// The oldest `look` ready runs of each tenant and priority, and the tenants.
fn candidates(conn: &Connection, pool: &str, look: u32, now: Timestamp) -> rusqlite::Result<Found> {
    let mut next_tenant = conn.prepare_cached(NEXT_TENANT)?;
    let mut oldest = conn.prepare_cached(OLDEST)?;
    let mut candidates = Vec::new();
    let mut tenants: BTreeMap<String, usize> = BTreeMap::new();
    for level in 1..=5 {
        let Some(priority) = Priority::new(level) else { continue };
        let mut last: Option<String> = None;
        while let Some(name) = next_tenant
            .query_row((pool, level, last.as_deref().unwrap_or("")), |row| row.get(0))
            .optional()?
        {
            let name: String = name;
            let number = tenants.len();
            let tenant = *tenants.entry(name.clone()).or_insert(number);
            let mut rows = oldest.query((pool, level, &name, now.0, look))?;
            while let Some(row) = rows.next()? {
                let key = (RunId(row.get::<_, Id>(0)?.0), row.get(1)?);
                let ready_at = Timestamp(row.get(2)?);
                candidates.push(Candidate { key, tenant, priority, ready_at });
            }
            last = Some(name);
        }
    }
    let mut names = vec![String::new(); tenants.len()];
    for (name, number) in tenants {
        names[number] = name;
    }
    Ok((candidates, names))
}

pub(super) const NEXT_TENANT: &str = "SELECT tenant FROM runs INDEXED BY runs_ready
     WHERE status = 1 AND pool = ?1 AND priority = ?2 AND tenant > ?3 ORDER BY tenant LIMIT 1";

pub(super) const OLDEST: &str = "SELECT id, n, ready_at FROM runs INDEXED BY runs_ready
     WHERE status = 1 AND pool = ?1 AND priority = ?2 AND tenant = ?3 AND ready_at <= ?4
     ORDER BY ready_at, id LIMIT ?5";

fn take(tx: &mut Tx<'_>, n: i64, me: InstanceId) -> rusqlite::Result<Claim> {
    let mut run = ends::find_by_n(tx.conn, n)?;
    rules::take(&mut run.record, run.idle, me, tx.now);
    run.idle = true;
    ends::save(tx, &run, Status::Ready)?;
    let record = run.record;
    let base = record.options.base.filter(|_| record.checkpoint.is_none());
    let read = |row: &Row<'_>| {
        let head = row.get::<_, Option<Id>>(1)?.map(|id| CheckpointId(id.0));
        let made_it = head.is_some() && head == record.checkpoint;
        let frontier = match head {
            Some(_) => rows::frontier(row, 2, made_it.then_some(record.id), row.get(3)?)?,
            None => Frontier::default(),
        };
        Ok((number(row.get(0)?), head, frontier, made_it))
    };
    let (thread_version, head, frontier, taken_in) = match base {
        None => tx.conn.prepare_cached(HEAD)?.query_row([run.thread], read)?,
        Some(base) => tx.conn.prepare_cached(BASE)?.query_row((run.thread, Id(base.0)), read)?,
    };
    let journal = journal::read(tx.conn, run.thread)?;
    // One that is gone by now is named all the same: its state cannot be read, which is the error.
    let head = base.or(head);
    Ok(Claim { record, thread_version, head, created: None, frontier, journal, taken_in })
}

/// Where a thread stands.
pub(super) const HEAD: &str = "SELECT t.version, c.id, c.next, c.step
     FROM threads t LEFT JOIN checkpoints c ON c.n = t.head WHERE t.n = ?1";

/// The same at a checkpoint of the thread.
pub(super) const BASE: &str = "SELECT t.version, c.id, c.next, c.step
     FROM threads t LEFT JOIN checkpoints c ON c.id = ?2 AND c.thread = t.n WHERE t.n = ?1";
