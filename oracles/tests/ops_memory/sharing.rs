//! Pages that several mappings or processes share, and what one of them does to the others.

use super::*;

const START: Place = Place::new(0, 0);

#[test]
fn what_a_failed_move_unmapped_is_told() {
    let lines = |moved: Seen| {
        vec![
            ok("u0 = uffd features=event_unmap handler=copy"),
            ok("mmap at=r0 len=16K"),
            with("register uffd=u0 at=r0+8K len=8K modes=missing", Status::Ok(0x13c)),
            moved,
        ]
    };
    let moved = || err("mremap at=r0 len=16K new=12K to=r1 flags=maymove,fixed", 14);
    passes(lines(moved().event(event::UNMAP, Place::new(0, 12 << 10), 4096)));
    breaks("U-062", lines(moved()));
}

#[test]
fn truncation_gives_back_what_children_shared_or_not() {
    let lines = |free: i64, rsvd: i64| {
        vec![
            ok("f0 = memfd page=2M"),
            ok("ftruncate file=f0 len=4M"),
            ok("mmap at=r0 len=4M from=f0").free_rsvd(8, 2),
            ok("write at=r0 len=4M").free_rsvd(6, 0),
            ok("p1 = fork").free_rsvd(6, 0),
            ok("p1: write at=r0 len=4K").free_rsvd(5, 0),
            ok("ftruncate file=f0 len=0").free_rsvd(free, rsvd),
        ]
    };
    // The first page is the owner's alone, the second one a child maps too.
    for rsvd in 0..=2 {
        passes(lines(8, rsvd));
    }
    breaks("X-02", lines(8, 3));
    breaks("X-02", lines(7, 0));
}

#[test]
fn collapse_of_a_huge_page_leaves_its_parts_shared() {
    let (own, other) = (pm::PRESENT | pm::EXCLUSIVE, pm::PRESENT);
    let lines = |bits: u8, frame: u32| {
        vec![
            ok("mmap at=r0 len=2M"),
            ok("write at=r0 len=2M"),
            ok("p1 = fork"),
            ok("write at=r0 len=4K"),
            ok("p1: madvise at=r0 len=2M advice=collapse")
                .pages(0, START, &[(1, own, 9000), (511, bits, 513)])
                .pages(1, START, &[(1, own, 512), (511, bits, frame)]),
        ]
    };
    passes(lines(other, 513));
    passes(lines(own, 1025));
    breaks("I-01", lines(other, 1025));
}

#[test]
fn the_exclusive_bit_of_a_huge_page_tells_only_of_its_first() {
    let own = pm::PRESENT | pm::EXCLUSIVE;
    let lines = |entry: i32| {
        vec![
            ok("mmap at=r0 len=2M"),
            ok("write at=r0 len=2M"),
            ok("p1 = fork"),
            ok("write at=r0 len=4K"),
            ok("p1: madvise at=r0 len=2M advice=collapse").pages(1, START, &[(512, own, 512)]),
            ok("p1: move_pages at=r0+4K len=4K node=0").out(Output::Nodes(vec![entry])),
        ]
    };
    passes(lines(-13));
    passes(lines(0));
    breaks("M-002", lines(-1));
}

#[test]
fn advice_that_changes_nothing_splits_nothing() {
    let file = pm::PRESENT | pm::FILE;
    let lines = |advice: &'static str| {
        vec![
            ok("f0 = memfd page=4K"),
            ok("ftruncate file=f0 len=4M"),
            ok("mmap at=r0 len=4M from=f0"),
            ok(advice),
            ok("write at=r0+3M len=4K"),
            ok("read at=r0 len=4K").reads(&[Word::Zero]),
            ok("p1 = fork").pages(1, START, &[(1, file, 512), (511, 0, 0)]),
        ]
    };
    // One mapping with an anonymous page somewhere: fork copies all of its table.
    passes(lines("munlock at=r0+2M len=2M"));
    // Two: the first one's file pages are left to faults.
    breaks("O-006", lines("madvise at=r0+2M len=2M advice=dontdump"));
}

