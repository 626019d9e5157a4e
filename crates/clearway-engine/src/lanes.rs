//! The blocking lanes: a fixed set of OS threads for work that blocks.
//!
//! The runtime's blocking pool is capped at [`Lanes::THREADS`] and filled at start, so the number of
//! OS threads is the same under load as at rest, and a host that refuses threads refuses them at
//! start-up, with a clear message, and never in the middle of a request.

use std::sync::{Arc, Barrier};

use tokio::runtime::Handle;
use tokio::sync::Semaphore;

/// Blocking work other than the store's. The store has its own permits, so work cannot starve it.
#[derive(Clone, Debug)]
pub struct Lanes {
    work: Arc<Semaphore>,
}

impl Default for Lanes {
    fn default() -> Self {
        Self { work: Arc::new(Semaphore::new(Self::WORK)) }
    }
}

impl Lanes {
    /// Threads for the store's jobs.
    pub const STORE: usize = 4;
    /// Threads for other blocking work.
    pub const WORK: usize = 8;
    /// What the runtime's `max_blocking_threads` must be.
    pub const THREADS: usize = Self::STORE + Self::WORK;

    /// Starts all blocking threads of the runtime, and returns when every one of them runs.
    ///
    /// Must be called from outside the runtime's own threads, before anything else uses the pool;
    /// the runtime must keep idle threads alive.
    pub fn warm_up(handle: &Handle) {
        let barrier = Arc::new(Barrier::new(Self::THREADS + 1));
        for _ in 0..Self::THREADS {
            let barrier = barrier.clone();
            drop(handle.spawn_blocking(move || {
                barrier.wait();
            }));
        }
        barrier.wait();
    }

    /// Runs blocking work when a lane is free. The caller must bound the wait with its deadline; a
    /// caller that leaves while queueing costs nothing.
    #[expect(clippy::disallowed_methods, reason = "a permit is held for as long as it runs")]
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let permit = self.work.clone().acquire_owned().await.ok()?;
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        })
        .await
        .ok()
    }
}
