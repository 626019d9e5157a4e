//! Accepting a run.

use clearway_core::plan::Frontier;
use clearway_core::run::Multitask;
use clearway_core::{CheckpointId, InstanceId, RunId, RunRecord, Status};
use rusqlite::{Connection, OptionalExtension};

use super::fail::Fail;
use super::rows::{
    self, Id, int, ms, names_text, number, options_text, pack, spent_text, status, status_number,
};
use super::writer::{Operation, Tx};
use super::{ends, journal, threads};
use crate::counts::Move;
use crate::rules;
use crate::{Admission, CancelMode, Cancelled, Claim, NewRun, QueuePosition, Queued};

pub(super) struct Create(pub(super) NewRun);

/// The thread that a new run is for.
struct Thread {
    n: i64,
    tenant: String,
    owner: Option<String>,
    active: Option<RunId>,
    ord: i64,
    generation: u32,
    version: u64,
    head: Option<CheckpointId>,
    frontier: Frontier,
    /// `runs.n` that its first run is to have, when its row has just been made and names it already.
    first: Option<i64>,
}

impl Operation for Create {
    type Answer = Admission;
    const DURABLE: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<Admission, Fail> {
        let new = &self.0;
        let known = match find_itself(tx.conn, new.id)? {
            Some(known) => Some(known),
            None => seen_before(tx, new)?,
        };
        if let Some(known) = known {
            return Ok(Admission::Existing(Box::new(ends::find_by_n(tx.conn, known)?.record)));
        }
        let parent = find_parent(tx.conn, new)?;
        let thread = find_thread(tx, new)?;
        match &thread {
            None if new.thread_must_exist => return Ok(Admission::ThreadNotFound),
            Some(thread)
                if thread.tenant != new.tenant
                    || thread.owner.is_some() && thread.owner != new.owner =>
            {
                return Ok(Admission::ThreadForbidden);
            }
            None | Some(_) => {}
        }
        let active = thread.as_ref().and_then(|thread| thread.active);
        if let (Some(active), Multitask::Reject) = (active, new.multitask) {
            return Ok(Admission::ThreadBusy { active });
        }
        let base = match new.options.base {
            None => None,
            Some(base) => match find_base(tx.conn, thread.as_ref(), base)? {
                Some(frontier) => Some((base, frontier)),
                None => return Ok(Admission::CheckpointNotFound),
            },
        };
        let free = active.is_none() && new.delay.is_zero();
        let claims = match new.claim {
            Some(me) if free && !somebody_waits(tx, &new.pool)? => Some(me),
            Some(_) | None => None,
        };
        let queued = tx.counts.waiting(&new.pool);
        if claims.is_none() && queued >= new.queue_limit {
            return Ok(Admission::QueueFull { queued });
        }
        let mut thread = match thread {
            Some(thread) => thread,
            None => insert_thread(tx, new)?,
        };
        threads::describe(tx, thread.n, &new.thread_note)?;
        if let Some((base, frontier)) = base {
            (thread.head, thread.frontier) = (Some(base), frontier);
        }
        admit(tx, new, thread, parent, claims)
    }
}

/// `runs.n` of the very run, where its first acceptance was committed and the answer got lost.
fn find_itself(conn: &Connection, run: RunId) -> rusqlite::Result<Option<i64>> {
    conn.prepare_cached("SELECT n FROM runs WHERE id = ?1")?
        .query_row([Id(run.0)], |row| row.get(0))
        .optional()
}

/// `runs.n` of the run that starts this one.
fn find_parent(conn: &Connection, new: &NewRun) -> Result<Option<i64>, Fail> {
    let Some(parent) = new.parent else { return Ok(None) };
    let found = conn
        .prepare_cached("SELECT n, status FROM runs WHERE id = ?1")?
        .query_row([Id(parent.0)], |row| Ok((row.get(0)?, status(row.get(1)?)?)))
        .optional()?;
    rules::check_parent(parent, found.map(|(_, status)| status))?;
    Ok(found.map(|(n, _)| n))
}

