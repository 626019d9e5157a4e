//! What the transactions mean, without where they are kept.
//!
//! Both stores ask these functions; what is left to them is finding rows and writing rows. The
//! conformance suite holds the two together where finding and writing could differ.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use clearway_core::event::{Body, Event, EventKind, Fact, Segment};
use clearway_core::journal::Entry;
use clearway_core::machine::Checkpoint;
use clearway_core::plan::Frontier;
use clearway_core::run::{Multitask, Parked, Usage};
use clearway_core::wait::{Spent, WaitKind};
use clearway_core::{
    CheckpointId, Code, Failure, InstanceId, Priority, RunId, RunRecord, Status, Timestamp,
};
use serde_json::{Value, json};

use crate::counts::Counts;
use crate::error::{Error, ErrorKind, Result};
use crate::{CancelMode, Cancelled, Keep, NewRun, Policy, StepCommit, StepOutcome};

/// Positions are counted up to here: farther back, only "far" is of interest, and a deep queue must
/// not make each admission slower.
pub(crate) const POSITION_LIMIT: u32 = 1000;

/// Queued runs that one sweep ends at most, and parked ones that it wakes at most.
pub(crate) const EXPIRE_LIMIT: usize = 1024;

/// Children that one end tells to end at most; sweeps tell the others.
pub(crate) const ORPHANS_AT_ONCE: usize = 256;

/// The largest note of a call, in bytes of JSON.
pub(crate) const JOURNAL_ENTRY_BYTES: usize = 1024 * 1024;

/// The most notes on one thread.
pub(crate) const JOURNAL_ENTRIES: usize = 10_000;

/// A run as it is at its acceptance.
pub(crate) fn new_record(
    new: &NewRun,
    thread_ord: i64,
    status: Status,
    now: Timestamp,
) -> RunRecord {
    RunRecord {
        id: new.id,
        tenant: new.tenant.clone(),
        owner: new.owner.clone(),
        thread: new.thread,
        thread_ord,
        parent: new.parent,
        agent: new.agent.clone(),
        pool: new.pool.clone(),
        door: new.door.clone(),
        priority: new.priority,
        status,
        metadata: new.metadata.clone(),
        input: new.input.clone(),
        options: new.options.clone(),
        created_at: now,
        ready_at: now.plus(new.delay),
        started_at: None,
        ended_at: None,
        deadline_at: new.deadline.map(|deadline| now.plus(deadline)),
        working_limit: new.working_limit.map(whole_ms),
        worked: Duration::ZERO,
        attempt: 0,
        fruitless: 0,
        fence: 0,
        instance: None,
        cancel_requested: false,
        parked: None,
        rolled_back: false,
        step: -1,
        next: Vec::new(),
        commits: 0,
        next_seq: 1,
        committed_seq: 1,
        checkpoint: None,
        failure: None,
        spent: Spent::default(),
        usage: Usage::default(),
    }
}

/// Event 0.
pub(crate) fn created_event(new: &NewRun, now: Timestamp) -> Event {
    Event::new(0, 0, now, Body::Fact(Fact::new(EventKind::RunCreated, &new.created_event)))
}

/// `events` as one row.
pub(crate) fn segment(events: &[Event]) -> Segment {
    Segment::encode(events).expect("called with at least one event")
}

/// Ready becomes running. `idle` says that the claim before this one committed no superstep.
pub(crate) fn take(record: &mut RunRecord, idle: bool, me: InstanceId, now: Timestamp) {
    record.spent.add(WaitKind::Slot, now.since(record.ready_at));
    record.status = Status::Running;
    record.fence += 1;
    record.attempt += 1;
    record.fruitless += u32::from(idle);
    record.started_at.get_or_insert(now);
    record.instance = Some(me);
}

/// Running becomes ready, because its owner is gone or cannot go on.
pub(crate) fn give_back(record: &mut RunRecord, now: Timestamp) {
    record.status = Status::Ready;
    record.fence += 1;
    record.instance = None;
    record.ready_at = now;
}

