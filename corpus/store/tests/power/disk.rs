//! A disk that loses power: from recorded calls, what it holds for sure and what it may or may not
//! hold, and the states that a cut leaves behind.
//!
//! It promises as little as POSIX lets it: bytes and length of a file are there after fsync or
//! fdatasync of that file, a name after fsync of the folder it stands in (that of the file does not
//! do, as it would on ext4), the name of a folder after fsync of the folder above. Before that each
//! may be there or not, in any order, and a write may be there in parts. It keeps only this: a rename
//! happens whole or not at all, a sector of 512 B or 4 KiB is written whole or not, and bytes outside
//! of a write that was not synced stay as they are.

use super::trace::{Arg, Call};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

type Node = usize;
const ROOT: Node = 0;

/// Everything below one folder.
#[derive(Clone, Debug)]
pub struct Disk {
    root: PathBuf,
    nodes: Vec<Thing>,
    /// Names that were changed and not synced, in the order of the changes.
    unsure: Vec<Vec<Naming>>,
    open: BTreeMap<i64, usize>,
    /// Opened once each; copies of a descriptor share one.
    handles: Vec<Handle>,
    said: Vec<String>,
}

#[derive(Clone, Debug)]
enum Thing {
    File(File),
    Folder(Folder),
}

#[derive(Clone, Debug, Default)]
struct File {
    now: Vec<u8>,
    synced: Vec<u8>,
    /// What was done since, in order.
    unsure: Vec<Change>,
    /// Changed in memory, where no call shows it: it may hold anything.
    mapped: bool,
}

#[derive(Clone, Debug)]
enum Change {
    Bytes(usize, Vec<u8>),
    Length(usize),
}

#[derive(Clone, Debug, Default)]
struct Folder {
    now: BTreeMap<String, Node>,
    synced: BTreeMap<String, Node>,
}

/// One name in one folder now stands for this, or for nothing.
#[derive(Clone, Debug)]
struct Naming {
    folder: Node,
    name: String,
    node: Option<Node>,
}

#[derive(Clone, Debug)]
struct Handle {
    path: PathBuf,
    node: Node,
    at: usize,
    append: bool,
}

/// What a cut does to all that was not synced.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Damage {
    /// Nothing of it is there.
    Dropped,
    /// All of it is there, as after a kill.
    Kept,
    /// The names are there, the bytes are not.
    Names,
    /// The names and lengths are there, and zeros where bytes should be.
    Zeros,
    /// The bytes are there, the names are not.
    Bytes,
    /// Names up to one of them; bytes of each file up to one of its writes, of which some sectors.
    Ordered { sector: usize },
    /// Any names and any sectors of any writes.
    Loose { sector: usize },
    /// The same, and a sector that is not there may hold anything.
    Garbage { sector: usize },
}

pub const DAMAGES: [Damage; 10] = [
    Damage::Dropped,
    Damage::Kept,
    Damage::Names,
    Damage::Zeros,
    Damage::Bytes,
    Damage::Ordered { sector: 512 },
    Damage::Ordered { sector: 4096 },
    Damage::Loose { sector: 512 },
    Damage::Loose { sector: 4096 },
    Damage::Garbage { sector: 512 },
];

