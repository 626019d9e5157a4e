//! The configuration that the server under test gets.

use std::net::SocketAddr;

/// The variable that holds the provider's key; the simulator takes any.
pub(crate) const KEY_VARIABLE: &str = "BENCH_PROVIDER_KEY";

/// What varies between measurements.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// The provider.
    pub(crate) provider: SocketAddr,
    /// Runs at once.
    pub(crate) slots: u32,
    /// How long the server may go on after SIGTERM.
    pub(crate) drain_s: u32,
    /// Calls to the provider at once.
    pub(crate) calls: u32,
}

impl Config {
    /// Room for every measurement: nothing here is meant to be what limits it.
    pub(crate) fn roomy(provider: SocketAddr) -> Self {
        Self { provider, slots: 6000, drain_s: 10, calls: 6000 }
    }

    /// The few calls at once that an account for embeddings usually has.
    pub(crate) fn embedding(provider: SocketAddr) -> Self {
        Self { calls: 10, ..Self::roomy(provider) }
    }

    pub(crate) fn to_toml(&self) -> String {
        let Self { provider, slots, drain_s, calls } = self;
        format!(
            r#"[server]
log = "json"
drain = "{drain_s}s"

[server.limits]
max_connections = 8192

[providers.bench]
kind = "openai"
base_url = "http://{provider}/v1"
api_key = "${{{KEY_VARIABLE}}}"
limits = {{ concurrent = {calls}, queue = 6000 }}
pool = {{ connections = 6000, keep_alive = 6000, idle_expiry = "60s" }}

[models]
bench = {{ provider = "bench", model = "bench" }}
embed = {{ provider = "bench", model = "text-embedding-3-small" }}

[pools]
chat = {{ slots = {slots}, queue = 12000 }}
background = {{ slots = {slots}, queue = 12000 }}

[agents.cofounder]
title = "Load test"
model = "bench"
prompt = "You are under load."
pool = "chat"
deadline = "120s"

# What LangGraph's door is measured with: nodes that say something of their own around one that streams.
[workflows.told]
pool = "chat"

[workflows.told.channels.messages]
reducer = "merge_by_id"
input = true

[workflows.told.steps.begin]
do = "set"
value = "'begin'"
emit = {{ progress = "{{'part': 'begin'}}" }}

[workflows.told.steps.say]
needs = ["begin"]
do = "llm"
model = "bench"
messages = "messages"

[workflows.told.steps.end]
needs = ["say"]
do = "set"
value = "'end'"
emit = {{ progress = "{{'part': 'end'}}" }}

[doors.cofounder]
agent = "cofounder"
expose_state = true
"#
        )
    }
}
