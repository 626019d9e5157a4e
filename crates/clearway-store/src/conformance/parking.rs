//! Runs that wait without a slot, and what is done to runs that wait.

use clearway_core::run::Budget;

use super::*;
use crate::RunQuery;

on_every_store! {
    a_parked_run_holds_no_slot
    a_parked_run_keeps_its_thread
    a_repeated_park_is_acknowledged_again
    a_park_brings_its_input
    waking_makes_ready
    waking_is_claimed_like_any_other
    a_run_woken_before_it_parks_does_not_wait
    a_run_to_be_cancelled_does_not_park
    a_wake_of_an_earlier_claim_is_forgotten
    waking_what_cannot_be_woken
    waking_a_run_that_waits_for_its_turn
    time_wakes
    the_next_wake_is_named
    a_parked_run_ends_at_its_deadline
    a_parked_run_is_cancelled_at_once
    a_restart_leaves_parked_runs_alone
    parking_is_not_fruitless
    priorities_of_waiting_runs_can_be_changed
    a_budget_wakes_who_waits_for_it
    a_budget_is_for_the_next_claim
}

fn until(seconds: u64) -> Park {
    let wake_at = Some(START.plus(Duration::from_secs(seconds)));
    Park { kind: WaitKind::Timer, detail: "nap".to_owned(), wake_at, on_child: false }
}

async fn a_parked_run_holds_no_slot(mut bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.commit(owner.step(&[("log", append("a"))])).await;
    bed.advance(3);
    let park = owner.park_as(until(60));
    let StepOutcome::Park(parked) = park.outcome.clone() else { panic!() };
    assert_eq!(bed.commit(park).await, APPLIED);
    bed.restart().await;
    let record = bed.run(owner.run).await;
    assert_eq!((record.status, record.fence, record.instance), (Status::Waiting, 2, None));
    let since = bed.now();
    assert_eq!(record.parked, Some(clearway_core::run::Parked { park: parked, since }));
    assert_eq!((record.step, record.commits, &record.next[..]), (0, 2, &["more".to_owned()][..]));
    assert_eq!((record.next_seq, record.committed_seq), (3, 3), "nothing it showed is void");
    assert_eq!(bed.counts(), (0, 0, 0));
    assert!(bed.claim(1).await.is_empty());
    let query = RunQuery { statuses: vec![Status::Waiting], ..RunQuery::default() };
    assert_eq!(bed.store.runs(query).await.unwrap().runs, [record]);
    assert_eq!(bed.store.queue_position(owner.run).await.unwrap(), None);
    // Its owner has let go of it.
    assert_eq!(bed.commit(owner.step(&[])).await, CommitAck::Fenced);
}

async fn a_parked_run_keeps_its_thread(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.commit(owner.park(WaitKind::Signal)).await;
    assert_eq!(bed.queued(new_run(2, 1)).await.record.status, Status::Blocked);
    let reject = NewRun { multitask: Multitask::Reject, ..new_run(3, 1) };
    let busy = bed.create(reject).await;
    assert!(matches!(busy, Admission::ThreadBusy { active } if active == owner.run));
    bed.wake(owner.run, &[]).await;
    let mut owner = bed.claim_one().await;
    assert_eq!(bed.commit(owner.end(Status::Success)).await, acknowledged(false, Some(run_id(2))));
}

async fn a_repeated_park_is_acknowledged_again(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let park = owner.park(WaitKind::Signal);
    assert_eq!(bed.commit(park.clone()).await, APPLIED);
    let before = bed.run(owner.run).await;
    assert_eq!(bed.commit(park.clone()).await, APPLIED);
    assert_eq!(bed.run(owner.run).await, before);
    bed.wake(owner.run, &[]).await;
    bed.claim_one().await;
    assert_eq!(bed.commit(park).await, CommitAck::Fenced);
}

async fn a_park_brings_its_input(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let input = owner.checkpoint(&[("log", append("hello"))]);
    let park = StepCommit { checkpoints: vec![input], ..owner.park(WaitKind::Person) };
    bed.commit(park).await;
    bed.wake(owner.run, &[]).await;
    let owner = bed.claim_one().await;
    assert!(owner.claim.taken_in);
    assert_eq!(owner.claim.frontier, frontier(owner.run, 1, &["more"]));
    let head = bed.head(thread_id(1)).await.unwrap();
    assert_eq!(head.state.get("log"), Some(json!(["hello"])));
}

