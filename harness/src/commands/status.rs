//! `hgm status`: who meets at a hub, as they say themselves, and the work that lies there.

use crate::context::Context;
use crate::exit::{Exit, ExpectedError};
use crate::fleet;
use crate::term::{clean_str, columns};
use crate::told::Told;
use hub::{Kind, Load, Scope, Work};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long the hub may take to answer at all.
const ANSWER: Duration = Duration::from_secs(8);
/// Silence after which nothing more is expected.
const QUIET: Duration = Duration::from_millis(700);

/// What a hub has.
#[derive(Default)]
pub struct Seen {
    /// What machines say, by name.
    machines: BTreeMap<String, Value>,
    /// Entries and findings by scope.
    kept: BTreeMap<String, [u64; 2]>,
    /// What was said of findings.
    pub findings: Vec<Told>,
    /// Work by scope.
    work: BTreeMap<Scope, Load>,
}

pub fn run(ctx: &Context) -> anyhow::Result<Exit> {
    let seen = ask(fleet::address(ctx)?, ctx)?;
    if ctx.json {
        let kept = |(scope, [entries, findings]): (&String, &[u64; 2])| json!({ "kernel_image": scope, "entries": entries, "findings": findings });
        let kept: Vec<Value> = seen.kept.iter().map(kept).collect();
        let machines: Vec<&Value> = seen.machines.values().collect();
        let load = |(scope, load): (&Scope, &Load)| json!({ "kernel_image": scope.as_str(), "open": load.open, "held": load.held, "done": load.done });
        let work: Vec<Value> = seen.work.iter().map(load).collect();
        let findings: Vec<Value> = seen.findings.iter().map(in_short).collect();
        ctx.term.json(&json!({
            "machines": machines, "kept": kept, "findings": findings, "work": work,
        }));
    } else {
        show(&seen, ctx);
    }
    Ok(Exit::Clean)
}

/// Everything a hub has.
pub fn ask(address: &str, ctx: &Context) -> Result<Seen, ExpectedError> {
    let mut hub = fleet::open(ctx, address, None)?;
    look(hub.as_mut()).map_err(|why| {
        ExpectedError::infrastructure(
            format!("the hub {} does not answer: {}", clean_str(address), clean_str(&why)),
            "start it (nats-server --jetstream --addr 127.0.0.1), or check address and credentials",
        )
    })
}

/// A finding without its evidence, which `hgm findings fetch` gets.
fn in_short(told: &Told) -> Value {
    let Told { machine, kernel, signature, title, reproduced, program, .. } = told;
    json!({
        "machine": machine, "kernel": kernel, "signature": signature, "title": title,
        "reproduced": reproduced, "program": program,
    })
}

fn look(hub: &mut dyn Work) -> Result<Seen, String> {
    let start = Instant::now();
    let mut seen = Seen::default();
    let (mut answered, mut last) = (false, Instant::now());
    loop {
        match hub.take(QUIET / 4) {
            Ok(parcels) => {
                if !answered || !parcels.is_empty() {
                    (answered, last) = (true, Instant::now());
                }
                for parcel in parcels {
                    note(&mut seen, &parcel);
                }
            }
            Err(away) if start.elapsed() >= ANSWER => return Err(away.0),
            Err(_) => std::thread::sleep(QUIET / 4),
        }
        if answered && last.elapsed() >= QUIET {
            match hub.loads() {
                Ok(work) => return Ok(Seen { work, ..seen }),
                Err(away) if start.elapsed() >= ANSWER => return Err(away.0),
                Err(_) => {}
            }
        }
    }
}

fn note(seen: &mut Seen, parcel: &hub::Parcel) {
    let scope = parcel.scope.as_str().to_owned();
    let body = || serde_json::from_slice::<Value>(parcel.body()).ok();
    match parcel.kind {
        Kind::Entry => seen.kept.entry(scope).or_default()[0] += 1,
        Kind::Finding => {
            seen.kept.entry(scope).or_default()[1] += 1;
            seen.findings.extend(Told::read(parcel.body()));
        }
        Kind::Status => {
            if let Some(mut told) = body().filter(Value::is_object) {
                told["machine"] = parcel.key().into();
                seen.machines.insert(parcel.key().to_owned(), told);
            }
        }
    }
}

fn show(seen: &Seen, ctx: &Context) {
    let head =
        ["machine", "kernel", "VMs", "programs", "/s", "corpus", "findings", "out", "in", "seen"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for (name, told) in &seen.machines {
        let number = |key: &str| told[key].as_u64().unwrap_or(0);
        let word = |key: &str| -> String {
            clean_str(told[key].as_str().unwrap_or("?")).chars().take(32).collect()
        };
        let rate = number("programs") as f64 / number("seconds").max(1) as f64;
        rows.push(vec![
            name.clone(),
            word("kernel"),
            number("vms").to_string(),
            number("programs").to_string(),
            format!("{rate:.1}"),
            number("corpus").to_string(),
            number("findings").to_string(),
            number("sent").to_string(),
            number("received").to_string(),
            ago(told["at"].as_str().unwrap_or_default()),
        ]);
    }
    if seen.machines.is_empty() {
        ctx.term.line("no machine has said anything for five minutes");
    } else {
        ctx.term.out(&columns(&rows));
    }
    for (scope, [entries, findings]) in &seen.kept {
        ctx.term.line(&format!("kernel image {scope}: {entries} entries, {findings} findings"));
    }
    for (scope, Load { open, held, done }) in &seen.work {
        let scope = scope.as_str();
        ctx.term.line(&format!("work on {scope}: {open} open, {held} held, {done} done"));
    }
}

/// "12 s ago"; clocks of machines differ, so never in the future.
fn ago(at: &str) -> String {
    let Ok(then) = at.parse::<jiff::Timestamp>() else { return "?".into() };
    let seconds = jiff::Timestamp::now().duration_since(then).as_secs().max(0);
    format!("{seconds} s ago")
}
