//! JUnit XML as Jenkins, GitLab and others read it: a suite per detector, a case per finding, or one
//! that passes where there is none; the line that replays it in `system-out`. Regressions: a case per
//! program. Seven elements need no crate.

use crate::Tone;
use crate::escape::{line, pictures};
use crate::run::{FindingPage, Run, source_word};
use crate::words::count;
use case::{FindingState, Source};
use std::fmt::Write;

/// The result of one saved program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    pub name: String,
    pub expected: String,
    pub got: String,
    pub ok: bool,
    /// Nothing can be said of it: no result, or nothing expected on this kernel.
    pub void: bool,
}

/// How a test case ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Passed,
    Failure,
    Error,
    Skipped,
}

/// One `testcase`.
struct Test {
    name: String,
    end: End,
    /// Attributes of the element that says why it did not pass.
    kind: String,
    message: String,
    /// Text of that element.
    text: String,
    out: String,
}

impl Test {
    fn passed(name: impl Into<String>) -> Test {
        let empty = String::new;
        Test {
            name: name.into(),
            end: End::Passed,
            kind: empty(),
            message: empty(),
            text: empty(),
            out: empty(),
        }
    }
}

/// One `testsuite`; the class of its cases is `hgm.` and its name.
struct Suite {
    name: &'static str,
    tests: Vec<Test>,
}

/// A run.
pub fn junit(run: &Run) -> String {
    let mut suites = vec![Suite { name: "campaign", tests: vec![evidence(run)] }];
    for source in [Source::Oracle, Source::Console, Source::Hang] {
        suites.push(detector(run, source));
    }
    if !run.canaries.is_empty() {
        suites.push(Suite { name: "canaries", tests: canaries(run) });
    }
    document(&format!("hgm {}", run.kernel), Some(run), &suites)
}

/// Saved programs against a kernel.
pub fn regress(kernel: &str, cases: &[Case]) -> String {
    let test = |case: &Case| {
        let end = match (case.ok, case.void) {
            (true, true) => End::Skipped,
            (true, false) => End::Passed,
            (false, true) => End::Error,
            (false, false) => End::Failure,
        };
        let message = format!("got {}, expected {}", case.got, case.expected);
        let kind = "unexpected".to_owned();
        Test { end, kind, message, ..Test::passed(case.name.as_str()) }
    };
    let suite = Suite { name: "regress", tests: cases.iter().map(test).collect() };
    document(&format!("hgm regress {kernel}"), None, &[suite])
}

fn evidence(run: &Run) -> Test {
    let end = match run.verdict.tone {
        Tone::Good => End::Passed,
        // Findings fail in the suites of their detectors.
        Tone::Bad if run.verdict.word == "finding" => End::Passed,
        Tone::Bad | Tone::Warn | Tone::Calm => End::Error,
    };
    Test {
        end,
        kind: run.verdict.word.clone(),
        message: run.verdict.headline.clone(),
        out: run.verdict.evidence.clone(),
        ..Test::passed("enough evidence")
    }
}

fn detector(run: &Run, source: Source) -> Suite {
    let name = source_word(source);
    let found: Vec<&FindingPage> = run.findings.iter().filter(|f| f.source == source).collect();
    let mut tests: Vec<Test> = found.iter().map(|f| of_finding(f)).collect();
    if !found.iter().any(|f| f.state == FindingState::Confirmed) {
        tests.push(Test::passed(format!("no new finding of the {name} detector")));
    }
    Suite { name, tests }
}

