//! The engine's door to everything above it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::task::Poll;
use std::time::{Duration, Instant};

use clearway_core::channel::Op;
use clearway_core::event::{Body, Event};
use clearway_core::message::Role;
use clearway_core::plan::MESSAGES;
use clearway_core::thread::ThreadRecord;
use clearway_core::wait::WaitKind;
use clearway_core::{
    Clock, Code, Failure, InstanceId, Message, RunId, RunRecord, Status, ThreadId, Timestamp,
};
use clearway_store::{CancelMode, Cancelled, QueuePosition, RunQuery, Store, ThreadState};
use clearway_upstream::Upstream;
use tokio::sync::{Notify, broadcast};
use uuid::Uuid;

use self::views::waits_for;
use crate::admission::Busy;
use crate::agent::Agents;
use crate::alerts::Alert;
use crate::cache::StateCache;
use crate::clock::{Clocks, Ids, instant};
use crate::health::{Health, Process, Pulse};
use crate::knowledge::Knowledge;
use crate::lanes::Lanes;
use crate::ledger::Books;
use crate::live::{End, Hub, Live, lock};
use crate::metrics::{self, Metrics};
use crate::pools::Pools;
use crate::subscription::{From, Subscription, resume_cursor};
use crate::tasks::Tasks;
use crate::threads::Watched;
use crate::watchdog::Watchdog;
use crate::webhooks;
use crate::{CancelOutcome, Error, Options, PoolView, ResetThread, RunView, Submit, Submitted};

mod views;

/// Accepts, runs, shows and stops runs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Engine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub me: InstanceId,
    pub options: Options,
    pub store: Arc<dyn Store>,
    pub upstream: Upstream,
    pub agents: Agents,
    pub clocks: Clocks,
    pub ids: Ids,
    pub hub: Hub,
    pub cache: StateCache,
    /// Threads that a run here executes on, or is about to.
    pub busy: Mutex<HashMap<ThreadId, Busy>>,
    /// Threads that readers follow beyond one run.
    pub watched: Watched,
    pub pools: Pools,
    pub webhooks: webhooks::Sender,
    /// Those that are raised.
    pub alerts: Mutex<Vec<Alert>>,
    pub ends: Ends,
    pub tasks: Tasks,
    pub metrics: Arc<Metrics>,
    /// Some run may be ready.
    pub ready: Arc<Notify>,
    /// A deadline earlier than all known ones was added.
    pub deadline_armed: Notify,
    /// The earliest deadline of a queued run, in store time; `i64::MAX` for none.
    next_deadline: AtomicI64,
    /// When the next run is due that was accepted for later, likewise. Others of them, and those from
    /// before a restart, are found within the dispatcher's poll.
    next_start: AtomicI64,
    pub watchdog: Watchdog,
    /// Set once, by whoever puts the server together.
    pub knowledge: OnceLock<Knowledge>,
    pub process: Process,
    /// Counted again when the last thread of the start runs.
    pub threads_at_start: AtomicU32,
    /// When this engine began.
    pub started_at: Timestamp,
}

