//! What the kernel looks at first, and so what it says or does before it refuses.

use super::*;

#[test]
fn a_hole_before_poison_decides_why_a_waiting_block_may_not_collapse() {
    let lines = |poisoned: &'static str, errno: u16| {
        vec![
            ok("mmap at=r0 len=2M"),
            ok("u0 = uffd handler=zero"),
            with("register uffd=u0 at=r0 len=2M modes=missing", Status::Ok(0x13c)),
            ok(poisoned).out(Output::Field(1 << 20)),
            err("madvise at=r0 len=2M advice=collapse", errno),
        ]
    };
    for at in ["uffd_poison uffd=u0 at=r0 len=1M", "uffd_poison uffd=u0 at=r0+1M len=1M"] {
        passes(lines(at, 16));
        breaks("A-006", lines(at, EACCES));
    }
}

#[test]
fn a_read_beyond_the_end_maps_neighbours_first() {
    let lines = |cached: &'static str| {
        let at = Spot::In(Place::new(0, 44 << 10));
        let bus = SignalSeen { signo: 7, code: 2, at, lsb: 0 };
        vec![
            ok("f0 = memfd page=4K"),
            ok("ftruncate file=f0 len=4K"),
            ok(cached),
            ok("mmap at=r0 len=64K share=shared from=f0"),
            with("read at=r0+44K len=4K", Status::Signal(bus)).reads(&[]).pages(
                0,
                Place::new(0, 0),
                &[(1, FILE_PAGE, 9)],
            ),
        ]
    };
    passes(lines("fallocate file=f0 len=4K"));
    breaks("O-006", lines("fstat file=f0"));
}

#[test]
fn memory_failure_names_the_whole_huge_page_that_would_not_split() {
    let always = Profile { thp_enabled: "always".into(), ..profile(true) };
    let judged = |errno: u16, lsb: u8| {
        let at = Spot::In(Place::new(0, 0));
        let mut failed = err("madvise at=r0 len=4K advice=hwpoison", errno);
        failed.obs.also = Some(SignalSeen { signo: 7, code: 4, at, lsb });
        let lines = vec![
            ok("mmap at=r0 len=4M"),
            ok("madvise at=r0 len=4M advice=hugepage"),
            ok("write at=r0 len=4M"),
            failed,
        ];
        match report_on(&always, lines, 1).verdict {
            Verdict::Violation(v) => Some(v.rule),
            _ => None,
        }
    };
    let (busy, unsplit) = (16, 133);
    assert_eq!(judged(unsplit, 21), None);
    assert_eq!(judged(unsplit, 13).as_deref(), Some("A-092"));
    assert_eq!(judged(busy, 21).as_deref(), Some("A-092"));
}

#[test]
fn soft_offline_meets_the_end_of_the_file_after_a_page_that_worked() {
    let judged = |errno: u16| {
        let lines = vec![
            ok("f0 = memfd page=2M"),
            ok("ftruncate file=f0 len=4M"),
            ok("mmap at=r0 len=4M share=shared from=f0"),
            ok("ftruncate file=f0 len=2M"),
            err("madvise at=r0 len=4M advice=softoffline", errno),
        ];
        match report(true, lines, 1).verdict {
            Verdict::Violation(v) => Some(v.rule),
            _ => None,
        }
    };
    let efault = 14;
    assert_eq!(judged(efault), None);
    assert_eq!(judged(EACCES).as_deref(), Some("A-094"));
}

#[test]
fn a_refused_unregister_leaves_its_front_cut() {
    let lines = |errno: u16| {
        vec![
            ok("f0 = memfd page=2M"),
            ok("ftruncate file=f0 len=6M"),
            ok("mmap at=r0 len=6M share=shared from=f0"),
            ok("u0 = uffd features=minor_hugetlbfs handler=copy"),
            with("register uffd=u0 at=r0 len=6M modes=wp", Status::Ok(0x14c)),
            err("unregister uffd=u0 at=r0+2M len=4K", EINVAL),
            err("continue uffd=u0 at=r0+2044K len=8K", errno),
        ]
    };
    passes(lines(2));
    breaks("U-038", lines(17));
}

