//! What a soak measures of a campaign from outside, and what it must be.

use crate::campaign::{Campaign, Summary};
use crate::faults::Row;
use crate::proc_file;
use crate::server::{Kept, Server};
use anyhow::{Context, Result};
use std::fmt::Write;
use std::path::Path;
use std::time::Instant;

/// Clock ticks a second in /proc on every Linux ABI.
const TICKS: f64 = 100.0;
/// Share of a soak that is no measure yet: corpus and caches fill.
const WARM: f64 = 0.25;
/// Share at either end whose speeds are compared.
const END: f64 = 0.2;
/// Threads of the campaign that do nothing but exchange.
const EXCHANGE: [&str; 2] = ["hub", "nats"];
/// Most inconclusive programs, and most CPU of the exchange: shares.
const INCONCLUSIVE_MAX: f64 = 0.01;
const EXCHANGE_MAX: f64 = 0.02;
/// Shorter ones say nothing of speed and memory over time.
const LONG: f64 = 1800.0;
/// Least speed at the end, as a share of that at the start; the machine may be shared.
const SPEED_MIN: f64 = 0.7;
/// Memory of the campaign for each entry its corpus gets, in KiB: what is more is a leak.
const ENTRY_MAX: f64 = 16.0;

/// The campaign at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    pub seconds: f64,
    pub programs: u64,
    pub corpus: u64,
    /// Of hgm itself, in KiB: what it holds that no file backs.
    pub rss_kib: u64,
    pub fds: u64,
    pub threads: u64,
    /// CPU seconds so far: of hgm, of its threads of exchange, of the server.
    pub cpu: f64,
    pub exchange: f64,
    pub server: f64,
}

#[derive(Default)]
pub struct Series(Vec<Sample>);

impl Sample {
    /// # Errors
    /// If /proc is not as it is on Linux. A campaign that has just ended gives zeros.
    pub fn take(campaign: &Campaign, server: &Server, start: Instant) -> Result<Sample> {
        let (pid, said) = (campaign.pid(), campaign.said());
        let status = proc_file(pid, "status").unwrap_or_default();
        let of = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |dir| dir.count() as u64);
        Ok(Sample {
            seconds: start.elapsed().as_secs_f64(),
            programs: said.programs,
            corpus: said.corpus,
            rss_kib: of("RssAnon:"),
            fds,
            threads: of("Threads:"),
            cpu: cpu(pid).unwrap_or(0.0),
            exchange: exchange(pid),
            server: server.spent + cpu(server.pid()).unwrap_or(0.0),
        })
    }
}

/// CPU seconds of a process.
pub fn cpu(pid: i32) -> Result<f64> {
    ticks(&proc_file(pid, "stat").context("no such process")?).context("no stat")
}

/// User and system time of a `stat` of /proc; names may hold spaces, fields count from the bracket.
fn ticks(stat: &str) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let fields = rest.split_whitespace().skip(11).take(2);
    Some(fields.filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / TICKS)
}

fn exchange(pid: i32) -> f64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let read = |path: std::path::PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    tasks
        .filter(|task| EXCHANGE.contains(&read(task.path().join("comm")).trim()))
        .filter_map(|task| ticks(&read(task.path().join("stat"))))
        .sum()
}

impl Series {
    /// Samples of a campaign that was alive.
    pub fn push(&mut self, sample: Sample) {
        if sample.threads > 0 {
            self.0.push(sample);
        }
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text = String::from(
            "seconds\tprograms\tcorpus\trss_kib\tfds\tthreads\tcpu\texchange\tserver\n",
        );
        for s in &self.0 {
            writeln!(
                text,
                "{:.1}\t{}\t{}\t{}\t{}\t{}\t{:.2}\t{:.2}\t{:.2}",
                s.seconds,
                s.programs,
                s.corpus,
                s.rss_kib,
                s.fds,
                s.threads,
                s.cpu,
                s.exchange,
                s.server
            )?;
        }
        Ok(std::fs::write(path, text)?)
    }

    /// Samples of a part of the time, from and to in shares.
    fn part(&self, from: f64, to: f64) -> &[Sample] {
        let n = self.0.len() as f64;
        &self.0[(n * from) as usize..(n * to) as usize]
    }

    /// Programs a second in a part of the time.
    fn speed(&self, from: f64, to: f64) -> f64 {
        match self.part(from, to) {
            [first, .., last] => {
                (last.programs - first.programs) as f64 / (last.seconds - first.seconds)
            }
            _ => 0.0,
        }
    }

    /// Least squares of the memory over time, after the start: MiB an hour.
    fn growth(&self) -> f64 {
        let part = self.part(WARM, 1.0);
        let n = part.len().max(1) as f64;
        let x = |s: &Sample| s.seconds / 3600.0;
        let y = |s: &Sample| s.rss_kib as f64 / 1024.0;
        let (mx, my) = (part.iter().map(x).sum::<f64>() / n, part.iter().map(y).sum::<f64>() / n);
        let over: f64 = part.iter().map(|s| (x(s) - mx) * (y(s) - my)).sum();
        let under: f64 = part.iter().map(|s| (x(s) - mx).powi(2)).sum();
        if under > 0.0 { over / under } else { 0.0 }
    }

    fn is_long(&self) -> bool {
        self.0.last().is_some_and(|s| s.seconds >= LONG)
    }

    fn most(&self, from: f64, to: f64, of: impl Fn(&Sample) -> u64) -> u64 {
        self.part(from, to).iter().map(of).max().unwrap_or(0)
    }
}

