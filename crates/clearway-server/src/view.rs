//! A run as JSON, and what it waits for as a sentence.

use std::time::Duration;

use clearway_core::wait::{WaitKind, Waiting};
use clearway_core::{RunRecord, Status, Timestamp};
use clearway_engine::{QueuePosition, RunView};
use serde_json::{Value, json};

/// A run as the addresses of all runs show it.
pub(crate) fn run(view: &RunView, now: Timestamp) -> Value {
    let RunView { record, waiting, position, calls } = view;
    let spent = waiting.as_ref().map_or(&record.spent, |waiting| &waiting.spent);
    json!({
        "run_id": record.id.to_string(),
        "thread_id": record.thread.to_string(),
        "agent": record.agent,
        "door": record.door,
        "status": record.status.as_str(),
        "created_at": record.created_at.to_string(),
        "started_at": record.started_at.map(|at| at.to_string()),
        "ended_at": record.ended_at.map(|at| at.to_string()),
        "deadline_at": record.deadline_at.map(|at| at.to_string()),
        "priority": record.priority.level(),
        "pool": record.pool,
        "attempt": record.attempt,
        "parent": record.parent.map(|parent| parent.to_string()),
        "step": record.step,
        "next": record.next,
        "rolled_back": record.rolled_back,
        "cancel_requested": record.cancel_requested,
        "metadata": record.metadata,
        "waiting_on": waiting.as_ref().map(|waiting| waiting_on(record, waiting, *position, now)),
        // Calls that run side by side wait for different things.
        "calls": calls
            .iter()
            .map(|(node, waiting)| {
                let mut on = waiting_on(record, waiting, None, now);
                on["node"] = (**node).into();
                on
            })
            .collect::<Vec<Value>>(),
        "spent_ms": spent.to_json(),
        "queue_position": queue_position(record, *position),
        "queue_reason": queue_reason(record, *position),
        "expected_start": expected_start(record, waiting.as_ref(), now),
        "usage": {
            "input_tokens": record.usage.input_tokens,
            "output_tokens": record.usage.output_tokens,
            "rebilled_tokens": record.usage.rebilled_tokens,
            "calls": record.usage.calls,
            "cost": cost(record.usage.cost_micros),
        },
        "error": record.failure.as_ref().map(clearway_core::Failure::to_json),
    })
}

/// In the currency unit of the configured prices.
fn cost(micros: u64) -> f64 {
    micros as f64 / 1e6
}

/// A run that has ended.
pub(crate) fn ended(record: RunRecord, now: Timestamp) -> Value {
    run(&RunView { record, waiting: None, position: None, calls: Vec::new() }, now)
}

/// How many runs go first; `None` for a run that does not queue.
pub(crate) fn queue_position(record: &RunRecord, position: Option<QueuePosition>) -> Option<u32> {
    ahead(record.status, position)
}

/// As [`queue_position`], for a run that was just accepted.
pub(crate) fn ahead(status: Status, position: Option<QueuePosition>) -> Option<u32> {
    let position = position?;
    match status {
        Status::Blocked => {
            Some(position.thread_ahead + u32::from(position.thread_active.is_some()))
        }
        Status::Ready => Some(position.pool_ahead),
        Status::Running
        | Status::Waiting
        | Status::Success
        | Status::Error
        | Status::Timeout
        | Status::Cancelled => None,
    }
}

/// Why a run does not start yet: `thread`, `no_slot` or `later`.
fn queue_reason(record: &RunRecord, position: Option<QueuePosition>) -> Option<&'static str> {
    match (record.status, position) {
        (Status::Blocked, _) => Some("thread"),
        (Status::Ready, Some(_)) => Some("no_slot"),
        _ => None,
    }
}

/// When a waiting run should start, as far as can be told.
fn expected_start(record: &RunRecord, waiting: Option<&Waiting>, now: Timestamp) -> Option<String> {
    let eta = waiting?.eta.filter(|_| record.status == Status::Ready)?;
    Some(now.plus(eta).to_string())
}

