//! A program that speaks MCP over its standard input and output, and who ends it.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clearway_engine::Tasks;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio_util::sync::CancellationToken;

use crate::config::Secret;

/// What to start.
pub(super) struct Program<'a> {
    pub program: &'a str,
    pub arguments: &'a [String],
    pub env: &'a [(String, Secret)],
    pub folder: &'a Path,
}

/// A started program.
pub(super) struct Running {
    pub input: ChildStdin,
    pub output: ChildStdout,
    pub last_words: LastWords,
}

/// The last lines that a program wrote to its standard error.
#[derive(Clone, Debug, Default)]
pub(super) struct LastWords(Arc<Mutex<VecDeque<String>>>);

impl LastWords {
    pub(super) fn get(&self) -> Option<String> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (!lines.is_empty()).then(|| lines.iter().cloned().collect::<Vec<_>>().join(" | "))
    }

    fn add(&self, line: &str) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LINES {
            lines.pop_front();
        }
        lines.push_back(line.chars().take(LINE).collect());
    }
}

const LINES: usize = 3;
const LINE: usize = 300;

/// Variables that a program gets without being told so; anything else of ours is none of its business.
const HARMLESS: [&str; 7] = ["PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "USER"];

/// How long a program whose input was closed may take to end.
const LEAVE: Duration = Duration::from_secs(2);

impl Program<'_> {
    /// Starts it, and a task that ends it when `stop` fires, or the server stops.
    pub(super) fn start(
        &self,
        name: &str,
        tasks: &Tasks,
        stop: CancellationToken,
    ) -> io::Result<Running> {
        // A path is one from the configuration's folder, wherever this process runs.
        let program = match self.program.contains('/') {
            true => self.folder.join(self.program).into_os_string(),
            false => self.program.into(),
        };
        let mut command = Command::new(&program);
        command
            .args(self.arguments)
            .current_dir(self.folder)
            .env_clear()
            .envs(HARMLESS.iter().filter_map(|name| Some((*name, std::env::var_os(name)?))))
            .envs(self.env.iter().map(|(name, value)| (name, value.expose())))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            // What it starts itself ends with it.
            .process_group(0);
        let mut child = command.spawn().map_err(|error| {
            io::Error::new(error.kind(), format!("`{}` does not start: {error}", self.program))
        })?;
        let missing = || io::Error::other("a pipe is missing");
        let input = child.stdin.take().ok_or_else(missing)?;
        let output = child.stdout.take().ok_or_else(missing)?;
        let errors = child.stderr.take().ok_or_else(missing)?;
        let last_words = LastWords::default();
        let hard = tasks.hard.clone();
        tasks.spawn(listen(name.to_owned(), errors, last_words.clone()));
        tasks.spawn(supervise(name.to_owned(), child, stop, hard));
        Ok(Running { input, output, last_words })
    }
}

/// Ends with the program: its lines go to the log, and the last ones are kept.
async fn listen(name: String, errors: ChildStderr, last_words: LastWords) {
    let mut errors = BufReader::new(errors);
    let mut line = Vec::new();
    loop {
        line.clear();
        // A line without an end is read in pieces.
        match (&mut errors).take(4096).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim();
        if !text.is_empty() {
            last_words.add(text);
            tracing::debug!(mcp.server = name, "{text}");
        }
    }
}

/// Waits for its end, or brings it about.
async fn supervise(
    name: String,
    mut child: Child,
    stop: CancellationToken,
    hard: CancellationToken,
) {
    let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    let ended = tokio::select! {
        ended = child.wait() => Some(ended),
        () = stop.cancelled() => None,
        () = hard.cancelled() => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        // Its input is closed by now, which asks it to leave; who hangs does not hear that.
        None => match tokio::time::timeout(LEAVE, child.wait()).await {
            Ok(ended) => ended,
            Err(_) => {
                kill(group);
                child.wait().await
            }
        },
    };
    // What it started may still be there.
    kill(group);
    stop.cancel();
    match ended {
        Ok(status) => tracing::info!(mcp.server = name, "MCP server {name} has ended: {status}"),
        Err(error) => tracing::warn!(mcp.server = name, "MCP server {name}: {error}"),
    }
}

fn kill(group: Option<Pid>) {
    if let Some(group) = group {
        // Nobody is left in it when this fails.
        let _ = kill_process_group(group, Signal::KILL);
    }
}
