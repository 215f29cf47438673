//! `hgm findings list`, `show`, `mark`: what all runs of the home found, one line a bug. Reads run
//! folders and changes no evidence; a mark goes into the finding's data or the kernel's own list of
//! known deviations.

use crate::cli::{FindingsArgs, FindingsVerb, MarkArgs, Marking};
use crate::context::Context;
use crate::exit::{Exit, ExpectedError};
use crate::guest;
use crate::term::{clean_str, columns};
use case::{Finding, FindingState};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use store::{Findings, RunDir, RunInfo, Runs};

/// One bug, over runs and kernels.
#[derive(Debug)]
struct Bug {
    /// Of the newest run that has it.
    newest: Finding,
    slug: String,
    run: String,
    runs: u32,
    count: u64,
    kernels: Vec<String>,
}

pub fn run(args: &FindingsArgs, ctx: &Context) -> anyhow::Result<Exit> {
    match &args.verb {
        FindingsVerb::List(args) => list(args.run.as_deref(), args.all, ctx),
        FindingsVerb::Show(args) => show(&args.id, ctx),
        FindingsVerb::Mark(args) => mark(args, ctx),
    }
}

/// Bugs by signature; of one run, or of all.
fn bugs(run: Option<&str>, ctx: &Context) -> anyhow::Result<BTreeMap<String, Bug>> {
    let runs = Runs::of(&ctx.home);
    let chosen: Vec<RunInfo> = match run {
        Some(word) => vec![runs.find(word)?],
        None => runs.list()?,
    };
    let mut bugs: BTreeMap<String, Bug> = BTreeMap::new();
    for run in chosen {
        let findings = Findings::view(&run.path.join(RunDir::FINDINGS))?;
        for (slug, finding) in findings.iter() {
            merge(&mut bugs, &run.id, slug, finding);
        }
        for broken in findings.broken() {
            let what = format!("{} cannot be read", broken.display());
            ctx.term.warn(&clean_str(&what), "look into it; it is left as it is");
        }
    }
    Ok(bugs)
}

/// Runs come oldest first, so the last data stays.
fn merge(bugs: &mut BTreeMap<String, Bug>, run: &str, slug: &str, finding: &Finding) {
    let bug = bugs.entry(finding.signature.clone()).or_insert_with(|| Bug {
        newest: finding.clone(),
        slug: slug.to_owned(),
        run: run.to_owned(),
        runs: 0,
        count: 0,
        kernels: Vec::new(),
    });
    let embargo = bug.newest.embargo || finding.embargo;
    bug.newest = Finding { embargo, ..finding.clone() };
    (bug.slug, bug.run) = (slug.to_owned(), run.to_owned());
    bug.runs += 1;
    bug.count += u64::from(finding.count);
    if !bug.kernels.contains(&finding.kernel) {
        bug.kernels.push(finding.kernel.clone());
    }
}

fn state(finding: &Finding) -> &'static str {
    match (finding.embargo, finding.state) {
        (true, _) => "embargo",
        (_, FindingState::Confirmed) => "confirmed",
        (_, FindingState::Unconfirmed) => "unconfirmed",
        (_, FindingState::Known) => "known",
    }
}

fn list(run: Option<&str>, all: bool, ctx: &Context) -> anyhow::Result<Exit> {
    let mut bugs: Vec<Bug> = bugs(run, ctx)?.into_values().collect();
    let known = |bug: &Bug| bug.newest.state == FindingState::Known;
    let left_out = bugs.iter().filter(|bug| known(bug) && !all && !ctx.json).count();
    if left_out > 0 {
        bugs.retain(|bug| !known(bug));
    }
    // What is to be looked at first: confirmed, most often seen.
    bugs.sort_by_key(|bug| (bug.newest.state, std::cmp::Reverse(bug.count)));
    if ctx.json {
        for bug in &bugs {
            ctx.term.json(&serde_json::json!({
                "id": bug.slug,
                "signature": bug.newest.signature,
                "title": bug.newest.title,
                "state": state(&bug.newest),
                "known": bug.newest.known,
                "reproduced": bug.newest.reproduced,
                "count": bug.count,
                "runs": bug.runs,
                "newest_run": bug.run,
                "kernels": bug.kernels,
            }));
        }
        return Ok(Exit::Clean);
    }
    let head = ["STATE", "SHOWN", "SEEN", "RUNS", "KERNELS", "SIGNATURE"];
    let mut rows = vec![head.map(String::from).to_vec()];
    for bug in &bugs {
        let (shown, tried) = bug.newest.reproduced;
        rows.push(vec![
            state(&bug.newest).into(),
            format!("{shown} of {tried}"),
            bug.count.to_string(),
            bug.runs.to_string(),
            clean_str(&bug.kernels.join(" ")),
            clean_str(&bug.newest.signature),
        ]);
    }
    if rows.len() > 1 {
        ctx.term.out(&columns(&rows));
    }
    ctx.term.note(&format!("{} finding(s), {left_out} known left out (--all)", bugs.len()));
    Ok(Exit::Clean)
}

