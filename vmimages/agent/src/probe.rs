//! What this kernel can do, found by trying. Runs once, before any program; each probe cleans up
//! after itself. The version string is carried but decides nothing.

mod pieces;

use crate::special::{FAIL_NTH, GUP_TEST, UNPOISON, io_uring_ring, open_ram_disk, thp_setting};
use case::limits::PAGE;
use case::profile::Profile;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

/// Probes the running kernel. Needs root, /proc, /sys and debugfs mounted, modules loaded.
pub fn profile() -> Profile {
    let uname = nix::sys::utsname::uname();
    let text = |part: Option<&std::ffi::OsStr>| {
        part.map_or_else(String::new, |part| part.to_string_lossy().into_owned())
    };
    let thp_enabled = thp_setting("enabled");
    let madv_split = knows_advice(MADV_SPLIT, libc::MAP_SHARED | libc::MAP_HUGETLB);
    let hgm_feature = pieces::by_feature();
    Profile {
        release: text(uname.as_ref().ok().map(|u| u.release())),
        version: text(uname.as_ref().ok().map(|u| u.version())),
        uffd_features: uffd_features().unwrap_or(0),
        huge_2m: has_hstate("hugepages-2048kB"),
        huge_1g: has_hstate("hugepages-1048576kB"),
        madv_split,
        hgm_feature,
        hgm_leaves_count_whole: pieces::count_whole(madv_split, hgm_feature),
        pagemap_scan: pagemap_scan(),
        thp: !thp_enabled.is_empty(),
        collapse: knows_advice(MADV_COLLAPSE, libc::MAP_PRIVATE),
        soft_dirty: soft_dirty(),
        gup_test: may_open(GUP_TEST),
        fail_nth: may_open(FAIL_NTH),
        unpoison: OpenOptions::new().write(true).open(UNPOISON).is_ok(),
        ram_disk: open_ram_disk().is_ok(),
        io_uring: io_uring_ring().is_ok(),
        kcov: may_open("/sys/kernel/debug/kcov"),
        swap: swap(),
        cpus: listed("/sys/devices/system/cpu/online"),
        nodes: listed("/sys/devices/system/node/online"),
        thp_enabled,
        thp_shmem: thp_setting("shmem_enabled"),
        thp_zero_page: thp_setting("use_zero_page") == "1",
    }
}

/// HGM generations V1 and V2.
const MADV_SPLIT: i32 = 26;
const MADV_COLLAPSE: i32 = 25;
const HUGE_PAGE: usize = 2 << 20;
/// _IOWR(0xAA, 0x3F, struct uffdio_api).
const UFFDIO_API: u64 = 0xc018_aa3f;
/// _IOWR('f', 16, struct pm_scan_arg).
const PAGEMAP_SCAN: u64 = 0xc060_6610;

fn may_open(path: &str) -> bool {
    OpenOptions::new().read(true).write(true).open(path).is_ok()
}

fn has_hstate(name: &str) -> bool {
    Path::new("/sys/kernel/mm/hugepages").join(name).is_dir()
}

/// Features UFFDIO_API offers when none are asked for.
fn uffd_features() -> Option<u64> {
    userfaultfd(0).map(|(_, offered)| offered)
}

/// A userfaultfd with the features asked for, and what the kernel offers.
fn userfaultfd(features: u64) -> Option<(OwnedFd, u64)> {
    // SAFETY: takes flags only.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: the kernel just made this descriptor for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    const UFFD_API: u64 = 0xaa;
    let mut api = [UFFD_API, features, 0];
    // SAFETY: `api` is struct uffdio_api: api, features, ioctls.
    let ret = unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, api.as_mut_ptr()) };
    (ret == 0).then_some((fd, api[1]))
}

/// A mapping that goes away with its scope.
struct Mapping {
    at: *mut libc::c_void,
    len: usize,
}

