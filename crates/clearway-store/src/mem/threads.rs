//! Threads as people look at them, of [`super::MemStore`].

use clearway_core::thread::ThreadRecord;
use clearway_core::{CheckpointId, RunId, ThreadId, Timestamp};
use serde_json::{Map, Value};

use super::data::{Data, ThreadRow};
use crate::error::Result;
use crate::rules;
use crate::threads::{contains, copied_id};
use crate::{
    CheckpointRecord, LastRun, NewThread, RunDeleted, Stand, StepRecord, ThreadMade,
    ThreadOverview, ThreadPage, ThreadSearch, ThreadSort,
};

impl Data {
    pub(super) fn make_thread(&mut self, new: NewThread, now: Timestamp) -> ThreadMade {
        if let Some(known) = self.thread(new.id) {
            return ThreadMade::Exists(known);
        }
        let record = ThreadRecord {
            id: new.id,
            tenant: new.tenant,
            owner: new.owner,
            key: new.key,
            metadata: new.metadata,
            created_at: now,
            updated_at: now,
            active_run: None,
            ord: 0,
            generation: 0,
            head: None,
            version: 0,
        };
        self.threads.insert(new.id, ThreadRow { record: record.clone(), runs: Vec::new() });
        self.synced();
        ThreadMade::Made(record)
    }

    pub(super) fn describe_thread(
        &mut self,
        thread: ThreadId,
        metadata: Map<String, Value>,
        now: Timestamp,
    ) -> Option<ThreadRecord> {
        let record = &mut self.threads.get_mut(&thread)?.record;
        record.metadata.extend(metadata);
        record.updated_at = now;
        let record = record.clone();
        self.synced();
        Some(record)
    }

    pub(super) fn copy_thread(
        &mut self,
        from: ThreadId,
        to: ThreadId,
        salt: [u8; 6],
        now: Timestamp,
    ) -> Option<ThreadRecord> {
        if let Some(known) = self.thread(to) {
            return Some(known);
        }
        let copied = |id: CheckpointId| CheckpointId(copied_id(id.0, salt));
        let source = self.thread(from)?;
        let record = ThreadRecord {
            id: to,
            key: None,
            created_at: now,
            updated_at: now,
            active_run: None,
            ord: 0,
            generation: 0,
            head: source.head.map(copied),
            ..source
        };
        let rows: Vec<_> = self
            .checkpoints
            .iter()
            .filter(|(_, row)| row.thread == from)
            .map(|(id, row)| {
                let mut row = row.clone();
                row.parent = row.parent.filter(|id| self.checkpoints.contains_key(id)).map(copied);
                (row.thread, row.run) = (to, None);
                (copied(*id), row)
            })
            .collect();
        self.checkpoints.extend(rows);
        let deltas: Vec<_> = self
            .deltas
            .iter()
            .filter(|((of, _), _)| *of == from)
            .map(|((_, version), row)| ((to, *version), row.clone()))
            .collect();
        self.deltas.extend(deltas);
        let notes: Vec<_> = self
            .journal
            .iter()
            .filter(|((of, ..), row)| *of == from && row.settled.is_none())
            .map(|((_, task, key), row)| {
                let mut row = row.clone();
                row.run = None;
                ((to, *task, key.clone()), row)
            })
            .collect();
        self.journal.extend(notes);
        self.threads.insert(to, ThreadRow { record: record.clone(), runs: Vec::new() });
        self.synced();
        Some(record)
    }

    pub(super) fn thread_overview(&self, thread: ThreadId) -> Option<ThreadOverview> {
        self.threads.get(&thread).map(|row| self.overview(row))
    }

    fn overview(&self, row: &ThreadRow) -> ThreadOverview {
        let ended = |run: &&RunId| {
            let record = self.runs.get(run).map(|row| &row.record);
            record.is_some_and(|record| record.status.is_terminal() && !record.rolled_back)
        };
        let last = row.runs.iter().filter(ended).max().map(|run| {
            let record = &self.runs[run].record;
            LastRun { id: *run, status: record.status, failure: record.failure.clone() }
        });
        let head = row.record.head.and_then(|head| self.checkpoints.get(&head));
        ThreadOverview {
            stand: Stand::of(
                row.record.active_run.is_some(),
                last.as_ref().map(|last| last.status),
                head.is_some_and(|head| !head.next.is_empty()),
            ),
            state_at: head.map(|head| head.at),
            record: row.record.clone(),
            last,
        }
    }

