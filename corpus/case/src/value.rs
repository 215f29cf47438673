//! The words of the text form: sizes, object ids, places, flag sets. Each prints one way and
//! parses exactly what it prints (and a few friendlier spellings of numbers).

use crate::limits::{OBJECTS_MAX, PAGE, REGION_BYTES_MAX};
use serde::{Deserialize, Serialize};

/// A field of an op in the text form.
pub trait Value: Sized {
    /// What a parser error says was expected, e.g. "a size such as 4K or 2M".
    const EXPECTED: &'static str;
    /// Appends the canonical spelling.
    fn print(&self, out: &mut String);
    /// Reads one word; `None` when it is not one.
    fn parse(word: &str) -> Option<Self>;
}

/// A byte count or byte offset; prints with the largest exact suffix of K, M, G.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Bytes(pub u64);

impl Value for Bytes {
    const EXPECTED: &'static str = "a size such as 0, 4K, 2M or 1G";
    fn print(&self, out: &mut String) {
        let n = self.0;
        let (value, suffix) = match n {
            0 => (0, ""),
            n if n.is_multiple_of(1 << 30) => (n >> 30, "G"),
            n if n.is_multiple_of(1 << 20) => (n >> 20, "M"),
            n if n.is_multiple_of(1 << 10) => (n >> 10, "K"),
            n => (n, ""),
        };
        out.push_str(&value.to_string());
        out.push_str(suffix);
    }
    fn parse(word: &str) -> Option<Self> {
        let (digits, shift) = match word.as_bytes().last()? {
            b'K' | b'k' => (&word[..word.len() - 1], 10),
            b'M' | b'm' => (&word[..word.len() - 1], 20),
            b'G' | b'g' => (&word[..word.len() - 1], 30),
            _ => (word, 0),
        };
        let n = match digits.strip_prefix("0x") {
            Some(hex) if shift == 0 => u64::from_str_radix(hex, 16).ok()?,
            _ if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().ok()?,
            _ => return None,
        };
        n.checked_mul(1 << shift).map(Bytes)
    }
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident $letter:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u8);
        impl Value for $name {
            const EXPECTED: &'static str = concat!("an id ", $letter, "0 to ", $letter, "7");
            fn print(&self, out: &mut String) {
                out.push_str($letter);
                out.push_str(&self.0.to_string());
            }
            fn parse(word: &str) -> Option<Self> {
                let digits = word.strip_prefix($letter)?;
                if digits.len() != 1 { return None; }
                let n: u8 = digits.parse().ok()?;
                (n < OBJECTS_MAX).then_some($name(n))
            }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}{}", $letter, self.0)
            }
        }
    )*};
}

ids! {
    /// A file made by `memfd` or `hugetlbfs`.
    FileId "f";
    /// A slot of the arena: an address range that mappings are placed in.
    RegionId "r";
    /// A userfaultfd.
    UffdId "u";
    /// A process; `p0` is the one the program starts in.
    ProcId "p";
    /// A long-term pin of user pages.
    PinId "g";
}

/// An address: a region and a byte offset into its slot. Prints as `r0` or `r0+4K`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Place {
    pub region: RegionId,
    pub off: u64,
}

impl Place {
    pub const fn new(region: u8, off: u64) -> Self {
        Place { region: RegionId(region), off }
    }
    /// The virtual address, the same in every process.
    pub const fn addr(self) -> u64 {
        crate::limits::ARENA_BASE + self.region.0 as u64 * crate::limits::ARENA_STRIDE + self.off
    }
    /// The place of a virtual address, if it lies in a slot (its guard included).
    pub fn of_addr(addr: u64) -> Option<Self> {
        let rel = addr.checked_sub(crate::limits::ARENA_BASE)?;
        let region = rel / crate::limits::ARENA_STRIDE;
        (region < OBJECTS_MAX as u64)
            .then(|| Place::new(region as u8, rel % crate::limits::ARENA_STRIDE))
    }
    /// Index of the 4 KiB page inside the region.
    pub const fn page(self) -> u64 {
        self.off / PAGE
    }
    pub const fn plus(self, bytes: u64) -> Self {
        Place { region: self.region, off: self.off.wrapping_add(bytes) }
    }
}

fn print_plus(off: u64, out: &mut String) {
    if off != 0 {
        out.push('+');
        Bytes(off).print(out);
    }
}

