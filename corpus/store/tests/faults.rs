//! Disks that fail, fill up, or hold links where files should be: what was acknowledged is there
//! afterwards, the rest is absent, and the error names the path. The test starts its own binary as the
//! one who writes, with a C library whose calls fail on command (`faults/shim.c`).

#![allow(clippy::unwrap_used)]

mod support;

use case::text;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;
use store::{Corpus, Counters, Evidence, Findings, Journal, Merges, Runs, StoreError};
use support::finding;

const WRITER: &str = "STORE_TEST_FAULTS";

fn program(serial: u64) -> case::Program {
    text::parse(&format!("hgm 1\nf0 = memfd page=2M\nftruncate file=f0 len={serial}\n")).unwrap()
}

/// Says what was acknowledged, and the errors of the rest.
fn say<T>(dir: &Path, what: String, result: Result<T, StoreError>) -> Option<T> {
    match result {
        Ok(value) => {
            println!("{what}");
            Some(value)
        }
        Err(error) => {
            let text = error.to_string();
            // That of the folder, or of the one its name stands in.
            let above = dir.parent().unwrap().to_string_lossy();
            assert!(text.contains(&*above), "no path: {text}");
            println!("refused {text}");
            None
        }
    }
}

fn write_some(dir: &Path, round: u64) {
    let corpus = Corpus::open(&dir.join("corpus"));
    if let Some(mut corpus) = say(dir, "opened".into(), corpus) {
        for n in 0..2 {
            let program = program(round * 10 + n);
            let id = case::wire::program_id(&program);
            say(dir, format!("program {id}"), corpus.add(&program));
        }
    }
    let findings = Findings::open(&dir.join("findings"));
    if let Some(mut findings) = say(dir, "opened".into(), findings) {
        let (program, kernel) = (program(round), serde_json::json!({}));
        let evidence = Evidence {
            program: &program,
            compared: "c",
            console: b"x",
            report: "r",
            kernel: &kernel,
        };
        let made = findings.record(&finding(format!("bug {round}")), evidence);
        if let Some(made) = say(dir, "recorded".into(), made) {
            println!("finding {}", made.slug);
        }
    }
    if let Some(mut journal) = say(dir, "opened".into(), Journal::open(dir)) {
        let event = journal.event("tick", &serde_json::json!(round));
        if let Some(seq) = say(dir, "told".into(), event) {
            println!("event {seq}");
        }
        let counters = Counters { programs: round, ..Counters::default() };
        say(dir, format!("counters {round}"), journal.count(&counters));
        let blob = round.to_le_bytes();
        say(dir, format!("checkpoint {round}"), journal.save_checkpoint(round, &blob));
    }
    println!("complete");
}

/// The library with the calls that fail.
fn shim(dir: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/shim.c");
    let library = dir.join("shim.so");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-ldl");
    assert!(cc.status().expect("a C compiler (ci/install)").success());
    library
}

/// Writes in a child whose `at`-th call fails; gives what it said.
fn child(dir: &Path, shim: &Path, round: u64, at: u64, how: &[&str]) -> Vec<String> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "a_disk_that_fails_costs_nothing_acknowledged", "--nocapture"])
        .env(WRITER, format!("{round} {}", dir.display()))
        .env("LD_PRELOAD", shim)
        .env("FAULT_AT", at.to_string());
    how.iter().for_each(|word| {
        command.env(word, "1");
    });
    let out = command.output().unwrap();
    let said: Vec<String> =
        String::from_utf8(out.stdout).unwrap().lines().map(str::to_owned).collect();
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(said.iter().any(|line| line == "complete"), "call {at}: it panicked: {stderr}");
    said
}

