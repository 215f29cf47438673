//! Rules of what the kernel shows of its state.

super::rules! { OBSERVE:
    O_PAGEMAP "O-006" "pagemap shows each entry as it is: present, swap (markers and poison on base pages), file, uffd-wp.", "pagemap_pmd_range, pagemap_hugetlb_range, pte_to_pagemap_entry; pagemap.rst";
    O_EXCLUSIVE "O-008" "pagemap bit 56 is set exactly when one page-table entry maps that page.", "pagemap_pmd_range, page_mapcount; pagemap.rst";
    O_HOLE "O-005" "Addresses without a mapping or an entry read as zero in pagemap.", "pagemap_pte_hole; pagemap.rst";
    O_ALIAS "I-01" "Entries of one page show one frame, entries of different pages different frames.", "pagemap.rst";
    O_KCOUNT "O-021" "kpagecount is the number of entries that map the page.", "kpagecount_read; pagemap.rst";
    O_KHUGE "O-022" "kpageflags HUGE is set on pages of hugetlb mappings and on no others.", "stable_page_flags; pagemap.rst";
    O_VMAS "O-042" "smaps lists exactly the mapped ranges, with their permissions.", "show_map_vma; proc.rst";
    O_VMFLAGS "O-040" "VmFlags carries the state set by mlock, madvise, userfaultfd and hugetlb.", "show_smap_vma_flags; proc.rst";
    O_RSS "O-031" "smaps Rss counts present base pages and poison entries, never hugetlb, markers or the zero page.", "smaps_pte_entry, smaps_account; proc.rst";
    O_HUGETLB "O-038" "Shared_Hugetlb + Private_Hugetlb is the huge page size times the present and poisoned entries, shared from two mappings on.", "smaps_hugetlb_range; proc.rst";
    O_PAGESIZE "O-039" "KernelPageSize is the huge page size for hugetlb, 4 kB else.", "show_smap, vma_kernel_pagesize; proc.rst";
    O_STATUS_HUGETLB "O-063" "status HugetlbPages is the huge page size times the entries this process mapped.", "hugetlb_report_usage; proc.rst";
    O_VMLCK "O-062" "status VmLck is the size of the locked mappings, never hugetlb.", "task_mem, mlock_fixup; proc.rst";
    O_VMPTE "O-064" "status VmPTE is the size of the page tables: what mappings have none of their own any more is taken off again.", "mm_pgtables_bytes, free_pgtables; proc.rst";
    O_ROLLUP "O-045" "smaps_rollup says of each field the sum over all mappings.", "show_smaps_rollup; proc.rst";
    O_NUMA "O-046" "numa_maps counts the present pages of a mapping by node, a huge page of hugetlb as one however it is mapped, and mapmax is the most mappings of any.", "gather_stats, gather_hugetlb_stats; numa(7)";
    O_MINCORE "O-071" "mincore: present 1; none or marker: 0 for anonymous memory, page-cache state for files.", "mincore_pte_range, mincore_hugetlb; mincore(2)";
    O_POOL "X-02" "HugePages_Free and _Rsvd follow from what is mapped, cached and reserved.", "hugetlb_acct_memory, free_huge_page; hugetlbpage.rst, hugetlbfs_reserv.rst";
    O_POOL_SANE "X-01" "0 <= Rsvd <= Free <= Total, Surp <= Total, per-node sums equal the whole.", "hugetlb_report_meminfo; hugetlbpage.rst";
    O_LEAK "O-10" "After a program is gone the pools are as before it.", "hugetlbpage.rst";
    O_HWPOISON "O-081" "HardwareCorrupted grows by the pages poisoned or taken offline, and by nothing else.", "num_poisoned_pages_inc; hwpoison.rst";
}
