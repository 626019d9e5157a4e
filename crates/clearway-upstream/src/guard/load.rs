//! How busy and how slow a route is: what a call goes by where several routes are equals.
//!
//! The cost of a route is a moving average of the time to the first output, times the calls that are
//! under way there, this one included. The average jumps up at once and comes down slowly, so that a
//! route that became slow is avoided after one call and not after ten. Of two routes drawn at random
//! the cheaper one is taken: all callers together then neither flock to the same one nor need to know
//! of each other.
//!
//! Not here: routes that may not be asked at all (breakers, keys), and what comes after a failure.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::jitter::Jitter;

/// Clones share everything.
#[derive(Clone, Debug)]
pub(crate) struct Load(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    under_way: usize,
    /// Seconds; `None` before the first answer.
    average: Option<f64>,
    at: Instant,
}

/// A [`Load`] at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadView {
    pub under_way: usize,
    /// To the first output, lately; `None` while nobody knows.
    pub first_output_ms: Option<u64>,
    /// What one more call would cost, in milliseconds: the cheaper of two is asked.
    pub cost_ms: u64,
}

/// One call under way; it is over when this is dropped.
#[derive(Debug)]
pub(crate) struct Underway(Load);

impl Load {
    pub(crate) fn new(now: Instant) -> Self {
        Self(Arc::new(Mutex::new(State { under_way: 0, average: None, at: now })))
    }

    pub(crate) fn begin(&self) -> Underway {
        self.lock().under_way += 1;
        Underway(self.clone())
    }

    /// A call's first output took so long.
    pub(crate) fn answered(&self, took: Duration, now: Instant) {
        self.lock().add(took.as_secs_f64(), now);
    }

    /// A call failed by the route's fault: however quick that was, it is no recommendation.
    pub(crate) fn failed(&self, took: Duration, now: Instant) {
        let mut state = self.lock();
        let known = 2.0 * state.average_at(now).unwrap_or_default();
        state.add(took.as_secs_f64().max(known).clamp(LEAST_PENALTY, MOST_PENALTY), now);
    }

    /// What one more call costs here. A route of which nothing is known is tried, by one call.
    pub(crate) fn cost(&self, now: Instant) -> f64 {
        let state = self.lock();
        let unknown = if state.under_way == 0 { LEAST } else { FIRST_ANSWER };
        state.average_at(now).unwrap_or(unknown) * (state.under_way + 1) as f64
    }

    pub(crate) fn under_way(&self) -> usize {
        self.lock().under_way
    }

    /// Seconds to the first output as it was lately, however long ago.
    pub(crate) fn latest(&self) -> Option<f64> {
        self.lock().average.map(|average| average.max(LEAST))
    }

    pub(crate) fn view(&self, now: Instant) -> LoadView {
        let cost = self.cost(now);
        let state = self.lock();
        let millis = |seconds: f64| (seconds * 1e3) as u64;
        LoadView {
            under_way: state.under_way,
            first_output_ms: state.average_at(now).map(millis),
            cost_ms: millis(cost),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.0.lock().under_way -= 1;
    }
}

impl State {
    fn add(&mut self, sample: f64, now: Instant) {
        let average = match self.average {
            Some(average) if sample < average => {
                let weight = self.kept(now);
                average * weight + sample * (1.0 - weight)
            }
            // The peak counts at once.
            _ => sample,
        };
        (self.average, self.at) = (Some(average), now);
    }

    /// The average fades while nobody asks, so that a route that was slow once is tried again.
    fn average_at(&self, now: Instant) -> Option<f64> {
        let average = self.average?;
        let faded = if self.under_way == 0 { average * self.kept(now) } else { average };
        Some(faded.max(LEAST))
    }

