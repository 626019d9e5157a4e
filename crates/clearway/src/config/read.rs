//! The tables of the file, one function each.
//!
//! Everything is read with the places of its names kept ([`At`]), because whether a name resolves is
//! only known at the end ([`super::resolve`]).

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use clearway_core::run::Multitask;
use serde_json::{Map, Value as Json};
use toml::de::DeTable;

use super::doors::{self, DoorDraft};
use super::duration::DEADLINE;
use super::env::Env;
use super::http::{self, Http};
use super::knowledge::{self, KnowledgeDraft, UploadsDraft};
use super::models::{self, ModelDraft};
use super::prompt::Prompt;
use super::report::{Problem, Report, Source};
use super::tools::{self, Mcp, StatePart, ToolRef};
use super::walk::{At, Table, Value, Walk, nearest};
use super::webhooks::CronDraft;
use super::workflow::{self, Around, WorkflowDraft};
use super::{
    Cite, Config, Listen, LogFormat, Origin, Pool, Provider, Server, ServerLimits, alerts, auth,
    join, providers, resolve, telemetry, webhooks,
};

/// Where prompts and certificates are.
#[derive(Debug)]
pub(super) enum Files {
    Folder(PathBuf),
    BuiltIn,
}

/// Who will use the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judged {
    /// Nobody yet: what a server would refuse is wrong.
    Alone,
    /// A server, whose flags may still change where it listens and who may ask.
    UnderFlags,
}

/// A file as read, its names not yet looked up.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) providers: BTreeMap<String, Provider>,
    pub(super) models: BTreeMap<String, ModelDraft>,
    pub(super) pools: BTreeMap<String, Pool>,
    pub(super) agents: BTreeMap<String, AgentDraft>,
    pub(super) workflows: BTreeMap<String, WorkflowDraft>,
    /// `None` for one that is broken; that is reported already.
    pub(super) mcp: BTreeMap<String, Option<Mcp>>,
    pub(super) http: Http,
    pub(super) knowledge: BTreeMap<String, KnowledgeDraft>,
    pub(super) uploads: UploadsDraft,
    pub(super) doors: BTreeMap<String, DoorDraft>,
    pub(super) crons: BTreeMap<String, CronDraft>,
}

#[derive(Debug)]
pub(super) struct AgentDraft {
    pub(super) title: Option<String>,
    pub(super) model: Option<At<String>>,
    /// `None` when it is broken; that is reported already.
    pub(super) prompt: Option<Prompt>,
    pub(super) pool: Option<At<String>>,
    pub(super) deadline: Option<Duration>,
    pub(super) working_limit: Option<Duration>,
    pub(super) when_busy: Option<Multitask>,
    pub(super) history_tokens: Option<u32>,
    pub(super) keep: Option<clearway_engine::Keep>,
    pub(super) params: Map<String, Json>,
    pub(super) tools: Vec<At<ToolRef>>,
    pub(super) confirm: Vec<At<String>>,
    pub(super) tool_rounds: Option<u32>,
    pub(super) state: BTreeMap<String, StatePart>,
    pub(super) cite: Option<At<Cite>>,
    pub(super) span: Range<usize>,
}

