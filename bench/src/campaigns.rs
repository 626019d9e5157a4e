//! Whether everything else stays fast while every campaign slot is busy.
//!
//! The server is started as a newcomer would: `clearway dev` in an empty folder, with the built-in campaign and
//! simulator. Probes ask all the time, first beside nothing and then beside running and queued campaigns. A chat's time
//! is the simulator's pace for the most part, so what campaigns add to it is the difference of the two.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tokio::process::Command;

use crate::bed::{Bed, Process, Tools, free_address};
use crate::health::Probe;
use crate::http::{Conn, Request, exchange};
use crate::load::chat_body;
use crate::report::{Kind, Report, Section, number, say};
use crate::stats::Hist;

/// Parameters of `campaigns`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Campaigns that are started at once; four run, the others wait.
    #[arg(long, default_value_t = 12)]
    campaigns: u32,
    /// How long each phase is watched, in seconds.
    #[arg(long, default_value_t = 15)]
    seconds: u64,
}

const PATHS: [&str; 4] =
    ["/health", "/api/v1/health", "/api/v1/campaigns/progress", "/health/live"];

pub(crate) async fn run(tools: &Tools, options: &Options, report: &mut Report) -> Result<()> {
    say(&format!("{} campaigns beside everything else", options.campaigns));
    let bed = Bed::new(tools)?;
    let address = free_address()?;
    let mut command = Command::new(&tools.clearway);
    command.args(["dev", "--listen", &address.to_string()]).current_dir(bed.folder());
    for key in ["OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY"] {
        command.env_remove(key);
    }
    let mut server = Process::start("clearway", command, address, bed.folder())?;
    server.ready("/health").await?;
    let watched = Duration::from_secs(options.seconds);
    let idle = watch(&server, watched).await?;
    for n in 0..options.campaigns {
        let brief = json!({
            "product": format!("Lamp {n}"), "client": "Lumen", "target_audience": "campers",
            "goals": ["sell"], "key_features": ["bright"], "username": format!("user{}", n % 3),
        });
        server.post("/api/v1/campaigns/generate", &brief).await?;
    }
    let busy = watch(&server, watched).await?;
    let after = server.get("/api/v1/campaigns").await?;
    let running = after["running"].as_u64().context("no count")?;
    ensure!(running > 0, "the campaigns were over before they were watched: {after}");
    present(&idle, &busy, running, report);
    Ok(())
}

/// What was measured in one phase: a row for each address, the chat last.
struct Watched {
    rows: Vec<(&'static str, Hist)>,
    failures: usize,
}

async fn watch(server: &Process, watched: Duration) -> Result<Watched> {
    let mut probes = Vec::new();
    for path in PATHS {
        probes.push((path, Probe::start(server.address, path)?));
    }
    let begun = Instant::now();
    let mut conn = Conn::open(server.address).await?;
    let mut chats = Hist::default();
    while begun.elapsed() < watched {
        let request = Request::post("/chat", &chat_body("prober", "hello"));
        let asked = Instant::now();
        exchange(&mut conn, &request).await?.ok()?;
        chats.add(asked.elapsed());
    }
    let (mut rows, mut failures) = (Vec::new(), 0);
    for (path, probe) in probes {
        let probed = probe.finish()?;
        failures += probed.failures;
        rows.push((path, probed.times));
    }
    rows.push(("/chat", chats));
    Ok(Watched { rows, failures })
}

fn present(idle: &Watched, busy: &Watched, running: u64, report: &mut Report) {
    let columns = ["address", "idle p50 ms", "idle p99 ms", "busy p50 ms", "busy p99 ms"];
    let mut section = Section::new("Beside campaigns", &columns);
    let mut figures = serde_json::Map::new();
    for ((path, alone), (_, beside)) in idle.rows.iter().zip(&busy.rows) {
        section.row([
            (*path).to_owned(),
            number(alone.ms(0.5)),
            number(alone.ms(0.99)),
            number(beside.ms(0.5)),
            number(beside.ms(0.99)),
        ]);
        figures.insert(
            (*path).to_owned(),
            json!({"idle_p99": alone.ms(0.99), "busy_p99": beside.ms(0.99)}),
        );
        let (what, value) = match *path {
            "/chat" => ("/chat, what campaigns add, p99 ms", beside.ms(0.99) - alone.ms(0.99)),
            path => (path, beside.ms(0.99)),
        };
        report.bar(Kind::Timing, format!("{what} beside campaigns, p99 ms"), value, 10.0);
    }
    section.note(format!("{running} campaigns were running at the end"));
    report.section(section);
    report.none_of("probes that failed beside campaigns", idle.failures + busy.failures);
    report.figure("campaigns", figures);
}
