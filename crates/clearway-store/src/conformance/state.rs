//! Threads' state: checkpoints, deltas, snapshots, large values.

use super::*;
use crate::ErrorKind;

on_every_store! {
    no_state_before_the_first_checkpoint
    state_comes_back_as_it_was
    every_kind_of_op_comes_back
    every_checkpoint_stays_readable
    a_checkpoint_of_another_thread_is_not_found
    several_checkpoints_in_one_commit
    two_ops_on_one_channel_in_a_superstep
    writes_of_a_checkpoint
    long_histories_come_back
    long_merges_come_back
    large_values_come_back
    assignments_begin_anew
    numbers_come_back_exactly
    deltas_must_continue_the_head
    versions_must_rise
    a_checkpoint_exists_once
}

/// What the store says at the head equals what the owner computed.
async fn assert_head(bed: &Bed, owner: &Owner) {
    let head = bed.head(owner.claim.record.thread).await.unwrap();
    assert_eq!(head.state, owner.state);
    assert_eq!(head.state.version(), owner.state.version());
    assert_eq!((head.step, head.run), (owner.step, Some(owner.run)));
}

async fn no_state_before_the_first_checkpoint(bed: Bed) {
    assert!(bed.head(thread_id(1)).await.is_none());
    bed.started(new_run(1, 1)).await;
    assert!(bed.head(thread_id(1)).await.is_none());
    let unknown = CheckpointId(Uuid::from_u128(5));
    assert!(bed.store.state(thread_id(1), Some(unknown)).await.unwrap().is_none());
}

async fn state_comes_back_as_it_was(mut bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.advance(1);
    let step = owner.step(&[("log", append("a")), ("name", Op::Assign(json!({"x": [1, null]})))]);
    let id = step.checkpoints[0].0;
    bed.commit(step).await;
    bed.restart().await;
    assert_head(&bed, &owner).await;
    let head = bed.head(thread_id(1)).await.unwrap();
    assert_eq!((head.checkpoint, head.parent, head.created_at), (id, None, bed.now()));
    assert_eq!(head.frontier, frontier(owner.run, owner.step + 1, &["more"]));
}

async fn every_kind_of_op_comes_back(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let message = |id: &str, text: &str| json!({"id": id, "content": text});
    for ops in [
        vec![
            ("messages", Op::Merge(vec![message("a", "1"), message("b", "2")])),
            ("seen", Op::Add(vec![json!(1), json!("ü")])),
        ],
        vec![
            ("messages", Op::Merge(vec![message("a", "changed")])),
            ("seen", Op::Add(vec![json!(1), json!(2)])),
        ],
        vec![("messages", Op::Merge(vec![json!({"type": "remove", "id": "b"})]))],
        vec![
            ("topic", Op::Assign(json!("tea"))),
            ("list", Op::Append(vec![json!([]), json!(null)])),
        ],
        vec![
            ("topic", Op::Assign(json!(null))),
            ("messages", Op::Assign(json!([message("c", "3")]))),
        ],
        vec![("messages", Op::Merge(vec![message("c", "4"), message("d", "5")]))],
    ] {
        assert_eq!(bed.commit(owner.step(&ops)).await, APPLIED);
        assert_head(&bed, &owner).await;
    }
}

async fn every_checkpoint_stays_readable(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let mut known = Vec::new();
    for number in 0..20 {
        let step = owner.step(&[("log", append(&number.to_string()))]);
        known.push((step.checkpoints[0].0, owner.state.clone()));
        bed.commit(step).await;
    }
    let mut parent = None;
    for (id, state) in known {
        let found = bed.store.state(thread_id(1), Some(id)).await.unwrap().unwrap();
        assert_eq!((found.state, found.parent), (state, parent));
        parent = Some(id);
    }
}

async fn a_checkpoint_of_another_thread_is_not_found(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let step = owner.step(&[("log", append("a"))]);
    let id = step.checkpoints[0].0;
    bed.commit(step).await;
    bed.started(new_run(2, 2)).await;
    assert!(bed.store.state(thread_id(2), Some(id)).await.unwrap().is_none());
    assert!(bed.store.state(thread_id(9), Some(id)).await.unwrap().is_none());
}

async fn several_checkpoints_in_one_commit(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let first = owner.checkpoint(&[("log", append("input"))]);
    let mut commit = owner.step(&[("log", append("output"))]);
    commit.checkpoints.insert(0, first.clone());
    let last = commit.checkpoints[1].0;
    bed.commit(commit).await;
    assert_head(&bed, &owner).await;
    let head = bed.head(thread_id(1)).await.unwrap();
    assert_eq!((head.checkpoint, head.parent), (last, Some(first.0)));
    let input = bed.store.state(thread_id(1), Some(first.0)).await.unwrap().unwrap();
    assert_eq!(input.state.get("log"), Some(json!(["input"])));
    assert_eq!(bed.run(owner.run).await.checkpoint, Some(last));
}

async fn two_ops_on_one_channel_in_a_superstep(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let step = owner.step(&[("log", append("a")), ("x", append("-")), ("log", append("b"))]);
    let id = step.checkpoints[0].0;
    bed.commit(step).await;
    assert_head(&bed, &owner).await;
    let writes = bed.store.writes_of(id, "log").await.unwrap();
    assert_eq!(writes, [append("a"), append("b")]);
}

