//! Accepting runs: threads, strategies, limits, repetition.

use clearway_core::thread::ThreadKey;

use super::*;
use crate::{ErrorKind, Idempotency, QueuePosition};

on_every_store! {
    a_first_run_makes_its_thread
    event_zero_is_in_the_log_at_once
    a_free_pool_is_claimed_at_once
    a_claim_at_creation_waits_behind_ready_runs
    a_claim_at_creation_ignores_other_pools
    a_claim_at_creation_ignores_runs_that_are_not_due
    a_delayed_run_is_not_claimed_at_creation
    a_second_run_on_a_thread_is_blocked
    reject_names_the_active_run
    interrupting_a_running_run_flags_it
    interrupting_a_waiting_run_ends_it
    interrupting_runs_keep_their_order
    the_same_run_id_is_the_same_run
    the_same_key_is_the_same_run
    a_key_with_another_body_is_a_conflict
    keys_are_apart_by_tenant_and_route
    keys_are_forgotten_after_a_day
    a_full_queue_refuses
    a_full_queue_lets_through_what_can_start
    blocked_runs_count_as_queued
    refused_runs_leave_nothing
    a_thread_that_must_exist
    threads_belong_to_tenants
    threads_belong_to_owners
    a_thread_keeps_its_first_facts
    everything_of_a_new_run_is_kept
    positions_of_ready_runs
    positions_of_blocked_runs
    far_positions_are_only_far
}

async fn a_first_run_makes_its_thread(bed: Bed) {
    let key = ThreadKey::new("cofounder", &["u::1", "c"]);
    let mut new = new_run(1, 1);
    new.thread_key = Some(key.clone());
    new.thread_metadata.insert("topic".into(), json!("tea"));
    new.owner = Some("ann".into());
    assert_eq!(bed.store.thread(thread_id(1)).await.unwrap(), None);
    bed.queued(new).await;
    let thread = bed.store.thread(thread_id(1)).await.unwrap().unwrap();
    assert_eq!(thread.key, Some(key));
    assert_eq!(thread.metadata["topic"], "tea");
    assert_eq!(thread.owner.as_deref(), Some("ann"));
    assert_eq!((thread.ord, thread.generation, thread.head), (1, 0, None));
    assert_eq!(thread.active_run, Some(run_id(1)));
    assert_eq!((thread.created_at, thread.updated_at), (START, START));
}

async fn event_zero_is_in_the_log_at_once(bed: Bed) {
    let queued = bed.queued(new_run(1, 1)).await;
    let page = bed.store.read_log(run_id(1), 0, 1000).await.unwrap();
    assert_eq!(page.events, [queued.created]);
    assert_eq!(page.events[0].kind(), EventKind::RunCreated);
    assert_eq!((page.next, page.end, page.status), (1, 1, Status::Ready));
    assert_eq!(queued.record.next_seq, 1);
}

async fn a_free_pool_is_claimed_at_once(bed: Bed) {
    let owner = bed.started(new_run(1, 1)).await;
    let record = &owner.claim.record;
    assert_eq!((record.status, record.fence, record.attempt), (Status::Running, 1, 1));
    assert_eq!((record.fruitless, record.instance), (0, Some(ME)));
    assert_eq!(record.started_at, Some(START));
    assert_eq!(owner.claim.created.as_ref().map(|event| event.seq), Some(0));
    assert_eq!((owner.claim.head, owner.claim.thread_version), (None, 0));
    assert_eq!(bed.run(run_id(1)).await, *record);
    assert_eq!(bed.counts(), (0, 0, 1));
}

async fn a_claim_at_creation_waits_behind_ready_runs(bed: Bed) {
    bed.queued(new_run(1, 1)).await;
    let queued = bed.queued(NewRun { claim: Some(ME), ..new_run(2, 2) }).await;
    assert_eq!(queued.record.status, Status::Ready);
    assert_eq!(queued.position.pool_ahead, 1);
}

async fn a_claim_at_creation_ignores_other_pools(bed: Bed) {
    bed.queued(new_run(1, 1)).await;
    bed.started(NewRun { pool: "other".into(), ..new_run(2, 2) }).await;
}

async fn a_claim_at_creation_ignores_runs_that_are_not_due(bed: Bed) {
    bed.queued(NewRun { delay: Duration::from_secs(60), ..new_run(1, 1) }).await;
    bed.started(new_run(2, 2)).await;
    bed.advance(61);
    bed.queued(NewRun { claim: Some(ME), ..new_run(3, 3) }).await;
}

