//! Keeping connections, and noticing that they are gone.

use super::*;

#[tokio::test(start_paused = true)]
async fn connections_are_reused() {
    let rig = Rig::new(|_, mut peer| async move {
        while peer.request().await.is_some() {
            peer.answer().await;
        }
    });
    for _ in 0..10 {
        rig.run().await.assert_whole();
    }
    let connections = rig.view().connections;
    assert_eq!((connections.opened, connections.reused, connections.idle), (1, 9, 1));
}

#[tokio::test(start_paused = true)]
async fn connections_that_say_so_are_not_kept() {
    let rig = Rig::new(|_, mut peer| async move {
        peer.request().await;
        let body = format!("data: {}\n\ndata: [DONE]\n\n", delta("one two three"));
        let headers = "content-type: text/event-stream\r\nconnection: close\r\n";
        peer.respond("200 OK", headers, &body).await;
        peer.closed().await;
    });
    rig.run().await.assert_whole();
    rig.run().await.assert_whole();
    assert_eq!(rig.open(), 0);
    assert_eq!(rig.dialled(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_ends_late_does_not_cost_its_connection() {
    let rig = Rig::new(|_, mut peer| async move {
        while peer.request().await.is_some() {
            peer.head().await;
            peer.token("one two three").await;
            peer.event(&stop()).await;
            peer.event(&usage()).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
            peer.chunk("data: [DONE]\n\n").await;
            peer.raw("0\r\n\r\n").await;
        }
    });
    let outcome = rig.run().await;
    outcome.assert_whole();
    outcome.assert_took(0.0);
    // Too early for the first connection.
    rig.run().await.assert_whole();
    assert_eq!(rig.dialled(), 2);
    tokio::time::sleep(Duration::from_secs(1)).await;
    rig.run().await.assert_whole();
    assert_eq!(rig.dialled(), 2);
}

/// The provider closes after each answer, at once or a little later; nobody notices.
#[tokio::test(start_paused = true)]
async fn a_provider_that_closes_idle_connections() {
    let rig = Rig::new(|number, mut peer| async move {
        peer.request().await;
        peer.answer().await;
        if number % 3 == 1 {
            tokio::task::yield_now().await;
        }
        if number % 3 == 2 {
            peer.raw("HTTP/1.1 408 Request Timeout\r\n\r\n").await;
        }
    });
    for _ in 0..1000 {
        rig.run().await.assert_whole();
    }
    rig.upstream.expire_idle(now());
    settle().await;
    rig.upstream.expire_idle(now());
    assert_eq!(rig.open(), 0);
}

/// It reads the next request and closes without a word: the race that cannot be seen beforehand.
#[tokio::test(start_paused = true)]
async fn a_race_on_a_reused_connection_is_run_again() {
    let requests = Arc::new(AtomicUsize::new(0));
    let count = requests.clone();
    let rig = Rig::new(move |_, mut peer| {
        let count = count.clone();
        async move {
            peer.request().await;
            count.fetch_add(1, Ordering::Relaxed);
            peer.answer().await;
            if peer.request().await.is_some() {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    for call in 1..=500 {
        rig.run().await.assert_whole();
        assert_eq!(rig.dialled(), call);
    }
    assert_eq!(requests.load(Ordering::Relaxed), 999, "once each, and never a third time");
}

#[tokio::test(start_paused = true)]
async fn a_fresh_connection_that_breaks_is_told() {
    let rig = Rig::new(|_, mut peer| async move {
        peer.request().await;
    });
    let outcome = rig.run().await;
    outcome.assert_failed(Code::UpstreamConnectFailed, "headers");
    assert!(outcome.error.unwrap().failure().retryable);
    assert_eq!(rig.dialled(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_reused_connection_that_breaks_inside_the_answer_is_told() {
    let rig = Rig::new(|_, mut peer| async move {
        peer.request().await;
        peer.answer().await;
        peer.request().await;
        peer.raw("HTTP/1.1 2").await;
    });
    rig.run().await.assert_whole();
    rig.run().await.assert_failed(Code::UpstreamConnectFailed, "headers");
    assert_eq!(rig.dialled(), 1);
}

#[tokio::test(start_paused = true)]
async fn idle_connections_expire() {
    let rig = Rig::new(|_, mut peer| async move {
        while peer.request().await.is_some() {
            peer.answer().await;
        }
    });
    rig.run().await.assert_whole();
    rig.upstream.expire_idle(now() + Duration::from_millis(3999));
    assert_eq!(rig.open(), 1);
    rig.upstream.expire_idle(now() + Duration::from_secs(4));
    assert_eq!(rig.open(), 0, "self-hosted servers close after five seconds");

    // Without anybody calling that, an old one is not used either.
    rig.run().await.assert_whole();
    tokio::time::sleep(Duration::from_secs(4)).await;
    rig.run().await.assert_whole();
    assert_eq!(rig.dialled(), 3);
    assert_eq!(rig.open(), 1);
}

#[tokio::test(start_paused = true)]
async fn surplus_connections_are_closed() {
    let rig = Arc::new(Rig::with(
        |config| {
            config.providers[0].limits =
                Limits { concurrent: 3, idle_connections: 0, ..Limits::default() }
        },
        |_, mut peer| async move {
            while peer.request().await.is_some() {
                settle().await;
                peer.answer().await;
            }
        },
    ));
    let mut calls = JoinSet::new();
    for _ in 0..9 {
        let rig = rig.clone();
        calls.spawn(async move { rig.run().await.assert_whole() });
    }
    while let Some(done) = calls.join_next().await {
        done.unwrap();
    }
    assert_eq!(rig.view().connections.idle, 3, "as many as slots, whatever was configured");
    assert_eq!(rig.dialled(), 3);
}

/// Polls per token: one, not one per hop.
#[tokio::test]
async fn a_token_costs_one_poll() {
    let rig = Rig::new(|_, mut peer| async move {
        peer.request().await;
        peer.head().await;
        for _ in 0..100 {
            peer.token("x").await;
            // Until the other side has run and waits again.
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
        }
        peer.close_answer().await;
        peer.closed().await;
    });
    let mut stream = rig.chat().await.unwrap();
    let mut polls = 0;
    let mut events = 0;
    loop {
        let next = {
            let mut next = std::pin::pin!(stream.next());
            std::future::poll_fn(|cx| {
                polls += 1;
                next.as_mut().poll(cx)
            })
            .await
        };
        match next.unwrap() {
            Some(_) => events += 1,
            None => break,
        }
    }
    assert_eq!(events, 101);
    // Each wait is one pending poll and one that returns the token.
    assert!(polls <= 210, "{polls} polls for {events} events");
}
