//! Spellings: numbers, places and flags of the contract as C expressions, and the constants that
//! older headers lack.

use case::value::*;

/// Constants that headers may lack, with their values.
const YOUNG: &[(&str, &str)] = &[
    ("MAP_FIXED_NOREPLACE", "0x100000"),
    ("MAP_HUGE_2MB", "(21 << 26)"),
    ("MAP_HUGE_1GB", "(30 << 26)"),
    ("MFD_HUGETLB", "4U"),
    ("MFD_HUGE_2MB", "(21U << 26)"),
    ("MFD_HUGE_1GB", "(30U << 26)"),
    ("MREMAP_DONTUNMAP", "4"),
    ("MLOCK_ONFAULT", "1"),
    ("F_SEAL_FUTURE_WRITE", "0x10"),
    ("MADV_WIPEONFORK", "18"),
    ("MADV_KEEPONFORK", "19"),
    ("MADV_COLD", "20"),
    ("MADV_PAGEOUT", "21"),
    ("MADV_POPULATE_READ", "22"),
    ("MADV_POPULATE_WRITE", "23"),
    ("MADV_DONTNEED_LOCKED", "24"),
    ("MADV_COLLAPSE", "25"),
    ("MADV_SPLIT", "26"),
    ("MADV_HWPOISON", "100"),
    ("MADV_SOFT_OFFLINE", "101"),
    ("UFFD_FEATURE_MINOR_HUGETLBFS", "(1 << 9)"),
    ("UFFD_FEATURE_MINOR_SHMEM", "(1 << 10)"),
    ("UFFD_FEATURE_EXACT_ADDRESS", "(1 << 11)"),
    ("UFFD_FEATURE_WP_HUGETLBFS_SHMEM", "(1 << 12)"),
    ("UFFD_FEATURE_WP_UNPOPULATED", "(1 << 13)"),
    ("UFFD_FEATURE_POISON", "(1 << 14)"),
    ("UFFD_FEATURE_WP_ASYNC", "(1 << 15)"),
    ("UFFD_FEATURE_MOVE", "(1 << 16)"),
    ("UFFD_PAGEFAULT_FLAG_MINOR", "(1 << 2)"),
    ("UFFDIO_REGISTER_MODE_MINOR", "(1UL << 2)"),
    ("UFFDIO_CONTINUE", "0xc020aa07UL"),
    ("UFFDIO_POISON", "0xc020aa08UL"),
    // The same bits in all ioctls that fill.
    ("MODE_DONTWAKE", "1UL"),
    ("MODE_WP", "2UL"),
];

/// `#define`s for those of the young constants that the text names.
pub fn young(text: &str) -> String {
    let named = |name: &str| {
        text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|word| word == name)
    };
    let used = YOUNG.iter().filter(|(name, _)| named(name));
    used.map(|(name, value)| format!("#ifndef {name}\n#define {name} {value}\n#endif\n")).collect()
}

/// `K(4)`, `M(2)`, or the number.
pub fn bytes(n: u64) -> String {
    match n {
        0 => "0".into(),
        n if n.is_multiple_of(1 << 30) => format!("G({})", n >> 30),
        n if n.is_multiple_of(1 << 20) => format!("M({})", n >> 20),
        n if n.is_multiple_of(1 << 10) => format!("K({})", n >> 10),
        n => format!("{n}UL"),
    }
}

/// `R0`, `R0 + M(2)`.
pub fn place(at: Place) -> String {
    match at.off {
        0 => format!("R{}", at.region.0),
        off => format!("R{} + {}", at.region.0, bytes(off)),
    }
}

fn joined(words: Vec<&str>, rest: u32) -> String {
    let mut all: Vec<String> = words.into_iter().map(str::to_owned).collect();
    if rest != 0 {
        all.push(format!("0x{rest:x}"));
    }
    if all.is_empty() { "0".into() } else { all.join(" | ") }
}

