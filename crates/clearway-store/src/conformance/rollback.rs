//! Taking back what a run did, and starting from an earlier checkpoint.

use super::*;
use crate::ErrorKind;

on_every_store! {
    a_rollback_moves_the_head_back
    a_rollback_on_an_empty_thread
    a_rollback_of_what_waits_is_done_at_once
    a_rollback_before_the_beginning_changes_nothing
    a_run_that_ends_by_itself_is_rolled_back_all_the_same
    a_rollback_cannot_be_taken_back
    a_rollback_after_a_takeover
    a_rollback_gives_questions_back
    a_rollback_after_a_reset_leaves_the_new_state_alone
    a_rolled_back_run_takes_its_children_along
    a_new_run_can_roll_the_active_one_back
    a_new_run_rolls_a_waiting_one_back
    versions_rise_over_a_rollback
    a_run_can_start_from_an_earlier_checkpoint
    a_rolled_back_branch_leaves_the_head_where_it_was
    a_checkpoint_to_start_from_must_exist
    a_checkpoint_that_was_rolled_back_is_gone
    large_values_are_right_after_a_rollback
}

/// A finished run on thread 1; its last checkpoint.
async fn history(bed: &Bed) -> CheckpointId {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.commit(owner.step(&[("log", append("old"))])).await;
    let step = owner.step(&[("log", append("older"))]);
    let head = step.checkpoints[0].0;
    bed.commit(step).await;
    bed.commit(owner.end(Status::Success)).await;
    head
}

async fn roll_back(bed: &Bed, run: RunId) -> Cancelled {
    bed.store.cancel_run(run, "ann", CancelMode::Rollback).await.unwrap()
}

async fn log_of(bed: &Bed) -> Option<serde_json::Value> {
    bed.head(thread_id(1)).await.and_then(|head| head.state.get("log"))
}

/// Two supersteps of run 2.
async fn second(bed: &Bed) -> (Owner, Vec<CheckpointId>) {
    let mut owner = bed.goes_on(new_run(2, 1)).await;
    let mut made = Vec::new();
    for text in ["new", "newer"] {
        let step = owner.step(&[("log", append(text))]);
        made.push(step.checkpoints[0].0);
        bed.commit(step).await;
    }
    (owner, made)
}

async fn a_rollback_moves_the_head_back(mut bed: Bed) {
    let head = history(&bed).await;
    let (mut owner, made) = second(&bed).await;
    assert!(matches!(roll_back(&bed, owner.run).await, Cancelled::Requested { .. }));
    assert!(bed.run(owner.run).await.cancel_requested);
    assert_eq!(log_of(&bed).await, Some(json!(["old", "older", "new", "newer"])), "not yet");
    bed.advance(3);
    assert_eq!(bed.commit(owner.end(Status::Cancelled)).await, acknowledged(true, None));
    bed.restart().await;
    assert_eq!(log_of(&bed).await, Some(json!(["old", "older"])));
    let thread = bed.store.thread(thread_id(1)).await.unwrap().unwrap();
    assert_eq!((thread.head, thread.updated_at), (Some(head), bed.now()));
    for id in made {
        assert!(bed.store.state(thread_id(1), Some(id)).await.unwrap().is_none());
    }
    let record = bed.run(owner.run).await;
    assert_eq!((record.rolled_back, record.checkpoint), (true, None));
    assert_eq!(bed.kinds(owner.run).await.len(), 4, "its log stays");
    assert!(!bed.run(run_id(1)).await.rolled_back);
    assert_eq!(bed.started(new_run(3, 1)).await.claim.head, Some(head));
}

async fn a_rollback_on_an_empty_thread(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.commit(owner.step(&[("log", append("a"))])).await;
    roll_back(&bed, owner.run).await;
    bed.commit(owner.end(Status::Cancelled)).await;
    assert!(bed.head(thread_id(1)).await.is_none());
    let claim = bed.started(new_run(2, 1)).await.claim;
    assert_eq!((claim.head, claim.frontier), (None, Frontier::default()));
}

