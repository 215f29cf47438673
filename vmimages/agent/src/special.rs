//! The less common ops, each one function that issues it and reports what the kernel said:
//! migration and NUMA policy, users of get_user_pages, memory failure, settings, fault injection.
//! What the results should be is not known here.
//!
//! Lengths over [`ACCESS_BYTES_MAX`](case::limits::ACCESS_BYTES_MAX) (or one status per page over
//! `RUNS_MAX`) are not issued: `Skipped(Unavailable)`.

mod faults;
mod gup;
mod knobs;
mod numa;
mod pin;
mod poison;

pub use faults::{fail_nth, fail_nth_end};
pub use gup::{direct_io, vm_read, vmsplice};
pub use knobs::{Restore, set_knob};
pub use numa::{mbind, migrate_pages, move_pages, restore_mempolicy, set_mempolicy};
pub use pin::{Pin, gup_test, pin};
pub use poison::{forget_poison, remember_poison, unpoison, unpoison_all};

pub(crate) use faults::FAIL_NTH;
pub(crate) use gup::open_ram_disk;
pub(crate) use knobs::thp_setting;
pub(crate) use pin::{GUP_TEST, ring as io_uring_ring};
pub(crate) use poison::UNPOISON;

use crate::scratch::Scratch;
use case::observation::{Output, Skip, Status};
use std::cell::RefCell;

/// errno of the calling thread.
fn errno() -> u16 {
    os_errno(&std::io::Error::last_os_error())
}

fn os_errno(e: &std::io::Error) -> u16 {
    e.raw_os_error().and_then(|n| u16::try_from(n).ok()).unwrap_or(libc::EIO as u16)
}

/// The status of a syscall that gives -1 and errno on failure.
fn status(ret: i64) -> Status {
    if ret == -1 { Status::Err(errno()) } else { Status::Ok(ret) }
}

fn unavailable() -> (Status, Output) {
    (Status::Skipped(Skip::Unavailable), Output::Nothing)
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::ready());
}

/// Maps what the calling thread will use.
pub fn prepare() {
    SCRATCH.with_borrow(|_| ());
}

/// A page-aligned part of a buffer that is kept from call to call.
fn with_scratch<R>(len: usize, use_buffer: impl FnOnce(&mut [u8]) -> R) -> R {
    SCRATCH.with_borrow_mut(|scratch| scratch.with(len, use_buffer))
}
