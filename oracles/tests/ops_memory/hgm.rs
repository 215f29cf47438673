//! High-granularity mapping: huge pages mapped by base pages, judged on hand-made observations.

#[path = "generations.rs"]
mod generations;
#[path = "hgm_mutants.rs"]
mod mutants;

use super::*;

const EFAULT: u16 = 14;
const EAGAIN: u16 = 11;
const EEXIST: u16 = 17;
const START: Place = Place::new(0, 0);
const HUGE: u64 = 2 << 20;
const MAPPED: u8 = pm::PRESENT | pm::FILE;
const OWN: u8 = MAPPED | pm::EXCLUSIVE;
/// The ioctls of a MINOR and of a MINOR and WP registration.
const MINOR: i64 = 0x8c;
const MINOR_WP: i64 = 0xcc;

/// A kernel with MADV_SPLIT and the feature.
fn kernel() -> Profile {
    let features = 0x3fff;
    Profile { madv_split: true, hgm_feature: true, uffd_features: features, ..profile(false) }
}

fn judged(lines: Vec<Seen>) -> Option<String> {
    let report = report_on(&kernel(), lines, 0);
    match report.verdict {
        Verdict::Pass => {
            assert_eq!(report.blurred, None, "judged to the end");
            None
        }
        Verdict::Violation(v) => {
            eprintln!("{v:?}");
            Some(v.rule)
        }
        Verdict::Inconclusive(why) => panic!("{why}"),
    }
}

fn passes(lines: Vec<Seen>) {
    assert_eq!(judged(lines), None);
}

fn breaks(rule: &str, lines: Vec<Seen>) {
    assert_eq!(judged(lines).as_deref(), Some(rule));
}

/// A filling ioctl that did all it was asked for.
fn filled(text: &'static str, bytes: i64) -> Seen {
    ok(text).out(Output::Field(bytes))
}

fn refused(text: &'static str, errno: u16) -> Seen {
    err(text, errno).out(Output::Field(-i64::from(errno)))
}

fn cut_short(text: &'static str, bytes: i64) -> Seen {
    err(text, EAGAIN).out(Output::Field(bytes))
}

/// Two mappings of a file of 4 MiB, the first with HGM and registered, the second with content.
fn twice(lines: Vec<Seen>) -> Vec<Seen> {
    let mut all = vec![
        ok("f0 = memfd page=2M"),
        ok("mmap at=r0 len=4M share=shared from=f0"),
        ok("mmap at=r1 len=4M share=shared from=f0"),
        ok("madvise at=r0 len=4M advice=split"),
        ok("u0 = uffd features=minor_hugetlbfs handler=copy"),
        with("register uffd=u0 at=r0 len=4M modes=minor", Status::Ok(MINOR)),
        ok("write at=r1 len=2M"),
    ];
    all.extend(lines);
    all
}

/// One mapping with a cached page and nothing mapped.
fn alone(lines: Vec<Seen>) -> Vec<Seen> {
    let unmaps = vec![ok("munmap at=r1 len=4M")];
    twice(unmaps.into_iter().chain(lines).collect())
}

fn minor(seen: Seen, at: u64, flags: u8) -> Seen {
    let mut seen = seen;
    let place = Spot::In(Place::new(0, at));
    let (uffd, event) = (case::UffdId(0), event::PAGEFAULT);
    seen.obs.events.push(FaultSeen { uffd, event, flags, at: place, to: place, len: 0, answer: 0 });
    seen
}

#[test]
fn split_is_for_shared_huge_pages_as_a_whole() {
    let file = |share: &'static str| vec![ok("f0 = memfd page=2M"), ok(share)];
    let shared = || file("mmap at=r0 len=4M share=shared from=f0");
    let private = || file("mmap at=r0 len=4M share=private from=f0");
    let then = |mut lines: Vec<Seen>, last: Seen| {
        lines.push(last);
        lines
    };
    passes(then(shared(), ok("madvise at=r0 len=2M advice=split")));
    passes(then(shared(), ok("madvise at=r0+4K len=0 advice=split")));
    passes(then(shared(), err("madvise at=r0+4K len=2M advice=split", EINVAL)));
    passes(then(shared(), err("madvise at=r0 len=6M advice=split", ENOMEM)));
    breaks("HG-01", then(shared(), ok("madvise at=r0 len=4K advice=split")));
    breaks("HG-01", then(private(), ok("madvise at=r0 len=4M advice=split")));
    passes(then(private(), err("madvise at=r0 len=4M advice=split", EINVAL)));
    let look =
        |flags: &[[u8; 2]]| ok("observe at=r0 len=2M what=smaps").mapping(START, HUGE, flags, &[]);
    let half = |look: Seen| {
        vec![
            ok("f0 = memfd page=2M"),
            ok("mmap at=r0 len=4M share=shared from=f0"),
            ok("madvise at=r0 len=2M advice=split"),
            look,
        ]
    };
    passes(half(look(&[*b"ht", *b"hm"])));
    breaks("O-040", half(look(&[*b"ht"])));
}

