//! Supersteps, output and ends of running runs.

use super::*;
use clearway_core::{AttemptRecord, AttemptsOf};

use crate::{Appended, ErrorKind};

on_every_store! {
    a_superstep_is_committed
    totals_are_kept
    attempts_are_kept_with_their_commit
    attempts_of_no_run_are_kept_for_a_month
    a_repeated_superstep_is_acknowledged_again
    a_repeated_end_is_acknowledged_again
    a_repeated_release_is_acknowledged_again
    a_stale_fence_writes_nothing
    a_wrong_number_writes_nothing
    an_ended_run_writes_nothing_more
    nobody_commits_to_a_run_that_waits
    nobody_commits_to_a_run_that_is_not
    a_commit_stores_only_what_is_new
    a_commit_with_only_old_events
    a_commit_without_events
    a_gap_is_refused_and_nothing_is_written
    events_of_another_fence_are_refused
    a_damaged_overlap_is_refused
    an_end_must_be_an_end
    a_release_brings_no_checkpoints
    a_release_keeps_the_mark_of_void_output
    an_end_frees_the_thread
    ends_promote_in_order
    a_promoted_run_waits_for_its_delay
    a_cancel_request_is_told
    a_failure_is_kept
    output_is_stored
    output_of_many_runs_in_one_call
    output_that_is_known_is_not_stored_again
    output_with_a_gap_is_refused
    output_of_a_stale_owner_is_refused
    output_survives_a_kill
}

async fn a_superstep_is_committed(mut bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.advance(1);
    let mut commit = owner.step(&[("log", append("a"))]);
    commit.next = frontier(owner.run, 1, &["think", "act"]);
    let checkpoint = commit.checkpoints[0].0;
    assert_eq!(bed.commit(commit).await, APPLIED);
    bed.restart().await;
    let record = bed.run(owner.run).await;
    assert_eq!((record.step, record.commits), (0, 1));
    assert_eq!(record.next, ["think", "act"]);
    assert_eq!((record.next_seq, record.committed_seq), (2, 2));
    assert_eq!((record.checkpoint, record.status), (Some(checkpoint), Status::Running));
    assert_eq!((record.instance, record.fence), (Some(ME), 1));
    assert_eq!(bed.kinds(owner.run).await, ["run.created", "custom"]);
    let thread = bed.store.thread(thread_id(1)).await.unwrap().unwrap();
    assert_eq!((thread.head, thread.updated_at), (Some(checkpoint), bed.now()));
}

async fn totals_are_kept(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let usage =
        Usage { input_tokens: 10, output_tokens: 3, rebilled_tokens: 1, calls: 2, cost_micros: 7 };
    for total in 1..=2u64 {
        let mut spent = Spent::default();
        spent.add(clearway_core::wait::WaitKind::FirstByte, Duration::from_millis(100 * total));
        let worked = Duration::from_micros(1_500_700 * total);
        let commit = owner.step(&[]);
        bed.commit(StepCommit { spent, worked, usage, ..commit }).await;
    }
    let record = bed.run(owner.run).await;
    assert_eq!(record.spent.to_json(), json!({"first_byte": 200}));
    assert_eq!(record.worked, Duration::from_millis(3001));
    let doubled =
        Usage { input_tokens: 20, output_tokens: 6, rebilled_tokens: 2, calls: 4, cost_micros: 14 };
    assert_eq!(record.usage, doubled);
}

fn attempt(call: &str, number: u32) -> AttemptRecord {
    AttemptRecord {
        at: clearway_core::Timestamp(1000),
        call: call.to_owned(),
        node: "chat".into(),
        number,
        provider: "p".into(),
        endpoint: "http://p/v1".into(),
        model: "m".into(),
        key: "1".into(),
        class: "run".into(),
        phase: "stream".into(),
        outcome: "ok".into(),
        status: Some(200),
        source: "provider".into(),
        input_tokens: 7,
        output_tokens: 3,
        cached_tokens: 2,
        reasoning_tokens: 1,
        price: Some([3, 2, 1]),
        cost_micros: Some(9),
        ms: 120,
        first_output_ms: Some(40),
        ..AttemptRecord::default()
    }
}

