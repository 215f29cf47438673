//! Power cuts: whatever the store acknowledged is there when it is opened again, and of the rest at
//! most the one thing that was being written is there or not.
//!
//! The test starts its own binary as the writer and records its system calls (`power/trace.rs`); from
//! them a model of a disk (`power/disk.rs`) makes the states that a cut may leave after each call. The
//! real store opens each of them. The writer says what was acknowledged on its standard output, so
//! that stands among the calls, too.

#![allow(clippy::unwrap_used)]

#[path = "power/disk.rs"]
mod disk;
mod support;
#[path = "power/trace.rs"]
mod trace;

use case::text;
use disk::{DAMAGES, Damage, Disk, State};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use store::{Corpus, Counters, Evidence, Findings, Journal, Merges, RunDir, RunMeta, Runs};
use support::finding;
use trace::Call;

const WRITER: &str = "STORE_TEST_POWER";
/// How often the first writer is killed before it syncs the same file or folder.
const KILLS: u32 = 2;
/// Of the cuts while another goes on after it, those after which nothing was said: one in so many.
const EVERY: usize = 24;

fn program(serial: u64) -> case::Program {
    text::parse(&format!("hgm 1\nf0 = memfd page=2M\nftruncate file=f0 len={serial}\n")).unwrap()
}

/// Everything the store can be asked to keep, some of it twice. A later round takes over the run of
/// the one before, and asks for what that one asked for once more.
fn write_some(home: &Path, round: u64, bulk: usize) {
    println!();
    let runs = Runs::of(home);
    let latest = runs.latest().unwrap();
    let run = latest.map_or_else(|| runs.create(1), |run| runs.resume(&run.id)).unwrap();
    println!("said run {}", run.id);
    let mut journal = run.journal().unwrap();
    let meta = RunMeta {
        kernel: "k".into(),
        profile: "p".into(),
        seed: 1,
        version: "v".into(),
        command: vec![],
        started: "s".into(),
    };
    journal.begin(&meta).unwrap();
    println!("said meta");
    // More than one journal holds before it is written back.
    let body = serde_json::json!("x".repeat(bulk));
    for _ in 0..if bulk > 0 { 4 } else { 0 } {
        println!("said event {}", journal.event("tick", &body).unwrap());
    }
    let mut corpus = Corpus::open(&home.join("a/corpus")).unwrap();
    for serial in (1..=round).flat_map(|round| round * 100..round * 100 + 3) {
        println!("said program {}", corpus.add(&program(serial)).unwrap().id);
    }
    let mut merges = Merges::of(home).unwrap();
    for n in 0..round {
        merges.merge(&["head".into(), format!("bug {n}")]).unwrap();
        println!("said merge bug {n}");
    }
    for part in 0..2 {
        let n = round * 10 + part;
        tell(&mut journal, n);
        keep_findings(&run, &mut journal, n);
        run.save("summary.json", n.to_string().as_bytes()).unwrap();
        println!("said saved {n}");
    }
    // What it holds goes back into the one file, and the run changes hands.
    drop((journal, run));
    let run = runs.resume("latest").unwrap();
    tell(&mut run.journal().unwrap(), round * 10 + 2);
    println!("said complete");
}

fn tell(journal: &mut Journal, n: u64) {
    println!("said event {}", journal.event("tick", &serde_json::json!(n)).unwrap());
    journal.count(&Counters { programs: n, ..Counters::default() }).unwrap();
    println!("said counters {n}");
    journal.set_note("n", &n.to_string()).unwrap();
    println!("said note {n}");
    journal.save_checkpoint(n, &n.to_le_bytes()).unwrap();
    println!("said checkpoint {n}");
    let id = format!("{n}");
    journal.want_check(&id, "text").unwrap();
    println!("said wanted {n}");
    journal.end_check(&id, "good").unwrap();
    println!("said ended {n}");
}

fn keep_findings(run: &RunDir, journal: &mut Journal, n: u64) {
    let mut findings = run.findings().unwrap();
    let first = program(1);
    let kernel = serde_json::json!({});
    let evidence =
        Evidence { program: &first, compared: "c", console: b"x", report: "r", kernel: &kernel };
    // One that is seen again and again, and one that is new.
    for signature in ["bug".into(), format!("bug {n}")] {
        let seen = finding(signature);
        let made = findings.record(&seen, evidence).unwrap();
        println!("said finding {} {}", made.slug, made.count);
        journal.index_finding(&made.slug, &seen).unwrap();
        println!("said index {}", made.slug);
        if n % 2 == 1 {
            findings.replace_program(&made.slug, &program(2), "smaller").unwrap();
            println!("said small {}", made.slug);
        }
    }
}

