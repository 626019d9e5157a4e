//! Crash points, not luck: a graph's run is stopped wherever a process can die, and must resume to
//! the same end.
//!
//! A [`Scenario`] is agents and a *drive*: what clients do, written as good clients are, so that it can
//! be begun anew against a restarted server. [`Sweep::run`] first lets it end undisturbed, and then
//! many times with one disturbance each:
//! - the process dies at a store call, before or after it took effect, with and without the tail of
//!   output that a dying host loses;
//! - the process dies after each event that a reader saw;
//! - the answer of a store call is lost.
//!
//! Each time the same must come out: statuses, states, artifacts, the facts of the logs that stand,
//! one commit per superstep, logs without gaps. What the graph writes outward goes to the [`Sink`]:
//! it happens once, or the run stops undecided; then the sweep decides by what the sink saw.
//!
//! ```no_run
//! use clearway_testkit::sweep::{Scenario, Sweep};
//! # fn agent(_: &clearway_testkit::sweep::Sink) -> std::sync::Arc<clearway_engine::Agent> { unimplemented() }
//! # fn unimplemented() -> ! { std::process::abort() }
//! # fn submit() -> clearway_engine::Submit { unimplemented() }
//! let scenario = Scenario::new(
//!     "payment",
//!     |sink| vec![("pay".to_owned(), agent(sink))],
//!     |bed| Box::pin(async move {
//!         let run = bed.submit(submit()).await?;
//!         bed.wait(run).await?;
//!         Ok(vec![run])
//!     }),
//! );
//! Sweep::of(scenario).run().assert_sound();
//! ```
//!
//! [`Simulation`] is the same with many scenarios at once and several disturbances, by a seed.
//!
//! Everything is fast, because time is paused and nothing touches a disk or a socket; each try has a
//! runtime of its own, so it must be called outside of one.
//!
//! Not here: the disk and the process themselves (kill tests through the real binary).

mod bed;
mod dying;
mod outcome;
mod simulation;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use clearway_core::RunId;
use clearway_engine::{Agent, Error, PoolOptions};
use clearway_store::LoseTail;
use clearway_upstream::{Config, Upstream};
use serde_json::Value;

pub use self::bed::{Bed, PausedClock};
pub use self::dying::Dying;
pub use self::outcome::Outcome;
pub use self::simulation::Simulation;

use self::bed::{Stop, Trial, Tried};

/// What clients do, to its end; which runs count.
pub type Drive = Pin<Box<dyn Future<Output = Result<Vec<RunId>, Error>> + Send>>;

type MakeAgents = dyn Fn(&Sink) -> Vec<(String, Arc<Agent>)> + Send + Sync;
type MakeDrive = dyn Fn(Bed) -> Drive + Send + Sync;
type MakeUpstream = dyn Fn() -> Upstream + Send + Sync;

/// Agents, and what is done with them.
#[derive(Clone)]
pub struct Scenario {
    name: String,
    agents: Arc<MakeAgents>,
    drive: Arc<MakeDrive>,
}

impl fmt::Debug for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scenario({})", self.name)
    }
}

impl Scenario {
    /// `drive` is called again after each restart: it must begin anew without doing anything twice,
    /// which it gets by submitting runs under fixed ids.
    pub fn new(
        name: &str,
        agents: impl Fn(&Sink) -> Vec<(String, Arc<Agent>)> + Send + Sync + 'static,
        drive: impl Fn(Bed) -> Drive + Send + Sync + 'static,
    ) -> Self {
        Self { name: name.to_owned(), agents: Arc::new(agents), drive: Arc::new(drive) }
    }
}

/// What the outside world has seen, by idempotency key.
#[derive(Clone, Debug, Default)]
pub struct Sink(Arc<Mutex<BTreeMap<String, Seen>>>);

#[derive(Clone, Debug)]
struct Seen {
    times: u32,
    result: Value,
}

impl Sink {
    /// A write arrives under the key that [`Ctx::act`](clearway_engine::Ctx::act) gave; what it
    /// answers. It counts also when the writer never hears of that.
    pub fn write(&self, key: &str, result: Value) -> Value {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = seen.entry(key.to_owned()).or_insert(Seen { times: 0, result });
        entry.times += 1;
        entry.result.clone()
    }

    /// How often a key was written.
    pub fn times(&self, key: &str) -> u32 {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(key).map_or(0, |seen| seen.times)
    }

