//! `hgm shrink ID|FILE`: the smallest program that shows the same, tried in VMs side by side. What
//! shows another signature is said and never taken. Which edits there are is the generators' business.

mod place;

use crate::cli::ShrinkArgs;
use crate::commands::report::gather;
use crate::commands::repro;
use crate::context::Context;
use crate::exit::{Exit, ExpectedError};
use crate::guest;
use crate::pool::{Pool, Replay};
use crate::signals::Signals;
use crate::term::{Tone, clean_str};
use crate::triage;
use crate::work::replays::Sum;
use case::Program;
use case::text::print;
use generators::{Shrinker, Try};
use place::{Here, Place, There};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Replays of one try, at most.
const TRY_TIMES_MAX: u32 = 20;
/// Chance that a try that shows it is missed.
const MISSED: f64 = 0.05;
/// Steps back from a program that shows it too seldom, at most.
const STEPS_BACK: usize = 8;

/// Key of replays that are no try: tries have the numbers the shrinker gives them.
const FIRST: u64 = u64::MAX;

/// How often something showed: k of n.
type Rate = (u32, u32);

/// Who replays, for how long.
struct Shop<'a> {
    place: Box<dyn Place>,
    ctx: &'a Context,
    signals: Signals,
    end: Option<Instant>,
}

/// What the work has come to.
struct Work {
    shrinker: Shrinker,
    signature: String,
    times: u32,
    need: u32,
    /// Each program that was the smallest for a time, largest first.
    ladder: Vec<Program>,
    log: Vec<String>,
    others: BTreeSet<String>,
    tries: u32,
    start: Instant,
}

pub fn run(args: &ShrinkArgs, ctx: &Context) -> anyhow::Result<Exit> {
    let signals = Signals::watch()?;
    let (program, finding, folder) = repro::target(&args.target, ctx)?;
    let outputs = Outputs::of(args, folder.as_deref())?;
    let kernel = guest::kernel(ctx, finding.as_ref().map(|f| f.kernel.as_str()))?;
    let embargo = finding.as_ref().is_some_and(|finding| finding.embargo);
    let signature = args.signature.clone().or(finding.map(|f| f.signature));
    let dir = tempfile::Builder::new().prefix("hgm-shrink-").tempdir()?;
    let place: Box<dyn Place> = match &args.hub {
        Some(_) => {
            repro::may_leave(embargo, signature.as_deref(), &gather::embargoed(ctx)?)?;
            Box::new(There::new(ctx, &kernel)?)
        }
        None => {
            let spec = guest::pool_spec(ctx, &kernel, dir.path())?;
            let slots = ctx.config.jobs.max(1) as usize;
            Box::new(Here::new(Pool::start(&spec, slots)?, slots))
        }
    };
    let end = args.limit().map(|limit| Instant::now() + limit);
    let mut shop = Shop { place, ctx, signals, end };
    let ended = shop.shrink(program, signature, args.times);
    let stopped = shop.signals.code();
    shop.place.close();
    let by_signal =
        stopped.map(|code| if code == 143 { Exit::Terminated } else { Exit::Interrupted });
    let Some(ended) = ended? else { return Ok(by_signal.unwrap_or(Exit::Interrupted)) };
    outputs.write(&ended)?;
    ended.report(ctx, &kernel.id, &outputs);
    let exit = if ended.after.0 == 0 { Exit::Inconclusive } else { Exit::Clean };
    Ok(by_signal.unwrap_or(exit))
}

/// What came of it. `before.0` is 0 if there was nothing to shrink.
struct Ended {
    program: Program,
    small: Program,
    signature: Option<String>,
    /// What the small program showed when it was replayed: a hang may come at another op.
    now: Option<String>,
    before: Rate,
    after: Rate,
    log: Vec<String>,
    others: BTreeSet<String>,
    tries: u32,
    took: Duration,
    whole: bool,
}

