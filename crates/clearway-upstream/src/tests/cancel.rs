//! Leaving a call, wherever it is.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::*;

/// Polls once; for futures that are known to wait.
fn poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// A provider that plays `script` and then notes when its client is gone.
fn noting<F>(script: impl Fn(Peer) -> F + Send + Sync + 'static) -> (Rig, Arc<AtomicUsize>)
where
    F: Future<Output = Peer> + Send + 'static,
{
    let gone = Arc::new(AtomicUsize::new(0));
    let note = gone.clone();
    let rig = Rig::new(move |_, peer| {
        let (note, played) = (note.clone(), script(peer));
        async move {
            played.await.closed().await;
            note.fetch_add(1, Ordering::Relaxed);
        }
    });
    (rig, gone)
}

#[tokio::test(start_paused = true)]
async fn while_dialling() {
    #[derive(Debug)]
    struct Never(Arc<()>);
    impl Dial for Never {
        fn dial<'a>(
            &'a self,
            _: &'a Endpoint,
            report: Report<'a>,
        ) -> BoxFuture<'a, Result<Box<dyn Io>, DialError>> {
            let half_open = self.0.clone();
            Box::pin(async move {
                report(DialPhase::Dns);
                tokio::task::yield_now().await;
                report(DialPhase::Tls);
                std::future::pending::<()>().await;
                drop(half_open);
                Err(DialError::new(DialPhase::Tls, "unreachable"))
            })
        }
    }
    let sockets = Arc::new(());
    let dial: Arc<dyn Dial> = Arc::new(Never(sockets.clone()));
    let dialers = HashMap::from([("script".to_owned(), dial)]);
    let upstream = Upstream::new(config(|_| {}), dialers).unwrap();

    let call = cx(Duration::from_secs(60));
    {
        let mut chat = pin!(upstream.chat(call.clone(), ask()));
        assert!(poll_once(chat.as_mut()).is_pending());
        assert_eq!(waits_for(&call, now()), WaitKind::Dns);
        assert!(poll_once(chat.as_mut()).is_pending());
        assert_eq!(waits_for(&call, now()), WaitKind::Connect);
        assert!(call.probe.is_connected(), "a socket is being opened");
        assert_eq!(upstream.provider_views()[0].limiter.in_flight, 1);
    }
    assert!(!call.probe.is_connected());
    assert_eq!(upstream.provider_views()[0].limiter.in_flight, 0);
    // The dialler's own, and ours.
    assert_eq!(Arc::strong_count(&sockets), 2);

    // Left alone it ends at its limit and says how far it came.
    let started = now();
    let error = upstream.chat(call, ask()).await.unwrap_err().into_failure();
    assert_eq!(error.code, Code::UpstreamConnectTimeout);
    assert_eq!(error.detail["phase"], "tls");
    assert_eq!(now() - started, Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn while_waiting_for_the_answer() {
    let (rig, gone) = noting(|mut peer| async move {
        peer.request().await;
        peer
    });
    let call = rig.cx();
    {
        let mut chat = pin!(rig.upstream.chat(call.clone(), ask()));
        assert!(poll_once(chat.as_mut()).is_pending());
        settle().await;
        assert!(poll_once(chat.as_mut()).is_pending());
        assert_eq!(waits_for(&call, now()), WaitKind::FirstByte);
        assert!(call.probe.is_connected());
        assert_eq!(rig.open(), 1);
    }
    assert!(!call.probe.is_connected());
    rig.assert_at_rest();
    assert_eq!(rig.open(), 0, "closed by the drop itself");
    settle().await;
    assert_eq!(gone.load(Ordering::Relaxed), 1, "the provider sees it");
}

#[tokio::test(start_paused = true)]
async fn before_the_first_token() {
    let (rig, gone) = noting(|mut peer| async move {
        peer.request().await;
        peer.head().await;
        peer
    });
    let call = rig.cx();
    tokio::select! {
        _ = rig.upstream.chat(call.clone(), ask()) => panic!("there is nothing to return"),
        () = tokio::time::sleep(Duration::from_secs(1)) => {}
    }
    assert!(!call.probe.is_connected());
    rig.assert_at_rest();
    assert_eq!(rig.open(), 0);
    settle().await;
    assert_eq!(gone.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn in_the_middle_of_the_answer() {
    let (rig, gone) = noting(|mut peer| async move {
        peer.request().await;
        peer.head().await;
        for _ in 0..20 {
            peer.token("x").await;
        }
        peer
    });
    let call = rig.cx();
    let mut stream = rig.upstream.chat(call.clone(), ask()).await.unwrap();
    for _ in 0..20 {
        stream.next().await.unwrap();
    }
    assert_eq!(waits_for(&call, now()), WaitKind::NextToken);
    assert!(call.probe.is_connected());
    assert_eq!(rig.view().limiter.in_flight, 1);
    drop(stream);
    assert!(!call.probe.is_connected());
    rig.assert_at_rest();
    assert_eq!(rig.open(), 0);
    settle().await;
    assert_eq!(gone.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_finished_answer_holds_nothing_even_if_it_is_kept() {
    let (rig, _) = noting(|mut peer| async move {
        peer.request().await;
        peer.answer().await;
        peer
    });
    let call = rig.cx();
    let mut stream = rig.upstream.chat(call.clone(), ask()).await.unwrap();
    while stream.next().await.unwrap().is_some() {}
    assert!(!call.probe.is_connected());
    assert_eq!(rig.view().limiter.in_flight, 0);
    assert_eq!(rig.view().connections.idle, 1);
    drop(stream);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_next_loses_nothing() {
    let (rig, _) = noting(|mut peer| async move {
        peer.request().await;
        peer.head().await;
        peer.token("one").await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        peer.token(" two three").await;
        peer.close_answer().await;
        peer
    });
    let mut stream = rig.chat().await.unwrap();
    let mut text = String::new();
    let mut interrupted = 0;
    loop {
        match tokio::time::timeout(Duration::from_millis(100), stream.next()).await {
            Err(_) => interrupted += 1,
            Ok(Ok(Some(ChatEvent::Text(piece)))) => text.push_str(&piece),
            Ok(Ok(Some(_))) => {}
            Ok(Ok(None)) => break,
            Ok(Err(error)) => panic!("{error}"),
        }
    }
    assert_eq!(text, "one two three");
    assert!(interrupted > 20);
}
