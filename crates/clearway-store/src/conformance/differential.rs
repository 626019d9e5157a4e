//! Random histories, done to both stores: whatever one answers, the other answers too.

use clearway_core::event::Event;
use clearway_core::run::Multitask;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::*;
use crate::{Idempotency, RunQuery};

/// One thing that happens. Small numbers stand for runs, threads and owners; what does not exist
/// (yet) is as interesting as what does.
#[derive(Clone, Debug)]
enum Do {
    Create {
        run: u8,
        thread: u8,
        how: How,
    },
    Claim {
        pool: bool,
        slots: u32,
    },
    Step {
        owner: usize,
        writes: u8,
        notes: u8,
    },
    End {
        owner: usize,
        status: u8,
    },
    HandBack {
        owner: usize,
    },
    Park {
        owner: usize,
        wake: Option<u64>,
        on_child: bool,
        budget: bool,
    },
    Keep {
        owner: usize,
        key: u8,
    },
    Wake {
        run: u8,
        key: u8,
    },
    Priority {
        run: u8,
        level: u8,
    },
    Budget {
        run: u8,
        calls: u32,
    },
    /// The last commit again: its answer was lost.
    Repeat {
        owner: usize,
    },
    Append {
        owner: usize,
        count: u64,
        back: u64,
    },
    Release {
        owner: usize,
    },
    Cancel {
        run: u8,
        rollback: bool,
    },
    Reset {
        thread: u8,
    },
    Renew,
    Sweep {
        other: bool,
    },
    Advance {
        seconds: u64,
    },
    Join {
        other: bool,
    },
}

#[derive(Clone, Debug)]
struct How {
    multitask: u8,
    priority: u8,
    tenant: u8,
    pool: bool,
    claim: bool,
    delay: u64,
    deadline: Option<u64>,
    key: Option<(u8, u8)>,
    queue_limit: u32,
    parent: Option<u8>,
    /// The checkpoint to start from, counted from the newest back.
    base: Option<usize>,
    webhook: bool,
}

fn how() -> impl Strategy<Value = How> {
    (
        (0..8u8, 1..=5u8, 0..20u8, prop::bool::weighted(0.8), any::<bool>()),
        prop_oneof![4 => Just(0), 1 => 1..60u64],
        prop::option::weighted(0.3, 1..120u64),
        prop::option::weighted(0.3, (0..3u8, 0..2u8)),
        prop_oneof![4 => Just(100), 1 => 0..4u32],
        (
            prop::option::weighted(0.3, 0..30u8),
            prop::option::weighted(0.15, 0..6usize),
            prop::bool::weighted(0.2),
        ),
    )
        .prop_map(
            |(
                (multitask, priority, tenant, pool, claim),
                delay,
                deadline,
                key,
                queue_limit,
                (parent, base, webhook),
            )| How {
                parent,
                base,
                webhook,
                multitask,
                priority,
                tenant,
                pool,
                claim,
                delay,
                deadline,
                key,
                queue_limit,
            },
        )
}

fn action() -> impl Strategy<Value = Do> {
    let owner = 0..6usize;
    prop_oneof![
        8 => (0..30u8, 0..4u8, how()).prop_map(|(run, thread, how)| Do::Create { run, thread, how }),
        4 => (prop::bool::weighted(0.8), 0..4u32).prop_map(|(pool, slots)| Do::Claim { pool, slots }),
        8 => (owner.clone(), 0..4u8, 0..4u8)
            .prop_map(|(owner, writes, notes)| Do::Step { owner, writes, notes }),
        3 => (owner.clone(), prop::option::of(0..60u64), any::<bool>(), prop::bool::weighted(0.3))
            .prop_map(|(owner, wake, on_child, budget)| Do::Park { owner, wake, on_child, budget }),
        3 => (owner.clone(), 0..4u8).prop_map(|(owner, key)| Do::Keep { owner, key }),
        3 => (0..30u8, 0..4u8).prop_map(|(run, key)| Do::Wake { run, key }),
        1 => (0..30u8, 1..=5u8).prop_map(|(run, level)| Do::Priority { run, level }),
        1 => (0..30u8, 0..9u32).prop_map(|(run, calls)| Do::Budget { run, calls }),
        3 => (owner.clone(), 0..4u8).prop_map(|(owner, status)| Do::End { owner, status }),
        1 => owner.clone().prop_map(|owner| Do::HandBack { owner }),
        2 => owner.clone().prop_map(|owner| Do::Repeat { owner }),
        4 => (owner.clone(), 1..5u64, 0..4u64)
            .prop_map(|(owner, count, back)| Do::Append { owner, count, back }),
        1 => owner.prop_map(|owner| Do::Release { owner }),
        2 => (0..30u8, any::<bool>()).prop_map(|(run, rollback)| Do::Cancel { run, rollback }),
        1 => (0..4u8).prop_map(|thread| Do::Reset { thread }),
        1 => Just(Do::Renew),
        2 => prop::bool::weighted(0.2).prop_map(|other| Do::Sweep { other }),
        3 => prop_oneof![0..20u64, 0..5000u64].prop_map(|seconds| Do::Advance { seconds }),
        1 => any::<bool>().prop_map(|other| Do::Join { other }),
    ]
}

