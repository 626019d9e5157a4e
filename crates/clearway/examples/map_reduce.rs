//! Fan-out: one call per document, at most three at a time, one of them flaky; then a report.
//!
//! `cargo run -p clearway --example map_reduce`

#![cfg_attr(not(test), expect(clippy::print_stdout, reason = "it is an example that prints"))]

use std::sync::Arc;
use std::time::Duration;

use clearway::graph::{Ctx, Error, Graph, IntoNode, Local, Next, NodeResult, State, To};
use serde::{Deserialize, Serialize};

#[derive(State)]
struct Reading {
    #[channel(append)]
    documents: Vec<String>,
    #[channel(merge_by_id)]
    summaries: Vec<Summary>,
    report: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Summary {
    id: String,
    words: usize,
}

#[derive(Serialize, Deserialize)]
struct Job {
    id: String,
    text: String,
}

async fn split(_: Ctx, reading: Arc<Reading>) -> NodeResult<Reading> {
    let jobs = reading
        .documents
        .iter()
        .enumerate()
        .map(|(n, text)| To::send("read", Job { id: format!("doc-{n}"), text: text.clone() }));
    Ok(jobs.fold(Next::default(), Next::to))
}

async fn read(cx: Ctx, _: Arc<Reading>) -> NodeResult<Reading> {
    let Job { id, text } = cx.payload()?;
    // Kept, so that a later try of this call does not do it again.
    let words: usize = cx.step("count", async { Ok(text.split_whitespace().count()) }).await?;
    if words == 0 {
        return Err(Error::permanent(format!("{id} is empty")));
    }
    Ok(Reading::update().summaries([Summary { id, words }]).into())
}

async fn report(cx: Ctx, reading: Arc<Reading>) -> NodeResult<Reading> {
    let mut report = String::new();
    for (n, summary) in reading.summaries.iter().enumerate() {
        report += &format!("{}: {} words\n", summary.id, summary.words);
        cx.progress(n as u64 + 1, reading.summaries.len() as u64)?;
    }
    cx.artifact("report.txt", "text/plain", report.clone()).await?;
    Ok(Reading::update().report(report).into())
}

pub(crate) async fn run() -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
    let graph = Graph::<Reading>::builder("reading")
        .node("split", split)
        .node("read", read.retry(3).timeout(Duration::from_secs(20)).at_once(3))
        .node("report", report)
        .start("split")
        .may_go("split", ["read"])
        .edge("read", "report")
        .build()?;
    println!("{}", graph.mermaid());
    let local = Local::builder().graph(&graph).start().await?;
    let documents = ["one two", "three", "four five six", "seven"].map(str::to_owned);
    let end = local.run(&graph, "reading-1", Reading::update().documents(documents)).await;
    let end = end.and_then(clearway::graph::End::well).map_err(|error| error.to_string())?;
    local.stop().await;
    Ok(end.state.report)
}

fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    println!("{}", clearway::runtime(Some(2))?.block_on(run())?);
    Ok(())
}
