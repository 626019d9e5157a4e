//! Vectors that were had before.
//!
//! **Invariant:** only validated vectors get in, never errors, and a vector is found again only for
//! exactly what it was made from.
//!
//! Not here: vectors that are being made ([`super::flight`]).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::Purpose;

/// What a vector is made from.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key([u8; 32]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:02x}{:02x}…)", self.0[0], self.0[1])
    }
}

impl Key {
    pub(super) fn new(
        provider: &str,
        model: &str,
        dimensions: Option<u32>,
        purpose: Purpose,
        text: &str,
    ) -> Self {
        let mut hasher = blake3::Hasher::new();
        // Lengths first, so that no part can pass for the start of the next one.
        for part in [provider, model, purpose.as_str(), text] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.update(&dimensions.unwrap_or(0).to_le_bytes());
        Self(*hasher.finalize().as_bytes())
    }
}

/// Keeps vectors for a day, and within a size.
pub(super) struct Cache(moka::sync::Cache<Key, Arc<[f32]>>);

impl Cache {
    pub(super) fn new(bytes: u64) -> Self {
        let cache = moka::sync::Cache::builder()
            .max_capacity(bytes)
            .weigher(|_, vector: &Arc<[f32]>| {
                u32::try_from(size_of_val::<[f32]>(vector) + ENTRY).unwrap_or(u32::MAX)
            })
            .time_to_live(TIME_TO_LIVE)
            .build();
        Self(cache)
    }

    pub(super) fn get(&self, key: &Key) -> Option<Arc<[f32]>> {
        self.0.get(key)
    }

    pub(super) fn put(&self, key: Key, vector: Arc<[f32]>) {
        self.0.insert(key, vector);
    }
}

pub(super) const CACHE_BYTES: u64 = 256 << 20;
const TIME_TO_LIVE: Duration = Duration::from_secs(24 * 3600);
/// What an entry takes besides its numbers, roughly.
const ENTRY: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_makes_a_vector_is_in_its_key() {
        let key = Key::new("p", "m", None, Purpose::Query, "text");
        assert!(key == Key::new("p", "m", None, Purpose::Query, "text"));
        for other in [
            Key::new("q", "m", None, Purpose::Query, "text"),
            Key::new("p", "n", None, Purpose::Query, "text"),
            Key::new("p", "m", Some(8), Purpose::Query, "text"),
            Key::new("p", "m", None, Purpose::Document, "text"),
            Key::new("p", "m", None, Purpose::Query, "Text"),
            Key::new("pm", "", None, Purpose::Query, "text"),
        ] {
            assert!(key != other);
        }
    }

    #[test]
    fn the_cache_is_bounded_by_size() {
        let cache = Cache::new(100_000);
        for number in 0..1000 {
            let key = Key::new("p", "m", None, Purpose::Query, &number.to_string());
            cache.put(key, vec![1.0; 1000].into());
            assert!(cache.get(&key).is_none_or(|vector| vector.len() == 1000));
        }
        cache.0.run_pending_tasks();
        assert!(cache.0.weighted_size() <= 100_000);
    }
}
