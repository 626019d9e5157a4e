//! The campaign door from outside: keys and owners, sockets, webhooks, one bad campaign beside a
//! good one.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clearway_testkit::{PATIENCE, Pool, World, until};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::binary;

/// A small campaign whose brief says what becomes of it.
const CAMPAIGN: &str = r#"
[models.default]
provider = "lab"
model = "m"

[models.hung]
provider = "lab"
model = "m+no_answer"

[models.cut]
provider = "lab"
model = "m+cut_rst:2"

[workflows.campaign]
pool = "campaigns"
input = { product = "string", client = "string", target_audience = "string", goals = "string[]", key_features = "string[]", username = "string?", kind = "string = 'good'" }

[workflows.campaign.steps.plan]
title = "Plan"
category = "planning"
do = "llm"
prompt = "Plan a campaign for {{ input.product }}."

[workflows.campaign.steps.which]
category = "internal"
needs = ["plan"]
do = "branch"
when = [
  { if = "input.kind == 'hang'", go = "hang" },
  { if = "input.kind == 'cut'", go = "cut" },
  { if = "input.kind == 'large'", go = "large" },
  { if = "input.kind == 'broken'", go = "broken" },
  { if = "input.kind == 'slow'", go = "slow" },
  { if = "input.kind == 'ask'", go = "ask" },
  { else = true, go = "page" },
]

[workflows.campaign.steps.hang]
category = "creative"
do = "llm"
model = "hung"
deadline = "1s"
prompt = "Say something."

[workflows.campaign.steps.slow]
category = "creative"
do = "llm"
model = "hung"
deadline = "60s"
prompt = "Say something."

[workflows.campaign.steps.cut]
category = "creative"
do = "llm"
model = "cut"
prompt = "Say something."

[workflows.campaign.steps.large]
category = "creative"
do = "template"
template = "large.txt"
save_as = "large.txt"

[workflows.campaign.steps.broken]
category = "creative"
do = "template"
template = "broken.txt"
save_as = "broken.txt"

[workflows.campaign.steps.ask]
category = "internal"
do = "ask"
question = "Publish it?"
choices = ["approve", "reject"]
wait = "1h"
on_timeout = "reject"

[workflows.campaign.steps.answered]
category = "internal"
needs = ["ask"]
do = "branch"
when = [{ if = "ask.choice == 'reject'", go = "broken" }, { else = true, go = "page" }]

[workflows.campaign.steps.page]
title = "Website"
category = "execution"
do = "template"
template = "page.html"
save_as = "{{ run.key }}_campaign_website.html"
type = "text/html"

[doors.campaigns]
dialect = "campaigns"
mount = "/api/v1"
agent = "campaign"
"#;

fn world() -> clearway_testkit::Builder {
    // More than a step may hold in memory.
    let large = "{% for i in range(2000) %}{{ 'x' * 100000 }}{% endfor %}";
    World::new(binary())
        .config(|config| {
            config.pools.push(Pool { name: "campaigns", slots: 4, queue: 50 });
            config.extra.push_str(CAMPAIGN);
        })
        .file("large.txt", large)
        .file("broken.txt", "line one\n{{ input.goals[7].name }}\n")
        .file("page.html", "<!doctype html><title>{{ input.product }}</title>")
}

fn brief(kind: &str, user: &str) -> Value {
    json!({
        "product": "Lamp", "client": "Lumen", "target_audience": "all", "goals": ["sell"],
        "key_features": ["light"], "username": user, "kind": kind,
    })
}

async fn start(world: &World, kind: &str) -> Result<String> {
    let request = world.client().post("/api/v1/campaigns").json(&brief(kind, "ann"));
    let answer = request.send().await?.expect(202)?.json();
    Ok(answer["campaign_id"].as_str().context("no id")?.to_owned())
}

async fn get(world: &World, path: &str) -> Result<Value> {
    Ok(world.client().get(path).send().await?.expect(200)?.json())
}

async fn until_ended(world: &World, id: &str) -> Result<Value> {
    let path = format!("/api/v1/campaigns/{id}");
    until("the campaign is over", PATIENCE, async || {
        let status = get(world, &path).await?["status"].clone();
        Ok(!matches!(status.as_str(), Some("queued" | "running")))
    })
    .await?;
    get(world, &path).await
}

