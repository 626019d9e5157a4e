//! What a client asks of a run.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use clearway_core::run::Multitask;
use clearway_core::{CheckpointId, Priority};
use clearway_engine::{Assistant, Idempotency};
use http::Uri;
use serde_json::{Map, Value};

use super::errors::{self, bad_request, unprocessable};
use super::modes::Modes;
use super::state::named_checkpoint;
use crate::Problem;
use crate::extract::{Fields, shown};

/// The body of a create, stream or wait.
#[derive(Debug)]
pub(super) struct RunRequest {
    /// An assistant's id, or a graph's name.
    pub(super) assistant: String,
    /// `None` goes on from where the thread stands.
    pub(super) input: Option<Map<String, Value>>,
    /// `{resume, update, goto}`, without what is null.
    pub(super) command: Option<Map<String, Value>>,
    pub(super) config: Map<String, Value>,
    pub(super) context: Map<String, Value>,
    pub(super) metadata: Map<String, Value>,
    pub(super) modes: Modes,
    pub(super) is_resumable: bool,
    pub(super) break_before: Nodes,
    pub(super) break_after: Nodes,
    pub(super) checkpoint: Option<CheckpointId>,
    pub(super) strategy: String,
    /// Makes the thread if there is none.
    pub(super) makes_thread: bool,
    pub(super) cancels_on_disconnect: bool,
    /// A stateless run's thread stays.
    pub(super) keeps_thread: bool,
    pub(super) delay: Duration,
    pub(super) webhook: Option<String>,
    pub(super) deadline: Option<Value>,
    pub(super) priority: Option<Priority>,
    pub(super) max_steps: Option<u32>,
    /// From the request's head.
    pub(super) idempotency: Option<Idempotency>,
}

/// Nodes by name, or all of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Nodes {
    #[default]
    None,
    All,
    Named(Vec<String>),
}

impl Nodes {
    /// Those of the graph; unknown names are passed over.
    pub(super) fn of(&self, graph: &super::graph::Graph) -> BTreeSet<Arc<str>> {
        let all = graph.nodes();
        match self {
            Self::None => BTreeSet::new(),
            Self::All => all.into_iter().collect(),
            Self::Named(names) => {
                all.into_iter().filter(|node| names.iter().any(|name| **name == **node)).collect()
            }
        }
    }
}

impl RunRequest {
    /// # Errors
    /// 422 for what is not as it should be, 400 for what contradicts itself.
    pub(super) fn parse(body: &[u8]) -> Result<Self, Problem> {
        Self::of(Fields::parse(body).map_err(errors::invalid)?)
    }

    pub(super) fn of(mut fields: Fields) -> Result<Self, Problem> {
        let assistant = fields.text("assistant_id");
        let input = match fields.value("input") {
            None | Some(Value::Null) => None,
            Some(Value::Object(map)) => Some(map),
            // A conversation may come as it is.
            Some(messages @ (Value::Array(_) | Value::String(_))) => {
                Some(Map::from_iter([("messages".to_owned(), messages)]))
            }
            Some(_) => {
                fields.wrong("dict_type", "input", "must be an object with the graph's channels");
                None
            }
        };
        let command = match fields.value("command") {
            None | Some(Value::Null) => None,
            Some(Value::Object(map)) => {
                Some(map.into_iter().filter(|(_, value)| !value.is_null()).collect())
            }
            Some(_) => {
                fields.wrong("dict_type", "command", "must be an object");
                None
            }
        };
        let config = errors::object(&mut fields, "config");
        let context = errors::object(&mut fields, "context");
        let metadata = errors::object(&mut fields, "metadata");
        let modes = modes(&mut fields);
        let is_resumable = errors::switch(&mut fields, "stream_resumable", false);
        errors::switch(&mut fields, "stream_subgraphs", false);
        let break_before = nodes(&mut fields, "interrupt_before");
        let break_after = nodes(&mut fields, "interrupt_after");
        let checkpoint = named_checkpoint(&mut fields)?;
        let strategies = ["enqueue", "reject", "interrupt", "rollback"];
        let strategy = errors::choice(&mut fields, "multitask_strategy", &strategies, "enqueue");
        let create = errors::choice(&mut fields, "if_not_exists", &["reject", "create"], "reject");
        let leave =
            errors::choice(&mut fields, "on_disconnect", &["continue", "cancel"], "continue");
        let completion = errors::choice(
            &mut fields,
            "on_completion",
            &["delete", "keep", "complete", "continue"],
            "delete",
        );
        errors::choice(&mut fields, "durability", &["async", "sync", "exit"], "async");
        let delay = delay(&mut fields);
        let webhook = webhook(&mut fields);
        let deadline = fields.value("deadline_ms").filter(|value| !value.is_null());
        let priority = priority(&mut fields);
        let max_steps = max_steps(&mut fields, &config);
        fields.finish().map_err(errors::invalid)?;
        let configured = config.get("configurable").and_then(Value::as_object);
        if !context.is_empty() && configured.is_some_and(|map| !map.is_empty()) {
            let text = "`context` and `config.configurable` say the same in two ways: send one";
            return Err(bad_request(text));
        }
        Ok(Self {
            assistant,
            input,
            command,
            config,
            context,
            metadata,
            modes,
            is_resumable,
            break_before,
            break_after,
            checkpoint,
            strategy,
            makes_thread: create == "create",
            cancels_on_disconnect: leave == "cancel",
            keeps_thread: completion == "keep",
            delay,
            webhook,
            deadline,
            priority,
            max_steps,
            idempotency: None,
        })
    }

