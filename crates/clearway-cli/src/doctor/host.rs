//! The machine: OS threads, open files, memory, the clock.

use std::fs;
use std::time::{Duration, Instant};

use clearway::config::Config;
use clearway::inspect::{Needs, can_start_threads};
use rustix::process::{Resource, getrlimit};

use super::cgroup;
use super::finding::{Finding, size};

pub(crate) fn all(config: &Config) -> Vec<Finding> {
    let needs = Needs::of(config);
    vec![threads(&needs), files(&needs, getrlimit(Resource::Nofile).into()), memory(), clock()]
}

/// The log's thread and the watcher's, beside those of the server.
const OWN_THREADS: usize = 2;

/// What should be left for others of the same user, such as a shell to look what is wrong.
const SPARE_THREADS: usize = 16;

fn threads(needs: &Needs) -> Finding {
    const WHY: &str = "all threads are started at once, and none later; a server that cannot have \
                       them does not start";
    const FIX: &str = "raise the limit of processes (`ulimit -u`, or `pids` of the container), or \
                       set server.worker_threads = 1";
    let needed = needs.threads + OWN_THREADS;
    let mut limits = Vec::new();
    limits.extend(getrlimit(Resource::Nproc).current.map(|limit| format!("ulimit -u {limit}")));
    limits.extend(
        cgroup::pids()
            .map(|limit| format!("the container allows {}, {} are in use", limit.max, limit.used)),
    );
    let limits = if limits.is_empty() { "no limit".to_owned() } else { limits.join("; ") };
    // Trying is the only way to know: limits count threads that cannot be seen from here.
    if let Err(error) = can_start_threads(needed) {
        let found = format!("{needed} are needed and cannot be started: {error} ({limits})");
        return Finding::fail("threads", found, WHY, FIX);
    }
    match can_start_threads(needed + SPARE_THREADS) {
        Ok(()) => Finding::ok("threads", format!("{needed} are needed, and there ({limits})"), WHY),
        Err(_) => Finding::warn(
            "threads",
            format!(
                "{needed} are needed and there, with fewer than {SPARE_THREADS} to spare ({limits})"
            ),
            "whatever else this user starts may take the threads of the server's next start",
            FIX,
        ),
    }
}

/// The limits of open files; `None` is none.
#[derive(Clone, Copy, Debug)]
struct FileLimits {
    soft: Option<u64>,
    hard: Option<u64>,
}

impl From<rustix::process::Rlimit> for FileLimits {
    fn from(limit: rustix::process::Rlimit) -> Self {
        Self { soft: limit.current, hard: limit.maximum }
    }
}

fn files(needs: &Needs, FileLimits { soft, hard }: FileLimits) -> Finding {
    const WHY: &str = "each connection is a file, and its call to a provider another one; with \
                       fewer files a server takes fewer connections";
    let shown =
        |limit: Option<u64>| limit.map_or("unlimited".to_owned(), |limit| limit.to_string());
    let limits = format!("soft {}, hard {}", shown(soft), shown(hard));
    let wanted = format!("{} connections want {}", needs.connections, needs.open_files);
    let fix = format!(
        "`ulimit -Hn {}` (LimitNOFILE in systemd, --ulimit nofile in docker), or a lower \
         server.limits.max_connections",
        needs.open_files
    );
    // A server raises the soft limit to the hard one by itself.
    match hard {
        Some(hard) if hard < LEAST_FILES => {
            let found = format!("{limits}; a server needs at least {LEAST_FILES}");
            Finding::fail("open files", found, WHY, fix)
        }
        Some(hard) if hard < needs.open_files => {
            Finding::warn("open files", format!("{limits}; {wanted}"), WHY, fix)
        }
        Some(_) | None => Finding::ok("open files", format!("{limits}; {wanted}"), WHY),
    }
}

/// For the store, the log, the listener and a few connections.
const LEAST_FILES: u64 = 160;

fn memory() -> Finding {
    let container = cgroup::memory();
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text));
    judge_memory(container, machine)
}

/// A resting server and its caches.
const LEAST_MEMORY: u64 = 64 << 20;
/// With some hundred streams.
const ENOUGH_MEMORY: u64 = 256 << 20;

