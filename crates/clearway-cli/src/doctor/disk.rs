//! The data directory: its file system, its space, its speed, and the database in it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clearway::config::Config;
use clearway::inspect::{self, Database, Holder, Structure};

use super::finding::{Finding, size};
use super::mounts::{self, Mount};

/// All about it, and who uses it.
pub(crate) fn all(config: &Config) -> (Vec<Finding>, Option<Holder>) {
    let directory = config.server.data.clone().unwrap_or_else(|| PathBuf::from("data"));
    let there = existing(&directory);
    let inspection = inspect::data(&directory);
    let findings = vec![
        place(&directory, mounts::of(&there)),
        space(&there),
        speed(&there),
        database(&inspection.database),
        lock(&directory, inspection.in_use),
    ];
    (findings, inspection.in_use)
}

/// The directory, or the one above in which it would be made; without links.
fn existing(directory: &Path) -> PathBuf {
    let absolute = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
    let found = absolute.ancestors().find_map(|at| fs::canonicalize(at).ok());
    found.unwrap_or(absolute)
}

fn place(directory: &Path, mount: Option<Mount>) -> Finding {
    const WHY: &str = "everything that was acknowledged is kept there";
    const FIX: &str = "choose another directory (--data, or server.data)";
    let at = directory.display();
    if directory.exists() && !directory.is_dir() {
        return Finding::fail("data", format!("{at} is no directory"), WHY, FIX);
    }
    let Some(mount) = mount else {
        return Finding::ok("data", format!("{at}, on a file system that is not known"), WHY);
    };
    let found = format!("{at}, on {}", mount.kind);
    if mount.read_only {
        Finding::fail("data", format!("{found}, read-only"), WHY, FIX)
    } else if mount.is_remote() {
        Finding::warn(
            "data",
            found,
            "on a network file system a commit takes as long as the network, and its locks may not \
             keep a second server out",
            FIX,
        )
    } else if mount.is_volatile() {
        Finding::warn(
            "data",
            found,
            "it is gone with the container or the next boot",
            "mount a volume there, or choose a directory on one",
        )
    } else if !directory.exists() {
        Finding::ok("data", format!("{found}; it is made at the first start"), WHY)
    } else {
        Finding::ok("data", found, WHY)
    }
}

fn space(there: &Path) -> Finding {
    match rustix::fs::statvfs(there) {
        Ok(stat) => judge_space(
            stat.f_bavail.saturating_mul(stat.f_frsize),
            stat.f_blocks.saturating_mul(stat.f_frsize),
        ),
        Err(error) => Finding::warn(
            "disk space",
            format!("it cannot be read: {error}"),
            SPACE,
            "look at the permissions of the data directory",
        ),
    }
}

const SPACE: &str = "on a full disk runs wait until there is room again";
const LEAST_SPACE: u64 = 64 << 20;
const ENOUGH_SPACE: u64 = 1 << 30;

fn judge_space(free: u64, whole: u64) -> Finding {
    let found = format!("{} of {} free", size(free), size(whole));
    let fix = "free some, or choose a larger disk";
    match free {
        0..LEAST_SPACE => Finding::fail("disk space", found, SPACE, fix),
        LEAST_SPACE..ENOUGH_SPACE => Finding::warn("disk space", found, SPACE, fix),
        _ => Finding::ok("disk space", found, SPACE),
    }
}

/// Writes that are timed.
const WRITES: usize = 20;
/// And for how long at most.
const WRITING: Duration = Duration::from_secs(2);
/// A page of a commit.
const PAGE: [u8; 8192] = [0x5a; 8192];

/// Writes as a commit does, into a file that is gone afterwards.
fn speed(there: &Path) -> Finding {
    let measure = || -> std::io::Result<Vec<Duration>> {
        let mut file = tempfile::tempfile_in(there)?;
        let began = Instant::now();
        let mut times = Vec::with_capacity(WRITES);
        while times.len() < WRITES && began.elapsed() < WRITING {
            let start = Instant::now();
            file.write_all(&PAGE)?;
            file.sync_data()?;
            times.push(start.elapsed());
        }
        Ok(times)
    };
    match measure() {
        Ok(times) => judge_speed(times),
        Err(error) => Finding::fail(
            "disk speed",
            format!("{} cannot be written: {error}", there.display()),
            "what cannot be written cannot be acknowledged",
            "check the permissions of the directory and the user of the server, or choose another \
             one with --data",
        ),
    }
}

