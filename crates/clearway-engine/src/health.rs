//! How the process and its parts are, measured when asked.

use std::sync::atomic::Ordering;
use std::time::Duration;

use clearway_store::StoreInfo;

use crate::PoolView;
use crate::engine::Inner;

/// The whole picture, for `/health/ready`.
#[derive(Clone, Debug)]
pub struct Health {
    /// Store, pools and agents are there and intake is on.
    pub ready: bool,
    /// Why not, for people.
    pub problems: Vec<String>,
    pub draining: bool,
    pub pools: Vec<PoolView>,
    pub providers: Vec<clearway_upstream::ProviderView>,
    pub os_threads: u32,
    /// As counted at the end of the start; equal to `os_threads` for as long as it lives.
    pub os_threads_at_start: u32,
    pub open_files: u32,
    pub open_files_limit: u64,
    pub memory_bytes: u64,
    pub scheduler_lag_ms: f64,
    /// The worst of the last one to two minutes.
    pub scheduler_lag_max_ms: f64,
    pub store: Result<StoreInfo, String>,
    pub uptime: Duration,
    pub live_runs: usize,
}

/// How punctual the runtime is, and for how long: what can be told without waiting for anything.
#[derive(Clone, Copy, Debug)]
pub struct Pulse {
    pub lag: Duration,
    /// The worst of the last one to two minutes.
    pub lag_max: Duration,
    pub uptime: Duration,
}

pub(crate) fn pulse(inner: &Inner) -> Pulse {
    Pulse {
        lag: inner.watchdog.lag.now(),
        lag_max: inner.watchdog.lag.max(),
        uptime: crate::clock::instant().saturating_duration_since(inner.process.at),
    }
}

/// What the operating system says about this process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process {
    pub os_threads: u32,
    pub open_files: u32,
    pub memory_bytes: u64,
    pub at: std::time::Instant,
}

impl Process {
    /// Zeros where the system has no `/proc`.
    pub(crate) fn measure() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        let open = std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count());
        Self {
            os_threads: field("Threads:").unwrap_or(0) as u32,
            // Listing the directory opened one more.
            open_files: (open as u32).saturating_sub(1),
            memory_bytes: field("VmRSS:").unwrap_or(0) * 1024,
            at: crate::clock::instant(),
        }
    }
}

/// A disk with less than this left is reported before writes fail.
const DISK_LOW: u64 = 64 << 20;

pub(crate) async fn measure(inner: &Inner) -> Health {
    let store = inner.store.info().await.map_err(|error| error.to_string());
    let draining = inner.tasks.soft.is_cancelled();
    let mut problems = Vec::new();
    if draining {
        problems.push("the server is stopping".to_owned());
    }
    match &store {
        Err(error) => problems.push(format!("store: {error}")),
        Ok(StoreInfo { writable: Err(why), .. }) => problems.push(format!("store: {why}")),
        Ok(info) => {
            if info.disk_free_bytes.is_some_and(|free| free < DISK_LOW) {
                problems.push("store: less than 64 MiB of disk space left".to_owned());
            }
        }
    }
    if inner.agents.all().is_empty() {
        problems.push("no agent is configured".to_owned());
    }
    let now = Process::measure();
    let pulse = pulse(inner);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    Health {
        ready: problems.is_empty(),
        problems,
        draining,
        pools: inner.pool_views(),
        providers: inner.upstream.provider_views(),
        os_threads: now.os_threads,
        os_threads_at_start: inner.threads_at_start.load(Ordering::Relaxed),
        open_files: now.open_files,
        open_files_limit: limit.current.unwrap_or(u64::MAX),
        memory_bytes: now.memory_bytes,
        scheduler_lag_ms: pulse.lag.as_secs_f64() * 1000.0,
        scheduler_lag_max_ms: pulse.lag_max.as_secs_f64() * 1000.0,
        store,
        uptime: pulse.uptime,
        live_runs: inner.hub.len(),
    }
}
