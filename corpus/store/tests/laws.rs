//! What the store promises: complete or absent, once, nothing deleted, errors that name the path.

#![allow(clippy::unwrap_used)]

use case::{Finding, FindingState, Program, Source, text, wire};
use std::fs;
use std::path::{Path, PathBuf};
use store::{Corpus, Counters, Evidence, Findings, Journal, RunMeta, Runs, StoreError};

fn program(lines: usize) -> Program {
    let mut words = String::from("hgm 1\n# a note\nf0 = memfd page=2M\n");
    for n in 0..lines {
        words.push_str(&format!("ftruncate file=f0 len={}M\n", 2 * (n + 1)));
    }
    text::parse(&words).unwrap()
}

fn finding(signature: &str) -> Finding {
    Finding {
        signature: signature.into(),
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
        replay: "hgm repro x --times 20".into(),
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn adding_is_idempotent_and_keeps_comments() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a folder/corpus");
    let mut corpus = Corpus::open(&path).unwrap();
    let one = program(1);
    let first = corpus.add(&one).unwrap();
    assert!(first.new);
    assert!(!corpus.add(&one).unwrap().new);
    assert_eq!(names(&path), [format!("{}.hgm", wire::program_id(&one))]);
    assert!(fs::read_to_string(&first.path).unwrap().contains("# a note"));

    let again = Corpus::open(&path).unwrap();
    assert_eq!(again.get(again.find(&first.id[..5]).unwrap()).unwrap(), one);
}

#[test]
fn bad_files_go_to_quarantine_and_are_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3 {
        fs::write(dir.path().join("bad.hgm"), format!("hgm 1\nnonsense {round}\n")).unwrap();
        let corpus = Corpus::open(dir.path()).unwrap();
        assert_eq!(corpus.unfit().len(), 1);
        assert_eq!(corpus.len(), 0);
    }
    fs::write(dir.path().join("binary.hgm"), [0xff, 0xfe, 0]).unwrap();
    fs::write(dir.path().join("huge.hgm"), vec![b'#'; 300 << 10]).unwrap();
    let report = Corpus::verify(dir.path()).unwrap();
    assert_eq!(report.unfit.len(), 2);
    let kept = names(&dir.path().join("quarantine"));
    assert_eq!(kept, ["bad.hgm", "bad.hgm.1", "bad.hgm.2", "binary.hgm", "huge.hgm"]);
}

#[test]
fn verify_tells_misnamed_doubles_and_leftovers() {
    let dir = tempfile::tempdir().unwrap();
    let mut corpus = Corpus::open(dir.path()).unwrap();
    let id = corpus.add(&program(1)).unwrap().id;
    let text = fs::read(dir.path().join(format!("{id}.hgm"))).unwrap();
    fs::write(dir.path().join("by-hand.hgm"), &text).unwrap();
    fs::write(dir.path().join("0123456789abcdef.hgm"), text::print(&program(2))).unwrap();
    fs::write(dir.path().join(".hgm-tmp-xyz"), "torn").unwrap();
    let report = Corpus::verify(dir.path()).unwrap();
    assert_eq!(report.good, 1);
    assert_eq!(report.misnamed.len(), 1);
    assert_eq!(report.doubles, [dir.path().join("by-hand.hgm")]);
    assert_eq!(report.leftovers.len(), 1);
    assert!(!report.is_clean());
}

#[test]
fn one_bug_one_folder_and_it_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    let console = b"BUG: \xff\x00\x1b[31m raw\n";
    let kernel = serde_json::json!({ "id": "6.1" });
    let one = program(1);
    let report = "BUG: raw\n";
    let compared = "expected 0\nobserved 1\n";
    let evidence = Evidence { program: &one, compared, console, report, kernel: &kernel };
    let mut findings = Findings::open(dir.path()).unwrap();
    let first = findings.record(&finding("H-080/continue/resident"), evidence).unwrap();
    assert!(first.new && first.slug.starts_with("h-080-continue-resident-"));
    let second = findings.record(&finding("H-080/continue/resident"), evidence).unwrap();
    assert_eq!((second.new, second.count, &second.folder), (false, 2, &first.folder));
    // Same letters, other signature: another bug.
    findings.record(&finding("H-080.continue.resident"), evidence).unwrap();
    findings.record(&finding("../../etc/\u{1b}passwd"), evidence).unwrap();
    assert_eq!(names(dir.path()).len(), 3);
    assert_eq!(
        names(&first.folder),
        [
            "console.txt",
            "expected-vs-observed.txt",
            "finding.json",
            "kernel.json",
            "program.hgm",
            "report.txt"
        ]
    );
    assert_eq!(fs::read(first.folder.join("report.txt")).unwrap(), report.as_bytes());
    assert_eq!(Findings::read_console(&first.folder, 5).unwrap(), &console[..5]);
    assert_eq!(fs::read(first.folder.join("console.txt")).unwrap(), console);
    assert_eq!(Findings::read_program(&first.folder).unwrap(), one);

    findings.update(&first.slug, |f| f.reproduced = (9, 10)).unwrap();
    let small = program(0);
    findings.replace_program(&first.slug, &small, "smaller").unwrap();
    let again = Findings::view(dir.path()).unwrap();
    assert!(matches!(again.find("h-080-cont"), Err(StoreError::Ambiguous { count: 2, .. })));
    let kept = again.get(&first.slug);
    assert_eq!(kept.map(|f| (f.count, f.reproduced)), Some((2, (9, 10))));
    assert_eq!(Findings::read_program(&first.folder).unwrap(), small);
}

