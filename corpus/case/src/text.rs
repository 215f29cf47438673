//! The text form of programs: one op a line, diffs well in git, round-trips exactly.
//!
//! ```text
//! hgm 1
//! # what the program is about
//!
//! # a note on the next step
//! f0 = memfd page=2M
//! p1: write at=r0 len=4K
//! par {
//!   t0: read at=r0 len=4K
//!   t1: madvise at=r0 len=2M advice=dontneed
//! }
//! ```
//!
//! Whether a program makes sense is `check`'s business; here only whether it can be read.

use crate::limits::{LINES_MAX, PAR_OPS_MAX, PAR_THREADS_MAX, STEPS_MAX, TEXT_BYTES_MAX};
use crate::op::{FieldError, Op, OpKind, OpSpec};
use crate::program::{Act, Line, Program, Step};
use crate::value::{ProcId, Value};

/// First line of every program.
pub const HEAD: &str = "hgm 1";

/// A place in a text that is not a program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: found {found}, expected {expected}{}", help_line(help))]
pub struct ParseError {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// What stands there, quoted.
    pub found: String,
    pub expected: String,
    /// What to do about it; may be empty.
    pub help: String,
}

fn help_line(help: &str) -> String {
    if help.is_empty() { String::new() } else { format!("\nhelp: {help}") }
}

/// One word of a line and its column.
#[derive(Clone, Copy, Debug)]
struct Word<'a> {
    text: &'a str,
    column: usize,
}

/// A line cut into words, with its number and the column behind its end.
struct Row<'a> {
    number: usize,
    end: usize,
    words: Vec<Word<'a>>,
}

impl<'a> Row<'a> {
    fn cut(number: usize, line: &'a str) -> Self {
        let mut words = Vec::new();
        let mut start = None;
        let mut start_column = 1;
        for (column, (i, c)) in (1..).zip(line.char_indices()) {
            if c.is_whitespace() {
                if let Some(s) = start.take() {
                    words.push(Word { text: &line[s..i], column: start_column });
                }
            } else if start.is_none() {
                start = Some(i);
                start_column = column;
            }
        }
        if let Some(s) = start {
            words.push(Word { text: &line[s..], column: start_column });
        }
        let end = words.last().map_or(1, |w| w.column + w.text.chars().count());
        Row { number, end, words }
    }

    fn wrong(&self, word: &Word<'_>, expected: &str, help: String) -> ParseError {
        self.wrong_at(word.column, word.text, expected, help)
    }

    fn wrong_at(&self, column: usize, text: &str, expected: &str, help: String) -> ParseError {
        let found = format!("`{}`", shorten(text));
        ParseError { line: self.number, column, found, expected: expected.into(), help }
    }

    fn ended(&self, expected: String, help: String) -> ParseError {
        let found = "the end of the line".into();
        ParseError { line: self.number, column: self.end, found, expected, help }
    }
}

