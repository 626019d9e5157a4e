//! Which files of a folder are documents.
//!
//! **Invariant:** nothing outside the folder is a document, whatever a link says.
//!
//! Not here: reading files. The reader looks at the same questions again, because a folder changes.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::UNIX_EPOCH;

use clearway_ingest::protocol::{Trouble, TroubleKind};
use ignore::WalkBuilder;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

/// What is in a folder.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// By path below the folder, with `/` between its parts.
    pub files: BTreeMap<String, FoundFile>,
    /// What is there and cannot be a document, by path.
    pub troubles: BTreeMap<String, Trouble>,
    /// There are more files than a source may have.
    pub too_many: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct FoundFile {
    pub path: PathBuf,
    pub size: u64,
    pub modified_ms: i64,
}

/// Patterns of files as in `.gitignore`, checked.
///
/// # Errors
/// Says what is wrong with a pattern.
pub fn check_pattern(pattern: &str) -> Result<(), String> {
    let mut builder = GitignoreBuilder::new("/");
    builder.add_line(None, pattern).map(drop).map_err(|error| error.to_string())
}

/// Looks through a folder.
///
/// # Errors
/// The folder itself is not there or cannot be read.
pub(crate) fn walk(
    root: &Path,
    patterns: &[String],
    most: usize,
    stop: &AtomicBool,
) -> Result<Found, String> {
    let real = root.canonicalize().map_err(|error| format!("{}: {error}", root.display()))?;
    std::fs::read_dir(&real).map_err(|error| format!("{}: {error}", root.display()))?;
    let wanted = matcher(&real, patterns)?;
    let mut found = Found::default();
    let walk = WalkBuilder::new(&real)
        .follow_links(false)
        .require_git(false)
        .git_global(false)
        .git_exclude(false)
        .parents(false)
        .max_depth(Some(MOST_DEPTH))
        .build();
    for entry in walk {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                let text = error.to_string();
                found.troubles.insert(text.clone(), Trouble::new(TroubleKind::Unreadable, text));
                continue;
            }
        };
        let path = entry.path();
        let Ok(below) = path.strip_prefix(&real) else { continue };
        let is_link = entry.file_type().is_some_and(|kind| kind.is_symlink());
        if below.as_os_str().is_empty() {
            continue;
        }
        // A folder's name says nothing of what is in it.
        let may_be_wanted = wanted.matched(below, false).is_ignore() || (is_link && path.is_dir());
        if !may_be_wanted {
            continue;
        }
        let Some(name) = below.to_str() else {
            let name = below.to_string_lossy().into_owned();
            let trouble = Trouble::new(TroubleKind::Unreadable, "its name is not UTF-8");
            found.troubles.insert(name, trouble);
            continue;
        };
        let name = name.to_owned();
        let file = if is_link {
            match behind_link(path, &real) {
                Ok(file) => file,
                Err(trouble) => {
                    found.troubles.insert(name, trouble);
                    continue;
                }
            }
        } else if entry.file_type().is_some_and(|kind| kind.is_file()) {
            match entry.metadata() {
                Ok(about) => Some(file(path, &about)),
                // It vanished a moment ago.
                Err(_) => None,
            }
        } else {
            None
        };
        if let Some(file) = file {
            if found.files.len() >= most {
                found.too_many = true;
                break;
            }
            found.files.insert(name, file);
        }
    }
    Ok(found)
}

fn matcher(root: &Path, patterns: &[String]) -> Result<Gitignore, String> {
    let mut builder = GitignoreBuilder::new(root);
    for pattern in patterns {
        builder.add_line(None, pattern).map_err(|error| error.to_string())?;
    }
    builder.build().map_err(|error| error.to_string())
}

/// The file that a link leads to; `None` when it leads to a folder, which has its own place.
fn behind_link(path: &Path, root: &Path) -> Result<Option<FoundFile>, Trouble> {
    let broken = |error: std::io::Error| {
        Trouble::new(TroubleKind::Missing, format!("the link leads nowhere: {error}"))
    };
    let target = path.canonicalize().map_err(broken)?;
    let about = target.metadata().map_err(broken)?;
    if !target.starts_with(root) {
        let text = format!("the link leads out of the folder, to {}", target.display());
        return Err(Trouble::new(TroubleKind::Outside, text));
    }
    Ok(about.is_file().then(|| file(path, &about)))
}

fn file(path: &Path, about: &Metadata) -> FoundFile {
    let since = about.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let modified_ms = since.map_or(0, |since| since.as_millis() as i64);
    FoundFile { path: path.to_owned(), size: about.len(), modified_ms }
}

const MOST_DEPTH: usize = 64;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_and_what_is_no_document() {
        let folder = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let root = folder.path();
        let write = |name: &str| {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        };
        for name in
            ["a.md", "b.txt", "sub/c.md", "sub/deep/d.html", "skip/e.md", ".hidden/f.md", "g.log"]
        {
            write(name);
        }
        fs::write(root.join(".gitignore"), "skip/\n*.log\n").unwrap();
        fs::write(outside.path().join("s.md"), "secret").unwrap();
        std::os::unix::fs::symlink(outside.path().join("s.md"), root.join("out.md")).unwrap();
        std::os::unix::fs::symlink(root.join("a.md"), root.join("in.md")).unwrap();
        std::os::unix::fs::symlink("nowhere", root.join("dead.md")).unwrap();
        std::os::unix::fs::symlink(outside.path(), root.join("dir.md")).unwrap();
        std::os::unix::fs::symlink(outside.path(), root.join("linked")).unwrap();
        std::os::unix::fs::symlink(root.join("sub"), root.join("inside")).unwrap();
        let patterns = ["**/*.md".to_owned(), "**/*.html".to_owned()];
        let stop = AtomicBool::new(false);
        let found = walk(root, &patterns, 100, &stop).unwrap();
        let files: Vec<&str> = found.files.keys().map(String::as_str).collect();
        assert_eq!(files, ["a.md", "in.md", "sub/c.md", "sub/deep/d.html"]);
        let kind = |name: &str| found.troubles[name].kind;
        assert_eq!(kind("out.md"), TroubleKind::Outside);
        assert_eq!(kind("dir.md"), TroubleKind::Outside);
        assert_eq!(kind("linked"), TroubleKind::Outside, "a folder need not be called like a file");
        assert_eq!(kind("dead.md"), TroubleKind::Missing);
        assert_eq!(found.troubles.len(), 4);
        assert!(walk(root, &patterns, 2, &stop).unwrap().too_many);
        let gone = root.join("gone");
        assert!(walk(&gone, &patterns, 2, &stop).unwrap_err().contains("gone"));
        assert!(check_pattern("**/*.{md").is_err());
        assert!(check_pattern("**/*.md").is_ok());
    }
}
