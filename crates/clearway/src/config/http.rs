//! `[http]`: where `http` steps may go, and what they send along.

use clearway_upstream::Allowed;
use http::{HeaderName, HeaderValue};

use super::secret::Secret;
use super::walk::{Table, Value};

/// See the module.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Http {
    /// Patterns of hosts, with `*` for any characters.
    pub hosts: Vec<String>,
    /// Hosts and networks that are not public and may be asked all the same.
    pub allow: Vec<Allowed>,
    /// Sent to hosts that fit a pattern: secrets that no template ever sees.
    pub headers: Vec<(String, String, Secret)>,
    /// Bytes of one answer.
    pub max_bytes: usize,
}

/// Bytes of an answer unless the file says otherwise.
const MAX_BYTES: usize = 1 << 20;

impl Http {
    /// Whether a step may ask this host.
    pub fn permits(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        let mut patterns = self.hosts.iter();
        patterns.any(|pattern| clearway_engine::tool::glob(&pattern.to_ascii_lowercase(), &host))
    }
}

pub(super) fn read(table: Table<'_>) -> Http {
    let hosts = table.get("hosts").map(|value| value.texts()).unwrap_or_default();
    let allow = table.get("allow").map(|value| value.list()).unwrap_or_default();
    let allow = allow.iter().filter_map(|value| value.parsed(Allowed::parse)).collect();
    let mut headers = Vec::new();
    let by_host = table.get("headers").map(|value| value.entries()).unwrap_or_default();
    for (pattern, value) in by_host {
        for (name, value) in value.entries() {
            headers.extend(header(&name, &value).map(|secret| (pattern.clone(), name, secret)));
        }
    }
    let max_bytes = table.get("max_bytes").and_then(|value| value.integer(1..=64 << 20));
    table.finish();
    let max_bytes = max_bytes.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(MAX_BYTES);
    Http { hosts, allow, headers, max_bytes }
}

fn header(name: &str, value: &Value<'_>) -> Option<Secret> {
    if HeaderName::try_from(name).is_err() {
        value.problem(format!("`{name}` is no name of a header"), "here", "");
        return None;
    }
    let secret = value.expanded()?;
    if HeaderValue::try_from(secret.expose()).is_err() {
        value.hidden_problem(format!("`{name}` cannot be sent as a header"), "here", "");
        return None;
    }
    Some(secret)
}
