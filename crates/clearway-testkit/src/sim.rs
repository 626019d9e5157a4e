//! `clearway sim` as a child: the provider of every test.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::Value;

use crate::cli::Binary;
use crate::http::Client;
use crate::port::free_port;
use crate::process::Process;
use crate::wait::{PATIENCE, until};

/// How the provider behaves unless a model's name says otherwise.
#[derive(Clone, Debug, Default)]
pub struct SimOptions {
    /// Time to the first token.
    pub ttft: Duration,
    /// Time between tokens.
    pub interval: Duration,
    /// Replies of exactly so many tokens, `tok0 tok1 …`; otherwise the reply repeats the question.
    pub tokens: Option<u32>,
}

/// A running simulator.
#[derive(Debug)]
pub struct Sim {
    process: Process,
    address: SocketAddr,
}

impl Sim {
    /// Starts it and waits until it answers.
    ///
    /// # Errors
    /// It ends, or stays silent.
    pub async fn start(binary: &Binary, folder: &Path, options: &SimOptions) -> Result<Self> {
        let address = free_port()?;
        let mut command = binary.command(folder);
        command.args(["sim", "--listen", &address.to_string()]);
        command.args(["--ttft-ms", &options.ttft.as_millis().to_string()]);
        command.args(["--token-interval-ms", &options.interval.as_millis().to_string()]);
        if let Some(tokens) = options.tokens {
            command.args(["--tokens", &tokens.to_string()]);
        }
        let mut process = Process::spawn("sim", command, &folder.join("sim.log"))?;
        let client = Client::new(address);
        until("the simulator answers", PATIENCE, async || {
            if let Some(exit) = process.exited()? {
                bail!("the simulator ended: {exit:?}");
            }
            Ok(client.get("/health").send().await.is_ok_and(|answer| answer.status == 200))
        })
        .await?;
        Ok(Self { process, address })
    }

    /// The provider's `base_url`.
    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// The counters: `in_flight`, `requests`, `completed`, `aborted_by_client`, …
    ///
    /// # Errors
    /// It does not answer.
    pub async fn stats(&self) -> Result<Value> {
        Ok(Client::new(self.address).get("/stats").send().await?.expect(200)?.json())
    }

    /// What it was asked lately, oldest first: `{model, messages: [{role, content}]}`.
    ///
    /// # Errors
    /// As [`Sim::stats`].
    pub async fn prompts(&self) -> Result<Vec<Value>> {
        let all = Client::new(self.address).get("/prompts").send().await?.expect(200)?.json();
        Ok(all["prompts"].as_array().cloned().unwrap_or_default())
    }

    /// One counter.
    ///
    /// # Errors
    /// As [`Sim::stats`].
    pub async fn count(&self, name: &str) -> Result<u64> {
        let stats = self.stats().await?;
        let Some(count) = stats[name].as_u64() else { bail!("no counter {name}: {stats}") };
        Ok(count)
    }

    /// Waits until a counter has a value.
    ///
    /// # Errors
    /// It does not get there within `within`.
    pub async fn until(&self, name: &str, value: u64, within: Duration) -> Result<()> {
        until(format!("the simulator's {name} is {value}"), within, async || {
            Ok(self.count(name).await? == value)
        })
        .await
    }

    /// # Errors
    /// It cannot be ended.
    pub async fn stop(mut self) -> Result<()> {
        self.process.passed();
        self.process.kill().await
    }
}