async fn a_rollback_of_what_waits_is_done_at_once(bed: Bed) {
    let head = history(&bed).await;
    let (mut owner, _) = second(&bed).await;
    bed.commit(owner.park(WaitKind::Person)).await;
    bed.queued(new_run(3, 1)).await;
    let Cancelled::Ended { record, promoted, .. } = roll_back(&bed, owner.run).await else {
        panic!("nobody executes it")
    };
    assert_eq!((record.rolled_back, record.checkpoint), (true, None));
    assert_eq!((*record, promoted), (bed.run(owner.run).await, Some(run_id(3))));
    assert_eq!(bed.claim_one().await.claim.head, Some(head));
}

async fn a_rollback_before_the_beginning_changes_nothing(bed: Bed) {
    let head = history(&bed).await;
    let mut owner = bed.goes_on(new_run(2, 1)).await;
    bed.queued(new_run(3, 1)).await;
    assert!(matches!(roll_back(&bed, run_id(3)).await, Cancelled::Ended { .. }));
    roll_back(&bed, owner.run).await;
    bed.commit(owner.end(Status::Cancelled)).await;
    bed.queued(new_run(4, 1)).await;
    assert!(matches!(roll_back(&bed, run_id(4)).await, Cancelled::Ended { .. }));
    let thread = bed.store.thread(thread_id(1)).await.unwrap().unwrap();
    assert_eq!((thread.head, thread.active_run), (Some(head), None));
    assert!(matches!(roll_back(&bed, run_id(1)).await, Cancelled::AlreadyEnded { .. }));
    assert_eq!(log_of(&bed).await, Some(json!(["old", "older"])), "what has ended stays");
}

async fn a_run_that_ends_by_itself_is_rolled_back_all_the_same(bed: Bed) {
    history(&bed).await;
    let (mut owner, _) = second(&bed).await;
    roll_back(&bed, owner.run).await;
    let last = owner.checkpoint(&[("log", append("last"))]);
    let end = StepCommit { checkpoints: vec![last], ..owner.end(Status::Success) };
    bed.commit(end.clone()).await;
    assert_eq!(log_of(&bed).await, Some(json!(["old", "older"])));
    let record = bed.run(owner.run).await;
    assert_eq!((record.status, record.rolled_back), (Status::Success, true));
    assert_eq!(bed.commit(end).await, acknowledged(true, None));
    assert_eq!(log_of(&bed).await, Some(json!(["old", "older"])));
}

async fn a_rollback_cannot_be_taken_back(bed: Bed) {
    history(&bed).await;
    let (mut owner, _) = second(&bed).await;
    bed.cancel(owner.run).await;
    roll_back(&bed, owner.run).await;
    bed.cancel(owner.run).await;
    bed.commit(owner.end(Status::Cancelled)).await;
    assert_eq!(log_of(&bed).await, Some(json!(["old", "older"])));
}

async fn a_rollback_after_a_takeover(mut bed: Bed) {
    bed.store.join(ME).await.unwrap();
    history(&bed).await;
    let (owner, _) = second(&bed).await;
    roll_back(&bed, owner.run).await;
    bed.restart().await;
    bed.store.join(OTHER).await.unwrap();
    // Whoever asks again while nobody executes it.
    assert!(matches!(bed.cancel(owner.run).await, Cancelled::Ended { .. }));
    assert_eq!(log_of(&bed).await, Some(json!(["old", "older"])));
    assert!(bed.run(owner.run).await.rolled_back);
}

async fn a_rollback_gives_questions_back(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.commit(owner.step(&[])).await;
    let question = note(owner.task(), "interrupt:0", json!({"value": "ok?"}));
    let mut end = owner.end(Status::Success);
    end.next = frontier(owner.run, 1, &["more"]);
    end.notes = vec![question.clone()];
    bed.commit(end).await;
    let asked = owner.task();

    let mut owner = bed.goes_on(new_run(2, 1)).await;
    let mut step = owner.step(&[]);
    step.notes = vec![note(asked, "answer:0", json!({"value": true}))];
    step.settled = vec![asked];
    bed.commit(step).await;
    let own = note(owner.task(), "done", json!(1));
    bed.store.journal(owner.run, owner.fence, vec![own.clone()]).await.unwrap();
    assert_eq!(bed.head(thread_id(1)).await.unwrap().journal, [own]);
    roll_back(&bed, owner.run).await;
    bed.commit(owner.end(Status::Cancelled)).await;
    let head = bed.head(thread_id(1)).await.unwrap();
    assert_eq!(head.journal, std::slice::from_ref(&question), "open again");
    assert_eq!(bed.started(new_run(3, 1)).await.claim.journal, [question]);
}

