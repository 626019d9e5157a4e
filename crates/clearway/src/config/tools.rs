//! What agents can do besides talking: the `tools`, `confirm` and `state` of `[agents.NAME]`, and
//! `[mcp.NAME]`.
//!
//! A tool is written `KIND:NAME`. Which names there are is known only at the end ([`resolve`]).

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use clearway_engine::Effect;
use clearway_engine::tool::glob;
use clearway_upstream::Endpoint;
use serde_json::{Map, Value as Json};

use super::duration::DEADLINE;
use super::read::{Files, read_file};
use super::report::Problem;
use super::secret::Secret;
use super::walk::{At, Table, Value, Walk, is_name, nearest};

/// One entry of `tools`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolRef {
    pub kind: ToolKind,
    pub name: String,
    /// Of a server's tools only those that fit this pattern.
    pub part: Option<String>,
    /// Of a workflow: wait for its result instead of going on beside it.
    pub wait: bool,
    /// Instead of the tool's own.
    pub deadline: Option<Duration>,
}

/// What a tool does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ToolKind {
    /// Starts a workflow.
    Run,
    /// A tool of an MCP server.
    Mcp,
    /// Writes down a part of the agent's state.
    Set,
    /// Searches a knowledge source.
    Search,
    /// Looks into a knowledge source's graph.
    Graph,
    /// Reads a document of a knowledge source.
    Open,
}

impl ToolKind {
    const ALL: [Self; 6] = [Self::Run, Self::Mcp, Self::Set, Self::Search, Self::Graph, Self::Open];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Mcp => "mcp",
            Self::Set => "set",
            Self::Search => "search",
            Self::Graph => "graph",
            Self::Open => "open",
        }
    }

    /// The table that its names come from.
    const fn table(self) -> &'static str {
        match self {
            Self::Run => "workflows",
            Self::Mcp => "mcp",
            Self::Set => "state",
            Self::Search | Self::Graph | Self::Open => "knowledge",
        }
    }
}

impl fmt::Display for ToolRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind.as_str(), self.name)?;
        self.part.as_ref().map_or(Ok(()), |part| write!(f, "/{part}"))
    }
}

/// `[mcp.NAME]`: a server of tools.
#[derive(Clone, Debug, PartialEq)]
pub struct Mcp {
    pub transport: McpTransport,
    /// The longest that one request may take.
    pub deadline: Duration,
    /// By pattern of the tool's name, before what the server itself says.
    pub effects: Vec<(String, Effect)>,
}

/// How an MCP server is reached.
#[derive(Clone, Debug, PartialEq)]
pub enum McpTransport {
    /// A program of ours, over its standard input and output.
    Command {
        program: String,
        arguments: Vec<String>,
        /// Besides a few harmless ones of our own.
        env: Vec<(String, Secret)>,
        folder: PathBuf,
    },
    /// Streamable HTTP.
    Http { url: String, headers: Vec<(String, Secret)> },
}