#[tokio::test]
async fn bad_campaigns_end_with_their_own_errors_and_the_good_one_ends_well() -> Result<()> {
    let world = world().start().await?;
    let mut ids = Vec::new();
    for kind in ["hang", "cut", "large", "broken", "good"] {
        ids.push(start(&world, kind).await?);
    }
    let mut ends = Vec::new();
    for id in &ids {
        ends.push(until_ended(&world, id).await?);
    }
    let code = |at: usize| ends[at]["error"]["code"].as_str().unwrap_or_default().to_owned();
    let text = |at: usize| ends[at]["message"].as_str().unwrap_or_default().to_owned();
    assert_eq!(code(0), "deadline_exceeded", "{}", ends[0]);
    assert!(code(1).starts_with("upstream."), "{}", ends[1]);
    // It would have made two hundred megabytes.
    assert_eq!(code(2), "limit_exceeded", "{}", ends[2]);
    assert!(text(2).contains("large.txt") && text(2).contains("step_bytes"), "{}", ends[2]);
    assert_eq!(code(3), "template_failed", "{}", ends[3]);
    assert!(text(3).contains("broken.txt, line 2"), "{}", ends[3]);
    assert_eq!(ends[4]["status"], "completed", "{}", ends[4]);
    let list = get(&world, "/api/v1/campaigns").await?;
    assert_eq!((list["completed"].as_u64(), list["failed"].as_u64()), (Some(1), Some(4)), "{list}");
    // The step that went wrong says why.
    let steps = get(&world, &format!("/api/v1/campaigns/{}/workflow-steps", ids[1])).await?;
    let steps = steps["workflow_steps"].as_array().context("no steps")?;
    let cut = steps.iter().find(|step| step["id"] == "cut").context("no such step")?;
    assert_eq!((&cut["status"], &cut["error_count"]), (&json!("failed"), &json!(1)), "{cut}");
    assert_eq!(cut["error_message"], ends[1]["message"], "{cut}");
    let figures = get(&world, "/api/v1/analytics/campaigns").await?;
    assert_eq!(figures["failures"]["limit_exceeded"], 1, "{figures}");
    assert_eq!(figures["failures"]["template_failed"], 1, "{figures}");
    world.finish().await
}

#[tokio::test]
async fn progress_stands_still_while_the_provider_does_and_says_why() -> Result<()> {
    let world = world().start().await?;
    let id = start(&world, "slow").await?;
    let path = format!("/api/v1/campaigns/{id}/progress");
    until("it waits for the provider", PATIENCE, async || {
        let progress = get(&world, &path).await?;
        Ok(progress["progress"]["step"] == "slow" && progress["waiting_on"]["kind"] == "first_byte")
    })
    .await?;
    let before = get(&world, &path).await?;
    until("two seconds have passed", PATIENCE, async || {
        let now = get(&world, &path).await?;
        Ok(now["execution_time"].as_f64() > before["execution_time"].as_f64().map(|at| at + 2.0))
    })
    .await?;
    let after = get(&world, &path).await?;
    for figure in ["progress_percentage", "completed_steps", "step"] {
        assert_eq!(after["progress"][figure], before["progress"][figure], "{figure}: {after}");
    }
    assert_eq!(after["last_update"], before["last_update"]);
    let early = world.client().get(format!("/api/v1/campaigns/{id}/website")).send().await?;
    assert_eq!(early.status, 400, "{}", early.text());
    let cancel = world.client().post(format!("/api/v1/campaigns/{id}/cancel")).send().await?;
    assert!(matches!(cancel.status, 200 | 202), "{}", cancel.text());
    assert_eq!(until_ended(&world, &id).await?["status"], "cancelled");
    world.finish().await
}

const AUTH: &str = r#"
[auth]
keys = [
  { name = "ann", key = "${ANN_KEY}", user = "ann" },
  { name = "bob", key = "${BOB_KEY}", user = "bob" },
  { name = "root", key = "${ROOT_KEY}", admin = true },
]
"#;

const ANN: &str = "the-key-of-ann-1234567890";
const BOB: &str = "the-key-of-bob-1234567890";
const ROOT: &str = "the-key-of-root-1234567890";

