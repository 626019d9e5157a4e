//! Vectors from a provider, for texts that have none.
//!
//! A vector belongs to a text: it is looked up by the text's hash before anybody is asked, and kept
//! as eight-bit numbers with one factor, which is as exact as searching with them is.
//!
//! Texts whose vectors cannot be had now are asked for again later; until then they are found by
//! their words.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use clearway_core::{Code, Deadline};
use clearway_knowledge::ChunkHash;
use clearway_upstream::{CallCx, Class, EmbedRequest, Purpose};

use super::fill::{self, Filling, Missing};
use super::index::Change;
use super::shelf::{Progress, State};
use super::{Inner, Shelf};
use crate::clock::instant;

/// Texts of one call; the provider layer packs them into requests.
const BATCH: usize = 128;
/// The longest that one call may take.
const LIMIT: Duration = Duration::from_secs(120);

pub(crate) fn start(inner: &Arc<Inner>, shelf: &Arc<Shelf>) {
    if let Some(model) = shelf.embeddings.clone() {
        fill::start(inner, shelf, Embedding { model, refused: HashSet::new() });
    }
}

struct Embedding {
    model: String,
    /// Texts that the provider refuses: asking again changes nothing.
    refused: HashSet<ChunkHash>,
}

/// A text whose vector is missing.
#[derive(Clone, Debug)]
struct Wanted {
    hash: ChunkHash,
    text: Arc<str>,
}

impl Filling for Embedding {
    type Wanted = Wanted;
    const BATCH: usize = BATCH;

    fn progress(state: &mut State) -> &mut Progress {
        &mut state.vectors
    }

    async fn missing(&self, inner: &Inner, shelf: &Shelf) -> Missing<Wanted> {
        let snapshot = shelf.index.load();
        let chunks = snapshot.stats().chunks;
        let missing = inner.behind(move || snapshot.edit().without_vector()).await;
        let missing = missing.unwrap_or_default();
        let lacking = missing.len();
        let missing = missing.into_iter();
        let text = |chunk: &clearway_knowledge::Chunk| {
            // As the hash is made of: what is above a text says what it is about.
            let mut text = chunk.section_path.join(" > ");
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(&chunk.content);
            text.into()
        };
        let wanted = missing.filter(|(hash, _)| !self.refused.contains(hash));
        let wanted = wanted.map(|(hash, chunk)| Wanted { hash, text: text(&chunk) }).collect();
        Missing { wanted, chunks, lacking }
    }

    async fn settle(&mut self, inner: &Inner, shelf: &Shelf, batch: &[Wanted]) -> bool {
        let outcome = embed(inner, shelf, &self.model, batch.to_vec(), &mut self.refused).await;
        let (left, why) = match outcome {
            Ok(why) => (0, why),
            Err((left, why)) => (left.len(), Some(why)),
        };
        shelf.with(|state| {
            let done = batch.len() - left;
            state.vectors.waiting -= done.min(state.vectors.waiting);
            // All that wait share the fate.
            state.vectors.failed = if left == 0 { 0 } else { state.vectors.waiting };
            state.vectors.error.clone_from(&why);
        });
        if left > 0 {
            let why = why.unwrap_or_default();
            tracing::warn!(source = shelf.name, texts = left, "vectors are missing: {why}");
        }
        left == 0
    }
}

/// Those that must be tried again, and why.
type Left = (Vec<Wanted>, String);