/// Cuts what goes into an error message: the text may be anything.
fn shorten(text: &str) -> String {
    const MAX: usize = 40;
    let mut out: String = text.chars().take(MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(MAX).is_some() {
        out.push('…');
    }
    out
}

/// Reads a program. Never panics; the text is capped at [`TEXT_BYTES_MAX`].
pub fn parse(text: &str) -> Result<Program, ParseError> {
    if text.len() > TEXT_BYTES_MAX {
        let found = format!("{} bytes of text", text.len());
        let expected = format!("at most {TEXT_BYTES_MAX} bytes");
        return Err(ParseError { line: 1, column: 1, found, expected, help: String::new() });
    }
    let mut reader = Reader::default();
    let mut last = 0;
    for (i, line) in text.lines().enumerate() {
        last = i + 1;
        reader.line(last, line)?;
    }
    reader.finish(last)
}

/// A `par` block being read.
struct Block {
    notes: Vec<String>,
    opened: usize,
    threads: Vec<Vec<Op>>,
}

#[derive(Default)]
struct Reader {
    headed: bool,
    /// Still in the comment lines right under the head line.
    head_over: bool,
    notes: Vec<String>,
    block: Option<Block>,
    lines: usize,
    program: Program,
}

impl Reader {
    fn line(&mut self, number: usize, line: &str) -> Result<(), ParseError> {
        let row = Row::cut(number, line);
        let Some(first) = row.words.first().copied() else {
            self.head_over |= self.headed;
            return Ok(());
        };
        if !self.headed {
            return self.head(&row);
        }
        if first.text.starts_with('#') {
            let comment = comment(line);
            if self.head_over { &mut self.notes } else { &mut self.program.about }.push(comment);
            return Ok(());
        }
        self.head_over = true;
        if self.block.is_some() {
            return self.block_line(&row);
        }
        if first.text == "par" {
            return self.open_block(&row);
        }
        if first.text == "}" {
            let help = "a block opens with `par {`".into();
            return Err(row.wrong(&first, "an op or `par {`", help));
        }
        let (proc, rest) = process(&row)?;
        let op = op(&row, rest)?;
        self.count_line(&row)?;
        let notes = std::mem::take(&mut self.notes);
        self.push_step(&row, Step { notes, act: Act::One(Line { proc, op }) })
    }

    fn head(&mut self, row: &Row<'_>) -> Result<(), ParseError> {
        let words: Vec<&str> = row.words.iter().map(|w| w.text).collect();
        if words == ["hgm", "1"] {
            self.headed = true;
            return Ok(());
        }
        let help = match words.first() {
            Some(&"hgm") => "this version reads format 1 only".to_string(),
            _ => format!("the first line of a program is `{HEAD}`; comments come after it"),
        };
        let text = words.join(" ");
        let column = row.words.first().map_or(1, |w| w.column);
        Err(row.wrong_at(column, &text, &format!("`{HEAD}`"), help))
    }

    fn open_block(&mut self, row: &Row<'_>) -> Result<(), ParseError> {
        let help = || "a block is `par {`, then `t0: OP` and `t1: OP` lines, then `}`".to_string();
        match row.words.get(1) {
            Some(w) if w.text == "{" => {}
            Some(w) => return Err(row.wrong(w, "`{`", help())),
            None => return Err(row.ended("`{`".into(), help())),
        }
        if let Some(w) = row.words.get(2) {
            return Err(row.wrong(w, "the end of the line", help()));
        }
        let notes = std::mem::take(&mut self.notes);
        self.block = Some(Block { notes, opened: row.number, threads: Vec::new() });
        Ok(())
    }

    fn block_line(&mut self, row: &Row<'_>) -> Result<(), ParseError> {
        let first = row.words[0];
        if first.text == "}" {
            if let Some(w) = row.words.get(1) {
                return Err(row.wrong(w, "the end of the line", String::new()));
            }
            return self.close_block(row);
        }
        let thread = first.text.strip_prefix('t').and_then(|t| t.strip_suffix(':'));
        let expected = format!("`t0:` to `t{}:` or `}}`", PAR_THREADS_MAX - 1);
        let help = || "inside `par` each line names its thread; all run in p0".to_string();
        let index = match thread.and_then(|t| t.parse::<usize>().ok()) {
            Some(n) if n < PAR_THREADS_MAX => n,
            _ => return Err(row.wrong(&first, &expected, help())),
        };
        let op = op(row, &row.words[1..])?;
        self.count_line(row)?;
        let Some(block) = &mut self.block else { return Ok(()) };
        while block.threads.len() <= index {
            block.threads.push(Vec::new());
        }
        if block.threads[index].len() == PAR_OPS_MAX {
            let expected = format!("at most {PAR_OPS_MAX} ops in one thread");
            return Err(row.wrong(&first, &expected, "split the block".into()));
        }
        block.threads[index].push(op);
        Ok(())
    }

    fn close_block(&mut self, row: &Row<'_>) -> Result<(), ParseError> {
        let Some(block) = self.block.take() else { return Ok(()) };
        if block.threads.len() < 2 || block.threads.iter().any(Vec::is_empty) {
            let expected = "two or three threads numbered from t0, each with an op";
            let help = "a single thread needs no block".into();
            return Err(row.wrong(&row.words[0], expected, help));
        }
        let mut notes = block.notes;
        // Comments inside a block stay with it, so that nothing a person wrote is lost.
        notes.append(&mut self.notes);
        self.push_step(row, Step { notes, act: Act::Par(block.threads) })
    }

    fn count_line(&mut self, row: &Row<'_>) -> Result<(), ParseError> {
        self.lines += 1;
        if self.lines <= LINES_MAX {
            return Ok(());
        }
        let expected = format!("at most {LINES_MAX} ops in a program");
        Err(row.wrong(&row.words[0], &expected, "split the program".into()))
    }

    fn push_step(&mut self, row: &Row<'_>, step: Step) -> Result<(), ParseError> {
        if self.program.steps.len() == STEPS_MAX {
            let expected = format!("at most {STEPS_MAX} steps in a program");
            return Err(row.wrong(&row.words[0], &expected, "split the program".into()));
        }
        self.program.steps.push(step);
        Ok(())
    }

    fn finish(mut self, last: usize) -> Result<Program, ParseError> {
        let end = |expected: String, help: String| ParseError {
            line: last + 1,
            column: 1,
            found: "the end of the text".into(),
            expected,
            help,
        };
        if !self.headed {
            return Err(end(format!("`{HEAD}`"), "the text is empty".into()));
        }
        if let Some(block) = &self.block {
            let help = format!("the block opened in line {} is not closed", block.opened);
            return Err(end("`}`".into(), help));
        }
        // Comments behind the last step stay with it.
        let about = &mut self.program.about;
        self.program.steps.last_mut().map_or(about, |s| &mut s.notes).append(&mut self.notes);
        Ok(self.program)
    }
}

fn comment(line: &str) -> String {
    let text = line.trim();
    let text = text.strip_prefix('#').unwrap_or(text);
    // A carriage return alone ends no line here and would end one when printed.
    text.strip_prefix(' ').unwrap_or(text).replace('\r', " ")
}

/// Takes `p1:` off the front, if it is there.
fn process<'r, 'a>(row: &'r Row<'a>) -> Result<(ProcId, &'r [Word<'a>]), ParseError> {
    let first = &row.words[0];
    let Some(name) = first.text.strip_suffix(':') else {
        return Ok((ProcId(0), &row.words));
    };
    match ProcId::parse(name) {
        Some(proc) => Ok((proc, &row.words[1..])),
        None => {
            let help = match name.strip_prefix('t') {
                Some(_) => "threads `t0:` stand only inside `par { … }`".to_string(),
                None => "a process prefix is `p1:`; `p0` is the default".to_string(),
            };
            Err(row.wrong(first, "a process `p0:` to `p7:` or an op", help))
        }
    }
}

