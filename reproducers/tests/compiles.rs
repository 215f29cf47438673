//! Every file compiles without a warning: one for each op, each sort of expectation, both styles,
//! and processes and threads. What the files find in a kernel is `harness/tests/e2e.rs`'s.

#![allow(clippy::unwrap_used)]

use case::expect::{PoolCounter, SlotWanted, Wanted};
use case::observation::Word;
use case::{
    Expectation, OpKind, PageSize, Place, ProcId, Profile, Program, Tag, UffdId, Violation,
};
use reproducers::{Request, Style, write};
use std::process::Command;

/// Every op there is, in one program.
const ALL: &str = "hgm 1\n\
    f0 = memfd page=2M flags=sealing\nf1 = hugetlbfs page=2M\nf2 = memfd page=4K\nf3 = memfd page=1G\n\
    ftruncate file=f0 len=8M\nfallocate file=f0 off=2M len=2M flags=keep_size\n\
    punch file=f0 off=2M len=2M\nftruncate file=f2 len=64K\npwrite file=f2 off=4K len=8K\n\
    pread file=f2 len=16K\nfstat file=f2\nseal file=f0 seals=shrink,grow,future_write\n\
    mmap at=r0 len=8M share=shared from=f0 flags=noreserve\nmmap at=r1 len=4M prot=read,write\n\
    mmap at=r2 len=4M page=2M flags=fixed,populate\nmmap at=r3 len=1G page=1G\n\
    mremap at=r1 len=2M new=2M to=r4 flags=maymove,fixed\nmremap at=r1+2M len=1M new=2M\n\
    mprotect at=r2 len=2M prot=none\nmlock at=r2+2M len=2M flags=onfault\nmunlock at=r2+2M len=2M\n\
    madvise at=r0 len=2M advice=dontneed\nmadvise at=r0 len=2M advice=collapse\n\
    madvise at=r0 len=2M advice=split\nmadvise at=r2+2M len=4K advice=hwpoison\n\
    unpoison at=r2+2M\nmadvise at=r1 len=4K advice=unknown\n\
    u0 = uffd features=missing_hugetlbfs,minor_hugetlbfs,unknown handler=copy\n\
    u1 = uffd handler=none\nu2 = uffd features=poison handler=poison\nu3 = uffd handler=zero\n\
    register uffd=u0 at=r0 len=8M modes=missing,minor,unknown\ncontinue uffd=u0 at=r0 len=2M\n\
    copy uffd=u0 at=r0+2M len=2M flags=wp,dontwake\nzeropage uffd=u0 at=r0 len=4K\n\
    writeprotect uffd=u0 at=r0 len=2M\nuffd_poison uffd=u2 at=r0 len=4K flags=dontwake\n\
    wake uffd=u0 at=r0 len=2M\nread at=r0 len=16K\nwrite at=r0+4K len=8K\n\
    p1 = fork\np1: p2 = fork\np1: write at=r0 len=4K\np1: g1 = pin at=r0 len=4K\nunpin pin=g1\n\
    p2: read at=r0 len=4K\np2: exit\nmove_pages at=r1 len=16K node=1\nmove_pages at=r1 len=16K\n\
    mbind at=r1 len=16K mode=bind nodes=n0,n1 flags=strict,move\nmigrate_pages from=n0 to=n1\n\
    set_mempolicy mode=interleave nodes=n0\nvm_read target=p1 at=r0 len=8K\nvmsplice at=r0 len=8K\n\
    direct_io at=r0 len=8K\ndirect_io at=r0 len=8K dir=in\ng0 = pin at=r0 len=4K flags=longterm\n\
    unpin pin=g0\ngup_test at=r0 len=8K flags=write,longterm\nknob knob=thp_enabled value=1\n\
    fail_nth nth=3\nmmap at=r5 len=4K\nobserve at=r0 len=4K what=pagemap,smaps\n\
    par {\n  t0: read at=r0 len=4K\n  t1: write at=r0 len=4K\n}\nunregister uffd=u0 at=r0 len=8M\n\
    close_uffd uffd=u0\nclose_uffd uffd=u1\nmunmap at=r0 len=8M\nclose file=f0\n";

