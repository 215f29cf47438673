//! One function a move: draws an op that makes sense in the sketch, `None` if none does.

use super::Builder;
use crate::words::*;
use case::*;
use rand::Rng;

impl Builder<'_> {
    pub(super) fn touch(&mut self) -> Option<Op> {
        let map = self.map()?;
        let (mut at, mut len) = self.range(&map, 15);
        if chance(self.rng, 55) {
            len = Bytes(one(self.rng, &[K4, K4, 2 * K4]));
        }
        if chance(self.rng, 6) {
            // One word only, at the end of a page.
            at = Place { region: at.region, off: at.off / K4 * K4 + 4088 };
            len = Bytes(8);
        }
        if !case::check::holds_tag_word(at, len.0) {
            len = Bytes(K4);
        }
        let write = map.writable && chance(self.rng, 52);
        // Huge pages not yet there cost the pool.
        if write && map.is_hugetlb() && self.careful() && chance(self.rng, 70) {
            return Some(Op::Read { at, len: Bytes(len.0.min(M2)) });
        }
        Some(if write { Op::Write { at, len } } else { Op::Read { at, len } })
    }

    pub(super) fn discard(&mut self) -> Option<Op> {
        let map = self.map()?;
        let (at, len) = self.range(&map, 65);
        let advice = weighted(
            self.rng,
            &[
                (10, Advice::DontNeed),
                (2, Advice::DontNeedLocked),
                (3, Advice::Remove),
                (2, Advice::Free),
                (1, Advice::PageOut),
                (1, Advice::Cold),
            ],
        );
        match map.file {
            Some(file) if chance(self.rng, 40) => {
                Some(Op::Punch { file, off: Bytes(at.off - map.at.off), len })
            }
            _ => Some(Op::Madvise { at, len, advice }),
        }
    }

    pub(super) fn thp(&mut self) -> Option<Op> {
        let map = self.map()?;
        let (at, len) = self.range(&map, 70);
        let advice = weighted(
            self.rng,
            &[
                (12, Advice::Collapse),
                (4, Advice::HugePage),
                (2, Advice::NoHugePage),
                (3, Advice::Split),
                (2, Advice::Free),
            ],
        );
        // SPLIT is known to few kernels; elsewhere it only shows EINVAL.
        if advice == Advice::Split && !self.profile.madv_split && chance(self.rng, 80) {
            return Some(Op::Madvise { at, len, advice: Advice::Collapse });
        }
        Some(Op::Madvise { at, len, advice })
    }

    pub(super) fn file_op(&mut self) -> Option<Op> {
        let files: Vec<_> = self.sketch.files.iter().filter(|f| f.open).cloned().collect();
        if files.is_empty() {
            return None;
        }
        let file = files[self.rng.random_range(0..files.len())].clone();
        let h = file.page.bytes().max(M2);
        let edge = if file.page == PageSize::Base && chance(self.rng, 50) { K4 } else { h };
        let room = file.size.clamp(h, 4 * h);
        let aligned = chance(self.rng, 60);
        let off = if aligned {
            self.rng.random_range(0..room / h) * h
        } else {
            offset(self.rng, room, edge)
        };
        let len = if aligned { h } else { length(self.rng, room, h.min(M2)) };
        let (id, off, len) = (file.id, Bytes(off), Bytes(len));
        let short = Bytes(len.0.min(2 * M2));
        let keep = if chance(self.rng, 30) { FallocFlags::KEEP_SIZE } else { FallocFlags::NONE };
        Some(match self.rng.random_range(0..100) {
            0..20 => Op::Punch { file: id, off, len },
            20..38 if !self.careful() => {
                Op::Fallocate { file: id, off, len: Bytes(len.0.min(h)), flags: keep }
            }
            38..58 => {
                let pages = self.rng.random_range(0..=room / h);
                Op::Ftruncate { file: id, len: Bytes(pages * h) }
            }
            58..76 => Op::Pread { file: id, off, len: short },
            76..86 => Op::Pwrite { file: id, off, len: Bytes(short.0.min(8 * K4)) },
            86..89 => Op::Seal { file: id, seals: one(self.rng, Seals::TABLE).0 },
            89..91 => Op::CloseFile { file: id },
            _ => Op::Fstat { file: id },
        })
    }

    pub(super) fn another_map(&mut self) -> Option<Op> {
        let at = Place::new(self.rng.random_range(0..5), 0);
        let taken = self.sketch.maps.iter().any(|m| m.at.region == at.region);
        let mut flags =
            if taken && chance(self.rng, 85) { MmapFlags::FIXED } else { MmapFlags::NONE };
        if chance(self.rng, 12) {
            flags = flags | one(self.rng, &[MmapFlags::POPULATE, MmapFlags::NORESERVE]);
        }
        let share = if chance(self.rng, 60) { Share::Shared } else { Share::Private };
        let prot = if chance(self.rng, 85) { Prot::RW } else { Prot::READ };
        let file = self.sketch.files.iter().find(|f| f.open && chance(self.rng, 75)).cloned();
        let (from, page, len) = match file {
            Some(f) => {
                let h = f.page.bytes().max(M2);
                let pages = (f.size / h).clamp(1, 4);
                let skip = self.rng.random_range(0..pages);
                let from = FilePart { file: f.id, off: skip * h };
                (Some(from), PageSize::Base, (pages - skip) * h)
            }
            None => {
                let huge = self.profile.huge_2m && !self.careful() && chance(self.rng, 50);
                let page = if huge { PageSize::Huge2M } else { PageSize::Base };
                (None, page, self.rng.random_range(1..=3) * M2)
            }
        };
        Some(Op::Mmap { at, len: Bytes(len), prot, share, from, page, flags })
    }

    pub(super) fn unmap(&mut self) -> Option<Op> {
        let map = self.map()?;
        let (at, len) = self.range(&map, 70);
        Some(Op::Munmap { at, len })
    }

    pub(super) fn remap(&mut self) -> Option<Op> {
        let map = self.map()?;
        let whole = chance(self.rng, 55);
        let (at, len) = if whole { (map.at, Bytes(map.len)) } else { self.range(&map, 75) };
        let new =
            if chance(self.rng, 70) { len } else { Bytes(length(self.rng, map.len, map.edge())) };
        let to = Place::new(self.rng.random_range(0..6), 0);
        let move_flags = MremapFlags::MAYMOVE | MremapFlags::FIXED;
        let (to, flags) = match self.rng.random_range(0..20) {
            0..14 => (Some(to), move_flags),
            14 => (Some(to), move_flags | MremapFlags::DONTUNMAP),
            15 => (Some(to), MremapFlags::FIXED),
            16 => (None, MremapFlags::MAYMOVE),
            _ => (None, MremapFlags::NONE),
        };
        Some(Op::Mremap { at, len, new, to, flags })
    }

    pub(super) fn protect(&mut self) -> Option<Op> {
        let map = self.map()?;
        let (at, len) = self.range(&map, 70);
        let prot = one(self.rng, &[Prot::READ, Prot::RW, Prot::RW, Prot::NONE]);
        Some(Op::Mprotect { at, len, prot })
    }

    pub(super) fn lock(&mut self) -> Option<Op> {
        let map = self.map()?;
        let (at, len) = self.range(&map, 50);
        let flags = if chance(self.rng, 30) { MlockFlags::ONFAULT } else { MlockFlags::NONE };
        Some(if chance(self.rng, 65) {
            Op::Mlock { at, len, flags }
        } else {
            Op::Munlock { at, len }
        })
    }

    pub(super) fn populate(&mut self) -> Option<Op> {
        let map = self.map()?;
        let (at, len) = self.range(&map, 50);
        let advice = one(self.rng, &[Advice::PopulateRead, Advice::PopulateWrite]);
        Some(Op::Madvise { at, len, advice })
    }

    pub(super) fn advise(&mut self) -> Option<Op> {
        let map = self.map()?;
        let (at, len) = self.range(&map, 75);
        let fork = [Advice::DontFork, Advice::DoFork, Advice::WipeOnFork, Advice::KeepOnFork];
        let advice =
            if chance(self.rng, 50) { one(self.rng, &fork) } else { one(self.rng, Advice::ALL) };
        let rare = matches!(advice, Advice::HwPoison | Advice::SoftOffline);
        Some(Op::Madvise { at, len, advice: if rare { Advice::WillNeed } else { advice } })
    }

    pub(super) fn fork(&mut self) -> Option<Op> {
        let next = self.sketch.forks + 1;
        (next < 4).then_some(Op::Fork { child: ProcId(next) })
    }

    pub(super) fn arm(&mut self) -> Option<Op> {
        let map = self.map()?;
        let open: Vec<UffdId> = self.sketch.uffds.iter().filter(|u| u.open).map(|u| u.id).collect();
        if open.is_empty() {
            self.make_uffd();
            return None;
        }
        let uffd = one(self.rng, &open);
        let borders = if map.is_hugetlb() { 92 } else { 50 };
        let (mut at, mut len) = self.range(&map, borders);
        if chance(self.rng, 60) {
            (at, len) = (map.at, Bytes(map.len));
        }
        if chance(self.rng, 10) {
            return Some(Op::Unregister { uffd, at, len });
        }
        let file = map.file.is_some() || map.share == Share::Shared;
        let modes = weighted(
            self.rng,
            &[
                (30, UffdModes::MISSING),
                (22, UffdModes::WP),
                (if file { 30 } else { 2 }, UffdModes::MINOR),
                (10, UffdModes::MISSING | UffdModes::WP),
                (if file { 8 } else { 1 }, UffdModes::MINOR | UffdModes::WP),
                (if file { 5 } else { 1 }, UffdModes::MINOR | UffdModes::MISSING),
            ],
        );
        Some(Op::Register { uffd, at, len, modes })
    }

    /// A mapping that is armed, if there is one, and its context.
    fn armed(&mut self) -> Option<(crate::sketch::Mapping, UffdId, UffdModes)> {
        let armed: Vec<_> = self
            .sketch
            .maps
            .iter()
            .filter_map(|m| m.armed.map(|(u, modes)| (m.clone(), u, modes)))
            .collect();
        if armed.is_empty() {
            return None;
        }
        Some(armed[self.rng.random_range(0..armed.len())].clone())
    }

    pub(super) fn fill(&mut self) -> Option<Op> {
        let (map, uffd, modes) = self.armed()?;
        let borders = if map.is_hugetlb() { 75 } else { 25 };
        let (at, len) = self.range(&map, borders);
        let flags = match self.rng.random_range(0..10) {
            0 => FillFlags::DONTWAKE,
            1 if modes.has(UffdModes::WP) => FillFlags::WP,
            _ => FillFlags::NONE,
        };
        let poison = self.profile.has_uffd(UffdFeatures::POISON);
        let minor = modes.has(UffdModes::MINOR);
        let small = Bytes(len.0.min(2 * M2));
        Some(match self.rng.random_range(0..100) {
            0..45 if minor => Op::Continue { uffd, at, len, flags },
            0..8 => Op::Continue { uffd, at, len, flags },
            8..70 => Op::Copy { uffd, at, len: small, flags },
            70..90 if !map.is_hugetlb() => Op::Zeropage { uffd, at, len, flags },
            90..100 if poison => Op::UffdPoison { uffd, at, len, flags },
            70..73 => Op::Zeropage { uffd, at, len, flags },
            _ => Op::Continue { uffd, at, len, flags },
        })
    }

    /// What makes pieces of huge pages, joins them, or leaves empty tables.
    pub(super) fn piece(&mut self) -> Option<Op> {
        let huge: Vec<_> = self.sketch.maps.iter().filter(|m| m.is_hugetlb()).cloned().collect();
        if huge.is_empty() {
            return None;
        }
        let (armed, plain) = (self.armed(), huge[self.rng.random_range(0..huge.len())].clone());
        let (inside, whole) = (self.range(&plain, 15), self.range(&plain, 95));
        let advise = |(at, len), advice| Some(Op::Madvise { at, len, advice });
        match (self.rng.random_range(0..20), armed) {
            (0..12, Some((map, uffd, _))) if map.is_hugetlb() => {
                let (at, len) = self.range(&map, 12);
                Some(Op::Continue { uffd, at, len, flags: FillFlags::NONE })
            }
            (12..15, _) => advise(whole, Advice::Collapse),
            (15..17, _) => advise(inside, Advice::Collapse),
            (17, _) => advise(whole, Advice::Split),
            _ => advise(whole, Advice::DontNeed),
        }
    }

    pub(super) fn write_protect(&mut self) -> Option<Op> {
        let (map, uffd, _) = self.armed()?;
        let borders = if map.is_hugetlb() { 85 } else { 40 };
        let (at, len) = self.range(&map, borders);
        let flags = match self.rng.random_range(0..20) {
            0..12 => WpFlags::WP,
            12..19 => WpFlags::NONE,
            _ => WpFlags::DONTWAKE,
        };
        Some(Op::WriteProtect { uffd, at, len, flags })
    }

    pub(super) fn uffd_misc(&mut self) -> Option<Op> {
        let (map, uffd, _) = self.armed()?;
        let (at, len) = self.range(&map, 80);
        Some(match self.rng.random_range(0..10) {
            0..4 => Op::Unregister { uffd, at, len },
            4..6 => Op::Wake { uffd, at, len },
            6 => Op::CloseUffd { uffd },
            _ => {
                let modes = one(self.rng, UffdModes::TABLE).0;
                Op::Register { uffd, at, len, modes }
            }
        })
    }

    pub(super) fn migrate(&mut self) -> Option<Op> {
        let map = self.map()?;
        let (at, len) = self.range(&map, 60);
        let nodes = one(self.rng, &[Nodes::N0, Nodes::N1, Nodes::N1, Nodes::N0 | Nodes::N1]);
        let mode = one(self.rng, NumaMode::ALL);
        let bare = matches!(mode, NumaMode::Default | NumaMode::Local);
        let nodes_of_mode = if bare { Nodes::NONE } else { nodes };
        let node = one(self.rng, &[Some(0), Some(1), Some(1), None]);
        Some(match self.rng.random_range(0..20) {
            0..11 => {
                let step = if map.edge() > M2 || (map.is_hugetlb() && chance(self.rng, 80)) {
                    PageSize::Huge2M
                } else {
                    one(self.rng, &[PageSize::Base, PageSize::Huge2M])
                };
                let len = Bytes(len.0.min(4 * M2));
                let flags = if chance(self.rng, 20) { MoveFlags::ALL } else { MoveFlags::MOVE };
                Op::MovePages { at, len, step, node, flags }
            }
            11..16 => {
                let flags = one(
                    self.rng,
                    &[MoveFlags::NONE, MoveFlags::MOVE, MoveFlags::MOVE | MoveFlags::STRICT],
                );
                Op::Mbind { at, len, mode, nodes: nodes_of_mode, flags }
            }
            16..18 => Op::MigratePages { from: Nodes::N0, to: nodes },
            _ => Op::SetMempolicy { mode, nodes: nodes_of_mode },
        })
    }

    pub(super) fn poison(&mut self) -> Option<Op> {
        let map = self.map()?;
        let (at, len) = self.range(&map, 30);
        if self.sketch.poisons >= 2 {
            return Some(Op::Unpoison { at });
        }
        // One page is enough to hurt.
        let len = Bytes(if map.is_hugetlb() { len.0.min(M2) } else { K4 });
        Some(match self.rng.random_range(0..10) {
            0..6 => Op::Madvise { at, len, advice: Advice::HwPoison },
            6..9 => Op::Madvise { at, len, advice: Advice::SoftOffline },
            _ => Op::Unpoison { at },
        })
    }

    pub(super) fn gup(&mut self) -> Option<Op> {
        let map = self.map()?;
        let (at, len) = self.range(&map, 40);
        let len = Bytes(len.0.min(2 * M2));
        let target = self.proc();
        let dir = one(self.rng, &[Direction::Out, Direction::In]);
        let write = if chance(self.rng, 50) { PinFlags::WRITE } else { PinFlags::NONE };
        Some(match self.rng.random_range(0..20) {
            0..5 => Op::VmRead { target, at, len },
            5..8 => Op::Vmsplice { at, len: Bytes(len.0.min(16 * K4)) },
            8..11 if self.profile.ram_disk => Op::DirectIo { at, len, dir },
            11..16 if self.sketch.pins_made < 4 => {
                Op::Pin { pin: PinId(self.sketch.pins_made), at, len, flags: write }
            }
            16..18 if !self.sketch.pins.is_empty() => Op::Unpin { pin: self.sketch.pins[0] },
            18..20 if self.profile.gup_test => {
                Op::GupTest { at, len, flags: write | PinFlags::LONGTERM }
            }
            _ => Op::VmRead { target, at, len: Bytes(len.0.min(M2)) },
        })
    }

    pub(super) fn knob(&mut self) -> Option<Op> {
        let (knob, value) = one(
            self.rng,
            &[
                (Knob::ThpEnabled, 0),
                (Knob::ThpEnabled, 1),
                (Knob::ThpEnabled, 2),
                (Knob::ThpShmem, 0),
                (Knob::ThpShmem, 3),
                (Knob::ThpShmem, 4),
                (Knob::ThpZeroPage, 0),
                (Knob::HugetlbNr2M, 60),
                (Knob::HugetlbNr2M, 66),
                (Knob::HugetlbOvercommit2M, 8),
                (Knob::HugetlbOvercommit2M, 2),
                (Knob::NumaBalancing, 0),
                (Knob::Khugepaged, 1),
            ],
        );
        Some(Op::SetKnob { knob, value })
    }

    pub(super) fn look(&mut self) -> Option<Op> {
        let map = self.map()?;
        let len = Bytes(map.len.min(16 << 20));
        let mut what = What::PAGEMAP;
        for (view, percent) in [
            (What::SMAPS, 40),
            (What::KPAGE, 25),
            (What::MINCORE, 25),
            (What::NUMA_MAPS, 8),
            (What::STATUS, 15),
            (What::ROLLUP, 10),
            (What::COUNTERS, 25),
        ] {
            if chance(self.rng, percent) {
                what = what | view;
            }
        }
        Some(Op::Observe { at: map.at, len, what })
    }
}
