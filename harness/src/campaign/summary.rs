//! The result of a campaign in figures: the JSON object of `hgm fuzz --json` and its words. Its
//! field names are a contract with those who read it.

use crate::coverage::Figures;
use case::FindingState;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;
use store::Merges;

/// One signature in the summary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FindingFigures {
    pub count: u32,
    pub state: FindingState,
    /// Shown, tried.
    pub reproduced: (u32, u32),
    /// Other signatures of the run that a person said are the same bug; `count` counts them too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<String>,
}

/// One row a bug: under the signature it is called by, as far confirmed as the surest of its
/// signatures.
pub(super) fn by_bug(
    findings: impl Iterator<Item = (String, FindingFigures)>,
    merges: &Merges,
) -> BTreeMap<String, FindingFigures> {
    let mut bugs: BTreeMap<String, FindingFigures> = BTreeMap::new();
    for (signature, figures) in findings {
        let head = merges.head(&signature).to_owned();
        let also = (signature != head).then_some(signature);
        let Some(bug) = bugs.get_mut(&head) else {
            bugs.insert(head, FindingFigures { also: also.into_iter().collect(), ..figures });
            continue;
        };
        bug.count = bug.count.saturating_add(figures.count);
        bug.also.extend(also);
        if (figures.state, figures.reproduced.1) < (bug.state, bug.reproduced.1) {
            (bug.state, bug.reproduced) = (figures.state, figures.reproduced);
        }
    }
    bugs
}

/// Of the confirmed findings that are not known, the one that was seen first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FirstFinding {
    /// For `hgm repro` and `hgm shrink`.
    pub id: String,
    pub signature: String,
    /// Programs that had come back when it was seen, its own included.
    pub programs: u64,
    /// From start to the moment it was seen; that it was confirmed came later.
    pub seconds: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanaryFigures {
    pub planted: u32,
    pub found: u32,
}

/// What the checking kernel of a two-tier campaign said. Findings are those not listed as known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyFigures {
    pub kernel: String,
    /// Family of rules that judged there; empty if no VM of it came up.
    pub profile: String,
    /// Interesting programs of the fast kernel that it ran whole, over all parts of the run.
    pub verified: u64,
    /// Programs and findings that wait in the journal; `--resume` goes on with them.
    pub waiting: u64,
    /// Programs with an op this kernel does not offer.
    pub skipped: u64,
    /// Programs whose run there said nothing.
    pub inconclusive: u64,
    /// Programs it ran first, while nothing waited.
    pub own_programs: u64,
    /// Distinct mapping states reached on it.
    pub states: usize,
    /// Of the canaries of the whole campaign, those planted there.
    pub canaries: CanaryFigures,
    /// Signatures both kernels showed.
    pub confirmed: Vec<String>,
    /// Signatures the fast kernel showed and the checking one, asked, did not.
    pub only_fast: Vec<String>,
    /// Signatures the checking kernel showed and the fast one, asked, did not.
    pub only_checking: Vec<String>,
}

impl VerifyFigures {
    fn text(&self) -> String {
        let mut out = format!(
            "checked with {}: {} verified, {} waiting, {} skipped, {} inconclusive; \
             {} programs of its own, {} mapping states\n",
            self.kernel,
            self.verified,
            self.waiting,
            self.skipped,
            self.inconclusive,
            self.own_programs,
            self.states,
        );
        let disagree = self.only_fast.len() + self.only_checking.len();
        let both = self.confirmed.len();
        let _ = writeln!(out, "findings of both kernels: {both}; disagreements: {disagree}");
        for signature in &self.only_fast {
            let _ = writeln!(out, "  not on {}: {signature}", self.kernel);
        }
        for signature in &self.only_checking {
            let _ = writeln!(out, "  only on {}: {signature}", self.kernel);
        }
        out
    }
}

