//! Rules of high-granularity mapping: huge pages of hugetlb mapped by base pages.

super::rules! { HGM:
    HG_SPLIT "HG-01" "MADV_SPLIT is for shared hugetlb mappings (else EINVAL), may not cut a huge page (EINVAL), changes no entry, and may be repeated.", "madvise_vma_behavior; vmimages/hgm 0012, HGM v2 (20230218002819.1486479-1)";
    HG_CONTINUE "HG-02" "CONTINUE with HGM takes base pages and maps the range from left to right by the largest leaves that fit: EEXIST where something smaller or larger is in the way, EFAULT without a page, EIO if poisoned, EEXIST where something is; what was done stays. A marker above goes down into the table (V2) or is in the way (RFC2, V1). The feature of the userfaultfd allows it (RFC2) or the flag of the mapping.", "hugetlb_mcopy_atomic_pte, hugetlb_walk_to; vmimages/hgm 0011, HGM v2";
    HG_NODE "HG-03" "Leaves have the sizes that CONTINUE, COLLAPSE and faults gave them: a fault fills the node that is there, tables stay when they are empty, and neither a fault nor a call that fails makes one.", "hugetlb_fault, hugetlb_walk_node; vmimages/hgm/README.md";
    HG_ADDR "HG-04" "In a mapping with HGM events carry the address of the base page (RFC2: as without).", "hugetlb_event_address; vmimages/hgm 0006, text of MADV_SPLIT in HGM v2";
    HG_COLLAPSE "HG-05" "COLLAPSE of hugetlb: private EINVAL, shared without HGM 0 and no effect; else tables in the range become leaves as large as the range allows, holes filled and write protection dropped; a leaf that reaches beyond the range is EEXIST, poison is passed over, and told in the end by EHWPOISON (RFC2, V1).", "hugetlb_collapse; vmimages/hgm 0015, HGM v2";
    HG_LEVELS "HG-06" "HugetlbPudMapped, HugetlbPmdMapped and HugetlbPteMapped are the bytes mapped by leaves of each level.", "smaps_hugetlb_level; vmimages/hgm 0014, HGM v2";
    HG_COUNT "HG-07" "A base page of a huge one is mapped once by each leaf over it (RFC2, V1: by each leaf of the page): kpagecount, pagemap's exclusive bit and Shared_Hugetlb go by that number.", "hugetlb_add_file_rmap, __page_mapcount; vmimages/hgm 0002, HGM v2, pagemap.rst";
    HG_ENABLE "HG-08" "UFFD_FEATURE_MINOR_HUGETLBFS_HGM wants EXACT_ADDRESS beside it (EINVAL), and then allows HGM on what is registered; private hugetlb is EINVAL.", "userfaultfd_api, userfaultfd_register; vmimages/hgm 0013, HGM RFC v2 (20221021163703.3218176-1)";
    HG_BYTES "HG-09" "status HugetlbPages is the sum of the sizes of all leaves.", "hugetlb_count_add; proc.rst";
    HG_TABLES "HG-10" "status VmPTE grows by the tables of pieces, and shrinks when they go.", "mm_inc_nr_ptes; vmimages/hgm/README.md (Accounting), proc.rst";
}
