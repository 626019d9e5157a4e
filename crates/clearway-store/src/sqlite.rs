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
mod artifacts;
mod assistants;
mod attempts;
mod channels;
mod claim;
mod commit;
mod ends;
mod fail;
mod history;
mod inspect;
mod items;
mod journal;
mod knowledge;
mod known;
mod lane;
mod node_cache;
mod read;
mod rows;
mod schedules;
mod schema;
mod threads;
mod upkeep;
mod waiting;
mod writer;

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use clearway_core::channel::Op;
use clearway_core::journal::Entry;
use clearway_core::run::Budget;
use clearway_core::thread::ThreadRecord;
use clearway_core::{
    AttemptRecord, AttemptsOf, CheckpointId, Clock, InstanceId, Priority, RunId, RunRecord,
    ThreadId, Timestamp,
};
use serde_json::{Map, Value};
use tokio::task::JoinHandle;
use uuid::Uuid;

use self::fail::{explain_io, free_bytes};
pub use self::inspect::{Database, Holder, Inspection, Structure, inspect};
use self::read::Readers;
use self::writer::{Queue, Shared, Writer, closed, lock};
use crate::error::{Error, ErrorKind, Result};
use crate::policy::Policy;
use crate::threads::*;
use crate::types::*;
use crate::{KnowledgeStore, Store};

/// The names of the database and of its lock in a data directory.
const DATABASE: &str = "clearway.db";
const LOCK: &str = "clearway.lock";

/// The mode of new files: what people write to agents is nobody else's business.
const OURS_ALONE: u32 = 0o600;

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
    clock: Arc<dyn Clock>,
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
        let judge = clock.clone();
        let open = move || {
            create(&directory)?;
            let lock = lock_directory(&directory)?;
            Writer::open(file, lock, policy, judge, max_bytes).map_err(fail::at_start)
        };
        let writer = lane::blocking(open).await.map_err(|error| {
            Error::new(ErrorKind::Other, "opening the store stopped in the middle").caused_by(error)
        })??;
        let shared = writer.shared();
        let (queue, task) = writer.start(queue.max(1));
        let readers = Readers::new(path.clone(), readers.max(1));
        Ok(Self { path, queue, shared, readers, clock, writer: Mutex::new(Some(task)) })
    }

    /// Changes how large the database file may grow; a limit below its size stops growth only.
    ///
    /// # Errors
    /// The store is closed.
    pub async fn limit_size(&self, max_bytes: Option<u64>) -> Result<()> {
        self.queue.write(upkeep::LimitSize(max_bytes)).await
    }
}

