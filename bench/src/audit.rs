//! What must hold for a run's log after everything is over.
//!
//! The log is read as anybody can read it, `GET /runs/{id}/events` as JSON. It must be numbered without gaps, end once,
//! never go back to an older lease, and what stands in it after the resets must be the reply.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tokio::time::timeout;

use crate::expect::Expected;
use crate::http::{Conn, Request, exchange};

/// One event, as far as it matters here.
#[derive(Clone, Debug)]
struct Event {
    seq: u64,
    fence: u64,
    kind: String,
    at_ms: i64,
    data: Value,
}

/// A run was left in the middle and taken up under another lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Takeover {
    /// Its last event before.
    pub(crate) left_ms: i64,
    /// Its first event after.
    pub(crate) taken_ms: i64,
}

/// A run's whole log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log(Vec<Event>);

const LIMIT: Duration = Duration::from_secs(20);

impl Log {
    /// Reads all pages.
    pub(crate) async fn fetch(
        conn: &mut Option<Conn>,
        address: SocketAddr,
        run: &str,
    ) -> Result<Self> {
        let mut events = Vec::new();
        let mut path = format!("/runs/{run}/events?limit=1000");
        loop {
            let page = timeout(LIMIT, get(conn, address, &path))
                .await
                .context("reading a log took too long")??;
            for event in page["events"].as_array().context("a page without events")? {
                events.push(Event::read(event)?);
            }
            let Some(next) = page["next"].as_u64() else { return Ok(Self(events)) };
            path = format!("/runs/{run}/events?limit=1000&after={next}");
        }
    }

    /// What is wrong with it; nothing when it is the log of a success with this reply.
    pub(crate) fn problems(&self, expected: &Expected) -> Vec<String> {
        let mut problems = self.shape_problems();
        let text = self.standing_text();
        if text != expected.text() {
            let shown: String = text.chars().take(120).collect();
            problems.push(format!(
                "the text that stands is not the reply ({} bytes): {shown}",
                text.len()
            ));
        }
        problems
    }

    /// The same whatever it says.
    pub(crate) fn shape_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut wrong = |what: String| problems.push(what);
        for (n, event) in self.0.iter().enumerate() {
            if event.seq != n as u64 {
                wrong(format!("event {n} has number {}", event.seq));
                break;
            }
        }
        if let Some(pair) = self.0.windows(2).find(|pair| pair[1].fence < pair[0].fence) {
            wrong(format!(
                "event {} was written under an older lease than {}",
                pair[1].seq, pair[0].seq
            ));
        }
        let ends = self.0.iter().filter(|event| event.kind == "run.ended").count();
        if ends != 1 {
            wrong(format!("{ends} ends"));
        }
        match self.0.last() {
            Some(last) if last.kind != "run.ended" => {
                wrong(format!("the last event is {}", last.kind))
            }
            Some(last) if last.data["status"] != "success" => {
                wrong(format!("it ended as {}", last.data))
            }
            Some(_) => {}
            None => wrong("the log is empty".to_owned()),
        }
        problems
    }

    /// The deltas that no reset made void, joined.
    fn standing_text(&self) -> String {
        let mut deltas: Vec<(u64, &str)> = Vec::new();
        for event in &self.0 {
            match event.kind.as_str() {
                "message.delta" => {
                    deltas.push((event.seq, event.data["text"].as_str().unwrap_or_default()))
                }
                "output.reset" => {
                    let after = event.data["after"].as_u64();
                    deltas.retain(|(seq, _)| after.is_some_and(|after| *seq <= after));
                }
                _ => {}
            }
        }
        deltas.into_iter().map(|(_, text)| text).collect()
    }

    pub(crate) fn count(&self, kind: &str) -> usize {
        self.0.iter().filter(|event| event.kind == kind).count()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// When it was interrupted and taken up again. A run that parked waited for something else than a server.
    pub(crate) fn takeovers(&self) -> Vec<Takeover> {
        let mut found = Vec::new();
        let mut started = false;
        for pair in self.0.windows(2) {
            let [last, first] = pair else { continue };
            started |= last.kind == "run.started";
            let parked = matches!(last.kind.as_str(), "run.parked" | "run.released");
            if first.fence > last.fence && started && !parked {
                found.push(Takeover { left_ms: last.at_ms, taken_ms: first.at_ms });
            }
        }
        found
    }

    /// When it was taken up again after a kill at `kill_ms`, if it was being executed then.
    pub(crate) fn resumed_after(&self, kill_ms: i64) -> Option<i64> {
        let (before, after) =
            self.0.split_at(self.0.partition_point(|event| event.at_ms <= kill_ms));
        let last =
            before.last().filter(|_| before.iter().any(|event| event.kind == "run.started"))?;
        after.iter().find(|event| event.fence > last.fence).map(|event| event.at_ms)
    }
}

