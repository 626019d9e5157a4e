//! Workflows of the configuration, the campaign and its door, through the real binary.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clearway_testkit::{
    Client, Command, PATIENCE, Scratch, Server, Sim, SimOptions, World, free_port, until,
};
use serde_json::{Value, json};

use crate::binary;

/// The example project with a simulator that does not dawdle.
async fn project() -> Result<(Scratch, std::net::SocketAddr, Server)> {
    let scratch = Scratch::new()?;
    let mut init = binary().command(scratch.path());
    init.args(["init", "."]);
    ensure!(init.output().await?.status.success(), "init");
    let file = scratch.path().join("clearway.toml");
    let text = fs::read_to_string(&file)?;
    let quick = text
        .replace("token_interval = \"15ms\"", "token_interval = \"1ms\"")
        .replace("ttft           = \"40ms\"", "ttft           = \"5ms\"");
    ensure!(quick != text, "the example project's simulator has another pace now");
    fs::write(&file, quick)?;
    let address = free_port()?;
    let server = start(&scratch, address, "dev.log").await?;
    Ok((scratch, address, server))
}

async fn start(scratch: &Scratch, address: std::net::SocketAddr, log: &str) -> Result<Server> {
    let command = Command::new(&binary(), "dev", scratch.path());
    let mut server = command.spawn(address, &scratch.path().join(log))?;
    server.ready(PATIENCE).await?;
    Ok(server)
}

async fn get(client: &Client, path: &str) -> Result<Value> {
    Ok((*client).get(path).send().await?.expect(200)?.json())
}

fn brief(product: &str) -> Value {
    json!({
        "product": product, "client": "Lumen & Co", "target_audience": "students in small flats",
        "goals": ["sell 500"], "key_features": ["dims by itself", "USB-C"], "username": "ann",
        "nobody_knows_this": 1,
    })
}

#[tokio::test]
async fn a_campaign_survives_being_killed_and_ends_with_a_website() -> Result<()> {
    let (scratch, address, mut server) = project().await?;
    let client = server.client();
    let answer = client.post("/api/v1/campaigns/generate").json(&brief("Glow lamp"));
    let answer = answer.send().await?.expect(200)?.json();
    let id = answer["campaign_id"].as_str().context("no id")?.to_owned();
    let run = answer["run_id"].as_str().context("no run")?.to_owned();
    assert!(id.starts_with("campaign_20") && id.len() == 30, "{id}");
    for (kill, wanted) in [2, 7].into_iter().enumerate() {
        let path = format!("/api/v1/campaigns/{id}/progress");
        let client = server.client();
        until("some steps are done", PATIENCE, async || {
            Ok(get(&client, &path).await?["progress"]["completed_steps"].as_u64() >= Some(wanted))
        })
        .await?;
        server.process().kill().await?;
        server = start(&scratch, address, &format!("dev{kill}.log")).await?;
    }
    let client = server.client();
    let path = format!("/api/v1/campaigns/{id}/progress");
    until("it is completed", PATIENCE, async || {
        let progress = get(&client, &path).await?;
        ensure!(progress["status"] != "failed", "{progress}");
        Ok(progress["status"] == "completed")
    })
    .await?;
    let progress = get(&client, &path).await?;
    assert_eq!(progress["progress"]["progress_percentage"], 100);
    assert_eq!(progress["progress"]["total_steps"], 16);
    let steps = get(&client, &format!("/api/v1/campaigns/{id}/workflow-steps")).await?;
    assert_eq!(steps["workflow_stats"]["completed"], 16, "{steps}");
    assert_eq!(steps["workflow_steps"][0]["id"], "project_manager");
    let shown = get(&client, &format!("/api/v1/campaigns/{id}")).await?;
    let files = shown["artifacts"].as_object().context("no artifacts")?;
    assert!(files.len() >= 12, "{:?}", files.keys());
    assert!(files.contains_key(&format!("{id}_campaign_website.html")));
    let page = client.get(format!("/campaigns/view/{id}")).send().await?.expect(200)?;
    assert!(
        page.headers.get("content-security-policy").is_some_and(|csp| csp.starts_with("sandbox"))
    );
    assert!(page.text().contains("Glow lamp"), "the page is about the product");
    let pdf = client.get(format!("/api/v1/campaigns/{id}/pdf")).send().await?.expect(200)?;
    assert!(pdf.text().starts_with("%PDF"));

    // What the log says: no gap, and no superstep twice.
    let events = get_events(&client, &run).await?;
    for (at, event) in events.iter().enumerate() {
        assert_eq!(event["seq"], at as u64);
    }
    let resets = events.iter().filter(|event| event["kind"] == "output.reset").count();
    assert_eq!(resets, 2, "each kill is announced once");
    let record = get(&client, &format!("/runs/{run}")).await?;
    assert!(record["usage"]["calls"].as_u64() >= Some(16), "{record}");
    server.stop(PATIENCE).await?;
    server.process().passed();
    Ok(())
}

