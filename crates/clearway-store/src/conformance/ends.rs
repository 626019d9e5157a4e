//! Cancels and resets.

use super::*;

on_every_store! {
    cancelling_a_ready_run_ends_it
    cancelling_a_blocked_run_ends_it
    cancelling_a_running_run_flags_it
    cancelling_an_ended_run_says_so
    cancelling_nothing
    a_cancelled_ready_run_frees_its_thread
    a_cancelled_blocked_run_leaves_the_thread_alone
    a_flag_survives_a_takeover
    the_log_of_a_cancelled_run_goes_on_where_it_ended
    resetting_nothing
    a_reset_empties_the_thread
    a_reset_ends_what_waits_and_flags_what_runs
    a_reset_voids_the_state_of_what_still_runs
    versions_rise_over_a_reset
}

async fn cancelling_a_ready_run_ends_it(mut bed: Bed) {
    bed.queued(new_run(1, 1)).await;
    bed.advance(4);
    let Cancelled::Ended { record, events, promoted } = bed.cancel(run_id(1)).await else {
        panic!("it was ready")
    };
    bed.restart().await;
    assert_eq!(bed.run(run_id(1)).await, *record);
    assert_eq!((record.status, record.ended_at), (Status::Cancelled, Some(bed.now())));
    assert_eq!((record.next_seq, record.committed_seq, promoted), (3, 3, None));
    let failure = record.failure.as_ref().unwrap();
    assert_eq!(
        (failure.code, &*failure.message),
        (clearway_core::Code::Cancelled, "cancelled by ann")
    );
    assert_eq!(record.spent.to_json(), json!({"slot": 4000}));
    assert_eq!(bed.log(run_id(1)).await[1..], events);
    assert_eq!(bed.kinds(run_id(1)).await, ["run.created", "cancel.requested", "run.ended"]);
    let data: Vec<_> = events
        .iter()
        .map(|event| match &event.body {
            Body::Fact(fact) => fact.json(),
            Body::Delta(_) => panic!("a delta"),
        })
        .collect();
    assert_eq!(data[0], json!({"by": "ann"}));
    assert_eq!(
        data[1],
        json!({"status": "cancelled", "error": failure.to_json(), "spent": {"slot": 4000}})
    );
    assert_eq!(bed.counts(), (0, 0, 0));
}

async fn cancelling_a_blocked_run_ends_it(bed: Bed) {
    bed.started(new_run(1, 1)).await;
    bed.queued(new_run(2, 1)).await;
    bed.advance(4);
    let Cancelled::Ended { record, .. } = bed.cancel(run_id(2)).await else {
        panic!("it was blocked")
    };
    assert_eq!(record.spent.to_json(), json!({"thread": 4000}));
    assert_eq!(bed.counts(), (0, 0, 1));
}

async fn cancelling_a_running_run_flags_it(bed: Bed) {
    bed.started(new_run(1, 1)).await;
    for _ in 0..2 {
        match bed.cancel(run_id(1)).await {
            Cancelled::Requested { run, instance } => {
                assert_eq!((run, instance), (run_id(1), Some(ME)));
            }
            other => panic!("{other:?}"),
        }
    }
    let record = bed.run(run_id(1)).await;
    assert_eq!((record.status, record.cancel_requested), (Status::Running, true));
    let renewal = bed.store.renew(ME).await.unwrap();
    assert_eq!((renewal.cancel, renewal.owned), (vec![run_id(1)], vec![(run_id(1), 1)]));
}

async fn cancelling_an_ended_run_says_so(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.commit(owner.end(Status::Success)).await;
    let before = bed.run(run_id(1)).await;
    match bed.cancel(run_id(1)).await {
        Cancelled::AlreadyEnded { record } => assert_eq!(*record, before),
        other => panic!("{other:?}"),
    }
    assert_eq!(bed.run(run_id(1)).await, before);
}

async fn cancelling_nothing(bed: Bed) {
    assert!(matches!(bed.cancel(run_id(1)).await, Cancelled::NotFound));
}

async fn a_cancelled_ready_run_frees_its_thread(bed: Bed) {
    bed.queued(new_run(1, 1)).await;
    bed.queued(new_run(2, 1)).await;
    match bed.cancel(run_id(1)).await {
        Cancelled::Ended { promoted, .. } => assert_eq!(promoted, Some(run_id(2))),
        other => panic!("{other:?}"),
    }
    let thread = bed.store.thread(thread_id(1)).await.unwrap().unwrap();
    assert_eq!(thread.active_run, Some(run_id(2)));
    assert_eq!(bed.claim_one().await.run, run_id(2));
}

async fn a_cancelled_blocked_run_leaves_the_thread_alone(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.queued(new_run(2, 1)).await;
    bed.queued(new_run(3, 1)).await;
    match bed.cancel(run_id(2)).await {
        Cancelled::Ended { promoted, .. } => assert_eq!(promoted, None),
        other => panic!("{other:?}"),
    }
    assert_eq!(bed.status(run_id(3)).await, Status::Blocked);
    bed.commit(owner.end(Status::Success)).await;
    assert_eq!(bed.claim_one().await.run, run_id(3));
}

