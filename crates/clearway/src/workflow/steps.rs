//! What each kind of step does when its turn has come.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use clearway_core::channel::{Reducer, State, Write};
use clearway_core::event::EventKind;
use clearway_core::machine::Output;
use clearway_core::message::{Message, Role};
use clearway_core::plan::{Goto, MESSAGES};
use clearway_core::{Code, Failure, RunRecord, Status, Timestamp};
use clearway_engine::chat::{complete, human_input};
use clearway_engine::tool::converse;
use clearway_engine::upstream::ChatRequest;
use clearway_engine::{Child, ChildEnd, Ctx, Expiry, Node, NodeError, hex};
use minijinja::Value as Jinja;
use minijinja::value::Object;
use serde_json::{Map, Value, json};

use super::compile::{self, RESULT, Shared};
use super::expr::{FILE_BYTES, Template, VALUE_BYTES};
use super::request;
use super::structured;
use crate::config::workflow::{Case, END, Pause, Step, StepKind};
use crate::{mcp, tools};

/// Elements that one `for_each` may have.
const FOR_EACH_ITEMS: usize = 1000;

/// One step, or one element of a step with `for_each`.
#[derive(Debug)]
pub(super) struct StepNode {
    pub(super) shared: Arc<Shared>,
    pub(super) at: usize,
}

/// Sends one call per element to its step.
#[derive(Debug)]
pub(super) struct Scatter {
    pub(super) shared: Arc<Shared>,
    pub(super) at: usize,
}

/// Makes the workflow's result.
#[derive(Debug)]
pub(super) struct Fold {
    pub(super) shared: Arc<Shared>,
}

impl Shared {
    /// How often the run has come to this step, this time included.
    fn visits(&self, cx: &Ctx, step: &Step) -> u64 {
        if matches!(step.kind, StepKind::Branch { .. }) {
            let before = cx.state.get(&step.name).unwrap_or_default();
            return before["visits"].as_u64().unwrap_or(0) + 1;
        }
        let before = cx.state.get(&visits_channel(&step.name));
        let before = before.and_then(|count| count.as_u64()).unwrap_or(0);
        // The elements of a fan-out come after it has counted.
        if cx.payload.is_some() { before.max(1) } else { before + 1 }
    }

    /// What templates and expressions can use.
    fn values(self: &Arc<Self>, cx: &Ctx, at: usize, visits: u64) -> Arc<Values> {
        Arc::new(Values {
            shared: self.clone(),
            at,
            visits,
            now: self.clock.now(),
            state: cx.state.clone(),
            payload: cx.payload.clone(),
            record: cx.record().clone(),
            output: None,
            looked_up: Mutex::default(),
        })
    }
}

/// What templates and expressions of one call can use, by name. A value is made when it is first asked
/// for: a step seldom looks at more than a few of what the state has.
#[derive(Debug)]
struct Values {
    shared: Arc<Shared>,
    /// The step.
    at: usize,
    visits: u64,
    now: Timestamp,
    state: State,
    payload: Option<Arc<Value>>,
    record: Arc<RunRecord>,
    /// The step's own, once it is there.
    output: Option<Value>,
    /// As the template engine wants them: a loop asks for the same again and again.
    looked_up: Mutex<BTreeMap<String, Option<Jinja>>>,
}

impl Values {
    fn step(&self) -> &Step {
        &self.shared.workflow.steps[self.at]
    }

