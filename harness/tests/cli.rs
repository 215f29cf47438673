//! The real binary: exit codes, error texts, JSON shapes, manners. No VM is started here.

#![allow(clippy::unwrap_used)]

mod support;

use hub::Exchange;
use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;
use std::time::{Duration, Instant};
use support::{Place, fake_kernel, finding};

const PROGRAM: &str = "hgm 1\n# why\n\nf0 = memfd\nftruncate file=f0 len=2M\n";

#[test]
fn help_is_there_for_every_verb_and_shows_examples() {
    let place = Place::new();
    let verbs = [
        "doctor",
        "status",
        "kernel add",
        "kernel build",
        "kernel list",
        "fuzz",
        "run",
        "repro",
        "shrink",
        "regress",
        "gate",
        "bisect",
        "findings list",
        "findings show",
        "findings mark",
        "findings merge",
        "findings split",
        "findings fetch",
        "report",
        "trend",
        "corpus list",
        "corpus show",
        "corpus add",
        "corpus verify",
        "config show",
        "config check",
        "completions",
        "man",
        "help",
    ];
    for verb in verbs {
        let words: Vec<&str> = verb.split(' ').chain(["--help"]).collect();
        let out = place.hgm(&words);
        assert_eq!(out.code, 0, "{verb}");
        assert!(out.stdout.contains("Examples:"), "{verb} has no examples");
        assert!(out.stdout.contains("--json"), "{verb} has no --json");
        assert!(out.stdout.lines().all(|l| l.chars().count() <= 80), "{verb} is too wide");
        assert_eq!(out.stderr, "");
    }
}

#[test]
fn help_texts() {
    let place = Place::new();
    insta::assert_snapshot!("help", place.hgm(&["--help"]).stdout);
    for verb in ["fuzz", "run", "repro", "shrink", "regress", "gate", "bisect", "doctor"] {
        insta::assert_snapshot!(format!("help_{verb}"), place.hgm(&["help", verb]).stdout);
    }
    insta::assert_snapshot!("help_exit_codes", place.hgm(&["help", "exit-codes"]).stdout);
    insta::assert_snapshot!("help_config", place.hgm(&["help", "config"]).stdout);
}

