//! The hand-written seeds: each reads, makes sense, is in canonical form, says what it is about;
//! together they use every op and cover the error rules of huge pages, userfaultfd and advice.
#![allow(clippy::unwrap_used)]

use case::check::check;
use case::text::{parse, print};
use case::wire::program_id;
use case::*;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Name without `.hgm`, and text.
fn seeds() -> BTreeMap<String, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../seeds");
    let mut seeds = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "hgm") {
            let name = path.file_stem().unwrap().to_str().unwrap().to_string();
            seeds.insert(name, std::fs::read_to_string(path).unwrap());
        }
    }
    seeds
}

/// The rule ids of the `rules:` line.
fn rules(program: &Program) -> BTreeSet<String> {
    let lines = program.about.iter().filter_map(|l| l.strip_prefix("rules: "));
    lines.flat_map(|l| l.split(", ")).map(str::to_string).collect()
}

#[test]
fn seeds_read_check_and_print_back() {
    for (name, text) in seeds() {
        let program = parse(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        check(&program).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(print(&program), text, "{name} is not in canonical form");
        assert!(program.lines() <= 40, "{name} is long");
    }
}

#[test]
fn seeds_say_what_they_are_about() {
    for (name, text) in seeds() {
        let program = parse(&text).unwrap();
        assert!(program.about.len() >= 2, "{name} has no head");
        let rules = rules(&program);
        assert!(!rules.is_empty(), "{name} names no rule");
        for rule in rules {
            let (letter, number) = rule.split_once('-').unwrap();
            assert!(letter == "HG" || "HUAVFMPGOXCIS".contains(letter), "{name}: {rule}");
            assert!(number.len() == 3 || letter.len() == 1 || letter == "HG", "{name}: {rule}");
            number.parse::<u16>().unwrap();
        }
        assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'), "{name}");
    }
}

#[test]
fn seeds_are_many_and_different() {
    let seeds = seeds();
    assert!(seeds.len() >= 60, "{} seeds", seeds.len());
    assert!(seeds.contains_key("postcopy-2m"));
    let ids: BTreeSet<String> = seeds.values().map(|t| program_id(&parse(t).unwrap())).collect();
    assert_eq!(ids.len(), seeds.len());
}

#[test]
fn seeds_use_every_op_and_every_advice() {
    let mut kinds = BTreeSet::new();
    let mut advices = BTreeSet::new();
    let mut knobs = BTreeSet::new();
    let mut views = 0;
    for text in seeds().values() {
        for (_, _, op) in parse(text).unwrap().each_line() {
            kinds.insert(op.kind());
            match op {
                Op::Madvise { advice, .. } => drop(advices.insert(*advice)),
                Op::SetKnob { knob, .. } => drop(knobs.insert(*knob)),
                Op::Observe { what, .. } => views |= what.0,
                _ => {}
            }
        }
    }
    let lacking: Vec<_> = OpKind::ALL.iter().filter(|k| !kinds.contains(k)).collect();
    assert!(lacking.is_empty(), "no seed uses {lacking:?}");
    let lacking: Vec<_> = Advice::ALL.iter().filter(|a| !advices.contains(a)).collect();
    assert!(lacking.is_empty(), "no seed uses {lacking:?}");
    assert_eq!(knobs.len(), Knob::ALL.len());
    assert!(What::TABLE.iter().all(|(w, _)| views & w.0 == w.0));
}

/// Rules of these sections that no program can show: they need mounts with limits, shmget, other
/// privileges, faults that never end, a reader of our own, or say how to judge rather than what.
const NOT_FOR_PROGRAMS: &[&str] = &[
    "H-004", "H-005", "H-006", "H-042", "H-051", "H-055", "H-056", "H-057", "H-063", "H-079",
    "H-089", "U-001", "U-002", "U-021", "U-025", "U-033", "U-040", "U-054", "U-066", "U-075",
    "U-084", "A-007", "A-014", "A-028",
];

/// Every rule of sections H, U and A, by number.
const SECTIONS: &[(&str, &[(u16, u16)])] = &[
    ("H", &[(1, 7), (10, 13), (20, 25), (30, 33), (40, 43), (50, 64), (70, 79), (80, 102)]),
    ("U", &[(1, 11), (20, 25), (30, 40), (50, 54), (60, 67), (70, 75), (80, 86), (90, 90)]),
    ("A", &[(1, 7), (10, 15), (20, 29), (90, 95)]),
];

#[test]
fn seeds_cover_the_sections() {
    let mut covered = BTreeSet::new();
    for text in seeds().values() {
        covered.extend(rules(&parse(text).unwrap()));
    }
    let mut lacking = Vec::new();
    for (letter, ranges) in SECTIONS {
        for n in ranges.iter().flat_map(|(from, to)| *from..=*to) {
            let rule = format!("{letter}-{n:03}");
            if !covered.contains(&rule) && !NOT_FOR_PROGRAMS.contains(&rule.as_str()) {
                lacking.push(rule);
            }
        }
    }
    assert!(lacking.is_empty(), "no seed covers {lacking:?}");
    let both: Vec<_> = NOT_FOR_PROGRAMS.iter().filter(|r| covered.contains(**r)).collect();
    assert!(both.is_empty(), "covered after all: {both:?}");
}
