//! The transactions of [`super::MemStore`], on plain maps.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use clearway_core::channel::{Op, State};
use clearway_core::event::Segment;
use clearway_core::machine::Source;
use clearway_core::plan::Frontier;
use clearway_core::run::Parked;
use clearway_core::thread::ThreadRecord;
use clearway_core::{
    AttemptRecord, AttemptsOf, CheckpointId, Failure, InstanceId, RunId, RunRecord, Status, TaskId,
    ThreadId, Timestamp,
};

use super::Sharing;
use super::ends::Held;
use super::knowledge::Documents;
use super::library::Library;
use super::memories::Memories;
use crate::counts::{Counts, Move};
use crate::error::{Error, ErrorKind, Result};
use crate::rules::{self, Beyond, Candidate, Tenant, Verdict, Versions};
use crate::{
    Admission, Appended, Claim, ClaimRequest, CommitAck, Joined, LogPage, NewRun, OutputSegment,
    Policy, QueuePosition, Queued, Renewal, RunPage, RunQuery, StepCommit, StepOutcome, Swept,
    ThreadState,
};

/// All rows. A clone is a copy of the disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Data {
    pub(super) runs: BTreeMap<RunId, RunRow>,
    pub(super) threads: HashMap<ThreadId, ThreadRow>,
    pub(super) checkpoints: HashMap<CheckpointId, CheckpointRow>,
    pub(super) deltas: HashMap<(ThreadId, u64), DeltaRow>,
    pub(super) idempotency: HashMap<(String, String, String), IdempotencyRow>,
    /// Until when each instance's lease holds.
    pub(super) instances: BTreeMap<InstanceId, Timestamp>,
    pub(super) journal: BTreeMap<(ThreadId, TaskId, String), NoteRow>,
    pub(super) library: Library,
    pub(super) memories: Memories,
    pub(super) documents: Documents,
    pub(super) ready: BTreeSet<RunId>,
    pub(super) running: BTreeSet<RunId>,
    pub(super) blocked: BTreeSet<RunId>,
    pub(super) waiting: BTreeSet<RunId>,
    pub(super) counts: Counts,
    /// Logs that grew since the last durable operation, with the tails they had.
    pub(super) volatile: Vec<(RunId, u64)>,
    pub(super) attempts: Vec<(Option<RunId>, AttemptRecord)>,
    last_attempt: i64,
}

#[derive(Clone, Debug)]
pub(super) struct RunRow {
    pub(super) record: RunRecord,
    pub(super) log: Vec<Segment>,
    /// The thread's generation at admission.
    pub(super) generation: u32,
    /// It came to interrupt, so it goes before other blocked runs.
    pub(super) front: bool,
    /// Claimed, and no superstep committed under that claim.
    pub(super) idle: bool,
    /// The run that its last commit made ready.
    pub(super) promoted: Option<RunId>,
    pub(super) trimmed: bool,
    /// Its end takes back what it committed.
    pub(super) rollback: bool,
    /// The thread's head before its first checkpoint.
    pub(super) base: Option<CheckpointId>,
    /// Somebody woke it since its claim.
    pub(super) woken: bool,
    /// It ended, and not all its children are told.
    pub(super) orphans: bool,
    pub(super) children: Vec<RunId>,
}

/// A note of a call; see the journal of the other store.
#[derive(Clone, Debug)]
pub(super) struct NoteRow {
    pub(super) data: Vec<u8>,
    /// The run that it was written by or for.
    pub(super) run: Option<RunId>,
    /// The run that has no more use for it.
    pub(super) settled: Option<RunId>,
}

#[derive(Clone, Debug)]
pub(super) struct ThreadRow {
    pub(super) record: ThreadRecord,
    pub(super) runs: Vec<RunId>,
}

#[derive(Clone, Debug)]
pub(super) struct CheckpointRow {
    pub(super) thread: ThreadId,
    pub(super) parent: Option<CheckpointId>,
    /// `None` for a change from outside.
    pub(super) run: Option<RunId>,
    pub(super) step: i64,
    pub(super) source: Source,
    pub(super) next: Frontier,
    pub(super) versions: Versions,
    pub(super) at: Timestamp,
}