async fn writes_of_a_checkpoint(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let mut ids = Vec::new();
    for number in 0..3 {
        let channel = if number == 1 { "other" } else { "log" };
        let step = owner.step(&[(channel, append(&number.to_string()))]);
        ids.push(step.checkpoints[0].0);
        bed.commit(step).await;
    }
    for (at, channel, expected) in [
        (0, "log", vec![append("0")]),
        (1, "log", vec![]),
        (1, "other", vec![append("1")]),
        (2, "log", vec![append("2")]),
        (2, "none", vec![]),
    ] {
        assert_eq!(
            bed.store.writes_of(ids[at], channel).await.unwrap(),
            expected,
            "{at} {channel}"
        );
    }
    let unknown = CheckpointId(Uuid::from_u128(5));
    assert!(bed.store.writes_of(unknown, "log").await.unwrap().is_empty());
}

async fn long_histories_come_back(mut bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let mut middle = None;
    // 600 KB in all: several snapshots.
    for number in 0..300 {
        let step = owner.step(&[
            ("log", append(&format!("{number} {}", "word ".repeat(400)))),
            ("count", Op::Assign(json!(number))),
        ]);
        if number == 150 {
            middle = Some((step.checkpoints[0].0, owner.state.clone()));
        }
        bed.commit(step).await;
    }
    assert_head(&bed, &owner).await;
    bed.restart().await;
    assert_head(&bed, &owner).await;
    let (id, state) = middle.unwrap();
    let found = bed.store.state(thread_id(1), Some(id)).await.unwrap().unwrap();
    assert_eq!(found.state, state, "a snapshot is newer than this one");
    assert_eq!(bed.store.writes_of(id, "count").await.unwrap(), [Op::Assign(json!(150))]);
}

async fn long_merges_come_back(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    for number in 0..120 {
        let id = (number % 50).to_string();
        let item = json!({"id": id, "number": number, "text": "word ".repeat(300)});
        let remove = json!({"type": "remove", "id": (number % 7).to_string()});
        bed.commit(owner.step(&[("messages", Op::Merge(vec![item, remove]))])).await;
    }
    assert_head(&bed, &owner).await;
}

async fn large_values_come_back(mut bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let large = json!({"file": "content ".repeat(10_000)});
    for channel in ["a", "b"] {
        bed.commit(owner.step(&[(channel, Op::Assign(large.clone()))])).await;
    }
    bed.commit(owner.step(&[("log", Op::Append(vec![large.clone(), json!(1)]))])).await;
    bed.commit(owner.step(&[("log", append("after"))])).await;
    bed.restart().await;
    assert_head(&bed, &owner).await;
    // The same value of another tenant.
    let new = NewRun { tenant: "other".into(), claim: Some(ME), ..new_run(2, 2) };
    let mut other = bed.started(new).await;
    bed.commit(other.step(&[("a", Op::Assign(large))])).await;
    assert_head(&bed, &other).await;
}

async fn assignments_begin_anew(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let text = "word ".repeat(2000);
    for round in 0..3 {
        for number in 0..15 {
            bed.commit(owner.step(&[("log", append(&format!("{round} {number} {text}")))])).await;
        }
        assert_head(&bed, &owner).await;
        bed.commit(owner.step(&[("log", Op::Assign(json!(["anew"])))])).await;
        assert_head(&bed, &owner).await;
    }
    bed.commit(owner.step(&[("log", append("end"))])).await;
    assert_head(&bed, &owner).await;
}

async fn numbers_come_back_exactly(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let numbers = json!([0.1, 1e-7, 123_456_789.123_456_78, u64::MAX, i64::MIN, 5e-324, 1.0, -0.0]);
    bed.commit(owner.step(&[("n", Op::Assign(numbers.clone()))])).await;
    assert_eq!(bed.head(thread_id(1)).await.unwrap().state.get("n"), Some(numbers));
}

async fn deltas_must_continue_the_head(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.commit(owner.step(&[("log", append("a"))])).await;
    let before = bed.run(owner.run).await;
    let mut step = owner.clone().step(&[("log", append("b"))]);
    step.checkpoints[0].1.deltas[0].previous = 0;
    let error = bed.store.commit(step).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Conflict);
    assert!(error.message.contains("`log`"), "{error}");
    assert_eq!(bed.run(owner.run).await, before);
    assert_eq!(bed.log(owner.run).await.len(), 2, "not even the events");
    assert_eq!(bed.commit(owner.step(&[("log", append("b"))])).await, APPLIED);
}

async fn versions_must_rise(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.commit(owner.step(&[("log", append("a"))])).await;
    let mut step = owner.clone().step(&[("other", append("b"))]);
    step.checkpoints[0].1.deltas[0].version = 1;
    assert_eq!(bed.store.commit(step).await.unwrap_err().kind, ErrorKind::Conflict);
}

async fn a_checkpoint_exists_once(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let step = owner.step(&[("log", append("a"))]);
    let id = step.checkpoints[0].0;
    bed.commit(step).await;
    let mut again = owner.clone().step(&[("log", append("b"))]);
    again.checkpoints[0].0 = id;
    assert_eq!(bed.store.commit(again).await.unwrap_err().kind, ErrorKind::Conflict);
    assert_eq!(bed.commit(owner.step(&[("log", append("b"))])).await, APPLIED);
    assert_head(&bed, &owner).await;
}
