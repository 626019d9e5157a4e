//! One try: lives of an engine over one store, each but the last ended by a disturbance.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clearway_core::wait::WaitKind;
use clearway_core::{Clock, EventKind, RunId, RunRecord, Status, Timestamp};
use clearway_engine::{
    Agents, Decision, Engine, Error, From, Options, PoolOptions, RunQuery, Store, Submit, Which,
};
use clearway_store::{LoseTail, MemStore};
use tokio::time::{Instant, sleep, timeout};

use super::outcome::Outcome;
use super::{Dying, MakeUpstream, Scenario, Sink};

/// The wall clock of paused time. It goes on where it was when a new runtime begins.
#[derive(Debug)]
pub struct PausedClock {
    at: Mutex<(Timestamp, Instant)>,
}

impl PausedClock {
    /// Begins now, in a runtime whose time is paused.
    pub fn new() -> Arc<Self> {
        let begin = Timestamp(1_795_000_000_000);
        Arc::new(Self { at: Mutex::new((begin, Instant::now())) })
    }

    /// To be called in the next runtime, when the one before is gone.
    fn go_on(&self, from: Timestamp) {
        *self.at.lock().unwrap_or_else(PoisonError::into_inner) = (from, Instant::now());
    }
}

impl Clock for PausedClock {
    fn now(&self) -> Timestamp {
        let (at, since) = *self.at.lock().unwrap_or_else(PoisonError::into_inner);
        at.plus(since.elapsed())
    }
}

/// A server for a scenario's clients, and what lies below it.
#[derive(Clone, Debug)]
pub struct Bed {
    pub engine: Engine,
    store: Arc<MemStore>,
}

impl Bed {
    /// Submits a run; one that was accepted before, by its id, is that run.
    ///
    /// # Errors
    /// It was refused.
    pub async fn submit(&self, submit: Submit) -> Result<RunId, Error> {
        Ok(self.engine.submit(submit).await?.run)
    }

    /// Waits for a run's end.
    ///
    /// # Errors
    /// The engine stops.
    pub async fn wait(&self, run: RunId) -> Result<RunRecord, Error> {
        self.engine.wait(run).await
    }

    /// The run's row, read below the engine: looking does not count as a store call.
    pub async fn record(&self, run: RunId) -> Option<RunRecord> {
        Store::run(&*self.store, run).await.ok().flatten()
    }

    /// Waits until a run waits for that, or has ended.
    pub async fn until_waiting(&self, run: RunId, kind: WaitKind) -> Option<RunRecord> {
        loop {
            let record = self.record(run).await?;
            let waits = record.parked.as_ref().is_some_and(|parked| parked.park.kind == kind);
            if record.status.is_terminal() || (record.status == Status::Waiting && waits) {
                return Some(record);
            }
            sleep(LOOK).await;
        }
    }

    /// Waits until a run has shown an event of that kind, or has ended.
    ///
    /// # Errors
    /// The log cannot be read.
    pub async fn until_event(&self, run: RunId, kind: EventKind) -> Result<(), Error> {
        let mut subscription = self.engine.subscribe(run, From::Start).await?;
        while let Some(batch) = subscription.next().await? {
            if batch.iter().any(|event| event.kind() == kind) {
                break;
            }
        }
        Ok(())
    }
}

/// How a life ends.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stop {
    Never,
    /// At this store call, which still happens or does not.
    Call {
        call: u64,
        happens: bool,
        lose: LoseTail,
    },
    /// After a reader saw so many events of the first run.
    Event {
        event: u64,
        lose: LoseTail,
    },
    /// It does not end; the answer of this store call is lost.
    Answer {
        call: u64,
    },
}

