//! Order on threads, slots, cancel, deadlines, and what a run says it waits for.

use std::sync::Arc;
use std::time::Duration;

use clearway_core::run::Multitask;
use clearway_core::wait::WaitKind;
use clearway_core::{Code, RunId, Status};
use clearway_engine::{CancelOutcome, Engine, From, Kind};
use clearway_sim::Sim;
use clearway_store::MemStore;

use crate::support::*;

struct World {
    engine: Engine,
    sim: Sim,
    clock: Arc<TestClock>,
    store: Arc<MemStore>,
}

async fn world(slots: u32, queue: u32) -> World {
    let clock = TestClock::new();
    let store = Arc::new(MemStore::new(clock.clone()));
    let sim = sim();
    let engine = engine(store.clone(), &sim, options(slots, queue), clock.clone()).await;
    World { engine, sim, clock, store }
}

/// Polls until the run waits for `kind`.
async fn waits_for(engine: &Engine, run: RunId, kind: WaitKind) {
    for _ in 0..2000 {
        let view = engine.run(run).await.unwrap();
        if view.waiting.as_ref().is_some_and(|waiting| waiting.kind == kind) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never waited for {kind:?}: {:?}", engine.run(run).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn turns_of_one_thread_never_overlap_and_threads_do_not_wait_for_each_other() {
    let world = world(8, 100).await;
    let mut same = Vec::new();
    for n in 0..4 {
        same.push(world.engine.submit(turn("good", "same", &format!("t{n}"))).await.unwrap());
    }
    let other = world.engine.submit(turn("good", "other", "hello")).await.unwrap();
    waits_for(&world.engine, same[1].run, WaitKind::Thread).await;
    let other = world.engine.wait(other.run).await.unwrap();
    let mut last_end = None;
    for submitted in &same {
        let record = world.engine.wait(submitted.run).await.unwrap();
        ended(&record, Status::Success);
        assert!(last_end.is_none_or(|end| record.started_at.unwrap() >= end), "I1: turns overlap");
        last_end = record.ended_at;
    }
    assert!(other.ended_at.unwrap() < last_end.unwrap(), "another thread had to wait");
    let texts: Vec<String> = conversation(&world.engine, same[0].thread)
        .await
        .into_iter()
        .filter(|(role, _)| role == "human")
        .map(|(_, text)| text)
        .collect();
    assert_eq!(texts, ["t0", "t1", "t2", "t3"], "I9: in admission order");
}

#[tokio::test(start_paused = true)]
async fn reject_and_interrupt_do_as_they_say() {
    let world = world(8, 100).await;
    let first = world.engine.submit(turn("silent", "c", "one")).await.unwrap();
    waits_for(&world.engine, first.run, WaitKind::FirstByte).await;
    let mut second = turn("good", "c", "two");
    second.multitask = Some(Multitask::Reject);
    let error = world.engine.submit(second).await.unwrap_err();
    assert_eq!(error.code(), Code::ThreadBusy);
    let queued = world.engine.submit(turn("good", "c", "three")).await.unwrap();
    let mut fourth = turn("good", "c", "four");
    fourth.multitask = Some(Multitask::Interrupt);
    let fourth = world.engine.submit(fourth).await.unwrap();
    ended(&world.engine.wait(first.run).await.unwrap(), Status::Cancelled);
    let fourth = world.engine.wait(fourth.run).await.unwrap();
    let queued = world.engine.wait(queued.run).await.unwrap();
    ended(&fourth, Status::Success);
    assert!(fourth.ended_at <= queued.started_at, "the interrupting turn goes first");
}

#[tokio::test(start_paused = true)]
async fn a_full_pool_queues_and_then_refuses_with_a_time() {
    let world = world(1, 2).await;
    let first = world.engine.submit(turn("silent", "a", "x")).await.unwrap();
    let second = world.engine.submit(turn("good", "b", "x")).await.unwrap();
    let third = world.engine.submit(turn("good", "c", "x")).await.unwrap();
    assert_eq!(third.position.unwrap().pool_ahead, 1);
    let error = world.engine.submit(turn("good", "d", "x")).await.unwrap_err();
    assert_eq!(error.code(), Code::Overloaded);
    assert!(error.0.retry_after.is_some());
    assert_eq!(error.0.detail["queue_position"], 2);
    waits_for(&world.engine, second.run, WaitKind::Slot).await;
    world.engine.cancel(first.run, "test").await.unwrap();
    ended(&world.engine.wait(second.run).await.unwrap(), Status::Success);
    ended(&world.engine.wait(third.run).await.unwrap(), Status::Success);
}

#[tokio::test(start_paused = true)]
async fn cancel_stops_at_every_stage_and_frees_everything() {
    let world = world(2, 10).await;
    // Before the first token, after it, and while queued behind the two.
    let silent = world.engine.submit(turn("silent", "a", "x")).await.unwrap();
    let stalled = world.engine.submit(turn("stalls", "b", "x")).await.unwrap();
    waits_for(&world.engine, silent.run, WaitKind::FirstByte).await;
    waits_for(&world.engine, stalled.run, WaitKind::NextToken).await;
    let queued = world.engine.submit(turn("good", "c", "x")).await.unwrap();
    assert_eq!(world.sim.stats().in_flight, 2);

    let before = tokio::time::Instant::now();
    let outcome = world.engine.cancel(queued.run, "test").await.unwrap();
    assert!(matches!(outcome, CancelOutcome::Ended(_)));
    for run in [silent.run, stalled.run] {
        assert!(matches!(
            world.engine.cancel(run, "test").await.unwrap(),
            CancelOutcome::Requested
        ));
        ended(&world.engine.wait(run).await.unwrap(), Status::Cancelled);
    }
    assert!(before.elapsed() < Duration::from_millis(50), "took {:?}", before.elapsed());
    while world.sim.stats().in_flight > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.sim.stats().aborted_by_client, 2, "the provider saw both sockets close");
    let log = whole_log(&world.engine, stalled.run).await;
    let receipt = log.iter().find_map(|event| match &event.body {
        clearway_core::event::Body::Fact(fact)
            if fact.kind == clearway_core::EventKind::CancelRequested =>
        {
            Some(fact.json())
        }
        _ => None,
    });
    assert_eq!(receipt.unwrap()["receipt"]["socket_closed"], true);
    let after = world.engine.cancel(silent.run, "test").await.unwrap();
    assert!(matches!(after, CancelOutcome::AlreadyEnded(_)), "twice is harmless");
    let missing = world.engine.cancel(RunId(world.engine.new_id()), "test").await.unwrap_err();
    assert_eq!(missing.code(), Code::RunNotFound);
    ended(
        &{
            let next = world.engine.submit(turn("good", "a", "y")).await.unwrap();
            world.engine.wait(next.run).await.unwrap()
        },
        Status::Success,
    );
}

