//! Calls that belong to no run, while they are under way: so that they, too, can be seen waiting.
//!
//! **Invariant:** a call is listed exactly as long as its future lives.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use clearway_core::wait::Waiting;

use crate::call::CallCx;
use crate::watch::now;

/// The list.
#[derive(Debug, Default)]
pub(crate) struct Calls(Mutex<List>);

#[derive(Debug, Default)]
struct List {
    next: u64,
    calls: BTreeMap<u64, Listed>,
}

#[derive(Debug)]
struct Listed {
    cx: CallCx,
    model: String,
    items: usize,
}

/// A call under way.
#[derive(Clone, Debug)]
pub struct CallView {
    pub id: String,
    pub tenant: String,
    /// The configured name.
    pub model: String,
    /// Texts in it.
    pub items: usize,
    pub waiting: Waiting,
}

/// Takes the call off the list when it is dropped.
#[derive(Debug)]
pub(crate) struct Listing<'a> {
    calls: &'a Calls,
    number: u64,
}

impl Calls {
    pub(crate) fn list(&self, cx: &CallCx, model: &str, items: usize) -> Listing<'_> {
        let mut list = self.lock();
        list.next += 1;
        let number = list.next;
        list.calls.insert(number, Listed { cx: cx.clone(), model: model.to_owned(), items });
        Listing { calls: self, number }
    }

    /// What is under way, oldest first.
    pub(crate) fn views(&self) -> Vec<CallView> {
        let at = now();
        let view = |call: &Listed| CallView {
            id: call.cx.call_id.clone(),
            tenant: call.cx.tenant.to_string(),
            model: call.model.clone(),
            items: call.items,
            waiting: call.cx.wait.read(at),
        };
        self.lock().calls.values().map(view).collect()
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Listing<'_> {
    fn drop(&mut self) {
        self.calls.lock().calls.remove(&self.number);
    }
}
