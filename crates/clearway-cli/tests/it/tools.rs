//! Agents that use tools, through the real binary: the co-founder of the examples, and agents of a
//! configuration.

use anyhow::{Context, Result, ensure};
use clearway_testkit::{Command, PATIENCE, Scratch, World, free_port, until};
use serde_json::{Value, json};

use crate::binary;

const AGENT: &str = r#"
[agents.keeper]
title = "Keeper"
tools = ["set:facts", "set:list", "run:greet", { tool = "run:echo", wait = true }]
prompt = "You keep facts. {{ state.facts.city }}"

[agents.keeper.state]
facts = { type = "object", properties = { city = { type = "string" }, seen = { type = "boolean" } } }
list  = { type = "array", items = { type = "string" } }

[doors.keeper]
dialect = "cofounder"
mount = "/keeper"
agent = "keeper"
expose_state = true

[workflows.greet]
title = "Greeting"
input = { name = "string" }
[workflows.greet.steps.hold]
do = "wait"
event = "go"
deadline = "1h"
[workflows.greet.steps.say]
needs = ["hold"]
do = "template"
text = "Hello {{ input.name }}"
save_as = "greeting.txt"

[workflows.echo]
input = { text = "string" }
output = "steps_say"
[workflows.echo.steps.steps_say]
do = "set"
value = "input.text | upper"
"#;

async fn world() -> Result<World> {
    World::new(binary()).config(|config| config.extra += AGENT).start().await
}

/// One turn with the keeper; the simulator calls the tool that it is told to call.
async fn say(world: &World, message: &str) -> Result<Value> {
    let body = json!({"user_id": "u", "message": message});
    let answer = world.client().post("/keeper/chat").json(&body).send().await?;
    Ok(answer.expect(200)?.json())
}

