//! What a run has executed so far: counts per block, what counts as feedback, and the tables made
//! of it. A block counts as executed or not; an idle guest's blocks are never news. No I/O.

use super::{Focus, Text, UNKNOWN};
use crate::pool::Counter;
use case::cover::Ranges;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The books of one run.
#[derive(Clone, Debug)]
pub struct Book {
    kernel: String,
    counter: Counter,
    text: Text,
    /// The function each cell is of.
    owners: Vec<Option<u32>>,
    /// Programs that executed each cell.
    hits: Vec<u32>,
    /// Cells an idle guest executes.
    idle: Vec<bool>,
    focus: Option<Focus>,
    /// Distinct blocks inside the focus.
    reached: usize,
}

/// Coverage in figures, inside the focus if there is one. Field names are a contract.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// Who counted.
    pub source: Counter,
    /// Distinct blocks executed by programs or by the idle guest.
    pub blocks: usize,
    /// Of these, blocks only programs executed.
    pub blocks_of_programs: usize,
    pub functions_reached: usize,
    pub functions_known: usize,
    /// Words of `--focus`; empty: everything counts.
    pub focus: Vec<String>,
    /// With a focus: the functions in it that programs executed, and the others. What an idle
    /// guest executes is no program's doing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub focus_reached: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub focus_not_reached: Vec<String>,
}

/// What is kept of a run's coverage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub kernel: String,
    pub source: Counter,
    pub focus: Vec<String>,
    pub files: Vec<FileRow>,
    /// What the cells below are numbered by.
    ranges: Ranges,
    /// (cell, programs that executed it; 0: only the idle guest). For resuming.
    cells: Vec<(u32, u32)>,
}

/// One source file of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRow {
    /// Path, or "unknown".
    pub file: String,
    /// Distinct blocks executed.
    pub blocks: usize,
    /// Names, sorted.
    pub reached: Vec<String>,
    pub not_reached: Vec<String>,
}

impl Book {
    pub fn new(kernel: &str, counter: Counter, text: Text, focus: Option<Focus>) -> Book {
        let (owners, cells) = (text.owners(), text.ranges.cells() as usize);
        Book {
            kernel: kernel.to_owned(),
            counter,
            text,
            owners,
            hits: vec![0; cells],
            idle: vec![false; cells],
            focus,
            reached: 0,
        }
    }

    /// Goes on with the counts of an earlier part of the run. A report of another kernel, or of
    /// another way to find its text, is left alone.
    pub fn resume(&mut self, report: &Report) {
        if report.kernel != self.kernel || report.ranges != self.text.ranges {
            return;
        }
        for (cell, hits) in &report.cells {
            let at = *cell as usize;
            if at < self.hits.len() {
                self.reach(at);
                self.hits[at] = self.hits[at].saturating_add(*hits);
                self.idle[at] |= *hits == 0;
            }
        }
    }

    /// Cells there are.
    pub fn cells(&self) -> u32 {
        self.text.ranges.cells()
    }

    /// What an idle guest executes is no program's doing from now on.
    pub fn idle(&mut self, cells: &[u32]) {
        for cell in cells {
            let at = *cell as usize;
            if at < self.idle.len() {
                self.reach(at);
                self.idle[at] = true;
            }
        }
    }

    /// Counts a program; gives the cells of it that count as feedback.
    pub fn program(&mut self, cells: &[u32]) -> Vec<u32> {
        let mut feedback = Vec::with_capacity(cells.len());
        for cell in cells {
            let at = *cell as usize;
            if at >= self.hits.len() {
                continue;
            }
            self.reach(at);
            self.hits[at] = self.hits[at].saturating_add(1);
            if !self.idle[at] && self.in_focus(at) {
                feedback.push(*cell);
            }
        }
        feedback
    }

    /// To be called before a cell is counted.
    fn reach(&mut self, cell: usize) {
        let first = self.hits[cell] == 0 && !self.idle[cell];
        self.reached += usize::from(first && self.in_focus(cell));
    }

