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

/// Start of the names of files and folders that are being written.
pub(crate) const TEMP_PREFIX: &str = ".hgm-tmp-";
/// Nothing takes this long to write: an older temporary was left by a killed process.
const TEMP_AGE_MAX: Duration = Duration::from_secs(3600);

/// Puts `bytes` at `path`, whole or not at all, replacing what is there; durable when it returns.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let dir = parent(path);
    let fail = |doing| StoreError::io(doing, path);
    let mut file = tempfile::Builder::new()
        .prefix(TEMP_PREFIX)
        .permissions(Permissions::from_mode(0o644))
        .tempfile_in(dir)
        .map_err(fail("write"))?;
    file.write_all(bytes).map_err(fail("write"))?;
    file.as_file().sync_all().map_err(fail("write"))?;
    file.persist(path).map_err(|error| fail("write")(error.error))?;
    sync_dir(dir)
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
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(StoreError::io("sync folder", dir))
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
        if age.is_some_and(|age| age > TEMP_AGE_MAX) {
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
}
