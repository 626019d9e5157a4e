use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::channel::Reducer;
use crate::event::Event;
use crate::log::Log;
use crate::plan::{Builder, END, MESSAGES};
use crate::{Timestamp, event::Body};

/// `a` leads to `b` and `c` in parallel, both lead to `d`; `d` may go back to `a`.
fn diamond(max_steps: u32) -> Arc<Plan> {
    let plan = Builder::new()
        .channel("log", Reducer::Append)
        .channel(MESSAGES, Reducer::MergeById)
        .node("a")
        .node("b")
        .node("c")
        .node("d")
        .entry("a")
        .edge("a", "b")
        .edge("a", "c")
        .edge("b", "d")
        .edge("c", "d")
        .edge("d", END)
        .max_steps(max_steps);
    Arc::new(plan.build().unwrap())
}

fn start_of(plan: Arc<Plan>, row: &Row) -> Start {
    Start {
        run: RunId(Uuid::from_u128(1)),
        plan,
        state: row.state.clone(),
        attempt: row.attempt,
        fruitless: row.fruitless,
        step: row.step,
        frontier: row.next.clone(),
        journal: row.journal.clone(),
        taken_in: row.steps_committed.contains(&-1),
        commits: row.commits,
        committed_seq: row.log.last().map_or(0, |event| event.seq + 1),
        has_void_output: row.attempt > 1,
        input: vec![Write::new("log", json!("input"))],
        command: None,
        detailed: false,
        first: None,
        max_steps: None,
        breaks: Breaks::default(),
        cancel_requested: row.cancel_requested,
        reply: None,
        failed: None,
    }
}

/// What a store would keep of the run, with the checks a store makes.
#[derive(Debug, Default)]
struct Row {
    state: State,
    status: Option<Status>,
    attempt: u32,
    fruitless: u32,
    commits: u64,
    step: i64,
    next: Frontier,
    journal: Journal,
    cancel_requested: bool,
    steps_committed: BTreeSet<i64>,
    depth: u64,
    log: Vec<Event>,
    /// How often each (step, node) was begun since the step was committed.
    reset_announced: bool,
}

impl Row {
    fn new() -> Self {
        Self { step: -1, ..Self::default() }
    }

    fn apply(&mut self, commit: &Commit, log: &mut Log) {
        assert!(self.status.is_none(), "I5: a terminal run writes nothing more");
        assert_eq!(commit.number, self.commits, "commits are numbered without gaps");
        let segment = log.take_for_commit();
        for event in segment.map(|segment| segment.decode().unwrap()).unwrap_or_default() {
            let next = self.log.last().map_or(0, |last| last.seq + 1);
            if event.seq >= next {
                assert_eq!(event.seq, next, "I3: no gap in the log");
                self.log.push(event);
            }
        }
        for checkpoint in &commit.checkpoints {
            assert!(self.steps_committed.insert(checkpoint.step), "I3: a superstep commits once");
            self.depth += if checkpoint.source == Source::Input { 2 } else { 1 };
            assert_eq!(checkpoint.next.depth, self.depth, "supersteps count on");
            for delta in &checkpoint.deltas {
                assert_eq!(delta.previous, self.state.channel_version(&delta.channel));
                self.state.apply_at(&delta.channel, delta.op.clone(), delta.version);
            }
        }
        self.commits += 1;
        self.step = commit.step;
        // A release keeps what the last superstep left due.
        if commit.outcome != Outcome::Release {
            self.next = commit.next.clone();
        }
        commit.notes.iter().for_each(|entry| self.journal.add(entry.clone()));
        match &commit.outcome {
            Outcome::Continue => self.fruitless = 0,
            Outcome::Release | Outcome::Park(_) => {}
            Outcome::End { status, .. } => self.status = Some(*status),
        }
    }
}

/// One process's memory of the run.
struct Owner {
    machine: Machine,
    log: Log,
    calls: Vec<(u32, Arc<str>, bool)>,
    committing: Option<Box<Commit>>,
    /// Finished calls on their way to the journal.
    keeping: Vec<Entry>,
    stopped: Option<Stopped>,
    cancel_taken: bool,
}

impl Owner {
    fn claim(row: &mut Row, plan: &Arc<Plan>) -> Self {
        row.attempt += 1;
        let (machine, effects) = Machine::start(start_of(plan.clone(), row));
        let next_seq = row.log.last().map_or(0, |event| event.seq + 1);
        let mut owner = Self {
            machine,
            log: Log::new(row.attempt, next_seq),
            calls: Vec::new(),
            committing: None,
            keeping: Vec::new(),
            stopped: None,
            cancel_taken: row.cancel_requested,
        };
        row.reset_announced = effects.iter().any(
            |effect| matches!(effect, Effect::Show(fact) if fact.kind == EventKind::OutputReset),
        );
        assert_eq!(row.reset_announced, row.attempt > 1, "void output is announced");
        owner.take(effects);
        owner
    }

