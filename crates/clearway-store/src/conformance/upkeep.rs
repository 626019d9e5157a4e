//! Joining, leases, sweeps, retention.

use super::*;
use crate::ErrorKind;

on_every_store! {
    an_empty_store_is_joined
    joining_takes_over_what_earlier_processes_ran
    joining_twice_keeps_ones_own_runs
    counts_are_right_after_a_restart
    renewing_lists_what_is_owned
    a_sweep_with_nothing_to_do
    a_sweep_takes_runs_of_the_dead
    a_renewed_lease_is_alive
    queued_runs_end_at_their_deadline
    deadlines_of_running_runs_are_not_the_stores
    a_promoted_run_may_be_late_as_well
    the_next_deadline_is_named
    old_deltas_are_dropped
    facts_are_never_dropped
    a_closed_store_says_so
    what_a_store_says_about_itself
}

async fn an_empty_store_is_joined(bed: Bed) {
    let joined = bed.store.join(ME).await.unwrap();
    assert_eq!((joined.resumed, joined.waiting), (0, 0));
}

async fn joining_takes_over_what_earlier_processes_ran(mut bed: Bed) {
    bed.store.join(ME).await.unwrap();
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.started(new_run(2, 2)).await;
    bed.queued(new_run(3, 1)).await;
    bed.commit(owner.step(&[("log", append("a"))])).await;
    bed.restart().await;
    bed.advance(1);
    let joined = bed.store.join(OTHER).await.unwrap();
    assert_eq!((joined.resumed, joined.waiting), (2, 3));
    let record = bed.run(run_id(1)).await;
    assert_eq!((record.status, record.fence, record.instance), (Status::Ready, 2, None));
    assert_eq!((record.ready_at, record.step), (bed.now(), 0));
    assert_eq!(bed.status(run_id(3)).await, Status::Blocked);
    assert_eq!(bed.counts(), (1, 2, 0));
    assert_eq!(bed.commit(owner.step(&[])).await, CommitAck::Fenced);
    let claims = bed.claim(5).await;
    assert_eq!(claims.len(), 2);
    assert_eq!((claims[0].record.attempt, claims[0].record.fruitless), (2, 0));
    assert_eq!((claims[1].record.attempt, claims[1].record.fruitless), (2, 1));
}

async fn joining_twice_keeps_ones_own_runs(bed: Bed) {
    bed.store.join(ME).await.unwrap();
    let owner = bed.started(new_run(1, 1)).await;
    assert_eq!(bed.store.join(ME).await.unwrap().resumed, 0);
    assert_eq!(bed.run(owner.run).await, owner.claim.record);
}

async fn counts_are_right_after_a_restart(mut bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    for number in 2..5 {
        bed.queued(new_run(number, 1)).await;
    }
    bed.started(new_run(10, 10)).await;
    bed.queued(NewRun { pool: "slow".into(), ..new_run(11, 11) }).await;
    bed.commit(owner.end(Status::Success)).await;
    bed.cancel(run_id(4)).await;
    let before = bed.store.pool_counts();
    bed.restart().await;
    assert_eq!(bed.store.pool_counts(), before);
    assert_eq!(bed.counts(), (1, 1, 1));
}

async fn renewing_lists_what_is_owned(bed: Bed) {
    bed.store.join(ME).await.unwrap();
    let renewal = bed.store.renew(ME).await.unwrap();
    assert!(renewal.owned.is_empty() && renewal.cancel.is_empty());
    let mut first = bed.started(new_run(1, 1)).await;
    let second = bed.started(new_run(2, 2)).await;
    bed.queued(new_run(3, 3)).await;
    bed.cancel(second.run).await;
    let renewal = bed.store.renew(ME).await.unwrap();
    assert_eq!(renewal.owned, [(run_id(1), 1), (run_id(2), 1)]);
    assert_eq!(renewal.cancel, [run_id(2)]);
    bed.commit(first.end(Status::Success)).await;
    assert_eq!(bed.store.renew(ME).await.unwrap().owned, [(run_id(2), 1)]);
    assert!(bed.store.renew(OTHER).await.unwrap().owned.is_empty());
}