impl Engine {
    /// Joins the store, takes up what earlier processes left, and starts the standing tasks.
    ///
    /// # Errors
    /// The store cannot be joined, or the host refuses the watchdog's thread.
    pub async fn start(
        options: Options,
        store: Arc<dyn Store>,
        upstream: Upstream,
        agents: Agents,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, Error> {
        let ids = Ids::new();
        let me = ids.instance();
        let joined = store.join(me).await?;
        if joined.resumed > 0 || joined.waiting > 0 {
            tracing::info!(
                resumed = joined.resumed,
                waiting = joined.waiting,
                "taking up earlier runs"
            );
        }
        let watchdog = Watchdog::start().map_err(|error| {
            Error::new(Code::Internal, format!("the watchdog's thread cannot be started: {error}"))
        })?;
        let limits = &options.limits;
        let ready = Arc::new(Notify::new());
        let process = Process::measure();
        let inner = Arc::new(Inner {
            me,
            hub: Hub::new(clock.clone(), limits.output_bytes, limits.ended_runs),
            cache: StateCache::new(limits.cache_bytes),
            busy: Mutex::default(),
            watched: Watched::default(),
            pools: Pools::new(&options.pools, &ready),
            webhooks: webhooks::Sender::new(&options.webhooks),
            alerts: Mutex::default(),
            ends: Ends::default(),
            options,
            store,
            upstream,
            agents,
            started_at: clock.now(),
            clocks: Clocks(clock),
            ids,
            tasks: Tasks::new(),
            metrics: Arc::new(Metrics::new()),
            ready,
            deadline_armed: Notify::new(),
            next_deadline: AtomicI64::new(i64::MAX),
            next_start: AtomicI64::new(i64::MAX),
            watchdog,
            knowledge: OnceLock::new(),
            threads_at_start: AtomicU32::new(process.os_threads),
            process,
        });
        let books = Arc::new(Books::new(inner.metrics.clone(), inner.clocks.clone()));
        inner.upstream.observe_embeddings(books.clone());
        let (store, stopped) = (inner.store.clone(), inner.tasks.hard.clone());
        inner.tasks.spawn(async move {
            tokio::select! {
                () = books.keep(&*store) => {}
                () = stopped.cancelled() => books.flush(&*store).await,
            }
        });
        let (pulse, stopped) = (inner.watchdog.pulse(), inner.tasks.hard.clone());
        inner.tasks.spawn(async move {
            tokio::select! {
                () = pulse => {}
                () = stopped.cancelled() => {}
            }
        });
        inner.start_tasks();
        inner.wake_dispatcher();
        Ok(Self { inner })
    }

    pub(crate) const fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    pub fn agents(&self) -> &Agents {
        &self.inner.agents
    }

    pub fn metrics(&self) -> &Metrics {
        self.inner.refresh_gauges();
        &self.inner.metrics
    }

    /// Where everything that blocks runs.
    pub fn lanes(&self) -> &Lanes {
        &self.inner.options.lanes
    }

    /// Starts the tasks and threads of knowledge, and makes it reachable for doors. Part of the start.
    ///
    /// # Errors
    /// The host refuses a thread.
    pub fn attach(&self, knowledge: Knowledge) -> Result<(), Error> {
        knowledge.start(Some(self.inner.metrics.clone())).map_err(Error)?;
        let threads = Process::measure().os_threads;
        self.inner.threads_at_start.store(threads, Ordering::Relaxed);
        let _ = self.inner.knowledge.set(knowledge);
        Ok(())
    }

    /// What documents say; `None` in a server without any.
    pub fn knowledge(&self) -> Option<&Knowledge> {
        self.inner.knowledge.get()
    }

    /// The ends of runs that came through this door and end here, from now on. A reader that falls
    /// far behind misses some and is told how many.
    pub fn ends(&self, door: &'static str) -> broadcast::Receiver<Arc<RunRecord>> {
        self.inner.ends.watch(door)
    }

    /// The alerts that are raised now.
    pub fn alerts(&self) -> Vec<Alert> {
        lock(&self.inner.alerts).clone()
    }

    /// The owner of background tasks; adapters start theirs here.
    pub fn tasks(&self) -> &Tasks {
        &self.inner.tasks
    }

    /// Wall clock for answers.
    pub fn now(&self) -> Timestamp {
        self.inner.clocks.now()
    }

    pub fn new_id(&self) -> Uuid {
        self.inner.ids.random()
    }

    /// Accepts a run. When this returns it is durable, and goes on whatever the caller does.
    ///
    /// # Errors
    /// `agent_not_found`, `thread_not_found`, `thread_busy`, `overloaded` (with a time to come
    /// back), `idempotency_conflict`, `shutting_down`, `store_unavailable`.
    pub async fn submit(&self, submit: Submit) -> Result<Submitted, Error> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        let engine = self.clone();
        let cancel_if_left = submit.cancel_if_left;
        // In a task of its own: a caller that leaves half-way must not leave half a run.
        self.inner.tasks.spawn(async move {
            let inner = &engine.inner;
            let result = inner.submit(submit).await;
            if let Err(error) = &result {
                let refusal = metrics::Refusal { code: error.code().as_str().to_owned() };
                inner.metrics.refused.get_or_create(&refusal).inc();
            }
            if let Err(Ok(submitted)) = answer.send(result)
                && cancel_if_left
                && !submitted.existing
                && let Err(error) = engine.cancel(submitted.run, "client_gone").await
            {
                tracing::warn!(run.id = %submitted.run, "a client left, and its run could not be cancelled: {error}");
            }
        });
        answered
            .await
            .unwrap_or_else(|_| Err(Error::new(Code::ShuttingDown, "the server is stopping")))
    }

