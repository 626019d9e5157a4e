//! `[providers.NAME]`: where a provider is, what it speaks, and how it is spared.
//!
//! Not here: the providers that exist without being written down ([`super::resolve`]).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use clearway_engine::upstream::{BreakerLimits, Endpoint, Kind, Retry, RetryOn};
use http::{HeaderName, HeaderValue};

use super::duration::DEADLINE;
use super::read::{Files, read_named};
use super::walk::{Table, Value, is_name};
use super::{
    Deadlines, Flap, Key, Provider, ProviderKind, ProviderLimits, Remote, ScriptRule, Secret, Sim,
    join,
};

/// What a file may say in `kind`.
#[derive(Clone, Copy)]
enum Chosen {
    Remote(Kind),
    Sim,
}

const KINDS: &[(&str, Chosen)] = &[
    (Kind::OpenAi.as_str(), Chosen::Remote(Kind::OpenAi)),
    (Kind::Responses.as_str(), Chosen::Remote(Kind::Responses)),
    (Kind::Anthropic.as_str(), Chosen::Remote(Kind::Anthropic)),
    (Kind::Ollama.as_str(), Chosen::Remote(Kind::Ollama)),
    ("sim", Chosen::Sim),
];

pub(super) const OPENAI_URL: &str = "https://api.openai.com/v1";

/// Where a provider is when nobody says.
pub(super) const fn usual_url(kind: Kind) -> &'static str {
    match kind {
        Kind::OpenAi | Kind::Responses => OPENAI_URL,
        Kind::Anthropic => "https://api.anthropic.com/v1",
        Kind::Ollama => "http://127.0.0.1:11434",
    }
}

pub(super) fn read(root: &Table<'_>, files: &Files) -> BTreeMap<String, Provider> {
    read_named(root, "providers", |_, table| provider(table, files))
}

fn provider(table: Table<'_>, files: &Files) -> Option<Provider> {
    let what_for =
        "write kind = \"openai\", \"openai-responses\", \"anthropic\", \"ollama\" or \"sim\"";
    let chosen = table.require("kind", what_for).and_then(|value| value.one_of(KINDS));
    let limits = limits(table.sub("limits"));
    let (connections, keep_alive) = pool(table.sub("pool"), limits.concurrent);
    let deadline = deadlines(table.sub("deadline"));
    let retry = retry(table.sub("retry"));
    let breaker = breaker(table.sub("breaker"));
    let kind = match chosen {
        Some(Chosen::Remote(kind)) => remote(&table, kind, files).map(ProviderKind::Remote),
        Some(Chosen::Sim) => Some(ProviderKind::Sim(sim(&table))),
        None => {
            table.tolerate(&[
                "base_url",
                "api_key",
                "keys",
                "headers",
                "ca_file",
                "script",
                "ttft",
                "token_interval",
                "tokens",
                "jitter",
                "max_concurrent",
                "rpm",
                "tpm",
                "flap",
            ]);
            None
        }
    };
    table.unsupported(&["budget", "hedge"]);
    table.finish();
    Some(Provider { kind: kind?, limits, connections, keep_alive, deadline, retry, breaker })
}

fn limits(table: Table<'_>) -> ProviderLimits {
    let per_minute = table.get("per_minute").and_then(|value| value.count(1..=100_000_000));
    let burst = table.get("burst").and_then(|value| {
        let burst = value.count(1..=100_000_000)?;
        match per_minute {
            None => value.problem(
                format!("`{}` needs a `per_minute`", value.path),
                "a burst of what?",
                "it says how many of a minute's requests may go at once",
            ),
            Some(per_minute) if burst > per_minute => {
                value.problem(format!("`{}` is more than `per_minute`", value.path), "too many", "")
            }
            Some(_) => {}
        }
        Some(burst)
    });
    let limits = ProviderLimits {
        concurrent: table.get("concurrent").and_then(|value| value.count(1..=100_000)),
        queue: table.get("queue").and_then(|value| value.count(0..=1_000_000)),
        per_minute,
        burst,
        tokens_per_minute: table
            .get("tokens_per_minute")
            .and_then(|value| value.integer(1..=1_000_000_000_000)),
    };
    table.unsupported(&["per_second", "per_day"]);
    table.finish();
    limits
}

/// Connections at once, and idle ones.
fn pool(table: Table<'_>, concurrent: Option<u32>) -> (Option<u32>, Option<u32>) {
    let connections = table.get("connections").and_then(|value| {
        let connections = value.count(1..=100_000)?;
        if concurrent.is_some_and(|concurrent| connections < concurrent) {
            value.problem(
                format!("`{}` is less than `limits.concurrent`", value.path),
                "too few",
                "each call has a connection of its own: a call that may start must find one",
            );
        }
        Some(connections)
    });
    let keep_alive = table.get("keep_alive").and_then(|value| value.count(0..=100_000));
    if let Some(value) = table.get("idle_expiry")
        && value.duration(DEADLINE).is_some()
    {
        // It tunes and changes no outcome, so files that have it stay valid.
        table.walk.warn(format!("`{}` has no effect in this version: idle connections are closed after 4 s (http) or 30 s (https)", value.path));
    }
    table.finish();
    (connections, keep_alive)
}