/// Prints the tables; how many figures are not as they must be.
pub fn tell(series: &Series, summary: &Summary, faults: &[Row], kept: &Kept) -> Result<u64> {
    println!("| fault | tried | survived | lost | longest until it went on, s |");
    println!("|---|---|---|---|---|");
    let (mut tried, mut lost) = (0, 0);
    for row in faults {
        let name = row.fault.name();
        let (n, gone, longest) = (row.tried, row.lost, row.longest.as_secs_f64());
        println!("| {name} | {n} | {} | {gone} | {longest:.1} |", n - gone);
        tried += n;
        lost += gone;
    }
    println!("\n| figure | value | must be | |");
    println!("|---|---|---|---|");
    let mut bad = 0;
    let mut row = |name: &str, value: String, must: &str, good: bool| {
        println!("| {name} | {value} | {must} | {} |", if good { "ok" } else { "NOT OK" });
        bad += u64::from(!good);
    };
    let value = &summary.value;
    let number = |name: &str| value[name].as_f64().unwrap_or(0.0);
    let last = series.0.last().copied().unwrap_or_default();
    let code = summary.code.map_or("a signal".to_owned(), |code| code.to_string());
    row("minutes", format!("{:.1}", last.seconds / 60.0), "", true);
    // What a kernel or the model does wrong in two minutes is not what those are for.
    let through =
        matches!(summary.code, Some(0 | 5)) || !series.is_long() && summary.code == Some(100);
    row("exit code", code, "0, or 5: not replayed", through);
    row("programs", format!("{}", number("programs")), "more than 0", number("programs") > 0.0);
    let found = value["findings"].as_object().map_or(0, |all| all.len());
    row("findings, known ones among them", found.to_string(), "", true);
    let void = number("inconclusive") / number("programs").max(1.0);
    let inconclusive = format!("{} ({:.2} %)", number("inconclusive"), void * 100.0);
    row("inconclusive", inconclusive, "below 1 %", void < INCONCLUSIVE_MAX);
    let canaries = &value["canaries"];
    let (planted, seen) = (&canaries["planted"], &canaries["found"]);
    row("canaries found", format!("{seen} of {planted}"), "all", planted == seen);
    row("faults survived", format!("{} of {tried}", tried - lost), "all", lost == 0);
    let missing = format!("{} of {}", kept.missing, kept.entries);
    row("corpus entries the hub lacks", missing, "0", kept.missing == 0 && kept.entries > 0);
    rates(series, &mut row);
    let confirmed = confirmed(value);
    let must = if series.is_long() { "0" } else { "" };
    row("confirmed findings", confirmed.to_string(), must, confirmed == 0 || must.is_empty());
    let share = (last.exchange + last.server) / (last.seconds * cpus()).max(0.001);
    let exchange = format!("{:.2} % of the machine", share * 100.0);
    row("CPU of the exchange, server with it", exchange, "below 2 %", share < EXCHANGE_MAX);
    row(
        "CPU of hgm itself",
        format!("{:.0} % of a core", 100.0 * last.cpu / last.seconds),
        "",
        true,
    );
    Ok(bad)
}

fn rates(series: &Series, row: &mut impl FnMut(&str, String, &str, bool)) {
    let (first, last) = (series.speed(0.02, END), series.speed(1.0 - END, 1.0));
    let speeds = format!("{first:.1} -> {last:.1}");
    let long = series.is_long();
    let must = |text: &'static str| if long { text } else { "" };
    let kept_up = last >= SPEED_MIN * first;
    row("programs a second, start -> end", speeds, must("0.7 of it"), kept_up || !long);
    let growth = series.growth();
    let ends = [series.part(WARM, 1.0).first(), series.0.last()];
    let ends = ends.map(|s| s.map_or(0, |s| s.rss_kib / 1024));
    let memory = format!("{:+.1} MiB an hour ({} -> {} MiB)", growth, ends[0], ends[1]);
    row("memory of hgm, after a quarter", memory, "", true);
    let part = series.part(WARM, 1.0);
    let entries = part.last().map_or(0, |s| s.corpus) - part.first().map_or(0, |s| s.corpus);
    let seconds = part.last().map_or(0.0, |s| s.seconds) - part.first().map_or(0.0, |s| s.seconds);
    let entry = growth * 1024.0 * seconds / 3600.0 / entries.max(1) as f64;
    let text = format!("{entry:.1} KiB each of {entries}");
    let fits = entry < ENTRY_MAX;
    row("the same for each new corpus entry", text, must("below 16"), fits || !long);
    for (name, of) in
        [("descriptors", (|s| s.fds) as fn(&Sample) -> u64), ("threads", |s| s.threads)]
    {
        let (first, last) = (series.most(0.0, 0.5, of), series.most(0.5, 1.0, of));
        let text = format!("{first} -> {last}");
        let name = format!("most {name}, first half -> second");
        row(&name, text, must("no more"), last <= first || !long);
    }
}

/// Of a summary: findings that replays showed and no list has.
fn confirmed(summary: &serde_json::Value) -> usize {
    let all = summary["findings"].as_object().into_iter().flatten();
    all.filter(|(_, finding)| finding["state"] == "confirmed").count()
}

/// Rows for the table of faults.
pub fn faults(series: &Series, summary: &Summary, faults: &[Row], start: Instant) {
    for row in faults {
        trials::fault("F29", row.fault.name(), row.tried, row.lost, start);
    }
    let (programs, false_ones) =
        (series.0.last().map_or(0, |s| s.programs), confirmed(&summary.value));
    trials::fault("F28", "programs on a stock kernel", programs, false_ones as u64, start);
}

fn cpus() -> f64 {
    std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64)
}
