//! What was seen and what is made of it: new signatures are saved and sent on errands (replays
//! that confirm them, and in a two-tier campaign replays on the other kernel), checks are ended.

use super::checks::End;
use super::{CHECKING, Campaign, Confirm, Errand, FAST, First, Suspect};
use crate::pool::{Job, Replayed};
use crate::triage::{self, Judged, Sighting};
use case::Program;
use std::time::{Duration, Instant};

impl Campaign<'_> {
    /// Counts a sighting; the first of its signature is saved and, unless known, put to triage.
    pub(super) fn suspect(
        &mut self,
        tier: usize,
        mut sighting: Sighting,
        program: Program,
    ) -> anyhow::Result<()> {
        if sighting.known.is_none()
            && let Some(profile) = &self.tiers[tier].profile
        {
            let known = &self.plan.tiers[tier].pool.known;
            sighting.known = triage::known_console(&sighting, profile, known);
        }
        let news = sighting.known.is_none();
        let signature = sighting.signature.clone();
        let mut suspect = Suspect {
            id: String::new(),
            tier,
            seen: [tier == FAST, tier == CHECKING],
            elsewhere: None,
            sighting,
            program,
            count: 1,
            reproduced: (0, 0),
            confirm: if news { Confirm::Waiting } else { Confirm::Over },
            first: Some(First { programs: self.totals.programs, elapsed: self.start.elapsed() }),
        };
        if let Some(earlier) = self.suspects.get_mut(&signature) {
            earlier.count += 1;
            earlier.seen[tier] = true;
            if !news || earlier.sighting.known.is_none() {
                return Ok(());
            }
            // Listed as known of the other kernel, and not of this one.
            suspect.id.clone_from(&earlier.id);
            suspect.count = earlier.count;
            suspect.seen = earlier.seen;
        }
        let kind = if news { "new" } else { "known" };
        let on = self.on(tier);
        self.progress.event(&format!("{kind}{on}: {}", suspect.sighting.title));
        suspect.id = self.keeper.finding(&suspect, self.plan.seed)?;
        self.send_on_errands(&suspect);
        if !news && tier == FAST && self.plan.versus.is_none() {
            self.want_check(&suspect.program, true)?;
        }
        self.suspects.insert(signature, suspect);
        Ok(())
    }

    /// " on KERNEL" where there is more than one.
    fn on(&self, tier: usize) -> String {
        match self.tiers.len() {
            0 | 1 => String::new(),
            _ => format!(" on {}", self.tiers[tier].kernel),
        }
    }

    /// Orders the replays a suspect has not had.
    pub(super) fn send_on_errands(&mut self, suspect: &Suspect) {
        let errand =
            |elsewhere| Errand { signature: suspect.sighting.signature.clone(), elsewhere };
        if suspect.confirm == Confirm::Waiting {
            self.tiers[suspect.tier].errands.push_back(errand(false));
        }
        let other = CHECKING - suspect.tier;
        if suspect.sighting.known.is_none()
            && suspect.elsewhere.is_none()
            && let Some(tier) = self.tiers.get_mut(other)
        {
            tier.errands.push_back(errand(true));
        }
    }

    pub(super) fn replayed(&mut self, replayed: Replayed) -> anyhow::Result<()> {
        let slot = &mut self.slots[replayed.slot];
        slot.load = 0;
        let took = slot.replaying.take().map_or(Duration::ZERO, |since| since.elapsed());
        let tier = slot.tier;
        self.tiers[tier].replayed = Some((Instant::now(), took));
        let name = self.tier_name(replayed.slot);
        self.progress.vm(replayed.slot, &format!("running{name}"));
        match replayed.replay.key {
            super::feed::ELSEWHERE => self.replayed_elsewhere(tier, replayed),
            _ => self.confirmed(tier, replayed),
        }
    }

    fn confirmed(&mut self, tier: usize, replayed: Replayed) -> anyhow::Result<()> {
        let Some(signature) = replayed.replay.signature.clone() else { return Ok(()) };
        let Some(suspect) = self.suspects.get_mut(&signature) else { return Ok(()) };
        suspect.reproduced = (replayed.shown, replayed.tried);
        suspect.confirm = Confirm::Over;
        if let Some(evidence) = replayed.evidence {
            // The replay ran alone in a fresh VM: its evidence is the cleaner one.
            suspect.sighting = Sighting { signature: signature.clone(), ..evidence };
        }
        let suspect = suspect.clone();
        self.keeper.finding(&suspect, self.plan.seed)?;
        let word = if replayed.shown > 0 { "confirmed" } else { "unconfirmed" };
        let void = replayed.void.map(|why| format!(" ({why})")).unwrap_or_default();
        let on = self.on(tier);
        self.progress.event(&format!(
            "{word}{on}: {signature}, {} of {}{void}; hgm repro {}",
            replayed.shown, replayed.tried, suspect.id
        ));
        self.tell_of(&suspect);
        self.end_if_decided(&suspect);
        Ok(())
    }

    /// What the other kernel made of a finding. What it shows instead is a finding of its own.
    fn replayed_elsewhere(&mut self, tier: usize, replayed: Replayed) -> anyhow::Result<()> {
        let Replayed { replay, shown, tried, instead, lacking, void, .. } = replayed;
        let Some(signature) = replay.signature else { return Ok(()) };
        let Some(suspect) = self.suspects.get_mut(&signature) else { return Ok(()) };
        let said = match (shown, tried, lacking) {
            // Nothing was learned: a resumed run tries again.
            (_, 0, _) => None,
            (0, _, true) => {
                self.checks.skip();
                Some((0, 0))
            }
            _ => Some((shown, tried)),
        };
        suspect.elsewhere = said;
        suspect.seen[tier] |= shown > 0;
        let suspect = suspect.clone();
        self.keeper.finding(&suspect, self.plan.seed)?;
        let void = void.map(|why| format!(" ({why})")).unwrap_or_default();
        let word = match said {
            None => "not replayed".to_owned(),
            Some((_, 0)) => "cannot be run".to_owned(),
            Some((0, n)) => format!("does NOT show, 0 of {n}"),
            Some((k, n)) => format!("shows as well, {k} of {n}"),
        };
        let on = self.on(tier);
        self.progress.event(&format!("{signature}: {word}{on}{void}"));
        self.end_if_decided(&suspect);
        for sighting in instead {
            self.suspect(tier, sighting, replay.program.clone())?;
        }
        Ok(())
    }

    /// Puts a program down for the checking kernel, if there is one.
    pub(super) fn want_check(&mut self, program: &Program, first: bool) -> anyhow::Result<()> {
        if self.tiers.len() <= CHECKING || !self.keeper.want_check(program)? {
            return Ok(());
        }
        match first {
            true => self.checks.want_first(program.clone()),
            false => self.checks.want(program.clone()),
        }
        Ok(())
    }

    /// A program the fast kernel found interesting came back from the checking one.
    pub(super) fn checked(&mut self, job: Job, judged: Judged) -> anyhow::Result<()> {
        if let Some(engine) = &mut self.engine {
            engine.saw(&judged.states);
        }
        let end = end_of(&judged);
        for sighting in judged.sightings {
            self.suspect(CHECKING, sighting, job.program.clone())?;
        }
        self.end_check(job.ticket, end)
    }

    /// After what the program showed is on disk, or else a kill in between would lose it.
    pub(super) fn end_check(&mut self, ticket: u64, end: End) -> anyhow::Result<()> {
        match self.checks.end(ticket, end) {
            Some(id) => Ok(self.keeper.end_check(&id, end.name())?),
            None => Ok(()),
        }
    }
}

