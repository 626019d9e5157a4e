//! The transactions of [`super::MemStore`], on plain maps.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use clearway_core::channel::{Op, State};
use clearway_core::event::{Event, Segment};
use clearway_core::thread::ThreadRecord;
use clearway_core::{
    CheckpointId, Failure, InstanceId, RunId, RunRecord, Status, ThreadId, Timestamp,
};

use super::Sharing;
use crate::counts::{Counts, Move};
use crate::error::{Error, ErrorKind, Result};
use crate::rules::{self, Beyond, Candidate, Ending, Tenant, Verdict, Versions};
use crate::{
    Admission, Appended, Cancelled, Claim, ClaimRequest, CommitAck, Joined, LogPage, NewRun,
    OutputSegment, Policy, QueuePosition, Queued, Renewal, Reset, RunPage, RunQuery, StepCommit,
    StepOutcome, Swept, ThreadState,
};

/// All rows. A clone is a copy of the disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Data {
    runs: BTreeMap<RunId, RunRow>,
    threads: HashMap<ThreadId, ThreadRow>,
    checkpoints: HashMap<CheckpointId, CheckpointRow>,
    deltas: HashMap<(ThreadId, u64), DeltaRow>,
    idempotency: HashMap<(String, String, String), IdempotencyRow>,
    /// Until when each instance's lease holds.
    instances: BTreeMap<InstanceId, Timestamp>,
    ready: BTreeSet<RunId>,
    running: BTreeSet<RunId>,
    blocked: BTreeSet<RunId>,
    pub(super) counts: Counts,
    /// Logs that grew since the last durable operation, with the tails they had.
    volatile: Vec<(RunId, u64)>,
}

#[derive(Clone, Debug)]
struct RunRow {
    record: RunRecord,
    log: Vec<Segment>,
    /// The thread's generation at admission.
    generation: u32,
    /// It came to interrupt, so it goes before other blocked runs.
    front: bool,
    /// Claimed, and no superstep committed under that claim.
    idle: bool,
    /// The run that its last commit made ready.
    promoted: Option<RunId>,
    trimmed: bool,
}

#[derive(Clone, Debug)]
struct ThreadRow {
    record: ThreadRecord,
    version: u64,
    runs: Vec<RunId>,
}

#[derive(Clone, Debug)]
struct CheckpointRow {
    thread: ThreadId,
    parent: Option<CheckpointId>,
    run: RunId,
    step: i64,
    next: Vec<String>,
    versions: Versions,
    at: Timestamp,
}

/// Ops are kept encoded, as on a disk, so that both stores lose and keep the same.
#[derive(Clone, Debug)]
struct DeltaRow {
    previous: u64,
    tag: u8,
    data: Vec<u8>,
}

#[derive(Clone, Debug)]
struct IdempotencyRow {
    body: [u8; 32],
    run: RunId,
    at: Timestamp,
}

impl RunRow {
    fn tail(&self) -> u64 {
        self.record.next_seq
    }
}

impl Data {
    // ## Instances

    pub(super) fn join(
        &mut self,
        me: InstanceId,
        sharing: Sharing,
        policy: &Policy,
        now: Timestamp,
    ) -> Joined {
        let mut resumed = 0;
        if sharing == Sharing::Exclusive {
            self.instances.clear();
            let running: Vec<RunId> = self.running.iter().copied().collect();
            for run in running {
                if self.runs[&run].record.instance != Some(me) {
                    self.hand_back(run, now);
                    resumed += 1;
                }
            }
        }
        self.instances.insert(me, now.plus(policy.lease));
        self.synced();
        Joined { resumed, waiting: self.counts.waiting_total() }
    }

    pub(super) fn renew(&mut self, me: InstanceId, policy: &Policy, now: Timestamp) -> Renewal {
        self.instances.insert(me, now.plus(policy.lease));
        let mut renewal = Renewal::default();
        for run in &self.running {
            let record = &self.runs[run].record;
            if record.instance == Some(me) {
                renewal.owned.push((*run, record.fence));
                if record.cancel_requested {
                    renewal.cancel.push(*run);
                }
            }
        }
        renewal
    }