/// One store with the engine's side of it.
struct Side {
    bed: Bed,
    owners: Vec<Owner>,
    last: Vec<Option<StepCommit>>,
    checkpoints: Vec<CheckpointId>,
}

impl Side {
    fn new(bed: Bed) -> Self {
        Self { bed, owners: Vec::new(), last: Vec::new(), checkpoints: Vec::new() }
    }

    async fn take(&mut self, claim: Claim) {
        let owner = self.bed.owner(claim).await;
        self.owners.push(owner);
        self.last.push(None);
    }

    /// Owners are looked for from the newest back, so that most are not stale.
    fn owner(&mut self, back: usize) -> Option<usize> {
        self.owners.len().checked_sub(back + 1)
    }

    /// Sends a commit; when it did not happen the owner is as before.
    async fn commit(&mut self, at: usize, make: impl FnOnce(&mut Owner) -> StepCommit) -> String {
        let before = self.owners[at].clone();
        let commit = make(&mut self.owners[at]);
        self.last[at] = Some(commit.clone());
        let answer = self.bed.store.commit(commit.clone()).await;
        if matches!(answer, Ok(CommitAck::Applied { .. })) {
            self.checkpoints.extend(commit.checkpoints.iter().map(|(id, _)| *id));
        } else {
            self.owners[at] = before;
        }
        tell(answer)
    }