    /// A run with what it does right now.
    ///
    /// # Errors
    /// `run_not_found`, `store_unavailable`.
    pub async fn run(&self, run: RunId) -> Result<RunView, Error> {
        let record = self.inner.record(run).await?;
        Ok(self.inner.view(record).await)
    }

    /// Runs, newest first, and where the next page starts.
    ///
    /// # Errors
    /// `store_unavailable`.
    pub async fn runs(&self, query: RunQuery) -> Result<(Vec<RunView>, Option<RunId>), Error> {
        let page = self.inner.store.runs(query).await?;
        Ok((self.inner.views(page.runs).await, page.next))
    }

    /// What runs do right now: one more read for all that queue, the rest is in memory.
    pub async fn views(&self, records: Vec<RunRecord>) -> Vec<RunView> {
        self.inner.views(records).await
    }

    /// Runs as stored, newest first, without what they do right now: one read, however many they are.
    ///
    /// # Errors
    /// `store_unavailable`.
    pub async fn records(&self, query: RunQuery) -> Result<(Vec<RunRecord>, Option<RunId>), Error> {
        let page = bounded(self.inner.store.runs(query)).await?;
        Ok((page.runs, page.next))
    }

    /// Asks a run to end. Its calls are dropped at once; when this returns the request is durable.
    ///
    /// # Errors
    /// `run_not_found`, `store_unavailable`.
    pub async fn cancel(&self, run: RunId, by: &str) -> Result<CancelOutcome, Error> {
        self.cancel_with(run, by, CancelMode::Keep).await
    }

    /// As [`Engine::cancel`]; `mode` says whether what the run committed stays.
    ///
    /// # Errors
    /// As [`Engine::cancel`].
    pub async fn cancel_with(
        &self,
        run: RunId,
        by: &str,
        mode: CancelMode,
    ) -> Result<CancelOutcome, Error> {
        // A rollback must be on the row before the run ends.
        if mode == CancelMode::Rollback {
            let outcome = bounded(self.inner.store.cancel_run(run, by, mode)).await?;
            if matches!(outcome, Cancelled::AlreadyEnded { .. } | Cancelled::NotFound) {
                return self.cancelled(run, by, outcome, false);
            }
            self.inner.cache.forget(self.inner.record(run).await?.thread);
            return self.cancelled(run, by, outcome, false);
        }
        let executing = self.inner.hub.get(run).filter(|live| live.is_executing());
        if let Some(live) = &executing {
            live.cancel.request(by);
        }
        let outcome = bounded(self.inner.store.cancel_run(run, by, mode)).await?;
        self.cancelled(run, by, outcome, executing.is_some())
    }

    fn cancelled(
        &self,
        run: RunId,
        by: &str,
        outcome: Cancelled,
        executing: bool,
    ) -> Result<CancelOutcome, Error> {
        match outcome {
            Cancelled::NotFound => Err(no_run(run)),
            // Our own signal was faster than the request on its way to the store.
            Cancelled::AlreadyEnded { record }
                if executing && record.status == Status::Cancelled =>
            {
                Ok(CancelOutcome::Requested)
            }
            Cancelled::AlreadyEnded { record } => Ok(CancelOutcome::AlreadyEnded(record)),
            Cancelled::Requested { .. } => {
                // The signal is kept for a task that has been claimed and not yet begun.
                if let Some(live) = self.inner.hub.get(run) {
                    live.cancel.request(by);
                }
                Ok(CancelOutcome::Requested)
            }
            Cancelled::Ended { record, events, promoted } => {
                self.inner.cancelled_while_waiting(&record, events, promoted);
                Ok(CancelOutcome::Ended(record))
            }
        }
    }

