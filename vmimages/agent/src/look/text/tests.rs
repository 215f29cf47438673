//! Samples of smaps as 6.1 and 6.12 print them.

use super::*;
use case::limits::{ARENA_BASE, ARENA_STRIDE};

const END: u64 = ARENA_BASE + 8 * ARENA_STRIDE;

const SMAPS_6_1: &str = "\
00400000-00401000 r--p 00000000 00:02 1052                               /init
Size:                  4 kB
KernelPageSize:        4 kB
Rss:                   4 kB
VmFlags: rd mr mw me 
100000000000-100000400000 rw-s 00200000 00:0f 2053                       /memfd:f0 (deleted)
Size:               4096 kB
KernelPageSize:     2048 kB
MMUPageSize:        2048 kB
Rss:                   0 kB
Shared_Hugetlb:        0 kB
Private_Hugetlb:    2048 kB
Swap:                  0 kB
SwapPss:               0 kB
Locked:                0 kB
THPeligible:    0
ProtectionKey:         0
VmFlags: rd wr sh mr mw me ms de ht sd ui 
7ffff7ffb000-7ffff7ffd000 r--p 00000000 00:00 0                          [vvar]
Size:                  8 kB
VmFlags: rd mr pf io de dd sd 
";

const SMAPS_6_12: &str = "\
100200000000-100200200000 r-xp 00000000 00:00 0 
Size:               2048 kB
KernelPageSize:        4 kB
Pss_Dirty:          2048 kB
AnonHugePages:      2048 kB
KSM:                   0 kB
THPeligible:           1
VmFlags: rd ex mr mw me sd hg lf 
";

fn value<'a>(vma: &'a VmaObs, label: &str) -> Option<&'a u64> {
    vma.kb.iter().find(|(l, _)| l == label).map(|(_, n)| n)
}

#[test]
fn smaps_of_6_1() {
    let mut smaps = Smaps::default();
    assert_eq!(smaps.feed(SMAPS_6_1.as_bytes(), ARENA_BASE, END), More::Past);
    let vmas = smaps.into_vmas();
    assert_eq!(vmas.len(), 1);
    let vma = &vmas[0];
    assert_eq!((vma.at, vma.len), (Place::new(0, 0), 4 << 20));
    assert_eq!((vma.perms, vma.off), (1 | 2 | 8, 2 << 20));
    assert_eq!(value(vma, "Private_Hugetlb"), Some(&2048));
    assert_eq!(value(vma, "THPeligible"), Some(&0));
    assert_eq!(value(vma, "ProtectionKey"), None);
    assert_eq!(vma.kb.first().map(|(l, _)| l.as_str()), Some("Size"));
    assert_eq!(vma.flags.len(), 11);
    assert_eq!(vma.flags.last(), Some(b"ui"));
}

#[test]
fn smaps_of_6_12_fed_in_two_reads() {
    let at = SMAPS_6_12.find("KSM").unwrap();
    let mut smaps = Smaps::default();
    for part in [&SMAPS_6_12[..at], &SMAPS_6_12[at..]] {
        assert_eq!(smaps.feed(part.as_bytes(), ARENA_BASE, END), More::Wanted);
    }
    let vmas = smaps.into_vmas();
    assert_eq!(vmas[0].at, Place::new(1, 0));
    assert_eq!(vmas[0].perms, 1 | 4);
    assert_eq!(value(&vmas[0], "KSM"), Some(&0));
    assert_eq!(value(&vmas[0], "THPeligible"), Some(&1));
    assert_eq!(vmas[0].flags.last(), Some(b"lf"));
}

#[test]
fn only_vmas_that_overlap_the_range() {
    let text = "100000000000-100000200000 rw-s 0 00:0f 1 a\nSize: 2048 kB\n\
                100000200000-100000400000 rw-s 200000 00:0f 1 a\nSize: 2048 kB\n";
    let mut smaps = Smaps::default();
    let more = smaps.feed(text.as_bytes(), ARENA_BASE + (2 << 20), ARENA_BASE + (3 << 20));
    assert_eq!(more, More::Wanted);
    let vmas = smaps.into_vmas();
    assert_eq!(vmas.len(), 1);
    assert_eq!((vmas[0].at.off, vmas[0].off, vmas[0].kb.len()), (2 << 20, 2 << 20, 1));
    let mut first = Smaps::default();
    assert_eq!(first.feed(text.as_bytes(), ARENA_BASE, ARENA_BASE + (2 << 20)), More::Past);
    assert_eq!(first.into_vmas().len(), 1);
}

#[test]
fn status_lines_with_a_unit() {
    let text = b"Name:\tagent\nVmPeak:\t    4232 kB\nHugetlbPages:\t    2048 kB\nThreads:\t1\n";
    let want = vec![("VmPeak".to_string(), 4232), ("HugetlbPages".to_string(), 2048)];
    assert_eq!(labels(text), want);
}

#[test]
fn numa_lines_keep_all_but_the_address() {
    let line =
        b"100000000000 default file=/memfd:f0\\040(deleted) huge N0=1 kernelpagesize_kB=2048";
    let (start, rest) = numa_line(line).unwrap();
    assert_eq!(start, ARENA_BASE);
    assert!(rest.starts_with(b"default file="));
    assert_eq!(numa_line(b"zz default"), None);
}

#[test]
fn numbers_that_are_none() {
    assert_eq!(decimal(b""), None);
    assert_eq!(decimal(b"-1"), None);
    assert_eq!(decimal(b"99999999999999999999"), None);
    assert_eq!(decimal(b"18446744073709551615"), Some(u64::MAX));
}
