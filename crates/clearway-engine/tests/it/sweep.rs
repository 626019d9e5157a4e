//! Ten reference runs, stopped at every store call and after every event, and all of them at once in
//! seeded histories: whatever happens, the same comes out, and a write happens once.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clearway_core::channel::{Reducer, Write};
use clearway_core::machine::{Command, Output, Resume};
use clearway_core::plan::{Builder, END, Goto, Plan};
use clearway_core::run::{Budget, RunOptions};
use clearway_core::wait::WaitKind;
use clearway_core::{RunId, Status, ThreadId};
use clearway_engine::{
    ActionError, Agent, Child, Ctx, Effect, Kind, Node, NodeError, NodePolicy, PoolOptions, Retry,
    Submit,
};
use clearway_testkit::sweep::{Bed, Scenario, Simulation, Sink, Sweep};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::attack::script;
use crate::support::{chat_agent, sim, turn, upstream};

type Nodes = Vec<(&'static str, Arc<dyn Node>)>;

fn wrote(channel: &str, value: Value) -> Output {
    Output { writes: vec![Write::new(channel, value)], ..Output::default() }
}

fn plan(nodes: &[&str]) -> Builder {
    let builder = Builder::new().channel("log", Reducer::Append).channel("last", Reducer::Last);
    nodes.iter().fold(builder, |builder, node| builder.node(node))
}

fn graph(name: &str, plan: Plan, nodes: Nodes) -> (String, Arc<Agent>) {
    let first = nodes[0].clone();
    let agent = Agent {
        plan: Arc::new(plan),
        nodes: nodes.into_iter().map(|(name, node)| (name.into(), node)).collect(),
        starts_ahead: false,
        ..Agent::single(name, "graph", first.0, first.1)
    };
    (name.to_owned(), Arc::new(agent))
}

fn says(name: &'static str) -> Arc<dyn Node> {
    script(move |cx: Ctx| async move {
        cx.progress(name)?;
        Ok(wrote("log", json!(name)))
    })
}

/// Takes its time and shows that it does.
async fn work(cx: &Ctx, ms: u64) -> Result<(), NodeError> {
    cx.progress("working")?;
    tokio::time::sleep(Duration::from_millis(ms)).await;
    Ok(())
}

/// The `n`-th run of a scenario; ids are fixed, so that a client can begin anew.
fn submit(agent: &str, n: u128) -> Submit {
    let thread = agent.bytes().fold(7_u128, |hash, byte| hash * 31 + u128::from(byte));
    let run = RunId(Uuid::from_u128((thread << 32) | n));
    let submit = Submit::new(ThreadId(Uuid::from_u128(thread)), agent, "test", json!({}));
    Submit { id: Some(run), ..submit }
}

/// A scenario of one run that nobody does anything to.
fn plain(
    name: &'static str,
    agents: impl Fn(&Sink) -> Vec<(String, Arc<Agent>)> + Send + Sync + 'static,
) -> Scenario {
    Scenario::new(name, agents, move |bed| {
        Box::pin(async move {
            let run = bed.submit(submit(name, 1)).await?;
            bed.wait(run).await?;
            Ok(vec![run])
        })
    })
}

fn chat() -> Scenario {
    Scenario::new(
        "chat",
        |_| vec![chat_agent("good", "good", "chat")],
        |bed| {
            Box::pin(async move {
                let submit = Submit {
                    id: Some(RunId(Uuid::from_u128(1))),
                    kind: Kind::Background { working_limit: None },
                    ..turn("good", "c", "first")
                };
                let run = bed.submit(submit).await?;
                bed.wait(run).await?;
                Ok(vec![run])
            })
        },
    )
}

/// A tool between two nodes: what it reads is memoised, what it writes happens once.
fn tool(name: &'static str, effect: Effect) -> Scenario {
    plain(name, move |sink| {
        let plan = plan(&["ask", "tool", "tell"])
            .entry("ask")
            .edge("ask", "tool")
            .edge("tool", "tell")
            .build()
            .unwrap();
        let sink = sink.clone();
        let tool = script(move |cx: Ctx| {
            let sink = sink.clone();
            async move {
                work(&cx, 5).await?;
                let value = cx
                    .act("call", effect, |key| async move {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                        match effect {
                            Effect::Write => Ok(sink.write(&key, json!("done"))),
                            Effect::Read | Effect::Idempotent => {
                                Ok::<_, ActionError>(json!("read"))
                            }
                        }
                    })
                    .await?;
                work(&cx, 5).await?;
                Ok(wrote("log", value))
            }
        });
        vec![graph(name, plan, vec![("ask", says("ask")), ("tool", tool), ("tell", says("tell"))])]
    })
}

fn parallel() -> Scenario {
    plain("parallel", |sink| {
        let plan = plan(&["split", "quick", "slow", "middle", "join"])
            .entry("split")
            .edge("split", "quick")
            .edge("split", "slow")
            .edge("split", "middle")
            .join(&["quick", "slow", "middle"], "join")
            .build()
            .unwrap();
        let takes = |name: &'static str, ms: u64| {
            let sink = sink.clone();
            script(move |cx: Ctx| {
                let sink = sink.clone();
                async move {
                    work(&cx, ms).await?;
                    // One of them writes outward, beside the others.
                    let paid = match name {
                        "middle" => {
                            cx.act("pay", Effect::Write, |key| async move {
                                Ok::<_, ActionError>(sink.write(&key, json!("paid")))
                            })
                            .await?
                        }
                        _ => Value::Null,
                    };
                    Ok(wrote("log", json!([name, paid])))
                }
            })
        };
        let nodes = vec![
            ("split", says("split")),
            ("quick", takes("quick", 1)),
            ("slow", takes("slow", 60)),
            ("middle", takes("middle", 20)),
            ("join", says("join")),
        ];
        vec![graph("parallel", plan, nodes)]
    })
}