    fn in_focus(&self, cell: usize) -> bool {
        let Some(focus) = &self.focus else { return true };
        self.owners[cell].is_some_and(|owner| focus.functions.contains(&owner))
    }

    /// Blocks executed in each function.
    fn per_function(&self) -> Vec<usize> {
        let mut blocks = vec![0; self.text.functions.len()];
        for (cell, owner) in self.owners.iter().enumerate() {
            if let Some(owner) = owner
                && (self.hits[cell] > 0 || self.idle[cell])
            {
                blocks[*owner as usize] += 1;
            }
        }
        blocks
    }

    /// Distinct blocks inside the focus.
    pub fn blocks(&self) -> usize {
        self.reached
    }

    /// Names of the functions in focus: those programs executed, and the others.
    fn focused(&self) -> (Vec<String>, Vec<String>) {
        let Some(focus) = &self.focus else { return (Vec::new(), Vec::new()) };
        let mut ran = vec![false; self.text.functions.len()];
        for (cell, owner) in self.owners.iter().enumerate() {
            if let Some(owner) = owner {
                ran[*owner as usize] |= self.hits[cell] > 0;
            }
        }
        let (reached, not): (Vec<u32>, Vec<u32>) =
            focus.functions.iter().partition(|at| ran[**at as usize]);
        let name = |at: &u32| self.text.functions[*at as usize].name.clone();
        (reached.iter().map(name).collect(), not.iter().map(name).collect())
    }

    pub fn figures(&self) -> Figures {
        let own = |at: &usize| self.in_focus(*at) && self.hits[*at] > 0 && !self.idle[*at];
        let inside = |index: usize| {
            self.focus.as_ref().is_none_or(|focus| focus.functions.contains(&(index as u32)))
        };
        let functions = self.per_function();
        let functions: Vec<usize> =
            functions.iter().enumerate().filter(|(at, _)| inside(*at)).map(|(_, n)| *n).collect();
        let (focus_reached, focus_not_reached) = self.focused();
        Figures {
            source: self.counter,
            blocks: self.reached,
            blocks_of_programs: (0..self.hits.len()).filter(own).count(),
            functions_reached: functions.iter().filter(|blocks| **blocks > 0).count(),
            functions_known: functions.len(),
            focus: self.words(),
            focus_reached,
            focus_not_reached,
        }
    }

    fn words(&self) -> Vec<String> {
        self.focus.as_ref().map(|focus| focus.words.clone()).unwrap_or_default()
    }

    /// Everything, focus or not.
    pub fn report(&self) -> Report {
        let mut files: BTreeMap<&str, FileRow> = BTreeMap::new();
        for (function, blocks) in self.text.functions.iter().zip(self.per_function()) {
            let row = files.entry(&function.file).or_insert_with(|| FileRow {
                file: function.file.clone(),
                blocks: 0,
                reached: Vec::new(),
                not_reached: Vec::new(),
            });
            row.blocks += blocks;
            let list = if blocks > 0 { &mut row.reached } else { &mut row.not_reached };
            list.push(function.name.clone());
        }
        let known = self.hits.iter().zip(&self.idle).enumerate();
        let cells = known
            .filter(|(_, (hits, idle))| **hits > 0 || **idle)
            .flat_map(|(cell, (hits, idle))| {
                let cell = cell as u32;
                idle.then_some((cell, 0)).into_iter().chain((*hits > 0).then_some((cell, *hits)))
            })
            .collect();
        Report {
            kernel: self.kernel.clone(),
            source: self.counter,
            focus: self.words(),
            files: files.into_values().collect(),
            ranges: self.text.ranges.clone(),
            cells,
        }
    }
}

