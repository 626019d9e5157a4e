//! Channels on disk: deltas, snapshots and large values.
//!
//! A channel's value at some version is what its chain of deltas adds up to, followed by `previous`
//! down to the last assignment, to a snapshot, or to the beginning. Branches share the part of the
//! chain below them.
//!
//! A snapshot is taken when the bytes since the last one reach its size (and 64 KiB): so all
//! snapshots together cost at most twice what the deltas cost, and reading the head costs at most
//! about twice what the value weighs. Only the newest of a channel is kept.
//!
//! **Invariant:** a snapshot never holds anything that its deltas do not; losing all of them loses
//! nothing but time.

use clearway_core::channel::{Op, State};
use clearway_core::machine::Delta;
use rusqlite::{Connection, OptionalExtension};
use uuid::Uuid;

use super::fail::Fail;
use super::rows::{Id, LARGE, blob, int, number, pack, unpack};
use super::writer::Tx;
use crate::error::{Error, ErrorKind};
use crate::rules::Versions;

/// Added to a delta's tag when its data is packed.
const PACKED: u8 = 16;

/// Bytes of deltas that are always replayed rather than snapshotted.
const SNAPSHOT_FROM: u64 = 64 * 1024;

/// A channel that has grown enough for a snapshot.
#[derive(Clone, Debug)]
pub(super) struct Due {
    /// `threads.n`
    thread: i64,
    channel: String,
    version: u64,
    total: u64,
}

/// Stores one delta.
pub(super) fn store_delta(
    tx: &mut Tx<'_>,
    thread: i64,
    tenant: &str,
    delta: &Delta,
) -> Result<(), Fail> {
    let data = delta.op.encode();
    let before = match delta.previous {
        0 => 0,
        previous => tx
            .conn
            .prepare_cached(
                "SELECT total FROM deltas WHERE thread = ?1 AND channel = ?2 AND version = ?3",
            )?
            .query_row((thread, &*delta.channel, int(previous)), |row| row.get(0).map(number))?,
    };
    let assigns = matches!(delta.op, Op::Assign(_));
    // An assignment begins the chain anew: whatever came before is not replayed.
    let total = if assigns { 0 } else { before + data.len() as u64 };
    let stored = if data.len() > LARGE { store_blob(tx, tenant, &data)? } else { None };
    tx.run(
        "INSERT INTO deltas (thread, channel, version, previous, op, total, data, blob)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        (
            thread,
            &*delta.channel,
            int(delta.version),
            int(delta.previous),
            delta.op.tag() | PACKED,
            int(total),
            stored.is_none().then(|| pack(&data)),
            stored,
        ),
    )?;
    if assigns && before >= SNAPSHOT_FROM {
        let sql = "DELETE FROM snapshots WHERE thread = ?1 AND channel = ?2";
        tx.run(sql, (thread, &*delta.channel))?;
    }
    if total >= SNAPSHOT_FROM && is_due(tx.conn, thread, &delta.channel, total)? {
        let channel = delta.channel.to_string();
        tx.due.push(Due { thread, channel, version: delta.version, total });
    }
    Ok(())
}

fn is_due(conn: &Connection, thread: i64, channel: &str, total: u64) -> rusqlite::Result<bool> {
    let last = conn
        .prepare_cached("SELECT total, size FROM snapshots WHERE thread = ?1 AND channel = ?2")?
        .query_row((thread, channel), |row| Ok((number(row.get(0)?), number(row.get(1)?))))
        .optional()?;
    Ok(last.is_none_or(|(at, size)| total.saturating_sub(at) >= size.max(SNAPSHOT_FROM)))
}

/// Drops the snapshots of values that are newer than these.
pub(super) fn forget_snapshots(
    tx: &Tx<'_>,
    thread: i64,
    versions: &Versions,
) -> rusqlite::Result<()> {
    let taken = tx
        .conn
        .prepare_cached("SELECT id, channel, version FROM snapshots WHERE thread = ?1")?
        .query_map([thread], |row| Ok((row.get(0)?, row.get(1)?, number(row.get(2)?))))?
        .collect::<rusqlite::Result<Vec<(i64, String, u64)>>>()?;
    for (id, channel, version) in taken {
        if version > versions.get(&channel).copied().unwrap_or(0) {
            tx.run("DELETE FROM snapshots WHERE id = ?1", [id])?;
        }
    }
    Ok(())
}

