//! Which looks belong to which line and to the end of a program. How to look is `look`'s.

use crate::board::Board;
use crate::look;
use case::Op;
use case::limits::{PAGE, REGION_BYTES_MAX, VIEW_PAGES_MAX};
use case::observation::View;
use case::value::{Place, ProcId, What};
use std::sync::atomic::Ordering::SeqCst;

/// Page-table windows are whole blocks of this size.
const BLOCK: u64 = 2 << 20;
/// Longest window looked at unasked.
const WINDOW_BYTES_MAX: u64 = 16 << 20;

/// One observed process.
#[derive(Clone, Copy, Debug)]
pub struct Subject {
    pub proc: ProcId,
    pub pid: i32,
}

/// The window around a range: whole blocks, inside what the region ever had mapped.
fn window(at: Place, len: u64, extent: u64) -> Option<(Place, u32)> {
    let start = at.off / BLOCK * BLOCK;
    let end = at.off.saturating_add(len).next_multiple_of(BLOCK).min(extent);
    let bytes = end.saturating_sub(start).min(WINDOW_BYTES_MAX);
    (bytes > 0).then_some((Place { region: at.region, off: start }, (bytes / PAGE) as u32))
}

fn extent(board: &Board, at: Place) -> u64 {
    board
        .extents
        .get(usize::from(at.region.0))
        .map_or(0, |e| e.load(SeqCst).next_multiple_of(PAGE).min(REGION_BYTES_MAX))
}

fn seen<T>(what: &str, result: Result<T, i32>, view: impl FnOnce(T) -> View) -> View {
    match result {
        Ok(value) => view(value),
        Err(errno) => View::Failed { what: what.into(), errno: errno as u16 },
    }
}

fn pages_view(
    subject: Subject,
    at: Place,
    pages: u32,
    kpage: bool,
    frames: &mut look::Frames,
) -> View {
    let proc = subject.proc;
    let result = look::pages(subject.pid, at, pages, kpage, frames);
    seen("pagemap", result, |runs| View::Pages { proc, at, runs })
}

fn vmas_view(subject: Subject, at: Place, len: u64, numa: bool) -> View {
    let proc = subject.proc;
    let result = look::vmas(subject.pid, at, len, numa);
    seen("smaps", result, |vmas| View::Vmas { proc, at, len, vmas })
}

/// The windows of every place the op names.
pub fn after_op(
    board: &Board,
    subject: Subject,
    op: &Op,
    frames: &mut look::Frames,
    out: &mut Vec<View>,
) {
    let mut done: Vec<(Place, u32)> = Vec::new();
    for (at, len) in case::check::refs(op).at {
        let Some(window) = window(at, len, extent(board, at)) else { continue };
        if !done.contains(&window) {
            done.push(window);
            out.push(pages_view(subject, window.0, window.1, false, frames));
        }
    }
}

/// What an `observe` asks for, but for the process's own look.
pub fn asked(
    subject: Subject,
    (at, len): (Place, u64),
    what: What,
    frames: &mut look::Frames,
    own: Vec<View>,
    out: &mut Vec<View>,
) {
    let page_aligned = Place { region: at.region, off: at.off / PAGE * PAGE };
    let pages = (at.off % PAGE + len).div_ceil(PAGE).min(u64::from(VIEW_PAGES_MAX)) as u32;
    if what.any(What::PAGEMAP | What::KPAGE) {
        out.push(pages_view(subject, page_aligned, pages, what.has(What::KPAGE), frames));
    }
    if what.any(What::SMAPS | What::NUMA_MAPS) {
        out.push(vmas_view(subject, at, len, what.has(What::NUMA_MAPS)));
    }
    let proc = subject.proc;
    if what.has(What::ROLLUP) {
        let kb = look::rollup(subject.pid);
        out.push(seen("smaps_rollup", kb, |kb| View::Rollup { proc, kb }));
    }
    if what.has(What::STATUS) {
        out.push(seen("status", look::status(subject.pid), |kb| View::Status { proc, kb }));
    }
    out.extend(own);
    if what.has(What::COUNTERS) {
        out.push(View::Counters(look::counters()));
    }
}

/// Everything a live process still has, region by region.
pub fn at_end(board: &Board, subject: Subject, frames: &mut look::Frames, out: &mut Vec<View>) {
    for region in 0..board.extents.len() as u8 {
        let at = Place::new(region, 0);
        let extent = extent(board, at);
        if extent == 0 {
            continue;
        }
        if let Some((at, pages)) = window(at, extent, extent) {
            out.push(pages_view(subject, at, pages, false, frames));
        }
        out.push(vmas_view(subject, at, extent, false));
    }
    let proc = subject.proc;
    out.push(seen("status", look::status(subject.pid), |kb| View::Status { proc, kb }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_whole_blocks_inside_the_extent() {
        let at = Place::new(1, (2 << 20) + 4096);
        assert_eq!(window(at, 4096, 64 << 20), Some((Place::new(1, 2 << 20), 512)));
        assert_eq!(window(at, 4096, (2 << 20) + 8192), Some((Place::new(1, 2 << 20), 2)));
        assert_eq!(window(at, 4096, 1 << 20), None);
        assert_eq!(window(Place::new(0, 0), 1 << 30, 1 << 30).map(|w| w.1), Some(4096));
        assert_eq!(window(at, u64::MAX - (1 << 30), 64 << 20).map(|w| w.1), Some(4096));
    }
}