fn of_finding(f: &FindingPage) -> Test {
    let (shown, tried) = f.reproduced;
    let message = match &f.known {
        Some(id) => format!("known deviation {id}: {}", f.title),
        None => format!("{} (shown {shown} of {tried} replays)", f.title),
    };
    let mut text = String::new();
    if !f.rule.is_empty() {
        let at = f.line.map(|n| format!(" at line {n}")).unwrap_or_default();
        text = format!("rule {}{at}\nexpected: {}\nobserved: {}\n", f.rule, f.expected, f.observed);
    }
    text.push_str(&f.report);
    Test {
        end: match f.state {
            FindingState::Confirmed => End::Failure,
            // Neither a failure nor a pass, and a reader has to see why.
            FindingState::Unconfirmed | FindingState::Known => End::Skipped,
        },
        kind: f.state_word().to_owned(),
        message,
        text,
        out: format!("{}\n\n{}", f.replay, f.program),
        ..Test::passed(f.signature.as_str())
    }
}

fn canaries(run: &Run) -> Vec<Test> {
    let test = |(class, (found, missed)): (&String, &(u32, u32))| {
        let planted = count(u64::from(found + missed), "planted fault");
        Test {
            end: if *missed == 0 { End::Passed } else { End::Failure },
            kind: "canary-missed".into(),
            message: format!("missed {missed} of {planted}"),
            ..Test::passed(class.as_str())
        }
    };
    run.canaries.iter().map(test).collect()
}

fn document(name: &str, run: Option<&Run>, suites: &[Suite]) -> String {
    let all = |end: Option<End>| suites.iter().map(|s| ends(s, end)).sum::<usize>();
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = write!(
        out,
        "<testsuites name=\"{}\" tests=\"{}\" failures=\"{}\" errors=\"{}\"",
        attribute(name),
        all(None),
        all(Some(End::Failure)),
        all(Some(End::Error))
    );
    if let Some(run) = run {
        let _ = write!(out, " time=\"{:.3}\"", run.figures.seconds.clamp(0.0, 1e9));
    }
    out.push_str(">\n");
    for suite in suites {
        put(&mut out, suite, run);
    }
    out.push_str("</testsuites>\n");
    out
}

fn ends(suite: &Suite, end: Option<End>) -> usize {
    suite.tests.iter().filter(|test| end.is_none_or(|end| test.end == end)).count()
}

fn put(out: &mut String, suite: &Suite, run: Option<&Run>) {
    let _ = write!(
        out,
        "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\"",
        suite.name,
        suite.tests.len(),
        ends(suite, Some(End::Failure)),
        ends(suite, Some(End::Error)),
        ends(suite, Some(End::Skipped))
    );
    let started = run.and_then(|run| run.started.parse::<jiff::Timestamp>().ok());
    if let Some(time) = started {
        let _ = write!(out, " timestamp=\"{}\"", time.strftime("%Y-%m-%dT%H:%M:%S"));
    }
    out.push_str(">\n");
    for test in &suite.tests {
        let (name, class) = (attribute(&test.name), suite.name);
        let _ = write!(out, "    <testcase name=\"{name}\" classname=\"hgm.{class}\"");
        let why = match test.end {
            End::Passed => None,
            End::Failure => Some("failure"),
            End::Error => Some("error"),
            End::Skipped => Some("skipped"),
        };
        if why.is_none() && test.out.is_empty() {
            out.push_str("/>\n");
            continue;
        }
        out.push_str(">\n");
        if let Some(element) = why {
            let _ = write!(out, "      <{element} message=\"{}\"", attribute(&test.message));
            if test.end != End::Skipped {
                let _ = write!(out, " type=\"{}\"", attribute(&test.kind));
            }
            let _ = writeln!(out, ">{}</{element}>", content(&test.text));
        }
        if !test.out.is_empty() {
            let _ = writeln!(out, "      <system-out>{}</system-out>", content(&test.out));
        }
        out.push_str("    </testcase>\n");
    }
    out.push_str("  </testsuite>\n");
}

/// Text of an element. Control characters are pictures, so all of it is legal in XML 1.0.
fn content(text: &str) -> String {
    pictures(text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Value of an attribute: on one line, since readers turn newlines into spaces anyway.
fn attribute(text: &str) -> String {
    content(&line(text)).replace('"', "&quot;")
}
