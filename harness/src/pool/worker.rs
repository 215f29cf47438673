//! One VM thread: its orders, its VM, what is outstanding in it, when the VM is replaced.

use super::live::Live;
use super::{Counter, Done, Event, Job, Order, PoolSpec, TICK, live, stop};
use crate::triage;
use case::Violation;
use case::link::{Canary, FromGuest, RunOutcome, RunRequest, ToGuest};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError};
use std::time::{Duration, Instant};
use vm::{Death, DeathKind};

/// First and longest pause after a boot that failed.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// See the module's head.
pub(super) struct Worker {
    pub(super) slot: usize,
    dir: PathBuf,
    pub(super) spec: PoolSpec,
    orders: Receiver<Order>,
    events: SyncSender<Event>,
    pub(super) stop: Arc<AtomicU8>,
    pub(super) live: Option<Live>,
    /// An order taken from the channel that must wait until nothing is outstanding.
    next: Option<Order>,
    pub(super) failures: u32,
    /// Signatures this thread has replaced a VM for. One seen again costs no VM.
    seen: BTreeSet<String>,
    /// An idle guest has been measured.
    pub(super) calibrated: bool,
}

/// The dispatcher is gone: the thread ends.
pub(super) struct Gone;

impl Worker {
    pub(super) fn new(
        slot: usize,
        spec: &PoolSpec,
        orders: Receiver<Order>,
        events: SyncSender<Event>,
        stop: Arc<AtomicU8>,
    ) -> Worker {
        Worker {
            slot,
            dir: spec.vm.dir.join(format!("vm{slot}")),
            spec: spec.clone(),
            orders,
            events,
            stop,
            live: None,
            next: None,
            failures: 0,
            seen: BTreeSet::new(),
            calibrated: false,
        }
    }

    pub(super) fn run(mut self) {
        let _ = self.serve();
        self.live = None;
        let _ = self.events.send(Event::Stopped { slot: self.slot });
    }

    pub(super) fn stopping(&self) -> u8 {
        self.stop.load(Ordering::SeqCst)
    }

    pub(super) fn tell(&self, event: Event) -> Result<(), Gone> {
        self.events.send(event).map_err(|_| Gone)
    }

    fn serve(&mut self) -> Result<(), Gone> {
        loop {
            let idle = self.live.as_ref().is_none_or(|l| l.flight.is_empty());
            match self.stopping() {
                stop::NOW => return self.drop_vm(),
                stop::DRAIN if idle => return self.drop_vm(),
                _ => {}
            }
            if self.live.is_none() && !self.boot()? {
                continue;
            }
            self.take_orders()?;
            self.listen()?;
        }
    }

    /// Starts a VM. False if it failed, after the pause.
    pub(super) fn boot(&mut self) -> Result<bool, Gone> {
        let start = Instant::now();
        let mut spec = self.spec.vm.clone();
        spec.dir = self.dir.clone();
        let booted = std::fs::create_dir_all(&spec.dir)
            .map_err(|e| format!("cannot make {}: {e}", spec.dir.display()))
            .and_then(|()| {
                let mut say = |line: &str| drop(self.tell(Event::Note(line.to_owned())));
                self.spec.cradle.start(&spec, &mut say).map_err(|e| e.to_string())
            });
        let (vm, cloned) = match booted {
            Ok(started) => started,
            Err(why) => {
                self.failures += 1;
                let pause = (BACKOFF.0 * (1 << (self.failures - 1).min(10))).min(BACKOFF.1);
                let failures = self.failures;
                self.tell(Event::BootFailed { slot: self.slot, why, failures, pause })?;
                self.rest(pause);
                return Ok(false);
            }
        };
        self.failures = 0;
        let profile = vm.profile().clone();
        let (ready, rss_kib, pid) = (start.elapsed(), vm.rss_kib(), vm.pid());
        let mut live = Live::new(vm, profile.clone());
        let idle = self.calibrate(&mut live);
        self.live = Some(live);
        let (slot, profile) = (self.slot, Box::new(profile));
        self.tell(Event::Booted { slot, cloned, profile, ready, rss_kib, pid, idle })?;
        Ok(true)
    }

    /// Sleeps, but wakes for a stop.
    fn rest(&self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end && self.stopping() == stop::RUN {
            std::thread::sleep(TICK);
        }
    }

