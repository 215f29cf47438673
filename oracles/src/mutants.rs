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
    /// MINOR may be registered on anonymous memory.
    MinorOnAnonOk,
    /// UNREGISTER leaves wp bits and markers.
    UnregisterKeepsWp,
    /// WRITEPROTECT of none entries leaves nothing.
    NoMarkers,
    /// ZEROPAGE works on hugetlb.
    ZeropageHugeOk,
    /// COPY, ZEROPAGE and CONTINUE replace what is there.
    FillOverwrites,
    /// CONTINUE maps poisoned pages.
    ContinuePoisonOk,
    /// UFFDIO_COPY beyond the end of a hugetlb file works.
    CopyBeyondEofOk,
    /// fork leaves wp bits in a child that is not registered.
    ForkKeepsWp,
    /// WIPEONFORK memory is copied to the child.
    WipeIgnored,
    /// DONTFORK memory appears in the child.
    DontforkIgnored,
    /// move_pages of nothing says EFAULT.
    MoveNothingFaults,
    /// A tail of a hole inside a page is not zeroed.
    PunchKeepsTail,
    /// Shrinking a file keeps what lay beyond.
    TruncateKeepsPages,
    /// A hugetlb file may have any size.
    UnalignedTruncateOk,
    /// Seals of a file bar nothing.
    SealsIgnored,
    /// fallocate never changes the size.
    FallocateKeepsSize,
    /// A hugetlb file reads beyond its end.
    ReadHugetlbBeyondEof,
    /// munmap may end inside a huge page.
    MunmapHalfHuge,
    /// mprotect may end inside a huge page.
    MprotectHalfHuge,
    /// hugetlb mappings may grow.
    MremapGrowHugetlb,
    /// A moved mapping leaves its pages behind.
    MremapLosesPages,
    /// A private mapping of huge pages reserves nothing.
    PrivateReservesNothing,
    /// A shared mapping of huge pages reserves nothing.
    SharedReservesNothing,
    /// MAP_NORESERVE reserves all the same.
    NoreserveReserves,
    /// A writable mapping does not extend a hugetlb file.
    MmapKeepsSize,
    /// mlock locks hugetlb mappings.
    MlockCountsHugetlb,
    /// MADV_DONTNEED rounds a hugetlb range up.
    DontneedRoundsUp,
    /// MADV_DONTNEED does not give the reservation back.
    DontneedKeepsConsumed,
    /// MADV_DONTNEED keeps anonymous pages.
    DontneedKeepsAnon,
    /// Holes do not make madvise fail.
    MadviseIgnoresHoles,
    /// MADV_COLLAPSE works on hugetlb.
    CollapseHugetlbOk,
    /// MADV_FREE works on hugetlb.
    FreeOnHugetlbOk,
    /// MADV_REMOVE works on private mappings.
    RemoveOnPrivateOk,
    /// MADV_WIPEONFORK works on files.
    WipeOnForkFileOk,
    /// MADV_HWPOISON leaves the page readable.
    PoisonForgets,
    /// Events carry the byte address without being asked to.
    EventsExact,
    /// UFFD_FEATURE_SIGBUS sends events all the same.
    SigbusFeatureIgnored,
    /// hugetlb pages count in Rss.
    HugetlbInRss,
    /// Every mapped page is exclusive.
    ExclusiveAlways,
    /// mincore does not look into the page cache.
    MincoreIgnoresCache,
}
