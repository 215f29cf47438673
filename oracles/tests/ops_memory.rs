//! Files, mappings and advice: hand-made observations that must pass or break exactly one rule.
//! What real kernels do is proved elsewhere; here stand the rules a kernel may get wrong.

#[path = "ops_memory/hgm.rs"]
mod hgm;
#[path = "ops_memory/order.rs"]
mod order;
#[path = "ops_memory/poison.rs"]
mod poison;
#[path = "ops_memory/sharing.rs"]
mod sharing;
#[path = "ops_memory/sums.rs"]
mod sums;

use case::observation::*;
use case::{Place, Profile, Program, UffdFeatures, Verdict};
use oracles::judge::{Report, judge_mutant};
use oracles::known::Known;
use oracles::mutants::Mutant;

/// One line of a program with what it gave.
struct Seen {
    text: &'static str,
    obs: LineObs,
}

fn with(text: &'static str, status: Status) -> Seen {
    let obs = LineObs {
        status,
        out: Output::Nothing,
        also: None,
        events: Vec::new(),
        views: Vec::new(),
        pools: None,
    };
    Seen { text, obs }
}

fn ok(text: &'static str) -> Seen {
    with(text, Status::Ok(0))
}

fn err(text: &'static str, errno: u16) -> Seen {
    with(text, Status::Err(errno))
}

impl Seen {
    fn free_rsvd(mut self, free: i64, rsvd: i64) -> Self {
        let big = Pool { total: 1, free: 1, rsvd: 0, surp: 0 };
        self.obs.pools = Some([Pool { total: 8, free, rsvd, surp: 0 }, big]);
        self
    }
    fn out(mut self, out: Output) -> Self {
        self.obs.out = out;
        self
    }
    fn reads(self, words: &[Word]) -> Self {
        let runs = words.iter().map(|w| ContentRun { pages: 1, head: *w, tail: *w });
        self.out(Output::Content(runs.collect()))
    }
    /// A look at page tables: runs of pages with the same bits.
    fn pages(mut self, proc: u8, at: Place, runs: &[(u32, u8, u32)]) -> Self {
        let one = |(pages, bits, frame): &(u32, u8, u32)| PageRun {
            pages: *pages,
            bits: *bits,
            frame: *frame,
            kpage: None,
        };
        let runs = runs.iter().map(one).collect();
        self.obs.views.push(View::Pages { proc: case::ProcId(proc), at, runs });
        self
    }
    /// A look at one mapping: its VmFlags and counters.
    fn mapping(mut self, at: Place, len: u64, flags: &[[u8; 2]], kb: &[(&str, u64)]) -> Self {
        let kb = kb.iter().map(|(label, n)| ((*label).to_owned(), *n)).collect();
        let vma = VmaObs { at, len, perms: 0xb, flags: flags.to_vec(), kb, off: 0, numa: None };
        self.obs.views.push(View::Vmas { proc: case::ProcId(0), at, len, vmas: vec![vma] });
        self
    }
    fn remapped(mut self, at: Place, to: Spot, len: u64) -> Self {
        let (uffd, event) = (case::UffdId(0), event::REMAP);
        let at = Spot::In(at);
        self.obs.events.push(FaultSeen { uffd, event, flags: 0, at, to, len, answer: 0 });
        self
    }
    fn event(mut self, code: u8, at: Place, len: u64) -> Self {
        let at = Spot::In(at);
        let uffd = case::UffdId(0);
        let event = FaultSeen { uffd, event: code, flags: 0, at, to: at, len, answer: 0 };
        self.obs.events.push(event);
        self
    }
}

fn tag(serial: u32, page: u32) -> Word {
    Word::Tag(case::Tag { serial, page })
}

fn counters() -> Counters {
    Counters {
        pool_2m: Pool { total: 8, free: 8, rsvd: 0, surp: 0 },
        pool_1g: Pool { total: 1, free: 1, rsvd: 0, surp: 0 },
        nodes_2m: Vec::new(),
        hwcorrupted_kb: 0,
    }
}

