//! Every saved regression again and again on a real guest: what shows does so each time, as when it was
//! saved.

#![allow(clippy::unwrap_used)]

#[path = "support/home.rs"]
#[allow(dead_code, reason = "other tests use the rest of it")]
mod home;

use home::{Home, json, the_kernel};
use std::path::Path;
use std::time::Instant;

/// Runs of each in every run of the tests.
const TIMES: u32 = 2;

#[test]
fn every_regression_shows_as_often_as_it_did() {
    let home = Home::new();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus/regressions");
    let (times, kernel) = (trials::rounds(TIMES).to_string(), the_kernel("6.1"));
    let start = Instant::now();
    let dir = dir.to_string_lossy().into_owned();
    let args = ["regress", &dir, "--kernel", &kernel, "--times", &times, "--jobs", "2", "--json"];
    let out = home.run(&args);
    let told = json(&out);
    let rows = told["rows"].as_array().unwrap();
    let of = |at: usize| rows.iter().filter_map(move |row| row["shown"][at].as_u64()).sum::<u64>();
    let (shown, tried) = (of(0), of(1));
    trials::fault("F35", "saved regressions, again and again", tried, tried - shown, start);
    let wrong: Vec<_> = rows.iter().filter(|row| row["ok"] != true).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(out.status.code(), Some(0), "{told}");
    // Some are for other families.
    let saved = std::fs::read_dir(&dir).unwrap().flatten().filter(|e| e.path().is_dir()).count();
    assert_eq!(rows.len(), saved);
    assert!(tried >= u64::from(trials::rounds(TIMES)) * 20, "{tried} runs of {saved} programs");
}
