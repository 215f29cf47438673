//! Runs made by hand for the tests: one with everything and hostile text wherever a guest or a
//! kernel can put some, one of an old version that kept little, one with nothing.

#![allow(clippy::unwrap_used, dead_code)]

use case::{Elsewhere, Finding, FindingState, Source, Violation};
use reports::{CoveredFile, Kept, KeptFinding, Steps};
use serde_json::json;
use std::collections::BTreeMap;
use store::{Counters, EventRow, RunMeta};

/// Text that does harm where a sink forgets to escape it.
pub const HOSTILE: &str = "</textarea></pre><script>document.title='pwned'</script>\
    <img src=x onerror=\"document.title='pwned'\">\u{0}\u{1b}[31mred\u{9b}2J\u{202e}\n\
    ::error::pwned\n##[error]pwned\n]]>&amp;' \" `${1}` | @all [a](http://b.example)";
/// What a finding under embargo says; must be in no output.
pub const SECRET: &str = "secret-refcount-underflow";

pub fn finding(signature: &str, state: FindingState) -> KeptFinding {
    let violation = Violation {
        rule: "M-002".into(),
        line: 1,
        op: "move_pages".into(),
        class: "x".into(),
        expected: "entry 4: ENOENT [M-002: node of a moved page, -ENOENT for nothing there]".into(),
        observed: "-14".into(),
        expectation: None,
    };
    KeptFinding {
        slug: signature.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "-"),
        finding: Finding {
            signature: signature.into(),
            title: format!("{} at move_pages", signature.split('/').next().unwrap()),
            source: Source::Oracle,
            state,
            known: (state == FindingState::Known).then(|| "N03".into()),
            kernel: "debian-6.1.192-2".into(),
            seed: 7,
            reproduced: if state == FindingState::Confirmed { (5, 5) } else { (0, 0) },
            elsewhere: Some(Elsewhere { kernel: "kasan-6.1".into(), reproduced: (3, 5) }),
            count: 4,
            violation: Some(violation),
            embargo: false,
            replay: format!("hgm repro {}", signature.to_lowercase().replace('/', "-")),
        },
        program: "hgm 1\n\nmmap at=r0 len=2M\nmove_pages at=r0 len=24K\nread at=r0 len=16K\n".into(),
        small: String::new(),
        compared: "M-002 at move_pages\nsignature  x\n\n    0  mmap at=r0 len=2M      ok 0\n\
            \x20        expected  ok 0\n!   1  move_pages at=r0 len=24K  ok 0  nodes [0, -14]\n\
            \x20        expected  entry 4: ENOENT\n         observed  -14\n         rules     M-002\n\
            \x20   2  read at=r0 len=16K  ok 0  content 4x[0x7:0 0x7:0]\n"
            .into(),
        report: String::new(),
        console: Vec::new(),
        first_at: "2026-11-21T19:40:36.121Z".into(),
        last_at: "2026-11-21T19:45:12.965Z".into(),
        kernel: json!({ "profile": { "release": "6.1.0-56-amd64", "version": "#1 SMP" } }),
    }
}

/// Hostile in every field a guest or an attacker of the run folder can reach.
pub fn hostile() -> KeptFinding {
    let mut kept = finding("warn/hostile", FindingState::Confirmed);
    kept.finding.title = format!("WARNING in {HOSTILE}");
    kept.finding.signature = format!("warn/-/{HOSTILE}");
    kept.finding.source = Source::Console;
    kept.finding.kernel = HOSTILE.into();
    kept.finding.replay = format!("hgm repro {HOSTILE}");
    kept.finding.violation = Some(Violation {
        rule: HOSTILE.into(),
        line: 1,
        op: HOSTILE.into(),
        class: HOSTILE.into(),
        expected: HOSTILE.into(),
        observed: HOSTILE.into(),
        expectation: None,
    });
    kept.program = format!("hgm 1\n# {HOSTILE}\nmmap at=r0 len=2M\n");
    kept.small = kept.program.clone();
    kept.report =
        format!("WARNING in x\n  function   hugetlb_fault  mm/hugetlb.c:4908\n  {HOSTILE}\n");
    kept.console = format!("[    1.0] {HOSTILE}\n").into_bytes();
    kept.console.extend([0xff, 0xfe, 0, 1, 2]);
    kept.compared = format!("!   0  {}  {}\n", HOSTILE.replace('\n', " "), "x");
    kept.kernel = json!({ "profile": { "release": HOSTILE, "version": HOSTILE } });
    kept
}

