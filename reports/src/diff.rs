//! Two runs side by side: figures, findings of one, of the other, of both, and what they reached.

use crate::escape;
use crate::run::{FindingPage, Run, state_word};
use crate::words::{duration, grouped, rate};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// Names of one list that are printed.
const LIST_MAX: usize = 40;

/// A signature in both runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Both {
    pub signature: String,
    /// State and count in the first run.
    pub a: (String, u32),
    pub b: (String, u32),
}

/// The second run against the first. Field names are a contract.
#[derive(Clone, Debug, Serialize)]
pub struct Diff {
    pub v: u32,
    pub a: String,
    pub b: String,
    /// Name, value in the first, value in the second.
    pub figures: Vec<(String, String, String)>,
    /// Signatures only the first run has, with their state.
    pub only_a: Vec<(String, String)>,
    pub only_b: Vec<(String, String)>,
    pub both: Vec<Both>,
    /// Ops in states only one run has met; empty where one run did not count them.
    pub reached_only_a: Vec<String>,
    pub reached_only_b: Vec<String>,
    pub withheld: u32,
}

impl Diff {
    pub fn of(a: &Run, b: &Run) -> Diff {
        let (of_a, of_b) = (by_signature(a), by_signature(b));
        let only = |of: &BTreeMap<&str, &FindingPage>, other: &BTreeMap<&str, &FindingPage>| {
            let mut rows: Vec<&FindingPage> =
                of.iter().filter(|(key, _)| !other.contains_key(*key)).map(|(_, f)| *f).collect();
            rows.sort_by_key(|f| f.state);
            let pair = |f: &FindingPage| (f.signature.clone(), state_word(f.state).to_owned());
            rows.into_iter().map(pair).collect::<Vec<_>>()
        };
        let both = of_a.iter().filter_map(|(signature, a)| {
            let b = of_b.get(signature)?;
            let side = |f: &FindingPage| (state_word(f.state).to_owned(), f.count);
            Some(Both { signature: (*signature).to_owned(), a: side(a), b: side(b) })
        });
        let (reached_only_a, reached_only_b) = match a.steps.is_empty() || b.steps.is_empty() {
            true => (Vec::new(), Vec::new()),
            false => {
                let (x, y) = (a.steps.names(), b.steps.names());
                (difference(&x, &y), difference(&y, &x))
            }
        };
        Diff {
            v: crate::run::VERSION,
            a: a.id.clone(),
            b: b.id.clone(),
            figures: figures(a, b),
            only_a: only(&of_a, &of_b),
            only_b: only(&of_b, &of_a),
            both: both.collect(),
            reached_only_a,
            reached_only_b,
            withheld: a.withheld + b.withheld,
        }
    }

    /// For a terminal; ends with a newline.
    pub fn text(&self) -> String {
        let mut rows = vec![(String::new(), self.a.clone(), self.b.clone())];
        rows.extend(self.figures.iter().cloned());
        let width = |of: fn(&(String, String, String)) -> &String| {
            rows.iter().map(|row| escape::line(of(row)).chars().count()).max().unwrap_or(0)
        };
        let (w0, w1) = (width(|row| &row.0), width(|row| &row.1));
        let mut out = String::new();
        for (name, a, b) in &rows {
            let (a, b) = (escape::line(a), escape::line(b));
            let _ = writeln!(out, "{name:<w0$}  {a:<w1$}  {b}");
        }
        for (title, list) in
            [("only in the first", &self.only_a), ("only in the second", &self.only_b)]
        {
            let _ = writeln!(out, "\nfindings {title}: {}", list.len());
            let lines = list.iter().map(|(signature, state)| format!("{state:<11}  {signature}"));
            print(&mut out, lines.collect());
        }
        let _ = writeln!(out, "\nfindings of both: {}", self.both.len());
        let lines = self.both.iter().map(|both| {
            let (a, b) = (&both.a, &both.b);
            let state = if a.0 == b.0 { a.0.clone() } else { format!("{} -> {}", a.0, b.0) };
            format!("{state:<11}  seen {:>5} -> {:<5}  {}", a.1, b.1, both.signature)
        });
        print(&mut out, lines.collect());
        let reached = [("first", &self.reached_only_a), ("second", &self.reached_only_b)];
        for (which, list) in reached.into_iter().filter(|(_, list)| !list.is_empty()) {
            let _ = writeln!(out, "\nsteps only the {which} reached: {}", list.len());
            print(&mut out, list.clone());
        }
        if self.withheld > 0 {
            let _ = writeln!(out, "\n{} finding(s) withheld (embargo)", self.withheld);
        }
        escape::terminal(&out)
    }
}

fn print(out: &mut String, lines: Vec<String>) {
    for line in lines.iter().take(LIST_MAX) {
        let _ = writeln!(out, "  {}", escape::line(line));
    }
    if lines.len() > LIST_MAX {
        let _ = writeln!(out, "  and {} more (--json has all)", lines.len() - LIST_MAX);
    }
}

fn by_signature(run: &Run) -> BTreeMap<&str, &FindingPage> {
    run.findings.iter().map(|f| (f.signature.as_str(), f)).collect()
}

fn difference(a: &BTreeSet<String>, b: &BTreeSet<String>) -> Vec<String> {
    a.difference(b).cloned().collect()
}

fn figures(a: &Run, b: &Run) -> Vec<(String, String, String)> {
    type Figure = fn(&Run) -> String;
    let rows: [(&str, Figure); 12] = [
        ("verdict", |r| r.verdict.word.clone()),
        ("kernel", |r| r.kernel.clone()),
        ("seed", |r| r.seed.map_or("-".into(), |seed| seed.to_string())),
        ("time", |r| duration(r.figures.seconds)),
        ("programs", |r| grouped(r.figures.programs)),
        ("programs/s", |r| rate(r.figures.programs_per_s)),
        ("states", |r| grouped(r.figures.states)),
        ("corpus", |r| grouped(r.figures.corpus)),
        ("functions", |r| r.figures.functions_reached.map_or("-".into(), grouped)),
        ("canaries", |r| format!("{}/{}", r.figures.canaries_found, r.figures.canaries_planted)),
        ("inconclusive", |r| grouped(r.figures.inconclusive)),
        ("VMs died", |r| grouped(r.figures.vms_lost)),
    ];
    rows.iter().map(|(name, of)| ((*name).to_owned(), of(a), of(b))).collect()
}
