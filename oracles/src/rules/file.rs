//! Rules of the file part.

super::rules! { FILE:
    H001 "H-001" "memfd_create makes a file of any page size the kernel has; a size it has not is ENODEV.", "memfd_create, hugetlb_file_setup; memfd_create(2)";
    H003 "H-003" "A hugetlbfs mount exists for each pool and takes new files.", "hugetlbfs_fill_super; hugetlbpage.rst";
    H010 "H-010" "ftruncate of a hugetlb file: a length that is not whole huge pages is EINVAL, before the seals; a sealed direction is EPERM; else 0, and no page is left beyond the new size.", "hugetlbfs_setattr, hugetlb_vmtruncate; ftruncate(2), fcntl(2)";
    S010 "S-010" "ftruncate of a shmem file: a sealed direction is EPERM, else 0; what lies beyond the new size is gone.", "shmem_setattr; ftruncate(2), fcntl(2)";
    H020 "H-020" "fallocate: length 0 is EINVAL, growth of a grow-sealed file EPERM even with KEEP_SIZE.", "vfs_fallocate, hugetlbfs_fallocate, shmem_fallocate; fallocate(2), fcntl(2)";
    H021 "H-021" "fallocate of a hugetlb file fills every huge page the range touches, from the file's reservation first, else from unreserved pages; none left is ENOSPC.", "hugetlbfs_fallocate, alloc_huge_page; fallocate(2), hugetlbfs_reserv.rst";
    S021 "S-021" "fallocate of a shmem file fills every page the range touches with zeros or fails whole.", "shmem_fallocate; fallocate(2)";
    H030 "H-030" "PUNCH_HOLE: write seals are EPERM, else 0: whole pages in the hole are freed, parts of pages zeroed, the size stays.", "hugetlbfs_punch_hole, shmem_fallocate; fallocate(2)";
    H040 "H-040" "pread of a hugetlb file ends at the size, holes read as zeros, poison is EIO.", "hugetlbfs_read_iter; read(2)";
    S040 "S-040" "pread of a shmem file ends at the size, holes read as zeros; poison ends it, with EIO if nothing came before.", "shmem_file_read_iter; read(2)";
    H041 "H-041" "pwrite of a hugetlb file is EINVAL.", "vfs_write: no write_iter; hugetlbpage.rst";
    S041 "S-041" "pwrite of a shmem file: write seals and growth of a grow-sealed file are EPERM, poison EIO, else all bytes are written.", "shmem_write_begin, generic_perform_write; write(2), fcntl(2)";
    H007 "H-007" "st_size is the size, st_blocks counts exactly the cached pages.", "hugetlb_add_to_page_cache, shmem_recalc_inode; stat(2)";
    S050 "S-050" "F_ADD_SEALS: a file sealed against sealing is EPERM; a write seal while a shared mapping may write, or a page is pinned, is EBUSY.", "memfd_add_seals, memfd_wait_for_pins; fcntl(2)";
    S060 "S-060" "close of a descriptor is 0 and keeps what mappings hold.", "filp_close; close(2)";
}
