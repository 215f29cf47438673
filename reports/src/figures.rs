//! Figures of a run out of its journal: totals, time series, what happened to VMs, canaries,
//! health, provenance. Older runs have less; nothing here fails for that.

use crate::run::{Embargo, Figures, FindingPage, Mark, Sample};
use crate::words;
use case::FindingState;
use serde_json::Value;
use std::collections::BTreeMap;
use store::{Counters, EventRow, RunMeta};

/// Marks of one VM that are kept.
const MARKS_MAX: usize = 2000;
/// VMs that are kept.
const VMS_MAX: usize = 512;
/// Letters of a detail.
const DETAIL_MAX: usize = 200;

/// Totals: of the summary where the run has closed its books, else as last counted.
pub fn totals(
    summary: &Value,
    counters: &[(String, Counters)],
    events: &[EventRow],
    findings: &[FindingPage],
) -> Figures {
    let last = counters.last().map(|(_, c)| *c).unwrap_or_default();
    let number = |key: &str| summary[key].as_u64();
    // Over all parts of a resumed run: the summary is of its last part only.
    let seconds = last.elapsed_ms as f64 / 1e3;
    let seconds = seconds.max(summary["seconds"].as_f64().unwrap_or(0.0));
    let programs = last.programs.max(number("programs").unwrap_or(0));
    let coverage = |key: &str| summary["coverage"][key].as_u64();
    let kinds = |kind: &str| events.iter().filter(|e| e.kind == kind).count() as u64;
    let of = |state| findings.iter().filter(|f| f.state == state).count() as u32;
    Figures {
        seconds,
        programs,
        programs_per_s: programs as f64 / seconds.max(0.001),
        ops: last.ops.max(number("ops").unwrap_or(0)),
        states: last.states.max(number("states").unwrap_or(0)),
        transitions: None,
        corpus: last.corpus,
        confirmed: of(FindingState::Confirmed),
        unconfirmed: of(FindingState::Unconfirmed),
        known: of(FindingState::Known),
        inconclusive: last.inconclusive.max(number("inconclusive").unwrap_or(0)),
        canaries_found: last.canaries_found,
        canaries_planted: last.canaries_planted,
        blocks: coverage("blocks"),
        functions_reached: coverage("functions_reached"),
        functions_known: coverage("functions_known"),
        vms: number("vms"),
        vms_cloned: number("vms_cloned"),
        vm_ready_ms: number("vm_ready_ms"),
        vm_rss_kib: number("vm_rss_kib"),
        exec_share: summary["exec_share"].as_f64(),
        vms_lost: kinds("vm-died"),
        boots_failed: kinds("vm-boot-failed"),
    }
}

/// Samples where the run took any, else its checkpoints.
pub fn series(counters: &[(String, Counters)], events: &[EventRow]) -> Vec<Sample> {
    let sampled: Vec<Sample> = events.iter().filter(|e| e.kind == "sample").map(sample).collect();
    let mut series = match sampled.len() {
        0 | 1 => counters.iter().map(|(_, c)| checkpoint(c)).collect(),
        _ => sampled,
    };
    // A clock that jumped, or a run whose last part was lost: what goes back in time is dropped.
    let mut last = -1.0;
    series.retain(|sample| {
        let later = sample.s > last;
        last = if later { sample.s } else { last };
        later
    });
    series
}

fn sample(event: &EventRow) -> Sample {
    let number = |key: &str| event.body[key].as_u64();
    let total = |key: &str| number(key).unwrap_or(0);
    Sample {
        s: total("ms") as f64 / 1e3,
        programs: total("programs"),
        states: total("states"),
        corpus: total("corpus"),
        findings: total("findings"),
        inconclusive: total("inconclusive"),
        blocks: number("blocks"),
        rss_kib: number("rss_kib"),
        up: number("up"),
    }
}

fn checkpoint(c: &Counters) -> Sample {
    Sample {
        s: c.elapsed_ms as f64 / 1e3,
        programs: c.programs,
        states: c.states,
        corpus: c.corpus,
        findings: c.findings,
        inconclusive: c.inconclusive,
        ..Sample::default()
    }
}

/// What happened to each VM. A VM that comes up while one was up has replaced it.
pub fn lanes(events: &[EventRow], started: &str, embargo: &Embargo) -> BTreeMap<u64, Vec<Mark>> {
    let mut lanes: BTreeMap<u64, Vec<Mark>> = BTreeMap::new();
    for event in events {
        let Some(kind) = event.kind.strip_prefix("vm-") else { continue };
        let Some(slot) = event.body["slot"].as_u64() else { continue };
        if lanes.len() >= VMS_MAX && !lanes.contains_key(&slot) {
            continue;
        }
        let lane = lanes.entry(slot).or_default();
        if lane.len() >= MARKS_MAX {
            continue;
        }
        let up = lane.last().is_some_and(|m| m.kind == "booted" || m.kind == "replaced");
        let kind = if kind == "booted" && up { "replaced" } else { kind };
        let detail: String =
            event.body["detail"].as_str().unwrap_or_default().chars().take(DETAIL_MAX).collect();
        let wall = || words::seconds_between(started, &event.at).unwrap_or(0.0);
        let s = event.body["ms"].as_u64().map_or_else(wall, |ms| ms as f64 / 1e3);
        lane.push(Mark { s: s.max(0.0), kind: kind.to_owned(), detail: embargo.clear(&detail) });
    }
    lanes
}

