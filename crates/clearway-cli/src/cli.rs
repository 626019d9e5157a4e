//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clearway::client::Client;
use clearway::config::{Env, Listen};
use clearway_sim::{Fault, FaultSpec, Flap, Group, KeyRule, Window};

/// An agent server in one binary, where nothing blocks, hangs or gets lost.
#[derive(Debug, Parser)]
#[command(name = "clearway", version, arg_required_else_help = true, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    /// Print JSON for programs instead of text for people.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print only results and errors.
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str =
    "Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 timed out, 5 cancelled.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Development server: built-in examples, reload on change; no key, no network needed.
    Dev(DevArgs),
    /// Production server.
    Serve(ServeArgs),
    /// The misbehaving provider: an OpenAI-compatible server with faults on demand.
    #[command(after_long_help = faults())]
    Sim(SimArgs),
    /// Check a configuration before anything starts.
    Check(CheckArgs),
    /// Look what on this machine or in this project keeps a server from running well.
    Doctor(DoctorArgs),
    /// Show a trap of calling providers: a naive client and Clearway, side by side.
    Lab(LabArgs),
    /// Talk to the default agent of a running server.
    Chat(ChatArgs),
    /// Run a workflow and show how it gets on; its files are listed at the end.
    Run(WorkflowArgs),
    /// Write the example project into a folder: co-founder, campaign, business plan.
    Init(InitArgs),
    /// Add the skeleton of an agent or a workflow to the configuration.
    New(NewArgs),
    /// Draw a workflow of the configuration.
    Graph(GraphArgs),
    /// What needs somebody: questions, decisions, budgets, outages.
    Attention(AttentionArgs),
    /// Go through the steps by which operators convince themselves, and say which passed.
    Verify(VerifyArgs),
    /// Look at runs and end them.
    Runs(RunsArgs),
    /// Documents: index them, search them, see what they connect, measure how well they are found.
    Kb(KbArgs),
    /// Look at threads: what they hold, what they occupy, what they went through.
    Threads(ThreadsArgs),
    /// Reads documents for a server; not for people.
    #[command(hide = true)]
    ParseDocument,
}

