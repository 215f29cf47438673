//! Our own copy of a source tree with patched files in it. A file whose content stays keeps its
//! times, so that make compiles again only what changed. The original is never written.

use super::error::BuildError;
use super::patches::Staged;
use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

/// How a file gets from the original into the copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The original is ours and never changes: one inode does for both.
    Link,
    Copy,
}

/// Makes `to` hold exactly `files` of `from`, with what is staged in place of the original.
/// Returns how many files changed.
pub fn mirror(
    from: &Path,
    files: &BTreeSet<PathBuf>,
    staged: &Staged,
    to: &Path,
    how: How,
) -> Result<usize, BuildError> {
    let fresh = !to.exists();
    std::fs::create_dir_all(to).map_err(BuildError::io("cannot create", to))?;
    let mut changed = 0;
    let mut keep = BTreeSet::new();
    for file in files.union(staged.touched()) {
        let patched = staged.touched().contains(file);
        let source = if patched { staged.path(file) } else { from.join(file) };
        let Ok(meta) = source.symlink_metadata() else { continue };
        keep.insert(file.clone());
        let target = to.join(file);
        if same(&source, &meta, &target, patched)? {
            continue;
        }
        changed += 1;
        let old = if fresh && !patched { meta.modified().ok() } else { None };
        put(&source, &meta, &target, if patched { How::Copy } else { how }, old)?;
    }
    changed += prune(to, to, &keep)?;
    Ok(changed)
}

/// Whether the copy is what the source is. Equal size and time do for files that no patch made.
fn same(
    source: &Path,
    meta: &std::fs::Metadata,
    target: &Path,
    patched: bool,
) -> Result<bool, BuildError> {
    let Ok(there) = target.symlink_metadata() else { return Ok(false) };
    if meta.is_symlink() || there.is_symlink() {
        return Ok(std::fs::read_link(source)
            .ok()
            .is_some_and(|link| std::fs::read_link(target).is_ok_and(|other| other == link)));
    }
    if !there.is_file() || there.len() != meta.len() || mode(&there) != mode(meta) {
        return Ok(false);
    }
    if !patched && there.modified().ok() == meta.modified().ok() {
        return Ok(true);
    }
    let read = |path: &Path| std::fs::read(path).map_err(BuildError::io("cannot read", path));
    Ok(read(source)? == read(target)?)
}

fn mode(meta: &std::fs::Metadata) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    // Only what a build can see: may it be run.
    meta.permissions().mode() & 0o100
}

/// Writes beside the target and renames: the target may be a link to the original.
fn put(
    source: &Path,
    meta: &std::fs::Metadata,
    target: &Path,
    how: How,
    modified: Option<std::time::SystemTime>,
) -> Result<(), BuildError> {
    let failed = || BuildError::io("cannot write", target);
    let dir = target.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).map_err(BuildError::io("cannot create", dir))?;
    let temp = dir.join(".hgm-new");
    let _ = std::fs::remove_file(&temp);
    if meta.is_symlink() {
        let link = std::fs::read_link(source).map_err(failed())?;
        std::os::unix::fs::symlink(link, &temp).map_err(failed())?;
    } else {
        // A link shares the original's time, which is right only where nothing was built yet.
        let linked =
            how == How::Link && modified.is_some() && std::fs::hard_link(source, &temp).is_ok();
        if !linked {
            std::fs::copy(source, &temp).map_err(failed())?;
            let time = modified.unwrap_or_else(std::time::SystemTime::now);
            std::fs::File::options()
                .write(true)
                .open(&temp)
                .and_then(|file| file.set_modified(time))
                .map_err(failed())?;
        }
    }
    if target.symlink_metadata().is_ok_and(|there| there.is_dir()) {
        std::fs::remove_dir_all(target).map_err(failed())?;
    }
    std::fs::rename(&temp, target).map_err(failed())
}

