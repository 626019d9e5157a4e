//! What a graph looks like to people and programs: its nodes and edges, and the shapes of its input
//! and state.

use std::collections::BTreeSet;
use std::sync::Arc;

use clearway_core::channel::Reducer;
use clearway_core::plan::{END, MESSAGES};
use serde_json::{Map, Value, json};

use super::graph::Graph;

/// Where every graph begins.
const START: &str = "__start__";

/// `{"nodes": [{id, type, data}], "edges": [{source, target, conditional?}]}`
pub(super) fn graph(graph: &Graph) -> Value {
    let names = graph.nodes();
    let node = |id: &str| json!({"id": id, "type": "runnable", "data": {"name": id}});
    let mut nodes = vec![node(START)];
    nodes.extend(names.iter().map(|name| node(name)));
    nodes.push(node(END));
    let edges: Vec<Value> = edges(graph, &names)
        .into_iter()
        .map(|(source, target, conditional)| {
            let mut edge = json!({"source": &*source, "target": &*target});
            if conditional {
                edge["conditional"] = true.into();
            }
            edge
        })
        .collect();
    json!({"nodes": nodes, "edges": edges})
}

fn edges(graph: &Graph, names: &[Arc<str>]) -> BTreeSet<(Arc<str>, Arc<str>, bool)> {
    let all = graph.agent.iter().flat_map(|agent| agent.plan.edges());
    let mut edges: BTreeSet<_> = all
        .filter(|(from, to, _)| !graph.is_fold(from) && !graph.is_fold(to))
        // What a node may do on its own account is no second arrow.
        .collect();
    for name in names {
        if !edges.iter().any(|(from, ..)| from == name) {
            edges.insert((name.clone(), END.into(), false));
        }
    }
    edges
}

/// The JSON Schemas of a graph's input, output and state.
pub(super) fn schemas(graph: &Graph) -> Value {
    let state = object(&graph.name, shown(graph));
    let input = match graph.agent.as_ref().and_then(|agent| agent.input_schema.clone()) {
        None => state.clone(),
        Some(mut own) => {
            // What is written to channels by name is input, too.
            let mut properties = shown(graph);
            if let Some(Value::Object(declared)) = own.get_mut("properties").map(Value::take) {
                properties.extend(declared);
            }
            own["properties"] = properties.into();
            own
        }
    };
    let settings = json!({"type": "object", "title": "Context", "properties": {}});
    json!({
        "graph_id": graph.name,
        "input_schema": input,
        "output_schema": state,
        "state_schema": state,
        "config_schema": settings,
        "context_schema": settings,
    })
}

fn object(title: &str, properties: Map<String, Value>) -> Value {
    json!({"type": "object", "title": title, "properties": properties})
}

/// The channels that a thread's values show.
fn shown(graph: &Graph) -> Map<String, Value> {
    let channels = graph.agent.iter().flat_map(|agent| agent.plan.channels());
    channels
        .filter(|(channel, _)| graph.is_shown(channel))
        .map(|(channel, reducer)| ((**channel).to_owned(), channel_schema(channel, *reducer)))
        .collect()
}

fn channel_schema(channel: &str, reducer: Reducer) -> Value {
    if channel == MESSAGES {
        return json!({"type": "array", "title": "Messages", "items": {
            "type": "object",
            "required": ["content"],
            "properties": {
                "id": {"type": ["string", "null"]},
                "type": {"type": "string", "enum": ["human", "ai", "system", "tool"]},
                "content": {"anyOf": [{"type": "string"}, {"type": "array"}]},
                "name": {"type": ["string", "null"]},
            },
        }});
    }
    let title = channel.replace('_', " ");
    match reducer {
        Reducer::Last => json!({"title": title}),
        Reducer::Append => json!({"title": title, "type": "array"}),
        Reducer::MergeById => {
            let one = json!({"type": "object", "properties": {"id": {"type": "string"}}});
            json!({"title": title, "type": "array", "items": one})
        }
        Reducer::Merge => json!({"title": title, "type": "object"}),
        Reducer::Set => json!({"title": title, "type": "array", "uniqueItems": true}),
    }
}