async fn waking_makes_ready(mut bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.commit(owner.park(WaitKind::Signal)).await;
    bed.advance(7);
    let Woken::Ready(record) = bed.wake(owner.run, &[]).await else { panic!("it waits") };
    assert_eq!((record.status, record.ready_at, &record.parked), (Status::Ready, bed.now(), &None));
    assert_eq!(record.spent.to_json(), json!({"signal": 7000}));
    bed.restart().await;
    assert_eq!(bed.run(owner.run).await, *record);
    assert_eq!(bed.counts(), (0, 1, 0));
}

async fn waking_is_claimed_like_any_other(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let park = owner.park(WaitKind::Signal);
    bed.commit(park).await;
    bed.wake(owner.run, &[]).await;
    let mut owner = bed.claim_one().await;
    let record = &owner.claim.record;
    assert_eq!((record.attempt, record.fence, record.fruitless), (2, 3, 0));
    assert_eq!(bed.commit(owner.end(Status::Success)).await, APPLIED);
    assert_eq!(bed.kinds(owner.run).await, ["run.created", "custom", "custom"]);
}

async fn a_run_woken_before_it_parks_does_not_wait(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let woken = bed.wake(owner.run, &[note(TaskId(owner.run.0), "signal:go:0", json!(1))]).await;
    assert!(matches!(woken, Woken::Running { instance: Some(ME) }));
    let park = owner.park_as(until(60));
    let ack = CommitAck::Applied {
        cancel_requested: false,
        promoted: None,
        woken: vec![owner.run],
        orphans: Vec::new(),
    };
    assert_eq!(bed.commit(park.clone()).await, ack);
    assert_eq!(bed.commit(park).await, ack);
    let record = bed.run(owner.run).await;
    assert_eq!((record.status, record.parked, record.fence), (Status::Ready, None, 2));
    assert_eq!(bed.counts(), (0, 1, 0));
    let owner = bed.claim_one().await;
    assert_eq!(owner.claim.journal, [note(TaskId(owner.run.0), "signal:go:0", json!(1))]);
    assert_eq!(owner.claim.record.fruitless, 0);
}

async fn a_run_to_be_cancelled_does_not_park(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.cancel(owner.run).await;
    let CommitAck::Applied { cancel_requested: true, woken, .. } =
        bed.commit(owner.park(WaitKind::Person)).await
    else {
        panic!("it is told")
    };
    assert_eq!(woken, [owner.run]);
    assert!(bed.claim_one().await.claim.record.cancel_requested);
}

async fn a_wake_of_an_earlier_claim_is_forgotten(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.wake(owner.run, &[]).await;
    bed.commit(owner.commit(StepOutcome::Release)).await;
    let mut owner = bed.claim_one().await;
    assert_eq!(bed.commit(owner.park(WaitKind::Signal)).await, APPLIED);
    assert_eq!(bed.status(owner.run).await, Status::Waiting);
}

async fn waking_what_cannot_be_woken(bed: Bed) {
    assert!(matches!(bed.wake(run_id(1), &[]).await, Woken::NotFound));
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.commit(owner.end(Status::Success)).await;
    let signal = note(TaskId(owner.run.0), "signal:go:0", json!(1));
    let Woken::Ended(record) = bed.wake(owner.run, &[signal]).await else { panic!() };
    assert_eq!(*record, bed.run(owner.run).await);
    let next = bed.started(new_run(2, 1)).await;
    assert_eq!(next.claim.journal, []);
}

async fn waking_a_run_that_waits_for_its_turn(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.queued(new_run(2, 1)).await;
    let signal = note(TaskId(run_id(2).0), "signal:go:0", json!({"x": 1}));
    assert!(matches!(bed.wake(run_id(2), std::slice::from_ref(&signal)).await, Woken::Queued));
    bed.commit(owner.end(Status::Success)).await;
    assert!(matches!(bed.wake(run_id(2), std::slice::from_ref(&signal)).await, Woken::Queued));
    let mut owner = bed.claim_one().await;
    assert_eq!(owner.claim.journal, [signal], "it outlived the run before");
    // The wake before its first claim does not count.
    assert_eq!(bed.commit(owner.park(WaitKind::Signal)).await, APPLIED);
}