fn event(seq: i64, kind: &str, mut body: serde_json::Value, s: u64) -> EventRow {
    body["ms"] = (s * 1000).into();
    EventRow { seq, at: "2026-11-21T19:40:11.25Z".into(), kind: kind.into(), body }
}

/// What happened in ten minutes of four VMs.
fn events() -> Vec<EventRow> {
    let mut out = Vec::new();
    for slot in 0..4u64 {
        let ready = format!("{} ms", 900 + slot * 120);
        out.push(event(0, "vm-booted", json!({ "slot": slot, "detail": ready }), 2 + slot));
    }
    for at in 1..120u64 {
        let s = at * 5;
        let grown = (at as f64).ln() * 230.0;
        out.push(event(
            0,
            "sample",
            json!({
                "programs": at * 44 + at % 7 * 9, "states": grown as u64 + 40,
                "corpus": (grown * 0.31) as u64, "findings": at / 47, "inconclusive": at / 31,
                "blocks": 21_000 + (grown * 9.0) as u64, "rss_kib": 280_000 + at % 13 * 900, "up": 4,
            }),
            s,
        ));
        if at % 17 == 0 {
            let slot = at / 17 % 4;
            let detail = format!("{} ms", 420 + at * 7 % 260);
            out.push(event(0, "vm-booted", json!({ "slot": slot, "detail": detail }), s));
        }
    }
    let died = json!({ "slot": 2, "detail": format!("WARNING in {HOSTILE}") });
    out.push(event(0, "vm-died", died, 300));
    out.push(event(0, "vm-died", json!({ "slot": 1, "detail": format!("BUG in {SECRET}") }), 340));
    out.push(event(0, "vm-boot-failed", json!({ "slot": 1, "detail": "no answer" }), 352));
    out.push(event(0, "vm-booted", json!({ "slot": 2, "detail": "810 ms" }), 304));
    out.push(event(0, "vm-booted", json!({ "slot": 1, "detail": "700 ms" }), 365));
    for (class, ended) in [("wrong-errno", "found"), ("wrong-content", "found"), (HOSTILE, "found")]
    {
        out.push(event(0, "canary", json!({ "class": class, "ended": ended }), 20));
    }
    out.push(event(0, "inconclusive", json!({ "why": "a par block changed mappings" }), 30));
    out.sort_by_key(|e| e.body["ms"].as_u64());
    out
}

fn steps() -> Steps {
    let ops = [
        "mmap",
        "munmap",
        "mremap",
        "mprotect",
        "madvise",
        "read",
        "write",
        "pread",
        "pwrite",
        "fallocate",
        "punch",
        "ftruncate",
        "fork",
        "exit",
        "continue",
        "copy",
        "zeropage",
        "writeprotect",
        "register",
        "unregister",
        "move_pages",
        "mbind",
        "vmsplice",
        "direct_io",
    ];
    let states = [
        "unmapped",
        "anon-base-none",
        "anon-base-own",
        "anon-2m-own",
        "shared-2m-cached",
        "private-2m-unshared",
        "anon-base-zero",
        "shared-2m-none-armed",
        "anon-2m-marker-wp",
        "shared-base-cached",
        "private-2m-own-wp",
        "anon-base-hwpoison",
    ];
    let mut out = Steps::default();
    for (i, op) in ops.iter().enumerate() {
        for (j, before) in states.iter().enumerate() {
            for _ in 0..(i * 7 + j * 13) % 23 * usize::from((i + j) % 3 != 0) * (24 - i) {
                out.count(op, before, states[(i + j * 5) % states.len()]);
            }
        }
    }
    out.count(HOSTILE, HOSTILE, HOSTILE);
    out
}

