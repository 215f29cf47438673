//! Exit codes, from one table, and the error every command hands to its caller.
//!
//! The codes are a contract with CI users: a code never changes its meaning. Nothing here prints;
//! `term` does.

use std::fmt;

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Clean = 0,
    Bug = 1,
    Usage = 2,
    Config = 3,
    NothingRun = 4,
    Inconclusive = 5,
    Infrastructure = 75,
    Finding = 100,
    KernelBuild = 101,
    CanaryMissed = 102,
    Interrupted = 130,
    Terminated = 143,
}

/// One row of the table behind `hgm help exit-codes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitRow {
    pub exit: Exit,
    pub name: &'static str,
    pub meaning: &'static str,
    /// What a CI job should do with it.
    pub reaction: &'static str,
}

const fn row(
    exit: Exit,
    name: &'static str,
    meaning: &'static str,
    reaction: &'static str,
) -> ExitRow {
    ExitRow { exit, name, meaning, reaction }
}

/// Every code there is.
pub const EXITS: &[ExitRow] = &[
    row(Exit::Clean, "clean", "clean, with enough evidence", "pass"),
    row(Exit::Bug, "bug", "bug in hgm (panic, broken invariant)", "fail, file a bug"),
    row(Exit::Usage, "usage", "bad command line", "fail"),
    row(Exit::Config, "config", "bad configuration, or bad file named on the command line", "fail"),
    row(Exit::NothingRun, "nothing-run", "nothing was run", "fail"),
    row(
        Exit::Inconclusive,
        "inconclusive",
        "too little evidence, too flaky, or budget over",
        "as configured; default fail",
    ),
    row(
        Exit::Infrastructure,
        "infrastructure",
        "host or VM failed (no QEMU, disk full, kernel does not boot)",
        "retry",
    ),
    row(Exit::Finding, "finding", "new finding(s)", "fail"),
    row(
        Exit::KernelBuild,
        "kernel-build",
        "the kernel could not be built, or does not boot where its base does",
        "fail",
    ),
    row(
        Exit::CanaryMissed,
        "canary-missed",
        "a planted fault was not found: the detector is blind, results void",
        "fail loudly",
    ),
    row(Exit::Interrupted, "interrupted", "interrupted (Ctrl-C); journal closed cleanly", "-"),
    row(Exit::Terminated, "terminated", "terminated (SIGTERM); journal closed cleanly", "-"),
];

impl Exit {
    pub const fn code(self) -> u8 {
        self as u8
    }
    /// The row of the table; every variant has one, which a test checks.
    pub fn row(self) -> &'static ExitRow {
        EXITS.iter().find(|row| row.exit == self).unwrap_or(&EXITS[1])
    }
}

/// The world's fault: bad input, missing tool, full disk. Anything else that goes wrong is a bug.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedError {
    pub exit: Exit,
    /// What failed, with the thing's name; lower case, no full stop.
    pub message: String,
    /// What the system said about it.
    pub cause: Option<String>,
    /// What to do now.
    pub help: String,
}

impl ExpectedError {
    pub fn new(exit: Exit, message: impl Into<String>, help: impl Into<String>) -> Self {
        ExpectedError { exit, message: message.into(), cause: None, help: help.into() }
    }
    pub fn cause(mut self, cause: impl fmt::Display) -> Self {
        self.cause = Some(cause.to_string());
        self
    }
    pub fn usage(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message, help)
    }
    pub fn config(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self::new(Exit::Config, message, help)
    }
    pub fn infrastructure(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self::new(Exit::Infrastructure, message, help)
    }
}

impl fmt::Display for ExpectedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ExpectedError {}

impl From<store::StoreError> for ExpectedError {
    /// Trouble with files we keep is trouble with the host, but for ids nobody has.
    fn from(error: store::StoreError) -> Self {
        let exit = if error.is_users_mistake() { Exit::Config } else { Exit::Infrastructure };
        let (message, cause, help) = error.parts();
        ExpectedError { exit, message, cause, help }
    }
}

impl From<vmimages::ImageError> for ExpectedError {
    /// What the user named wrongly is his to correct; the rest is the host's or the network's.
    fn from(error: vmimages::ImageError) -> Self {
        use vmimages::ImageError as E;
        let exit = match &error {
            E::UnknownSpec { .. }
            | E::NotAKernel { .. }
            | E::NoImage { .. }
            | E::NoPackage { .. }
            | E::BadPackage { .. }
            | E::MissingModule { .. } => Exit::Config,
            _ => Exit::Infrastructure,
        };
        ExpectedError::new(exit, error.to_string(), error.help())
    }
}

impl From<vmimages::BuildError> for ExpectedError {
    /// A tree that does not become a kernel has a code of its own.
    fn from(error: vmimages::BuildError) -> Self {
        let exit = match error {
            vmimages::BuildError::Image(error) => return error.into(),
            _ if error.is_users_mistake() => Exit::Config,
            _ if error.is_trees_fault() => Exit::KernelBuild,
            _ => Exit::Infrastructure,
        };
        let (cause, help) = (error.cause().join("\n"), error.help());
        let expected = ExpectedError::new(exit, error.to_string(), help);
        if cause.is_empty() { expected } else { expected.cause(cause) }
    }
}

/// The known name that `word` was probably meant to be: at most a third of its letters differ.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let budget = (word.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|name| (edits(word, name), name))
        .filter(|(cost, name)| *cost <= budget || (word.len() >= 3 && name.starts_with(word)))
        .min_by_key(|(cost, _)| *cost)
        .map(|(_, name)| name)
}

/// Edits between two words: insert, delete, replace, swap of neighbours, each 1.
fn edits(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut table = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            if i == 0 || j == 0 {
                table[i][j] = i + j;
                continue;
            }
            let change = usize::from(a[i - 1] != b[j - 1]);
            let mut best =
                (table[i - 1][j] + 1).min(table[i][j - 1] + 1).min(table[i - 1][j - 1] + change);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(table[i - 2][j - 2] + 1);
            }
            table[i][j] = best;
        }
    }
    table[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_one_row() {
        let all = [
            Exit::Clean,
            Exit::Bug,
            Exit::Usage,
            Exit::Config,
            Exit::NothingRun,
            Exit::Inconclusive,
            Exit::Infrastructure,
            Exit::Finding,
            Exit::KernelBuild,
            Exit::CanaryMissed,
            Exit::Interrupted,
            Exit::Terminated,
        ];
        assert_eq!(all.len(), EXITS.len());
        for exit in all {
            assert_eq!(exit.row().exit, exit);
            assert_eq!(EXITS.iter().filter(|r| r.exit == exit).count(), 1);
        }
        assert!(EXITS.windows(2).all(|pair| pair[0].exit.code() < pair[1].exit.code()));
    }

    #[test]
    fn nearest_finds_typos_only() {
        let keys = ["boot_timeout_s", "jobs", "kernel"];
        assert_eq!(nearest("boot_timout_s", keys), Some("boot_timeout_s"));
        assert_eq!(nearest("boot_timeout", keys), Some("boot_timeout_s"));
        assert_eq!(nearest("jbos", keys), Some("jobs"));
        assert_eq!(nearest("colour", keys), None);
    }
}
