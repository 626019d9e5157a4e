//! Serving when the system refuses another thread.
//!
//! The server runs as a user of its own whose process limit is its start-up count plus one. A second process of that
//! user takes the one that is left and stays until the end, after it was seen to be refused a further one. So a server
//! that needed a single thread under load could not have it.

use std::collections::HashSet;
use std::io::{BufRead as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use crate::bed::config::{Config, KEY_VARIABLE};
use crate::bed::{Bed, Pace, Process, Tools, free_address};
use crate::expect::Expected;
use crate::http::call;
use crate::load::Target;
use crate::proc::{self, ThreadWatch};
use crate::report::{Report, Section, say};
use crate::sse::Dialect;

/// Parameters of `limits`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Chats, all at once.
    #[arg(long, default_value_t = 1000)]
    chats: u32,
    /// Processes that the user may have beyond the server's start-up count; one is needed for the attempt.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    spare: u64,
}

pub(crate) async fn run(tools: &Tools, options: &Options, report: &mut Report) -> Result<()> {
    say("a thousand chats without a thread to spare");
    ensure!(
        rustix::process::getuid().is_root(),
        "only root can start a server as another user: run this with sudo"
    );
    let user = unused_user()?;
    let bed = Bed::new(tools)?;
    let sim = bed.sim(Pace { ttft_ms: 200, tokens: 64, interval_ms: 5 }).await?;
    bed.write_config(&Config::roomy(sim.address))?;
    open_to(user, &bed, tools)?;

    let mut free = start(&bed, tools, user, None).await?;
    let at_start = proc::threads(free.pid);
    free.terminate(Duration::from_secs(15)).await?;

    let limit = at_start + options.spare;
    let rig = copy_for_all(bed.folder())?;
    // While the user has nothing else running, the same attempt succeeds: it is the limit that refuses it later.
    let (mut alone, said) = try_as(&rig, user, limit).await?;
    ensure!(said == GRANTED, "without the server, a thread was {said:?}");
    alone.kill().await?;

    let server = start(&bed, tools, user, Some(limit)).await.context("starting under the limit")?;
    let rest = proc::threads(server.pid);
    let holders = fill_up(&rig, user, limit, limit.saturating_sub(rest)).await?;
    let watch = ThreadWatch::start(server.pid)?;
    let errors = chats(&server, options.chats).await;
    let peak = watch.finish();
    drop(holders);

    let mut section = Section::new(
        "Without a thread to spare",
        &[
            "threads at start",
            "process limit (RLIMIT_NPROC)",
            "one more",
            "chats at once",
            "failed",
            "threads at most",
        ],
    );
    section.row([
        at_start.to_string(),
        limit.to_string(),
        "refused (EAGAIN)".to_owned(),
        options.chats.to_string(),
        errors.len().to_string(),
        peak.to_string(),
    ]);
    errors.iter().take(3).for_each(|error| section.note(error));
    report.section(section);
    report.none_of("thread-limited: failed chats", errors.len());
    report.none_of(
        "thread-limited: threads beyond those at rest",
        peak.saturating_sub(rest) as usize,
    );
    report.figure(
        "limits",
        json!({"threads_at_start": at_start, "limit": limit, "chats": options.chats, "errors": errors.len(), "threads_peak": peak}),
    );
    Ok(())
}

/// The server as `user`, with at most `limit` processes and threads.
async fn start(bed: &Bed, tools: &Tools, user: u32, limit: Option<u64>) -> Result<Process> {
    let address = free_address()?;
    let mut command = as_user(user, limit);
    command.arg(&tools.clearway).args(bed.serve_arguments(address));
    command.env(KEY_VARIABLE, "bench").current_dir(bed.folder());
    let mut server = Process::start("clearway", command, address, bed.folder())?;
    server.ready("/health").await?;
    Ok(server)
}

