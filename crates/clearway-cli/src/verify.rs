//! `clearway verify campaigns`: the six steps by which operators convince themselves that campaigns
//! run beside everything else, each printed as passed or failed with what was seen.
//!
//! Without `--server` it starts a server of its own in an empty folder, with the built-in examples
//! and the simulator; with it the log cannot be looked at, which is said.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clearway::client::Client;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::cli::{Verified, VerifyArgs};
use crate::exit::Exit;
use crate::output::Output;
use crate::runs::block_on;

pub(crate) fn run(args: &VerifyArgs, output: Output) -> Result<Exit> {
    let Verified::Campaigns = args.what;
    block_on(async {
        let own = match &args.server {
            Some(_) => None,
            None => Some(Own::start().await?),
        };
        let client = match (&own, &args.server) {
            (Some(own), _) => own.client.clone(),
            (None, Some(url)) => crate::cli::client(url)?,
            (None, None) => bail!("no server"),
        };
        let limit = Duration::from_secs(args.timeout.max(1));
        let mut checks = Checks { output, results: Vec::new() };
        checks.all(&client, own.as_ref(), limit).await;
        checks.finish()
    })
}

/// A server of our own: this very program, in an empty folder.
struct Own {
    process: Child,
    log: PathBuf,
    client: Client,
    // Last: the process writes into it.
    _folder: TempDir,
}

impl Own {
    async fn start() -> Result<Self> {
        let folder = tempfile::tempdir().context("making a folder for the server")?;
        // A free port, for a moment: the server is told to take exactly this one.
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let log = folder.path().join("server.log");
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["dev", "--listen", &format!("127.0.0.1:{port}")])
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(File::create(folder.path().join("stdout"))?)
            .stderr(File::create(&log)?)
            .env("NO_COLOR", "1");
        // The simulator, whatever keys lie around: a verification costs nothing.
        for name in ["OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY", "PORT", "RUST_LOG"] {
            command.env_remove(name);
        }
        let process = command.spawn().context("starting the server")?;
        let client = Client::new(&format!("http://127.0.0.1:{port}"))?;
        Ok(Self { process, log, client, _folder: folder })
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // It is ours and holds nothing of value.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Checks {
    output: Output,
    results: Vec<(&'static str, Outcome, String)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Pass,
    Fail,
    Skip,
}

impl Outcome {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "FAIL",
            Self::Skip => "skip",
        }
    }
}

/// What was seen of the campaigns while they ran.
#[derive(Default)]
struct Seen {
    /// How long each look at the health took.
    health: Vec<Duration>,
    /// Each campaign's percentages, in order.
    percents: Vec<Vec<u64>>,
    statuses: Vec<String>,
    waits: Vec<String>,
}

impl Checks {
    fn note(&mut self, step: &'static str, result: Result<String>) -> bool {
        let (outcome, text) = match result {
            Ok(text) => (Outcome::Pass, text),
            Err(error) => (Outcome::Fail, format!("{error:#}")),
        };
        self.put(step, outcome, text);
        outcome == Outcome::Pass
    }

    fn put(&mut self, step: &'static str, outcome: Outcome, text: String) {
        if !self.output.json {
            self.output.print(&format!("{}  {step}: {text}", outcome.as_str()));
        }
        self.results.push((step, outcome, text));
    }

    async fn all(&mut self, client: &Client, own: Option<&Own>, limit: Duration) {
        if !self.note("1 the server is up", ready(client).await) {
            return;
        }
        let started = start_two(client).await;
        let ids: Vec<String> = started.as_ref().map(|(ids, _)| ids.clone()).unwrap_or_default();
        if !self.note("2 two campaigns start at once", started.map(|(_, text)| text)) {
            return;
        }
        let seen = watch(client, &ids, limit).await;
        self.note("3 health answers while they run", prompt(&seen));
        self.note("4 progress moves and is true", moved(&seen));
        let ended = ended(client, &ids, &seen).await;
        self.note("5 both end with their files", ended);
        match own {
            None => {
                let text = "the log of a server elsewhere cannot be read from here".to_owned();
                self.put("6 the log tells it", Outcome::Skip, text);
            }
            Some(own) => {
                let told = log_lines(&own.log(), &ids);
                self.note("6 the log tells it", told);
            }
        }
    }