    pub(super) fn multitask(&self) -> Multitask {
        Multitask::parse(&self.strategy).unwrap_or_default()
    }

    /// What the run's nodes can read: the assistant's settings, and over them the request's own. `context`
    /// and `config.configurable` are two names for it.
    pub(super) fn context_over(&self, assistant: &Assistant) -> Map<String, Value> {
        let mut context = Map::new();
        let of = |config: &Map<String, Value>| config.get("configurable")?.as_object().cloned();
        let layers = [
            of(&assistant.config).unwrap_or_default(),
            assistant.context.clone(),
            of(&self.config).unwrap_or_default(),
            self.context.clone(),
        ];
        layers.into_iter().for_each(|layer| context.extend(layer));
        for own in ["thread_id", "run_id", "checkpoint_id", "checkpoint_ns"] {
            context.remove(own);
        }
        context
    }

    /// The request as runs show it.
    pub(super) fn kwargs(&self) -> Map<String, Value> {
        let mut kwargs = Map::new();
        let mut put = |name: &str, value: Value| {
            kwargs.insert(name.to_owned(), value);
        };
        put("config", Value::Object(self.config.clone()));
        put("context", Value::Object(self.context.clone()));
        put("command", self.command.clone().map_or(Value::Null, Value::Object));
        put("stream_mode", self.modes.names().into());
        put("stream_resumable", self.is_resumable.into());
        put("interrupt_before", self.break_before.to_json());
        put("interrupt_after", self.break_after.to_json());
        put("webhook", self.webhook.clone().into());
        kwargs
    }
}

impl Nodes {
    fn to_json(&self) -> Value {
        match self {
            Self::None => Value::Null,
            Self::All => "*".into(),
            Self::Named(names) => names.clone().into(),
        }
    }
}

/// One mode or a list of them; `values` when nothing is said.
fn modes(fields: &mut Fields) -> Modes {
    let names = match fields.value("stream_mode") {
        None | Some(Value::Null) => return Modes::VALUES,
        Some(Value::String(name)) => vec![Value::String(name)],
        Some(Value::Array(names)) => names,
        Some(_) => {
            fields.wrong("enum", "stream_mode", "must be a mode or a list of modes");
            return Modes::VALUES;
        }
    };
    let mut modes = Modes::NONE;
    for name in &names {
        let mode = name.as_str().ok_or_else(|| "a mode is a string".to_owned());
        match mode.and_then(Modes::parse) {
            Ok(mode) => modes = modes.with(mode),
            Err(why) => fields.wrong("enum", "stream_mode", why),
        }
    }
    modes
}