    async fn act(&mut self, action: &Do) -> String {
        let store = self.bed.store.clone();
        match *action {
            Do::Create { run, thread, ref how } => {
                let base =
                    how.base.and_then(|back| self.checkpoints.iter().nth_back(back).copied());
                match store.create_run(request(run, thread, how, base)).await {
                    Ok(Admission::Claimed(claim)) => {
                        let answer = format!("{claim:?}");
                        self.take(*claim).await;
                        answer
                    }
                    other => tell(other),
                }
            }
            Do::Claim { pool, slots } => {
                let claims = self.bed.claim_in(if pool { "chat" } else { "slow" }, slots).await;
                let answer = format!("{claims:?}");
                for claim in claims {
                    self.take(claim).await;
                }
                answer
            }
            Do::Step { owner, writes, notes } => {
                let Some(at) = self.owner(owner) else { return String::new() };
                self.commit(at, |owner| {
                    let (done, before) = (owner.task(), owner.claim.frontier.clone());
                    let mut step = owner.step(&ops(writes, owner.number));
                    match notes {
                        0 => {}
                        1 => step.settled = vec![done],
                        2 => step.settled = before.due.iter().map(|due| due.task).collect(),
                        _ => step.notes = vec![note(owner.task(), "interrupt:0", json!(writes))],
                    }
                    step
                })
                .await
            }
            Do::Park { owner, wake, on_child, budget } => {
                let Some(at) = self.owner(owner) else { return String::new() };
                let kind = if budget { WaitKind::Budget } else { WaitKind::Signal };
                let wake_at = wake.map(|seconds| self.bed.now().plus(Duration::from_secs(seconds)));
                let park = Park { kind, detail: "it".to_owned(), wake_at, on_child };
                self.commit(at, |owner| owner.park_as(park)).await
            }
            Do::Keep { owner, key } => {
                let Some(at) = self.owner(owner) else { return String::new() };
                let owner = &self.owners[at];
                let due = owner.claim.frontier.due.first();
                let task = due.filter(|_| key == 0).map_or_else(|| owner.task(), |due| due.task);
                let entry = note(task, &format!("step:{key}"), json!(owner.fence));
                tell(store.journal(owner.run, owner.fence, vec![entry]).await)
            }
            Do::Wake { run, key } => {
                let run = run_id(run.into());
                let entry = note(TaskId(run.0), &format!("signal:{key}"), json!(self.bed.now().0));
                tell(store.wake(run, vec![entry]).await)
            }
            Do::Priority { run, level } => {
                let priority = Priority::new(level).unwrap();
                tell(store.set_priority(run_id(run.into()), priority).await)
            }
            Do::Budget { run, calls } => {
                let budget = clearway_core::run::Budget {
                    calls: (calls > 0).then_some(calls),
                    ..Default::default()
                };
                tell(store.set_budget(run_id(run.into()), budget).await)
            }
            Do::End { owner, status } => {
                let Some(at) = self.owner(owner) else { return String::new() };
                let status = [Status::Success, Status::Error, Status::Timeout, Status::Cancelled]
                    [usize::from(status)];
                self.commit(at, |owner| owner.end(status)).await
            }
            Do::HandBack { owner } => {
                let Some(at) = self.owner(owner) else { return String::new() };
                self.commit(at, |owner| owner.commit(StepOutcome::Release)).await
            }
            Do::Repeat { owner } => {
                let last = self.owner(owner).and_then(|at| self.last[at].clone());
                let Some(commit) = last else { return String::new() };
                tell(store.commit(commit).await)
            }
            Do::Append { owner, count, back } => {
                let Some(at) = self.owner(owner) else { return String::new() };
                let owner = &mut self.owners[at];
                let first = owner.seq.saturating_sub(back).max(1);
                let segment = tokens(first, count, owner.fence);
                let answer = store.append(vec![OutputSegment { run: owner.run, segment }]).await;
                if let Ok([crate::Appended::Stored { end_seq }]) = answer.as_deref() {
                    owner.seq = *end_seq;
                }
                tell(answer)
            }
            Do::Release { owner } => {
                let Some(at) = self.owner(owner) else { return String::new() };
                let owner = &self.owners[at];
                tell(store.release(owner.run, owner.fence).await)
            }
            Do::Cancel { run, rollback } => {
                let mode = if rollback { CancelMode::Rollback } else { CancelMode::Keep };
                tell(store.cancel_run(run_id(run.into()), "ann", mode).await)
            }
            Do::Reset { thread } => tell(store.reset_thread(thread_id(thread.into())).await),
            Do::Renew => tell(store.renew(ME).await),
            Do::Sweep { other } => tell(store.sweep(if other { OTHER } else { ME }).await),
            Do::Advance { seconds } => {
                self.bed.advance(seconds);
                String::new()
            }
            Do::Join { other } => {
                self.bed.restart().await;
                tell(self.bed.store.join(if other { OTHER } else { ME }).await)
            }
        }
    }

    /// Everything that can be seen.
    async fn look(&self) -> Vec<String> {
        let store = &self.bed.store;
        let mut seen = vec![format!("{:?}", store.pool_counts())];
        let query = RunQuery { limit: 1000, ..RunQuery::default() };
        for run in store.runs(query).await.unwrap().runs {
            seen.push(format!("{run:?}"));
            let page = store.read_log(run.id, 0, usize::MAX).await.unwrap();
            let position = store.queue_position(run.id).await.unwrap();
            let events: Vec<_> = page.events.iter().map(show).collect();
            seen.push(format!(
                "{position:?} {} {} {:?} {events:?}",
                page.next, page.end, page.status
            ));
            let trimmed = run.ended_at.is_some() && page.events.len() < page.end as usize;
            if !trimmed {
                let seqs: Vec<u64> = page.events.iter().map(|event| event.seq).collect();
                assert_eq!(seqs, (0..page.end).collect::<Vec<_>>(), "numbers without gaps");
            }
        }
        for number in 0..4 {
            seen.push(format!("{:?}", store.thread(thread_id(number)).await.unwrap()));
            seen.push(format!(
                "{:?}",
                store.state(thread_id(number), None).await.unwrap().map(known)
            ));
            seen.push(format!("{:?}", store.history(thread_id(number), None, 1000).await.unwrap()));
        }
        seen.push(format!("{:?}", store.due_deliveries(1000).await.unwrap()));
        for &id in self.checkpoints.iter().rev().take(8) {
            for number in 0..4 {
                let state = store.state(thread_id(number), Some(id)).await.unwrap().map(known);
                seen.push(format!("{state:?}"));
            }
            for channel in ["log", "set", "name"] {
                seen.push(format!("{:?}", store.writes_of(id, channel).await.unwrap()));
            }
        }
        seen
    }
}

