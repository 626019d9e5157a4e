//! Knowledge: documents that are read, cut, indexed and found again.
//!
//! Each source (a folder, the examples in the binary, what people uploaded) is a [`Shelf`](shelf):
//! one task looks at its documents and has them read by processes of their own ([`reader`]), each
//! document becomes durable in one transaction ([`ingest`]), and a second task builds the next index
//! beside the one in use ([`index`]) and puts it in its place. Vectors from a provider follow when
//! they come ([`embed`]). A search looks at whatever index is there ([`search`]).
//!
//! **Invariants:** who searches never waits for who indexes, except for the first index after a
//! start; a document is as it was or as it became, also after a crash; a vector, or
//! what a model reads out of a text, is asked for only when no chunk had that text before; every question carries the viewer, and what that viewer may
//! not see takes part in nothing; whatever a file does, it costs an entry in a report.
//!
//! Not here: ranking and cutting (`clearway_knowledge`), parsing (`clearway_ingest`), addresses.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use clearway_core::{Clock, Code, Failure};
pub use clearway_knowledge::ChunkOptions;
use clearway_store::{KnowledgeStore, Store};
use clearway_upstream::Upstream;
use serde_json::Value;

use crate::clock::{Clocks, Ids};
use crate::lanes::{Background, Lanes};
use crate::live::lock;
use crate::metrics::Metrics;
use crate::tasks::Tasks;

pub mod answer;
mod cite;
mod departed;
mod embed;
mod fill;
mod graph;
mod index;
mod ingest;
mod notes;
mod reader;
mod search;
mod shelf;
pub mod tools;
mod triples;
mod uploads;
mod walk;
mod watch;

pub use graph::GraphQuery;
pub use notes::{ContentHit, Note, NoteText};
pub use reader::ReaderCommand;
pub use search::{Found, FoundChunk, Incomplete, SearchLimits, SearchQuery, SearchView, Sources};
pub use uploads::{Attach, CollectionDraft, FileDraft, Owner, UploadLimits};
pub use walk::check_pattern;

pub(crate) use shelf::Shelf;

/// How knowledge is set up.
#[derive(Clone, Debug, Default)]
pub struct KnowledgeOptions {
    /// By name; what is in force later says [`Knowledge::source`].
    pub sources: BTreeMap<String, SourceOptions>,
    pub uploads: UploadOptions,
    /// What reads documents; without it none can be read.
    pub reader: Option<ReaderCommand>,
    /// Whether other sources may be put in force later ([`Knowledge::configure`]).
    pub changes: bool,
    pub limits: KnowledgeLimits,
}

/// One configured source.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceOptions {
    pub content: SourceContent,
    pub chunk: ChunkOptions,
    /// Name of the model that embeds; `None` does without a provider.
    pub embeddings: Option<String>,
    /// Name of the model that orders what was found.
    pub rerank: Option<String>,
    pub graph: bool,
    /// Name of the model that reads relations out of the texts, for the graph.
    pub triples: Option<String>,
    pub search: SearchLimits,
}

/// Where a source's documents are.
#[derive(Clone, Debug, PartialEq)]
pub enum SourceContent {
    Folder {
        path: PathBuf,
        /// Which files, as in `.gitignore`.
        files: Vec<String>,
        /// Look again when something changes.
        watch: bool,
    },
    /// In the binary: names and bytes.
    BuiltIn(&'static [(&'static str, &'static str)]),
}

/// How uploaded documents are treated.
#[derive(Clone, Debug, Default)]
pub struct UploadOptions {
    pub chunk: ChunkOptions,
    pub embeddings: Option<String>,
    pub rerank: Option<String>,
    pub limits: UploadLimits,
}

/// Every bound of this module in one place.
#[derive(Clone, Copy, Debug)]
pub struct KnowledgeLimits {
    /// Bytes of one file.
    pub file_bytes: u64,
    /// Bytes of text of one document.
    pub text_bytes: usize,
    /// Documents of one source.
    pub documents: u32,
    /// Bytes of a query; more is cut off.
    pub query_bytes: usize,
    /// Searches at once.
    pub searches: usize,
    /// The longest that one search may take.
    pub search: Duration,
}

impl Default for KnowledgeLimits {
    fn default() -> Self {
        Self {
            file_bytes: 64 << 20,
            text_bytes: 8 << 20,
            documents: 100_000,
            query_bytes: 8 << 10,
            searches: 1024,
            search: Duration::from_secs(25),
        }
    }
}

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Knowledge(Arc<Inner>);

pub(crate) struct Inner {
    pub options: KnowledgeOptions,
    pub store: Arc<dyn Store>,
    pub upstream: Upstream,
    pub clocks: Clocks,
    pub ids: Ids,
    pub lanes: Lanes,
    pub readers: reader::Readers,
    pub tasks: Tasks,
    /// Configured sources by name, and [`UPLOADS`].
    shelves: RwLock<Shelves>,
    pub searches: search::Board,
    pub metrics: OnceLock<Arc<Metrics>>,
    watcher: Mutex<Option<Arc<watch::Watcher>>>,
    /// Builds indexes; there from the start on.
    background: OnceLock<Background>,
    calls: AtomicU64,
}

/// All shelves at one moment.
type Shelves = Arc<BTreeMap<String, Arc<Shelf>>>;

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.shelves().keys()).finish()
    }
}

