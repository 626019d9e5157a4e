//! `[workflows.NAME]`: steps as flat tables, read and checked as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use clearway_core::channel::Reducer;
use clearway_core::run::Budget;
use clearway_core::{Code, Priority};
use clearway_engine::Effect;
use serde_json::{Map, Value as Json};

use super::duration::DEADLINE;
use super::read::{Files, params, read_file};
use super::report::Problem;
use super::tools::{self, ToolRef};
use super::walk::{At, Table, Value, nearest};
use crate::workflow::expr::{Expr, Template};
use crate::workflow::request::HttpRequest;
use crate::workflow::shape::Shape;

mod check;
mod outside;

/// A workflow whose names all resolve.
#[derive(Clone, Debug)]
pub struct Workflow {
    pub title: String,
    pub description: String,
    pub input: Vec<InputField>,
    pub pool: String,
    pub priority: Priority,
    /// Of working time.
    pub deadline: Duration,
    pub max_steps: u32,
    /// Wait for a provider instead of failing.
    pub park_on_outage: bool,
    pub budget: Budget,
    /// Channels besides those of the steps.
    pub channels: BTreeMap<String, Reducer>,
    /// Those of them that a caller's input may write, by their names.
    pub open: BTreeSet<String>,
    /// In the order of the file.
    pub steps: Vec<Step>,
    /// The result; without it, the outputs of the steps that nothing needs.
    pub output: Option<Expr>,
    pub keep: clearway_engine::Keep,
}

impl Workflow {
    pub fn step(&self, name: &str) -> Option<&Step> {
        self.steps.iter().find(|step| step.name == name)
    }

    /// Steps that run only when they are sent to.
    pub fn targets(&self) -> BTreeSet<&str> {
        let mut targets = BTreeSet::new();
        for step in &self.steps {
            if let StepKind::Branch { when, .. } = &step.kind {
                targets.extend(when.iter().map(|case| case.go.as_str()));
            }
            if let OnError::Go(to) = &step.on_error {
                targets.insert(to);
            }
        }
        targets
    }

    /// Checks an input and fills in defaults.
    ///
    /// # Errors
    /// What is wrong with each field.
    pub fn check_input(
        &self,
        input: &Map<String, Json>,
    ) -> Result<Map<String, Json>, Vec<(String, String)>> {
        let mut checked = Map::new();
        let mut problems = Vec::new();
        for field in &self.input {
            match input.get(&field.name).filter(|value| !value.is_null()) {
                Some(value) => match field.check(value) {
                    Ok(()) => {
                        checked.insert(field.name.clone(), value.clone());
                    }
                    Err(why) => problems.push((field.name.clone(), why)),
                },
                None => match &field.default {
                    Some(default) => {
                        checked.insert(field.name.clone(), default.clone());
                    }
                    None => problems.push((field.name.clone(), "is required".to_owned())),
                },
            }
        }
        let unknown = |name: &&String| {
            self.input.iter().all(|field| field.name != **name) && !self.open.contains(*name)
        };
        for name in input.keys().filter(unknown) {
            let known = self.input.iter().map(|field| field.name.as_str());
            let why = match nearest(name, known) {
                Some(near) => format!("is not an input; did you mean `{near}`?"),
                None => "is not an input".to_owned(),
            };
            problems.push((name.clone(), why));
        }
        if problems.is_empty() { Ok(checked) } else { Err(problems) }
    }
}