async fn read(bed: &Bed, after: Option<i64>, limit: u32) -> Vec<AttemptRecord> {
    bed.store.attempts(AttemptsOf::Run(run_id(1)), after, limit).await.unwrap()
}

async fn attempts_are_kept_with_their_commit(mut bed: Bed) {
    let owner = bed.started(new_run(1, 1)).await;
    assert_eq!(read(&bed, None, 0).await, []);
    let bare = AttemptRecord {
        status: None,
        price: None,
        cost_micros: None,
        first_output_ms: None,
        ..attempt("a", 1)
    };
    let mut first = owner.clone();
    let step = StepCommit { attempts: vec![bare.clone(), attempt("a", 2)], ..first.step(&[]) };
    bed.commit(step.clone()).await;
    // The same commit again brings nothing, and neither does one that is refused.
    bed.commit(step.clone()).await;
    let stale = StepCommit { fence: 9, number: 2, events: None, ..step };
    assert_eq!(bed.commit(stale).await, CommitAck::Fenced);
    let end = StepCommit { attempts: vec![attempt("b", 1)], ..first.end(Status::Error) };
    bed.commit(end).await;
    bed.restart().await;
    let all = read(&bed, None, 0).await;
    let ids: Vec<i64> = all.iter().map(|one| one.id).collect();
    assert!(ids.is_sorted() && ids[0] > 0);
    let without = |one: &AttemptRecord| AttemptRecord { id: 0, ..one.clone() };
    let kept: Vec<_> = all.iter().map(without).collect();
    assert_eq!(kept, [bare, attempt("a", 2), attempt("b", 1)]);
    assert_eq!(read(&bed, Some(ids[0]), 1).await, all[1..2]);
    assert_eq!(bed.store.attempts(AttemptsOf::NoRun, None, 0).await.unwrap(), []);
    let other = AttemptsOf::Run(run_id(2));
    assert_eq!(bed.store.attempts(other, None, 0).await.unwrap(), []);
    bed.store.delete_thread(thread_id(1)).await.unwrap();
    assert_eq!(read(&bed, None, 0).await, []);
}

async fn attempts_of_no_run_are_kept_for_a_month(bed: Bed) {
    let at = |days: i64| clearway_core::Timestamp(bed.now().0 - days * 86_400_000);
    let aged = |call: &str, days| AttemptRecord { at: at(days), ..attempt(call, 1) };
    bed.store.book(vec![aged("old", 31), aged("a", 2), aged("b", 1)]).await.unwrap();
    bed.store.book(vec![aged("c", 0)]).await.unwrap();
    let all = bed.store.attempts(AttemptsOf::NoRun, None, 0).await.unwrap();
    let calls: Vec<&str> = all.iter().map(|one| one.call.as_str()).collect();
    assert_eq!(calls, ["c", "b", "a"]);
    let rest = bed.store.attempts(AttemptsOf::NoRun, Some(all[1].id), 5).await.unwrap();
    assert_eq!(rest, all[2..]);
}

async fn a_repeated_superstep_is_acknowledged_again(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let commit = owner.step(&[("log", append("a"))]);
    assert_eq!(bed.commit(commit.clone()).await, APPLIED);
    let (record, log) = (bed.run(owner.run).await, bed.log(owner.run).await);
    assert_eq!(bed.commit(commit.clone()).await, APPLIED);
    assert_eq!((bed.run(owner.run).await, bed.log(owner.run).await), (record, log));
    bed.commit(owner.step(&[])).await;
    assert_eq!(bed.commit(commit).await, CommitAck::Fenced, "two behind is no repetition");
}

async fn a_repeated_end_is_acknowledged_again(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.queued(new_run(2, 1)).await;
    bed.queued(new_run(3, 1)).await;
    let end = owner.end(Status::Success);
    let ack = acknowledged(false, Some(run_id(2)));
    assert_eq!(bed.commit(end.clone()).await, ack);
    // Even when the thread has gone on since.
    let mut second = bed.claim_one().await;
    bed.commit(second.end(Status::Success)).await;
    assert_eq!(bed.commit(end).await, ack);
    assert_eq!(bed.status(run_id(3)).await, Status::Ready);
}

