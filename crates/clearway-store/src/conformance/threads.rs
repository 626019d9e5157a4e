//! Threads as people look at them.

use clearway_core::thread::ThreadKey;

use super::*;
use crate::{NewThread, RunDeleted, Stand, ThreadMade, ThreadSearch, ThreadSort};

on_every_store! {
    threads_are_made_once
    metadata_is_merged
    threads_are_found_and_counted
    a_thread_stands_as_its_runs_left_it
    steps_say_what_they_changed
    a_copy_has_the_whole_history
    the_newest_run_can_be_deleted
    what_others_were_built_on_stays
    stale_threads_are_found
    an_interrupting_run_may_clear_the_queue
}

fn new_thread(number: u128) -> NewThread {
    NewThread {
        id: thread_id(number),
        tenant: "acme".to_owned(),
        owner: None,
        key: None,
        metadata: Map::from_iter([("n".to_owned(), json!(number as u64))]),
    }
}

async fn threads_are_made_once(bed: Bed) {
    let ThreadMade::Made(made) = bed.store.make_thread(new_thread(1)).await.unwrap() else {
        panic!("it was not there")
    };
    assert_eq!((made.id, made.created_at, made.head), (thread_id(1), bed.now(), None));
    bed.advance(1);
    let again = NewThread { metadata: Map::new(), ..new_thread(1) };
    assert_eq!(bed.store.make_thread(again).await.unwrap(), ThreadMade::Exists(made.clone()));
    assert_eq!(bed.store.thread(thread_id(1)).await.unwrap(), Some(made));
    // A run that wants its thread to exist finds it.
    bed.started(NewRun { thread_must_exist: true, ..new_run(1, 1) }).await;
}

async fn metadata_is_merged(bed: Bed) {
    bed.store.make_thread(new_thread(1)).await.unwrap();
    let map = |value: serde_json::Value| value.as_object().cloned().unwrap();
    let known = bed.store.describe_thread(thread_id(1), map(json!({"a": {"b": 1}}))).await.unwrap();
    assert_eq!(known.unwrap().metadata, map(json!({"n": 1, "a": {"b": 1}})));
    let missing = bed.store.describe_thread(thread_id(2), map(json!({"a": 1}))).await.unwrap();
    assert!(missing.is_none());
    // What a run says about its thread, known or new.
    let note = map(json!({"graph_id": "chat", "n": 2}));
    bed.queued(NewRun { thread_note: note.clone(), ..new_run(1, 1) }).await;
    bed.queued(NewRun { thread_note: note.clone(), ..new_run(2, 2) }).await;
    let metadata =
        async |number| bed.store.thread(thread_id(number)).await.unwrap().unwrap().metadata;
    assert_eq!(metadata(1).await, map(json!({"n": 2, "a": {"b": 1}, "graph_id": "chat"})));
    assert_eq!(metadata(2).await["graph_id"], "chat");
}

async fn threads_are_found_and_counted(bed: Bed) {
    for number in 1..=5 {
        bed.store.make_thread(new_thread(number)).await.unwrap();
        bed.advance(1);
    }
    let key = Some(ThreadKey::new("hidden", &["x"]));
    bed.store.make_thread(NewThread { key, ..new_thread(6) }).await.unwrap();
    let found = async |search: ThreadSearch| {
        let page = bed.store.search_threads(search.clone()).await.unwrap();
        let count = bed.store.count_threads(ThreadSearch { limit: 0, ..search }).await.unwrap();
        let numbers = page.threads.iter().map(|one| one.record.id.0.as_u128() - 0x7000);
        (numbers.collect::<Vec<_>>(), page.more, count)
    };
    let all = ThreadSearch { except_dialect: Some("hidden".to_owned()), ..Default::default() };
    assert_eq!(found(all.clone()).await, (vec![5, 4, 3, 2, 1], false, 5));
    let page = ThreadSearch { limit: 2, offset: 1, ..all.clone() };
    assert_eq!(found(page).await, (vec![4, 3], true, 5));
    let sorted = ThreadSearch { sort: ThreadSort::Id, ascending: true, limit: 2, ..all.clone() };
    assert_eq!(found(sorted).await, (vec![1, 2], true, 5));
    let metadata = Map::from_iter([("n".to_owned(), json!(3))]);
    let third = ThreadSearch { metadata, ..all.clone() };
    assert_eq!(found(third).await, (vec![3], false, 1));
    let ids = ThreadSearch { ids: vec![thread_id(2), thread_id(9)], ..all.clone() };
    assert_eq!(found(ids).await, (vec![2], false, 1));
    let other = ThreadSearch { tenant: Some("other".to_owned()), ..all.clone() };
    assert_eq!(found(other).await, (vec![], false, 0));
    let busy = ThreadSearch { stand: Some(Stand::Busy), ..all };
    assert_eq!(found(busy.clone()).await, (vec![], false, 0));
    bed.started(new_run(1, 4)).await;
    assert_eq!(found(busy).await, (vec![4], false, 1));
}

