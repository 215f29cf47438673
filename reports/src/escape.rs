//! Hostile text made harmless, once per sink. Control characters become pictures everywhere; what
//! else has a meaning differs from sink to sink.

use std::fmt::Write;

/// Control characters as pictures (U+2400 ff.), newlines stay, tabs become spaces; C1 controls and
/// characters that turn the reading direction are spelled out.
pub fn pictures(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push('\n'),
            '\t' => out.push_str("    "),
            '\r' => {}
            '\0'..='\x1f' => out.push(char::from_u32(0x2400 + c as u32).unwrap_or('?')),
            '\x7f' => out.push('\u{2421}'),
            '\u{80}'..='\u{9f}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{2028}'
            | '\u{2029}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}' => {
                let _ = write!(out, "\\u{{{:x}}}", c as u32);
            }
            // Not characters: XML may not hold them, and nobody can see them.
            '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            _ => out.push(c),
        }
    }
    out
}

/// One line: pictures, and newlines as spaces.
pub fn line(text: &str) -> String {
    pictures(text).replace('\n', " ")
}

/// For a terminal whose output a CI system may read: pictures, and no line that starts like a
/// workflow command.
pub fn terminal(text: &str) -> String {
    let text = pictures(text);
    let mut out = String::with_capacity(text.len());
    for piece in text.split_inclusive('\n') {
        let start = piece.trim_start();
        if start.starts_with("::") || start.starts_with("##[") {
            out.push_str("| ");
        }
        out.push_str(piece);
    }
    out
}

/// JSON text whose strings hold nothing a terminal acts on: what JSON lets stand raw is escaped.
/// A reader gets the same strings.
pub fn json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\u{7f}'..='\u{9f}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}' => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            _ => out.push(c),
        }
    }
    out
}

/// Message of a GitHub workflow command.
pub fn github_data(text: &str) -> String {
    pictures(text).replace('%', "%25").replace('\n', "%0A")
}

/// Property of a GitHub workflow command.
pub fn github_property(text: &str) -> String {
    github_data(text).replace(':', "%3A").replace(',', "%2C")
}

/// Markdown text on one line: nothing in it is markup, a link, HTML or a mention.
pub fn markdown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in line(text).chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '@' => out.push_str("&#64;"),
            '\\' | '`' | '*' | '_' | '{' | '}' | '[' | ']' | '(' | ')' | '#' | '|' | '~' | '!'
            | '$' => {
                out.push('\\');
                out.push(c);
            }
            _ => out.push(c),
        }
    }
    // What would be made a link by itself.
    out.replace("://", ":&#47;&#47;")
}

/// A fenced block of Markdown that its text cannot end.
pub fn fenced(text: &str) -> String {
    let text = pictures(text);
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}text\n{}\n{fence}\n", text.trim_end_matches('\n'))
}

/// The first `limit` bytes, cut at a character, with a word on what is missing.
pub fn head(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let end = (0..=limit).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}\n[{} of {} bytes left out]\n", &text[..end], text.len() - end, text.len())
}

/// The last `limit` bytes, as [`head`].
pub fn tail(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let from = text.len() - limit;
    let from = (from..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    format!("[{from} of {} bytes left out]\n{}", text.len(), &text[from..])
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "a\0b\u{1b}[31m\u{9b}2J\u{202e}\r\n::error::x\n##[group]\t%";

    #[test]
    fn nothing_but_newlines_controls() {
        let text = pictures(HOSTILE);
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
        assert!(text.contains('\u{2400}') && text.contains('\u{241b}'));
        assert!(!text.contains('\u{202e}'));
    }

    #[test]
    fn no_line_is_a_workflow_command() {
        for line in terminal(HOSTILE).lines() {
            assert!(!line.starts_with("::") && !line.starts_with("##["), "{line:?}");
        }
        assert_eq!(github_data("a\n%::b").lines().count(), 1);
        assert_eq!(github_property("a:b,c%"), "a%3Ab%2Cc%25");
    }

    #[test]
    fn markdown_stays_text() {
        let text = markdown("<b>|`x`|@all [a](http://b) *c*\n# d");
        assert!(!text.contains('\n') && !text.contains('<') && !text.contains("://"), "{text}");
        assert!(!text.contains("@all"));
        let block = fenced("a\n````\nb");
        assert!(block.starts_with("`````text\n") && block.ends_with("\n`````\n"), "{block}");
    }

    #[test]
    fn cuts_keep_characters_whole() {
        assert!(head("aä", 2).starts_with("a\n["));
        assert!(tail("äa", 2).ends_with("]\na"));
        assert_eq!(head("abc", 3), "abc");
    }
}
