//! Which generation of high-granularity mapping this kernel has: how it is asked for, and what two
//! pieces of one page count. Found by mapping pieces of a huge page of the agent's own.

use super::{HUGE_PAGE, MADV_SPLIT, Mapping, userfaultfd};
use crate::sys::errno;
use case::limits::PAGE;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// Bit 13: MINOR_HUGETLBFS_HGM here, WP_UNPOPULATED upstream.
const FEATURE: u64 = 1 << 13;
const MINOR_HUGETLBFS: u64 = 1 << 9;
const EXACT_ADDRESS: u64 = 1 << 11;
/// _IOWR(0xAA, 0x00, struct uffdio_register).
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
/// _IOWR(0xAA, 0x07, struct uffdio_continue).
const UFFDIO_CONTINUE: u64 = 0xc020_aa07;
const MODE_MINOR: u64 = 4;

/// A file of one huge page, a shared mapping of it, and the userfaultfd it is registered with.
struct Page {
    uffd: OwnedFd,
    mapping: Mapping,
}

impl Page {
    /// Nothing is reserved; with `filled` the page is allocated, which needs one in the pool.
    fn new(features: u64, split: bool, filled: bool) -> Option<Page> {
        let flags = libc::MFD_CLOEXEC | libc::MFD_HUGETLB | libc::MFD_HUGE_2MB;
        // SAFETY: a terminated name and flags.
        let fd = unsafe { libc::memfd_create(c"probe".as_ptr(), flags) };
        if fd < 0 {
            return None;
        }
        // SAFETY: the kernel just made this descriptor for us.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(HUGE_PAGE as u64).ok()?;
        // SAFETY: a descriptor of ours.
        if filled && unsafe { libc::fallocate(fd, 0, 0, HUGE_PAGE as libc::off_t) } != 0 {
            return None;
        }
        let mapping = Mapping::of(&file, HUGE_PAGE)?;
        // SAFETY: changes a flag of our own mapping.
        if split && unsafe { libc::madvise(mapping.at, HUGE_PAGE, MADV_SPLIT) } != 0 {
            return None;
        }
        let (uffd, _) = userfaultfd(features)?;
        let mut register = [mapping.at as u64, HUGE_PAGE as u64, MODE_MINOR, 0];
        // SAFETY: `register` is struct uffdio_register: start, len, mode, ioctls.
        let done = unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_REGISTER, register.as_mut_ptr()) };
        (done == 0).then_some(Page { uffd, mapping })
    }

    /// CONTINUE of one base page: 0 or errno.
    fn piece(&self, index: u64) -> i32 {
        let mut range = [self.mapping.at as u64 + index * PAGE, PAGE, 0, 0];
        // SAFETY: `range` is struct uffdio_continue: start, len, mode, mapped. The range is in our
        // own mapping, and nobody holds a reference into it.
        let done =
            unsafe { libc::ioctl(self.uffd.as_raw_fd(), UFFDIO_CONTINUE, range.as_mut_ptr()) };
        if done == 0 { 0 } else { errno() }
    }

    /// The pagemap entry of a base page.
    fn entry(&self, index: u64) -> Option<u64> {
        let pagemap = File::open("/proc/self/pagemap").ok()?;
        let mut raw = [0u8; 8];
        let at = (self.mapping.at as u64 / PAGE + index) * 8;
        pagemap.read_exact_at(&mut raw, at).ok()?;
        Some(u64::from_ne_bytes(raw))
    }
}

/// Does bit 13 allow pieces? A base page that is not there is then looked for (EFAULT); elsewhere its
/// address is refused (EINVAL).
pub(super) fn by_feature() -> bool {
    let page = Page::new(FEATURE | MINOR_HUGETLBFS | EXACT_ADDRESS, false, false);
    page.is_some_and(|page| page.piece(1) == libc::EFAULT)
}

/// Do two pieces of a page in one mapping look like two mappings of it? Where no page is to be had,
/// as the generation was posted that the way of asking belongs to.
pub(super) fn count_whole(split: bool, feature: bool) -> bool {
    let unknown = feature && !split;
    if !split && !feature {
        return false;
    }
    shared_with_itself(split).unwrap_or(unknown)
}

fn shared_with_itself(split: bool) -> Option<bool> {
    const PRESENT: u64 = 1 << 63;
    const EXCLUSIVE: u64 = 1 << 56;
    let features = if split { MINOR_HUGETLBFS } else { FEATURE | MINOR_HUGETLBFS | EXACT_ADDRESS };
    let page = Page::new(features, split, true)?;
    if page.piece(1) != 0 || page.piece(2) != 0 {
        return None;
    }
    let entry = page.entry(1).filter(|entry| entry & PRESENT != 0)?;
    Some(entry & EXCLUSIVE == 0)
}