fn retry(table: Table<'_>) -> Retry {
    let usual = Retry::default();
    let backoff = Duration::from_millis(1)..=Duration::from_secs(60);
    let retry = Retry {
        attempts: table
            .get("attempts")
            .and_then(|value| value.count(1..=10))
            .unwrap_or(usual.attempts),
        backoff: table
            .get("backoff")
            .and_then(|value| value.duration(backoff))
            .unwrap_or(usual.backoff),
        on: table.get("on").map_or(usual.on, |value| retry_on(&value)),
    };
    table.finish();
    retry
}

/// After which faults the same provider is asked again.
fn retry_on(value: &Value<'_>) -> RetryOn {
    const CAUSES: &[(&str, &str)] =
        &[("timeout", "timeout"), ("connect", "connect"), ("5xx", "5xx"), ("429", "429")];
    let named: BTreeSet<&str> =
        value.list().iter().filter_map(|item| item.one_of(CAUSES)).collect();
    RetryOn {
        timeout: named.contains("timeout"),
        connect: named.contains("connect"),
        server: named.contains("5xx"),
        rate: named.contains("429"),
    }
}

fn breaker(table: Table<'_>) -> BreakerLimits {
    let usual = BreakerLimits::default();
    let pause = Duration::from_millis(100)..=Duration::from_secs(3600);
    let duration = |key| table.get(key).and_then(|value: Value<'_>| value.duration(pause.clone()));
    let failures = table.get("failures").and_then(|value| value.count(1..=1000));
    let window = duration("window");
    let recovery = duration("recovery");
    table.finish();
    BreakerLimits {
        failures: failures.map_or(usual.failures, |failures| failures as usize),
        window: window.unwrap_or(usual.window),
        recovery: recovery.unwrap_or(usual.recovery),
        // Who writes a time down means that time, not the first of several.
        recovery_max: recovery.unwrap_or(usual.recovery_max),
    }
}

fn remote(table: &Table<'_>, speaks: Kind, files: &Files) -> Option<Remote> {
    let usual = usual_url(speaks);
    let base_url = match table.get("base_url") {
        None => Some(usual.to_owned()),
        Some(value) => value.address(Endpoint::parse, usual),
    };
    let keys = keys(table);
    let headers = table.get("headers").map(|value| headers(&value)).unwrap_or_default();
    let ca_file = table.get("ca_file").and_then(|value| {
        let name = value.name()?;
        let Files::Folder(folder) = files else { return None };
        let path = join(folder, &name.value);
        if !path.is_file() {
            value.problem(format!("there is no file {}", path.display()), "here", "");
        }
        Some(path)
    });
    Some(Remote { speaks, base_url: base_url?, keys, headers, ca_file })
}

/// `api_key`, or `keys` when there are several.
fn keys(table: &Table<'_>) -> Vec<Key> {
    let single = table.get("api_key");
    let several = table.get("keys");
    if let (Some(_), Some(value)) = (&single, &several) {
        value.problem(
            format!("`{}` has `api_key` and `keys`", table.path),
            "which?",
            "put all into `keys`",
        );
    }
    if let Some(value) = single {
        return value.secret().map(|secret| Key { name: None, secret }).into_iter().collect();
    }
    let Some(value) = several else { return Vec::new() };
    let items = value.list();
    if value.is_list() && items.is_empty() {
        value.problem(
            format!("`{}` is empty", value.path),
            "no key in it",
            "leave it out for a provider that needs none",
        );
    }
    let mut names = BTreeSet::new();
    items.iter().filter_map(|item| key(item, &mut names)).collect()
}

/// `"${NAME}"`, or `{ name = "team", key = "${NAME}" }`.
fn key(value: &Value<'_>, names: &mut BTreeSet<String>) -> Option<Key> {
    if !value.is_table() {
        return Some(Key { name: None, secret: value.secret()? });
    }
    let table = value.table()?;
    let name = table.get("name").and_then(|value| {
        let name = value.name()?.value;
        if !is_name(&name) {
            value.problem(
                format!("`{name}` cannot be a name"),
                "here",
                "names have 1 to 64 letters, digits, `_`, `-` and `.`",
            );
        } else if !names.insert(name.clone()) {
            value.problem(format!("there are two keys `{name}`"), "the second", "");
        }
        Some(name)
    });
    let key = table.require("key", "write { name = \"team\", key = \"${API_KEY}\" }");
    table.finish();
    Some(Key { name, secret: key?.secret()? })
}

/// Headers that hold credentials by custom: at Azure, at Anthropic, and everywhere.
const CREDENTIALS: &[&str] = &["authorization", "api-key", "x-api-key"];

/// Headers without which a request is none.
const OURS: &[&str] = &[
    "accept",
    "accept-encoding",
    "connection",
    "content-length",
    "content-type",
    "host",
    "transfer-encoding",
];

fn headers(value: &Value<'_>) -> Vec<(String, Secret)> {
    let read = |(name, value): (String, Value<'_>)| {
        let lower = name.to_ascii_lowercase();
        if HeaderName::try_from(&name).is_err() {
            value.hidden_problem(format!("`{name}` cannot be a header"), "its name is wrong", "");
            return None;
        }
        if OURS.contains(&lower.as_str()) {
            value.problem(
                format!("the header `{name}` is set by the server itself"),
                "here",
                "leave it out",
            );
            return None;
        }
        let content = if CREDENTIALS.contains(&lower.as_str()) {
            value.secret()?
        } else {
            value.expanded()?
        };
        if HeaderValue::try_from(content.expose()).is_err() {
            value.hidden_problem(
                format!("`{}` cannot be sent in a header", value.path),
                "it has a line break, or letters beyond ASCII",
                "",
            );
            return None;
        }
        Some((name, content))
    };
    value.entries().into_iter().filter_map(read).collect()
}

fn sim(table: &Table<'_>) -> Sim {
    let duration = |key| table.get(key).and_then(|value: Value<'_>| value.pause());
    let count = |key| table.get(key).and_then(|value: Value<'_>| value.count(1..=1_000_000));
    let script = table.get("script").map(|value| value.list()).unwrap_or_default();
    Sim {
        script: script.iter().filter_map(script_rule).collect(),
        ttft: duration("ttft").unwrap_or_default(),
        token_interval: duration("token_interval").unwrap_or_default(),
        tokens: table.get("tokens").and_then(|value| value.count(0..=1_000_000)),
        jitter: table.get("jitter").and_then(|value| value.fraction(0.0..=1.0)).unwrap_or(0.0),
        max_concurrent: count("max_concurrent"),
        rpm: count("rpm"),
        tpm: table.get("tpm").and_then(|value| value.count(1..=u32::MAX)),
        flap: table.get("flap").and_then(|value| flap(&value)),
    }
}

fn flap(value: &Value<'_>) -> Option<Flap> {
    let table = value.table()?;
    let duration = |key| {
        let value = table.require(key, "write flap = { up = \"20s\", down = \"5s\" }")?;
        value.duration(Duration::from_millis(1)..=Duration::from_secs(86_400))
    };
    let (up, down) = (duration("up"), duration("down"));
    table.finish();
    Some(Flap { up: up?, down: down? })
}

fn script_rule(value: &Value<'_>) -> Option<ScriptRule> {
    let table = value.table()?;
    let matches = table.get("match").and_then(|value| value.text()).unwrap_or_default().to_owned();
    let tool = table.get("tool").and_then(|value| value.name());
    // With a tool, what it answers is a call, and the text is the call's arguments.
    let (key, why) = match tool {
        None => ("reply", "say what to answer: { match = \"price\", reply = \"It is free.\" }"),
        Some(_) => ("arguments", "write the call's arguments as JSON: arguments = '{\"a\": 1}'"),
    };
    let text = table.require(key, why);
    table.finish();
    let value = text?;
    let text = value.text()?;
    if let Err(error) = minijinja::Environment::new().template_from_str(text) {
        let why = error.detail().map_or_else(|| error.kind().to_string(), ToOwned::to_owned);
        value.problem(format!("template error in a reply: {why}"), "here", "");
        return None;
    }
    Some(ScriptRule { matches, reply: text.to_owned(), tool: tool.map(|tool| tool.value) })
}

fn deadlines(table: Table<'_>) -> Deadlines {
    let read = |key| {
        let value = table.get(key)?;
        Some((value.duration(DEADLINE)?, value))
    };
    let connect = read("connect");
    let first_byte = read("first_byte");
    let first_token = read("first_token");
    let between_bytes = read("between_bytes");
    let between_tokens = read("between_tokens");
    let total = read("total");
    let rate_floor = table.get("rate_floor").and_then(|value| match value.micros()? {
        0 => {
            let problem = format!("`{}` must be above 0", value.path);
            value.problem(problem, "no limit", "leave it out to let answers take their time");
            None
        }
        floor => Some(floor),
    });
    // A stage that outlasts the one around it could never be what ends a call.
    let stages = [&connect, &first_byte, &first_token, &total];
    let stages: Vec<_> = stages.into_iter().flatten().collect();
    for pair in stages.windows(2) {
        if let [(inner, value), (outer, around)] = pair
            && inner > outer
        {
            let around = around.path.rsplit('.').next().unwrap_or_default();
            value.problem(
                format!("`{}` is longer than `{around}`, which contains it", value.path),
                "never reached",
                "the order is connect <= first_byte <= first_token <= total",
            );
        }
    }
    table.unsupported(&["queue", "send", "cancel"]);
    table.finish();
    let duration = |read: Option<(Duration, Value<'_>)>| read.map(|(duration, _)| duration);
    Deadlines {
        connect: duration(connect),
        first_byte: duration(first_byte),
        first_token: duration(first_token),
        between_bytes: duration(between_bytes),
        between_tokens: duration(between_tokens),
        rate_floor,
        total: duration(total),
    }
}
