//! Percentiles of durations, kept as buckets so that millions cost nothing.

use std::time::Duration;

/// Durations in buckets that are at most 0.1 % wide. Half a megabyte: shared by readers, not one for each.
#[derive(Clone, Debug)]
pub(crate) struct Hist {
    buckets: Vec<u64>,
    count: u64,
    max_us: u64,
}

/// Values below `2 * HALF` have a bucket each; above, each power of two has `HALF`.
const HALF: u64 = 1024;
const HALF_BITS: u32 = HALF.trailing_zeros();

impl Default for Hist {
    fn default() -> Self {
        let slots = (64 - HALF_BITS as usize + 1) * HALF as usize;
        Self { buckets: vec![0; slots], count: 0, max_us: 0 }
    }
}

impl Hist {
    pub(crate) fn add(&mut self, duration: Duration) {
        self.add_us(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
    }

    pub(crate) fn add_us(&mut self, us: u64) {
        self.buckets[slot(us)] += 1;
        self.count += 1;
        self.max_us = self.max_us.max(us);
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
        self.max_us = self.max_us.max(other.max_us);
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// In milliseconds; `share` is 0.5 for the median. Zero when there is nothing.
    pub(crate) fn ms(&self, share: f64) -> f64 {
        self.us(share) as f64 / 1000.0
    }

    pub(crate) fn max_ms(&self) -> f64 {
        self.max_us as f64 / 1000.0
    }

    fn us(&self, share: f64) -> u64 {
        let rank = ((self.count as f64 * share).ceil() as u64).clamp(1, self.count.max(1));
        let mut seen = 0;
        for (index, n) in self.buckets.iter().enumerate() {
            seen += n;
            if seen >= rank {
                return upper(index).min(self.max_us);
            }
        }
        self.max_us
    }
}

fn slot(us: u64) -> usize {
    if us < 2 * HALF {
        return us as usize;
    }
    let shift = us.ilog2() - HALF_BITS;
    (u64::from(shift) * HALF + (us >> shift)) as usize
}

/// The largest value of a bucket.
fn upper(index: usize) -> u64 {
    let index = index as u64;
    if index < 2 * HALF {
        return index;
    }
    let shift = index / HALF - 1;
    ((index % HALF + HALF + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_what_they_say() {
        let mut last = 0;
        for us in (0..200_000).chain([1 << 30, u64::MAX / 2]) {
            let slot = slot(us);
            assert!(slot >= last, "{us}");
            last = slot;
            let upper = upper(slot);
            assert!(upper >= us && upper - us <= us / 1000 + 1, "{us}: {upper}");
        }
    }

    #[test]
    fn percentiles() {
        let mut hist = Hist::default();
        assert_eq!((hist.ms(0.5), hist.max_ms()), (0.0, 0.0));
        (1..=100).for_each(|us| hist.add_us(us));
        assert_eq!((hist.us(0.5), hist.us(0.99), hist.us(1.0)), (50, 99, 100));
        let mut other = Hist::default();
        other.add(Duration::from_millis(5));
        hist.merge(&other);
        assert_eq!((hist.count(), hist.max_ms()), (101, 5.0));
        assert!((hist.ms(1.0) - 5.0).abs() < 0.1);
    }
}
