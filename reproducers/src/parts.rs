//! The helper functions of `parts.c`: cut at their marks, chosen by name, and put out in the order
//! of the file with what they need. A mark is `//@ NAME: NEEDS... <headers>`; a line that ends in
//! `/*@WHAT*/` is only there if WHAT is, and a line `@WHAT@` stands for made text.

use std::collections::{BTreeMap, BTreeSet};

const TEXT: &str = include_str!("parts.c");

/// One helper.
struct Part {
    name: &'static str,
    needs: Vec<&'static str>,
    headers: Vec<&'static str>,
    text: &'static str,
}

fn all() -> Vec<Part> {
    let cut = TEXT.split("//@ ").skip(1);
    cut.filter_map(|part| {
        let (head, text) = part.split_once('\n')?;
        let (name, rest) = head.split_once(':')?;
        let (headers, needs) = rest.split_whitespace().partition(|word| word.starts_with('<'));
        Some(Part { name, needs, headers, text })
    })
    .collect()
}

/// Chosen helpers.
#[derive(Debug, Default)]
pub struct Chosen {
    names: BTreeSet<&'static str>,
    /// Text in place of `@NAME@`.
    made: BTreeMap<&'static str, String>,
    pub headers: BTreeSet<&'static str>,
}

impl Chosen {
    pub fn need(&mut self, name: &'static str) {
        self.names.insert(name);
    }

    pub fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    pub fn make(&mut self, name: &'static str, text: String) {
        self.made.insert(name, text);
    }

    /// Takes in what the chosen ones need, until nothing is missing.
    pub fn complete(&mut self) {
        let parts = all();
        loop {
            let before = self.names.len();
            for part in &parts {
                if self.names.contains(part.name) {
                    self.headers.extend(part.headers.iter().copied());
                    self.names.extend(part.needs.iter().copied());
                }
            }
            let calls = |name: &str, call: &str, names: &BTreeSet<&str>| {
                names.contains(name)
                    && parts.iter().any(|p| names.contains(p.name) && p.text.contains(call))
            };
            if calls("keep", "keep_buffer(", &self.names) {
                self.names.insert("keep_buffer");
            }
            if self.names.len() == before {
                return;
            }
        }
    }

    /// The text of all helpers.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for part in all().iter().filter(|part| self.names.contains(part.name)) {
            for line in part.text.lines() {
                self.line(line, &mut out);
            }
            while out.ends_with("\n\n\n") {
                out.pop();
            }
        }
        out
    }

    fn line(&self, line: &str, out: &mut String) {
        if let Some(name) = line.strip_prefix('@').and_then(|line| line.strip_suffix('@')) {
            let text = self.made.get(name).map_or("", String::as_str);
            out.push_str(text);
            if !text.is_empty() {
                out.push('\n');
            }
            return;
        }
        let mark = line
            .rsplit_once("/*@")
            .and_then(|(kept, mark)| Some((kept.trim_end(), mark.strip_suffix("*/")?)));
        match mark {
            Some((_, name)) if !self.has(name) => return,
            Some((kept, _)) => out.push_str(kept),
            None => out.push_str(line),
        }
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_part_needs_is_there_and_stands_before_it() {
        let parts = all();
        let at = |name: &str| parts.iter().position(|part| part.name == name);
        assert!(parts.len() > 50, "{} parts", parts.len());
        for (index, part) in parts.iter().enumerate() {
            for need in &part.needs {
                let there = at(need).unwrap_or_else(|| panic!("{}: no {need}", part.name));
                assert!(there < index, "{} stands before {need}, which it needs", part.name);
            }
        }
    }
}