fn program(text: &str) -> Program {
    let program = case::text::parse(text).unwrap();
    case::check::check(&program).unwrap();
    program
}

fn profile() -> Profile {
    let word = |text: &str| text.to_owned();
    Profile {
        nodes: 2,
        thp: true,
        thp_enabled: word("always"),
        thp_shmem: word("never"),
        ..Profile::default()
    }
}

/// The file of a program that is checked at this line.
fn file(program: &Program, expectation: &Expectation, line: u16, style: Style) -> String {
    let request = Request {
        program,
        expectation,
        line,
        signature: "X-1/\"*/\"/c",
        rule: "X-1: a rule with a */ in it.",
        kernel: "debian-6.1",
        profile: &profile(),
        seen: None,
        pools: (64, 1),
        rounds: 3,
        seconds: 20,
        style,
        embargo: line == 0,
    };
    write(&request).unwrap()
}

/// All of them in one call of the compiler.
fn compile(files: &[(String, String)]) {
    let dir = tempfile::tempdir().unwrap();
    let mut gcc = Command::new("gcc");
    gcc.current_dir(dir.path());
    gcc.args(["-std=c11", "-fsyntax-only", "-pthread", "-Wall", "-Wextra", "-Werror"]);
    for (name, text) in files {
        std::fs::write(dir.path().join(format!("{name}.c")), text).unwrap();
        gcc.arg(format!("{name}.c"));
    }
    let done = gcc.output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

fn compiles(name: &str, text: &str) {
    compile(&[(name.to_owned(), text.to_owned())]);
}

#[test]
fn a_program_with_every_op_compiles() {
    let all = program(ALL);
    let there: std::collections::BTreeSet<OpKind> =
        all.each_line().iter().map(|(_, _, op)| op.kind()).collect();
    let missing: Vec<_> = OpKind::ALL.iter().filter(|kind| !there.contains(kind)).collect();
    assert!(missing.is_empty(), "the program lacks {missing:?}");
    for style in [Style::Plain, Style::Selftest] {
        compiles("all", &file(&all, &Expectation::Ends, all.lines() as u16, style));
    }
}

#[test]
fn every_op_alone_compiles() {
    let all = program(ALL);
    let mut done = std::collections::BTreeSet::new();
    let mut files = Vec::new();
    for (line, proc, op) in all.each_line() {
        if proc == ProcId(0) && done.insert(op.kind()) {
            // Objects the op names are made nowhere: they are there all the same.
            let mut lines = vec![];
            for (at, _, maker) in all.each_line() {
                let makes = maker.kind().spec().makes && at < line;
                lines.extend(makes.then(|| case::Step::one(ProcId(0), maker.clone())));
            }
            lines.push(case::Step::one(proc, op.clone()));
            let line = lines.len() as u16 - 1;
            let only = Program::of(lines);
            let wanted = Expectation::Outcome(vec![Wanted::Err(14), Expectation::ANY_OK]);
            let text = file(&only, &wanted, line, Style::Plain);
            files.push((op.kind().spec().name.to_owned(), text));
        }
    }
    compile(&files);
    // Only a forked process exits.
    done.insert(OpKind::Exit);
    let missing: Vec<_> = OpKind::ALL.iter().filter(|kind| !done.contains(kind)).collect();
    assert!(missing.is_empty(), "not tried alone: {missing:?}");
}

fn expectations() -> Vec<Expectation> {
    let (proc, at) = (ProcId(1), Place::new(0, 4096));
    let tag = Word::Tag(Tag { serial: 3, page: 7 });
    let label = || "Rss".to_owned();
    let signal = Wanted::Signal { signo: 7, code: 2, at: Some(at), lsb: 12 };
    let wanted = vec![Wanted::Ok(0, 0), Wanted::Ok(1, 4), Wanted::Blocks, signal];
    vec![
        Expectation::Outcome(wanted),
        Expectation::Content { page: 1, word: 1, wanted: vec![tag, Word::Zero] },
        Expectation::Field(4096),
        Expectation::Field(case::observation::FIELD_UNTOUCHED),
        Expectation::Slot { index: 0, wanted: vec![SlotWanted::Node, SlotWanted::Err(14)] },
        Expectation::Size(4096),
        Expectation::Blocks { low: 8, high: u64::MAX },
        Expectation::Entry { proc, at, mask: 0x17, bits: 1 },
        Expectation::Frames { one: (proc, at), other: (ProcId(0), at), apart: -1, same: true },
        Expectation::MapCount { proc, at, low: 1, high: 2 },
        Expectation::PageFlag { proc, at, bit: 17, on: true },
        Expectation::Mapped { proc, at, on: false },
        Expectation::Perms { proc, at, perms: 9 },
        Expectation::VmFlag { proc, at, letters: *b"uw", on: true },
        Expectation::Smaps { proc, at, len: 4096, label: label(), low: 0, high: 4 },
        Expectation::Status { proc, label: label(), low: 1, high: 1 },
        Expectation::Mincore { proc: ProcId(0), at, resident: true },
        Expectation::Pool { page: PageSize::Huge2M, counter: PoolCounter::Rsvd, change: -1 },
        Expectation::PoolOrder,
        Expectation::Event { uffd: UffdId(0), event: 0x12, flags: 2, at: Some(at), on: true },
        Expectation::Event { uffd: UffdId(0), event: 0x13, flags: 0, at: None, on: false },
        Expectation::Beside { on: true },
        Expectation::Beside { on: false },
        Expectation::NoLeak { page: PageSize::Huge1G },
        Expectation::Corrupted { low: 0, high: 1 },
        Expectation::NoReport { head: "WARNING: CPU".into(), function: Some("f".into()) },
        Expectation::NoReport { head: "BUG: ".into(), function: None },
        Expectation::Ends,
    ]
}

#[test]
fn every_expectation_compiles_with_and_without_processes() {
    let plain = "hgm 1\nmmap at=r0 len=64K\nu0 = uffd handler=copy\nread at=r0 len=16K\n";
    let forked = "hgm 1\nmmap at=r0 len=64K\nu0 = uffd handler=none\np1 = fork\n\
        p1: read at=r0 len=16K\n";
    let mut files = Vec::new();
    for (index, expectation) in expectations().iter().enumerate() {
        let of_child = format!("{expectation:?}").contains("ProcId(1)");
        if !of_child {
            let text = file(&program(plain), expectation, 2, Style::Selftest);
            files.push((format!("plain-{index}"), text));
        }
        let text = file(&program(forked), expectation, 3, Style::Plain);
        files.push((format!("forked-{index}"), text));
    }
    compile(&files);
}

#[test]
fn what_cannot_be_checked_is_refused() {
    let forked = program("hgm 1\nmmap at=r0 len=4K\np1 = fork\n");
    let profile = profile();
    let mut request = Request {
        program: &forked,
        expectation: &Expectation::Mincore {
            proc: ProcId(1),
            at: Place::new(0, 0),
            resident: true,
        },
        line: 1,
        signature: "s",
        rule: "",
        kernel: "k",
        profile: &profile,
        seen: None,
        pools: (0, 0),
        rounds: 1,
        seconds: 1,
        style: Style::Plain,
        embargo: false,
    };
    assert!(write(&request).unwrap_err().to_string().contains("only p1 itself"));
    let outcome = Expectation::Outcome(vec![Wanted::Err(22)]);
    (request.expectation, request.line) = (&outcome, 2);
    assert!(write(&request).unwrap_err().to_string().contains("names no line"));
}

#[test]
fn the_file_reads_as_the_program_does() {
    let text = "hgm 1\nf0 = memfd\nftruncate file=f0 len=4M\nmmap at=r0 len=4M from=f0\n\
        madvise at=r0+2M len=2M advice=dontneed\nwrite at=r0 len=4K\n";
    let program = program(text);
    let outcome = Expectation::Outcome(vec![Wanted::Err(22)]);
    let text = file(&program, &outcome, 3, Style::Plain);
    let body = text.split("static void program(void)").nth(1).unwrap();
    let body = body.split("int main").next().unwrap();
    for line in [
        "\t/* 0: f0 = memfd */\n\tline(0);\n\
         \tf0 = made(memfd_create(\"hgm\", MFD_CLOEXEC | MFD_HUGETLB | MFD_HUGE_2MB));\n",
        "\tdone(ftruncate(f0, M(4)));\n",
        "\tplaced(mmap(AT(R0), M(4), PROT_READ | PROT_WRITE,\n",
        "\tdone(madvise(AT(R0 + M(2)), M(2), MADV_DONTNEED));\n",
        "return (c->how == FAILED && c->err == EINVAL);",
    ] {
        assert!(body.contains(line), "no {line:?} in {body}");
    }
    assert!(!body.contains("store("), "what comes after the checked line is left out");
    assert!(!text.contains("static void load("), "only the helpers that are needed");
    assert!(text.contains("need_pool(POOL_2M, \"2 MiB\", 64)"));
}

#[test]
fn lines_ahead_are_held_against_what_was_seen_and_skipped_ones_left_out() {
    let text = "hgm 1\nf0 = memfd page=1G\nmmap at=r0 len=4K\nmunmap at=r0 len=0\n\
        read at=r1 len=4K\nfstat file=f0\nwrite at=r0 len=4K\n";
    let program = program(text);
    let seen = seen_by(&program);
    let profile = profile();
    let broken = Violation {
        rule: "X-1".into(),
        line: 5,
        op: "write".into(),
        class: "c".into(),
        expected: String::new(),
        observed: String::new(),
        expectation: Some(Expectation::Outcome(vec![Expectation::ANY_OK])),
    };
    let request = Request {
        program: &program,
        expectation: broken.expectation.as_ref().unwrap(),
        line: broken.line,
        signature: &broken.signature(),
        rule: "",
        kernel: "k",
        profile: &profile,
        seen: Some(&seen),
        pools: (0, 0),
        rounds: 1,
        seconds: 1,
        style: Style::Plain,
        embargo: false,
    };
    let text = write(&request).unwrap();
    let order =
        ["as_found(FAILED);", "as_found(RETURNED);", "as_found(FAILED);", "as_found(SIGNALLED);"];
    let mut rest = text.split("static void program(void)").nth(1).unwrap();
    for want in order {
        rest = rest.split_once(want).unwrap_or_else(|| panic!("no {want} in {text}")).1;
    }
    assert!(rest.contains("/* not run: what it names was never made */"));
    assert!(!text.contains("fstat("), "a line that was not run is left out");
    compiles("held", &text);
}

/// memfd fails, mmap works, munmap fails, read gets a signal, fstat has no file, write works.
fn seen_by(program: &Program) -> case::Observation {
    use case::observation::*;
    let signal = SignalSeen { signo: 11, code: 1, at: Spot::Outside(0), lsb: 0 };
    let statuses = [
        Status::Err(12),
        Status::Ok(0),
        Status::Err(22),
        Status::Signal(signal),
        Status::Skipped(Skip::NoObject),
        Status::Ok(0),
    ];
    assert_eq!(statuses.len(), program.lines());
    let line = |status| LineObs {
        status,
        out: Output::Nothing,
        also: None,
        events: Vec::new(),
        views: Vec::new(),
        pools: None,
    };
    Observation {
        before: Counters::default(),
        lines: statuses.into_iter().map(line).collect(),
        end: Vec::new(),
        after: Counters::default(),
        fresh: true,
        nanos: 0,
    }
}
