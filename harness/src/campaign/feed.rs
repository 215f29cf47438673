//! The dispatcher's clock and hands: which phase a campaign is in, and what each VM thread gets to
//! do next.

use super::{CONFIRM_GRACE, Campaign, Confirm, DRAIN};
use crate::pool::{Job, Order, Replay, stop};
use std::time::{Duration, Instant};

/// Where a campaign stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Running,
    /// No new programs; what waits for triage is replayed until then.
    Settling(Instant),
    /// A signal came: what is outstanding may finish until then.
    Draining(Instant),
    Over,
}

impl Campaign<'_> {
    /// Moves to the next phase when it is time.
    pub(super) fn advance(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        let idle = self.slots.iter().all(|s| s.load == 0);
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
            Phase::Running if self.is_spent() => {
                self.phase = Phase::Settling(now + CONFIRM_GRACE);
                let waiting = self.waiting.len();
                if waiting > 0 {
                    self.progress.event(&format!("time is over; {waiting} finding(s) to replay"));
                }
            }
            Phase::Settling(end) => {
                let confirmed = self.waiting.is_empty() || self.engine.is_none();
                if (idle && confirmed) || now >= end {
                    self.phase = Phase::Over;
                }
            }
            Phase::Draining(end) if idle || now >= end => self.phase = Phase::Over,
            _ => {}
        }
        Ok(())
    }

    fn is_spent(&self) -> bool {
        let time = self.plan.duration.is_some_and(|limit| self.start.elapsed() >= limit);
        let count = self.plan.programs.is_some_and(|limit| self.totals.programs >= limit);
        time || count
    }

    /// Programs that may still be handed out under `--programs`.
    fn allowance(&self) -> u64 {
        let Some(limit) = self.plan.programs else { return u64::MAX };
        let out: usize = self.slots.iter().filter(|s| s.replaying.is_none()).map(|s| s.load).sum();
        limit.saturating_sub(self.totals.programs + out as u64)
    }

    /// Gives every VM thread that is up what it can take.
    pub(super) fn feed(&mut self) -> anyhow::Result<()> {
        if matches!(self.phase, Phase::Draining(_) | Phase::Over) || self.engine.is_none() {
            return Ok(());
        }
        for slot in 0..self.slots.len() {
            if self.slots[slot].stopped || self.slots[slot].replaying.is_some() {
                continue;
            }
            if self.may_replay() && self.suits_replay(slot) && self.order_replay(slot) {
                continue;
            }
            while self.phase == Phase::Running
                && self.slots[slot].up
                && self.slots[slot].load < self.plan.pool.depth
            {
                let Some(job) = self.next_job()? else { break };
                self.slots[slot].load += 1;
                self.pool.order(slot, Order::Run(job));
            }
        }
        Ok(())
    }

    fn next_job(&mut self) -> anyhow::Result<Option<Job>> {
        if let Some(profile) = &self.profile
            && let Some((canary, program)) = self.canaries.next(profile)
        {
            return Ok(Some(Job { ticket: 0, program, fresh: true, canary: Some(canary) }));
        }
        if self.allowance() == 0 {
            return Ok(None);
        }
        let Some(engine) = &mut self.engine else { return Ok(None) };
        let ticket = engine.ask()?;
        Ok(Some(Job { ticket: ticket.id, program: ticket.program, fresh: false, canary: None }))
    }

    /// One replay at a time while fuzzing, and then at most half of a lone VM's time.
    fn may_replay(&self) -> bool {
        if self.waiting.is_empty() {
            return false;
        }
        if matches!(self.phase, Phase::Settling(_)) {
            return true;
        }
        if self.slots.iter().any(|s| s.replaying.is_some()) {
            return false;
        }
        let (end, took) = self.replayed.unwrap_or((self.start, Duration::ZERO));
        self.slots.len() > 1 || end.elapsed() >= took
    }

    /// A slot that boots anyway is taken rather than one whose VM would have to go.
    fn suits_replay(&self, slot: usize) -> bool {
        let boots = |s: &super::Slot| !s.up && !s.stopped && s.replaying.is_none();
        boots(&self.slots[slot]) || !self.slots.iter().any(boots)
    }

    fn order_replay(&mut self, slot: usize) -> bool {
        let Some(signature) = self.waiting.pop_front() else { return false };
        let Some(suspect) = self.suspects.get_mut(&signature) else { return false };
        suspect.confirm = Confirm::Running;
        let replay = Replay {
            key: 0,
            program: suspect.program.clone(),
            signature: Some(signature),
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
