//! Pins that last: io_uring registered buffers, and gup_test where the kernel has it. Raw
//! syscalls; the ring itself is never used.

use super::{errno, status, unavailable};
use case::limits::PAGE;
use case::observation::{Output, Skip, Status};
use case::value::{PinFlags, Place};
use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const IORING_REGISTER_BUFFERS: u32 = 0;
const IORING_UNREGISTER_BUFFERS: u32 = 1;
/// sizeof(struct io_uring_params).
const PARAMS_BYTES: usize = 120;

/// A long-term pin. Dropping it releases the pages before the ring is closed: closing alone does
/// that later, in a kernel worker.
#[derive(Debug)]
pub struct Pin {
    ring: OwnedFd,
}

impl Pin {
    /// Releases the pages; 0, or the errno of the kernel.
    pub fn release(self) -> (Status, Output) {
        (self.unregister(), Output::Nothing)
    }

    fn unregister(&self) -> Status {
        // SAFETY: the request takes no argument.
        status(unsafe {
            libc::syscall(
                libc::SYS_io_uring_register,
                self.ring.as_raw_fd(),
                IORING_UNREGISTER_BUFFERS,
                std::ptr::null::<u8>(),
                0,
            )
        })
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        // ENXIO after `release`: nothing is registered any more.
        self.unregister();
    }
}

/// A new ring of one entry.
pub(crate) fn ring() -> Result<OwnedFd, u16> {
    let mut params = [0u64; PARAMS_BYTES / 8];
    // SAFETY: `params` is as large as struct io_uring_params and all zero.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) };
    match i32::try_from(fd) {
        // SAFETY: the kernel just made this descriptor for us.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(errno()),
    }
}

/// Registers the range as an io_uring buffer. io_uring always pins for writing and for long,
/// whatever `flags` say. The handle is there if the status is `Ok`.
pub fn pin(at: Place, len: u64, _flags: PinFlags) -> (Status, Option<Pin>) {
    let Ok(ring) = ring() else { return (Status::Skipped(Skip::Unavailable), None) };
    let iov = libc::iovec { iov_base: at.addr() as *mut _, iov_len: len as usize };
    // SAFETY: one vector is passed; the pages it names are pinned, not touched.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring.as_raw_fd(),
            IORING_REGISTER_BUFFERS,
            &raw const iov,
            1,
        )
    };
    (status(ret), (ret >= 0).then_some(Pin { ring }))
}

pub(crate) const GUP_TEST: &str = "/sys/kernel/debug/gup_test";

/// struct gup_test of the kernel's mm/gup_test.h.
#[repr(C)]
#[derive(Debug, Default)]
struct GupTest {
    get_delta_usec: u64,
    put_delta_usec: u64,
    addr: u64,
    size: u64,
    nr_pages_per_call: u32,
    gup_flags: u32,
    test_flags: u32,
    which_pages: [u32; 8],
}

/// _IOWR('g', number, struct gup_test).
const fn gup_request(number: u64) -> u64 {
    3 << 30 | (size_of::<GupTest>() as u64) << 16 | (b'g' as u64) << 8 | number
}
const PIN_LONGTERM_BENCHMARK: u64 = gup_request(3);
const GUP_BASIC_TEST: u64 = gup_request(4);
const FOLL_WRITE: u32 = 1;

/// One gup_test pass over the range, one page a call so that the size it reports is exact: slow
/// get_user_pages, or a long-term pin with `longterm`. The result is the bytes it got; the kernel
/// does not say why it stopped.
pub fn gup_test(at: Place, len: u64, flags: PinFlags) -> (Status, Output) {
    let Ok(file) = OpenOptions::new().read(true).write(true).open(GUP_TEST) else {
        return unavailable();
    };
    if len > case::limits::ACCESS_BYTES_MAX {
        return unavailable();
    }
    let mut request = GupTest {
        addr: at.addr() / PAGE * PAGE,
        size: len.next_multiple_of(PAGE),
        nr_pages_per_call: 1,
        gup_flags: if flags.has(PinFlags::WRITE) { FOLL_WRITE } else { 0 },
        ..GupTest::default()
    };
    let long = flags.has(PinFlags::LONGTERM);
    let number = if long { PIN_LONGTERM_BENCHMARK } else { GUP_BASIC_TEST };
    // SAFETY: `request` is the struct the ioctl number names, valid for reading and writing.
    let ret = unsafe { libc::ioctl(file.as_raw_fd(), number, &raw mut request) };
    let status = match ret {
        0 => Status::Ok(i64::try_from(request.size).unwrap_or(i64::MAX)),
        _ => status(-1),
    };
    (status, Output::Nothing)
}