    /// Waits for a run's end. The run's own deadline bounds the wait.
    ///
    /// # Errors
    /// `run_not_found`; the code of why this instance let go of it; `store_unavailable`.
    pub async fn wait(&self, run: RunId) -> Result<RunRecord, Error> {
        let live = match self.inner.find(run).await? {
            Found::Live(live) => live,
            Found::Ended(record) => return Ok(*record),
        };
        let mut end = live.end();
        let end = end.wait_for(Option::is_some).await.ok().and_then(|end| (*end).clone());
        match end {
            Some(End::Ended { record, .. }) => Ok((*record).clone()),
            Some(End::Lost(failure)) => Err(Error(failure)),
            None => Err(Error::new(Code::ShuttingDown, "the server is stopping")),
        }
    }

    /// The reply of an ended run: the last AI message it committed.
    ///
    /// # Errors
    /// `store_unavailable`.
    pub async fn reply(&self, record: &RunRecord) -> Result<Option<Message>, Error> {
        if let Some(live) = self.inner.hub.get(record.id)
            && let Some(End::Ended { reply, .. }) = &*live.end().borrow()
            && reply.is_some()
        {
            return Ok(reply.clone());
        }
        let Some(checkpoint) = record.checkpoint else { return Ok(None) };
        let ops = self.inner.store.writes_of(checkpoint, MESSAGES).await?;
        let mut messages = ops.iter().flat_map(|op| match op {
            Op::Append(items) | Op::Merge(items) => items.as_slice(),
            Op::Assign(_) | Op::Add(_) | Op::Patch(_) => &[],
        });
        let is_reply = |message: &Message| message.role == Role::Ai;
        let newest = std::iter::from_fn(|| messages.next_back());
        if let Some(reply) = newest.filter_map(Message::from_value).find(is_reply) {
            return Ok(Some(reply));
        }
        // The last superstep said nothing: the end names a message of an earlier one.
        let end = record.next_seq.saturating_sub(1);
        let page = self.inner.store.read_log(record.id, end, 1).await?;
        let Some(Body::Fact(ended)) = page.events.into_iter().next().map(|event| event.body) else {
            return Ok(None);
        };
        let Some(id) = ended.json()["reply_message_id"].as_str().map(ToOwned::to_owned) else {
            return Ok(None);
        };
        let state = self.inner.store.state(record.thread, Some(checkpoint)).await?;
        let named = |message: &&Arc<serde_json::Value>| message["id"] == *id;
        let found = state.as_ref().and_then(|at| at.state.list(MESSAGES).iter().rev().find(named));
        Ok(found.and_then(|message| Message::from_value(message)))
    }

    /// Text that a running run has produced so far; empty when it does not run here.
    pub fn partial_text(&self, run: RunId) -> String {
        self.inner.hub.get(run).map(|live| live.partial_text()).unwrap_or_default()
    }

    /// Follows a run's log.
    ///
    /// # Errors
    /// `run_not_found`, `store_unavailable`.
    pub async fn subscribe(&self, run: RunId, from: From) -> Result<Subscription, Error> {
        let inner = &self.inner;
        let live = match inner.find(run).await? {
            Found::Live(live) => Some(live),
            Found::Ended(_) => None,
        };
        let cursor = match from {
            From::Start => 0,
            From::AfterSeq(seq) => seq.saturating_add(1),
            From::AfterId(id) => resume_cursor(&*inner.store, live.as_deref(), run, id).await?,
            From::Now => match &live {
                Some(live) => live.run_log().1,
                None => inner.store.read_log(run, u64::MAX, 1).await?.end,
            },
        };
        Ok(Subscription::new(run, inner.store.clone(), live, cursor))
    }

