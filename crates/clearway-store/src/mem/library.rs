//! Threads between runs, artifacts, schedules, webhooks and cached outputs of [`super::MemStore`].

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use clearway_core::thread::ThreadRecord;
use clearway_core::{CheckpointId, RunId, Status, TaskId, ThreadId, Timestamp};
use serde_json::Value;
use uuid::Uuid;

use super::data::{CheckpointRow, Data, DeltaRow};
use crate::error::Result;
use crate::rules::{self, Line};
use crate::types::*;

/// Rows that belong to no run's hot path.
#[derive(Clone, Debug, Default)]
pub(super) struct Library {
    artifacts: Vec<(ThreadId, ArtifactRecord, Bytes)>,
    schedules: BTreeMap<Uuid, Schedule>,
    deliveries: BTreeMap<i64, (Delivery, Option<Timestamp>)>,
    next_delivery: i64,
    cached: BTreeMap<(String, [u8; 32]), (Timestamp, Value)>,
}

impl Library {
    pub(super) fn deliver(&mut self, run: RunId, url: String, now: Timestamp) {
        self.next_delivery += 1;
        let id = self.next_delivery;
        let delivery = Delivery { id, run, url, attempt: 0, created_at: now };
        self.deliveries.insert(id, (delivery, Some(now)));
    }
}

impl Data {
    // ## Threads between runs

    pub(super) fn history(
        &self,
        thread: ThreadId,
        before: Option<CheckpointId>,
        limit: u32,
    ) -> Vec<CheckpointRecord> {
        let mut found: Vec<CheckpointRecord> = self
            .checkpoints
            .iter()
            .filter(|(id, row)| row.thread == thread && before.is_none_or(|before| **id < before))
            .map(|(id, row)| CheckpointRecord {
                id: *id,
                // A pruned or rolled-back parent is none.
                parent: row.parent.filter(|parent| self.checkpoints.contains_key(parent)),
                run: row.run,
                step: row.step,
                source: row.source,
                frontier: row.next.clone(),
                created_at: row.at,
            })
            .collect();
        found.sort_unstable_by_key(|record| std::cmp::Reverse(record.id));
        found.truncate(rules::page_size(limit));
        found
    }

    pub(super) fn update_state(&mut self, update: &StateUpdate, now: Timestamp) -> Result<Updated> {
        let Some(thread) = self.threads.get(&update.thread) else {
            return Ok(Updated::ThreadNotFound);
        };
        let head = thread.record.head;
        if head == Some(update.id) {
            return Ok(Updated::Done);
        }
        if let Some(active) = thread.record.active_run {
            return Ok(Updated::Busy { active });
        }
        if head != update.expected_head {
            return Ok(Updated::Conflict { head });
        }
        let parent = match update.parent {
            None => None,
            Some(parent) => match self.checkpoints.get(&parent) {
                Some(row) if row.thread == update.thread => Some((parent, row.versions.clone())),
                Some(_) | None => return Ok(Updated::CheckpointNotFound),
            },
        };
        let notes = self.new_notes(update.thread, &update.notes)?;
        let (parent, mut versions) = parent.unzip();
        let versions = versions.get_or_insert_default();
        let mut top = thread.record.version;
        rules::advance(versions, &mut top, &update.checkpoint)?;
        for delta in &update.checkpoint.deltas {
            let row =
                DeltaRow { previous: delta.previous, tag: delta.op.tag(), data: delta.op.encode() };
            self.deltas.insert((update.thread, delta.version), row);
        }
        let row = CheckpointRow {
            thread: update.thread,
            parent,
            run: None,
            step: update.checkpoint.step,
            source: update.checkpoint.source,
            next: update.checkpoint.next.clone(),
            versions: versions.clone(),
            at: now,
        };
        self.checkpoints.insert(update.id, row);
        let thread = self.threads.get_mut(&update.thread).expect("found above");
        thread.record.head = Some(update.id);
        thread.record.version = top;
        thread.record.updated_at = now;
        let settled = |task: &TaskId| update.settled.contains(task);
        self.journal.retain(|(of, task, _), _| *of != update.thread || !settled(task));
        self.add_notes(None, update.thread, notes);
        self.synced();
        Ok(Updated::Done)
    }

