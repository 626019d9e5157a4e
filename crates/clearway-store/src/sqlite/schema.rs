//! Opening a database file: its settings, and bringing its schema up to date.
//!
//! **Invariant:** a file is never changed by a version that does not know all of it: a newer
//! `user_version` is refused before anything is written. Each migration is one transaction together
//! with its version number, so a crash leaves the file at one version or the next.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::OURS_ALONE;
use super::fail::{explain, explain_io};
use crate::error::{Error, ErrorKind, Result};

/// Migrations in order; the file's `user_version` counts those applied.
pub(super) const MIGRATIONS: &[&str] = &[
    include_str!("../../migrations/sqlite/0001_initial.sql"),
    include_str!("../../migrations/sqlite/0002_cost.sql"),
    include_str!("../../migrations/sqlite/0003_graphs.sql"),
    include_str!("../../migrations/sqlite/0004_library.sql"),
    include_str!("../../migrations/sqlite/0005_knowledge.sql"),
    include_str!("../../migrations/sqlite/0006_attempts.sql"),
    include_str!("../../migrations/sqlite/0007_ranges.sql"),
];

/// Marks a file as ours: "CLWY".
const APPLICATION_ID: i32 = 0x434c_5759;

/// How long to wait for a foreign program (a shell, a backup) that holds the file.
const BUSY: Duration = Duration::from_secs(2);

const STATEMENTS: usize = 128;

/// Opens the connection that writes, and brings the file up to date.
///
/// # Errors
/// See [`migrate`]; and whatever keeps the file from being opened.
pub(super) fn open_writer(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || {
        let conn = Connection::open_with_flags(path, flags)?;
        configure(&conn)?;
        Ok(conn)
    };
    let settle = |conn: &Connection| {
        // The first two only take effect on an empty file, and only in this order before WAL.
        conn.execute_batch(
            "PRAGMA page_size = 4096;
             PRAGMA auto_vacuum = INCREMENTAL;
             PRAGMA journal_mode = WAL;
             PRAGMA synchronous = FULL;
             PRAGMA wal_autocheckpoint = 0;
             PRAGMA journal_size_limit = 67108864;
             PRAGMA temp_store = MEMORY;
             PRAGMA cache_size = -8192;
             PRAGMA trusted_schema = OFF;",
        )
    };
    create(path)?;
    let mut conn = open().map_err(|error| explain(error, path))?;
    identify(&conn, MIGRATIONS.len(), path)?;
    settle(&conn).map_err(|error| explain(error, path))?;
    migrate(&mut conn, MIGRATIONS, path)?;
    Ok(conn)
}

/// Makes the file if it is missing: SQLite would make it readable for everybody. Its other files get
/// the mode of this one.
fn create(path: &Path) -> Result<()> {
    match File::options().write(true).create_new(true).mode(OURS_ALONE).open(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(explain_io(error, "create the database", path))
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Settings of every connection.
fn configure(conn: &Connection) -> rusqlite::Result<()> {
    conn.busy_timeout(BUSY)?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS);
    // Plans must not depend on bound values: SQLite would plan cached statements anew at each use,
    // which was a quarter of all time.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(())
}

/// Opens a connection that reads.
pub(super) fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    configure(&conn)?;
    conn.execute_batch("PRAGMA cache_size = -2048; PRAGMA temp_store = MEMORY;")?;
    Ok(conn)
}

/// Looks whether the file is ours and not newer than `known` migrations; says how many it has.
pub(super) fn identify(conn: &Connection, known: usize, path: &Path) -> Result<usize> {
    let at = path.display();
    let sql = |error| explain(error, path);
    let (application, tables): (i32, u32) = conn
        .query_row(
            "SELECT (SELECT application_id FROM pragma_application_id),
                    (SELECT count(*) FROM sqlite_schema)",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .map_err(sql)?;
    if application != APPLICATION_ID && (application != 0 || tables > 0) {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!("{at} is the database of another program: choose another data directory"),
        ));
    }
    let version = version(conn).map_err(sql)? as usize;
    if version > known {
        return Err(Error::new(
            ErrorKind::NewerSchema,
            format!(
                "{at} was written by a newer version of Clearway (its schema is {version}, this one \
                 knows up to {known}): use that version"
            ),
        ));
    }
    Ok(version)
}

