//! `clearway run`, `init`, `graph` and `attention`: working with workflows.

use anyhow::{Context as _, Result, bail};
use clearway::client::Client;
use clearway::config::{Config, Env};
use clearway::workflow::draw;
use serde_json::{Map, Value, json};

use crate::cli::{AttentionArgs, GraphArgs, InitArgs, WorkflowArgs};
use crate::exit::Exit;
use crate::output::Output;
use crate::runs::watch::{self, Show};
use crate::runs::{block_on, encode, loose, path};

pub(crate) fn run(args: &WorkflowArgs, output: Output) -> Result<Exit> {
    let mut input = Map::new();
    for field in &args.input {
        let Some((name, value)) = field.split_once('=') else {
            bail!("`{field}` is not NAME=VALUE");
        };
        input.insert(name.to_owned(), loose(value));
    }
    let mut body = json!({"input": input});
    if let Some(priority) = &args.priority {
        body["priority"] = loose(priority);
    }
    let client = args.client.client()?;
    block_on(async {
        let address = format!("/workflows/{}/runs", encode(&args.workflow));
        let run = client.post(&address, Some(&body)).await?;
        let id = run["run_id"].as_str().context("the server did not name the run")?.to_owned();
        if args.detach {
            output.print(&if output.json { run.to_string() } else { id });
            return Ok(Exit::Ok);
        }
        output.note(&format!("run {id}"));
        watch::watch(&client, &id, None, Show::steps_of(&run), output).await?;
        finish(&client, &id, output).await
    })
}

/// Lists the files that a run made, and says how it ended.
pub(crate) async fn finish(client: &Client, id: &str, output: Output) -> Result<Exit> {
    let run = client.get(&path(id, "")).await?;
    let files = client.get(&path(id, "/artifacts")).await?;
    if output.json {
        output.print(&json!({"run": run, "artifacts": files["artifacts"]}).to_string());
    } else {
        for file in files["artifacts"].as_array().into_iter().flatten() {
            output.print(&format!(
                "{}  {}  {} bytes",
                file["name"].as_str().unwrap_or_default(),
                file["media_type"].as_str().unwrap_or_default(),
                file["size_bytes"],
            ));
        }
        if let Some(error) = run["error"]["message"].as_str() {
            output.note(&format!("failed: {error}"));
        } else if run["next"].as_array().is_some_and(|next| !next.is_empty()) {
            output.note(&format!("it waits for an answer: clearway runs answer {id} …"));
        }
    }
    Ok(match run["status"].as_str() {
        Some("success") => Exit::Ok,
        Some("timeout") => Exit::TimedOut,
        Some("cancelled") => Exit::Cancelled,
        _ => Exit::Failed,
    })
}

pub(crate) fn init(args: &InitArgs, output: Output) -> Result<Exit> {
    let folder = &args.folder;
    let written = clearway::builtin::write(folder)
        .with_context(|| format!("cannot write into {}", folder.display()))?;
    if output.json {
        let files: Vec<Value> =
            written.iter().map(|(name, new)| json!({"file": name, "written": new})).collect();
        output.print(&Value::Array(files).to_string());
        return Ok(Exit::Ok);
    }
    for (name, new) in &written {
        output.note(&format!("{} {name}", if *new { "wrote" } else { "kept " }));
    }
    output.print(&format!("cd {} && clearway dev", folder.display()));
    Ok(Exit::Ok)
}

pub(crate) fn graph(args: &GraphArgs, output: Output) -> Result<Exit> {
    let env = Env::process();
    let config = match &args.config {
        Some(path) if path.is_dir() => Config::load_folder(path, &env),
        Some(path) => Config::load(path, &env),
        None => Config::load_folder(std::path::Path::new("."), &env),
    };
    let config = match config {
        Ok(config) => config,
        Err(report) => {
            output.error(&report.render(output.colour_of_errors()));
            return Ok(Exit::Failed);
        }
    };
    let Some(workflow) = config.workflows.get(&args.workflow) else {
        let known: Vec<&str> = config.workflows.keys().map(String::as_str).collect();
        output.note(&format!(
            "there is no workflow `{}`; there are: {}",
            args.workflow,
            known.join(", ")
        ));
        return Ok(Exit::NotFound);
    };
    let drawing = match (args.mermaid, args.svg) {
        (true, _) => draw::mermaid(workflow),
        (false, true) => draw::svg(workflow),
        (false, false) => draw::terminal(workflow),
    };
    output.print(drawing.trim_end());
    Ok(Exit::Ok)
}

pub(crate) fn attention(args: &AttentionArgs, output: Output) -> Result<Exit> {
    let client = args.client.client()?;
    block_on(async {
        let body = client.get("/attention").await?;
        if output.json {
            output.print(&body.to_string());
            return Ok(Exit::Ok);
        }
        let items = body["attention"].as_array().map(Vec::as_slice).unwrap_or_default();
        let alerts = body["alerts"].as_array().map(Vec::as_slice).unwrap_or_default();
        for alert in alerts {
            let text = |key: &str| alert[key].as_str().unwrap_or_default();
            output.print(&format!(
                "alert {} since {}: {}",
                text("alert"),
                text("raised_at"),
                text("detail")
            ));
        }
        if items.is_empty() && alerts.is_empty() {
            output.note("nothing needs anybody");
        }
        for item in items {
            let text = |key: &str| item[key].as_str().unwrap_or_default();
            output.print(&format!(
                "{} ({}) waits for {}: {}\n    {}",
                text("run_id"),
                text("agent"),
                text("who"),
                text("detail"),
                text("command")
            ));
        }
        if body["more"] == true {
            output
                .note("there is more than could be looked at: settle some of these and ask again");
        }
        Ok(Exit::Ok)
    })
}
