//! What SQLite's errors mean to us.

use std::io;
use std::path::Path;

use rusqlite::ErrorCode;

use crate::error::{Error, ErrorKind};

/// Why an operation inside a transaction stopped.
#[derive(Debug)]
pub(super) enum Fail {
    /// The operation itself is wrong; the transaction goes on without it.
    Refused(Error),
    Sql(rusqlite::Error),
}

impl From<rusqlite::Error> for Fail {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<Error> for Fail {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl Fail {
    /// For the caller of the store; `path` is the database's.
    pub(super) fn explain(self, path: &Path) -> Error {
        match self {
            Self::Refused(error) => error,
            Self::Sql(error) => explain(error, path),
        }
    }
}

/// Says what, where, and what to do.
pub(super) fn explain(error: rusqlite::Error, path: &Path) -> Error {
    let at = path.display();
    let kind = kind(&error, path);
    let message = match kind {
        ErrorKind::DiskFull => format!(
            "no space to write {at} ({} bytes free on its disk): free some{GOES_ON}",
            free_bytes(path).map_or_else(|| "?".to_owned(), |free| free.to_string())
        ),
        ErrorKind::Locked => format!(
            "{at} is locked by another program: close it (a database shell, a backup) or wait"
        ),
        ErrorKind::Corrupt => damaged(path).message,
        ErrorKind::ReadOnly => {
            format!("{at} cannot be written: check the permissions of the file and its directory")
        }
        ErrorKind::Conflict => format!("{at}: a stored row contradicts the operation: {error}"),
        ErrorKind::NewerSchema
        | ErrorKind::Closed
        | ErrorKind::Busy
        | ErrorKind::IdempotencyConflict
        | ErrorKind::Other => format!("{at}: {error}"),
    };
    Error::new(kind, message).caused_by(error)
}

/// What a running server does about a full disk.
const GOES_ON: &str = "; reading goes on, and writing resumes by itself";

/// What is true of a running server only is not said by one that cannot start.
pub(super) fn at_start(mut error: Error) -> Error {
    if error.kind == ErrorKind::DiskFull {
        let instead = ", then start again, or choose another data directory";
        error.message = error.message.replace(GOES_ON, instead);
    }
    error
}

/// The file is no database, or its structure is broken.
pub(super) fn damaged(path: &Path) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!(
            "{} is not a database or is damaged: restore it from a backup, or move it away to \
             start empty",
            path.display()
        ),
    )
}

fn kind(error: &rusqlite::Error, path: &Path) -> ErrorKind {
    let Some(code) = error.sqlite_error_code() else {
        return match error {
            // A value of the wrong type or range: this code did not write it.
            rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::InvalidColumnType(..) => ErrorKind::Corrupt,
            _ => ErrorKind::Other,
        };
    };
    match code {
        ErrorCode::DiskFull => ErrorKind::DiskFull,
        // Growing the shared-memory file on a full disk is reported as an I/O error.
        ErrorCode::SystemIoFailure if free_bytes(path).is_some_and(|free| free < LITTLE) => {
            ErrorKind::DiskFull
        }
        ErrorCode::DatabaseBusy
        | ErrorCode::DatabaseLocked
        | ErrorCode::FileLockingProtocolFailed => ErrorKind::Locked,
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => ErrorKind::Corrupt,
        ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen => {
            ErrorKind::ReadOnly
        }
        ErrorCode::ConstraintViolation => ErrorKind::Conflict,
        _ => ErrorKind::Other,
    }
}

/// Below this many free bytes an I/O error is a full disk.
const LITTLE: u64 = 1 << 20;

/// Free space for us on the disk of a path.
pub(super) fn free_bytes(path: &Path) -> Option<u64> {
    // The file may not exist yet; its directory is on the same disk.
    let near = path.parent().unwrap_or(path);
    let stat = rustix::fs::statvfs(path).or_else(|_| rustix::fs::statvfs(near)).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// An error of the file system, while opening.
pub(super) fn explain_io(error: io::Error, doing: &str, path: &Path) -> Error {
    let at = path.display();
    let (kind, hint) = match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            (ErrorKind::ReadOnly, ": check permissions, or choose another data directory")
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            (ErrorKind::DiskFull, ": free some, then start again, or choose another data directory")
        }
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            (ErrorKind::Other, ": something that is no directory is in the way")
        }
        _ => (ErrorKind::Other, ""),
    };
    Error::new(kind, format!("cannot {doing} {at}: {error}{hint}")).caused_by(error)
}
