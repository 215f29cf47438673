//! The reference world: files and their cached pages, processes with their VMAs and page-table
//! entries, userfaultfds, reservations and pools. Only state and the questions one may ask it;
//! what an op does to it lives in `ops`, what a load or store does in `touch`.
//!
//! Pages are [`Body`] objects, so that two entries share a page exactly when the kernel's share a
//! frame. Pool counters are never stepped: they are counted from the state (rule X-02).

mod nodes;

pub use nodes::{Node, fitting};

use crate::generation::{Ways, ways};
use crate::mutants::Mutant;
use case::limits::PAGE;
use case::observation::{Counters, Pool, Spot, Word};
use case::{
    Family, FileId, Nodes, NumaMode, PageSize, PinId, Place, Policy, ProcId, Profile, Prot, Seals,
    Share, UffdFeatures, UffdId, UffdModes,
};
use std::collections::{BTreeMap, BTreeSet};

/// Index of a page in [`World::bodies`].
pub type BodyId = usize;
/// Index of a file in [`World::files`].
pub type FileKey = usize;
/// Index of a private reservation in [`World::resvs`].
pub type ResvKey = usize;

/// One physical page of 4 KiB or a huge page: its content and what became of it.
#[derive(Clone, Debug)]
pub struct Body {
    pub size: PageSize,
    /// Page-cache slot, for file pages.
    pub file: Option<(FileKey, u64)>,
    /// Tag words by 4 KiB sub-page; absent = zero.
    pub words: BTreeMap<u32, [Word; 2]>,
    pub poisoned: bool,
    /// The poisoned sub-pages of a huge page; none when which they are is not known.
    pub raw: BTreeSet<u32>,
    /// Processes that called MADV_FREE since the last store: they read old content or zero. Others
    /// that map the page keep it.
    pub lazy: BTreeSet<ProcId>,
    /// Sub-pages whose content the model cannot know: racing stores went there.
    pub vague: BTreeSet<u32>,
    /// Whether another process shares the frame was the kernel's choice: identity is not judged.
    pub loose: bool,
    /// A copy that a read pin made of a shared page.
    pub unshared: bool,
}

/// A memfd, a hugetlbfs file, or the hidden file behind shared anonymous memory and anonymous
/// huge pages.
#[derive(Clone, Debug)]
pub struct File {
    pub page: PageSize,
    pub size: u64,
    pub seals: Seals,
    /// Page cache by unit index (file offset / page size).
    pub cache: BTreeMap<u64, BodyId>,
    /// Pages that are not cached as far as is known, but that a COPY which raced may have filled:
    /// if they show up, with what is open.
    pub perhaps_copied: BTreeSet<u64>,
    /// hugetlb: indices in the file's reserve map, whether or not a page is cached there.
    pub resv: BTreeSet<u64>,
    /// Not reachable by a descriptor.
    pub hidden: bool,
    /// On a hugetlbfs mount rather than a memfd.
    pub mounted: bool,
    /// Processes that hold a descriptor.
    pub open_in: BTreeSet<ProcId>,
    /// Bytes inside its first page were punched: what its mappings show since is a class of its own
    /// (D-09).
    pub head_punched: bool,
    /// shmem: a COLLAPSE may have made cached pages huge, so faults may map 2 MiB at once.
    pub maybe_huge: bool,
}

/// What stands in a page-table slot. No entry at all is "none".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// A uffd-wp marker.
    Marker,
    /// A UFFDIO_POISON marker.
    UffdPoison,
    /// Left by memory failure: of an anonymous page (`own`), or of one of a file.
    HwPoison {
        own: bool,
    },
    Page(BodyId),
    /// The shared zero page.
    Zero,
    /// None, or what an ordinary read fault would put here (THP, fault-around, collapse: the
    /// kernel may choose). The next look decides.
    Unsure,
}

/// A page-table entry: 4 KiB, a huge page of a hugetlb VMA, or a piece of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub slot: Slot,
    pub wp: bool,
}

/// What is behind a VMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Private anonymous base pages.
    Anon,
    /// A file (hidden ones included); `off` is the file offset of the VMA's start, bytes.
    File { key: FileKey, off: u64 },
}

