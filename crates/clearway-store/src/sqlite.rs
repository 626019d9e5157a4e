//! The embedded store: one SQLite file, owned by one process.
//!
//! ```text
//! methods that write ──► bounded queue ──► writer task ──► one blocking job per group commit
//! methods that read  ──► permits ────────► one blocking job per read, on its own connection
//! ```
//!
//! A commit that must survive a power failure waits for the disk together with all others that were
//! queued meanwhile; output that may be lost does not wait. The file `clearway.lock` beside the
//! database keeps a second process out.
//!
//! Not here: what a transaction means ([`crate::rules`], shared with [`crate::MemStore`]).

mod admission;
mod channels;
mod claim;
mod commit;
mod ends;
mod fail;
mod inspect;
mod lane;
mod read;
mod rows;
mod schema;
mod upkeep;
mod writer;

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use clearway_core::channel::Op;
use clearway_core::thread::ThreadRecord;
use clearway_core::{CheckpointId, Clock, InstanceId, RunId, RunRecord, ThreadId};
use tokio::task::JoinHandle;

use self::fail::{explain_io, free_bytes};
pub use self::inspect::{Database, Holder, Inspection, Structure, inspect};
use self::read::Readers;
use self::writer::{Queue, Shared, Writer, closed, lock};
use crate::error::{Error, ErrorKind, Result};
use crate::{
    Admission, Appended, Cancelled, Claim, ClaimRequest, CommitAck, Joined, LogPage, NewRun,
    OutputSegment, Policy, PoolCount, QueuePosition, Renewal, Reset, RunPage, RunQuery, StepCommit,
    Store, StoreInfo, Swept, ThreadState, rules,
};

/// The names of the database and of its lock in a data directory.
const DATABASE: &str = "clearway.db";
const LOCK: &str = "clearway.lock";

/// How a [`SqliteStore`] is opened.
#[derive(Clone, Debug)]
pub struct SqliteOptions {
    pub policy: Policy,
    /// Read connections, each a lane of its own beside the writer's.
    pub readers: u32,
    /// Operations that may wait for the writer; more are refused as [`ErrorKind::Busy`].
    pub queue: usize,
    /// How large the database file may grow; `None` leaves it to the disk.
    pub max_bytes: Option<u64>,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self { policy: Policy::default(), readers: 3, queue: 8192, max_bytes: None }
    }
}

/// See the module.
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    queue: Queue,
    shared: Arc<Shared>,
    readers: Readers,
    /// Taken by the one who closes.
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl SqliteStore {
    /// Opens the store in a data directory, creating what is missing. Needs a Tokio runtime.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] when another process has it, and what the file system or the file
    /// itself object to.
    pub async fn open(
        directory: &Path,
        options: SqliteOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        let path = directory.join(DATABASE);
        let SqliteOptions { policy, readers, queue, max_bytes } = options;
        let directory = directory.to_owned();
        let file = path.clone();
        let open = move || {
            create(&directory)?;
            let lock = lock_directory(&directory)?;
            Writer::open(file, lock, policy, clock, max_bytes)
        };
        let writer = lane::blocking(open).await.map_err(|error| {
            Error::new(ErrorKind::Other, "opening the store stopped in the middle").caused_by(error)
        })??;
        let shared = writer.shared();
        let (queue, task) = writer.start(queue.max(1));
        let readers = Readers::new(path.clone(), readers.max(1));
        Ok(Self { path, queue, shared, readers, writer: Mutex::new(Some(task)) })
    }

    /// Changes how large the database file may grow; a limit below its size stops growth only.
    ///
    /// # Errors
    /// The store is closed.
    pub async fn limit_size(&self, max_bytes: Option<u64>) -> Result<()> {
        self.queue.write(upkeep::LimitSize(max_bytes)).await
    }
}

/// Makes the data directory, and makes sure that it outlives a power failure.
fn create(directory: &Path) -> Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(directory)
        .map_err(|error| explain_io(error, "create the data directory", directory))?;
    let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty());
    // Not every file system can sync a directory; SQLite does the same for the files in it.
    let _ = File::open(parent.unwrap_or(Path::new("."))).and_then(|parent| parent.sync_all());
    Ok(())
}

/// Makes sure that no other process works on the directory.
fn lock_directory(directory: &Path) -> Result<File> {
    let path = directory.join(LOCK);
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|error| explain_io(error, "open the lock file", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            let holder = match holder.trim() {
                "" => String::new(),
                process => format!(" (process {process})"),
            };
            return Err(Error::new(
                ErrorKind::Locked,
                format!(
                    "the data directory {} is in use by another Clearway server{holder}: stop that \
                     one, or choose another directory",
                    directory.display()
                ),
            ));
        }
        Err(TryLockError::Error(error)) => return Err(explain_io(error, "lock", &path)),
    }
    // Only for the message above; a failure to write it changes nothing.
    let _ = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| write!(file, "{}", std::process::id()));
    Ok(file)
}

#[async_trait::async_trait]
impl Store for SqliteStore {
    async fn join(&self, me: InstanceId) -> Result<Joined> {
        self.queue.write(upkeep::Join(me)).await
    }

    async fn renew(&self, me: InstanceId) -> Result<Renewal> {
        self.queue.write(upkeep::Renew(me)).await
    }