async fn a_repeated_release_is_acknowledged_again(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let release = owner.commit(StepOutcome::Release);
    assert_eq!(bed.commit(release.clone()).await, APPLIED);
    assert_eq!(bed.commit(release.clone()).await, APPLIED);
    assert_eq!(bed.run(owner.run).await.fence, 2);
    bed.claim_one().await;
    assert_eq!(bed.commit(release).await, CommitAck::Fenced);
}

async fn a_stale_fence_writes_nothing(bed: Bed) {
    let mut stale = bed.started(new_run(1, 1)).await;
    bed.store.release(stale.run, stale.fence).await.unwrap();
    let owner = bed.claim_one().await;
    let before = (bed.run(stale.run).await, bed.log(stale.run).await);
    for commit in [
        stale.clone().step(&[("log", append("a"))]),
        stale.clone().end(Status::Success),
        stale.clone().commit(StepOutcome::Release),
    ] {
        assert_eq!(bed.commit(commit).await, CommitAck::Fenced);
    }
    let output = stale.tokens(2);
    assert_eq!(bed.store.append(vec![output]).await.unwrap(), [Appended::Refused]);
    assert_eq!((bed.run(stale.run).await, bed.log(stale.run).await), before);
    assert!(bed.head(thread_id(1)).await.is_none());
    assert_eq!(owner.claim.record, before.0);
}

async fn a_wrong_number_writes_nothing(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.commit(owner.step(&[])).await;
    bed.commit(owner.step(&[])).await;
    let before = bed.run(owner.run).await;
    for number in [0, 3, u64::MAX] {
        let commit = StepCommit { number, ..owner.clone().step(&[]) };
        assert_eq!(bed.commit(commit).await, CommitAck::Fenced, "{number}");
    }
    assert_eq!(bed.run(owner.run).await, before);
}

async fn an_ended_run_writes_nothing_more(bed: Bed) {
    for (number, status) in
        [(1, Status::Success), (2, Status::Error), (3, Status::Timeout), (4, Status::Cancelled)]
    {
        let mut owner = bed.started(new_run(number, number)).await;
        assert_eq!(bed.commit(owner.end(status)).await, APPLIED);
        let before = (bed.run(owner.run).await, bed.log(owner.run).await);
        assert_eq!(before.0.status, status);
        let output = owner.clone().tokens(1);
        assert_eq!(bed.store.append(vec![output]).await.unwrap(), [Appended::Refused]);
        let commits = [
            owner.clone().step(&[]),
            owner.clone().end(Status::Success),
            owner.commit(StepOutcome::Release),
        ];
        for commit in commits {
            assert_eq!(bed.commit(commit).await, CommitAck::Fenced);
        }
        assert!(!bed.store.release(owner.run, owner.fence).await.unwrap());
        assert!(matches!(bed.cancel(owner.run).await, Cancelled::AlreadyEnded { .. }));
        assert_eq!((bed.run(owner.run).await, bed.log(owner.run).await), before);
    }
}

async fn nobody_commits_to_a_run_that_waits(bed: Bed) {
    let queued = bed.queued(new_run(1, 1)).await;
    let claim = Claim {
        record: queued.record.clone(),
        thread_version: 0,
        head: None,
        created: None,
        frontier: Frontier::default(),
        journal: Vec::new(),
        taken_in: false,
    };
    let mut nobody = Owner::new(claim);
    assert_eq!(bed.commit(nobody.step(&[])).await, CommitAck::Fenced);
    let output = nobody.tokens(1);
    assert_eq!(bed.store.append(vec![output]).await.unwrap(), [Appended::Refused]);
    assert_eq!(bed.run(run_id(1)).await, queued.record);
}

async fn nobody_commits_to_a_run_that_is_not(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let commit = StepCommit { run: run_id(2), ..owner.step(&[]) };
    assert_eq!(bed.commit(commit).await, CommitAck::Fenced);
    let output = OutputSegment { run: run_id(2), ..owner.tokens(1) };
    assert_eq!(bed.store.append(vec![output]).await.unwrap(), [Appended::Refused]);
}

