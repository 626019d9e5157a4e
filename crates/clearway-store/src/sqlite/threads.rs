//! Threads as people look at them.

use std::collections::BTreeSet;

use clearway_core::channel::Op;
use clearway_core::thread::ThreadRecord;
use clearway_core::{CheckpointId, Failure, RunId, ThreadId, Timestamp};
use rusqlite::types::Value as Sql;
use rusqlite::{Connection, OptionalExtension, Row, params_from_iter};
use serde_json::{Map, Value};

use super::fail::Fail;
use super::rows::{self, Id, names_text, versions};
use super::writer::{Operation, Tx};
use super::{channels, history, journal};
use crate::threads::{contains, copied_id};
use crate::{
    LastRun, NewThread, RunDeleted, Stand, StepRecord, ThreadMade, ThreadOverview, ThreadPage,
    ThreadSearch, ThreadSort, rules,
};

pub(super) struct Make(pub(super) NewThread);

impl Operation for Make {
    type Answer = ThreadMade;
    const DURABLE: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<ThreadMade, Fail> {
        let new = &self.0;
        if let Some(known) = find(tx.conn, new.id)? {
            return Ok(ThreadMade::Exists(known));
        }
        insert(tx, new)?;
        let made = find(tx.conn, new.id)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
        Ok(ThreadMade::Made(made))
    }
}

fn insert(tx: &Tx<'_>, new: &NewThread) -> rusqlite::Result<i64> {
    tx.known.add(new.id.0);
    tx.run(
        "INSERT INTO threads (id, tenant, owner, dialect, key_parts, metadata, created_at,
             updated_at, ord, generation, version)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7, 0, 0, 0)",
        (
            Id(new.id.0),
            &new.tenant,
            &new.owner,
            new.key.as_ref().map(|key| &key.dialect),
            new.key.as_ref().map(|key| names_text(&key.parts)),
            rows::text(&new.metadata),
            tx.now.0,
        ),
    )?;
    Ok(tx.conn.last_insert_rowid())
}

fn find(conn: &Connection, thread: ThreadId) -> rusqlite::Result<Option<ThreadRecord>> {
    let sql = [rows::SELECT_THREADS, " WHERE t.id = ?1"].concat();
    conn.prepare_cached(&sql)?.query_row([Id(thread.0)], rows::thread_record).optional()
}

pub(super) struct Describe {
    pub(super) thread: ThreadId,
    pub(super) metadata: Map<String, Value>,
}

impl Operation for Describe {
    type Answer = Option<ThreadRecord>;
    const DURABLE: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<Option<ThreadRecord>, Fail> {
        let Some(mut known) = find(tx.conn, self.thread)? else { return Ok(None) };
        known.metadata.extend(self.metadata.clone());
        known.updated_at = tx.now;
        tx.run(
            "UPDATE threads SET metadata = ?2, updated_at = ?3 WHERE id = ?1",
            (Id(self.thread.0), rows::text(&known.metadata), tx.now.0),
        )?;
        Ok(Some(known))
    }
}

/// Merges what a run says about its thread into the thread's metadata.
pub(super) fn describe(
    tx: &Tx<'_>,
    thread: i64,
    metadata: &Map<String, Value>,
) -> Result<(), Fail> {
    if metadata.is_empty() {
        return Ok(());
    }
    let known = tx
        .conn
        .prepare_cached("SELECT metadata FROM threads WHERE n = ?1")?
        .query_row([thread], |row| rows::json(row, 0))?;
    let Value::Object(mut known) = known else { return Ok(()) };
    if contains(&known, metadata) {
        return Ok(());
    }
    known.extend(metadata.clone());
    let text = rows::text(&known);
    tx.run("UPDATE threads SET metadata = ?2 WHERE n = ?1", (thread, text))?;
    Ok(())
}

