//! A graph inside a graph: a research loop that searches until it knows enough, used for each
//! question of an essay, one after the other.
//!
//! `cargo run -p clearway --example research`

#![cfg_attr(not(test), expect(clippy::print_stdout, reason = "it is an example that prints"))]

use std::sync::Arc;

use clearway::graph::{Ctx, END, Fault, Graph, IntoNode, Local, NodeResult, State};

/// The inner graph's state.
#[derive(State)]
struct Research {
    question: String,
    #[channel(set)]
    facts: Vec<String>,
}

async fn search(cx: Ctx, research: Arc<Research>) -> NodeResult<Research> {
    cx.status("searching")?;
    let fact = format!("{} ({})", research.question, research.facts.len() + 1);
    Ok(Research::update().facts([fact]).into())
}

/// The outer one's.
#[derive(State)]
struct Essay {
    #[channel(append)]
    questions: Vec<String>,
    #[channel(append)]
    paragraphs: Vec<String>,
    proofreader: Fault,
    text: String,
}

async fn proofread(_: Ctx, _: Arc<Essay>) -> NodeResult<Essay> {
    Err(clearway::graph::Error::permanent("the proofreader is on holiday"))
}

async fn finish(_: Ctx, essay: Arc<Essay>) -> NodeResult<Essay> {
    let note = &essay.proofreader.error.message;
    let text = format!("{}\n[{note}]", essay.paragraphs.join("\n"));
    Ok(Essay::update().text(text).into())
}

async fn plan(_: Ctx, _: Arc<Essay>) -> NodeResult<Essay> {
    Ok(().into())
}

pub(crate) async fn run() -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
    let research =
        Graph::<Research>::builder("research")
            .node("search", search)
            .start("search")
            .branch("search", ["search", END], |research: &Research| {
                if research.facts.len() < 2 { "search" } else { END }
            })
            .build()?;
    let essay = Graph::<Essay>::builder("essay")
        .node("plan", plan)
        .subgraph(
            "research",
            &research,
            // Its state is made anew each time.
            |essay: &Essay| Research {
                question: essay.questions[essay.paragraphs.len()].clone(),
                facts: Vec::new(),
            },
            |research| Essay::update().paragraphs([research.facts.join("; ")]),
        )
        .node("proofread", proofread.or_continue("proofreader"))
        .node("finish", finish)
        .start("plan")
        .branch("plan", ["research", "proofread"], |essay: &Essay| {
            if essay.paragraphs.len() < essay.questions.len() { "research" } else { "proofread" }
        })
        .edge("research", "plan")
        .edge("proofread", "finish")
        .build()?;
    let local = Local::builder().graph(&essay).start().await?;
    let questions = ["Why tides?", "Why two a day?"].map(str::to_owned);
    let end = local.run(&essay, "essay-1", Essay::update().questions(questions)).await;
    let end = end.and_then(clearway::graph::End::well).map_err(|error| error.to_string())?;
    local.stop().await;
    Ok(end.state.text)
}

fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    println!("{}", clearway::runtime(Some(2))?.block_on(run())?);
    Ok(())
}