/// What was found where the power was cut.
#[derive(Default)]
struct Found {
    /// In the words of the writer.
    things: BTreeSet<String>,
    /// Of what only the newest counts: its number.
    newest: BTreeMap<&'static str, u64>,
    counts: BTreeMap<String, u32>,
    broken_merges: usize,
}

/// Opens everything, as the next writer would.
fn open(home: &Path) -> Result<Found, store::StoreError> {
    let mut found = Found::default();
    let corpus = Corpus::open(&home.join("a/corpus"))?;
    assert_eq!(corpus.unfit(), [], "a torn program");
    found.things.extend(corpus.iter().map(|(id, _)| format!("program {id}")));
    let merges = Merges::of(home)?;
    found.things.extend(merges.members("head").iter().map(|bug| format!("merge {bug}")));
    found.broken_merges = merges.broken().0;
    let runs = Runs::of(home);
    for run in runs.list()? {
        found.things.insert(format!("run {}", run.id));
        let run = runs.resume(&run.id)?;
        open_run(&run, &mut found)?;
    }
    Ok(found)
}

fn open_run(run: &RunDir, found: &mut Found) -> Result<(), store::StoreError> {
    let journal = run.journal()?;
    let db = rusqlite::Connection::open(run.path.join("journal.sqlite")).unwrap();
    let sound: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(sound, "ok");
    let Found { things, newest, counts, .. } = found;
    things.extend(journal.meta()?.map(|_| "meta".to_owned()));
    things.extend(journal.events(0)?.iter().map(|event| format!("event {}", event.seq)));
    things.extend(journal.counters()?.iter().map(|(_, c)| format!("counters {}", c.programs)));
    things.extend(journal.findings()?.iter().map(|row| format!("index {}", row.slug)));
    for (number, ended) in checks(&db) {
        things.insert(format!("wanted {number}"));
        things.extend((ended == "good").then(|| format!("ended {number}")));
    }
    newest.extend(journal.note("n")?.map(|n| ("note", n.parse().unwrap())));
    let blob = journal.checkpoint()?.map(|blob| u64::from_le_bytes(blob.try_into().unwrap()));
    newest.extend(blob.map(|n| ("checkpoint", n)));
    let saved = std::fs::read_to_string(run.path.join("summary.json")).ok();
    newest.extend(saved.map(|n| ("saved", n.parse().expect("a torn file"))));

    let findings = run.findings()?;
    assert_eq!(findings.broken(), [] as [PathBuf; 0], "a torn finding");
    for (slug, finding) in findings.iter() {
        let folder = findings.folder(slug);
        things.insert(format!("finding {slug}"));
        counts.insert(slug.to_owned(), finding.count);
        assert_eq!(Findings::read_console(&folder, 9)?, b"x", "torn evidence");
        let compared = std::fs::read_to_string(folder.join("expected-vs-observed.txt")).unwrap();
        let small = Findings::read_program(&folder)? == program(2);
        assert!(["c", "smaller"].contains(&compared.as_str()), "{compared}");
        things.extend((small && compared == "smaller").then(|| format!("small {slug}")));
    }
    Ok(())
}

fn checks(db: &rusqlite::Connection) -> Vec<(String, String)> {
    let mut rows = db.prepare("SELECT id, ended FROM checks").unwrap();
    let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
    rows.unwrap().map(Result::unwrap).collect()
}

/// Holds what was found against what was said.
fn judge(found: &Found, said: &[String], writers: usize) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut acknowledged = BTreeSet::new();
    for line in said {
        let words: Vec<&str> = line.splitn(3, ' ').collect();
        let there = match words[..] {
            [what @ ("note" | "checkpoint" | "saved"), n] => {
                found.newest.get(what).is_some_and(|newest| *newest >= n.parse().unwrap())
            }
            ["finding", slug, count] => {
                acknowledged.insert(format!("finding {slug}"));
                found.counts.get(slug).is_some_and(|now| *now >= count.parse().unwrap())
            }
            ["complete"] => true,
            _ => {
                acknowledged.insert(line.clone());
                found.things.contains(line)
            }
        };
        if !there {
            wrong.push(format!("lost: {line}"));
        }
    }
    // Each writer had one thing in hand when it ended.
    let more: Vec<&String> = found.things.difference(&acknowledged).collect();
    if more.len() > writers || found.broken_merges > writers {
        wrong.push(format!("nobody said {more:?}, and {} lines are broken", found.broken_merges));
    }
    wrong
}

/// One writer's calls, on a disk that was like this before. The last of the lines it said tells that
/// it came to its end.
struct Recording {
    before: Disk,
    calls: Vec<Call>,
    said_before: Vec<String>,
    writers: usize,
}

impl Figures {
    fn add(&mut self, part: &Figures) {
        self.tried += part.tried;
        self.lost += part.lost;
        self.torn_merges += part.torn_merges;
    }
}