async fn a_thread_stands_as_its_runs_left_it(bed: Bed) {
    let stand = async || bed.store.thread_overview(thread_id(1)).await.unwrap().unwrap();
    assert!(bed.store.thread_overview(thread_id(1)).await.unwrap().is_none());
    let mut owner = bed.started(new_run(1, 1)).await;
    assert_eq!(stand().await.stand, Stand::Busy);
    bed.commit(owner.step(&[("log", append("a"))])).await;
    bed.commit(owner.end(Status::Success)).await;
    let now = stand().await;
    assert_eq!((now.stand, now.state_at), (Stand::Interrupted, Some(bed.now())));
    assert_eq!(now.last.unwrap().id, run_id(1));
    bed.advance(1);
    let mut owner = bed.goes_on(new_run(2, 1)).await;
    bed.commit(owner.end(Status::Error)).await;
    let now = stand().await;
    assert_eq!(now.stand, Stand::Error);
    let last = now.last.unwrap();
    assert_eq!((last.id, last.status), (run_id(2), Status::Error));
    assert_eq!(last.failure.unwrap().message, "it broke");
}

async fn steps_say_what_they_changed(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.commit(owner.step(&[("log", append("a")), ("name", Op::Assign(json!(1)))])).await;
    bed.commit(owner.step(&[("log", append("b"))])).await;
    bed.commit(owner.step(&[])).await;
    let steps = bed.store.steps(run_id(1), None, 0).await.unwrap();
    assert_eq!(steps.iter().map(|step| step.checkpoint.step).collect::<Vec<_>>(), [0, 1, 2]);
    let log = ("log".into(), append("a"));
    assert_eq!(steps[0].ops, [log, ("name".into(), Op::Assign(json!(1)))]);
    assert_eq!(steps[1].ops, [("log".into(), append("b"))]);
    assert_eq!(steps[2].ops, []);
    assert_eq!(steps[1].checkpoint.parent, Some(steps[0].checkpoint.id));
    let later = bed.store.steps(run_id(1), Some(steps[0].checkpoint.id), 1).await.unwrap();
    assert_eq!(later, steps[1..2]);
    assert_eq!(bed.store.steps(run_id(9), None, 0).await.unwrap(), []);
}

async fn a_copy_has_the_whole_history(mut bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    for text in ["a", "b", "c"] {
        bed.commit(owner.step(&[("log", append(text))])).await;
    }
    let question = note(owner.task(), "interrupt:0", json!({"value": "ok?"}));
    let mut end = owner.end(Status::Success);
    end.notes = vec![question];
    end.next = frontier(owner.run, owner.step + 1, &["more"]);
    bed.commit(end).await;
    let copied = bed
        .store
        .copy_thread(thread_id(1), thread_id(2), [7, 7, 7, 7, 7, 0])
        .await
        .unwrap()
        .unwrap();
    assert_eq!((copied.id, copied.active_run, copied.ord), (thread_id(2), None, 0));
    let again =
        bed.store.copy_thread(thread_id(1), thread_id(2), [8, 8, 8, 8, 8, 0]).await.unwrap();
    assert_eq!(again, Some(copied), "the same copy again changes nothing");
    let missing = bed.store.copy_thread(thread_id(8), thread_id(9), [1; 6]).await.unwrap();
    assert_eq!(missing, None);
    bed.restart().await;
    let (one, two) = (bed.head(thread_id(1)).await.unwrap(), bed.head(thread_id(2)).await.unwrap());
    assert_eq!(two.state.to_json(), one.state.to_json());
    assert_eq!((two.frontier, two.journal, two.run), (one.frontier, one.journal, None));
    assert_ne!(two.checkpoint, one.checkpoint);
    let history = async |thread| bed.store.history(thread, None, 0).await.unwrap();
    assert_eq!(history(thread_id(2)).await.len(), history(thread_id(1)).await.len());
    let oldest = history(thread_id(2)).await.last().unwrap().id;
    let first = bed.store.state(thread_id(2), Some(oldest)).await.unwrap().unwrap();
    assert_eq!(first.state.to_json(), json!({"log": ["a"]}));
    // The two go separate ways.
    let mut owner = bed.goes_on(new_run(5, 2)).await;
    bed.commit(owner.step(&[("log", append("d"))])).await;
    let values = async |thread| bed.head(thread_id(thread)).await.unwrap().state.to_json();
    assert_eq!(values(2).await, json!({"log": ["a", "b", "c", "d"]}));
    assert_eq!(values(1).await, json!({"log": ["a", "b", "c"]}));
}

