//! The campaign's figures: checkpoints and counts while it runs, the status line, the summary.

use super::checks::End;
use super::summary::by_bug;
use super::{
    BOOKED, CHECKING, Campaign, CanaryFigures, FAST, FindingFigures, FirstFinding, Outcome,
    Summary, Suspect, VerifyFigures,
};
use crate::coverage::Book;
use crate::engine::Engine;
use crate::progress::{Checked, Figures};
use std::time::Instant;

impl Campaign<'_> {
    pub(super) fn checkpoint(&mut self) -> anyhow::Result<()> {
        self.checkpointed = Instant::now();
        if let Some(engine) = &self.engine {
            let bytes = engine.checkpoint()?;
            self.keeper.checkpoint(self.totals.programs, &bytes)?;
        }
        let figures = self.figures();
        self.keeper.figures(&figures)?;
        for suspect in self.suspects.values() {
            self.keeper.recount(suspect)?;
        }
        if self.booked.elapsed() >= BOOKED {
            self.keep_coverage()?;
        }
        Ok(())
    }

    /// Keeps what takes more than a row: coverage, and which op met which state.
    pub(super) fn keep_coverage(&mut self) -> anyhow::Result<()> {
        self.booked = Instant::now();
        self.keeper.steps(&self.steps)?;
        match &self.book {
            Some(book) => Ok(self.keeper.coverage(&book.report())?),
            None => Ok(()),
        }
    }

    /// Canaries of all kernels: found, planted.
    fn canary_figures(&self) -> (u32, u32) {
        let sum = |(found, planted), canaries: &crate::canary::Canaries| {
            (found + canaries.found, planted + canaries.planted)
        };
        self.tiers.iter().map(|tier| &tier.canaries).fold((0, 0), sum)
    }

    /// Signatures one kernel showed and the other, asked, did not.
    fn only_on(&self, tier: usize) -> Vec<String> {
        let only = |s: &Suspect| {
            let refuted = s.elsewhere.is_some_and(|(_, tried)| tried > 0);
            s.sighting.known.is_none() && s.tier == tier && refuted && !s.seen[CHECKING - tier]
        };
        self.signatures(only)
    }

    fn signatures(&self, which: impl Fn(&Suspect) -> bool) -> Vec<String> {
        let fits = self.suspects.iter().filter(|(_, suspect)| which(suspect));
        fits.map(|(signature, _)| signature.clone()).collect()
    }

    /// Findings the other kernel has still to be asked about.
    fn unasked(&self) -> u64 {
        let open = |s: &&Suspect| s.sighting.known.is_none() && s.elsewhere.is_none();
        self.suspects.values().filter(open).count() as u64
    }

    fn verify_figures(&self) -> Option<VerifyFigures> {
        let tier = self.tiers.get(CHECKING)?;
        Some(VerifyFigures {
            kernel: tier.kernel.clone(),
            profile: tier.profile.as_ref().map_or("", |p| p.family().name()).to_owned(),
            verified: self.checks.verified(),
            waiting: self.checks.waiting() + self.unasked(),
            skipped: self.checks.ended(End::Skipped),
            inconclusive: self.checks.ended(End::Void),
            own_programs: tier.programs,
            states: tier.states.len(),
            canaries: CanaryFigures { planted: tier.canaries.planted, found: tier.canaries.found },
            confirmed: self.signatures(|s| s.sighting.known.is_none() && s.seen == [true, true]),
            only_fast: self.only_on(FAST),
            only_checking: self.only_on(CHECKING),
        })
    }

    pub(super) fn figures(&self) -> Figures {
        let known = self.suspects.values().filter(|s| s.sighting.known.is_some()).count();
        Figures {
            elapsed: self.start.elapsed(),
            total: self.plan.duration,
            programs: self.totals.programs,
            ops: self.totals.ops,
            states: self.engine.as_ref().map_or(0, Engine::states),
            corpus: self.engine.as_ref().map_or(0, Engine::corpus_len),
            findings: self.suspects.len() - known,
            known,
            inconclusive: self.totals.inconclusive,
            blocks: self.book.as_ref().map(Book::blocks),
            canaries: self.canary_figures(),
            checked: self.tiers.get(CHECKING).map(|_| Checked {
                verified: self.checks.verified(),
                waiting: self.checks.waiting() + self.unasked(),
                disagree: self.only_on(FAST).len() + self.only_on(CHECKING).len(),
            }),
        }
    }

    fn first_finding(&self) -> Option<FirstFinding> {
        let confirmed = self.suspects.iter().filter(|(_, suspect)| suspect.is_confirmed());
        let dated = confirmed.filter_map(|(signature, suspect)| {
            let first = suspect.first?;
            Some((signature, &suspect.id, first))
        });
        let (signature, id, first) = dated.min_by_key(|(_, _, first)| first.elapsed)?;
        Some(FirstFinding {
            id: id.clone(),
            signature: signature.clone(),
            programs: first.programs,
            seconds: first.elapsed.as_secs_f64(),
        })
    }

    pub(super) fn outcome(&self) -> Outcome {
        let seconds = self.start.elapsed().as_secs_f64();
        let totals = &self.totals;
        let mut ready = totals.ready_ms.clone();
        ready.sort_unstable();
        let findings = self.suspects.iter().map(|(signature, s)| {
            let (count, state, reproduced) = (s.count, s.state(), s.reproduced);
            let figures = FindingFigures { count, state, reproduced, also: Vec::new() };
            (signature.clone(), figures)
        });
        let (found, planted) = self.canary_figures();
        let slots = self.slots.len().max(1) as f64;
        let summary = Summary {
            run: self.keeper.path().display().to_string(),
            kernel: self.tiers[FAST].kernel.clone(),
            profile: self.tiers[FAST].profile.as_ref().map_or("", |p| p.family().name()).to_owned(),
            seconds,
            programs: totals.programs,
            ops: totals.ops,
            programs_per_s: totals.programs as f64 / seconds.max(0.001),
            states: self.engine.as_ref().map_or(0, Engine::states),
            coverage: self.book.as_ref().map(Book::figures),
            findings: by_bug(findings, &self.plan.merges),
            first_finding: self.first_finding(),
            inconclusive: totals.inconclusive,
            canaries: CanaryFigures { planted, found },
            verify: self.verify_figures(),
            seconds_to_first_program: totals.first.map(|t| t.as_secs_f64()),
            exec_share: totals.guest_nanos as f64 / 1e9 / (seconds.max(0.001) * slots),
            judge_us_per_program: totals.judge_nanos as f64 / 1e3 / totals.judged.max(1) as f64,
            vms: totals.vms,
            vms_cloned: totals.clones,
            vm_ready_ms: ready.get(ready.len() / 2).copied().unwrap_or(0),
            vm_rss_kib: totals.rss_kib,
        };
        Outcome {
            summary,
            missed: self.tiers.iter().flat_map(|t| &t.canaries.missed).map(|c| c.name()).collect(),
            signal: self.signals.code(),
            unbooted: self.unbooted.clone(),
            suspects: self.suspects.clone(),
            regressions_left: self.regressions.len(),
        }
    }
}
