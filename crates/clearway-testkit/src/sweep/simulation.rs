//! Many scenarios at once, and disturbances by a seed.

use std::fmt;
use std::sync::Arc;

use clearway_engine::PoolOptions;
use clearway_store::LoseTail;
use clearway_upstream::Upstream;

use super::bed::{Stop, Trial};
use super::{MakeUpstream, Report, Scenario, default_pools, no_upstream};

/// Runs all its scenarios on one engine and kills it again and again, at moments that a seed
/// chooses: the same seed does the same.
pub struct Simulation {
    scenarios: Vec<Scenario>,
    upstream: Arc<MakeUpstream>,
    pools: Vec<PoolOptions>,
    /// The most lives that end by a disturbance.
    lives: u64,
}

impl fmt::Debug for Simulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Simulation({:?})", self.scenarios)
    }
}

impl Simulation {
    pub fn of(scenarios: Vec<Scenario>) -> Self {
        Self { scenarios, upstream: Arc::new(no_upstream), pools: default_pools(), lives: 8 }
    }

    /// As [`Sweep::upstream`](super::Sweep::upstream).
    #[must_use]
    pub fn upstream(mut self, make: impl Fn() -> Upstream + Send + Sync + 'static) -> Self {
        self.upstream = Arc::new(make);
        self
    }

    /// As [`Sweep::pools`](super::Sweep::pools). Few slots make the runs queue.
    #[must_use]
    pub fn pools(mut self, pools: Vec<PoolOptions>) -> Self {
        self.pools = pools;
        self
    }

    /// One history per seed.
    ///
    /// # Panics
    /// When the scenarios do not even end well undisturbed.
    pub fn run(&self, seeds: impl IntoIterator<Item = u64>) -> Report {
        let undisturbed = self.trial(Vec::new());
        let expected = match undisturbed.run() {
            Ok(tried) => tried,
            Err(error) => panic!("undisturbed: {error}"),
        };
        let mut report = Report {
            name: "simulation".to_owned(),
            calls: expected.calls,
            events: expected.events,
            ..Report::default()
        };
        for seed in seeds {
            report.trials += 1;
            match self.trial(self.stops(seed, expected.calls)).run() {
                Ok(tried) => {
                    report.undecided += tried.undecided;
                    let problems = tried.outcome.differences(&expected.outcome);
                    report
                        .problems
                        .extend(problems.iter().map(|what| format!("seed {seed}: {what}")));
                }
                Err(error) => report.problems.push(format!("seed {seed}: {error}")),
            }
        }
        report
    }

    /// Where the lives of this seed end.
    fn stops(&self, seed: u64, calls: u64) -> Vec<Stop> {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let lives = 1 + random.below(self.lives);
        let stop = |random: &mut Random| {
            let call = 2 + random.below(calls);
            let lose = if random.below(2) == 0 { LoseTail::No } else { LoseTail::Yes };
            match random.below(4) {
                0 => Stop::Event { event: 1 + random.below(12), lose },
                _ => Stop::Call { call, happens: random.below(2) == 0, lose },
            }
        };
        (0..lives).map(|_| stop(&mut random)).collect()
    }

    fn trial(&self, stops: Vec<Stop>) -> Trial {
        Trial {
            scenarios: self.scenarios.clone(),
            upstream: self.upstream.clone(),
            pools: self.pools.clone(),
            stops,
        }
    }
}

/// Numbers that look random, the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % limit.max(1)
    }
}