#[tokio::test(start_paused = true)]
async fn a_deadline_says_where_the_time_went() {
    let world = world(8, 10).await;
    for (model, phase) in
        [("silent", "first_byte"), ("stalls", "next_token"), ("drips", "next_token")]
    {
        let mut submit = turn(model, model, "x");
        submit.kind = Kind::Turn { deadline: Some(Duration::from_secs(12)) };
        let before = tokio::time::Instant::now();
        let submitted = world.engine.submit(submit).await.unwrap();
        let record = world.engine.wait(submitted.run).await.unwrap();
        ended(&record, Status::Timeout);
        let took = before.elapsed();
        assert!(
            took >= Duration::from_secs(12) && took < Duration::from_millis(12_250),
            "{model}: {took:?}"
        );
        let failure = record.failure.unwrap();
        assert_eq!(failure.code, Code::DeadlineExceeded);
        assert_eq!(failure.detail["phase"], phase, "{model}");
        assert!(failure.message.starts_with("12.0 s spent: "), "{}", failure.message);
        assert!(failure.message.contains(phase), "{}", failure.message);
    }
    assert_eq!(world.sim.stats().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn a_queued_run_ends_at_its_deadline_too() {
    let world = world(1, 10).await;
    let mut holder = turn("silent", "a", "x");
    holder.kind = Kind::Background { working_limit: None };
    let holder = world.engine.submit(holder).await.unwrap();
    let mut waiting = turn("good", "b", "x");
    waiting.kind = Kind::Turn { deadline: Some(Duration::from_secs(3)) };
    let before = tokio::time::Instant::now();
    let waiting = world.engine.submit(waiting).await.unwrap();
    let record = world.engine.wait(waiting.run).await.unwrap();
    ended(&record, Status::Timeout);
    assert!(before.elapsed() < Duration::from_millis(3250), "{:?}", before.elapsed());
    whole_log(&world.engine, waiting.run).await;
    world.engine.cancel(holder.run, "test").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn many_readers_see_the_same_whole_log_and_share_frames() {
    let world = world(8, 10).await;
    let run = world.engine.submit(turn("good", "c", "x")).await.unwrap().run;
    let mut readers = Vec::new();
    for _ in 0..8 {
        let mut subscription = world.engine.subscribe(run, From::Start).await.unwrap();
        readers.push(async move {
            let mut events = Vec::new();
            while let Some(batch) = subscription.next().await.unwrap() {
                events.extend(batch);
            }
            events
        });
    }
    let logs = futures_util::future::join_all(readers).await;
    let reference = whole_log(&world.engine, run).await;
    for log in &logs {
        assert_eq!(log, &reference);
    }
    let delta = reference
        .iter()
        .position(|event| event.kind() == clearway_core::EventKind::MessageDelta)
        .unwrap();
    let frame = logs[0][delta].frames.get_or_render(0, || bytes::Bytes::from("frame")).as_ptr();
    let shared = logs[1][delta].frames.get_or_render(0, || panic!("rendered again")).as_ptr();
    assert_eq!(frame, shared);
}

#[tokio::test(start_paused = true)]
async fn shutdown_hands_unfinished_runs_back_and_the_next_process_finishes_them() {
    let world = world(8, 10).await;
    let mut lives = Vec::new();
    for n in 0..3 {
        let mut submit = turn("good", &format!("c{n}"), "x");
        submit.kind = Kind::Background { working_limit: None };
        lives.push(world.engine.submit(submit).await.unwrap().run);
    }
    waits_for(&world.engine, lives[2], WaitKind::NextToken).await;
    let before = tokio::time::Instant::now();
    world.engine.shutdown(Duration::from_millis(100)).await;
    assert!(before.elapsed() < Duration::from_secs(1), "{:?}", before.elapsed());
    assert_eq!(
        world.engine.submit(turn("good", "z", "x")).await.unwrap_err().code(),
        Code::ShuttingDown
    );
    let next = engine(world.store.clone(), &world.sim, options(8, 10), world.clock.clone()).await;
    for run in lives {
        let record = next.wait(run).await.unwrap();
        ended(&record, Status::Success);
        assert_eq!(record.fruitless, 0, "a graceful hand-over is not held against the run");
        whole_log(&next, run).await;
        assert_eq!(conversation(&next, record.thread).await.len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_reset_thread_starts_over() {
    let world = world(8, 10).await;
    let first = world.engine.submit(turn("good", "c", "one")).await.unwrap();
    world.engine.wait(first.run).await.unwrap();
    let second = world.engine.submit(turn("silent", "c", "two")).await.unwrap();
    waits_for(&world.engine, second.run, WaitKind::FirstByte).await;
    let reset = world.engine.reset_thread(first.thread).await.unwrap().unwrap();
    assert_eq!((reset.generation, reset.cancelled), (1, 1));
    ended(&world.engine.wait(second.run).await.unwrap(), Status::Cancelled);
    let third = world.engine.submit(turn("good", "c", "three")).await.unwrap();
    ended(&world.engine.wait(third.run).await.unwrap(), Status::Success);
    let texts = conversation(&world.engine, first.thread).await;
    assert_eq!(texts.len(), 2, "the conversation begins anew: {texts:?}");
    assert_eq!(texts[0].1, "three");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_gone_is_a_clear_end_not_a_hang() {
    let world = world(8, 10).await;
    let error = world.engine.submit(turn("nobody", "c", "x")).await.unwrap_err();
    assert_eq!(error.code(), Code::AgentNotFound);
    assert!(error.0.message.contains("good"), "{error}");
}