async fn time_wakes(bed: Bed) {
    bed.store.join(ME).await.unwrap();
    for (number, seconds) in [(1, 60), (2, 30), (3, 90)] {
        let mut owner = bed.started(new_run(number, number)).await;
        bed.commit(owner.park_as(until(seconds))).await;
    }
    bed.advance(59);
    let swept = bed.sweep().await;
    assert!(swept.ready);
    assert_eq!(bed.counts(), (0, 1, 0));
    bed.advance(1);
    bed.sweep().await;
    assert_eq!(bed.counts(), (0, 2, 0));
    let record = bed.run(run_id(1)).await;
    assert_eq!((record.ready_at, record.parked), (bed.now(), None));
    assert_eq!(record.spent.to_json(), json!({"timer": 60_000}));
    assert_eq!(bed.status(run_id(3)).await, Status::Waiting);
}

async fn the_next_wake_is_named(bed: Bed) {
    bed.store.join(ME).await.unwrap();
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.commit(owner.park_as(until(60))).await;
    let mut forever = bed.started(new_run(2, 2)).await;
    bed.commit(forever.park(WaitKind::Signal)).await;
    let swept = bed.sweep().await;
    assert!(!swept.ready);
    assert_eq!(swept.next_deadline, Some(START.plus(Duration::from_secs(60))));
    bed.queued(NewRun { deadline: Some(Duration::from_secs(20)), ..new_run(3, 3) }).await;
    assert_eq!(bed.sweep().await.next_deadline, Some(START.plus(Duration::from_secs(20))));
    bed.advance(60);
    assert_eq!(bed.sweep().await.next_deadline, None);
}

async fn a_parked_run_ends_at_its_deadline(bed: Bed) {
    bed.store.join(ME).await.unwrap();
    let deadline = Some(Duration::from_secs(10));
    let mut owner = bed.started(NewRun { deadline, ..new_run(1, 1) }).await;
    bed.queued(new_run(2, 1)).await;
    bed.commit(owner.park_as(until(60))).await;
    assert_eq!(bed.sweep().await.next_deadline, Some(START.plus(Duration::from_secs(10))));
    bed.advance(10);
    let swept = bed.sweep().await;
    let (record, events) = &swept.expired[0];
    assert_eq!((record.id, record.status, &record.parked), (owner.run, Status::Timeout, &None));
    assert_eq!(record.spent.to_json(), json!({"timer": 10_000}));
    assert_eq!(events.len(), 1, "nothing it showed is void");
    assert_eq!((swept.ready, swept.next_deadline), (true, None));
    assert_eq!(bed.status(run_id(2)).await, Status::Ready);
}

async fn a_parked_run_is_cancelled_at_once(mut bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.queued(new_run(2, 1)).await;
    bed.commit(owner.park(WaitKind::Person)).await;
    bed.advance(4);
    let Cancelled::Ended { record, events, promoted } = bed.cancel(owner.run).await else {
        panic!("nobody executes it")
    };
    assert_eq!((record.status, promoted), (Status::Cancelled, Some(run_id(2))));
    assert_eq!(record.spent.to_json(), json!({"person": 4000}));
    let kinds: Vec<&str> = events.iter().map(|event| event.kind().as_str()).collect();
    assert_eq!(kinds, ["cancel.requested", "run.ended"]);
    bed.restart().await;
    assert_eq!(bed.run(owner.run).await, *record);
    assert_eq!(bed.counts(), (0, 1, 0));
}

async fn a_restart_leaves_parked_runs_alone(mut bed: Bed) {
    bed.store.join(ME).await.unwrap();
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.commit(owner.park_as(until(60))).await;
    let before = bed.run(owner.run).await;
    bed.restart().await;
    assert_eq!(bed.store.join(OTHER).await.unwrap().resumed, 0);
    bed.advance(30);
    assert!(bed.store.sweep(OTHER).await.unwrap().taken_over.is_empty());
    assert_eq!(bed.run(owner.run).await, before);
}