#[tokio::test]
async fn a_workflow_is_started_beside_the_conversation_and_looked_at() -> Result<()> {
    let mut world = world().await?;
    let reply = say(&world, r#"call the tool run_greet with {"name": "Ada"}"#).await?;
    let text = reply["reply"].as_str().context("no reply")?;
    ensure!(text.contains("run_id"), "{text}");
    let started = world.runs("agent=greet").await?;
    assert_eq!(started.len(), 1, "{started:?}");
    let id = started[0]["run_id"].as_str().context("no id")?.to_owned();
    ensure!(text.contains(&id), "{text} names {id}");
    world.waits_for(&id, "signal").await?;
    let look = format!(r#"call the tool run_status with {{"run_id": "{id}"}}"#);
    let reply = say(&world, &look).await?;
    let text = reply["reply"].as_str().context("no reply")?;
    ensure!(text.contains("waiting") && text.contains("signal"), "{text}");
    // It outlives the server that started it.
    world.kill().await?;
    world.restart().await?;
    let signal = world.client().post(format!("/runs/{id}/signals/go")).json(&json!({}));
    signal.send().await?.expect(202)?;
    assert_eq!(world.ended(&id).await?["status"], "success");
    let reply = say(&world, &look).await?;
    let text = reply["reply"].as_str().context("no reply")?;
    ensure!(text.contains("greeting.txt"), "{text}");
    // Somebody else's conversation does not see it.
    let body = json!({"user_id": "eve", "message": look});
    let other = world.client().post("/keeper/chat").json(&body).send().await?.expect(200)?.json();
    ensure!(other["reply"].as_str().is_some_and(|text| text.contains("run_not_found")), "{other}");
    let client = world.client();
    let shown = client.get("/keeper/state?user_id=u").send().await?.expect(200)?.json();
    assert_eq!(shown["written_files"], json!(["greeting.txt"]), "{shown}");
    world.finish().await
}

#[tokio::test]
async fn a_tool_that_waits_brings_the_result_into_the_turn() -> Result<()> {
    let world = world().await?;
    let reply = say(&world, r#"call the tool run_echo with {"text": "loud"}"#).await?;
    ensure!(reply["reply"].as_str().is_some_and(|text| text.contains("LOUD")), "{reply}");
    let runs = world.runs("agent=keeper").await?;
    let id = runs[0]["run_id"].as_str().context("no id")?;
    let log = world.check_log(id).await?;
    let kinds: Vec<&str> = log.iter().filter_map(|event| event["kind"].as_str()).collect();
    for kind in ["tool.started", "child.started", "run.parked", "tool.completed"] {
        ensure!(kinds.contains(&kind), "{kind}: {kinds:?}");
    }
    world.finish().await
}

#[tokio::test]
async fn state_is_written_down_and_prompts_show_it() -> Result<()> {
    let world = world().await?;
    say(&world, r#"call the tool set_facts with {"city": "Kiel"}"#).await?;
    say(&world, r#"call the tool set_facts with {"seen": true}"#).await?;
    say(&world, r#"call the tool set_list with {"items": ["a", "b"]}"#).await?;
    let wrong = say(&world, r#"call the tool set_facts with {"town": "Kiel"}"#).await?;
    ensure!(
        wrong["reply"].as_str().is_some_and(|text| text.contains("invalid_request")),
        "{wrong}"
    );
    let run = world.newest_run().await?;
    assert_eq!(world.run(&run).await?["status"], "success");
    world.finish().await
}

/// The co-founder of the examples: what it hears becomes milestones, and a business plan that runs
/// beside the conversation.
#[tokio::test]
async fn the_co_founder_keeps_milestones_and_starts_the_plan() -> Result<()> {
    let scratch = Scratch::new()?;
    let command = Command::new(&binary(), "dev", scratch.path());
    let mut server = command.spawn(free_port()?, &scratch.path().join("dev.log"))?;
    server.ready(PATIENCE).await?;
    let client = server.client();
    let say = async |message: &str| -> Result<String> {
        let body = json!({"user_id": "ann", "message": message});
        let answer = client.post("/chat").json(&body).send().await?.expect(200)?.json();
        Ok(answer["reply"].as_str().unwrap_or_default().to_owned())
    };
    let state = async || -> Result<Value> {
        Ok(client.get("/state?user_id=ann").send().await?.expect(200)?.json())
    };
    assert_eq!(state().await?["milestones"]["business_idea_complete"], false);
    let reply = say("My idea is lamps that dim by themselves").await?;
    ensure!(reply.contains("first customer"), "{reply}");
    say("my customer is my neighbour Ida, who reads at night").await?;
    let shown = state().await?;
    assert_eq!(shown["milestones"]["business_idea_complete"], true);
    assert_eq!(shown["milestones"]["persona_clarified"], true);
    assert_eq!(shown["milestones"]["pitch_created"], false);
    assert_eq!(shown["todos"][0]["status"], "completed");
    assert_eq!(shown["todos"][2]["status"], "in_progress");
    let reply = say("Please write the business plan").await?;
    ensure!(reply.contains("run_id"), "{reply}");
    let runs = client.get("/runs?agent=business_plan").send().await?.expect(200)?.json();
    let id = runs["runs"][0]["run_id"].as_str().context("no run")?.to_owned();
    let path = format!("/runs/{id}");
    until("the plan is made", PATIENCE, async || {
        let run = client.get(&path).send().await?.expect(200)?.json();
        ensure!(run["status"] != "error", "{run}");
        Ok(run["status"] == "success")
    })
    .await?;
    let files = client.get(format!("{path}/artifacts")).send().await?.expect(200)?.json();
    assert_eq!(files["artifacts"][0]["name"], "business_plan.pdf");
    server.stop(PATIENCE).await?;
    server.process().passed();
    Ok(())
}

/// The stream tells what is called, and its end is what was said.
#[tokio::test]
async fn a_stream_shows_the_tools() -> Result<()> {
    let world = world().await?;
    let body =
        json!({"user_id": "u", "message": r#"call the tool set_facts with {"city": "Kiel"}"#});
    let stream = world.client().post("/keeper/chat/stream").json(&body).open().await?.ok().await?;
    let events = stream.rest().await?;
    let progress: Vec<String> = events
        .iter()
        .filter(|event| event.kind() == "progress")
        .filter_map(|event| event.json()["message"].as_str().map(ToOwned::to_owned))
        .collect();
    for line in ["started: model", "calling: set:facts", "done: set:facts", "started: tools"] {
        ensure!(progress.iter().any(|other| other == line), "{line}: {progress:?}");
    }
    assert_eq!(crate::last(&events)["text"], crate::joined(&events));
    world.finish().await
}

/// A server of tools as a shell script: it finds, notes, hangs and dies when it is told to.
const SERVER: &str = r#"#!/bin/sh
echo "token is ${CRM_TOKEN:-missing}" >&2
while read -r line; do
  id=$(printf '%s' "$line" | sed -n 's/.*"id":\([0-9]*\).*/\1/p')
  answer() { printf '{"jsonrpc":"2.0","id":%s,"result":%s}\n' "$id" "$1"; }
  text() { answer "{\"content\":[{\"type\":\"text\",\"text\":\"$1\"}]$2}"; }
  case "$line" in
    *'"method":"initialize"'*)
      answer '{"protocolVersion":"2025-06-18","capabilities":{"tools":{}},"serverInfo":{"name":"crm","version":"1"}}' ;;
    *'"method":"tools/list"'*)
      answer '{"tools":[
        {"name":"find","description":"Finds.","inputSchema":{"type":"object","properties":{"name":{"type":"string"}},"required":["name"]},"annotations":{"readOnlyHint":true}},
        {"name":"note_write","description":"Notes.","inputSchema":{"type":"object"}},
        {"name":"refuse","description":"Fails.","inputSchema":{"type":"object"},"annotations":{"readOnlyHint":true}},
        {"name":"hang","description":"Hangs.","inputSchema":{"type":"object"},"annotations":{"readOnlyHint":true}},
        {"name":"die","description":"Dies.","inputSchema":{"type":"object"},"annotations":{"readOnlyHint":true}}]}' | tr -d '\n'; echo ;;
    *'"method":"ping"'*) answer '{}' ;;
    *'"name":"find"'*) text "found by $$ with ${CRM_TOKEN:-no token}" ;;
    *'"name":"note_write"'*) echo note >> notes.txt; text noted ;;
    *'"name":"refuse"'*) text "no such customer" ',"isError":true' ;;
    *'"name":"hang"'*) sleep 3600 ;;
    *'"name":"die"'*) exit 3 ;;
  esac