async fn a_flag_survives_a_takeover(bed: Bed) {
    let owner = bed.started(new_run(1, 1)).await;
    bed.cancel(owner.run).await;
    bed.store.release(owner.run, owner.fence).await.unwrap();
    assert!(bed.claim_one().await.claim.record.cancel_requested);
    bed.store.join(OTHER).await.unwrap();
    // While nobody executes it, a second request ends it.
    assert!(matches!(bed.cancel(owner.run).await, Cancelled::Ended { .. }));
}

async fn the_log_of_a_cancelled_run_goes_on_where_it_ended(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.commit(owner.step(&[])).await;
    let output = owner.tokens(3);
    bed.store.append(vec![output]).await.unwrap();
    bed.store.release(owner.run, owner.fence).await.unwrap();
    let Cancelled::Ended { record, events, .. } = bed.cancel(owner.run).await else {
        panic!("it was ready")
    };
    assert_eq!(events[0].id(), clearway_core::EventId::new(5, 2));
    let Body::Fact(fact) = &events[0].body else { panic!("a delta") };
    assert_eq!(fact.kind, EventKind::OutputReset, "what it showed since its superstep is void");
    assert_eq!(fact.json(), json!({"after": 1, "reason": "ended"}));
    assert_eq!((record.next_seq, record.committed_seq), (8, 8));
    let seqs: Vec<u64> = bed.log(owner.run).await.iter().map(|event| event.seq).collect();
    assert_eq!(seqs, [0, 1, 2, 3, 4, 5, 6, 7]);
}

async fn resetting_nothing(bed: Bed) {
    assert!(bed.store.reset_thread(thread_id(1)).await.unwrap().is_none());
}

async fn a_reset_empties_the_thread(mut bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let step = owner.step(&[("log", append("a"))]);
    let old = step.checkpoints[0].0;
    bed.commit(step).await;
    bed.commit(owner.end(Status::Success)).await;
    bed.advance(9);
    let reset = bed.store.reset_thread(thread_id(1)).await.unwrap().unwrap();
    assert_eq!((reset.generation, reset.cancelled.len()), (1, 0));
    bed.restart().await;
    let thread = bed.store.thread(thread_id(1)).await.unwrap().unwrap();
    assert_eq!((thread.generation, thread.head, thread.ord), (1, None, 1));
    assert_eq!(thread.updated_at, bed.now());
    assert!(bed.head(thread_id(1)).await.is_none());
    let old = bed.store.state(thread_id(1), Some(old)).await.unwrap().unwrap();
    assert_eq!(old.state.get("log"), Some(json!(["a"])), "history stays readable");
}

async fn a_reset_ends_what_waits_and_flags_what_runs(bed: Bed) {
    bed.started(new_run(1, 1)).await;
    bed.queued(new_run(3, 1)).await;
    bed.queued(new_run(2, 1)).await;
    let reset = bed.store.reset_thread(thread_id(1)).await.unwrap().unwrap();
    let what: Vec<_> = reset
        .cancelled
        .iter()
        .map(|cancelled| match cancelled {
            Cancelled::Ended { record, promoted, .. } => (record.id, record.status, *promoted),
            Cancelled::Requested { run, .. } => (*run, Status::Running, None),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        what,
        [
            (run_id(3), Status::Cancelled, None),
            (run_id(2), Status::Cancelled, None),
            (run_id(1), Status::Running, None),
        ]
    );
    assert_eq!(bed.counts(), (0, 0, 1));
    // On a thread that only waits, nothing is left.
    bed.queued(new_run(11, 2)).await;
    bed.queued(new_run(12, 2)).await;
    bed.store.reset_thread(thread_id(2)).await.unwrap().unwrap();
    assert_eq!(bed.counts(), (0, 0, 1));
    assert_eq!(bed.store.thread(thread_id(2)).await.unwrap().unwrap().active_run, None);
}

async fn a_reset_voids_the_state_of_what_still_runs(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.commit(owner.step(&[("log", append("a"))])).await;
    let before = bed.run(owner.run).await.checkpoint;
    bed.store.reset_thread(thread_id(1)).await.unwrap();
    let mut step = owner.step(&[("log", append("late"))]);
    step.outcome = StepOutcome::End { status: Status::Cancelled, failure: None };
    let late = step.checkpoints[0].0;
    let ack = acknowledged(true, None);
    assert_eq!(bed.commit(step).await, ack, "its events and its end count");
    assert_eq!(bed.kinds(owner.run).await.len(), 3);
    assert!(bed.head(thread_id(1)).await.is_none());
    assert!(bed.store.state(thread_id(1), Some(late)).await.unwrap().is_none());
    assert_eq!(bed.run(owner.run).await.checkpoint, before);
    let next = bed.started(new_run(2, 1)).await;
    assert_eq!(next.claim.head, None);
}

async fn versions_rise_over_a_reset(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.commit(owner.step(&[("log", append("a"))])).await;
    bed.commit(owner.end(Status::Success)).await;
    bed.store.reset_thread(thread_id(1)).await.unwrap();
    let mut owner = bed.started(new_run(2, 1)).await;
    assert_eq!((owner.claim.head, owner.claim.thread_version), (None, 1));
    let step = owner.step(&[("log", append("b"))]);
    let delta = &step.checkpoints[0].1.deltas[0];
    assert_eq!((delta.version, delta.previous), (2, 0));
    assert_eq!(bed.commit(step).await, APPLIED);
    let head = bed.head(thread_id(1)).await.unwrap();
    assert_eq!(head.state.get("log"), Some(json!(["b"])));
    assert_eq!((head.parent, head.state.version()), (None, 2));
}