#[test]
fn a_huge_entry_outlives_write_protection_being_armed() {
    let lines = |before: &'static str| {
        vec![
            ok("mmap at=r0 len=2M share=shared"),
            ok("write at=r0 len=2M"),
            ok(before),
            ok("u0 = uffd handler=copy"),
            with("register uffd=u0 at=r0 len=2M modes=wp", Status::Ok(0x17c)),
            ok("madvise at=r0 len=2M advice=collapse"),
        ]
    };
    passes(lines("madvise at=r0 len=2M advice=collapse"));
    breaks("A-003", lines("madvise at=r0 len=2M advice=hugepage"));
}

#[test]
fn a_copy_that_raced_may_have_filled_the_file_for_other_mappings() {
    let file = pm::PRESENT | pm::FILE;
    let lines = |copied: Status| {
        vec![
            ok("f0 = memfd page=4K"),
            ok("ftruncate file=f0 len=64K"),
            ok("mmap at=r0 len=64K share=shared from=f0"),
            ok("mmap at=r1 len=64K share=shared from=f0"),
            ok("u0 = uffd handler=copy"),
            with("register uffd=u0 at=r1 len=64K modes=missing", Status::Ok(0x13c)),
            ok("par {\nt0: read at=r0 len=32K").out(Output::Nothing),
            with("t1: copy uffd=u0 at=r1+28K len=8K\n}", copied)
                .pages(0, Place::new(0, 0), &[(9, file, 100), (7, 0, 0)])
                .pages(0, Place::new(1, 0), &[(7, 0, 0), (2, file, 107), (7, 0, 0)]),
        ]
    };
    passes(lines(Status::Ok(8 << 10)));
}

#[test]
fn a_fill_that_raced_went_as_far_as_it_says() {
    let file = pm::PRESENT | pm::FILE;
    const EAGAIN: u16 = 11;
    let lines = |done: i64, seen: &[(u32, u8, u32)]| {
        let status = Status::Err(EAGAIN);
        vec![
            ok("f0 = memfd page=4K"),
            ok("ftruncate file=f0 len=64K"),
            ok("mmap at=r0 len=64K share=shared from=f0"),
            ok("mmap at=r1 len=64K share=shared from=f0"),
            ok("u0 = uffd features=minor_shmem handler=copy"),
            with("register uffd=u0 at=r0 len=64K modes=minor", Status::Ok(0x1bc)),
            with("par {\nt0: zeropage uffd=u0 at=r0 len=64K", status).out(Output::Field(done)),
            ok("t1: madvise at=r1+16K len=4K advice=populate_write\n}"),
            ok("observe at=r0 len=64K what=pagemap").pages(0, Place::new(0, 0), seen),
            // Nobody filled it: the kernel does, and there is no page to ask about.
            ok("read at=r0+48K len=4K").reads(&[Word::Zero]),
        ]
    };
    let seen = [(4, file, 100), (12, 0, 0)];
    passes(lines(16 << 10, &seen));
    // It says that it had filled more.
    breaks("O-006", lines(60 << 10, &seen));
}

#[test]
fn a_handlers_zero_page_may_be_the_files_that_another_thread_brought() {
    let file = pm::PRESENT | pm::FILE;
    let lines = |bits: u8, frame: u32| {
        vec![
            ok("f0 = memfd page=4K"),
            ok("ftruncate file=f0 len=64K"),
            ok("mmap at=r0 len=64K from=f0"),
            ok("mmap at=r1 len=64K share=shared from=f0"),
            ok("u0 = uffd handler=zero"),
            with("register uffd=u0 at=r0 len=64K modes=missing", Status::Ok(0x13c)),
            ok("par {\nt0: read at=r0 len=4K").reads(&[Word::Zero]),
            ok("t1: madvise at=r1 len=4K advice=populate_read\n}").pages(
                0,
                Place::new(0, 0),
                &[(1, bits, frame), (15, 0, 0)],
            ),
        ]
    };
    passes(lines(pm::PRESENT, 1));
    passes(lines(file, 100));
    breaks("O-006", lines(pm::SWAP, 0));
}

