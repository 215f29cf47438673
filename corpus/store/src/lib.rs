//! Everything of a campaign that must survive: corpus folders, findings, run folders, journal, and
//! which findings are one bug.
//!
//! What a function has acknowledged is on disk. Nothing is ever deleted because it does not parse.
//! No judgement, no terminal, no VMs here.

#![forbid(unsafe_code)]

mod corpus;
mod durable;
mod error;
mod findings;
mod journal;
mod merges;
mod runs;

pub use corpus::{Added, Corpus, CorpusReport, Unfit};
pub use durable::write as write_whole;
pub use error::StoreError;
pub use findings::{Evidence, Findings, Recorded, Texts};
pub use journal::{Counters, EventRow, FindingRow, Journal, RunMeta};
pub use merges::Merges;
pub use runs::{RunDir, RunInfo, Runs};

/// Outcome of everything here.
pub type Result<T> = std::result::Result<T, StoreError>;
