//! `hgm repro ID|FILE --c` and `hgm repro FILE.c`: the C reproducer of what showed is written, built
//! with the host's compiler, and run in VMs, which says whether it shows the same. What stands in the
//! file is `reproducers`' business.

use crate::cli::ReproArgs;
use crate::context::Context;
use crate::exit::{Exit, ExpectedError};
use crate::guest;
use crate::pool::{PoolSpec, Replayed};
use crate::signals::Signals;
use crate::term::{Tone, clean_str};
use crate::triage::Sighting;
use case::link::{ExecutableEnd, FromGuest, ToGuest};
use case::{Expectation, Finding, Profile, Source};
use oracles::console::scan;
use reproducers::{Request, Style};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use vm::Vm;
use vmimages::Kernel;

/// Seconds for one round of the program; emulated machines are slow.
const ROUND_SECONDS: u32 = 60;
/// Rounds of a program with threads, and of one that does not always show it.
const ROUNDS_RACING: u32 = 1000;
const ROUNDS_RARE: u32 = 100;
/// Seconds a file with many rounds gets in a VM.
const MANY_SECONDS: u32 = 300;
/// How much longer than that an answer may take.
const GRACE: Duration = Duration::from_secs(20);
/// Pages of 2 MiB and 1 GiB that VMs have; what is assumed where no run of the program ended.
const POOLS: (i64, i64) = (64, 1);
/// How the file is built; its head says the same.
const FLAGS: [&str; 8] = ["-static", "-std=c11", "-O1", "-Wall", "-Wextra", "-pthread", "-s", "-o"];

/// What runs of a C file in VMs came to.
#[derive(Debug, Default)]
struct Runs {
    shown: u32,
    tried: u32,
    /// What it printed when it first showed it, else the last time.
    printed: String,
    /// Last reason of a run that said nothing.
    void: Option<String>,
}

/// The file that was asked for, where it goes if no name was given.
pub fn destination(args: &ReproArgs, folder: Option<&Path>, target: &str) -> PathBuf {
    match (&args.c, &args.target) {
        // `--c ID` took the name for the file's.
        (Some(Some(file)), Some(_)) => file.clone(),
        _ => match folder {
            Some(folder) => folder.join("repro.c"),
            None => {
                let stem = Path::new(target).file_stem().unwrap_or_default().to_owned();
                let stem = if stem.is_empty() || stem == "-" { "repro".into() } else { stem };
                PathBuf::from(stem).with_extension("c")
            }
        },
    }
}

/// Writes, builds and runs the C file of what a replay showed.
pub fn write(
    args: &ReproArgs,
    (file, finding): (&Path, Option<&Finding>),
    (replayed, profile): (&Replayed, &Profile),
    (kernel, spec): (&Kernel, &PoolSpec),
    (ctx, signals): (&Context, &Signals),
) -> anyhow::Result<Exit> {
    let known = replayed.instead.first().filter(|_| replayed.replay.signature.is_none());
    let Some(sighting) = replayed.evidence.as_ref().or(known) else {
        return Err(ExpectedError::new(
            Exit::Inconclusive,
            format!("nothing showed in {} replays: there is nothing to check", replayed.tried),
            "run it more often with --times, or on the kernel that showed it",
        )
        .into());
    };
    let embargo = finding.is_some_and(|finding| finding.embargo);
    let rounds = match (replayed.replay.program.has_par(), replayed.evidence.is_some()) {
        (true, _) => ROUNDS_RACING,
        (false, true) if replayed.shown < replayed.tried => ROUNDS_RARE,
        _ => 1,
    };
    let text = text(args, sighting, replayed, profile, kernel, rounds, embargo)?;
    std::fs::write(file, &text).map_err(|error| {
        let what = format!("cannot write {}", file.display());
        ExpectedError::config(what, "name another file: --c OUT.c").cause(error)
    })?;
    let lines = text.lines().count();
    ctx.term.note(&clean_str(&format!("wrote {} ({lines} lines)", file.display())));
    if embargo {
        ctx.term.warn("this finding is under embargo", "keep the file on this machine");
    }
    let signature = Some(sighting.signature.as_str());
    let runs = try_out(file, signature, rounds, args.times, spec, (ctx, signals))?;
    let exit = match runs.shown {
        0 => Exit::Inconclusive,
        _ => Exit::Finding,
    };
    let program = json!({ "shown": replayed.shown, "tried": replayed.tried });
    report(file, lines, signature, &runs, kernel, program, ctx);
    if runs.shown == 0 && runs.tried > 0 {
        ctx.term.warn(
            "the program shows it, the C file does not",
            "read what it prints; the program itself is hgm repro's",
        );
    }
    Ok(exit)
}

