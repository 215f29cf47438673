//! Frames that a program poisoned, and taking the poison off again. Frame numbers stay in here.

use super::os_errno;
use crate::look::own_pfn;
use case::limits::PAGE;
use case::observation::{Output, Skip, Status};
use case::value::Place;
use std::fs::OpenOptions;
use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) const UNPOISON: &str = "/sys/kernel/debug/hwpoison/unpoison-pfn";

#[derive(Clone, Copy, Debug)]
struct Frame {
    /// Address of the page it was mapped at.
    page: u64,
    pfn: u64,
    /// The kernel took the poison off.
    clean: bool,
}

/// In the order they were poisoned.
static POISONED: Mutex<Vec<Frame>> = Mutex::new(Vec::new());

fn poisoned() -> MutexGuard<'static, Vec<Frame>> {
    POISONED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes which frame is at `at`, just before madvise(MADV_HWPOISON). Nothing is noted if no page
/// is present there: the frame is then chosen inside the call and cannot be known.
pub fn remember_poison(at: Place) {
    if let Ok(Some(pfn)) = own_pfn(at.addr()) {
        let page = at.addr() / PAGE * PAGE;
        let mut poisoned = poisoned();
        poisoned.retain(|known| known.page != page);
        poisoned.push(Frame { page, pfn, clean: false });
    }
}

/// Writes the frame noted for `at` to hwpoison/unpoison-pfn. `Skipped(NoObject)` if none was
/// noted, `Skipped(Unavailable)` without the file.
pub fn unpoison(at: Place) -> (Status, Output) {
    let page = at.addr() / PAGE * PAGE;
    let mut poisoned = poisoned();
    let status = match poisoned.iter_mut().find(|known| known.page == page) {
        Some(frame) => {
            let status = write_pfn(frame.pfn);
            frame.clean |= status == Status::Ok(0);
            status
        }
        None => Status::Skipped(Skip::NoObject),
    };
    (status, Output::Nothing)
}

fn write_pfn(pfn: u64) -> Status {
    let Ok(mut file) = OpenOptions::new().write(true).open(UNPOISON) else {
        return Status::Skipped(Skip::Unavailable);
    };
    match file.write_all(format!("{pfn}\n").as_bytes()) {
        Ok(()) => Status::Ok(0),
        Err(e) => Status::Err(os_errno(&e)),
    }
}

/// Tries to take the poison off every frame noted, once nothing maps them any more, and forgets
/// them. For a huge page older kernels know the first frame only, so that is tried too. Returns
/// how many stay poisoned.
pub fn unpoison_all() -> usize {
    const BLOCK: u64 = 512;
    let done = |pfn: u64| write_pfn(pfn) == Status::Ok(0);
    let all = std::mem::take(&mut *poisoned());
    let left = all.iter().filter(|frame| !frame.clean);
    left.filter(|frame| !done(frame.pfn) && !done(frame.pfn / BLOCK * BLOCK)).count()
}

/// Forgets what was noted.
pub fn forget_poison() {
    poisoned().clear();
}
