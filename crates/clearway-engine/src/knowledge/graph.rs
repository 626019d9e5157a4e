//! What a source's documents connect: links from one to another, and what they name.
//!
//! With `graph = "off"` there are documents and their links only. Otherwise what is named stands
//! beside them: near what is named in the same passages (`cooccurrence`), and in the documents that
//! name it (`mentions`). With `graph = "llm"` a model says, too, what stands in which relation to what
//! (`relation`, with a label). A document and what bears its title are one node.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use clearway_core::{Code, Failure};
use clearway_knowledge::{Document, Graph, Scope, Snapshot, Viewer};
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
    /// Documents, what they name, and what connects these, as nodes and edges.
    ///
    /// # Errors
    /// `not_found` for a source or an entity that is not there.
    pub async fn graph(&self, source: &str, query: GraphQuery) -> Result<Value, Failure> {
        let shelf = self.inner().shelf(source)?;
        let (snapshot, names) =
            (shelf.index.load(), shelf.source.as_ref().is_some_and(|s| s.graph));
        let job = move || answer(&snapshot, names, &query);
        let answer = self.inner().lanes.run(job).await;
        answer.ok_or_else(|| Failure::new(Code::ShuttingDown, "the server is stopping"))?
    }
}

fn answer(snapshot: &Snapshot, names: bool, query: &GraphQuery) -> Result<Value, Failure> {
    let scope = Scope::of(Viewer::Anonymous);
    let documents: Vec<Arc<Document>> = snapshot.documents(&scope).cloned().collect();
    let links = Links::of(documents);
    if names { Whole::of(links, snapshot.graph(&scope)).answer(query) } else { links.answer(query) }
}

// ## Documents and what they name

struct Whole<'a> {
    links: Links,
    graph: Graph<'a>,
    /// Documents by title, in small letters.
    titles: HashMap<String, usize>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Node {
    Document(usize),
    Name(String),
}

/// What leads from one node to another.
#[derive(Clone, Debug)]
struct Lead {
    to: Node,
    kind: &'static str,
    weight: f32,
    /// What a relation is called, and whether it leads from the other end to this one.
    label: Option<(String, bool)>,
}

/// Nodes that a way is looked for among, how many of each one's neighbours, and how long it may be.
const VISITED: usize = 400;
const BREADTH: usize = 24;
const STEPS: usize = 6;

impl<'a> Whole<'a> {
    fn of(links: Links, graph: Graph<'a>) -> Self {
        let mut titles = HashMap::new();
        for (at, document) in links.documents.iter().enumerate() {
            titles.entry(document.title.to_lowercase()).or_insert(at);
        }
        Self { links, graph, titles }
    }

    fn node(&self, name: String) -> Node {
        let document = self.titles.get(&name.to_lowercase());
        document.map_or(Node::Name(name), |at| Node::Document(*at))
    }

    /// A document or a name: the one with just these words, else the first that has them.
    fn find(&self, name: &str) -> Result<Node, Failure> {
        let wanted = name.trim().to_lowercase();
        let named = |document: &Arc<Document>| names_of(document).contains(&wanted);
        if let Some(at) = self.links.documents.iter().position(named) {
            return Ok(Node::Document(at));
        }
        if let Some(entity) = self.graph.entity(name) {
            return Ok(self.node(entity.name));
        }
        match self.links.find(name) {
            Ok(at) => Ok(Node::Document(at)),
            Err(failure) if wanted.is_empty() => Err(failure),
            Err(failure) => {
                let first = self.graph.find(name, 1).into_iter().next();
                first.map(|entity| self.node(entity.name)).ok_or(failure)
            }
        }
    }

