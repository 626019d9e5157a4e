//! The runtime with its fixed number of OS threads.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clearway_engine::Lanes;
use tokio::runtime::{Builder, Runtime};

/// More workers than this make tokens dearer, not faster: each wakes for less work.
const MOST_WORKERS: usize = 4;

/// The OS threads could not be started.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot start the {wanted} threads that the server needs; raise the limit of processes \
     (`ulimit -u`, or `pids` of the container), or set server.worker_threads = 1"
)]
pub struct ThreadsError {
    wanted: usize,
    #[source]
    source: io::Error,
}

/// A runtime all of whose threads are started: under load there will be no more of them.
///
/// # Errors
/// The host refuses the threads.
pub fn runtime(worker_threads: Option<u32>) -> Result<Runtime, ThreadsError> {
    let workers = workers(worker_threads);
    let wanted = needed(worker_threads);
    let refused = |source| ThreadsError { wanted, source };
    probe(wanted).map_err(refused)?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(workers)
        .max_blocking_threads(Lanes::THREADS)
        .thread_keep_alive(Duration::from_secs(u64::from(u32::MAX)))
        .thread_name("clearway")
        .enable_all()
        .build()
        .map_err(refused)?;
    Lanes::warm_up(runtime.handle());
    Ok(runtime)
}

fn workers(configured: Option<u32>) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    configured.map_or(cores.min(MOST_WORKERS), |threads| threads as usize).max(1)
}

/// How many threads a server has beside the one that started it.
pub(crate) fn needed(worker_threads: Option<u32>) -> usize {
    // The engine's watchdog, one that watches folders of documents, and one that builds their index.
    workers(worker_threads) + Lanes::THREADS + 3
}

/// Starts so many threads at once and lets them end: the runtime itself panics, or waits for ever,
/// when it cannot have one.
pub(crate) fn probe(threads: usize) -> io::Result<()> {
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock().unwrap_or_else(PoisonError::into_inner);
    let start = |_| {
        let gate = gate.clone();
        let wait = move || drop(gate.lock().unwrap_or_else(PoisonError::into_inner));
        std::thread::Builder::new().name("probe".to_owned()).stack_size(PROBE_STACK).spawn(wait)
    };
    let (started, refused): (Vec<_>, Vec<_>) = (0..threads).map(start).partition(Result::is_ok);
    drop(closed);
    for thread in started.into_iter().flatten() {
        // A probe does nothing that could panic.
        let _ = thread.join();
    }
    match refused.into_iter().find_map(Result::err) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Enough to wait for a lock; refusals come from the number of threads, not from their stacks.
const PROBE_STACK: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_threads_are_there_before_the_first_task() {
        let runtime = runtime(Some(1)).unwrap();
        let threads = || std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
        let before = threads();
        runtime.block_on(async {
            let jobs: Vec<_> = (0..50).map(|_| Lanes::default()).collect();
            for lanes in &jobs {
                lanes.run(|| ()).await;
            }
        });
        // Other tests of this process may start and end threads meanwhile, so only growth beyond
        // the lanes would show.
        assert!(threads() < before + Lanes::THREADS, "{before} before, {} after", threads());
    }
}
