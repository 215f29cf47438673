//! Programs that wait for the checking kernel: those of them that are in memory, those that are
//! out, and how the others ended. The journal has them all; here is only what fits. Pure.

use case::{Program, wire};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Programs that wait in memory; what is more waits in the journal alone.
const ROOM: usize = 512;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum End {
    /// The checking kernel did all it should, or deviated in a way that is listed.
    Clean,
    /// It showed something.
    Finding,
    /// It does not offer what some op needs.
    Skipped,
    /// Nothing can be said.
    Void,
}

impl End {
    /// The word in the journal.
    pub(super) const fn name(self) -> &'static str {
        match self {
            End::Clean => "clean",
            End::Finding => "finding",
            End::Skipped => "skipped",
            End::Void => "void",
        }
    }
    const ALL: [End; 4] = [End::Clean, End::Finding, End::Skipped, End::Void];
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Checks {
    queue: VecDeque<Program>,
    out: BTreeMap<u64, Program>,
    next: u64,
    /// Programs that wait in the journal alone, all of them behind those in memory.
    beyond: u64,
    ended: BTreeMap<End, u64>,
}

impl Checks {
    /// As the journal counts them; those that wait are under "".
    pub(super) fn resume(counts: &BTreeMap<String, u64>) -> Checks {
        let count = |name: &str| counts.get(name).copied().unwrap_or(0);
        let ended = End::ALL.map(|end| (end, count(end.name()))).into();
        Checks { beyond: count(""), ended, ..Checks::default() }
    }

    /// A program the journal has just got. What nobody waits before stays in memory.
    pub(super) fn want(&mut self, program: Program) {
        match self.beyond == 0 && self.queue.len() < ROOM {
            true => self.queue.push_back(program),
            false => self.beyond += 1,
        }
    }

    /// The same, before all others.
    pub(super) fn want_first(&mut self, program: Program) {
        self.queue.push_front(program);
    }

    /// The next program to run, and its ticket.
    pub(super) fn ask(&mut self) -> Option<(u64, Program)> {
        let program = self.queue.pop_front()?;
        self.next += 1;
        self.out.insert(self.next, program.clone());
        Some((self.next, program))
    }

    /// Its VM went away before it ran.
    pub(super) fn give_back(&mut self, ticket: u64) {
        self.queue.extend(self.out.remove(&ticket));
        // It had waited longest.
        self.queue.rotate_right(usize::from(!self.queue.is_empty()));
    }

    /// The id of a program that was out and ended; `None` if it was not out.
    pub(super) fn end(&mut self, ticket: u64, end: End) -> Option<String> {
        let program = self.out.remove(&ticket)?;
        *self.ended.entry(end).or_default() += 1;
        Some(wire::program_id(&program))
    }

    /// A finding's program could not be run by the other kernel.
    pub(super) fn skip(&mut self) {
        *self.ended.entry(End::Skipped).or_default() += 1;
    }

    /// How many programs are to be read from the journal, and which not.
    pub(super) fn hunger(&self) -> Option<(usize, BTreeSet<String>)> {
        let hungry = self.queue.is_empty() && self.beyond > 0;
        hungry.then(|| (ROOM, self.out.values().map(wire::program_id).collect()))
    }

    /// What the journal gave for it. Nothing at all: there is nothing.
    pub(super) fn fill(&mut self, programs: Vec<Program>) {
        self.beyond = match programs.len() as u64 {
            0 => 0,
            some => self.beyond.saturating_sub(some),
        };
        self.queue.extend(programs);
    }

    /// Programs that have not ended.
    pub(super) fn waiting(&self) -> u64 {
        (self.queue.len() + self.out.len()) as u64 + self.beyond
    }

    /// Programs in VMs.
    pub(super) fn out(&self) -> usize {
        self.out.len()
    }

    pub(super) fn ended(&self, end: End) -> u64 {
        self.ended.get(&end).copied().unwrap_or(0)
    }

