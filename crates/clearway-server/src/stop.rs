//! The stages of stopping, cheap to look at from every connection.

use std::sync::atomic::{AtomicU8, Ordering};

use tokio_util::sync::CancellationToken;

/// Where the server stands on its way to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Open,
    /// No new work; open exchanges are finished. Whoever comes gets one answer, so that what still
    /// runs can be watched and cancelled.
    Soft,
    /// Nobody comes any more, and who has said nothing is not waited for.
    Closed,
    /// Streams say goodbye, then everything closes.
    Hard,
}

/// A connection looks at the stage each time it is polled and waits for the tokens only to be woken.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    stage: AtomicU8,
    pub soft: CancellationToken,
    pub closed: CancellationToken,
    pub hard: CancellationToken,
}

impl Stop {
    pub(crate) fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Acquire) {
            0 => Stage::Open,
            1 => Stage::Soft,
            2 => Stage::Closed,
            _ => Stage::Hard,
        }
    }

    pub(crate) fn advance(&self, stage: Stage) {
        // Set before the tokens fire: whoever is woken must find the new stage.
        self.stage.fetch_max(stage as u8, Ordering::Release);
        if stage >= Stage::Soft {
            self.soft.cancel();
        }
        if stage >= Stage::Closed {
            self.closed.cancel();
        }
        if stage >= Stage::Hard {
            self.hard.cancel();
        }
    }
}
