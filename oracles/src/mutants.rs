//! Single-rule mutations of the model, for the tests that prove the oracle would notice. A
//! mutant makes the *model* wrong; real observations must then disagree with it.

macro_rules! mutants {
    (any { $($(#[$doc:meta])* $name:ident,)* }
     hgm { $($(#[$hgm_doc:meta])* $hgm_name:ident $rule:literal,)* }) => {
        /// One mutation; `None` is the real model.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Mutant {
            None,
            $($(#[$doc])* $name,)*
            $($(#[$hgm_doc])* $hgm_name,)*
        }
        impl Mutant {
            /// Mutations that any kernel gives away.
            pub const ALL: &'static [Mutant] = &[$(Mutant::$name,)*];
            /// Mutations that only a kernel with high-granularity mapping gives away, with the
            /// rule each of them breaks.
            pub const HGM: &'static [(Mutant, &'static str)] = &[$((Mutant::$hgm_name, $rule),)*];
        }
    };
}

mutants! {
    any {
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
        /// smaps_rollup leaves out hugetlb.
        RollupWithoutHugetlb,
        /// numa_maps counts huge pages by base pages.
        NumaCountsBasePages,
        /// status counts no page tables of the program.
        TablesUncounted,
    }
    hgm {
        /// MADV_SPLIT may cut a huge page.
        HgmSplitCuts "HG-01",
        /// MADV_SPLIT works on private mappings.
        HgmSplitPrivateOk "HG-01",
        /// CONTINUE takes whole huge pages only.
        HgmContinueWholeOnly "HG-02",
        /// CONTINUE maps every base page by itself.
        HgmContinueSmallLeaves "HG-02",
        /// CONTINUE of a huge page puts a leaf over pieces.
        HgmContinueOverPieces "HG-02",
        /// A marker over the whole huge page stops CONTINUE of a piece.
        HgmMarkerStopsContinue "HG-02",
        /// A fault fills the whole huge page.
        HgmFaultFillsAll "HG-03",
        /// MADV_DONTNEED gives empty tables back.
        HgmEmptyTablesGo "HG-03",
        /// A CONTINUE that fails leaves a table.
        HgmFailureLeavesTable "HG-03",
        /// Events carry the address of the huge page.
        HgmEventsWhole "HG-04",
        /// COLLAPSE works on private mappings.
        HgmCollapsePrivateOk "HG-05",
        /// COLLAPSE leaves pieces that do not fill their page as they are.
        HgmCollapseKeepsHoles "HG-05",
        /// COLLAPSE passes over a leaf that reaches beyond the range.
        HgmCollapsePassesLarger "HG-05",
        /// COLLAPSE keeps write protection where any piece had it.
        HgmCollapseKeepsWp "HG-05",
        /// smaps says that all leaves are of the huge page size.
        HgmLevelsWhole "HG-06",
        /// Every leaf counts as a mapping of the whole huge page.
        HgmLeavesCountWhole "HG-07",
        /// The feature is given without EXACT_ADDRESS.
        HgmFeatureAlone "HG-08",
        /// The feature takes private mappings.
        HgmFeaturePrivateOk "HG-08",
        /// status counts whole huge pages.
        HgmBytesWhole "HG-09",
        /// status leaves out the tables of pieces.
        HgmTablesUncounted "HG-10",
    }
}