    fn feed(&mut self, input: Input) {
        if self.stopped.is_none() {
            let effects = self.machine.handle(input);
            self.take(effects);
        }
    }

    fn take(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            assert!(self.stopped.is_none(), "nothing after the stop");
            match effect {
                Effect::Show(fact) => {
                    self.log.append(Timestamp(0), Body::Fact(fact));
                }
                Effect::Record(fact) => {
                    self.log.append_hidden(Timestamp(0), Body::Fact(fact));
                }
                Effect::StartCall(start) => {
                    let StartCall { call, due, .. } = *start;
                    assert!(self.committing.is_none(), "no call starts during a commit");
                    assert!(!self.cancel_taken, "no call starts after a cancel was taken in");
                    assert!(self.calls.iter().all(|(known, ..)| *known != call));
                    self.calls.push((call, due.node, false));
                }
                Effect::Keep { entry, .. } => self.keeping.push(entry),
                Effect::WakeAt(_) => {}
                Effect::AbortCall { call } => {
                    let known = self.calls.iter_mut().find(|(known, ..)| *known == call);
                    known.expect("aborts only what runs").2 = true;
                }
                Effect::Commit(commit) => {
                    assert!(self.committing.replace(commit).is_none(), "one commit at a time");
                    assert!(self.calls.is_empty(), "no call is open during a commit");
                }
                Effect::Stop(stopped) => self.stopped = Some(stopped),
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Action {
    /// The n-th open call ends: well, badly, or (if told to) aborted.
    End(usize, bool),
    Token,
    Cancel,
    CancelRow,
    Deadline,
    Drain,
    Ack,
    /// The commit happens, its answer is lost with the process.
    CommitThenCrash,
    Crash,
    Fence,
    /// What finished calls left is durable.
    Keep,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        12 => (0..3usize, prop::bool::weighted(0.95)).prop_map(|(n, ok)| Action::End(n, ok)),
        4 => Just(Action::Token),
        1 => Just(Action::Cancel),
        1 => Just(Action::CancelRow),
        1 => Just(Action::Deadline),
        1 => Just(Action::Drain),
        10 => Just(Action::Ack),
        1 => Just(Action::CommitThenCrash),
        1 => Just(Action::Crash),
        1 => Just(Action::Fence),
        3 => Just(Action::Keep),
    ]
}

fn failure() -> Failure {
    Failure::new(Code::UpstreamServerError, "500")
}

fn drive(actions: &[Action]) -> Row {
    let plan = diamond(50);
    let mut row = Row::new();
    let mut owner = Owner::claim(&mut row, &plan);
    let mut ended = None;
    for action in actions {
        match action {
            Action::End(n, ok) if !owner.calls.is_empty() => {
                let (call, node, aborted) = owner.calls.remove(n % owner.calls.len());
                owner.feed(if aborted {
                    Input::CallAborted { call, receipt: Receipt { socket_closed: true } }
                } else if *ok {
                    let writes = vec![Write::new("log", json!(&*node))];
                    Input::CallDone { call, output: Output { writes, ..Output::default() } }
                } else {
                    Input::CallFailed { call, failure: failure() }
                });
            }
            Action::Token if owner.committing.is_none() && owner.stopped.is_none() => {
                let delta = crate::event::Delta::new(Uuid::nil(), crate::event::Part::Text, "x");
                owner.log.append(Timestamp(0), Body::Delta(delta));
            }
            Action::Cancel => {
                owner.cancel_taken = true;
                owner.feed(Input::Cancel { by: "test".to_owned() });
            }
            Action::CancelRow => row.cancel_requested = true,
            Action::Deadline => owner.feed(Input::DeadlineReached { failure: failure() }),
            Action::Drain => owner.feed(Input::Drain),
            Action::Ack => {
                if let Some(commit) = owner.committing.take() {
                    row.apply(&commit, &mut owner.log);
                    owner.log.committed();
                    owner.cancel_taken |= row.cancel_requested;
                    owner.feed(Input::Committed { cancel_requested: row.cancel_requested });
                }
            }
            Action::CommitThenCrash => {
                if let Some(commit) = owner.committing.take() {
                    row.apply(&commit, &mut owner.log);
                }
                if row.status.is_none() {
                    owner = Owner::claim(&mut row, &plan);
                } else {
                    break; // it ended, and its process is gone
                }
            }
            Action::Crash => {
                if row.status.is_none() {
                    row.fruitless += 1;
                    owner = Owner::claim(&mut row, &plan);
                }
            }
            Action::Keep => {
                owner.keeping.drain(..).for_each(|entry| row.journal.add(entry));
            }
            Action::Fence => {
                owner.committing = None;
                owner.feed(Input::Fenced);
            }
            Action::End(..) | Action::Token => {}
        }
        match owner.stopped {
            Some(Stopped::Ended) => {
                assert!(row.status.is_some(), "I2: it ended in the store before it ended here");
                assert!(ended.is_none() || ended == row.status, "I2: one terminal status");
                ended = row.status;
            }
            Some(Stopped::Released | Stopped::Fenced | Stopped::Parked) if row.status.is_none() => {
                owner = Owner::claim(&mut row, &plan);
            }
            _ => {}
        }
    }
    // Whatever happened, letting the calls end and acknowledging commits leads to the end.
    for _ in 0..200 {
        if row.status.is_some() {
            break;
        }
        if owner.stopped.is_some() {
            owner = Owner::claim(&mut row, &plan);
        } else if let Some(commit) = owner.committing.take() {
            row.apply(&commit, &mut owner.log);
            owner.log.committed();
            owner.feed(Input::Committed { cancel_requested: row.cancel_requested });
        } else {
            let (call, node, aborted) = owner.calls.remove(0);
            owner.feed(if aborted {
                Input::CallAborted { call, receipt: Receipt { socket_closed: true } }
            } else {
                let writes = vec![Write::new("log", json!(&*node))];
                Input::CallDone { call, output: Output { writes, ..Output::default() } }
            });
        }
    }
    row
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// I2, I3, I5 over random histories of crashes, cancels, deadlines, drains and lost answers.
    #[test]
    fn every_history_ends_once_and_leaves_a_whole_log(
        actions in prop::collection::vec(action(), 0..60)
    ) {
        let row = drive(&actions);
        prop_assert!(row.status.is_some(), "I2: it reached a terminal state");
        for (at, event) in row.log.iter().enumerate() {
            prop_assert_eq!(event.seq, at as u64);
        }
        if row.status == Some(Status::Success) {
            prop_assert_eq!(row.state.get("log"), Some(json!(["input", "a", "b", "c", "d"])));
            prop_assert_eq!(row.steps_committed, BTreeSet::from([-1, 0, 1, 2]));
        }
    }
}

#[test]
fn an_undisturbed_run_commits_its_supersteps() {
    let mut actions = Vec::new();
    for _ in 0..12 {
        actions.extend([Action::End(0, true), Action::Ack]);
    }
    let row = drive(&actions);
    assert_eq!(row.status, Some(Status::Success));
    assert_eq!(row.commits, 3, "the end folds into the last superstep's commit");
}

#[test]
fn a_loop_without_end_is_stopped_by_name() {
    let plan = Builder::new()
        .channel("log", Reducer::Append)
        .node("x")
        .entry("x")
        .edge("x", "x")
        .max_steps(5);
    let plan = Arc::new(plan.build().unwrap());
    let mut row = Row::new();
    let mut owner = Owner::claim(&mut row, &plan);
    for _ in 0..20 {
        if let Some((call, ..)) = owner.calls.pop() {
            owner.feed(Input::CallDone { call, output: Output::default() });
        }
        if let Some(commit) = owner.committing.take() {
            if let Outcome::End { status, failure, .. } = &commit.outcome {
                assert_eq!(*status, Status::Error);
                let failure = failure.as_ref().unwrap();
                assert_eq!(failure.code, Code::RecursionLimit);
                assert!(failure.message.ends_with("it loops through x → x"), "{}", failure.message);
            }
            row.apply(&commit, &mut owner.log);
            owner.log.committed();
            owner.feed(Input::Committed { cancel_requested: false });
        }
    }
    assert_eq!(row.status, Some(Status::Error));
    assert_eq!(row.step, 4, "five supersteps were committed");
}

#[test]
fn a_run_that_never_gets_anywhere_is_poisoned() {
    let plan = diamond(50);
    let mut row = Row { fruitless: POISON_LIMIT, attempt: POISON_LIMIT, ..Row::new() };
    let mut owner = Owner::claim(&mut row, &plan);
    assert!(owner.calls.is_empty());
    let commit = owner.committing.take().unwrap();
    let Outcome::End { failure: Some(failure), .. } = &commit.outcome else { panic!("{commit:?}") };
    assert_eq!(failure.code, Code::Poisoned);
}

#[test]
fn cancelling_waits_for_the_calls_and_keeps_the_proof() {
    let plan = diamond(50);
    let mut row = Row::new();
    let mut owner = Owner::claim(&mut row, &plan);
    owner.feed(Input::Cancel { by: "somebody".to_owned() });
    assert!(owner.committing.is_none(), "not before the call is gone");
    let (call, ..) = owner.calls.pop().unwrap();
    owner.feed(Input::CallAborted { call, receipt: Receipt { socket_closed: true } });
    let commit = owner.committing.take().unwrap();
    row.apply(&commit, &mut owner.log);
    assert_eq!(row.status, Some(Status::Cancelled));
    let asked = row.log.iter().find(|event| event.kind() == EventKind::CancelRequested).unwrap();
    let Body::Fact(fact) = &asked.body else { panic!() };
    assert_eq!(fact.json(), json!({"by": "somebody", "receipt": {"socket_closed": true}}));
    assert_eq!(row.state.get("log"), Some(json!(["input"])), "what was asked stays on the thread");
}
