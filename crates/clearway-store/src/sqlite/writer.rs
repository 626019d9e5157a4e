//! The one task that writes.
//!
//! Operations queue in a bounded channel. The task takes what waits, up to [`BATCH`], and gives it
//! to one blocking job as one transaction: while that transaction reaches the disk, the next
//! operations queue, and the job goes on with them until for a while there are none. So one caller
//! alone waits for one commit, and a thousand callers share a few; nothing is held back to be joined
//! by others.
//!
//! An operation that fails takes nothing with it (see `apply_all`). When SQLite gives up the whole transaction (a full disk does that), its operations are tried again one
//! by one, so that those which fit are not lost with the one which did not.
//!
//! **Invariant:** an operation is answered after its transaction is committed, never before, and the
//! numbers in [`Counts`] change only with it.

use std::collections::HashMap;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use clearway_core::{Clock, RunId, Timestamp};
use rusqlite::{Connection, Params};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::channels::{self, Due};
use super::fail::{Fail, explain};
use super::known::Known;
use super::upkeep::limit_size;
use super::{lane, rows, schema};
use crate::Policy;
use crate::counts::{Counts, Move};
use crate::error::{Error, ErrorKind, Result};

/// Log ends kept in memory at most: more streams than a machine of this kind carries.
const TAILS: usize = 32 * 1024;

/// Operations in one transaction at most.
const BATCH: usize = 256;

/// Pages of write-ahead log above which it is folded into the database.
const WAL_PAGES: i32 = 4096;

/// How long the job waits for more before it gives its thread back. Under load it never does, and
/// each commit is two changes of threads shorter; this short, because a runtime whose time is
/// paused stands still meanwhile.
const LINGER: Duration = Duration::from_millis(5);

/// A transaction with an intent, given to the writer.
pub(super) trait Operation: Send + 'static {
    type Answer: Send + 'static;

    /// Whether the caller may rely on it after a power failure.
    const DURABLE: bool;

    /// Whether it is the last one.
    const CLOSES: bool = false;

    /// Does it. May be called again after a transaction that did not happen.
    fn apply(&self, tx: &mut Tx<'_>) -> Result<Self::Answer, Fail>;
}

/// What an operation works with.
pub(super) struct Tx<'a> {
    pub(super) conn: &'a Connection,
    pub(super) now: Timestamp,
    pub(super) policy: &'a Policy,
    pub(super) counts: &'a mut Counts,
    moves: &'a mut Vec<Move>,
    /// Channels that want a snapshot after the commit.
    pub(super) due: &'a mut Vec<Due>,
    /// Ends of the logs that were appended to lately. Whoever ends a lease takes its run out.
    pub(super) tails: &'a mut HashMap<RunId, Tail>,
    pub(super) known: &'a Known,
    path: &'a Path,
}

/// A running run's log, as far as output needs to know it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tail {
    /// `runs.n`
    pub(super) n: i64,
    /// The lease under which it runs.
    pub(super) fence: u32,
    /// Number of the next event.
    pub(super) seq: u64,
}

impl Tx<'_> {
    /// Runs a cached statement; says how many rows it changed.
    pub(super) fn run(&self, sql: &str, params: impl Params) -> rusqlite::Result<usize> {
        self.conn.prepare_cached(sql)?.execute(params)
    }

    /// A run changed its status.
    pub(super) fn moved(&mut self, change: Move) {
        self.counts.apply(&change);
        self.moves.push(change);
    }
}

/// What the writer shares with the store's other methods.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) counts: Mutex<Counts>,
    /// Whether the last write succeeded; why not.
    pub(super) writable: Mutex<std::result::Result<(), String>>,
    pub(super) known: Known,
}

/// Locks what is never left half changed.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The queue's entry side.
#[derive(Clone, Debug)]
pub(super) struct Queue(mpsc::Sender<Box<dyn Ticket>>);

impl Queue {
    /// Queues an operation and waits for its commit.
    pub(super) async fn write<O: Operation>(&self, operation: O) -> Result<O::Answer> {
        let (reply, answer) = oneshot::channel();
        let ticket = Pending { operation, reply, result: None };
        self.0.try_send(Box::new(ticket)).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => Error::new(
                ErrorKind::Busy,
                format!("{} operations wait for the store's writer", self.0.max_capacity()),
            ),
            mpsc::error::TrySendError::Closed(_) => closed(),
        })?;
        answer.await.unwrap_or_else(|_| {
            let error = Error::new(ErrorKind::Other, "the store's writer stopped in the middle");
            Err(error.outcome_unknown())
        })
    }
}