/// Reads `[mcp.NAME]`.
pub(super) fn mcp(table: Table<'_>, files: &Files) -> Option<Mcp> {
    let deadline = table.get("deadline").and_then(|value| value.duration(DEADLINE));
    let classes =
        [("read", Effect::Read), ("idempotent", Effect::Idempotent), ("write", Effect::Write)];
    let effects = table.get("effects").map(|value| value.entries()).unwrap_or_default();
    let effects = effects
        .into_iter()
        .filter_map(|(pattern, value)| Some((pattern, value.one_of(&classes)?)))
        .collect();
    let secrets = |key| {
        let entries = table.get(key).map(|value| value.entries()).unwrap_or_default();
        let one = |(name, value): (String, Value<'_>)| Some((name, value.expanded()?));
        entries.into_iter().filter_map(one).collect::<Vec<_>>()
    };
    let (env, headers) = (secrets("env"), secrets("headers"));
    let (command, url) = (table.get("command"), table.get("url"));
    let transport = match (&command, &url) {
        (Some(command), None) => {
            let mut words = command.texts().into_iter();
            let program = words.next().filter(|program| !program.is_empty());
            if program.is_none() {
                command.problem("`command` is empty", "here", "command = [\"./bin/crm-mcp\"]");
            }
            let folder = match files {
                Files::Folder(folder) => folder.clone(),
                Files::BuiltIn => PathBuf::from("."),
            };
            program.map(|program| McpTransport::Command {
                program,
                arguments: words.collect(),
                env,
                folder,
            })
        }
        (None, Some(url)) => {
            let url = url.address(Endpoint::parse, "https://tools.example.com/mcp");
            url.map(|url| McpTransport::Http { url, headers })
        }
        (command, _) => {
            let message = match command {
                Some(_) => format!("`{}` has both `command` and `url`", table.path),
                None => format!("`{}` has neither `command` nor `url`", table.path),
            };
            let problem = Problem::new(message).at(&table.walk.source, table.span.clone(), "here");
            table.walk.note(problem.help(
                "a program of yours: command = [\"./bin/crm-mcp\"]; or a server: url = \"https://…/mcp\"",
            ));
            None
        }
    };
    table.finish();
    Some(Mcp { transport: transport?, deadline: deadline.unwrap_or(MCP_DEADLINE), effects })
}

const MCP_DEADLINE: Duration = Duration::from_secs(20);

/// Reads `tools`: texts, or tables with more about one.
pub(super) fn read(value: &Value<'_>) -> Vec<At<ToolRef>> {
    value.list().iter().filter_map(entry).collect()
}

fn entry(value: &Value<'_>) -> Option<At<ToolRef>> {
    if !value.is_table() {
        let text = value.name()?;
        return Some(At { value: parse(&text.value, value)?, span: text.span });
    }
    let table = value.table()?;
    let named = table.require("tool", "say which: { tool = \"run:plan\", wait = true }");
    let wait = table.get("wait");
    let deadline = table.get("deadline").and_then(|value| value.duration(DEADLINE));
    let tool = named.and_then(|named| {
        let text = named.name()?;
        Some(At { value: parse(&text.value, &named)?, span: text.span })
    });
    if let (Some(wait), Some(tool)) = (&wait, &tool)
        && tool.value.kind != ToolKind::Run
    {
        wait.problem("only `run:` tools can wait", "not here", "leave it out");
    }
    table.finish();
    let mut tool = tool?;
    tool.value.wait = wait.and_then(|wait| wait.boolean()).unwrap_or(false);
    tool.value.deadline = deadline;
    Some(tool)
}

fn parse(text: &str, value: &Value<'_>) -> Option<ToolRef> {
    let kinds = || ToolKind::ALL.iter().map(|kind| kind.as_str());
    let Some((kind, name)) = text.split_once(':') else {
        let help = format!("write one of {}:NAME", kinds().collect::<Vec<_>>().join(":NAME, "));
        value.problem(format!("`{text}` does not say what kind of tool it is"), "here", help);
        return None;
    };
    let Some(&kind) = ToolKind::ALL.iter().find(|known| known.as_str() == kind) else {
        let help = match nearest(kind, kinds()) {
            Some(near) => format!("did you mean `{near}:{name}`?"),
            None => format!("there are: {}", kinds().collect::<Vec<_>>().join(", ")),
        };
        value.problem(format!("there are no tools of the kind `{kind}`"), "not known", help);
        return None;
    };
    let (name, part) = match name.split_once('/') {
        Some((name, part)) if kind == ToolKind::Mcp => (name, Some(part)),
        Some(_) | None => (name, None),
    };
    if !is_name(name) || part.is_some_and(str::is_empty) {
        value.problem(format!("`{text}` has no sound name"), "here", "such as run:business_plan");
        return None;
    }
    let part = part.map(ToOwned::to_owned);
    Some(ToolRef { kind, name: name.to_owned(), part, wait: false, deadline: None })
}

/// The names that tools can have, by the table they come from.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) workflows: Vec<String>,
    pub(super) mcp: Vec<String>,
    pub(super) knowledge: Vec<String>,
}

impl Names {
    /// Whether there is what a tool names.
    pub(super) fn has(&self, tool: &ToolRef, state: &[&str]) -> bool {
        self.of(tool.kind, state).contains(&tool.name.as_str())
    }

