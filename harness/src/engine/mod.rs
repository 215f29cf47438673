//! The fuzz engine in ask/tell form: [`Engine::ask`] gives the next program, [`Engine::tell`] takes
//! what its run gave. LibAFL's corpus, scheduler, feedback and mutators live here, owned by one
//! thread. Never here: VMs, judging, files (the checkpoint is bytes; the campaign saves them).
//!
//! Same seed and the same results told in the same order give the same programs. Blocks of kernel
//! text are part of a result, and a kernel does not repeat them exactly: with coverage on, two
//! campaigns of one seed are the same only up to the first program that differs in them.

mod breed;
mod checkpoint;
mod input;
mod schedule;
#[cfg(test)]
mod tests;
mod worth;

pub use breed::{Breed, Generators};
pub use input::Case;

use case::Program;
use input::{Cross, Tweak, split};
use libafl::corpus::{Corpus, CorpusId, InMemoryCorpus};
use libafl::events::NopEventManager;
use libafl::executors::ExitKind;
use libafl::feedbacks::{CrashFeedback, MaxMapFeedback};
use libafl::fuzzer::NopInputFilter;
use libafl::fuzzer::{ExecuteInputResult, ExecutionProcessor, HasScheduler, StdFuzzer};
use libafl::inputs::BytesInputConverter;
use libafl::mutators::{HavocScheduledMutator, Mutator};
use libafl::observers::{MapObserver, StdMapObserver};
use libafl::schedulers::Scheduler;
use libafl::state::{HasCorpus, HasExecutions, HasRand, StdState};
use libafl_bolts::rands::{Rand, StdRand};
use libafl_bolts::tuples::tuple_list;
use schedule::YoungFirst;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use worth::Worth;

/// Cells of the map that mapping states fold into; one cell for each block of kernel text follows.
/// LibAFL's cost per run is linear in the whole map.
pub const STATE_CELLS: usize = 64 << 10;
/// Random programs asked for before mutation starts.
const WARM_UP: u32 = 64;
/// Most mutants of one scheduled entry.
const MUTANTS_MAX: usize = 48;
/// What an op that waits until it is broken off costs, in times of a whole program without one.
const WAIT_COST: usize = 3;
/// Ops of a usual program.
const USUAL_OPS: usize = 16;
/// Least mutants an entry is scheduled for, however long it takes.
const MUTANTS_MIN: usize = 4;
/// log2 of the most mutations stacked on one mutant.
const STACK_POW: usize = 3;
/// Where blocks are counted, one choice of an entry in this many goes by how rare its blocks are.
const RARE_ONE_IN: usize = 3;
/// Entries compared in such a choice.
const RARE_DRAWS: usize = 8;
/// Blocks remembered of one entry.
const RARE_BLOCKS: usize = 16;

type State = StdState<InMemoryCorpus<Case>, Case, StdRand, InMemoryCorpus<Case>>;
type StateMap = StdMapObserver<'static, u8, false>;
type Fuzzer = StdFuzzer<
    YoungFirst,
    MaxMapFeedback<StateMap, StateMap>,
    BytesInputConverter,
    NopInputFilter,
    CrashFeedback,
>;

/// Where a program came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Origin {
    /// A seed file, a saved corpus entry, or an asked program a checkpoint found unanswered.
    Seed,
    Scenario,
    Random,
    /// Mutant of the corpus entry with this number.
    Mutant(usize),
}

/// What new programs are made by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Guide {
    /// Mapping states and, where they are counted, blocks of kernel text.
    #[default]
    All,
    /// Mapping states alone.
    States,
    /// Nothing: after seeds and scenarios every program is random.
    Nothing,
}

/// A program handed out and not yet told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    pub id: u64,
    pub program: Program,
    pub origin: Origin,
}

/// How a run ended, as far as the engine cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Pass,
    /// A violation or a dead guest; `fresh` if its signature was never told before.
    Fault {
        fresh: bool,
    },
    /// Nothing can be learned.
    Void,
}

/// What the run of an asked program gave.
#[derive(Clone, Copy, Debug)]
pub struct Ran<'a> {
    /// Mapping states reached.
    pub states: &'a BTreeSet<u64>,
    /// Blocks of kernel text executed.
    pub blocks: &'a [u32],
    /// Ops that waited until they were broken off. Time itself would do as well, but would make no
    /// two campaigns of a seed alike.
    pub waits: u32,
    pub ending: Ending,
}

/// What became of a told program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    Dull,
    /// Reached a mapping state or a block never seen; it is in the corpus now and should be saved.
    Kept(Program),
    /// First of its signature.
    Fault,
}

/// What goes into a checkpoint beside LibAFL's own state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Plan {
    seeds: VecDeque<(Program, Origin)>,
    /// Scenarios already offered.
    scenarios: usize,
    warm: u32,
    /// The scheduled entry and how many mutants of it are still to come.
    current: Option<(usize, usize)>,
    outstanding: BTreeMap<u64, Ticket>,
    next_id: u64,
    /// Every mapping state reached, exactly.
    seen: BTreeSet<u64>,
    guide: Guide,
    /// Blocks of kernel text there are; 0 if they are not counted.
    blocks: u32,
    /// Programs that executed each block.
    hits: BTreeMap<u32, u32>,
    /// Blocks that were new when an entry came into the corpus.
    firsts: BTreeMap<usize, Vec<u32>>,
    /// Ops of an entry that wait until they are broken off, where there are any.
    waits: BTreeMap<usize, u32>,
    worth: Worth,
}

