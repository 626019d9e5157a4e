//! Runs that runs start.

use super::*;
use crate::{ErrorKind, RunQuery};

on_every_store! {
    children_are_found_by_their_parent
    only_a_run_that_goes_on_has_children
    the_end_of_a_child_wakes_its_parent
    a_parent_that_waits_for_something_else_sleeps_on
    an_end_before_the_parent_parks_is_not_missed
    any_end_of_a_child_counts
    a_repeated_end_tells_of_the_parent_again
    a_failed_parent_takes_its_children_along
    a_successful_parent_leaves_its_children
    a_cancelled_parent_takes_its_children_along
    a_late_parent_takes_its_children_along
    grandchildren_end_too
    many_children_end_in_the_end
    relatives_on_deleted_threads
}

fn child(number: u128, parent: u128) -> NewRun {
    NewRun { parent: Some(run_id(parent)), ..new_run(number, number) }
}

const fn on_child() -> Park {
    Park { kind: WaitKind::Child, detail: String::new(), wake_at: None, on_child: true }
}

async fn children_are_found_by_their_parent(mut bed: Bed) {
    bed.started(new_run(1, 1)).await;
    for number in 2..5 {
        bed.queued(child(number, 1)).await;
    }
    bed.queued(new_run(5, 5)).await;
    bed.restart().await;
    let query = RunQuery { parent: Some(run_id(1)), limit: 2, ..RunQuery::default() };
    let page = bed.store.runs(query.clone()).await.unwrap();
    let ids: Vec<RunId> = page.runs.iter().map(|run| run.id).collect();
    assert_eq!((ids, page.next), (vec![run_id(4), run_id(3)], Some(run_id(3))));
    let rest = bed.store.runs(RunQuery { after: page.next, ..query.clone() }).await.unwrap();
    assert_eq!(rest.runs[0].parent, Some(run_id(1)));
    assert_eq!((rest.runs.len(), rest.next), (1, None));
    let nobody = RunQuery { parent: Some(run_id(9)), ..query };
    assert!(bed.store.runs(nobody).await.unwrap().runs.is_empty());
}

async fn only_a_run_that_goes_on_has_children(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.queued(child(2, 1)).await;
    bed.commit(owner.end(Status::Success)).await;
    for new in [child(3, 1), child(3, 9)] {
        let error = bed.store.create_run(new).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Conflict);
    }
    assert!(bed.store.run(run_id(3)).await.unwrap().is_none());
    assert!(bed.store.thread(thread_id(3)).await.unwrap().is_none());
    let again = bed.create(child(2, 1)).await;
    assert!(matches!(again, Admission::Existing(record) if record.id == run_id(2)));
}

/// A parent that waits for its one running child.
async fn family(bed: &Bed) -> (Owner, Owner) {
    let mut parent = bed.started(new_run(1, 1)).await;
    let child = bed.started(child(2, 1)).await;
    bed.commit(parent.park_as(on_child())).await;
    (parent, child)
}

fn wakes(run: RunId) -> CommitAck {
    CommitAck::Applied {
        cancel_requested: false,
        promoted: None,
        woken: vec![run],
        orphans: Vec::new(),
    }
}

async fn the_end_of_a_child_wakes_its_parent(bed: Bed) {
    let (parent, mut child) = family(&bed).await;
    assert_eq!(bed.commit(child.step(&[])).await, APPLIED, "only an end counts");
    bed.advance(5);
    assert_eq!(bed.commit(child.end(Status::Success)).await, wakes(parent.run));
    let record = bed.run(parent.run).await;
    assert_eq!((record.status, &record.parked), (Status::Ready, &None));
    assert_eq!(record.spent.to_json(), json!({"child": 5000}));
    assert_eq!(bed.claim_one().await.run, parent.run);
}

async fn a_parent_that_waits_for_something_else_sleeps_on(bed: Bed) {
    let mut parent = bed.started(new_run(1, 1)).await;
    let mut child = bed.started(child(2, 1)).await;
    bed.commit(parent.park(WaitKind::Person)).await;
    assert_eq!(bed.commit(child.end(Status::Success)).await, APPLIED);
    assert_eq!(bed.status(parent.run).await, Status::Waiting);
}

