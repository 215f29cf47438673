//! Faults of all sorts over one campaign of real guests: a seed says which comes when, one each second
//! or two. Afterwards what hgm promises is checked from outside: what was acknowledged is there, nothing
//! is left behind, findings can be replayed, a pass is earned, memory and disk have ceilings.
//!
//! Every fault is printed with the seed; `HGM_SEED=N` makes the faults of that seed again.

#![allow(clippy::unwrap_used)]

#[path = "support/home.rs"]
#[allow(dead_code, reason = "other tests use the rest of it")]
mod home;

use home::{DEVIATES, Home, hgm, json, names, the_kernel, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// Set in the process that may mount.
const INSIDE: &str = "HGM_COMPOUND_INSIDE";
/// Campaigns of a run of the tests.
const SEEDS: u32 = 2;
/// Faults of a campaign: each of the eight once, and some again.
const FAULTS: usize = 10;
/// What a run folder may take, in MiB: the disk is no larger.
const DISK_MIB: u32 = 48;
/// Resident memory of hgm, in KiB.
const RSS_MAX: u64 = 512 << 10;
/// From a signal to the end of a process or of its QEMUs: far more than it takes on a busy machine.
const END: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    KillQemu,
    StopQemu,
    KillHgm,
    InterruptHgm,
    FullDisk,
    Garbage,
    HubAway,
    StopHgm,
}

const ALL: [Fault; 8] = [
    Fault::KillQemu,
    Fault::StopQemu,
    Fault::KillHgm,
    Fault::InterruptHgm,
    Fault::FullDisk,
    Fault::Garbage,
    Fault::HubAway,
    Fault::StopHgm,
];

/// What was seen to be on disk while the campaign ran.
#[derive(Default)]
struct Acknowledged {
    corpus: BTreeSet<String>,
    findings: BTreeSet<String>,
    /// Rows of the journal, in their order.
    rows: Vec<(i64, String, Value)>,
}

/// A campaign under faults.
struct Victim {
    home: Home,
    seed: u64,
    rng: ChaCha8Rng,
    /// Whether runs lie on a disk of their own, which can be filled.
    own_disk: bool,
    child: Option<Child>,
    starts: u32,
    seen: Acknowledged,
    /// Most resident memory of an hgm, in KiB.
    peak: u64,
    /// What did not hold.
    lost: Vec<String>,
    faults: u64,
}

impl Drop for Victim {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if self.own_disk {
            let runs = self.home.0.path().join("runs");
            let _ = Command::new("umount").arg("--lazy").arg(runs).status();
        }
    }
}

impl Victim {
    fn new(seed: u64, own_disk: bool) -> Victim {
        let home = Home::new();
        for name in ["runs", "tmp", "hub"] {
            fs::create_dir(home.0.path().join(name)).unwrap();
        }
        if own_disk {
            let size = format!("size={DISK_MIB}m");
            let mut mount = Command::new("mount");
            mount.args(["-t", "tmpfs", "-o", &size, "none"]).arg(home.0.path().join("runs"));
            assert!(mount.status().unwrap().success());
        }
        Victim {
            home,
            seed,
            rng: ChaCha8Rng::seed_from_u64(seed),
            own_disk,
            child: None,
            starts: 0,
            seen: Acknowledged::default(),
            peak: 0,
            lost: Vec::new(),
            faults: 0,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.0.path().join(name)
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.as_ref().unwrap().id() as i32)
    }

    /// hgm with its temporaries where they can be seen.
    fn hgm(&self, args: &[&str]) -> Command {
        let mut command = hgm(self.home.0.path(), args);
        command.env("TMPDIR", self.path("tmp"));
        command
    }

