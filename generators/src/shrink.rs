//! Making a program smaller while it still shows the same: a list of edits, largest first, walked
//! until a whole round brings nothing. Pure: which program shows what is told by the caller, who may
//! have several tries out at a time.

use case::check::{check, refs};
use case::limits::PAGE;
use case::text::{print, print_op};
use case::value::Value;
use case::*;
use std::collections::{BTreeMap, BTreeSet};

/// A smaller program that may show the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Try {
    pub id: u64,
    pub program: Program,
    /// What was done to the smallest program so far, for the log.
    pub edit: String,
}

/// What is tried, in the order of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    /// Runs of so many steps are left out, from the end on.
    Steps(usize),
    /// Objects go, with all lines that name them.
    Objects,
    /// Blocks lose a thread or an op, or become single lines.
    Blocks,
    /// Processes become the first one, fields their default, sets and numbers smaller.
    Fields,
    /// Objects are numbered in the order they appear.
    Names,
}

/// See the module's head.
#[derive(Debug)]
pub struct Shrinker {
    best: Program,
    pass: Pass,
    /// The next edit of the pass.
    at: usize,
    /// The round found something.
    gained: bool,
    out: BTreeMap<u64, (Program, usize)>,
    tried: BTreeSet<String>,
    next_id: u64,
}

impl Shrinker {
    /// Starts from a program that shows it.
    pub fn new(program: &Program) -> Self {
        let mut best = Program::of(program.steps.clone());
        best.steps.iter_mut().for_each(|step| step.notes.clear());
        let half = best.steps.len().div_ceil(2).max(1);
        let tried = BTreeSet::from([print(&best)]);
        let pass = Pass::Steps(half);
        Shrinker { best, pass, at: 0, gained: false, out: BTreeMap::new(), tried, next_id: 0 }
    }

    /// The smallest program that showed it.
    pub fn best(&self) -> &Program {
        &self.best
    }

    /// Programs handed out and not told.
    pub fn outstanding(&self) -> usize {
        self.out.len()
    }

    /// The next try; `None` if one that is out must be told first, or, with none out, at the end.
    pub fn ask(&mut self) -> Option<Try> {
        loop {
            let edits = edits(&self.best, self.pass);
            while let Some((edit, program)) = edits.get(self.at) {
                self.at += 1;
                let fits = check(program).is_ok() && program.lines() > 0;
                if fits && self.tried.insert(print(program)) {
                    let id = self.next_id;
                    self.next_id += 1;
                    self.out.insert(id, (program.clone(), self.at - 1));
                    return Some(Try { id, program: program.clone(), edit: edit.clone() });
                }
            }
            if !self.out.is_empty() || !self.turn() {
                return None;
            }
        }
    }

    /// The next pass; false after a round that brought nothing.
    fn turn(&mut self) -> bool {
        self.at = 0;
        self.pass = match self.pass {
            Pass::Steps(n) if n > 1 => Pass::Steps(n / 2),
            Pass::Steps(_) => Pass::Objects,
            Pass::Objects => Pass::Blocks,
            Pass::Blocks => Pass::Fields,
            Pass::Fields => Pass::Names,
            Pass::Names if self.gained => {
                self.gained = false;
                Pass::Steps(2)
            }
            Pass::Names => return false,
        };
        true
    }

    /// Takes what a try gave. True if it is the smallest program now.
    pub fn tell(&mut self, id: u64, shows: bool) -> bool {
        let Some((program, at)) = self.out.remove(&id) else { return false };
        // Another try may have won meanwhile; this one was made from an older program.
        let smaller = size(&program) < size(&self.best);
        let renamed = self.pass == Pass::Names && size(&program) == size(&self.best);
        if !shows || !(smaller || renamed) {
            return false;
        }
        self.gained |= smaller;
        self.best = program;
        self.at = self.at.min(at);
        true
    }
}

/// What makes a program small: lines, threads, words, and the numbers in them.
fn size(program: &Program) -> (usize, usize, usize, u64) {
    let threads = program.steps.iter().map(|step| match &step.act {
        Act::One(_) => 0,
        Act::Par(threads) => threads.len(),
    });
    let (mut words, mut numbers) = (0, 0u64);
    for (_, proc, op) in program.each_line() {
        words += usize::from(proc != ProcId(0));
        for (_, value) in fields(op) {
            words += value.split(',').count();
            numbers = numbers.saturating_add(magnitude(&value));
        }
    }
    (program.lines(), threads.sum(), words, numbers)
}