/// A whole try: one life per stop, and a last one that nothing disturbs.
pub(super) struct Trial {
    pub(super) scenarios: Vec<Scenario>,
    pub(super) upstream: Arc<MakeUpstream>,
    pub(super) pools: Vec<PoolOptions>,
    pub(super) stops: Vec<Stop>,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Tried {
    pub(super) outcome: Outcome,
    /// Store calls of the first life, and events of its first run.
    pub(super) calls: u64,
    pub(super) events: u64,
    pub(super) undecided: usize,
}

/// Between looks at rows.
const LOOK: Duration = Duration::from_millis(5);
/// In paused time: whoever is not through by then never will be.
const PATIENCE: Duration = Duration::from_secs(3600);
/// How often a client repeats what failed.
const REPEATS: u32 = 8;

impl Trial {
    /// Each life has a runtime of its own: when it ends, so does everything that was under way in it.
    pub(super) fn run(&self) -> Result<Tried, String> {
        let sink = Sink::default();
        let (mut left, mut calls, mut undecided): (Option<Left>, _, _) = (None, None, 0);
        for stop in self.stops.iter().copied().chain([Stop::Never]) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .map_err(|error| format!("no runtime: {error}"))?;
            let lived = runtime.block_on(async {
                let Left { store, clock, now } = left.take().unwrap_or_else(Left::nothing);
                clock.go_on(now);
                let life = self.life(&store, &clock, &sink, stop, &mut undecided);
                let (ended, counted) = match timeout(PATIENCE, life).await {
                    Ok(lived) => lived?,
                    Err(_) => return Err(format!("it hangs:{}", standing(&store).await)),
                };
                let lose = match stop {
                    Stop::Call { lose, .. } | Stop::Event { lose, .. } => lose,
                    Stop::Never | Stop::Answer { .. } => LoseTail::No,
                };
                let now = clock.now();
                let left = Left { store: Arc::new(store.fork(lose)), clock, now };
                Ok((ended, counted, left))
            });
            // What ran in it is dropped here, and nothing of it lives on beside the next life.
            drop(runtime);
            let (ended, counted, rest) = lived?;
            let first = *calls.get_or_insert(counted);
            if let Some(tried) = ended {
                return Ok(Tried { calls: first, undecided, ..tried });
            }
            left = Some(rest);
        }
        Err("the last life did not end".to_owned())
    }

    /// One life. `None` when it ended before the clients were through. Also its store calls.
    async fn life(
        &self,
        store: &Arc<MemStore>,
        clock: &Arc<PausedClock>,
        sink: &Sink,
        stop: Stop,
        undecided: &mut usize,
    ) -> Result<(Option<Tried>, u64), String> {
        let dying = match stop {
            Stop::Call { call, happens, .. } => Dying::new(store.clone(), call, happens),
            Stop::Answer { call } => Dying::without_answer(store.clone(), call),
            Stop::Never | Stop::Event { .. } => Dying::new(store.clone(), u64::MAX, true),
        };
        let dying = Arc::new(dying);
        let death = dying.death();
        let whole = async {
            let engine = self.start(&dying, clock, sink).await?;
            let bed = Bed { engine, store: store.clone() };
            let watch = watch(bed.clone(), sink.clone(), undecided);
            let end = async {
                match stop {
                    Stop::Event { event, .. } => seen(&bed, event).await,
                    Stop::Never | Stop::Call { .. } | Stop::Answer { .. } => {
                        std::future::pending().await
                    }
                }
            };
            let runs = tokio::select! {
                biased;
                () = end => return Ok(None),
                runs = self.drive(&bed) => runs?,
                never = watch => match never {},
            };
            // What comes now is looking, not living: it must not meet the disturbance.
            let outcome = Outcome::of(store, &runs, sink).await?;
            let events = outcome.events;
            Ok(Some(Tried { outcome, calls: 0, events, undecided: 0 }))
        };
        let ended = tokio::select! {
            biased;
            () = death.notified() => Ok::<_, String>(None),
            ended = whole => ended,
        }?;
        Ok((ended, dying.calls()))
    }

    async fn start(
        &self,
        store: &Arc<Dying>,
        clock: &Arc<PausedClock>,
        sink: &Sink,
    ) -> Result<Engine, String> {
        let mut tries = 0;
        loop {
            let agents = self.scenarios.iter().flat_map(|scenario| (scenario.agents)(sink));
            let options = Options { pools: self.pools.clone(), ..Options::default() };
            let store: Arc<dyn Store> = store.clone();
            let upstream = (self.upstream)();
            let started =
                Engine::start(options, store, upstream, Agents::new(agents), clock.clone()).await;
            match started {
                Ok(engine) => return Ok(engine),
                Err(error) if tries >= REPEATS => return Err(format!("no start: {error}")),
                Err(_) => tries += 1,
            }
        }
    }