impl Shop<'_> {
    fn shrink(
        &mut self,
        program: Program,
        signature: Option<String>,
        times: u32,
    ) -> anyhow::Result<Option<Ended>> {
        let start = Instant::now();
        let first =
            Replay { key: FIRST, program: program.clone(), signature: signature.clone(), times };
        let Some(seen) = self.alone(first)? else { return Ok(None) };
        let before = (seen.shown, seen.tried);
        let found = signature.or(seen.signature);
        let (true, Some(signature)) = (before.0 > 0, found.clone()) else {
            let others = seen.others;
            return Ok(Some(Ended::nothing(program, found, before, others, start)));
        };
        let (tries_each, need) = plan(before);
        let mut work = Work {
            shrinker: Shrinker::new(&program),
            signature: signature.clone(),
            times: tries_each,
            need,
            ladder: vec![Program::of(program.steps.clone())],
            log: Vec::new(),
            others: BTreeSet::new(),
            tries: 0,
            start,
        };
        work.say(self.ctx, &format!("{signature}: shown {} of {}", before.0, before.1));
        let whole = self.walk(&mut work)?;
        let (small, after, now) = self.settle(&mut work, before, times)?;
        Ok(Some(Ended {
            program,
            small,
            signature: Some(signature),
            now,
            before,
            after,
            log: work.log,
            others: work.others,
            tries: work.tries,
            took: start.elapsed(),
            whole,
        }))
    }

    /// Tries until nothing is left to try (true), the time is over, or the user says stop.
    fn walk(&mut self, work: &mut Work) -> Result<bool, ExpectedError> {
        let mut out: BTreeMap<u64, Try> = BTreeMap::new();
        loop {
            let over = self.signals.count() > 0 || self.end.is_some_and(|end| Instant::now() > end);
            if over {
                work.say(self.ctx, "stopped before everything was tried");
                return Ok(false);
            }
            while out.len() < self.place.width()
                && let Some(next) = work.shrinker.ask()
            {
                self.place.order(work.replay(&next))?;
                out.insert(next.id, next);
            }
            if out.is_empty() {
                return Ok(true);
            }
            let Some((key, seen)) = self.place.next(self.ctx)? else { continue };
            if let Some(next) = out.remove(&key) {
                work.judge(self.ctx, next, &seen);
            }
        }
    }

    /// The smallest program that shows it about as often as the first one did.
    fn settle(
        &mut self,
        work: &mut Work,
        before: Rate,
        times: u32,
    ) -> Result<(Program, Rate, Option<String>), ExpectedError> {
        let mut last = None;
        for program in work.ladder.clone().into_iter().rev().take(STEPS_BACK) {
            let replay = Replay {
                key: FIRST,
                program: program.clone(),
                signature: Some(work.signature.clone()),
                times,
            };
            // Stopped: the smallest so far, not looked at again.
            let Some(seen) = self.alone(replay)? else { return Ok((program, (0, 0), None)) };
            let after = (seen.shown, seen.tried);
            let now = seen.signature;
            if often_enough(before, after) {
                return Ok((program, after, now));
            }
            let text = format!(
                "{} lines show it {} of {}: one step back",
                program.lines(),
                after.0,
                after.1
            );
            work.say(self.ctx, &text);
            last.get_or_insert((program, after, now));
        }
        Ok(last.unwrap_or_else(|| (work.ladder[0].clone(), (0, 0), None)))
    }

    /// One replay by itself; `None` if the user stopped it.
    fn alone(&mut self, replay: Replay) -> Result<Option<Sum>, ExpectedError> {
        let key = replay.key;
        self.place.order(replay)?;
        loop {
            match self.place.next(self.ctx)? {
                Some((of, seen)) if of == key => return Ok(Some(seen)),
                _ if self.signals.count() > 0 => return Ok(None),
                _ => {}
            }
        }
    }
}

