//! Tells sources that something in their folder changed.
//!
//! One OS thread for all folders, started with the server. What it says is a hint: sources look for
//! themselves, and also look without a hint now and then, so one that is lost costs time only.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};

use super::{Shelf, SourceContent, lock};

/// Watches for as long as it lives.
pub(crate) struct Watcher {
    watcher: Mutex<RecommendedWatcher>,
    watched: Watched,
}

/// Real paths, and whose they are.
type Watched = Arc<Mutex<Vec<(PathBuf, Arc<Shelf>)>>>;

fn folders(shelves: impl Iterator<Item = Arc<Shelf>>) -> Vec<(PathBuf, Arc<Shelf>)> {
    let folder = |shelf: Arc<Shelf>| match &shelf.content {
        Some(SourceContent::Folder { path, watch: true, .. }) => {
            // Events name real paths.
            Some((path.canonicalize().unwrap_or_else(|_| path.clone()), shelf))
        }
        _ => None,
    };
    shelves.filter_map(folder).collect()
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watcher")
    }
}

impl Watcher {
    /// Starts also with nothing to watch if `later` there may be: OS threads are made at the start only. `None` when
    /// there never is. Each source has its folder watched when it looks at it.
    ///
    /// # Errors
    /// The host refuses the thread, and something is to be watched.
    pub(crate) fn start(
        shelves: impl Iterator<Item = Arc<Shelf>>,
        later: bool,
    ) -> Result<Option<Self>, notify::Error> {
        let watched: Watched = Arc::new(Mutex::new(folders(shelves)));
        let told = watched.clone();
        let idle = lock(&watched).is_empty();
        if idle && !later {
            return Ok(None);
        }
        let tell = move |event: Result<notify::Event, notify::Error>| {
            let paths = match &event {
                Ok(event) if matches!(event.kind, EventKind::Access(_)) => return,
                Ok(event) => event.paths.as_slice(),
                // Something was missed.
                Err(_) => &[],
            };
            for (folder, shelf) in lock(&told).iter() {
                if paths.is_empty() || paths.iter().any(|path| path.starts_with(folder)) {
                    shelf.wake.notify_one();
                }
            }
        };
        match notify::recommended_watcher(tell) {
            Ok(watcher) => Ok(Some(Self { watcher: Mutex::new(watcher), watched })),
            Err(error) if idle => {
                tracing::warn!("folders that are added later will not be watched: {error}");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Tells these from now on. Each has its folder watched when it looks at it.
    pub(crate) fn serve(&self, shelves: impl Iterator<Item = Arc<Shelf>>) {
        *lock(&self.watched) = folders(shelves);
    }

    /// Watches what lies at the path of a source's folder now, in place of what lay there before. Goes
    /// through the whole folder, so it blocks.
    pub(crate) fn watch(&self, shelf: &Arc<Shelf>, folder: &Path) {
        let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        // Its real path is known only now, if it was not there before.
        for (path, of) in lock(&self.watched).iter_mut() {
            if Arc::ptr_eq(of, shelf) {
                path.clone_from(&folder);
            }
        }
        let mut watcher = lock(&self.watcher);
        // What is gone is watched no more; it only has to be forgotten.
        let _ = watcher.unwatch(&folder);
        if let Err(error) = watcher.watch(&folder, RecursiveMode::Recursive) {
            tracing::warn!(
                folder = %folder.display(),
                "changes are noticed late, because the folder cannot be watched: {error}"
            );
        }
    }
}