async fn get_events(client: &Client, run: &str) -> Result<Vec<Value>> {
    let mut events: Vec<Value> = Vec::new();
    loop {
        let after = events.last().map_or(String::new(), |last| format!("&after={}", last["seq"]));
        let path = format!("/runs/{run}/events?limit=1000{after}");
        let request = (*client).get(&path).header("accept", "application/json");
        let page = request.send().await?.expect(200)?.json();
        events.extend(page["events"].as_array().cloned().unwrap_or_default());
        if page["next"].is_null() {
            return Ok(events);
        }
    }
}

#[tokio::test]
async fn a_brief_with_holes_is_refused_field_by_field() -> Result<()> {
    let (_scratch, _address, mut server) = project().await?;
    let client = server.client();
    let request = client.post("/api/v1/campaigns/generate").json(&json!({"product": 7}));
    let refused = request.send().await?;
    assert_eq!(refused.status, 422);
    let text = refused.text();
    for field in ["client", "target_audience", "goals", "key_features", "product"] {
        assert!(text.contains(&format!("\"{field}\"")), "{field}: {text}");
    }
    let missing = client.get("/api/v1/campaigns/campaign_x/progress").send().await?;
    assert_eq!(missing.status, 404);
    server.stop(PATIENCE).await?;
    server.process().passed();
    Ok(())
}

const SMALL: &str = r#"
[workflows.small]
input = { names = "string[]", rounds = "integer = 2", ask = "boolean = false" }

[workflows.small.channels.log]
type = "list"
reducer = "append"

[workflows.small.steps.begin]
do = "set"

[workflows.small.steps.greet]
needs = ["begin"]
for_each = "input.names"
do = "template"
text = "Hello {{ item }} ({{ loop.index }}/{{ loop.length }})"
writes = { log = "'greeted ' ~ item" }

[workflows.small.steps.again]
needs = ["greet"]
do = "branch"
when = [
  { if = "step.visits < input.rounds", go = "greet" },
  { if = "input.ask", go = "sure" },
  { else = true, go = "end" },
]

[workflows.small.steps.sure]
do = "ask"
question = "Sure about {{ input.names | length }}?"
choices = ["yes", "no"]
wait = "1h"

[workflows.small.steps.broken]
needs = ["sure"]
if = "sure.choice == 'no'"
do = "template"
text = "{{ input.names[7].missing }}"
on_error = "continue"

[workflows.small.steps.last]
needs = ["broken"]
do = "set"
value = "{'choice': sure.choice, 'error': broken.error.code if broken else none}"
"#;

async fn small(world: &World, input: Value) -> Result<Value> {
    let request = world.client().post("/workflows/small/runs").json(&json!({"input": input}));
    let run = request.send().await?.expect(202)?.json();
    world.ended(run["run_id"].as_str().context("no run")?).await
}

