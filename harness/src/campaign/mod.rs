//! A campaign: the dispatcher that feeds VM threads from the engine, takes their events, triages
//! what they saw and keeps what must survive. One thread owns all of it. Never here: judging, VMs,
//! file formats.

mod feed;
mod keep;
mod summary;

pub use keep::Keeper;
pub use summary::{CanaryFigures, FindingFigures, Summary};

use crate::canary::{Canaries, Ended};
use crate::coverage::Book;
use crate::engine::{Breed, Ending, Engine, Generators, Guide, Told};
use crate::pool::{Done, Event, Job, Pool, PoolSpec, Replayed, stop};
use crate::progress::{Figures, Progress};
use crate::signals::Signals;
use crate::triage::{self, Cause, Sighting};
use case::{FindingState, Profile, Program};
use feed::Phase;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

/// Time between checkpoints.
const CHECKPOINT: Duration = Duration::from_secs(10);
/// Time between two writings of the coverage file.
const BOOKED: Duration = Duration::from_secs(60);
/// Boots that fail in a row, before any VM ever answered, until the campaign gives up.
const BOOTS_AT_START: u32 = 3;
/// Times a program is tried again after its VM died of something that was not its doing.
const RETRIES: u32 = 2;
/// Time for a drain after the first interrupt.
const DRAIN: Duration = Duration::from_secs(10);
/// Time after the end of a campaign in which waiting findings are still confirmed.
const CONFIRM_GRACE: Duration = Duration::from_secs(120);

/// What a campaign is to do.
#[derive(Clone, Debug)]
pub struct Plan {
    pub pool: PoolSpec,
    pub slots: usize,
    pub kernel: String,
    pub seed: u64,
    pub duration: Option<Duration>,
    pub programs: Option<u64>,
    /// Time between rounds of canaries; `None` plants none.
    pub canary_every: Option<Duration>,
    pub confirm_times: u32,
    /// Programs to start from.
    pub seeds: Vec<Program>,
    /// What new programs are made by.
    pub guide: Guide,
    /// Books of coverage, where it is counted.
    pub book: Option<Book>,
    /// Engine of the run that is resumed.
    pub checkpoint: Option<Vec<u8>>,
}

/// How a campaign ended.
#[derive(Debug)]
pub struct Outcome {
    pub summary: Summary,
    /// Canary classes that went unseen.
    pub missed: Vec<&'static str>,
    /// 130 or 143, if a signal ended it.
    pub signal: Option<i32>,
    /// Why no VM could be had, if none ever answered.
    pub infrastructure: Option<String>,
}

/// A signature and all that is known of it.
#[derive(Clone, Debug)]
pub struct Suspect {
    pub id: String,
    pub sighting: Sighting,
    pub program: Program,
    pub count: u32,
    pub reproduced: (u32, u32),
    pub confirm: Confirm,
}

/// Where a suspect stands in triage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirm {
    Waiting,
    Running,
    Over,
}

impl Suspect {
    fn state(&self) -> FindingState {
        match (&self.sighting.known, self.reproduced.0) {
            (Some(_), _) => FindingState::Known,
            (None, 0) => FindingState::Unconfirmed,
            (None, _) => FindingState::Confirmed,
        }
    }
}

/// Counters of this call (a resumed run starts them anew, its journal has the rest).
#[derive(Debug, Default)]
struct Totals {
    programs: u64,
    ops: u64,
    inconclusive: u64,
    guest_nanos: u64,
    judge_nanos: u64,
    judged: u64,
    first: Option<Duration>,
    ready_ms: Vec<u64>,
    vms: u64,
    clones: u64,
    rss_kib: u64,
}

/// See the module's head.
pub struct Campaign<'a> {
    plan: Plan,
    pool: Pool,
    keeper: Keeper,
    progress: Progress<'a>,
    signals: &'a Signals,
    engine: Option<Engine>,
    profile: Option<Profile>,
    canaries: Canaries,
    suspects: BTreeMap<String, Suspect>,
    /// Signatures waiting to be replayed.
    waiting: VecDeque<String>,
    slots: Vec<Slot>,
    retries: BTreeMap<String, u32>,
    totals: Totals,
    start: Instant,
    phase: Phase,
    checkpointed: Instant,
    book: Option<Book>,
    /// When coverage was last kept.
    booked: Instant,
    infrastructure: Option<String>,
    /// When the last replay ended and how long it took: with one VM, fuzzing gets half the time.
    replayed: Option<(Instant, Duration)>,
}

