//! Notes of calls, questions that outlive their run, and timers.

use super::*;
use crate::{ErrorKind, Journaled, rules};

on_every_store! {
    notes_are_found_by_the_next_owner
    notes_of_the_first_superstep
    the_first_note_stands
    notes_are_fenced
    settled_notes_are_gone
    an_end_leaves_only_the_notes_of_its_frontier
    a_question_outlives_its_run
    an_answer_goes_on_where_the_thread_stopped
    plain_input_on_a_thread_that_was_stopped
    a_reset_forgets_notes
    large_notes_are_kept_and_larger_ones_refused
    only_so_many_notes
    threads_do_not_mix
    a_release_brings_nothing_but_events
}

async fn keep(bed: &Bed, owner: &Owner, entries: &[Entry]) -> Journaled {
    bed.store.journal(owner.run, owner.fence, entries.to_vec()).await.unwrap()
}

async fn notes_are_found_by_the_next_owner(mut bed: Bed) {
    bed.store.join(ME).await.unwrap();
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.commit(owner.step(&[("log", append("a"))])).await;
    let done = note(owner.task(), "done", json!({"writes": []}));
    assert_eq!(keep(&bed, &owner, std::slice::from_ref(&done)).await, Journaled::Stored);
    let before = bed.run(owner.run).await;
    assert_eq!(before.commits, 1, "a note is no commit");
    bed.restart().await;
    bed.store.join(OTHER).await.unwrap();
    let claim = bed.claim_one().await.claim;
    assert_eq!(claim.journal, std::slice::from_ref(&done));
    assert_eq!(claim.frontier, frontier(owner.run, 1, &["more"]));
    assert!(claim.taken_in);
    assert_eq!(bed.head(thread_id(1)).await.unwrap().journal, [done]);
}

async fn notes_of_the_first_superstep(bed: Bed) {
    let owner = bed.started(new_run(1, 1)).await;
    let done = note(owner.task(), "done", json!(1));
    keep(&bed, &owner, std::slice::from_ref(&done)).await;
    bed.store.release(owner.run, owner.fence).await.unwrap();
    let claim = bed.claim_one().await.claim;
    assert_eq!((claim.head, claim.taken_in), (None, false));
    assert_eq!(claim.journal, [done], "before any checkpoint");
}

async fn the_first_note_stands(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let task = owner.task();
    let first = note(task, "step:pay", json!({"at": 1}));
    let second = note(task, "step:pay", json!({"at": 2}));
    let other = note(task, "step:mail", json!(null));
    assert_eq!(keep(&bed, &owner, &[first.clone(), second.clone()]).await, Journaled::Stored);
    keep(&bed, &owner, &[second.clone(), other.clone()]).await;
    let mut commit = owner.commit(StepOutcome::Continue);
    commit.notes = vec![second];
    bed.commit(commit).await;
    bed.store.release(owner.run, owner.fence).await.unwrap();
    assert_eq!(bed.claim_one().await.claim.journal, [other, first]);
}

async fn notes_are_fenced(bed: Bed) {
    let stale = bed.started(new_run(1, 1)).await;
    let entry = note(stale.task(), "done", json!(1));
    bed.store.release(stale.run, stale.fence).await.unwrap();
    let entries = std::slice::from_ref(&entry);
    assert_eq!(keep(&bed, &stale, entries).await, Journaled::Fenced, "it waits");
    let mut owner = bed.claim_one().await;
    assert_eq!(keep(&bed, &stale, entries).await, Journaled::Fenced, "somebody else's");
    bed.commit(owner.end(Status::Success)).await;
    assert_eq!(keep(&bed, &owner, entries).await, Journaled::Fenced, "it ended");
    let nobody = bed.store.journal(run_id(9), 0, vec![entry]).await.unwrap();
    assert_eq!(nobody, Journaled::Fenced);
    assert_eq!(bed.started(new_run(2, 1)).await.claim.journal, []);
}