fn profile(new: bool) -> Profile {
    let bits = UffdFeatures::POISON.0 | UffdFeatures::MOVE.0;
    Profile {
        uffd_features: if new { 0x1ffff | u64::from(bits) } else { 0x1fff },
        huge_2m: true,
        huge_1g: true,
        thp: true,
        collapse: true,
        unpoison: true,
        nodes: 1,
        thp_enabled: "never".into(),
        thp_shmem: "never".into(),
        ..Profile::default()
    }
}

/// What the judge says; `poisoned` pages stay counted at the end.
fn report(new: bool, lines: Vec<Seen>, poisoned: i64) -> Report {
    report_on(&profile(new), lines, poisoned)
}

fn report_on(profile: &Profile, lines: Vec<Seen>, poisoned: i64) -> Report {
    report_with(profile, &Known::default(), lines, poisoned)
}

fn report_with(profile: &Profile, known: &Known, lines: Vec<Seen>, poisoned: i64) -> Report {
    report_of(Mutant::None, profile, known, lines, poisoned)
}

fn report_of(
    mutant: Mutant,
    profile: &Profile,
    known: &Known,
    lines: Vec<Seen>,
    poisoned: i64,
) -> Report {
    let text: String = lines.iter().map(|l| format!("{}\n", l.text)).collect();
    let program: Program = case::text::parse(&format!("hgm 1\n{text}")).expect("a program");
    let mut after = counters();
    after.hwcorrupted_kb = poisoned * 4;
    let obs = Observation {
        before: counters(),
        lines: lines.into_iter().map(|l| l.obs).collect(),
        end: Vec::new(),
        after,
        fresh: true,
        nanos: 0,
    };
    judge_mutant(&program, &obs, profile, known, mutant)
}

/// The rule the observation breaks, if any.
fn verdict(new: bool, lines: Vec<Seen>, poisoned: i64) -> Option<String> {
    let report = report(new, lines, poisoned);
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
    assert_eq!(verdict(true, lines, 0), None);
}

fn breaks(rule: &str, lines: Vec<Seen>) {
    assert_eq!(verdict(true, lines, 0).as_deref(), Some(rule));
}

const EPERM: u16 = 1;
const ENOMEM: u16 = 12;
const EACCES: u16 = 13;
const EBUSY: u16 = 16;
const EINVAL: u16 = 22;
const ENOSPC: u16 = 28;

#[test]
fn shared_mappings_reserve_once() {
    let lines = |second: i64| {
        vec![
            ok("f0 = memfd page=2M"),
            ok("mmap at=r0 len=4M share=shared from=f0").free_rsvd(8, 2),
            ok("mmap at=r1 len=6M share=shared from=f0").free_rsvd(8, second),
            ok("write at=r0 len=4K").free_rsvd(7, second - 1),
            ok("munmap at=r0 len=4M").free_rsvd(7, second - 1),
        ]
    };
    passes(lines(3));
    breaks("X-02", lines(5));
}

#[test]
fn private_mappings_reserve_all_and_give_back() {
    passes(vec![
        ok("mmap at=r0 len=4M page=2M").free_rsvd(8, 2),
        ok("write at=r0 len=4K").free_rsvd(7, 1),
        ok("munmap at=r0 len=2M").free_rsvd(8, 1),
        ok("munmap at=r0+2M len=2M").free_rsvd(8, 0),
    ]);
    passes(vec![ok("mmap at=r0 len=4M page=2M flags=noreserve").free_rsvd(8, 0)]);
    breaks("H-053", vec![ok("mmap at=r0 len=18M page=2M")]);
    passes(vec![err("mmap at=r0 len=18M page=2M", ENOMEM)]);
}

#[test]
fn dontneed_gives_the_reservation_back() {
    let lines = |rsvd: i64| {
        vec![
            ok("mmap at=r0 len=2M page=2M").free_rsvd(8, 1),
            ok("write at=r0 len=4K").free_rsvd(7, 0),
            ok("madvise at=r0 len=2M advice=dontneed").free_rsvd(8, rsvd),
        ]
    };
    passes(lines(1));
    breaks("X-02", lines(0));
}

