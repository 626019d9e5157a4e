//! Tells sources that something in their folder changed.
//!
//! One OS thread for all folders, started with the server. What it says is a hint: sources look for
//! themselves, and also look without a hint now and then, so one that is lost costs time only.

use std::path::PathBuf;
use std::sync::Arc;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};

use super::{Shelf, SourceContent};

/// Watches for as long as it lives.
pub(crate) struct Watcher {
    _watcher: RecommendedWatcher,
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watcher")
    }
}

impl Watcher {
    /// `None` when there is nothing to watch.
    ///
    /// # Errors
    /// The host refuses the thread.
    pub(crate) fn start(
        shelves: impl Iterator<Item = Arc<Shelf>>,
    ) -> Result<Option<Self>, notify::Error> {
        let watched: Vec<(PathBuf, Arc<Shelf>)> = shelves
            .filter_map(|shelf| match &shelf.content {
                Some(SourceContent::Folder { path, watch: true, .. }) => {
                    // Events name real paths.
                    Some((path.canonicalize().unwrap_or_else(|_| path.clone()), shelf))
                }
                _ => None,
            })
            .collect();
        if watched.is_empty() {
            return Ok(None);
        }
        let folders: Vec<PathBuf> = watched.iter().map(|(path, _)| path.clone()).collect();
        let tell = move |event: Result<notify::Event, notify::Error>| {
            let paths = match &event {
                Ok(event) if matches!(event.kind, EventKind::Access(_)) => return,
                Ok(event) => event.paths.as_slice(),
                // Something was missed.
                Err(_) => &[],
            };
            for (folder, shelf) in &watched {
                if paths.is_empty() || paths.iter().any(|path| path.starts_with(folder)) {
                    shelf.wake.notify_one();
                }
            }
        };
        let mut watcher = notify::recommended_watcher(tell)?;
        for folder in folders {
            if let Err(error) = watcher.watch(&folder, RecursiveMode::Recursive) {
                tracing::warn!(
                    folder = %folder.display(),
                    "changes are noticed late, because the folder cannot be watched: {error}"
                );
            }
        }
        Ok(Some(Self { _watcher: watcher }))
    }
}
