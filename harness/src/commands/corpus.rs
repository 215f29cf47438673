//! `hgm corpus list`, `show`, `add`, `verify`.

use crate::cli::{CorpusArgs, CorpusVerb};
use crate::context::Context;
use crate::exit::{Exit, ExpectedError};
use crate::term::{clean_str, columns};
use case::limits::TEXT_BYTES_MAX;
use case::{Program, check, text};
use serde_json::json;
use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use store::Corpus;

/// Acts on the corpus folder of `--corpus`, the configuration, or the home.
pub fn run(args: &CorpusArgs, ctx: &Context) -> anyhow::Result<Exit> {
    let dir = ctx.corpus_dir();
    match &args.verb {
        CorpusVerb::List(_) => list(&dir, ctx),
        CorpusVerb::Show(args) => show(&dir, &args.id, ctx),
        CorpusVerb::Add(args) => add(&dir, &args.files, ctx),
        CorpusVerb::Verify(_) => verify(&dir, ctx),
    }
}

/// Opens for reading. A folder that was not named and is not there yet is an empty corpus.
fn view(dir: &Path, ctx: &Context) -> Result<Corpus, ExpectedError> {
    if dir.is_dir() {
        return Ok(Corpus::view(dir)?);
    }
    let help = match ctx.config.corpus {
        Some(_) => "check --corpus and the key corpus of hgm.toml",
        None => "hgm corpus add FILE starts one; --corpus DIR names another",
    };
    Err(ExpectedError::config(format!("no corpus folder {}", dir.display()), help))
}

fn list(dir: &Path, ctx: &Context) -> anyhow::Result<Exit> {
    let corpus = view(dir, ctx)?;
    if !ctx.json {
        let mut rows = vec![["ID", "LINES", "FILE", "OPS"].map(String::from).to_vec()];
        for (id, path) in corpus.iter() {
            let program = corpus.get(id)?;
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            let ops = ops(&program).into_iter().collect::<Vec<_>>().join(" ");
            rows.push(vec![id.into(), program.lines().to_string(), clean_str(&file), ops]);
        }
        ctx.term.out(&columns(&rows));
    }
    for (id, path) in corpus.iter().filter(|_| ctx.json) {
        let program = corpus.get(id)?;
        ctx.term.json(&json!({
            "id": id,
            "file": path.display().to_string(),
            "lines": program.lines(),
            "ops": ops(&program),
        }));
    }
    for unfit in corpus.unfit() {
        ctx.term.warn(
            &format!("{} does not parse", clean_str(&unfit.path.display().to_string())),
            "hgm corpus verify says why and moves it aside",
        );
    }
    Ok(Exit::Clean)
}

fn ops(program: &Program) -> BTreeSet<&'static str> {
    program.each_line().iter().map(|(_, _, op)| op.kind().spec().name).collect()
}

fn show(dir: &Path, word: &str, ctx: &Context) -> anyhow::Result<Exit> {
    let corpus = view(dir, ctx)?;
    let id = corpus.find(word)?;
    let words = text::print(&corpus.get(id)?);
    if ctx.json {
        ctx.term.json(&json!({ "id": id, "text": words }));
    } else {
        ctx.term.out(&words);
    }
    Ok(Exit::Clean)
}

/// All files are read before anything is written: a bad one adds nothing.
fn add(dir: &Path, files: &[PathBuf], ctx: &Context) -> anyhow::Result<Exit> {
    let programs: Vec<Program> =
        files.iter().map(|file| read_program(file)).collect::<Result<_, _>>()?;
    let mut corpus = Corpus::open(dir)?;
    let mut new = 0;
    for (program, file) in programs.iter().zip(files) {
        let added = corpus.add(program)?;
        new += usize::from(added.new);
        if ctx.json {
            ctx.term.json(&json!({
                "id": added.id,
                "new": added.new,
                "file": added.path.display().to_string(),
            }));
        } else {
            let what = if added.new { "added" } else { "known" };
            ctx.term.line(&format!("{what}  {}  {}", added.id, file.display()));
        }
    }
    if !ctx.json {
        ctx.term.line(&format!("{new} new, {} in {}", corpus.len(), dir.display()));
    }
    Ok(Exit::Clean)
}

