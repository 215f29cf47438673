//! `hgm kernel selftest KERNEL`: provokes real faults in guests of this kernel and shows whether
//! each is detected, named and blamed rightly. What must be seen is in `selftest`.

use crate::cli::KernelSelftestArgs;
use crate::context::Context;
use crate::exit::{Exit, ExpectedError, nearest};
use crate::guest;
use crate::pool::PoolSpec;
use crate::selftest::{FAULTS, Fault, Row};
use crate::symbols::{Symbols, Told};
use crate::term::{Tone, clean_str, columns};
use anyhow::Context as _;
use case::link::{FromGuest, ToGuest};
use oracles::console::{Report, scan};
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};
use vm::Vm;

/// From the provocation to its report: RCU stalls take longest.
const PATIENCE: Duration = Duration::from_secs(90);
/// A report is read when the console has been quiet for this long after it.
const QUIET: Duration = Duration::from_millis(1500);
/// How often the console is looked at.
const TICK: Duration = Duration::from_millis(100);

/// What one provocation gave.
enum Shown {
    Console(Vec<u8>),
    /// The kernel has no such crash type, with the errno it gave.
    Refused(u16),
}

pub fn run(args: &KernelSelftestArgs, ctx: &Context) -> anyhow::Result<Exit> {
    let faults = chosen(&args.only)?;
    let kernel = ctx.kernel_named(&args.kernel)?;
    let scratch = tempfile::Builder::new().prefix("hgm-selftest-").tempdir()?;
    let spec = guest::pool_spec(ctx, &kernel, scratch.path())?;
    let symbols = Symbols::of(&kernel);
    let mut rows = Vec::new();
    for fault in faults {
        let row = repeat(fault, args, &spec, &symbols, ctx)?;
        ctx.term.note(&format!("{}: {}", fault.name, word(&row)));
        rows.push(row);
    }
    if ctx.json {
        ctx.term.json(&json!({ "kernel": kernel.id, "rows": rows }));
    } else {
        table(&rows, ctx);
    }
    let tried = rows.iter().filter(|row| row.skipped.is_none()).count();
    match rows.iter().filter(|row| row.skipped.is_none()).all(Row::ok) {
        _ if tried == 0 => Ok(Exit::NothingRun),
        true => Ok(Exit::Clean),
        false => Ok(Exit::CanaryMissed),
    }
}

fn chosen(only: &[String]) -> Result<Vec<&'static Fault>, ExpectedError> {
    if only.is_empty() {
        return Ok(FAULTS.iter().collect());
    }
    let one = |name: &String| {
        FAULTS.iter().find(|fault| fault.name == name).ok_or_else(|| {
            let near = nearest(name, FAULTS.iter().map(|fault| fault.name));
            let help = near.map_or("hgm kernel selftest --help".into(), |near| {
                format!("did you mean `{near}`?")
            });
            ExpectedError::usage(format!("no fault `{name}`"), help)
        })
    };
    only.iter().map(one).collect()
}

fn repeat(
    fault: &Fault,
    args: &KernelSelftestArgs,
    spec: &PoolSpec,
    symbols: &Symbols,
    ctx: &Context,
) -> anyhow::Result<Row> {
    let mut row = Row::of(fault);
    for _ in 0..args.times {
        let shown = {
            let mut say = |line: &str| ctx.term.note(&clean_str(line));
            let started = spec
                .cradle
                .start(&spec.vm, &mut say)
                .map_err(|error| ExpectedError::infrastructure(error.to_string(), error.help()))?;
            provoke(fault, started.0)
        };
        match shown {
            Shown::Refused(errno) => {
                row.skipped = Some(format!("this kernel has no {} ({errno})", fault.crash_type));
                break;
            }
            Shown::Console(console) => {
                let reports = scan(&console);
                row.count(fault, &reports);
                let picked = fault.pick(&reports);
                row.at = picked.and_then(|r| Told::of(r, &console, symbols).guilty_at);
                if let (Some(dir), Some(report)) = (&args.save, picked) {
                    keep(dir, fault, &console, report)?;
                }
            }
        }
    }
    Ok(row)
}

/// One guest of its own: most faults leave it unusable.
fn provoke(fault: &Fault, mut vm: Vm) -> Shown {
    let mark = vm.console_len();
    // A guest that dies of it at once has answered on the console.
    let _ = vm.send(&ToGuest::Provoke(fault.crash_type.into()));
    let start = Instant::now();
    let (mut seen, mut changed) = (mark, Instant::now());
    let mut alive = true;
    while start.elapsed() < PATIENCE {
        match vm.recv(TICK) {
            Ok(Some(FromGuest::Provoked { errno })) if errno != 0 => {
                return Shown::Refused(errno);
            }
            Ok(_) => {}
            Err(_) => {
                alive = false;
                std::thread::sleep(TICK);
            }
        }
        if vm.console_len() != seen {
            (seen, changed) = (vm.console_len(), Instant::now());
        }
        let quiet = changed.elapsed() >= QUIET;
        if quiet && (!alive || scan(&vm.console_since(mark)).iter().any(|r| fault.fits(r))) {
            break;
        }
    }
    Shown::Console(vm.console_since(mark))
}

/// The part of the console that is the report, for the reader's regression data.
fn keep(dir: &Path, fault: &Fault, console: &[u8], report: &Report) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let (start, end) = (report.start as usize, (report.end as usize).min(console.len()));
    let path = dir.join(format!("{}.txt", fault.name));
    let text = console.get(start..end).unwrap_or(console);
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn word(row: &Row) -> String {
    match &row.skipped {
        Some(why) => format!("skipped, {why}"),
        None if row.ok() => format!("ok, {}", clean_str(&row.title)),
        None => format!("NOT as it must be: {}", clean_str(&row.title)),
    }
}

fn table(rows: &[Row], ctx: &Context) {
    let head = ["FAULT", "PROVOKED", "DETECTED", "CLASS", "FUNCTION", "SIGNATURE", "AT", "TITLE"];
    let mut lines = vec![head.map(String::from).to_vec()];
    for row in rows {
        let of = |n: u32| format!("{n}/{}", row.provoked);
        let title = row.skipped.clone().unwrap_or_else(|| clean_str(&row.title));
        lines.push(vec![
            row.fault.clone(),
            row.provoked.to_string(),
            of(row.detected),
            of(row.class_right),
            of(row.guilty_right),
            match row.signatures.len() {
                0 => "-".into(),
                1 => "one".into(),
                n => format!("{n} different"),
            },
            row.at.clone().unwrap_or("-".into()),
            title,
        ]);
    }
    ctx.term.out(&columns(&lines));
    let wrong = rows.iter().filter(|row| row.skipped.is_none() && !row.ok()).count();
    if wrong > 0 {
        let what = format!("{wrong} of {} faults were not seen as they must be", rows.len());
        ctx.term.note(&format!("{}: {what}", ctx.term.paint_err(Tone::Bad, "error")));
    }
}
