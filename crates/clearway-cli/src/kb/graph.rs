//! `clearway kb graph`: what documents connect, as text, JSON or a picture.

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
        anyhow::ensure!(
            args.svg.is_none(),
            "a server has the data directory: ask it for /knowledge/NAME/graph?format=svg"
        );
        let name = args.source.name.clone().context("name the source with --source")?;
        let mut path = format!("/knowledge/{name}/graph?limit={limit}");
        if let Some(entity) = &entity {
            path += &format!("&entity={}", escape(entity));
        }
        if let Some(to) = &to {
            path += &format!("&to={}", escape(to));
        }
        return Ok(show(&client.get(&path).await?, output));
    };
    let sources = sources(library, args.source.name.as_ref())?;
    let source = sources.first().context("there is no source")?;
    library.indexed(source, |_| {}).await?;
    if let Some(file) = &args.svg {
        let picture = library.graph_picture(source, entity, to, limit).await?;
        std::fs::write(file, picture).with_context(|| format!("writing {}", file.display()))?;
        output.note(&format!("drawn: {}", file.display()));
        return Ok(Exit::Ok);
    }
    Ok(show(&library.graph(source, entity, to, limit).await?, output))
}

fn show(graph: &Value, output: Output) -> Exit {
    if output.json {
        output.print(&graph.to_string());
        return Exit::Ok;
    }
    let nodes = graph["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
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
    if nodes.is_empty() { Exit::NotFound } else { Exit::Ok }
}

/// A text in a query.
fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