#[test]
fn continue_maps_the_largest_leaves_that_fit() {
    let look = |runs: &[(u32, u8, u32)], frames: &[(&str, u64)]| {
        ok("observe at=r0 len=4M what=pagemap,smaps").pages(0, START, runs).mapping(
            START,
            2 * HUGE,
            &[*b"ht", *b"hm", *b"ui"],
            frames,
        )
    };
    let lines = |look: Seen| {
        alone(vec![
            filled("continue uffd=u0 at=r0+8K len=4K", 4096),
            filled("continue uffd=u0 at=r0+16K len=8K", 8192),
            look,
        ])
    };
    let runs: &[(u32, u8, u32)] =
        &[(2, 0, 0), (1, OWN, 514), (1, 0, 0), (2, OWN, 516), (1018, 0, 0)];
    let sums = |pte: u64| [("Private_Hugetlb", 12), ("HugetlbPteMapped", pte)];
    passes(lines(look(runs, &sums(12))));
    breaks("HG-06", lines(look(runs, &sums(2048))));
    breaks("HG-07", lines(look(runs, &[("Shared_Hugetlb", 12)])));
    breaks("HG-07", lines(look(runs, &[("Private_Hugetlb", 2048)])));
    breaks("HG-03", lines(look(&[(512, OWN, 512), (512, 0, 0)], &sums(12))));
    let whole = |text: &'static str, bytes: i64, levels: [(&str, u64); 3]| {
        alone(vec![
            filled(text, bytes),
            ok("observe at=r0 len=4M what=smaps").mapping(
                START,
                2 * HUGE,
                &[*b"ht", *b"hm", *b"ui"],
                &levels,
            ),
        ])
    };
    let levels = |pmd: u64, pte: u64| {
        let sum = ("Private_Hugetlb", 2048);
        [sum, ("HugetlbPmdMapped", pmd), ("HugetlbPteMapped", pte)]
    };
    passes(whole("continue uffd=u0 at=r0 len=2M", 2 << 20, levels(2048, 0)));
    breaks("HG-06", whole("continue uffd=u0 at=r0 len=2M", 2 << 20, levels(0, 2048)));
}

#[test]
fn continue_stops_at_what_is_in_the_way() {
    let piece = || filled("continue uffd=u0 at=r0+8K len=4K", 4096);
    passes(twice(vec![
        refused("continue uffd=u0 at=r0+2M len=4K", EFAULT),
        piece(),
        refused("continue uffd=u0 at=r0+8K len=4K", EEXIST),
        cut_short("continue uffd=u0 at=r0+4K len=8K", 4096),
        refused("continue uffd=u0 at=r0 len=2M", EEXIST),
        err("continue uffd=u0 at=r0 len=2K", EINVAL).out(Output::Field(FIELD_UNTOUCHED)),
        refused("copy uffd=u0 at=r0 len=4K", EINVAL),
        cut_short("continue uffd=u0 at=r0+12K len=2040K", 2036 << 10),
    ]));
    breaks("HG-02", twice(vec![piece(), filled("continue uffd=u0 at=r0 len=2M", 2 << 20)]));
    breaks("HG-02", twice(vec![piece(), filled("continue uffd=u0 at=r0+8K len=4K", 4096)]));
    let under = |last: Seen| twice(vec![filled("continue uffd=u0 at=r0 len=2M", 2 << 20), last]);
    passes(under(refused("continue uffd=u0 at=r0+8K len=4K", EEXIST)));
    breaks("HG-02", under(filled("continue uffd=u0 at=r0+8K len=4K", 4096)));
    breaks("HG-02", twice(vec![refused("continue uffd=u0 at=r0+2M len=4K", EEXIST)]));
}