    /// In the order that is asked for.
    pub(super) fn fitting_threads(&self, search: &ThreadSearch) -> Vec<ThreadOverview> {
        let fits = |found: &ThreadOverview| {
            let ThreadRecord { id, tenant, owner, metadata, .. } = &found.record;
            let dialect = found.record.key.as_ref().map(|key| &key.dialect);
            search.tenant.as_ref().is_none_or(|wanted| wanted == tenant)
                && search.owner.as_ref().is_none_or(|wanted| Some(wanted) == owner.as_ref())
                && (search.ids.is_empty() || search.ids.contains(id))
                && contains(metadata, &search.metadata)
                && search.stand.is_none_or(|wanted| wanted == found.stand)
                && search.except_dialect.as_ref().is_none_or(|except| dialect != Some(except))
        };
        let order = |a: &ThreadOverview, b: &ThreadOverview| {
            let newness = |one: &ThreadOverview| (one.record.created_at, one.record.id);
            let first = match search.sort {
                ThreadSort::UpdatedAt => a.record.updated_at.cmp(&b.record.updated_at),
                ThreadSort::CreatedAt => a.record.created_at.cmp(&b.record.created_at),
                ThreadSort::Id => a.record.id.cmp(&b.record.id),
                ThreadSort::Stand => a.stand.cmp(&b.stand),
                ThreadSort::StateAt => a.state_at.cmp(&b.state_at),
            };
            first.then_with(|| newness(a).cmp(&newness(b)))
        };
        let mut found: Vec<_> =
            self.threads.values().map(|row| self.overview(row)).filter(fits).collect();
        found.sort_by(|a, b| match search.ascending {
            true => order(a, b),
            false => order(b, a),
        });
        found
    }

    pub(super) fn search_threads(&self, search: &ThreadSearch) -> ThreadPage {
        let mut threads = self.fitting_threads(search);
        threads.drain(..threads.len().min(search.offset as usize));
        let limit = rules::page_size(search.limit);
        let more = threads.len() > limit;
        threads.truncate(limit);
        ThreadPage { threads, more }
    }

    pub(super) fn stale_threads(
        &self,
        dialect: &str,
        since: Timestamp,
        limit: u32,
    ) -> Vec<ThreadId> {
        let stale = |record: &&ThreadRecord| {
            record.key.as_ref().is_some_and(|key| key.dialect == dialect)
                && record.updated_at < since
                && record.active_run.is_none()
        };
        let all = self.threads.values().map(|row| &row.record).filter(stale);
        all.map(|record| record.id).take(limit as usize).collect()
    }

    pub(super) fn steps(
        &self,
        run: RunId,
        after: Option<CheckpointId>,
        limit: u32,
    ) -> Result<Vec<StepRecord>> {
        let own = self
            .checkpoints
            .iter()
            .filter(|(id, row)| row.run == Some(run) && after.is_none_or(|after| **id > after));
        let mut own: Vec<_> = own.collect();
        own.sort_unstable_by_key(|(id, _)| **id);
        own.truncate(rules::page_size(limit));
        own.into_iter()
            .map(|(id, row)| {
                let parent = row.parent.and_then(|id| Some((id, self.checkpoints.get(&id)?)));
                let mut ops = Vec::new();
                for (channel, &version) in &row.versions {
                    let below = parent.and_then(|(_, row)| row.versions.get(channel).copied());
                    let of_channel = self.ops(row.thread, version, below.unwrap_or(0))?;
                    ops.extend(of_channel.into_iter().map(|(_, op)| (channel.as_str().into(), op)));
                }
                let checkpoint = CheckpointRecord {
                    id: *id,
                    parent: parent.map(|(id, _)| id),
                    run: row.run,
                    step: row.step,
                    source: row.source,
                    frontier: row.next.clone(),
                    created_at: row.at,
                };
                Ok(StepRecord { checkpoint, ops })
            })
            .collect()
    }

    pub(super) fn delete_run(&mut self, run: RunId, now: Timestamp) -> RunDeleted {
        let Some(row) = self.runs.get(&run).filter(|row| !row.record.rolled_back) else {
            return RunDeleted::NotFound;
        };
        if !row.record.status.is_terminal() {
            return RunDeleted::Unfinished;
        }
        let thread = row.record.thread;
        let is_own =
            |id: &CheckpointId| self.checkpoints.get(id).is_some_and(|row| row.run == Some(run));
        let head = self.threads[&thread].record.head;
        let unfinished = self
            .runs
            .values()
            .any(|row| row.record.thread == thread && !row.record.status.is_terminal());
        let built_on = self.checkpoints.values().any(|row| {
            row.thread == thread && row.run != Some(run) && row.parent.as_ref().is_some_and(is_own)
        });
        if head.as_ref().is_some_and(is_own) && !unfinished && !built_on {
            let mut base = head;
            while let Some(id) = base.filter(is_own) {
                base = self.checkpoints[&id].parent;
            }
            let base = base.filter(|id| self.checkpoints.contains_key(id));
            self.checkpoints.retain(|_, row| row.run != Some(run));
            let record = &mut self.threads.get_mut(&thread).expect("its run is here").record;
            record.head = base;
            record.updated_at = now;
            self.row(run).record.checkpoint = None;
            self.forget_notes(run, super::ends::Held::Yes, true);
        }
        self.row(run).record.rolled_back = true;
        self.synced();
        RunDeleted::Done
    }
}