/// Applies what is missing of `migrations`.
///
/// # Errors
/// The file is somebody else's, or from a newer version; or a migration failed, which leaves the
/// file at the version before it.
fn migrate(conn: &mut Connection, migrations: &[&str], path: &Path) -> Result<()> {
    let version = identify(conn, migrations.len(), path)?;
    for (done, migration) in migrations.iter().enumerate().skip(version) {
        let mut step = || {
            let tx = conn.transaction()?;
            tx.execute_batch(migration)?;
            tx.pragma_update(None, "application_id", APPLICATION_ID)?;
            tx.pragma_update(None, "user_version", done as u32 + 1)?;
            tx.commit()
        };
        step().map_err(|error| explain(error, path))?;
    }
    let (path, newest) = (path.display(), migrations.len());
    match version {
        0 => tracing::info!(store.path = %path, store.schema = newest, "store made"),
        known if known < newest => tracing::info!(
            store.path = %path, store.schema = newest, store.before = known,
            "store schema brought up to date"
        ),
        _ => {}
    }
    Ok(())
}

/// Migrations applied so far.
pub(super) fn version(conn: &Connection) -> rusqlite::Result<u32> {
    conn.query_row("SELECT user_version FROM pragma_user_version", [], |row| row.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEWEST: u32 = MIGRATIONS.len() as u32;
    const LATER: &str = "ALTER TABLE runs ADD COLUMN later INTEGER NOT NULL DEFAULT 7";

    fn file() -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = crate::conformance::scratch();
        let path = directory.path().join("clearway.db");
        (directory, path)
    }

    #[test]
    fn migrations_are_applied_once_and_in_order() {
        let (_directory, path) = file();
        let mut conn = open_writer(&path).unwrap();
        assert_eq!(version(&conn).unwrap(), NEWEST);
        migrate(&mut conn, MIGRATIONS, &path).unwrap();
        assert_eq!(version(&conn).unwrap(), NEWEST);
        let schema = |conn: &Connection| -> String {
            let sql =
                "SELECT group_concat(sql, ';') FROM (SELECT sql FROM sqlite_schema ORDER BY name)";
            conn.query_row(sql, [], |row| row.get(0)).unwrap()
        };
        // From the previous version and from nothing the same comes out.
        let later = [MIGRATIONS, &[LATER]].concat();
        migrate(&mut conn, &later, &path).unwrap();
        assert_eq!(version(&conn).unwrap(), NEWEST + 1);
        let mut fresh = Connection::open_in_memory().unwrap();
        migrate(&mut fresh, &later, Path::new("fresh")).unwrap();
        assert_eq!(schema(&conn), schema(&fresh));
        // And the version before does not know the file any more.
        let error = migrate(&mut conn, MIGRATIONS, &path).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NewerSchema);
    }

    #[test]
    fn a_failed_migration_leaves_the_version_before() {
        let (_directory, path) = file();
        let mut conn = open_writer(&path).unwrap();
        let broken = [MIGRATIONS, &["CREATE TABLE half (x); SELECT nonsense"]].concat();
        migrate(&mut conn, &broken, &path).unwrap_err();
        assert_eq!(version(&conn).unwrap(), NEWEST);
        let half: i64 = conn
            .query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'half'", [], |row| {
                row.get(0)
            })
            .unwrap();
        assert_eq!(half, 0);
        migrate(&mut conn, &[MIGRATIONS, &[LATER]].concat(), &path).unwrap();
    }
}
