//! A snapshot's folder: `ram0.img` and `ram1.img` (sparse), `state.bin`, `profile`, `key`,
//! `console.log`, and `sums` with the hash of each. Written beside its place and renamed there.
//! Nothing is flushed to the disk: what a power loss spoils does not pass its hash.

use super::{Figures, Key, Snapshot};
use crate::command::{NODES, node_mib};
use crate::golden::Golden;
use crate::memory::{Content, Memory};
use case::profile::Profile;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statvfs::statvfs;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const RAM: [&str; NODES] = ["ram0.img", "ram1.img"];
const STATE: &str = "state.bin";
const PROFILE: &str = "profile";
const KEY: &str = "key";
const CONSOLE: &str = "console.log";
const SUMS: &str = "sums";
/// Largest file read into memory as a whole, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Disk that is left to others, in bytes.
const SPARE_BYTES: u64 = 256 << 20;
/// Snapshots of a kernel that stay beside the newest: other sizes of the same machine.
const OTHERS_MAX: usize = 2;

/// First part of the name of a snapshot that is being written.
const BUILDING: &str = ".build-";

/// Held while a kernel's snapshots are read, or written by one process alone.
pub type Lock = Flock<File>;

/// What `profile` holds.
#[derive(Debug, Serialize, Deserialize)]
struct About {
    profile: Profile,
    serial_link: bool,
    build_ms: u64,
}

/// Where one snapshot lies, or would.
#[derive(Debug)]
pub struct Folder {
    dir: PathBuf,
    label: String,
    key: Key,
}

impl Folder {
    pub fn new(dir: &Path, label: &str, key: &Key) -> Folder {
        Folder { dir: dir.to_path_buf(), label: plain(label), key: key.clone() }
    }

    pub fn label(&self) -> &str {
        &self.label
    }

    pub fn path(&self) -> PathBuf {
        self.dir.join(format!("{}-{}-{}", self.label, self.key.programs, self.key.machine))
    }

