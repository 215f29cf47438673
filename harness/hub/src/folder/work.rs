//! Work in a folder. A task is a file of `work`, its answer one of `done` that nobody can replace. A
//! lease is a file of `held` with a number: its holder touches it, and who sees the highest number
//! untouched for the length of a lease makes the next one, which only one can. That length is
//! measured by whoever looks, since clocks of machines differ and the folder's may jump.

use super::{CLEARED, Folder, Word, away};
use crate::work::{LEASE, Lease, Load, Task, Work};
use crate::{Away, BODY_BYTES_MAX, Kind, Parcel, Scope};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

const TASKS: &str = "work";
const HELD: &str = "held";
const ANSWERS: &str = "done";
/// Nobody waits for longer for what he asked.
const AGE: Duration = Duration::from_secs(24 * 3600);

impl Folder {
    fn place(&self, what: &str) -> Result<PathBuf, Away> {
        let dir = self.dir.join(what);
        fs::create_dir_all(&dir).map_err(|error| away(&dir, &error))?;
        Ok(dir)
    }

    fn file(&self, what: &str, name: &str) -> Result<PathBuf, Away> {
        Ok(self.place(what)?.join(name))
    }

    /// Names of the files of a place, in their order.
    fn names(&self, what: &str) -> Result<Vec<String>, Away> {
        let dir = self.place(what)?;
        let entries = fs::read_dir(&dir).map_err(|error| away(&dir, &error))?;
        let mut names: Vec<String> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| !name.starts_with('.'))
            .collect();
        names.sort();
        Ok(names)
    }

    /// The time as the folder's host has it, which sets the times of its files.
    fn now(&self) -> Result<SystemTime, Away> {
        let dir = self.place(HELD)?;
        let probe = tempfile::Builder::new().prefix(".now-").tempfile_in(&dir);
        let modified = probe.and_then(|file| file.as_file().metadata()?.modified());
        modified.map_err(|error| away(&dir, &error))
    }

    /// How often each task was leased, and when its last holder said that he is there.
    fn holders(&self) -> Result<BTreeMap<String, Word>, Away> {
        let mut held: BTreeMap<String, Word> = BTreeMap::new();
        for file in self.names(HELD)? {
            let Some((name, turn)) = file.rsplit_once('+') else { continue };
            let Ok(turn) = turn.parse::<u64>() else { continue };
            // Gone since it was listed: its task is answered.
            let Ok(touched) = fs::metadata(self.file(HELD, &file)?).and_then(|m| m.modified())
            else {
                continue;
            };
            let last = held.entry(name.to_owned()).or_insert((turn, touched));
            if turn > last.0 {
                *last = (turn, touched);
            }
        }
        Ok(held)
    }

    /// Sets the time of a lease, if it is the last.
    fn touch(&self, lease: &Lease, time: SystemTime) -> Result<(), Away> {
        let name = lease.task.name();
        let path = self.file(HELD, &lease_file(&name, lease.turn))?;
        if self.file(HELD, &lease_file(&name, lease.turn + 1))?.exists() {
            return Err(Away("somebody else has it".into()));
        }
        let touched = File::options().append(true).open(&path).and_then(|f| f.set_modified(time));
        touched.map_err(|error| away(&path, &error))
    }

    /// Takes a task away with all its leases.
    fn remove(&self, name: &str) -> Result<(), Away> {
        remove(&self.file(TASKS, name)?)?;
        for file in self.names(HELD)? {
            if file.rsplit_once('+').is_some_and(|(of, _)| of == name) {
                remove(&self.file(HELD, &file)?)?;
            }
        }
        Ok(())
    }

    /// Notes what holders said, and gives the numbers of leases that are over.
    fn listen(&mut self, held: &BTreeMap<String, Word>) -> BTreeMap<String, u64> {
        let now = Instant::now();
        self.words.retain(|name, _| held.contains_key(name));
        let mut over = BTreeMap::new();
        for (name, word) in held {
            let known = self.words.entry(name.clone()).or_insert((*word, now));
            if known.0 != *word {
                *known = (*word, now);
            }
            let given_back = word.1 == SystemTime::UNIX_EPOCH;
            if given_back || now.saturating_duration_since(known.1) >= LEASE {
                over.insert(name.clone(), word.0);
            }
        }
        over
    }

    /// Files nobody waits for any more.
    fn clear(&self, now: SystemTime) -> Result<(), Away> {
        let mut removed = false;
        for what in [TASKS, HELD, ANSWERS] {
            for name in self.names(what)? {
                let path = self.file(what, &name)?;
                if age(&path, now).is_some_and(|age| age >= AGE) {
                    remove(&path)?;
                    removed = true;
                }
            }
        }
        if removed {
            // Who still waits puts it up again.
            let path = self.dir.join(CLEARED);
            store::write_whole(&path, b"").map_err(|error| Away(error.to_string()))?;
        }
        Ok(())
    }
}

fn age(path: &Path, now: SystemTime) -> Option<Duration> {
    now.duration_since(fs::metadata(path).ok()?.modified().ok()?).ok()
}

