//! `hgm work`: does what other machines ask for at a hub, until it is told to stop.

use crate::cli::WorkArgs;
use crate::context::Context;
use crate::exit::{Exit, ExpectedError};
use crate::fleet;
use crate::guest;
use crate::pool::Pool;
use crate::signals::Signals;
use crate::work::shift::Shift;
use case::link::Look;
use serde_json::json;

pub fn run(args: &WorkArgs, ctx: &Context) -> anyhow::Result<Exit> {
    let signals = Signals::watch()?;
    let address = fleet::address(ctx)?;
    let kernel = ctx.kernel()?;
    let scope = fleet::scope(&kernel)?;
    let hub = fleet::open(ctx, address, Some(scope.clone()))?;
    let dir = tempfile::Builder::new().prefix("hgm-work-").tempdir()?;
    let mut spec = guest::pool_spec(ctx, &kernel, dir.path())?;
    // As `hgm regress` has it: the same question has the same answer everywhere.
    spec.replace_on_violation = false;
    spec.look = Look::Each;
    let slots = ctx.config.jobs as usize;
    let pool = Pool::start(&spec, slots)?;
    let name = dir.path().file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let machine = format!("{}-{}", fleet::machine(&name), std::process::id());
    let mut shift = Shift::new(hub, scope, (machine, kernel.id.clone()), pool, slots);
    let worked = shift.work(&signals, args.limit(), ctx);
    let (done, again, undelivered) = shift.end(ctx);
    if ctx.json {
        let summary = json!({
            "kernel": kernel.id, "done": done, "again": again, "undelivered": undelivered,
        });
        ctx.term.json(&summary);
    } else {
        let more =
            if again > 0 { format!(", {again} that others had done") } else { String::new() };
        ctx.term.line(&format!("{done} task(s) done on {}{more}", kernel.id));
    }
    worked?;
    if undelivered > 0 {
        let what = format!("{undelivered} answer(s) did not reach the hub");
        let help = "other workers do these tasks again; check the hub";
        return Err(ExpectedError::infrastructure(what, help).into());
    }
    Ok(match signals.code() {
        Some(143) => Exit::Terminated,
        Some(_) => Exit::Interrupted,
        None => Exit::Clean,
    })
}