/// What a checkpoint of the thread goes on with, for a run that starts there and not at the head.
fn find_base(
    conn: &Connection,
    thread: Option<&Thread>,
    base: CheckpointId,
) -> rusqlite::Result<Option<Frontier>> {
    let Some(thread) = thread else { return Ok(None) };
    conn.prepare_cached("SELECT next, step FROM checkpoints WHERE id = ?1 AND thread = ?2")?
        .query_row((Id(base.0), thread.n), |row| rows::frontier(row, 0, None, row.get(1)?))
        .optional()
}

fn seen_before(tx: &Tx<'_>, new: &NewRun) -> Result<Option<i64>, Fail> {
    let Some(idempotency) = &new.idempotency else { return Ok(None) };
    let known: Option<(i64, Vec<u8>)> = tx
        .conn
        .prepare_cached(
            "SELECT run, body FROM idempotency
             WHERE tenant = ?1 AND route = ?2 AND key = ?3 AND at > ?4",
        )?
        .query_row(
            (
                &new.tenant,
                &idempotency.route,
                &idempotency.key,
                ends::ago(tx, tx.policy.idempotency),
            ),
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()?;
    match known {
        Some((run, body)) if body == idempotency.body => Ok(Some(run)),
        Some((run, _)) => {
            let run = ends::find_by_n(tx.conn, run)?.record.id;
            Err(rules::idempotency_conflict(&idempotency.key, run).into())
        }
        None => Ok(None),
    }
}

fn find_thread(tx: &Tx<'_>, new: &NewRun) -> rusqlite::Result<Option<Thread>> {
    if !tx.known.may_have(new.thread.0) {
        return Ok(None);
    }
    tx.conn
        .prepare_cached(
            "SELECT t.n, t.tenant, t.owner, (SELECT id FROM runs WHERE n = t.active), t.ord,
             t.generation, t.version, c.id, c.next, c.step
         FROM threads t LEFT JOIN checkpoints c ON c.n = t.head WHERE t.id = ?1",
        )?
        .query_row([Id(new.thread.0)], |row| {
            let head = row.get::<_, Option<Id>>(7)?.map(|id| CheckpointId(id.0));
            let frontier = match head {
                Some(_) => rows::frontier(row, 8, None, row.get(9)?)?,
                None => Frontier::default(),
            };
            Ok(Thread {
                n: row.get(0)?,
                tenant: row.get(1)?,
                owner: row.get(2)?,
                active: row.get::<_, Option<Id>>(3)?.map(|id| RunId(id.0)),
                ord: row.get(4)?,
                generation: row.get(5)?,
                version: number(row.get(6)?),
                head,
                frontier,
                first: None,
            })
        })
        .optional()
}

fn insert_thread(tx: &Tx<'_>, new: &NewRun) -> rusqlite::Result<Thread> {
    tx.known.add(new.thread.0);
    // Nobody else writes: the next run is this thread's first, and the row need not be written again
    // when that is there.
    let first = tx
        .conn
        .prepare_cached("SELECT coalesce(max(n), 0) + 1 FROM runs")?
        .query_row([], |row| row.get(0))?;
    tx.run(
        "INSERT INTO threads (id, tenant, owner, dialect, key_parts, metadata, created_at,
             updated_at, ord, generation, version, active)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7, 1, 0, 0, ?8)",
        (
            Id(new.thread.0),
            &new.tenant,
            &new.owner,
            new.thread_key.as_ref().map(|key| &key.dialect),
            new.thread_key.as_ref().map(|key| names_text(&key.parts)),
            rows::text(&new.thread_metadata),
            tx.now.0,
            first,
        ),
    )?;
    Ok(Thread {
        n: tx.conn.last_insert_rowid(),
        tenant: new.tenant.clone(),
        owner: new.owner.clone(),
        active: None,
        ord: 0,
        generation: 0,
        version: 0,
        head: None,
        frontier: Frontier::default(),
        first: Some(first),
    })
}

