//! Starting ahead, late answers of admissions, slots.

use clearway_core::log::Log;
use clearway_core::run::Multitask;
use clearway_core::wait::WaitKind;
use clearway_core::{Code, Timestamp};
use clearway_engine::{Kind, PoolOptions};
use clearway_store::{ErrorKind, Fate, Fault, When};

use super::*;

fn background(agent: &str, conversation: &str, text: &str) -> clearway_engine::Submit {
    let mut submit = turn(agent, conversation, text);
    submit.kind = Kind::Background { working_limit: None };
    submit
}

async fn running(engine: &Engine, run: RunId) {
    until("running", async || engine.run(run).await.unwrap().record.status == Status::Running)
        .await;
}

/// The dispatcher may claim a queued run before its submitter hears that it is queued.
#[tokio::test(start_paused = true)]
async fn a_late_queued_answer_does_not_disturb_the_running_run() {
    let clock = TestClock::new();
    let store = Late::new(&clock);
    let agents = vec![chat("slow", chatty(ms(10)))];
    let engine = start(store.clone(), options(1, 10), &clock, agents).await;
    let holder = engine.submit(turn("slow", "a", "x")).await.unwrap();
    store.delay("create_run", Side::After, ms(350));
    let submitted = tokio::join!(engine.submit(turn("slow", "b", "x")), async {
        tokio::time::sleep(ms(100)).await;
        engine.cancel(holder.run, "test").await.unwrap();
    });
    let run = submitted.0.unwrap().run;
    let record = engine.wait(run).await.expect("the run is not let go of");
    ended(&record, Status::Success);
    assert_eq!(record.attempt, 1, "executed once");
    whole_log(&engine, run).await;
}

/// A misjudged start ahead is dropped together with its log.
#[tokio::test(start_paused = true)]
async fn output_of_a_dropped_start_ahead_never_reaches_the_store() {
    let clock = TestClock::new();
    let store = Late::new(&clock);
    let agents = vec![chat("count", chatty(ms(20)))];
    let engine = start(store.clone(), options(4, 10), &clock, agents).await;
    let first = engine.submit(turn("count", "c", "one")).await.unwrap();
    running(&engine, first.run).await;
    tokio::time::sleep(ms(30)).await;
    // The reset turn leaves a state in the cache that is no longer the thread's.
    engine.reset_thread(first.thread).await.unwrap().unwrap();
    ended(&engine.wait(first.run).await.unwrap(), Status::Cancelled);
    tokio::time::sleep(ms(300)).await;
    store.delay("create_run", Side::Before, ms(150));
    let second = engine.submit(turn("count", "c", "two")).await.unwrap();
    let record = engine.wait(second.run).await.unwrap();
    ended(&record, Status::Success);
    let reply = engine.reply(&record).await.unwrap().unwrap().content.text();
    let live = text_of(&whole_log(&engine, second.run).await);
    let stored = store.mem.read_log(second.run, 0, 1 << 20).await.unwrap().events;
    assert_eq!(live, reply, "what was streamed is the reply");
    assert_eq!(text_of(&stored), reply, "what is stored is what was streamed");
}

/// The node must not be called with a conversation that the caller may not see.
#[tokio::test(start_paused = true)]
async fn a_foreign_thread_is_refused_before_anything_runs_on_it() {
    let clock = TestClock::new();
    let store = Late::new(&clock);
    let seen: Seen<usize> = Seen::default();
    let noted = seen.clone();
    let node = script(move |cx| {
        noted.lock().unwrap().push(cx.state.list(MESSAGES).len());
        say(cx, "hi".to_owned(), ms(10))
    });
    let engine = start(store.clone(), options(4, 10), &clock, vec![chat("spy", node)]).await;
    let first = engine.submit(turn("spy", "c", "secret")).await.unwrap();
    ended(&engine.wait(first.run).await.unwrap(), Status::Success);
    let mut foreign = turn("spy", "c", "what was said?");
    foreign.tenant = "other".to_owned();
    store.delay("create_run", Side::Before, ms(50));
    assert_eq!(engine.submit(foreign).await.unwrap_err().code(), Code::Forbidden);
    assert_eq!(*seen.lock().unwrap(), [1], "called with another tenant's conversation");
}

/// Nobody is started ahead of runs that wait for the same pool.
#[tokio::test(start_paused = true)]
async fn a_refused_submit_gives_its_slot_to_whoever_waits() {
    let clock = TestClock::new();
    let store = Late::new(&clock);
    let engine =
        start(store.clone(), options(2, 10), &clock, vec![chat("slow", counting(ms(1000)))]).await;
    let holder = engine.submit(turn("slow", "a", "x")).await.unwrap();
    running(&engine, holder.run).await;
    tokio::time::sleep(ms(50)).await;
    let mut rejected = turn("slow", "a", "y");
    rejected.multitask = Some(Multitask::Reject);
    store.delay("create_run", Side::Before, ms(100));
    let (rejected, waiting) = tokio::join!(engine.submit(rejected), async {
        tokio::time::sleep(ms(20)).await;
        engine.submit(turn("slow", "b", "x")).await.unwrap()
    });
    assert_eq!(rejected.unwrap_err().code(), Code::ThreadBusy);
    running(&engine, waiting.run).await;
    let record = engine.run(waiting.run).await.unwrap().record;
    let queued = record.started_at.unwrap().since(record.created_at);
    assert!(queued < ms(250), "waited {queued:?} beside a free slot");
}