/// See the module's head.
pub struct Engine {
    state: State,
    fuzzer: Fuzzer,
    manager: NopEventManager,
    /// Taken out while LibAFL looks at it.
    observers: (StateMap, ()),
    breed: Arc<dyn Breed>,
    plan: Plan,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("corpus", &self.corpus_len()).finish_non_exhaustive()
    }
}

fn map_observer(blocks: u32) -> StateMap {
    StdMapObserver::owned("states", vec![0u8; STATE_CELLS + blocks as usize])
}

/// Folds a state's hash into a cell, all bits taking part.
fn cell(state: u64) -> usize {
    let folded = state ^ state >> 32;
    ((folded ^ folded >> 16) & (STATE_CELLS as u64 - 1)) as usize
}

impl Engine {
    /// An engine at its start. `seeds` are asked first, in order. `blocks` is the number of blocks
    /// that can be told of.
    pub fn new(
        seed: u64,
        breed: Arc<dyn Breed>,
        seeds: Vec<Program>,
        guide: Guide,
        blocks: u32,
    ) -> anyhow::Result<Self> {
        let map = map_observer(blocks);
        let mut feedback = MaxMapFeedback::new(&map);
        let mut objective = CrashFeedback::new();
        let state = StdState::new(
            StdRand::with_seed(seed),
            InMemoryCorpus::new(),
            InMemoryCorpus::new(),
            &mut feedback,
            &mut objective,
        )?;
        let seeds = seeds.into_iter().map(|p| (p, Origin::Seed)).collect();
        Ok(Engine {
            state,
            fuzzer: StdFuzzer::new(YoungFirst, feedback, objective),
            manager: NopEventManager::new(),
            observers: (map, ()),
            breed,
            plan: Plan { seeds, guide, blocks, ..Plan::default() },
        })
    }

    /// Programs in the corpus.
    pub fn corpus_len(&self) -> usize {
        self.state.corpus().count()
    }

    /// Distinct mapping states reached.
    pub fn states(&self) -> usize {
        self.plan.seen.len()
    }

    /// Counts states reached by a program that was not asked for here.
    pub fn saw(&mut self, states: &BTreeSet<u64>) {
        self.plan.seen.extend(states);
    }

    /// Every program of the corpus, oldest first.
    pub fn corpus(&self) -> anyhow::Result<Vec<Program>> {
        let corpus = self.state.corpus();
        corpus.ids().map(|id| Ok(corpus.cloned_input_for_id(id)?.0)).collect()
    }

    /// Queues a program to be asked before anything new is made.
    pub fn queue(&mut self, program: Program) {
        self.plan.seeds.push_back((program, Origin::Seed));
    }

    /// The next program to run. It stays outstanding, and in every checkpoint, until told.
    pub fn ask(&mut self) -> anyhow::Result<Ticket> {
        let (program, origin) = match self.plan.seeds.pop_front() {
            Some(queued) => queued,
            None => self.make()?,
        };
        let id = self.plan.next_id;
        self.plan.next_id += 1;
        let ticket = Ticket { id, program, origin };
        self.plan.outstanding.insert(id, ticket.clone());
        Ok(ticket)
    }

    /// Puts an outstanding program back, to be asked again: its VM went away before it ran.
    pub fn give_back(&mut self, id: u64) {
        if let Some(ticket) = self.plan.outstanding.remove(&id) {
            self.plan.seeds.push_back((ticket.program, ticket.origin));
        }
    }

    fn make(&mut self) -> anyhow::Result<(Program, Origin)> {
        while self.plan.scenarios < self.breed.scenarios() {
            let nth = self.plan.scenarios;
            self.plan.scenarios += 1;
            let mut rng = split(&mut self.state);
            if let Some(program) = self.breed.scenario(nth, &mut rng) {
                return Ok((program, Origin::Scenario));
            }
        }
        let blind = self.plan.guide == Guide::Nothing;
        let cold = blind || self.plan.warm < WARM_UP || self.corpus_len() == 0;
        let share = self.plan.worth.random_share();
        if cold || self.state.rand_mut().below_or_zero(worth::WHOLE) < share {
            self.plan.warm = self.plan.warm.saturating_add(1);
            let mut rng = split(&mut self.state);
            return Ok((self.breed.random(&mut rng), Origin::Random));
        }
        self.mutant()
    }

