//! Planted faults: what a run with a canary reports or leaves behind on purpose, so that the
//! host can prove that it sees such things.

use crate::sys;
use case::Op;
use case::link::Canary;
use case::observation::{ContentRun, LineObs, Output, Status, Word};

/// The last `write` of a program: the content canary strikes after it.
pub fn flip_at(canary: Option<Canary>, ops: &[&Op]) -> Option<u16> {
    if canary != Some(Canary::WrongContent) {
        return None;
    }
    ops.iter().rposition(|op| matches!(op, Op::Write { .. })).map(|line| line as u16)
}

/// Falsifies the report of a finished program.
pub fn falsify(canary: Option<Canary>, lines: &mut [LineObs], ops: &[&Op]) {
    match canary {
        Some(Canary::WrongErrno) => {
            let failed = lines.iter_mut().find_map(|line| match &mut line.status {
                Status::Err(errno) => Some(errno),
                _ => None,
            });
            if let Some(errno) = failed {
                *errno += 1;
            }
        }
        Some(Canary::MissingSigbus) => {
            if let Some(index) = lines.iter().position(is_sigbus) {
                hide_signal(&mut lines[index], ops[index]);
            }
        }
        _ => {}
    }
}

fn is_sigbus(line: &LineObs) -> bool {
    matches!(line.status, Status::Signal(seen) if i32::from(seen.signo) == libc::SIGBUS)
}

fn hide_signal(line: &mut LineObs, op: &Op) {
    line.status = Status::Ok(0);
    if let Op::Read { at, len } = op {
        let page = case::limits::PAGE;
        let pages = (at.off % page + len.0).div_ceil(page) as u32;
        line.out = Output::Content(vec![ContentRun { pages, head: Word::Zero, tail: Word::Zero }]);
    }
}

/// A huge page kept over the teardown; unmapped when dropped.
#[derive(Debug)]
pub struct Leak(*mut libc::c_void);

const LEAK_BYTES: usize = 2 << 20;

impl Leak {
    /// Maps and touches one 2 MiB page of the pool, if it has one.
    pub fn plant(canary: Option<Canary>) -> Option<Leak> {
        if canary != Some(Canary::LeakedHugePage) {
            return None;
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | 21 << 26;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping of the worker's own; its one page is reserved, so the touch
        // succeeds.
        unsafe {
            let at = libc::mmap(std::ptr::null_mut(), LEAK_BYTES, prot, flags, -1, 0);
            if at == libc::MAP_FAILED {
                return None;
            }
            at.cast::<u8>().write_volatile(1);
            Some(Leak(at))
        }
    }
}

impl Drop for Leak {
    fn drop(&mut self) {
        // SAFETY: the mapping made by `plant`.
        unsafe { libc::munmap(self.0, LEAK_BYTES) };
    }
}

/// Makes the kernel print a real report and carry on: a thread that waits too long for a lock.
/// Where hung tasks are not detected, the kernel is made to panic instead.
pub fn kernel_report() {
    const TIMEOUT: &str = "/proc/sys/kernel/hung_task_timeout_secs";
    if sys::put(TIMEOUT, "1").is_err() || !block_a_task() {
        let _ = sys::put("/proc/sysrq-trigger", "c");
    }
}

/// How long a waiter is left blocked at most; the detector needs two of its scans.
const BLOCKED_MS: u64 = 8000;
/// Reports the kernel may still print: it counts down with each.
const WARNINGS: &str = "/proc/sys/kernel/hung_task_warnings";

/// A write to a file holds its inode lock while the source page waits for a userfault; a second
/// write to the same file then waits for that lock, uninterruptibly. Closing the userfaultfd
/// frees both.
fn block_a_task() -> bool {
    for (name, value) in [
        ("hung_task_warnings", "1"),
        ("hung_task_check_interval_secs", "1"),
        ("hung_task_panic", "0"),
    ] {
        let _ = sys::put(&format!("/proc/sys/kernel/{name}"), value);
    }
    let Some((uffd, page)) = waiting_page() else { return false };
    let Ok(file) = sys::open("/tmp/report", libc::O_RDWR | libc::O_CREAT) else { return false };
    let write_at = move |source: u64| {
        // SAFETY: the kernel reads the source, which is mapped for as long as the threads run.
        unsafe { libc::pwrite(file, source as *const _, 8, 0) };
    };
    let other = [0u8; 8];
    std::thread::scope(|scope| {
        scope.spawn(move || write_at(page));
        sys::sleep_ms(100);
        let source = other.as_ptr() as u64;
        scope.spawn(move || write_at(source));
        let until = sys::now() + BLOCKED_MS * 1_000_000;
        while sys::now() < until && !reported() {
            sys::sleep_ms(50);
        }
        sys::close(uffd);
    });
    let done = reported();
    let _ = sys::put(WARNINGS, "10");
    sys::close(file);
    // SAFETY: the page mapped by `waiting_page`.
    unsafe { libc::munmap(page as *mut _, 4096) };
    let _ = sys::put("/proc/sys/kernel/hung_task_timeout_secs", "120");
    done
}

/// Whether the one report has been printed.
fn reported() -> bool {
    std::fs::read_to_string(WARNINGS).is_ok_and(|left| left.trim() == "0")
}

/// A page whose first touch waits until the returned userfaultfd is closed.
fn waiting_page() -> Option<(i32, u64)> {
    use crate::uapi;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a fresh mapping and a fresh descriptor.
    let (page, uffd) = unsafe {
        (
            libc::mmap(std::ptr::null_mut(), 4096, prot, flags, -1, 0),
            libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) as i32,
        )
    };
    if page == libc::MAP_FAILED || uffd == -1 {
        return None;
    }
    let mut api = uapi::Api { api: uapi::API, features: 0, ioctls: 0 };
    let range = uapi::Range { start: page as u64, len: 4096 };
    let mut register = uapi::Fill { range, mode: 1, out: 0 };
    (uapi::call(uffd, uapi::IOC_API, &mut api) == 0
        && uapi::call(uffd, uapi::IOC_REGISTER, &mut register) == 0)
        .then_some((uffd, page as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use case::observation::{SignalSeen, Spot};
    use case::value::{Bytes, Place};

    fn line(status: Status) -> LineObs {
        LineObs {
            status,
            out: Output::Nothing,
            also: None,
            events: Vec::new(),
            views: Vec::new(),
            pools: None,
        }
    }

    #[test]
    fn only_the_first_failure_gets_another_errno() {
        let op = Op::Munmap { at: Place::new(0, 0), len: Bytes(0) };
        let mut lines = [line(Status::Ok(0)), line(Status::Err(22)), line(Status::Err(22))];
        falsify(Some(Canary::WrongErrno), &mut lines, &[&op, &op, &op]);
        assert_eq!(lines.map(|l| l.status), [Status::Ok(0), Status::Err(23), Status::Err(22)]);
    }

    #[test]
    fn a_sigbus_becomes_a_read_of_zeros() {
        let op = Op::Read { at: Place::new(0, 0), len: Bytes(8192) };
        let seen = SignalSeen { signo: 7, code: 2, at: Spot::Outside(0), lsb: 0 };
        let mut lines =
            [line(Status::Signal(SignalSeen { signo: 11, ..seen })), line(Status::Signal(seen))];
        falsify(Some(Canary::MissingSigbus), &mut lines, &[&op, &op]);
        assert!(matches!(lines[0].status, Status::Signal(_)));
        assert_eq!(lines[1].status, Status::Ok(0));
        assert!(matches!(&lines[1].out, Output::Content(runs) if runs[0].pages == 2));
    }
}
