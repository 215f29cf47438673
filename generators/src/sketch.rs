//! A rough memory of what a program has made so far, so that most new ops make sense. It assumes
//! every op succeeds and follows no rules: what really holds is the oracle's business.

use case::check::refs;
use case::*;

#[derive(Clone, Debug)]
pub struct File {
    pub id: FileId,
    pub page: PageSize,
    pub size: u64,
    pub open: bool,
}

/// What lies in a region. One mapping a region is remembered.
#[derive(Clone, Debug)]
pub struct Mapping {
    pub at: Place,
    pub len: u64,
    pub page: PageSize,
    pub share: Share,
    pub file: Option<FileId>,
    pub writable: bool,
    pub armed: Option<(UffdId, UffdModes)>,
    /// Ranges (offset, end) that have been touched or filled and not discarded since.
    pub filled: Vec<(u64, u64)>,
    /// Some of it was write-protected through its userfaultfd.
    pub protected: bool,
}

#[derive(Clone, Debug)]
pub struct Context {
    pub id: UffdId,
    pub policy: Policy,
    pub features: UffdFeatures,
    pub open: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Sketch {
    pub files: Vec<File>,
    pub maps: Vec<Mapping>,
    pub uffds: Vec<Context>,
    /// Children alive, and how many ids were ever used.
    pub children: Vec<ProcId>,
    pub forks: u8,
    pub pins: Vec<PinId>,
    pub pins_made: u8,
    /// Huge pages of 2 MiB asked for so far: reservations, populations, copies.
    pub huge_pages: u64,
    pub poisons: u32,
    /// Ops that may wait for ever.
    pub hazards: u32,
    /// Faults on base pages that a handler has to answer.
    pub answers: u64,
    /// Ops that may fill a 1 GiB page.
    pub giant_touches: u32,
}

impl Mapping {
    /// The page size whose edges matter: huge pages for THP too.
    pub fn edge(&self) -> u64 {
        match self.page {
            PageSize::Huge1G => 1 << 30,
            PageSize::Base | PageSize::Huge2M => 2 << 20,
        }
    }
    pub fn is_hugetlb(&self) -> bool {
        self.page.is_huge()
    }
    /// The whole range was filled and not discarded since.
    fn holds(&self, at: Place, len: u64) -> bool {
        let end = at.off + len;
        let mut from = at.off;
        // Ranges are few: walk until nothing extends the covered part any more.
        while from < end {
            let next = self.filled.iter().filter(|r| r.0 <= from && r.1 > from).map(|r| r.1).max();
            match next {
                Some(to) => from = to,
                None => return false,
            }
        }
        true
    }
}

const EVENTS: u32 = UffdFeatures::EVENT_FORK.0
    | UffdFeatures::EVENT_REMAP.0
    | UffdFeatures::EVENT_REMOVE.0
    | UffdFeatures::EVENT_UNMAP.0;

impl Sketch {
    /// What the sketch is after a whole program.
    pub fn of(program: &Program) -> Self {
        let mut sketch = Sketch::default();
        for (_, proc, op) in program.each_line() {
            sketch.apply(proc, op);
        }
        sketch
    }

    pub fn file(&self, id: FileId) -> Option<&File> {
        self.files.iter().find(|f| f.id == id)
    }

    fn context(&self, id: UffdId) -> Option<&Context> {
        self.uffds.iter().find(|u| u.id == id && u.open)
    }

    fn map_at(&mut self, at: Place) -> Option<&mut Mapping> {
        self.maps.iter_mut().find(|m| m.at.region == at.region)
    }

    /// Whether the access may wait for ever: nobody answers, and it was not filled before.
    fn waits_for_fill(&self, op: &Op) -> bool {
        let stores = is_store(op);
        refs(op).at.iter().any(|(at, len)| {
            let map = self.maps.iter().find(|m| m.at.region == at.region);
            let Some((map, (uffd, modes))) = map.and_then(|m| Some((m, m.armed?))) else {
                return false;
            };
            let dumb = self
                .context(uffd)
                .is_some_and(|u| u.policy == Policy::None && !u.features.has(UffdFeatures::SIGBUS));
            let lacks = modes.any(UffdModes::MISSING | UffdModes::MINOR) && !map.holds(*at, *len);
            dumb && (lacks || (map.protected && stores))
        })
    }

    /// Base pages of the access that some handler may have to fill.
    fn asks(&self, op: &Op) -> u64 {
        let pages = |(at, len): &(Place, u64)| {
            let armed = self
                .maps
                .iter()
                .any(|m| m.at.region == at.region && m.armed.is_some() && !m.is_hugetlb());
            if armed { len.div_ceil(limits::PAGE) } else { 0 }
        };
        refs(op).at.iter().map(pages).sum()
    }

