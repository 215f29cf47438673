//! A campaign: the dispatcher that feeds VM threads from the engine, takes their events, triages
//! what they saw and keeps what must survive. One thread owns all of it. Never here: judging, VMs,
//! file formats.
//!
//! A two-tier campaign has a second kernel, slower and with more eyes: what the first finds
//! interesting is run there again, and findings of either are replayed on the other. In a gate the
//! second kernel is the base of the first: it runs the regressions, and else only replays.

mod books;
mod checks;
mod feed;
mod fleet;
mod keep;
mod room;
mod summary;
mod suspects;
mod versus;

pub use fleet::Fleet;
pub use keep::{Bench, Keeper};
pub use room::Room;
pub use summary::{CanaryFigures, FindingFigures, FirstFinding, Summary, VerifyFigures};
pub use versus::{Rates, Versus};

use crate::canary::{Canaries, Ended};
use crate::coverage::Book;
use crate::engine::{Breed, Ending, Engine, Generators, Guide, Ran, Told};
use crate::pool::{Done, Event, Job, Pool, PoolSpec, stop};
use crate::progress::{Figures, Progress};
use crate::signals::Signals;
use crate::triage::{Cause, Sighting};
use case::{FindingState, Profile, Program};
use checks::{Checks, End};
use feed::Phase;
use reports::Steps;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};
use store::Merges;

/// Time between checkpoints.
const CHECKPOINT: Duration = Duration::from_secs(10);
/// Time between two writings of the coverage file.
const BOOKED: Duration = Duration::from_secs(60);
/// Time between two points of the report's curves, while the run is young.
const SAMPLE: Duration = Duration::from_secs(5);
/// A run that lasts has fewer: no more than this many in its length so far.
const SAMPLES: u32 = 1000;
/// Boots that fail in a row, before any VM ever answered, until the campaign gives up.
const BOOTS_AT_START: u32 = 3;
/// Times a program is tried again after its VM died of something that was not its doing.
const RETRIES: u32 = 2;
/// Time for a drain after the first interrupt.
const DRAIN: Duration = Duration::from_secs(10);
/// Time after the end of a campaign in which waiting findings are still confirmed.
pub const CONFIRM_GRACE: Duration = Duration::from_secs(120);

/// The tier that explores: the kernel under test.
pub const FAST: usize = 0;
/// The tier that checks, if there is one.
pub const CHECKING: usize = 1;

/// The VMs of one kernel.
#[derive(Clone, Debug)]
pub struct TierPlan {
    pub kernel: String,
    pub pool: PoolSpec,
    pub slots: usize,
}

/// What a campaign is to do.
#[derive(Debug)]
pub struct Plan {
    /// [`FAST`], and [`CHECKING`] in a two-tier campaign.
    pub tiers: Vec<TierPlan>,
    pub seed: u64,
    pub duration: Option<Duration>,
    pub programs: Option<u64>,
    /// Whether the first confirmed finding that is not known ends it.
    pub until_finding: bool,
    /// Time between rounds of canaries; `None` plants none.
    pub canary_every: Option<Duration>,
    pub confirm_times: u32,
    /// Time after the end in which waiting findings are still replayed.
    pub grace: Duration,
    /// Whether the second tier is the base of the first.
    pub versus: Option<Versus>,
    /// Programs to start from, those of a gate's regressions first.
    pub seeds: Vec<Program>,
    /// What new programs are made by.
    pub guide: Guide,
    /// Books of coverage, where it is counted.
    pub book: Option<Book>,
    /// Which signatures are one bug.
    pub merges: Merges,
    /// Engine of the run that is resumed.
    pub checkpoint: Option<Vec<u8>>,
    /// The others, if there are any.
    pub fleet: Option<Fleet>,
}

/// How a campaign ended.
#[derive(Debug)]
pub struct Outcome {
    pub summary: Summary,
    /// Canary classes that went unseen.
    pub missed: Vec<&'static str>,
    /// 130 or 143, if a signal ended it.
    pub signal: Option<i32>,
    /// A kernel of which no VM ever answered.
    pub unbooted: Option<Unbooted>,
    /// By signature.
    pub suspects: BTreeMap<String, Suspect>,
    /// Regressions of a gate that the new kernel has not run.
    pub regressions_left: usize,
}

