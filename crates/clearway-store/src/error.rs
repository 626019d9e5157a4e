//! Why the store could not do it, and whether it certainly did not.

use clearway_core::Code;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed store operation.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub kind: ErrorKind,
    /// For the person who reads it: what, where, what would be right.
    pub message: String,
    /// Whether the transaction certainly did not happen.
    pub certainly_aborted: bool,
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What kind of trouble: each asks for another reaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// No space on the disk. Reading still works; writing will, once there is space.
    DiskFull,
    /// Another process holds the data directory.
    Locked,
    /// The file is not a database or is damaged.
    Corrupt,
    /// No permission to write.
    ReadOnly,
    /// Written by a newer version of Clearway.
    NewerSchema,
    /// The store is closing or gone.
    Closed,
    /// The queue in front of the writer is full.
    Busy,
    /// The same Idempotency-Key with another body.
    IdempotencyConflict,
    /// The operation's arguments contradict the stored rows.
    Conflict,
    /// Anything else, with its source.
    Other,
}

impl Error {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), certainly_aborted: true, source: None }
    }

    #[must_use]
    pub fn caused_by(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    /// The transaction may have happened: the answer was lost.
    #[must_use]
    pub const fn outcome_unknown(mut self) -> Self {
        self.certainly_aborted = false;
        self
    }

    /// Whether a later try may succeed without anybody changing the request.
    pub const fn is_transient(&self) -> bool {
        match self.kind {
            ErrorKind::DiskFull | ErrorKind::Locked | ErrorKind::ReadOnly | ErrorKind::Busy => true,
            ErrorKind::Corrupt
            | ErrorKind::NewerSchema
            | ErrorKind::Closed
            | ErrorKind::IdempotencyConflict
            | ErrorKind::Conflict => false,
            ErrorKind::Other => !self.certainly_aborted,
        }
    }

    pub const fn code(&self) -> Code {
        match self.kind {
            ErrorKind::DiskFull
            | ErrorKind::Locked
            | ErrorKind::Corrupt
            | ErrorKind::ReadOnly
            | ErrorKind::NewerSchema
            | ErrorKind::Busy => Code::StoreUnavailable,
            ErrorKind::Closed => Code::ShuttingDown,
            ErrorKind::IdempotencyConflict => Code::IdempotencyConflict,
            ErrorKind::Conflict | ErrorKind::Other => Code::Internal,
        }
    }
}
