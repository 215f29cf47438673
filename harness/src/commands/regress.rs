//! `hgm regress [DIR]`: every saved program against a kernel, the results against what is
//! expected. The format of a folder is in corpus/regressions/README.md.

use crate::cli::RegressArgs;
use crate::context::Context;
use crate::exit::{Exit, ExpectedError};
use crate::guest;
use crate::pool::{Event, Job, Order, Pool};
use crate::signals::Signals;
use crate::term::{Tone, clean_str, columns};
use crate::triage::{Cause, Judged};
use case::link::Look;
use case::{Family, Program};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub(super) const DEFAULT_DIR: &str = "corpus/regressions";
const PROGRAM: &str = "program.hgm";
const EXPECT: &str = "expect.toml";
/// Boots that fail in a row until there is no use in trying.
const BOOTS_MAX: u32 = 3;
/// Times a program is tried again when its VM died of something else.
const RETRIES: u32 = 2;
/// Bytes of an `expect.toml` that are read at most.
const EXPECT_BYTES_MAX: u64 = 64 << 10;
/// Time between signs of life on stderr.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// `expect.toml`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// For people: what this program once showed.
    #[serde(default)]
    pub about: String,
    /// Family name ("U61", or "*" for all others) to `pass`, `known:ID`, or a signature.
    pub expect: BTreeMap<String, String>,
}

/// One program and what it must give on this kernel.
struct Entry {
    name: String,
    program: Program,
    expect: BTreeMap<String, String>,
    /// A file without an expect.toml.
    plain: bool,
}

/// One program's result.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
struct Row {
    name: String,
    expected: String,
    got: String,
    ok: bool,
}

impl Row {
    fn case(&self) -> reports::Case {
        let void = self.got.starts_with("inconclusive") || self.expected == "-";
        let (name, expected) = (self.name.clone(), self.expected.clone());
        reports::Case { name, expected, got: self.got.clone(), ok: self.ok, void }
    }
}

pub fn run(args: &RegressArgs, ctx: &Context) -> anyhow::Result<Exit> {
    let signals = Signals::watch()?;
    let dir = args.dir.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_DIR));
    let entries = load(&dir)?;
    if entries.is_empty() {
        ctx.term.warn(&format!("no programs in {}", dir.display()), "name another folder");
        return Ok(Exit::NothingRun);
    }
    let kernel = ctx.kernel()?;
    let scratch = tempfile::Builder::new().prefix("hgm-regress-").tempdir()?;
    let mut spec = guest::pool_spec(ctx, &kernel, scratch.path())?;
    // Every program has a child of its own here, and nothing is built on what it showed.
    spec.replace_on_violation = false;
    // Expectations name the op after which a deviation shows, whatever the configuration says.
    spec.look = Look::Each;
    let slots = (ctx.config.jobs as usize).min(entries.len());
    let mut bench = Bench {
        pool: Pool::start(&spec, slots)?,
        queue: (0..entries.len()).collect(),
        load: vec![0; slots],
        ready: vec![false; slots],
        retries: vec![0; entries.len()],
        rows: vec![None; entries.len()],
        family: None,
        entries,
    };
    let ended = bench.work(&signals, ctx);
    let Bench { pool, rows, .. } = bench;
    pool.close(Duration::from_secs(5));
    if let Some(code) = signals.code() {
        return Ok(if code == 143 { Exit::Terminated } else { Exit::Interrupted });
    }
    ended?;
    let rows: Vec<Row> = rows.into_iter().flatten().collect();
    if let Some(file) = &args.junit {
        let cases: Vec<reports::Case> = rows.iter().map(Row::case).collect();
        let text = reports::regress(&kernel.id, &cases);
        super::report::export::write(file, text.as_bytes())?;
    }
    Ok(report(&rows, &kernel.id, ctx))
}

/// Folders with a program and its expectations, or plain program files that must pass.
fn load(dir: &Path) -> Result<Vec<Entry>, ExpectedError> {
    let unreadable = |error: std::io::Error| {
        ExpectedError::config(format!("cannot read {}", dir.display()), "name a folder")
            .cause(error)
    };
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        names.insert(entry.map_err(unreadable)?.path());
    }
    let mut entries = Vec::new();
    for path in names {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && path.join(PROGRAM).is_file() {
            let program = super::run::read_program(&path.join(PROGRAM))?;
            let expect = read_expect(&path.join(EXPECT))?.expect;
            entries.push(Entry { name, program, expect, plain: false });
        } else if path.extension().is_some_and(|ending| ending == "hgm") {
            let pass = BTreeMap::from([("*".to_owned(), "pass".to_owned())]);
            let program = super::run::read_program(&path)?;
            entries.push(Entry { name, program, expect: pass, plain: true });
        }
    }
    Ok(entries)
}