    pub(super) fn leave(&mut self, me: InstanceId) {
        self.instances.remove(&me);
        self.synced();
    }

    pub(super) fn sweep(&mut self, me: InstanceId, policy: &Policy, now: Timestamp) -> Swept {
        let mut swept = Swept::default();
        let running: Vec<RunId> = self.running.iter().copied().collect();
        for run in running {
            let owner = self.runs[&run].record.instance;
            let alive = |owner| {
                owner == me || self.instances.get(&owner).is_some_and(|&until| until >= now)
            };
            if !owner.is_some_and(alive) {
                self.hand_back(run, now);
                swept.taken_over.push(run);
            }
        }
        self.instances.retain(|&instance, until| instance == me || *until >= now);

        let mut late: Vec<(Timestamp, RunId)> =
            self.with_deadline().filter(|&(deadline, _)| deadline <= now).collect();
        late.sort_unstable();
        for (_, run) in late.into_iter().take(rules::EXPIRE_LIMIT) {
            let (record, events, _) = self.end_queued(run, Ending::Expired, now);
            swept.expired.push((record, events));
        }
        swept.next_deadline = self.with_deadline().map(|(deadline, _)| deadline).min();
        swept.ready = self.ready.iter().any(|run| self.runs[run].record.ready_at <= now);
        self.drop_old(policy, now);
        if !swept.taken_over.is_empty() || !swept.expired.is_empty() {
            self.synced();
        }
        swept
    }

    /// Deadlines of runs that nobody executes.
    fn with_deadline(&self) -> impl Iterator<Item = (Timestamp, RunId)> {
        let queued = self.ready.iter().chain(&self.blocked);
        queued.filter_map(|run| Some((self.runs[run].record.deadline_at?, *run)))
    }

    fn drop_old(&mut self, policy: &Policy, now: Timestamp) {
        let kept = now.0.saturating_sub(policy.log_retention.as_millis() as i64);
        for row in self.runs.values_mut() {
            if !row.trimmed && row.record.ended_at.is_some_and(|ended| ended.0 < kept) {
                row.trimmed = true;
                if let Ok(log) = rules::without_deltas(&row.log) {
                    row.log = log;
                }
            }
        }
        let kept = now.0.saturating_sub(policy.idempotency.as_millis() as i64);
        self.idempotency.retain(|_, row| row.at.0 > kept);
    }

    // ## Admission

    pub(super) fn create_run(
        &mut self,
        new: &NewRun,
        policy: &Policy,
        now: Timestamp,
    ) -> Result<Admission> {
        if let Some(row) = self.runs.get(&new.id) {
            return Ok(Admission::Existing(Box::new(row.record.clone())));
        }
        if let Some(run) = self.seen_before(new, policy, now)? {
            return Ok(Admission::Existing(Box::new(self.runs[&run].record.clone())));
        }
        let thread = self.threads.get(&new.thread).map(|thread| &thread.record);
        match thread {
            None if new.thread_must_exist => return Ok(Admission::ThreadNotFound),
            Some(thread)
                if thread.tenant != new.tenant
                    || thread.owner.is_some() && thread.owner != new.owner =>
            {
                return Ok(Admission::ThreadForbidden);
            }
            None | Some(_) => {}
        }
        let active = thread.and_then(|thread| thread.active_run);
        if let (Some(active), clearway_core::run::Multitask::Reject) = (active, new.multitask) {
            return Ok(Admission::ThreadBusy { active });
        }
        let claims = new.claim.filter(|_| {
            let nobody_waits = !self
                .ready
                .iter()
                .map(|run| &self.runs[run].record)
                .any(|record| record.pool == new.pool && record.ready_at <= now);
            active.is_none() && new.delay.is_zero() && nobody_waits
        });
        let queued = self.counts.waiting(&new.pool);
        if claims.is_none() && queued >= new.queue_limit {
            return Ok(Admission::QueueFull { queued });
        }
        Ok(self.admit(new, active, claims, now))
    }

