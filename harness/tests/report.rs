//! `hgm report` and `hgm trend` as a user calls them: console logs against a small ELF file the
//! compiler makes, and runs written by hand. No VM is started here.

#![allow(clippy::unwrap_used)]

#[path = "support/elf.rs"]
mod elf;
#[allow(dead_code, reason = "other tests use the rest of it")]
mod support;

use case::{Finding, FindingState, Source};
use std::fs;
use store::{Counters, Evidence, RunMeta, Runs};
use support::{Place, fake_kernel};

const KERNEL: &str = "6.1.0-test";

/// A console of that kernel with one report, and the printed form of the address it blames.
fn console(place: &Place, flags: &[&str]) -> (String, String) {
    fake_kernel(place, KERNEL);
    let vmlinux = place.path("home/kernels").join(KERNEL).join("vmlinux");
    let built = place.path("elf");
    fs::create_dir_all(&built).unwrap();
    let elf = elf::build(&built, true, flags);
    fs::copy(&elf, vmlinux).unwrap();
    let at = elf::printed(&elf, elf::marks(&elf)[2]);
    let text = format!(
        "[    0.000000] Linux version {KERNEL} (a@b) (gcc) #1 SMP\n\
         [    1.000001] WARNING: CPU: 0 PID: 7 at include/linux/inner.h:4 {at}\n\
         [    1.000002] RIP: 0010:{at}\n[    1.000003] Call Trace:\n[    1.000004]  <TASK>\n\
         [    1.000005]  evil\u{1b}[2J+0x1/0x2\n[    1.000006]  </TASK>\n\
         [    1.000007] ---[ end trace 0000000000000000 ]---\n"
    );
    (text, at)
}

#[test]
fn a_console_log_is_told_with_lines_of_source() {
    let place = Place::new();
    let (text, at) = console(&place, &["-g"]);
    place.write("dmesg.txt", &text);
    let out = place.hgm(&["report", "--console", "dmesg.txt"]);
    assert_eq!((out.code, out.stderr.as_str()), (0, ""));
    for words in [
        "WARNING in hugetlb_fault\n",
        "  function   hugetlb_fault  mm/hugetlb.c:10\n",
        "  signature  warn/-/hugetlb_fault\n",
        "RIP: 0010:inner include/linux/inner.h:4 [inline]\n",
        &format!("RIP: 0010:{at} mm/hugetlb.c:10\n"),
    ] {
        assert!(out.stdout.contains(words), "{words:?} not in {}", out.stdout);
    }
    assert!(!out.stdout.contains('\u{1b}'));
    let piped = place.hgm_with(&["report", "--console", "-", "--json"], |c| {
        c.write_stdin(text.clone());
    });
    let json = piped.json();
    assert_eq!(json["kernel"], KERNEL);
    assert_eq!(json["symbols_note"], serde_json::Value::Null);
    assert_eq!(json["reports"][0]["guilty_at"], "mm/hugetlb.c:10");
    let rip = &json["reports"][0]["stacks"][1];
    assert_eq!((&rip["of"], &rip["frames"][0]["kind"]), (&"RIP".into(), &"exact".into()));
    assert_eq!(rip["frames"][0]["places"][0]["at"], "include/linux/inner.h:4");
}

#[test]
fn a_log_of_no_known_kernel_is_read_all_the_same() {
    let place = Place::new();
    let (text, _) = console(&place, &[]);
    place.write("dmesg.txt", &text);
    let out = place.hgm(&["report", "--console", "dmesg.txt"]);
    assert!(out.stderr.contains("no line tables"), "{}", out.stderr);
    place.write("other.txt", &text.replace(KERNEL, "9.9.9"));
    let out = place.hgm(&["report", "--console", "other.txt"]);
    assert_eq!(out.code, 0);
    assert!(out.stdout.contains("warn/-/hugetlb_fault"), "{}", out.stdout);
    assert!(out.stderr.contains("no kernel is named"), "{}", out.stderr);
    place.write("calm.txt", "[    0.000000] all is well\n");
    let out = place.hgm(&["report", "--console", "calm.txt"]);
    assert_eq!((out.code, out.stdout.as_str()), (0, "no kernel report in it\n"));
    let named = place.hgm(&["report", "--console", "other.txt", "--kernel", "6.2"]);
    assert_eq!(named.code, 3);
    assert_eq!(place.hgm(&["report", "--console", "nope"]).code, 3);
    assert_eq!(place.hgm(&["report"]).code, 3);
    assert_eq!(place.hgm(&["report", "--coverage", "--console", "x"]).code, 2);
}