async fn a_commit_stores_only_what_is_new(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let output = owner.tokens(3);
    bed.store.append(vec![output]).await.unwrap();
    let mut commit = owner.step(&[]);
    // The owner did not hear that its output is stored, and sends it again with what follows.
    let stored: Vec<Event> = [tokens(1, 3, 1), facts(4, 1, 1)]
        .iter()
        .flat_map(|segment| segment.decode().unwrap())
        .collect();
    commit.events = Segment::encode(&stored);
    assert_eq!(bed.commit(commit).await, APPLIED);
    let log = bed.log(owner.run).await;
    assert_eq!(log.iter().map(|event| event.seq).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    assert_eq!(log[1..], stored);
    assert_eq!(bed.run(owner.run).await.committed_seq, 5);
}

async fn a_commit_with_only_old_events(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let output = owner.tokens(4);
    bed.store.append(vec![output]).await.unwrap();
    let commit = StepCommit { events: Some(tokens(2, 2, 1)), ..owner.step(&[]) };
    assert_eq!(bed.commit(commit).await, APPLIED);
    assert_eq!(bed.log(owner.run).await.len(), 5);
    assert_eq!(bed.run(owner.run).await.committed_seq, 5);
}

async fn a_commit_without_events(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let commit = StepCommit { events: None, ..owner.step(&[]) };
    assert_eq!(bed.commit(commit).await, APPLIED);
    let record = bed.run(owner.run).await;
    assert_eq!((record.next_seq, record.committed_seq, record.commits), (1, 1, 1));
}

async fn a_gap_is_refused_and_nothing_is_written(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let before = bed.run(owner.run).await;
    let commit =
        StepCommit { events: Some(facts(2, 1, 1)), ..owner.clone().step(&[("log", append("a"))]) };
    let error = bed.store.commit(commit).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Conflict);
    assert!(error.certainly_aborted);
    assert!(error.message.contains("ends at 1"), "{error}");
    assert_eq!(bed.run(owner.run).await, before);
    assert!(bed.head(thread_id(1)).await.is_none());
    assert_eq!(bed.commit(owner.step(&[])).await, APPLIED, "the right one is still welcome");
}

async fn events_of_another_fence_are_refused(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let commit = StepCommit { events: Some(facts(1, 1, 7)), ..owner.step(&[]) };
    let error = bed.store.commit(commit).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Conflict);
    let output = OutputSegment { run: owner.run, segment: tokens(1, 1, 7) };
    assert_eq!(bed.store.append(vec![output]).await.unwrap(), [Appended::Refused]);
}

async fn a_damaged_overlap_is_refused(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let output = owner.tokens(2);
    bed.store.append(vec![output]).await.unwrap();
    let damaged = Segment { bytes: vec![9, 9, 9].into(), ..tokens(2, 4, 1) };
    let commit = StepCommit { events: Some(damaged.clone()), ..owner.clone().step(&[]) };
    assert_eq!(bed.store.commit(commit).await.unwrap_err().kind, ErrorKind::Conflict);
    let output = OutputSegment { run: owner.run, segment: damaged };
    assert_eq!(bed.store.append(vec![output]).await.unwrap(), [Appended::Refused]);
    assert_eq!(bed.run(owner.run).await.next_seq, 3);
}

async fn an_end_must_be_an_end(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let outcome = StepOutcome::End { status: Status::Ready, failure: None };
    let error = bed.store.commit(owner.commit(outcome)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Conflict);
    assert_eq!(bed.status(owner.run).await, Status::Running);
}

async fn a_release_brings_no_checkpoints(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let commit = StepCommit { outcome: StepOutcome::Release, ..owner.step(&[]) };
    assert_eq!(bed.store.commit(commit).await.unwrap_err().kind, ErrorKind::Conflict);
    assert_eq!(bed.status(owner.run).await, Status::Running);
}

async fn a_release_keeps_the_mark_of_void_output(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.commit(owner.step(&[("log", append("a"))])).await;
    let output = owner.tokens(3);
    bed.store.append(vec![output]).await.unwrap();
    bed.advance(2);
    let mut release = owner.commit(StepOutcome::Release);
    // A drained run names no next nodes; those of its last superstep stand.
    release.next = Frontier::default();
    release.worked = Duration::from_secs(2);
    assert_eq!(bed.commit(release).await, APPLIED);
    let record = bed.run(owner.run).await;
    assert_eq!((record.status, record.fence, record.instance), (Status::Ready, 2, None));
    assert_eq!((record.step, record.next), (0, vec!["more".to_owned()]));
    assert_eq!((record.committed_seq, record.next_seq), (2, 6));
    assert_eq!((record.ready_at, record.worked), (bed.now(), Duration::from_secs(2)));
    assert_eq!((record.attempt, record.commits), (1, 2));
    assert_eq!(bed.counts(), (0, 1, 0));
}