    /// The campaign, or its next part.
    fn start(&mut self) {
        let (seed, kernel) = (self.seed.to_string(), the_kernel("6.1"));
        let hub = format!("file://{}", self.path("hub").display());
        let first = ["--seed", &seed, "--kernel", &kernel];
        let from: &[&str] = if self.starts == 0 { &first } else { &["--resume"] };
        let args = ["--for", "1h", "--jobs", "2", "--hub", &hub, "--no-canaries"];
        let more = ["--progress", "none", "--json", "--set", "confirm_times=1"];
        let args = [&["fuzz"], from, &args, &more].concat();
        let file = |name: &str| File::create(self.path(name)).unwrap();
        let (out, err) = (file("out"), file("err"));
        self.child = Some(self.hgm(&args).stdout(out).stderr(err).spawn().unwrap());
        self.starts += 1;
        wait_for("the run begins and a VM is there", || {
            let begun = || store::Journal::view(&self.home.the_run()).ok()?.meta().ok()?;
            let runs = names(&self.path("runs")).iter().any(|name| name != "filler");
            (runs && begun().is_some() && !self.home.qemus().is_empty()) || self.has_ended()
        });
    }

    /// Whether the process is gone; it stays to be waited for.
    fn has_ended(&self) -> bool {
        let pid = self.pid();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    }

    /// What hgm said last.
    fn said(&self) -> String {
        let text = ["out", "err"].map(|name| fs::read(self.path(name)).unwrap_or_default());
        String::from_utf8_lossy(&text.concat())
            .lines()
            .rev()
            .take(6)
            .collect::<Vec<_>>()
            .join(" | ")
    }

    fn events(&self) -> Option<Vec<(i64, String, Value)>> {
        let rows = store::Journal::view(&self.home.the_run()).ok()?.events(0).ok()?;
        Some(rows.into_iter().map(|row| (row.seq, row.kind, row.body)).collect())
    }

    /// Takes down what is on disk by now: from here on it may not be lost.
    fn look(&mut self) {
        let run = self.home.the_run();
        self.check();
        self.seen.corpus.extend(programs(&run.join("corpus")));
        self.seen.findings.extend(names(&run.join("findings")));
        if let Some(rows) = self.events() {
            self.seen.rows = rows;
        }
        if let Some(child) = &self.child {
            let status = fs::read_to_string(format!("/proc/{}/status", child.id()));
            let peak = status.unwrap_or_default().lines().find_map(|line| {
                line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok()
            });
            self.peak = self.peak.max(peak.unwrap_or(0));
        }
    }

    /// P1: what was there is there.
    fn check(&mut self) {
        let run = self.home.the_run();
        let (corpus, findings) = (programs(&run.join("corpus")), names(&run.join("findings")));
        let gone: Vec<&String> = self.seen.corpus.difference(&corpus).collect();
        let lost = format!("of {} corpus entries {gone:?}", self.seen.corpus.len());
        let mut lost = if gone.is_empty() { Vec::new() } else { vec![lost] };
        let gone: Vec<&String> = self.seen.findings.difference(&findings).collect();
        if !gone.is_empty() {
            lost.push(format!("findings {gone:?}"));
        }
        match self.events() {
            Some(rows) if rows.starts_with(&self.seen.rows) => {}
            Some(rows) => {
                lost.push(format!("of {} rows, {} left", self.seen.rows.len(), rows.len()))
            }
            None => lost.push("the journal cannot be read".into()),
        }
        for what in lost {
            self.lose(&what);
        }
    }

    fn lose(&mut self, what: &str) {
        println!("seed {}: LOST: {what}", self.seed);
        self.lost.push(what.to_owned());
    }

    /// Waits for the process; it must end as `expected`, and its QEMUs with it.
    fn end(&mut self, expected: fn(Option<i32>) -> bool) {
        let end = Instant::now() + END;
        while !self.has_ended() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        if !self.has_ended() {
            self.lose("it does not end");
            kill(self.pid(), Signal::SIGKILL).unwrap();
        }
        let status = self.child.take().unwrap().wait().unwrap();
        if !expected(status.code()) {
            let said = self.said();
            self.lose(&format!("it ended with {status}: {said}"));
        }
        while !self.home.qemus().is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        let left = self.home.qemus();
        if !left.is_empty() {
            self.lose(&format!("its QEMUs {left:?} live"));
        }
        self.check();
    }