/// The shelf of what people uploaded; no configured source can have this name.
pub(crate) const UPLOADS: &str = "uploads:";

impl Knowledge {
    /// Puts everything together; nothing runs before [`Knowledge::start`].
    pub fn new(
        options: KnowledgeOptions,
        store: Arc<dyn Store>,
        upstream: Upstream,
        lanes: Lanes,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let mut shelves: BTreeMap<String, Arc<Shelf>> = options
            .sources
            .iter()
            .map(|(name, source)| (name.clone(), Arc::new(Shelf::configured(name, source))))
            .collect();
        shelves.insert(UPLOADS.to_owned(), Arc::new(Shelf::uploads(&options.uploads)));
        let readers = reader::Readers::new(options.reader.clone(), lanes.clone());
        let searches = search::Board::new(options.limits.searches);
        Self(Arc::new(Inner {
            options,
            store,
            upstream,
            clocks: Clocks(clock),
            ids: Ids::new(),
            lanes,
            readers,
            tasks: Tasks::new(),
            shelves: RwLock::new(Arc::new(shelves)),
            searches,
            metrics: OnceLock::new(),
            watcher: Mutex::default(),
            background: OnceLock::new(),
            calls: AtomicU64::new(0),
        }))
    }

    /// Starts the tasks of every source, the OS thread that builds indexes, and the one that watches
    /// folders if one is wanted. The store must have been joined.
    ///
    /// # Errors
    /// The host refuses a thread.
    pub fn start(&self, metrics: Option<Arc<Metrics>>) -> Result<(), Failure> {
        if let Some(metrics) = metrics {
            let _ = self.0.metrics.set(metrics);
        }
        let background = Background::start("index").map_err(|error| {
            let text = format!("the thread that builds indexes cannot be started: {error}");
            Failure::new(Code::Internal, text)
        })?;
        let _ = self.0.background.set(background);
        let shelves = self.0.shelves();
        let later = self.0.options.changes;
        let watcher = watch::Watcher::start(shelves.values().cloned(), later).map_err(|error| {
            let text = format!("the thread that watches folders cannot be started: {error}");
            Failure::new(Code::Internal, text)
        })?;
        *lock(&self.0.watcher) = watcher.map(Arc::new);
        shelves.values().for_each(|shelf| self.serve(shelf));
        Ok(())
    }

    fn serve(&self, shelf: &Arc<Shelf>) {
        index::start(&self.0, shelf);
        embed::start(&self.0, shelf);
        triples::start(&self.0, shelf);
        ingest::start(&self.0, shelf);
    }

