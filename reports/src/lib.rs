//! What a run has kept, as text for people and machines: terminal, HTML, JSON, JUnit, SARIF,
//! annotations of CI systems, Markdown; two runs compared, and a row of runs.
//!
//! Pure: [`Kept`] comes in, strings go out. No files, no clock, no terminal. Whatever a guest wrote
//! is escaped here, once per sink; findings under embargo never get past [`Run::of`].

#![forbid(unsafe_code)]

mod annotate;
mod compared;
mod diff;
pub mod escape;
mod figures;
mod fleet;
mod html;
mod json;
mod junit;
mod kept;
mod markdown;
mod page;
mod plot;
mod run;
mod sarif;
mod steps;
mod terminal;
mod trend;
mod verdict;
mod words;

pub use annotate::{github, gitlab};
pub use compared::{Compared, OpRow};
pub use diff::Diff;
pub use fleet::Machine;
pub use html::{html, trend as trend_html};
pub use json::json;
pub use junit::{Case, junit, regress};
pub use kept::{CoveredFile, Kept, KeptFinding};
pub use markdown::markdown;
pub use run::{Figures, FindingPage, Mark, Run, Sample};
pub use sarif::sarif;
pub use steps::Steps;
pub use terminal::terminal;
pub use trend::{Trend, TrendRow};
pub use verdict::{Tone, Verdict};

/// A report that could not be made; always a fault of ours.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("cannot fill the HTML page: {0}")]
    Page(#[from] askama::Error),
    #[error("cannot write JSON: {0}")]
    Json(#[from] serde_json::Error),
}
