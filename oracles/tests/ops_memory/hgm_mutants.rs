//! Every mutation of the rules of high-granularity mapping, with an observation that agrees with the
//! rules and not with it. Needs no kernel; that real ones give the mutations away as well is shown
//! by `ci/hgm-mutants`.

use super::*;

/// Lines that pass, and that no model with the mutation lets pass.
fn gives_away(mutant: Mutant) -> Vec<Seen> {
    let piece = || filled("continue uffd=u0 at=r0+8K len=4K", 4096);
    let whole = || filled("continue uffd=u0 at=r0 len=2M", 2 << 20);
    let collapse = "madvise at=r0 len=2M advice=collapse";
    match mutant {
        Mutant::HgmSplitCuts => {
            mapped("shared", vec![err("madvise at=r0 len=4K advice=split", EINVAL)])
        }
        Mutant::HgmSplitPrivateOk => {
            mapped("private", vec![err("madvise at=r0 len=4M advice=split", EINVAL)])
        }
        Mutant::HgmContinueWholeOnly => alone(vec![piece()]),
        Mutant::HgmContinueSmallLeaves => alone(vec![whole(), smaps(&[("HugetlbPteMapped", 0)])]),
        Mutant::HgmContinueOverPieces => {
            twice(vec![piece(), refused("continue uffd=u0 at=r0 len=2M", EEXIST)])
        }
        Mutant::HgmMarkerStopsContinue => marked(Vec::new()),
        Mutant::HgmFaultFillsAll => alone(vec![piece(), unregistered(), fault(true)]),
        Mutant::HgmEmptyTablesGo => {
            let drop = ok("madvise at=r0 len=2M advice=dontneed");
            alone(vec![piece(), drop, unregistered(), fault(false)])
        }
        Mutant::HgmFailureLeavesTable => vec![
            ok("f0 = memfd page=2M"),
            ok("mmap at=r0 len=4M share=shared from=f0"),
            ok("madvise at=r0 len=4M advice=split"),
            ok("u0 = uffd features=minor_hugetlbfs handler=copy"),
            with("register uffd=u0 at=r0 len=4M modes=minor", Status::Ok(MINOR)),
            refused("continue uffd=u0 at=r0+4K len=4K", EFAULT),
            ok("write at=r0+64K len=4K").pages(0, START, &[(512, OWN, 512)]),
        ],
        Mutant::HgmEventsWhole => {
            let read = ok("read at=r0+64K len=4K").reads(&[tag(7, 16)]);
            twice(vec![minor(read, 64 << 10, event::FLAG_MINOR)])
        }
        Mutant::HgmCollapsePrivateOk => mapped("private", vec![err(collapse, EINVAL)]),
        Mutant::HgmCollapseKeepsHoles => {
            alone(vec![piece(), ok(collapse).pages(0, START, &[(512, OWN, 512)])])
        }
        Mutant::HgmCollapsePassesLarger => {
            alone(vec![whole(), err("madvise at=r0 len=4K advice=collapse", EEXIST)])
        }
        Mutant::HgmCollapseKeepsWp => {
            marked(vec![ok(collapse).pages(0, START, &[(512, OWN, 512)])])
        }
        Mutant::HgmLevelsWhole => alone(vec![piece(), smaps(&[("HugetlbPteMapped", 4)])]),
        Mutant::HgmLeavesCountWhole => {
            let two = filled("continue uffd=u0 at=r0+8K len=8K", 8192);
            alone(vec![two, smaps(&[("Private_Hugetlb", 8)])])
        }
        Mutant::HgmFeatureAlone => vec![err("u0 = uffd features=wp_unpopulated", EINVAL)],
        Mutant::HgmFeaturePrivateOk => mapped(
            "private",
            vec![
                ok("u0 = uffd features=wp_unpopulated,exact_address"),
                err("register uffd=u0 at=r0 len=4M modes=minor", EINVAL),
            ],
        ),
        Mutant::HgmBytesWhole => alone(vec![piece(), status(4)]),
        Mutant::HgmTablesUncounted => tables(),
        other => panic!("{other:?} is no mutation of these rules"),
    }
}

fn mapped(share: &str, last: Vec<Seen>) -> Vec<Seen> {
    let map = match share {
        "shared" => "mmap at=r0 len=4M share=shared from=f0",
        _ => "mmap at=r0 len=4M share=private from=f0",
    };
    [ok("f0 = memfd page=2M"), ok(map)].into_iter().chain(last).collect()
}