    /// Puts other sources in force. Those that stay as they are go on undisturbed; what was read of
    /// those that go stays stored. Their models must be known to the provider layer.
    pub fn configure(&self, sources: &BTreeMap<String, SourceOptions>) {
        let before = self.0.shelves();
        let mut shelves = BTreeMap::new();
        let mut new = Vec::new();
        for (name, source) in sources {
            let same = before.get(name).filter(|shelf| shelf.source.as_ref() == Some(source));
            let shelf = same.cloned().unwrap_or_else(|| {
                let shelf = Arc::new(Shelf::configured(name, source));
                new.push(shelf.clone());
                shelf
            });
            shelves.insert(name.clone(), shelf);
        }
        if let Some(uploads) = before.get(UPLOADS) {
            shelves.insert(UPLOADS.to_owned(), uploads.clone());
        }
        let stays = |shelf: &Arc<Shelf>| {
            shelves.get(&shelf.name).is_some_and(|other| Arc::ptr_eq(shelf, other))
        };
        before.values().filter(|shelf| !stays(shelf)).for_each(|shelf| shelf.stop.cancel());
        if let Some(watcher) = self.0.watcher() {
            watcher.serve(shelves.values().cloned());
        }
        *self.0.shelves.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(shelves);
        for shelf in new {
            tracing::info!(source = shelf.name, "the source is configured anew");
            self.serve(&shelf);
        }
    }

    /// Ends all tasks; what was not finished is finished after the next start.
    pub async fn close(&self) {
        self.0.tasks.soft.cancel();
        self.0.tasks.hard.cancel();
        lock(&self.0.watcher).take();
        self.0.tasks.close().await;
        self.0.readers.rest();
    }

    /// Names of the configured sources.
    pub fn sources(&self) -> Vec<String> {
        let shelves = self.0.shelves();
        shelves.keys().filter(|name| *name != UPLOADS).cloned().collect()
    }

    /// How a configured source is set up.
    pub fn source(&self, name: &str) -> Option<SourceOptions> {
        self.0.shelves().get(name)?.source.clone()
    }

    pub fn options(&self) -> &KnowledgeOptions {
        &self.0.options
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.0
    }

    /// How far every source is, for people and programs.
    pub fn status(&self) -> Vec<Value> {
        self.0.shelves().values().map(|shelf| shelf.status(&self.0.clocks)).collect()
    }

    /// How far one source is.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn source_status(&self, name: &str) -> Result<Value, Failure> {
        Ok(self.0.shelf(name)?.status(&self.0.clocks))
    }

    /// Looks at a source's documents again; `all` reads also those that have not changed.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn refresh(&self, name: &str, all: bool) -> Result<(), Failure> {
        self.0.shelf(name)?.refresh(all);
        Ok(())
    }

    /// Waits until a source's documents have been looked at, and everything found is indexed, its
    /// vectors included. The caller bounds the wait.
    ///
    /// # Errors
    /// There is none of that name; the server stops.
    pub async fn settled(&self, name: &str) -> Result<Value, Failure> {
        let shelf = self.0.shelf(name)?;
        tokio::select! {
            () = shelf.settled() => Ok(shelf.status(&self.0.clocks)),
            () = shelf.stop.cancelled() => {
                Err(Failure::new(Code::NotFound, "the source was taken out of the configuration"))
            }
            () = self.0.tasks.hard.cancelled() => {
                Err(Failure::new(Code::ShuttingDown, "the server is stopping"))
            }
        }
    }
}

impl Inner {
    /// What is stored of documents.
    pub(crate) fn kept(&self) -> &dyn KnowledgeStore {
        self.store.knowledge()
    }

    pub(crate) fn shelves(&self) -> Shelves {
        self.shelves.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn shelf(&self, name: &str) -> Result<Arc<Shelf>, Failure> {
        self.shelves().get(name).cloned().ok_or_else(|| {
            let text = format!("there is no knowledge source `{name}`");
            Failure::new(Code::NotFound, text)
        })
    }

    /// What watches folders, if anything does.
    pub(crate) fn watcher(&self) -> Option<Arc<watch::Watcher>> {
        lock(&self.watcher).clone()
    }

    /// Long work that nobody waits for. `None` when it came to nothing.
    pub(crate) async fn behind<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        match self.background.get() {
            Some(background) => background.run(work).await,
            None => self.lanes.run(work).await,
        }
    }

    /// A new id for a call of a provider.
    pub(crate) fn call_id(&self, what: &str) -> String {
        format!("kb-{what}-{}", self.calls.fetch_add(1, Ordering::Relaxed))
    }
}

/// What is stored of a document besides its chunks.
pub(crate) fn to_bytes(value: &Value) -> Bytes {
    Bytes::from(value.to_string())
}
