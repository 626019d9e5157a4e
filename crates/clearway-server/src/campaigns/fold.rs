//! What a campaign's log says, read event by event.
//!
//! Everything that is shown as progress comes from here, and moves only with events.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clearway_core::event::{Body, Event, EventKind};
use clearway_core::{RunId, Timestamp};
use clearway_engine::{Agent, From as Begin};
use serde_json::{Value, json};

use crate::Problem;
use crate::app::App;
use crate::server::Door;

/// Interactions that an answer shows.
pub(super) const SHOWN: usize = 10;

/// A campaign run's log, read so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fold {
    /// Number after the last event read.
    pub(super) next: u64,
    pub(super) steps: HashMap<String, StepFold>,
    pub(super) interactions: Vec<Value>,
    pub(super) total: u64,
    pub(super) errors: u64,
    /// Names of what was saved.
    pub(super) files: BTreeSet<String>,
    pub(super) last: Option<Timestamp>,
    pub(super) percent: u64,
    /// The run's last event is in.
    over: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct StepFold {
    pub(super) started: Option<Timestamp>,
    pub(super) completed: Option<Timestamp>,
    pub(super) running: u32,
    pub(super) runs: u64,
    pub(super) interactions: u64,
    pub(super) errors: u64,
    pub(super) error: Option<String>,
    /// When it last began.
    latest: Option<Timestamp>,
    /// The same, while it is at work.
    since: Option<Timestamp>,
    /// Of all its runs.
    worked: Duration,
}

impl StepFold {
    /// How long it has worked, over all its runs; `None` before the first is over.
    pub(super) fn time(&self) -> Option<Duration> {
        self.completed.map(|_| self.worked)
    }
}

/// The node that makes a workflow's result.
const FOLD: &str = "result";

/// The part of a node's name that is the step's: `copy:each` belongs to `copy`.
pub(super) fn step_of(node: &str) -> &str {
    node.split(':').next().unwrap_or(node)
}

impl Fold {
    /// Goes on with the log of the campaign's next run.
    pub(super) fn go_on(&mut self, next: Self) {
        for (id, step) in next.steps {
            let known = self.steps.entry(id).or_default();
            known.started = known.started.or(step.started);
            known.completed = step.completed.or(known.completed);
            known.running = step.running;
            known.runs += step.runs;
            known.interactions += step.interactions;
            known.errors += step.errors;
            known.error = step.error.or(known.error.take().filter(|_| step.completed.is_none()));
            known.worked += step.worked;
            known.latest = step.latest.or(known.latest);
        }
        self.interactions.extend(next.interactions);
        let surplus = self.interactions.len().saturating_sub(SHOWN);
        self.interactions.drain(..surplus);
        self.total += next.total;
        self.errors += next.errors;
        self.files.extend(next.files);
        self.last = next.last.or(self.last);
        self.percent = self.percent.max(next.percent);
    }

    /// How often the review sent the work back.
    pub(super) fn revisions(&self) -> u64 {
        self.steps.get("review").map_or(0, |step| step.runs.saturating_sub(1))
    }

    /// Takes in one event; the interaction that it is for people, if it is one.
    pub(super) fn event(&mut self, event: &Event) -> Option<Value> {
        self.next = event.seq + 1;
        let Body::Fact(fact) = &event.body else { return None };
        let data = fact.json();
        let node = data["node"].as_str().unwrap_or_default();
        let name = step_of(node).to_owned();
        self.last = Some(event.at);
        if fact.kind == EventKind::RunEnded {
            self.over = true;
            self.end(&data);
        }
        let (action, message, status) = match fact.kind {
            EventKind::NodeStarted => {
                let step = self.steps.entry(name.clone()).or_default();
                step.started.get_or_insert(event.at);
                step.latest = Some(event.at);
                step.since.get_or_insert(event.at);
                step.running += 1;
                ("started", format!("{name} started"), "running")
            }
            EventKind::NodeCompleted => {
                let step = self.steps.entry(name.clone()).or_default();
                step.running = step.running.saturating_sub(1);
                if !node.ends_with(":each") {
                    if let Some(since) = step.since.take() {
                        step.worked += event.at.since(since);
                    }
                    step.completed = Some(event.at);
                    step.runs += 1;
                    step.error = None;
                }
                ("completed", format!("{name} completed"), "completed")
            }
            EventKind::NodeFailed => {
                let step = self.steps.entry(name.clone()).or_default();
                step.errors += 1;
                let text = data["error"]["message"].as_str().unwrap_or_default().to_owned();
                step.error = Some(text.clone());
                self.errors += 1;
                ("failed", text, "error")
            }
            EventKind::ArtifactSaved => {
                let file = data["name"].as_str().unwrap_or_default();
                self.files.insert(file.to_owned());
                ("artifact", format!("saved {file}"), "completed")
            }
            EventKind::Progress => {
                let text = data["message"].as_str().unwrap_or_default().to_owned();
                ("progress", text, "running")
            }
            EventKind::ProviderAttempt => {
                self.errors += 1;
                let text = data["outcome"].as_str().unwrap_or_default();
                ("provider call failed", text.to_owned(), "error")
            }
            EventKind::RunParked => {
                self.stand_still();
                let text = data["detail"].as_str().unwrap_or_default().to_owned();
                ("waiting", text, "waiting")
            }
            EventKind::Interrupt => ("question", "waits for an answer".to_owned(), "waiting"),
            EventKind::OutputReset if data.get("task").is_none() => {
                self.stand_still();
                ("resumed", "taken up again".to_owned(), "running")
            }
            _ => return None,
        };
        // What only puts outputs together is nobody that people know.
        if name == FOLD {
            return None;
        }
        if let Some(step) = self.steps.get_mut(&name) {
            step.interactions += 1;
        }
        self.total += 1;
        let agent = if name.is_empty() { "workflow" } else { &name };
        let interaction = json!({
            "timestamp": event.at.to_string(), "agent": agent, "action": action,
            "message": message, "status": status,
        });
        self.interactions.push(interaction.clone());
        if self.interactions.len() > SHOWN {
            self.interactions.remove(0);
        }
        Some(interaction)
    }

