//! A workflow as a picture: Mermaid for documents, lines of text for a terminal.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::config::workflow::{END, OnError, StepKind, Workflow};

/// From, to, and what is written at the arrow; sent-to arrows are drawn dashed.
struct Arrow<'a> {
    from: &'a str,
    to: &'a str,
    label: Option<String>,
}

fn arrows(workflow: &Workflow) -> Vec<Arrow<'_>> {
    let mut arrows = Vec::new();
    for step in &workflow.steps {
        for need in &step.needs {
            arrows.push(Arrow { from: need, to: &step.name, label: None });
        }
        if let StepKind::Branch { when, .. } = &step.kind {
            for case in when {
                let label = case.condition.as_ref().map_or("else", |expr| expr.source.as_str());
                arrows.push(Arrow {
                    from: &step.name,
                    to: &case.go,
                    label: Some(label.to_owned()),
                });
            }
        }
        if let OnError::Go(to) = &step.on_error {
            arrows.push(Arrow { from: &step.name, to, label: Some("on error".to_owned()) });
        }
    }
    arrows
}

/// A Mermaid flowchart.
pub fn mermaid(workflow: &Workflow) -> String {
    let mut out = String::from("flowchart TD\n");
    let quoted = |text: &str| text.replace('"', "#quot;").replace(['<', '>'], "");
    for step in &workflow.steps {
        let (open, close) = match step.kind {
            StepKind::Branch { .. } => ("{", "}"),
            StepKind::Ask { .. } => ("[/", "/]"),
            _ => ("[", "]"),
        };
        let each = if step.for_each.is_some() { " ×n" } else { "" };
        let label = format!("{}{each}<br/>{}", quoted(&step.title), step.kind.name());
        let _ = writeln!(out, "    {}{open}\"{label}\"{close}", step.name);
    }
    if arrows(workflow).iter().any(|arrow| arrow.to == END) {
        let _ = writeln!(out, "    {END}([end])");
    }
    for arrow in arrows(workflow) {
        let _ = match &arrow.label {
            None => writeln!(out, "    {} --> {}", arrow.from, arrow.to),
            Some(label) => {
                writeln!(out, "    {} -.->|\"{}\"| {}", arrow.from, quoted(label), arrow.to)
            }
        };
    }
    out
}

/// The layer of each step: needs make layers, and what is sent to comes behind whoever sends.
fn layers(workflow: &Workflow) -> BTreeMap<&str, usize> {
    let mut layer: BTreeMap<&str, usize> = BTreeMap::new();
    for _ in 0..workflow.steps.len() {
        for step in &workflow.steps {
            let above = step.needs.iter().filter_map(|need| layer.get(need.as_str()));
            let mut own = above.max().map_or(0, |above| above + 1);
            if step.needs.is_empty() {
                let senders = arrows(workflow);
                let senders = senders.iter().filter(|arrow| arrow.to == step.name);
                // Arrows back up do not push a step down.
                let place = |name: &str| workflow.steps.iter().position(|step| step.name == name);
                let before = senders.filter(|arrow| place(arrow.from) < place(&step.name));
                let before = before.filter_map(|arrow| layer.get(arrow.from));
                own = own.max(before.max().map_or(0, |above| above + 1));
            }
            layer.insert(&step.name, own);
        }
    }
    layer
}

/// The steps by layer, each with what it waits for and where it may send.
pub fn terminal(workflow: &Workflow) -> String {
    let layer = layers(workflow);
    let depth = layer.values().max().map_or(0, |most| most + 1);
    let width = workflow.steps.iter().map(|step| step.name.chars().count()).max().unwrap_or(0);
    let mut out = format!("{}\n", workflow.title);
    for level in 0..depth {
        for step in workflow.steps.iter().filter(|step| layer[step.name.as_str()] == level) {
            let bullet = match step.kind {
                StepKind::Branch { .. } => "◇",
                StepKind::Ask { .. } => "?",
                _ => "●",
            };
            let each = if step.for_each.is_some() { " ×n" } else { "" };
            let _ = write!(
                out,
                "{}{bullet} {:width$}  {}{each}",
                "│ ".repeat(level.min(12)),
                step.name,
                step.kind.name()
            );
            if !step.needs.is_empty() {
                let _ = write!(out, "  ◂ {}", step.needs.join(", "));
            }
            if let StepKind::Branch { when, .. } = &step.kind {
                for case in when {
                    let label = case.condition.as_ref().map_or("else", |expr| &expr.source);
                    let _ = write!(out, "  ▸ {} ({label})", case.go);
                }
            }
            if let OnError::Go(to) = &step.on_error {
                let _ = write!(out, "  ▸ {to} (on error)");
            }
            out.push('\n');
        }
    }
    out
}

