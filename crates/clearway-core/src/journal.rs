//! What a call leaves behind before its superstep commits.
//!
//! A superstep commits as a whole. Until then the journal keeps, per call, what must survive a crash
//! in between: the output of a call whose siblings still run, the questions it asked and the answers
//! it got, the results of its memoised steps, the outward writes it is about to make. Entries are
//! found by the call's [`TaskId`], which is the same when the superstep is planned again.
//!
//! **Invariant:** an entry is written once; the first one under a key stands.
//!
//! Not here: storing it (`clearway-store`), what the keys of nodes mean (`clearway-engine`).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::channel::Write;
use crate::machine::Output;
use crate::plan::Goto;
use crate::run::Usage;
use crate::{RunId, TaskId};

/// One note of one call.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub task: TaskId,
    /// `done`, `interrupt:0`, `answer:0`, and whatever a node's helpers use (`step:NAME`, …).
    pub key: String,
    pub data: Value,
}

/// Key of a finished call's output.
pub const DONE: &str = "done";

/// Key of the note that a finished call's end stands in the log, although its superstep has not
/// committed.
pub const TOLD: &str = "told";

/// Key of a call's `n`-th question.
pub fn interrupt_key(n: u32) -> String {
    format!("interrupt:{n}")
}

/// Key of the answer to it.
pub fn answer_key(n: u32) -> String {
    format!("answer:{n}")
}

/// The notes of one call, by key.
pub type Notes = BTreeMap<String, Value>;

/// All notes of a thread's frontier.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Journal(BTreeMap<TaskId, Notes>);

impl Journal {
    /// Adds an entry, unless there is one under its key.
    pub fn add(&mut self, entry: Entry) {
        self.0.entry(entry.task).or_default().entry(entry.key).or_insert(entry.data);
    }

    pub fn notes(&self, task: TaskId) -> Option<&Notes> {
        self.0.get(&task)
    }

    pub fn tasks(&self) -> impl Iterator<Item = TaskId> + '_ {
        self.0.keys().copied()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The output of a call that had finished.
    pub fn done(&self, task: TaskId) -> Option<Output> {
        output_from_json(self.notes(task)?.get(DONE)?)
    }

    /// Whether a finished call's end stands in the log.
    pub fn told(&self, task: TaskId) -> bool {
        self.notes(task).is_some_and(|notes| notes.contains_key(TOLD))
    }

    /// The answers that a call got so far, in order.
    pub fn answers(&self, task: TaskId) -> Vec<Value> {
        let Some(notes) = self.notes(task) else { return Vec::new() };
        let answers = (0..).map_while(|n| notes.get(&answer_key(n)));
        answers.map(|answer| answer["value"].clone()).collect()
    }

    /// The question that a call waits for an answer to: its number and what it showed.
    pub fn question(&self, task: TaskId) -> Option<(u32, &Value)> {
        let n = self.answers(task).len() as u32;
        Some((n, self.notes(task)?.get(&interrupt_key(n))?))
    }
}

impl FromIterator<Entry> for Journal {
    fn from_iter<I: IntoIterator<Item = Entry>>(entries: I) -> Self {
        let mut journal = Self::default();
        entries.into_iter().for_each(|entry| journal.add(entry));
        journal
    }
}

/// How a finished call's output is kept.
pub fn output_to_json(output: &Output) -> Value {
    let mut object = Map::new();
    let writes = output.writes.iter().map(|write| {
        let mut entry = json!({"channel": &*write.channel, "value": write.value});
        if write.assign {
            entry["assign"] = true.into();
        }
        entry
    });
    object.insert("writes".to_owned(), writes.collect());
    if let Some(goto) = &output.goto {
        let goto = goto.iter().map(|to| match to {
            Goto::Node(node) => json!({"node": &**node}),
            Goto::Send { node, payload } => json!({"send": &**node, "payload": payload}),
            Goto::After(node) => json!({"after": &**node}),
        });
        object.insert("goto".to_owned(), goto.collect());
    }
    if let Some(reply) = output.reply {
        object.insert("reply".to_owned(), reply.to_string().into());
    }
    object.insert("usage".to_owned(), usage_to_json(output.usage));
    Value::Object(object)
}

fn usage_to_json(usage: Usage) -> Value {
    let Usage { input_tokens, output_tokens, rebilled_tokens, calls, cost_micros } = usage;
    json!([input_tokens, output_tokens, rebilled_tokens, calls, cost_micros])
}

fn usage_from_json(value: &Value) -> Usage {
    let number = |at: usize| value[at].as_u64().unwrap_or(0);
    Usage {
        input_tokens: number(0),
        output_tokens: number(1),
        rebilled_tokens: number(2),
        calls: u32::try_from(number(3)).unwrap_or(u32::MAX),
        cost_micros: number(4),
    }
}

