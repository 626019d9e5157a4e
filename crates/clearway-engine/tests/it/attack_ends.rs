//! Ends: exactly one, in time, whatever breaks.

use std::sync::atomic::{AtomicBool, Ordering};

use clearway_engine::{From, Kind};
use clearway_store::{ErrorKind, Fate, Fault, LoseTail, When};
use serde_json::json;

use super::*;

/// A state that cannot be read ends the run; it does not go round for ever.
#[tokio::test(start_paused = true)]
async fn a_run_whose_state_is_damaged_reaches_an_end() {
    let clock = TestClock::new();
    let store = Late::new(&clock);
    let mut limits = options(4, 10);
    limits.limits.cache_bytes = 0;
    let engine = start(store.clone(), limits, &clock, vec![chat("c", counting(ms(10)))]).await;
    let first = engine.submit(turn("c", "a", "x")).await.unwrap();
    ended(&engine.wait(first.run).await.unwrap(), Status::Success);
    for _ in 0..10_000 {
        store.mem.inject(Fault {
            when: When::Matching(Box::new(|call| call.method == "state")),
            fate: Fate::Fail(ErrorKind::Corrupt),
        });
    }
    let mut second = turn("c", "a", "y");
    second.kind = Kind::Background { working_limit: None };
    let run = engine.submit(second).await.unwrap().run;
    tokio::time::sleep(seconds(3600)).await;
    let record = store.mem.run(run).await.unwrap().unwrap();
    assert!(record.status.is_terminal(), "{:?} after {} claims", record.status, record.attempt);
}

/// The sweep looks at the earliest deadline, also when a later one came first.
#[tokio::test(start_paused = true)]
async fn a_short_deadline_behind_a_long_one_is_kept() {
    let clock = TestClock::new();
    let store = Late::new(&clock);
    let engine = start(store, options(1, 10), &clock, vec![chat("c", counting(seconds(60)))]).await;
    engine.submit(turn("c", "a", "x")).await.unwrap();
    engine.submit(turn("c", "b", "x")).await.unwrap();
    tokio::time::sleep(ms(100)).await;
    let mut short = turn("c", "d", "x");
    short.kind = Kind::Turn { deadline: Some(ms(300)) };
    let before = tokio::time::Instant::now();
    let run = engine.submit(short).await.unwrap().run;
    ended(&engine.wait(run).await.unwrap(), Status::Timeout);
    assert!(before.elapsed() < ms(550), "a deadline of 300 ms took {:?}", before.elapsed());
}

/// Whoever waits for a queued run is told that the server stops.
#[tokio::test(start_paused = true)]
async fn shutdown_tells_those_who_wait_for_queued_runs() {
    let clock = TestClock::new();
    let store = Late::new(&clock);
    let engine = start(store, options(1, 10), &clock, vec![chat("c", counting(seconds(60)))]).await;
    engine.submit(turn("c", "a", "x")).await.unwrap();
    let queued = engine.submit(turn("c", "b", "x")).await.unwrap().run;
    let mut reader = engine.subscribe(queued, From::Now).await.unwrap();
    let (waited, read, ()) = tokio::join!(
        tokio::time::timeout(seconds(60), engine.wait(queued)),
        tokio::time::timeout(seconds(60), reader.next()),
        engine.shutdown(ms(100)),
    );
    assert!(waited.is_ok(), "wait() hangs after the shutdown");
    assert!(read.is_ok(), "a reader hangs after the shutdown");
}

/// Queued runs keep their deadlines while the server drains.
#[tokio::test(start_paused = true)]
async fn queued_deadlines_hold_during_a_drain() {
    let clock = TestClock::new();
    let store = Late::new(&clock);
    let engine = start(store, options(1, 10), &clock, vec![chat("c", counting(seconds(60)))]).await;
    engine.submit(turn("c", "a", "x")).await.unwrap();
    let mut short = turn("c", "b", "x");
    short.kind = Kind::Turn { deadline: Some(seconds(3)) };
    let run = engine.submit(short).await.unwrap().run;
    let before = tokio::time::Instant::now();
    let (end, ()) = tokio::join!(
        async {
            let end = tokio::time::timeout(seconds(60), engine.wait(run)).await;
            (end, before.elapsed())
        },
        engine.shutdown(seconds(10)),
    );
    let (end, took) = end;
    assert!(took < ms(3250), "{end:?} after {took:?}");
}

/// A store that does not close must not keep the process.
#[tokio::test(start_paused = true)]
async fn shutdown_is_bounded_when_the_store_hangs() {
    let clock = TestClock::new();
    let store = Late::new(&clock);
    let engine = start(store.clone(), options(1, 10), &clock, vec![]).await;
    store.delay("close", Side::Before, seconds(3600));
    within(seconds(60), "shutdown", engine.shutdown(ms(100))).await;
}