/// One field of a workflow's input.
#[derive(Clone, Debug, PartialEq)]
pub struct InputField {
    pub name: String,
    pub kind: InputKind,
    pub list: bool,
    /// `None` for a field that must be given.
    pub default: Option<Json>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputKind {
    String,
    Integer,
    Number,
    Boolean,
    Json,
}

/// Bytes of one text of an input.
const INPUT_TEXT: usize = 64 << 10;

impl InputField {
    fn check(&self, value: &Json) -> Result<(), String> {
        if !self.list {
            return self.kind.check(value);
        }
        let Some(items) = value.as_array() else { return Err("must be a list".to_owned()) };
        if items.len() > 1000 {
            return Err("may have at most 1000 elements".to_owned());
        }
        for (at, item) in items.iter().enumerate() {
            self.kind.check(item).map_err(|why| format!("element {at} {why}"))?;
        }
        Ok(())
    }
}

impl InputKind {
    fn check(self, value: &Json) -> Result<(), String> {
        let (fits, name) = match self {
            Self::String => (value.is_string(), "a text"),
            Self::Integer => (value.is_i64() || value.is_u64(), "a whole number"),
            Self::Number => (value.is_number(), "a number"),
            Self::Boolean => (value.is_boolean(), "true or false"),
            Self::Json => (true, "JSON"),
        };
        if !fits {
            return Err(format!("must be {name}"));
        }
        match value.as_str() {
            Some(text) if text.len() > INPUT_TEXT => {
                Err(format!("may have at most {INPUT_TEXT} bytes"))
            }
            _ => Ok(()),
        }
    }
}

/// `[workflows.NAME.steps.STEP]`.
#[derive(Clone, Debug)]
pub struct Step {
    pub name: String,
    pub title: String,
    pub category: String,
    pub description: String,
    pub needs: Vec<String>,
    pub condition: Option<Expr>,
    pub for_each: Option<Expr>,
    pub at_once: u32,
    pub deadline: Duration,
    pub idle: Option<Duration>,
    pub attempts: u32,
    pub backoff: Duration,
    pub on_error: OnError,
    pub save_as: Option<Template>,
    pub media_type: Option<String>,
    pub cache: Option<Duration>,
    /// Further writes when it has ended.
    pub writes: Vec<(String, Expr)>,
    /// Custom events when it has ended: name and data.
    pub emit: Vec<(String, Expr)>,
    /// Whether it asks how often it was visited, which is counted only then.
    pub uses_visits: bool,
    pub kind: StepKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OnError {
    Fail,
    Continue,
    Go(String),
}

/// What a step does.
#[derive(Clone, Debug)]
pub enum StepKind {
    Llm {
        model: String,
        /// `None` only with `messages`.
        prompt: Option<Template>,
        system: Option<Template>,
        /// The channel of a conversation: what was said there goes before, the answer is added.
        messages: Option<String>,
        output: Option<Json>,
        params: Map<String, Json>,
        tools: Vec<ToolRef>,
        tool_rounds: u32,
    },
    Agent {
        agent: String,
        input: Template,
    },
    Template {
        template: Template,
        pdf: bool,
    },
    Set {
        value: Option<Expr>,
    },
    Branch {
        when: Vec<Case>,
        max_visits: u32,
    },
    Ask {
        question: Template,
        /// Instead of the question in the usual form; the answer is then any JSON, too.
        payload: Option<Shape>,
        show: Vec<String>,
        choices: Vec<String>,
        wait: Duration,
        on_timeout: Option<String>,
    },
    Workflow {
        workflow: String,
        input: Vec<(String, Expr)>,
    },
    Wait {
        duration: Option<Pause>,
        until: Option<Expr>,
        event: Option<String>,
        limit: Duration,
    },
    Fail {
        message: Template,
    },
    Search {
        source: String,
        query: Template,
        limit: Option<u32>,
    },
    Http(Box<HttpRequest>),
    /// One tool of an MCP server.
    Tool {
        server: String,
        tool: String,
        args: Shape,
        /// Instead of what the server says.
        effect: Option<Effect>,
    },
}

/// How long a step waits.
#[derive(Clone, Debug)]
pub enum Pause {
    /// An expression that gives seconds.
    Seconds(Expr),
    /// A template that gives a duration: `{{ input.seconds }}s`.
    Text(Template),
}

impl StepKind {
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Llm { .. } => "llm",
            Self::Agent { .. } => "agent",
            Self::Template { .. } => "template",
            Self::Set { .. } => "set",
            Self::Branch { .. } => "branch",
            Self::Ask { .. } => "ask",
            Self::Workflow { .. } => "workflow",
            Self::Wait { .. } => "wait",
            Self::Fail { .. } => "fail",
            Self::Search { .. } => "search",
            Self::Http(_) => "http",
            Self::Tool { .. } => "tool",
        }
    }
}

