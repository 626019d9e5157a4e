//! The project: its configuration, its keys, and what in the environment has no effect.

use std::path::Path;

use clearway::Report;
use clearway::config::{Config, Env, FILE, Listen, Origin, Provider, ProviderKind};

use super::finding::Finding;

pub(crate) fn version() -> Finding {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let found = format!(
        "clearway {} for {} on {}, {cores} {}",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH,
        if cores == 1 { "core" } else { "cores" }
    );
    Finding::ok("version", found, "a report of a problem needs it")
}

const CONFIGURATION: &str = "a server with a broken configuration does not start";

pub(crate) fn configuration(file: &Path, loaded: &Result<Config, Report>) -> Vec<Finding> {
    match loaded {
        Ok(config) => {
            let origin = match &config.origin {
                Origin::File(file) => file.display().to_string(),
                Origin::BuiltIn | Origin::Text => {
                    format!("there is no {FILE} here, so the built-in examples")
                }
            };
            let number = |count: usize, one: &str| match count {
                1 => format!("1 {one}"),
                count => format!("{count} {one}s"),
            };
            let found = format!(
                "{origin}: {}, {}, {}",
                number(config.agents.len(), "agent"),
                number(config.models.len(), "model"),
                number(config.providers.len(), "provider")
            );
            let fine = Finding::ok("configuration", found, CONFIGURATION);
            let odd = config.warnings.iter().map(|warning| {
                let why = "a setting without effect is one that somebody relies on";
                Finding::warn("configuration", warning, why, "correct it, or take it out")
            });
            std::iter::once(fine).chain(odd).collect()
        }
        Err(report) => report
            .problems
            .iter()
            .map(|problem| {
                let check = format!("`clearway check {}` shows the place", file.display());
                let fix = problem.help.clone().unwrap_or(check);
                Finding::fail("configuration", &problem.message, CONFIGURATION, fix)
            })
            .collect(),
    }
}

/// A key that is written down as a variable and missing is an error of the configuration already;
/// here is whether anybody wrote one down.
pub(crate) fn keys(config: &Config) -> Vec<Finding> {
    const WHY: &str = "providers refuse calls without a key";
    let used = |name: &str| config.models.values().any(|model| model.provider == name);
    let providers = config.providers.iter().filter(|(name, _)| used(name));
    providers
        .map(|(name, Provider { kind, .. })| match kind {
            ProviderKind::Sim(_) => {
                Finding::ok("keys", format!("{name}: the simulator needs none"), WHY)
            }
            ProviderKind::Remote(remote) if !remote.keys.is_empty() => {
                Finding::ok("keys", format!("{name}: there is a key"), WHY)
            }
            ProviderKind::Remote(remote) => match host(&remote.base_url) {
                Some(host) if is_near(host) => {
                    Finding::ok("keys", format!("{name}: no key, on this machine"), WHY)
                }
                Some(_) | None => Finding::warn(
                    "keys",
                    format!("{name}: no key"),
                    WHY,
                    format!(
                        "if it wants one, put it into a variable and write api_key = \"${{NAME}}\" \
                         below [providers.{name}]"
                    ),
                ),
            },
        })
        .collect()
}

fn host(url: &str) -> Option<&str> {
    let rest = url.split_once("://")?.1;
    let authority = rest.split(['/', '?']).next()?;
    match authority.strip_prefix('[') {
        Some(address) => address.split(']').next(),
        None => authority.split(':').next(),
    }
}

fn is_near(host: &str) -> bool {
    Listen { host: host.to_owned(), port: 0 }.is_loopback()
}

/// Proxies that other programs would use.
const PROXIES: [&str; 6] =
    ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"];

pub(crate) fn environment(config: &Config, env: &Env) -> Vec<Finding> {
    let mut findings = Vec::new();
    // A broken configuration does not know them.
    let mut ignored = config.ignored_variables.clone();
    if ignored.is_empty() {
        ignored = env.ignored();
    }
    if !ignored.is_empty() {
        findings.push(Finding::ok(
            "environment",
            format!("{}: not needed any more, without effect", ignored.join(", ")),
            "they tuned the threads of the service that Clearway replaces",
        ));
    }
    let proxies: Vec<_> = PROXIES.into_iter().filter(|name| env.get(name).is_some()).collect();
    if !proxies.is_empty() {
        findings.push(Finding::warn(
            "environment",
            format!("{}: without effect", proxies.join(", ")),
            "providers are called directly; where only the proxy leads out, every call fails to \
             connect",
            "allow the way out, or set base_url to a gateway that can be reached",
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(
            "environment",
            "no variable without effect",
            "a setting without effect is one that somebody relies on",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    fn loaded(text: &str, env: &Env) -> Result<Config, Report> {
        Config::parse("clearway.toml", text, env)
    }

    fn provider(rest: &str) -> String {
        format!("[providers.house]\nkind = \"openai\"\n{rest}\n")
    }

    #[test]
    fn keys_are_missed_where_they_may_be_needed_and_never_shown() {
        let env = Env::new([("HOUSE_KEY", "sk-secret")]);
        let levels = |rest: &str| -> Vec<Level> {
            let findings = keys(&loaded(&provider(rest), &env).unwrap());
            assert!(!format!("{findings:?}").contains("sk-secret"));
            findings.iter().map(|finding| finding.level).collect()
        };
        let far = "base_url = \"https://models.example/v1\"";
        assert_eq!(levels(far), [Level::Warn]);
        assert_eq!(levels(&format!("{far}\napi_key = \"${{HOUSE_KEY}}\"")), [Level::Ok]);
        assert_eq!(levels("base_url = \"http://[::1]:9000/v1\""), [Level::Ok]);
        assert_eq!(levels("base_url = \"http://localhost:9000\""), [Level::Ok]);
    }

    #[test]
    fn a_key_that_is_referred_to_and_missing_fails_by_its_name() {
        let text = provider("base_url = \"https://x/v1\"\napi_key = \"${HOUSE_KEY}\"");
        let findings = configuration(Path::new("x.toml"), &loaded(&text, &Env::default()));
        let failures: Vec<_> =
            findings.iter().filter(|finding| finding.level == Level::Fail).collect();
        assert_eq!(failures.len(), 1, "{findings:?}");
        assert!(failures[0].found.contains("HOUSE_KEY"), "{failures:?}");
        assert!(!failures[0].fix.is_empty());
    }

    #[test]
    fn variables_without_effect_are_named_without_their_values() {
        let env = Env::new([
            ("HTTPS_PROXY", "http://user:secret@proxy"),
            ("BC_API_OPENAI_NO_THREAD", "1"),
            ("CLEARWAY_THREADS", "7"),
        ]);
        let config = loaded("", &env).unwrap();
        let found = environment(&config, &env);
        let all = format!("{found:?}");
        assert!(all.contains("HTTPS_PROXY") && all.contains("BC_API_OPENAI_NO_THREAD"), "{all}");
        assert!(!all.contains("secret"), "{all}");
        let odd = configuration(Path::new("x.toml"), &Ok(config));
        assert!(odd.iter().any(|finding| finding.found.contains("CLEARWAY_THREADS")), "{odd:?}");
        assert_eq!(environment(&loaded("", &Env::default()).unwrap(), &Env::default()).len(), 1);
    }
}
