//! A campaign under faults, watched from outside: one `hgm fuzz` with real guests and a hub, to which
//! something is done every so often, while its memory, descriptors, threads and speed are measured.
//! For releases and nights; tests of single faults are elsewhere. `ci/soak` builds and calls it.
//!
//! Usage: soak HGM OUT-DIR KERNEL-ID MINUTES SECONDS-BETWEEN-FAULTS JOBS SEED [RUNS-TMPFS]
//!
//! With RUNS-TMPFS, a small file system that holds the runs of the home, its disk is filled, too.
//! OUT-DIR gets `campaign.log`, `summary.json` and `samples.tsv`; the tables go to stdout. Ends with 1
//! if something was lost or grows without end.

mod campaign;
mod faults;
mod figures;
mod server;

use anyhow::{Context, Result, bail};
use campaign::Campaign;
use faults::{Fault, Made};
use figures::{Sample, Series};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use server::Server;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Between two samples.
const SAMPLE: Duration = Duration::from_secs(5);
/// A campaign is left alone for so long at its start and before its end.
const QUIET: Duration = Duration::from_secs(30);
/// After its time it has this long to end by itself: findings are replayed then.
const ENDING: Duration = Duration::from_secs(600);

/// What is asked for.
struct Plan {
    hgm: PathBuf,
    out: PathBuf,
    kernel: String,
    time: Duration,
    every: Duration,
    jobs: String,
    seed: u64,
    disk: Option<PathBuf>,
}

fn main() -> Result<()> {
    let (plan, start) = (plan()?, Instant::now());
    std::fs::create_dir_all(&plan.out)?;
    let mut server = Server::start(&plan.out.join("hub"))?;
    let mut campaign = Campaign::start(&plan, &server.address())?;
    let mut series = Series::default();
    let made = soak(&plan, &mut campaign, &mut server, &mut series)?;
    series.write(&plan.out.join("samples.tsv"))?;
    let summary = campaign.summary(ENDING)?;
    std::fs::write(plan.out.join("summary.json"), &summary.text)?;
    let table = faults::table(&made);
    let kept = server.missing(&summary.corpus())?;
    let bad = figures::tell(&series, &summary, &table, &kept)?;
    figures::faults(&series, &summary, &table, start);
    if bad > 0 {
        bail!("{bad} of the figures above are not as they must be");
    }
    Ok(())
}

fn plan() -> Result<Plan> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [hgm, out, kernel, minutes, every, jobs, seed, disk @ ..] = args.as_slice() else {
        bail!("usage: soak HGM OUT-DIR KERNEL-ID MINUTES SECONDS JOBS SEED [RUNS-TMPFS]");
    };
    let minutes: f64 = minutes.parse().context("MINUTES is a number")?;
    let every: u64 = every.parse().context("SECONDS is a number")?;
    Ok(Plan {
        hgm: hgm.into(),
        out: out.into(),
        kernel: kernel.clone(),
        time: Duration::from_secs_f64(minutes * 60.0),
        every: Duration::from_secs(every.max(1)),
        jobs: jobs.clone(),
        seed: seed.parse().context("SEED is a number")?,
        disk: disk.first().map(PathBuf::from),
    })
}

/// The soak itself: every fault in an order that chance gives, then in another one.
fn soak(
    plan: &Plan,
    campaign: &mut Campaign,
    server: &mut Server,
    series: &mut Series,
) -> Result<Vec<Made>> {
    let start = Instant::now();
    let mut rng = ChaCha8Rng::seed_from_u64(plan.seed);
    let (mut made, mut bag) = (Vec::new(), Vec::new());
    let (mut next_fault, mut next_sample) = (start + QUIET.max(plan.every), start);
    while !campaign.is_over()? {
        let now = Instant::now();
        if now > start + plan.time + ENDING {
            bail!("the campaign did not end {} s after its time", ENDING.as_secs());
        }
        if now >= next_sample {
            next_sample += SAMPLE;
            series.push(Sample::take(campaign, server, start)?);
        }
        faults::heal(&mut made, campaign, server, plan.disk.as_deref())?;
        let over = made.last().is_none_or(Made::is_over);
        if over && now >= next_fault && now + QUIET < start + plan.time {
            next_fault += plan.every;
            if bag.is_empty() {
                bag = Fault::all(plan.disk.is_some());
                bag.shuffle(&mut rng);
            }
            let Some(fault) = bag.pop() else { continue };
            let one = faults::make(fault, campaign, server, plan.disk.as_deref())?;
            eprintln!("{:5.0} s  {}", start.elapsed().as_secs_f64(), one.fault.name());
            made.push(one);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    faults::heal_all(&mut made, campaign, server, plan.disk.as_deref())?;
    Ok(made)
}

/// A file of /proc of a process that may have ended.
fn proc_file(pid: i32, name: &str) -> Option<String> {
    std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join(name)).ok()
}
