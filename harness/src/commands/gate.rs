//! `hgm gate`: a kernel against its base. Sets up a two-tier campaign whose second tier is the
//! base, and says what came of it. Which finding counts and which evidence is enough is the business
//! of `gate`.

use crate::about;
use crate::campaign::{Campaign, Keeper, Outcome, Plan, Room, Suspect, TierPlan, Unbooted, Versus};
use crate::cli::{GateArgs, Progress as Choice};
use crate::commands::{build, fuzz, regress};
use crate::context::Context;
use crate::coverage;
use crate::exit::{Exit, ExpectedError};
use crate::gate::{Canaries, Evidence, Floor, Functions, Word, sort, verdict};
use crate::guest;
use crate::pool::PoolSpec;
use crate::progress::Progress;
use crate::signals::Signals;
use crate::term::{Tone, clean_str, columns};
use case::Program;
use case::link::Look;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use store::{Journal, Merges, RunDir, Runs};
use vmimages::Kernel;

/// Note in a run's journal: the whole result.
const NOTE: &str = "gate";
/// Programs ahead in the VM of the base: it mostly replays.
const BASE_DEPTH: usize = 4;
/// Part of the budget kept for replays after the last new program, and the most of it.
const REPLAY_PART: u32 = 5;
const REPLAY_MAX: Duration = Duration::from_secs(120);
/// Last lines of a console that are shown of a kernel that does not boot.
const CONSOLE_LINES: usize = 15;
/// Bytes of it that are read.
const CONSOLE_BYTES: usize = 8 << 10;

/// A finding as a gate reports it.
#[derive(Debug, Serialize)]
struct Row {
    word: Word,
    signature: String,
    title: String,
    id: String,
    /// Id of the list entry, for known ones.
    known: Option<String>,
    /// Shown, of replays; `None`: not replayed.
    new: Option<(u32, u32)>,
    base: Option<(u32, u32)>,
    program: PathBuf,
    replay: String,
}

pub fn run(args: &GateArgs, ctx: &Context) -> anyhow::Result<Exit> {
    let signals = Signals::watch()?;
    if ctx.config.confirm_need > ctx.config.confirm_times {
        let (need, times) = (ctx.config.confirm_need, ctx.config.confirm_times);
        let what = format!("{need} of {times} replays can never show anything");
        return Err(ExpectedError::usage(what, "lower --need, or raise --times").into());
    }
    guest::walled(ctx, args.allow_weak_jail)?;
    let focus = focus(args, ctx)?;
    let regressions = regressions(args, ctx)?;
    let base = named(&args.base, ctx)?;
    let new = match (&args.new, &args.new_tree) {
        (Some(name), _) => named(name, ctx)?,
        (None, Some(tree)) => {
            build::tree(&ctx.home, tree, args.preset, &name_of(tree)?, &signals, ctx)?
        }
        (None, None) => return Err(ExpectedError::usage("no new kernel", "pass --new").into()),
    };
    let start = Instant::now();
    let seed = args.seed.unwrap_or_else(fuzz::clock_seed);
    let run = Runs::of(&ctx.home).create(seed)?;
    if !ctx.json {
        let text = format!("run {}  base {}  new {}  seed {seed}", run.id, base.id, new.id);
        ctx.term.note(&text);
    }
    let shop = Shop { args, ctx, base: &base, new: &new, signals: &signals };
    let versus = Versus {
        need: ctx.config.confirm_need,
        keep_going: args.keep_going,
        regressions: regressions.len(),
    };
    let (mut plan, keeper) = shop.plan(run, seed, &focus, regressions, versus)?;
    let left = args.budget().saturating_sub(start.elapsed());
    plan.grace = (args.budget() / REPLAY_PART).min(REPLAY_MAX);
    plan.duration = Some(left.saturating_sub(plan.grace));
    let choice =
        if ctx.json && args.progress == Choice::Auto { Choice::Lines } else { args.progress };
    let slots = plan.tiers.iter().map(|tier| tier.slots).sum();
    let progress = Progress::new(&ctx.term, choice, slots);
    let outcome = Campaign::start(plan, keeper, Vec::new(), progress, &signals)?.run()?;
    let ended = shop.report(&outcome, versus, !focus.is_empty(), start.elapsed());
    fuzz::keep_exit(Path::new(&outcome.summary.run), &ended);
    ended
}

