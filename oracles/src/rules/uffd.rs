//! Rules of userfaultfd.

super::rules! { UFFD:
    U_API "U-003" "UFFDIO_API fails with EINVAL for features the kernel does not know, else the fd is ready.", "userfaultfd_api; ioctl_userfaultfd(2)";
    U_REG "U-005" "REGISTER validates mode, range, every VMA's type, huge-page alignment and owner, in that order, before any change.", "userfaultfd_register; ioctl_userfaultfd(2)";
    U_REG_TYPE "U-006" "MISSING and WP: anonymous, shmem, hugetlb; MINOR: shmem and hugetlb only.", "vma_can_userfault; ioctl_userfaultfd(2)";
    U_REG_MASK "U-009" "REGISTER returns the ioctls usable on the range for the requested mode.", "userfaultfd_register; ioctl_userfaultfd(2)";
    U_UNREG "U-020" "UNREGISTER validates as REGISTER does; a failing call changes nothing.", "userfaultfd_unregister; ioctl_userfaultfd(2)";
    U_FOREIGN "U-022" "UNREGISTER of a range that belongs to another userfaultfd is EINVAL.", "userfaultfd_unregister";
    U_FILL_RANGE "U-031" "Filling ioctls check range, then mode bits, then the VMA.", "validate_range, userfaultfd_copy, userfaultfd_continue; ioctl_userfaultfd(2)";
    U_FILL_VMA "U-032" "ENOENT when the range does not lie in one VMA with a userfaultfd.", "find_dst_vma; ioctl_userfaultfd(2)";
    U_FIELD "U-030" "The output field holds the bytes done, or -errno if none; untouched after a validation error.", "userfaultfd_copy, userfaultfd_zeropage, userfaultfd_continue; ioctl_userfaultfd(2)";
    U_COPY "U-034" "COPY fills none entries and markers; EEXIST where something is, EFAULT beyond the end of the file, ENOMEM without a page.", "mcopy_atomic_pte, shmem_mfill_atomic_pte; ioctl_userfaultfd(2)";
    U_COPY_HUGE "U-036" "COPY on hugetlb needs huge-page alignment; EEXIST for a filled slot or a cached shared page, ENOMEM without a page, EFAULT beyond the end.", "__mcopy_atomic_hugetlb, hugetlb_mcopy_atomic_pte; ioctl_userfaultfd(2)";
    U_ZERO "U-037" "ZEROPAGE fills strictly none entries of private memory; EINVAL on hugetlb.", "mfill_zeropage_pte; ioctl_userfaultfd(2)";
    U_CONTINUE "U-038" "CONTINUE maps the cached page: EFAULT if there is none, EINVAL beyond a shmem file's end, EIO if poisoned, EEXIST if mapped.", "mcontinue_atomic_pte, hugetlb_mcopy_atomic_pte; ioctl_userfaultfd(2)";
    U_POISON "U-039" "POISON fills strictly none entries; unknown to kernels without the feature.", "mfill_atomic_pte_poison; ioctl_userfaultfd(2)";
    U_WP "U-050" "WRITEPROTECT needs a WP-registered range (ENOENT), huge-page alignment on hugetlb, and not WP with DONTWAKE.", "mwriteprotect_range; ioctl_userfaultfd(2)";
    U_WAKE "U-023" "WAKE checks the range only.", "userfaultfd_wake; ioctl_userfaultfd(2)";
    U_CLOSE "U-024" "Closing resolves wp bits and removes every registration.", "userfaultfd_release; userfaultfd.rst";
}
