//! `hgm completions SHELL`.

use crate::cli::{Cli, CompletionsArgs};
use crate::context::Context;
use crate::exit::Exit;
use clap::CommandFactory;

/// Prints the script; with `--json`, as a string in an object.
pub fn run(args: &CompletionsArgs, ctx: &Context) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "hgm", &mut script);
    if ctx.json {
        let script = String::from_utf8_lossy(&script);
        ctx.term.json(&serde_json::json!({ "shell": args.shell.to_string(), "script": script }));
    } else {
        ctx.term.out_bytes(&script);
    }
    Ok(Exit::Clean)
}