    /// At most `limit` visible events, and the number to continue after.
    ///
    /// # Errors
    /// As [`Engine::subscribe`].
    pub async fn events(
        &self,
        run: RunId,
        from: From,
        limit: usize,
    ) -> Result<(Vec<Event>, Option<u64>), Error> {
        let mut events = Vec::new();
        let mut subscription = self.subscribe(run, from).await?;
        let mut over = false;
        while events.len() < limit && !over {
            // What is there now, never a wait for what may come.
            let read = std::future::poll_fn(|cx| match subscription.poll_next(cx, &mut events) {
                Poll::Pending if subscription.is_reading() => Poll::Pending,
                Poll::Pending => Poll::Ready(None),
                Poll::Ready(read) => Poll::Ready(Some(read)),
            });
            match read.await {
                Some(more) => over = !more?,
                None => break,
            }
        }
        over &= events.len() <= limit;
        events.truncate(limit);
        // An empty page of a run that goes on says where to look again.
        let last = events.last().map(|event| event.seq);
        let next = last.or_else(|| subscription.position().checked_sub(1)).filter(|_| !over);
        Ok((events, next))
    }

    /// # Errors
    /// `store_unavailable`.
    pub async fn thread(&self, thread: ThreadId) -> Result<Option<ThreadRecord>, Error> {
        Ok(self.inner.store.thread(thread).await?)
    }

    /// # Errors
    /// `store_unavailable`.
    pub async fn thread_state(&self, thread: ThreadId) -> Result<Option<ThreadState>, Error> {
        Ok(self.inner.store.state(thread, None).await?)
    }

    /// Cancels what runs on a thread and starts it over with empty state.
    ///
    /// # Errors
    /// `store_unavailable`.
    pub async fn reset_thread(&self, thread: ThreadId) -> Result<Option<ResetThread>, Error> {
        let Some(reset) = self.inner.store.reset_thread(thread).await? else { return Ok(None) };
        self.inner.cache.forget(thread);
        let cancelled = reset.cancelled.len();
        for outcome in reset.cancelled {
            self.inner.cancel_told(outcome, "reset");
        }
        Ok(Some(ResetThread { generation: reset.generation, cancelled }))
    }

    pub fn pools(&self) -> Vec<PoolView> {
        self.inner.pool_views()
    }

    /// The providers' client, for work that is no run.
    pub fn upstream(&self) -> &Upstream {
        &self.inner.upstream
    }

    pub fn providers(&self) -> Vec<clearway_upstream::ProviderView> {
        self.inner.upstream.provider_views()
    }

    /// Whether the runtime is punctual enough to be called alive.
    pub fn health_quick(&self) -> bool {
        self.inner.watchdog.lag.now() < Duration::from_secs(5)
    }

    /// The runtime's punctuality and the uptime, as they are now.
    pub fn pulse(&self) -> Pulse {
        crate::health::pulse(&self.inner)
    }

    /// How the server is, measured now.
    pub async fn health(&self) -> Health {
        crate::health::measure(&self.inner).await
    }

    pub fn is_draining(&self) -> bool {
        self.inner.tasks.soft.is_cancelled()
    }

    /// Intake stops at once; runs may finish until `grace` is over; the rest is handed back and
    /// continues after the next start. Bounded by `grace` and a few seconds for the store.
    pub async fn shutdown(&self, grace: Duration) {
        let inner = &self.inner;
        let deadline = instant() + grace;
        inner.tasks.soft.cancel();
        // What waits now does not start here any more; whoever waits for it is told so.
        for live in inner.hub.waiting() {
            inner.tell_if_stopping(&live);
        }
        while !inner.hub.executing().is_empty() && instant() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        inner.tasks.hard.cancel();
        if let Some(knowledge) = inner.knowledge.get()
            && tokio::time::timeout(HAND_BACK, knowledge.close()).await.is_err()
        {
            tracing::warn!("the tasks of knowledge did not end in time");
        }
        if tokio::time::timeout(HAND_BACK, inner.tasks.close()).await.is_err() {
            tracing::warn!(left = inner.tasks.len(), "tasks did not end in time");
        }
        match tokio::time::timeout(HAND_BACK, inner.store.close(inner.me)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("closing the store: {error}"),
            Err(_) => tracing::warn!("the store did not close in time"),
        }
    }
}