#[tokio::test]
async fn loops_fan_outs_questions_and_handled_errors() -> Result<()> {
    let world = World::new(binary()).config(|config| config.extra += SMALL).start().await?;
    let run = small(&world, json!({"names": ["a", "b", "c"]})).await?;
    assert_eq!(run["status"], "success", "{run}");
    let log = world.check_log(run["run_id"].as_str().context("id")?).await?;
    let greeted = log
        .iter()
        .filter(|event| event["kind"] == "node.completed" && event["data"]["node"] == "greet")
        .count();
    assert_eq!(greeted, 6, "three names, two rounds");

    let asked = small(&world, json!({"names": [], "rounds": 1, "ask": true})).await?;
    assert_eq!(asked["next"], json!(["sure"]), "{asked}");
    let id = asked["run_id"].as_str().context("id")?.to_owned();
    let attention = world.client().get("/attention").send().await?.expect(200)?.json();
    assert_eq!(attention["attention"][0]["kind"], "person", "{attention}");
    let wrong = json!({"answer": "perhaps"});
    let path = format!("/runs/{id}/answer");
    let run = world.client().post(&path).json(&wrong).send().await?.expect(202)?.json();
    let ended = world.ended(run["run_id"].as_str().context("id")?).await?;
    assert_eq!(ended["next"], json!(["sure"]), "it is asked again: {ended}");
    let again = world.client().get("/attention").send().await?.expect(200)?.json();
    let id = again["attention"][0]["run_id"].as_str().context("id")?.to_owned();
    let path = format!("/runs/{id}/answer");
    let right = world.client().post(&path).json(&json!({"answer": "yes"})).send().await?;
    let run = right.expect(202)?.json();
    let ended = world.ended(run["run_id"].as_str().context("id")?).await?;
    assert_eq!((&ended["status"], &ended["next"]), (&json!("success"), &json!([])), "{ended}");
    world.finish().await
}

