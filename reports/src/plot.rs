//! Charts as inline SVG, coloured by classes so that the page decides on light and dark. Every mark
//! has a `<title>`; shapes differ, not only colours. Text in them is escaped here.

use crate::escape::line as one_line;
use crate::run::Mark;
use crate::words::{duration, grouped, short, tick};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Points of one curve that are drawn.
const POINTS_MAX: usize = 240;
/// Places of a curve that tell their value.
const HITS_MAX: usize = 60;
/// VMs that are drawn.
const LANES_MAX: usize = 16;
/// Rows and columns of a heat map; what is rarer is summed up in the last one.
const ROWS_MAX: usize = 48;
const COLUMNS_MAX: usize = 15;

const WIDTH: f64 = 360.0;
const LEFT: f64 = 42.0;
const RIGHT: f64 = 10.0;

/// One line of a chart: its class (`a`, `b`) and its points, (seconds, value).
#[derive(Clone, Debug)]
pub struct Curve {
    pub name: &'static str,
    pub class: &'static str,
    pub points: Vec<(f64, f64)>,
}

/// Text for XML.
pub fn xml(text: &str) -> String {
    let text = one_line(text);
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A step below which five or fewer marks fit.
fn step(top: f64, marks: f64) -> f64 {
    let raw = (top / marks).max(f64::MIN_POSITIVE);
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().find(|m| m * power >= raw).unwrap_or(10.0);
    step * power
}

/// Seconds between marks of a time axis.
fn time_step(end: f64) -> f64 {
    let steps = [
        1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0, 7200.0,
        14_400.0, 21_600.0, 43_200.0, 86_400.0,
    ];
    steps.into_iter().find(|s| end / s <= 5.0).unwrap_or_else(|| (end / 5.0).ceil())
}

fn time_axis(out: &mut String, end: f64, bottom: f64, top: f64, x: &dyn Fn(f64) -> f64) {
    let step = time_step(end);
    let mut at = 0.0;
    while at <= end * 1.0001 {
        let (px, label) = (x(at), tick(at));
        let _ = write!(out, "<line class=grid x1={px:.1} x2={px:.1} y1={top:.1} y2={bottom:.1} />");
        // The last label must not leave the picture.
        let anchor = if px > WIDTH - 20.0 {
            "end"
        } else if at == 0.0 {
            "start"
        } else {
            "middle"
        };
        let _ = write!(
            out,
            "<text class=tick x={px:.1} y={:.1} text-anchor={anchor}>{label}</text>",
            bottom + 13.0
        );
        at += step;
    }
}

/// Curves over time; `None` where there is nothing to draw.
pub fn curves(label: &str, curves: &[Curve], form: fn(f64) -> String) -> Option<String> {
    let points = || curves.iter().flat_map(|c| c.points.iter());
    let end = points().map(|p| p.0).fold(0.0, f64::max);
    if curves.iter().all(|c| c.points.len() < 2) || end <= 0.0 {
        return None;
    }
    let (top, bottom, height) = (8.0, 128.0, 148.0);
    let most = points().map(|p| p.1).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let step = step(most.max(1e-3), 4.0);
    let ceiling = (most / step).ceil().max(1.0) * step;
    let x = |s: f64| LEFT + s / end * (WIDTH - LEFT - RIGHT);
    let y = |v: f64| bottom - v / ceiling * (bottom - top);
    let mut out =
        format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=img><title>{}</title>", xml(label));
    let mut mark = 0.0;
    while mark <= ceiling * 1.0001 {
        let (py, text) = (y(mark), short(mark));
        let end = WIDTH - RIGHT;
        let _ = write!(out, "<line class=grid x1={LEFT} x2={end} y1={py:.1} y2={py:.1} />");
        let (tx, ty) = (LEFT - 5.0, py + 3.5);
        let _ = write!(out, "<text class=tick x={tx} y={ty:.1} text-anchor=end>{text}</text>");
        mark += step;
    }
    time_axis(&mut out, end, bottom, top, &x);
    for curve in curves {
        let thin = thinned(&curve.points, POINTS_MAX);
        let path: Vec<String> =
            thin.iter().map(|(s, v)| format!("{:.1},{:.1}", x(*s), y(*v))).collect();
        let _ = write!(
            out,
            "<polyline class=\"curve {}\" points=\"{}\" />",
            curve.class,
            path.join(" ")
        );
    }
    hits(&mut out, curves, end, (top, bottom), form);
    out.push_str("</svg>");
    Some(out)
}

/// Upright strips that tell what the curves are there.
fn hits(
    out: &mut String,
    curves: &[Curve],
    end: f64,
    (top, bottom): (f64, f64),
    form: fn(f64) -> String,
) {
    let Some(first) = curves.iter().max_by_key(|c| c.points.len()) else { return };
    let places = thinned(&first.points, HITS_MAX);
    let width = (WIDTH - LEFT - RIGHT) / places.len().max(1) as f64;
    for (s, _) in places {
        let mut told = vec![duration(s)];
        for curve in curves {
            // The newest value not after this time.
            let at = curve.points.partition_point(|p| p.0 <= s);
            if let Some((_, value)) = at.checked_sub(1).and_then(|at| curve.points.get(at)) {
                told.push(format!("{} {}", curve.name, form(*value)));
            }
        }
        let x = LEFT + s / end * (WIDTH - LEFT - RIGHT) - width / 2.0;
        let x = x.clamp(LEFT, WIDTH - RIGHT - width);
        let _ = write!(
            out,
            "<rect class=hit x={x:.1} y={top} width={width:.1} height={:.1}><title>{}</title></rect>",
            bottom - top,
            xml(&told.join(" \u{b7} "))
        );
    }
}

/// At most `limit` points, first and last among them.
fn thinned(points: &[(f64, f64)], limit: usize) -> Vec<(f64, f64)> {
    if points.len() <= limit {
        return points.to_vec();
    }
    let last = points.len() - 1;
    (0..limit).map(|at| points[at * last / (limit - 1)]).collect()
}

/// One lane per VM with what happened to it; `None` where nothing did.
pub fn lanes(vms: &BTreeMap<u64, Vec<Mark>>, end: f64) -> Option<String> {
    let last = vms.values().flatten().map(|m| m.s).fold(end, f64::max);
    if vms.is_empty() || last <= 0.0 {
        return None;
    }
    let shown = vms.len().min(LANES_MAX);
    let (wide, pitch, top) = (720.0, 22.0, 6.0);
    let bottom = top + pitch * shown as f64;
    let x = |s: f64| LEFT + s / last * (wide - LEFT - RIGHT);
    let mut out = format!(
        "<svg viewBox=\"0 0 {wide} {:.0}\" role=img><title>What happened to each VM</title>",
        bottom + 20.0
    );
    let step = time_step(last / 2.0);
    let mut at = 0.0;
    while at <= last {
        let (px, label) = (x(at), tick(at));
        let anchor = if px > wide - 24.0 { "end" } else { "middle" };
        let _ = write!(
            out,
            "<line class=grid x1={px:.1} x2={px:.1} y1={top} y2={bottom} />\
             <text class=tick x={px:.1} y={:.1} text-anchor={anchor}>{label}</text>",
            bottom + 14.0
        );
        at += step;
    }
    for (row, (slot, marks)) in vms.iter().take(LANES_MAX).enumerate() {
        let y = top + pitch * (row as f64 + 0.5);
        let _ = write!(
            out,
            "<text class=tick x={:.1} y={:.1} text-anchor=end>vm{slot}</text>",
            LEFT - 8.0,
            y + 3.5
        );
        lane(&mut out, marks, last, y, &x);
    }
    out.push_str("</svg>");
    Some(out)
}

fn lane(out: &mut String, marks: &[Mark], last: f64, y: f64, x: &dyn Fn(f64) -> f64) {
    let mut up: Option<f64> = None;
    let mut bars = String::new();
    let mut bar = |from: f64, to: f64| {
        let (a, b) = (x(from), x(to));
        let _ = write!(bars, "<line class=alive x1={a:.1} x2={b:.1} y1={y:.1} y2={y:.1} />");
    };
    for mark in marks {
        match (mark.kind.as_str(), up) {
            ("died" | "boot-failed", Some(from)) => {
                bar(from, mark.s);
                up = None;
            }
            ("booted", None) => up = Some(mark.s),
            _ => {}
        }
    }
    if let Some(from) = up {
        bar(from, last);
    }
    out.push_str(&bars);
    for mark in marks {
        let px = x(mark.s);
        let told = match mark.detail.is_empty() {
            true => format!("{} after {}", mark.kind, duration(mark.s)),
            false => format!("{} after {}: {}", mark.kind, duration(mark.s), mark.detail),
        };
        let shape = match mark.kind.as_str() {
            "booted" => format!("<circle class=boot cx={px:.1} cy={y:.1} r=4.5>"),
            "replaced" => format!("<circle class=replaced cx={px:.1} cy={y:.1} r=3.5>"),
            "died" => {
                format!("<path class=died d=\"M{:.1} {:.1}l9 9m0 -9l-9 9\">", px - 4.5, y - 4.5)
            }
            _ => format!("<path class=failed d=\"M{px:.1} {:.1}l5 9h-10z\">", y - 5.0),
        };
        let name = if shape.starts_with("<circle") { "circle" } else { "path" };
        let _ = write!(out, "{shape}<title>{}</title></{name}>", xml(&told));
    }
}

/// Counts of (row, column) as a heat map, each sorted by how often it occurs; blank: never.
pub fn heat(label: &str, counts: &BTreeMap<(String, String), u64>) -> Option<String> {
    let rows = ranked(counts.iter().map(|((row, _), n)| (row, *n)), ROWS_MAX);
    let columns = ranked(counts.iter().map(|((_, column), n)| (column, *n)), COLUMNS_MAX);
    if rows.is_empty() {
        return None;
    }
    let place = |list: &[String], name: &String, max: usize| {
        list.iter().position(|n| n == name).unwrap_or(max - 1)
    };
    let mut cells: BTreeMap<(usize, usize), u64> = BTreeMap::new();
    for ((row, column), times) in counts {
        let at = (place(&rows, row, ROWS_MAX), place(&columns, column, COLUMNS_MAX));
        *cells.entry(at).or_default() += times;
    }
    let most = cells.values().copied().max().unwrap_or(1).max(2) as f64;
    let (left, size, top) = (108.0, 14.0, 116.0);
    let height = top + size * rows.len() as f64 + 4.0;
    let mut out =
        format!("<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=img><title>{}</title>", xml(label));
    for (at, name) in columns.iter().enumerate() {
        let x = left + size * (at as f64 + 0.5) + 4.0;
        let _ = write!(
            out,
            "<text class=tick transform=\"translate({x:.1} {:.1}) rotate(-72)\">{}</text>",
            top - 5.0,
            xml(&clipped(name, 22))
        );
    }
    for (at, name) in rows.iter().enumerate() {
        let y = top + size * at as f64;
        let _ = write!(
            out,
            "<text class=tick x={:.1} y={:.1} text-anchor=end>{}</text>",
            left - 5.0,
            y + 10.5,
            xml(&clipped(name, 20))
        );
        for (column, above) in columns.iter().enumerate() {
            let times = cells.get(&(at, column)).copied().unwrap_or(0);
            let level = match times {
                0 => 0,
                n => 1 + ((n as f64).ln() / most.ln() * 6.0).round().clamp(0.0, 6.0) as u32,
            };
            let told = match times {
                0 => format!("{name} \u{d7} {above}: never"),
                n => format!("{name} \u{d7} {above}: {}", grouped(n)),
            };
            let _ = write!(
                out,
                "<rect class=h{level} x={:.1} y={y:.1} width=13 height=13><title>{}</title></rect>",
                left + size * column as f64,
                xml(&told)
            );
        }
    }
    out.push_str("</svg>");
    Some(out)
}

/// Names by how often they occur; from `limit` on they are one.
fn ranked<'a>(names: impl Iterator<Item = (&'a String, u64)>, limit: usize) -> Vec<String> {
    let mut sums: BTreeMap<&String, u64> = BTreeMap::new();
    for (name, times) in names {
        *sums.entry(name).or_default() += times;
    }
    let mut ranked: Vec<(&String, u64)> = sums.into_iter().collect();
    ranked.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    let mut out: Vec<String> = ranked.iter().map(|(name, _)| (*name).clone()).collect();
    if out.len() > limit {
        let rest = out.len() - (limit - 1);
        out.truncate(limit - 1);
        out.push(format!("{rest} others"));
    }
    out
}

