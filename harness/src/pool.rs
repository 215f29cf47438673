//! VM threads: one thread owns one VM, keeps a few programs outstanding in it, judges what comes
//! back and reports to the dispatcher in closed [`Event`]s. Threads share nothing but channels and
//! one stop word. Never here: choosing programs, counting, saving.

use crate::triage::{self, Cause, Judged, Sighting};
use case::link::{Canary, FromGuest, Look, RunRequest, Sabotage, ToGuest};
use case::{Profile, Program};
use oracles::console::Scanner;
use oracles::known::Known;
use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TryRecvError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vm::{Death, DeathKind, Vm, VmSpec};

/// Events a dispatcher may leave unread before VM threads wait for it.
const EVENTS_AHEAD: usize = 256;
/// How long a VM thread waits for one message before it looks at orders and clocks again.
const TICK: Duration = Duration::from_millis(20);
/// First and longest pause after a boot that failed.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Ends of programs remembered, to say which one a console report belongs to.
const MARKS_MAX: usize = 512;
/// Time for the rest of a report to arrive after a guest died.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// How far a stop has been asked for.
pub mod stop {
    pub const RUN: u8 = 0;
    /// Finish what is outstanding.
    pub const DRAIN: u8 = 1;
    /// Kill the VMs.
    pub const NOW: u8 = 2;
}

/// What every VM of a pool has in common.
#[derive(Clone, Debug)]
pub struct PoolSpec {
    /// `dir` is the pool's folder; each VM gets a folder below it.
    pub vm: VmSpec,
    pub look: Look,
    pub op_timeout: Duration,
    /// Programs outstanding in one VM.
    pub depth: usize,
    /// Programs until a VM is replaced.
    pub programs_max: u32,
    pub known: Arc<Known>,
}

impl PoolSpec {
    /// Silence that means the guest hangs. The agent breaks off single ops and whole programs
    /// itself; only a guest that no longer schedules the agent stays silent for longer.
    pub fn silence(&self) -> Duration {
        self.op_timeout * 6 + Duration::from_secs(20)
    }
}

/// One program to run.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// The dispatcher's number.
    pub ticket: u64,
    pub program: Program,
    pub fresh: bool,
    pub canary: Option<Canary>,
}

/// A replay in fresh children, in a VM booted for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Replay {
    /// The dispatcher's number.
    pub key: u64,
    pub program: Program,
    /// Signature that must show; `None` = anything that is not known.
    pub signature: Option<String>,
    pub times: u32,
}

/// Dispatcher to VM thread.
#[derive(Clone, Debug, PartialEq)]
pub enum Order {
    Run(Job),
    Replay(Replay),
    /// Kills the guest for real, from inside; tests use it.
    Sabotage(Sabotage),
}

/// A finished program.
#[derive(Clone, Debug)]
pub struct Done {
    pub slot: usize,
    pub job: Job,
    pub judged: Judged,
    pub rss_kib: u64,
}

/// How a replay went.
#[derive(Clone, Debug)]
pub struct Replayed {
    pub slot: usize,
    pub replay: Replay,
    /// Replays in which the signature showed, of those that said anything.
    pub shown: u32,
    pub tried: u32,
    /// Evidence from the first that showed.
    pub evidence: Option<Sighting>,
    /// Other signatures that showed instead.
    pub others: BTreeSet<String>,
    /// Last reason for a replay that said nothing.
    pub void: Option<String>,
}

/// VM thread to dispatcher.
#[derive(Clone, Debug)]
pub enum Event {
    Booted {
        slot: usize,
        profile: Box<Profile>,
        ready: Duration,
        rss_kib: u64,
        pid: u32,
    },
    BootFailed {
        slot: usize,
        why: String,
        failures: u32,
        pause: Duration,
    },
    Done(Box<Done>),
    /// A kernel report that came while, or just after, this program ran.
    Console {
        slot: usize,
        job: Job,
        sighting: Box<Sighting>,
    },
    /// The guest died. `job` is the program that was executing, if any.
    Died {
        slot: usize,
        job: Option<Job>,
        cause: Cause,
    },
    /// Sent but never run: their VM went away.
    Lost {
        slot: usize,
        jobs: Vec<Job>,
    },
    Replayed(Box<Replayed>),
    Stopped {
        slot: usize,
    },
}

