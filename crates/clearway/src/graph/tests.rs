//! The typed graph from outside: what its nodes see, and what becomes of what they do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::json;

use super::*;

#[path = "../../examples/approval.rs"]
#[expect(dead_code, reason = "an example has a main of its own")]
mod approval;
#[path = "../../examples/map_reduce.rs"]
#[expect(dead_code, reason = "an example has a main of its own")]
mod map_reduce;
#[path = "../../examples/research.rs"]
#[expect(dead_code, reason = "an example has a main of its own")]
mod research;

#[tokio::test]
async fn the_examples_do_what_they_say() {
    assert_eq!(approval::run().await.unwrap(), "32 bytes under 41");
    assert_eq!(
        map_reduce::run().await.unwrap(),
        "doc-0: 2 words\ndoc-1: 1 words\ndoc-2: 3 words\ndoc-3: 1 words\n"
    );
    assert_eq!(
        research::run().await.unwrap(),
        "Why tides? (1); Why tides? (2)\nWhy two a day? (1); Why two a day? (2)\n\
         [the proofreader is on holiday]"
    );
}

#[derive(State)]
struct Log {
    #[channel(append)]
    log: Vec<String>,
    #[channel(name = "n")]
    number: u32,
}

fn says(text: &'static str) -> impl IntoNode<Log> {
    move |_: Ctx, _: Arc<Log>| async move { Ok(Log::update().log([text.to_owned()]).into()) }
}

async fn local(graphs: &[&Graph<Log>]) -> Local {
    graphs
        .iter()
        .fold(Local::builder(), |builder, graph| builder.graph(graph))
        .start()
        .await
        .unwrap()
}

#[tokio::test]
async fn nodes_of_a_superstep_see_the_state_before_it() {
    let peek = |_: Ctx, log: Arc<Log>| async move {
        Ok(Log::update().log([format!("saw {}", log.log.len())]).into())
    };
    let graph = Graph::<Log>::builder("g")
        .node("a", says("a"))
        .node("b", peek)
        .node("c", peek)
        .start("a")
        .start("b")
        .join(&["a", "b"], "c")
        .build()
        .unwrap();
    let local = local(&[&graph]).await;
    let end = local.run(&graph, "t", Log::update()).await.unwrap().well().unwrap();
    assert_eq!(end.state.log, ["a", "saw 0", "saw 2"]);
    // A second run goes on from the thread's state.
    let end = local.run(&graph, "t", Log::update().number(7)).await.unwrap().well().unwrap();
    assert_eq!((end.state.log.len(), end.state.number), (6, 7));
}

#[tokio::test]
async fn a_destination_that_was_not_declared_is_an_error() {
    let stray = |_: Ctx, _: Arc<Log>| async move { Ok(goto("b")) };
    let graph = Graph::<Log>::builder("g")
        .node("a", stray)
        .node("b", says("b"))
        .start("a")
        .edge("a", "b")
        .build()
        .unwrap();
    let end = local(&[&graph]).await.run(&graph, "t", Log::update()).await.unwrap();
    let failure = end.failure.unwrap();
    assert_eq!(failure.code, Code::InvalidUpdate);
    assert!(failure.message.contains("goes to `b`, which it was not declared to"), "{failure}");
}

#[tokio::test]
async fn errors_are_tried_again_unless_they_say_otherwise() {
    let tries = Arc::new(AtomicU32::new(0));
    let counter = tries.clone();
    let flaky = move |_: Ctx, _: Arc<Log>| {
        let n = counter.fetch_add(1, Ordering::Relaxed);
        async move {
            if n < 2 {
                "x".parse::<u32>()?;
            }
            Err(Error::permanent("no"))
        }
    };
    let graph = Graph::<Log>::builder("g")
        .node("a", flaky.retry_after(9, Duration::from_millis(1)))
        .start("a")
        .build()
        .unwrap();
    let end = local(&[&graph]).await.run(&graph, "t", Log::update()).await.unwrap();
    assert_eq!(tries.load(Ordering::Relaxed), 3);
    assert_eq!((end.status, end.failure.unwrap().message), (Status::Error, "no".to_owned()));
}

#[tokio::test]
async fn children_are_runs_with_a_state_of_their_own() {
    let parent = |cx: Ctx, _: Arc<Log>| async move {
        let inputs = (0..3).map(|n| (format!("c{n}"), Log::update().number(n))).collect();
        let children: Vec<Log> = cx.children("child", inputs, 2).await?;
        Ok(Log::update().log(children.into_iter().flat_map(|child| child.log)).into())
    };
    let work = |_: Ctx, log: Arc<Log>| async move {
        Ok(Log::update().log([format!("child {}", log.number)]).into())
    };
    let child = Graph::<Log>::builder("child").node("w", work).start("w").build().unwrap();
    let graph = Graph::<Log>::builder("g").node("p", parent).start("p").build().unwrap();
    let local = local(&[&graph, &child]).await;
    let end = local.run(&graph, "t", Log::update()).await.unwrap().well().unwrap();
    assert_eq!(end.state.log, ["child 0", "child 1", "child 2"]);
}

#[tokio::test]
async fn what_is_kept_on_disk_goes_on_after_a_restart() {
    let data = tempfile::tempdir().unwrap();
    let wait = |cx: Ctx, _: Arc<Log>| async move {
        let said: String = cx.signal("go").await?;
        cx.emit("heard", &said)?;
        Ok(Log::update().log([said]).into())
    };
    let graph = Graph::<Log>::builder("g").node("w", wait).start("w").build().unwrap();
    let builder = || Local::builder().graph(&graph).data(data.path());
    let first = builder().start().await.unwrap();
    let run = first.start(&graph, "t", Log::update()).await.unwrap();
    first.stop().await;
    let second = builder().start().await.unwrap();
    second.engine().signal(run, "go", json!("now"), None).await.unwrap();
    let end = second.wait::<Log>(run).await.unwrap().well().unwrap();
    assert_eq!(end.state.log, ["now"]);
    assert_eq!(second.state::<Log>("t").await.unwrap().unwrap().log, ["now"]);
    second.stop().await;
}

#[tokio::test]
async fn subgraphs_nest() {
    let leaf =
        Graph::<Log>::builder("leaf").node("say", says("leaf")).start("say").build().unwrap();
    let wrap = |inner: &Graph<Log>, name: &str| {
        Graph::<Log>::builder(name)
            .subgraph(
                "in",
                inner,
                |outer: &Log| Log { log: vec![format!("from {}", outer.number)], number: 1 },
                |inner| Log::update().log(inner.log),
            )
            .node("after", says("after"))
            .start("in")
            .edge("in", "after")
            .build()
            .unwrap()
    };
    let graph = wrap(&wrap(&leaf, "middle"), "outer");
    let local = local(&[&graph]).await;
    let end = local.run(&graph, "t", Log::update().number(5)).await.unwrap().well().unwrap();
    assert_eq!(end.state.log, ["from 5", "from 1", "leaf", "after", "after"]);
}
