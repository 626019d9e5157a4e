//! Supersteps and output: the hot path.

use clearway_core::machine::Checkpoint;
use clearway_core::run::RunOptions;
use clearway_core::{CheckpointId, Priority, RunId, Status};
use rusqlite::OptionalExtension;

use super::fail::Fail;
use super::rows::{
    self, Id, ROLLBACK, int, ms, names_text, number, spent_text, status, status_number, versions,
};
use super::writer::{Operation, Tail, Tx};
use super::{attempts, channels, ends, journal, schedules};
use crate::counts::Move;
use crate::rules::{self, Beyond, Verdict, Versions};
use crate::{Appended, CommitAck, OutputSegment, StepCommit, StepOutcome};

pub(super) struct Commit(pub(super) StepCommit);

/// What a commit needs of its run, and no more.
struct Hot {
    n: i64,
    status: Status,
    fence: u32,
    commits: u64,
    cancel: i64,
    thread: i64,
    generation: u32,
    tail: u64,
    promoted: Option<RunId>,
    pool: String,
    tenant: String,
    priority: Priority,
    /// Whether it has committed a checkpoint.
    has_checkpoint: bool,
    woken: bool,
    /// `runs.n`
    parent: Option<i64>,
    options: RunOptions,
}

pub(super) const HOT: &str =
    "SELECT n, status, fence, commits, cancel, thread, generation, next_seq,
     (SELECT max(end_seq) FROM run_log WHERE run = r.n), promoted, checkpoint IS NOT NULL, woken,
     parent, (SELECT options FROM run_inputs WHERE run = r.n), pool, tenant, priority
     FROM runs r WHERE id = ?1";

fn find(tx: &Tx<'_>, run: RunId) -> rusqlite::Result<Option<Hot>> {
    tx.conn
        .prepare_cached(HOT)?
        .query_row([Id(run.0)], |row| {
            let tail: Option<i64> = row.get(8)?;
            Ok(Hot {
                n: row.get(0)?,
                status: status(row.get(1)?)?,
                fence: row.get(2)?,
                commits: number(row.get(3)?),
                cancel: row.get(4)?,
                thread: row.get(5)?,
                generation: row.get(6)?,
                tail: number(row.get::<_, i64>(7)?.max(tail.unwrap_or(0))),
                promoted: row.get::<_, Option<Id>>(9)?.map(|id| RunId(id.0)),
                has_checkpoint: row.get(10)?,
                woken: row.get(11)?,
                parent: row.get(12)?,
                options: rows::options(row, 13)?,
                pool: row.get(14)?,
                tenant: row.get(15)?,
                priority: rows::priority(row, 16)?,
            })
        })
        .optional()
}

impl Operation for Commit {
    type Answer = CommitAck;
    const DURABLE: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<CommitAck, Fail> {
        let commit = &self.0;
        rules::check_commit(commit)?;
        let Some(mut run) = find(tx, commit.run)? else { return Ok(CommitAck::Fenced) };
        match rules::judge(run.status, run.fence, run.commits, commit) {
            Verdict::Fenced => return Ok(CommitAck::Fenced),
            Verdict::Again => return Ok(again(tx, commit, &run)?),
            Verdict::Apply => {}
        }
        if let Some(segment) = rules::new_events(commit, run.tail)? {
            ends::insert_segment(tx, run.n, &segment)?;
            run.tail = segment.end_seq;
        }
        let stand = if rules::brings_state(commit) { store_state(tx, commit, &run)? } else { None };
        store_progress(tx, commit, &run, stand.map(|stand| stand.head))?;
        attempts::insert(tx, Some(run.n), &commit.attempts)?;
        tx.tails.remove(&commit.run);
        let rollback = run.cancel == ROLLBACK;
        let ends = matches!(commit.outcome, StepOutcome::End { .. });
        // An end writes the thread's row anyway.
        let later = stand.filter(|_| ends && !rollback);
        if let (Some(stand), None) = (stand, later) {
            move_head(tx, run.thread, stand)?;
        }
        let (mut promoted, mut woken, mut orphans) = (None, Vec::new(), Vec::new());
        match &commit.outcome {
            StepOutcome::Continue => {}
            StepOutcome::Release => moved(tx, &run, Status::Ready),
            StepOutcome::Park(_) if stays_awake(&run) => {
                moved(tx, &run, Status::Ready);
                woken.push(commit.run);
            }
            StepOutcome::Park(_) => moved(tx, &run, Status::Waiting),
            StepOutcome::End { status, .. } => {
                moved(tx, &run, *status);
                let end = ends::End {
                    n: run.n,
                    run: commit.run,
                    thread: run.thread,
                    parent: run.parent,
                    webhook: run.options.webhook.as_deref(),
                    held: true,
                    rollback,
                    stand: later,
                };
                let follows = ends::follow(tx, &end)?;
                promoted = follows.promoted;
                if let Some(promoted) = promoted {
                    let sql = "UPDATE runs SET promoted = ?2 WHERE n = ?1";
                    tx.run(sql, (run.n, Id(promoted.0)))?;
                }
                woken.extend(follows.woken);
                if *status != Status::Success || rollback {
                    orphans = ends::cancel_children(tx, run.n)?;
                }
            }
        }
        Ok(CommitAck::Applied { cancel_requested: run.cancel != 0, promoted, woken, orphans })
    }
}