async fn settled_notes_are_gone(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let (task, other) = (owner.task(), TaskId::of(owner.run, 9, "other", 0));
    let stays = note(other, "done", json!(2));
    keep(&bed, &owner, &[note(task, "done", json!(1)), stays.clone()]).await;
    let mut step = owner.step(&[]);
    step.notes = vec![note(task, "answer:0", json!(3))];
    step.settled = vec![task];
    bed.commit(step).await;
    bed.store.release(owner.run, owner.fence).await.unwrap();
    assert_eq!(bed.claim_one().await.claim.journal, [stays]);
}

async fn an_end_leaves_only_the_notes_of_its_frontier(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.commit(owner.step(&[])).await;
    let stays = note(owner.task(), "intent:mail:0", json!(1));
    let goes = note(TaskId::of(owner.run, 9, "other", 0), "done", json!(2));
    keep(&bed, &owner, &[stays.clone(), goes]).await;
    bed.wake(owner.run, &[note(TaskId(owner.run.0), "signal:go:0", json!(3))]).await;
    let mut failed = owner.end(Status::Error);
    failed.next = frontier(owner.run, 1, &["more"]);
    bed.commit(failed).await;
    assert_eq!(bed.head(thread_id(1)).await.unwrap().journal, std::slice::from_ref(&stays));
    assert_eq!(bed.started(new_run(2, 1)).await.claim.journal, [stays]);
}

/// A run that ended with a question on its thread.
async fn asked(bed: &Bed) -> (Owner, Entry) {
    let mut owner = bed.started(new_run(1, 1)).await;
    bed.commit(owner.step(&[("log", append("a"))])).await;
    let question = note(owner.task(), "interrupt:0", json!({"value": "ok?"}));
    let mut end = owner.end(Status::Success);
    end.next = frontier(owner.run, 1, &["more"]);
    end.notes = vec![question.clone()];
    bed.commit(end).await;
    (owner, question)
}

async fn a_question_outlives_its_run(mut bed: Bed) {
    let (owner, question) = asked(&bed).await;
    bed.restart().await;
    let record = bed.run(owner.run).await;
    assert_eq!((record.status, &record.next[..]), (Status::Success, &["more".to_owned()][..]));
    let head = bed.head(thread_id(1)).await.unwrap();
    assert_eq!((head.run, head.source), (Some(owner.run), Source::Loop));
    assert_eq!(head.frontier, frontier(owner.run, 1, &["more"]));
    assert_eq!(head.journal, [question]);
}

async fn an_answer_goes_on_where_the_thread_stopped(bed: Bed) {
    let (first, question) = asked(&bed).await;
    let command = clearway_core::machine::Command {
        resume: Some(clearway_core::machine::Resume::All(json!(true))),
        ..Default::default()
    };
    let mut new = new_run(2, 1);
    new.options.command = Some(command.clone());
    let mut owner = bed.goes_on(new).await;
    let claim = owner.claim.clone();
    assert_eq!(claim.record.options.command, Some(command));
    assert_eq!((claim.head, claim.taken_in), (bed.run(first.run).await.checkpoint, false));
    assert_eq!(claim.frontier, frontier(first.run, 1, &["more"]));
    assert_eq!(claim.journal, std::slice::from_ref(&question));
    // The same after a crash, with what it noted.
    let answer = note(first.task(), "answer:0", json!({"value": true}));
    keep(&bed, &owner, std::slice::from_ref(&answer)).await;
    bed.store.release(owner.run, owner.fence).await.unwrap();
    let claim = bed.claim_one().await.claim;
    assert_eq!(claim.journal, [answer, question]);
    assert_eq!((claim.frontier, claim.taken_in), (owner.claim.frontier.clone(), false));
    owner.fence = claim.record.fence;
    let mut step = owner.step(&[("log", append("b"))]);
    step.settled = vec![first.task()];
    bed.commit(step).await;
    let head = bed.head(thread_id(1)).await.unwrap();
    assert_eq!((head.journal, head.run), (Vec::new(), Some(owner.run)));
}