fn verify(dir: &Path, ctx: &Context) -> anyhow::Result<Exit> {
    view(dir, ctx)?;
    let report = Corpus::verify(dir)?;
    let clean = report.is_clean();
    if ctx.json {
        let unfit: Vec<_> = report
            .unfit
            .iter()
            .map(|u| {
                let moved = u.moved_to.as_ref().map(|path| path.display().to_string());
                json!({ "file": u.path.display().to_string(), "why": u.why, "moved_to": moved })
            })
            .collect();
        let misnamed: Vec<_> = report
            .misnamed
            .iter()
            .map(|(path, id)| json!({ "file": path.display().to_string(), "id": id }))
            .collect();
        let senseless: Vec<_> =
            report.senseless.iter().map(|(id, why)| json!({ "id": id, "why": why })).collect();
        ctx.term.json(&json!({
            "ok": clean,
            "good": report.good,
            "unfit": unfit,
            "misnamed": misnamed,
            "senseless": senseless,
            "doubles": names(&report.doubles),
            "leftovers": names(&report.leftovers),
        }));
    } else {
        ctx.term.out(&in_words(&report));
    }
    Ok(if clean { Exit::Clean } else { Exit::Config })
}

fn names(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(|path| path.display().to_string()).collect()
}

fn in_words(report: &store::CorpusReport) -> String {
    let mut text = String::new();
    for unfit in &report.unfit {
        text.push_str(&format!("unfit      {}\n           {}\n", unfit.path.display(), unfit.why));
        if let Some(to) = &unfit.moved_to {
            text.push_str(&format!("           moved to {}\n", to.display()));
        }
    }
    for (path, id) in &report.misnamed {
        text.push_str(&format!("misnamed   {} holds {id}\n", path.display()));
    }
    for (id, why) in &report.senseless {
        text.push_str(&format!("senseless  {id}: {why}\n"));
    }
    for path in &report.doubles {
        text.push_str(&format!("double     {}\n", path.display()));
    }
    for path in &report.leftovers {
        text.push_str(&format!("leftover   {}\n", path.display()));
    }
    text.push_str(&format!("{} good, {} bad\n", report.good, {
        report.unfit.len() + report.misnamed.len() + report.senseless.len()
    }));
    clean_str(&text)
}

/// A program from a file, or from stdin for `-`; parsed and checked.
pub fn read_program(file: &Path) -> Result<Program, ExpectedError> {
    let name = if file == Path::new("-") { "stdin".into() } else { file.display().to_string() };
    let unreadable = |why: String| {
        ExpectedError::config(format!("cannot read {name}"), "check that it is a program text file")
            .cause(why)
    };
    let mut bytes = Vec::new();
    let limit = TEXT_BYTES_MAX as u64 + 1;
    let read = if file == Path::new("-") {
        std::io::stdin().lock().take(limit).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(limit).read_to_end(&mut bytes))
    };
    read.map_err(|error| unreadable(error.to_string()))?;
    if bytes.len() > TEXT_BYTES_MAX {
        return Err(unreadable(format!("more than {TEXT_BYTES_MAX} bytes")));
    }
    let words = String::from_utf8(bytes).map_err(|error| unreadable(error.to_string()))?;
    let program = text::parse(&words).map_err(|error| {
        let help = match error.help.is_empty() {
            true => "hgm help ops shows every op and its fields".to_owned(),
            false => error.help.clone(),
        };
        let message = format!("{name}:{}:{}: not a program", error.line, error.column);
        let cause = format!("found {}, expected {}", error.found, error.expected);
        ExpectedError::config(message, help).cause(cause)
    })?;
    check::check(&program).map_err(|error| {
        let help = "correct the program; hgm help ops shows every op";
        ExpectedError::config(format!("{name}: the program makes no sense"), help).cause(error)
    })?;
    Ok(program)
}
