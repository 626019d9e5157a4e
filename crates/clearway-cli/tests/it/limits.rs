//! Workflows that ask for too much, or are given what they cannot use: each ends with an error that
//! names the limit or the place, and takes nobody else along.

use anyhow::{Context, Result, ensure};
use clearway_testkit::World;
use serde_json::{Value, json};

use crate::binary;

const BAD: &str = r#"
[workflows.wide]
input = { n = "integer" }
[workflows.wide.steps.each]
for_each = "range(input.n)"
do = "template"
text = "{{ item }}"

[workflows.huge]
input = { block = "string" }
[workflows.huge.steps.file]
do = "template"
text = "{% for i in range(900) %}{{ input.block }}{% endfor %}"
save_as = "huge.txt"

[workflows.round]
max_steps = 12
[workflows.round.steps.start]
do = "set"
[workflows.round.steps.work]
needs = ["start"]
do = "set"
value = "1"
[workflows.round.steps.again]
needs = ["work"]
do = "branch"
when = [{ if = "step.visits < 100000", go = "work" }, { else = true, go = "end" }]

[workflows.hole]
input = { brief = "json" }
[workflows.hole.steps.page]
do = "template"
text = """
One
Two
{{ input.brief.headline }}
"""

[workflows.prose]
[workflows.prose.steps.facts]
do = "llm"
prompt = "Facts about lamps."
params = { max_tokens = 3 }
output = { type = "object", required = ["name", "colour"], properties = { name = { type = "string" }, colour = { type = "string" } } }

[workflows.sound.steps.hello]
do = "template"
text = "Hello"
"#;

async fn run(world: &World, workflow: &str, input: Value) -> Result<Value> {
    let path = format!("/workflows/{workflow}/runs");
    let started = world.client().post(path).json(&json!({"input": input})).send().await?;
    let id = started.expect(202)?.json()["run_id"].as_str().context("no run")?.to_owned();
    world.ended(&id).await
}

#[tokio::test]
async fn too_much_is_refused_with_the_limits_name() -> Result<()> {
    let world = World::new(binary()).config(|config| config.extra += BAD).start().await?;
    let block = "x".repeat(60_000);
    let bad = [
        ("wide", json!({"n": 100_000}), "limit_exceeded", Some("for_each_items")),
        ("huge", json!({"block": block}), "limit_exceeded", Some("step_bytes")),
        ("round", json!({}), "recursion_limit", None),
        ("hole", json!({"brief": {"title": "x"}}), "template_failed", None),
        ("prose", json!({}), "output_invalid", None),
    ];
    for (workflow, input, code, limit) in bad {
        let ended = run(&world, workflow, input).await?;
        assert_eq!(ended["status"], "error", "{workflow}: {ended}");
        let error = &ended["error"];
        assert_eq!(error["code"], code, "{workflow}: {error}");
        if let Some(limit) = limit {
            assert_eq!(error["detail"]["limit"], limit, "{workflow}: {error}");
        }
        let text = error["message"].as_str().unwrap_or_default();
        match workflow {
            "round" => ensure!(text.contains("work") && text.contains("again"), "{text}"),
            "hole" => {
                ensure!(text.contains("line 3") && text.contains("page.text"), "{text}");
                assert_eq!(error["detail"]["variable"], "input.brief.headline");
            }
            "prose" => {
                ensure!(text.contains("asked twice"), "{text}");
                ensure!(error["detail"]["excerpt"].is_string(), "{error}");
                assert_eq!(ended["usage"]["calls"], 2, "one repair");
            }
            _ => {}
        }
        assert_eq!(run(&world, "sound", json!({})).await?["status"], "success");
    }
    world.finish().await
}