fn op(row: &Row<'_>, words: &[Word<'_>]) -> Result<Op, ParseError> {
    let (left, words) = match words {
        [left, eq, rest @ ..] if eq.text == "=" => (Some(left), rest),
        _ => (None, words),
    };
    let Some(name) = words.first() else {
        return Err(row.ended("an op name".into(), String::new()));
    };
    let Some(kind) = OpKind::by_name(name.text) else {
        return Err(row.wrong(name, "an op name", unknown_op(name.text)));
    };
    let spec = kind.spec();
    match left {
        Some(left) if !spec.makes => {
            let help = format!("`{}` makes no object; write it as: {}", spec.name, usage(kind));
            return Err(row.wrong(left, "an op without `=` before its name", help));
        }
        None if spec.makes => {
            let help = format!("write it as: {}", usage(kind));
            let expected = format!("{} and `=` before `{}`", spec.fields[0].expected, spec.name);
            return Err(row.wrong(name, &expected, help));
        }
        _ => {}
    }
    let pairs = pairs(row, spec, left, &words[1..])?;
    let mut lookup =
        |field: &'static str| pairs.iter().find(|p| p.field == field).map(|p| p.value.to_string());
    Op::build(kind, &mut lookup).map_err(|e| match e {
        FieldError::Missing(f) => {
            let help = format!("write it as: {}", usage(kind));
            row.ended(format!("`{}=` with {}", f.name, f.expected), help)
        }
        FieldError::Bad(f) => match pairs.iter().find(|p| p.field == f.name) {
            Some(p) => row.wrong_at(p.column, p.value, f.expected, bad_value(p.value, f.expected)),
            None => row.ended(f.expected.into(), String::new()),
        },
    })
}

struct Pair<'a> {
    field: &'static str,
    value: &'a str,
    column: usize,
}

fn pairs<'a>(
    row: &Row<'_>,
    spec: &'static OpSpec,
    left: Option<&Word<'a>>,
    words: &[Word<'a>],
) -> Result<Vec<Pair<'a>>, ParseError> {
    let mut pairs: Vec<Pair<'a>> = Vec::with_capacity(words.len() + 1);
    if let Some(left) = left {
        pairs.push(Pair { field: spec.fields[0].name, value: left.text, column: left.column });
    }
    let skip = usize::from(spec.makes);
    for word in words {
        let Some((key, value)) = word.text.split_once('=') else {
            let help = format!("write it as: {}", usage(spec.kind));
            return Err(row.wrong(word, "a field such as name=value", help));
        };
        let Some(field) = spec.fields[skip..].iter().find(|f| f.name == key) else {
            let known = spec.fields[skip..].iter().map(|f| f.name);
            let help = match nearest(key, known) {
                Some(name) => format!("did you mean `{name}`? {}", usage(spec.kind)),
                None => format!("write it as: {}", usage(spec.kind)),
            };
            let expected = format!("a field of `{}`", spec.name);
            return Err(row.wrong_at(word.column, key, &expected, help));
        };
        if pairs.iter().any(|p| p.field == field.name) {
            let expected = "each field once";
            return Err(row.wrong_at(word.column, key, expected, "drop one of the two".into()));
        }
        let column = word.column + key.chars().count() + 1;
        pairs.push(Pair { field: field.name, value, column });
    }
    Ok(pairs)
}

