use clearway_core::Status;

use super::*;
use crate::conformance::{ME, OTHER, Owner, START, new_run, run_id};
use crate::{Admission, ManualClock};

fn store(sharing: Sharing) -> (MemStore, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::new(START));
    (MemStore::with(clock.clone(), Policy::default(), sharing), clock)
}

async fn started(store: &MemStore, number: u128) -> Owner {
    match store.create_run(NewRun { claim: Some(ME), ..new_run(number, number) }).await.unwrap() {
        Admission::Claimed(claim) => Owner::new(*claim),
        other => panic!("not claimed: {other:?}"),
    }
}

async fn tail(store: &MemStore, run: RunId) -> u64 {
    store.run(run).await.unwrap().unwrap().next_seq
}

#[tokio::test]
async fn a_power_failure_loses_output_that_nothing_durable_followed() {
    let (store, _) = store(Sharing::Exclusive);
    let mut owner = started(&store, 1).await;
    store.append(vec![owner.tokens(3)]).await.unwrap();
    assert_eq!(tail(&store.fork(LoseTail::No), owner.run).await, 4);
    assert_eq!(tail(&store.fork(LoseTail::Yes), owner.run).await, 1);
    // Any durable operation takes what came before it along, whatever run it is about.
    started(&store, 2).await;
    store.append(vec![owner.tokens(2)]).await.unwrap();
    store.append(vec![owner.tokens(2)]).await.unwrap();
    store.crash(LoseTail::Yes);
    assert_eq!(tail(&store, owner.run).await, 4);
    let page = store.read_log(owner.run, 0, usize::MAX).await.unwrap();
    assert_eq!((page.events.len(), page.end), (4, 4));
}

#[tokio::test]
async fn a_fork_is_a_world_of_its_own() {
    let (store, _) = store(Sharing::Exclusive);
    let mut owner = started(&store, 1).await;
    let fork = store.fork(LoseTail::No);
    assert_eq!(fork.calls(), 0);
    store.commit(owner.end(Status::Success)).await.unwrap();
    assert_eq!(fork.join(OTHER).await.unwrap().resumed, 1);
    assert_eq!(store.run(owner.run).await.unwrap().unwrap().status, Status::Success);
    assert_eq!(fork.run(owner.run).await.unwrap().unwrap().status, Status::Ready);
}

#[tokio::test]
async fn a_call_can_be_made_to_fail() {
    let (store, _) = store(Sharing::Exclusive);
    let mut owner = started(&store, 1).await;
    let fate = Fate::Fail(ErrorKind::DiskFull);
    store.inject(Fault { when: When::Call(store.calls() + 2), fate });
    assert!(store.run(owner.run).await.is_ok());
    let commit = owner.end(Status::Success);
    let error = store.commit(commit.clone()).await.unwrap_err();
    assert!(error.kind == ErrorKind::DiskFull && error.certainly_aborted && error.is_transient());
    assert_eq!(store.run(owner.run).await.unwrap().unwrap().status, Status::Running);
    assert!(store.commit(commit).await.is_ok(), "once only");
}

#[tokio::test]
async fn an_answer_can_be_lost() {
    let (store, _) = store(Sharing::Exclusive);
    let matching = When::Matching(Box::new(|call| call.method == "create_run"));
    store.inject(Fault { when: matching, fate: Fate::LoseAnswer });
    let error = store.create_run(new_run(1, 1)).await.unwrap_err();
    assert!(!error.certainly_aborted && error.is_transient());
    let again = store.create_run(new_run(1, 1)).await.unwrap();
    assert!(matches!(again, Admission::Existing(record) if record.id == run_id(1)));
}

#[tokio::test]
async fn shared_stores_change_hands_only_when_a_lease_is_over() {
    let (store, clock) = store(Sharing::Shared);
    store.join(ME).await.unwrap();
    let owner = started(&store, 1).await;
    assert_eq!(store.join(OTHER).await.unwrap().resumed, 0);
    clock.advance(std::time::Duration::from_secs(10));
    assert!(store.sweep(OTHER).await.unwrap().taken_over.is_empty());
    clock.advance(std::time::Duration::from_millis(1));
    assert_eq!(store.sweep(OTHER).await.unwrap().taken_over, [owner.run]);
    // One instance that leaves does not close the store for the others.
    store.close(OTHER).await.unwrap();
    assert!(store.renew(ME).await.is_ok());
}

#[tokio::test]
async fn a_closed_store_is_opened_by_the_next_process() {
    let (store, _) = store(Sharing::Exclusive);
    store.join(ME).await.unwrap();
    store.close(ME).await.unwrap();
    assert_eq!(store.renew(ME).await.unwrap_err().kind, ErrorKind::Closed);
    store.join(OTHER).await.unwrap();
    assert!(store.renew(OTHER).await.is_ok());
}
