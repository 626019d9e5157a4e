//! The load rig: measures the release binary beside a simulated provider and nginx, and fails when a bar is missed.
//!
//! Each subcommand starts what it needs, checks what comes back byte by byte, and prints a Markdown table. What each
//! one measures, and why in that way, is in `docs/benchmarks.md`.
//!
//! What must stay true: the rig is cheap, because it shares the machine with what it measures (two runtime threads, no
//! general HTTP client); figures of contenders that are compared come from the same run, taken in turns; a failed check
//! is never averaged away.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use crate::bed::Tools;
use crate::report::Report;

mod audit;
mod bed;
mod campaigns;
mod cancel;
mod drain;
mod drills;
mod expect;
mod flows;
mod health;
mod http;
mod kb;
mod kill;
mod langgraph;
mod layer;
mod limits;
mod load;
mod overhead;
mod proc;
mod providers;
mod rejoin;
mod report;
mod rng;
mod sink;
mod sse;
mod stats;
mod steps;
mod storage;
mod store;
mod streams;
mod tap;
mod turns;

/// Load rig of Clearway.
#[derive(Debug, Parser)]
#[command(name = "clearway-bench")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// The binary to measure; without it the workspace's release build, made if it is not there.
    #[arg(long, global = true, value_name = "FILE")]
    clearway: Option<PathBuf>,
    /// nginx, the yardstick.
    #[arg(long, global = true, value_name = "FILE", default_value = "nginx")]
    nginx: PathBuf,
    /// Writes all figures as JSON.
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Missed timing bars fail, too.
    #[arg(long, global = true)]
    strict: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Concurrent streams: direct, through nginx, through the server.
    Streams(streams::Options),
    /// What the server adds to a call when it has little to do.
    Overhead(overhead::Options),
    /// A thousand chats without a thread to spare. Needs root, to become another user.
    Limits(limits::Options),
    /// Whether a late turn is slower than an early one.
    Turns(turns::Options),
    /// How soon a cancel reaches the provider's socket.
    Cancel(cancel::Options),
    /// kill -9 at random moments under a mixed load.
    Kill(kill::Options),
    /// kill -9 at random moments among campaigns and workflows that write outward.
    KillWorkflows(flows::Options),
    /// Queries beside bulk embeddings, and crowds at a slow provider.
    Providers(providers::Options),
    /// An outage of a minute, a hidden limit, crowds with one question and without time. Takes six minutes.
    Drills(drills::Options),
    /// What the provider layer alone adds, beside a bare client.
    Layer(layer::Options),
    /// SIGTERM under load.
    Drain(drain::Options),
    /// Clients of LangGraph's door that hang up and come back.
    Rejoin(rejoin::Options),
    /// LangGraph's door: a crowd of streams, first events, cancels.
    Langgraph(langgraph::Options),
    /// Whether everything else stays fast while every campaign slot is busy.
    Campaigns(campaigns::Options),
    /// A conversation's bytes on disk at 50, 100, 200 and 400 turns.
    Storage(storage::Options),
    /// Trivial workflows through the server: runs, steps and commits.
    Steps(steps::Options),
    /// The store alone: supersteps and volatile output.
    Store(store::raw::Options),
    /// Claims out of a deep queue.
    Claims(store::claims::Options),
    /// What a run costs beside up to a million finished ones. Takes ten minutes.
    History(store::history::Options),
    /// A small tenant beside one that floods.
    Fairness(store::fairness::Options),
    /// All of these except `history` and `drills`, as they are by default.
    All,
    /// Retrieval: its quality beside SQLite's FTS5 on a test collection, or its speed by the number of chunks.
    Kb(kb::Options),
    /// Chats with the knowledge agent while a whole folder is read and indexed anew.
    KbChats(kb::chats::Options),
    /// Tries to start one thread, says how that went, and waits. Used by `limits`.
    #[command(hide = true)]
    TryThread,
}

