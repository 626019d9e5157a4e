//! What a run's transactions write for others to act on: webhooks and timers.

use super::*;
use crate::{Schedule, ScheduleQuery};

on_every_store! {
    every_end_is_told
    an_end_is_told_once
    a_commit_sets_timers
    a_commit_that_is_void_sets_none
}

fn told(number: u128) -> NewRun {
    let webhook = Some(format!("https://example.com/{number}"));
    NewRun { options: RunOptions { webhook, ..RunOptions::default() }, ..new_run(number, number) }
}

/// Numbers of the runs whose webhooks are due.
async fn due(bed: &Bed) -> Vec<u128> {
    let (due, next) = bed.store.due_deliveries(100).await.unwrap();
    assert_eq!(next, None);
    for delivery in &due {
        let number = delivery.run.0.as_u128();
        assert_eq!(delivery.url, format!("https://example.com/{number}"));
        assert_eq!(delivery.attempt, 0);
    }
    due.iter().map(|delivery| delivery.run.0.as_u128()).collect()
}

async fn every_end_is_told(mut bed: Bed) {
    bed.store.join(ME).await.unwrap();
    let mut committed = bed.started(told(1)).await;
    bed.commit(committed.end(Status::Success)).await;
    assert_eq!(due(&bed).await, [1]);
    bed.queued(told(2)).await;
    bed.cancel(run_id(2)).await;
    assert_eq!(due(&bed).await, [1, 2]);
    bed.queued(NewRun { deadline: Some(Duration::from_secs(5)), ..told(3) }).await;
    bed.advance(5);
    bed.sweep().await;
    assert_eq!(due(&bed).await, [1, 2, 3]);
    let mut parent = bed.started(told(4)).await;
    bed.queued(NewRun { parent: Some(parent.run), ..told(5) }).await;
    bed.commit(parent.end(Status::Error)).await;
    assert_eq!(due(&bed).await, [1, 2, 3, 4, 5]);
    let mut parked = bed.started(told(6)).await;
    bed.commit(parked.park(WaitKind::Person)).await;
    bed.queued(NewRun { multitask: Multitask::Rollback, ..new_run(7, 6) }).await;
    bed.store.reset_thread(thread_id(6)).await.unwrap();
    assert_eq!(due(&bed).await, [1, 2, 3, 4, 5, 6]);
    bed.restart().await;
    assert_eq!(due(&bed).await, [1, 2, 3, 4, 5, 6]);
}

async fn an_end_is_told_once(bed: Bed) {
    let mut owner = bed.started(told(1)).await;
    bed.commit(owner.step(&[])).await;
    bed.commit(owner.park(WaitKind::Signal)).await;
    bed.wake(owner.run, &[]).await;
    let mut owner = bed.claim_one().await;
    assert_eq!(due(&bed).await, [0u128; 0], "it goes on");
    let end = owner.end(Status::Success);
    bed.commit(end.clone()).await;
    bed.commit(end).await;
    bed.cancel(owner.run).await;
    assert_eq!(due(&bed).await, [1]);
}

fn timer(number: u128) -> Schedule {
    Schedule {
        id: Uuid::from_u128(number),
        tenant: "acme".to_owned(),
        owner: Some("ann".to_owned()),
        name: None,
        thread: Some(thread_id(1)),
        cron: None,
        timezone: None,
        next_at: Some(START.plus(Duration::from_secs(60))),
        submit: json!({"agent": "agent"}),
        only_at: Some(CheckpointId(Uuid::from_u128(3))),
        created_at: START,
        last_at: None,
        last_run: None,
        last_error: None,
    }
}

async fn a_commit_sets_timers(mut bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let end = StepCommit { schedules: vec![timer(1)], ..owner.end(Status::Success) };
    bed.commit(end.clone()).await;
    bed.commit(end).await;
    bed.restart().await;
    assert_eq!(bed.store.schedules(ScheduleQuery::default()).await.unwrap(), [timer(1)]);
    let (due, next) = bed.store.due_schedules(9).await.unwrap();
    assert_eq!((due.len(), next), (0, timer(1).next_at));
}

async fn a_commit_that_is_void_sets_none(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.store.reset_thread(thread_id(1)).await.unwrap();
    let mut end = owner.end(Status::Cancelled);
    end.schedules = vec![timer(1)];
    end.notes = vec![note(owner.task(), "interrupt:0", json!(1))];
    bed.commit(end).await;
    assert_eq!(bed.store.schedules(ScheduleQuery::default()).await.unwrap(), []);
    assert_eq!(bed.started(new_run(2, 1)).await.claim.journal, []);
}
