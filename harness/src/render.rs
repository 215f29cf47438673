//! Expected against observed, as text for people: what `hgm run` prints and what stands beside a
//! finding. Pure; guest text is cleaned where it is printed, not here.

use crate::triage::Sighting;
use case::observation::{Output, Status, Word};
use case::{Observation, Profile, Program};
use oracles::judge::LineVerdict;
use oracles::known::Known;
use std::fmt::Write;

/// Name of an errno; its number where we have no name.
pub fn errno(number: u16) -> String {
    let name = format!("{:?}", nix::errno::Errno::from_raw(i32::from(number)));
    if name == "UnknownErrno" { format!("errno {number}") } else { name }
}

/// How an op ended, in one phrase.
pub fn status(status: &Status) -> String {
    match status {
        Status::Ok(value) => format!("ok {value}"),
        Status::Err(number) => errno(*number),
        Status::Signal(seen) => {
            let name = match seen.signo {
                7 => "SIGBUS".to_owned(),
                11 => "SIGSEGV".to_owned(),
                other => format!("signal {other}"),
            };
            let at = match seen.at {
                case::observation::Spot::In(place) => place.to_string(),
                case::observation::Spot::Outside(low) => format!("outside ...{low:03x}"),
            };
            format!("{name} code {} at {at}", seen.code)
        }
        Status::Timeout => "timeout".into(),
        Status::Skipped(why) => format!("skipped ({why:?})"),
    }
}

fn word(word: &Word) -> String {
    match word {
        Word::Unread => "-".into(),
        Word::Zero => "0".into(),
        Word::Tag(tag) => format!("{:#x}:{}", tag.serial, tag.page),
    }
}

/// What an op gave back beside its status; empty if nothing.
pub fn output(out: &Output) -> String {
    match out {
        Output::Nothing => String::new(),
        Output::Content(runs) => {
            let runs: Vec<String> = runs
                .iter()
                .map(|run| format!("{}x[{} {}]", run.pages, word(&run.head), word(&run.tail)))
                .collect();
            format!("content {}", runs.join(" "))
        }
        Output::Field(value) if *value == case::observation::FIELD_UNTOUCHED => {
            "field untouched".into()
        }
        Output::Field(value) => format!("field {value}"),
        Output::Nodes(nodes) => format!("nodes {nodes:?}"),
        Output::Stat { size, blocks } => format!("size {size} blocks {blocks}"),
    }
}

/// One line of a program with its result.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Row {
    pub line: u16,
    /// As in the program's text.
    pub op: String,
    pub status: String,
    pub output: String,
    /// Messages the handler threads read.
    pub events: usize,
    pub rules: Vec<String>,
    pub expected: String,
    pub observed: String,
    pub ok: bool,
}

/// Every line of a program with what it gave and what was allowed.
pub fn rows(program: &Program, seen: &Observation, verdicts: &[LineVerdict]) -> Vec<Row> {
    program
        .each_line()
        .into_iter()
        .map(|(line, proc, op)| {
            let verdict = verdicts.iter().find(|v| v.line == line);
            let got = seen.lines.get(usize::from(line));
            let text = case::text::print_op(op);
            Row {
                line,
                op: if proc.0 == 0 { text } else { format!("{proc}: {text}") },
                status: got.map(|l| status(&l.status)).unwrap_or_default(),
                output: got.map(|l| output(&l.out)).unwrap_or_default(),
                events: got.map_or(0, |l| l.events.len()),
                rules: verdict.map_or(Vec::new(), |v| {
                    v.rules.iter().map(|rule| (*rule).to_owned()).collect()
                }),
                expected: verdict.map(|v| v.expected.clone()).unwrap_or_default(),
                observed: verdict.map(|v| v.observed.clone()).unwrap_or_default(),
                ok: verdict.is_none_or(|v| v.ok),
            }
        })
        .collect()
}

/// Rows as text. Only lines that broke a rule say what was allowed, unless `all`.
pub fn table(rows: &[Row], all: bool) -> String {
    let mut out = String::new();
    for row in rows {
        let mark = if row.ok { ' ' } else { '!' };
        let _ = write!(out, "{mark} {:>3}  {:<56}  {}", row.line, row.op, row.status);
        if !row.output.is_empty() {
            let _ = write!(out, "  {}", row.output);
        }
        if row.events > 0 {
            let _ = write!(out, "  ({} handler messages)", row.events);
        }
        out.push('\n');
        if !row.ok || (all && !row.expected.is_empty()) {
            let _ = writeln!(out, "         expected  {}", row.expected);
            if !row.ok {
                let _ = writeln!(out, "         observed  {}", row.observed);
            }
            if !row.ok && !row.rules.is_empty() {
                let _ = writeln!(out, "         rules     {}", row.rules.join(", "));
            }
        }
    }
    out
}

/// The text beside a finding: the rule, both sides, then the whole program with its results.
pub fn compared(
    program: &Program,
    sighting: &Sighting,
    profile: Option<&Profile>,
    known: &Known,
) -> String {
    let mut out = format!("{}\nsignature  {}\n", sighting.title, sighting.signature);
    if let Some(violation) = &sighting.violation {
        let _ = write!(
            out,
            "rule       {}\nline       {} ({})\nexpected   {}\nobserved   {}\n",
            violation.rule, violation.line, violation.op, violation.expected, violation.observed
        );
    }
    out.push('\n');
    match (&sighting.observation, profile) {
        (Some(seen), Some(profile)) => {
            let (verdicts, _) = oracles::judge::trace(program, seen, profile, known);
            out.push_str(&table(&rows(program, seen, &verdicts), true));
        }
        _ => out.push_str(&case::text::print(program)),
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_read_as_people_write_them() {
        assert_eq!(errno(14), "EFAULT");
        assert_eq!(errno(4000), "errno 4000");
        assert_eq!(status(&Status::Ok(0)), "ok 0");
        assert_eq!(status(&Status::Err(22)), "EINVAL");
        assert_eq!(output(&Output::Field(case::observation::FIELD_UNTOUCHED)), "field untouched");
    }
    #[test]
    fn what_is_written_here_is_what_reports_read_back() {
        let row = |line, ok: bool| Row {
            line,
            op: format!(
                "mmap at=r{line} len=2M page=2M share=shared from=f0 populate=yes noreserve=yes"
            ),
            status: "EINVAL".into(),
            output: "field 7".into(),
            events: usize::from(!ok) * 3,
            rules: vec!["M-001".into(), "M-002".into()],
            expected: "ok 0 [M-001: mmap gives what it was asked for]".into(),
            observed: if ok { String::new() } else { "EINVAL".into() },
            ok,
        };
        let rows = [row(0, true), row(9, false), row(123, true)];
        let read = reports::Compared::parse(&format!("title\n\n{}", table(&rows, true))).rows;
        assert_eq!(read.len(), rows.len());
        for (read, row) in read.iter().zip(&rows) {
            let told = (read.line, &read.op, &read.expected, read.ok);
            assert_eq!(told, (u32::from(row.line), &row.op, &row.expected, row.ok));
            assert!(read.result.starts_with("EINVAL  field 7"), "{}", read.result);
        }
        assert_eq!((read[1].observed.as_str(), read[1].rules.as_str()), ("EINVAL", "M-001, M-002"));
    }
}
