//! Giving ready runs to an instance.
//!
//! The index of ready runs is walked by jumps: for each priority from tenant to tenant, and at each
//! the oldest few. So the cost depends on how many tenants wait, not on how many runs.

use std::collections::BTreeMap;
use std::time::Duration;

use clearway_core::{CheckpointId, InstanceId, Priority, RunId, Status, Timestamp};
use rusqlite::{Connection, OptionalExtension};

use super::ends;
use super::fail::Fail;
use super::rows::{Id, number};
use super::writer::{Operation, Tx};
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
        let held = |tenant: &str| tx.counts.held(&self.pool, tenant);
        let tenants = rules::tenants(names, held, tx.policy);
        let chosen = rules::pick(candidates, &tenants, self.slots, self.ageing, tx.now);
        chosen.into_iter().map(|(_, n)| Ok(take(tx, n, self.me)?)).collect()
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
    let (thread_version, head) = tx
        .conn
        .prepare_cached(
            "SELECT version, (SELECT id FROM checkpoints WHERE n = t.head) FROM threads t WHERE n = ?1",
        )?
        .query_row([run.thread], |row| {
            let head: Option<Id> = row.get(1)?;
            Ok((number(row.get(0)?), head.map(|id| CheckpointId(id.0))))
        })?;
    Ok(Claim { record: run.record, thread_version, head, created: None })
}