    /// What was at work when the run went wrong went wrong with it: a failure that ends a run is told
    /// nowhere else.
    fn end(&mut self, data: &Value) {
        let status = data["status"].as_str().unwrap_or_default();
        if status == "success" {
            return;
        }
        let is_error = u64::from(status != "cancelled");
        let why = data["error"]["message"].as_str().unwrap_or(status);
        self.errors += is_error;
        for step in self.steps.values_mut().filter(|step| step.running > 0) {
            step.error = Some(why.to_owned());
            step.errors += is_error;
        }
    }

    /// What ran is begun again when the run is taken up again.
    fn stand_still(&mut self) {
        for step in self.steps.values_mut() {
            (step.running, step.since) = (0, None);
        }
    }

    /// Share of the steps that have ended, in percent; it never goes back.
    pub(super) fn percent(&mut self, steps: &[StepInfo], ended: bool) -> u64 {
        let done = steps.iter().filter(|step| self.is_done(&step.id)).count() as u64;
        // 100 is for campaigns that are over.
        let share = (done * 100 / (steps.len().max(1) as u64)).min(99);
        self.percent = if ended { 100 } else { self.percent.max(share) };
        self.percent
    }

    /// How far a campaign in this state is, after so many seconds.
    pub(super) fn figures(&mut self, steps: &[StepInfo], state: &str, elapsed: f64) -> Value {
        let percent = self.percent(steps, state == "completed");
        let done = steps.iter().filter(|step| self.is_done(&step.id)).count();
        // What works between two steps has no name that people know: the step before it stands.
        let latest = |step: &&StepInfo| self.steps.get(&step.id).and_then(|seen| seen.latest);
        let current = steps.iter().filter(|step| latest(step).is_some()).max_by_key(latest);
        let total = match state {
            "queued" | "running" => (percent > 0).then(|| elapsed * 100.0 / percent as f64),
            _ => Some(elapsed),
        };
        json!({
            "step": current.map(|step| &step.id),
            "step_name": current.map(|step| &step.title),
            "step_description": current.map(|step| &step.description),
            "completed_steps": done,
            "total_steps": steps.len(),
            "progress_percentage": percent,
            "estimated_total_time": total,
            "current_execution_time": elapsed,
            "estimated_remaining_time": total.map(|total| (total - elapsed).max(0.0)),
        })
    }

    pub(super) fn is_done(&self, id: &str) -> bool {
        self.steps.get(id).is_some_and(|step| step.completed.is_some())
    }
}

/// Logs read so far, by run. A cache: losing it costs reading again.
#[derive(Debug, Default)]
pub(crate) struct Folds(Mutex<HashMap<RunId, Fold>>);

/// Runs whose folded logs are kept.
const FOLDS: usize = 4096;

impl Folds {
    pub(super) fn take(&self, run: RunId) -> Fold {
        self.lock().remove(&run).unwrap_or_default()
    }

    pub(super) fn put(&self, run: RunId, fold: Fold) {
        let mut all = self.lock();
        if all.len() >= FOLDS
            && let Some(any) = all.keys().next().copied()
        {
            all.remove(&any);
        }
        all.insert(run, fold);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<RunId, Fold>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Events that one look at a log takes at most; a later look goes on.
const EVENTS: usize = 20_000;

pub(super) async fn fold(app: &App, run: RunId) -> Result<Fold, Problem> {
    let mut fold = app.folds.take(run);
    if fold.over {
        app.folds.put(run, fold.clone());
        return Ok(fold);
    }
    let begin = match fold.next {
        0 => Begin::Start,
        next => Begin::AfterSeq(next - 1),
    };
    let (events, _) = app.engine.events(run, begin, EVENTS).await?;
    for event in &events {
        fold.event(event);
    }
    app.folds.put(run, fold.clone());
    Ok(fold)
}

/// A step as the workflow defines it.
#[derive(Clone, Debug)]
pub(super) struct StepInfo {
    pub(super) id: String,
    pub(super) title: String,
    pub(super) description: String,
    pub(super) category: String,
}

/// Steps that people see: those with a category of their own.
fn steps(agent: &Agent) -> Vec<StepInfo> {
    let info = |node: &Arc<str>| {
        let policy = agent.policies.get(node)?;
        let category = policy.category.as_deref().unwrap_or_default();
        if category.is_empty() || category == "internal" {
            return None;
        }
        Some(StepInfo {
            id: node.to_string(),
            title: policy.title.as_deref().unwrap_or(node).to_owned(),
            description: policy.description.as_deref().unwrap_or_default().to_owned(),
            category: category.to_owned(),
        })
    };
    agent.plan.node_names().filter_map(info).collect()
}

/// The steps of the workflow behind a door.
pub(super) fn steps_of(app: &App, door: &Door) -> Arc<[StepInfo]> {
    let agent = app.engine.agents().get(&door.agent);
    agent.map(|agent| steps(&agent)).unwrap_or_default().into()
}
