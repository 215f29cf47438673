//! Snapshots: a golden VM's memory and state in our memory, to be cloned from, and in a folder
//! below the home, to be found again by the next process. What is found is hashed before it is
//! used, so a half-written, cut or flipped snapshot is made again and never cloned.

mod disk;
mod key;

use crate::boot::{BootError, Machine};
use crate::golden::{self, Golden};
use crate::memory::Memory;
use crate::{Accel, VmSpec};
use case::profile::Profile;
use disk::{Folder, Lock};
use key::Key;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A golden VM that can be cloned. Its memory is sealed: no clone can change it.
#[derive(Debug)]
pub struct Snapshot {
    memory: Memory,
    state: Vec<u8>,
    profile: Profile,
    machine: Machinery,
    figures: Figures,
}

/// The parts of a specification a guest sees, which a clone cannot choose.
#[derive(Clone, Copy, Debug)]
struct Machinery {
    memory_mib: u32,
    cpus: u8,
    accel: Accel,
    serial_link: bool,
}

/// What a snapshot costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Guest memory that is not zero, in bytes: what is on disk, and in memory once a process.
    pub ram_bytes: u64,
    pub state_bytes: u64,
    /// From the start of QEMU to a sealed snapshot, when it was made.
    pub build: Duration,
    /// From disk into memory; zero if this process made it.
    pub load: Duration,
}

impl Snapshot {
    fn of(golden: Golden, spec: &VmSpec, figures: Figures) -> Snapshot {
        let Golden { memory, state, profile, serial_link, .. } = golden;
        let (memory_mib, cpus, accel) = (spec.memory_mib, spec.cpus, spec.accel);
        let machine = Machinery { memory_mib, cpus, accel, serial_link };
        Snapshot { memory, state, profile, machine, figures }
    }

    /// What the golden VM's kernel can do.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    pub fn figures(&self) -> Figures {
        self.figures
    }

    /// Hash of the golden memory as it is now. Reads all of it.
    pub fn memory_hash(&self) -> std::io::Result<String> {
        Ok(self.memory.content()?.map(|content| content.hash).join(" "))
    }

    /// Starts a clone: QEMU, folder and deadline are `spec`'s, the machine is the golden one.
    pub(crate) fn start(&self, spec: &VmSpec) -> Result<(Machine, Profile), BootError> {
        let Machinery { memory_mib, cpus, accel, serial_link } = self.machine;
        let spec = VmSpec { memory_mib, cpus, accel, serial_link, ..spec.clone() };
        golden::clone(&self.memory, &self.state, &spec)
    }
}

/// The snapshots of one kernel on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshots {
    /// Folder of all snapshots; made if absent.
    pub dir: PathBuf,
    /// Name of the kernel.
    pub label: String,
}

impl Snapshots {
    /// The snapshot for `spec`: found, or made by booting it once. `spec.dir` gets the logs. `say`
    /// is told, in one line each, what takes long and what went wrong on the way. Of several
    /// processes that want the same one, one makes it and the others wait.
    pub fn find_or_make(
        &self,
        spec: &VmSpec,
        say: &mut dyn FnMut(&str),
    ) -> Result<Snapshot, BootError> {
        let key = Key::of(spec);
        let folder = Folder::new(&self.dir, &self.label, &key);
        let locked = match self.lock(&folder, false, say) {
            Ok(lock) => lock,
            Err(error) => {
                // Clones work without: only the next process has to boot again.
                say(&format!("snapshots cannot be kept in {}: {error}", self.dir.display()));
                return self.make(spec, say).map(|(snapshot, _)| snapshot);
            }
        };
        if let Some(snapshot) = find(&folder, spec, &mut |_| {}) {
            return Ok(snapshot);
        }
        drop(locked);
        let only = self.lock(&folder, true, say);
        folder.sweep();
        // Somebody else may have made it while we waited.
        if let Some(snapshot) = find(&folder, spec, say) {
            return Ok(snapshot);
        }
        let (snapshot, console) = self.make(spec, say)?;
        let kept = only.and_then(|_lock| folder.save(&snapshot, &console));
        if let Err(error) = kept {
            say(&format!("the snapshot is not kept and is made again next time: {error}"));
        }
        Ok(snapshot)
    }

    /// Folder of the snapshot for `spec`, there or not.
    pub fn path(&self, spec: &VmSpec) -> PathBuf {
        Folder::new(&self.dir, &self.label, &Key::of(spec)).path()
    }

    /// The snapshot for `spec` if there is a whole one on disk; never boots.
    pub fn find(&self, spec: &VmSpec) -> Option<Snapshot> {
        let folder = Folder::new(&self.dir, &self.label, &Key::of(spec));
        let _lock = folder.lock(false).ok()?;
        find(&folder, spec, &mut |_| {})
    }

    /// Removes the snapshots below `dir` of all kernels but these; gives the names of theirs.
    pub fn forget_all_but(dir: &Path, labels: &[String]) -> Vec<String> {
        disk::forget_all_but(dir, labels)
    }

    fn lock(
        &self,
        folder: &Folder,
        alone: bool,
        say: &mut dyn FnMut(&str),
    ) -> std::io::Result<Lock> {
        match folder.try_lock(alone)? {
            Some(lock) => Ok(lock),
            None => {
                say(&format!("another process is at the snapshots of {}; waiting", self.label));
                folder.lock(alone)
            }
        }
    }

    /// Boots, saves, and proves by one clone that the result can be used on this host.
    fn make(
        &self,
        spec: &VmSpec,
        say: &mut dyn FnMut(&str),
    ) -> Result<(Snapshot, Vec<u8>), BootError> {
        say(&format!("booting {} once; every VM after it is a clone", self.label));
        let started = Instant::now();
        let mut golden = golden::make(spec, say)?;
        let console = std::mem::take(&mut golden.console);
        let ram_bytes = golden
            .memory
            .resident_bytes()
            .map_err(|source| BootError::Io { what: "guest memory".into(), source })?;
        let figures = Figures {
            ram_bytes,
            state_bytes: golden.state.len() as u64,
            build: started.elapsed(),
            load: Duration::ZERO,
        };
        let snapshot = Snapshot::of(golden, spec, figures);
        let proof = VmSpec { dir: spec.dir.join("proof"), ..spec.clone() };
        snapshot.start(&proof)?;
        Ok((snapshot, console))
    }
}

/// The snapshot in `folder`, if it is there and whole.
fn find(folder: &Folder, spec: &VmSpec, say: &mut dyn FnMut(&str)) -> Option<Snapshot> {
    let started = Instant::now();
    match folder.load(spec.memory_mib) {
        Ok(Some((golden, mut figures))) => {
            figures.load = started.elapsed();
            Some(Snapshot::of(golden, spec, figures))
        }
        Ok(None) => None,
        Err(why) => {
            say(&format!("the snapshot of {} is of no use ({why}); made again", folder.label()));
            None
        }
    }
}
