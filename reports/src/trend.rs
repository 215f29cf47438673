//! A row of runs of one kernel and configuration, oldest first: a table, and how it went.

use crate::escape;
use crate::plot;
use crate::run::Run;
use crate::words::{duration, grouped, rate};
use serde::Serialize;
use std::fmt::Write;

/// One run in one line. Field names are a contract.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrendRow {
    pub run: String,
    /// RFC 3339, UTC.
    pub started: String,
    pub verdict: String,
    pub seconds: f64,
    pub programs: u64,
    pub programs_per_s: f64,
    pub states: u64,
    pub functions_reached: Option<u64>,
    pub confirmed: u32,
    pub unconfirmed: u32,
    pub known: u32,
    pub inconclusive: u64,
    pub canaries_found: u64,
    pub canaries_planted: u64,
    pub withheld: u32,
}

impl TrendRow {
    pub fn of(run: &Run) -> TrendRow {
        let f = &run.figures;
        TrendRow {
            run: run.id.clone(),
            started: run.started.clone(),
            verdict: run.verdict.word.clone(),
            seconds: f.seconds,
            programs: f.programs,
            programs_per_s: f.programs_per_s,
            states: f.states,
            functions_reached: f.functions_reached,
            confirmed: f.confirmed,
            unconfirmed: f.unconfirmed,
            known: f.known,
            inconclusive: f.inconclusive,
            canaries_found: f.canaries_found,
            canaries_planted: f.canaries_planted,
            withheld: run.withheld,
        }
    }

    /// Day and time of its start.
    pub fn day(&self) -> String {
        let time = self.started.parse::<jiff::Timestamp>();
        time.map(|t| t.strftime("%m-%d %H:%M").to_string()).unwrap_or_default()
    }
}

/// Runs of one kernel and configuration profile.
#[derive(Clone, Debug, Serialize)]
pub struct Trend {
    pub v: u32,
    pub kernel: String,
    pub profile: String,
    /// Oldest first.
    pub runs: Vec<TrendRow>,
}

/// What is drawn as a line of its own: name, value of a row, and its form.
type Curve = (&'static str, fn(&TrendRow) -> f64, fn(f64) -> String);

pub(crate) const CURVES: [Curve; 5] = [
    ("programs/s", |r| r.programs_per_s, rate),
    ("mapping states", |r| r.states as f64, |v| grouped(v as u64)),
    ("new findings", |r| f64::from(r.confirmed), |v| grouped(v as u64)),
    ("known deviations", |r| f64::from(r.known), |v| grouped(v as u64)),
    ("inconclusive, %", |r| 100.0 * r.inconclusive as f64 / r.programs.max(1) as f64, rate),
];

impl Trend {
    pub fn new(kernel: &str, profile: &str, runs: Vec<TrendRow>) -> Trend {
        let (kernel, profile) = (kernel.to_owned(), profile.to_owned());
        Trend { v: crate::run::VERSION, kernel, profile, runs }
    }

    /// For a terminal; `unicode`: blocks may be drawn. Ends with a newline.
    pub fn text(&self, unicode: bool) -> String {
        let count = self.runs.len();
        let mut out = format!("{count} run(s) of {}, profile {}\n\n", self.kernel, self.profile);
        let _ = writeln!(
            out,
            "{:<11}  {:<13}  {:>10}  {:>9}  {:>6}  {:>6}  {:>4}  {:>5}",
            "STARTED", "VERDICT", "TIME", "PROGRAMS", "PER S", "STATES", "NEW", "KNOWN"
        );
        for r in &self.runs {
            let _ = writeln!(
                out,
                "{:<11}  {:<13}  {:>10}  {:>9}  {:>6}  {:>6}  {:>4}  {:>5}",
                r.day(),
                r.verdict,
                duration(r.seconds),
                grouped(r.programs),
                rate(r.programs_per_s),
                grouped(r.states),
                r.confirmed,
                r.known,
            );
        }
        if count > 1 {
            out.push('\n');
            for (name, value, form) in CURVES {
                let values: Vec<f64> = self.runs.iter().map(value).collect();
                let last = values.last().copied().unwrap_or(0.0);
                let line = plot::spark_text(&values, unicode);
                let _ = writeln!(out, "{name:<17} {line}  {}", form(last));
            }
        }
        escape::terminal(&out)
    }
}
