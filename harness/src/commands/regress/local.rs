//! The programs in VMs of this host.

use super::sheet::Sheet;
use super::{RETRIES, heartbeat};
use crate::context::Context;
use crate::exit::ExpectedError;
use crate::guest;
use crate::pool::{Event, Job, Order, Pool};
use crate::signals::Signals;
use crate::term::clean_str;
use crate::triage::{Cause, Judged, Sighting};
use case::link::Look;
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use vmimages::Kernel;

/// Boots that fail in a row until there is no use in trying.
const BOOTS_MAX: u32 = 3;

/// Runs all of them, or as many as there is time for until a signal comes.
pub fn fill(
    sheet: &mut Sheet,
    kernel: &Kernel,
    signals: &Signals,
    ctx: &Context,
) -> anyhow::Result<()> {
    let scratch = tempfile::Builder::new().prefix("hgm-regress-").tempdir()?;
    let mut spec = guest::pool_spec(ctx, kernel, scratch.path())?;
    // Every program has a child of its own here, and nothing is built on what it showed.
    spec.replace_on_violation = false;
    // Expectations name the op after which a deviation shows, whatever the configuration says.
    spec.look = Look::Each;
    let programs = sheet.entries.len();
    let slots = (ctx.config.jobs as usize).min(programs);
    let mut bench = Bench {
        sheet,
        pool: Pool::start(&spec, slots)?,
        queue: (0..programs).collect(),
        load: vec![0; slots],
        ready: vec![false; slots],
        retries: vec![0; programs],
    };
    let ended = bench.work(signals, ctx);
    bench.pool.close(Duration::from_secs(5));
    Ok(ended?)
}

struct Bench<'a> {
    sheet: &'a mut Sheet,
    pool: Pool,
    queue: VecDeque<usize>,
    load: Vec<usize>,
    ready: Vec<bool>,
    retries: Vec<u32>,
}

impl Bench<'_> {
    fn work(&mut self, signals: &Signals, ctx: &Context) -> Result<(), ExpectedError> {
        let mut said = Instant::now();
        while !self.sheet.is_full() && signals.count() == 0 {
            heartbeat(&mut said, self.sheet, ctx);
            for slot in 0..self.load.len() {
                // One at a time, so that a dying guest or a kernel report has one author.
                if self.ready[slot] && self.load[slot] == 0 {
                    self.order(slot);
                }
            }
            let Ok(event) = self.pool.events.recv_timeout(Duration::from_millis(100)) else {
                continue;
            };
            self.take(event, ctx)?;
        }
        Ok(())
    }

    fn order(&mut self, slot: usize) {
        while let Some(at) = self.queue.pop_front() {
            if self.sheet.expected(at).is_none() {
                self.sheet.skip(at);
                continue;
            }
            let program = self.sheet.entries[at].program.clone();
            let job = Job { ticket: at as u64, program, fresh: true, check: false, canary: None };
            self.load[slot] += 1;
            self.pool.order(slot, Order::Run(job));
            return;
        }
    }

    fn take(&mut self, event: Event, ctx: &Context) -> Result<(), ExpectedError> {
        match event {
            Event::Note(line) => ctx.term.note(&clean_str(&line)),
            Event::Booted { slot, profile, .. } => {
                self.sheet.family.get_or_insert(profile.family().name().to_owned());
                self.ready[slot] = true;
            }
            Event::BootFailed { why, failures, .. } => {
                if failures >= BOOTS_MAX && self.sheet.family.is_none() {
                    return Err(
                        ExpectedError::infrastructure("no VM boots", "try hgm doctor").cause(why)
                    );
                }
                ctx.term.warn(&clean_str(&format!("boot failed: {why}")), "trying again");
            }
            Event::Done(done) => {
                self.load[done.slot] = 0;
                self.judged(done.job.ticket as usize, &done.judged);
            }
            Event::Console { job, sighting, .. } => {
                self.sheet.compare(job.ticket as usize, &[sighting.signature]);
            }
            Event::Died { slot, job, cause } => {
                self.load[slot] = 0;
                match (job, cause) {
                    (Some(job), Cause::Guest(sighting)) => {
                        self.sheet.compare(job.ticket as usize, &[sighting.signature]);
                    }
                    (Some(job), Cause::Host(why)) => self.again(job.ticket as usize, &why),
                    (None, _) => {}
                }
            }
            Event::Lost { slot, jobs } => {
                self.load[slot] = 0;
                for job in jobs {
                    self.again(job.ticket as usize, "its VM went away");
                }
            }
            Event::Replayed(_) | Event::Stopped { .. } => {}
        }
        Ok(())
    }

    fn again(&mut self, at: usize, why: &str) {
        self.retries[at] += 1;
        if self.retries[at] <= RETRIES {
            self.queue.push_back(at);
        } else {
            self.sheet.void(at, why);
        }
    }

    fn judged(&mut self, at: usize, judged: &Judged) {
        let got: Vec<String> = judged.sightings.iter().map(Sighting::short).collect();
        match &judged.inconclusive {
            Some(why) if got.is_empty() => self.sheet.void(at, why),
            _ => self.sheet.compare(at, &got),
        }
    }
}
