//! Canaries: faults planted on purpose, so that a campaign proves its own eyes. Here: when each is
//! due, the program that must give it away, and what counts as found. A planted fault never
//! becomes a finding.

use crate::triage::{Cause, Judged, RULE_LEAK, Sighting};
use case::link::Canary;
use case::value::{
    Advice, Bytes, FileId, FilePart, MemfdFlags, MmapFlags, PageSize, Place, ProcId, Prot, Share,
};
use case::{Op, Profile, Program, Source, Step};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// Times a canary is planted again when its run said nothing (a VM died of something else).
const RETRIES: u32 = 3;

fn line(op: Op) -> Step {
    Step::one(ProcId(0), op)
}

fn memfd(page: PageSize, len: u64) -> [Step; 2] {
    [
        line(Op::Memfd { file: FileId(0), page, flags: MemfdFlags::NONE }),
        line(Op::Ftruncate { file: FileId(0), len: Bytes(len) }),
    ]
}

fn mmap(page: PageSize, share: Share, from: Option<u64>, len: u64) -> Step {
    line(Op::Mmap {
        at: Place::new(0, 0),
        len: Bytes(len),
        prot: Prot::RW,
        share,
        from: from.map(|off| FilePart { file: FileId(0), off }),
        page,
        flags: MmapFlags::NONE,
    })
}

fn write(off: u64) -> Step {
    line(Op::Write { at: Place::new(0, off), len: Bytes(4096) })
}

fn read(off: u64) -> Step {
    line(Op::Read { at: Place::new(0, off), len: Bytes(4096) })
}

/// A program whose clean run passes, and in which the planted fault cannot go unseen. `None` where
/// this kernel has not what the fault needs.
pub fn program(canary: Canary, profile: &Profile) -> Option<Program> {
    let base = PageSize::Base;
    let huge = PageSize::Huge2M;
    let mut steps = Vec::new();
    match canary {
        Canary::WrongContent => {
            steps.extend([mmap(base, Share::Private, None, 16384), write(0), write(4096)]);
            steps.extend([read(4096), read(0), read(4096)]);
        }
        Canary::WrongErrno => {
            steps.extend([mmap(base, Share::Private, None, 16384), write(0)]);
            let (at, len) = (Place::new(0, 0), Bytes(4096));
            steps.push(line(Op::Madvise { at, len, advice: Advice::Unknown }));
            steps.push(read(0));
        }
        Canary::LeakedHugePage => {
            if !profile.huge_2m {
                return None;
            }
            steps.extend(memfd(huge, 2 << 20));
            steps.extend([mmap(base, Share::Shared, Some(0), 2 << 20), write(0), read(0)]);
        }
        Canary::MissingSigbus => {
            steps.extend(memfd(base, 4096));
            steps.extend([mmap(base, Share::Shared, Some(0), 8192), write(0), read(4096)]);
        }
        Canary::KernelReport => {
            steps.extend([mmap(base, Share::Private, None, 4096), write(0), read(0)]);
        }
    }
    Some(Program::of(steps))
}

/// Whether a sighting is what the canary must show. One that is filed as a known deviation is
/// not: a list that swallows a planted fault swallows real ones as well.
fn gives_away(canary: Canary, sighting: &Sighting) -> bool {
    if sighting.known.is_some() {
        return false;
    }
    let op = sighting.violation.as_ref().map(|v| v.op.as_str());
    let rule = sighting.violation.as_ref().map(|v| v.rule.as_str());
    match canary {
        Canary::WrongContent => matches!(op, Some("read" | "end")),
        Canary::WrongErrno => op == Some("madvise"),
        Canary::LeakedHugePage => rule == Some(RULE_LEAK),
        Canary::MissingSigbus => op == Some("read"),
        Canary::KernelReport => sighting.source == Source::Console,
    }
}

/// How a planted canary ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Found,
    Missed,
    /// Its run said nothing; it is planted again.
    Again,
}

/// Which canaries are due, planted, found.
#[derive(Debug)]
pub struct Canaries {
    every: Option<Duration>,
    round: Instant,
    due: VecDeque<Canary>,
    retries: BTreeMap<Canary, u32>,
    pub planted: u32,
    pub found: u32,
    pub missed: Vec<Canary>,
}

impl Canaries {
    /// `every` = time between rounds, the first at once; `None` plants none.
    pub fn new(every: Option<Duration>) -> Self {
        let due = every.map(|_| Canary::ALL.iter().copied().collect()).unwrap_or_default();
        Canaries {
            every,
            round: Instant::now(),
            due,
            retries: BTreeMap::new(),
            planted: 0,
            found: 0,
            missed: Vec::new(),
        }
    }