#[tokio::test]
async fn a_wrong_input_is_refused_by_name() -> Result<()> {
    let world = World::new(binary()).config(|config| config.extra += SMALL).start().await?;
    let body = json!({"input": {"nmaes": ["a"], "rounds": "two"}});
    let refused = world.client().post("/workflows/small/runs").json(&body).send().await?;
    assert_eq!(refused.status, 400);
    let text = refused.text();
    for part in ["`names` is required", "`rounds` must be a whole number", "did you mean `names`"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let many: Vec<u32> = (0..5000).collect();
    let many: Vec<String> = many.iter().map(ToString::to_string).collect();
    let body = json!({"input": {"names": many}});
    let refused = world.client().post("/workflows/small/runs").json(&body).send().await?;
    assert!(refused.text().contains("at most 1000"), "{}", refused.text());
    world.finish().await
}

#[tokio::test]
async fn mistakes_in_a_workflow_are_underlined() -> Result<()> {
    let scratch = Scratch::new()?;
    scratch.write(
        "clearway.toml",
        r#"
[workflows.w]
input = { brief = "string", size = "strnig" }

[workflows.w.steps.plan]
do = "llm"
prompt = "Plan {{ input.breif }}"
output = { type = "object", properties = { channels = { type = "array" } } }

[workflows.w.steps.copy]
needs = ["plna"]
for_each = "plan.chanels"
do = "lm"

[workflows.w.steps.check]
needs = ["plan"]
do = "branch"
when = [{ else = true, go = "plan" }]

[workflows.w.steps.lost]
needs = ["lost"]
do = "set"
value = "1 +"
"#,
    )?;
    let mut check = binary().command(scratch.path());
    check.arg("check").env("NO_COLOR", "1");
    let output = check.output().await?;
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    for part in
        ["`strnig` is no type of an input", "no step does `lm`", "this expression is broken"]
    {
        assert!(text.contains(part), "{part}:\n{text}");
    }
    // The rest is told when the steps can be read.
    let file = scratch.path().join("clearway.toml");
    let mended = fs::read_to_string(&file)?
        .replace("strnig", "string")
        .replace("\"lm\"", "\"set\"")
        .replace("1 +", "1");
    fs::write(&file, mended)?;
    let mut check = binary().command(scratch.path());
    check.arg("check").env("NO_COLOR", "1");
    let text = String::from_utf8_lossy(&check.output().await?.stderr).into_owned();
    for part in [
        "`input.breif`, which does not exist",
        "did you mean `input.brief`?",
        "needs `plna`",
        "did you mean `plan`?",
        "`plan.chanels`",
        "did you mean `plan.channels`?",
        "can go round for ever",
        "is never reached",
        "clearway.toml:",
    ] {
        assert!(text.contains(part), "{part}:\n{text}");
    }
    Ok(())
}

#[tokio::test]
async fn slots_and_priorities_hold() -> Result<()> {
    let (_scratch, _address, mut server) = project().await?;
    let client = server.client();
    let mut runs = Vec::new();
    for n in 0..6 {
        let mut brief = brief(&format!("Lamp {n}"));
        brief["priority"] = if n == 5 { "high" } else { "low" }.into();
        let request = client.post("/api/v1/campaigns/generate").json(&brief);
        runs.push(request.send().await?.expect(200)?.json());
    }
    // Four at once; the others know their place.
    assert!(runs[3]["queue_position"].is_null() && !runs[4]["queue_position"].is_null());
    let pools = get(&client, "/pools").await?;
    let pool = pools["pools"].as_array().context("pools")?.iter();
    let pool = pool.clone().find(|pool| pool["name"] == "campaigns").context("no pool")?;
    assert_eq!((&pool["running"], &pool["ready"]), (&json!(4), &json!(2)), "{pools}");
    let path = format!("/runs/{}", runs[4]["run_id"].as_str().context("id")?);
    let changed = client.request("PATCH", &path).json(&json!({"priority": 1})).send().await?;
    assert_eq!(changed.expect(200)?.json()["priority"], 1);
    for run in &runs {
        let id = run["campaign_id"].as_str().context("id")?;
        until("all are completed", 3 * PATIENCE, async || {
            Ok(get(&client, &format!("/api/v1/campaigns/{id}")).await?["status"] == "completed")
        })
        .await?;
    }
    let all = get(&client, "/api/v1/campaigns/progress").await?;
    assert_eq!((&all["total"], &all["completed"]), (&json!(6), &json!(6)));
    server.stop(Duration::from_secs(20)).await?;
    server.process().passed();
    Ok(())
}

/// All texts in a value that are long enough to be known again.
fn sentences<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::String(text) if text.chars().count() >= 30 => found.push(text),
        Value::Array(items) => items.iter().for_each(|item| sentences(item, found)),
        Value::Object(fields) => fields.values().for_each(|field| sentences(field, found)),
        _ => {}
    }
}