/// Columns of an overview: those of a thread, then what it takes to say how it stands.
const OVERVIEW: &str = "SELECT t.id, t.tenant, t.owner, t.dialect, t.key_parts, t.metadata,
         t.created_at, t.updated_at, (SELECT id FROM runs WHERE n = t.active), t.ord, t.generation,
         c.id, t.version, c.at, l.id, l.status, l.failure,
         CASE WHEN t.active IS NOT NULL THEN 'busy' WHEN l.status IN (5, 6) THEN 'error'
             WHEN json_array_length(c.next, '$.due') > 0 THEN 'interrupted' ELSE 'idle' END AS stand
     FROM threads t LEFT JOIN checkpoints c ON c.n = t.head
     LEFT JOIN runs l ON l.n = (SELECT n FROM runs INDEXED BY runs_thread
         WHERE thread = t.n AND status > 3 AND rolled_back = 0 ORDER BY id DESC LIMIT 1)";

fn overview(row: &Row<'_>) -> rusqlite::Result<ThreadOverview> {
    let last = match row.get::<_, Option<Id>>(14)? {
        None => None,
        Some(id) => Some(LastRun {
            id: RunId(id.0),
            status: rows::status(row.get(15)?)?,
            failure: match row.get_ref(16)? {
                rusqlite::types::ValueRef::Null => None,
                _ => Some(Failure::from_json(&rows::json(row, 16)?)),
            },
        }),
    };
    let stand = Stand::parse(row.get_ref(17)?.as_str()?).unwrap_or(Stand::Idle);
    let state_at = row.get::<_, Option<i64>>(13)?.map(Timestamp);
    Ok(ThreadOverview { record: rows::thread_record(row)?, stand, state_at, last })
}

pub(super) fn one(conn: &Connection, thread: ThreadId) -> Result<Option<ThreadOverview>, Fail> {
    let sql = [OVERVIEW, " WHERE t.id = ?1"].concat();
    Ok(conn.prepare_cached(&sql)?.query_row([Id(thread.0)], overview).optional()?)
}

/// Conditions that SQL can judge, with their values.
fn conditions(search: &ThreadSearch) -> (String, Vec<Sql>) {
    let mut sql = String::from(" WHERE true");
    let mut values = Vec::new();
    let texts = [
        (" AND t.tenant = ?", search.tenant.as_deref()),
        (" AND t.owner = ?", search.owner.as_deref()),
        (" AND t.dialect IS NOT ?", search.except_dialect.as_deref()),
        (" AND stand = ?", search.stand.map(Stand::as_str)),
    ];
    for (condition, text) in texts {
        if let Some(text) = text {
            sql.push_str(condition);
            values.push(Sql::Text(text.to_owned()));
        }
    }
    if !search.ids.is_empty() {
        let marks = vec!["?"; search.ids.len()].join(", ");
        sql.push_str(&format!(" AND t.id IN ({marks})"));
        values.extend(search.ids.iter().map(|id| Sql::Blob(id.0.as_bytes().to_vec())));
    }
    (sql, values)
}

pub(super) fn search(conn: &Connection, search: &ThreadSearch) -> Result<ThreadPage, Fail> {
    let (conditions, values) = conditions(search);
    let column = match search.sort {
        ThreadSort::UpdatedAt => "t.updated_at",
        ThreadSort::CreatedAt => "t.created_at",
        ThreadSort::Id => "t.id",
        ThreadSort::Stand => "stand",
        ThreadSort::StateAt => "c.at",
    };
    let way = if search.ascending { "ASC" } else { "DESC" };
    let sql = format!("{OVERVIEW}{conditions} ORDER BY {column} {way}, t.n {way}");
    let mut statement = conn.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let (mut skip, limit) = (search.offset, rules::page_size(search.limit));
    let mut threads = Vec::new();
    while let Some(row) = rows.next()? {
        let thread = overview(row)?;
        if !contains(&thread.record.metadata, &search.metadata) {
            continue;
        }
        if skip > 0 {
            skip -= 1;
        } else if threads.len() == limit {
            return Ok(ThreadPage { threads, more: true });
        } else {
            threads.push(thread);
        }
    }
    Ok(ThreadPage { threads, more: false })
}

pub(super) fn count(conn: &Connection, search: &ThreadSearch) -> Result<u64, Fail> {
    let (conditions, values) = conditions(search);
    let mut statement = conn.prepare_cached(&format!("{OVERVIEW}{conditions}"))?;
    let mut rows = statement.query(params_from_iter(values))?;
    let mut count = 0;
    while let Some(row) = rows.next()? {
        let fits = search.metadata.is_empty()
            || contains(&overview(row)?.record.metadata, &search.metadata);
        count += u64::from(fits);
    }
    Ok(count)
}

