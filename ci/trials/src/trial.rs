//! One reader of foreign bytes under trial: good inputs, mutants of them, and what it may cost.

use crate::MEMORY;
use crate::cells::Cells;
use libafl::HasMetadata;
use libafl::corpus::{Corpus, InMemoryCorpus, Testcase};
use libafl::feedbacks::ConstFeedback;
use libafl::inputs::{BytesInput, HasMutatorBytes, ResizableMutator};
use libafl::mutators::{HavocScheduledMutator, Mutator, Tokens, havoc_mutations, tokens_mutations};
use libafl::state::{HasCorpus, HasMaxSize, HasRand, StdState};
use libafl_bolts::rands::{Rand, StdRand};
use libafl_bolts::tuples::Merge;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Seconds of mutants in a run of the tests; `$HGM_FUZZ_SECONDS` says otherwise.
const SECONDS: u64 = 3;
/// Memory one input may take, in bytes, where the test says nothing.
const MEMORY_MAX: usize = 64 << 20;
/// Time one input may take. One that took longer gets two more chances: machines are busy.
const TIME_MAX: Duration = Duration::from_secs(1);
const CHANCES: u32 = 3;
/// Each seed is also tried cut off, at this many places.
const CUTS: usize = 200;
/// log2 of the most mutations stacked on one mutant.
const STACK_POW: usize = 4;
/// Longest input, in bytes, where the test says nothing.
const BYTES_MAX: usize = 64 << 10;

type State = StdState<InMemoryCorpus<BytesInput>, BytesInput, StdRand, InMemoryCorpus<BytesInput>>;

/// What is tried.
#[derive(Debug)]
pub struct Trial {
    name: &'static str,
    seeds: Vec<Vec<u8>>,
    words: Vec<Vec<u8>>,
    bytes_max: usize,
    memory_max: usize,
}

/// What it came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    pub executions: u64,
    /// Most memory of one input, in bytes, and its longest time.
    pub memory: usize,
    pub longest: Duration,
}

impl Trial {
    /// `name` is the folder of its saved inputs below `cases`; seeds are good inputs.
    pub fn new(name: &'static str, seeds: Vec<Vec<u8>>) -> Trial {
        assert!(!seeds.is_empty(), "{name}: no seed");
        Trial { name, seeds, words: Vec::new(), bytes_max: BYTES_MAX, memory_max: MEMORY_MAX }
    }

    /// Words that mutants get more of.
    pub fn words(mut self, words: &[&str]) -> Trial {
        self.words.extend(words.iter().map(|word| word.as_bytes().to_vec()));
        self
    }

    pub fn bytes_max(mut self, bytes: usize) -> Trial {
        self.bytes_max = bytes;
        self
    }

    pub fn memory_max(mut self, bytes: usize) -> Trial {
        self.memory_max = bytes;
        self
    }

    /// Runs `target` on the saved inputs, the seeds, the seeds cut off, and on mutants until the
    /// time is over.
    ///
    /// # Panics
    /// If `target` does, or takes too much time or memory; the input is kept and named.
    pub fn run(self, target: impl Fn(&[u8])) -> Figures {
        let mut run =
            Run { trial: &self, target: &target, cells: Cells::new(), figures: Figures::default() };
        let mut pool = Vec::new();
        for input in saved(self.name).into_iter().chain(self.seeds.iter().cloned()) {
            run.one(&input);
            for cut in 0..CUTS.min(input.len()) {
                run.one(&input[..cut * input.len() / CUTS.min(input.len())]);
            }
            pool.push(input);
        }
        run.mutants(pool);
        let Figures { executions, memory, longest } = run.figures;
        let cells = if run.cells.are_counted() {
            format!(", {} blocks reached", run.cells.reached)
        } else {
            String::new()
        };
        println!(
            "trial {}: {executions} inputs{cells}, at most {} KiB and {:.1} ms each",
            self.name,
            memory >> 10,
            longest.as_secs_f64() * 1e3
        );
        run.figures
    }
}

struct Run<'a> {
    trial: &'a Trial,
    target: &'a dyn Fn(&[u8]),
    cells: Cells,
    figures: Figures,
}

