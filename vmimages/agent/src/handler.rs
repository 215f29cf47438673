//! Threads that answer userfaults, one per userfaultfd with a policy. They read messages, answer
//! them, and record both. After their start they never allocate, so that a fork of the process
//! finds the heap in order.

use crate::board::{Board, NONE};
use crate::scratch::Scratch;
use crate::{guard, sys, uapi};
use case::limits::{EVENTS_MAX, PAGE};
use case::observation::{FaultSeen, Spot, event};
use case::program::HANDLER_SERIAL;
use case::value::{PageSize, Place, Policy, UffdId};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;

/// Faults whose answer met EAGAIN and is tried again.
const RETRIES: usize = 32;
/// Tries of one answer before its EAGAIN is the answer.
const TRIES_MAX: u16 = 200;
/// Messages recorded per program.
const RECORD_MAX: usize = 4096;
/// How long a line waits for the handlers to become idle after its op. On a busy host a thread may
/// stand still for long between a message and its record.
const SETTLE_NS: u64 = 500_000_000;

/// What handler threads and the worker share.
struct Record {
    seen: Vec<(u16, FaultSeen)>,
    /// Messages taken out before: the number of `seen[0]`.
    taken: usize,
    /// Descriptors that FORK events brought.
    forked: Vec<i32>,
}

struct Running {
    id: UffdId,
    stop: i32,
    thread: JoinHandle<()>,
}

static RECORD: Mutex<Record> =
    Mutex::new(Record { seen: Vec::new(), taken: 0, forked: Vec::new() });
static RUNNING: Mutex<Vec<Running>> = Mutex::new(Vec::new());

fn record() -> std::sync::MutexGuard<'static, Record> {
    RECORD.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn running() -> std::sync::MutexGuard<'static, Vec<Running>> {
    RUNNING.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Makes room for a program's messages, so that handlers need not allocate.
pub fn prepare() {
    let mut record = record();
    record.seen.clear();
    record.seen.reserve(RECORD_MAX);
    record.forked.clear();
    record.forked.reserve(RECORD_MAX);
}

/// Starts the thread of a userfaultfd and returns when it waits for messages.
pub fn start(board: &'static Board, id: UffdId, fd: i32, policy: Policy) -> Result<(), i32> {
    // SAFETY: no pointers.
    let stop = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if stop == -1 {
        return Err(sys::errno());
    }
    static READY: AtomicBool = AtomicBool::new(false);
    READY.store(false, SeqCst);
    let mut source = Scratch::ready();
    let first = source.zeroed(0, PageSize::Huge2M.bytes()).map(|_| ());
    let mut handler = Handler { board, id, fd, stop, policy, source, late: [None; RETRIES] };
    let thread = std::thread::Builder::new().stack_size(64 << 10).spawn(move || {
        READY.store(true, SeqCst);
        handler.serve();
    });
    let (Ok(()), Ok(thread)) = (first, thread) else {
        sys::close(stop);
        return Err(libc::ENOMEM);
    };
    while !READY.load(SeqCst) {
        std::thread::yield_now();
    }
    board.uffds[usize::from(id.0)].stop.store(stop, SeqCst);
    running().push(Running { id, stop, thread });
    Ok(())
}

/// Ends the thread of a userfaultfd, if it has one, and waits for it.
pub fn stop(board: &Board, id: UffdId) {
    let mut all = running();
    let Some(index) = all.iter().position(|r| r.id == id) else { return };
    let one = all.swap_remove(index);
    drop(all);
    board.uffds[usize::from(id.0)].stop.store(NONE, SeqCst);
    let _ = sys::write_all(one.stop, &1u64.to_ne_bytes());
    let _ = one.thread.join();
    sys::close(one.stop);
}

/// Waits until no handler has a message to read or to answer.
pub fn settle(board: &Board) {
    let all = running();
    if all.is_empty() {
        return;
    }
    let until = sys::now() + SETTLE_NS;
    for one in all.iter() {
        let slot = &board.uffds[usize::from(one.id.0)];
        while sys::now() < until {
            let fd = slot.fd.load(SeqCst);
            // In this order: a message is either still unread or already makes it busy.
            let unread = fd != NONE && sys::readable(fd, 0);
            if !unread && slot.busy.load(SeqCst) == 0 {
                break;
            }
            std::thread::yield_now();
        }
    }
}