    fn get(&self, name: &str) -> Option<Value> {
        let record = &self.record;
        match (name, &self.payload, &self.output) {
            (name, _, Some(output)) if name == self.step().name => Some(output.clone()),
            ("item", Some(payload), _) => Some(payload["item"].clone()),
            ("loop", Some(payload), _) => {
                let index = payload["index"].as_u64().unwrap_or(0);
                Some(json!({"index": index + 1, "index0": index, "length": payload["of"]}))
            }
            ("step", ..) => Some(json!({"name": self.step().name, "visits": self.visits})),
            ("run", ..) => {
                let id = record.id.to_string();
                let key = record.metadata.get("key").cloned().unwrap_or_else(|| id.clone().into());
                Some(json!({
                    "id": id, "key": key, "thread": record.thread.to_string(),
                    "owner": record.owner, "workflow": self.shared.name,
                    "created_at": record.created_at.to_string(),
                }))
            }
            ("now", ..) => Some(self.now.to_string().into()),
            // A channel of that name is the author's own.
            ("context", ..) => {
                let context = || Value::Object(record.options.context.clone());
                Some(self.state.get(name).unwrap_or_else(context))
            }
            (name, ..) => self.state.get(name),
        }
    }

    /// The same with the step's own output.
    fn with_output(self: &Arc<Self>, output: Option<Value>) -> Arc<Self> {
        let Self { shared, at, visits, now, state, payload, record, .. } = &**self;
        Arc::new(Self {
            shared: shared.clone(),
            at: *at,
            visits: *visits,
            now: *now,
            state: state.clone(),
            payload: payload.clone(),
            record: record.clone(),
            output,
            looked_up: Mutex::default(),
        })
    }

    /// For the template engine.
    fn jinja(self: &Arc<Self>) -> Jinja {
        Jinja::from_dyn_object(self.clone())
    }
}

impl Object for Values {
    fn get_value(self: &Arc<Self>, name: &Jinja) -> Option<Jinja> {
        let name = name.as_str()?;
        let mut known = self.looked_up.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get(name) {
            return known.clone();
        }
        let value = self.get(name).map(|value| Jinja::from(minijinja::value::Serde(&value)));
        known.insert(name.to_owned(), value.clone());
        value
    }
}

/// Where a step that asks for the number of its visits keeps it. Not shown: no name has a colon.
pub(super) fn visits_channel(step: &str) -> String {
    format!("{step}:visits")
}

/// The count of a step, with its output; a fan-out has counted itself, and a branch shows its own.
fn counted(step: &Step, visits: u64) -> Option<Write> {
    let counts = step.uses_visits && step.for_each.is_none();
    counts.then(|| Write::new(&visits_channel(&step.name), visits.into()))
}

/// The output that a step's channel holds. Where a failed step goes on, it is `{error}`.
fn writes(step: &Step, output: Value) -> Vec<Write> {
    // An element's output is one element of the list, also when it is itself a list.
    let value = if step.for_each.is_some() { Value::Array(vec![output]) } else { output };
    vec![Write::new(&step.name, value)]
}

#[async_trait::async_trait]
impl Node for Scatter {
    async fn call(&self, cx: Ctx) -> Result<Output, NodeError> {
        let step = &self.shared.workflow.steps[self.at];
        let visits = self.shared.visits(&cx, step);
        let values = self.shared.values(&cx, self.at, visits).jinja();
        let clear = Write { assign: true, ..Write::new(&step.name, Value::Array(Vec::new())) };
        let mut all = vec![clear];
        if step.uses_visits {
            all.push(Write::new(&visits_channel(&step.name), visits.into()));
        }
        let on = |goto| Output { writes: all, goto: Some(goto), ..Output::default() };
        let runs = match &step.condition {
            Some(condition) => condition.is_true(&values)?,
            None => true,
        };
        let items = match &step.for_each {
            Some(list) if runs => list.evaluate(&values)?,
            Some(_) | None => Value::Array(Vec::new()),
        };
        let Value::Array(items) = items else {
            let text = format!("step `{}`: for_each must give a list", step.name);
            return Err(Failure::new(Code::TemplateFailed, text).into());
        };
        if items.len() > FOR_EACH_ITEMS {
            let text = format!(
                "step `{}`: for_each has {} elements; `for_each_items` is {FOR_EACH_ITEMS}",
                step.name,
                items.len()
            );
            return Err(Failure::new(Code::LimitExceeded, text)
                .with("limit", "for_each_items")
                .into());
        }
        let node: Arc<str> = step.name.as_str().into();
        if items.is_empty() {
            return Ok(on(vec![Goto::After(node)]));
        }
        let of = items.len();
        let send = |(index, item): (usize, Value)| Goto::Send {
            node: node.clone(),
            payload: json!({"item": item, "index": index, "of": of}),
        };
        Ok(on(items.into_iter().enumerate().map(send).collect()))
    }
}