#[test]
fn a_call_that_fails_leaves_no_table() {
    let lines = |pmd: u64, pte: u64, kb: u64| {
        vec![
            ok("f0 = memfd page=2M"),
            ok("mmap at=r0 len=2M share=shared from=f0"),
            ok("madvise at=r0 len=2M advice=split"),
            ok("u0 = uffd features=minor_hugetlbfs handler=copy"),
            with("register uffd=u0 at=r0 len=2M modes=minor", Status::Ok(MINOR)),
            refused("continue uffd=u0 at=r0+4K len=4K", EFAULT),
            ok("write at=r0+64K len=4K"),
            ok("observe at=r0 len=2M what=smaps").mapping(
                START,
                HUGE,
                &[*b"ht", *b"hm", *b"ui"],
                &[("Private_Hugetlb", kb), ("HugetlbPmdMapped", pmd), ("HugetlbPteMapped", pte)],
            ),
        ]
    };
    passes(lines(2048, 0, 2048));
    breaks("HG-07", lines(0, 4, 4));
    breaks("HG-06", lines(0, 2048, 2048));
}

#[test]
fn empty_tables_stay_until_a_collapse() {
    let lines = |look: Seen, then: Vec<Seen>| {
        let mut all = alone(vec![
            filled("continue uffd=u0 at=r0+8K len=4K", 4096),
            ok("madvise at=r0 len=2M advice=dontneed"),
            refused("continue uffd=u0 at=r0 len=2M", EEXIST),
            ok("unregister uffd=u0 at=r0 len=4M"),
            ok("read at=r0+16K len=4K").reads(&[tag(7, 4)]),
            look,
        ]);
        all.extend(then);
        all
    };
    let one =
        || ok("observe at=r0 len=2M").pages(0, START, &[(4, 0, 0), (1, OWN, 516), (507, 0, 0)]);
    let whole = |text| ok(text).pages(0, START, &[(512, OWN, 512)]);
    passes(lines(one(), vec![whole("madvise at=r0 len=2M advice=collapse")]));
    breaks("HG-03", lines(whole("observe at=r0 len=2M"), Vec::new()));
}

#[test]
fn events_carry_the_address_of_the_base_page() {
    let read = |at: u64| minor(ok("read at=r0+64K len=4K").reads(&[tag(7, 16)]), at, MINOR_EVENT);
    const MINOR_EVENT: u8 = event::FLAG_MINOR;
    passes(twice(vec![read(64 << 10)]));
    breaks("HG-04", twice(vec![read(0)]));
    // Where a piece is mapped already the handler resolves just the base page.
    let lines = |runs: &[(u32, u8, u32)]| {
        alone(vec![
            filled("continue uffd=u0 at=r0+8K len=4K", 4096),
            read(64 << 10),
            ok("observe at=r0 len=2M").pages(0, START, runs),
        ])
    };
    passes(lines(&[(2, 0, 0), (1, OWN, 514), (13, 0, 0), (1, OWN, 528), (495, 0, 0)]));
    breaks("HG-03", lines(&[(2, 0, 0), (510, OWN, 514)]));
}

#[test]
fn each_base_page_is_counted_by_itself() {
    let look = |first: u8, count: u32| {
        let run = |pages: u32, bits: u8, frame: u32, count: u32| PageRun {
            pages,
            bits,
            frame,
            kpage: Some(KPage { flags: 1 << 17, count }),
        };
        let mut seen = ok("observe at=r1 len=2M what=pagemap,kpage");
        let runs = vec![run(2, first, 512, 1), run(1, first, 514, count), run(509, first, 515, 1)];
        let at = Place::new(1, 0);
        seen.obs.views.push(View::Pages { proc: case::ProcId(0), at, runs });
        seen
    };
    let lines = |look: Seen| twice(vec![filled("continue uffd=u0 at=r0+8K len=4K", 4096), look]);
    passes(lines(look(OWN, 2)));
    breaks("HG-07", lines(look(OWN, 1)));
    breaks("HG-07", lines(look(MAPPED, 2)));
}

