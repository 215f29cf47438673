//! `hgm doctor`.

use crate::cli::DoctorArgs;
use crate::context::Context;
use crate::doctor::{self, CHECKS, Check, State};
use crate::exit::{Exit, ExpectedError, nearest};
use crate::term::{Tone, clean_str};
use serde_json::json;

/// Prints the table; 75 if a check failed.
pub fn run(args: &DoctorArgs, ctx: &Context) -> anyhow::Result<Exit> {
    let names = || CHECKS.iter().map(|(name, _)| *name);
    if let Some(word) = args.skip.iter().find(|word| !names().any(|name| name == *word)) {
        let help = match nearest(word, names()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("checks: {}", names().collect::<Vec<_>>().join(", ")),
        };
        return Err(ExpectedError::usage(format!("no check `{word}`"), help).into());
    }
    let checks = doctor::examine(ctx, &args.skip);
    let failed = checks.iter().filter(|check| check.state == State::Fail).count();
    if ctx.json {
        let rows: Vec<_> = checks
            .iter()
            .map(|c| {
                json!({ "name": c.name, "state": c.state.name(), "detail": c.detail,
                             "fix": (!c.fix.is_empty()).then_some(&c.fix) })
            })
            .collect();
        ctx.term.json(&json!({ "ok": failed == 0, "checks": rows }));
    } else {
        for check in &checks {
            ctx.term.out(&lines(check, ctx));
        }
        ctx.term.line(&match failed {
            0 => "\nready".to_owned(),
            count => format!("\n{count} check(s) failed"),
        });
    }
    Ok(if failed == 0 { Exit::Clean } else { Exit::Infrastructure })
}

fn lines(check: &Check, ctx: &Context) -> String {
    let tone = match check.state {
        State::Ok => Tone::Good,
        State::Warn => Tone::Warn,
        State::Fail => Tone::Bad,
    };
    let state = ctx.term.paint(tone, &format!("{:<4}", check.state.name()));
    let mut text = format!("{state}  {:<10}  {}\n", check.name, clean_str(&check.detail));
    if !check.fix.is_empty() {
        text.push_str(&format!("{:18}fix: {}\n", "", clean_str(&check.fix)));
    }
    text
}