/// One way out of a branch. `END` ends it.
#[derive(Clone, Debug)]
pub struct Case {
    /// `None` always fits.
    pub condition: Option<Expr>,
    pub go: String,
}

/// The word for the end as a branch's target.
pub const END: &str = "end";

/// A workflow as read: names that other tables define are looked up at the end.
#[derive(Debug)]
pub(super) struct WorkflowDraft {
    pub(super) workflow: Workflow,
    pub(super) pool: Option<At<String>>,
    /// Names of models, agents, workflows and others that steps use.
    pub(super) uses: Vec<(&'static str, At<String>)>,
    /// Tools by the place of their step.
    pub(super) tools: Vec<(usize, Vec<At<ToolRef>>)>,
}

/// What reading a workflow needs besides its table.
pub(super) struct Around<'f> {
    pub(super) files: &'f Files,
    pub(super) read_files: &'f mut Vec<PathBuf>,
}

pub(super) fn read(name: &str, table: Table<'_>, around: &mut Around<'_>) -> Option<WorkflowDraft> {
    let text = |key| table.get(key).and_then(|value| value.text().map(ToOwned::to_owned));
    let title = text("title").unwrap_or_else(|| name.to_owned());
    let description = text("description").unwrap_or_default();
    let input = table.get("input").map(|value| input(&value)).unwrap_or_default();
    let pool = table.get("pool").and_then(|value| value.name());
    let priority = table.get("priority").and_then(|value| {
        let names = [("high", 2), ("normal", 3), ("low", 4)];
        let level = match value.text() {
            Some(_) => value.one_of(&names),
            None => value.count(1..=5),
        };
        level.and_then(|level| Priority::new(level as u8))
    });
    let deadline = table.get("deadline").and_then(|value| value.duration(DEADLINE));
    let max_steps = table.get("max_steps").and_then(|value| value.count(1..=100_000));
    let outage = [("park", true), ("fail", false)];
    let park_on_outage = table.get("on_outage").and_then(|value| value.one_of(&outage));
    let mut budget = Budget::default();
    if let Some(limits) = table.get("budget").and_then(|value| value.table()) {
        budget.tokens = limits.get("tokens").and_then(|value| value.integer(1..=u64::MAX >> 1));
        budget.cost_micros = limits.get("cost").and_then(|value| value.micros());
        budget.calls = limits.get("calls").and_then(|value| value.count(1..=u32::MAX));
        limits.finish();
    }
    let keep = table.get("keep").and_then(|value| keep(&value));
    let (channels, open) = channels(&table);
    let output = table.get("output").and_then(|value| expr(&value, "output"));
    let mut draft =
        Drafting { around, uses: Vec::new(), places: BTreeMap::new(), tools: Vec::new() };
    let mut tables = table.named("steps");
    // Steps are shown and drawn in the order in which they were written.
    tables.sort_by_key(|(_, table)| table.span.start);
    let mut steps: Vec<Step> = Vec::with_capacity(tables.len());
    let mut tools = Vec::new();
    for (step, table) in tables {
        steps.extend(draft.step(&step, table));
        let refs = std::mem::take(&mut draft.tools);
        tools.extend((!refs.is_empty() && !steps.is_empty()).then(|| (steps.len() - 1, refs)));
    }
    let Drafting { uses, places, .. } = draft;
    if steps.is_empty() {
        table.walk.note(
            Problem::new(format!("workflow `{name}` has no steps"))
                .at(&table.walk.source, table.span.clone(), "here")
                .help(format!("add [workflows.{name}.steps.first] with do = \"llm\"")),
        );
    }
    let workflow = Workflow {
        title,
        description,
        input,
        pool: pool.as_ref().map_or_else(|| POOL.to_owned(), |pool| pool.value.clone()),
        priority: priority.unwrap_or(Priority::NORMAL),
        deadline: deadline.unwrap_or(Duration::from_secs(30 * 60)),
        max_steps: max_steps.unwrap_or(250),
        park_on_outage: park_on_outage.unwrap_or(true),
        budget,
        channels,
        open,
        steps,
        output,
        keep: keep.unwrap_or(clearway_engine::Keep::All),
    };
    check::check(name, &workflow, &table, &places);
    table.finish();
    Some(WorkflowDraft { workflow, pool, uses, tools })
}

