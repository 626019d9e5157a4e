//! Scratch folders and who may read them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

/// A folder that is gone with the test.
#[derive(Debug)]
pub struct Scratch(TempDir);

impl Scratch {
    /// # Errors
    /// The system's folder for such things is not writable.
    pub fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("clearway-e2e-").tempdir();
        dir.map(Self).context("making a scratch folder")
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file, with the folders above it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.0.path().join(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        }
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}

/// Whether the test runs as the user whom permissions do not stop.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Lets everybody read a file or enter a folder.
///
/// # Errors
/// It is somebody else's.
pub fn make_readable(path: &Path) -> Result<()> {
    set_mode(path, 0o755)
}

/// Lets everybody do everything with a folder.
pub(crate) fn make_open(path: &Path) -> Result<()> {
    set_mode(path, 0o777)
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("changing who may read {}", path.display()))
}
