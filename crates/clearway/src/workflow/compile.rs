//! A workflow as an agent of the engine.

use std::collections::BTreeMap;
use std::sync::Arc;

use clearway_core::channel::Reducer;
use clearway_core::plan::{Builder, Plan};
use clearway_core::{Clock, Failure};
use clearway_engine::{Agent, InputCheck, Node, NodePolicy, OnError as EngineOnError, OnOutage};
use serde_json::{Map, Value, json};

use super::steps::{Fold, Scatter, StepNode, visits_channel};
use crate::config::Config;
use crate::config::workflow::{END, InputField, InputKind, OnError, Step, StepKind, Workflow};
use crate::services::Services;

/// The channel that holds a workflow's input.
pub(crate) const INPUT: &str = "input";

/// What all steps of a workflow share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub name: String,
    pub workflow: Workflow,
    /// The configuration it is part of, for what steps name.
    pub config: Arc<Config>,
    pub services: Services,
    pub clock: Arc<dyn Clock>,
}

/// The agent that runs a workflow.
pub(crate) fn agent(
    name: &str,
    workflow: &Workflow,
    config: &Arc<Config>,
    services: &Services,
    clock: &Arc<dyn Clock>,
) -> Agent {
    let shared = Arc::new(Shared {
        name: name.to_owned(),
        workflow: workflow.clone(),
        config: config.clone(),
        services: services.clone(),
        clock: clock.clone(),
    });
    let mut nodes: BTreeMap<Arc<str>, Arc<dyn Node>> = BTreeMap::new();
    let mut policies = BTreeMap::new();
    for (at, step) in workflow.steps.iter().enumerate() {
        let node: Arc<dyn Node> = Arc::new(StepNode { shared: shared.clone(), at });
        nodes.insert(step.name.as_str().into(), node);
        policies.insert(step.name.as_str().into(), policy(step));
        if step.for_each.is_some() {
            let scatter: Arc<dyn Node> = Arc::new(Scatter { shared: shared.clone(), at });
            nodes.insert(scatter_name(step).into(), scatter);
        }
    }
    nodes.insert(RESULT.into(), Arc::new(Fold { shared: shared.clone() }));
    let first = workflow.steps.first().map_or(RESULT, |step| step.name.as_str());
    let plan = plan(workflow);
    let code = nodes[first].clone();
    Agent {
        title: workflow.title.clone(),
        pool: workflow.pool.clone(),
        plan: Arc::new(plan),
        nodes,
        deadline: workflow.deadline,
        working_limit: workflow.deadline,
        policies,
        on_outage: if workflow.park_on_outage { OnOutage::Park } else { OnOutage::Fail },
        priority: workflow.priority,
        budget: workflow.budget,
        keep: workflow.keep,
        input: Some({
            let workflow = workflow.clone();
            InputCheck::new(move |given| input(&workflow, given))
        }),
        input_schema: Some(input_schema(workflow)),
        // Steps may write outward.
        starts_ahead: false,
        shown_channels: (!workflow.channels.is_empty())
            .then(|| workflow.channels.keys().map(|name| name.as_str().into()).collect()),
        ..Agent::single(name, "workflow", first, code)
    }
}

/// The node that makes a workflow's result of its outputs; it runs when nothing else is left.
pub(crate) const RESULT: &str = "result";

/// The node that sends one call per element to a step with `for_each`.
fn scatter_name(step: &Step) -> String {
    format!("{}:each", step.name)
}

/// Where a step begins.
pub(crate) fn entry(step: &Step) -> String {
    if step.for_each.is_some() { scatter_name(step) } else { step.name.clone() }
}