    pub(super) fn threads(&self, query: &ThreadQuery) -> Vec<ThreadRecord> {
        let order = |record: &ThreadRecord| (record.updated_at, record.created_at, record.id);
        let after = query.after.and_then(|id| self.threads.get(&id)).map(|row| order(&row.record));
        let fits = |record: &&ThreadRecord| {
            query.tenant.as_ref().is_none_or(|tenant| *tenant == record.tenant)
                && query.owner.as_ref().is_none_or(|owner| Some(owner) == record.owner.as_ref())
                && query.dialect.as_ref().is_none_or(|dialect| {
                    record.key.as_ref().is_some_and(|key| key.dialect == *dialect)
                })
                && query.idle_since.is_none_or(|at| record.updated_at <= at)
                && (query.after.is_none() || after.is_some_and(|after| order(record) < after))
        };
        let rows = self.threads.values().map(|row| &row.record);
        let mut found: Vec<ThreadRecord> = rows.filter(fits).cloned().collect();
        found.sort_unstable_by_key(|record| std::cmp::Reverse(order(record)));
        found.truncate(rules::page_size(query.limit));
        found
    }

    pub(super) fn prune_thread(&mut self, thread: ThreadId, keep: Keep) -> Option<Pruned> {
        let head = self.threads.get(&thread)?.record.head;
        let mut lines: Vec<(CheckpointId, Line<CheckpointId, Option<RunId>>)> = self
            .checkpoints
            .iter()
            .filter(|(_, row)| row.thread == thread)
            .map(|(id, row)| (*id, Line { parent: row.parent, run: row.run }))
            .collect();
        lines.sort_unstable_by_key(|(id, _)| std::cmp::Reverse(*id));
        let active = self
            .runs
            .values()
            .filter(|row| row.record.thread == thread && !row.record.status.is_terminal());
        let held: BTreeSet<CheckpointId> =
            active.flat_map(|row| [row.base, row.record.options.base]).flatten().collect();
        let kept = rules::kept(&lines, head, &held, keep);
        let parents: BTreeMap<CheckpointId, Option<CheckpointId>> =
            lines.iter().map(|(id, line)| (*id, line.parent)).collect();
        let mut pruned = Pruned::default();
        for (id, _) in lines.iter().filter(|(id, _)| !kept.contains(id)) {
            self.checkpoints.remove(id);
            pruned.checkpoints += 1;
        }
        for row in self.runs.values_mut().filter(|row| row.record.thread == thread) {
            let there = |id: &CheckpointId| self.checkpoints.contains_key(id);
            row.record.checkpoint = row.record.checkpoint.filter(there);
        }
        if pruned.checkpoints > 0 {
            let mut used = BTreeSet::new();
            for id in &kept {
                let row = self.checkpoints.get_mut(id).expect("it was kept");
                row.parent = rules::nearest(&parents, &kept, *id);
                for &version in row.versions.values() {
                    let mut at = version;
                    while at > 0 && used.insert(at) {
                        match self.deltas.get(&(thread, at)) {
                            Some(delta) if delta.tag != 0 => at = delta.previous,
                            Some(_) | None => break,
                        }
                    }
                }
            }
            self.deltas.retain(|(of, version), row| {
                let stays = *of != thread || used.contains(version);
                pruned.bytes += if stays { 0 } else { row.data.len() as u64 };
                stays
            });
            self.synced();
        }
        Some(pruned)
    }

    pub(super) fn delete_thread(
        &mut self,
        thread: ThreadId,
    ) -> Option<std::result::Result<(), RunId>> {
        if let Some(active) = self.threads.get(&thread)?.record.active_run {
            return Some(Err(active));
        }
        self.threads.remove(&thread);
        self.runs.retain(|_, row| row.record.thread != thread);
        let runs = &self.runs;
        self.attempts.retain(|(run, _)| run.is_none_or(|run| runs.contains_key(&run)));
        self.checkpoints.retain(|_, row| row.thread != thread);
        self.deltas.retain(|(of, _), _| *of != thread);
        self.journal.retain(|(of, _, _), _| *of != thread);
        self.forget_idempotency();
        self.library.artifacts.retain(|(of, ..)| *of != thread);
        self.library.schedules.retain(|_, schedule| schedule.thread != Some(thread));
        self.synced();
        Some(Ok(()))
    }

