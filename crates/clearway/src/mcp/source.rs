//! The tools of an MCP server as tools of an agent, and as a step of a workflow.

use std::sync::Arc;
use std::time::{Duration, Instant};

use clearway_core::Failure;
use clearway_core::wait::WaitKind;
use clearway_engine::tool::{
    Tool, ToolCall, ToolError, ToolReply, ToolSource, ToolSpec, glob, model_name,
};
use clearway_engine::{ActionError, Ctx, Effect, NodeError};
use serde_json::{Map, Value};

use super::{CallError, Listed, Server};
use crate::config::ToolRef;

/// See the module.
#[derive(Debug)]
pub(crate) struct McpTools {
    id: String,
    server: Arc<Server>,
    part: Option<String>,
    deadline: Option<Duration>,
}

impl McpTools {
    pub(crate) fn new(tool: &ToolRef, server: Arc<Server>) -> Self {
        Self { id: tool.to_string(), server, part: tool.part.clone(), deadline: tool.deadline }
    }

    fn tool(&self, listed: &Listed) -> Arc<dyn Tool> {
        let id = format!("mcp:{}/{}", self.server.name, listed.name);
        Arc::new(McpTool {
            spec: ToolSpec {
                name: model_name(&format!("{}_{}", self.server.name, listed.name)),
                id,
                description: listed.description.clone(),
                arguments: listed.schema.clone(),
                effect: listed.effect,
                deadline: self.deadline.unwrap_or_else(|| self.server.deadline()),
            },
            server: self.server.clone(),
            name: listed.name.clone(),
        })
    }
}

#[async_trait::async_trait]
impl ToolSource for McpTools {
    fn id(&self) -> &str {
        &self.id
    }

    async fn tools(&self, cx: &Ctx) -> Result<Vec<Arc<dyn Tool>>, Failure> {
        let now = Instant::now();
        let deadline = cx.deadline.clip(now, self.server.deadline());
        cx.wait.enter(WaitKind::Tool, self.id.as_str(), Some(deadline), now);
        let listed = self.server.tools(deadline.0).await;
        cx.wait.enter(WaitKind::Work, "", Some(cx.deadline), Instant::now());
        let wanted = |tool: &&Listed| self.part.as_ref().is_none_or(|part| glob(part, &tool.name));
        Ok(listed?.iter().filter(wanted).map(|tool| self.tool(tool)).collect())
    }
}

#[derive(Debug)]
struct McpTool {
    spec: ToolSpec,
    server: Arc<Server>,
    name: String,
}

#[async_trait::async_trait]
impl Tool for McpTool {
    fn spec(&self) -> &ToolSpec {
        &self.spec
    }

    async fn call(&self, cx: &Ctx, call: ToolCall) -> Result<ToolReply, ToolError> {
        let deadline = cx.deadline.clip(Instant::now(), self.spec.deadline);
        let mut answer = self.server.call(&self.name, call.arguments.clone(), deadline.0).await;
        // A server that ended in the middle is started anew; who only reads may ask again.
        if self.spec.effect == Effect::Read && matches!(answer, Err(CallError::Unknown(_))) {
            answer = self.server.call(&self.name, call.arguments, deadline.0).await;
        }
        match answer {
            Ok(content) => Ok(ToolReply::new(content)),
            Err(CallError::NotMade(failure) | CallError::Refused(failure)) => {
                Err(ToolError::Failed(failure))
            }
            Err(CallError::Unknown(failure)) => Err(ToolError::Unknown(failure)),
        }
    }
}

/// Calls one tool as a step does: what fails, fails the step.
///
/// # Errors
/// `tool_failed`, `tool_unavailable`; parks when the outcome of a write is not known.
pub(crate) async fn call_for_step(
    cx: &Ctx,
    server: &Arc<Server>,
    tool: &str,
    effect: Option<Effect>,
    arguments: Map<String, Value>,
) -> Result<Value, NodeError> {
    let now = Instant::now();
    let deadline = cx.deadline.clip(now, server.deadline());
    let detail = format!("mcp:{}/{tool}", server.name);
    cx.wait.enter(WaitKind::Tool, detail.as_str(), Some(deadline), now);
    let effect = match effect {
        Some(effect) => effect,
        None => {
            let listed = server.tools(deadline.0).await?;
            let known = listed.iter().find(|listed| listed.name == tool);
            known.map_or(Effect::Write, |listed| listed.effect)
        }
    };
    let made = cx
        .act("tool", effect, |_key| async move {
            let call = server.call(tool, arguments, deadline.0);
            match tokio::time::timeout_at(deadline.0.into(), call).await {
                Ok(Ok(value)) => Ok(value),
                Ok(Err(CallError::NotMade(failure) | CallError::Refused(failure))) => {
                    Err(ActionError::NotDone(failure))
                }
                Ok(Err(CallError::Unknown(failure))) => Err(ActionError::Unknown(failure)),
                Err(_) => Err(ActionError::Unknown(server.late())),
            }
        })
        .await;
    cx.wait.enter(WaitKind::Work, "", Some(cx.deadline), Instant::now());
    made
}