/// The programs alone.
pub(super) fn programs(dir: &Path) -> Result<Vec<Program>, ExpectedError> {
    Ok(load(dir)?.into_iter().map(|entry| entry.program).collect())
}

fn read_expect(path: &Path) -> Result<Expect, ExpectedError> {
    let bad = |why: String| {
        ExpectedError::config(format!("bad {}", path.display()), "see corpus/regressions/README.md")
            .cause(why)
    };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| bad(error.to_string()))?;
    file.take(EXPECT_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|error| bad(error.to_string()))?;
    if text.len() as u64 > EXPECT_BYTES_MAX {
        return Err(bad(format!("it is longer than {EXPECT_BYTES_MAX} bytes")));
    }
    parse_expect(&text).map_err(bad)
}

fn parse_expect(text: &str) -> Result<Expect, String> {
    let expect: Expect = toml::from_str(text).map_err(|error| error.to_string())?;
    let families = [Family::U61.name(), Family::U612.name(), "*"];
    match expect.expect.keys().find(|key| !families.contains(&key.as_str())) {
        Some(key) => Err(format!("no family `{key}`; there are {}", families.join(", "))),
        None => Ok(expect),
    }
}

struct Bench {
    pool: Pool,
    entries: Vec<Entry>,
    queue: VecDeque<usize>,
    load: Vec<usize>,
    ready: Vec<bool>,
    retries: Vec<u32>,
    rows: Vec<Option<Row>>,
    family: Option<Family>,
}

impl Bench {
    fn work(&mut self, signals: &Signals, ctx: &Context) -> Result<(), ExpectedError> {
        let mut said = Instant::now();
        while self.rows.iter().any(Option::is_none) && signals.count() == 0 {
            if said.elapsed() >= HEARTBEAT {
                said = Instant::now();
                let done = self.rows.iter().flatten().count();
                ctx.term.note(&format!("{done} of {} programs", self.rows.len()));
            }
            for slot in 0..self.load.len() {
                // One at a time, so that a dying guest or a kernel report has one author.
                if self.ready[slot] && self.load[slot] == 0 {
                    self.order(slot);
                }
            }
            let Ok(event) = self.pool.events.recv_timeout(Duration::from_millis(100)) else {
                continue;
            };
            self.take(event, ctx)?;
        }
        Ok(())
    }

    fn order(&mut self, slot: usize) {
        while let Some(at) = self.queue.pop_front() {
            if self.expected(at).is_none() {
                // Nothing is said of this family: the program was not written for it.
                self.set(at, "-".into(), "not for this family".into(), true);
                continue;
            }
            let program = self.entries[at].program.clone();
            let job = Job { ticket: at as u64, program, fresh: true, check: false, canary: None };
            self.load[slot] += 1;
            self.pool.order(slot, Order::Run(job));
            return;
        }
    }

    fn expected(&self, at: usize) -> Option<String> {
        let expect = &self.entries[at].expect;
        let own = self.family.and_then(|family| expect.get(family.name()));
        own.or(expect.get("*")).cloned()
    }

    fn take(&mut self, event: Event, ctx: &Context) -> Result<(), ExpectedError> {
        match event {
            Event::Note(line) => ctx.term.note(&clean_str(&line)),
            Event::Booted { slot, profile, .. } => {
                self.family.get_or_insert(profile.family());
                self.ready[slot] = true;
            }
            Event::BootFailed { why, failures, .. } => {
                if failures >= BOOTS_MAX && self.family.is_none() {
                    return Err(
                        ExpectedError::infrastructure("no VM boots", "try hgm doctor").cause(why)
                    );
                }
                ctx.term.warn(&clean_str(&format!("boot failed: {why}")), "trying again");
            }
            Event::Done(done) => {
                self.load[done.slot] = 0;
                self.judged(done.job.ticket as usize, &done.judged);
            }
            Event::Console { job, sighting, .. } => {
                self.compare(job.ticket as usize, &[sighting.signature]);
            }
            Event::Died { slot, job, cause } => {
                self.load[slot] = 0;
                match (job, cause) {
                    (Some(job), Cause::Guest(sighting)) => {
                        self.compare(job.ticket as usize, &[sighting.signature]);
                    }
                    (Some(job), Cause::Host(why)) => self.again(job.ticket as usize, &why),
                    (None, _) => {}
                }
            }
            Event::Lost { slot, jobs } => {
                self.load[slot] = 0;
                for job in jobs {
                    self.again(job.ticket as usize, "its VM went away");
                }
            }
            Event::Replayed(_) | Event::Stopped { .. } => {}
        }
        Ok(())
    }

