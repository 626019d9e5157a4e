//! Rows to values and back.

use std::borrow::Cow;
use std::cell::RefCell;
use std::time::Duration;

use clearway_core::event::Segment;
use clearway_core::machine::{Park, Source};
use clearway_core::plan::{Due, Frontier};
use clearway_core::run::{Parked, RunOptions, Usage};
use clearway_core::thread::{ThreadKey, ThreadRecord};
use clearway_core::wait::{Spent, WaitKind};
use clearway_core::{
    CheckpointId, Failure, InstanceId, Priority, RunId, RunRecord, Status, TaskId, ThreadId,
    Timestamp,
};
use rusqlite::Row;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use serde::Serialize;
use serde_json::{Map, Value};
use uuid::Uuid;
use zstd::bulk::{Compressor, Decompressor};

use crate::rules::Versions;

/// A run as stored, with the columns that records do not show.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) n: i64,
    /// `threads.n`
    pub(super) thread: i64,
    pub(super) idle: bool,
    /// Its end takes back what it committed.
    pub(super) rollback: bool,
    /// `runs.n`
    pub(super) parent: Option<i64>,
    pub(super) record: RunRecord,
}

/// `SELECT … FROM runs r …` for [`stored`], followed by the given end of the statement.
macro_rules! select_run {
    ($end:expr) => {
        concat!(
            "SELECT r.n, r.thread, r.idle, r.id, r.tenant, r.owner, t.id, r.thread_ord, i.parent, \
             r.agent, r.pool, r.door, r.priority, r.status, i.metadata, i.input, r.created_at, \
             r.ready_at, r.started_at, r.ended_at, r.deadline_at, i.working_limit_ms, r.worked_ms, \
             r.attempt, r.fruitless, r.fence, r.instance, r.cancel, r.step, r.next, r.commits, \
             r.next_seq, (SELECT max(end_seq) FROM run_log WHERE run = r.n), r.committed_seq, \
             c.id, r.failure, r.spent, r.input_tokens, r.output_tokens, r.rebilled_tokens, r.calls, \
             r.cost_micros, r.park, r.parked_at, r.wake_at, r.rolled_back, i.options, r.parent \
             FROM runs r JOIN threads t ON t.n = r.thread JOIN run_inputs i ON i.run = r.n \
             LEFT JOIN checkpoints c ON c.n = r.checkpoint ",
            $end
        )
    };
}
pub(super) use select_run;

/// Reads a row of [`select_run`].
pub(super) fn stored(row: &Row<'_>) -> rusqlite::Result<Stored> {
    let next_seq: i64 = row.get(31)?;
    let tail: Option<i64> = row.get(32)?;
    let record = RunRecord {
        id: RunId(id(row, 3)?),
        tenant: row.get(4)?,
        owner: row.get(5)?,
        thread: ThreadId(id(row, 6)?),
        thread_ord: row.get(7)?,
        parent: row.get::<_, Option<Id>>(8)?.map(|id| RunId(id.0)),
        agent: row.get(9)?,
        pool: row.get(10)?,
        door: row.get(11)?,
        priority: priority(row, 12)?,
        status: status(row.get(13)?)?,
        metadata: object(row, 14)?,
        input: from_json(&unpack(blob(row, 15)?)?)?,
        options: options(row, 46)?,
        created_at: Timestamp(row.get(16)?),
        ready_at: Timestamp(row.get(17)?),
        started_at: row.get::<_, Option<i64>>(18)?.map(Timestamp),
        ended_at: row.get::<_, Option<i64>>(19)?.map(Timestamp),
        deadline_at: row.get::<_, Option<i64>>(20)?.map(Timestamp),
        working_limit: row.get::<_, Option<i64>>(21)?.map(duration),
        worked: duration(row.get(22)?),
        attempt: row.get(23)?,
        fruitless: row.get(24)?,
        fence: row.get(25)?,
        instance: row.get::<_, Option<Id>>(26)?.map(|id| InstanceId(id.0)),
        cancel_requested: row.get(27)?,
        parked: parked(row, 42)?,
        rolled_back: row.get(45)?,
        step: row.get(28)?,
        next: names(row, 29)?,
        commits: number(row.get(30)?),
        next_seq: number(next_seq.max(tail.unwrap_or(0))),
        committed_seq: number(row.get(33)?),
        checkpoint: row.get::<_, Option<Id>>(34)?.map(|id| CheckpointId(id.0)),
        failure: match row.get_ref(35)? {
            ValueRef::Null => None,
            _ => Some(Failure::from_json(&json(row, 35)?)),
        },
        spent: spent(row, 36)?,
        usage: Usage {
            input_tokens: number(row.get(37)?),
            output_tokens: number(row.get(38)?),
            rebilled_tokens: number(row.get(39)?),
            calls: row.get(40)?,
            cost_micros: number(row.get(41)?),
        },
    };
    Ok(Stored {
        n: row.get(0)?,
        thread: row.get(1)?,
        idle: row.get(2)?,
        rollback: row.get::<_, i64>(27)? == ROLLBACK,
        parent: row.get(47)?,
        record,
    })
}