    fn make(&mut self, fault: Fault) {
        self.faults += 1;
        self.look();
        match fault {
            Fault::KillQemu => self.signal_qemu(Signal::SIGKILL),
            // Nobody lets it go on: hgm has to see that it is silent.
            Fault::StopQemu => self.signal_qemu(Signal::SIGSTOP),
            Fault::KillHgm => {
                self.kill_hgm();
                self.start();
            }
            Fault::InterruptHgm => {
                kill(self.pid(), Signal::SIGINT).unwrap();
                self.end(|code| code == Some(130));
                self.start();
            }
            Fault::FullDisk => self.fill_the_disk(),
            Fault::Garbage => {
                self.kill_hgm();
                plant(&self.home.the_run().join("corpus"), &mut self.rng);
                self.start();
            }
            Fault::HubAway => {
                // A file in its place: nobody makes a new one there.
                let (hub, away) = (self.path("hub"), self.path("away"));
                fs::rename(&hub, &away).unwrap();
                fs::write(&hub, "not a folder").unwrap();
                std::thread::sleep(Duration::from_secs(2));
                fs::remove_file(&hub).unwrap();
                fs::rename(&away, &hub).unwrap();
            }
            Fault::StopHgm => {
                kill(self.pid(), Signal::SIGSTOP).unwrap();
                std::thread::sleep(Duration::from_secs(2));
                kill(self.pid(), Signal::SIGCONT).unwrap();
            }
        }
    }

    fn signal_qemu(&mut self, signal: Signal) {
        let all: Vec<i32> = self.home.qemus().into_iter().collect();
        if let Some(&pid) = all.get(self.rng.random_range(0..all.len().max(1))) {
            // It may have ended meanwhile.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    fn kill_hgm(&mut self) {
        kill(self.pid(), Signal::SIGKILL).unwrap();
        self.end(|code| code.is_none());
    }

    /// Every block, for two seconds. Whether hgm goes on or ends with its reason, nothing is lost.
    fn fill_the_disk(&mut self) {
        let filler = self.path("runs/filler");
        let mut file = File::create(&filler).unwrap();
        let block = vec![1; 64 << 10];
        let end = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end {
            while file.write_all(&block).is_ok() {}
            while file.write_all(&block[..1]).is_ok() {}
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(file);
        fs::remove_file(&filler).unwrap();
        if self.has_ended() {
            self.end(|code| code == Some(75));
            self.start();
        }
    }

    /// All faults of the seed.
    fn suffer(&mut self) {
        let mut faults = ALL.to_vec();
        while faults.len() < FAULTS {
            faults.push(ALL[self.rng.random_range(0..ALL.len())]);
        }
        faults.retain(|fault| self.own_disk || *fault != Fault::FullDisk);
        faults.shuffle(&mut self.rng);
        println!("seed {}: {faults:?}", self.seed);
        self.start();
        let begun = Instant::now();
        for fault in faults {
            std::thread::sleep(Duration::from_millis(self.rng.random_range(1000..2000)));
            if self.has_ended() {
                self.lose("it ended by itself");
                self.end(|_| false);
                self.start();
            }
            println!("seed {}: {:5.1} s {fault:?}", self.seed, begun.elapsed().as_secs_f64());
            self.make(fault);
        }
        self.look();
        self.kill_hgm();
    }

    /// The last part of the campaign is left alone, and too short to prove anything.
    fn last(&mut self) -> Value {
        let args = ["fuzz", "--resume", "--programs", "8", "--jobs", "2", "--json"];
        let more = ["--set", "programs_min=1000000", "--set", "confirm_times=1"];
        let out = self.hgm(&[&args[..], &more].concat()).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        let told = String::from_utf8_lossy(&out.stdout);
        let code = out.status.code();
        assert!(matches!(code, Some(5 | 100)), "seed {}: {code:?} {told} {said}", self.seed);
        json(&out)
    }

    /// P3, once those that were killed have had time to go.
    fn left(&self) -> Vec<String> {
        let end = Instant::now() + END;
        while !self.leftovers().is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.leftovers()
    }

    /// Processes, sockets and temporaries of this home.
    fn leftovers(&self) -> Vec<String> {
        let marker = self.home.0.path().to_string_lossy().into_owned();
        let processes = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let state = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            line.contains(&marker).then(|| format!("{state} {line}"))
        });
        let mut left: Vec<String> = processes.collect();
        left.extend(names(&self.path("tmp")).into_iter().map(|name| format!("tmp/{name}")));
        let mut folders = vec![self.path("runs"), self.path("hub")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap().flatten() {
                let (kind, path) = (entry.file_type().unwrap(), entry.path());
                if kind.is_dir() {
                    folders.push(path);
                } else if kind.is_socket() {
                    left.push(path.display().to_string());
                }
            }
        }
        left
    }
}

