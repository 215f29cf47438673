//! What `check` lets through and what it does not.
#![allow(clippy::unwrap_used)]

use case::check::{check, holds_tag_word};
use case::text::parse;
use case::*;

fn verdict(lines: &str) -> Result<(), String> {
    let program = parse(&format!("hgm 1\n\n{lines}\n")).unwrap();
    check(&program).map_err(|e| e.to_string())
}

#[track_caller]
fn good(lines: &str) {
    assert_eq!(verdict(lines), Ok(()), "{lines}");
}

#[track_caller]
fn bad(lines: &str, why: &str) {
    let error = verdict(lines).expect_err(lines);
    assert!(error.contains(why), "{lines}: {error}");
}

#[test]
fn objects_need_not_exist_but_are_made_once() {
    good("write at=r0 len=4K");
    good("continue uffd=u3 at=r0 len=2M");
    good("f0 = memfd\nclose file=f0\npread file=f0 len=4K");
    bad("f0 = memfd\nf0 = hugetlbfs", "f0 is made twice");
    bad("u1 = uffd\nu1 = uffd", "u1 is made twice");
    bad("p1 = fork\np1 = fork", "p1 is made twice");
}

#[test]
fn processes_live_between_fork_and_exit() {
    good("p1 = fork\np1: write at=r0 len=4K\np1: exit");
    good("p1 = fork\np1: p2 = fork\np2: exit\np1: exit");
    bad("p1: write at=r0 len=4K", "p1 was not forked");
    bad("p1 = fork\np1: exit\np1: write at=r0 len=4K", "p1 has exited");
    bad("exit", "p0 never exits");
    bad("p0 = fork", "p0 is the first");
    bad("vm_read target=p4 at=r0 len=4K", "p4 was not forked");
}

#[test]
fn ranges_stay_in_their_region_and_file() {
    good("munmap at=r0 len=4G");
    bad("munmap at=r0+4K len=4G", "leave the region");
    bad("mremap at=r0 len=4K new=4G to=r1+4K", "leave the region");
    good("ftruncate file=f0 len=4G");
    bad("ftruncate file=f0 len=8G", "largest file");
    bad("punch file=f0 off=18446744073709551615 len=4K", "largest file");
    bad("mmap at=r0 len=2G from=f0+3G", "largest file");
}

#[test]
fn accesses_touch_a_word_and_are_capped() {
    good("read at=r0+4088 len=8");
    bad("read at=r0+4088 len=7", "no tag word");
    bad("write at=r0+8 len=4080", "no tag word");
    bad("write at=r0 len=33M", "the cap is");
    bad("pread file=f0 len=33M", "the cap is");
    bad("copy uffd=u0 at=r0 len=1G", "the cap is");
    bad("observe at=r0 len=1G", "pages");
    bad("move_pages at=r0 len=1G", "pages");
    good("move_pages at=r0 len=1G step=2M");
    bad("knob knob=hugetlb_nr_2m value=100000", "the cap is");
    bad("fail_nth nth=0", "allowed are");
}

#[test]
fn a_tag_word_lies_wholly_inside() {
    let words = |off: u64, len: u64| {
        (0..4u64)
            .any(|p| [0, 4088].iter().any(|w| p * 4096 + w >= off && p * 4096 + w + 8 <= off + len))
    };
    for off in (0..8200).step_by(4).chain([4087, 4089, 4095]) {
        for len in [0, 1, 7, 8, 9, 15, 16, 100, 4080, 4088, 4095, 4096] {
            let place = Place::new(0, off);
            assert_eq!(holds_tag_word(place, len), words(off, len), "{off} {len}");
        }
    }
}

#[test]
fn threads_may_not_change_who_runs() {
    let par = |op: &str| format!("par {{\nt0: {op}\nt1: read at=r0 len=4K\n}}");
    good(&par("write at=r0 len=4K"));
    good(&par("f0 = memfd"));
    for op in [
        "p1 = fork",
        "exit",
        "u0 = uffd",
        "close_uffd uffd=u0",
        "g0 = pin at=r0 len=4K",
        "unpin pin=g0",
        "knob knob=khugepaged value=1",
        "fail_nth nth=1",
        "observe at=r0 len=4K",
    ] {
        bad(&par(op), "not allowed inside par");
    }
}

#[test]
fn sizes_of_programs() {
    let empty = Program::default();
    assert!(check(&empty).is_err());
    let exit = || Op::Read { at: Place::new(0, 0), len: Bytes(4096) };
    let long = Program::of(vec![Step::one(ProcId(0), exit()); case::limits::STEPS_MAX + 1]);
    assert!(check(&long).is_err());
    let lonely = Program::of(vec![Step::par(vec![vec![exit()]])]);
    assert!(check(&lonely).is_err());
    let idle = Program::of(vec![Step::par(vec![vec![exit()], vec![]])]);
    assert!(check(&idle).is_err());
    let far = Program::of(vec![Step::one(ProcId(9), exit())]);
    assert!(check(&far).is_err());
    let op = Op::Fstat { file: FileId(8) };
    assert!(check(&Program::of(vec![Step::one(ProcId(0), op)])).is_err());
}
