//! Who gets the next slot.

use std::collections::BTreeMap;

use super::*;

on_every_store! {
    nothing_to_claim
    a_claim_raises_fence_and_attempt
    older_runs_go_first
    higher_priorities_go_first
    waiting_raises_the_priority
    slots_are_shared_between_tenants
    slots_are_shared_by_weight
    slots_already_held_count
    priority_goes_before_fairness
    only_named_pools_are_touched
    claims_take_many_at_once
    a_released_run_is_ready_again
    only_the_owner_can_release
    waiting_for_a_slot_is_booked
    waiting_for_the_thread_is_booked
    a_claim_names_the_threads_head
    numbers_follow_the_stored_tail
    fruitless_claims_are_counted
}

fn ids(claims: &[Claim]) -> Vec<u128> {
    claims.iter().map(|claim| claim.record.id.0.as_u128()).collect()
}

fn tenants(claims: &[Claim]) -> BTreeMap<&str, u32> {
    let mut counts = BTreeMap::new();
    for claim in claims {
        *counts.entry(&*claim.record.tenant).or_default() += 1;
    }
    counts
}

/// `count` ready runs of a tenant, each on its thread.
async fn crowd(bed: &Bed, tenant: &str, first: u128, count: u128) {
    for number in first..first + count {
        bed.queued(NewRun { tenant: tenant.to_owned(), ..new_run(number, number) }).await;
    }
}

async fn nothing_to_claim(bed: Bed) {
    assert!(bed.claim(3).await.is_empty());
    bed.queued(new_run(1, 1)).await;
    assert!(bed.claim(0).await.is_empty());
    let request = ClaimRequest { me: ME, slots: Vec::new(), ageing: AGEING };
    assert!(bed.store.claim(request).await.unwrap().is_empty());
}

async fn a_claim_raises_fence_and_attempt(bed: Bed) {
    bed.queued(new_run(1, 1)).await;
    bed.advance(3);
    let claim = bed.claim(1).await.remove(0);
    let record = claim.record;
    assert_eq!((record.fence, record.attempt, record.fruitless), (1, 1, 0));
    assert_eq!((record.status, record.instance), (Status::Running, Some(ME)));
    assert_eq!(record.started_at, Some(bed.now()));
    assert!(claim.created.is_none());
    assert_eq!(bed.run(run_id(1)).await, record);
    assert!(bed.claim(1).await.is_empty(), "it is taken");
    assert_eq!(bed.counts(), (0, 0, 1));
}

async fn older_runs_go_first(bed: Bed) {
    for number in [3, 1, 2] {
        bed.queued(new_run(number, number)).await;
        bed.advance(1);
    }
    assert_eq!(ids(&bed.claim(1).await), [3]);
    assert_eq!(ids(&bed.claim(5).await), [1, 2]);
}

async fn higher_priorities_go_first(bed: Bed) {
    for level in [5, 3, 1, 4, 2] {
        let priority = Priority::new(level).unwrap();
        let number = u128::from(level);
        bed.queued(NewRun { priority, ..new_run(number, number) }).await;
    }
    assert_eq!(ids(&bed.claim(5).await), [1, 2, 3, 4, 5]);
}

async fn waiting_raises_the_priority(bed: Bed) {
    bed.queued(NewRun { priority: Priority::LOW, ..new_run(1, 1) }).await;
    bed.advance(59);
    bed.queued(NewRun { priority: Priority::HIGH, ..new_run(2, 2) }).await;
    assert_eq!(ids(&bed.claim(1).await), [2], "one level gained is not enough");
    bed.queued(NewRun { priority: Priority::HIGH, ..new_run(3, 3) }).await;
    bed.advance(1);
    assert_eq!(ids(&bed.claim(1).await), [1], "two levels are, and it is older");
}

async fn slots_are_shared_between_tenants(bed: Bed) {
    crowd(&bed, "a", 1, 20).await;
    crowd(&bed, "b", 100, 20).await;
    crowd(&bed, "c", 200, 2).await;
    let claims = bed.claim(10).await;
    assert_eq!(tenants(&claims), [("a", 4), ("b", 4), ("c", 2)].into());
    assert_eq!(ids(&claims)[0], 1, "the oldest goes first");
}

async fn slots_are_shared_by_weight(bed: Bed) {
    crowd(&bed, "a", 1, 20).await;
    crowd(&bed, "b", 100, 20).await;
    crowd(&bed, "heavy", 200, 20).await;
    let claims = bed.claim(12).await;
    assert_eq!(tenants(&claims), [("a", 3), ("b", 3), ("heavy", 6)].into());
}

async fn slots_already_held_count(bed: Bed) {
    crowd(&bed, "a", 1, 20).await;
    bed.claim(4).await;
    crowd(&bed, "b", 100, 20).await;
    assert_eq!(tenants(&bed.claim(4).await), [("b", 4)].into());
    assert_eq!(tenants(&bed.claim(2).await), [("a", 1), ("b", 1)].into());
    // In another pool everybody starts from nothing.
    bed.queued(NewRun { tenant: "a".into(), pool: "other".into(), ..new_run(500, 500) }).await;
    bed.queued(NewRun { tenant: "b".into(), pool: "other".into(), ..new_run(501, 501) }).await;
    assert_eq!(ids(&bed.claim_in("other", 1).await), [500]);
}

