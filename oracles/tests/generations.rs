//! The table of generations in oracles/HGM.md says what the model does.

#![allow(clippy::unwrap_used)]

use case::HgmGeneration;
use oracles::generation::{Ways, ways};
use oracles::rules;

const DOCUMENT: &str = include_str!("../HGM.md");

/// The cells of the row that begins so: RFC2, V1, V2, HWP, rule.
fn row(begin: &str) -> Vec<&'static str> {
    let table = DOCUMENT.split("<!-- table").nth(1).unwrap();
    let line = table.lines().find(|line| line.starts_with(&format!("| {begin}")));
    let line = line.unwrap_or_else(|| panic!("no row {begin}"));
    line.trim_matches('|').split('|').map(str::trim).skip(1).collect()
}

#[test]
fn every_way_stands_in_the_table() {
    type Way = fn(Ways) -> bool;
    let rows: [(&str, &str, Way); 7] = [
        ("what allows `UFFDIO_CONTINUE`", "the feature of the userfaultfd", |w| w.by_context),
        ("`UFFDIO_CONTINUE` of a piece under", "0, the rest stays marked", |w| w.markers_go_down),
        ("address of events", "base page", |w| w.base_addresses),
        ("`MADV_COLLAPSE` over a poisoned", "EHWPOISON in the end", |w| w.poison_told),
        ("kpagecount", "leaves of the whole page", |w| w.leaves_count_whole),
        ("`move_pages(MPOL_MF_MOVE)`", "EACCES", |w| w.leaves_count_whole),
        ("VmFlags", "hm", |w| w.flag_shown),
    ];
    for (begin, text, way) in rows {
        let cells = row(begin);
        for (cell, generation) in cells.iter().zip(HgmGeneration::ALL) {
            let says = *cell == text;
            assert_eq!(says, way(ways(Some(generation))), "{begin} of {}", generation.name());
        }
    }
}

#[test]
fn every_row_names_a_rule() {
    let table = DOCUMENT.split("<!-- table").nth(1).unwrap();
    let rows = table.lines().filter(|line| line.starts_with('|')).skip(2);
    let mut known = 0;
    for line in rows {
        let rule = line.trim_matches('|').split('|').next_back().unwrap().trim();
        assert!(rules::all().iter().any(|r| r.id == rule), "{line}");
        known += 1;
    }
    assert!(known >= 10, "a table of {known} rows");
}
