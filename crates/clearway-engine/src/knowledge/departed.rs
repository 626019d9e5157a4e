//! What models made of texts that no document has any more, for as long as the server runs.
//!
//! The store drops it with the last document that has the text, and the index goes on to know it. A
//! file that was only renamed or away for a while comes back to its old texts: then what was paid for
//! is stored again, before a restart asks for it anew.
//!
//! **Invariant:** it has no more than [`MOST_BYTES`]; the oldest goes first.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Mutex;

use bytes::Bytes;
use uuid::Uuid;

use super::{Inner, Shelf, lock, triples};

type Hash = clearway_store::ChunkHash;

/// Of one source: vectors of some forty thousand texts.
const MOST_BYTES: usize = 64 << 20;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Departed(Mutex<Rows>);

#[derive(Debug, Default)]
struct Rows {
    /// By text: what it is kept under, and what was made of it.
    made: HashMap<Hash, Vec<(String, Bytes)>>,
    /// Oldest first; some may have come back.
    order: VecDeque<Hash>,
    bytes: usize,
}

impl Rows {
    fn put(&mut self, hash: Hash, kept_as: &str, made: Bytes, most: usize) {
        let of_text = self.made.entry(hash).or_default();
        if of_text.iter().any(|(name, _)| name == kept_as) {
            return;
        }
        if of_text.is_empty() {
            self.order.push_back(hash);
        }
        self.bytes += made.len();
        of_text.push((kept_as.to_owned(), made));
        while self.bytes > most
            && let Some(oldest) = self.order.pop_front()
        {
            self.take(oldest);
        }
        if self.order.len() > 2 * self.made.len() + 1000 {
            let mut seen = HashSet::new();
            self.order.retain(|hash| self.made.contains_key(hash) && seen.insert(*hash));
        }
    }

    fn take(&mut self, hash: Hash) -> Vec<(String, Bytes)> {
        let made = self.made.remove(&hash).unwrap_or_default();
        self.bytes -= made.iter().map(|(_, made)| made.len()).sum::<usize>();
        made
    }
}

impl Shelf {
    /// Names under which the store keeps what models make of this source's texts.
    fn kept_as(&self) -> Vec<String> {
        let triples = self.triples.as_deref().map(triples::kept_as);
        self.embeddings.iter().cloned().chain(triples).collect()
    }
}

impl Inner {
    /// Before stored documents go, or become others: takes down what was made of their texts, but for
    /// those that `stay`. What cannot be read is asked for again when it is wanted.
    pub(super) async fn take_down(&self, shelf: &Shelf, documents: &[Uuid], stay: &[Hash]) {
        let names = shelf.kept_as();
        if names.is_empty() {
            return;
        }
        let stay: HashSet<&Hash> = stay.iter().collect();
        for id in documents {
            let Ok(Some((_, content))) = self.kept().document(*id).await else { continue };
            let hashes = content.chunks.iter().map(|chunk| chunk.hash);
            let hashes: Vec<Hash> = hashes.filter(|hash| !stay.contains(hash)).collect();
            for name in &names {
                let Ok(rows) = self.kept().vectors(name, hashes.clone()).await else { continue };
                let mut departed = lock(&shelf.departed.0);
                rows.into_iter()
                    .for_each(|(hash, made)| departed.put(hash, name, made, MOST_BYTES));
            }
        }
    }

    /// Stores again what was made of the texts of a document that is there now.
    pub(super) async fn bring_back(&self, shelf: &Shelf, hashes: &[Hash]) {
        let mut rows: HashMap<String, Vec<(Hash, Bytes)>> = HashMap::new();
        {
            let mut departed = lock(&shelf.departed.0);
            for hash in hashes {
                for (name, made) in departed.take(*hash) {
                    rows.entry(name).or_default().push((*hash, made));
                }
            }
        }
        for (name, rows) in rows {
            if let Err(error) = self.kept().keep_vectors(&name, rows).await {
                tracing::warn!(source = shelf.name, "vectors could not be kept: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_first_and_what_comes_back_makes_room() {
        let mut rows = Rows::default();
        let made = |byte: u8| Bytes::from(vec![byte; 10]);
        for n in 0..5 {
            rows.put([n; 16], "m", made(n), 30);
            rows.put([n; 16], "m", made(n), 30);
        }
        assert_eq!((rows.bytes, rows.made.len()), (30, 3));
        assert!(rows.take([1; 16]).is_empty(), "the oldest are gone");
        assert_eq!(rows.take([3; 16]), [("m".to_owned(), made(3))]);
        rows.put([9; 16], "m", made(9), 30);
        assert_eq!((rows.bytes, rows.made.len()), (30, 3));
        for _ in 0..5000 {
            rows.put([7; 16], "m", made(7), 30);
            rows.take([7; 16]);
        }
        assert!(rows.order.len() < 2000, "coming and going leaves nothing behind");
    }
}