fn parse_plus<Id: Value>(word: &str, max: u64) -> Option<(Id, u64)> {
    let (id, off) = match word.split_once('+') {
        Some((id, off)) => (id, Bytes::parse(off)?.0),
        None => (word, 0),
    };
    (off <= max).then_some((Id::parse(id)?, off))
}

impl Value for Place {
    const EXPECTED: &'static str = "a place such as r0 or r0+4K";
    fn print(&self, out: &mut String) {
        self.region.print(out);
        print_plus(self.off, out);
    }
    fn parse(word: &str) -> Option<Self> {
        let (region, off) = parse_plus(word, REGION_BYTES_MAX)?;
        Some(Place { region, off })
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut s = String::new();
        self.print(&mut s);
        f.write_str(&s)
    }
}

/// A file and a byte offset into it. Prints as `f0` or `f0+2M`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FilePart {
    pub file: FileId,
    pub off: u64,
}

impl Value for FilePart {
    const EXPECTED: &'static str = "a file part such as f0 or f0+2M";
    fn print(&self, out: &mut String) {
        self.file.print(out);
        print_plus(self.off, out);
    }
    fn parse(word: &str) -> Option<Self> {
        let (file, off) = parse_plus(word, u64::MAX)?;
        Some(FilePart { file, off })
    }
}

impl<T: Value> Value for Option<T> {
    const EXPECTED: &'static str = T::EXPECTED;
    fn print(&self, out: &mut String) {
        match self {
            Some(v) => v.print(out),
            None => out.push_str("none"),
        }
    }
    fn parse(word: &str) -> Option<Self> {
        if word == "none" { Some(None) } else { T::parse(word).map(Some) }
    }
}

macro_rules! numbers {
    ($($ty:ty, $expected:literal;)*) => {$(
        impl Value for $ty {
            const EXPECTED: &'static str = $expected;
            fn print(&self, out: &mut String) { out.push_str(&self.to_string()); }
            fn parse(word: &str) -> Option<Self> { word.parse().ok() }
        }
    )*};
}

numbers! {
    u8, "a number from 0 to 255";
    u32, "a whole number";
    u64, "a whole number";
    i32, "a whole number";
}

impl Value for bool {
    const EXPECTED: &'static str = "yes or no";
    fn print(&self, out: &mut String) {
        out.push_str(if *self { "yes" } else { "no" });
    }
    fn parse(word: &str) -> Option<Self> {
        match word {
            "yes" => Some(true),
            "no" => Some(false),
            _ => None,
        }
    }
}

macro_rules! words {
    ($($(#[$doc:meta])* $name:ident $expected:literal { $($(#[$vdoc:meta])* $variant:ident $word:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }
        impl $name {
            /// All of them, in the order they are declared.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];
            /// The word of the text form.
            pub const fn word(self) -> &'static str {
                match self { $($name::$variant => $word,)* }
            }
        }
        impl Value for $name {
            const EXPECTED: &'static str = $expected;
            fn print(&self, out: &mut String) { out.push_str(self.word()); }
            fn parse(word: &str) -> Option<Self> {
                match word { $($word => Some($name::$variant),)* _ => None }
            }
        }
    )*};
}

