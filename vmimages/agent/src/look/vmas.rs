//! VMAs from smaps and numa_maps, and the one-page summaries of a process.

use super::files::{Kind, read, with_text};
use super::text::{More, Smaps, labels, numa_line};
use case::limits::{ARENA_BASE, ARENA_STRIDE, OBJECTS_MAX, PAGE};
use case::observation::VmaObs;
use case::value::Place;
use std::cell::RefCell;

const ARENA_END: u64 = ARENA_BASE + ARENA_STRIDE * OBJECTS_MAX as u64;
/// Bytes of one read. The kernel walks the page tables of every VMA it puts into a read, so a read
/// is little longer than one record and hardly any VMA after the range is walked.
const SMAPS_READ: usize = 1024;
const NUMA_READ: usize = 256;
/// Longest line: a path of a mapped file is at most 4 KiB.
const LINE_MAX: usize = 8 << 10;
/// Reads of one file before it is given up on: 64 Ki VMAs and more.
const READS_MAX: usize = 1 << 17;

thread_local! {
    static TEXT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Feeds the whole lines of a seq file to `take`, until it wants no more or the file ends.
fn each_read(
    pid: i32,
    kind: Kind,
    read_bytes: usize,
    mut take: impl FnMut(&[u8]) -> More,
) -> Result<(), i32> {
    TEXT.with_borrow_mut(|text| {
        text.resize(LINE_MAX + read_bytes, 0);
        let mut offset = 0;
        // Bytes of a line begun in the last read.
        let mut begun = 0;
        for _ in 0..READS_MAX {
            let got = read(pid, kind, &mut text[begun..begun + read_bytes], offset)?;
            if got == 0 {
                return Ok(());
            }
            offset += got as u64;
            let all = begun + got;
            let lines = text[..all].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
            if take(&text[..lines]) == More::Past {
                return Ok(());
            }
            text.copy_within(lines..all, 0);
            begun = all - lines;
            if begun > LINE_MAX {
                return Err(libc::EFBIG);
            }
        }
        Err(libc::EFBIG)
    })
}

/// Maps an inaccessible page right after the arena. Reading smaps stops at the first VMA after the
/// range; without this page that is one of the agent's own, with page tables to walk. Children
/// inherit it. Only speed depends on it.
pub(super) fn prepare() {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let at = ARENA_END as *mut libc::c_void;
    // SAFETY: NOREPLACE: nothing that is mapped there is touched, and nobody uses the page.
    unsafe { libc::mmap(at, PAGE as usize, libc::PROT_NONE, flags, -1, 0) };
}

/// The VMAs that overlap the range, each complete, in address order. The arena lies below the
/// agent's libraries and stack, so reading stops at the first VMA after the range. With `numa`
/// each has its numa_maps line, where the kernel has that file.
pub fn vmas(pid: i32, at: Place, len: u64, numa: bool) -> Result<Vec<VmaObs>, i32> {
    let from = at.addr();
    let to = from.saturating_add(len).min(ARENA_END);
    let mut smaps = Smaps::default();
    each_read(pid, Kind::Smaps, SMAPS_READ, |text| smaps.feed(text, from, to))?;
    let mut vmas = smaps.into_vmas();
    if numa && !vmas.is_empty() {
        match each_read(pid, Kind::NumaMaps, NUMA_READ, |text| add_numa(&mut vmas, text, to)) {
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