async fn an_end_before_the_parent_parks_is_not_missed(bed: Bed) {
    let mut parent = bed.started(new_run(1, 1)).await;
    let mut child = bed.started(child(2, 1)).await;
    assert_eq!(bed.commit(child.end(Status::Success)).await, APPLIED);
    assert_eq!(bed.commit(parent.park_as(on_child())).await, wakes(parent.run));
    assert_eq!(bed.claim_one().await.run, parent.run);
}

async fn any_end_of_a_child_counts(bed: Bed) {
    bed.store.join(ME).await.unwrap();
    let mut parent = bed.started(new_run(1, 1)).await;
    for number in 2..4 {
        let deadline = Some(Duration::from_secs(5));
        let new = NewRun { deadline, pool: "slow".to_owned(), ..child(number, 1) };
        bed.queued(new).await;
    }
    bed.commit(parent.park_as(on_child())).await;
    assert!(matches!(bed.cancel(run_id(2)).await, Cancelled::Ended { .. }));
    assert_eq!(bed.status(parent.run).await, Status::Ready);
    let mut parent = bed.claim_one().await;
    bed.commit(parent.park_as(on_child())).await;
    bed.advance(5);
    let swept = bed.sweep().await;
    assert_eq!((swept.expired.len(), swept.ready), (1, true));
    assert_eq!(bed.status(parent.run).await, Status::Ready);
}

async fn a_repeated_end_tells_of_the_parent_again(bed: Bed) {
    let (parent, mut child) = family(&bed).await;
    let end = child.end(Status::Error);
    assert_eq!(bed.commit(end.clone()).await, wakes(parent.run));
    assert_eq!(bed.commit(end.clone()).await, wakes(parent.run));
    bed.claim_one().await;
    assert_eq!(bed.commit(end).await, APPLIED);
}

/// What became of those who were told to end.
fn told(orphans: &[Cancelled]) -> Vec<(RunId, Status)> {
    let told = orphans.iter().map(|orphan| match orphan {
        Cancelled::Ended { record, .. } => (record.id, record.status),
        Cancelled::Requested { run, instance: Some(ME) } => (*run, Status::Running),
        other => panic!("{other:?}"),
    });
    told.collect()
}

async fn a_failed_parent_takes_its_children_along(mut bed: Bed) {
    let mut parent = bed.started(new_run(1, 1)).await;
    let running = bed.started(child(2, 1)).await;
    let mut ended = bed.started(child(3, 1)).await;
    bed.commit(ended.end(Status::Success)).await;
    let mut parked = bed.started(child(4, 1)).await;
    bed.commit(parked.park(WaitKind::Person)).await;
    bed.queued(child(5, 1)).await;
    bed.queued(NewRun { thread: thread_id(5), ..new_run(6, 5) }).await;
    let end = parent.end(Status::Error);
    let CommitAck::Applied { orphans, woken, .. } = bed.commit(end.clone()).await else {
        panic!("fenced")
    };
    let cancelled = Status::Cancelled;
    let expected =
        [(running.run, Status::Running), (parked.run, cancelled), (run_id(5), cancelled)];
    assert_eq!((told(&orphans), woken), (expected.to_vec(), Vec::new()));
    assert_eq!(bed.commit(end).await, APPLIED, "they were told");
    bed.restart().await;
    assert!(bed.run(running.run).await.cancel_requested);
    let failure = bed.run(run_id(5)).await.failure.unwrap();
    assert_eq!(failure.message, "cancelled by parent");
    assert_eq!(bed.status(run_id(6)).await, Status::Ready, "its thread is free");
    assert_eq!(bed.status(ended.run).await, Status::Success);
}

async fn a_successful_parent_leaves_its_children(bed: Bed) {
    let mut parent = bed.started(new_run(1, 1)).await;
    let mut running = bed.started(child(2, 1)).await;
    bed.queued(child(3, 1)).await;
    assert_eq!(bed.commit(parent.end(Status::Success)).await, APPLIED);
    assert!(!bed.run(running.run).await.cancel_requested);
    assert_eq!(bed.status(run_id(3)).await, Status::Ready);
    assert_eq!(bed.commit(running.end(Status::Error)).await, APPLIED);
}