words! {
    /// Page size of a file, a mapping or a pool.
    PageSize "4K, 2M or 1G" {
        /// Base pages: shmem for a file, ordinary memory for a mapping.
        Base "4K",
        Huge2M "2M",
        Huge1G "1G",
    }
    /// Whether stores reach the object behind the mapping.
    Share "shared or private" {
        Shared "shared",
        Private "private",
    }
    /// madvise(2) advice.
    Advice "an madvise advice such as dontneed or collapse" {
        Normal "normal",
        Random "random",
        Sequential "sequential",
        WillNeed "willneed",
        DontNeed "dontneed",
        Remove "remove",
        DontFork "dontfork",
        DoFork "dofork",
        HwPoison "hwpoison",
        SoftOffline "softoffline",
        Mergeable "mergeable",
        Unmergeable "unmergeable",
        HugePage "hugepage",
        NoHugePage "nohugepage",
        DontDump "dontdump",
        DoDump "dodump",
        Free "free",
        WipeOnFork "wipeonfork",
        KeepOnFork "keeponfork",
        Cold "cold",
        PageOut "pageout",
        PopulateRead "populate_read",
        PopulateWrite "populate_write",
        DontNeedLocked "dontneed_locked",
        Collapse "collapse",
        /// HGM generations V1 and V2 only; EINVAL elsewhere.
        Split "split",
        /// A number no kernel knows: must be EINVAL.
        Unknown "unknown",
    }
    /// What the handler thread of a userfaultfd answers a MISSING fault with. Every policy but
    /// `none` answers a MINOR fault with UFFDIO_CONTINUE and a WP fault by un-protecting.
    Policy "none, copy, zero or poison" {
        /// No handler thread: faults wait until the op's timeout.
        None "none",
        /// UFFDIO_COPY of a tagged page.
        Copy "copy",
        /// UFFDIO_ZEROPAGE (UFFDIO_COPY of zeros where the object has no zero page).
        Zero "zero",
        /// UFFDIO_POISON.
        Poison "poison",
    }
    /// NUMA policy of mbind(2) and set_mempolicy(2).
    NumaMode "default, bind, preferred, interleave or local" {
        Default "default",
        Bind "bind",
        Preferred "preferred",
        Interleave "interleave",
        Local "local",
    }
    /// Which way an O_DIRECT transfer goes.
    Direction "out or in" {
        /// Memory to device, then compared.
        Out "out",
        /// Device to memory.
        In "in",
    }
    /// A kernel setting a program may change; the agent restores it afterwards.
    Knob "a knob such as thp_enabled or hugetlb_nr_2m" {
        ThpEnabled "thp_enabled",
        ThpShmem "thp_shmem",
        ThpZeroPage "thp_zero_page",
        HugetlbNr2M "hugetlb_nr_2m",
        HugetlbOvercommit2M "hugetlb_overcommit_2m",
        NumaBalancing "numa_balancing",
        Khugepaged "khugepaged",
    }
}