#[test]
fn dontneed_rounds_huge_ranges_down() {
    passes(vec![
        ok("mmap at=r0 len=4M page=2M"),
        ok("write at=r0 len=4K"),
        ok("madvise at=r0 len=4K advice=dontneed").free_rsvd(7, 1),
        err("madvise at=r0+4K len=2M advice=dontneed", EINVAL),
        ok("read at=r0 len=4K").reads(&[tag(2, 0)]),
    ]);
}

#[test]
fn half_huge_pages_cannot_be_unmapped_or_protected() {
    passes(vec![
        ok("mmap at=r0 len=4M page=2M"),
        err("munmap at=r0 len=4K", EINVAL),
        err("mprotect at=r0+4K len=2M prot=read", EINVAL),
        ok("mprotect at=r0 len=4K prot=read,write"),
        err("madvise at=r0 len=4K advice=dontfork", EINVAL),
        ok("madvise at=r0 len=4K advice=dofork"),
        err("mremap at=r0 len=4M new=6M flags=maymove", EINVAL),
    ]);
    breaks("H-080", vec![ok("mmap at=r0 len=4M page=2M"), ok("munmap at=r0 len=4K")]);
}

#[test]
fn holes_stop_mprotect_and_only_fail_madvise() {
    passes(vec![
        ok("mmap at=r0 len=4K"),
        ok("mmap at=r0+8K len=4K"),
        ok("write at=r0 len=4K"),
        ok("write at=r0+8K len=4K"),
        err("madvise at=r0 len=12K advice=dontneed", ENOMEM),
        ok("read at=r0+8K len=4K").reads(&[Word::Zero]),
        err("mprotect at=r0 len=12K prot=read", ENOMEM),
        with(
            "write at=r0 len=4K",
            Status::Signal(SignalSeen {
                signo: 11,
                code: 2,
                at: Spot::In(Place::new(0, 0)),
                lsb: 0,
            }),
        ),
        ok("write at=r0+8K len=4K"),
    ]);
}

#[test]
fn fallocate_beyond_the_pool_keeps_its_prefix() {
    let stat = |size: u64, pages: u64| Output::Stat { size, blocks: pages * 4096 };
    passes(vec![
        ok("f0 = memfd page=2M"),
        err("fallocate file=f0 len=20M", ENOSPC).free_rsvd(0, 0),
        ok("fstat file=f0").out(stat(0, 8)),
        ok("ftruncate file=f0 len=0").free_rsvd(8, 0),
        ok("fallocate file=f0 len=3M").free_rsvd(6, 0),
        ok("fstat file=f0").out(stat(3 << 20, 2)),
        err("ftruncate file=f0 len=1M", EINVAL),
        err("pwrite file=f0 len=4K", EINVAL),
    ]);
    breaks(
        "H-007",
        vec![
            ok("f0 = memfd page=2M"),
            ok("fallocate file=f0 len=3M"),
            ok("fstat file=f0").out(stat(4 << 20, 2)),
        ],
    );
}

#[test]
fn holes_zero_bytes_at_both_ends() {
    let lines = |tail: Word| {
        vec![
            ok("f0 = memfd page=4K"),
            with("pwrite file=f0 len=12K", Status::Ok(12288)),
            ok("punch file=f0 off=4088 len=4104"),
            with("pread file=f0 len=12K", Status::Ok(12288)).out(Output::Content(vec![
                ContentRun { pages: 1, head: tag(2, 0), tail: Word::Zero },
                ContentRun { pages: 1, head: Word::Zero, tail: Word::Zero },
                ContentRun { pages: 1, head: tail, tail: tag(2, 2) },
            ])),
        ]
    };
    passes(lines(tag(2, 2)));
    breaks("X-03", lines(Word::Zero));
    passes(vec![
        ok("f0 = memfd page=4K"),
        with("pwrite file=f0 len=8K", Status::Ok(8192)),
        ok("punch file=f0 off=4K len=4"),
        with("pread file=f0 off=4K len=4K", Status::Ok(4096))
            .out(Output::Content(vec![ContentRun { pages: 1, head: tag(2, 0), tail: tag(2, 1) }])),
    ]);
}

