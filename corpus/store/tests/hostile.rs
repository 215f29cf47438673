//! Journals, findings, merges and corpus folders that somebody broke: what can be read is, the rest
//! is an error, and nothing is taken away.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

use case::{Finding, FindingState, Source, text};
use std::fs;
use std::path::Path;
use std::time::Instant;
use store::{Corpus, Counters, Evidence, Findings, Journal, Merges, RunMeta};
use trials::Trial;

/// In memory, where there is such a place: thousands of files are written.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

fn finding() -> Finding {
    Finding {
        signature: "H-080/continue/resident".into(),
        title: "a title".into(),
        source: Source::Oracle,
        state: FindingState::Confirmed,
        known: None,
        kernel: "6.1".into(),
        seed: 7,
        reproduced: (3, 5),
        elsewhere: None,
        embargo: false,
        count: 1,
        violation: None,
        replay: "hgm repro x".into(),
    }
}

fn journal() -> Vec<u8> {
    let dir = folder();
    let mut journal = Journal::open(dir.path()).unwrap();
    let meta = RunMeta {
        kernel: "6.1".into(),
        profile: "ci".into(),
        seed: 7,
        version: "0.1.0".into(),
        command: vec!["hgm".into(), "fuzz".into()],
        started: "2026-11-21T12:03:01Z".into(),
    };
    journal.begin(&meta).unwrap();
    for programs in 1..=3 {
        journal.count(&Counters { programs, ..Counters::default() }).unwrap();
        journal.event("boot", &serde_json::json!({ "vm": programs })).unwrap();
    }
    journal.index_finding("slug", &finding()).unwrap();
    journal.want_check("id", "hgm 1\n").unwrap();
    journal.set_note("summary", "{}").unwrap();
    drop(journal);
    fs::read(dir.path().join("journal.sqlite")).unwrap()
}

/// Reads all there is; errors are fine.
fn read_all(journal: &Journal) {
    let _ = (journal.meta(), journal.note("summary"), journal.counters(), journal.last_counters());
    let _ = (journal.events(0), journal.findings(), journal.checks(), journal.checkpoint());
    let _ = journal.waiting_checks(8, &[].into());
}

#[test]
fn journals() {
    let start = Instant::now();
    let dir = folder();
    let path = dir.path().join("journal.sqlite");
    let words = ["SQLite format 3\0", "CREATE TABLE", "counters", "STRICT", "\0\0\0\x01"];
    let trial = Trial::new("journals", vec![journal()]).words(&words).bytes_max(128 << 10);
    let figures = trial.run(|bytes| {
        fs::write(&path, bytes).unwrap();
        let Ok(journal) = Journal::view(dir.path()) else { return };
        read_all(&journal);
        drop(journal);
        assert_eq!(fs::read(&path).unwrap(), bytes, "who looks changes nothing");
        if let Ok(mut journal) = Journal::open(dir.path()) {
            let _ = journal.event("after", &serde_json::Value::Null);
            read_all(&journal);
        }
        for left in ["journal.sqlite-wal", "journal.sqlite-shm", "journal.sqlite-journal"] {
            let _ = fs::remove_file(dir.path().join(left));
        }
    });
    trials::fault("F6", "journals, mutated", figures.executions, 0, start);
}

#[test]
fn findings_and_merges() {
    let start = Instant::now();
    let dir = folder();
    let program = text::parse("hgm 1\nmmap at=r0 len=4K\n").unwrap();
    let evidence = Evidence {
        program: &program,
        compared: "",
        console: b"",
        report: "",
        kernel: &serde_json::Value::Null,
    };
    let home = dir.path().join("home");
    let mut findings = Findings::open(&home.join("findings")).unwrap();
    let made = findings.record(&finding(), evidence).unwrap();
    let path = made.folder.join("finding.json");
    let mut merges = Merges::of(&home).unwrap();
    merges.merge(&["a".into(), "b".into()]).unwrap();
    let lines = home.join("merges.jsonl");
    let seeds = vec![fs::read(&path).unwrap(), fs::read(&lines).unwrap()];
    let words = ["\"signature\":", "null", "[[[[[[[[", "1e999", "\\ud800", "{\"", "\n"];
    let figures = Trial::new("findings", seeds).words(&words).run(|bytes| {
        fs::write(&path, bytes).unwrap();
        let findings = Findings::view(&home.join("findings")).unwrap();
        assert_eq!(findings.len() + findings.broken().len(), 1);
        for (slug, finding) in findings.iter() {
            let again = serde_json::to_vec(finding).unwrap();
            assert_eq!(&serde_json::from_slice::<Finding>(&again).unwrap(), finding, "{slug}");
        }
        fs::write(&lines, bytes).unwrap();
        let merges = Merges::of(&home).unwrap();
        let _ = (merges.head("a").len(), merges.members("a").len());
    });
    trials::fault("F6", "findings and merges, mutated", figures.executions, 0, start);
}

#[test]
fn corpus_folders() {
    let start = Instant::now();
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../seeds");
    let good = fs::read(seeds.join("every-look.hgm")).unwrap();
    let words = ["hgm 1\n", "par {\n", "t0: ", "\u{feff}", "\0"];
    let figures =
        Trial::new("corpora", vec![good]).words(&words).bytes_max(300 << 10).run(|bytes| {
            let dir = folder();
            fs::write(dir.path().join("a.hgm"), bytes).unwrap();
            let corpus = Corpus::open(dir.path()).unwrap();
            assert_eq!(corpus.len() + corpus.unfit().len(), 1);
            // Never deleted: it is where it was, or aside.
            let kept = corpus.unfit().iter().find_map(|file| file.moved_to.clone());
            assert_eq!(fs::read(kept.unwrap_or(dir.path().join("a.hgm"))).unwrap(), bytes);
        });
    trials::fault("F6", "corpus folders, mutated", figures.executions, 0, start);
}