/// Messages recorded since the last call, with the lines they belong to.
pub fn take_events(each: &mut dyn FnMut(u16, FaultSeen)) {
    let mut record = record();
    record.taken += record.seen.len();
    for (line, seen) in record.seen.drain(..) {
        each(line, seen);
    }
}

/// Ends every thread and closes what FORK events brought.
pub fn stop_all(board: &Board) {
    loop {
        let id = running().first().map(|r| r.id);
        let Some(id) = id else { break };
        stop(board, id);
    }
    close_forked();
}

/// Closes what FORK events brought, and says how many there were: whoever waits for one of them
/// goes on.
pub fn close_forked() -> usize {
    let mut record = record();
    record.forked.drain(..).map(sys::close).count()
}

/// A page fault still to be answered.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    /// Number of its record, if it found room.
    number: Option<usize>,
    addr: u64,
    flags: u8,
    tries: u16,
}

struct Handler {
    board: &'static Board,
    id: UffdId,
    fd: i32,
    stop: i32,
    policy: Policy,
    source: Scratch,
    late: [Option<Waiting>; RETRIES],
}

impl Handler {
    fn serve(&mut self) {
        loop {
            let waiting = self.late.iter().any(Option::is_some);
            let mut fds = [self.fd, self.stop].map(|fd| libc::pollfd {
                fd,
                events: libc::POLLIN,
                revents: 0,
            });
            // SAFETY: two pollfds.
            unsafe { libc::poll(fds.as_mut_ptr(), 2, if waiting { 1 } else { -1 }) };
            if fds[1].revents != 0 || fds[0].revents & libc::POLLERR != 0 {
                return;
            }
            let busy = &self.board.uffds[usize::from(self.id.0)].busy;
            busy.store(1, SeqCst);
            let mut message = [0u8; 32];
            while let Ok(32) = sys::read_some(self.fd, &mut message) {
                self.take(&message);
                self.again();
            }
            self.again();
            let open = self.late.iter().any(Option::is_some);
            busy.store(open.into(), SeqCst);
        }
    }

    /// Tries waiting answers once more.
    fn again(&mut self) {
        for slot in 0..RETRIES {
            if let Some(fault) = self.late[slot].take() {
                self.answer_and_record(fault);
            }
        }
    }

    fn take(&mut self, message: &[u8; 32]) {
        let word = |at: usize| {
            let mut bytes = [0u8; 8];
            bytes.copy_from_slice(&message[at..at + 8]);
            u64::from_ne_bytes(bytes)
        };
        let (first, second, third) = (word(8), word(16), word(24));
        let blank = Spot::Outside(0);
        let uffd = self.id;
        let event = message[0];
        let mut seen = FaultSeen { uffd, event, flags: 0, at: blank, to: blank, len: 0, answer: 0 };
        match event {
            event::PAGEFAULT => {
                seen.flags = first as u8;
                seen.at = guard::spot(second);
            }
            event::REMAP => {
                seen.at = guard::spot(first);
                seen.to = guard::spot(second);
                seen.len = third;
            }
            event::REMOVE | event::UNMAP => {
                seen.at = guard::spot(first);
                seen.len = second.wrapping_sub(first);
            }
            event::FORK => keep_forked(first as u32 as i32),
            _ => {}
        }
        if event != event::REMAP {
            seen.to = seen.at;
        }
        let fault = event == event::PAGEFAULT;
        let number = push(self.board.line_at(if fault { second } else { first }), seen);
        if fault {
            self.answer_and_record(Waiting { number, addr: second, flags: seen.flags, tries: 0 });
        }
    }

    fn answer_and_record(&mut self, mut fault: Waiting) {
        let errno = self.answer(fault.addr, fault.flags);
        if errno == libc::EAGAIN && fault.tries < TRIES_MAX {
            fault.tries += 1;
            if let Some(free) = self.late.iter_mut().find(|w| w.is_none()) {
                *free = Some(fault);
                return;
            }
        }
        let mut record = record();
        let taken = record.taken;
        if let Some(index) = fault.number.and_then(|number| number.checked_sub(taken))
            && let Some((_, seen)) = record.seen.get_mut(index)
        {
            seen.answer = errno as u16;
        }
    }