/// Blocked becomes ready, because the thread is free.
pub(crate) fn promote(record: &mut RunRecord, now: Timestamp) {
    record.spent.add(WaitKind::Thread, now.since(record.created_at));
    record.status = Status::Ready;
    record.ready_at = record.ready_at.max(now);
}

/// Waiting becomes ready: what it waits for may have come.
pub(crate) fn wake(record: &mut RunRecord, now: Timestamp) {
    book_park(record, now);
    record.status = Status::Ready;
    record.ready_at = now;
}

fn book_park(record: &mut RunRecord, now: Timestamp) {
    if let Some(Parked { park, since }) = record.parked.take() {
        record.spent.add(park.kind, now.since(since));
    }
}

/// Names of the nodes that are due, as the run's row keeps them: a fan-out counts once.
pub(crate) fn node_names(frontier: &Frontier) -> Vec<String> {
    let mut names: Vec<&str> = frontier.nodes().map(|node| &**node).collect();
    names.dedup();
    names.into_iter().map(ToOwned::to_owned).collect()
}

/// Times are kept in whole milliseconds.
pub(crate) fn whole_ms(duration: Duration) -> Duration {
    Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// What of a time account is kept.
pub(crate) fn as_stored(spent: &Spent) -> Spent {
    Spent::from_json(&spent.to_json())
}

/// Why the store itself ends a run that nobody executes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ending<'a> {
    Cancelled { by: &'a str },
    Expired,
}

/// Ends a run that is not running; returns the events that end its log.
pub(crate) fn end_queued(record: &mut RunRecord, why: Ending<'_>, now: Timestamp) -> Vec<Event> {
    let (phase, waiting_for) = match record.status {
        Status::Ready => {
            record.spent.add(WaitKind::Slot, now.since(record.ready_at));
            (WaitKind::Slot, record.pool.clone())
        }
        Status::Blocked => {
            record.spent.add(WaitKind::Thread, now.since(record.created_at));
            (WaitKind::Thread, record.thread.to_string())
        }
        Status::Waiting => {
            let park = record.parked.as_ref().map(|parked| &parked.park);
            let told = park
                .map_or((WaitKind::Timer, String::new()), |park| (park.kind, park.detail.clone()));
            book_park(record, now);
            told
        }
        Status::Running | Status::Success | Status::Error | Status::Timeout | Status::Cancelled => {
            (WaitKind::Work, String::new())
        }
    };
    let mut facts = Vec::with_capacity(3);
    if record.attempt > 0 && record.status != Status::Waiting {
        // It ran before, and what it showed since its last commit is void, stored or not. (What a
        // run shows before it parks is committed with that.)
        let after = record.committed_seq.checked_sub(1);
        facts.push((EventKind::OutputReset, json!({"after": after, "reason": "ended"})));
    }
    let (status, failure) = match why {
        Ending::Cancelled { by } => {
            facts.push((EventKind::CancelRequested, json!({"by": by})));
            (Status::Cancelled, Failure::new(Code::Cancelled, format!("cancelled by {by}")))
        }
        Ending::Expired => {
            let total = now.since(record.created_at).as_secs_f64();
            let failure = Failure::new(
                Code::DeadlineExceeded,
                format!("{total:.1} s spent: {}", record.spent),
            );
            let failure = failure
                .with("phase", phase.as_str())
                .with("waiting_for", waiting_for)
                .with("spent_ms", record.spent.to_json());
            (Status::Timeout, failure)
        }
    };
    facts.push((EventKind::RunEnded, ended_data(status, Some(&failure), &record.spent)));
    let events = facts
        .iter()
        .zip(record.next_seq..)
        .map(|((kind, data), seq)| {
            Event::new(seq, record.fence, now, Body::Fact(Fact::new(*kind, data)))
        })
        .collect::<Vec<_>>();
    record.status = status;
    record.failure = Some(failure);
    record.ended_at = Some(now);
    record.next_seq += events.len() as u64;
    record.committed_seq = record.next_seq;
    events
}

/// Of the runs that were told to end, those that have.
pub(crate) fn add_ended(ended: &mut Vec<(RunRecord, Vec<Event>)>, told: Vec<Cancelled>) {
    for outcome in told {
        if let Cancelled::Ended { record, events, .. } = outcome {
            ended.push((*record, events));
        }
    }
}

/// Data of `run.ended`.
fn ended_data(status: Status, failure: Option<&Failure>, spent: &Spent) -> Value {
    let mut data = json!({"status": status.as_str(), "spent": spent.to_json()});
    if let Some(failure) = failure {
        data["error"] = failure.to_json();
    }
    data
}

/// What a commit finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Apply,
    /// It was applied before and its answer was lost.
    Again,
    Fenced,
}

