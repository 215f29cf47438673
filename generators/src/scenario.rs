//! Scenarios: programs that walk a whole use case, with sizes, places and order drawn anew each
//! time. Written as program text, because that is how a person would write them.

use crate::repair::repair;
use crate::words::{chance, one};
use case::*;
use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// Names for [`scenario`], the most wanted first.
pub const SCENARIOS: &[&str] = &[
    "postcopy",
    "thp-collapse",
    "uffd-wp-snapshot",
    "fork-cow",
    "reservations",
    "punch-truncate",
    "mremap-moves",
    "hwpoison-refault",
    "soft-offline",
    "node-migration",
    "postcopy-shmem",
    "missing-handler",
];

/// A program of the named scenario for a kernel of this profile; `None` for an unknown name.
pub fn scenario(name: &str, rng: &mut ChaCha8Rng, profile: &Profile) -> Option<Program> {
    let text = match name {
        "postcopy" if profile.hgm().is_some() && chance(rng, 75) => postcopy_in_pieces(rng),
        "postcopy" => postcopy(rng, profile, true),
        "postcopy-shmem" => postcopy(rng, profile, false),
        "thp-collapse" => thp_collapse(rng, profile),
        "uffd-wp-snapshot" => snapshot(rng, profile),
        "fork-cow" => fork_cow(rng),
        "reservations" => reservations(rng),
        "punch-truncate" => punch_truncate(rng),
        "mremap-moves" => mremap_moves(rng),
        "hwpoison-refault" => hwpoison(rng),
        "soft-offline" => soft_offline(rng),
        "node-migration" => node_migration(rng, profile),
        "missing-handler" => missing_handler(rng),
        _ => return None,
    };
    Some(read(&text))
}

/// The smallest sensible program, for when nothing random would do.
pub(crate) fn plain(rng: &mut ChaCha8Rng) -> Program {
    let page = page(rng, 2);
    read(&format!(
        "mmap at=r0 len=4M\nwrite at=r0+{page} len=8K\nread at=r0 len=4K\n\
         madvise at=r0 len=2M advice=dontneed\nread at=r0+{page} len=4K\n"
    ))
}

fn read(lines: &str) -> Program {
    let text = format!("{}\n\n{lines}", case::text::HEAD);
    let mut program = case::text::parse(&text).unwrap_or_default();
    repair(&mut program);
    program
}

/// Offset of one of `n` huge pages.
fn page(rng: &mut ChaCha8Rng, n: u64) -> String {
    size(rng.random_range(0..n) * 2)
}

fn size(mib: u64) -> String {
    if mib == 0 { "0".into() } else { format!("{mib}M") }
}

/// Offset of a 4 KiB page inside a huge page, an edge mostly.
fn inner(rng: &mut ChaCha8Rng) -> u64 {
    one(rng, &[0, 4, 8, 1020, 1024, 2040, 2044])
}

