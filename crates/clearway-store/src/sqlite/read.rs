//! Reading, on connections of its own: a long read never holds up a write.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Mutex;

use clearway_core::channel::{Op, State};
use clearway_core::thread::ThreadRecord;
use clearway_core::{CheckpointId, RunId, RunRecord, Status, TaskId, ThreadId, Timestamp};
use rusqlite::types::Value as Sql;
use rusqlite::{Connection, OptionalExtension, params_from_iter};
use tokio::sync::Semaphore;

use super::fail::Fail;
use super::rows::{
    self, Id, Stored, number, select_run, status, status_number, stored, thread_record, versions,
};
use super::upkeep::SEGMENTS;
use super::writer::{closed, lock};
use super::{admission, channels, ends, journal, lane, schema};
use crate::error::{Error, ErrorKind, Result};
use crate::{LogPage, QueuePosition, RunPage, RunQuery, ThreadState, rules};

/// A fixed number of read connections, each opened when first needed.
#[derive(Debug)]
pub(super) struct Readers {
    path: PathBuf,
    permits: Semaphore,
    count: u32,
    idle: Mutex<Vec<Connection>>,
}

impl Readers {
    pub(super) fn new(path: PathBuf, count: u32) -> Self {
        let permits = Semaphore::new(count as usize);
        Self { path, permits, count, idle: Mutex::default() }
    }

    /// Runs `read` on one snapshot of the database.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, Fail> + Send + 'static,
    ) -> Result<T> {
        let _permit = self.permits.acquire().await.map_err(|_| closed())?;
        let idle = lock(&self.idle).pop();
        let path = self.path.clone();
        let job = move || {
            let run = || {
                let conn = idle.map_or_else(|| schema::open_reader(&path), Ok)?;
                let snapshot = conn.unchecked_transaction()?;
                let outcome = read(&snapshot);
                snapshot.commit()?;
                Ok((conn, outcome))
            };
            run()
                .map_err(|error: rusqlite::Error| Fail::Sql(error).explain(&path))
                .map(|(conn, outcome)| (conn, outcome.map_err(|fail| fail.explain(&path))))
        };
        let (conn, outcome) = lane::blocking(job).await.map_err(|error| {
            Error::new(ErrorKind::Other, "a read of the store stopped in the middle")
                .caused_by(error)
        })??;
        lock(&self.idle).push(conn);
        outcome
    }

    /// Waits for reads under way and closes all connections; later reads are refused.
    pub(super) async fn close(&self) {
        let all = self.permits.acquire_many(self.count).await;
        self.permits.close();
        drop(all);
        let idle = std::mem::take(&mut *lock(&self.idle));
        // Closing touches files.
        let _ = lane::blocking(move || drop(idle)).await;
    }
}

pub(super) fn run(conn: &Connection, run: RunId) -> Result<Option<RunRecord>, Fail> {
    Ok(ends::find(conn, run)?.map(|stored| stored.record))
}

pub(super) fn runs(conn: &Connection, query: &RunQuery) -> Result<RunPage, Fail> {
    let mut sql = String::from(select_run!("WHERE true"));
    let mut values: Vec<Sql> = Vec::new();
    let texts = [
        (" AND r.tenant = ?", &query.tenant),
        (" AND r.owner = ?", &query.owner),
        (" AND r.agent = ?", &query.agent),
        (" AND r.door = ?", &query.door),
    ];
    for (condition, text) in texts {
        if let Some(text) = text {
            sql.push_str(condition);
            values.push(Sql::Text(text.clone()));
        }
    }
    if let Some(thread) = query.thread {
        sql.push_str(" AND r.thread = (SELECT n FROM threads WHERE id = ?)");
        values.push(Sql::Blob(thread.0.as_bytes().to_vec()));
    }
    if let Some(parent) = query.parent {
        sql.push_str(" AND r.parent = (SELECT n FROM runs WHERE id = ?)");
        values.push(Sql::Blob(parent.0.as_bytes().to_vec()));
    }
    if let Some(after) = query.after {
        sql.push_str(" AND r.id < ?");
        values.push(Sql::Blob(after.0.as_bytes().to_vec()));
    }
    if !query.statuses.is_empty() {
        let numbers: Vec<String> =
            query.statuses.iter().map(|&status| status_number(status).to_string()).collect();
        sql.push_str(&format!(" AND r.status IN ({})", numbers.join(", ")));
        // Said again in the words of the partial indexes, so that they can be used.
        if query.statuses.iter().all(|status| !status.is_terminal()) {
            sql.push_str(" AND r.status < 4");
        } else if query.statuses.iter().all(|&status| status_number(status) > 4) {
            sql.push_str(" AND r.status > 4");
        }
    }
    let limit = query.page_size();
    sql.push_str(&format!(" ORDER BY r.id DESC LIMIT {}", limit + 1));
    let mut runs = conn
        .prepare_cached(&sql)?
        .query_map(params_from_iter(values), |row| stored(row).map(|Stored { record, .. }| record))?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let more = runs.len() > limit;
    runs.truncate(limit);
    Ok(RunPage { next: runs.last().filter(|_| more).map(|run| run.id), runs })
}

