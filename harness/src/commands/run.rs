//! `hgm run FILE`: one program in one VM, op by op: what it gave, what was allowed, the verdict.

use crate::cli::RunArgs;
use crate::context::Context;
use crate::exit::{Exit, ExpectedError};
use crate::guest;
use crate::render;
use crate::symbols::{Symbols, Told, tell};
use crate::term::{Tone, clean_str};
use case::link::{FromGuest, RunOutcome, RunRequest, ToGuest};
use case::{Observation, Profile, Program, Verdict};
use oracles::known::Known;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};
use vm::Vm;

/// How the one run ended.
enum Ended {
    Seen(Box<Observation>),
    /// Nothing can be judged, and why.
    Void(String),
    /// The program went over its time.
    Hung(Box<RunOutcome>),
    /// The guest died or went silent.
    Died(String),
}

pub fn run(args: &RunArgs, ctx: &Context) -> anyhow::Result<Exit> {
    let program = read_program(&args.file)?;
    let kernel = match &args.tree {
        Some(tree) => guest::tree_kernel(ctx, tree)?,
        None => ctx.kernel()?,
    };
    let dir = tempfile::Builder::new().prefix("hgm-run-").tempdir()?;
    let spec = guest::pool_spec(ctx, &kernel, dir.path())?;
    let mut note = |line: &str| ctx.term.note(&clean_str(line));
    let (mut vm, _) = spec
        .cradle
        .start(&spec.vm, &mut note)
        .map_err(|error| ExpectedError::infrastructure(error.to_string(), error.help()))?;
    let profile = vm.profile().clone();
    let mark = vm.console_len();
    let request = RunRequest {
        id: 1,
        program: program.clone(),
        look: spec.look,
        fresh: true,
        canary: None,
        op_timeout_ms: spec.op_timeout.as_millis() as u32,
    };
    let ended = watch(&mut vm, request, spec.silence());
    let console = vm.console_since(mark);
    vm.kill();
    let symbols = Symbols::of(&kernel);
    let reports = tell(&console, &symbols);
    let mut json = serde_json::json!({
        "kernel": kernel.id,
        "profile": profile.family().name(),
        "console": reports,
    });
    let mut exit = match ended {
        Ended::Seen(seen) => {
            let (verdicts, report) = oracles::judge::trace(&program, &seen, &profile, &spec.known);
            let rows = render::rows(&program, &seen, &verdicts);
            json["lines"] = serde_json::to_value(&rows)?;
            if !ctx.json {
                ctx.term.out(&clean_str(&render::table(&rows, true)));
            }
            verdict(ctx, &report, &mut json)
        }
        Ended::Void(why) => {
            json["inconclusive"] = why.clone().into();
            say(ctx, Tone::Warn, "inconclusive", &why);
            Exit::Inconclusive
        }
        Ended::Hung(outcome) => {
            hung(ctx, &program, *outcome, &profile, &spec.known, &symbols, &mut json)
        }
        Ended::Died(why) => {
            json["died"] = why.clone().into();
            say(ctx, Tone::Bad, "guest died", &why);
            if reports.is_empty() { Exit::Infrastructure } else { Exit::Finding }
        }
    };
    if !reports.is_empty() {
        exit = Exit::Finding;
        json["symbols_note"] = symbols.note().into();
        show(ctx, &reports, &symbols);
    }
    json["exit"] = exit.code().into();
    if ctx.json {
        ctx.term.json(&json);
    }
    Ok(exit)
}

/// A program that went over its time, with what its threads did.
fn hung(
    ctx: &Context,
    program: &Program,
    outcome: RunOutcome,
    profile: &Profile,
    known: &Known,
    symbols: &Symbols,
    json: &mut serde_json::Value,
) -> Exit {
    let judged = crate::triage::judge(program, outcome, profile, known);
    for sighting in judged.sightings {
        json["hang"] = sighting.title.clone().into();
        say(ctx, Tone::Bad, "hang", &sighting.title);
        if !ctx.json {
            for line in clean_str(&symbols.decode(&sighting.console)).lines() {
                ctx.term.line(&format!("    {line}"));
            }
        }
    }
    Exit::Finding
}