#[test]
fn a_hole_is_no_fault_of_a_policy() {
    let lines = |errno: u16| {
        vec![
            ok("mmap at=r0 len=4M share=shared page=2M"),
            ok("set_mempolicy mode=bind nodes=n0"),
            ok("munmap at=r0+2M len=2M"),
            err("madvise at=r0 len=4M advice=populate_read", errno),
        ]
    };
    passes(lines(ENOMEM));
    passes(lines(14));
    breaks("H-090", lines(EINVAL));
}

#[test]
fn a_policy_does_not_answer_a_userfault() {
    let lines = |last: Status| {
        vec![
            ok("mmap at=r0 len=2M share=shared page=2M"),
            ok("u0 = uffd"),
            with("register uffd=u0 at=r0 len=2M modes=missing", Status::Ok(0x10c)),
            ok("set_mempolicy mode=bind nodes=n0"),
            with("vm_read at=r0 len=4K", last).out(Output::Content(Vec::new())),
        ]
    };
    let waited = report(true, lines(Status::Timeout), 0);
    assert_eq!((waited.verdict, waited.blurred.is_some()), (Verdict::Pass, true));
    breaks("G-003", lines(Status::Ok(4096)));
}

#[test]
fn events_of_a_move_downwards_come_in_their_own_order() {
    let end = 8 << 10;
    let lines = |len: u64| {
        vec![
            ok("u0 = uffd features=event_unmap,event_remap handler=copy"),
            ok("mmap at=r0 len=8K"),
            ok("mmap at=r1 len=8K"),
            with("register uffd=u0 at=r0 len=8K modes=missing", Status::Ok(0x13c)),
            with("register uffd=u0 at=r1 len=8K modes=missing", Status::Ok(0x13c)),
            ok("mremap at=r0 len=8K new=8K to=r1 flags=maymove,fixed")
                .event(event::UNMAP, Place::new(1, 0), len)
                .remapped(Place::new(0, 0), Spot::In(Place::new(1, 0)), end)
                .event(event::UNMAP, Place::new(0, 0), end),
        ]
    };
    passes(lines(end));
    breaks("U-062", lines(end / 2));
}

#[test]
fn pieces_that_may_have_merged_grow_as_one() {
    let lines = |last: Seen| {
        vec![
            ok("mmap at=r0 len=4M"),
            ok("madvise at=r0 len=1M advice=sequential"),
            ok("madvise at=r0 len=1M advice=normal"),
            ok("munmap at=r0+2M len=2M"),
            last,
        ]
    };
    passes(lines(ok("mremap at=r0 len=2M new=4M")));
    passes(lines(err("mremap at=r0 len=2M new=4M", 14)));
    breaks("V-041", lines(err("mremap at=r0 len=2M new=4M", ENOMEM)));
}

#[test]
fn a_pinned_huge_page_of_a_file_fills_its_block_after_a_punch() {
    let lines = |before: &'static str| {
        vec![
            ok("mmap at=r0 len=2M share=shared"),
            ok("write at=r0 len=2M"),
            ok(before),
            ok("g0 = pin at=r0 len=4K"),
            ok("madvise at=r0+2044K len=4K advice=remove"),
            ok("madvise at=r0 len=2M advice=collapse"),
        ]
    };
    passes(lines("madvise at=r0 len=2M advice=collapse"));
    breaks("A-003", lines("madvise at=r0 len=2M advice=hugepage"));
}