async fn parking_is_not_fruitless(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    for _ in 0..3 {
        bed.commit(owner.park(WaitKind::Outage)).await;
        bed.wake(owner.run, &[]).await;
        owner = bed.claim_one().await;
        assert_eq!(owner.claim.record.fruitless, 0);
    }
    bed.store.release(owner.run, owner.fence).await.unwrap();
    assert_eq!(bed.claim_one().await.claim.record.fruitless, 1);
}

async fn priorities_of_waiting_runs_can_be_changed(mut bed: Bed) {
    let set = async |bed: &Bed, run, level| {
        let priority = Priority::new(level).unwrap();
        bed.store.set_priority(run_id(run), priority).await.unwrap()
    };
    assert_eq!(set(&bed, 1, 1).await, None);
    bed.queued(new_run(1, 1)).await;
    bed.queued(new_run(2, 2)).await;
    bed.queued(new_run(3, 2)).await;
    let record = set(&bed, 2, 1).await.unwrap();
    assert_eq!((record.priority.level(), record.status), (1, Status::Ready));
    assert_eq!(set(&bed, 3, 5).await.unwrap().status, Status::Blocked);
    let ahead =
        async |bed: &Bed| bed.store.queue_position(run_id(1)).await.unwrap().unwrap().pool_ahead;
    assert_eq!(ahead(&bed).await, 1);
    let newcomer = bed.queued(NewRun { priority: Priority::HIGH, ..new_run(4, 4) }).await;
    assert_eq!(newcomer.position.pool_ahead, 1, "counted where it stands now");
    bed.restart().await;
    assert_eq!(bed.counts(), (1, 3, 0));
    let mut owner = bed.claim_one().await;
    assert_eq!(owner.run, run_id(2));
    assert_eq!(set(&bed, 2, 4).await.unwrap().priority.level(), 1, "it runs already");
    bed.commit(owner.park(WaitKind::Signal)).await;
    assert_eq!(set(&bed, 2, 4).await.unwrap().priority.level(), 4);
    bed.wake(run_id(2), &[]).await;
    assert_eq!(bed.counts(), (1, 3, 0));
    bed.cancel(run_id(1)).await;
    assert_eq!(set(&bed, 1, 2).await.unwrap().priority, Priority::NORMAL, "it has ended");
    let order: Vec<RunId> = bed.claim(9).await.iter().map(|claim| claim.record.id).collect();
    assert_eq!(order, [run_id(4), run_id(2)]);
}

async fn a_budget_wakes_who_waits_for_it(bed: Bed) {
    let budget = Budget { tokens: Some(9), ..Budget::default() };
    let set = async |run| bed.store.set_budget(run, budget).await.unwrap();
    assert!(matches!(set(run_id(1)).await, Woken::NotFound));
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.commit(owner.park(WaitKind::Budget)).await;
    let Woken::Ready(record) = set(owner.run).await else { panic!("it waits for this") };
    assert_eq!((record.status, record.options.budget), (Status::Ready, budget));
    let mut owner = bed.claim_one().await;
    assert_eq!(owner.claim.record.options.budget, budget);
    assert!(matches!(set(owner.run).await, Woken::Running { instance: Some(ME) }));
    bed.commit(owner.park(WaitKind::Budget)).await;
    let mut owner = bed.claim_one().await;
    bed.commit(owner.park(WaitKind::Signal)).await;
    assert!(matches!(set(owner.run).await, Woken::Queued));
    assert_eq!(bed.status(owner.run).await, Status::Waiting, "it waits for something else");
    bed.cancel(owner.run).await;
    assert!(matches!(set(owner.run).await, Woken::Ended(_)));
}

async fn a_budget_is_for_the_next_claim(mut bed: Bed) {
    let mut new = new_run(1, 1);
    new.options.webhook = Some("https://example.com/told".to_owned());
    bed.queued(new.clone()).await;
    let budget = Budget { cost_micros: Some(5), ..Budget::default() };
    assert!(matches!(bed.store.set_budget(run_id(1), budget).await.unwrap(), Woken::Queued));
    bed.restart().await;
    let options = RunOptions { budget, ..new.options };
    assert_eq!(bed.claim_one().await.claim.record.options, options);
    let none = Budget::default();
    bed.store.set_budget(run_id(1), none).await.unwrap();
    assert_eq!(bed.run(run_id(1)).await.options, RunOptions { budget: none, ..options });
}