#[test]
fn topics_come_from_the_tables() {
    let place = Place::new();
    let ops = place.hgm(&["help", "ops"]).stdout;
    for kind in case::OpKind::ALL {
        assert!(ops.contains(kind.spec().name), "{}", kind.spec().name);
    }
    let json = place.hgm(&["help", "ops", "--json"]).json();
    assert_eq!(json["ops"].as_array().unwrap().len(), case::OpKind::ALL.len());
    let codes = place.hgm(&["help", "exit-codes", "--json"]).json();
    let codes: Vec<u64> = codes["exit_codes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["code"].as_u64().unwrap())
        .collect();
    assert_eq!(codes, [0, 1, 2, 3, 4, 5, 75, 100, 101, 102, 130, 143]);
    assert_eq!(place.hgm(&["help", "ops", "madvise"]).code, 0);
    let wrong = place.hgm(&["help", "ops", "madvice"]);
    assert_eq!(wrong.code, 2);
    assert!(wrong.stderr.contains("did you mean `madvise`?"), "{}", wrong.stderr);
}

/// Arguments, exit code, and words the error must hold.
const ERRORS: &[(&[&str], i32, &[&str])] = &[
    (&[], 2, &["Usage"]),
    (&["fuzzz"], 2, &["error:", "fuzz"]),
    (&["fuzz", "--for", "10"], 2, &["--for", "90s"]),
    (&["fuzz", "--programs", "0"], 2, &["--programs"]),
    (&["fuzz", "--jobs", "9999"], 2, &["--jobs", "1 to 256"]),
    (&["repro", "x", "--times", "0"], 2, &["--times"]),
    (&["findings", "show", "x"], 3, &["no finding `x`", "help:"]),
    (&["findings", "mark", "x"], 2, &["--known", "--embargo"]),
    (&["findings", "merge", "x"], 2, &["ID"]),
    (&["findings", "merge", "x", "y"], 3, &["no finding `x`"]),
    (&["findings", "split", "x"], 3, &["no finding `x`"]),
    (&["gate", "--base", "x"], 2, &["--new"]),
    (&["gate", "--base", "x", "--new", "y"], 3, &["no kernel `x`"]),
    (&["gate", "--base", "x", "--new", "y", "--need", "6"], 2, &["6 of 5", "--times"]),
    (&["gate", "--base", "x", "--new", "y", "--budget", "10"], 2, &["--budget", "90s"]),
    (&["gate", "--base", "x", "--new", "y", "--patch", "good.hgm"], 3, &["good.hgm is no patch"]),
    (&["gate", "--base", "x", "--new", "y", "--regressions", "no"], 3, &["cannot read no"]),
    (&["bisect", "good.hgm", "--good", "a", "--bad", "b"], 2, &["--tree"]),
    (
        &["bisect", "good.hgm", "--good", "a", "--bad", "b", "--tree", "."],
        3,
        &["no git repository", "help:"],
    ),
    (&["bisect", "good.hgm", "--good", "a", "--bad", "b", "--tree", "no"], 3, &["no tree no"]),
    (&["shrink", "x", "--for", "10"], 2, &["--for", "90s"]),
    (&["shrink", "good.hgm", "--out", "no/where.hgm"], 2, &["no is no folder", "--out"]),
    (&["config", "show", "--set", "jbos=2"], 2, &["unknown key `jbos`", "`jobs`"]),
    (&["config", "show", "--set", "jobs"], 2, &["no `=`"]),
    (&["config", "show", "--config", "nope.toml"], 3, &["nope.toml", "help:"]),
    (&["config", "show", "--profile", "ci"], 3, &["no profile ci", "[profile.ci]"]),
    (&["config", "check"], 3, &["no configuration file"]),
    (&["doctor", "--skip", "kvmm"], 2, &["did you mean `kvm`?"]),
    (&["help", "exitcodes"], 2, &["did you mean `exit-codes`?"]),
    (&["kernel", "add", "/etc/passwd"], 3, &["/etc/passwd", "bzImage"]),
    (&["kernel", "add", "nothing-there"], 3, &["nothing-there", "help:"]),
    (&["kernel", "build"], 2, &["--source"]),
    (&["kernel", "build", "--source", ".", "--preset", "kasn"], 2, &["kasan"]),
    (
        &["kernel", "build", "--source", "/no/such"],
        3,
        &["/no/such", "no such folder", "debian:6.1"],
    ),
    (&["kernel", "build", "--source", "."], 3, &["it has no Kconfig"]),
    (&["kernel", "build", "--source", ".", "--name", "a/b"], 3, &["`a/b`", "--name"]),
    (&["kernel", "build", "--source", ".", "--patch", "good.hgm"], 3, &["good.hgm", "no diff"]),
    (&["kernel", "build", "--source", "debian:sid"], 3, &["debian:sid", "6.1"]),
    (&["fuzz", "--tree", "."], 3, &["arch/x86/boot/bzImage", "hgm kernel build --source"]),
    (&["run", "good.hgm", "--tree", ".", "--kernel", "x"], 2, &["--tree", "--kernel"]),
    (&["fuzz", "--kernel", "debian-6.1", "--programs", "1"], 3, &["no kernel `debian-6.1`"]),
    (&["fuzz", "--resume", "2026"], 3, &["no run `2026`"]),
    (&["corpus", "list"], 3, &["no corpus folder", "hgm corpus add"]),
    (&["corpus", "add", "nope.hgm"], 3, &["cannot read nope.hgm", "cause:"]),
    (&["corpus", "show", "0000", "--corpus", "."], 3, &["no program `0000`"]),
    (&["corpus", "add", "good.hgm", "--corpus", "/proc/hgm"], 75, &["/proc/hgm", "help:"]),
];

#[test]
fn errors_have_their_code_and_say_what_to_do() {
    let start = Instant::now();
    let place = Place::new();
    place.write("good.hgm", PROGRAM);
    for (args, code, words) in ERRORS {
        let out = place.hgm(args);
        assert_eq!(out.code, *code, "{args:?}: {}", out.stderr);
        for word in *words {
            assert!(out.stderr.contains(word), "{args:?} lacks {word:?}: {}", out.stderr);
        }
        assert_eq!(out.stdout, "", "{args:?}: errors are talk");
    }
    trials::fault("F19", "wrong arguments and missing files", ERRORS.len() as u64, 0, start);
}

#[test]
fn errors_as_json_are_one_object_on_stdout() {
    let place = Place::new();
    place.write("good.hgm", PROGRAM);
    for (args, code, _) in ERRORS.iter().filter(|(args, ..)| !args.is_empty()) {
        let mut args = args.to_vec();
        args.push("--json");
        let out = place.hgm(&args);
        assert_eq!(out.code, *code, "{args:?}");
        let json = out.json();
        assert_eq!(json["code"], *code, "{args:?}");
        assert!(["usage", "config", "infrastructure"].contains(&json["name"].as_str().unwrap()));
        assert!(!json["error"].as_str().unwrap().is_empty());
        assert!(!json["help"].as_str().unwrap().is_empty());
    }
}

#[test]
fn unknown_key_is_named_with_file_line_and_cure() {
    let place = Place::new();
    place.write("hgm.toml", "[profile.ci]\nboot_timout_s = 3\njobs = \"2\"\n");
    let out = place.hgm(&["config", "show"]);
    assert_eq!(out.code, 3);
    insta::assert_snapshot!("config_typo", out.stderr);
    let out = place.hgm(&["config", "check"]);
    assert_eq!(out.code, 3);
    insta::assert_snapshot!("config_check", out.stderr);
    let json = place.hgm(&["config", "check", "--json"]).json();
    assert_eq!(json["ok"], false);
    assert_eq!(json["faults"][1]["line"], 3);
    // Verbs that mend things still work.
    assert_eq!(place.hgm(&["help", "config"]).code, 0);
    let doctor = place.hgm(&["doctor", "--json"]);
    assert_eq!(check(&doctor.json(), "config")["state"], "fail");
}

#[test]
fn broken_configuration_files_are_refused_not_guessed_at() {
    let place = Place::new();
    let big = format!("[profile.default]\ncmdline = \"{}\"\n", "x".repeat(2 << 20));
    let cases: &[&[u8]] = &[
        b"[profile.default]\njobs = = 2\n",
        b"[profile.default]\njobs = 2\njobs = 3\n",
        b"[profile.default]\nkernel = \"\xff\"\n",
        b"jobs = 2\n",
        b"[profile]\ndefault = 3\n",
        b"[[profile.default]]\njobs = 2\n",
        b"[profile.default]\njobs = -1\n",
        b"[profile.default]\njobs = 99999999999999999999999999\n",
        b"[profile.default]\njobs = 1.5\n",
        b"[profile.default]\naccel = \"xen\"\n",
        b"[profile.default]\nduration = \"-3m\"\n",
        b"[profile.default]\ncmdline = \"a\\nb\"\n",
        b"\x00\x01\x02",
        big.as_bytes(),
    ];
    let start = Instant::now();
    for text in cases {
        fs::write(place.path("hgm.toml"), text).unwrap();
        let out = place.hgm(&["config", "show"]);
        let head = String::from_utf8_lossy(&text[..text.len().min(60)]).into_owned();
        assert_eq!(out.code, 3, "{head}: {}{}", out.stdout, out.stderr);
        assert!(out.stderr.starts_with("error: "), "{head}: {}", out.stderr);
        assert!(out.stderr.contains("\nhelp: "), "{head}: {}", out.stderr);
        assert!(out.stderr.contains("hgm.toml"), "{head}: {}", out.stderr);
    }
    trials::fault("F19", "broken configuration files", cases.len() as u64, 0, start);
}

#[test]
fn values_say_where_they_came_from() {
    let place = Place::new();
    place.write(
        "hgm.toml",
        "[profile.default]\njobs = 3\nvcpus = 1\nlook = \"each\"\n[profile.ci]\nvcpus = 4\n",
    );
    let json = place
        .hgm_with(&["config", "show", "--profile", "ci", "--set", "batch=8", "--json"], |c| {
            c.env("HGM_LOOK", "asked");
        })
        .json();
    let get = |key: &str| {
        let all = json["values"].as_array().unwrap();
        let row = all.iter().find(|row| row["key"] == key).unwrap();
        (row["value"].as_str().unwrap().to_owned(), row["origin"].as_str().unwrap().to_owned())
    };
    let pair = |value: &str, origin: &str| (value.to_owned(), origin.to_owned());
    assert_eq!(get("jobs"), pair("3", "hgm.toml:2 (profile default)"));
    assert_eq!(get("vcpus"), pair("4", "hgm.toml:6 (profile ci)"));
    assert_eq!(get("look"), pair("asked", "environment HGM_LOOK"));
    assert_eq!(get("batch"), pair("8", "flag --set batch"));
    assert_eq!(get("confirm_times"), pair("5", "default"));
    let bad = place.hgm_with(&["config", "show"], |c| {
        c.env("HGM_JOBS", "many");
    });
    assert_eq!(bad.code, 3);
    assert!(bad.stderr.contains("HGM_JOBS"), "{}", bad.stderr);
}

#[test]
fn the_example_configuration_is_valid() {
    let place = Place::new();
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/hgm.example.toml");
    assert_eq!(place.hgm(&["config", "check", "--config", example]).code, 0);
    let out = place.hgm(&["config", "show", "--config", example, "--profile", "nightly", "--json"]);
    assert_eq!(out.json()["profile"], "nightly");
}

fn check<'a>(doctor: &'a Value, name: &str) -> &'a Value {
    doctor["checks"].as_array().unwrap().iter().find(|c| c["name"] == name).unwrap()
}

