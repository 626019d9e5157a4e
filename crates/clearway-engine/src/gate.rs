//! Keeps what rarely fires out of the way of what fires all the time.
//!
//! A run's task waits for tokens, and beside them for a cancel, a deadline, the stop of the server and
//! more. Polling all of those at each token would cost more than the token, and some take locks that
//! all runs share. Behind a [`Gate`] they are polled only when one of them has called.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

/// See the module. One serves one task, and one guarded future at a time.
#[derive(Debug, Default)]
pub(crate) struct Gate(Arc<Bell>);

#[derive(Debug, Default)]
struct Bell {
    rung: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // In this order: whoever is woken must find it rung.
        self.rung.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl Gate {
    /// The future, polled for the first time and then only when it has something to say.
    pub(crate) fn guard<F: Future + Unpin>(&self, future: F) -> Guarded<F> {
        self.0.rung.store(true, Ordering::Relaxed);
        Guarded { future, bell: self.0.clone(), waker: self.0.clone().into() }
    }
}

/// A future behind a gate.
#[derive(Debug)]
pub(crate) struct Guarded<F> {
    future: F,
    bell: Arc<Bell>,
    /// The bell, for the future.
    waker: Waker,
}

impl<F: Future + Unpin> Future for Guarded<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        // Each time, and before looking: whoever rings takes the waker with him.
        this.bell.task.register(cx.waker());
        if !this.bell.rung.load(Ordering::Relaxed) || !this.bell.rung.swap(false, Ordering::Acquire)
        {
            return Poll::Pending;
        }
        Pin::new(&mut this.future).poll(&mut Context::from_waker(&this.waker))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use futures_util::FutureExt;
    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn it_is_polled_when_it_calls_and_not_when_others_do() {
        let (notify, polls, gate) = (Notify::new(), AtomicU32::new(0), Gate::default());
        let called = notify.notified();
        tokio::pin!(called);
        let counted = std::future::poll_fn(|cx| {
            polls.fetch_add(1, Ordering::Relaxed);
            called.as_mut().poll(cx)
        });
        tokio::pin!(counted);
        let mut guarded = gate.guard(counted);
        for _ in 0..10 {
            // Each of these polls stands for a token.
            let polled = std::future::poll_fn(|cx| Poll::Ready(guarded.poll_unpin(cx))).await;
            assert!(polled.is_pending());
        }
        assert_eq!(polls.load(Ordering::Relaxed), 1);
        notify.notify_one();
        guarded.await;
        assert_eq!(polls.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn a_call_is_heard_after_one_that_meant_nothing() {
        let (gate, polls) = (Gate::default(), AtomicU32::new(0));
        let late = std::future::poll_fn(|cx| {
            cx.waker().wake_by_ref();
            if polls.fetch_add(1, Ordering::Relaxed) < 3 { Poll::Pending } else { Poll::Ready(()) }
        });
        gate.guard(late).await;
        assert_eq!(polls.load(Ordering::Relaxed), 4);
    }

    #[tokio::test]
    async fn a_call_from_another_task_is_heard() {
        let gate = Gate::default();
        for _ in 0..200 {
            let (sender, receiver) = tokio::sync::oneshot::channel();
            #[expect(clippy::disallowed_methods, reason = "joined below")]
            let other = tokio::spawn(async move { sender.send(7).unwrap() });
            assert_eq!(gate.guard(receiver).await, Ok(7));
            other.await.unwrap();
        }
    }

    #[tokio::test]
    async fn the_task_may_change() {
        let (gate, notify) = (Gate::default(), Notify::new());
        let called = notify.notified();
        tokio::pin!(called);
        let mut guarded = gate.guard(called);
        let elsewhere = Waker::noop();
        assert!(guarded.poll_unpin(&mut Context::from_waker(elsewhere)).is_pending());
        tokio::join!(guarded, async { notify.notify_one() });
    }
}
