//! The engine's standing tasks: claiming, flushing output, lease renewal, sweeping.
//!
//! Each is a loop with a bounded sleep, woken early by hints. A lost hint costs at most that sleep;
//! an error is logged and tried again on the next turn, never swallowed into a stopped loop.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use clearway_core::RunId;
use clearway_core::wait::WaitKind;
use clearway_store::{Appended, Claim, ClaimRequest, OutputSegment, Swept};

use crate::admission::Busy;
use crate::engine::{Inner, bounded};
use crate::executor::execute;
use crate::live::{End, Live, lock};
use crate::pools::Slot;
use crate::watchdog::Watched;

/// Runs claimed in one transaction.
const CLAIM_AT_ONCE: u32 = 64;
/// Without a hint, look for ready runs this often.
const IDLE_POLL: Duration = Duration::from_secs(1);
const RENEW_EVERY: Duration = Duration::from_millis(2500);
const SWEEP_EVERY: Duration = Duration::from_secs(2);
/// Segments handed to the store in one operation.
const SEGMENTS_AT_ONCE: usize = 1024;

impl Inner {
    pub(crate) fn start_tasks(self: &Arc<Self>) {
        let tasks = &self.tasks;
        tasks.spawn(self.clone().dispatch());
        tasks.spawn(self.clone().flush());
        tasks.spawn(self.clone().renew());
        tasks.spawn(self.clone().sweep());
        tasks.spawn(self.clone().tidy());
        tasks.spawn(self.clone().keep_schedules());
        tasks.spawn(self.clone().send_webhooks());
        tasks.spawn(self.clone().watch_alerts());
        tasks.spawn(self.clone().sweep_ephemeral());
    }

    // ## Claiming