impl std::fmt::Debug for Campaign<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Campaign").field("phase", &self.phase).finish_non_exhaustive()
    }
}

/// What the dispatcher knows of a VM thread.
#[derive(Clone, Debug, Default)]
struct Slot {
    up: bool,
    stopped: bool,
    /// Jobs ordered and not yet back.
    load: usize,
    /// Replaying since.
    replaying: Option<Instant>,
}

impl<'a> Campaign<'a> {
    /// Starts the VMs. `suspects` = findings a resumed run already has.
    pub fn start(
        mut plan: Plan,
        keeper: Keeper,
        suspects: Vec<Suspect>,
        progress: Progress<'a>,
        signals: &'a Signals,
    ) -> anyhow::Result<Self> {
        let pool = Pool::start(&plan.pool, plan.slots)?;
        let waiting = suspects
            .iter()
            .filter(|s| s.confirm == Confirm::Waiting)
            .map(|s| s.sighting.signature.clone())
            .collect();
        Ok(Campaign {
            canaries: Canaries::new(plan.canary_every),
            slots: vec![Slot::default(); plan.slots],
            suspects: suspects.into_iter().map(|s| (s.sighting.signature.clone(), s)).collect(),
            waiting,
            pool,
            keeper,
            progress,
            signals,
            engine: None,
            profile: None,
            retries: BTreeMap::new(),
            totals: Totals::default(),
            start: Instant::now(),
            phase: Phase::Running,
            checkpointed: Instant::now(),
            book: plan.book.take(),
            booked: Instant::now(),
            infrastructure: None,
            replayed: None,
            plan,
        })
    }

    /// Runs to the end.
    pub fn run(mut self) -> anyhow::Result<Outcome> {
        let budget = self.plan.pool.vm.boot_timeout.as_secs();
        self.progress.event(&format!(
            "booting {} VM(s); first program within {budget} s, or the run gives up",
            self.plan.slots
        ));
        let ended = self.dispatch();
        self.progress.close();
        self.pool.stop(stop::NOW);
        if ended.is_ok() {
            self.checkpoint()?;
            self.keep_coverage()?;
        }
        let outcome = ended.map(|()| self.outcome());
        let Campaign { pool, mut keeper, .. } = self;
        pool.close(Duration::from_secs(5));
        let outcome = outcome?;
        keeper.finish(&outcome.summary)?;
        Ok(outcome)
    }

    fn dispatch(&mut self) -> anyhow::Result<()> {
        loop {
            self.advance()?;
            if self.phase == Phase::Over {
                return Ok(());
            }
            self.feed()?;
            match self.pool.events.recv_timeout(Duration::from_millis(100)) {
                Ok(event) => self.take(event)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            while let Ok(event) = self.pool.events.try_recv() {
                self.take(event)?;
            }
            if self.checkpointed.elapsed() >= CHECKPOINT {
                self.checkpoint()?;
            }
            let figures = self.figures();
            self.progress.status(&figures);
        }
    }

    fn take(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::Note(line) => {
                self.progress.event(&line);
                Ok(())
            }
            Event::Booted { slot, cloned, profile, ready, rss_kib, pid, idle } => {
                if let Some(book) = &mut self.book {
                    book.idle(&idle);
                }
                let ready_ms = ready.as_millis() as u64;
                self.totals.vms += 1;
                self.totals.clones += u64::from(cloned);
                self.totals.ready_ms.push(ready_ms);
                self.totals.rss_kib = self.totals.rss_kib.max(rss_kib);
                self.slots[slot].up = true;
                self.progress.event(&format!("vm{slot}: up after {ready_ms} ms, pid {pid}"));
                self.progress.vm(slot, "running");
                self.keeper.vm(slot, "booted", &format!("{ready_ms} ms"))?;
                self.booted(*profile)
            }
            Event::BootFailed { slot, why, failures, pause } => {
                self.boot_failed(slot, &why, failures, pause)
            }
            Event::Done(done) => self.done(*done),
            Event::Console { job, sighting } => match job.canary {
                Some(_) => Ok(()),
                None => self.suspect(*sighting, job.program),
            },
            Event::Died { slot, job, cause } => self.died(slot, job, cause),
            Event::Lost { slot, jobs } => {
                for job in jobs {
                    self.freed(slot);
                    self.give_back(job);
                }
                Ok(())
            }
            Event::Replayed(replayed) => self.replayed(*replayed),
            Event::Stopped { slot } => {
                self.slots[slot].stopped = true;
                Ok(())
            }
        }
    }

