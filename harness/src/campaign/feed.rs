//! The dispatcher's clock and hands: which phase a campaign is in, and what each VM thread gets to
//! do next.

use super::{CHECKING, Campaign, Confirm, DRAIN, Suspect};
use crate::pool::{Job, Order, Replay, stop};
use std::time::{Duration, Instant};

/// Key of a replay on the kernel that showed the finding.
const CONFIRM: u64 = 0;
/// Key of a replay on the other kernel.
pub(super) const ELSEWHERE: u64 = 1;

/// Where a campaign stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Running,
    /// No new programs; what waits for triage is replayed until then. A campaign that is not
    /// bound by time checks what waits for it, too.
    Settling(Instant),
    /// A signal came: what is outstanding may finish until then.
    Draining(Instant),
    Over,
}

impl Campaign<'_> {
    /// Moves to the next phase when it is time.
    pub(super) fn advance(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        let idle = self.is_idle();
        match (self.signals.count(), self.phase) {
            (_, Phase::Over) | (0, _) => {}
            (1, Phase::Draining(_)) => {}
            (1, _) => {
                self.pool.stop(stop::DRAIN);
                self.progress.event("stopping: running programs may finish (10 s at most)");
                self.phase = Phase::Draining(now + DRAIN);
            }
            (_, _) => self.phase = Phase::Over,
        }
        match self.phase {
            Phase::Running if self.has_what_it_wants() => {
                self.pool.stop(stop::DRAIN);
                self.progress.event("a finding is confirmed: the campaign ends");
                self.phase = Phase::Draining(now + DRAIN);
            }
            Phase::Running if self.is_spent() => {
                self.phase = Phase::Settling(now + self.plan.grace);
                let waiting: usize = self.tiers.iter().map(|t| t.errands.len()).sum();
                if waiting > 0 {
                    self.progress.event(&format!("time is over; {waiting} finding(s) to replay"));
                }
                if self.settles_checks() {
                    let waiting = self.checks.waiting();
                    self.progress.event(&format!("{waiting} program(s) left to check"));
                }
            }
            Phase::Settling(end) => {
                let confirmed = self.tiers.iter().all(|t| t.errands.is_empty());
                let settled = confirmed && !self.settles_checks();
                if (idle && (settled || self.engine.is_none())) || now >= end {
                    self.phase = Phase::Over;
                }
            }
            Phase::Draining(end) if idle || now >= end => self.phase = Phase::Over,
            _ => {}
        }
        Ok(())
    }

    /// Whether nothing is out that the end must wait for. A check that is cut off still waits in
    /// the journal.
    fn is_idle(&self) -> bool {
        let out: usize = self.slots.iter().map(|s| s.load).sum();
        let cut = if self.settles_checks() { 0 } else { self.checks.out() };
        out <= cut
    }

    fn time_is_over(&self) -> bool {
        self.plan.duration.is_some_and(|limit| self.start.elapsed() >= limit)
    }

    /// Whether the end of the campaign waits for checks: who bound it by time wants it to end.
    fn settles_checks(&self) -> bool {
        self.tiers.len() > CHECKING && self.checks.waiting() > 0 && !self.time_is_over()
    }

    /// Whether the finding that was to end the campaign is there.
    fn has_what_it_wants(&self) -> bool {
        self.plan.until_finding && self.suspects.values().any(Suspect::is_confirmed)
    }

    fn is_spent(&self) -> bool {
        let time = self.time_is_over();
        let count = self.plan.programs.is_some_and(|limit| self.totals.programs >= limit);
        time || count
    }

    /// Programs that may still be handed out under `--programs`.
    fn allowance(&self) -> u64 {
        let Some(limit) = self.plan.programs else { return u64::MAX };
        let out: usize = self.slots.iter().filter(|s| s.replaying.is_none()).map(|s| s.load).sum();
        let out = out.saturating_sub(self.checks.out());
        limit.saturating_sub(self.totals.programs + out as u64)
    }

    /// Gives every VM thread that is up what it can take.
    pub(super) fn feed(&mut self) -> anyhow::Result<()> {
        if matches!(self.phase, Phase::Draining(_) | Phase::Over) || self.engine.is_none() {
            return Ok(());
        }
        if let Some((limit, except)) = self.checks.hunger() {
            let programs = self.keeper.waiting_checks(limit, &except)?;
            self.checks.fill(programs);
        }
        for slot in 0..self.slots.len() {
            if self.slots[slot].stopped || self.slots[slot].replaying.is_some() {
                continue;
            }
            let tier = self.slots[slot].tier;
            if self.may_replay(tier) && self.suits_replay(slot) && self.order_replay(slot) {
                continue;
            }
            let depth = self.plan.tiers[tier].pool.depth;
            while self.slots[slot].up && self.slots[slot].load < depth {
                let Some(job) = self.next_job(tier)? else { break };
                self.slots[slot].load += 1;
                self.pool.order(slot, Order::Run(job));
            }
        }
        Ok(())
    }

    fn next_job(&mut self, tier: usize) -> anyhow::Result<Option<Job>> {
        let running = self.phase == Phase::Running;
        // A checking kernel that came up late is tried with canaries before it checks anything.
        let trying = running || tier == CHECKING && self.settles_checks();
        let super::Tier { profile, canaries, .. } = &mut self.tiers[tier];
        let Some(profile) = profile else { return Ok(None) };
        if trying && let Some((canary, program)) = canaries.next(profile) {
            let canary = Some(canary);
            return Ok(Some(Job { ticket: 0, check: false, program, fresh: true, canary }));
        }
        if tier == CHECKING
            && (running || self.settles_checks())
            && let Some((ticket, program)) = self.checks.ask()
        {
            return Ok(Some(Job { ticket, check: true, program, fresh: false, canary: None }));
        }
        if !running || self.allowance() == 0 {
            return Ok(None);
        }
        if tier == CHECKING && self.plan.versus.is_some() {
            // A base explores nothing: what only it shows is nobody's question.
            return Ok(None);
        }
        // Nothing waits for a check: that kernel explores as well.
        let Some(engine) = &mut self.engine else { return Ok(None) };
        let ticket = engine.ask()?;
        let (ticket, program) = (ticket.id, ticket.program);
        Ok(Some(Job { ticket, check: false, program, fresh: false, canary: None }))
    }

    /// One replay at a time on each kernel while fuzzing, and then at most half of a lone VM's
    /// time.
    fn may_replay(&self, tier: usize) -> bool {
        if self.tiers[tier].errands.is_empty() {
            return false;
        }
        if matches!(self.phase, Phase::Settling(_)) {
            return true;
        }
        let mut slots = self.slots.iter().filter(|s| s.tier == tier);
        if slots.clone().any(|s| s.replaying.is_some()) {
            return false;
        }
        let (end, took) = self.tiers[tier].replayed.unwrap_or((self.start, Duration::ZERO));
        slots.nth(1).is_some() || end.elapsed() >= took
    }

    /// A slot that boots anyway is taken rather than one whose VM would have to go.
    fn suits_replay(&self, slot: usize) -> bool {
        let tier = self.slots[slot].tier;
        let boots =
            |s: &super::Slot| s.tier == tier && !s.up && !s.stopped && s.replaying.is_none();
        boots(&self.slots[slot]) || !self.slots.iter().any(boots)
    }

    fn order_replay(&mut self, slot: usize) -> bool {
        let tier = self.slots[slot].tier;
        let Some(errand) = self.tiers[tier].errands.pop_front() else { return false };
        let Some(suspect) = self.suspects.get_mut(&errand.signature) else { return false };
        if !errand.elsewhere {
            suspect.confirm = Confirm::Running;
        }
        let replay = Replay {
            key: if errand.elsewhere { ELSEWHERE } else { CONFIRM },
            program: suspect.program.clone(),
            signature: Some(errand.signature),
            times: self.plan.confirm_times,
        };
        let state = &mut self.slots[slot];
        state.replaying = Some(Instant::now());
        // It waits in the VM thread until the programs before it are back.
        state.load += 1;
        self.progress.vm(slot, &format!("replaying {}", suspect.id));
        self.pool.order(slot, Order::Replay(replay));
        true
    }
}