#[test]
fn seals_bar_what_they_name() {
    passes(vec![
        ok("f0 = memfd page=4K flags=sealing"),
        ok("ftruncate file=f0 len=8K"),
        ok("seal file=f0 seals=grow"),
        err("ftruncate file=f0 len=12K", EPERM),
        err("fallocate file=f0 len=12K flags=keep_size", EPERM),
        with("pwrite file=f0 off=4K len=8K", Status::Ok(4096)),
        ok("mmap at=r0 len=8K share=shared from=f0"),
        err("seal file=f0 seals=write", EBUSY),
        ok("munmap at=r0 len=8K"),
        ok("seal file=f0 seals=write"),
        err("mmap at=r0 len=8K share=shared from=f0", EPERM),
        ok("mmap at=r0 len=8K share=shared from=f0 prot=read"),
        err("mprotect at=r0 len=8K prot=read,write", EACCES),
        ok("seal file=f0 seals=seal"),
        err("seal file=f0 seals=shrink", EPERM),
    ]);
    passes(vec![ok("f0 = memfd page=2M"), err("seal file=f0 seals=grow", EPERM)]);
}

#[test]
fn advice_is_refused_where_it_makes_no_sense() {
    passes(vec![
        ok("mmap at=r0 len=2M page=2M"),
        err("madvise at=r0 len=2M advice=free", EINVAL),
        err("madvise at=r0 len=2M advice=cold", EINVAL),
        err("madvise at=r0 len=2M advice=pageout", EINVAL),
        err("madvise at=r0 len=2M advice=collapse", EINVAL),
        err("madvise at=r0 len=2M advice=wipeonfork", EINVAL),
        err("madvise at=r0 len=2M advice=remove", EACCES),
        ok("madvise at=r0 len=2M advice=hugepage"),
        ok("madvise at=r0 len=2M advice=mergeable"),
        err("madvise at=r0 len=2M advice=unknown", EINVAL),
        ok("mmap at=r1 len=4K"),
        err("madvise at=r1 len=4K advice=remove", EINVAL),
        ok("mlock at=r1 len=4K"),
        err("madvise at=r1 len=4K advice=dontneed", EINVAL),
        ok("madvise at=r1 len=4K advice=dontneed_locked"),
        ok("madvise at=r1 len=0 advice=dontneed"),
    ]);
    breaks(
        "A-027",
        vec![ok("mmap at=r0 len=4K share=shared"), ok("madvise at=r0 len=4K advice=wipeonfork")],
    );
}

#[test]
fn moved_mappings_keep_their_pages() {
    let lines = |word: Word| {
        vec![
            ok("mmap at=r0 len=8K"),
            ok("write at=r0 len=8K"),
            ok("mremap at=r0 len=8K new=8K to=r1 flags=maymove,fixed"),
            ok("read at=r1 len=8K").reads(&[tag(2, 0), word]),
            err("mremap at=r1 len=12K new=4K to=r2 flags=maymove,fixed", 14),
        ]
    };
    passes(lines(tag(2, 1)).into_iter().take(4).collect());
    breaks("X-03", lines(Word::Zero));
    passes(vec![
        ok("mmap at=r0 len=4M page=2M").free_rsvd(8, 2),
        ok("write at=r0 len=4K").free_rsvd(7, 1),
        ok("mremap at=r0 len=4M new=4M to=r1 flags=maymove,fixed").free_rsvd(7, 1),
        ok("write at=r1+2M len=4K").free_rsvd(6, 0),
        ok("munmap at=r1 len=4M").free_rsvd(8, 0),
    ]);
}

#[test]
fn a_write_sealed_area_grows_in_place_only_with_room() {
    passes(vec![
        ok("mmap at=r0 len=4K"),
        ok("mremap at=r0 len=4K new=8K"),
        ok("mmap at=r0+8K len=4K prot=read"),
        err("mremap at=r0 len=8K new=12K", ENOMEM),
        err("mremap at=r0 len=0 new=4K flags=maymove", EINVAL),
    ]);
}

