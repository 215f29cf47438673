//! One console line: cleaned text, printk time and caller. Knows nothing of reports.

/// Bytes of a line that are looked at; the rest is skipped to its newline.
pub const LINE_BYTES_MAX: usize = 2048;

/// Who printed a line, from the caller column of CONFIG_PRINTK_CALLER.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    Task(u32),
    Cpu(u32),
}

/// A line, or the part of it after one printk prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Microseconds since boot; `None` for text that did not come from printk.
    pub time: Option<u64>,
    pub caller: Option<Caller>,
    pub text: &'a str,
}

/// Readable text of raw bytes: escape sequences and control bytes are dropped, a tab becomes a
/// space, invalid UTF-8 becomes the replacement character.
pub fn clean(raw: &[u8]) -> String {
    let raw = &raw[..raw.len().min(LINE_BYTES_MAX)];
    if raw.iter().all(|b| (0x20..0x7f).contains(b)) {
        return String::from_utf8_lossy(raw).into_owned();
    }
    let mut kept = Vec::with_capacity(raw.len());
    let mut i = 0;
    while i < raw.len() {
        match raw[i] {
            0x1b => {
                i = after_escape(raw, i + 1);
                continue;
            }
            b'\t' => kept.push(b' '),
            b if b < 0x20 || b == 0x7f => {}
            b => kept.push(b),
        }
        i += 1;
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// Index after the escape sequence whose ESC stood just before `i`.
fn after_escape(raw: &[u8], i: usize) -> usize {
    let ends = |from: usize, stop: fn(&u8) -> bool| {
        raw[from..].iter().position(stop).map_or(raw.len(), |n| from + n + 1)
    };
    match raw.get(i) {
        Some(b'[') => ends(i + 1, |b| (0x40..0x7f).contains(b)),
        Some(b']' | b'P' | b'^' | b'_') => ends(i + 1, |b| matches!(b, 0x07 | b'\\' | 0x9c)),
        Some(_) => i + 1,
        None => i,
    }
}

/// The parts of a line that follow a printk prefix, first to last. A line without one is a single
/// part. A console line may hold several: user space writes without a newline, and two CPUs mix.
pub fn parts(text: &str) -> Vec<Line<'_>> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(open) = text[from..].find('[').map(|n| from + n) {
        match prefix(&text[open..]) {
            Some((time, caller, used)) => {
                found.push(Line { time: Some(time), caller, text: &text[open + used..] });
                from = open + used;
            }
            None => from = open + 1,
        }
    }
    if found.is_empty() {
        found.push(Line { time: None, caller: None, text: without_level(text) });
    }
    found
}

/// `<6>` in front of a record, as raw consoles print it.
fn without_level(text: &str) -> &str {
    let rest = text.strip_prefix('<').and_then(|t| t.split_once('>'));
    match rest {
        Some((digits, rest))
            if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) =>
        {
            rest
        }
        _ => text,
    }
}

/// `[   12.345678][  T123] ` at the start: microseconds, caller, bytes used.
fn prefix(text: &str) -> Option<(u64, Option<Caller>, usize)> {
    let close = text.get(..24.min(text.len())).or(Some(text))?.find(']')?;
    let (secs, micros) = text[1..close].trim_start().split_once('.')?;
    if micros.len() != 6 || secs.is_empty() || secs.len() > 9 {
        return None;
    }
    let all_digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if !all_digits(secs) || !all_digits(micros) {
        return None;
    }
    let time = secs.parse::<u64>().ok()? * 1_000_000 + micros.parse::<u64>().ok()?;
    let mut used = close + 1;
    let mut caller = None;
    if let Some((who, n)) = caller_column(&text[used..]) {
        caller = Some(who);
        used += n;
    }
    if text[used..].starts_with(' ') {
        used += 1;
    }
    Some((time, caller, used))
}

fn caller_column(text: &str) -> Option<(Caller, usize)> {
    let inner = text.strip_prefix('[').or_else(|| text.strip_prefix(" ["))?;
    let lead = text.len() - inner.len();
    let close = inner.find(']').filter(|n| *n <= 12)?;
    let who = inner[..close].trim_start();
    let number = who.get(1..)?.parse::<u32>().ok()?;
    let caller = match who.as_bytes().first()? {
        b'T' => Caller::Task(number),
        b'C' => Caller::Cpu(number),
        _ => return None,
    };
    Some((caller, lead + close + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_and_control_bytes_go() {
        assert_eq!(clean(b"\x1b[1;31mBUG:\x1b[0m\0 x\r"), "BUG: x");
        assert_eq!(clean(b"\x1b]0;title\x07a\tb"), "a b");
        assert_eq!(clean(b"a\xffb"), "a\u{fffd}b");
        assert_eq!(clean(b"tail\x1b"), "tail");
    }

    #[test]
    fn prefixes_are_found_anywhere() {
        let text = "agent says hi[    3.000001][   T77] BUG: one [    3.000002][    C1] two";
        let found = parts(text);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].caller, Some(Caller::Task(77)));
        assert_eq!(found[0].time, Some(3_000_001));
        assert_eq!(found[1].caller, Some(Caller::Cpu(1)));
        assert_eq!(found[1].text, "two");
        assert_eq!(parts("<4>WARNING: x")[0].text, "WARNING: x");
        assert_eq!(parts("[<ffffffff81000000>] f+0x1/0x2")[0].time, None);
    }
}