    /// Hashes in the name of a snapshot of this kernel.
    fn parse<'n>(&self, name: &'n str) -> Option<(&'n str, &'n str)> {
        let (label, programs, machine) = parts(name)?;
        (label == self.label).then_some((programs, machine))
    }

    fn building(&self) -> String {
        format!("{BUILDING}{}-", self.label)
    }

    fn lock_file(&self) -> io::Result<File> {
        lock_file(&self.dir, &self.label)
    }

    /// `None` if another process is in the way. The kernel takes the lock from the dead.
    pub fn try_lock(&self, alone: bool) -> io::Result<Option<Lock>> {
        let how =
            if alone { FlockArg::LockExclusiveNonblock } else { FlockArg::LockSharedNonblock };
        try_lock(self.lock_file()?, how)
    }

    /// Waits for it.
    pub fn lock(&self, alone: bool) -> io::Result<Lock> {
        let how = if alone { FlockArg::LockExclusive } else { FlockArg::LockShared };
        let mut file = self.lock_file()?;
        loop {
            match Flock::lock(file, how) {
                Ok(lock) => return Ok(lock),
                Err((back, Errno::EINTR)) => file = back,
                Err((_, errno)) => return Err(errno.into()),
            }
        }
    }

    /// Reads and checks it. `None` if there is none.
    pub fn load(&self, memory_mib: u32) -> Result<Option<(Golden, Figures)>, String> {
        let dir = self.path();
        if !dir.is_dir() {
            return Ok(None);
        }
        let sums = text(&dir, SUMS)?;
        let (key, profile) = (text(&dir, KEY)?, read(&dir, PROFILE)?);
        let state = read(&dir, STATE)?;
        if key != self.key.text {
            return Err("it is of something else".into());
        }
        let memory = Memory::new(node_mib(memory_mib)).map_err(|e| e.to_string())?;
        let ram = self.load_ram(&dir, memory_mib, &memory)?;
        if sums != sums_of(&ram, key.as_bytes(), &profile, &state) {
            return Err("what is in it is not what was written".into());
        }
        memory.seal().map_err(|e| e.to_string())?;
        let about: About = serde_json::from_slice(&profile).map_err(|e| e.to_string())?;
        let figures = Figures {
            ram_bytes: ram.iter().map(|content| content.bytes).sum(),
            state_bytes: state.len() as u64,
            build: Duration::from_millis(about.build_ms),
            load: Duration::ZERO,
        };
        // Says when it was last of use.
        let _ = File::options()
            .append(true)
            .open(dir.join(KEY))
            .and_then(|file| file.set_modified(SystemTime::now()));
        let About { profile, serial_link, .. } = about;
        Ok(Some((Golden { memory, state, profile, serial_link, console: Vec::new() }, figures)))
    }

    fn load_ram(
        &self,
        dir: &Path,
        memory_mib: u32,
        memory: &Memory,
    ) -> Result<[Content; NODES], String> {
        let open = |node: usize| -> Result<File, String> {
            let file = File::open(dir.join(RAM[node])).map_err(|e| e.to_string())?;
            let len = file.metadata().map_err(|e| e.to_string())?.len();
            let whole = u64::from(node_mib(memory_mib)[node]) << 20;
            if len != whole {
                return Err(format!("{} has {len} bytes of {whole}", RAM[node]));
            }
            Ok(file)
        };
        memory.load(&[open(0)?, open(1)?]).map_err(|e| e.to_string())
    }

    /// Writes it, then removes what it makes needless. The caller holds the lock alone.
    pub fn save(&self, snapshot: &Snapshot, console: &[u8]) -> io::Result<()> {
        let free = statvfs(&self.dir)?;
        let free = free.blocks_available() as u64 * free.fragment_size() as u64;
        let need = snapshot.figures.ram_bytes + SPARE_BYTES;
        if free < need {
            let (need, free) = (need >> 20, free >> 20);
            let why = format!("{} has {free} MiB free of {need}", self.dir.display());
            return Err(io::Error::new(ErrorKind::StorageFull, why));
        }
        let temp = tempfile::Builder::new().prefix(&self.building()).tempdir_in(&self.dir)?;
        let create = |name: &str| {
            let mut options = File::options();
            options.read(true).write(true).create_new(true).open(temp.path().join(name))
        };
        let ram = snapshot.memory.save(&[create(RAM[0])?, create(RAM[1])?])?;
        let about = About {
            profile: snapshot.profile.clone(),
            serial_link: snapshot.machine.serial_link,
            build_ms: snapshot.figures.build.as_millis() as u64,
        };
        let profile = serde_json::to_vec_pretty(&about)?;
        let key = self.key.text.as_bytes();
        let sums = sums_of(&ram, key, &profile, &snapshot.state);
        for (name, bytes) in [
            (STATE, &snapshot.state[..]),
            (PROFILE, &profile),
            (KEY, key),
            (CONSOLE, console),
            (SUMS, sums.as_bytes()),
        ] {
            std::fs::write(temp.path().join(name), bytes)?;
        }
        let path = self.path();
        if path.exists() {
            std::fs::remove_dir_all(&path)?;
        }
        std::fs::rename(temp.path(), &path)?;
        // It is in its place: there is nothing to clean up.
        let _ = temp.keep();
        self.prune();
        Ok(())
    }

    /// Removes what killed processes left half-written. The caller holds the lock alone.
    pub fn sweep(&self) {
        for name in self.names().filter(|name| name.starts_with(&self.building())) {
            self.remove(&name);
        }
    }

    /// Removes snapshots whose programs are gone, and the oldest of other machines.
    fn prune(&self) {
        let mut others = Vec::new();
        for name in self.names() {
            match self.parse(&name) {
                Some((programs, _)) if programs != self.key.programs => self.remove(&name),
                Some((_, machine)) if machine != self.key.machine => {
                    let used = std::fs::metadata(self.dir.join(&name).join(KEY));
                    let used = used.and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
                    others.push((used, name));
                }
                _ => {}
            }
        }
        others.sort();
        let surplus = others.len().saturating_sub(OTHERS_MAX);
        others.iter().take(surplus).for_each(|(_, name)| self.remove(name));
    }

    fn names(&self) -> impl Iterator<Item = String> + use<> {
        names(&self.dir)
    }

    fn remove(&self, name: &str) {
        remove(&self.dir, name);
    }
}

/// A kernel's name as it becomes part of file names.
fn plain(label: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-._~+".contains(c);
    label.chars().map(|c| if fits(c) { c } else { '_' }).collect()
}

/// Kernel and hashes in the name of a snapshot.
fn parts(name: &str) -> Option<(&str, &str, &str)> {
    let (rest, machine) = name.rsplit_once('-')?;
    let (label, programs) = rest.rsplit_once('-')?;
    let hash = |text: &str| text.len() == 8 && text.bytes().all(|b| b.is_ascii_hexdigit());
    (hash(programs) && hash(machine)).then_some((label, programs, machine))
}

