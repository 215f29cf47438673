//! Bringing the machine up: mounts, modules, and switching off whatever would change memory
//! behind a program's back. A thing this kernel lacks is passed over.

use crate::sys;
use std::ffi::CString;

const MOUNTS: &[(&str, &str, &str)] = &[
    ("proc", "/proc", ""),
    ("sysfs", "/sys", ""),
    ("devtmpfs", "/dev", ""),
    ("tmpfs", "/tmp", ""),
    ("hugetlbfs", "/mnt/huge2m", "pagesize=2M"),
    ("hugetlbfs", "/mnt/huge1g", "pagesize=1G"),
    ("debugfs", "/sys/kernel/debug", ""),
    ("tracefs", "/sys/kernel/tracing", ""),
];

/// Settings that keep the machine still between a program's ops, and its reports complete.
const QUIET: &[(&str, &str)] = &[
    ("/sys/kernel/mm/transparent_hugepage/khugepaged/defrag", "0"),
    ("/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs", "4294967295"),
    ("/sys/kernel/mm/transparent_hugepage/khugepaged/alloc_sleep_millisecs", "4294967295"),
    ("/sys/kernel/mm/transparent_hugepage/khugepaged/pages_to_scan", "1"),
    // Its one look, see `spend_first_look`, shall find nothing to do.
    ("/sys/kernel/mm/transparent_hugepage/khugepaged/max_ptes_none", "0"),
    ("/sys/kernel/mm/transparent_hugepage/khugepaged/max_ptes_shared", "0"),
    // With that limit off its default, huge pages with zero parts would be split under pressure.
    ("/sys/kernel/mm/transparent_hugepage/shrink_underused", "0"),
    ("/sys/kernel/mm/ksm/run", "0"),
    ("/proc/sys/kernel/numa_balancing", "0"),
    ("/proc/sys/vm/compaction_proactiveness", "0"),
    ("/proc/sys/vm/overcommit_memory", "1"),
    ("/proc/sys/vm/memory_failure_early_kill", "0"),
    ("/proc/sys/vm/unprivileged_userfaultfd", "1"),
    ("/proc/sys/kernel/printk", "7 4 1 7"),
    ("/proc/sys/kernel/printk_ratelimit", "0"),
    ("/proc/sys/kernel/panic_on_oops", "1"),
    ("/proc/sys/kernel/print-fatal-signals", "0"),
    ("/proc/sys/debug/exception-trace", "0"),
    ("/proc/sys/kernel/core_pattern", ""),
];

/// Settings that programs change; put back when a worker died before it could.
const KNOBS: &[&str] = &[
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/kernel/mm/transparent_hugepage/shmem_enabled",
    "/sys/kernel/mm/transparent_hugepage/use_zero_page",
    "/sys/kernel/mm/transparent_hugepage/khugepaged/defrag",
    "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
    "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages",
    "/proc/sys/kernel/numa_balancing",
];

/// Mounts what the agent needs.
pub fn mount_all() {
    for (kind, at, data) in MOUNTS {
        let _ = std::fs::create_dir_all(at);
        let (Ok(kind), Ok(at), Ok(data)) =
            (CString::new(*kind), CString::new(*at), CString::new(*data))
        else {
            continue;
        };
        // SAFETY: four terminated strings. A kernel without that file system says ENODEV.
        unsafe {
            libc::mount(kind.as_ptr(), at.as_ptr(), kind.as_ptr(), 0, data.as_ptr().cast());
        }
    }
    open_console();
}

/// An initramfs without /dev/console starts init without descriptors.
fn open_console() {
    if let Ok(fd) = sys::open("/dev/console", libc::O_RDWR) {
        for std in 0..3 {
            // SAFETY: descriptors of the agent itself.
            unsafe { libc::dup2(fd, std) };
        }
        if fd > 2 {
            sys::close(fd);
        }
    }
}

/// Loads the modules named in /modules/order, one file name a line, in that order.
pub fn load_modules() {
    let Ok(order) = std::fs::read_to_string("/modules/order") else { return };
    for name in order.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        if let Err(errno) = load_module(name)
            && errno != libc::EEXIST
        {
            sys::say(&format!("module {name} not loaded: errno {errno}"));
        }
    }
}

fn load_module(name: &str) -> Result<(), i32> {
    const COMPRESSED: i32 = 4;
    let path = if name.starts_with('/') { name.into() } else { format!("/modules/{name}") };
    let fd = sys::open(&path, libc::O_RDONLY)?;
    let flags = if name.ends_with(".ko") { 0 } else { COMPRESSED };
    // A RAM disk for the longest transfer, in KiB; the command line says so where brd is built in.
    let file = name.rsplit('/').next().unwrap_or(name);
    let params = if file.starts_with("brd.") { c"rd_size=32768" } else { c"" };
    // SAFETY: a descriptor and a terminated parameter string.
    let ret = unsafe { libc::syscall(libc::SYS_finit_module, fd, params.as_ptr(), flags) };
    let result = if ret == 0 { Ok(()) } else { Err(sys::errno()) };
    sys::close(fd);
    result
}

/// Switches off background work and makes sure that kernel reports reach the console.
pub fn quiet() {
    for (path, value) in QUIET {
        let _ = sys::put(path, value);
    }
    spend_first_look();
    // SAFETY: no core files: a dump would take the memory lock of a dying program.
    unsafe {
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        libc::setrlimit(libc::RLIMIT_CORE, &none);
    }
}

/// khugepaged looks at the first process that may have huge pages at once, however long it is told to
/// sleep, and sleeps from then on while it knows of one. That process is the agent, which has nothing
/// for it; it would be a program, which would see its pages move.
fn spend_first_look() {
    const LEN: usize = 4 << 20;
    let (prot, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a mapping of its own that nobody else knows.
    unsafe {
        let at = libc::mmap(std::ptr::null_mut(), LEN, prot, flags, -1, 0);
        if at != libc::MAP_FAILED {
            // Only memory that was written to counts.
            at.cast::<u8>().write_volatile(1);
            libc::madvise(at, LEN, libc::MADV_HUGEPAGE);
            libc::munmap(at, LEN);
        }
    }
}

/// The settings programs may change, as they were at the start.
#[derive(Debug)]
pub struct Settings(Vec<(&'static str, String)>);

impl Settings {
    /// Reads them.
    pub fn take() -> Self {
        let read = |path: &&'static str| {
            let text = std::fs::read_to_string(path).ok()?;
            Some((*path, chosen(&text).to_string()))
        };
        Settings(KNOBS.iter().filter_map(read).collect())
    }

    /// Writes back those that differ.
    pub fn restore(&self) {
        for (path, value) in &self.0 {
            let now = std::fs::read_to_string(path).unwrap_or_default();
            if chosen(&now) != value {
                let _ = sys::put(path, value);
            }
        }
    }
}

/// Switches the machine off.
pub fn power_off() -> ! {
    // SAFETY: the machine ends here.
    unsafe {
        libc::sync();
        libc::reboot(libc::RB_POWER_OFF);
        libc::_exit(0)
    }
}

/// The chosen word of `always [madvise] never`, or the whole text.
fn chosen(text: &str) -> &str {
    let inside = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    inside.map_or(text.trim(), |(word, _)| word)
}
