//! Which corpus entry is worked on next. LibAFL's minimizer walks a hash map whose order differs
//! from process to process, which would break "same seed, same programs"; this scheduler draws
//! only on the state's random stream.

use libafl::Error;
use libafl::corpus::{Corpus, CorpusId};
use libafl::schedulers::{RemovableScheduler, Scheduler};
use libafl::state::{HasCorpus, HasRand};
use libafl_bolts::rands::Rand;

/// Entries that count as new.
const YOUNG: usize = 32;

/// Every other choice falls on one of the newest entries, the rest evenly on all: what was found
/// last is nearest to what was never seen.
#[derive(Debug, Default, Clone)]
pub struct YoungFirst;

impl<I, S> RemovableScheduler<I, S> for YoungFirst {}

impl<I, S: HasCorpus<I> + HasRand> Scheduler<I, S> for YoungFirst {
    fn on_add(&mut self, state: &mut S, id: CorpusId) -> Result<(), Error> {
        let parent = *state.corpus().current();
        state.corpus().get(id)?.borrow_mut().set_parent_id_optional(parent);
        Ok(())
    }

    fn next(&mut self, state: &mut S) -> Result<CorpusId, Error> {
        let count = state.corpus().count();
        if count == 0 {
            return Err(Error::empty("no entry in the corpus yet"));
        }
        let nth = if state.rand_mut().coinflip(0.5) {
            let young = count.min(YOUNG);
            count - 1 - state.rand_mut().below_or_zero(young)
        } else {
            state.rand_mut().below_or_zero(count)
        };
        let id = state.corpus().nth(nth);
        <Self as Scheduler<I, S>>::set_current_scheduled(self, state, Some(id))?;
        Ok(id)
    }

    fn set_current_scheduled(
        &mut self,
        state: &mut S,
        next: Option<CorpusId>,
    ) -> Result<(), Error> {
        *state.corpus_mut().current_mut() = next;
        Ok(())
    }
}
