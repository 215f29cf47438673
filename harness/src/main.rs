//! `hgm`: read the command line, build the context, run the verb, end with its exit code.
//!
//! Nothing is decided here. Exit codes are in `exit`, texts in `cli`, the verbs in `commands`.

mod about;
mod assets;
mod campaign;
mod canary;
mod cli;
mod commands;
mod config;
mod context;
mod coverage;
mod doctor;
mod engine;
mod exit;
mod fleet;
mod gate;
mod guest;
#[cfg(test)]
mod parcels_tests;
mod pool;
mod progress;
mod render;
mod repo;
mod selftest;
mod signals;
mod symbols;
mod term;
mod told;
mod triage;
mod work;

use clap::Parser;
use cli::{Cli, ColorWhen, Verb};
use context::Context;
use exit::{Exit, ExpectedError};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use term::Term;

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(report_panic));
    vm::process::keep_children();
    start_log();
    // A panic of the main thread would end with 101, which means something else here.
    let exit = catch_unwind(AssertUnwindSafe(|| match Cli::try_parse() {
        Ok(cli) => run(&cli),
        Err(error) => refuse(&error),
    }));
    ExitCode::from(exit.unwrap_or(Exit::Bug).code())
}

/// The pipeline: context, verb, exit.
fn run(cli: &Cli) -> Exit {
    let term = Term::new(cli.global.color);
    let ctx = match Context::of(cli, term) {
        Ok(ctx) => ctx,
        Err(error) => {
            Term::new(cli.global.color).error(&error, cli.global.json);
            return error.exit;
        }
    };
    let exit = dispatch(&cli.verb, &ctx).unwrap_or_else(|error| {
        let error = expected(error);
        ctx.term.error(&error, ctx.json);
        error.exit
    });
    match ctx.term.close() {
        Some(error) => {
            ctx.term.error(&error, false);
            error.exit
        }
        None => exit,
    }
}

fn dispatch(verb: &Verb, ctx: &Context) -> anyhow::Result<Exit> {
    match verb {
        Verb::Doctor(args) => commands::doctor::run(args, ctx),
        Verb::Kernel(args) => commands::kernel::run(args, ctx),
        Verb::Corpus(args) => commands::corpus::run(args, ctx),
        Verb::Config(args) => commands::config::run(args, ctx),
        Verb::Completions(args) => commands::completions::run(args, ctx),
        Verb::Work(args) => commands::work::run(args, ctx),
        Verb::Status(_) => commands::status::run(ctx),
        Verb::Man(args) => commands::man::run(args, ctx),
        Verb::Help(args) => commands::help::run(args, ctx),
        Verb::Fuzz(args) => commands::fuzz::run(args, ctx),
        Verb::Run(args) => commands::run::run(args, ctx),
        Verb::Repro(args) => commands::repro::run(args, ctx),
        Verb::Shrink(args) => commands::shrink::run(args, ctx),
        Verb::Findings(args) => commands::findings::run(args, ctx),
        Verb::Report(args) => commands::report::run(args, ctx),
        Verb::Trend(args) => commands::trend::run(args, ctx),
        Verb::Regress(args) => commands::regress::run(args, ctx),
        Verb::Gate(args) => commands::gate::run(args, ctx),
        Verb::Bisect(args) => commands::bisect::run(args, ctx),
    }
}

/// Errors nobody foresaw are bugs in hgm; the rest knows its exit code.
fn expected(error: anyhow::Error) -> ExpectedError {
    let error = match error.downcast::<ExpectedError>() {
        Ok(known) => return known,
        Err(other) => other,
    };
    let error = match error.downcast::<store::StoreError>() {
        Ok(known) => return known.into(),
        Err(other) => other,
    };
    match error.downcast::<vmimages::ImageError>() {
        Ok(known) => known.into(),
        Err(other) => ExpectedError::new(
            Exit::Bug,
            format!("{other:#}"),
            "this is a bug in hgm: please report it with the command line",
        ),
    }
}

/// Help, version, and command lines that do not parse.
fn refuse(error: &clap::Error) -> Exit {
    let json = std::env::args_os().any(|word| word == "--json");
    if error.use_stderr() && json {
        let text = error.render().to_string();
        let first = text.lines().next().unwrap_or_default();
        let message = first.strip_prefix("error: ").unwrap_or(first);
        Term::new(ColorWhen::Never).error(&ExpectedError::usage(message, "hgm --help"), true);
        return Exit::Usage;
    }
    // A reader that went away is no fault of ours.
    let _ = error.print();
    if error.use_stderr() { Exit::Usage } else { Exit::Clean }
}

fn report_panic(info: &std::panic::PanicHookInfo<'_>) {
    let place = info.location().map(|at| format!(" at {}:{}", at.file(), at.line()));
    let term = Term::new(ColorWhen::Auto);
    let what = info.payload();
    let what = what
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| what.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    let what = format!("panic{}: {what}", place.unwrap_or_default());
    let help = "this is a bug in hgm: please report this text with the command line";
    term.error(&ExpectedError::new(Exit::Bug, what, help), false);
}

/// Diagnostics go to stderr and only where `HGM_LOG` asks for them.
fn start_log() {
    if let Ok(filter) = std::env::var("HGM_LOG") {
        let filter = tracing_subscriber::EnvFilter::new(filter);
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        let _ = log.try_init();
    }
}
