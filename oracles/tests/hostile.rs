//! The console and the list of known deviations, broken in every way.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

use oracles::console::{Report, Scanner, decode, scan};
use oracles::known::Known;
use std::path::Path;
use std::time::Instant;
use trials::Trial;

fn pieces(text: &[u8], sizes: &[usize]) -> Vec<Report> {
    let mut scanner = Scanner::new();
    let mut reports = Vec::new();
    let mut rest = text;
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (now, later) = rest.split_at((*size).min(rest.len()));
        reports.extend(scanner.push(now));
        rest = later;
    }
    reports.extend(scanner.finish());
    reports.sort_by_key(|report| report.start);
    reports
}

#[test]
fn consoles() {
    let start = Instant::now();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/console");
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| !path.ends_with("expected.txt"));
    paths.sort();
    let seeds = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
    let words = [
        "\n",
        "[   12.500000] ",
        "BUG: ",
        "WARNING: CPU: 0 PID: 1 at ",
        "Call Trace:\n",
        " hugetlb_fault+0x1/0x2\n",
        "RIP: 0010:",
        "\x1b[",
        "---[ end trace 0 ]---",
        "Oops: ",
    ];
    let figures = Trial::new("consoles", seeds).words(&words).memory_max(8 << 20).run(|bytes| {
        let whole = scan(bytes);
        for sizes in [&[1][..], &[3, 64, 1, 700], &[4096]] {
            assert_eq!(pieces(bytes, sizes), whole, "in pieces of {sizes:?}");
        }
        for report in &whole {
            assert!(report.start < report.end && report.end <= bytes.len() as u64, "{report:?}");
            assert!(!report.signature.is_empty() && !report.signature.contains(['\n', ' ']));
            let _ = decode(report.text(bytes), &mut |_| Vec::new());
        }
    });
    trials::fault("F16", "reports, mutated and cut anywhere", figures.executions, 0, start);
}

#[test]
fn lists_of_known_deviations() {
    let start = Instant::now();
    let list = include_bytes!("../known.toml").to_vec();
    let one = b"[[deviation]]\nid = \"A\"\nfamilies = [\"U61\"]\nsignatures = [\"*/read/*\"]\n\
        title = \"t\"\nwhy = \"w\"\n"
        .to_vec();
    let words = ["[[deviation]]\n", "\"\"\"", "[[", "]]", "{", "signatures = [", "*", "\\u0000"];
    let figures = Trial::new("known", vec![list, one]).words(&words).run(|bytes| {
        let Ok(known) = Known::parse(&String::from_utf8_lossy(bytes)) else { return };
        let both = Known::builtin().with(known.clone());
        assert!(both.deviation.len() >= known.deviation.len());
    });
    trials::fault("F6", "lists of known deviations, mutated", figures.executions, 0, start);
}