#[tokio::test]
async fn a_model_reads_the_brief_and_what_the_steps_before_it_made() -> Result<()> {
    let scratch = Scratch::new()?;
    let sim = Sim::start(&binary(), scratch.path(), &SimOptions::default()).await?;
    let mut command = Command::new(&binary(), "dev", scratch.path());
    command.env.push(("OPENAI_API_KEY".to_owned(), "sk-test".to_owned()));
    command.env.push(("OPENAI_BASE_URL".to_owned(), sim.url()));
    let mut server = command.start(free_port()?, &scratch.path().join("dev.log")).await?;
    let client = server.client();
    let request = client.post("/api/v1/campaigns/generate").json(&brief("Glow lamp"));
    let made = request.send().await?.expect(200)?.json();
    let path = format!("/api/v1/campaigns/{}", made["campaign_id"].as_str().context("no id")?);
    until("it is completed", 2 * PATIENCE, async || {
        let shown = get(&client, &path).await?;
        ensure!(shown["status"] != "failed", "{shown}");
        Ok(shown["status"] == "completed")
    })
    .await?;
    let run = get(&client, &format!("/runs/{}", made["run_id"].as_str().context("run")?)).await?;
    let thread = run["thread_id"].as_str().context("thread")?;
    let state = get(&client, &format!("/threads/{thread}/state")).await?;
    let prompts = sim.prompts().await?;
    assert!(prompts.len() >= 16, "{} calls", prompts.len());
    let text = |prompt: &Value| {
        let messages = prompt["messages"].as_array().into_iter().flatten();
        messages.filter_map(|message| message["content"].as_str()).collect::<Vec<_>>().join("\n")
    };
    let prompts: Vec<String> = prompts.iter().map(text).collect();
    for (at, prompt) in prompts.iter().enumerate() {
        assert!(prompt.contains("Glow lamp"), "call {at} does not know the brief: {prompt}");
    }
    // What a step says is read by steps after it.
    for (step, readers) in [("project_manager", 1), ("strategy", 5), ("audience_persona", 2)] {
        let mut said = Vec::new();
        sentences(&state["values"][step], &mut said);
        assert!(!said.is_empty(), "{step} says nothing: {}", state["values"][step]);
        let reads = |prompt: &&String| said.iter().any(|sentence| prompt.contains(sentence));
        let read = prompts.iter().filter(reads).count();
        assert!(read >= readers, "{step} is read by {read} of {} calls", prompts.len());
    }
    server.stop(PATIENCE).await?;
    server.process().passed();
    sim.stop().await
}

const LINE: &str = r#"
[server.limits]
ageing = "400ms"

[pools.line]
slots = 1
queue = 500

[workflows.work]
pool = "line"

[workflows.work.steps.only]
do = "llm"
model = "cofounder"
prompt = "Say something."
"#;

#[tokio::test]
async fn the_least_urgent_run_starts_within_its_ageing_bound() -> Result<()> {
    let slow =
        SimOptions { ttft: Duration::from_millis(60), tokens: Some(1), ..SimOptions::default() };
    let world =
        World::new(binary()).sim(slow).config(|config| config.extra += LINE).start().await?;
    let client = world.client();
    let submit = async |priority: u8| -> Result<String> {
        let body = json!({"input": {}, "priority": priority});
        let run = client.post("/workflows/work/runs").json(&body).send().await?.expect(202)?.json();
        Ok(run["run_id"].as_str().context("no run")?.to_owned())
    };
    for _ in 0..4 {
        submit(1).await?;
    }
    let patient = submit(5).await?;
    // More urgent ones than can be done within the bound, always in front of it at first.
    let mut urgent = Vec::new();
    for _ in 0..60 {
        urgent.push(submit(1).await?);
    }
    let times = async |run: &str| -> Result<(i64, i64)> {
        let run = world.ended(run).await?;
        let at = |key: &str| -> Result<i64> {
            let text = run[key].as_str().with_context(|| format!("no {key}: {run}"))?;
            let of_day: String = text[11..23].chars().filter(char::is_ascii_digit).collect();
            let number: i64 = of_day.parse()?;
            let (minutes, ms) = (number / 100_000, number % 100_000);
            Ok((minutes / 100 * 60 + minutes % 100) * 60_000 + ms)
        };
        Ok((at("created_at")?, at("started_at")?))
    };
    let (created, started) = times(&patient).await?;
    let bound = 4 * 400;
    // One run more may have begun just before, and this machine may have other work to do.
    assert!(started - created <= bound + 1500, "{} ms", started - created);
    let mut later = 0;
    for run in &urgent {
        later += usize::from(times(run).await?.1 > started);
    }
    assert!(later > 0, "nobody was overtaken: the line was too short to show anything");
    world.finish().await
}