#[async_trait::async_trait]
impl Node for Fold {
    async fn call(&self, cx: Ctx) -> Result<Output, NodeError> {
        let workflow = &self.shared.workflow;
        let Some(last) = workflow.steps.len().checked_sub(1) else { return Ok(Output::default()) };
        let values = self.shared.values(&cx, last, 1);
        let result = match &workflow.output {
            Some(expr) => expr.evaluate(&values.jinja())?,
            None => {
                let needed = |name: &str| {
                    workflow.steps.iter().any(|step| step.needs.iter().any(|need| need == name))
                };
                let ends = workflow.steps.iter().filter(|step| !needed(&step.name));
                let outputs =
                    ends.filter_map(|step| Some((step.name.clone(), values.get(&step.name)?)));
                Value::Object(outputs.collect())
            }
        };
        Ok(Output { writes: vec![Write::new(RESULT, result)], ..Output::default() })
    }
}

#[async_trait::async_trait]
impl Node for StepNode {
    async fn call(&self, cx: Ctx) -> Result<Output, NodeError> {
        let step = &self.shared.workflow.steps[self.at];
        let visits = self.shared.visits(&cx, step);
        let values = self.shared.values(&cx, self.at, visits);
        let context = values.jinja();
        // With `for_each`, the condition was asked before the fan-out.
        if let Some(condition) = step.condition.as_ref().filter(|_| step.for_each.is_none())
            && !condition.is_true(&context)?
        {
            let data = json!({"message": "skipped", "node": step.name, "skipped": true});
            cx.fact(EventKind::Progress, &data)?;
            let mut all = writes(step, Value::Null);
            all.extend(counted(step, visits));
            return Ok(Output { writes: all, ..Output::default() });
        }
        let mut output = self.perform(&cx, step, &values, &context, visits).await?;
        if let Some(name) = &step.save_as {
            let save = self.save(&cx, step, name, &context, output.value);
            output.value = Box::pin(save).await?;
        }
        let mut all = writes(step, output.value);
        all.extend(counted(step, visits));
        all.append(&mut output.writes);
        if !step.writes.is_empty() || !step.emit.is_empty() {
            let own = all.first().map(|own| own.value.clone());
            let context = values.with_output(own).jinja();
            for (at, (channel, expr)) in step.writes.iter().enumerate() {
                let value = expr.evaluate(&context)?;
                all.push(Write::new(channel, self.identified(&cx, channel, at, value)));
            }
            for (name, expr) in &step.emit {
                cx.emit(name, &expr.evaluate(&context)?)?;
            }
        }
        Ok(Output { writes: all, goto: output.goto, reply: output.reply, ..Output::default() })
    }
}

/// What a step makes.
#[derive(Debug, Default)]
struct Made {
    value: Value,
    goto: Option<Vec<Goto>>,
    reply: Option<uuid::Uuid>,
    /// To channels besides the step's own.
    writes: Vec<Write>,
}

impl From<Value> for Made {
    fn from(value: Value) -> Self {
        Self { value, ..Self::default() }
    }
}

impl StepNode {
    /// A channel that merges by id wants one: what has none gets the call's own, so that a repetition
    /// replaces instead of adding.
    fn identified(&self, cx: &Ctx, channel: &str, at: usize, mut value: Value) -> Value {
        if self.shared.workflow.channels.get(channel) != Some(&Reducer::MergeById) {
            return value;
        }
        let items = match &mut value {
            Value::Array(items) => items.as_mut_slice(),
            one => std::slice::from_mut(one),
        };
        for (nth, item) in items.iter_mut().enumerate() {
            if let Value::Object(item) = item
                && item.get("id").is_none_or(Value::is_null)
            {
                let index = u32::try_from(1000 * (at + 1) + nth).unwrap_or(u32::MAX);
                item.insert("id".to_owned(), cx.message_id(index).to_string().into());
            }
        }
        value
    }