async fn a_sweep_with_nothing_to_do(bed: Bed) {
    bed.store.join(ME).await.unwrap();
    bed.started(new_run(1, 1)).await;
    bed.advance(3600);
    let swept = bed.sweep().await;
    assert!(swept.taken_over.is_empty(), "who sweeps is alive, renewed or not");
    assert!(swept.expired.is_empty() && !swept.ready);
    assert_eq!(swept.next_deadline, None);
    bed.queued(NewRun { delay: Duration::from_secs(5), ..new_run(2, 2) }).await;
    assert!(!bed.sweep().await.ready);
    bed.advance(5);
    assert!(bed.sweep().await.ready);
}

async fn a_sweep_takes_runs_of_the_dead(bed: Bed) {
    bed.store.join(ME).await.unwrap();
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.started(new_run(2, 2)).await;
    bed.store.renew(OTHER).await.unwrap();
    bed.advance(10);
    assert!(bed.store.sweep(OTHER).await.unwrap().taken_over.is_empty(), "the lease holds");
    bed.advance(1);
    let swept = bed.store.sweep(OTHER).await.unwrap();
    assert_eq!(swept.taken_over, [run_id(1), run_id(2)]);
    assert!(swept.ready);
    let record = bed.run(run_id(1)).await;
    assert_eq!((record.status, record.fence, record.instance), (Status::Ready, 2, None));
    assert_eq!(record.ready_at, bed.now());
    assert_eq!(bed.commit(owner.end(Status::Success)).await, CommitAck::Fenced);
}

async fn a_renewed_lease_is_alive(bed: Bed) {
    bed.store.join(ME).await.unwrap();
    bed.started(new_run(1, 1)).await;
    for _ in 0..5 {
        bed.advance(8);
        bed.store.renew(ME).await.unwrap();
        assert!(bed.store.sweep(OTHER).await.unwrap().taken_over.is_empty());
    }
}

async fn queued_runs_end_at_their_deadline(mut bed: Bed) {
    let deadline = Some(Duration::from_secs(60));
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.queued(NewRun { deadline, ..new_run(2, 1) }).await;
    bed.queued(NewRun { deadline, ..new_run(3, 3) }).await;
    bed.advance(20);
    bed.commit(owner.end(Status::Success)).await;
    bed.advance(39);
    assert!(bed.sweep().await.expired.is_empty());
    bed.advance(1);
    let swept = bed.sweep().await;
    assert_eq!(swept.next_deadline, None);
    let expired: Vec<RunId> = swept.expired.iter().map(|(record, _)| record.id).collect();
    assert_eq!(expired, [run_id(2), run_id(3)]);
    let (record, events) = &swept.expired[0];
    assert_eq!((record.status, record.ended_at), (Status::Timeout, Some(bed.now())));
    let failure = record.failure.as_ref().unwrap();
    assert_eq!(failure.to_string(), "deadline_exceeded: 60.0 s spent: thread 20.0, slot 40.0");
    assert_eq!(
        (&failure.detail["phase"], &failure.detail["waiting_for"]),
        (&json!("slot"), &json!(record.pool))
    );
    assert_eq!(events.len(), 1);
    let Body::Fact(fact) = &events[0].body else { panic!("a delta") };
    let spent = json!({"thread": 20_000, "slot": 40_000});
    assert_eq!(
        fact.json(),
        json!({"status": "timeout", "error": failure.to_json(), "spent": spent})
    );
    bed.restart().await;
    assert_eq!(bed.run(run_id(2)).await, *record);
    assert_eq!(bed.kinds(run_id(2)).await, ["run.created", "run.ended"]);
    assert_eq!(bed.counts(), (0, 0, 0));
    assert!(bed.sweep().await.expired.is_empty(), "once");
}

async fn deadlines_of_running_runs_are_not_the_stores(bed: Bed) {
    bed.store.join(ME).await.unwrap();
    bed.started(NewRun { deadline: Some(Duration::from_secs(1)), ..new_run(1, 1) }).await;
    bed.advance(5);
    let swept = bed.sweep().await;
    assert!(swept.expired.is_empty());
    assert_eq!(swept.next_deadline, None);
}

async fn a_promoted_run_may_be_late_as_well(bed: Bed) {
    let deadline = |seconds| Some(Duration::from_secs(seconds));
    bed.queued(NewRun { deadline: deadline(2), ..new_run(1, 1) }).await;
    bed.queued(NewRun { deadline: deadline(1), ..new_run(2, 1) }).await;
    bed.queued(NewRun { deadline: deadline(3), ..new_run(3, 1) }).await;
    bed.queued(new_run(4, 1)).await;
    bed.advance(5);
    let swept = bed.sweep().await;
    let expired: Vec<RunId> = swept.expired.iter().map(|(record, _)| record.id).collect();
    assert_eq!(expired, [run_id(2), run_id(1), run_id(3)]);
    assert!(swept.ready);
    assert_eq!(bed.status(run_id(4)).await, Status::Ready);
    assert_eq!(bed.counts(), (0, 1, 0));
}