    fn result(&self, key: &str) -> Option<Value> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(key).map(|seen| seen.result.clone())
    }

    /// How many keys were written so often.
    fn counts(&self) -> BTreeMap<u32, usize> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut counts = BTreeMap::new();
        seen.values().for_each(|seen| *counts.entry(seen.times).or_default() += 1);
        counts
    }
}

/// Stops one scenario everywhere.
#[derive(Clone)]
pub struct Sweep {
    scenario: Scenario,
    upstream: Arc<MakeUpstream>,
    pools: Vec<PoolOptions>,
}

impl fmt::Debug for Sweep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.scenario.fmt(f)
    }
}

impl Sweep {
    pub fn of(scenario: Scenario) -> Self {
        Self { scenario, upstream: Arc::new(no_upstream), pools: default_pools() }
    }

    /// For agents that call providers.
    #[must_use]
    pub fn upstream(mut self, make: impl Fn() -> Upstream + Send + Sync + 'static) -> Self {
        self.upstream = Arc::new(make);
        self
    }

    /// The pools that the agents name (`chat`, `workflows`).
    #[must_use]
    pub fn pools(mut self, pools: Vec<PoolOptions>) -> Self {
        self.pools = pools;
        self
    }

    /// Runs it undisturbed, then with each disturbance.
    ///
    /// # Panics
    /// When it does not even end well undisturbed.
    pub fn run(&self) -> Report {
        let undisturbed = self.trial(vec![Stop::Never]);
        let expected = match undisturbed.run() {
            Ok(tried) => tried,
            Err(error) => panic!("{}: undisturbed: {error}", self.scenario.name),
        };
        let mut report = Report {
            name: self.scenario.name.clone(),
            calls: expected.calls,
            events: expected.events,
            ..Report::default()
        };
        report
            .problems
            .extend(expected.outcome.flaws.iter().map(|flaw| format!("undisturbed: {flaw}")));
        for call in 1..=expected.calls {
            for (happens, lose) in
                [(false, LoseTail::No), (true, LoseTail::No), (true, LoseTail::Yes)]
            {
                self.once(Stop::Call { call, happens, lose }, &expected, &mut report);
            }
            self.once(Stop::Answer { call }, &expected, &mut report);
        }
        for event in 1..=expected.events {
            let lose = if event % 2 == 0 { LoseTail::Yes } else { LoseTail::No };
            self.once(Stop::Event { event, lose }, &expected, &mut report);
        }
        report
    }

    fn once(&self, stop: Stop, expected: &Tried, report: &mut Report) {
        report.trials += 1;
        match self.trial(vec![stop]).run() {
            Ok(tried) => {
                report.undecided += tried.undecided;
                let problems = tried.outcome.differences(&expected.outcome);
                report.problems.extend(problems.iter().map(|what| format!("{stop:?}: {what}")));
            }
            Err(error) => report.problems.push(format!("{stop:?}: {error}")),
        }
    }

    fn trial(&self, stops: Vec<Stop>) -> Trial {
        Trial {
            scenarios: vec![self.scenario.clone()],
            upstream: self.upstream.clone(),
            pools: self.pools.clone(),
            stops,
        }
    }
}

/// What a sweep or a simulation found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub name: String,
    /// Tries with a disturbance.
    pub trials: usize,
    /// Store calls and events of the undisturbed run: where it was stopped.
    pub calls: u64,
    pub events: u64,
    /// Writes that were decided about, because a crash had left them open.
    pub undecided: usize,
    pub problems: Vec<String>,
}

impl Report {
    /// # Panics
    /// With the first problems, when there are any.
    pub fn assert_sound(&self) {
        let first: Vec<&str> = self.problems.iter().take(5).map(String::as_str).collect();
        assert!(
            first.is_empty(),
            "{}: {} problems in {} tries:\n{}",
            self.name,
            self.problems.len(),
            self.trials,
            first.join("\n")
        );
    }
}

fn no_upstream() -> Upstream {
    let config = Config { providers: Vec::new(), models: Vec::new(), clock: None };
    Upstream::new(config, std::collections::HashMap::default())
        .expect("a configuration without providers has no mistakes")
}

fn default_pools() -> Vec<PoolOptions> {
    ["chat", "workflows"].map(|name| PoolOptions::new(name, 16, 1000)).into()
}