/// Stores a large value once per tenant. `None` when another value has the same hash: then it is
/// kept in the row, since a reference must never lead to somebody else's bytes.
fn store_blob(tx: &Tx<'_>, tenant: &str, data: &[u8]) -> rusqlite::Result<Option<i64>> {
    let hash = Id(Uuid::new_v5(&Uuid::nil(), data));
    let known: Option<(i64, bool)> = tx
        .conn
        .prepare_cached("SELECT id, data FROM blobs WHERE tenant = ?1 AND hash = ?2")?
        .query_row((tenant, hash), |row| Ok((row.get(0)?, *unpack(blob(row, 1)?)? == *data)))
        .optional()?;
    match known {
        Some((id, same)) => Ok(same.then_some(id)),
        None => {
            tx.run(
                "INSERT INTO blobs (tenant, hash, data) VALUES (?1, ?2, ?3)",
                (tenant, hash, pack(data)),
            )?;
            Ok(Some(tx.conn.last_insert_rowid()))
        }
    }
}

/// Stores a file as a large value; two with one hash are told apart.
pub(super) fn keep_blob(tx: &Tx<'_>, tenant: &str, data: &[u8]) -> rusqlite::Result<i64> {
    if let Some(id) = store_blob(tx, tenant, data)? {
        return Ok(id);
    }
    let length = data.len().to_le_bytes();
    let hash = Id(Uuid::new_v5(&Uuid::max(), &[&length[..], data].concat()));
    let sql = "INSERT INTO blobs (tenant, hash, data) VALUES (?1, ?2, ?3)";
    tx.run(sql, (tenant, hash, pack(data)))?;
    Ok(tx.conn.last_insert_rowid())
}

/// Deletes a large value that nobody refers to any more; says how many bytes that gave back.
pub(super) fn drop_blob(tx: &Tx<'_>, id: i64) -> rusqlite::Result<u64> {
    let used = tx
        .conn
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM deltas INDEXED BY deltas_blob
                 WHERE blob IS NOT NULL AND blob = ?1)
             OR EXISTS (SELECT 1 FROM artifacts INDEXED BY artifacts_blob WHERE blob = ?1)",
        )?
        .query_row([id], |row| row.get::<_, bool>(0))?;
    if used {
        return Ok(0);
    }
    tx.conn
        .prepare_cached("DELETE FROM blobs WHERE id = ?1 RETURNING length(data)")?
        .query_row([id], |row| row.get(0).map(number))
        .optional()
        .map(Option::unwrap_or_default)
}

/// Ops of a channel after version `below` up to `version`, oldest first, as stored.
pub(super) fn ops(
    conn: &Connection,
    thread: i64,
    channel: &str,
    version: u64,
    below: u64,
) -> Result<Vec<(u64, Op)>, Fail> {
    let mut ops = Vec::new();
    let mut next = version;
    if next <= below {
        return Ok(ops);
    }
    let mut statement = conn.prepare_cached(
        "SELECT version, previous, op, data, blob FROM deltas
         WHERE thread = ?1 AND channel = ?2 AND version <= ?3 ORDER BY version DESC",
    )?;
    let mut rows = statement.query((thread, channel, int(version)))?;
    while next > below {
        let Some(row) = rows.next()? else { return Err(broken(channel, next)) };
        if number(row.get(0)?) != next {
            // Another branch's.
            continue;
        }
        let op = read_op(conn, row)?.ok_or_else(|| broken(channel, next))?;
        ops.push((next, op));
        next = number(row.get(1)?);
    }
    ops.reverse();
    Ok(ops)
}

