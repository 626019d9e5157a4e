//! The one timer of a call.
//!
//! Stages come and go and tokens arrive, but the timer is not touched for any of them: it sleeps
//! until some instant that was right once, looks at the present limit when it fires, and goes back
//! to sleep if that lies later. Only a limit nearer than the armed one re-arms it.
//!
//! All time in this crate is tokio's, so that tests can pause it.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use clearway_core::Deadline;
use tokio::time::{Sleep, sleep_until};

/// The present instant of the clock that the timers use.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Which limit passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expired {
    /// The caller's (or the provider's) limit for the whole call.
    Deadline,
    /// The limit of the stage.
    Stage,
}

/// A call's deadline and its timer.
pub(crate) struct Watch {
    deadline: Deadline,
    sleep: Pin<Box<Sleep>>,
    /// Whom the timer wakes. It is not polled again while that is right, since each token polls here.
    waker: Option<Waker>,
}

impl Watch {
    pub(crate) fn new(deadline: Deadline) -> Self {
        Self { deadline, sleep: Box::pin(sleep_until(deadline.0.into())), waker: None }
    }

    pub(crate) const fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// The end of a stage that starts now and may take `cap`.
    pub(crate) fn stage(&self, now: Instant, cap: Duration) -> Deadline {
        self.deadline.clip(now, cap)
    }

    /// Whether `limit` has passed; if not, the task is woken when it does.
    pub(crate) fn poll_expired(&mut self, cx: &mut Context<'_>, limit: Deadline) -> Poll<Expired> {
        let end = limit.min(self.deadline);
        if self.sleep.deadline().into_std() > end.0 {
            self.sleep.as_mut().reset(end.0.into());
            self.waker = None;
        }
        loop {
            let known = self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
            if known && !self.sleep.is_elapsed() {
                return Poll::Pending;
            }
            self.waker = Some(cx.waker().clone());
            if self.sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if let Some(which) = self.has_expired(now(), limit) {
                return Poll::Ready(which);
            }
            self.sleep.as_mut().reset(end.0.into());
            self.waker = None;
        }
    }

    /// Which of `limit` and the deadline has passed, the earlier one first.
    pub(crate) fn has_expired(&self, now: Instant, limit: Deadline) -> Option<Expired> {
        if self.deadline <= limit {
            self.deadline.has_passed(now).then_some(Expired::Deadline)
        } else {
            limit.has_passed(now).then_some(Expired::Stage)
        }
    }

    /// Waits for `work`, but not beyond `limit` and the deadline. What is ready counts even when
    /// the time is over.
    pub(crate) async fn within<T>(
        &mut self,
        limit: Deadline,
        mut work: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Result<T, Expired> {
        poll_fn(|cx| match work(cx) {
            Poll::Ready(value) => Poll::Ready(Ok(value)),
            Poll::Pending => self.poll_expired(cx, limit).map(Err),
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_nearer_limit_wins_and_is_exact() {
        let start = now();
        let mut watch = Watch::new(Deadline::after(start, Duration::from_secs(10)));
        let never = |_: &mut Context<'_>| Poll::<()>::Pending;

        let stage = watch.stage(now(), Duration::from_secs(3));
        assert_eq!(watch.within(stage, never).await, Err(Expired::Stage));
        assert_eq!(now() - start, Duration::from_secs(3));

        // Later than the timer is armed for: it is re-armed when it fires.
        let stage = watch.stage(now(), Duration::from_secs(4));
        assert_eq!(watch.within(stage, never).await, Err(Expired::Stage));
        assert_eq!(now() - start, Duration::from_secs(7));

        let stage = watch.stage(now(), Duration::from_secs(4));
        assert_eq!(watch.within(stage, never).await, Err(Expired::Deadline));
        assert_eq!(now() - start, Duration::from_secs(10));

        assert_eq!(watch.within(stage, |_| Poll::Ready(1)).await, Ok(1), "ready wins");
    }
}