/// What a program's run on the checking kernel says.
fn end_of(judged: &Judged) -> End {
    match judged {
        _ if judged.has_news() => End::Finding,
        // An op that was not issued says nothing about the kernel.
        _ if judged.lacking => End::Skipped,
        Judged { inconclusive: Some(_), .. } => End::Void,
        _ => End::Clean,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_the_kernel_cannot_run_is_skipped_and_no_failure() {
        let clean = Judged::default();
        let lacking = Judged { lacking: true, ..clean.clone() };
        let void = Judged { inconclusive: Some("the child hung".into()), ..clean.clone() };
        let sighting = Sighting {
            signature: "a/b/c".into(),
            title: String::new(),
            source: case::Source::Oracle,
            known: None,
            violation: None,
            observation: None,
            console: Vec::new(),
        };
        let known = Sighting { known: Some("N03".into()), ..sighting.clone() };
        let shows = |s: Sighting| Judged { sightings: vec![s], ..lacking.clone() };
        assert_eq!(end_of(&clean), End::Clean);
        assert_eq!(end_of(&lacking), End::Skipped);
        assert_eq!(end_of(&void), End::Void);
        assert_eq!(end_of(&Judged { lacking: true, ..void }), End::Skipped);
        assert_eq!(end_of(&shows(sighting)), End::Finding);
        assert_eq!(end_of(&shows(known)), End::Skipped);
    }
}