#[test]
fn unreadable_finding_is_kept_aside() {
    let dir = tempfile::tempdir().unwrap();
    let one = program(1);
    let kernel = serde_json::Value::Null;
    let evidence =
        Evidence { program: &one, compared: "", console: b"", report: "", kernel: &kernel };
    let mut findings = Findings::open(dir.path()).unwrap();
    let first = findings.record(&finding("a/b/c"), evidence).unwrap();
    assert!(!first.folder.join("report.txt").exists());
    fs::write(first.folder.join("finding.json"), "{ torn").unwrap();
    let mut findings = Findings::open(dir.path()).unwrap();
    assert_eq!(findings.broken().len(), 1);
    assert!(findings.record(&finding("a/b/c"), evidence).unwrap().new);
    assert_eq!(names(dir.path()).len(), 2, "the torn folder is still there");
}

/// The number in a lock is for people: whoever has it now is neither asked nor signalled.
#[test]
fn a_lock_that_was_left_is_nobodys() {
    let start = std::time::Instant::now();
    let home = tempfile::tempdir().unwrap();
    let runs = Runs::of(home.path());
    let id = runs.create(1).unwrap().id;
    let mut stranger = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let numbers = [stranger.id().to_string(), "1".into(), "0".into(), "-1".into(), "x".into()];
    let mut lost = 0;
    for number in &numbers {
        fs::write(home.path().join("runs").join(&id).join("lock"), number).unwrap();
        let live = runs.find(&id).unwrap().live;
        lost += u64::from(live || runs.resume(&id).is_err());
    }
    lost += u64::from(stranger.try_wait().unwrap().is_some());
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    let tried = numbers.len() as u64;
    trials::fault("F11", "a lock that was left names another", tried, lost, start);
    assert_eq!(lost, 0);
}

#[test]
fn runs_are_listed_found_and_locked() {
    let home = tempfile::tempdir().unwrap();
    let runs = Runs::of(home.path());
    assert_eq!(runs.list().unwrap(), []);
    assert!(matches!(runs.find("latest"), Err(StoreError::NotFound { .. })));
    let run = runs.create(5).unwrap();
    let other = runs.create(5).unwrap();
    assert_ne!(run.id, other.id);
    assert_eq!(run.id.len(), "20261121-120301-ab12".len());
    let start = std::time::Instant::now();
    for _ in 0..50 {
        let Err(StoreError::Live { pid, .. }) = runs.resume(&run.id) else { panic!("not refused") };
        assert_eq!(pid, std::process::id().to_string());
    }
    trials::fault("F23", "a second owner of a run is refused", 50, 0, start);
    assert!(runs.list().unwrap().iter().all(|run| run.live));
    drop(run);
    drop(other);
    assert!(runs.list().unwrap().iter().all(|run| !run.live));
    let latest = runs.latest().unwrap().unwrap();
    assert_eq!(runs.resume("latest").unwrap().id, latest.id);
}

#[test]
fn journal_keeps_everything_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let meta = RunMeta {
        kernel: "6.1".into(),
        profile: "ci".into(),
        seed: u64::MAX,
        version: "0.1.0".into(),
        command: vec!["hgm".into(), "fuzz".into()],
        started: "2026-11-21T12:03:01Z".into(),
    };
    let mut journal = Journal::open(dir.path()).unwrap();
    journal.begin(&meta).unwrap();
    journal.begin(&RunMeta { seed: 1, ..meta.clone() }).unwrap();
    for programs in 1..=5 {
        journal.count(&Counters { programs, ..Counters::default() }).unwrap();
    }
    assert_eq!(journal.event("boot", &serde_json::json!({ "vm": 0 })).unwrap(), 1);
    journal.index_finding("s", &finding("a/b/c")).unwrap();
    journal.index_finding("s", &Finding { count: 9, ..finding("a/b/c") }).unwrap();
    journal.save_checkpoint(10, b"first").unwrap();
    journal.save_checkpoint(20, b"second").unwrap();
    drop(journal);

    let reader = Journal::view(dir.path()).unwrap();
    assert_eq!(reader.meta().unwrap(), Some(meta));
    assert_eq!(reader.counters().unwrap().len(), 5);
    assert_eq!(reader.last_counters().unwrap().unwrap().programs, 5);
    assert_eq!(reader.events(0).unwrap()[0].body["vm"], 0);
    assert_eq!(reader.events(1).unwrap(), []);
    let index = reader.findings().unwrap();
    assert_eq!((index.len(), index[0].count), (1, 9));
    assert_eq!(reader.checkpoint().unwrap().unwrap(), b"second");
    let blobs: Vec<String> =
        names(dir.path()).into_iter().filter(|n| n.starts_with("engine-")).collect();
    assert_eq!(blobs.len(), 1, "the older checkpoint is gone");
    fs::write(dir.path().join(&blobs[0]), "damaged").unwrap();
    assert_eq!(reader.checkpoint().unwrap(), None);
}