fn folder(id: &str, ctx: &Context) -> Result<PathBuf, ExpectedError> {
    let path = Path::new(id);
    if path.is_dir() {
        return Ok(path.to_owned());
    }
    Ok(Runs::of(&ctx.home).find_finding(id)?.1)
}

fn show(id: &str, ctx: &Context) -> anyhow::Result<Exit> {
    let folder = folder(id, ctx)?;
    let finding = Findings::read(&folder)?;
    let program = case::text::print(&Findings::read_program(&folder)?);
    if ctx.json {
        let mut json = serde_json::to_value(&finding)?;
        json["folder"] = folder.display().to_string().into();
        json["program"] = program.into();
        ctx.term.json(&json);
        return Ok(Exit::Clean);
    }
    let (shown, tried) = finding.reproduced;
    let mut rows: Vec<Vec<String>> = [
        ("signature", finding.signature.clone()),
        ("title", finding.title.clone()),
        ("state", state(&finding).to_owned()),
        ("kernel", finding.kernel.clone()),
        ("shown", format!("{shown} of {tried}, seen {} time(s)", finding.count)),
        ("folder", folder.display().to_string()),
        ("replay", finding.replay.clone()),
    ]
    .into_iter()
    .map(|(name, value)| vec![name.to_owned(), clean_str(&value)])
    .collect();
    if let Some(id) = &finding.known {
        rows.insert(3, vec!["known as".into(), clean_str(id)]);
    }
    if let Some(violation) = &finding.violation {
        rows.push(vec!["line".into(), violation.line.to_string()]);
        rows.push(vec!["expected".into(), clean_str(&violation.expected)]);
        rows.push(vec!["observed".into(), clean_str(&violation.observed)]);
    }
    ctx.term.out(&columns(&rows));
    ctx.term.out(&clean_str(&format!("\n{program}")));
    Ok(Exit::Clean)
}

fn mark(args: &MarkArgs, ctx: &Context) -> anyhow::Result<Exit> {
    let folder = folder(&args.id, ctx)?;
    let finding = Findings::read(&folder)?;
    match &args.marking {
        Marking { embargo: true, .. } => embargo(&folder, true)?,
        Marking { no_embargo: true, .. } => embargo(&folder, false)?,
        Marking { known: Some(id), .. } => list_as_known(args, id, &finding, ctx)?,
        Marking { known: None, .. } => {}
    }
    ctx.term.note(&clean_str(&format!("{}: marked", finding.signature)));
    Ok(Exit::Clean)
}

fn embargo(folder: &Path, on: bool) -> anyhow::Result<()> {
    let missing = || ExpectedError::config("not the folder of a finding", "hgm findings list");
    let dir = folder.parent().ok_or_else(missing)?;
    let slug = folder.file_name().ok_or_else(missing)?.to_string_lossy().into_owned();
    Findings::open(dir)?.update(&slug, |finding| finding.embargo = on)?;
    Ok(())
}

/// Adds an entry to the list beside the kernel's image.
fn list_as_known(
    args: &MarkArgs,
    id: &str,
    finding: &Finding,
    ctx: &Context,
) -> anyhow::Result<()> {
    let Some(why) = args.why.as_deref() else {
        let help = "--why 'mmap(2) says …, the kernel …' stands in every report";
        return Err(ExpectedError::usage("a known deviation needs its --why", help).into());
    };
    let kernel = guest::kernel(ctx, Some(&finding.kernel))?;
    guest::add_known(&kernel, id, &finding.signature, &finding.title, why)?;
    Ok(())
}