    fn finish(self) -> Result<Exit> {
        let failed = self.results.iter().any(|(_, outcome, _)| *outcome == Outcome::Fail);
        if self.output.json {
            let steps: Vec<Value> = self
                .results
                .iter()
                .map(|(step, outcome, text)| {
                    json!({"step": step, "outcome": outcome.as_str().to_lowercase(), "seen": text})
                })
                .collect();
            self.output.print(&json!({"passed": !failed, "steps": steps}).to_string());
        }
        Ok(if failed { Exit::Failed } else { Exit::Ok })
    }
}

const READY: Duration = Duration::from_secs(30);
/// A look at the health that takes longer than this was blocked by something.
const PROMPT: Duration = Duration::from_millis(500);
const LOOK_EVERY: Duration = Duration::from_millis(50);

async fn ready(client: &Client) -> Result<String> {
    let begun = Instant::now();
    loop {
        match client.get("/api/v1/health").await {
            Ok(health) if health["thread_pool_ready"] == true => {
                return Ok(format!(
                    "{} after {:.1} s, thread_pool_ready, model {}",
                    health["status"].as_str().unwrap_or_default(),
                    begun.elapsed().as_secs_f64(),
                    health["llm_model"].as_str().unwrap_or("?"),
                ));
            }
            Ok(health) if begun.elapsed() > READY => bail!("it is not ready: {health}"),
            Err(error) if begun.elapsed() > READY => return Err(error.into()),
            Ok(_) | Err(_) => sleep(LOOK_EVERY).await,
        }
    }
}

fn brief(product: &str, user: &str) -> Value {
    json!({
        "product": product,
        "client": "Verification Ltd",
        "target_audience": "operators who like to see things for themselves",
        "goals": ["see that it works"],
        "key_features": ["runs beside everything else", "survives restarts"],
        "username": user,
    })
}

async fn start_two(client: &Client) -> Result<(Vec<String>, String)> {
    let begun = Instant::now();
    let (one, two) = (brief("Solar lamp", "verify_ann"), brief("Herb garden", "verify_bob"));
    let (one, two) = tokio::join!(
        client.post("/api/v1/campaigns/generate", Some(&one)),
        client.post("/api/v1/campaigns/generate", Some(&two)),
    );
    let took = begun.elapsed();
    let mut ids = Vec::new();
    for answer in [one?, two?] {
        let id = answer["campaign_id"].as_str().context("an answer without an id")?.to_owned();
        let parts: Vec<usize> = id.split('_').map(str::len).collect();
        if !id.starts_with("campaign_") || parts != [8, 8, 6, 5] {
            bail!("`{id}` is not of the form campaign_YYYYMMDD_HHMMSS_NNNNN");
        }
        ids.push(id);
    }
    if took > PROMPT * 4 {
        bail!("the answers took {:.1} s", took.as_secs_f64());
    }
    let text = format!("{} and {}, answered in {} ms", ids[0], ids[1], took.as_millis());
    Ok((ids, text))
}

/// Looks at health and progress until both have ended or the time is over.
async fn watch(client: &Client, ids: &[String], limit: Duration) -> Seen {
    let begun = Instant::now();
    let mut seen = Seen { percents: vec![Vec::new(); ids.len()], ..Seen::default() };
    while begun.elapsed() < limit {
        let asked = Instant::now();
        if client.get("/api/v1/health").await.is_ok() {
            seen.health.push(asked.elapsed());
        }
        let mut statuses = Vec::new();
        for (at, id) in ids.iter().enumerate() {
            let Ok(progress) = client.get(&format!("/api/v1/campaigns/{id}/progress")).await else {
                continue;
            };
            seen.percents[at].extend(progress["progress"]["progress_percentage"].as_u64());
            statuses.push(progress["status"].as_str().unwrap_or_default().to_owned());
            if let Some(kind) = progress["waiting_on"]["kind"].as_str()
                && !seen.waits.iter().any(|known| known == kind)
            {
                seen.waits.push(kind.to_owned());
            }
        }
        let over = |status: &String| !matches!(status.as_str(), "queued" | "running");
        let done = statuses.len() == ids.len() && statuses.iter().all(over);
        seen.statuses = statuses;
        if done {
            break;
        }
        sleep(LOOK_EVERY).await;
    }
    seen
}

