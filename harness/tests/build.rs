//! `hgm kernel build` as a user meets it: what it prints, its exit codes, Ctrl-C. The sources are a
//! tree of one C file with a Makefile that knows the kernel's targets; kernels are `ci/kernels`.

#![allow(clippy::unwrap_used)] // helpers outside `#[test]` may panic as a test may

#[allow(dead_code)] // other tests use the rest of it
mod support;

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};
use support::{Out, Place};

const MAKEFILE: &str = "VERSION = 6
PATCHLEVEL = 1
KCONFIG_CONFIG ?= .config
allnoconfig:
\t@: >$(O)/$(KCONFIG_CONFIG)
olddefconfig:
\t@true
bzImage:
\t@echo '  CC      mm/a.o'
\tcc -c mm/a.c -o $(O)/a.o
\t@sleep 60
";

fn tree(place: &Place, code: &str) {
    for folder in ["arch/x86", "scripts/kconfig", "mm"] {
        fs::create_dir_all(place.path("linux").join(folder)).unwrap();
    }
    place.write("linux/Makefile", MAKEFILE);
    place.write("linux/Kconfig", "");
    place.write("linux/mm/a.c", code);
}

fn build(place: &Place, more: &[&str]) -> Out {
    let mut args = vec!["kernel", "build", "--source", "linux", "--jobs", "1"];
    args.extend(more);
    place.hgm(&args)
}

#[test]
fn a_tree_that_does_not_build_ends_with_101_and_shows_the_first_error() {
    let place = Place::new();
    tree(&place, "int f(void) { return missing; }\n");
    let out = build(&place, &["--no-base-fixes"]);
    assert_eq!((out.code, out.stdout.as_str()), (101, ""), "{}", out.stderr);
    for word in ["make bzImage failed", "mm/a.c:1:", "missing", "build.log"] {
        assert!(out.stderr.contains(word), "{word}: {}", out.stderr);
    }
    let json = build(&place, &["--json"]).json();
    assert_eq!((&json["code"], &json["name"]), (&101.into(), &"kernel-build".into()));
    assert!(json["cause"].as_str().unwrap().contains("mm/a.c:1:"), "{json}");
    assert_eq!(place.hgm(&["kernel", "list", "--json"]).json()["kernels"], serde_json::json!([]));
}

#[test]
fn a_patch_that_does_not_apply_ends_with_101_and_names_its_hunk() {
    let place = Place::new();
    tree(&place, "int a;\n");
    place.write("p.patch", "--- a/mm/a.c\n+++ b/mm/a.c\n@@ -1 +1 @@\n-int b;\n+int c;\n");
    let out = build(&place, &["--patch", "p.patch"]);
    assert_eq!(out.code, 101, "{}", out.stderr);
    assert!(out.stderr.contains("p.patch does not apply: mm/a.c: hunk 1"), "{}", out.stderr);
}

#[test]
fn ctrl_c_ends_a_build_with_130_and_nothing_goes_on() {
    let place = Place::new();
    tree(&place, "int a;\n");
    let mut command = place.plain(&["kernel", "build", "--source", "linux"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let object = || {
        let builds = fs::read_dir(place.path("home/builds")).into_iter().flatten().flatten();
        builds.into_iter().any(|dir| dir.path().join("out/a.o").exists())
    };
    let start = Instant::now();
    while !object() {
        assert!(start.elapsed() < Duration::from_secs(30), "nothing was compiled");
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let stopped = Instant::now();
    let code = child.wait().unwrap().code();
    assert_eq!(code, Some(130));
    assert!(stopped.elapsed() < Duration::from_secs(20));
    assert!(!place.path("home/kernels").exists());
}
