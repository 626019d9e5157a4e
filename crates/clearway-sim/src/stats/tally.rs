//! Counting by name, by second and by call, each with a bound.

use std::collections::{BTreeMap, HashMap, VecDeque};

use serde_json::{Value, json};

/// Requests of one path, key or model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Requests that came.
    pub requests: u64,
    /// Those among them that a limit or a bad key turned away.
    pub refused: u64,
}

/// What happened within one second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Second {
    /// Which one, counted from the start of the simulator.
    pub second: u64,
    /// Requests that came.
    pub requests: u64,
    /// Those among them that were turned away.
    pub refused: u64,
    /// Tokens counted against limits.
    pub tokens: u64,
}

/// Names told apart; what comes later is counted as [`OTHERS`].
pub(super) const MAX_NAMES: usize = 64;
pub(super) const OTHERS: &str = "(others)";
/// Seconds remembered.
pub(super) const MAX_SECONDS: usize = 120;
/// Calls remembered.
const MAX_CALLS: usize = 16_384;
/// Calls that came again, shown one by one.
const MAX_REPEATED: usize = 64;

impl Tally {
    pub(super) fn to_json(self) -> Value {
        let admitted = self.requests.saturating_sub(self.refused);
        json!({"requests": self.requests, "admitted": admitted, "refused": self.refused})
    }
}

impl Second {
    pub(super) fn to_json(self) -> Value {
        let Self { second, requests, refused, tokens } = self;
        json!({"second": second, "requests": requests, "refused": refused, "tokens": tokens})
    }
}

/// The tally of a name.
pub(super) fn tally<'a>(tallies: &'a mut BTreeMap<String, Tally>, name: &str) -> &'a mut Tally {
    let known = tallies.contains_key(name) || tallies.len() < MAX_NAMES;
    tallies.entry(if known { name } else { OTHERS }.to_owned()).or_default()
}

/// The count of the second `now`, which is never before an earlier one by more than a scheduler's whim.
pub(super) fn second(seconds: &mut VecDeque<Second>, now: u64) -> &mut Second {
    while seconds.front().is_some_and(|first| first.second + MAX_SECONDS as u64 <= now) {
        seconds.pop_front();
    }
    if seconds.back().is_none_or(|last| last.second < now) {
        seconds.push_back(Second { second: now, ..Second::default() });
    }
    let last = seconds.len() - 1;
    &mut seconds[last]
}

/// Requests that belong to the same call of a client: their `x-client-request-id` is the call's, a dash, and the
/// attempt's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    seen: HashMap<String, u64>,
    /// How many calls made so many requests.
    pub by_attempts: BTreeMap<u64, u64>,
    /// Calls that made more than one, by their id.
    pub repeated: BTreeMap<String, u64>,
}

impl Calls {
    pub(super) fn count(&mut self, request_id: &str) {
        let call = request_id.rsplit_once('-').map_or(request_id, |(call, _)| call);
        if self.seen.len() >= MAX_CALLS && !self.seen.contains_key(call) {
            return;
        }
        let attempts = self.seen.entry(call.to_owned()).or_default();
        *attempts += 1;
        if let Some(calls) = self.by_attempts.get_mut(&(*attempts - 1)) {
            *calls -= 1;
        }
        self.by_attempts.retain(|_, calls| *calls > 0);
        *self.by_attempts.entry(*attempts).or_default() += 1;
        let shown = self.repeated.len() < MAX_REPEATED || self.repeated.contains_key(call);
        if *attempts > 1 && shown {
            self.repeated.insert(call.to_owned(), *attempts);
        }
    }

    /// What is worth showing: everything but the list of all calls.
    pub(super) fn summary(&self) -> Self {
        let Self { seen: _, by_attempts, repeated } = self;
        Self { seen: HashMap::new(), by_attempts: by_attempts.clone(), repeated: repeated.clone() }
    }

    pub(super) fn to_json(&self) -> Value {
        json!({"by_attempts": self.by_attempts, "repeated": self.repeated})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_a_bound() {
        let mut tallies = BTreeMap::new();
        for number in 0..100 {
            tally(&mut tallies, &number.to_string()).requests += 1;
        }
        assert_eq!((tallies.len(), tallies[OTHERS].requests), (65, 36));
    }

    #[test]
    fn two_minutes_are_remembered() {
        let mut seconds = VecDeque::new();
        for now in [0, 0, 5, 4, 119, 120] {
            second(&mut seconds, now).requests += 1;
        }
        let seen: Vec<_> = seconds.iter().map(|at| (at.second, at.requests)).collect();
        assert_eq!(seen, [(5, 2), (119, 1), (120, 1)]);
        for now in 0..1000 {
            second(&mut seconds, now).requests += 1;
        }
        assert!(seconds.len() <= MAX_SECONDS);
    }

    #[test]
    fn attempts_of_a_call_belong_together() {
        let mut calls = Calls::default();
        for id in ["a-b-1", "a-b-2", "c-1", "a-b-3", "d"] {
            calls.count(id);
        }
        assert_eq!(calls.by_attempts, BTreeMap::from([(1, 2), (3, 1)]));
        assert_eq!(calls.repeated, BTreeMap::from([("a-b".to_owned(), 3)]));
        for number in 0..2 * MAX_CALLS {
            calls.count(&format!("{number}-1"));
            calls.count(&format!("{number}-2"));
        }
        assert_eq!((calls.seen.len(), calls.repeated.len()), (MAX_CALLS, MAX_REPEATED));
    }
}
