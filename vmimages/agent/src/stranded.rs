//! Waits that nobody will end: every thread of the program that is in an op sleeps in the kernel
//! until a userfault is answered, and no handler has anything left to answer. Such an op can be
//! broken off at once; to wait for its time to run out would take longer than everything else a
//! campaign does. Looks only; whose time is up the watchdog decides. It never allocates.

use crate::board::{Board, NONE, PAR_SLOT, WATCH_SLOTS};
use crate::sys;
use std::io::Write;
use std::sync::atomic::Ordering::SeqCst;

/// Looks in a row that must find the same threads in the same sleep. Looks, not time: a guest that
/// stands still makes none, and a thread that was woken is runnable at the next one, however late
/// it gets a CPU.
const LOOKS: u32 = 6;
/// Ops that are shorter are left alone.
const LOOK_AFTER_NS: u64 = 50_000_000;
/// What all kernel functions that wait for a userfaultfd have in their names.
const WAITS: &[u8] = b"userfault";
/// Line of /proc/PID/task/TID/status that changes whenever the thread has slept.
const SWITCHES: &[u8] = b"\nvoluntary_ctxt_switches:\t";

/// Sleeps of the threads in ops, by slot: line and number of the sleep.
type Sleeps = [Option<(u32, u64)>; WATCH_SLOTS];

/// What the last looks had in common.
#[derive(Debug, Default)]
pub struct Stranded {
    sleeps: Sleeps,
    looks: u32,
}

impl Stranded {
    /// Looks once more. True if the program has been stranded for long enough; then it starts anew.
    pub fn look(&mut self, board: &Board) -> bool {
        // No op ends while descriptors of ours are open: what a program closes is its own.
        board.looking.store(1, SeqCst);
        let sleeps = sleeps(board).filter(|_| handlers_idle(board));
        board.looking.store(0, SeqCst);
        match sleeps {
            Some(same) if same == self.sleeps => self.looks += 1,
            Some(sleeps) => *self = Stranded { sleeps, looks: 1 },
            None => *self = Stranded::default(),
        }
        let hopeless = self.looks >= LOOKS;
        if hopeless {
            *self = Stranded::default();
        }
        hopeless
    }
}

/// The sleep of each thread that is in an op; none if there is none, or one that is awake or
/// sleeps elsewhere: it may go on by itself and help the others.
fn sleeps(board: &Board) -> Option<Sleeps> {
    let mut sleeps: Sleeps = [None; WATCH_SLOTS];
    for (slot, watch) in board.watch.iter().enumerate() {
        let (pid, tid) = (watch.pid.load(SeqCst), watch.tid.load(SeqCst));
        let deadline = watch.deadline.load(SeqCst);
        if deadline == 0 {
            // A thread of a block between two ops goes on by itself.
            if slot >= PAR_SLOT && tid != 0 {
                return None;
            }
            continue;
        }
        let begun = deadline.saturating_sub(board.timeout_ns.load(SeqCst));
        if sys::now() < begun.saturating_add(LOOK_AFTER_NS) {
            return None;
        }
        let mut text = [0u8; 4096];
        let len = read(pid, tid, "wchan", &mut text);
        if !text[..len].windows(WAITS.len()).any(|w| w == WAITS) {
            return None;
        }
        let len = read(pid, tid, "status", &mut text);
        sleeps[slot] = Some((watch.line.load(SeqCst), switches(&text[..len])?));
    }
    sleeps.iter().any(Option::is_some).then_some(sleeps)
}

/// No handler has a message to read or to answer.
fn handlers_idle(board: &Board) -> bool {
    board.uffds.iter().all(|uffd| {
        let (fd, stop) = (uffd.fd.load(SeqCst), uffd.stop.load(SeqCst));
        if fd == NONE || stop == NONE {
            return true;
        }
        // In this order: a message is either still unread or already makes the handler busy.
        !sys::readable(fd, 0) && uffd.busy.load(SeqCst) == 0
    })
}

/// Bytes of a file of a thread; none if it cannot be read.
fn read(pid: i32, tid: i32, name: &str, text: &mut [u8]) -> usize {
    let mut path = [0u8; 64];
    // The last byte stays zero.
    let mut rest = &mut path[..63];
    if write!(rest, "/proc/{pid}/task/{tid}/{name}").is_err() {
        return 0;
    }
    // SAFETY: a path that ends in a zero.
    let fd = unsafe { libc::open(path.as_ptr().cast(), libc::O_RDONLY | libc::O_CLOEXEC) };
    if fd == -1 {
        return 0;
    }
    let len = sys::read_some(fd, text).unwrap_or(0);
    sys::close(fd);
    len
}

/// The number of sleeps in a status text.
fn switches(status: &[u8]) -> Option<u64> {
    let at = status.windows(SWITCHES.len()).position(|w| w == SWITCHES)? + SWITCHES.len();
    let digits = status[at..].iter().take_while(|b| b.is_ascii_digit());
    let number = |sum: u64, b: &u8| sum.checked_mul(10)?.checked_add(u64::from(b - b'0'));
    let mut sum = None;
    for digit in digits {
        sum = Some(number(sum.unwrap_or(0), digit)?);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleeps_are_counted_from_the_status() {
        let text = b"Name:\tx\nvoluntary_ctxt_switches:\t1207\nnonvoluntary_ctxt_switches:\t3\n";
        assert_eq!(switches(text), Some(1207));
        assert_eq!(switches(b"\nnonvoluntary_ctxt_switches:\t3\n"), None);
        assert_eq!(switches(b"\nvoluntary_ctxt_switches:\t\n"), None);
        assert_eq!(switches(b"\nvoluntary_ctxt_switches:\t99999999999999999999999\n"), None);
    }

    #[test]
    fn a_thread_that_is_awake_or_sleeps_elsewhere_strands_nobody() {
        let board = Board::create().unwrap();
        let mut stranded = Stranded::default();
        assert!((0..3 * LOOKS).all(|_| !stranded.look(board)), "no op runs");
        board.watch[0].pid.store(std::process::id() as i32, SeqCst);
        board.watch[0].tid.store(sys::gettid(), SeqCst);
        board.watch[0].deadline.store(1, SeqCst);
        assert!((0..3 * LOOKS).all(|_| !stranded.look(board)), "this very thread is awake");
        let (say, hear) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let sleeper = std::thread::spawn(move || {
            tell.send(sys::gettid()).unwrap();
            let _ = hear.recv();
        });
        board.watch[0].tid.store(told.recv().unwrap(), SeqCst);
        assert!((0..3 * LOOKS).all(|_| !stranded.look(board)), "it waits for a futex");
        drop(say);
        sleeper.join().unwrap();
    }
}
