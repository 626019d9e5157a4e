//! Everything an end-to-end test needs to treat the real binary as a stranger would.
//!
//! A test starts `clearway sim` and `clearway serve` (or `dev`) as child processes on ports of their
//! own, talks to them over sockets, kills them, starts them again on the same data, and looks at
//! what is left: answers, event logs, log lines, threads, open files.
//!
//! ```no_run
//! # async fn test() -> anyhow::Result<()> {
//! use clearway_testkit::{Binary, World};
//!
//! let binary = Binary::new("target/debug/clearway");
//! let world = World::new(binary).start().await?;
//! let answer = world.client().post("/chat").json(&serde_json::json!({"user_id": "u", "message": "hi"})).send().await?;
//! assert_eq!(answer.status, 200);
//! world.finish().await
//! # }
//! ```
//!
//! [`sweep`] is another matter: it runs graphs in this process, over the store in memory and on paused
//! time, and stops them at every point at which a process can die.
//!
//! What must stay true: outside of `sweep` nothing here knows our crates, so a bug in one of them
//! cannot hide in the check for it; no step waits for a delay, all wait for a state, and each wait has an end; a child
//! never outlives its test; a test that goes wrong prints the end of every log.

mod check;
mod cli;
mod config;
mod files;
mod http;
pub mod otlp;
mod port;
mod process;
mod server;
mod sim;
mod sink;
mod sse;
pub mod sweep;
mod wait;
mod world;

pub use check::{LogLine, Pairs, check_gapless, log_lines, pairs, without_cause};
pub use cli::{Binary, Output};
pub use config::{Agent, Config, Model, Pool};
pub use files::{Scratch, is_root, make_readable};
pub use http::{Client, Headers, Raw, Request, Response, Stream};
pub use port::{free_port, reserve_port};
pub use process::{Census, Exit, Process};
pub use server::{Command, Server};
pub use sim::{Sim, SimOptions};
pub use sink::{Sink, Write};
pub use sse::{Event, Parser};
pub use wait::{PATIENCE, until, until_some};
pub use world::{Builder, World};