pub(super) fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the store is closed")
}

/// An operation with its way back, its type forgotten.
pub(super) trait Ticket: Send {
    fn durable(&self) -> bool;
    fn closes(&self) -> bool;
    fn apply(&mut self, tx: &mut Tx<'_>) -> Applied;
    /// The transaction happened.
    fn committed(self: Box<Self>);
    /// The transaction did not happen, or nobody knows.
    fn failed(self: Box<Self>, why: Error);
}

/// What an operation did to its transaction.
pub(super) enum Applied {
    Kept,
    /// It asks for something that cannot be; its changes, if any, are to be taken back.
    Refused,
    /// The database would not.
    Broken(Error),
}

struct Pending<O: Operation> {
    operation: O,
    reply: oneshot::Sender<Result<O::Answer>>,
    result: Option<Result<O::Answer>>,
}

impl<O: Operation> Ticket for Pending<O> {
    fn durable(&self) -> bool {
        O::DURABLE
    }

    fn closes(&self) -> bool {
        O::CLOSES
    }

    fn apply(&mut self, tx: &mut Tx<'_>) -> Applied {
        match self.operation.apply(tx) {
            Ok(answer) => {
                self.result = Some(Ok(answer));
                Applied::Kept
            }
            Err(Fail::Refused(error)) => {
                self.result = Some(Err(error));
                Applied::Refused
            }
            Err(Fail::Sql(error)) => {
                let error = explain(error, tx.path);
                let copy = duplicate(&error);
                self.result = Some(Err(error));
                // A row that must not be is the operation's fault, not the disk's.
                if copy.kind == ErrorKind::Conflict {
                    Applied::Refused
                } else {
                    Applied::Broken(copy)
                }
            }
        }
    }

    fn committed(self: Box<Self>) {
        // A caller that is gone does not need the answer.
        let _ = self.reply.send(self.result.unwrap_or_else(|| Err(closed())));
    }

    fn failed(self: Box<Self>, why: Error) {
        let _ = self.reply.send(Err(why));
    }
}

/// One failure has many callers; the cause stays with the first.
fn duplicate(error: &Error) -> Error {
    Error {
        kind: error.kind,
        message: error.message.clone(),
        certainly_aborted: error.certainly_aborted,
        source: None,
    }
}

/// Whether commits wait for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sync {
    Full,
    Normal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Savepoints {
    Yes,
    No,
}

/// The write connection and all that belongs to it.
pub(super) struct Writer {
    conn: Connection,
    /// The connection must be opened anew before it is used.
    broken: bool,
    path: PathBuf,
    clock: Arc<dyn Clock>,
    policy: Policy,
    counts: Counts,
    shared: Arc<Shared>,
    sync: Sync,
    due: Vec<Due>,
    tails: HashMap<RunId, Tail>,
    /// Pages in the write-ahead log after the last commit.
    wal_pages: Arc<AtomicI32>,
    /// Pages at which folding is worth a try.
    fold_at: i32,
    /// Held as long as anybody may write.
    _lock: File,
}

impl Writer {
    pub(super) fn open(
        path: PathBuf,
        lock: File,
        policy: Policy,
        clock: Arc<dyn Clock>,
        max_bytes: Option<u64>,
    ) -> Result<Self> {
        let conn = schema::open_writer(&path)?;
        let known = Known::read(&conn).map_err(|error| explain(error, &path))?;
        let shared = Shared { counts: Mutex::default(), writable: Mutex::new(Ok(())), known };
        let mut writer = Self {
            conn,
            broken: false,
            path,
            clock,
            policy,
            counts: Counts::default(),
            shared: Arc::new(shared),
            sync: Sync::Full,
            due: Vec::new(),
            tails: HashMap::new(),
            wal_pages: Arc::default(),
            fold_at: WAL_PAGES,
            _lock: lock,
        };
        let prepared = writer.prepare().and_then(|()| limit_size(&writer.conn, max_bytes));
        prepared.map_err(|error| explain(error, &writer.path))?;
        Ok(writer)
    }

