//! What came of a try, in a form that two tries can be compared by.
//!
//! Facts are compared as a multiset: the order of what runs side by side is not promised, and each
//! names its superstep. Where one call ran alone, and between supersteps, the order is promised, and the logs of runs
//! that ended well must have the same. Ids and times are masked, what is shown again after a crash counts once, and
//! what a crash or a wait adds by its nature (starts, resets, parking) does not count.
//!
//! What a call showed (progress, text, its own events) may be missing, but nothing else may come in
//! its place: a call that had ended beside a crash is not made again, so what it showed is not shown
//! again either. Its writes, its files and its end are never missing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use clearway_core::event::{Body, Event, Part};
use clearway_core::machine::Source;
use clearway_core::{EventKind, RunId, RunRecord, Status};
use clearway_engine::{ArtifactScope, RunQuery, Store};
use clearway_store::MemStore;
use serde_json::Value;

use super::Sink;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// By run, in the order of the drive; children behind their parents.
    runs: Vec<Described>,
    /// How many keys were written how often.
    sink: BTreeMap<u32, usize>,
    /// What must not be, whatever the undisturbed run did.
    pub(super) flaws: Vec<String>,
    /// Of the first run.
    pub(super) events: u64,
}

/// One run.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Described {
    /// Everything that is so, sorted.
    lines: Vec<String>,
    /// The facts whose order is promised, in their order.
    order: Vec<String>,
}

impl Outcome {
    pub(super) async fn of(
        store: &Arc<MemStore>,
        runs: &[RunId],
        sink: &Sink,
    ) -> Result<Self, String> {
        let mut outcome = Self { sink: sink.counts(), ..Self::default() };
        for (times, keys) in outcome.sink.iter().filter(|(times, _)| **times > 1) {
            outcome.flaws.push(format!("{keys} writes happened {times} times"));
        }
        for (n, run) in runs.iter().enumerate() {
            let end = outcome.add(store, *run).await?;
            if n == 0 {
                outcome.events = end;
            }
            let query = RunQuery { parent: Some(*run), limit: 1000, ..RunQuery::default() };
            let children = store.runs(query).await.map_err(|error| error.to_string())?.runs;
            let mut described = Vec::new();
            for child in children {
                let before = outcome.runs.len();
                outcome.add(store, child.id).await?;
                described.extend(outcome.runs.drain(before..));
            }
            described.sort();
            outcome.runs.extend(described);
        }
        Ok(outcome)
    }

    /// What is different, and what must not be at all.
    pub(super) fn differences(&self, expected: &Self) -> Vec<String> {
        let mut found = self.flaws.clone();
        if self.sink != expected.sink {
            found.push(format!("writes by times: {:?} instead of {:?}", self.sink, expected.sink));
        }
        if self.runs.len() != expected.runs.len() {
            found.push(format!("{} runs instead of {}", self.runs.len(), expected.runs.len()));
        }
        for (n, (got, want)) in self.runs.iter().zip(&expected.runs).enumerate() {
            if got == want {
                continue;
            }
            found.extend(
                out_of_order(&got.order, &want.order).map(|what| format!("run {n}: {what}")),
            );
            let only = |one: &[String], other: &[String]| -> Vec<String> {
                let mut rest = other.to_vec();
                let extra = one.iter().filter(|line| {
                    let at = rest.iter().position(|known| known == *line);
                    at.map(|at| rest.swap_remove(at)).is_none()
                });
                extra.cloned().collect()
            };
            let (mut more, mut less) =
                (only(&got.lines, &want.lines), only(&want.lines, &got.lines));
            less.retain(|line| !line.starts_with(SHOWN));
            if more.is_empty() && less.is_empty() {
                continue;
            }
            more.truncate(4);
            less.truncate(4);
            found.push(format!("run {n}: unexpected {more:#?}, missing {less:#?}"));
        }
        found
    }

    /// Returns the length of the run's log.
    async fn add(&mut self, store: &Arc<MemStore>, run: RunId) -> Result<u64, String> {
        let failed = |error: clearway_store::Error| error.to_string();
        let record = store.run(run).await.map_err(failed)?.ok_or("a run is gone")?;
        let log = self.log(store, &record).await?;
        let (mut lines, order) = facts(&record, &log);
        let code = record.failure.as_ref().map_or("", |failure| failure.code.as_str());
        lines.push(format!("status {} {code}", record.status.as_str()));
        lines.push(format!("superstep {}", record.step));
        let state = store.state(record.thread, None).await.map_err(failed)?;
        let state = state.map(|at| at.state.to_json()).unwrap_or_default();
        lines.push(format!("state {}", masked(&state)));
        let artifacts = store.artifacts(ArtifactScope::Run(run)).await.map_err(failed)?;
        lines.extend(artifacts.iter().map(|file| {
            format!("artifact {} v{} {} bytes", file.name, file.version, file.size_bytes)
        }));
        lines.sort();
        self.runs.push(Described { lines, order });
        // I3: a superstep commits once.
        let mut steps = BTreeSet::new();
        for at in store.history(record.thread, None, 1000).await.map_err(failed)? {
            if at.source == Source::Loop && at.run == Some(run) && !steps.insert(at.step) {
                self.flaws.push(format!("superstep {} was committed twice", at.step));
            }
        }
        Ok(log.len() as u64)
    }