#[test]
fn doctor_names_what_is_missing_and_how_to_mend_it() {
    let place = Place::new();
    let out = place.hgm_with(&["doctor", "--json"], |c| {
        c.env("PATH", "/nonexistent").env("HGM_AGENT", "/nonexistent/agent");
    });
    assert_eq!(out.code, 75);
    let json = out.json();
    assert_eq!(json["ok"], false);
    for name in ["qemu", "agent", "jail"] {
        assert_eq!(check(&json, name)["state"], "fail", "{name}");
        assert!(check(&json, name)["fix"].as_str().is_some_and(|fix| !fix.is_empty()));
    }
    for name in ["apt", "sandbox", "kernels"] {
        assert_eq!(check(&json, name)["state"], "warn", "{name}");
    }
    assert_eq!(check(&json, "home")["state"], "ok");
    let words = place.hgm_with(&["doctor", "--skip", "agent"], |c| {
        c.env("PATH", "/nonexistent");
    });
    assert_eq!(words.code, 75);
    assert!(words.stdout.contains("fail  qemu"), "{}", words.stdout);
    assert!(words.stdout.contains("fix: install it"), "{}", words.stdout);
    assert!(!words.stdout.contains("agent"), "{}", words.stdout);
}

/// Some who start programs ignore the end of children, and that is inherited: numbers of processes
/// would be free before anybody waited for them, and waits would never end.
#[test]
fn whoever_starts_hgm_cannot_take_its_children_away() {
    let start = Instant::now();
    let place = Place::new();
    let check = ["doctor", "--json", "--skip", "kvm"];
    let usual = place.hgm(&check);
    let words = [&["--ignore-signal=CHLD", env!("CARGO_BIN_EXE_hgm")][..], &check[..]].concat();
    let mut orphaned = assert_cmd::Command::from_std(place.program("env", &words));
    let out = orphaned.timeout(std::time::Duration::from_secs(60)).output().unwrap();
    let states = |json: &Value| -> Vec<String> {
        let checks = json["checks"].as_array().cloned().unwrap_or_default();
        checks.iter().map(|check| format!("{} {}", check["name"], check["state"])).collect()
    };
    let seen = states(&serde_json::from_slice(&out.stdout).unwrap_or_default());
    let same = !seen.is_empty() && seen == states(&usual.json());
    trials::fault("F11", "started where ends of children are ignored", 1, u64::from(!same), start);
    assert!(same, "{out:?}");
}

