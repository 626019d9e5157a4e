//! `clearway threads`: what threads hold, what they occupy, what they went through.

use anyhow::{Result, bail};
use clearway::client::Client;
use serde_json::{Value, json};

use crate::cli::{
    ForkArgs, PruneArgs, ThreadHistoryArgs, ThreadsArgs, ThreadsCommand, ThreadsLsArgs,
};
use crate::exit::Exit;
use crate::output::Output;
use crate::runs::{block_on, encode, table, time};

pub(crate) fn run(args: &ThreadsArgs, output: Output) -> Result<Exit> {
    let client = Client::new(&args.client.server)?;
    block_on(async {
        match &args.command {
            ThreadsCommand::Ls(args) => list(&client, args, output).await,
            ThreadsCommand::Show(args) => {
                let thread = client.get(&path(&args.id, "")).await?;
                if output.json {
                    output.print(&thread.to_string());
                } else {
                    output.print(&serde_json::to_string_pretty(&thread["values"])?);
                    let next = names(&thread["next"]);
                    if !next.is_empty() {
                        output.note(&format!("next: {next}"));
                    }
                }
                Ok(Exit::Ok)
            }
            ThreadsCommand::Storage(args) => {
                let thread = client.get(&path(&args.id, "")).await?;
                let storage = &thread["storage"];
                output.print(&if output.json { storage.to_string() } else { occupied(storage) });
                Ok(Exit::Ok)
            }
            ThreadsCommand::History(args) => history(&client, args, output).await,
            ThreadsCommand::Prune(args) => prune(&client, args, output).await,
            ThreadsCommand::Fork(args) => fork(&client, args, output).await,
        }
    })
}

fn path(id: &str, rest: &str) -> String {
    format!("/storage/threads/{}{rest}", encode(id))
}

fn names(list: &Value) -> String {
    let names = list.as_array().map(Vec::as_slice).unwrap_or_default();
    names.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
}

async fn list(client: &Client, args: &ThreadsLsArgs, output: Output) -> Result<Exit> {
    let mut address = format!("/storage/threads?limit={}", args.limit);
    if let Some(door) = &args.door {
        address += &format!("&dialect={}", encode(door));
    }
    let body = client.get(&address).await?;
    if output.json {
        output.print(&body.to_string());
        return Ok(Exit::Ok);
    }
    let threads = body["threads"].as_array().map(Vec::as_slice).unwrap_or_default();
    if threads.is_empty() {
        output.note("no threads");
        return Ok(Exit::Ok);
    }
    let row = |thread: &Value| {
        let text = |key: &str| thread[key].as_str().unwrap_or_default().to_owned();
        let key = match thread["key"]["dialect"].as_str() {
            Some(dialect) => format!("{dialect}: {}", names(&thread["key"]["parts"])),
            None => String::new(),
        };
        [text("thread_id"), thread["runs"].to_string(), time(&text("updated_at")), key]
    };
    let rows: Vec<[String; 4]> = threads.iter().map(row).collect();
    output.print(&table(&["THREAD", "RUNS", "CHANGED", "KEY"], &rows));
    if !body["next"].is_null() {
        output.note(&format!("there are more: --limit {}", args.limit.saturating_mul(5).min(1000)));
    }
    Ok(Exit::Ok)
}

async fn history(client: &Client, args: &ThreadHistoryArgs, output: Output) -> Result<Exit> {
    let rest = format!("/history?limit={}", args.limit);
    let body = client.get(&path(&args.id, &rest)).await?;
    if output.json {
        output.print(&body.to_string());
        return Ok(Exit::Ok);
    }
    let row = |at: &Value| {
        let text = |key: &str| at[key].as_str().unwrap_or_default().to_owned();
        let mark = if at["head"] == true { "head" } else { "" };
        [
            text("checkpoint"),
            at["step"].to_string(),
            text("source"),
            time(&text("created_at")),
            names(&at["next"]),
            mark.to_owned(),
        ]
    };
    let checkpoints = body["checkpoints"].as_array().map(Vec::as_slice).unwrap_or_default();
    let rows: Vec<[String; 6]> = checkpoints.iter().map(row).collect();
    output.print(&table(&["CHECKPOINT", "STEP", "SOURCE", "CREATED", "NEXT", ""], &rows));
    Ok(Exit::Ok)
}

async fn prune(client: &Client, args: &PruneArgs, output: Output) -> Result<Exit> {
    let keep = match (args.keep.as_str(), args.keep.parse::<u32>()) {
        ("ends", _) => json!("ends"),
        (_, Ok(n)) if n > 0 => json!(n),
        _ => bail!("--keep takes `ends` or a number from 1, not `{}`", args.keep),
    };
    let body = client.post(&path(&args.id, "/prune"), Some(&json!({"keep": keep}))).await?;
    if output.json {
        output.print(&body.to_string());
        return Ok(Exit::Ok);
    }
    output.print(&format!(
        "{} checkpoints dropped, {} of values; {} left",
        body["dropped"]["checkpoints"],
        size(&body["dropped"]["bytes"]),
        size(&body["storage"]["total_bytes"])
    ));
    Ok(Exit::Ok)
}

async fn fork(client: &Client, args: &ForkArgs, output: Output) -> Result<Exit> {
    let mut body = json!({"checkpoint": args.checkpoint});
    if let Some(agent) = &args.agent {
        body["agent"] = agent.as_str().into();
    }
    let run = client.post(&path(&args.id, "/fork"), Some(&body)).await?;
    if output.json {
        output.print(&run.to_string());
    } else {
        let id = run["run_id"].as_str().unwrap_or_default();
        output.print(id);
        output.note(&format!("clearway runs watch {id}"));
    }
    Ok(Exit::Ok)
}

/// A table of what takes room.
fn occupied(storage: &Value) -> String {
    let parts = [
        ("checkpoints", "checkpoint_bytes"),
        ("values", "delta_bytes"),
        ("snapshots", "snapshot_bytes"),
        ("large values", "blob_bytes"),
        ("logs", "log_bytes"),
        ("artifacts", "artifact_bytes"),
        ("in all", "total_bytes"),
    ];
    let lines = parts.map(|(name, key)| format!("{name:<13} {:>10}", size(&storage[key])));
    let counts = format!("{} checkpoints of {} runs", storage["checkpoints"], storage["runs"]);
    lines.into_iter().chain([counts]).collect::<Vec<_>>().join("\n")
}

fn size(bytes: &Value) -> String {
    let bytes = bytes.as_f64().unwrap_or(0.0);
    match bytes {
        bytes if bytes < 1e3 => format!("{bytes:.0} B"),
        bytes if bytes < 1e6 => format!("{:.1} kB", bytes / 1e3),
        bytes => format!("{:.1} MB", bytes / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_for_people() {
        let shown = [0, 999, 1500, 2_500_000].map(|bytes| size(&json!(bytes)));
        assert_eq!(shown, ["0 B", "999 B", "1.5 kB", "2.5 MB"]);
    }

    #[test]
    fn what_takes_room() {
        let text = occupied(
            &json!({"delta_bytes": 1500, "total_bytes": 1500, "checkpoints": 3, "runs": 1}),
        );
        assert!(text.contains("values            1.5 kB"), "{text}");
        assert!(text.ends_with("3 checkpoints of 1 runs"), "{text}");
    }
}