/// The kernel's reports, each with its text.
fn show(ctx: &Context, reports: &[Told], symbols: &Symbols) {
    if ctx.json {
        return;
    }
    for report in reports {
        say(ctx, Tone::Bad, "kernel report", &report.head());
        ctx.term.out(&clean_str(&report.body()));
    }
    if let Some(note) = symbols.note() {
        ctx.term.note(&clean_str(&note));
    }
}

/// A program from a file or stdin.
pub fn read_program(file: &Path) -> Result<Program, ExpectedError> {
    let shown = file.display();
    let mut text = String::new();
    let limit = case::limits::TEXT_BYTES_MAX as u64 + 1;
    let read = if file == Path::new("-") {
        std::io::stdin().take(limit).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|f| f.take(limit).read_to_string(&mut text))
    };
    read.map_err(|error| {
        ExpectedError::config(format!("cannot read program {shown}"), "name a program file, or -")
            .cause(error)
    })?;
    let program = case::text::parse(&text).map_err(|error| {
        let help = error.help.to_string();
        ExpectedError::config(format!("{shown}: {error}"), help)
    })?;
    case::check::check(&program).map_err(|error| {
        ExpectedError::config(format!("{shown}: {error}"), "hgm help ops lists ops and limits")
    })?;
    Ok(program)
}

fn watch(vm: &mut Vm, request: RunRequest, silence: Duration) -> Ended {
    let died = |death: vm::Death| Ended::Died(format!("{:?}", death.kind));
    if let Err(death) = vm.send(&ToGuest::Run(request)) {
        return died(death);
    }
    let (mut heard, mut progress) = (Instant::now(), vm.progress());
    loop {
        let message = vm.recv(Duration::from_millis(100));
        if vm.progress() != progress {
            (heard, progress) = (Instant::now(), vm.progress());
        }
        match message {
            Err(death) => return died(death),
            Ok(Some(FromGuest::Done { outcome, .. })) => {
                // The console has its own way to us and may be a little later.
                std::thread::sleep(Duration::from_millis(200));
                return match outcome {
                    RunOutcome::Finished(seen) => Ended::Seen(Box::new(seen)),
                    RunOutcome::WorkerDied { signal, line } => {
                        Ended::Void(format!("the child died of signal {signal} at line {line}"))
                    }
                    outcome @ RunOutcome::WorkerHung { .. } => Ended::Hung(Box::new(outcome)),
                    RunOutcome::Refused(why) => Ended::Void(format!("the agent refused: {why}")),
                };
            }
            Ok(_) if heard.elapsed() > silence => {
                return Ended::Died(format!("silent for {} s", silence.as_secs()));
            }
            Ok(_) => {}
        }
    }
}

fn verdict(ctx: &Context, report: &oracles::judge::Report, json: &mut serde_json::Value) -> Exit {
    for (violation, id) in &report.known {
        say(ctx, Tone::Warn, &format!("known {id}"), &violation.signature());
    }
    let known: Vec<&str> = report.known.iter().map(|(_, id)| id.as_str()).collect();
    json["known"] = known.into();
    if let Some(why) = &report.blurred {
        say(ctx, Tone::Warn, "only invariants judged from some line on", why);
    }
    match &report.verdict {
        Verdict::Pass => {
            json["verdict"] = "pass".into();
            say(ctx, Tone::Good, "pass", &format!("{} ops judged", report.ops));
            Exit::Clean
        }
        Verdict::Inconclusive(why) => {
            json["verdict"] = "inconclusive".into();
            json["inconclusive"] = why.clone().into();
            say(ctx, Tone::Warn, "inconclusive", why);
            Exit::Inconclusive
        }
        Verdict::Violation(violation) => {
            json["verdict"] = "violation".into();
            json["violation"] = serde_json::to_value(violation).unwrap_or_default();
            say(ctx, Tone::Bad, "violation", &violation.signature());
            if !ctx.json {
                ctx.term.out(&clean_str(&format!(
                    "  line {}\n  expected  {}\n  observed  {}\n",
                    violation.line, violation.expected, violation.observed
                )));
            }
            Exit::Finding
        }
    }
}

fn say(ctx: &Context, tone: Tone, word: &str, text: &str) {
    if !ctx.json {
        ctx.term.line(&format!("{}: {}", ctx.term.paint(tone, word), clean_str(text)));
    }
}
