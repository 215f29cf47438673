//! A wall clock that jumps while a store is written: what came first stays first, and nothing is lost.

#![allow(clippy::unwrap_used)]

mod support;

use case::text;
use std::path::Path;
use std::process::Command;
use std::time::{Instant, SystemTime};
use store::{Corpus, Counters, Evidence, Journal, Merges, Runs};
use support::finding;

const WRITER: &str = "STORE_TEST_CLOCK";
const NAME: &str = "order_is_that_of_the_calls_whatever_the_clock_says";

/// A run in each of two journals and a new run of its own for every jump; says what it did.
fn write_some(home: &Path, clock: &Path) {
    let runs = Runs::of(home);
    let first = runs.create(1).unwrap();
    let mut journal = first.journal().unwrap();
    let mut findings = first.findings().unwrap();
    let mut corpus = Corpus::open(&home.join("corpus")).unwrap();
    println!();
    println!("said run {}", first.id);
    let (start, wall) = (Instant::now(), SystemTime::now());
    for (n, seconds) in trials::clock::JUMPS.into_iter().cycle().take(15).enumerate() {
        trials::clock::jump(clock, seconds);
        let told = match SystemTime::now().duration_since(wall) {
            Ok(ahead) => ahead.as_secs() as i64,
            Err(back) => -(back.duration().as_secs() as i64),
        };
        assert!(told.abs_diff(seconds) < 100, "the clock did not jump: {told} {seconds}");
        assert!(start.elapsed().as_secs() < 100, "the other clock jumped, too");
        println!("said run {}", runs.create(1).unwrap().id);
        println!("said event {}", journal.event("tick", &serde_json::json!(n)).unwrap());
        journal.count(&Counters { programs: n as u64, ..Counters::default() }).unwrap();
        println!("said counters {n}");
        let program = format!("hgm 1\nf0 = memfd page=2M\nftruncate file=f0 len={}\n", n + 1);
        let program = text::parse(&program).unwrap();
        println!("said program {}", corpus.add(&program).unwrap().id);
        let kernel = serde_json::json!({});
        let (compared, console, report) = ("c", b"x", "r");
        let evidence = Evidence { program: &program, compared, console, report, kernel: &kernel };
        let seen = finding(format!("bug {n}"));
        let slug = findings.record(&seen, evidence).unwrap().slug;
        journal.index_finding(&slug, &seen).unwrap();
        println!("said finding {slug}");
        Merges::of(home).unwrap().merge(&["head".into(), seen.signature]).unwrap();
        Corpus::open(&home.join("corpus")).unwrap();
    }
}

#[test]
fn order_is_that_of_the_calls_whatever_the_clock_says() {
    if let Ok(order) = std::env::var(WRITER) {
        let (clock, home) = order.split_once(' ').unwrap();
        return write_some(Path::new(home), Path::new(clock));
    }
    let start = Instant::now();
    let place = tempfile::tempdir().unwrap();
    let (home, clock) = (place.path().join("home"), place.path().join("clock"));
    let mut writer = Command::new(std::env::current_exe().unwrap());
    writer.args(["--exact", NAME, "--nocapture"]);
    writer.env(WRITER, format!("{} {}", clock.display(), home.display()));
    trials::clock::faked(&mut writer, &clock);
    let out = writer.output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{text}{}", String::from_utf8_lossy(&out.stderr));
    let said = |kind: &str| -> Vec<String> {
        let lines = text.lines().filter_map(|line| line.strip_prefix("said "));
        lines.filter_map(|line| Some(line.strip_prefix(kind)?.trim().to_owned())).collect()
    };

    let runs = Runs::of(&home);
    let listed: Vec<String> = runs.list().unwrap().into_iter().map(|run| run.id).collect();
    let journal = Journal::view(&home.join("runs").join(&said("run")[0])).unwrap();
    let events = journal.events(0).unwrap().into_iter().map(|e| e.seq.to_string()).collect();
    let counters = journal.counters().unwrap();
    let counters = counters.iter().map(|(_, c)| c.programs.to_string()).collect();
    let findings = journal.findings().unwrap().into_iter().map(|row| row.slug).collect();
    let corpus = Corpus::view(&home.join("corpus")).unwrap();
    let programs = said("program").into_iter().filter(|id| corpus.contains(id)).collect();
    let found: [(&str, Vec<String>); 5] = [
        ("run", listed),
        ("event", events),
        ("counters", counters),
        ("finding", findings),
        ("program", programs),
    ];
    let (mut tried, mut lost) = (0, 0);
    for (kind, found) in found {
        let said = said(kind);
        tried += said.len() as u64;
        lost += said.iter().zip(&found).filter(|(said, found)| said != found).count() as u64;
        lost += said.len().abs_diff(found.len()) as u64;
        if said != found {
            println!("{kind}: {said:?} became {found:?}");
        }
    }
    lost += u64::from(runs.latest().unwrap().map(|run| run.id).as_ref() != said("run").last());
    lost += u64::from(Merges::of(&home).unwrap().members("head").len() != 15);
    trials::fault("F18", "the clock jumps while a store is written", tried, lost, start);
    assert!(lost == 0 && tried > 70);
}
