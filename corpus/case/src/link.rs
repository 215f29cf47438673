//! The messages between host and guest. Frames around them are `wire`'s; a change here raises
//! `wire::VERSION`.

use crate::capped;
use crate::cover::{Ranges, Symbol};
use crate::observation::Observation;
use crate::profile::Profile;
use crate::program::Program;
use serde::{Deserialize, Serialize};

/// How much the agent looks at while a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Look {
    /// Only where the program says `observe`, and at the end.
    Asked,
    /// Page tables of the touched window and the pools after every line, and all at the end.
    Each,
}

/// A fault the agent plants on purpose, for real where a program can do it for real, so that the
/// pipeline proves it is not blind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Canary {
    /// After the last `write`, the agent flips a tag in memory behind the program's back.
    WrongContent,
    /// The first op that fails is reported with another errno.
    WrongErrno,
    /// The agent keeps one huge page over the teardown.
    LeakedHugePage,
    /// A SIGBUS the program received is reported as success.
    MissingSigbus,
    /// The kernel is made to print a report (sysrq).
    KernelReport,
}

impl Canary {
    pub const ALL: &'static [Canary] = &[
        Canary::WrongContent,
        Canary::WrongErrno,
        Canary::LeakedHugePage,
        Canary::MissingSigbus,
        Canary::KernelReport,
    ];
    pub const fn name(self) -> &'static str {
        match self {
            Canary::WrongContent => "wrong-content",
            Canary::WrongErrno => "wrong-errno",
            Canary::LeakedHugePage => "leaked-huge-page",
            Canary::MissingSigbus => "missing-sigbus",
            Canary::KernelReport => "kernel-report",
        }
    }
}

/// One program to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRequest {
    /// Chosen by the host, unique per VM; replies carry it.
    pub id: u64,
    pub program: Program,
    pub look: Look,
    /// Run in a child made for this program alone.
    pub fresh: bool,
    pub canary: Option<Canary>,
    pub op_timeout_ms: u32,
}

/// Ways a test makes the guest die, for real.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sabotage {
    /// The kernel panics.
    Panic,
    /// Every CPU stops with interrupts off.
    Hang,
    /// The agent itself exits (init dies: panic of another sort).
    AgentExit,
}

/// Host to guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToGuest {
    /// First message; the guest answers `Ready`.
    Hello,
    Run(RunRequest),
    Sabotage(Sabotage),
    /// Have the kernel make a real fault, by its LKDTM crash type; the guest answers `Provoked`.
    /// Names are at most [`crate::limits::CRASH_TYPE_BYTES_MAX`] long.
    Provoke(String),
    Poweroff,
    /// The guest answers with all its `Symbols`.
    Symbols,
    /// From now on every run is measured with KCOV and its `Done` has a `Covered` before it.
    /// Without KCOV the list is empty.
    Cover(Ranges),
    /// Run a static executable of at most [`crate::limits::BINARY_BYTES_MAX`] bytes as root; the
    /// guest answers `Executed` within `seconds` and a little.
    Execute {
        binary: Vec<u8>,
        seconds: u32,
    },
}

/// How a program ended for the harness.
#[expect(clippy::large_enum_variant, reason = "nearly every value is Finished")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunOutcome {
    Finished(Observation),
    /// The process that ran it died of a signal at this line.
    WorkerDied {
        signal: i32,
        line: u16,
    },
    /// The whole program went over its time at this line and its processes were killed.
    WorkerHung {
        line: u16,
        /// Its threads before they were killed, with their kernel stacks: text of /proc, at most
        /// [`crate::limits::STUCK_BYTES_MAX`].
        stuck: Vec<u8>,
        /// SIGKILL ended them.
        killed: bool,
    },
    /// The agent could not run it (no memory for its own needs, a bad request).
    Refused(String),
}

/// Guest to host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromGuest {
    Ready(Profile),
    /// Goes ahead of each run, so that the host knows the guilty program when the guest dies.
    Executing {
        id: u64,
    },
    Done {
        id: u64,
        outcome: RunOutcome,
    },
    /// The crash type was written (0), is still at work (0), or was refused with this errno.
    Provoked {
        errno: u16,
    },
    /// A line for the host's log.
    Log(String),
    /// Text symbols of the kernel itself in the order of /proc/kallsyms, and whether more follow.
    Symbols {
        #[serde(deserialize_with = "capped::symbols")]
        part: Vec<Symbol>,
        more: bool,
    },
    /// Cells of the ranges of `Cover` that a run executed, ascending; comes before its `Done`.
    Covered {
        id: u64,
        #[serde(deserialize_with = "capped::cells")]
        cells: Vec<u32>,
    },
    /// How an executable ended.
    Executed {
        end: ExecutableEnd,
        /// What it printed, at most [`crate::limits::PRINTED_BYTES_MAX`].
        printed: Vec<u8>,
    },
}

/// How an executable ended in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecutableEnd {
    Exit(u8),
    Signal(i32),
    /// It ran over its time and was killed.
    Late,
    /// It could not be started, with the errno.
    NotRun(u16),
}