fn clipped(name: &str, limit: usize) -> String {
    if name.chars().count() <= limit {
        return name.to_owned();
    }
    let mut out: String = name.chars().take(limit - 1).collect();
    out.push('\u{2026}');
    out
}

/// A row of values as a small curve.
pub fn spark(label: &str, values: &[f64], told: &[String]) -> String {
    let (wide, high) = (240.0, 44.0);
    let most = values.iter().copied().fold(0.0, f64::max).max(1e-9);
    let place = |at: usize, value: f64| {
        let x = 6.0 + at as f64 / (values.len().max(2) - 1) as f64 * (wide - 12.0);
        (x, high - 6.0 - value / most * (high - 12.0))
    };
    let mut out =
        format!("<svg viewBox=\"0 0 {wide} {high}\" role=img><title>{}</title>", xml(label));
    let points: Vec<String> = values
        .iter()
        .enumerate()
        .map(|(at, value)| place(at, *value))
        .map(|(x, y)| format!("{x:.1},{y:.1}"))
        .collect();
    let _ = write!(out, "<polyline class=\"curve a\" points=\"{}\" />", points.join(" "));
    for (at, value) in values.iter().enumerate() {
        let (x, y) = place(at, *value);
        let title = told.get(at).map(|t| xml(t)).unwrap_or_default();
        let _ = write!(
            out,
            "<circle class=point cx={x:.1} cy={y:.1} r=3><title>{title}</title></circle>"
        );
    }
    out.push_str("</svg>");
    out
}

