//! Replays on the machines that work at a hub: several questions, whose answers are added up.

use crate::context::Context;
use crate::exit::{Exit, ExpectedError};
use crate::signals::Signals;
use crate::term::{Tone, clean_str};
use crate::work::asker::Asker;
use crate::work::{Question, Reply};
use case::Program;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use vmimages::Kernel;

/// Replays asked for in one question: each has a VM of its own.
const TOGETHER: u32 = 5;
/// Times a question is asked again whose VM died of something else.
const RETRIES: u32 = 2;

/// What all answers come to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sum {
    shown: u32,
    tried: u32,
    signature: Option<String>,
    others: BTreeSet<String>,
    void: Option<String>,
    machines: BTreeSet<String>,
}

impl Sum {
    /// Adds an answer to a question for `times` replays. False: it may be worth another try.
    fn add(&mut self, machine: String, times: u32, reply: Reply) -> bool {
        self.machines.insert(machine);
        match reply {
            Reply::Verify { signature, shown, tried, others, void }
                if tried <= times && shown <= tried =>
            {
                self.shown += shown;
                self.tried += tried;
                if shown > 0 {
                    self.signature = self.signature.take().or(signature);
                }
                self.others.extend(others);
                self.void = void.or(self.void.take());
            }
            Reply::Void { why, again, .. } => {
                self.void = Some(why);
                return !again;
            }
            Reply::Verify { .. } | Reply::Regress { .. } | Reply::Skipped { .. } => {
                self.void = Some("an answer that cannot be".into());
            }
        }
        true
    }
}

/// What is under embargo stays on this machine.
pub fn may_leave(
    embargo: bool,
    signature: Option<&str>,
    withheld: &BTreeSet<String>,
) -> Result<(), ExpectedError> {
    if embargo || signature.is_some_and(|signature| withheld.contains(signature)) {
        let what = "this finding is under embargo and does not leave this machine";
        return Err(ExpectedError::usage(what, "replay it here: leave out --hub"));
    }
    Ok(())
}

pub fn run(
    program: &Program,
    signature: Option<String>,
    times: u32,
    kernel: &Kernel,
    (ctx, signals): (&Context, &Signals),
) -> anyhow::Result<Exit> {
    let mut asker = Asker::new(ctx, kernel)?;
    let mut sum = Sum::default();
    let ended = replay(program, &signature, times, &mut asker, &mut sum, (ctx, signals));
    asker.end();
    ended?;
    if let Some(code) = signals.code() {
        return Ok(if code == 143 { Exit::Terminated } else { Exit::Interrupted });
    }
    sum.signature = signature.or(sum.signature);
    Ok(report(&sum, times, kernel, ctx))
}

fn replay(
    program: &Program,
    signature: &Option<String>,
    times: u32,
    asker: &mut Asker,
    sum: &mut Sum,
    (ctx, signals): (&Context, &Signals),
) -> Result<(), ExpectedError> {
    let text = case::text::print_bare(program);
    // Names of the questions that are open: how many replays each is for, and how often it was asked.
    let mut open: BTreeMap<String, (u32, u32)> = BTreeMap::new();
    let ask = |times: u32, retries: u32, open: &mut BTreeMap<_, _>, asker: &mut Asker| {
        let (program_text, signature) = (text.clone(), signature.clone());
        let question = Question::Verify { program: program_text, signature, times };
        let name = asker.ask(program, &question).ok_or_else(|| {
            ExpectedError::config("the program is too large for a hub", "replay it without --hub")
        })?;
        open.insert(name, (times, retries));
        Ok::<(), ExpectedError>(())
    };
    let mut left = times;
    while left > 0 {
        let some = left.min(TOGETHER);
        ask(some, 0, &mut open, asker)?;
        left -= some;
    }
    while !open.is_empty() && signals.count() == 0 {
        for (name, answer) in asker.answers(ctx)? {
            let Some((times, retries)) = open.remove(&name) else { continue };
            if !sum.add(answer.machine, times, answer.reply) && retries < RETRIES {
                ask(times, retries + 1, &mut open, asker)?;
            }
        }
    }
    Ok(())
}

fn report(sum: &Sum, asked: u32, kernel: &Kernel, ctx: &Context) -> Exit {
    let exit = match (sum.shown, sum.tried) {
        (0, 0) => Exit::Inconclusive,
        (0, _) => Exit::Clean,
        _ => Exit::Finding,
    };
    if ctx.json {
        ctx.term.json(&json!({
            "kernel": kernel.id,
            "signature": sum.signature,
            "shown": sum.shown,
            "tried": sum.tried,
            "asked": asked,
            "others": sum.others,
            "inconclusive": sum.void,
            "machines": sum.machines,
        }));
        return exit;
    }
    let tone = if sum.shown > 0 { Tone::Bad } else { Tone::Good };
    let count = ctx.term.paint(tone, &format!("{} of {}", sum.shown, sum.tried));
    let what = sum.signature.as_deref().map(|s| format!("  {s}")).unwrap_or_default();
    let by = sum.machines.len();
    ctx.term.line(&format!("shown {count}{}  by {by} machine(s)", clean_str(&what)));
    for other in &sum.others {
        ctx.term.line(&clean_str(&format!("  also showed: {other}")));
    }
    if let Some(why) = &sum.void {
        ctx.term.line(&clean_str(&format!("  some replays said nothing: {why}")));
    }
    exit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_embargo_stays_here() {
        let withheld = BTreeSet::from(["secret".to_owned()]);
        assert!(may_leave(false, Some("known to all"), &withheld).is_ok());
        assert!(may_leave(false, None, &withheld).is_ok());
        assert!(may_leave(true, None, &withheld).is_err());
        assert!(may_leave(false, Some("secret"), &withheld).is_err());
    }

    #[test]
    fn answers_add_up_and_those_that_cannot_be_do_not_count() {
        let verify = |shown, tried| Reply::Verify {
            signature: Some("s".into()),
            shown,
            tried,
            others: vec!["other".into()],
            void: None,
        };
        let void = |again| Reply::Void { why: "gone".into(), again, family: None };
        let mut sum = Sum::default();
        assert!(sum.add("a".into(), 5, verify(2, 5)));
        assert!(sum.add("b".into(), 5, verify(0, 4)));
        assert_eq!((sum.shown, sum.tried, sum.void.clone()), (2, 9, None));
        for reply in [verify(6, 6), verify(3, 2), Reply::Skipped { family: "U61".into() }] {
            assert!(sum.add("liar".into(), 5, reply));
            assert_eq!((sum.shown, sum.tried), (2, 9));
        }
        assert!(!sum.add("a".into(), 5, void(true)) && sum.add("a".into(), 5, void(false)));
        assert_eq!(sum.void.as_deref(), Some("gone"));
        assert_eq!((sum.machines.len(), sum.others.len()), (3, 1));
    }
}