/// Ops are kept encoded, as on a disk, so that both stores lose and keep the same.
#[derive(Clone, Debug)]
pub(super) struct DeltaRow {
    pub(super) previous: u64,
    pub(super) tag: u8,
    pub(super) data: Vec<u8>,
}

#[derive(Clone, Debug)]
pub(super) struct IdempotencyRow {
    pub(super) body: [u8; 32],
    pub(super) run: RunId,
    pub(super) at: Timestamp,
}

impl RunRow {
    pub(super) fn log_bytes(&self) -> u64 {
        self.log.iter().map(|segment| segment.bytes.len() as u64).sum()
    }

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
            self.expire(run, &mut swept, now);
        }
        self.tell_orphans(&mut swept, now);
        let woken = self.wake_due(now);
        let deadline = self.with_deadline().map(|(deadline, _)| deadline).min();
        let wake = self.parked().map(|(wake_at, _)| wake_at).min();
        swept.next_deadline = deadline.into_iter().chain(wake).min();
        swept.ready = self.ready.iter().any(|run| self.runs[run].record.ready_at <= now);
        self.drop_old(policy, now);
        if !swept.taken_over.is_empty() || !swept.expired.is_empty() || woken {
            self.synced();
        }
        swept
    }

    /// Deadlines of runs that nobody executes.
    pub(super) fn with_deadline(&self) -> impl Iterator<Item = (Timestamp, RunId)> {
        let queued = self.ready.iter().chain(&self.blocked).chain(&self.waiting);
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
        if let Some(parent) = new.parent {
            rules::check_parent(parent, self.runs.get(&parent).map(|row| row.record.status))?;
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
        if let Some(base) = new.options.base
            && self.checkpoints.get(&base).is_none_or(|row| row.thread != new.thread)
        {
            return Ok(Admission::CheckpointNotFound);
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
                version: 0,
            },
            runs: Vec::new(),
        });
        thread.record.metadata.extend(new.thread_note.clone());
        thread.record.ord += 1;
        thread.record.updated_at = now;
        thread.runs.push(new.id);
        if active.is_none() {
            thread.record.active_run = Some(new.id);
        }
        let created = rules::created_event(new, now);
        let interrupts = rules::interrupts(new.multitask);
        let row = RunRow {
            record: rules::new_record(new, thread.record.ord, status, now),
            log: vec![rules::segment(std::slice::from_ref(&created))],
            generation: thread.record.generation,
            front: interrupts.is_some(),
            idle: false,
            promoted: None,
            trimmed: false,
            rollback: false,
            base: None,
            woken: false,
            orphans: false,
            children: Vec::new(),
        };
        self.runs.insert(new.id, row);
        if let Some(parent) = new.parent {
            self.row(parent).children.push(new.id);
        }
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
        // Before the active one ends, which would promote one of them.
        let mut cleared = Vec::new();
        if let Some(mode) = interrupts.filter(|_| new.clears_queue) {
            let of_thread = self.threads[&new.thread].runs.iter().copied();
            let waiting: Vec<RunId> =
                of_thread.filter(|run| *run != new.id && self.blocked.contains(run)).collect();
            for run in waiting {
                cleared.push(self.cancel_run(run, "interrupt", mode, now));
            }
        }
        let interrupted = match (active, interrupts) {
            (Some(active), Some(mode)) => Some(self.cancel_run(active, "interrupt", mode, now)),
            (Some(_), None) | (None, _) => None,
        };
        let record = self.runs[&new.id].record.clone();
        let ahead = rules::ahead_of_new(&self.counts, &record);
        let position = QueuePosition { pool_ahead: ahead, ..self.thread_position(&record) };
        Admission::Queued(Box::new(Queued { record, created, position, interrupted, cleared }))
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
            let known: Vec<Tenant> = rules::tenants(&tenants, &self.counts, pool, policy);
            let mut served = Vec::new();
            for run in rules::pick(candidates, &known, *slots, request.ageing, now) {
                let claim = self.take(run, request.me, now);
                served.push(claim.record.tenant.clone());
                claims.push(claim);
            }
            self.counts.serve(pool, &tenants, served, now);
        }
        if !claims.is_empty() {
            self.synced();
        }
        claims
    }

    fn take(&mut self, run: RunId, me: InstanceId, now: Timestamp) -> Claim {
        let row = self.row(run);
        let before = row.record.status;
        rules::take(&mut row.record, row.idle, me, now);
        row.idle = true;
        row.woken = false;
        let record = row.record.clone();
        self.moved(run, Some(before), Status::Running);
        let thread = &self.threads[&record.thread].record;
        let base = record.options.base.filter(|_| record.checkpoint.is_none());
        // One that is gone by now is named all the same: its state cannot be read, which is the error.
        let head = base.or(thread.head);
        let at_head = head.and_then(|head| self.checkpoints.get(&head));
        Claim {
            thread_version: thread.version,
            head,
            created: None,
            frontier: at_head.map(|row| row.next.clone()).unwrap_or_default(),
            journal: self.notes(record.thread),
            taken_in: head.is_some() && head == record.checkpoint,
            record,
        }
    }

    /// A run that is known to exist.
    pub(super) fn row(&mut self, run: RunId) -> &mut RunRow {
        self.runs.get_mut(&run).expect("a run that was found before")
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
            Verdict::Again => return Ok(self.again(commit, row)),
            Verdict::Apply => {}
        }
        // Everything that can be refused is looked at before anything is written.
        let segment = rules::new_events(commit, row.tail())?.map(Cow::into_owned);
        let thread = row.record.thread;
        if row.generation == self.threads[&thread].record.generation {
            let notes = self.new_notes(thread, &commit.notes)?;
            self.add_checkpoints(commit, thread, now)?;
            self.add_notes(Some(commit.run), thread, notes);
            for task in &commit.settled {
                self.settle(commit.run, thread, *task);
            }
            for schedule in &commit.schedules {
                self.put_schedule(schedule.clone());
            }
        }
        self.add_attempts(Some(commit.run), &commit.attempts);
        let row = self.row(commit.run);
        if let Some(segment) = segment {
            row.record.next_seq = segment.end_seq;
            row.log.push(segment);
        }
        let record = &mut row.record;
        record.commits += 1;
        record.spent = rules::as_stored(&commit.spent);
        record.worked = rules::whole_ms(commit.worked);
        record.usage.add(commit.usage);
        let (cancel_requested, rollback) = (record.cancel_requested, row.rollback);
        let stays_awake = row.woken || cancel_requested;
        if commit.outcome != StepOutcome::Release {
            record.step = commit.step;
            record.next = rules::node_names(&commit.next);
            record.committed_seq = record.next_seq;
        }
        let (mut promoted, mut woken, mut orphans) = (None, Vec::new(), Vec::new());
        match &commit.outcome {
            StepOutcome::Continue => {
                record.fruitless = 0;
                row.idle = false;
            }
            StepOutcome::Release => {
                row.idle = false;
                self.hand_back(commit.run, now);
            }
            StepOutcome::Park(_) if stays_awake => {
                row.idle = false;
                self.hand_back(commit.run, now);
                woken.push(commit.run);
            }
            StepOutcome::Park(park) => {
                row.idle = false;
                rules::give_back(record, now);
                record.status = Status::Waiting;
                record.parked = Some(Parked { park: park.clone(), since: now });
                self.moved(commit.run, Some(Status::Running), Status::Waiting);
            }
            StepOutcome::End { status, failure } => {
                record.failure =
                    failure.as_ref().map(|failure| Failure::from_json(&failure.to_json()));
                record.ended_at = Some(now);
                record.status = *status;
                record.instance = None;
                self.moved(commit.run, Some(Status::Running), *status);
                let follows = self.follow(commit.run, Held::Yes, now);
                promoted = follows.promoted;
                self.row(commit.run).promoted = promoted;
                woken.extend(follows.woken);
                if *status != Status::Success || rollback {
                    orphans = self.cancel_children(commit.run, now);
                }
            }
        }
        self.synced();
        Ok(CommitAck::Applied { cancel_requested, promoted, woken, orphans })
    }

    fn add_attempts(&mut self, run: Option<RunId>, attempts: &[AttemptRecord]) {
        for attempt in attempts {
            self.last_attempt += 1;
            self.attempts.push((run, AttemptRecord { id: self.last_attempt, ..attempt.clone() }));
        }
    }

    pub(super) fn attempts(
        &self,
        of: AttemptsOf,
        after: Option<i64>,
        limit: u32,
    ) -> Vec<AttemptRecord> {
        let most = rules::page_size(limit);
        let wanted = |of: Option<RunId>| {
            let of = move |(run, _): &&(Option<RunId>, AttemptRecord)| *run == of;
            self.attempts.iter().filter(of).map(|(_, attempt)| attempt)
        };
        match of {
            AttemptsOf::Run(run) => {
                let beyond = |attempt: &&AttemptRecord| attempt.id > after.unwrap_or(0);
                wanted(Some(run)).filter(beyond).take(most).cloned().collect()
            }
            AttemptsOf::NoRun => {
                let beyond = |attempt: &&AttemptRecord| attempt.id < after.unwrap_or(i64::MAX);
                let newest_first = wanted(None).collect::<Vec<_>>().into_iter().rev();
                newest_first.filter(beyond).take(most).cloned().collect()
            }
        }
    }

    pub(super) fn book(&mut self, attempts: Vec<AttemptRecord>, now: Timestamp) {
        let oldest = now.0.saturating_sub(rules::LOOSE_ATTEMPTS_MS);
        self.attempts.retain(|(run, attempt)| run.is_some() || attempt.at.0 >= oldest);
        self.add_attempts(None, &attempts);
    }

    /// The answer to a commit that was applied before. Its orphans have been told.
    fn again(&self, commit: &StepCommit, row: &RunRow) -> CommitAck {
        let is_ready = |run: &RunId| self.ready.contains(run);
        let woken = match &commit.outcome {
            StepOutcome::Continue | StepOutcome::Release => None,
            StepOutcome::Park(_) => Some(commit.run).filter(is_ready),
            StepOutcome::End { .. } => row.record.parent.filter(is_ready),
        };
        CommitAck::Applied {
            cancel_requested: row.record.cancel_requested,
            promoted: row.promoted,
            woken: woken.into_iter().collect(),
            orphans: Vec::new(),
        }
    }

    fn add_checkpoints(
        &mut self,
        commit: &StepCommit,
        thread_id: ThreadId,
        now: Timestamp,
    ) -> Result<()> {
        if commit.checkpoints.is_empty() {
            return Ok(());
        }
        let head = self.threads[&thread_id].record.head;
        let run = &self.runs[&commit.run].record;
        let is_first = run.checkpoint.is_none();
        let mut parent = match run.options.base.filter(|_| is_first) {
            Some(base) if !self.checkpoints.contains_key(&base) => {
                return Err(rules::base_is_gone(base));
            }
            Some(base) => Some(base),
            None => head,
        };
        let mut top = self.threads[&thread_id].record.version;
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
                run: Some(commit.run),
                step: checkpoint.step,
                source: checkpoint.source,
                next: checkpoint.next.clone(),
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
        self.checkpoints.extend(rows);
        let thread = self.threads.get_mut(&thread_id).expect("found by the caller");
        thread.record.version = top;
        thread.record.head = parent;
        thread.record.updated_at = now;
        let run = self.row(commit.run);
        run.record.checkpoint = parent;
        if is_first {
            run.base = head;
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
                && query.parent.is_none_or(|parent| {
                    Some(parent) == record.parent && self.runs.contains_key(&parent)
                })
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
            source: row.source,
            frontier: row.next.clone(),
            journal: self.notes_of(thread, &row.next),
            created_at: row.at,
        }))
    }

    /// Ops of one channel after version `below` up to `version`, oldest first.
    pub(super) fn ops(&self, thread: ThreadId, version: u64, below: u64) -> Result<Vec<(u64, Op)>> {
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

    /// Keys whose runs were deleted.
    pub(super) fn forget_idempotency(&mut self) {
        let runs = &self.runs;
        self.idempotency.retain(|_, row| runs.contains_key(&row.run));
    }

    /// A run changed its status: the sets and numbers follow.
    pub(super) fn moved(&mut self, run: RunId, from: Option<Status>, to: Status) {
        let RunRecord { pool, tenant, priority, .. } = &self.runs[&run].record;
        let (pool, tenant, priority) = (pool.clone(), tenant.clone(), *priority);
        let change = Move { pool, tenant, priority, from, to };
        self.counts.apply(&change);
        for (set, status) in [
            (&mut self.ready, Status::Ready),
            (&mut self.running, Status::Running),
            (&mut self.blocked, Status::Blocked),
            (&mut self.waiting, Status::Waiting),
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
    pub(super) fn synced(&mut self) {
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