#[test]
fn what_may_be_one_mapping_again_may_be_copied_by_fork() {
    let file = pm::PRESENT | pm::FILE;
    let lines = |undone: &'static str, bits: u8| {
        vec![
            ok("f0 = memfd page=4K"),
            ok("ftruncate file=f0 len=4M"),
            ok("mmap at=r0 len=4M from=f0"),
            ok("madvise at=r0 len=2M advice=dontdump"),
            ok(undone),
            ok("write at=r0+2044K len=4K"),
            ok("read at=r0+2M len=4K").reads(&[Word::Zero]),
            ok("madvise at=r0+2M len=2M advice=random"),
            ok("p1 = fork"),
            ok("p1: observe at=r0+2M len=2M what=pagemap").pages(
                1,
                Place::new(0, 2 << 20),
                &[(1, bits, 512)],
            ),
        ]
    };
    let undone = "madvise at=r0 len=2M advice=dodump";
    passes(lines(undone, file));
    passes(lines(undone, 0));
    let other = "madvise at=r0 len=2M advice=sequential";
    passes(lines(other, 0));
    breaks("O-006", lines(other, file));
}

#[test]
fn what_a_fork_copied_too_much_of_leaves_a_marker() {
    let lines = |wp: &'static str, bits: u8| {
        vec![
            ok("mmap at=r0 len=2M page=2M"),
            ok("write at=r0 len=4K"),
            ok("u0 = uffd features=wp_hugetlbfs_shmem"),
            with("register uffd=u0 at=r0 len=2M modes=wp", Status::Ok(0x4c)),
            ok(wp),
            ok("p1 = fork"),
            ok("p1: madvise at=r0 len=2M advice=dontneed").pages(1, START, &[(512, bits, 0)]),
        ]
    };
    let found = |wp, bits| match report(false, lines(wp, bits), 0).verdict {
        Verdict::Violation(v) => v.signature(),
        other => format!("{other:?}"),
    };
    let protect = "writeprotect uffd=u0 at=r0 len=2M";
    assert_eq!(found(protect, 0), "Pass");
    assert_eq!(found(protect, pm::UFFD_WP), "O-006/madvise/private-2m-none:+wp:wp-forked");
    // Nothing was protected: then no fork is to blame.
    let found = found("munlock at=r0 len=2M", pm::UFFD_WP);
    assert_eq!(found, "O-006/madvise/private-2m-none:+wp");
}

#[test]
fn a_policy_may_leave_a_reservation_without_a_page() {
    let bus = SignalSeen { signo: 7, code: 2, at: Spot::In(START), lsb: 0 };
    let lines = |policy: &'static str| {
        vec![
            ok("mmap at=r0 len=4M page=2M").free_rsvd(8, 2),
            ok(policy),
            with("write at=r0 len=4K", Status::Signal(bus)).free_rsvd(8, 2),
        ]
    };
    passes(lines("set_mempolicy mode=bind nodes=n0"));
    breaks("X-09", lines("set_mempolicy mode=preferred nodes=n0"));
}

#[test]
fn what_is_left_of_a_changed_pool_is_what_was_seen() {
    let bus = SignalSeen { signo: 7, code: 2, at: Spot::In(Place::new(1, 0)), lsb: 0 };
    let lines = |last: Status| {
        vec![
            ok("mmap at=r0 len=2M page=2M").free_rsvd(8, 1),
            ok("write at=r0 len=4K").free_rsvd(7, 0),
            ok("madvise at=r0 len=2M advice=softoffline").free_rsvd(0, 0),
            ok("mmap at=r1 len=2M page=2M flags=noreserve").free_rsvd(0, 0),
            with("write at=r1 len=4K", last).free_rsvd(0, 0),
        ]
    };
    assert_eq!(verdict(false, lines(Status::Signal(bus)), 1), None);
    assert_eq!(verdict(false, lines(Status::Ok(0)), 1).as_deref(), Some("H-076"));
}

