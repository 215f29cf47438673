//! Run folders: `runs/<date>-<time>-<xxxx>` in the home, each with its lock, journal, findings.
//!
//! Who holds the lock owns the run; the kernel drops the lock when the process ends, however it
//! ends.

use crate::{Findings, Journal, Result, StoreError, durable};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

const LOCK: &str = "lock";
/// Form of the time in an id.
const STAMP: &str = "%Y%m%d-%H%M%S";
/// Word that stands for the newest run.
const LATEST: &str = "latest";

/// All runs of a home.
#[derive(Clone, Debug)]
pub struct Runs {
    dir: PathBuf,
}

/// A run as listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunInfo {
    pub id: String,
    pub path: PathBuf,
    /// A process holds it.
    pub live: bool,
}

/// A run this process owns, until dropped.
#[derive(Debug)]
pub struct RunDir {
    pub id: String,
    pub path: PathBuf,
    /// Held, never read: its lock is what counts.
    _lock: File,
}

impl Runs {
    /// Runs of this home; nothing is made yet.
    pub fn of(home: &Path) -> Runs {
        Runs { dir: home.join("runs") }
    }

    /// Makes a run and owns it. The id carries the UTC time and four hex digits of the seed's and
    /// the process' hash. Ids are in the order of their making, so after a clock was set back they
    /// carry on from the newest one's time.
    pub fn create(&self, seed: u64) -> Result<RunDir> {
        durable::make_dir(&self.dir)?;
        let now = after_newest(jiff::Timestamp::now(), self.newest_name().as_deref());
        for attempt in 0u32.. {
            let mut hash = blake3::Hasher::new();
            hash.update(&seed.to_le_bytes());
            hash.update(&std::process::id().to_le_bytes());
            hash.update(&attempt.to_le_bytes());
            let tail = hash.finalize().to_hex();
            let id = format!("{now}-{}", &tail.as_str()[..4]);
            let path = self.dir.join(&id);
            match fs::create_dir(&path) {
                Ok(()) => {
                    durable::sync_dir(&self.dir)?;
                    return RunDir::own(id, path);
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(StoreError::io("make folder", &path)(error)),
            }
        }
        Err(StoreError::io("make folder", &self.dir)(std::io::ErrorKind::AlreadyExists.into()))
    }

    /// Without a look at its lock, which its owner may be about to take.
    fn newest_name(&self) -> Option<String> {
        let entries = fs::read_dir(&self.dir).ok()?.flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| !name.starts_with('.')).max()
    }

    /// Runs, oldest first. No folder, no runs.
    pub fn list(&self) -> Result<Vec<RunInfo>> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(StoreError::io("read", &self.dir))?,
        };
        let mut runs = Vec::new();
        for entry in entries {
            let path = entry.map_err(StoreError::io("read", &self.dir))?.path();
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
            let Some(id) = name.filter(|n| !n.starts_with('.') && path.is_dir()) else { continue };
            runs.push(RunInfo { live: is_live(&path), id, path });
        }
        runs.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(runs)
    }

    /// The newest run.
    pub fn latest(&self) -> Result<Option<RunInfo>> {
        Ok(self.list()?.pop())
    }

    /// The run an id, a shortest unique prefix, or `latest` stands for.
    pub fn find(&self, word: &str) -> Result<RunInfo> {
        let mut runs = self.list()?;
        let missing =
            || StoreError::NotFound { what: "run", id: word.to_owned(), path: self.dir.clone() };
        if word == LATEST {
            return runs.pop().ok_or_else(missing);
        }
        runs.retain(|run| run.id.starts_with(word));
        match runs.len() {
            1 => runs.pop().ok_or_else(missing),
            0 => Err(missing()),
            count => match runs.iter().find(|run| run.id == word) {
                Some(exact) => Ok(exact.clone()),
                None => Err(StoreError::Ambiguous {
                    what: "run",
                    id: word.to_owned(),
                    count,
                    path: self.dir.clone(),
                }),
            },
        }
    }

    /// Owns an earlier run again; refuses one that is live.
    pub fn resume(&self, word: &str) -> Result<RunDir> {
        let run = self.find(word)?;
        durable::sync_dir(&self.dir)?;
        RunDir::own(run.id, run.path)
    }

    /// A finding by name or shortest unique prefix: in the newest run that has one.
    pub fn find_finding(&self, word: &str) -> Result<(RunInfo, PathBuf)> {
        for run in self.list()?.into_iter().rev() {
            let findings = Findings::view(&run.path.join(RunDir::FINDINGS))?;
            match findings.find(word) {
                Ok(slug) => {
                    let path = findings.folder(slug);
                    return Ok((run, path));
                }
                Err(StoreError::NotFound { .. }) => {}
                Err(other) => return Err(other),
            }
        }
        Err(StoreError::NotFound { what: "finding", id: word.to_owned(), path: self.dir.clone() })
    }
}

impl RunDir {
    /// Folder of findings inside a run.
    pub const FINDINGS: &'static str = "findings";

    fn own(id: String, path: PathBuf) -> Result<RunDir> {
        let name = path.join(LOCK);
        durable::no_link(&name)?;
        let fail = |doing| StoreError::io(doing, &name);
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&name)
            .map_err(fail("open lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = lock.take(32).read_to_string(&mut pid);
                let pid = pid.trim().to_owned();
                return Err(StoreError::Live { path, pid });
            }
            Err(TryLockError::Error(error)) => return Err(fail("lock")(error)),
        }
        lock.set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(fail("write lock"))?;
        Ok(RunDir { id, path, _lock: lock })
    }

    /// The run's journal, made if missing.
    pub fn journal(&self) -> Result<Journal> {
        Journal::open(&self.path)
    }

    /// The run's findings.
    pub fn findings(&self) -> Result<Findings> {
        Findings::open(&self.path.join(Self::FINDINGS))
    }

    /// Puts a file of its own format beside the journal, replacing what is there.
    pub fn save(&self, name: &str, bytes: &[u8]) -> Result<()> {
        durable::write(&self.path.join(name), bytes)
    }

    /// A private folder for one VM slot (sockets, console), made if missing.
    pub fn vm_dir(&self, slot: usize) -> Result<PathBuf> {
        let dir = self.path.join(format!("vm{slot}"));
        durable::make_dir(&dir)?;
        Ok(dir)
    }
}

/// The time a new run is named by: now, or a second after the newest run's, if that is later. Names
/// that are no ids of ours do not count.
fn after_newest(now: jiff::Timestamp, newest: Option<&str>) -> String {
    let stamp = |time: jiff::Timestamp| time.strftime(STAMP).to_string();
    let next = newest.and_then(|id| {
        let (stamp, _tail) = id.rsplit_once('-')?;
        let newest = jiff::civil::DateTime::strptime(STAMP, stamp).ok()?;
        let newest = newest.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp();
        newest.checked_add(jiff::SignedDuration::from_secs(1)).ok()
    });
    stamp(next.map_or(now, |next| now.max(next)))
}

fn is_live(run: &Path) -> bool {
    let Ok(lock) = File::open(run.join(LOCK)) else { return false };
    match lock.try_lock_shared() {
        Err(TryLockError::WouldBlock) => true,
        Ok(()) | Err(TryLockError::Error(_)) => false,
    }
}