macro_rules! flag_sets {
    ($($(#[$doc:meta])* $name:ident $expected:literal { $($(#[$vdoc:meta])* $flag:ident $word:literal = $bit:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u32);
        impl $name {
            /// The empty set; prints as `none`.
            pub const NONE: $name = $name(0);
            $($(#[$vdoc])* pub const $flag: $name = $name(1 << $bit);)*
            /// Each flag with its word.
            pub const TABLE: &'static [($name, &'static str)] = &[$(($name::$flag, $word),)*];
            pub const fn has(self, other: $name) -> bool { self.0 & other.0 == other.0 }
            pub const fn any(self, other: $name) -> bool { self.0 & other.0 != 0 }
            pub const fn with(self, other: $name) -> $name { $name(self.0 | other.0) }
            pub const fn without(self, other: $name) -> $name { $name(self.0 & !other.0) }
            pub const fn is_none(self) -> bool { self.0 == 0 }
        }
        impl std::ops::BitOr for $name {
            type Output = $name;
            fn bitor(self, other: $name) -> $name { self.with(other) }
        }
        impl Value for $name {
            const EXPECTED: &'static str = $expected;
            fn print(&self, out: &mut String) {
                let mut first = true;
                for (flag, word) in Self::TABLE {
                    if self.has(*flag) {
                        if !first { out.push(','); }
                        first = false;
                        out.push_str(word);
                    }
                }
                if first { out.push_str("none"); }
            }
            fn parse(text: &str) -> Option<Self> {
                if text == "none" { return Some(Self::NONE); }
                let mut set = Self::NONE;
                for word in text.split(',') {
                    set = set | Self::TABLE.iter().find(|(_, w)| *w == word)?.0;
                }
                Some(set)
            }
        }
    )*};
}

flag_sets! {
    /// Protection of a mapping.
    Prot "a protection such as none, read or read,write" {
        READ "read" = 0,
        WRITE "write" = 1,
        EXEC "exec" = 2,
    }
    /// memfd_create(2) flags beside the page size.
    MemfdFlags "none or sealing" {
        SEALING "sealing" = 0,
    }
    /// File seals, fcntl(F_ADD_SEALS).
    Seals "seals such as shrink,grow,write" {
        SEAL "seal" = 0,
        SHRINK "shrink" = 1,
        GROW "grow" = 2,
        WRITE "write" = 3,
        FUTURE_WRITE "future_write" = 4,
    }
    /// mmap(2) flags beside shared/private and the huge-page size. Without `fixed` the address is
    /// asked for with MAP_FIXED_NOREPLACE, so an overlap is EEXIST.
    MmapFlags "mmap flags such as populate,noreserve" {
        FIXED "fixed" = 0,
        POPULATE "populate" = 1,
        NORESERVE "noreserve" = 2,
        LOCKED "locked" = 3,
        NONBLOCK "nonblock" = 4,
    }
    /// mremap(2) flags.
    MremapFlags "mremap flags such as maymove,fixed" {
        MAYMOVE "maymove" = 0,
        FIXED "fixed" = 1,
        DONTUNMAP "dontunmap" = 2,
    }
    /// fallocate(2) flags beside PUNCH_HOLE.
    FallocFlags "none or keep_size" {
        KEEP_SIZE "keep_size" = 0,
    }
    /// mlock2(2) flags.
    MlockFlags "none or onfault" {
        ONFAULT "onfault" = 0,
    }
    /// Userfaultfd features asked for with UFFDIO_API; bit numbers are the kernel's.
    UffdFeatures "uffd features such as minor_hugetlbfs,exact_address" {
        PAGEFAULT_FLAG_WP "pagefault_flag_wp" = 0,
        EVENT_FORK "event_fork" = 1,
        EVENT_REMAP "event_remap" = 2,
        EVENT_REMOVE "event_remove" = 3,
        MISSING_HUGETLBFS "missing_hugetlbfs" = 4,
        MISSING_SHMEM "missing_shmem" = 5,
        EVENT_UNMAP "event_unmap" = 6,
        SIGBUS "sigbus" = 7,
        THREAD_ID "thread_id" = 8,
        MINOR_HUGETLBFS "minor_hugetlbfs" = 9,
        MINOR_SHMEM "minor_shmem" = 10,
        EXACT_ADDRESS "exact_address" = 11,
        WP_HUGETLBFS_SHMEM "wp_hugetlbfs_shmem" = 12,
        WP_UNPOPULATED "wp_unpopulated" = 13,
        POISON "poison" = 14,
        WP_ASYNC "wp_async" = 15,
        MOVE "move" = 16,
        /// A bit no kernel knows: must be EINVAL.
        UNKNOWN "unknown" = 31,
    }
    /// UFFDIO_REGISTER modes.
    UffdModes "modes such as missing,wp or minor" {
        MISSING "missing" = 0,
        WP "wp" = 1,
        MINOR "minor" = 2,
        /// A mode bit no kernel knows.
        UNKNOWN "unknown" = 7,
    }
    /// Mode bits of the filling ioctls (COPY, ZEROPAGE, CONTINUE, POISON).
    FillFlags "fill flags such as dontwake,wp" {
        DONTWAKE "dontwake" = 0,
        WP "wp" = 1,
        UNKNOWN "unknown" = 7,
    }
    /// Mode bits of UFFDIO_WRITEPROTECT; without `wp` it un-protects.
    WpFlags "none, wp or wp,dontwake" {
        WP "wp" = 0,
        DONTWAKE "dontwake" = 1,
    }
    /// move_pages(2) and mbind(2) flags.
    MoveFlags "none, strict, move or all" {
        STRICT "strict" = 0,
        MOVE "move" = 1,
        ALL "all" = 2,
    }
    /// How pages are pinned.
    PinFlags "none, write or longterm" {
        WRITE "write" = 0,
        LONGTERM "longterm" = 1,
    }
    /// A set of NUMA nodes.
    Nodes "nodes such as n0 or n0,n1" {
        N0 "n0" = 0,
        N1 "n1" = 1,
        /// A node that does not exist.
        N9 "n9" = 9,
    }
    /// What an `observe` looks at.
    What "views such as pagemap,smaps,mincore" {
        PAGEMAP "pagemap" = 0,
        /// kpageflags and kpagecount of every present page.
        KPAGE "kpage" = 1,
        SMAPS "smaps" = 2,
        ROLLUP "rollup" = 3,
        STATUS "status" = 4,
        MINCORE "mincore" = 5,
        NUMA_MAPS "numa_maps" = 6,
        COUNTERS "counters" = 7,
    }
}

impl Prot {
    /// Read and write.
    pub const RW: Prot = Prot(0b11);
}

impl PageSize {
    pub const fn bytes(self) -> u64 {
        match self {
            PageSize::Base => PAGE,
            PageSize::Huge2M => 2 << 20,
            PageSize::Huge1G => 1 << 30,
        }
    }
    pub const fn is_huge(self) -> bool {
        !matches!(self, PageSize::Base)
    }
}
