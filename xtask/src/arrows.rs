//! Who may depend on whom: the map of the workspace, held against its `Cargo.toml` files.
//!
//! The edges between our crates are all written down here; an edge that is not is an error, and so
//! is a crate that is not. Beyond our own crates, some libraries belong to one owner, so that each
//! foreign format is known in one place.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use toml::{Table, Value};

use crate::report;

/// Each crate, and the ones of ours that it may use.
const EDGES: &[(&str, &[&str])] = &[
    ("clearway-core", &[]),
    ("clearway-store", &["clearway-core"]),
    ("clearway-upstream", &["clearway-core"]),
    ("clearway-knowledge", &["clearway-core"]),
    ("clearway-ingest", &["clearway-knowledge"]),
    (
        "clearway-engine",
        &[
            "clearway-core",
            "clearway-store",
            "clearway-upstream",
            "clearway-knowledge",
            "clearway-ingest",
        ],
    ),
    ("clearway-server", &["clearway-core", "clearway-engine"]),
    (
        "clearway",
        &[
            "clearway-core",
            "clearway-store",
            "clearway-upstream",
            "clearway-knowledge",
            "clearway-engine",
            "clearway-macros",
            "clearway-server",
        ],
    ),
    ("clearway-cli", &["clearway", "clearway-ingest", "clearway-sim"]),
    ("clearway-macros", &[]),
    ("clearway-sim", &[]),
    // Its parts that look from outside know none of ours; the crash sweep drives the engine.
    (
        "clearway-testkit",
        &["clearway-core", "clearway-store", "clearway-upstream", "clearway-engine"],
    ),
    // Measures store, retrieval and provider layer in its own process, and the server from outside.
    (
        "clearway-bench",
        &["clearway-core", "clearway-store", "clearway-knowledge", "clearway-upstream"],
    ),
    ("xtask", &[]),
];

/// Ours that tests of any crate but the core may use: they stand for the outside.
const FOR_TESTS: &[&str] = &["clearway-testkit", "clearway-sim"];

/// Further edges that only tests have: the server's run over a store in memory.
const TEST_EDGES: &[(&str, &str)] = &[("clearway-server", "clearway-store")];

/// Libraries with owners: nobody else may name them.
const OWNED: &[(&str, &[&str])] = &[
    ("axum", &["clearway-server"]),
    ("tokio-tungstenite", &["clearway-server"]),
    ("rusqlite", &["clearway-store", "clearway-bench"]),
    ("rustls", &["clearway-upstream"]),
    ("tokio-rustls", &["clearway-upstream"]),
    ("webpki-roots", &["clearway-upstream"]),
    ("hickory-resolver", &["clearway-upstream"]),
    ("opentelemetry", &["clearway"]),
    ("opentelemetry_sdk", &["clearway"]),
    ("tracing-opentelemetry", &["clearway"]),
    ("clap", &["clearway-cli", "clearway-bench"]),
    // Library errors are enums; only programs and tests may forget what went wrong.
    ("anyhow", &["clearway-cli", "clearway-testkit", "clearway-bench", "xtask"]),
];

/// A library's feature with owners: the client half of hyper dials out, to providers, and from the
/// façade to servers of our own.
const OWNED_FEATURES: &[(&str, &str, &[&str])] =
    &[("hyper", "client", &["clearway-upstream", "clearway"])];

/// All that the core may use: no runtime, no IO, no clock, no chance.
const CORE_MAY_USE: &[&str] = &["bytes", "serde", "serde_json", "thiserror", "uuid"];

/// # Errors
/// A file cannot be read, or an edge is wrong.
pub(crate) fn check(root: &Path) -> Result<()> {
    report("arrows", &problems(root)?)
}

fn problems(root: &Path) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    let mut manifests: Vec<_> = vec![root.join("bench"), root.join("xtask")];
    for entry in fs::read_dir(root.join("crates")).context("reading crates/")? {
        manifests.push(entry?.path());
    }
    manifests.sort();
    for folder in manifests {
        let path = folder.join("Cargo.toml");
        if !path.exists() {
            continue;
        }
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let manifest: Table = text.parse().with_context(|| path.display().to_string())?;
        problems.extend(Manifest::new(&manifest).problems());
    }
    Ok(problems)
}

/// One crate's dependencies.
struct Manifest<'a> {
    name: &'a str,
    inherits_lints: bool,
    /// With what the code may use, and with what its tests may use besides.
    normal: BTreeMap<&'a str, &'a Value>,
    dev: BTreeMap<&'a str, &'a Value>,
}