async fn plain_input_on_a_thread_that_was_stopped(bed: Bed) {
    let (first, _) = asked(&bed).await;
    let mut owner = bed.goes_on(new_run(2, 1)).await;
    let before = owner.claim.frontier.clone();
    let mut step = owner.step(&[("log", append("something else"))]);
    step.settled = before.due.iter().map(|due| due.task).collect();
    assert_eq!(step.settled, [first.task()]);
    bed.commit(step).await;
    bed.commit(owner.end(Status::Success)).await;
    let next = bed.started(new_run(3, 1)).await;
    assert_eq!(next.claim.journal, []);
}

async fn a_reset_forgets_notes(bed: Bed) {
    asked(&bed).await;
    bed.store.reset_thread(thread_id(1)).await.unwrap();
    let claim = bed.started(new_run(2, 1)).await.claim;
    assert_eq!((claim.journal, claim.frontier), (Vec::new(), Frontier::default()));
}

async fn large_notes_are_kept_and_larger_ones_refused(mut bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let task = owner.task();
    let text = |length: usize| json!("x".repeat(length));
    let fits = note(task, "fits", text(rules::JOURNAL_ENTRY_BYTES - 2));
    keep(&bed, &owner, std::slice::from_ref(&fits)).await;
    let larger = note(task, "larger", text(rules::JOURNAL_ENTRY_BYTES - 1));
    let entries = vec![note(task, "small", json!(1)), larger.clone()];
    let error = bed.store.journal(owner.run, owner.fence, entries).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Conflict);
    assert!(error.message.contains("journal_entry_bytes"), "{error}");
    let error = bed.store.wake(owner.run, vec![larger.clone()]).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Conflict);
    let mut step = owner.clone().step(&[("log", append("a"))]);
    step.notes = vec![larger];
    assert_eq!(bed.store.commit(step).await.unwrap_err().kind, ErrorKind::Conflict);
    assert_eq!(bed.commit(owner.commit(StepOutcome::Continue)).await, APPLIED);
    bed.store.release(owner.run, owner.fence).await.unwrap();
    bed.restart().await;
    assert_eq!(bed.claim_one().await.claim.journal, [fits], "all of a call or nothing");
}

async fn only_so_many_notes(bed: Bed) {
    let owner = bed.started(new_run(1, 1)).await;
    let task = owner.task();
    let notes: Vec<Entry> =
        (0..rules::JOURNAL_ENTRIES).map(|n| note(task, &n.to_string(), json!(n))).collect();
    assert_eq!(keep(&bed, &owner, &notes).await, Journaled::Stored);
    assert_eq!(keep(&bed, &owner, &notes[7..9]).await, Journaled::Stored, "nothing is added");
    let one_more = vec![note(task, "one more", json!(1))];
    let error = bed.store.journal(owner.run, owner.fence, one_more).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Conflict);
    assert!(error.message.contains("journal_entries"), "{error}");
}

async fn threads_do_not_mix(bed: Bed) {
    let task = TaskId(Uuid::from_u128(5));
    let owners = [bed.started(new_run(1, 1)).await, bed.started(new_run(2, 2)).await];
    for (number, owner) in (1..).zip(&owners) {
        keep(&bed, owner, &[note(task, "done", json!(number))]).await;
        bed.store.release(owner.run, owner.fence).await.unwrap();
    }
    for claim in bed.claim(2).await {
        let number = claim.record.id.0.as_u128() as u64;
        assert_eq!(claim.journal, [note(task, "done", json!(number))]);
    }
}

async fn a_release_brings_nothing_but_events(bed: Bed) {
    let mut owner = bed.started(new_run(1, 1)).await;
    let mut release = owner.commit(StepOutcome::Release);
    release.notes = vec![note(owner.task(), "done", json!(1))];
    assert_eq!(bed.store.commit(release).await.unwrap_err().kind, ErrorKind::Conflict);
    assert_eq!(bed.status(owner.run).await, Status::Running);
}
