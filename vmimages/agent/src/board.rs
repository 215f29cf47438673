//! The board: one page of memory shared by the supervisor, the worker and every process a
//! program forks. Object tables live here because file descriptors are shared too, so an object
//! means the same in each process. Nothing here allocates: handler threads and signal handlers
//! use it.

use case::limits::{ARENA_BASE, ARENA_STRIDE, OBJECTS_MAX};
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::SeqCst};

/// Slots of [`Board::watch`]: p0 to p7, then the threads of a `par` block.
pub const WATCH_SLOTS: usize = PAR_SLOT + case::limits::PAR_THREADS_MAX;
/// First slot of a `par` thread.
pub const PAR_SLOT: usize = OBJECTS_MAX as usize;
/// Ranges remembered with their page size.
const MAPS: usize = 64;
const OBJECTS: usize = OBJECTS_MAX as usize;
/// No object: never made, or gone.
pub const NONE: i32 = -1;

/// One executing thread, as the watchdog sees it.
#[derive(Debug)]
#[repr(C)]
pub struct Watch {
    pub pid: AtomicI32,
    pub tid: AtomicI32,
    /// Monotonic nanoseconds after which the op is broken off; 0 when no op runs.
    pub deadline: AtomicU64,
    pub line: AtomicU32,
    /// Times the watchdog has tried to break the op off.
    pub fired: AtomicU32,
    /// 1 while the watchdog acts on this slot: an op does not end in between, so that its signal
    /// cannot hit the next one.
    pub firing: AtomicU32,
    /// 1 if it went beyond signals and took away what the op waited for.
    pub forced: AtomicU32,
    /// Arena range the op names, for attributing faults inside `par`.
    pub from: AtomicU64,
    pub to: AtomicU64,
}

/// One userfaultfd.
#[derive(Debug)]
#[repr(C)]
pub struct Uffd {
    pub fd: AtomicI32,
    /// eventfd that ends the handler thread; [`NONE`] without one.
    pub stop: AtomicI32,
    /// 1 from before a message is read until it is answered and recorded.
    pub busy: AtomicU32,
}

/// One forked process.
#[derive(Debug)]
#[repr(C)]
pub struct Proc {
    pub pid: AtomicI32,
    pub pidfd: AtomicI32,
    /// The worker's end of its socket, and the process's own end.
    pub sock: AtomicI32,
    pub own: AtomicI32,
}

/// A range, its page size and whose it is, newest last.
#[derive(Debug)]
#[repr(C)]
pub struct MapNote {
    pub pid: AtomicU32,
    pub start: AtomicU64,
    pub end: AtomicU64,
    pub page: AtomicU64,
}

/// See the module.
#[derive(Debug)]
#[repr(C)]
pub struct Board {
    /// Line now executing, for the supervisor when everything else is gone.
    pub line: AtomicU32,
    pub timeout_ns: AtomicU64,
    /// 1 while a program runs: the watchdog sleeps otherwise.
    pub running: AtomicU32,
    /// 1 while the watchdog has files open.
    pub looking: AtomicU32,
    pub watch: [Watch; WATCH_SLOTS],
    pub files: [AtomicI32; OBJECTS],
    pub file_page: [AtomicU64; OBJECTS],
    pub uffds: [Uffd; OBJECTS],
    pub procs: [Proc; OBJECTS],
    /// Process that holds the pin, plus one.
    pub pins: [AtomicU32; OBJECTS],
    /// Highest offset ever mapped in each region.
    pub extents: [AtomicU64; OBJECTS],
    pub maps: [MapNote; MAPS],
    pub map_count: AtomicU32,
}

impl Board {
    /// Maps a new board, zeroed, shared with all processes forked later.
    pub fn create() -> Result<&'static Board, i32> {
        // SAFETY: a fresh anonymous shared mapping, large enough, zero is a valid Board.
        unsafe {
            let at = libc::mmap(
                std::ptr::null_mut(),
                std::mem::size_of::<Board>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            if at == libc::MAP_FAILED {
                return Err(crate::sys::errno());
            }
            let board = &*at.cast::<Board>();
            board.clear();
            Ok(board)
        }
    }

    /// Unmaps a board no process uses any more.
    pub fn destroy(&'static self) {
        let at: *const Board = self;
        // SAFETY: the mapping made by `create`; the caller drops its reference.
        unsafe { libc::munmap(at.cast_mut().cast(), std::mem::size_of::<Board>()) };
    }