/// Builds a C file that is there and runs it in VMs.
pub fn run_existing(
    args: &ReproArgs,
    file: &Path,
    (ctx, signals): (&Context, &Signals),
) -> anyhow::Result<Exit> {
    let kernel = ctx.kernel()?;
    let dir = tempfile::Builder::new().prefix("hgm-repro-").tempdir()?;
    let spec = guest::pool_spec(ctx, &kernel, dir.path())?;
    let text = std::fs::read_to_string(file).map_err(|error| {
        ExpectedError::config(format!("cannot read {}", file.display()), "name a C file")
            .cause(error)
    })?;
    let runs = try_out(file, None, ROUNDS_RARE, args.times, &spec, (ctx, signals))?;
    report(file, text.lines().count(), None, &runs, &kernel, serde_json::Value::Null, ctx);
    Ok(match (runs.shown, runs.tried) {
        (0, 0) => Exit::Inconclusive,
        (0, _) => Exit::Clean,
        _ => Exit::Finding,
    })
}

fn text(
    args: &ReproArgs,
    sighting: &Sighting,
    replayed: &Replayed,
    profile: &Profile,
    kernel: &Kernel,
    rounds: u32,
    embargo: bool,
) -> Result<String, ExpectedError> {
    let refused = |why: String| {
        ExpectedError::new(
            Exit::Inconclusive,
            format!("{} cannot be checked by a C file: {why}", sighting.signature),
            "hgm repro shows the program itself; nothing was written",
        )
    };
    let program = &replayed.replay.program;
    let expectation = expectation(sighting)
        .ok_or_else(|| refused("what was expected has no form outside of the oracle".into()))?;
    let at_end = program.lines() as u16;
    let seen = sighting.observation.as_ref();
    let pools = seen.map_or(POOLS, |seen| (seen.before.pool_2m.total, seen.before.pool_1g.total));
    let rule = sighting.violation.as_ref().and_then(|violation| {
        let rule = oracles::rules::all().into_iter().find(|rule| rule.id == violation.rule)?;
        Some(format!("{}: {} ({})", rule.id, rule.text, rule.source))
    });
    let request = Request {
        program,
        expectation: &expectation,
        line: sighting.violation.as_ref().map_or(at_end, |violation| violation.line),
        signature: &sighting.signature,
        rule: rule.as_deref().unwrap_or_default(),
        kernel: &kernel.id,
        profile,
        seen,
        pools,
        rounds,
        seconds: ROUND_SECONDS,
        style: if args.selftest { Style::Selftest } else { Style::Plain },
        embargo,
    };
    reproducers::write(&request).map_err(|error| refused(error.to_string()))
}

/// What a C file can check of a sighting.
fn expectation(sighting: &Sighting) -> Option<Expectation> {
    match sighting.source {
        Source::Oracle => sighting.violation.as_ref()?.expectation.clone(),
        Source::Hang => Some(Expectation::Ends),
        Source::Console => {
            let reports = scan(&sighting.console);
            let report = reports.iter().find(|r| r.signature == sighting.signature)?;
            let head = opening(report.text(&sighting.console))?;
            Some(Expectation::NoReport { head, function: report.guilty.clone() })
        }
    }
}

/// How a report opens, up to what changes from run to run.
fn opening(report: &[u8]) -> Option<String> {
    let line = report.split(|b| *b == b'\n').next()?;
    let mut line = String::from_utf8_lossy(line).trim().to_owned();
    while let Some((_, rest)) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        line = rest.trim_start().to_owned();
    }
    if line.starts_with("INFO: task ") {
        return Some("INFO: task ".into());
    }
    let steady = line.find(|c: char| c.is_ascii_digit() || !(' '..='~').contains(&c));
    let head = &line[..steady.unwrap_or(line.len())];
    // The C file has a name of its own.
    let head = head.split(" in process ").next().unwrap_or(head).to_owned();
    (head.len() >= 4).then_some(head)
}

