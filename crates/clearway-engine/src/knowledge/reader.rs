//! Processes that read documents: a few of them, each killed when it takes too long.
//!
//! A reader answers one request after the other. Whatever goes wrong with it, a crash, a silence, a
//! caller that leaves in the middle, ends in its whole process group being killed and a new one
//! being started for the next document.
//!
//! **Invariants:** there are never more than [`Readers::COUNT`] processes; none outlives its limit or
//! its server; starting and waiting for one occupies no OS thread for longer than a fork takes.
//!
//! Not here: parsing (`clearway_ingest`).

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use clearway_ingest::protocol::{self, Answer, MAX_FRAME, Request, Trouble, TroubleKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout_at};

use crate::lanes::Lanes;

/// How a reader is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReaderCommand {
    pub program: PathBuf,
    pub arguments: Vec<String>,
    /// The longest that one document may take.
    pub limit: Duration,
}

impl ReaderCommand {
    /// The program itself, with these arguments.
    pub fn this_program(arguments: &[&str]) -> Self {
        // Not by name: an upgrade may have put another version in its place meanwhile.
        Self {
            program: PathBuf::from("/proc/self/exe"),
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            limit: Self::LIMIT,
        }
    }

    pub const LIMIT: Duration = Duration::from_secs(25);
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Readers {
    command: Option<ReaderCommand>,
    lanes: Lanes,
    permits: Semaphore,
    idle: Mutex<Vec<Reader>>,
}

impl Readers {
    /// Processes at once.
    pub(crate) const COUNT: usize = 2;
    /// Documents after which a reader gives way to a fresh one, with what it may have leaked.
    const SERVES: u32 = 500;
    /// Tries to start one on a host that refuses processes.
    const TRIES: u32 = 5;

    pub(crate) fn new(command: Option<ReaderCommand>, lanes: Lanes) -> Self {
        Self { command, lanes, permits: Semaphore::new(Self::COUNT), idle: Mutex::default() }
    }

    /// Reads a document; `inline` are its bytes when it is no file.
    pub(crate) async fn read(&self, request: &Request, inline: Option<Bytes>) -> Answer {
        let failed = |kind, text: String| Answer::Failed { trouble: Trouble::new(kind, text) };
        let Some(command) = &self.command else {
            let text = "this program has no reader of documents".to_owned();
            return failed(TroubleKind::NoReader, text);
        };
        let Ok(_permit) = self.permits.acquire().await else {
            return failed(TroubleKind::NoReader, "the server is stopping".to_owned());
        };
        let mut reader = match self.reader(command).await {
            Ok(reader) => reader,
            Err(why) => {
                let text = format!("a process to read it cannot be started: {why}");
                return failed(TroubleKind::NoReader, text);
            }
        };
        let deadline = Instant::now() + command.limit;
        match timeout_at(deadline, reader.exchange(request, inline)).await {
            Ok(Ok(answer)) => {
                reader.served += 1;
                if reader.served < Self::SERVES {
                    self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(reader);
                }
                answer
            }
            Ok(Err(_)) => {
                let status = reader.end().await;
                failed(TroubleKind::Crashed, crashed(status))
            }
            Err(_) => {
                reader.end().await;
                let seconds = command.limit.as_secs_f64();
                failed(TroubleKind::Timeout, format!("reading it took longer than {seconds} s"))
            }
        }
    }

    /// Ends the readers that have nothing to do.
    pub(crate) fn rest(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    async fn reader(&self, command: &ReaderCommand) -> Result<Reader, String> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(reader) = idle {
            return Ok(reader);
        }
        let mut pause = Duration::from_millis(100);
        let mut tries = 1;
        loop {
            let command = command.clone();
            let started = self.lanes.run(move || Reader::start(&command)).await;
            match started {
                Some(Ok(reader)) => return Ok(reader),
                // The host is out of processes or memory: it may have some again soon.
                Some(Err(error))
                    if tries < Self::TRIES
                        && matches!(
                            error.kind(),
                            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::OutOfMemory
                        ) =>
                {
                    tries += 1;
                    sleep(pause).await;
                    pause *= 2;
                }
                Some(Err(error)) => return Err(error.to_string()),
                None => return Err("the server is stopping".to_owned()),
            }
        }
    }
}

/// The allocator takes memory when it is needed: what it takes in advance, no limit of a document's memory would count.
const ALLOCATOR: [(&str, &str); 1] = [("MIMALLOC_ARENA_EAGER_COMMIT", "0")];

/// One process. Dropping it kills it and all that it may have started.
#[derive(Debug)]
struct Reader {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
    served: u32,
}

impl Reader {
    fn start(command: &ReaderCommand) -> std::io::Result<Self> {
        let mut child = Command::new(&command.program)
            .args(&command.arguments)
            // Keys of providers are none of its business.
            .env_clear()
            .envs(ALLOCATOR)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let pipes = (child.stdin.take(), child.stdout.take());
        let (Some(input), Some(output)) = pipes else {
            return Err(std::io::Error::other("it has no pipes"));
        };
        Ok(Self { child, input, output, served: 0 })
    }

    async fn exchange(
        &mut self,
        request: &Request,
        inline: Option<Bytes>,
    ) -> std::io::Result<Answer> {
        self.input.write_all(&protocol::frame(request)?).await?;
        if let Some(bytes) = inline {
            self.input.write_all(&bytes).await?;
        }
        self.input.flush().await?;
        let mut length = [0; 4];
        self.output.read_exact(&mut length).await?;
        let length = u32::from_le_bytes(length) as usize;
        if length > MAX_FRAME {
            return Err(std::io::Error::other("its answer is too long"));
        }
        let mut body = vec![0; length];
        self.output.read_exact(&mut body).await?;
        Ok(serde_json::from_slice(&body)?)
    }

    fn kill(&self) {
        let pid = self.child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()));
        if let Some(pid) = pid {
            // One that is dead already is dead enough.
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
    }

    /// How it ended, having been killed unless it had ended before.
    async fn end(mut self) -> Option<ExitStatus> {
        let grace = Instant::now() + Duration::from_millis(50);
        if let Ok(Ok(status)) = timeout_at(grace, self.child.wait()).await {
            return Some(status);
        }
        self.kill();
        timeout_at(Instant::now() + Duration::from_secs(2), self.child.wait()).await.ok()?.ok()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.kill();
    }
}

fn crashed(status: Option<ExitStatus>) -> String {
    use std::os::unix::process::ExitStatusExt;
    match status.and_then(|status| status.signal()) {
        Some(signal) => format!(
            "its reader died of signal {signal}: the file needs more memory than it may, or is damaged"
        ),
        None => "its reader ended in the middle: the file is probably damaged".to_owned(),
    }
}
