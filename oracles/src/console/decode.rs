//! Addresses in console text: `function+0xOFF/0xLEN`, where they stand, and the text again with the
//! source lines somebody else knows. Nothing here knows a kernel's symbols.

use super::frames::bare;
use super::line::{self, clean};
use serde::{Deserialize, Serialize};

/// Bytes of decoded text after which the rest of a console is left out.
pub const DECODED_BYTES_MAX: usize = 1 << 20;

/// What sort of line an address stands on, and so what it points at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FrameKind {
    /// The instruction itself: a RIP line, or the opening line of a warning.
    Exact,
    /// A frame of a stack: where the call returns to, one byte after it at the least.
    Call,
    /// A frame the unwinder only found on the stack, marked `?`.
    Guess,
    /// Named in passing (`in f+..`, `at: f+..`): a return address too.
    Mention,
}

/// An address of the kernel's text as its reports write it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// As in the symbol table, with what the compiler put behind it.
    pub function: String,
    /// Bytes from its start.
    pub offset: u64,
    /// Bytes from its start to the next symbol.
    pub length: u64,
    /// The module it is in; none: the kernel itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    pub kind: FrameKind,
}

/// Frames that stand together in a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stack {
    /// Its heading: `Call Trace`, `Freed by task 61`, `RIP`; `report` for the opening line.
    pub of: String,
    pub frames: Vec<Frame>,
}

/// A line of source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub function: String,
    /// `mm/hugetlb.c:1234`.
    pub at: String,
}

/// The first address on a line without its printk prefix, and the byte where it begins.
pub fn address(text: &str) -> Option<(usize, Frame)> {
    let mut from = 0;
    while let Some(plus) = text[from..].find("+0x").map(|n| from + n) {
        from = plus + 3;
        let name = |b: u8| b.is_ascii_alphanumeric() || b"_.$".contains(&b);
        let start = text[..plus].bytes().rposition(|b| !name(b)).map_or(0, |n| n + 1);
        let function = &text[start..plus];
        if bare(function).is_none() {
            continue;
        }
        let Some((offset, rest)) = hex(&text[plus + 1..]) else { continue };
        let Some((length, rest)) = rest.strip_prefix('/').and_then(hex) else { continue };
        // `[module build-id]`; behind a symbol of the kernel nothing stands in brackets.
        let module = rest.strip_prefix(" [").and_then(|r| r.split([']', ' ']).next());
        let module = module.filter(|m| *m != "inline" && bare(m).is_some()).map(str::to_owned);
        let kind = kind(text, start);
        return Some((start, Frame { function: function.into(), offset, length, module, kind }));
    }
    None
}

/// `0x1f` and what stands behind it.
fn hex(text: &str) -> Option<(u64, &str)> {
    let digits = text.strip_prefix("0x")?;
    let end = digits.bytes().position(|b| !b.is_ascii_hexdigit()).unwrap_or(digits.len());
    Some((u64::from_str_radix(digits.get(..end)?, 16).ok()?, &digits[end..]))
}

fn kind(text: &str, start: usize) -> FrameKind {
    let before = text[..start].trim_start();
    if before.starts_with("RIP: ") || before.starts_with("WARNING: ") {
        return FrameKind::Exact;
    }
    let address = |t: &str| t.starts_with("[<") && t.ends_with(">]") && !t.contains(' ');
    match before.trim_end() {
        "" => FrameKind::Call,
        "?" => FrameKind::Guess,
        other if address(other) => FrameKind::Call,
        other if other.strip_suffix(" ?").is_some_and(address) => FrameKind::Guess,
        _ => FrameKind::Mention,
    }
}