    fn seen_before(&self, new: &NewRun, policy: &Policy, now: Timestamp) -> Result<Option<RunId>> {
        let Some(idempotency) = &new.idempotency else { return Ok(None) };
        let key = (new.tenant.clone(), idempotency.route.clone(), idempotency.key.clone());
        match self.idempotency.get(&key) {
            Some(row) if row.at.plus(policy.idempotency) <= now => Ok(None),
            Some(row) if row.body == idempotency.body => Ok(Some(row.run)),
            Some(row) => Err(rules::idempotency_conflict(&idempotency.key, row.run)),
            None => Ok(None),
        }
    }

    fn admit(
        &mut self,
        new: &NewRun,
        active: Option<RunId>,
        claims: Option<InstanceId>,
        now: Timestamp,
    ) -> Admission {
        let status = if active.is_some() { Status::Blocked } else { Status::Ready };
        let thread = self.threads.entry(new.thread).or_insert_with(|| ThreadRow {
            record: ThreadRecord {
                id: new.thread,
                tenant: new.tenant.clone(),
                owner: new.owner.clone(),
                key: new.thread_key.clone(),
                metadata: new.thread_metadata.clone(),
                created_at: now,
                updated_at: now,
                active_run: None,
                ord: 0,
                generation: 0,
                head: None,
            },
            version: 0,
            runs: Vec::new(),
        });
        thread.record.ord += 1;
        thread.record.updated_at = now;
        thread.runs.push(new.id);
        if active.is_none() {
            thread.record.active_run = Some(new.id);
        }
        let created = rules::created_event(new, now);
        let interrupts = new.multitask == clearway_core::run::Multitask::Interrupt;
        let row = RunRow {
            record: rules::new_record(new, thread.record.ord, status, now),
            log: vec![rules::segment(std::slice::from_ref(&created))],
            generation: thread.record.generation,
            front: interrupts,
            idle: false,
            promoted: None,
            trimmed: false,
        };
        self.runs.insert(new.id, row);
        self.moved(new.id, None, status);
        if let Some(idempotency) = &new.idempotency {
            let key = (new.tenant.clone(), idempotency.route.clone(), idempotency.key.clone());
            let row = IdempotencyRow { body: idempotency.body, run: new.id, at: now };
            self.idempotency.insert(key, row);
        }
        self.synced();
        if let Some(me) = claims {
            let mut claim = self.take(new.id, me, now);
            claim.created = Some(created);
            return Admission::Claimed(Box::new(claim));
        }
        let interrupted =
            active.filter(|_| interrupts).map(|active| self.cancel_run(active, "interrupt", now));
        let record = self.runs[&new.id].record.clone();
        let ahead = rules::ahead_of_new(&self.counts, &record);
        let position = QueuePosition { pool_ahead: ahead, ..self.thread_position(&record) };
        Admission::Queued(Box::new(Queued { record, created, position, interrupted }))
    }

    // ## Claims

    pub(super) fn claim(
        &mut self,
        request: &ClaimRequest,
        policy: &Policy,
        now: Timestamp,
    ) -> Vec<Claim> {
        let mut claims = Vec::new();
        for (pool, slots) in &request.slots {
            let waiting: Vec<&RunRecord> = self
                .ready
                .iter()
                .map(|run| &self.runs[run].record)
                .filter(|record| record.pool == *pool && record.ready_at <= now)
                .collect();
            let tenants: BTreeSet<&str> = waiting.iter().map(|record| &*record.tenant).collect();
            let tenants: Vec<String> = tenants.into_iter().map(ToOwned::to_owned).collect();
            let candidates = waiting
                .iter()
                .map(|record| Candidate {
                    key: record.id,
                    tenant: tenants.binary_search(&record.tenant).expect("collected above"),
                    priority: record.priority,
                    ready_at: record.ready_at,
                })
                .collect();
            let held = |tenant: &str| self.counts.held(pool, tenant);
            let tenants: Vec<Tenant> = rules::tenants(tenants, held, policy);
            for run in rules::pick(candidates, &tenants, *slots, request.ageing, now) {
                claims.push(self.take(run, request.me, now));
            }
        }
        if !claims.is_empty() {
            self.synced();
        }
        claims
    }