#[test]
fn events_of_changes_come_exactly_once() {
    let uffd = || ok("u0 = uffd features=event_unmap,event_remove handler=copy");
    let lines = |unmap: Seen| {
        vec![
            uffd(),
            ok("mmap at=r0 len=8K"),
            with("register uffd=u0 at=r0 len=8K modes=missing", Status::Ok(0x13c)),
            ok("madvise at=r0 len=4K advice=dontneed").event(event::REMOVE, Place::new(0, 0), 4096),
            unmap,
        ]
    };
    passes(lines(ok("munmap at=r0 len=8K").event(event::UNMAP, Place::new(0, 0), 8192)));
    breaks("U-062", lines(ok("munmap at=r0 len=8K")));
}

#[test]
fn collapse_needs_a_written_page_in_each_block() {
    passes(vec![
        ok("mmap at=r0 len=4M"),
        ok("write at=r0 len=4K"),
        ok("madvise at=r0 len=2M advice=collapse"),
        ok("read at=r0 len=4K").reads(&[tag(2, 0)]),
        err("madvise at=r0+2M len=2M advice=collapse", EINVAL),
    ]);
    breaks("A-003", vec![ok("mmap at=r0 len=2M"), ok("madvise at=r0 len=2M advice=collapse")]);
    breaks(
        "A-003",
        vec![
            ok("mmap at=r0 len=2M"),
            ok("write at=r0 len=4K"),
            err("madvise at=r0 len=2M advice=collapse", EINVAL),
        ],
    );
}

fn poisoned(text: &'static str, told: bool) -> Seen {
    let mut seen = ok(text);
    let at = Spot::In(Place::new(0, 0));
    seen.obs.also = told.then_some(SignalSeen { signo: 7, code: 4, at, lsb: 12 });
    seen
}

#[test]
fn populate_stops_where_a_page_cannot_be_had() {
    passes(vec![
        ok("f0 = memfd page=4K"),
        ok("ftruncate file=f0 len=4K"),
        ok("mmap at=r0 len=8K share=shared from=f0"),
        err("madvise at=r0 len=8K advice=populate_write", 14),
        err("mlock at=r0 len=8K", ENOMEM),
        ok("mprotect at=r0 len=8K prot=read"),
        err("madvise at=r0 len=4K advice=populate_write", EINVAL),
        ok("mmap at=r1 len=16M page=2M").free_rsvd(8, 8),
        ok("mmap at=r2 len=2M page=2M flags=noreserve,populate").free_rsvd(8, 8),
        err("madvise at=r2 len=2M advice=populate_read", 14),
        err("mlock at=r2 len=2M", ENOMEM),
        ok("mlock at=r1 len=2M").free_rsvd(7, 7),
    ]);
}

const FILE_PAGE: u8 = pm::PRESENT | pm::FILE;

#[test]
fn a_huge_shmem_page_may_reach_across_the_end() {
    let bus =
        |at: Place| Status::Signal(SignalSeen { signo: 7, code: 2, at: Spot::In(at), lsb: 0 });
    let lines = |collapse: bool, stop: Place| {
        let mut lines = vec![
            ok("f0 = memfd page=4K"),
            ok("ftruncate file=f0 len=4M"),
            ok("mmap at=r0 len=4M share=shared from=f0"),
            ok("write at=r0 len=4K"),
            ok("ftruncate file=f0 len=8"),
        ];
        if collapse {
            lines.push(ok("madvise at=r0 len=2M advice=collapse"));
        }
        lines.push(with("write at=r0+1M len=2M", bus(stop)));
        lines
    };
    passes(lines(true, Place::new(0, 1 << 20)));
    passes(lines(true, Place::new(0, 2 << 20)));
    breaks("H-076", lines(true, Place::new(0, 3 << 19)));
    passes(lines(false, Place::new(0, 1 << 20)));
    breaks("H-076", lines(false, Place::new(0, 2 << 20)));
}

#[test]
fn a_hugetlb_file_keeps_no_page_beyond_its_new_size() {
    let lines = |free: i64| {
        vec![
            ok("f0 = memfd page=2M"),
            ok("fallocate file=f0 len=8M flags=keep_size").free_rsvd(4, 0),
            ok("ftruncate file=f0 len=4M").free_rsvd(free, 0),
        ]
    };
    passes(lines(6));
    breaks("X-02", lines(4));
}

