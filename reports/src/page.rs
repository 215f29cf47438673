//! What the HTML page shows, in the order and number it shows it: tiles, rows, finding pages,
//! charts. Bounds that keep the file below 2 MiB are here.

use crate::plot::{self, Curve};
use crate::run::{FindingPage, Mark, Run, Sample};
use crate::words::{count, duration, grouped, rate, time};
use case::FindingState;

/// Rows of the findings table.
const ROWS_MAX: usize = 1000;
/// Bytes of all finding pages together, as they came.
const PAGES_BYTES_MAX: usize = 900 << 10;
/// Pages that are open at first.
const OPEN_MAX: usize = 5;
/// Characters of a result in the table of ops; all of it is in the finding's folder.
const RESULT_MAX: usize = 160;
/// Files of the coverage table.
const FILES_MAX: usize = 40;
/// Deaths that are listed.
pub const DEATHS_MAX: usize = 200;

/// A figure in large type.
#[derive(Debug)]
pub struct Tile {
    pub label: &'static str,
    pub value: String,
    pub sub: String,
    pub bad: bool,
}

/// A finding in the table, and on its page.
#[derive(Debug)]
pub struct Row<'a> {
    pub f: &'a FindingPage,
    /// Gravest first.
    pub rank: usize,
    pub seen: String,
    pub replays: String,
    /// Share of replays that showed it, for sorting.
    pub share: f64,
    pub ops: usize,
    pub shrunk: Option<usize>,
    pub elsewhere: String,
    pub linked: bool,
    pub open: bool,
}

/// A picture with its caption.
#[derive(Debug)]
pub struct Chart {
    pub title: &'static str,
    pub legend: Vec<(&'static str, &'static str)>,
    pub svg: String,
}

/// A file of the coverage table.
#[derive(Debug)]
pub struct FileRow {
    pub file: String,
    pub reached: usize,
    pub known: usize,
    pub percent: usize,
    pub blocks: String,
}

/// Facts of the header.
pub fn facts(run: &Run) -> Vec<(&'static str, String)> {
    let release = run.provenance.iter().find(|row| row[0] == "Guest" && row[1] == "release");
    let release = release.map(|row| row[2].clone()).unwrap_or_default();
    let mut facts = vec![
        ("Kernel", run.kernel.clone()),
        ("Release", release),
        ("Started", time(&run.started)),
        ("Duration", duration(run.figures.seconds)),
        ("Seed", run.seed.map(|seed| seed.to_string()).unwrap_or_default()),
        ("Configuration", run.profile.clone()),
        ("hgm", run.version.clone()),
    ];
    let wanted = [("Kernel", "image blake3"), ("Host", "accelerator"), ("Host", "QEMU")];
    for (group, name) in wanted {
        let row = run.provenance.iter().find(|row| row[0] == group && row[1] == name);
        let label = match name {
            "image blake3" => "Kernel image",
            "accelerator" => "Accelerator",
            other => other,
        };
        // A hash by its beginning, a version without its package's.
        let brief = |text: &str| match name {
            "QEMU" => text.split(" (").next().unwrap_or_default().to_owned(),
            _ => text.to_owned(),
        };
        facts.extend(row.map(|row| (label, brief(&row[2]).chars().take(24).collect())));
    }
    facts.retain(|(_, value)| !value.is_empty());
    facts
}

pub fn tiles(run: &Run) -> Vec<Tile> {
    let f = &run.figures;
    let tile = |label, value: String, sub: String| Tile { label, value, sub, bad: false };
    let per = |part: u64, all: u64| 100.0 * part as f64 / all.max(1) as f64;
    let mut tiles = vec![
        tile("Programs", grouped(f.programs), format!("{} per second", rate(f.programs_per_s))),
        tile("Ops judged", grouped(f.ops), {
            let each = f.ops as f64 / f.programs.max(1) as f64;
            format!("{each:.1} per program")
        }),
        tile(
            "Mapping states",
            grouped(f.states),
            match f.transitions {
                Some(steps) => format!("{} op-state steps", grouped(steps)),
                None => "distinct".into(),
            },
        ),
        tile("Corpus", grouped(f.corpus), "programs worth keeping".into()),
    ];
    if let (Some(reached), Some(known)) = (f.functions_reached, f.functions_known) {
        let sub = format!("of {} known ({:.0} %)", grouped(known), per(reached, known));
        tiles.push(tile("Kernel functions", grouped(reached), sub));
    }
    if let Some(blocks) = f.blocks {
        tiles.push(tile("Kernel blocks", grouped(blocks), "distinct, executed".into()));
    }
    tiles.push(Tile {
        label: "Canaries",
        value: format!("{} of {}", f.canaries_found, f.canaries_planted),
        sub: match f.canaries_planted {
            0 => "none planted".into(),
            planted if f.canaries_found < planted => "a planted fault was missed".into(),
            _ => "planted faults found".into(),
        },
        bad: f.canaries_found < f.canaries_planted,
    });
    let share = format!("{:.1} % of programs", per(f.inconclusive, f.programs));
    tiles.push(tile("Inconclusive", grouped(f.inconclusive), share));
    let vms =
        f.vms.unwrap_or_else(|| run.vms.values().flatten().filter(|m| is_up(m)).count() as u64);
    let died = format!("{} died, {} never came up", f.vms_lost, f.boots_failed);
    tiles.push(tile("VMs", grouped(vms), died));
    tiles
}