fn lock_file(dir: &Path, label: &str) -> io::Result<File> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let path = dir.join(format!(".lock-{label}"));
    File::options().write(true).create(true).truncate(false).open(path)
}

fn try_lock(file: File, how: FlockArg) -> io::Result<Option<Lock>> {
    match Flock::lock(file, how) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno.into()),
    }
}

fn names(dir: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

fn remove(dir: &Path, name: &str) {
    if let Err(error) = std::fs::remove_dir_all(dir.join(name)) {
        tracing::debug!("cannot remove the old snapshot {name}: {error}");
    }
}

/// Removes snapshots, whole or half-written, of kernels that are not among `kept`; gives the names
/// of those kernels. A snapshot another process is at stays.
pub fn forget_all_but(dir: &Path, kept: &[String]) -> Vec<String> {
    // A link leads to the snapshots of another home, which has kernels of its own.
    if !dir.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
        return Vec::new();
    }
    let kept: BTreeSet<String> = kept.iter().map(|label| plain(label)).collect();
    let mut gone: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for name in names(dir) {
        let half = name.strip_prefix(BUILDING).and_then(|rest| rest.rsplit_once('-'));
        let label = parts(&name).map(|(label, ..)| label).or(half.map(|(label, _)| label));
        if let Some(label) = label.filter(|label| !kept.contains(*label)) {
            gone.entry(label.to_owned()).or_default().push(name);
        }
    }
    gone.retain(|label, folders| {
        let file = lock_file(dir, label);
        let lock = file.and_then(|file| try_lock(file, FlockArg::LockExclusiveNonblock));
        let Ok(Some(_lock)) = lock else { return false };
        folders.iter().for_each(|name| remove(dir, name));
        true
    });
    gone.into_keys().collect()
}

fn read(dir: &Path, name: &str) -> Result<Vec<u8>, String> {
    let path = dir.join(name);
    let mut bytes = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes))
        .map_err(|error| format!("{name}: {error}"))?;
    Ok(bytes)
}

fn text(dir: &Path, name: &str) -> Result<String, String> {
    String::from_utf8(read(dir, name)?).map_err(|_| format!("{name} is no text"))
}

/// What `sums` holds: a hash and a name a line.
fn sums_of(ram: &[Content; NODES], key: &[u8], profile: &[u8], state: &[u8]) -> String {
    let of = |bytes: &[u8]| blake3::hash(bytes).to_hex().to_string();
    let rows = [
        (ram[0].hash.clone(), RAM[0]),
        (ram[1].hash.clone(), RAM[1]),
        (of(state), STATE),
        (of(profile), PROFILE),
        (of(key), KEY),
    ];
    rows.map(|(hash, name)| format!("{hash} {name}\n")).concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_of_kernels_nobody_has_go_and_others_stay() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("snapshots");
        let make = |name: &str| std::fs::create_dir_all(dir.join(name)).unwrap();
        let there = || names(&dir).filter(|n| !n.starts_with(".lock-")).collect::<BTreeSet<_>>();
        let stay = ["debian-6.1.192-2-733c4f4f-57803242", ".build-my_kernel-Ab3xYz", "notes"];
        let go = ["debian-6.1-94d1abe0-57803242", "debian-6.1-94d1abe0-aaaaaaaa"];
        let busy = "busy-6.1-94d1abe0-57803242";
        stay.iter().chain(&go).chain(&[busy, ".build-debian-6.1-Ab3xYz"]).for_each(|n| make(n));
        let held = try_lock(lock_file(&dir, "busy-6.1").unwrap(), FlockArg::LockSharedNonblock);
        let kept = ["debian-6.1.192-2".to_owned(), "my kernel".to_owned()];

        let link = temp.path().join("link");
        std::os::unix::fs::symlink(&dir, &link).unwrap();
        assert!(forget_all_but(&link, &kept).is_empty(), "another home's are none of ours");
        assert_eq!(there().len(), 7);

        assert_eq!(forget_all_but(&dir, &kept), ["debian-6.1"]);
        let left: BTreeSet<String> = stay.iter().chain(&[busy]).map(|n| n.to_string()).collect();
        assert_eq!(there(), left);
        drop(held);
        assert_eq!(forget_all_but(&dir, &kept), ["busy-6.1"]);
        assert!(forget_all_but(&temp.path().join("none"), &kept).is_empty());
    }
}