    fn take(&mut self, run: RunId, me: InstanceId, now: Timestamp) -> Claim {
        let row = self.runs.get_mut(&run).expect("chosen from the rows");
        let before = row.record.status;
        rules::take(&mut row.record, row.idle, me, now);
        row.idle = true;
        let record = row.record.clone();
        self.moved(run, Some(before), Status::Running);
        let thread = &self.threads[&record.thread];
        Claim { thread_version: thread.version, head: thread.record.head, created: None, record }
    }

    pub(super) fn release(&mut self, run: RunId, fence: u32, now: Timestamp) -> bool {
        let holds = self
            .runs
            .get(&run)
            .is_some_and(|row| row.record.status == Status::Running && row.record.fence == fence);
        if holds {
            self.hand_back(run, now);
            self.synced();
        }
        holds
    }

    fn hand_back(&mut self, run: RunId, now: Timestamp) {
        let row = self.runs.get_mut(&run).expect("chosen from the rows");
        rules::give_back(&mut row.record, now);
        self.moved(run, Some(Status::Running), Status::Ready);
    }

    // ## Commits and output

    pub(super) fn commit(&mut self, commit: &StepCommit, now: Timestamp) -> Result<CommitAck> {
        rules::check_commit(commit)?;
        let Some(row) = self.runs.get(&commit.run) else { return Ok(CommitAck::Fenced) };
        let RunRecord { status, fence, commits, .. } = row.record;
        match rules::judge(status, fence, commits, commit) {
            Verdict::Fenced => return Ok(CommitAck::Fenced),
            Verdict::Again => {
                let cancel_requested = row.record.cancel_requested;
                return Ok(CommitAck::Applied { cancel_requested, promoted: row.promoted });
            }
            Verdict::Apply => {}
        }
        // Everything that can be refused is looked at before anything is written.
        let segment = rules::new_events(commit, row.tail())?.map(Cow::into_owned);
        let thread = &self.threads[&row.record.thread];
        if row.generation == thread.record.generation {
            self.add_checkpoints(commit, row.record.thread, now)?;
        }
        let row = self.runs.get_mut(&commit.run).expect("found above");
        if let Some(segment) = segment {
            row.record.next_seq = segment.end_seq;
            row.log.push(segment);
        }
        let record = &mut row.record;
        record.commits += 1;
        record.spent = rules::as_stored(&commit.spent);
        record.worked = rules::whole_ms(commit.worked);
        record.usage.add(commit.usage);
        match &commit.outcome {
            StepOutcome::Continue => {
                record.step = commit.step;
                record.next.clone_from(&commit.next);
                record.committed_seq = record.next_seq;
                record.fruitless = 0;
                row.idle = false;
            }
            StepOutcome::Release => {
                row.idle = false;
                self.hand_back(commit.run, now);
            }
            StepOutcome::End { status, failure } => {
                record.step = commit.step;
                record.next.clone_from(&commit.next);
                record.committed_seq = record.next_seq;
                record.failure =
                    failure.as_ref().map(|failure| Failure::from_json(&failure.to_json()));
                record.ended_at = Some(now);
                record.status = *status;
                record.instance = None;
                let thread = record.thread;
                self.moved(commit.run, Some(Status::Running), *status);
                let promoted = self.free_thread(thread, now);
                self.runs.get_mut(&commit.run).expect("found above").promoted = promoted;
            }
        }
        self.synced();
        let row = &self.runs[&commit.run];
        let cancel_requested = row.record.cancel_requested;
        Ok(CommitAck::Applied { cancel_requested, promoted: row.promoted })
    }