    /// The run's whole log, which must have no gap and one end.
    async fn log(&mut self, store: &MemStore, record: &RunRecord) -> Result<Vec<Event>, String> {
        let mut events: Vec<Event> = Vec::new();
        loop {
            let from = events.len() as u64;
            let page = store.read_log(record.id, from, 1 << 20).await;
            let page = page.map_err(|error| error.to_string())?;
            if page.events.is_empty() {
                break;
            }
            events.extend(page.events);
        }
        if let Some((at, _)) = events.iter().enumerate().find(|(at, event)| event.seq != *at as u64)
        {
            self.flaws.push(format!("the log has a gap at {at}"));
        }
        if let Some(pair) = events.windows(2).find(|pair| pair[1].fence < pair[0].fence) {
            self.flaws.push(format!("event {} was written under an older lease", pair[1].seq));
        }
        let ends = events.iter().filter(|event| event.kind() == EventKind::RunEnded).count();
        let expected = usize::from(record.status.is_terminal());
        if ends != expected {
            self.flaws
                .push(format!("the log of a run that is {:?} has {ends} ends", record.status));
        }
        if ends == 1 && events.last().map(Event::kind) != Some(EventKind::RunEnded) {
            self.flaws.push("something follows the end".to_owned());
        }
        Ok(events)
    }
}

/// The facts that stand, one per line; and those whose order is promised.
fn facts(record: &RunRecord, log: &[Event]) -> (Vec<String>, Vec<String>) {
    let standing = standing(log);
    let beside_others = supersteps_of_many(&standing);
    let (mut order, mut superstep) = (Vec::new(), None);
    // What a run showed of a superstep that it did not commit depends on when it was stopped.
    let whole = record.status == Status::Success;
    let mut once = BTreeSet::new();
    let mut lines = Vec::new();
    let mut texts: BTreeMap<String, String> = BTreeMap::new();
    let mut beside: BTreeSet<String> = BTreeSet::new();
    for event in standing {
        let fact = match &event.body {
            Body::Delta(delta) => {
                if delta.part == Part::Text {
                    texts.entry(delta.message.to_string()).or_default().push_str(delta.text());
                }
                continue;
            }
            Body::Fact(fact) => fact,
        };
        if fact.kind == EventKind::MessageStarted {
            let data = fact.json();
            if data["task"].is_string() {
                beside.extend(data["message_id"].as_str().map(ToOwned::to_owned));
            }
        }
        if let (EventKind::NodeStarted | EventKind::NodeCompleted, Some(step)) =
            (fact.kind, fact.json()["step"].as_i64())
        {
            superstep = Some(step);
        }
        let before = lines.len();
        let line = || format!("{} {}", fact.kind.as_str(), masked(&without_times(fact.json())));
        match fact.kind {
            EventKind::RunStarted
            | EventKind::OutputReset
            | EventKind::RunReleased
            | EventKind::RunParked
            | EventKind::ProviderAttempt
            | EventKind::MessageDelta => {}
            EventKind::NodeStarted => {
                if whole && once.insert(line()) {
                    lines.push(line());
                }
            }
            EventKind::ChildStarted
            | EventKind::MessageStarted
            | EventKind::Progress
            | EventKind::Custom
            | EventKind::NodeFailed
            | EventKind::ToolStarted
            | EventKind::ToolCompleted => {
                if whole && once.insert(line()) {
                    lines.push(format!("{SHOWN}{}", line()));
                }
            }
            EventKind::CancelRequested => lines.push("cancel.requested".to_owned()),
            // By whom is told only as far as it is known: after a crash the row says that, not who.
            EventKind::RunEnded if record.status == Status::Cancelled => {
                lines.push("run.ended cancelled".to_owned());
            }
            EventKind::RunCreated
            | EventKind::MessageCompleted
            | EventKind::NodeCompleted
            | EventKind::HistoryTrimmed
            | EventKind::RunEnded
            | EventKind::Interrupt
            | EventKind::ArtifactSaved => lines.push(line()),
        }
        if whole && superstep.is_none_or(|step| !beside_others.contains(&step)) {
            order.extend_from_slice(&lines[before..]);
        }
    }
    if whole {
        // A call that runs beside others may end before a crash; its text is in the state all the same.
        let shown = |(message, text): (String, String)| match beside.contains(&message) {
            true => format!("{SHOWN}text {text}"),
            false => format!("text {text}"),
        };
        lines.extend(texts.into_iter().map(shown));
    }
    (lines, order)
}