async fn an_end_frees_the_thread(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.advance(3);
    assert_eq!(bed.commit(owner.end(Status::Success)).await, APPLIED);
    let record = bed.run(owner.run).await;
    assert_eq!((record.status, record.ended_at), (Status::Success, Some(bed.now())));
    assert_eq!((record.instance, record.failure), (None, None));
    let thread = bed.store.thread(thread_id(1)).await.unwrap().unwrap();
    assert_eq!(thread.active_run, None);
    assert_eq!(bed.counts(), (0, 0, 0));
    assert!(bed.store.pool_counts().is_empty());
    bed.started(new_run(2, 1)).await;
}

async fn ends_promote_in_order(bed: Bed) {
    let mut owner = bed.started(new_run(9, 1)).await;
    bed.queued(new_run(5, 1)).await;
    bed.queued(new_run(3, 1)).await;
    bed.queued(NewRun { multitask: Multitask::Interrupt, ..new_run(4, 1) }).await;
    bed.queued(NewRun { priority: Priority::HIGH, ..new_run(2, 1) }).await;
    for expected in [4, 5, 3, 2] {
        match bed.commit(owner.end(Status::Success)).await {
            CommitAck::Applied { promoted, .. } => assert_eq!(promoted, Some(run_id(expected))),
            CommitAck::Fenced => panic!("fenced"),
        }
        let thread = bed.store.thread(thread_id(1)).await.unwrap().unwrap();
        assert_eq!(thread.active_run, Some(run_id(expected)));
        owner = bed.claim_one().await;
        assert_eq!(owner.run, run_id(expected));
    }
    assert_eq!(bed.commit(owner.end(Status::Success)).await, APPLIED);
}

async fn a_promoted_run_waits_for_its_delay(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.queued(NewRun { delay: Duration::from_secs(60), ..new_run(2, 1) }).await;
    bed.commit(owner.end(Status::Success)).await;
    assert_eq!(bed.status(run_id(2)).await, Status::Ready);
    assert!(bed.claim(1).await.is_empty());
    bed.advance(60);
    assert_eq!(bed.claim_one().await.run, run_id(2));
}

async fn a_cancel_request_is_told(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    assert!(matches!(bed.cancel(owner.run).await, Cancelled::Requested { .. }));
    let told = acknowledged(true, None);
    assert_eq!(bed.commit(owner.step(&[])).await, told);
    assert_eq!(bed.commit(owner.end(Status::Cancelled)).await, told);
}

async fn a_failure_is_kept(mut bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let failure = Failure {
        retry_after: Some(Duration::from_millis(1500)),
        ..Failure::new(clearway_core::Code::UpstreamRateLimited, "slow \"down\"").retryable()
    };
    let outcome = StepOutcome::End { status: Status::Error, failure: Some(failure.clone()) };
    bed.commit(owner.commit(outcome)).await;
    bed.restart().await;
    assert_eq!(bed.run(owner.run).await.failure, Some(failure));
}

async fn output_is_stored(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    for end_seq in [4, 7] {
        let output = owner.tokens(3);
        let answer = bed.store.append(vec![output]).await.unwrap();
        assert_eq!(answer, [Appended::Stored { end_seq }]);
    }
    let record = bed.run(owner.run).await;
    assert_eq!((record.next_seq, record.committed_seq), (7, 1));
    let log = bed.log(owner.run).await;
    assert_eq!(log[1..4], tokens(1, 3, 1).decode().unwrap());
    assert_eq!(log.len(), 7);
}