async fn a_rollback_after_a_reset_leaves_the_new_state_alone(bed: Bed) {
    history(&bed).await;
    let (mut owner, made) = second(&bed).await;
    bed.store.reset_thread(thread_id(1)).await.unwrap();
    roll_back(&bed, owner.run).await;
    bed.commit(owner.end(Status::Cancelled)).await;
    assert!(bed.head(thread_id(1)).await.is_none());
    assert!(bed.store.state(thread_id(1), Some(made[1])).await.unwrap().is_none());
    assert!(bed.run(owner.run).await.rolled_back);
}

async fn a_rolled_back_run_takes_its_children_along(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.queued(NewRun { parent: Some(owner.run), ..new_run(2, 2) }).await;
    roll_back(&bed, owner.run).await;
    let ack = bed.commit(owner.end(Status::Success)).await;
    assert!(matches!(ack, CommitAck::Applied { orphans, .. } if orphans.len() == 1));
}

async fn a_new_run_can_roll_the_active_one_back(bed: Bed) {
    let head = history(&bed).await;
    let (mut owner, _) = second(&bed).await;
    bed.queued(new_run(3, 1)).await;
    let rollback = NewRun { multitask: Multitask::Rollback, claim: Some(ME), ..new_run(4, 1) };
    let queued = bed.queued(rollback).await;
    assert!(
        matches!(queued.interrupted, Some(Cancelled::Requested { run, .. }) if run == owner.run)
    );
    let ack = acknowledged(true, Some(run_id(4)));
    assert_eq!(bed.commit(owner.end(Status::Cancelled)).await, ack, "before those that wait");
    assert_eq!(bed.claim_one().await.claim.head, Some(head));
    assert!(bed.run(owner.run).await.rolled_back);
}

async fn a_new_run_rolls_a_waiting_one_back(bed: Bed) {
    history(&bed).await;
    let (mut owner, _) = second(&bed).await;
    bed.commit(owner.park(WaitKind::Person)).await;
    let queued = bed.queued(NewRun { multitask: Multitask::Rollback, ..new_run(3, 1) }).await;
    assert_eq!(queued.record.status, Status::Ready);
    assert_eq!(log_of(&bed).await, Some(json!(["old", "older"])));
}

async fn versions_rise_over_a_rollback(bed: Bed) {
    history(&bed).await;
    let (mut owner, _) = second(&bed).await;
    roll_back(&bed, owner.run).await;
    bed.commit(owner.end(Status::Cancelled)).await;
    let mut owner = bed.goes_on(new_run(3, 1)).await;
    assert_eq!(owner.claim.thread_version, 4);
    let step = owner.step(&[("log", append("third"))]);
    let delta = &step.checkpoints[0].1.deltas[0];
    assert_eq!((delta.version, delta.previous), (5, 2));
    assert_eq!(bed.commit(step).await, APPLIED);
    assert_eq!(log_of(&bed).await, Some(json!(["old", "older", "third"])));
}

/// Run 3 on thread 1, from this checkpoint on.
fn from(checkpoint: CheckpointId) -> NewRun {
    let options = RunOptions { base: Some(checkpoint), ..RunOptions::default() };
    NewRun { options, ..new_run(3, 1) }
}