    pub(super) fn thread_storage(&self, thread: ThreadId) -> Option<ThreadStorage> {
        self.threads.get(&thread)?;
        let deltas = self.deltas.iter().filter(|((of, _), _)| *of == thread);
        let runs = self.runs.values().filter(|row| row.record.thread == thread);
        let artifacts = self.library.artifacts.iter().filter(|(of, ..)| *of == thread);
        Some(ThreadStorage {
            checkpoints: self.checkpoints.values().filter(|row| row.thread == thread).count()
                as u64,
            delta_bytes: deltas.map(|(_, row)| row.data.len() as u64).sum(),
            log_bytes: runs.clone().map(|row| row.log_bytes()).sum(),
            artifact_bytes: artifacts.map(|(_, record, _)| record.size_bytes).sum(),
            runs: runs.count() as u64,
            ..ThreadStorage::default()
        })
    }

    // ## Artifacts

    pub(super) fn put_artifact(&mut self, new: &NewArtifact, now: Timestamp) -> ArtifactStored {
        let Some(row) = self.runs.get(&new.run) else { return ArtifactStored::Fenced };
        if row.record.status != Status::Running || row.record.fence != new.fence {
            return ArtifactStored::Fenced;
        }
        let thread = row.record.thread;
        let all = &mut self.library.artifacts;
        let same = |(_, record, _): &(ThreadId, ArtifactRecord, Bytes)| {
            record.run == new.run && record.name == new.name
        };
        let newest = all.iter().rposition(same);
        let version = match newest {
            // The same call again, after a crash: its file takes the place of its file.
            Some(at) if all[at].1.task == new.task => all.remove(at).1.version,
            other => {
                if all.iter().filter(|(_, record, _)| record.run == new.run).count()
                    >= new.limit as usize
                {
                    return ArtifactStored::TooMany;
                }
                other.map_or(1, |at| all[at].1.version + 1)
            }
        };
        let record = ArtifactRecord {
            run: new.run,
            name: new.name.clone(),
            version,
            task: new.task,
            node: new.node.clone(),
            media_type: new.media_type.clone(),
            size_bytes: new.bytes.len() as u64,
            sha256: new.sha256,
            created_at: now,
        };
        all.push((thread, record.clone(), new.bytes.clone()));
        self.synced();
        ArtifactStored::Stored(record)
    }

    fn scoped(
        &self,
        scope: ArtifactScope,
    ) -> impl DoubleEndedIterator<Item = (&ArtifactRecord, &Bytes)> {
        let fits = move |thread: ThreadId, run: RunId| match scope {
            ArtifactScope::Run(wanted) => run == wanted,
            ArtifactScope::Thread(wanted) => {
                thread == wanted && !self.runs[&run].record.rolled_back
            }
        };
        let all = self.library.artifacts.iter();
        all.filter(move |(thread, record, _)| fits(*thread, record.run))
            .map(|(_, record, bytes)| (record, bytes))
    }

    pub(super) fn artifacts(&self, scope: ArtifactScope) -> Vec<ArtifactRecord> {
        let all: Vec<&ArtifactRecord> = self.scoped(scope).map(|(record, _)| record).collect();
        let newest = |at: usize| !all[at + 1..].iter().any(|later| later.name == all[at].name);
        (0..all.len()).filter(|&at| newest(at)).map(|at| all[at].clone()).collect()
    }

    pub(super) fn artifact(
        &self,
        scope: ArtifactScope,
        name: &str,
        version: Option<u32>,
    ) -> Option<(ArtifactRecord, Bytes)> {
        let fits = |record: &ArtifactRecord| {
            record.name == name && version.is_none_or(|version| record.version == version)
        };
        let found = self.scoped(scope).rev().find(|(record, _)| fits(record))?;
        Some((found.0.clone(), found.1.clone()))
    }

    // ## Schedules

    pub(super) fn put_schedule(&mut self, schedule: Schedule) {
        let namesake = |other: &Schedule| {
            schedule.name.is_some()
                && other.name == schedule.name
                && other.tenant == schedule.tenant
                && other.id != schedule.id
        };
        self.library.schedules.retain(|_, other| !namesake(other));
        self.library.schedules.insert(schedule.id, schedule);
        self.synced();
    }

    pub(super) fn delete_schedule(&mut self, id: Uuid) -> bool {
        self.synced();
        self.library.schedules.remove(&id).is_some()
    }

