//! Clearway's side: a whole server in this process, and its clients.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use clearway::client::{Client, Error};
use clearway::config::{Config, Env};
use clearway::{Clearway, Options};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A server whose provider is the lab's.
#[derive(Debug)]
pub(crate) struct Server {
    clearway: Clearway,
    client: Client,
    // Last: its files are open until the server is gone.
    _data: TempDir,
}

/// The limit of a turn here.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// Every limit is a fraction of what it would be.
fn configuration(provider: SocketAddr) -> String {
    format!(
        r#"
        [providers.lab]
        kind     = "openai"
        base_url = "http://{provider}/v1"
        deadline = {{ connect = "1s", first_byte = "3s", first_token = "4s", between_bytes = "3s", between_tokens = "4s" }}

        [models]
        lab = {{ provider = "lab", model = "lab" }}

        [agents.lab]
        deadline = "{}s"
        "#,
        DEADLINE.as_secs()
    )
}

/// How a turn ended for the one who asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Reply(String),
    /// The code and the sentence.
    Error(String, String),
}

impl Server {
    pub(crate) async fn start(provider: SocketAddr) -> Result<Self> {
        let data = tempfile::tempdir().context("making a directory for the lab's data")?;
        // Nothing of the environment: the lab is the same everywhere.
        let text = configuration(provider);
        let mut config = Config::parse("lab.toml", &text, &Env::default())?;
        config.server.listen = Some("127.0.0.1:0".parse().map_err(anyhow::Error::msg)?);
        config.server.data = Some(data.path().to_owned());
        let clearway = Clearway::start(config, Options::default()).await?;
        let client = Client::new(&format!("http://{}", clearway.address()))?;
        Ok(Self { clearway, client, _data: data })
    }

    /// Clients may outlive the borrow of the server.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    pub(crate) async fn stop(self) {
        self.clearway.shutdown(Duration::ZERO, std::future::ready(())).await;
    }
}

/// Asks and waits for the whole answer.
///
/// # Errors
/// The server did not answer at all.
pub(crate) async fn ask(client: &Client, user: &str) -> Result<Answer> {
    let body = json!({"user_id": user, "message": "hello"});
    match client.post("/chat", Some(&body)).await {
        Ok(answer) => Ok(Answer::Reply(answer["reply"].as_str().unwrap_or_default().to_owned())),
        Err(Error::Problem(problem)) => Ok(Answer::Error(problem.code, problem.detail)),
        Err(error) => Err(error.into()),
    }
}

/// Notes what runs wait for, each kind once, without an end.
pub(crate) async fn watch(client: &Client, waits: &mut Vec<String>) -> Infallible {
    loop {
        if let Ok(runs) = client.get("/runs?status=running&limit=1").await
            && let Some((kind, what)) = wait(&runs["runs"][0])
            && !waits.iter().any(|known| known.starts_with(&kind))
        {
            waits.push(kind + &what);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The kind of its wait and the sentence about it, without the times.
fn wait(run: &Value) -> Option<(String, String)> {
    let waiting = &run["waiting_on"];
    let (kind, sentence) = (waiting["kind"].as_str()?, waiting["sentence"].as_str()?);
    let what = sentence.split(", ").take_while(|part| !part.contains(" s so far"));
    // Work is what a run does between two waits.
    (kind != "work").then(|| (format!("{kind}: "), what.collect::<Vec<_>>().join(", ")))
}

const LOOK: Duration = Duration::from_millis(100);