#[derive(Debug, Args)]
pub(crate) struct KbArgs {
    #[command(subcommand)]
    pub(crate) command: KbCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KbCommand {
    /// Read what changed, and list what cannot be read.
    Index(KbIndexArgs),
    /// What the documents have about a question, with scores and reasons.
    Search(KbSearchArgs),
    /// What the documents connect: all of it, around one thing, or the way between two.
    Graph(KbGraphArgs),
    /// Measure retrieval on a test collection: nDCG@10, MRR@10, recall, latency.
    Eval(KbEvalArgs),
}

#[derive(Debug, Args)]
pub(crate) struct KbEvalArgs {
    /// A folder in the BEIR layout: corpus.jsonl, queries.jsonl, qrels/test.tsv.
    pub(crate) folder: PathBuf,
}

/// Where the documents are.
#[derive(Debug, Args)]
pub(crate) struct KbSource {
    /// This folder, whatever is configured; nothing is kept.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["config", "data", "name"])]
    pub(crate) folder: Option<PathBuf>,
    /// Of the folder only files that fit, as in .gitignore. Repeatable.
    #[arg(long = "files", value_name = "PATTERN", requires = "folder")]
    pub(crate) files: Vec<String>,
    /// The configuration file [default: clearway.toml here, else the built-in examples].
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Where data is kept [default: what the configuration says, else .clearway].
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// One of the configured sources [default: all].
    #[arg(long = "source", value_name = "NAME")]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Args)]
pub(crate) struct KbIndexArgs {
    /// Read all documents, also those that have not changed.
    #[arg(long)]
    pub(crate) all: bool,
    /// Fail when a document cannot be read.
    #[arg(long)]
    pub(crate) strict: bool,
    #[command(flatten)]
    pub(crate) source: KbSource,
}

#[derive(Debug, Args)]
pub(crate) struct KbSearchArgs {
    /// The question.
    pub(crate) query: String,
    /// Passages at most.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) max_chunks: usize,
    /// Leave out what is less similar, from 0 to 1.
    #[arg(long, value_name = "0..1", default_value_t = 0.0)]
    pub(crate) threshold: f32,
    /// Tokens of all passages together.
    #[arg(long, value_name = "N", default_value_t = 4000)]
    pub(crate) token_budget: u32,
    #[command(flatten)]
    pub(crate) source: KbSource,
}

#[derive(Debug, Args)]
pub(crate) struct KbGraphArgs {
    /// Only what is near this.
    pub(crate) entity: Option<String>,
    /// The way from the entity to this.
    #[arg(long, value_name = "ENTITY", requires = "entity")]
    pub(crate) to: Option<String>,
    /// Nodes at most.
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub(crate) limit: usize,
    /// Draw it into this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) source: KbSource,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// What to verify.
    #[arg(value_enum)]
    pub(crate) what: Verified,
    /// A running server; without one a server with the built-in examples is started for it.
    #[arg(long, value_name = "URL")]
    pub(crate) server: Option<String>,
    /// How long the campaigns may take, in seconds.
    #[arg(long, value_name = "S", default_value_t = 300)]
    pub(crate) timeout: u64,
}

/// What can be verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Verified {
    /// Two campaigns beside everything else.
    Campaigns,
}

#[derive(Debug, Args)]
pub(crate) struct DevArgs {
    /// The folder with a clearway.toml; without one in it the built-in examples are served.
    #[arg(default_value = ".")]
    pub(crate) dir: PathBuf,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// What `dev` and `serve` have in common.
#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    /// The configuration file; paths in it are relative to it.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Where to listen [default: 127.0.0.1:8123].
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) listen: Option<Listen>,
    /// The port alone; 0 takes any.
    #[arg(long, value_name = "N")]
    pub(crate) port: Option<u16>,
    /// Where data is kept [default: .clearway for dev, data for serve].
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Listen beyond this machine although no keys are configured.
    #[arg(long)]
    pub(crate) insecure: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SimArgs {
    /// Where to listen.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9100")]
    pub(crate) listen: Listen,
    /// Time to the first token, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub(crate) ttft_ms: u64,
    /// Answer with exactly so many tokens instead of the script's text.
    #[arg(long, value_name = "N")]
    pub(crate) tokens: Option<u32>,
    /// Time between two tokens, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub(crate) token_interval_ms: u64,
    /// How far a token may be off its time, as a fraction of the interval.
    #[arg(long, value_name = "0..1", default_value_t = 0.0)]
    pub(crate) jitter: f64,
    /// Above so many requests at once the answer is 429.
    #[arg(long, value_name = "N", visible_alias = "concurrency")]
    pub(crate) max_concurrent: Option<u32>,
    /// Above so many requests per minute and key the answer is 429.
    #[arg(long, value_name = "N")]
    pub(crate) rpm: Option<u32>,
    /// Above so many tokens per minute and key the answer is 429.
    #[arg(long, value_name = "N")]
    pub(crate) tpm: Option<u32>,
    /// Do not say in headers how much is left of --rpm and --tpm.
    #[arg(long)]
    pub(crate) no_rate_headers: bool,
    /// How a key is treated: ok, dead (401), limited (429) or quota (429, nothing left to spend). Repeatable.
    #[arg(long = "key", value_name = "KEY=STATE")]
    pub(crate) keys: Vec<KeyRule>,
    /// What to do wrong, such as `cut_rst:5`; --help lists all faults.
    #[arg(long, value_name = "NAME[:N]")]
    pub(crate) fault: Option<FaultSpec>,
    /// The share of requests that get it.
    #[arg(long, value_name = "0..1", default_value_t = 1.0)]
    pub(crate) fault_rate: f64,
    /// Down from START to END, in seconds after the start. Repeatable.
    #[arg(long = "outage", value_name = "START..END")]
    pub(crate) outages: Vec<Window>,
    /// Up and down in turns, in seconds.
    #[arg(long, value_name = "UP/DOWN")]
    pub(crate) flap: Option<Flap>,
    /// What every request meets while the provider is down, such as `unavailable`, `silent` or `reset`.
    #[arg(long, value_name = "NAME[:N]", default_value = "unavailable")]
    pub(crate) outage_fault: FaultSpec,
    /// The same seed does the same.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// A configuration file, or a folder with a clearway.toml.
    #[arg(default_value = ".")]
    pub(crate) file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Time the way to this provider: name, connection, TLS, first byte; nothing is called without.
    #[arg(long, value_name = "PROVIDER")]
    pub(crate) net: Option<String>,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

#[derive(Debug, Args)]
pub(crate) struct LabArgs {
    /// Which trap.
    #[arg(value_enum)]
    pub(crate) trap: Trap,
}

/// A way in which providers fail and clients do not notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Trap {
    /// The provider accepts the request and never answers.
    Hang,
    /// It falls silent, but a comment each second keeps timeouts of reading from firing.
    Drip,
    /// It is out of order, and everybody tries again at once.
    Storm,
    /// It works for two seconds, fails for two seconds, and again.
    Flap,
    /// The answer ends in the middle, and the end looks like any other.
    Truncate,
}

#[derive(Debug, Args)]
pub(crate) struct WorkflowArgs {
    /// The workflow.
    pub(crate) workflow: String,
    /// One field of the input, as NAME=VALUE; the value is JSON, or else text. Repeatable.
    #[arg(short, long = "input", value_name = "NAME=VALUE")]
    pub(crate) input: Vec<String>,
    /// high, normal, low, or 1 to 5.
    #[arg(long)]
    pub(crate) priority: Option<String>,
    /// Start it and return at once.
    #[arg(long)]
    pub(crate) detach: bool,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// The folder; it is made if it is not there, and nothing in it is overwritten.
    pub(crate) folder: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct NewArgs {
    /// What to add.
    #[arg(value_enum)]
    pub(crate) kind: NewKind,
    /// What it is called.
    pub(crate) name: String,
    /// The folder of the configuration.
    #[arg(long, default_value = ".")]
    pub(crate) folder: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum NewKind {
    Agent,
    Workflow,
}

#[derive(Debug, Args)]
pub(crate) struct GraphArgs {
    /// The workflow.
    pub(crate) workflow: String,
    /// The configuration, or a folder with one; without any, the built-in examples.
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// As a Mermaid flowchart.
    #[arg(long)]
    pub(crate) mermaid: bool,
    /// As an SVG picture.
    #[arg(long, conflicts_with = "mermaid")]
    pub(crate) svg: bool,
}

#[derive(Debug, Args)]
pub(crate) struct AttentionArgs {
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// Which server to ask.
#[derive(Clone, Debug, Args)]
pub(crate) struct ClientArgs {
    /// Address of the server.
    #[arg(
        long,
        env = "CLEARWAY_SERVER",
        value_name = "URL",
        default_value = "http://127.0.0.1:8123",
        global = true
    )]
    pub(crate) server: String,
}

impl ClientArgs {
    /// The server, known to it by the key in `CLEARWAY_API_KEY` if that is set. There is no option
    /// for the key: what is on a command line can be read by everybody on the machine.
    pub(crate) fn client(&self) -> Result<Client, clearway::client::Error> {
        client(&self.server)
    }
}

/// See [`ClientArgs::client`].
pub(crate) fn client(server: &str) -> Result<Client, clearway::client::Error> {
    let client = Client::new(server)?;
    match Env::process().get("CLEARWAY_API_KEY") {
        Some(key) => client.with_key(key),
        None => Ok(client),
    }
}

#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    /// Whom to talk to; without it, the server's default agent.
    pub(crate) agent: Option<String>,
    /// Say this and print the answer; without it, lines are read from the input.
    #[arg(long, short)]
    pub(crate) message: Option<String>,
    /// Who is talking.
    #[arg(long, default_value = "cli")]
    pub(crate) user: String,
    /// Go on with this conversation (with AGENT, its thread's id); without it, each start is a new one.
    #[arg(long, value_name = "NAME")]
    pub(crate) conversation: Option<String>,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RunsArgs {
    #[command(flatten)]
    pub(crate) client: ClientArgs,
    #[command(subcommand)]
    pub(crate) command: RunsCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RunsCommand {
    /// List runs, newest first.
    Ls(LsArgs),
    /// Show one run.
    Show(RunArgs),
    /// Follow a run's events to its end; exits as the run did.
    Watch(WatchArgs),
    /// End a run, and wait for the end.
    Cancel(RunArgs),
    /// Say what a run waits for, and who can do what about it.
    Why(RunArgs),
    /// Answer what a run asked.
    Answer(AnswerArgs),
    /// Decide about a write of which nobody knows whether it happened.
    Resolve(ResolveArgs),
    /// Take a waiting run up before its time.
    Wake(RunArgs),
    /// Send a signal to a run.
    Signal(SignalArgs),
    /// Raise what a run may use up.
    Budget(BudgetArgs),
}

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Only runs with this status; may be given several times.
    #[arg(long, value_enum)]
    pub(crate) status: Vec<StatusArg>,
    /// Only runs of this agent.
    #[arg(long, value_name = "NAME")]
    pub(crate) agent: Option<String>,
    /// Only runs of this thread.
    #[arg(long, value_name = "ID")]
    pub(crate) thread: Option<String>,
    /// At most so many.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) limit: u32,
}

/// A run's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StatusArg {
    Blocked,
    Ready,
    Running,
    Waiting,
    Success,
    Error,
    Timeout,
    Cancelled,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The run's id.
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// The run's id.
    pub(crate) id: String,
    /// Begin behind this event.
    #[arg(long, value_name = "EVENT")]
    pub(crate) after: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ThreadsArgs {
    #[command(flatten)]
    pub(crate) client: ClientArgs,
    #[command(subcommand)]
    pub(crate) command: ThreadsCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ThreadsCommand {
    /// List threads, the most recently changed first.
    Ls(ThreadsLsArgs),
    /// Show a thread's values.
    Show(ThreadArgs),
    /// Show what a thread occupies.
    Storage(ThreadArgs),
    /// List a thread's checkpoints, newest first.
    History(ThreadHistoryArgs),
    /// Drop old checkpoints; the thread's state and its runs stay.
    Prune(PruneArgs),
    /// Go on from an earlier checkpoint, with a new run.
    Fork(ForkArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ThreadsLsArgs {
    /// Only threads of this door, such as cofounder or runs.
    #[arg(long, value_name = "NAME")]
    pub(crate) door: Option<String>,
    /// At most so many.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) limit: u32,
}

#[derive(Debug, Args)]
pub(crate) struct ThreadArgs {
    /// The thread's id.
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct ThreadHistoryArgs {
    /// The thread's id.
    pub(crate) id: String,
    /// At most so many.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) limit: u32,
}

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// The thread's id.
    pub(crate) id: String,
    /// What stays: `ends` (the last checkpoint of each run), or so many of the newest.
    #[arg(long, value_name = "ends|N", default_value = "ends")]
    pub(crate) keep: String,
}

#[derive(Debug, Args)]
pub(crate) struct ForkArgs {
    /// The thread's id.
    pub(crate) id: String,
    /// The checkpoint to go on from.
    pub(crate) checkpoint: String,
    /// Another agent than the one that made it.
    #[arg(long, value_name = "NAME")]
    pub(crate) agent: Option<String>,
}

/// The table of faults, for `clearway sim --help`.
fn faults() -> String {
    use std::fmt::Write as _;
    let mut text = String::from(
        "Settings change at run time by POST /control: {\"outage\": true}, {\"fault\": \"stall:20\"}, {\"concurrency\": 7}.\n\
         GET /control shows them, GET /stats what was seen.\n\n\
         Faults, by --fault, by the request header x-sim-fault, or behind the model's name (gpt-5-mini+stall:20).\n\
         The number after the colon is optional:\n",
    );
    let width = Fault::ALL.iter().map(|fault| fault.name().len()).max().unwrap_or(0) + 1;
    for group in Group::ALL {
        let _ = write!(text, "\n  The provider {}:\n", group.title());
        for fault in Fault::ALL.into_iter().filter(|fault| fault.about().group == group) {
            let about = fault.about();
            let default = about
                .parameter
                .map(|parameter| format!(" [{} {}]", parameter.default, parameter.unit.symbol()));
            let _ = writeln!(
                text,
                "    {:width$} {}{}",
                about.name,
                about.line,
                default.unwrap_or_default()
            );
        }
    }
    text
}

#[derive(Debug, Args)]
pub(crate) struct AnswerArgs {
    /// The run's id.
    pub(crate) id: String,
    /// JSON, or else text: `approve`, `{"choice": "edit", "value": "…"}`.
    pub(crate) answer: String,
}

#[derive(Debug, Args)]
pub(crate) struct ResolveArgs {
    /// The run's id.
    pub(crate) id: String,
    /// It happened, with this result.
    #[arg(long, value_name = "JSON", conflicts_with = "retry", required_unless_present = "retry")]
    pub(crate) done: Option<String>,
    /// It did not: make it again.
    #[arg(long)]
    pub(crate) retry: bool,
    /// Only this node's write.
    #[arg(long)]
    pub(crate) node: Option<String>,
    /// Only the write with this idempotency key, as `runs show` and `attention` tell it.
    #[arg(long)]
    pub(crate) key: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct SignalArgs {
    /// The run's id.
    pub(crate) id: String,
    /// The signal's name.
    pub(crate) name: String,
    /// JSON, or else text.
    pub(crate) value: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct BudgetArgs {
    /// The run's id.
    pub(crate) id: String,
    #[arg(long)]
    pub(crate) tokens: Option<u64>,
    /// In the currency unit of the configured prices.
    #[arg(long)]
    pub(crate) cost: Option<f64>,
    #[arg(long)]
    pub(crate) calls: Option<u32>,
}