async fn priority_goes_before_fairness(bed: Bed) {
    crowd(&bed, "a", 1, 5).await;
    bed.claim(5).await;
    bed.queued(NewRun { tenant: "b".into(), ..new_run(10, 10) }).await;
    bed.queued(NewRun { tenant: "a".into(), priority: Priority::HIGH, ..new_run(11, 11) }).await;
    assert_eq!(ids(&bed.claim(1).await), [11]);
}

async fn only_named_pools_are_touched(bed: Bed) {
    for (number, pool) in [(1, "chat"), (2, "slow"), (3, "bulk")] {
        bed.queued(NewRun { pool: pool.into(), ..new_run(number, number) }).await;
    }
    let slots = vec![("slow".to_owned(), 4), ("chat".to_owned(), 4), ("none".to_owned(), 4)];
    let claims = bed.store.claim(ClaimRequest { me: ME, slots, ageing: AGEING }).await.unwrap();
    assert_eq!(ids(&claims), [2, 1]);
    assert_eq!(bed.status(run_id(3)).await, Status::Ready);
}

async fn claims_take_many_at_once(bed: Bed) {
    crowd(&bed, "a", 1, 150).await;
    let claims = bed.claim(140).await;
    assert_eq!(ids(&claims), (1..=140).collect::<Vec<_>>());
    assert_eq!(bed.counts(), (0, 10, 140));
}

async fn a_released_run_is_ready_again(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.advance(7);
    assert!(bed.store.release(owner.run, owner.fence).await.unwrap());
    let record = bed.run(owner.run).await;
    assert_eq!((record.status, record.fence, record.instance), (Status::Ready, 2, None));
    assert_eq!((record.attempt, record.ready_at), (1, bed.now()));
    assert_eq!(bed.commit(owner.end(Status::Success)).await, CommitAck::Fenced);
    assert_eq!(bed.claim_one().await.fence, 3);
}

async fn only_the_owner_can_release(bed: Bed) {
    let owner = bed.started(new_run(1, 1)).await;
    for (run, fence) in [(owner.run, 0), (owner.run, 2), (run_id(9), 1)] {
        assert!(!bed.store.release(run, fence).await.unwrap());
    }
    assert!(bed.store.release(owner.run, 1).await.unwrap());
    assert!(!bed.store.release(owner.run, 1).await.unwrap(), "twice");
    assert_eq!(bed.counts(), (0, 1, 0));
}

async fn waiting_for_a_slot_is_booked(bed: Bed) {
    bed.queued(NewRun { delay: Duration::from_secs(2), ..new_run(1, 1) }).await;
    bed.advance(5);
    let owner = bed.claim_one().await;
    assert_eq!(owner.claim.record.spent.to_json(), json!({"slot": 3000}));
    assert_eq!(bed.run(owner.run).await.spent, owner.claim.record.spent);
    bed.advance(10);
    bed.store.release(owner.run, owner.fence).await.unwrap();
    bed.advance(1);
    let owner = bed.claim_one().await;
    assert_eq!(owner.claim.record.spent.to_json(), json!({"slot": 4000}));
}

async fn waiting_for_the_thread_is_booked(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.queued(new_run(2, 1)).await;
    bed.advance(4);
    bed.commit(owner.end(Status::Success)).await;
    assert_eq!(bed.run(run_id(2)).await.ready_at, bed.now());
    bed.advance(1);
    let owner = bed.claim_one().await;
    assert_eq!(owner.claim.record.spent.to_json(), json!({"thread": 4000, "slot": 1000}));
}

async fn a_claim_names_the_threads_head(bed: Bed) {
    let mut first = bed.started(new_run(1, 1)).await;
    let step = first.step(&[("log", append("a")), ("log", append("b"))]);
    let head = step.checkpoints[0].0;
    bed.commit(step).await;
    bed.commit(first.end(Status::Success)).await;
    let second = bed.started(new_run(2, 1)).await;
    assert_eq!((second.claim.head, second.claim.thread_version), (Some(head), 2));
    bed.queued(new_run(3, 1)).await;
    bed.store.release(second.run, second.fence).await.unwrap();
    let again = bed.claim_one().await;
    assert_eq!((again.run, again.claim.head), (second.run, Some(head)));
}

async fn numbers_follow_the_stored_tail(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.commit(owner.step(&[])).await;
    let output = owner.tokens(5);
    bed.store.append(vec![output]).await.unwrap();
    bed.store.release(owner.run, owner.fence).await.unwrap();
    let record = bed.claim_one().await.claim.record;
    assert_eq!((record.next_seq, record.committed_seq), (7, 2));
}

async fn fruitless_claims_are_counted(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    for fruitless in 1..=3 {
        bed.store.release(owner.run, owner.fence).await.unwrap();
        assert_eq!(bed.run(owner.run).await.fruitless, fruitless - 1, "counted by the claim");
        owner = bed.claim_one().await;
        assert_eq!(owner.claim.record.fruitless, fruitless);
    }
    bed.commit(owner.step(&[])).await;
    assert_eq!(bed.run(owner.run).await.fruitless, 0, "a superstep resets it");
    bed.store.release(owner.run, owner.fence).await.unwrap();
    let mut owner = bed.claim_one().await;
    assert_eq!(owner.claim.record.fruitless, 0, "the last claim did commit");
    // Handing back gracefully is nobody's failure.
    bed.commit(owner.commit(StepOutcome::Release)).await;
    let owner = bed.claim_one().await;
    assert_eq!((owner.claim.record.fruitless, owner.claim.record.attempt), (0, 6));
}