    fn add_checkpoints(
        &mut self,
        commit: &StepCommit,
        thread_id: ThreadId,
        now: Timestamp,
    ) -> Result<()> {
        let thread = &self.threads[&thread_id];
        let mut parent = thread.record.head;
        let mut top = thread.version;
        let mut versions =
            parent.map(|parent| self.checkpoints[&parent].versions.clone()).unwrap_or_default();
        let mut rows = Vec::with_capacity(commit.checkpoints.len());
        for (id, checkpoint) in &commit.checkpoints {
            if self.checkpoints.contains_key(id) {
                let message = format!("checkpoint {id} exists already");
                return Err(Error::new(ErrorKind::Conflict, message));
            }
            rules::advance(&mut versions, &mut top, checkpoint)?;
            let row = CheckpointRow {
                thread: thread_id,
                parent,
                run: commit.run,
                step: checkpoint.step,
                next: checkpoint.next.iter().map(ToString::to_string).collect(),
                versions: versions.clone(),
                at: now,
            };
            rows.push((*id, row));
            parent = Some(*id);
        }
        for delta in commit.checkpoints.iter().flat_map(|(_, checkpoint)| &checkpoint.deltas) {
            let row =
                DeltaRow { previous: delta.previous, tag: delta.op.tag(), data: delta.op.encode() };
            self.deltas.insert((thread_id, delta.version), row);
        }
        if !rows.is_empty() {
            self.checkpoints.extend(rows);
            let thread = self.threads.get_mut(&thread_id).expect("found by the caller");
            thread.version = top;
            thread.record.head = parent;
            thread.record.updated_at = now;
            let run = self.runs.get_mut(&commit.run).expect("found by the caller");
            run.record.checkpoint = parent;
        }
        Ok(())
    }

    pub(super) fn append(&mut self, output: &[OutputSegment]) -> Vec<Appended> {
        output.iter().map(|OutputSegment { run, segment }| self.append_one(*run, segment)).collect()
    }

    fn append_one(&mut self, run: RunId, segment: &Segment) -> Appended {
        let Some(row) = self.runs.get_mut(&run) else { return Appended::Refused };
        let tail = row.tail();
        if row.record.status != Status::Running || row.record.fence != segment.fence {
            return Appended::Refused;
        }
        let new = match rules::beyond(segment, tail) {
            Ok(Beyond::Nothing) => return Appended::Stored { end_seq: tail },
            Ok(Beyond::Whole) => segment.clone(),
            Ok(Beyond::Part(rest)) => rest,
            Ok(Beyond::Gap) | Err(_) => return Appended::Refused,
        };
        row.record.next_seq = new.end_seq;
        row.log.push(new);
        self.volatile.push((run, tail));
        Appended::Stored { end_seq: segment.end_seq }
    }

    // ## Ends that the store makes

    pub(super) fn cancel_run(&mut self, run: RunId, by: &str, now: Timestamp) -> Cancelled {
        let Some(row) = self.runs.get_mut(&run) else { return Cancelled::NotFound };
        if row.record.status.is_terminal() {
            return Cancelled::AlreadyEnded { record: Box::new(row.record.clone()) };
        }
        if row.record.status == Status::Running {
            row.record.cancel_requested = true;
            let instance = row.record.instance;
            self.synced();
            return Cancelled::Requested { run, instance };
        }
        let (record, events, promoted) = self.end_queued(run, Ending::Cancelled { by }, now);
        self.synced();
        Cancelled::Ended { record: Box::new(record), events, promoted }
    }

    pub(super) fn reset_thread(&mut self, thread: ThreadId, now: Timestamp) -> Option<Reset> {
        let row = self.threads.get_mut(&thread)?;
        row.record.generation += 1;
        row.record.head = None;
        row.record.updated_at = now;
        let generation = row.record.generation;
        // Blocked ones first, so that the active one's end promotes none of them.
        let mut runs: Vec<RunId> =
            row.runs.iter().copied().filter(|run| self.blocked.contains(run)).collect();
        runs.extend(row.record.active_run);
        let cancelled = runs.into_iter().map(|run| self.cancel_run(run, "reset", now)).collect();
        self.synced();
        Some(Reset { generation, cancelled })
    }

