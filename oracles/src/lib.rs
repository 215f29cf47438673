//! The oracle: a reference model of Linux memory management ([`world`]), the judge that holds
//! observations against it ([`judge`]); console reader: `console`.
//!
//! Pure: no I/O, no clock, no randomness. It never follows the kernel it watches; where a rule
//! leaves the kernel a choice, the rule says so and names its source.

#![forbid(unsafe_code)]

pub mod console;
pub mod errno;
pub mod generation;
pub mod judge;
pub mod known;
pub mod mutants;
pub mod ops;
mod racing;
pub mod rules;
pub mod step;
pub mod touch;
pub mod views;
pub mod world;
