//! A run as one JSON object. Field names are a contract; `v` rises when one changes its meaning.

use crate::run::Run;

/// The object on one line: [`Run`] with `transitions`, counts of (op, state before, state after).
/// Nothing in it drives a terminal.
pub fn json(run: &Run) -> Result<String, crate::ReportError> {
    let mut value = serde_json::to_value(run)?;
    value["transitions"] = run.steps.to_json();
    Ok(crate::escape::json(&value.to_string()))
}
