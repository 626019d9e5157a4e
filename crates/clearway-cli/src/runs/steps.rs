//! The steps of a run as they come and go: bars on a terminal, a line for each elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::output::Output;

/// See the module.
pub(crate) struct Steps {
    output: Output,
    bars: Option<Bars>,
    /// The steps by which the run is followed; none when they are not known.
    names: BTreeSet<String>,
    /// Calls of each step that are under way, and since when.
    running: BTreeMap<String, (u32, Instant)>,
    /// Steps that have ended, each once.
    done: BTreeMap<String, u32>,
}

struct Bars {
    all: MultiProgress,
    whole: ProgressBar,
    each: BTreeMap<String, ProgressBar>,
}

/// How often a spinner moves.
const TICK: Duration = Duration::from_millis(120);

impl Steps {
    pub(crate) fn new(output: Output, names: Vec<String>) -> Self {
        let names: BTreeSet<String> = names.into_iter().collect();
        let live = stderr().is_terminal() && !output.json && !output.quiet;
        let bars = live.then(|| {
            let all = MultiProgress::new();
            let (bar, template) = match names.len() {
                0 => (ProgressBar::new_spinner(), "{spinner} {pos} steps done  {elapsed}"),
                total => (ProgressBar::new(total as u64), "{bar:30} {pos}/{len} steps  {elapsed}"),
            };
            let whole = all.add(bar.with_style(style(template)));
            whole.enable_steady_tick(TICK);
            Bars { all, whole, each: BTreeMap::new() }
        });
        Self { output, bars, names, running: BTreeMap::new(), done: BTreeMap::new() }
    }

    /// What an event of the run means here.
    pub(crate) fn event(&mut self, kind: &str, data: &Value) {
        let text = |name: &str| data[name].as_str().unwrap_or_default();
        let node = text("node");
        // What only holds others together is no step.
        let inner = node.contains(':') || node == "result";
        match kind {
            "node.started" if !inner => self.started(node),
            "node.completed" if !inner => self.completed(node, data["skipped"] == true),
            "progress" => self.says(node, text("message")),
            "tool.started" => self.says(node, &format!("calling {}", text("tool"))),
            "message.started" => self.says(node, "the model answers"),
            "artifact.saved" => {
                let size = data["size_bytes"].as_u64().unwrap_or_default();
                self.line(&format!("  saved {}  {size} bytes", text("name")));
            }
            "run.parked" => self.line(&format!("  waiting: {}", text("detail"))),
            "child.started" => self.line(&format!("  {node} started run {}", text("run_id"))),
            "interrupt" => self.line(&format!("  {node} asks somebody")),
            "output.reset" => self.line(&format!("  taken back: {}", text("reason"))),
            "node.failed" => {
                let why = data["error"]["message"].as_str().unwrap_or_default();
                self.line(&format!("  {node} failed, next: {}: {why}", text("next")));
            }
            "provider.attempt" => {
                self.line(&format!("  a provider call failed: {}", text("outcome")));
            }
            _ => {}
        }
    }

    fn started(&mut self, node: &str) {
        let entry = self.running.entry(node.to_owned()).or_insert((0, Instant::now()));
        entry.0 += 1;
        let count = entry.0;
        let Some(bars) = &mut self.bars else {
            if count == 1 {
                self.output.note(&format!("  {node} …"));
            }
            return;
        };
        let bar = bars.each.entry(node.to_owned()).or_insert_with(|| {
            let bar = bars.all.add(ProgressBar::new_spinner());
            bar.set_style(style("  {spinner} {prefix}  {elapsed}  {wide_msg}"));
            bar.enable_steady_tick(TICK);
            bar
        });
        bar.set_prefix(named(node, count));
    }

    fn completed(&mut self, node: &str, skipped: bool) {
        let Some((count, since)) = self.running.get_mut(node) else { return };
        *count = count.saturating_sub(1);
        let (left, took) = (*count, since.elapsed());
        if left > 0 {
            if let Some(bar) = self.bars.as_ref().and_then(|bars| bars.each.get(node)) {
                bar.set_prefix(named(node, left));
            }
            return;
        }
        self.running.remove(node);
        *self.done.entry(node.to_owned()).or_default() += 1;
        if let Some(bars) = &mut self.bars {
            if let Some(bar) = bars.each.remove(node) {
                bar.finish_and_clear();
            }
            let counts = |name: &&String| self.names.is_empty() || self.names.contains(*name);
            bars.whole.set_position(self.done.keys().filter(counts).count() as u64);
        }
        let how =
            if skipped { "skipped".to_owned() } else { format!("{:.1} s", took.as_secs_f64()) };
        self.line(&format!("✓ {node}  {how}"));
    }

    fn says(&self, node: &str, message: &str) {
        let bar = self.bars.as_ref().and_then(|bars| bars.each.get(node));
        match bar {
            Some(bar) => bar.set_message(message.to_owned()),
            None if self.bars.is_none() && !node.is_empty() && message != "the model answers" => {
                self.output.note(&format!("  {node}: {message}"));
            }
            None => {}
        }
    }

    /// A line that stays, above the bars.
    pub(crate) fn line(&self, text: &str) {
        match &self.bars {
            Some(bars) => {
                // A terminal that went away is no failure of ours.
                let _ = bars.all.println(text);
            }
            None => self.output.note(text),
        }
    }

    /// The bars go; the lines stay.
    pub(crate) fn finish(&mut self) {
        if let Some(bars) = self.bars.take() {
            for bar in bars.each.values() {
                bar.finish_and_clear();
            }
            bars.whole.finish_and_clear();
        }
    }
}

fn named(node: &str, count: u32) -> String {
    if count > 1 { format!("{node} ×{count}") } else { node.to_owned() }
}

fn style(template: &str) -> ProgressStyle {
    let plain = ProgressStyle::default_spinner();
    plain.template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}