#[test]
fn fork_copies_what_a_minor_fault_was_answered_with() {
    let minor = |mut seen: Seen| {
        let (uffd, at) = (case::UffdId(0), Spot::In(Place::new(0, 0)));
        let (event, flags) = (event::PAGEFAULT, event::FLAG_MINOR);
        seen.obs.events.push(FaultSeen { uffd, event, flags, at, to: at, len: 0, answer: 0 });
        seen
    };
    let lines = |childs: &[(u32, u8, u32)]| {
        vec![
            ok("f0 = memfd page=2M"),
            ok("fallocate file=f0 len=2M").free_rsvd(7, 0),
            ok("mmap at=r0 len=2M from=f0").free_rsvd(7, 1),
            ok("u0 = uffd features=minor_hugetlbfs handler=copy"),
            with("register uffd=u0 at=r0 len=2M modes=minor", Status::Ok(0x18c)),
            minor(ok("read at=r0 len=4K").reads(&[Word::Zero])),
            ok("p1 = fork").pages(1, Place::new(0, 0), childs),
        ]
    };
    passes(lines(&[(512, FILE_PAGE, 512)]));
    breaks("O-006", lines(&[(512, 0, 0)]));
}

#[test]
fn one_remove_event_may_tell_of_neighbours_that_merged() {
    let lines = |advice: &'static str, events: &[(u64, u64)]| {
        let mut gone = ok("madvise at=r0 len=4M advice=dontneed");
        for (off, len) in events {
            gone = gone.event(event::REMOVE, Place::new(0, *off), *len);
        }
        vec![
            ok("u0 = uffd features=event_remove handler=copy"),
            ok("mmap at=r0 len=4M"),
            with("register uffd=u0 at=r0 len=4M modes=missing", Status::Ok(0x13c)),
            ok("madvise at=r0+2M len=2M advice=hugepage"),
            ok(advice),
            gone,
        ]
    };
    let (same, other) = ("madvise at=r0 len=4M advice=hugepage", "madvise at=r1 len=0 advice=cold");
    const M2: u64 = 2 << 20;
    passes(lines(same, &[(0, 2 * M2)]));
    passes(lines(same, &[(0, M2), (M2, M2)]));
    passes(lines(other, &[(0, M2), (M2, M2)]));
    breaks("U-062", lines(other, &[(0, 2 * M2)]));
    breaks("U-062", lines(same, &[(0, M2)]));
}

#[test]
fn a_default_policy_divides_a_mapping_that_had_another() {
    let lines = |first: &'static str, last: u16| {
        vec![
            ok("mmap at=r0 len=4M"),
            ok(first),
            ok("mbind at=r0 len=2M mode=default"),
            ok("u0 = uffd features=missing_shmem handler=copy"),
            with("register uffd=u0 at=r0 len=4M modes=missing", Status::Ok(0x13c)),
            err("continue uffd=u0 at=r0 len=4M", last),
        ]
    };
    let own = "mbind at=r0 len=4M mode=interleave nodes=n0";
    passes(lines(own, 2));
    passes(lines("mbind at=r0 len=4M mode=default", EINVAL));
    breaks("U-038", lines("mbind at=r0 len=4M mode=default", 2));
}

#[test]
fn a_policy_is_what_the_kernel_makes_of_it() {
    let lines = |first: &'static str, second: &'static str, last: u16| {
        vec![
            ok("mmap at=r0 len=4M"),
            ok(first),
            ok(second),
            ok("u0 = uffd features=missing_shmem handler=copy"),
            with("register uffd=u0 at=r0 len=4M modes=missing", Status::Ok(0x13c)),
            err("continue uffd=u0 at=r0 len=4M", last),
        ]
    };
    let first = "mbind at=r0 len=4M mode=preferred nodes=n0,n9";
    passes(lines(first, "mbind at=r0 len=2M mode=preferred nodes=n0", EINVAL));
    breaks("U-038", lines(first, "mbind at=r0 len=2M mode=preferred nodes=n0", 2));
    passes(lines(first, "mbind at=r0 len=2M mode=interleave nodes=n0", 2));
    let nowhere = "mbind at=r0 len=4M mode=preferred";
    passes(lines(nowhere, "mbind at=r0 len=2M mode=local", EINVAL));
    passes(lines(nowhere, "mbind at=r0 len=2M mode=preferred nodes=n0", 2));
}