async fn the_newest_run_can_be_deleted(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.commit(owner.step(&[("log", append("a"))])).await;
    bed.commit(owner.end(Status::Success)).await;
    let mut owner = bed.goes_on(new_run(2, 1)).await;
    bed.commit(owner.step(&[("log", append("b"))])).await;
    assert_eq!(bed.store.delete_run(run_id(2)).await.unwrap(), RunDeleted::Unfinished);
    bed.commit(owner.end(Status::Success)).await;
    assert_eq!(bed.store.delete_run(run_id(2)).await.unwrap(), RunDeleted::Done);
    assert_eq!(bed.store.delete_run(run_id(2)).await.unwrap(), RunDeleted::NotFound);
    let head = bed.head(thread_id(1)).await.unwrap();
    assert_eq!((head.state.to_json(), head.run), (json!({"log": ["a"]}), Some(run_id(1))));
    assert!(bed.run(run_id(2)).await.rolled_back);
    let overview = bed.store.thread_overview(thread_id(1)).await.unwrap().unwrap();
    assert_eq!(overview.last.unwrap().id, run_id(1));
    assert_eq!(bed.store.delete_run(run_id(1)).await.unwrap(), RunDeleted::Done);
    assert!(bed.head(thread_id(1)).await.is_none());
    assert_eq!(bed.store.delete_run(run_id(77)).await.unwrap(), RunDeleted::NotFound);
    // The thread can be gone on with.
    let mut owner = bed.started(new_run(3, 1)).await;
    bed.commit(owner.step(&[("log", append("new"))])).await;
    let values = bed.head(thread_id(1)).await.unwrap().state.to_json();
    assert_eq!(values, json!({"log": ["new"]}));
}

async fn what_others_were_built_on_stays(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.commit(owner.step(&[("log", append("a"))])).await;
    bed.commit(owner.end(Status::Success)).await;
    let mut owner = bed.goes_on(new_run(2, 1)).await;
    bed.commit(owner.step(&[("log", append("b"))])).await;
    bed.commit(owner.end(Status::Success)).await;
    assert_eq!(bed.store.delete_run(run_id(1)).await.unwrap(), RunDeleted::Done);
    assert!(bed.run(run_id(1)).await.rolled_back);
    let values = bed.head(thread_id(1)).await.unwrap().state.to_json();
    assert_eq!(values, json!({"log": ["a", "b"]}));
}

async fn stale_threads_are_found(bed: Bed) {
    let key = |n: &str| Some(ThreadKey::new("gone", &[n]));
    bed.store.make_thread(NewThread { key: key("1"), ..new_thread(1) }).await.unwrap();
    bed.store.make_thread(new_thread(2)).await.unwrap();
    let run = NewRun { thread_key: key("3"), ..new_run(3, 3) };
    let mut owner = bed.started(run).await;
    bed.advance(10);
    let stale = async || bed.store.stale_threads("gone", bed.now(), 10).await.unwrap();
    assert_eq!(stale().await, [thread_id(1)], "a run is active on the other one");
    bed.commit(owner.end(Status::Success)).await;
    bed.advance(10);
    assert_eq!(stale().await.len(), 2);
    assert_eq!(bed.store.stale_threads("gone", START, 10).await.unwrap(), []);
}

async fn an_interrupting_run_may_clear_the_queue(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.queued(new_run(2, 1)).await;
    bed.queued(NewRun { multitask: Multitask::Interrupt, ..new_run(3, 1) }).await;
    assert_eq!(bed.status(run_id(2)).await, Status::Blocked, "only the active one is in the way");
    let clears = |number, multitask| NewRun { multitask, clears_queue: true, ..new_run(number, 1) };
    let queued = bed.queued(clears(4, Multitask::Interrupt)).await;
    assert_eq!(queued.cleared.len(), 2);
    assert!(queued.cleared.iter().all(|one| matches!(one, Cancelled::Ended { .. })));
    assert!(matches!(queued.interrupted, Some(Cancelled::Requested { .. })));
    assert_eq!(bed.status(run_id(2)).await, Status::Cancelled);
    let queued = bed.queued(clears(5, Multitask::Rollback)).await;
    assert_eq!(queued.cleared.len(), 1);
    assert!(bed.run(run_id(4)).await.rolled_back);
    let queued = bed.queued(clears(6, Multitask::Enqueue)).await;
    assert!(queued.cleared.is_empty() && queued.interrupted.is_none());
    let ack = bed.commit(owner.end(Status::Cancelled)).await;
    assert_eq!(ack, acknowledged(true, Some(run_id(5))));
}