async fn a_delayed_run_is_not_claimed_at_creation(bed: Bed) {
    let delay = Duration::from_secs(60);
    let queued = bed.queued(NewRun { claim: Some(ME), delay, ..new_run(1, 1) }).await;
    assert_eq!(queued.record.ready_at, START.plus(delay));
    assert!(bed.claim(1).await.is_empty());
    bed.advance(60);
    assert_eq!(bed.claim(1).await.len(), 1);
}

async fn a_second_run_on_a_thread_is_blocked(bed: Bed) {
    bed.started(new_run(1, 1)).await;
    let queued = bed.queued(NewRun { claim: Some(ME), ..new_run(2, 1) }).await;
    assert_eq!((queued.record.status, queued.record.thread_ord), (Status::Blocked, 2));
    assert!(queued.interrupted.is_none());
    assert_eq!(bed.counts(), (1, 0, 1));
    assert!(bed.claim(5).await.is_empty());
    let thread = bed.store.thread(thread_id(1)).await.unwrap().unwrap();
    assert_eq!((thread.ord, thread.active_run), (2, Some(run_id(1))));
}

async fn reject_names_the_active_run(bed: Bed) {
    bed.started(new_run(1, 1)).await;
    let new = NewRun { multitask: Multitask::Reject, ..new_run(2, 1) };
    let answer = bed.create(new.clone()).await;
    assert!(
        matches!(answer, Admission::ThreadBusy { active } if active == run_id(1)),
        "{answer:?}"
    );
    assert_eq!(bed.store.run(run_id(2)).await.unwrap(), None);
    bed.queued(NewRun { thread: thread_id(2), ..new }).await;
}