impl<'a> Manifest<'a> {
    fn new(manifest: &'a Table) -> Self {
        let name = manifest.get("package").and_then(|package| package.get("name"));
        let mut tables = vec![manifest];
        if let Some(Value::Table(targets)) = manifest.get("target") {
            tables.extend(targets.values().filter_map(Value::as_table));
        }
        let all = |keys: &[&str]| {
            let tables =
                tables.iter().flat_map(|table| keys.iter().filter_map(|key| table.get(*key)));
            let entries = tables.filter_map(Value::as_table).flatten();
            entries.map(|(alias, value)| (renamed(alias, value), value)).collect()
        };
        Self {
            name: name.and_then(Value::as_str).unwrap_or_default(),
            inherits_lints: manifest
                .get("lints")
                .and_then(|lints| lints.get("workspace"))
                .and_then(Value::as_bool)
                .unwrap_or(false),
            normal: all(&["dependencies", "build-dependencies"]),
            dev: all(&["dev-dependencies"]),
        }
    }

    fn problems(&self) -> Vec<String> {
        let name = self.name;
        let mut problems = Vec::new();
        let Some((_, may_use)) = EDGES.iter().find(|(known, _)| *known == name) else {
            return vec![format!("{name}: a new crate needs its place among the arrows")];
        };
        if !self.inherits_lints {
            problems.push(format!("{name}: `[lints] workspace = true` is missing"));
        }
        let is_ours = |dependency: &str| EDGES.iter().any(|(ours, _)| *ours == dependency);
        for dependency in self.normal.keys().copied() {
            if is_ours(dependency) && !may_use.contains(&dependency) {
                problems.push(format!("{name} must not use {dependency}"));
            }
            if name == "clearway-core"
                && !is_ours(dependency)
                && !CORE_MAY_USE.contains(&dependency)
            {
                problems.push(format!("{name} is pure and must not use {dependency}"));
            }
        }
        for dependency in self.dev.keys().copied().filter(|dependency| is_ours(dependency)) {
            let for_tests = name != "clearway-core" && FOR_TESTS.contains(&dependency)
                || TEST_EDGES.contains(&(name, dependency));
            if !for_tests && !may_use.contains(&dependency) {
                problems.push(format!("tests of {name} must not use {dependency}"));
            }
        }
        for (library, owners) in OWNED {
            if self.normal.contains_key(library) && !owners.contains(&name) {
                problems.push(format!(
                    "{name} must not use {library}: it belongs to {}",
                    owners.join(", ")
                ));
            }
        }
        for (library, feature, owners) in OWNED_FEATURES {
            let used = self.normal.get(library).is_some_and(|value| has_feature(value, feature));
            if used && !owners.contains(&name) {
                problems.push(format!(
                    "{name} must not use {library}/{feature}: it belongs to {}",
                    owners.join(", ")
                ));
            }
        }
        problems
    }
}

/// A dependency's real name.
fn renamed<'a>(alias: &'a str, value: &'a Value) -> &'a str {
    value.get("package").and_then(Value::as_str).unwrap_or(alias)
}

fn has_feature(value: &Value, feature: &str) -> bool {
    let features = value.get("features").and_then(Value::as_array);
    features.is_some_and(|features| features.iter().any(|known| known.as_str() == Some(feature)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_keeps_to_its_map() {
        assert_eq!(problems(&crate::root().unwrap()).unwrap(), [""; 0]);
    }

    #[test]
    fn wrong_arrows_are_named() {
        let found = |text: &str| {
            let manifest: Table = text.parse().unwrap();
            Manifest::new(&manifest).problems()
        };
        let head =
            |name: &str| format!("[lints]\nworkspace = true\n[package]\nname = \"{name}\"\n");
        let with = |name: &str, rest: &str| found(&(head(name) + rest));
        assert_eq!(
            with("clearway-server", "[dependencies]\nclearway-store.workspace = true"),
            ["clearway-server must not use clearway-store"]
        );
        assert_eq!(
            with("clearway-core", "[dependencies]\ntokio = \"1\""),
            ["clearway-core is pure and must not use tokio"]
        );
        assert_eq!(
            with("clearway-core", "[dev-dependencies]\nclearway-testkit = \"1\""),
            ["tests of clearway-core must not use clearway-testkit"]
        );
        assert_eq!(
            with("clearway-cli", "[dependencies]\nclearway-testkit.workspace = true"),
            ["clearway-cli must not use clearway-testkit"]
        );
        assert_eq!(
            with("clearway-cli", "[dev-dependencies]\nclearway-testkit.workspace = true"),
            [""; 0]
        );
        let alias =
            "[target.'cfg(unix)'.dependencies]\nweb = { package = \"axum\", version = \"1\" }";
        assert_eq!(
            with("clearway-engine", alias),
            ["clearway-engine must not use axum: it belongs to clearway-server"]
        );
        let client = "[dependencies]\nhyper = { workspace = true, features = [\"client\"] }";
        assert!(with("clearway-server", client)[0].contains("hyper/client"));
        assert_eq!(with("clearway-upstream", client), [""; 0]);
        assert!(found("[package]\nname = \"new\"")[0].contains("its place among the arrows"));
        assert!(found("[package]\nname = \"xtask\"")[0].contains("lints"));
    }
}