    /// Whatever waits is in a box of its own: a call's future is as large as the largest of them, and is
    /// moved before it starts.
    async fn perform(
        &self,
        cx: &Ctx,
        step: &Step,
        values: &Values,
        context: &Jinja,
        visits: u64,
    ) -> Result<Made, NodeError> {
        match &step.kind {
            StepKind::Llm { .. } => Box::pin(self.ask_model(cx, step, context)).await,
            StepKind::Agent { agent, input } => {
                let text = input.render(context)?;
                let input = human_input(&text, &cx.message_id(100).to_string());
                let end = Box::pin(self.child(cx, agent, input)).await?;
                let messages = end.state.as_ref().and_then(|state| state[MESSAGES].as_array());
                let reply = messages
                    .and_then(|messages| messages.iter().rfind(|message| message["type"] == "ai"));
                let reply = reply.and_then(Message::from_value);
                Ok(Made::from(Value::String(
                    reply.map(|reply| reply.content.text()).unwrap_or_default(),
                )))
            }
            StepKind::Workflow { workflow, input } => {
                let mut given = Map::new();
                for (key, expr) in input {
                    given.insert(key.clone(), expr.evaluate(context)?);
                }
                let Some(called) = self.shared.config.workflows.get(workflow) else {
                    let text = format!("there is no workflow `{workflow}` any more");
                    return Err(Failure::new(Code::AgentNotFound, text).into());
                };
                let input = compile::input(called, &given)?;
                let end = Box::pin(self.child(cx, workflow, input)).await?;
                Ok(Made::from(end.state.map(|state| state[RESULT].clone()).unwrap_or_default()))
            }
            StepKind::Template { template, .. } => {
                // A report over everything may take a while; others are not to notice.
                let (template, context) = (template.clone(), context.clone());
                let most = if step.save_as.is_some() { FILE_BYTES } else { VALUE_BYTES };
                let render = move || template.render_within(&context, most);
                Ok(Value::String(self.shared.services.aside(render).await??).into())
            }
            StepKind::Set { value } => match value {
                Some(expr) => Ok(expr.evaluate(context)?.into()),
                None => Ok(Made::default()),
            },
            StepKind::Branch { when, max_visits } => {
                Ok(branch(step, when, *max_visits, context, visits, &self.shared)?)
            }
            StepKind::Ask { question, payload, show, choices, wait, on_timeout } => {
                if let Some(payload) = payload {
                    let expiry = on_timeout
                        .as_ref()
                        .map(|answer| Expiry { after: *wait, answer: answer.as_str().into() });
                    return Ok(cx.interrupt_for(payload.fill(context)?, expiry)?.into());
                }
                let text = question.render(context)?;
                let shown: Map<String, Value> = show
                    .iter()
                    .filter_map(|name| Some((name.clone(), values.get(name)?)))
                    .collect();
                let expiry = on_timeout.as_ref().map(|choice| Expiry {
                    after: *wait,
                    answer: json!({"choice": choice, "by": "time limit"}),
                });
                let mut question = request_for(step, &text, &shown, choices);
                loop {
                    let answer = cx.interrupt_for(question, expiry.clone())?;
                    let problem = match answered(choices, answer) {
                        Ok(answer) => return Ok(answer.into()),
                        Err(problem) => problem,
                    };
                    // Asked again, with what was wrong: a slip of the hand ends no work of hours.
                    let again = format!("{text}\n\nThe last answer cannot be used: {problem}");
                    question = request_for(step, &again, &shown, choices);
                }
            }
            StepKind::Wait { duration, until, event, limit } => {
                let (duration, until) = (duration.as_ref(), until.as_ref());
                Box::pin(self.wait(cx, context, duration, until, event.as_deref(), *limit)).await
            }
            StepKind::Http(request) => {
                let services = &self.shared.services;
                let answer = request::perform(cx, &step.name, request, services, context);
                Ok(Box::pin(answer).await?.into())
            }
            StepKind::Tool { server, tool, args, effect } => {
                let Some(found) = self.shared.services.mcp(server) else {
                    let text = format!("there is no MCP server `{server}` any more");
                    return Err(Failure::new(Code::NotFound, text).into());
                };
                let Value::Object(args) = args.fill(context)? else {
                    let text = format!("step `{}`: `args` must be a table", step.name);
                    return Err(Failure::new(Code::TemplateFailed, text).into());
                };
                Ok(Box::pin(mcp::call_for_step(cx, &found, tool, *effect, args)).await?.into())
            }
            StepKind::Search { source, query, limit } => {
                let query = query.render(context)?;
                let Some(searcher) = self.shared.services.searcher(source) else {
                    let text = format!("there is no knowledge source `{source}` any more");
                    return Err(Failure::new(Code::NotFound, text).into());
                };
                Ok(Box::pin(searcher.search(cx, &query, *limit)).await?.into())
            }
            StepKind::Fail { message } => {
                let text = message.render(context)?;
                Err(Failure::new(Code::StepFailed, text).with("step", step.name.as_str()).into())
            }
        }
    }

