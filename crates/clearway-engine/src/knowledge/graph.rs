//! What a source's documents connect: which leads to which.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use clearway_core::{Code, Failure};
use clearway_knowledge::{Document, Scope, Viewer};
use serde_json::{Value, json};

use super::Knowledge;

/// What of the graph is wanted.
#[derive(Clone, Debug, Default)]
pub struct GraphQuery {
    /// Only what is near this.
    pub entity: Option<String>,
    /// The way from `entity` to this.
    pub to: Option<String>,
    /// Nodes at most; 0 is the most there may be.
    pub limit: usize,
}

const MOST: usize = 500;

impl Knowledge {
    /// Documents and their links, as nodes and edges.
    ///
    /// # Errors
    /// `not_found` for a source or an entity that is not there.
    pub async fn graph(&self, source: &str, query: GraphQuery) -> Result<Value, Failure> {
        let snapshot = self.inner().shelf(source)?.index.load();
        let job = move || {
            let scope = Scope::of(Viewer::Anonymous);
            let documents: Vec<Arc<Document>> = snapshot.documents(&scope).cloned().collect();
            Links::of(documents).answer(&query)
        };
        let answer = self.inner().lanes.run(job).await;
        answer.ok_or_else(|| Failure::new(Code::ShuttingDown, "the server is stopping"))?
    }
}

struct Links {
    documents: Vec<Arc<Document>>,
    edges: BTreeSet<(usize, usize)>,
}

impl Links {
    fn of(documents: Vec<Arc<Document>>) -> Self {
        let mut names: BTreeMap<String, usize> = BTreeMap::new();
        for (at, document) in documents.iter().enumerate() {
            for name in names_of(document) {
                names.entry(name).or_insert(at);
            }
        }
        let mut edges = BTreeSet::new();
        for (from, document) in documents.iter().enumerate() {
            for link in &document.links {
                let folder = document.source.rsplit_once('/').map_or("", |(folder, _)| folder);
                let target = candidates(link, folder).into_iter().find_map(|name| names.get(&name));
                if let Some(&to) = target.filter(|to| **to != from) {
                    edges.insert((from.min(to), from.max(to)));
                }
            }
        }
        Self { documents, edges }
    }

    fn find(&self, name: &str) -> Result<usize, Failure> {
        let wanted = name.trim().to_lowercase();
        let exact = self.documents.iter().position(|document| names_of(document).contains(&wanted));
        let part = || {
            self.documents.iter().position(|document| {
                document.title.to_lowercase().contains(&wanted) && !wanted.is_empty()
            })
        };
        exact.or_else(part).ok_or_else(|| {
            let shown: String = name.chars().take(80).collect();
            Failure::new(Code::NotFound, format!("nothing in the graph is called {shown:?}"))
        })
    }

    fn neighbours(&self, at: usize) -> impl Iterator<Item = usize> {
        let other = move |&(from, to): &(usize, usize)| match (from == at, to == at) {
            (true, _) => Some(to),
            (_, true) => Some(from),
            _ => None,
        };
        self.edges.iter().filter_map(other)
    }

    fn answer(&self, query: &GraphQuery) -> Result<Value, Failure> {
        let limit = if query.limit == 0 { MOST } else { query.limit.min(MOST) };
        let chosen: Vec<usize> = match (&query.entity, &query.to) {
            (Some(from), Some(to)) => self.way(self.find(from)?, self.find(to)?),
            (Some(from), None) => {
                let from = self.find(from)?;
                std::iter::once(from).chain(self.neighbours(from).take(limit)).collect()
            }
            (None, _) => {
                let mut all: Vec<usize> = (0..self.documents.len()).collect();
                all.sort_by_key(|at| std::cmp::Reverse(self.neighbours(*at).count()));
                all.truncate(limit);
                all
            }
        };
        let node = |at: &usize| {
            let document = &self.documents[*at];
            json!({
                "id": &*document.id,
                "label": document.title,
                "path": document.source,
                "kind": "document",
                "degree": self.neighbours(*at).count(),
            })
        };
        let edge = |(from, to): &(usize, usize)| {
            let both = chosen.contains(from) && chosen.contains(to);
            both.then(|| {
                json!({
                    "from": &*self.documents[*from].id,
                    "to": &*self.documents[*to].id,
                    "kind": "link",
                })
            })
        };
        Ok(json!({
            "nodes": chosen.iter().map(node).collect::<Vec<_>>(),
            "edges": self.edges.iter().filter_map(edge).collect::<Vec<_>>(),
            "nodes_in_all": self.documents.len(),
            "edges_in_all": self.edges.len(),
        }))
    }