    /// Settles what belongs to a new connection.
    fn prepare(&mut self) -> rusqlite::Result<()> {
        self.sync = Sync::Full;
        self.due.clear();
        let pages = self.wal_pages.clone();
        self.conn.wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, now: i32| {
            pages.store(now, Ordering::Relaxed);
            Ok(())
        }))?;
        self.counts = count(&self.conn)?;
        *lock(&self.shared.counts) = self.counts.clone();
        Ok(())
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// Starts the task with room for `queue` waiting operations.
    pub(super) fn start(self, queue: usize) -> (Queue, JoinHandle<()>) {
        let (sender, receiver) = mpsc::channel(queue);
        (Queue(sender), lane::task(serve(self, receiver)))
    }

    /// One group commit, answers included.
    pub(super) fn serve_batch(&mut self, batch: &mut Vec<Box<dyn Ticket>>) {
        match self.commit(batch) {
            Ok(()) => batch.drain(..).for_each(|ticket| ticket.committed()),
            Err(error) if batch.len() == 1 => {
                batch.drain(..).for_each(|ticket| ticket.failed(duplicate(&error)));
            }
            Err(_) => {
                for mut ticket in batch.drain(..) {
                    match self.commit(std::slice::from_mut(&mut ticket)) {
                        Ok(()) => ticket.committed(),
                        Err(error) => ticket.failed(error),
                    }
                }
            }
        }
        if self.tails.len() > TAILS {
            self.tails.clear();
        }
        self.take_snapshots();
        self.fold_wal();
    }

    /// One transaction with all of `batch`, or none of it.
    fn commit(&mut self, batch: &mut [Box<dyn Ticket>]) -> Result<()> {
        let mut moves = Vec::new();
        let due = self.due.len();
        let changes = self.conn.total_changes();
        let outcome = self.transact(batch, &mut moves);
        match &outcome {
            Ok(trouble) => {
                let mut counts = lock(&self.shared.counts);
                moves.iter().for_each(|change| counts.apply(change));
                drop(counts);
                let durable = batch.iter().any(|ticket| ticket.durable());
                match trouble {
                    Some(error) => self.note(Err(error)),
                    None if durable && self.conn.total_changes() > changes => self.note(Ok(())),
                    None => {}
                }
            }
            Err(error) => {
                moves.iter().rev().for_each(|change| self.counts.revert(change));
                self.due.truncate(due);
                self.note(Err(error));
            }
        }
        outcome.map(|_| ())
    }

    /// Keeps in mind, and says once, whether writing works.
    fn note(&self, outcome: std::result::Result<(), &Error>) {
        let mut writable = lock(&self.shared.writable);
        let path = self.path.display();
        match (&*writable, outcome) {
            (Ok(()), Err(error)) => {
                tracing::error!(store.path = %path, %error, "store cannot write")
            }
            (Err(_), Ok(())) => tracing::info!(store.path = %path, "store writes again"),
            (Ok(()), Ok(())) | (Err(_), Err(_)) => {}
        }
        *writable = outcome.map_err(|error| error.message.clone());
    }

