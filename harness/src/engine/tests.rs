//! Laws of the engine, with a pure stand-in for guest and generators.

use super::*;
use case::value::{Bytes, Place};
use case::{Op, ProcId, Step};
use libafl::state::HasSolutions;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

struct Toy;

const BLOCKS: u32 = 64;

fn write(off: u64) -> Step {
    Step::one(ProcId(0), Op::Write { at: Place::new(0, off * 4096), len: Bytes(4096) })
}

impl Breed for Toy {
    fn scenarios(&self) -> usize {
        2
    }
    fn scenario(&self, nth: usize, _rng: &mut ChaCha8Rng) -> Option<Program> {
        (nth == 1).then(|| Program::of(vec![write(7)]))
    }
    fn random(&self, rng: &mut ChaCha8Rng) -> Program {
        Program::of((0..rng.random_range(1..4)).map(|_| write(rng.random_range(0..50))).collect())
    }
    fn mutate(&self, rng: &mut ChaCha8Rng, from: &Program, donor: Option<&Program>) -> Program {
        let mut new = from.clone();
        match donor {
            Some(donor) => new.steps.extend(donor.steps.iter().take(1).cloned()),
            None => new.steps.push(write(rng.random_range(0..500))),
        }
        new.steps.truncate(12);
        new
    }
}

/// The stand-in for a guest: each pair of neighbouring offsets is a state.
fn run(program: &Program) -> BTreeSet<u64> {
    let offs: Vec<u64> = program
        .each_line()
        .iter()
        .filter_map(|(_, _, op)| match op {
            Op::Write { at, .. } => Some(at.page()),
            _ => None,
        })
        .collect();
    offs.windows(2).map(|w| (w[0] / 10) << 20 | (w[1] / 10) << 4).collect()
}

/// Each offset's hundreds are a block.
fn blocks(program: &Program) -> Vec<u32> {
    let blocks: BTreeSet<u32> = program
        .each_line()
        .iter()
        .filter_map(|(_, _, op)| match op {
            Op::Write { at, .. } => Some(at.page() as u32 / 100),
            _ => None,
        })
        .collect();
    blocks.into_iter().collect()
}

fn toy(seed: u64) -> Engine {
    Engine::new(
        seed,
        Arc::new(Toy),
        vec![Program::of(vec![write(1), write(30)])],
        Guide::All,
        BLOCKS,
    )
    .unwrap()
}

fn gave<'a>(states: &'a BTreeSet<u64>, blocks: &'a [u32], ending: Ending) -> Ran<'a> {
    Ran { states, blocks, waits: 0, ending }
}

/// Runs `n` programs with `depth` of them outstanding, as a pipelined VM would.
fn drive(engine: &mut Engine, n: usize, depth: usize) -> Vec<Program> {
    let mut flight = VecDeque::new();
    let mut ran = Vec::new();
    while ran.len() < n {
        while flight.len() < depth {
            flight.push_back(engine.ask().unwrap());
        }
        let ticket: Ticket = flight.pop_front().unwrap();
        let (states, blocks) = (run(&ticket.program), blocks(&ticket.program));
        engine.tell(ticket.id, gave(&states, &blocks, Ending::Pass)).unwrap();
        ran.push(ticket.program);
    }
    for ticket in flight {
        engine.give_back(ticket.id);
    }
    ran
}

#[test]
fn same_seed_and_results_give_the_same_programs() {
    let (mut a, mut b, mut c) = (toy(5), toy(5), toy(6));
    let ran = drive(&mut a, 600, 3);
    assert_eq!(ran, drive(&mut b, 600, 3));
    assert_ne!(ran, drive(&mut c, 600, 3));
    assert_eq!(a.corpus().unwrap(), b.corpus().unwrap());
    assert!(a.corpus_len() > 20, "corpus of {} is too small to prove anything", a.corpus_len());
}

#[test]
fn seeds_come_first_then_scenarios() {
    let mut engine = toy(1);
    let ran = drive(&mut engine, 2, 1);
    assert_eq!(ran[0], Program::of(vec![write(1), write(30)]));
    assert_eq!(ran[1], Program::of(vec![write(7)]));
}

#[test]
fn a_restored_engine_goes_on_as_if_never_stopped() {
    let mut straight = toy(9);
    let mut first = toy(9);
    drive(&mut straight, 300, 1);
    drive(&mut first, 300, 1);
    let bytes = first.checkpoint().unwrap();
    drop(first);
    let mut second = Engine::restore(&bytes, Arc::new(Toy), Guide::All, BLOCKS).unwrap();
    assert_eq!(second.states(), straight.states());
    assert_eq!(drive(&mut second, 300, 1), drive(&mut straight, 300, 1));
    assert_eq!(second.corpus().unwrap(), straight.corpus().unwrap());
}

#[test]
fn outstanding_programs_survive_a_checkpoint() {
    let mut engine = toy(2);
    drive(&mut engine, 50, 1);
    let flight = [engine.ask().unwrap(), engine.ask().unwrap()];
    let mut back =
        Engine::restore(&engine.checkpoint().unwrap(), Arc::new(Toy), Guide::All, BLOCKS).unwrap();
    assert_eq!(back.ask().unwrap().program, flight[0].program);
    assert_eq!(back.ask().unwrap().program, flight[1].program);
}