    fn fills_giant(&self, op: &Op) -> bool {
        let giant =
            |region| self.maps.iter().any(|m| m.at.region == region && m.page == PageSize::Huge1G);
        match op {
            Op::Fallocate { file, .. } => {
                self.file(*file).is_some_and(|f| f.page == PageSize::Huge1G)
            }
            Op::Mmap { from, page, flags, .. } => {
                let file = from.and_then(|f| self.file(f.file));
                let page = file.map_or(*page, |f| f.page);
                let fills = MmapFlags::POPULATE | MmapFlags::LOCKED;
                page == PageSize::Huge1G && flags.any(fills)
            }
            Op::Copy { at, .. } => giant(at.region),
            _ if is_access(op) => refs(op).at.iter().any(|(at, _)| giant(at.region)),
            _ => false,
        }
    }

    /// Some context sends events that nobody reads.
    pub fn blocks_events(&self) -> bool {
        self.uffds.iter().any(|u| u.open && u.policy == Policy::None && u.features.0 & EVENTS != 0)
    }

    /// Remembers an op as if it had succeeded.
    pub fn apply(&mut self, proc: ProcId, op: &Op) {
        if is_access(op) && self.waits_for_fill(op) {
            self.hazards += 1;
        }
        self.answers += if is_access(op) { self.asks(op) } else { 0 };
        self.giant_touches += u32::from(self.fills_giant(op));
        self.remember_fill(op);
        if sends_events(op) && self.blocks_events() {
            self.hazards += 1;
        }
        match op {
            Op::Memfd { .. }
            | Op::Hugetlbfs { .. }
            | Op::Ftruncate { .. }
            | Op::Fallocate { .. }
            | Op::CloseFile { .. } => self.apply_file(op),
            Op::Mmap { .. } | Op::Munmap { .. } | Op::Mremap { .. } | Op::Mprotect { .. } => {
                self.apply_map(op);
            }
            Op::Uffd { .. } | Op::Register { .. } | Op::Unregister { .. } => self.apply_uffd(op),
            Op::CloseUffd { uffd } => {
                self.uffds.iter_mut().filter(|u| u.id == *uffd).for_each(|u| u.open = false);
            }
            Op::Madvise { at, len, advice: Advice::HwPoison | Advice::SoftOffline } => {
                // The call walks page by page: a long range poisons many.
                let huge = self.map_at(*at).is_some_and(|m| m.is_hugetlb());
                let step = if huge { 2 << 20 } else { limits::PAGE };
                self.poisons += len.0.div_ceil(step).max(1) as u32;
            }
            Op::Write { at, len } => {
                let copies = u64::from(proc.0 != 0);
                if let Some(m) = self.map_at(*at) {
                    let pages = if m.is_hugetlb() { len.0.div_ceil(m.edge()) } else { 0 };
                    self.huge_pages += pages * copies;
                }
            }
            Op::Fork { child } => {
                self.children.push(*child);
                self.forks = self.forks.max(child.0);
            }
            Op::Exit {} => self.children.retain(|p| *p != proc),
            Op::Pin { pin, .. } => {
                self.pins.push(*pin);
                self.pins_made = self.pins_made.max(pin.0 + 1);
            }
            Op::Unpin { pin } => self.pins.retain(|p| p != pin),
            _ => {}
        }
    }

    fn remember_fill(&mut self, op: &Op) {
        let fills = matches!(op, Op::Continue { .. } | Op::Copy { .. } | Op::Zeropage { .. });
        if let Op::Punch { file, .. } | Op::Ftruncate { file, .. } = op {
            let of_file = self.maps.iter_mut().filter(|m| m.file == Some(*file));
            of_file.for_each(|m| m.filled.clear());
        }
        let Some((at, len)) = refs(op).at.first().copied() else { return };
        let Some(map) = self.map_at(at) else { return };
        if fills || is_access(op) {
            // Huge pages are touched whole and filled only whole.
            let edge = if map.is_hugetlb() { map.edge() } else { 4096 };
            let (start, end) = (at.off, at.off + len);
            if !fills {
                map.filled.push((start / edge * edge, end.next_multiple_of(edge)));
            } else if start % edge == 0 && end % edge == 0 {
                map.filled.push((start, end));
            }
        } else if let Op::WriteProtect { flags, .. } = op {
            map.protected = flags.has(WpFlags::WP);
        } else if matches!(op, Op::Madvise { .. } | Op::Mremap { .. }) {
            map.filled.clear();
        }
    }