/// Gets the vectors of a batch; says which text was refused, if any.
async fn embed(
    inner: &Inner,
    shelf: &Shelf,
    model: &str,
    batch: Vec<Wanted>,
    refused: &mut HashSet<ChunkHash>,
) -> Result<Option<String>, Left> {
    let hashes: Vec<[u8; 16]> = batch.iter().map(|wanted| *wanted.hash.as_bytes()).collect();
    let (known, missing) = match inner.kept().vectors(model, hashes).await {
        Ok(rows) => {
            let known: Vec<(ChunkHash, Arc<[f32]>)> = rows
                .into_iter()
                .filter_map(|(hash, bytes)| Some((ChunkHash::from_bytes(hash), unpack(&bytes)?)))
                .collect();
            let is_known = |wanted: &Wanted| known.iter().any(|(hash, _)| *hash == wanted.hash);
            let mut missing: Vec<Wanted> =
                batch.into_iter().filter(|wanted| !is_known(wanted)).collect();
            missing.sort_by_key(|wanted| wanted.hash);
            missing.dedup_by_key(|wanted| wanted.hash);
            (known, missing)
        }
        Err(error) => return Err((batch, error.to_string())),
    };
    if !known.is_empty() {
        let count = known.len();
        shelf.change(Change::Vectors(known)).await;
        shelf.with(|state| state.vectors.got(count));
    }
    if missing.is_empty() {
        return Ok(None);
    }
    let deadline = Deadline::after(instant(), LIMIT);
    let cx = CallCx { class: Class::Run, ..CallCx::new(deadline, inner.call_id("embed")) };
    let request = EmbedRequest {
        model: model.to_owned(),
        texts: missing.iter().map(|wanted| wanted.text.clone()).collect(),
        purpose: Purpose::Document,
        dimensions: None,
    };
    let answer = match inner.upstream.embed(cx, request).await {
        Ok(answer) => answer,
        Err(error) => return Err((missing, error.to_string())),
    };
    let (mut made, mut left, mut why) = (Vec::new(), Vec::new(), None);
    for (wanted, vector) in missing.into_iter().zip(answer.vectors) {
        match vector {
            Ok(vector) => made.push((wanted.hash, vector)),
            Err(error)
                if error.code() == Code::InvalidRequest
                    || error.code() == Code::UpstreamInputTooLong =>
            {
                refused.insert(wanted.hash);
                why = Some(error.to_string());
            }
            Err(error) => {
                why = Some(error.to_string());
                left.push(wanted);
            }
        }
    }
    let rows = made.iter().map(|(hash, vector)| (*hash.as_bytes(), pack(vector))).collect();
    if let Err(error) = inner.kept().keep_vectors(model, rows).await {
        tracing::warn!(source = shelf.name, "vectors could not be kept: {error}");
    }
    let count = made.len();
    shelf.change(Change::Vectors(made)).await;
    shelf.with(|state| state.vectors.got(count));
    if left.is_empty() { Ok(why) } else { Err((left, why.unwrap_or_default())) }
}

/// A factor and eight-bit numbers.
fn pack(vector: &[f32]) -> Bytes {
    let most = vector.iter().fold(0_f32, |most, value| most.max(value.abs()));
    let factor = if most > 0.0 { most / 127.0 } else { 1.0 };
    let mut bytes = BytesMut::with_capacity(4 + vector.len());
    bytes.put_f32_le(factor);
    bytes.extend(vector.iter().map(|value| ((value / factor).round() as i8).cast_unsigned()));
    bytes.freeze()
}

fn unpack(bytes: &[u8]) -> Option<Arc<[f32]>> {
    let (factor, numbers) = bytes.split_first_chunk::<4>()?;
    let factor = f32::from_le_bytes(*factor);
    (!numbers.is_empty())
        .then(|| numbers.iter().map(|number| f32::from(number.cast_signed()) * factor).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_come_back_almost_as_they_were() {
        let vector: Vec<f32> = (0..256_u16).map(|at| (f32::from(at) * 0.7).sin() * 3.0).collect();
        let back = unpack(&pack(&vector)).unwrap();
        for (one, other) in vector.iter().zip(back.iter()) {
            assert!((one - other).abs() <= 3.0 / 254.0 + 1e-6);
        }
        assert_eq!(unpack(&pack(&[0.0, 0.0])).unwrap()[..], [0.0, 0.0]);
        assert_eq!(unpack(&[]), None);
        assert_eq!(unpack(&[0, 0, 0, 0]), None);
    }
}
