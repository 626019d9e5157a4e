//! `run:WORKFLOW`: the model starts a workflow, beside the conversation or waiting for its result.

use std::time::Duration;

use clearway_core::channel::Write;
use clearway_core::{Code, Failure, RunId, Status};
use clearway_engine::tool::{Tool, ToolCall, ToolError, ToolReply, ToolSpec, model_name};
use clearway_engine::{Child, Ctx, Effect, NodeError};
use serde_json::{Map, Value, json};

use crate::config::ToolRef;
use crate::config::workflow::{InputField, InputKind, Workflow};
use crate::workflow::compile::{self, RESULT};

/// Starts a workflow.
#[derive(Debug)]
pub(super) struct Run {
    spec: ToolSpec,
    workflow: Workflow,
    name: String,
    wait: bool,
}

impl Run {
    pub(super) fn new(tool: &ToolRef, workflow: &Workflow) -> Self {
        let id = tool.to_string();
        let about = match workflow.description.as_str() {
            "" => &workflow.title,
            description => description,
        };
        let how = match tool.wait {
            true => "Waits for its result.",
            false => {
                "Starts it in the background and answers at once with its run_id; \
                 run_status tells how far it is."
            }
        };
        let usual = if tool.wait { workflow.deadline } else { Duration::from_secs(30) };
        Self {
            spec: ToolSpec {
                name: model_name(&id),
                id,
                description: format!("{}: {about} {how}", workflow.title),
                arguments: arguments(&workflow.input),
                // The run's id is noted before it is started.
                effect: Effect::Idempotent,
                deadline: tool.deadline.unwrap_or(usual),
            },
            workflow: workflow.clone(),
            name: tool.name.clone(),
            wait: tool.wait,
        }
    }
}

#[async_trait::async_trait]
impl Tool for Run {
    fn spec(&self) -> &ToolSpec {
        &self.spec
    }

    async fn call(&self, cx: &Ctx, call: ToolCall) -> Result<ToolReply, ToolError> {
        let input = compile::input(&self.workflow, &call.arguments).map_err(ToolError::Failed)?;
        let mut metadata = cx.record().metadata.clone();
        metadata.remove("key");
        metadata.insert(STARTED_IN.to_owned(), cx.thread.to_string().into());
        let child = Child { agent: self.name.clone(), input, metadata };
        if !self.wait {
            let (run, _) = cx.start(&call.key, child).await.map_err(refused)?;
            let content =
                json!({"run_id": run.to_string(), "workflow": self.name, "status": "started"});
            return Ok(ToolReply::new(content));
        }
        let end = cx.child(&call.key, child).await.map_err(refused)?;
        if end.status == Status::Success {
            let result = end.state.map(|state| state[RESULT].clone()).unwrap_or_default();
            return Ok(ToolReply::new(json!({"run_id": end.run.to_string(), "result": result})));
        }
        let failure = end.failure.unwrap_or_else(|| {
            Failure::new(Code::StepFailed, format!("it ended as {}", end.status.as_str()))
        });
        let message = format!("run {} failed: {}", end.run, failure.message);
        Err(ToolError::Failed(Failure { message, ..failure }))
    }
}

/// A run that is not taken now is the model's to know; the rest is the caller's.
fn refused(error: NodeError) -> ToolError {
    match error {
        NodeError::Failed(failure)
            if matches!(
                failure.code,
                Code::Overloaded | Code::AgentNotFound | Code::InvalidRequest | Code::ThreadBusy
            ) =>
        {
            ToolError::Failed(failure)
        }
        other => ToolError::Stop(other),
    }
}

/// In a run's metadata: the conversation that it was started from.
const STARTED_IN: &str = "started_in";

/// A workflow's input as the schema of a tool's arguments.
fn arguments(fields: &[InputField]) -> Value {
    let mut properties = Map::new();
    for field in fields {
        let kind = match field.kind {
            InputKind::String => Some("string"),
            InputKind::Integer => Some("integer"),
            InputKind::Number => Some("number"),
            InputKind::Boolean => Some("boolean"),
            InputKind::Json => None,
        };
        let one = kind.map_or_else(|| json!({}), |kind| json!({"type": kind}));
        let mut schema = if field.list { json!({"type": "array", "items": one}) } else { one };
        if let Some(default) = field.default.as_ref().filter(|default| !default.is_null()) {
            schema["default"] = default.clone();
        }
        properties.insert(field.name.clone(), schema);
    }
    let required: Vec<&str> = fields
        .iter()
        .filter(|field| field.default.is_none())
        .map(|field| field.name.as_str())
        .collect();
    json!({
        "type": "object", "properties": properties, "required": required,
        "additionalProperties": false,
    })
}

/// The channel of the files that runs of a conversation made, as far as it has seen them.
pub(super) const FILES: &str = "written_files";

/// `run_status`: how far a run is that was started from this conversation.
#[derive(Debug)]
pub(super) struct Look {
    spec: ToolSpec,
}

impl Look {
    pub(super) fn new() -> Self {
        let description = "Tells how far a run is that was started before with its run_id: its \
                           status, what it waits for, and its result when it has ended.";
        Self {
            spec: ToolSpec {
                name: "run_status".to_owned(),
                id: "run:status".to_owned(),
                description: description.to_owned(),
                arguments: json!({
                    "type": "object", "required": ["run_id"], "additionalProperties": false,
                    "properties": {"run_id": {"type": "string"}},
                }),
                effect: Effect::Read,
                deadline: Duration::from_secs(10),
            },
        }
    }
}

#[async_trait::async_trait]
impl Tool for Look {
    fn spec(&self) -> &ToolSpec {
        &self.spec
    }

    async fn call(&self, cx: &Ctx, call: ToolCall) -> Result<ToolReply, ToolError> {
        let asked = call.arguments["run_id"].as_str().unwrap_or_default();
        let unknown = || {
            let text = format!("no run `{asked}` was started from this conversation");
            ToolError::Failed(Failure::new(Code::RunNotFound, text))
        };
        let run: RunId = asked.parse().map_err(|_| unknown())?;
        let look = cx.look(run).await?.ok_or_else(unknown)?;
        let record = &look.record;
        // Ids are no secrets: only what this conversation has started is shown in it.
        if record.tenant != cx.record().tenant
            || record.metadata.get(STARTED_IN) != Some(&cx.thread.to_string().into())
        {
            return Err(unknown());
        }
        let mut shown = json!({
            "run_id": record.id.to_string(), "workflow": record.agent,
            "status": record.status.as_str(), "steps_done": record.step + 1,
        });
        if let Some(failure) = &record.failure {
            shown["error"] = json!({"code": failure.code.as_str(), "message": failure.message});
        }
        if let Some((kind, detail)) = look.waiting_on {
            shown["waiting_on"] = format!("{kind} {detail}").trim_end().into();
        }
        if let Some(state) = look.state {
            shown["result"] = state[RESULT].clone();
        }
        let mut writes = Vec::new();
        if !look.artifacts.is_empty() {
            shown["files"] = look.artifacts.clone().into();
            writes.push(Write::new(FILES, look.artifacts.into()));
        }
        Ok(ToolReply { content: shown, writes })
    }
}