/// Judges a commit by the row's status, fence and commit count.
pub(crate) fn judge(status: Status, fence: u32, commits: u64, commit: &StepCommit) -> Verdict {
    if status == Status::Running && fence == commit.fence && commits == commit.number {
        return Verdict::Apply;
    }
    let same = match &commit.outcome {
        StepOutcome::Continue => status == Status::Running && fence == commit.fence,
        // Only the commit itself can have raised the fence by one and counted itself: after a
        // takeover nobody commits before the next claim raises it again.
        StepOutcome::Release | StepOutcome::Park(_) => Some(fence) == commit.fence.checked_add(1),
        StepOutcome::End { status: end, .. } => status == *end && fence == commit.fence,
    };
    if same && Some(commits) == commit.number.checked_add(1) {
        Verdict::Again
    } else {
        Verdict::Fenced
    }
}

/// Whether a commit changes the thread, and not only the run.
pub(crate) fn brings_state(commit: &StepCommit) -> bool {
    let StepCommit { checkpoints, notes, settled, schedules, .. } = commit;
    !(checkpoints.is_empty() && notes.is_empty() && settled.is_empty() && schedules.is_empty())
}

/// Refuses commits that no row could agree with.
pub(crate) fn check_commit(commit: &StepCommit) -> Result<()> {
    let conflict = |what: &str| {
        let StepCommit { run, number, .. } = commit;
        Err(Error::new(ErrorKind::Conflict, format!("commit {number} of run {run}: {what}")))
    };
    match &commit.outcome {
        StepOutcome::End { status, .. } if !status.is_terminal() => {
            conflict("it ends the run in a status that is no end")
        }
        _ if commit.events.as_ref().is_some_and(|events| events.fence != commit.fence) => {
            conflict("its events carry another fence")
        }
        StepOutcome::Release if brings_state(commit) => {
            conflict("it gives the run back and brings state")
        }
        StepOutcome::End { .. }
        | StepOutcome::Release
        | StepOutcome::Park(_)
        | StepOutcome::Continue => Ok(()),
    }
}

/// What of a segment is new to a log that ends at some tail.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Beyond {
    Nothing,
    Whole,
    Part(Segment),
    /// It starts beyond the tail: storing it would leave a gap.
    Gap,
}

/// # Errors
/// The segment cannot be decoded.
pub(crate) fn beyond(segment: &Segment, tail: u64) -> Result<Beyond> {
    if segment.first_seq > tail {
        return Ok(Beyond::Gap);
    }
    if segment.end_seq <= tail {
        return Ok(Beyond::Nothing);
    }
    if segment.first_seq == tail {
        return Ok(Beyond::Whole);
    }
    let events = segment.decode().map_err(|damage| {
        Error::new(ErrorKind::Conflict, "a segment to be stored is damaged").caused_by(damage)
    })?;
    let rest = Segment::encode(events.iter().filter(|event| event.seq >= tail));
    Ok(rest.map_or(Beyond::Nothing, Beyond::Part))
}