/// A write that never comes back must not outlive the deadline by more than the store's grace.
#[tokio::test(start_paused = true)]
async fn a_commit_that_hangs_is_given_up() {
    let clock = TestClock::new();
    let store = Late::new(&clock);
    let engine =
        start(store.clone(), options(1, 10), &clock, vec![chat("c", counting(ms(10)))]).await;
    store.delay("commit", Side::Before, seconds(36_000));
    let run = engine.submit(turn("c", "a", "x")).await.unwrap().run;
    let end = tokio::time::timeout(seconds(200), engine.wait(run)).await;
    assert!(end.is_ok(), "a turn of 120 s hangs in a commit for 200 s");
}

/// A run that waits may be woken, claimed and at work before the executor that parked it hears of its
/// own commit: what that one then does must not reach the other.
#[tokio::test(start_paused = true)]
async fn a_late_answer_to_a_park_leaves_the_next_lease_alone() {
    let clock = TestClock::new();
    let store = Late::new(&clock);
    let node = script(|cx| async move {
        cx.signal("go", None).await?;
        say(cx, "abcdefghij".to_owned(), ms(500)).await
    });
    let engine = start(store.clone(), options(2, 10), &clock, vec![chat("c", node)]).await;
    store.delay("commit", Side::After, seconds(3));
    let run = engine.submit(turn("c", "a", "x")).await.unwrap().run;
    let status = async || store.mem.run(run).await.unwrap().map(|run| run.status);
    until("it waits", async || status().await == Some(Status::Waiting)).await;
    engine.signal(run, "go", json!(1), None).await.unwrap();
    let record = within(seconds(60), "the run's end", engine.wait(run)).await.unwrap();
    assert_eq!(record.status, Status::Success, "{:?}", record.failure);
}

struct Bomb(Arc<AtomicBool>);

impl Drop for Bomb {
    fn drop(&mut self) {
        if self.0.swap(false, Ordering::SeqCst) {
            panic!("a guard of a node panics");
        }
    }
}

/// A panic in a run's task is that run's trouble only, and not for ever.
#[tokio::test(start_paused = true)]
async fn a_panic_in_a_runs_task_does_not_strand_the_run() {
    let clock = TestClock::new();
    let store = Late::new(&clock);
    let armed = Arc::new(AtomicBool::new(true));
    let node = script(move |cx| {
        let bomb = Bomb(armed.clone());
        async move {
            let _bomb = bomb;
            tokio::time::sleep(seconds(5)).await;
            std::mem::drop(cx);
            Ok(Output::default())
        }
    });
    let engine = start(store.clone(), options(1, 10), &clock, vec![chat("c", node)]).await;
    let run = engine.submit(turn("c", "a", "x")).await.unwrap().run;
    tokio::time::sleep(seconds(1)).await;
    engine.cancel(run, "test").await.unwrap();
    let end = tokio::time::timeout(seconds(600), engine.wait(run)).await;
    assert!(end.is_ok(), "wait() hangs");
    tokio::time::sleep(seconds(60)).await;
    let record = store.mem.run(run).await.unwrap().unwrap();
    assert!(record.status.is_terminal(), "{:?}", record.status);
}

/// I5: what a node leaves behind cannot write after the end.
#[tokio::test(start_paused = true)]
async fn nothing_is_written_after_the_end() {
    let clock = TestClock::new();
    let store = Late::new(&clock);
    let left: Seen<Ctx> = Seen::default();
    let kept = left.clone();
    let node = script(move |cx| {
        kept.lock().unwrap().push(cx.clone());
        async move { Ok(reply(&cx, "done")) }
    });
    let engine = start(store, options(1, 10), &clock, vec![chat("c", node)]).await;
    let run = engine.submit(turn("c", "a", "x")).await.unwrap().run;
    ended(&engine.wait(run).await.unwrap(), Status::Success);
    let cx = left.lock().unwrap().pop().unwrap();
    assert!(cx.progress("still here").is_err(), "output after the end is taken");
    whole_log(&engine, run).await;
}

/// I7: output that a crash made void is announced, also when the run then ends in the queue.
#[tokio::test(start_paused = true)]
async fn void_output_is_announced_when_the_store_ends_the_run() {
    let clock = TestClock::new();
    let store = Late::new(&clock);
    let agents = || vec![chat("c", counting(ms(500)))];
    let old = start(store.clone(), options(1, 10), &clock, agents()).await;
    let mut submit = turn("c", "a", "x");
    submit.kind = Kind::Background { working_limit: None };
    let run = old.submit(submit).await.unwrap().run;
    let mut reader = Reader::default();
    let mut log = old.subscribe(run, From::Start).await.unwrap();
    while reader.text().len() < 2 {
        reader.take(log.next().await.unwrap().unwrap());
    }
    let left = Arc::new(store.mem.fork(LoseTail::Yes));
    // No slot: the run waits again, and is cancelled there.
    let engine = start(left, options(0, 10), &clock, agents()).await;
    engine.cancel(run, "test").await.unwrap();
    let from = From::AfterId(reader.last_id().unwrap());
    let mut log = engine.subscribe(run, from).await.unwrap();
    while let Some(batch) = log.next().await.unwrap() {
        reader.take(batch);
    }
    let stored = text_of(&whole_log(&engine, run).await);
    assert_eq!(reader.text(), stored, "the returning client shows what the log does not hold");
}