pub(super) fn steps(
    conn: &Connection,
    run: RunId,
    after: Option<CheckpointId>,
    limit: u32,
) -> Result<Vec<StepRecord>, Fail> {
    let found: Option<(i64, i64)> = conn
        .prepare_cached("SELECT n, thread FROM runs WHERE id = ?1")?
        .query_row([Id(run.0)], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((n, thread)) = found else { return Ok(Vec::new()) };
    // Behind a known one there is little but the run's own; without one its own are asked for.
    let (table, condition) = match after {
        Some(_) => ("checkpoints_thread", "c.thread = ?2 AND c.id > ?3 AND c.run = ?1"),
        None => ("checkpoints_run", "c.run = ?1 AND c.thread = ?2 AND ?3 IS NULL"),
    };
    let sql = format!(
        "SELECT c.id, p.id, (SELECT id FROM runs WHERE n = c.run), c.step, c.source, c.next, c.at,
             c.versions, coalesce(p.versions, '{{}}')
         FROM checkpoints c INDEXED BY {table} LEFT JOIN checkpoints p ON p.n = c.parent
         WHERE {condition} ORDER BY c.id LIMIT ?4"
    );
    let after = after.map(|id| Id(id.0));
    let rows = conn
        .prepare_cached(&sql)?
        .query_map((n, thread, after, rules::page_size(limit) as i64), |row| {
            Ok((history::checkpoint(row)?, versions(row, 7)?, versions(row, 8)?))
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let mut steps = Vec::with_capacity(rows.len());
    for (checkpoint, versions, before) in rows {
        let mut ops: Vec<(std::sync::Arc<str>, Op)> = Vec::new();
        for (channel, version) in versions {
            let below = before.get(&channel).copied().unwrap_or(0);
            let of_channel = channels::ops(conn, thread, &channel, version, below)?;
            ops.extend(of_channel.into_iter().map(|(_, op)| (channel.as_str().into(), op)));
        }
        steps.push(StepRecord { checkpoint, ops });
    }
    Ok(steps)
}

pub(super) struct Copy {
    pub(super) from: ThreadId,
    pub(super) to: ThreadId,
    pub(super) salt: [u8; 6],
}

impl Operation for Copy {
    type Answer = Option<ThreadRecord>;
    const DURABLE: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<Option<ThreadRecord>, Fail> {
        if let Some(known) = find(tx.conn, self.to)? {
            return Ok(Some(known));
        }
        let Some(source) = find(tx.conn, self.from)? else { return Ok(None) };
        let from: i64 = tx
            .conn
            .prepare_cached("SELECT n FROM threads WHERE id = ?1")?
            .query_row([Id(self.from.0)], |row| row.get(0))?;
        let new = NewThread {
            id: self.to,
            tenant: source.tenant,
            owner: source.owner,
            key: None,
            metadata: source.metadata,
        };
        let to = insert(tx, &new)?;
        // Parents come before children, so a child's is known when its turn comes.
        let rows = tx
            .conn
            .prepare_cached("SELECT n, id, parent FROM checkpoints WHERE thread = ?1 ORDER BY n")?
            .query_map([from], |row| {
                Ok((row.get(0)?, row.get::<_, Id>(1)?, row.get::<_, Option<i64>>(2)?))
            })?
            .collect::<rusqlite::Result<Vec<(i64, Id, Option<i64>)>>>()?;
        let mut copies = std::collections::HashMap::new();
        for (n, id, parent) in rows {
            let parent = parent.and_then(|parent| copies.get(&parent).copied());
            tx.run(
                "INSERT INTO checkpoints (id, thread, parent, run, step, source, next, versions, at)
                 SELECT ?2, ?3, ?4, 0, step, source, next, versions, at FROM checkpoints WHERE n = ?1",
                (n, Id(copied_id(id.0, self.salt)), to, parent),
            )?;
            copies.insert(n, tx.conn.last_insert_rowid());
        }
        for sql in [
            "INSERT INTO deltas (thread, channel, version, previous, op, total, data, blob)
             SELECT ?2, channel, version, previous, op, total, data, blob FROM deltas
             WHERE thread = ?1 ORDER BY id",
            "INSERT INTO snapshots (thread, channel, version, total, size, data)
             SELECT ?2, channel, version, total, size, data FROM snapshots WHERE thread = ?1",
            "INSERT INTO journal (thread, task, key, data)
             SELECT ?2, task, key, data FROM journal WHERE thread = ?1 AND settled IS NULL",
            "UPDATE threads SET version = (SELECT version FROM threads WHERE n = ?1) WHERE n = ?2",
        ] {
            tx.run(sql, (from, to))?;
        }
        let head: Option<i64> = tx
            .conn
            .prepare_cached("SELECT head FROM threads WHERE n = ?1")?
            .query_row([from], |row| row.get(0))?;
        let head = head.and_then(|head| copies.get(&head).copied());
        tx.run("UPDATE threads SET head = ?2 WHERE n = ?1", (to, head))?;
        Ok(find(tx.conn, self.to)?)
    }
}

pub(super) struct DeleteRun(pub(super) RunId);

impl Operation for DeleteRun {
    type Answer = RunDeleted;
    const DURABLE: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<RunDeleted, Fail> {
        let found: Option<(i64, i64, i64, Option<i64>)> = tx
            .conn
            .prepare_cached(
                "SELECT r.n, r.thread, r.status, t.head FROM runs r JOIN threads t ON t.n = r.thread
                 WHERE r.id = ?1 AND r.rolled_back = 0",
            )?
            .query_row([Id(self.0.0)], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            })
            .optional()?;
        let Some((run, thread, status, head)) = found else { return Ok(RunDeleted::NotFound) };
        if status < 4 {
            return Ok(RunDeleted::Unfinished);
        }
        let own: BTreeSet<i64> = tx
            .conn
            .prepare_cached("SELECT n FROM checkpoints WHERE run = ?1")?
            .query_map([run], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        // What later runs were built on stays: only the newest part of a history can be taken away.
        if head.is_some_and(|head| own.contains(&head)) && !is_built_on(tx, thread, run)? {
            let mut base = head;
            while let Some(n) = base.filter(|n| own.contains(n)) {
                base = tx
                    .conn
                    .prepare_cached("SELECT parent FROM checkpoints WHERE n = ?1")?
                    .query_row([n], |row| row.get(0))?;
            }
            tx.run("DELETE FROM checkpoints WHERE run = ?1", [run])?;
            tx.run(
                "UPDATE threads SET head = ?2, updated_at = ?3 WHERE n = ?1",
                (thread, base, tx.now.0),
            )?;
            tx.run("UPDATE runs SET checkpoint = NULL WHERE n = ?1", [run])?;
            if let Some(base) = base {
                let known = super::commit::versions_at(tx, base)?;
                channels::forget_snapshots(tx, thread, &known)?;
            } else {
                tx.run("DELETE FROM snapshots WHERE thread = ?1", [thread])?;
            }
            journal::forget(tx, thread, run, true)?;
        }
        tx.run("UPDATE runs SET rolled_back = 1 WHERE n = ?1", [run])?;
        Ok(RunDeleted::Done)
    }
}

/// Whether some other run's checkpoint hangs on one of this run's, or an unfinished one begins there.
fn is_built_on(tx: &Tx<'_>, thread: i64, run: i64) -> rusqlite::Result<bool> {
    tx.conn
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM checkpoints c JOIN checkpoints p ON p.n = c.parent
                 WHERE c.thread = ?1 AND p.run = ?2 AND c.run <> ?2)
             OR EXISTS (SELECT 1 FROM runs WHERE thread = ?1 AND status < 4)",
        )?
        .query_row((thread, run), |row| row.get(0))
}

/// Threads of a dialect that nobody has changed since.
pub(super) fn stale(
    conn: &Connection,
    dialect: &str,
    since: Timestamp,
    limit: u32,
) -> Result<Vec<ThreadId>, Fail> {
    let found = conn
        .prepare_cached(
            "SELECT id FROM threads WHERE dialect = ?1 AND updated_at < ?2 AND active IS NULL
             LIMIT ?3",
        )?
        .query_map((dialect, since.0, limit), |row| Ok(ThreadId(row.get::<_, Id>(0)?.0)))?
        .collect::<rusqlite::Result<_>>()?;
    Ok(found)
}