/// How often each try is replayed, and how often it must show, after a first rate of k of n: a
/// program that shows it half as often is still taken, and one that shows it as often is missed one
/// time in twenty.
fn plan((shown, tried): Rate) -> (u32, u32) {
    let rate = f64::from(shown) / f64::from(tried.max(1));
    if rate >= 1.0 {
        return (1, 1);
    }
    let times = (MISSED.ln() / (1.0 - rate).ln()).ceil() as u32;
    let times = times.clamp(2, TRY_TIMES_MAX);
    (times, ((rate * f64::from(times) / 2.0) as u32).max(1))
}

/// Whether a rate is at least half of another.
fn often_enough(before: Rate, after: Rate) -> bool {
    after.0 > 0
        && u64::from(after.0) * u64::from(before.1) * 2 >= u64::from(before.0) * u64::from(after.1)
}

impl Work {
    fn replay(&self, next: &Try) -> Replay {
        Replay {
            key: next.id,
            program: next.program.clone(),
            signature: Some(self.signature.clone()),
            times: self.times,
        }
    }

    fn judge(&mut self, ctx: &Context, next: Try, seen: &Sum) {
        self.tries += 1;
        let now = seen.signature.as_deref();
        let other = now.filter(|now| !triage::may_stand_for(&self.signature, now));
        let shows = seen.shown >= self.need && other.is_none();
        let taken = self.shrinker.tell(next.id, shows);
        let instead: Vec<&str> = seen.others.iter().map(String::as_str).chain(other).collect();
        self.others.extend(instead.iter().map(|&other| other.to_owned()));
        let mut text = format!("{}: {} of {}", next.edit, seen.shown, seen.tried);
        if !instead.is_empty() {
            text.push_str(&format!("; showed {} instead: not taken for it", instead.join(", ")));
        }
        if let Some(why) = &seen.void {
            text.push_str(&format!("; {why}"));
        }
        if taken {
            text.push_str(&format!("; {} lines now", next.program.lines()));
            self.ladder.push(next.program);
            self.say(ctx, &text);
        } else {
            self.keep(&text);
        }
    }

    fn keep(&mut self, text: &str) {
        self.log.push(format!("{:7.1} s  {text}", self.start.elapsed().as_secs_f64()));
    }

    fn say(&mut self, ctx: &Context, text: &str) {
        ctx.term.note(&clean_str(&format!("try {}: {text}", self.tries)));
        self.keep(text);
    }
}

impl Ended {
    fn nothing(
        program: Program,
        signature: Option<String>,
        before: Rate,
        others: BTreeSet<String>,
        start: Instant,
    ) -> Ended {
        let small = program.clone();
        let (log, took) = (Vec::new(), start.elapsed());
        let (after, tries, whole) = ((0, 0), 0, true);
        let now = signature.clone();
        Ended { program, small, signature, now, before, after, log, others, tries, took, whole }
    }

    /// What the small program shows, if it is not to the letter what was to be shrunk.
    fn elsewhere(&self) -> Option<&str> {
        self.now.as_deref().filter(|now| self.signature.as_deref() != Some(now))
    }

