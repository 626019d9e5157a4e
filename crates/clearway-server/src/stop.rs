//! The two stages of stopping, cheap to look at from every connection.

use std::sync::atomic::{AtomicU8, Ordering};

use tokio_util::sync::CancellationToken;

/// Where the server stands on its way to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Open,
    /// Nothing new; open exchanges are finished.
    Soft,
    /// Streams say goodbye, then everything closes.
    Hard,
}

/// A connection looks at the stage each time it is polled and waits for the tokens only to be woken.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    stage: AtomicU8,
    pub soft: CancellationToken,
    pub hard: CancellationToken,
}

impl Stop {
    pub(crate) fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Acquire) {
            0 => Stage::Open,
            1 => Stage::Soft,
            _ => Stage::Hard,
        }
    }

    pub(crate) fn advance(&self, stage: Stage) {
        // Set before the tokens fire: whoever is woken must find the new stage.
        self.stage.fetch_max(stage as u8, Ordering::Release);
        if stage >= Stage::Soft {
            self.soft.cancel();
        }
        if stage >= Stage::Hard {
            self.hard.cancel();
        }
    }
}