    fn freed(&mut self, slot: usize) {
        let slot = &mut self.slots[slot];
        slot.load = slot.load.saturating_sub(1);
    }

    fn booted(&mut self, profile: Profile) -> anyhow::Result<()> {
        if self.engine.is_some() {
            return Ok(());
        }
        self.keeper.profile(&profile)?;
        let breed: Arc<dyn Breed> = Arc::new(Generators { profile: profile.clone() });
        let seeds = std::mem::take(&mut self.plan.seeds);
        let (guide, blocks) = (self.plan.guide, self.book.as_ref().map_or(0, Book::cells));
        let engine = match self.plan.checkpoint.take() {
            None => Engine::new(self.plan.seed, breed, seeds, guide, blocks)?,
            Some(bytes) => {
                let mut engine = Engine::restore(&bytes, breed, guide, blocks)?;
                // Entries acknowledged after the checkpoint are in the folder only.
                let have: BTreeSet<String> =
                    engine.corpus()?.iter().map(case::wire::program_id).collect();
                for seed in seeds {
                    if !have.contains(&case::wire::program_id(&seed)) {
                        engine.queue(seed);
                    }
                }
                engine
            }
        };
        self.profile = Some(profile);
        self.engine = Some(engine);
        Ok(())
    }

    fn boot_failed(
        &mut self,
        slot: usize,
        why: &str,
        failures: u32,
        pause: Duration,
    ) -> anyhow::Result<()> {
        self.slots[slot].up = false;
        let secs = pause.as_secs();
        self.progress.event(&format!("vm{slot}: boot failed, again in {secs} s: {why}"));
        self.progress.vm(slot, "boot failed");
        self.keeper.vm(slot, "boot-failed", why)?;
        if self.engine.is_none() && failures >= BOOTS_AT_START {
            self.infrastructure = Some(why.to_owned());
            self.phase = Phase::Over;
        }
        Ok(())
    }

    fn give_back(&mut self, job: Job) {
        match (job.canary, &mut self.engine) {
            (Some(canary), _) => self.canaries.give_back(canary),
            (None, Some(engine)) => engine.give_back(job.ticket),
            (None, None) => {}
        }
    }

    fn done(&mut self, done: Done) -> anyhow::Result<()> {
        let Done { slot, job, judged, cells, rss_kib } = done;
        self.freed(slot);
        self.totals.rss_kib = self.totals.rss_kib.max(rss_kib);
        self.totals.first.get_or_insert_with(|| self.start.elapsed());
        if let Some(canary) = job.canary {
            let ended = self.canaries.done(canary, &judged);
            return self.canary(canary, ended);
        }
        self.totals.programs += 1;
        self.totals.ops += u64::from(judged.ops);
        self.totals.guest_nanos += judged.guest_nanos;
        self.totals.judge_nanos += judged.judge_nanos;
        self.totals.judged += u64::from(judged.judge_nanos > 0);
        let unseen = judged
            .sightings
            .iter()
            .any(|s| s.known.is_none() && !self.suspects.contains_key(&s.signature));
        let ending = match (&judged.inconclusive, judged.has_news()) {
            (_, true) => Ending::Fault { fresh: unseen },
            (Some(_), false) => Ending::Void,
            (None, false) => Ending::Pass,
        };
        if let Some(why) = &judged.inconclusive {
            self.totals.inconclusive += 1;
            self.keeper.inconclusive(&job.program, why)?;
        }
        let blocks = self.book.as_mut().map(|book| book.program(&cells)).unwrap_or_default();
        if let Some(engine) = &mut self.engine
            && let Told::Kept(program) = engine.tell(job.ticket, &judged.states, &blocks, ending)?
        {
            self.keeper.program(&program)?;
        }
        // The VM thread replaces a VM that showed something new.
        self.slots[slot].up &= !unseen;
        for sighting in judged.sightings {
            self.suspect(sighting, job.program.clone())?;
        }
        Ok(())
    }

