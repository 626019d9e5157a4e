//! What a campaign's log says, read event by event.
//!
//! Everything that is shown as progress comes from here, and moves only with events.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use clearway_core::event::{Body, Event, EventKind};
use clearway_core::{RunId, Timestamp};
use clearway_engine::{Agent, From as Begin};
use serde_json::{Value, json};

use crate::Problem;
use crate::app::App;

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
    pub(super) artifacts: u64,
    pub(super) last_artifact: Option<Timestamp>,
    pub(super) last: Option<Timestamp>,
    pub(super) percent: u64,
    pub(super) current: Option<String>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct StepFold {
    pub(super) started: Option<Timestamp>,
    pub(super) completed: Option<Timestamp>,
    pub(super) running: u32,
    pub(super) runs: u64,
    pub(super) interactions: u64,
    pub(super) errors: u64,
    pub(super) artifacts: u64,
    pub(super) error: Option<String>,
}

/// The part of a node's name that is the step's: `copy:each` belongs to `copy`.
pub(super) fn step_of(node: &str) -> &str {
    node.split(':').next().unwrap_or(node)
}

impl Fold {
    /// Takes in one event; the interaction that it is for people, if it is one.
    pub(super) fn event(&mut self, event: &Event) -> Option<Value> {
        self.next = event.seq + 1;
        let Body::Fact(fact) = &event.body else { return None };
        let data = fact.json();
        let node = data["node"].as_str().unwrap_or_default();
        let name = step_of(node).to_owned();
        self.last = Some(event.at);
        let (action, message, status) = match fact.kind {
            EventKind::NodeStarted => {
                let step = self.steps.entry(name.clone()).or_default();
                step.started.get_or_insert(event.at);
                step.running += 1;
                self.current = Some(name.clone());
                ("started", format!("{name} started"), "running")
            }
            EventKind::NodeCompleted => {
                let step = self.steps.entry(name.clone()).or_default();
                step.running = step.running.saturating_sub(1);
                if !node.ends_with(":each") {
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
                self.steps.entry(name.clone()).or_default().artifacts += 1;
                self.artifacts += 1;
                self.last_artifact = Some(event.at);
                (
                    "artifact",
                    format!("saved {}", data["name"].as_str().unwrap_or_default()),
                    "completed",
                )
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
                let text = data["detail"].as_str().unwrap_or_default().to_owned();
                ("waiting", text, "waiting")
            }
            EventKind::Interrupt => ("question", "waits for an answer".to_owned(), "waiting"),
            EventKind::OutputReset if data.get("task").is_none() => {
                // Taken up again: what ran is run again.
                self.steps.values_mut().for_each(|step| step.running = 0);
                ("resumed", "taken up again".to_owned(), "running")
            }
            _ => return None,
        };
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

    /// Share of the steps that have ended, in percent; it never goes back.
    pub(super) fn percent(&mut self, steps: &[StepInfo], ended: bool) -> u64 {
        let done = steps.iter().filter(|step| self.is_done(&step.id)).count() as u64;
        // 100 is for campaigns that are over.
        let share = (done * 100 / (steps.len().max(1) as u64)).min(99);
        self.percent = if ended { 100 } else { self.percent.max(share) };
        self.percent
    }

    pub(super) fn is_done(&self, id: &str) -> bool {
        self.steps.get(id).is_some_and(|step| step.completed.is_some())
    }
}

/// Logs read so far, by run. A cache: losing it costs reading again.
#[derive(Debug, Default)]
pub(crate) struct Folds(Mutex<HashMap<RunId, Fold>>);

/// Runs whose folded logs are kept.
const FOLDS: usize = 512;

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
pub(super) fn steps(agent: &Agent) -> Vec<StepInfo> {
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
