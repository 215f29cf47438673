//! expected-vs-observed.txt of a finding read back into rows: the same file for runs of any age.
//! What is not in its form stays text.

use serde::Serialize;

/// One op of the program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OpRow {
    pub line: u32,
    pub op: String,
    /// How it ended, with what it gave back.
    pub result: String,
    /// What the rules allowed; empty where nothing was judged.
    pub expected: String,
    /// What was seen in place of it, where a rule was broken.
    pub observed: String,
    pub rules: String,
    pub ok: bool,
}

/// The file in its parts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Compared {
    /// Ops in line order; empty if the file only has the program.
    pub rows: Vec<OpRow>,
}

impl Compared {
    /// Rows of the text; a line of another form is left out.
    pub fn parse(text: &str) -> Compared {
        let mut rows: Vec<OpRow> = Vec::new();
        for line in text.lines() {
            if let Some(row) = op_row(line) {
                rows.push(row);
                continue;
            }
            let Some(last) = rows.last_mut() else { continue };
            let Some(rest) = line.strip_prefix("         ") else { continue };
            let fields = [
                ("expected  ", &mut last.expected),
                ("observed  ", &mut last.observed),
                ("rules     ", &mut last.rules),
            ];
            for (name, field) in fields {
                if let Some(value) = rest.strip_prefix(name) {
                    value.clone_into(field);
                }
            }
        }
        Compared { rows }
    }

    /// The row that broke a rule.
    pub fn broken(&self) -> Option<&OpRow> {
        self.rows.iter().find(|row| !row.ok)
    }
}

/// `MARK LINE  OP  STATUS  ...`: a mark, a right-aligned number of three, two spaces, the op.
fn op_row(line: &str) -> Option<OpRow> {
    let mut chars = line.chars();
    let ok = match chars.next()? {
        ' ' => true,
        '!' => false,
        _ => return None,
    };
    let rest = chars.as_str().strip_prefix(' ')?;
    let (number, rest) = rest.trim_start().split_once("  ")?;
    if rest.starts_with(' ') {
        return None;
    }
    let line = number.parse().ok()?;
    let (op, result) = rest.split_once("  ").unwrap_or((rest, ""));
    let (op, result) = (op.trim().to_owned(), result.trim().to_owned());
    Some(OpRow { line, op, result, ok, ..OpRow::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "M-002 at move_pages: x\nsignature  M-002/move_pages/x\nline       9 (move_pages)\n\
        expected   entry 4: ENOENT\nobserved   -14\n\n    0  mmap at=r0 len=2M                                         ok 0\n         expected  ok 0\n\
        !   9  move_pages at=r0 len=24K                                  ok 0  nodes [0, -14]\n         expected  entry 4: ENOENT\n         observed  -14\n         rules     M-002\n\x20 \
        100  p1: read at=r1+2M len=1234567890123456789012345678901234567890  EFAULT  (2 handler messages)\n";

    #[test]
    fn rows_are_read_back() {
        let compared = Compared::parse(TEXT);
        let lines: Vec<(u32, bool)> = compared.rows.iter().map(|r| (r.line, r.ok)).collect();
        assert_eq!(lines, [(0, true), (9, false), (100, true)]);
        let broken = compared.broken().unwrap();
        assert_eq!(broken.op, "move_pages at=r0 len=24K");
        assert_eq!(broken.result, "ok 0  nodes [0, -14]");
        assert_eq!(
            (broken.expected.as_str(), broken.observed.as_str()),
            ("entry 4: ENOENT", "-14")
        );
        assert_eq!(broken.rules, "M-002");
        assert!(compared.rows[2].result.starts_with("EFAULT"));
    }

    #[test]
    fn a_program_alone_has_no_rows() {
        assert!(
            Compared::parse("title\n\nhgm 1\n\nmmap at=r0 len=2M\n  read at=r0\n").rows.is_empty()
        );
        assert!(Compared::parse("").rows.is_empty());
    }
}
