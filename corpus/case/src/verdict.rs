//! What the oracle says of an observation, and what becomes of it when it shows again.

use crate::expect::Expectation;
use serde::{Deserialize, Serialize};

/// A rule that an observation breaks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Violation {
    /// Rule id, e.g. "H-080".
    pub rule: String,
    /// Line the rule was broken at; the number of lines for end-of-program rules.
    pub line: u16,
    /// Op name, or "end".
    pub op: String,
    /// What sort of state and outcome, without numbers: with rule and op it makes the signature.
    pub class: String,
    /// For people: the allowed set.
    pub expected: String,
    /// For people: what was seen.
    pub observed: String,
    /// What was expected, as data; `None` where no program of its own could check it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expectation: Option<Expectation>,
}

impl Violation {
    /// Stable over kernels, offsets and runs.
    pub fn signature(&self) -> String {
        format!("{}/{}/{}", self.rule, self.op, self.class)
    }
    /// The same with what was expected as data.
    pub fn expecting(mut self: Box<Self>, expectation: Expectation) -> Box<Self> {
        self.expectation = Some(expectation);
        self
    }
}

/// Judgement of one observation. A fault of the harness is never `Pass` and never `Violation`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    Pass,
    Violation(Violation),
    Inconclusive(String),
}

/// Where a finding was seen from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The reference model disagreed.
    Oracle,
    /// The kernel printed a report.
    Console,
    /// The guest stopped answering.
    Hang,
}

/// How far a finding has been confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingState {
    Confirmed,
    /// Never showed again in a fresh child of a fresh VM.
    Unconfirmed,
    /// Listed in the kernel's known.toml.
    Known,
}

/// Replays of a finding on another kernel than the one that showed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Elsewhere {
    pub kernel: String,
    /// How often it showed, of how many replays that said anything.
    pub reproduced: (u32, u32),
}

/// A finding as it is saved: the data of finding.json.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub signature: String,
    pub title: String,
    pub source: Source,
    pub state: FindingState,
    /// Id in known.toml, for known ones.
    pub known: Option<String>,
    /// The kernel that showed it first.
    pub kernel: String,
    pub seed: u64,
    /// How often it showed, of how many replays.
    pub reproduced: (u32, u32),
    /// Its replays on the other kernel of a two-tier campaign.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elsewhere: Option<Elsewhere>,
    /// Times seen in the run.
    pub count: u32,
    pub violation: Option<Violation>,
    /// Marked by the user: it must not leave this machine. Whatever exports findings has to ask.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub embargo: bool,
    /// The line that replays it.
    pub replay: String,
}