#[test]
fn poison_may_take_the_mapping_of_a_huge_file_page() {
    let flags = [*b"rd", *b"wr", *b"sh"];
    let lines = |collapse: bool, rss: u64| {
        let mut lines = vec![ok("mmap at=r0 len=2M share=shared"), ok("write at=r0 len=2M")];
        if collapse {
            lines.push(ok("madvise at=r0 len=2M advice=collapse"));
        }
        let look = ok("observe at=r0 len=2M what=smaps");
        let left = if collapse { 0 } else { pm::SWAP };
        let look = look.pages(0, Place::new(0, 0), &[(1, left, 0), (511, FILE_PAGE, 2)]);
        let last = look.mapping(Place::new(0, 0), 2 << 20, &flags, &[("Rss", rss)]);
        lines.extend([poisoned("madvise at=r0 len=4K advice=hwpoison", true), last]);
        lines
    };
    let plain = |rss| verdict(true, lines(false, rss), 1);
    assert_eq!(plain(2048), None);
    assert_eq!(plain(2044).as_deref(), Some("O-031"));
    assert_eq!(verdict(true, lines(true, 2044), 1), None);
    assert_eq!(verdict(true, lines(true, 2052), 1).as_deref(), Some("O-031"));
}

#[test]
fn poison_stays_where_a_huge_file_page_was_mapped() {
    let (first, second) = (Place::new(0, 0), Place::new(1, 0));
    let lines = |bits: u8| {
        vec![
            ok("f0 = memfd page=4K"),
            ok("ftruncate file=f0 len=4M"),
            ok("mmap at=r0 len=4M share=shared from=f0"),
            ok("mmap at=r1 len=4M share=shared from=f0"),
            ok("write at=r1 len=4M"),
            ok("madvise at=r0 len=2M advice=collapse"),
            poisoned("madvise at=r0 len=4K advice=hwpoison", true),
            ok("observe at=r0 len=4K").pages(0, first, &[(1, 0, 0)]).pages(
                0,
                second,
                &[(1, bits, 0)],
            ),
        ]
    };
    assert_eq!(verdict(true, lines(pm::SWAP), 1), None);
    assert_eq!(verdict(true, lines(0), 1), None);
}

#[test]
fn a_pin_does_not_hide_why_a_block_may_not_collapse() {
    let lines = |armed: bool, errno: u16| {
        let mut lines = vec![
            ok("mmap at=r0 len=2M"),
            ok("read at=r0 len=4K").reads(&[Word::Zero]),
            ok("g0 = pin at=r0+500K len=4K flags=write"),
        ];
        if armed {
            lines.push(ok("u0 = uffd features=missing_shmem"));
            let mask = Status::Ok(0x13c);
            lines.push(with("register uffd=u0 at=r0 len=2M modes=missing", mask));
        }
        lines.push(err("madvise at=r0 len=2M advice=collapse", errno));
        lines
    };
    passes(lines(true, EBUSY));
    passes(lines(true, EINVAL));
    passes(lines(false, 11));
    breaks("A-003", lines(false, EINVAL));
}

#[test]
fn pages_near_a_pin_may_still_be_shared_after_fork() {
    let lines = |pin: bool, got: i32| {
        let mut lines = vec![ok("mmap at=r0 len=2M"), ok("write at=r0 len=2M")];
        if pin {
            lines.push(ok("g0 = pin at=r0+1M len=4K flags=write"));
        }
        let moved = ok("p1: move_pages at=r0 len=4K node=0").out(Output::Nodes(vec![got]));
        lines.extend([ok("p1 = fork"), moved]);
        lines
    };
    assert_eq!(verdict(false, lines(true, -13), 0), None);
    assert_eq!(verdict(false, lines(true, 0), 0), None);
    assert_eq!(verdict(false, lines(true, -14), 0).as_deref(), Some("M-002"));
}