/// All VM threads.
#[derive(Debug)]
pub struct Pool {
    pub events: Receiver<Event>,
    orders: Vec<Sender<Order>>,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicU8>,
}

impl Pool {
    /// Starts `slots` threads; each boots its VM at once.
    pub fn start(spec: &PoolSpec, slots: usize) -> std::io::Result<Pool> {
        let (event_tx, events) = std::sync::mpsc::sync_channel(EVENTS_AHEAD);
        let stop = Arc::new(AtomicU8::new(stop::RUN));
        let mut pool = Pool { events, orders: Vec::new(), threads: Vec::new(), stop: stop.clone() };
        for slot in 0..slots {
            let (tx, rx) = std::sync::mpsc::channel();
            let worker = Worker {
                slot,
                dir: spec.vm.dir.join(format!("vm{slot}")),
                spec: spec.clone(),
                orders: rx,
                events: event_tx.clone(),
                stop: stop.clone(),
                live: None,
                next: None,
                boots: 0,
                failures: 0,
                seen: BTreeSet::new(),
            };
            let thread = std::thread::Builder::new()
                .name(format!("vm{slot}"))
                .spawn(move || worker.run())?;
            pool.orders.push(tx);
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    pub fn slots(&self) -> usize {
        self.orders.len()
    }

    /// Never blocks. An order to a thread that ended is dropped; its `Stopped` tells.
    pub fn order(&self, slot: usize, order: Order) {
        if let Some(orders) = self.orders.get(slot) {
            let _ = orders.send(order);
        }
    }

    /// Asks all threads to stop, see [`stop`].
    pub fn stop(&self, how: u8) {
        self.stop.fetch_max(how, Ordering::SeqCst);
    }

    /// Kills all VMs and waits for the threads, at most `limit`. Events still unread are dropped.
    pub fn close(mut self, limit: Duration) {
        self.stop(stop::NOW);
        self.orders.clear();
        let end = Instant::now() + limit;
        while Instant::now() < end && self.threads.iter().any(|t| !t.is_finished()) {
            let _ = self.events.recv_timeout(TICK);
        }
        for thread in self.threads.drain(..).filter(JoinHandle::is_finished) {
            let _ = thread.join();
        }
    }
}

/// A running VM and what is outstanding in it.
struct Live {
    vm: Vm,
    profile: Profile,
    flight: VecDeque<(u64, Job)>,
    next_id: u64,
    ran: u32,
    /// Last sign of life.
    heard: Instant,
    scanner: Scanner,
    /// Console bytes before the first program.
    base: u64,
    /// Console bytes seen, up to where the scanner has read.
    scanned: u64,
    /// Where in the scanner's stream each of the last programs ended.
    marks: VecDeque<(u64, Job)>,
}

struct Worker {
    slot: usize,
    dir: PathBuf,
    spec: PoolSpec,
    orders: Receiver<Order>,
    events: SyncSender<Event>,
    stop: Arc<AtomicU8>,
    live: Option<Live>,
    /// An order taken from the channel that must wait until nothing is outstanding.
    next: Option<Order>,
    boots: u32,
    failures: u32,
    /// Signatures this thread has replaced a VM for. One seen again costs no VM.
    seen: BTreeSet<String>,
}

/// The dispatcher is gone: the thread ends.
struct Gone;

impl Worker {
    fn run(mut self) {
        let _ = self.serve();
        self.live = None;
        let _ = self.events.send(Event::Stopped { slot: self.slot });
    }

    fn stopping(&self) -> u8 {
        self.stop.load(Ordering::SeqCst)
    }

    fn tell(&self, event: Event) -> Result<(), Gone> {
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

    /// Boots a VM. False if it failed, after the pause.
    fn boot(&mut self) -> Result<bool, Gone> {
        self.boots += 1;
        let start = Instant::now();
        let mut spec = self.spec.vm.clone();
        spec.dir = self.dir.clone();
        let booted = std::fs::create_dir_all(&spec.dir)
            .map_err(|e| format!("cannot make {}: {e}", spec.dir.display()))
            .and_then(|()| Vm::boot(&spec).map_err(|e| e.to_string()));
        let vm = match booted {
            Ok(vm) => vm,
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
        self.tell(Event::Booted {
            slot: self.slot,
            profile: Box::new(profile.clone()),
            ready: start.elapsed(),
            rss_kib: vm.rss_kib(),
            pid: vm.pid(),
        })?;
        // What the kernel prints while it boots is not any program's doing.
        let scanned = vm.console_len();
        self.live = Some(Live {
            vm,
            profile,
            flight: VecDeque::new(),
            next_id: 1,
            ran: 0,
            heard: Instant::now(),
            scanner: Scanner::new(),
            base: scanned,
            scanned,
            marks: VecDeque::new(),
        });
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
            if live.flight.len() >= self.spec.depth || alone_runs {
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
                Order::Sabotage(how) => self.sabotage(how)?,
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
        let request = RunRequest {
            id: live.next_id,
            program: job.program.clone(),
            look: self.spec.look,
            fresh: job.fresh,
            canary: job.canary,
            op_timeout_ms: self.spec.op_timeout.as_millis() as u32,
        };
        live.flight.push_back((request.id, job));
        live.next_id += 1;
        match live.vm.send(&ToGuest::Run(request)) {
            Ok(()) => Ok(()),
            Err(death) => self.died(death),
        }
    }

    fn sabotage(&mut self, how: Sabotage) -> Result<(), Gone> {
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
        match live.vm.recv(wait) {
            Err(death) => self.died(death),
            Ok(None) if !live.flight.is_empty() && live.heard.elapsed() > silence => self.silent(),
            Ok(None) => Ok(()),
            Ok(Some(message)) => {
                live.heard = Instant::now();
                match message {
                    FromGuest::Done { id, outcome } => self.done(id, outcome),
                    FromGuest::Log(text) => {
                        tracing::info!(vm = self.slot, "{}", text.escape_debug());
                        Ok(())
                    }
                    FromGuest::Ready(_) | FromGuest::Executing { .. } => Ok(()),
                }
            }
        }
    }

    fn done(&mut self, id: u64, outcome: case::link::RunOutcome) -> Result<(), Gone> {
        let Some(live) = &mut self.live else { return Ok(()) };
        let Some(at) = live.flight.iter().position(|(wire, _)| *wire == id) else {
            let kind = DeathKind::Protocol(format!("a result for program {id}, never sent"));
            return self.died(Death { kind, executing: None, console: Vec::new() });
        };
        let Some((_, job)) = live.flight.remove(at) else { return Ok(()) };
        live.ran += 1;
        let mut judged = triage::judge(&job.program, outcome, &live.profile, &self.spec.known);
        let mut reports = live.read_console(&job);
        if job.canary == Some(Canary::KernelReport) {
            // The planted report is the result of this run, and its end may still be coming.
            std::thread::sleep(LAST_WORDS);
            reports.extend(live.last_reports());
            judged.sightings.extend(reports.drain(..).map(|(_, sighting)| sighting));
        }
        let rss_kib = if live.ran.is_multiple_of(64) { live.vm.rss_kib() } else { 0 };
        let mut tainted = !reports.is_empty() || live.ran >= self.spec.programs_max;
        let leak = judged.sightings.iter().any(|s| s.violation.as_ref().is_some_and(is_leak));
        tainted |= leak || job.canary.is_some_and(spoils);
        for sighting in judged.sightings.iter().filter(|s| s.known.is_none()) {
            tainted |= job.canary.is_none() && self.seen.insert(sighting.signature.clone());
        }
        let slot = self.slot;
        self.tell(Event::Done(Box::new(Done { slot, job, judged, rss_kib })))?;
        for (job, sighting) in reports {
            self.tell(Event::Console { slot, job, sighting: Box::new(sighting) })?;
        }
        if tainted { self.drop_vm() } else { Ok(()) }
    }

    /// Replaces the VM: what was outstanding goes back to the dispatcher.
    fn drop_vm(&mut self) -> Result<(), Gone> {
        let Some(mut live) = self.live.take() else { return Ok(()) };
        let jobs: Vec<Job> = live.flight.drain(..).map(|(_, job)| job).collect();
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
        live.vm.kill();
        let slot = self.slot;
        tracing::info!(vm = slot, reports, ?cause, "guest died");
        self.tell(Event::Died { slot, job, cause })?;
        if jobs.is_empty() { Ok(()) } else { self.tell(Event::Lost { slot, jobs }) }
    }

    /// Runs one program again and again, each time in a fresh child, first in a fresh VM; a VM
    /// that showed anything is not used again.
    fn replay(&mut self, replay: Replay) -> Result<(), Gone> {
        self.drop_vm()?;
        let mut result = Replayed {
            slot: self.slot,
            shown: 0,
            tried: 0,
            evidence: None,
            others: BTreeSet::new(),
            void: None,
            replay,
        };
        for _ in 0..result.replay.times {
            while self.live.is_none() {
                if self.stopping() != stop::RUN {
                    return self.tell(Event::Replayed(Box::new(result)));
                }
                if !self.boot()? && self.failures >= 3 {
                    result.void = Some("no VM would boot for it".into());
                    return self.tell(Event::Replayed(Box::new(result)));
                }
            }
            let seen = self.replay_once(&result.replay.program);
            result.count(seen);
            if result.tainted() {
                self.live = None;
            }
        }
        self.live = None;
        self.tell(Event::Replayed(Box::new(result)))
    }

    fn replay_once(&mut self, program: &Program) -> Result<Vec<Sighting>, String> {
        let silence = self.spec.silence();
        let Some(live) = &mut self.live else { return Err("no VM".into()) };
        let id = live.next_id;
        live.next_id += 1;
        let request = RunRequest {
            id,
            program: program.clone(),
            look: self.spec.look,
            fresh: true,
            canary: None,
            op_timeout_ms: self.spec.op_timeout.as_millis() as u32,
        };
        let mut heard = Instant::now();
        let mut sent = live.vm.send(&ToGuest::Run(request));
        loop {
            let message = match sent.and_then(|()| live.vm.recv(TICK)) {
                Ok(message) => message,
                Err(death) => return live.replay_death(&death),
            };
            sent = Ok(());
            match message {
                Some(FromGuest::Done { id: got, outcome }) if got == id => {
                    let job =
                        Job { ticket: 0, program: program.clone(), fresh: true, canary: None };
                    let judged = triage::judge(program, outcome, &live.profile, &self.spec.known);
                    let mut all = judged.sightings;
                    std::thread::sleep(TICK);
                    all.extend(live.read_console(&job).into_iter().map(|(_, s)| s));
                    return match judged.inconclusive {
                        Some(why) if all.is_empty() => Err(why),
                        _ => Ok(all),
                    };
                }
                Some(_) => heard = Instant::now(),
                None if heard.elapsed() > silence => {
                    let death =
                        Death { kind: DeathKind::Silent, executing: None, console: Vec::new() };
                    return live.replay_death(&death);
                }
                None if self.stop.load(Ordering::SeqCst) == stop::NOW => {
                    return Err("stopped".into());
                }
                None => {}
            }
        }
    }
}

/// End-of-program rules are about what the kernel still holds: the next program would start on it.
fn is_leak(violation: &case::Violation) -> bool {
    violation.op == "end"
}

/// Canaries that leave the guest unfit for others.
fn spoils(canary: Canary) -> bool {
    matches!(canary, Canary::LeakedHugePage | Canary::KernelReport)
}

impl Replayed {
    fn count(&mut self, seen: Result<Vec<Sighting>, String>) {
        let seen = match seen {
            Ok(seen) => seen,
            Err(why) => {
                self.void = Some(why);
                return;
            }
        };
        self.tried += 1;
        let wanted = |s: &Sighting| match &self.replay.signature {
            Some(signature) => s.signature == *signature,
            None => s.known.is_none(),
        };
        if let Some(hit) = seen.iter().find(|s| wanted(s)) {
            self.shown += 1;
            self.evidence.get_or_insert_with(|| hit.clone());
        }
        let others = seen.iter().filter(|s| !wanted(s)).map(|s| s.signature.clone());
        self.others.extend(others.collect::<Vec<_>>());
    }

    /// Whether the VM may have been spoilt so far; a leak or a report must not count twice.
    fn tainted(&self) -> bool {
        let grave = self.evidence.as_ref().is_some_and(|e| {
            e.source != case::Source::Oracle || e.violation.as_ref().is_some_and(is_leak)
        });
        grave || self.void.is_some() || !self.others.is_empty()
    }
}

impl Live {
    fn feed(&mut self) -> Vec<oracles::console::Report> {
        let bytes = self.vm.console_since(self.scanned);
        if bytes.is_empty() {
            return Vec::new();
        }
        self.scanned = self.vm.console_len();
        self.scanner.push(&bytes)
    }

    /// Reads what the console got since the last look; `job` has just ended.
    fn read_console(&mut self, job: &Job) -> Vec<(Job, Sighting)> {
        let reports = self.feed();
        self.marks.push_back((self.scanned - self.base, job.clone()));
        if self.marks.len() > MARKS_MAX {
            self.marks.pop_front();
        }
        self.name_guilty(reports)
    }

    /// Reports that had no end yet.
    fn last_reports(&mut self) -> Vec<(Job, Sighting)> {
        let mut reports = self.feed();
        reports.extend(std::mem::take(&mut self.scanner).finish());
        self.name_guilty(reports)
    }

    /// The program that ended first after the report began.
    fn name_guilty(&self, reports: Vec<oracles::console::Report>) -> Vec<(Job, Sighting)> {
        if reports.is_empty() {
            return Vec::new();
        }
        let console = self.vm.console_since(0);
        let of = |report: &oracles::console::Report| {
            let job = self.marks.iter().find(|(end, _)| *end >= report.start);
            let job = job.or(self.marks.back()).map(|(_, job)| job.clone())?;
            Some((job, triage::of_console(report, &console)))
        };
        reports.iter().filter_map(of).collect()
    }

    /// Why the guest died, and how many reports its console holds.
    fn autopsy(&mut self, death: &Death) -> (Cause, usize) {
        let silent = matches!(death.kind, DeathKind::Silent);
        let end = Instant::now() + LAST_WORDS;
        let mut reports = self.feed();
        while Instant::now() < end {
            std::thread::sleep(TICK);
            reports.extend(self.feed());
        }
        reports.extend(std::mem::take(&mut self.scanner).finish());
        let mut console = self.vm.console_since(0);
        if console.is_empty() {
            console.clone_from(&death.console);
        }
        let how = format!("VM ended: {:?}", death.kind);
        (triage::cause_of_death(&reports, &console, silent, &how), reports.len())
    }

    fn replay_death(&mut self, death: &Death) -> Result<Vec<Sighting>, String> {
        match self.autopsy(death).0 {
            Cause::Guest(sighting) => Ok(vec![*sighting]),
            Cause::Host(why) => Err(why),
        }
    }
}