/// How many of the lines are not as they were said.
fn missing(dir: &Path, said: &BTreeSet<String>) -> u64 {
    let corpus = Corpus::open(&dir.join("corpus")).unwrap();
    let findings = Findings::open(&dir.join("findings")).unwrap();
    let journal = Journal::open(dir).unwrap();
    assert_eq!((corpus.unfit().len(), findings.broken().len()), (0, 0), "half written");
    let events: BTreeSet<i64> = journal.events(0).unwrap().iter().map(|e| e.seq).collect();
    let counted: BTreeSet<u64> =
        journal.counters().unwrap().iter().map(|(_, c)| c.programs).collect();
    let kept = journal.checkpoint().unwrap().map(|b| u64::from_le_bytes(b.try_into().unwrap()));
    let there = |line: &str| match line.split_once(' ') {
        Some(("program", id)) => corpus.contains(id),
        Some(("finding", slug)) => findings.get(slug).is_some(),
        Some(("event", seq)) => events.contains(&seq.parse().unwrap()),
        Some(("counters", n)) => counted.contains(&n.parse().unwrap()),
        Some(("checkpoint", n)) => kept >= n.parse().ok(),
        _ => true,
    };
    let lost: Vec<&String> = said.iter().filter(|line| !there(line)).collect();
    lost.iter().for_each(|line| println!("lost: {line}"));
    lost.len() as u64
}

#[test]
fn a_disk_that_fails_costs_nothing_acknowledged() {
    if let Ok(order) = std::env::var(WRITER) {
        let (round, dir) = order.split_once(' ').unwrap();
        return write_some(Path::new(dir), round.parse().unwrap());
    }
    let start = Instant::now();
    let place = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let shim = shim(place.path());
    let (mut tried, mut lost, mut twice, mut twice_lost, mut refused) = (0, 0, 0, 0, 0);
    let modes: [&[&str]; 3] = [&[], &["FAULT_FOREVER"], &["FAULT_FOREVER", "FAULT_FULL"]];
    for how in modes {
        for at in 1.. {
            let dir = place.path().join("home");
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir(&dir).unwrap();
            let mut said: BTreeSet<String> = child(&dir, &shim, 1, at, how).into_iter().collect();
            let failed = said.iter().filter(|line| line.starts_with("refused")).count();
            refused += failed;
            tried += 1;
            lost += missing(&dir, &said);
            // Who opens it again meets another fault, early and late.
            if at % 4 == 0 {
                let again = child(&dir, &shim, 2, 1 + at / 4 % 40, &[]);
                said.extend(again.into_iter().filter(|line| !line.starts_with("event")));
                said.retain(|line| line != "checkpoint 1" || !said_later(&dir));
                twice += 1;
                twice_lost += missing(&dir, &said);
            }
            // Beyond the last call nothing fails any more.
            if failed == 0 && at > 40 {
                break;
            }
        }
    }
    println!("{tried} calls failed, {refused} errors told");
    trials::fault("F2", "calls to a disk fail", tried, lost, start);
    trials::fault("F4", "a second fault while opening again", twice, twice_lost, start);
    assert_eq!((lost, twice_lost), (0, 0));
    assert!(tried > 150 && refused > tried as usize / 2, "{tried} {refused}: nothing failed");
}

/// A later checkpoint took the place of the first.
fn said_later(dir: &Path) -> bool {
    let journal = Journal::open(dir).unwrap();
    journal.checkpoint().unwrap().is_some_and(|blob| blob == 2u64.to_le_bytes())
}

/// A file system of its own that is full, by bytes or by files, at many points.
#[test]
fn a_full_disk_refuses_and_goes_on_when_there_is_room() {
    const INSIDE: &str = "STORE_TEST_FULL_DISK";
    if let Ok(dir) = std::env::var(INSIDE) {
        return fill(Path::new(&dir));
    }
    let start = Instant::now();
    let (mut tried, mut lost) = (0, 0);
    for point in 0..trials::rounds(10) {
        for size in [format!("size={}k", 128 + 28 * point), format!("nr_inodes={}", 40 + point)] {
            let dir = tempfile::tempdir().unwrap();
            let out = Command::new("unshare")
                .args(["--user", "--map-root-user", "--mount", "sh", "-c"])
                .arg("mount -t tmpfs -o \"$1\" full \"$2\" && shift 2 && exec \"$@\"")
                .args(["sh", &size])
                .arg(dir.path())
                .arg(std::env::current_exe().unwrap())
                .args(["--exact", "a_full_disk_refuses_and_goes_on_when_there_is_room"])
                .arg("--nocapture")
                .env(INSIDE, dir.path())
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&out.stdout).into_owned();
            tried += 1;
            if !said.contains("full and free again") {
                println!("{size}: {said} {}", String::from_utf8_lossy(&out.stderr));
                lost += 1;
            }
        }
    }
    trials::fault("F5", "a disk that is full, and has room again", tried, lost, start);
    assert_eq!(lost, 0);
}