    fn end_queued(
        &mut self,
        run: RunId,
        why: Ending<'_>,
        now: Timestamp,
    ) -> (RunRecord, Vec<Event>, Option<RunId>) {
        let row = self.runs.get_mut(&run).expect("found by the caller");
        let before = row.record.status;
        let events = rules::end_queued(&mut row.record, why, now);
        row.log.push(rules::segment(&events));
        let record = row.record.clone();
        self.moved(run, Some(before), record.status);
        let promoted =
            if before == Status::Blocked { None } else { self.free_thread(record.thread, now) };
        (record, events, promoted)
    }

    /// The active run ended: the next one of the thread gets ready.
    fn free_thread(&mut self, thread: ThreadId, now: Timestamp) -> Option<RunId> {
        let row = self.threads.get_mut(&thread).expect("every run has its thread");
        let next = row
            .runs
            .iter()
            .filter(|run| self.blocked.contains(run))
            .min_by_key(|run| {
                let row = &self.runs[run];
                rules::blocked_order(row.front, row.record.thread_ord)
            })
            .copied();
        row.record.active_run = next;
        row.record.updated_at = now;
        if let Some(next) = next {
            let row = self.runs.get_mut(&next).expect("a blocked run is a run");
            rules::promote(&mut row.record, now);
            self.moved(next, Some(Status::Blocked), Status::Ready);
        }
        next
    }

    // ## Reading

    pub(super) fn run(&self, run: RunId) -> Option<RunRecord> {
        self.runs.get(&run).map(|row| row.record.clone())
    }

    pub(super) fn runs(&self, query: &RunQuery) -> RunPage {
        let fits = |record: &RunRecord| {
            query.tenant.as_ref().is_none_or(|tenant| *tenant == record.tenant)
                && query.owner.as_ref().is_none_or(|owner| Some(owner) == record.owner.as_ref())
                && (query.statuses.is_empty() || query.statuses.contains(&record.status))
                && query.agent.as_ref().is_none_or(|agent| *agent == record.agent)
                && query.door.as_ref().is_none_or(|door| *door == record.door)
                && query.thread.is_none_or(|thread| thread == record.thread)
                && query.after.is_none_or(|after| record.id < after)
        };
        let limit = query.page_size();
        let mut runs: Vec<RunRecord> = self
            .runs
            .values()
            .rev()
            .map(|row| &row.record)
            .filter(|record| fits(record))
            .take(limit + 1)
            .cloned()
            .collect();
        let more = runs.len() > limit;
        runs.truncate(limit);
        RunPage { next: runs.last().filter(|_| more).map(|run| run.id), runs }
    }

    pub(super) fn thread(&self, thread: ThreadId) -> Option<ThreadRecord> {
        self.threads.get(&thread).map(|row| row.record.clone())
    }

    pub(super) fn state(
        &self,
        thread: ThreadId,
        at: Option<CheckpointId>,
    ) -> Result<Option<ThreadState>> {
        let Some(id) = at.or_else(|| self.threads.get(&thread)?.record.head) else {
            return Ok(None);
        };
        let Some(row) = self.checkpoints.get(&id).filter(|row| row.thread == thread) else {
            return Ok(None);
        };
        let mut state = State::new();
        for (channel, &version) in &row.versions {
            for (version, op) in self.ops(thread, version, 0)? {
                state.apply_at(channel, op, version);
            }
        }
        Ok(Some(ThreadState {
            state,
            checkpoint: id,
            parent: row.parent,
            run: row.run,
            step: row.step,
            next: row.next.clone(),
            created_at: row.at,
        }))
    }

    /// Ops of one channel after version `below` up to `version`, oldest first.
    fn ops(&self, thread: ThreadId, version: u64, below: u64) -> Result<Vec<(u64, Op)>> {
        let mut ops = Vec::new();
        let mut at = version;
        while at > below {
            let op = self
                .deltas
                .get(&(thread, at))
                .and_then(|row| Some((Op::decode(row.tag, &row.data)?, row.previous)));
            let Some((op, previous)) = op else {
                let message = format!("version {at} of thread {thread} cannot be read");
                return Err(Error::new(ErrorKind::Corrupt, message));
            };
            ops.push((at, op));
            at = previous;
        }
        ops.reverse();
        Ok(ops)
    }

