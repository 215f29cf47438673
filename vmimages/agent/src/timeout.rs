//! The watchdog thread: breaks off an op that runs over its time, or waits for what nobody will do
//! ([`crate::stranded`]). First by a signal that leaves the guarded routine or makes a syscall
//! return EINTR, then, for waits that ignore signals, by reading events nobody reads and at last by
//! closing the userfaultfds. It never allocates.

use crate::board::{Board, NONE, Watch};
use crate::stranded::Stranded;
use crate::{guard, sys};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Barrier};

/// How often the watchdog looks.
const TICK_MS: u64 = 20;
/// Firings after which unread events are drained, and all uffds closed.
const DRAIN_AFTER: u32 = 3;
const CLOSE_AFTER: u32 = 6;
/// One firing per this part of an op's time: a kernel that is slow to do things is slow to take
/// signals too, and a uffd that was closed too early is one that later ops miss.
const EVERY_PART: u64 = 50;
const EVERY_MIN_NS: u64 = 50_000_000;

/// Starts the thread of this process and returns when it runs. What a thread maps for itself as it
/// begins must be over before anything is looked at: show_smaps_rollup of Linux 6.0 to 6.9 leaves
/// out a VMA whenever somebody waits for the mmap lock (mended by "mm: /proc/pid/smaps_rollup:
/// avoid skipping vma after getting mmap_lock again", 20240523183531.2535436-1).
pub fn start(board: &'static Board) -> std::io::Result<()> {
    let runs = Arc::new(Barrier::new(2));
    let begun = Arc::clone(&runs);
    std::thread::Builder::new().stack_size(64 << 10).spawn(move || {
        begun.wait();
        drop(begun);
        watch(board)
    })?;
    runs.wait();
    Ok(())
}

fn watch(board: &'static Board) {
    let mut stranded = Stranded::default();
    loop {
        if board.running.load(SeqCst) == 0 {
            sleep_until_running(board);
            continue;
        }
        sys::sleep_ms(TICK_MS);
        let hopeless = stranded.look(board);
        let now = sys::now();
        for slot in &board.watch {
            let deadline = slot.deadline.load(SeqCst);
            if hopeless && deadline > now {
                let _ = slot.deadline.compare_exchange(deadline, now, SeqCst, SeqCst);
            }
            if deadline != 0 && (hopeless || now >= deadline) {
                fire(board, slot, now);
            }
        }
    }
}

fn sleep_until_running(board: &'static Board) {
    let word: *const u32 = board.running.as_ptr();
    // SAFETY: a futex wait on a word of the board.
    unsafe {
        let none = std::ptr::null::<libc::timespec>();
        libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAIT, 0, none);
    }
}

/// Says that a program runs (or no longer does).
pub fn running(board: &Board, on: bool) {
    board.running.store(on.into(), SeqCst);
    if on {
        let word: *const u32 = board.running.as_ptr();
        // SAFETY: wakes the waiter on the same word.
        unsafe { libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAKE, 1) };
    }
}

fn fire(board: &Board, slot: &Watch, now: u64) {
    slot.firing.store(1, SeqCst);
    let old = slot.deadline.load(SeqCst);
    // The exchange makes sure that it is still the op that was late.
    let late = old != 0
        && old <= now
        && slot.deadline.compare_exchange(old, now + every_ns(board), SeqCst, SeqCst).is_ok();
    if late {
        break_off(board, slot);
    }
    slot.firing.store(0, SeqCst);
}

fn every_ns(board: &Board) -> u64 {
    (board.timeout_ns.load(SeqCst) / EVERY_PART).max(EVERY_MIN_NS)
}

fn break_off(board: &Board, slot: &Watch) {
    let fired = slot.fired.fetch_add(1, SeqCst) + 1;
    let (pid, tid) = (slot.pid.load(SeqCst), slot.tid.load(SeqCst));
    // SAFETY: a signal to a thread of ours; a stale id gives ESRCH.
    unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, guard::break_signal()) };
    let forced = match fired {
        DRAIN_AFTER => board.uffds.iter().filter(|u| drain(u.fd.load(SeqCst))).count() > 0,
        CLOSE_AFTER => {
            let closed = board.uffds.iter().filter(|u| close(u)).count();
            closed + crate::handler::close_forked() > 0
        }
        _ => false,
    };
    if forced {
        slot.forced.store(1, SeqCst);
    }
}

/// Reads what nobody reads; says whether there was something.
fn drain(fd: i32) -> bool {
    let mut message = [0u8; 32];
    // At most a queue's worth; the fd does not block.
    let read =
        (0..64).take_while(|_| fd != NONE && matches!(sys::read_some(fd, &mut message), Ok(32)));
    read.count() > 0
}

/// Ends the handler of a uffd and closes it; says whether it was open.
pub fn close(uffd: &crate::board::Uffd) -> bool {
    let stop = uffd.stop.swap(NONE, SeqCst);
    if stop != NONE {
        let _ = sys::write_all(stop, &1u64.to_ne_bytes());
    }
    let fd = uffd.fd.swap(NONE, SeqCst);
    if fd != NONE {
        sys::close(fd);
    }
    fd != NONE
}

/// How the watchdog took part in an op.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Late {
    No,
    /// It sent signals.
    Signalled,
    /// It took away what the op waited for.
    Forced,
}

/// Begins an op: the watchdog counts from here.
pub fn begin(board: &Board, slot: usize, line: u16, range: (u64, u64)) {
    let watch = &board.watch[slot];
    watch.fired.store(0, SeqCst);
    watch.forced.store(0, SeqCst);
    watch.line.store(line.into(), SeqCst);
    watch.from.store(range.0, SeqCst);
    watch.to.store(range.1, SeqCst);
    board.line.store(line.into(), SeqCst);
    watch.deadline.store(sys::now() + board.timeout_ns.load(SeqCst), SeqCst);
}

/// Ends an op.
pub fn end(board: &Board, slot: usize) -> Late {
    let watch = &board.watch[slot];
    watch.deadline.store(0, SeqCst);
    while watch.firing.load(SeqCst) != 0 || board.looking.load(SeqCst) != 0 {
        std::thread::yield_now();
    }
    if watch.fired.load(SeqCst) != 0 {
        // Any way through the kernel takes a signal that was just sent.
        std::thread::yield_now();
    }
    match (watch.fired.load(SeqCst), watch.forced.load(SeqCst)) {
        (0, _) => Late::No,
        (_, 0) => Late::Signalled,
        _ => Late::Forced,
    }
}

/// The calling thread runs no op any more.
pub fn dismiss(board: &Board, slot: usize) {
    board.watch[slot].tid.store(0, SeqCst);
}

/// The calling thread is the one of that slot.
pub fn enroll(board: &Board, slot: usize) {
    // SAFETY: getpid has no arguments.
    board.watch[slot].pid.store(unsafe { libc::getpid() }, SeqCst);
    board.watch[slot].tid.store(sys::gettid(), SeqCst);
}
