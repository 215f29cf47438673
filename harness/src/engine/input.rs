//! A program as LibAFL's input, and the two mutators over it. What a mutation does to a program is
//! the breed's business; here it is only offered to LibAFL's stacking. No I/O.

use super::Breed;
use case::Program;
use libafl::Error;
use libafl::corpus::{Corpus, CorpusId};
use libafl::inputs::Input;
use libafl::mutators::{MutationResult, Mutator};
use libafl::state::{HasCorpus, HasRand};
use libafl_bolts::rands::Rand;
use libafl_bolts::{HasLen, Named};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::sync::Arc;

/// A program in LibAFL's corpus.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Case(pub Program);

impl Input for Case {}

impl HasLen for Case {
    fn len(&self) -> usize {
        self.0.lines()
    }
}

/// A ChaCha stream split off LibAFL's random state: one draw there, any number here.
pub fn split<S: HasRand>(state: &mut S) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(state.rand_mut().next())
}

/// One change to one program.
pub struct Tweak(pub Arc<dyn Breed>);

/// One change that may borrow from another corpus entry.
pub struct Cross(pub Arc<dyn Breed>);

impl Named for Tweak {
    fn name(&self) -> &Cow<'static, str> {
        static NAME: Cow<'static, str> = Cow::Borrowed("tweak");
        &NAME
    }
}

impl Named for Cross {
    fn name(&self) -> &Cow<'static, str> {
        static NAME: Cow<'static, str> = Cow::Borrowed("cross");
        &NAME
    }
}

fn replace(input: &mut Case, new: Program) -> MutationResult {
    if new == input.0 {
        return MutationResult::Skipped;
    }
    input.0 = new;
    MutationResult::Mutated
}

impl<S: HasRand> Mutator<Case, S> for Tweak {
    fn mutate(&mut self, state: &mut S, input: &mut Case) -> Result<MutationResult, Error> {
        let mut rng = split(state);
        let new = self.0.mutate(&mut rng, &input.0, None);
        Ok(replace(input, new))
    }
    fn post_exec(&mut self, _state: &mut S, _new: Option<CorpusId>) -> Result<(), Error> {
        Ok(())
    }
}

impl<S: HasRand + HasCorpus<Case>> Mutator<Case, S> for Cross {
    fn mutate(&mut self, state: &mut S, input: &mut Case) -> Result<MutationResult, Error> {
        let count = state.corpus().count();
        if count == 0 {
            return Ok(MutationResult::Skipped);
        }
        let nth = state.rand_mut().below_or_zero(count);
        let donor = state.corpus().cloned_input_for_id(state.corpus().nth(nth))?;
        let mut rng = split(state);
        let new = self.0.mutate(&mut rng, &input.0, Some(&donor.0));
        Ok(replace(input, new))
    }
    fn post_exec(&mut self, _state: &mut S, _new: Option<CorpusId>) -> Result<(), Error> {
        Ok(())
    }
}
