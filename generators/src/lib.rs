//! Making programs: weighted random ones, mutations of known ones, smaller ones that show the
//! same, and scenarios that walk a whole use case. Pure: no I/O, no clock; all randomness comes in as an argument, so the same
//! seed gives the same programs.
//!
//! Everything made here passes `case::check` and round-trips through the text form. What the
//! kernel should answer is never decided here.

#![forbid(unsafe_code)]

mod mutate;
mod random;
mod repair;
mod scenario;
mod shrink;
mod sketch;
mod words;

pub use mutate::mutate;
pub use random::random;
pub use repair::{repair, within_means};
pub use scenario::{SCENARIOS, scenario};
pub use shrink::{Shrinker, Try};

/// Lines of a program made here: fewest and most.
pub const LINES: (usize, usize) = (4, 40);
