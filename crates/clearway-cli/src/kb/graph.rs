//! `clearway kb graph`: what documents connect, as text, JSON or a picture.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Place, block_on, sources, text};
use crate::cli::KbGraphArgs;
use crate::exit::Exit;
use crate::output::Output;

pub(crate) fn run(args: &KbGraphArgs, output: Output) -> Result<Exit> {
    block_on(async {
        let place = Place::open(&args.source).await?;
        let drawn = graph(&place, args, output).await;
        place.close().await;
        drawn
    })
}

async fn graph(place: &Place, args: &KbGraphArgs, output: Output) -> Result<Exit> {
    let (entity, to, limit) = (args.entity.clone(), args.to.clone(), args.limit);
    let Place::Here(library) = place else {
        let Place::There(client) = place else { return Ok(Exit::Failed) };
        let name = match &args.source.name {
            Some(name) => name.clone(),
            None => first_source(&client.get("/knowledge").await?)?,
        };
        let mut path = format!("/knowledge/{name}/graph?limit={limit}");
        if let Some(entity) = &entity {
            path += &format!("&entity={}", escape(entity));
        }
        if let Some(to) = &to {
            path += &format!("&to={}", escape(to));
        }
        if let Some(file) = &args.svg {
            let picture = client.download(&(path + "&format=svg")).await?;
            return draw(file, &picture, output);
        }
        return Ok(show(&client.get(&path).await?, args, output));
    };
    let sources = sources(library, args.source.name.as_ref())?;
    let source = sources.first().context("there is no source")?;
    library.indexed(source, |_| {}).await?;
    let failure = match &args.svg {
        Some(file) => match library.graph_picture(source, entity, to, limit).await {
            Ok(picture) => return draw(file, picture.as_bytes(), output),
            Err(failure) => failure,
        },
        None => match library.graph(source, entity, to, limit).await {
            Ok(graph) => return Ok(show(&graph, args, output)),
            Err(failure) => failure,
        },
    };
    // As a server's answer would end.
    if failure.code.as_str() == "not_found" {
        output.error(&format!("error: {}", failure.message));
        return Ok(Exit::NotFound);
    }
    Err(failure.into())
}

fn draw(file: &Path, picture: &[u8], output: Output) -> Result<Exit> {
    std::fs::write(file, picture).with_context(|| format!("writing {}", file.display()))?;
    output.note(&format!("drawn: {}", file.display()));
    Ok(Exit::Ok)
}

/// The first configured source of a server.
fn first_source(status: &Value) -> Result<String> {
    let names = status["sources"].as_array().into_iter().flatten();
    let mut names = names.filter_map(|source| source["source"].as_str());
    // A configured name has no colon; what people uploaded does.
    let first = names.find(|name| !name.contains(':'));
    first.map(ToOwned::to_owned).context("the server has no source of knowledge")
}

fn show(graph: &Value, args: &KbGraphArgs, output: Output) -> Exit {
    let nodes = graph["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let exit = if nodes.is_empty() { Exit::NotFound } else { Exit::Ok };
    if output.json {
        output.print(&graph.to_string());
        return exit;
    }
    if nodes.is_empty() {
        output.print(&match (&args.entity, &args.to) {
            (Some(from), Some(to)) => format!("there is no way from {from} to {to}"),
            (_, _) => "there is nothing in the graph".to_owned(),
        });
    }
    let label = |id: &Value| {
        let node = nodes.iter().find(|node| node["id"] == *id);
        node.map_or("?", |node| text(node, "label"))
    };
    for node in nodes {
        output.print(&format!("{} ({})", text(node, "label"), node["degree"]));
    }
    for edge in graph["edges"].as_array().into_iter().flatten() {
        output.print(&format!("  {} -- {}", label(&edge["from"]), label(&edge["to"])));
    }
    exit
}

/// A text in a query.
fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
