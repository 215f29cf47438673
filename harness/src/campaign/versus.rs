//! A kernel against its base: how often both showed a finding, when a gate has seen enough, which
//! regressions the new kernel has still to run. What is made of it is `gate`'s business.

use super::feed::Phase;
use super::{Campaign, Confirm, FAST, Plan, Suspect};
use crate::gate::{Word, sort};
use case::{Program, wire};

/// What makes a two-tier campaign a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versus {
    /// Replays on the new kernel that must show a finding.
    pub need: u32,
    /// Go on after the first finding that counts.
    pub keep_going: bool,
    /// How many of the seeds are regressions, which the base runs as well.
    pub regressions: usize,
}

/// How often a finding showed in replays on each kernel: k of n. `None`: not replayed yet. None
/// tried: that kernel cannot run its program, or no VM would.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    pub new: Option<(u32, u32)>,
    pub base: Option<(u32, u32)>,
}

impl Suspect {
    /// The first tier is the new kernel, the second its base.
    pub fn rates(&self) -> Rates {
        let own = (self.confirm == Confirm::Over).then_some(self.reproduced);
        match self.tier {
            FAST => Rates { new: own, base: self.elsewhere },
            _ => Rates { new: self.elsewhere, base: own },
        }
    }
}

impl Plan {
    /// Seeds a gate's base runs as well.
    pub(super) fn regressions(&self) -> &[Program] {
        let count = self.versus.map_or(0, |versus| versus.regressions);
        &self.seeds[..count.min(self.seeds.len())]
    }
}

impl Campaign<'_> {
    /// Ends a gate at the first finding that counts, unless it is to go on.
    pub(super) fn end_if_decided(&mut self, suspect: &Suspect) {
        let Some(versus) = self.plan.versus.filter(|versus| !versus.keep_going) else { return };
        let known = suspect.sighting.known.is_some();
        let word = sort(known, suspect.rates(), versus.need, self.plan.confirm_times);
        if word == Word::Finding && matches!(self.phase, Phase::Running | Phase::Settling(_)) {
            self.progress.event("the gate has seen enough (--keep-going goes on)");
            self.phase = Phase::Over;
        }
    }

    /// The new kernel has run a program to whatever end.
    pub(super) fn ran(&mut self, program: &Program) {
        if !self.regressions.is_empty() {
            self.regressions.remove(&wire::program_id(program));
        }
    }
}