/// A guest's memory arrives: the destination maps it twice, takes minor faults on the primary,
/// fills through the alias, continues page by page, and at last makes huge pages of it.
fn postcopy(rng: &mut ChaCha8Rng, profile: &Profile, hugetlb: bool) -> String {
    let n = rng.random_range(2..=4u64);
    let mib = n * 2;
    let (file, feature) = match hugetlb {
        true => ("2M", "minor_hugetlbfs"),
        false => ("4K", "minor_shmem"),
    };
    let exact = if chance(rng, 50) { ",exact_address" } else { "" };
    let handler = one(rng, &["none", "copy", "zero"]);
    let mut out = format!(
        "f0 = memfd page={file}\nftruncate file=f0 len={mib}M\n\
         mmap at=r0 len={mib}M share=shared from=f0\nmmap at=r1 len={mib}M share=shared from=f0\n\
         u0 = uffd features={feature}{exact} handler={handler}\n"
    );
    let modes = if handler != "none" && chance(rng, 30) { "missing,minor" } else { "minor" };
    out += &format!("register uffd=u0 at=r0 len={mib}M modes={modes}\n");
    // Without HGM only whole huge pages can be continued; smaller tries show EINVAL.
    let step = if !hugetlb { 4 } else { one(rng, &[2048u64, 2048, 2048, 4]) };
    let mut pages: Vec<u64> = (0..n).collect();
    pages.shuffle(rng);
    for page in pages {
        let at = page * 2048;
        let threads = chance(rng, 50);
        let fill = format!("write at=r1+{at}K len=2M");
        let go = format!("continue uffd=u0 at=r0+{at}K len={step}K");
        let touch = format!("read at=r0+{}K len=4K", at + inner(rng));
        if threads && handler != "none" {
            out += &format!("par {{\n  t0: {touch}\n  t1: {fill}\n  t1: {go}\n}}\n");
        } else {
            out += &format!("{fill}\n{go}\n");
            if handler != "none" || step == 2048 {
                out += &format!("{touch}\n");
            }
        }
        if chance(rng, 25) {
            out += &format!("continue uffd=u0 at=r0+{at}K len=2M\n");
        }
    }
    if profile.madv_split && chance(rng, 50) {
        out += &format!("madvise at=r0 len={mib}M advice=split\n");
    }
    out += &format!("madvise at=r0 len={mib}M advice=collapse\n");
    if chance(rng, 50) {
        out += &format!("unregister uffd=u0 at=r0 len={mib}M\nread at=r0 len={mib}M\n");
    }
    out + &format!("observe at=r0 len={mib}M what=pagemap,smaps,mincore,counters\n")
}

/// The same by base pages: they arrive in any order, faults are answered piece by piece, and each
/// huge page is put together when all of it is there.
fn postcopy_in_pieces(rng: &mut ChaCha8Rng) -> String {
    let n = rng.random_range(1..=3u64);
    let mib = n * 2;
    let split = chance(rng, 80);
    let features = match (split, chance(rng, 50)) {
        (true, false) => "minor_hugetlbfs",
        (true, true) => "minor_hugetlbfs,exact_address",
        // The older way: a feature, whose bit other kernels gave to this one.
        (false, _) => "minor_hugetlbfs,exact_address,wp_unpopulated",
    };
    let handler = one(rng, &["none", "copy"]);
    let mut out = format!(
        "f0 = memfd\nftruncate file=f0 len={mib}M\n\
         mmap at=r0 len={mib}M share=shared from=f0\nmmap at=r1 len={mib}M share=shared from=f0\n"
    );
    if split {
        out += &format!("madvise at=r0 len={mib}M advice=split\n");
    }
    out += &format!("u0 = uffd features={features} handler={handler}\n");
    out += &format!("register uffd=u0 at=r0 len={mib}M modes=minor\n");
    for page in 0..n {
        let base = page * 2048;
        // Cuts between runs of base pages, KiB; the runs arrive shuffled.
        let mut cuts: Vec<u64> = (0..rng.random_range(1..=4)).map(|_| inner(rng)).collect();
        cuts.extend([0, 2048]);
        cuts.sort_unstable();
        cuts.dedup();
        let mut runs: Vec<(u64, u64)> = cuts.windows(2).map(|w| (w[0], w[1] - w[0])).collect();
        runs.shuffle(rng);
        for (i, (off, len)) in runs.iter().enumerate() {
            let at = base + off;
            out += &format!("write at=r1+{at}K len={len}K\n");
            if i == 0 && handler == "copy" && chance(rng, 40) {
                out += &format!("read at=r0+{}K len=4K\n", base + inner(rng));
            }
            out += &format!("continue uffd=u0 at=r0+{at}K len={len}K\n");
        }
        if chance(rng, 30) {
            out += &format!("madvise at=r0+{base}K len=2M advice=dontneed\n");
            out += &format!("continue uffd=u0 at=r0+{base}K len={}K\n", one(rng, &[4, 2044, 2048]));
        }
        if chance(rng, 70) {
            out += &format!("madvise at=r0+{base}K len=2M advice=collapse\n");
        }
    }
    out += one(
        rng,
        &[
            "unregister uffd=u0 at=r0 len=2M\nread at=r0 len=2M\n",
            "p1 = fork\np1: read at=r1 len=8K\n",
            "mremap at=r0 len=2M new=2M to=r2 flags=maymove,fixed\nread at=r1 len=8K\n",
            "punch file=f0 len=2M\ncontinue uffd=u0 at=r0 len=4K\n",
            "vm_read at=r1 len=16K\n",
        ],
    );
    out + &format!(
        "madvise at=r0 len={mib}M advice=collapse\n\
         observe at=r0 len={mib}M what=pagemap,kpage,smaps,mincore,status,counters\n"
    )
}

