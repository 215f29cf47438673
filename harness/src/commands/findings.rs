//! `hgm findings list`, `show`, `mark`, `merge`, `split`: what all runs of the home found, one line a
//! bug. Reads run folders and changes no evidence; a mark goes into the finding's data or the kernel's
//! own list of known deviations, and which findings are one bug into the home.

use crate::cli::{FindingsArgs, FindingsVerb, MarkArgs, Marking};
use crate::commands::fetch;
use crate::context::Context;
use crate::exit::{Exit, ExpectedError};
use crate::guest;
use crate::term::{clean_str, columns};
use case::{Finding, FindingState};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use store::{Findings, Merges, RunDir, RunInfo, Runs};

/// One bug, over runs and kernels.
#[derive(Debug, Default)]
struct Bug {
    /// By signature: one, or those a person merged.
    parts: BTreeMap<String, Part>,
    runs: BTreeSet<String>,
    count: u64,
    /// In the order they showed it.
    kernels: Vec<String>,
}

/// One signature of a bug.
#[derive(Debug)]
struct Part {
    /// Of the newest run that has it.
    newest: Finding,
    slug: String,
}

pub fn run(args: &FindingsArgs, ctx: &Context) -> anyhow::Result<Exit> {
    match &args.verb {
        FindingsVerb::List(args) => list(args.run.as_deref(), args.all, ctx),
        FindingsVerb::Show(args) => show(&args.id, ctx),
        FindingsVerb::Mark(args) => mark(args, ctx),
        FindingsVerb::Merge(args) => merge(&args.ids, ctx),
        FindingsVerb::Split(args) => split(&args.id, ctx),
        FindingsVerb::Fetch(args) => fetch::run(args, ctx),
    }
}

/// Bugs by the signature they are called by; of one run, or of all.
fn bugs(run: Option<&str>, ctx: &Context) -> anyhow::Result<BTreeMap<String, Bug>> {
    let merges = merges(ctx)?;
    let runs = Runs::of(&ctx.home);
    let chosen: Vec<RunInfo> = match run {
        Some(word) => vec![runs.find(word)?],
        None => runs.list()?,
    };
    let mut bugs: BTreeMap<String, Bug> = BTreeMap::new();
    for run in chosen {
        let findings = Findings::view(&run.path.join(RunDir::FINDINGS))?;
        for (slug, finding) in findings.iter() {
            let head = merges.head(&finding.signature).to_owned();
            bugs.entry(head).or_default().add(&run.id, slug, finding);
        }
        for broken in findings.broken() {
            let what = format!("{} cannot be read", broken.display());
            ctx.term.warn(&clean_str(&what), "look into it; it is left as it is");
        }
    }
    Ok(bugs)
}

/// What was decided in this home, and a word on lines that say nothing.
fn merges(ctx: &Context) -> anyhow::Result<Merges> {
    let merges = Merges::of(&ctx.home)?;
    if let (lines @ 1.., path) = merges.broken() {
        let what = format!("{}: {lines} line(s) cannot be read", path.display());
        ctx.term.warn(&clean_str(&what), "merge those findings again; the lines are left alone");
    }
    Ok(merges)
}

impl Bug {
    /// Runs come oldest first, so the last data stays.
    fn add(&mut self, run: &str, slug: &str, finding: &Finding) {
        let earlier = self.parts.get(&finding.signature);
        let embargo = finding.embargo || earlier.is_some_and(|part| part.newest.embargo);
        let part = Part { newest: Finding { embargo, ..finding.clone() }, slug: slug.to_owned() };
        self.parts.insert(finding.signature.clone(), part);
        self.runs.insert(run.to_owned());
        self.count += u64::from(finding.count);
        if !self.kernels.contains(&finding.kernel) {
            self.kernels.push(finding.kernel.clone());
        }
    }

    /// The part a bug shows: the one it is called by, else the surest.
    fn face(&self, head: &str) -> Option<&Part> {
        let surest = || self.parts.values().min_by_key(|part| part.newest.state);
        self.parts.get(head).or_else(surest)
    }

    /// As far as the surest of its parts: a bug is known when all of it is.
    fn state(&self) -> FindingState {
        let states = self.parts.values().map(|part| part.newest.state);
        states.min().unwrap_or(FindingState::Unconfirmed)
    }

    fn embargo(&self) -> bool {
        self.parts.values().any(|part| part.newest.embargo)
    }
}

fn state(embargo: bool, state: FindingState) -> &'static str {
    match (embargo, state) {
        (true, _) => "embargo",
        (_, FindingState::Confirmed) => "confirmed",
        (_, FindingState::Unconfirmed) => "unconfirmed",
        (_, FindingState::Known) => "known",
    }
}