    /// The transaction itself. Trouble of single operations is returned beside success.
    fn transact(
        &mut self,
        batch: &mut [Box<dyn Ticket>],
        moves: &mut Vec<Move>,
    ) -> Result<Option<Error>> {
        self.repair()?;
        let durable = batch.iter().any(|ticket| ticket.durable());
        self.set_sync(if durable { Sync::Full } else { Sync::Normal })
            .and_then(|()| run(&self.conn, "BEGIN IMMEDIATE"))
            .map_err(|error| explain(error, &self.path))?;
        let outcome = self.apply_all(batch, moves);
        let outcome = outcome.and_then(|trouble| {
            run(&self.conn, "COMMIT").map(|()| trouble).map_err(|error| {
                let full = error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull);
                let error = explain(error, &self.path);
                // A page that did not fit was certainly before the commit's mark; after a sync
                // that failed nobody knows what the disk has.
                if full { error } else { error.outcome_unknown() }
            })
        });
        if let Err(error) = &outcome {
            self.abandon(error.kind);
        }
        outcome
    }

    /// Applies all operations. An error means that the transaction is lost.
    ///
    /// Savepoints cost a copy of each page that is changed, so the first try does without: most
    /// operations that fail find out before they write anything. When one does not, everything is
    /// taken back and done again with a savepoint for each.
    fn apply_all(
        &mut self,
        batch: &mut [Box<dyn Ticket>],
        moves: &mut Vec<Move>,
    ) -> Result<Option<Error>> {
        if let Some(trouble) = self.apply_each(batch, moves, Savepoints::No)? {
            return Ok(trouble);
        }
        moves.drain(..).rev().for_each(|change| self.counts.revert(&change));
        self.tails.clear();
        self.due.clear();
        self.sql("ROLLBACK")?;
        self.sql("BEGIN IMMEDIATE")?;
        let trouble = self.apply_each(batch, moves, Savepoints::Yes)?;
        Ok(trouble.expect("nothing needs taking back that has a savepoint"))
    }

    /// Applies operations one after the other; `None` when one without a savepoint has to be taken
    /// back.
    fn apply_each(
        &mut self,
        batch: &mut [Box<dyn Ticket>],
        moves: &mut Vec<Move>,
        savepoints: Savepoints,
    ) -> Result<Option<Option<Error>>> {
        let mut trouble = None;
        for ticket in batch {
            if savepoints == Savepoints::Yes {
                self.sql("SAVEPOINT op")?;
            }
            let (moved, due, changes) = (moves.len(), self.due.len(), self.conn.total_changes());
            let mut tx = Tx {
                conn: &self.conn,
                now: self.clock.now(),
                policy: &self.policy,
                counts: &mut self.counts,
                moves: &mut *moves,
                due: &mut self.due,
                tails: &mut self.tails,
                known: &self.shared.known,
                path: &self.path,
            };
            match ticket.apply(&mut tx) {
                Applied::Kept => {
                    if savepoints == Savepoints::Yes {
                        self.sql("RELEASE op")?;
                    }
                    continue;
                }
                Applied::Refused => {}
                Applied::Broken(error) if self.conn.is_autocommit() => return Err(error),
                Applied::Broken(error) => trouble = Some(error),
            }
            self.due.truncate(due);
            if savepoints == Savepoints::Yes {
                moves.drain(moved..).rev().for_each(|change| self.counts.revert(&change));
                self.tails.clear();
                self.sql("ROLLBACK TO op")?;
                self.sql("RELEASE op")?;
            } else if self.conn.total_changes() != changes {
                return Ok(None);
            }
        }
        Ok(Some(trouble))
    }

    fn sql(&self, text: &str) -> Result<()> {
        run(&self.conn, text).map_err(|error| explain(error, &self.path))
    }

    /// Leaves a transaction that failed.
    fn abandon(&mut self, why: ErrorKind) {
        self.tails.clear();
        let rolled_back = self.conn.is_autocommit() || run(&self.conn, "ROLLBACK").is_ok();
        let harmless = matches!(why, ErrorKind::DiskFull | ErrorKind::Locked | ErrorKind::Conflict);
        // After an I/O error the connection's view of its own log is not to be trusted.
        self.broken = !(rolled_back && harmless);
    }

    /// Opens the connection anew, if need be.
    fn repair(&mut self) -> Result<()> {
        if self.broken {
            self.conn = schema::open_writer(&self.path)?;
            self.prepare().map_err(|error| explain(error, &self.path))?;
            self.broken = false;
        }
        Ok(())
    }

    /// Only possible between transactions: one durable operation makes its whole batch wait.
    fn set_sync(&mut self, sync: Sync) -> rusqlite::Result<()> {
        if self.sync != sync {
            self.conn.execute_batch(match sync {
                Sync::Full => "PRAGMA synchronous = FULL",
                Sync::Normal => "PRAGMA synchronous = NORMAL",
            })?;
            self.sync = sync;
        }
        Ok(())
    }

    /// Takes the snapshots that the last batch asked for. They only save reading time: what fails
    /// here is asked for again by the next write to the channel.
    fn take_snapshots(&mut self) {
        if self.due.is_empty() || self.broken {
            return;
        }
        let due = std::mem::take(&mut self.due);
        let outcome = self
            .set_sync(Sync::Normal)
            .and_then(|()| run(&self.conn, "BEGIN IMMEDIATE"))
            .map_err(Fail::Sql)
            .and_then(|()| channels::snapshots(&self.conn, &due))
            .and_then(|()| run(&self.conn, "COMMIT").map_err(Fail::Sql));
        if let Err(fail) = outcome {
            let error = fail.explain(&self.path);
            tracing::warn!(store.path = %self.path.display(), %error, "snapshot not taken");
            self.abandon(error.kind);
        }
    }

    /// Moves the write-ahead log into the database when it is long. Readers are not disturbed.
    fn fold_wal(&mut self) {
        let pages = self.wal_pages.load(Ordering::Relaxed);
        if pages < self.fold_at || self.broken {
            return;
        }
        let outcome = self.conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
            Ok((row.get::<_, i32>(1)?, row.get::<_, i32>(2)?))
        });
        self.fold_at = match outcome {
            Ok((log, folded)) if log == folded => WAL_PAGES,
            // A reader holds on to old pages: go on when there is as much again to win.
            Ok(_) => pages.saturating_add(WAL_PAGES),
            Err(error) => {
                let path = self.path.display();
                tracing::warn!(store.path = %path, %error, "write-ahead log not folded in");
                pages.saturating_add(WAL_PAGES)
            }
        };
    }

    /// The end: one file is left.
    fn finish(self) {
        let path = self.path.display();
        let folded = self.conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        if let Err(error) = folded {
            tracing::warn!(store.path = %path, %error, "write-ahead log not folded in");
        }
        if let Err((_, error)) = self.conn.close() {
            tracing::warn!(store.path = %path, %error, "store not closed cleanly");
        }
    }
}