/// Supersteps in which calls ran side by side: these name their task.
fn supersteps_of_many(standing: &[&Event]) -> BTreeSet<i64> {
    let many = standing.iter().filter_map(|event| match &event.body {
        Body::Fact(fact)
            if matches!(fact.kind, EventKind::NodeStarted | EventKind::NodeCompleted) =>
        {
            let data = fact.json();
            data["step"].as_i64().filter(|_| data["task"].is_string())
        }
        Body::Fact(_) | Body::Delta(_) => None,
    });
    many.collect()
}

/// Where two logs part, as far as both have the same facts: what is missing or more is told elsewhere.
fn out_of_order(got: &[String], want: &[String]) -> Option<String> {
    let both = |one: &[String], other: &[String]| -> Vec<String> {
        let mut rest = other.to_vec();
        let common = one.iter().filter(|line| {
            let at = rest.iter().position(|known| known == *line);
            at.map(|at| rest.swap_remove(at)).is_some()
        });
        common.cloned().collect()
    };
    let (got, want) = (both(got, want), both(want, got));
    let parted = got.iter().zip(&want).find(|(got, want)| got != want);
    parted.map(|(got, want)| format!("out of order: `{got}` where `{want}` should be"))
}

/// The events that no reset made void.
fn standing(log: &[Event]) -> Vec<&Event> {
    let mut standing: Vec<&Event> = Vec::new();
    // Messages of calls that ran beside others.
    let mut owners: BTreeMap<String, String> = BTreeMap::new();
    for event in log {
        let Body::Fact(fact) = &event.body else {
            standing.push(event);
            continue;
        };
        let data = fact.json();
        if fact.kind == EventKind::MessageStarted
            && let (Some(message), Some(task)) =
                (data["message_id"].as_str(), data["task"].as_str())
        {
            owners.insert(message.to_owned(), task.to_owned());
        }
        if fact.kind != EventKind::OutputReset {
            standing.push(event);
            continue;
        }
        let after = data["after"].as_u64();
        let task = data["task"].as_str();
        standing.retain(|event| {
            if after.is_some_and(|after| event.seq <= after) {
                return true;
            }
            let Some(task) = task else { return false };
            match &event.body {
                Body::Delta(delta) => {
                    owners.get(&delta.message.to_string()).is_none_or(|owner| owner != task)
                }
                Body::Fact(fact) => fact.json()["task"] != task,
            }
        });
    }
    standing
}

fn without_times(mut data: Value) -> Value {
    if let Some(object) = data.as_object_mut() {
        for key in ["spent", "at", "ms", "wake_at", "receipt", "usage"] {
            object.remove(key);
        }
    }
    data
}

/// As text, with every id as `#`.
fn masked(value: &Value) -> String {
    let text = value.to_string();
    let bytes = text.as_bytes();
    let mut masked = String::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        if bytes.get(at..at + ID).is_some_and(is_id) {
            masked.push('#');
            at += ID;
            continue;
        }
        let length = text[at..].chars().next().map_or(1, char::len_utf8);
        masked.push_str(&text[at..at + length]);
        at += length;
    }
    masked
}

/// Marks lines that may be missing.
const SHOWN: &str = "shown: ";

/// Length of a UUID as text.
const ID: usize = 36;

fn is_id(text: &[u8]) -> bool {
    text.iter().enumerate().all(|(at, byte)| match at {
        8 | 13 | 18 | 23 => *byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ids_are_masked_and_nothing_else() {
        let value = json!({"é": "018f2b1e-0000-7000-8000-000000000001-pay", "n": 12});
        assert_eq!(masked(&value), r##"{"é":"#-pay","n":12}"##);
    }

    #[test]
    fn differences_name_what_is_more_and_less() {
        let outcome = |lines: &[&str]| Outcome {
            runs: vec![Described {
                lines: lines.iter().map(|&line| line.to_owned()).collect(),
                order: Vec::new(),
            }],
            ..Outcome::default()
        };
        assert_eq!(outcome(&["a"]).differences(&outcome(&["a"])), [""; 0]);
        let found = outcome(&["a", "b", "b"]).differences(&outcome(&["a", "b", "c"]));
        assert!(found[0].contains("unexpected [\n    \"b\",\n]"), "{found:?}");
        assert!(found[0].contains("missing [\n    \"c\",\n]"), "{found:?}");
    }

    #[test]
    fn what_is_promised_to_follow_must_follow() {
        let log = |lines: &[&str]| lines.iter().map(|&line| line.to_owned()).collect::<Vec<_>>();
        let want = log(&["a", "shown: b", "c", "c"]);
        assert_eq!(out_of_order(&want, &want), None);
        assert_eq!(
            out_of_order(&log(&["a", "c", "c"]), &want),
            None,
            "missing is not out of order"
        );
        let found = out_of_order(&log(&["shown: b", "a", "c", "c"]), &want);
        assert_eq!(found.as_deref(), Some("out of order: `shown: b` where `a` should be"));
    }
}
