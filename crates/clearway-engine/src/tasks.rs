//! Owned background tasks: none is started without somebody who waits for its end.

use std::future::Future;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The engine's tasks and its two stop signals.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    /// Stop taking work; finish or hand back what runs.
    pub soft: CancellationToken,
    /// Stop now.
    pub hard: CancellationToken,
}

impl Tasks {
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task that must end by itself soon after `hard` fires.
    #[expect(clippy::disallowed_methods, reason = "the tracker owns it, and close() waits for it")]
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        let tracked = self.tracker.track_future(future);
        drop(tokio::spawn(tracked));
    }

    pub fn len(&self) -> usize {
        self.tracker.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tracker.is_empty()
    }

    /// Waits until every task has ended.
    pub async fn close(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}
