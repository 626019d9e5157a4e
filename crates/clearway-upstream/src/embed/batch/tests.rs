//! The board and the hunt by themselves.

use super::*;
use crate::embed::cache::Key;
use crate::embed::flight::Seat;
use crate::embed::tests::route;

fn lane(workers: usize) -> Lane {
    let id = LaneId { model: "m".into(), dimensions: None, purpose: Purpose::Document };
    Lane { id, route: route(), workers }
}

/// Puts texts of so many tokens on the board.
fn fill(board: &mut Board, lane: &Lane, tokens: &[u64]) -> (Vec<Seat>, Start) {
    let deadline = Deadline::after(now(), Duration::from_secs(25));
    let offset = board.flights.len();
    let (items, seats) = (offset..)
        .zip(tokens)
        .map(|(number, tokens)| {
            let key = Key::new("p", "m", None, Purpose::Document, &number.to_string());
            board.flights.begin(key, "text".into(), *tokens, "call".into(), deadline)
        })
        .unzip();
    let start = board.enqueue(lane, items);
    (seats, start)
}

fn sizes(board: &mut Board, lane: &Lane, workers: usize) -> Vec<usize> {
    let mut sizes = Vec::new();
    for _ in 0..workers {
        sizes.extend(board.take(lane, true).map(|batch| batch.len()));
    }
    while let Some(batch) = board.take(lane, false) {
        sizes.push(batch.len());
    }
    sizes
}

#[test]
fn the_first_leaves_at_once_and_the_next_gather() {
    let (mut board, lane) = (Board::default(), lane(8));
    let (_first, start) = fill(&mut board, &lane, &[1]);
    assert_eq!(start, Start { now: 1, gathering: false });
    let (_second, start) = fill(&mut board, &lane, &[1]);
    assert_eq!(start, Start::default(), "the one that starts takes both");
    assert_eq!(board.take(&lane, true).unwrap().len(), 2);

    let (_third, start) = fill(&mut board, &lane, &[1]);
    assert_eq!(start, Start { now: 0, gathering: true });
    let (_fourth, start) = fill(&mut board, &lane, &[1]);
    assert_eq!(start, Start::default(), "somebody gathers already");
    assert_eq!(board.take(&lane, false).unwrap().len(), 2, "a worker that is done takes them");
    assert!(board.take(&lane, false).is_none());
    assert!(board.gathered(&lane));
    assert!(board.take(&lane, true).is_none(), "and nothing is left for the one that gathered");
    assert!(board.queues.is_empty());
    assert_eq!(board.queued_bytes, 0);
}

#[test]
fn batches_are_bounded_by_items_tokens_and_workers() {
    let (mut board, wide) = (Board::default(), lane(4));
    let (_seats, start) = fill(&mut board, &wide, &[1; 600]);
    assert_eq!(start, Start { now: 2, gathering: true }, "two full ones, and the rest gathers");
    assert_eq!(sizes(&mut board, &wide, 2), [256, 256, 88]);

    let (mut board, narrow) = (Board::default(), lane(2));
    let (_seats, start) = fill(&mut board, &narrow, &[1; 5000]);
    assert_eq!(start, Start { now: 2, gathering: false });
    assert_eq!(sizes(&mut board, &narrow, 2).len(), 20);

    let (mut board, wide) = (Board::default(), lane(8));
    let (_seats, start) = fill(&mut board, &wide, &[8000; 100]);
    assert_eq!(start.now, 4);
    assert_eq!(sizes(&mut board, &wide, 4), [25, 25, 25, 25]);
}

#[test]
fn what_nobody_waits_for_is_not_sent() {
    let (mut board, lane) = (Board::default(), lane(1));
    let (mut seats, _) = fill(&mut board, &lane, &[1; 4]);
    seats.drain(1..3);
    assert_eq!(sizes(&mut board, &lane, 1), [2]);
    drop(seats);
    let (seats, _) = fill(&mut board, &lane, &[1; 4]);
    drop(seats);
    assert!(board.take(&lane, true).is_none());
}

#[test]
fn the_queue_is_bounded_but_never_closed_to_one_call() {
    let mut board = Board::default();
    assert!(board.has_room(usize::MAX), "alone");
    board.queued_bytes = MAX_QUEUED_BYTES - 1;
    assert!(board.has_room(1));
    assert!(!board.has_room(2));
}

/// Runs a hunt against a provider that refuses what `refuses` says; returns the number of calls and
/// how many items failed.
fn hunt(count: usize, refuses: impl Fn(&[Arc<Item>]) -> Option<Code>) -> (usize, usize) {
    let mut board = Board::default();
    let lane = lane(1);
    let (_seats, _) = fill(&mut board, &lane, &vec![1; count]);
    let mut hunt = Hunt::new(board.take(&lane, true).unwrap());
    let mut failed = 0;
    while let Some(part) = hunt.next() {
        match refuses(&part.items) {
            None => hunt.found(),
            Some(code) => failed += hunt.split(part, code).map_or(0, |items| items.len()),
        }
    }
    (hunt.calls, failed)
}

#[test]
fn a_poisonous_text_is_found_alone() {
    let poison = |number: usize| Key::new("p", "m", None, Purpose::Document, &number.to_string());
    for at in [0, 1, 77, 199] {
        let (calls, failed) = hunt(200, |items| {
            let hit = items.iter().any(|item| item.key == poison(at));
            hit.then_some(Code::UpstreamInvalidRequest)
        });
        assert_eq!(failed, 1, "text {at}");
        assert!(calls <= 17, "{calls} calls");
    }
    let (_, failed) = hunt(200, |items| {
        let hit = items.iter().any(|item| [3, 140, 141].map(poison).contains(&item.key));
        hit.then_some(Code::UpstreamContextLength)
    });
    assert_eq!(failed, 3);
}

#[test]
fn a_request_that_is_wrong_in_itself_is_not_cut_for_ever() {
    let (calls, failed) = hunt(256, |_| Some(Code::UpstreamInvalidRequest));
    assert_eq!((calls, failed), (MAX_FRUITLESS, 256));
    let (calls, failed) = hunt(256, |_| Some(Code::UpstreamServerError));
    assert_eq!((calls, failed), (1, 256), "nothing that a text could be blamed for");
}

#[test]
fn bad_vectors_are_asked_for_once_more_by_halves() {
    assert_eq!(hunt(100, |_| Some(Code::UpstreamBadVectors)), (3, 100));
    let large = |items: &[Arc<Item>]| (items.len() > 50).then_some(Code::UpstreamBadVectors);
    assert_eq!(hunt(100, large), (3, 0));
    assert_eq!(hunt(1, |_| Some(Code::UpstreamBadVectors)), (1, 1));
}