#[test]
fn a_wall_that_does_not_stand_is_named_and_no_gate_goes_without() {
    let start = Instant::now();
    let place = Place::new();
    place.script("bwrap", "echo 'bwrap: setting up uid map: Permission denied' >&2; exit 1");
    let poor = |args: &[&str]| {
        place.hgm_with(args, |c| {
            c.env("PATH", format!("{}:/usr/bin", place.root().display()));
        })
    };
    let doctor = poor(&["doctor", "--json"]).json();
    let jail = check(&doctor, "jail");
    assert_eq!(jail["state"], "fail");
    assert!(jail["detail"].as_str().unwrap().contains("uid map: Permission denied"), "{jail}");
    let gate = ["gate", "--base", "a", "--new", "b"];
    let with = |more: &[&'static str]| [&gate[..], more].concat();
    for (out, why) in [
        (poor(&gate), "uid map: Permission denied"),
        (place.hgm(&with(&["--set", "jail=off"])), "jail = off"),
    ] {
        assert_eq!(out.code, 75, "{}", out.stderr);
        assert!(out.stderr.contains(why), "{}", out.stderr);
        assert!(out.stderr.contains("--allow-weak-jail"), "{}", out.stderr);
    }
    // Told that it may, it comes to the next fault: there is no kernel.
    let told = poor(&with(&["--allow-weak-jail"]));
    assert!(told.code == 3 && told.stderr.contains("no kernel"), "{}", told.stderr);
    trials::fault("J7", "no jail, or one switched off, before a gate", 2, 0, start);
}

#[test]
fn doctor_sees_a_qemu_that_hangs_or_lies() {
    let place = Place::new();
    let qemu = |body: &str| {
        let path = place.script("qemu", body);
        place.hgm(&["doctor", "--json", "--set", &format!("qemu={path}")]).json()
    };
    let old = qemu("echo 'QEMU emulator version 4.2.1'");
    assert_eq!(check(&old, "qemu")["state"], "warn");
    let broken = qemu("echo boom >&2; exit 1");
    assert_eq!(check(&broken, "qemu")["state"], "fail");
    assert!(check(&broken, "qemu")["detail"].as_str().unwrap().contains("boom"));
    let start = Instant::now();
    let hung = qemu("exec sleep 60");
    assert_eq!(check(&hung, "qemu")["state"], "fail");
    assert!(start.elapsed() < Duration::from_secs(30));
}

#[test]
fn doctor_sees_a_home_that_cannot_be_written() {
    let place = Place::new();
    let out = place.hgm(&["doctor", "--home", "/proc/hgm", "--json"]);
    assert_eq!(out.code, 75);
    assert_eq!(check(&out.json(), "home")["state"], "fail");
}

#[test]
fn doctor_believes_a_boot_not_the_device() {
    let place = Place::new();
    let cache = place.path("home/accel");
    fs::create_dir_all(&cache).unwrap();
    fs::write(cache.join("accel-1"), "tcg\nno guest boots under KVM here: \x1b[2J\n").unwrap();
    let out = place.hgm(&["doctor"]);
    assert!(!out.stdout.contains('\x1b'), "escape sequence passed on");
    if fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok() {
        let json = place.hgm(&["doctor", "--json"]).json();
        assert_eq!(check(&json, "kvm")["state"], "warn");
    }
}

#[test]
fn a_second_tier_must_be_another_kernel_and_leave_a_vm_to_the_first() {
    let place = Place::new();
    fake_kernel(&place, "plain-6.1");
    fake_kernel(&place, "kasan-6.1");
    let fuzz = |more: &[&str]| {
        let out = place.hgm(&[&["fuzz", "--kernel", "plain-6.1"], more].concat());
        assert!(!place.path("home/runs").exists(), "a run was made of bad input: {more:?}");
        (out.code, out.stderr)
    };
    let (code, said) = fuzz(&["--verify", "kasam-6.1"]);
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("did you mean `kasan-6.1`?"), "{said}");
    let (code, said) = fuzz(&["--verify", "plain"]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("--verify plain-6.1 is the kernel under test itself"), "{said}");
    let (code, said) = fuzz(&["--verify", "kasan", "--jobs", "1"]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("pass --jobs 2 or more"), "{said}");
    let (code, said) = fuzz(&["--verify", "kasan", "--jobs", "4", "--set", "verify_jobs=4"]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("pass --jobs 5 or more"), "{said}");
}