fn list(run: Option<&str>, all: bool, ctx: &Context) -> anyhow::Result<Exit> {
    let mut bugs: Vec<(String, Bug)> = bugs(run, ctx)?.into_iter().collect();
    let known = |bug: &Bug| bug.state() == FindingState::Known;
    let left_out = bugs.iter().filter(|(_, bug)| known(bug) && !all && !ctx.json).count();
    if left_out > 0 {
        bugs.retain(|(_, bug)| !known(bug));
    }
    // What is to be looked at first: confirmed, most often seen.
    bugs.sort_by_key(|(_, bug)| (bug.state(), std::cmp::Reverse(bug.count)));
    let head = ["STATE", "SHOWN", "SEEN", "RUNS", "KERNELS", "SIGNATURE"];
    let mut rows = vec![head.map(String::from).to_vec()];
    for (head, bug) in &bugs {
        let Some(face) = bug.face(head) else { continue };
        let Finding { title, known, reproduced, .. } = &face.newest;
        let state = state(bug.embargo(), bug.state());
        if ctx.json {
            ctx.term.json(&serde_json::json!({
                "id": face.slug,
                "signature": head,
                "signatures": bug.parts.keys().collect::<Vec<_>>(),
                "title": title,
                "state": state,
                "known": known,
                "reproduced": reproduced,
                "count": bug.count,
                "runs": bug.runs.len(),
                "newest_run": bug.runs.last(),
                "kernels": bug.kernels,
            }));
            continue;
        }
        let more = match bug.parts.len() {
            0 | 1 => String::new(),
            parts => format!(" (+{})", parts - 1),
        };
        rows.push(vec![
            state.into(),
            format!("{} of {}", reproduced.0, reproduced.1),
            bug.count.to_string(),
            bug.runs.len().to_string(),
            clean_str(&bug.kernels.join(" ")),
            clean_str(&format!("{head}{more}")),
        ]);
    }
    if rows.len() > 1 {
        ctx.term.out(&columns(&rows));
    }
    if !ctx.json {
        ctx.term.note(&format!("{} finding(s), {left_out} known left out (--all)", bugs.len()));
    }
    Ok(Exit::Clean)
}

/// The signature a word on the command line means.
fn signature(id: &str, ctx: &Context) -> anyhow::Result<String> {
    Ok(Findings::read(&folder(id, ctx)?)?.signature)
}

fn merge(ids: &[String], ctx: &Context) -> anyhow::Result<Exit> {
    let signatures: Vec<String> =
        ids.iter().map(|id| signature(id, ctx)).collect::<anyhow::Result<_>>()?;
    let mut merges = merges(ctx)?;
    let news = merges.merge(&signatures)?;
    let head = merges.head(&signatures[0]);
    let members = merges.members(head);
    if ctx.json {
        ctx.term.json(&serde_json::json!({ "signature": head, "also": members }));
        return Ok(Exit::Clean);
    }
    let word = if news { "is now" } else { "was already" };
    let count = members.len() + 1;
    ctx.term.line(&clean_str(&format!("{head} {word} one bug of {count} signatures")));
    members.iter().for_each(|member| ctx.term.line(&clean_str(&format!("  also {member}"))));
    Ok(Exit::Clean)
}

fn split(id: &str, ctx: &Context) -> anyhow::Result<Exit> {
    let signature = signature(id, ctx)?;
    let mut merges = merges(ctx)?;
    let freed: Vec<String> = merges.members(&signature).into_iter().map(str::to_owned).collect();
    if !merges.split(&signature)? {
        let what = format!("{} is merged with nothing", clean_str(&signature));
        return Err(
            ExpectedError::usage(what, "hgm findings show ID says what it is part of").into()
        );
    }
    if ctx.json {
        ctx.term.json(&serde_json::json!({ "signature": signature, "freed": freed }));
        return Ok(Exit::Clean);
    }
    ctx.term.line(&clean_str(&format!("{signature} stands for itself again")));
    freed.iter().for_each(|other| ctx.term.line(&clean_str(&format!("  and so does {other}"))));
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
    let merges = merges(ctx)?;
    let head = merges.head(&finding.signature);
    let members = merges.members(head);
    if ctx.json {
        let mut json = serde_json::to_value(&finding)?;
        json["bug"] = serde_json::json!({ "signature": head, "also": members });
        json["folder"] = folder.display().to_string().into();
        json["program"] = program.into();
        ctx.term.json(&json);
        return Ok(Exit::Clean);
    }
    let (shown, tried) = finding.reproduced;
    let mut rows: Vec<Vec<String>> = [
        ("signature", finding.signature.clone()),
        ("title", finding.title.clone()),
        ("state", state(finding.embargo, finding.state).to_owned()),
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
    if head != finding.signature {
        rows.push(vec!["part of".into(), clean_str(head)]);
    }
    for member in members.iter().filter(|member| **member != finding.signature) {
        rows.push(vec!["also".into(), clean_str(member)]);
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
