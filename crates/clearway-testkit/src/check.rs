//! What must hold afterwards, whatever happened before.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use clearway_core::RunId;
use serde_json::Value;

/// One line of a JSON log.
#[derive(Clone, Debug)]
pub struct LogLine(Value);

impl LogLine {
    /// A field, wherever the log keeps it.
    pub fn field(&self, name: &str) -> Option<&Value> {
        self.0.get(name).or_else(|| self.0.get("fields")?.get(name))
    }

    pub fn message(&self) -> &str {
        self.field("message").and_then(Value::as_str).unwrap_or_default()
    }

    fn id(&self, what: &str) -> Result<String> {
        let name = KINDS.iter().find(|(kind, _)| *kind == what).map_or("id", |(_, name)| *name);
        let id = self.field(name).and_then(Value::as_str);
        let id = id.with_context(|| format!("no `{name}`: {}", self.message()))?;
        // A step's, or a call's that a step made: RUN/STEP/NODE, RUN-STEP-NODE-ATTEMPT.
        let (run, rest) = id.split_at_checked(36).unwrap_or((id, ""));
        let is_of_run = rest.starts_with('/') || rest.matches('-').count() >= 3;
        if is_of_run && run.parse::<RunId>().is_ok() {
            let named = self.field("run.id").and_then(Value::as_str);
            ensure!(named == Some(run), "no `run.id`: {}", self.message());
        }
        Ok(id.to_owned())
    }

    pub fn level(&self) -> &str {
        self.field("level").and_then(Value::as_str).unwrap_or_default()
    }
}

/// The lines of a log that are JSON; a banner is not.
pub fn log_lines(log: &str) -> Vec<LogLine> {
    let lines = log.lines().filter_map(|line| serde_json::from_str(line).ok());
    lines.filter(Value::is_object).map(LogLine).collect()
}

/// Started and ended lines, matched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pairs {
    /// How often each kind of thing started: `run`, `step`, `call`.
    pub started: BTreeMap<String, usize>,
    /// Things that started and did not end.
    pub open: Vec<String>,
}

/// Matches lines `WHAT started` and `WHAT ended`: each start has exactly one end, with the same id,
/// an outcome and a duration (invariant I8).
///
/// # Errors
/// Something ended that had not started, twice, or without saying how and after how long.
pub fn pairs(log: &str) -> Result<Pairs> {
    let mut open: BTreeMap<(String, String), ()> = BTreeMap::new();
    let mut found = Pairs::default();
    for line in log_lines(log) {
        let message = line.message();
        if let Some(what) = what_of(message, " started") {
            *found.started.entry(what.to_owned()).or_default() += 1;
            if open.insert((what.to_owned(), line.id(what)?), ()).is_some() {
                bail!("started twice without an end: {message}");
            }
        } else if let Some(what) = what_of(message, " ended") {
            for name in ["outcome", "duration_ms"] {
                ensure!(line.field(name).is_some(), "an ending line without `{name}`: {message}");
            }
            let key = (what.to_owned(), line.id(what)?);
            ensure!(open.remove(&key).is_some(), "ended without a start: {message}");
        }
    }
    found.open = open.into_keys().map(|(what, id)| format!("{what} {id}")).collect();
    Ok(found)
}

/// Lines of a log that complain, or tell of a run that failed, and do not say why.
pub fn without_cause(log: &str) -> Vec<String> {
    let says = |line: &LogLine, name: &str| {
        let said = line.field(name).and_then(Value::as_str);
        said.is_some_and(|text| !text.trim().is_empty())
    };
    let is_bare = |line: &LogLine| {
        let outcome = line.field("outcome").and_then(Value::as_str).unwrap_or_default();
        let failed =
            line.message().starts_with("run ended") && matches!(outcome, "error" | "timeout");
        let complains = matches!(line.level(), "WARN" | "ERROR");
        // How long the machine stood still is its own cause.
        let explains = says(line, "code")
            || complains
                && (says(line, "error")
                    || line.message().contains(": ")
                    || line.field("lag_ms").is_some());
        (failed || complains) && !explains
    };
    let bare = log_lines(log).into_iter().filter(is_bare);
    bare.map(|line| line.message().to_owned()).collect()
}

/// The things whose lines come in pairs, and the field that holds their id.
const KINDS: [(&str, &str); 3] =
    [("run", "run.id"), ("step", "step.id"), ("provider call", "call.id")];