fn thp_collapse(rng: &mut ChaCha8Rng, profile: &Profile) -> String {
    let n = rng.random_range(1..=3u64);
    let mib = n * 2;
    let first = if chance(rng, 50) { "nohugepage" } else { "hugepage" };
    let mut out = format!("mmap at=r0 len={mib}M\nmadvise at=r0 len={mib}M advice={first}\n");
    for _ in 0..rng.random_range(1..=3) {
        let at = page(rng, n);
        let len = one(rng, &["4K", "8K", "1M", "2M"]);
        out += &format!("write at=r0+{at} len={len}\n");
    }
    out += &format!("madvise at=r0 len={mib}M advice=hugepage\n");
    for _ in 0..rng.random_range(1..=3) {
        let at = page(rng, n);
        out += &format!("madvise at=r0+{at} len=2M advice=collapse\n");
        let off = inner(rng);
        let split = match rng.random_range(0..6) {
            0 => format!("mprotect at=r0+{at} len=4K prot=read"),
            1 => format!("munmap at=r0+{off}K len=4K"),
            2 => format!("madvise at=r0+{off}K len=8K advice=dontneed"),
            3 if profile.madv_split => format!("madvise at=r0+{at} len=2M advice=split"),
            4 => format!("madvise at=r0+{off}K len=4K advice=free"),
            _ => format!("mremap at=r0+{at} len=4K new=4K to=r2 flags=maymove,fixed"),
        };
        out += &format!("{split}\nread at=r0+{at} len=8K\n");
    }
    out + &format!(
        "madvise at=r0 len={mib}M advice=collapse\nread at=r0 len={mib}M\n\
         observe at=r0 len={mib}M what=pagemap,smaps,kpage\n"
    )
}

/// A live snapshot: protect all, let writers run, save what they are about to change.
fn snapshot(rng: &mut ChaCha8Rng, profile: &Profile) -> String {
    let huge = profile.huge_2m && chance(rng, 50);
    let n = rng.random_range(1..=3u64);
    let mib = n * 2;
    let map = match (huge, rng.random_range(0..3)) {
        (true, 0) => format!("mmap at=r0 len={mib}M page=2M"),
        (true, _) => format!(
            "f0 = memfd\nftruncate file=f0 len={mib}M\nmmap at=r0 len={mib}M share=shared from=f0"
        ),
        (false, 0) => format!(
            "f0 = memfd page=4K\nftruncate file=f0 len={mib}M\n\
             mmap at=r0 len={mib}M share=shared from=f0"
        ),
        (false, _) => format!("mmap at=r0 len={mib}M"),
    };
    let feature = "pagefault_flag_wp,wp_hugetlbfs_shmem";
    let at = page(rng, n);
    let mut out = format!(
        "{map}\nwrite at=r0 len=2M\nu0 = uffd features={feature} handler=copy\n\
         register uffd=u0 at=r0 len={mib}M modes=wp\n\
         writeprotect uffd=u0 at=r0 len={mib}M\nread at=r0 len=4K\nwrite at=r0+{at} len=4K\n"
    );
    if chance(rng, 50) {
        out += "p1 = fork\np1: write at=r0 len=4K\nwrite at=r0+1M len=4K\n";
    }
    if chance(rng, 50) {
        out += "par {\n  t0: write at=r0 len=8K\n  t1: write at=r0+4K len=8K\n  \
                t1: read at=r0 len=4K\n}\n";
    }
    if chance(rng, 50) {
        out += &format!("madvise at=r0+{at} len=2M advice=dontneed\nwrite at=r0+{at} len=4K\n");
    }
    out + &format!(
        "writeprotect uffd=u0 at=r0 len={mib}M flags=none\nwrite at=r0 len=4K\n\
         observe at=r0 len={mib}M what=pagemap,smaps\n"
    )
}

