//! Standing tasks that get what the texts of a source still lack, such as vectors from a provider.
//!
//! A task looks after each build of the index, and settles what is missing in batches; what fails is tried again later,
//! after a pause that grows.
//!
//! Not here: what is missing, and how it is got (`embed`, `triples`).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::shelf::{Progress, State};
use super::{Inner, Shelf};

/// Before what failed is tried again; grows to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Something that texts can lack.
pub(super) trait Filling: Send + 'static {
    /// A text that lacks it.
    type Wanted: Send + Sync;
    /// Texts that are settled together.
    const BATCH: usize;

    /// Where it is told how far it is.
    fn progress(state: &mut State) -> &mut Progress;

    /// Texts that lack it, without those that nothing can be got for, and how many lack it in all.
    fn missing(
        &self,
        inner: &Inner,
        shelf: &Shelf,
    ) -> impl Future<Output = Missing<Self::Wanted>> + Send;

    /// Settles a batch; says whether nothing of it is left for later.
    fn settle(
        &mut self,
        inner: &Inner,
        shelf: &Shelf,
        batch: &[Self::Wanted],
    ) -> impl Future<Output = bool> + Send;
}

/// What a look at an index found.
pub(super) struct Missing<W> {
    pub wanted: Vec<W>,
    /// Chunks in the index, and those of them whose text lacks it.
    pub chunks: usize,
    pub lacking: usize,
}

pub(super) fn start<F: Filling>(inner: &Arc<Inner>, shelf: &Arc<Shelf>, filling: F) {
    let (owner, inner, shelf) = (inner.tasks.clone(), inner.clone(), shelf.clone());
    owner.spawn(async move {
        let stop = inner.tasks.hard.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = shelf.stop.cancelled() => {}
            () = serve(&inner, &shelf, filling) => {}
        }
    });
}

async fn serve<F: Filling>(inner: &Inner, shelf: &Shelf, mut filling: F) {
    let mut pause = PAUSE;
    loop {
        // What was got before is in the index then, so whatever has nothing there needs it.
        shelf.until(|state| state.loaded && state.unbuilt == 0 && !state.building).await;
        let builds = shelf.read(|state| state.builds);
        let Missing { wanted: missing, chunks, lacking } = filling.missing(inner, shelf).await;
        shelf.with(|state| {
            let progress = F::progress(state);
            (progress.chunks, progress.lacking) = (chunks, lacking);
            progress.waiting = missing.len();
            progress.looked_at = builds;
            if missing.is_empty() {
                progress.failed = 0;
            }
        });
        let mut failed = false;
        for batch in missing.chunks(F::BATCH) {
            failed = !filling.settle(inner, shelf, batch).await;
            if failed {
                break;
            }
        }
        if failed {
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        } else {
            pause = PAUSE;
            shelf.until(|state| state.builds > builds || state.unbuilt > 0).await;
        }
    }
}