impl Recording {
    /// Lets a writer write in a folder that looks as the disk does now.
    fn new(place: &Path, before: Disk, said_before: Vec<String>, round: u64, bulk: usize) -> Self {
        let home = place.join("home");
        std::fs::create_dir_all(&home).unwrap();
        disk::put(&before.now(), &home);
        let before = before.at(&home);
        let mut writer = Command::new(std::env::current_exe().unwrap());
        writer
            .args(["--exact", "a_power_cut_costs_nothing_acknowledged", "--nocapture"])
            .env(WRITER, format!("{round} {bulk} {}", home.display()));
        let calls = trace::of(&mut writer, &place.join("calls"));
        let recording = Recording { before, calls, said_before, writers: round as usize };
        let (after, said) = recording.after(usize::MAX);
        assert!(said.iter().any(|line| line == "complete"), "{said:?}");
        // The model and the real folder agree, or the recording is not all that happened.
        let real = read(&home);
        let differs = |path: &&PathBuf| !path.to_string_lossy().ends_with("-shm");
        let model = after.now();
        let paths: BTreeSet<&PathBuf> = real.keys().chain(model.keys()).filter(differs).collect();
        for path in paths {
            assert!(real.get(path) == model.get(path), "misread: {}", path.display());
        }
        recording
    }

    /// The disk after that many calls, and all that was said until then.
    fn after(&self, calls: usize) -> (Disk, Vec<String>) {
        let mut disk = self.before.clone();
        self.calls.iter().take(calls).for_each(|call| {
            disk.apply(call);
        });
        let said = self.said_before.iter().chain(disk.said()).cloned().collect();
        (disk, said)
    }
}

fn read(folder: &Path) -> State {
    let mut state = State::new();
    let mut left = vec![folder.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let bytes = (!path.is_dir()).then(|| std::fs::read(&path).unwrap());
            if bytes.is_none() {
                left.push(path.clone());
            }
            state.insert(path.strip_prefix(folder).unwrap().to_owned(), bytes);
        }
    }
    state
}

/// How many states were opened, and what was wrong with them.
#[derive(Default)]
struct Figures {
    tried: u64,
    lost: u64,
    torn_merges: u64,
}

/// Calls after which the power is cut: one part of many, and in that all after which something was
/// said, but of the others one in so many.
struct Which {
    part: usize,
    parts: usize,
    every: usize,
}

/// Cuts the power after calls of a recording, in every way, `times` times where chance decides.
fn cut(place: &Path, recording: &Recording, which: Which, times: u32) -> Figures {
    let mut figures = Figures::default();
    let mut disk = recording.before.clone();
    let mut seen = BTreeSet::new();
    for (number, call) in recording.calls.iter().enumerate() {
        let told = disk.said().len();
        let wanted = disk.apply(call) && number % which.parts == which.part;
        let told = disk.said().len() > told;
        if !wanted || !told && !(number / which.parts).is_multiple_of(which.every) {
            continue;
        }
        let said: Vec<String> = recording.said_before.iter().chain(disk.said()).cloned().collect();
        for time in 0..times {
            let mut chance = ChaCha8Rng::seed_from_u64((number as u64) << 16 | u64::from(time));
            for damage in DAMAGES {
                let state = disk.cut(damage, &mut chance);
                if seen.insert(fingerprint(&state, said.len())) {
                    let wrong = try_state(place, &state, &said, recording.writers, &mut figures);
                    if !wrong.is_empty() {
                        figures.lost += 1;
                        println!("after call {number} ({}), {damage:?}: {wrong:?}", call.name);
                    }
                }
            }
        }
    }
    figures
}

/// Opens a state as the next writer would, and holds it against what was said.
fn try_state(
    place: &Path,
    state: &State,
    said: &[String],
    writers: usize,
    figures: &mut Figures,
) -> Vec<String> {
    let _ = std::fs::remove_dir_all(place);
    std::fs::create_dir(place).unwrap();
    disk::put(state, place);
    figures.tried += 1;
    let writes = figures.tried.is_multiple_of(4);
    let opened = std::panic::catch_unwind(|| {
        let found = open(place).map_err(|error| error.to_string());
        if found.is_ok() && writes {
            goes_on(place);
        }
        found
    });
    match opened {
        Ok(Ok(found)) => {
            figures.torn_merges += u64::from(found.broken_merges > 0);
            judge(&found, said, writers)
        }
        Ok(Err(error)) => vec![error],
        Err(_) => vec!["it panicked".to_owned()],
    }
}

