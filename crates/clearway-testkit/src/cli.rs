//! The binary under test, and commands of it that come to an end.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

use crate::wait::PATIENCE;

/// Where the binary is.
#[derive(Clone, Debug)]
pub struct Binary(PathBuf);

/// What a command left behind.
#[derive(Clone, Debug)]
pub struct Output {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Binary {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The binary in `folder`, with an environment in which nothing of this machine's shows.
    pub fn command(&self, folder: &Path) -> Command {
        self.command_through(&[], folder)
    }

    /// The same, started by another program such as a tracer.
    pub(crate) fn command_through(&self, wrapper: &[String], folder: &Path) -> Command {
        let mut command = match wrapper {
            [] => Command::new(&self.0),
            [program, args @ ..] => {
                let mut command = Command::new(program);
                command.args(args).arg(&self.0);
                command
            }
        };
        command.current_dir(folder).env_clear().env("HOME", folder).env("NO_COLOR", "1");
        for name in ["PATH", "TMPDIR", "LD_LIBRARY_PATH", "LLVM_PROFILE_FILE"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
    }

    /// Runs a command to its end in `folder`.
    ///
    /// # Errors
    /// It does not end.
    pub async fn run<A: AsRef<OsStr>>(&self, folder: &Path, args: &[A]) -> Result<Output> {
        let mut command = self.command(folder);
        command.args(args);
        finish(command).await
    }
}

/// Runs a command to its end.
pub(crate) async fn finish(mut command: Command) -> Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let shown = format!("{:?}", command.as_std());
    let output = timeout(PATIENCE, command.output()).await;
    let output = output.with_context(|| format!("does not end: {shown}"))?.context(shown)?;
    Ok(Output {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

impl Output {
    /// Insists on an exit code.
    ///
    /// # Errors
    /// It is another one; the error shows what was printed.
    pub fn expect(self, code: i32) -> Result<Self> {
        ensure!(
            self.code == Some(code),
            "exit {:?} instead of {code}\n--- stdout\n{}\n--- stderr\n{}",
            self.code,
            self.stdout,
            self.stderr
        );
        Ok(self)
    }

    /// What was printed as data.
    ///
    /// # Errors
    /// It is not JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("no JSON: {}", self.stdout))
    }
}