/// The names of the bits that are set, by bit number; a bit without a name as a number.
fn names(bits: u32, table: &[&'static str]) -> String {
    let known: u32 = (0..table.len()).filter(|n| !table[*n].is_empty()).map(|n| 1 << n).sum();
    let words = table.iter().enumerate();
    let set = words.filter(|(n, _)| (bits & known) >> n & 1 != 0).map(|(_, word)| *word);
    joined(set.collect(), bits & !known)
}

pub fn prot(prot: Prot) -> String {
    if prot.is_none() {
        return "PROT_NONE".into();
    }
    names(prot.0, &["PROT_READ", "PROT_WRITE", "PROT_EXEC"])
}

pub fn mmap_flags(share: Share, page: Option<PageSize>, flags: MmapFlags) -> String {
    let mut words = vec![match share {
        Share::Shared => "MAP_SHARED",
        Share::Private => "MAP_PRIVATE",
    }];
    match page {
        Some(PageSize::Base) => words.push("MAP_ANONYMOUS"),
        Some(PageSize::Huge2M) => words.extend(["MAP_ANONYMOUS", "MAP_HUGETLB", "MAP_HUGE_2MB"]),
        Some(PageSize::Huge1G) => words.extend(["MAP_ANONYMOUS", "MAP_HUGETLB", "MAP_HUGE_1GB"]),
        None => {}
    }
    words.push(match flags.has(MmapFlags::FIXED) {
        true => "MAP_FIXED",
        false => "MAP_FIXED_NOREPLACE",
    });
    let more = [
        (MmapFlags::POPULATE, "MAP_POPULATE"),
        (MmapFlags::NORESERVE, "MAP_NORESERVE"),
        (MmapFlags::LOCKED, "MAP_LOCKED"),
        (MmapFlags::NONBLOCK, "MAP_NONBLOCK"),
    ];
    words.extend(more.iter().filter(|(flag, _)| flags.has(*flag)).map(|(_, word)| *word));
    words.join(" | ")
}

pub fn memfd_flags(page: PageSize, flags: MemfdFlags) -> String {
    let mut words = vec!["MFD_CLOEXEC"];
    if flags.has(MemfdFlags::SEALING) {
        words.push("MFD_ALLOW_SEALING");
    }
    match page {
        PageSize::Base => {}
        PageSize::Huge2M => words.extend(["MFD_HUGETLB", "MFD_HUGE_2MB"]),
        PageSize::Huge1G => words.extend(["MFD_HUGETLB", "MFD_HUGE_1GB"]),
    }
    words.join(" | ")
}

pub fn mremap_flags(flags: MremapFlags) -> String {
    names(flags.0, &["MREMAP_MAYMOVE", "MREMAP_FIXED", "MREMAP_DONTUNMAP"])
}

pub fn falloc_flags(flags: FallocFlags) -> String {
    names(flags.0, &["FALLOC_FL_KEEP_SIZE"])
}

pub fn mlock_flags(flags: MlockFlags) -> String {
    names(flags.0, &["MLOCK_ONFAULT"])
}

pub fn seals(seals: Seals) -> String {
    let words = ["F_SEAL_SEAL", "F_SEAL_SHRINK", "F_SEAL_GROW", "F_SEAL_WRITE"];
    names(seals.0, &[&words[..], &["F_SEAL_FUTURE_WRITE"]].concat())
}

pub fn features(features: UffdFeatures) -> String {
    names(
        features.0,
        &[
            "UFFD_FEATURE_PAGEFAULT_FLAG_WP",
            "UFFD_FEATURE_EVENT_FORK",
            "UFFD_FEATURE_EVENT_REMAP",
            "UFFD_FEATURE_EVENT_REMOVE",
            "UFFD_FEATURE_MISSING_HUGETLBFS",
            "UFFD_FEATURE_MISSING_SHMEM",
            "UFFD_FEATURE_EVENT_UNMAP",
            "UFFD_FEATURE_SIGBUS",
            "UFFD_FEATURE_THREAD_ID",
            "UFFD_FEATURE_MINOR_HUGETLBFS",
            "UFFD_FEATURE_MINOR_SHMEM",
            "UFFD_FEATURE_EXACT_ADDRESS",
            "UFFD_FEATURE_WP_HUGETLBFS_SHMEM",
            "UFFD_FEATURE_WP_UNPOPULATED",
            "UFFD_FEATURE_POISON",
            "UFFD_FEATURE_WP_ASYNC",
            "UFFD_FEATURE_MOVE",
        ],
    )
}

pub fn register_modes(modes: UffdModes) -> String {
    let words =
        ["UFFDIO_REGISTER_MODE_MISSING", "UFFDIO_REGISTER_MODE_WP", "UFFDIO_REGISTER_MODE_MINOR"];
    names(modes.0, &words)
}

pub fn fill_flags(flags: FillFlags) -> String {
    names(flags.0, &["MODE_DONTWAKE", "MODE_WP"])
}

pub fn wp_flags(flags: WpFlags) -> String {
    names(flags.0, &["UFFDIO_WRITEPROTECT_MODE_WP", "UFFDIO_WRITEPROTECT_MODE_DONTWAKE"])
}

/// Numbers: mempolicy.h is not everywhere, and the words stand in the program's line.
pub const fn numa_mode(mode: NumaMode) -> u32 {
    match mode {
        NumaMode::Default => 0,
        NumaMode::Preferred => 1,
        NumaMode::Bind => 2,
        NumaMode::Interleave => 3,
        NumaMode::Local => 4,
    }
}

pub const fn advice(advice: Advice) -> &'static str {
    match advice {
        Advice::Normal => "MADV_NORMAL",
        Advice::Random => "MADV_RANDOM",
        Advice::Sequential => "MADV_SEQUENTIAL",
        Advice::WillNeed => "MADV_WILLNEED",
        Advice::DontNeed => "MADV_DONTNEED",
        Advice::Free => "MADV_FREE",
        Advice::Remove => "MADV_REMOVE",
        Advice::DontFork => "MADV_DONTFORK",
        Advice::DoFork => "MADV_DOFORK",
        Advice::Mergeable => "MADV_MERGEABLE",
        Advice::Unmergeable => "MADV_UNMERGEABLE",
        Advice::HugePage => "MADV_HUGEPAGE",
        Advice::NoHugePage => "MADV_NOHUGEPAGE",
        Advice::DontDump => "MADV_DONTDUMP",
        Advice::DoDump => "MADV_DODUMP",
        Advice::WipeOnFork => "MADV_WIPEONFORK",
        Advice::KeepOnFork => "MADV_KEEPONFORK",
        Advice::Cold => "MADV_COLD",
        Advice::PageOut => "MADV_PAGEOUT",
        Advice::PopulateRead => "MADV_POPULATE_READ",
        Advice::PopulateWrite => "MADV_POPULATE_WRITE",
        Advice::DontNeedLocked => "MADV_DONTNEED_LOCKED",
        Advice::Collapse => "MADV_COLLAPSE",
        Advice::Split => "MADV_SPLIT",
        Advice::HwPoison => "MADV_HWPOISON",
        Advice::SoftOffline => "MADV_SOFT_OFFLINE",
        Advice::Unknown => "9999",
    }
}