/// A command that runs what is appended to it as `user`. Root's privileges would lift the limit, so none are kept.
fn as_user(user: u32, limit: Option<u64>) -> Command {
    let mut command = Command::new("prlimit");
    if let Some(limit) = limit {
        command.arg(format!("--nproc={limit}:{limit}"));
    }
    let id = user.to_string();
    command.args(["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"]);
    command.args(["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]);
    command
}

/// A user id that owns no process: its count begins at zero.
fn unused_user() -> Result<u32> {
    let used: HashSet<u32> = std::fs::read_dir("/proc")?
        .filter_map(|entry| Some(entry.ok()?.metadata().ok()?.uid()))
        .collect();
    (64_000..65_000).find(|user| !used.contains(user)).context("no unused user id")
}

/// Lets `user` read the configuration and the binary, and write the data.
fn open_to(user: u32, bed: &Bed, tools: &Tools) -> Result<()> {
    let mode =
        |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
    mode(bed.folder(), 0o755)?;
    std::fs::create_dir_all(bed.data())?;
    std::os::unix::fs::chown(bed.data(), Some(user), Some(user))?;
    let mut folder = tools.clearway.canonicalize()?;
    while folder.pop() {
        let bits = folder.metadata()?.mode();
        ensure!(
            bits & 0o001 != 0,
            "other users cannot reach {}: give --clearway a copy elsewhere",
            folder.display()
        );
    }
    Ok(())
}

/// Takes what the limit leaves, and shows that there is no more. The processes last as long as the result.
async fn fill_up(rig: &Path, user: u32, limit: u64, spare: u64) -> Result<Vec<Child>> {
    let mut holders = Vec::new();
    for n in 1..=spare {
        let (child, said) = try_as(rig, user, limit).await?;
        let taken = limit - spare + n;
        let due = if n == spare { REFUSED } else { GRANTED };
        ensure!(
            said == due,
            "with {taken} of {limit} taken, one more thread was {said:?}, not {due}"
        );
        holders.push(child);
    }
    Ok(holders)
}

/// Starts [`try_thread`] as `user`; the process, and what it said.
async fn try_as(rig: &Path, user: u32, limit: u64) -> Result<(Child, String)> {
    let mut command = as_user(user, Some(limit));
    command.arg(rig).arg("try-thread");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().context("starting the rig as another user")?;
    let mut said = String::new();
    let out = child.stdout.take().context("its output")?;
    BufReader::new(out).read_line(&mut said).await?;
    Ok((child, said.trim().to_owned()))
}

const GRANTED: &str = "granted";
const REFUSED: &str = "refused";

/// The rig itself, where every user can run it.
fn copy_for_all(folder: &Path) -> Result<PathBuf> {
    let copy = folder.join("rig");
    std::fs::copy(std::env::current_exe()?, &copy).context("copying the rig")?;
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755))?;
    Ok(copy)
}

/// What the second process does: it tries to start one thread, says how that went, and stays until it is killed.
pub(crate) fn try_thread() -> Result<()> {
    let thread = std::thread::Builder::new().spawn(std::thread::park);
    let verdict = match &thread {
        Ok(_) => GRANTED,
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => REFUSED,
        Err(error) => bail!("starting a thread failed otherwise: {error}"),
    };
    let mut out = std::io::stdout();
    writeln!(out, "{verdict}")?;
    out.flush()?;
    if let Ok(thread) = thread {
        // It was only an experiment; the slot is not to be kept.
        thread.thread().unpark();
        let _ = thread.join();
    }
    std::io::stdin().lock().lines().for_each(drop);
    Ok(())
}

async fn chats(server: &Process, count: u32) -> Vec<String> {
    let target = Target { name: "clearway", address: server.address, dialect: Dialect::Chat };
    let expected = Expected::counted(64);
    let mut tasks = JoinSet::new();
    for n in 0..count {
        let request = target.whole_request(&format!("user{n}"), "Answer me.");
        tasks.spawn(async move {
            let answer = call(target.address, &request, Duration::from_secs(60)).await?.ok()?;
            Ok::<_, anyhow::Error>(target.reply(&answer).map(ToOwned::to_owned).unwrap_or_default())
        });
    }
    let mut errors = Vec::new();
    while let Some(done) = tasks.join_next().await {
        match done {
            Ok(Ok(reply)) if reply == expected.text() => {}
            Ok(Ok(reply)) => errors.push(format!("wrong reply: {reply}")),
            Ok(Err(error)) => errors.push(format!("{error:#}")),
            Err(error) => errors.push(error.to_string()),
        }
    }
    errors
}