#[tokio::test]
async fn with_keys_everybody_sees_their_own_campaigns() -> Result<()> {
    let world = world()
        .config(|config| config.extra.push_str(AUTH))
        .env("ANN_KEY", ANN)
        .env("BOB_KEY", BOB)
        .env("ROOT_KEY", ROOT)
        .start()
        .await?;
    let client = world.client();
    let open = client.get("/api/v1/campaigns").send().await?;
    assert_eq!(open.status, 401, "{}", open.text());
    assert_eq!(client.get("/health/ready").send().await?.status, 200);
    let make = |key: &str, user: &str| {
        let request = client.post("/api/v1/campaigns/generate").header("x-api-key", key);
        request.json(&brief("good", user))
    };
    let forged = make(BOB, "ann").send().await?;
    assert_eq!(forged.status, 403, "{}", forged.text());
    let made = make(ANN, "ann").send().await?.expect(200)?.json();
    let id = made["campaign_id"].as_str().context("no id")?.to_owned();
    for rest in ["", "/status", "/progress", "/workflow-steps", "/artifacts", "/stream", "/zip"] {
        let path = format!("/api/v1/campaigns/{id}{rest}");
        for (key, status) in [(ANN, 200), (BOB, 403), (ROOT, 200)] {
            let request = client.get(&path).header("authorization", format!("Bearer {key}"));
            assert_eq!(request.send().await?.status, status, "{path} {key}");
        }
    }
    for (key, seen) in [(ANN, 1), (BOB, 0), (ROOT, 1)] {
        let request = client.get("/api/v1/campaigns").header("x-api-key", key);
        assert_eq!(request.send().await?.expect(200)?.json()["total"], seen, "{key}");
    }
    let run = made["run_id"].as_str().context("no run")?;
    let other = client.get(format!("/runs/{run}")).header("x-api-key", BOB).send().await?;
    assert_eq!(other.status, 404);
    // The log ends before the server does.
    until("it is completed", PATIENCE, async || {
        let request = client.get(format!("/api/v1/campaigns/{id}")).header("x-api-key", ANN);
        Ok(request.send().await?.expect(200)?.json()["status"] == "completed")
    })
    .await?;
    world.finish().await
}

/// A WebSocket client, as much of one as a test needs.
struct Socket {
    stream: TcpStream,
    bytes: Vec<u8>,
}

impl Socket {
    async fn open(world: &World, path: &str) -> Result<Self> {
        let mut stream = TcpStream::connect(world.address()).await?;
        let head = format!(
            "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        let mut socket = Self { stream, bytes: Vec::new() };
        let end = loop {
            if let Some(at) = socket.bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            socket.more().await?;
        };
        let head: Vec<u8> = socket.bytes.drain(..end).collect();
        let head = String::from_utf8_lossy(&head);
        ensure!(head.starts_with("HTTP/1.1 101"), "{head}");
        Ok(socket)
    }

    async fn more(&mut self) -> Result<()> {
        let mut piece = [0; 4096];
        let read = timeout(PATIENCE, self.stream.read(&mut piece)).await??;
        ensure!(read > 0, "the socket closed in the middle");
        self.bytes.extend_from_slice(&piece[..read]);
        Ok(())
    }

    /// The next text, or `None` when the server closes.
    async fn next(&mut self) -> Result<Option<Value>> {
        loop {
            while self.bytes.len() < 4 {
                self.more().await?;
            }
            let (kind, short) = (self.bytes[0] & 0xf, usize::from(self.bytes[1]));
            let (head, length) = match short {
                126 => (4, usize::from(u16::from_be_bytes([self.bytes[2], self.bytes[3]]))),
                127 => bail!("a frame of more than 64 KiB"),
                short => (2, short),
            };
            while self.bytes.len() < head + length {
                self.more().await?;
            }
            let frame: Vec<u8> = self.bytes.drain(..head + length).skip(head).collect();
            match kind {
                1 => return Ok(Some(serde_json::from_slice(&frame)?)),
                8 => return Ok(None),
                _ => {}
            }
        }
    }

    async fn rest(&mut self) -> Result<Vec<Value>> {
        let mut all = Vec::new();
        while let Some(value) = self.next().await? {
            all.push(value);
        }
        Ok(all)
    }
}

#[tokio::test]
async fn a_socket_tells_a_campaign_and_goes_on_where_its_reader_was() -> Result<()> {
    let world = world().start().await?;
    let id = start(&world, "ask").await?;
    let path = format!("/api/v1/campaigns/{id}/ws");
    let mut socket = Socket::open(&world, &path).await?;
    let mut first = Vec::new();
    let asks = loop {
        let item = socket.next().await?.context("it ended before it asked")?;
        let asks = item["status"] == "waiting" && item["type"].is_null();
        first.push(item.clone());
        if asks {
            break item;
        }
    };
    // Its reader leaves; a person answers; the campaign goes on with another run.
    drop(socket);
    let answer = world.client().post(format!("/api/v1/campaigns/{id}/answer"));
    answer.json(&json!({"answer": "approve"})).send().await?.expect(202)?;
    let seen = asks["event_id"].as_str().context("no id")?;
    let mut socket = Socket::open(&world, &format!("{path}?after={seen}")).await?;
    let rest = socket.rest().await?;
    let last = rest.last().context("nothing more")?;
    assert_eq!((&last["type"], &last["status"]), (&json!("completion"), &json!("completed")));
    assert!(rest.iter().any(|item| item["agent"] == "page"), "{rest:?}");
    let all = Socket::open(&world, &path).await?.rest().await?;
    let joined: Vec<&Value> = first.iter().chain(&rest).collect();
    assert_eq!(joined, all.iter().collect::<Vec<_>>(), "no gap and nothing twice");
    // The same as a stream.
    let stream = world.client().get(format!("/api/v1/campaigns/{id}/stream")).send().await?;
    let lines: Vec<Value> = stream
        .text()
        .lines()
        .filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok())
        .collect();
    assert_eq!(lines.len(), all.len());
    assert_eq!(lines.last().map(|last| &last["type"]), Some(&json!("completion")));