#[test]
fn programs_wait_in_the_journal_until_they_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path()).unwrap();
    for id in ["c", "a", "b"] {
        assert!(journal.want_check(id, &format!("text of {id}")).unwrap());
    }
    journal.end_check("a", "clean").unwrap();
    assert!(!journal.want_check("a", "text of a").unwrap(), "once is enough");
    assert!(!journal.want_check("b", "text of b").unwrap());
    drop(journal);

    let journal = Journal::open(dir.path()).unwrap();
    let waiting = |limit, except: &[&str]| {
        let except = except.iter().map(|id| (*id).to_owned()).collect();
        journal.waiting_checks(limit, &except).unwrap()
    };
    assert_eq!(waiting(9, &[]), ["text of c", "text of b"]);
    assert_eq!(waiting(1, &[]), ["text of c"]);
    assert_eq!(waiting(1, &["c"]), ["text of b"]);
    let counts = journal.checks().unwrap();
    assert_eq!(counts, [(String::new(), 2), ("clean".to_owned(), 1)].into());
}

#[test]
fn journal_of_another_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let start = std::time::Instant::now();
    drop(Journal::open(dir.path()).unwrap());
    let db = rusqlite::Connection::open(dir.path().join("journal.sqlite")).unwrap();
    db.pragma_update(None, "user_version", 2).unwrap();
    drop(db);
    let before = fs::read(dir.path().join("journal.sqlite")).unwrap();
    assert!(matches!(Journal::open(dir.path()), Err(StoreError::Format { found: 2, .. })));
    assert!(matches!(Journal::view(dir.path()), Err(StoreError::Format { found: 2, .. })));
    let after = fs::read(dir.path().join("journal.sqlite")).unwrap();
    assert_eq!(before, after, "what is refused stays as it is");
    trials::fault("F33", "a journal of another version", 2, 0, start);
    fs::write(dir.path().join("journal.sqlite"), "this is no database, and long enough").unwrap();
    assert!(matches!(Journal::open(dir.path()), Err(StoreError::Database { .. })));
}

/// Root may write anywhere, so a folder that refuses everybody is needed: one below /proc.
#[test]
fn disk_errors_name_the_path_and_say_what_to_do() {
    let dead = PathBuf::from("/proc/self/hgm");
    let errors = [
        Corpus::open(&dead).map(|_| ()).unwrap_err(),
        Findings::open(&dead).map(|_| ()).unwrap_err(),
        Runs::of(&dead).create(1).map(|_| ()).unwrap_err(),
        Journal::open(&dead).map(|_| ()).unwrap_err(),
    ];
    for error in errors {
        let (message, cause, help) = error.parts();
        assert!(message.contains("/proc/self"), "{message}");
        assert!(cause.is_some() && !help.is_empty());
    }
}

#[test]
fn full_disk_leaves_nothing_half_done() {
    // A file size limit stands in for a full disk; a child takes it, as it holds for a process.
    if let Some(dir) = std::env::var_os("STORE_TEST_FULL") {
        let mut corpus = Corpus::open(Path::new(&dir)).unwrap();
        let error = corpus.add(&program(100)).unwrap_err();
        assert!(error.to_string().contains("cannot write"), "{error}");
        assert_eq!(corpus.len(), 0);
        println!("refused");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let me = std::env::current_exe().unwrap();
    let out = std::process::Command::new("sh")
        // SIGXFSZ ignored: write(2) then fails with EFBIG instead of killing the child.
        .args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$0\" --exact \"$1\" --nocapture"])
        .arg(me)
        .arg("full_disk_leaves_nothing_half_done")
        .env("STORE_TEST_FULL", dir.path())
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&out.stdout).contains("refused"), "{out:?}");
    assert_eq!(names(dir.path()), [] as [String; 0]);
}