#[test]
fn collapse_fills_holes_and_stops_at_a_larger_leaf() {
    let piece = || filled("continue uffd=u0 at=r0+8K len=4K", 4096);
    let lines = |last: Seen| alone(vec![piece(), last]);
    let part = "madvise at=r0 len=4K advice=collapse";
    passes(lines(ok(part).pages(0, START, &[(2, 0, 0), (1, OWN, 514), (509, 0, 0)])));
    let all = "madvise at=r0 len=4M advice=collapse";
    passes(lines(ok(all).pages(0, START, &[(512, OWN, 512), (512, 0, 0)])));
    breaks("HG-03", lines(ok(all).pages(0, START, &[(2, 0, 0), (1, OWN, 514), (509, 0, 0)])));
    breaks("HG-05", lines(err(all, EINVAL)));
    let whole = |last: Seen| alone(vec![filled("continue uffd=u0 at=r0 len=2M", 2 << 20), last]);
    passes(whole(err(part, EEXIST)));
    breaks("HG-05", whole(ok(part)));
    passes(whole(ok("madvise at=r0+2M len=4K advice=collapse")));
    let without = |last: Seen| {
        vec![ok("f0 = memfd page=2M"), ok("mmap at=r0 len=4M share=shared from=f0"), last]
    };
    passes(without(ok(all)));
    breaks("HG-05", without(err(all, EINVAL)));
}

#[test]
fn a_marker_goes_down_into_the_table_and_leaves_with_a_continue() {
    let lines = |last: Seen| {
        vec![
            ok("f0 = memfd page=2M"),
            ok("mmap at=r0 len=2M share=shared from=f0"),
            ok("write at=r0 len=2M"),
            ok("madvise at=r0 len=2M advice=dontneed"),
            ok("madvise at=r0 len=2M advice=split"),
            ok("u0 = uffd features=pagefault_flag_wp,wp_hugetlbfs_shmem handler=copy"),
            with("register uffd=u0 at=r0 len=2M modes=minor,wp", Status::Ok(MINOR_WP)),
            ok("writeprotect uffd=u0 at=r0 len=2M"),
            filled("continue uffd=u0 at=r0+8K len=4K", 4096),
            last,
        ]
    };
    let look = |before: u8, at: u8| {
        let after = pm::UFFD_WP;
        ok("observe at=r0 len=2M").pages(0, START, &[(2, before, 0), (1, at, 514), (509, after, 0)])
    };
    passes(lines(look(pm::UFFD_WP, OWN)));
    breaks("HG-03", lines(look(0, OWN)));
    breaks("HG-03", lines(look(pm::UFFD_WP, OWN | pm::UFFD_WP)));
    let collapse = |bits: u8| {
        lines(ok("madvise at=r0 len=2M advice=collapse").pages(0, START, &[(512, bits, 512)]))
    };
    passes(collapse(OWN));
    breaks("O-006", collapse(OWN | pm::UFFD_WP));
}

#[test]
fn a_move_keeps_pieces_and_a_fork_makes_none() {
    let runs = [(2, 0, 0), (1, OWN, 514), (509, 0, 0)];
    let moved = |to: &[(u32, u8, u32)]| {
        alone(vec![
            filled("continue uffd=u0 at=r0+8K len=4K", 4096),
            ok("unregister uffd=u0 at=r0 len=4M"),
            ok("mremap at=r0 len=2M new=2M to=r2 flags=maymove,fixed").pages(
                0,
                Place::new(2, 0),
                to,
            ),
            ok("read at=r2+16K len=4K").reads(&[tag(7, 4)]).pages(
                0,
                Place::new(2, 0),
                &[(2, 0, 0), (1, OWN, 514), (1, 0, 0), (1, OWN, 516), (507, 0, 0)],
            ),
        ])
    };
    passes(moved(&runs));
    breaks("HG-03", moved(&[(512, OWN, 512)]));
    let forked = |child: &[(u32, u8, u32)]| {
        alone(vec![
            filled("continue uffd=u0 at=r0+8K len=4K", 4096),
            ok("p1 = fork"),
            ok("p1: read at=r0+16K len=4K").reads(&[tag(7, 4)]).pages(1, START, child),
        ])
    };
    passes(forked(&[(512, OWN, 512)]));
    breaks("HG-03", forked(&[(4, 0, 0), (1, OWN, 516), (507, 0, 0)]));
}

