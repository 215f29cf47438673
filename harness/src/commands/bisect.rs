//! `hgm bisect`: which commit brought a finding. git says which commit is next, each is built,
//! booted and given the program to replay. Everything lies in a run folder, verdicts in its
//! journal, so that a call after any end goes on; the user's tree is only read.

use crate::cli::BisectArgs;
use crate::commands::{build, repro};
use crate::context::Context;
use crate::exit::{Exit, ExpectedError};
use crate::guest;
use crate::pool::{Cradle, Event, Order, Pool, Replay, Replayed};
use crate::repo::{Next, Repo, Verdict, commit};
use crate::signals::Signals;
use crate::term::{Tone, clean_str};
use case::Program;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;
use store::{Journal, RunDir, Runs};
use vmimages::Kernel;

/// What is bisected, in the run folder.
const FILE: &str = "bisect.json";
/// Kind of the journal's events, one a verdict.
const EVENT: &str = "bisect";
/// Output of --build, one command after the other.
const LOG: &str = "build.log";
/// Name of the kernel in the run folder; each build of it takes the place of the one before.
const KERNEL: &str = "bisect";
/// Bytes of --build's output that are looked at for its last line.
const ANSWER_BYTES: u64 = 64 << 10;
/// Between looks at whether the user says stop.
const LOOK: Duration = Duration::from_millis(100);
/// Chance to miss a fault in all replays of a commit, beyond which a word is due.
const MISSED: f64 = 0.05;

/// Everything that makes two calls the same bisection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Task {
    tree: PathBuf,
    good: String,
    bad: String,
    /// Id of the program.
    program: String,
    /// What must show; `None`: what the bad end shows.
    signature: Option<String>,
    build: Option<String>,
    preset: String,
    times: u32,
}

/// A task and how far it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct State {
    task: Task,
    ended: bool,
}

/// A verdict, as the journal has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Step {
    commit: String,
    verdict: Verdict,
    shown: u32,
    tried: u32,
    /// What showed, of the bad end.
    signature: Option<String>,
    /// Why it was skipped.
    why: Option<String>,
}

/// Why a commit has no verdict: it cannot be tried, or nothing can.
enum Stop {
    Skip(String),
    Ended(ExpectedError),
}

impl From<ExpectedError> for Stop {
    fn from(error: ExpectedError) -> Stop {
        Stop::Ended(error)
    }
}

pub fn run(args: &BisectArgs, ctx: &Context) -> anyhow::Result<Exit> {
    let signals = Signals::watch()?;
    let (program, finding, _) = repro::target(&args.target, ctx)?;
    let missing = |error: std::io::Error| {
        let what = format!("no tree {}", args.tree.display());
        ExpectedError::config(what, "name the top folder of a kernel's git tree").cause(error)
    };
    let tree = args.tree.canonicalize().map_err(missing)?;
    let task = Task {
        good: commit(&tree, &args.good)?,
        bad: commit(&tree, &args.bad)?,
        tree,
        program: case::wire::program_id(&program),
        signature: args.signature.clone().or(finding.map(|finding| finding.signature)),
        build: args.build.clone(),
        preset: format!("{:?}", args.preset),
        times: args.times,
    };
    let (run, resumed) = open(&task, ctx)?;
    let journal = run.journal()?;
    let steps = verdicts(&journal)?;
    let again = if resumed { format!(", {} verdicts kept", steps.len()) } else { String::new() };
    ctx.term.note(&format!("run {}{again}", run.id));
    let repo = Repo::open(&run.path.join("tree"), &task.tree)?;
    let mut bench = Bench { args, ctx, signals, task, program, run, journal, repo, steps };
    let ended = bench.walk();
    if let Some(code) = bench.signals.code() {
        let exit = if code == 143 { Exit::Terminated } else { Exit::Interrupted };
        let what = format!("stopped after {} verdict(s)", bench.steps.len());
        return Err(ExpectedError::new(exit, what, "the same command goes on").into());
    }
    let next = ended?;
    bench.close()?;
    bench.report(&next)
}

/// The run of an earlier call of this task that did not end, or a new one.
fn open(task: &Task, ctx: &Context) -> anyhow::Result<(RunDir, bool)> {
    let runs = Runs::of(&ctx.home);
    for run in runs.list()?.into_iter().rev() {
        let state = std::fs::read(run.path.join(FILE)).unwrap_or_default();
        let Ok(state) = serde_json::from_slice::<State>(&state) else { continue };
        if state.task == *task && !state.ended {
            return Ok((runs.resume(&run.id)?, true));
        }
    }
    let run = runs.create(0)?;
    save(&run, task, false)?;
    Ok((run, false))
}

