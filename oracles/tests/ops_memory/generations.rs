//! What the posted generations of high-granularity mapping do differently: for each cell of the
//! table an observation of either way, of which one passes on each generation.

use super::*;
use case::HgmGeneration;
use oracles::generation::{Ways, ways};

const EACCES: i32 = 13;
const EHWPOISON: u16 = 133;

fn kernel_of(generation: HgmGeneration) -> Profile {
    let rfc2 = generation == HgmGeneration::Rfc2;
    Profile {
        madv_split: !rfc2,
        hgm_feature: rfc2,
        hgm_leaves_count_whole: ways(Some(generation)).leaves_count_whole,
        uffd_features: if rfc2 { 0x3fff } else { 0x1fff },
        ..profile(false)
    }
}

/// Two mappings of a file of 4 MiB, the first with HGM as the generation gives it; the second has
/// written.
fn enabled(generation: HgmGeneration, lines: Vec<Seen>) -> Vec<Seen> {
    let split = "madvise at=r0 len=4M advice=split";
    let (split, uffd) = match generation {
        HgmGeneration::Rfc2 => (
            err(split, EINVAL),
            "u0 = uffd features=minor_hugetlbfs,exact_address,wp_unpopulated handler=copy",
        ),
        _ => (ok(split), "u0 = uffd features=minor_hugetlbfs,exact_address handler=copy"),
    };
    let mut all = vec![
        ok("f0 = memfd page=2M"),
        ok("mmap at=r0 len=4M share=shared from=f0"),
        ok("mmap at=r1 len=4M share=shared from=f0"),
        split,
        ok(uffd),
        with("register uffd=u0 at=r0 len=4M modes=minor", Status::Ok(MINOR)),
        ok("write at=r1 len=2M"),
    ];
    all.extend(lines);
    all
}

/// The same without the second mapping.
fn single(generation: HgmGeneration, lines: Vec<Seen>) -> Vec<Seen> {
    let unmaps = vec![ok("munmap at=r1 len=4M")];
    enabled(generation, unmaps.into_iter().chain(lines).collect())
}

fn rule_broken(generation: HgmGeneration, lines: Vec<Seen>) -> Option<String> {
    let poisoned = lines.iter().filter(|l| l.text.ends_with("advice=hwpoison")).count() as i64;
    let report = report_on(&kernel_of(generation), lines, poisoned);
    match report.verdict {
        Verdict::Pass => {
            assert_eq!(report.blurred, None, "judged to the end");
            None
        }
        Verdict::Violation(v) => Some(v.rule),
        Verdict::Inconclusive(why) => panic!("{why}"),
    }
}

/// What was seen where the way holds and where it does not: each generation takes one of them and
/// calls the other a violation of the rule.
fn cell(rule: &str, way: fn(Ways) -> bool, seen: impl Fn(HgmGeneration, bool) -> Vec<Seen>) {
    for generation in HgmGeneration::ALL {
        let own = way(ways(Some(generation)));
        let name = generation.name();
        assert_eq!(rule_broken(generation, seen(generation, own)), None, "{name} its own way");
        let broken = rule_broken(generation, seen(generation, !own));
        assert_eq!(broken.as_deref(), Some(rule), "{name} the way of others");
    }
}

#[test]
fn who_may_ask_for_pieces() {
    for generation in HgmGeneration::ALL {
        let rfc2 = generation == HgmGeneration::Rfc2;
        assert_eq!(rule_broken(generation, enabled(generation, Vec::new())), None);
        let alone = err("u0 = uffd features=wp_unpopulated", EINVAL);
        assert_eq!(rule_broken(generation, vec![alone]), None, "a feature alone or unknown");
        let both = "u0 = uffd features=wp_unpopulated,exact_address";
        let both = if rfc2 { ok(both) } else { err(both, EINVAL) };
        assert_eq!(rule_broken(generation, vec![both]), None);
    }
    // Asked through a userfaultfd without the feature.
    let asked = |generation, last: Seen| {
        let lines = vec![
            ok("unregister uffd=u0 at=r0 len=4M"),
            ok("u1 = uffd features=minor_hugetlbfs handler=copy"),
            with("register uffd=u1 at=r0 len=4M modes=minor", Status::Ok(MINOR)),
            last,
        ];
        single(generation, lines)
    };
    let piece = "continue uffd=u1 at=r0+8K len=4K";
    for generation in HgmGeneration::ALL {
        let refuses = rule_broken(generation, asked(generation, refused(piece, EINVAL)));
        let maps = rule_broken(generation, asked(generation, filled(piece, 4096)));
        let want = match ways(Some(generation)).by_context {
            true => (None, Some("U-038")),
            false => (Some("HG-02"), None),
        };
        assert_eq!((refuses.as_deref(), maps.as_deref()), want, "{}", generation.name());
    }
}

