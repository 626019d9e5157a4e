//! A simulator, a server and their folder: what nearly every test needs.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::check::{check_gapless, pairs, without_cause};
use crate::cli::{Binary, Output, finish};
use crate::config::{Agent, Config};
use crate::files::{Scratch, make_open};
use crate::http::{Client, Request};
use crate::port::free_port;
use crate::process::Exit;
use crate::server::{Command, Server};
use crate::sim::{Sim, SimOptions};
use crate::wait::{PATIENCE, until_some};

/// How a [`World`] is to be.
#[derive(Clone, Debug)]
pub struct Builder {
    binary: Binary,
    sim: SimOptions,
    config: Config,
    command: &'static str,
    wrapper: Vec<String>,
    env: Vec<(String, String)>,
    for_anybody: bool,
    files: Vec<(String, String)>,
}

/// See the module. Dropping it kills everything; a test that went well ends with
/// [`World::finish`], any other prints the logs.
#[derive(Debug)]
pub struct World {
    binary: Binary,
    sim: Option<Sim>,
    server: Option<Server>,
    command: Command,
    address: std::net::SocketAddr,
    config: Config,
    starts: u32,
    /// Logs of servers that were killed: what is open in them is allowed to be.
    killed_logs: Vec<String>,
    /// Last, so that the logs are still there when the processes show them.
    scratch: Scratch,
}