/// The plan of a workflow that was checked.
pub(crate) fn plan(workflow: &Workflow) -> Plan {
    let mut inner = Builder::new();
    for step in &workflow.steps {
        if step.for_each.is_some() {
            inner = inner
                .node(&scatter_name(step))
                .node_at_once(&step.name, step.at_once)
                .may_go(&scatter_name(step), &step.name);
        } else {
            inner = inner.node(&step.name);
        }
    }
    let targets = workflow.targets();
    for step in &workflow.steps {
        if !step.needs.is_empty() {
            let needs: Vec<&str> = step.needs.iter().map(String::as_str).collect();
            inner = inner.needs(&entry(step), &needs);
        } else if !targets.contains(step.name.as_str()) {
            inner = inner.entry(&entry(step));
        }
        let go = |to: &str| workflow.step(to).map(entry);
        if let StepKind::Branch { when, .. } = &step.kind {
            for to in when.iter().filter(|case| case.go != END).filter_map(|case| go(&case.go)) {
                inner = inner.may_go(&step.name, &to);
            }
        }
        if let OnError::Go(to) = &step.on_error
            && let Some(to) = go(to)
        {
            inner = inner.may_go(&step.name, &to);
        }
    }
    let mut plan = inner.node(RESULT).channel(INPUT, Reducer::Last).channel(RESULT, Reducer::Last);
    for step in &workflow.steps {
        let reducer = if step.for_each.is_some() { Reducer::Append } else { Reducer::Last };
        plan = plan.channel(&step.name, reducer);
        if step.uses_visits {
            plan = plan.channel(&visits_channel(&step.name), Reducer::Last);
        }
    }
    for (channel, reducer) in &workflow.channels {
        plan = plan.channel(channel, *reducer);
    }
    if !workflow.channels.is_empty() {
        plan = plan.fold(RESULT);
    }
    plan.at_the_end(RESULT)
        .max_steps(workflow.max_steps)
        .build()
        .expect("the configuration was checked: every name is a step")
}

fn policy(step: &Step) -> NodePolicy {
    let channel: Arc<str> = step.name.as_str().into();
    NodePolicy {
        retry: step.retry(),
        timeout: match step.kind {
            // People and events have limits of their own.
            StepKind::Ask { .. } | StepKind::Wait { .. } | StepKind::Workflow { .. } => None,
            _ => Some(step.deadline),
        },
        idle: step.idle,
        on_error: match &step.on_error {
            OnError::Fail => EngineOnError::Fail,
            OnError::Continue => EngineOnError::Continue { channel },
            OnError::Go(to) => EngineOnError::Goto { node: to.as_str().into(), channel },
        },
        cache: step.cache,
        title: Some(step.title.as_str().into()),
        category: Some(step.category.as_str().into()),
        description: Some(step.description.as_str().into()),
    }
}

/// What a workflow's input looks like.
fn input_schema(workflow: &Workflow) -> Value {
    let one = |field: &InputField| {
        let mut schema = match field.kind {
            InputKind::String => json!({"type": "string"}),
            InputKind::Integer => json!({"type": "integer"}),
            InputKind::Number => json!({"type": "number"}),
            InputKind::Boolean => json!({"type": "boolean"}),
            InputKind::Json => json!({}),
        };
        if field.list {
            schema = json!({"type": "array", "items": schema});
        }
        if let Some(default) = field.default.as_ref().filter(|default| !default.is_null()) {
            schema["default"] = default.clone();
        }
        (field.name.clone(), schema)
    };
    let needed = workflow.input.iter().filter(|field| field.default.is_none());
    json!({
        "type": "object",
        "title": workflow.title,
        "properties": workflow.input.iter().map(one).collect::<Map<_, _>>(),
        "required": needed.map(|field| field.name.as_str()).collect::<Vec<_>>(),
    })
}

/// A run's input for a workflow: checked, with defaults.
///
/// # Errors
/// `invalid_request` with what is wrong by field.
pub(crate) fn input(workflow: &Workflow, input: &Map<String, Value>) -> Result<Value, Failure> {
    match workflow.check_input(input) {
        Ok(checked) => {
            let mut writes = Map::from_iter([(INPUT.to_owned(), Value::Object(checked))]);
            let open = input.iter().filter(|(name, _)| workflow.open.contains(*name));
            writes.extend(open.map(|(name, value)| (name.clone(), value.clone())));
            Ok(Value::Object(writes))
        }
        Err(problems) => {
            let text: Vec<String> =
                problems.iter().map(|(field, why)| format!("`{field}` {why}")).collect();
            let fields: Map<String, Value> =
                problems.into_iter().map(|(field, why)| (field, why.into())).collect();
            let text = format!("the input does not fit: {}", text.join("; "));
            Err(Failure::new(clearway_core::Code::InvalidRequest, text).with("fields", fields))
        }
    }
}