fn nodes(fields: &mut Fields, name: &str) -> Nodes {
    match fields.value(name) {
        None | Some(Value::Null) => Nodes::None,
        Some(Value::String(all)) if all == "*" => Nodes::All,
        Some(Value::Array(items)) => {
            let names = items.iter().map(|item| item.as_str().map(ToOwned::to_owned));
            match names.collect::<Option<Vec<_>>>() {
                Some(names) if names.iter().any(|name| name == "*") => Nodes::All,
                Some(names) => Nodes::Named(names),
                None => {
                    fields.wrong("list_type", name, "must be a list of nodes' names, or \"*\"");
                    Nodes::None
                }
            }
        }
        Some(_) => {
            fields.wrong("list_type", name, "must be a list of nodes' names, or \"*\"");
            Nodes::None
        }
    }
}

/// The longest delay: a year.
const LONGEST_DELAY: f64 = 365.0 * 86_400.0;

fn delay(fields: &mut Fields) -> Duration {
    match fields.value("after_seconds") {
        None | Some(Value::Null) => Duration::ZERO,
        Some(value) => match value.as_f64().filter(|delay| (0.0..=LONGEST_DELAY).contains(delay)) {
            Some(seconds) => Duration::from_secs_f64(seconds),
            None => {
                let text = "must be a number of seconds from 0 to a year";
                fields.wrong("out_of_range", "after_seconds", text);
                Duration::ZERO
            }
        },
    }
}

fn priority(fields: &mut Fields) -> Option<Priority> {
    let level = match fields.value("priority") {
        None | Some(Value::Null) => return None,
        Some(value) => value.as_u64().and_then(|level| u8::try_from(level).ok()),
    };
    let priority = level.and_then(Priority::new);
    if priority.is_none() {
        fields.wrong("out_of_range", "priority", "must be a whole number from 1 (first) to 5");
    }
    priority
}

fn max_steps(fields: &mut Fields, config: &Map<String, Value>) -> Option<u32> {
    let limit = match config.get("recursion_limit") {
        None | Some(Value::Null) => return None,
        Some(limit) => limit.as_u64().filter(|limit| *limit >= 1),
    };
    if limit.is_none() {
        fields.wrong(
            "out_of_range",
            "config",
            "`recursion_limit` must be a whole number from 1 on",
        );
    }
    limit.map(|limit| u32::try_from(limit).unwrap_or(u32::MAX))
}

/// Where the end of the run is told. Addresses of this machine are refused.
fn webhook(fields: &mut Fields) -> Option<String> {
    let text = fields.nullable_text("webhook")?;
    match check_webhook(&text) {
        Ok(()) => Some(text),
        Err(why) => {
            fields.wrong("url", "webhook", why);
            None
        }
    }
}

fn check_webhook(text: &str) -> Result<(), String> {
    let wrong = || format!("must be an http or https address, this is `{}`", shown(text));
    if text.len() > 2048 {
        return Err("must be at most 2048 characters".to_owned());
    }
    let uri: Uri = text.parse().map_err(|_| wrong())?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(wrong());
    }
    let host = uri.host().ok_or_else(wrong)?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    let address = host.parse::<std::net::IpAddr>();
    let is_own = host == "localhost"
        || host.ends_with(".localhost")
        || address.is_ok_and(|ip| ip.is_loopback() || ip.is_unspecified());
    if is_own { Err("must not lead to this machine".to_owned()) } else { Ok(()) }
}

/// A resume value: for everything that is open, or by question.
pub(super) fn resume(value: &Value) -> Resumed {
    let Value::Object(map) = value else { return Resumed::All(value.clone()) };
    let by_id = map.iter().map(|(id, value)| Some((question(id)?, value.clone())));
    match by_id.collect::<Option<Vec<_>>>() {
        Some(by_id) => Resumed::ById(by_id),
        None => Resumed::All(value.clone()),
    }
}

/// See [`resume`].
#[derive(Debug, PartialEq)]
pub(super) enum Resumed {
    All(Value),
    /// Empty for an empty object, which answers nothing.
    ById(Vec<(uuid::Uuid, Value)>),
}

/// The id of a question, as clients write it.
pub(super) fn question(text: &str) -> Option<uuid::Uuid> {
    let known = matches!(text.len(), 32 | 36);
    known.then(|| uuid::Uuid::try_parse(text).ok()).flatten()
}