/// Reads a whole file.
pub(super) fn config(
    source: Source,
    files: &Files,
    env: &Env,
    judged: Judged,
) -> Result<Config, Report> {
    let text = source.text().to_owned();
    let (document, errors) = DeTable::parse_recoverable(&text);
    if !errors.is_empty() {
        return Err(syntax(&source, &errors));
    }
    let walk = Walk::new(source, env);
    let root = Table::root(&walk, document.get_ref());
    let mut read_files = Vec::new();
    // Keys that are wrong are told as that, and not as missing, too.
    let guarded = judged == Judged::UnderFlags || root.sub("auth").get("keys").is_some();
    let server = server(root.sub("server"), files, env, guarded);
    let telemetry = telemetry::read(root.sub("telemetry"));
    let auth = auth::read(root.sub("auth"));
    let webhooks = webhooks::read(root.sub("webhooks"));
    let alerts = alerts::read(root.sub("alerts"), &webhooks);
    let draft = Draft {
        providers: providers::read(&root, files),
        models: models::read(&root),
        pools: read_named(&root, "pools", |_, table| pool(table)),
        agents: read_named(&root, "agents", |_, table| Some(agent(table, files, &mut read_files))),
        workflows: read_named(&root, "workflows", |name, table| {
            let mut around = Around { files, read_files: &mut read_files };
            workflow::read(name, table, &mut around)
        }),
        mcp: read_named(&root, "mcp", |_, table| Some(tools::mcp(table, files))),
        http: http::read(root.sub("http")),
        knowledge: read_named(&root, "knowledge", |name, table| {
            knowledge::read(name, table, files)
        }),
        uploads: knowledge::uploads(root.sub("uploads")),
        doors: read_named(&root, "doors", doors::read),
        crons: read_named(&root, "crons", |_, table| webhooks::cron(table)),
    };
    root.unsupported(&["keys", "graphs", "workers", "include"]);
    root.finish();
    let mut config = resolve::config(&walk, draft, server);
    let problems = walk.take_problems();
    if !problems.is_empty() {
        return Err(Report::new(problems));
    }
    config.telemetry = telemetry;
    config.auth = auth;
    config.webhooks = webhooks;
    config.alerts = alerts;
    config.warnings = walk.take_warnings();
    let unknown = env.unknown().filter(|variable| !walk.names(variable));
    for variable in unknown.map(ToOwned::to_owned).chain(walk.unused_overlay()) {
        config
            .warnings
            .push(format!("the environment variable {variable} is not known and has no effect"));
    }
    if env.get("DATABASE_URL").is_some() {
        config.warnings.push(
            "DATABASE_URL has no effect in this version: data is kept in the data directory"
                .to_owned(),
        );
    }
    config.origin = Origin::Text;
    config.files = read_files;
    config.ignored_variables = env.ignored();
    Ok(config)
}

/// What the TOML parser found. With broken syntax nothing else is worth saying.
fn syntax(source: &Source, errors: &[toml::de::Error]) -> Report {
    let problem = |error: &toml::de::Error| {
        let mut lines = error.message().lines();
        let message = lines.next().unwrap_or("broken TOML").to_owned();
        let end = source.text().len();
        let span = error.span().unwrap_or(end..end);
        let problem = Problem::new(message).at(source, span, "here");
        match lines.next() {
            Some(more) => problem.help(more),
            None => problem,
        }
    };
    Report::new(errors.iter().map(problem).collect())
}