/// The pool of workflows that name none.
pub const POOL: &str = "workflows";

fn channels(table: &Table<'_>) -> (BTreeMap<String, Reducer>, BTreeSet<String>) {
    let mut open = BTreeSet::new();
    let read = |(name, table): (String, Table<'_>)| {
        if let Some(kind) = table.get("type") {
            kind.one_of(&[("list", ()), ("value", ()), ("object", ())])?;
        }
        let reducers = [
            ("last", Reducer::Last),
            ("append", Reducer::Append),
            ("merge_by_id", Reducer::MergeById),
            ("set", Reducer::Set),
            ("merge", Reducer::Merge),
        ];
        let reducer = match table.get("reducer") {
            Some(value) => value.one_of(&reducers)?,
            None => Reducer::Last,
        };
        if table.get("input").and_then(|value| value.boolean()) == Some(true) {
            open.insert(name.clone());
        }
        table.finish();
        Some((name, reducer))
    };
    let channels = table.named("channels").into_iter().filter_map(read).collect();
    (channels, open)
}

fn input(value: &Value<'_>) -> Vec<InputField> {
    let mut fields = Vec::new();
    for (name, value) in value.entries() {
        let Some(text) = value.text() else { continue };
        let (kind, default) = match text.split_once('=') {
            Some((kind, default)) => (kind.trim(), Some(default.trim())),
            None => (text.trim(), None),
        };
        let optional = kind.ends_with('?');
        let kind = kind.trim_end_matches('?');
        let list = kind.ends_with("[]");
        let kinds = [
            ("string", InputKind::String),
            ("integer", InputKind::Integer),
            ("number", InputKind::Number),
            ("boolean", InputKind::Boolean),
            ("json", InputKind::Json),
        ];
        let bare = kind.trim_end_matches("[]");
        let Some((_, kind)) = kinds.into_iter().find(|(known, _)| *known == bare) else {
            value.problem(
                format!("`{text}` is no type of an input"),
                "not known",
                "string, integer, number, boolean or json; then [] for a list, ? for optional, \
                 = 'value' for a default",
            );
            continue;
        };
        let default = match default {
            Some(default) => {
                let parsed = serde_json::from_str(&default.replace('\'', "\""));
                let Ok(parsed) = parsed else {
                    value.problem(format!("`{default}` is no value"), "here", "write it as JSON");
                    continue;
                };
                Some(parsed)
            }
            None if optional && list => Some(Json::Array(Vec::new())),
            None if optional => Some(match kind {
                InputKind::String => "".into(),
                _ => Json::Null,
            }),
            None => None,
        };
        fields.push(InputField { name, kind, list, default });
    }
    fields
}

fn expr(value: &Value<'_>, name: &str) -> Option<Expr> {
    let text = value.text()?;
    match Expr::compile(name, text) {
        Ok(expr) => Some(expr),
        Err(why) => {
            value.problem(format!("this expression is broken: {why}"), "here", "");
            None
        }
    }
}

/// Expressions by key.
fn exprs(value: &Value<'_>, name: &str) -> Vec<(String, Expr)> {
    let read = |(key, value): (String, Value<'_>)| {
        let compiled = expr(&value, &format!("{name}.{key}"))?;
        Some((key, compiled))
    };
    value.entries().into_iter().filter_map(read).collect()
}

type Places<'a> = BTreeMap<(String, &'static str), Value<'a>>;

/// Reading steps, with the places of what may turn out wrong.
struct Drafting<'r, 'f, 'a> {
    around: &'r mut Around<'f>,
    uses: Vec<(&'static str, At<String>)>,
    places: Places<'a>,
    /// Of the step that is being read.
    tools: Vec<At<ToolRef>>,
}

