//! `hgm fuzz`: sets up a campaign, runs it, says what came of it.

use crate::about;
use crate::campaign::{
    Bench, CONFIRM_GRACE, Campaign, Keeper, Outcome, Plan, Room, Summary, TierPlan,
};
use crate::cli::{FuzzArgs, GuideChoice, Progress as Choice};
use crate::context::Context;
use crate::coverage;
use crate::engine::Guide;
use crate::exit::{Exit, ExpectedError};
use crate::fleet;
use crate::guest;
use crate::pool::PoolSpec;
use crate::progress::Progress;
use crate::signals::Signals;
use crate::symbols::Symbols;
use crate::term::Tone;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use store::{Corpus, Journal, Merges, RunMeta, Runs};
use vmimages::Kernel;

/// Note in a run's journal: the checking kernel.
const VERIFY: &str = "verify";
/// Programs ahead in a checking VM. It is slow: what is out at the end must be waited for.
const CHECKING_DEPTH: usize = 4;

pub fn run(args: &FuzzArgs, ctx: &Context) -> anyhow::Result<Exit> {
    let signals = Signals::watch()?;
    let runs = Runs::of(&ctx.home);
    let (run, earlier, verified) = match &args.resume {
        Some(word) => {
            let run = runs.resume(word)?;
            let journal = Journal::open(&run.path)?;
            let meta = journal.meta()?.ok_or_else(|| {
                ExpectedError::config(
                    format!("run {} never began", run.id),
                    "start a new one: hgm fuzz --kernel NAME",
                )
            })?;
            (Some(run), Some(meta), journal.note(VERIFY)?)
        }
        None => (None, None, None),
    };
    let kernel = match &args.tree {
        Some(tree) => guest::tree_kernel(ctx, tree)?,
        None => guest::kernel(ctx, earlier.as_ref().map(|meta| meta.kernel.as_str()))?,
    };
    let checking = checking_kernel(ctx, &kernel, verified.as_deref())?;
    let seed = args.seed.or(earlier.as_ref().map(|meta| meta.seed)).unwrap_or_else(clock_seed);
    let run = match run {
        Some(run) => run,
        None => runs.create(seed)?,
    };
    if !ctx.json {
        let by = checking.as_ref().map(|k| format!("  checked by {}", k.id)).unwrap_or_default();
        ctx.term.note(&format!("run {}  kernel {}{by}  seed {seed}", run.id, kernel.id));
    }
    let mut pool = guest::pool_spec(ctx, &kernel, &run.path)?;
    let say = |line: &str| ctx.term.note(line);
    let mut book = coverage::set_up(ctx, &kernel, &mut pool, &args.focus, &say)?;
    let meta = earlier.unwrap_or_else(|| meta(ctx, &kernel, seed));
    // A run grows its own corpus unless it was given one to add to.
    let corpus = ctx.config.corpus.clone().unwrap_or_else(|| run.path.join("corpus"));
    let mut tiers = vec![TierPlan { kernel: kernel.id.clone(), pool, slots: 0 }];
    let mut benches = vec![bench(&kernel, &tiers[0].pool)];
    if let Some(kernel) = &checking {
        let mut pool = guest::pool_spec(ctx, kernel, &run.path)?;
        pool.depth = pool.depth.min(CHECKING_DEPTH);
        benches.push(bench(kernel, &pool));
        let slots = ctx.config.verify_jobs as usize;
        tiers.push(TierPlan { kernel: kernel.id.clone(), pool, slots });
    }
    tiers[0].slots = ctx.config.jobs as usize - tiers.iter().map(|t| t.slots).sum::<usize>();
    let run_path = run.path.clone();
    let room = Room { term: &ctx.term, signals: &signals };
    let mut keeper = Keeper::open(run, &meta, &corpus, benches, room)?;
    for (note, value) in about::notes(ctx, &kernel, &tiers[0].pool.vm) {
        keeper.note(note, &value.to_string())?;
    }
    if let Some(kernel) = &checking {
        keeper.note(VERIFY, &kernel.id)?;
    }
    if let (Some(book), Some(earlier)) = (&mut book, keeper.last_coverage()) {
        book.resume(&earlier);
    }
    let plan = Plan {
        tiers,
        seed,
        duration: ctx.config.duration,
        programs: args.programs,
        until_finding: args.until_finding,
        canary_every: ctx.config.canaries.then_some(ctx.config.canary_every),
        confirm_times: ctx.config.confirm_times,
        guide: guide(ctx),
        book,
        seeds: seeds(&keeper),
        merges: Merges::of(&ctx.home)?,
        grace: CONFIRM_GRACE,
        versus: None,
        checkpoint: keeper.last_checkpoint()?,
        fleet: fleet::join(ctx, &kernel, &run_path)?,
    };
    let choice =
        if ctx.json && args.progress == Choice::Auto { Choice::Lines } else { args.progress };
    let progress = Progress::new(&ctx.term, choice, ctx.config.jobs as usize);
    let suspects = keeper.suspects();
    let outcome = Campaign::start(plan, keeper, suspects, progress, &signals)?.run()?;
    let ended = report(&outcome, ctx);
    keep_exit(&run_path, &ended);
    ended
}