fn waiting_on(
    record: &RunRecord,
    waiting: &Waiting,
    position: Option<QueuePosition>,
    now: Timestamp,
) -> Value {
    let mut on = json!({
        "kind": waiting.kind.as_str(),
        "detail": &*waiting.detail,
        "since": Timestamp(now.0.saturating_sub(ms(waiting.for_) as i64)).to_string(),
        "for_ms": ms(waiting.for_),
        "who": waiting.kind.who().as_str(),
        "how": waiting.kind.how(),
        "sentence": sentence(record, waiting, position),
    });
    if let Some(deadline) = waiting.deadline {
        let left = deadline.remaining(tokio::time::Instant::now().into_std());
        on["deadline"] = now.plus(left).to_string().into();
    }
    if let Some(eta) = waiting.eta {
        on["eta_ms"] = ms(eta).into();
    }
    on
}

fn ms(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

/// What the run waits for, since when, and who can do what about it, for people.
pub(crate) fn sentence(
    record: &RunRecord,
    waiting: &Waiting,
    position: Option<QueuePosition>,
) -> String {
    let detail = &*waiting.detail;
    let position = position.unwrap_or_default();
    let pool = &record.pool;
    let with = |text: &str| {
        if detail.is_empty() { text.to_owned() } else { format!("{text} ({detail})") }
    };
    let (what, then) = match waiting.kind {
        WaitKind::Work => {
            (with("working, waiting for nothing outside"), "cancel the run to stop it")
        }
        WaitKind::Thread => {
            let behind = match position.thread_active {
                Some(run) => format!("waiting behind run {run} of the same thread"),
                None => "waiting for its turn on its thread".to_owned(),
            };
            let others = match position.thread_ahead {
                0 => String::new(),
                others => format!(" and {others} more"),
            };
            (behind + &others, "cancel the run in front, or wait for it")
        }
        WaitKind::Slot => (
            format!("waiting for a slot in pool {pool}: {} ahead", position.pool_ahead),
            "an operator can raise the pool's slots, or cancel runs that hold them",
        ),
        WaitKind::ProviderSlot => (
            with("waiting for one of the provider's concurrent calls"),
            "an operator can raise the provider's limits.concurrent",
        ),
        WaitKind::Batch => (
            with("waiting for the batch that takes the texts to the provider"),
            "it leaves within moments, or when an earlier one is done",
        ),
        WaitKind::RateLimit => {
            (with("held back by the provider's rate limit"), "the window refills by itself")
        }
        WaitKind::Breaker => (
            with("the provider's circuit is open"),
            "the next probe decides, or an operator resets it",
        ),
        WaitKind::Dns => {
            (with("resolving the provider's name"), "it answers or runs into its limit")
        }
        WaitKind::Connect => {
            (with("connecting to the provider"), "it opens or runs into its limit")
        }
        WaitKind::FirstByte => (
            with("the request is sent and nothing has come back yet"),
            "the provider answers or runs into its limit",
        ),
        WaitKind::NextToken => (
            with("the answer streams, waiting for the next token"),
            "the provider goes on or runs into its limit",
        ),
        WaitKind::Tool => (with("waiting for a tool"), "it ends or runs into its limit"),
        WaitKind::Worker => {
            (with("waiting for a worker process"), "it ends or is killed at its limit")
        }
        WaitKind::Child => {
            (with("waiting for runs that it started"), "they end, or are cancelled with it")
        }
        WaitKind::Signal => {
            (with("waiting for a signal"), "a client sends it to /runs/{id}/signals/{name}")
        }
        WaitKind::Person => {
            (with("waiting for a person's answer"), "somebody has to answer the question")
        }
        WaitKind::Decision => (
            with("waiting for a decision about a write whose outcome is unknown"),
            "an operator decides with clearway runs resolve",
        ),
        WaitKind::Outage => (
            with("parked while its provider is out of order"),
            "it goes on when the provider recovers or an operator resets it",
        ),
        WaitKind::Budget => (with("its budget is used up"), "an operator can raise the budget"),
        WaitKind::Timer => (with("waiting for a point in time"), "the time comes by itself"),
        WaitKind::Store => (
            with("waiting for the store"),
            "an operator can free disk space or restore access to the data directory",
        ),
        WaitKind::Client => (with("waiting for its client to read"), "the client has to read on"),
        WaitKind::Retry => (with("waiting before the next attempt"), "it starts by itself"),
    };
    let eta = match waiting.eta {
        Some(eta) => format!(", about {:.1} s to go", eta.as_secs_f64()),
        None => String::new(),
    };
    format!("{what}, {:.1} s so far{eta}; {then}", waiting.for_.as_secs_f64())
}

#[cfg(test)]
mod tests;