/// A row of values in one line of text.
pub fn spark_text(values: &[f64], unicode: bool) -> String {
    let blocks: Vec<char> = match unicode {
        true => "▁▂▃▄▅▆▇█".chars().collect(),
        false => "_.:-=+*#".chars().collect(),
    };
    let most = values.iter().copied().fold(0.0, f64::max).max(1e-9);
    let block = |v: &f64| blocks[((v / most * 7.0).round() as usize).min(7)];
    values.iter().map(block).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_stay_text() {
        let evil = "</title><script>\"&\u{1b}".to_owned();
        let counts = BTreeMap::from([((evil.clone(), evil.clone()), 3u64)]);
        let svg = heat(&evil, &counts).unwrap();
        assert!(!svg.contains("<script") && !svg.contains('\u{1b}'), "{svg}");
        let mark = Mark { s: 1.0, kind: "died".into(), detail: evil.clone() };
        let svg = lanes(&BTreeMap::from([(0, vec![mark])]), 2.0).unwrap();
        assert!(!svg.contains("<script"));
    }

    #[test]
    fn big_tables_are_bounded() {
        let mut counts = BTreeMap::new();
        for at in 0..200u64 {
            counts.insert((format!("op{at}"), format!("state{at}")), at + 1);
        }
        let svg = heat("x", &counts).unwrap();
        assert_eq!(svg.matches("<rect").count(), ROWS_MAX * COLUMNS_MAX);
        assert!(svg.contains("153 others") && svg.contains("186 others"));
        let points = (0..100_000).map(|at| (f64::from(at), 1.0)).collect();
        let curve = Curve { name: "x", class: "a", points };
        assert!(curves("x", &[curve], |v| v.to_string()).unwrap().len() < 20_000);
        assert_eq!(curves("x", &[], |v| v.to_string()), None);
        assert_eq!(heat("x", &BTreeMap::new()), None);
    }

    #[test]
    fn axes_have_round_marks() {
        assert_eq!(step(97.0, 4.0), 50.0);
        assert_eq!(time_step(600.0), 120.0);
        assert_eq!(spark_text(&[0.0, 7.0], true), "▁█");
        assert_eq!(spark_text(&[], false), "");
    }
}
