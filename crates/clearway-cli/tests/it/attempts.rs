//! The books: a row for every attempt at a provider call, whatever became of it.

use anyhow::Result;
use clearway_testkit::{Agent, PATIENCE, World, until_some};
use serde_json::{Value, json};

use crate::{binary, run_id};

const PRICED: &str = r#"
[models.priced]
provider = "lab"
model = "m+server_error_once"
price = { input = 1.0, output = 2.0 }
[agents.priced]
model = "priced"
prompt = "Be brief."
[doors.priced]
dialect = "cofounder"
mount = "/priced"
agent = "priced"
[models.embed]
provider = "lab"
model = "text-embedding-3-small"
price = { input = 0.02 }
"#;

async fn attempts(world: &World, path: &str) -> Result<Vec<Value>> {
    let page = world.client().get(path).send().await?.expect(200)?.json();
    assert!(page["next"].is_null(), "{page}");
    Ok(page["attempts"].as_array().cloned().unwrap_or_default())
}

#[tokio::test]
async fn every_attempt_has_a_row() -> Result<()> {
    let cut = Agent::new("cut").fault("cut_end:3");
    let held = Agent::new("held").fault("stall:3");
    let world = World::new(binary())
        .config(|config| {
            config.agents = vec![Agent::new("cofounder"), cut, held];
            config.extra = PRICED.to_owned();
        })
        .start()
        .await?;

    // One that fails, and one that is good; together they are what the run used.
    let body = json!({"user_id": "ann", "message": "hello"});
    let answer = world.client().post("/priced/chat").json(&body).send().await?.expect(200)?;
    let run = run_id(&answer.headers)?;
    let rows = attempts(&world, &format!("/runs/{run}/attempts")).await?;
    let [failed, good] = &rows[..] else { panic!("{rows:?}") };
    assert_eq!(
        (&failed["outcome"], &failed["status"], &failed["source"], &failed["cost"]),
        (&json!("upstream.server_error"), &json!(500), &json!("none"), &json!(0.0)),
        "{failed}"
    );
    assert_eq!(
        (&good["outcome"], &good["attempt"], &good["source"], &good["phase"]),
        (&json!("ok"), &json!(2), &json!("provider"), &json!("stream")),
        "{good}"
    );
    for row in &rows {
        assert_eq!((&row["provider"], &row["class"]), (&json!("lab"), &json!("interactive")));
        assert_eq!(row["price"], json!({"input": 1.0, "cached_input": 1.0, "output": 2.0}));
        assert!(row["endpoint"].as_str().is_some_and(|url| url.starts_with("http://127.")));
        assert!(row["call"].as_str().is_some_and(|call| call.starts_with(&run)), "{row}");
    }
    let usage = &world.run(&run).await?["usage"];
    assert_eq!(usage["calls"], 2, "{usage}");
    for name in ["input_tokens", "output_tokens", "cost"] {
        assert_eq!(usage[name], good[name], "{name}");
    }
    let shown = world.cli(&["runs", "show", &run]).await?.expect(0)?.stdout;
    assert!(shown.contains("upstream.server_error") && shown.contains("lab/m+"), "{shown}");

    // One that broke off, and one that was left: what had come is estimated.
    let answer = world.client().post("/cut/chat").json(&body).send().await?.expect(502)?;
    let rows = attempts(&world, &format!("/runs/{}/attempts", run_id(&answer.headers)?)).await?;
    let [cut] = &rows[..] else { panic!("{rows:?}") };
    assert_eq!(
        (&cut["outcome"], &cut["source"]),
        (&json!("upstream.stream_truncated"), &json!("partial"))
    );
    assert!(cut["output_tokens"].as_u64() > Some(0) && cut["cost"].is_null(), "{cut}");
    let held = world.client().post("/held/chat/stream").json(&body).open().await?.ok().await?;
    let run = run_id(&held.headers)?;
    world.waits_for(&run, "next_token").await?;
    world.cancel(&run, "?wait=1").await?.expect(200)?;
    let rows = attempts(&world, &format!("/runs/{run}/attempts")).await?;
    let [left] = &rows[..] else { panic!("{rows:?}") };
    assert_eq!((&left["outcome"], &left["source"]), (&json!("cancelled"), &json!("partial")));

    // Texts that are embedded belong to no run; their rows follow within a second or so.
    let texts = json!({"model": "embed", "input": ["one text", "another"]});
    world.client().post("/v1/embeddings").json(&texts).send().await?.expect(200)?;
    let found = until_some("the row of an embedding", PATIENCE, async || {
        Ok(attempts(&world, "/providers/attempts").await?.pop())
    });
    let row = found.await?;
    assert_eq!(
        (&row["outcome"], &row["run_id"], &row["node"], &row["output_tokens"]),
        (&json!("ok"), &Value::Null, &Value::Null, &json!(0)),
        "{row}"
    );
    assert!(row["input_tokens"].as_u64() > Some(0) && row["cost"].as_f64() > Some(0.0), "{row}");
    world.finish().await
}