/// `runs.cancel` when somebody wants the run to end.
pub(super) const CANCEL: i64 = 1;

/// `runs.cancel` when what it committed is to be taken back, too.
pub(super) const ROLLBACK: i64 = 2;

/// Options as stored; `NULL` for none.
pub(super) fn options_text(options: &RunOptions) -> Option<String> {
    (!options.is_empty()).then(|| options.to_json().to_string())
}

pub(super) fn options(row: &Row<'_>, column: usize) -> rusqlite::Result<RunOptions> {
    match row.get_ref(column)? {
        ValueRef::Null => Ok(RunOptions::default()),
        _ => Ok(RunOptions::from_json(&json(row, column)?).ok_or(FromSqlError::InvalidType)?),
    }
}

pub(super) fn park_text(park: &Park) -> String {
    let Park { kind, detail, on_child, .. } = park;
    serde_json::json!({"kind": kind.as_str(), "detail": detail, "on_child": on_child}).to_string()
}

/// Reads `park, parked_at, wake_at`.
fn parked(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Parked>> {
    if row.get_ref(column)? == ValueRef::Null {
        return Ok(None);
    }
    let park = json(row, column)?;
    let kind = WaitKind::ALL.iter().copied().find(|kind| park["kind"] == kind.as_str());
    let park = Park {
        kind: kind.ok_or(FromSqlError::InvalidType)?,
        detail: park["detail"].as_str().unwrap_or_default().to_owned(),
        wake_at: row.get::<_, Option<i64>>(column + 2)?.map(Timestamp),
        on_child: park["on_child"] == true,
    };
    Ok(Some(Parked { park, since: Timestamp(row.get(column + 1)?) }))
}

/// What a checkpoint goes on with.
pub(super) fn frontier_text(frontier: &Frontier) -> Cow<'static, str> {
    if *frontier == Frontier::default() {
        return Cow::Borrowed("{}");
    }
    Cow::Owned(text(frontier))
}

/// The other way; `run` and `step` are the checkpoint's.
pub(super) fn frontier(
    row: &Row<'_>,
    column: usize,
    run: Option<RunId>,
    step: i64,
) -> rusqlite::Result<Frontier> {
    if row.get_ref(column)?.as_str() == Ok("{}") {
        return Ok(Frontier::default());
    }
    match (json(row, column)?, run) {
        // Written before calls had ids: only the names of the nodes.
        (Value::Array(names), Some(run)) => {
            let due = names.iter().filter_map(Value::as_str).map(|node| Due {
                task: TaskId::of(run, step + 1, node, 0),
                node: node.into(),
                payload: None,
            });
            Ok(Frontier { due: due.collect(), ..Frontier::default() })
        }
        (value, _) => Ok(Frontier::from_json(&value).ok_or(FromSqlError::InvalidType)?),
    }
}

pub(super) fn source(row: &Row<'_>, column: usize) -> rusqlite::Result<Source> {
    Ok(Source::parse(row.get_ref(column)?.as_str()?).ok_or(FromSqlError::InvalidType)?)
}

/// Columns of a thread for [`thread_record`].
pub(super) const SELECT_THREADS: &str = "SELECT t.id, t.tenant, t.owner, t.dialect, t.key_parts, t.metadata, t.created_at, \
     t.updated_at, (SELECT id FROM runs WHERE n = t.active), t.ord, t.generation, \
     (SELECT id FROM checkpoints WHERE n = t.head), t.version FROM threads t";

