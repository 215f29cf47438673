//! What `hgm regress` asks of every program and what came of it, whoever ran them; the table and the
//! exit code.

use crate::context::Context;
use crate::exit::Exit;
use crate::term::{Tone, clean_str, columns};
use case::Program;
use std::collections::BTreeMap;

/// One program and what it must give on this kernel.
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
}

impl Row {
    pub fn case(&self) -> reports::Case {
        let void = self.got.starts_with("inconclusive") || self.expected == "-";
        let (name, expected) = (self.name.clone(), self.expected.clone());
        reports::Case { name, expected, got: self.got.clone(), ok: self.ok, void }
    }
}

/// All programs, in their order.
pub struct Sheet {
    pub entries: Vec<Entry>,
    rows: Vec<Option<Row>>,
    /// Of the kernel; known once a VM was up.
    pub family: Option<String>,
}

impl Sheet {
    pub fn new(entries: Vec<Entry>) -> Sheet {
        Sheet { rows: vec![None; entries.len()], entries, family: None }
    }

    /// Programs of which something is known, and all.
    pub fn progress(&self) -> (usize, usize) {
        (self.rows.iter().flatten().count(), self.rows.len())
    }

    pub fn is_full(&self) -> bool {
        self.rows.iter().all(Option::is_some)
    }

    pub fn rows(self) -> Vec<Row> {
        self.rows.into_iter().flatten().collect()
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
            *row = Some(Row { name, expected, got, ok });
        }
    }
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
