//! Builds the next index beside the one in use.
//!
//! Changes queue; when they have been quiet for a moment, or enough have come, one blocking job
//! makes the next snapshot of the one before, and it takes its place at once for everybody who
//! searches from then on. The latent space is learned anew when enough has changed and nothing comes
//! in any more; until then new chunks are placed in the one there is.
//!
//! Not here: what a snapshot is.

use std::sync::Arc;
use std::time::Duration;

use clearway_knowledge::{Chunk, ChunkHash, Document, IndexBuilder, Learn, Stats, Triple};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{Inner, Shelf, lock};
use crate::clock::instant;

/// What is to be different in the next index.
#[derive(Debug)]
pub(crate) enum Change {
    Put(Document, Vec<Chunk>),
    Remove(Arc<str>),
    Vectors(Vec<(ChunkHash, Arc<[f32]>)>),
    Triples(Vec<(ChunkHash, Vec<Triple>)>),
    /// What was stored before the start has been told.
    Loaded,
}

/// Quiet for so long, changes are enough for an index.
const QUIET: Duration = Duration::from_millis(100);
/// Changes do not wait longer than this, or than a few times what building takes.
const LONGEST: Duration = Duration::from_secs(2);
/// Quiet for so long, it is worth learning.
const CALM: Duration = Duration::from_millis(700);
/// Changes taken into one index.
const MOST: usize = 20_000;

pub(crate) fn start(inner: &Arc<Inner>, shelf: &Arc<Shelf>) {
    let Some(changes) = lock(&shelf.changes_out).take() else { return };
    let (owner, inner, shelf) = (inner.tasks.clone(), inner.clone(), shelf.clone());
    owner.spawn(async move {
        // Either the server ends, or this source.
        let stop = shelf.stop.clone();
        let hard = inner.tasks.hard.clone();
        let end = hard.child_token();
        let work = Builder { inner, shelf, stop: end.clone(), weight: 0 }.run(changes);
        tokio::select! {
            () = stop.cancelled() => end.cancel(),
            () = work => {}
        }
    });
}

struct Builder {
    inner: Arc<Inner>,
    shelf: Arc<Shelf>,
    /// Building ends, too.
    stop: CancellationToken,
    /// Documents changed since the latent space was learned.
    weight: usize,
}

impl Builder {
    async fn run(mut self, mut changes: mpsc::Receiver<Change>) {
        let stop = self.stop.clone();
        loop {
            // With nothing to do for a while and something to learn, learn.
            let first = if self.shelf.read(|state| state.loaded && !state.learned) {
                let calm = Instant::now() + CALM;
                tokio::select! {
                    () = stop.cancelled() => return,
                    first = timeout_at(calm, changes.recv()) => first,
                }
            } else {
                tokio::select! {
                    () = stop.cancelled() => return,
                    first = changes.recv() => Ok(first),
                }
            };
            match first {
                Err(_) => self.build(Vec::new(), Learn::Anew, &stop).await,
                Ok(None) => return,
                Ok(Some(first)) => {
                    let Some(batch) = self.gather(first, &mut changes, &stop).await else { return };
                    self.build(batch, Learn::Keep, &stop).await;
                }
            }
        }
    }

    /// Changes until they pause. `None` when everything stops.
    async fn gather(
        &self,
        first: Change,
        changes: &mut mpsc::Receiver<Change>,
        stop: &CancellationToken,
    ) -> Option<Vec<Change>> {
        let took = self.shelf.read(|state| state.build_took).unwrap_or_default();
        let last = Instant::now() + LONGEST.max(took * 4);
        let mut batch = vec![first];
        while batch.len() < MOST {
            let quiet = (Instant::now() + QUIET).min(last);
            tokio::select! {
                () = stop.cancelled() => return None,
                change = timeout_at(quiet, changes.recv()) => match change {
                    Ok(Some(change)) => batch.push(change),
                    Ok(None) | Err(_) => break,
                },
            }
        }
        Some(batch)
    }

    async fn build(&mut self, batch: Vec<Change>, learn: Learn, stop: &CancellationToken) {
        let documents = batch.iter().filter(|change| !matches!(change, Change::Loaded)).count();
        let loaded = batch.iter().any(|change| matches!(change, Change::Loaded));
        self.shelf.with(|state| {
            state.building = true;
            // What comes meanwhile is for the next one.
            state.unbuilt = state.unbuilt.saturating_sub(documents);
        });
        self.weight += documents;
        let begun = instant();
        let (shelf, stop) = (self.shelf.clone(), stop.clone());
        let job = move || {
            let go_on = || !stop.is_cancelled();
            let mut builder = shelf.index.load().edit();
            for change in batch {
                if !go_on() {
                    return None;
                }
                apply(&mut builder, change);
            }
            let snapshot = builder.build(learn, &go_on).ok()?;
            let stats = snapshot.stats();
            // Here, because what the one before it leaves to be freed takes a while.
            shelf.index.store(snapshot);
            Some(stats)
        };
        let built: Option<Stats> = self.inner.behind(job).await.flatten();
        let Some(stats) = built else {
            // Either everything stops, or building panicked: what stands goes on to answer, and the
            // same is not tried again before something changes.
            if !self.stop.is_cancelled() {
                tracing::error!(
                    source = self.shelf.name,
                    "the index could not be built: its build panicked"
                );
            }
            self.shelf.with(|state| {
                state.building = false;
                state.learned = true;
            });
            return;
        };
        let (chunks, took) = (stats.chunks, instant() - begun);
        if learn == Learn::Anew {
            self.weight = 0;
        }
        // A change of a few documents among many is well placed in the old space.
        let learned = learn == Learn::Anew || self.weight * 20 < stats.documents;
        self.shelf.with(|state| {
            state.building = false;
            state.builds += 1;
            state.build_took = Some(took);
            state.learned = learned;
            state.loaded |= loaded;
        });
        tracing::debug!(
            source = self.shelf.name,
            chunks,
            changes = documents,
            ms = took.as_millis() as u64,
            anew = learn == Learn::Anew,
            "index built"
        );
    }
}

fn apply(builder: &mut IndexBuilder, change: Change) {
    match change {
        Change::Put(document, chunks) => builder.put(document, chunks),
        Change::Remove(id) => {
            builder.remove(&id);
        }
        Change::Vectors(vectors) => {
            for (hash, vector) in vectors {
                builder.vector(hash, &vector);
            }
        }
        Change::Triples(all) => {
            for (hash, triples) in all {
                builder.triples(hash, triples);
            }
        }
        Change::Loaded => {}
    }
}

impl Shelf {
    /// Hands a change to the builder; waits while too many wait already.
    pub(crate) async fn change(&self, change: Change) {
        if !matches!(change, Change::Loaded) {
            self.with(|state| state.unbuilt += 1);
        }
        // The builder ends with the server.
        let _ = self.changes.send(change).await;
    }
}