/// See [`Outcome::unbooted`].
#[derive(Clone, Debug)]
pub struct Unbooted {
    pub kernel: String,
    pub tier: usize,
    pub slot: usize,
    pub why: String,
}

/// A signature and all that is known of it.
#[derive(Clone, Debug)]
pub struct Suspect {
    pub id: String,
    /// Which kernel showed it first, and so is the one it is confirmed on.
    pub tier: usize,
    /// Which kernels showed it.
    pub seen: [bool; 2],
    /// Its replays on the other kernel. None tried: that kernel cannot run its program.
    pub elsewhere: Option<(u32, u32)>,
    pub sighting: Sighting,
    pub program: Program,
    pub count: u32,
    pub reproduced: (u32, u32),
    pub confirm: Confirm,
    /// When it was first seen; `None` if an earlier part of the run saw it.
    pub first: Option<First>,
}

/// The moment in a campaign at which something was first seen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct First {
    /// Programs that had come back by then, this one included.
    pub programs: u64,
    /// Since the start, the boots of VMs included.
    pub elapsed: Duration,
}

/// Where a suspect stands in triage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirm {
    Waiting,
    Running,
    Over,
}

impl Suspect {
    /// Whether it is a finding that counts: not known, and shown again.
    fn is_confirmed(&self) -> bool {
        self.state() == FindingState::Confirmed
    }

    fn state(&self) -> FindingState {
        match (&self.sighting.known, self.reproduced.0) {
            (Some(_), _) => FindingState::Known,
            (None, 0) => FindingState::Unconfirmed,
            (None, _) => FindingState::Confirmed,
        }
    }
}

/// A replay that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Errand {
    signature: String,
    /// On the kernel that did not show it, to see whether it does.
    elsewhere: bool,
}

/// What the dispatcher knows of a kernel.
#[derive(Debug)]
struct Tier {
    kernel: String,
    profile: Option<Profile>,
    canaries: Canaries,
    /// Replays that wait for a VM of this kernel.
    errands: VecDeque<Errand>,
    /// When the last replay ended and how long it took: a lone VM fuzzes half the time.
    replayed: Option<(Instant, Duration)>,
    /// Programs of the engine that were run.
    programs: u64,
    /// Distinct mapping states reached, of the checking kernel.
    states: BTreeSet<u64>,
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
    keeper: Keeper<'a>,
    progress: Progress<'a>,
    signals: &'a Signals,
    engine: Option<Engine>,
    tiers: Vec<Tier>,
    checks: Checks,
    suspects: BTreeMap<String, Suspect>,
    slots: Vec<Slot>,
    retries: BTreeMap<String, u32>,
    totals: Totals,
    start: Instant,
    phase: Phase,
    checkpointed: Instant,
    book: Option<Book>,
    /// When coverage was last kept.
    booked: Instant,
    sampled: Instant,
    /// Which op met which mapping state, how often; over all parts of the run.
    steps: Steps,
    unbooted: Option<Unbooted>,
    fleet: Option<Fleet>,
    /// Ids of a gate's regressions that the new kernel has still to run.
    regressions: BTreeSet<String>,
}

impl std::fmt::Debug for Campaign<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Campaign").field("phase", &self.phase).finish_non_exhaustive()
    }
}

/// What the dispatcher knows of a VM thread.
#[derive(Clone, Debug, Default)]
struct Slot {
    tier: usize,
    up: bool,
    stopped: bool,
    /// Jobs ordered and not yet back.
    load: usize,
    /// Replaying since.
    replaying: Option<Instant>,
    /// Resident memory of its QEMU as last seen.
    rss_kib: u64,
}

