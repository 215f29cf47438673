//! Rules of the mapping part.

super::rules! { MAPPING:
    V001 "V-001" "mmap checks in order: offset, page size, length, address, overlap; then it lies exactly where it was asked for.", "ksys_mmap_pgoff, do_mmap; mmap(2)";
    V003 "V-003" "MAP_FIXED over old mappings replaces them; it cannot cut a huge page in two.", "mmap_region, __mmap_region; mmap(2)";
    V004 "V-004" "MAP_FIXED_NOREPLACE over a mapping is EEXIST and removes nothing.", "do_mmap; mmap(2)";
    V006 "V-007" "A shared writable mapping of a write-sealed file is EPERM; read-only ones are fine.", "seal_check_write, check_write_seal; fcntl(2)";
    H050 "H-050" "mmap of huge pages: address and file offset must be whole huge pages, else EINVAL; the length is rounded up.", "hugetlbfs_file_mmap, prepare_hugepage_range; hugetlbpage.rst, mmap(2)";
    H053 "H-053" "A mapping of huge pages reserves what it may need (shared: pages not yet in the file's map; private: its length; MAP_NORESERVE: nothing) or is ENOMEM.", "hugetlb_reserve_pages; hugetlbfs_reserv.rst";
    H058 "H-058" "A writable mapping of a hugetlb file extends it to the end of the mapping, but never a grow-sealed one.", "hugetlbfs_file_mmap; fcntl(2)";
    V010 "V-010" "munmap: unaligned start and length 0 are EINVAL, else 0, holes or not.", "do_vmi_munmap; munmap(2)";
    H080 "H-080" "munmap that would cut a huge page in two is EINVAL and changes nothing.", "hugetlb_vm_op_split; munmap(2), mmap(2)";
    V020 "V-020" "mprotect works from left to right and stops at a hole (ENOMEM) or a right that may not be given (EACCES); what came before stays changed.", "do_mprotect_pkey; mprotect(2)";
    H081 "H-081" "mprotect that would cut a huge page in two is EINVAL.", "hugetlb_vm_op_split, mprotect_fixup; mprotect(2)";
    V040 "V-040" "mremap checks in order: flags, alignment, length, mapping at the old address, overlap.", "mremap, mremap_to; mremap(2)";
    V041 "V-041" "mremap that shrinks unmaps the tail; one that grows needs one mapping and, without MAYMOVE, free room behind it.", "mremap, vma_to_resize, vma_expandable; mremap(2)";
    V042 "V-042" "Old length 0 duplicates a shared mapping and is EINVAL for a private one.", "vma_to_resize; mremap(2)";
    V043 "V-043" "A moved mapping keeps its pages; its uffd registration only with EVENT_REMAP.", "move_vma, mremap_userfaultfd_prep; mremap(2), userfaultfd.rst";
    V045 "V-045" "MREMAP_DONTUNMAP leaves an empty mapping behind; EINVAL for hugetlb.", "vma_to_resize, move_vma; mremap(2)";
    H082 "H-082" "mremap of huge pages: both addresses must be whole huge pages, growth is EINVAL.", "mremap; mremap(2)";
    V050 "V-050" "mlock works from left to right, a hole is ENOMEM, and so is a page that cannot be had; what was locked stays locked.", "do_mlock, apply_vma_lock_flags, __mlock_posix_error_return; mlock(2)";
    H084 "H-084" "hugetlb mappings are never counted as locked, mlock fills them all the same.", "mlock_fixup; mlock(2), hugetlbpage.rst";
    U070 "U-074" "A change of the address space waits until its uffd event is read.", "userfaultfd_event_wait_completion; userfaultfd.rst";
}