/// A piece in each of 8 huge pages: a table for each, and one above them.
fn tables() -> Vec<Seen> {
    let look = |kb: u64| {
        let mut look = ok("observe at=r0 len=4K what=status");
        let kb = vec![("VmPTE".to_owned(), kb)];
        look.obs.views.push(View::Status { proc: case::ProcId(0), kb });
        look
    };
    let mut all = vec![
        ok("f0 = memfd page=2M"),
        ok("mmap at=r0 len=16M share=shared from=f0"),
        ok("mmap at=r1 len=16M share=shared from=f0"),
        ok("madvise at=r0 len=16M advice=split"),
        ok("u0 = uffd features=minor_hugetlbfs handler=copy"),
        with("register uffd=u0 at=r0 len=16M modes=minor", Status::Ok(MINOR)),
        ok("write at=r1 len=16M"),
        look(80),
    ];
    let pieces = [
        "continue uffd=u0 at=r0+4K len=4K",
        "continue uffd=u0 at=r0+2052K len=4K",
        "continue uffd=u0 at=r0+4100K len=4K",
        "continue uffd=u0 at=r0+6148K len=4K",
        "continue uffd=u0 at=r0+8196K len=4K",
        "continue uffd=u0 at=r0+10244K len=4K",
        "continue uffd=u0 at=r0+12292K len=4K",
        "continue uffd=u0 at=r0+14340K len=4K",
    ];
    all.extend(pieces.map(|piece| filled(piece, 4096)));
    all.push(look(80 + 9 * 4));
    all.push(ok("madvise at=r0 len=16M advice=collapse"));
    all.push(look(80 + 4));
    all
}

fn unregistered() -> Seen {
    ok("unregister uffd=u0 at=r0 len=4M")
}

/// A fault beside a piece, or where one was: a base page.
fn fault(beside: bool) -> Seen {
    let piece = if beside { OWN } else { 0 };
    let runs = [(2, 0, 0), (1, piece, 514), (1, 0, 0), (1, OWN, 516), (507, 0, 0)];
    ok("read at=r0+16K len=4K").reads(&[tag(7, 4)]).pages(0, START, &runs)
}

fn smaps(kb: &[(&str, u64)]) -> Seen {
    let sum = match kb {
        [("HugetlbPteMapped", 0)] => 2048,
        [(_, n)] => *n,
        _ => panic!("one field"),
    };
    let all: Vec<_> = [("Private_Hugetlb", sum)].iter().chain(kb).copied().collect();
    let flags = [*b"ht", *b"hm", *b"ui"];
    ok("observe at=r0 len=4M what=smaps").mapping(START, 2 * HUGE, &flags, &all)
}

fn status(kb: u64) -> Seen {
    let mut look = ok("observe at=r0 len=4M what=status");
    let kb = vec![("HugetlbPages".to_owned(), kb)];
    look.obs.views.push(View::Status { proc: case::ProcId(0), kb });
    look
}

/// A piece continued under a marker of the whole page.
fn marked(last: Vec<Seen>) -> Vec<Seen> {
    let mut all = vec![
        ok("f0 = memfd page=2M"),
        ok("mmap at=r0 len=2M share=shared from=f0"),
        ok("write at=r0 len=2M"),
        ok("madvise at=r0 len=2M advice=dontneed"),
        ok("madvise at=r0 len=2M advice=split"),
        ok("u0 = uffd features=pagefault_flag_wp,wp_hugetlbfs_shmem handler=copy"),
        with("register uffd=u0 at=r0 len=2M modes=minor,wp", Status::Ok(MINOR_WP)),
        ok("writeprotect uffd=u0 at=r0 len=2M"),
        filled("continue uffd=u0 at=r0+8K len=4K", 4096),
    ];
    all.extend(last);
    all
}

#[test]
fn every_mutation_is_given_away() {
    for (mutant, rule) in Mutant::HGM {
        passes(gives_away(*mutant));
        let none = Known::default();
        let report = report_of(*mutant, &kernel(), &none, gives_away(*mutant), 0);
        let Verdict::Violation(v) = report.verdict else { panic!("nothing notices {mutant:?}") };
        println!("{rule} {mutant:?}: {}", v.signature());
    }
}

#[test]
fn every_rule_has_a_mutation() {
    for rule in oracles::rules::HGM {
        let mutated = Mutant::HGM.iter().any(|(_, of)| *of == rule.id);
        assert!(mutated, "{} has no mutation", rule.id);
    }
}