/// Advice and lock flags of a VMA that show or matter later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmaFlags {
    pub locked: bool,
    pub onfault: bool,
    pub dontfork: bool,
    pub wipeonfork: bool,
    pub hugepage: bool,
    pub nohugepage: bool,
    pub dontdump: bool,
    pub mergeable: bool,
    pub seq: bool,
    pub rand: bool,
    pub noreserve: bool,
    /// A write-sealed file mapped read-only: mprotect may never make it writable.
    pub sealed_ro: bool,
    /// Huge pages may be mapped in pieces (MADV_SPLIT). Never taken back.
    pub hgm: bool,
}

/// One VMA; `start` and `end` are virtual addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vma {
    pub start: u64,
    pub end: u64,
    pub prot: Prot,
    pub share: Share,
    /// Unit of its entries: base pages, or the huge page size of a hugetlb VMA.
    pub unit: PageSize,
    pub backing: Backing,
    pub flags: VmaFlags,
    /// The userfaultfd it is registered with, and the modes.
    pub uffd: Option<(UffdId, UffdModes)>,
    /// Private hugetlb: the reservation its owner holds. `None` for children and NORESERVE.
    pub resv: Option<ResvKey>,
    /// hugetlb child whose pages the owner took: every miss is SIGBUS (HPAGE_RESV_UNMAPPED).
    pub starved: bool,
    /// NUMA policy of its own.
    pub policy: Option<(NumaMode, Nodes)>,
    /// Whether fork copies the tables.
    pub anon_vma: AnonVma,
}

/// Was an anonymous page ever put into the mapping (does its anon_vma exist)? Neighbours the kernel
/// may have merged share one, so what was put into one is perhaps said of the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum AnonVma {
    #[default]
    No,
    Perhaps,
    Yes,
}

/// Indices of a private reservation that were consumed by a page.
#[derive(Clone, Debug, Default)]
pub struct Resv {
    pub consumed: BTreeSet<u64>,
}

/// A process: its VMAs by start address and its entries by the start of their node.
#[derive(Clone, Debug, Default)]
pub struct Proc {
    pub vmas: BTreeMap<u64, Vma>,
    pub entries: BTreeMap<u64, Entry>,
    /// Page tables below the huge page size, as (start, bytes) of the entry they stand in for.
    pub tables: BTreeSet<(u64, u64)>,
}

/// A userfaultfd that was opened successfully.
#[derive(Clone, Debug)]
pub struct Uffd {
    pub features: UffdFeatures,
    /// Asked for high-granularity mapping of what it registers.
    pub hgm: bool,
    pub policy: Policy,
    /// Events without a reader were produced: filling ioctls may say EAGAIN.
    pub unread: bool,
}

/// Page tables of the runner itself in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnTables {
    pub least: i64,
    pub most: i64,
    /// Those of its helper threads at the looks this stands on, fewest and most.
    pub helpers: (i64, i64),
}

/// A uffd message the line under judgement must have produced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpectedEvent {
    pub uffd: UffdId,
    /// `case::observation::event` code.
    pub event: u8,
    /// Flags of a page fault, 0 for others.
    pub flags: u8,
    /// Fault address, start of the range, or source of a move.
    pub at: Place,
    /// REMAP: destination, outside of the arena if the kernel chose it. Others: `at`.
    pub to: Spot,
    /// REMAP: length. REMOVE/UNMAP: end - start. Others 0.
    pub len: u64,
}

/// What the judge believes of one pool beside what can be counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct PoolState {
    pub total: i64,
    /// Used and reserved before the program began: somebody else's, never ours to judge.
    pub used_before: i64,
    pub rsvd_before: i64,
    /// Surplus pages and how many may be made.
    pub surp: i64,
    pub surp_max: i64,
    /// A knob or a poison made the totals a matter of observation; only X-01 is judged.
    pub witness: bool,
}