fn bad_value(value: &str, expected: &str) -> String {
    if value.is_empty() {
        return "no spaces around `=` inside a field".into();
    }
    // The example words stand in the description itself: the nearest of them is a good guess.
    let words = expected.split([' ', ',']).filter(|w| w.len() > 2);
    match nearest(value, words.filter(|w| !matches!(*w, "such" | "and" | "from"))) {
        Some(word) => format!("did you mean `{word}`?"),
        None => String::new(),
    }
}

fn unknown_op(name: &str) -> String {
    if let Some((left, right)) = name.split_once('=')
        && OpKind::by_name(right).is_some()
    {
        return format!("put spaces around `=`: {left} = {right}");
    }
    match nearest(name, OpKind::ALL.iter().map(|k| k.spec().name)) {
        Some(near) => match OpKind::by_name(near) {
            Some(kind) => format!("did you mean `{near}`? {}", usage(kind)),
            None => format!("did you mean `{near}`?"),
        },
        None => "the ops are listed in the reference, `hgm help ops`".into(),
    }
}

/// How an op is written, optional fields in brackets: `f0 = memfd [page=…] [flags=…]`.
pub fn usage(kind: OpKind) -> String {
    let spec = kind.spec();
    let mut out = String::new();
    let mut fields = spec.fields.iter();
    if spec.makes
        && let Some(first) = fields.next()
    {
        // "an id f0 to f7": the third word is the first id.
        out.push_str(first.expected.split(' ').nth(2).unwrap_or("x0"));
        out.push_str(" = ");
    }
    out.push_str(spec.name);
    for field in fields {
        let (open, close) = if field.optional { ("[", "]") } else { ("", "") };
        out.push_str(&format!(" {open}{}=…{close}", field.name));
    }
    out
}

/// The known name fewest edits away, if it is near enough to be a slip.
pub fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let word: Vec<char> = word.chars().take(32).collect();
    let far = word.len() / 4 + 1;
    known
        .map(|name| (edits(&word, &name.chars().collect::<Vec<_>>()), name))
        .filter(|(d, _)| *d <= far && *d < word.len().max(2))
        .min_by_key(|(d, _)| *d)
        .map(|(_, name)| name)
}

/// Edit distance: insert, delete, change, swap of neighbours.
fn edits(a: &[char], b: &[char]) -> usize {
    let mut rows = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

/// The canonical text: what [`parse`] reads back as the same program, comments included.
pub fn print(program: &Program) -> String {
    let mut out = String::from(HEAD);
    out.push('\n');
    print_comments(&program.about, &mut out);
    if !program.steps.is_empty() {
        out.push('\n');
    }
    for step in &program.steps {
        print_comments(&step.notes, &mut out);
        print_step(step, &mut out);
    }
    out
}

/// The canonical text without comments: what a program's identity is made of.
pub fn print_bare(program: &Program) -> String {
    let mut out = format!("{HEAD}\n\n");
    for step in &program.steps {
        print_step(step, &mut out);
    }
    out
}

/// One op as it stands in a text, without process or thread.
pub fn print_op(op: &Op) -> String {
    let spec = op.kind().spec();
    let mut left = String::new();
    let mut rest = String::new();
    op.each_field(&mut |index, value| {
        if spec.makes && index == 0 {
            value(&mut left);
            left.push_str(" = ");
        } else {
            rest.push(' ');
            rest.push_str(spec.fields[index].name);
            rest.push('=');
            value(&mut rest);
        }
    });
    format!("{left}{}{rest}", spec.name)
}

fn print_comments(lines: &[String], out: &mut String) {
    for line in lines.iter().flat_map(|l| l.split(['\n', '\r'])) {
        out.push('#');
        if !line.trim_end().is_empty() {
            out.push(' ');
            out.push_str(line.trim_end());
        }
        out.push('\n');
    }
}

fn print_step(step: &Step, out: &mut String) {
    match &step.act {
        Act::One(line) => {
            if line.proc != ProcId(0) {
                out.push_str(&format!("{}: ", line.proc));
            }
            out.push_str(&print_op(&line.op));
            out.push('\n');
        }
        Act::Par(threads) => {
            out.push_str("par {\n");
            for (i, ops) in threads.iter().enumerate() {
                for op in ops {
                    out.push_str(&format!("  t{i}: {}\n", print_op(op)));
                }
            }
            out.push_str("}\n");
        }
    }
}
