//! What the guest prints: kept in bounded memory, first and last parts, with a count of what was
//! dropped in between. The reader thread never stops reading, so a flood cannot stall QEMU.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv};
use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Kept from the start of the boot, in bytes.
pub const HEAD_BYTES: usize = 256 << 10;
/// Kept from the last mark on, in bytes: the start of a report that a flood follows.
pub const PIN_BYTES: usize = 1 << 20;
/// Kept from the end, in bytes.
pub const TAIL_BYTES: usize = 1 << 20;
/// Written to console.log at most, in bytes.
const LOG_BYTES_MAX: u64 = 16 << 20;
/// More than a socket holds that nobody reads, in bytes.
const PENDING_BYTES_MAX: usize = 4 << 20;

/// Bounded memory of a stream. Offsets count every byte ever seen.
#[derive(Debug, Default)]
struct Ring {
    head: Vec<u8>,
    pin: Vec<u8>,
    pin_start: u64,
    tail: VecDeque<u8>,
    total: u64,
    ended: bool,
}

impl Ring {
    fn push(&mut self, bytes: &[u8]) {
        let room = |kept: usize, cap: usize| bytes.len().min(cap - kept);
        if self.head.len() as u64 == self.total {
            self.head.extend_from_slice(&bytes[..room(self.head.len(), HEAD_BYTES)]);
        }
        if self.pin_start + self.pin.len() as u64 == self.total {
            self.pin.extend_from_slice(&bytes[..room(self.pin.len(), PIN_BYTES)]);
        }
        let last = &bytes[bytes.len().saturating_sub(TAIL_BYTES)..];
        let drop = (self.tail.len() + last.len()).saturating_sub(TAIL_BYTES);
        self.tail.drain(..drop);
        self.tail.extend(last);
        self.total += bytes.len() as u64;
    }

    fn mark(&mut self) -> u64 {
        self.pin.clear();
        self.pin_start = self.total;
        self.total
    }

    /// What is kept from `mark` on, with a line in each gap.
    fn since(&self, mark: u64) -> Vec<u8> {
        let (a, b) = self.tail.as_slices();
        let tail_start = self.total - self.tail.len() as u64;
        let mut parts = [
            (0, self.head.as_slice()),
            (self.pin_start, self.pin.as_slice()),
            (tail_start, a),
            (tail_start + a.len() as u64, b),
        ];
        parts.sort_by_key(|(start, _)| *start);
        let mut out = Vec::new();
        let mut at = mark;
        for (start, bytes) in parts {
            let end = start + bytes.len() as u64;
            if end <= at {
                continue;
            }
            if start > at {
                let gap = format!("\n[{} bytes of console dropped]\n", start - at);
                out.extend_from_slice(gap.as_bytes());
                at = start;
            }
            out.extend_from_slice(&bytes[(at - start) as usize..]);
            at = end;
        }
        out
    }
}

/// Our end of the stream with what came out of it. One lock for both: whoever holds it and finds the
/// stream empty has seen everything that was written.
#[derive(Debug)]
struct Intake {
    stream: UnixStream,
    ring: Ring,
    log: Option<File>,
    /// Bytes console.log still takes.
    room: u64,
    chunk: Vec<u8>,
}

impl Intake {
    /// Takes one piece of what is there, and says its length. Never waits.
    fn take(&mut self) -> usize {
        if self.ring.ended {
            return 0;
        }
        match recv(self.stream.as_raw_fd(), &mut self.chunk, MsgFlags::MSG_DONTWAIT) {
            Ok(n @ 1..) => {
                self.keep(n);
                n
            }
            Err(Errno::EINTR | Errno::EAGAIN) => 0,
            _ => {
                self.ring.ended = true;
                0
            }
        }
    }

    fn keep(&mut self, n: usize) {
        let bytes = &self.chunk[..n];
        self.ring.push(bytes);
        let logged = self.room.min(n as u64);
        self.room -= logged;
        if let Some(file) = &mut self.log
            && file.write_all(&bytes[..logged as usize]).is_err()
        {
            self.log = None; // a full disk must not end the console
        }
    }

    /// Takes what was written before the call, or as much of a flood as a socket holds.
    fn take_all(&mut self) {
        let mut taken = 0;
        while taken < PENDING_BYTES_MAX {
            match self.take() {
                0 => break,
                n => taken += n,
            }
        }
    }
}

/// The console of one VM.
#[derive(Clone, Debug)]
pub struct Console {
    shared: Arc<(Mutex<Intake>, Condvar)>,
}

impl Console {
    /// Starts the reader thread on QEMU's end of the console; it ends when the stream does.
    pub fn start(stream: UnixStream, log: Option<File>) -> std::io::Result<Console> {
        let awaited = stream.try_clone()?;
        let chunk = vec![0; 32 << 10];
        let intake = Intake { stream, ring: Ring::default(), log, room: LOG_BYTES_MAX, chunk };
        let console = Console { shared: Arc::new((Mutex::new(intake), Condvar::new())) };
        let reader = console.clone();
        std::thread::Builder::new().name("console".into()).stack_size(128 << 10).spawn(
            move || {
                loop {
                    let mut fds = [PollFd::new(awaited.as_fd(), PollFlags::POLLIN)];
                    let ready = poll(&mut fds, PollTimeout::NONE);
                    let mut intake = reader.lock();
                    intake.ring.ended |= ready.is_err_and(|error| error != Errno::EINTR);
                    intake.take();
                    if intake.ring.ended {
                        break;
                    }
                }
                reader.shared.1.notify_all();
            },
        )?;
        Ok(console)
    }

