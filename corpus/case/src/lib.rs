//! The nouns of the house: [`Program`] and [`Op`], [`Observation`], [`Profile`], [`Verdict`],
//! [`Finding`], their text form and their wire form.
//!
//! Everything crosses the VM wall or reaches disk through here. No I/O, no clock, no randomness,
//! nothing of ours imported.

#![forbid(unsafe_code)]

mod capped;
pub mod check;
pub mod cover;
pub mod expect;
pub mod limits;
pub mod link;
pub mod observation;
pub mod op;
pub mod profile;
pub mod program;
pub mod text;
pub mod value;
pub mod verdict;
pub mod wire;

pub use expect::Expectation;
pub use observation::Observation;
pub use op::{Op, OpKind};
pub use profile::{Family, HgmGeneration, Profile};
pub use program::{Act, Line, Program, Step, Tag};
pub use value::*;
pub use verdict::{Elsewhere, Finding, FindingState, Source, Verdict, Violation};
