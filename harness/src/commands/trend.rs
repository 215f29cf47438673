//! `hgm trend`: runs of one kernel and configuration, one line each, and how they went.

use super::report::{export, gather};
use crate::cli::TrendArgs;
use crate::context::Context;
use crate::exit::{Exit, ExpectedError};
use reports::{Run, Trend, TrendRow};
use store::{Journal, RunInfo, RunMeta, Runs};

pub fn run(args: &TrendArgs, ctx: &Context) -> anyhow::Result<Exit> {
    export::check(&args.export, ctx.json)?;
    let mut runs: Vec<(RunInfo, RunMeta)> = Vec::new();
    for run in Runs::of(&ctx.home).list()? {
        // Runs that never began, or cannot be read, are no nights to compare with.
        if let Ok(Some(meta)) = Journal::view(&run.path).and_then(|journal| journal.meta()) {
            runs.push((run, meta));
        }
    }
    if let Some(word) = &args.kernel {
        let word = word.replacen("debian:", "debian-", 1);
        runs.retain(|(_, meta)| meta.kernel.starts_with(&word));
    }
    let Some((_, newest)) = runs.last().cloned() else {
        let (what, help) = match &args.kernel {
            Some(word) => (format!("no run of kernel `{word}` yet"), "name another kernel"),
            None => ("there is no run yet".to_owned(), "hgm fuzz --kernel NAME --for 10m"),
        };
        return Err(ExpectedError::config(what, help).into());
    };
    runs.retain(|(_, m)| m.kernel == newest.kernel && m.profile == newest.profile);
    let last = runs.len().saturating_sub(args.last as usize);
    let embargoed = gather::embargoed(ctx)?;
    let rows = runs[last..].iter();
    let rows: Vec<TrendRow> = rows
        .map(|(run, _)| TrendRow::of(&Run::of(gather::gather(run, &embargoed, false))))
        .collect();
    let trend = Trend::new(&newest.kernel, &newest.profile, rows);
    if ctx.json {
        ctx.term.json(&serde_json::to_value(&trend)?);
    } else if args.export.is_empty() {
        ctx.term.out(&trend.text(ctx.term.unicode));
    }
    export::trend(&args.export, &trend, ctx)?;
    Ok(Exit::Clean)
}
