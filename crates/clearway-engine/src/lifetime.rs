//! Threads that live for a time that their owners set.
//!
//! The end of a thread's life is a schedule of its own, so it is kept like one: it survives restarts, and
//! goes with the thread. A thread that is at work lives until it is not.

use std::sync::Arc;
use std::time::Duration;

use clearway_core::{Code, ThreadId, Timestamp};
use clearway_store::{Fired, Keep, Schedule, ScheduleQuery};
use serde_json::json;
use uuid::Uuid;

use crate::Error;
use crate::engine::{Engine, Inner, bounded};

/// How long a thread lives, from when that is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadTtl {
    pub lifetime: Duration,
    pub then: AfterLife,
}

/// What becomes of a thread whose time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterLife {
    /// Nothing is left.
    Delete,
    /// Its newest state is.
    KeepLatest,
}

/// How long a thread that is at work lives on, at least.
const AGAIN: Duration = Duration::from_secs(60);

impl AfterLife {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Delete => "delete",
            Self::KeepLatest => "keep_latest",
        }
    }

    /// What a schedule is for, if it is one of these.
    pub(crate) fn of(schedule: &Schedule) -> Option<Self> {
        match schedule.submit["after_life"].as_str()? {
            "delete" => Some(Self::Delete),
            _ => Some(Self::KeepLatest),
        }
    }
}

/// The schedule of a thread's end.
fn id(thread: ThreadId) -> Uuid {
    Uuid::new_v5(&thread.0, b"ttl")
}

impl Engine {
    /// Lets a thread live for so long from now, whatever was said before.
    ///
    /// # Errors
    /// `thread_not_found`, `store_unavailable`.
    pub async fn limit_thread(&self, thread: ThreadId, ttl: ThreadTtl) -> Result<(), Error> {
        let known = self.thread(thread).await?;
        let known =
            known.ok_or_else(|| Error::new(Code::ThreadNotFound, format!("no thread {thread}")))?;
        let now = self.now();
        let schedule = Schedule {
            id: id(thread),
            tenant: known.tenant,
            owner: known.owner,
            name: None,
            thread: Some(thread),
            cron: None,
            timezone: None,
            next_at: Some(now.plus(ttl.lifetime)),
            submit: json!({
                "after_life": ttl.then.as_str(),
                "lifetime_ms": u64::try_from(ttl.lifetime.as_millis()).unwrap_or(u64::MAX),
            }),
            only_at: None,
            created_at: now,
            last_at: None,
            last_run: None,
            last_error: None,
        };
        Ok(bounded(self.inner().store.put_schedule(schedule)).await?)
    }

    /// How long a thread lives, and until when; `None` for as long as nobody deletes it.
    ///
    /// # Errors
    /// `store_unavailable`.
    pub async fn thread_ttl(
        &self,
        thread: ThreadId,
    ) -> Result<Option<(ThreadTtl, Timestamp)>, Error> {
        let id = id(thread);
        let query = ScheduleQuery {
            thread: Some(thread),
            after: id.as_u128().checked_sub(1).map(Uuid::from_u128),
            limit: 1,
            ..ScheduleQuery::default()
        };
        let found = bounded(self.inner().store.schedules(query)).await?.pop();
        let Some(found) = found.filter(|found| found.id == id) else { return Ok(None) };
        let (Some(then), Some(at)) = (AfterLife::of(&found), found.next_at) else {
            return Ok(None);
        };
        let lifetime = Duration::from_millis(found.submit["lifetime_ms"].as_u64().unwrap_or(0));
        Ok(Some((ThreadTtl { lifetime, then }, at)))
    }
}

impl Inner {
    /// The time of a schedule's thread is over.
    pub(crate) async fn end_life(
        self: &Arc<Self>,
        schedule: &Schedule,
        at: Timestamp,
        then: AfterLife,
    ) {
        let Some(thread) = schedule.thread else { return };
        let busy = match then {
            AfterLife::Delete => {
                self.cache.forget(thread);
                bounded(self.store.delete_thread(thread))
                    .await
                    .map(|gone| matches!(gone, Some(Err(_))))
            }
            AfterLife::KeepLatest => {
                bounded(self.store.prune_thread(thread, Keep::Last(1))).await.map(|_| false)
            }
        };
        let busy = match busy {
            Ok(busy) => busy,
            // It stays due, and is tried again with the next look.
            Err(error) => {
                tracing::warn!(thread.id = %thread, "a thread whose time is over stays: {error}");
                return;
            }
        };
        if !busy {
            let then = then.as_str();
            tracing::info!(thread.id = %thread, then, "a thread's time is over");
        }
        let next_at = busy.then(|| self.clocks.now().plus(AGAIN));
        let fired = Fired { id: schedule.id, at, next_at, run: None, error: None, over: !busy };
        if let Err(error) = bounded(self.store.schedule_fired(fired)).await {
            tracing::warn!(schedule.id = %schedule.id, "a schedule could not be moved on: {error}");
        }
    }
}
