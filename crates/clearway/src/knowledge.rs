//! Knowledge of a configuration: for a server, and for programs that only look into documents.
//!
//! [`Library`] is the second: it reads, indexes and searches the sources of a configuration, or one
//! folder, without a server around it. While a server holds the data directory, ask the server.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clearway_core::{Clock, Failure};
use clearway_engine::knowledge::{
    GraphQuery, KnowledgeLimits, Owner, ReaderCommand, SearchLimits, SearchQuery, SourceContent,
    SourceOptions, Sources, UploadLimits, UploadOptions,
};
use clearway_engine::{Knowledge, KnowledgeOptions, Lanes, Store, Tasks};
use clearway_store::{MemStore, SqliteOptions, SqliteStore, SystemClock};
use serde_json::Value;
use tokio::time::timeout;

use crate::config::{Config, Content, Env, Uploads};
use crate::server::StartError;
use crate::simulator::Simulator;
use crate::{builtin, upstream};

/// What a configuration says, for the engine.
pub(crate) fn options(config: &Config, reader: Option<ReaderCommand>) -> KnowledgeOptions {
    let source = |knowledge: &crate::config::Knowledge| SourceOptions {
        content: match &knowledge.content {
            Content::Folder { path, files } => SourceContent::Folder {
                path: path.clone(),
                files: files.clone(),
                watch: knowledge.watch,
            },
            Content::BuiltIn => SourceContent::BuiltIn(builtin::NOTES),
        },
        chunk: clearway_engine::knowledge::ChunkOptions {
            max_tokens: knowledge.chunk.tokens,
            overlap_tokens: knowledge.chunk.overlap,
        },
        embeddings: knowledge.embeddings.clone(),
        rerank: knowledge.rerank.clone(),
        graph: knowledge.graph,
        triples: knowledge.graph_model.clone(),
        search: SearchLimits {
            similarity_threshold: knowledge.search.similarity_threshold as f32,
            max_chunks: knowledge.search.max_chunks as usize,
            token_budget: knowledge.search.token_budget,
        },
    };
    let Uploads { file_bytes, files, bytes, collections, documents, .. } = config.uploads;
    KnowledgeOptions {
        sources: config
            .knowledge
            .iter()
            .map(|(name, knowledge)| (name.clone(), source(knowledge)))
            .collect(),
        uploads: UploadOptions {
            limits: UploadLimits { file_bytes, files, bytes, collections, documents },
            embeddings: config.uploads.embeddings.clone(),
            rerank: config.uploads.rerank.clone(),
            ..UploadOptions::default()
        },
        reader,
        changes: false,
        limits: KnowledgeLimits::default(),
    }
}

/// Documents without a server.
#[derive(Debug)]
pub struct Library {
    knowledge: Knowledge,
    store: Arc<dyn Store>,
    simulated: Tasks,
    only: Vec<String>,
}

/// What a library is opened with.
#[derive(Clone, Debug)]
pub struct LibraryOptions {
    /// For providers of `kind = "sim"`.
    pub simulator: Option<Simulator>,
    /// How this program reads documents: its own arguments.
    pub reader: Vec<String>,
}

/// The name of the one source of [`Library::folder`].
pub const FOLDER: &str = "folder";

impl Library {
    /// The sources of a configuration, kept in its data directory.
    ///
    /// # Errors
    /// A server has the directory ([`clearway_store::ErrorKind::Locked`]), and whatever keeps a
    /// server from starting.
    pub async fn open(
        mut config: Config,
        data: &Path,
        options: LibraryOptions,
    ) -> Result<Self, StartError> {
        for knowledge in config.knowledge.values_mut() {
            // One look, and the end.
            knowledge.watch = false;
        }
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let store = SqliteStore::open(data, SqliteOptions::default(), clock.clone()).await?;
        Self::start(&config, Arc::new(store), clock, options)
    }

    /// One folder, kept nowhere.
    ///
    /// # Errors
    /// Whatever keeps a server from starting.
    pub fn folder(
        folder: &Path,
        files: Option<Vec<String>>,
        options: LibraryOptions,
    ) -> Result<Self, StartError> {
        let mut config = Config::built_in(&Env::default()).map_err(|report| {
            StartError::Provider { provider: "built-in".to_owned(), problem: report.to_string() }
        })?;
        config.knowledge.clear();
        config
            .knowledge
            .insert(FOLDER.to_owned(), crate::config::Knowledge::of_folder(folder, files));
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let store = Arc::new(MemStore::new(clock.clone()));
        Self::start(&config, store, clock, options)
    }