    /// Sends what fits. Canaries and replays wait until nothing is outstanding.
    fn take_orders(&mut self) -> Result<(), Gone> {
        loop {
            if self.stopping() != stop::RUN {
                return Ok(());
            }
            let Some(live) = &self.live else { return Ok(()) };
            let alone_runs = live.flight.front().is_some_and(|(_, job)| job.canary.is_some());
            if live.flight.len() >= self.spec.in_guest() || alone_runs {
                return Ok(());
            }
            let idle = live.flight.is_empty();
            let order = match self.next.take() {
                Some(order) => order,
                None if idle => match self.orders.recv_timeout(TICK) {
                    Ok(order) => order,
                    Err(RecvTimeoutError::Timeout) => return Ok(()),
                    Err(RecvTimeoutError::Disconnected) => return Err(Gone),
                },
                None => match self.orders.try_recv() {
                    Ok(order) => order,
                    Err(TryRecvError::Empty) => return Ok(()),
                    Err(TryRecvError::Disconnected) => return Err(Gone),
                },
            };
            let alone = !matches!(&order, Order::Run(job) if job.canary.is_none());
            if alone && !idle {
                self.next = Some(order);
                return Ok(());
            }
            match order {
                Order::Run(job) => self.send(job)?,
                Order::Replay(replay) => self.replay(replay)?,
                #[cfg(test)]
                Order::Sabotage(how) => self.sabotage(how)?,
                #[cfg(test)]
                Order::Tell(what) => {
                    let told = self.live.as_mut().map(|live| live.vm.send(&what));
                    if let Some(Err(death)) = told {
                        self.died(death)?;
                    }
                }
            }
        }
    }

    fn send(&mut self, job: Job) -> Result<(), Gone> {
        let Some(live) = &mut self.live else {
            return self.tell(Event::Lost { slot: self.slot, jobs: vec![job] });
        };
        if live.flight.is_empty() {
            live.heard = Instant::now();
        }
        let request = request(&self.spec, live.next_id, &job);
        live.flight.push_back((request.id, job));
        live.next_id += 1;
        match live.vm.send(&ToGuest::Run(request)) {
            Ok(()) => Ok(()),
            Err(death) => self.died(death),
        }
    }

    #[cfg(test)]
    fn sabotage(&mut self, how: case::link::Sabotage) -> Result<(), Gone> {
        let Some(live) = &mut self.live else { return Ok(()) };
        live.heard = Instant::now();
        let sent = live.vm.send(&ToGuest::Sabotage(how));
        let end = Instant::now() + self.spec.silence();
        loop {
            let Some(live) = &mut self.live else { return Ok(()) };
            match sent.clone().and_then(|()| live.vm.recv(TICK)) {
                Err(death) => return self.died(death),
                Ok(_) if Instant::now() > end => return self.silent(),
                Ok(_) if self.stopping() == stop::NOW => return self.drop_vm(),
                Ok(_) => {}
            }
        }
    }

    /// One message, or a look at the clock.
    fn listen(&mut self) -> Result<(), Gone> {
        let silence = self.spec.silence();
        let Some(live) = &mut self.live else { return Ok(()) };
        // An idle VM is waited for in `take_orders`; here only its death matters.
        let wait = if live.flight.is_empty() { Duration::ZERO } else { TICK };
        let message = match live.vm.recv(wait) {
            Err(death) => return self.died(death),
            Ok(message) => message,
        };
        if live.is_silent(silence) && !live.flight.is_empty() {
            return self.silent();
        }
        match message {
            Some(FromGuest::Done { id, outcome }) => self.done(id, outcome),
            Some(FromGuest::Covered { cells, .. }) => {
                live.kcov = cells;
                Ok(())
            }
            Some(FromGuest::Log(text)) => {
                tracing::info!(vm = self.slot, "{}", text.escape_debug());
                Ok(())
            }
            Some(
                FromGuest::Ready(_)
                | FromGuest::Executing { .. }
                | FromGuest::Provoked { .. }
                | FromGuest::Executed { .. }
                | FromGuest::Symbols { .. },
            )
            | None => Ok(()),
        }
    }

    fn counter(&self) -> Option<Counter> {
        self.spec.cover.as_ref().map(|(counter, _)| *counter)
    }

    /// Hands the guest its next program before the last one is judged, where it holds only one.
    fn refill(&mut self) -> Result<(), Gone> {
        if self.spec.in_guest() > 1 || self.stopping() != stop::RUN || self.next.is_some() {
            return Ok(());
        }
        match self.orders.try_recv() {
            Ok(Order::Run(job)) if job.canary.is_none() => self.send(job),
            Ok(other) => {
                self.next = Some(other);
                Ok(())
            }
            Err(_) => Ok(()),
        }
    }