/// Whether a run of the pool could start before a new one. Nearly always answered by the count.
fn somebody_waits(tx: &Tx<'_>, pool: &str) -> rusqlite::Result<bool> {
    if tx.counts.ready(pool) == 0 {
        return Ok(false);
    }
    tx.conn
        .prepare_cached(
            "SELECT 1 FROM runs INDEXED BY runs_ready
             WHERE status = 1 AND pool = ?1 AND ready_at <= ?2 LIMIT 1",
        )?
        .exists((pool, tx.now.0))
}

fn admit(
    tx: &mut Tx<'_>,
    new: &NewRun,
    thread: Thread,
    parent: Option<i64>,
    claims: Option<InstanceId>,
) -> Result<Admission, Fail> {
    let status = if thread.active.is_some() { Status::Blocked } else { Status::Ready };
    let mut record = rules::new_record(new, thread.ord + 1, status, tx.now);
    if let Some(me) = claims {
        rules::take(&mut record, false, me, tx.now);
    }
    let interrupts = rules::interrupts(new.multitask);
    let n = insert_run(tx, new, &record, &thread, parent, interrupts.is_some())?;
    if thread.first.is_none() {
        tx.run(
            "UPDATE threads SET ord = ord + 1, updated_at = ?2, active = coalesce(active, ?3)
             WHERE n = ?1",
            (thread.n, tx.now.0, n),
        )?;
    }
    let created = rules::created_event(new, tx.now);
    ends::insert_segment(tx, n, &rules::segment(std::slice::from_ref(&created)))?;
    if let Some(idempotency) = &new.idempotency {
        tx.run(
            "INSERT OR REPLACE INTO idempotency (tenant, route, key, body, run, at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            (&new.tenant, &idempotency.route, &idempotency.key, idempotency.body, n, tx.now.0),
        )?;
    }
    if claims.is_some() {
        return Ok(Admission::Claimed(Box::new(Claim {
            record,
            thread_version: thread.version,
            head: thread.head,
            created: Some(created),
            // Nobody can have noted anything for this run yet.
            journal: match thread.frontier.is_empty() {
                true => Vec::new(),
                false => journal::read(tx.conn, thread.n)?,
            },
            frontier: thread.frontier,
            taken_in: false,
        })));
    }
    // Before the active one ends, which would promote one of them.
    let cleared = match interrupts {
        Some(mode) if new.clears_queue => clear_queue(tx, thread.n, n, mode)?,
        Some(_) | None => Vec::new(),
    };
    let interrupted = match (thread.active, interrupts) {
        (Some(active), Some(mode)) => Some(ends::cancel(tx, active, "interrupt", mode)?),
        (Some(_), None) | (None, _) => None,
    };
    if interrupted.is_some() {
        // The end of the active one may have made this one ready.
        record = ends::find_by_n(tx.conn, n)?.record;
    }
    let pool_ahead = rules::ahead_of_new(tx.counts, &record);
    let position = QueuePosition { pool_ahead, ..thread_position(tx.conn, &record)? };
    Ok(Admission::Queued(Box::new(Queued { record, created, position, interrupted, cleared })))
}

/// Ends what waits on a thread, except for one run.
fn clear_queue(
    tx: &mut Tx<'_>,
    thread: i64,
    except: i64,
    mode: CancelMode,
) -> Result<Vec<Cancelled>, Fail> {
    let waiting = tx
        .conn
        .prepare_cached(
            "SELECT id FROM runs INDEXED BY runs_blocked
             WHERE thread = ?1 AND status = 0 AND n <> ?2 ORDER BY thread_ord",
        )?
        .query_map((thread, except), |row| Ok(RunId(row.get::<_, Id>(0)?.0)))?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    waiting.into_iter().map(|run| ends::cancel(tx, run, "interrupt", mode)).collect()
}

