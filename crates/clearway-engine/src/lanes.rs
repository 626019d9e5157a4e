//! The blocking lanes: a fixed set of OS threads for work that blocks.
//!
//! The runtime's blocking pool is capped at [`Lanes::THREADS`] and filled at start, so the number of
//! OS threads is the same under load as at rest, and a host that refuses threads refuses them at
//! start-up, with a clear message, and never in the middle of a request.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Barrier};

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, oneshot};

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

/// One more OS thread, for long work that nobody waits for: it steps back whenever anybody else
/// wants the processor, so that whoever asks does not notice it.
#[derive(Clone, Debug)]
pub(crate) struct Background {
    jobs: mpsc::Sender<Job>,
}

type Job = Box<dyn FnOnce() + Send>;

impl Background {
    /// Jobs that wait while one runs; whoever has more waits for room.
    const QUEUE: usize = 1;
    /// How far it steps back: a tenth of what others get where the processor is scarce.
    pub(crate) const NICE: i32 = 10;

    /// Starts the thread; it ends with the last handle.
    ///
    /// # Errors
    /// The host refuses one more thread.
    pub(crate) fn start(name: &str) -> std::io::Result<Self> {
        let (jobs, mut queue) = mpsc::channel::<Job>(Self::QUEUE);
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            // Of this thread alone. A host that refuses leaves it as fast as others.
            let _ = rustix::process::setpriority_process(None, Self::NICE);
            while let Some(job) = queue.blocking_recv() {
                // Its caller learns of it by getting no answer.
                let _ = catch_unwind(AssertUnwindSafe(job));
            }
        })?;
        Ok(Self { jobs })
    }

    /// Runs a job after those that came before. `None` when it panicked, or the thread has ended. A
    /// job whose caller has left is still run, so it must look now and then whether to go on.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (tell, told) = oneshot::channel();
        let job = Box::new(move || drop(tell.send(work())));
        self.jobs.send(job).await.ok()?;
        told.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_costs_the_job_and_not_the_thread() {
        let background = Background::start("test").unwrap();
        assert_eq!(background.run(|| 1).await, Some(1));
        assert_eq!(background.run(|| -> u8 { panic!("of this job") }).await, None);
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let own = nice();
        assert_eq!(background.run(nice).await, Some(Background::NICE.max(own)));
        assert_eq!(nice(), own);
    }
}
