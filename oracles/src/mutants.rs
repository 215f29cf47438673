//! Single-rule mutations of the model, for the tests that prove the oracle would notice. A
//! mutant makes the *model* wrong; real observations must then disagree with it.

macro_rules! mutants {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// One mutation; `None` is the real model.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Mutant {
            None,
            $($(#[$doc])* $name,)*
        }
        impl Mutant {
            /// Every mutation but `None`.
            pub const ALL: &'static [Mutant] = &[$(Mutant::$name,)*];
        }
    };
}

mutants! {
    /// A store to a uffd-wp page raises no event.
    WpWriteSilent,
    /// A store after fork is seen by the other process.
    ForkSharesWrites,
    /// shmem has no end.
    ShmemNoEof,
    /// hugetlb files have no end.
    HugetlbNoEof,
    /// A private fault does not consume its reservation.
    FaultKeepsReserve,
    /// pagemap does not show uffd-wp markers.
    MarkerInvisible,
    /// VmFlags does not show locked mappings.
    LockInvisible,
}