/// Notes with a kept output what its run has used since its last commit, which is number `commits`: the next
/// commit counts it, and a crash before that would lose it.
pub fn note_unbooked(output: &mut Value, run: RunId, commits: u64, usage: Usage) {
    output["unbooked"] =
        json!({"run": run.to_string(), "commits": commits, "usage": usage_to_json(usage)});
}

/// What `run` has used and no commit counts yet, as far as kept outputs tell. Each tells of all before it.
pub fn unbooked(entries: &[Entry], run: RunId, commits: u64) -> Usage {
    let run = run.to_string();
    let noted = entries.iter().filter(|entry| entry.key == DONE).filter_map(|entry| {
        let noted = &entry.data["unbooked"];
        let is_open = noted["run"] == *run && noted["commits"] == commits;
        is_open.then(|| usage_from_json(&noted["usage"]))
    });
    noted.max_by_key(|usage| usage.calls).unwrap_or_default()
}

/// Reads what [`output_to_json`] wrote. `None` when it is damaged: the call is made again.
pub fn output_from_json(value: &Value) -> Option<Output> {
    let writes = value["writes"]
        .as_array()?
        .iter()
        .map(|entry| {
            Some(Write {
                channel: entry["channel"].as_str()?.into(),
                value: entry["value"].clone(),
                assign: entry["assign"] == true,
            })
        })
        .collect::<Option<_>>()?;
    let goto = match value.get("goto") {
        None => None,
        Some(goto) => Some(goto.as_array()?.iter().map(goto_from_json).collect::<Option<_>>()?),
    };
    let reply = match value.get("reply") {
        None => None,
        Some(reply) => Some(reply.as_str()?.parse().ok()?),
    };
    let usage = usage_from_json(&value["usage"]);
    Some(Output { writes, goto, reply, usage })
}

fn goto_from_json(value: &Value) -> Option<Goto> {
    let text = |key: &str| value.get(key)?.as_str().map(Arc::from);
    if let Some(node) = text("node") {
        return Some(Goto::Node(node));
    }
    if let Some(node) = text("send") {
        return Some(Goto::Send { node, payload: value["payload"].clone() });
    }
    text("after").map(Goto::After)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn outputs_survive_storage() {
        let output = Output {
            writes: vec![
                Write::new("a", json!({"x": 1})),
                Write { assign: true, ..Write::new("b", json!([])) },
            ],
            goto: Some(vec![
                Goto::Node("n".into()),
                Goto::Send { node: "s".into(), payload: json!(null) },
                Goto::After("z".into()),
            ]),
            reply: Some(Uuid::from_u128(5)),
            usage: Usage { calls: 2, cost_micros: 9, ..Usage::default() },
        };
        assert_eq!(output_from_json(&output_to_json(&output)), Some(output));
        assert_eq!(output_from_json(&json!({"writes": 3})), None);
    }

    #[test]
    fn what_no_commit_counts_yet_is_kept_with_outputs() {
        let (mine, other) = (RunId(Uuid::from_u128(1)), RunId(Uuid::from_u128(2)));
        let entry = |task: u128, run, commits, calls| {
            let mut data = output_to_json(&Output { writes: Vec::new(), ..Output::default() });
            note_unbooked(&mut data, run, commits, Usage { calls, ..Usage::default() });
            assert!(output_from_json(&data).is_some());
            Entry { task: TaskId(Uuid::from_u128(task)), key: DONE.to_owned(), data }
        };
        let all = [
            entry(1, mine, 3, 2),
            entry(2, mine, 3, 5),
            entry(3, mine, 2, 9),
            entry(4, other, 3, 8),
        ];
        assert_eq!(unbooked(&all, mine, 3).calls, 5, "each tells of all before it");
        assert_eq!(unbooked(&all, mine, 4).calls, 0, "a commit has counted them");
    }

    #[test]
    fn a_question_stands_until_it_is_answered() {
        let task = TaskId(Uuid::from_u128(1));
        let entry = |key: String, data| Entry { task, key, data };
        let mut journal = Journal::default();
        journal.add(entry(interrupt_key(0), json!({"value": "ok?"})));
        assert_eq!(journal.question(task).map(|(n, _)| n), Some(0));
        journal.add(entry(answer_key(0), json!({"value": true})));
        journal.add(entry(answer_key(0), json!({"value": false})));
        assert_eq!(journal.question(task), None);
        assert_eq!(journal.answers(task), [json!(true)], "the first one stands");
    }
}
