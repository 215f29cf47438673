//! Known deviations of kernels: signatures that are reported as known, never as new and never
//! accepted in silence. The built-in list is `known.toml` beside this crate; a kernel may carry
//! its own next to its image.

use case::op::Op;
use case::value::{UffdModes, WpFlags};
use case::{Profile, Program, Violation};
use serde::Deserialize;

/// One deviation and what it breaks.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Deviation {
    /// Short id, e.g. "N03".
    pub id: String,
    /// Families it is known of: "U61", "U612", and "HGM-posted" for HGM as it was posted.
    pub families: Vec<String>,
    /// Signatures `rule/op/class`; `*` stands for any text.
    pub signatures: Vec<String>,
    pub title: String,
    /// What it breaks, and the document or version that decides.
    pub why: String,
    /// Reported in private (SECURITY.md): programs that show it stay on the machine that found them.
    #[serde(default)]
    pub embargo: bool,
}

/// A list of deviations.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Known {
    #[serde(default)]
    pub deviation: Vec<Deviation>,
}

/// Why a known.toml could not be used.
#[derive(Debug, thiserror::Error)]
#[error("known deviations: {0}")]
pub struct KnownError(#[from] toml::de::Error);

impl Known {
    /// Reads a known.toml.
    pub fn parse(text: &str) -> Result<Self, KnownError> {
        Ok(toml::from_str(text)?)
    }
    /// The list that ships with the oracle. A test proves that it parses.
    pub fn builtin() -> Self {
        Self::parse(include_str!("../known.toml")).unwrap_or_default()
    }
    /// This list and another, whose entries stand in the place of those here with the same id.
    pub fn with(mut self, other: Known) -> Self {
        self.deviation.retain(|d| other.deviation.iter().all(|o| o.id != d.id));
        self.deviation.extend(other.deviation);
        self
    }
    /// Must programs that show this deviation stay where they are?
    pub fn is_embargoed(&self, id: &str) -> bool {
        self.deviation.iter().any(|d| d.id == id && d.embargo)
    }
    /// The deviation a violation is an instance of.
    pub fn find(&self, profile: &Profile, violation: &Violation) -> Option<&Deviation> {
        let signature = violation.signature();
        let kinds = profile.kinds();
        self.deviation.iter().find(|d| {
            d.families.iter().any(|f| kinds.contains(&f.as_str()))
                && d.signatures.iter().any(|pattern| matches(pattern, &signature))
        })
    }
}

/// The signature of a program that did not end by itself: `hang/OP/killable`, `hang/OP/unkillable`,
/// and what it can be put down to behind a colon.
pub fn hang_signature(program: &Program, line: u16, killed: bool) -> String {
    let lines = program.each_line();
    let op = lines.get(usize::from(line)).map_or("end", |(_, _, op)| op.kind().spec().name);
    let how = if killed { "killable" } else { "unkillable" };
    let cause = cause_of_hang(program, line).map(|cause| format!(":{cause}")).unwrap_or_default();
    format!("hang/{op}/{how}{cause}")
}

/// What the program did before `line` that a deviation can turn into a fault that never ends; the last
/// part of a hang's signature. `rearmed`: write protection, then a registration without it (U-090).
/// The fault of a store finds a bit that no userfaultfd answers for, leaves the entry as it is
/// (hugetlb_wp) and is taken again.
fn cause_of_hang(program: &Program, line: u16) -> Option<&'static str> {
    let (mut armed, mut protected) = (Vec::new(), Vec::new());
    for (at_line, _, op) in program.each_line() {
        match op {
            _ if at_line >= line => break,
            Op::Register { at, modes, .. } if modes.has(UffdModes::WP) => {
                armed.push(at.region);
            }
            Op::WriteProtect { at, flags, .. }
                if flags.has(WpFlags::WP) && armed.contains(&at.region) =>
            {
                protected.push(at.region);
            }
            Op::Register { at, .. } if protected.contains(&at.region) => return Some("rearmed"),
            _ => {}
        }
    }
    None
}

/// Glob with `*` only.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((first, others)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let (middle, last) = others.rsplit_once('*').unwrap_or(("", others));
    for part in middle.split('*') {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builtin_list_parses() {
        let list = Known::parse(include_str!("../known.toml")).unwrap();
        for d in &list.deviation {
            assert!(!d.signatures.is_empty() && !d.why.is_empty(), "{} says too little", d.id);
            let names = ["U61", "U612", case::profile::HGM_POSTED];
            assert!(d.families.iter().all(|f| names.contains(&f.as_str())), "{}", d.id);
        }
    }

    #[test]
    fn a_hang_is_put_down_to_what_went_before_it() {
        let text = "hgm 1\nmmap at=r0 len=2M page=2M\nu0 = uffd\n\
            register uffd=u0 at=r0 len=2M modes=wp\nwriteprotect uffd=u0 at=r0 len=2M\n\
            register uffd=u0 at=r0 len=2M modes=missing\nwrite at=r0 len=4K\n";
        let program = case::text::parse(text).unwrap();
        assert_eq!(cause_of_hang(&program, 5), Some("rearmed"));
        assert_eq!(cause_of_hang(&program, 4), None, "what comes later is no cause");
        for without in
            ["writeprotect uffd=u0 at=r0 len=2M\n", "register uffd=u0 at=r0 len=2M modes=wp\n"]
        {
            let program = case::text::parse(&text.replace(without, "")).unwrap();
            assert_eq!(cause_of_hang(&program, 4), None, "without {without}");
        }
    }

    #[test]
    fn globs() {
        assert!(matches("A/b/c", "A/b/c"));
        assert!(!matches("A/b/c", "A/b/cd"));
        assert!(matches("A/*/c", "A/xyz/c"));
        assert!(matches("A/*", "A/x/y"));
        assert!(!matches("A/*", "B/x"));
        assert!(!matches("A/*/c", "A/x/d"));
        assert!(matches("A/*c", "A/xcyc"), "the last part is the end, not the first that fits");
        assert!(matches("A/*/*-base:x", "A/op/a-base-base:x"));
        assert!(!matches("A*A", "A"), "parts do not overlap");
        assert!(matches("*", "") && !matches("", "A"));
    }
}
