//! What can be found out about a host and a project without starting a server.
//!
//! [`Needs`] is what a configuration asks of the host, [`can_start_threads`] tries the one need
//! that cannot be read from a limit, [`data`] looks at a data directory without changing it, and
//! [`reach`] times the way to a provider with the code that calls it later.
//!
//! Not here: judging any of it. That needs to know who asks and why (`clearway doctor`).

use std::io;

use clearway_server::HttpLimits;

pub use clearway_store::{Database, Holder, Inspection, Structure, inspect as data};

pub use self::reach::{Outcome, Phase, Reach, STEP, reach};
use crate::config::Config;
use crate::threads;

mod reach;

/// What a server with a configuration needs of its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// OS threads of the server; the process that runs it may add some.
    pub threads: usize,
    /// Clients' connections at once.
    pub connections: usize,
    /// Open files for that many; with fewer the server takes fewer connections.
    pub open_files: u64,
}

impl Needs {
    pub fn of(config: &Config) -> Self {
        let configured = config.server.limits.max_connections;
        let connections = configured.unwrap_or_else(|| HttpLimits::default().connections);
        Self {
            threads: threads::needed(config.server.worker_threads),
            connections,
            open_files: clearway_server::open_files_for(connections),
        }
    }
}

/// Starts so many OS threads at once and lets them end.
///
/// # Errors
/// The host refuses one of them.
pub fn can_start_threads(count: usize) -> io::Result<()> {
    threads::probe(count)
}
