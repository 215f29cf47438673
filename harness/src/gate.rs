//! What a gate makes of its findings and its evidence: the verdict on a patched kernel against its
//! base. Pure: no VMs, no files, no terminal.

use crate::campaign::Rates;
use crate::exit::Exit;
use serde::Serialize;

/// What a finding is to a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Word {
    /// The new kernel shows it often enough, the base in as many replays never.
    Finding,
    /// The new kernel shows it, and too seldom to count; the base does not.
    Flaky,
    /// Time was over, or VMs were lost, before both kernels had their replays.
    Open,
    /// The base shows it too: not this patch.
    BaseToo,
    /// The base shows it and the new kernel does not.
    BaseOnly,
    /// Seen once, and never again on either.
    Vanished,
    /// A deviation the new kernel's list names.
    Known,
}

/// What a finding is to a gate that wants `need` of `times` replays.
pub fn sort(known: bool, rates: Rates, need: u32, times: u32) -> Word {
    if known {
        return Word::Known;
    }
    let (new, base) = (rates.new, rates.base);
    // A base that lacks what the program needs cannot show it; so can a new kernel.
    let absent = |rate: (u32, u32)| rate.0 == 0 && (rate.1 == 0 || rate.1 >= times);
    match (new, base) {
        (Some((1.., _)), Some((1.., _))) => Word::BaseToo,
        (Some(new), Some((1.., _))) if absent(new) => Word::BaseOnly,
        (Some(new @ (0, 1..)), Some((0, _))) if absent(new) => Word::Vanished,
        (Some((shown, _)), Some(base)) if shown >= need && absent(base) => Word::Finding,
        (Some((1.., tried)), Some(base)) if tried >= times && absent(base) => Word::Flaky,
        _ => Word::Open,
    }
}

/// What a gate has looked at: the ground its verdict stands on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Evidence {
    pub programs: u64,
    /// Distinct mapping states.
    pub states: u64,
    /// Run, and there.
    pub regressions: (u64, u64),
    pub regressions_on_base: u64,
    pub canaries: Canaries,
    /// `None` without a patch whose functions can be counted.
    pub functions: Option<Functions>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Canaries {
    pub found: u32,
    pub planted: u32,
}

/// Functions the patch changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Functions {
    pub reached: Vec<String>,
    pub not_reached: Vec<String>,
}

/// Less than this proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Floor {
    pub programs: u64,
    pub states: u64,
}

impl Evidence {
    /// What it lacks for a verdict, a line each.
    pub fn lacks(&self, floor: Floor) -> Vec<String> {
        let mut lacks = Vec::new();
        let mut few = |what: &str, have: u64, need: u64| {
            if have < need {
                lacks.push(format!("{have} {what}, {need} are the least"));
            }
        };
        few("programs", self.programs, floor.programs);
        few("mapping states", self.states, floor.states);
        if self.regressions.0 < self.regressions.1 {
            let (run, there) = self.regressions;
            lacks.push(format!("{run} of {there} regressions were run"));
        }
        if self.functions.as_ref().is_some_and(|f| f.reached.is_empty()) {
            lacks.push("no function the patch changes was reached".to_owned());
        }
        lacks
    }
}

