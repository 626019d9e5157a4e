//! Looking at a data directory from outside, before a server starts or while one runs.
//!
//! **Invariant:** nothing in the directory changes. A database that nobody uses is read without
//! locks and without the files that SQLite would put beside it, because those would belong to
//! whoever looks, and the server may be another user.
//!
//! Not here: repairing anything, and bringing a schema up to date (that happens at start).

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::schema::{self, MIGRATIONS};
use super::{DATABASE, LOCK, fail};
use crate::error::Result;

/// What is in a data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// Whether another process works on it.
    pub in_use: Option<Holder>,
    pub database: Database,
}

/// The process that holds a data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// `None` when it did not write down who it is.
    pub process: Option<u32>,
}

/// The database file of a data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Database {
    Missing,
    /// Ours, and readable. `schema` migrations of `newest` were applied.
    Readable {
        schema: usize,
        newest: usize,
        size_bytes: u64,
        structure: Structure,
    },
    /// A server could not use it, and why.
    Unusable(String),
}

/// What a check of the file's structure came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Structure {
    Sound,
    /// No damage was found in the time that a check may take.
    NotFinished,
}

/// Looks at a data directory. Blocks for a few seconds at most, on a disk that answers.
pub fn inspect(directory: &Path) -> Inspection {
    let in_use = holder(&directory.join(LOCK));
    let path = directory.join(DATABASE);
    let database = match std::fs::metadata(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Database::Missing,
        Err(error) => Database::Unusable(format!("cannot look at {}: {error}", path.display())),
        Ok(file) => match read(&path, in_use.is_some()) {
            Ok((schema, structure)) => Database::Readable {
                schema,
                newest: MIGRATIONS.len(),
                size_bytes: file.len(),
                structure,
            },
            Err(error) => Database::Unusable(error.to_string()),
        },
    };
    Inspection { in_use, database }
}

/// Who has the lock. It is tried for an instant, since nothing portable says who holds it.
fn holder(path: &Path) -> Option<Holder> {
    let lock = File::open(path).ok()?;
    match lock.try_lock_shared() {
        Err(TryLockError::WouldBlock) => {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            Some(Holder { process: text.trim().parse().ok() })
        }
        Ok(()) | Err(TryLockError::Error(_)) => None,
    }
}

fn read(path: &Path, in_use: bool) -> Result<(usize, Structure)> {
    let explain = |error| fail::explain(error, path);
    let mut conn = open(path, in_use).map_err(explain)?;
    let schema = schema::identify(&conn, MIGRATIONS.len(), path)?;
    let until = Instant::now() + CHECK;
    conn.progress_handler(CHECK_STEPS, Some(move || Instant::now() >= until)).map_err(explain)?;
    let checked = conn.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
    match checked {
        Ok(said) if said == "ok" => Ok((schema, Structure::Sound)),
        Ok(_) => Err(fail::damaged(path)),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => {
            Ok((schema, Structure::NotFinished))
        }
        Err(error) => Err(explain(error)),
    }
}

/// Without a server and without a log of writes that are not folded in yet, the file is all there
/// is, and can be read as if it could not change.
fn open(path: &Path, in_use: bool) -> rusqlite::Result<Connection> {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let has_log = std::fs::metadata(log).is_ok_and(|log| log.len() > 0);
    match path.to_str() {
        Some(text) if !in_use && !has_log => {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
                | OpenFlags::SQLITE_OPEN_URI
                | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let plain = text.replace('%', "%25").replace('?', "%3f").replace('#', "%23");
            Connection::open_with_flags(format!("file:{plain}?immutable=1"), flags)
        }
        Some(_) | None => schema::open_reader(path),
    }
}

/// For the check of the structure, which reads the whole file.
const CHECK: Duration = Duration::from_secs(3);

/// Steps of SQLite's machine between two looks at the time.
const CHECK_STEPS: i32 = 10_000;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::conformance::scratch;
    use crate::{SqliteOptions, SqliteStore, Store, SystemClock};

    fn names(directory: &Path) -> Vec<String> {
        let files = std::fs::read_dir(directory).unwrap();
        let mut names: Vec<String> =
            files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn a_directory_is_judged_and_not_touched() {
        let scratch = scratch();
        let directory = scratch.path().join("with ? and #");
        let nothing = Inspection { in_use: None, database: Database::Missing };
        assert_eq!(inspect(&directory), nothing);
        assert!(!directory.exists());

        let clock = Arc::new(SystemClock);
        let store = SqliteStore::open(&directory, SqliteOptions::default(), clock).await.unwrap();
        let used = inspect(&directory);
        assert_eq!(used.in_use, Some(Holder { process: Some(std::process::id()) }));
        assert!(matches!(used.database, Database::Readable { schema: 7, newest: 7, .. }));

        let me = clearway_core::InstanceId(uuid::Uuid::from_u128(7));
        store.join(me).await.unwrap();
        store.close(me).await.unwrap();
        let before = names(&directory);
        let idle = inspect(&directory);
        assert_eq!(idle.in_use, None);
        assert!(matches!(
            idle.database,
            Database::Readable { size_bytes: 1.., structure: Structure::Sound, .. }
        ));
        assert_eq!(names(&directory), before);
    }

    #[test]
    fn what_no_server_could_use_is_said() {
        let scratch = scratch();
        let path = scratch.path().join(DATABASE);
        std::fs::write(&path, vec![b'x'; 8192]).unwrap();
        let Database::Unusable(why) = inspect(scratch.path()).database else { panic!() };
        assert!(why.contains("damaged"), "{why}");

        std::fs::remove_file(&path).unwrap();
        let foreign = Connection::open(&path).unwrap();
        foreign.execute_batch("CREATE TABLE other (x)").unwrap();
        drop(foreign);
        let Database::Unusable(why) = inspect(scratch.path()).database else { panic!() };
        assert!(why.contains("another program"), "{why}");
    }
}