/// What is on the disk afterwards: relative path -> bytes; none: a folder.
pub type State = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// Makes a state in an empty folder.
pub fn put(state: &State, to: &Path) {
    for (path, bytes) in state {
        let done = match bytes {
            None => std::fs::create_dir(to.join(path)),
            Some(bytes) => std::fs::write(to.join(path), bytes),
        };
        done.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

impl Disk {
    /// A disk with these files on it for sure.
    pub fn with(state: &State) -> Disk {
        let mut disk = Disk {
            root: PathBuf::new(),
            nodes: vec![Thing::Folder(Folder::default())],
            unsure: Vec::new(),
            open: BTreeMap::new(),
            handles: Vec::new(),
            said: Vec::new(),
        };
        for (path, bytes) in state {
            let node = disk.nodes.len();
            disk.nodes.push(match bytes {
                None => Thing::Folder(Folder::default()),
                Some(bytes) => {
                    let (now, synced) = (bytes.clone(), bytes.clone());
                    Thing::File(File { now, synced, ..File::default() })
                }
            });
            let (folder, name) = disk.place(path).expect("folders come first");
            let folder = disk.folder(folder);
            folder.now.insert(name.clone(), node);
            folder.synced.insert(name, node);
        }
        disk
    }

    /// Calls will name its folder like this.
    pub fn at(self, root: &Path) -> Disk {
        Disk { root: root.to_owned(), ..self }
    }

    /// Lines the writer said so far.
    pub fn said(&self) -> &[String] {
        &self.said
    }

    /// The writer was killed: files stay as they are, its descriptors are gone. Gives what it said.
    pub fn killed(&mut self) -> Vec<String> {
        self.open.clear();
        std::mem::take(&mut self.said)
    }

    /// What of ours this call makes durable, as it was named when it was opened.
    pub fn syncs(&self, call: &Call) -> Option<PathBuf> {
        let syncs = ["fsync", "fdatasync"].contains(&call.name.as_str());
        let handle = self.open.get(&call.args.first().filter(|_| syncs)?.number()?)?;
        Some(self.handles[*handle].path.clone())
    }

    /// True: something changed or was said, so that this is a moment worth a cut.
    pub fn apply(&mut self, call: &Call) -> bool {
        match call.name.as_str() {
            "open" | "openat" => self.opened(call),
            "close" => {
                self.open.remove(&call.number(0));
                false
            }
            "dup" | "dup2" | "dup3" | "fcntl" => {
                let copies = call.name != "fcntl" || call.word(1).starts_with("F_DUPFD");
                if let Some(handle) = self.open.get(&call.number(0)).filter(|_| copies) {
                    self.open.insert(call.result, *handle);
                }
                false
            }
            "lseek" | "read" => {
                let moved = call.result as usize;
                if let Some(handle) = self.handle(call.number(0)) {
                    handle.at = if call.name == "read" { handle.at + moved } else { moved };
                }
                false
            }
            "write" | "pwrite64" => self.written(call),
            "ftruncate" => {
                let length = call.number(1) as usize;
                self.file(call.number(0), |file| file.resize(length))
            }
            "fsync" | "fdatasync" => self.synced(call.number(0)),
            "mmap" => {
                let shared = call.word(3).contains("MAP_SHARED");
                let fd: i64 = call.word(4).parse().unwrap_or(-1);
                if shared && call.word(2).contains("PROT_WRITE") {
                    self.file(fd, |file| file.mapped = true);
                }
                false
            }
            "rename" => self.renamed(call.text(0), call.text(1)),
            "renameat" | "renameat2" => self.renamed(call.text(1), call.text(3)),
            "unlink" | "rmdir" => self.unlinked(call.text(0)),
            "unlinkat" => self.unlinked(call.text(1)),
            "mkdir" => self.made(call.text(0)),
            "mkdirat" => self.made(call.text(1)),
            _ => self.refused(call),
        }
    }

    /// There is no reading for this call, so it must not be about our files.
    fn refused(&self, call: &Call) -> bool {
        let ours = call.args.iter().any(|arg| match arg {
            Arg::Text(text) => self.inside(text).is_some(),
            Arg::Word(_) => arg.number().is_some_and(|fd| self.open.contains_key(&fd)),
        });
        let whole = ["sync", "syncfs", "io_uring_setup"].contains(&call.name.as_str());
        assert!(!ours && !whole, "no reading for {} {:?}", call.name, call.args);
        false
    }

    /// A path below the root, relative to it.
    fn inside(&self, path: &[u8]) -> Option<PathBuf> {
        let path = Path::new(std::str::from_utf8(path).expect("a path of ours"));
        path.strip_prefix(&self.root).ok().map(Path::to_owned)
    }

    /// The folder a path stands in, and its name there.
    fn place(&self, path: &Path) -> Option<(Node, String)> {
        let name = path.file_name()?.to_str()?.to_owned();
        Some((self.find(path.parent()?)?, name))
    }

    fn find(&self, path: &Path) -> Option<Node> {
        path.iter().try_fold(ROOT, |node, name| match &self.nodes[node] {
            Thing::Folder(folder) => folder.now.get(name.to_str()?).copied(),
            Thing::File(_) => None,
        })
    }

    fn folder(&mut self, node: Node) -> &mut Folder {
        match &mut self.nodes[node] {
            Thing::Folder(folder) => folder,
            Thing::File(_) => panic!("a file where a folder should be"),
        }
    }

    fn handle(&mut self, fd: i64) -> Option<&mut Handle> {
        let handle = *self.open.get(&fd)?;
        self.handles.get_mut(handle)
    }

    /// Does this to an open file of ours. False: it is none.
    fn file(&mut self, fd: i64, work: impl FnOnce(&mut File)) -> bool {
        let node = self.handle(fd).map(|handle| handle.node);
        match node.map(|node| &mut self.nodes[node]) {
            Some(Thing::File(file)) => {
                work(file);
                true
            }
            _ => false,
        }
    }

    fn opened(&mut self, call: &Call) -> bool {
        let first = usize::from(call.name == "openat");
        let flags = call.word(first + 1);
        let Some(path) = self.inside(call.text(first)) else {
            let relative = !call.text(first).starts_with(b"/");
            let ours = relative && first == 1 && call.word(0) != "AT_FDCWD";
            assert!(
                !ours || !self.open.contains_key(&call.number(0)),
                "opened in a folder of ours"
            );
            return false;
        };
        assert!(!flags.contains("O_TMPFILE"), "no reading for files without a name");
        let found = self.find(&path);
        let node = found.unwrap_or(self.nodes.len());
        let mut changed = found.is_none();
        if changed {
            self.nodes.push(Thing::File(File::default()));
            let (folder, name) = self.place(&path).expect("its folder");
            self.name(vec![Naming { folder, name, node: Some(node) }]);
        }
        if let Thing::File(file) = &mut self.nodes[node]
            && flags.contains("O_TRUNC")
        {
            file.resize(0);
            changed = true;
        }
        self.open.insert(call.result, self.handles.len());
        self.handles.push(Handle { path, node, at: 0, append: flags.contains("O_APPEND") });
        changed
    }

    fn written(&mut self, call: &Call) -> bool {
        let (fd, bytes) = (call.number(0), &call.text(1)[..call.result as usize]);
        if fd == 1 {
            let text = String::from_utf8_lossy(bytes);
            // The test runner prints, too.
            let said = text.lines().filter_map(|line| line.strip_prefix("said "));
            self.said.extend(said.map(str::to_owned));
            return true;
        }
        let Some(&handle) = self.open.get(&fd) else { return false };
        let handle = &mut self.handles[handle];
        let Thing::File(file) = &mut self.nodes[handle.node] else { return false };
        let at = match call.name.as_str() {
            "pwrite64" => call.number(3) as usize,
            _ if handle.append => file.now.len(),
            _ => handle.at,
        };
        if call.name == "write" {
            handle.at = at + bytes.len();
        }
        lay(&mut file.now, at, bytes);
        file.unsure.push(Change::Bytes(at, bytes.to_vec()));
        true
    }

    fn synced(&mut self, fd: i64) -> bool {
        let Some(node) = self.handle(fd).map(|handle| handle.node) else { return false };
        match &mut self.nodes[node] {
            Thing::File(file) => {
                file.synced.clone_from(&file.now);
                file.unsure.clear();
            }
            Thing::Folder(_) => {
                for mut names in std::mem::take(&mut self.unsure) {
                    // Of a move between folders the new name is sure first.
                    while names.first().is_some_and(|naming| naming.folder == node) {
                        let naming = names.remove(0);
                        set(&mut self.folder(node).synced, &naming);
                    }
                    if !names.is_empty() {
                        self.unsure.push(names);
                    }
                }
            }
        }
        true
    }

    /// Changes names at once, which a cut keeps together.
    fn name(&mut self, names: Vec<Naming>) {
        for naming in &names {
            set(&mut self.folder(naming.folder).now, naming);
        }
        self.unsure.push(names);
    }

    fn renamed(&mut self, from: &[u8], to: &[u8]) -> bool {
        let (Some(from), Some(to)) = (self.inside(from), self.inside(to)) else { return false };
        let node = self.find(&from);
        assert!(node.is_some(), "renamed from nowhere: {}", from.display());
        let (folder, name) = self.place(&to).expect("its folder");
        let new = Naming { folder, name, node };
        let (folder, name) = self.place(&from).expect("its folder");
        self.name(vec![new, Naming { folder, name, node: None }]);
        true
    }

    fn unlinked(&mut self, path: &[u8]) -> bool {
        let Some(path) = self.inside(path) else {
            assert!(path.starts_with(b"/"), "no reading for what is removed in an open folder");
            return false;
        };
        let (folder, name) = self.place(&path).expect("its folder");
        self.name(vec![Naming { folder, name, node: None }]);
        true
    }

    fn made(&mut self, path: &[u8]) -> bool {
        let Some(path) = self.inside(path) else { return false };
        let (folder, name) = self.place(&path).expect("its folder");
        self.nodes.push(Thing::Folder(Folder::default()));
        self.name(vec![Naming { folder, name, node: Some(self.nodes.len() - 1) }]);
        true
    }

    /// What the writer sees, as long as there is power.
    pub fn now(&self) -> State {
        self.cut(Damage::Kept, &mut ChaCha8Rng::seed_from_u64(0))
    }

    /// What one cut leaves.
    pub fn cut(&self, damage: Damage, chance: &mut impl Rng) -> State {
        let names: Vec<bool> = match damage {
            Damage::Dropped | Damage::Bytes => vec![false; self.unsure.len()],
            Damage::Kept | Damage::Names | Damage::Zeros => vec![true; self.unsure.len()],
            Damage::Ordered { .. } => {
                let first = chance.random_range(0..=self.unsure.len());
                (0..self.unsure.len()).map(|n| n < first).collect()
            }
            Damage::Loose { .. } | Damage::Garbage { .. } => {
                self.unsure.iter().map(|_| chance.random()).collect()
            }
        };
        let mut folders: BTreeMap<Node, BTreeMap<String, Node>> = BTreeMap::new();
        for (node, thing) in self.nodes.iter().enumerate() {
            if let Thing::Folder(folder) = thing {
                folders.insert(node, folder.synced.clone());
            }
        }
        let there = self.unsure.iter().zip(names).filter(|(_, there)| *there);
        for naming in there.flat_map(|(names, _)| names) {
            if let Some(folder) = folders.get_mut(&naming.folder) {
                set(folder, naming);
            }
        }
        let mut state = State::new();
        let mut seen = BTreeSet::new();
        let mut left = vec![(PathBuf::new(), ROOT)];
        while let Some((path, node)) = left.pop() {
            if let Some(names) = folders.get(&node) {
                assert!(seen.insert(node), "a folder in two places");
                left.extend(names.iter().map(|(name, node)| (path.join(name), *node)));
            }
            let bytes = match &self.nodes[node] {
                Thing::File(file) => Some(file.after(damage, chance)),
                Thing::Folder(_) => None,
            };
            if node != ROOT {
                state.insert(path, bytes);
            }
        }
        state
    }
}

impl File {
    fn resize(&mut self, length: usize) {
        self.now.resize(length, 0);
        self.unsure.push(Change::Length(length));
    }

    /// What a cut leaves of it.
    fn after(&self, damage: Damage, chance: &mut impl Rng) -> Vec<u8> {
        let mut bytes = self.synced.clone();
        match damage {
            Damage::Dropped | Damage::Names => {}
            Damage::Kept | Damage::Bytes => bytes.clone_from(&self.now),
            Damage::Zeros => bytes.resize(self.now.len(), 0),
            Damage::Ordered { sector } => {
                let whole = chance.random_range(0..=self.unsure.len());
                self.unsure[..whole].iter().for_each(|change| change.lay(&mut bytes, |_| true));
                if let Some(torn) = self.unsure.get(whole) {
                    torn.sectors(&mut bytes, sector, false, chance);
                }
            }
            Damage::Loose { sector } => {
                self.unsure.iter().for_each(|c| c.sectors(&mut bytes, sector, false, chance));
            }
            Damage::Garbage { sector } => {
                self.unsure.iter().for_each(|c| c.sectors(&mut bytes, sector, true, chance));
            }
        }
        if self.mapped && damage != Damage::Kept {
            bytes.iter_mut().for_each(|byte| *byte = chance.random());
        }
        bytes
    }
}

impl Change {
    /// Does those sectors of it that `which` takes.
    fn lay(&self, to: &mut Vec<u8>, mut which: impl FnMut(usize) -> bool) {
        match self {
            Change::Bytes(at, bytes) if which(*at) => lay(to, *at, bytes),
            Change::Length(length) if which(0) => to.resize(*length, 0),
            _ => {}
        }
    }

    /// Does some sectors of it; others may become garbage.
    fn sectors(&self, to: &mut Vec<u8>, sector: usize, garbage: bool, chance: &mut impl Rng) {
        let Change::Bytes(at, bytes) = self else {
            return self.lay(to, |_| chance.random());
        };
        let mut done = 0;
        while done < bytes.len() {
            let start = at + done;
            let end = bytes.len().min(done + sector - start % sector);
            if chance.random() {
                lay(to, start, &bytes[done..end]);
            } else if garbage && chance.random() {
                let noise: Vec<u8> = (done..end).map(|_| chance.random()).collect();
                lay(to, start, &noise);
            }
            done = end;
        }
    }
}

fn lay(to: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if to.len() < at + bytes.len() {
        to.resize(at + bytes.len(), 0);
    }
    to[at..at + bytes.len()].copy_from_slice(bytes);
}

fn set(names: &mut BTreeMap<String, Node>, naming: &Naming) {
    match naming.node {
        Some(node) => names.insert(naming.name.clone(), node),
        None => names.remove(&naming.name),
    };
}
