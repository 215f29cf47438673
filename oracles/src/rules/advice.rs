//! Rules of the advice part.

super::rules! { ADVICE:
    H090 "H-090" "madvise checks in order: advice and start (EINVAL), length 0 (success); then each mapping in turn, a hole is ENOMEM at the end.", "do_madvise, madvise_walk_vmas; madvise(2)";
    H091 "H-091" "Advice that changes flags works on any mapping, but may not cut a huge page in two (EINVAL).", "madvise_vma_behavior, madvise_update_vma; madvise(2)";
    A027 "A-027" "WIPEONFORK is for private anonymous memory only, else EINVAL.", "madvise_vma_behavior; madvise(2)";
    H094 "H-094" "DONTNEED on huge pages: the start must be a whole huge page (EINVAL), the end is rounded down.", "madvise_dontneed_free_valid_vma; commit 8ebe0a5eaaeb";
    H102 "H-102" "DONTNEED of a private huge page frees it and gives its reservation back.", "__unmap_hugepage_range; commit df7a6d1f6405, hugetlbfs_reserv.rst";
    A020 "A-020" "DONTNEED on locked memory is EINVAL (DONTNEED_LOCKED is not); private pages are gone, shared ones only unmapped.", "madvise_dontneed_free; madvise(2)";
    A021 "A-021" "FREE is for private anonymous memory that is not locked, else EINVAL; until the next store a page reads old or zero.", "madvise_free_single_vma; madvise(2)";
    A022 "A-022" "COLD and PAGEOUT are EINVAL on locked and huge pages, and never change content.", "can_madv_lru_vma; madvise(2)";
    A023 "A-023" "REMOVE: locked or without a file EINVAL, not shared and writable EACCES, write-sealed EPERM, else it punches the file.", "madvise_remove; madvise(2), fcntl(2)";
    A024 "A-024" "POPULATE_READ and _WRITE need the permission (EINVAL) and fill every page, or stop with EFAULT, or EHWPOISON at poison, or ENOMEM at a hole.", "madvise_populate, faultin_vma_page_range; madvise(2)";
    A025 "A-025" "WILLNEED is 0.", "madvise_willneed; madvise(2)";
    A001 "A-001" "COLLAPSE is EINVAL on mappings no huge page may lie in: hugetlb, NOHUGEPAGE, too small or misaligned.", "madvise_collapse, hugepage_vma_check; madvise(2)";
    A003 "A-003" "COLLAPSE is 0 if every whole 2 MiB block became huge, EINVAL if one may not (no page, write-protected, poisoned, holes in an armed mapping), EAGAIN or ENOMEM for passing reasons.", "madvise_collapse_errno, hpage_collapse_scan_pmd, collapse_file; madvise(2), transhuge.rst";
    A006 "A-006" "COLLAPSE of shmem with holes is refused where userfaultfd waits for missing pages.", "collapse_file; userfaultfd.rst";
    A090 "A-090" "HWPOISON and SOFT_OFFLINE take one page after the other and stop with EFAULT at one that cannot be read.", "madvise_inject_error; madvise(2)";
    A091 "A-091" "HWPOISON of a page in use is 0, or EBUSY if others hold it or it is the zero page; it is poisoned either way.", "memory_failure, action_result; hwpoison.rst";
    A092 "A-092" "The 6.12 family tells the caller at once with SIGBUS MCEERR_AR at the page, no family sends anything else.", "kill_proc, madvise_inject_error; hwpoison.rst, madvise(2)";
    A094 "A-094" "SOFT_OFFLINE moves the content and is 0, or EBUSY and nothing changes; a pinned page is always EBUSY.", "soft_offline_in_use_page; hwpoison.rst, madvise(2)";
}
