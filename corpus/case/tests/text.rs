//! Laws of the text form, and what its errors say for the usual slips.
#![allow(clippy::unwrap_used)]

mod support;

use case::limits::{LINES_MAX, PAR_OPS_MAX, STEPS_MAX, TEXT_BYTES_MAX};
use case::text::{parse, print, print_bare, usage};
use case::wire::program_id;
use case::*;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn text_is_the_program(program in support::program()) {
        let text = print(&program);
        let back = parse(&text).expect("canonical text parses");
        prop_assert_eq!(&back, &program);
        prop_assert_eq!(print(&back), text);
    }

    #[test]
    fn comments_are_not_identity(program in support::program()) {
        let mut bare = program.clone();
        bare.about.clear();
        bare.steps.iter_mut().for_each(|s| s.notes.clear());
        prop_assert_eq!(print_bare(&program), print_bare(&bare));
        prop_assert_eq!(program_id(&program), program_id(&bare));
        prop_assert_eq!(program_id(&program).len(), 16);
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        let _ = parse(&text);
        let _ = parse(&format!("hgm 1\n{text}"));
    }

    #[test]
    fn a_damaged_program_gives_a_place(
        program in support::program(), at in any::<prop::sample::Index>(), c in "[ -~\n]",
        cut in any::<bool>(),
    ) {
        let mut text = print(&program);
        let marks: Vec<usize> = text.char_indices().map(|(i, _)| i).collect();
        let from = marks[at.index(marks.len())];
        let to = if cut { text.len() } else { from + text[from..].chars().next().unwrap().len_utf8() };
        text.replace_range(from..to, &c);
        if let Err(e) = parse(&text) {
            prop_assert!(e.line >= 1 && e.line <= text.lines().count() + 1, "{}", e);
            prop_assert!(e.column >= 1);
            prop_assert!(!e.found.is_empty() && !e.expected.is_empty());
        }
    }
}

#[test]
fn every_op_round_trips() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for kind in OpKind::ALL {
        for _ in 0..50 {
            let tree = support::op_text_of(*kind).new_tree(&mut runner).unwrap();
            let program = parse(&format!("hgm 1\n\n{}\n", tree.current())).unwrap();
            let Act::One(line) = &program.steps[0].act else { panic!("one line") };
            assert_eq!(line.op.kind(), *kind);
            assert_eq!(parse(&print(&program)).unwrap(), program);
        }
    }
}

#[test]
fn canonical_text_is_kept_to_the_byte() {
    let text = "hgm 1\n# what it is\n#\n# second paragraph\n\n# a note\nf0 = memfd\n\
        ftruncate file=f0 len=4M\nmmap at=r0 len=4M share=shared from=f0\np0 = fork\n\
        p1: write at=r0+8K len=4K\n# both\npar {\n  t0: read at=r0 len=4K\n  \
        t0: read at=r0 len=4K\n  t1: madvise at=r0 len=2M advice=dontneed\n}\n";
    assert_eq!(print(&parse(text).unwrap()), text);
}

#[test]
fn defaults_and_spellings_become_canonical() {
    let text = "hgm 1\nf0  =  memfd   page=2M flags=none\nread len=0x1000 at=r0+2048k\n\
        p0: munmap at=r1 len=1024M\n# the end\n";
    let want = "hgm 1\n\nf0 = memfd\nread at=r0+2M len=4K\n# the end\nmunmap at=r1 len=1G\n";
    assert_eq!(print(&parse(text).unwrap()), want);
}

#[test]
fn ids_are_stable() {
    // The id names files in corpora: it may never change for a program that reads the same.
    let program = parse("hgm 1\n# x\n\nf0 = memfd\nftruncate file=f0 len=4M\n").unwrap();
    let text = "hgm 1\n\nf0 = memfd\nftruncate file=f0 len=4M\n";
    assert_eq!(print_bare(&program), text);
    assert_eq!(program_id(&program), blake3::hash(text.as_bytes()).to_hex()[..16]);
}

fn error(text: &str) -> String {
    parse(text).expect_err("a text that is no program").to_string()
}

fn op_error(line: &str) -> String {
    error(&format!("hgm 1\n\n{line}\n"))
}

