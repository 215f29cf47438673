//! Annotations: GitHub workflow commands on stdout, and GitLab's code quality file.

use crate::escape::{github_data, github_property, line};
use crate::run::{FindingPage, Run};
use crate::sarif::uri;
use crate::words::count;
use case::FindingState;
use serde_json::{Value, json};

/// GitHub shows some ten of a kind.
const SHOWN_MAX: usize = 9;

/// Workflow commands, one a line: the verdict, then what is new.
pub fn github(run: &Run) -> String {
    let mut out = String::new();
    let news: Vec<&FindingPage> =
        run.findings.iter().filter(|f| f.state != FindingState::Known).collect();
    for (state, word) in
        [(FindingState::Confirmed, "error"), (FindingState::Unconfirmed, "warning")]
    {
        let of: Vec<&&FindingPage> = news.iter().filter(|f| f.state == state).collect();
        for f in of.iter().take(SHOWN_MAX) {
            let (shown, tried) = f.reproduced;
            let message = format!("{}\nshown {shown} of {tried}; {}", f.signature, f.replay);
            let place = match f.place() {
                Some((file, at)) => format!("file={},line={at},", github_property(&file)),
                None => String::new(),
            };
            let title = github_property(&line(&f.title));
            out.push_str(&format!("::{word} {place}title={title}::{}\n", github_data(&message)));
        }
        if of.len() > SHOWN_MAX {
            let more = of.len() - SHOWN_MAX;
            out.push_str(&format!("::{word} title=hgm::and {more} more {word}s\n"));
        }
    }
    let mut told = format!("{}: {}", run.verdict.headline, run.verdict.evidence);
    if run.withheld > 0 && news.is_empty() {
        told.push_str(&format!("; {} withheld", count(run.withheld.into(), "finding")));
    }
    let title = github_property(&format!("hgm {}", line(&run.kernel)));
    out.push_str(&format!("::notice title={title}::{}\n", github_data(&told)));
    out
}

/// The code quality report: a list of issues.
pub fn gitlab(run: &Run) -> Result<String, crate::ReportError> {
    let issues: Vec<Value> = run.findings.iter().map(issue).collect();
    Ok(crate::escape::json(&serde_json::to_string_pretty(&issues)?))
}

fn issue(f: &FindingPage) -> Value {
    let severity = match f.state {
        FindingState::Confirmed => "critical",
        FindingState::Unconfirmed => "minor",
        FindingState::Known => "info",
    };
    let (path, at) = match f.place() {
        Some((file, at)) => (file, at.max(1)),
        None => (format!("findings/{}/program.hgm", f.id), 1),
    };
    json!({
        "description": line(&format!("{} [{}]", f.title, f.signature)),
        "check_name": line(f.signature.split('/').next().unwrap_or_default()),
        "fingerprint": blake3::hash(f.signature.as_bytes()).to_hex().to_string(),
        "severity": severity,
        "location": { "path": uri(&path), "lines": { "begin": at } },
    })
}