    pub(super) fn writes_of(&self, checkpoint: CheckpointId, channel: &str) -> Result<Vec<Op>> {
        let Some(row) = self.checkpoints.get(&checkpoint) else { return Ok(Vec::new()) };
        let version_at = |row: &CheckpointRow| row.versions.get(channel).copied().unwrap_or(0);
        let below = row.parent.map_or(0, |parent| version_at(&self.checkpoints[&parent]));
        let ops = self.ops(row.thread, version_at(row), below)?;
        Ok(ops.into_iter().map(|(_, op)| op).collect())
    }

    pub(super) fn read_log(
        &self,
        run: RunId,
        from: u64,
        max_bytes: usize,
    ) -> Result<Option<LogPage>> {
        let Some(row) = self.runs.get(&run) else { return Ok(None) };
        let segments = row.log.iter().filter(|segment| segment.end_seq > from).cloned().map(Ok);
        let (events, next) = rules::page(segments, from, max_bytes)?;
        Ok(Some(LogPage { events, next, end: row.tail(), status: row.record.status }))
    }

    pub(super) fn queue_position(&self, run: RunId) -> Option<QueuePosition> {
        let record = &self.runs.get(&run)?.record;
        matches!(record.status, Status::Blocked | Status::Ready).then(|| self.position(record))
    }

    fn position(&self, record: &RunRecord) -> QueuePosition {
        let order = |record: &RunRecord| (record.priority, record.ready_at, record.id);
        let pool_ahead = self
            .ready
            .iter()
            .map(|run| &self.runs[run].record)
            .filter(|other| other.pool == record.pool && order(other) < order(record))
            .take(rules::POSITION_LIMIT as usize)
            .count() as u32;
        QueuePosition { pool_ahead, ..self.thread_position(record) }
    }

    /// The part of a position that is about the thread.
    fn thread_position(&self, record: &RunRecord) -> QueuePosition {
        if record.status != Status::Blocked {
            return QueuePosition::default();
        }
        let thread = &self.threads[&record.thread];
        let order = |run: &RunId| {
            let row = &self.runs[run];
            rules::blocked_order(row.front, row.record.thread_ord)
        };
        let own = order(&record.id);
        let ahead = thread.runs.iter().filter(|run| self.blocked.contains(run) && order(run) < own);
        QueuePosition {
            pool_ahead: 0,
            thread_active: thread.record.active_run,
            thread_ahead: ahead.count() as u32,
        }
    }

    pub(super) fn size_bytes(&self) -> u64 {
        let log = self.runs.values().flat_map(|row| &row.log).map(|segment| segment.bytes.len());
        let deltas = self.deltas.values().map(|delta| delta.data.len());
        log.chain(deltas).sum::<usize>() as u64
    }

    // ## Bookkeeping

    /// A run changed its status: the sets and numbers follow.
    fn moved(&mut self, run: RunId, from: Option<Status>, to: Status) {
        let RunRecord { pool, tenant, priority, .. } = &self.runs[&run].record;
        let (pool, tenant, priority) = (pool.clone(), tenant.clone(), *priority);
        let change = Move { pool, tenant, priority, from, to };
        self.counts.apply(&change);
        for (set, status) in [
            (&mut self.ready, Status::Ready),
            (&mut self.running, Status::Running),
            (&mut self.blocked, Status::Blocked),
        ] {
            if from == Some(status) {
                set.remove(&run);
            }
            if to == status {
                set.insert(run);
            }
        }
    }

    /// A durable operation: what came before it is durable with it.
    fn synced(&mut self) {
        self.volatile.clear();
    }

    /// The host lost its power: output that no durable operation followed is gone.
    pub(super) fn lose_tail(&mut self) {
        for (run, tail) in std::mem::take(&mut self.volatile).into_iter().rev() {
            let row = self.runs.get_mut(&run).expect("runs are never deleted");
            row.log.retain(|segment| segment.first_seq < tail);
            row.record.next_seq = tail;
        }
    }
}