#[test]
fn kernels_are_found_by_prefix_or_named_when_mistyped() {
    let place = Place::new();
    for id in ["debian-6.1.192-2", "debian-6.12.9-1"] {
        fake_kernel(&place, id);
    }
    let json = place.hgm(&["kernel", "list", "--json"]).json();
    assert_eq!(json["kernels"].as_array().unwrap().len(), 2);
    let out = place.hgm(&["fuzz", "--kernel", "debain-6.1.192-2", "--programs", "1"]);
    assert_eq!(out.code, 3);
    assert!(out.stderr.contains("did you mean `debian-6.1.192-2`?"), "{}", out.stderr);
    let out = place.hgm(&["fuzz", "--kernel", "debian-6", "--programs", "1"]);
    assert_eq!(out.code, 3);
    assert!(out.stderr.contains("fits 2 kernels"), "{}", out.stderr);
    // A whole name is that kernel, also where others begin with it.
    for id in ["hgm-6.1", "hgm-6.1-kasan"] {
        fake_kernel(&place, id);
    }
    let out = place.hgm(&["fuzz", "--kernel", "hgm-6.1", "--verify", "hgm-6.1"]);
    assert!(out.stderr.contains("--verify hgm-6.1 is the kernel under test"), "{}", out.stderr);
}

