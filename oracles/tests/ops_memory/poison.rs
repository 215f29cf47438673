//! Memory failure: what it returns, whom it tells, what is left.

use super::*;

#[test]
fn poison_is_told_and_stays() {
    let bus = SignalSeen { signo: 7, code: 4, at: Spot::In(Place::new(0, 0)), lsb: 12 };
    let lines = |told: bool, last: Status| {
        vec![
            ok("mmap at=r0 len=8K"),
            ok("write at=r0 len=8K"),
            poisoned("madvise at=r0 len=4K advice=hwpoison", told),
            ok("read at=r0+4K len=4K").reads(&[tag(2, 1)]),
            with("read at=r0 len=4K", last).out(Output::Content(Vec::new())),
        ]
    };
    let signal = Status::Signal(bus);
    assert_eq!(verdict(true, lines(true, signal), 1), None);
    assert_eq!(verdict(false, lines(false, signal), 1), None);
    assert_eq!(verdict(true, lines(false, signal), 1).as_deref(), Some("A-092"));
    assert_eq!(verdict(true, lines(true, Status::Ok(0)), 1).as_deref(), Some("A-093"));
    assert_eq!(verdict(true, lines(true, signal), 2).as_deref(), Some("O-081"));
}

/// Where no huge page can lie, poison takes the page.
#[test]
fn poison_of_a_base_page_is_not_refused() {
    let busy = || {
        let mut seen = poisoned("madvise at=r0 len=4K advice=hwpoison", false);
        seen.obs.status = Status::Err(16);
        seen
    };
    let lines = |advice: &'static str| {
        vec![ok("mmap at=r0 len=2M"), ok(advice), ok("write at=r0 len=4K"), busy()]
    };
    let none = lines("madvise at=r0 len=2M advice=nohugepage");
    assert_eq!(verdict(false, none, 1).as_deref(), Some("A-091"));
    // Where one may lie, it may refuse to be split.
    let some = lines("madvise at=r0 len=2M advice=hugepage");
    let always = Profile { thp_enabled: "always".into(), ..profile(false) };
    assert_eq!(report_on(&always, some, 1).verdict, Verdict::Pass);
}

#[test]
fn poison_wants_the_right_to_read_by_name() {
    let lines = |map: &'static str| {
        vec![ok(map), err("madvise at=r0 len=2M advice=hwpoison", 14).free_rsvd(8, 1)]
    };
    passes(lines("mmap at=r0 len=2M prot=write page=2M"));
    breaks("A-091", lines("mmap at=r0 len=2M page=2M"));
}
