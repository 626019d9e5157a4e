//! What is done from outside to runs that wait: waking them, changing what they wait for.

use clearway_core::journal::Entry;
use clearway_core::run::Budget;
use clearway_core::wait::WaitKind;
use clearway_core::{Priority, RunId, RunRecord, Status};

use super::fail::Fail;
use super::rows::{Stored, options_text};
use super::writer::{Operation, Tx};
use super::{ends, journal};
use crate::counts::Move;
use crate::{Woken, rules};

/// A parked run becomes ready.
pub(super) fn wake(tx: &mut Tx<'_>, run: &mut Stored) -> rusqlite::Result<()> {
    rules::wake(&mut run.record, tx.now);
    ends::save(tx, run, Status::Waiting)
}

pub(super) struct Wake {
    pub(super) run: RunId,
    pub(super) entries: Vec<Entry>,
}

impl Operation for Wake {
    type Answer = Woken;
    const DURABLE: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<Woken, Fail> {
        let Some(run) = ends::find(tx.conn, self.run)? else { return Ok(Woken::NotFound) };
        if run.record.status.is_terminal() {
            return Ok(Woken::Ended(Box::new(run.record)));
        }
        journal::add(tx, run.thread, run.n, &self.entries)?;
        Ok(tell(tx, run)?)
    }
}

/// An unfinished run is to look again at what it waits for.
fn tell(tx: &mut Tx<'_>, mut run: Stored) -> rusqlite::Result<Woken> {
    match run.record.status {
        Status::Waiting => {
            wake(tx, &mut run)?;
            Ok(Woken::Ready(Box::new(run.record)))
        }
        Status::Running => {
            tx.run("UPDATE runs SET woken = 1 WHERE n = ?1", [run.n])?;
            Ok(Woken::Running { instance: run.record.instance })
        }
        Status::Blocked
        | Status::Ready
        | Status::Success
        | Status::Error
        | Status::Timeout
        | Status::Cancelled => Ok(Woken::Queued),
    }
}

pub(super) struct SetBudget {
    pub(super) run: RunId,
    pub(super) budget: Budget,
}

impl Operation for SetBudget {
    type Answer = Woken;
    const DURABLE: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<Woken, Fail> {
        let Some(mut run) = ends::find(tx.conn, self.run)? else { return Ok(Woken::NotFound) };
        if run.record.status.is_terminal() {
            return Ok(Woken::Ended(Box::new(run.record)));
        }
        run.record.options.budget = self.budget;
        tx.run(
            "UPDATE run_inputs SET options = ?2 WHERE run = ?1",
            (run.n, options_text(&run.record.options)),
        )?;
        let parked = run.record.parked.as_ref();
        if parked.is_some_and(|parked| parked.park.kind != WaitKind::Budget) {
            return Ok(Woken::Queued);
        }
        Ok(tell(tx, run)?)
    }
}

pub(super) struct SetPriority {
    pub(super) run: RunId,
    pub(super) priority: Priority,
}

impl Operation for SetPriority {
    type Answer = Option<RunRecord>;
    const DURABLE: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<Option<RunRecord>, Fail> {
        let Some(Stored { n, mut record, .. }) = ends::find(tx.conn, self.run)? else {
            return Ok(None);
        };
        if record.status.is_terminal() || record.status == Status::Running {
            return Ok(Some(record));
        }
        tx.run("UPDATE runs SET priority = ?2 WHERE n = ?1", (n, self.priority.level()))?;
        let before = std::mem::replace(&mut record.priority, self.priority);
        if record.status == Status::Ready {
            // Blocked runs are counted without their priorities.
            for (priority, from, to) in [
                (before, Status::Ready, Status::Blocked),
                (self.priority, Status::Blocked, Status::Ready),
            ] {
                let (pool, tenant) = (record.pool.clone(), record.tenant.clone());
                tx.moved(Move { pool, tenant, priority, from: Some(from), to });
            }
        }
        Ok(Some(record))
    }
}