/// Console text with the source line behind each address, and what was inlined there on lines
/// above it, innermost first. `places` gives them in that order for an address, or nothing.
/// Escapes and control bytes go; a line with nothing to add stays as it is.
pub fn decode(console: &[u8], places: &mut dyn FnMut(&Frame) -> Vec<Place>) -> String {
    let mut out = String::new();
    for raw in console.split_inclusive(|b| *b == b'\n') {
        if out.len() >= DECODED_BYTES_MAX {
            break;
        }
        let text = clean(raw);
        // Two CPUs may share a line; the last part is the one that ends it.
        let last = line::parts(&text).last().map_or("", |part| part.text);
        let lead = text.len() - last.len();
        // The opening line of a warning names its place itself.
        let found = address(last).filter(|_| !last.trim_start().starts_with("WARNING: "));
        let known = found.map(|(start, frame)| (lead + start, places(&frame)));
        if let Some((start, known)) = known
            && let Some((outer, inlined)) = known.split_last()
        {
            for place in inlined {
                let Place { function, at } = place;
                out.push_str(&format!("{}{function} {at} [inline]\n", &text[..start]));
            }
            out.push_str(&format!("{} {}\n", text.trim_end(), outer.at));
        } else {
            out.push_str(&text);
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> (usize, String, u64, u64, Option<String>, FrameKind) {
        let (start, f) = address(text).unwrap();
        (start, f.function, f.offset, f.length, f.module, f.kind)
    }

    #[test]
    fn addresses_are_read_where_they_stand() {
        use FrameKind::*;
        let f = || "f.isra.0".to_owned();
        assert_eq!(of(" f.isra.0+0x1a/0x2b"), (1, f(), 0x1a, 0x2b, None, Call));
        assert_eq!(of(" ? f.isra.0+0x0/0x2b"), (3, f(), 0, 0x2b, None, Guess));
        assert_eq!(of("RIP: 0010:f.isra.0+0x1/0x2"), (10, f(), 1, 2, None, Exact));
        assert_eq!(of("WARNING: CPU: 0 PID: 1 at m.c:5 f.isra.0+0x1/0x2").5, Exact);
        assert_eq!(of(" [<ffffffff8100>] f.isra.0+0x1/0x2").5, Call);
        assert_eq!(of(" [<ffffffff8100>] ? f.isra.0+0x1/0x2").5, Guess);
        assert_eq!(of("BUG: KASAN: use-after-free in f.isra.0+0x1/0x2").5, Mention);
        assert_eq!(of("#0: ff (&x){+.+.}-{3:3}, at: f.isra.0+0x1/0x2").5, Mention);
        assert_eq!(of(" f.isra.0+0x1/0x2 [ext4]").4.unwrap(), "ext4");
        assert_eq!(of(" f.isra.0+0x1/0x2 [ext4 0123abc]").4.unwrap(), "ext4");
        for not in ["", "+0x1/0x2", " 9f+0x1/0x2", "f+0x/0x1", "f+0x1", "f+0x1/2", "RAX: 0x1"] {
            assert_eq!(address(not), None, "{not}");
        }
        // Longer than a u64 is no offset; what stands behind it is still read.
        assert_eq!(of("f+0x11112222333344445/0x1 g+0x1/0x2").1, "g");
    }

    #[test]
    fn lines_get_their_source_and_what_was_inlined() {
        let place = |f: &str, at: &str| Place { function: f.into(), at: at.into() };
        let console = b"[    1.000001] Call Trace:\n\
            [    1.000002]  f+0x4/0x9\r\n\
            [    1.000003]  ? g+0x1/0x2 [m]\n\
            [    1.000004] RIP: 0010:f+0x4/0x9\n\
            [    1.000004] WARNING: CPU: 0 at m.c:1 f+0x4/0x9";
        let text = decode(console, &mut |frame| match frame.function.as_str() {
            "f" => vec![place("inner", "a.h:1"), place("f", "b.c:2")],
            _ => Vec::new(),
        });
        assert_eq!(
            text,
            "[    1.000001] Call Trace:\n\
             [    1.000002]  inner a.h:1 [inline]\n\
             [    1.000002]  f+0x4/0x9 b.c:2\n\
             [    1.000003]  ? g+0x1/0x2 [m]\n\
             [    1.000004] RIP: 0010:inner a.h:1 [inline]\n\
             [    1.000004] RIP: 0010:f+0x4/0x9 b.c:2\n\
             [    1.000004] WARNING: CPU: 0 at m.c:1 f+0x4/0x9\n"
        );
    }

    #[test]
    fn floods_are_cut() {
        let flood = b" f+0x1/0x2\n".repeat(DECODED_BYTES_MAX / 8);
        let place = Place { function: "f".into(), at: "m.c:1".into() };
        let text = decode(&flood, &mut |_| vec![place.clone()]);
        assert!(text.len() < DECODED_BYTES_MAX + 4096, "{}", text.len());
    }
}