/// The whole model. Cloned only by the search over interleavings.
#[derive(Clone, Debug)]
pub struct World {
    pub family: Family,
    pub profile: Profile,
    /// What its generation of high-granularity mapping does its own way.
    pub ways: Ways,
    pub mutant: Mutant,
    pub names: BTreeMap<FileId, FileKey>,
    pub files: Vec<File>,
    pub procs: BTreeMap<ProcId, Proc>,
    pub uffds: BTreeMap<UffdId, Uffd>,
    pub pins: BTreeMap<PinId, Vec<BodyId>>,
    /// Who holds a pin: it ends with its process.
    pub pin_owner: BTreeMap<PinId, ProcId>,
    /// use_zero_page: a read fault where a THP fits maps the huge zero page, else a THP of zeros.
    pub thp_zero_page: bool,
    pub bodies: Vec<Body>,
    pub resvs: Vec<Resv>,
    /// 2 MiB and 1 GiB pools.
    pub pool: [PoolState; 2],
    pub before: Counters,
    /// Pages poisoned or taken offline so far, as (fewest, most) 4 KiB units accounted.
    pub hw_pages: (i64, i64),
    /// THP setting as a program may have changed it.
    pub thp_enabled: u32,
    /// shmem THP setting: never 0, advise 1, within_size 2, always 3, deny 4, force 5.
    pub thp_shmem: u32,
    /// A NUMA policy was set, so a pool may have free pages that may not be taken.
    pub numa_bound: bool,
    /// That policy, or another, was one of the whole task.
    pub task_bound: bool,
    /// Some mapping changed its protection, or userfaultfd that of its pages, so entries may be read-only until the next store.
    pub mprotected: bool,
    /// Messages this line must have produced, in order; cleared by the judge before each line.
    pub expected_events: Vec<ExpectedEvent>,
    /// The access under way may not wait for a userfault: it fails instead.
    pub no_wait: bool,
    /// A reservation was divided by a move: counters that are off after it are a class of their
    /// own.
    pub reserve_divided: bool,
    /// An mbind took effect: a range may have the policy that another mbind asks for.
    pub policies_set: bool,
    /// Some anonymous mapping was cut or moved, so its pages may be parts of huge pages that would
    /// not fit into it.
    pub cut_or_moved: bool,
    /// A fault or COLLAPSE may have put a transparent huge page into anonymous memory.
    pub anon_huge: bool,
    /// An UNREGISTER was refused at a mapping behind others that it had to leave as they were
    /// (C-34): what shows of them is a class of its own.
    pub unregister_refused: bool,
    /// An UNREGISTER was refused at all: bits of write protection that are gone since are a class
    /// of their own (C-34).
    pub unregister_failed: bool,
    /// A part of a registered mapping moved to where it adjoins the rest: registrations that are
    /// gone since are a class of their own (D-10).
    pub moved_beside: bool,
    /// The most threads that a `par` block had so far.
    pub threads: usize,
    /// What E-03 is about may show from here on.
    pub sealed_file: bool,
    /// A hole was made in a huge shmem page that pins keep whole: what is cached there is not known.
    pub kept_whole: bool,
    /// A COLLAPSE was refused over holes of a file that somebody waits for: pages that show there
    /// since are a class of their own.
    pub collapse_refused: bool,
    /// A CONTINUE or COLLAPSE of a piece did nothing: page tables that show since are a class of
    /// their own (U-10).
    pub pieces_tried: bool,
    /// A child has private huge pages that are write-protected in its parent and not in it: where a
    /// kernel keeps the bit (N04), a store to them faults for ever.
    pub wp_forked: bool,
    /// Page tables that are not the program's, as looks at status left open.
    pub own_tables: BTreeMap<ProcId, OwnTables>,
    /// A fork happened: anonymous pages may be shared.
    pub forked: bool,
    /// From here on only invariants are judged, and why.
    pub blurred: Option<String>,
}

impl Body {
    pub fn new(size: PageSize, file: Option<(FileKey, u64)>) -> Self {
        Body {
            size,
            file,
            words: BTreeMap::new(),
            poisoned: false,
            raw: BTreeSet::new(),
            lazy: BTreeSet::new(),
            vague: BTreeSet::new(),
            loose: false,
            unshared: false,
        }
    }
    /// Tag words of one 4 KiB sub-page.
    pub fn words(&self, sub: u32) -> [Word; 2] {
        self.words.get(&sub).copied().unwrap_or([Word::Zero; 2])
    }
    pub fn set(&mut self, sub: u32, words: [Word; 2]) {
        if words == [Word::Zero; 2] {
            self.words.remove(&sub);
        } else {
            self.words.insert(sub, words);
        }
    }
}

