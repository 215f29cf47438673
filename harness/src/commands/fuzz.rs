//! `hgm fuzz`: sets up a campaign, runs it, says what came of it.

use crate::campaign::{Campaign, Keeper, Outcome, Plan};
use crate::cli::{FuzzArgs, GuideChoice, Progress as Choice};
use crate::context::Context;
use crate::coverage;
use crate::engine::Guide;
use crate::exit::{Exit, ExpectedError};
use crate::guest;
use crate::progress::Progress;
use crate::signals::Signals;
use crate::symbols::Symbols;
use crate::term::Tone;
use std::time::{SystemTime, UNIX_EPOCH};
use store::{Corpus, Journal, RunMeta, Runs};

pub fn run(args: &FuzzArgs, ctx: &Context) -> anyhow::Result<Exit> {
    let signals = Signals::watch()?;
    let runs = Runs::of(&ctx.home);
    let (run, earlier) = match &args.resume {
        Some(word) => {
            let run = runs.resume(word)?;
            let meta = Journal::open(&run.path)?.meta()?.ok_or_else(|| {
                ExpectedError::config(
                    format!("run {} never began", run.id),
                    "start a new one: hgm fuzz --kernel NAME",
                )
            })?;
            (Some(run), Some(meta))
        }
        None => (None, None),
    };
    let kernel = match &args.tree {
        Some(tree) => guest::tree_kernel(ctx, tree)?,
        None => guest::kernel(ctx, earlier.as_ref().map(|meta| meta.kernel.as_str()))?,
    };
    let seed = args.seed.or(earlier.as_ref().map(|meta| meta.seed)).unwrap_or_else(clock_seed);
    let run = match run {
        Some(run) => run,
        None => runs.create(seed)?,
    };
    if !ctx.json {
        ctx.term.note(&format!("run {}  kernel {}  seed {seed}", run.id, kernel.id));
    }
    let mut pool = guest::pool_spec(ctx, &kernel, &run.path)?;
    let say = |line: &str| ctx.term.note(line);
    let mut book = coverage::set_up(ctx, &kernel, &mut pool, &args.focus, &say)?;
    let meta = earlier.unwrap_or_else(|| RunMeta {
        kernel: kernel.id.clone(),
        profile: ctx.config.profile.clone(),
        seed,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        command: std::env::args_os().map(|w| w.to_string_lossy().into_owned()).collect(),
        started: jiff::Timestamp::now().to_string(),
    });
    // A run grows its own corpus unless it was given one to add to.
    let corpus = ctx.config.corpus.clone().unwrap_or_else(|| run.path.join("corpus"));
    let about = serde_json::json!({ "id": kernel.id, "source": kernel.source });
    let symbols = Symbols::of(&kernel);
    let keeper = Keeper::open(run, &meta, &corpus, about, pool.known.clone(), symbols)?;
    if let (Some(book), Some(earlier)) = (&mut book, keeper.last_coverage()) {
        book.resume(&earlier);
    }
    let plan = Plan {
        slots: ctx.config.jobs as usize,
        kernel: kernel.id.clone(),
        seed,
        duration: ctx.config.duration,
        programs: args.programs,
        canary_every: ctx.config.canaries.then_some(ctx.config.canary_every),
        confirm_times: ctx.config.confirm_times,
        guide: match ctx.config.guide {
            GuideChoice::All => Guide::All,
            GuideChoice::States => Guide::States,
            GuideChoice::Nothing => Guide::Nothing,
        },
        book,
        seeds: seeds(&keeper),
        checkpoint: keeper.last_checkpoint()?,
        pool,
    };
    let choice =
        if ctx.json && args.progress == Choice::Auto { Choice::Lines } else { args.progress };
    let progress = Progress::new(&ctx.term, choice, plan.slots);
    let suspects = keeper.suspects();
    let outcome = Campaign::start(plan, keeper, suspects, progress, &signals)?.run()?;
    report(&outcome, ctx)
}

/// Programs in the corpus folder; those of the seeds folder beside us come first in a new run.
fn seeds(keeper: &Keeper) -> Vec<case::Program> {
    let beside = std::path::Path::new("corpus/seeds");
    let mut all: Vec<case::Program> = match Corpus::view(beside) {
        Ok(corpus) => corpus.programs().map(|(_, program)| program).collect(),
        // Not started inside a checkout: there are no seeds to be had.
        Err(_) => Vec::new(),
    };
    all.extend(keeper.programs());
    all
}

fn clock_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_nanos() as u64
}

fn report(outcome: &Outcome, ctx: &Context) -> anyhow::Result<Exit> {
    let summary = &outcome.summary;
    if let Some(why) = &outcome.infrastructure {
        return Err(ExpectedError::infrastructure(
            "no VM ever answered",
            format!("look at {}/vm0/console.log, and try hgm doctor", summary.run),
        )
        .cause(why)
        .into());
    }
    if ctx.json {
        ctx.term.json(&serde_json::to_value(summary)?);
    } else {
        ctx.term.out(&crate::term::clean_str(&summary.text()));
    }
    for class in &outcome.missed {
        let what = format!("canary {class} was not found: the detector is blind, results are void");
        ctx.term.note(&format!("{}: {what}", ctx.term.paint_err(Tone::Bad, "error")));
    }
    Ok(exit(outcome, ctx.config.programs_min))
}

/// One code for the whole campaign, the gravest first.
fn exit(outcome: &Outcome, programs_min: u64) -> Exit {
    let (confirmed, unconfirmed) = outcome.summary.new_findings();
    match outcome.signal {
        Some(143) => return Exit::Terminated,
        Some(_) => return Exit::Interrupted,
        None => {}
    }
    if !outcome.missed.is_empty() {
        return Exit::CanaryMissed;
    }
    if confirmed > 0 {
        return Exit::Finding;
    }
    match outcome.summary.programs {
        0 => Exit::NothingRun,
        few if few < programs_min => Exit::Inconclusive,
        _ if unconfirmed > 0 => Exit::Inconclusive,
        _ => Exit::Clean,
    }
}
