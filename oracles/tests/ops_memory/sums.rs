//! Sums the kernel shows over a mapping or a process: smaps_rollup, numa_maps, page tables.

use super::*;
use case::ProcId;

const START: Place = Place::new(0, 0);

fn kb(fields: &[(&str, u64)]) -> Vec<(String, u64)> {
    fields.iter().map(|(label, n)| ((*label).to_owned(), *n)).collect()
}

fn huge(then: Vec<Seen>) -> Vec<Seen> {
    let first = [ok("mmap at=r0 len=4M page=2M"), ok("write at=r0 len=4M")];
    first.into_iter().chain(then).collect()
}

fn status(text: &'static str, vmpte: u64) -> Seen {
    let mut look = ok(text);
    let kb = kb(&[("VmPTE", vmpte)]);
    look.obs.views.push(View::Status { proc: ProcId(0), kb });
    look
}

#[test]
fn smaps_rollup_is_the_sum() {
    let rollup = |n: u64| {
        let mut look = ok("observe at=r0 len=4M what=rollup");
        let kb = kb(&[("Shared_Hugetlb", 0), ("Private_Hugetlb", n)]);
        look.obs.views.push(View::Rollup { proc: ProcId(0), kb });
        huge(vec![look])
    };
    passes(rollup(4096));
    breaks("O-045", rollup(2048));
    breaks("O-045", rollup(0));
}

#[test]
fn numa_maps_counts_huge_pages_by_node() {
    let numa = |line: &str| {
        let sums = [("Private_Hugetlb", 4096), ("KernelPageSize", 2048)];
        let look = ok("observe at=r0 len=4M what=smaps,numa_maps");
        let mut look = look.mapping(START, 4 << 20, &[*b"ht"], &sums);
        let Some(View::Vmas { vmas, .. }) = look.obs.views.last_mut() else { panic!("a look") };
        (vmas[0].perms, vmas[0].numa) = (3, Some(line.to_owned()));
        huge(vec![look])
    };
    passes(numa(
        "default file=/anon_hugepage huge anon=2 dirty=2 N0=1 N1=1 kernelpagesize_kB=2048",
    ));
    breaks("O-046", numa("default huge anon=2 dirty=2 N0=1 kernelpagesize_kB=2048"));
    breaks("O-046", numa("default huge anon=1024 N0=1024 kernelpagesize_kB=2048"));
    breaks("O-046", numa("default huge anon=2 mapmax=2 N0=2 kernelpagesize_kB=2048"));
    breaks("O-046", numa("default huge"));
}

#[test]
fn page_tables_go_with_the_mapping() {
    let lines = |mapped: u64, gone: u64| {
        vec![
            status("observe at=r0 len=4K what=status", 80),
            ok("mmap at=r0 len=64M"),
            ok("write at=r0 len=64M"),
            status("observe at=r0 len=4K what=status", mapped),
            ok("munmap at=r0 len=64M"),
            status("observe at=r0 len=4K what=status", gone),
        ]
    };
    // 32 page tables, one table above them and one above that.
    passes(lines(80 + 34 * 4, 80));
    breaks("O-064", lines(80, 80));
    breaks("O-064", lines(80 + 34 * 4, 80 + 32 * 4));
}