#[test]
fn corpus_round_trip() {
    let place = Place::new();
    place.write("my program.hgm", PROGRAM);
    let out = place.hgm(&["corpus", "add", "my program.hgm", "--json"]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    let id = out.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(out.json()["new"], true);
    assert_eq!(place.hgm(&["corpus", "add", "my program.hgm", "--json"]).json()["new"], false);
    let stdin = place.hgm_with(&["corpus", "add", "-", "--json"], |c| {
        c.write_stdin(PROGRAM);
    });
    assert_eq!(stdin.json()["id"], id.as_str());
    assert_eq!(place.hgm(&["corpus", "show", &id[..4]]).stdout, PROGRAM);
    let list = place.hgm(&["corpus", "list", "--json"]).json();
    assert_eq!(list["ops"], serde_json::json!(["ftruncate", "memfd"]));
    assert_eq!(place.hgm(&["corpus", "verify"]).code, 0);

    fs::write(place.path("home/corpus/bad.hgm"), "hgm 1\nmemfdd\n").unwrap();
    let verify = place.hgm(&["corpus", "verify", "--json"]);
    assert_eq!(verify.code, 3);
    assert_eq!(verify.json()["good"], 1);
    assert!(place.path("home/corpus/quarantine/bad.hgm").is_file());
    assert_eq!(place.hgm(&["corpus", "verify"]).code, 0, "what was moved aside is settled");
}

#[test]
fn a_bad_program_is_refused_with_its_line_and_adds_nothing() {
    let place = Place::new();
    place.write("good.hgm", PROGRAM);
    place.write("bad.hgm", "hgm 1\nf0 = memfd\nftruncat file=f0 len=2M\n");
    let out = place.hgm(&["corpus", "add", "good.hgm", "bad.hgm"]);
    assert_eq!(out.code, 3);
    assert!(out.stderr.contains("error: bad.hgm:3:"), "{}", out.stderr);
    assert!(out.stderr.contains("ftruncate"), "{}", out.stderr);
    assert!(!place.path("home/corpus").exists());
    place.write("senseless.hgm", "hgm 1\n# no steps\n");
    let out = place.hgm(&["corpus", "add", "senseless.hgm"]);
    assert_eq!(out.code, 3, "{}", out.stderr);
    assert!(out.stderr.contains("makes no sense"), "{}", out.stderr);
}

#[test]
fn paths_need_not_be_utf8() {
    let place = Place::new();
    place.write("good.hgm", PROGRAM);
    let dir = OsStr::from_bytes(b"bad \xff name");
    let args = [OsStr::new("corpus"), OsStr::new("add"), OsStr::new("good.hgm")];
    let out = place.hgm(&[&args[..], &[OsStr::new("--corpus"), dir]].concat());
    assert_eq!(out.code, 0, "{}", out.stderr);
    assert_eq!(fs::read_dir(place.root().join(dir)).unwrap().count(), 1);
}

#[test]
fn colour_obeys_flag_and_environment() {
    let place = Place::new();
    let colored = |args: &[&str], env: &[(&str, &str)]| {
        let out = place.hgm_with(args, |c| {
            c.envs(env.iter().copied());
        });
        out.stderr.contains('\x1b')
    };
    let bad = ["corpus", "list"];
    assert!(!colored(&bad, &[]));
    assert!(colored(&bad, &[("CLICOLOR_FORCE", "1")]));
    assert!(!colored(&bad, &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]));
    assert!(colored(&["corpus", "list", "--color", "always"], &[("NO_COLOR", "1")]));
    assert!(!colored(&["corpus", "list", "--color", "never"], &[("CLICOLOR_FORCE", "1")]));
}