    fn report(&self, ctx: &Context, kernel: &str, outputs: &Outputs) {
        if ctx.json {
            let size = |program: &Program| {
                serde_json::json!({
                    "lines": program.lines(),
                    "bytes": print(program).len(),
                })
            };
            ctx.term.json(&serde_json::json!({
                "kernel": kernel,
                "signature": self.signature,
                "before": { "size": size(&self.program), "shown": self.before.0, "tried": self.before.1 },
                "after": {
                    "size": size(&self.small),
                    "signature": self.now,
                    "shown": self.after.0,
                    "tried": self.after.1,
                },
                "tries": self.tries,
                "seconds": self.took.as_secs_f64(),
                "complete": self.whole,
                "others": self.others,
                "program": print(&self.small),
                "written": outputs.program,
            }));
            return;
        }
        let signature = clean_str(self.signature.as_deref().unwrap_or("nothing"));
        if self.before.0 == 0 {
            let what = format!("{signature} showed 0 of {}: nothing to shrink", self.before.1);
            ctx.term.line(&what);
            self.others.iter().for_each(|o| ctx.term.line(&clean_str(&format!("  showed {o}"))));
            return;
        }
        ctx.term.line(&format!("{}  {signature}", ctx.term.paint(Tone::Bad, "shrunk")));
        ctx.term.line(&format!(
            "  {} lines {}  ->  {} lines {}   {} tries, {:.0} s{}",
            self.program.lines(),
            told(self.before),
            self.small.lines(),
            told(self.after),
            self.tries,
            self.took.as_secs_f64(),
            if self.whole { "" } else { ", not everything tried" },
        ));
        if let Some(now) = self.elsewhere() {
            ctx.term.line(&clean_str(&format!("  the small program hangs at another op: {now}")));
        }
        for other in &self.others {
            let what = format!("  smaller programs also showed {other}; see the log");
            ctx.term.line(&clean_str(&what));
        }
        ctx.term.out(&format!("\n{}\n", print(&self.small)));
        if let Some(path) = &outputs.program {
            ctx.term.line(&format!("written to {}, log beside it", path.display()));
        }
    }
}

/// How often a program showed it. One that was the smallest when time was up was not replayed again.
fn told((shown, tried): Rate) -> String {
    match tried {
        0 => "not replayed at the end".into(),
        _ => format!("shown {shown} of {tried}"),
    }
}

/// Where the program and the log go.
struct Outputs {
    program: Option<PathBuf>,
    log: Option<PathBuf>,
}

impl Outputs {
    /// Beside a finding, or where the user said; for a file that is not a finding nowhere else.
    fn of(args: &ShrinkArgs, folder: Option<&Path>) -> Result<Outputs, ExpectedError> {
        let program = match (&args.out, folder) {
            (Some(path), _) => Some(path.clone()),
            (None, Some(folder)) => Some(folder.join("small.hgm")),
            (None, None) => None,
        };
        if let Some(dir) = program.as_deref().and_then(Path::parent)
            && !dir.as_os_str().is_empty()
            && !dir.is_dir()
        {
            let what = format!("{} is no folder", dir.display());
            return Err(ExpectedError::usage(what, "make it first, or name another --out"));
        }
        let log = program.as_ref().map(|path| path.with_extension("log"));
        Ok(Outputs { program, log })
    }

    fn write(&self, ended: &Ended) -> Result<(), ExpectedError> {
        if ended.before.0 == 0 {
            return Ok(());
        }
        let mut small = ended.small.clone();
        let signature = ended.signature.clone().unwrap_or_default();
        small.about = vec![
            match ended.elsewhere() {
                Some(now) => format!("Shows {now}, where {signature} was"),
                None => format!("Shows {signature}"),
            },
            format!(
                "{}; the {} lines it was made from {}.",
                told(ended.after),
                ended.program.lines(),
                told(ended.before)
            ),
        ];
        let log: String = ended.log.iter().map(|line| format!("{line}\n")).collect();
        for (path, text) in [(&self.program, print(&small)), (&self.log, log)] {
            let Some(path) = path else { continue };
            store::write_whole(path, text.as_bytes())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sure_fault_is_tried_once_and_a_rare_one_often() {
        assert_eq!(plan((10, 10)), (1, 1));
        let (times, need) = plan((5, 10));
        assert!((4..=6).contains(&times) && need == 1, "{times} {need}");
        assert_eq!(plan((1, 20)), (TRY_TIMES_MAX, 1));
        let (times, need) = plan((9, 10));
        assert!(times >= 2 && need == 1, "{times} {need}");
    }

    #[test]
    fn half_as_often_is_often_enough() {
        assert!(often_enough((10, 10), (5, 10)));
        assert!(!often_enough((10, 10), (4, 10)));
        assert!(!often_enough((1, 10), (0, 10)));
        assert!(often_enough((1, 10), (1, 10)));
    }
}