#[test]
fn errors_of_ops() {
    insta::assert_snapshot!(op_error("wirte at=r0 len=4K"), @r"
    line 3, column 1: found `wirte`, expected an op name
    help: did you mean `write`? write at=… len=…
    ");
    insta::assert_snapshot!(op_error("frobnicate at=r0"), @r"
    line 3, column 1: found `frobnicate`, expected an op name
    help: the ops are listed in the reference, `hgm help ops`
    ");
    insta::assert_snapshot!(op_error("write at=r0"), @r"
    line 3, column 12: found the end of the line, expected `len=` with a size such as 0, 4K, 2M or 1G
    help: write it as: write at=… len=…
    ");
    insta::assert_snapshot!(op_error("write at=r0 lne=4K"), @r"
    line 3, column 13: found `lne`, expected a field of `write`
    help: did you mean `len`? write at=… len=…
    ");
    insta::assert_snapshot!(op_error("write at=r0 len=4K len=8K"), @r"
    line 3, column 20: found `len`, expected each field once
    help: drop one of the two
    ");
    insta::assert_snapshot!(op_error("write at=r0 len 4K"), @r"
    line 3, column 13: found `len`, expected a field such as name=value
    help: write it as: write at=… len=…
    ");
    insta::assert_snapshot!(op_error("write at=r0 len= 4K"), @r"
    line 3, column 18: found `4K`, expected a field such as name=value
    help: write it as: write at=… len=…
    ");
    insta::assert_snapshot!(op_error("write at=r9 len=4K"), @"line 3, column 10: found `r9`, expected a place such as r0 or r0+4K");
    insta::assert_snapshot!(op_error("write at=f0 len=4Q"), @"line 3, column 10: found `f0`, expected a place such as r0 or r0+4K");
    insta::assert_snapshot!(op_error("memfd page=2M"), @r"
    line 3, column 1: found `memfd`, expected an id f0 to f7 and `=` before `memfd`
    help: write it as: f0 = memfd [page=…] [flags=…]
    ");
    insta::assert_snapshot!(op_error("f0=memfd page=2M"), @r"
    line 3, column 1: found `f0=memfd`, expected an op name
    help: put spaces around `=`: f0 = memfd
    ");
    insta::assert_snapshot!(op_error("x0 = memfd page=2M"), @"line 3, column 1: found `x0`, expected an id f0 to f7");
    insta::assert_snapshot!(op_error("f0 = write at=r0 len=4K"), @r"
    line 3, column 1: found `f0`, expected an op without `=` before its name
    help: `write` makes no object; write it as: write at=… len=…
    ");
    insta::assert_snapshot!(op_error("madvise at=r0 len=4K advice=dontned"), @r"
    line 3, column 29: found `dontned`, expected an madvise advice such as dontneed or collapse
    help: did you mean `dontneed`?
    ");
    insta::assert_snapshot!(op_error("mmap at=r0 len=2M flags=populat,fixed"), @"line 3, column 25: found `populat,fixed`, expected mmap flags such as populate,noreserve");
    insta::assert_snapshot!(op_error("p9: write at=r0 len=4K"), @r"
    line 3, column 1: found `p9:`, expected a process `p0:` to `p7:` or an op
    help: a process prefix is `p1:`; `p0` is the default
    ");
    insta::assert_snapshot!(op_error("t0: write at=r0 len=4K"), @r"
    line 3, column 1: found `t0:`, expected a process `p0:` to `p7:` or an op
    help: threads `t0:` stand only inside `par { … }`
    ");
}

#[test]
fn errors_of_shape() {
    insta::assert_snapshot!(error(""), @r"
    line 1, column 1: found the end of the text, expected `hgm 1`
    help: the text is empty
    ");
    insta::assert_snapshot!(error("hgm 2\n"), @r"
    line 1, column 1: found `hgm 2`, expected `hgm 1`
    help: this version reads format 1 only
    ");
    insta::assert_snapshot!(error("write at=r0 len=4K\n"), @r"
    line 1, column 1: found `write at=r0 len=4K`, expected `hgm 1`
    help: the first line of a program is `hgm 1`; comments come after it
    ");
    insta::assert_snapshot!(op_error("par {\n  t0: read at=r0 len=4K\n}"), @r"
    line 5, column 1: found `}`, expected two or three threads numbered from t0, each with an op
    help: a single thread needs no block
    ");
    insta::assert_snapshot!(op_error("par {\n  read at=r0 len=4K\n}"), @r"
    line 4, column 3: found `read`, expected `t0:` to `t2:` or `}`
    help: inside `par` each line names its thread; all run in p0
    ");
    insta::assert_snapshot!(op_error("par {\n  t2: read at=r0 len=4K\n}"), @r"
    line 5, column 1: found `}`, expected two or three threads numbered from t0, each with an op
    help: a single thread needs no block
    ");
    insta::assert_snapshot!(op_error("par\n"), @r"
    line 3, column 4: found the end of the line, expected `{`
    help: a block is `par {`, then `t0: OP` and `t1: OP` lines, then `}`
    ");
    insta::assert_snapshot!(op_error("par {\n  t0: read at=r0 len=4K"), @r"
    line 5, column 1: found the end of the text, expected `}`
    help: the block opened in line 3 is not closed
    ");
    insta::assert_snapshot!(op_error("}"), @r"
    line 3, column 1: found `}`, expected an op or `par {`
    help: a block opens with `par {`
    ");
    insta::assert_snapshot!(op_error("exit { }"), @r"
    line 3, column 6: found `{`, expected a field such as name=value
    help: write it as: exit
    ");
}

#[test]
fn limits_are_enforced() {
    let text = format!("hgm 1\n\n{}", "exit\n".repeat(STEPS_MAX));
    assert_eq!(parse(&text).unwrap().steps.len(), STEPS_MAX);
    assert!(error(&format!("{text}exit\n")).contains("at most 128 steps"));
    let block = |n: usize| format!("par {{\n{}t1: exit\n}}\n", "t0: exit\n".repeat(n));
    assert!(parse(&format!("hgm 1\n{}", block(PAR_OPS_MAX))).is_ok());
    assert!(error(&format!("hgm 1\n{}", block(PAR_OPS_MAX + 1))).contains("in one thread"));
    let blocks = format!("hgm 1\n{}", block(PAR_OPS_MAX).repeat(LINES_MAX / PAR_OPS_MAX));
    assert!(error(&blocks).contains("at most 192 ops"));
    let long = format!("hgm 1\n#{}", "x".repeat(TEXT_BYTES_MAX));
    assert!(error(&long).contains("bytes of text"));
}

#[test]
fn usage_of_each_op_names_its_fields() {
    assert_eq!(usage(OpKind::Memfd), "f0 = memfd [page=…] [flags=…]");
    assert_eq!(usage(OpKind::Write), "write at=… len=…");
    for kind in OpKind::ALL {
        let spec = kind.spec();
        let usage = usage(*kind);
        for field in &spec.fields[usize::from(spec.makes)..] {
            assert!(usage.contains(&format!("{}=…", field.name)), "{usage}");
        }
    }
}
