use serde_json::json;
use uuid::Uuid;

use super::*;

const RUN: RunId = RunId(Uuid::from_u128(7));

fn names(frontier: &Frontier) -> Vec<&str> {
    frontier.nodes().map(|node| &**node).collect()
}

fn finished(node: &str, goto: Option<&[&str]>) -> Finished {
    let goto = goto.map(|targets| targets.iter().map(|&to| Goto::Node(to.into())).collect());
    Finished { node: node.into(), goto }
}

/// Ends the named nodes, one superstep later; what their `goto`s are.
fn step(plan: &Plan, before: &Frontier, ended: &[(&str, Option<&[&str]>)]) -> Frontier {
    let ended: Vec<_> = ended.iter().map(|(node, goto)| finished(node, *goto)).collect();
    plan.next(before, &ended, RUN, 1).unwrap()
}

#[test]
fn supersteps_follow_edges_and_goto() {
    let plan = Builder::new()
        .node("a")
        .node("b")
        .node("c")
        .node("d")
        .entry("a")
        .edge("a", "b")
        .edge("a", "c")
        .edge("b", "d")
        .edge("c", "d")
        .edge("d", END)
        .build()
        .unwrap();
    let first = plan.first(RUN, 0);
    assert_eq!(names(&first), ["a"]);
    let second = step(&plan, &first, &[("a", None)]);
    assert_eq!(names(&second), ["b", "c"]);
    let third = step(&plan, &second, &[("c", None), ("b", None)]);
    assert_eq!(names(&third), ["d"], "a shared successor runs once");
    assert!(step(&plan, &third, &[("d", None)]).is_empty());
    assert_eq!(names(&step(&plan, &first, &[("a", Some(&["d", END]))])), ["d"]);
    assert!(plan.next(&first, &[finished("a", Some(&["x"]))], RUN, 1).is_err());
}

#[test]
fn a_fold_does_not_count_and_depth_is_kept() {
    let plan = Builder::new()
        .node("a")
        .node("fold")
        .entry("a")
        .edge("a", "fold")
        .edge("fold", END)
        .fold("fold")
        .build()
        .unwrap();
    assert_eq!(plan.counts(&[finished("a", None)]), 1);
    assert_eq!(plan.counts(&[finished("a", None), finished("fold", None)]), 1);
    assert_eq!(plan.counts(&[finished("fold", None)]), 0);
    let before = Frontier { depth: 7, ..plan.first(RUN, 0) };
    assert_eq!(step(&plan, &before, &[("a", None)]).depth, 7);
    let jumped = plan.jump(&before, &[Goto::Node("fold".into())], RUN, 1).unwrap();
    assert_eq!(jumped.depth, 7);
    assert_eq!(Frontier::from_json(&jumped.to_json()), Some(jumped));
    assert_eq!(Frontier::from_json(&serde_json::json!({"depth": -1})), None);
}

#[test]
fn a_join_waits_for_all_and_then_anew() {
    let plan = Builder::new()
        .node("a")
        .node("slow")
        .node("slower")
        .node("j")
        .entry("a")
        .entry("slow")
        .edge("slow", "slower")
        .join(&["a", "slower"], "j")
        .build()
        .unwrap();
    let first = plan.first(RUN, 0);
    let second = step(&plan, &first, &[("a", None), ("slow", None)]);
    assert_eq!(names(&second), ["slower"]);
    let stored = Frontier::from_json(&second.to_json()).unwrap();
    assert_eq!(stored, second, "what a join has seen survives storage");
    let third = step(&plan, &stored, &[("slower", None)]);
    assert_eq!(names(&third), ["j"]);
    assert!(third.arrived.is_empty());
    let again = step(&plan, &third, &[("a", None)]);
    assert!(again.is_empty(), "the other one has not come again");
}

#[test]
fn needs_are_kept_until_something_before_them_runs_again() {
    // facts → strategy → copy → score → check; site needs check's way out and facts.
    let plan = Builder::new()
        .node("facts")
        .node("strategy")
        .node("copy")
        .node("score")
        .node("check")
        .node("approve")
        .node("site")
        .entry("facts")
        .needs("strategy", &["facts"])
        .needs("copy", &["strategy"])
        .needs("score", &["copy", "strategy"])
        .needs("check", &["score"])
        .may_go("check", "copy")
        .may_go("check", "approve")
        .needs("site", &["approve", "facts"])
        .build()
        .unwrap();
    let mut at = plan.first(RUN, 0);
    for node in ["facts", "strategy", "copy", "score"] {
        assert_eq!(names(&at), [node]);
        at = step(&plan, &at, &[(node, None)]);
    }
    assert_eq!(names(&at), ["check"]);
    at = step(&plan, &at, &[("check", Some(&["copy"]))]);
    assert_eq!(names(&at), ["copy"], "strategy is done and stays so");
    at = step(&plan, &at, &[("copy", None)]);
    assert_eq!(names(&at), ["score"]);
    at = step(&plan, &at, &[("score", None)]);
    at = step(&plan, &at, &[("check", Some(&["approve"]))]);
    at = step(&plan, &at, &[("approve", None)]);
    assert_eq!(names(&at), ["site"], "facts ended long ago and counts");
    assert!(plan.unreachable().is_empty());
}