    /// The share of what was known that still counts.
    fn kept(&self, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        (-passed / FADES).exp()
    }
}

/// The order in which equals are asked: the cheaper of two drawn at random, then the others, the
/// cheapest first. `costs` are those of the routes that may be asked; the answer has their indices.
pub(crate) fn order(costs: &[f64], jitter: &mut Jitter) -> Vec<usize> {
    let mut order: Vec<usize> = (0..costs.len()).collect();
    if costs.len() < 2 {
        return order;
    }
    let one = jitter.index(costs.len());
    let other = (one + 1 + jitter.index(costs.len() - 1)) % costs.len();
    let first = if costs[other] < costs[one] { other } else { one };
    order.sort_by(|&a, &b| {
        (a != first, costs[a])
            .partial_cmp(&(b != first, costs[b]))
            .unwrap_or(std::cmp::Ordering::Equal)
    });
    order
}

/// Which of these a conversation belongs to: the same one as long as it is there, whoever joins or
/// leaves, and each gets so many as its weight says.
pub(crate) fn home<'a>(
    conversation: &str,
    all: impl Iterator<Item = (&'a str, f64)>,
) -> Option<usize> {
    let score = |name: &str, weight: f64| {
        let mut hash = blake3::Hasher::new();
        hash.update(name.as_bytes()).update(&[0]).update(conversation.as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hash.finalize().as_bytes()[..8]);
        // Above 0 and below 1.
        let drawn = ((u64::from_le_bytes(first) >> 12) as f64 + 0.5) / (1_u64 << 52) as f64;
        -drawn.ln() / weight
    };
    let scored = all.enumerate().map(|(at, (name, weight))| (score(name, weight), at));
    scored.min_by(|one, other| one.0.total_cmp(&other.0)).map(|(_, at)| at)
}

/// Seconds after which a third is left of what was known.
const FADES: f64 = 10.0;
/// Seconds; what is quicker than this is all the same.
const LEAST: f64 = 0.001;
/// Seconds that a route is thought to take while its first call is under way.
const FIRST_ANSWER: f64 = 1.0;
const LEAST_PENALTY: f64 = 1.0;
const MOST_PENALTY: f64 = 60.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn conversations_have_a_home_by_weight_and_keep_it() {
        let all = [("a", 1.0), ("b", 1.0), ("c", 2.0)];
        let homes: Vec<usize> =
            (0..4000).map(|n| home(&format!("t{n}"), all.into_iter()).unwrap()).collect();
        let of = |at: usize| homes.iter().filter(|home| **home == at).count();
        assert!(
            (850..1150).contains(&of(0)) && (850..1150).contains(&of(1)),
            "{} {}",
            of(0),
            of(1)
        );
        // Without `b` only those who were there go elsewhere.
        for (n, known) in homes.iter().enumerate().filter(|(_, home)| **home != 1) {
            let now = home(&format!("t{n}"), [all[0], all[2]].into_iter()).unwrap();
            assert_eq!([0, 2][now], *known);
        }
        assert_eq!(home("t", std::iter::empty()), None);
    }

    #[test]
    fn slowness_counts_at_once_and_fades() {
        let begin = Instant::now();
        let load = Load::new(begin);
        load.answered(millis(100), begin);
        load.answered(millis(2000), begin);
        assert_eq!(load.view(begin).first_output_ms, Some(2000));
        // Quick answers bring it down slowly, as long as calls are under way.
        let call = load.begin();
        let mut now = begin;
        for _ in 0..5 {
            now += Duration::from_secs(1);
            load.answered(millis(100), now);
        }
        let known = load.view(now).first_output_ms.unwrap();
        assert!((1200..1400).contains(&known), "{known}");
        assert_eq!(load.view(now + Duration::from_secs(30)).first_output_ms, Some(known));
        drop(call);
        assert!(load.view(now + Duration::from_secs(30)).first_output_ms < Some(100));
        // A quick failure is worse than a slow answer.
        load.failed(millis(1), now);
        assert!(load.view(now).first_output_ms > Some(2000));
    }

    #[test]
    fn each_call_under_way_makes_the_next_one_dearer() {
        let now = Instant::now();
        let load = Load::new(now);
        load.answered(millis(100), now);
        let calls = [load.begin(), load.begin()];
        assert_eq!((load.view(now).under_way, load.view(now).cost_ms), (2, 300));
        drop(calls);
        assert_eq!((load.view(now).under_way, load.view(now).cost_ms), (0, 100));
    }

    #[test]
    fn the_cheaper_of_two_is_asked_first_and_the_dearest_never() {
        let mut jitter = Jitter::new(3);
        let mut first = [0; 3];
        for _ in 0..3000 {
            let order = order(&[0.1, 0.2, 0.9], &mut jitter);
            first[order[0]] += 1;
            let mut all = order.clone();
            all.sort_unstable();
            assert_eq!(all, [0, 1, 2]);
            assert!(order[1] < order[2], "behind the first, the cheapest comes first");
        }
        // Two of the three pairs have the cheapest, the third one has the second.
        assert!((1900..2100).contains(&first[0]) && first[2] == 0, "{first:?}");
        assert_eq!(order(&[], &mut jitter), [0; 0]);
        assert_eq!(order(&[1.0], &mut jitter), [0]);
    }

    #[test]
    fn equal_routes_get_equal_shares() {
        let now = Instant::now();
        let loads = [Load::new(now), Load::new(now), Load::new(now)];
        let mut jitter = Jitter::new(1);
        let mut under_way = Vec::new();
        for _ in 0..300 {
            let costs: Vec<f64> = loads.iter().map(|load| load.cost(now)).collect();
            under_way.push(loads[order(&costs, &mut jitter)[0]].begin());
        }
        for load in &loads {
            let count = load.view(now).under_way;
            assert!((97..=103).contains(&count), "{count}");
        }
    }
}
