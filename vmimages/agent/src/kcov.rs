//! KCOV, where the kernel has it: each task that runs ops of a program records where it goes, and
//! what falls into the host's ranges is collected on a map the tasks share. A task that cannot
//! record runs on without; the rest of the worker is not touched.

use crate::sys;
use case::cover::Ranges;
use std::cell::RefCell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

const FILE: &str = "/sys/kernel/debug/kcov";
/// `_IOR('c', 1, unsigned long)`: size of the buffer in words.
const INIT_TRACE: u64 = 0x8008_6301;
/// `_IO('c', 100)` and `_IO('c', 101)`.
const ENABLE: u64 = 0x6364;
const DISABLE: u64 = 0x6365;
/// Mode of `ENABLE`: program counters.
const TRACE_PC: u64 = 0;
/// Words of one task's buffer; the first counts the others. What comes after it is full is lost.
const WORDS: usize = 64 << 10;

/// The ranges, and one byte for each of their cells, shared with all children.
struct Area {
    ranges: Ranges,
    hit: &'static [AtomicU8],
}

static AREA: OnceLock<Area> = OnceLock::new();

/// Turns recording on for tasks that start from now on. Called by the supervisor, once; a second
/// call changes nothing.
pub fn prepare(ranges: Ranges) -> Result<(), String> {
    ranges.check()?;
    let cells = ranges.cells() as usize;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping at an address of the kernel's choice; never unmapped.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), cells.max(1), prot, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(format!("no memory for {cells} cells"));
    }
    // SAFETY: the mapping is zeroed, `cells` bytes long and lives for ever.
    let hit = unsafe { std::slice::from_raw_parts(at.cast::<AtomicU8>(), cells) };
    let _ = AREA.set(Area { ranges, hit });
    Ok(())
}

/// Whether runs are to be measured.
pub fn is_on() -> bool {
    AREA.get().is_some()
}

/// Forgets what was recorded so far.
pub fn clear() {
    let Some(area) = AREA.get() else { return };
    area.hit.iter().for_each(|cell| cell.store(0, Relaxed));
}

/// Cells recorded since `clear`, ascending.
pub fn cells() -> Vec<u32> {
    let Some(area) = AREA.get() else { return Vec::new() };
    let hit = area.hit.iter().enumerate().filter(|(_, cell)| cell.load(Relaxed) != 0);
    hit.map(|(cell, _)| cell as u32).collect()
}

/// Recording of the calling task, until dropped. Made in the task it records.
#[derive(Debug)]
struct Recorder {
    fd: i32,
    words: &'static [AtomicU64],
}

thread_local! {
    static OWN: RefCell<Option<Recorder>> = const { RefCell::new(None) };
}

/// Starts recording the calling task, if the host asked for it and the kernel can.
pub fn start() {
    if is_on() {
        OWN.set(Recorder::start());
    }
}

/// In a forked process: the parent's recording is not ours, its descriptor is shared.
pub fn in_child() {
    std::mem::forget(OWN.take());
    start();
}

/// Moves what the calling task recorded to the shared map.
pub fn collect() {
    OWN.with_borrow(|own| own.iter().for_each(Recorder::collect));
}

/// Ends the recording of the calling task.
pub fn stop() {
    drop(OWN.take());
}

impl Recorder {
    fn start() -> Option<Recorder> {
        let fd = sys::open(FILE, libc::O_RDWR).ok()?;
        // SAFETY: our descriptor and an integer.
        if unsafe { libc::ioctl(fd, INIT_TRACE, WORDS) } != 0 {
            sys::close(fd);
            return None;
        }
        let (bytes, prot) = (WORDS * size_of::<u64>(), libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: maps the buffer just made, at an address of the kernel's choice.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, prot, libc::MAP_SHARED, fd, 0) };
        if at == libc::MAP_FAILED {
            sys::close(fd);
            return None;
        }
        // SAFETY: the mapping is `WORDS` long and only `drop` unmaps it. The kernel writes it on
        // behalf of the calling task, hence atomics.
        let words = unsafe { std::slice::from_raw_parts(at.cast::<AtomicU64>(), WORDS) };
        let recorder = Recorder { fd, words };
        // SAFETY: our descriptor and an integer.
        let enabled = unsafe { libc::ioctl(fd, ENABLE, TRACE_PC) } == 0;
        enabled.then_some(recorder)
    }

    fn collect(&self) {
        let (Some(area), Some((count, places))) = (AREA.get(), self.words.split_first()) else {
            return;
        };
        let filled = (count.load(Relaxed) as usize).min(places.len());
        for place in &places[..filled] {
            let cell = area.ranges.cell(place.load(Relaxed));
            if let Some(hit) = cell.and_then(|cell| area.hit.get(cell as usize)) {
                hit.store(1, Relaxed);
            }
        }
        count.store(0, Relaxed);
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // SAFETY: our descriptor and an integer; ends this task's recording.
        unsafe { libc::ioctl(self.fd, DISABLE, 0) };
        self.collect();
        let bytes = size_of_val(self.words);
        // SAFETY: exactly the mapping `start` made; the slice is not used after this.
        unsafe { libc::munmap(self.words.as_ptr().cast_mut().cast(), bytes) };
        sys::close(self.fd);
    }
}
