//! Runs that start at a time: once, or by the clock again and again.
//!
//! A schedule is a row. When its time comes its run is created under an idempotency key made of the
//! schedule and the time, and then the row moves on: a crash in between starts nothing twice and
//! loses nothing. A time that passed while the server was down is made up for once, not once per
//! missed time.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use clearway_core::machine::Command;
use clearway_core::message::Role;
use clearway_core::plan::MESSAGES;
use clearway_core::run::{Multitask, RunOptions};
use clearway_core::thread::ThreadKey;
use clearway_core::{Code, Message, Priority, RunId, RunRecord, ThreadId, Timestamp};
use clearway_store::{Fired, Idempotency, Schedule, ScheduleQuery};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::engine::{Engine, Inner, bounded};
use crate::lifetime::AfterLife;
use crate::{EPHEMERAL, Error, Submit};

/// What answers a question of `run`'s thread when its time is over.
pub(crate) fn resume(run: &RunRecord, question: Uuid, answer: Value) -> Value {
    json!({
        "agent": run.agent,
        "thread": run.thread.to_string(),
        "priority": run.priority.level(),
        "metadata": run.metadata,
        "command": {"resume_by_id": {question.to_string(): answer}},
    })
}

/// A run to be started by the clock.
#[derive(Clone, Debug)]
pub struct CronSpec {
    /// Unique per tenant.
    pub name: String,
    pub tenant: String,
    pub owner: Option<String>,
    /// Five fields: minute, hour, day of month, month, day of week.
    pub cron: String,
    /// In which they are meant, as an IANA name; `None` is UTC.
    pub timezone: Option<String>,
    pub agent: String,
    pub input: Value,
    pub metadata: Map<String, Value>,
    /// All its runs on this thread; `None` gives each its own.
    pub thread: Option<ThreadId>,
}

/// The first time after `after` that a cron expression names, in this time zone. A time that a
/// clock change skips happens right after it; one that happens twice counts once.
///
/// # Errors
/// Says what is wrong with the expression or the zone.
pub fn next_time(
    cron: &str,
    timezone: Option<&str>,
    after: Timestamp,
) -> Result<Timestamp, String> {
    let zone: chrono_tz::Tz = timezone
        .unwrap_or("UTC")
        .parse()
        .map_err(|_| format!("there is no time zone `{}`", timezone.unwrap_or_default()))?;
    let cron = croner::Cron::from_str(cron).map_err(|error| error.to_string())?;
    let after = chrono::DateTime::<chrono::Utc>::from_timestamp_millis(after.0)
        .ok_or_else(|| "the time is out of range".to_owned())?
        .with_timezone(&zone);
    let next = cron.find_next_occurrence(&after, false).map_err(|error| error.to_string())?;
    Ok(Timestamp(next.timestamp_millis()))
}

impl Engine {
    /// Makes the configured crons be these: those that changed are replaced, those that are gone are
    /// deleted, the others keep their next time, so that one missed meanwhile is made up for.
    ///
    /// # Errors
    /// As [`Engine::put_cron`].
    pub async fn configure_crons(&self, tenant: &str, specs: Vec<CronSpec>) -> Result<(), Error> {
        let store = &self.inner().store;
        let mut known: Vec<Schedule> = Vec::new();
        loop {
            let query = ScheduleQuery {
                tenant: Some(tenant.to_owned()),
                thread: None,
                after: known.last().map(|last| last.id),
                limit: 1000,
            };
            let page = bounded(store.schedules(query)).await?;
            let full = page.len() == 1000;
            known.extend(page);
            if !full {
                break;
            }
        }
        known.retain(|schedule| schedule.submit["configured"] == true);
        for spec in specs {
            let at = known.iter().position(|old| old.name.as_ref() == Some(&spec.name));
            let unchanged = at.map(|at| known.swap_remove(at)).is_some_and(|old| {
                (&old.cron, &old.timezone, &old.submit)
                    == (&Some(spec.cron.clone()), &spec.timezone, &wanted(&spec, true))
            });
            if !unchanged {
                self.put(spec, true).await?;
            }
        }
        for gone in known {
            bounded(store.delete_schedule(gone.id)).await?;
        }
        Ok(())
    }

    /// Creates or replaces a cron by its name.
    ///
    /// # Errors
    /// `invalid_request` for an expression that names no time; `agent_not_found`,
    /// `store_unavailable`.
    pub async fn put_cron(&self, spec: CronSpec) -> Result<Schedule, Error> {
        self.put(spec, false).await
    }