    fn done(&mut self, id: u64, outcome: RunOutcome) -> Result<(), Gone> {
        let counter = self.counter();
        let Some(live) = &mut self.live else { return Ok(()) };
        let Some(at) = live.flight.iter().position(|(wire, _)| *wire == id) else {
            let kind = DeathKind::Protocol(format!("a result for program {id}, never sent"));
            return self.died(Death { kind, executing: None, console: Vec::new() });
        };
        let Some((_, job)) = live.flight.remove(at) else { return Ok(()) };
        live.ran += 1;
        let cells = live.covered(counter);
        let mut reports = live.read_console(&job);
        let profile = live.profile.clone();
        if job.canary.is_none() {
            self.refill()?;
        }
        let mut judged = triage::judge(&job.program, outcome, &profile, &self.spec.known);
        let Some(live) = &mut self.live else {
            // The next program could not be sent; this one's result is good all the same.
            let slot = self.slot;
            return self.tell(Event::Done(Box::new(Done {
                slot,
                job,
                judged,
                cells,
                rss_kib: None,
            })));
        };
        if job.canary == Some(Canary::KernelReport) {
            // The planted report is the result of this run, and its end may still be coming.
            std::thread::sleep(live::LAST_WORDS);
            reports.extend(live.last_reports());
            judged.sightings.extend(reports.drain(..).map(|(_, sighting)| sighting));
        }
        let rss_kib = live.ran.is_multiple_of(64).then(|| live.vm.rss_kib());
        let mut tainted = !reports.is_empty() || live.ran >= self.spec.programs_max;
        let leak = judged.sightings.iter().any(|s| s.violation.as_ref().is_some_and(is_leak));
        tainted |= leak && job.canary.is_none();
        // A thread that cannot be killed keeps its locks, and perhaps a CPU.
        tainted |= judged.sightings.iter().any(|s| s.source == case::Source::Hang);
        for sighting in judged.sightings.iter().filter(|s| s.known.is_none()) {
            let first = job.canary.is_none() && self.seen.insert(sighting.signature.clone());
            tainted |= first && self.spec.replace_on_violation;
        }
        let slot = self.slot;
        self.tell(Event::Done(Box::new(Done { slot, job, judged, cells, rss_kib })))?;
        for (job, sighting) in reports {
            self.tell(Event::Console { slot, job, sighting: Box::new(sighting) })?;
        }
        if tainted { self.drop_vm() } else { Ok(()) }
    }

    /// Orders to run that wait in the channel, up to the first of another sort: that one shall
    /// find the next VM unused.
    fn unstarted(&mut self) -> Vec<Job> {
        let mut jobs = Vec::new();
        while self.next.is_none() {
            match self.orders.try_recv() {
                Ok(Order::Run(job)) => jobs.push(job),
                Ok(other) => self.next = Some(other),
                Err(_) => break,
            }
        }
        jobs
    }

    /// Replaces the VM: what was outstanding goes back to the dispatcher.
    pub(super) fn drop_vm(&mut self) -> Result<(), Gone> {
        let Some(mut live) = self.live.take() else { return Ok(()) };
        let mut jobs: Vec<Job> = live.flight.drain(..).map(|(_, job)| job).collect();
        jobs.extend(self.unstarted());
        let slot = self.slot;
        for (job, sighting) in live.last_reports() {
            self.tell(Event::Console { slot, job, sighting: Box::new(sighting) })?;
        }
        live.vm.kill();
        if jobs.is_empty() { Ok(()) } else { self.tell(Event::Lost { slot, jobs }) }
    }

    fn silent(&mut self) -> Result<(), Gone> {
        let executing = self.live.as_ref().and_then(|l| l.vm.executing());
        self.died(Death { kind: DeathKind::Silent, executing, console: Vec::new() })
    }

    fn died(&mut self, death: Death) -> Result<(), Gone> {
        let Some(mut live) = self.live.take() else { return Ok(()) };
        let (cause, reports) = live.autopsy(&death);
        let guilty = death.executing.or_else(|| live.vm.executing());
        let at = guilty.and_then(|id| live.flight.iter().position(|(wire, _)| *wire == id));
        let job = at.and_then(|at| live.flight.remove(at)).map(|(_, job)| job);
        let jobs: Vec<Job> = live.flight.drain(..).map(|(_, job)| job).collect();
        let last = live.last_job().cloned();
        live.vm.kill();
        let slot = self.slot;
        tracing::info!(vm = slot, reports, ?cause, "guest died");
        if let (None, triage::Cause::Guest(sighting), Some(job)) = (&job, &cause, last) {
            // It died between programs: of what the last one left behind, as far as anyone knows.
            self.tell(Event::Console { slot, job, sighting: sighting.clone() })?;
        }
        self.tell(Event::Died { slot, job, cause })?;
        if jobs.is_empty() { Ok(()) } else { self.tell(Event::Lost { slot, jobs }) }
    }
}

/// End-of-program rules are about what the kernel still holds: the next program would start on it.
fn is_leak(violation: &Violation) -> bool {
    violation.rule == triage::RULE_LEAK
}

/// A job as it goes to the guest.
pub(super) fn request(spec: &PoolSpec, id: u64, job: &Job) -> RunRequest {
    RunRequest {
        id,
        program: job.program.clone(),
        look: spec.look,
        fresh: job.fresh,
        canary: job.canary,
        op_timeout_ms: spec.op_timeout.as_millis() as u32,
    }
}
