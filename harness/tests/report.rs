//! `hgm report` as a user calls it: console logs against a small ELF file the compiler makes, and
//! coverage of runs written by hand. No VM is started here.

#![allow(clippy::unwrap_used)]

#[path = "support/elf.rs"]
mod elf;
#[allow(dead_code, reason = "other tests use the rest of it")]
mod support;

use std::fs;
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
    assert_eq!(place.hgm(&["report"]).code, 2);
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
