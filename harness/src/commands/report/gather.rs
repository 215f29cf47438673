//! Reads what a run folder holds, with caps. What an older or damaged run lacks is said, and the
//! rest is still there.

use crate::context::Context;
use crate::coverage;
use crate::exit::ExpectedError;
use reports::{CoveredFile, Kept, KeptFinding};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use store::{FindingRow, Findings, Journal, RunDir, RunInfo, Runs, StoreError};

/// Notes of the journal a report knows.
const NOTES: [&str; 9] =
    ["summary", "steps", "exit", "profile", "profile-verify", "kernel", "host", "config", "fleet"];
/// Bytes of each text beside a finding.
const TEXT_MAX: u64 = 256 << 10;
/// Bytes of a console around a report.
const CONSOLE_MAX: u64 = 1 << 20;

/// Signatures under embargo in any run of the home.
pub fn embargoed(ctx: &Context) -> Result<BTreeSet<String>, ExpectedError> {
    let mut out = BTreeSet::new();
    for run in Runs::of(&ctx.home).list()? {
        let findings = Findings::view(&run.path.join(RunDir::FINDINGS))?;
        out.extend(findings.iter().filter(|(_, f)| f.embargo).map(|(_, f)| f.signature.clone()));
    }
    Ok(out)
}

/// Everything of a run. `full`: the texts of its findings too.
pub fn gather(run: &RunInfo, embargoed: &BTreeSet<String>, full: bool) -> Kept {
    let mut kept = Kept {
        id: run.id.clone(),
        live: run.live,
        embargoed: embargoed.clone(),
        ..Kept::default()
    };
    let mut index = BTreeMap::new();
    match Journal::view(&run.path) {
        Ok(journal) => index = read_journal(&journal, &mut kept),
        Err(StoreError::NotFound { .. }) => {
            kept.trouble.push("this run has no journal: it ended before its first program".into());
        }
        Err(error) => kept.trouble.push(error.to_string()),
    }
    match Findings::view(&run.path.join(RunDir::FINDINGS)) {
        Ok(findings) => {
            for broken in findings.broken() {
                let name = broken.file_name().unwrap_or_default().to_string_lossy();
                kept.trouble.push(format!("finding {name} cannot be read"));
            }
            let all = findings.iter();
            kept.findings = all
                .map(|(slug, finding)| {
                    let folder = findings.folder(slug);
                    one(slug, finding, index.get(slug), full.then_some(folder.as_path()))
                })
                .collect();
        }
        Err(error) => kept.trouble.push(error.to_string()),
    }
    if let Ok(report) = coverage::load(&run.path) {
        kept.coverage = report
            .files
            .iter()
            .map(|row| CoveredFile {
                file: row.file.clone(),
                blocks: row.blocks,
                functions_reached: row.reached.len(),
                functions_known: row.reached.len() + row.not_reached.len(),
            })
            .collect();
    }
    kept
}

/// Fills in what the journal has; gives the index of findings.
fn read_journal(journal: &Journal, kept: &mut Kept) -> BTreeMap<String, FindingRow> {
    let mut trouble = Vec::new();
    let mut note = |what: &str, error: StoreError| {
        trouble.push(format!("{what} of the journal cannot be read: {error}"));
    };
    kept.meta = journal.meta().unwrap_or_else(|error| {
        note("the head", error);
        None
    });
    for key in NOTES {
        match journal.note(key) {
            Ok(Some(text)) => {
                if let Ok(value) = serde_json::from_str::<Value>(&text) {
                    kept.notes.insert(key.to_owned(), value);
                }
            }
            Ok(None) => {}
            Err(error) => note(key, error),
        }
    }
    kept.counters = journal.counters().unwrap_or_else(|error| {
        note("the totals", error);
        Vec::new()
    });
    kept.events = journal.events(0).unwrap_or_else(|error| {
        note("the events", error);
        Vec::new()
    });
    let index = journal.findings().unwrap_or_else(|error| {
        note("the findings", error);
        Vec::new()
    });
    kept.trouble.extend(trouble);
    index.into_iter().map(|row| (row.slug.clone(), row)).collect()
}

fn one(
    slug: &str,
    finding: &case::Finding,
    row: Option<&FindingRow>,
    folder: Option<&Path>,
) -> KeptFinding {
    let text = |name: &str, limit: u64| -> Vec<u8> {
        let mut bytes = Vec::new();
        let file = folder.and_then(|folder| File::open(folder.join(name)).ok());
        if let Some(file) = file {
            // What could be read of it is shown.
            let _ = file.take(limit).read_to_end(&mut bytes);
        }
        bytes
    };
    let words = |name: &str| String::from_utf8_lossy(&text(name, TEXT_MAX)).into_owned();
    KeptFinding {
        slug: slug.to_owned(),
        finding: finding.clone(),
        program: words("program.hgm"),
        small: words("small.hgm"),
        compared: words("expected-vs-observed.txt"),
        report: words("report.txt"),
        console: text("console.txt", CONSOLE_MAX),
        first_at: row.map(|row| row.first_at.clone()).unwrap_or_default(),
        last_at: row.map(|row| row.last_at.clone()).unwrap_or_default(),
        kernel: serde_json::from_slice(&text("kernel.json", TEXT_MAX)).unwrap_or_default(),
    }
}
