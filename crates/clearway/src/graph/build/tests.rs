use std::sync::Arc;

use super::super::{Ctx, END, Graph, IntoNode, NodeResult, State};
use super::*;

#[derive(State)]
struct Doc {
    #[channel(append)]
    log: Vec<String>,
    failure: super::super::Fault,
}

async fn nothing(_: Ctx, _: Arc<Doc>) -> NodeResult<Doc> {
    Ok(().into())
}

fn builder() -> Builder<Doc> {
    Graph::<Doc>::builder("doc").node("draft", nothing).node("review", nothing).start("draft")
}

fn refused(builder: Builder<Doc>) -> String {
    builder.build().unwrap_err().to_string()
}

#[test]
fn a_sound_graph_is_built_and_drawn() {
    let graph = builder()
        .edge("draft", "review")
        .branch("review", ["draft", END], |doc: &Doc| if doc.log.len() < 3 { "draft" } else { END })
        .build()
        .unwrap();
    let drawing = graph.mermaid();
    assert!(drawing.contains("n1[\"draft\"] --> n2[\"review\"]"), "{drawing}");
    assert!(drawing.contains("n2[\"review\"] -.-> n1[\"draft\"]"), "{drawing}");
    assert_eq!(graph.agent().kind, "graph");
}

#[test]
fn unknown_names_say_where_and_what_was_meant() {
    let text = refused(builder().edge("draft", "reveiw"));
    assert_eq!(
        text,
        "graph `doc` cannot be built:\n- edge(\"draft\", \"reveiw\"): there is no node `reveiw`; \
         did you mean `review`?"
    );
    let text = refused(builder().edge("draft", "review").branch("review", ["dratf"], |_| "draft"));
    assert!(text.contains("branch(\"review\", [\"dratf\"], …)"), "{text}");
    let text = refused(builder().edge("draft", "review").may_go("draft", ["elsewhere"]));
    assert!(text.ends_with("there is no node `elsewhere`"), "{text}");
    let handled = builder()
        .node("risky", nothing.on_error("reviw", "failre"))
        .edge("draft", "risky")
        .edge("risky", "review");
    let text = refused(handled);
    assert!(text.contains("on_error of node \"risky\": there is no node `reviw`"), "{text}");
    assert!(text.contains("no channel `failre`; did you mean `failure`?"), "{text}");
}

#[test]
fn what_can_never_run_or_never_end_is_refused() {
    let text = refused(builder());
    assert!(text.contains("nothing leads to `review`"), "{text}");
    let text = refused(builder().edge("draft", "review").edge("review", "draft"));
    assert!(text.contains("from `draft`, `review` no way leads to an end"), "{text}");
    let text = refused(Graph::<Doc>::builder("doc").node("draft", nothing));
    assert!(text.contains("no start"), "{text}");
    let text = refused(builder().node("draft", nothing).edge("draft", "review"));
    assert!(text.contains("two nodes are called `draft`"), "{text}");
    let text = refused(builder().node("a/b", nothing).edge("draft", "review"));
    assert!(text.contains("`a/b` is no name"), "{text}");
}

#[test]
fn all_that_is_wrong_is_told_at_once() {
    let invalid = builder().edge("draft", "x").edge("y", "review").build().unwrap_err();
    assert_eq!(invalid.problems.len(), 2, "{invalid}");
}

#[test]
fn input_is_checked_against_the_state() {
    let graph = builder().edge("draft", "review").build().unwrap();
    let agent = graph.agent();
    let check = |input: Value| {
        let Value::Object(input) = input else { unreachable!() };
        agent.input.as_ref().unwrap().read(&input)
    };
    assert!(check(serde_json::json!({"log": ["a"]})).is_ok());
    assert!(check(serde_json::json!({"log": "a"})).is_ok(), "a lone value is a list of one");
    let failure = check(serde_json::json!({"lo": ["a"]})).unwrap_err();
    assert_eq!(failure.code, Code::InvalidRequest);
    assert!(failure.message.contains("did you mean `log`?"), "{failure}");
    let failure = check(serde_json::json!({"log": [1]})).unwrap_err();
    assert!(failure.message.contains("channel `log` does not fit"), "{failure}");
}