/// The part of a commit's events that a log ending at `tail` does not have yet.
///
/// # Errors
/// The events start beyond the tail (a gap would never close again), or are damaged.
pub(crate) fn new_events(commit: &StepCommit, tail: u64) -> Result<Option<Cow<'_, Segment>>> {
    let Some(segment) = &commit.events else { return Ok(None) };
    match beyond(segment, tail)? {
        Beyond::Nothing => Ok(None),
        Beyond::Whole => Ok(Some(Cow::Borrowed(segment))),
        Beyond::Part(rest) => Ok(Some(Cow::Owned(rest))),
        Beyond::Gap => Err(Error::new(
            ErrorKind::Conflict,
            format!(
                "commit {} of run {} brings events from number {} on, but its log ends at {tail}",
                commit.number, commit.run, segment.first_seq
            ),
        )),
    }
}

/// The log of a run that does not exist was asked for.
pub(crate) fn no_such_run(run: RunId) -> Error {
    Error::new(ErrorKind::Conflict, format!("there is no run {run}"))
}

/// How a new run ends the one that is active on its thread, if it does.
pub(crate) const fn interrupts(multitask: Multitask) -> Option<CancelMode> {
    match multitask {
        Multitask::Enqueue | Multitask::Reject => None,
        Multitask::Interrupt => Some(CancelMode::Keep),
        Multitask::Rollback => Some(CancelMode::Rollback),
    }
}

/// How many rows one page holds: at most 1000; 0 means 100.
/// How long attempts that belong to no run are kept: thirty days.
pub(crate) const LOOSE_ATTEMPTS_MS: i64 = 30 * 24 * 3_600_000;

pub(crate) fn page_size(limit: u32) -> usize {
    match limit {
        0 => 100,
        limit => limit.min(1000) as usize,
    }
}

/// How long webhooks that were given up are kept.
pub(crate) const DEAD_LETTERS: Duration = Duration::from_secs(7 * 24 * 3600);

/// Node outputs that are kept per tenant at most.
pub(crate) const CACHED_OUTPUTS: usize = 10_000;

/// A checkpoint's place among the others of its thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line<K, R> {
    pub(crate) parent: Option<K>,
    /// The run that made it.
    pub(crate) run: R,
}

/// Which checkpoints stay. `lines` are all of a thread, newest first; `held` are needed by runs.
pub(crate) fn kept<K: Copy + Ord, R: Copy + Ord>(
    lines: &[(K, Line<K, R>)],
    head: Option<K>,
    held: &BTreeSet<K>,
    keep: Keep,
) -> BTreeSet<K> {
    let mut kept: BTreeSet<K> = match keep {
        Keep::All => lines.iter().map(|(key, _)| *key).collect(),
        Keep::Last(count) => {
            let parents: BTreeMap<K, Option<K>> =
                lines.iter().map(|(key, line)| (*key, line.parent)).collect();
            let up = |at: &K| parents.get(at).copied().flatten();
            std::iter::successors(head, up).take(count.max(1) as usize).collect()
        }
        Keep::RunEnds => {
            let mut seen = BTreeSet::new();
            lines.iter().filter(|(_, line)| seen.insert(line.run)).map(|(key, _)| *key).collect()
        }
    };
    kept.extend(head);
    kept.extend(held);
    kept
}

/// The nearest checkpoint above `key` that stays.
pub(crate) fn nearest<K: Copy + Ord>(
    parents: &BTreeMap<K, Option<K>>,
    kept: &BTreeSet<K>,
    key: K,
) -> Option<K> {
    let up = |at: &K| parents.get(at).copied().flatten();
    std::iter::successors(up(&key), up).find(|above| kept.contains(above))
}

/// Only a run that goes on can have children.
///
/// # Errors
/// There is no such run, or it has ended.
pub(crate) fn check_parent(parent: RunId, status: Option<Status>) -> Result<()> {
    match status {
        None => Err(no_such_run(parent)),
        Some(status) if status.is_terminal() => Err(Error::new(
            ErrorKind::Conflict,
            format!("run {parent} has ended and starts no more runs"),
        )),
        Some(_) => Ok(()),
    }
}

/// The checkpoint was there at admission; a rollback took it since.
pub(crate) fn base_is_gone(checkpoint: CheckpointId) -> Error {
    let message = format!("checkpoint {checkpoint}, which the run started from, is gone");
    Error::new(ErrorKind::Conflict, message)
}