    fn canary(&mut self, canary: case::link::Canary, ended: Ended) -> anyhow::Result<()> {
        let word = match ended {
            Ended::Found => "found",
            Ended::Missed => "missed",
            Ended::Again => return Ok(()),
        };
        self.keeper.canary(canary.name(), word)?;
        if ended == Ended::Missed {
            self.progress.event(&format!("canary {} was NOT found", canary.name()));
        }
        Ok(())
    }

    fn died(&mut self, slot: usize, job: Option<Job>, cause: Cause) -> anyhow::Result<()> {
        self.slots[slot].up = false;
        let what = match &cause {
            Cause::Guest(sighting) => sighting.title.clone(),
            Cause::Host(why) => why.clone(),
        };
        let planted = job.as_ref().and_then(|j| j.canary);
        if planted.is_none() {
            self.progress.event(&format!("vm{slot}: died: {what}"));
            self.keeper.vm(slot, "died", &what)?;
        }
        let Some(job) = job else {
            // Nothing was executing. What the kernel said came as a console event of its own.
            self.totals.inconclusive += u64::from(matches!(cause, Cause::Host(_)));
            return Ok(());
        };
        self.freed(slot);
        if let Some(canary) = planted {
            let ended = self.canaries.died(canary, &cause);
            return self.canary(canary, ended);
        }
        match cause {
            Cause::Guest(sighting) => {
                self.totals.programs += 1;
                let fresh = !self.suspects.contains_key(&sighting.signature);
                if let Some(engine) = &mut self.engine {
                    engine.tell(job.ticket, &BTreeSet::new(), &[], Ending::Fault { fresh })?;
                }
                self.suspect(*sighting, job.program)
            }
            Cause::Host(why) => {
                let tries = self.retries.entry(case::wire::program_id(&job.program)).or_default();
                *tries += 1;
                if *tries <= RETRIES {
                    self.give_back(job);
                    return Ok(());
                }
                self.totals.programs += 1;
                self.totals.inconclusive += 1;
                self.keeper.inconclusive(&job.program, &why)?;
                if let Some(engine) = &mut self.engine {
                    engine.tell(job.ticket, &BTreeSet::new(), &[], Ending::Void)?;
                }
                Ok(())
            }
        }
    }

    /// Counts a sighting; the first of its signature is saved and, unless known, put to triage.
    fn suspect(&mut self, mut sighting: Sighting, program: Program) -> anyhow::Result<()> {
        if sighting.known.is_none()
            && let Some(profile) = &self.profile
        {
            let known = &self.plan.pool.known;
            sighting.known = triage::known_console(&sighting, profile, known);
        }
        if let Some(suspect) = self.suspects.get_mut(&sighting.signature) {
            suspect.count += 1;
            return Ok(());
        }
        let news = sighting.known.is_none();
        let kind = if news { "new" } else { "known" };
        self.progress.event(&format!("{kind}: {}", sighting.title));
        let signature = sighting.signature.clone();
        let mut suspect = Suspect {
            id: String::new(),
            sighting,
            program,
            count: 1,
            reproduced: (0, 0),
            confirm: if news { Confirm::Waiting } else { Confirm::Over },
        };
        suspect.id = self.keeper.finding(&suspect, &self.plan.kernel, self.plan.seed)?;
        if news {
            self.waiting.push_back(signature.clone());
        }
        self.suspects.insert(signature, suspect);
        Ok(())
    }