#[test]
fn only_new_states_enter_the_corpus_and_known_faults_never() {
    let mut engine = toy(3);
    let states = BTreeSet::from([1u64 << 40, 77]);
    let told = |engine: &mut Engine, ending| {
        let ticket = engine.ask().unwrap();
        engine.tell(ticket.id, gave(&states, &[], ending)).unwrap()
    };
    assert_eq!(told(&mut engine, Ending::Void), Told::Dull);
    assert_eq!(told(&mut engine, Ending::Fault { fresh: false }), Told::Dull);
    assert_eq!(told(&mut engine, Ending::Fault { fresh: true }), Told::Fault);
    assert!(matches!(told(&mut engine, Ending::Pass), Told::Kept(_)));
    assert_eq!(told(&mut engine, Ending::Pass), Told::Dull);
    assert_eq!((engine.corpus_len(), engine.state.solutions().count(), engine.states()), (1, 1, 2));
}

#[test]
fn damaged_checkpoints_are_refused() {
    let mut engine = toy(4);
    drive(&mut engine, 20, 1);
    let good = engine.checkpoint().unwrap();
    for at in [0, 9, 60, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        assert!(
            Engine::restore(&bad, Arc::new(Toy), Guide::All, BLOCKS).is_err(),
            "flip at {at} went unseen"
        );
    }
    for len in [0, 7, 8, 39, good.len() - 1] {
        assert!(
            Engine::restore(&good[..len], Arc::new(Toy), Guide::All, BLOCKS).is_err(),
            "cut at {len} unseen"
        );
    }
}

#[test]
fn a_new_block_is_news_once_and_only_where_blocks_guide() {
    for (guide, kept) in [(Guide::All, 2), (Guide::States, 1), (Guide::Nothing, 1)] {
        let mut engine = Engine::new(1, Arc::new(Toy), Vec::new(), guide, BLOCKS).unwrap();
        let states = BTreeSet::from([5]);
        let mut tell = |blocks: &[u32]| {
            let ticket = engine.ask().unwrap();
            let told = engine.tell(ticket.id, gave(&states, blocks, Ending::Pass)).unwrap();
            matches!(told, Told::Kept(_))
        };
        let news = [tell(&[3]), tell(&[3]), tell(&[3, 7]), tell(&[7]), tell(&[BLOCKS])];
        assert_eq!(news.iter().filter(|kept| **kept).count(), kept, "{guide:?} {news:?}");
        assert!(news[0], "the state alone is news");
        assert_eq!(engine.plan.hits.get(&3).copied().unwrap_or(0), if kept == 2 { 3 } else { 0 });
    }
}

#[test]
fn entries_with_rare_blocks_are_chosen_more_often() {
    let mut engine = Engine::new(1, Arc::new(Toy), Vec::new(), Guide::All, BLOCKS).unwrap();
    for block in 0..20 {
        let ticket = engine.ask().unwrap();
        engine.tell(ticket.id, gave(&BTreeSet::new(), &[block], Ending::Pass)).unwrap();
    }
    // Every block but the fourth becomes common.
    for _ in 0..30 {
        let common: Vec<u32> = (0..20).filter(|block| *block != 4).collect();
        let ticket = engine.ask().unwrap();
        engine.tell(ticket.id, gave(&BTreeSet::new(), &common, Ending::Pass)).unwrap();
    }
    let chosen: Vec<CorpusId> = (0..300).filter_map(|_| engine.rare()).collect();
    assert!((60..140).contains(&chosen.len()), "{} of 300", chosen.len());
    let rare = chosen.iter().filter(|id| id.0 == 4).count();
    assert!(rare * 5 > chosen.len(), "{rare} of {}", chosen.len());
}

#[test]
fn without_a_guide_nothing_is_a_mutant() {
    let mut engine = Engine::new(8, Arc::new(Toy), Vec::new(), Guide::Nothing, 0).unwrap();
    for _ in 0..200 {
        let ticket = engine.ask().unwrap();
        assert!(!matches!(ticket.origin, Origin::Mutant(_)));
        engine.tell(ticket.id, gave(&run(&ticket.program), &[], Ending::Pass)).unwrap();
    }
    assert!(engine.corpus_len() > 0);
}

#[test]
fn entries_that_wait_get_fewer_mutants() {
    let mut engine = Engine::new(8, Arc::new(Toy), Vec::new(), Guide::States, 0).unwrap();
    for (state, waits) in [(1, 0), (2, 1), (3, 40)] {
        let ticket = engine.ask().unwrap();
        let states = BTreeSet::from([state]);
        let waited = Ran { waits, ..gave(&states, &[], Ending::Pass) };
        assert!(matches!(engine.tell(ticket.id, waited).unwrap(), Told::Kept(_)));
    }
    let most = |id: usize| engine.most_mutants(CorpusId(id));
    assert_eq!((most(0), most(1), most(2)), (MUTANTS_MAX, MUTANTS_MAX / 4, MUTANTS_MIN));
    let back =
        Engine::restore(&engine.checkpoint().unwrap(), Arc::new(Toy), Guide::States, 0).unwrap();
    assert_eq!(back.most_mutants(CorpusId(1)), most(1), "a checkpoint keeps it");
}
