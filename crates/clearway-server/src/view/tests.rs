use std::sync::Arc;

use clearway_core::run::RunOptions;
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
        options: RunOptions::default(),
        parked: None,
        rolled_back: false,
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
        let sentence =
            sentence(&record(Status::Ready), &waiting(kind, "sim/m, attempt 2"), Some(position));
        text.push_str(&format!("{}: {sentence}\n", kind.as_str()));
    }
    expect![[r#"
        work: working, waiting for nothing outside (sim/m, attempt 2), 12.4 s so far; cancel the run to stop it
        thread: waiting behind run 00000000-0000-0000-0000-000000000009 of the same thread and 1 more, 12.4 s so far; cancel the run in front, or wait for it
        slot: waiting for a slot in pool chat: 3 ahead, 12.4 s so far; an operator can raise the pool's slots, or cancel runs that hold them
        provider_slot: waiting for one of the provider's concurrent calls (sim/m, attempt 2), 12.4 s so far; an operator can raise the provider's limits.concurrent
        batch: waiting for the batch that takes the texts to the provider (sim/m, attempt 2), 12.4 s so far; it leaves within moments, or when an earlier one is done
        rate_limit: held back by the provider's rate limit (sim/m, attempt 2), 12.4 s so far; the window refills by itself
        breaker: the provider's circuit is open (sim/m, attempt 2), 12.4 s so far; the next probe decides, or an operator resets it
        dns: resolving the provider's name (sim/m, attempt 2), 12.4 s so far; it answers or runs into its limit
        connect: connecting to the provider (sim/m, attempt 2), 12.4 s so far; it opens or runs into its limit
        first_byte: the request is sent and nothing has come back yet (sim/m, attempt 2), 12.4 s so far; the provider answers or runs into its limit
        next_token: the answer streams, waiting for the next token (sim/m, attempt 2), 12.4 s so far; the provider goes on or runs into its limit
        tool: waiting for a tool (sim/m, attempt 2), 12.4 s so far; it ends or runs into its limit
        worker: waiting for a worker process (sim/m, attempt 2), 12.4 s so far; it ends or is killed at its limit
        child: waiting for runs that it started (sim/m, attempt 2), 12.4 s so far; they end, or are cancelled with it
        signal: waiting for a signal (sim/m, attempt 2), 12.4 s so far; a client sends it to /runs/{id}/signals/{name}
        person: waiting for a person's answer (sim/m, attempt 2), 12.4 s so far; somebody has to answer the question
        decision: waiting for a decision about a write whose outcome is unknown (sim/m, attempt 2), 12.4 s so far; an operator decides with clearway runs resolve
        outage: parked while its provider is out of order (sim/m, attempt 2), 12.4 s so far; it goes on when the provider recovers or an operator resets it
        budget: its budget is used up (sim/m, attempt 2), 12.4 s so far; an operator can raise the budget
        timer: waiting for a point in time (sim/m, attempt 2), 12.4 s so far; the time comes by itself
        store: waiting for the store (sim/m, attempt 2), 12.4 s so far; an operator can free disk space or restore access to the data directory
        client: waiting for its client to read (sim/m, attempt 2), 12.4 s so far; the client has to read on
        retry: waiting before the next attempt (sim/m, attempt 2), 12.4 s so far; it starts by itself
    "#]].assert_eq(&text);
}

#[test]
fn a_run_shows_what_it_waits_for() {
    let mut waits = waiting(WaitKind::Slot, "pool chat");
    waits.eta = Some(Duration::from_millis(2500));
    let position = Some(QueuePosition { pool_ahead: 3, ..QueuePosition::default() });
    let view = RunView {
        record: record(Status::Ready),
        waiting: Some(waits),
        position,
        calls: Vec::new(),
    };
    let json = serde_json::to_string_pretty(&run(&view, Timestamp(20_000))).unwrap();
    expect![[r#"
        {
          "run_id": "00000000-0000-0000-0000-000000000001",
          "thread_id": "00000000-0000-0000-0000-000000000002",
          "agent": "cofounder",
          "door": "cofounder",
          "status": "ready",
          "created_at": "1970-01-01T00:00:00.000+00:00",
          "started_at": null,
          "ended_at": null,
          "deadline_at": null,
          "priority": 3,
          "pool": "chat",
          "attempt": 0,
          "parent": null,
          "step": -1,
          "next": [],
          "rolled_back": false,
          "cancel_requested": false,
          "metadata": {},
          "waiting_on": {
            "kind": "slot",
            "detail": "pool chat",
            "since": "1970-01-01T00:00:07.600+00:00",
            "for_ms": 12400,
            "who": "operator",
            "how": "raise the pool's slots, or cancel runs that hold them",
            "sentence": "waiting for a slot in pool chat: 3 ahead, 12.4 s so far, about 2.5 s to go; an operator can raise the pool's slots, or cancel runs that hold them",
            "eta_ms": 2500
          },
          "calls": [],
          "spent_ms": {
            "slot": 12400
          },
          "queue_position": 3,
          "queue_reason": "no_slot",
          "expected_start": "1970-01-01T00:00:22.500+00:00",
          "usage": {
            "input_tokens": 0,
            "output_tokens": 0,
            "rebilled_tokens": 0,
            "calls": 0,
            "cost": 0.0
          },
          "error": null
        }"#]].assert_eq(&json);
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
