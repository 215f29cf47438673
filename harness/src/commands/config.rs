//! `hgm config show` and `hgm config check`.

use crate::cli::{ConfigArgs, ConfigVerb};
use crate::config::{self, Config};
use crate::context::Context;
use crate::exit::{Exit, ExpectedError};
use crate::term::{clean_str, columns};
use serde_json::json;

/// Shows the values in force, or checks the file.
pub fn run(args: &ConfigArgs, ctx: &Context) -> anyhow::Result<Exit> {
    match args.verb {
        ConfigVerb::Show => show(ctx),
        ConfigVerb::Check => check(ctx),
    }
}

fn show(ctx: &Context) -> anyhow::Result<Exit> {
    let config = &ctx.config;
    let file = config.file.as_ref().map(|path| path.display().to_string());
    if ctx.json {
        let values: Vec<_> = config
            .settings
            .iter()
            .map(|s| {
                let value = (!s.value.is_empty()).then(|| s.value.to_string_lossy());
                json!({ "key": s.key, "value": value, "origin": s.origin.to_string() })
            })
            .collect();
        ctx.term.json(&json!({
            "profile": config.profile,
            "file": file,
            "home": ctx.home.display().to_string(),
            "values": values,
        }));
        return Ok(Exit::Clean);
    }
    ctx.term.line(&format!("profile  {}", clean_str(&config.profile)));
    ctx.term.line(&format!("file     {}", clean_str(file.as_deref().unwrap_or("none"))));
    ctx.term.line(&format!("home     {}\n", clean_str(&ctx.home.display().to_string())));
    let rows: Vec<Vec<String>> = config
        .settings
        .iter()
        .map(|setting| {
            let value = clean_str(&setting.value.to_string_lossy());
            let value = if value.is_empty() { "(unset)".to_owned() } else { value };
            vec![setting.key.to_owned(), value, clean_str(&setting.origin.to_string())]
        })
        .collect();
    ctx.term.out(&columns(&rows));
    Ok(Exit::Clean)
}

fn check(ctx: &Context) -> anyhow::Result<Exit> {
    let file = config::find_file(&ctx.global)?.ok_or_else(|| {
        ExpectedError::config(
            "no configuration file to check",
            "pass --config FILE, or make ./hgm.toml; hgm help config shows the keys",
        )
    })?;
    let faults = config::faults_of(&file)?;
    if faults.is_empty() {
        // Profile, environment and --set must hold as well.
        Config::load(&ctx.global, &[])?;
    }
    let name = file.display().to_string();
    if ctx.json {
        let list: Vec<_> = faults
            .iter()
            .map(|f| json!({ "line": f.line, "error": f.message, "help": f.help }))
            .collect();
        ctx.term.json(&json!({ "file": name, "ok": faults.is_empty(), "faults": list }));
    } else if faults.is_empty() {
        ctx.term.line(&format!("{name}: ok"));
    } else {
        for fault in &faults {
            let message = format!("{name}:{}: {}", fault.line, fault.message);
            ctx.term.error(&ExpectedError::config(message, fault.help.clone()), false);
        }
    }
    Ok(if faults.is_empty() { Exit::Clean } else { Exit::Config })
}
