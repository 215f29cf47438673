//! A console for people: each report with its class, title, guilty function, signature, and its
//! text with the lines of source.

use super::Symbols;
use oracles::console::{Class, Frame, FrameKind, Place, Report, Stack, decode, scan};
use serde::Serialize;
use std::fmt::Write;

/// One report of a console. Field names are a contract.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Told {
    pub class: Class,
    pub title: String,
    pub guilty: Option<String>,
    /// `mm/hugetlb.c:1234`, where the guilty function was.
    pub guilty_at: Option<String>,
    pub signature: String,
    /// Bytes of the console it was read from.
    pub start: u64,
    pub end: u64,
    pub stacks: Vec<ToldStack>,
    /// The report's lines with their source; what the kernel printed in between too.
    pub text: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ToldStack {
    pub of: String,
    pub frames: Vec<ToldFrame>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ToldFrame {
    #[serde(flatten)]
    pub frame: Frame,
    /// Innermost inlined function first; empty if not known.
    pub places: Vec<Place>,
}

/// Every report of a console, with what these symbols know.
pub fn tell(console: &[u8], symbols: &Symbols) -> Vec<Told> {
    scan(console).iter().map(|report| Told::of(report, console, symbols)).collect()
}

impl Told {
    /// A report of this console.
    pub fn of(report: &Report, console: &[u8], symbols: &Symbols) -> Told {
        let told = |stack: &Stack| ToldStack {
            of: stack.of.clone(),
            frames: stack
                .frames
                .iter()
                .map(|frame| ToldFrame { frame: frame.clone(), places: symbols.places(frame) })
                .collect(),
        };
        let stacks: Vec<ToldStack> = report.stacks.iter().map(told).collect();
        Told {
            class: report.class,
            title: report.title.clone(),
            guilty: report.guilty.clone(),
            guilty_at: report.guilty.as_deref().and_then(|guilty| place_of(guilty, &stacks)),
            signature: report.signature.clone(),
            start: report.start,
            end: report.end,
            stacks,
            text: decode(report.text(console), &mut |frame| symbols.places(frame)),
        }
    }

    /// The head of a report, a line each.
    pub fn head(&self) -> String {
        let mut out = format!("{}\n", self.title);
        let _ = writeln!(out, "  class      {}", self.class.slug());
        if let Some(guilty) = &self.guilty {
            let at = self.guilty_at.as_ref().map(|at| format!("  {at}")).unwrap_or_default();
            let _ = writeln!(out, "  function   {guilty}{at}");
        }
        let _ = writeln!(out, "  signature  {}", self.signature);
        out
    }

    /// The lines of its text, indented, so that none can be taken for one of ours.
    pub fn body(&self) -> String {
        self.text.lines().map(|line| format!("    {line}\n")).collect()
    }
}

/// Where a function was in these stacks: the first sure frame that names it, or that it was
/// inlined in.
fn place_of(function: &str, stacks: &[ToldStack]) -> Option<String> {
    let bare = |name: &str| name.split('.').next() == Some(function);
    let frames = stacks.iter().flat_map(|stack| &stack.frames);
    frames.filter(|f| f.frame.kind != FrameKind::Guess).find_map(|f| {
        let named = f.places.iter().find(|place| bare(&place.function));
        named.or_else(|| f.places.last().filter(|_| bare(&f.frame.function))).map(|p| p.at.clone())
    })
}

/// The release of the kernel that printed a console: from its banner, else from a report's line
/// `Not tainted RELEASE #1`.
pub fn release(console: &[u8]) -> Option<String> {
    const WORD_MAX: usize = 128;
    let word = |bytes: &[u8]| {
        let end = bytes.iter().position(|b| !b.is_ascii_graphic()).unwrap_or(bytes.len());
        let word = &bytes[..end.min(WORD_MAX)];
        (!word.is_empty()).then(|| String::from_utf8_lossy(word).into_owned())
    };
    for line in console.split(|b| *b == b'\n') {
        let after = |words: &[u8]| {
            let at = line.windows(words.len()).position(|w| w == words)?;
            Some(&line[at + words.len()..])
        };
        if let Some(rest) = after(b"Linux version ") {
            return word(rest);
        }
        if after(b"Comm: ").is_some()
            && let Some(rest) = after(b"ainted")
            && let Some(build) = rest.windows(2).position(|w| w == b" #")
        {
            let start = rest[..build].iter().rposition(|b| *b == b' ').map_or(0, |n| n + 1);
            return word(&rest[start..build]);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_says_which_kernel_it_is_of() {
        let of = |text: &str| release(text.as_bytes());
        let banner = "x\n[    0.000000] Linux version 6.1.0-50 (a@b) (gcc) #1 SMP\ny";
        assert_eq!(of(banner).unwrap(), "6.1.0-50");
        let clean = "[    1.0] CPU: 0 PID: 61 Comm: init Not tainted 6.1.1-hgm #1 \n";
        assert_eq!(of(clean).unwrap(), "6.1.1-hgm");
        let tainted = "CPU: 0 PID: 1 Comm: x Tainted: G        W          6.1.1-hgm #12 ab";
        assert_eq!(of(tainted).unwrap(), "6.1.1-hgm");
        assert_eq!(of("CPU: 0 Comm: x Not tainted"), None);
        assert_eq!(of("Linux version "), None);
        assert_eq!(of(""), None);
    }
}