impl World {
    #[expect(
        clippy::new_ret_no_self,
        reason = "a world is built, and reads best from its own name"
    )]
    pub fn new(binary: Binary) -> Builder {
        let (sim, config) = (SimOptions::default(), Config::default());
        Builder {
            binary,
            sim,
            config,
            command: "serve",
            wrapper: Vec::new(),
            env: Vec::new(),
            for_anybody: false,
            files: Vec::new(),
        }
    }

    pub const fn client(&self) -> Client {
        Client::new(self.address)
    }

    /// Where the server listens.
    pub const fn address(&self) -> std::net::SocketAddr {
        self.address
    }

    pub const fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// The simulator, which lives as long as the world.
    ///
    /// # Panics
    /// Never: it is taken only by [`World::finish`].
    pub const fn sim(&self) -> &Sim {
        self.sim.as_ref().expect("taken only when the world ends")
    }

    /// The running server.
    ///
    /// # Errors
    /// It was killed or stopped.
    pub fn server(&mut self) -> Result<&mut Server> {
        self.server.as_mut().context("no server runs")
    }

    /// How the server is started.
    pub const fn command(&self) -> &Command {
        &self.command
    }

    /// Where a log of a server goes that the test starts itself.
    pub fn log_path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(format!("{name}.log"))
    }

    // ## Life and death

    /// Ends the server as a power cut would.
    ///
    /// # Errors
    /// None runs.
    pub async fn kill(&mut self) -> Result<()> {
        let mut server = self.server.take().context("no server runs")?;
        server.process().kill().await?;
        self.retire(server);
        Ok(())
    }

    /// Asks the server to stop, and waits for its end.
    ///
    /// # Errors
    /// It goes on longer than `within`.
    pub async fn stop(&mut self, within: Duration) -> Result<Exit> {
        self.server()?.terminate()?;
        self.stop_waiting(within).await
    }

    /// Waits for the end of a server that was asked to stop.
    ///
    /// # Errors
    /// It goes on longer than `within`.
    pub async fn stop_waiting(&mut self, within: Duration) -> Result<Exit> {
        let exit = self.server()?.process().exit(within).await?;
        if let Some(server) = self.server.take() {
            let open = pairs(&server.log())?.open;
            self.retire(server);
            ensure!(open.is_empty(), "a server that stopped in order left open: {open:?}");
        }
        Ok(exit)
    }

    /// Starts a server on the data of the one before, at the same address.
    ///
    /// # Errors
    /// It does not get ready.
    pub async fn restart(&mut self) -> Result<Duration> {
        ensure!(self.server.is_none(), "the server still runs");
        self.starts += 1;
        let log = self.log_path(&format!("server-{}", self.starts));
        let mut server = self.command.spawn(self.address, &log)?;
        let ready = server.ready(PATIENCE).await;
        self.server = Some(server);
        ready
    }

    /// The configuration from now on; a running server in production does not look.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn reconfigure(&mut self, change: impl FnOnce(&mut Config)) -> Result<()> {
        change(&mut self.config);
        let text = self.config.render(&self.sim().url());
        self.scratch.write("clearway.toml", text).map(drop)
    }

    fn retire(&mut self, mut server: Server) {
        self.killed_logs.push(server.log());
        server.process().passed();
    }

    /// The end of a test that went well: the server stops in order and at once, everything that
    /// started in its log has ended, and nobody had to be told of an error.
    ///
    /// # Errors
    /// One of these is not so.
    pub async fn finish(mut self) -> Result<()> {
        if self.server.is_some() {
            let limit = self.config.drain + PATIENCE;
            let exit = self.server()?.stop(limit).await?;
            let server = self.server()?;
            ensure!(exit.code == Some(0), "the server's end: {exit:?}");
            let log = server.log();
            let open = pairs(&log)?.open;
            ensure!(open.is_empty(), "started and never ended: {open:?}");
            let bare = without_cause(&log);
            ensure!(bare.is_empty(), "said without a cause: {bare:?}");
            ensure!(!log.contains("panicked at"), "something panicked");
            server.process().passed();
        }
        for log in &self.killed_logs {
            pairs(log).context("the log of a killed server")?;
            ensure!(!log.contains("panicked at"), "something panicked");
        }
        match self.sim.take() {
            Some(sim) => sim.stop().await,
            None => Ok(()),
        }
    }

    // ## Talking to it

    /// A chat turn, not yet sent.
    pub fn chat(&self, user: &str, message: &str) -> Request {
        self.client().post("/chat").json(&json!({"user_id": user, "message": message}))
    }

    /// A streamed chat turn, not yet sent.
    pub fn stream(&self, user: &str, message: &str) -> Request {
        self.client().post("/chat/stream").json(&json!({"user_id": user, "message": message}))
    }

    /// Starts a background run; returns its id.
    ///
    /// # Errors
    /// It is refused.
    pub async fn task(&self, body: Value) -> Result<String> {
        let answer = self.client().post("/chat/async").json(&body).send().await?;
        ensure!(matches!(answer.status, 200 | 202), "status {}: {}", answer.status, answer.text());
        task_id(&answer.json())
    }

    /// A run as it is now.
    ///
    /// # Errors
    /// There is none.
    pub async fn run(&self, id: &str) -> Result<Value> {
        Ok(self.client().get(format!("/runs/{id}")).send().await?.expect(200)?.json())
    }

    /// Runs, newest first: `query` as in `status=ready&limit=10`.
    ///
    /// # Errors
    /// The query is refused.
    pub async fn runs(&self, query: &str) -> Result<Vec<Value>> {
        let answer = self.client().get(format!("/runs?{query}")).send().await?.expect(200)?;
        Ok(answer.json()["runs"].as_array().context("no list of runs")?.clone())
    }

    /// Waits until a run is as `wanted`.
    ///
    /// # Errors
    /// It does not get there; the error shows how it is.
    pub async fn run_until(&self, id: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = Value::Null;
        let found = until_some(format!("run {id} is as wanted"), PATIENCE, async || {
            last = self.run(id).await?;
            Ok(wanted(&last).then(|| last.clone()))
        })
        .await;
        found.with_context(|| format!("it is {last}"))
    }

    /// Waits for a run's end.
    ///
    /// # Errors
    /// As [`World::run_until`].
    pub async fn ended(&self, id: &str) -> Result<Value> {
        let ends = ["success", "error", "timeout", "cancelled"];
        self.run_until(id, |run| ends.iter().any(|end| run["status"] == *end)).await
    }

    /// Waits until a run waits for `kind`.
    ///
    /// # Errors
    /// As [`World::run_until`].
    pub async fn waits_for(&self, id: &str, kind: &str) -> Result<Value> {
        self.run_until(id, |run| run["waiting_on"]["kind"] == kind).await
    }

    /// The run that was accepted last; waits for one.
    ///
    /// # Errors
    /// There is none.
    pub async fn newest_run(&self) -> Result<String> {
        until_some("a run is there", PATIENCE, async || {
            let runs = self.runs("limit=1").await?;
            Ok(runs.first().and_then(|run| run["run_id"].as_str()).map(ToOwned::to_owned))
        })
        .await
    }

    /// A run's whole log, page by page.
    ///
    /// # Errors
    /// There is no such run.
    pub async fn events(&self, id: &str) -> Result<Vec<Value>> {
        let mut events = Vec::new();
        let mut after = String::new();
        loop {
            let path = format!("/runs/{id}/events?limit=1000{after}");
            let page = self.client().get(path).header("accept", "application/json").send().await?;
            let page = page.expect(200)?.json();
            let more = page["events"].as_array().context("no list of events")?;
            events.extend(more.iter().cloned());
            match page["next"].as_u64() {
                Some(next) if !more.is_empty() => after = format!("&after={next}"),
                Some(_) | None => return Ok(events),
            }
        }
    }

    /// Checks an ended run's log from its first number to its last.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub async fn check_log(&self, id: &str) -> Result<Vec<Value>> {
        let events = self.events(id).await?;
        check_gapless(&events, true).with_context(|| format!("the log of run {id}"))?;
        Ok(events)
    }

    /// Asks a run to end.
    ///
    /// # Errors
    /// No answer.
    pub async fn cancel(&self, id: &str, query: &str) -> Result<crate::Response> {
        self.client().post(format!("/runs/{id}/cancel{query}")).send().await
    }

    /// What the co-founder's door says about a conversation.
    ///
    /// # Errors
    /// There is none, or the door does not show it.
    pub async fn state(&self, user: &str) -> Result<Value> {
        Ok(self.client().get(format!("/state?user_id={user}")).send().await?.expect(200)?.json())
    }

    /// Runs a command of the binary against this server.
    ///
    /// # Errors
    /// It does not end.
    pub async fn cli(&self, args: &[&str]) -> Result<Output> {
        let mut command = self.binary.command(self.scratch.path());
        command.args(args).env("CLEARWAY_SERVER", format!("http://{}", self.address));
        finish(command).await
    }
}

