//! Crash points, not luck: the process dies at every store call of a reference run, before and
//! after that call takes effect, and every call's answer is lost once; each time the run ends the
//! same way, and a client that resumes sees every event once.

use std::sync::Arc;

use clearway_core::{RunId, Status};
use clearway_engine::From;
use clearway_store::{Fate, Fault, LoseTail, MemStore, When};
use clearway_testkit::sweep::Dying;

use crate::support::*;

/// How far a client got before the process died.
struct Witness {
    /// The answer to the request, if there was one: the run was acknowledged.
    run: Option<RunId>,
    reader: Reader,
}

/// Runs the reference chat until the process dies at call `at`.
async fn die_at(
    store: &Arc<MemStore>,
    clock: &Arc<TestClock>,
    at: u64,
    last_happens: bool,
) -> (Witness, u64) {
    let dying = Arc::new(Dying::new(store.clone(), at, last_happens));
    let death = dying.death();
    let reader = async {
        let engine = engine(dying.clone(), &sim(), options(4, 10), clock.clone()).await;
        let mut witness = Witness { run: None, reader: Reader::default() };
        let submitted = tokio::select! {
            submitted = engine.submit(turn("good", "c", "first")) => submitted.unwrap(),
            () = death.notified() => return witness,
        };
        witness.run = Some(submitted.run);
        let follow = async {
            let mut subscription = engine.subscribe(submitted.run, From::Start).await.unwrap();
            while let Some(batch) = subscription.next().await.unwrap() {
                witness.reader.take(batch);
            }
        };
        tokio::select! {
            () = follow => {}
            () = death.notified() => {}
        }
        witness
    };
    // The join itself may be the call that is never answered.
    let witness = tokio::select! {
        witness = reader => witness,
        () = async { if at <= 1 { death.notified().await } else { std::future::pending().await } } => {
            Witness { run: None, reader: Reader::default() }
        }
    };
    (witness, dying.calls())
}

/// Restarts on what the dead process left, and checks that nothing acknowledged was lost.
async fn resume(store: MemStore, clock: &Arc<TestClock>, witness: Witness, context: &str) {
    let engine = engine(Arc::new(store), &sim(), options(4, 10), clock.clone()).await;
    let runs =
        engine.runs(clearway_engine::RunQuery { limit: 10, ..Default::default() }).await.unwrap().0;
    assert!(runs.len() <= 1, "{context}");
    assert!(!(witness.run.is_some() && runs.is_empty()), "{context}: an acknowledged run is lost");
    let Some(run) = runs.first().map(|view| view.record.id) else { return };

    // The client of before comes back with its last event id; another one starts from the beginning.
    let mut reader = witness.reader;
    let from = reader.last_id().map_or(From::Start, From::AfterId);
    let mut subscription = engine.subscribe(run, from).await.unwrap();
    while let Some(batch) = subscription.next().await.unwrap() {
        reader.take(batch);
    }
    let record = engine.wait(run).await.unwrap();
    ended(&record, Status::Success);
    let log = whole_log(&engine, run).await;
    let reply = engine.reply(&record).await.unwrap().unwrap().content.text();
    let expected: Vec<String> = (0..30).map(|n| format!("tok{n}")).collect();
    assert_eq!(reply.split_whitespace().collect::<Vec<_>>(), expected, "{context}");
    assert_eq!(reader.text(), reply, "{context}: I7, what the returning client shows");
    let mut fresh = Reader::default();
    fresh.take(log);
    assert_eq!(fresh.text(), reply, "{context}: what a new client shows");
    assert_eq!(
        conversation(&engine, record.thread).await,
        [("human".to_owned(), "first".to_owned()), ("ai".to_owned(), reply)],
        "{context}: no message is doubled"
    );
}

#[tokio::test(start_paused = true)]
async fn a_run_survives_a_crash_at_every_store_call() {
    let clock = TestClock::new();
    let (witness, calls) =
        die_at(&Arc::new(MemStore::new(clock.clone())), &clock, u64::MAX, true).await;
    assert!(witness.run.is_some() && !witness.reader.seen.is_empty());
    assert!(calls > 5, "{calls} calls are too few to prove anything");
    for at in 1..=calls {
        for happens in [false, true] {
            for lose in [LoseTail::No, LoseTail::Yes] {
                let store = Arc::new(MemStore::new(clock.clone()));
                let (witness, _) = die_at(&store, &clock, at, happens).await;
                let context = format!("call {at} of {calls}, happened: {happens}, {lose:?}");
                resume(store.fork(lose), &clock, witness, &context).await;
            }
        }
    }
}

/// The same at every event that a reader sees: the process dies between two tokens.
#[tokio::test(start_paused = true)]
async fn a_run_survives_a_crash_at_every_event() {
    let clock = TestClock::new();
    for events in 1..40 {
        let store = Arc::new(MemStore::new(clock.clone()));
        let engine = engine(store.clone(), &sim(), options(4, 10), clock.clone()).await;
        let run = engine.submit(turn("good", "c", "first")).await.unwrap().run;
        let mut reader = Reader::default();
        let mut subscription = engine.subscribe(run, From::Start).await.unwrap();
        while reader.seen.len() < events {
            match subscription.next().await.unwrap() {
                Some(batch) => reader.take(batch),
                None => break,
            }
        }
        let left = store.fork(if events % 2 == 0 { LoseTail::Yes } else { LoseTail::No });
        let witness = Witness { run: Some(run), reader };
        resume(left, &clock, witness, &format!("after {events} events")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_changes_nothing() {
    let clock = TestClock::new();
    let (_, calls) = die_at(&Arc::new(MemStore::new(clock.clone())), &clock, u64::MAX, true).await;
    for at in 2..=calls {
        let store = Arc::new(MemStore::new(clock.clone()));
        store.inject(Fault { when: When::Call(at), fate: Fate::LoseAnswer });
        let engine = engine(store.clone(), &sim(), options(4, 10), clock.clone()).await;
        let submitted = engine.submit(turn("good", "c", "first")).await.unwrap();
        // A read that fails tells its caller; everything else is repeated until it is known.
        let record = match engine.wait(submitted.run).await {
            Ok(record) => record,
            Err(_) => engine.wait(submitted.run).await.unwrap(),
        };
        ended(&record, Status::Success);
        whole_log(&engine, submitted.run).await;
        assert_eq!(
            conversation(&engine, record.thread).await.len(),
            2,
            "call {at}: no message is doubled"
        );
    }
}