    async fn put(&self, spec: CronSpec, configured: bool) -> Result<Schedule, Error> {
        let inner = self.inner();
        if inner.agents.get(&spec.agent).is_none() {
            let text = format!("no agent `{}`", spec.agent);
            return Err(Error::new(Code::AgentNotFound, text));
        }
        inner.scheduled_input(&spec.agent, &spec.input)?;
        let now = inner.clocks.now();
        let next = next_time(&spec.cron, spec.timezone.as_deref(), now).map_err(|why| {
            let text = format!("`{}` is no cron expression of five fields: {why}", spec.cron);
            Error::new(Code::InvalidRequest, text)
        })?;
        let submit = wanted(&spec, configured);
        let schedule = Schedule {
            id: inner.ids.random(),
            tenant: spec.tenant,
            owner: spec.owner,
            name: Some(spec.name),
            thread: spec.thread,
            cron: Some(spec.cron),
            timezone: spec.timezone,
            next_at: Some(next),
            submit,
            only_at: None,
            created_at: now,
            last_at: None,
            last_run: None,
            last_error: None,
        };
        bounded(inner.store.put_schedule(schedule.clone())).await?;
        Ok(schedule)
    }
}

/// What a cron's row keeps of the run to be started.
fn wanted(spec: &CronSpec, configured: bool) -> Value {
    let mut wanted = json!({"agent": spec.agent, "input": spec.input, "metadata": spec.metadata});
    if configured {
        wanted["configured"] = true.into();
    }
    wanted
}