/// Who wants to know of ends, by door.
#[derive(Debug, Default)]
pub(crate) struct Ends(RwLock<Vec<(&'static str, TellEnd)>>);

type TellEnd = broadcast::Sender<Arc<RunRecord>>;

impl Ends {
    fn watch(&self, door: &'static str) -> broadcast::Receiver<Arc<RunRecord>> {
        let mut doors = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, ends)) = doors.iter().find(|(known, _)| *known == door) {
            return ends.subscribe();
        }
        let (sender, receiver) = broadcast::channel(ENDS);
        doors.push((door, sender));
        receiver
    }

    pub(crate) fn tell(&self, record: &Arc<RunRecord>) {
        let doors = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, ends)) = doors.iter().find(|(door, _)| *door == record.door) {
            // Without a reader there is nobody to tell.
            let _ = ends.send(record.clone());
        }
    }
}

/// Ends that a slow reader may be behind.
const ENDS: usize = 256;

/// How long handing back may take after the grace is over.
const HAND_BACK: Duration = Duration::from_secs(5);

impl Inner {
    /// When a run behind `ahead` others of a pool should start, from how long runs hold a slot.
    pub(crate) fn queue_eta(&self, pool: &str, ahead: u32) -> Duration {
        let (slots, held) = self.pools.get(pool).map_or((1, ASSUMED_HELD), |pool| {
            (pool.slots().max(1), pool.held().unwrap_or(ASSUMED_HELD))
        });
        let turns = held.saturating_mul(ahead.saturating_add(1)) / slots;
        turns.clamp(Duration::from_secs(1), Duration::from_secs(600))
    }

    /// The live end of a run, or its row if it has ended.
    async fn find(&self, run: RunId) -> Result<Found, Error> {
        if let Some(live) = self.hub.get(run) {
            return Ok(Found::Live(live));
        }
        let record = self.record(run).await?;
        if record.status.is_terminal() {
            return Ok(Found::Ended(Box::new(record)));
        }
        let live = self.attach_waiting(&record);
        self.tell_if_stopping(&live);
        // It may have ended before anybody could know that somebody waits: so look once more.
        let record = self.record(run).await?;
        if record.status.is_terminal() {
            self.hub.forget(run);
            self.finish_live(&live, record.clone(), None);
            return Ok(Found::Ended(Box::new(record)));
        }
        Ok(Found::Live(live))
    }

    /// While the server stops, a run that waits is not going to start here.
    pub(crate) fn tell_if_stopping(&self, live: &Arc<Live>) {
        if self.tasks.soft.is_cancelled() && !live.is_executing() && !live.is_over() {
            let text = "the server is stopping; the run starts when it is back";
            live.finish(End::Lost(Failure::new(Code::ShuttingDown, text).retryable()));
            self.hub.forget(live.run);
        }
    }

    pub(crate) fn attach_queued(&self, record: &RunRecord, position: &QueuePosition) -> Arc<Live> {
        let (kind, detail) = match (record.status, position.thread_active) {
            (Status::Blocked, Some(active)) => (WaitKind::Thread, format!("run {active}")),
            (Status::Blocked, None) => {
                (WaitKind::Thread, "an earlier run of the thread".to_owned())
            }
            _ => (WaitKind::Slot, format!("pool {}", record.pool)),
        };
        // Event 0 is adopted right after, so the live log starts there.
        self.hub.attach(record.id, kind, &detail, record.spent.clone(), 0)
    }

    /// The live end of a run that waits in the store and is not known here yet.
    pub(crate) fn attach_waiting(&self, record: &RunRecord) -> Arc<Live> {
        let (kind, detail) = waits_for(record);
        self.hub.attach(record.id, kind, &detail, record.spent.clone(), record.next_seq)
    }

    /// Passes on what the store did about a cancel.
    pub(crate) fn cancel_told(self: &Arc<Self>, outcome: Cancelled, by: &str) {
        match outcome {
            Cancelled::Ended { record, events, promoted } => {
                self.cancelled_while_waiting(&record, events, promoted);
            }
            Cancelled::Requested { run, .. } => {
                if let Some(live) = self.hub.get(run) {
                    live.cancel.request(by);
                }
            }
            Cancelled::AlreadyEnded { .. } | Cancelled::NotFound => {}
        }
    }