/// The writer's task: ends when the store is closed or dropped.
async fn serve(mut writer: Writer, mut queue: mpsc::Receiver<Box<dyn Ticket>>) {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        queue.recv_many(&mut batch, BATCH).await;
        let job = move || {
            loop {
                let closes = batch.is_empty() || batch.iter().any(|ticket| ticket.closes());
                if closes {
                    queue.close();
                }
                // A bug in one operation must not end all writing.
                let outcome = catch_unwind(AssertUnwindSafe(|| writer.serve_batch(&mut batch)));
                if outcome.is_err() {
                    batch.clear();
                    writer.abandon(ErrorKind::Other);
                }
                if closes {
                    writer.finish();
                    return Err(queue);
                }
                if linger(&mut queue, &mut batch).is_none() {
                    return Ok((writer, queue, batch));
                }
            }
        };
        match lane::blocking(job).await {
            Ok(Ok(back)) => (writer, queue, batch) = back,
            Ok(Err(mut queue)) => {
                while let Some(ticket) = queue.recv().await {
                    ticket.failed(closed());
                }
                return;
            }
            // The job catches its panics: the runtime is going away.
            Err(_) => return,
        }
    }
}

/// Waits on the job's own thread for what comes next, up to [`LINGER`]. `None` when nothing came;
/// nothing at all in the batch when the queue is closed.
fn linger(
    queue: &mut mpsc::Receiver<Box<dyn Ticket>>,
    batch: &mut Vec<Box<dyn Ticket>>,
) -> Option<()> {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let until = Instant::now() + LINGER;
    let mut next = pin!(queue.recv_many(batch, BATCH));
    while next.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        std::thread::park_timeout(left);
    }
    Some(())
}

/// Counts unfinished runs.
fn count(conn: &Connection) -> rusqlite::Result<Counts> {
    let mut counts = Counts::default();
    let mut statement = conn.prepare(
        "SELECT pool, tenant, priority, status FROM runs INDEXED BY runs_open WHERE status < 4",
    )?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        counts.apply(&Move {
            pool: row.get(0)?,
            tenant: row.get(1)?,
            priority: rows::priority(row, 2)?,
            from: None,
            to: rows::status(row.get(3)?)?,
        });
    }
    Ok(counts)
}

fn run(conn: &Connection, sql: &str) -> rusqlite::Result<()> {
    conn.prepare_cached(sql)?.raw_execute().map(|_| ())
}

/// Operations whose answers nobody waits for.
#[cfg(test)]
pub(super) fn tickets<O: Operation, const N: usize>(operations: [O; N]) -> Vec<Box<dyn Ticket>> {
    let ticket = |operation| {
        let (reply, _) = oneshot::channel();
        Box::new(Pending { operation, reply, result: None }) as Box<dyn Ticket>
    };
    operations.map(ticket).into()
}

#[cfg(test)]
impl Writer {
    /// Whether SQLite syncs the transactions of this moment.
    pub(super) fn waits_for_disk(&self) -> bool {
        let level: i64 = self.conn.query_row("PRAGMA synchronous", [], |row| row.get(0)).unwrap();
        level == 2
    }
}