    /// Forgets every object; closes nothing.
    pub fn clear(&self) {
        self.line.store(0, SeqCst);
        for watch in &self.watch[1..] {
            watch.deadline.store(0, SeqCst);
            watch.tid.store(0, SeqCst);
        }
        for i in 0..OBJECTS {
            self.files[i].store(NONE, SeqCst);
            self.uffds[i].fd.store(NONE, SeqCst);
            self.uffds[i].stop.store(NONE, SeqCst);
            self.uffds[i].busy.store(0, SeqCst);
            self.procs[i].pid.store(0, SeqCst);
            self.procs[i].pidfd.store(NONE, SeqCst);
            self.procs[i].sock.store(NONE, SeqCst);
            self.procs[i].own.store(NONE, SeqCst);
            self.pins[i].store(0, SeqCst);
            self.extents[i].store(0, SeqCst);
        }
        self.map_count.store(0, SeqCst);
    }

    /// A mapping of `len` bytes at `addr` was made (or moved there) by process `pid`.
    pub fn note_mapped(&self, pid: u32, addr: u64, len: u64, page: u64) {
        let len = len.next_multiple_of(page);
        let index = self.map_count.fetch_add(1, SeqCst) as usize % MAPS;
        self.maps[index].pid.store(pid, SeqCst);
        self.maps[index].start.store(addr, SeqCst);
        self.maps[index].end.store(addr + len, SeqCst);
        self.maps[index].page.store(page, SeqCst);
        let Some(rel) = addr.checked_sub(ARENA_BASE) else { return };
        let region = (rel / ARENA_STRIDE) as usize;
        if region < OBJECTS {
            self.extents[region].fetch_max(rel % ARENA_STRIDE + len, SeqCst);
        }
    }

    /// Page size process `pid` mapped last at the address; where it mapped nothing, what another
    /// did, which a child has from its parent; 4 KiB where nothing is known.
    pub fn page_at(&self, pid: u32, addr: u64) -> u64 {
        let count = self.map_count.load(SeqCst) as usize;
        let mut others = None;
        for back in 0..count.min(MAPS) {
            let note = &self.maps[(count - 1 - back) % MAPS];
            if !(note.start.load(SeqCst)..note.end.load(SeqCst)).contains(&addr) {
                continue;
            }
            let page = note.page.load(SeqCst);
            if note.pid.load(SeqCst) == pid {
                return page;
            }
            others.get_or_insert(page);
        }
        others.unwrap_or(case::limits::PAGE)
    }

    /// The line a fault at `addr` belongs to: that of the thread whose op names the address, else
    /// of any thread in an op, else the last one begun.
    pub fn line_at(&self, addr: u64) -> u16 {
        let mut any = None;
        for watch in &self.watch {
            if watch.deadline.load(SeqCst) == 0 {
                continue;
            }
            let line = watch.line.load(SeqCst) as u16;
            if (watch.from.load(SeqCst)..watch.to.load(SeqCst)).contains(&addr) {
                return line;
            }
            any = any.or(Some(line));
        }
        any.unwrap_or(self.line.load(SeqCst) as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_mapping_decides_the_page_size() {
        let board = Board::create().unwrap();
        let (own, child) = (7, 8);
        board.note_mapped(own, ARENA_BASE, 8 << 20, 4096);
        board.note_mapped(own, ARENA_BASE + (2 << 20), 2 << 20, 2 << 20);
        assert_eq!(board.page_at(own, ARENA_BASE), 4096);
        assert_eq!(board.page_at(own, ARENA_BASE + (3 << 20)), 2 << 20);
        assert_eq!(board.page_at(own, ARENA_BASE + (9 << 20)), 4096);
        assert_eq!(board.page_at(child, ARENA_BASE + (3 << 20)), 2 << 20);
        board.note_mapped(child, ARENA_BASE, 2 << 20, 2 << 20);
        assert_eq!(board.page_at(child, ARENA_BASE), 2 << 20);
        assert_eq!(board.page_at(own, ARENA_BASE), 4096, "what a child maps is its own");
        assert_eq!(board.extents[0].load(SeqCst), 8 << 20);
    }

    #[test]
    fn fault_belongs_to_the_thread_that_names_the_address() {
        let board = Board::create().unwrap();
        for (slot, line, from) in [(8usize, 3u32, 0x1000u64), (9, 7, 0x9000)] {
            board.watch[slot].line.store(line, SeqCst);
            board.watch[slot].from.store(from, SeqCst);
            board.watch[slot].to.store(from + 0x1000, SeqCst);
            board.watch[slot].deadline.store(1, SeqCst);
        }
        assert_eq!(board.line_at(0x9800), 7);
        assert_eq!(board.line_at(0xf000), 3);
    }
}