fn judge_memory(container: Option<cgroup::Limit>, machine: Option<u64>) -> Finding {
    const WHY: &str = "the system kills a process that wants more than there is; its runs go on \
                       after the next start";
    let mut found: Vec<String> = Vec::new();
    found.extend(machine.map(|free| format!("{} available", size(free))));
    found.push(match container {
        Some(limit) => {
            format!("the container allows {}, {} are in use", size(limit.max), size(limit.used))
        }
        None => "no limit of a container".to_owned(),
    });
    let found = found.join("; ");
    // Caches count as used and are given up under pressure, so of a container its size decides.
    let room = [container.map(|limit| limit.max), machine].into_iter().flatten().min();
    let fix = format!("give it {} or more", size(ENOUGH_MEMORY));
    match room {
        None => Finding::ok("memory", "not known on this system", WHY),
        Some(room) if room < LEAST_MEMORY => Finding::fail("memory", found, WHY, fix),
        Some(room) if room < ENOUGH_MEMORY => Finding::warn("memory", found, WHY, fix),
        Some(_) => Finding::ok("memory", found, WHY),
    }
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// How long the two clocks are held against each other.
const LOOK: Duration = Duration::from_millis(100);

fn clock() -> Finding {
    let (wall, monotonic) = (clearway::now().0, Instant::now());
    std::thread::sleep(LOOK);
    let (later, passed) = (clearway::now().0, monotonic.elapsed());
    judge_clock(later, later - wall, passed)
}

/// The first millisecond of 2026, and of 2100.
const PLAUSIBLE: std::ops::Range<i64> = 1_767_225_600_000..4_102_444_800_000;

/// How far the wall clock may go from the other one while both are looked at.
const STEP_MS: u64 = 20;

fn judge_clock(now: i64, wall_ms: i64, monotonic: Duration) -> Finding {
    const WHY: &str = "deadlines that outlive the process and dates of providers are judged by it; \
                       waiting is measured by another clock that cannot jump";
    let date = clearway::Timestamp(now).to_string();
    if !PLAUSIBLE.contains(&now) {
        return Finding::fail(
            "clock",
            format!("it says {date}"),
            WHY,
            "set it, and let it be kept (timedatectl set-ntp true)",
        );
    }
    let passed = i64::try_from(monotonic.as_millis()).unwrap_or(i64::MAX);
    if wall_ms.abs_diff(passed) > STEP_MS {
        return Finding::warn(
            "clock",
            format!("it moved {wall_ms} ms while {passed} ms passed"),
            WHY,
            "look who sets it: two services for the time work against each other",
        );
    }
    let found = format!("{date}, steady; how far it is off cannot be known without asking others");
    Finding::ok("clock", found, WHY)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    const NEEDS: Needs = Needs { threads: 15, connections: 1000, open_files: 2128 };

    #[test]
    fn the_hard_limit_of_open_files_decides() {
        let level = |soft, hard| files(&NEEDS, FileLimits { soft, hard }).level;
        assert_eq!(level(Some(64), None), Level::Ok);
        assert_eq!(level(Some(64), Some(2128)), Level::Ok);
        assert_eq!(level(Some(1024), Some(1024)), Level::Warn);
        assert_eq!(level(Some(64), Some(64)), Level::Fail);
    }

    #[test]
    fn of_a_container_its_size_decides() {
        let level = |max, used, machine| {
            let container = Some(cgroup::Limit { max, used });
            judge_memory(container, Some(machine)).level
        };
        assert_eq!(level(1 << 30, 1 << 30, 1 << 40), Level::Ok);
        assert_eq!(level(128 << 20, 0, 1 << 40), Level::Warn);
        assert_eq!(level(1 << 30, 0, 1 << 20), Level::Fail);
        assert_eq!(judge_memory(None, None).level, Level::Ok);
        assert_eq!(available("MemTotal: 7 kB\nMemAvailable:   2048 kB\n"), Some(2 << 20));
        assert_eq!(available(""), None);
    }

    #[test]
    fn a_clock_that_cannot_be_right_or_jumps_is_noticed() {
        let level = |now, wall| judge_clock(now, wall, LOOK).level;
        let now = PLAUSIBLE.start + 1;
        assert_eq!(level(now, 100), Level::Ok);
        assert_eq!(level(now, 3_600_100), Level::Warn);
        assert_eq!(level(now, -500), Level::Warn);
        assert_eq!(level(0, 100), Level::Fail);
        assert_eq!(level(i64::MAX, 100), Level::Fail);
    }
}
