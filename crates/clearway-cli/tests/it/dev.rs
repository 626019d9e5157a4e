//! `clearway dev`: nothing to prepare, and changes show at once.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use clearway_testkit::{
    Client, Command, PATIENCE, Scratch, Server, free_port, reserve_port, until,
};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::binary;

async fn ask(client: Client, user: &str, message: &str) -> Result<String> {
    let body = json!({"user_id": user, "message": message});
    let answer = client.post("/chat").json(&body).send().await?.expect(200)?.json();
    Ok(answer["reply"].as_str().unwrap_or_default().to_owned())
}

/// What is printed when it is ready, down to its last line.
async fn banner(server: &Server) -> Result<String> {
    until("the banner is printed", PATIENCE, async || Ok(server.log().contains("/runs?limit=")))
        .await?;
    Ok(server.log())
}

#[tokio::test]
async fn an_empty_folder_is_enough() -> Result<()> {
    let scratch = Scratch::new()?;
    let address = free_port()?;
    let command = Command::new(&binary(), "dev", scratch.path());
    let log = scratch.path().join("dev.log");
    let mut server = command.spawn(address, &log)?;
    let ready = server.ready(PATIENCE).await?;
    // The product's bar is 300 ms for a release build on a machine that does nothing else.
    eprintln!("ready after {} ms", ready.as_millis());
    assert!(ready < Duration::from_secs(5), "{ready:?}");
    assert!(!ask(server.client(), "ann", "hello").await?.is_empty());
    assert!(scratch.path().join(".clearway/clearway.db").exists(), "data is where the banner says");
    let banner = banner(&server).await?;
    for word in [&address.to_string(), ".clearway", "sim", "OPENAI_API_KEY", "curl"] {
        assert!(banner.contains(word), "`{word}` is missing from the banner: {banner}");
    }
    as_old_clients_ask(server.client()).await?;
    assert_eq!(server.stop(PATIENCE).await?.code, Some(0));
    server.process().passed();
    Ok(())
}

/// What the clients of the services that this replaces take for granted at every address.
async fn as_old_clients_ask(client: Client) -> Result<()> {
    let turn = json!({"user_id": "old", "message": "hello", "conversation_id": null,
        "metadata": null, "unknown": 1});
    let marked = [b"\xef\xbb\xbf".to_vec(), turn.to_string().into_bytes()].concat();
    let taken = [
        ("a slash at the end, null for what is optional", client.post("/chat/").json(&turn)),
        ("a mark before the JSON", client.post("/chat").body(marked)),
        ("a cache buster", client.get("/api/v1/campaigns?_=1700000000")),
        ("one for tasks", client.get("/tasks?_=1700000000")),
        ("True, as Python writes it", client.post("/knowledge-agent/sync?force_rebuild=False")),
        ("no model", client.get("/embeddings/hello")),
    ];
    for (name, request) in taken {
        request.send().await?.expect(200).context(name)?;
    }
    let page = "http://localhost:3000";
    let may = client
        .request("OPTIONS", "/chat/stream")
        .header("origin", page)
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "content-type");
    let may = may.send().await?.expect(200)?;
    assert_eq!(may.headers.get("access-control-allow-headers"), Some("content-type"));
    let refused = client.get("/chat/task/none").header("origin", page).send().await?.expect(404)?;
    assert_eq!(refused.headers.get("access-control-allow-origin"), Some("*"));
    client.get("/knowledge-agent/notes/search").send().await?.expect(422)?;
    let mut proxy = client.raw().await?;
    proxy
        .send(
            b"GET /api/v1/campaigns/ws HTTP/1.0\r\nhost: localhost\r\nconnection: upgrade\r\n\
              upgrade: websocket\r\nsec-websocket-version: 13\r\n\
              sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        )
        .await?;
    proxy.response(PATIENCE).await?.expect(426)?;

    // A question in the background is a task, one that is waited for is none.
    let (door, question) = ("/knowledge-agent", json!({"message": "who are you?"}));
    client.post(format!("{door}/chat")).json(&question).send().await?.expect(200)?;
    let task = client.post(format!("{door}/chat/async")).json(&question).send().await?;
    let task = task.expect(202)?.json();
    assert!(task["queue_position"].is_u64(), "{task}");
    let tasks = client.get(format!("{door}/tasks")).send().await?.expect(200)?.json();
    assert_eq!((&tasks["total"], &tasks["tasks"][0]["task_id"]), (&json!(1), &task["task_id"]));
    let failed = client.get(format!("{door}/tasks?status=failed")).send().await?.expect(200)?;
    assert_eq!(failed.json()["total"], 0);
    // Made in 2024, and known no more.
    let expired = "018d0000-0000-7000-8000-000000000000";
    client.get(format!("/chat/task/{expired}")).send().await?.expect(410)?;

    let brief = json!({"product": "p", "client": "c", "target_audience": "t", "goals": ["g"],
        "key_features": ["k"]});
    let started = client.post("/api/v1/campaigns/generate").json(&brief).send().await?;
    let id = started.expect(200)?.json()["campaign_id"].as_str().unwrap_or_default().to_owned();
    let at = format!("/api/v1/campaigns/{id}");
    let steps = client.get(format!("{at}/workflow-steps")).send().await?.expect(200)?.json();
    let steps = steps["workflow_steps"].as_array().context("steps")?.iter();
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let found: Vec<String> =
        steps.map(|step| format!("{} {}", word(&step["id"]), word(&step["category"]))).collect();
    assert_eq!(found, CAMPAIGN_STEPS);
    client.post(format!("{at}/cancel")).send().await?;
    Ok(())
}

