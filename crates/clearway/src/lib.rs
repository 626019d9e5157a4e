//! Clearway as a library: an agent server where nothing blocks, hangs or gets lost.
//!
//! [`Config`] is a checked `clearway.toml`; [`Clearway::start`] makes a running server of it; the
//! handle says where it listens and stops it within a bound. [`client`] asks a server that runs
//! somewhere.
//!
//! ```
//! use clearway::{Clearway, Config, Options, config::Env};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let data = tempfile::tempdir()?;
//! let mut config = Config::parse(
//!     "clearway.toml",
//!     "
//!     [providers.house]
//!     kind     = 'openai'
//!     base_url = 'http://127.0.0.1:9000/v1'
//!
//!     [agents.cofounder]
//!     prompt = 'You help {{ agent.title }} to think.'
//!     ",
//!     &Env::default(),
//! )?;
//! config.server.listen = Some("127.0.0.1:0".parse()?);
//! # config.server.data = Some(data.path().to_owned());
//!
//! let runtime = clearway::runtime(config.server.worker_threads)?;
//! runtime.block_on(async {
//!     let clearway = Clearway::start(config, Options::default()).await?;
//!     println!("http://{}", clearway.address());
//!     clearway.shutdown(std::time::Duration::from_secs(1), std::future::pending()).await;
//!     Ok(())
//! })
//! # }
//! ```
//!
//! Agents can be written in code, too: see [`graph`].
//!
//! Start reading at [`config`], then `server.rs`.
//!
//! Not here: the built-in simulator (whoever wants one hands it in as [`Simulator`]), flags, signals,
//! log output, and the process's `tracing` subscriber (`clearway-cli`).

// `derive(State)` names this crate as its users do.
#[cfg(test)]
extern crate self as clearway;

mod agents;
pub mod builtin;
pub mod client;
pub mod config;
pub mod graph;
pub mod inspect;
pub mod knowledge;
mod mcp;
mod pdf;
mod server;
mod services;
mod simulator;
pub mod telemetry;
mod threads;
mod tools;
mod upstream;
pub mod workflow;

pub use clearway_core::Timestamp;
pub use clearway_engine::knowledge::ReaderCommand;
pub use clearway_knowledge as retrieval;
pub use config::{Config, Report};
pub use server::{Clearway, Options, Ports, StartError};
pub use simulator::{Connection, Serve, Simulator};
pub use telemetry::Telemetry;
pub use threads::{ThreadsError, runtime};

/// The machine's wall clock.
pub fn now() -> Timestamp {
    clearway_core::Clock::now(&clearway_store::SystemClock)
}

/// Checks a configuration file and everything it names.
///
/// # Errors
/// All that is wrong, each with its place.
pub fn check(file: &std::path::Path, env: &config::Env) -> Result<Config, Report> {
    Config::check(file, env)
}