/// A turn's reply is the same before and after its live end has gone.
#[tokio::test(start_paused = true)]
async fn the_reply_does_not_depend_on_what_is_in_memory() {
    let clock = TestClock::new();
    let store = Late::new(&clock);
    let quiet = script(|_| async { Ok(Output::default()) });
    let nodes: &[(&str, Arc<dyn Node>)] = &[("first", counting(ms(1))), ("second", quiet)];
    let agents = || vec![agent("two", "chat", two_steps(), nodes)];
    let engine = start(store.clone(), options(4, 10), &clock, agents()).await;
    let run = engine.submit(turn("two", "a", "x")).await.unwrap().run;
    let record = engine.wait(run).await.unwrap();
    assert!(engine.reply(&record).await.unwrap().is_some(), "live");
    let later = start(store.clone(), options(4, 10), &clock, agents()).await;
    let record = later.wait(run).await.unwrap();
    assert!(later.reply(&record).await.unwrap().is_some(), "from the store");
}

/// The reply of an earlier superstep is still the reply after a takeover.
#[tokio::test(start_paused = true)]
async fn the_reply_survives_a_takeover_between_supersteps() {
    let clock = TestClock::new();
    let store = Late::new(&clock);
    let slow = script(|_| async {
        tokio::time::sleep(seconds(2)).await;
        Ok(Output::default())
    });
    let nodes: &[(&str, Arc<dyn Node>)] = &[("first", counting(ms(1))), ("second", slow)];
    let agents = || vec![agent("two", "chat", two_steps(), nodes)];
    let old = start(store.clone(), options(4, 10), &clock, agents()).await;
    let run = old.submit(turn("two", "a", "x")).await.unwrap().run;
    tokio::time::sleep(seconds(1)).await;
    let left = Arc::new(store.mem.fork(LoseTail::No));
    let engine = start(left, options(4, 10), &clock, agents()).await;
    let record = engine.wait(run).await.unwrap();
    ended(&record, Status::Success);
    let log = whole_log(&engine, run).await;
    let end = fact(log.last().unwrap());
    assert!(end["reply_message_id"].is_string(), "{end}");
}

/// A turn that failed has no reply, least of all the one of the turn before.
#[tokio::test(start_paused = true)]
async fn a_failed_turn_does_not_answer_with_the_turn_before() {
    let clock = TestClock::new();
    let store = Late::new(&clock);
    let engine = start(store, options(4, 10), &clock, vec![chat("c", counting(ms(1)))]).await;
    let first = engine.submit(turn("c", "a", "x")).await.unwrap();
    ended(&engine.wait(first.run).await.unwrap(), Status::Success);
    let mut wrong = turn("c", "a", "y");
    wrong.input = serde_json::json!({"no_such_channel": 1});
    let second = engine.submit(wrong).await.unwrap();
    let record = engine.wait(second.run).await.unwrap();
    ended(&record, Status::Error);
    let reply = engine.reply(&record).await.unwrap().map(|message| message.content.text());
    assert_eq!(reply, None);
}

/// A node that is named twice as an entry runs once.
#[test]
fn an_entry_named_twice_runs_once() {
    let plan = Builder::new().node("a").entry("a").entry("a").build().unwrap();
    assert_eq!(plan.first(RunId(uuid::Uuid::nil()), 0).due.len(), 1);
}

/// The request that ends a run is told so, however fast the run's task is.
#[tokio::test(start_paused = true)]
async fn the_cancel_that_ends_a_run_is_not_told_it_came_too_late() {
    let clock = TestClock::new();
    let store = Late::new(&clock);
    let engine =
        start(store.clone(), options(1, 10), &clock, vec![chat("c", counting(seconds(9)))]).await;
    let run = engine.submit(turn("c", "a", "x")).await.unwrap().run;
    tokio::time::sleep(ms(50)).await;
    store.delay("cancel_run", Side::Before, ms(20));
    let outcome = engine.cancel(run, "test").await.unwrap();
    assert!(
        matches!(outcome, clearway_engine::CancelOutcome::Requested),
        "answered as if it had been over before: {outcome:?}"
    );
}