/// See the module's head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Run folder.
    pub run: String,
    pub kernel: String,
    /// Family of rules that judged.
    pub profile: String,
    pub seconds: f64,
    pub programs: u64,
    pub ops: u64,
    pub programs_per_s: f64,
    /// Distinct mapping states reached.
    pub states: usize,
    /// Executed kernel text; `None` where nobody counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coverage: Option<Figures>,
    pub findings: BTreeMap<String, FindingFigures>,
    /// `None` if none was confirmed, or all by an earlier part of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_finding: Option<FirstFinding>,
    pub inconclusive: u64,
    pub canaries: CanaryFigures,
    /// The second tier; `None` where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<VerifyFigures>,
    /// From start to the first result; `None` if there was none.
    pub seconds_to_first_program: Option<f64>,
    /// Share of the wall time of all VMs in which guests ran programs.
    pub exec_share: f64,
    pub judge_us_per_program: f64,
    /// VMs started, and how many of them were clones of a golden VM.
    pub vms: u64,
    pub vms_cloned: u64,
    /// Median time from start of QEMU to a guest that answers.
    pub vm_ready_ms: u64,
    /// Largest resident memory of one QEMU seen.
    pub vm_rss_kib: u64,
}

impl Summary {
    /// Findings that are not known: confirmed, and not yet confirmed.
    pub fn new_findings(&self) -> (usize, usize) {
        let of = |state| self.findings.values().filter(|f| f.state == state).count();
        (of(FindingState::Confirmed), of(FindingState::Unconfirmed))
    }

    /// For people.
    pub fn text(&self) -> String {
        let (confirmed, unconfirmed) = self.new_findings();
        let known = self.findings.len() - confirmed - unconfirmed;
        let mut out = format!(
            "{} programs, {} ops in {:.0} s ({:.1} programs/s), {} distinct mapping states\n\
             findings: {confirmed} confirmed, {unconfirmed} unconfirmed, {known} known\n\
             inconclusive: {}; canaries found: {} of {}\n",
            self.programs,
            self.ops,
            self.seconds,
            self.programs_per_s,
            self.states,
            self.inconclusive,
            self.canaries.found,
            self.canaries.planted,
        );
        if let Some(c) = &self.coverage {
            let focus = match c.focus.is_empty() {
                true => String::new(),
                false => format!(" (focus: {})", c.focus.join(", ")),
            };
            let _ = writeln!(
                out,
                "coverage{focus}: {} blocks, {} of {} functions reached; hgm report --coverage",
                c.blocks, c.functions_reached, c.functions_known,
            );
        }
        out.extend(self.verify.iter().map(VerifyFigures::text));
        for (signature, f) in &self.findings {
            let state = match f.state {
                FindingState::Confirmed => "confirmed",
                FindingState::Unconfirmed => "unconfirmed",
                FindingState::Known => "known",
            };
            let (k, n) = f.reproduced;
            let _ = writeln!(out, "  {state:<11} {k} of {n}  seen {:>5}  {signature}", f.count);
        }
        let _ = writeln!(out, "run: {}", self.run);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_signatures_are_one_row_as_sure_as_the_surest() {
        let home = tempfile::tempdir().unwrap();
        let mut merges = Merges::of(home.path()).unwrap();
        merges.merge(&["a".into(), "b".into(), "unseen".into()]).unwrap();
        merges.merge(&["gone".into(), "d".into()]).unwrap();
        let row = |state, reproduced| FindingFigures { count: 2, state, reproduced, also: vec![] };
        let seen = [
            ("a".to_owned(), row(FindingState::Unconfirmed, (0, 5))),
            ("b".to_owned(), row(FindingState::Confirmed, (5, 5))),
            ("c".to_owned(), row(FindingState::Known, (0, 0))),
            ("d".to_owned(), row(FindingState::Confirmed, (1, 5))),
        ];
        let bugs = by_bug(seen.into_iter(), &merges);
        assert_eq!(bugs.keys().map(String::as_str).collect::<Vec<_>>(), ["a", "c", "gone"]);
        assert_eq!((bugs["a"].count, bugs["a"].also.as_slice()), (4, &["b".to_owned()][..]));
        assert_eq!((bugs["a"].state, bugs["a"].reproduced), (FindingState::Confirmed, (5, 5)));
        assert_eq!((bugs["c"].count, bugs["c"].also.len()), (2, 0));
        assert_eq!(bugs["gone"].also, ["d"]);
    }
}
