//! Opening a connection to a provider.
//!
//! A [`Dial`] turns an [`Endpoint`] into a byte stream and reports what it is busy with, so that a
//! waiting run can say `dns` or `connect`. It keeps no time of its own: the caller drops the future
//! when a limit passes, which must close whatever was half open.
//!
//! Not here: HTTP (`transport`), and how long any of it may take (`attempt`).

use std::fmt;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::Endpoint;

pub use tcp::TcpDial;

mod tcp;

/// A byte stream to a provider.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// What dialling is busy with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialPhase {
    Dns,
    Connect,
    Tls,
}

impl DialPhase {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Tls => "tls",
        }
    }
}

/// Receives each phase before it starts.
pub type Report<'a> = &'a (dyn Fn(DialPhase) + Sync);

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct DialError {
    pub phase: DialPhase,
    pub message: String,
}

impl DialError {
    pub fn new(phase: DialPhase, message: impl Into<String>) -> Self {
        Self { phase, message: message.into() }
    }
}

/// Opens connections. Dropping the future gives up and closes what was opened so far.
pub trait Dial: Send + Sync + fmt::Debug {
    fn dial<'a>(
        &'a self,
        endpoint: &'a Endpoint,
        report: Report<'a>,
    ) -> BoxFuture<'a, Result<Box<dyn Io>, DialError>>;
}