    fn mutant(&mut self) -> anyhow::Result<(Program, Origin)> {
        let parent = match self.plan.current {
            Some((parent, left)) if left > 0 => {
                self.plan.current = Some((parent, left - 1));
                CorpusId(parent)
            }
            _ => {
                let id = match self.rare() {
                    Some(id) => id,
                    None => HasScheduler::<Case, State>::scheduler_mut(&mut self.fuzzer)
                        .next(&mut self.state)?,
                };
                let most = self.most_mutants(id);
                let left = self.state.rand_mut().below_or_zero(most);
                self.plan.current = Some((id.0, left));
                id
            }
        };
        let mut input = self.state.corpus().cloned_input_for_id(parent)?;
        let mut mutator = HavocScheduledMutator::with_max_stack_pow(
            tuple_list!(Tweak(self.breed.clone()), Cross(self.breed.clone())),
            STACK_POW,
        );
        mutator.mutate(&mut self.state, &mut input)?;
        Ok((input.0, Origin::Mutant(parent.0)))
    }

    /// Entries that wait have children that wait: they get as much time as the others, not as many
    /// runs.
    fn most_mutants(&self, id: CorpusId) -> usize {
        let waits = self.plan.waits.get(&id.0).copied().unwrap_or(0) as usize;
        (MUTANTS_MAX / (1 + WAIT_COST * waits)).max(MUTANTS_MIN)
    }

    /// Now and then, where blocks are counted, the entry of a few drawn ones whose rarest block was
    /// executed by the fewest programs.
    fn rare(&mut self) -> Option<CorpusId> {
        let count = self.plan.firsts.len();
        if count == 0 || self.state.rand_mut().below_or_zero(RARE_ONE_IN) != 0 {
            return None;
        }
        let hits = |block: &u32| self.plan.hits.get(block).copied().unwrap_or(0);
        let mut best: Option<(u32, usize)> = None;
        for _ in 0..RARE_DRAWS {
            let nth = self.state.rand_mut().below_or_zero(count);
            let (id, blocks) = self.plan.firsts.iter().nth(nth)?;
            let rarest = (blocks.iter().map(hits).min().unwrap_or(u32::MAX), *id);
            best = Some(best.map_or(rarest, |best| best.min(rarest)));
        }
        best.map(|(_, id)| CorpusId(id))
    }

    /// Takes the result of an asked program. An id that is not outstanding is `Dull`.
    pub fn tell(&mut self, id: u64, ran: Ran<'_>) -> anyhow::Result<Told> {
        let Ran { states, blocks, waits, ending } = ran;
        let Some(ticket) = self.plan.outstanding.remove(&id) else { return Ok(Told::Dull) };
        *self.state.executions_mut() += 1;
        let exit = match ending {
            Ending::Pass => ExitKind::Ok,
            Ending::Fault { fresh: true } => ExitKind::Crash,
            // A fault seen before must not breed: each run of it costs a VM.
            Ending::Fault { fresh: false } | Ending::Void => return Ok(Told::Dull),
        };
        let blocks = if self.plan.guide == Guide::All { blocks } else { &[] };
        self.fill(states, blocks);
        let before = self.plan.seen.len();
        self.plan.seen.extend(states);
        let firsts = self.count(blocks);
        let news = self.plan.seen.len() - before + firsts.len();
        let cost = ticket.program.lines() + USUAL_OPS * WAIT_COST * waits as usize;
        self.plan.worth.told(ticket.origin, news, cost);
        let parent = match ticket.origin {
            Origin::Mutant(parent) => Some(CorpusId(parent)),
            _ => None,
        };
        // LibAFL takes the parent from `current`; with runs in flight that is another entry.
        let scheduled = std::mem::replace(self.state.corpus_mut().current_mut(), parent);
        let input = Case(ticket.program);
        let evaluated = self.fuzzer.evaluate_execution(
            &mut self.state,
            &mut self.manager,
            &input,
            &self.observers,
            &exit,
            false,
        );
        *self.state.corpus_mut().current_mut() = scheduled;
        let (result, id) = evaluated?;
        if let Some(id) = id {
            if !firsts.is_empty() {
                self.plan.firsts.insert(id.0, firsts);
            }
            if waits > 0 {
                self.plan.waits.insert(id.0, waits);
            }
        }
        Ok(match result {
            ExecuteInputResult::None => Told::Dull,
            ExecuteInputResult::Corpus => Told::Kept(input.0),
            ExecuteInputResult::Solution => Told::Fault,
        })
    }

    /// Whether a block was executed is what counts, not how often: timer ticks and kernel threads
    /// change the latter from run to run.
    fn fill(&mut self, states: &BTreeSet<u64>, blocks: &[u32]) {
        let map = &mut self.observers.0;
        map.map_mut().fill(0);
        for state in states {
            map.set(cell(*state), 1);
        }
        for block in blocks.iter().filter(|block| **block < self.plan.blocks) {
            map.set(STATE_CELLS + *block as usize, 1);
        }
    }

    /// Counts a program for its blocks; gives some of those that were new.
    fn count(&mut self, blocks: &[u32]) -> Vec<u32> {
        let mut firsts = Vec::new();
        for block in blocks {
            let hits = self.plan.hits.entry(*block).or_default();
            if *hits == 0 && firsts.len() < RARE_BLOCKS {
                firsts.push(*block);
            }
            *hits = hits.saturating_add(1);
        }
        firsts
    }
}