/// Above this a commit is felt.
const SLOW: Duration = Duration::from_millis(20);

fn judge_speed(mut times: Vec<Duration>) -> Finding {
    const WHY: &str = "a request is acknowledged when it is on the disk, and those that wait \
                       together share one write";
    times.sort_unstable();
    let ms = |at: usize| times.get(at).copied().unwrap_or_default().as_secs_f64() * 1e3;
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    let found = format!(
        "write and sync {:.2} ms in the middle, {:.2} ms at worst, of {}",
        median.as_secs_f64() * 1e3,
        ms(times.len().saturating_sub(1)),
        times.len()
    );
    if median > SLOW {
        return Finding::warn("disk speed", found, WHY, "use a local disk, best an SSD");
    }
    Finding::ok("disk speed", found, WHY)
}

fn database(database: &Database) -> Finding {
    const WHY: &str = "it holds all runs and threads";
    match database {
        Database::Missing => {
            Finding::ok("database", "there is none yet; it is made at the first start", WHY)
        }
        Database::Readable { schema, newest, size_bytes, structure } => {
            let schema = if schema == newest {
                format!("schema {schema}")
            } else {
                format!("schema {schema}, brought up to {newest} at the next start")
            };
            let structure = match structure {
                Structure::Sound => "no damage found",
                Structure::NotFinished => "no damage found as far as it was checked",
            };
            Finding::ok("database", format!("{}, {schema}, {structure}", size(*size_bytes)), WHY)
        }
        Database::Unusable(why) => {
            // The sentence says what to do behind its last colon.
            let (found, fix) = why.rsplit_once(": ").unwrap_or((why, "restore it from a backup"));
            Finding::fail("database", found, WHY, fix)
        }
    }
}

fn lock(directory: &Path, holder: Option<Holder>) -> Finding {
    const WHY: &str = "a data directory has one server at a time";
    let Some(Holder { process }) = holder else {
        return Finding::ok("lock", "no server uses the data directory", WHY);
    };
    let who = process.map_or("another process".to_owned(), |id| format!("process {id}"));
    Finding::warn(
        "lock",
        format!("{} is in use by {who}", directory.display()),
        WHY,
        "if that is the server, all is well; to start another one, stop it or use --data",
    )
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn file_systems_are_judged() {
        let scratch = tempfile::tempdir().unwrap();
        let level = |kind: &str, read_only| {
            place(scratch.path(), Some(Mount { kind: kind.to_owned(), read_only })).level
        };
        assert_eq!(level("ext4", false), Level::Ok);
        assert_eq!(level("ext4", true), Level::Fail);
        assert_eq!(level("nfs4", false), Level::Warn);
        assert_eq!(level("overlay", false), Level::Warn);
        assert_eq!(place(scratch.path(), None).level, Level::Ok);
        let file = scratch.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(place(&file, None).level, Level::Fail);
    }

    #[test]
    fn space_and_speed_are_judged() {
        let levels = [0, 1 << 20, 100 << 20, 2 << 30].map(|free| judge_space(free, 1 << 40).level);
        assert_eq!(levels, [Level::Fail, Level::Fail, Level::Warn, Level::Ok]);
        let ms = |ms: &[u64]| ms.iter().map(|ms| Duration::from_millis(*ms)).collect();
        assert_eq!(
            judge_speed(ms(&[1, 2, 900])).level,
            Level::Ok,
            "one slow write is no slow disk"
        );
        assert_eq!(judge_speed(ms(&[30, 40, 25])).level, Level::Warn);
        assert_eq!(judge_speed(Vec::new()).level, Level::Ok);
    }

    #[test]
    fn a_directory_that_is_not_there_is_not_made() {
        let scratch = tempfile::tempdir().unwrap();
        let there = existing(&scratch.path().join("a/b"));
        assert_eq!(there, scratch.path().canonicalize().unwrap());
        assert_eq!(speed(&there).level, Level::Ok);
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
        assert_eq!(speed(Path::new("/nowhere/at/all")).level, Level::Fail);
    }

    #[test]
    fn what_is_wrong_with_a_database_and_what_to_do_are_told_apart() {
        let finding = database(&Database::Unusable("x is damaged: restore it".to_owned()));
        assert_eq!((finding.found.as_str(), finding.fix.as_str()), ("x is damaged", "restore it"));
    }
}
