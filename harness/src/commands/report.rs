//! `hgm report`: what a run has kept, as a table or JSON.

use crate::cli::ReportArgs;
use crate::context::Context;
use crate::coverage::{self, FileRow, Report};
use crate::exit::{Exit, ExpectedError};
use crate::term::clean_str;
use serde_json::json;
use std::fmt::Write;
use store::Runs;

/// Files in the list of the least reached.
const LEAST: usize = 10;

pub fn run(args: &ReportArgs, ctx: &Context) -> anyhow::Result<Exit> {
    let run = Runs::of(&ctx.home).find(&args.run)?;
    let report = coverage::load(&run.path).map_err(|error| {
        let help = "only campaigns with coverage have any: hgm fuzz --coverage plugin";
        ExpectedError::config(format!("run {} has kept no coverage", run.id), help).cause(error)
    })?;
    if ctx.json {
        let least: Vec<&str> = report.least(LEAST).iter().map(|row| row.file.as_str()).collect();
        ctx.term.json(&json!({
            "run": run.id,
            "kernel": report.kernel,
            "source": report.source,
            "focus": report.focus,
            "files": report.files,
            "least_reached": least,
        }));
        return Ok(Exit::Clean);
    }
    ctx.term.out(&clean_str(&text(&report, &run.id, args.functions)));
    Ok(Exit::Clean)
}

fn text(report: &Report, run: &str, functions: bool) -> String {
    let mut out = format!("run {run}, kernel {}\n\n", report.kernel);
    let _ = writeln!(out, "{:<32} {:>8} {:>9} {:>5}", "file", "reached", "functions", "blocks");
    for row in &report.files {
        line(&mut out, row);
        if functions {
            for (mark, names) in [('+', &row.reached), ('-', &row.not_reached)] {
                names.iter().for_each(|name| {
                    let _ = writeln!(out, "  {mark} {name}");
                });
            }
        }
    }
    let reached: usize = report.files.iter().map(|row| row.reached.len()).sum();
    let missed: usize = report.files.iter().map(|row| row.not_reached.len()).sum();
    let _ = writeln!(out, "\n{reached} of {} functions reached", reached + missed);
    let _ = writeln!(out, "\nleast reached of mm/:");
    report.least(LEAST).into_iter().for_each(|row| line(&mut out, row));
    out
}

fn line(out: &mut String, row: &FileRow) {
    let all = row.reached.len() + row.not_reached.len();
    let part = 100 * row.reached.len() / all.max(1);
    let _ = writeln!(
        out,
        "{:<32} {part:>7}% {:>5}/{all:<3} {:>5}",
        row.file,
        row.reached.len(),
        row.blocks
    );
}
