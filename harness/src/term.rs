//! The only place that writes to stdout and stderr: colour, width, hostile text, broken pipes.
//!
//! Data goes to stdout, talk to stderr. Text that came from a guest passes [`clean_str`] first.

use crate::cli::ColorWhen;
use crate::exit::{Exit, ExpectedError};
use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;

/// Meanings, not colours; never the only sign of what they mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Good,
    Warn,
    Bad,
    Strong,
}

/// The two streams and how to write to them.
#[derive(Debug)]
pub struct Term {
    color_out: bool,
    color_err: bool,
    /// stderr is a terminal, so that a line may be redrawn there.
    pub live: bool,
    /// Glyphs beyond ASCII may be used.
    pub unicode: bool,
    /// First failure of stdout; later writes are dropped.
    broken: Mutex<Option<io::Error>>,
}

impl Term {
    pub fn new(when: ColorWhen) -> Term {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let forced = ["CLICOLOR_FORCE", "CARGO_TERM_COLOR"]
            .iter()
            .any(|name| std::env::var_os(name).is_some_and(|v| v == "1" || v == "always"));
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let color = |tty: bool| match when {
            ColorWhen::Always => true,
            ColorWhen::Never => false,
            ColorWhen::Auto => !set("NO_COLOR") && (forced || (tty && !dumb)),
        };
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .iter()
            .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
            .unwrap_or_default()
            .to_ascii_lowercase();
        Term {
            color_out: color(io::stdout().is_terminal()),
            color_err: color(io::stderr().is_terminal()),
            live: io::stderr().is_terminal() && !dumb,
            unicode: locale.contains("utf-8") || locale.contains("utf8"),
            broken: Mutex::new(None),
        }
    }

    /// Text to stdout, as is. A reader that went away is no error; a full disk is kept for
    /// [`Term::close`].
    pub fn out(&self, text: &str) {
        self.out_bytes(text.as_bytes());
    }

    /// Bytes to stdout, as are; like [`Term::out`].
    pub fn out_bytes(&self, bytes: &[u8]) {
        let mut broken = self.broken.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if broken.is_none() {
            let mut stdout = io::stdout().lock();
            *broken = stdout.write_all(bytes).and_then(|()| stdout.flush()).err();
        }
    }

    /// One line to stdout.
    pub fn line(&self, text: &str) {
        self.out(&format!("{text}\n"));
    }

    /// One JSON value and a newline to stdout.
    pub fn json(&self, value: &serde_json::Value) {
        self.line(&value.to_string());
    }

    /// One line of talk to stderr; if nobody can read it, it is lost.
    pub fn note(&self, text: &str) {
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    /// `warning:` and `help:` to stderr.
    pub fn warn(&self, what: &str, help: &str) {
        self.note(&format!("{}: {what}", self.paint_err(Tone::Warn, "warning")));
        self.note(&format!("{}: {help}", self.paint_err(Tone::Strong, "help")));
    }

    /// Shows an error once, at the top: words on stderr, or one JSON object on stdout.
    pub fn error(&self, error: &ExpectedError, json: bool) {
        if json {
            self.json(&serde_json::json!({
                "error": error.message,
                "cause": error.cause,
                "help": error.help,
                "code": error.exit.code(),
                "name": error.exit.row().name,
            }));
            return;
        }
        self.note(&format!(
            "{}: {}",
            self.paint_err(Tone::Bad, "error"),
            clean_str(&error.message)
        ));
        if let Some(cause) = &error.cause {
            self.note(&format!("{}: {}", self.paint_err(Tone::Strong, "cause"), clean_str(cause)));
        }
        self.note(&format!("{}: {}", self.paint_err(Tone::Strong, "help"), clean_str(&error.help)));
    }

    pub fn paint(&self, tone: Tone, text: &str) -> String {
        paint(self.color_out, tone, text)
    }

    pub fn paint_err(&self, tone: Tone, text: &str) -> String {
        paint(self.color_err, tone, text)
    }

    /// What became of stdout: `None` if all was read or the reader just left.
    pub fn close(&self) -> Option<ExpectedError> {
        let mut broken = self.broken.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let error = broken.take()?;
        (error.kind() != io::ErrorKind::BrokenPipe).then(|| {
            ExpectedError::new(
                Exit::Infrastructure,
                "cannot write to stdout",
                "free space where stdout goes, or send it elsewhere",
            )
            .cause(error)
        })
    }
}

fn paint(on: bool, tone: Tone, text: &str) -> String {
    let code = match tone {
        Tone::Good => "32",
        Tone::Warn => "33",
        Tone::Bad => "1;31",
        Tone::Strong => "1",
    };
    if on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// Guest or file text made harmless for a terminal, by what reports do it with.
pub use reports::escape::pictures as clean_str;

/// Rows in columns, two spaces apart; the last column is not padded. Widths count characters.
pub fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            line.push_str(cell);
            if column + 1 < row.len() {
                let pad = widths[column].saturating_sub(cell.chars().count()) + 2;
                line.extend(std::iter::repeat_n(' ', pad));
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_text_cannot_drive_the_terminal() {
        let hostile = b"a\x1b[2Jb\x1b]0;title\x07\r\n\xff\xc2\x9b31m\t.";
        let text = clean_str(&String::from_utf8_lossy(hostile));
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
        assert!(text.contains('\u{241b}') && text.contains('\u{fffd}'));
    }

    #[test]
    fn columns_line_up() {
        let rows = vec![vec!["a".into(), "bb".into()], vec!["ccc".into(), "d".into()]];
        assert_eq!(columns(&rows), "a    bb\nccc  d\n");
    }
}
