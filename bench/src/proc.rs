//! What the kernel says about a process: processor time, memory, threads.
//!
//! Figures come from `/proc` rather than from the processes themselves, so the same yardstick holds for nginx, the
//! simulator and the server.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// `/proc` counts processor time in these; it is 100 a second on every Linux we build for.
const TICK: Duration = Duration::from_millis(10);

/// Processor time of some processes taken together, user and system.
pub(crate) fn cpu(pids: &[u32]) -> Duration {
    pids.iter().filter_map(|pid| ticks(*pid)).sum::<u32>() * TICK
}

fn ticks(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    cpu_ticks(&stat)
}

fn cpu_ticks(stat: &str) -> Option<u32> {
    // The second field is the command in parentheses, and may itself hold blanks and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let user: u32 = fields.nth(11)?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Busy processor time of the whole machine, to tell how much of it others used.
pub(crate) fn machine_cpu() -> Duration {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    busy_ticks(&stat) * TICK
}

fn busy_ticks(stat: &str) -> u32 {
    let line = stat.lines().next().unwrap_or_default();
    let fields: Vec<u32> =
        line.split_ascii_whitespace().skip(1).map(|n| n.parse().unwrap_or(0)).collect();
    // user, nice, system, idle, iowait, irq, softirq
    fields.iter().take(7).enumerate().filter(|(i, _)| !matches!(i, 3 | 4)).map(|(_, n)| n).sum()
}

/// The processes that `parent` started.
pub(crate) fn children(parent: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(')')
                .and_then(|(_, rest)| rest.split_ascii_whitespace().nth(1))
                .is_some_and(|ppid| ppid.parse() == Ok(parent))
        })
        .collect()
}

/// A field of `/proc/PID/status`, such as `Threads` or `VmHWM` (in KiB).
pub(crate) fn status(pid: u32, field: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status_field(&status, field)
}

fn status_field(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find(|line| line.split(':').next() == Some(field))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The most memory the process ever held, in MiB.
pub(crate) fn peak_rss_mib(pid: u32) -> f64 {
    status(pid, "VmHWM").unwrap_or(0) as f64 / 1024.0
}

pub(crate) fn threads(pid: u32) -> u64 {
    status(pid, "Threads").unwrap_or(0)
}

/// Looks at a process's number of threads all the time, from an OS thread of the rig's own.
#[derive(Debug)]
pub(crate) struct ThreadWatch {
    stop: Arc<AtomicBool>,
    most: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl ThreadWatch {
    pub(crate) fn start(pid: u32) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let most = Arc::new(AtomicU64::new(0));
        let thread = std::thread::Builder::new().name("thread-watch".into()).spawn({
            let (stop, most) = (Arc::clone(&stop), Arc::clone(&most));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    most.fetch_max(threads(pid), Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        });
        Ok(Self { stop, most, thread: Some(thread.context("starting the thread watch")?) })
    }

    /// The most threads there were.
    pub(crate) fn finish(mut self) -> u64 {
        self.end();
        self.most.load(Ordering::Relaxed)
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for ThreadWatch {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_odd_names() {
        let stat = "42 (a) b (c)) S 1 42 42 0 -1 4194560 1 2 3 4 70 8 0 0 20 0 5 0 100";
        assert_eq!(cpu_ticks(stat), Some(78));
        let status = "Name:\tx\nVmHWM:\t  2048 kB\nThreads:\t7\nThreads_max:\t9\n";
        assert_eq!(status_field(status, "Threads"), Some(7));
        assert_eq!(status_field(status, "VmHWM"), Some(2048));
        assert_eq!(busy_ticks("cpu  1 2 3 400 500 6 7 8 9 10\ncpu0 1"), 19);
    }

    #[test]
    fn this_process_is_there() {
        let me = std::process::id();
        assert!(threads(me) >= 1);
        assert!(peak_rss_mib(me) > 0.1);
        assert!(machine_cpu() > Duration::ZERO);
        assert_eq!(cpu(&[u32::MAX]), Duration::ZERO);
    }
}