#[test]
fn a_pin_beyond_the_end_is_not_refused_by_a_policy() {
    let own = pm::PRESENT | pm::EXCLUSIVE;
    let lines = |bits: u8| {
        vec![
            ok("mmap at=r0 len=2M page=2M"),
            ok("mbind at=r0 len=2M mode=bind nodes=n0"),
            err("g0 = pin at=r0 len=4M flags=write", 14).pages(
                0,
                Place::new(0, 0),
                &[(512, bits, 512)],
            ),
        ]
    };
    passes(lines(own));
    passes(lines(0));
    breaks("O-006", lines(pm::SWAP));
}

#[test]
fn a_range_that_ends_in_the_boundary_it_reaches_collapses_nothing() {
    let lines = |map: &'static str, last: Seen| vec![ok(map), last];
    let (file, anon) = ("mmap at=r0 len=4M share=shared", "mmap at=r0 len=4M");
    passes(lines(file, ok("madvise at=r0+1M len=1M advice=collapse")));
    breaks("A-003", lines(file, err("madvise at=r0+1M len=1M advice=collapse", EINVAL)));
    passes(lines(file, err("madvise at=r0+1M len=4K advice=collapse", EINVAL)));
    passes(lines(anon, err("madvise at=r0+1M len=1M advice=collapse", EINVAL)));
}

#[test]
fn what_stays_behind_a_move_has_no_pages_for_a_child() {
    let shown = |before: &'static str| {
        let lines = vec![
            ok("mmap at=r0 len=64K"),
            ok("write at=r0 len=8K"),
            ok(before),
            ok("read at=r0 len=4K").reads(&[Word::Zero]),
            ok("p1 = fork").pages(1, Place::new(0, 0), &[(16, 0, 0)]),
        ];
        let zero_pages = Profile { thp_zero_page: true, ..profile(false) };
        report_on(&zero_pages, lines, 0).verdict
    };
    let moved = "mremap at=r0 len=64K new=64K to=r1 flags=maymove,fixed,dontunmap";
    assert_eq!(shown(moved), Verdict::Pass);
    let kept = shown("madvise at=r0 len=64K advice=dontneed");
    assert!(matches!(kept, Verdict::Violation(v) if v.rule == "O-006"));
}

#[test]
fn pieces_that_were_collapsed_as_one_are_pieces_still() {
    let lines = |last: Seen| {
        vec![
            ok("mmap at=r0 len=4M"),
            ok("madvise at=r0 len=1M advice=sequential"),
            ok("madvise at=r0 len=1M advice=normal"),
            ok("write at=r0 len=2M"),
            ok("madvise at=r0 len=2M advice=collapse"),
            last,
        ]
    };
    passes(lines(ok("mremap at=r0 len=4M new=2M")));
    passes(lines(err("mremap at=r0 len=4M new=8M flags=maymove", 14)));
}

#[test]
fn a_refused_unregister_may_take_the_bits_of_the_mapping_it_was_refused_at() {
    let class = |bits: u8| {
        let lines = vec![
            ok("mmap at=r0 len=4M share=shared page=2M"),
            ok("write at=r0 len=2M"),
            ok("u0 = uffd handler=copy"),
            with("register uffd=u0 at=r0 len=4M modes=wp", Status::Ok(0x14c)),
            ok("writeprotect uffd=u0 at=r0 len=2M"),
            err("unregister uffd=u0 at=r0 len=4K", EINVAL).pages(
                0,
                Place::new(0, 0),
                &[(512, bits, 512)],
            ),
        ];
        match report(true, lines, 0).verdict {
            Verdict::Violation(v) => v.signature(),
            other => format!("{other:?}"),
        }
    };
    let mapped = pm::PRESENT | pm::FILE | pm::EXCLUSIVE;
    assert_eq!(class(mapped | pm::UFFD_WP), "Pass");
    assert_eq!(class(mapped), "O-006/unregister/shared-2m-cached-wp:-wp:refused");
}