fn what_of(message: &str, verb: &str) -> Option<&'static str> {
    let (what, rest) = message.split_once(verb)?;
    let is_whole = rest.is_empty() || rest.starts_with(':');
    KINDS.iter().map(|(kind, _)| *kind).find(|kind| *kind == what && is_whole)
}

/// Checks a run's whole log: numbers `0, 1, 2, …`, first `run.created`, and for an ended run exactly
/// one `run.ended`, as the last (invariants I2, I3, I5).
///
/// # Errors
/// Says what is wrong, and at which number.
pub fn check_gapless(events: &[Value], ended: bool) -> Result<()> {
    let kind = |event: &Value| event["kind"].as_str().unwrap_or_default().to_owned();
    let first = events.first().context("an empty log")?;
    ensure!(kind(first) == "run.created", "the first event is {first}");
    for (expected, event) in (0u64..).zip(events) {
        let seq =
            event["seq"].as_u64().with_context(|| format!("an event without a number: {event}"))?;
        ensure!(seq == expected, "event {seq} where {expected} should be: {event}");
    }
    let ends = events.iter().filter(|event| kind(event) == "run.ended").count();
    if ended {
        ensure!(ends == 1, "{ends} ends in the log");
        let last = events.last().context("an empty log")?;
        ensure!(kind(last) == "run.ended", "after the end: {last}");
    } else {
        ensure!(ends == 0, "an end in the log of a run that goes on");
    }
    check_messages(events)
}

/// No message is completed twice, unless the output before was declared void.
fn check_messages(events: &[Value]) -> Result<()> {
    let mut completed: Vec<(u64, String)> = Vec::new();
    for event in events {
        let id = || event["data"]["message_id"].as_str().unwrap_or_default().to_owned();
        match event["kind"].as_str().unwrap_or_default() {
            "output.reset" => {
                let after = event["data"]["after"].as_u64();
                completed.retain(|(seq, _)| after.is_some_and(|after| *seq <= after));
            }
            "message.completed" => {
                let seq = event["seq"].as_u64().unwrap_or_default();
                ensure!(
                    !completed.iter().any(|(_, known)| *known == id()),
                    "message completed twice: {event}"
                );
                completed.push((seq, id()));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(message: &str) -> String {
        let ids = json!({"run.id": "a", "step.id": "a/0/n", "call.id": "a-0-1"});
        let mut line = json!({"message": message, "outcome": "x", "duration_ms": 1});
        line.as_object_mut().unwrap().extend(ids.as_object().unwrap().clone());
        format!("{line}\n")
    }

    #[test]
    fn starts_and_ends_are_matched() {
        let log = line("run started: a") + "banner\n" + &line("step started: a/0/n");
        let log = log
            + &line("provider call started")
            + &line("provider call ended")
            + &line("run ended: a: ok");
        let found = pairs(&log).unwrap();
        assert_eq!(found.open, ["step a/0/n"]);
        assert_eq!(found.started["run"], 1);
        assert!(pairs(&line("run ended: a: ok")).is_err());
        assert!(pairs(&(line("run started: a") + &line("run started: a"))).is_err());
        let silent = line("run started: a")
            + "{\"message\": \"run ended\", \"run.id\": \"a\", \"outcome\": \"ok\"}\n";
        assert!(pairs(&silent).unwrap_err().to_string().contains("duration_ms"));
    }

    fn log(kinds: &[&str]) -> Vec<Value> {
        let event = |(seq, kind): (usize, &&str)| json!({"seq": seq, "kind": kind, "data": {"message_id": "m"}});
        kinds.iter().enumerate().map(event).collect()
    }

    #[test]
    fn logs_are_checked() {
        let good = ["run.created", "message.delta", "message.completed", "run.ended"];
        check_gapless(&log(&good), true).unwrap();
        assert!(check_gapless(&log(&good), false).is_err());
        assert!(check_gapless(&log(&good[..3]), true).is_err());
        assert!(check_gapless(&log(&good[1..]), true).is_err());
        let mut gap = log(&good);
        gap.remove(1);
        assert!(check_gapless(&gap, true).is_err());
        let twice = ["run.created", "message.completed", "message.completed", "run.ended"];
        assert!(check_gapless(&log(&twice), true).is_err());
        let mut void = log(&[
            "run.created",
            "message.completed",
            "output.reset",
            "message.completed",
            "run.ended",
        ]);
        void[2]["data"] = json!({"after": 0});
        check_gapless(&void, true).unwrap();
    }
}
