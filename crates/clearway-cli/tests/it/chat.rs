//! Whole answers: shape, memory, and who waits for whom.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clearway_testkit::{Agent, SimOptions, World};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use crate::{binary, run_id};

#[tokio::test]
async fn a_turn_is_answered_and_remembered() -> Result<()> {
    let world = World::new(binary()).start().await?;
    let answer = world.chat("ann", "the blue bicycle").send().await?.expect(200)?;
    let first = answer.json();
    assert_eq!(first["user_id"], "ann");
    assert_eq!(first["conversation_id"], "default");
    assert_eq!(first["thread_id"], "bc::ann::default");
    let reply = first["reply"].as_str().unwrap_or_default();
    assert!(reply.contains("the blue bicycle"), "{first}");

    let run = world.run(&run_id(&answer.headers)?).await?;
    assert_eq!(run["status"], "success", "{run}");
    assert_eq!(run["door"], "cofounder", "{run}");
    assert_eq!(run["error"], json!(null), "{run}");
    assert_eq!(run["usage"]["calls"], 1, "{run}");
    world.check_log(&run_id(&answer.headers)?).await?;

    let second = world.chat("ann", "and now?").send().await?.expect(200)?.json();
    let reply = second["reply"].as_str().unwrap_or_default();
    assert!(reply.contains("turn 2"), "the model did not see the first turn: {second}");
    assert_eq!(world.state("ann").await?["message_count"], 4);

    let other = world.chat("bob", "hello").send().await?.expect(200)?.json();
    assert!(!other.to_string().contains("bicycle"), "{other}");
    assert_eq!(world.state("bob").await?["message_count"], 2);
    world.finish().await
}

#[tokio::test]
async fn a_conversation_can_be_started_over() -> Result<()> {
    let world = World::new(binary()).start().await?;
    world.chat("ann", "one").send().await?.expect(200)?;
    let reset = world.client().post("/reset").json(&json!({"user_id": "ann"})).send().await?;
    let reset = reset.expect(200)?.json();
    let expected = json!({
        "user_id": "ann", "conversation_id": "default", "thread_id": "bc::ann::default", "ok": true,
    });
    assert_eq!(reset, expected);
    assert_eq!(world.state("ann").await?["message_count"], 0);
    let again = world.chat("ann", "two").send().await?.expect(200)?.json();
    assert!(!again["reply"].as_str().unwrap_or_default().contains("turn 2"), "{again}");
    assert_eq!(world.state("ann").await?["message_count"], 2);
    world.finish().await
}

#[tokio::test]
async fn starting_over_stops_what_runs() -> Result<()> {
    let world =
        World::new(binary()).agent(Agent::new("cofounder").fault("no_answer")).start().await?;
    let stream = world.stream("ann", "one").open().await?.ok().await?;
    let run = run_id(&stream.headers)?;
    world.waits_for(&run, "first_byte").await?;
    world.client().post("/reset").json(&json!({"user_id": "ann"})).send().await?.expect(200)?;
    assert_eq!(world.ended(&run).await?["status"], "cancelled");
    world.sim().until("in_flight", 0, Duration::from_secs(2)).await?;
    world.finish().await
}

#[tokio::test]
async fn threads_run_side_by_side_and_turns_of_one_thread_in_order() -> Result<()> {
    let sim = SimOptions { ttft: Duration::from_millis(300), ..SimOptions::default() };
    let world = World::new(binary()).sim(sim).start().await?;
    let mut turns = JoinSet::new();
    for turn in 0..4 {
        turns.spawn(world.chat("ann", &format!("message {turn}")).send());
    }
    while let Some(answer) = turns.join_next().await {
        answer??.expect(200)?;
    }
    assert_eq!(world.sim().count("peak_in_flight").await?, 1, "two turns of a thread overlapped");
    assert_eq!(world.state("ann").await?["message_count"], 8);

    let mut users = JoinSet::new();
    for user in 0..8 {
        users.spawn(world.chat(&format!("user {user}"), "hello").send());
    }
    while let Some(answer) = users.join_next().await {
        answer??.expect(200)?;
    }
    assert_eq!(world.sim().count("peak_in_flight").await?, 8, "threads waited for each other");
    world.finish().await
}

/// `::` joins user and conversation in the shown thread id, so two conversations can look alike;
/// they must not be one.
#[tokio::test]
async fn ids_with_separators_stay_apart() -> Result<()> {
    let world = World::new(binary()).start().await?;
    let turn = |user: &str, conversation: &str| {
        let body = json!({"user_id": user, "conversation_id": conversation, "message": "hello"});
        world.client().post("/chat").json(&body).send()
    };
    let one = turn("a::b", "c").await?.expect(200)?.json();
    let two = turn("a", "b::c").await?.expect(200)?.json();
    assert_eq!(one["thread_id"], two["thread_id"], "they are spelt alike");
    for (user, conversation) in [("a::b", "c"), ("a", "b::c")] {
        let path = format!("/state?user_id={user}&conversation_id={conversation}");
        let state = world.client().get(path).send().await?.expect(200)?.json();
        assert_eq!(state["message_count"], 2, "{user} {conversation}: {state}");
    }
    world.finish().await
}

/// What `clearway chat` answers to lines that are piped into it.
async fn chatted(world: &World, args: &[&str], lines: &str) -> Result<String> {
    let mut chat = binary().command(world.scratch().path());
    chat.arg("chat").args(args).env("CLEARWAY_SERVER", format!("http://{}", world.address()));
    chat.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut chat = chat.spawn()?;
    let mut input = chat.stdin.take().context("no input")?;
    input.write_all(lines.as_bytes()).await?;
    drop(input);
    let output = chat.wait_with_output().await?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    Ok(text(&output.stdout))
}

/// The human messages of a state that a chat printed.
fn said(printed: &str) -> Result<Vec<String>> {
    let from = printed.find('{').context("no state")?;
    let state: Value = serde_json::from_str(&printed[from..])?;
    let messages = state["messages"].as_array().context("no messages")?.iter();
    let humans = messages.filter(|message| message["type"] == "human");
    Ok(humans.filter_map(|message| message["content"].as_str()).map(ToOwned::to_owned).collect())
}

#[tokio::test]
async fn a_conversation_in_the_terminal_is_forked() -> Result<()> {
    let world = World::new(binary()).start().await?;
    // With an agent by name, and from the default one's conversation.
    let lines = "one\n/fork\ntwo\n/state\n";
    for args in [&["cofounder"][..], &[]] {
        let printed = chatted(&world, args, lines).await?;
        assert_eq!(said(&printed)?, ["one", "two"], "{args:?}: {printed}");
    }
    let threads = world.client().post("/threads/search").json(&json!({})).send().await?;
    let threads = threads.expect(200)?.json();
    let turns = threads.as_array().context("no threads")?.iter().map(|thread| {
        let messages = thread["values"]["messages"].as_array();
        messages.map_or(0, Vec::len)
    });
    let mut turns: Vec<usize> = turns.collect();
    turns.sort_unstable();
    assert_eq!(turns, [2, 2, 4, 4], "the originals stay as they were");
    let output = world.cli(&["chat", "nobody", "-m", "hello"]).await?;
    assert_ne!(output.code, Some(0));
    assert!(output.stderr.contains("nobody"), "{}", output.stderr);
    world.finish().await
}
