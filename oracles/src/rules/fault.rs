//! Rules of loads and stores.

super::rules! { FAULT:
    F_SEGV "V-100" "An access outside any mapping is SIGSEGV MAPERR, one the protection forbids is SIGSEGV ACCERR, at the exact address.", "do_user_addr_fault, access_error; sigaction(2)";
    F_CONTENT "X-03" "A load sees the last store to that page of the object, or of the process for private pages.", "mmap(2); hugetlb_no_page, do_wp_page";
    F_EOF "H-076" "SIGBUS ADRERR at the exact byte beyond the end of the object (hugetlb: a miss at or beyond size rounded down to huge pages) and for an unreserved huge page when the pool is empty.", "hugetlb_no_page, shmem_fault, vmf_error; mmap(2)";
    F_POOL "H-070" "A reserved huge page is always there; an unreserved one needs Free > Rsvd or overcommit.", "alloc_huge_page; hugetlbfs_reserv.rst";
    F_POISON "A-093" "Every access to a poisoned page is SIGBUS MCEERR_AR with lsb 12, or the huge page's shift for hugetlb.", "do_sigbus, do_swap_page, hugetlb_no_page; hwpoison.rst";
    F_EVENT "U-062" "A none entry raises MISSING on a page-cache miss, MINOR on a hit, else the kernel fills it; a write to a uffd-wp entry raises WP.", "handle_userfault, hugetlb_no_page, shmem_get_folio_gfp; userfaultfd.rst";
    F_NO_EVENT "U-065" "No event for a page that was resolved before the access began.", "handle_userfault; userfaultfd.rst";
    F_EVENT_ADDR "U-061" "Event addresses are rounded to the page of the mapping unless EXACT_ADDRESS was asked for.", "userfault_msg; ioctl_userfaultfd(2)";
    F_EVENT_SIGBUS "U-064" "With UFFD_FEATURE_SIGBUS the fault is SIGBUS ADRERR and no event.", "handle_userfault; ioctl_userfaultfd(2)";
    F_WAIT "U-067" "A fault on a registered page waits until it is resolved or woken.", "handle_userfault; userfaultfd.rst";
    F_COMPLETES "X-09" "An access no rule stops completes.", "mmap(2), mprotect(2)";
}