/// A note's data as stored.
///
/// # Errors
/// It is too large.
pub(crate) fn note_data(entry: &Entry) -> Result<Vec<u8>> {
    let data = entry.data.to_string().into_bytes();
    if data.len() > JOURNAL_ENTRY_BYTES {
        return Err(Error::new(
            ErrorKind::Conflict,
            format!(
                "note `{}` is {} bytes long; journal_entry_bytes allows {JOURNAL_ENTRY_BYTES}",
                entry.key,
                data.len()
            ),
        ));
    }
    Ok(data)
}

/// # Errors
/// The thread would have more notes than it may.
pub(crate) fn check_notes(count: usize) -> Result<()> {
    if count > JOURNAL_ENTRIES {
        let message =
            format!("the thread has more notes than journal_entries allows ({JOURNAL_ENTRIES})");
        return Err(Error::new(ErrorKind::Conflict, message));
    }
    Ok(())
}

/// The same key with another body.
pub(crate) fn idempotency_conflict(key: &str, run: RunId) -> Error {
    Error::new(
        ErrorKind::IdempotencyConflict,
        format!("Idempotency-Key `{key}` was used before with another body, for run {run}"),
    )
}

/// Versions of all channels at a checkpoint.
pub(crate) type Versions = BTreeMap<String, u64>;

/// Moves `versions` from a checkpoint's parent to the checkpoint; `top` is the newest version on the
/// thread.
///
/// # Errors
/// The deltas do not continue the parent.
pub(crate) fn advance(
    versions: &mut Versions,
    top: &mut u64,
    checkpoint: &Checkpoint,
) -> Result<()> {
    for delta in &checkpoint.deltas {
        let known = versions.get(&*delta.channel).copied().unwrap_or(0);
        if known != delta.previous || delta.version <= *top {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "version {} of channel `{}` names {} as the one before, but the thread's head \
                     has {known} and its newest version is {top}",
                    delta.version, delta.channel, delta.previous
                ),
            ));
        }
        *top = delta.version;
        match versions.get_mut(&*delta.channel) {
            Some(version) => *version = delta.version,
            None => {
                versions.insert(delta.channel.to_string(), delta.version);
            }
        }
    }
    Ok(())
}

/// A ready run that may be claimed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate<K> {
    pub(crate) key: K,
    /// Index in the list of tenants.
    pub(crate) tenant: usize,
    pub(crate) priority: Priority,
    pub(crate) ready_at: Timestamp,
}

/// What fairness knows of a tenant.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tenant {
    held: u32,
    weight: u32,
    /// When it last got a slot while runs of it were left waiting.
    served: Option<Timestamp>,
}

/// Looks tenants up, in their order.
pub(crate) fn tenants(
    names: &[String],
    counts: &Counts,
    pool: &str,
    policy: &Policy,
) -> Vec<Tenant> {
    let tenant = |name: &String| Tenant {
        held: counts.held(pool, name),
        weight: policy.weight(name),
        served: counts.served(pool, name),
    };
    names.iter().map(tenant).collect()
}

