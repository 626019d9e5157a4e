//! Files that runs made.

use bytes::Bytes;
use clearway_core::{RunId, TaskId, Timestamp};
use rusqlite::{Connection, OptionalExtension, Row};

use super::channels;
use super::fail::Fail;
use super::rows::{Id, blob, number, unpack};
use super::writer::{Operation, Tx};
use crate::{ArtifactRecord, ArtifactScope, ArtifactStored, NewArtifact};

pub(super) struct Put(pub(super) NewArtifact);

impl Operation for Put {
    type Answer = ArtifactStored;
    const DURABLE: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<ArtifactStored, Fail> {
        let new = &self.0;
        let owner: Option<(i64, i64, String)> = tx
            .conn
            .prepare_cached(
                "SELECT n, thread, tenant FROM runs WHERE id = ?1 AND fence = ?2 AND status = 2",
            )?
            .query_row((Id(new.run.0), new.fence), |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })
            .optional()?;
        let Some((run, thread, tenant)) = owner else { return Ok(ArtifactStored::Fenced) };
        let blob = channels::keep_blob(tx, &tenant, &new.bytes)?;
        let newest: Option<(i64, u32, Vec<u8>, i64)> = tx
            .conn
            .prepare_cached(
                "SELECT id, version, task, blob FROM artifacts WHERE run = ?1 AND name = ?2
                 ORDER BY version DESC LIMIT 1",
            )?
            .query_row((run, &new.name), |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            })
            .optional()?;
        // The same call again, after a crash: its file takes the place of its file.
        let version = match &newest {
            Some((id, version, task, old)) if *task == new.task.0.as_bytes() => {
                tx.run("DELETE FROM artifacts WHERE id = ?1", [id])?;
                if *old != blob {
                    channels::drop_blob(tx, *old)?;
                }
                *version
            }
            other => {
                let count: u32 = tx
                    .conn
                    .prepare_cached("SELECT count(*) FROM artifacts WHERE run = ?1")?
                    .query_row([run], |row| row.get(0))?;
                if count >= new.limit {
                    channels::drop_blob(tx, blob)?;
                    return Ok(ArtifactStored::TooMany);
                }
                other.as_ref().map_or(1, |(_, version, ..)| version + 1)
            }
        };
        tx.run(
            "INSERT INTO artifacts (run, thread, name, version, task, node, media_type, size,
                 sha256, blob, at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
            (
                run,
                thread,
                &new.name,
                version,
                Id(new.task.0),
                &new.node,
                &new.media_type,
                new.bytes.len() as i64,
                &new.sha256[..],
                blob,
                tx.now.0,
            ),
        )?;
        Ok(ArtifactStored::Stored(ArtifactRecord {
            run: new.run,
            name: new.name.clone(),
            version,
            task: new.task,
            node: new.node.clone(),
            media_type: new.media_type.clone(),
            size_bytes: new.bytes.len() as u64,
            sha256: new.sha256,
            created_at: tx.now,
        }))
    }
}

const COLUMNS: &str = "SELECT r.id, a.name, a.version, a.task, a.node, a.media_type, a.size, a.sha256, a.at, \
     a.blob FROM artifacts a JOIN runs r ON r.n = a.run ";

fn record(row: &Row<'_>) -> rusqlite::Result<ArtifactRecord> {
    Ok(ArtifactRecord {
        run: RunId(row.get::<_, Id>(0)?.0),
        name: row.get(1)?,
        version: row.get(2)?,
        task: TaskId(row.get::<_, Id>(3)?.0),
        node: row.get(4)?,
        media_type: row.get(5)?,
        size_bytes: number(row.get(6)?),
        sha256: row.get(7)?,
        created_at: Timestamp(row.get(8)?),
    })
}

/// Which rows, with the id as `?1`.
const fn scope(of: ArtifactScope) -> (&'static str, Id) {
    match of {
        ArtifactScope::Run(run) => ("a.run = (SELECT n FROM runs WHERE id = ?1)", Id(run.0)),
        ArtifactScope::Thread(thread) => {
            ("a.thread = (SELECT n FROM threads WHERE id = ?1) AND r.rolled_back = 0", Id(thread.0))
        }
    }
}

pub(super) fn list(conn: &Connection, of: ArtifactScope) -> Result<Vec<ArtifactRecord>, Fail> {
    let (condition, id) = scope(of);
    let sql = format!("{COLUMNS} WHERE {condition} ORDER BY a.id");
    let all = conn
        .prepare_cached(&sql)?
        .query_map([id], record)?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    // Rows are in the order of making, so a later one of the same name is newer.
    let newest = |at: usize| !all[at + 1..].iter().any(|later| later.name == all[at].name);
    Ok((0..all.len()).filter(|&at| newest(at)).map(|at| all[at].clone()).collect())
}

pub(super) fn read(
    conn: &Connection,
    of: ArtifactScope,
    name: &str,
    version: Option<u32>,
) -> Result<Option<(ArtifactRecord, Bytes)>, Fail> {
    let (condition, id) = scope(of);
    let sql = format!(
        "{COLUMNS} WHERE {condition} AND a.name = ?2 AND (?3 IS NULL OR a.version = ?3)
         ORDER BY a.id DESC LIMIT 1"
    );
    let found: Option<(ArtifactRecord, i64)> = conn
        .prepare_cached(&sql)?
        .query_row((id, name, version), |row| Ok((record(row)?, row.get(9)?)))
        .optional()?;
    let Some((record, blob_id)) = found else { return Ok(None) };
    let bytes = conn
        .prepare_cached("SELECT data FROM blobs WHERE id = ?1")?
        .query_row([blob_id], |row| Ok(Bytes::from(unpack(blob(row, 0)?)?.into_owned())))?;
    Ok(Some((record, bytes)))
}
