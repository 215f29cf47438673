//! The oracle against a real kernel. One guest runs every seed and a few hundred random programs;
//! the seeds must go as the rules say, and every single-rule mutation of the model must disagree
//! with something that was seen: else the oracle would not notice a kernel that is wrong there.

#![allow(clippy::unwrap_used)]

#[path = "support/guest.rs"]
mod guest;

use case::observation::{Observation, Status};
use case::{Profile, Program, Verdict};
use guest::Guest;
use oracles::judge::{judge, judge_mutant};
use oracles::known::Known;
use oracles::mutants::Mutant;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::time::{Duration, Instant};

/// Until an op is broken off. Seeds clear pages of 1 GiB; random programs wait for faults that
/// nobody answers, and there are many.
const SEED_OP_TIME: Duration = Duration::from_secs(5);
const RANDOM_OP_TIME: Duration = Duration::from_millis(1500);
const RANDOM_PROGRAMS: u64 = 250;
const RANDOM_SEED: u64 = 61;
const RANDOM_SIZE: usize = 24;
/// Fewer would prove little.
const MUTANTS_MIN: usize = 27;

/// Rules that 6.1 itself breaks: what the model says there can only be noticed as the known
/// deviation, which the mutation would accept.
const KNOWN_OF_61: [(Mutant, &str); 1] = [(Mutant::DontneedKeepsConsumed, "N03")];

/// A program with what a real kernel did.
struct Seen {
    name: String,
    seed: bool,
    program: Program,
    observation: Observation,
}

#[test]
fn seeds_pass_and_every_mutation_of_the_model_is_noticed() {
    assert!(Mutant::ALL.len() >= MUTANTS_MIN, "only {} mutations", Mutant::ALL.len());
    let start = Instant::now();
    let mut guest = Guest::boot("6.1");
    let profile = guest.profile();
    println!("booted after {:.1} s", start.elapsed().as_secs_f64());
    let mut lost = Vec::new();
    let mut seen = Vec::new();
    for (name, seed, program) in programs(&profile) {
        match guest.run(&program, if seed { SEED_OP_TIME } else { RANDOM_OP_TIME }) {
            Ok(observation) => seen.push(Seen { name, seed, program, observation }),
            Err(why) if seed => lost.push(format!("{name}: {why}")),
            Err(why) => println!("{name}: {why}"),
        }
    }
    println!("{} programs ran after {:.1} s", seen.len(), start.elapsed().as_secs_f64());
    assert_waits_are_short(&seen);
    let wrong: Vec<String> = lost.into_iter().chain(wrong_seeds(&seen, &profile)).collect();
    let survivors = survivors(&seen, &profile);
    println!("judged after {:.1} s", start.elapsed().as_secs_f64());
    assert!(wrong.is_empty(), "seeds that do not pass:\n{}", wrong.join("\n"));
    assert!(survivors.is_empty(), "mutations that nothing noticed: {survivors:?}");
}

/// A wait that nobody will end is broken off long before its time is up. One program is enough: on
/// a busy machine others may have been slow.
fn assert_waits_are_short(seen: &[Seen]) {
    let waits = |one: &&Seen| one.observation.lines.iter().any(|l| l.status == Status::Timeout);
    let waiting: Vec<&Seen> = seen.iter().filter(|one| one.seed).filter(waits).collect();
    let shortest = waiting.iter().map(|one| one.observation.nanos).min();
    println!("{} seeds wait for nothing, {shortest:?} ns at least", waiting.len());
    let allowed = SEED_OP_TIME.as_nanos() as u64 / 2;
    assert!(shortest.is_some_and(|ns| ns < allowed), "an op waits until its time is up");
}

/// Name, whether it is a seed, program.
fn programs(profile: &Profile) -> Vec<(String, bool, Program)> {
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
    for n in 0..RANDOM_PROGRAMS {
        let program = generators::random(&mut rng, profile, RANDOM_SIZE);
        all.push((format!("random {n}"), false, program));
    }
    all
}

/// Seeds that neither pass nor show a known deviation.
fn wrong_seeds(seen: &[Seen], profile: &Profile) -> Vec<String> {
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

/// Mutations that agree with everything the real model agrees with.
fn survivors(seen: &[Seen], profile: &Profile) -> Vec<Mutant> {
    let none = Known::default();
    let passes = |one: &&Seen| {
        let report = judge(&one.program, &one.observation, profile, &none);
        matches!(report.verdict, Verdict::Pass)
    };
    let good: Vec<&Seen> = seen.iter().filter(passes).collect();
    println!("{} observations pass without known deviations", good.len());
    let mut survivors = Vec::new();
    for mutant in Mutant::ALL {
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