impl<'a> Drafting<'_, '_, 'a> {
    /// A text, or `{ file = "…" }`.
    fn template(&mut self, value: &Value<'a>, name: &str) -> Option<Template> {
        let (name, text) = if value.is_table() {
            let table = value.table()?;
            let file = table.require("file", "write { file = \"prompts/name.md\" } or the text");
            table.finish();
            self.file(&file?)?
        } else {
            (name.to_owned(), value.text()?.to_owned())
        };
        match Template::compile(&name, &text) {
            Ok(template) => Some(template),
            Err(why) => {
                value.problem(format!("this template is broken: {why}"), "here", "");
                None
            }
        }
    }

    fn file(&mut self, value: &Value<'a>) -> Option<(String, String)> {
        let name = value.name()?.value;
        let (text, path) = read_file(value, &name, self.around.files)?;
        self.around.read_files.extend(path);
        Some((name, text))
    }

    fn schema(&mut self, value: &Value<'a>) -> Option<Json> {
        tools::schema(value, self.around.files, self.around.read_files)
    }

    fn name(&mut self, what: &'static str, value: Option<Value<'a>>) -> Option<String> {
        let name = value?.name()?;
        self.uses.push((what, name.clone()));
        Some(name.value)
    }

    fn step(&mut self, name: &str, table: Table<'a>) -> Option<Step> {
        let text =
            |key| table.get(key).and_then(|value: Value<'_>| value.text().map(ToOwned::to_owned));
        let kind = table.require("do", "say what the step does: do = \"llm\"")?;
        let do_ = kind.text()?.to_owned();
        let named = |key: &str| format!("{name}.{key}");
        let mut place = |key: &'static str| {
            let value = table.get(key);
            if let Some(value) = &value {
                self.places.insert((name.to_owned(), key), value.clone());
            }
            value
        };
        let needs = place("needs").map(|value| value.texts()).unwrap_or_default();
        let condition = place("if").and_then(|value| expr(&value, &named("if")));
        let for_each = place("for_each").and_then(|value| expr(&value, &named("for_each")));
        let on_error_value = place("on_error");
        let on_error = match on_error_value.as_ref().and_then(|value| value.text()) {
            None | Some("fail") => OnError::Fail,
            Some("continue") => OnError::Continue,
            Some(step) => OnError::Go(step.to_owned()),
        };
        let writes = place("writes").map(|value| exprs(&value, name)).unwrap_or_default();
        let emit = place("emit").map(|value| exprs(&value, name)).unwrap_or_default();
        let waits = matches!(do_.as_str(), "ask" | "wait");
        let deadline = match waits {
            true => None,
            false => table.get("deadline").and_then(|value| value.duration(DEADLINE)),
        };
        let retry = table.get("retry").and_then(|value| value.table());
        let (mut attempts, mut backoff) = (1, Duration::from_millis(500));
        if let Some(retry) = retry {
            attempts = retry.get("attempts").and_then(|value| value.count(1..=20)).unwrap_or(3);
            backoff = retry.get("backoff").and_then(|value| value.pause()).unwrap_or(backoff);
            retry.finish();
        }
        let save_as = place("save_as");
        let save_as = save_as.and_then(|value| self.template(&value, &named("save_as")));
        let kind = self.kind(name, &do_, &kind, &table);
        let mut step = Step {
            name: name.to_owned(),
            title: text("title").unwrap_or_else(|| title_of(name)),
            category: text("category").unwrap_or_default(),
            description: text("description").unwrap_or_default(),
            needs,
            condition,
            for_each,
            at_once: table.get("at_once").and_then(|value| value.count(1..=64)).unwrap_or(8),
            deadline: deadline.unwrap_or(Duration::from_secs(120)),
            idle: table.get("idle").and_then(|value| value.duration(DEADLINE)),
            attempts,
            backoff,
            on_error,
            save_as,
            media_type: text("type"),
            cache: table.get("cache").and_then(|value| value.duration(DEADLINE)),
            writes,
            emit,
            uses_visits: false,
            kind: kind?,
        };
        step.uses_visits =
            !matches!(step.kind, StepKind::Branch { .. }) && check::uses_visits(&step);
        table.finish();
        Some(step)
    }

