//! The rule table: every rule the judge can name, with its source. A rule that no table names
//! cannot be cited, because the code cites constants, not strings.

mod advice;
mod fault;
mod file;
mod hgm;
mod mapping;
mod observe;
mod process;
mod uffd;

pub use advice::*;
pub use fault::*;
pub use file::*;
pub use hgm::*;
pub use mapping::*;
pub use observe::*;
pub use process::*;
pub use uffd::*;

/// One rule.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    /// Stable id, e.g. "H-080"; part of every signature.
    pub id: &'static str,
    /// What must hold, in one sentence.
    pub text: &'static str,
    /// Kernel functions, documents or man pages it rests on.
    pub source: &'static str,
}

/// A rule by reference, as the code cites it.
pub type RuleRef = &'static Rule;

macro_rules! rules {
    ($table:ident: $($name:ident $id:literal $text:literal, $source:literal;)*) => {
        $(#[doc = concat!($id, ": ", $text, " Source: ", $source, ".")]
          pub const $name: crate::rules::RuleRef =
              &crate::rules::Rule { id: $id, text: $text, source: $source };)*
        /// The rules of this part.
        pub const $table: &[crate::rules::RuleRef] = &[$($name,)*];
    };
}
pub(crate) use rules;

/// All rules, part by part.
pub fn all() -> Vec<RuleRef> {
    [FILE, MAPPING, FAULT, ADVICE, UFFD, HGM, PROCESS, OBSERVE].concat()
}
