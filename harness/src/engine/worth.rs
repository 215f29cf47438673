//! Which makers of programs were worth their runs lately. Early in a campaign nearly every random
//! program reaches something new and mutants only crowd around what is there; later it is the other
//! way round, and when depends on kernel and seeds. So nobody sets the share: it follows the yield
//! for the time spent. No randomness here, the engine draws; no clock either, or no two campaigns
//! of a seed would be alike: ops and waits stand for time.

use super::Origin;
use serde::{Deserialize, Serialize};

/// Most news one program is given credit for: one lucky program says little of its maker.
const NEWS_MAX: u64 = 16;
/// Fixed-point one.
const ONE: i64 = 1 << 16;
/// How slowly the past fades: this many programs of a maker.
const MEMORY: i64 = 64;
/// A maker that yields nothing still makes one program in this many, to be noticed if that changes.
const LEAST_ONE_IN: u64 = 8;
/// What [`Worth::random_share`] is a part of.
pub(super) const WHOLE: usize = 1 << 10;

/// Mean news and mean cost of the programs of one maker, fading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Yield {
    news: i64,
    cost: i64,
}

impl Yield {
    fn told(&mut self, news: usize, cost: usize) {
        let fade = |mean: &mut i64, with: i64| *mean += (with * ONE - *mean) / MEMORY;
        fade(&mut self.news, (news as u64).min(NEWS_MAX) as i64);
        fade(&mut self.cost, cost as i64);
    }

    /// News for its cost; never nothing.
    fn rate(&self) -> u64 {
        (self.news.max(1) as u64 * ONE as u64 / self.cost.max(1) as u64).max(1)
    }
}

/// See the module's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Worth {
    random: Yield,
    mutant: Yield,
}

impl Default for Worth {
    fn default() -> Self {
        let even = Yield { news: ONE, cost: ONE };
        Worth { random: even, mutant: even }
    }
}

impl Worth {
    /// A program of that origin gave so many states and blocks nobody had seen. `cost` is in ops.
    pub(super) fn told(&mut self, origin: Origin, news: usize, cost: usize) {
        match origin {
            Origin::Random => self.random.told(news, cost),
            Origin::Mutant(_) => self.mutant.told(news, cost),
            Origin::Seed | Origin::Scenario => {}
        }
    }

    /// Of [`WHOLE`] new programs, how many should be random.
    pub(super) fn random_share(&self) -> usize {
        let (random, mutant) = (self.random.rate(), self.mutant.rate());
        let whole = WHOLE as u64;
        let least = whole / LEAST_ONE_IN;
        (whole * random / (random + mutant)).clamp(least, whole - least) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After many programs of both makers, given news and cost.
    fn after(random: (usize, usize), mutant: (usize, usize)) -> usize {
        let mut worth = Worth::default();
        for _ in 0..800 {
            worth.told(Origin::Random, random.0, random.1);
            worth.told(Origin::Mutant(0), mutant.0, mutant.1);
        }
        worth.random_share()
    }

    #[test]
    fn shares_follow_the_yield_and_nobody_is_forgotten() {
        assert_eq!(Worth::default().random_share(), WHOLE / 2);
        assert!((WHOLE * 45 / 100..WHOLE * 55 / 100).contains(&after((3, 9), (3, 9))));
        assert!((WHOLE * 70 / 100..WHOLE * 80 / 100).contains(&after((3, 9), (1, 9))));
        assert!((WHOLE * 70 / 100..WHOLE * 80 / 100).contains(&after((3, 10), (3, 30))));
        assert_eq!(after((0, 9), (5, 9)), WHOLE / 8, "what yields nothing keeps its eighth");
        assert_eq!(after((5, 9), (0, 9)), WHOLE - WHOLE / 8);
        assert_eq!(after((16, 9), (1, 9)), after((100_000, 9), (1, 9)), "luck is capped");
    }

    #[test]
    fn the_past_fades() {
        let mut worth = Worth::default();
        (0..500).for_each(|_| worth.told(Origin::Random, 10, 1));
        let before = worth.random_share();
        (0..300).for_each(|_| worth.told(Origin::Random, 0, 1));
        assert!(worth.random_share() < before / 2, "{} of {before}", worth.random_share());
    }

    #[test]
    fn seeds_and_scenarios_are_nobodys_merit() {
        let mut worth = Worth::default();
        worth.told(Origin::Seed, 16, 1);
        worth.told(Origin::Scenario, 16, 1);
        assert_eq!(worth, Worth::default());
    }
}