    /// Programs the checking kernel ran whole.
    pub(super) fn verified(&self) -> u64 {
        self.ended(End::Clean) + self.ended(End::Finding)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use case::value::{Bytes, Place};
    use case::{Op, ProcId, Step};

    fn program(n: u64) -> Program {
        let op = Op::Write { at: Place::new(0, n * 4096), len: Bytes(4096) };
        Program::of(vec![Step::one(ProcId(0), op)])
    }

    /// A stand-in for the table: program by program in order, and whether it ended.
    #[derive(Default)]
    struct Table(Vec<(Program, bool)>);

    impl Table {
        fn want(&mut self, checks: &mut Checks, n: u64) {
            self.0.push((program(n), false));
            checks.want(program(n));
        }
        fn fill(&self, checks: &mut Checks) {
            let Some((limit, except)) = checks.hunger() else { return };
            let waits =
                self.0.iter().filter(|(p, ended)| !ended && !except.contains(&wire::program_id(p)));
            checks.fill(waits.map(|(p, _)| p.clone()).take(limit).collect());
        }
        fn end(&mut self, checks: &mut Checks, ticket: u64) {
            let id = checks.end(ticket, End::Clean).unwrap();
            let row = self.0.iter_mut().find(|(p, _)| wire::program_id(p) == id).unwrap();
            assert!(!std::mem::replace(&mut row.1, true), "{id} ended twice");
        }
        fn counts(&self) -> BTreeMap<String, u64> {
            let count = |ended| self.0.iter().filter(|(_, e)| *e == ended).count() as u64;
            [(String::new(), count(false)), ("clean".to_owned(), count(true))].into()
        }
    }

    #[test]
    fn everything_wanted_is_run_once_in_order_whatever_fits() {
        let (mut checks, mut table) = (Checks::default(), Table::default());
        let many = 3 * ROOM as u64;
        (0..many).for_each(|n| table.want(&mut checks, n));
        assert_eq!(checks.waiting(), many);
        assert!(checks.queue.len() <= ROOM, "memory is bounded");
        let mut ran = Vec::new();
        loop {
            // Four are out at a time, as in a VM.
            let out: Vec<(u64, Program)> = (0..4).map_while(|_| checks.ask()).collect();
            for (ticket, program) in &out {
                table.end(&mut checks, *ticket);
                ran.push(program.clone());
            }
            table.fill(&mut checks);
            if checks.waiting() == 0 {
                break;
            }
        }
        assert_eq!(ran, (0..many).map(program).collect::<Vec<_>>());
        assert_eq!(checks.verified(), many);
    }

    #[test]
    fn what_a_killed_campaign_had_out_is_run_by_the_next() {
        let (mut checks, mut table) = (Checks::default(), Table::default());
        (0..5).for_each(|n| table.want(&mut checks, n));
        let (first, _) = checks.ask().unwrap();
        table.end(&mut checks, first);
        // The next two are in a VM when the process is killed.
        checks.ask().unwrap();
        checks.ask().unwrap();
        drop(checks);

        let mut checks = Checks::resume(&table.counts());
        assert_eq!((checks.waiting(), checks.verified()), (4, 1));
        assert!(checks.ask().is_none(), "they are in the journal alone");
        table.fill(&mut checks);
        let again: Vec<Program> = std::iter::from_fn(|| checks.ask().map(|(_, p)| p)).collect();
        assert_eq!(again, (1..5).map(program).collect::<Vec<_>>());
    }

    #[test]
    fn a_program_whose_vm_went_away_is_the_next() {
        let (mut checks, mut table) = (Checks::default(), Table::default());
        (0..3).for_each(|n| table.want(&mut checks, n));
        let (ticket, first) = checks.ask().unwrap();
        checks.give_back(ticket);
        assert_eq!(checks.waiting(), 3);
        checks.want_first(program(9));
        assert_eq!(checks.ask().unwrap().1, program(9), "findings go first");
        let (ticket, again) = checks.ask().unwrap();
        assert_eq!(again, first);
        // What is out is not read from the journal a second time.
        checks.beyond = 1;
        checks.queue.clear();
        let (_, except) = checks.hunger().unwrap();
        assert!(except.contains(&wire::program_id(&again)));
        checks.end(ticket, End::Skipped).unwrap();
        assert_eq!((checks.verified(), checks.ended(End::Skipped)), (0, 1));
        assert_eq!(checks.end(ticket, End::Clean), None, "it ended already");
    }

    #[test]
    fn a_journal_that_has_less_than_it_counted_ends_the_wait() {
        let mut checks = Checks::resume(&[(String::new(), 7)].into());
        checks.fill(Vec::new());
        assert_eq!((checks.waiting(), checks.hunger()), (0, None));
    }
}