fn request(run: u8, thread: u8, how: &How, base: Option<CheckpointId>) -> NewRun {
    let multitask = match how.multitask {
        0 => Multitask::Reject,
        1 | 2 => Multitask::Interrupt,
        3 => Multitask::Rollback,
        _ => Multitask::Enqueue,
    };
    NewRun {
        tenant: if how.tenant == 0 { "heavy".into() } else { "acme".into() },
        multitask,
        priority: Priority::new(how.priority).unwrap(),
        pool: if how.pool { "chat".into() } else { "slow".into() },
        claim: how.claim.then_some(ME),
        delay: Duration::from_secs(how.delay),
        deadline: how.deadline.map(Duration::from_secs),
        idempotency: how.key.map(|(key, body)| Idempotency {
            route: "/chat".into(),
            key: key.to_string(),
            body: [body; 32],
        }),
        queue_limit: how.queue_limit,
        parent: how.parent.map(|parent| run_id(parent.into())),
        options: RunOptions {
            base,
            webhook: how.webhook.then(|| "https://example.com/told".to_owned()),
            ..RunOptions::default()
        },
        ..new_run(run.into(), thread.into())
    }
}

fn ops(writes: u8, number: u64) -> Vec<(&'static str, Op)> {
    let text = format!("{number} {}", "word ".repeat(number as usize % 5 * 1000));
    match writes {
        0 => Vec::new(),
        1 => vec![("log", append(&text))],
        2 => vec![("set", Op::Add(vec![json!(number % 3)])), ("log", append(&text))],
        _ => vec![("name", Op::Assign(json!(text))), ("log", append("a")), ("log", append("b"))],
    }
}

fn tell<T: std::fmt::Debug>(answer: crate::Result<T>) -> String {
    match answer {
        Ok(answer) => format!("{answer:?}"),
        // Messages may name files; what callers branch on may not differ.
        Err(error) => format!("{:?} {}", error.kind, error.certainly_aborted),
    }
}

fn show(event: &Event) -> String {
    format!("{:?} {:?} {:?}", event.id(), event.at, event.body)
}

fn known(found: crate::ThreadState) -> String {
    let versions: Vec<_> =
        found.state.versions().map(|(name, at)| format!("{name}@{at}")).collect();
    let crate::ThreadState { checkpoint, parent, run, step, source, created_at, .. } = found;
    let place = (checkpoint, parent, run, step, source, created_at, found.state.version());
    let goes_on = (found.frontier, found.journal);
    let state = found.state;
    format!("{place:?} {goes_on:?} {versions:?} {}", state.to_json())
}

async fn same(actions: Vec<Do>) {
    let mut memory = Side::new(Bed::memory());
    let mut sqlite = Side::new(Bed::sqlite().await);
    for (at, action) in actions.iter().enumerate() {
        let expected = memory.act(action).await;
        let found = sqlite.act(action).await;
        assert_eq!(found, expected, "answers to action {at}: {action:?}");
        if at % 32 == 31 || at + 1 == actions.len() {
            assert_eq!(sqlite.look().await, memory.look().await, "after action {at}: {action:?}");
        }
    }
}

#[test]
fn both_stores_tell_the_same_history() {
    /// `CLEARWAY_CASES` asks for more.
    const CASES: u32 = 250;
    let cases = std::env::var("CLEARWAY_CASES").ok().and_then(|cases| cases.parse().ok());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config =
        Config { cases: cases.unwrap_or(CASES), failure_persistence: None, ..Config::default() };
    let mut seed = [0; 32];
    seed[0] = std::process::id() as u8;
    let mut runner = match cases {
        // Always the same histories, so that a failure is nobody else's.
        None => TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha)),
        Some(_) => {
            TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed))
        }
    };
    runner
        .run(&prop::collection::vec(action(), 1..100), |actions| {
            runtime.block_on(same(actions));
            Ok(())
        })
        .unwrap();
}