pub(super) fn thread_record(row: &Row<'_>) -> rusqlite::Result<ThreadRecord> {
    let dialect: Option<String> = row.get(3)?;
    Ok(ThreadRecord {
        id: ThreadId(id(row, 0)?),
        tenant: row.get(1)?,
        owner: row.get(2)?,
        key: match dialect {
            Some(dialect) => Some(ThreadKey { dialect, parts: names(row, 4)? }),
            None => None,
        },
        metadata: object(row, 5)?,
        created_at: Timestamp(row.get(6)?),
        updated_at: Timestamp(row.get(7)?),
        active_run: row.get::<_, Option<Id>>(8)?.map(|id| RunId(id.0)),
        ord: row.get(9)?,
        generation: row.get(10)?,
        head: row.get::<_, Option<Id>>(11)?.map(|id| CheckpointId(id.0)),
        version: number(row.get(12)?),
    })
}

/// Reads `first_seq, end_seq, fence, at, bytes`.
pub(super) fn segment(row: &Row<'_>) -> rusqlite::Result<Segment> {
    Ok(Segment {
        first_seq: number(row.get(0)?),
        end_seq: number(row.get(1)?),
        fence: row.get(2)?,
        at: Timestamp(row.get(3)?),
        bytes: row.get::<_, Vec<u8>>(4)?.into(),
    })
}

/// An id in its 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id(pub(super) Uuid);

impl ToSql for Id {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Blob(self.0.as_bytes())))
    }
}

impl FromSql for Id {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let bytes = <[u8; 16]>::column_result(value)?;
        Ok(Self(Uuid::from_bytes(bytes)))
    }
}

fn id(row: &Row<'_>, column: usize) -> rusqlite::Result<Uuid> {
    Ok(row.get::<_, Id>(column)?.0)
}

pub(super) fn priority(row: &Row<'_>, column: usize) -> rusqlite::Result<Priority> {
    Ok(Priority::new(row.get(column)?).ok_or(FromSqlError::InvalidType)?)
}

pub(super) const fn status_number(status: Status) -> i64 {
    match status {
        Status::Blocked => 0,
        Status::Ready => 1,
        Status::Running => 2,
        Status::Waiting => 3,
        Status::Success => 4,
        Status::Error => 5,
        Status::Timeout => 6,
        Status::Cancelled => 7,
    }
}

pub(super) fn status(number: i64) -> rusqlite::Result<Status> {
    let found = Status::ALL.iter().copied().find(|&status| status_number(status) == number);
    Ok(found.ok_or(FromSqlError::OutOfRange(number))?)
}

/// Numbers of events, versions and tokens are never negative.
pub(super) const fn number(stored: i64) -> u64 {
    stored.unsigned_abs()
}

/// The other way; more than 2^63 of anything does not happen.
pub(super) fn int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn duration(ms: i64) -> Duration {
    Duration::from_millis(ms.unsigned_abs())
}

pub(super) fn spent_text(spent: &Spent) -> Cow<'static, str> {
    if spent.iter().next().is_none() {
        return Cow::Borrowed("{}");
    }
    Cow::Owned(text(spent))
}

fn spent(row: &Row<'_>, column: usize) -> rusqlite::Result<Spent> {
    if row.get_ref(column)?.as_str() == Ok("{}") {
        return Ok(Spent::default());
    }
    Ok(Spent::from_json(&json(row, column)?))
}

/// Names as a JSON list.
pub(super) fn names_text<T: AsRef<str>>(names: &[T]) -> Cow<'static, str> {
    if names.is_empty() {
        return Cow::Borrowed("[]");
    }
    Cow::Owned(text(&names.iter().map(AsRef::as_ref).collect::<Vec<&str>>()))
}

/// The other way.
pub(super) fn names(row: &Row<'_>, column: usize) -> rusqlite::Result<Vec<String>> {
    if row.get_ref(column)?.as_str() == Ok("[]") {
        return Ok(Vec::new());
    }
    match json(row, column)? {
        Value::Array(names) => names
            .into_iter()
            .map(|name| match name {
                Value::String(name) => Ok(name),
                _ => Err(FromSqlError::InvalidType.into()),
            })
            .collect(),
        _ => Err(FromSqlError::InvalidType.into()),
    }
}