/// Entries of a corpus by their ids, as hgm names them.
fn programs(corpus: &Path) -> BTreeSet<String> {
    let whole = |name: &String| {
        let id = name.strip_suffix(".hgm").unwrap_or_default();
        id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    names(corpus).into_iter().filter(whole).collect()
}

/// What a colleague, a broken disk or an enemy may leave in a corpus, and one good program.
fn plant(corpus: &Path, rng: &mut ChaCha8Rng) {
    let mut noise = vec![0; 5000];
    rng.fill(&mut noise[..]);
    fs::write(corpus.join("noise.hgm"), noise).unwrap();
    fs::write(corpus.join("empty.hgm"), "").unwrap();
    fs::write(corpus.join("half.hgm"), &DEVIATES[..DEVIATES.len() / 2]).unwrap();
    fs::write(corpus.join("large.hgm"), vec![b'#'; 2 << 20]).unwrap();
    fs::write(corpus.join("0123456789abcdef.txt"), "hgm 1\n").unwrap();
    let _ = fs::create_dir(corpus.join("folder.hgm"));
    let _ = std::os::unix::fs::symlink("/dev/zero", corpus.join("link.hgm"));
    let _ = nix::unistd::mkfifo(&corpus.join("pipe.hgm"), nix::sys::stat::Mode::S_IRWXU);
    fs::write(corpus.join("deviates.hgm"), DEVIATES).unwrap();
}

/// P4: a command that replays it, and what it is believed for.
fn unfounded(findings: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    for name in names(findings) {
        let text = fs::read_to_string(findings.join(&name).join("finding.json")).unwrap();
        let finding: Value = serde_json::from_str(&text).unwrap();
        let (k, n) = (finding["reproduced"][0].as_u64(), finding["reproduced"][1].as_u64());
        let honest = match finding["state"].as_str() {
            Some("confirmed") => k > Some(0) && k <= n,
            Some("unconfirmed") => k == Some(0),
            Some("known") => true,
            _ => false,
        };
        // Nothing in the guest was broken: what the host did to it must not pass for a bug.
        let host = finding["source"] != "oracle" && finding["state"] == "confirmed";
        if !honest || host || finding["replay"] != format!("hgm repro {name}") {
            wrong.push(text);
        }
    }
    wrong
}

fn campaign(seed: u64, own_disk: bool) {
    let start = Instant::now();
    let mut victim = Victim::new(seed, own_disk);
    victim.suffer();
    let summary = victim.last();
    victim.check();
    let run = victim.home.the_run();
    let canaries = &summary["canaries"];
    let mut wrong = unfounded(&run.join("findings"));
    wrong.extend(victim.left());
    if canaries["planted"] != canaries["found"] || canaries["planted"] == 0 {
        wrong.push(format!("canaries {canaries}"));
    }
    if victim.peak > RSS_MAX || victim.peak == 0 {
        wrong.push(format!("{} KiB of memory", victim.peak));
    }
    let report = store::Corpus::verify(&run.join("corpus")).unwrap();
    if !report.is_clean() {
        wrong.push(format!("{report:?}"));
    }
    wrong.iter().for_each(|what| victim.lose(what));
    let Victim { seen, peak, faults, lost, .. } = &victim;
    println!(
        "seed {seed}: {faults} faults in {:.0} s, {} entries, {} rows, {} findings, {} MiB at most",
        start.elapsed().as_secs_f64(),
        seen.corpus.len(),
        seen.rows.len(),
        names(&run.join("findings")).len(),
        peak >> 10
    );
    trials::fault("F24", "faults of all sorts over a campaign", *faults, lost.len() as u64, start);
    assert!(lost.is_empty(), "HGM_SEED={seed}: {lost:#?}");
    assert!(
        seen.corpus.len() >= 10 && seen.rows.len() >= 10,
        "seed {seed}: it did next to nothing"
    );
    // P4, once more: the deviation that was planted.
    let ids = names(&run.join("findings"));
    let known = ids.iter().find(|id| id.starts_with("x-02-madvise-rsvd-low"));
    let known = known.unwrap_or_else(|| panic!("seed {seed}: {ids:?}"));
    let again = victim.hgm(&["repro", known, "--times", "1", "--json"]).output().unwrap();
    assert_eq!(again.status.code(), Some(100), "{}", String::from_utf8_lossy(&again.stderr));
}

fn seeds() -> Vec<u64> {
    let one = std::env::var("HGM_SEED").ok().and_then(|seed| seed.parse().ok());
    let all = (0..trials::rounds(SEEDS)).map(u64::from);
    one.map_or_else(|| all.collect(), |seed| vec![seed])
}

/// What lets this process mount a disk of its own.
fn unshare() -> Option<&'static [&'static str]> {
    let ways: [&[&str]; 2] = [&["--mount"], &["--user", "--map-root-user", "--mount"]];
    let works = |way: &&&[&str]| {
        let mut tried = Command::new("unshare");
        tried.args(**way).args(["mount", "-t", "tmpfs", "none", "/mnt"]);
        tried.output().is_ok_and(|done| done.status.success())
    };
    ways.iter().find(works).copied()
}