/// Whether a run that is about to park has to look again first: for what came meanwhile, or because
/// somebody wants it to end.
const fn stays_awake(run: &Hot) -> bool {
    run.woken || run.cancel != 0
}

/// The answer to a commit that was applied before. Its orphans have been told.
fn again(tx: &Tx<'_>, commit: &StepCommit, run: &Hot) -> rusqlite::Result<CommitAck> {
    let woken = match &commit.outcome {
        StepOutcome::Continue | StepOutcome::Release => None,
        StepOutcome::Park(_) => (run.status == Status::Ready).then_some(commit.run),
        StepOutcome::End { .. } => tx
            .conn
            .prepare_cached("SELECT id FROM runs WHERE n = ?1 AND status = 1")?
            .query_row([run.parent], |row| Ok(RunId(row.get::<_, Id>(0)?.0)))
            .optional()?,
    };
    Ok(CommitAck::Applied {
        cancel_requested: run.cancel != 0,
        promoted: run.promoted,
        woken: woken.into_iter().collect(),
        orphans: Vec::new(),
    })
}

/// Writes the run's own row.
fn store_progress(
    tx: &Tx<'_>,
    commit: &StepCommit,
    run: &Hot,
    checkpoint: Option<i64>,
) -> rusqlite::Result<()> {
    let usage = commit.usage;
    let (tail, worked, spent) = (int(run.tail), ms(commit.worked), spent_text(&commit.spent));
    let tokens = |count: u64| int(count);
    let next = names_text(&rules::node_names(&commit.next));
    match &commit.outcome {
        StepOutcome::Continue => tx.run(
            "UPDATE runs SET commits = commits + 1, next_seq = ?2, committed_seq = ?2,
                 worked_ms = ?3, spent = ?4, input_tokens = input_tokens + ?5,
                 output_tokens = output_tokens + ?6, rebilled_tokens = rebilled_tokens + ?7,
                 calls = calls + ?8, step = ?9, next = ?10,
                 checkpoint = coalesce(?11, checkpoint), cost_micros = cost_micros + ?12,
                 fruitless = 0, idle = 0
             WHERE n = ?1",
            (
                run.n,
                tail,
                worked,
                spent,
                tokens(usage.input_tokens),
                tokens(usage.output_tokens),
                tokens(usage.rebilled_tokens),
                usage.calls,
                commit.step,
                next,
                checkpoint,
                tokens(usage.cost_micros),
            ),
        ),
        // Step, next nodes and the mark of void output stay: the next owner starts from the last
        // superstep, and what was shown since then is void.
        StepOutcome::Release => tx.run(
            "UPDATE runs SET commits = commits + 1, next_seq = ?2, worked_ms = ?3, spent = ?4,
                 input_tokens = input_tokens + ?5, output_tokens = output_tokens + ?6,
                 rebilled_tokens = rebilled_tokens + ?7, calls = calls + ?8, status = 1,
                 fence = fence + 1, instance = NULL, ready_at = ?9, idle = 0,
                 cost_micros = cost_micros + ?10
             WHERE n = ?1",
            (
                run.n,
                tail,
                worked,
                spent,
                tokens(usage.input_tokens),
                tokens(usage.output_tokens),
                tokens(usage.rebilled_tokens),
                usage.calls,
                tx.now.0,
                tokens(usage.cost_micros),
            ),
        ),
        StepOutcome::Park(park) => {
            let park = Some(park).filter(|_| !stays_awake(run));
            let status = if park.is_some() { Status::Waiting } else { Status::Ready };
            tx.conn
                .prepare_cached(
                    "UPDATE runs SET commits = commits + 1, next_seq = ?2, committed_seq = ?2,
                         worked_ms = ?3, spent = ?4, input_tokens = input_tokens + ?5,
                         output_tokens = output_tokens + ?6, rebilled_tokens = rebilled_tokens + ?7,
                         calls = calls + ?8, step = ?9, next = ?10,
                         checkpoint = coalesce(?11, checkpoint), cost_micros = cost_micros + ?12,
                         status = ?13, fence = fence + 1, instance = NULL, idle = 0,
                         ready_at = ?14, park = ?15, parked_at = ?16, wake_at = ?17
                     WHERE n = ?1",
                )?
                .execute(rusqlite::params![
                    run.n,
                    tail,
                    worked,
                    spent,
                    tokens(usage.input_tokens),
                    tokens(usage.output_tokens),
                    tokens(usage.rebilled_tokens),
                    usage.calls,
                    commit.step,
                    next,
                    checkpoint,
                    tokens(usage.cost_micros),
                    status_number(status),
                    tx.now.0,
                    park.map(rows::park_text),
                    park.map(|_| tx.now.0),
                    park.and_then(|park| park.wake_at).map(|at| at.0),
                ])
        }
        StepOutcome::End { status, failure } => tx.run(
            "UPDATE runs SET commits = commits + 1, next_seq = ?2, committed_seq = ?2,
                 worked_ms = ?3, spent = ?4, input_tokens = input_tokens + ?5,
                 output_tokens = output_tokens + ?6, rebilled_tokens = rebilled_tokens + ?7,
                 calls = calls + ?8, step = ?9, next = ?10,
                 checkpoint = coalesce(?11, checkpoint), status = ?12, failure = ?13,
                 ended_at = ?14, instance = NULL, cost_micros = cost_micros + ?15
             WHERE n = ?1",
            (
                run.n,
                tail,
                worked,
                spent,
                tokens(usage.input_tokens),
                tokens(usage.output_tokens),
                tokens(usage.rebilled_tokens),
                usage.calls,
                commit.step,
                next,
                checkpoint,
                status_number(*status),
                failure.as_ref().map(|failure| rows::text(&failure.to_json())),
                tx.now.0,
                tokens(usage.cost_micros),
            ),
        ),
    }
    .map(|_| ())
}

