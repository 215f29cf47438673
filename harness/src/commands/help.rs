//! `hgm help TOPIC`: topics come from the tables the program itself uses.

use crate::cli::{Cli, HelpArgs};
use crate::config::{KEYS, Kind};
use crate::context::Context;
use crate::exit::{EXITS, Exit, ExpectedError, nearest};
use case::OpKind;
use clap::CommandFactory;
use serde_json::json;

const TOPICS: &[&str] = &["exit-codes", "ops", "config"];

/// Prints a topic, or the help of a verb.
pub fn run(args: &HelpArgs, ctx: &Context) -> anyhow::Result<Exit> {
    let words: Vec<&str> = args.topic.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["exit-codes"] => exit_codes(ctx),
        ["ops"] => ops(ctx, None)?,
        ["ops", name] => ops(ctx, Some(name))?,
        ["config"] if !ctx.json => config_keys(ctx),
        ["config"] => config_json(ctx),
        path => verb(path, ctx)?,
    }
    Ok(Exit::Clean)
}

fn exit_codes(ctx: &Context) {
    if ctx.json {
        let rows: Vec<_> = EXITS
            .iter()
            .map(|r| {
                json!({ "code": r.exit.code(), "name": r.name, "meaning": r.meaning,
                        "reaction": r.reaction })
            })
            .collect();
        ctx.term.json(&json!({ "exit_codes": rows }));
        return;
    }
    for r in EXITS {
        ctx.term.line(&format!("{:>3}  {:<15} CI: {}", r.exit.code(), r.name, r.reaction));
        ctx.term.line(&format!("     {}", r.meaning));
    }
}

fn ops(ctx: &Context, only: Option<&str>) -> Result<(), ExpectedError> {
    let chosen: Vec<_> = OpKind::ALL
        .iter()
        .map(|kind| kind.spec())
        .filter(|spec| only.is_none_or(|name| spec.name == name))
        .collect();
    if let (Some(name), true) = (only, chosen.is_empty()) {
        let near = nearest(name, OpKind::ALL.iter().map(|kind| kind.spec().name));
        let help = near.map_or("hgm help ops lists all".into(), |n| format!("did you mean `{n}`?"));
        return Err(ExpectedError::usage(format!("no op `{name}`"), help));
    }
    if ctx.json {
        let rows: Vec<_> = chosen
            .iter()
            .map(|spec| {
                let fields: Vec<_> = spec
                    .fields
                    .iter()
                    .map(|f| json!({ "name": f.name, "expected": f.expected, "optional": f.optional }))
                    .collect();
                json!({ "name": spec.name, "about": spec.about.trim(), "makes": spec.makes,
                        "fields": fields })
            })
            .collect();
        ctx.term.json(&json!({ "ops": rows }));
        return Ok(());
    }
    let mut text = String::new();
    if only.is_none() {
        text.push_str(
            "A program is a text file: `hgm 1`, then one op a line, `#` for comments.\n\
             [field=...] may be left out. `p1: OP` runs in child p1. Threads stand in\n\
             `par {` ... `t0: OP` ... `}`.\n\n",
        );
    }
    for spec in chosen {
        // Plain ASCII, for terminals and pagers that know no more.
        text.push_str(&case::text::usage(spec.kind).replace('…', "..."));
        text.push('\n');
        for line in spec.about.trim().lines() {
            text.push_str(&format!("    {}\n", line.trim()));
        }
        for field in spec.fields {
            text.push_str(&format!("      {:<9} {}\n", field.name, field.expected));
        }
        text.push('\n');
    }
    ctx.term.out(&text);
    Ok(())
}

fn kind_words(kind: Kind) -> String {
    match kind {
        Kind::Int { min, max } => format!("{min}..{max}"),
        Kind::Bool => "true|false".into(),
        Kind::Text => "string".into(),
        Kind::Path => "path".into(),
        Kind::Choice(words) => words.join("|"),
        Kind::Duration => "90s, 10m, 8h".into(),
    }
}

fn config_keys(ctx: &Context) {
    ctx.term.out(
        "hgm.toml holds [profile.default] and other profiles on top of it, chosen by\n\
         --profile. Later wins: default, [profile.default], the chosen profile,\n\
         HGM_<KEY> in the environment, flags.\n\n",
    );
    for key in KEYS {
        let default = if key.default.is_empty() { "unset" } else { key.default };
        let values = kind_words(key.kind);
        ctx.term.line(&format!("{:<16} {values}  (default: {default})", key.name));
        ctx.term.line(&format!("    {}", key.about));
    }
    ctx.term.out(
        "\nEnvironment besides: HGM_HOME, HGM_CONFIG, HGM_PROFILE, HGM_AGENT (guest agent\n\
         binary), HGM_COVERAGE_PLUGIN (plugin for QEMU), HGM_LOG (diagnostics, e.g. debug), NO_COLOR, CLICOLOR_FORCE.\n",
    );
}

fn config_json(ctx: &Context) {
    let rows: Vec<_> = KEYS
        .iter()
        .map(|key| {
            json!({ "key": key.name, "values": kind_words(key.kind), "default": key.default,
                    "about": key.about })
        })
        .collect();
    ctx.term.json(&json!({ "keys": rows }));
}

fn verb(path: &[&str], ctx: &Context) -> Result<(), ExpectedError> {
    let mut command = Cli::command();
    command.build();
    for word in path {
        let known: Vec<String> =
            command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
        command = match command.find_subcommand(word) {
            Some(sub) => sub.clone(),
            None => {
                let all = known.iter().map(String::as_str).chain(TOPICS.iter().copied());
                let help = match nearest(word, all) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("topics: {}; verbs: {}", TOPICS.join(", "), known.join(", ")),
                };
                return Err(ExpectedError::usage(format!("no verb or topic `{word}`"), help));
            }
        };
    }
    let text = command.render_long_help().to_string();
    match ctx.json {
        true => ctx.term.json(&json!({ "help": text })),
        false => ctx.term.out(&text),
    }
    Ok(())
}
