//! Where new programs come from: the generators crate bound to one kernel's profile. The engine
//! sees only [`Breed`], so that its laws are tested without a guest.

use case::{Profile, Program};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// Makes programs. Same stream, same program.
pub trait Breed: Send + Sync {
    /// Number of scenarios; each is offered once before random programs start.
    fn scenarios(&self) -> usize;
    /// The nth scenario, `None` where this kernel cannot run it.
    fn scenario(&self, nth: usize, rng: &mut ChaCha8Rng) -> Option<Program>;
    /// A program from nothing.
    fn random(&self, rng: &mut ChaCha8Rng) -> Program;
    /// A changed copy, which may borrow from `donor`.
    fn mutate(&self, rng: &mut ChaCha8Rng, from: &Program, donor: Option<&Program>) -> Program;
}

/// The generators crate.
pub struct Generators {
    pub profile: Profile,
}

/// Smallest and largest size asked of the random generator.
const SIZES: std::ops::RangeInclusive<usize> = 4..=24;

impl Breed for Generators {
    fn scenarios(&self) -> usize {
        generators::SCENARIOS.len()
    }
    fn scenario(&self, nth: usize, rng: &mut ChaCha8Rng) -> Option<Program> {
        let name = generators::SCENARIOS.get(nth)?;
        generators::scenario(name, rng, &self.profile)
    }
    fn random(&self, rng: &mut ChaCha8Rng) -> Program {
        let size = rng.random_range(SIZES);
        generators::random(rng, &self.profile, size)
    }
    fn mutate(&self, rng: &mut ChaCha8Rng, from: &Program, donor: Option<&Program>) -> Program {
        generators::mutate(rng, &self.profile, from, donor)
    }
}
