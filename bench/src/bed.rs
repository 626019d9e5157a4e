//! The test bed: the processes that a measurement needs, started as a user would start them.
//!
//! The binary under test is the release build; the simulator is the same binary's `sim`. Each bed has its own
//! temporary folder with configuration, data and logs, and ends its processes when it is dropped.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::http::{self, Request};
use crate::report::say;

pub(crate) mod config;
pub(crate) mod nginx;

/// How long a process may take to answer for the first time.
const START: Duration = Duration::from_secs(15);
const CONTROL: Duration = Duration::from_secs(10);

/// Where to find what is measured.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    pub(crate) clearway: PathBuf,
    pub(crate) nginx: PathBuf,
}

impl Tools {
    /// Takes the binary that is named, or the workspace's release build, which is made if it is not there.
    pub(crate) async fn find(clearway: Option<PathBuf>, nginx: PathBuf) -> Result<Self> {
        if let Some(clearway) = clearway {
            ensure!(clearway.is_file(), "there is no binary at {}", clearway.display());
            return Ok(Self { clearway, nginx });
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        let clearway = target.join("release/clearway");
        if !clearway.is_file() {
            say("building the release binary");
            let mut build = Command::new("cargo");
            build.args(["build", "--release", "--locked", "-p", "clearway-cli"]).current_dir(&root);
            let status = build.status().await.context("starting cargo")?;
            ensure!(status.success(), "the release build failed");
        }
        Ok(Self { clearway, nginx })
    }
}

/// A process of the bed.
#[derive(Debug)]
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    pub(crate) pid: u32,
    pub(crate) address: SocketAddr,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with its output in `folder/NAME.log`.
    pub(crate) fn start(
        name: &'static str,
        mut command: Command,
        address: SocketAddr,
        folder: &Path,
    ) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        command.kill_on_drop(name != NGINX);
        let child = command.spawn().with_context(|| format!("starting {name}: {command:?}"))?;
        let pid = child.id().context("a process without an id")?;
        Ok(Self { name, child, pid, address, log })
    }

    /// Waits until it answers `GET path` with 200; how long that took.
    pub(crate) async fn ready(&mut self, path: &str) -> Result<Duration> {
        let begin = Instant::now();
        let request = Request::get(path);
        let mut last = String::new();
        while begin.elapsed() < START {
            match http::call(self.address, &request, Duration::from_secs(2)).await {
                Ok(answer) if answer.status == 200 => return Ok(begin.elapsed()),
                Ok(answer) => last = format!("status {}: {}", answer.status, answer.text()),
                Err(error) => last = format!("{error:#}"),
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}\n{}", self.name, self.log_end());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        bail!("{} does not answer {path} after {START:?}: {last}\n{}", self.name, self.log_end());
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw).context("process id")?;
        kill_process(pid, signal).with_context(|| format!("signalling {}", self.name))
    }

    /// `kill -9`, and waits until it is gone.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.with_context(|| format!("killing {}", self.name))
    }

    /// Waits for the process to end by itself.
    pub(crate) async fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let status = tokio::time::timeout(limit, self.child.wait()).await;
        Ok(status.with_context(|| format!("{} still runs after {limit:?}", self.name))??)
    }

    /// Asks it to end, as an operator would.
    pub(crate) async fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(limit).await
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Value> {
        let answer = http::call(self.address, &Request::get(path), CONTROL).await?;
        answer.ok().with_context(|| format!("GET {path}"))
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let answer = http::call(self.address, &Request::post(path, body), CONTROL).await?;
        answer.ok().with_context(|| format!("POST {path}"))
    }

    /// What it wrote into its log so far, where that is JSON.
    pub(crate) fn log(&self) -> Result<Vec<Value>> {
        let text = std::fs::read_to_string(&self.log).context("reading the log")?;
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        Ok(lines.filter(Value::is_object).collect())
    }

    /// The last lines it wrote, for error messages.
    pub(crate) fn log_end(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Process {
    /// nginx's workers outlive a master that is killed; asked to end, it ends them first. All others are killed.
    fn drop(&mut self) {
        if self.name == NGINX && self.child.id().is_some() {
            let _ = self.signal(Signal::TERM);
        }
    }
}

const NGINX: &str = "nginx";

/// How fast the simulated model talks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) ttft_ms: u64,
    pub(crate) tokens: u32,
    pub(crate) interval_ms: u64,
}