/// Makes the data directory, for nobody else to look into, and makes sure that it outlives a power
/// failure. One that is there already was made for whom its owner likes.
fn create(directory: &Path) -> Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty());
    let made = match parent {
        Some(parent) => std::fs::create_dir_all(parent),
        None => Ok(()),
    };
    made.and_then(|()| DirBuilder::new().recursive(true).mode(0o700).create(directory))
        .map_err(|error| explain_io(error, "create the data directory", directory))?;
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
        .mode(OURS_ALONE)
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
        self.queue.write(upkeep::Join(me)).await.map_err(fail::at_start)
    }

    async fn renew(&self, me: InstanceId) -> Result<Renewal> {
        self.queue.write(upkeep::Renew(me)).await
    }

    async fn sweep(&self, me: InstanceId) -> Result<Swept> {
        let upkeep::Round { mut swept, mut more } = self.queue.write(upkeep::Sweep(me)).await?;
        for _ in 1..upkeep::ROUNDS {
            if !more {
                break;
            }
            // Later rounds may fail; what the earlier ones did must be told all the same.
            let Ok(round) = self.queue.write(upkeep::Sweep(me)).await else { return Ok(swept) };
            more = round.more;
            swept.taken_over.extend(round.swept.taken_over);
            swept.expired.extend(round.swept.expired);
            swept.ready = round.swept.ready;
            swept.next_deadline = round.swept.next_deadline;
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

    async fn cancel_run(&self, run: RunId, by: &str, mode: CancelMode) -> Result<Cancelled> {
        self.queue.write(ends::Cancel { run, by: by.to_owned(), mode }).await
    }

    async fn journal(&self, run: RunId, fence: u32, entries: Vec<Entry>) -> Result<Journaled> {
        self.queue.write(journal::Keep { run, fence, entries }).await
    }

    async fn wake(&self, run: RunId, entries: Vec<Entry>) -> Result<Woken> {
        self.queue.write(waiting::Wake { run, entries }).await
    }

    async fn set_priority(&self, run: RunId, priority: Priority) -> Result<Option<RunRecord>> {
        self.queue.write(waiting::SetPriority { run, priority }).await
    }

    async fn set_budget(&self, run: RunId, budget: Budget) -> Result<Woken> {
        self.queue.write(waiting::SetBudget { run, budget }).await
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
        if !self.shared.known.may_have(thread.0) {
            return Ok(None);
        }
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

    async fn history(
        &self,
        thread: ThreadId,
        before: Option<CheckpointId>,
        limit: u32,
    ) -> Result<Vec<CheckpointRecord>> {
        self.readers.read(move |conn| history::history(conn, thread, before, limit)).await
    }

    async fn update_state(&self, update: StateUpdate) -> Result<Updated> {
        self.queue.write(history::Update(update)).await
    }

    async fn threads(&self, query: ThreadQuery) -> Result<Vec<ThreadRecord>> {
        self.readers.read(move |conn| history::threads(conn, &query)).await
    }

    async fn make_thread(&self, new: NewThread) -> Result<ThreadMade> {
        self.queue.write(self::threads::Make(new)).await
    }

    async fn describe_thread(
        &self,
        thread: ThreadId,
        metadata: Map<String, Value>,
    ) -> Result<Option<ThreadRecord>> {
        self.queue.write(self::threads::Describe { thread, metadata }).await
    }

    async fn copy_thread(
        &self,
        from: ThreadId,
        to: ThreadId,
        salt: [u8; 6],
    ) -> Result<Option<ThreadRecord>> {
        self.queue.write(self::threads::Copy { from, to, salt }).await
    }

    async fn thread_overview(&self, thread: ThreadId) -> Result<Option<ThreadOverview>> {
        self.readers.read(move |conn| self::threads::one(conn, thread)).await
    }

    async fn search_threads(&self, search: ThreadSearch) -> Result<ThreadPage> {
        self.readers.read(move |conn| self::threads::search(conn, &search)).await
    }

    async fn count_threads(&self, search: ThreadSearch) -> Result<u64> {
        self.readers.read(move |conn| self::threads::count(conn, &search)).await
    }

    async fn stale_threads(
        &self,
        dialect: &str,
        since: Timestamp,
        limit: u32,
    ) -> Result<Vec<ThreadId>> {
        let dialect = dialect.to_owned();
        self.readers.read(move |conn| self::threads::stale(conn, &dialect, since, limit)).await
    }

    async fn steps(
        &self,
        run: RunId,
        after: Option<CheckpointId>,
        limit: u32,
    ) -> Result<Vec<StepRecord>> {
        self.readers.read(move |conn| self::threads::steps(conn, run, after, limit)).await
    }

    async fn delete_run(&self, run: RunId) -> Result<RunDeleted> {
        self.queue.write(self::threads::DeleteRun(run)).await
    }

    async fn prune_thread(&self, thread: ThreadId, keep: Keep) -> Result<Option<Pruned>> {
        self.queue.write(history::Prune { thread, keep }).await
    }

    async fn delete_thread(
        &self,
        thread: ThreadId,
    ) -> Result<Option<std::result::Result<(), RunId>>> {
        self.queue.write(history::DeleteThread(thread)).await
    }

    async fn thread_storage(&self, thread: ThreadId) -> Result<Option<ThreadStorage>> {
        self.readers.read(move |conn| history::storage(conn, thread)).await
    }

    async fn put_artifact(&self, artifact: NewArtifact) -> Result<ArtifactStored> {
        self.queue.write(artifacts::Put(artifact)).await
    }

    async fn artifacts(&self, scope: ArtifactScope) -> Result<Vec<ArtifactRecord>> {
        self.readers.read(move |conn| artifacts::list(conn, scope)).await
    }

    async fn artifact(
        &self,
        scope: ArtifactScope,
        name: &str,
        version: Option<u32>,
    ) -> Result<Option<(ArtifactRecord, Bytes)>> {
        let name = name.to_owned();
        self.readers.read(move |conn| artifacts::read(conn, scope, &name, version)).await
    }

    async fn put_schedule(&self, schedule: Schedule) -> Result<()> {
        self.queue.write(schedules::Put(schedule)).await
    }

    async fn delete_schedule(&self, id: Uuid) -> Result<bool> {
        self.queue.write(schedules::Delete(id)).await
    }

    async fn schedules(&self, query: ScheduleQuery) -> Result<Vec<Schedule>> {
        self.readers.read(move |conn| schedules::list(conn, &query)).await
    }

    async fn due_schedules(&self, limit: u32) -> Result<(Vec<Schedule>, Option<Timestamp>)> {
        let now = self.clock.now();
        self.readers.read(move |conn| schedules::due(conn, now, limit)).await
    }

    async fn schedule_fired(&self, fired: Fired) -> Result<()> {
        self.queue.write(schedules::Fire(fired)).await
    }

    async fn due_deliveries(&self, limit: u32) -> Result<(Vec<Delivery>, Option<Timestamp>)> {
        let now = self.clock.now();
        self.readers.read(move |conn| schedules::due_deliveries(conn, now, limit)).await
    }

    async fn delivered(&self, id: i64, outcome: DeliveryOutcome) -> Result<()> {
        self.queue.write(schedules::Delivered { id, outcome }).await
    }

    async fn attempts(
        &self,
        of: AttemptsOf,
        after: Option<i64>,
        limit: u32,
    ) -> Result<Vec<AttemptRecord>> {
        self.readers.read(move |conn| attempts::list(conn, of, after, limit)).await
    }

    async fn book(&self, attempts: Vec<AttemptRecord>) -> Result<()> {
        self.queue.write(attempts::Book(attempts)).await
    }

    async fn cached(&self, tenant: &str, key: &[u8; 32]) -> Result<Option<Value>> {
        let (tenant, key, now) = (tenant.to_owned(), *key, self.clock.now());
        self.readers.read(move |conn| node_cache::find(conn, &tenant, &key, now)).await
    }

    async fn cache(
        &self,
        tenant: &str,
        key: [u8; 32],
        value: Value,
        lifetime: Duration,
    ) -> Result<()> {
        let tenant = tenant.to_owned();
        self.queue.write(node_cache::Keep { tenant, key, value, lifetime }).await
    }

    async fn put_assistant(&self, new: NewAssistant) -> Result<AssistantPut> {
        self.queue.write(assistants::Put(new)).await
    }

    async fn assistant(&self, tenant: &str, id: Uuid) -> Result<Option<LatestAssistant>> {
        let tenant = tenant.to_owned();
        self.readers.read(move |conn| Ok(assistants::latest(conn, &tenant, id)?)).await
    }

    async fn assistants(
        &self,
        tenant: &str,
        after: Option<Uuid>,
        limit: u32,
    ) -> Result<Vec<Assistant>> {
        let tenant = tenant.to_owned();
        self.readers.read(move |conn| assistants::list(conn, &tenant, after, limit)).await
    }

    async fn assistant_versions(&self, tenant: &str, id: Uuid) -> Result<Vec<Assistant>> {
        let tenant = tenant.to_owned();
        self.readers.read(move |conn| assistants::versions(conn, &tenant, id)).await
    }

    async fn select_assistant(
        &self,
        tenant: &str,
        id: Uuid,
        version: u32,
    ) -> Result<Option<Assistant>> {
        self.queue.write(assistants::Select { tenant: tenant.to_owned(), id, version }).await
    }

    async fn delete_assistant(&self, tenant: &str, id: Uuid) -> Result<bool> {
        self.queue.write(assistants::Delete { tenant: tenant.to_owned(), id }).await
    }

    async fn put_item(&self, item: NewItem) -> Result<ItemPut> {
        self.queue.write(items::Put(item)).await
    }

    async fn item(
        &self,
        scope: &ItemScope,
        namespace: &[String],
        key: &str,
    ) -> Result<Option<Item>> {
        let (scope, namespace, key) = (scope.clone(), namespace.to_owned(), key.to_owned());
        let now = self.clock.now();
        self.readers.read(move |conn| items::find(conn, &scope, &namespace, &key, now)).await
    }

    async fn delete_item(
        &self,
        scope: &ItemScope,
        namespace: &[String],
        key: &str,
    ) -> Result<bool> {
        let (scope, namespace, key) = (scope.clone(), namespace.to_owned(), key.to_owned());
        self.queue.write(items::Delete { scope, namespace, key }).await
    }

    async fn touch_items(
        &self,
        scope: &ItemScope,
        items: Vec<(Vec<String>, String)>,
    ) -> Result<()> {
        self.queue.write(items::Touch { scope: scope.clone(), items }).await
    }

    async fn search_items(&self, scope: &ItemScope, search: ItemSearch) -> Result<Vec<FoundItem>> {
        let (scope, now) = (scope.clone(), self.clock.now());
        self.readers.read(move |conn| items::search(conn, &scope, &search, now)).await
    }

    async fn item_namespaces(
        &self,
        scope: &ItemScope,
        query: NamespaceQuery,
    ) -> Result<Vec<Vec<String>>> {
        let (scope, now) = (scope.clone(), self.clock.now());
        self.readers.read(move |conn| items::namespaces(conn, &scope, &query, now)).await
    }

    async fn queue_positions(&self, runs: Vec<RunId>) -> Result<Vec<Option<QueuePosition>>> {
        let all = move |conn: &rusqlite::Connection| {
            runs.into_iter().map(|run| read::queue_position(conn, run)).collect()
        };
        self.readers.read(all).await
    }

    fn knowledge(&self) -> &dyn KnowledgeStore {
        self
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
