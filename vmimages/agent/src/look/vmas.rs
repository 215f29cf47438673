//! VMAs from smaps and numa_maps, and the one-page summaries of a process.

use super::files::{Kind, read, with_text};
use super::text::{More, Smaps, labels, numa_line};
use case::limits::{ARENA_BASE, ARENA_STRIDE, OBJECTS_MAX};
use case::observation::VmaObs;
use case::value::Place;
use std::cell::RefCell;

const ARENA_END: u64 = ARENA_BASE + ARENA_STRIDE * OBJECTS_MAX as u64;
/// Bytes of one read: a seq file gives whole records, at most one page of them.
const READ_BYTES: usize = 16 << 10;
/// VMAs of one process that are read before the rest is dropped.
const READS_MAX: usize = 4096;

thread_local! {
    static TEXT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Feeds a seq file to `take` read by read, until it wants no more or the file ends.
fn each_read(pid: i32, kind: Kind, mut take: impl FnMut(&[u8]) -> More) -> Result<(), i32> {
    TEXT.with_borrow_mut(|text| {
        text.resize(READ_BYTES, 0);
        let mut offset = 0;
        for _ in 0..READS_MAX {
            let got = read(pid, kind, text, offset)?;
            if got == 0 || take(&text[..got]) == More::Past {
                return Ok(());
            }
            offset += got as u64;
        }
        Err(libc::EFBIG)
    })
}

/// The VMAs that overlap the range, each complete, in address order. The arena lies below the
/// agent's libraries and stack, so reading stops at the first VMA after the range. With `numa`
/// each has its numa_maps line, where the kernel has that file.
pub fn vmas(pid: i32, at: Place, len: u64, numa: bool) -> Result<Vec<VmaObs>, i32> {
    let from = at.addr();
    let to = from.saturating_add(len).min(ARENA_END);
    let mut smaps = Smaps::default();
    each_read(pid, Kind::Smaps, |text| smaps.feed(text, from, to))?;
    let mut vmas = smaps.into_vmas();
    if numa && !vmas.is_empty() {
        match each_read(pid, Kind::NumaMaps, |text| add_numa(&mut vmas, text, to)) {
            Ok(()) | Err(libc::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(vmas)
}

fn add_numa(vmas: &mut [VmaObs], text: &[u8], to: u64) -> More {
    for line in text.split(|b| *b == b'\n') {
        let Some((start, rest)) = numa_line(line) else { continue };
        if start >= to {
            return More::Past;
        }
        if let Ok(index) = vmas.binary_search_by_key(&start, |vma| vma.at.addr()) {
            vmas[index].numa = Some(String::from_utf8_lossy(rest).into_owned());
        }
    }
    More::Wanted
}

/// smaps_rollup of a process: `(label, kB)`.
pub fn rollup(pid: i32) -> Result<Vec<(String, u64)>, i32> {
    with_text(pid, Kind::Rollup, labels)
}

/// Memory lines of /proc/PID/status: `(label, kB)`. A process that has ended but was not waited
/// for has none.
pub fn status(pid: i32) -> Result<Vec<(String, u64)>, i32> {
    with_text(pid, Kind::Status, labels)
}
