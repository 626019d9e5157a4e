//! Lists and logs.

use super::*;
use crate::{ErrorKind, RunQuery};

on_every_store! {
    unknown_things
    runs_are_listed_newest_first
    runs_are_listed_in_pages
    runs_are_filtered
    logs_are_read_from_anywhere
    logs_are_read_in_pages
    a_page_holds_at_least_one_event
    a_log_says_where_it_ends
}

async fn unknown_things(bed: Bed) {
    assert_eq!(bed.store.run(run_id(1)).await.unwrap(), None);
    assert_eq!(bed.store.thread(thread_id(1)).await.unwrap(), None);
    let page = bed.store.runs(RunQuery::default()).await.unwrap();
    assert!(page.runs.is_empty() && page.next.is_none());
    let query = RunQuery { thread: Some(thread_id(1)), ..RunQuery::default() };
    assert!(bed.store.runs(query).await.unwrap().runs.is_empty());
    let error = bed.store.read_log(run_id(1), 0, 10).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Conflict);
}

async fn list(bed: &Bed, query: RunQuery) -> Vec<u128> {
    let page = bed.store.runs(query).await.unwrap();
    page.runs.iter().map(|run| run.id.0.as_u128()).collect()
}

async fn runs_are_listed_newest_first(bed: Bed) {
    for number in [2, 3, 1] {
        bed.queued(new_run(number, number)).await;
    }
    let page = bed.store.runs(RunQuery::default()).await.unwrap();
    assert_eq!(page.runs[0], bed.run(run_id(3)).await);
    assert_eq!(list(&bed, RunQuery::default()).await, [3, 2, 1]);
}

async fn runs_are_listed_in_pages(bed: Bed) {
    for number in 1..=105 {
        bed.queued(new_run(number, number)).await;
    }
    let mut query = RunQuery { limit: 50, ..RunQuery::default() };
    let mut seen = Vec::new();
    loop {
        let page = bed.store.runs(query.clone()).await.unwrap();
        assert!(page.runs.len() <= 50);
        seen.extend(page.runs.iter().map(|run| run.id.0.as_u128()));
        query.after = page.next;
        if page.next.is_none() {
            break;
        }
    }
    assert_eq!(seen, (1..=105).rev().collect::<Vec<_>>());
    assert_eq!(list(&bed, RunQuery::default()).await.len(), 100);
    assert_eq!(list(&bed, RunQuery { limit: 9999, ..RunQuery::default() }).await.len(), 105);
    let last = RunQuery { limit: 105, ..RunQuery::default() };
    assert_eq!(bed.store.runs(last).await.unwrap().next, None, "exactly full is the last page");
}

async fn runs_are_filtered(bed: Bed) {
    let mut owner = bed.started(NewRun { agent: "a".into(), ..new_run(1, 1) }).await;
    bed.queued(NewRun { owner: Some("ann".into()), ..new_run(2, 1) }).await;
    bed.queued(NewRun { door: "chat".into(), ..new_run(3, 1) }).await;
    bed.commit(owner.end(Status::Success)).await;
    bed.queued(NewRun { tenant: "other".into(), ..new_run(4, 4) }).await;
    bed.cancel(run_id(4)).await;
    bed.started(NewRun { pool: "slow".into(), ..new_run(5, 5) }).await;
    let all = RunQuery::default;
    let of = |statuses: &[Status]| RunQuery { statuses: statuses.to_vec(), ..RunQuery::default() };
    for (query, expected) in [
        (RunQuery { tenant: Some("other".into()), ..all() }, vec![4]),
        (RunQuery { owner: Some("ann".into()), ..all() }, vec![2]),
        (RunQuery { agent: Some("a".into()), ..all() }, vec![1]),
        (RunQuery { door: Some("chat".into()), ..all() }, vec![3]),
        (RunQuery { thread: Some(thread_id(1)), ..all() }, vec![3, 2, 1]),
        (RunQuery { after: Some(run_id(3)), ..all() }, vec![2, 1]),
        (of(&[Status::Ready, Status::Blocked]), vec![3, 2]),
        (of(&[Status::Running]), vec![5]),
        (of(&[Status::Cancelled, Status::Error]), vec![4]),
        (of(&[Status::Success, Status::Cancelled, Status::Running]), vec![5, 4, 1]),
        (RunQuery { thread: Some(thread_id(1)), ..of(&[Status::Success]) }, vec![1]),
        (RunQuery { tenant: Some("acme".into()), limit: 2, ..of(&[]) }, vec![5, 3]),
    ] {
        assert_eq!(list(&bed, query.clone()).await, expected, "{query:?}");
    }
}

async fn logs_are_read_from_anywhere(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    for count in [3, 4, 2] {
        let output = owner.tokens(count);
        bed.store.append(vec![output]).await.unwrap();
    }
    for from in 0..12 {
        let page = bed.store.read_log(owner.run, from, usize::MAX).await.unwrap();
        let seqs: Vec<u64> = page.events.iter().map(|event| event.seq).collect();
        assert_eq!(seqs, (from..10).collect::<Vec<_>>());
        assert_eq!((page.next, page.end), (from.max(10), 10), "from {from}");
    }
}

async fn logs_are_read_in_pages(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    for _ in 0..40 {
        let output = owner.tokens(10);
        bed.store.append(vec![output]).await.unwrap();
    }
    let (mut from, mut pages, mut seqs) = (0, 0, Vec::new());
    while from < 401 {
        let page = bed.store.read_log(owner.run, from, 500).await.unwrap();
        assert!(page.next > from, "a reader gets on");
        seqs.extend(page.events.iter().map(|event| event.seq));
        (from, pages) = (page.next, pages + 1);
    }
    assert_eq!(seqs, (0..401).collect::<Vec<_>>());
    assert!((5..=41).contains(&pages), "{pages}");
}

async fn a_page_holds_at_least_one_event(bed: Bed) {
    bed.queued(new_run(1, 1)).await;
    let page = bed.store.read_log(run_id(1), 0, 0).await.unwrap();
    assert_eq!((page.events.len(), page.next), (1, 1));
}

async fn a_log_says_where_it_ends(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let page = bed.store.read_log(owner.run, 5, 100).await.unwrap();
    assert_eq!((page.end, page.next, page.status), (1, 5, Status::Running));
    bed.commit(owner.end(Status::Error)).await;
    let page = bed.store.read_log(owner.run, 1, 100).await.unwrap();
    assert_eq!((page.end, page.next, page.status), (2, 2, Status::Error));
}
