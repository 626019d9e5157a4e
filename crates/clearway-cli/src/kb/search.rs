//! `clearway kb search`: what is found, with the scores by source and why.

use anyhow::Result;
use clearway::knowledge::Limits;
use serde_json::{Value, json};

use super::{Place, block_on, sources, text};
use crate::cli::KbSearchArgs;
use crate::exit::Exit;
use crate::output::Output;

pub(crate) fn run(args: &KbSearchArgs, output: Output) -> Result<Exit> {
    block_on(async {
        let place = Place::open(&args.source).await?;
        let found = search(&place, args).await;
        place.close().await;
        let found = found?;
        if output.json {
            output.print(&found.to_string());
        } else {
            output.print(&shown(&found));
        }
        let is_empty = found["chunks"].as_array().is_none_or(Vec::is_empty);
        Ok(if is_empty { Exit::NotFound } else { Exit::Ok })
    })
}

async fn search(place: &Place, args: &KbSearchArgs) -> Result<Value> {
    match place {
        Place::Here(library) => {
            let sources = sources(library, args.source.name.as_ref())?;
            for source in &sources {
                library.indexed(source, |_| {}).await?;
            }
            let limits = Limits {
                similarity_threshold: args.threshold,
                max_chunks: args.max_chunks,
                token_budget: args.token_budget,
            };
            Ok(library.search(&args.query, &sources, limits).await?)
        }
        Place::There(client) => {
            let mut body = json!({
                "query": args.query,
                "max_chunks": args.max_chunks,
                "token_budget": args.token_budget,
                // Nothing is below the smallest threshold there is.
                "similarity_threshold": args.threshold.max(1e-6),
            });
            if let Some(name) = &args.source.name {
                body["source"] = name.clone().into();
            }
            Ok(client.post("/knowledge/search", Some(&body)).await?)
        }
    }
}

fn shown(found: &Value) -> String {
    let mut lines = Vec::new();
    for (at, chunk) in found["chunks"].as_array().into_iter().flatten().enumerate() {
        let section = text(chunk, "section_path");
        let section = if section.is_empty() { String::new() } else { format!(" > {section}") };
        lines.push(format!("{}. {}{section}", at + 1, text(chunk, "title")));
        lines.push(format!("   {}", place(chunk)));
        lines.push(format!("   {}", scores(chunk)));
        let why = why(chunk);
        if !why.is_empty() {
            lines.push(format!("   because of {why}"));
        }
        let content: String =
            text(chunk, "content").split_whitespace().collect::<Vec<_>>().join(" ");
        let short: String = content.chars().take(240).collect();
        let more = if short.len() < content.len() { "…" } else { "" };
        lines.push(format!("   {short}{more}"));
        lines.push(String::new());
    }
    for failure in found["degraded"].as_array().into_iter().flatten() {
        lines.push(format!("without {}: {}", text(failure, "stage"), text(failure, "message")));
    }
    lines.push(text(&found["explanation"], "text").to_owned());
    lines.join("\n")
}

fn place(chunk: &Value) -> String {
    let span = &chunk["span"];
    let page =
        chunk["page_start"].as_u64().map(|page| format!(", page {page}")).unwrap_or_default();
    format!("{}{page}, characters {} to {}", text(chunk, "path"), span["start"], span["end"])
}

fn scores(chunk: &Value) -> String {
    let mut parts = vec![format!("similarity {:.2}", chunk["similarity"].as_f64().unwrap_or(0.0))];
    for name in ["words", "latent", "meaning", "embedding", "graph", "rerank"] {
        if let Some(score) = chunk["scores"][name].as_f64() {
            parts.push(format!("{name} {score:.2}"));
        }
    }
    parts.join("  ")
}

fn why(chunk: &Value) -> String {
    let list = |name: &str| {
        let words = chunk["why"][name].as_array().into_iter().flatten();
        words.filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
    };
    let named = [
        ("the words", list("words")),
        ("side by side", list("phrases")),
        ("words like", list("parts")),
        ("words that mean", list("meanings")),
        ("the entities", list("entities")),
    ];
    let mut reasons: Vec<String> = named
        .iter()
        .filter(|(_, words)| !words.is_empty())
        .map(|(what, words)| format!("{what} {words}"))
        .collect();
    if chunk["why"]["title"] == true {
        reasons.push("what its title says".to_owned());
    }
    match reasons.pop() {
        Some(last) if !reasons.is_empty() => format!("{} and {last}", reasons.join(", ")),
        last => last.unwrap_or_default(),
    }
}