fn magnitude(value: &str) -> u64 {
    let bytes = Bytes::parse(value).map(|n| n.0);
    bytes.or_else(|| Place::parse(value).map(|place| place.off)).unwrap_or(0)
}

/// The fields of an op that are written out, by index into its table, with their words.
fn fields(op: &Op) -> Vec<(usize, String)> {
    let text = print_op(op);
    let spec = op.kind().spec();
    let words = text.split(' ').filter_map(|word| word.split_once('='));
    words
        .filter_map(|(name, value)| {
            let index = spec.fields.iter().position(|field| field.name == name)?;
            Some((index, value.to_owned()))
        })
        .collect()
}

fn edits(best: &Program, pass: Pass) -> Vec<(String, Program)> {
    match pass {
        Pass::Steps(n) => without_steps(best, n),
        Pass::Objects => without_objects(best),
        Pass::Blocks => smaller_blocks(best),
        Pass::Fields => smaller_fields(best),
        Pass::Names => vec![("objects numbered anew".into(), renumbered(best))],
    }
}

fn without_steps(best: &Program, n: usize) -> Vec<(String, Program)> {
    let len = best.steps.len();
    let cut = |nth: usize| {
        let end = len - nth * n;
        let start = end.saturating_sub(n);
        let mut program = best.clone();
        program.steps.drain(start..end);
        (format!("without steps {start} to {}", end - 1), program)
    };
    (0..len.div_ceil(n)).map(cut).collect()
}

/// A child and its exit, a userfaultfd and what is done with it: one cannot go without the other.
fn without_objects(best: &Program) -> Vec<(String, Program)> {
    let makers = best.each_line().into_iter().filter(|(_, _, op)| op.kind().spec().makes);
    let without = |(line, _, maker): (u16, ProcId, &Op)| {
        let names = |proc: ProcId, op: &Op| {
            let named = refs(op);
            match maker {
                Op::Fork { child } => proc == *child || named.procs.contains(child),
                Op::Uffd { uffd, .. } => named.uffds.contains(uffd),
                Op::Pin { pin, .. } => named.pins.contains(pin),
                Op::Memfd { file, .. } | Op::Hugetlbfs { file, .. } => {
                    named.files.iter().any(|(other, ..)| other == file)
                }
                _ => false,
            }
        };
        let mut program = best.clone();
        for step in &mut program.steps {
            if let Act::Par(threads) = &mut step.act {
                threads.iter_mut().for_each(|ops| ops.retain(|op| !names(ProcId(0), op)));
                threads.retain(|ops| !ops.is_empty());
            }
        }
        program.steps.retain(|step| match &step.act {
            Act::One(one) => one.op != *maker && !names(one.proc, &one.op),
            Act::Par(threads) => threads.len() > 1,
        });
        (format!("without what line {line} makes"), program)
    };
    makers.map(without).collect()
}

fn smaller_blocks(best: &Program) -> Vec<(String, Program)> {
    let mut all = Vec::new();
    for (at, step) in best.steps.iter().enumerate() {
        let Act::Par(threads) = &step.act else { continue };
        let mut with = |what: String, threads: Vec<Vec<Op>>| {
            let lines = threads.into_iter().filter(|ops| !ops.is_empty()).collect::<Vec<_>>();
            let steps = match lines.len() {
                0 | 1 => lines.concat().into_iter().map(|op| Step::one(ProcId(0), op)).collect(),
                _ => vec![Step::par(lines)],
            };
            let mut program = best.clone();
            program.steps.splice(at..=at, steps);
            all.push((what, program));
        };
        with(format!("step {at}: one thread after the other"), vec![threads.concat()]);
        for (nth, thread) in threads.iter().enumerate() {
            let mut fewer = threads.clone();
            fewer.remove(nth);
            with(format!("step {at}: without thread {nth}"), fewer);
            for op in 0..thread.len() {
                let mut fewer = threads.clone();
                fewer[nth].remove(op);
                with(format!("step {at}: without op {op} of thread {nth}"), fewer);
            }
        }
    }
    all
}