    pub(super) fn schedules(&self, query: &ScheduleQuery) -> Vec<Schedule> {
        let fits = |schedule: &&Schedule| {
            query.tenant.as_ref().is_none_or(|tenant| *tenant == schedule.tenant)
                && query.thread.is_none_or(|thread| schedule.thread == Some(thread))
                && query.after.is_none_or(|after| schedule.id > after)
        };
        let found = self.library.schedules.values().filter(fits);
        found.take(rules::page_size(query.limit)).cloned().collect()
    }

    pub(super) fn due_schedules(
        &self,
        limit: u32,
        now: Timestamp,
    ) -> (Vec<Schedule>, Option<Timestamp>) {
        let all = self.library.schedules.values();
        let mut due: Vec<Schedule> = all
            .clone()
            .filter(|schedule| schedule.next_at.is_some_and(|at| at <= now))
            .cloned()
            .collect();
        due.sort_by_key(|schedule| schedule.next_at);
        due.truncate(limit as usize);
        (due, all.filter_map(|schedule| schedule.next_at).filter(|at| *at > now).min())
    }

    pub(super) fn schedule_fired(&mut self, fired: &Fired) {
        let Some(schedule) = self.library.schedules.get_mut(&fired.id) else { return };
        if schedule.next_at != Some(fired.at) {
            return;
        }
        if fired.over {
            self.library.schedules.remove(&fired.id);
        } else {
            schedule.next_at = fired.next_at;
            schedule.last_at = Some(fired.at);
            schedule.last_run = fired.run.or(schedule.last_run);
            schedule.last_error.clone_from(&fired.error);
        }
        self.synced();
    }

    // ## Webhooks

    pub(super) fn due_deliveries(
        &self,
        limit: u32,
        now: Timestamp,
    ) -> (Vec<Delivery>, Option<Timestamp>) {
        let all = self.library.deliveries.values();
        let mut due: Vec<(Timestamp, Delivery)> = all
            .clone()
            .filter_map(|(delivery, at)| Some(((*at)?, delivery.clone())))
            .filter(|(at, _)| *at <= now)
            .collect();
        due.sort_by_key(|(at, delivery)| (*at, delivery.id));
        let due = due.into_iter().take(limit as usize).map(|(_, delivery)| delivery);
        (due.collect(), all.filter_map(|(_, at)| *at).filter(|at| *at > now).min())
    }

    pub(super) fn delivered(&mut self, id: i64, outcome: &DeliveryOutcome, now: Timestamp) {
        let deliveries = &mut self.library.deliveries;
        match outcome {
            DeliveryOutcome::Done => {
                deliveries.remove(&id);
            }
            DeliveryOutcome::Retry { after, .. } => {
                if let Some((delivery, at)) = deliveries.get_mut(&id) {
                    delivery.attempt += 1;
                    *at = Some(now.plus(*after));
                }
            }
            DeliveryOutcome::Dead { .. } => {
                if let Some((delivery, at)) = deliveries.get_mut(&id) {
                    delivery.attempt += 1;
                    *at = None;
                }
            }
        }
        let dead = now.0.saturating_sub(rules::DEAD_LETTERS.as_millis() as i64);
        deliveries.retain(|_, (delivery, at)| at.is_some() || delivery.created_at.0 >= dead);
        self.synced();
    }

    // ## Cached outputs

    pub(super) fn cached(&self, tenant: &str, key: &[u8; 32], now: Timestamp) -> Option<Value> {
        let (until, value) = self.library.cached.get(&(tenant.to_owned(), *key))?;
        (*until > now).then(|| value.clone())
    }

    pub(super) fn cache(
        &mut self,
        tenant: &str,
        key: [u8; 32],
        value: Value,
        until: Timestamp,
        now: Timestamp,
    ) {
        let cached = &mut self.library.cached;
        cached.retain(|_, (until, _)| *until > now);
        cached.insert((tenant.to_owned(), key), (until, value));
        let own = |(of, _): &&(String, [u8; 32])| *of == tenant;
        if cached.keys().filter(own).count() > rules::CACHED_OUTPUTS {
            let oldest = cached.iter().filter(|(key, _)| key.0 == tenant);
            let oldest = oldest.min_by_key(|(_, (until, _))| *until).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                cached.remove(&oldest);
            }
        }
    }
}
