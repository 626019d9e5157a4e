//! Slots and the queue in front of them.

use std::pin::pin;

use super::*;

fn narrow(config: &mut Config) {
    config.providers[0].limits =
        Limits { concurrent: 2, queue: Some(3), idle_connections: 2, ..Limits::default() };
}

/// Answers after `millis`, on every request of every connection.
fn slow_provider(millis: u64) -> Rig {
    Rig::with(narrow, move |_, mut peer| async move {
        while peer.request().await.is_some() {
            peer.head().await;
            peer.token("one").await;
            tokio::time::sleep(Duration::from_millis(millis)).await;
            peer.token(" two three").await;
            peer.close_answer().await;
        }
    })
}

#[tokio::test(start_paused = true)]
async fn the_slot_is_held_until_the_stream_ends_and_granted_in_order() {
    let rig = Arc::new(slow_provider(1000));
    let mut calls = JoinSet::new();
    let order = Arc::new(Mutex::new(Vec::new()));
    for number in 0..5_usize {
        let (caller, order) = (rig.clone(), order.clone());
        calls.spawn(async move {
            let outcome = caller.run().await;
            outcome.assert_whole();
            order.lock().unwrap().push(number);
            outcome.took
        });
        // So that they queue in this order.
        settle().await;
        let view = rig.view();
        assert_eq!(
            (view.limiter.in_flight, view.limiter.queued.iter().sum::<usize>()),
            ((number + 1).min(2), number.saturating_sub(1))
        );
    }
    // The queue is full now.
    let refused = rig.run().await;
    refused.assert_failed(Code::UpstreamShedQueueFull, "queue");
    refused.assert_took(0.0);
    assert!(refused.error.unwrap().failure().retryable);

    while let Some(took) = calls.join_next().await {
        assert!(took.unwrap() < Duration::from_millis(3100));
    }
    assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3, 4]);
    rig.assert_at_rest();
    assert_eq!(rig.dialled(), 2, "never more connections than slots");
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_slot_is_visible_and_ends() {
    let rig = slow_provider(15_000);
    let held = [rig.chat().await.unwrap(), rig.chat().await.unwrap()];
    let call = rig.cx();
    {
        let mut chat = pin!(rig.upstream.chat(call.clone(), ask()));
        tokio::select! {
            _ = chat.as_mut() => panic!("there is no slot"),
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
        let waiting = call.wait.read(now());
        assert_eq!(waiting.kind, WaitKind::ProviderSlot);
        assert_eq!(&*waiting.detail, "p/m-1, 0 in front for slot");
        assert_eq!(waiting.deadline, Some(Deadline(now() + Duration::from_secs(29))));
        assert_eq!(rig.view().limiter.queued[0], 1);
    }
    assert_eq!(rig.view().limiter.queued[0], 0, "who leaves is not waited for");
    assert!(!call.probe.is_connected());

    let outcome = rig.run().await;
    outcome.assert_failed(Code::UpstreamQueueTimeout, "queue");
    outcome.assert_took(30.0);

    let outcome = rig.run_with(cx(Duration::from_secs(3))).await;
    outcome.assert_failed(Code::DeadlineExceeded, "queue");
    outcome.assert_took(3.0);
    assert_eq!(
        outcome.error.unwrap().failure().message,
        "p/m-1: the deadline passed in phase queue"
    );
    drop(held);
    rig.assert_at_rest();
}

#[tokio::test(start_paused = true)]
async fn five_hundred_callers_come_and_go() {
    let rig = Arc::new(Rig::with(
        |config| config.providers[0].limits.concurrent = 50,
        |_, mut peer| async move {
            peer.request().await;
            peer.head().await;
            peer.token("one").await;
            peer.closed().await;
        },
    ));
    let mut calls = JoinSet::new();
    for number in 0..500 {
        let rig = rig.clone();
        calls.spawn(async move {
            let patience = Duration::from_millis(number * 2);
            let _ = tokio::time::timeout(patience, rig.run()).await;
        });
    }
    while calls.join_next().await.is_some() {}
    rig.assert_at_rest();
    assert_eq!(rig.open(), 0);
}