    /// What a node leads to, the nearest first within each kind.
    fn leads(&self, node: &Node, limit: usize) -> Vec<Lead> {
        let mut leads = Vec::new();
        let title = match node {
            Node::Document(at) => {
                let document = &self.links.documents[*at];
                leads.extend(self.links.neighbours(*at).map(|to| Lead {
                    to: Node::Document(to),
                    kind: "link",
                    weight: 1.0,
                    label: None,
                }));
                let names = self.graph.named_in(&document.id, limit).into_iter();
                leads.extend(
                    names.map(|entity| self.mention(self.node(entity.name), entity.chunks)),
                );
                &document.title
            }
            Node::Name(name) => {
                let documents = self.graph.documents(name, limit).into_iter();
                leads.extend(documents.filter_map(|(document, chunks)| {
                    let at = self.links.number(&document.id)?;
                    Some(self.mention(Node::Document(at), chunks))
                }));
                name
            }
        };
        let own = title.to_lowercase();
        for relation in self.graph.relations(title, limit) {
            let comes = relation.subject.to_lowercase() != own;
            let other = if comes { relation.subject } else { relation.object };
            leads.push(Lead {
                to: self.node(other),
                kind: "relation",
                weight: relation.chunks as f32 / (relation.chunks as f32 + 1.0),
                label: Some((relation.relation, comes)),
            });
        }
        // What is said goes before what merely stands side by side.
        leads.sort_by_key(|lead| lead.label.is_none());
        let near = self.graph.neighbours(title, limit).unwrap_or_default().into_iter();
        leads.extend(near.map(|near| Lead {
            to: self.node(near.name),
            kind: "cooccurrence",
            weight: near.weight,
            label: None,
        }));
        // One edge between two nodes: of several kinds the first.
        let mut seen = BTreeSet::from([node.clone()]);
        leads.retain(|lead| seen.insert(lead.to.clone()));
        leads
    }

    fn mention(&self, to: Node, chunks: usize) -> Lead {
        Lead { to, kind: "mentions", weight: chunks as f32 / (chunks as f32 + 1.0), label: None }
    }

    fn answer(&self, query: &GraphQuery) -> Result<Value, Failure> {
        let limit = if query.limit == 0 { MOST } else { query.limit.min(MOST) };
        let chosen = match (&query.entity, &query.to) {
            (Some(from), Some(to)) => self.way(self.find(from)?, &self.find(to)?),
            (Some(from), None) => {
                let from = self.find(from)?;
                let mut leads = self.leads(&from, limit);
                leads.sort_by(|a, b| b.weight.total_cmp(&a.weight));
                leads.truncate(limit);
                std::iter::once(from).chain(leads.into_iter().map(|lead| lead.to)).collect()
            }
            (None, _) => self.overview(limit),
        };
        Ok(self.shown(&chosen, query.to.is_some()))
    }

    /// The most connected documents, and what is named most.
    fn overview(&self, limit: usize) -> Vec<Node> {
        let mut documents: Vec<usize> = (0..self.links.documents.len()).collect();
        documents.sort_by_key(|at| std::cmp::Reverse(self.links.degree(*at)));
        let names = self.graph.find("", limit).into_iter().filter(|entity| entity.chunks > 1);
        let names: Vec<Node> = names
            .map(|entity| self.node(entity.name))
            .filter(|node| matches!(node, Node::Name(_)))
            .collect();
        let half = limit.div_ceil(2).max(limit.saturating_sub(names.len()));
        documents.truncate(half);
        let rest = limit - documents.len();
        documents.into_iter().map(Node::Document).chain(names.into_iter().take(rest)).collect()
    }

    /// The shortest way; empty when there is none.
    fn way(&self, from: Node, to: &Node) -> Vec<Node> {
        let mut before: BTreeMap<Node, Option<Node>> = BTreeMap::from([(from.clone(), None)]);
        let mut open = VecDeque::from([(from, 0)]);
        while let Some((at, steps)) = open.pop_front() {
            if at == *to {
                let mut way = vec![at];
                while let Some(Some(last)) = way.last().and_then(|last| before.get(last)) {
                    way.push(last.clone());
                }
                way.reverse();
                return way;
            }
            if steps == STEPS || before.len() > VISITED {
                continue;
            }
            for lead in self.leads(&at, BREADTH) {
                if !before.contains_key(&lead.to) {
                    before.insert(lead.to.clone(), Some(at.clone()));
                    open.push_back((lead.to, steps + 1));
                }
            }
        }
        Vec::new()
    }

