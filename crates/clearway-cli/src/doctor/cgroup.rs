//! Limits of the container: control groups, of both versions.
//!
//! A process may use what its own group and every group above it allow, so the least counts.

use std::fs;
use std::path::{Path, PathBuf};

/// Where control groups are mounted.
const ROOT: &str = "/sys/fs/cgroup";

/// A limit, and what is used of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    pub(crate) max: u64,
    pub(crate) used: u64,
}

impl Limit {
    pub(crate) const fn free(self) -> u64 {
        self.max.saturating_sub(self.used)
    }
}

/// Processes and threads.
pub(crate) fn pids() -> Option<Limit> {
    let groups = groups(Path::new(ROOT), &own(), "pids");
    tightest(&groups, ("pids.max", "pids.current"))
}

/// Bytes of memory.
pub(crate) fn memory() -> Option<Limit> {
    let groups = groups(Path::new(ROOT), &own(), "memory");
    tightest(&groups, ("memory.max", "memory.current"))
        .or_else(|| tightest(&groups, ("memory.limit_in_bytes", "memory.usage_in_bytes")))
}

fn own() -> String {
    fs::read_to_string("/proc/self/cgroup").unwrap_or_default()
}

/// The directories of a controller's groups, from the own one upwards; `list` is what the system
/// says of a process: `0::/path` in version 2, `4:pids:/path` in version 1.
fn groups(root: &Path, list: &str, controller: &str) -> Vec<PathBuf> {
    let mut directories = Vec::new();
    for line in list.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let root = if controllers.is_empty() {
            root.to_owned()
        } else if controllers.split(',').any(|known| known == controller) {
            root.join(controller)
        } else {
            continue;
        };
        let own = root.join(path.trim_start_matches('/'));
        directories
            .extend(own.ancestors().take_while(|at| at.starts_with(&root)).map(Path::to_owned));
    }
    directories
}

/// The limit that leaves the least.
fn tightest(groups: &[PathBuf], (max, used): (&str, &str)) -> Option<Limit> {
    let number = |group: &Path, file: &str| -> Option<u64> {
        fs::read_to_string(group.join(file)).ok()?.trim().parse().ok()
    };
    let limit = |group: &PathBuf| {
        let max = number(group, max).filter(|max| *max < UNLIMITED)?;
        Some(Limit { max, used: number(group, used).unwrap_or(0) })
    };
    groups.iter().filter_map(limit).min_by_key(|limit| limit.free())
}

/// Version 1 writes a huge number where version 2 writes `max`.
const UNLIMITED: u64 = 1 << 60;

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn the_tightest_of_all_groups_counts() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "a/pids.max", "100\n");
        write(root.path(), "a/pids.current", "95\n");
        write(root.path(), "a/b/pids.max", "50\n");
        write(root.path(), "a/b/pids.current", "10\n");
        let groups = groups(root.path(), "0::/a/b\n", "pids");
        assert_eq!(
            tightest(&groups, ("pids.max", "pids.current")),
            Some(Limit { max: 100, used: 95 })
        );
    }

    #[test]
    fn both_versions_are_understood_and_no_limit_is_none() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "memory/x/memory.limit_in_bytes", "1048576");
        write(root.path(), "memory/memory.limit_in_bytes", "9223372036854771712");
        let list = "5:cpu,cpuacct:/y\n4:memory:/x\nnonsense\n";
        let found = groups(root.path(), list, "memory");
        let files = ("memory.limit_in_bytes", "memory.usage_in_bytes");
        assert_eq!(tightest(&found, files), Some(Limit { max: 1 << 20, used: 0 }));
        write(root.path(), "pids.max", "max\n");
        let found = groups(root.path(), "0::/\n", "pids");
        assert_eq!(tightest(&found, ("pids.max", "pids.current")), None);
        assert!(groups(root.path(), "", "pids").is_empty());
    }
}