/// A run with everything.
pub fn full() -> Kept {
    let mut secret = finding(&format!("refcount/-/{SECRET}"), FindingState::Confirmed);
    secret.finding.title = format!("BUG in {SECRET}");
    secret.finding.embargo = true;
    let mut shrunk = finding("A-003/madvise/ok->EINVAL", FindingState::Confirmed);
    shrunk.small = "hgm 1\n\nmmap at=r0 len=2M\nmadvise at=r0 len=2M advice=collapse\n".into();
    let mut findings = vec![secret, hostile(), shrunk];
    findings.push(finding("U-065/madvise/extra:remove", FindingState::Unconfirmed));
    for at in 0..9 {
        let mut known = finding(&format!("X-0{at}/madvise/rsvd:low"), FindingState::Known);
        known.finding.count = 3 + at * at;
        findings.push(known);
    }
    let summary = json!({
        "seconds": 600.4, "programs": 5290, "profile": "U61", "vms": 18, "vms_cloned": 14,
        "vm_ready_ms": 741, "vm_rss_kib": 71_112, "exec_share": 0.65, "judge_us_per_program": 812.0,
        "seconds_to_first_program": 6.07, "inconclusive": 4, "states": 1131,
        "coverage": { "blocks": 30_911, "functions_reached": 1204, "functions_known": 3322 },
    });
    let counters = Counters {
        elapsed_ms: 600_400,
        programs: 5290,
        ops: 75_220,
        states: 1131,
        corpus: 342,
        findings: 3,
        inconclusive: 4,
        vm_restarts: 18,
        canaries_planted: 15,
        canaries_found: 15,
    };
    let notes = BTreeMap::from([
        ("summary".to_owned(), summary),
        ("exit".to_owned(), json!(100)),
        ("steps".to_owned(), steps().to_json()),
        ("profile".to_owned(), json!({ "release": "6.1.0-56-amd64", "huge_2m": true, "nodes": 2 })),
        (
            "kernel".to_owned(),
            json!({ "source": "Debian package linux-image-6.1.0-56-amd64",
            "image blake3": "5bd1e5f3c1a0c9b2d2a8870f5bd1e5f3c1a0c9b2d2a8870f5bd1e5f3c1a0c9b2" }),
        ),
        (
            "fleet".to_owned(),
            json!({ "own": "lab-1-194011-56aa", "machines": {
                "lab-1-194011-56aa": { "kernel": "debian-6.1.192-2", "vms": 4, "programs": 20_411,
                    "seconds": 600, "corpus": 812, "findings": 3, "at": "2026-11-21T19:50:09Z" },
                "lab-2-194020-11ff": { "kernel": HOSTILE, "vms": 4, "programs": 19_876,
                    "seconds": 590, "corpus": 809, "findings": 2, "at": HOSTILE },
                "lab-3-194102-77ab": { "works": true, "kernel": "debian-6.1.192-2", "vms": 2,
                    "programs": 61, "seconds": 540, "leases": 2, "at": "2026-11-21T19:50:10Z" },
            }}),
        ),
        ("host".to_owned(), json!({ "accelerator": "tcg", "QEMU": "7.2.22", "CPUs": 4 })),
        (
            "config".to_owned(),
            json!([
                { "key": "jobs", "value": "4", "origin": "--jobs" },
                { "key": "corpus", "value": HOSTILE, "origin": "hgm.toml:3" },
            ]),
        ),
    ]);
    Kept {
        id: "20261121-194011-56aa".into(),
        meta: Some(RunMeta {
            kernel: "debian-6.1.192-2".into(),
            profile: "default".into(),
            seed: 7,
            version: "0.1.0".into(),
            command: ["hgm", "fuzz", "--kernel", "debian-6.1", "--for", "10m", "--jobs", "4"]
                .map(String::from)
                .to_vec(),
            started: "2026-11-21T19:40:11.25Z".into(),
        }),
        notes,
        counters: vec![("2026-11-21T19:50:11.65Z".into(), counters)],
        events: events(),
        findings,
        coverage: ["hugetlb.c", "userfaultfd.c", "khugepaged.c", "mremap.c", "memory.c"]
            .iter()
            .enumerate()
            .map(|(at, file)| CoveredFile {
                file: format!("mm/{file}"),
                blocks: 700 - at * 90,
                functions_reached: 90 - at * 14,
                functions_known: 120,
            })
            .collect(),
        trouble: vec![format!("finding {HOSTILE} cannot be read")],
        ..Kept::default()
    }
}

/// A run of a version that kept checkpoints and little else.
pub fn old() -> Kept {
    let row = |s: u64| {
        let counters = Counters {
            elapsed_ms: s * 1000,
            programs: s * 3,
            ops: s * 30,
            states: s * 2,
            corpus: s,
            canaries_planted: 5,
            canaries_found: 5,
            ..Counters::default()
        };
        (format!("2026-11-20T10:00:{s:02}Z"), counters)
    };
    Kept {
        id: "20261120-100000-aaaa".into(),
        meta: full().meta,
        counters: (1..6).map(|at| row(at * 10)).collect(),
        events: vec![EventRow {
            seq: 1,
            at: "2026-11-20T10:00:03Z".into(),
            kind: "vm-booted".into(),
            body: json!({ "slot": 0, "detail": "2462 ms" }),
        }],
        ..Kept::default()
    }
}