/// Planted faults by class: found, missed.
pub fn canaries(events: &[EventRow]) -> BTreeMap<String, (u32, u32)> {
    let mut out: BTreeMap<String, (u32, u32)> = BTreeMap::new();
    for event in events.iter().filter(|e| e.kind == "canary") {
        let class = event.body["class"].as_str().unwrap_or("?").to_owned();
        let row = out.entry(class).or_default();
        match event.body["ended"].as_str() {
            Some("found") => row.0 += 1,
            Some(_) => row.1 += 1,
            None => {}
        }
    }
    out
}

/// How the machinery did.
pub fn health(f: &Figures, events: &[EventRow], summary: &Value) -> Vec<(String, String)> {
    let mut out = Vec::new();
    let mut put = |name: &str, value: Option<String>| {
        out.extend(value.map(|value| (name.to_owned(), value)));
    };
    let of = |a: Option<u64>, b: Option<u64>| Some(format!("{} ({} cloned)", a?, b?));
    put("VMs started", of(f.vms, f.vms_cloned));
    put("VMs that died", Some(words::grouped(f.vms_lost)));
    put("Boots that failed", Some(words::grouped(f.boots_failed)));
    put("Median time until a VM answers", f.vm_ready_ms.map(|ms| format!("{ms} ms")));
    put("Largest memory of one VM", f.vm_rss_kib.map(|kib| format!("{} MiB", kib / 1024)));
    put("Time guests ran programs", f.exec_share.map(|share| format!("{:.0} %", share * 100.0)));
    let judge = summary["judge_us_per_program"].as_f64();
    put("Judging one program", judge.map(|us| format!("{:.1} ms", us / 1e3)));
    let first = summary["seconds_to_first_program"].as_f64();
    put("Until the first result", first.map(|s| format!("{s:.1} s")));
    let share = 100.0 * f.inconclusive as f64 / f.programs.max(1) as f64;
    put("Inconclusive", Some(format!("{} ({share:.1} %)", words::grouped(f.inconclusive))));
    for (why, times) in reasons(events) {
        put(&format!("Inconclusive: {why}"), Some(words::grouped(times)));
    }
    out
}

/// Reasons of inconclusive programs, the most frequent five. Numbers in them are left out.
fn reasons(events: &[EventRow]) -> Vec<(String, u64)> {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for event in events.iter().filter(|e| e.kind == "inconclusive") {
        let why = event.body["why"].as_str().unwrap_or("no reason kept");
        let why: String = why.chars().filter(|c| !c.is_ascii_digit()).take(80).collect();
        *counts.entry(why).or_default() += 1;
    }
    let mut rows: Vec<(String, u64)> = counts.into_iter().collect();
    rows.sort_by_key(|(why, times)| (std::cmp::Reverse(*times), why.clone()));
    rows.truncate(5);
    rows
}

/// Where everything came from: group, name, value, origin.
pub fn provenance(
    meta: Option<&RunMeta>,
    notes: &BTreeMap<String, Value>,
    family: &str,
) -> Vec<[String; 4]> {
    let mut out = Vec::new();
    let mut put = |group: &str, name: &str, value: String, origin: &str| {
        if !value.is_empty() {
            out.push([group, name, &value, origin].map(str::to_owned));
        }
    };
    if let Some(meta) = meta {
        put("Run", "hgm", meta.version.clone(), "");
        put("Run", "Seed", meta.seed.to_string(), "");
        put("Run", "Configuration profile", meta.profile.clone(), "");
        put("Kernel", "Registered as", meta.kernel.clone(), "");
    }
    put("Kernel", "Judged by rules of", family.to_owned(), "");
    for (group, note) in [("Kernel", "kernel"), ("Host", "host")] {
        let told = notes.get(note).and_then(Value::as_object);
        for (name, value) in told.into_iter().flatten() {
            put(group, name, plain(value), "");
        }
    }
    for (group, note) in [("Guest", "profile"), ("Checking guest", "profile-verify")] {
        let told = notes.get(note).and_then(Value::as_object);
        for (name, value) in told.into_iter().flatten() {
            put(group, name, plain(value), "probed");
        }
    }
    for row in notes.get("config").and_then(Value::as_array).into_iter().flatten() {
        let word = |key: &str| plain(&row[key]);
        put("Configuration", &word("key"), word("value"), &word("origin"));
    }
    out
}

/// A value as a word.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => "no".into(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}