    async fn child(&self, cx: &Ctx, agent: &str, input: Value) -> Result<ChildEnd, NodeError> {
        let mut metadata = cx.record().metadata.clone();
        metadata.remove("key");
        let child = Child { agent: agent.to_owned(), input, metadata };
        let end = cx.child("run", child).await?;
        if end.status == Status::Success {
            return Ok(end);
        }
        let failure = end.failure.clone().unwrap_or_else(|| {
            Failure::new(Code::Internal, format!("it ended as {}", end.status.as_str()))
        });
        let text = format!("`{agent}` (run {}) failed: {}", end.run, failure.message);
        Err(Failure { message: text, ..failure }.into())
    }

    async fn wait(
        &self,
        cx: &Ctx,
        context: &Jinja,
        duration: Option<&Pause>,
        until: Option<&super::expr::Expr>,
        event: Option<&str>,
        limit: Duration,
    ) -> Result<Made, NodeError> {
        let now = self.shared.clock.now();
        if let Some(event) = event {
            // The limit counts from the first time, so it is a timer of its own.
            let until = cx.step("limit", async { Ok(now.plus(limit).0.into()) }).await?;
            let until = Timestamp(until.as_i64().unwrap_or(now.0));
            let payload = cx.signal(event, Some(until)).await?;
            return Ok(
                json!({"event": event, "payload": payload, "timed_out": payload.is_none()}).into()
            );
        }
        if let Some(duration) = duration {
            cx.sleep("wait", pause(duration, context)?).await?;
        }
        if let Some(until) = until {
            let at = until.evaluate(context)?;
            let at = at.as_str().and_then(|text| chrono::DateTime::parse_from_rfc3339(text).ok());
            let at = at.ok_or_else(|| {
                let text = format!("`{}` gives no time (RFC 3339)", until.source);
                Failure::new(Code::TemplateFailed, text)
            })?;
            cx.sleep_until("wait", Timestamp(at.timestamp_millis())).await?;
        }
        Ok(Made::default())
    }

    /// Keeps the output as a file; what the step's channel holds then.
    async fn save(
        &self,
        cx: &Ctx,
        step: &Step,
        name: &Template,
        context: &Jinja,
        value: Value,
    ) -> Result<Value, NodeError> {
        let name = name.render(context)?;
        let name = name.trim();
        let text = match &value {
            Value::String(text) => text.clone(),
            other => format!("{other:#}"),
        };
        let is_pdf = matches!(&step.kind, StepKind::Template { pdf: true, .. });
        let (bytes, guessed) = match is_pdf {
            true => {
                let title = name.to_owned();
                let lay_out = move || crate::pdf::from_markdown(&text, &title);
                (self.shared.services.aside(lay_out).await??, "application/pdf")
            }
            false => (text.into_bytes(), media_type(name)),
        };
        let media_type = step.media_type.as_deref().unwrap_or(guessed);
        let record = cx.artifact(name, media_type, Bytes::from(bytes)).await?;
        let artifact = json!({
            "name": record.name, "size": record.size_bytes, "sha256": hex(&record.sha256),
            "media_type": record.media_type, "version": record.version,
        });
        // Structured output stays what it is; a rendered file is known by its name.
        Ok(match value {
            Value::Object(mut object) => {
                object.insert("artifact".to_owned(), artifact);
                Value::Object(object)
            }
            other if matches!(step.kind, StepKind::Template { .. }) => {
                drop(other);
                json!({"artifact": artifact})
            }
            other => json!({"text": other, "artifact": artifact}),
        })
    }
}

