//! Alerts of the configuration: raised, told, shown, cleared.

use std::time::Duration;

use anyhow::{Context, Result};
use clearway_testkit::{Agent, PATIENCE, Pool, World, until};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::binary;
use crate::campaigns::receive;

#[tokio::test]
async fn a_queue_that_stays_full_is_told_and_so_is_its_end() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let world = World::new(binary())
        .config(|config| {
            let stuck = Agent::new("stuck").fault("no_answer").line("pool = \"narrow\"");
            config.agents = vec![stuck];
            config.pools.push(Pool { name: "narrow", slots: 1, queue: 2 });
            config.extra = format!(
                "[webhooks]\nsecret = \"${{HOOK_SECRET}}\"\nallow = [\"127.0.0.1\"]\n\n\
                 [alerts]\nwebhook = \"http://{address}/alerts\"\nhold = \"1s\"\nqueue = 0.9\n"
            );
        })
        .env("HOOK_SECRET", "a secret")
        .start()
        .await?;
    let client = world.client();
    let attention = async || -> Result<Vec<Value>> {
        let all = client.get("/attention").send().await?.expect(200)?.json();
        Ok(all["alerts"].as_array().context("alerts")?.clone())
    };
    assert_eq!(attention().await?, [] as [Value; 0]);
    let mut runs = Vec::new();
    for user in ["ann", "bob", "eve"] {
        let body = json!({"user_id": user, "message": "hello"});
        let task = client.post("/chat/async").json(&body).send().await?.expect(202)?.json();
        runs.push(task["task_id"].as_str().context("no id")?.to_owned());
    }
    let (head, body) = receive(&listener, "200 OK").await?;
    assert!(head.contains("x-clearway-event: alert"), "{head}");
    assert!(head.contains("x-clearway-signature: t="), "{head}");
    let told: Value = serde_json::from_str(&body)?;
    assert_eq!(told["type"], "alert.raised", "{told}");
    let alert = &told["alert"];
    assert_eq!((&alert["alert"], &alert["subject"]), (&json!("queue"), &json!("narrow")), "{told}");
    let shown = attention().await?;
    assert_eq!(shown[0]["state"], "raised", "{shown:?}");
    let printed = world.cli(&["attention"]).await?.stdout;
    assert!(printed.contains("alert queue since"), "{printed}");
    for run in &runs {
        world.cancel(run, "").await?;
    }
    let (_, body) = receive(&listener, "200 OK").await?;
    let told: Value = serde_json::from_str(&body)?;
    assert_eq!(told["type"], "alert.cleared", "{told}");
    until("nothing is shown any more", PATIENCE.min(Duration::from_secs(10)), async || {
        Ok(attention().await?.is_empty())
    })
    .await?;
    world.finish().await
}

#[tokio::test]
async fn mistakes_in_alerts_are_underlined() -> Result<()> {
    let scratch = clearway_testkit::Scratch::new()?;
    scratch.write(
        "clearway.toml",
        "[alerts]\nwebhook = \"http://10.0.0.1/x\"\nqueue = 1.5\nmemory = 3\n",
    )?;
    let mut check = binary().command(scratch.path());
    check.args(["check"]);
    let output = check.output().await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{text}");
    for part in ["10.0.0.1", "`alerts.queue` must be from 0 to 1", "memory_bytes"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    Ok(())
}