    fn apply_file(&mut self, op: &Op) {
        match op {
            Op::Memfd { file, page, .. } | Op::Hugetlbfs { file, page } => {
                self.files.push(File { id: *file, page: *page, size: 0, open: true });
            }
            Op::Ftruncate { file, len } => {
                self.files.iter_mut().filter(|f| f.id == *file).for_each(|f| f.size = len.0);
            }
            Op::Fallocate { file, off, len, .. } => {
                if let Some(f) = self.files.iter_mut().find(|f| f.id == *file) {
                    f.size = f.size.max(off.0 + len.0);
                    if f.page.is_huge() {
                        self.huge_pages += len.0.div_ceil(f.page.bytes());
                    }
                }
            }
            Op::CloseFile { file } => {
                self.files.iter_mut().filter(|f| f.id == *file).for_each(|f| f.open = false);
            }
            _ => {}
        }
    }

    fn apply_map(&mut self, op: &Op) {
        match op {
            Op::Mmap { at, len, prot, share, from, page, flags } => {
                if self.map_at(*at).is_some() && !flags.has(MmapFlags::FIXED) {
                    return;
                }
                self.maps.retain(|m| m.at.region != at.region);
                let file = from.and_then(|f| self.file(f.file)).map(|f| (f.id, f.page));
                let page = file.map_or(*page, |f| f.1);
                if page.is_huge() {
                    self.huge_pages += len.0.div_ceil(page.bytes()).min(4096);
                }
                self.maps.push(Mapping {
                    at: *at,
                    len: len.0,
                    page,
                    share: *share,
                    file: file.map(|f| f.0),
                    writable: prot.has(Prot::WRITE),
                    armed: None,
                    filled: Vec::new(),
                    protected: false,
                });
            }
            Op::Munmap { at, len } => {
                self.maps
                    .retain(|m| m.at.region != at.region || m.at.off < at.off || m.len > len.0);
            }
            Op::Mremap { at, new, to, flags, .. } => {
                let target = to.filter(|_| flags.has(MremapFlags::FIXED));
                if let Some(to) = target.filter(|to| to.region != at.region) {
                    self.maps.retain(|m| m.at.region != to.region);
                }
                if let Some(m) = self.map_at(*at) {
                    m.len = m.len.min(new.0.max(4096));
                    m.at = target.unwrap_or(m.at);
                    m.armed = m.armed.filter(|_| target.is_none());
                }
            }
            Op::Mprotect { at, prot, .. } => {
                if let Some(m) = self.map_at(*at) {
                    m.writable = prot.has(Prot::WRITE);
                }
            }
            _ => {}
        }
    }

    fn apply_uffd(&mut self, op: &Op) {
        match op {
            Op::Uffd { uffd, features, handler } => self.uffds.push(Context {
                id: *uffd,
                policy: *handler,
                features: *features,
                open: true,
            }),
            Op::Register { uffd, at, modes, .. } => {
                if let Some(m) = self.map_at(*at) {
                    m.armed = Some((*uffd, *modes));
                }
            }
            Op::Unregister { at, .. } => {
                if let Some(m) = self.map_at(*at) {
                    m.armed = None;
                }
            }
            _ => {}
        }
    }
}

/// Loads or stores memory in a way that a userfaultfd can hold up.
fn is_access(op: &Op) -> bool {
    matches!(
        op,
        Op::Read { .. }
            | Op::Write { .. }
            | Op::Vmsplice { .. }
            | Op::VmRead { .. }
            | Op::DirectIo { .. }
            | Op::Pin { .. }
            | Op::GupTest { .. }
            | Op::Mlock { .. }
            | Op::Madvise {
                advice: Advice::PopulateRead
                    | Advice::PopulateWrite
                    | Advice::HwPoison
                    | Advice::SoftOffline,
                ..
            }
    )
}

/// An access that stores.
fn is_store(op: &Op) -> bool {
    !matches!(
        op,
        Op::Read { .. }
            | Op::Vmsplice { .. }
            | Op::VmRead { .. }
            | Op::DirectIo { dir: Direction::Out, .. }
            | Op::Madvise { advice: Advice::PopulateRead, .. }
    )
}

/// Waits until a userfaultfd's event is read.
fn sends_events(op: &Op) -> bool {
    matches!(
        op,
        Op::Fork { .. }
            | Op::Mremap { .. }
            | Op::Munmap { .. }
            | Op::Madvise {
                advice: Advice::DontNeed | Advice::DontNeedLocked | Advice::Remove | Advice::Free,
                ..
            }
    )
}