fn is_up(mark: &Mark) -> bool {
    mark.kind == "booted" || mark.kind == "replaced"
}

/// Rows of the table, how many are left out, and which have a page.
pub fn rows(run: &Run) -> (Vec<Row<'_>>, usize, usize) {
    let mut bytes = 0;
    let mut unpaged = 0;
    let mut rows = Vec::new();
    for (at, f) in run.findings.iter().take(ROWS_MAX).enumerate() {
        bytes += weight(f);
        let linked = bytes <= PAGES_BYTES_MAX;
        unpaged += usize::from(!linked);
        rows.push(row(f, at, linked));
    }
    let left_out = run.findings.len() - rows.len();
    (rows, left_out, unpaged + left_out)
}

/// Bytes a finding's page takes, markup of its tables included.
fn weight(f: &FindingPage) -> usize {
    let op = |op: &crate::compared::OpRow| {
        let texts = [&op.op, &op.result, &op.expected, &op.observed, &op.rules];
        220 + texts.iter().map(|text| escaped(text)).sum::<usize>()
    };
    // Programs stand in the copy button, too.
    let programs = 2 * (escaped(&f.program) + escaped(&f.small) + escaped(&f.replay));
    let texts = [&f.report, &f.console, &f.expected, &f.observed, &f.title, &f.signature];
    let texts: usize = texts.iter().map(|text| escaped(text)).sum();
    2000 + f.ops.iter().map(op).sum::<usize>() + programs + texts
}

/// Bytes of a text once it is HTML.
fn escaped(text: &str) -> usize {
    let bytes = text.bytes().map(|byte| match byte {
        b'<' | b'>' | b'&' | b'"' | b'\'' => 5,
        0..=31 => 3,
        _ => 1,
    });
    bytes.sum()
}

fn row(f: &FindingPage, at: usize, linked: bool) -> Row<'_> {
    let (shown, tried) = f.reproduced;
    let shrunk = (!f.small.is_empty()).then(|| FindingPage::ops_of(&f.small));
    Row {
        f,
        rank: at,
        seen: grouped(u64::from(f.count)),
        replays: match (tried, f.state) {
            (0, FindingState::Known) => "not needed".into(),
            (0, _) => "none yet".into(),
            _ => format!("{shown} of {tried}"),
        },
        share: if tried == 0 { -1.0 } else { f64::from(shown) / f64::from(tried) },
        ops: FindingPage::ops_of(&f.program),
        shrunk,
        elsewhere: match &f.elsewhere {
            Some((kernel, _, 0)) => format!("{kernel}: cannot run it"),
            Some((kernel, shown, tried)) => format!("{kernel}: {shown} of {tried}"),
            None => String::new(),
        },
        linked,
        open: linked && at < OPEN_MAX && f.state == FindingState::Confirmed,
    }
}