/// # Errors
/// 422 for a mode that is not one, in each of the three ways to write several.
pub(super) fn query_modes(query: &crate::extract::Query) -> Result<Option<Modes>, Problem> {
    let mut modes: Option<Modes> = None;
    let names: Vec<String> = query
        .every("stream_mode")
        .flat_map(|text| match serde_json::from_str::<Vec<String>>(text) {
            Ok(names) => names,
            Err(_) => text.split(',').map(|name| name.trim().to_owned()).collect(),
        })
        .filter(|name| !name.is_empty())
        .collect();
    for name in names {
        let mode = Modes::parse(&name).map_err(unprocessable)?;
        modes = Some(modes.unwrap_or(Modes::NONE).with(mode));
    }
    Ok(modes)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(body: Value) -> Result<RunRequest, Problem> {
        RunRequest::parse(body.to_string().as_bytes())
    }

    #[test]
    fn what_is_not_said_has_the_usual_meaning() {
        let request = parse(json!({"assistant_id": "a", "unknown": 1})).unwrap();
        assert_eq!(request.modes, Modes::VALUES);
        assert_eq!(request.multitask(), Multitask::Enqueue);
        assert!(!request.makes_thread && !request.is_resumable && !request.cancels_on_disconnect);
        let modes = json!({"assistant_id": "a", "stream_mode": ["values", "messages-tuple"]});
        assert_eq!(parse(modes).unwrap().modes, Modes::VALUES.with(Modes::TUPLES));
        assert_eq!(
            parse(json!({"assistant_id": "a", "interrupt_before": ["*"]})).unwrap().break_before,
            Nodes::All
        );
    }

    #[test]
    fn what_a_run_is_given_goes_over_what_its_assistant_has() {
        let of = |value: Value| value.as_object().cloned().unwrap();
        let assistant = Assistant {
            id: uuid::Uuid::nil(),
            tenant: "t".to_owned(),
            owner: None,
            agent: "a".to_owned(),
            version: 1,
            name: "a".to_owned(),
            description: None,
            config: of(json!({"configurable": {"tone": "dry", "size": 1}})),
            context: of(json!({"size": 2})),
            metadata: Map::new(),
            created_at: clearway_core::Timestamp(0),
            updated_at: clearway_core::Timestamp(0),
        };
        let context = |body: Value| {
            let request = parse(body).unwrap();
            Value::Object(request.context_over(&assistant))
        };
        assert_eq!(context(json!({"assistant_id": "a"})), json!({"tone": "dry", "size": 2}));
        let config = json!({"configurable": {"tone": "wet", "thread_id": "x"}});
        let body = json!({"assistant_id": "a", "config": config});
        assert_eq!(context(body), json!({"tone": "wet", "size": 2}));
        let body = json!({"assistant_id": "a", "context": {"size": 3}});
        assert_eq!(context(body), json!({"tone": "dry", "size": 3}));
    }

    #[test]
    fn every_mistake_is_refused() {
        for bad in [
            json!({}),
            json!([]),
            json!({"assistant_id": 7}),
            json!({"assistant_id": "a", "input": 7}),
            json!({"assistant_id": "a", "stream_mode": "tools"}),
            json!({"assistant_id": "a", "stream_mode": [1]}),
            json!({"assistant_id": "a", "multitask_strategy": "fight"}),
            json!({"assistant_id": "a", "after_seconds": -1}),
            json!({"assistant_id": "a", "after_seconds": 1e300}),
            json!({"assistant_id": "a", "priority": 9}),
            json!({"assistant_id": "a", "checkpoint_id": "x"}),
            json!({"assistant_id": "a", "webhook": "http://localhost/x"}),
            json!({"assistant_id": "a", "webhook": "ftp://x"}),
            json!({"assistant_id": "a", "webhook": "http://127.0.0.1:1/x"}),
            json!({"assistant_id": "a", "config": {"recursion_limit": 0}}),
            json!({"assistant_id": "a", "context": {"x": 1}, "config": {"configurable": {"x": 1}}}),
        ] {
            assert!(parse(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_resume_value_may_be_a_map_of_answers() {
        let id = uuid::Uuid::from_u128(7);
        let map = json!({id.simple().to_string(): true});
        assert_eq!(resume(&map), Resumed::ById(vec![(id, json!(true))]));
        assert_eq!(resume(&json!({})), Resumed::ById(Vec::new()));
        for all in [json!(false), json!(""), json!([]), json!({"decisions": []}), json!(0)] {
            assert_eq!(resume(&all), Resumed::All(all));
        }
    }
}
