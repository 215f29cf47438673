//! How programs begin: the files, mappings and userfaultfds a family wants. Nothing here is odd.

use super::{Builder, Family};
use crate::words::*;
use case::*;
use rand::Rng;

impl Builder<'_> {
    pub(super) fn scene(&mut self, family: Family) {
        if chance(self.rng, 3) {
            self.set_knob();
        }
        match family {
            Family::HugetlbShared => {
                let page = self.huge();
                self.file_scene(page, Share::Shared);
            }
            Family::HugetlbPrivate => self.private_scene(),
            Family::Thp => self.thp_scene(),
            Family::Shmem => self.shmem_scene(),
            Family::Uffd => {
                self.backing(&[(45, 0), (15, 1), (20, 3), (20, 2)]);
                self.uffd_scene();
            }
            Family::Fork => {
                self.backing(&[(25, 0), (40, 1), (25, 2), (10, 3)]);
                self.prefill();
                if chance(self.rng, 60) {
                    self.p0(Op::Fork { child: ProcId(1) });
                }
            }
            Family::Pieces => self.pieces_scene(),
            Family::Poison | Family::Migration | Family::Gup => {
                self.backing(&[(30, 0), (25, 1), (30, 2), (15, 3)]);
                self.prefill();
            }
        }
    }

    /// 1 GiB pages are rare, one a program, and never filled.
    fn huge(&mut self) -> PageSize {
        let giant = self.profile.huge_1g && self.rng.random_range(0..200) == 0;
        if giant { PageSize::Huge1G } else { PageSize::Huge2M }
    }

    fn backing(&mut self, weights: &[(u32, u8)]) {
        let choice = weighted(self.rng, weights);
        match choice {
            0 if self.profile.huge_2m => self.file_scene(PageSize::Huge2M, Share::Shared),
            1 if self.profile.huge_2m => self.private_scene(),
            2 => self.thp_scene(),
            _ => self.shmem_scene(),
        }
    }

    /// A file of 2 to 4 huge pages, its primary mapping and mostly an alias.
    fn file_scene(&mut self, page: PageSize, share: Share) {
        let file = FileId(0);
        let h = page.bytes().max(M2);
        let pages = if page == PageSize::Huge1G { 1 } else { self.rng.random_range(2..=4u64) };
        let len = Bytes(pages * h);
        if page.is_huge() && chance(self.rng, 15) {
            self.p0(Op::Hugetlbfs { file, page });
        } else {
            let sealing = chance(self.rng, 10);
            let flags = if sealing { MemfdFlags::SEALING } else { MemfdFlags::NONE };
            self.p0(Op::Memfd { file, page, flags });
        }
        self.p0(Op::Ftruncate { file, len });
        let at = Place::new(0, 0);
        let from = Some(FilePart { file, off: 0 });
        let flags = self.map_flags();
        let giant = page == PageSize::Huge1G;
        let flags = if giant { MmapFlags::NONE } else { flags };
        let prot = Prot::RW;
        self.p0(Op::Mmap { at, len, prot, share, from, page: PageSize::Base, flags });
        if chance(self.rng, 60) {
            let skip = if pages > 1 && chance(self.rng, 20) { h } else { 0 };
            let from = Some(FilePart { file, off: skip });
            let len = Bytes(len.0 - skip);
            let share = Share::Shared;
            let at = Place::new(1, 0);
            let flags = MmapFlags::NONE;
            self.p0(Op::Mmap { at, len, prot, share, from, page: PageSize::Base, flags });
        }
        if chance(self.rng, 50) {
            self.prefill();
        }
    }

    /// A guest's memory and the copier's mapping of it, some of it there, and the leave to map it
    /// in pieces.
    fn pieces_scene(&mut self) {
        self.file_scene(PageSize::Huge2M, Share::Shared);
        let Some(guest) = self.sketch.maps.first().cloned() else { return };
        let (at, len) = (guest.at, Bytes(guest.len));
        for page in 0..guest.len / M2 {
            if chance(self.rng, 70) {
                let len = Bytes(one(self.rng, &[K4, M2, M2]));
                let region = one(self.rng, &[0, 1, 1, 1]);
                self.p0(Op::Write { at: Place::new(region, page * M2), len });
            }
        }
        if chance(self.rng, 60) {
            self.p0(Op::Madvise { at, len, advice: Advice::DontNeed });
        }
        if chance(self.rng, 90) {
            let len = if chance(self.rng, 85) { len } else { Bytes(M2) };
            self.p0(Op::Madvise { at, len, advice: Advice::Split });
        }
        self.make_uffd();
        let (uffd, modes) = (UffdId(0), [UffdModes::MINOR, UffdModes::MINOR, UffdModes::WP]);
        let mut modes = one(self.rng, &modes);
        for (more, percent) in [(UffdModes::WP, 25), (UffdModes::MISSING, 25)] {
            if chance(self.rng, percent) {
                modes = modes | more;
            }
        }
        self.p0(Op::Register { uffd, at, len, modes });
    }

    fn map_flags(&mut self) -> MmapFlags {
        match self.rng.random_range(0..12) {
            0 => MmapFlags::NORESERVE,
            1 => MmapFlags::POPULATE,
            2 => MmapFlags::LOCKED,
            _ => MmapFlags::NONE,
        }
    }

    fn private_scene(&mut self) {
        if chance(self.rng, 45) {
            return self.file_scene(PageSize::Huge2M, Share::Private);
        }
        // Sometimes more than the pool has, on purpose.
        let pages = match self.rng.random_range(0..40) {
            0 => 70,
            1 => 64,
            _ => self.rng.random_range(1..=4),
        };
        let share = one(self.rng, &[Share::Private, Share::Private, Share::Private, Share::Shared]);
        let flags = if pages > 4 { MmapFlags::NONE } else { self.map_flags() };
        self.p0(Op::Mmap {
            at: Place::new(0, 0),
            len: Bytes(pages * M2),
            prot: Prot::RW,
            share,
            from: None,
            page: PageSize::Huge2M,
            flags,
        });
        if chance(self.rng, 40) {
            self.prefill();
        }
    }

    fn thp_scene(&mut self) {
        let odd = if chance(self.rng, 15) { one(self.rng, &[K4, M2 / 2]) } else { 0 };
        let at = Place::new(0, odd);
        let len = Bytes(self.rng.random_range(1..=4u64) * M2);
        let share = if chance(self.rng, 90) { Share::Private } else { Share::Shared };
        let flags = self.map_flags();
        let prot = Prot::RW;
        self.p0(Op::Mmap { at, len, prot, share, from: None, page: PageSize::Base, flags });
        if chance(self.rng, 60) {
            let advice = one(self.rng, &[Advice::HugePage, Advice::HugePage, Advice::NoHugePage]);
            self.p0(Op::Madvise { at, len, advice });
        }
        if chance(self.rng, 60) {
            self.prefill();
        }
    }

    fn shmem_scene(&mut self) {
        let share = if chance(self.rng, 75) { Share::Shared } else { Share::Private };
        self.file_scene(PageSize::Base, share);
    }

    /// Something to find in memory: written through a mapping, or allocated only.
    pub(super) fn prefill(&mut self) {
        let Some(map) = self.sketch.maps.last().cloned() else { return };
        if map.page == PageSize::Huge1G {
            return;
        }
        let file = map.file;
        let len = Bytes(map.len.min(4 * M2));
        match (self.rng.random_range(0..4), file) {
            (0, Some(file)) => {
                let flags = FallocFlags::NONE;
                self.p0(Op::Fallocate { file, off: Bytes(0), len, flags });
            }
            (1, Some(file)) if !map.is_hugetlb() => {
                self.p0(Op::Pwrite { file, off: Bytes(0), len: Bytes(len.0.min(M2)) });
            }
            (2, _) => self.p0(Op::Write { at: map.at, len: Bytes(K4) }),
            _ => self.p0(Op::Write { at: map.at, len }),
        }
    }

    fn uffd_scene(&mut self) {
        self.make_uffd();
        self.make(super::Arm);
        if chance(self.rng, 15) {
            self.make_uffd();
        }
    }

    /// A userfaultfd with features this kernel has, mostly with somebody who answers.
    pub(super) fn make_uffd(&mut self) {
        let id = self.sketch.uffds.len() as u8;
        if id >= limits::OBJECTS_MAX {
            return;
        }
        let handler = weighted(
            self.rng,
            &[(35, Policy::None), (38, Policy::Copy), (22, Policy::Zero), (5, Policy::Poison)],
        );
        let can_poison = self.profile.has_uffd(UffdFeatures::POISON);
        let handler = if handler == Policy::Poison && !can_poison { Policy::Copy } else { handler };
        let mut features = UffdFeatures::NONE;
        let wanted: &[(UffdFeatures, u32)] = &[
            (UffdFeatures::MINOR_HUGETLBFS, 40),
            (UffdFeatures::MINOR_SHMEM, 40),
            (UffdFeatures::MISSING_HUGETLBFS, 40),
            (UffdFeatures::MISSING_SHMEM, 40),
            (UffdFeatures::PAGEFAULT_FLAG_WP, 50),
            (UffdFeatures::WP_HUGETLBFS_SHMEM, 50),
            (UffdFeatures::EXACT_ADDRESS, 30),
            (UffdFeatures::THREAD_ID, 5),
            (UffdFeatures::SIGBUS, 8),
            (UffdFeatures::WP_UNPOPULATED, 15),
            (UffdFeatures::WP_ASYNC, 6),
        ];
        let events: &[(UffdFeatures, u32)] = &[
            (UffdFeatures::EVENT_FORK, 15),
            (UffdFeatures::EVENT_REMAP, 15),
            (UffdFeatures::EVENT_REMOVE, 15),
            (UffdFeatures::EVENT_UNMAP, 15),
        ];
        // Events nobody reads hold their sender up.
        let events = if handler == Policy::None { &[] } else { events };
        for (feature, percent) in wanted.iter().chain(events) {
            if chance(self.rng, *percent) && self.profile.has_uffd(*feature) {
                features = features | *feature;
            }
        }
        self.p0(Op::Uffd { uffd: UffdId(id), features, handler });
    }

    pub(super) fn set_knob(&mut self) {
        if let Some(op) = self.knob() {
            self.p0(op);
        }
    }
}
