//! Replays on the machines that work at a hub.

use crate::context::Context;
use crate::exit::{Exit, ExpectedError};
use crate::signals::Signals;
use crate::term::{Tone, clean_str};
use crate::work::asker::Asker;
use crate::work::replays::{Replays, Sum};
use case::Program;
use serde_json::json;
use std::collections::BTreeSet;
use vmimages::Kernel;

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
    let mut replays = Replays::new(Asker::new(ctx, kernel)?);
    let sum = replay(program, &signature, times, &mut replays, (ctx, signals));
    replays.end();
    let mut sum = sum?;
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
    replays: &mut Replays,
    (ctx, signals): (&Context, &Signals),
) -> Result<Sum, ExpectedError> {
    replays.ask(0, program, signature.clone(), times)?;
    while signals.count() == 0 {
        if let Some((_, sum)) = replays.done(ctx)?.pop() {
            return Ok(sum);
        }
    }
    Ok(Sum::default())
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
}