/// A registered kernel; one of Debian's is fetched if it is not there.
fn named(word: &str, ctx: &Context) -> Result<Kernel, ExpectedError> {
    match ctx.kernel_named(word) {
        Err(_) if word.starts_with("debian:") => {
            let mut say = |line: &str| ctx.term.note(&clean_str(line));
            Ok(vmimages::add(&ctx.home, word, None, &mut say)?)
        }
        other => other,
    }
}

/// The name a tree's kernel is registered under: the same for the same tree, so that the next gate
/// compiles only what changed.
fn name_of(tree: &Path) -> Result<String, ExpectedError> {
    let full = tree.canonicalize().map_err(|error| {
        let what = format!("no tree {}", tree.display());
        ExpectedError::config(what, "name the top folder of a kernel tree").cause(error)
    })?;
    let hash = blake3::hash(full.as_os_str().as_encoded_bytes()).to_hex();
    Ok(format!("gate-{}", &hash.as_str()[..8]))
}

/// The patch, if code it changes can be counted.
fn focus(args: &GateArgs, ctx: &Context) -> Result<Vec<String>, ExpectedError> {
    let Some(patch) = &args.patch else { return Ok(Vec::new()) };
    if coverage::touches(patch)? {
        return Ok(vec![patch.display().to_string()]);
    }
    let what = format!("{} changes no file whose coverage counts", patch.display());
    ctx.term.warn(&clean_str(&what), "the gate fuzzes everything instead");
    Ok(Vec::new())
}

fn regressions(args: &GateArgs, ctx: &Context) -> Result<Vec<Program>, ExpectedError> {
    match &args.regressions {
        Some(dir) => regress::programs(dir),
        None if Path::new(regress::DEFAULT_DIR).is_dir() => {
            regress::programs(Path::new(regress::DEFAULT_DIR))
        }
        None => {
            let help = "pass --regressions DIR, or start it in a checkout";
            ctx.term.warn(&format!("no {} here: none is run", regress::DEFAULT_DIR), help);
            Ok(Vec::new())
        }
    }
}

/// What a gate is about.
struct Shop<'a> {
    args: &'a GateArgs,
    ctx: &'a Context,
    base: &'a Kernel,
    new: &'a Kernel,
    signals: &'a Signals,
}

impl<'a> Shop<'a> {
    fn plan(
        &self,
        run: RunDir,
        seed: u64,
        focus: &[String],
        regressions: Vec<Program>,
        versus: Versus,
    ) -> anyhow::Result<(Plan, Keeper<'a>)> {
        let Shop { args, ctx, base, new, signals } = self;
        let mut pool = self.pool(new, &run)?;
        let say = |line: &str| ctx.term.note(&clean_str(line));
        let book = coverage::set_up(ctx, new, &mut pool, focus, &say)?;
        let mut base_pool = self.pool(base, &run)?;
        base_pool.depth = base_pool.depth.min(BASE_DEPTH);
        let benches = vec![fuzz::bench(new, &pool), fuzz::bench(base, &base_pool)];
        let corpus = ctx.config.corpus.clone().unwrap_or_else(|| run.path.join("corpus"));
        let room = Room { term: &ctx.term, signals };
        let mut keeper = Keeper::open(run, &fuzz::meta(ctx, new, seed), &corpus, benches, room)?;
        keeper.note("base", &base.id)?;
        for (note, value) in about::notes(ctx, new, &pool.vm) {
            keeper.note(note, &value.to_string())?;
        }
        let slots = (ctx.config.jobs as usize).saturating_sub(1).max(1);
        let tier =
            |kernel: &Kernel, pool, slots| TierPlan { kernel: kernel.id.clone(), pool, slots };
        let mut seeds = regressions;
        seeds.extend(fuzz::seeds(&keeper));
        let plan = Plan {
            tiers: vec![tier(new, pool, slots), tier(base, base_pool, 1)],
            seed,
            duration: None,
            programs: args.programs,
            until_finding: false,
            canary_every: ctx.config.canaries.then_some(ctx.config.canary_every),
            confirm_times: ctx.config.confirm_times,
            grace: Duration::ZERO,
            versus: Some(versus),
            seeds,
            guide: fuzz::guide(ctx),
            book,
            merges: Merges::of(&ctx.home)?,
            checkpoint: None,
            fleet: None,
        };
        Ok((plan, keeper))
    }