fn fork_cow(rng: &mut ChaCha8Rng) -> String {
    let n = rng.random_range(1..=3u64);
    let mib = n * 2;
    let at = page(rng, n);
    let mut out = format!("mmap at=r0 len={mib}M page=2M\nwrite at=r0+{at} len=8K\np1 = fork\n");
    let mut moves = vec![
        format!("p1: read at=r0+{at} len=8K\n"),
        format!("write at=r0+{at} len=4K\n"),
        format!("p1: write at=r0+{at} len=4K\n"),
        format!("madvise at=r0+{at} len=2M advice=dontneed\n"),
        format!("p1: madvise at=r0+{at} len=2M advice=dontneed\n"),
        format!("p1: write at=r0 len={mib}M\n"),
        format!("vm_read target=p1 at=r0+{at} len=8K\n"),
    ];
    moves.shuffle(rng);
    out.extend(moves.into_iter().take(rng.random_range(3..=7)));
    if chance(rng, 50) {
        out += "p2 = fork\np2: read at=r0 len=4K\n";
    }
    out + &format!("p1: exit\nread at=r0 len={mib}M\nobserve at=r0 len={mib}M what=pagemap,smaps\n")
}

fn reservations(rng: &mut ChaCha8Rng) -> String {
    let n = rng.random_range(2..=4u64);
    let mib = n * 2;
    let mut out = format!("f0 = memfd\nftruncate file=f0 len={mib}M\n");
    let mut moves = vec![
        format!("mmap at=r0 len={mib}M share=shared from=f0\n"),
        format!("mmap at=r1 len={mib}M share=private from=f0\n"),
        format!("mmap at=r2 len={mib}M page=2M\n"),
        "fallocate file=f0 off=2M len=2M\n".to_string(),
        "punch file=f0 off=0 len=2M\n".to_string(),
        format!("mmap at=r3 len={mib}M share=shared from=f0 flags=noreserve\n"),
        "mmap at=r4 len=140M page=2M\n".to_string(),
    ];
    moves.shuffle(rng);
    for line in moves {
        out += &line;
        if chance(rng, 40) {
            out += "observe at=r0 len=4K what=counters\n";
        }
    }
    let at = page(rng, n);
    out + &format!(
        "write at=r0+{at} len=4K\nwrite at=r1+{at} len=4K\nwrite at=r2 len=4K\n\
         munmap at=r1 len={mib}M\nmunmap at=r2 len=2M\nftruncate file=f0 len=2M\n\
         observe at=r0 len=4K what=counters\n"
    )
}