fn map() -> Scenario {
    plain("map", |sink| {
        let plan = plan(&["scatter", "gather"])
            .node_at_once("item", 2)
            .entry("scatter")
            .may_go("scatter", "item")
            .edge("item", "gather")
            .build()
            .unwrap();
        let scatter = script(|_| async move {
            let send = |n: u32| Goto::Send { node: "item".into(), payload: json!(n) };
            Ok(Output { goto: Some((0..4).map(send).collect()), ..Output::default() })
        });
        let sink = sink.clone();
        let item = script(move |cx: Ctx| {
            let sink = sink.clone();
            async move {
                let n = cx.payload.as_deref().and_then(Value::as_u64).unwrap_or_default();
                work(&cx, 10 * (5 - n)).await?;
                let value = cx
                    .act("store", Effect::Write, |key| async move {
                        Ok::<_, ActionError>(sink.write(&key, json!({"item": n})))
                    })
                    .await?;
                Ok(wrote("log", value))
            }
        });
        vec![graph(
            "map",
            plan,
            vec![("scatter", scatter), ("item", item), ("gather", says("gather"))],
        )]
    })
}

/// A loop with a flaky node, memoised steps and an artifact.
fn looping() -> Scenario {
    plain("loop", |_| {
        let plan = plan(&["again", "after"])
            .entry("again")
            .may_go("again", "again")
            .may_go("again", "after")
            .edge("after", END)
            .build()
            .unwrap();
        let again = script(|cx: Ctx| async move {
            let round = cx.state.list("log").len();
            let memo = cx.step("memo", async { Ok(json!(round)) }).await?;
            work(&cx, 5).await?;
            let bytes = Bytes::from(format!("round {round}"));
            cx.artifact("page.txt", "text/plain", bytes).await?;
            let to = if round < 2 { "again" } else { "after" };
            Ok(Output { goto: Some(vec![Goto::Node(to.into())]), ..wrote("log", memo) })
        });
        let (name, agent) = graph("loop", plan, vec![("again", again), ("after", says("after"))]);
        let mut agent = Arc::unwrap_or_clone(agent);
        let retry = Retry { attempts: 3, ..Retry::default() };
        agent.policies.insert("again".into(), NodePolicy { retry, ..NodePolicy::default() });
        vec![(name, Arc::new(agent))]
    })
}

