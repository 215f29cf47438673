//! Everything of a campaign that must survive: corpus folders, findings, run folders, journal.
//!
//! What a function has acknowledged is on disk. Nothing is ever deleted because it does not parse.
//! No judgement, no terminal, no VMs here.

#![forbid(unsafe_code)]

mod error;

pub use error::StoreError;