/// One op of a program, to be replaced.
fn with_op(best: &Program, line: u16, change: impl FnOnce(&mut ProcId, &mut Op)) -> Program {
    let mut program = best.clone();
    let mut at = 0;
    let mut nowhere = ProcId(0);
    for step in &mut program.steps {
        match &mut step.act {
            Act::One(one) if at == line => {
                change(&mut one.proc, &mut one.op);
                return program;
            }
            Act::One(_) => at += 1,
            Act::Par(threads) => {
                for op in threads.iter_mut().flatten() {
                    if at == line {
                        change(&mut nowhere, op);
                        return program;
                    }
                    at += 1;
                }
            }
        }
    }
    program
}

fn smaller_fields(best: &Program) -> Vec<(String, Program)> {
    let mut all = Vec::new();
    for (line, proc, op) in best.each_line() {
        if proc != ProcId(0) {
            let program = with_op(best, line, |proc, _| *proc = ProcId(0));
            all.push((format!("line {line} in p0"), program));
        }
        let spec = op.kind().spec();
        for (index, value) in fields(op) {
            let field = &spec.fields[index];
            let words = smaller_words(&value, field.optional);
            for word in words {
                let Some(smaller) = crate::words::with_field(op, field, &word) else { continue };
                let what = format!("line {line}: {}={word}", field.name);
                all.push((what, with_op(best, line, |_, op| *op = smaller)));
            }
        }
    }
    all
}

/// Simpler words for a field. An empty one leaves the field out.
fn smaller_words(value: &str, optional: bool) -> Vec<String> {
    let mut words = Vec::new();
    if optional {
        words.push(String::new());
    }
    let items: Vec<&str> = value.split(',').collect();
    if items.len() > 1 {
        for nth in 0..items.len() {
            let mut fewer = items.clone();
            fewer.remove(nth);
            words.push(fewer.join(","));
        }
    }
    let printed = |n: u64| {
        let mut out = String::new();
        Bytes(n).print(&mut out);
        out
    };
    if let Some(Bytes(n)) = Bytes::parse(value) {
        let smaller = [PAGE, 2 * PAGE, 2 << 20, 4 << 20, n / 2];
        let whole = |m: &u64| (PAGE..n).contains(m);
        words.extend(smaller.into_iter().filter(whole).map(printed));
    } else if let Some(place) = Place::parse(value).filter(|place| place.off > 0) {
        let offs = [0, PAGE, 2 << 20, place.off - place.off % (2 << 20)];
        for off in offs.into_iter().filter(|off| *off < place.off) {
            let mut out = String::new();
            Place { off, ..place }.print(&mut out);
            words.push(out);
        }
    }
    words
}

/// The same program with files, regions, userfaultfds, children and pins numbered in the order
/// they appear.
fn renumbered(best: &Program) -> Program {
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    let mut counts: BTreeMap<char, usize> = BTreeMap::from([('p', 1)]);
    names.insert("p0".into(), "p0".into());
    let mut name = |id: &str| {
        let letter = id.chars().next().unwrap_or('r');
        names
            .entry(id.to_owned())
            .or_insert_with(|| {
                let count = counts.entry(letter).or_default();
                *count += 1;
                format!("{letter}{}", *count - 1)
            })
            .clone()
    };
    let text: Vec<String> = print(best).lines().map(|line| rename(line, &mut name)).collect();
    case::text::parse(&format!("{}\n", text.join("\n"))).unwrap_or_else(|_| best.clone())
}

/// A line with every object's id replaced: at its start, before ` = `, and after a `=`.
fn rename(line: &str, name: &mut dyn FnMut(&str) -> String) -> String {
    let is_id = |word: &str| {
        let mut chars = word.chars();
        let letter = chars.next().is_some_and(|c| "frupg".contains(c));
        letter && !chars.as_str().is_empty() && chars.all(|c| c.is_ascii_digit())
    };
    let mut words = Vec::new();
    for word in line.split(' ') {
        let (head, tail) = match word.split_once('=') {
            Some((field, value)) => (format!("{field}="), value),
            None => (String::new(), word),
        };
        let end = tail.find(['+', ':']).unwrap_or(tail.len());
        let (id, rest) = tail.split_at(end);
        if is_id(id) {
            words.push(format!("{head}{}{rest}", name(id)));
        } else {
            words.push(word.to_owned());
        }
    }
    words.join(" ")
}
