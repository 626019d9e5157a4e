//! Chance for delays: SplitMix64, so that a seed gives the same delays on every machine. Not for
//! anything secret.

use std::time::Duration;

#[derive(Debug)]
pub(crate) struct Jitter(u64);

impl Jitter {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// `duration`, longer or shorter by up to `share` of it.
    pub(crate) fn spread(&mut self, duration: Duration, share: f64) -> Duration {
        let factor = share.mul_add(2.0 * self.fraction() - 1.0, 1.0);
        duration.mul_f64(factor.max(0.0))
    }

    /// Anything from nothing to `most`.
    pub(crate) fn below(&mut self, most: Duration) -> Duration {
        most.mul_f64(self.fraction())
    }

    /// A number below `count`, which is not 0.
    pub(crate) fn index(&mut self, count: usize) -> usize {
        ((self.fraction() * count as f64) as usize).min(count.saturating_sub(1))
    }

    /// In `0.0..1.0`.
    fn fraction(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        // 53 bits are what a double holds exactly, so 1.0 cannot come out.
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_spread_evenly_and_repeatably() {
        let (mut one, mut same) = (Jitter::new(7), Jitter::new(7));
        let second = Duration::from_secs(1);
        let mut sum = 0.0;
        for _ in 0..1000 {
            let delay = one.spread(second, 0.2);
            assert_eq!(delay, same.spread(second, 0.2));
            assert!((0.8..1.2).contains(&delay.as_secs_f64()));
            sum += delay.as_secs_f64();
        }
        assert!((sum / 1000.0 - 1.0).abs() < 0.01);
    }
}