#[test]
fn poison_of_a_huge_file_page_may_outlive_it() {
    let bus = SignalSeen { signo: 7, code: 4, at: Spot::In(Place::new(1, 0)), lsb: 12 };
    let lines = |collapse: bool, bits: u8, last: Status| {
        let mut lines = vec![
            ok("f0 = memfd page=4K"),
            ok("ftruncate file=f0 len=4M"),
            ok("mmap at=r0 len=4M share=shared from=f0"),
            ok("mmap at=r1 len=4M share=shared from=f0"),
            ok("write at=r1 len=4M"),
        ];
        if collapse {
            lines.push(ok("madvise at=r0 len=2M advice=collapse"));
        }
        lines.extend([
            poisoned("madvise at=r0 len=4K advice=hwpoison", true),
            ok("punch file=f0 len=4K").pages(0, Place::new(1, 0), &[(1, bits, 0)]),
            with("write at=r1 len=4K", last),
        ]);
        verdict(true, lines, 1)
    };
    assert_eq!(lines(true, pm::SWAP, Status::Signal(bus)), None);
    assert_eq!(lines(true, 0, Status::Ok(0)), None);
    assert_eq!(lines(false, pm::SWAP, Status::Signal(bus)), None);
    assert_eq!(lines(false, pm::SWAP, Status::Ok(0)).as_deref(), Some("A-093"));
    assert_eq!(lines(false, 0, Status::Ok(0)).as_deref(), Some("O-006"));
}

#[test]
fn resolved_protection_may_leave_pages_no_collapse_takes() {
    let lines = |uffd: bool, mask: i64| {
        let mut lines = vec![ok("mmap at=r0 len=2M"), ok("write at=r0 len=2M")];
        if uffd {
            lines.push(ok("u0 = uffd features=pagefault_flag_wp"));
            lines.push(with("register uffd=u0 at=r0 len=2M modes=wp", Status::Ok(mask)));
            lines.push(ok("writeprotect uffd=u0 at=r0 len=2M flags=none"));
            lines.push(ok("unregister uffd=u0 at=r0 len=2M"));
        }
        lines.push(err("madvise at=r0 len=2M advice=collapse", EINVAL));
        lines
    };
    assert_eq!(verdict(false, lines(true, 0x5c), 0), None);
    assert_eq!(verdict(false, lines(false, 0x5c), 0).as_deref(), Some("A-003"));
    assert_eq!(verdict(true, lines(true, 0x17c), 0).as_deref(), Some("A-003"));
}

#[test]
fn each_read_fault_may_bring_its_own_neighbours() {
    let lines = |far: u64| {
        vec![
            ok("f0 = memfd page=4K"),
            ok("ftruncate file=f0 len=4M"),
            ok("fallocate file=f0 len=4M"),
            ok("mmap at=r0 len=4M share=shared from=f0"),
            ok("u0 = uffd features=missing_shmem handler=copy"),
            with("register uffd=u0 at=r0 len=4M modes=missing", Status::Ok(0x13c)),
            ok("read at=r0+1020K len=8K").reads(&[Word::Zero; 2]).pages(
                0,
                Place::new(0, far),
                &[(1, FILE_PAGE, 9)],
            ),
        ]
    };
    passes(lines(1084 << 10));
    breaks("O-006", lines(1092 << 10));
}

#[test]
fn soft_offline_goes_on_by_the_page_a_part_is_left_of() {
    let always = Profile { thp_enabled: "always".into(), ..profile(true) };
    let lines = |cut: &'static str| {
        vec![
            ok("mmap at=r2 len=2M"),
            ok("write at=r2 len=4K"),
            ok("mmap at=r0 len=12K"),
            ok("write at=r0 len=12K"),
            ok(cut),
            ok("madvise at=r0+4K len=8K advice=softoffline"),
        ]
    };
    let verdict =
        |cut: &'static str, pages: i64| match report_on(&always, lines(cut), pages).verdict {
            Verdict::Violation(v) => Some(v.rule),
            _ => None,
        };
    let (part, other) = ("munmap at=r0 len=4K", "munmap at=r1 len=4K");
    assert_eq!(verdict(part, 1), None);
    assert_eq!(verdict(part, 2), None);
    assert_eq!(verdict(part, 0).as_deref(), Some("O-081"));
    assert_eq!(verdict(other, 2), None);
    assert_eq!(verdict(other, 1).as_deref(), Some("O-081"));
}
