//! Threads as people look at them: made, described, searched, copied, followed across runs.
//!
//! Not here: their state and history (`control`).

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clearway_core::thread::ThreadRecord;
use clearway_core::{CheckpointId, Code, RunId, ThreadId};
use clearway_store::{
    NewThread, RunDeleted, StepRecord, ThreadMade, ThreadOverview, ThreadPage, ThreadSearch,
};
use serde_json::{Map, Value};
use tokio::sync::watch;

use crate::Error;
use crate::engine::{Engine, Inner, bounded};
use crate::live::lock;
use crate::metadata;

/// Dialect of the keys of threads that are deleted some time after their run has ended.
pub const EPHEMERAL: &str = "ephemeral";

/// How long such a thread stays, for readers that come late.
const EPHEMERAL_FOR: Duration = Duration::from_secs(300);
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// Deleted in one sweep at most; the next one goes on.
const SWEPT_AT_ONCE: u32 = 500;

/// Threads that somebody follows beyond one run.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    threads: Mutex<HashMap<ThreadId, watch::Sender<u64>>>,
    /// How many there are, so that nobody else takes the lock.
    count: AtomicUsize,
}

impl Watched {
    /// A run was accepted on the thread, or its state was changed by hand.
    pub(crate) fn changed(&self, thread: ThreadId) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        if let Some(watched) = lock(&self.threads).get(&thread) {
            watched.send_modify(|changes| *changes += 1);
        }
    }
}

/// Tells when a thread gets a run or is changed by hand, from the moment it was made.
#[derive(Debug)]
pub struct ThreadWatch {
    inner: Arc<Inner>,
    thread: ThreadId,
    changes: watch::Receiver<u64>,
}

impl ThreadWatch {
    /// Resolves when there is something that the last call did not tell of. Cancel-safe.
    pub async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            // The sender lives as long as its watchers.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for ThreadWatch {
    fn drop(&mut self) {
        let watched = &self.inner.watched;
        let mut threads = lock(&watched.threads);
        if threads.get(&self.thread).is_some_and(|sender| sender.receiver_count() <= 1) {
            threads.remove(&self.thread);
            watched.count.store(threads.len(), Ordering::Release);
        }
    }
}

impl Engine {
    /// Makes a thread without a run, or finds it.
    ///
    /// # Errors
    /// `invalid_request` for metadata that are too large, `store_unavailable`.
    pub async fn make_thread(&self, new: NewThread) -> Result<ThreadMade, Error> {
        metadata::check(&new.metadata)?;
        Ok(bounded(self.inner().store.make_thread(new)).await?)
    }

    /// Merges into a thread's metadata.
    ///
    /// # Errors
    /// `thread_not_found`, `invalid_request` for metadata that would be too large, `store_unavailable`.
    pub async fn describe_thread(
        &self,
        thread: ThreadId,
        metadata: Map<String, Value>,
    ) -> Result<ThreadRecord, Error> {
        let known = self.thread(thread).await?.ok_or_else(|| no_thread(thread))?.metadata;
        metadata::check(&known.into_iter().chain(metadata.clone()).collect())?;
        let described = bounded(self.inner().store.describe_thread(thread, metadata)).await?;
        described.ok_or_else(|| no_thread(thread))
    }

    /// Copies a thread with its whole history; the copy's id is new.
    ///
    /// # Errors
    /// `thread_not_found`, `store_unavailable`.
    pub async fn copy_thread(&self, from: ThreadId) -> Result<ThreadRecord, Error> {
        let inner = self.inner();
        let mut salt = [0; 6];
        salt.copy_from_slice(&inner.ids.random().as_bytes()[10..]);
        let copied = bounded(inner.store.copy_thread(from, inner.ids.thread(), salt)).await?;
        copied.ok_or_else(|| no_thread(from))
    }

    /// # Errors
    /// `thread_not_found`, `store_unavailable`.
    pub async fn thread_overview(&self, thread: ThreadId) -> Result<ThreadOverview, Error> {
        let found = self.inner().store.thread_overview(thread).await?;
        found.ok_or_else(|| no_thread(thread))
    }

    /// # Errors
    /// `store_unavailable`.
    pub async fn search_threads(&self, search: ThreadSearch) -> Result<ThreadPage, Error> {
        Ok(self.inner().store.search_threads(search).await?)
    }

    /// # Errors
    /// `store_unavailable`.
    pub async fn count_threads(&self, search: ThreadSearch) -> Result<u64, Error> {
        Ok(self.inner().store.count_threads(search).await?)
    }

    /// A run's checkpoints behind `after`, oldest first, with what each changed.
    ///
    /// # Errors
    /// `store_unavailable`.
    pub async fn steps(
        &self,
        run: RunId,
        after: Option<CheckpointId>,
        limit: u32,
    ) -> Result<Vec<StepRecord>, Error> {
        Ok(self.inner().store.steps(run, after, limit).await?)
    }

    /// Takes an ended run out of its thread's history.
    ///
    /// # Errors
    /// `run_not_found`; `thread_busy` while it has not ended; `store_unavailable`.
    pub async fn delete_run(&self, run: RunId) -> Result<(), Error> {
        let record = self.inner().record(run).await?;
        let deleted = bounded(self.inner().store.delete_run(run)).await?;
        self.inner().cache.forget(record.thread);
        match deleted {
            RunDeleted::Done => Ok(()),
            RunDeleted::NotFound => Err(crate::engine::no_run(run)),
            RunDeleted::Unfinished => {
                let text = format!("run {run} has not ended: cancel it first");
                Err(Error::new(Code::ThreadBusy, text))
            }
        }
    }

    /// Follows which runs a thread gets.
    pub fn watch_thread(&self, thread: ThreadId) -> ThreadWatch {
        let inner = self.inner().clone();
        let watched = &inner.watched;
        let mut threads = lock(&watched.threads);
        let changes = threads.entry(thread).or_insert_with(|| watch::Sender::new(0)).subscribe();
        watched.count.store(threads.len(), Ordering::Release);
        drop(threads);
        ThreadWatch { inner, thread, changes }
    }

    pub fn new_thread_id(&self) -> ThreadId {
        self.inner().ids.thread()
    }

    pub fn new_run_id(&self) -> RunId {
        self.inner().ids.run()
    }
}

fn no_thread(thread: ThreadId) -> Error {
    Error::new(Code::ThreadNotFound, format!("no thread {thread}"))
}

impl Inner {
    /// Deletes ephemeral threads whose runs ended a while ago, until the server stops.
    pub(crate) async fn sweep_ephemeral(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(SWEEP_EVERY) => {}
                () = self.tasks.soft.cancelled() => return,
            }
            let since =
                clearway_core::Timestamp(self.clocks.now().0 - EPHEMERAL_FOR.as_millis() as i64);
            let stale = bounded(self.store.stale_threads(EPHEMERAL, since, SWEPT_AT_ONCE)).await;
            let stale = match stale {
                Ok(stale) => stale,
                Err(error) => {
                    tracing::warn!("threads that are over cannot be listed: {error}");
                    continue;
                }
            };
            for thread in stale {
                self.cache.forget(thread);
                if let Err(error) = bounded(self.store.delete_thread(thread)).await {
                    tracing::warn!(thread.id = %thread, "a thread that is over stays: {error}");
                    break;
                }
            }
        }
    }
}
