//! A person in the middle: draft, ask, publish once.
//!
//! `cargo run -p clearway --example approval`

#![cfg_attr(not(test), expect(clippy::print_stdout, reason = "it is an example that prints"))]

use std::sync::Arc;

use clearway::graph::{ActionError, Ctx, Graph, Local, NodeResult, State, goto};
use serde::{Deserialize, Serialize};
use serde_json::json;

#[derive(State)]
struct Post {
    topic: String,
    draft: Option<Draft>,
    #[channel(append)]
    remarks: Vec<String>,
    receipt: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Draft {
    text: String,
    revision: u32,
}

/// What a person answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "choice", rename_all = "lowercase")]
enum Answer {
    Approve,
    Revise { remark: String },
}

async fn write(cx: Ctx, post: Arc<Post>) -> NodeResult<Post> {
    let revision = post.draft.as_ref().map_or(1, |draft| draft.revision + 1);
    let mut text = format!("About {}.", post.topic);
    for remark in &post.remarks {
        text += &format!(" ({remark}.)");
    }
    for word in text.split_inclusive(' ') {
        cx.token(word)?;
    }
    Ok(Post::update().draft(Draft { text, revision }).into())
}

async fn review(cx: Ctx, post: Arc<Post>) -> NodeResult<Post> {
    // The run ends here; the answer comes with a later one, tomorrow if need be.
    match cx.interrupt(json!({"question": "Publish this?", "draft": post.draft})).await? {
        Answer::Approve => Ok(goto("publish")),
        Answer::Revise { remark } => Ok(goto("write").update(Post::update().remarks([remark]))),
    }
}

async fn publish(cx: Ctx, post: Arc<Post>) -> NodeResult<Post> {
    let text = post.draft.as_ref().map(|draft| draft.text.clone()).unwrap_or_default();
    // Never twice: if the process dies in here, somebody is asked whether it happened.
    let receipt: String = cx
        .write("post", |key| async move {
            Ok::<_, ActionError>(format!("{} bytes under {}", text.len(), key.len()))
        })
        .await?;
    Ok(Post::update().receipt(receipt).into())
}

pub(crate) async fn run() -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
    let graph = Graph::<Post>::builder("approval")
        .node("write", write)
        .node("review", review)
        .node("publish", publish)
        .start("write")
        .edge("write", "review")
        .may_go("review", ["write", "publish"])
        .build()?;
    let local = Local::builder().graph(&graph).start().await?;
    let fail = |error: clearway::graph::Error| error.to_string();

    let asked = local.run(&graph, "post-1", Post::update().topic("tides")).await.map_err(fail)?;
    println!("asks: {}", asked.questions[0].value);
    let remark = "mention the moon".to_owned();
    let again = local.resume(&graph, "post-1", Answer::Revise { remark }).await.map_err(fail)?;
    println!("asks: {}", again.questions[0].value);
    let end = local.resume(&graph, "post-1", Answer::Approve).await.map_err(fail)?;
    local.stop().await;

    let draft = end.state.draft.ok_or("no draft")?;
    println!("published revision {}: {}", draft.revision, draft.text);
    end.state.receipt.ok_or_else(|| "no receipt".into())
}

fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    println!("{}", clearway::runtime(Some(2))?.block_on(run())?);
    Ok(())
}