/// The same files after the same words are one state.
fn fingerprint(state: &State, said: usize) -> [u8; 32] {
    let mut hash = blake3::Hasher::new();
    hash.update(&said.to_le_bytes());
    // What is shared in memory is made anew by whoever opens it.
    let files = state.iter().filter(|(path, _)| !path.to_string_lossy().ends_with("-shm"));
    for (path, bytes) in files {
        hash.update(path.to_string_lossy().as_bytes());
        hash.update(&bytes.as_ref().map_or(u64::MAX, |bytes| bytes.len() as u64).to_le_bytes());
        hash.update(bytes.as_deref().unwrap_or_default());
    }
    *hash.finalize().as_bytes()
}

/// What was opened takes more.
fn goes_on(home: &Path) {
    let id = Corpus::open(&home.join("a/corpus")).unwrap().add(&program(9)).unwrap().id;
    assert!(Corpus::view(&home.join("a/corpus")).unwrap().contains(&id));
    Merges::of(home).unwrap().merge(&["other".into(), "bug 9".into()]).unwrap();
    assert_eq!(Merges::of(home).unwrap().head("bug 9"), "other");
    let Some(run) = Runs::of(home).latest().unwrap() else { return };
    let seq = Journal::open(&run.path).unwrap().event("more", &serde_json::json!(1)).unwrap();
    assert_eq!(Journal::view(&run.path).unwrap().events(seq - 1).unwrap().len(), 1);
}

/// Writers that took over from one who was killed just before it made something durable, or from a
/// disk that lost power there.
fn seconds(place: &Path, first: &Recording) -> Vec<Recording> {
    let mut times: BTreeMap<PathBuf, u32> = BTreeMap::new();
    let mut disk = first.before.clone();
    let mut befores = Vec::new();
    for (number, call) in first.calls.iter().enumerate() {
        let synced = disk.syncs(call).filter(|path| !path.to_string_lossy().contains(".hgm-tmp-"));
        if let Some(path) = synced {
            let time = times.entry(path).or_default();
            *time += 1;
            if *time <= trials::rounds(KILLS) {
                let mut killed = disk.clone();
                let said = killed.killed();
                if befores.len().is_multiple_of(4) {
                    let mut chance = ChaCha8Rng::seed_from_u64(number as u64);
                    let state = disk.cut(Damage::Loose { sector: 512 }, &mut chance);
                    killed = Disk::with(&state);
                }
                befores.push((killed, said));
            }
        }
        disk.apply(call);
    }
    shared_out(befores.len(), |job| {
        let (before, said) = befores[job].clone();
        Recording::new(&place.join(format!("second{job}")), before, said, 2, 0)
    })
}

/// Does all these jobs with as many threads as there are processors.
fn shared_out<T: Send>(jobs: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    let one = || loop {
        let job = next.fetch_add(1, Ordering::Relaxed);
        if job >= jobs {
            return;
        }
        let result = work(job);
        done.lock().unwrap().push((job, result));
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(one);
        }
    });
    let mut done = done.into_inner().unwrap();
    done.sort_by_key(|(job, _)| *job);
    done.into_iter().map(|(_, result)| result).collect()
}

fn cut_all(place: &Path, recordings: &[Recording], every: usize, times: u32) -> Figures {
    const PARTS: usize = 4;
    let parts = shared_out(recordings.len() * PARTS, |job| {
        let place = place.join(format!("cut{job}"));
        let which = Which { part: job % PARTS, parts: PARTS, every };
        let figures = cut(&place, &recordings[job / PARTS], which, times);
        let _ = std::fs::remove_dir_all(place);
        figures
    });
    let mut all = Figures::default();
    parts.iter().for_each(|part| all.add(part));
    all
}

#[test]
fn a_power_cut_costs_nothing_acknowledged() {
    if let Ok(order) = std::env::var(WRITER) {
        let words: Vec<&str> = order.splitn(3, ' ').collect();
        return write_some(
            Path::new(words[2]),
            words[0].parse().unwrap(),
            words[1].parse().unwrap(),
        );
    }
    let start = Instant::now();
    let place = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let place = place.path();
    let empty = Disk::with(&State::new());
    let first = Recording::new(&place.join("first"), empty.clone(), vec![], 1, 0);
    let bulk = Recording::new(&place.join("bulk"), empty, vec![], 1, 1_200_000);
    let seconds = seconds(place, &first);
    let times = trials::rounds(1);
    let mut one = cut_all(place, &[first], 1, times);
    one.add(&cut_all(place, &[bulk], 40, 1));
    trials::fault("F3", "power cut", one.tried, one.lost, start);
    let start = Instant::now();
    let two = cut_all(place, &seconds, EVERY, times);
    println!("{} took over, {} torn lines of merges told", seconds.len(), two.torn_merges);
    trials::fault("F4", "power cut after a kill or a cut", two.tried, two.lost, start);
    assert_eq!((one.lost, two.lost), (0, 0));
    assert!(one.tried > 1000 && two.tried > 1000 && one.torn_merges > 0, "nothing was cut");
}
