//! Seeds and random programs run on one guest, and what of the oracle they prove: seeds go as the
//! rules say, and mutations of the model disagree with something that was seen.

use super::guest::{self, Guest};
use case::observation::Observation;
use case::{Profile, Program, Verdict};
use oracles::judge::{judge, judge_mutant};
use oracles::known::Known;
use oracles::mutants::Mutant;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::time::Duration;

/// Until an op is broken off. Seeds clear pages of 1 GiB; random programs wait for faults that
/// nobody answers, and there are many.
pub const SEED_OP_TIME: Duration = Duration::from_secs(5);
const RANDOM_OP_TIME: Duration = Duration::from_millis(1500);
const RANDOM_SEED: u64 = 61;
const RANDOM_SIZE: usize = 24;

/// Rules that 6.1 itself breaks: what the model says there can only be noticed as the known
/// deviation, which the mutation would accept.
const KNOWN_OF_61: [(Mutant, &str); 1] = [(Mutant::DontneedKeepsConsumed, "N03")];

/// A program with what a real kernel did.
pub struct Seen {
    pub name: String,
    pub seed: bool,
    pub program: Program,
    pub observation: Observation,
}

/// Runs the programs: what was seen, and the seeds that gave nothing.
pub fn run(guest: &mut Guest, programs: Vec<(String, bool, Program)>) -> (Vec<Seen>, Vec<String>) {
    let (mut seen, mut lost) = (Vec::new(), Vec::new());
    for (name, seed, program) in programs {
        match guest.run(&program, if seed { SEED_OP_TIME } else { RANDOM_OP_TIME }) {
            Ok(observation) => seen.push(Seen { name, seed, program, observation }),
            Err(why) if seed => lost.push(format!("{name}: {why}")),
            Err(why) => println!("{name}: {why}"),
        }
    }
    (seen, lost)
}

/// Name, whether it is a seed, program: all seeds, and random programs.
pub fn programs(profile: &Profile, random: u64) -> Vec<(String, bool, Program)> {
    let dir = guest::root().join("corpus/seeds");
    let mut paths: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "hgm"));
    paths.sort();
    assert!(!paths.is_empty(), "no seeds in {}", dir.display());
    let mut all = Vec::new();
    for path in paths {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let program = case::text::parse(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        all.push((name, true, program));
    }
    let mut rng = ChaCha8Rng::seed_from_u64(RANDOM_SEED);
    for n in 0..random {
        let program = generators::random(&mut rng, profile, RANDOM_SIZE);
        all.push((format!("random {n}"), false, program));
    }
    all
}

/// Seeds that neither pass nor show a known deviation.
pub fn wrong_seeds(seen: &[Seen], profile: &Profile) -> Vec<String> {
    let known = Known::builtin();
    let mut wrong = Vec::new();
    for one in seen.iter().filter(|one| one.seed) {
        match judge(&one.program, &one.observation, profile, &known).verdict {
            Verdict::Pass => {}
            Verdict::Violation(v) => wrong.push(format!(
                "{} line {}: {} expected {} observed {}",
                one.name,
                v.line,
                v.signature(),
                v.expected,
                v.observed
            )),
            Verdict::Inconclusive(why) => wrong.push(format!("{}: {why}", one.name)),
        }
    }
    wrong
}

/// Those of the mutations that agree with everything the real model agrees with.
pub fn survivors(seen: &[Seen], profile: &Profile, mutants: &[Mutant]) -> Vec<Mutant> {
    let none = Known::default();
    let passes = |one: &&Seen| {
        let report = judge(&one.program, &one.observation, profile, &none);
        matches!(report.verdict, Verdict::Pass)
    };
    let good: Vec<&Seen> = seen.iter().filter(passes).collect();
    println!("{} observations pass without known deviations", good.len());
    let mut survivors = Vec::new();
    for mutant in mutants {
        if let Some((_, id)) = KNOWN_OF_61.iter().find(|(m, _)| m == mutant) {
            let accepts = |one: &&Seen| accepts_deviation(one, profile, *mutant, id);
            match seen.iter().find(accepts) {
                Some(one) => println!("{mutant:?}: as {id} in {}", one.name),
                None => survivors.push(*mutant),
            }
            continue;
        }
        let notices = |one: &&&Seen| {
            let report = judge_mutant(&one.program, &one.observation, profile, &none, *mutant);
            matches!(report.verdict, Verdict::Violation(_))
        };
        let of = |seed: bool| good.iter().filter(|one| one.seed == seed).find(notices);
        match (of(true), of(false)) {
            (None, None) => survivors.push(*mutant),
            (by_seed, by_random) => {
                let name = |one: Option<&&Seen>| one.map_or("-".to_owned(), |s| s.name.clone());
                println!("{mutant:?}: {}, {}", name(by_seed), name(by_random));
            }
        }
    }
    survivors
}

/// The model calls it deviation `id`; the mutation does not object.
fn accepts_deviation(one: &Seen, profile: &Profile, mutant: Mutant, id: &str) -> bool {
    let report = judge(&one.program, &one.observation, profile, &Known::builtin());
    let mutated = judge_mutant(&one.program, &one.observation, profile, &Known::default(), mutant);
    report.known.iter().any(|(_, known)| known == id) && mutated.verdict == Verdict::Pass
}
