//! Single-rule mutations of the model, for the tests that prove the oracle would notice. A
//! mutant makes the *model* wrong; real observations must then disagree with it.

/// One mutation; `None` is the real model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mutant {
    None,
}

impl Mutant {
    /// Every mutation but `None`.
    pub const ALL: &'static [Mutant] = &[];
}