/// The steps of a campaign, in order, with their categories.
const CAMPAIGN_STEPS: [&str; 16] = [
    "project_manager planning",
    "strategy planning",
    "audience_persona research",
    "creative creative",
    "copy creative",
    "cta_optimizer optimization",
    "visual design",
    "designer design",
    "social_media_campaign execution",
    "emotion_personalization optimization",
    "media_planner planning",
    "review quality",
    "campaign_summary documentation",
    "client_summary documentation",
    "web_developer execution",
    "html_validation quality",
];

#[tokio::test]
async fn a_taken_port_is_stepped_over() -> Result<()> {
    let scratch = Scratch::new()?;
    let (taken, _listener) = reserve_port()?;
    let command =
        Command::new(&binary(), "dev", scratch.path()).arg("--listen").arg(taken.to_string());
    let next = std::net::SocketAddr::from((taken.ip(), taken.port() + 1));
    let mut server = command.spawn(next, &scratch.path().join("dev.log"))?;
    server.ready(PATIENCE).await?;
    let banner = banner(&server).await?;
    assert!(banner.contains(&next.to_string()), "{banner}");
    assert!(
        banner.contains(&taken.port().to_string()),
        "it does not say which one was taken: {banner}"
    );
    assert_eq!(server.stop(PATIENCE).await?.code, Some(0));
    server.process().passed();
    Ok(())
}

/// The model repeats its system prompt, so the prompt in force can be asked for.
const MIRROR: &str = r#"
[providers.mirror]
kind = "sim"
script = [{ match = "", reply = "{{ messages[0].content }}" }]

[models]
default = { provider = "mirror", model = "m" }

[agents.helper]
prompt = { file = "prompts/helper.md" }
"#;

#[tokio::test]
async fn a_changed_prompt_is_used_by_the_next_turn() -> Result<()> {
    let scratch = Scratch::new()?;
    scratch.write("clearway.toml", MIRROR)?;
    let prompt = scratch.write("prompts/helper.md", "Speak like a pirate.")?;
    let command = Command::new(&binary(), "dev", scratch.path());
    let mut server = command.start(free_port()?, &scratch.path().join("dev.log")).await?;
    let client = server.client();
    assert_eq!(ask(client, "ann", "hello").await?.trim(), "Speak like a pirate.");

    fs::write(&prompt, "Speak like a king.")?;
    let mut turns = 0;
    until("the new prompt is in force", PATIENCE, async || {
        turns += 1;
        Ok(ask(client, &format!("user {turns}"), "hello").await?.trim() == "Speak like a king.")
    })
    .await?;

    // A mistake is said, and what was in force stays in force.
    fs::write(&prompt, "Speak like {{ a king.")?;
    until("the mistake is said", PATIENCE, async || Ok(server.log().contains("helper.md"))).await?;
    assert_eq!(ask(client, "bob", "hello").await?.trim(), "Speak like a king.");
    assert_eq!(server.stop(PATIENCE).await?.code, Some(0));
    server.process().passed();
    Ok(())
}

/// One that takes its time and one that does not, and whose model it is.
fn served_by(provider: &str) -> String {
    let one = r#"[providers.one]
kind = "sim"
token_interval = "40ms"
script = [{ match = "", reply = "one one one one one one one one one one one one one one one one one one one one one one one one one one one one one one" }]"#;
    let two = r#"[providers.two]
kind = "sim"
script = [{ match = "", reply = "two" }]"#;
    let own = if provider == "one" { one } else { two };
    format!(
        "{own}\n[models]\ndefault = {{ provider = \"{provider}\", model = \"m\" }}\n[agents.helper]\n"
    )
}

