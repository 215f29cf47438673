//! `hgm report`: a run in any form, two runs compared, what a run has covered, or what a console
//! log says.

pub mod export;
pub mod gather;

use crate::cli::ReportArgs;
use crate::context::Context;
use crate::coverage::{self, FileRow, Report};
use crate::exit::{Exit, ExpectedError};
use crate::symbols::{Symbols, release, tell};
use crate::term::{Tone, clean_str};
use reports::{Diff, Run};
use serde_json::json;
use std::fmt::Write;
use std::io::Read;
use std::path::Path;
use store::{Findings, RunInfo, Runs};
use vmimages::Kernel;

/// Files in the list of the least reached.
const LEAST: usize = 10;
/// Bytes of a console log that are read.
const CONSOLE_BYTES_MAX: u64 = 64 << 20;

pub fn run(args: &ReportArgs, ctx: &Context) -> anyhow::Result<Exit> {
    match (&args.console, args.diff.as_slice()) {
        (Some(word), _) => console(word, args.kernel.as_deref(), ctx),
        (None, [a, b]) => compared(a, b, ctx),
        (None, _) if args.coverage => covered(args, ctx),
        (None, _) => whole(args, ctx),
    }
}

/// One run, to the terminal or where the exports go.
fn whole(args: &ReportArgs, ctx: &Context) -> anyhow::Result<Exit> {
    export::check(&args.export, ctx.json)?;
    let run = find(args.run.as_deref().unwrap_or("latest"), ctx)?;
    let run = Run::of(gather::gather(&run, &gather::embargoed(ctx)?, true));
    if ctx.json {
        ctx.term.line(&reports::json(&run)?);
    } else if args.export.is_empty() {
        let text = reports::terminal(&run);
        let tone = match run.verdict.tone {
            reports::Tone::Good => Tone::Good,
            reports::Tone::Bad => Tone::Bad,
            reports::Tone::Warn | reports::Tone::Calm => Tone::Warn,
        };
        let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
        ctx.term.line(&ctx.term.paint(tone, first));
        ctx.term.out(rest);
    }
    export::run(&args.export, &run, ctx)?;
    Ok(Exit::Clean)
}

fn find(word: &str, ctx: &Context) -> Result<RunInfo, ExpectedError> {
    let runs = Runs::of(&ctx.home);
    if word == "latest" && runs.latest()?.is_none() {
        let help = "hgm fuzz --kernel NAME --for 10m makes one";
        return Err(ExpectedError::config("there is no run yet", help));
    }
    Ok(runs.find(word)?)
}

/// Two runs.
fn compared(a: &str, b: &str, ctx: &Context) -> anyhow::Result<Exit> {
    let (a, b) = (find(a, ctx)?, find(b, ctx)?);
    let embargoed = gather::embargoed(ctx)?;
    let [a, b] = [a, b].map(|run| Run::of(gather::gather(&run, &embargoed, false)));
    let diff = Diff::of(&a, &b);
    match ctx.json {
        true => ctx.term.line(&reports::escape::json(&serde_json::to_string(&diff)?)),
        false => ctx.term.out(&diff.text()),
    }
    Ok(Exit::Clean)
}

/// Kernel reports of a log or finding.
fn console(word: &str, kernel: Option<&str>, ctx: &Context) -> anyhow::Result<Exit> {
    let (bytes, seen_on) = read_console(word, ctx)?;
    let kernel = match kernel {
        Some(name) => Some(ctx.kernel_named(name)?),
        None => whose(&bytes, seen_on.as_deref(), ctx),
    };
    let symbols = kernel.as_ref().map_or_else(Symbols::none, Symbols::of);
    let told = tell(&bytes, &symbols);
    let note = (!told.is_empty()).then(|| symbols.note()).flatten();
    if ctx.json {
        ctx.term.json(&json!({
            "kernel": kernel.map(|kernel| kernel.id),
            "build_id": symbols.build_id(),
            "symbols_note": note,
            "reports": told,
        }));
        return Ok(Exit::Clean);
    }
    for report in &told {
        let title = report.title.clone();
        let head = report.head().replacen(&title, &ctx.term.paint(Tone::Strong, &title), 1);
        // Painted by us, so cleaned part by part.
        ctx.term.out(&if head.contains('\u{1b}') { head } else { clean_str(&head) });
        ctx.term.out(&clean_str(&format!("\n{}\n", report.body())));
    }
    if told.is_empty() {
        ctx.term.line("no kernel report in it");
    }
    note.iter().for_each(|note| ctx.term.note(&clean_str(note)));
    Ok(Exit::Clean)
}

