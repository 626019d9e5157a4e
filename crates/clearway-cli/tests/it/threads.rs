//! `clearway threads` and the addresses behind it.

use anyhow::{Context, Result};
use clearway_testkit::World;
use serde_json::json;

use crate::binary;

#[tokio::test]
async fn threads_are_shown_pruned_and_gone_back_on() -> Result<()> {
    let world = World::new(binary()).start().await?;
    for message in ["one", "two", "three"] {
        world.chat("ann", message).send().await?.expect(200)?;
    }
    let listed = world.cli(&["threads", "ls"]).await?.expect(0)?;
    assert!(listed.stdout.contains("cofounder: ann"), "{}", listed.stdout);
    let threads = world.cli(&["--json", "threads", "ls"]).await?.expect(0)?.json()?;
    let thread = threads["threads"][0]["thread_id"].as_str().context("no thread")?;

    let history = world.cli(&["--json", "threads", "history", thread]).await?.expect(0)?.json()?;
    let checkpoints = history["checkpoints"].as_array().context("no checkpoints")?;
    assert_eq!(checkpoints.len(), 6, "an input and a superstep per turn: {history}");
    assert_eq!(checkpoints[0]["head"], true);
    // The second turn's input: its answer is due.
    let input = checkpoints[3]["checkpoint"].as_str().context("no id")?;
    assert_eq!(checkpoints[3]["source"], "input");
    let at = format!("/storage/threads/{thread}?checkpoint={input}");
    let values = world.client().get(at).send().await?.expect(200)?.json();
    assert_eq!(values["values"]["messages"].as_array().map(Vec::len), Some(3));

    let run = world.cli(&["--json", "threads", "fork", thread, input]).await?.expect(0)?.json()?;
    world.ended(run["run_id"].as_str().context("no run")?).await?;
    let shown = world.cli(&["--json", "threads", "show", thread]).await?.expect(0)?.json()?;
    assert_eq!(shown["values"]["messages"].as_array().map(Vec::len), Some(4), "{shown}");

    let before = shown["storage"]["checkpoints"].as_u64().context("no count")?;
    let pruned = world.cli(&["threads", "prune", thread, "--keep", "1"]).await?.expect(0)?;
    assert!(pruned.stdout.contains("checkpoints dropped"), "{}", pruned.stdout);
    let storage = world.cli(&["--json", "threads", "storage", thread]).await?.expect(0)?.json()?;
    assert!(storage["checkpoints"].as_u64().context("no count")? < before, "{storage}");
    let after = world.cli(&["--json", "threads", "show", thread]).await?.expect(0)?.json()?;
    assert_eq!(after["values"], shown["values"], "what the thread holds is as before");
    // And it goes on.
    world.chat("ann", "four").send().await?.expect(200)?;

    let client = world.client();
    let nobody = "/storage/threads/018f2b1e-0000-7000-8000-000000000001";
    assert_eq!(client.get(nobody).send().await?.expect(404)?.code(), "thread_not_found");
    let bad = client.post(format!("/storage/threads/{thread}/prune"));
    for (body, part) in [
        (json!({"keep": 0}), "`keep` must be"),
        (json!({}), "`keep` must be"),
        (json!({"keep": 1, "force": true}), "no field `force`"),
    ] {
        let answer = bad.clone().json(&body).send().await?.expect(400)?;
        assert!(answer.text().contains(part), "{body}: {}", answer.text());
    }
    world.finish().await
}