    /// `along`: only what leads from each to the next.
    fn shown(&self, chosen: &[Node], along: bool) -> Value {
        let places: BTreeMap<&Node, usize> =
            chosen.iter().enumerate().map(|(at, node)| (node, at)).collect();
        let mut edges: BTreeMap<(usize, usize), Lead> = BTreeMap::new();
        for (from, node) in chosen.iter().enumerate() {
            for lead in self.leads(node, if along { BREADTH } else { MOST }) {
                let Some(&to) = places.get(&lead.to) else { continue };
                if !along || from.abs_diff(to) == 1 {
                    // Told from the end with the smaller number.
                    let label = lead.label.map(|(label, comes)| (label, comes != (from > to)));
                    edges.entry((from.min(to), from.max(to))).or_insert(Lead { label, ..lead });
                }
            }
        }
        let mut degrees = vec![0_usize; chosen.len()];
        for (from, to) in edges.keys() {
            degrees[*from] += 1;
            degrees[*to] += 1;
        }
        let id = |node: &Node| match node {
            Node::Document(at) => self.links.documents[*at].id.to_string(),
            Node::Name(name) => format!("name:{name}"),
        };
        let node = |(node, degree): (&Node, &usize)| match node {
            Node::Document(at) => {
                let document = &self.links.documents[*at];
                json!({
                    "id": id(node),
                    "label": document.title,
                    "path": document.source,
                    "kind": "document",
                    "degree": degree,
                })
            }
            Node::Name(name) => json!({
                "id": id(node),
                "label": name,
                "kind": "entity",
                "chunks": self.graph.entity(name).map_or(0, |entity| entity.chunks),
                "degree": degree,
            }),
        };
        let edge = |((from, to), lead): (&(usize, usize), &Lead)| {
            let (mut from, mut to) = (id(&chosen[*from]), id(&chosen[*to]));
            if lead.label.as_ref().is_some_and(|(_, comes)| *comes) {
                std::mem::swap(&mut from, &mut to);
            }
            let mut edge = json!({
                "from": from,
                "to": to,
                "kind": lead.kind,
                "weight": (f64::from(lead.weight) * 1e3).round() / 1e3,
            });
            if let Some((label, _)) = &lead.label {
                edge["label"] = label.as_str().into();
            }
            edge
        };
        json!({
            "nodes": chosen.iter().zip(&degrees).map(node).collect::<Vec<_>>(),
            "edges": edges.iter().map(edge).collect::<Vec<_>>(),
            "nodes_in_all": self.links.documents.len() + self.graph.len(),
            "links_in_all": self.links.edges.len(),
        })
    }
}

// ## Documents alone

struct Links {
    /// By id.
    documents: Vec<Arc<Document>>,
    edges: BTreeSet<(usize, usize)>,
    /// By document.
    near: Vec<Vec<usize>>,
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
        let mut near = vec![Vec::new(); documents.len()];
        for (from, to) in &edges {
            near[*from].push(*to);
            near[*to].push(*from);
        }
        Self { documents, edges, near }
    }

    fn number(&self, id: &str) -> Option<usize> {
        self.documents.binary_search_by(|document| (*document.id).cmp(id)).ok()
    }

    fn degree(&self, at: usize) -> usize {
        self.near[at].len()
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
        self.near[at].iter().copied()
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
                all.sort_by_key(|at| std::cmp::Reverse(self.degree(*at)));
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
                "degree": self.degree(*at),
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
            if let Some(label) = edge["label"].as_str() {
                let label: String = label.chars().take(24).collect();
                svg.push_str(&format!(
                    "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"9\" fill=\"#678\">{}</text>",
                    f64::midpoint(*x1, *x2),
                    f64::midpoint(*y1, *y2) - 2.0,
                    escape(&label)
                ));
            }
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
