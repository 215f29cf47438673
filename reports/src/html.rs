//! The HTML page of a run, and of a row of runs: one file, no request to anywhere, a content
//! security policy that runs our script only.

use crate::escape::pictures;
use crate::fleet::{self, Machine};
use crate::page::{self, Chart, FileRow, Row, Tile};
use crate::plot;
use crate::run::{Mark, Run};
use crate::trend::{CURVES, Trend, TrendRow};
use askama::Template;
use case::FindingState;

const STYLE: &str = include_str!("../templates/style.css");
const SCRIPT: &str = include_str!("../templates/script.js");
const LANES_MAX: usize = 16;

#[derive(Template)]
#[template(path = "report.html")]
struct Page<'a> {
    run: &'a Run,
    nonce: String,
    style: &'static str,
    script: &'static str,
    version: &'static str,
    command: String,
    facts: Vec<(&'static str, String)>,
    tiles: Vec<Tile>,
    withheld: String,
    rows: Vec<Row<'a>>,
    pages: Vec<Row<'a>>,
    /// Where the pages of what is known begin, and how many there are: they are folded together.
    known_from: usize,
    known: usize,
    left_out: usize,
    unpaged: usize,
    charts: Vec<Chart>,
    lanes: Option<String>,
    lanes_left_out: usize,
    deaths: Vec<(u64, &'a Mark)>,
    heats: Vec<Chart>,
    coverage: Vec<FileRow>,
    coverage_left_out: usize,
    machines: Vec<fleet::Row<'a>>,
    provenance: Vec<(&'a str, Vec<&'a [String; 4]>)>,
}

#[derive(Template)]
#[template(path = "trend.html")]
struct TrendPage<'a> {
    trend: &'a Trend,
    nonce: String,
    style: &'static str,
    /// Caption, newest value, picture.
    sparks: Vec<(&'static str, String, String)>,
    /// Newest first.
    rows: Vec<&'a TrendRow>,
}

/// The page of a run.
pub fn html(run: &Run) -> Result<String, crate::ReportError> {
    let (rows, left_out, unpaged) = page::rows(run);
    let pages: Vec<Row<'_>> = page::rows(run).0.into_iter().filter(|row| row.linked).collect();
    let is_known = |row: &&Row<'_>| row.f.state == FindingState::Known;
    let known = pages.iter().rev().take_while(is_known).count();
    let (coverage, coverage_left_out) = page::coverage(run);
    let dead = |m: &&Mark| m.kind == "died" || m.kind == "boot-failed";
    let deaths = run
        .vms
        .iter()
        .flat_map(|(slot, marks)| marks.iter().filter(dead).map(|mark| (*slot, mark)));
    let page = Page {
        nonce: nonce(&serde_json::to_vec(run)?),
        style: STYLE,
        script: SCRIPT,
        version: env!("CARGO_PKG_VERSION"),
        command: run.command.join(" "),
        facts: page::facts(run),
        tiles: page::tiles(run),
        withheld: page::withheld(run),
        known_from: pages.len() - known,
        known,
        pages,
        rows,
        left_out,
        unpaged,
        charts: page::charts(run),
        lanes: plot::lanes(&run.vms, run.figures.seconds),
        lanes_left_out: run.vms.len().saturating_sub(LANES_MAX),
        deaths: deaths.take(page::DEATHS_MAX).collect(),
        heats: page::heats(run),
        coverage,
        coverage_left_out,
        machines: run.fleet.iter().map(Machine::row).collect(),
        provenance: page::provenance(run),
        run,
    };
    Ok(pictures(&page.render()?))
}

/// The page of a row of runs.
pub fn trend(trend: &Trend) -> Result<String, crate::ReportError> {
    let sparks = CURVES.iter().map(|(name, value, form)| {
        let values: Vec<f64> = trend.runs.iter().map(value).collect();
        let told: Vec<String> =
            trend.runs.iter().map(|r| format!("{}: {}", r.day(), form(value(r)))).collect();
        let now = values.last().map(|v| form(*v)).unwrap_or_default();
        (*name, now, plot::spark(name, &values, &told))
    });
    let page = TrendPage {
        nonce: nonce(&serde_json::to_vec(trend)?),
        style: STYLE,
        sparks: sparks.collect(),
        rows: trend.runs.iter().rev().collect(),
        trend,
    };
    Ok(pictures(&page.render()?))
}

/// A word no text inside the report can know, since it depends on all of it.
fn nonce(data: &[u8]) -> String {
    blake3::hash(data).to_hex().as_str()[..32].to_owned()
}
