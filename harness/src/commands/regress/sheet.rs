//! What `hgm regress` asks of every program and what came of it, whoever ran them; the table and the
//! exit code.

use crate::context::Context;
use crate::exit::Exit;
use crate::term::{Tone, clean_str, columns};
use case::Program;
use std::collections::BTreeMap;

/// One program and what it must give on this kernel.
#[derive(Clone)]
pub struct Entry {
    pub name: String,
    pub program: Program,
    pub expect: BTreeMap<String, String>,
    /// A file without an expect.toml.
    pub plain: bool,
}

/// One program's result.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Row {
    name: String,
    expected: String,
    got: String,
    ok: bool,
    /// How often it was as expected, of how many runs; where it is run more than once.
    #[serde(skip_serializing_if = "Option::is_none")]
    shown: Option<[usize; 2]>,
}

impl Row {
    pub fn case(&self) -> reports::Case {
        let void = self.got.starts_with("inconclusive") || self.expected == "-";
        let (name, expected) = (self.name.clone(), self.expected.clone());
        reports::Case { name, expected, got: self.got.clone(), ok: self.ok, void }
    }
}

/// All programs, in their order; each as often in a row as it is to be run.
pub struct Sheet {
    pub entries: Vec<Entry>,
    times: usize,
    rows: Vec<Option<Row>>,
    /// Of the kernel; known once a VM was up.
    pub family: Option<String>,
}

impl Sheet {
    pub fn new(entries: &[Entry], times: usize) -> Sheet {
        let entries: Vec<Entry> =
            entries.iter().flat_map(|entry| std::iter::repeat_n(entry.clone(), times)).collect();
        Sheet { rows: vec![None; entries.len()], entries, times, family: None }
    }

    /// Programs of which something is known, and all.
    pub fn progress(&self) -> (usize, usize) {
        (self.rows.iter().flatten().count(), self.rows.len())
    }

    pub fn is_full(&self) -> bool {
        self.rows.iter().all(Option::is_some)
    }

    pub fn rows(self) -> Vec<Row> {
        let rows: Vec<Row> = self.rows.into_iter().flatten().collect();
        rows.chunks(self.times).filter_map(merged).collect()
    }

    pub fn expected(&self, at: usize) -> Option<String> {
        let expect = &self.entries[at].expect;
        let own = self.family.as_ref().and_then(|family| expect.get(family));
        own.or(expect.get("*")).cloned()
    }

    /// Nothing can be said of this one.
    pub fn void(&mut self, at: usize, why: &str) {
        let expected = self.expected(at).unwrap_or_default();
        self.set(at, expected, format!("inconclusive: {why}"), false);
    }

    /// The program was not written for this family.
    pub fn skip(&mut self, at: usize) {
        self.set(at, "-".into(), "not for this family".into(), true);
    }

    /// Nothing seen is a pass. More than one thing seen is never as expected. A plain program file
    /// has no word on deviations, so known ones are fine there.
    pub fn compare(&mut self, at: usize, got: &[String]) {
        let expected = self.expected(at).unwrap_or_default();
        let got = if got.is_empty() { "pass".to_owned() } else { got.join(" + ") };
        let known = self.entries[at].plain && got.starts_with("known:");
        let ok = got == expected || known;
        self.set(at, expected, got, ok);
    }

    /// A kernel report that comes after a pass overrides it; a failure stays.
    fn set(&mut self, at: usize, expected: String, got: String, ok: bool) {
        let name = self.entries[at].name.clone();
        let row = &mut self.rows[at];
        if row.as_ref().is_none_or(|row| row.ok) {
            tracing::debug!(name, expected, got, ok, "row");
            *row = Some(Row { name, expected, got, ok, shown: None });
        }
    }
}

