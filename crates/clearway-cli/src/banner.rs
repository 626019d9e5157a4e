//! What a server says when it is ready: where it is, what it works with, and what to try.

use clearway::Clearway;
use clearway::config::{Config, Dialect, FILE, Origin, ProviderKind};
use serde_json::{Value, json};

/// The banner for people.
pub(crate) fn text(clearway: &Clearway, command: &str) -> String {
    let config = clearway.config();
    let url = url(clearway);
    let taken = match clearway.port_taken() {
        Some(port) => format!("\n\n  port {port} is taken, so this is the next free one"),
        None => String::new(),
    };
    format!(
        "clearway {version}, {command}: ready{taken}\n\n\
         \x20 address  {url}\n\
         \x20 api      {url}/openapi.json\n\
         \x20 health   {url}/health/ready\n\
         \x20 data     {data}\n\
         \x20 config   {origin}\n\
         \x20 agents   {agents}\n\
         \x20 model    {model}\n\n\
         Try:\n\n\
         \x20 curl -s {chat}/chat {JSON} -d '{{\"user_id\": \"me\", \"message\": \"hello\"}}'\n\
         \x20 curl -sN {chat}/chat/stream {JSON} -d '{{\"user_id\": \"me\", \"message\": \"how do I find customers?\"}}'\n\
         \x20 curl -s {url}/runs?limit=5\n",
        version = env!("CARGO_PKG_VERSION"),
        data = absolute(clearway),
        origin = origin(config),
        agents = agents(config),
        model = model(config),
        chat = door(config, &url),
    )
}

const JSON: &str = "-H 'content-type: application/json'";

/// The same for programs.
pub(crate) fn json(clearway: &Clearway, command: &str) -> Value {
    let config = clearway.config();
    let (model, _) = config.default_model();
    json!({
        "ready": true,
        "command": command,
        "version": env!("CARGO_PKG_VERSION"),
        "address": url(clearway),
        "data": absolute(clearway),
        "config": match &config.origin {
            Origin::File(file) => Some(file.display().to_string()),
            Origin::BuiltIn | Origin::Text => None,
        },
        "agents": config.agents.keys().collect::<Vec<_>>(),
        "model": model.model,
        "provider": model.provider,
        "process": std::process::id(),
    })
}

/// An address that can be pasted: "any address" cannot be connected to everywhere.
fn url(clearway: &Clearway) -> String {
    let mut address = clearway.address();
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            std::net::SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            std::net::SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    format!("http://{address}")
}

/// Where the first door of the configuration is.
fn door(config: &Config, url: &str) -> String {
    let mount = config.doors.values().find(|door| door.dialect == Dialect::CoFounder);
    let mount = mount.map_or("", |door| door.mount.trim_end_matches('/'));
    format!("{url}{mount}")
}

fn absolute(clearway: &Clearway) -> String {
    let path = clearway.data();
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}

fn origin(config: &Config) -> String {
    match &config.origin {
        Origin::File(file) => file.display().to_string(),
        Origin::BuiltIn | Origin::Text => format!("built-in examples (there is no {FILE} here)"),
    }
}

fn agents(config: &Config) -> String {
    let names = config.agents.keys().map(|name| {
        if *name == config.default_agent { format!("{name} (default)") } else { name.clone() }
    });
    names.collect::<Vec<_>>().join(", ")
}

fn model(config: &Config) -> String {
    let (model, provider) = config.default_model();
    match &provider.kind {
        ProviderKind::Sim(_) => {
            "built-in simulator; set OPENAI_API_KEY to use a real one".to_owned()
        }
        ProviderKind::Remote(remote) => {
            // A query may hold a key.
            let address = remote.base_url.split('?').next().unwrap_or_default();
            format!("{} at {} ({address})", model.model, model.provider)
        }
    }
}
