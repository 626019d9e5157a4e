//! Log lines in pairs: whatever says that it started says exactly once how it ended.
//!
//! The pair is held by a value. Dropping it without an outcome (a cancelled future, a panic) logs
//! the ending line too, so a log with a start and no end means that the process died in between.

use std::fmt;
use std::time::Instant;

use clearway_core::{Code, Failure, TaskId};

use crate::clock::instant;

/// Something that is under way and will log its end.
pub(crate) struct Started {
    what: &'static str,
    /// Stable id of the thing, equal in both lines.
    id: String,
    context: Context,
    at: Instant,
    ended: bool,
}

/// Ids that both lines carry.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub run: String,
    pub thread: String,
    pub agent: String,
}

impl fmt::Debug for Started {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Started({} {})", self.what, self.id)
    }
}

impl Started {
    pub(crate) fn run(context: Context, attempt: u32) -> Self {
        let id = context.run.clone();
        tracing::info!(
            run.id = %context.run, thread.id = %context.thread, agent.name = %context.agent,
            run.attempt = attempt, "run started: {id}"
        );
        Self { what: "run", id, context, at: instant(), ended: false }
    }

    /// `among` tells the calls of a fan-out apart.
    pub(crate) fn step(context: Context, node: &str, step: i64, among: Option<TaskId>) -> Self {
        let id = match among {
            None => format!("{}/{step}/{node}", context.run),
            Some(task) => format!("{}/{step}/{node}/{task}", context.run),
        };
        tracing::debug!(
            run.id = %context.run, thread.id = %context.thread, agent.name = %context.agent,
            step.id = %id, "step started: {id}"
        );
        Self { what: "step", id, context, at: instant(), ended: false }
    }

    pub(crate) fn end(mut self, outcome: &str) {
        self.log(outcome, None);
    }

    /// With what went wrong, if anything did.
    pub(crate) fn end_with(mut self, outcome: &str, failure: Option<&Failure>) {
        self.log(outcome, failure);
    }

    fn log(&mut self, outcome: &str, failure: Option<&Failure>) {
        self.ended = true;
        let duration_ms = instant().saturating_duration_since(self.at).as_millis() as u64;
        let Context { run, thread, agent } = &self.context;
        let id = &self.id;
        if self.what == "run" {
            tracing::info!(
                run.id = %run, thread.id = %thread, agent.name = %agent, outcome, duration_ms,
                code = failure.map(|failure| failure.code.as_str()),
                error = failure.and_then(told),
                "run ended: {id}: {outcome}"
            );
        } else {
            tracing::debug!(
                run.id = %run, thread.id = %thread, agent.name = %agent, step.id = %id,
                outcome, duration_ms, "{} ended: {id}: {outcome}", self.what
            );
        }
    }
}

/// The text of a failure, where it cannot be about what people or models wrote.
fn told(failure: &Failure) -> Option<&str> {
    let code = failure.code.as_str();
    let is_ours = matches!(failure.code, Code::DeadlineExceeded | Code::Cancelled);
    (is_ours || code.starts_with("upstream.")).then_some(&*failure.message)
}

impl Drop for Started {
    fn drop(&mut self) {
        if !self.ended {
            self.log("dropped", None);
        }
    }
}