    fn cancelled_while_waiting(
        self: &Arc<Self>,
        record: &RunRecord,
        events: Vec<Event>,
        promoted: Option<RunId>,
    ) {
        tracing::info!(run.id = %record.id, thread.id = %record.thread, "cancelled while waiting");
        if record.attempt > 0 {
            self.tasks.spawn(self.clone().cancel_children(record.id));
        }
        if let Some(live) = self.hub.get(record.id) {
            live.adopt(events);
            self.finish_live(&live, record.clone(), None);
        }
        if let Some(promoted) = promoted {
            self.promoted(promoted);
        }
    }

    pub(crate) async fn record(&self, run: RunId) -> Result<RunRecord, Error> {
        self.store.run(run).await?.ok_or_else(|| no_run(run))
    }

    pub(crate) fn pool_views(&self) -> Vec<PoolView> {
        let counts = self.store.pool_counts();
        self.pools
            .iter()
            .map(|(name, pool)| {
                let count = counts.iter().find(|count| count.pool == name);
                PoolView {
                    name: name.to_owned(),
                    slots: pool.slots(),
                    running: pool.running(),
                    ready: count.map_or(0, |count| count.ready),
                    blocked: count.map_or(0, |count| count.blocked),
                    queue_limit: pool.queue,
                }
            })
            .collect()
    }

    /// Books an ended run in the metrics.
    pub(crate) fn observe_end(
        &self,
        record: &RunRecord,
        first_output: Option<Instant>,
        claimed_at: Instant,
    ) {
        let metrics = &self.metrics;
        let ended = metrics::Ended {
            agent: record.agent.clone(),
            status: record.status.as_str().to_owned(),
            code: record.failure.as_ref().map_or("", |failure| failure.code.as_str()).to_owned(),
        };
        metrics.ended.get_or_create(&ended).inc();
        metrics.ended(record.status);
        let total = record.ended_at.unwrap_or(record.created_at).since(record.created_at);
        let agent = metrics::Agent { agent: record.agent.clone() };
        metrics.duration.get_or_create(&agent).observe(total.as_secs_f64());
        if let Some(first) = first_output {
            metrics.first_output.observe(first.saturating_duration_since(claimed_at).as_secs_f64());
        }
        for (kind, spent) in record.spent.iter() {
            let wait = metrics::Wait { kind: kind.as_str().to_owned() };
            metrics.waited.get_or_create(&wait).inc_by(spent.as_secs_f64());
        }
        if let Some(pool) = self.pools.get(&record.pool) {
            pool.was_held(record.worked);
        }
    }

    fn refresh_gauges(&self) {
        let set = |pool: &str, state: &str, value: u32| {
            let labels = metrics::PoolState { pool: pool.to_owned(), state: state.to_owned() };
            self.metrics.pools.get_or_create(&labels).set(i64::from(value));
        };
        for view in self.pool_views() {
            set(&view.name, "running", view.running);
            set(&view.name, "ready", view.ready);
            set(&view.name, "blocked", view.blocked);
            set(&view.name, "slots", view.slots);
            set(&view.name, "queue_limit", view.queue_limit);
        }
        let process = Process::measure();
        for (what, value) in [
            ("os_threads", f64::from(process.os_threads)),
            ("open_files", f64::from(process.open_files)),
            ("memory_bytes", process.memory_bytes as f64),
            ("scheduler_lag_seconds", self.watchdog.lag.now().as_secs_f64()),
            ("scheduler_lag_max_seconds", self.watchdog.lag.max().as_secs_f64()),
            ("stalls", self.watchdog.lag.stalls() as f64),
            ("live_runs", self.hub.len() as f64),
            ("tasks", self.tasks.len() as f64),
        ] {
            let labels = metrics::Process { what: what.to_owned() };
            self.metrics.process.get_or_create(&labels).set(value);
        }
        for view in self.upstream.provider_views() {
            for (what, value) in [
                ("in_flight", view.limiter.in_flight as i64),
                ("queued", view.limiter.queued.iter().sum::<usize>() as i64),
                ("limit", view.limiter.cap as i64),
                ("breaker_open", i64::from(view.breaker.state != "closed")),
                ("retry_budget", i64::from(view.retry_budget.available)),
                ("retries_suppressed", view.retry_budget.suppressed as i64),
                ("shed", (view.limiter.shed_deadline + view.limiter.shed_queue_full) as i64),
                ("hedges", view.tally.hedges as i64),
                ("connections_opened", view.connections.opened as i64),
                ("connections_reused", view.connections.reused as i64),
                ("connections_closed", view.connections.closed as i64),
                ("connections_idle", view.connections.idle as i64),
            ] {
                let labels =
                    metrics::Upstream { provider: view.name.clone(), what: what.to_owned() };
                self.metrics.upstream.get_or_create(&labels).set(value);
            }
        }
    }

