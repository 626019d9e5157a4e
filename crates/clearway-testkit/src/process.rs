//! One child process: its log, its end, what the system says about it.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// A running child. Dropping it kills it, and prints the end of its log unless the test has
/// [passed](Process::passed).
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    pid: u32,
    log: PathBuf,
    passed: bool,
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    pub code: Option<i32>,
    pub signal: Option<i32>,
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        Self { code: status.code(), signal: status.signal() }
    }
}

/// What a process holds at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Census {
    pub threads: usize,
    pub files: usize,
    pub memory_bytes: u64,
}

impl Process {
    /// Starts `command` with all that it prints going to `log`.
    ///
    /// # Errors
    /// The program is not there, or the log cannot be written.
    pub fn spawn(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let out = File::create(log).with_context(|| format!("making {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).kill_on_drop(true);
        let child =
            command.spawn().with_context(|| format!("starting {name}: {:?}", command.as_std()))?;
        let pid = child.id().context("the child ended before it began")?;
        Ok(Self { name: name.to_owned(), child, pid, log: log.to_owned(), passed: false })
    }

    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// How it ended, if it did.
    ///
    /// # Errors
    /// The system will not say.
    pub fn exited(&mut self) -> Result<Option<Exit>> {
        Ok(self.child.try_wait()?.map(Exit::from))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It goes on longer than `within`.
    pub async fn exit(&mut self, within: Duration) -> Result<Exit> {
        let exit = timeout(within, self.child.wait()).await;
        let exit = exit.with_context(|| format!("{} still runs after {within:?}", self.name))?;
        Ok(exit?.into())
    }

    /// Ends it as a power cut would, and waits until it is gone.
    ///
    /// # Errors
    /// The system refuses.
    pub async fn kill(&mut self) -> Result<()> {
        self.kill_children();
        self.child.kill().await.with_context(|| format!("killing {}", self.name))
    }

    /// Asks it to stop.
    ///
    /// # Errors
    /// It is gone already.
    pub fn terminate(&self) -> Result<()> {
        signal(self.pid, Signal::TERM).with_context(|| format!("stopping {}", self.name))
    }

    /// Everything it has printed so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Threads, open files and memory.
    ///
    /// # Errors
    /// It is gone.
    pub fn census(&self) -> Result<Census> {
        census(self.pid).with_context(|| format!("looking at {}", self.name))
    }

    /// Nothing about it needs to be shown any more.
    pub const fn passed(&mut self) {
        self.passed = true;
    }

    /// A tracer's death would let the traced one live on.
    fn kill_children(&self) {
        for child in children(self.pid) {
            // One that is gone needs no killing.
            let _ = signal(child, Signal::KILL);
        }
    }

    #[expect(clippy::print_stderr, reason = "what a failed test shows")]
    fn show_log(&self) {
        const LINES: usize = 60;
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let from = lines.len().saturating_sub(LINES);
        eprintln!("---- the end of the log of {} ({} lines in all)", self.name, lines.len());
        for line in &lines[from..] {
            eprintln!("{line}");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill_children();
        if !self.passed {
            self.show_log();
        }
    }
}

/// Asks any process to stop.
pub(crate) fn terminate(pid: u32) -> Result<()> {
    signal(pid, Signal::TERM)
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("no process id")?;
    Ok(kill_process(pid, signal)?)
}

/// Children of a process's main thread: all that a tracer has.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}

fn census(pid: u32) -> Result<Census> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let threads = fs::read_dir(format!("/proc/{pid}/task"))?.count();
    let files = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    ensure!(threads > 0, "no threads");
    Ok(Census { threads, files, memory_bytes: field("VmRSS:").unwrap_or(0) * 1024 })
}