/// A run that kept this much.
fn run(place: &Place, id: &str, coverage: bool) {
    let dir = place.path("home/runs").join(id);
    fs::create_dir_all(&dir).unwrap();
    if !coverage {
        return;
    }
    let row = |file: &str, reached: usize, missed: usize| {
        let names = |n: usize| (0..n).map(|at| format!("f{at}")).collect::<Vec<_>>();
        serde_json::json!({
            "file": file, "blocks": reached * 3,
            "reached": names(reached), "not_reached": names(missed),
        })
    };
    let report = serde_json::json!({
        "kernel": format!("kernel-of-{id}"), "source": "plugin", "focus": [],
        "files": [
            row("fs/x.c", 0, 9), row("mm/a.c", 1, 3), row("mm/b.c", 0, 2), row("mm/c.c", 2, 0),
        ],
        "ranges": [[0x1000, 0x2000]], "cells": [],
    });
    fs::write(dir.join("coverage.json"), report.to_string()).unwrap();
}

#[test]
fn coverage_is_of_the_newest_run_that_has_some() {
    let place = Place::new();
    let none = place.hgm(&["report", "--coverage"]);
    assert_eq!(none.code, 3);
    assert!(none.stderr.contains("no run yet"), "{}", none.stderr);
    run(&place, "20260101-000000-aaaa", true);
    run(&place, "20260102-000000-bbbb", true);
    run(&place, "20260103-000000-cccc", false);
    let out = place.hgm(&["report", "--coverage"]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    assert!(
        out.stdout.starts_with("run 20260102-000000-bbbb, kernel kernel-of-2"),
        "{}",
        out.stdout
    );
    assert!(out.stderr.contains("20260103-000000-cccc"), "{}", out.stderr);
    let least = out.stdout.split("least reached files of mm/:\n").nth(1).unwrap();
    let files: Vec<&str> =
        least.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(files, ["mm/b.c", "mm/a.c", "mm/c.c"]);
    let json = place.hgm(&["report", "--coverage", "--json"]).json();
    assert_eq!(json["run"], "20260102-000000-bbbb");
    let first = &json["least_reached_files"][1];
    let figures = ["functions_reached", "functions_known", "blocks"].map(|key| first[key].clone());
    assert_eq!(figures, [1, 4, 3]);
    let named = place.hgm(&["report", "--coverage", "20260101", "--json"]).json();
    assert_eq!(named["run"], "20260101-000000-aaaa");
    let named = place.hgm(&["report", "--coverage", "20260103"]);
    assert_eq!(named.code, 3);
    assert!(named.stderr.contains("20260103-000000-cccc"), "{}", named.stderr);
}

/// A run of the store's own making with two findings; gives its id. `secret` is under embargo.
fn kept(place: &Place, seed: u64, secret: bool) -> String {
    let run = Runs::of(&place.path("home")).create(seed).unwrap();
    let mut journal = run.journal().unwrap();
    let meta = RunMeta {
        kernel: "debian-6.1".into(),
        profile: "default".into(),
        seed,
        version: "0.1.0".into(),
        command: vec!["hgm".into(), "fuzz".into()],
        started: "2026-11-21T19:40:11Z".into(),
    };
    journal.begin(&meta).unwrap();
    let counters = Counters { elapsed_ms: 9000, programs: 90 + seed, ..Counters::default() };
    journal.count(&counters).unwrap();
    journal.set_note("summary", "{\"seconds\":9.5,\"programs\":90,\"profile\":\"U61\"}").unwrap();
    journal.set_note("exit", "100").unwrap();
    let mut findings = run.findings().unwrap();
    let program = case::text::parse("hgm 1\n\nmmap at=r0 len=2M\n").unwrap();
    for (signature, embargo) in [("A-003/madvise/told", false), ("refcount/-/untold", secret)] {
        let finding = Finding {
            signature: signature.into(),
            title: format!("title of {signature}\u{1b}[2J"),
            source: Source::Oracle,
            state: FindingState::Confirmed,
            known: None,
            kernel: "debian-6.1".into(),
            seed,
            reproduced: (4, 5),
            elsewhere: None,
            count: 2,
            violation: None,
            embargo,
            replay: "hgm repro x".into(),
        };
        let evidence = Evidence {
            program: &program,
            compared: "!   0  mmap at=r0 len=2M  EINVAL\n         expected  ok 0\n",
            console: b"\xff<script>\n",
            report: "",
            kernel: &serde_json::json!({}),
        };
        let slug = findings.record(&finding, evidence).unwrap().slug;
        journal.index_finding(&slug, &finding).unwrap();
    }
    run.id
}

#[test]
fn a_run_is_told_in_every_form_and_an_embargo_holds() {
    let place = Place::new();
    let id = kept(&place, 1, true);
    let out = place.hgm(&["report"]);
    assert_eq!((out.code, out.stderr.as_str()), (0, ""));
    assert!(out.stdout.starts_with("1 new finding confirmed"), "{}", out.stdout);
    assert!(out.stdout.contains(&id) && out.stdout.contains("A-003/madvise/told"));
    assert!(out.stdout.contains("withheld") && !out.stdout.contains("untold"));
    assert!(!out.stdout.contains('\u{1b}'));

    let forms = ["html", "json", "junit", "sarif", "md", "github", "gitlab"];
    let args = forms.iter().flat_map(|form| ["--export".to_owned(), format!("{form}=out.{form}")]);
    let args: Vec<String> =
        ["report".to_owned(), "latest".to_owned()].into_iter().chain(args).collect();
    let out = place.hgm(&args);
    assert_eq!((out.code, out.stdout.as_str()), (0, ""));
    assert!(out.stderr.contains("1 finding(s) withheld"), "{}", out.stderr);
    for form in forms {
        let text = fs::read_to_string(place.path(&format!("out.{form}"))).unwrap();
        assert!(text.contains("A-003/madvise/told") || form == "md", "{form}");
        assert!(!text.contains("untold") && !text.contains('\u{1b}'), "{form}");
    }
    assert!(
        fs::read_dir(place.root())
            .unwrap()
            .all(|entry| { !entry.unwrap().file_name().to_string_lossy().starts_with(".hgm-tmp") })
    );
    let json = place.hgm(&["report", &id, "--json"]).json();
    assert_eq!((&json["v"], &json["withheld"]), (&1.into(), &1.into()));
    let html = place.hgm(&["report", "--export", "html=-"]);
    assert!(html.stdout.starts_with("<!doctype html>"));
}

#[test]
fn what_is_marked_in_one_run_is_withheld_in_all() {
    let place = Place::new();
    let first = kept(&place, 1, true);
    let second = kept(&place, 2, false);
    for run in [&first, &second] {
        let out = place.hgm(&["report", run, "--export", "json=-"]);
        assert!(!out.stdout.contains("untold"), "{run}");
    }
    let diff = place.hgm(&["report", "--diff", &first, &second]);
    assert_eq!(diff.code, 0, "{}", diff.stderr);
    assert!(diff.stdout.contains("findings of both: 1") && !diff.stdout.contains("untold"));
    let trend = place.hgm(&["trend"]);
    assert_eq!(trend.code, 0, "{}", trend.stderr);
    assert!(trend.stdout.starts_with("2 run(s) of debian-6.1"), "{}", trend.stdout);
    let json = place.hgm(&["trend", "--last", "1", "--json"]).json();
    assert_eq!(json["runs"].as_array().unwrap().len(), 1);
    // Both began in the same second: their order is that of their ids.
    assert_eq!(json["runs"][0]["run"], *first.max(second.clone()));
    let html = place.hgm(&["trend", "--export", "html=trend.html"]);
    assert_eq!((html.code, html.stdout.as_str()), (0, ""));
    assert!(fs::read_to_string(place.path("trend.html")).unwrap().contains(&second));
}

#[test]
fn bad_exports_are_refused_and_nothing_is_replaced() {
    let place = Place::new();
    for args in [["report", "--export", "json=x"], ["trend", "--export", "html=x"]] {
        let out = place.hgm(&args);
        assert_eq!(out.code, 3);
        assert!(
            out.stderr.contains("no run yet") && out.stderr.contains("help: "),
            "{}",
            out.stderr
        );
    }
    kept(&place, 1, false);
    let code = |args: &[&str]| place.hgm(args).code;
    assert_eq!(code(&["report", "--export", "pdf=x"]), 2);
    assert_eq!(code(&["report", "--export", "html"]), 2);
    assert_eq!(code(&["report", "--export", "html=x", "--export", "json=x"]), 2);
    assert_eq!(code(&["report", "--export", "html=-", "--export", "json=-"]), 2);
    assert_eq!(code(&["report", "--export", "html=/dev/null"]), 3);
    assert_eq!(code(&["report", "--export", "html=no/such/folder/x"]), 3);
    assert_eq!(code(&["report", "nope", "--export", "html=x"]), 3);
    assert_eq!(code(&["report", "--diff", "latest"]), 2);
    assert_eq!(code(&["report", "--functions"]), 2);
    assert_eq!(code(&["trend", "--export", "sarif=x"]), 2);
    assert!(!place.path("x").exists());
}

#[test]
fn a_run_without_a_journal_is_told_as_such() {
    let place = Place::new();
    run(&place, "20260101-000000-aaaa", false);
    let out = place.hgm(&["report", "20260101", "--export", "html=-"]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    assert!(out.stdout.contains("has no journal"));
    fs::write(place.path("home/runs/20260101-000000-aaaa/journal.sqlite"), "not a database")
        .unwrap();
    let out = place.hgm(&["report"]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    assert!(out.stdout.contains("note: "), "{}", out.stdout);
}