impl Vma {
    pub fn unit_bytes(&self) -> u64 {
        self.unit.bytes()
    }
    pub fn is_hugetlb(&self) -> bool {
        self.unit.is_huge()
    }
    /// File and unit index behind an address inside the VMA.
    pub fn file_unit(&self, addr: u64) -> Option<(FileKey, u64)> {
        match self.backing {
            Backing::Anon => None,
            Backing::File { key, off } => {
                Some((key, (off + (addr - self.start)) / self.unit_bytes()))
            }
        }
    }
    /// Start address of the unit that holds `addr`.
    pub fn unit_addr(&self, addr: u64) -> u64 {
        addr - addr % self.unit_bytes()
    }
    pub fn armed(&self, mode: UffdModes) -> bool {
        self.uffd.is_some_and(|(_, modes)| modes.any(mode))
    }
    /// Private memory whose pages belong to the process: anonymous, or a private file mapping.
    pub fn is_private(&self) -> bool {
        self.share == Share::Private
    }
}

impl World {
    pub fn new(profile: &Profile, before: &Counters, mutant: Mutant) -> Self {
        let pool = |p: &Pool| PoolState {
            total: p.total,
            used_before: p.total - p.free,
            rsvd_before: p.rsvd,
            surp: p.surp,
            ..PoolState::default()
        };
        World {
            family: profile.family(),
            ways: ways(profile.hgm()),
            profile: profile.clone(),
            mutant,
            names: BTreeMap::new(),
            files: Vec::new(),
            procs: BTreeMap::from([(ProcId(0), Proc::default())]),
            uffds: BTreeMap::new(),
            pins: BTreeMap::new(),
            pin_owner: BTreeMap::new(),
            thp_zero_page: profile.thp_zero_page,
            bodies: Vec::new(),
            resvs: Vec::new(),
            pool: [pool(&before.pool_2m), pool(&before.pool_1g)],
            before: before.clone(),
            hw_pages: (0, 0),
            thp_enabled: match profile.thp_enabled.as_str() {
                "always" => 2,
                "madvise" => 1,
                _ => 0,
            },
            thp_shmem: match profile.thp_shmem.as_str() {
                "advise" => 1,
                "within_size" => 2,
                "always" => 3,
                "deny" => 4,
                "force" => 5,
                _ => 0,
            },
            numa_bound: false,
            task_bound: false,
            mprotected: false,
            expected_events: Vec::new(),
            no_wait: false,
            reserve_divided: false,
            policies_set: false,
            cut_or_moved: false,
            anon_huge: false,
            unregister_refused: false,
            threads: 0,
            unregister_failed: false,
            kept_whole: false,
            collapse_refused: false,
            wp_forked: false,
            pieces_tried: false,
            moved_beside: false,
            sealed_file: false,
            own_tables: BTreeMap::new(),
            forked: false,
            blurred: None,
        }
    }

    /// True if the mutation under test is this one. Only detection tests set one.
    pub fn mutated(&self, mutant: Mutant) -> bool {
        self.mutant == mutant
    }

    pub fn proc(&self, id: ProcId) -> Option<&Proc> {
        self.procs.get(&id)
    }
    pub fn proc_mut(&mut self, id: ProcId) -> Option<&mut Proc> {
        self.procs.get_mut(&id)
    }
    /// The file behind a program's name for it. All processes of a program share one table of
    /// descriptors, so it does not matter who asks.
    pub fn file(&self, _proc: ProcId, id: FileId) -> Option<FileKey> {
        let key = *self.names.get(&id)?;
        (!self.files[key].open_in.is_empty()).then_some(key)
    }
    pub fn new_file(&mut self, page: PageSize, hidden: bool) -> FileKey {
        self.files.push(File {
            page,
            size: 0,
            seals: Seals::NONE,
            cache: BTreeMap::new(),
            perhaps_copied: BTreeSet::new(),
            resv: BTreeSet::new(),
            hidden,
            mounted: false,
            open_in: BTreeSet::new(),
            maybe_huge: false,
            head_punched: false,
        });
        self.files.len() - 1
    }
    pub fn new_body(&mut self, size: PageSize, file: Option<(FileKey, u64)>) -> BodyId {
        let mut body = Body::new(size, file);
        if file.is_some_and(|(key, idx)| self.files[key].perhaps_copied.remove(&idx)) {
            body.vague.insert(0);
        }
        self.bodies.push(body);
        self.bodies.len() - 1
    }
    /// A private copy of a page's content.
    pub fn copy_body(&mut self, from: BodyId) -> BodyId {
        let mut copy = self.bodies[from].clone();
        copy.file = None;
        copy.lazy.clear();
        copy.unshared = false;
        copy.poisoned = false;
        copy.raw.clear();
        self.bodies.push(copy);
        self.bodies.len() - 1
    }

