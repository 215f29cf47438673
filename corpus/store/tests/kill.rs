//! kill -9 at random points: whatever was acknowledged is there when the folder is opened again.
//!
//! The test starts its own binary as the writer; the writer prints a line for each thing the
//! store acknowledged, so the parent knows what must be found.

#![allow(clippy::unwrap_used)]

mod support;

use case::text;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use store::{Corpus, Counters, Evidence, Findings, Journal};
use support::finding;

/// Kills; `$HGM_ROUNDS` times as many when asked.
const ROUNDS: u32 = 30;
/// Fewer would prove little.
const ACKNOWLEDGED_MIN: usize = 300;
const WRITER: &str = "STORE_TEST_WRITER";

fn program(serial: u64) -> case::Program {
    let words = format!("hgm 1\nf0 = memfd page=2M\nftruncate file=f0 len={serial}\n");
    text::parse(&words).unwrap()
}

/// Writes until killed.
fn write_forever(dir: &Path, round: u64) {
    let mut corpus = Corpus::open(&dir.join("corpus")).unwrap();
    let mut findings = Findings::open(&dir.join("findings")).unwrap();
    let mut journal = Journal::open(dir).unwrap();
    let kernel = serde_json::json!({});
    for n in 0.. {
        let serial = round * 1_000_000 + n;
        let program = program(serial);
        println!("program {}", corpus.add(&program).unwrap().id);
        println!("event {}", journal.event("tick", &serde_json::json!(serial)).unwrap());
        if n % 3 == 0 {
            journal.count(&Counters { programs: serial, ..Counters::default() }).unwrap();
            println!("counters {serial}");
        }
        if n % 5 == 0 {
            let finding = finding(format!("bug {serial}"));
            let (compared, console) = ("c", b"x");
            let evidence =
                Evidence { program: &program, compared, console, report: "r", kernel: &kernel };
            let slug = findings.record(&finding, evidence).unwrap().slug;
            journal.index_finding(&slug, &finding).unwrap();
            println!("finding {slug}");
        }
        if n % 7 == 0 {
            journal.save_checkpoint(serial, &serial.to_le_bytes()).unwrap();
            println!("checkpoint {serial}");
        }
    }
}

/// Starts a writer, kills it after `delay`, gives the lines it acknowledged.
fn killed_writer(dir: &Path, round: u64, delay: Duration) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kill_nine_loses_nothing", "--nocapture"])
        .env(WRITER, format!("{round} {}", dir.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        loop {
            let mut line = String::new();
            let _ = lines.read_line(&mut line);
            // The last line may be torn by the kill: only those with a newline count.
            match line.strip_suffix('\n') {
                Some(whole) => all.push(whole.to_owned()),
                None => return all,
            }
        }
    });
    std::thread::sleep(delay);
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap()
}

#[test]
fn kill_nine_loses_nothing() {
    if let Ok(order) = std::env::var(WRITER) {
        let (round, dir) = order.split_once(' ').unwrap();
        return write_forever(Path::new(dir), round.parse().unwrap());
    }
    let start = Instant::now();
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged: BTreeSet<String> = BTreeSet::new();
    let mut checkpoint = 0;
    // A slow machine acknowledges less in a round and gets more of them.
    let kills = u64::from(trials::rounds(ROUNDS));
    let enough = |all: &BTreeSet<String>, round| round >= kills && all.len() > ACKNOWLEDGED_MIN;
    let mut rounds = 0..10 * kills;
    let mut tried = 0;
    while let Some(round) = rounds.next().filter(|round| !enough(&acknowledged, *round)) {
        // Spread over the start (tables half made) and the steady state; fixed, not random.
        let delay = Duration::from_millis(5 + (round * 37) % 211);
        for line in killed_writer(dir.path(), round, delay) {
            let whole = match line.split_once(' ') {
                Some(("program" | "finding" | "event" | "counters", _)) => true,
                Some(("checkpoint", serial)) => {
                    checkpoint = serial.parse().unwrap();
                    false
                }
                // What the test runner itself prints.
                _ => false,
            };
            if whole {
                acknowledged.insert(line);
            }
        }
        check(dir.path(), &acknowledged, checkpoint);
        tried += 1;
    }
    println!("{tried} kills, {} things acknowledged", acknowledged.len());
    trials::fault("F1", "the one who writes is killed", tried, 0, start);
    assert!(acknowledged.len() > ACKNOWLEDGED_MIN, "only {} acknowledged", acknowledged.len());
}

fn check(dir: &Path, acknowledged: &BTreeSet<String>, checkpoint: u64) {
    let corpus = Corpus::open(&dir.join("corpus")).unwrap();
    assert_eq!(corpus.unfit(), []);
    let findings = Findings::open(&dir.join("findings")).unwrap();
    assert_eq!(findings.broken(), [] as [std::path::PathBuf; 0]);
    let journal = Journal::open(dir).unwrap();
    let events: BTreeSet<i64> = journal.events(0).unwrap().iter().map(|e| e.seq).collect();
    let counted: BTreeSet<u64> =
        journal.counters().unwrap().iter().map(|(_, c)| c.programs).collect();
    let index: BTreeSet<String> =
        journal.findings().unwrap().into_iter().map(|row| row.slug).collect();
    for line in acknowledged {
        let (kind, name) = line.split_once(' ').unwrap();
        let there = match kind {
            "program" => corpus.contains(name),
            "event" => events.contains(&name.parse().unwrap()),
            "counters" => counted.contains(&name.parse().unwrap()),
            _ => findings.get(name).is_some() && index.contains(name),
        };
        assert!(there, "lost: {line}");
    }
    if checkpoint > 0 {
        let kept = journal.checkpoint().unwrap().expect("checkpoint lost");
        let kept = u64::from_le_bytes(kept.try_into().unwrap());
        assert!(kept >= checkpoint, "checkpoint went back from {checkpoint} to {kept}");
    }
}
