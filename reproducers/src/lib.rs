//! A program and what was expected of it, as one C file that needs nothing but libc headers: it
//! performs the ops as the agent does, checks the expectation itself and says what it saw.
//!
//! Pure: text in, text out. Compiling and running it is the harness's business; what should have
//! been seen is the oracle's, which gives it as a [`case::Expectation`].

#![forbid(unsafe_code)]

mod check;
mod file;
mod ops;
mod parts;
mod settings;
mod words;

pub use file::write;

use case::{Expectation, Observation, Profile, Program};

/// The program behaves as expected.
pub const BEHAVES: u8 = 0;
/// It shows the bug.
pub const SHOWS: u8 = 1;
/// It cannot be said on this machine; the text says why. Skip, in the words of kernel selftests.
pub const CANNOT: u8 = 4;

/// The shape of the file's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Plain,
    /// TAP version 13, as kernel selftests print it.
    Selftest,
}

/// What goes into one file.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    pub program: &'a Program,
    pub expectation: &'a Expectation,
    /// The line of the violation; the number of lines for what must hold at the end.
    pub line: u16,
    pub signature: &'a str,
    /// The rule in one sentence, with its id; empty for reports of the kernel.
    pub rule: &'a str,
    /// Where it was seen.
    pub kernel: &'a str,
    pub profile: &'a Profile,
    /// What was seen there; without it no line but the checked one is held against anything.
    pub seen: Option<&'a Observation>,
    /// Pages of 2 MiB and 1 GiB in the pools before the program.
    pub pools: (i64, i64),
    /// Runs at most, until it shows.
    pub rounds: u32,
    /// Seconds one run may take.
    pub seconds: u32,
    pub style: Style,
    /// It must not leave the machine; the file says so.
    pub embargo: bool,
}

/// Why there is no file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);
