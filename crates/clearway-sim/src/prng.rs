//! The one source of chance: SplitMix64, keyed by a seed and a request number.
//!
//! The same seed and the same order of requests give the same jitter and the same faults, on every machine. Not for
//! anything secret.

/// A stream of pseudo-random numbers (SplitMix64).
#[derive(Clone, Debug)]
pub(crate) struct Prng {
    state: u64,
}

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

impl Prng {
    /// The stream that starts at `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The stream of one request. Neighbouring numbers give unrelated streams, because the number is mixed first.
    pub(crate) fn for_request(seed: u64, number: u64) -> Self {
        let mut numbers = Self::new(number.wrapping_mul(GOLDEN));
        Self::new(seed ^ numbers.next_u64())
    }

    /// The next number.
    pub(crate) fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// The next number in `0.0..1.0`.
    pub(crate) fn next_f64(&mut self) -> f64 {
        // 53 bits are what a double holds exactly, so 1.0 cannot come out.
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// The next number in `0..bound`, and 0 for a bound of 0. The bias is below 2^-32 for the small bounds used here.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_published_sequence() {
        // The first outputs of SplitMix64 for this seed, as printed by its reference implementation.
        let mut prng = Prng::new(1_234_567);
        let first: Vec<u64> = (0..5).map(|_| prng.next_u64()).collect();
        assert_eq!(
            first,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423,
                4_593_380_528_125_082_431,
                16_408_922_859_458_223_821,
            ]
        );
    }

    #[test]
    fn request_streams_repeat_and_differ() {
        let draw = |seed, number| Prng::for_request(seed, number).next_u64();
        assert_eq!(draw(7, 3), draw(7, 3));
        assert_ne!(draw(7, 3), draw(7, 4));
        assert_ne!(draw(7, 3), draw(8, 3));
    }

    #[test]
    fn fractions_and_bounds_stay_inside_and_are_spread() {
        let mut prng = Prng::new(42);
        let mean = (0..10_000).map(|_| prng.next_f64()).sum::<f64>() / 10_000.0;
        assert!((0.48..0.52).contains(&mean), "{mean}");
        let mut seen = [0_u32; 5];
        for _ in 0..5_000 {
            seen[usize::try_from(prng.below(5)).unwrap()] += 1;
        }
        assert!(seen.iter().all(|count| (850..1150).contains(count)), "{seen:?}");
        assert_eq!(prng.below(0), 0);
    }
}