    let mut all = Socket::open(&world, "/api/v1/campaigns/progress/ws").await?;
    let snapshot = all.next().await?.context("no snapshot")?;
    assert_eq!((&snapshot["type"], &snapshot["completed"]), (&json!("snapshot"), &json!(1)));
    let other = start(&world, "good").await?;
    let mut told = Vec::new();
    while told.last().is_none_or(|last: &Value| last["type"] != "completion") {
        told.push(all.next().await?.context("it ended")?);
    }
    assert!(told.iter().all(|item| item["campaign_id"] == other.as_str()), "{told:?}");
    drop(all);
    world.finish().await
}

/// A receiver that refuses the first delivery.
pub(crate) async fn receive(listener: &TcpListener, status: &str) -> Result<(String, String)> {
    let (mut stream, _) = timeout(PATIENCE, listener.accept()).await.context("no webhook")??;
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.unwrap_or("0").parse::<usize>()? {
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await?;
                return Ok((head.to_owned(), body.to_owned()));
            }
        }
        let mut piece = [0; 4096];
        let read = timeout(PATIENCE, stream.read(&mut piece)).await??;
        ensure!(read > 0, "the sender left in the middle: {text}");
        bytes.extend_from_slice(&piece[..read]);
    }
}

#[tokio::test]
async fn a_webhook_is_signed_tried_again_and_never_sent_inside() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let world = world()
        .config(|config| {
            config.extra.push_str(
                "\n[webhooks]\nsecret = \"${HOOK_SECRET}\"\nallow = [\"127.0.0.1\"]\nbackoff = \"50ms\"\n",
            );
        })
        .env("HOOK_SECRET", "a secret")
        .start()
        .await?;
    let mut with = brief("good", "ann");
    with["webhook"] = format!("http://{address}/told?by=clearway").into();
    let client = world.client();
    let made = client.post("/api/v1/campaigns").json(&with).send().await?.expect(202)?.json();
    let (_, first) = receive(&listener, "500 Oh no").await?;
    let (head, body) = receive(&listener, "204 No Content").await?;
    assert!(head.starts_with("POST /told?by=clearway HTTP/1.1\r\n"), "{head}");
    let told: Value = serde_json::from_str(&body)?;
    assert_eq!(told["run"]["run_id"], made["run_id"]);
    assert_eq!((&told["run"]["status"], &told["attempt"]), (&json!("success"), &json!(2)));
    let before: Value = serde_json::from_str(&first)?;
    assert_eq!(told["delivery_id"], before["delivery_id"], "the same delivery");
    let signature = head
        .lines()
        .find_map(|line| line.strip_prefix("x-clearway-signature: t="))
        .context("not signed")?;
    let (at, hex) = signature.split_once(",v1=").context("no signature")?;
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"a secret");
    let tag = ring::hmac::sign(&key, format!("{at}.{body}").as_bytes());
    let expected: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, expected);
    for inside in
        ["http://10.0.0.1/x", "http://169.254.169.254/latest", "http://[::1]/", "file:///x"]
    {
        with["webhook"] = inside.into();
        let refused = client.post("/api/v1/campaigns").json(&with).send().await?;
        assert_eq!(refused.status, 400, "{inside}: {}", refused.text());
    }
    world.finish().await
}

#[tokio::test]
async fn blocking_work_runs_beside_everything_else() -> Result<()> {
    let world = world().start().await?;
    let client = world.client();
    let began = std::time::Instant::now();
    let calls = (0..8).map(|_| client.get("/api/v1/test/thread-pool").send());
    let mut answers = Vec::new();
    for answer in futures_util::future::join_all(calls).await {
        answers.push(answer?.expect(200)?.json());
    }
    // One after the other they would take sixteen seconds.
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    for answer in &answers {
        assert!(answer["result"]["work_ms"].as_f64() >= Some(2000.0), "{answer}");
        assert!(answer["result"]["probes"].as_u64() > Some(50), "{answer}");
    }
    let health = get(&world, "/api/v1/health").await?;
    for field in [
        "status",
        "timestamp",
        "version",
        "llm_model",
        "openai_available",
        "workflow_ready",
        "authentication",
        "thread_pool_ready",
        "pools",
        "queue",
        "providers",
        "breakers",
        "store",
        "workers",
        "threads",
        "open_files",
        "memory_bytes",
        "scheduler_lag_ms",
    ] {
        assert!(!health[field].is_null(), "{field}: {health}");
    }
    world.finish().await
}
