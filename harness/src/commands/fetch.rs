//! `hgm findings fetch`: what all machines found, with its evidence, from their hub into a folder.

use crate::cli::FindingsFetchArgs;
use crate::commands::status;
use crate::context::Context;
use crate::exit::Exit;
use crate::fleet;
use crate::term::clean_str;
use crate::told::Told;
use std::collections::BTreeMap;
use store::Findings;

pub fn run(args: &FindingsFetchArgs, ctx: &Context) -> anyhow::Result<Exit> {
    let told = newest(status::ask(fleet::address(ctx)?, ctx)?.findings);
    let mut kept = Findings::open(&args.dir)?;
    let (mut new, mut refused) = (0, 0);
    for told in &told {
        match told.save(&mut kept) {
            Ok(saved) => {
                new += u32::from(saved.new);
                say(told, &saved, ctx);
            }
            Err(why) => {
                refused += 1;
                let what = format!("{} of {} is left out: {why}", told.signature, told.machine);
                ctx.term.warn(&clean_str(&what), "look for it on that machine");
            }
        }
    }
    ctx.term.note(&format!("{} told, {new} new here, {refused} left out", told.len()));
    Ok(Exit::Clean)
}

fn say(told: &Told, saved: &store::Recorded, ctx: &Context) {
    if ctx.json {
        ctx.term.json(&serde_json::json!({
            "id": saved.slug,
            "folder": saved.folder,
            "signature": told.signature,
            "machine": told.machine,
            "kernel": told.kernel,
            "reproduced": told.reproduced,
            "new": saved.new,
        }));
        return;
    }
    let (shown, tried) = told.reproduced;
    let folder = saved.folder.display();
    let line = format!("{folder}  {shown} of {tried} on {}  {}", told.machine, told.signature);
    ctx.term.line(&clean_str(&line));
}

/// Each machine's last word on a signature: the one with the most replays.
fn newest(all: Vec<Told>) -> Vec<Told> {
    let mut newest: BTreeMap<(String, String), Told> = BTreeMap::new();
    for told in all {
        let key = (told.signature.clone(), told.machine.clone());
        let replays = |told: &Told| told.reproduced.1;
        if newest.get(&key).is_none_or(|kept| replays(kept) <= replays(&told)) {
            newest.insert(key, told);
        }
    }
    newest.into_values().collect()
}