/// An admission whose first answer was lost may have been queued and then claimed properly.
#[tokio::test(start_paused = true)]
async fn a_lost_queued_answer_does_not_take_the_run_from_its_task() {
    let clock = TestClock::new();
    let store = Late::new(&clock);
    let calls: Seen<RunId> = Seen::default();
    let noted = calls.clone();
    let node = script(move |cx| {
        noted.lock().unwrap().push(cx.run);
        say(cx, "hello".to_owned(), ms(300))
    });
    let engine = start(store.clone(), options(1, 10), &clock, vec![chat("slow", node)]).await;
    let holder = engine.submit(turn("slow", "a", "x")).await.unwrap();
    store.mem.inject(Fault {
        when: When::Matching(Box::new(|call| call.method == "create_run")),
        fate: Fate::LoseAnswer,
    });
    store.delay("create_run", Side::After, ms(500));
    let submitted = tokio::join!(engine.submit(turn("slow", "b", "x")), async {
        tokio::time::sleep(ms(100)).await;
        engine.cancel(holder.run, "test").await.unwrap();
    });
    let run = submitted.0.unwrap().run;
    ended(&engine.wait(run).await.expect("its task goes on"), Status::Success);
    let calls = calls.lock().unwrap().iter().filter(|&&call| call == run).count();
    assert_eq!(calls, 1, "the provider was called twice for one turn");
}

/// A handed-back run was accepted: a hiccup of the store afterwards is no refusal.
#[tokio::test(start_paused = true)]
async fn an_accepted_run_is_never_reported_as_refused() {
    let clock = TestClock::new();
    let store = Late::new(&clock);
    let engine =
        start(store.clone(), options(2, 10), &clock, vec![chat("count", counting(ms(10)))]).await;
    store.mem.inject(Fault {
        when: When::Matching(Box::new(|call| call.method == "create_run")),
        fate: Fate::LoseAnswer,
    });
    store.mem.inject(Fault {
        when: When::Matching(Box::new(|call| call.method == "release")),
        fate: Fate::Fail(ErrorKind::Busy),
    });
    let answer = engine.submit(turn("count", "c", "x")).await;
    let stored = store.mem.runs(RunQuery::default()).await.unwrap().runs.len();
    assert_eq!(stored, 1);
    assert!(answer.is_ok(), "accepted, durable, and reported as {answer:?}");
}

/// The flusher looks at a log whose commit is under way.
#[test]
fn a_log_can_be_flushed_while_its_commit_is_under_way() {
    let mut log = Log::new(1, 0);
    let fact = |kind| Body::Fact(clearway_core::event::Fact::new(kind, &serde_json::json!({})));
    log.append(Timestamp(0), fact(EventKind::RunStarted));
    log.append_hidden(Timestamp(0), fact(EventKind::RunEnded));
    assert!(log.take_for_commit().is_some());
    assert!(log.take_output().is_none(), "everything is with the commit");
}

/// The same from outside: a flush tick falls into a slow commit, and flushing goes on afterwards.
#[tokio::test(start_paused = true)]
async fn flushing_survives_a_slow_commit() {
    let clock = TestClock::new();
    let store = Late::new(&clock);
    let engine =
        start(store.clone(), options(4, 10), &clock, vec![chat("count", counting(ms(90)))]).await;
    store.delay("commit", Side::Before, ms(700));
    let first = engine.submit(turn("count", "a", "x")).await.unwrap();
    ended(&engine.wait(first.run).await.unwrap(), Status::Success);
    let node_output = engine.submit(turn("count", "a", "again")).await.unwrap();
    tokio::time::sleep(ms(700)).await;
    let stored = store.mem.read_log(node_output.run, 0, 1 << 20).await.unwrap();
    assert!(stored.end > 3, "after 700 ms only {} events of a stream are stored", stored.end);
}

/// Output that was flushed too early for an unaccepted run is flushed again by itself.
#[tokio::test(start_paused = true)]
async fn output_before_acceptance_is_stored_soon_after_it() {
    let clock = TestClock::new();
    let store = Late::new(&clock);
    let node = script(|cx| async move {
        cx.progress("thinking")?;
        tokio::time::sleep(seconds(30)).await;
        Ok(reply(&cx, "done"))
    });
    let engine = start(store.clone(), options(4, 10), &clock, vec![chat("slow", node)]).await;
    store.delay("create_run", Side::Before, ms(500));
    let run = engine.submit(turn("slow", "a", "x")).await.unwrap().run;
    tokio::time::sleep(seconds(2)).await;
    let shown = engine.events(run, clearway_engine::From::Start, 100).await.unwrap().0.len();
    let stored = store.mem.read_log(run, 0, 1 << 20).await.unwrap().end;
    assert_eq!(stored, shown as u64, "visible for 2 s and not stored");
}

