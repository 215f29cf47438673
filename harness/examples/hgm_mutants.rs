//! The test of the oracle's mutations on a kernel with high-granularity mapping: every seed must go
//! as the rules say, and every mutation of those rules must be noticed. Prints which seed noticed
//! which. No test, since no kernel with it can be fetched: `ci/hgm-mutants` says how to have one.
//!
//! Usage: hgm_mutants KERNEL [RANDOM-PROGRAMS]

#![allow(clippy::unwrap_used)]

#[path = "../tests/support/detection.rs"]
mod detection;
#[path = "../tests/support/guest.rs"]
mod guest;

use anyhow::{Context, Result, bail, ensure};
use detection::{programs, run, survivors, wrong_seeds};
use guest::Guest;
use oracles::mutants::Mutant;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (kernel, random) = match args.as_slice() {
        [kernel] => (kernel, 0),
        [kernel, random] => (kernel, random.parse()?),
        _ => bail!("usage: hgm_mutants KERNEL [RANDOM-PROGRAMS]"),
    };
    let mut guest = Guest::boot(kernel);
    let profile = guest.profile();
    let generation = profile.hgm().with_context(|| format!("{kernel} has no HGM"))?;
    println!("{kernel}: generation {}", generation.name());
    let (seen, lost) = run(&mut guest, programs(&profile, random));
    let wrong: Vec<String> = lost.into_iter().chain(wrong_seeds(&seen, &profile)).collect();
    let mutants: Vec<Mutant> = Mutant::HGM.iter().map(|(mutant, _)| *mutant).collect();
    let survivors = survivors(&seen, &profile, &mutants);
    ensure!(wrong.is_empty(), "seeds that do not pass:\n{}", wrong.join("\n"));
    ensure!(survivors.is_empty(), "mutations that nothing noticed: {survivors:?}");
    println!("{} mutations noticed by {} programs", mutants.len(), seen.len());
    Ok(())
}