impl Event {
    fn read(event: &Value) -> Result<Self> {
        let id = event["id"].as_str().context("an event without id")?;
        let (_, fence) = id.split_once('-').with_context(|| format!("event id: {id}"))?;
        let at = event["at"].as_str().context("an event without time")?;
        Ok(Self {
            seq: event["seq"].as_u64().context("an event without number")?,
            fence: fence.parse::<u64>()? / 256,
            kind: event["kind"].as_str().context("an event without kind")?.to_owned(),
            at_ms: epoch_ms(at).with_context(|| format!("not a time: {at}"))?,
            data: event["data"].clone(),
        })
    }
}

async fn get(conn: &mut Option<Conn>, address: SocketAddr, path: &str) -> Result<Value> {
    let mut open = match conn.take().filter(Conn::is_reusable) {
        Some(open) => open,
        None => Conn::open(address).await?,
    };
    let request = Request::get_with(path, &[("accept", "application/json")]);
    let answer = exchange(&mut open, &request).await?;
    ensure!(answer.status == 200, "{path}: status {}", answer.status);
    *conn = Some(open);
    answer.json()
}

/// Milliseconds since 1970 of `2026-11-20T20:46:29.363+00:00`.
fn epoch_ms(text: &str) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<i64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second, ms) =
        (number(11..13)?, number(14..16)?, number(17..19)?, number(20..23)?);
    // Days from a first of March, so that the leap day is the last of its year.
    let shifted = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = shifted * 365 + shifted / 4 - shifted / 100 + shifted / 400 + day_of_year - 719_468;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1000 + ms)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn log(events: &[(&str, u64, Value)]) -> Log {
        let event = |(n, (kind, fence, data)): (usize, &(&str, u64, Value))| Event {
            seq: n as u64,
            fence: *fence,
            kind: (*kind).to_owned(),
            at_ms: n as i64 * 10,
            data: data.clone(),
        };
        Log(events.iter().enumerate().map(event).collect())
    }

    fn good() -> Vec<(&'static str, u64, Value)> {
        vec![
            ("run.created", 0, json!({})),
            ("run.started", 1, json!({})),
            ("message.delta", 1, json!({"text": "tok0"})),
            ("output.reset", 2, json!({"after": 1})),
            ("message.delta", 2, json!({"text": "tok0"})),
            ("message.delta", 2, json!({"text": " tok1"})),
            ("run.ended", 2, json!({"status": "success"})),
        ]
    }

    fn problems(events: &[(&str, u64, Value)]) -> String {
        log(events).problems(&Expected::counted(2)).join("; ")
    }

    #[test]
    fn a_sound_log_passes() {
        assert_eq!(problems(&good()), "");
        assert_eq!(log(&good()).count("output.reset"), 1);
    }

    #[test]
    fn what_a_crash_could_break_is_seen() {
        let mut silent = good();
        silent[3].0 = "progress";
        assert!(problems(&silent).contains("the text that stands"), "repeated without a reset");
        let mut cut = good();
        cut.pop();
        assert!(problems(&cut).starts_with("0 ends"));
        let mut stale = good();
        stale[5].1 = 1;
        assert!(problems(&stale).contains("older lease"));
        let mut failed = good();
        failed[6].2 = json!({"status": "error"});
        assert!(problems(&failed).contains("it ended as"));
        let mut gap = log(&good());
        gap.0.remove(2);
        assert!(gap.problems(&Expected::counted(2)).iter().any(|p| p.contains("has number")));
    }

    #[test]
    fn only_runs_under_way_count_as_resumed() {
        let log = log(&good());
        assert_eq!(log.resumed_after(5), None, "not started yet");
        assert_eq!(log.resumed_after(25), Some(30));
        assert_eq!(log.resumed_after(100), None, "over");
    }

    #[test]
    fn takeovers_are_found_and_parking_is_none() {
        let mut events = good();
        assert_eq!(log(&events).takeovers(), [Takeover { left_ms: 20, taken_ms: 30 }]);
        events[2].0 = "run.parked";
        assert_eq!(log(&events).takeovers(), []);
    }

    #[test]
    fn times_are_read() {
        assert_eq!(epoch_ms("1970-01-01T00:00:00.000+00:00"), Some(0));
        assert_eq!(epoch_ms("2026-11-20T20:46:29.363+00:00"), Some(1_795_207_589_363));
        assert_eq!(epoch_ms("2000-02-29T00:00:00.000+00:00"), Some(951_782_400_000));
        assert_eq!(epoch_ms("yesterday"), None);
    }
}