/// The id in the answer to a new background run.
pub(crate) fn task_id(answer: &Value) -> Result<String> {
    Ok(answer["task_id"].as_str().with_context(|| format!("no task id: {answer}"))?.to_owned())
}

impl Builder {
    /// The provider's pace.
    #[must_use]
    pub fn sim(mut self, options: SimOptions) -> Self {
        self.sim = options;
        self
    }

    #[must_use]
    pub fn config(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    /// With one agent, at the co-founder's door and in the background.
    #[must_use]
    pub fn agent(self, agent: Agent) -> Self {
        self.config(|config| config.agents = vec![agent])
    }

    /// `dev` instead of `serve`.
    #[must_use]
    pub const fn dev(mut self) -> Self {
        self.command = "dev";
        self
    }

    /// Lets another program start the server, such as a tracer.
    #[must_use]
    pub fn through(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|part| (*part).to_owned()).collect();
        self
    }

    /// With a variable in the server's environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A file beside the configuration, for it to name.
    #[must_use]
    pub fn file(mut self, name: &str, text: &str) -> Self {
        self.files.push((name.to_owned(), text.to_owned()));
        self
    }

    /// Whoever the wrapper makes of the server may write in its folder.
    #[must_use]
    pub const fn for_anybody(mut self) -> Self {
        self.for_anybody = true;
        self
    }

    /// Starts the simulator and the server, and waits until both are ready.
    ///
    /// # Errors
    /// One of them is not.
    pub async fn start(self) -> Result<World> {
        let scratch = Scratch::new()?;
        if self.for_anybody {
            make_open(scratch.path())?;
        }
        let sim = Sim::start(&self.binary, scratch.path(), &self.sim).await?;
        scratch.write("clearway.toml", self.config.render(&sim.url()))?;
        for (name, text) in &self.files {
            scratch.write(name, text)?;
        }
        let mut command = Command::new(&self.binary, self.command, scratch.path());
        command.wrapper = self.wrapper;
        command.env = self.env;
        if self.command == "serve" {
            command = command.arg("--config").arg("clearway.toml");
        }
        let mut world = World {
            scratch,
            binary: self.binary,
            sim: Some(sim),
            server: None,
            command,
            address: free_port()?,
            config: self.config,
            starts: 0,
            killed_logs: Vec::new(),
        };
        world.restart().await?;
        Ok(world)
    }
}