impl Report {
    /// Files of mm/ of which the smallest part of the functions is reached, the worst first; of two
    /// alike the larger file.
    pub fn least(&self, count: usize) -> Vec<&FileRow> {
        let mut rows: Vec<&FileRow> = self.files.iter().filter(|r| r.file != UNKNOWN).collect();
        rows.retain(|row| row.file.starts_with("mm/"));
        rows.sort_by_key(|row| {
            let all = row.reached.len() + row.not_reached.len();
            (row.reached.len() * 10_000 / all.max(1), std::cmp::Reverse(all))
        });
        rows.truncate(count);
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coverage::Function;
    use case::cover::Ranges;
    use std::collections::BTreeSet;

    /// Three functions of two cells each; the last two are in one file.
    fn text() -> Text {
        let function = |(n, file): (u64, &str)| Function {
            name: format!("f{n}"),
            file: file.into(),
            parts: vec![(0x1000 + n * 16, 0x1010 + n * 16)],
        };
        let files = [(0, "mm/a.c"), (1, "mm/b.c"), (2, "mm/b.c")];
        Text {
            ranges: Ranges::of(vec![(0x1000, 0x1030)]).unwrap(),
            functions: files.into_iter().map(function).collect(),
        }
    }

    fn book(focus: Option<Focus>) -> Book {
        Book::new("k", Counter::Plugin, text(), focus)
    }

    #[test]
    fn idle_cells_are_reached_but_never_news() {
        let mut book = book(None);
        book.idle(&[0, 99]);
        assert_eq!(book.program(&[0, 2, 4, 77]), [2, 4]);
        assert!(book.program(&[0]).is_empty());
        let figures = book.figures();
        assert_eq!((figures.blocks, figures.blocks_of_programs), (3, 2));
        assert_eq!((figures.functions_reached, figures.functions_known), (3, 3));
    }

    #[test]
    fn a_focus_narrows_feedback_and_figures_but_not_the_report() {
        let focus =
            Focus { words: vec!["f2".into()], functions: BTreeSet::from([2]), notes: Vec::new() };
        let mut book = book(Some(focus));
        assert_eq!(book.program(&[0, 2, 3, 5]), [5]);
        let figures = book.figures();
        assert_eq!((figures.blocks, figures.functions_reached, figures.functions_known), (1, 1, 1));
        assert_eq!((figures.focus_reached, figures.focus_not_reached), (vec!["f2".into()], vec![]));
        let report = book.report();
        assert_eq!(report.files.len(), 2);
        assert_eq!((report.files[1].reached.len(), report.files[1].blocks), (2, 3));
    }

    #[test]
    fn what_only_an_idle_guest_executes_is_not_reached_by_programs() {
        let functions = BTreeSet::from([0, 1, 2]);
        let mut book = book(Some(Focus { words: vec!["x".into()], functions, notes: Vec::new() }));
        book.idle(&[0, 2]);
        book.program(&[2]);
        let figures = book.figures();
        assert_eq!(figures.focus_reached, ["f1"]);
        assert_eq!(figures.focus_not_reached, ["f0", "f2"]);
    }

    #[test]
    fn a_run_goes_on_where_it_was() {
        let mut first = book(None);
        first.idle(&[1]);
        first.program(&[1, 3]);
        let kept: Report =
            serde_json::from_str(&serde_json::to_string(&first.report()).unwrap()).unwrap();
        let mut second = book(None);
        second.resume(&kept);
        assert_eq!(second.report(), first.report());
        assert_eq!(second.program(&[1, 3]), [3]);
        let mut other = Book::new("other", Counter::Plugin, text(), None);
        other.resume(&kept);
        assert_eq!(other.figures().blocks, 0);
    }

    #[test]
    fn the_least_reached_file_comes_first() {
        let mut book = book(None);
        book.program(&[0, 2]);
        let report = book.report();
        let least: Vec<&str> = report.least(9).iter().map(|row| row.file.as_str()).collect();
        assert_eq!(least, ["mm/b.c", "mm/a.c"]);
        assert_eq!(report.least(1).len(), 1);
        assert_eq!(report.files[1].not_reached, ["f2"]);
    }
}