impl StepNode {
    async fn ask_model(&self, cx: &Ctx, step: &Step, context: &Jinja) -> Result<Made, NodeError> {
        let StepKind::Llm { model, prompt, system, messages, output, params, .. } = &step.kind
        else {
            return Ok(Made::default());
        };
        let mut asked = Vec::new();
        if let Some(system) = system {
            let text = system.render(context)?;
            asked.push(Arc::new(Message::new(Role::System, text, "system").to_value()));
        }
        if let Some(channel) = messages {
            asked.extend_from_slice(cx.state.list(channel));
        }
        if let Some(prompt) = prompt {
            let text = prompt.render(context)?;
            asked.push(Arc::new(Message::new(Role::Human, text, "prompt").to_value()));
        }
        let mut request =
            ChatRequest { model: model.clone(), messages: asked, params: params.clone() };
        let toolbox = tools::of_step(&step.kind, &self.shared.config, &self.shared.services);
        if let Some(schema) = output {
            let format = structured::response_format(&step.name, schema);
            request.params.insert("response_format".to_owned(), format);
        }
        // Tools first: the answer that is checked is the one after the last call.
        let first = match &toolbox {
            Some(toolbox) => Box::pin(converse(cx, toolbox, &mut request)).await?,
            None => Box::pin(complete(cx, "", 0, request.clone())).await?,
        };
        let reply = first.id.parse().ok();
        let spoken = messages.as_ref().map(|channel| Write::new(channel, first.to_value()));
        let value = match output {
            None => Value::String(first.content.text()),
            Some(schema) => Box::pin(structured_answer(cx, step, request, first, schema)).await?,
        };
        let reply = reply.filter(|_| spoken.is_some());
        Ok(Made { value, reply, writes: spoken.into_iter().collect(), goto: None })
    }
}

/// An answer as JSON that fits a schema; asks once more if it does not.
async fn structured_answer(
    cx: &Ctx,
    step: &Step,
    mut request: ChatRequest,
    first: Message,
    schema: &Value,
) -> Result<Value, NodeError> {
    let answer = first.content.text();
    let problems = match structured::parse(&answer, schema) {
        Ok(value) => return Ok(value),
        Err(problems) => problems,
    };
    cx.progress(&format!("the answer does not fit its schema, asking once more: {problems}"))?;
    request.messages.push(Arc::new(first.to_value()));
    let repair = Message::new(Role::Human, structured::repair(&problems), "repair");
    request.messages.push(Arc::new(repair.to_value()));
    let second = complete(cx, "-repair", REPAIR, request).await?.content.text();
    match structured::parse(&second, schema) {
        Ok(value) => Ok(value),
        Err(problems) => Err(structured::failed(&step.name, &problems, &second).into()),
    }
}

/// Number of the message that repairs an answer; those before it are the conversation's.
const REPAIR: u32 = 1_000_000;