pub(super) fn thread(conn: &Connection, thread: ThreadId) -> Result<Option<ThreadRecord>, Fail> {
    let sql = [rows::SELECT_THREADS, " WHERE t.id = ?1"].concat();
    let mut statement = conn.prepare_cached(&sql)?;
    Ok(statement.query_row([Id(thread.0)], thread_record).optional()?)
}

pub(super) fn state(
    conn: &Connection,
    thread: ThreadId,
    at: Option<CheckpointId>,
) -> Result<Option<ThreadState>, Fail> {
    let found = conn
        .prepare_cached(
            "SELECT t.n, c.id, (SELECT id FROM checkpoints WHERE n = c.parent),
                 (SELECT id FROM runs WHERE n = c.run), c.step, c.next, c.at, c.versions, c.source
             FROM threads t JOIN checkpoints c
                 ON c.n = CASE WHEN ?2 IS NULL THEN t.head
                     ELSE (SELECT n FROM checkpoints WHERE id = ?2) END
             WHERE t.id = ?1 AND c.thread = t.n",
        )?
        .query_row((Id(thread.0), at.map(|at| Id(at.0))), |row| {
            let run = row.get::<_, Option<Id>>(3)?.map(|id| RunId(id.0));
            let step = row.get(4)?;
            let state = ThreadState {
                state: State::new(),
                checkpoint: CheckpointId(row.get::<_, Id>(1)?.0),
                parent: row.get::<_, Option<Id>>(2)?.map(|id| CheckpointId(id.0)),
                run,
                step,
                source: rows::source(row, 8)?,
                frontier: rows::frontier(row, 5, run, step)?,
                journal: Vec::new(),
                created_at: Timestamp(row.get(6)?),
            };
            Ok((row.get::<_, i64>(0)?, state, versions(row, 7)?))
        })
        .optional()?;
    let Some((thread, mut found, versions)) = found else { return Ok(None) };
    for (channel, version) in versions {
        channels::load(conn, thread, &channel, version, &mut found.state)?;
    }
    if !found.frontier.is_empty() {
        let due: BTreeSet<TaskId> = found.frontier.due.iter().map(|due| due.task).collect();
        found.journal = journal::read(conn, thread)?;
        found.journal.retain(|entry| due.contains(&entry.task));
    }
    Ok(Some(found))
}

pub(super) fn writes_of(
    conn: &Connection,
    checkpoint: CheckpointId,
    channel: &str,
) -> Result<Vec<Op>, Fail> {
    let found = conn
        .prepare_cached(
            "SELECT c.thread, c.versions, coalesce(p.versions, '{}')
             FROM checkpoints c LEFT JOIN checkpoints p ON p.n = c.parent WHERE c.id = ?1",
        )?
        .query_row([Id(checkpoint.0)], |row| {
            let version = |column| -> rusqlite::Result<u64> {
                Ok(versions(row, column)?.get(channel).copied().unwrap_or(0))
            };
            Ok((row.get::<_, i64>(0)?, version(1)?, version(2)?))
        })
        .optional()?;
    let Some((thread, version, below)) = found else { return Ok(Vec::new()) };
    let ops = channels::ops(conn, thread, channel, version, below)?;
    Ok(ops.into_iter().map(|(_, op)| op).collect())
}

pub(super) fn read_log(
    conn: &Connection,
    run: RunId,
    from: u64,
    max_bytes: usize,
) -> Result<LogPage, Fail> {
    let found: Option<(i64, i64, u64)> = conn
        .prepare_cached(
            "SELECT n, status, max(next_seq,
                 coalesce((SELECT max(end_seq) FROM run_log WHERE run = r.n), 0))
             FROM runs r WHERE id = ?1",
        )?
        .query_row([Id(run.0)], |row| Ok((row.get(0)?, row.get(1)?, number(row.get(2)?))))
        .optional()?;
    let Some((n, run_status, end)) = found else { return Err(rules::no_such_run(run).into()) };
    let mut statement = conn.prepare_cached(SEGMENTS)?;
    let mut failure = None;
    let segments = statement
        .query_map((n, rows::int(from)), rows::segment)?
        .map_while(|row| row.map_err(|error| failure = Some(error)).ok().map(Ok));
    let (events, next) = rules::page(segments, from, max_bytes)?;
    match failure {
        Some(error) => Err(error.into()),
        None => Ok(LogPage { events, next, end, status: status(run_status)? }),
    }
}

pub(super) fn queue_position(conn: &Connection, run: RunId) -> Result<Option<QueuePosition>, Fail> {
    let Some(Stored { record, .. }) = ends::find(conn, run)? else { return Ok(None) };
    match record.status {
        Status::Blocked | Status::Ready => Ok(Some(admission::position(conn, &record)?)),
        Status::Running
        | Status::Waiting
        | Status::Success
        | Status::Error
        | Status::Timeout
        | Status::Cancelled => Ok(None),
    }
}