/// A queued run's clock does not start anew when somebody looks at it.
#[tokio::test(start_paused = true)]
async fn looking_at_a_queued_run_does_not_lose_its_waiting_time() {
    let clock = TestClock::new();
    let store = Late::new(&clock);
    let agents = || vec![chat("slow", counting(seconds(10)))];
    let old = start(store.clone(), options(1, 10), &clock, agents()).await;
    old.submit(background("slow", "a", "x")).await.unwrap();
    old.submit(background("slow", "b", "x")).await.unwrap();
    let waiting = old.submit(background("slow", "c", "x")).await.unwrap().run;
    tokio::time::sleep(seconds(1)).await;
    let left = Arc::new(store.mem.fork(clearway_store::LoseTail::No));
    let engine = start(left, options(1, 10), &clock, agents()).await;
    tokio::time::sleep(seconds(20)).await;
    let record = engine.wait(waiting).await.unwrap();
    ended(&record, Status::Success);
    let queued = record.started_at.unwrap().since(record.created_at);
    let booked = record.spent.get(WaitKind::Slot);
    assert!(booked + ms(100) > queued, "queued for {queued:?}, booked {booked:?}");
}

/// A pool that the configuration no longer has must not strand its runs.
#[tokio::test(start_paused = true)]
async fn runs_of_a_removed_pool_reach_an_end() {
    let clock = TestClock::new();
    let store = Late::new(&clock);
    let old =
        start(store.clone(), options(1, 10), &clock, vec![chat("c", counting(ms(900)))]).await;
    old.submit(background("c", "a", "x")).await.unwrap();
    let waiting = old.submit(background("c", "b", "x")).await.unwrap().run;
    let left = Arc::new(store.mem.fork(clearway_store::LoseTail::No));
    let renamed = Options { pools: vec![PoolOptions::new("talk", 4, 10)], ..options(4, 10) };
    let agents = vec![agent("c", "talk", Plan::chat("model"), &[("model", counting(ms(900)))])];
    let engine = start(left, renamed, &clock, agents).await;
    let end = tokio::time::timeout(seconds(3600), engine.wait(waiting)).await;
    assert!(end.is_ok(), "an hour later: {:?}", engine.run(waiting).await.unwrap().record.status);
}

/// Where others wait in front, the store will not claim: a call beside it is made for nothing.
#[tokio::test(start_paused = true)]
async fn nothing_is_started_ahead_of_runs_that_wait() {
    let clock = TestClock::new();
    let store = Late::new(&clock);
    let calls: Seen<RunId> = Seen::default();
    let noted = calls.clone();
    let node = script(move |cx| {
        noted.lock().unwrap().push(cx.run);
        say(cx, "hello".to_owned(), ms(300))
    });
    let engine = start(store.clone(), options(2, 10), &clock, vec![chat("c", node)]).await;
    let one = engine.submit(turn("c", "a", "x")).await.unwrap().run;
    let two = engine.submit(turn("c", "b", "x")).await.unwrap().run;
    engine.submit(turn("c", "d", "x")).await.unwrap();
    tokio::time::sleep(ms(50)).await;
    store.delay("claim", Side::Before, ms(300));
    engine.cancel(one, "test").await.unwrap();
    engine.cancel(two, "test").await.unwrap();
    engine.wait(two).await.unwrap();
    tokio::time::sleep(ms(50)).await;
    store.delay("create_run", Side::Before, ms(50));
    let run = engine.submit(turn("c", "e", "x")).await.unwrap().run;
    ended(&engine.wait(run).await.unwrap(), Status::Success);
    let calls = calls.lock().unwrap().iter().filter(|&&call| call == run).count();
    assert_eq!(calls, 1, "one call was made for nothing");
}

/// The first turn of a new thread asks the store whether the thread exists; a second one that comes
/// meanwhile must not overtake it, and the provider must never see both.
#[tokio::test(start_paused = true)]
async fn turns_that_come_together_reach_the_provider_one_after_the_other() {
    let clock = TestClock::new();
    let store = Late::new(&clock);
    store.delay("thread", Side::Before, std::time::Duration::from_millis(50));
    let sim = sim();
    let engine = engine(store.clone(), &sim, options(8, 10), clock.clone()).await;
    let submit = |text: &'static str| {
        let engine = engine.clone();
        async move { engine.submit(turn("good", "c", text)).await.unwrap().run }
    };
    let later = async {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        submit("second").await
    };
    let (first, second) = tokio::join!(submit("first"), later);
    for run in [first, second] {
        ended(&engine.wait(run).await.unwrap(), clearway_core::Status::Success);
    }
    assert_eq!(sim.stats().peak_in_flight, 1, "two turns of a thread overlapped");
    assert_eq!(sim.stats().requests, 2, "a call was made for nothing");
    let thread = turn("good", "c", "x").thread;
    let texts: Vec<String> =
        conversation(&engine, thread).await.into_iter().map(|(_, text)| text).collect();
    assert_eq!((texts[0].as_str(), texts[2].as_str()), ("first", "second"));
}