    /// The VMA that contains an address.
    pub fn vma_at(&self, proc: ProcId, addr: u64) -> Option<&Vma> {
        let (_, vma) = self.procs.get(&proc)?.vmas.range(..=addr).next_back()?;
        (addr < vma.end).then_some(vma)
    }
    pub fn vma_at_mut(&mut self, proc: ProcId, addr: u64) -> Option<&mut Vma> {
        let (_, vma) = self.procs.get_mut(&proc)?.vmas.range_mut(..=addr).next_back()?;
        (addr < vma.end).then_some(vma)
    }
    /// VMAs that overlap [start, end), in order (copies).
    pub fn vmas_in(&self, proc: ProcId, start: u64, end: u64) -> Vec<Vma> {
        let Some(p) = self.procs.get(&proc) else { return Vec::new() };
        p.vmas.range(..end).map(|(_, v)| v).filter(|v| v.end > start).cloned().collect()
    }
    /// A private page without content: 6.12 puts the zero page in its place when it splits a huge page
    /// (split_huge_page_to_list_to_order, RMP_USE_SHARED_ZEROPAGE).
    pub fn holds_zeroes(&self, entry: &Entry) -> bool {
        let Slot::Page(body) = entry.slot else { return false };
        let body = &self.bodies[body];
        let zero = |words: &[Word; 2]| *words == [Word::Zero; 2];
        let quiet = body.vague.is_empty() && !body.size.is_huge() && body.file.is_none();
        quiet && body.words.values().all(zero)
    }
    /// Is this of a file that was unmapped whole by a punch inside its first page (D-09)?
    pub fn head_punched(&self, vma: &Vma) -> bool {
        matches!(vma.backing, Backing::File { key, .. } if self.files[key].head_punched)
    }
    /// True if [start, end) has an address without a VMA.
    pub fn has_hole(&self, proc: ProcId, start: u64, end: u64) -> bool {
        self.hole(proc, start, end).is_some()
    }
    /// The first address of the range that is not mapped.
    pub fn hole(&self, proc: ProcId, start: u64, end: u64) -> Option<u64> {
        let mut at = start;
        for vma in self.vmas_in(proc, start, end) {
            if vma.start > at {
                return Some(at);
            }
            at = vma.end;
        }
        (at < end).then_some(at)
    }
    /// Splits the VMA that has `addr` strictly inside.
    pub fn split_at(&mut self, proc: ProcId, addr: u64) {
        let Some(vma) = self.vma_at(proc, addr).cloned() else { return };
        if vma.start == addr {
            return;
        }
        self.cut_or_moved |= vma.backing == Backing::Anon;
        let mut tail = vma.clone();
        tail.start = addr;
        if let Backing::File { key, off } = vma.backing {
            tail.backing = Backing::File { key, off: off + (addr - vma.start) };
        }
        let Some(p) = self.procs.get_mut(&proc) else { return };
        if let Some(head) = p.vmas.get_mut(&vma.start) {
            head.end = addr;
        }
        p.vmas.insert(addr, tail);
    }
    /// Splits at both ends, then changes every VMA in [start, end).
    pub fn change_vmas(
        &mut self,
        proc: ProcId,
        start: u64,
        end: u64,
        mut change: impl FnMut(&mut Vma),
    ) {
        // A change that changes nothing splits nothing (mlock_fixup, mprotect_fixup,
        // madvise_update_vma return early).
        for cut in [start, end] {
            let differs = self.vma_at(proc, cut).is_some_and(|v| {
                let mut changed = v.clone();
                change(&mut changed);
                changed != *v
            });
            if differs {
                self.split_at(proc, cut);
            }
        }
        let Some(p) = self.procs.get_mut(&proc) else { return };
        for (_, vma) in p.vmas.range_mut(start..end) {
            change(vma);
        }
    }
    /// Removes VMAs and entries of [start, end), splitting at both ends.
    pub fn unmap(&mut self, proc: ProcId, start: u64, end: u64) {
        self.split_at(proc, start);
        self.split_at(proc, end);
        self.zap(proc, start, end);
        self.drop_tables(proc, start, end);
        let Some(p) = self.procs.get_mut(&proc) else { return };
        let keys: Vec<u64> = p.vmas.range(start..end).map(|(k, _)| *k).collect();
        for key in keys {
            p.vmas.remove(&key);
        }
    }
    /// Removes the entries of [start, end) whole, markers included.
    pub fn zap(&mut self, proc: ProcId, start: u64, end: u64) {
        let Some(p) = self.procs.get_mut(&proc) else { return };
        let keys: Vec<u64> = p.entries.range(start..end).map(|(k, _)| *k).collect();
        for key in keys {
            p.entries.remove(&key);
        }
    }
    pub fn entry(&self, proc: ProcId, unit_addr: u64) -> Option<Entry> {
        self.procs.get(&proc)?.entries.get(&unit_addr).copied()
    }
    pub fn set_entry(&mut self, proc: ProcId, unit_addr: u64, entry: Option<Entry>) {
        let Some(p) = self.procs.get_mut(&proc) else { return };
        match entry {
            Some(e) => p.entries.insert(unit_addr, e),
            None => p.entries.remove(&unit_addr),
        };
    }
    /// The VMA whose attributes a range has throughout, if that is so. The kernel may keep it as
    /// one VMA or as several: neighbours need not merge, and a failed or undone change may leave
    /// a split. The second value says that the model itself holds it as one.
    pub fn span(&self, proc: ProcId, start: u64, end: u64) -> Option<(Vma, bool)> {
        let vmas = self.vmas_in(proc, start, end);
        let first = vmas.first().filter(|v| v.start <= start)?.clone();
        let mut at = first.end;
        for vma in &vmas[1..] {
            if vma.start != at || !continues(&first, vma) {
                return None;
            }
            at = vma.end;
        }
        (at >= end).then_some((first, vmas.len() == 1))
    }
    /// How many entries of all processes map a page.
    pub fn mapcount(&self, body: BodyId) -> u32 {
        if !self.forked && self.bodies[body].file.is_none() {
            // Without a fork nothing shares an anonymous page; callers hold a mapped one.
            return 1;
        }
        let maps = |e: &&Entry| e.slot == Slot::Page(body);
        self.procs.values().map(|p| p.entries.values().filter(maps).count() as u32).sum()
    }
    /// The cached page behind an address of a file VMA.
    pub fn cached(&self, vma: &Vma, addr: u64) -> Option<BodyId> {
        let (key, idx) = vma.file_unit(addr)?;
        self.files[key].cache.get(&idx).copied()
    }
    /// True while a descriptor or a mapping keeps the file.
    pub fn file_alive(&self, key: FileKey) -> bool {
        let maps = |v: &Vma| matches!(v.backing, Backing::File { key: k, .. } if k == key);
        !self.files[key].open_in.is_empty()
            || self.procs.values().any(|p| p.vmas.values().any(maps))
    }
    /// Page-table state of files with huge shmem pages is the kernel's choice from line to line: a
    /// partial change of a 2 MiB mapping drops it, a fault may bring all of it back.
    pub fn haze_huge_files(&mut self) {
        if !self.files.iter().any(|f| f.maybe_huge) {
            return;
        }
        for p in self.procs.values_mut() {
            for vma in p.vmas.values() {
                let Backing::File { key, .. } = vma.backing else { continue };
                if !self.files[key].maybe_huge {
                    continue;
                }
                for (_, entry) in p.entries.range_mut(vma.start..vma.end) {
                    if matches!(entry.slot, Slot::Page(b) if self.bodies[b].file.is_some()) {
                        entry.slot = Slot::Unsure;
                    }
                }
            }
        }
    }
    /// Forgets the pages and reservations of files nobody holds any more. Poisoned pages of dead
    /// files never go back to the pool; they stay counted through `hw`.
    pub fn collect(&mut self) {
        for key in 0..self.files.len() {
            if !self.file_alive(key) {
                self.files[key].cache.clear();
                self.files[key].resv.clear();
            }
        }
        let gone: Vec<FileId> = self
            .names
            .iter()
            .filter(|(_, key)| self.files[**key].open_in.is_empty())
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            self.names.remove(&id);
        }
    }
    /// Pages of one pool in use: cached, mapped or pinned.
    pub fn huge_used(&self, page: PageSize) -> i64 {
        let mut used: BTreeSet<BodyId> = BTreeSet::new();
        for (key, file) in self.files.iter().enumerate() {
            if file.page == page && self.file_alive(key) {
                used.extend(file.cache.values());
            }
        }
        for p in self.procs.values() {
            used.extend(p.entries.values().filter_map(|e| match e.slot {
                Slot::Page(b) if self.bodies[b].size == page => Some(b),
                _ => None,
            }));
        }
        let pinned = self.pins.values().flatten().filter(|b| self.bodies[**b].size == page);
        used.extend(pinned);
        used.len() as i64
    }
    /// Reserved pages of one pool: indices in the reserve maps of live files without a
    /// cached page, plus unconsumed pages of the private mappings that own a reservation.
    pub fn huge_reserved(&self, page: PageSize) -> i64 {
        let mut reserved = 0;
        for (key, file) in self.files.iter().enumerate() {
            if file.page == page && self.file_alive(key) {
                reserved += file.resv.iter().filter(|i| !file.cache.contains_key(i)).count() as i64;
            }
        }
        for vma in self.procs.values().flat_map(|p| p.vmas.values()) {
            let (Some(resv), true) = (vma.resv, vma.unit == page) else { continue };
            let Backing::File { off, .. } = vma.backing else { continue };
            let first = off / page.bytes();
            let last = first + (vma.end - vma.start) / page.bytes();
            let consumed = self.resvs[resv].consumed.range(first..last).count() as i64;
            reserved += (last - first) as i64 - consumed;
        }
        reserved
    }
    /// The pool as the rules demand it now.
    pub fn pool_now(&self, page: PageSize) -> Pool {
        let state = self.pool_state(page);
        Pool {
            total: state.total,
            free: state.total - state.used_before - self.huge_used(page),
            rsvd: state.rsvd_before + self.huge_reserved(page),
            surp: state.surp,
        }
    }
    pub fn pool_state(&self, page: PageSize) -> &PoolState {
        &self.pool[usize::from(page == PageSize::Huge1G)]
    }
    pub fn pool_state_mut(&mut self, page: PageSize) -> &mut PoolState {
        &mut self.pool[usize::from(page == PageSize::Huge1G)]
    }
    /// Takes over what was seen of a pool whose totals are a matter of observation.
    pub fn adopt_pool(&mut self, page: PageSize, seen: Pool) {
        let (used, reserved) = (self.huge_used(page), self.huge_reserved(page));
        let state = self.pool_state_mut(page);
        state.total = seen.total;
        state.used_before = seen.total - seen.free - used;
        state.rsvd_before = seen.rsvd - reserved;
        state.surp = seen.surp;
    }
    /// Free pages nobody reserved: what an unreserved allocation may take.
    pub fn pool_spare(&self, page: PageSize) -> i64 {
        let now = self.pool_now(page);
        now.free - now.rsvd + (self.pool_state(page).surp_max - now.surp).max(0)
    }
    /// A message of a change to the address space that this line must produce, if its uffd asked
    /// for that sort. False if nobody reads it, so the op waits.
    pub fn expect_event(&mut self, uffd: UffdId, event: u8, at: u64, to: u64, len: u64) -> bool {
        let Some(state) = self.uffds.get_mut(&uffd) else { return true };
        let read = state.policy != Policy::None;
        state.unread |= !read;
        let to = Place::of_addr(to).map_or(Spot::Outside((to % PAGE) as u16), Spot::In);
        if let Some(at) = Place::of_addr(at) {
            self.expected_events.push(ExpectedEvent { uffd, event, flags: 0, at, to, len });
        }
        read
    }
    /// Stops precise judgement; the first reason is kept.
    pub fn blur(&mut self, why: impl Into<String>) {
        self.blurred.get_or_insert_with(|| why.into());
    }
    /// Number of the 4 KiB page inside its unit.
    pub fn sub_page(vma: &Vma, addr: u64) -> u32 {
        ((addr % vma.unit_bytes()) / PAGE) as u32
    }
    pub fn place(addr: u64) -> Option<Place> {
        Place::of_addr(addr)
    }
}

/// True if `next` has the attributes of `first` and goes on where it would.
pub fn continues(first: &Vma, next: &Vma) -> bool {
    let backing = match (first.backing, next.backing) {
        (Backing::Anon, Backing::Anon) => true,
        (Backing::File { key: a, off: x }, Backing::File { key: b, off: y }) => {
            a == b && y == x + (next.start - first.start)
        }
        _ => false,
    };
    backing
        && first.prot == next.prot
        && first.share == next.share
        && first.unit == next.unit
        && first.flags == next.flags
        && first.uffd == next.uffd
        && first.policy == next.policy
}
