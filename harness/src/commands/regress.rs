//! `hgm regress [DIR]`: every saved program against a kernel, the results against what is
//! expected. The format of a folder is in corpus/regressions/README.md.

mod leased;
mod local;
mod sheet;

use crate::cli::RegressArgs;
use crate::context::Context;
use crate::exit::{Exit, ExpectedError};
use crate::signals::Signals;
use case::{Family, Program};
use serde::Deserialize;
use sheet::{Entry, Row, Sheet};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub(super) const DEFAULT_DIR: &str = "corpus/regressions";
const PROGRAM: &str = "program.hgm";
const EXPECT: &str = "expect.toml";
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

pub fn run(args: &RegressArgs, ctx: &Context) -> anyhow::Result<Exit> {
    let signals = Signals::watch()?;
    let dir = args.dir.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_DIR));
    let entries = load(&dir)?;
    if entries.is_empty() {
        ctx.term.warn(&format!("no programs in {}", dir.display()), "name another folder");
        return Ok(Exit::NothingRun);
    }
    let kernel = ctx.kernel()?;
    let mut sheet = Sheet::new(&entries, args.times as usize);
    let ended = match args.hub {
        Some(_) => leased::fill(&mut sheet, &kernel, &signals, ctx),
        None => local::fill(&mut sheet, &kernel, &signals, ctx),
    };
    if let Some(code) = signals.code() {
        return Ok(if code == 143 { Exit::Terminated } else { Exit::Interrupted });
    }
    ended?;
    let rows = sheet.rows();
    if let Some(file) = &args.junit {
        let cases: Vec<reports::Case> = rows.iter().map(Row::case).collect();
        let text = reports::regress(&kernel.id, &cases);
        super::report::export::write(file, text.as_bytes())?;
    }
    Ok(sheet::report(&rows, &kernel.id, ctx))
}

/// Says now and then how far it is.
fn heartbeat(said: &mut Instant, sheet: &Sheet, ctx: &Context) {
    if said.elapsed() >= HEARTBEAT {
        *said = Instant::now();
        let (done, all) = sheet.progress();
        ctx.term.note(&format!("{done} of {all} programs"));
    }
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