pub(super) fn read_named<'a, T>(
    root: &Table<'a>,
    key: &'static str,
    mut read: impl FnMut(&str, Table<'a>) -> Option<T>,
) -> BTreeMap<String, T> {
    let tables = root.named(key);
    let one = |(name, table): (String, Table<'a>)| read(&name, table).map(|read| (name, read));
    tables.into_iter().filter_map(one).collect()
}

fn server(table: Table<'_>, files: &Files, env: &Env, guarded: bool) -> Server {
    let listen_at = table.get("listen");
    let listen = listen_at.as_ref().and_then(|value| value.parsed(str::parse::<Listen>));
    let port = table.get("port");
    if let Some(value) = &port
        && value.span().is_some()
    {
        value.problem(
            "`server` has no key `port`",
            "unknown key",
            "write it behind the host: listen = \"127.0.0.1:8123\"",
        );
    }
    let port =
        port.filter(|value| value.span().is_none()).and_then(|value| value.integer(0..=65_535));
    let data = table.get("data").and_then(|value| value.name()).map(|data| match files {
        Files::Folder(folder) if data.span.is_some() => join(folder, data.value),
        Files::Folder(_) | Files::BuiltIn => PathBuf::from(data.value),
    });
    let log = table.get("log").and_then(|value| {
        value.one_of(&[("pretty", LogFormat::Pretty), ("json", LogFormat::Json)])
    });
    let drain = table.get("drain").and_then(|value| value.duration(DEADLINE));
    let insecure = table.get("insecure").map(|value| value.boolean());
    if let (Some(value), Some(listen)) = (&listen_at, &listen)
        && !guarded
        && matches!(insecure, None | Some(Some(false)))
    {
        note_strangers(value, listen);
    }
    let worker_threads = table.get("worker_threads").and_then(|value| value.count(1..=256));
    let allowed_hosts = table.get("allowed_hosts").map(|value| value.texts()).unwrap_or_default();
    let limits = server_limits(table.sub("limits"));
    table.unsupported(&["database", "tls", "cors", "name", "public_url", "otel"]);
    let listen = listen_with_port(table.walk, listen, port, env);
    table.finish();
    Server {
        listen,
        data,
        log: log.or_else(|| log_of_environment(env)),
        drain: drain.unwrap_or(Duration::from_secs(10)),
        insecure: insecure.flatten().unwrap_or(false),
        worker_threads,
        allowed_hosts,
        limits,
    }
}

/// The same refusal as the server's, before it starts.
fn note_strangers(value: &Value<'_>, listen: &Listen) {
    if !listen.is_loopback() {
        value.problem(
            format!(
                "`{}` is reachable from other machines and no keys are configured",
                value.path
            ),
            "a server refuses to listen here",
            "configure keys ([auth]), listen on 127.0.0.1, or write insecure = true (or start with --insecure) if \
             everybody who reaches it may use it",
        );
    }
}

fn server_limits(table: Table<'_>) -> ServerLimits {
    let size = |key, least: u64, most: u64| {
        table
            .get(key)
            .and_then(|value| value.integer(least..=most))
            .and_then(|size| usize::try_from(size).ok())
    };
    let duration = |key| table.get(key).and_then(|value| value.duration(DEADLINE));
    let limits = ServerLimits {
        max_connections: size("max_connections", 1, 1_000_000),
        max_body_bytes: size("max_body_bytes", 1024, 1 << 30),
        max_output_bytes: size("max_output_bytes", 1024, 1 << 30),
        body_timeout: duration("body_timeout"),
        header_timeout: duration("header_timeout"),
        keep_alive: duration("keep_alive"),
        stalled_reader: duration("stalled_reader"),
        ageing: duration("ageing"),
        heartbeat: duration("heartbeat"),
    };
    table.finish();
    limits
}

/// `CLEARWAY_SERVER__PORT` and `PORT` change the port alone; the first goes before the second.
fn listen_with_port(
    walk: &Walk<'_>,
    listen: Option<Listen>,
    port: Option<u64>,
    env: &Env,
) -> Option<Listen> {
    let port = port.and_then(|port| u16::try_from(port).ok());
    let usual = env.get("PORT").filter(|_| env.get("CLEARWAY_SERVER__LISTEN").is_none());
    let usual = usual.and_then(|text| {
        let parsed = text.trim().parse().ok();
        if parsed.is_none() {
            walk.note(
                Problem::new(format!("PORT: `{text}` is no port"))
                    .help("set it to a number from 0 to 65535"),
            );
        }
        parsed
    });
    match port.or(usual) {
        Some(port) => Some(Listen { port, ..listen.unwrap_or_default() }),
        None => listen,
    }
}

/// In production logs are for machines, whatever the command.
fn log_of_environment(env: &Env) -> Option<LogFormat> {
    match env.get("ENVIRONMENT")?.trim().to_ascii_lowercase().as_str() {
        "production" | "prod" | "staging" => Some(LogFormat::Json),
        "development" | "dev" | "local" => Some(LogFormat::Pretty),
        _ => None,
    }
}

/// Request parameters that are passed on as they are.
pub(super) fn params(table: &Table<'_>) -> Map<String, Json> {
    const OURS: &[&str] = &["model", "messages", "stream", "stream_options"];
    let Some(value) = table.get("params") else { return Map::new() };
    let mut params = Map::new();
    for (key, value) in value.entries() {
        let json = value.json();
        if OURS.contains(&key.as_str()) {
            value.problem(
                format!("the parameter `{key}` is set by the server itself"),
                "here",
                "leave it out",
            );
        } else if key == "n" && json != Some(1.into()) {
            value.problem(
                "the parameter `n` must be 1: a run has one answer",
                "here",
                "leave it out",
            );
        } else if let Some(json) = json {
            params.insert(key, json);
        }
    }
    params
}

fn pool(table: Table<'_>) -> Option<Pool> {
    let slots = table
        .require("slots", "say how many runs may run at once")
        .and_then(|value| value.count(1..=1_000_000));
    let queue = table.get("queue").map(|value| value.count(0..=10_000_000));
    table.unsupported(&["per_user", "weight", "priority"]);
    table.finish();
    let slots = slots?;
    Some(Pool { slots, queue: queue.unwrap_or(Some(slots.saturating_mul(4)))? })
}

fn agent(table: Table<'_>, files: &Files, read_files: &mut Vec<PathBuf>) -> AgentDraft {
    let choices = [
        ("queue", Multitask::Enqueue),
        ("enqueue", Multitask::Enqueue),
        ("reject", Multitask::Reject),
        ("interrupt", Multitask::Interrupt),
        ("rollback", Multitask::Rollback),
    ];
    let when_busy = table.get("when_busy").and_then(|value| value.one_of(&choices));
    let prompt = match table.get("prompt") {
        Some(value) => prompt(&value, files, read_files),
        None => Prompt::compile("", &table.walk.source, &(0..0), None).ok(),
    };
    let list = |key| table.get(key).map(|value: Value<'_>| value.list()).unwrap_or_default();
    let state = table.get("state").map(|value| tools::state(&value, files, read_files));
    let draft = AgentDraft {
        title: table.get("title").and_then(|value| value.name()).map(|title| title.value),
        model: table.get("model").and_then(|value| value.name()),
        prompt,
        pool: table.get("pool").and_then(|value| value.name()),
        deadline: table.get("deadline").and_then(|value| value.duration(DEADLINE)),
        working_limit: table.get("working_limit").and_then(|value| value.duration(DEADLINE)),
        when_busy,
        history_tokens: table.get("history_tokens").and_then(|value| value.count(0..=100_000_000)),
        keep: table.get("keep").and_then(|value| super::workflow::keep(&value)),
        params: params(&table),
        tools: table.get("tools").map(|value| tools::read(&value)).unwrap_or_default(),
        confirm: list("confirm").iter().filter_map(Value::name).collect(),
        tool_rounds: table.get("tool_rounds").and_then(|value| value.count(1..=100)),
        state: state.unwrap_or_default(),
        cite: table.get("cite").and_then(|value| {
            let choices = [
                ("required", Some(Cite::Required)),
                ("optional", Some(Cite::Optional)),
                ("off", None),
            ];
            Some(At { value: value.one_of(&choices)??, span: value.span() })
        }),
        span: table.span.clone(),
    };
    for key in ["temperature", "max_tokens"] {
        if let Some(value) = table.get(key) {
            let help = format!("write params = {{ {key} = … }}");
            value.problem(
                format!("`{}` is a parameter of the model", value.path),
                "not here",
                help,
            );
        }
    }
    table.unsupported(&[
        "knowledge",
        "graph",
        "worker",
        "output",
        "memory",
        "retry",
        "budget",
        "on_outage",
        "priority",
        "fallback",
        "max_steps",
    ]);
    table.finish();
    draft
}

/// A text, or `{ file = "…" }`.
fn prompt(value: &Value<'_>, files: &Files, read_files: &mut Vec<PathBuf>) -> Option<Prompt> {
    let note = |problems: Vec<Problem>| {
        problems.into_iter().for_each(|problem| value.walk().note(problem))
    };
    if !value.is_table() {
        let text = value.text()?;
        let place = value.span().unwrap_or_default();
        return Prompt::compile(text, &value.walk().source, &place, None).map_err(note).ok();
    }
    let table = value.table()?;
    let file =
        table.require("file", "write prompt = { file = \"prompts/name.md\" } or the text itself");
    table.finish();
    let file = file?;
    let name = file.name()?.value;
    let (text, path) = read_file(&file, &name, files)?;
    read_files.extend(path.clone());
    let source = Source::new(&name, text.clone());
    Prompt::compile(&text, &source, &(0..text.len()), path).map_err(note).ok()
}

pub(super) fn read_file(
    value: &Value<'_>,
    name: &str,
    files: &Files,
) -> Option<(String, Option<PathBuf>)> {
    let folder = match files {
        Files::Folder(folder) => folder,
        Files::BuiltIn => {
            let found = crate::builtin::FILES.iter().find(|(file, _)| *file == name);
            if found.is_none() {
                value.problem(format!("there is no file {name}"), "here", "");
            }
            return found.map(|(_, text)| ((*text).to_owned(), None));
        }
    };
    let path = join(folder, name);
    match std::fs::read_to_string(&path) {
        Ok(text) => Some((text, Some(path))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let help = match similar_file(&path) {
                Some(near) => {
                    format!("did you mean `{}`?", Path::new(name).with_file_name(near).display())
                }
                None => "paths are relative to the configuration file".to_owned(),
            };
            value.problem(format!("there is no file {name}"), "not found", help);
            None
        }
        Err(error) => {
            value.problem(format!("cannot read {name}: {error}"), "here", "");
            None
        }
    }
}

/// A file in the same folder whose name is nearly the same.
fn similar_file(path: &Path) -> Option<String> {
    if path.components().any(|part| part == Component::ParentDir) {
        return None;
    }
    let wanted = path.file_name()?.to_str()?;
    let names: Vec<String> = std::fs::read_dir(path.parent()?)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    nearest(wanted, names.iter().map(String::as_str)).map(ToOwned::to_owned)
}