fn moved(tx: &mut Tx<'_>, run: &Hot, to: Status) {
    tx.moved(Move {
        pool: run.pool.clone(),
        tenant: run.tenant.clone(),
        priority: run.priority,
        from: Some(Status::Running),
        to,
    });
}

/// Where a thread stands after a commit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stand {
    /// `checkpoints.n`
    pub(super) head: i64,
    /// Newest delta of all branches.
    pub(super) version: u64,
}

fn move_head(tx: &Tx<'_>, thread: i64, stand: Stand) -> rusqlite::Result<()> {
    let sql = "UPDATE threads SET head = ?2, version = ?3, updated_at = ?4 WHERE n = ?1";
    tx.run(sql, (thread, stand.head, int(stand.version), tx.now.0)).map(|_| ())
}

/// The thread as a commit finds it.
struct Thread {
    generation: u32,
    tenant: String,
    head: Option<i64>,
    version: u64,
    /// Versions of the channels at its head.
    versions: Versions,
}

/// Stores what a commit does to its thread, but for the thread's own row; returns where that is to
/// stand, if it moves.
///
/// Nothing is stored for a run from before a reset: its state belongs to a generation that is gone.
fn store_state(tx: &mut Tx<'_>, commit: &StepCommit, run: &Hot) -> Result<Option<Stand>, Fail> {
    let thread = tx
        .conn
        .prepare_cached(
            "SELECT t.generation, t.head, t.version, c.versions, t.tenant
             FROM threads t LEFT JOIN checkpoints c ON c.n = t.head WHERE t.n = ?1",
        )?
        .query_row([run.thread], |row| {
            let head: Option<i64> = row.get(1)?;
            let versions = if head.is_some() { versions(row, 3)? } else { Versions::new() };
            Ok(Thread {
                generation: row.get(0)?,
                tenant: row.get(4)?,
                head,
                version: number(row.get(2)?),
                versions,
            })
        })?;
    if thread.generation != run.generation {
        return Ok(None);
    }
    let stand = match commit.checkpoints.is_empty() {
        true => None,
        false => store_checkpoints(tx, commit, run, thread)?,
    };
    journal::add(tx, run.thread, run.n, &commit.notes)?;
    for task in &commit.settled {
        journal::settle(tx, run.thread, run.n, *task)?;
    }
    for schedule in &commit.schedules {
        schedules::insert(tx, schedule)?;
    }
    Ok(stand)
}