async fn output_of_many_runs_in_one_call(bed: Bed) {
    let mut a = bed.started(new_run(1, 1)).await;
    let mut b = bed.started(new_run(2, 2)).await;
    let unknown = OutputSegment { run: run_id(3), segment: tokens(1, 1, 1) };
    let output = vec![a.tokens(1), unknown, b.tokens(2), a.tokens(3)];
    assert_eq!(
        bed.store.append(output).await.unwrap(),
        [
            Appended::Stored { end_seq: 2 },
            Appended::Refused,
            Appended::Stored { end_seq: 3 },
            Appended::Stored { end_seq: 5 },
        ]
    );
    assert!(bed.store.append(Vec::new()).await.unwrap().is_empty());
}

async fn output_that_is_known_is_not_stored_again(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let output = owner.tokens(3);
    bed.store.append(vec![output.clone()]).await.unwrap();
    assert_eq!(bed.store.append(vec![output]).await.unwrap(), [Appended::Stored { end_seq: 4 }]);
    let longer = OutputSegment { run: owner.run, segment: tokens(2, 4, 1) };
    assert_eq!(bed.store.append(vec![longer]).await.unwrap(), [Appended::Stored { end_seq: 6 }]);
    let shorter = OutputSegment { run: owner.run, segment: tokens(1, 1, 1) };
    assert_eq!(bed.store.append(vec![shorter]).await.unwrap(), [Appended::Stored { end_seq: 6 }]);
    let seqs: Vec<u64> = bed.log(owner.run).await.iter().map(|event| event.seq).collect();
    assert_eq!(seqs, [0, 1, 2, 3, 4, 5]);
}

async fn output_with_a_gap_is_refused(bed: Bed) {
    let owner = bed.started(new_run(1, 1)).await;
    let output = OutputSegment { run: owner.run, segment: tokens(2, 1, 1) };
    assert_eq!(bed.store.append(vec![output]).await.unwrap(), [Appended::Refused]);
    assert_eq!(bed.run(owner.run).await.next_seq, 1);
}

/// Every way to lose a lease, each after output was taken under it.
async fn output_of_a_stale_owner_is_refused(bed: Bed) {
    bed.store.join(ME).await.unwrap();
    for (number, way) in (1..).zip(["release", "hand back", "end", "sweep", "join"]) {
        let mut stale = bed.started(new_run(number, number)).await;
        let output = stale.tokens(1);
        bed.store.append(vec![output]).await.unwrap();
        match way {
            "release" => assert!(bed.store.release(stale.run, stale.fence).await.unwrap()),
            "hand back" => {
                assert_eq!(bed.commit(stale.commit(StepOutcome::Release)).await, APPLIED);
            }
            "end" => assert_eq!(bed.commit(stale.end(Status::Success)).await, APPLIED),
            "sweep" => {
                bed.advance(60);
                assert!(bed.store.sweep(OTHER).await.unwrap().taken_over.contains(&stale.run));
            }
            _ => assert!(bed.store.join(OTHER).await.unwrap().resumed > 0),
        }
        let before = bed.log(stale.run).await;
        let output = stale.tokens(1);
        let refused = bed.store.append(vec![output.clone()]).await.unwrap();
        assert_eq!(refused, [Appended::Refused], "after {way}");
        if way != "end" {
            let mut owner = bed.claim_one().await;
            assert_eq!(owner.run, stale.run);
            let refused = bed.store.append(vec![output]).await.unwrap();
            assert_eq!(refused, [Appended::Refused], "after {way} and a new claim");
            let output = owner.tokens(1);
            let end_seq = owner.seq;
            let stored = bed.store.append(vec![output]).await.unwrap();
            assert_eq!(stored, [Appended::Stored { end_seq }], "after {way}");
            bed.commit(owner.end(Status::Success)).await;
        } else {
            assert_eq!(bed.log(stale.run).await, before);
        }
    }
}

async fn output_survives_a_kill(mut bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let output = owner.tokens(9);
    bed.store.append(vec![output]).await.unwrap();
    bed.restart().await;
    let joined = bed.store.join(OTHER).await.unwrap();
    assert_eq!((joined.resumed, joined.waiting), (1, 1));
    let record = bed.run(owner.run).await;
    assert_eq!((record.status, record.next_seq, record.fence), (Status::Ready, 10, 2));
    assert_eq!(bed.log(owner.run).await.len(), 10);
}