    fn lock(&self) -> MutexGuard<'_, Intake> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the guest wrote before it said something on its link is counted when that was heard:
    /// the reader thread may be behind.
    fn lock_read(&self) -> MutexGuard<'_, Intake> {
        let mut intake = self.lock();
        intake.take_all();
        intake
    }

    /// Bytes written so far. The place becomes the mark whose following bytes are kept even if a
    /// flood comes after them.
    pub fn mark(&self) -> u64 {
        self.lock_read().ring.mark()
    }

    /// What is kept from `mark` on.
    pub fn since(&self, mark: u64) -> Vec<u8> {
        self.lock_read().ring.since(mark)
    }

    /// What is kept from `from` on, and the mark behind it.
    pub fn read(&self, from: u64) -> (Vec<u8>, u64) {
        let mut intake = self.lock_read();
        (intake.ring.since(from), intake.ring.mark())
    }

    /// Waits, but not for long, until everything a dead QEMU wrote has been read.
    pub fn wait_end(&self, timeout: Duration) {
        let (_, ended) = &*self.shared;
        let guard = self.lock();
        drop(ended.wait_timeout_while(guard, timeout, |intake| !intake.ring.ended));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(from: usize, to: usize) -> Vec<u8> {
        (from..to).map(|n| (n % 251) as u8).collect()
    }

    #[test]
    fn a_short_stream_is_kept_whole_from_any_mark() {
        let mut ring = Ring::default();
        let all = numbered(0, 5000);
        for part in all.chunks(7) {
            if ring.total == 1400 {
                ring.mark();
            }
            ring.push(part);
        }
        for mark in [0, 1, 1400, 4999, 5000, 9000] {
            assert_eq!(ring.since(mark), all[all.len().min(mark as usize)..], "{mark}");
        }
    }

    #[test]
    fn a_flood_keeps_head_report_and_tail_and_says_what_is_gone() {
        let mut ring = Ring::default();
        ring.push(b"boot line\n");
        ring.push(&vec![b'.'; 3 * TAIL_BYTES]);
        let mark = ring.mark();
        ring.push(b"KASAN: report\n");
        for _ in 0..400 {
            ring.push(&vec![b'x'; 32 << 10]);
        }
        ring.push(b"last words");
        let flood = 400 * (32 << 10);
        let seen = ring.since(mark);
        assert!(seen.starts_with(b"KASAN: report\n"));
        assert!(seen.ends_with(b"xlast words"));
        assert!(seen.len() < PIN_BYTES + TAIL_BYTES + 100);
        let lost = 14 + flood + 10 - PIN_BYTES - TAIL_BYTES;
        let gap = format!("[{lost} bytes of console dropped]");
        let found = seen.windows(gap.len()).any(|w| w == gap.as_bytes());
        assert!(found, "{gap}");
        assert!(ring.since(0).starts_with(b"boot line\n"));
        let kept = ring.head.len() + ring.pin.len() + ring.tail.len();
        assert!(kept <= HEAD_BYTES + PIN_BYTES + TAIL_BYTES);
    }

    #[test]
    fn a_pin_inside_the_tail_makes_no_gap() {
        let mut ring = Ring::default();
        let all = numbered(0, HEAD_BYTES * 3);
        ring.push(&all[..HEAD_BYTES * 2]);
        ring.mark();
        ring.push(&all[HEAD_BYTES * 2..]);
        assert!(ring.since(0) == all);
    }

    #[test]
    fn one_huge_push_is_cut() {
        let mut ring = Ring::default();
        ring.push(&numbered(0, 4 * TAIL_BYTES));
        assert_eq!(ring.tail.len(), TAIL_BYTES);
        assert_eq!(ring.since(ring.total - 3), numbered(4 * TAIL_BYTES - 3, 4 * TAIL_BYTES));
    }

    /// The link is another stream with another reader: what it says last must not overtake.
    #[test]
    fn what_was_written_is_counted_at_once() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let console = Console::start(ours, None).unwrap();
        for n in 1..=2000 {
            (&theirs).write_all(b"0123456789").unwrap();
            let mark = console.mark();
            assert_eq!(mark, 11 * n - 1);
            (&theirs).write_all(b"x").unwrap();
            assert_eq!(console.since(mark), b"x");
            assert_eq!(console.read(mark), (b"x".to_vec(), mark + 1));
        }
    }

    #[test]
    fn the_reader_survives_binary_and_ends_with_the_stream() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let console = Console::start(ours, None).unwrap();
        (&theirs).write_all(b"\0\xff\x1b]0;evil\x07").unwrap();
        drop(theirs);
        console.wait_end(Duration::from_secs(5));
        assert_eq!(console.since(0), b"\0\xff\x1b]0;evil\x07");
    }
}
