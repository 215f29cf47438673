//! Ops on userfaultfds: every ioctl with the program's arguments. The threads that answer faults
//! are `handler`'s.

use crate::exec::{Lane, Outcome, failed, plain, skip, status};
use crate::{handler, uapi};
use case::Op;
use case::observation::{FIELD_UNTOUCHED, Output, Skip, Status};
use case::value::{Policy, UffdFeatures, UffdId};
use std::sync::atomic::Ordering::SeqCst;

/// Runs the op if it is one of this file's.
pub fn run(lane: &mut Lane, line: u16, op: &Op) -> Option<Outcome> {
    if let Op::Uffd { uffd, features, handler } = op {
        return Some(open(lane, *uffd, *features, *handler));
    }
    let (Op::Register { uffd, at, len, .. }
    | Op::Unregister { uffd, at, len }
    | Op::Continue { uffd, at, len, .. }
    | Op::Copy { uffd, at, len, .. }
    | Op::Zeropage { uffd, at, len, .. }
    | Op::WriteProtect { uffd, at, len, .. }
    | Op::UffdPoison { uffd, at, len, .. }
    | Op::Wake { uffd, at, len }) = op
    else {
        return close(lane, op);
    };
    let Some(fd) = lane.uffd(*uffd) else { return Some(skip(Skip::NoObject)) };
    let mut range = uapi::Range { start: at.addr(), len: len.0 };
    Some(match op {
        Op::Register { modes, .. } => register(fd, range, modes.0.into()),
        Op::Unregister { .. } => plain(uapi::call(fd, uapi::IOC_UNREGISTER, &mut range)),
        Op::Wake { .. } => plain(uapi::call(fd, uapi::IOC_WAKE, &mut range)),
        Op::Continue { flags, .. } => fill(fd, uapi::IOC_CONTINUE, range, flags.0.into()),
        Op::Zeropage { flags, .. } => fill(fd, uapi::IOC_ZEROPAGE, range, flags.0.into()),
        Op::UffdPoison { flags, .. } => fill(fd, uapi::IOC_POISON, range, flags.0.into()),
        Op::WriteProtect { flags, .. } => {
            let mut arg = uapi::WriteProtect { range, mode: flags.0.into() };
            plain(uapi::call(fd, uapi::IOC_WRITEPROTECT, &mut arg))
        }
        Op::Copy { flags, .. } => {
            copy(lane, fd, at.off, range, flags.0.into(), u32::from(line) + 1)
        }
        _ => return None,
    })
}

fn open(lane: &Lane, id: UffdId, features: UffdFeatures, policy: Policy) -> Outcome {
    if lane.proc != 0 {
        // Its handler thread would have to live in the child.
        return skip(Skip::Unavailable);
    }
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    if fd == -1 {
        return plain(-1);
    }
    let fd = fd as i32;
    let mut api = uapi::Api { api: uapi::API, features: features.0.into(), ioctls: 0 };
    if uapi::call(fd, uapi::IOC_API, &mut api) == -1 {
        let errno = crate::sys::errno();
        crate::sys::close(fd);
        return (failed(errno), Output::Nothing);
    }
    let slot = &lane.shared.board.uffds[usize::from(id.0)];
    if policy != Policy::None
        && let Err(errno) = handler::start(lane.shared.board, id, fd, policy)
    {
        crate::sys::close(fd);
        return (failed(errno), Output::Nothing);
    }
    slot.fd.store(fd, SeqCst);
    (Status::Ok(0), Output::Field(api.features as i64))
}

fn close(lane: &Lane, op: &Op) -> Option<Outcome> {
    let Op::CloseUffd { uffd } = op else { return None };
    let Some(fd) = lane.uffd(*uffd) else { return Some(skip(Skip::NoObject)) };
    let slot = &lane.shared.board.uffds[usize::from(uffd.0)];
    // The handler must be gone first: its poll holds a reference that would outlive the close.
    handler::stop(lane.shared.board, *uffd);
    slot.fd.store(crate::board::NONE, SeqCst);
    // SAFETY: the program's own descriptor.
    Some(plain(unsafe { libc::close(fd) }.into()))
}

fn register(fd: i32, range: uapi::Range, mode: u64) -> Outcome {
    let mut arg = uapi::Fill { range, mode, out: FIELD_UNTOUCHED };
    match uapi::call(fd, uapi::IOC_REGISTER, &mut arg) {
        -1 => plain(-1),
        _ => (Status::Ok(arg.out), Output::Field(arg.out)),
    }
}

fn fill(fd: i32, request: u64, range: uapi::Range, mode: u64) -> Outcome {
    let mut arg = uapi::Fill { range, mode, out: FIELD_UNTOUCHED };
    // UFFDIO_POISON's output field lies where the others have theirs.
    let status = status(uapi::call(fd, request, &mut arg));
    (status, Output::Field(arg.out))
}

fn copy(lane: &mut Lane, fd: i32, off: u64, range: uapi::Range, mode: u64, serial: u32) -> Outcome {
    let src = match lane.source.tagged(off, range.len, serial) {
        Ok(src) => src as u64,
        Err(errno) => return (failed(errno), Output::Nothing),
    };
    let mut arg = uapi::Copy { dst: range.start, src, len: range.len, mode, copy: FIELD_UNTOUCHED };
    let status = status(uapi::call(fd, uapi::IOC_COPY, &mut arg));
    lane.source.wipe(off, range.len);
    (status, Output::Field(arg.copy))
}