async fn a_cancelled_parent_takes_its_children_along(bed: Bed) {
    let (parent, child) = family(&bed).await;
    assert!(matches!(bed.cancel(parent.run).await, Cancelled::Ended { .. }));
    assert!(bed.run(child.run).await.cancel_requested);
    assert_eq!(bed.store.renew(ME).await.unwrap().cancel, [child.run]);
}

async fn a_late_parent_takes_its_children_along(bed: Bed) {
    bed.store.join(ME).await.unwrap();
    let deadline = Some(Duration::from_secs(5));
    let mut parent = bed.started(NewRun { deadline, ..new_run(1, 1) }).await;
    bed.queued(NewRun { deadline, ..child(2, 1) }).await;
    bed.queued(child(3, 1)).await;
    bed.commit(parent.park_as(on_child())).await;
    bed.advance(5);
    let swept = bed.sweep().await;
    let expired: Vec<_> =
        swept.expired.iter().map(|(record, _)| (record.id, record.status)).collect();
    let cancelled = Status::Cancelled;
    let expected = [(run_id(1), Status::Timeout), (run_id(2), cancelled), (run_id(3), cancelled)];
    assert_eq!(expired, expected, "each once");
    assert_eq!(bed.counts(), (0, 0, 0));
}

async fn grandchildren_end_too(bed: Bed) {
    let mut parent = bed.started(new_run(1, 1)).await;
    let mut second = bed.started(child(2, 1)).await;
    let third = bed.started(child(3, 2)).await;
    bed.queued(child(4, 3)).await;
    bed.commit(second.park_as(on_child())).await;
    let CommitAck::Applied { orphans, .. } = bed.commit(parent.end(Status::Timeout)).await else {
        panic!("fenced")
    };
    let expected = [(second.run, Status::Cancelled), (third.run, Status::Running)];
    assert_eq!(told(&orphans), expected, "who runs tells its own children when it ends");
    assert_eq!(bed.status(run_id(4)).await, Status::Ready);
}

async fn many_children_end_in_the_end(mut bed: Bed) {
    bed.store.join(ME).await.unwrap();
    let mut parent = bed.started(new_run(1, 1)).await;
    let many = crate::rules::ORPHANS_AT_ONCE as u128 * 2 + 7;
    for number in 2..2 + many {
        bed.queued(child(number, 1)).await;
    }
    let CommitAck::Applied { orphans, .. } = bed.commit(parent.end(Status::Error)).await else {
        panic!("fenced")
    };
    assert_eq!(orphans.len(), crate::rules::ORPHANS_AT_ONCE);
    bed.restart().await;
    bed.store.join(ME).await.unwrap();
    let mut ended = orphans.len();
    while bed.counts() != (0, 0, 0) {
        let swept = bed.sweep().await;
        assert!(!swept.expired.is_empty(), "a sweep gets on");
        ended += swept.expired.len();
    }
    assert_eq!(ended as u128, many);
}

async fn relatives_on_deleted_threads(bed: Bed) {
    let mut parent = bed.started(new_run(1, 1)).await;
    let mut gone = bed.started(child(2, 1)).await;
    let mut child = bed.started(child(3, 1)).await;
    bed.commit(gone.end(Status::Success)).await;
    bed.store.delete_thread(thread_id(2)).await.unwrap().unwrap().unwrap();
    bed.commit(parent.end(Status::Success)).await;
    bed.store.delete_thread(thread_id(1)).await.unwrap().unwrap().unwrap();
    assert_eq!(bed.run(child.run).await.parent, Some(parent.run), "it had one");
    assert_eq!(bed.commit(child.end(Status::Error)).await, APPLIED);
    let query = RunQuery { parent: Some(parent.run), ..RunQuery::default() };
    assert!(bed.store.runs(query).await.unwrap().runs.is_empty());
}