    fn of<'s>(&'s self, kind: ToolKind, state: &[&'s str]) -> Vec<&'s str> {
        let names = match kind {
            ToolKind::Run => &self.workflows,
            ToolKind::Mcp => &self.mcp,
            ToolKind::Set => return state.to_vec(),
            ToolKind::Search | ToolKind::Graph | ToolKind::Open => &self.knowledge,
        };
        names.iter().map(String::as_str).collect()
    }
}

/// Looks up what `tools` name. `state` are the names of the agent's own `set:` tools.
pub(super) fn resolve(
    walk: &Walk<'_>,
    tools: Vec<At<ToolRef>>,
    names: &Names,
    state: &[&str],
) -> Vec<ToolRef> {
    let mut resolved: Vec<ToolRef> = Vec::with_capacity(tools.len());
    for At { value: tool, span } in tools {
        let known = names.of(tool.kind, state);
        let note = |message: String, label: &str, help: String| {
            let problem = Problem::new(message);
            let problem = match &span {
                Some(span) => problem.at(&walk.source, span.clone(), label),
                None => problem,
            };
            walk.note(problem.help(help));
        };
        if !known.contains(&tool.name.as_str()) {
            let (kind, table) = (tool.kind.as_str(), tool.kind.table());
            let help = match nearest(&tool.name, known.iter().copied()) {
                Some(near) => format!("did you mean `{kind}:{near}`?"),
                None if known.is_empty() => match tool.kind {
                    ToolKind::Set => {
                        format!("add state = {{ {} = {{ … }} }} to the agent", tool.name)
                    }
                    _ => format!("add [{table}.{}]", tool.name),
                },
                None => format!("there are: {}", known.join(", ")),
            };
            note(format!("there is no `{}` in `{table}`", tool.name), "not defined", help);
        } else if resolved.iter().any(|other| other.to_string() == tool.to_string()) {
            note(format!("`{tool}` is there twice"), "again", "leave one out".to_owned());
        }
        resolved.push(tool);
    }
    resolved
}

/// Whether each pattern of `confirm` can fit a tool: a typing error here would be a tool that asks
/// nobody.
pub(super) fn check_confirm(walk: &Walk<'_>, confirm: &[At<String>], tools: &[ToolRef]) {
    for pattern in confirm {
        let head = pattern.value.split('*').next().unwrap_or_default();
        let fits = |tool: &ToolRef| {
            let id = tool.to_string();
            match tool.kind {
                ToolKind::Mcp => {
                    let server = format!("mcp:{}/", tool.name);
                    head.starts_with(&server) || server.starts_with(head)
                }
                _ => glob(&pattern.value, &id),
            }
        };
        if tools.iter().any(fits) {
            continue;
        }
        let names: Vec<String> = tools.iter().map(ToString::to_string).collect();
        let help = match nearest(&pattern.value, names.iter().map(String::as_str)) {
            Some(near) => format!("did you mean `{near}`?"),
            None if names.is_empty() => "it has no tools".to_owned(),
            None => format!("it has: {}", names.join(", ")),
        };
        let message = format!("no tool of this agent fits `{}`", pattern.value);
        let problem = Problem::new(message).help(help);
        walk.note(match &pattern.span {
            Some(span) => problem.at(&walk.source, span.clone(), "fits nothing"),
            None => problem,
        });
    }
}

/// A part of an agent's state that the model keeps.
#[derive(Clone, Debug, PartialEq)]
pub struct StatePart {
    /// A JSON Schema of an object or a list.
    pub schema: Json,
}

impl StatePart {
    /// What it is before anybody has written it.
    pub fn initial(&self) -> Json {
        if self.is_list() {
            return Json::Array(Vec::new());
        }
        let fields = self.schema["properties"].as_object();
        let one = |(name, field): (&String, &Json)| {
            let value = match (field.get("default"), field["type"].as_str()) {
                (Some(default), _) => default.clone(),
                (None, Some("boolean")) => false.into(),
                (None, Some("array")) => Json::Array(Vec::new()),
                (None, Some("string")) => "".into(),
                (None, _) => Json::Null,
            };
            (name.clone(), value)
        };
        Json::Object(fields.into_iter().flatten().map(one).collect::<Map<_, _>>())
    }

    pub fn is_list(&self) -> bool {
        self.schema["type"] == "array"
    }
}

/// Reads `state`: JSON Schemas by name, written here or in files.
pub(super) fn state(
    value: &Value<'_>,
    files: &Files,
    read_files: &mut Vec<PathBuf>,
) -> BTreeMap<String, StatePart> {
    let mut parts = BTreeMap::new();
    for (name, value) in value.entries() {
        if !is_name(&name) || matches!(name.as_str(), "messages") {
            value.problem(format!("`{name}` cannot be a part of the state"), "here", "");
            continue;
        }
        let Some(schema) = schema(&value, files, read_files) else { continue };
        let kind = schema["type"].as_str();
        if !matches!(kind, Some("object" | "array")) {
            value.problem(
                "a part of the state is an object or a list",
                "here",
                "its schema has type = \"object\" with properties, or type = \"array\"",
            );
            continue;
        }
        parts.insert(name, StatePart { schema });
    }
    parts
}

/// A JSON Schema: written as a table, or `{ file = "…" }`.
pub(super) fn schema(
    value: &Value<'_>,
    files: &Files,
    read_files: &mut Vec<PathBuf>,
) -> Option<Json> {
    let table = value.table()?;
    let schema = match table.get("file") {
        Some(file) => {
            let name = file.name()?.value;
            let (text, path) = read_file(&file, &name, files)?;
            read_files.extend(path);
            match serde_json::from_str(&text) {
                Ok(schema) => schema,
                Err(error) => {
                    value.problem(format!("{name} is no JSON: {error}"), "here", "");
                    return None;
                }
            }
        }
        None => value.json()?,
    };
    if let Err(error) = jsonschema::validator_for(&schema) {
        value.problem(format!("this is no JSON Schema: {error}"), "here", "");
        return None;
    }
    Some(schema)
}