impl Pace {
    /// How long a stream takes if nothing is in the way.
    pub(crate) fn duration(&self) -> Duration {
        let tokens = u64::from(self.tokens.saturating_sub(1));
        Duration::from_millis(self.ttft_ms + tokens * self.interval_ms)
    }
}

/// A folder with processes in it.
#[derive(Debug)]
pub(crate) struct Bed {
    tools: Tools,
    folder: TempDir,
}

impl Bed {
    pub(crate) fn new(tools: &Tools) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("clearway-bench-").tempdir()?;
        Ok(Self { tools: tools.clone(), folder })
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder().join("data")
    }

    pub(crate) async fn sim(&self, pace: Pace) -> Result<Process> {
        let address = free_address()?;
        let mut command = Command::new(&self.tools.clearway);
        command.arg("sim").args(["--listen", &address.to_string()]);
        command.args(["--ttft-ms", &pace.ttft_ms.to_string()]);
        command.args(["--tokens", &pace.tokens.to_string()]);
        command.args(["--token-interval-ms", &pace.interval_ms.to_string()]);
        let mut sim = Process::start("sim", command, address, self.folder())?;
        sim.ready("/health").await?;
        Ok(sim)
    }

    pub(crate) async fn nginx(&self, upstream: SocketAddr) -> Result<Process> {
        let address = free_address()?;
        let file = nginx::write(self.folder(), address, upstream)?;
        let mut command = Command::new(&self.tools.nginx);
        command.arg("-c").arg(file).arg("-p").arg(self.folder());
        let mut nginx = Process::start(NGINX, command, address, self.folder())?;
        nginx.ready("/health").await?;
        Ok(nginx)
    }

    /// Writes the configuration and starts the server; it is ready when this returns.
    pub(crate) async fn serve(&self, config: &config::Config) -> Result<Process> {
        self.serve_text(&config.to_toml()).await
    }

    /// The same with a whole configuration as text.
    pub(crate) async fn serve_text(&self, config: &str) -> Result<Process> {
        let address = free_address()?;
        std::fs::write(self.config_file(), config).context("writing the configuration")?;
        let mut server = self.restart(address)?;
        server.ready("/health").await?;
        Ok(server)
    }

    pub(crate) fn write_config(&self, config: &config::Config) -> Result<()> {
        std::fs::write(self.config_file(), config.to_toml()).context("writing the configuration")
    }

    /// Starts the server on what is there already, without waiting for it.
    pub(crate) fn restart(&self, address: SocketAddr) -> Result<Process> {
        Process::start("clearway", self.serve_command(address), address, self.folder())
    }

    pub(crate) fn serve_command(&self, address: SocketAddr) -> Command {
        let mut command = Command::new(&self.tools.clearway);
        command.args(self.serve_arguments(address));
        command.env(config::KEY_VARIABLE, "bench");
        command
    }

    pub(crate) fn serve_arguments(&self, address: SocketAddr) -> Vec<std::ffi::OsString> {
        let listen = address.to_string();
        ["serve".into(), "--config".into(), self.config_file().into_os_string()]
            .into_iter()
            .chain([
                "--data".into(),
                self.data().into_os_string(),
                "--listen".into(),
                listen.into(),
            ])
            .collect()
    }

    fn config_file(&self) -> PathBuf {
        self.folder().join("clearway.toml")
    }
}

/// An address nobody listens on. Between here and its use somebody could; nobody does on a machine that measures.
pub(crate) fn free_address() -> Result<SocketAddr> {
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("looking for a free port")?;
    Ok(listener.local_addr()?)
}