/// The console's bytes, and the kernel a finding was seen on.
fn read_console(word: &str, ctx: &Context) -> Result<(Vec<u8>, Option<String>), ExpectedError> {
    let path = Path::new(word);
    if word != "-" && !path.is_file() {
        let folder = match path.is_dir() {
            true => path.to_owned(),
            false => Runs::of(&ctx.home).find_finding(word)?.1,
        };
        let kernel = Findings::read(&folder)?.kernel;
        return Ok((Findings::read_console(&folder, CONSOLE_BYTES_MAX)?, Some(kernel)));
    }
    let mut bytes = Vec::new();
    let read = if word == "-" {
        std::io::stdin().take(CONSOLE_BYTES_MAX).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|f| f.take(CONSOLE_BYTES_MAX).read_to_end(&mut bytes))
    };
    read.map_err(|error| {
        let help = "name a console log, a finding, or - for stdin";
        ExpectedError::config(format!("cannot read console log {word}"), help).cause(error)
    })?;
    Ok((bytes, None))
}

/// The registered kernel that printed this: the finding's, else the only one with a vmlinux of the
/// release the log names.
fn whose(console: &[u8], seen_on: Option<&str>, ctx: &Context) -> Option<Kernel> {
    let mut known = vmimages::kernels(&ctx.home);
    if let Some(id) = seen_on {
        return known.into_iter().find(|kernel| kernel.id == id);
    }
    let release = release(console)?;
    known.retain(|kernel| kernel.release == release && kernel.vmlinux.is_some());
    known.pop().filter(|_| known.is_empty())
}

fn covered(args: &ReportArgs, ctx: &Context) -> anyhow::Result<Exit> {
    let (run, report) = match args.run.as_deref().filter(|word| *word != "latest") {
        Some(word) => {
            let run = Runs::of(&ctx.home).find(word)?;
            let report =
                coverage::load(&run.path).map_err(|error| none_of(&run.id).cause(error))?;
            (run, report)
        }
        None => newest(ctx)?,
    };
    let least = report.least(LEAST);
    if ctx.json {
        let rows: Vec<_> = least.iter().map(|row| figures(row)).collect();
        let names: Vec<&str> = least.iter().map(|row| row.file.as_str()).collect();
        ctx.term.json(&json!({
            "run": run.id,
            "kernel": report.kernel,
            "source": report.source,
            "focus": report.focus,
            "files": report.files,
            "least_reached": names,
            "least_reached_files": rows,
        }));
        return Ok(Exit::Clean);
    }
    ctx.term.out(&clean_str(&text(&report, &run.id, args.functions)));
    Ok(Exit::Clean)
}

fn none_of(run: &str) -> ExpectedError {
    let help = "only campaigns with coverage have any: hgm fuzz --coverage plugin";
    ExpectedError::config(format!("run {run} has kept no coverage"), help)
}

/// The newest run that has kept coverage. That newer ones have none is said.
fn newest(ctx: &Context) -> Result<(RunInfo, Report), ExpectedError> {
    let mut runs = Runs::of(&ctx.home).list()?;
    let mut without = Vec::new();
    while let Some(run) = runs.pop() {
        match coverage::load(&run.path) {
            Ok(report) => {
                if let Some(newest) = without.first() {
                    let count = without.len();
                    ctx.term.note(&format!(
                        "run {} is the newest with coverage; {count} newer, the last {newest}, \
                         kept none",
                        run.id
                    ));
                }
                return Ok((run, report));
            }
            Err(_) => without.push(run.id),
        }
    }
    let help = "only campaigns with coverage have any: hgm fuzz --coverage plugin";
    Err(match without.first() {
        None => ExpectedError::config("there is no run yet", help),
        Some(only) if without.len() == 1 => none_of(only),
        Some(_) => {
            let count = without.len();
            ExpectedError::config(format!("none of {count} runs has kept coverage"), help)
        }
    })
}

/// A file in figures. Field names are a contract.
fn figures(row: &FileRow) -> serde_json::Value {
    json!({
        "file": row.file,
        "blocks": row.blocks,
        "functions_reached": row.reached.len(),
        "functions_known": row.reached.len() + row.not_reached.len(),
    })
}

fn text(report: &Report, run: &str, functions: bool) -> String {
    let mut out = format!("run {run}, kernel {}\n\n", report.kernel);
    heading(&mut out);
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
    let least = report.least(LEAST);
    let _ = writeln!(out, "\nthe {} least reached files of mm/:", least.len());
    heading(&mut out);
    least.into_iter().for_each(|row| line(&mut out, row));
    out
}

fn heading(out: &mut String) {
    let _ = writeln!(out, "{:<32} {:>8} {:>9} {:>6}", "file", "reached", "functions", "blocks");
}

fn line(out: &mut String, row: &FileRow) {
    let all = row.reached.len() + row.not_reached.len();
    let part = 100 * row.reached.len() / all.max(1);
    let _ = writeln!(
        out,
        "{:<32} {part:>7}% {:>5}/{all:<3} {:>6}",
        row.file,
        row.reached.len(),
        row.blocks
    );
}
