//! A flood that has waited for so long that ageing lifts it: small tenants still get their turn.

use std::time::Duration;

use clearway_core::{Priority, RunId, RunRecord, Status};
use clearway_engine::{Ctx, Engine, Submit};
use serde_json::json;

use crate::attack::{agent, script};
use crate::graphs::{Bed, plan, work, wrote};
use crate::support::ended;

const SLOTS: u32 = 8;
const TAKES: Duration = Duration::from_secs(8);

async fn engine() -> Engine {
    let node = script(|_: Ctx| async move {
        tokio::time::sleep(TAKES).await;
        Ok(wrote("log", json!("done")))
    });
    let plan = plan(&["n"]).entry("n").build().unwrap();
    // `Bed` gives its pool eight slots.
    Bed::with_queue(vec![agent("g", "chat", plan, &[("n", node)])], 2000).engine().await
}

async fn submit(engine: &Engine, n: u128, tenant: &str, priority: u8) -> RunId {
    let priority = Priority::new(priority);
    let submit = Submit { tenant: tenant.to_owned(), priority, ..work("g", n) };
    engine.submit(submit).await.unwrap().run
}

fn waited(record: &RunRecord) -> Duration {
    ended(record, Status::Success);
    record.started_at.unwrap().since(record.created_at)
}

#[tokio::test(start_paused = true)]
async fn a_flood_does_not_delay_a_small_tenant() {
    let engine = engine().await;
    // The slots free themselves one after the other, not all at once.
    for n in 0..SLOTS {
        submit(&engine, u128::from(n), "flood", 3).await;
        tokio::time::sleep(TAKES / SLOTS).await;
    }
    for n in 0..1000 {
        submit(&engine, 100 + n, "flood", 3).await;
    }
    let bound = 2 * TAKES / SLOTS;
    for n in 0..10 {
        tokio::time::sleep(Duration::from_millis(3300)).await;
        let run = submit(&engine, 5000 + n, "small", 3).await;
        let waited = waited(&engine.wait(run).await.unwrap());
        assert!(waited <= bound, "run {n} of the small tenant waited {waited:?}, bound {bound:?}");
    }
}