impl<'a> Campaign<'a> {
    /// Starts the VMs. `suspects` = findings a resumed run already has.
    pub fn start(
        mut plan: Plan,
        keeper: Keeper<'a>,
        suspects: Vec<Suspect>,
        progress: Progress<'a>,
        signals: &'a Signals,
    ) -> anyhow::Result<Self> {
        let pools: Vec<_> = plan.tiers.iter().map(|t| (&t.pool, t.slots)).collect();
        let pool = Pool::start_tiers(&pools)?;
        let slots = plan.tiers.iter().enumerate().flat_map(|(tier, plan)| {
            std::iter::repeat_n(Slot { tier, ..Slot::default() }, plan.slots)
        });
        let tiers = plan.tiers.iter().map(|tier| Tier {
            kernel: tier.kernel.clone(),
            profile: None,
            canaries: Canaries::new(plan.canary_every),
            errands: VecDeque::new(),
            replayed: None,
            programs: 0,
            states: BTreeSet::new(),
        });
        let keeper_steps = keeper.last_steps();
        let mut campaign = Campaign {
            slots: slots.collect(),
            tiers: tiers.collect(),
            checks: Checks::resume(&keeper.checks()?),
            suspects: BTreeMap::new(),
            pool,
            keeper,
            progress,
            signals,
            engine: None,
            retries: BTreeMap::new(),
            totals: Totals::default(),
            start: Instant::now(),
            phase: Phase::Running,
            checkpointed: Instant::now(),
            book: plan.book.take(),
            booked: Instant::now(),
            sampled: Instant::now(),
            steps: keeper_steps,
            unbooted: None,
            fleet: plan.fleet.take(),
            regressions: plan.regressions().iter().map(case::wire::program_id).collect(),
            plan,
        };
        for suspect in suspects {
            campaign.send_on_errands(&suspect);
            campaign.suspects.insert(suspect.sighting.signature.clone(), suspect);
        }
        Ok(campaign)
    }