fn punch_truncate(rng: &mut ChaCha8Rng) -> String {
    let n = rng.random_range(2..=4u64);
    let mib = n * 2;
    let file = one(rng, &["2M", "2M", "4K"]);
    let second = one(rng, &["shared", "private"]);
    let mut out = format!(
        "f0 = memfd page={file}\nftruncate file=f0 len={mib}M\n\
         mmap at=r0 len={mib}M share=shared from=f0\nmmap at=r1 len={mib}M share={second} from=f0\n\
         write at=r0 len={mib}M\nwrite at=r1 len=4K\n"
    );
    for _ in 0..rng.random_range(2..=4) {
        let at = rng.random_range(0..n) * 2048 + one(rng, &[0, 0, 0, 4, 1024, 2044]);
        let len = one(rng, &["4K", "8K", "2M", "2052K", "4M"]);
        let cut = match rng.random_range(0..3) {
            0 => format!("punch file=f0 off={at}K len={len}"),
            1 => format!("ftruncate file=f0 len={}M", rng.random_range(0..=n) * 2),
            _ => format!("madvise at=r0+{}M len=2M advice=remove", at / 2048 * 2),
        };
        let probe = page(rng, n);
        out += &format!("{cut}\nread at=r0+{probe} len=4K\nread at=r1+{probe} len=4K\n");
        if chance(rng, 40) {
            out += &format!("write at=r1+{probe} len=4K\n");
        }
    }
    out + &format!(
        "ftruncate file=f0 len={mib}M\nread at=r0 len={mib}M\nfstat file=f0\n\
         observe at=r0 len={mib}M what=pagemap,mincore,counters\n"
    )
}

fn mremap_moves(rng: &mut ChaCha8Rng) -> String {
    let page = one(rng, &["2M", "2M", "4K"]);
    let n = rng.random_range(2..=4u64);
    let mib = n * 2;
    let mut out = format!("mmap at=r0 len={mib}M page={page}\nwrite at=r0 len=2M\n");
    if chance(rng, 50) {
        let events = one(rng, &["event_remap", "pagefault_flag_wp", "event_unmap,event_remap"]);
        out += &format!(
            "u0 = uffd features={events} handler=zero\n\
             register uffd=u0 at=r0 len={mib}M modes=missing,wp\nwriteprotect uffd=u0 at=r0 len=2M\n"
        );
    }
    let mut from = ("r0", mib);
    for to in ["r1", "r2"] {
        let len = if chance(rng, 70) { from.1 } else { 2 };
        let flags = one(rng, &["maymove,fixed", "maymove,fixed", "maymove,fixed,dontunmap"]);
        out += &format!("mremap at={} len={len}M new={len}M to={to} flags={flags}\n", from.0);
        out += &format!("read at={to} len=2M\nwrite at={to} len=4K\n");
        from = (to, len);
    }
    out + &format!(
        "mremap at={} len={}M new=2M flags=maymove\nread at=r0 len=4K\n\
         observe at={} len={}M what=pagemap,smaps,counters\n",
        from.0, from.1, from.0, from.1
    )
}

fn hwpoison(rng: &mut ChaCha8Rng) -> String {
    let map = match rng.random_range(0..4) {
        0 => "mmap at=r0 len=4M page=2M",
        1 => "mmap at=r0 len=4M\nmadvise at=r0 len=4M advice=hugepage",
        2 => "f0 = memfd page=4K\nftruncate file=f0 len=4M\nmmap at=r0 len=4M share=shared from=f0",
        _ => "f0 = memfd\nftruncate file=f0 len=4M\nmmap at=r0 len=4M share=shared from=f0",
    };
    let hit = inner(rng);
    let near = inner(rng);
    let after = one(
        rng,
        &[
            "madvise at=r0 len=2M advice=dontneed\nwrite at=r0 len=4K\n",
            "munmap at=r0 len=2M\nmmap at=r0 len=2M\nwrite at=r0 len=4K\n",
            "madvise at=r0 len=2M advice=collapse\nmprotect at=r0 len=4M prot=read\n",
            "p1 = fork\np1: read at=r0+2M len=4K\n",
            "mremap at=r0 len=4M new=4M to=r1 flags=maymove,fixed\nread at=r1+2M len=4K\n",
        ],
    );
    format!(
        "{map}\nwrite at=r0 len=4M\nmadvise at=r0+{hit}K len=4K advice=hwpoison\n\
         read at=r0+{hit}K len=4K\nread at=r0+{near}K len=4K\nread at=r0+2M len=4K\n{after}\
         read at=r0+{hit}K len=4K\nunpoison at=r0+{hit}K\n\
         observe at=r0 len=4M what=pagemap,smaps,counters\n"
    )
}