/// Stores checkpoints and deltas; the last one is to become the thread's head.
fn store_checkpoints(
    tx: &mut Tx<'_>,
    commit: &StepCommit,
    run: &Hot,
    thread: Thread,
) -> Result<Option<Stand>, Fail> {
    let Thread { tenant, mut head, version: mut top, versions: mut known, .. } = thread;
    if !run.has_checkpoint {
        if head.is_some() {
            tx.run("UPDATE runs SET base = ?2 WHERE n = ?1", (run.n, head))?;
        }
        if let Some(base) = run.options.base {
            (head, known) = find_base(tx, run.thread, base)?;
        }
    }
    for (id, checkpoint) in &commit.checkpoints {
        rules::advance(&mut known, &mut top, checkpoint)?;
        for delta in &checkpoint.deltas {
            channels::store_delta(tx, run.thread, &tenant, delta)?;
        }
        let Checkpoint { step, source, next, .. } = checkpoint;
        tx.run(
            "INSERT INTO checkpoints (id, thread, parent, run, step, source, next, versions, at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            (
                Id(id.0),
                run.thread,
                head,
                run.n,
                step,
                source.as_str(),
                rows::frontier_text(next),
                rows::text(&known),
                tx.now.0,
            ),
        )?;
        head = Some(tx.conn.last_insert_rowid());
    }
    Ok(head.map(|head| Stand { head, version: top }))
}

pub(super) fn versions_at(tx: &Tx<'_>, checkpoint: i64) -> rusqlite::Result<Versions> {
    tx.conn
        .prepare_cached("SELECT versions FROM checkpoints WHERE n = ?1")?
        .query_row([checkpoint], |row| versions(row, 0))
}

/// The checkpoint that a run was told to start from.
fn find_base(
    tx: &Tx<'_>,
    thread: i64,
    base: CheckpointId,
) -> Result<(Option<i64>, Versions), Fail> {
    let found = tx
        .conn
        .prepare_cached("SELECT n, versions FROM checkpoints WHERE id = ?1 AND thread = ?2")?
        .query_row((Id(base.0), thread), |row| Ok((row.get(0)?, versions(row, 1)?)))
        .optional()?;
    found.ok_or_else(|| rules::base_is_gone(base).into())
}

/// Volatile output of many runs.
pub(super) struct Append(pub(super) Vec<OutputSegment>);

impl Operation for Append {
    type Answer = Vec<Appended>;
    const DURABLE: bool = false;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<Vec<Appended>, Fail> {
        self.0.iter().map(|output| append(tx, output)).collect()
    }
}

fn append(
    tx: &mut Tx<'_>,
    OutputSegment { run, segment }: &OutputSegment,
) -> Result<Appended, Fail> {
    let known = tx.tails.get(run).copied().filter(|tail| tail.fence == segment.fence);
    let Some(Tail { n, seq, .. }) =
        known.map_or_else(|| find_tail(tx, *run, segment.fence), |tail| Ok(Some(tail)))?
    else {
        return Ok(Appended::Refused);
    };
    match rules::beyond(segment, seq) {
        Ok(Beyond::Nothing) => return Ok(Appended::Stored { end_seq: seq }),
        Ok(Beyond::Whole) => ends::insert_segment(tx, n, segment)?,
        Ok(Beyond::Part(rest)) => ends::insert_segment(tx, n, &rest)?,
        Ok(Beyond::Gap) | Err(_) => return Ok(Appended::Refused),
    }
    tx.tails.insert(*run, Tail { n, fence: segment.fence, seq: segment.end_seq });
    Ok(Appended::Stored { end_seq: segment.end_seq })
}

/// The end of the log of a run that runs under `fence`.
fn find_tail(tx: &Tx<'_>, run: RunId, fence: u32) -> rusqlite::Result<Option<Tail>> {
    tx.conn
        .prepare_cached(
            "SELECT n, (SELECT max(end_seq) FROM run_log WHERE run = r.n), next_seq FROM runs r
             WHERE id = ?1 AND status = 2 AND fence = ?2",
        )?
        .query_row((Id(run.0), fence), |row| {
            let tail: Option<i64> = row.get(1)?;
            let seq = number(row.get::<_, i64>(2)?.max(tail.unwrap_or(0)));
            Ok(Tail { n: row.get(0)?, fence, seq })
        })
        .optional()
}