/// Builds the file and runs it so many times; a VM that died of it is replaced.
fn try_out(
    file: &Path,
    signature: Option<&str>,
    rounds: u32,
    times: u32,
    spec: &PoolSpec,
    (ctx, signals): (&Context, &Signals),
) -> Result<Runs, ExpectedError> {
    let binary = build(file)?;
    let seconds = if rounds > 1 { MANY_SECONDS } else { ROUND_SECONDS + ROUND_SECONDS / 2 };
    let mut runs = Runs::default();
    let mut vm: Option<Vm> = None;
    for _ in 0..times {
        if signals.count() > 0 {
            runs.void = Some("interrupted".into());
            break;
        }
        let mut guest = match vm.take() {
            Some(guest) => guest,
            None => {
                let mut note = |line: &str| ctx.term.note(&clean_str(line));
                let started = spec.cradle.start(&spec.vm, &mut note);
                started.map_err(|e| ExpectedError::infrastructure(e.to_string(), e.help()))?.0
            }
        };
        if once(&mut guest, &binary, seconds, signature, &mut runs) {
            vm = Some(guest);
        }
    }
    Ok(runs)
}

/// One run. False if the VM is of no use any more.
fn once(
    vm: &mut Vm,
    binary: &[u8],
    seconds: u32,
    signature: Option<&str>,
    runs: &mut Runs,
) -> bool {
    let mark = vm.console_len();
    let request = ToGuest::Execute { binary: binary.to_vec(), seconds };
    let until = Instant::now() + Duration::from_secs(u64::from(seconds)) + GRACE;
    let mut answer = vm.send(&request).map(|()| None);
    while let Ok(None) = answer {
        if Instant::now() > until {
            runs.void = Some("the guest stopped answering".into());
            return false;
        }
        answer = vm.recv(Duration::from_millis(100));
        if matches!(answer, Ok(Some(ref message)) if !matches!(message, FromGuest::Executed { .. }))
        {
            answer = Ok(None);
        }
    }
    let Ok(Some(FromGuest::Executed { end, printed })) = answer else {
        // The guest died: of what was to be shown?
        std::thread::sleep(Duration::from_millis(300));
        let reports = scan(&vm.console_since(mark));
        let same = reports.iter().any(|r| Some(r.signature.as_str()) == signature);
        runs.tried += u32::from(same);
        runs.shown += u32::from(same);
        if !same {
            let what = reports.first().map_or("it said nothing", |r| r.title.as_str());
            runs.void = Some(format!("the guest died: {what}"));
        }
        return false;
    };
    let printed = String::from_utf8_lossy(&printed).into_owned();
    count(end, printed, runs);
    matches!(end, ExecutableEnd::Exit(_))
}

fn count(end: ExecutableEnd, printed: String, runs: &mut Runs) {
    let last_line = printed.lines().rev().nth(1).unwrap_or_default().to_owned();
    let first = end == ExecutableEnd::Exit(reproducers::SHOWS) && runs.shown == 0;
    if first || runs.shown == 0 {
        runs.printed = printed;
    }
    match end {
        ExecutableEnd::Exit(reproducers::BEHAVES) => runs.tried += 1,
        ExecutableEnd::Exit(reproducers::SHOWS) => {
            runs.tried += 1;
            runs.shown += 1;
        }
        ExecutableEnd::Exit(reproducers::CANNOT) => runs.void = Some(last_line),
        ExecutableEnd::Exit(code) => runs.void = Some(format!("it ended with {code}")),
        ExecutableEnd::Signal(signal) => runs.void = Some(format!("it died of signal {signal}")),
        ExecutableEnd::Late => runs.void = Some("it ran over its time".into()),
        ExecutableEnd::NotRun(errno) => {
            runs.void = Some(format!("it could not be started: errno {errno}"));
        }
    }
}

