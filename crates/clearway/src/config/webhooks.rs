//! `[webhooks]` and `[crons.NAME]`: what the server does by itself, at the end of a run or by the
//! clock.

use std::time::Duration;

use clearway_core::Timestamp;
use clearway_engine::next_time;
use clearway_upstream::Allowed;
use serde_json::{Map, Value as Json, json};

use super::walk::{At, Table};
use super::{Cron, Webhooks};

/// A cron whose agent is not looked up yet.
#[derive(Debug)]
pub(super) struct CronDraft {
    pub(super) cron: Cron,
    pub(super) runs: At<String>,
}

pub(super) fn read(table: Table<'_>) -> Webhooks {
    let deadline = Duration::from_millis(100)..=Duration::from_secs(60);
    let backoff = Duration::from_millis(10)..=Duration::from_secs(3600);
    let allow = table
        .get("allow")
        .map(|value| value.list().iter().filter_map(|item| item.parsed(Allowed::parse)).collect());
    let webhooks = Webhooks {
        secret: table.get("secret").and_then(|value| value.secret()),
        allow: allow.unwrap_or_default(),
        deadline: table.get("deadline").and_then(|value| value.duration(deadline)),
        attempts: table.get("attempts").and_then(|value| value.count(1..=100)),
        backoff: table.get("backoff").and_then(|value| value.duration(backoff)),
    };
    table.finish();
    webhooks
}

pub(super) fn cron(table: Table<'_>) -> Option<CronDraft> {
    let shape = "such as schedule = \"0 9 * * 1-5\"";
    let timezone = table.get("timezone").and_then(|value| {
        value.parsed(|zone| match next_time("0 0 * * *", Some(zone), Timestamp(0)) {
            Ok(_) => Ok(zone.to_owned()),
            Err(why) => Err(format!("{why}; names are like Europe/Berlin")),
        })
    });
    let schedule = table.require("schedule", shape).and_then(|value| {
        value.parsed(|text| match next_time(text, None, Timestamp(1_767_225_600_000)) {
            _ if text.split_whitespace().count() != 5 => {
                Err(format!("`{text}` has not the five fields minute, hour, day, month, weekday"))
            }
            Ok(_) => Ok(text.to_owned()),
            Err(why) => Err(format!("`{text}` names no time: {why}")),
        })
    });
    let (agent, workflow) = (table.get("agent"), table.get("workflow"));
    let runs = match (agent, workflow) {
        (Some(one), None) | (None, Some(one)) => one.name(),
        (None, None) => {
            table.require("agent", "say what it starts: agent = \"…\" or workflow = \"…\"");
            None
        }
        (Some(_), Some(two)) => {
            two.problem("a cron starts one thing", "the second", "leave `agent` or `workflow` out");
            None
        }
    };
    let input = match table.get("input") {
        None => Some(Json::Object(Map::new())),
        Some(value) if value.is_table() => value.json(),
        Some(value) => value.text().map(|text| json!({"message": text})),
    };
    let thread = table.get("thread").and_then(|value| value.name()).map(|thread| thread.value);
    table.finish();
    let runs = runs?;
    let cron =
        Cron { schedule: schedule?, timezone, runs: runs.value.clone(), input: input?, thread };
    Some(CronDraft { cron, runs })
}