    fn kind(
        &mut self,
        name: &str,
        do_: &str,
        value: &Value<'a>,
        table: &Table<'a>,
    ) -> Option<StepKind> {
        let named = |key: &str| format!("{name}.{key}");
        let template = |this: &mut Self, key: &'static str, why: &str| {
            let value = table.require(key, why)?;
            this.places.insert((name.to_owned(), key), value.clone());
            this.template(&value, &named(key))
        };
        Some(match do_ {
            "llm" => {
                let messages = table.get("messages").and_then(|value| {
                    let name = value.name()?.value;
                    self.places.insert((name.clone(), "messages"), value);
                    Some(name)
                });
                let prompt = match messages.is_some() && table.get("prompt").is_none() {
                    true => None,
                    false => Some(template(self, "prompt", "say what the model is asked")?),
                };
                let system = table.get("system");
                if let Some(value) = &system {
                    self.places.insert((name.to_owned(), "system"), value.clone());
                }
                let system = system.and_then(|value| self.template(&value, &named("system")));
                self.tools =
                    table.get("tools").map(|value| tools::read(&value)).unwrap_or_default();
                let rounds = table.get("tool_rounds").and_then(|value| value.count(1..=100));
                let output = table.get("output").map(|value| self.schema(&value));
                let model = self.name("model", table.get("model"));
                StepKind::Llm {
                    model: model.unwrap_or_else(|| super::DEFAULT_MODEL.to_owned()),
                    prompt,
                    system,
                    messages,
                    tools: Vec::new(),
                    tool_rounds: rounds.unwrap_or(clearway_engine::tool::ROUNDS),
                    output: match output {
                        Some(output) => Some(output?),
                        None => None,
                    },
                    params: params(table),
                }
            }
            "agent" => {
                let agent = self.name("agent", table.require("agent", "say which agent"));
                let input = template(self, "input", "say what it is asked");
                StepKind::Agent { agent: agent?, input: input? }
            }
            "template" => {
                let key = if table.get("text").is_some() { "text" } else { "template" };
                let body = match key {
                    "text" => template(self, key, ""),
                    _ => {
                        let why = "name a file, or write the text as text = \"…\"";
                        let file = table.require(key, why)?;
                        self.places.insert((name.to_owned(), key), file.clone());
                        let (file_name, text) = self.file(&file)?;
                        let compiled = Template::compile(&file_name, &text);
                        compiled
                            .map_err(|why| {
                                file.problem(format!("this template is broken: {why}"), "here", "");
                            })
                            .ok()
                    }
                };
                let pdf = table
                    .get("as")
                    .and_then(|value| value.one_of(&[("pdf", true), ("text", false)]));
                StepKind::Template { template: body?.for_lanes(), pdf: pdf.unwrap_or(false) }
            }
            "set" => StepKind::Set {
                value: table.get("value").and_then(|value| expr(&value, &named("value"))),
            },
            "branch" => {
                let cases = table
                    .require("when", "say where to go: when = [{ if = \"…\", go = \"…\" }]")?;
                let when = cases.list().iter().filter_map(|case| self.case(name, case)).collect();
                self.places.insert((name.to_owned(), "when"), cases);
                let max_visits = table.get("max_visits").and_then(|value| value.count(1..=10_000));
                StepKind::Branch { when, max_visits: max_visits.unwrap_or(0) }
            }
            "ask" => {
                let payload = table.get("payload");
                if let Some(value) = &payload {
                    self.places.insert((name.to_owned(), "payload"), value.clone());
                }
                let payload = payload.map(|value| outside::shape(&value, &named("payload")));
                let question = match payload.is_some() && table.get("question").is_none() {
                    true => Template::compile(&named("question"), "").ok(),
                    false => template(self, "question", "say what is asked"),
                };
                let choices = table.get("choices").map(|value| value.texts());
                StepKind::Ask {
                    question: question?,
                    payload: match payload {
                        Some(payload) => Some(payload?),
                        None => None,
                    },
                    show: table.get("show").map(|value| value.texts()).unwrap_or_default(),
                    choices: choices
                        .unwrap_or_else(|| ["approve", "edit", "reject"].map(str::to_owned).into()),
                    wait: table
                        .get("wait")
                        .and_then(|value| value.duration(LONG))
                        .unwrap_or(Duration::from_secs(24 * 3600)),
                    on_timeout: table
                        .get("on_timeout")
                        .and_then(|value| value.text().map(ToOwned::to_owned)),
                }
            }
            "workflow" => {
                let workflow =
                    self.name("workflow", table.require("workflow", "say which workflow"));
                let input = table.get("input").map(|value| exprs(&value, name));
                StepKind::Workflow { workflow: workflow?, input: input.unwrap_or_default() }
            }
            "wait" => StepKind::Wait {
                duration: table.get("for").and_then(|value| {
                    self.places.insert((name.to_owned(), "for"), value.clone());
                    let text = value.text()?;
                    // `10s` is a duration, `{{ x }}s` becomes one, and anything else is an
                    // expression that gives seconds.
                    if text.contains("{{") {
                        return self.template(&value, &named("for")).map(Pause::Text);
                    }
                    match super::duration::read(text) {
                        Some(duration) => {
                            let seconds = duration.as_secs_f64().to_string();
                            Expr::compile(&named("for"), &seconds).ok().map(Pause::Seconds)
                        }
                        None => expr(&value, &named("for")).map(Pause::Seconds),
                    }
                }),
                until: table.get("until").and_then(|value| expr(&value, &named("until"))),
                event: table.get("event").and_then(|value| value.text().map(ToOwned::to_owned)),
                limit: table
                    .get("deadline")
                    .and_then(|value| value.duration(LONG))
                    .unwrap_or(Duration::from_secs(24 * 3600)),
            },
            "fail" => StepKind::Fail { message: template(self, "message", "say why")? },
            "search" => {
                let source = table.require("source", "say in which [knowledge.NAME]");
                let source = self.name("knowledge", source);
                let query = template(self, "query", "say what is looked for");
                let limit = table.get("limit").and_then(|value| value.count(1..=100));
                StepKind::Search { source: source?, query: query?, limit }
            }
            "http" => self.http(name, table)?,
            "tool" => self.tool(name, table)?,
            "worker" => {
                value.problem(
                    format!("steps that do `{do_}` are not supported by this version"),
                    "not supported yet",
                    "llm, agent, search, http, tool, template, set, branch, ask, workflow, wait and fail are",
                );
                return None;
            }
            other => {
                let kinds = [
                    "llm", "agent", "search", "http", "tool", "template", "set", "branch", "ask",
                    "workflow", "wait", "fail",
                ];
                let help = match nearest(other, kinds) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("a step can do: {}", kinds.join(", ")),
                };
                value.problem(format!("no step does `{other}`"), "not known", help);
                return None;
            }
        })
    }

    fn case(&mut self, step: &str, value: &Value<'a>) -> Option<Case> {
        let table = value.table()?;
        let condition = table.get("if").map(|value| expr(&value, &format!("{step}.when")));
        table.get("else").and_then(|value| value.boolean());
        let go = table.require("go", "say where to go, or \"end\"").and_then(|value| value.name());
        table.finish();
        let condition = match condition {
            Some(condition) => Some(condition?),
            None => None,
        };
        Some(Case { condition, go: go?.value })
    }
}

/// Up to which people and events may be waited for.
const LONG: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(366 * 24 * 3600);

/// `social_media_campaign` becomes `Social media campaign`.
fn title_of(name: &str) -> String {
    let text = name.replace(['_', '-'], " ");
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// `keep`: which checkpoints of a thread stay.
pub(super) fn keep(value: &Value<'_>) -> Option<clearway_engine::Keep> {
    use clearway_engine::Keep;
    match value.is_number() {
        false => value.one_of(&[("all", Keep::All), ("ends", Keep::RunEnds)]),
        true => value.count(1..=1_000_000).map(Keep::Last),
    }
}

impl Step {
    /// What the engine's policy for this step's node says about failures.
    pub(crate) fn retry(&self) -> clearway_engine::Retry {
        clearway_engine::Retry {
            attempts: self.attempts,
            backoff: self.backoff,
            on: Vec::<Code>::new(),
        }
    }
}