fn object(row: &Row<'_>, column: usize) -> rusqlite::Result<Map<String, Value>> {
    match json(row, column)? {
        Value::Object(map) => Ok(map),
        _ => Err(FromSqlError::InvalidType.into()),
    }
}

/// Versions of channels, from a JSON object.
pub(super) fn versions(row: &Row<'_>, column: usize) -> rusqlite::Result<Versions> {
    let text = row.get_ref(column)?.as_str()?;
    Ok(serde_json::from_str(text).map_err(FromSqlError::other)?)
}

/// JSON as it is stored. What is given here has only strings for keys, so there always is a text.
pub(super) fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

pub(super) fn json(row: &Row<'_>, column: usize) -> rusqlite::Result<Value> {
    from_json(row.get_ref(column)?.as_str()?.as_bytes())
}

pub(super) fn from_json(text: &[u8]) -> rusqlite::Result<Value> {
    Ok(serde_json::from_slice(text).map_err(FromSqlError::other)?)
}

pub(super) fn blob<'a>(row: &'a Row<'_>, column: usize) -> rusqlite::Result<&'a [u8]> {
    Ok(row.get_ref(column)?.as_blob()?)
}

/// Values above this many bytes are kept apart from their rows, once for all who have them.
pub(super) const LARGE: usize = 16 * 1024;

/// Values above this many bytes are compressed: a message of a few sentences becomes half as long,
/// and one of a few words nothing.
const LONG: usize = 512;

/// Zstandard's: the fastest of the ordinary ones, since each reply is packed on its way to the disk.
const LEVEL: i32 = 1;

const PLAIN: u8 = 0;
const ZSTD: u8 = 1;

thread_local! {
    // Making these anew takes longer than a message takes to be compressed.
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Bytes for a packed column: one byte of codec, then the data.
pub(super) fn pack(bytes: &[u8]) -> Vec<u8> {
    if bytes.len() > LONG
        && let Some(compressed) = compress(bytes)
        && compressed.len() + 4 < bytes.len()
    {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        return [&[ZSTD], &length.to_le_bytes()[..], &compressed].concat();
    }
    [&[PLAIN], bytes].concat()
}

fn compress(bytes: &[u8]) -> Option<Vec<u8>> {
    COMPRESSOR.with_borrow_mut(|slot| {
        if slot.is_none() {
            *slot = Compressor::new(LEVEL).ok();
        }
        slot.as_mut()?.compress(bytes).ok()
    })
}

fn decompress(compressed: &[u8], length: usize) -> std::io::Result<Vec<u8>> {
    DECOMPRESSOR.with_borrow_mut(|slot| match slot {
        Some(decompressor) => decompressor.decompress(compressed, length),
        None => slot.insert(Decompressor::new()?).decompress(compressed, length),
    })
}

pub(super) fn unpack(packed: &[u8]) -> rusqlite::Result<Cow<'_, [u8]>> {
    match packed.split_first() {
        Some((&PLAIN, bytes)) => Ok(Cow::Borrowed(bytes)),
        Some((&ZSTD, rest)) => {
            let Some((length, compressed)) = rest.split_first_chunk() else {
                return Err(FromSqlError::InvalidType.into());
            };
            let length = u32::from_le_bytes(*length) as usize;
            let bytes = decompress(compressed, length).map_err(FromSqlError::other)?;
            Ok(Cow::Owned(bytes))
        }
        Some(_) | None => Err(FromSqlError::InvalidType.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_keeps_bytes_and_saves_room() {
        for bytes in [Vec::new(), b"short".to_vec(), b"long ".repeat(10_000)] {
            let packed = pack(&bytes);
            assert_eq!(*unpack(&packed).unwrap(), *bytes);
            assert!(packed.len() <= bytes.len() + 1);
        }
        assert!(pack(&b"long ".repeat(10_000)).len() < 1000);
        for damaged in [&b""[..], &[7, 1, 2], &[ZSTD, 1], &[ZSTD, 9, 0, 0, 0, 1, 2, 3]] {
            assert!(unpack(damaged).is_err(), "{damaged:?}");
        }
    }

    #[test]
    fn every_status_has_its_number() {
        for &known in Status::ALL {
            assert_eq!(status(status_number(known)).unwrap(), known);
            assert_eq!(known.is_terminal(), status_number(known) >= 4);
        }
        assert!(status(8).is_err());
    }
}
