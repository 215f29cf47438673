//! The oracle against a real kernel. One guest runs every seed and a few hundred random programs;
//! the seeds must go as the rules say, and every single-rule mutation of the model must disagree
//! with something that was seen: else the oracle would not notice a kernel that is wrong there.
//! Mutations that only a kernel with high-granularity mapping gives away: `ci/hgm-mutants`.

#![allow(clippy::unwrap_used)]

#[path = "support/detection.rs"]
mod detection;
#[path = "support/guest.rs"]
mod guest;

use case::observation::Status;
use detection::{SEED_OP_TIME, Seen, programs, run, survivors, wrong_seeds};
use guest::Guest;
use oracles::mutants::Mutant;
use std::time::Instant;

const RANDOM_PROGRAMS: u64 = 250;
/// Fewer would prove little.
const MUTANTS_MIN: usize = 27;

#[test]
fn seeds_pass_and_every_mutation_of_the_model_is_noticed() {
    assert!(Mutant::ALL.len() >= MUTANTS_MIN, "only {} mutations", Mutant::ALL.len());
    let start = Instant::now();
    let mut guest = Guest::boot("debian:6.1");
    let profile = guest.profile();
    println!("booted after {:.1} s", start.elapsed().as_secs_f64());
    let (seen, lost) = run(&mut guest, programs(&profile, RANDOM_PROGRAMS));
    println!("{} programs ran after {:.1} s", seen.len(), start.elapsed().as_secs_f64());
    assert_waits_are_short(&seen);
    let wrong: Vec<String> = lost.into_iter().chain(wrong_seeds(&seen, &profile)).collect();
    let survivors = survivors(&seen, &profile, Mutant::ALL);
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
