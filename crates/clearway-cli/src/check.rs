//! `clearway check`: what is wrong with a configuration, before anything starts.

use std::path::Path;

use anyhow::{Result, bail};
use clearway::config::{Config, Env, FILE, Problem, Report};
use serde_json::{Value, json};

use crate::cli::CheckArgs;
use crate::exit::{Exit, Usage};
use crate::output::Output;

pub(crate) fn run(args: &CheckArgs, output: Output) -> Result<Exit> {
    let file = match &args.file {
        folder if folder.as_os_str() == "." => FILE.into(),
        folder if folder.is_dir() => folder.join(FILE),
        file => file.clone(),
    };
    if !file.exists() {
        bail!(Usage {
            problem: format!("there is no file {}", file.display()),
            help: format!("name the file, or run in a folder that has a {FILE}"),
        });
    }
    match clearway::check(&file, &Env::process()) {
        Ok(config) => {
            let text =
                if output.json { good_json(&config).to_string() } else { good(&config, &file) };
            if output.json || !output.quiet {
                output.print(&text);
            }
            Ok(Exit::Ok)
        }
        Err(report) if output.json => {
            output.print(&bad_json(&report).to_string());
            Ok(Exit::Failed)
        }
        Err(report) => {
            output.error(&report.render(output.colour_of_errors()));
            let count = report.problems.len();
            output.error(&format!(
                "{}: {count} error{}",
                file.display(),
                if count == 1 { "" } else { "s" }
            ));
            Ok(Exit::Failed)
        }
    }
}

fn good(config: &Config, file: &Path) -> String {
    let names =
        |names: Vec<&String>| names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
    let mut text = format!("{} is fine", file.display());
    text += &format!("\n  agents     {}", names(config.agents.keys().collect()));
    text += &format!("\n  models     {}", names(config.models.keys().collect()));
    for (name, model) in config.models.iter().filter(|(_, model)| !model.spread.is_empty()) {
        text += &format!("\n             {name} is shared with {}", model.spread.join(", "));
    }
    text += &format!("\n  providers  {}", names(config.providers.keys().collect()));
    text += &format!("\n  pools      {}", names(config.pools.keys().collect()));
    for warning in &config.warnings {
        text += &format!("\nwarning: {warning}");
    }
    text
}

fn good_json(config: &Config) -> Value {
    json!({
        "ok": true,
        "agents": config.agents.keys().collect::<Vec<_>>(),
        "default_agent": config.default_agent,
        "models": config.models.keys().collect::<Vec<_>>(),
        "spread": config
            .models
            .iter()
            .filter(|(_, model)| !model.spread.is_empty())
            .map(|(name, model)| (name.clone(), json!(model.spread)))
            .collect::<serde_json::Map<_, _>>(),
        "providers": config.providers.keys().collect::<Vec<_>>(),
        "pools": config.pools.keys().collect::<Vec<_>>(),
        "warnings": config.warnings,
    })
}

fn bad_json(report: &Report) -> Value {
    let problem = |problem: &Problem| {
        let place = problem.place.as_ref().map(|place| {
            let before = &place.source.text()[..place.span.start];
            let line_start = before.rfind('\n').map_or(0, |at| at + 1);
            json!({
                "file": place.source.name(),
                "line": before.matches('\n').count() + 1,
                "column": before[line_start..].chars().count() + 1,
                "label": place.label,
            })
        });
        json!({"message": problem.message, "help": problem.help, "place": place})
    };
    json!({"ok": false, "problems": report.problems.iter().map(problem).collect::<Vec<_>>()})
}
