//! A run for a terminal of 80 columns: plain text, every guest character harmless. Colour is the
//! caller's: the first line is the verdict.

use crate::escape;
use crate::run::{FindingPage, Run, state_word};
use crate::words::{count, duration, grouped, rate, time};
use case::FindingState;
use std::fmt::Write;

/// Known deviations in the list.
const KNOWN_MAX: usize = 12;
/// Machines in the list.
const MACHINES_MAX: usize = 20;
/// New findings in the list.
const NEW_MAX: usize = 40;

/// The text; ends with a newline.
pub fn terminal(run: &Run) -> String {
    let f = &run.figures;
    let evidence = run.verdict.evidence.replace(", ", ",\n");
    let mut out = format!("{}\n{}\n\n", run.verdict.headline, wrapped(&evidence));
    let mut row = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<10} {}", escape::line(&value));
    };
    row("run", run.id.clone());
    row("kernel", run.kernel.clone());
    row("started", time(&run.started));
    row("command", run.command.join(" "));
    row("seed", run.seed.map_or("-".into(), |seed| seed.to_string()));
    let speed = format!(
        "{} in {} ({}/s), {} ops",
        grouped(f.programs),
        duration(f.seconds),
        rate(f.programs_per_s),
        grouped(f.ops)
    );
    row("programs", speed);
    let entries = if f.corpus == 1 { "entry" } else { "entries" };
    row("states", format!("{}, {} corpus {entries}", grouped(f.states), grouped(f.corpus)));
    if let (Some(reached), Some(known)) = (f.functions_reached, f.functions_known) {
        row("functions", format!("{} of {} reached", grouped(reached), grouped(known)));
    }
    let vms = f.vms.map_or("?".into(), grouped);
    row("VMs", format!("{vms} started, {} died, {} never up", f.vms_lost, f.boots_failed));
    let news = run.findings.iter().filter(|f| f.state != FindingState::Known);
    list(&mut out, "new findings", news.collect(), NEW_MAX);
    let known = run.in_state(FindingState::Known).collect();
    list(&mut out, "known deviations", known, KNOWN_MAX);
    machines(&mut out, run);
    if run.withheld > 0 {
        let _ = writeln!(out, "\n{} withheld (embargo)", count(run.withheld.into(), "finding"));
    }
    for line in &run.trouble {
        let _ = writeln!(out, "note: {}", escape::line(line));
    }
    let _ = writeln!(out, "\nhgm report {} --export html=report.html", run.id);
    escape::terminal(&out)
}

/// Lines of a text put together again, as many as fit into 80 columns.
fn wrapped(text: &str) -> String {
    let mut out = String::new();
    let mut width = 0;
    for piece in text.lines() {
        let length = piece.chars().count();
        if width > 0 && width + 1 + length > 80 {
            out.push('\n');
            width = 0;
        } else if width > 0 {
            out.push(' ');
            width += 1;
        }
        out.push_str(piece);
        width += length;
    }
    out
}

fn machines(out: &mut String, run: &Run) {
    if run.fleet.is_empty() {
        return;
    }
    let _ = writeln!(out, "\nmachines at the hub: {}", run.fleet.len());
    for m in run.fleet.iter().take(MACHINES_MAX) {
        let what = match m.does {
            "work" => format!("{} leases", grouped(m.leases)),
            _ => format!("corpus {}, {} findings", grouped(m.corpus), grouped(m.findings)),
        };
        let speed =
            format!("{} VMs, {} ({}/s)", m.vms, grouped(m.programs), rate(m.programs_per_s));
        let own = if m.own { " *" } else { "" };
        let _ = writeln!(out, "  {}{own}: {} {speed}, {what}", escape::line(&m.name), m.does);
    }
    if run.fleet.len() > MACHINES_MAX {
        let _ = writeln!(out, "  and {} more", run.fleet.len() - MACHINES_MAX);
    }
}

fn list(out: &mut String, title: &str, findings: Vec<&FindingPage>, limit: usize) {
    let _ = writeln!(out, "\n{title}: {}", findings.len());
    for f in findings.iter().take(limit) {
        let (shown, tried) = f.reproduced;
        let how = match &f.known {
            Some(id) => escape::line(id),
            None => format!("{} {shown} of {tried}", state_word(f.state)),
        };
        let _ = writeln!(out, "  {how:<18} seen {:>5}  {}", f.count, escape::line(&f.signature));
        if f.known.is_none() {
            let _ = writeln!(out, "  {:<18} {}", "", escape::line(&f.replay));
        }
    }
    if findings.len() > limit {
        let _ = writeln!(out, "  and {} more", findings.len() - limit);
    }
}