#[test]
fn a_reader_that_leaves_is_no_error_and_a_full_disk_is() {
    let start = Instant::now();
    let place = Place::new();
    let mut child = place.plain(&["help", "ops"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut first = [0u8; 1];
    let mut pipe = child.stdout.take().unwrap();
    pipe.read_exact(&mut first).unwrap();
    drop(pipe);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let out = place.plain(&["help", "ops"]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(out.status.code(), Some(75));
    assert!(String::from_utf8_lossy(&out.stderr).contains("cannot write to stdout"));
    trials::fault("F20", "a reader that leaves, a full output", 2, 0, start);
}

#[test]
fn completions_and_version() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish"] {
        let out = place.hgm(&["completions", shell]);
        assert!(out.code == 0 && out.stdout.contains("regress"), "{shell}");
    }
    assert!(place.hgm(&["--version"]).stdout.starts_with("hgm "));
}

#[test]
fn every_verb_has_a_man_page() {
    let place = Place::new();
    let dir = place.path("new/man1");
    let out = place.hgm(&["man", dir.to_str().unwrap()]);
    assert_eq!((out.code, out.stdout.as_str()), (0, ""));
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
    for (page, synopsis, flag) in [
        ("hgm.1", "\\fBhgm\\fR", "help"),
        ("hgm-fuzz.1", "\\fBhgm fuzz\\fR", "until\\-finding"),
        ("hgm-findings-mark.1", "\\fBhgm findings mark\\fR", "embargo"),
    ] {
        let text = read(page);
        for part in [".TH", ".SH SYNOPSIS", synopsis, flag] {
            assert!(text.contains(part), "{page}: {part}\n{text}");
        }
    }
    assert_eq!(place.hgm(&["man"]).stdout, read("hgm.1"));
    // A file where the folder should be.
    let taken = place.path("taken");
    place.write("taken", "x");
    let out = place.hgm(&["man", taken.to_str().unwrap()]);
    assert_ne!(out.code, 0);
    assert!(out.stderr.contains("taken"), "{}", out.stderr);
}

/// Best of some: the machine may be busy, the program is what is measured.
#[test]
fn quick_answers() {
    let place = Place::new();
    let best = |args: &[&str]| {
        let time = || {
            let start = Instant::now();
            place.hgm(args);
            start.elapsed()
        };
        (0..7).map(|_| time()).min().unwrap()
    };
    assert!(best(&["--help"]) <= Duration::from_millis(50));
    assert!(best(&["corpus", "list"]) <= Duration::from_millis(200));
    assert!(best(&["config", "show"]) <= Duration::from_millis(200));
}

const FIRST: &str = "A-001/mmap/enodev";
const OTHER: &str = "A-002/munmap/einval";
const THIRD: &str = "A-003/madvise/eagain";

/// Bugs as listed: signature, times seen, runs, signatures of it.
fn bugs(place: &Place) -> Vec<(String, u64, u64, Vec<String>)> {
    let out = place.hgm(&["findings", "list", "--json"]);
    let rows = out.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let row = |row: Value| {
        let all = row["signatures"].as_array().unwrap().iter().map(text).collect();
        let number = |key: &str| row[key].as_u64().unwrap();
        (text(&row["signature"]), number("count"), number("runs"), all)
    };
    let mut all: Vec<_> = rows.map(row).collect();
    all.sort();
    all
}

#[test]
fn merged_findings_are_one_bug_in_later_runs_too_until_split() {
    let place = Place::new();
    let slugs = [FIRST, OTHER, THIRD].map(|signature| finding(&place, "20260101-a", signature, 3));
    let out = place.hgm(&["findings", "merge", &slugs[0], &slugs[1]]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    assert!(
        out.stdout.contains("A-001/mmap/enodev is now one bug of 2 signatures"),
        "{}",
        out.stdout
    );
    let whole = |count, runs| (FIRST.to_owned(), count, runs, vec![FIRST.into(), OTHER.into()]);
    let third = (THIRD.to_owned(), 3, 1, vec![THIRD.to_owned()]);
    assert_eq!(bugs(&place), [whole(6, 1), third.clone()]);
    // A later run that sees only the second of them: the same bug.
    finding(&place, "20260102-b", OTHER, 1);
    assert_eq!(bugs(&place), [whole(7, 2), third.clone()]);
    let shown = place.hgm(&["findings", "show", &slugs[1]]).stdout;
    assert!(shown.contains("part of") && shown.contains(FIRST), "{shown}");
    let shown = place.hgm(&["findings", "show", &slugs[0], "--json"]).json();
    assert_eq!(shown["bug"]["also"], serde_json::json!([OTHER]));

    let out = place.hgm(&["findings", "split", &slugs[1]]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    let alone = |s: &str, count, runs| (s.to_owned(), count, runs, vec![s.to_owned()]);
    assert_eq!(bugs(&place), [alone(FIRST, 3, 1), alone(OTHER, 4, 2), third]);
    let again = place.hgm(&["findings", "split", &slugs[1]]);
    assert_eq!(again.code, 2);
    assert!(again.stderr.contains("merged with nothing"), "{}", again.stderr);
    // Nothing that was recorded has changed.
    let shown = place.hgm(&["findings", "show", &slugs[1], "--json"]).json();
    assert_eq!((&shown["signature"], &shown["count"]), (&OTHER.into(), &1.into()));
}

#[test]
fn a_finding_marked_as_known_is_on_its_kernels_list() {
    let place = Place::new();
    fake_kernel(&place, "k1");
    let id = finding(&place, "20260101-a", FIRST, 1);
    let mark = |args: &[&str]| place.hgm(&[&["findings", "mark", &id][..], args].concat());
    let out = mark(&["--known", "MY-1"]);
    assert_eq!(out.code, 2);
    assert!(out.stderr.contains("--why"), "{}", out.stderr);
    let list = place.path("home/kernels/k1/known.toml");
    assert!(!list.exists());
    let why = "mmap(2) says \"ENODEV\" \\ nothing else";
    assert_eq!(mark(&["--known", "MY-1", "--why", why]).code, 0);
    let known = oracles::known::Known::parse(&fs::read_to_string(&list).unwrap()).unwrap();
    assert_eq!((known.deviation[0].id.as_str(), known.deviation[0].why.as_str()), ("MY-1", why));
    let violation = case::Violation {
        rule: "A-001".into(),
        line: 0,
        op: "mmap".into(),
        class: "enodev".into(),
        expected: String::new(),
        observed: String::new(),
        expectation: None,
    };
    let found = known.find(&case::Profile::default(), &violation);
    assert_eq!(found.map(|deviation| deviation.id.as_str()), Some("MY-1"));
    // An id stands for one deviation, the built-in ones included; another id is added below.
    for taken in ["MY-1", "N03"] {
        let again = mark(&["--known", taken, "--why", "x"]);
        assert_eq!(again.code, 2, "{taken}");
        assert!(again.stderr.contains("listed already"), "{}", again.stderr);
    }
    assert_eq!(mark(&["--known", "MY-2", "--why", "x"]).code, 0);
    let known = oracles::known::Known::parse(&fs::read_to_string(&list).unwrap()).unwrap();
    assert_eq!(known.deviation.len(), 2);
    assert_eq!(fs::read_dir(list.parent().unwrap()).unwrap().count(), 3, "no half-written file");
}

#[test]
fn findings_of_other_machines_are_fetched_with_their_evidence() {
    let place = Place::new();
    let hub = place.path("hub");
    let scope = hub::Scope::new("k").unwrap();
    let mut folder = hub::Folder::open(&hub, Some(scope.clone())).unwrap();
    let told = |machine: &str, tried: u32, signature: &str| {
        serde_json::json!({
            "machine": machine, "kernel": "lab-kernel", "signature": signature, "title": "t",
            "reproduced": [tried, tried], "program": "hgm 1\n\nmmap at=r0 len=4K\n",
            "finding": {
                "signature": "H-040/pread/ok->EIO", "title": "t", "source": "oracle",
                "state": "confirmed", "known": null, "kernel": "lab-kernel", "seed": 7,
                "reproduced": [tried, tried], "count": 1, "violation": null,
                "replay": "hgm repro somewhere",
            },
            "compared": "expected this", "report": "", "about": {}, "console": "QlVH",
        })
    };
    for (key, body) in [
        ("a", told("lab-1", 3, "H-040/pread/ok->EIO")),
        ("b", told("lab-1", 5, "H-040/pread/ok->EIO")),
        ("c", told("lab-2\u{1b}[31m", 5, "contradicts/itself")),
        ("d", serde_json::json!(["nothing"])),
    ] {
        let body = body.to_string().into_bytes();
        folder.put(&hub::Parcel::new(hub::Kind::Finding, &scope, key, body).unwrap()).unwrap();
    }
    let to = place.path("found");
    let address = format!("file://{}", hub.display());
    let fetch = || {
        let to = to.to_str().unwrap();
        let out = place.hgm(&["findings", "fetch", to, "--hub", &address, "--json"]);
        assert_eq!(out.code, 0, "{}", out.stderr);
        assert!(out.stderr.contains("two signatures") && !out.stderr.contains('\u{1b}'));
        let lines: Vec<&str> = out.stdout.lines().collect();
        assert_eq!(lines.len(), 1, "{lines:?}");
        serde_json::from_str::<Value>(lines[0]).unwrap()
    };
    let first = fetch();
    assert_eq!((&first["new"], &first["reproduced"][0]), (&true.into(), &5.into()), "{first}");
    let kept = first["folder"].as_str().unwrap();
    assert_eq!(fs::read(format!("{kept}/console.txt")).unwrap(), b"BUG");
    assert_eq!(fetch()["new"], false);
    assert!(place.hgm(&["findings", "show", kept]).stdout.contains("H-040/pread"));
}
