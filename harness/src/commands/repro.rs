//! `hgm repro ID|FILE`: the program again and again, each time in a fresh child; says k of n. With
//! `--c` what it showed becomes a C file; see `c_file`.

mod leased;

pub use leased::may_leave;

use crate::cli::ReproArgs;
use crate::commands::c_file;
use crate::commands::report::gather;
use crate::commands::run::read_program;
use crate::context::Context;
use crate::exit::{Exit, ExpectedError};
use crate::guest;
use crate::pool::{Event, Order, Pool, Replay, Replayed};
use crate::signals::Signals;
use crate::symbols::{Symbols, Told, tell};
use crate::term::{Tone, clean_str};
use crate::triage::Sighting;
use case::{Finding, Profile, Program};
use std::path::{Path, PathBuf};
use std::time::Duration;
use store::{Findings, Runs};
use vmimages::Kernel;

/// Boots that fail in a row until there is no use in trying.
const BOOTS_MAX: u32 = 3;

pub fn run(args: &ReproArgs, ctx: &Context) -> anyhow::Result<Exit> {
    let signals = Signals::watch()?;
    let name = wanted(args)?;
    if Path::new(&name).extension().is_some_and(|kind| kind == "c") && args.c.is_none() {
        return c_file::run_existing(args, Path::new(&name), (ctx, &signals));
    }
    let (program, finding, folder) = target(&name, ctx)?;
    let kernel = guest::kernel(ctx, finding.as_ref().map(|f| f.kernel.as_str()))?;
    let of_finding = || finding.as_ref().map(|f| f.signature.clone());
    let signature = args.signature.clone().or_else(of_finding);
    if args.hub.is_some() {
        let embargo = finding.as_ref().is_some_and(|finding| finding.embargo);
        leased::may_leave(embargo, signature.as_deref(), &gather::embargoed(ctx)?)?;
        return leased::run(&program, signature, args.times, &kernel, (ctx, &signals));
    }
    let dir = tempfile::Builder::new().prefix("hgm-repro-").tempdir()?;
    let spec = guest::pool_spec(ctx, &kernel, dir.path())?;
    let replay = Replay { key: 0, program, signature, times: args.times };
    let pool = Pool::start(&spec, 1)?;
    pool.order(0, Order::Replay(replay));
    let mut profile = Profile::default();
    let ended = wait(&pool, ctx, &signals, &mut profile);
    pool.close(Duration::from_secs(5));
    let Some(replayed) = ended? else {
        return Ok(if signals.code() == Some(143) { Exit::Terminated } else { Exit::Interrupted });
    };
    if args.c.is_none() {
        return report(&replayed, &kernel, ctx);
    }
    let file = c_file::destination(args, folder.as_deref(), &name);
    c_file::write(
        args,
        (&file, finding.as_ref()),
        (&replayed, &profile),
        (&kernel, &spec),
        (ctx, &signals),
    )
}

/// What is to be replayed. `--c ID` takes the name for the file's, and there is no other.
fn wanted(args: &ReproArgs) -> Result<String, ExpectedError> {
    let as_file = || args.c.as_ref()?.as_ref().map(|file| file.to_string_lossy().into_owned());
    args.target.clone().or_else(as_file).ok_or_else(|| {
        ExpectedError::usage("nothing is named", "hgm repro ID --c OUT.c, or hgm repro FILE --c")
    })
}

/// What is to be replayed, and the folder of a finding: named by its folder, a program file, or a
/// finding's name in any run.
pub fn target(
    target: &str,
    ctx: &Context,
) -> Result<(Program, Option<Finding>, Option<PathBuf>), ExpectedError> {
    let path = Path::new(target);
    if path.is_file() || target == "-" {
        return Ok((read_program(path)?, None, None));
    }
    let folder = match path.is_dir() {
        true => path.to_owned(),
        false => Runs::of(&ctx.home).find_finding(target)?.1,
    };
    Ok((Findings::read_program(&folder)?, Some(Findings::read(&folder)?), Some(folder)))
}

fn wait(
    pool: &Pool,
    ctx: &Context,
    signals: &Signals,
    profile: &mut Profile,
) -> Result<Option<Replayed>, ExpectedError> {
    loop {
        if signals.count() > 0 {
            return Ok(None);
        }
        match pool.events.recv_timeout(Duration::from_millis(100)) {
            Ok(Event::Replayed(replayed)) => return Ok(Some(*replayed)),
            Ok(Event::BootFailed { why, failures, .. }) if failures >= BOOTS_MAX => {
                return Err(
                    ExpectedError::infrastructure("no VM boots", "try hgm doctor").cause(why)
                );
            }
            Ok(Event::Booted { profile: told, .. }) => *profile = *told,
            Ok(Event::Note(line)) => ctx.term.note(&clean_str(&line)),
            Ok(Event::BootFailed { why, .. }) => {
                ctx.term.warn(&clean_str(&format!("boot failed: {why}")), "trying again");
            }
            Ok(_) | Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return Ok(None),
        }
    }
}

fn report(replayed: &Replayed, kernel: &Kernel, ctx: &Context) -> anyhow::Result<Exit> {
    let Replayed { shown, tried, replay, evidence, others, void, .. } = replayed;
    let exit = match (shown, tried) {
        (0, 0) => Exit::Inconclusive,
        (0, _) => Exit::Clean,
        _ => Exit::Finding,
    };
    let signature = replay.signature.clone().or(evidence.as_ref().map(|e| e.signature.clone()));
    let symbols = Symbols::of(kernel);
    let told = evidence.as_ref().and_then(|seen| kernel_report(seen, &symbols));
    if ctx.json {
        ctx.term.json(&serde_json::json!({
            "kernel": kernel.id,
            "signature": signature,
            "shown": shown,
            "tried": tried,
            "asked": replay.times,
            "others": others,
            "inconclusive": void,
            "kernel_report": told,
        }));
        return Ok(exit);
    }
    let tone = if *shown > 0 { Tone::Bad } else { Tone::Good };
    let what = signature.as_deref().map(|s| format!("  {s}")).unwrap_or_default();
    let count = ctx.term.paint(tone, &format!("{shown} of {tried}"));
    ctx.term.line(&format!("shown {count}{}", clean_str(&what)));
    if let Some(violation) = evidence.as_ref().and_then(|e| e.violation.as_ref()) {
        ctx.term.out(&clean_str(&format!(
            "  line {} ({})\n  expected  {}\n  observed  {}\n",
            violation.line, violation.op, violation.expected, violation.observed
        )));
    }
    if let Some(told) = &told {
        ctx.term.out(&clean_str(&format!("{}{}", told.head(), told.body())));
        symbols.note().iter().for_each(|note| ctx.term.note(&clean_str(note)));
    }
    for other in others {
        ctx.term.line(&clean_str(&format!("  also showed: {other}")));
    }
    if let Some(why) = void {
        ctx.term.line(&clean_str(&format!("  some replays said nothing: {why}")));
    }
    Ok(exit)
}

/// What the kernel said of what showed, if it said anything.
fn kernel_report(seen: &Sighting, symbols: &Symbols) -> Option<Told> {
    let mut told = tell(&seen.console, symbols);
    let meant = told.iter().position(|told| told.signature == seen.signature).unwrap_or(0);
    (meant < told.len()).then(|| told.swap_remove(meant))
}