#[test]
fn a_marker_is_in_the_way_or_goes_down() {
    let seen = |generation: HgmGeneration, way: bool| {
        let rfc2 = generation == HgmGeneration::Rfc2;
        let piece = "continue uffd=u1 at=r0+8K len=4K";
        let uffd = match rfc2 {
            true => {
                "u1 = uffd features=pagefault_flag_wp,wp_hugetlbfs_shmem,exact_address,\
                 wp_unpopulated handler=copy"
            }
            false => "u1 = uffd features=pagefault_flag_wp,wp_hugetlbfs_shmem handler=copy",
        };
        let last = if way { filled(piece, 4096) } else { refused(piece, EEXIST) };
        let lines = vec![
            ok("unregister uffd=u0 at=r0 len=4M"),
            ok(uffd),
            with("register uffd=u1 at=r0 len=4M modes=minor,wp", Status::Ok(MINOR_WP)),
            ok("writeprotect uffd=u1 at=r0 len=2M"),
            last,
        ];
        single(generation, lines)
    };
    cell("HG-02", |w| w.markers_go_down, seen);
}

#[test]
fn events_carry_the_address_of_the_base_page_or_of_the_huge_one() {
    for generation in HgmGeneration::ALL {
        let read = |at: u64| {
            let seen = ok("read at=r0+64K len=4K").reads(&[tag(7, 16)]);
            let mut seen = minor(seen, at, event::FLAG_MINOR);
            seen.obs.events[0].uffd = case::UffdId(1);
            let lines = vec![
                ok("unregister uffd=u0 at=r0 len=4M"),
                ok("u1 = uffd features=minor_hugetlbfs handler=copy"),
                with("register uffd=u1 at=r0 len=4M modes=minor", Status::Ok(MINOR)),
                seen,
            ];
            enabled(generation, lines)
        };
        let base = ways(Some(generation)).base_addresses;
        let (right, wrong) = if base { (64 << 10, 0) } else { (0, 64 << 10) };
        assert_eq!(rule_broken(generation, read(right)), None, "{generation:?}");
        assert!(rule_broken(generation, read(wrong)).is_some(), "{generation:?}");
    }
}

#[test]
fn collapse_tells_of_poison_or_passes_it_over() {
    let seen = |generation: HgmGeneration, way: bool| {
        let collapse = "madvise at=r0 len=4M advice=collapse";
        let last = if way { err(collapse, EHWPOISON) } else { ok(collapse) };
        let poison = ok("madvise at=r1 len=4K advice=hwpoison");
        enabled(generation, vec![poison, last, ok("munmap at=r0 len=4M")])
    };
    cell("HG-05", |w| w.poison_told, seen);
}

#[test]
fn leaves_count_for_the_page_or_for_what_they_cover() {
    let two = || filled("continue uffd=u0 at=r0 len=8K", 8192);
    let flags = |generation: HgmGeneration| match ways(Some(generation)).flag_shown {
        true => vec![*b"ht", *b"hm", *b"ui"],
        false => vec![*b"ht", *b"ui"],
    };
    let smaps = |generation, way: bool| {
        let label = if way { "Shared_Hugetlb" } else { "Private_Hugetlb" };
        let look = ok("observe at=r0 len=4M what=smaps");
        single(
            generation,
            vec![two(), look.mapping(START, 2 * HUGE, &flags(generation), &[(label, 8)])],
        )
    };
    cell("HG-07", |w| w.leaves_count_whole, smaps);
    let pagemap = |generation, way: bool| {
        let bits = if way { MAPPED } else { OWN };
        let look = ok("observe at=r0 len=2M").pages(0, START, &[(2, bits, 512), (510, 0, 0)]);
        single(generation, vec![two(), look])
    };
    cell("HG-07", |w| w.leaves_count_whole, pagemap);
    let moved = |generation, way: bool| {
        let slot = if way { -EACCES } else { 0 };
        let moves = ok("move_pages at=r0 len=2M step=2M node=0").out(Output::Nodes(vec![slot]));
        single(generation, vec![two(), moves])
    };
    for generation in HgmGeneration::ALL {
        let whole = ways(Some(generation)).leaves_count_whole;
        assert_eq!(rule_broken(generation, moved(generation, whole)), None, "{generation:?}");
        let refused = rule_broken(generation, moved(generation, true));
        assert_eq!(refused.is_some(), !whole, "{generation:?}: EACCES is for shared pages");
    }
}

#[test]
fn the_flag_of_the_mapping_shows_or_not() {
    let seen = |generation, way: bool| {
        let flags = if way { vec![*b"ht", *b"hm", *b"ui"] } else { vec![*b"ht", *b"ui"] };
        let look = ok("observe at=r0 len=4M what=smaps");
        single(generation, vec![look.mapping(START, 2 * HUGE, &flags, &[])])
    };
    cell("O-040", |w| w.flag_shown, seen);
}
