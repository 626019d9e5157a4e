//! One source: its index, and how far its documents are.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use clearway_core::Timestamp;
use clearway_ingest::protocol::Trouble;
use clearway_knowledge::{ChunkOptions, Index};
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::departed::Departed;
use super::index::Change;
use super::{SourceContent, SourceOptions, UPLOADS, UploadOptions, lock};
use crate::clock::{Clocks, instant};

/// See the module.
#[derive(Debug)]
pub(crate) struct Shelf {
    pub name: String,
    /// Of its documents in the store.
    pub tenant: &'static str,
    pub content: Option<SourceContent>,
    /// As configured; nothing for uploads.
    pub source: Option<SourceOptions>,
    /// Its tasks end.
    pub stop: CancellationToken,
    pub chunk: ChunkOptions,
    pub embeddings: Option<String>,
    pub rerank: Option<String>,
    pub triples: Option<String>,
    pub index: Index,
    pub departed: Departed,
    /// Documents have changed, or somebody asked to look.
    pub wake: Notify,
    pub read_all: AtomicBool,
    /// To the task that builds; taken by it.
    pub changes: mpsc::Sender<Change>,
    pub changes_out: Mutex<Option<mpsc::Receiver<Change>>>,
    /// Grows with every change of `state`.
    pub moved: watch::Sender<u64>,
    state: Mutex<State>,
    /// Held by whoever writes a document that another may be writing, too: from reading what is stored until it is
    /// replaced. A document of an upload is written by its reader and by its owner.
    pub writing: tokio::sync::Mutex<()>,
}

/// How far a shelf is.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// What was stored before the start is in the index.
    pub loaded: bool,
    pub phase: Phase,
    /// Of the look at the documents that is under way, or the last one.
    pub total: usize,
    pub done: usize,
    pub changed: usize,
    pub removed: usize,
    pub begun: Option<Instant>,
    pub took: Option<Duration>,
    pub last_scan: Option<Timestamp>,
    /// Which folder it was that was looked at: device, number, and when it was made.
    pub folder: Option<(u64, u64, Option<SystemTime>)>,
    /// How many looks were begun, and how many ended.
    pub scans_wanted: u64,
    pub scans_done: u64,
    /// Why the source as a whole cannot be looked at.
    pub problem: Option<String>,
    /// By document.
    pub failures: BTreeMap<String, Trouble>,
    /// What readers noted about documents that were read.
    pub notes: BTreeMap<String, Vec<String>>,
    /// Changes that are in no index yet.
    pub unbuilt: usize,
    pub building: bool,
    pub builds: u64,
    pub build_took: Option<Duration>,
    /// The latent space is younger than the last great change.
    pub learned: bool,
    pub vectors: Progress,
    pub triples: Progress,
}

/// How far something is that texts can lack.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Texts that somebody was asked about since the start.
    pub made: u64,
    /// Chunks in the index that was looked at, and those whose text still lacks it.
    pub chunks: usize,
    pub lacking: usize,
    /// Texts that it is wanted for.
    pub waiting: usize,
    /// Of those that wait, how many were tried in vain.
    pub failed: usize,
    /// The build after which somebody looked which are missing.
    pub looked_at: u64,
    pub error: Option<String>,
}

impl Progress {
    /// So many texts have it now.
    pub(super) fn got(&mut self, texts: usize) {
        self.lacking = self.lacking.saturating_sub(texts);
    }

    /// Of so many chunks that are there now, how many have it.
    fn filled(&self, chunks: usize) -> usize {
        self.chunks.saturating_sub(self.lacking).min(chunks)
    }

    /// Not tried in vain yet.
    fn untried(&self) -> usize {
        self.waiting.saturating_sub(self.failed)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Reads what earlier processes stored.
    #[default]
    Loading,
    /// Looks which documents there are.
    Scanning,
    /// Reads those that changed.
    Reading,
    Idle,
}

impl Phase {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Scanning => "scanning",
            Self::Reading => "reading",
            Self::Idle => "idle",
        }
    }
}

/// Changes that may wait for the builder; whoever has more waits.
const CHANGES: usize = 512;
/// Troubles that are shown.
const SHOWN: usize = 200;

impl Shelf {
    pub(crate) fn configured(name: &str, source: &SourceOptions) -> Self {
        let content = Some(source.content.clone());
        Self {
            source: Some(source.clone()),
            rerank: source.rerank.clone(),
            triples: source.triples.clone().filter(|_| source.graph),
            ..Self::new(name, content, source.chunk, source.embeddings.clone())
        }
    }

    pub(crate) fn uploads(options: &UploadOptions) -> Self {
        let rerank = options.rerank.clone();
        Self { rerank, ..Self::new(UPLOADS, None, options.chunk, options.embeddings.clone()) }
    }

    fn new(
        name: &str,
        content: Option<SourceContent>,
        chunk: ChunkOptions,
        embeddings: Option<String>,
    ) -> Self {
        let (changes, changes_out) = mpsc::channel(CHANGES);
        let state = State { scans_wanted: 1, ..State::default() };
        Self {
            name: name.to_owned(),
            tenant: "",
            content,
            source: None,
            stop: CancellationToken::new(),
            chunk,
            embeddings,
            rerank: None,
            triples: None,
            index: Index::default(),
            departed: Departed::default(),
            wake: Notify::new(),
            read_all: AtomicBool::new(false),
            changes,
            changes_out: Mutex::new(Some(changes_out)),
            moved: watch::channel(0).0,
            state: Mutex::new(state),
            writing: tokio::sync::Mutex::default(),
        }
    }