/// The static executable of a C file.
fn build(file: &Path) -> Result<Vec<u8>, ExpectedError> {
    let dir = tempfile::Builder::new().prefix("hgm-build-").tempdir();
    let failed = |what: String, error: std::io::Error| {
        ExpectedError::infrastructure(what, "make room, or set TMPDIR").cause(error)
    };
    let dir = dir.map_err(|error| failed("no folder to build in".into(), error))?;
    let out = dir.path().join("reproducer");
    let done = Command::new("gcc").args(FLAGS).arg(&out).arg(file).output().map_err(|error| {
        let help = "apt-get install gcc libc6-dev, or build and run it by hand as its head says";
        let what = format!("{} cannot be built: gcc does not run", file.display());
        ExpectedError::infrastructure(what, help).cause(error)
    })?;
    if !done.status.success() {
        let text = String::from_utf8_lossy(&done.stderr);
        let first: Vec<&str> = text.lines().take(5).collect();
        let what = format!("gcc refuses {}", file.display());
        return Err(ExpectedError::config(
            what,
            "a file of hgm's own compiles; for -static, gcc and libc6-dev must be there",
        )
        .cause(clean_str(&first.join("\n"))));
    }
    let binary = std::fs::read(&out)
        .map_err(|error| failed(format!("cannot read {}", out.display()), error))?;
    if binary.len() > case::limits::BINARY_BYTES_MAX {
        let what = format!("the executable has {} bytes", binary.len());
        return Err(ExpectedError::config(what, "run it by hand: it is too large for the link"));
    }
    Ok(binary)
}

fn report(
    file: &Path,
    lines: usize,
    signature: Option<&str>,
    runs: &Runs,
    kernel: &Kernel,
    program: serde_json::Value,
    ctx: &Context,
) {
    if ctx.json {
        ctx.term.json(&json!({
            "kernel": kernel.id,
            "signature": signature,
            "program": program,
            "file": file,
            "lines": lines,
            "shown": runs.shown,
            "tried": runs.tried,
            "inconclusive": runs.void,
            "printed": runs.printed,
        }));
        return;
    }
    let tone = if runs.shown > 0 { Tone::Bad } else { Tone::Good };
    let count = ctx.term.paint(tone, &format!("{} of {}", runs.shown, runs.tried));
    let what = signature.map(|s| format!("  {s}")).unwrap_or_default();
    ctx.term.line(&format!("{}: shown {count}{}", file.display(), clean_str(&what)));
    for line in runs.printed.lines() {
        ctx.term.line(&clean_str(&format!("  {line}")));
    }
    if let Some(why) = &runs.void {
        ctx.term.line(&clean_str(&format!("  some runs said nothing: {why}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_known_by_how_it_opens() {
        let of = |text: &str| opening(text.as_bytes()).unwrap();
        let warn =
            "[   63.376173][   T61] WARNING: CPU: 0 PID: 61 at mm/hugetlb.c:4908 f+0x1/0x2\n";
        assert_eq!(of(warn), "WARNING: CPU: ");
        assert_eq!(of("kernel BUG at mm/hugetlb.c:77!"), "kernel BUG at mm/hugetlb.c:");
        assert_eq!(of("INFO: task hgm:12 blocked for more than 2 seconds"), "INFO: task ");
        let page = "[    9.1] BUG: Bad page cache in process init  pfn:06e00\n";
        assert_eq!(of(page), "BUG: Bad page cache", "the C file has a name of its own");
        assert_eq!(opening(b"[1] 12"), None);
    }

    #[test]
    fn runs_are_counted_by_how_they_end() {
        let mut runs = Runs::default();
        count(ExecutableEnd::Exit(0), "seen: 1\nPASS\n".into(), &mut runs);
        count(ExecutableEnd::Exit(4), "needs root\nSKIP\n".into(), &mut runs);
        assert_eq!((runs.shown, runs.tried, runs.void.as_deref()), (0, 1, Some("needs root")));
        count(ExecutableEnd::Exit(1), "seen: 2\nFAIL\n".into(), &mut runs);
        count(ExecutableEnd::Signal(11), String::new(), &mut runs);
        assert_eq!((runs.shown, runs.tried), (1, 2));
        assert!(runs.printed.contains("seen: 2") && runs.void.unwrap().contains("signal 11"));
    }
}