fn prompt(seen: &Seen) -> Result<String> {
    let mut all = seen.health.clone();
    all.sort_unstable();
    let (Some(worst), Some(p99)) = (all.last(), all.get(all.len() * 99 / 100).or(all.last()))
    else {
        bail!("it never answered");
    };
    let text = format!(
        "{} looks, p99 {:.1} ms, worst {:.1} ms",
        all.len(),
        p99.as_secs_f64() * 1e3,
        worst.as_secs_f64() * 1e3
    );
    if *p99 > PROMPT { bail!("{text}") } else { Ok(text) }
}

fn moved(seen: &Seen) -> Result<String> {
    for percents in &seen.percents {
        if percents.windows(2).any(|pair| pair[1] < pair[0]) {
            bail!("a percentage went back: {percents:?}");
        }
        if !percents.iter().any(|percent| (1..100).contains(percent)) {
            bail!("no value between 0 and 100 was seen: {percents:?}");
        }
    }
    let shown = |percents: &Vec<u64>| {
        let mut steps = percents.clone();
        steps.dedup();
        steps.iter().map(u64::to_string).collect::<Vec<_>>().join(" ")
    };
    let lines: Vec<String> = seen.percents.iter().map(shown).collect();
    Ok(format!("{} %; waited on {}", lines.join(" | "), seen.waits.join(", ")))
}

async fn ended(client: &Client, ids: &[String], seen: &Seen) -> Result<String> {
    let mut told = Vec::new();
    for (id, status) in ids.iter().zip(&seen.statuses) {
        if status != "completed" {
            bail!("{id} is {status}");
        }
        let campaign = client.get(&format!("/api/v1/campaigns/{id}")).await?;
        let files = campaign["artifacts"].as_object().context("no artifacts")?;
        let page = format!("{id}_campaign_website.html");
        if !files.contains_key(&page) || files.len() < 12 {
            bail!("{id} has {} files: {:?}", files.len(), files.keys().collect::<Vec<_>>());
        }
        let website = client.download(&format!("/api/v1/campaigns/{id}/website")).await?;
        let report = client.download(&format!("/api/v1/campaigns/{id}/pdf")).await?;
        if !website.starts_with(b"<!doctype html>") || !report.starts_with(b"%PDF") {
            bail!("{id}: the website or the report is none");
        }
        told.push(format!(
            "{} files in {:.1} s, website {} bytes, report {} bytes",
            files.len(),
            campaign["execution_time"].as_f64().unwrap_or(0.0),
            website.len(),
            report.len()
        ));
    }
    Ok(told.join("; "))
}

fn log_lines(log: &str, ids: &[String]) -> Result<String> {
    let first = "pool initialized";
    let from = log.find(first).with_context(|| format!("no line `{first}`"))?;
    for (id, user) in ids.iter().zip(["verify_ann", "verify_bob"]) {
        let lines = [
            format!("starting generation for {id} by user {user}"),
            format!("website generated: {id}_campaign_website.html"),
            format!("generation completed for {id} by user {user}"),
            "execution time ".to_owned(),
            "artifacts generated: ".to_owned(),
        ];
        let mut at = from;
        for line in lines {
            let found = log[at..].find(&line);
            at += found.with_context(|| format!("no line `{line}` where it belongs"))?;
        }
    }
    Ok("pool initialized, starting, website, completed, time and artifacts, in this order"
        .to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_must_stand_in_order() {
        let ids = ["campaign_1".to_owned()];
        let good = "pool initialized\nstarting generation for campaign_1 by user verify_ann\n\
                    website generated: campaign_1_campaign_website.html\n\
                    generation completed for campaign_1 by user verify_ann\n\
                    execution time 1.00 seconds\nartifacts generated: 12\n";
        assert!(log_lines(good, &ids).is_ok());
        let swapped = good.replace(
            "execution time 1.00 seconds\nartifacts generated: 12",
            "artifacts generated: 12\nexecution time 1.00 seconds",
        );
        assert!(log_lines(&swapped, &ids).is_err());
        assert!(log_lines("", &ids).is_err());
    }

    #[test]
    fn progress_that_goes_back_or_jumps_is_noticed() {
        let seen = |percents: &[u64]| Seen { percents: vec![percents.to_vec()], ..Seen::default() };
        assert!(moved(&seen(&[0, 6, 6, 50, 100])).is_ok());
        assert!(moved(&seen(&[0, 50, 40])).is_err());
        assert!(moved(&seen(&[0, 0, 100])).is_err());
    }
}
