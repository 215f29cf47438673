//! What a run folder holds, as read and not yet looked into. Who reads it is not said here.

use case::Finding;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use store::{Counters, EventRow, RunMeta};

/// Everything of a run a report is made of. Whatever an older run has not kept is empty.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// Run id, the name of its folder.
    pub id: String,
    /// A process holds it.
    pub live: bool,
    pub meta: Option<RunMeta>,
    /// Named texts of the journal that parse as JSON.
    pub notes: BTreeMap<String, Value>,
    /// Totals with the wall time they were written at, oldest first.
    pub counters: Vec<(String, Counters)>,
    pub events: Vec<EventRow>,
    pub findings: Vec<KeptFinding>,
    /// Signatures under embargo in any run of this home.
    pub embargoed: BTreeSet<String>,
    /// Coverage by source file; empty where none was kept.
    pub coverage: Vec<CoveredFile>,
    /// What could not be read, one sentence each.
    pub trouble: Vec<String>,
}

/// One finding with the files beside it.
#[derive(Clone, Debug)]
pub struct KeptFinding {
    /// Name of its folder.
    pub slug: String,
    pub finding: Finding,
    /// Text of the program; empty if it cannot be read.
    pub program: String,
    /// Text of the smaller program `hgm shrink` made; empty if there is none.
    pub small: String,
    /// expected-vs-observed.txt.
    pub compared: String,
    /// report.txt: what the kernel reported, with lines of source.
    pub report: String,
    /// Raw bytes around the report.
    pub console: Vec<u8>,
    /// RFC 3339; empty if the index has no row of it.
    pub first_at: String,
    pub last_at: String,
    /// kernel.json: `kernel` and `profile`.
    pub kernel: Value,
}

/// Coverage of one source file.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct CoveredFile {
    pub file: String,
    /// Distinct blocks executed.
    pub blocks: usize,
    pub functions_reached: usize,
    pub functions_known: usize,
}