async fn the_next_deadline_is_named(bed: Bed) {
    for (number, seconds) in [(1, 50), (2, 30), (3, 40)] {
        let deadline = Some(Duration::from_secs(seconds));
        bed.queued(NewRun { deadline, ..new_run(number, number) }).await;
    }
    assert_eq!(bed.sweep().await.next_deadline, Some(START.plus(Duration::from_secs(30))));
    bed.advance(30);
    assert_eq!(bed.sweep().await.next_deadline, Some(START.plus(Duration::from_secs(40))));
}

/// A run that streamed under two leases and ended.
async fn streamed(bed: &Bed, number: u128) -> Owner {
    let owner = bed.started(new_run(number, number)).await;
    bed.store.release(owner.run, owner.fence).await.unwrap();
    let mut owner = bed.claim_one().await;
    for _ in 0..4 {
        let output = owner.tokens(25);
        bed.store.append(vec![output]).await.unwrap();
        bed.commit(owner.step(&[("log", append("a"))])).await;
    }
    bed.commit(owner.end(Status::Success)).await;
    owner
}

async fn old_deltas_are_dropped(bed: Bed) {
    bed.store.join(ME).await.unwrap();
    let old = streamed(&bed, 1).await;
    bed.advance(1800);
    let young = streamed(&bed, 2).await;
    let facts = |log: &[Event]| -> Vec<Event> {
        log.iter().filter(|event| event.kind() != EventKind::MessageDelta).cloned().collect()
    };
    let before = (bed.run(old.run).await, bed.log(old.run).await);
    assert_eq!(before.1.len(), 106);
    bed.sweep().await;
    assert_eq!(bed.log(old.run).await, before.1, "not yet");
    bed.advance(1801);
    bed.sweep().await;
    assert_eq!(bed.log(old.run).await, facts(&before.1));
    assert_eq!(bed.run(old.run).await, before.0, "numbers stay");
    assert_eq!(bed.log(young.run).await.len(), 106);
    // A reader in the middle still gets what is left, each once.
    let page = bed.store.read_log(old.run, 40, usize::MAX).await.unwrap();
    let seqs: Vec<u64> = page.events.iter().map(|event| event.seq).collect();
    assert_eq!(seqs, [52, 78, 104, 105]);
    assert_eq!((page.next, page.end), (106, 106));
    bed.sweep().await;
    assert_eq!(bed.log(old.run).await, facts(&before.1));
}

async fn facts_are_never_dropped(bed: Bed) {
    bed.queued(new_run(1, 1)).await;
    bed.cancel(run_id(1)).await;
    bed.queued(new_run(2, 2)).await;
    let before = (bed.log(run_id(1)).await, bed.log(run_id(2)).await);
    bed.advance(100_000);
    bed.sweep().await;
    assert_eq!((bed.log(run_id(1)).await, bed.log(run_id(2)).await), before);
}

async fn a_closed_store_says_so(bed: Bed) {
    bed.store.join(ME).await.unwrap();
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.store.close(ME).await.unwrap();
    let errors = [
        bed.store.renew(ME).await.unwrap_err(),
        bed.store.create_run(new_run(2, 2)).await.unwrap_err(),
        bed.store.commit(owner.end(Status::Success)).await.unwrap_err(),
        bed.store.run(run_id(1)).await.unwrap_err(),
        bed.store.read_log(run_id(1), 0, 10).await.unwrap_err(),
        bed.store.info().await.unwrap_err(),
        bed.store.close(ME).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind, ErrorKind::Closed);
        assert!(error.certainly_aborted && !error.is_transient());
        assert_eq!(error.code(), clearway_core::Code::ShuttingDown);
    }
}

async fn what_a_store_says_about_itself(bed: Bed) {
    bed.queued(new_run(1, 1)).await;
    let info = bed.store.info().await.unwrap();
    assert_eq!(info.writable, Ok(()));
    assert_eq!(info.schema_version, 7);
    assert!(info.size_bytes > 0);
    assert_eq!(info.path.is_some(), info.kind == "sqlite");
    assert_eq!(info.disk_free_bytes.is_some(), info.kind == "sqlite");
}
