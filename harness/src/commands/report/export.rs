//! Where a report goes: `--export KIND=FILE`, `-` for stdout. Files are replaced whole or not at
//! all.

use crate::context::Context;
use crate::exit::{Exit, ExpectedError, nearest};
use reports::{Run, Trend};
use std::path::{Path, PathBuf};

/// Forms a report can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Html,
    Json,
    Junit,
    Sarif,
    Markdown,
    Github,
    Gitlab,
}

const KINDS: [(&str, Kind); 7] = [
    ("html", Kind::Html),
    ("json", Kind::Json),
    ("junit", Kind::Junit),
    ("sarif", Kind::Sarif),
    ("md", Kind::Markdown),
    ("github", Kind::Github),
    ("gitlab", Kind::Gitlab),
];

/// One `--export`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    pub kind: Kind,
    /// `None`: stdout.
    pub file: Option<PathBuf>,
}

/// Reads `KIND=FILE`; annotations for GitHub need no file, it reads them from stdout.
pub fn parse(text: &str) -> Result<Export, String> {
    let (name, file) = match text.split_once('=') {
        Some((name, file)) => (name, Some(file)),
        None => (text, None),
    };
    let Some((_, kind)) = KINDS.iter().find(|(known, _)| *known == name) else {
        let names = KINDS.map(|(name, _)| name);
        return Err(match nearest(name, names) {
            Some(near) => format!("no form `{name}`; did you mean `{near}`?"),
            None => format!("no form `{name}`; there are {}", names.join(", ")),
        });
    };
    match (kind, file) {
        (Kind::Github, None) | (_, Some("-")) => Ok(Export { kind: *kind, file: None }),
        (_, Some("") | None) => Err(format!("{name} needs a file: {name}=FILE, or {name}=-")),
        (_, Some(file)) => Ok(Export { kind: *kind, file: Some(file.into()) }),
    }
}

/// Writes every export of a run.
pub fn run(exports: &[Export], run: &Run, ctx: &Context) -> anyhow::Result<()> {
    for export in exports {
        let text = match export.kind {
            Kind::Html => reports::html(run)?,
            Kind::Json => with_newline(reports::json(run)?),
            Kind::Junit => reports::junit(run),
            Kind::Sarif => with_newline(reports::sarif(run)?),
            Kind::Markdown => reports::markdown(run),
            Kind::Github => reports::github(run),
            Kind::Gitlab => with_newline(reports::gitlab(run)?),
        };
        put(export, &text, ctx)?;
    }
    if run.withheld > 0 && !exports.is_empty() {
        let note = format!("{} finding(s) withheld (embargo)", run.withheld);
        ctx.term.note(&note);
    }
    Ok(())
}

/// Writes every export of a trend.
pub fn trend(exports: &[Export], trend: &Trend, ctx: &Context) -> anyhow::Result<()> {
    for export in exports {
        let text = match export.kind {
            Kind::Html => reports::trend_html(trend)?,
            Kind::Json => with_newline(serde_json::to_string_pretty(trend)?),
            _ => {
                let help = "hgm trend --export html=FILE, or json=FILE";
                return Err(ExpectedError::usage("a trend has no such form", help).into());
            }
        };
        put(export, &text, ctx)?;
    }
    Ok(())
}

fn with_newline(mut text: String) -> String {
    text.push('\n');
    text
}

/// Two texts on one stdout are none, and two in one file are one.
pub fn check(exports: &[Export], json: bool) -> Result<(), ExpectedError> {
    if json && exports.iter().any(|export| export.file.is_none()) {
        let help = "leave out --json, or give the export a file";
        return Err(ExpectedError::usage("--json and an export go to stdout", help));
    }
    for (at, export) in exports.iter().enumerate() {
        if exports[..at].iter().any(|other| other.file == export.file) {
            let what = match &export.file {
                None => "two exports go to stdout".to_owned(),
                Some(file) => format!("two exports go to {}", file.display()),
            };
            return Err(ExpectedError::usage(what, "give each a file of its own"));
        }
    }
    Ok(())
}

fn put(export: &Export, text: &str, ctx: &Context) -> Result<(), ExpectedError> {
    match &export.file {
        None => ctx.term.out(text),
        Some(file) => {
            write(file, text.as_bytes())?;
            let kib = text.len().div_ceil(1024);
            ctx.term.note(&format!("wrote {} ({kib} KiB)", file.display()));
        }
    }
    Ok(())
}

/// Replaces a file. Whatever else stands there is not ours to replace.
pub fn write(file: &Path, bytes: &[u8]) -> Result<(), ExpectedError> {
    let help = "name a file in a folder that is there, or - for stdout";
    if std::fs::metadata(file).is_ok_and(|there| !there.is_file()) {
        let message = format!("{} is not a regular file", file.display());
        return Err(ExpectedError::config(message, help));
    }
    // A link stays one: what it names is replaced.
    let target = std::fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    store::write_whole(&target, bytes).map_err(|error| {
        let full = error.is_full_disk();
        let (message, cause, own_help) = error.parts();
        let exit = if full { Exit::Infrastructure } else { Exit::Config };
        let help = if full { own_help } else { help.to_owned() };
        ExpectedError { exit, message, cause, help }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_and_files() {
        let html = parse("html=a=b.html").unwrap();
        assert_eq!((html.kind, html.file), (Kind::Html, Some("a=b.html".into())));
        assert_eq!(parse("github").unwrap().file, None);
        assert_eq!(parse("json=-").unwrap().file, None);
        assert!(parse("html").unwrap_err().contains("html=FILE"));
        assert!(parse("htm=x").unwrap_err().contains("did you mean `html`"));
        assert!(parse("pdf=x").unwrap_err().contains("there are html"));
        let twice = [parse("html=x").unwrap(), parse("json=x").unwrap()];
        assert!(check(&twice, false).is_err());
        assert!(check(&twice[..1], true).is_ok());
        assert!(check(&[parse("github").unwrap()], true).is_err());
    }

    #[test]
    fn what_is_no_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(write(dir.path(), b"x").unwrap_err().exit, Exit::Config);
        assert_eq!(write(Path::new("/dev/null"), b"x").unwrap_err().exit, Exit::Config);
        let (file, link) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write(&link, b"new").unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read(&file).unwrap(), b"new");
    }
}
