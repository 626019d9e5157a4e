//! Texts that are being embedded: one for everybody who asks for the same.
//!
//! An [`Item`] belongs to the work, not to whoever asked first. Each asker holds a [`Seat`] at it and
//! waits by its own deadline; when the one that began leaves, the others still get the vector. When
//! the last seat is given up, the work on the item is given up too.
//!
//! **Invariant:** a seat is taken, and an unwatched item is removed, only under the board's lock; so
//! nobody ever waits for an item that was given up.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use clearway_core::wait::{WaitCell, WaitKind};
use clearway_core::{Code, Deadline};
use tokio::sync::watch;

use super::cache::Key;
use crate::call::CallCx;
use crate::failure::Error;
use crate::watch::{Expired, Watch, now};

/// A text on its way to becoming a vector.
pub(super) struct Item {
    pub(super) key: Key,
    pub(super) text: Arc<str>,
    /// Estimated.
    pub(super) tokens: u64,
    /// Of the call that asked first.
    pub(super) call_id: Arc<str>,
    state: watch::Sender<State>,
}

/// How far an item is.
#[derive(Clone)]
enum State {
    Queued,
    /// A call for it is under way; the cell says what that call waits for.
    Asked(Arc<WaitCell>),
    Done(Outcome),
}

/// What became of an item.
pub(super) type Outcome = Result<Embedded, Error>;

/// A vector and what it cost.
#[derive(Clone)]
pub(super) struct Embedded {
    pub(super) vector: Arc<[f32]>,
    pub(super) tokens: u64,
}

impl Item {
    pub(super) fn asked(&self, cell: &Arc<WaitCell>) {
        self.state.send_replace(State::Asked(cell.clone()));
    }

    pub(super) fn is_watched(&self) -> bool {
        !self.state.is_closed()
    }

    /// Returns when nobody waits for it, which may change again.
    pub(super) async fn unwatched(&self) {
        self.state.closed().await;
    }

    fn done(&self, outcome: Outcome) {
        self.state.send_replace(State::Done(outcome));
    }
}

/// A place to wait for an item; giving it up is dropping it.
pub(super) struct Seat(watch::Receiver<State>);

impl Seat {
    /// Waits for the outcome, and shows in the caller's cell what that takes.
    pub(super) async fn outcome(
        &mut self,
        cx: &CallCx,
        watch: &mut Watch,
        label: &Arc<str>,
    ) -> Result<Outcome, Expired> {
        loop {
            let state = self.0.borrow_and_update().clone();
            match state {
                State::Done(outcome) => return Ok(outcome),
                State::Queued => {
                    let limit = Some(watch.deadline());
                    cx.wait.enter(WaitKind::Batch, label.clone(), limit, now());
                }
                State::Asked(cell) => cx.wait.follow(cell, now()),
            }
            let limit = watch.deadline();
            let mut changed = pin!(self.0.changed());
            if watch.within(limit, |cx| changed.as_mut().poll(cx)).await?.is_err() {
                return Ok(Err(lost()));
            }
        }
    }
}

/// Should its work vanish without a word, whoever waits for it is told.
fn lost() -> Error {
    Error::refused(Code::Internal, "the work on a text ended without a result")
}

/// All items that are queued or asked for.
#[derive(Default)]
pub(super) struct Flights(HashMap<Key, Flight>);

struct Flight {
    item: Arc<Item>,
    /// The latest of those who asked.
    deadline: Deadline,
}

impl Flights {
    /// A seat at the item with this key, if there is one.
    pub(super) fn join(&mut self, key: &Key, deadline: Deadline) -> Option<Seat> {
        let flight = self.0.get_mut(key)?;
        flight.deadline = flight.deadline.max(deadline);
        Some(Seat(flight.item.state.subscribe()))
    }

    /// A new item, and the first seat at it.
    pub(super) fn begin(
        &mut self,
        key: Key,
        text: Arc<str>,
        tokens: u64,
        call_id: Arc<str>,
        deadline: Deadline,
    ) -> (Arc<Item>, Seat) {
        let (state, seat) = watch::channel(State::Queued);
        let item = Arc::new(Item { key, text, tokens, call_id, state });
        self.0.insert(key, Flight { item: item.clone(), deadline });
        (item, Seat(seat))
    }

    /// The latest deadline of those who wait for any of the items.
    pub(super) fn latest(&self, items: &[Arc<Item>]) -> Option<Deadline> {
        items.iter().filter_map(|item| Some(self.0.get(&item.key)?.deadline)).max()
    }

    /// Tells everybody, and forgets the item.
    pub(super) fn land(&mut self, item: &Arc<Item>, outcome: Outcome) {
        self.forget(item);
        item.done(outcome);
    }

    /// Gives up the items if nobody waits for any of them.
    pub(super) fn give_up(&mut self, items: &[Arc<Item>]) -> bool {
        let unwatched = !items.iter().any(|item| item.is_watched());
        if unwatched {
            items.iter().for_each(|item| self.forget(item));
        }
        unwatched
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    fn forget(&mut self, item: &Arc<Item>) {
        // Somebody may have begun anew with the same text.
        if let Entry::Occupied(found) = self.0.entry(item.key)
            && Arc::ptr_eq(&found.get().item, item)
        {
            found.remove();
        }
    }
}