    /// How documents are read and cut here: when this changes, all are read again.
    pub(crate) fn recipe(&self) -> String {
        let ChunkOptions { max_tokens, overlap_tokens } = self.chunk;
        format!("{READING}/{max_tokens}/{overlap_tokens}")
    }

    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let outcome = change(&mut lock(&self.state));
        self.moved.send_modify(|moved| *moved += 1);
        outcome
    }

    pub(crate) fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&lock(&self.state))
    }

    pub(crate) fn refresh(&self, all: bool) {
        if all {
            self.read_all.store(true, Ordering::Relaxed);
        }
        self.with(|state| state.scans_wanted += 1);
        self.wake.notify_one();
    }

    /// Waits until what was stored before the start can be searched.
    pub(crate) async fn loaded(&self) {
        self.until(|state| state.loaded).await;
    }

    /// Waits until nothing is left to do.
    pub(crate) async fn settled(&self) {
        self.until(|state| self.is_settled(state)).await;
    }

    pub(crate) async fn until(&self, done: impl Fn(&State) -> bool) {
        let mut moved = self.moved.subscribe();
        while !self.read(&done) {
            if moved.changed().await.is_err() {
                return;
            }
        }
    }

    fn is_settled(&self, state: &State) -> bool {
        state.is_settled(self.embeddings.is_some(), self.triples.is_some())
    }

    /// Whether more documents may be found soon.
    pub(crate) fn is_reading(&self) -> bool {
        self.read(|state| state.phase != Phase::Idle || state.unbuilt > 0 || state.building)
    }

    /// For people and programs.
    pub(crate) fn status(&self, clocks: &Clocks) -> Value {
        let snapshot = self.index.load();
        let stats = snapshot.stats();
        let state = lock(&self.state);
        // What is wrong with an upload is its owner's business, who is told beside the file.
        let shown = if self.content.is_some() { SHOWN } else { 0 };
        let failures: Vec<Value> = state
            .failures
            .iter()
            .take(shown)
            .map(|(path, trouble)| {
                json!({"path": path, "kind": trouble.kind.as_str(), "message": trouble.message})
            })
            .collect();
        let notes: Vec<Value> = state
            .notes
            .iter()
            .take(shown)
            .map(|(path, notes)| json!({"path": path, "notes": notes}))
            .collect();
        let (folder, watched) = match &self.content {
            Some(SourceContent::Folder { path, watch, .. }) => {
                (Some(path.display().to_string()), *watch)
            }
            Some(SourceContent::BuiltIn(_)) | None => (None, false),
        };
        let running = state.begun.filter(|_| state.phase != Phase::Idle);
        let vectors = self.embeddings.as_ref().map(|model| {
            json!({
                "model": model,
                "embedded": state.vectors.filled(stats.chunks),
                "waiting": state.vectors.untried(),
                "failed": state.vectors.failed,
                "error": state.vectors.error,
            })
        });
        let triples = self.triples.as_ref().map(|model| {
            json!({
                "model": model,
                "texts": state.triples.made,
                "waiting": state.triples.untried(),
                "failed": state.triples.failed,
                "error": state.triples.error,
            })
        });
        json!({
            "source": self.name,
            "folder": folder,
            "watched": watched,
            "phase": state.phase.as_str(),
            "settled": self.is_settled(&state),
            "documents": stats.documents,
            "chunks": stats.chunks,
            "terms": stats.terms,
            "index_bytes": stats.index_bytes,
            "text_bytes": stats.text_bytes,
            "progress": {
                "done": state.done,
                "total": state.total,
                "changed": state.changed,
                "removed": state.removed,
                "seconds": running.map(|begun| (instant() - begun).as_secs_f64()),
            },
            "last_scan_at": state.last_scan.map(|at| at.to_string()),
            "last_scan_seconds": state.took.map(|took| took.as_secs_f64()),
            "problem": state.problem,
            "failed": state.failures.len(),
            "failures": failures,
            "notes": notes,
            "index": {
                "builds": state.builds,
                "building": state.building,
                "behind": state.unbuilt,
                "seconds": state.build_took.map(|took| took.as_secs_f64()),
            },
            "embeddings": vectors,
            "triples": triples,
            "now": clocks.now().to_string(),
        })
    }
}

impl State {
    fn is_settled(&self, embeds: bool, relates: bool) -> bool {
        // What failed is tried again for as long as it takes.
        let asked = |one: &Progress| {
            let gave_up = one.failed > 0 && one.failed >= one.waiting;
            (one.looked_at == self.builds || gave_up) && one.waiting <= one.failed
        };
        self.loaded
            && self.phase == Phase::Idle
            && self.scans_done >= self.scans_wanted
            && self.unbuilt == 0
            && !self.building
            && self.learned
            && (!embeds || asked(&self.vectors))
            && (!relates || asked(&self.triples))
    }
}

/// Grows with every change of how documents are read and cut.
const READING: u32 = 1;
