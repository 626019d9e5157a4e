//! What outlives a configuration: connections, processes and indexes that steps and tools use.
//!
//! It is made when the server starts, told of every new configuration, and taken down at the end.

use std::fmt;
use std::sync::Arc;

use clearway_core::{Code, Failure};
use clearway_engine::knowledge::{SearchQuery, Sources};
use clearway_engine::tool::ToolSource;
use clearway_engine::{Ctx, Knowledge, Lanes, Tasks};
use clearway_upstream::{Outward, OutwardPolicy};
use serde_json::{Value, json};

use crate::config::{Config, Http, ToolKind, ToolRef};
use crate::mcp::{McpTools, Server, Servers};

/// See the module. Cheap to clone; a clone stays with the configuration that it was made for.
#[derive(Clone, Debug)]
pub(crate) struct Services {
    mcp: Arc<Servers>,
    outward: Arc<Outward>,
    http: Arc<Http>,
    knowledge: Option<Knowledge>,
    lanes: Lanes,
}

/// A source of knowledge, for `search` steps.
#[derive(Debug)]
struct Source {
    knowledge: Knowledge,
    name: String,
}

#[async_trait::async_trait]
impl Searcher for Source {
    async fn search(&self, cx: &Ctx, query: &str, limit: Option<u32>) -> Result<Value, Failure> {
        let usual = self.knowledge.source(&self.name).map(|source| source.search);
        let mut limits = usual.unwrap_or_default();
        if let Some(limit) = limit {
            limits.max_chunks = limit as usize;
        }
        let query = SearchQuery {
            text: query.to_owned(),
            owner: clearway_engine::knowledge::tools::owner(cx),
            sources: Sources::Named(vec![self.name.clone()]),
            documents: None,
            limits,
            deadline: None,
            wait: Some(cx.wait.clone()),
        };
        let found = self.knowledge.search(query).await?;
        let results: Vec<Value> = found.chunks.iter().map(|chunk| chunk.to_json()).collect();
        let explanation = found.explanation_json();
        Ok(json!({"results": results, "explanation": explanation}))
    }
}

/// Answers questions from a knowledge source: what `search` steps use.
#[async_trait::async_trait]
pub(crate) trait Searcher: Send + Sync + fmt::Debug {
    /// What is found for `query`: `{results: […], …}`, at most `limit` of them when that is given.
    ///
    /// # Errors
    /// Why nothing can be searched now.
    async fn search(&self, cx: &Ctx, query: &str, limit: Option<u32>) -> Result<Value, Failure>;
}

impl Services {
    /// `tasks` own what runs in the background.
    pub(crate) fn new(
        config: &Config,
        tasks: &Tasks,
        knowledge: Option<Knowledge>,
        lanes: Lanes,
    ) -> Self {
        let mcp = Arc::new(Servers::new(tasks.clone()));
        let http = Arc::new(config.http.clone());
        let outward = Arc::new(Outward::new(policy(&http)));
        mcp.configure(&config.mcp);
        Self { mcp, outward, http, knowledge, lanes }
    }

    /// Takes up another configuration; what has not changed goes on as it is.
    pub(crate) fn configure(&mut self, config: &Config) {
        self.mcp.configure(&config.mcp);
        if *self.http != config.http {
            self.http = Arc::new(config.http.clone());
            self.outward = Arc::new(Outward::new(policy(&self.http)));
        }
    }

    /// Tools whose kind needs something that runs: MCP servers, knowledge.
    pub(crate) fn source(&self, tool: &ToolRef) -> Option<Arc<dyn ToolSource>> {
        match tool.kind {
            ToolKind::Mcp => {
                let server = self.mcp(&tool.name)?;
                Some(Arc::new(McpTools::new(tool, server)))
            }
            ToolKind::Search | ToolKind::Graph | ToolKind::Open => {
                let knowledge = self.knowledge.as_ref()?;
                let kind = crate::agents::kind(tool.kind)?;
                let there = knowledge.source(&tool.name).is_some();
                there
                    .then(|| clearway_engine::knowledge::tools::source(knowledge, kind, &tool.name))
            }
            // Made of the configuration alone.
            ToolKind::Run | ToolKind::Set => None,
        }
    }

    /// The MCP server of this name.
    pub(crate) fn mcp(&self, name: &str) -> Option<Arc<Server>> {
        self.mcp.get(name)
    }

    /// The knowledge source of this name.
    pub(crate) fn searcher(&self, source: &str) -> Option<Arc<dyn Searcher>> {
        let knowledge = self.knowledge.clone()?;
        let there = knowledge.source(source).is_some();
        there.then(|| Arc::new(Source { knowledge, name: source.to_owned() }) as Arc<dyn Searcher>)
    }

    /// What documents say.
    pub(crate) fn knowledge(&self) -> Option<&Knowledge> {
        self.knowledge.as_ref()
    }

    /// What `http` steps may do.
    pub(crate) fn http(&self) -> &Http {
        &self.http
    }

    pub(crate) fn outward(&self) -> &Outward {
        &self.outward
    }

    /// Does what may take the processor for longer than a moment.
    ///
    /// # Errors
    /// `internal` when it panicked.
    pub(crate) async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let done = self.lanes.run(work).await;
        done.ok_or_else(|| Failure::new(Code::Internal, "work in a lane panicked"))
    }
}

fn policy(http: &Http) -> OutwardPolicy {
    OutwardPolicy { allow: http.allow.clone() }
}