done
"#;

const CRM: &str = r#"
[agents.crm]
tools = ["mcp:crm"]
confirm = ["mcp:crm/*_write"]

[doors.crm]
dialect = "cofounder"
mount = "/crm"
agent = "crm"

[mcp.crm]
command = ["/bin/sh", "server.sh"]
deadline = "2s"
env = { CRM_TOKEN = "${CRM_TOKEN}" }

[workflows.steps]
[workflows.steps.steps.find]
do = "tool"
tool = "crm/find"
args = { name = "{{ 'A' ~ 'da' }}" }
"#;

async fn crm() -> Result<World> {
    let world = World::new(binary())
        .config(|config| config.extra += CRM)
        .env("CRM_TOKEN", "tok-7")
        .start()
        .await?;
    world.scratch().write("server.sh", SERVER)?;
    Ok(world)
}

async fn crm_says(world: &World, message: &str) -> Result<String> {
    let body = json!({"user_id": "u", "message": message});
    let answer = world.client().post("/crm/chat").json(&body).send().await?.expect(200)?.json();
    Ok(answer["reply"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn tools_of_an_mcp_server_are_used_and_a_server_that_hangs_or_dies_is_replaced() -> Result<()>
{
    let world = crm().await?;
    let find = r#"call the tool crm_find with {"name": "Ada"}"#;
    let first = crm_says(&world, find).await?;
    ensure!(first.contains("with tok-7"), "{first}");
    assert_eq!(crm_says(&world, find).await?, first, "one process serves all");
    let refused = crm_says(&world, "call the tool crm_refuse with {}").await?;
    ensure!(refused.contains("tool_failed") && refused.contains("no such customer"), "{refused}");
    let hung = crm_says(&world, "call the tool crm_hang with {}").await?;
    ensure!(hung.contains("deadline_exceeded"), "{hung}");
    let mut second = String::new();
    until("another process serves", PATIENCE, async || {
        second = crm_says(&world, find).await?;
        Ok(second.contains("found by") && second != first)
    })
    .await?;
    let died = crm_says(&world, "call the tool crm_die with {}").await?;
    ensure!(died.contains("tool_unavailable"), "{died}");
    let third = crm_says(&world, find).await?;
    ensure!(third.contains("found by") && third != second, "{third}");
    let started = world.client().post("/workflows/steps/runs").json(&json!({"input": {}}));
    let id = started.send().await?.expect(202)?.json()["run_id"].as_str().context("id")?.to_owned();
    assert_eq!(world.ended(&id).await?["status"], "success");
    world.finish().await
}

#[tokio::test]
async fn a_person_decides_about_a_write_of_a_tool() -> Result<()> {
    let world = crm().await?;
    crm_says(&world, r#"call the tool crm_note_write with {"text": "x"}"#).await?;
    let id = world.newest_run().await?;
    ensure!(
        !world.scratch().path().join("notes.txt").exists(),
        "it was written before anybody agreed"
    );
    let attention = world.client().get("/attention").send().await?.expect(200)?.text();
    ensure!(attention.contains(&id), "{attention}");
    let answered = world.cli(&["runs", "answer", &id, "approve"]).await?;
    ensure!(answered.code == Some(0), "{}", answered.stderr);
    until("it is noted", PATIENCE, async || Ok(world.scratch().path().join("notes.txt").exists()))
        .await?;
    let next = world.newest_run().await?;
    assert_eq!(world.ended(&next).await?["status"], "success");
    assert_eq!(std::fs::read_to_string(world.scratch().path().join("notes.txt"))?, "note\n");
    world.finish().await
}

const REQUESTS: &str = r#"
[http]
hosts = ["127.0.0.1", "localhost"]
allow = ["127.0.0.0/8"]

[workflows.ask]
input = { base = "string" }
output = "{'models': models.json.object, 'status': gone.error.code}"
[workflows.ask.steps.models]
do = "http"
request = { url = "{{ input.base }}/models" }
[workflows.ask.steps.gone]
do = "http"
request = { url = "{{ input.base }}/nothing-here" }
on_error = "continue"

[workflows.inside.steps.meta]
do = "http"
request = { url = "http://localhost:1/x" }

[workflows.elsewhere]
input = { host = "string" }
[workflows.elsewhere.steps.x]
do = "http"
request = { url = "http://{{ input.host }}/x" }
"#;

#[tokio::test]
async fn http_steps_go_only_where_they_may() -> Result<()> {
    let world = World::new(binary()).config(|config| config.extra += REQUESTS).start().await?;
    let run = async |workflow: &str, input: Value| -> Result<Value> {
        let path = format!("/workflows/{workflow}/runs");
        let started = world.client().post(path).json(&json!({"input": input})).send().await?;
        let id = started.expect(202)?.json()["run_id"].as_str().context("id")?.to_owned();
        world.ended(&id).await
    };
    let base = world.sim().url();
    let ended = run("ask", json!({"base": base})).await?;
    assert_eq!(ended["status"], "success", "{ended}");
    // `localhost` is permitted as a host, and `127.0.0.0/8` as a network; `::1` is neither.
    let inside = run("inside", json!({})).await?;
    ensure!(
        matches!(inside["error"]["code"].as_str(), Some("forbidden" | "tool_unavailable")),
        "{inside}"
    );
    for host in ["169.254.169.254", "example.org", "127.0.0.1@example.org"] {
        let ended = run("elsewhere", json!({"host": host})).await?;
        assert_eq!(ended["error"]["code"], "forbidden", "{host}: {ended}");
    }
    world.finish().await
}
