//! SARIF 2.1.0: one run, a rule per signature's first part, a result per finding. The signature is
//! the fingerprint, so that uploads of many nights meet.

use crate::escape::line;
use crate::run::{FindingPage, Run};
use case::FindingState;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Results a reader of these files shows at most.
const RESULTS_MAX: usize = 5000;
const SCHEMA: &str = "https://json.schemastore.org/sarif-2.1.0.json";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Log<'a> {
    #[serde(rename = "$schema")]
    schema: &'a str,
    version: &'a str,
    runs: [LogRun; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LogRun {
    tool: Value,
    automation_details: Value,
    invocations: [Value; 1],
    results: Vec<LogResult>,
    properties: Value,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LogResult {
    rule_id: String,
    rule_index: usize,
    level: &'static str,
    kind: &'static str,
    message: Value,
    locations: Vec<Value>,
    partial_fingerprints: BTreeMap<&'static str, String>,
    occurrence_count: u32,
    properties: Value,
}

/// The log.
pub fn sarif(run: &Run) -> Result<String, crate::ReportError> {
    let told = &run.findings[..run.findings.len().min(RESULTS_MAX)];
    let names: BTreeSet<String> = told.iter().map(rule).collect();
    let names: Vec<String> = names.into_iter().collect();
    let rules: Vec<Value> = names.iter().map(|name| json!({ "id": name })).collect();
    let results = told.iter().map(|finding| result(finding, &names)).collect();
    let mut invocation = json!({
        // A campaign that voids its results has not done what it was for.
        "executionSuccessful": !matches!(
            run.verdict.word.as_str(), "canary-missed" | "infrastructure" | "bug" | "nothing-run"
        ),
        "commandLine": line(&run.command.join(" ")),
    });
    if let Some(code) = run.verdict.exit {
        invocation["exitCode"] = code.into();
    }
    if let Ok(time) = run.started.parse::<jiff::Timestamp>() {
        invocation["startTimeUtc"] = time.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string().into();
    }
    let log = Log {
        schema: SCHEMA,
        version: "2.1.0",
        runs: [LogRun {
            tool: json!({ "driver": {
                "name": "hgm",
                "version": if run.version.is_empty() { "unknown" } else { &run.version },
                "rules": rules,
            } }),
            automation_details: json!({ "id": format!("hgm/{}/", line(&run.kernel)) }),
            invocations: [invocation],
            results,
            properties: json!({
                "run": run.id,
                "kernel": run.kernel,
                "verdict": run.verdict.word,
                "withheld": run.withheld,
                "leftOut": run.findings.len() - told.len(),
            }),
        }],
    };
    Ok(crate::escape::json(&serde_json::to_string_pretty(&log)?))
}

/// What broke: the oracle's rule, or the class of the kernel's report.
fn rule(f: &FindingPage) -> String {
    let first = f.signature.split('/').next().unwrap_or_default();
    let name = line(if f.rule.is_empty() { first } else { &f.rule });
    if name.trim().is_empty() { "unnamed".to_owned() } else { name }
}

fn result(f: &FindingPage, names: &[String]) -> LogResult {
    let rule_id = rule(f);
    let (level, kind) = match f.state {
        FindingState::Confirmed => ("error", "fail"),
        FindingState::Unconfirmed => ("warning", "fail"),
        FindingState::Known => ("note", "fail"),
    };
    let (shown, tried) = f.reproduced;
    let mut message = format!("{} (shown {shown} of {tried} replays)", f.title);
    if !f.expected.is_empty() {
        message.push_str(&format!("; expected {}; observed {}", f.expected, f.observed));
    }
    LogResult {
        rule_index: names.iter().position(|name| *name == rule_id).unwrap_or(0),
        rule_id,
        level,
        kind,
        message: json!({ "text": line(&message) }),
        locations: vec![location(f)],
        partial_fingerprints: BTreeMap::from([("hgmSignature/v1", line(&f.signature))]),
        occurrence_count: f.count.max(1),
        properties: json!({
            "state": f.state_word(),
            "detector": f.oracle(),
            "known": f.known,
            "kernel": f.kernel,
            "replay": f.replay,
        }),
    }
}

/// The line of kernel source its report blames, else the line of the program that shows it.
fn location(f: &FindingPage) -> Value {
    let logical = json!([{ "fullyQualifiedName": line(&f.signature), "kind": "function" }]);
    let (file, at) = match f.place() {
        Some((file, at)) => (file, at.max(1)),
        None => (format!("findings/{}/program.hgm", f.id), program_line(f)),
    };
    json!({
        "physicalLocation": {
            "artifactLocation": { "uri": uri(&file) },
            "region": { "startLine": at },
        },
        "logicalLocations": logical,
    })
}

/// The line of the program's text, from 1, that an op stands in.
fn program_line(f: &FindingPage) -> u64 {
    let wanted = usize::from(f.line.unwrap_or(0));
    let op = |(_, line): &(usize, &str)| {
        let line = line.trim();
        !line.is_empty()
            && !line.starts_with(['#', '}', '{'])
            && !line.starts_with("hgm ")
            && !line.starts_with("par")
            && !line.starts_with("thread")
    };
    let found = f.program.lines().enumerate().filter(op).nth(wanted);
    found.map_or(1, |(at, _)| at as u64 + 1)
}

/// A relative path as a URI reference.
pub(crate) fn uri(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' => {
                out.push(char::from(byte));
            }
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}