/// The path of a setting and what is written for a value.
pub fn knob(knob: Knob, value: u32) -> (&'static str, String) {
    let (path, words): (_, &[&str]) = match knob {
        Knob::ThpEnabled => {
            ("/sys/kernel/mm/transparent_hugepage/enabled", &["never", "madvise", "always"])
        }
        Knob::ThpShmem => (
            "/sys/kernel/mm/transparent_hugepage/shmem_enabled",
            &["never", "advise", "within_size", "always", "deny", "force"],
        ),
        Knob::ThpZeroPage => ("/sys/kernel/mm/transparent_hugepage/use_zero_page", &[]),
        Knob::HugetlbNr2M => ("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", &[]),
        Knob::HugetlbOvercommit2M => {
            ("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages", &[])
        }
        Knob::NumaBalancing => ("/proc/sys/kernel/numa_balancing", &[]),
        Knob::Khugepaged => ("/sys/kernel/mm/transparent_hugepage/khugepaged/defrag", &[]),
    };
    (path, words.get(value as usize).map_or_else(|| value.to_string(), ToString::to_string))
}

/// The name of an errno, or its number.
pub fn errno(errno: i32) -> String {
    let names = [
        (1, "EPERM"),
        (2, "ENOENT"),
        (3, "ESRCH"),
        (4, "EINTR"),
        (5, "EIO"),
        (6, "ENXIO"),
        (9, "EBADF"),
        (11, "EAGAIN"),
        (12, "ENOMEM"),
        (13, "EACCES"),
        (14, "EFAULT"),
        (16, "EBUSY"),
        (17, "EEXIST"),
        (19, "ENODEV"),
        (22, "EINVAL"),
        (26, "ETXTBSY"),
        (27, "EFBIG"),
        (28, "ENOSPC"),
        (38, "ENOSYS"),
        (75, "EOVERFLOW"),
        (95, "EOPNOTSUPP"),
        (133, "EHWPOISON"),
    ];
    let known = names.iter().find(|(n, _)| *n == errno);
    known.map_or_else(|| errno.to_string(), |(_, name)| (*name).to_owned())
}

/// A C string literal with the quotes; what is not printable ASCII becomes a question mark.
pub fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            _ => out.push('?'),
        }
    }
    out.push('"');
    out
}

/// The same for the inside of a comment.
pub fn commented(text: &str) -> String {
    let plain: String =
        text.chars().map(|c| if matches!(c, ' '..='~') { c } else { '?' }).collect();
    plain.replace("*/", "* /").replace("/*", "/ *")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_have_their_names_and_unknown_bits_stay_numbers() {
        assert_eq!(prot(Prot::RW), "PROT_READ | PROT_WRITE");
        assert_eq!(prot(Prot::NONE), "PROT_NONE");
        let odd = UffdModes::WP.with(UffdModes::UNKNOWN);
        assert_eq!(register_modes(odd), "UFFDIO_REGISTER_MODE_WP | 0x80");
        assert_eq!(features(UffdFeatures::UNKNOWN), "0x80000000");
        assert_eq!(fill_flags(FillFlags::NONE), "0");
        assert_eq!(place(Place::new(1, 6 << 20)), "R1 + M(6)");
    }

    #[test]
    fn text_of_others_cannot_end_a_literal_or_a_comment() {
        assert_eq!(quoted("a\"b\\\n"), "\"a\\\"b\\\\?\"");
        assert_eq!(commented("a*/b/*"), "a* /b/ *");
    }
}