fn ask() -> Scenario {
    Scenario::new(
        "ask",
        |_| {
            let plan = plan(&["draft", "review", "beside", "publish"])
                .entry("draft")
                .edge("draft", "review")
                .edge("draft", "beside")
                .edge("review", "publish")
                .build()
                .unwrap();
            let review = script(|cx: Ctx| async move {
                work(&cx, 5).await?;
                let answer = cx.interrupt(json!("good?"))?;
                Ok(wrote("last", answer))
            });
            let nodes = vec![
                ("draft", says("draft")),
                ("review", review),
                ("beside", says("beside")),
                ("publish", says("publish")),
            ];
            vec![graph("ask", plan, nodes)]
        },
        |bed| {
            Box::pin(async move {
                let asked = bed.submit(submit("ask", 1)).await?;
                bed.wait(asked).await?;
                let resume = Some(Resume::All(json!("yes")));
                let command = Some(Command { resume, ..Command::default() });
                let options = RunOptions { command, ..RunOptions::default() };
                let answered = bed.submit(Submit { options, ..submit("ask", 2) }).await?;
                bed.wait(answered).await?;
                Ok(vec![asked, answered])
            })
        },
    )
}

fn cancel() -> Scenario {
    Scenario::new(
        "cancel",
        |_| {
            let plan = plan(&["first", "hangs"]).entry("first").edge("first", "hangs").build();
            let hangs = script(|cx: Ctx| async move {
                cx.progress("for ever")?;
                std::future::pending().await
            });
            vec![graph("cancel", plan.unwrap(), vec![("first", says("first")), ("hangs", hangs)])]
        },
        |bed: Bed| {
            Box::pin(async move {
                let run = bed.submit(submit("cancel", 1)).await?;
                // Until it has committed its first superstep and goes on with the second.
                while bed
                    .record(run)
                    .await
                    .is_some_and(|run| !run.status.is_terminal() && run.step < 0)
                {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                bed.engine.cancel(run, "ann").await?;
                bed.wait(run).await?;
                Ok(vec![run])
            })
        },
    )
}

fn budget() -> Scenario {
    Scenario::new(
        "budget",
        |_| {
            let plan = plan(&["before", "spend"]).entry("before").edge("before", "spend").build();
            let spend = script(|cx: Ctx| async move {
                work(&cx, 5).await?;
                let _reserved = cx.reserve(1000)?;
                work(&cx, 5).await?;
                Ok(wrote("log", json!("spent")))
            });
            vec![graph("budget", plan.unwrap(), vec![("before", says("before")), ("spend", spend)])]
        },
        |bed: Bed| {
            Box::pin(async move {
                let budget = Budget { tokens: Some(999), ..Budget::default() };
                let options = RunOptions { budget, ..RunOptions::default() };
                let run = bed.submit(Submit { options, ..submit("budget", 1) }).await?;
                let record = bed.until_waiting(run, WaitKind::Budget).await;
                if record.is_some_and(|record| record.status == Status::Waiting) {
                    let more = Budget { tokens: Some(5000), ..Budget::default() };
                    bed.engine.set_budget(run, more).await?;
                }
                bed.wait(run).await?;
                Ok(vec![run])
            })
        },
    )
}

fn child() -> Scenario {
    plain("child", |sink| {
        let parent = script(|cx: Ctx| async move {
            let child = |n: u32| {
                let input = json!({"last": n});
                let child =
                    Child { agent: "worker".into(), input, metadata: serde_json::Map::new() };
                (format!("c{n}"), child)
            };
            let ends = cx.children((0..3).map(child).collect(), 2).await?;
            let logs = ends.into_iter().map(|end| end.state.unwrap_or_default()["log"].clone());
            Ok(wrote("log", logs.collect()))
        });
        let sink = sink.clone();
        let worker = script(move |cx: Ctx| {
            let sink = sink.clone();
            async move {
                work(&cx, 10).await?;
                let n = cx.state.get("last").unwrap_or_default();
                let value = cx
                    .act("work", Effect::Write, |key| async move {
                        Ok::<_, ActionError>(sink.write(&key, json!([n])))
                    })
                    .await?;
                Ok(wrote("log", value))
            }
        });
        let outer = plan(&["parent"]).entry("parent").build().unwrap();
        let inner = plan(&["work"]).entry("work").build().unwrap();
        vec![
            graph("child", outer, vec![("parent", parent)]),
            graph("worker", inner, vec![("work", worker)]),
        ]
    })
}

fn references() -> Vec<Scenario> {
    vec![
        chat(),
        tool("tool-read", Effect::Read),
        tool("tool-write", Effect::Write),
        parallel(),
        map(),
        looping(),
        ask(),
        cancel(),
        budget(),
        child(),
    ]
}

fn sweep(scenario: Scenario) -> clearway_testkit::sweep::Report {
    let report = Sweep::of(scenario).upstream(|| upstream(&sim(), 64)).run();
    assert!(report.calls > 4 && report.events > 4, "too few to prove anything: {report:?}");
    report.assert_sound();
    report
}

#[test]
fn a_chat_survives_every_crash() {
    sweep(chat());
}

#[test]
fn a_tool_that_reads_survives_every_crash() {
    assert_eq!(sweep(tool("tool-read", Effect::Read)).undecided, 0);
}

#[test]
fn a_tool_that_writes_writes_once_or_is_decided_about() {
    assert!(sweep(tool("tool-write", Effect::Write)).undecided > 0);
}

#[test]
fn parallel_nodes_survive_every_crash() {
    assert!(sweep(parallel()).undecided > 0);
}

#[test]
fn a_map_survives_every_crash() {
    assert!(sweep(map()).undecided > 0);
}

#[test]
fn a_loop_survives_every_crash() {
    sweep(looping());
}

#[test]
fn a_question_survives_every_crash() {
    sweep(ask());
}

#[test]
fn a_cancelled_run_stays_cancelled_through_every_crash() {
    sweep(cancel());
}

#[test]
fn a_budget_survives_every_crash() {
    sweep(budget());
}

#[test]
fn child_runs_survive_every_crash() {
    assert!(sweep(child()).undecided > 0);
}

/// All ten at once, in two slots of one pool, through several lives by seed.
/// `CLEARWAY_SEEDS=1000..2000` runs others.
#[test]
fn seeded_histories_end_as_undisturbed_ones() {
    let seeds = std::env::var("CLEARWAY_SEEDS").ok().and_then(|text| {
        let (from, to) = text.split_once("..")?;
        Some(from.parse().ok()?..to.parse().ok()?)
    });
    let pools = vec![PoolOptions::new("chat", 3, 1000)];
    let simulation = Simulation::of(references()).upstream(|| upstream(&sim(), 64)).pools(pools);
    let report = simulation.run(seeds.unwrap_or(0..40));
    report.assert_sound();
    assert!(report.undecided > 0, "{report:?}");
}

/// A sweep that finds nothing would prove nothing: a graph that is not careful is caught.
#[test]
fn a_careless_write_is_found() {
    let careless = plain("careless", |sink| {
        let sink = sink.clone();
        let pay = script(move |cx: Ctx| {
            let sink = sink.clone();
            async move {
                sink.write(&cx.idempotency_key(), json!(1));
                work(&cx, 5).await?;
                Ok(wrote("log", json!("paid")))
            }
        });
        let plan = plan(&["pay"]).entry("pay").build().unwrap();
        vec![graph("careless", plan, vec![("pay", pay)])]
    });
    let report = Sweep::of(careless).run();
    assert!(report.problems.iter().any(|what| what.contains("happened 2 times")), "{report:?}");
}
