//! Rules of one source file: it has a head, it and its functions stay short.

use std::path::Path;

/// Lines of one file.
const FILE_LINES_MAX: usize = 800;
/// Lines of one function, from `fn` to its closing brace.
const FUNCTION_LINES_MAX: usize = 100;

/// Broken rules of one file.
pub fn broken(path: &Path, text: &str) -> Vec<String> {
    let place = path.display();
    let mut out = Vec::new();
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX {
        out.push(format!("{place}: {lines} lines, more than {FILE_LINES_MAX}: two rooms in one?"));
    }
    if !text.starts_with("//!") {
        out.push(format!("{place}: no module head (`//!` lines that say what lives here)"));
    }
    for function in functions(&blank(text)) {
        if function.lines > FUNCTION_LINES_MAX {
            let Function { name, line, lines } = function;
            out.push(format!(
                "{place}:{line}: fn {name} has {lines} lines, more than {FUNCTION_LINES_MAX}"
            ));
        }
    }
    out
}

/// A function with a body.
#[derive(Debug, PartialEq, Eq)]
struct Function {
    name: String,
    /// Line of `fn`, from 1.
    line: usize,
    lines: usize,
}

/// The text with comments, strings and character literals made blank: braces left are real.
fn blank(text: &str) -> Vec<u8> {
    let src = text.as_bytes();
    let mut out = src.to_vec();
    let mut i = 0;
    while i < src.len() {
        let end = match src[i] {
            b'/' if src[i..].starts_with(b"//") => until(src, i, b"\n"),
            b'/' if src[i..].starts_with(b"/*") => block_comment(src, i),
            b'r' if starts_raw(src, i) => raw_string(src, i),
            b'"' => quoted(src, i, b'"'),
            b'\'' => character(src, i),
            _ => i + 1,
        };
        if end > i + 1 {
            out[i..end].iter_mut().filter(|b| **b != b'\n').for_each(|b| *b = b' ');
        }
        i = end;
    }
    out
}

fn until(src: &[u8], from: usize, stop: &[u8]) -> usize {
    src[from..].windows(stop.len()).position(|w| w == stop).map_or(src.len(), |n| from + n)
}

fn block_comment(src: &[u8], from: usize) -> usize {
    let mut depth = 0;
    let mut i = from;
    while i < src.len() {
        if src[i..].starts_with(b"/*") {
            depth += 1;
            i += 2;
        } else if src[i..].starts_with(b"*/") {
            depth -= 1;
            i += 2;
            if depth == 0 {
                return i;
            }
        } else {
            i += 1;
        }
    }
    i
}

fn starts_raw(src: &[u8], at: usize) -> bool {
    let name_before = at > 0 && (src[at - 1].is_ascii_alphanumeric() && src[at - 1] != b'b');
    let hashes = src[at + 1..].iter().take_while(|b| **b == b'#').count();
    !name_before && src.get(at + 1 + hashes) == Some(&b'"')
}

fn raw_string(src: &[u8], from: usize) -> usize {
    let hashes = src[from + 1..].iter().take_while(|b| **b == b'#').count();
    let mut stop = vec![b'"'];
    stop.extend(std::iter::repeat_n(b'#', hashes));
    let body = from + 2 + hashes;
    (until(src, body.min(src.len()), &stop) + stop.len()).min(src.len())
}

fn quoted(src: &[u8], from: usize, quote: u8) -> usize {
    let mut i = from + 1;
    while i < src.len() && src[i] != quote {
        i += if src[i] == b'\\' { 2 } else { 1 };
    }
    (i + 1).min(src.len())
}

/// A character literal, or one byte where the quote starts a lifetime.
fn character(src: &[u8], from: usize) -> usize {
    let next = src.get(from + 1).copied().unwrap_or(b' ');
    let name = next.is_ascii_alphanumeric() || next == b'_';
    if next == b'\\' || src.get(from + 2) == Some(&b'\'') || !name {
        return quoted(src, from, b'\'');
    }
    from + 1
}

/// Functions with a body, nested ones too.
fn functions(text: &[u8]) -> Vec<Function> {
    let mut found = Vec::new();
    let mut line = 1;
    for i in 0..text.len() {
        if text[i] == b'\n' {
            line += 1;
        }
        if !text[i..].starts_with(b"fn ") || i > 0 && is_name(text[i - 1]) {
            continue;
        }
        let rest = &text[i + 3..];
        let name: String =
            rest.iter().take_while(|b| is_name(**b)).map(|b| char::from(*b)).collect();
        if let Some(end) = body_end(text, i).filter(|_| !name.is_empty()) {
            let lines = text[i..end].iter().filter(|b| **b == b'\n').count() + 1;
            found.push(Function { name, line, lines });
        }
    }
    found
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Index after the closing brace of the body that follows; none for a declaration.
fn body_end(text: &[u8], from: usize) -> Option<usize> {
    let open = from + text[from..].iter().position(|b| matches!(b, b'{' | b';'))?;
    // `[u8; 4]` in a signature is no end of a declaration.
    let before = &text[from..open];
    let brackets = |b: u8| before.iter().filter(|c| **c == b).count();
    if text[open] == b';' {
        return (brackets(b'[') > brackets(b']')).then(|| body_end(text, open + 1)).flatten();
    }
    let mut depth = 0;
    for (n, byte) in text[open..].iter().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(open + n + 1);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(text: &str) -> Vec<(String, usize, usize)> {
        functions(&blank(text)).into_iter().map(|f| (f.name, f.line, f.lines)).collect()
    }

    #[test]
    fn functions_are_measured() {
        let text = "//! head\nfn a() {\n    if x {\n    }\n}\n\nfn b(x: [u8; 4]) {}\nfn c();\n";
        assert_eq!(seen(text), [("a".into(), 2, 4), ("b".into(), 7, 1)]);
    }

    #[test]
    fn braces_in_text_do_not_count() {
        let text = "fn a<'x>(s: &'x str) {\n  let b = '{'; let c = \"}}{\"; // }\n  /* { */\n\
                    let d = r#\"{\"{\"#; let e = '\\'';\n}\nfn z() {}\n";
        assert_eq!(seen(text), [("a".into(), 1, 5), ("z".into(), 6, 1)]);
    }

    #[test]
    fn long_files_long_functions_and_missing_heads_are_named() {
        let path = Path::new("x.rs");
        assert!(broken(path, "//! head\nfn a() {}\n").is_empty());
        assert_eq!(broken(path, "fn a() {}\n").len(), 1);
        let long = format!("//! head\nfn a() {{\n{}}}\n", "    x();\n".repeat(99));
        assert_eq!(broken(path, &long).len(), 1);
        let fits = format!("//! head\nfn a() {{\n{}}}\n", "    x();\n".repeat(98));
        assert!(broken(path, &fits).is_empty());
        let file = format!("//! head\n{}", "\n".repeat(800));
        assert_eq!(broken(path, &file).len(), 1);
    }
}