#[test]
fn reading_a_poisoned_huge_page_stops_where_the_kernel_knows_the_poison() {
    let judged = |new: bool, at: &'static str, status: Status, pages: std::ops::Range<u32>| {
        let tags: Vec<_> = pages.map(|page| tag(4, page)).collect();
        let spot = Spot::In(Place::new(0, 8 << 10));
        let mut hit = ok("madvise at=r0+8K len=4K advice=hwpoison");
        let lsb = 21;
        hit.obs.also = Some(SignalSeen { signo: 7, code: 4, at: spot, lsb });
        let lines = vec![
            ok("f0 = memfd page=2M"),
            ok("ftruncate file=f0 len=2M"),
            ok("mmap at=r0 len=2M share=shared from=f0"),
            ok("write at=r0 len=2M"),
            hit,
            with(at, status).reads(&tags),
        ];
        match report(new, lines, 1).verdict {
            Verdict::Violation(v) => Some(v.rule),
            _ => None,
        }
    };
    let eio = Status::Err(5);
    let (first, on, behind) =
        ("pread file=f0 len=4K", "pread file=f0 off=4K len=8K", "pread file=f0 off=12K len=4K");
    assert_eq!(judged(true, first, Status::Ok(4096), 0..1), None);
    assert_eq!(judged(true, behind, Status::Ok(4096), 3..4), None);
    assert_eq!(judged(true, on, Status::Ok(4096), 1..2), None);
    assert_eq!(judged(true, on, eio, 0..0), None);
    assert_eq!(judged(true, on, Status::Ok(8192), 1..3).as_deref(), Some("H-040"));
    assert_eq!(judged(true, behind, eio, 0..0).as_deref(), Some("H-040"));
    assert_eq!(judged(true, behind, Status::Ok(4096), 4..5).as_deref(), Some("X-03"));
    assert_eq!(judged(false, behind, eio, 0..0), None);
    assert_eq!(judged(false, behind, Status::Ok(4096), 3..4).as_deref(), Some("H-040"));
}

#[test]
fn a_move_to_where_the_kernel_likes_is_told_with_that_address() {
    let lines = |to: Spot| {
        vec![
            ok("mmap at=r0 len=8M"),
            ok("u0 = uffd features=event_remap handler=copy"),
            with("register uffd=u0 at=r0 len=8M modes=missing", Status::Ok(0x13c)),
            with("mremap at=r0 len=2M new=4M flags=maymove", Status::Ok(0x4fa6_0000_0000))
                .remapped(Place::new(0, 0), to, 2 << 20),
        ]
    };
    passes(lines(Spot::Outside(0)));
    breaks("U-062", lines(Spot::In(Place::new(1, 0))));
    breaks("U-062", lines(Spot::Outside(8)));
}

#[test]
fn a_discarded_page_that_a_pin_keeps_may_be_missed_by_a_later_fault() {
    let at = Spot::In(Place::new(0, 0));
    let lines = |map: &'static str, discard: &'static str| {
        let bus = SignalSeen { signo: 7, code: 2, at, lsb: 0 };
        vec![
            ok(map),
            ok("write at=r0 len=4K"),
            ok("g0 = pin at=r0 len=4K"),
            ok(discard),
            with("write at=r0 len=4K", Status::Signal(bus)),
        ]
    };
    let discard = "madvise at=r0 len=2M advice=dontneed";
    passes(lines("mmap at=r0 len=16M page=2M", discard));
    breaks("X-09", lines("mmap at=r0 len=12M page=2M", discard));
    breaks("X-09", lines("mmap at=r0 len=16M page=2M", "madvise at=r0 len=2M advice=random"));
}

#[test]
fn a_gigantic_page_may_take_longer_than_its_time() {
    let judged = |map: &'static str| {
        let lines = vec![ok(map), with("write at=r0 len=4K", Status::Timeout)];
        let report = report(true, lines, 0);
        match report.verdict {
            Verdict::Violation(v) => v.rule,
            _ => report.blurred.expect("judged no further"),
        }
    };
    assert!(judged("mmap at=r0 len=1G page=1G").contains("1 GiB"));
    assert_eq!(judged("mmap at=r0 len=2M page=2M"), "X-09");
}