    /// The next canary to plant, if one is due.
    pub fn next(&mut self, profile: &Profile) -> Option<(Canary, Program)> {
        if self.every.is_some_and(|every| self.round.elapsed() >= every) {
            self.round = Instant::now();
            self.due.extend(Canary::ALL);
        }
        while let Some(canary) = self.due.pop_front() {
            if let Some(program) = program(canary, profile) {
                self.planted += 1;
                return Some((canary, program));
            }
        }
        None
    }

    /// Its VM went away before it ran: not planted after all.
    pub fn give_back(&mut self, canary: Canary) {
        self.planted = self.planted.saturating_sub(1);
        self.due.push_front(canary);
    }

    /// A canary's program came back.
    pub fn done(&mut self, canary: Canary, judged: &Judged) -> Ended {
        if judged.sightings.iter().any(|s| gives_away(canary, s)) {
            return self.count(canary, Ended::Found);
        }
        match judged.inconclusive {
            None => self.count(canary, Ended::Missed),
            Some(_) => self.count(canary, Ended::Again),
        }
    }

    /// The guest died while it ran the canary.
    pub fn died(&mut self, canary: Canary, cause: &Cause) -> Ended {
        match cause {
            Cause::Guest(sighting) if gives_away(canary, sighting) => {
                self.count(canary, Ended::Found)
            }
            // A guest that dies silently instead of printing its report hides it from us.
            Cause::Guest(_) if canary == Canary::KernelReport => self.count(canary, Ended::Missed),
            _ => self.count(canary, Ended::Again),
        }
    }

    fn count(&mut self, canary: Canary, ended: Ended) -> Ended {
        match ended {
            Ended::Found => self.found += 1,
            Ended::Missed => self.missed.push(canary),
            Ended::Again => {
                let tries = self.retries.entry(canary).or_default();
                *tries += 1;
                if *tries > RETRIES {
                    self.missed.push(canary);
                    return Ended::Missed;
                }
                self.give_back(canary);
            }
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use case::Violation;

    fn judged(op: &str) -> Judged {
        let violation = Violation {
            rule: "X-1".into(),
            line: 0,
            op: op.into(),
            class: "c".into(),
            expected: String::new(),
            observed: String::new(),
            expectation: None,
        };
        let sighting = Sighting {
            signature: violation.signature(),
            title: String::new(),
            source: Source::Oracle,
            known: None,
            violation: Some(violation),
            observation: None,
            console: Vec::new(),
        };
        Judged { sightings: vec![sighting], ..Judged::default() }
    }

    fn profile() -> Profile {
        Profile { huge_2m: true, ..Profile::default() }
    }

    #[test]
    fn every_class_has_a_program_that_may_run() {
        for canary in Canary::ALL {
            let program = program(*canary, &profile()).unwrap();
            case::check::check(&program).unwrap();
        }
    }

    #[test]
    fn a_silent_run_is_a_miss_and_the_wrong_rule_too() {
        let mut all = Canaries::new(Some(Duration::from_secs(600)));
        let (canary, _) = all.next(&profile()).unwrap();
        assert_eq!(canary, Canary::WrongContent);
        assert_eq!(all.done(canary, &Judged::default()), Ended::Missed);
        assert_eq!(all.done(Canary::WrongErrno, &judged("mmap")), Ended::Missed);
        assert_eq!(all.done(Canary::WrongErrno, &judged("madvise")), Ended::Found);
        assert_eq!((all.found, all.missed.len()), (1, 2));
    }

    #[test]
    fn a_list_of_known_deviations_that_swallows_the_fault_is_a_miss() {
        let mut all = Canaries::new(Some(Duration::from_secs(600)));
        let mut swallowed = judged("madvise");
        swallowed.sightings[0].known = Some("wide".into());
        assert_eq!(all.done(Canary::WrongErrno, &swallowed), Ended::Missed);
    }

    #[test]
    fn a_void_run_is_planted_again_but_not_for_ever() {
        let mut all = Canaries::new(Some(Duration::from_secs(600)));
        let void = Judged { inconclusive: Some("died".into()), ..Judged::default() };
        for _ in 0..RETRIES {
            let (canary, _) = all.next(&profile()).unwrap();
            assert_eq!(all.done(canary, &void), Ended::Again);
        }
        let (canary, _) = all.next(&profile()).unwrap();
        assert_eq!(all.done(canary, &void), Ended::Missed);
        assert_eq!(all.planted, 1);
    }
}