/// The verdict and why. `missed`: canary classes that went unseen.
pub fn verdict(words: &[Word], lacks: &[String], missed: &[&str]) -> (Exit, &'static str) {
    let any = |word| words.contains(&word);
    match () {
        () if !missed.is_empty() => (Exit::CanaryMissed, "void"),
        () if any(Word::Finding) => (Exit::Finding, "findings"),
        () if any(Word::Flaky) || any(Word::Open) => (Exit::Inconclusive, "inconclusive"),
        () if !lacks.is_empty() => (Exit::Inconclusive, "inconclusive"),
        () => (Exit::Clean, "clean"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(new: Option<(u32, u32)>, base: Option<(u32, u32)>) -> Word {
        sort(false, Rates { new, base }, 3, 5)
    }

    #[test]
    fn only_what_the_new_kernel_alone_shows_again_and_again_counts() {
        for shown in 3..=5 {
            assert_eq!(word(Some((shown, 5)), Some((0, 5))), Word::Finding);
        }
        for shown in 1..=2 {
            assert_eq!(word(Some((shown, 5)), Some((0, 5))), Word::Flaky);
        }
        assert_eq!(word(Some((0, 5)), Some((0, 5))), Word::Vanished);
        assert_eq!(word(Some((5, 5)), Some((1, 5))), Word::BaseToo);
        assert_eq!(word(Some((1, 5)), Some((5, 5))), Word::BaseToo);
        assert_eq!(word(Some((0, 5)), Some((5, 5))), Word::BaseOnly);
        // What the base does not offer it cannot show, and nor can the new kernel.
        assert_eq!(word(Some((5, 5)), Some((0, 0))), Word::Finding);
        assert_eq!(word(Some((0, 0)), Some((5, 5))), Word::BaseOnly);
        assert_eq!(sort(true, Rates::default(), 3, 5), Word::Known);
    }

    #[test]
    fn what_was_not_replayed_to_the_end_is_neither_cleared_nor_counted() {
        assert_eq!(word(None, None), Word::Open);
        assert_eq!(word(Some((5, 5)), None), Word::Open);
        assert_eq!(word(None, Some((0, 5))), Word::Open);
        // The base was asked less often than the new kernel.
        assert_eq!(word(Some((5, 5)), Some((0, 2))), Word::Open);
        assert_eq!(word(Some((1, 2)), Some((0, 5))), Word::Open);
        assert_eq!(word(Some((0, 0)), Some((0, 5))), Word::Open);
        assert_eq!(word(Some((0, 2)), Some((3, 5))), Word::Open);
        // Lost replays on the new kernel do not matter once enough have shown it.
        assert_eq!(word(Some((3, 3)), Some((0, 5))), Word::Finding);
    }

    fn enough() -> Evidence {
        let functions = Functions { reached: vec!["f".into()], not_reached: vec!["g".into()] };
        let (regressions, canaries) = ((3, 3), Canaries { found: 10, planted: 10 });
        let functions = Some(functions);
        Evidence {
            programs: 100,
            states: 50,
            regressions,
            regressions_on_base: 3,
            canaries,
            functions,
        }
    }

    #[test]
    fn too_little_evidence_says_what_is_missing() {
        let floor = Floor { programs: 100, states: 50 };
        assert_eq!(enough().lacks(floor), [""; 0]);
        let lacks = |change: fn(&mut Evidence)| {
            let mut evidence = enough();
            change(&mut evidence);
            evidence.lacks(floor)
        };
        assert_eq!(lacks(|e| e.programs = 99), ["99 programs, 100 are the least"]);
        assert_eq!(lacks(|e| e.states = 1), ["1 mapping states, 50 are the least"]);
        assert_eq!(lacks(|e| e.regressions = (2, 3)), ["2 of 3 regressions were run"]);
        let unreached = lacks(|e| e.functions = Some(Functions::default()));
        assert_eq!(unreached, ["no function the patch changes was reached"]);
        assert_eq!(lacks(|e| e.functions = None), [""; 0]);
    }

    #[test]
    fn the_gravest_decides() {
        let lack = ["x".to_owned()];
        let exit = |words: &[Word], lacks: &[String]| verdict(words, lacks, &[]).0;
        assert_eq!(exit(&[Word::BaseToo, Word::Vanished, Word::Known], &[]), Exit::Clean);
        assert_eq!(exit(&[Word::BaseOnly, Word::Flaky], &[]), Exit::Inconclusive);
        assert_eq!(exit(&[Word::Open], &[]), Exit::Inconclusive);
        assert_eq!(exit(&[], &lack), Exit::Inconclusive);
        // A finding needs no more evidence than itself, and a blind detector voids even that.
        assert_eq!(exit(&[Word::Open, Word::Finding], &lack), Exit::Finding);
        assert_eq!(verdict(&[Word::Finding], &lack, &["wrong-content"]).0, Exit::CanaryMissed);
    }
}