#[test]
fn the_feature_wants_exact_addresses_and_shared_pages() {
    let lines = |share: &'static str, last: Seen| {
        vec![
            ok("f0 = memfd page=2M"),
            ok(share),
            ok("u0 = uffd features=wp_unpopulated,exact_address"),
            last,
        ]
    };
    let (shared, private) =
        ("mmap at=r0 len=2M share=shared from=f0", "mmap at=r0 len=2M share=private from=f0");
    let register = "register uffd=u0 at=r0 len=2M modes=minor";
    let look =
        |flags: &[[u8; 2]]| with(register, Status::Ok(MINOR)).mapping(START, HUGE, flags, &[]);
    passes(lines(shared, look(&[*b"ht", *b"ui", *b"hm"])));
    breaks("O-040", lines(shared, look(&[*b"ht", *b"ui"])));
    passes(lines(private, err(register, EINVAL)));
    breaks("HG-08", lines(private, with(register, Status::Ok(MINOR))));
    passes(vec![err("u0 = uffd features=wp_unpopulated", EINVAL)]);
    breaks("HG-08", vec![ok("u0 = uffd features=wp_unpopulated")]);
}

#[test]
fn the_process_counts_bytes_of_leaves() {
    let lines = |kb: u64| {
        let mut look = ok("observe at=r0 len=2M what=status");
        let kb = vec![("HugetlbPages".to_owned(), kb)];
        look.obs.views.push(View::Status { proc: case::ProcId(0), kb });
        alone(vec![filled("continue uffd=u0 at=r0+8K len=64K", 64 << 10), look])
    };
    passes(lines(64));
    breaks("HG-09", lines(2048));
    breaks("HG-09", lines(0));
}

/// The id under which HGM as it was posted has a deviation listed; the kernel of this project must
/// have none.
fn posted(lines: impl Fn() -> Vec<Seen>) -> Option<String> {
    let known = Known::builtin();
    let posted = Profile { uffd_features: 0x1fff, hgm_feature: false, ..kernel() };
    let own = report_with(&kernel(), &known, lines(), 0);
    assert!(matches!(own.verdict, Verdict::Violation(_)), "listed for the own series");
    report_with(&posted, &known, lines(), 0).known.pop().map(|(_, id)| id)
}

#[test]
fn defects_of_posted_kernels_are_known_by_their_number() {
    let piece = || filled("continue uffd=u0 at=r0+8K len=4K", 4096);
    let status = |kb: u64| {
        let mut look = ok("observe at=r0 len=2M what=status");
        let kb = vec![("HugetlbPages".to_owned(), kb)];
        look.obs.views.push(View::Status { proc: case::ProcId(0), kb });
        look
    };
    let collapsed =
        || alone(vec![piece(), ok("madvise at=r0 len=2M advice=collapse"), status(u64::MAX >> 12)]);
    assert_eq!(posted(collapsed).as_deref(), Some("U-02"));
    let whole = || filled("continue uffd=u0 at=r0 len=2M", 2 << 20);
    let stopped = || alone(vec![whole(), ok("madvise at=r0 len=4K advice=collapse")]);
    assert_eq!(posted(stopped).as_deref(), Some("U-03"));
    let forked = || vec![ok("mmap at=r0 len=2M page=2M"), err("p1 = fork", ENOMEM)];
    assert_eq!(posted(forked).as_deref(), Some("U-04"));
    let table = || {
        vec![
            ok("f0 = memfd page=2M"),
            ok("mmap at=r0 len=2M share=shared from=f0"),
            ok("madvise at=r0 len=2M advice=split"),
            ok("u0 = uffd features=minor_hugetlbfs handler=copy"),
            with("register uffd=u0 at=r0 len=2M modes=minor", Status::Ok(MINOR)),
            refused("continue uffd=u0 at=r0+4K len=4K", EFAULT),
            ok("write at=r0+8K len=4K").pages(0, START, &[(2, 0, 0), (1, OWN, 514), (509, 0, 0)]),
        ]
    };
    assert_eq!(posted(table).as_deref(), Some("U-10"));
    let event = || {
        vec![
            ok("f0 = memfd page=2M"),
            ok("mmap at=r0 len=2M share=shared from=f0"),
            ok("madvise at=r0 len=2M advice=split"),
            ok("u0 = uffd features=missing_hugetlbfs handler=zero"),
            with("register uffd=u0 at=r0 len=2M modes=missing", Status::Ok(0xc)),
            minor(ok("read at=r0+64K len=4K").reads(&[Word::Zero]), 0, 0),
        ]
    };
    assert_eq!(posted(event).as_deref(), Some("U-18"));
}
