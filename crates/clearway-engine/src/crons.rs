//! Crons that callers make, look at, switch and delete.
//!
//! Not here: those of the configuration, and starting what is due (`schedules`).

use clearway_core::run::{Multitask, RunOptions};
use clearway_core::{Code, ThreadId, Timestamp};
use clearway_store::{Schedule, ScheduleQuery};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::engine::{Engine, bounded};
use crate::{Error, next_time};

/// A cron as a caller wants it.
#[derive(Clone, Debug)]
pub struct NewCron {
    pub id: Uuid,
    pub tenant: String,
    pub owner: Option<String>,
    /// Five fields: minute, hour, day of month, month, day of week.
    pub cron: String,
    /// IANA name; UTC when `None`.
    pub timezone: Option<String>,
    /// All its runs on this thread; `None` gives each its own.
    pub thread: Option<ThreadId>,
    pub enabled: bool,
    /// The last moment at which it starts something.
    pub end_at: Option<Timestamp>,
    pub start: CronStart,
    /// What its door wants to know about it later.
    pub note: Value,
}

/// What a cron starts.
#[derive(Clone, Debug)]
pub struct CronStart {
    pub agent: String,
    pub door: &'static str,
    /// Writes to the thread's channels.
    pub input: Value,
    pub metadata: Map<String, Value>,
    /// Merged into the metadata of its threads.
    pub thread_note: Map<String, Value>,
    pub multitask: Option<Multitask>,
    pub options: RunOptions,
    /// A thread that is made for one run stays after it.
    pub keep_thread: bool,
}

/// A cron as it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Cron {
    pub schedule: Schedule,
    pub agent: String,
    pub enabled: bool,
    pub end_at: Option<Timestamp>,
    pub updated_at: Timestamp,
    pub metadata: Map<String, Value>,
    pub note: Value,
}

/// Crons of a tenant.
const CRONS: usize = 10_000;

const PAGE: u32 = 1000;

/// A moment as people and programs write it: ISO 8601, in UTC where no offset is said.
pub fn parse_time(text: &str) -> Option<Timestamp> {
    let text = text.trim();
    if let Ok(at) = chrono::DateTime::parse_from_rfc3339(text) {
        return Some(Timestamp(at.timestamp_millis()));
    }
    let forms = ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M"];
    let naive =
        forms.iter().find_map(|form| chrono::NaiveDateTime::parse_from_str(text, form).ok());
    naive.map(|at| Timestamp(at.and_utc().timestamp_millis()))
}

impl Engine {
    /// Makes a cron, or replaces the one with its id.
    ///
    /// # Errors
    /// `invalid_request` for an expression that names no time or a zone that does not exist;
    /// `agent_not_found`, `limit_exceeded`, `store_unavailable`.
    pub async fn save_cron(&self, new: NewCron) -> Result<Cron, Error> {
        let inner = self.inner();
        if inner.agents.get(&new.start.agent).is_none() {
            let text = format!("no agent `{}`", new.start.agent);
            return Err(Error::new(Code::AgentNotFound, text));
        }
        let now = inner.clocks.now();
        let next = next_time(&new.cron, new.timezone.as_deref(), now)
            .map_err(|why| Error::new(Code::InvalidRequest, why))?;
        let in_time = new.end_at.is_none_or(|end| next <= end);
        let known = self.cron(&new.tenant, new.id).await?;
        if known.is_none() && self.crons(&new.tenant, None).await?.len() >= CRONS {
            let text = format!("there are at most {CRONS} crons");
            return Err(Error::new(Code::LimitExceeded, text));
        }
        let known = known.map(|known| known.schedule);
        let schedule = Schedule {
            id: new.id,
            tenant: new.tenant,
            owner: new.owner,
            name: None,
            thread: new.thread,
            cron: Some(new.cron),
            timezone: new.timezone,
            next_at: (new.enabled && in_time).then_some(next),
            submit: json!({
                "agent": new.start.agent,
                "door": new.start.door,
                "input": new.start.input,
                "metadata": new.start.metadata,
                "thread_note": new.start.thread_note,
                "multitask": new.start.multitask.map(Multitask::as_str),
                "options": new.start.options.to_json(),
                "keep_thread": new.start.keep_thread,
                "enabled": new.enabled,
                "end_at": new.end_at.map(|at| at.0),
                "updated_at": now.0,
                "note": new.note,
            }),
            only_at: None,
            created_at: known.as_ref().map_or(now, |known| known.created_at),
            last_at: known.as_ref().and_then(|known| known.last_at),
            last_run: known.as_ref().and_then(|known| known.last_run),
            last_error: None,
        };
        bounded(inner.store.put_schedule(schedule.clone())).await?;
        Ok(read(schedule))
    }

    /// # Errors
    /// `store_unavailable`.
    pub async fn cron(&self, tenant: &str, id: Uuid) -> Result<Option<Cron>, Error> {
        // The first one from its id on.
        let query = ScheduleQuery {
            tenant: Some(tenant.to_owned()),
            after: id.as_u128().checked_sub(1).map(Uuid::from_u128),
            limit: 1,
            ..ScheduleQuery::default()
        };
        let found = bounded(self.inner().store.schedules(query)).await?.pop();
        Ok(found.filter(|found| found.id == id && is_made(found)).map(read))
    }

    /// All crons that callers made, or those on a thread, by id.
    ///
    /// # Errors
    /// `store_unavailable`.
    pub async fn crons(&self, tenant: &str, thread: Option<ThreadId>) -> Result<Vec<Cron>, Error> {
        let tenant = Some(tenant.to_owned());
        let mut query = ScheduleQuery { tenant, thread, after: None, limit: PAGE };
        let mut found = Vec::new();
        loop {
            let page = bounded(self.inner().store.schedules(query.clone())).await?;
            query.after = page.last().map(|last| last.id);
            let last = page.len() < PAGE as usize;
            found.extend(page.into_iter().filter(is_made).map(read));
            if last {
                return Ok(found);
            }
        }
    }

    /// # Errors
    /// `store_unavailable`.
    pub async fn delete_cron(&self, tenant: &str, id: Uuid) -> Result<bool, Error> {
        if self.cron(tenant, id).await?.is_none() {
            return Ok(false);
        }
        Ok(bounded(self.inner().store.delete_schedule(id)).await?)
    }
}

/// Timers of questions and crons of the configuration are schedules, too.
fn is_made(schedule: &Schedule) -> bool {
    schedule.cron.is_some() && schedule.submit["door"].is_string()
}

fn read(schedule: Schedule) -> Cron {
    let stored = &schedule.submit;
    let at = |name: &str| stored[name].as_i64().map(Timestamp);
    Cron {
        agent: stored["agent"].as_str().unwrap_or_default().to_owned(),
        enabled: stored["enabled"] != false,
        end_at: at("end_at"),
        updated_at: at("updated_at").unwrap_or(schedule.created_at),
        metadata: stored["metadata"].as_object().cloned().unwrap_or_default(),
        note: stored["note"].clone(),
        schedule,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read() {
        let at = Some(Timestamp(1_893_456_000_000));
        assert_eq!(parse_time("2030-01-01T00:00:00Z"), at);
        assert_eq!(parse_time("2030-01-01T01:00:00.000+01:00"), at);
        assert_eq!(parse_time("2030-01-01T00:00:00.000000"), at);
        assert_eq!(parse_time("2030-01-01T00:00"), at);
        assert_eq!(parse_time("tomorrow"), None);
    }
}
