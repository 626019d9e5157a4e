//! `clearway doctor`: what on this machine or in this project keeps a server from running well.
//!
//! Each check looks at one thing and tells what it found, why it matters and what to do. It looks as
//! `clearway serve` would start here, with the same flags.
//!
//! **Invariant:** nothing is changed, and nothing is called unless `--net` names it. No value of an
//! environment variable is printed, since it may be a key.
//!
//! Not here: mistakes in a configuration one by one, underlined (`clearway check`).

use anyhow::{Result, bail};
use clearway::config::{Config, Env};
use serde_json::{Value, json};

use crate::cli::DoctorArgs;
use crate::exit::{Exit, Usage};
use crate::output::Output;
use crate::runs::block_on;
use crate::serve::Settings;

mod cgroup;
mod disk;
mod finding;
mod host;
mod mounts;
mod net;
mod port;
mod project;

use finding::{Finding, Level};

pub(crate) fn run(args: &DoctorArgs, output: Output) -> Result<Exit> {
    if let Some(file) = args.server.config.as_deref().filter(|file| !file.exists()) {
        bail!(Usage {
            problem: format!("there is no file {}", file.display()),
            help: "give another one with --config, or run in a folder that has a clearway.toml"
                .to_owned(),
        });
    }
    let settings = Settings::of_serve(&args.server);
    let env = Env::process();
    let loaded = settings.load();
    let mut findings = vec![project::version()];
    findings.extend(project::configuration(&settings.file(), &loaded));
    // With a broken configuration the machine is judged by the defaults.
    let config = match &loaded {
        Ok(config) => config.clone(),
        Err(_) => settings.over(Config::built_in(&Env::default())?),
    };
    if loaded.is_ok() {
        findings.extend(project::keys(&config));
    }
    findings.extend(project::environment(&config, &env));
    findings.extend(host::all(&config));
    let (disk, holder) = disk::all(&config);
    findings.extend(disk);
    findings.push(port::check(&config, holder));
    if let Some(name) = &args.net {
        findings.push(match &loaded {
            Ok(config) => block_on(net::check(config, name))?,
            Err(_) => net::not_tried(name),
        });
    }
    print(&findings, output);
    let failed = findings.iter().any(|finding| finding.level == Level::Fail);
    Ok(if failed { Exit::Failed } else { Exit::Ok })
}

fn print(findings: &[Finding], output: Output) {
    if output.json {
        output.print(&as_json(findings).to_string());
        return;
    }
    let shown = findings.iter().filter(|finding| !output.quiet || finding.level != Level::Ok);
    let text: String = shown.map(Finding::text).collect();
    if !output.quiet {
        output.print(&format!("{text}\n{}", summary(findings)));
    } else if !text.is_empty() {
        output.print(text.trim_end());
    }
}

fn count(findings: &[Finding], level: Level) -> usize {
    findings.iter().filter(|finding| finding.level == level).count()
}

fn summary(findings: &[Finding]) -> String {
    let number = |count: usize, one: &str, more: &str| match count {
        1 => format!("1 {one}"),
        count => format!("{count} {more}"),
    };
    match (count(findings, Level::Fail), count(findings, Level::Warn)) {
        (0, 0) => "nothing is in the way".to_owned(),
        (0, warnings) => {
            format!("a server can run here; {}", number(warnings, "warning", "warnings"))
        }
        (failures, warnings) => format!(
            "{}, {}",
            number(failures, "thing must be repaired", "things must be repaired"),
            number(warnings, "warning", "warnings")
        ),
    }
}

fn as_json(findings: &[Finding]) -> Value {
    json!({
        "ok": count(findings, Level::Fail) == 0,
        "version": env!("CARGO_PKG_VERSION"),
        "warnings": count(findings, Level::Warn),
        "failures": count(findings, Level::Fail),
        "findings": findings.iter().map(Finding::as_json).collect::<Vec<_>>(),
    })
}
