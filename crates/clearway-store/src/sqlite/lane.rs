//! The only place of this crate that starts tasks and blocking jobs.
//!
//! SQLite blocks, so each access is one `spawn_blocking` job (paused test time stays correct with
//! those and not with threads of our own). The number of jobs at a time is bounded by their callers:
//! one writer, and as many readers as there are read connections.

use tokio::task::{JoinError, JoinHandle};

/// Starts the writer's task; the store keeps the handle.
#[expect(clippy::disallowed_methods, reason = "owned: the store joins it when it closes")]
pub(super) fn task(future: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    tokio::spawn(future)
}

/// Runs one blocking job.
///
/// # Errors
/// The job panicked, or the runtime is shutting down.
#[expect(clippy::disallowed_methods, reason = "permits are held by the writer and the readers")]
pub(super) async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    tokio::task::spawn_blocking(job).await
}
