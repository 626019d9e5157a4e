//! `clearway serve` or `dev` as a child.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::Instant;

use crate::cli::Binary;
use crate::http::Client;
use crate::process::{Exit, Process, children};
use crate::wait::{PATIENCE, until};

/// How to start a server.
#[derive(Clone, Debug)]
pub struct Command {
    pub binary: Binary,
    /// `serve` or `dev`.
    pub name: &'static str,
    /// Where it runs.
    pub folder: PathBuf,
    /// After its name; the address is added.
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// A program that starts it, such as a tracer.
    pub wrapper: Vec<String>,
}

impl Command {
    pub fn new(binary: &Binary, name: &'static str, folder: &Path) -> Self {
        Self {
            binary: binary.clone(),
            name,
            folder: folder.to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            wrapper: Vec::new(),
        }
    }

    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Starts it without waiting for anything.
    ///
    /// # Errors
    /// The program is not there.
    pub fn spawn(&self, address: SocketAddr, log: &Path) -> Result<Server> {
        let mut command = self.binary.command_through(&self.wrapper, &self.folder);
        // Details of steps and calls too: the check of log lines needs them.
        command.env("RUST_LOG", "info,clearway=debug,clearway_server=info");
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.arg(self.name).args(&self.args);
        if !self.args.iter().any(|arg| arg == "--listen" || arg == "--port") {
            command.args(["--listen", &address.to_string()]);
        }
        let spawned = Instant::now();
        let process = Process::spawn(self.name, command, log)?;
        Ok(Server { process, address, spawned, is_wrapped: !self.wrapper.is_empty() })
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// It ends, or is not ready in time.
    pub async fn start(&self, address: SocketAddr, log: &Path) -> Result<Server> {
        let mut server = self.spawn(address, log)?;
        server.ready(PATIENCE).await?;
        Ok(server)
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    process: Process,
    address: SocketAddr,
    spawned: Instant,
    is_wrapped: bool,
}

impl Server {
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    pub const fn client(&self) -> Client {
        Client::new(self.address)
    }

    pub const fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Everything it has printed.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Waits until it says that it is ready; returns the time since its start.
    ///
    /// # Errors
    /// It ends, or is not ready `within`.
    pub async fn ready(&mut self, within: Duration) -> Result<Duration> {
        let client = self.client();
        let process = &mut self.process;
        until("the server is ready", within, async || {
            if let Some(exit) = process.exited()? {
                bail!("the server ended: {exit:?}");
            }
            let answer = client.get("/health/ready").limit(Duration::from_secs(2)).send().await;
            Ok(answer.is_ok_and(|answer| answer.status == 200))
        })
        .await?;
        Ok(self.spawned.elapsed())
    }

    /// Threads, open files and memory of the server itself, not of its wrapper.
    ///
    /// # Errors
    /// It is gone.
    pub fn census(&self) -> Result<crate::Census> {
        self.process.census()
    }

    /// Asks it to stop and waits for its end.
    ///
    /// # Errors
    /// It goes on longer than `within`.
    pub async fn stop(&mut self, within: Duration) -> Result<Exit> {
        self.terminate()?;
        self.process.exit(within).await
    }

    /// Asks it to stop.
    ///
    /// # Errors
    /// It is gone already.
    pub fn terminate(&self) -> Result<()> {
        // A tracer is the server's parent; other wrappers have become the server.
        match children(self.process.pid()).as_slice() {
            [server] if self.is_wrapped => crate::process::terminate(*server),
            _ => self.process.terminate(),
        }
    }
}