fn insert_run(
    tx: &mut Tx<'_>,
    new: &NewRun,
    record: &RunRecord,
    thread: &Thread,
    parent: Option<i64>,
    front: bool,
) -> rusqlite::Result<i64> {
    tx.conn
        .prepare_cached(
            "INSERT INTO runs (id, thread, thread_ord, generation, status, priority, front, idle,
                 fence, attempt, fruitless, step, commits, next_seq, committed_seq, instance,
                 created_at, ready_at, started_at, deadline_at, worked_ms, input_tokens,
                 output_tokens, rebilled_tokens, calls, tenant, owner, agent, pool, door, next, spent,
                 parent, n)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, 0, -1, 0, ?11, ?12, ?13, ?14, ?15,
                 ?16, ?17, 0, 0, 0, 0, 0, ?18, ?19, ?20, ?21, ?22, '[]', ?23, ?24, ?25)",
        )?
        .execute(rusqlite::params![
            Id(record.id.0),
            thread.n,
            record.thread_ord,
            thread.generation,
            status_number(record.status),
            record.priority.level(),
            front,
            record.status == Status::Running,
            record.fence,
            record.attempt,
            int(record.next_seq),
            int(record.committed_seq),
            record.instance.map(|instance| Id(instance.0)),
            record.created_at.0,
            record.ready_at.0,
            record.started_at.map(|at| at.0),
            record.deadline_at.map(|at| at.0),
            &record.tenant,
            &record.owner,
            &record.agent,
            &record.pool,
            &record.door,
            spent_text(&record.spent),
            parent,
            thread.first,
        ])?;
    let n = tx.conn.last_insert_rowid();
    tx.run(
        "INSERT INTO run_inputs (run, parent, working_limit_ms, metadata, input, options)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        (
            n,
            record.parent.map(|parent| Id(parent.0)),
            record.working_limit.map(ms),
            rows::text(&new.metadata),
            pack(rows::text(&new.input).as_bytes()),
            options_text(&new.options),
        ),
    )?;
    tx.moved(Move {
        pool: record.pool.clone(),
        tenant: record.tenant.clone(),
        priority: record.priority,
        from: None,
        to: record.status,
    });
    Ok(n)
}

/// Who is in front of a blocked or ready run.
pub(super) fn position(conn: &Connection, record: &RunRecord) -> rusqlite::Result<QueuePosition> {
    let pool_ahead = conn
        .prepare_cached(
            "SELECT count(*) FROM (SELECT 1 FROM runs INDEXED BY runs_ready
             WHERE status = 1 AND pool = ?1 AND priority <= ?2
                 AND (priority, ready_at, id) < (?2, ?3, ?4) LIMIT ?5)",
        )?
        .query_row(
            (
                &record.pool,
                record.priority.level(),
                record.ready_at.0,
                Id(record.id.0),
                rules::POSITION_LIMIT,
            ),
            |row| row.get(0),
        )?;
    Ok(QueuePosition { pool_ahead, ..thread_position(conn, record)? })
}

/// The part of a position that is about the thread.
fn thread_position(conn: &Connection, record: &RunRecord) -> rusqlite::Result<QueuePosition> {
    if record.status != Status::Blocked {
        return Ok(QueuePosition::default());
    }
    conn.prepare_cached(
        "SELECT (SELECT a.id FROM threads t JOIN runs a ON a.n = t.active WHERE t.n = r.thread),
             (SELECT count(*) FROM runs b INDEXED BY runs_blocked
              WHERE b.thread = r.thread AND b.status = 0
                  AND (-b.front, b.thread_ord) < (-r.front, r.thread_ord))
         FROM runs r WHERE r.id = ?1",
    )?
    .query_row([Id(record.id.0)], |row| {
        Ok(QueuePosition {
            pool_ahead: 0,
            thread_active: row.get::<_, Option<Id>>(0)?.map(|id| RunId(id.0)),
            thread_ahead: row.get(1)?,
        })
    })
}