/// Removes files of the copy that are not kept, and folders that become empty.
fn prune(top: &Path, dir: &Path, keep: &BTreeSet<PathBuf>) -> Result<usize, BuildError> {
    let mut removed = 0;
    let entries = std::fs::read_dir(dir).map_err(BuildError::io("cannot read", dir))?;
    for entry in entries {
        let entry = entry.map_err(BuildError::io("cannot read", dir))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(BuildError::io("cannot read", dir))?;
        if kind.is_dir() {
            removed += prune(top, &path, keep)?;
            // Fails where something is left, which is as it should be.
            let _ = std::fs::remove_dir(&path);
        } else if !path.strip_prefix(top).is_ok_and(|file| keep.contains(file)) {
            std::fs::remove_file(&path).map_err(BuildError::io("cannot remove", &path))?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// blake3 over names, modes and contents of `files` below `from`, hex.
pub fn hash(from: &Path, files: &BTreeSet<PathBuf>) -> Result<String, BuildError> {
    let mut all = blake3::Hasher::new();
    let mut buffer = vec![0u8; 1 << 20];
    for file in files {
        let path = from.join(file);
        let Ok(meta) = path.symlink_metadata() else { continue };
        let name = file.as_os_str().as_encoded_bytes();
        all.update(&(name.len() as u64).to_le_bytes()).update(name);
        if meta.is_symlink() {
            let link = std::fs::read_link(&path).map_err(BuildError::io("cannot read", &path))?;
            all.update(b"link").update(link.as_os_str().as_encoded_bytes());
            continue;
        }
        let mut own = blake3::Hasher::new();
        let mut open = std::fs::File::open(&path).map_err(BuildError::io("cannot read", &path))?;
        loop {
            let n = open.read(&mut buffer).map_err(BuildError::io("cannot read", &path))?;
            if n == 0 {
                break;
            }
            own.update(&buffer[..n]);
        }
        all.update(&mode(&meta).to_le_bytes()).update(own.finalize().as_bytes());
    }
    Ok(all.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::super::patches::Patch;
    use super::*;
    use std::time::{Duration, SystemTime};

    struct Trees {
        work: tempfile::TempDir,
        files: BTreeSet<PathBuf>,
    }

    impl Trees {
        fn new() -> Trees {
            let work = tempfile::tempdir().unwrap();
            let from = work.path().join("from");
            std::fs::create_dir_all(from.join("mm")).unwrap();
            for name in ["mm/a.c", "mm/b.c", "run.sh"] {
                std::fs::write(from.join(name), format!("{name}\n")).unwrap();
            }
            std::os::unix::fs::symlink("mm/a.c", from.join("link")).unwrap();
            let files = ["mm/a.c", "mm/b.c", "run.sh", "link"].map(PathBuf::from).into();
            let trees = Trees { work, files };
            for name in ["mm/a.c", "mm/b.c", "run.sh"] {
                trees.age(&trees.from().join(name));
            }
            trees
        }
        fn from(&self) -> PathBuf {
            self.work.path().join("from")
        }
        fn to(&self) -> PathBuf {
            self.work.path().join("to")
        }
        fn age(&self, path: &Path) {
            let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.set_modified(old).unwrap();
        }
        fn time(&self, name: &str) -> SystemTime {
            std::fs::metadata(self.to().join(name)).unwrap().modified().unwrap()
        }
        fn go(&self, patches: &[&str], how: How) -> usize {
            let mut staged = Staged::new(self.work.path()).unwrap();
            for text in patches {
                let patch = Patch { name: "p".into(), bytes: text.as_bytes().to_vec() };
                staged.apply(&self.from(), &patch).unwrap();
            }
            mirror(&self.from(), &self.files, &staged, &self.to(), how).unwrap()
        }
    }

    const PATCH: &str = "--- a/mm/a.c\n+++ b/mm/a.c\n@@ -1 +1,2 @@\n mm/a.c\n+more\n";

    #[test]
    fn only_files_that_changed_get_a_new_time() {
        for how in [How::Copy, How::Link] {
            let trees = Trees::new();
            assert_eq!(trees.go(&[], how), 4);
            let (a, b) = (trees.time("mm/a.c"), trees.time("mm/b.c"));
            assert!(a < SystemTime::now() - Duration::from_secs(1000));
            assert_eq!(trees.go(&[], how), 0, "nothing to do the second time");

            assert_eq!(trees.go(&[PATCH], how), 1);
            let patched = trees.time("mm/a.c");
            assert!(patched > a);
            assert_eq!(trees.time("mm/b.c"), b);
            assert_eq!(trees.go(&[PATCH], how), 0, "the same patch changes nothing");
            assert_eq!(trees.time("mm/a.c"), patched);

            // Back again: newer than its object, though the original is old.
            assert_eq!(trees.go(&[], how), 1);
            assert!(trees.time("mm/a.c") >= patched);
            let original = std::fs::read_to_string(trees.from().join("mm/a.c")).unwrap();
            assert_eq!(original, "mm/a.c\n", "the original is never written");
            assert_eq!(trees.go(&[], how), 0);
        }
    }

    #[test]
    fn files_that_left_the_tree_leave_the_copy() {
        let mut trees = Trees::new();
        trees.go(&[], How::Copy);
        std::fs::write(trees.to().join("mm/stray.c"), "x").unwrap();
        trees.files.remove(Path::new("mm/b.c"));
        assert_eq!(trees.go(&[], How::Copy), 2);
        assert!(!trees.to().join("mm/b.c").exists());
        assert!(!trees.to().join("mm/stray.c").exists());
        let gone = "--- a/run.sh\n+++ /dev/null\n@@ -1 +0,0 @@\n-run.sh\n";
        assert_eq!(trees.go(&[gone], How::Copy), 1);
        assert!(!trees.to().join("run.sh").exists());
    }

    #[test]
    fn the_hash_sees_content_names_modes_and_links_but_not_times() {
        use std::os::unix::fs::PermissionsExt;
        let trees = Trees::new();
        let hash = || hash(&trees.from(), &trees.files).unwrap();
        let first = hash();
        std::fs::write(trees.from().join("mm/b.c"), "mm/b.c\n").unwrap();
        assert_eq!(hash(), first);
        std::fs::write(trees.from().join("mm/b.c"), "mm/B.c\n").unwrap();
        let second = hash();
        assert_ne!(second, first);
        let run = trees.from().join("run.sh");
        std::fs::set_permissions(&run, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_ne!(hash(), second);
    }
}