/// A picture for the web: boxes by layer, solid arrows for needs, dashed ones for where steps may send.
pub fn svg(workflow: &Workflow) -> String {
    let layer = layers(workflow);
    let mut places: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    for step in &workflow.steps {
        let row = layer[step.name.as_str()];
        let column = counts.entry(row).or_default();
        places.insert(&step.name, (row, *column));
        *column += 1;
    }
    let rows = counts.len();
    let columns = counts.values().copied().max().unwrap_or(1);
    if arrows(workflow).iter().any(|arrow| arrow.to == END) {
        places.insert(END, (rows, 0));
        counts.insert(rows, 1);
    }
    let (width, height) =
        (columns * (BOX.0 + GAP.0) + GAP.0, counts.len() * (BOX.1 + GAP.1) + GAP.1);
    // Rows are centred.
    let corner = |(row, column): (usize, usize)| {
        let used = counts[&row] * (BOX.0 + GAP.0) - GAP.0;
        ((width - used) / 2 + column * (BOX.0 + GAP.0), GAP.1 / 2 + row * (BOX.1 + GAP.1))
    };
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"13\">\n<title>{}</title>\n\
         <defs><marker id=\"tip\" viewBox=\"0 0 8 8\" refX=\"8\" refY=\"4\" markerWidth=\"8\" \
         markerHeight=\"8\" orient=\"auto\"><path d=\"M0 0L8 4L0 8z\" fill=\"#555\"/></marker></defs>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
        escaped(&workflow.title)
    );
    for arrow in arrows(workflow) {
        let (Some(&from), Some(&to)) = (places.get(arrow.from), places.get(arrow.to)) else {
            continue;
        };
        let ((x1, y1), (x2, y2)) = (corner(from), corner(to));
        // What goes back up leaves at the side.
        let path = if to.0 > from.0 {
            let (x1, y1, x2) = (x1 + BOX.0 / 2, y1 + BOX.1, x2 + BOX.0 / 2);
            let middle = (y1 + y2) / 2;
            format!("M{x1} {y1}C{x1} {middle} {x2} {middle} {x2} {y2}")
        } else {
            let (x1, y1, x2, y2) = (x1 + BOX.0, y1 + BOX.1 / 2, x2 + BOX.0, y2 + BOX.1 / 2);
            let side = x1.max(x2) + GAP.0;
            format!("M{x1} {y1}C{side} {y1} {side} {y2} {x2} {y2}")
        };
        let dashes = if arrow.label.is_some() { " stroke-dasharray=\"5 4\"" } else { "" };
        let label = arrow.label.as_deref().map(escaped).unwrap_or_default();
        let _ = writeln!(
            out,
            "<path d=\"{path}\" fill=\"none\" stroke=\"#555\"{dashes} marker-end=\"url(#tip)\">\
             <title>{label}</title></path>"
        );
    }
    for (name, place) in &places {
        let (x, y) = corner(*place);
        let step = workflow.step(name);
        let (title, kind) =
            step.map_or((*name, ""), |step| (step.title.as_str(), step.kind.name()));
        let each = if step.is_some_and(|step| step.for_each.is_some()) { " ×n" } else { "" };
        let fill = match step.map(|step| &step.kind) {
            Some(StepKind::Branch { .. }) => "#fff4d6",
            Some(StepKind::Ask { .. }) => "#e3f1ff",
            Some(_) => "#f3f5f7",
            None => "#e6e6e6",
        };
        let short: String = title.chars().take(24).collect();
        let _ = writeln!(
            out,
            "<g><rect x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"{}\" rx=\"6\" fill=\"{fill}\" \
             stroke=\"#888\"/><text x=\"{2}\" y=\"{3}\" text-anchor=\"middle\">{4}{each}</text>\
             <text x=\"{2}\" y=\"{5}\" text-anchor=\"middle\" fill=\"#777\" font-size=\"11\">{kind}</text></g>",
            BOX.0,
            BOX.1,
            x + BOX.0 / 2,
            y + 21,
            escaped(&short),
            y + 38,
        );
    }
    out.push_str("</svg>\n");
    out
}

/// Width and height of a step's box.
const BOX: (usize, usize) = (180, 48);
/// Between boxes.
const GAP: (usize, usize) = (40, 44);

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