    /// All clients, side by side; each repeats what failed on the way.
    async fn drive(&self, bed: &Bed) -> Result<Vec<RunId>, String> {
        let mut clients = tokio::task::JoinSet::new();
        for (n, scenario) in self.scenarios.iter().enumerate() {
            let (scenario, bed) = (scenario.clone(), bed.clone());
            clients.spawn(async move {
                let mut tries = 0;
                loop {
                    match (scenario.drive)(bed.clone()).await {
                        Ok(runs) => return Ok((n, runs)),
                        Err(error) if tries >= REPEATS => {
                            return Err(format!("{}: {error}", scenario.name));
                        }
                        Err(_) => tries += 1,
                    }
                    sleep(Duration::from_millis(100)).await;
                }
            });
        }
        let mut all = Vec::new();
        while let Some(done) = clients.join_next().await {
            all.push(done.map_err(|error| format!("a client broke: {error}"))??);
        }
        all.sort_by_key(|(n, _)| *n);
        Ok(all.into_iter().flat_map(|(_, runs)| runs).collect())
    }
}

/// What a life leaves to the next one.
struct Left {
    store: Arc<MemStore>,
    clock: Arc<PausedClock>,
    now: Timestamp,
}

impl Left {
    fn nothing() -> Self {
        let clock = PausedClock::new();
        let now = clock.now();
        Self { store: Arc::new(MemStore::new(clock.clone())), clock, now }
    }
}

/// What the runs of a store stand at, for messages.
async fn standing(store: &MemStore) -> String {
    let page = Store::runs(store, RunQuery::default()).await;
    let runs = page.map(|page| page.runs).unwrap_or_default();
    let line = |run: &RunRecord| {
        let parked = run.parked.as_ref().map(|parked| parked.park.detail.as_str());
        format!(
            "\n{} {} attempt {} superstep {} next {:?} {}",
            run.agent,
            run.status.as_str(),
            run.attempt,
            run.step,
            run.next,
            parked.unwrap_or_default()
        )
    };
    runs.iter().map(line).collect()
}

enum Never {}

/// Decides about writes that a crash left open, by what the sink saw.
async fn watch(bed: Bed, sink: Sink, undecided: &mut usize) -> Never {
    let mut decided = BTreeSet::new();
    loop {
        sleep(WATCH).await;
        let query = RunQuery { statuses: vec![Status::Waiting], ..RunQuery::default() };
        let Ok(page) = Store::runs(&*bed.store, query).await else { continue };
        for run in page.runs {
            let kind = run.parked.as_ref().map(|parked| parked.park.kind);
            if kind != Some(WaitKind::Decision) {
                continue;
            }
            let Ok(writes) = bed.engine.undecided(run.id).await else { continue };
            for write in writes {
                let decision = match sink.result(&write.idempotency_key()) {
                    Some(result) => Decision::Done(result),
                    None => Decision::Retry,
                };
                let key = write.idempotency_key();
                if bed.engine.resolve(run.id, Which::Key(&key), &decision, "sweep").await.is_ok()
                    && decided.insert((run.id, write.task, write.at.clone()))
                {
                    *undecided += 1;
                }
            }
        }
    }
}

/// Between looks for undecided writes.
const WATCH: Duration = Duration::from_millis(200);

/// Until a reader of the first run has seen so many events.
async fn seen(bed: &Bed, count: u64) {
    let run = loop {
        let page = Store::runs(&*bed.store, RunQuery::default()).await;
        match page.ok().and_then(|page| page.runs.last().map(|run| run.id)) {
            Some(run) => break run,
            None => sleep(Duration::from_millis(1)).await,
        }
    };
    let mut left = count;
    let Ok(mut subscription) = bed.engine.subscribe(run, From::Start).await else {
        return std::future::pending().await;
    };
    while let Ok(Some(batch)) = subscription.next().await {
        match left.checked_sub(batch.len() as u64) {
            Some(0) | None => return,
            Some(rest) => left = rest,
        }
    }
    std::future::pending().await
}