    async fn dispatch(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.tasks.soft.cancelled() => return,
                () = self.ready.notified() => {}
                () = tokio::time::sleep(self.until_start(IDLE_POLL)) => {}
            }
            while self.claim_ready().await {}
        }
    }

    /// Claims what free slots allow; `true` when there may be more.
    async fn claim_ready(self: &Arc<Self>) -> bool {
        if self.tasks.soft.is_cancelled() {
            return false;
        }
        // Slots are taken before the store is asked, so a run is never claimed without one.
        let mut slots: BTreeMap<String, Vec<Slot>> = BTreeMap::new();
        for count in self.store.pool_counts() {
            // A pool that the configuration lost since: its runs get to an end in another.
            let Some(pool) = self.pools.get(&count.pool).or_else(|| self.pools.any()) else {
                continue;
            };
            let most = count.ready.min(CLAIM_AT_ONCE) as usize;
            let free: Vec<Slot> = std::iter::from_fn(|| pool.take()).take(most).collect();
            if !free.is_empty() {
                slots.insert(count.pool, free);
            }
        }
        if slots.is_empty() {
            return false;
        }
        let request = ClaimRequest {
            me: self.me,
            slots: slots.iter().map(|(pool, free)| (pool.clone(), free.len() as u32)).collect(),
            ageing: self.options.ageing,
        };
        let claimed = bounded(self.store.claim(request)).await;
        let any = match claimed {
            Ok(claims) => {
                let any = !claims.is_empty();
                for claim in claims {
                    match slots.get_mut(&claim.record.pool).and_then(Vec::pop) {
                        Some(slot) => self.launch(claim, slot),
                        None => {
                            tracing::error!(run.id = %claim.record.id, "claimed without a slot")
                        }
                    }
                }
                any
            }
            Err(error) => {
                tracing::warn!("claiming failed, trying again: {error}");
                false
            }
        };
        // What is ready may be ready later only: telling oneself of these slots would never end.
        slots.into_values().flatten().for_each(Slot::put_back);
        any
    }

    /// Starts the task of a claimed run.
    pub(crate) fn launch(self: &Arc<Self>, mut claim: Claim, slot: Slot) {
        let record = &claim.record;
        let spent = record.spent.clone();
        let live = self.hub.attach(record.id, WaitKind::Work, "", spent, record.next_seq);
        if let Some(created) = claim.created.take() {
            live.adopt(vec![created]);
        }
        live.claimed(record.fence, record.next_seq);
        // The claim has booked the time in the queue, so the account goes on from there.
        live.wait.restart(WaitKind::Work, record.spent.clone(), crate::clock::instant());
        let run = record.id;
        lock(&self.busy).insert(record.thread, Busy { run, admitting: None });
        self.tasks.spawn(Watched::new(run, execute(self.clone(), claim, live, slot, None)));
    }

    pub(crate) fn wake_dispatcher(&self) {
        self.ready.notify_one();
    }

    /// A blocked run is ready now.
    pub(crate) fn promoted(&self, run: RunId) {
        if let Some(live) = self.hub.get(run) {
            live.wait.enter(
                WaitKind::Slot,
                "its turn on the thread has come",
                None,
                crate::clock::instant(),
            );
        }
        self.wake_dispatcher();
    }

    // ## Output to the store

    async fn flush(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(self.options.limits.flush_every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.tasks.hard.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let mut dirty = self.hub.dirty.take();
            while !dirty.is_empty() {
                let rest = dirty.split_off(dirty.len().min(SEGMENTS_AT_ONCE));
                self.flush_runs(&dirty).await;
                dirty = rest;
            }
        }
    }

    async fn flush_runs(&self, dirty: &[Arc<Live>]) {
        let mut lives = Vec::with_capacity(dirty.len());
        let mut output = Vec::with_capacity(dirty.len());
        for live in dirty {
            if let Some(segment) = live.take_output() {
                lives.push(live);
                output.push(OutputSegment { run: live.run, segment });
            }
        }
        if output.is_empty() {
            return;
        }
        self.metrics.segments.inc_by(output.len() as u64);
        let answers = match bounded(self.store.append(output)).await {
            Ok(answers) => answers.into_iter().map(Some).collect(),
            Err(error) => {
                // Output stays in memory and is sent again; the run's commit will report a store
                // that stays broken.
                tracing::warn!("output could not be stored, trying again: {error}");
                vec![None::<Appended>; lives.len()]
            }
        };
        for (live, answer) in lives.into_iter().zip(answers) {
            live.appended(answer, self.options.limits.log_bytes);
        }
    }

    // ## Lease

    async fn renew(self: Arc<Self>) {
        let mut orphans: HashSet<(RunId, u32)> = HashSet::new();
        loop {
            tokio::select! {
                () = self.tasks.hard.cancelled() => return,
                () = tokio::time::sleep(RENEW_EVERY) => {}
            }
            let renewal = match bounded(self.store.renew(self.me)).await {
                Ok(renewal) => renewal,
                Err(error) => {
                    tracing::warn!("the lease could not be renewed, trying again: {error}");
                    continue;
                }
            };
            for run in renewal.cancel {
                if let Some(live) = self.hub.get(run) {
                    live.cancel.request("request");
                }
            }
            // A run that is ours in the store but has no task here: a claim's answer was lost, or
            // its task had to give up. Seen twice in a row, it is handed back.
            let lost: HashSet<(RunId, u32)> = renewal
                .owned
                .into_iter()
                .filter(|(run, _)| !self.hub.get(*run).is_some_and(|live| live.is_executing()))
                .collect();
            for &(run, fence) in lost.intersection(&orphans) {
                match bounded(self.store.release(run, fence)).await {
                    Ok(true) => {
                        tracing::warn!(run.id = %run, "handed back a run that had no task");
                        self.wake_dispatcher();
                    }
                    Ok(false) => {}
                    Err(error) => tracing::warn!(run.id = %run, "handing back failed: {error}"),
                }
            }
            orphans = lost;
        }
    }

    // ## Deadlines of queued runs, takeovers, retention

    async fn sweep(self: Arc<Self>) {
        let mut pause = Duration::ZERO;
        loop {
            tokio::select! {
                // Not at the soft stop: what is queued keeps its deadline while the server drains.
                () = self.tasks.hard.cancelled() => return,
                () = self.deadline_armed.notified() => {
                    // A run with an earlier deadline was queued: look when it is due.
                    pause = self.until_armed(SWEEP_EVERY);
                    if !pause.is_zero() {
                        continue;
                    }
                }
                () = tokio::time::sleep(pause) => {}
            }
            pause = match bounded(self.store.sweep(self.me)).await {
                Ok(swept) => self.swept(swept),
                Err(error) => {
                    tracing::warn!("sweeping failed, trying again: {error}");
                    SWEEP_EVERY
                }
            };
        }
    }

    /// Applies a sweep; returns the time until the next one.
    fn swept(&self, swept: Swept) -> Duration {
        for run in &swept.taken_over {
            tracing::info!(run.id = %run, "taken over from an instance that is gone");
        }
        for (record, events) in swept.expired {
            tracing::info!(run.id = %record.id, thread.id = %record.thread, "deadline passed while queued");
            if let Some(live) = self.hub.get(record.id) {
                live.adopt(events);
                self.finish_live(&live, record, None);
            }
        }
        if swept.ready {
            self.wake_dispatcher();
        }
        self.arm_next(swept.next_deadline);
        self.until_armed(SWEEP_EVERY)
    }

    // ## Connections that nobody uses, numbers for the metrics page

    async fn tidy(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.tasks.hard.cancelled() => return,
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
            self.upstream.expire_idle(crate::clock::instant());
        }
    }

    /// The run has ended: whoever waits is told, and its live end stays a while for late readers.
    pub(crate) fn finish_live(
        &self,
        live: &Arc<Live>,
        record: clearway_core::RunRecord,
        reply: Option<clearway_core::Message>,
    ) {
        if live.is_over() {
            return;
        }
        let record = Arc::new(record);
        live.finish(End::Ended { record: record.clone(), reply });
        self.ends.tell(&record);
        self.hub.retire(live.run);
    }
}