fn branch(
    step: &Step,
    when: &[Case],
    max_visits: u32,
    context: &Jinja,
    visits: u64,
    shared: &Shared,
) -> Result<Made, Failure> {
    let mut chosen = None;
    for case in when {
        let fits = match &case.condition {
            Some(condition) => condition.is_true(context)?,
            None => true,
        };
        if fits {
            chosen = Some(case);
            break;
        }
    }
    if max_visits > 0 && visits > u64::from(max_visits) {
        let text = format!(
            "branch `{}` was reached {visits} times; its `max_visits` is {max_visits}",
            step.name
        );
        return Err(Failure::new(Code::LimitExceeded, text).with("limit", "max_visits"));
    }
    let Some(case) = chosen else {
        let text = format!("no way out of branch `{}` fits; add one with else = true", step.name);
        return Err(Failure::new(Code::StepFailed, text).with("step", step.name.as_str()));
    };
    let goto = match shared.workflow.step(&case.go).filter(|_| case.go != END) {
        Some(to) => vec![Goto::Node(compile::entry(to).into())],
        None => Vec::new(),
    };
    let value = json!({"go": case.go, "visits": visits});
    Ok(Made { value, goto: Some(goto), ..Made::default() })
}

/// A question in the shape that Agent Chat UI draws.
fn request_for(
    step: &Step,
    question: &str,
    shown: &Map<String, Value>,
    choices: &[String],
) -> Value {
    json!({
        "action_requests": [{
            "name": step.name,
            "args": shown,
            "description": question,
        }],
        "review_configs": [{"action_name": step.name, "allowed_decisions": choices}],
        "question": question,
        "choices": choices,
    })
}

/// How long a step waits.
fn pause(pause: &Pause, context: &Jinja) -> Result<Duration, Failure> {
    let wrong = |source: &str, gives: &str| {
        Failure::new(Code::TemplateFailed, format!("`{source}` gives {gives}"))
    };
    match pause {
        Pause::Seconds(expr) => {
            let seconds = expr.evaluate(context)?;
            let seconds = seconds.as_f64().or_else(|| seconds.as_str()?.parse().ok());
            let seconds = seconds.filter(|seconds| (0.0..=LONGEST_WAIT).contains(seconds));
            let seconds = seconds.ok_or_else(|| wrong(&expr.source, "no number of seconds"))?;
            Ok(Duration::from_secs_f64(seconds))
        }
        Pause::Text(template) => {
            let text = template.render(context)?;
            if let Some(seconds) = text.trim().strip_suffix('s').and_then(|text| text.parse().ok())
                && (0.0..=LONGEST_WAIT).contains(&seconds)
            {
                return Ok(Duration::from_secs_f64(seconds));
            }
            let parsed = crate::config::parse_duration(&text);
            parsed.ok_or_else(|| wrong(&template.name, &format!("`{text}`, which is no duration")))
        }
    }
}

/// In seconds: about a year.
const LONGEST_WAIT: f64 = 3.2e7;

/// What somebody answered: a choice, `{choice, value?}`, or a list of decisions as chat UIs send it.
///
/// # Errors
/// What is wrong with the answer.
fn answered(choices: &[String], answer: Value) -> Result<Value, String> {
    let decision = answer["decisions"].get(0).unwrap_or(&answer);
    let choice = decision
        .as_str()
        .or_else(|| decision["choice"].as_str())
        .or_else(|| decision["type"].as_str());
    let value = ["value", "edited_action", "args", "message"]
        .into_iter()
        .find_map(|key| decision.get(key))
        .cloned()
        .unwrap_or_default();
    let by = decision.get("by").cloned().unwrap_or_default();
    match choice {
        Some(choice) if choices.is_empty() || choices.iter().any(|known| known == choice) => {
            Ok(json!({"choice": choice, "value": value, "by": by}))
        }
        // A question without choices takes anything.
        None if choices.is_empty() => Ok(json!({"choice": null, "value": answer, "by": by})),
        _ => Err(format!("it must be one of: {}", choices.join(", "))),
    }
}

/// By the extension.
fn media_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, extension)| extension) {
        Some("html") => "text/html",
        Some("md") => "text/markdown",
        Some("csv") => "text/csv",
        Some("json") => "application/json",
        Some("svg") => "image/svg+xml",
        Some("pdf") => "application/pdf",
        _ => "text/plain",
    }
}