impl Inner {
    /// The standing task that starts what is due.
    pub(crate) async fn keep_schedules(self: Arc<Self>) {
        let mut pause = Duration::ZERO;
        loop {
            tokio::select! {
                () = self.tasks.soft.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = match bounded(self.store.due_schedules(AT_ONCE)).await {
                Ok((due, next)) => {
                    let full = due.len() == AT_ONCE as usize;
                    for schedule in due {
                        self.fire(schedule).await;
                    }
                    // New schedules are made by others: look again soon in any case.
                    let until = next.map_or(LOOK_EVERY, |at| at.since(self.clocks.now()));
                    if full { Duration::ZERO } else { until.clamp(SHORTEST, LOOK_EVERY) }
                }
                Err(error) => {
                    tracing::warn!("schedules cannot be read, trying again: {error}");
                    LOOK_EVERY
                }
            };
        }
    }

    async fn fire(self: &Arc<Self>, schedule: Schedule) {
        let Some(at) = schedule.next_at else { return };
        let stale = match (schedule.only_at, schedule.thread) {
            (Some(head), Some(thread)) => match bounded(self.store.thread(thread)).await {
                Ok(found) => found.and_then(|thread| thread.head) != Some(head),
                Err(error) => {
                    tracing::warn!("a schedule waits for the store: {error}");
                    return;
                }
            },
            _ => false,
        };
        if let Some(then) = AfterLife::of(&schedule) {
            self.end_life(&schedule, at, then).await;
            return;
        }
        let started = if stale { Ok(None) } else { self.start_scheduled(&schedule, at).await };
        let (run, error) = match started {
            Ok(run) => (run, None),
            // It stays due, and is tried again with the next look.
            Err(error) if error.0.retryable => {
                tracing::warn!(schedule.id = %schedule.id, "a scheduled run has to wait: {error}");
                return;
            }
            Err(error) => {
                tracing::error!(schedule.id = %schedule.id, "a scheduled run could not start: {error}");
                (None, Some(error.to_string()))
            }
        };
        let now = self.clocks.now();
        let next_at = schedule
            .cron
            .as_deref()
            .and_then(|cron| next_time(cron, schedule.timezone.as_deref(), now).ok())
            .filter(|next| schedule.submit["end_at"].as_i64().is_none_or(|end| next.0 <= end));
        let over = schedule.cron.is_none();
        let fired = Fired { id: schedule.id, at, next_at, run, error, over };
        if let Err(error) = bounded(self.store.schedule_fired(fired)).await {
            // The run is found again by its key.
            tracing::warn!(schedule.id = %schedule.id, "a schedule could not be moved on: {error}");
        }
    }

    async fn start_scheduled(
        self: &Arc<Self>,
        schedule: &Schedule,
        at: Timestamp,
    ) -> Result<Option<RunId>, Error> {
        let wanted = &schedule.submit;
        let agent = wanted["agent"].as_str().unwrap_or_default();
        let thread = schedule.thread.unwrap_or_else(|| self.ids.thread());
        let broken = || Error::new(Code::Internal, "the schedule's options cannot be read");
        let mut options = match wanted.get("options") {
            None => RunOptions::default(),
            Some(options) => RunOptions::from_json(options).ok_or_else(broken)?,
        };
        if let Some(command) = wanted.get("command") {
            options.command = Some(Command::from_json(command).ok_or_else(broken)?);
        }
        let (door, input) = match wanted["door"].as_str() {
            None => ("schedule", self.scheduled_input(agent, &wanted["input"])?),
            // Its door made writes of it.
            Some(_) => ("langgraph", wanted["input"].clone()),
        };
        let forgotten = schedule.thread.is_none() && wanted["keep_thread"] == false;
        let level = wanted["priority"].as_u64().and_then(|level| u8::try_from(level).ok());
        let submit = Submit {
            tenant: schedule.tenant.clone(),
            owner: schedule.owner.clone(),
            metadata: wanted["metadata"].as_object().cloned().unwrap_or_default(),
            thread_key: forgotten.then(|| ThreadKey::new(EPHEMERAL, &[&thread.to_string()])),
            thread_note: wanted["thread_note"].as_object().cloned().unwrap_or_default(),
            multitask: wanted["multitask"].as_str().and_then(Multitask::parse),
            priority: level.and_then(Priority::new),
            idempotency: Some(Idempotency {
                route: "schedule".to_owned(),
                key: format!("{}|{}", schedule.id, at.0),
                body: [0; 32],
            }),
            options,
            ..Submit::new(thread, agent, door, input)
        };
        Ok(Some(self.submit(submit).await?.run))
    }
}

impl Inner {
    /// A schedule's input as writes of its agent: checked where the agent checks, and a bare
    /// `message` is what a person says.
    fn scheduled_input(&self, agent: &str, input: &Value) -> Result<Value, Error> {
        let check = self.agents.get(agent).and_then(|agent| agent.input.clone());
        match (check, input.as_object()) {
            (Some(check), Some(input)) => check.read(input).map_err(Error),
            (None, Some(object)) => match object.get("message").and_then(Value::as_str) {
                Some(text) => {
                    let id = self.ids.random().to_string();
                    let said = Message::new(Role::Human, text, id).to_value();
                    Ok(json!({MESSAGES: [said]}))
                }
                None => Ok(input.clone()),
            },
            (_, None) => Ok(input.clone()),
        }
    }
}

/// Schedules that one look acts on.
const AT_ONCE: u32 = 64;

const LOOK_EVERY: Duration = Duration::from_secs(1);
const SHORTEST: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cron_times_are_found() {
        let monday = Timestamp(1_764_000_000_000); // 2025-11-24 16:00 UTC
        let next = next_time("0 9 * * 1-5", None, monday).unwrap();
        assert_eq!(next, monday.plus(Duration::from_secs(17 * 3600)));
        let berlin = next_time("0 9 * * 1-5", Some("Europe/Berlin"), monday).unwrap();
        assert_eq!(berlin, monday.plus(Duration::from_secs(16 * 3600)));
        assert!(next_time("every day", None, monday).is_err());
        assert!(next_time("* * 31 2 *", None, monday).is_err(), "never");
        assert!(next_time("0 9 * * *", Some("Mars/Olympus"), monday).is_err());
    }

    #[test]
    fn clock_changes_skip_and_double_nothing() {
        // In Berlin 02:30 does not exist on 2026-03-29 and happens twice on 2026-10-25.
        let zone = Some("Europe/Berlin");
        let spring = Timestamp(1_774_724_400_000); // 2026-03-28 20:00 in Berlin
        let mut at = spring;
        for _ in 0..3 {
            let next = next_time("30 2 * * *", zone, at).unwrap();
            let gap = next.since(at).as_secs();
            assert!((3600..=26 * 3600).contains(&gap), "{gap}");
            at = next;
        }
        let autumn = Timestamp(1_792_951_200_000); // 2026-10-25 00:00 UTC, before the change
        let first = next_time("30 2 * * *", zone, autumn).unwrap();
        let second = next_time("30 2 * * *", zone, first).unwrap();
        assert!(second.since(first).as_secs() >= 20 * 3600, "{first} {second}");
    }
}