#[test]
fn faults_of_all_sorts_break_no_promise() {
    let inside = std::env::var_os(INSIDE).is_some();
    let Some(way) = unshare().filter(|_| !inside) else {
        if !inside {
            println!("nobody may mount here: the disk is never full");
        }
        return seeds().into_iter().for_each(|seed| campaign(seed, inside));
    };
    // Kernels and images come first: what is made inside is made for all.
    the_kernel("6.1");
    let status = Command::new("unshare")
        .args(way)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "faults_of_all_sorts_break_no_promise", "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}

/// P6, as far as VMs allow: what chance makes depends on the seed alone. Coverage has the ticks of a
/// guest in it, so what it guides differs from run to run.
#[test]
fn the_same_seed_makes_the_same_programs() {
    let first = |seed: &str| {
        let home = Home::new();
        let args = ["fuzz", "--programs", "12", "--jobs", "1", "--seed", seed, "--json"];
        let more = ["--no-canaries", "--guide", "nothing", "--set", "confirm_times=1"];
        let out = home.run(&[&args[..], &more].concat());
        assert!(matches!(out.status.code(), Some(0 | 5 | 100)), "{out:?}");
        let corpus = home.the_run().join("corpus");
        let age = |name: &String| fs::metadata(corpus.join(name)).unwrap().modified().unwrap();
        let mut all: Vec<String> = programs(&corpus).into_iter().collect();
        all.sort_by_key(age);
        all.truncate(8);
        all
    };
    let start = Instant::now();
    let all = ["21", "21", "22"].map(first);
    println!("{all:?}");
    // Those of one tick of the host's clock come in any order.
    let same = |one: usize, other: usize| {
        let found = all[one].iter().take(6).filter(|name| all[other].contains(name));
        found.count() as u64
    };
    let lost = 12 - same(0, 1) - same(1, 0);
    trials::fault("F24", "first programs of a campaign, made again", 12, lost, start);
    assert_eq!(lost, 0, "{all:?}");
    assert_eq!(same(0, 2), 0, "the seed says nothing: {all:?}");
}
