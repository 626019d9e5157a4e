//! What outlives a configuration: connections, processes and indexes that steps and tools use.
//!
//! It is made when the server starts, told of every new configuration, and taken down at the end.

use std::fmt;
use std::sync::Arc;

use clearway_core::Failure;
use clearway_engine::tool::ToolSource;
use clearway_engine::{Ctx, Tasks};
use serde_json::Value;

use crate::config::{Config, ToolKind, ToolRef};

/// See the module. Cheap to clone; a clone stays with the configuration that it was made for.
#[derive(Clone, Debug)]
pub(crate) struct Services {}

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
    pub(crate) fn new(config: &Config, tasks: &Tasks) -> Self {
        let _ = (config, tasks);
        Self {}
    }

    /// Takes up another configuration; what has not changed goes on as it is.
    pub(crate) fn configure(&mut self, config: &Config) {
        let _ = config;
    }

    /// Tools whose kind needs something that runs: MCP servers, knowledge.
    pub(crate) fn source(&self, tool: &ToolRef) -> Option<Arc<dyn ToolSource>> {
        match tool.kind {
            // The configuration has none of these yet that could be named.
            ToolKind::Mcp | ToolKind::Search | ToolKind::Graph | ToolKind::Open => None,
            // Made of the configuration alone.
            ToolKind::Run | ToolKind::Set => None,
        }
    }

    /// The knowledge source of this name.
    pub(crate) fn searcher(&self, source: &str) -> Option<Arc<dyn Searcher>> {
        let _ = source;
        None
    }
}