    /// The shortest way; empty when there is none.
    fn way(&self, from: usize, to: usize) -> Vec<usize> {
        let mut before: BTreeMap<usize, usize> = BTreeMap::from([(from, from)]);
        let mut open = VecDeque::from([from]);
        while let Some(at) = open.pop_front() {
            if at == to {
                let mut way = vec![to];
                let mut last = to;
                while last != from {
                    last = before[&last];
                    way.push(last);
                }
                way.reverse();
                return way;
            }
            for next in self.neighbours(at) {
                before.entry(next).or_insert_with(|| {
                    open.push_back(next);
                    at
                });
            }
        }
        Vec::new()
    }
}

/// What a document may be called, in small letters.
fn names_of(document: &Document) -> [String; 3] {
    let path = document.source.to_lowercase();
    let file = path.rsplit('/').next().unwrap_or(&path);
    let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem).to_owned();
    [path.clone(), document.title.to_lowercase(), stem]
}

/// What a link may mean, the most exact first.
fn candidates(link: &str, folder: &str) -> Vec<String> {
    let link = link.split(['#', '?']).next().unwrap_or(link).trim().to_lowercase();
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let relative = parts.join("/").to_lowercase();
    vec![relative.clone(), format!("{relative}.md"), link.trim_start_matches('/').to_owned(), link]
}

// ## The picture

impl Knowledge {
    /// The same as [`Knowledge::graph`], as an SVG picture.
    ///
    /// # Errors
    /// As [`Knowledge::graph`].
    pub async fn graph_picture(&self, source: &str, query: GraphQuery) -> Result<String, Failure> {
        let limit = if query.limit == 0 { DRAWN } else { query.limit.min(DRAWN) };
        let graph = self.graph(source, GraphQuery { limit, ..query }).await?;
        Ok(draw(&graph))
    }
}

/// More names than this do not fit into a picture.
const DRAWN: usize = 80;

/// Nodes on a spiral, the most connected in the middle.
fn draw(graph: &Value) -> String {
    const STEP: f64 = 62.0;
    let nodes = graph["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let edges = graph["edges"].as_array().map(Vec::as_slice).unwrap_or_default();
    let degree = |node: &Value| node["degree"].as_u64().unwrap_or(0);
    let mut order: Vec<&Value> = nodes.iter().collect();
    order.sort_by_key(|node| std::cmp::Reverse(degree(node)));
    let half = STEP * (order.len() as f64).sqrt() + 120.0;
    let place = |at: usize| {
        // The golden angle spreads them evenly.
        let (distance, angle) = (STEP * (at as f64).sqrt(), at as f64 * 2.399_963);
        (half + distance * angle.cos() * 1.25, half + distance * angle.sin())
    };
    let places: BTreeMap<&str, (f64, f64)> = order
        .iter()
        .enumerate()
        .map(|(at, node)| (node["id"].as_str().unwrap_or_default(), place(at)))
        .collect();
    let size = half * 2.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {size:.0} {size:.0}\" \
         font-family=\"sans-serif\" font-size=\"11\"><rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>"
    );
    for edge in edges {
        let end = |name: &str| edge[name].as_str().and_then(|id| places.get(id));
        if let (Some((x1, y1)), Some((x2, y2))) = (end("from"), end("to")) {
            let width = edge["weight"].as_f64().unwrap_or(1.0).clamp(0.5, 5.0);
            svg.push_str(&format!(
                "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"#9ab\" stroke-width=\"{width:.1}\"/>"
            ));
        }
    }
    for node in &order {
        let id = node["id"].as_str().unwrap_or_default();
        let Some((x, y)) = places.get(id) else { continue };
        let radius = 4.0 + (degree(node) as f64).sqrt() * 2.0;
        let fill = if node["kind"] == "document" { "#2a6f97" } else { "#bc6c25" };
        let label: String = node["label"].as_str().unwrap_or(id).chars().take(32).collect();
        svg.push_str(&format!(
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius:.1}\" fill=\"{fill}\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            y + radius + 11.0,
            escape(&label)
        ));
    }
    svg.push_str("</svg>");
    svg
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            char if char.is_control() => escaped.push(' '),
            char => escaped.push(char),
        }
    }
    escaped
}
