use std::sync::Arc;

use clearway_core::wait::{Spent, WaitCell};
use clearway_core::{Priority, RunId, ThreadId};
use expect_test::expect;
use serde_json::Map;
use uuid::Uuid;

use super::*;

fn record(status: Status) -> RunRecord {
    RunRecord {
        id: RunId(Uuid::from_u128(1)),
        tenant: "default".to_owned(),
        owner: None,
        thread: ThreadId(Uuid::from_u128(2)),
        thread_ord: 1,
        parent: None,
        agent: "cofounder".to_owned(),
        pool: "chat".to_owned(),
        door: "cofounder".to_owned(),
        priority: Priority::NORMAL,
        status,
        metadata: Map::new(),
        input: Value::Null,
        created_at: Timestamp(0),
        ready_at: Timestamp(0),
        started_at: None,
        ended_at: None,
        deadline_at: None,
        working_limit: None,
        worked: Duration::ZERO,
        attempt: 0,
        fruitless: 0,
        fence: 0,
        instance: None,
        cancel_requested: false,
        step: -1,
        next: Vec::new(),
        commits: 0,
        next_seq: 1,
        committed_seq: 1,
        checkpoint: None,
        failure: None,
        spent: Spent::default(),
        usage: clearway_core::run::Usage::default(),
    }
}

fn waiting(kind: WaitKind, detail: &str) -> Waiting {
    let now = tokio::time::Instant::now().into_std();
    let cell = WaitCell::new(kind, Arc::<str>::from(detail), Spent::default(), now);
    cell.read(now + Duration::from_millis(12_400))
}

#[test]
fn every_wait_is_a_sentence() {
    let position = QueuePosition {
        pool_ahead: 3,
        thread_active: Some(RunId(Uuid::from_u128(9))),
        thread_ahead: 1,
    };
    let mut text = String::new();
    for &kind in WaitKind::ALL {
        let sentence = sentence(&record(Status::Ready), &waiting(kind, "sim/m, attempt 2"), Some(position));
        text.push_str(&format!("{}: {sentence}\n", kind.as_str()));
    }
    expect![[r#""#]].assert_eq(&text);
}

#[test]
fn a_run_shows_what_it_waits_for() {
    let mut waits = waiting(WaitKind::Slot, "pool chat");
    waits.eta = Some(Duration::from_millis(2500));
    let position = Some(QueuePosition { pool_ahead: 3, ..QueuePosition::default() });
    let view = RunView { record: record(Status::Ready), waiting: Some(waits), position };
    let json = serde_json::to_string_pretty(&run(&view, Timestamp(20_000))).unwrap();
    expect![[r#""#]].assert_eq(&json);
}

#[test]
fn positions_count_who_goes_first() {
    let position = Some(QueuePosition {
        pool_ahead: 5,
        thread_active: Some(RunId(Uuid::from_u128(9))),
        thread_ahead: 1,
    });
    assert_eq!(queue_position(&record(Status::Blocked), position), Some(2));
    assert_eq!(queue_position(&record(Status::Ready), position), Some(5));
    assert_eq!(queue_position(&record(Status::Running), position), None);
    assert_eq!(queue_position(&record(Status::Ready), None), None);
}