fn main() -> ExitCode {
    match start(Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every bar that counts was met.
fn start(cli: Cli) -> Result<bool> {
    if matches!(cli.command, Command::TryThread) {
        // Before there is a runtime, which would need the thread that is tried for.
        return limits::try_thread().map(|()| true);
    }
    if let Command::Kb(options) = &cli.command {
        // Needs no server and no runtime.
        let mut report = Report::default();
        kb::run(options, &mut report)?;
        if let Some(file) = &cli.json {
            report.write(file)?;
        }
        return Ok(report.finish(cli.strict));
    }
    raise_open_files()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(async {
        let mut terminated = signal(SignalKind::terminate())?;
        // Whichever ends it, what was started is ended, too: the processes go with the future that holds them.
        tokio::select! {
            passed = run(cli) => passed,
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
            _ = terminated.recv() => anyhow::bail!("terminated"),
        }
    })
}

/// Thousands of streams need thousands of sockets, here and in the processes that are started.
fn raise_open_files() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
        .context("raising the limit of open files")
}

async fn run(cli: Cli) -> Result<bool> {
    let tools = match &cli.command {
        // Below the server there is nothing to build.
        Command::Store(_)
        | Command::Claims(_)
        | Command::History(_)
        | Command::Fairness(_)
        | Command::Layer(_) => Tools { clearway: PathBuf::new(), nginx: cli.nginx },
        _ => Tools::find(cli.clearway, cli.nginx).await?,
    };
    let mut report = Report::default();
    match &cli.command {
        Command::All => {
            for name in [
                "overhead",
                "layer",
                "providers",
                "turns",
                "cancel",
                "limits",
                "drain",
                "rejoin",
                "langgraph",
                "campaigns",
                "streams",
                "kill",
                "kill-workflows",
                "storage",
                "steps",
                "store",
                "claims",
                "fairness",
            ] {
                let command = Cli::parse_from(["clearway-bench", name]).command;
                one(&tools, &command, &mut report).await.with_context(|| name.to_owned())?;
            }
        }
        command => one(&tools, command, &mut report).await?,
    }
    if let Some(file) = &cli.json {
        report.write(file)?;
    }
    Ok(report.finish(cli.strict))
}

async fn one(tools: &Tools, command: &Command, report: &mut Report) -> Result<()> {
    match command {
        Command::Streams(options) => streams::run(tools, options, report).await,
        Command::Overhead(options) => overhead::run(tools, options, report).await,
        Command::Limits(options) => limits::run(tools, options, report).await,
        Command::Turns(options) => turns::run(tools, options, report).await,
        Command::Cancel(options) => cancel::run(tools, options, report).await,
        Command::Kill(options) => kill::run(tools, options, report).await,
        Command::KillWorkflows(options) => flows::run(tools, options, report).await,
        Command::Drills(options) => drills::run(tools, options, report).await,
        Command::Layer(options) => layer::run(options, report).await,
        Command::Drain(options) => drain::run(tools, options, report).await,
        Command::Providers(options) => providers::run(tools, options, report).await,
        Command::Rejoin(options) => rejoin::run(tools, options, report).await,
        Command::Langgraph(options) => langgraph::run(tools, options, report).await,
        Command::Campaigns(options) => campaigns::run(tools, options, report).await,
        Command::Storage(options) => storage::run(tools, options, report).await,
        Command::Steps(options) => steps::run(tools, options, report).await,
        Command::KbChats(options) => kb::chats::run(tools, options, report).await,
        Command::Store(options) => store::raw::run(options, report).await,
        Command::Claims(options) => store::claims::run(options, report).await,
        Command::History(options) => store::history::run(options, report).await,
        Command::Fairness(options) => store::fairness::run(options, report).await,
        Command::All | Command::Kb(_) | Command::TryThread => {
            anyhow::bail!("not a measurement by itself")
        }
    }
}