async fn interrupting_a_running_run_flags_it(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.queued(new_run(2, 1)).await;
    let queued = bed.queued(NewRun { multitask: Multitask::Interrupt, ..new_run(3, 1) }).await;
    match queued.interrupted {
        Some(Cancelled::Requested { run, instance }) => {
            assert_eq!((run, instance), (run_id(1), Some(ME)));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(queued.record.status, Status::Blocked);
    assert_eq!(queued.position.thread_ahead, 0, "it goes before the one that only waits");
    assert!(bed.run(run_id(1)).await.cancel_requested);
    let ack = bed.commit(owner.end(Status::Cancelled)).await;
    assert_eq!(ack, acknowledged(true, Some(run_id(3))), "the interrupting run is next");
}

async fn interrupting_a_waiting_run_ends_it(bed: Bed) {
    bed.queued(new_run(1, 1)).await;
    bed.advance(2);
    let new = NewRun { multitask: Multitask::Interrupt, claim: Some(ME), ..new_run(2, 1) };
    let queued = bed.queued(new).await;
    let Some(Cancelled::Ended { record, events, promoted }) = queued.interrupted else {
        panic!("{:?}", queued.interrupted)
    };
    assert_eq!((record.id, record.status), (run_id(1), Status::Cancelled));
    assert_eq!((events.len(), promoted), (2, Some(run_id(2))));
    assert_eq!(queued.record.status, Status::Ready);
    assert_eq!(bed.run(run_id(2)).await, queued.record);
    assert_eq!(bed.counts(), (0, 1, 0));
}

async fn interrupting_runs_keep_their_order(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    for number in [2, 3] {
        let new = NewRun { multitask: Multitask::Interrupt, ..new_run(number, 1) };
        let queued = bed.queued(new).await;
        assert_eq!(queued.position.thread_ahead, number as u32 - 2);
    }
    bed.commit(owner.end(Status::Cancelled)).await;
    assert_eq!(bed.status(run_id(2)).await, Status::Ready);
    assert_eq!(bed.status(run_id(3)).await, Status::Blocked);
}

async fn the_same_run_id_is_the_same_run(bed: Bed) {
    let queued = bed.queued(new_run(1, 1)).await;
    match bed.create(new_run(1, 1)).await {
        Admission::Existing(record) => assert_eq!(*record, queued.record),
        other => panic!("{other:?}"),
    }
    assert_eq!(bed.counts(), (0, 1, 0));
    assert_eq!(bed.store.thread(thread_id(1)).await.unwrap().unwrap().ord, 1);
}

fn with_key(new: NewRun, key: &str, body: u8) -> NewRun {
    let idempotency = Idempotency { route: "/chat".into(), key: key.into(), body: [body; 32] };
    NewRun { idempotency: Some(idempotency), ..new }
}

async fn the_same_key_is_the_same_run(bed: Bed) {
    bed.queued(with_key(new_run(1, 1), "k", 1)).await;
    match bed.create(with_key(new_run(2, 2), "k", 1)).await {
        Admission::Existing(record) => assert_eq!(record.id, run_id(1)),
        other => panic!("{other:?}"),
    }
    assert_eq!(bed.store.run(run_id(2)).await.unwrap(), None);
    assert_eq!(bed.store.thread(thread_id(2)).await.unwrap(), None);
}

async fn a_key_with_another_body_is_a_conflict(bed: Bed) {
    bed.queued(with_key(new_run(1, 1), "k", 1)).await;
    let error = bed.store.create_run(with_key(new_run(2, 2), "k", 2)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::IdempotencyConflict);
    assert!(error.certainly_aborted && !error.is_transient());
    assert!(error.message.contains("`k`"), "{error}");
    bed.queued(with_key(new_run(2, 2), "other", 2)).await;
}

async fn keys_are_apart_by_tenant_and_route(bed: Bed) {
    bed.queued(with_key(new_run(1, 1), "k", 1)).await;
    bed.queued(with_key(NewRun { tenant: "other".into(), ..new_run(2, 2) }, "k", 1)).await;
    let mut new = with_key(new_run(3, 3), "k", 1);
    new.idempotency.as_mut().unwrap().route = "/runs".into();
    bed.queued(new).await;
}

async fn keys_are_forgotten_after_a_day(bed: Bed) {
    bed.queued(with_key(new_run(1, 1), "k", 1)).await;
    bed.advance(24 * 3600 - 1);
    bed.sweep().await;
    let answer = bed.create(with_key(new_run(2, 2), "k", 1)).await;
    assert!(matches!(answer, Admission::Existing(_)), "{answer:?}");
    bed.advance(1);
    bed.queued(with_key(new_run(2, 2), "k", 2)).await;
    // The key stands for the new run now, swept or not.
    bed.sweep().await;
    match bed.create(with_key(new_run(3, 3), "k", 2)).await {
        Admission::Existing(record) => assert_eq!(record.id, run_id(2)),
        other => panic!("{other:?}"),
    }
}

async fn a_full_queue_refuses(bed: Bed) {
    let new = |number| NewRun { queue_limit: 2, ..new_run(number, number) };
    bed.queued(new(1)).await;
    bed.queued(new(2)).await;
    let answer = bed.create(new(3)).await;
    assert!(matches!(answer, Admission::QueueFull { queued: 2 }), "{answer:?}");
    bed.queued(NewRun { pool: "other".into(), ..new(4) }).await;
    assert_eq!(bed.claim(1).await.len(), 1);
    bed.queued(new(3)).await;
}

async fn a_full_queue_lets_through_what_can_start(bed: Bed) {
    bed.started(NewRun { queue_limit: 0, ..new_run(1, 1) }).await;
    let answer = bed.create(NewRun { queue_limit: 0, ..new_run(2, 2) }).await;
    assert!(matches!(answer, Admission::QueueFull { queued: 0 }), "{answer:?}");
}

async fn blocked_runs_count_as_queued(bed: Bed) {
    bed.started(new_run(1, 1)).await;
    bed.queued(new_run(2, 1)).await;
    let answer = bed.create(NewRun { queue_limit: 1, ..new_run(3, 1) }).await;
    assert!(matches!(answer, Admission::QueueFull { queued: 1 }), "{answer:?}");
}

async fn refused_runs_leave_nothing(bed: Bed) {
    let new = NewRun { queue_limit: 0, ..with_key(new_run(1, 1), "k", 1) };
    bed.create(new.clone()).await;
    assert_eq!(bed.store.thread(thread_id(1)).await.unwrap(), None);
    assert_eq!(bed.counts(), (0, 0, 0));
    bed.queued(NewRun { queue_limit: 1, id: run_id(2), ..new }).await;
}

async fn a_thread_that_must_exist(bed: Bed) {
    let new = NewRun { thread_must_exist: true, ..new_run(1, 1) };
    let answer = bed.create(new.clone()).await;
    assert!(matches!(answer, Admission::ThreadNotFound), "{answer:?}");
    bed.queued(new_run(2, 1)).await;
    bed.queued(new).await;
}

async fn threads_belong_to_tenants(bed: Bed) {
    bed.queued(new_run(1, 1)).await;
    let answer = bed.create(NewRun { tenant: "other".into(), ..new_run(2, 1) }).await;
    assert!(matches!(answer, Admission::ThreadForbidden), "{answer:?}");
}

async fn threads_belong_to_owners(bed: Bed) {
    let owned = |number, thread, owner: &str| NewRun {
        owner: Some(owner.to_owned()),
        ..new_run(number, thread)
    };
    bed.queued(owned(1, 1, "ann")).await;
    for new in [owned(2, 1, "bob"), new_run(2, 1)] {
        let answer = bed.create(new).await;
        assert!(matches!(answer, Admission::ThreadForbidden), "{answer:?}");
    }
    bed.queued(owned(2, 1, "ann")).await;
    // A thread without an owner is open to its tenant.
    bed.queued(new_run(3, 2)).await;
    bed.queued(owned(4, 2, "bob")).await;
    assert_eq!(bed.store.thread(thread_id(2)).await.unwrap().unwrap().owner, None);
}

async fn a_thread_keeps_its_first_facts(bed: Bed) {
    bed.queued(new_run(1, 1)).await;
    let mut second = new_run(2, 1);
    second.thread_key = Some(ThreadKey::new("cofounder", &["x"]));
    second.thread_metadata.insert("late".into(), json!(true));
    bed.advance(5);
    bed.queued(second).await;
    let thread = bed.store.thread(thread_id(1)).await.unwrap().unwrap();
    assert_eq!((thread.key, thread.metadata), (None, Map::new()));
    assert_eq!((thread.created_at, thread.updated_at), (START, bed.now()));
}

async fn everything_of_a_new_run_is_kept(mut bed: Bed) {
    let mut new = new_run(1, 1);
    new.owner = Some("ann".into());
    bed.queued(new_run(77, 77)).await;
    new.parent = Some(run_id(77));
    new.options.webhook = Some("https://example.com/told".to_owned());
    new.options.budget.calls = Some(7);
    new.agent = "cofounder".into();
    new.door = "knowledge".into();
    new.pool = "slow".into();
    new.priority = Priority::HIGH;
    new.metadata.insert("tag".into(), json!({"deep": [1, 2.5, null]}));
    new.input = json!({"messages": [{"type": "human", "content": "grüße ☕"}], "x": 0.1});
    new.deadline = Some(Duration::from_millis(1500));
    new.working_limit = Some(Duration::from_secs(1800));
    let queued = bed.queued(new.clone()).await;
    bed.restart().await;
    let record = bed.run(run_id(1)).await;
    assert_eq!(record, queued.record);
    assert_eq!(record.metadata, new.metadata);
    assert_eq!(record.input, new.input);
    assert_eq!((record.parent, &record.options), (new.parent, &new.options));
    assert_eq!((record.priority, &*record.pool), (Priority::HIGH, "slow"));
    assert_eq!((&*record.agent, &*record.door), ("cofounder", "knowledge"));
    assert_eq!(record.deadline_at, Some(Timestamp(START.0 + 1500)));
    assert_eq!(record.working_limit, new.working_limit);
    assert_eq!((record.step, record.commits, record.next_seq, record.committed_seq), (-1, 0, 1, 1));
    // A large input is kept as well.
    let mut large = new_run(2, 2);
    large.input = json!({"text": "word ".repeat(20_000)});
    bed.queued(large.clone()).await;
    assert_eq!(bed.run(run_id(2)).await.input, large.input);
}

async fn positions_of_ready_runs(bed: Bed) {
    bed.queued(new_run(1, 1)).await;
    bed.advance(1);
    bed.queued(NewRun { priority: Priority::HIGH, ..new_run(2, 2) }).await;
    bed.queued(NewRun { priority: Priority::LOW, ..new_run(3, 3) }).await;
    bed.queued(NewRun { tenant: "other".into(), ..new_run(4, 4) }).await;
    bed.queued(NewRun { pool: "other".into(), ..new_run(5, 5) }).await;
    for (number, ahead) in [(1, 1), (2, 0), (3, 3), (4, 2), (5, 0)] {
        let position = bed.store.queue_position(run_id(number)).await.unwrap();
        let expected = QueuePosition { pool_ahead: ahead, ..QueuePosition::default() };
        assert_eq!(position, Some(expected), "run {number}");
    }
    bed.claim(1).await;
    assert_eq!(bed.store.queue_position(run_id(2)).await.unwrap(), None, "it runs");
    assert_eq!(bed.store.queue_position(run_id(9)).await.unwrap(), None, "there is none");
}

async fn positions_of_blocked_runs(bed: Bed) {
    bed.started(new_run(9, 1)).await;
    bed.queued(new_run(1, 8)).await;
    for number in [2, 3] {
        let queued = bed.queued(new_run(number, 1)).await;
        let expected = QueuePosition {
            pool_ahead: 1,
            thread_active: Some(run_id(9)),
            thread_ahead: number as u32 - 2,
        };
        assert_eq!(queued.position, expected);
        assert_eq!(bed.store.queue_position(run_id(number)).await.unwrap(), Some(expected));
    }
}

async fn far_positions_are_only_far(bed: Bed) {
    for number in 1..=1001 {
        bed.queued(NewRun { queue_limit: 5000, ..new_run(number, number) }).await;
    }
    let queued = bed.queued(NewRun { queue_limit: 5000, ..new_run(2000, 2000) }).await;
    assert_eq!(queued.position.pool_ahead, 1000);
}
