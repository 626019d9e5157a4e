//! Which threads there certainly are not, known without asking the database.
//!
//! Most turns open a new thread, and before such a turn may start somebody must know that the thread
//! is new. A Bloom filter of all ids answers that from memory: half a megabyte, a wrong "perhaps" for
//! fewer than one in a thousand with 100 000 threads, never a wrong "no".
//!
//! **Invariant:** an id is in here before its row is committed, so whoever has seen the row finds it.

use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::Connection;
use uuid::Uuid;

/// See the module.
#[derive(Debug)]
pub(super) struct Known {
    /// Empty when there were too many threads to look at them all; then every answer is "perhaps".
    bits: Box<[AtomicU64]>,
}

/// Bits of the filter; a power of two.
const BITS: u64 = 1 << 22;
/// Threads beyond which opening the store would take too long to count them in.
const MOST: u32 = 200_000;

impl Known {
    /// Counts in what the database has.
    pub(super) fn read(conn: &Connection) -> rusqlite::Result<Self> {
        Self::read_at_most(conn, MOST)
    }

    fn read_at_most(conn: &Connection, most: u32) -> rusqlite::Result<Self> {
        let known = Self { bits: (0..BITS / 64).map(|_| AtomicU64::new(0)).collect() };
        let mut statement = conn.prepare("SELECT id FROM threads LIMIT ?1")?;
        let mut found = statement.query([most + 1])?;
        let mut count = 0;
        while let Some(row) = found.next()? {
            count += 1;
            if let Ok(id) = Uuid::from_slice(row.get_ref(0)?.as_blob()?) {
                known.add(id);
            }
        }
        Ok(if count > most { Self { bits: Box::default() } } else { known })
    }

    /// The thread is about to exist.
    pub(super) fn add(&self, id: Uuid) {
        for place in places(id) {
            if let Some(word) = self.bits.get(place.0) {
                word.fetch_or(place.1, Ordering::Relaxed);
            }
        }
    }

    /// `false` when there certainly is no such thread.
    pub(super) fn may_have(&self, id: Uuid) -> bool {
        let set = |(word, bit): (usize, u64)| {
            self.bits.get(word).is_none_or(|word| word.load(Ordering::Relaxed) & bit != 0)
        };
        places(id).into_iter().all(set)
    }
}

/// Word and bit of each of an id's places.
fn places(id: Uuid) -> [(usize, u64); 3] {
    let (high, low) = id.as_u64_pair();
    // Ids are made of time or chosen by clients as often as at random: mixed before they are used.
    let mixed = (high ^ low.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let step = (low ^ (high >> 17)).wrapping_mul(0xc2b2_ae3d_27d4_eb4f) | 1;
    [0u64, 1, 2].map(|n| {
        let at = (mixed.wrapping_add(step.wrapping_mul(n)) >> 20) % BITS;
        ((at / 64) as usize, 1 << (at % 64))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database(ids: impl Iterator<Item = Uuid>) -> Connection {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch("CREATE TABLE threads (id BLOB NOT NULL)").unwrap();
        for id in ids {
            conn.execute("INSERT INTO threads VALUES (?1)", [&id.as_bytes()[..]]).unwrap();
        }
        conn
    }

    #[test]
    fn what_is_there_is_never_denied_and_little_else_is_suspected() {
        let made = |n: u128| Uuid::from_u128(n.wrapping_mul(0x1234_5678_9abc_def1_2345_6789));
        let counted = |n: u128| Uuid::from_u128(n);
        for id in [&made as &dyn Fn(u128) -> Uuid, &counted] {
            let known = Known::read(&database((0..1000).map(id))).unwrap();
            (1000..20_000).for_each(|n| known.add(id(n)));
            assert!((0..20_000).all(|n| known.may_have(id(n))));
            let suspected = (20_000..40_000).filter(|&n| known.may_have(id(n))).count();
            assert!(suspected < 40, "{suspected} of 20 000");
        }
    }

    #[test]
    fn with_too_many_it_says_nothing() {
        let known = Known::read_at_most(&database((0..6).map(Uuid::from_u128)), 5).unwrap();
        known.add(Uuid::from_u128(7));
        assert!(known.may_have(Uuid::from_u128(8)));
    }
}
