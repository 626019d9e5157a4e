//! A part of the graph to look at: nodes, edges, and a drawing that is the same every time.

use std::fmt::Write as _;

/// Nodes and edges; an edge names its nodes by their place.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Picture {
    pub nodes: Vec<Node>,
    pub edges: Vec<Edge>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Node {
    pub name: String,
    /// Chunks in scope that name it.
    pub chunks: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Edge {
    pub from: usize,
    pub to: usize,
    /// 0 to 1.
    pub weight: f32,
}

const WIDTH: f32 = 960.0;
const HEIGHT: f32 = 640.0;
const MARGIN: f32 = 60.0;
const ROUNDS: usize = 160;
/// More cannot be told apart in a drawing.
const MAX_DRAWN: usize = 80;

impl Picture {
    /// A drawing; of a large graph its first nodes.
    pub fn svg(&self) -> String {
        let places = self.layout();
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n"
        );
        for edge in self.drawn_edges() {
            let ((x1, y1), (x2, y2)) = (places[edge.from], places[edge.to]);
            let (width, opacity) = (0.5 + 2.5 * edge.weight, 0.25 + 0.5 * edge.weight);
            let _ = writeln!(
                svg,
                "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"#64748b\" stroke-width=\"{width:.2}\" stroke-opacity=\"{opacity:.2}\"/>"
            );
        }
        for (node, (x, y)) in self.nodes.iter().zip(&places) {
            #[expect(clippy::cast_precision_loss, reason = "a count of chunks, for a radius")]
            let radius = 4.0 + (node.chunks as f32).sqrt().min(10.0);
            let name = escaped(&node.name);
            let _ = writeln!(
                svg,
                "<g><title>{name}: {} chunks</title><circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius:.1}\" fill=\"#0f766e\"/><text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{name}</text></g>",
                node.chunks,
                y - radius - 3.0
            );
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn drawn_edges(&self) -> impl Iterator<Item = &Edge> {
        let drawn = self.nodes.len().min(MAX_DRAWN);
        self.edges.iter().filter(move |edge| edge.from < drawn && edge.to < drawn)
    }

    /// Nodes push each other away, edges pull theirs together, from a spiral on.
    #[expect(clippy::cast_precision_loss, reason = "a number of nodes")]
    fn layout(&self) -> Vec<(f32, f32)> {
        let count = self.nodes.len().min(MAX_DRAWN);
        let (centre_x, centre_y) = (WIDTH / 2.0, HEIGHT / 2.0);
        let mut places: Vec<(f32, f32)> = (0..count)
            .map(|at| {
                let (angle, radius) = (at as f32 * 2.399_963, 30.0 * (at as f32).sqrt());
                (centre_x + radius * angle.cos(), centre_y + radius * angle.sin())
            })
            .collect();
        let ideal = (WIDTH * HEIGHT / count.max(1) as f32).sqrt() * 0.6;
        for round in 0..ROUNDS {
            let mut moves = vec![(0.0_f32, 0.0_f32); count];
            for a in 0..count {
                for b in 0..a {
                    let (dx, dy) = (places[a].0 - places[b].0, places[a].1 - places[b].1);
                    let far = dx.hypot(dy).max(1.0);
                    let push = ideal * ideal / far / far;
                    moves[a].0 += dx * push;
                    moves[a].1 += dy * push;
                    moves[b].0 -= dx * push;
                    moves[b].1 -= dy * push;
                }
            }
            for edge in self.drawn_edges() {
                let (a, b) = (edge.from, edge.to);
                let (dx, dy) = (places[a].0 - places[b].0, places[a].1 - places[b].1);
                let pull = dx.hypot(dy) / ideal * (0.3 + edge.weight);
                moves[a].0 -= dx * pull;
                moves[a].1 -= dy * pull;
                moves[b].0 += dx * pull;
                moves[b].1 += dy * pull;
            }
            let most = 40.0 * (1.0 - round as f32 / ROUNDS as f32) + 0.5;
            for (place, (dx, dy)) in places.iter_mut().zip(moves) {
                let far = dx.hypot(dy).max(1e-6);
                let step = far.min(most) / far;
                place.0 = (place.0 + dx * step).clamp(MARGIN, WIDTH - MARGIN);
                place.1 = (place.1 + dy * step).clamp(MARGIN / 2.0, HEIGHT - MARGIN / 2.0);
            }
        }
        places
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            // Not allowed in XML at all.
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}