    /// Runs to the end.
    pub fn run(mut self) -> anyhow::Result<Outcome> {
        let budget = self.plan.tiers[FAST].pool.vm.boot_timeout.as_secs();
        self.progress.event(&format!(
            "booting {} VM(s); first program within {budget} s, or the run gives up",
            self.slots.len()
        ));
        if let Some(tier) = self.plan.tiers.get(CHECKING) {
            let what = if self.plan.versus.is_some() { "compare(s) with" } else { "check(s) with" };
            self.progress.event(&format!("{} of them {what} {}", tier.slots, tier.kernel));
        }
        let ended = self.dispatch();
        self.progress.close();
        self.pool.stop(stop::NOW);
        if ended.is_ok() {
            self.checkpoint()?;
            self.keep_coverage()?;
        }
        self.part();
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
            self.meet()?;
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
            self.sample(&figures)?;
            self.progress.status(&figures);
        }
    }

    /// Keeps a point of the curves when it is time.
    fn sample(&mut self, figures: &Figures) -> anyhow::Result<()> {
        if self.sampled.elapsed() < SAMPLE.max(self.start.elapsed() / SAMPLES) {
            return Ok(());
        }
        self.sampled = Instant::now();
        let rss_kib = self.slots.iter().map(|s| s.rss_kib).sum();
        let up = self.slots.iter().filter(|s| s.up).count();
        Ok(self.keeper.sample(figures, rss_kib, up)?)
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
                self.slots[slot].rss_kib = rss_kib;
                let which = self.tier_name(slot);
                self.progress.event(&format!("vm{slot}{which}: up after {ready_ms} ms, pid {pid}"));
                self.progress.vm(slot, &format!("running{which}"));
                self.keeper.vm(slot, "booted", &format!("{ready_ms} ms"))?;
                self.booted(self.slots[slot].tier, *profile)
            }
            Event::BootFailed { slot, why, failures, pause } => {
                self.boot_failed(slot, &why, failures, pause)
            }
            Event::Done(done) => self.done(*done),
            Event::Console { slot, job, sighting } => match job.canary {
                Some(_) => Ok(()),
                None => self.suspect(self.slots[slot].tier, *sighting, job.program),
            },
            Event::Died { slot, job, cause } => self.died(slot, job, cause),
            Event::Lost { slot, jobs } => {
                for job in jobs {
                    self.freed(slot);
                    self.give_back(slot, job);
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

    /// " (KERNEL)" where there is more than one.
    fn tier_name(&self, slot: usize) -> String {
        match self.tiers.len() {
            0 | 1 => String::new(),
            _ => format!(" ({})", self.tiers[self.slots[slot].tier].kernel),
        }
    }

    fn booted(&mut self, tier: usize, profile: Profile) -> anyhow::Result<()> {
        if self.unbooted.is_some() {
            // The base is up, which is what the end of a gate waited for.
            self.phase = Phase::Over;
        }
        if self.tiers[tier].profile.is_some() {
            return Ok(());
        }
        self.keeper.profile(tier, &profile)?;
        self.tiers[tier].profile = Some(profile.clone());
        match tier {
            FAST => self.set_up_engine(profile),
            _ => Ok(()),
        }
    }

    fn set_up_engine(&mut self, profile: Profile) -> anyhow::Result<()> {
        let breed: Arc<dyn Breed> = Arc::new(Generators { profile });
        for program in self.plan.regressions().to_vec() {
            self.want_check(&program, false)?;
        }
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
        // A resumed run may have had no checking kernel before. What was put down stays as it is.
        for program in engine.corpus()? {
            self.want_check(&program, false)?;
        }
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
        let which = self.tier_name(slot);
        self.progress.event(&format!("vm{slot}{which}: boot failed, again in {secs} s: {why}"));
        self.progress.vm(slot, "boot failed");
        self.keeper.vm(slot, "boot-failed", why)?;
        let tier = self.slots[slot].tier;
        if self.tiers[tier].profile.is_none() && failures >= BOOTS_AT_START {
            // Without the kernel that checks, the campaign is not the one that was asked for.
            let kernel = self.tiers[tier].kernel.clone();
            self.unbooted = Some(Unbooted { kernel, tier, slot, why: why.into() });
            // Whose fault it is that a kernel does not boot is for its base to tell.
            let base_may_come = self.plan.versus.is_some()
                && tier == FAST
                && self.tiers[CHECKING].profile.is_none();
            if !base_may_come {
                self.phase = Phase::Over;
            }
        }
        Ok(())
    }

    fn give_back(&mut self, slot: usize, job: Job) {
        let canaries = &mut self.tiers[self.slots[slot].tier].canaries;
        match (job.canary, &mut self.engine) {
            (Some(canary), _) => canaries.give_back(canary),
            (None, _) if job.check => self.checks.give_back(job.ticket),
            (None, Some(engine)) => engine.give_back(job.ticket),
            (None, None) => {}
        }
    }

    fn done(&mut self, done: Done) -> anyhow::Result<()> {
        let Done { slot, job, judged, cells, rss_kib } = done;
        self.freed(slot);
        if let Some(rss_kib) = rss_kib {
            self.totals.rss_kib = self.totals.rss_kib.max(rss_kib);
            self.slots[slot].rss_kib = rss_kib;
        }
        self.totals.first.get_or_insert_with(|| self.start.elapsed());
        let tier = self.slots[slot].tier;
        if let Some(canary) = job.canary {
            let ended = self.tiers[tier].canaries.done(canary, &judged);
            return self.canary(tier, canary, ended);
        }
        self.totals.ops += u64::from(judged.ops);
        self.totals.guest_nanos += judged.guest_nanos;
        self.totals.judge_nanos += judged.judge_nanos;
        self.totals.judged += u64::from(judged.judge_nanos > 0);
        if tier == CHECKING {
            self.tiers[tier].states.extend(&judged.states);
        }
        for (op, before, after) in &judged.steps {
            self.steps.count(op, before, after);
        }
        let unseen = judged
            .sightings
            .iter()
            .any(|s| s.known.is_none() && !self.suspects.contains_key(&s.signature));
        if let Some(why) = &judged.inconclusive {
            self.totals.inconclusive += 1;
            self.keeper.inconclusive(&job.program, why)?;
        }
        // The VM thread replaces a VM that showed something new.
        self.slots[slot].up &= !unseen;
        if job.check {
            return self.checked(job, judged);
        }
        self.count_program(tier);
        self.ran(&job.program);
        let ending = match (&judged.inconclusive, judged.has_news()) {
            (_, true) => Ending::Fault { fresh: unseen },
            (Some(_), false) => Ending::Void,
            (None, false) => Ending::Pass,
        };
        let blocks = self.book.as_mut().map(|book| book.program(&cells)).unwrap_or_default();
        if let Some(engine) = &mut self.engine
            && let Told::Kept(program) = engine.tell(
                job.ticket,
                Ran { states: &judged.states, blocks: &blocks, waits: judged.waits, ending },
            )?
        {
            if tier == FAST && self.plan.versus.is_none() {
                self.want_check(&program, false)?;
            }
            self.keeper.program(&program)?;
            if let Some(fleet) = &self.fleet {
                fleet.entry(&program);
            }
        }
        for sighting in judged.sightings {
            self.suspect(tier, sighting, job.program.clone())?;
        }
        Ok(())
    }

    fn count_program(&mut self, tier: usize) {
        self.totals.programs += 1;
        self.tiers[tier].programs += 1;
    }

    fn canary(
        &mut self,
        tier: usize,
        canary: case::link::Canary,
        ended: Ended,
    ) -> anyhow::Result<()> {
        let word = match ended {
            Ended::Found => "found",
            Ended::Missed => "missed",
            Ended::Again => return Ok(()),
        };
        self.keeper.canary(canary.name(), word)?;
        if ended == Ended::Missed {
            let kernel = &self.tiers[tier].kernel;
            self.progress.event(&format!("canary {} was NOT found on {kernel}", canary.name()));
        }
        Ok(())
    }

    fn died(&mut self, slot: usize, job: Option<Job>, cause: Cause) -> anyhow::Result<()> {
        self.slots[slot].up = false;
        self.slots[slot].rss_kib = 0;
        let tier = self.slots[slot].tier;
        let what = match &cause {
            Cause::Guest(sighting) => sighting.title.clone(),
            Cause::Host(why) => why.clone(),
        };
        let planted = job.as_ref().and_then(|j| j.canary);
        if planted.is_none() {
            self.progress.event(&format!("vm{slot}{}: died: {what}", self.tier_name(slot)));
            self.keeper.vm(slot, "died", &what)?;
        }
        let Some(job) = job else {
            // Nothing was executing. What the kernel said came as a console event of its own.
            self.totals.inconclusive += u64::from(matches!(cause, Cause::Host(_)));
            return Ok(());
        };
        self.freed(slot);
        if let Some(canary) = planted {
            let ended = self.tiers[tier].canaries.died(canary, &cause);
            return self.canary(tier, canary, ended);
        }
        let sighting = match cause {
            Cause::Guest(sighting) => Some(*sighting),
            Cause::Host(why) => {
                let tries = self.retries.entry(case::wire::program_id(&job.program)).or_default();
                *tries += 1;
                if *tries <= RETRIES {
                    self.give_back(slot, job);
                    return Ok(());
                }
                self.totals.inconclusive += 1;
                self.keeper.inconclusive(&job.program, &why)?;
                None
            }
        };
        if !job.check {
            self.count_program(tier);
            self.ran(&job.program);
            let ending = match &sighting {
                Some(s) => Ending::Fault { fresh: !self.suspects.contains_key(&s.signature) },
                None => Ending::Void,
            };
            if let Some(engine) = &mut self.engine {
                let ran = Ran { states: &BTreeSet::new(), blocks: &[], waits: 0, ending };
                engine.tell(job.ticket, ran)?;
            }
        }
        let end = if sighting.is_some() { End::Finding } else { End::Void };
        if let Some(sighting) = sighting {
            self.suspect(tier, sighting, job.program)?;
        }
        if job.check { self.end_check(job.ticket, end) } else { Ok(()) }
    }
}