fn save(run: &RunDir, task: &Task, ended: bool) -> anyhow::Result<()> {
    let state = State { task: task.clone(), ended };
    Ok(run.save(FILE, &serde_json::to_vec_pretty(&state)?)?)
}

fn verdicts(journal: &Journal) -> anyhow::Result<Vec<Step>> {
    let events = journal.events(0)?.into_iter().filter(|event| event.kind == EVENT);
    Ok(events.filter_map(|event| serde_json::from_value(event.body).ok()).collect())
}

struct Bench<'a> {
    args: &'a BisectArgs,
    ctx: &'a Context,
    signals: Signals,
    task: Task,
    program: Program,
    run: RunDir,
    journal: Journal,
    repo: Repo,
    /// Verdicts so far, in order; those of the ends among them.
    steps: Vec<Step>,
}

impl Bench<'_> {
    /// From commit to commit until git knows.
    fn walk(&mut self) -> anyhow::Result<Next> {
        let (good, bad) = (self.task.good.clone(), self.task.bad.clone());
        // The bad end first: it says what must show.
        self.end(&bad, Verdict::Bad)?;
        self.end(&good, Verdict::Good)?;
        let inner = self.steps.iter().filter(|step| step.commit != good && step.commit != bad);
        let known: Vec<_> = inner.map(|step| (step.commit.clone(), step.verdict)).collect();
        let mut next = self.repo.bisect(&good, &bad, &known)?;
        let about = self.repo.steps(&good, &bad)?;
        self.ctx.term.note(&format!("about {about} steps, {} done", known.len()));
        while let Next::Try(commit) = &next {
            let commit = commit.clone();
            let verdict = self.judge(&commit)?;
            next = self.repo.tell(&commit, verdict)?;
        }
        Ok(next)
    }

    /// An end that is not as the user says makes all else worthless.
    fn end(&mut self, commit: &str, wanted: Verdict) -> anyhow::Result<()> {
        let known = self.steps.iter().find(|step| step.commit == commit).map(|step| step.verdict);
        let verdict = match known {
            Some(verdict @ (Verdict::Good | Verdict::Bad)) => verdict,
            _ => self.judge(commit)?,
        };
        if verdict == wanted {
            return Ok(());
        }
        let name = wanted.name();
        let what = format!("the --{name} end {} is {}", short(commit), said(verdict));
        let why = self.steps.last().and_then(|step| step.why.clone());
        let help = match (verdict, wanted) {
            (Verdict::Skip, _) => "name another commit, or mend what keeps it from being tried",
            (_, Verdict::Bad) => "raise --times if it shows seldom, or name another --bad",
            _ => "name an older --good; hgm repro tells whether it is the same fault",
        };
        let error = ExpectedError::config(what, help);
        Err(why.into_iter().fold(error, ExpectedError::cause).into())
    }

    /// Builds, boots, replays, and puts the verdict down.
    fn judge(&mut self, commit: &str) -> anyhow::Result<Verdict> {
        let about = self.repo.describe(commit)?;
        self.ctx.term.note(&clean_str(&format!("trying {about}")));
        let seen = match self.build(commit).and_then(|(kernel, own)| self.replay(&kernel, own)) {
            Ok(seen) => Ok(seen),
            Err(Stop::Skip(why)) => Err(why),
            Err(Stop::Ended(error)) => return Err(error.into()),
        };
        let step = self.step(commit, seen);
        let (verdict, why) = (step.verdict, step.why.clone());
        let mut text =
            format!("{} {}: {} of {}", verdict.name(), short(commit), step.shown, step.tried);
        why.iter().for_each(|why| text.push_str(&format!("; {why}")));
        self.ctx.term.note(&clean_str(&text));
        self.journal.event(EVENT, &serde_json::to_value(&step)?)?;
        self.steps.push(step);
        Ok(verdict)
    }

    /// Shown once is bad; good takes all replays.
    fn step(&self, commit: &str, seen: Result<Replayed, String>) -> Step {
        let mut step = Step {
            commit: commit.to_owned(),
            verdict: Verdict::Skip,
            shown: 0,
            tried: 0,
            signature: None,
            why: None,
        };
        let seen = match seen {
            Ok(seen) => seen,
            Err(why) => return Step { why: Some(why), ..step },
        };
        (step.shown, step.tried) = (seen.shown, seen.tried);
        step.signature = seen.evidence.map(|evidence| evidence.signature);
        match (seen.shown, seen.tried) {
            (1.., _) => step.verdict = Verdict::Bad,
            (0, tried) if tried >= self.task.times && !seen.lacking => {
                step.verdict = Verdict::Good;
            }
            (0, _) if seen.lacking => {
                step.why = Some("this kernel lacks what an op needs".into());
            }
            _ => step.why = Some(seen.void.unwrap_or_else(|| "too few replays".into())),
        }
        step
    }

    /// The kernel of a commit, and whether it is of this run alone.
    fn build(&self, commit: &str) -> Result<(Kernel, bool), Stop> {
        self.repo.check_out(commit)?;
        let home = self.run.path.join("home");
        let Some(command) = &self.task.build else {
            let built = build::tree(
                &home,
                self.repo.dir(),
                self.args.preset,
                KERNEL,
                &self.signals,
                self.ctx,
            );
            return match built {
                Ok(kernel) => Ok((kernel, true)),
                // The commit's fault; a full disk or a missing compiler is nobody's.
                Err(error) if error.exit == Exit::KernelBuild => Err(Stop::Skip(brief(&error))),
                Err(error) => Err(error.into()),
            };
        };
        let answer = self.ask(command, commit)?;
        let path = self.repo.dir().join(&answer);
        let mut say = |_: &str| ();
        let added = match (path.is_dir(), path.is_file()) {
            (true, _) => vmimages::add_tree(&home, &path, &mut say),
            (_, true) => vmimages::add(&home, &path.to_string_lossy(), None, &mut say),
            _ => return Ok((self.ctx.kernel_named(&answer)?, false)),
        };
        added.map(|kernel| (kernel, true)).map_err(|error| Stop::Ended(error.into()))
    }

    /// Runs --build; the last line it prints.
    fn ask(&self, command: &str, commit: &str) -> Result<String, Stop> {
        let log = self.run.path.join(LOG);
        let failed = |error: std::io::Error| {
            let what = format!("cannot run --build `{command}`");
            ExpectedError::infrastructure(what, format!("see {}", log.display())).cause(error)
        };
        let errors = File::options().create(true).append(true).open(&log).map_err(failed)?;
        let mut answer = tempfile::tempfile().map_err(failed)?;
        let mut child = Command::new("sh")
            .args(["-c", command])
            .current_dir(self.repo.dir())
            .env("HGM_COMMIT", commit)
            .stdin(Stdio::null())
            .stdout(answer.try_clone().map_err(failed)?)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let status = loop {
            if let Some(status) = child.try_wait().map_err(failed)? {
                break status;
            }
            if self.signals.count() > 0 {
                let group = Pid::from_raw(child.id() as i32);
                let _ = killpg(group, Signal::SIGKILL);
                let _ = child.wait();
                return Err(Stop::Skip("stopped".into()));
            }
            std::thread::sleep(LOOK);
        };
        if !status.success() {
            return Err(Stop::Skip(format!("--build: {status}, see {}", log.display())));
        }
        let text = last_bytes(&mut answer).map_err(failed)?;
        let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty());
        line.map(str::to_owned).ok_or_else(|| {
            let what = format!("--build `{command}` printed nothing");
            let help = "its last line is a bzImage, a tree it was built in, or a kernel's name";
            ExpectedError::config(what, help).into()
        })
    }

    fn replay(&self, kernel: &Kernel, own: bool) -> Result<Replayed, Stop> {
        let failed = |error: std::io::Error| {
            ExpectedError::infrastructure("cannot start a VM", "try hgm doctor").cause(error)
        };
        let dir = tempfile::Builder::new().prefix("hgm-bisect-").tempdir().map_err(failed)?;
        let mut spec = guest::pool_spec(self.ctx, kernel, dir.path())?;
        if own {
            // A kernel of one step: a snapshot would cost more than it saves.
            spec.cradle = Arc::new(Cradle::cold());
        }
        let first = self.steps.iter().find(|step| step.commit == self.task.bad);
        let signature =
            self.task.signature.clone().or_else(|| first.and_then(|step| step.signature.clone()));
        let program = self.program.clone();
        let replay = Replay { key: 0, program, signature, times: self.task.times };
        let pool = Pool::start(&spec, 1).map_err(failed)?;
        pool.order(0, Order::Replay(replay));
        let seen = self.wait(&pool);
        pool.close(Duration::from_secs(5));
        seen
    }

    fn wait(&self, pool: &Pool) -> Result<Replayed, Stop> {
        let mut why = None;
        loop {
            if self.signals.count() > 0 {
                return Err(Stop::Skip("stopped".into()));
            }
            match pool.events.recv_timeout(LOOK) {
                Ok(Event::Replayed(seen)) if seen.tried == 0 => {
                    let void = seen.void.unwrap_or_else(|| "no replay said anything".into());
                    return Err(Stop::Skip(why.unwrap_or(void)));
                }
                Ok(Event::Replayed(seen)) => return Ok(*seen),
                Ok(Event::BootFailed { why: boot, .. }) => {
                    why = Some(format!("does not boot: {boot}"));
                }
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    let what = "the VM thread ended";
                    return Err(ExpectedError::infrastructure(what, "try hgm doctor").into());
                }
            }
        }
    }

    /// Marks the run as ended and gives the room back: kernels and checkout can be made again.
    fn close(&self) -> anyhow::Result<()> {
        save(&self.run, &self.task, true)?;
        for folder in ["home", "tree"] {
            // What cannot be removed is only large.
            let _ = std::fs::remove_dir_all(self.run.path.join(folder));
        }
        Ok(())
    }

    fn report(&self, next: &Next) -> anyhow::Result<Exit> {
        let (found, among) = match next {
            Next::Found(commit) => (Some(commit), Vec::new()),
            Next::Among(commits) => (None, commits.clone()),
            Next::Try(_) => (None, Vec::new()),
        };
        let tree = &self.task.tree;
        let about = |commit: &str| crate::repo::describe(tree, commit).unwrap_or_default();
        let exit = if found.is_some() { Exit::Clean } else { Exit::Inconclusive };
        let first = self.steps.iter().find(|step| step.commit == self.task.bad);
        let rate = first.map_or((0, 0), |step| (step.shown, step.tried));
        if self.ctx.json {
            self.ctx.term.json(&serde_json::json!({
                "first_bad": found,
                "about": found.map(|commit| about(commit)),
                "among": among,
                "good": self.task.good,
                "bad": self.task.bad,
                "signature": first.and_then(|step| step.signature.as_ref()),
                "steps": self.steps,
                "run": self.run.path,
                "exit": exit.code(),
            }));
            return Ok(exit);
        }
        match found {
            Some(commit) => {
                let word = self.ctx.term.paint(Tone::Bad, "first bad commit");
                self.ctx.term.line(&format!("{word}: {commit}"));
                self.ctx.term.line(&clean_str(&format!("  {}", about(commit))));
            }
            None => {
                self.ctx.term.line("only commits that cannot be tried are left; one of these:");
                among
                    .iter()
                    .for_each(|c| self.ctx.term.line(&clean_str(&format!("  {}", about(c)))));
            }
        }
        if often_missed(rate, self.task.times) {
            let what = format!("the bad end showed it {} of {} times only", rate.0, rate.1);
            self.ctx.term.warn(&what, "a commit called good may be bad: raise --times");
        }
        Ok(exit)
    }
}

/// Whether a fault of this rate stays unseen in so many replays too often.
fn often_missed((shown, tried): (u32, u32), times: u32) -> bool {
    let rate = f64::from(shown) / f64::from(tried.max(1));
    (1.0 - rate).powf(f64::from(times)) > MISSED
}

fn last_bytes(file: &mut File) -> std::io::Result<String> {
    let end = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(end.saturating_sub(ANSWER_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(ANSWER_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// An error in one line.
fn brief(error: &ExpectedError) -> String {
    let cause = error.cause.as_deref().and_then(|cause| cause.lines().next());
    cause.map_or(error.message.clone(), |cause| format!("{}: {cause}", error.message))
}

fn short(commit: &str) -> &str {
    commit.get(..12).unwrap_or(commit)
}

fn said(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Good => "good: it does not show there",
        Verdict::Bad => "bad: it shows there",
        Verdict::Skip => "not to be tried",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rare_fault_needs_many_replays() {
        assert!(!often_missed((10, 10), 1));
        assert!(often_missed((1, 10), 10));
        assert!(!often_missed((1, 10), 40));
        assert!(often_missed((0, 10), 40));
    }
}
