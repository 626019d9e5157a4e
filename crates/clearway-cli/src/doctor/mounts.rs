//! Which file system a path is on, as the list of mounts says.

use std::fs;
use std::path::{Path, PathBuf};

/// The mount that a path is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Such as `ext4`, `overlay`, `nfs4`.
    pub(crate) kind: String,
    pub(crate) read_only: bool,
}

/// `None` where there is no list of mounts. `path` is absolute and without links.
pub(crate) fn of(path: &Path) -> Option<Mount> {
    find(&fs::read_to_string("/proc/self/mounts").ok()?, path)
}

impl Mount {
    /// On another machine: slow at times, and its locks are not to be relied on.
    pub(crate) fn is_remote(&self) -> bool {
        const REMOTE: [&str; 10] =
            ["nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "lustre", "afs"];
        REMOTE.contains(&self.kind.as_str()) || self.kind.starts_with("fuse.")
    }

    /// Gone with the container or at the next boot.
    pub(crate) fn is_volatile(&self) -> bool {
        ["overlay", "aufs", "tmpfs", "ramfs"].contains(&self.kind.as_str())
    }
}

/// The deepest mount above `path`; of several at one place the last hides the others.
fn find(list: &str, path: &Path) -> Option<Mount> {
    let mut best: Option<(PathBuf, Mount)> = None;
    for line in list.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(at), Some(kind), Some(options)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let at = PathBuf::from(unescape(at));
        let deeper = best
            .as_ref()
            .is_none_or(|(best, _)| at.components().count() >= best.components().count());
        if path.starts_with(&at) && deeper {
            let read_only = options.split(',').any(|option| option == "ro");
            best = Some((at, Mount { kind: kind.to_owned(), read_only }));
        }
    }
    best.map(|(_, mount)| mount)
}

/// Blanks and backslashes are written as three octal digits.
fn unescape(text: &str) -> String {
    let codes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    codes.iter().fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "overlay / overlay rw,relatime 0 0\n\
        /dev/sda1 /var ext4 rw 0 0\n\
        host:/share /var/my\\040data nfs4 ro,vers=4.2 0 0\n\
        broken\n\
        tmpfs /run tmpfs rw 0 0\n\
        /dev/sdb /run fuse.sshfs rw 0 0\n";

    #[test]
    fn the_deepest_mount_is_found() {
        let kind = |path: &str| find(LIST, Path::new(path)).map(|mount| mount.kind);
        assert_eq!(kind("/srv/x").as_deref(), Some("overlay"));
        assert_eq!(kind("/var/lib").as_deref(), Some("ext4"));
        assert_eq!(kind("/variable").as_deref(), Some("overlay"), "names are compared whole");
        assert_eq!(kind("/run/x").as_deref(), Some("fuse.sshfs"), "the later one hides");
        let share = find(LIST, Path::new("/var/my data/db")).unwrap();
        assert!(share.read_only && share.is_remote() && !share.is_volatile());
        assert_eq!(find("", Path::new("/")), None);
    }
}