/// Brings one channel of `state` to its value at `version`.
pub(super) fn load(
    conn: &Connection,
    thread: i64,
    channel: &str,
    version: u64,
    state: &mut State,
) -> Result<(), Fail> {
    let snapshot: Option<u64> = conn
        .prepare_cached("SELECT version FROM snapshots WHERE thread = ?1 AND channel = ?2")?
        .query_row((thread, channel), |row| row.get(0).map(number))
        .optional()?;
    let mut statement = conn.prepare_cached(
        "SELECT version, previous, op, data, blob FROM deltas
         WHERE thread = ?1 AND channel = ?2 AND version <= ?3 ORDER BY version DESC",
    )?;
    let mut rows = statement.query((thread, channel, int(version)))?;
    let mut newer = Vec::new();
    let mut next = version;
    while next > 0 {
        if snapshot == Some(next) {
            newer.push((next, Op::Assign(read_snapshot(conn, thread, channel)?)));
            break;
        }
        let Some(row) = rows.next()? else { return Err(broken(channel, next)) };
        if number(row.get(0)?) != next {
            continue;
        }
        let op = read_op(conn, row)?.ok_or_else(|| broken(channel, next))?;
        let assigns = matches!(op, Op::Assign(_));
        newer.push((next, op));
        if assigns {
            break;
        }
        next = number(row.get(1)?);
    }
    for (version, op) in newer.into_iter().rev() {
        state.apply_at(channel, op, version);
    }
    Ok(())
}

fn read_snapshot(conn: &Connection, thread: i64, channel: &str) -> Result<serde_json::Value, Fail> {
    let value = conn
        .prepare_cached("SELECT data FROM snapshots WHERE thread = ?1 AND channel = ?2")?
        .query_row((thread, channel), |row| {
            let data = unpack(blob(row, 0)?)?;
            Ok(serde_json::from_slice(&data).map_err(rusqlite::types::FromSqlError::other)?)
        })?;
    Ok(value)
}

/// Reads `op, data, blob` in columns 2 to 4.
fn read_op(conn: &Connection, row: &rusqlite::Row<'_>) -> rusqlite::Result<Option<Op>> {
    let tag: u8 = row.get(2)?;
    let (packed, tag) = (tag & PACKED != 0, tag & !PACKED);
    match row.get::<_, Option<i64>>(4)? {
        None if packed => Ok(Op::decode(tag, &unpack(blob(row, 3)?)?)),
        None => Ok(Op::decode(tag, blob(row, 3)?)),
        Some(id) => conn
            .prepare_cached("SELECT data FROM blobs WHERE id = ?1")?
            .query_row([id], |row| Ok(Op::decode(tag, &unpack(blob(row, 0)?)?))),
    }
}

fn broken(channel: &str, version: u64) -> Fail {
    let message = format!("version {version} of channel `{channel}` is missing or damaged");
    Fail::Refused(Error::new(ErrorKind::Corrupt, message))
}

/// Takes the snapshots that [`store_delta`] asked for; of one channel only the newest.
pub(super) fn snapshots(conn: &Connection, due: &[Due]) -> Result<(), Fail> {
    for (at, one) in due.iter().enumerate() {
        let same = |other: &Due| (other.thread, &other.channel) == (one.thread, &one.channel);
        if !due[at + 1..].iter().any(same) {
            snapshot(conn, one)?;
        }
    }
    Ok(())
}

fn snapshot(conn: &Connection, due: &Due) -> Result<(), Fail> {
    let Due { thread, channel, version, total } = due;
    let mut state = State::new();
    load(conn, *thread, channel, *version, &mut state)?;
    let Some(value) = state.get(channel) else { return Ok(()) };
    let data = value.to_string().into_bytes();
    conn.prepare_cached(
        "INSERT INTO snapshots (thread, channel, version, total, size, data)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT (thread, channel) DO UPDATE SET version = excluded.version,
             total = excluded.total, size = excluded.size, data = excluded.data",
    )?
    .execute((thread, channel, int(*version), int(*total), data.len() as i64, pack(&data)))?;
    Ok(())
}
