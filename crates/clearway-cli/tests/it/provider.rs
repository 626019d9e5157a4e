//! A provider that misbehaves: never a short success, never a leak, always a precise reason.

use std::time::Duration;

use anyhow::{Context, Result};
use clearway_testkit::{Agent, World};
use serde_json::json;

use crate::{binary, last, run_id};

/// Faults, and the code that a turn against each fails with.
const FAULTS: [(&str, &str, &str); 8] = [
    ("cut_end", "cut_end:3", "upstream.stream_truncated"),
    ("cut_fin", "cut_fin:3", "upstream.stream_truncated"),
    ("cut_chunk", "cut_chunk:3", "upstream.stream_truncated"),
    ("cut_rst", "cut_rst:3", "upstream.stream_truncated"),
    ("error_event", "error_event:3", "upstream.server_error"),
    ("html", "html_200", "upstream.bad_response"),
    ("forbidden", "forbidden", "upstream.forbidden"),
    ("no_model", "model_not_found", "upstream.model_unavailable"),
];

#[tokio::test]
async fn a_part_is_never_taken_for_the_whole() -> Result<()> {
    let mut agents = vec![Agent::new("cofounder")];
    agents.extend(FAULTS.map(|(name, fault, _)| Agent::new(name).fault(fault)));
    let world = World::new(binary()).config(|config| config.agents = agents).start().await?;
    for (name, fault, code) in FAULTS {
        let body = json!({"user_id": "ann", "message": "hello"});
        let answer = world.client().post(format!("/{name}/chat")).json(&body).send().await?;
        let answer = answer.expect(502).context(fault)?;
        assert_eq!(answer.code(), code, "{fault}: {}", answer.text());
        let run = world.run(&run_id(&answer.headers)?).await?;
        assert_eq!(
            (&run["status"], &run["error"]["code"]),
            (&json!("error"), &json!(code)),
            "{fault}: {run}"
        );

        let body = json!({"user_id": "bob", "message": "hello"});
        let stream = world
            .client()
            .post(format!("/{name}/chat/stream"))
            .json(&body)
            .open()
            .await?
            .ok()
            .await?;
        let run = run_id(&stream.headers)?;
        let events = stream.rest().await.context(fault)?;
        assert_eq!(last(&events)["type"], "error", "{fault}");
        assert_eq!(last(&events)["detail"]["error_type"], code, "{fault}");
        assert!(!events.iter().any(|event| event.kind() == "final"), "{fault}: a short success");
        world.check_log(&run).await?;
    }
    world.sim().until("in_flight", 0, Duration::from_secs(1)).await?;
    world.chat("ann", "hello").send().await?.expect(200)?;
    world.finish().await
}

/// Odd bytes that are no fault: the answer is the same.
#[tokio::test]
async fn odd_bytes_are_understood() -> Result<()> {
    let faults = ["one_byte", "mixed_eol", "multi_line", "split_utf8", "bom", "no_usage", "crlf"];
    let agents = faults.map(|fault| Agent::new(fault).fault(fault)).into();
    let world = World::new(binary()).config(|config| config.agents = agents).start().await?;
    for (at, fault) in faults.into_iter().enumerate() {
        let mount = if at == 0 { String::new() } else { format!("/{fault}") };
        let body = json!({"user_id": "ann", "message": "the blue bicycle"});
        let answer = world.client().post(format!("{mount}/chat")).json(&body).send().await?;
        let answer = answer.expect(200).context(fault)?;
        assert!(answer.text().contains("the blue bicycle"), "{fault}: {}", answer.text());
        world.check_log(&run_id(&answer.headers)?).await?;
        // The threads are one user's, and the door does not matter for that.
        world.client().post("/reset").json(&json!({"user_id": "ann"})).send().await?.expect(200)?;
    }
    world.finish().await
}
