//! What a run amounts to, in words: from its exit code where it is kept, else from its figures.

use crate::run::Figures;
use crate::words::{count, duration, grouped};
use serde::Serialize;

/// How grave it is; shown by a word and a sign too, never by colour alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tone {
    Good,
    Warn,
    Bad,
    Calm,
}

impl Tone {
    pub fn word(self) -> &'static str {
        match self {
            Tone::Good => "good",
            Tone::Warn => "warn",
            Tone::Bad => "bad",
            Tone::Calm => "calm",
        }
    }

    pub fn sign(self) -> &'static str {
        match self {
            Tone::Good => "✓",
            Tone::Warn => "?",
            Tone::Bad => "✕",
            Tone::Calm => "…",
        }
    }
}

/// See the module's head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    pub tone: Tone,
    /// One word, as `hgm help exit-codes` names it, or running, or unfinished.
    pub word: String,
    /// One sentence without full stop.
    pub headline: String,
    /// How good the evidence is.
    pub evidence: String,
    /// Exit code of the campaign, where it is kept.
    pub exit: Option<u8>,
}

impl Verdict {
    /// The verdict on a run. `ended`: it closed its books.
    pub fn of(f: &Figures, withheld: u32, exit: Option<u8>, live: bool, ended: bool) -> Verdict {
        let word = match (exit, ended) {
            _ if live => "running",
            (Some(code), _) => by_code(code, f),
            (None, true) => by_figures(f),
            (None, false) => "unfinished",
        };
        let (tone, headline) = match word {
            "running" => (Tone::Calm, "Still running; these are its figures so far".to_owned()),
            "unfinished" => (
                Tone::Warn,
                "Never closed its books: it was killed, or its host went away".to_owned(),
            ),
            "canary-missed" => (
                Tone::Bad,
                "Void: a planted fault was not found, so the detector was blind".to_owned(),
            ),
            "finding" if f.confirmed == 0 && withheld > 0 => {
                (Tone::Bad, "New findings, all of them under embargo".to_owned())
            }
            "finding" => {
                let what = count(u64::from(f.confirmed), "new finding");
                (Tone::Bad, format!("{what} confirmed by replay"))
            }
            "inconclusive" if f.unconfirmed > 0 => {
                let what = count(u64::from(f.unconfirmed), "finding");
                (Tone::Warn, format!("Inconclusive: {what} not confirmed by replay"))
            }
            "inconclusive" => (Tone::Warn, "Inconclusive: too little evidence".to_owned()),
            "nothing-run" => (Tone::Warn, "No program was run".to_owned()),
            "infrastructure" => (Tone::Warn, "The host or its VMs failed".to_owned()),
            "kernel-build" => {
                (Tone::Bad, "The new kernel was not built, or does not boot".to_owned())
            }
            "interrupted" => (Tone::Warn, "Interrupted; its books are closed".to_owned()),
            "clean" => (Tone::Good, "Nothing new: no finding that is not known".to_owned()),
            _ => (Tone::Bad, "Ended with a fault of hgm itself".to_owned()),
        };
        let evidence = evidence(f, withheld);
        Verdict { tone, word: word.to_owned(), headline, evidence, exit }
    }
}

fn by_code(code: u8, f: &Figures) -> &'static str {
    match code {
        0 => "clean",
        4 => "nothing-run",
        5 => "inconclusive",
        75 => "infrastructure",
        100 => "finding",
        101 => "kernel-build",
        102 => "canary-missed",
        // Who stopped it says nothing of what it found.
        130 | 143 if f.confirmed > 0 => "finding",
        130 | 143 => "interrupted",
        _ => "bug",
    }
}

fn by_figures(f: &Figures) -> &'static str {
    match f {
        _ if f.canaries_found < f.canaries_planted => "canary-missed",
        _ if f.confirmed > 0 => "finding",
        _ if f.programs == 0 => "nothing-run",
        _ if f.unconfirmed > 0 => "inconclusive",
        _ => "clean",
    }
}

fn evidence(f: &Figures, withheld: u32) -> String {
    let mut parts = vec![
        format!("{} in {}", count(f.programs, "program"), duration(f.seconds)),
        format!("{} distinct mapping states", grouped(f.states)),
        match f.canaries_planted {
            0 => "no canaries planted".to_owned(),
            planted => format!("{} of {} canaries found", f.canaries_found, planted),
        },
        format!("{} known deviations seen", f.known),
    ];
    if f.inconclusive > 0 {
        parts.push(format!("{} inconclusive", count(f.inconclusive, "program")));
    }
    if withheld > 0 {
        parts.push(format!("{} withheld (embargo)", count(u64::from(withheld), "finding")));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(f: &Figures, exit: Option<u8>, live: bool, ended: bool) -> String {
        Verdict::of(f, 0, exit, live, ended).word
    }

    #[test]
    fn words_follow_the_exit_code_then_the_figures() {
        let few = Figures { programs: 10, ..Figures::default() };
        assert_eq!(word(&few, Some(5), false, true), "inconclusive");
        assert_eq!(word(&few, None, false, true), "clean");
        assert_eq!(word(&few, None, false, false), "unfinished");
        assert_eq!(word(&few, Some(0), true, true), "running");
        let found = Figures { confirmed: 2, ..few.clone() };
        assert_eq!(word(&found, None, false, true), "finding");
        assert_eq!(word(&found, Some(130), false, true), "finding");
        assert_eq!(word(&few, Some(130), false, true), "interrupted");
        let blind = Figures { canaries_planted: 5, canaries_found: 4, ..found };
        assert_eq!(word(&blind, None, false, true), "canary-missed");
        assert_eq!(word(&Figures::default(), None, false, true), "nothing-run");
    }

    #[test]
    fn withheld_findings_are_counted_and_never_named() {
        let verdict = Verdict::of(&Figures::default(), 2, Some(100), false, true);
        assert!(verdict.headline.contains("embargo"));
        assert!(verdict.evidence.contains("2 findings withheld"));
    }
}