#[test]
fn soft_offlining_goes_on_after_the_zero_page() {
    let lines = |bits: u8| {
        vec![
            ok("mmap at=r0 len=8K"),
            ok("madvise at=r0 len=8K advice=softoffline").pages(
                0,
                START,
                &[(1, pm::PRESENT, 1), (1, bits, 1)],
            ),
        ]
    };
    passes(lines(pm::PRESENT));
    passes(lines(0));
    breaks("O-006", lines(pm::SWAP));
}

#[test]
fn soft_offlining_reads_in_each_page_of_a_file() {
    let file = pm::PRESENT | pm::FILE;
    let lines = |pages: u32| {
        vec![
            ok("f0 = memfd page=4K"),
            ok("ftruncate file=f0 len=4M"),
            ok("mmap at=r0 len=4M share=shared from=f0"),
            ok("madvise at=r0 len=8K advice=softoffline").pages(
                0,
                START,
                &[(pages, file, 512), (512 - pages, 0, 0)],
            ),
        ]
    };
    assert_eq!(verdict(true, lines(2), 2), None);
    assert_eq!(verdict(true, lines(1), 2).as_deref(), Some("O-006"));
    assert_eq!(verdict(true, lines(3), 2).as_deref(), Some("O-006"));
}

#[test]
fn a_store_that_fails_has_fork_copy_the_tables() {
    let bus = SignalSeen { signo: 7, code: 2, at: Spot::In(Place::new(0, 4096)), lsb: 0 };
    let file = pm::PRESENT | pm::FILE;
    let lines = |bits: u8| {
        vec![
            ok("f0 = memfd page=4K"),
            ok("ftruncate file=f0 len=4K"),
            ok("mmap at=r0 len=8K from=f0"),
            ok("read at=r0 len=4K").reads(&[Word::Zero]),
            with("write at=r0+4K len=4K", Status::Signal(bus)),
            ok("p1 = fork"),
            ok("p1: observe at=r0 len=8K what=pagemap").pages(
                1,
                START,
                &[(1, bits, 512), (1, 0, 0)],
            ),
        ]
    };
    passes(lines(file));
    breaks("O-006", lines(0));
}

#[test]
fn a_hole_that_two_threads_fill_is_one_page_or_two() {
    let lines = |private: u8, frame: u32| {
        vec![
            ok("f0 = memfd page=2M"),
            ok("ftruncate file=f0 len=2M"),
            ok("mmap at=r0 len=2M from=f0"),
            ok("mmap at=r1 len=2M share=shared from=f0"),
            ok("par {\n  t0: write at=r1 len=4K"),
            ok("  t1: read at=r0 len=4K\n}").reads(&[Word::Zero]).pages(
                0,
                START,
                &[(512, private, frame)],
            ),
        ]
    };
    for private in [pm::PRESENT | pm::FILE, pm::PRESENT | pm::EXCLUSIVE] {
        let report = report(true, lines(private, 512), 0);
        assert_eq!(report.verdict, Verdict::Pass);
        assert!(report.blurred.is_some(), "which page it is nobody knows");
    }
}

#[test]
fn a_copy_made_while_others_store_has_the_old_or_the_new() {
    let lines = |off: &'static str, serial: u32, page: u32| {
        let word = Word::Tag(case::Tag { serial, page });
        vec![
            ok("f0 = memfd page=2M"),
            ok("ftruncate file=f0 len=2M"),
            ok("mmap at=r0 len=2M from=f0"),
            ok("mmap at=r1 len=2M share=shared from=f0"),
            ok("write at=r1 len=8K"),
            ok("par {\n  t0: madvise at=r0 len=2M advice=populate_write"),
            ok("  t1: write at=r1 len=4K\n}"),
            ok(off).reads(&[word]),
        ]
    };
    passes(lines("read at=r0 len=4K", 5, 0));
    passes(lines("read at=r0 len=4K", 7, 0));
    passes(lines("read at=r0+4K len=4K", 5, 1));
    breaks("X-03", lines("read at=r0+4K len=4K", 7, 1));
}