/// Curves over the time of the run.
pub fn charts(run: &Run) -> Vec<Chart> {
    let series = &run.series;
    let of = |value: fn(&Sample) -> Option<u64>| -> Vec<(f64, f64)> {
        series.iter().filter_map(|p| Some((p.s, value(p)? as f64))).collect()
    };
    let curve = |name, points| Curve { name, class: "a", points };
    let whole = |v: f64| grouped(v.max(0.0).round() as u64);
    let mut charts = Vec::new();
    let mut put = |title, curves: Vec<Curve>, form: fn(f64) -> String| {
        let legend = match curves.len() {
            0 | 1 => Vec::new(),
            _ => curves.iter().map(|c| (c.class, c.name)).collect(),
        };
        charts.extend(plot::curves(title, &curves, form).map(|svg| Chart { title, legend, svg }));
    };
    put("Mapping states", vec![curve("states", of(|p| Some(p.states)))], whole);
    put("Programs per second", vec![curve("programs/s", speed(series))], rate);
    put("Corpus", vec![curve("programs", of(|p| Some(p.corpus)))], whole);
    put("Kernel blocks executed", vec![curve("blocks", of(|p| p.blocks))], whole);
    let findings = Curve { name: "new findings", class: "a", points: of(|p| Some(p.findings)) };
    let voids = Curve { name: "inconclusive", class: "b", points: of(|p| Some(p.inconclusive)) };
    put("New findings, inconclusive programs", vec![findings, voids], whole);
    let memory: Vec<(f64, f64)> =
        series.iter().filter_map(|p| Some((p.s, p.rss_kib? as f64 / 1024.0))).collect();
    put("Memory of all VMs, MiB", vec![curve("MiB", memory)], whole);
    let boots = boot_times(run);
    put("Until a VM answers, ms", vec![curve("ms", boots)], whole);
    charts
}

/// Programs per second between samples, over at least a thirtieth of the run.
fn speed(series: &[Sample]) -> Vec<(f64, f64)> {
    let end = series.last().map(|p| p.s).unwrap_or(0.0);
    let window = (end / 30.0).max(5.0);
    let mut out = Vec::new();
    let mut from = 0;
    for (at, point) in series.iter().enumerate() {
        while from + 1 < at && point.s - series[from + 1].s >= window {
            from += 1;
        }
        let first = &series[from];
        if point.s - first.s > 0.5 {
            let programs = point.programs.saturating_sub(first.programs) as f64;
            out.push((point.s, programs / (point.s - first.s)));
        }
    }
    out
}

fn boot_times(run: &Run) -> Vec<(f64, f64)> {
    let took = |m: &Mark| {
        let ms: f64 = m.detail.strip_suffix(" ms")?.parse().ok()?;
        is_up(m).then_some((m.s, ms))
    };
    let mut points: Vec<(f64, f64)> = run.vms.values().flatten().filter_map(took).collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    points
}

pub fn heats(run: &Run) -> Vec<Chart> {
    let chart = |title, svg: Option<String>| Some(Chart { title, legend: Vec::new(), svg: svg? });
    let ops = chart("Op \u{d7} the state it met", plot::heat("Op by state", &run.steps.by_op()));
    let title = "State before \u{d7} state after";
    let states = chart(title, plot::heat("State by state", &run.steps.by_state()));
    [ops, states].into_iter().flatten().collect()
}

/// Files, those of mm/ first, best reached first.
pub fn coverage(run: &Run) -> (Vec<FileRow>, usize) {
    let mut files: Vec<_> = run.coverage.iter().filter(|f| f.blocks > 0).collect();
    files.sort_by_key(|f| {
        (!f.file.starts_with("mm/"), std::cmp::Reverse(f.functions_reached), f.file.clone())
    });
    let left_out = run.coverage.len() - files.len().min(FILES_MAX);
    let row = |f: &crate::kept::CoveredFile| FileRow {
        file: f.file.clone(),
        reached: f.functions_reached,
        known: f.functions_known,
        percent: (100 * f.functions_reached / f.functions_known.max(1)).min(100),
        blocks: grouped(f.blocks as u64),
    };
    (files.into_iter().take(FILES_MAX).map(row).collect(), left_out)
}

/// Groups in the order they came, with their rows.
pub fn provenance(run: &Run) -> Vec<(&str, Vec<&[String; 4]>)> {
    let mut groups: Vec<(&str, Vec<&[String; 4]>)> = Vec::new();
    for row in &run.provenance {
        match groups.iter_mut().find(|(group, _)| *group == row[0]) {
            Some((_, rows)) => rows.push(row),
            None => groups.push((&row[0], vec![row])),
        }
    }
    groups
}

/// A result in a table cell: a list of a thousand equal numbers helps nobody.
pub fn brief(result: &str) -> String {
    if result.chars().count() <= RESULT_MAX {
        return result.to_owned();
    }
    let mut out: String = result.chars().take(RESULT_MAX).collect();
    out.push_str(" \u{2026}");
    out
}

/// "3 findings".
pub fn withheld(run: &Run) -> String {
    count(run.withheld.into(), "finding")
}