    fn again(&mut self, at: usize, why: &str) {
        self.retries[at] += 1;
        if self.retries[at] <= RETRIES {
            self.queue.push_back(at);
        } else {
            self.set(
                at,
                self.expected(at).unwrap_or_default(),
                format!("inconclusive: {why}"),
                false,
            );
        }
    }

    fn judged(&mut self, at: usize, judged: &Judged) {
        let got: Vec<String> = judged
            .sightings
            .iter()
            .map(|s| match &s.known {
                Some(id) => format!("known:{id}"),
                None => s.signature.clone(),
            })
            .collect();
        match (&judged.inconclusive, got.is_empty()) {
            (Some(why), true) => {
                let expected = self.expected(at).unwrap_or_default();
                self.set(at, expected, format!("inconclusive: {why}"), false);
            }
            _ => self.compare(at, &got),
        }
    }

    /// Nothing seen is a pass. More than one thing seen is never as expected. A plain program file
    /// has no word on deviations, so known ones are fine there.
    fn compare(&mut self, at: usize, got: &[String]) {
        let expected = self.expected(at).unwrap_or_default();
        let got = if got.is_empty() { "pass".to_owned() } else { got.join(" + ") };
        let known = self.entries[at].plain && got.starts_with("known:");
        let ok = got == expected || known;
        self.set(at, expected, got, ok);
    }

    /// A kernel report that comes after a pass overrides it; a failure stays.
    fn set(&mut self, at: usize, expected: String, got: String, ok: bool) {
        let name = self.entries[at].name.clone();
        let row = &mut self.rows[at];
        if row.as_ref().is_none_or(|row| row.ok) {
            tracing::debug!(name, expected, got, ok, "row");
            *row = Some(Row { name, expected, got, ok });
        }
    }
}

fn report(rows: &[Row], kernel: &str, ctx: &Context) -> Exit {
    let failed = rows.iter().filter(|row| !row.ok).count();
    let void = rows.iter().filter(|row| row.got.starts_with("inconclusive")).count();
    let exit = match (failed, void) {
        (0, _) => Exit::Clean,
        (f, v) if f == v => Exit::Inconclusive,
        _ => Exit::Finding,
    };
    if ctx.json {
        ctx.term.json(&serde_json::json!({
            "kernel": kernel,
            "programs": rows.len(),
            "failed": failed,
            "rows": rows,
        }));
        return exit;
    }
    let table: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let mark = if row.ok { "ok" } else { "FAIL" };
            let got = if row.ok {
                row.got.clone()
            } else {
                format!("{} (expected {})", row.got, row.expected)
            };
            vec![mark.to_owned(), clean_str(&row.name), clean_str(&got)]
        })
        .collect();
    ctx.term.out(&columns(&table));
    let tone = if failed == 0 { Tone::Good } else { Tone::Bad };
    let total = format!("{} of {} as expected on {kernel}", rows.len() - failed, rows.len());
    ctx.term.line(&ctx.term.paint(tone, &total));
    exit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expectations_name_families_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(EXPECT);
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read_expect(&path)
        };
        let good =
            read("about = \"x\"\n[expect]\nU61 = \"known:N03\"\n\"*\" = \"pass\"\n").unwrap();
        assert_eq!(good.expect["U61"], "known:N03");
        assert!(read("[expect]\nU99 = \"pass\"\n").is_err());
        assert!(read("expects = 1\n[expect]\n").is_err());
        assert!(read("about = 1").is_err());
        let long = format!("[expect]\nU61 = \"pass\"\n#{}", "x".repeat(EXPECT_BYTES_MAX as usize));
        assert!(read(&long).is_err());
    }

    #[test]
    fn broken_expectations_are_refused_and_never_a_panic() {
        let start = Instant::now();
        let good = b"about = \"x\"\n[expect]\nU61 = \"known:N03\"\n\"*\" = \"pass\"\n".to_vec();
        let words = ["[expect]\n", "U612 = ", "\"*\" = ", "\"\"\"", "[[", "{", "= ["];
        let figures = trials::Trial::new("expect", vec![good]).words(&words).run(|bytes| {
            if let Ok(expect) = parse_expect(&String::from_utf8_lossy(bytes)) {
                assert!(expect.expect.keys().all(|key| ["U61", "U612", "*"].contains(&&**key)));
            }
        });
        trials::fault("F6", "expect.toml, mutated", figures.executions, 0, start);
    }
}
