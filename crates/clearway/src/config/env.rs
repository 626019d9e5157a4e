//! The environment, as a value: read once, passed down, and made up in tests.

use std::collections::BTreeMap;

use super::secret::Secret;

/// Work-arounds of the Python services that Clearway replaces; still set in many deployments, and
/// without effect here.
const IGNORED: &[&str] = &["BC_API_OPENAI_NO_THREAD", "BC_API_ASYNCIO_EXECUTOR_WORKERS"];

/// Variables with our prefix that are not settings of a configuration file.
const KNOWN: &[&str] = &["CLEARWAY_SERVER", "CLEARWAY_API_KEY"];

const PREFIX: &str = "CLEARWAY_";
const SERVER_PREFIX: &str = "CLEARWAY_SERVER__";

/// A snapshot of environment variables. `Debug` shows names only.
#[derive(Clone, Default)]
pub struct Env(BTreeMap<String, Secret>);

impl Env {
    /// The variables of this process; those that are not Unicode are left out.
    pub fn process() -> Self {
        let utf8 = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self::new(std::env::vars_os().filter_map(utf8))
    }

    pub fn new<N: Into<String>, V: Into<String>>(vars: impl IntoIterator<Item = (N, V)>) -> Self {
        Self(vars.into_iter().map(|(name, value)| (name.into(), Secret::new(value))).collect())
    }

    /// A variable's value; one that is set to nothing counts as unset.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(Secret::expose).filter(|value| !value.trim().is_empty())
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// `CLEARWAY_SERVER__LIMITS__MAX_BODY_BYTES` by the path it sets: `server.limits.max_body_bytes`.
    pub(super) fn overlay(&self) -> BTreeMap<String, (String, String)> {
        self.names()
            .filter_map(|name| {
                let keys = name.strip_prefix(SERVER_PREFIX)?;
                let path = format!("server.{}", keys.to_ascii_lowercase().replace("__", "."));
                Some((path, (name.to_owned(), self.get(name)?.to_owned())))
            })
            .collect()
    }

    /// Variables with our prefix that nobody reads.
    pub(super) fn unknown(&self) -> impl Iterator<Item = &str> {
        self.names().filter(|name| {
            name.starts_with(PREFIX) && !name.starts_with(SERVER_PREFIX) && !KNOWN.contains(name)
        })
    }

    /// Variables of the systems before this one that are set and do nothing.
    pub fn ignored(&self) -> Vec<&'static str> {
        IGNORED.iter().copied().filter(|name| self.0.contains_key(*name)).collect()
    }
}

impl std::fmt::Debug for Env {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
