//! How many calls a model bears at once, found out by trying.
//!
//! One more after as many clean answers as are allowed, half after a sign of pressure, and a memory
//! of the number that hurt: up to it the way is quick, beyond it the attempts become rarer each time
//! they fail. So a provider with a hidden cap is asked for a little less than it, nearly always.
//!
//! Invariant: `1 <= limit() <= cap`.

use std::time::{Duration, Instant};

#[derive(Debug)]
pub(super) struct Aimd {
    limit: usize,
    cap: usize,
    /// Clean answers since the limit changed.
    clean: usize,
    ceiling: Option<Ceiling>,
    /// Below this each clean answer counts for one more.
    fast_below: usize,
    last_cut: Option<Instant>,
}

/// The number of calls at once that hurt last.
#[derive(Clone, Copy, Debug)]
struct Ceiling {
    hurt: usize,
    /// How often in a row.
    times: u32,
}

impl Aimd {
    pub(super) fn new(start: usize, cap: usize) -> Self {
        let cap = cap.max(1);
        let limit = start.clamp(1, cap);
        Self { limit, cap, clean: 0, ceiling: None, fast_below: 0, last_cut: None }
    }

    pub(super) const fn limit(&self) -> usize {
        self.limit
    }

    /// An answer of a call that began at `began` is whole, and `in_flight` calls were there with it.
    pub(super) fn clean(&mut self, began: Instant, in_flight: usize) {
        // A limit that was not in use has not been tried, and one from before the cut is another.
        let tried = in_flight >= self.limit && self.last_cut.is_none_or(|cut| began >= cut);
        if !tried || self.limit >= self.cap {
            return;
        }
        self.clean += 1;
        let needed = match self.ceiling {
            Some(Ceiling { hurt, times }) if self.limit + 1 == hurt => {
                self.limit.saturating_mul(PATIENCE << times)
            }
            _ if self.limit < self.fast_below => 1,
            _ => self.limit,
        };
        if self.clean < needed {
            return;
        }
        if self.ceiling.is_some_and(|it| it.hurt <= self.limit) {
            // What hurt then does not hurt any more.
            self.ceiling = None;
        }
        self.limit += 1;
        self.clean = 0;
    }

    /// The call that began at `began` was refused or kept waiting, as one of `in_flight`.
    pub(super) fn pressure(&mut self, began: Instant, in_flight: usize, now: Instant) {
        let stale = |cut: Instant| began < cut || now < cut + SETTLING;
        if self.last_cut.is_some_and(stale) {
            return;
        }
        // Pressure while most of the limit is idle has other reasons than their number.
        let is_ours = in_flight.saturating_mul(2) >= self.limit;
        let from = if is_ours { self.limit.min(in_flight) } else { self.limit };
        if is_ours {
            let again = self.ceiling.filter(|it| it.hurt == from);
            let times = again.map_or(1, |it| (it.times + 1).min(MAX_TIMES));
            self.ceiling = Some(Ceiling { hurt: from, times });
        }
        self.limit = (from / 2).max(1);
        self.clean = 0;
        self.last_cut = Some(now);
    }

    /// Starts over from one, quickly up to half of what was reached before.
    pub(super) fn restart(&mut self) {
        self.fast_below = (self.limit / 2).max(self.fast_below);
        self.limit = 1;
        self.clean = 0;
    }
}

/// At most one cut in this time: the answers of one burst are one sign.
const SETTLING: Duration = Duration::from_secs(1);
/// Rounds of clean answers before the first attempt beyond what hurt, halved.
const PATIENCE: usize = 16;
const MAX_TIMES: u32 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_only_while_in_use_and_never_beyond_its_cap() {
        let now = Instant::now();
        let mut aimd = Aimd::new(2, 4);
        aimd.clean(now, 1);
        aimd.clean(now, 1);
        assert_eq!(aimd.limit(), 2, "not in use");
        aimd.clean(now, 2);
        aimd.clean(now, 2);
        assert_eq!(aimd.limit(), 3);
        for _ in 0..100 {
            aimd.clean(now, 9);
        }
        assert_eq!(aimd.limit(), 4);
    }

    #[test]
    fn a_burst_of_refusals_is_one_cut() {
        let start = Instant::now();
        let mut aimd = Aimd::new(64, 64);
        for in_flight in (40..64).rev() {
            aimd.pressure(start, in_flight, start);
        }
        assert_eq!(aimd.limit(), 31);
        let later = start + Duration::from_secs(5);
        aimd.pressure(start - Duration::from_millis(1), 31, later);
        assert_eq!(aimd.limit(), 31, "that call began before the cut");
        aimd.pressure(later, 4, later);
        assert_eq!(aimd.limit(), 15, "few calls: halved, and not remembered");
        assert_eq!(aimd.ceiling.unwrap().hurt, 63);
        for second in 1..20 {
            let now = later + Duration::from_secs(second);
            aimd.pressure(now, 1, now);
        }
        assert_eq!(aimd.limit(), 1);
    }

    #[test]
    fn what_hurt_is_tried_ever_more_rarely_and_forgotten_once_it_holds() {
        let mut now = Instant::now();
        let mut aimd = Aimd::new(8, 64);
        let mut waits = Vec::new();
        for _ in 0..7 {
            aimd.pressure(now, 8, now);
            assert_eq!(aimd.limit(), 4);
            now += Duration::from_secs(2);
            let mut answers = 0;
            while aimd.limit() < 8 {
                aimd.clean(now, aimd.limit());
                answers += 1;
            }
            waits.push(answers);
        }
        let way = 4 + 5 + 6;
        assert_eq!(waits, [32, 64, 128, 256, 512, 512, 512].map(|rounds| way + 7 * rounds));
        for _ in 0..8 + 9 {
            aimd.clean(now, 99);
        }
        assert_eq!(aimd.limit(), 10);
    }

    #[test]
    fn a_restart_is_quick_at_first() {
        let now = Instant::now();
        let mut aimd = Aimd::new(10, 10);
        aimd.restart();
        let mut answers = 0;
        while aimd.limit() < 10 {
            aimd.clean(now, aimd.limit());
            answers += 1;
        }
        assert_eq!(answers, 4 + 5 + 6 + 7 + 8 + 9);
    }
}