/// Has a holder been silent for too long, by the folder's clock? For people: leases are judged by what
/// was seen.
fn is_over(touched: SystemTime, now: SystemTime) -> bool {
    now.duration_since(touched).is_ok_and(|silent| silent >= LEASE)
}

fn remove(path: &Path) -> Result<(), Away> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(away(path, &error)),
        _ => Ok(()),
    }
}

/// A file that was not there, whole or not at all. False if it was there.
fn create(path: &Path, body: &[u8]) -> Result<bool, Away> {
    let dir = path.parent().unwrap_or(path);
    let made = tempfile::Builder::new().prefix(".tmp-").tempfile_in(dir).and_then(|mut file| {
        file.write_all(body)?;
        file.as_file().sync_all()?;
        match file.persist_noclobber(path) {
            Ok(_) => File::open(dir)?.sync_all().map(|()| true),
            Err(error) if error.error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error.error),
        }
    });
    made.map_err(|error| away(path, &error))
}

/// A body of a size that is allowed.
fn read(path: &Path) -> Option<Vec<u8>> {
    let meta = fs::metadata(path).ok()?;
    let fits = meta.is_file() && meta.len() <= BODY_BYTES_MAX as u64;
    fits.then(|| fs::read(path).ok()).flatten()
}

fn lease_file(name: &str, turn: u64) -> String {
    format!("{name}+{turn}")
}

impl Work for Folder {
    fn offer(&mut self, task: &Task) -> Result<(), Away> {
        create(&self.file(TASKS, &task.name())?, task.body()).map(drop)
    }

    fn lease(&mut self, most: usize) -> Result<Vec<Lease>, Away> {
        let Some(scope) = self.scope.clone() else { return Ok(Vec::new()) };
        let asked = Instant::now();
        let held = self.holders()?;
        let over = self.listen(&held);
        let mut leases = Vec::new();
        for name in self.names(TASKS)? {
            if leases.len() >= most {
                break;
            }
            let path = self.file(TASKS, &name)?;
            let Some(shape) = Task::of_name(&name, Vec::new()) else { continue };
            if *shape.scope() != scope {
                continue;
            }
            let turns = match (held.contains_key(&name), over.get(&name)) {
                (true, None) => continue,
                (_, turn) => turn.copied().unwrap_or(0),
            };
            if self.file(ANSWERS, &name)?.exists() {
                // Its holder died between the answer and the end, or it was asked twice.
                self.remove(&name)?;
                continue;
            }
            let taken = create(&self.file(HELD, &lease_file(&name, turns + 1))?, b"")?;
            let task = read(&path).and_then(|body| Task::of_name(&name, body));
            if let (true, Some(task)) = (taken, task) {
                leases.push(Lease::new(task, turns, turns + 1, asked));
            }
        }
        Ok(leases)
    }

    fn renew(&mut self, lease: &Lease) -> Result<(), Away> {
        self.touch(lease, self.now()?)
    }

    fn release(&mut self, lease: &Lease) -> Result<(), Away> {
        // Its number stays, so that the next holder has another.
        self.touch(lease, SystemTime::UNIX_EPOCH)
    }

    fn answer(&mut self, lease: &Lease, body: &[u8]) -> Result<bool, Away> {
        let name = lease.task.name();
        let first = create(&self.file(ANSWERS, &name)?, body)?;
        self.remove(&name)?;
        Ok(first)
    }

    fn answers(&mut self, batch: &str) -> Result<Vec<(String, Vec<u8>)>, Away> {
        let Some(scope) = self.scope.clone() else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for name in self.names(ANSWERS)? {
            let Some(task) = Task::of_name(&name, Vec::new()) else { continue };
            if *task.scope() != scope || task.batch() != batch || self.heard.contains(&name) {
                continue;
            }
            if let Some(body) = read(&self.file(ANSWERS, &name)?) {
                found.push((task.id().to_owned(), body));
            }
            self.heard.insert(name);
        }
        Ok(found)
    }

    fn withdraw(&mut self, batch: &str) -> Result<(), Away> {
        for name in self.names(TASKS)? {
            let task = Task::of_name(&name, Vec::new());
            if task.is_some_and(|t| t.batch() == batch && Some(t.scope()) == self.scope.as_ref()) {
                self.remove(&name)?;
            }
        }
        self.clear(self.now()?)
    }

    fn statuses(&mut self) -> Result<Vec<Parcel>, Away> {
        self.look(|kind| kind == Kind::Status)
    }

    fn loads(&mut self) -> Result<BTreeMap<Scope, Load>, Away> {
        let (now, held) = (self.now()?, self.holders()?);
        let mut loads: BTreeMap<Scope, Load> = BTreeMap::new();
        for name in self.names(TASKS)? {
            let Some(task) = Task::of_name(&name, Vec::new()) else { continue };
            let load = loads.entry(task.scope().clone()).or_default();
            let is_held = |(_, touched): &Word| !is_over(*touched, now);
            match held.get(&name).is_some_and(is_held) {
                true => load.held += 1,
                false => load.open += 1,
            }
        }
        for name in self.names(ANSWERS)? {
            if let Some(task) = Task::of_name(&name, Vec::new()) {
                loads.entry(task.scope().clone()).or_default().done += 1;
            }
        }
        Ok(loads)
    }
}