    fn start(
        config: &Config,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        options: LibraryOptions,
    ) -> Result<Self, StartError> {
        let simulated = Tasks::new();
        let upstream = upstream::build(config, options.simulator.as_ref(), &clock, &simulated)?;
        let arguments: Vec<&str> = options.reader.iter().map(String::as_str).collect();
        let reader = ReaderCommand::this_program(&arguments);
        let knowledge = Knowledge::new(
            self::options(config, Some(reader)),
            store.clone(),
            upstream,
            Lanes::default(),
            clock,
        );
        knowledge
            .start(None)
            .map_err(|failure| StartError::Engine(clearway_engine::Error(failure)))?;
        let only = knowledge.sources();
        Ok(Self { knowledge, store, simulated, only })
    }

    /// Names of the sources.
    pub fn sources(&self) -> &[String] {
        &self.only
    }

    /// Waits until a source is indexed, telling how far it is now and then. Answers the report.
    ///
    /// # Errors
    /// There is no such source.
    pub async fn indexed(
        &self,
        source: &str,
        mut progress: impl FnMut(&Value),
    ) -> Result<Value, Failure> {
        let settled = self.knowledge.settled(source);
        tokio::pin!(settled);
        loop {
            match timeout(TELL_EVERY, &mut settled).await {
                Ok(report) => return report,
                Err(_) => progress(&self.knowledge.source_status(source)?),
            }
        }
    }

    /// Has all documents read again, also those that have not changed.
    ///
    /// # Errors
    /// There is no such source.
    pub fn read_all(&self, source: &str) -> Result<(), Failure> {
        self.knowledge.refresh(source, true)
    }

    /// What sources have about a question; all of them when none is named.
    ///
    /// # Errors
    /// As a server's search.
    pub async fn search(
        &self,
        query: &str,
        sources: &[String],
        limits: Limits,
    ) -> Result<Value, Failure> {
        let query = SearchQuery {
            text: query.to_owned(),
            owner: Owner { tenant: "default".to_owned(), user: None },
            sources: match sources {
                [] => Sources::Named(self.only.clone()),
                named => Sources::Named(named.to_vec()),
            },
            documents: None,
            limits: SearchLimits {
                similarity_threshold: limits.similarity_threshold,
                max_chunks: limits.max_chunks,
                token_budget: limits.token_budget,
            },
            deadline: None,
            wait: None,
        };
        Ok(self.knowledge.search(query).await?.to_json())
    }

    /// What a source's documents connect.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn graph(
        &self,
        source: &str,
        entity: Option<String>,
        to: Option<String>,
        limit: usize,
    ) -> Result<Value, Failure> {
        self.knowledge.graph(source, GraphQuery { entity, to, limit }).await
    }

    /// The same as an SVG picture.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn graph_picture(
        &self,
        source: &str,
        entity: Option<String>,
        to: Option<String>,
        limit: usize,
    ) -> Result<String, Failure> {
        self.knowledge.graph_picture(source, GraphQuery { entity, to, limit }).await
    }

    /// Ends everything, and lets go of the data directory.
    pub async fn close(self) {
        let Self { knowledge, store, simulated, .. } = self;
        knowledge.close().await;
        simulated.hard.cancel();
        let _ = timeout(CLOSING, simulated.close()).await;
        let me = clearway_engine::Ids::new().instance();
        if let Ok(Err(error)) = timeout(CLOSING, store.close(me)).await {
            tracing::warn!("closing the store: {error}");
        }
    }
}

/// What of a search is handed out.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub similarity_threshold: f32,
    pub max_chunks: usize,
    pub token_budget: u32,
}

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(100);
const CLOSING: Duration = Duration::from_secs(5);

/// Where a configuration keeps its data, unless somebody says otherwise.
pub fn data_of(config: &Config) -> PathBuf {
    config.server.data.clone().unwrap_or_else(|| PathBuf::from("data"))
}
