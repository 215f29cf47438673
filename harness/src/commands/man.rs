//! `hgm man [DIR]`: man pages, made of the definition of the command line.

use crate::cli::{Cli, ManArgs};
use crate::context::Context;
use crate::exit::Exit;
use anyhow::Context as _;
use clap::{Command, CommandFactory};
use clap_mangen::Man;
use std::path::Path;

pub fn run(args: &ManArgs, ctx: &Context) -> anyhow::Result<Exit> {
    let mut top = Cli::command();
    top.build();
    let pages = pages(&top, "hgm");
    let Some(dir) = &args.dir else {
        let first = pages.first().context("the command line has no top")?;
        return print(first, ctx);
    };
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let mut written = Vec::new();
    for page in &pages {
        written.push(write(page, dir)?);
    }
    if ctx.json {
        ctx.term.json(&serde_json::json!({ "pages": written }));
    } else {
        ctx.term.note(&format!("{} pages written to {}", written.len(), dir.display()));
    }
    Ok(Exit::Clean)
}

/// One page: its file name and its text in roff.
struct Page {
    file: String,
    roff: Vec<u8>,
}

/// The page of a command, which was built, and those of the verbs below it; hidden ones have none.
fn pages(command: &Command, name: &str) -> Vec<Page> {
    let mut roff = Vec::new();
    // Writing to memory does not fail.
    let source = concat!("hgm ", env!("CARGO_PKG_VERSION"));
    let _ = Man::new(command.clone()).source(source).render(&mut roff);
    let mut all = vec![Page { file: format!("{name}.1"), roff }];
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        all.extend(pages(verb, &format!("{name}-{}", verb.get_name())));
    }
    all
}

fn print(page: &Page, ctx: &Context) -> anyhow::Result<Exit> {
    if ctx.json {
        let text = String::from_utf8_lossy(&page.roff);
        ctx.term.json(&serde_json::json!({ "page": page.file, "roff": text }));
    } else {
        ctx.term.out_bytes(&page.roff);
    }
    Ok(Exit::Clean)
}

fn write(page: &Page, dir: &Path) -> anyhow::Result<String> {
    let path = dir.join(&page.file);
    std::fs::write(&path, &page.roff)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path.display().to_string())
}
