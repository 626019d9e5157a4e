//! The way to a provider, drawn as a timeline.

use std::time::Duration;

use anyhow::{Result, anyhow};
use clearway::config::Config;
use clearway::inspect::{Outcome, Phase, Reach, STEP, reach};
use serde_json::json;

use super::finding::Finding;
use crate::exit::Usage;

const WHY: &str = "every call goes this way";

pub(crate) async fn check(config: &Config, name: &str) -> Result<Finding> {
    let Some(provider) = config.providers.get(name) else {
        let names: Vec<_> = config.providers.keys().map(String::as_str).collect();
        return Err(anyhow!(Usage {
            problem: format!("there is no provider {name}"),
            help: format!("one of: {}", names.join(", ")),
        }));
    };
    Ok(match reach(provider).await {
        Ok(reach) => judge(name, &reach),
        Err(problem) => Finding::ok("net", format!("{name}: nothing was called, {problem}"), WHY),
    })
}

/// Nobody knows where the provider is.
pub(crate) fn not_tried(name: &str) -> Finding {
    let found = format!("{name}: nothing was called, because the configuration is broken");
    Finding::warn("net", found, WHY, "repair the configuration first")
}

fn judge(name: &str, reach: &Reach) -> Finding {
    let called = format!("{name}: {} without a key", reach.called);
    let last = reach.phases.last().map_or("dns", |phase| phase.name);
    let finding = match &reach.outcome {
        Outcome::Answered(status) => Finding::ok(
            "net",
            format!("{called}: reachable, status {status} after {}", ms(total(&reach.phases))),
            WHY,
        ),
        Outcome::Failed(problem) => {
            Finding::fail("net", format!("{called}: {last} failed: {problem}"), WHY, fix(last))
        }
        Outcome::TimedOut => Finding::fail(
            "net",
            format!("{called}: {last} took longer than {} s", STEP.as_secs()),
            WHY,
            fix(last),
        ),
    };
    let phases = reach.phases.iter().map(|phase| {
        json!({
            "phase": phase.name,
            "began_ms": phase.began.as_secs_f64() * 1e3,
            "took_ms": phase.took.as_secs_f64() * 1e3,
        })
    });
    let status = match reach.outcome {
        Outcome::Answered(status) => Some(status),
        Outcome::Failed(_) | Outcome::TimedOut => None,
    };
    let data = json!({
        "provider": name,
        "called": reach.called,
        "status": status,
        "phases": phases.collect::<Vec<_>>(),
    });
    Finding { lines: timeline(&reach.phases), data: Some(data), ..finding }
}

fn fix(phase: &str) -> &'static str {
    match phase {
        "dns" => "look at base_url and at /etc/resolv.conf: the name servers must answer from here",
        "connect" => "look at base_url and at firewalls: a direct connection must be allowed",
        "tls" => "look who answers there: a proxy that opens TLS needs its certificate as ca_file",
        _ => {
            "the connection stands and nothing comes back: ask the provider, or look what is between"
        }
    }
}

fn total(phases: &[Phase]) -> Duration {
    phases.last().map_or(Duration::ZERO, |last| last.began + last.took)
}

fn ms(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1e3)
}

/// Columns of the drawing.
const COLUMNS: usize = 40;

/// One line per phase, each at its place in time.
fn timeline(phases: &[Phase]) -> Vec<String> {
    let whole = total(phases).as_secs_f64().max(1e-9);
    let column = |at: Duration| {
        let column = (at.as_secs_f64() / whole * COLUMNS as f64).round();
        (column as usize).min(COLUMNS)
    };
    phases
        .iter()
        .map(|phase| {
            let start = column(phase.began).min(COLUMNS - 1);
            // What took hardly any time is still there.
            let end = column(phase.began + phase.took).max(start + 1);
            let (gap, bar) = (" ".repeat(start), "█".repeat(end - start));
            format!("{:<10} {:>10}  {gap}{bar}", phase.name, ms(phase.took))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::super::finding::Level;
    use super::*;

    fn reached(outcome: Outcome) -> Finding {
        let phase = |name, began, took| Phase {
            name,
            began: Duration::from_millis(began),
            took: Duration::from_millis(took),
        };
        let phases = vec![
            phase("dns", 0, 10),
            phase("connect", 10, 0),
            phase("tls", 10, 40),
            phase("first byte", 50, 50),
        ];
        judge("house", &Reach { called: "GET https://x/v1/models".to_owned(), phases, outcome })
    }

    #[test]
    fn a_timeline_shows_where_the_time_went() {
        let finding = reached(Outcome::Answered(401));
        expect![[r"
            ok    net           house: GET https://x/v1/models without a key: reachable, status 401 after 100.0 ms
                                dns           10.0 ms  ████
                                connect        0.0 ms      █
                                tls           40.0 ms      ████████████████
                                first byte    50.0 ms                      ████████████████████
        "]]
        .assert_eq(&finding.text());
        assert_eq!(finding.as_json()["data"]["status"], 401);
    }

    #[test]
    fn the_step_that_failed_is_named() {
        let failed = reached(Outcome::Failed("reset".to_owned()));
        assert_eq!(failed.level, Level::Fail);
        assert!(failed.found.ends_with("first byte failed: reset"), "{failed:?}");
        let slow = reached(Outcome::TimedOut);
        assert!(slow.found.ends_with("first byte took longer than 5 s"), "{slow:?}");
        assert_eq!(timeline(&[]), [""; 0]);
    }
}
