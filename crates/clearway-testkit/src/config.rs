//! A `clearway.toml` for a test.

use std::fmt::Write as _;
use std::time::Duration;

/// What a test wants to be different. Each agent has a model of its own, so that each can have a
/// provider fault of its own.
#[derive(Clone, Debug)]
pub struct Config {
    /// How long runs may go on after a request to stop.
    pub drain: Duration,
    /// Calls at once at the provider.
    pub concurrent: u32,
    pub pools: Vec<Pool>,
    /// The first one answers at `/chat`, each other one at `/NAME/chat`.
    pub agents: Vec<Agent>,
    /// Further lines of the server's table.
    pub server: String,
    /// Anything else, at the end of the file.
    pub extra: String,
}

/// A pool.
#[derive(Clone, Debug)]
pub struct Pool {
    pub name: &'static str,
    pub slots: u32,
    pub queue: u32,
}

/// An agent.
#[derive(Clone, Debug)]
pub struct Agent {
    pub name: &'static str,
    pub model: Model,
    pub prompt: String,
    /// Further lines of its table.
    pub extra: String,
}

/// What the simulator is asked for: its name may carry a fault, as in `m+stall:3`.
#[derive(Clone, Debug)]
pub struct Model(pub String);

impl Agent {
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            model: Model("m".to_owned()),
            prompt: "Be brief.".to_owned(),
            extra: String::new(),
        }
    }

    /// With a fault of the simulator's, such as `stall:3`.
    #[must_use]
    pub fn fault(mut self, fault: &str) -> Self {
        self.model = Model(format!("m+{fault}"));
        self
    }

    /// With a further line of configuration.
    #[must_use]
    pub fn line(mut self, line: &str) -> Self {
        self.extra.push_str(line);
        self.extra.push('\n');
        self
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            drain: Duration::from_secs(2),
            // The provider is never what a test waits for unless it says so.
            concurrent: 1024,
            pools: Vec::new(),
            agents: vec![Agent::new("cofounder")],
            server: String::new(),
            extra: String::new(),
        }
    }
}

impl Config {
    /// The file, for a provider at `url`.
    pub(crate) fn render(&self, url: &str) -> String {
        let mut text = format!(
            "[server]\ndata = \"data\"\nlog = \"json\"\ndrain = \"{}ms\"\n{}\n\
             [providers.lab]\nkind = \"openai\"\nbase_url = \"{url}\"\n",
            self.drain.as_millis(),
            self.server
        );
        let mut put = |part: std::fmt::Arguments<'_>| {
            text.write_fmt(part).expect("writing to a string cannot fail");
        };
        put(format_args!("limits = {{ concurrent = {} }}\n", self.concurrent));
        for Pool { name, slots, queue } in &self.pools {
            put(format_args!("\n[pools.{name}]\nslots = {slots}\nqueue = {queue}\n"));
        }
        for Agent { name, model, prompt, extra } in &self.agents {
            let model = &model.0;
            put(format_args!("\n[models.{name}]\nprovider = \"lab\"\nmodel = \"{model}\"\n"));
            put(format_args!(
                "\n[agents.{name}]\nmodel = \"{name}\"\nprompt = {prompt:?}\n{extra}"
            ));
        }
        for (at, Agent { name, .. }) in self.agents.iter().enumerate() {
            let mount = if at == 0 { "/".to_owned() } else { format!("/{name}") };
            put(format_args!(
                "\n[doors.{name}]\ndialect = \"cofounder\"\nmount = \"{mount}\"\n\
                 agent = \"{name}\"\nexpose_state = true\n"
            ));
        }
        put(format_args!("\n{}", self.extra));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_agent_has_its_model() {
        let mut config = Config::default();
        config.agents.push(Agent::new("slow").fault("stall:3").line("deadline = \"2s\""));
        let text = config.render("http://127.0.0.1:1/v1");
        assert!(text.contains("[models.slow]\nprovider = \"lab\"\nmodel = \"m+stall:3\"\n"));
        assert!(text.contains("prompt = \"Be brief.\"\ndeadline = \"2s\"\n"));
        assert!(text.contains("mount = \"/\"\nagent = \"cofounder\"\n"));
        assert!(text.contains("mount = \"/slow\"\nagent = \"slow\"\n"));
    }
}
