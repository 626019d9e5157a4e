//! `clearway kb index`: reads what changed, with a bar that shows how far it is.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::{Place, block_on, shown, sources, text};
use crate::cli::KbIndexArgs;
use crate::exit::Exit;
use crate::output::{Output, put_progress};

pub(crate) fn run(args: &KbIndexArgs, output: Output) -> Result<Exit> {
    block_on(async {
        let place = Place::open(&args.source).await?;
        let reports = index(&place, args, output).await;
        place.close().await;
        let reports = reports?;
        let failed = reports.iter().any(|report| {
            !report["problem"].is_null() || report["failed"].as_u64().unwrap_or(0) > 0
        });
        if output.json {
            output.print(&json!({"sources": reports}).to_string());
        } else {
            reports.iter().for_each(|report| output.print(&summary(report)));
        }
        // Files that cannot be read are told, and are no reason to stop a script, unless it asks.
        Ok(if failed && args.strict { Exit::Failed } else { Exit::Ok })
    })
}

async fn index(place: &Place, args: &KbIndexArgs, output: Output) -> Result<Vec<Value>> {
    let mut reports = Vec::new();
    match place {
        Place::Here(library) => {
            for source in sources(library, args.source.name.as_ref())? {
                if args.all {
                    library.read_all(&source)?;
                }
                let bar = Bar::new(output);
                let report = library.indexed(&source, |status| bar.show(status)).await?;
                bar.end();
                reports.push(report);
            }
        }
        Place::There(client) => {
            let listed = client.get("/knowledge").await?;
            let names: Vec<String> = listed["sources"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|source| text(source, "source").to_owned())
                .filter(|name| args.source.name.as_ref().is_none_or(|named| named == name))
                .collect();
            for name in names {
                let all = if args.all { "1" } else { "0" };
                client.post(&format!("/knowledge/{name}/refresh?all={all}"), None).await?;
                let bar = Bar::new(output);
                loop {
                    let status = client.get(&format!("/knowledge/{name}")).await?;
                    if status["settled"] == true {
                        bar.end();
                        reports.push(status);
                        break;
                    }
                    bar.show(&status);
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }
    Ok(reports)
}

/// One line that is written over and over; on a terminal only.
struct Bar {
    shown: bool,
}

impl Bar {
    fn new(output: Output) -> Self {
        let shown = !output.json && !output.quiet && std::io::stderr().is_terminal();
        Self { shown }
    }

    fn show(&self, status: &Value) {
        if !self.shown {
            return;
        }
        let (done, total) =
            (number(&status["progress"]["done"]), number(&status["progress"]["total"]));
        let line = if total > 0 && done < total {
            let width = 30;
            let full = (done * width / total) as usize;
            let bar: String = "#".repeat(full) + &"-".repeat(width as usize - full);
            format!("{} [{bar}] {done}/{total}", text(status, "source"))
        } else {
            let waiting = number(&status["embeddings"]["waiting"]);
            let what = match text(status, "phase") {
                "idle" if waiting > 0 => format!("{waiting} vectors to go"),
                "idle" => "building the index".to_owned(),
                phase => phase.to_owned(),
            };
            format!("{} {what}", text(status, "source"))
        };
        put_progress(&format!("\r\x1b[K{line}"));
    }

    fn end(&self) {
        if self.shown {
            put_progress("\r\x1b[K");
        }
    }
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn summary(report: &Value) -> String {
    let progress = &report["progress"];
    let mut lines = format!(
        "{}: {} documents, {} chunks; {} changed, {} removed, {} could not be read ({:.1} s)",
        shown(text(report, "source")),
        number(&report["documents"]),
        number(&report["chunks"]),
        number(&progress["changed"]),
        number(&progress["removed"]),
        number(&report["failed"]),
        report["last_scan_seconds"].as_f64().unwrap_or(0.0),
    );
    if let Some(problem) = report["problem"].as_str() {
        lines += &format!("\n  problem: {problem}");
    }
    for failure in report["failures"].as_array().into_iter().flatten() {
        lines += &format!(
            "\n  {}: {} ({})",
            text(failure, "path"),
            text(failure, "message"),
            text(failure, "kind")
        );
    }
    for note in report["notes"].as_array().into_iter().flatten() {
        for said in note["notes"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            lines += &format!("\n  {}: {said}", text(note, "path"));
        }
    }
    if let Some(error) = report["embeddings"]["error"].as_str() {
        lines += &format!("\n  vectors: {error}");
    }
    lines
}