#[test]
fn poison_in_a_huge_file_page_need_not_be_resident() {
    let lines = |rss: u64| {
        vec![
            ok("f0 = memfd page=4K"),
            ok("ftruncate file=f0 len=2M"),
            ok("mmap at=r0 len=2M share=shared from=f0"),
            ok("read at=r0 len=4K").reads(&[Word::Zero]),
            ok("madvise at=r0 len=2M advice=collapse"),
            ok("madvise at=r0 len=4K advice=hwpoison"),
            ok("observe at=r0 len=2M what=smaps").mapping(START, 2 << 20, &[], &[("Rss", rss)]),
        ]
    };
    assert_eq!(verdict(true, lines(0), 1), None);
    assert_eq!(verdict(true, lines(2048), 1), None);
    assert_eq!(verdict(true, lines(2052), 1).as_deref(), Some("O-031"));
}

#[test]
fn who_is_hurt_by_poison_is_open_after_a_fork_beside_a_pin() {
    let open = |pin: &'static str| {
        let lines = vec![
            ok("mmap at=r0 len=8K"),
            ok("write at=r0 len=8K"),
            ok(pin),
            ok("p1 = fork"),
            ok("p1: madvise at=r0+4K len=4K advice=hwpoison"),
        ];
        report(false, lines, 1).blurred.is_some()
    };
    assert!(open("g0 = pin at=r0 len=4K"));
    assert!(!open("mlock at=r0 len=4K"));
}

#[test]
fn a_copy_no_node_has_a_page_for_leaves_the_files_page_mapped() {
    let bus = SignalSeen { signo: 7, code: 2, at: Spot::In(START), lsb: 0 };
    let lines = |bits: u8| {
        vec![
            ok("f0 = memfd page=2M"),
            ok("ftruncate file=f0 len=2M"),
            ok("mmap at=r1 len=2M share=shared from=f0"),
            ok("write at=r1 len=4K"),
            ok("mmap at=r0 len=2M from=f0"),
            ok("set_mempolicy mode=bind nodes=n0"),
            with("write at=r0 len=4K", Status::Signal(bus)).pages(0, START, &[(512, bits, 512)]),
        ]
    };
    passes(lines(pm::PRESENT | pm::FILE));
    breaks("O-006", lines(0));
}

#[test]
fn parts_of_a_file_too_small_for_a_block_may_refuse_a_range_without_one() {
    let lines = |register: &'static str| {
        vec![
            ok("mmap at=r0 len=4M share=shared"),
            ok("u0 = uffd handler=copy"),
            with(register, Status::Ok(380)),
            ok("p1 = fork"),
            err("p1: madvise at=r0+1020K len=2M advice=collapse", EINVAL),
        ]
    };
    passes(lines("register uffd=u0 at=r0 len=2044K modes=wp"));
    breaks("A-003", lines("register uffd=u0 at=r0 len=4M modes=wp"));
}

#[test]
fn a_page_that_must_stay_may_be_told_before_a_hole_behind_it() {
    let lines = |mbind: &'static str| {
        vec![
            ok("mmap at=r0 len=2M"),
            ok("write at=r0 len=2M"),
            ok("munmap at=r0+1M len=1M"),
            err(mbind, 5),
        ]
    };
    passes(lines("mbind at=r0 len=2M mode=preferred nodes=n0 flags=strict,move"));
    breaks("M-010", lines("mbind at=r0 len=2M mode=preferred nodes=n0 flags=move"));
}