impl Mapping {
    /// Anonymous read-write memory without a reservation.
    fn new(len: usize, flags: i32) -> Option<Mapping> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = flags | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
        (at != libc::MAP_FAILED).then_some(Mapping { at, len })
    }

    /// A file from its start, shared, without a reservation.
    fn of(file: &File, len: usize) -> Option<Mapping> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let (flags, fd) = (libc::MAP_SHARED | libc::MAP_NORESERVE, file.as_raw_fd());
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, fd, 0) };
        (at != libc::MAP_FAILED).then_some(Mapping { at, len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `new` mapped; no reference into it is left.
        unsafe { libc::munmap(self.at, self.len) };
    }
}

/// Whether madvise(2) takes an advice for a mapping of this sort. The range is empty: the number
/// is checked first, and an empty range is then a success that changes nothing.
fn knows_advice(advice: i32, mapping: i32) -> bool {
    let Some(mapping) = Mapping::new(HUGE_PAGE, mapping) else { return false };
    // SAFETY: an empty range of our own mapping.
    unsafe { libc::madvise(mapping.at, 0, advice) == 0 }
}

/// An empty PAGEMAP_SCAN of the agent itself.
fn pagemap_scan() -> bool {
    const ARG_WORDS: usize = 12;
    let Ok(pagemap) = File::open("/proc/self/pagemap") else { return false };
    let mut arg = [0u64; ARG_WORDS];
    arg[0] = size_of_val(&arg) as u64;
    // SAFETY: `arg` is struct pm_scan_arg with its size in the first word and no output vector.
    unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, arg.as_mut_ptr()) >= 0 }
}

/// Clears soft-dirty bits in a child of its own and sees whether a store sets one again. The
/// child's page tables are its own; only that it exits with 0 is told.
fn soft_dirty() -> bool {
    // SAFETY: the child makes no threads and leaves by _exit; the agent has none at this point.
    let child = unsafe { libc::fork() };
    if child < 0 {
        return false;
    }
    if child == 0 {
        let seen = soft_dirty_bit().unwrap_or(false);
        // SAFETY: ends the child without running the agent's exit handlers.
        unsafe { libc::_exit(i32::from(!seen)) };
    }
    let mut status = 0;
    // SAFETY: waits for the child made above; `status` is ours.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    waited == child && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
}

fn soft_dirty_bit() -> Option<bool> {
    use std::os::unix::fs::FileExt;
    let page = Mapping::new(PAGE as usize, libc::MAP_PRIVATE)?;
    let word = page.at.cast::<u64>();
    let pagemap = File::open("/proc/self/pagemap").ok()?;
    let dirty = || -> Option<bool> {
        let mut raw = [0u8; 8];
        pagemap.read_exact_at(&mut raw, page.at as u64 / PAGE * 8).ok()?;
        Some(u64::from_ne_bytes(raw) >> 55 & 1 != 0)
    };
    // SAFETY: the mapping is writable and one page long, here and below.
    unsafe { word.write_volatile(1) };
    std::fs::write("/proc/self/clear_refs", "4").ok()?;
    let cleared = !dirty()?;
    // SAFETY: as above.
    unsafe { word.write_volatile(2) };
    Some(cleared && dirty()?)
}

/// Whether any swap area is on: /proc/swaps has a line below its heading.
fn swap() -> bool {
    std::fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() > 1)
}

/// Entries of a list such as `0-3,5`; 1 if the file is not there.
fn listed(path: &str) -> u8 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    count(text.trim()).unwrap_or(1)
}

fn count(list: &str) -> Option<u8> {
    let mut all = 0u32;
    for part in list.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to): (u32, u32) = (from.parse().ok()?, to.parse().ok()?);
        all = all.checked_add(to.checked_sub(from)?.checked_add(1)?)?;
    }
    u8::try_from(all).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus() {
        assert_eq!(count("0-3"), Some(4));
        assert_eq!(count("0"), Some(1));
        assert_eq!(count("0-1,4-5,7"), Some(5));
        assert_eq!(count("3-1"), None);
        assert_eq!(count(""), None);
    }
}
