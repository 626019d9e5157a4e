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

/// The steps by layer, each with what it waits for and where it may send.
pub fn terminal(workflow: &Workflow) -> String {
    let mut layer: BTreeMap<&str, usize> = BTreeMap::new();
    // Needs make layers; what is sent to comes behind whoever sends.
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