    fn pool(&self, kernel: &Kernel, run: &RunDir) -> Result<PoolSpec, ExpectedError> {
        let mut pool = guest::pool_spec(self.ctx, kernel, &run.path)?;
        // Regressions are about the op after which something shows.
        pool.look = Look::Each;
        Ok(pool)
    }

    fn report(
        &self,
        outcome: &Outcome,
        versus: Versus,
        focused: bool,
        took: Duration,
    ) -> anyhow::Result<Exit> {
        if let Some(unbooted) = &outcome.unbooted {
            return Err(self.no_boot(outcome, unbooted).into());
        }
        let run = Path::new(&outcome.summary.run);
        let times = self.ctx.config.confirm_times;
        let mut rows: Vec<Row> =
            outcome.suspects.values().map(|s| row(s, run, versus.need, times)).collect();
        rows.sort_by(|a, b| (a.word, &a.signature).cmp(&(b.word, &b.signature)));
        let evidence = evidence(outcome, versus, focused);
        let config = &self.ctx.config;
        let floor = Floor { programs: config.programs_min, states: config.states_min };
        let lacks = evidence.lacks(floor);
        let words: Vec<Word> = rows.iter().map(|row| row.word).collect();
        let (mut exit, word) = verdict(&words, &lacks, &outcome.missed);
        match outcome.signal {
            Some(143) => exit = Exit::Terminated,
            Some(_) => exit = Exit::Interrupted,
            None => {}
        }
        let json = serde_json::json!({
            "verdict": word,
            "exit": exit.code(),
            "base": self.base.id,
            "new": self.new.id,
            "patch": self.args.patch,
            "seconds": took.as_secs_f64(),
            "run": run,
            "evidence": evidence,
            "lacks": lacks,
            "canaries_missed": outcome.missed,
            "findings": rows.iter().filter(|r| r.word == Word::Finding).collect::<Vec<_>>(),
            "notes": rows.iter().filter(|r| r.word != Word::Finding).collect::<Vec<_>>(),
        });
        Journal::open(run)?.set_note(NOTE, &json.to_string())?;
        if self.ctx.json {
            self.ctx.term.json(&json);
        } else {
            let tone = match exit {
                Exit::Clean => Tone::Good,
                Exit::Inconclusive => Tone::Warn,
                _ => Tone::Bad,
            };
            self.table(&rows);
            let head = format!("{} on {} against {}", word, self.new.id, self.base.id);
            self.ctx.term.line(&self.ctx.term.paint(tone, &head));
            self.ctx.term.out(&clean_str(&text(&evidence, &lacks, took)));
            self.ctx.term.line(&format!("run: {}", run.display()));
        }
        for class in &outcome.missed {
            let what = format!("canary {class} was not found: the detector is blind");
            self.ctx.term.warn(&what, "results are void; hgm findings list --all");
        }
        Ok(exit)
    }

    /// The rows of people: what both kernels showed. Known ones are a count.
    fn table(&self, rows: &[Row]) {
        let head = ["", "NEW", "BASE", "SIGNATURE"];
        let mut lines = vec![head.map(String::from).to_vec()];
        let rate = |rate: Option<(u32, u32)>| match rate {
            None => "-".to_owned(),
            Some((_, 0)) => "cannot run".to_owned(),
            Some((shown, tried)) => format!("{shown} of {tried}"),
        };
        for row in rows.iter().filter(|row| row.word != Word::Known) {
            let (new, base) = (rate(row.new), rate(row.base));
            lines.push(vec![said(row.word).into(), new, base, clean_str(&row.signature)]);
        }
        if lines.len() > 1 {
            self.ctx.term.out(&columns(&lines));
        }
        for row in rows.iter().filter(|row| matches!(row.word, Word::Finding | Word::Flaky)) {
            let text = format!("  {}: {}", row.program.display(), row.replay);
            self.ctx.term.line(&clean_str(&text));
        }
    }