impl Run<'_> {
    fn mutants(&mut self, pool: Vec<Vec<u8>>) {
        let mut state = self.state(pool);
        let mutations = havoc_mutations().merge(tokens_mutations());
        let mut havoc = HavocScheduledMutator::with_max_stack_pow(mutations, STACK_POW);
        let folder = kept(self.trial.name);
        let long = std::env::var("HGM_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
        let end = Instant::now() + Duration::from_secs(long.unwrap_or(SECONDS));
        while Instant::now() < end {
            let count = state.corpus().count();
            let pick = state.rand_mut().below(count.try_into().expect("there are seeds"));
            let id = state.corpus().nth(pick);
            let mut input = state.corpus().cloned_input_for_id(id).expect("it is there");
            havoc.mutate(&mut state, &mut input).expect("bytes can be mutated");
            input.resize(input.mutator_bytes().len().min(self.trial.bytes_max), 0);
            if long.is_some() {
                // What ends the whole process (a full stack) can be looked at.
                keep(&folder.join("last"), input.mutator_bytes());
            }
            if self.one(input.mutator_bytes()) {
                state.corpus_mut().add(Testcase::new(input)).expect("memory takes it");
            }
        }
    }

    fn state(&self, pool: Vec<Vec<u8>>) -> State {
        let seed = std::env::var("HGM_FUZZ_SEED").ok().and_then(|text| text.parse().ok());
        let (mut never, mut neither) = (ConstFeedback::new(false), ConstFeedback::new(false));
        let rand = StdRand::with_seed(seed.unwrap_or(1));
        let (corpus, solutions) = (InMemoryCorpus::new(), InMemoryCorpus::new());
        let state = StdState::new(rand, corpus, solutions, &mut never, &mut neither);
        let mut state: State = state.expect("feedbacks without a state");
        state.set_max_size(self.trial.bytes_max);
        for input in pool {
            let case = Testcase::new(BytesInput::new(input));
            state.corpus_mut().add(case).expect("memory takes it");
        }
        let mut tokens = Tokens::new();
        for word in &self.trial.words {
            tokens.add_token(word);
        }
        state.add_metadata(tokens);
        state
    }

    /// Whether it reached something new.
    fn one(&mut self, input: &[u8]) -> bool {
        let mut chances = CHANCES;
        loop {
            self.cells.clear();
            let before = MEMORY.current_usage();
            MEMORY.reset_peak_usage();
            let start = Instant::now();
            let result = catch_unwind(AssertUnwindSafe(|| (self.target)(input)));
            let took = start.elapsed();
            let memory = MEMORY.peak_usage().saturating_sub(before);
            self.figures.executions += 1;
            if result.is_err() {
                self.fail(input, "it panics");
            }
            if memory > self.trial.memory_max {
                self.fail(input, &format!("it takes {memory} bytes"));
            }
            self.figures.memory = self.figures.memory.max(memory);
            chances -= 1;
            if took <= TIME_MAX {
                self.figures.longest = self.figures.longest.max(took);
                return self.cells.news();
            }
            if chances == 0 {
                self.fail(input, &format!("it takes {took:?}"));
            }
        }
    }

    fn fail(&self, input: &[u8], why: &str) -> ! {
        let name = self.trial.name;
        let path = kept(name).join(format!("bad-{}", self.figures.executions));
        keep(&path, input);
        panic!("{name}: input {}: {why}; it is {}", self.figures.executions, path.display());
    }
}

/// Saved inputs, by name.
fn saved(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases").join(name);
    let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).expect("a saved input can be read")).collect()
}

/// Where inputs that fail are put.
fn kept(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/trials").join(name)
}

fn keep(path: &Path, input: &[u8]) {
    let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    let written = made.and_then(|()| std::fs::write(path, input));
    assert!(written.is_ok(), "{}: {written:?}", path.display());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(target: impl Fn(&[u8])) -> Option<String> {
        let trial = Trial::new("its-own-test", vec![b"{\"key\": [1, 2, 3]}".to_vec()]);
        let run = || trial.memory_max(1 << 20).run(target);
        let panic = catch_unwind(AssertUnwindSafe(run)).err()?;
        panic.downcast_ref::<String>().cloned()
    }

    #[test]
    fn mutants_find_panics_memory_and_time() {
        let why = failure(|bytes| assert!(!bytes.starts_with(b"{\"key\": [1, 2, 4")));
        assert!(why.expect("one digit is soon changed").contains("it panics"));
        let why = failure(|bytes| drop(vec![1u8; if bytes.len() == 5 { 2 << 20 } else { 0 }]));
        assert!(why.expect("a seed is cut").contains("bytes"));
        let slow = |bytes: &[u8]| std::thread::sleep(TIME_MAX * u32::from(bytes.len() == 5) * 2);
        assert!(failure(slow).expect("a seed is cut").contains("it takes"));
        assert_eq!(failure(|_| {}), None);
    }
}
