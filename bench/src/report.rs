//! What a run of the rig found: tables for people, figures for machines, and bars that were met or missed.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

/// Everything one invocation found out.
#[derive(Debug, Default)]
pub(crate) struct Report {
    sections: Vec<Section>,
    bars: Vec<Bar>,
    figures: Map<String, Value>,
}

/// A table with a title and remarks.
#[derive(Debug)]
pub(crate) struct Section {
    title: String,
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
    notes: Vec<String>,
}

impl Section {
    pub(crate) fn new(title: impl Into<String>, columns: &[&str]) -> Self {
        let columns = columns.iter().map(|&column| column.to_owned()).collect();
        Self { title: title.into(), columns, rows: Vec::new(), notes: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub(crate) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    fn markdown(&self) -> String {
        let mut text = format!("## {}\n\n", self.title);
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        if !self.columns.is_empty() {
            text += &line(&self.columns);
            text += &line(&vec!["---".to_owned(); self.columns.len()]);
            self.rows.iter().for_each(|row| text += &line(row));
            text.push('\n');
        }
        for note in &self.notes {
            let _ = writeln!(text, "- {note}");
        }
        text
    }
}

/// What becomes of the exit code when a bar is missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Something is wrong: a lost token, a lost run, a thread too many.
    Hard,
    /// Something is slow, which on a busy machine may be the machine: counts with `--strict` only.
    Timing,
}

/// A figure and what it may be at most.
#[derive(Debug)]
struct Bar {
    what: String,
    value: f64,
    most: f64,
    kind: Kind,
}

impl Bar {
    fn is_met(&self) -> bool {
        self.value <= self.most
    }
}

impl Report {
    pub(crate) fn section(&mut self, section: Section) {
        say(&format!("\n{}", section.markdown()));
        self.sections.push(section);
    }

    /// Keeps a figure for `--json`.
    pub(crate) fn figure(&mut self, name: impl Into<String>, value: impl Into<Value>) {
        self.figures.insert(name.into(), value.into());
    }

    /// A figure that must not be above `most`.
    pub(crate) fn bar(&mut self, kind: Kind, what: impl Into<String>, value: f64, most: f64) {
        self.bars.push(Bar { what: what.into(), value, most, kind });
    }

    /// Something that must not happen at all.
    pub(crate) fn none_of(&mut self, what: impl Into<String>, count: usize) {
        self.bar(Kind::Hard, what, count as f64, 0.0);
    }

    /// Prints the bars; whether the run counts as passed.
    pub(crate) fn finish(&self, strict: bool) -> bool {
        let mut section = Section::new("Bars", &["", "what", "measured", "at most"]);
        let mut passed = true;
        for bar in &self.bars {
            let counts = bar.kind == Kind::Hard || strict;
            passed &= bar.is_met() || !counts;
            let verdict = match (bar.is_met(), counts) {
                (true, _) => "met",
                (false, true) => "**missed**",
                (false, false) => "missed (timing)",
            };
            section.row([verdict.into(), bar.what.clone(), number(bar.value), number(bar.most)]);
        }
        say(&format!("\n{}", section.markdown()));
        passed
    }

    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.json()).context("the report as JSON")?;
        std::fs::write(file, text + "\n").with_context(|| format!("writing {}", file.display()))
    }

    fn json(&self) -> Value {
        let sections: Vec<_> = self
            .sections
            .iter()
            .map(|s| json!({"title": s.title, "columns": s.columns, "rows": s.rows, "notes": s.notes}))
            .collect();
        let bars: Vec<_> = self
            .bars
            .iter()
            .map(|bar| {
                json!({
                    "what": bar.what,
                    "value": bar.value,
                    "at_most": bar.most,
                    "hard": bar.kind == Kind::Hard,
                    "met": bar.is_met(),
                })
            })
            .collect();
        json!({"figures": self.figures, "bars": bars, "sections": sections})
    }
}

/// With as many digits as mean something.
pub(crate) fn number(value: f64) -> String {
    let digits = match value.abs() {
        x if x >= 100.0 || x.fract() == 0.0 => 0,
        x if x >= 10.0 => 1,
        x if x >= 0.1 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

/// To standard output. A reader that went away (`| head`) is no reason to panic.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(kind: Kind, value: f64) -> Report {
        let mut report = Report::default();
        report.bar(kind, "x", value, 1.0);
        report
    }

    #[test]
    fn only_hard_bars_fail_unless_strict() {
        assert!(report(Kind::Hard, 1.0).finish(true));
        assert!(!report(Kind::Hard, 1.5).finish(false));
        assert!(report(Kind::Timing, 1.5).finish(false));
        assert!(!report(Kind::Timing, 1.5).finish(true));
        assert!(!report(Kind::Hard, f64::NAN).finish(false), "nothing measured is not a pass");
    }

    #[test]
    fn tables_are_markdown() {
        let mut section = Section::new("T", &["a", "b"]);
        section.row(["1".to_owned(), "2".to_owned()]);
        section.note("n");
        assert_eq!(section.markdown(), "## T\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n\n- n\n");
    }

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, 1.0, 0.0123, 0.25, 1.234, 12.34, 123.4].map(number);
        assert_eq!(shown, ["0", "1", "0.012", "0.25", "1.23", "12.3", "123"]);
    }
}
