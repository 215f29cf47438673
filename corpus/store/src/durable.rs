//! Writing that survives: temporary file, fsync, rename, fsync of the folder.
//!
//! A reader sees the old bytes or the new ones, never a part; after a return they are on disk.
//!
//! What is seen is not yet durable: who wrote it may have been killed before the last of these steps.
//! So whoever opens a folder to build on what is in it syncs the folder first.

use crate::{Result, StoreError};
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tempfile::{NamedTempFile, TempDir};

/// Start of the names of files and folders that are being written.
const TEMP_PREFIX: &str = ".hgm-tmp-";
/// Nothing takes this long to write: an older temporary was left by a killed process.
const TEMP_AGE_MAX: Duration = Duration::from_secs(3600);

/// Puts `bytes` at `path`, whole or not at all, replacing what is there; durable when it returns.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let dir = parent(path);
    let fail = |doing| StoreError::io(doing, path);
    let mut file = temporary(dir).map_err(fail("write"))?;
    file.write_all(bytes).map_err(fail("write"))?;
    file.as_file().sync_all().map_err(fail("write"))?;
    file.persist(path).map_err(|error| fail("write")(error.error))?;
    sync_dir(dir)
}

/// A file that is being written. It is locked for as long, so that nobody who opens the folder takes
/// it for one that was left, whatever his clock says.
fn temporary(dir: &Path) -> std::io::Result<NamedTempFile> {
    let readable = Permissions::from_mode(0o644);
    let file =
        tempfile::Builder::new().prefix(TEMP_PREFIX).permissions(readable).tempfile_in(dir)?;
    // Where files cannot be locked, age has to do.
    let _ = file.as_file().lock();
    Ok(file)
}

/// A folder that is being filled, and its lock.
pub(crate) fn temporary_dir(dir: &Path) -> std::io::Result<(TempDir, File)> {
    let made = tempfile::Builder::new().prefix(TEMP_PREFIX).tempdir_in(dir)?;
    let lock = File::open(made.path())?;
    let _ = lock.lock();
    Ok((made, lock))
}

/// Makes a folder and those above it, durably; one that is there may not be durable yet.
pub(crate) fn make_dir(dir: &Path) -> Result<()> {
    let above = parent(dir);
    if dir.is_dir() {
        return match File::open(above) {
            // Above what somebody else made for us we may not be allowed to read.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(()),
            _ => sync_dir(above),
        };
    }
    if above != dir {
        make_dir(above)?;
    }
    match fs::create_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(error) => Err(StoreError::io("make folder", dir)(error)),
        Ok(()) => sync_dir(above),
    }
}

/// Refuses a link where a file of ours is opened to be written in place: who planted it chose what
/// is overwritten.
pub(crate) fn no_link(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_symlink() => {
            let why = std::io::Error::other("it is a symbolic link");
            Err(StoreError::io("write through", path)(why))
        }
        _ => Ok(()),
    }
}

/// Makes names in a folder durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    match File::open(dir).and_then(|dir| dir.sync_all()) {
        // Some file systems have nothing to sync in a folder (fsync(2), EINVAL).
        Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => Ok(()),
        done => done.map_err(StoreError::io("sync folder", dir)),
    }
}

/// The folder a path stands in; `.` for a bare name.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        Some(_) => Path::new("."),
        None => path,
    }
}

/// Temporaries in a folder.
pub(crate) fn temporaries(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(TEMP_PREFIX))
        })
        .collect()
}

/// Removes temporaries no living writer can own. Failing to is harmless.
pub(crate) fn sweep(dir: &Path) {
    for path in temporaries(dir) {
        let age = fs::symlink_metadata(&path).and_then(|meta| meta.modified());
        let age = age.ok().and_then(|time| SystemTime::now().duration_since(time).ok());
        // Clocks jump, and those of machines differ: its lock says that its writer lives.
        let held = || matches!(File::open(&path).map(|file| file.try_lock()), Ok(Err(_)));
        if age.is_some_and(|age| age > TEMP_AGE_MAX) && !held() {
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A clock that jumps makes everything old.
    #[test]
    fn what_is_being_written_is_never_swept() {
        let dir = tempfile::tempdir().unwrap();
        let file = temporary(dir.path()).unwrap();
        let (folder, lock) = temporary_dir(dir.path()).unwrap();
        let long_ago = SystemTime::now() - 3650 * 24 * TEMP_AGE_MAX;
        for old in [file.as_file(), &lock] {
            old.set_modified(long_ago).unwrap();
        }
        sweep(dir.path());
        assert_eq!(temporaries(dir.path()).len(), 2);
        // Killed: the locks go, the names stay.
        let (_, _path) = (file.keep().unwrap(), folder.keep());
        drop(lock);
        sweep(dir.path());
        assert_eq!(temporaries(dir.path()).len(), 0);
    }
}