async fn a_run_can_start_from_an_earlier_checkpoint(mut bed: Bed) {
    let head = history(&bed).await;
    let (mut owner, made) = second(&bed).await;
    bed.commit(owner.end(Status::Success)).await;
    let mut owner = bed.goes_on(from(head)).await;
    let expected = (Some(head), 4, false);
    let seen = |claim: &Claim| (claim.head, claim.thread_version, claim.taken_in);
    assert_eq!(seen(&owner.claim), expected);
    assert_eq!(owner.claim.frontier, frontier(run_id(1), 2, &["more"]));
    assert_eq!(bed.head(thread_id(1)).await.unwrap().checkpoint, made[1], "not moved yet");
    // The same for the next owner.
    bed.store.release(owner.run, owner.fence).await.unwrap();
    bed.restart().await;
    let claim = bed.claim_one().await.claim;
    assert_eq!((seen(&claim), &claim.frontier), (expected, &owner.claim.frontier));
    owner = bed.owner(claim).await;
    let step = owner.step(&[("log", append("branch"))]);
    let first = step.checkpoints[0].0;
    assert_eq!(bed.commit(step).await, APPLIED);
    let now = bed.head(thread_id(1)).await.unwrap();
    assert_eq!((now.checkpoint, now.parent), (first, Some(head)));
    assert_eq!(now.state.get("log"), Some(json!(["old", "older", "branch"])));
    assert_eq!(bed.store.writes_of(first, "log").await.unwrap(), [append("branch")]);
    // From now on it goes on from its own.
    bed.store.release(owner.run, owner.fence).await.unwrap();
    let claim = bed.claim_one().await.claim;
    assert_eq!((claim.head, claim.taken_in), (Some(first), true));
    let other = bed.store.state(thread_id(1), Some(made[1])).await.unwrap().unwrap();
    assert_eq!(other.state.get("log"), Some(json!(["old", "older", "new", "newer"])));
}

async fn a_rolled_back_branch_leaves_the_head_where_it_was(bed: Bed) {
    let head = history(&bed).await;
    let (mut owner, made) = second(&bed).await;
    bed.commit(owner.end(Status::Success)).await;
    let mut owner = bed.goes_on(from(head)).await;
    bed.commit(owner.step(&[("log", append("branch"))])).await;
    roll_back(&bed, owner.run).await;
    bed.commit(owner.end(Status::Cancelled)).await;
    assert_eq!(bed.head(thread_id(1)).await.unwrap().checkpoint, made[1]);
}

async fn a_checkpoint_to_start_from_must_exist(bed: Bed) {
    let head = history(&bed).await;
    let elsewhere = NewRun { thread: thread_id(2), ..from(head) };
    let nowhere = from(CheckpointId(Uuid::from_u128(99)));
    for new in [elsewhere, nowhere] {
        assert!(matches!(bed.create(new).await, Admission::CheckpointNotFound));
    }
    assert!(bed.store.thread(thread_id(2)).await.unwrap().is_none());
    assert_eq!(bed.counts(), (0, 0, 0));
}

async fn a_checkpoint_that_was_rolled_back_is_gone(bed: Bed) {
    history(&bed).await;
    let (mut owner, made) = second(&bed).await;
    bed.queued(from(made[0])).await;
    roll_back(&bed, owner.run).await;
    bed.commit(owner.end(Status::Cancelled)).await;
    let mut owner = Owner::new(bed.claim(1).await.remove(0));
    assert_eq!(owner.claim.head, Some(made[0]));
    assert!(bed.store.state(thread_id(1), Some(made[0])).await.unwrap().is_none());
    let step = owner.clone().step(&[("log", append("a"))]);
    let error = bed.store.commit(step).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Conflict);
    assert!(error.message.contains("is gone"), "{error}");
    bed.commit(owner.end(Status::Error)).await;
    assert_eq!(log_of(&bed).await, Some(json!(["old", "older"])));
}

async fn large_values_are_right_after_a_rollback(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let text =
        |side: &str, number: u32| append(&format!("{side}{number} {}", "word ".repeat(2000)));
    for number in 0..20 {
        bed.commit(owner.step(&[("log", text("a", number))])).await;
    }
    bed.commit(owner.end(Status::Success)).await;
    let before = owner.state.to_json();
    let mut owner = bed.goes_on(new_run(2, 1)).await;
    for number in 0..40 {
        bed.commit(owner.step(&[("log", text("b", number))])).await;
    }
    roll_back(&bed, owner.run).await;
    bed.commit(owner.end(Status::Cancelled)).await;
    assert_eq!(bed.head(thread_id(1)).await.unwrap().state.to_json(), before);
    let mut owner = bed.goes_on(new_run(3, 1)).await;
    for number in 0..40 {
        bed.commit(owner.step(&[("log", text("c", number))])).await;
    }
    assert_eq!(bed.head(thread_id(1)).await.unwrap().state.to_json(), owner.state.to_json());
}