#[tokio::test]
async fn a_provider_that_is_gone_finishes_what_it_began() -> Result<()> {
    let scratch = Scratch::new()?;
    scratch.write("clearway.toml", served_by("one"))?;
    let command = Command::new(&binary(), "dev", scratch.path());
    let mut server = command.start(free_port()?, &scratch.path().join("dev.log")).await?;
    let client = server.client();
    let mut early = JoinSet::new();
    early.spawn(ask(client, "ann", "hello"));
    until("it has begun", PATIENCE, async || {
        let runs = client.get("/runs?status=running").send().await?.expect(200)?.json();
        Ok(runs["runs"].as_array().is_some_and(|runs| !runs.is_empty()))
    })
    .await?;

    // At once, so that nobody reads half of it.
    fs::rename(
        scratch.write("next.toml", served_by("two"))?,
        scratch.path().join("clearway.toml"),
    )?;
    let mut turns = 0;
    until("the other provider is in force", PATIENCE, async || {
        turns += 1;
        Ok(ask(client, &format!("user {turns}"), "hello").await?.trim() == "two")
    })
    .await?;
    let early = early.join_next().await.context("nobody asked")???;
    assert_eq!(early.trim(), vec!["one"; 30].join(" "));
    let providers = client.get("/providers").send().await?.expect(200)?.json();
    let named = |name: &str| providers.to_string().contains(&format!("\"name\":\"{name}\""));
    assert!(named("two") && !named("one"), "{providers}");
    assert!(!server.log().contains("take effect after a restart"), "{}", server.log());
    assert_eq!(server.stop(PATIENCE).await?.code, Some(0));
    server.process().passed();
    Ok(())
}

const HELD: &str = r#"
[workflows.held.steps.hold]
do = "wait"
event = "go"
deadline = "1h"
[workflows.held.steps.say]
needs = ["hold"]
do = "template"
template = "templates/say.md"
save_as = "say.md"

[workflows.free.steps.say]
do = "template"
template = "templates/say.md"
save_as = "say.md"
"#;

#[tokio::test]
async fn a_changed_template_is_used_by_the_next_run_and_not_by_one_under_way() -> Result<()> {
    let scratch = Scratch::new()?;
    scratch.write("clearway.toml", HELD)?;
    let template = scratch.write("templates/say.md", "old")?;
    let command = Command::new(&binary(), "dev", scratch.path());
    let mut server = command.start(free_port()?, &scratch.path().join("dev.log")).await?;
    let client = server.client();
    let start = async |name: &str| -> Result<String> {
        let path = format!("/workflows/{name}/runs");
        let run = client.post(path).json(&json!({"input": {}})).send().await?.expect(202)?.json();
        Ok(run["run_id"].as_str().unwrap_or_default().to_owned())
    };
    let said = async |id: &str| -> Result<String> {
        until("the run has ended", PATIENCE, async || {
            let run = client.get(format!("/runs/{id}")).send().await?.expect(200)?.json();
            Ok(run["status"] == "success")
        })
        .await?;
        let file = client.get(format!("/runs/{id}/artifacts/say.md")).send().await?;
        Ok(file.expect(200)?.text())
    };
    let held = start("held").await?;
    until("it waits", PATIENCE, async || {
        let run = client.get(format!("/runs/{held}")).send().await?.expect(200)?.json();
        Ok(run["status"] == "waiting")
    })
    .await?;
    fs::write(&template, "new")?;
    until("the new template is in force", PATIENCE, async || {
        let id = start("free").await?;
        Ok(said(&id).await? == "new")
    })
    .await?;
    client.post(format!("/runs/{held}/signals/go")).json(&json!({})).send().await?.expect(202)?;
    assert_eq!(said(&held).await?, "old");
    assert_eq!(server.stop(PATIENCE).await?.code, Some(0));
    server.process().passed();
    Ok(())
}

#[tokio::test]
async fn the_first_watched_folder_costs_no_thread() -> Result<()> {
    let scratch = Scratch::new()?;
    let file = scratch.write("clearway.toml", MIRROR)?;
    scratch.write("prompts/helper.md", "Be brief.")?;
    scratch.write("docs/oak.md", "# Oak\n\nThe treasure lies under the oak.\n")?;
    let command = Command::new(&binary(), "dev", scratch.path());
    let mut server = command.start(free_port()?, &scratch.path().join("dev.log")).await?;
    let client = server.client();
    let threads = async || -> Result<serde_json::Value> {
        Ok(client.get("/health/ready").send().await?.expect(200)?.json()["threads"].clone())
    };
    let before = threads().await?;
    assert!(before.as_u64() > Some(1), "{before}");
    fs::write(&file, MIRROR.to_owned() + "\n[knowledge.docs]\nfolder = \"docs\"\n")?;
    let found = async || -> Result<bool> {
        let body = json!({"query": "treasure oak", "similarity_threshold": 0.01});
        let answer = client.post("/knowledge/search").json(&body).send().await?;
        Ok(answer.status == 200 && answer.text().contains("oak.md"))
    };
    until("the folder is indexed", PATIENCE, found).await?;
    // It is watched, too.
    scratch.write("docs/elm.md", "# Elm\n\nNothing lies under the elm.\n")?;
    until("the new file is noticed", PATIENCE, async || {
        let body = json!({"query": "elm", "similarity_threshold": 0.01});
        let answer = client.post("/knowledge/search").json(&body).send().await?;
        Ok(answer.text().contains("elm.md"))
    })
    .await?;
    assert_eq!(threads().await?, before);
    assert_eq!(server.stop(PATIENCE).await?.code, Some(0));
    server.process().passed();
    Ok(())
}
