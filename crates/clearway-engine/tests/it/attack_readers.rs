//! Readers: every event once, an end that is one, no trace afterwards.

use std::sync::Arc;
use std::task::{Context, Wake, Waker};

use clearway_core::channel::State;
use clearway_engine::From;
use clearway_store::{ErrorKind, Fate, Fault, When};
use serde_json::json;

use super::*;

/// The run ends between the look at its row and the wait.
#[tokio::test(start_paused = true)]
async fn waiting_for_a_run_that_ends_meanwhile_does_not_hang() {
    let clock = TestClock::new();
    let store = Late::new(&clock);
    let agents = || vec![chat("c", counting(seconds(10)))];
    let old = start(store.clone(), options(1, 10), &clock, agents()).await;
    old.submit(turn("c", "a", "x")).await.unwrap();
    let queued = old.submit(turn("c", "b", "x")).await.unwrap().run;
    let third = old.submit(turn("c", "d", "x")).await.unwrap().run;
    // The next process knows the queued runs from the store only.
    let next = Late::over(store.mem.fork(clearway_store::LoseTail::No));
    let engine = start(next.clone(), options(0, 10), &clock, agents()).await;
    next.delay("run", Side::After, ms(50));
    let (waited, ()) =
        tokio::join!(tokio::time::timeout(seconds(600), engine.wait(queued)), async {
            tokio::time::sleep(ms(10)).await;
            engine.cancel(queued, "test").await.unwrap();
        });
    assert!(waited.is_ok(), "wait() hangs although the run has ended");
    next.delay("run", Side::After, ms(50));
    let (read, ()) = tokio::join!(
        tokio::time::timeout(seconds(600), async {
            let mut reader = engine.subscribe(third, From::Start).await.unwrap();
            while reader.next().await.unwrap().is_some() {}
        }),
        async {
            tokio::time::sleep(ms(10)).await;
            engine.cancel(third, "test").await.unwrap();
        }
    );
    assert!(read.is_ok(), "a reader hangs although the run has ended");
}

/// A log that stops because the run was let go of does not look like one that is complete.
#[tokio::test(start_paused = true)]
async fn a_reader_never_takes_a_lost_lease_for_the_end() {
    let clock = TestClock::new();
    let store = Late::new(&clock);
    let engine =
        start(store.clone(), options(4, 10), &clock, vec![chat("c", counting(ms(10)))]).await;
    store.mem.inject(Fault {
        when: When::Matching(Box::new(|call| call.method == "commit")),
        fate: Fate::Fail(ErrorKind::Conflict),
    });
    let run = engine.submit(turn("c", "a", "x")).await.unwrap().run;
    let mut reader = engine.subscribe(run, From::Start).await.unwrap();
    let mut seen = Vec::new();
    let clean = loop {
        match within(seconds(60), "the next event", reader.next()).await {
            Ok(Some(batch)) => seen.extend(batch),
            Ok(None) => break true,
            Err(_) => break false,
        }
    };
    assert!(!clean || shows_end(&seen), "the log is `over` without run.ended");
}

struct Counted(#[expect(dead_code, reason = "held to be counted")] Arc<()>);

impl Wake for Counted {
    fn wake(self: Arc<Self>) {}
}

/// Readers that come and go leave nothing behind in a run that is quiet for hours.
#[tokio::test(start_paused = true)]
async fn readers_that_leave_take_their_wakers_along() {
    let clock = TestClock::new();
    let store = Late::new(&clock);
    let engine = start(store, options(1, 10), &clock, vec![chat("c", counting(seconds(60)))]).await;
    engine.submit(turn("c", "a", "x")).await.unwrap();
    let queued = engine.submit(turn("c", "b", "x")).await.unwrap().run;
    let token = Arc::new(());
    for _ in 0..100 {
        let mut reader = engine.subscribe(queued, From::Now).await.unwrap();
        let waker = Waker::from(Arc::new(Counted(token.clone())));
        let poll = reader.poll_next(&mut Context::from_waker(&waker), &mut Vec::new());
        assert!(poll.is_pending());
    }
    let left = Arc::strong_count(&token) - 1;
    assert!(left <= 1, "{left} wakers of readers that are gone");
}

/// A page that is empty because nothing is new is not the last page.
#[tokio::test(start_paused = true)]
async fn an_empty_page_of_a_running_run_says_where_to_go_on() {
    let clock = TestClock::new();
    let store = Late::new(&clock);
    let engine = start(store, options(1, 10), &clock, vec![chat("c", counting(seconds(60)))]).await;
    let run = engine.submit(turn("c", "a", "x")).await.unwrap().run;
    tokio::time::sleep(ms(500)).await;
    let (events, next) = engine.events(run, From::Start, 100).await.unwrap();
    let last = next.unwrap();
    assert_eq!(last, events.last().unwrap().seq);
    let (events, next) = engine.events(run, From::AfterSeq(last), 100).await.unwrap();
    assert!(events.is_empty());
    assert_eq!(next, Some(last), "`None` means that the log is over");
}

/// A state from a snapshot behaves as the one that grew op by op.
#[test]
fn a_keyed_list_does_not_depend_on_how_it_was_built() {
    let item = json!({"id": "a"});
    let mut grown = State::new();
    grown.apply("c", Op::Merge(vec![item.clone()]));
    let mut restored = State::new();
    restored.apply("c", Op::Assign(json!([item.clone()])));
    for state in [&mut grown, &mut restored] {
        state.apply("c", Op::Add(vec![item.clone()]));
    }
    assert_eq!(grown.get("c"), restored.get("c"), "the channel's reducer was changed to `set`");
}

/// A message that is replaced many times does not weigh more each time.
#[test]
fn replacing_an_item_does_not_add_weight() {
    let mut state = State::new();
    let message = |n: u32| json!({"id": "a", "content": format!("{n:0100}")});
    state.apply("c", Op::Merge(vec![message(0)]));
    let weight = state.weight();
    for n in 1..1000 {
        state.apply("c", Op::Merge(vec![message(n)]));
    }
    assert!(state.weight() < weight * 2, "{} for one item of {weight}", state.weight());
}