fn fill(dir: &Path) {
    // Room that is given back.
    fs::write(dir.join("ballast"), vec![1; 40 << 10]).unwrap();
    (0..9).for_each(|n| fs::write(dir.join(format!("ballast{n}")), "").unwrap());
    let mut corpus = Corpus::open(&dir.join("corpus")).unwrap();
    let mut kept = BTreeSet::new();
    let error = loop {
        assert!(kept.len() < 5000, "it never fills up");
        match corpus.add(&program(kept.len() as u64 + 1)) {
            Ok(added) => kept.insert(added.id),
            Err(error) => break error,
        };
    };
    assert!(error.is_full_disk(), "{error}");
    assert!(error.to_string().contains("corpus"), "{error}");
    let seen = Corpus::view(&dir.join("corpus")).unwrap();
    assert!(kept.iter().all(|id| seen.contains(id)) && seen.unfit().is_empty());
    fs::remove_file(dir.join("ballast")).unwrap();
    (0..9).for_each(|n| fs::remove_file(dir.join(format!("ballast{n}"))).unwrap());
    let last = corpus.add(&program(1_000_000)).unwrap();
    let seen = Corpus::view(&dir.join("corpus")).unwrap();
    assert!(seen.contains(&last.id) && seen.len() == kept.len() + 1);
    println!("full and free again after {}", kept.len());
}

/// Links at every place the store writes to: none is followed.
#[test]
fn planted_links_are_not_followed() {
    let start = Instant::now();
    let home = tempfile::tempdir().unwrap();
    let run = Runs::of(home.path()).create(1).unwrap();
    let (id, path) = (run.id.clone(), run.path.clone());
    let one = program(1);
    let evidence = Evidence {
        program: &one,
        compared: "c",
        console: b"x",
        report: "r",
        kernel: &serde_json::Value::Null,
    };
    let made = run.findings().unwrap().record(&finding("bug".into()), evidence).unwrap();
    drop(run);
    let corpus = path.join("corpus");
    fs::create_dir(&corpus).unwrap();
    let mut places = vec![
        corpus.join(format!("{}.hgm", case::wire::program_id(&one))),
        path.join("summary.json"),
        path.join("journal.sqlite"),
        path.join("lock"),
        home.path().join("merges.jsonl"),
    ];
    for name in ["finding.json", "program.hgm", "expected-vs-observed.txt"] {
        places.push(made.folder.join(name));
    }
    let victim = home.path().join("victim");
    let mut lost = 0;
    for place in &places {
        let before = fs::read(place).ok();
        let _ = fs::remove_file(place);
        fs::write(&victim, "untouched").unwrap();
        symlink(&victim, place).unwrap();
        // Each of these may refuse; none may write through the link.
        let _ = Corpus::open(&corpus).map(|mut corpus| corpus.add(&one));
        let _ = Merges::of(home.path()).map(|mut m| m.merge(&["a".into(), "b".into()]));
        if let Ok(run) = Runs::of(home.path()).resume(&id) {
            let _ = run.save("summary.json", b"{}");
            let _ = run.journal().map(|mut j| j.event("tick", &serde_json::Value::Null));
            if let Ok(mut findings) = run.findings() {
                let _ = findings.update(&made.slug, |f| f.count += 1);
                let _ = findings.replace_program(&made.slug, &program(2), "smaller");
            }
        }
        if fs::read(&victim).unwrap() != b"untouched" {
            println!("followed: {}", place.display());
            lost += 1;
        }
        let _ = fs::remove_file(place);
        if let Some(bytes) = before {
            fs::write(place, bytes).unwrap();
        }
    }
    trials::fault("J3", "links planted where files are written", places.len() as u64, lost, start);
    assert_eq!(lost, 0);
}