#[test]
fn a_fan_out_has_a_call_per_payload_and_a_limit() {
    let plan = Builder::new()
        .node("scatter")
        .node_at_once("item", 2)
        .node("gather")
        .entry("scatter")
        .may_go("scatter", "item")
        .edge("item", "gather")
        .max_calls(3)
        .build()
        .unwrap();
    let first = plan.first(RUN, 0);
    let sends = |count: usize| {
        let send = |n| Goto::Send { node: "item".into(), payload: json!(n) };
        [Finished { node: "scatter".into(), goto: Some((0..count).map(send).collect()) }]
    };
    let second = plan.next(&first, &sends(3), RUN, 1).unwrap();
    assert_eq!(names(&second), ["item", "item", "item"]);
    let tasks: BTreeSet<_> = second.due.iter().map(|due| due.task).collect();
    assert_eq!(tasks.len(), 3);
    assert_eq!(Frontier::from_json(&second.to_json()).unwrap(), second);
    assert_eq!(plan.at_once("item"), Some(2));
    let all = [finished("item", None), finished("item", None), finished("item", None)];
    assert_eq!(names(&plan.next(&second, &all, RUN, 2).unwrap()), ["gather"]);
    let error = plan.next(&first, &sends(4), RUN, 1).unwrap_err();
    assert_eq!(error.code, Code::LimitExceeded);
    assert!(error.message.contains("superstep_calls"), "{error}");
    // Nothing to fan out: on, as if the items had ended.
    let none = Finished { node: "scatter".into(), goto: Some(vec![Goto::After("item".into())]) };
    assert_eq!(names(&plan.next(&first, &[none], RUN, 1).unwrap()), ["gather"]);
}

#[test]
fn a_subgraph_ends_when_nothing_of_it_is_due() {
    let inner = Builder::new()
        .channel("notes", Reducer::Append)
        .node("x")
        .node("y")
        .node("z")
        .entry("x")
        .entry("y")
        .edge("y", "z")
        .build()
        .unwrap();
    let plan = Builder::new()
        .node("before")
        .subgraph("sub", &inner)
        .node("after")
        .entry("before")
        .edge("before", "sub")
        .edge("sub", "after")
        .build()
        .unwrap();
    assert!(plan.channels().contains_key("sub/notes"));
    let mut at = plan.first(RUN, 0);
    at = step(&plan, &at, &[("before", None)]);
    assert_eq!(names(&at), ["sub"]);
    at = step(&plan, &at, &[("sub", None)]);
    assert_eq!(names(&at), ["sub/x", "sub/y"]);
    at = step(&plan, &at, &[("sub/x", None), ("sub/y", None)]);
    assert_eq!(names(&at), ["sub/z"]);
    at = step(&plan, &at, &[("sub/z", None)]);
    assert_eq!(names(&at), ["sub/__end__"]);
    at = step(&plan, &at, &[("sub/__end__", None)]);
    assert_eq!(names(&at), ["after"]);
    assert!(plan.unreachable().is_empty());
    // Twice nested, the inner end comes before the outer one.
    let outer = Builder::new().subgraph("o", &plan).entry("o").build().unwrap();
    let mut at = outer.first(RUN, 0);
    let mut seen = Vec::new();
    while !at.is_empty() {
        seen.push(names(&at).join("+"));
        let all: Vec<_> = at.nodes().map(|node| finished(node, None)).collect();
        at = outer.next(&at, &all, RUN, 1).unwrap();
    }
    assert_eq!(
        seen.join(" "),
        "o o/before o/sub o/sub/x+o/sub/y o/sub/z o/sub/__end__ o/after o/__end__"
    );
}

#[test]
fn the_last_node_runs_when_nothing_else_is_due() {
    let plan = Builder::new()
        .node("a")
        .node("b")
        .node("result")
        .entry("a")
        .may_go("a", "b")
        .at_the_end("result")
        .build()
        .unwrap();
    let first = plan.first(RUN, 0);
    let sent = step(&plan, &first, &[("a", Some(&["b"]))]);
    assert_eq!(names(&sent), ["b"]);
    assert_eq!(names(&step(&plan, &sent, &[("b", None)])), ["result"]);
    let left = step(&plan, &first, &[("a", Some(&[]))]);
    assert_eq!(names(&left), ["result"], "a way that ends");
    assert!(step(&plan, &left, &[("result", None)]).is_empty());
}

#[test]
fn wrong_plans_are_refused() {
    let builder = Builder::new().node("a");
    assert_eq!(builder.clone().build().unwrap_err(), InvalidPlan::NoEntry);
    let unknown = builder.clone().entry("a").edge("a", "z").build();
    assert_eq!(unknown.unwrap_err(), InvalidPlan::UnknownNode("z".into()));
    let twice = builder.clone().node("a").entry("a").build();
    assert_eq!(twice.unwrap_err(), InvalidPlan::DuplicateNode("a".into()));
    let lost = builder.node("b").entry("a").build().unwrap();
    assert_eq!(lost.unreachable(), ["b".into()]);
}

#[test]
fn tasks_are_the_same_whenever_they_are_planned() {
    let plan = Plan::chat("model");
    assert_eq!(plan.first(RUN, 0), plan.first(RUN, 0));
    assert_ne!(plan.first(RUN, 0).due[0].task, plan.first(RUN, 1).due[0].task);
}