/// The runs of one program. What is expected is expected of each: a bug that shows less often than
/// when it was saved has changed, too.
fn merged(runs: &[Row]) -> Option<Row> {
    let first = runs.first()?;
    if runs.len() == 1 || first.expected == "-" {
        return Some(first.clone());
    }
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    runs.iter().for_each(|run| *seen.entry(&run.got).or_default() += 1);
    // What cannot be said is no result as long as there is one.
    let wrong = runs.iter().find(|run| !run.ok && !run.got.starts_with("inconclusive"));
    let void = runs.iter().find(|run| !run.ok).filter(|_| wrong.is_none());
    let got = match (void, seen.len()) {
        (Some(void), _) => void.got.clone(),
        (None, 1) => first.got.clone(),
        (None, _) => {
            let each = |(got, times): (&&str, &usize)| format!("{got} ({times} of {})", runs.len());
            seen.iter().map(each).collect::<Vec<_>>().join(", ")
        }
    };
    let ok = runs.iter().filter(|run| run.ok).count();
    let shown = Some([ok, runs.len()]);
    Some(Row { got, ok: ok == runs.len(), shown, ..first.clone() })
}

pub fn report(rows: &[Row], kernel: &str, ctx: &Context) -> Exit {
    let failed = rows.iter().filter(|row| !row.ok).count();
    let void = rows.iter().filter(|row| row.got.starts_with("inconclusive")).count();
    let exit = match (failed, void) {
        (0, _) => Exit::Clean,
        (f, v) if f == v => Exit::Inconclusive,
        _ => Exit::Finding,
    };
    if ctx.json {
        ctx.term.json(&serde_json::json!({
            "kernel": kernel,
            "programs": rows.len(),
            "failed": failed,
            "rows": rows,
        }));
        return exit;
    }
    let table: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let mark = if row.ok { "ok" } else { "FAIL" };
            let got = if row.ok {
                row.got.clone()
            } else {
                format!("{} (expected {})", row.got, row.expected)
            };
            vec![mark.to_owned(), clean_str(&row.name), clean_str(&got)]
        })
        .collect();
    ctx.term.out(&columns(&table));
    let tone = if failed == 0 { Tone::Good } else { Tone::Bad };
    let total = format!("{} of {} as expected on {kernel}", rows.len() - failed, rows.len());
    ctx.term.line(&ctx.term.paint(tone, &total));
    exit
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(got: &str) -> Row {
        let (name, expected) = ("n".to_owned(), "known:A".to_owned());
        let ok = got == expected;
        Row { name, expected, got: got.into(), ok, shown: None }
    }

    #[test]
    fn what_does_not_show_each_time_is_not_as_expected() {
        let of = |runs: &[&str]| {
            let runs: Vec<Row> = runs.iter().map(|got| row(got)).collect();
            let row = merged(&runs).unwrap();
            (row.got, row.ok, row.shown)
        };
        let all = ["known:A", "known:A", "known:A"];
        assert_eq!(of(&all[..1]), ("known:A".into(), true, None));
        assert_eq!(of(&all), ("known:A".into(), true, Some([3, 3])));
        let seldom = ["known:A", "pass", "known:A"];
        let both = "known:A (2 of 3), pass (1 of 3)";
        assert_eq!(of(&seldom), (both.into(), false, Some([2, 3])));
        let (void, lost) = ("inconclusive: lost", ["inconclusive: lost", "known:A", "known:A"]);
        assert_eq!(of(&lost), (void.into(), false, Some([2, 3])));
        assert_eq!(merged(&[]), None);
    }

    #[test]
    fn each_program_is_run_as_often_as_asked_and_told_once() {
        let program = case::text::parse("hgm 1\n").unwrap();
        let expect = BTreeMap::from([("*".to_owned(), "pass".to_owned())]);
        let entry = |name: &str| Entry {
            name: name.into(),
            program: program.clone(),
            expect: expect.clone(),
            plain: false,
        };
        let mut sheet = Sheet::new(&[entry("a"), entry("b")], 2);
        assert_eq!(sheet.progress(), (0, 4));
        (0..4).for_each(|at| sheet.compare(at, &[]));
        // A report that comes late is of one of the runs.
        sheet.compare(3, &["warn//f".to_owned()]);
        let rows = sheet.rows();
        let told: Vec<_> = rows.iter().map(|row| (row.name.as_str(), row.ok, row.shown)).collect();
        assert_eq!(told, [("a", true, Some([2, 2])), ("b", false, Some([1, 2]))]);
    }
}