/// Puts down how a run ended, for reports. Who waits for it knows already if this fails.
pub(super) fn keep_exit(run: &Path, ended: &anyhow::Result<Exit>) {
    let exit = match ended {
        Ok(exit) => *exit,
        Err(error) => error.downcast_ref::<ExpectedError>().map_or(Exit::Bug, |e| e.exit),
    };
    if let Ok(mut journal) = Journal::open(run) {
        let _ = journal.set_note("exit", &exit.code().to_string());
    }
}

/// What a run of this call on this kernel is.
pub(super) fn meta(ctx: &Context, kernel: &Kernel, seed: u64) -> RunMeta {
    RunMeta {
        kernel: kernel.id.clone(),
        profile: ctx.config.profile.clone(),
        seed,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        command: std::env::args_os().map(|w| w.to_string_lossy().into_owned()).collect(),
        started: jiff::Timestamp::now().to_string(),
    }
}

pub(super) fn guide(ctx: &Context) -> Guide {
    match ctx.config.guide {
        GuideChoice::All => Guide::All,
        GuideChoice::States => Guide::States,
        GuideChoice::Nothing => Guide::Nothing,
    }
}

pub(super) fn bench(kernel: &Kernel, pool: &PoolSpec) -> Bench {
    let about = serde_json::json!({ "id": kernel.id, "source": kernel.source });
    let (known, symbols) = (pool.known.clone(), Symbols::of(kernel));
    Bench { id: kernel.id.clone(), about, known, profile: None, symbols }
}

/// The kernel that checks, as asked for or as the resumed run had it, and whether that makes sense.
fn checking_kernel(
    ctx: &Context,
    fast: &Kernel,
    earlier: Option<&str>,
) -> Result<Option<Kernel>, ExpectedError> {
    let kernel = match (&ctx.config.verify, earlier) {
        (Some(name), _) => ctx.kernel_named(name)?,
        (None, Some(id)) => ctx.kernel_named(id)?,
        (None, None) => return Ok(None),
    };
    if kernel.id == fast.id {
        return Err(ExpectedError::usage(
            format!("--verify {} is the kernel under test itself", kernel.id),
            "name one that sees more: hgm kernel build --source debian:6.1 --preset kasan",
        ));
    }
    let (jobs, verify_jobs) = (ctx.config.jobs, ctx.config.verify_jobs);
    if jobs <= verify_jobs {
        return Err(ExpectedError::usage(
            format!("{jobs} VM(s), {verify_jobs} of them to check: none is left to explore"),
            format!("pass --jobs {} or more", verify_jobs + 1),
        ));
    }
    Ok(Some(kernel))
}

/// Programs in the corpus folder; those of the seeds folder beside us come first in a new run.
pub(super) fn seeds(keeper: &Keeper<'_>) -> Vec<case::Program> {
    let beside = std::path::Path::new("corpus/seeds");
    let mut all: Vec<case::Program> = match Corpus::view(beside) {
        Ok(corpus) => corpus.programs().map(|(_, program)| program).collect(),
        // Not started inside a checkout: there are no seeds to be had.
        Err(_) => Vec::new(),
    };
    all.extend(keeper.programs());
    all
}

pub(super) fn clock_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_nanos() as u64
}

fn report(outcome: &Outcome, ctx: &Context) -> anyhow::Result<Exit> {
    let summary = &outcome.summary;
    if let Some(none) = &outcome.unbooted {
        return Err(ExpectedError::infrastructure(
            format!("no VM ever answered with kernel {}", none.kernel),
            format!("look at {}/vm{}/console.log, and try hgm doctor", summary.run, none.slot),
        )
        .cause(&none.why)
        .into());
    }
    if ctx.json {
        ctx.term.json(&serde_json::to_value(summary)?);
    } else {
        ctx.term.out(&crate::term::clean_str(&summary.text()));
    }
    if unchecked(summary) {
        let (what, help) = ("nothing was verified", "a longer campaign, or hgm fuzz --resume");
        ctx.term.warn(what, help);
    }
    for class in &outcome.missed {
        let what = format!("canary {class} was not found: the detector is blind, results are void");
        ctx.term.note(&format!("{}: {what}", ctx.term.paint_err(Tone::Bad, "error")));
    }
    Ok(exit(outcome, ctx.config.programs_min))
}

/// Whether a campaign that should check has not.
fn unchecked(summary: &Summary) -> bool {
    let verify = summary.verify.as_ref();
    verify.is_some_and(|v| v.verified == 0 && v.skipped == 0 && summary.programs > 0)
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
        _ if unconfirmed > 0 || unchecked(&outcome.summary) => Exit::Inconclusive,
        _ => Exit::Clean,
    }
}