    /// A base that does not boot is the host's trouble, a new kernel beside a base that does is
    /// the patch's.
    fn no_boot(&self, outcome: &Outcome, unbooted: &Unbooted) -> ExpectedError {
        let base_is_up = outcome.summary.verify.as_ref().is_some_and(|v| !v.profile.is_empty());
        let new = unbooted.tier == crate::campaign::FAST;
        let dir = Path::new(&outcome.summary.run).join(format!("vm{}", unbooted.slot));
        let log = dir.join("console.log");
        let (exit, what) = match (new, base_is_up) {
            (true, true) => (Exit::KernelBuild, "the new kernel does not boot, and its base does"),
            (true, false) => (Exit::Infrastructure, "neither the new kernel nor its base boots"),
            (false, _) => (Exit::Infrastructure, "the base does not boot"),
        };
        let help = format!("the whole console: {}", log.display());
        let mut cause = unbooted.why.clone();
        for line in tail(&log) {
            cause.push_str(&format!("\n  | {line}"));
        }
        ExpectedError::new(exit, format!("{what}: {}", unbooted.kernel), help).cause(cause)
    }
}

/// The last lines of a console, cleaned.
fn tail(log: &Path) -> Vec<String> {
    let bytes = std::fs::read(log).unwrap_or_default();
    let end = &bytes[bytes.len().saturating_sub(CONSOLE_BYTES)..];
    let text = String::from_utf8_lossy(end).into_owned();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let from = lines.len().saturating_sub(CONSOLE_LINES);
    lines[from..].iter().map(|line| clean_str(line.trim_end())).collect()
}

fn row(suspect: &Suspect, run: &Path, need: u32, times: u32) -> Row {
    let (seen, rates) = (&suspect.sighting, suspect.rates());
    Row {
        word: sort(seen.known.is_some(), rates, need, times),
        signature: seen.signature.clone(),
        title: seen.title.clone(),
        id: suspect.id.clone(),
        known: seen.known.clone(),
        new: rates.new,
        base: rates.base,
        program: run.join(RunDir::FINDINGS).join(&suspect.id).join("program.hgm"),
        replay: format!("hgm repro {}", suspect.id),
    }
}

fn evidence(outcome: &Outcome, versus: Versus, focused: bool) -> Evidence {
    let summary = &outcome.summary;
    let there = versus.regressions as u64;
    let verify = summary.verify.as_ref();
    let functions = summary.coverage.as_ref().filter(|_| focused).map(|figures| Functions {
        reached: figures.focus_reached.clone(),
        not_reached: figures.focus_not_reached.clone(),
    });
    let (found, planted) = (summary.canaries.found, summary.canaries.planted);
    Evidence {
        programs: summary.programs,
        states: summary.states as u64,
        regressions: (there.saturating_sub(outcome.regressions_left as u64), there),
        regressions_on_base: verify.map_or(0, |v| v.verified + v.skipped + v.inconclusive),
        canaries: Canaries { found, planted },
        functions,
    }
}

/// The word of a row for people.
fn said(word: Word) -> &'static str {
    match word {
        Word::Finding => "FINDING",
        Word::Flaky => "flaky",
        Word::Open => "not replayed",
        Word::BaseToo => "base too",
        Word::BaseOnly => "base only",
        Word::Vanished => "never again",
        Word::Known => "known",
    }
}

/// The evidence for people.
fn text(evidence: &Evidence, lacks: &[String], took: Duration) -> String {
    let (run, there) = evidence.regressions;
    let mut out = format!(
        "evidence: {} programs in {:.0} s, {} mapping states, regressions {run} of {there} (on the \
         base {}), canaries {} of {}\n",
        evidence.programs,
        took.as_secs_f64(),
        evidence.states,
        evidence.regressions_on_base,
        evidence.canaries.found,
        evidence.canaries.planted,
    );
    if let Some(Functions { reached, not_reached }) = &evidence.functions {
        let all = reached.len() + not_reached.len();
        out.push_str(&format!("changed functions reached: {} of {all}\n", reached.len()));
        if !not_reached.is_empty() {
            out.push_str(&format!("  not reached: {}\n", not_reached.join(", ")));
        }
    }
    for lack in lacks {
        out.push_str(&format!("too little: {lack}\n"));
    }
    out
}
