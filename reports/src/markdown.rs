//! A Markdown summary for merge requests and step summaries: verdict, evidence, what is new with
//! its replay line and program. At most 256 KiB.

use crate::escape::{fenced, head, line, markdown as md};
use crate::fleet::Machine;
use crate::run::{FindingPage, Run, state_word};
use crate::words::{count, duration, grouped, rate};
use case::FindingState;
use std::fmt::Write;

/// Bytes of the whole text.
const BYTES_MAX: usize = 256 << 10;
/// Rows of the table of machines.
const MACHINES_MAX: usize = 50;
/// Rows of the table of known deviations.
const KNOWN_MAX: usize = 50;
/// Findings with their program.
const FULL_MAX: usize = 20;
/// Bytes of a program shown.
const PROGRAM_MAX: usize = 4 << 10;

/// The summary.
pub fn markdown(run: &Run) -> String {
    let f = &run.figures;
    let mut out = format!("## {} {}\n\n", run.verdict.tone.sign(), md(&run.verdict.headline));
    let _ = writeln!(out, "{}.\n", md(&run.verdict.evidence));
    out.push_str("| | |\n|---|---|\n");
    let mut row = |name: &str, value: String| {
        let _ = writeln!(out, "| {name} | {value} |");
    };
    row("run", md(&run.id));
    row("kernel", md(&run.kernel));
    row("seed", run.seed.map_or("-".into(), |seed| seed.to_string()));
    row("hgm", md(&run.version));
    row("time", duration(f.seconds));
    let speed =
        format!("{} ({}/s), {} ops", grouped(f.programs), rate(f.programs_per_s), grouped(f.ops));
    row("programs", speed);
    row("mapping states", grouped(f.states));
    if let (Some(reached), Some(known)) = (f.functions_reached, f.functions_known) {
        row("kernel functions", format!("{} of {} reached", grouped(reached), grouped(known)));
    }
    row("canaries", format!("{} of {} found", f.canaries_found, f.canaries_planted));
    row("inconclusive", grouped(f.inconclusive));
    let news: Vec<&FindingPage> =
        run.findings.iter().filter(|f| f.state != FindingState::Known).collect();
    let _ = writeln!(out, "\n### New findings\n");
    if news.is_empty() {
        out.push_str("None.\n");
    }
    for (at, finding) in news.iter().enumerate() {
        one(&mut out, finding, at < FULL_MAX);
    }
    known(&mut out, run);
    machines(&mut out, run);
    if run.withheld > 0 {
        let what = count(u64::from(run.withheld), "finding");
        let _ = writeln!(out, "\n{what} withheld (embargo).");
    }
    head(&out, BYTES_MAX - 100)
}

fn one(out: &mut String, f: &FindingPage, full: bool) {
    let (shown, tried) = f.reproduced;
    let _ = writeln!(
        out,
        "* **{}** {}  \n  {}, shown {shown} of {tried}, seen {}; `{}`",
        md(&f.title),
        md(&f.signature),
        state_word(f.state),
        grouped(u64::from(f.count)),
        line(&f.replay).replace('`', "'"),
    );
    if !full {
        return;
    }
    if !f.rule.is_empty() {
        let _ = writeln!(out, "\n  expected {}  \n  observed {}", md(&f.expected), md(&f.observed));
    }
    let program = if f.small.is_empty() { &f.program } else { &f.small };
    if !program.is_empty() {
        let _ = writeln!(out, "\n{}", fenced(&head(program, PROGRAM_MAX)));
    }
}

fn machines(out: &mut String, run: &Run) {
    if run.fleet.is_empty() {
        return;
    }
    out.push_str("\n### Machines at the hub\n\n| machine | does | kernel | VMs | programs | /s | corpus | findings | leases | last word |\n");
    out.push_str("|---|---|---|---:|---:|---:|---:|---:|---:|---|\n");
    for row in run.fleet.iter().take(MACHINES_MAX).map(Machine::row) {
        let (name, own) = (md(row.name), if row.own { " (this one)" } else { "" });
        let _ = write!(out, "| {name}{own} | {} | {} | {} ", row.does, md(row.kernel), row.vms);
        let _ = write!(out, "| {} | {} | {} ", row.programs, row.speed, row.corpus);
        let _ = writeln!(out, "| {} | {} | {} |", row.findings, row.leases, md(&row.last));
    }
    if run.fleet.len() > MACHINES_MAX {
        let _ = writeln!(out, "\nand {} more.", run.fleet.len() - MACHINES_MAX);
    }
}

fn known(out: &mut String, run: &Run) {
    let known: Vec<&FindingPage> = run.in_state(FindingState::Known).collect();
    if known.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n### Known deviations\n\n| id | seen | signature |\n|---|---:|---|");
    for f in known.iter().take(KNOWN_MAX) {
        let id = f.known.as_deref().unwrap_or("-");
        let seen = grouped(u64::from(f.count));
        let _ = writeln!(out, "| {} | {seen} | {} |", md(id), md(&f.signature));
    }
    if known.len() > KNOWN_MAX {
        let _ = writeln!(out, "\nand {} more.", known.len() - KNOWN_MAX);
    }
}