/// Chooses up to `slots` candidates: by effective priority, then so that the slots held are shared
/// by weight between tenants, then by age.
///
/// Ageing means two things. Within a tenant a run is lifted by how long it has waited. Between
/// tenants it is lifted by how long its tenant has got nothing: else the old runs of one that floods
/// would go before all new ones of the others.
pub(crate) fn pick<K: Copy + Ord>(
    candidates: Vec<Candidate<K>>,
    tenants: &[Tenant],
    slots: u32,
    ageing: Duration,
    now: Timestamp,
) -> Vec<K> {
    // What each tenant may claim as, the best first: its runs take these levels in its own order.
    let mut levels: Vec<Vec<u8>> = vec![Vec::new(); tenants.len()];
    let mut ranked: Vec<(u8, Timestamp, K, usize)> = candidates
        .into_iter()
        .map(|Candidate { key, tenant, priority, ready_at }| {
            let since = tenants[tenant].served.map_or(ready_at, |served| served.max(ready_at));
            levels[tenant].push(effective(priority, since, ageing, now));
            (effective(priority, ready_at, ageing, now), ready_at, key, tenant)
        })
        .collect();
    ranked.sort_unstable();
    levels.iter_mut().for_each(|levels| levels.sort_unstable());
    let mut order: Vec<(u8, Share, Timestamp, K)> = Vec::with_capacity(ranked.len());
    let mut chosen = vec![0_usize; tenants.len()];
    for (_, ready_at, key, tenant) in ranked {
        let at = chosen[tenant];
        chosen[tenant] += 1;
        // The how-manieth slot of its tenant it would be, in the order found so far.
        let Tenant { held, weight, .. } = tenants[tenant];
        let slots = held.saturating_add(u32::try_from(at + 1).unwrap_or(u32::MAX));
        order.push((levels[tenant][at], Share { slots, weight }, ready_at, key));
    }
    order.sort_unstable();
    order.into_iter().take(slots as usize).map(|(.., key)| key).collect()
}

/// How many ready runs a run that was just accepted finds in front of it in its pool.
pub(crate) fn ahead_of_new(counts: &Counts, record: &RunRecord) -> u32 {
    let itself = u32::from(record.status == Status::Ready);
    counts.ahead(&record.pool, record.priority).saturating_sub(itself).min(POSITION_LIMIT)
}

/// `slots / weight`, compared exactly.
#[derive(Clone, Copy, Debug)]
struct Share {
    slots: u32,
    weight: u32,
}

impl Ord for Share {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let cross = |a: Self, b: Self| u64::from(a.slots) * u64::from(b.weight);
        cross(*self, *other).cmp(&cross(*other, *self))
    }
}

impl PartialOrd for Share {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Share {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Share {}

/// The level after ageing; 1 is the best.
fn effective(priority: Priority, ready_at: Timestamp, ageing: Duration, now: Timestamp) -> u8 {
    let gained = now.since(ready_at).as_millis().checked_div(ageing.as_millis()).unwrap_or(0);
    let gained = u8::try_from(gained).unwrap_or(u8::MAX);
    priority.level().saturating_sub(gained).max(1)
}

/// Order of a thread's blocked runs: interrupting ones first, then as admitted.
pub(crate) const fn blocked_order(front: bool, ord: i64) -> (Reverse<bool>, i64) {
    (Reverse(front), ord)
}

/// A finished run's log without its deltas, in as few rows as fences allow.
///
/// # Errors
/// A segment cannot be decoded.
pub(crate) fn without_deltas(
    segments: &[Segment],
) -> std::result::Result<Vec<Segment>, clearway_core::event::DamagedSegment> {
    let mut facts: Vec<Event> = Vec::new();
    for segment in segments {
        let events = segment.decode()?;
        facts.extend(events.into_iter().filter(|event| matches!(event.body, Body::Fact(_))));
    }
    Ok(facts.chunk_by(|a, b| a.fence == b.fence).filter_map(Segment::encode).collect())
}

/// The page of a log that `segments` (in order, the first one holding `from`) give, up to about
/// `max_bytes`; at least one event, so that a reader always gets on.
pub(crate) fn page(
    segments: impl IntoIterator<Item = Result<Segment>>,
    from: u64,
    max_bytes: usize,
) -> Result<(Vec<Event>, u64)> {
    let mut events = Vec::new();
    let (mut bytes, mut next) = (0, from);
    for segment in segments {
        let segment = segment?;
        if bytes > 0 && bytes + segment.bytes.len() > max_bytes {
            break;
        }
        let decoded = segment.decode().map_err(|damage| {
            let what = format!("events {}..{} of a run", segment.first_seq, segment.end_seq);
            Error::new(ErrorKind::Corrupt, format!("{what} cannot be read")).caused_by(damage)
        })?;
        events.extend(decoded.into_iter().filter(|event| event.seq >= from));
        bytes += segment.bytes.len();
        next = next.max(segment.end_seq);
    }
    Ok((events, next))
}

#[cfg(test)]
mod tests;
