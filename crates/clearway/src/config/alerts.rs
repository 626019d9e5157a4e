//! `[alerts]`: which measurements somebody is told about.

use std::time::Duration;

use clearway_engine::{Alerts, Measure};
use clearway_upstream::{Outward, OutwardPolicy};

use super::Webhooks;
use super::walk::Table;

/// Beyond a threshold for so long, unless `hold` says otherwise.
const HOLD: Duration = Duration::from_secs(60);

pub(super) fn read(table: Table<'_>, webhooks: &Webhooks) -> Alerts {
    let hold = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
    let outward = Outward::new(OutwardPolicy { allow: webhooks.allow.clone() });
    let check = |url: &str| {
        let private = "; `allow` of [webhooks] makes exceptions";
        let refused = |error: clearway_upstream::OutwardError| match error {
            clearway_upstream::OutwardError::Private { .. } => format!("{error}{private}"),
            other => other.to_string(),
        };
        outward.check(url).map_err(refused)
    };
    let example = "\"https://hooks.example/clearway\"";
    let webhook = table.get("webhook").and_then(|value| value.address(check, example));
    let hold = table.get("hold").and_then(|value| value.duration(hold));
    let mut thresholds = Vec::new();
    let mut add = |measure, threshold: Option<f64>| {
        thresholds.extend(threshold.map(|threshold| (measure, threshold)));
    };
    let bytes = |key| {
        let value = table.get(key).and_then(|value| value.integer(1..=1 << 50));
        value.map(|bytes| bytes as f64)
    };
    let share = |key| table.get(key).and_then(|value| value.fraction(0.0..=1.0));
    let on = |key| table.get(key).and_then(|value| value.boolean()).filter(|on| *on);
    add(Measure::Memory, bytes("memory_bytes"));
    add(Measure::DiskFree, bytes("disk_free_bytes"));
    add(Measure::OpenFiles, share("open_files"));
    add(Measure::Queue, share("queue"));
    add(Measure::FailedRuns, share("failed_runs"));
    let lag = Duration::from_millis(1)..=Duration::from_secs(60);
    let lag = table.get("scheduler_lag").and_then(|value| value.duration(lag));
    add(Measure::SchedulerLag, lag.map(|lag| lag.as_secs_f64()));
    add(Measure::ExtraThreads, on("extra_threads").map(|_| 0.0));
    add(Measure::Breaker, on("breaker_open").map(|_| 0.0));
    table.finish();
    Alerts { webhook, hold: hold.unwrap_or(HOLD), thresholds }
}
