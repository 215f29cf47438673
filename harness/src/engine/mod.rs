//! The fuzz engine in ask/tell form: [`Engine::ask`] gives the next program, [`Engine::tell`] takes
//! what its run gave. LibAFL's corpus, scheduler, feedback and mutators live here, owned by one
//! thread. Never here: VMs, judging, files (the checkpoint is bytes; the campaign saves them).
//!
//! Same seed and the same results told in the same order give the same programs.

mod breed;
mod checkpoint;
mod input;
mod schedule;
#[cfg(test)]
mod tests;

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

/// Cells of the mapping-state map. LibAFL's cost per run is linear in it.
pub const STATE_CELLS: usize = 64 << 10;
/// Random programs asked for before mutation starts.
const WARM_UP: u32 = 64;
/// One ask in this many is a random program even when there is a corpus.
const RANDOM_ONE_IN: usize = 8;
/// Most mutants of one scheduled entry.
const MUTANTS_MAX: usize = 48;
/// log2 of the most mutations stacked on one mutant.
const STACK_POW: usize = 3;

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

/// What became of a told program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    Dull,
    /// Reached a mapping state never seen; it is in the corpus now and should be saved.
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

fn map_observer() -> StateMap {
    StdMapObserver::owned("states", vec![0u8; STATE_CELLS])
}

/// Folds a state's hash into a cell, all bits taking part.
fn cell(state: u64) -> usize {
    let folded = state ^ state >> 32;
    ((folded ^ folded >> 16) & (STATE_CELLS as u64 - 1)) as usize
}

impl Engine {
    /// An engine at its start. `seeds` are asked first, in order.
    pub fn new(seed: u64, breed: Arc<dyn Breed>, seeds: Vec<Program>) -> anyhow::Result<Self> {
        let map = map_observer();
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
            plan: Plan { seeds, ..Plan::default() },
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
        let cold = self.plan.warm < WARM_UP || self.corpus_len() == 0;
        if cold || self.state.rand_mut().below_or_zero(RANDOM_ONE_IN) == 0 {
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
                let scheduler = HasScheduler::<Case, State>::scheduler_mut(&mut self.fuzzer);
                let id = scheduler.next(&mut self.state)?;
                let left = self.state.rand_mut().below_or_zero(MUTANTS_MAX);
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

    /// Takes the result of an asked program. An id that is not outstanding is `Dull`.
    pub fn tell(
        &mut self,
        id: u64,
        states: &BTreeSet<u64>,
        ending: Ending,
    ) -> anyhow::Result<Told> {
        let Some(ticket) = self.plan.outstanding.remove(&id) else { return Ok(Told::Dull) };
        *self.state.executions_mut() += 1;
        let exit = match ending {
            Ending::Pass => ExitKind::Ok,
            Ending::Fault { fresh: true } => ExitKind::Crash,
            // A fault seen before must not breed: each run of it costs a VM.
            Ending::Fault { fresh: false } | Ending::Void => return Ok(Told::Dull),
        };
        self.fill(states);
        self.plan.seen.extend(states);
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
        Ok(match evaluated?.0 {
            ExecuteInputResult::None => Told::Dull,
            ExecuteInputResult::Corpus => Told::Kept(input.0),
            ExecuteInputResult::Solution => Told::Fault,
        })
    }

    fn fill(&mut self, states: &BTreeSet<u64>) {
        let map = &mut self.observers.0;
        for cell in map.map_mut().iter_mut() {
            *cell = 0;
        }
        for state in states {
            map.set(cell(*state), 1);
        }
    }
}
