//! Looks at memory through the kernel's own interfaces: pagemap, kpageflags, smaps, numa_maps,
//! status, mincore, pools. They run after every op, so descriptors stay open and buffers are
//! reused. Nothing here changes the memory it looks at, and nothing judges what it sees.
//!
//! State is kept per thread (no lock that a fork could leave held) or filled once; [`prepare`]
//! fills the latter before the agent forks.

mod files;
mod pages;
mod pools;
mod text;
mod vmas;

pub use files::forget;
pub use pages::{Frames, own_pfn, pages};
pub use pools::{counters, pools};
pub use vmas::{rollup, status, vmas};

use case::limits::PAGE;
use case::value::Place;
use std::cell::RefCell;

/// Opens what stays open for the life of the agent, finds the zero page and marks the end of the
/// arena. Once, before any fork; without it looks are the same, but slower.
pub fn prepare() {
    pages::prepare();
    pools::prepare();
    vmas::prepare();
}

/// Bytes beyond which mincore(2) must fail: the whole arena.
const MINCORE_BYTES_MAX: u64 = case::limits::ARENA_STRIDE * case::limits::OBJECTS_MAX as u64;

thread_local! {
    static RESIDENT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// mincore(2) of the calling process: runs of (pages, resident), or the errno. A range longer
/// than the arena is shortened to it; it leaves the arena either way.
pub fn mincore(at: Place, len: u64) -> Result<Vec<(u32, bool)>, u16> {
    let len = len.min(MINCORE_BYTES_MAX);
    let pages = len.div_ceil(PAGE) as usize;
    RESIDENT.with_borrow_mut(|vec| {
        vec.clear();
        vec.resize(pages, 0);
        // SAFETY: `vec` has one byte for each page of the range; the range itself is only asked
        // about, never touched.
        let ret = unsafe { libc::mincore(at.addr() as *mut _, len as usize, vec.as_mut_ptr()) };
        if ret != 0 {
            return Err(errno() as u16);
        }
        Ok(resident_runs(vec))
    })
}

fn resident_runs(vec: &[u8]) -> Vec<(u32, bool)> {
    let mut runs: Vec<(u32, bool)> = Vec::new();
    for byte in vec {
        let resident = byte & 1 != 0;
        match runs.last_mut() {
            Some((pages, last)) if *last == resident => *pages += 1,
            _ => runs.push((1, resident)),
        }
    }
    runs
}

/// errno of the calling thread.
fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_bytes_compress_by_their_low_bit() {
        assert_eq!(
            resident_runs(&[1, 1, 0, 0x81, 2]),
            [(2, true), (1, false), (1, true), (1, false)]
        );
        assert!(resident_runs(&[]).is_empty());
    }

    #[test]
    fn mincore_of_a_hole_is_enomem_and_of_an_odd_start_einval() {
        assert_eq!(mincore(Place::new(7, 0), 4096), Err(libc::ENOMEM as u16));
        assert_eq!(mincore(Place::new(7, 1), 4096), Err(libc::EINVAL as u16));
        assert_eq!(mincore(Place::new(7, 0), u64::MAX), Err(libc::ENOMEM as u16));
    }
}