    fn replayed(&mut self, replayed: Replayed) -> anyhow::Result<()> {
        let slot = &mut self.slots[replayed.slot];
        slot.load = 0;
        let took = slot.replaying.take().map_or(Duration::ZERO, |since| since.elapsed());
        self.replayed = Some((Instant::now(), took));
        self.progress.vm(replayed.slot, "running");
        let Some(signature) = replayed.replay.signature.clone() else { return Ok(()) };
        let Some(suspect) = self.suspects.get_mut(&signature) else { return Ok(()) };
        suspect.reproduced = (replayed.shown, replayed.tried);
        suspect.confirm = Confirm::Over;
        if let Some(evidence) = replayed.evidence {
            // The replay ran alone in a fresh VM: its evidence is the cleaner one.
            suspect.sighting = Sighting { signature: signature.clone(), ..evidence };
        }
        let suspect = suspect.clone();
        self.keeper.finding(&suspect, &self.plan.kernel, self.plan.seed)?;
        let word = if replayed.shown > 0 { "confirmed" } else { "unconfirmed" };
        let void = replayed.void.map(|why| format!(" ({why})")).unwrap_or_default();
        self.progress.event(&format!(
            "{word}: {signature}, {} of {}{void}; hgm repro {}",
            replayed.shown, replayed.tried, suspect.id
        ));
        Ok(())
    }

    fn checkpoint(&mut self) -> anyhow::Result<()> {
        self.checkpointed = Instant::now();
        if let Some(engine) = &self.engine {
            let bytes = engine.checkpoint()?;
            self.keeper.checkpoint(self.totals.programs, &bytes)?;
        }
        let figures = self.figures();
        self.keeper.figures(&figures)?;
        for suspect in self.suspects.values() {
            self.keeper.recount(suspect)?;
        }
        if self.booked.elapsed() >= BOOKED {
            self.keep_coverage()?;
        }
        Ok(())
    }

    fn keep_coverage(&mut self) -> anyhow::Result<()> {
        self.booked = Instant::now();
        match &self.book {
            Some(book) => Ok(self.keeper.coverage(&book.report())?),
            None => Ok(()),
        }
    }

    fn figures(&self) -> Figures {
        let known = self.suspects.values().filter(|s| s.sighting.known.is_some()).count();
        Figures {
            elapsed: self.start.elapsed(),
            total: self.plan.duration,
            programs: self.totals.programs,
            ops: self.totals.ops,
            states: self.engine.as_ref().map_or(0, Engine::states),
            corpus: self.engine.as_ref().map_or(0, Engine::corpus_len),
            findings: self.suspects.len() - known,
            known,
            inconclusive: self.totals.inconclusive,
            blocks: self.book.as_ref().map(Book::blocks),
            canaries: (self.canaries.found, self.canaries.planted),
        }
    }

    fn outcome(&self) -> Outcome {
        let seconds = self.start.elapsed().as_secs_f64();
        let totals = &self.totals;
        let mut ready = totals.ready_ms.clone();
        ready.sort_unstable();
        let findings = self.suspects.iter().map(|(signature, s)| {
            let figures =
                FindingFigures { count: s.count, state: s.state(), reproduced: s.reproduced };
            (signature.clone(), figures)
        });
        let slots = self.plan.slots.max(1) as f64;
        let summary = Summary {
            run: self.keeper.path().display().to_string(),
            kernel: self.plan.kernel.clone(),
            profile: self.profile.as_ref().map_or("", |p| p.family().name()).to_owned(),
            seconds,
            programs: totals.programs,
            ops: totals.ops,
            programs_per_s: totals.programs as f64 / seconds.max(0.001),
            states: self.engine.as_ref().map_or(0, Engine::states),
            coverage: self.book.as_ref().map(Book::figures),
            findings: findings.collect(),
            inconclusive: totals.inconclusive,
            canaries: CanaryFigures { planted: self.canaries.planted, found: self.canaries.found },
            seconds_to_first_program: totals.first.map(|t| t.as_secs_f64()),
            exec_share: totals.guest_nanos as f64 / 1e9 / (seconds.max(0.001) * slots),
            judge_us_per_program: totals.judge_nanos as f64 / 1e3 / totals.judged.max(1) as f64,
            vms: totals.vms,
            vms_cloned: totals.clones,
            vm_ready_ms: ready.get(ready.len() / 2).copied().unwrap_or(0),
            vm_rss_kib: totals.rss_kib,
        };
        Outcome {
            summary,
            missed: self.canaries.missed.iter().map(|c| c.name()).collect(),
            signal: self.signals.code(),
            infrastructure: self.infrastructure.clone(),
        }
    }
}