    async fn sweep(&self, me: InstanceId) -> Result<Swept> {
        let mut swept = self.queue.write(upkeep::Sweep(me)).await?;
        let mut last = swept.expired.len();
        // Later rounds may fail; what the earlier ones did must be told all the same.
        while last == upkeep::EXPIRE_CHUNK && swept.expired.len() < rules::EXPIRE_LIMIT {
            let Ok(more) = self.queue.write(upkeep::Sweep(me)).await else { return Ok(swept) };
            last = more.expired.len();
            swept.taken_over.extend(more.taken_over);
            swept.expired.extend(more.expired);
            swept.ready = more.ready;
            swept.next_deadline = more.next_deadline;
        }
        // Bounded, so that a long backlog of old logs is worked off between sweeps' other duties.
        for _ in 0..TRIM_ROUNDS {
            match self.queue.write(upkeep::Trim).await {
                Ok(upkeep::TRIM_CHUNK) => {}
                Ok(_) | Err(_) => break,
            }
        }
        Ok(swept)
    }

    async fn create_run(&self, new: NewRun) -> Result<Admission> {
        self.queue.write(admission::Create(new)).await
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Vec<Claim>> {
        let ClaimRequest { me, slots, ageing } = request;
        let mut claims = Vec::new();
        for (pool, mut free) in slots {
            while free > 0 {
                let slots = free.min(claim::CHUNK);
                let some = claim::ClaimSome { me, pool: pool.clone(), slots, ageing };
                let more = match self.queue.write(some).await {
                    Ok(more) => more,
                    // What is claimed already must reach its owner.
                    Err(_) if !claims.is_empty() => return Ok(claims),
                    Err(error) => return Err(error),
                };
                let found = more.len() as u32;
                claims.extend(more);
                if found < slots {
                    break;
                }
                free -= found;
            }
        }
        Ok(claims)
    }

    async fn commit(&self, commit: StepCommit) -> Result<CommitAck> {
        self.queue.write(commit::Commit(commit)).await
    }

    async fn append(&self, output: Vec<OutputSegment>) -> Result<Vec<Appended>> {
        self.queue.write(commit::Append(output)).await
    }

    async fn cancel_run(&self, run: RunId, by: &str) -> Result<Cancelled> {
        self.queue.write(ends::Cancel { run, by: by.to_owned() }).await
    }

    async fn release(&self, run: RunId, fence: u32) -> Result<bool> {
        self.queue.write(ends::Release { run, fence }).await
    }

    async fn reset_thread(&self, thread: ThreadId) -> Result<Option<Reset>> {
        self.queue.write(ends::ResetThread(thread)).await
    }

    async fn run(&self, run: RunId) -> Result<Option<RunRecord>> {
        self.readers.read(move |conn| read::run(conn, run)).await
    }

    async fn runs(&self, query: RunQuery) -> Result<RunPage> {
        self.readers.read(move |conn| read::runs(conn, &query)).await
    }

    async fn thread(&self, thread: ThreadId) -> Result<Option<ThreadRecord>> {
        self.readers.read(move |conn| read::thread(conn, thread)).await
    }

    async fn state(
        &self,
        thread: ThreadId,
        at: Option<CheckpointId>,
    ) -> Result<Option<ThreadState>> {
        self.readers.read(move |conn| read::state(conn, thread, at)).await
    }

    async fn writes_of(&self, checkpoint: CheckpointId, channel: &str) -> Result<Vec<Op>> {
        let channel = channel.to_owned();
        self.readers.read(move |conn| read::writes_of(conn, checkpoint, &channel)).await
    }

    async fn read_log(&self, run: RunId, from: u64, max_bytes: usize) -> Result<LogPage> {
        self.readers.read(move |conn| read::read_log(conn, run, from, max_bytes)).await
    }

    async fn queue_position(&self, run: RunId) -> Result<Option<QueuePosition>> {
        self.readers.read(move |conn| read::queue_position(conn, run)).await
    }

    fn pool_counts(&self) -> Vec<PoolCount> {
        lock(&self.shared.counts).list()
    }

    async fn info(&self) -> Result<StoreInfo> {
        let path = self.path.clone();
        let mut info = self
            .readers
            .read(move |conn| {
                let beside = |suffix: &str| {
                    let mut name = path.clone().into_os_string();
                    name.push(suffix);
                    std::fs::metadata(name).map_or(0, |file| file.len())
                };
                Ok(StoreInfo {
                    kind: "sqlite",
                    path: Some(path.display().to_string()),
                    size_bytes: beside("") + beside("-wal"),
                    disk_free_bytes: free_bytes(&path),
                    writable: Ok(()),
                    schema_version: schema::version(conn)?,
                })
            })
            .await?;
        info.writable = lock(&self.shared.writable).clone();
        Ok(info)
    }

    async fn close(&self, me: InstanceId) -> Result<()> {
        let Some(task) = lock(&self.writer).take() else { return Err(closed()) };
        // Without readers the write-ahead log can be folded in completely.
        self.readers.close().await;
        let left = self.queue.write(upkeep::Leave(me)).await;
        // The task ends after the last operation, whatever became of it: the lock is free then.
        task.await.map_err(|error| {
            Error::new(ErrorKind::Other, "the store's writer did not end well").caused_by(error)
        })?;
        left
    }
}

/// Groups of old logs that one sweep trims at most.
const TRIM_ROUNDS: usize = 64;

#[cfg(test)]
mod tests;