    // ## Deadlines of queued runs

    /// A queued run must end by `at`; the sweep looks then.
    pub(crate) fn arm_next(&self, at: Option<Timestamp>) {
        let Some(at) = at else { return };
        if self.next_deadline.fetch_min(at.0, Ordering::AcqRel) > at.0 {
            self.deadline_armed.notify_one();
        }
    }

    /// A run was accepted that is due so much later.
    pub(crate) fn delayed(&self, delay: Duration) {
        // The store's clock and ours may differ by a moment.
        let at = self.clocks.now().plus(delay + Duration::from_millis(2));
        self.next_start.fetch_min(at.0, Ordering::AcqRel);
        self.wake_dispatcher();
    }

    /// Time until the next run is due that was accepted for later, at most `most`. Forgets one that is due.
    pub(crate) fn until_start(&self, most: Duration) -> Duration {
        let at = self.next_start.load(Ordering::Acquire);
        let now = self.clocks.now();
        if at <= now.0 {
            let order = (Ordering::AcqRel, Ordering::Acquire);
            let _ = self.next_start.compare_exchange(at, i64::MAX, order.0, order.1);
        }
        Timestamp(at).since(now).min(most)
    }

    /// Time until the earliest known deadline of a queued run, at most `most`. Forgets a deadline
    /// that is due, as the sweep that follows reports the next one.
    pub(crate) fn until_armed(&self, most: Duration) -> Duration {
        let at = self.next_deadline.load(Ordering::Acquire);
        let now = self.clocks.now();
        if at <= now.0 {
            // Only this one: an earlier deadline may be arriving at this very moment.
            let order = (Ordering::AcqRel, Ordering::Acquire);
            let _ = self.next_deadline.compare_exchange(at, i64::MAX, order.0, order.1);
        }
        Timestamp(at).since(now).min(most)
    }
}

/// A run as [`Inner::find`] finds it.
enum Found {
    Live(Arc<Live>),
    Ended(Box<RunRecord>),
}

/// A store that does not answer within this is treated as one whose answer was lost.
const STORE_LIMIT: Duration = Duration::from_secs(30);

/// Waits for the store, but not for ever.
pub(crate) async fn bounded<T>(
    call: impl Future<Output = clearway_store::Result<T>>,
) -> clearway_store::Result<T> {
    bounded_by(instant() + STORE_LIMIT, call).await
}

/// Waits for the store until `limit`; after that the outcome is unknown.
pub(crate) async fn bounded_by<T>(
    limit: Instant,
    call: impl Future<Output = clearway_store::Result<T>>,
) -> clearway_store::Result<T> {
    tokio::time::timeout_at(limit.into(), call).await.unwrap_or_else(|_| {
        let text = "the store did not answer in time";
        Err(clearway_store::Error::new(clearway_store::ErrorKind::Other, text).outcome_unknown())
    })
}

/// How long a run is assumed to hold a slot of a pool in which none has ended yet.
const ASSUMED_HELD: Duration = Duration::from_secs(20);

pub(crate) fn no_run(run: RunId) -> Error {
    Error::new(Code::RunNotFound, format!("no run {run}"))
}
