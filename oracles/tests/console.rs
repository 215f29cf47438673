//! The console reader against written consoles in the style of Linux 6.1 and 6.12: what it finds,
//! that no split changes it, that no prefix upsets it, and that floods are read fast.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

use oracles::console::{Report, Scanner, scan};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/console")
}

/// Every console text by name.
fn texts() -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if name != "expected" {
            all.insert(name, std::fs::read(&path).unwrap());
        }
    }
    all
}

fn in_chunks(text: &[u8], size: usize) -> Vec<Report> {
    let mut scanner = Scanner::new();
    let mut reports: Vec<Report> = text.chunks(size).flat_map(|c| scanner.push(c)).collect();
    reports.extend(scanner.finish());
    reports.sort_by_key(|r| r.start);
    reports
}

/// Every byte of the short texts; of the long real ones a cut in each word, the work is squared.
fn stride(text: &[u8]) -> usize {
    1 + text.len() / (8 << 10) * 4
}

fn summary(reports: &[Report]) -> Vec<String> {
    let guilty = |r: &Report| r.guilty.clone().unwrap_or("-".into());
    reports.iter().map(|r| format!("{:?}@{}", r.class, guilty(r))).collect()
}

#[test]
fn each_console_gives_its_reports() {
    let texts = texts();
    let table = std::fs::read_to_string(folder().join("expected.txt")).unwrap();
    let mut rows = 0;
    let mut wrong = Vec::new();
    for row in table.lines().filter(|l| !l.starts_with('#')) {
        let (name, wanted) = row.split_once(':').unwrap();
        rows += 1;
        let seen = summary(&scan(&texts[name]));
        let wanted: Vec<&str> = wanted.split_whitespace().collect();
        let fits = |(w, s): (&&str, &String)| match w.strip_suffix("@*") {
            Some(class) => s.split('@').next() == Some(class),
            None => w == s,
        };
        if wanted.len() != seen.len() || !wanted.iter().zip(&seen).all(fits) {
            wrong.push(format!("{name}: wanted {wanted:?}, saw {seen:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(rows, texts.len(), "every text has a row");
    assert!(rows >= 60);
}

#[test]
fn titles_and_signatures_hold_no_numbers_of_the_run() {
    let hex = regex::Regex::new("0x|[0-9a-f]{8}|#[0-9]|pid|\\.isra|\\.cold|\\.constprop").unwrap();
    for (name, text) in texts() {
        for report in scan(&text) {
            assert!(!hex.is_match(&report.title), "{name}: {}", report.title);
            assert!(!hex.is_match(&report.signature), "{name}: {}", report.signature);
            assert!(!report.signature.contains(' '), "{name}: {}", report.signature);
            assert!(report.start < report.end && report.end <= text.len() as u64, "{name}");
        }
    }
}

#[test]
fn one_defect_has_one_signature_on_both_kernels() {
    let texts = texts();
    let a = &scan(&texts["kasan-uaf-6.1"])[0].signature;
    let b = &scan(&texts["kasan-slab-uaf-6.12-caller"])[0].signature;
    assert_eq!(a, b);
    assert_eq!(a, "kasan/use-after-free/__unmap_hugepage_range");
}

#[test]
fn every_split_gives_the_same_reports() {
    let (start, mut tried) = (Instant::now(), 0);
    for (name, text) in texts() {
        let whole = scan(&text);
        for cut in (0..=text.len()).step_by(stride(&text)) {
            let mut scanner = Scanner::new();
            let mut reports = scanner.push(&text[..cut]);
            reports.extend(scanner.push(&text[cut..]));
            reports.extend(scanner.finish());
            reports.sort_by_key(|r| r.start);
            assert_eq!(whole, reports, "{name} cut at {cut}");
            tried += 1;
        }
        for size in [1, 2, 3, 7, 64, 4096] {
            assert_eq!(whole, in_chunks(&text, size), "{name} in chunks of {size}");
        }
    }
    trials::fault("F16", "reports of kernels, cut in two", tried, 0, start);
}

#[test]
fn any_prefix_is_read_and_whole_lines_add_no_reports() {
    for (name, text) in texts() {
        let whole = scan(&text).len();
        for cut in (0..text.len()).step_by(stride(&text)) {
            // A line cut in two may read as another one; it is one report more at worst.
            let spare = usize::from(cut > 0 && text[cut - 1] != b'\n');
            assert!(scan(&text[..cut]).len() <= whole + spare, "{name} cut at {cut}");
        }
    }
}

#[test]
fn a_console_may_hold_anything_around_a_report() {
    let texts = texts();
    let report = &texts["warn-6.1"];
    let alone = scan(report);
    let mut flood = vec![b'x'; 1 << 20];
    flood.push(b'\n');
    flood.extend_from_slice(report);
    let seen = scan(&flood);
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].signature, alone[0].signature);
    assert_eq!(seen[0].start, alone[0].start + (1 << 20) + 1);
}

#[test]
fn floods_are_read_fast_and_capped() {
    let timed = |text: &[u8]| {
        let start = Instant::now();
        let reports = scan(text);
        (reports.len(), start.elapsed())
    };
    let one_line = vec![b'B'; 10 << 20];
    let words = b"BUG: ".repeat(2 << 20);
    let rows = b"BUG: Bad rss-counter state mm:1 type:MM_ANONPAGES val:1\n".repeat(150_000);
    let opens = b"WARNING: CPU: 0 PID: 1 at mm/x.c:1 f+0x1/0x2\n".repeat(200_000);
    let nul = vec![0u8; 10 << 20];
    let newlines = vec![b'\n'; 10 << 20];
    let (start, floods) = (Instant::now(), [&one_line, &words, &rows, &opens, &nul, &newlines]);
    for text in floods {
        let (found, took) = timed(text);
        assert!(found <= 1024, "{found}");
        assert!(took < Duration::from_secs(10), "{took:?}");
    }
    trials::fault("F14", "floods of 10 MB, read", floods.len() as u64, 0, start);
}

#[test]
fn dropped_reports_are_counted() {
    let mut scanner = Scanner::new();
    let row = b"BUG: Bad rss-counter state mm:1 type:MM_ANONPAGES val:1\n";
    let given: usize = (0..1500).map(|_| scanner.push(row).len()).sum();
    assert_eq!((given, scanner.dropped()), (1024, 476));
}

/// Ordinary text against one plain pass over the same bytes. The bound is far below what an idle
/// machine reaches, so that a busy one passes; the figures are printed.
#[test]
fn ordinary_text_is_read_at_speed() {
    let boot = &texts()["benign-boot-6.1"];
    let text: Vec<u8> = boot.iter().copied().cycle().take(32 << 20).collect();
    let start = Instant::now();
    let lines = text.iter().filter(|b| **b == b'\n').count();
    let plain = start.elapsed();
    let start = Instant::now();
    assert!(scan(&text).is_empty());
    let took = start.elapsed();
    let rate = text.len() as f64 / 1e6 / took.as_secs_f64();
    let ratio = took.as_secs_f64() / plain.as_secs_f64();
    println!("{lines} lines, {rate:.0} MB/s, {ratio:.1} times a plain pass");
    assert!(rate > 20.0, "{rate:.0} MB/s");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_bytes_any_split(
        pieces in prop::collection::vec(piece(), 0..40),
        cuts in prop::collection::vec(1usize..50, 1..20),
    ) {
        let text = pieces.concat();
        let whole = scan(&text);
        let mut scanner = Scanner::new();
        let mut reports = Vec::new();
        let mut rest = text.as_slice();
        for size in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (now, later) = rest.split_at((*size).min(rest.len()));
            reports.extend(scanner.push(now));
            rest = later;
        }
        reports.extend(scanner.finish());
        reports.sort_by_key(|r| r.start);
        prop_assert_eq!(whole, reports);
    }
}

/// Scraps of reports, noise and line ends.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let scraps: Vec<&'static [u8]> = vec![
        b"\n",
        b"\r\n",
        b"[   12.500000] ",
        b"[   12.500100][  T12] ",
        b"[   99.000000][    C1] ",
        b"BUG: KASAN: use-after-free in f+0x1/0x2",
        b"WARNING: CPU: 0 PID: 1 at mm/x.c:1 g+0x1/0x2",
        b"Call Trace:",
        b" <TASK>",
        b" </TASK>",
        b" hugetlb_fault+0x1/0x2",
        b"\x1b[",
        b"\x1b]",
        b"Kernel panic - not syncing: Fatal exception",
        b"---[ end trace 0 ]---",
        b"\xff\0",
        b"==========================================================",
        b"Linux version 6",
        b"BUG: Bad rss-counter state mm:1 type:MM val:1",
        b"watchdog: BUG: soft lockup",
        b"BUG",
        b"mm/x.c:1: bad pmd 1(2)",
        b"x invoked oom-killer: ",
        b"Oops: 0000 [#1]",
        b"[",
        b"]",
    ];
    prop_oneof![
        6 => prop::sample::select(scraps).prop_map(|s| s.to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..20),
    ]
}