    /// Answers with the page size of the mapping: the one noted when it was made, and where that
    /// is wrong (EINVAL), the others.
    fn answer(&mut self, addr: u64, flags: u8) -> i32 {
        let noted = self.board.page_at(std::process::id(), addr);
        let mut errno = self.answer_sized(addr, flags, noted);
        for size in [PageSize::Base.bytes(), PageSize::Huge2M.bytes()] {
            if errno == libc::EINVAL && size != noted {
                errno = match self.answer_sized(addr, flags, size) {
                    libc::ENOENT => libc::EINVAL,
                    other => other,
                };
            }
        }
        if errno == libc::EEXIST && flags & event::FLAG_MINOR != 0 {
            // A huge page that is mapped in pieces: only the base page that is missed fits. Where
            // pieces cannot be, that is EINVAL, and the first answer stands.
            errno = match self.answer_sized(addr, flags, PAGE) {
                libc::EINVAL => errno,
                piece => piece,
            };
        }
        if errno == libc::EEXIST {
            // Somebody else filled it: the waiter must look again.
            let mut range = uapi::Range { start: addr & !(PAGE - 1), len: PAGE };
            uapi::call(self.fd, uapi::IOC_WAKE, &mut range);
        }
        errno
    }

    fn answer_sized(&mut self, addr: u64, flags: u8, size: u64) -> i32 {
        let range = uapi::Range { start: addr & !(size - 1), len: size };
        if flags & event::FLAG_WP != 0 {
            let mut arg = uapi::WriteProtect { range, mode: 0 };
            return errno_of(uapi::call(self.fd, uapi::IOC_WRITEPROTECT, &mut arg));
        }
        if flags & event::FLAG_MINOR != 0 {
            return self.fill(uapi::IOC_CONTINUE, range);
        }
        match self.policy {
            Policy::Copy => self.copy(range, Some(HANDLER_SERIAL + u32::from(self.id.0))),
            Policy::Zero => match self.fill(uapi::IOC_ZEROPAGE, range) {
                libc::EINVAL => self.copy(range, None),
                errno => errno,
            },
            Policy::Poison => self.fill(uapi::IOC_POISON, range),
            Policy::None => 0,
        }
    }

    fn fill(&self, request: u64, range: uapi::Range) -> i32 {
        let mut arg = uapi::Fill { range, mode: 0, out: 0 };
        errno_of(uapi::call(self.fd, request, &mut arg))
    }

    fn copy(&mut self, range: uapi::Range, serial: Option<u32>) -> i32 {
        let off = Place::of_addr(range.start).map_or(0, |place| place.off);
        let src = match serial {
            Some(serial) => self.source.tagged(off, range.len, serial),
            None => self.source.zeroed(off, range.len),
        };
        let src = match src {
            Ok(src) => src as u64,
            Err(errno) => return errno,
        };
        let mut arg = uapi::Copy { dst: range.start, src, len: range.len, mode: 0, copy: 0 };
        let errno = errno_of(uapi::call(self.fd, uapi::IOC_COPY, &mut arg));
        self.source.wipe(off, range.len);
        errno
    }
}

fn errno_of(ret: i64) -> i32 {
    if ret == -1 { sys::errno() } else { 0 }
}

fn keep_forked(fd: i32) {
    let mut record = record();
    if record.forked.len() < RECORD_MAX {
        record.forked.push(fd);
    }
}

/// Records a message unless the line has its fill; never grows the vector.
fn push(line: u16, seen: FaultSeen) -> Option<usize> {
    let mut record = record();
    let index = record.seen.len();
    let full = index >= RECORD_MAX
        || record.seen.iter().rev().take_while(|(l, _)| *l == line).count() >= EVENTS_MAX;
    if full {
        return None;
    }
    record.seen.push((line, seen));
    Some(record.taken + index)
}
