//! The calls of a superstep, while they run.

use std::future::Future;
use std::pin::Pin;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::calls::CallEnd;

/// A call's number, and how it ended.
pub(super) type CallFuture = Pin<Box<dyn Future<Output = (u32, CallEnd)> + Send>>;

/// One alone is polled with the task's own waker: a token of a chat wakes the task, and finds no
/// queue and no waker of its own in between.
#[derive(Default)]
pub(super) struct Calls {
    alone: Option<CallFuture>,
    beside: FuturesUnordered<CallFuture>,
}

impl Calls {
    pub(super) fn push(&mut self, call: CallFuture) {
        if self.is_empty() {
            self.alone = Some(call);
            return;
        }
        self.beside.extend(self.alone.take());
        self.beside.push(call);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.alone.is_none() && self.beside.is_empty()
    }

    /// The next call that ends; `None` when there is none. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<(u32, CallEnd)> {
        let Some(call) = &mut self.alone else { return self.beside.next().await };
        let ended = call.await;
        self.alone = None;
        Some(ended)
    }
}
