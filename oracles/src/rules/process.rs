//! Rules of fork and exit, migration and NUMA policy, and of get_user_pages users.

super::rules! { PROCESS:
    P_FORK "F-001" "fork copies private memory that has anonymous pages, shares files, drops what DONTFORK, WIPEONFORK, mlock and userfaultfd say.", "dup_mmap, vma_needs_copy, copy_page_range; fork(2), madvise(2)";
    P_FORK_EVENT "U-070" "fork of a registered process with EVENT_FORK is announced once per userfaultfd and waits for the reader.", "dup_userfaultfd; userfaultfd.rst";
    P_EXIT "F-015" "exit gives everything back.", "exit_mmap; _exit(2)";
    M_STATUS "M-002" "move_pages: node of a moved or resident page, -ENOENT for nothing there, -EFAULT for no mapping and the zero page, -EACCES for pages others map.", "add_page_for_migration, do_pages_stat_array; move_pages(2)";
    M_CALL "M-001" "move_pages refuses unknown flags and nodes without memory.", "kernel_move_pages, do_pages_move; move_pages(2)";
    M_MBIND "M-010" "mbind: unaligned start, bad mode, flags or mask EINVAL; a hole EFAULT; misplaced pages EIO under STRICT only.", "do_mbind, queue_pages_range; mbind(2)";
    M_MIGRATE "M-013" "migrate_pages: EINVAL for an empty target, else the number of pages left behind.", "kernel_migrate_pages; migrate_pages(2)";
    M_POLICY "M-014" "set_mempolicy: a mode takes the nodes its manual says, else EINVAL.", "do_set_mempolicy, mpol_new; set_mempolicy(2)";
    G_READ "G-003" "process_vm_readv and its kin give the bytes before the first page they cannot have, EFAULT if none.", "process_vm_rw_core, check_vma_flags; process_vm_readv(2)";
    G_PIN "G-006" "A long-term pin takes the whole range writable or nothing: EFAULT; 6.1 also wants it of one file, else EINVAL.", "io_pin_pages, check_vma_flags; io_uring_register(2)";
    S_UNPOISON "P-030" "unpoison takes back simulated poison or says why not.", "unpoison_memory; hwpoison.rst";
    S_KNOB "S-001" "A setting takes its documented values.", "admin-guide/mm/transhuge.rst, hugetlbpage.rst";
}