fn soft_offline(rng: &mut ChaCha8Rng) -> String {
    let map = one(
        rng,
        &[
            "mmap at=r0 len=4M page=2M",
            "mmap at=r0 len=4M",
            "f0 = memfd\nftruncate file=f0 len=4M\nmmap at=r0 len=4M share=shared from=f0",
        ],
    );
    let pin = if chance(rng, 40) { "g0 = pin at=r0 len=4K flags=write\n" } else { "" };
    let hit = inner(rng);
    format!(
        "{map}\nwrite at=r0 len=4M\n{pin}madvise at=r0+{hit}K len=4K advice=softoffline\n\
         read at=r0 len=2M\nwrite at=r0+{hit}K len=4K\nread at=r0+2M len=4K\n\
         observe at=r0 len=4M what=pagemap,counters\n"
    )
}

fn node_migration(rng: &mut ChaCha8Rng, profile: &Profile) -> String {
    let (map, step) = match rng.random_range(0..4) {
        0 => ("mmap at=r0 len=4M page=2M", "2M"),
        1 => ("mmap at=r0 len=4M\nmadvise at=r0 len=4M advice=hugepage", "4K"),
        2 => ("mmap at=r0 len=4M", "4K"),
        _ => ("f0 = memfd\nftruncate file=f0 len=4M\nmmap at=r0 len=4M share=shared from=f0", "2M"),
    };
    let far = if profile.nodes > 1 { 1 } else { 0 };
    let mut out = format!("{map}\nwrite at=r0 len=4M\nmove_pages at=r0 len=4M step={step}\n");
    let mut moves = vec![
        format!("move_pages at=r0 len=4M step={step} node={far}\n"),
        format!("mbind at=r0 len=2M mode=bind nodes=n{far} flags=move\n"),
        format!("migrate_pages from=n0 to=n{far}\n"),
        format!("move_pages at=r0+2M len=2M step={step} node=0\n"),
        format!("set_mempolicy mode=preferred nodes=n{far}\n"),
        "p1 = fork\np1: write at=r0 len=4K\n".to_string(),
    ];
    moves.shuffle(rng);
    for line in moves.into_iter().take(rng.random_range(3..=6)) {
        out += &line;
        out += "read at=r0 len=8K\n";
    }
    out + &format!(
        "par {{\n  t0: write at=r0 len=8K\n  t0: read at=r0 len=8K\n  \
         t1: move_pages at=r0 len=2M step={step} node={far}\n}}\n\
         read at=r0 len=4M\nmove_pages at=r0 len=4M step={step}\n\
         observe at=r0 len=4M what=pagemap,numa_maps\n"
    )
}

fn missing_handler(rng: &mut ChaCha8Rng) -> String {
    let map = match rng.random_range(0..4) {
        0 => "mmap at=r0 len=4M page=2M",
        1 => "f0 = memfd\nftruncate file=f0 len=4M\nmmap at=r0 len=4M share=shared from=f0",
        2 => "f0 = memfd page=4K\nftruncate file=f0 len=4M\nmmap at=r0 len=4M share=shared from=f0",
        _ => "mmap at=r0 len=4M",
    };
    let handler = one(rng, &["copy", "zero"]);
    let a = inner(rng);
    let b = inner(rng);
    format!(
        "{map}\nu0 = uffd features=missing_hugetlbfs,missing_shmem,event_remove handler={handler}\n\
         register uffd=u0 at=r0 len=4M modes=missing\nread at=r0+{a}K len=4K\n\
         par {{\n  t0: write at=r0+{a}K len=4K\n  t1: read at=r0+{b}K len=4K\n  \
         t1: read at=r0+2M len=4K\n}}\n\
         madvise at=r0 len=2M advice=dontneed\nread at=r0+{a}K len=4K\n\
         copy uffd=u0 at=r0+2M len=2M\nunregister uffd=u0 at=r0 len=4M\nread at=r0+{b}K len=8K\n\
         observe at=r0 len=4M what=pagemap,smaps\n"
    )
}
