//! From a claim to the machine's start, and from the machine's commits to the store.

use std::sync::Arc;
use std::time::{Duration, Instant};

use clearway_core::channel::{State, Write};
use clearway_core::machine::{Checkpoint, Source, Start};
use clearway_core::plan::{MESSAGES, Plan};
use clearway_core::{CheckpointId, Code, Deadline, Failure, RunRecord, TaskId};
use clearway_store::{Claim, StepCommit};
use serde_json::Value;
use uuid::Uuid;

use super::CommitEnd;
use crate::agent::Agent;
use crate::clock::{Ids, instant};
use crate::engine::{Inner, bounded_by};
use crate::live::Live;

/// Sends a commit until it is acknowledged, refused for good, or time is up.
pub(super) async fn send_commit(
    inner: Arc<Inner>,
    commit: StepCommit,
    give_up: Instant,
) -> CommitEnd {
    let started = instant();
    let mut pause = Duration::from_millis(20);
    loop {
        match bounded_by(give_up, inner.store.commit(commit.clone())).await {
            Ok(ack) => {
                let took = instant().saturating_duration_since(started);
                inner.metrics.commit.observe(took.as_secs_f64());
                return CommitEnd::Ack(ack);
            }
            Err(error) => {
                // An unknown outcome is repeated: the store recognises its own commit.
                let again = error.is_transient() || !error.certainly_aborted;
                if !again || instant() + pause > give_up {
                    let text = format!("the run's progress could not be stored: {error}");
                    return CommitEnd::GaveUp(Failure::new(error.code(), text).retryable());
                }
                tracing::warn!(run.id = %commit.run, "commit failed, trying again: {error}");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = inner.tasks.hard.cancelled() => {
                let text = "the server stopped before the run's progress could be stored";
                return CommitEnd::GaveUp(Failure::new(Code::StoreUnavailable, text).retryable());
            }
        }
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

pub(super) fn deadline_of(
    inner: &Inner,
    record: &RunRecord,
    agent: Option<&Agent>,
    now: Instant,
) -> Deadline {
    let fixed = record.deadline_at.map(|at| Deadline(inner.clocks.instant_at(at)));
    let working = record
        .working_limit
        .or_else(|| agent.map(|agent| agent.working_limit).filter(|_| fixed.is_none()))
        .map(|limit| Deadline::after(now, limit.saturating_sub(record.worked)));
    match (fixed, working) {
        (Some(fixed), Some(working)) => fixed.min(working),
        (Some(one), None) | (None, Some(one)) => one,
        // Every run has one of the two; a row without either is not trusted to run for ever.
        (None, None) => Deadline::after(now, Duration::from_secs(1800)),
    }
}

pub(super) async fn load_state(
    inner: &Inner,
    claim: &Claim,
    deadline: Deadline,
) -> Result<State, Failure> {
    let Some(head) = claim.head else {
        let mut state = State::new();
        state.raise_version(claim.thread_version);
        return Ok(state);
    };
    let mut state = match inner.cache.take(claim.record.thread, head) {
        Some(state) => state,
        None => loop {
            match bounded_by(deadline.0, inner.store.state(claim.record.thread, Some(head))).await {
                Ok(Some(found)) => break found.state,
                Ok(None) => {
                    let text =
                        format!("checkpoint {head} of thread {} is missing", claim.record.thread);
                    return Err(Failure::new(Code::Internal, text));
                }
                Err(error) if error.is_transient() && !deadline.has_passed(instant()) => {
                    tracing::warn!(run.id = %claim.record.id, "the thread's state cannot be read yet: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(error) => {
                    let lasting = error.certainly_aborted && !error.is_transient();
                    let failure = Failure::new(error.code(), error.message);
                    return Err(if lasting { failure } else { failure.retryable() });
                }
            }
        },
    };
    state.raise_version(claim.thread_version);
    Ok(state)
}

pub(super) fn start(claim: &Claim, live: &Live, plan: Arc<Plan>, state: State) -> Start {
    let record = &claim.record;
    let input = match &record.input {
        Value::Object(channels) => {
            channels.iter().map(|(channel, value)| Write::new(channel, value.clone())).collect()
        }
        _ => Vec::new(),
    };
    Start {
        run: record.id,
        plan,
        state,
        attempt: record.attempt,
        fruitless: record.fruitless,
        step: record.step,
        frontier: claim.frontier.clone(),
        journal: claim.journal.iter().cloned().collect(),
        taken_in: claim.taken_in,
        command: record.options.command.clone(),
        breaks: record.options.breaks.clone(),
        detailed: record.options.detailed,
        first: record.options.detailed.then(|| record.first_checkpoint(claim.head)),
        max_steps: record.options.max_steps,
        commits: record.commits,
        committed_seq: record.committed_seq,
        // What an earlier attempt showed may be lost even if none of it was stored; not so when this
        // very process parked the run with all of it stored.
        has_void_output: record.attempt > 1
            && !(live.is_seamless() && record.committed_seq == record.next_seq),
        input,
        cancel_requested: record.cancel_requested,
        reply: None,
        failed: None,
    }
}

/// Gives checkpoints their ids: in order, whatever the clock does. `first` is what the run begins with,
/// `head` its newest one.
pub(super) fn named(
    checkpoints: Vec<Checkpoint>,
    ids: Ids,
    first: CheckpointId,
    head: &mut Option<CheckpointId>,
) -> Vec<(CheckpointId, Checkpoint)> {
    let name = |checkpoint: Checkpoint| {
        let id = match checkpoint.source {
            Source::Loop => ids.checkpoint(),
            Source::Input | Source::Update | Source::Fork => first,
        };
        let id = head.map_or(id, |head| id.max(head.moved(1)));
        *head = Some(id);
        (id, checkpoint)
    };
    checkpoints.into_iter().map(name).collect()
}

/// The reply that earlier supersteps of a run committed, before it was taken over.
///
/// Ids of a run's messages are derived, so they are found again in the state.
pub(super) fn earlier_reply(record: &RunRecord, plan: &Plan, state: &State) -> Option<Uuid> {
    let messages = state.list(MESSAGES);
    (0..=record.step).rev().find_map(|step| {
        let tasks = plan.node_names().map(|node| TaskId::of(record.id, step, node, 0));
        let ids = tasks.map(|task| task.message(0));
        ids.filter(|id| {
            let id = id.to_string();
            // This run's messages are the newest ones.
            messages.iter().rev().take(EARLIER_MESSAGES).any(|message| message["id"] == *id)
        })
        .last()
    })
}

/// How far back a taken-over run looks for its own messages.
const EARLIER_MESSAGES: usize = 512;
