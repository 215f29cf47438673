//! An exchange that is a folder: for tests, for several processes of one host, and for hosts that
//! mount the same file system. One file a parcel, whole or not at all.

mod work;

use crate::{Away, Exchange, FORMAT, Kind, Parcel, Scope};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(200);
/// Made anew by whoever removes what is old.
const CLEARED: &str = ".cleared";
/// Parcels handed out at a time.
const BATCH: usize = 500;

#[derive(Debug)]
pub struct Folder {
    dir: PathBuf,
    /// Whose parcels are taken; all if none.
    scope: Option<Scope>,
    /// What was taken, by name, and of which version.
    taken: HashMap<String, Option<SystemTime>>,
    /// Answers that were taken, by name.
    heard: HashSet<String>,
    /// Tasks others hold: the last word of each holder, and when we first saw it.
    words: HashMap<String, (Word, Instant)>,
}

/// A holder's word: the number of his lease and the time of its file, by the folder's clock. What
/// counts is that it changes.
type Word = (u64, SystemTime);

impl Folder {
    pub fn open(dir: &Path, scope: Option<Scope>) -> Result<Folder, Away> {
        let dir = dir.join(format!("v{FORMAT}"));
        fs::create_dir_all(&dir).map_err(|error| away(&dir, &error))?;
        Ok(Folder {
            dir,
            scope,
            taken: HashMap::new(),
            heard: HashSet::new(),
            words: HashMap::new(),
        })
    }

    fn path(&self, parcel: &Parcel) -> PathBuf {
        self.dir.join(parcel.name())
    }

    /// Parcels of the wanted kinds that were not taken before.
    fn look(&mut self, wanted: impl Fn(Kind) -> bool) -> Result<Vec<Parcel>, Away> {
        let entries = fs::read_dir(&self.dir).map_err(|error| away(&self.dir, &error))?;
        let mut found = Vec::new();
        for entry in entries.filter_map(Result::ok) {
            let Ok(name) = entry.file_name().into_string() else { continue };
            // Names first: of most files nothing else is needed.
            let Some(shape) = Parcel::of_name(&name, Vec::new()) else { continue };
            if !wanted(shape.kind) || self.scope.as_ref().is_some_and(|s| *s != shape.scope) {
                continue;
            }
            if self.taken.contains_key(&name) && !shape.kind.is_replaced() {
                continue;
            }
            let Ok(meta) = entry.metadata() else { continue };
            let version = meta.modified().ok().filter(|_| shape.kind.is_replaced());
            if !meta.is_file() || self.taken.get(&name) == Some(&version) {
                continue;
            }
            let body = if meta.len() <= crate::BODY_BYTES_MAX as u64 {
                match fs::read(entry.path()) {
                    Ok(body) => Some(body),
                    // Removed, or its disk fails: it may be read another time.
                    Err(error) => {
                        tracing::debug!("{}", away(&entry.path(), &error));
                        continue;
                    }
                }
            } else {
                None
            };
            let parcel = body.and_then(|body| Parcel::of_name(&name, body));
            // What is no parcel is not looked at again.
            self.taken.insert(name, version);
            found.extend(parcel);
            if found.len() >= BATCH {
                break;
            }
        }
        Ok(found)
    }
}

impl Exchange for Folder {
    fn put(&mut self, parcel: &Parcel) -> Result<(), Away> {
        let path = self.path(parcel);
        if !parcel.kind.is_replaced() && path.is_file() {
            return Ok(());
        }
        store::write_whole(&path, parcel.body()).map_err(|error| Away(error.to_string()))
    }

    fn take(&mut self, wait: Duration) -> Result<Vec<Parcel>, Away> {
        let end = Instant::now() + wait;
        loop {
            let found = self.look(|_| true)?;
            let left = end.saturating_duration_since(Instant::now());
            if !found.is_empty() || left.is_zero() {
                return Ok(found);
            }
            std::thread::sleep(LOOK.min(left));
        }
    }

    /// Another one after somebody removed what he took for old: it may have been of today, if the
    /// clock jumped.
    fn epoch(&self) -> u64 {
        fs::metadata(self.dir.join(CLEARED)).map_or(0, |meta| {
            // The next file may get the number of the one before the last.
            meta.ino() ^ (meta.mtime_nsec() as u64) << 32
        })
    }
}

fn away(path: &Path, error: &std::io::Error) -> Away {
    Away(format!("{}: {error}", path.display()))
}
